/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A rank's side of checkpoints (format/checkpoint.h tells what they are): it writes its shard (background thread, fsync) and reports it prepared, and loads what it needs. */
#include "format/checkpoint.h"
#include "worker/ckpt/shard.h"

struct checkpoint_write; /* one write under way, or the last one */
struct checkpoint_write_order {
        const char *folder; /* made when it is not there (mkdir -p) */
        int rank, n_ranks;
        const void *image; /* the caller's, untouched until done has been called; page-aligned memory is written without a copy */
        size_t len;
        uint64_t bytes_per_s; /* at most; 0: no limit */
        /* First in the thread: waits until the image is whole and gives its digest, with which what is written is compared. NULL: it is whole. */
        int (*ready)(void *arg, struct digest *ret, struct error *e);
        /* Last in the thread, once. file: the shard's name in the folder ("shard-00003-of-00008.safetensors"), durable; NULL when it failed (rc is a negative errno). */
        void (*done)(void *arg, int rc, const char *text, struct digest d, const char *file);
        void *arg;
};
/* Writes in a thread. *ret is NULL or an earlier write, which is used again; -EBUSY while that one is under way. On failure *ret is what it was. */
int checkpoint_write_start(const struct checkpoint_write_order *o, struct checkpoint_write **ret, struct error *e);
/* Until done has returned; NULL is no write. */
bool checkpoint_write_busy(const struct checkpoint_write *w);
/* Bytes of the write that reached the file so far. */
uint64_t checkpoint_write_progress(const struct checkpoint_write *w);
/* It is not wanted any more: ends soon, done is called with -ECANCELED, and nothing is left behind. */
void checkpoint_write_cancel(struct checkpoint_write *w);
/* Until done has returned; NULL is allowed. */
void checkpoint_write_wait(struct checkpoint_write *w);
/* Waits; returns NULL. */
struct checkpoint_write *checkpoint_write_free(struct checkpoint_write *w);

/* Fills the slices in `want` (any layout) from the folder's shards: mmap, digests of the shards that are used verified once. -ENODATA names a slice nobody holds. */
int checkpoint_load(const char *folder, const struct checkpoint_manifest *m, const struct shard_tensor *want, size_t n, const struct dev_ops *ops,
                    struct dev_stream *s, struct error *e);
