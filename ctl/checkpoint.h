/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the `ckpt` commands share. CKPT on the command line: a checkpoint's folder, a folder of step folders (its newest), JOB (its newest) or JOB:STEP. */
#include "ctl/ctl.h"
#include "format/checkpoint.h"

/* "12" or "12:500" -> a job and a step (0: the newest); false for anything else. */
bool checkpoint_parse_ref(const char *arg, uint64_t *ret_job, uint64_t *ret_step);
/* The folder that CKPT means; free() it. -ENOENT. */
int checkpoint_find(const struct ctl *c, const char *arg, char **ret_folder, struct error *e);

/* -EINVAL when it holds another model than the job file (canonical JSON); what may be meant is a warning on stderr. */
int checkpoint_fits(const char *folder, const char *job_json, struct error *e);

/* A checkpoint that is open for reading. */
struct checkpoint_files {
        char *folder;
        struct checkpoint_manifest *manifest;
        struct checkpoint_reader *reader;
        struct shard_tensor *tensors; /* global, by name */
        size_t n_tensors;
        uint64_t bytes; /* of all shards */
};
int checkpoint_files_open(const struct ctl *c, const char *arg, struct checkpoint_files *ret, struct error *e);
void checkpoint_files_close(struct checkpoint_files *f);

/* A bar on stderr while bytes go by, on terminals only. */
struct byte_progress {
        const char *what;
        uint64_t done, total, drawn_ns, began_ns;
        bool terminal, drawn;
};
void byte_progress_begin(struct byte_progress *p, const char *what, uint64_t total);
void byte_progress_add(void *p, size_t bytes); /* struct byte_progress * */
void byte_progress_end(struct byte_progress *p);

/* "[256, 128]", "[128]" for a vector. */
#define SHAPE_BUF 64
char *text_shape(char buf[SHAPE_BUF], int64_t rows, int64_t cols);
