/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A shard image: the bytes of one safetensors file (u64 little-endian header length, JSON header padded with spaces, data).  Every tensor stands under its global
 * name; its slice of the global tensor is in the header's __metadata__ ("slice:<key>" = "[[r0,r1],[c0,c1]] of [R,C]").  The same image is kept in
 * replica memory, written to disk and sent to peers, with one digest.
 *
 * Keys: "<global name>" master weights (F32), "exp_avg:<name>", "exp_avg_sq:<name>" moments (F32 or BF16), "amax_history:<name>", "scale:<name>" for delayed scaling.
 */
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "kernels/dev.h"

#define SHARD_NAME_MAX 256
#define SHARD_HEADER_MAX (UINT64_C(100) << 20) /* as the safetensors format bounds it */
#define SHARD_TENSORS_MAX (1u << 20)

struct shard_tensor {
        char name[SHARD_NAME_MAX];
        enum dtype dtype;             /* DT_F32, DT_BF16, DT_F64 (FP64 build), DT_U8 ... */
        int64_t global_rows, global_cols; /* a vector is [1, n] and written with one dimension */
        int64_t row0, rows, col0, cols;   /* slice */
        void *data;                   /* device, contiguous [rows, cols]; rows or cols may be 0 */
};

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
/* Copies an image's tensors back into the list it was laid out for. Everything in the image is checked (names, shapes, slices, dtypes, sizes). */
int shard_read(const struct shard_layout *l, const struct dev_ops *ops, struct dev_stream *s, const void *image, size_t len, char **ret_state_json, struct error *e);

/* Parsed view of any image or file from outside; bounded and checked (sizes, overlaps, overflow, dtype, depth). */
struct shard_view;
int shard_view_open(const void *image, size_t len, struct shard_view **ret, struct error *e);
struct shard_view *shard_view_free(struct shard_view *v);
size_t shard_view_count(const struct shard_view *v);
/*
 * Sorted by name. data points into the image (of any alignment). A tensor without a slice in the metadata (a file of another program) is whole; one
 * with more than two dimensions is seen as [first, product of the others].
 */
const struct shard_tensor *shard_view_tensor(const struct shard_view *v, size_t i);
const struct shard_tensor *shard_view_find(const struct shard_view *v, const char *name); /* NULL: not in it */
const char *shard_view_state(const struct shard_view *v); /* "" when it has none */

/* rows * cols * size of an element, or -EOVERFLOW when that is no size. */
int shard_tensor_bytes(const struct shard_tensor *t, size_t *ret);
/* "rows [0,4) of 8, columns [0,2) of 2", for messages. */
const char *shard_slice_text(const struct shard_tensor *t, char buf[128]);
