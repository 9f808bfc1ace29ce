/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Checkpoint folders: DIR/step_00001000.e7.1/{shard-00003-of-00008.safetensors, manifest.json}.  A rank writes its shard (background thread, fsync) and
 * reports it prepared; the controller writes manifest.json last and owns the commit.
 */
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/hash.h"
#include "worker/ckpt/shard.h"

/* Folder name of a step, e.g. "step_00001000.e7.1". */
void checkpoint_step_name(uint64_t step, uint64_t epoch, uint32_t attempt, char *buf, size_t size);

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

/* manifest.json: {"format": "fp8ctl-checkpoint", "version": 1, "job", "step", "epoch", "attempt", "layout", "shards": [{file, bytes, digest, rank}], "state": {...}} */
#define CHECKPOINT_MANIFEST "manifest.json"
#define CHECKPOINT_MANIFEST_MAX (64u << 20)
struct checkpoint_manifest;
/* From memory; everything is checked: names are plain file names, digests are digests, no file and no rank stands twice. */
int checkpoint_manifest_parse(const char *text, size_t len, struct checkpoint_manifest **ret, struct error *e);
int checkpoint_manifest_read(const char *folder, struct checkpoint_manifest **ret, struct error *e);
struct checkpoint_manifest *checkpoint_manifest_free(struct checkpoint_manifest *m);
uint64_t checkpoint_manifest_step(const struct checkpoint_manifest *m);
uint64_t checkpoint_manifest_epoch(const struct checkpoint_manifest *m);
uint32_t checkpoint_manifest_attempt(const struct checkpoint_manifest *m);
const char *checkpoint_manifest_layout(const struct checkpoint_manifest *m);
size_t checkpoint_manifest_shards(const struct checkpoint_manifest *m);
const char *checkpoint_manifest_state(const struct checkpoint_manifest *m); /* JSON text */
/* Every shard's size and digest; names the shard that is bad. */
int checkpoint_verify(const char *folder, const struct checkpoint_manifest *m, struct error *e);
/* Fills the slices in `want` (any layout) from the folder's shards: mmap, digests of the shards that are used verified once. -ENODATA names a slice nobody holds. */
int checkpoint_load(const char *folder, const struct checkpoint_manifest *m, const struct shard_tensor *want, size_t n, const struct dev_ops *ops,
                    struct dev_stream *s, struct error *e);
/* Newest folder in dir whose manifest verifies whole; -ENOENT. */
int checkpoint_find_newest(const char *dir, char **ret_folder, struct error *e);
