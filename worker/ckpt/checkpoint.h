/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A rank's side of checkpoints (format/checkpoint.h tells what they are): it writes its shard (background thread, fsync) and reports it prepared, and loads what it needs. */
#include "format/checkpoint.h"
#include "worker/ckpt/shard.h"

struct checkpoint_write; /* one write under way */
/*
 * Copies the image and writes the copy in a thread; done(arg, 0 or negative errno, text, digest, file) is called once from that thread. file: the shard's name
 * in the folder ("shard-00003-of-00008.safetensors"), NULL when it failed. The folder is made (mkdir -p). When done reports 0 the shard is durable.
 *
 * *ret is NULL or an earlier write: that one is waited for, and its memory used again. Keep one for the life of the rank: the copy is what the step waits for, and
 * memory touched for the first time costs ten times the copying. On failure *ret is what it was.
 */
int checkpoint_write_start(const char *folder, int rank, int n_ranks, const void *image, size_t len, void (*done)(void *arg, int rc, const char *text, struct digest d, const char *file),
                           void *arg, struct checkpoint_write **ret, struct error *e);
/* For the first write: a write that only makes room for an image of len, in a thread. */
int checkpoint_write_prepare(size_t len, struct checkpoint_write **ret, struct error *e);
/* Until done has returned; NULL is allowed. */
void checkpoint_write_wait(struct checkpoint_write *w);
/* Waits; returns NULL. */
struct checkpoint_write *checkpoint_write_free(struct checkpoint_write *w);

/* Fills the slices in `want` (any layout) from the folder's shards: mmap, digests of the shards that are used verified once. -ENODATA names a slice nobody holds. */
int checkpoint_load(const char *folder, const struct checkpoint_manifest *m, const struct shard_tensor *want, size_t n, const struct dev_ops *ops,
                    struct dev_stream *s, struct error *e);
