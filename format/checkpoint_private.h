/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the files behind checkpoint.h share. */
#include <stdbool.h>

#include "format/checkpoint.h"

struct manifest_shard {
        char *file;
        uint64_t bytes;
        struct digest digest;
        int rank;
};

struct checkpoint_manifest {
        uint64_t job, step, epoch;
        uint32_t attempt;
        char *layout, *state;
        bool weights_only;
        struct manifest_shard *shards; /* by rank */
        size_t n_shards;
};

/* Opens the shard's file when it has the size it must have. */
int manifest_shard_open(const char *folder, const struct manifest_shard *s, int *ret_fd, struct error *e);
/* -EBADMSG with both when `found` is not the manifest's digest. */
int manifest_shard_digest(const char *folder, const struct manifest_shard *s, struct digest found, struct error *e);
/* Of a mapped file: these bytes were read and are not needed soon. What lies between is in the page cache still, but no longer in this process. */
void pages_release(const void *data, size_t len);
/* The digest of mapped bytes, which do not pile up in this process. */
int pages_digest(const void *data, size_t len, struct digest *ret);
/* A name in the folder and nothing else: it is put behind the folder's path. */
bool plain_file_name(const char *s);
