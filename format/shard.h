/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A shard image: the bytes of one safetensors file (u64 little-endian header length, JSON header padded with spaces, data).  Every tensor stands under its global
 * name; its slice of the global tensor is in the header's __metadata__ ("slice:<key>" = "[[r0,r1],[c0,c1]] of [R,C]").  The same image is kept in
 * replica memory, written to disk and sent to peers, with one digest.
 *
 * Keys: "<global name>" master weights (F32), "exp_avg:<name>", "exp_avg_sq:<name>" moments (F32 or BF16), "amax_history:<name>", "scale:<name>" for delayed scaling.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/error.h"

#define SHARD_NAME_MAX 256
#define SHARD_HEADER_MAX (UINT64_C(100) << 20) /* as the safetensors format bounds it */
#define SHARD_TENSORS_MAX (1u << 20)

struct shard_tensor {
        char name[SHARD_NAME_MAX];
        enum dtype dtype;             /* DT_F32, DT_BF16, DT_F64 (FP64 build), DT_U8 ... */
        int64_t global_rows, global_cols; /* a vector is [1, n] and written with one dimension */
        int64_t row0, rows, col0, cols;   /* slice */
        void *data;                   /* contiguous [rows, cols]; rows or cols may be 0 */
};

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
/* A name, type and slice that can be stored. */
int shard_tensor_check(const struct shard_tensor *t, struct error *e);
/* Names of the safetensors format; NULL: it has none for this type. A "real" is F32, in the FP64 build F64. */
const char *shard_dtype_text(enum dtype t);
/* -EINVAL: a name that we have no type for. */
int shard_dtype_parse(const char *text, enum dtype *ret);
