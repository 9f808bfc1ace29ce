/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the parts of the job file's parser share. Internal to proto/: others use job_spec.h. */
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "proto/job_schema.h"
#include "proto/job_spec.h"

#define JOB_SECTIONS_MAX 16

struct job_parse {
        struct job_source src;
        struct job_spec *spec;
        int *lines; /* of each of job_keys[], 0: not given */
        struct {
                char name[32];
                int line;
        } sections[JOB_SECTIONS_MAX];
        size_t n_sections;
        bool head_dim_derived; /* from model.hidden_size */
        struct error *e;
};

/* The line of a key, else of its section, else 1. */
int job_line(const struct job_parse *p, const char *path);
bool job_given(const struct job_parse *p, const char *path);
/* What several keys say together. */
int job_check(const struct job_parse *p);

/* model_config.c: values of keys that may be missing, the sizes 0; then what follows from the sizes (key-value heads, head_dim). */
struct model_config model_config_defaults(void);
void model_config_derive(struct model_config *m);
