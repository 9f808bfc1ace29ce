/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products on OpenBLAS.  FP8 operands are widened to float exactly.  With block scales each 128-wide slice of the contraction is one sgemm whose result is then promoted:
 * acc += (scale_a * scale_b) * partial (DeepSeek-V3, arXiv 2412.19437 section 3.3.2); with one scale a tensor the product is accumulated plainly and scaled once at the end.
 * Rows are taken CHUNK at a time so that operand, partial and accumulator stay in the second-level cache.
 */
#include <limits.h>

#include "kernels/cpu/blas.h"
#include "kernels/cpu/cpu.h"

#define CHUNK 256

/* c[m,n] = a[m,k] b (+ c), where b is [n,k] (transposed) or [k,n] */
struct product {
        int64_t m, n, k;
        const void *a; /* [m, k], the contraction contiguous */
        const dev_real *a_scale;
        enum dtype at;
        const void *b;
        const dev_real *b_scale;
        enum dtype bt;
        bool b_transposed; /* b is [n, k] */
        /* a_scale[kb * a_ld + m]; b_scale[kb * b_ld + n], or where b has 128x128 blocks b_scale[nb * b_ld + kb] */
        int64_t a_ld, b_ld;
        bool b_blocks;
};

static void gemm(const struct product *p, int64_t m, const dev_real *a, const dev_real *b, int64_t k0, int64_t k, dev_real beta, dev_real *c) {
        const dev_real *bk = p->b_transposed ? b + k0 : b + k0 * p->n;

        blas_gemm(CblasNoTrans, p->b_transposed ? CblasTrans : CblasNoTrans, m, p->n, k, 1, a + k0, p->k, bk, p->b_transposed ? p->k : p->n, beta, c, p->n);
}

/* acc (+)= (sa[i] * sb[j]) * part */
FP8_CLONES static void promote(dev_real *restrict acc, const dev_real *restrict part, const dev_real *restrict sa, const dev_real *restrict sb, int64_t m, int64_t n, bool first) {
        for (int64_t i = 0; i < m; i++) {
                const dev_real f = sa[i];

                if (first)
                        for (int64_t j = 0; j < n; j++)
                                acc[i * n + j] = (f * sb[j]) * part[i * n + j];
                else
                        for (int64_t j = 0; j < n; j++)
                                acc[i * n + j] += (f * sb[j]) * part[i * n + j];
        }
}

FP8_CLONES static void scale_by(dev_real *c, dev_real f, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                c[i] *= f;
}

FP8_CLONES static void accumulate(dev_real *restrict c, const dev_real *restrict a, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                c[i] += a[i];
}

/* b's scale of each output column in slice kb */
static void slice_scales(const struct product *p, int64_t kb, dev_real *sb) {
        if (!p->b_blocks) {
                memcpy(sb, p->b_scale + kb * p->b_ld, (size_t)p->n * sizeof *sb);
                return;
        }
        for (int64_t j = 0; j < p->n; j++)
                sb[j] = p->b_scale[(j / CPU_BLOCK) * p->b_ld + kb];
}

/* One chunk of rows of the whole product into acc. */
static int product_rows(const struct product *p, enum qscaling scaling, int64_t m0, int64_t m, const dev_real *b, dev_real *acc, struct dev_stream *s) {
        const dev_real *a = cpu_widened(s, CPU_GEMM_A, p->a, p->at, m0 * p->k, m * p->k);
        dev_real *part, *sb;

        if (!a)
                return -ENOMEM;
        if (scaling != Q_1X128) {
                gemm(p, m, a, b, 0, p->k, 0, acc);
                if (scaling != Q_NONE)
                        scale_by(acc, p->a_scale[0] * p->b_scale[0], m * p->n);
                return 0;
        }
        part = cpu_reals(s, CPU_GEMM_P, m * p->n + p->n);
        if (!part)
                return -ENOMEM;
        sb = part + m * p->n;
        for (int64_t kb = 0; kb < cpu_blocks(p->k); kb++) {
                gemm(p, m, a, b, kb * CPU_BLOCK, cpu_min(CPU_BLOCK, p->k - kb * CPU_BLOCK), 0, part);
                slice_scales(p, kb, sb);
                promote(acc, part, p->a_scale + kb * p->a_ld + m0, sb, m, p->n, kb == 0);
        }
        return 0;
}

/* y (of yt) = product, or with `add` += it (F32) */
static int product_run(const struct product *p, enum qscaling scaling, void *y, enum dtype yt, bool add, struct dev_stream *s) {
        const bool direct = yt == DT_F32 && !add;
        const dev_real *b;

        if (p->m == 0 || p->n == 0)
                return 0;
        if (p->m > INT_MAX || p->n > INT_MAX || p->k > INT_MAX)
                return -EINVAL;
        b = cpu_widened(s, CPU_GEMM_B, p->b, p->bt, 0, p->n * p->k);
        if (!b)
                return -ENOMEM;
        for (int64_t m0 = 0; m0 < p->m; m0 += CHUNK) {
                const int64_t m = cpu_min(CHUNK, p->m - m0), n = m * p->n;
                dev_real *acc = direct ? (dev_real *)y + m0 * p->n : cpu_reals(s, CPU_GEMM_ACC, n);
                int r;

                if (!acc)
                        return -ENOMEM;
                if (p->k == 0)
                        memset(acc, 0, (size_t)n * sizeof *acc);
                r = p->k == 0 ? 0 : product_rows(p, scaling, m0, m, b, acc, s);
                if (r < 0)
                        return r;
                if (add)
                        accumulate((dev_real *)y + m0 * p->n, acc, n);
                else if (!direct)
                        cpu_store(y, yt, m0 * p->n, acc, n);
        }
        return 0;
}

static bool is_fp8(const struct qtensor *t) {
        return t->dtype == DT_E4M3 || t->dtype == DT_E5M2;
}

static bool one_scale(const struct qtensor *t) {
        return (t->scaling == Q_TENSOR || t->scaling == Q_DELAYED) && is_fp8(t);
}

/* Which operands go together; ret_scaling: Q_NONE, Q_TENSOR or Q_1X128. */
static int pair(const struct qtensor *a, const struct qtensor *b, enum qscaling b_block, enum qscaling *ret) {
        if (a->scaling == Q_NONE && b->scaling == Q_NONE) {
                if (!cpu_is_act(a->dtype) || !cpu_is_act(b->dtype))
                        return -EINVAL;
                *ret = Q_NONE;
                return 0;
        }
        if (CPU_FP64)
                return -EOPNOTSUPP;
        if (one_scale(a) && one_scale(b))
                *ret = Q_TENSOR;
        else if (a->scaling == Q_1X128 && b->scaling == b_block && is_fp8(a) && is_fp8(b))
                *ret = Q_1X128;
        else
                return -EINVAL;
        return 0;
}

int cpu_gemm_fprop(const struct qtensor *x, const struct qtensor *w, void *y, enum dtype yt, struct dev_stream *s) {
        const struct product p = {
                .m = x->rows, .n = w->rows, .k = x->cols,
                .a = x->row, .a_scale = x->row_scale, .at = x->dtype, .a_ld = cpu_pad4(x->rows),
                .b = w->row, .b_scale = w->row_scale, .bt = w->dtype, .b_ld = cpu_pad4(cpu_blocks(w->cols)), .b_blocks = true, .b_transposed = true,
        };
        enum qscaling scaling;
        int r = pair(x, w, Q_128X128, &scaling);

        if (r < 0)
                return r;
        if (x->cols != w->cols || !cpu_is_act(yt) || !x->row || !w->row)
                return -EINVAL;
        return product_run(&p, scaling, y, yt, false, s);
}

int cpu_gemm_dgrad(const struct qtensor *dy, const struct qtensor *w, dev_real *sum, int beta, void *dx, enum dtype xt, struct dev_stream *s) {
        struct product p = {
                .m = dy->rows, .n = w->cols, .k = dy->cols,
                .a = dy->row, .a_scale = dy->row_scale, .at = dy->dtype, .a_ld = cpu_pad4(dy->rows),
                .b = w->row, .b_scale = w->row_scale, .bt = w->dtype, .b_ld = cpu_pad4(cpu_blocks(w->cols)),
        };
        dev_real *grid = NULL;
        enum qscaling scaling;
        int r = pair(dy, w, Q_128X128, &scaling);

        if (r < 0)
                return r;
        if (dy->cols != w->rows || !dy->row || (!w->row && !w->col) || (beta != 0 && beta != 1) || (!sum && (beta != 0 || !dx)) ||
            (dx && !cpu_is_act(xt)))
                return -EINVAL;
        if (scaling != Q_NONE && w->col) {
                p.b = w->col;
                p.b_scale = w->col_scale;
                p.b_transposed = true;
                p.b_ld = cpu_pad4(cpu_blocks(w->rows));
                p.b_blocks = true;
        } else if (scaling == Q_1X128) {
                /* row_scale[nb * ld + kb] is already slice-major for a contraction over rows: spread each block's scale over its columns. */
                grid = cpu_reals(s, CPU_TILE, cpu_blocks(w->rows) * w->cols);
                if (!grid)
                        return -ENOMEM;
                for (int64_t nb = 0; nb < cpu_blocks(w->rows); nb++)
                        for (int64_t j = 0; j < w->cols; j++)
                                grid[nb * w->cols + j] = w->row_scale[nb * p.b_ld + j / CPU_BLOCK];
                p.b_scale = grid;
                p.b_ld = w->cols;
        }
        if (dx && beta == 0)
                return product_run(&p, scaling, dx, xt, false, s);
        r = product_run(&p, scaling, sum, DT_F32, beta == 1, s);
        if (r == 0 && dx)
                cpu_store(dx, xt, 0, sum, p.m * p.n);
        return r;
}

/* BF16 and F32 operands come as [T, n] and [T, k]: dw += dy^T x, which BLAS takes transposed. */
static int wgrad_plain(const struct qtensor *dy, const struct qtensor *x, dev_real *dw, struct dev_stream *s) {
        const int64_t n = dy->cols, k = x->cols, t = dy->rows;
        const dev_real *a = cpu_widened(s, CPU_GEMM_A, dy->row, dy->dtype, 0, dy->rows * dy->cols);
        const dev_real *b = cpu_widened(s, CPU_GEMM_B, x->row, x->dtype, 0, x->rows * x->cols);

        if (!a || !b)
                return -ENOMEM;
        if (dy->rows == 0 || dy->cols == 0 || x->cols == 0)
                return 0;
        blas_gemm(CblasTrans, CblasNoTrans, n, k, t, 1, a, n, b, k, 1, dw, k);
        return 0;
}

int cpu_gemm_wgrad(const struct qtensor *dy, const struct qtensor *x, dev_real *dw, int beta, struct dev_stream *s) {
        const struct product p = {
                .m = dy->cols, .n = x->cols, .k = dy->rows,
                .a = dy->col, .a_scale = dy->col_scale, .at = dy->dtype, .a_ld = cpu_pad4(dy->cols),
                .b = x->col, .b_scale = x->col_scale, .bt = x->dtype, .b_ld = cpu_pad4(x->cols), .b_transposed = true,
        };
        enum qscaling scaling;
        int r = pair(dy, x, Q_1X128, &scaling);

        if (r < 0)
                return r;
        if (dy->rows != x->rows || (beta != 0 && beta != 1))
                return -EINVAL;
        if (scaling == Q_NONE ? !dy->row || !x->row || dy->cols > INT_MAX || x->cols > INT_MAX || dy->rows > INT_MAX : !dy->col || !x->col)
                return -EINVAL;
        if (beta == 0) /* the sum begins with zero either way */
                memset(dw, 0, (size_t)(dy->cols * x->cols) * sizeof *dw);
        if (scaling == Q_NONE)
                return wgrad_plain(dy, x, dw, s);
        return product_run(&p, scaling, dw, DT_F32, true, s);
}
