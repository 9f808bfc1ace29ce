/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Shard images (format/shard.h) out of a device's memory and back into it. */
#include "base/hash.h"
#include "format/shard.h"
#include "kernels/dev.h"

struct shard_layout; /* header text and offsets for a fixed list of tensors; made once */

/* state: the small state's maximal length as JSON text; it is stored in __metadata__ under "state", padded, so that the size never changes. */
int shard_layout_new(const struct shard_tensor *t, size_t n, size_t state_max, struct shard_layout **ret, struct error *e);
struct shard_layout *shard_layout_free(struct shard_layout *l);
size_t shard_layout_bytes(const struct shard_layout *l);
/*
 * In the calls below ops may be NULL: the data is host memory.
 * Serialises the tensors' present contents and the state into image[shard_layout_bytes]. Blocks (device copies on s).
 * state_json: valid UTF-8 of at most state_max bytes, without raw control characters (-EINVAL, -ENOSPC).
 */
int shard_write(const struct shard_layout *l, const struct dev_ops *ops, struct dev_stream *s, const char *state_json, void *image, struct error *e);
/* The same, with the image's digest, which costs little while the bytes are at hand. */
int shard_write_digest(const struct shard_layout *l, const struct dev_ops *ops, struct dev_stream *s, const char *state_json, void *image, struct digest *ret, struct error *e);
/* Copies an image's tensors back into the list it was laid out for. Everything in the image is checked (names, shapes, slices, dtypes, sizes). */
int shard_read(const struct shard_layout *l, const struct dev_ops *ops, struct dev_stream *s, const void *image, size_t len, char **ret_state_json, struct error *e);
