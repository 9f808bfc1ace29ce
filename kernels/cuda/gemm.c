/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The three products: recipe `block` by our kernels (which part of which operand, tensor maps for the copy engine, the tile), the others by cuBLASLt.
 */
#include <cuda.h>
#include <cudaTypedefs.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>

#include "kernels/cuda/blas.h"
#include "kernels/cuda/hopper.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/plan.h"

/* The driver's function, found through the run-time library: the backend does not link with libcuda. */
static PFN_cuTensorMapEncodeTiled_v12000 encode;
static pthread_once_t encode_once = PTHREAD_ONCE_INIT;

static void find_encode(void) {
        enum cudaDriverEntryPointQueryResult found;
        void *p = NULL;

        if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &p, 12000, cudaEnableDefault, &found) == cudaSuccess && found == cudaDriverEntryPointSuccess)
                encode = (PFN_cuTensorMapEncodeTiled_v12000)p;
}

/* [rows, cols] of `type` at p, ld elements from row to row; boxes of box_cols by box_rows. What lies outside reads as zero. */
static int map_of(CUtensorMap *ret, CUtensorMapDataType type, const void *p, int64_t rows, int64_t cols, int64_t ld, int box_rows, int box_cols) {
        const bool bytes = type == CU_TENSOR_MAP_DATA_TYPE_UINT8;
        const cuuint64_t dims[2] = { (cuuint64_t)cols, (cuuint64_t)rows }, strides[1] = { (cuuint64_t)ld * (bytes ? 1 : 4) };
        const cuuint32_t box[2] = { (cuuint32_t)box_cols, (cuuint32_t)box_rows }, step[2] = { 1, 1 };

        return encode(ret, type, 2, (void *)p, dims, strides, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, bytes ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS ? 0 : -EINVAL;
}

/* Output of BF16, boxes of 64 columns. */
static int map_of_output(CUtensorMap *ret, void *p, int64_t rows, int64_t cols, int box_rows) {
        const cuuint64_t dims[2] = { (cuuint64_t)cols, (cuuint64_t)rows }, strides[1] = { (cuuint64_t)cols * 2 };
        const cuuint32_t box[2] = { 64, (cuuint32_t)box_rows }, step[2] = { 1, 1 };

        return encode(ret, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, p, dims, strides, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS ? 0 : -EINVAL;
}

/* One operand: [rows, K], K contiguous. */
struct operand {
        const void *p;
        const float *scale;
        int64_t rows;
};

static int64_t pad4(int64_t n) {
        return (n + 3) / 4 * 4;
}

/* Boxes are what one block loads at a time: all of its own operand's tile, half of the operand's that the pair shares. */
static int gemm_maps(struct gemm_launch *l, const struct operand *a, const struct operand *b, int64_t K) {
        const struct gemm_tile_shape *t = &gemm_tile_shapes[l->tile];
        const int m = t->share_a ? t->m / 2 : t->m, n = t->share_a ? t->n : t->n / 2;
        const int64_t slices = (K + 127) / 128;
        int r = map_of(&l->a, CU_TENSOR_MAP_DATA_TYPE_UINT8, a->p, a->rows, K, K, m, 128);

        if (r == 0)
                r = map_of(&l->b, CU_TENSOR_MAP_DATA_TYPE_UINT8, b->p, b->rows, K, K, n, 128);
        if (r == 0)
                r = map_of(&l->a_scale, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, a->scale, slices, a->rows, pad4(a->rows), 1, m);
        if (r == 0 && !l->b_blocks)
                r = map_of(&l->b_scale, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, b->scale, slices, b->rows, pad4(b->rows), 1, n);
        if (r == 0 && l->out == GEMM_BF16)
                r = map_of_output(&l->d_map, l->d, a->rows, b->rows, t->m / t->groups);
        return r;
}

static int product(const struct operand *a, const struct operand *b, bool b_blocks, int64_t K, void *d, enum gemm_out out, struct dev_stream *s) {
        struct gemm_launch l = { .d = d, .out = out, .M = (int)a->rows, .N = (int)b->rows, .K = (int)K, .sms = s->multiprocessors };
        const size_t bytes = (size_t)a->rows * (size_t)b->rows * (out == GEMM_BF16 ? 2 : 4);
        int r;

        if (a->rows > INT_MAX / 2 || b->rows > INT_MAX / 2 || K > INT_MAX / 2 || K % 16 != 0 || b->rows % 16 != 0 || !a->p || !b->p || !a->scale || !b->scale || !d)
                return -EINVAL;
        if (a->rows == 0 || b->rows == 0)
                return 0;
        if (K == 0)
                return out == GEMM_F32_ADD || cudaMemsetAsync(d, 0, bytes, s->stream) == cudaSuccess ? 0 : -EIO;
        (void)pthread_once(&encode_once, find_encode);
        if (!encode)
                return -EOPNOTSUPP;
        l.tile = s->tile >= 0 && s->tile < N_GEMM_TILES ? (enum gemm_tile)s->tile : gemm_plan(1, &a->rows, &b->rows, K, !b_blocks, s->multiprocessors);
        l.staged = !b_blocks && out == GEMM_F32_ADD && gemm_plan_staged(K);
        if (b_blocks) {
                l.b_blocks = b->scale;
                l.b_blocks_ld = pad4((K + 127) / 128);
        }
        r = gemm_maps(&l, a, b, K);
        return r < 0 ? r : cuda_launch_gemm(&l, s->stream);
}

static bool is(const struct qtensor *t, enum qscaling scaling) {
        return t->scaling == scaling && t->dtype == DT_E4M3;
}

static bool is_carrier(enum dtype t) {
        return t == DT_BF16 || t == DT_F32;
}

/* Which operands go together: neither quantised, one scale each, or 1x128 with `b_block`. */
enum pairing { PAIR_PLAIN, PAIR_TENSOR, PAIR_BLOCK, PAIR_NONE };

static enum pairing pair(const struct qtensor *a, const struct qtensor *b, enum qscaling b_block) {
        const bool one_a = a->scaling == Q_TENSOR || a->scaling == Q_DELAYED, one_b = b->scaling == Q_TENSOR || b->scaling == Q_DELAYED;

        if (a->scaling == Q_NONE && b->scaling == Q_NONE && is_carrier(a->dtype) && a->dtype == b->dtype)
                return PAIR_PLAIN;
        if (one_a && one_b)
                return PAIR_TENSOR;
        return is(a, Q_1X128) && is(b, b_block) ? PAIR_BLOCK : PAIR_NONE;
}

/* Rows of both with the contraction contiguous, which is all that FP8 has: d[M,N] (+)= a[M,K] b[N,K]^T; cuBLASLt counts by columns, so its first operand is b. */
static int tensor_product(const struct qtensor *a, bool a_col, const struct qtensor *b, bool b_col, void *d, enum dtype dt, int beta, struct dev_stream *s) {
        const int64_t M = a_col ? a->cols : a->rows, N = b_col ? b->cols : b->rows, K = a_col ? a->rows : a->cols;
        const struct blas_call c = {
                .ta = true, .m = N, .n = M, .k = K, .lda = K, .ldb = K, .ldd = N, .at = b->dtype, .bt = a->dtype, .dt = dt, .a = b_col ? b->col : b->row, .b = a_col ? a->col : a->row,
                .d = d, .a_scale = b_col ? b->col_scale : b->row_scale, .b_scale = a_col ? a->col_scale : a->row_scale, .beta = beta,
        };

        return c.a && c.b && c.a_scale && c.b_scale ? cuda_blas(&c, s) : -EINVAL;
}

int cuda_gemm_fprop(const struct qtensor *x, const struct qtensor *w, void *y, enum dtype yt, struct dev_stream *s) {
        const struct operand a = { x->row, x->row_scale, x->rows }, b = { w->row, w->row_scale, w->rows };
        const struct blas_call plain = {
                .ta = true, .m = w->rows, .n = x->rows, .k = x->cols, .lda = x->cols, .ldb = x->cols, .ldd = w->rows, .at = w->dtype, .bt = x->dtype, .dt = yt, .a = w->row, .b = x->row, .d = y,
        };

        if (x->cols != w->cols || !is_carrier(yt) || !x->row || !w->row)
                return -EINVAL;
        switch (pair(x, w, Q_128X128)) {
        case PAIR_PLAIN:
                return cuda_blas(&plain, s);
        case PAIR_TENSOR:
                return tensor_product(x, false, w, false, y, yt, 0, s);
        case PAIR_BLOCK:
                return product(&a, &b, true, x->cols, y, yt == DT_BF16 ? GEMM_BF16 : GEMM_F32, s);
        case PAIR_NONE:
                break;
        }
        return -EOPNOTSUPP;
}

/* The product alone, into dx or sum. */
static int dgrad_into(const struct qtensor *dy, const struct qtensor *w, void *d, enum dtype dt, int beta, struct dev_stream *s) {
        const struct operand a = { dy->row, dy->row_scale, dy->rows }, b = { w->col, w->col_scale, w->cols };
        const struct blas_call plain = {
                .m = w->cols, .n = dy->rows, .k = dy->cols, .lda = w->cols, .ldb = dy->cols, .ldd = w->cols, .at = w->dtype, .bt = dy->dtype, .dt = dt, .a = w->row, .b = dy->row, .d = d,
                .beta = beta,
        };

        switch (pair(dy, w, Q_128X128)) {
        case PAIR_PLAIN:
                return w->row ? cuda_blas(&plain, s) : -EINVAL;
        case PAIR_TENSOR:
                return tensor_product(dy, false, w, true, d, dt, beta, s);
        case PAIR_BLOCK:
                return product(&a, &b, true, dy->cols, d, beta ? GEMM_F32_ADD : dt == DT_BF16 ? GEMM_BF16 : GEMM_F32, s);
        case PAIR_NONE:
                break;
        }
        return -EOPNOTSUPP;
}

int cuda_gemm_dgrad(const struct qtensor *dy, const struct qtensor *w, dev_real *sum, int beta, void *dx, enum dtype xt, struct dev_stream *s) {
        int r;

        if (dy->cols != w->rows || !dy->row || (beta != 0 && beta != 1) || (!sum && (beta != 0 || !dx)) || (dx && !is_carrier(xt)))
                return -EINVAL;
        if (dx && beta == 0)
                return dgrad_into(dy, w, dx, xt, 0, s);
        r = dgrad_into(dy, w, sum, DT_F32, beta, s);
        return r < 0 || !dx ? r : cuda_launch_cast(dx, xt, sum, DT_F32, dy->rows * w->cols, s->stream);
}

/* Each pair's maps are made as if it stood alone. */
static int sum_maps(struct gemm_launch *l, int n, const struct qtensor *const *dy, const struct qtensor *const *w) {
        struct gemm_launch one = *l;

        for (int i = 0; i < n; i++) {
                const struct operand a = { dy[i]->row, dy[i]->row_scale, dy[i]->rows }, b = { w[i]->col, w[i]->col_scale, w[i]->cols };
                const int64_t K = dy[i]->cols, ld = pad4((K + 127) / 128);
                int r;

                one.b_blocks = b.scale;
                r = gemm_maps(&one, &a, &b, K);
                if (r < 0)
                        return r;
                if (i == 0) {
                        l->a = one.a, l->b = one.b, l->a_scale = one.a_scale, l->d_map = one.d_map;
                        l->b_blocks = b.scale;
                        l->b_blocks_ld = ld;
                        l->K_first = (int)K;
                } else {
                        l->more[i - 1] = (struct gemm_more){ .a = one.a, .b = one.b, .a_scale = one.a_scale, .b_blocks = b.scale, .b_blocks_ld = ld, .K = (int)K };
                }
        }
        return 0;
}

int cuda_gemm_dgrad_sum(int n, const struct qtensor *const *dy, const struct qtensor *const *w, void *dx, enum dtype xt, struct dev_stream *s) {
        struct gemm_launch l = { .d = dx, .out = GEMM_BF16, .n_more = n - 1, .sms = s->multiprocessors };
        const int64_t M = dy[0]->rows, N = w[0]->cols;
        int64_t K = 0;
        int r;

        if (n < 2 || n > 3 || xt != DT_BF16)
                return -EOPNOTSUPP;
        for (int i = 0; i < n; i++) {
                if (pair(dy[i], w[i], Q_128X128) != PAIR_BLOCK || dy[i]->rows == 0 || dy[i]->cols == 0)
                        return -EOPNOTSUPP;
                if (dy[i]->cols != w[i]->rows || dy[i]->rows != dy[0]->rows || w[i]->cols != w[0]->cols || dy[i]->cols % 16 != 0 || w[i]->cols % 16 != 0 || !dy[i]->row || !w[i]->col || !dx)
                        return -EINVAL;
                K += dy[i]->cols;
        }
        if (M > INT_MAX / 2 || N > INT_MAX / 2 || K > INT_MAX / 2)
                return -EINVAL;
        (void)pthread_once(&encode_once, find_encode);
        if (!encode)
                return -EOPNOTSUPP;
        l.M = (int)M;
        l.N = (int)N;
        l.K = (int)K;
        l.tile = s->tile >= 0 && s->tile < N_GEMM_TILES ? (enum gemm_tile)s->tile : gemm_plan(1, &M, &N, K, false, s->multiprocessors);
        r = sum_maps(&l, n, dy, w);
        return r < 0 ? r : cuda_launch_gemm(&l, s->stream);
}

int cuda_gemm_wgrad(const struct qtensor *dy, const struct qtensor *x, dev_real *dw, int beta, struct dev_stream *s) {
        const struct operand a = { dy->col, dy->col_scale, dy->cols }, b = { x->col, x->col_scale, x->cols };
        const struct blas_call plain = {
                .tb = true, .m = x->cols, .n = dy->cols, .k = dy->rows, .lda = x->cols, .ldb = dy->cols, .ldd = x->cols, .at = x->dtype, .bt = dy->dtype, .dt = DT_F32, .a = x->row, .b = dy->row,
                .d = dw, .beta = beta,
        };

        if (dy->rows != x->rows || (beta != 0 && beta != 1))
                return -EINVAL;
        switch (pair(dy, x, Q_1X128)) {
        case PAIR_PLAIN:
                return dy->row && x->row ? cuda_blas(&plain, s) : -EINVAL;
        case PAIR_TENSOR:
                return tensor_product(dy, true, x, true, dw, DT_F32, beta, s);
        case PAIR_BLOCK:
                return product(&a, &b, false, dy->rows, dw, beta ? GEMM_F32_ADD : GEMM_F32, s);
        case PAIR_NONE:
                break;
        }
        return -EOPNOTSUPP;
}

/* What the one launch takes: recipe `block`, a contraction long enough that tiles need not leave by the copy engine. */
static bool member_fits(const struct qtensor *dy, const struct qtensor *x, int64_t K) {
        return pair(dy, x, Q_1X128) == PAIR_BLOCK && dy->rows == K && x->rows == K && dy->cols > 0 && x->cols > 0 && dy->cols <= INT_MAX / 2 && x->cols <= INT_MAX / 2 && x->cols % 16 == 0 &&
               dy->col && x->col && dy->col_scale && x->col_scale;
}

int cuda_gemm_wgrad_many(int n, const struct qtensor *const *dy, const struct qtensor *const *x, dev_real *const *dw, int beta, struct dev_stream *s) {
        struct gemm_group g = { .n = n, .out = beta ? GEMM_F32_ADD : GEMM_F32, .sms = s->multiprocessors };
        int64_t M[GEMM_GROUP], N[GEMM_GROUP], K;
        struct gemm_launch one = { .out = g.out };

        if (n < 1 || n > GEMM_GROUP)
                return -EOPNOTSUPP;
        K = dy[0]->rows;
        if (K <= 0 || K > INT_MAX / 2 || K % 16 != 0 || gemm_plan_staged(K))
                return -EOPNOTSUPP;
        for (int i = 0; i < n; i++) {
                if (!member_fits(dy[i], x[i], K) || !dw[i])
                        return -EOPNOTSUPP;
                M[i] = dy[i]->cols;
                N[i] = x[i]->cols;
        }
        (void)pthread_once(&encode_once, find_encode);
        if (!encode)
                return -EOPNOTSUPP;
        g.K = (int)K;
        g.tile = one.tile = s->tile >= 0 && s->tile < N_GEMM_TILES ? (enum gemm_tile)s->tile : gemm_plan(n, M, N, K, true, s->multiprocessors);
        for (int i = 0; i < n; i++) {
                const struct operand a = { dy[i]->col, dy[i]->col_scale, M[i] }, b = { x[i]->col, x[i]->col_scale, N[i] };
                const int r = gemm_maps(&one, &a, &b, K);

                if (r < 0)
                        return r;
                g.of[i] = (struct gemm_member){ .a = one.a, .b = one.b, .a_scale = one.a_scale, .b_scale = one.b_scale, .d = dw[i], .M = (int)M[i], .N = (int)N[i] };
        }
        return cuda_launch_gemm_group(&g, s->stream);
}
