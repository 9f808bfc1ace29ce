/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Copies of a rank's snapshots on its node's own disk: DIR/<cluster>.<job>/rank-00003/step_00000040.e2.1/{shard-00003-of-00008.safetensors, manifest.json}.  The same
 * writer, names and manifest as a checkpoint's (format/checkpoint.h), with one shard; the manifest comes last, so a folder without one is litter.  Nothing of them is
 * believed: names, sizes and the manifest are compared when they are listed, the digest when one is loaded.
 */
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/hash.h"

#define LOCAL_COPY_LAYOUT_MAX 256

struct local_copy {
        uint64_t job, step, epoch, bytes;
        uint32_t rank, ranks;
        struct digest digest;
        char layout[LOCAL_COPY_LAYOUT_MAX];
};

/* "<dir>/<cluster>.<job>"; NULL: no memory, or a cluster that is no plain word. */
char *local_copies_of_job(const char *dir, const char *cluster, uint64_t job);
/* The job of "<cluster>.<job>", when it is that cluster's; 0: it is not. */
uint64_t local_copies_job(const char *name, const char *cluster);
/* NULL: no memory. */
char *local_copies_of_rank(const char *job_dir, uint32_t rank);
char *local_copy_folder(const char *job_dir, uint32_t rank, uint64_t step, uint64_t epoch);

/* The shard is there, whole and durable: writes the manifest, by which the copy counts. */
int local_copy_seal(const char *folder, const struct local_copy *c, struct error *e);
/* What the manifest says, held against the folder's name and the shard's size. */
int local_copy_read(const char *folder, struct local_copy *ret, struct error *e);
/* Those of a rank, newest first; what cannot be read is passed over. free() the list. */
int local_copies_list(const char *rank_dir, struct local_copy **ret, size_t *ret_n, struct error *e);
/* Those of all ranks of a job's folder that are there. */
int local_copies_list_job(const char *job_dir, struct local_copy **ret, size_t *ret_n, struct error *e);
/* The shard's bytes into buf[c->bytes], whose digest is verified: -EBADMSG. */
int local_copy_load(const char *folder, const struct local_copy *c, void *buf, struct error *e);
/* Removes the step folders of a rank that are not of these (step, epoch), whole or not. */
int local_copies_retain(const char *rank_dir, const struct local_copy *keep, size_t n, struct error *e);
