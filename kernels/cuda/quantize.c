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

/* What the fused quantisers take: 1x128, E4M3. */
static bool fused_launch(const struct quant_spec *q, const struct qtensor *t, const void *x, struct quantize_launch *l) {
        if (q->scaling != Q_1X128 || q->dtype != DT_E4M3 || (q->want_row && (!t->row || !t->row_scale)) || (q->want_col && (!t->col || !t->col_scale)))
                return false;
        *l = (struct quantize_launch){
                .x = x, .pow2 = q->pow2, .rows = t->rows, .cols = t->cols, .row = q->want_row ? t->row : NULL, .col = q->want_col ? t->col : NULL,
                .row_scale = t->row_scale, .col_scale = t->col_scale, .row_ld = pad4(t->rows), .col_ld = pad4(t->cols),
                .amax = q->amax, .bad = (unsigned long long *)q->bad, .index = q->index,
        };
        return true;
}

static void quantised_as(struct qtensor *t, const struct quant_spec *q) {
        t->scaling = q->scaling;
        t->dtype = q->dtype;
}

int cuda_norm_quant(const void *x, const float *rstd, const float *w, const struct quant_spec *q, struct qtensor *out, struct dev_stream *s) {
        struct quantize_launch l;

        if (!fused_launch(q, out, x, &l))
                return -EOPNOTSUPP;
        quantised_as(out, q);
        return cuda_launch_norm_quant(&l, rstd, w, s->stream);
}

static bool same_shape(const struct qtensor *a, const struct qtensor *b, const struct qtensor *c) {
        return a->rows == b->rows && a->rows == c->rows && a->cols == b->cols && a->cols == c->cols;
}

int cuda_swiglu_cache_fwd(const void *g, const void *u, enum dtype act, const struct quant_spec *sg, struct qtensor *gq, const struct quant_spec *su, struct qtensor *uq,
                          const struct quant_spec *sa, struct qtensor *out, struct dev_stream *s) {
        struct quantize_launch lg, lu, la;

        if (act != DT_BF16 || !fused_launch(sg, gq, g, &lg) || !fused_launch(su, uq, u, &lu) || !fused_launch(sa, out, NULL, &la))
                return -EOPNOTSUPP;
        if (!same_shape(gq, uq, out))
                return -EINVAL;
        quantised_as(gq, sg);
        quantised_as(uq, su);
        quantised_as(out, sa);
        return cuda_launch_swiglu_cache(&lg, &lu, &la, s->stream);
}

int cuda_swiglu_cached_bwd(const struct qtensor *gq, const struct qtensor *uq, const void *da, enum dtype act, const struct quant_spec *sa, struct qtensor *aq, const struct quant_spec *sg,
                           struct qtensor *dg, const struct quant_spec *su, struct qtensor *du, struct dev_stream *s) {
        struct quantize_launch la, lg, lu;

        if (act != DT_BF16 || gq->scaling != Q_1X128 || uq->scaling != Q_1X128 || gq->dtype != DT_E4M3 || uq->dtype != DT_E4M3 || !fused_launch(sa, aq, da, &la) ||
            !fused_launch(sg, dg, gq->row, &lg) || !fused_launch(su, du, uq->row, &lu))
                return -EOPNOTSUPP;
        if (!same_shape(aq, dg, du) || !same_shape(aq, gq, uq))
                return -EINVAL;
        lg.x_scale = gq->row_scale;
        lu.x_scale = uq->row_scale;
        lg.x_scale_ld = lu.x_scale_ld = pad4(gq->rows);
        quantised_as(aq, sa);
        quantised_as(dg, sg);
        quantised_as(du, su);
        return cuda_launch_swiglu_cached_bwd(&la, &lg, &lu, s->stream);
}

int cuda_rope_quant_bwd(const void *const *x, const struct doc_bounds *docs, double theta, int64_t D, enum dtype act, const struct quant_spec *const *q, struct qtensor *const *out,
                        struct dev_stream *s) {
        struct quantize_launch l[3];
        const struct quantize_launch *const all[3] = { &l[0], &l[1], &l[2] };
        int r;

        if (act != DT_BF16 || D <= 0)
                return -EOPNOTSUPP;
        for (int i = 0; i < 3; i++)
                if (out[i]->rows != docs->tokens || !fused_launch(q[i], out[i], x[i], &l[i]))
                        return -EOPNOTSUPP;
        r = cuda_launch_rope_quant_bwd(all, docs->pos, theta, D, s->multiprocessors, s->stream);
        for (int i = 0; r == 0 && i < 3; i++)
                quantised_as(out[i], q[i]);
        return r;
}

int cuda_quantize_many(int n, const void *const *x, enum dtype xt, const struct quant_spec *const *q, struct qtensor *const *out, struct dev_stream *s) {
        struct quantize_launch l[QUANTIZE_MANY];
        int r;

        if (n < 1 || n > QUANTIZE_MANY || xt != DT_BF16)
                return -EOPNOTSUPP;
        for (int i = 0; i < n; i++) {
                if (q[i]->scaling != Q_128X128 || q[i]->dtype != DT_E4M3 || !q[i]->want_row || !q[i]->want_col || !out[i]->row || !out[i]->row_scale || !out[i]->col || !out[i]->col_scale)
                        return -EOPNOTSUPP;
                l[i] = (struct quantize_launch){
                        .x = x[i], .blocks = true, .pow2 = q[i]->pow2, .rows = out[i]->rows, .cols = out[i]->cols, .row = out[i]->row, .col = out[i]->col, .row_scale = out[i]->row_scale,
                        .col_scale = out[i]->col_scale, .row_ld = pad4(blocks(out[i]->cols)), .col_ld = pad4(blocks(out[i]->rows)),
                        .amax = q[i]->amax, .bad = (unsigned long long *)q[i]->bad, .index = q[i]->index,
                };
        }
        r = cuda_launch_quantize_many(n, l, s->stream);
        for (int i = 0; r == 0 && i < n; i++)
                quantised_as(out[i], q[i]);
        return r;
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

/* Where the scale of an element of the row form lies, as the launches take it. */
static int scales_of(const struct qtensor *t, int64_t *ret_ld) {
        *ret_ld = t->scaling == Q_1X128 ? pad4(t->rows) : pad4(blocks(t->cols));
        return t->scaling == Q_1X128 ? 1 : t->scaling == Q_128X128 ? 2 : 0;
}

int cuda_dequantize(const struct qtensor *t, void *x, enum dtype xt, struct dev_stream *s) {
        int64_t ld;
        const int how = scales_of(t, &ld);

        if ((xt != DT_BF16 && xt != DT_F32) || !t->row)
                return -EINVAL;
        if (t->scaling == Q_NONE)
                return cuda_launch_cast(x, xt, t->row, t->dtype, t->rows * t->cols, s->stream);
        return cuda_launch_dequantize(t->row, t->dtype, t->row_scale, how, ld, t->rows, t->cols, x, xt, s->stream);
}

_Static_assert(sizeof(struct quant_stats) == 4 * sizeof(unsigned long long), "the kernel adds to four counters");

int cuda_quant_stats(const void *x, enum dtype xt, const struct qtensor *t, struct quant_stats *stats, struct dev_stream *s) {
        int64_t ld;
        const int how = scales_of(t, &ld);

        if ((xt != DT_BF16 && xt != DT_F32) || !is_fp8(t->dtype) || t->scaling == Q_NONE || !t->row || !t->row_scale)
                return -EINVAL;
        return cuda_launch_quant_stats(x, xt, t->row, t->dtype == DT_E5M2, t->row_scale, how, ld, t->rows, t->cols, (unsigned long long *)stats, s->stream);
}
