/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Checkpoint folders: DIR/step_00001000.e7.1/{shard-00003-of-00008.safetensors, manifest.json}.  Ranks write the shards, the controller writes manifest.json last
 * and owns the commit.  Here: reading them, by whoever (ranks in any layout, fp8ctl).
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/hash.h"
#include "format/shard.h"

/* Folder name of a step, e.g. "step_00001000.e7.1". */
void checkpoint_step_name(uint64_t step, uint64_t epoch, uint32_t attempt, char *buf, size_t size);

/* manifest.json: {"format": "fp8ctl-checkpoint", "version": 1, "job", "step", "epoch", "attempt", "layout", "shards": [{file, bytes, digest, rank}], "state": {...}} */
#define CHECKPOINT_MANIFEST "manifest.json"
#define CHECKPOINT_MANIFEST_MAX (64u << 20)
struct checkpoint_manifest;
/* From memory; everything is checked: names are plain file names, digests are digests, no file and no rank stands twice. */
int checkpoint_manifest_parse(const char *text, size_t len, struct checkpoint_manifest **ret, struct error *e);
int checkpoint_manifest_read(const char *folder, struct checkpoint_manifest **ret, struct error *e);
struct checkpoint_manifest *checkpoint_manifest_free(struct checkpoint_manifest *m);
uint64_t checkpoint_manifest_job(const struct checkpoint_manifest *m);
uint64_t checkpoint_manifest_step(const struct checkpoint_manifest *m);
uint64_t checkpoint_manifest_epoch(const struct checkpoint_manifest *m);
uint32_t checkpoint_manifest_attempt(const struct checkpoint_manifest *m);
const char *checkpoint_manifest_layout(const struct checkpoint_manifest *m);
const char *checkpoint_manifest_state(const struct checkpoint_manifest *m); /* JSON text */
/* Imported: master weights only ("weights_only" in the state); everything else begins as in a new job. */
bool checkpoint_manifest_weights_only(const struct checkpoint_manifest *m);

struct checkpoint_shard {
        const char *file;
        uint64_t bytes;
        struct digest digest;
        int rank;
};
size_t checkpoint_manifest_shards(const struct checkpoint_manifest *m);
struct checkpoint_shard checkpoint_manifest_shard(const struct checkpoint_manifest *m, size_t i); /* by rank */

/* ------------------------------------------------------------------ tensors of a folder */
struct checkpoint_reader; /* its shards mapped, their headers checked */
int checkpoint_reader_open(const char *folder, const struct checkpoint_manifest *m, struct checkpoint_reader **ret, struct error *e);
struct checkpoint_reader *checkpoint_reader_free(struct checkpoint_reader *r);
const struct shard_view *checkpoint_reader_view(const struct checkpoint_reader *r, size_t shard);
/* Copies from a mapped shard to where a wanted slice lies; 0 or negative errno. */
typedef int (*checkpoint_copy_fn)(void *arg, void *dst, const void *src, size_t len);
/*
 * Fills a wanted slice (of any layout). The digest of a shard is verified before anything of it is used, once. copy NULL: memcpy. -ENODATA names a part that
 * no shard holds.
 */
int checkpoint_reader_fill(struct checkpoint_reader *r, const struct shard_tensor *want, checkpoint_copy_fn copy, void *arg, struct error *e);
/* Do the shards hold all of the slice? Reads headers only. -ENODATA. */
int checkpoint_reader_covers(struct checkpoint_reader *r, const struct shard_tensor *want, struct error *e);
/* Every global tensor once, whole (data NULL), by name; free() the list. -EBADMSG when shards disagree about one. */
int checkpoint_reader_tensors(const struct checkpoint_reader *r, struct shard_tensor **ret, size_t *ret_n, struct error *e);
/* Of the list above. NULL: not in it. */
const struct shard_tensor *shard_tensor_search(const struct shard_tensor *list, size_t n, const char *name);

/* ------------------------------------------------------------------ integrity */
/* One shard: size, digest, header. Reads it in blocks; progress (may be NULL) is told of each block's bytes. */
int checkpoint_verify_shard(const char *folder, const struct checkpoint_manifest *m, size_t i, void (*progress)(void *arg, size_t bytes), void *arg, struct error *e);
/* Every shard; names the one that is bad. */
int checkpoint_verify(const char *folder, const struct checkpoint_manifest *m, struct error *e);
/*
 * Sums: the digests of a shard image's tensors, kept beside it (shard-00003-of-00008.sums), for checkpoint_bad_tensor alone. shard_sums_add takes the next len bytes of the image, best while
 * they are in the cache anyway. NULL is allowed for all of these.
 */
struct shard_sums;
int shard_sums_new(const void *image, size_t len, struct shard_sums **ret, struct error *e);
void shard_sums_add(struct shard_sums *s, size_t len);
int shard_sums_write(struct shard_sums *s, const char *folder, const char *file, struct error *e);
struct shard_sums *shard_sums_free(struct shard_sums *s);
/* Which tensors of a bad shard differ from its sums: "a, b". -ENODATA when none does, -ENOENT without sums. free() it. */
int checkpoint_bad_tensor(const char *folder, const struct checkpoint_manifest *m, size_t i, char **ret, struct error *e);
/* Newest folder in dir whose manifest verifies whole; -ENOENT. */
int checkpoint_find_newest(const char *dir, char **ret_folder, struct error *e);
bool checkpoint_has_manifest(const char *folder);
struct checkpoint_folder {
        char name[80];
        uint64_t step, epoch;
        unsigned attempt;
};
/* Step folders in dir by name, newest first, whether they are whole or not; free() the list. */
int checkpoint_folders(const char *dir, struct checkpoint_folder **ret, size_t *ret_n, struct error *e);
/* The newest step folder in dir that fits says 0 for, its path in *ret (free() it). 1: there is none; *ret_n are there, and why is what fits said last. */
typedef int (*checkpoint_fits_fn)(const char *folder, const struct checkpoint_folder *c, struct error *e);
int checkpoint_folder_newest(const char *dir, checkpoint_fits_fn fits, char **ret, size_t *ret_n, struct error *why, struct error *e);
