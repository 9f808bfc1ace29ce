/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "kernels/cuda/hopper.h"
#include "kernels/cuda/launch.h"

static int64_t pad4(int64_t n) {
        return (n + 3) / 4 * 4;
}

static int64_t blocks(int64_t n) {
        return (n + 127) / 128;
}

int cuda_quantize(const void *x, enum dtype xt, const struct quant_spec *q, struct qtensor *out, struct dev_stream *s) {
        const bool square = q->scaling == Q_128X128;
        const struct quantize_launch l = {
                .x = x, .f32 = xt == DT_F32, .e5m2 = q->dtype == DT_E5M2, .blocks = square, .pow2 = q->pow2,
                .rows = out->rows, .cols = out->cols,
                .row = q->want_row ? out->row : NULL, .col = q->want_col ? out->col : NULL,
                .row_scale = out->row_scale, .col_scale = out->col_scale,
                .row_ld = square ? pad4(blocks(out->cols)) : pad4(out->rows), .col_ld = square ? pad4(blocks(out->rows)) : pad4(out->cols),
                .amax = q->amax, .bad = (unsigned long long *)q->bad, .index = q->index,
        };

        if ((xt != DT_BF16 && xt != DT_F32) || (q->dtype != DT_E4M3 && q->dtype != DT_E5M2) || out->rows < 0 || out->cols < 0)
                return -EINVAL;
        if (q->scaling != Q_1X128 && !square)
                return -EOPNOTSUPP;
        if ((q->want_row && (!out->row || !out->row_scale)) || (q->want_col && (!out->col || !out->col_scale)))
                return -EINVAL;
        out->scaling = q->scaling;
        out->dtype = q->dtype;
        return cuda_launch_quantize(&l, s->stream);
}
