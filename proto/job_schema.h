/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The table of a job file's keys, which drives parsing, canonical JSON and docs/job-file.md.  Internal to proto/: others use job_spec.h.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "proto/job_spec.h"
#include "proto/yaml_tree.h"

enum job_key_type { KEY_INT, KEY_I64, KEY_F64, KEY_BOOL, KEY_STRING, KEY_PATH, KEY_CHOICE, KEY_LAYERS /* none | all | [..] */, KEY_GROUPS };

struct job_key {
        const char *path;           /* "parallel.tp" */
        enum job_key_type type;
        size_t offset;              /* of the field in struct job_spec (group keys: in struct job_param_group) */
        const char *def;            /* default as it would be written; NULL: none */
        const char *derived;        /* default in words, where it follows from other keys */
        bool required, above;       /* above: min itself is not allowed */
        int64_t min, max;           /* KEY_INT, KEY_I64; max INT64_MAX: unbounded */
        double fmin, fmax;          /* KEY_F64 */
        const char *const *choices; /* NULL-terminated; the index is the enum's value (KEY_STRING: any of these) */
        const char *doc;
};

extern const struct job_key job_keys[];
extern const size_t job_keys_n;
extern const struct job_key job_group_keys[];
extern const size_t job_group_keys_n;

/* Where a text came from, for messages and relative paths. */
struct job_source {
        const char *file;
        const char *base_dir; /* NULL: relative paths are refused */
};

/* "FILE:LINE: key 'PATH': found FOUND, allowed: ALLOWED" and -EINVAL. */
int job_refuse(const struct job_source *src, int line, const char *path, const char *found, struct error *e, const char *allowed, ...)
        __attribute__((format(printf, 6, 7)));
const struct job_key *job_key_find(const char *path);
/* Text of what a key may be: "an integer from 1 to 64". */
void job_key_allowed(const struct job_key *k, char *buf, size_t size);
/* Checks the node against the key and puts its value at base + k->offset. path: the full one, for messages. */
int job_key_set(const struct job_key *k, const struct yaml_node *n, const struct job_source *src, const char *path, void *base, struct error *e);
/* Puts the default of a key that has one. */
int job_key_set_default(const struct job_key *k, void *base, struct error *e);
/* The value as a message quotes it, "'3'". */
void job_key_describe(const struct job_key *k, const void *base, char *buf, size_t size);
