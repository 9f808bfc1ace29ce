/* SPDX-License-Identifier: Apache-2.0 */
/* What all backends share: the size of quantised tensors, and finding a backend (dev_stubs.c: its missing slots). */
#include <string.h>

#include "kernels/dev.h"

static size_t pad4(int64_t n) {
        return ((size_t)n + 3) & ~(size_t)3;
}

static size_t blocks(int64_t n) {
        return ((size_t)n + 127) / 128;
}

void dev_qtensor_bytes(const struct quant_spec *s, int64_t rows, int64_t cols, size_t ret[4]) {
        const size_t bytes = (size_t)rows * (size_t)cols * dtype_size(s->dtype);
        size_t row_scales = 1, col_scales = 1;

        memset(ret, 0, 4 * sizeof *ret);
        if (s->scaling == Q_NONE)
                return;
        if (s->scaling == Q_1X128) {
                row_scales = blocks(cols) * pad4(rows);
                col_scales = blocks(rows) * pad4(cols);
        } else if (s->scaling == Q_128X128) {
                row_scales = blocks(rows) * pad4((int64_t)blocks(cols));
                col_scales = blocks(cols) * pad4((int64_t)blocks(rows));
        }
        if (s->want_row) {
                ret[0] = bytes;
                ret[1] = row_scales * sizeof(dev_real);
        }
        if (s->want_col) {
                ret[2] = bytes;
                ret[3] = col_scales * sizeof(dev_real);
        }
}

const struct dev_ops *dev_ops_find(const char *kind) {
        return kind && strcmp(kind, dev_ops_cpu.kind) == 0 ? &dev_ops_cpu : NULL;
}
