/* SPDX-License-Identifier: Apache-2.0 */
/* One tensor of a shard: names of its type, its size, whether it can be stored. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "format/shard.h"

static const struct {
        enum dtype type;
        const char *text;
} dtypes[] = {
#ifdef FP8_FP64
        { DT_F32, "F64" }, /* also what a parsed F64 becomes: first in the list */
#else
        { DT_F32, "F32" },
#endif
        { DT_F64, "F64" },      { DT_BF16, "BF16" }, { DT_F16, "F16" }, { DT_E4M3, "F8_E4M3" },
        { DT_E5M2, "F8_E5M2" }, { DT_I32, "I32" },   { DT_I64, "I64" }, { DT_U8, "U8" },
};

const char *shard_dtype_text(enum dtype t) {
        for (size_t i = 0; i < ARRAY_SIZE(dtypes); i++)
                if (dtypes[i].type == t)
                        return dtypes[i].text;
        return NULL;
}

int shard_dtype_parse(const char *text, enum dtype *ret) {
        for (size_t i = 0; i < ARRAY_SIZE(dtypes); i++)
                if (strcmp(dtypes[i].text, text) == 0) {
                        *ret = dtypes[i].type;
                        return 0;
                }
        return -EINVAL;
}

int shard_tensor_bytes(const struct shard_tensor *t, size_t *ret) {
        size_t n;

        if (t->rows < 0 || t->cols < 0 || __builtin_mul_overflow((uint64_t)t->rows, (uint64_t)t->cols, &n) || __builtin_mul_overflow(n, dtype_size(t->dtype), &n) ||
            n > INT64_MAX)
                return -EOVERFLOW;
        *ret = n;
        return 0;
}

const char *shard_slice_text(const struct shard_tensor *t, char buf[128]) {
        /* also for slices that are refused because their ends overflow */
        int64_t row1 = (int64_t)((uint64_t)t->row0 + (uint64_t)t->rows), col1 = (int64_t)((uint64_t)t->col0 + (uint64_t)t->cols);

        (void)snprintf(buf, 128, "rows [%" PRId64 ",%" PRId64 ") of %" PRId64 ", columns [%" PRId64 ",%" PRId64 ") of %" PRId64, t->row0, row1, t->global_rows, t->col0,
                       col1, t->global_cols);
        return buf;
}

int shard_tensor_check(const struct shard_tensor *t, struct error *e) {
        char slice[128];
        size_t len = strnlen(t->name, SHARD_NAME_MAX), bytes;

        if (len == 0 || len == SHARD_NAME_MAX || strcmp(t->name, "__metadata__") == 0)
                return error_set(e, -EINVAL, "shard: found a tensor name of %zu characters, expected 1 to %d", len, SHARD_NAME_MAX - 1);
        for (size_t i = 0; i < len; i++)
                if ((unsigned char)t->name[i] < 0x20 || (unsigned char)t->name[i] >= 0x7f || t->name[i] == '"' || t->name[i] == '\\')
                        return error_set(e, -EINVAL, "shard: a tensor's name has a character that is not allowed (0x%02x)", (unsigned char)t->name[i]);
        if (!shard_dtype_text(t->dtype))
                return error_set(e, -EINVAL, "shard: %s: no stored form for type %s", t->name, dtype_name(t->dtype));
        if (t->row0 < 0 || t->col0 < 0 || t->rows < 0 || t->cols < 0 || t->rows > t->global_rows - t->row0 || t->cols > t->global_cols - t->col0 ||
            shard_tensor_bytes(t, &bytes) < 0)
                return error_set(e, -EINVAL, "shard: %s: impossible slice %s", t->name, shard_slice_text(t, slice));
        return 0;
}
