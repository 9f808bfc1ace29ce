/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "kernels/cuda/hopper.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

static int64_t pad4(int64_t n) {
        return (n + 3) / 4 * 4;
}

static int64_t blocks(int64_t n) {
        return (n + 127) / 128;
}

static bool is_fp8(enum dtype t) {
        return t == DT_E4M3 || t == DT_E5M2;
}

/* One scale for the whole matrix takes a pass of its own for the maximum. */
static int whole(const void *x, enum dtype xt, const struct quant_spec *q, struct quantize_launch *l, struct dev_stream *s) {
        uint32_t *amax = cuda_scratch(s, CUDA_SLOT_AMAX, sizeof *amax);

        if (q->scaling == Q_DELAYED && !q->scale)
                return -EINVAL;
        if (!amax)
                return -ENOMEM;
        l->whole = amax;
        l->given = q->scaling == Q_DELAYED ? q->scale : NULL;
        return cuda_launch_amax(x, xt, l->rows * l->cols, amax, s->multiprocessors, s->stream);
}

int cuda_quantize(const void *x, enum dtype xt, const struct quant_spec *q, struct qtensor *out, struct dev_stream *s) {
        const bool rows = q->scaling == Q_1X128;
        struct quantize_launch l = {
                .x = x, .f32 = xt == DT_F32, .e5m2 = q->dtype == DT_E5M2, .blocks = !rows, .pow2 = q->pow2,
                .rows = out->rows, .cols = out->cols,
                .row = q->want_row ? out->row : NULL, .col = q->want_col ? out->col : NULL,
                .row_scale = out->row_scale, .col_scale = out->col_scale,
                .row_ld = rows ? pad4(out->rows) : pad4(blocks(out->cols)), .col_ld = rows ? pad4(out->cols) : pad4(blocks(out->rows)),
                .amax = q->amax, .bad = (unsigned long long *)q->bad, .index = q->index,
        };
        int r;

        if ((xt != DT_BF16 && xt != DT_F32) || out->rows < 0 || out->cols < 0)
                return -EINVAL;
        if (q->scaling == Q_NONE) {
                out->scaling = Q_NONE;
                out->dtype = xt;
                out->row = (void *)(uintptr_t)x;
                return 0;
        }
        if (!is_fp8(q->dtype) || (q->want_row && (!out->row || !out->row_scale)) || (q->want_col && (!out->col || !out->col_scale)))
                return -EINVAL;
        if (q->scaling == Q_TENSOR || q->scaling == Q_DELAYED) {
                r = whole(x, xt, q, &l, s);
                if (r < 0)
                        return r;
        }
        out->scaling = q->scaling;
        out->dtype = q->dtype;
        return cuda_launch_quantize(&l, s->stream);
}

int cuda_requantize_col(struct qtensor *t, const struct quant_spec *q, struct dev_stream *s) {
        const struct quantize_launch l = {
                .x = t->row, .f32 = true, .e5m2 = q->dtype == DT_E5M2, .pow2 = q->pow2, .rows = t->rows, .cols = t->cols,
                .col = t->col, .col_scale = t->col_scale, .col_ld = pad4(t->cols), .x_scale = t->row_scale, .x_scale_ld = pad4(t->rows),
                .amax = q->amax, .bad = (unsigned long long *)q->bad, .index = q->index,
        };
        int64_t rows = 1, cols = 1, row_ld = 1, col_ld = 1;
        int r;

        if (t->scaling == Q_NONE)
                return 0;
        if (q->scaling != t->scaling || q->dtype != t->dtype || !is_fp8(q->dtype) || !t->row || !t->row_scale || !t->col || !t->col_scale)
                return -EINVAL;
        if (t->scaling == Q_1X128)
                return cuda_launch_quantize(&l, s->stream);
        if (t->scaling == Q_128X128) {
                rows = blocks(t->rows);
                cols = blocks(t->cols);
                row_ld = pad4(cols);
                col_ld = pad4(rows);
        }
        r = cuda_launch_transpose(t->row, t->col, t->rows, t->cols, s->stream);
        return r < 0 ? r : cuda_launch_transpose_scales(t->row_scale, t->col_scale, rows, cols, row_ld, col_ld, s->stream);
}

int cuda_dequantize(const struct qtensor *t, void *x, enum dtype xt, struct dev_stream *s) {
        const int how = t->scaling == Q_1X128 ? 1 : t->scaling == Q_128X128 ? 2 : 0;

        if ((xt != DT_BF16 && xt != DT_F32) || !t->row)
                return -EINVAL;
        if (t->scaling == Q_NONE)
                return cuda_launch_cast(x, xt, t->row, t->dtype, t->rows * t->cols, s->stream);
        return cuda_launch_dequantize(t->row, t->dtype, t->row_scale, how, how == 1 ? pad4(t->rows) : pad4(blocks(t->cols)), t->rows, t->cols, x, xt, s->stream);
}
