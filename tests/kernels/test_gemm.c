/* SPDX-License-Identifier: Apache-2.0 */
/* Products, element by element against the double product of the dequantised operands; outputs are poisoned first and every case has fresh random inputs. */
#include "tests/kernels/common.h"

static double worst; /* |got - want| / sum |a b| */
static int64_t not_finite;

static void compare(double got, double want, double abs_sum) {
        if (!isfinite(got)) {
                not_finite++;
                return;
        }
        if (abs_sum > 0)
                worst = fmax(worst, fabs(got - want) / abs_sum);
        else
                not_finite += got != 0;
}

static const enum qscaling act_scaling[] = { Q_1X128, Q_TENSOR, Q_NONE, Q_NONE };
static const enum qscaling weight_scaling[] = { Q_128X128, Q_TENSOR, Q_NONE, Q_NONE };
/* Relative to sum |a b|: FP32 accumulation over at most 700 products; 1e-6 is docs/numerics.md's bound for the promotion's emulation. */
#define BOUND 1e-6

static struct qtensor quantized(const struct quant_spec *q, const void *x, enum dtype xt, int64_t rows, int64_t cols) {
        struct qtensor t = qtensor_new(q, rows, cols);

        CU_ASSERT_EQUAL_FATAL(ops->quantize(x, xt, q, &t, stream), 0);
        return t;
}

static void *random_of(enum dtype t, int64_t rows, int64_t cols, double std) {
        return t == DT_BF16 ? (void *)random_bf16(rows, cols, std) : (void *)random_reals(rows * cols, std);
}

struct problem {
        int64_t M, N, K;
        enum dtype carrier;
        void *x, *w, *dy;
        struct qtensor qx, qw, qdy;
};

/* kind: 0 block, 1 tensor, 2 BF16, 3 F32 */
static void problem_new(struct problem *p, int kind, bool weight_cols) {
        const struct quant_spec qx = { .scaling = act_scaling[kind], .dtype = DT_E4M3, .want_row = true, .want_col = true, .pow2 = rng() & 1 };
        const struct quant_spec qw = { .scaling = weight_scaling[kind], .dtype = DT_E4M3, .want_row = true, .want_col = weight_cols };
        const struct quant_spec qdy = { .scaling = act_scaling[kind], .dtype = kind == 1 ? DT_E5M2 : DT_E4M3, .want_row = true, .want_col = true };

        *p = (struct problem){ .M = rng_in(1, 400), .N = rng_in(1, 300), .K = rng_in(1, 300), .carrier = kind == 3 ? DT_F32 : DT_BF16 };
        if (rng() % 4 == 0) {
                p->M = 128 * rng_in(1, 5);
                p->N = 128 * rng_in(1, 3);
                p->K = 128 * rng_in(1, 3);
        }
        p->x = random_of(p->carrier, p->M, p->K, 1);
        p->w = random_of(p->carrier, p->N, p->K, 0.02);
        p->dy = random_of(p->carrier, p->M, p->N, 1e-6);
        p->qx = quantized(&qx, p->x, p->carrier, p->M, p->K);
        p->qw = quantized(&qw, p->w, p->carrier, p->N, p->K);
        p->qdy = quantized(&qdy, p->dy, p->carrier, p->M, p->N);
}

static void problem_free(struct problem *p) {
        qtensor_free(&p->qx);
        qtensor_free(&p->qw);
        qtensor_free(&p->qdy);
        xfree(p->x);
        xfree(p->w);
        xfree(p->dy);
}

typedef double (*value_fn)(const struct qtensor *t, int64_t r, int64_t c);

/* Dequantised values as a dense double matrix, so that the naive product is quick. */
static double *dense(const struct qtensor *t, value_fn f, bool transposed) {
        double *d = malloc((size_t)(t->rows * t->cols) * sizeof *d);

        for (int64_t r = 0; r < t->rows; r++)
                for (int64_t c = 0; c < t->cols; c++)
                        d[transposed ? c * t->rows + r : r * t->cols + c] = f(t, r, c);
        return d;
}

/* got[m, n] = base + a[m, k] b[n, k]^T */
static void check_product(int64_t m, int64_t n, int64_t k, const double *a, const double *b, const float *got, const float *base) {
        worst = 0;
        not_finite = 0;
        for (int64_t i = 0; i < m; i++)
                for (int64_t j = 0; j < n; j++) {
                        double sum = base ? (double)base[i * n + j] : 0, abs_sum = fabs(sum);

                        for (int64_t l = 0; l < k; l++) {
                                const double v = a[i * k + l] * b[j * k + l];

                                sum += v;
                                abs_sum += fabs(v);
                        }
                        compare((double)got[i * n + j], sum, abs_sum);
                }
        CU_ASSERT_EQUAL(not_finite, 0);
        CU_ASSERT_TRUE(worst < BOUND);
        if (worst >= BOUND)
                printf("    %ld x %ld x %ld: found error %.3g, expected below %.3g\n", (long)m, (long)n, (long)k, worst, BOUND);
}

static void *poisoned(int64_t n) {
        void *p = xalloc((size_t)n * sizeof(float));

        memset(p, 0xff, (size_t)n * sizeof(float));
        return p;
}

static void fprop(struct problem *p) {
        double *a = dense(&p->qx, row_value, false), *b = dense(&p->qw, row_value, false);
        float *y = poisoned(p->M * p->N);
        uint16_t *h = poisoned(p->M * p->N);
        int64_t errors = 0;

        CU_ASSERT_EQUAL(ops->gemm_fprop(&p->qx, &p->qw, y, DT_F32, stream), 0);
        check_product(p->M, p->N, p->K, a, b, y, NULL);
        CU_ASSERT_EQUAL(ops->gemm_fprop(&p->qx, &p->qw, h, DT_BF16, stream), 0);
        for (int64_t i = 0; i < p->M * p->N; i++)
                errors += h[i] != bf16_from_float(y[i]);
        CU_ASSERT_EQUAL(errors, 0);
        free(a);
        free(b);
        xfree(y);
        xfree(h);
}

static void dgrad(struct problem *p) {
        double *a = dense(&p->qdy, row_value, false), *b = dense(&p->qw, row_value, true);
        float *dx = poisoned(p->M * p->K), *base = random_reals(p->M * p->K, 1e-7), *sum = xalloc((size_t)(p->M * p->K) * sizeof *sum);
        uint16_t *h = poisoned(p->M * p->K);
        int64_t errors = 0;

        CU_ASSERT_EQUAL(ops->gemm_dgrad(&p->qdy, &p->qw, dx, 0, NULL, DT_F32, stream), 0);
        check_product(p->M, p->K, p->N, a, b, dx, NULL);
        memcpy(dx, base, (size_t)(p->M * p->K) * sizeof *dx);
        CU_ASSERT_EQUAL(ops->gemm_dgrad(&p->qdy, &p->qw, dx, 1, NULL, DT_F32, stream), 0);
        check_product(p->M, p->K, p->N, a, b, dx, base);
        memcpy(sum, base, (size_t)(p->M * p->K) * sizeof *sum); /* the last of several: rounded once */
        CU_ASSERT_EQUAL(ops->gemm_dgrad(&p->qdy, &p->qw, sum, 1, h, DT_BF16, stream), 0);
        for (int64_t i = 0; i < p->M * p->K; i++)
                errors += h[i] != bf16_from_float(dx[i]);
        CU_ASSERT_EQUAL(ops->gemm_dgrad(&p->qdy, &p->qw, sum, 0, NULL, DT_F32, stream), 0);
        CU_ASSERT_EQUAL(ops->gemm_dgrad(&p->qdy, &p->qw, NULL, 0, h, DT_BF16, stream), 0);
        for (int64_t i = 0; i < p->M * p->K; i++)
                errors += h[i] != bf16_from_float(sum[i]);
        CU_ASSERT_EQUAL(errors, 0);
        CU_ASSERT_EQUAL(ops->gemm_dgrad(&p->qdy, &p->qw, NULL, 1, h, DT_BF16, stream), -EINVAL);
        xfree(sum);
        xfree(h);
        free(a);
        free(b);
        xfree(dx);
        xfree(base);
}

static void wgrad(struct problem *p) {
        double *a = dense(&p->qdy, col_value, true), *b = dense(&p->qx, col_value, true);
        float *dw = random_reals(p->N * p->K, 1e-6), *base = xalloc((size_t)(p->N * p->K) * sizeof *base);

        memcpy(base, dw, (size_t)(p->N * p->K) * sizeof *base);
        CU_ASSERT_EQUAL(ops->gemm_wgrad(&p->qdy, &p->qx, dw, 1, stream), 0);
        check_product(p->N, p->K, p->M, a, b, dw, base);
        memset(base, 0, (size_t)(p->N * p->K) * sizeof *base);
        memset(dw, 0xff, (size_t)(p->N * p->K) * sizeof *dw); /* NaN: nothing is read */
        CU_ASSERT_EQUAL(ops->gemm_wgrad(&p->qdy, &p->qx, dw, 0, stream), 0);
        CU_ASSERT_EQUAL(ops->gemm_wgrad(&p->qdy, &p->qx, base, 1, stream), 0);
        CU_ASSERT_EQUAL(memcmp(dw, base, (size_t)(p->N * p->K) * sizeof *dw), 0);
        free(a);
        free(b);
        xfree(dw);
        xfree(base);
}

TEST(elementwise_against_double) {
        device_open(DT_BF16);
        for (int i = 0; i < (TEST_SANITIZED ? 8 : 24); i++) { /* each kind, with and without columns of the weight */
                struct problem p;

                problem_new(&p, i % 4, i / 4 % 2);
                fprop(&p);
                dgrad(&p);
                wgrad(&p);
                problem_free(&p);
        }
        device_close();
}

TEST(same_inputs_same_bits) {
        device_open(DT_BF16);
        for (int kind = 0; kind < 4; kind++) {
                struct problem p;
                float *y[2], *dx[2], *dw[2];

                problem_new(&p, kind, true);
                for (int i = 0; i < 2; i++) {
                        y[i] = poisoned(p.M * p.N);
                        dx[i] = poisoned(p.M * p.K);
                        dw[i] = xalloc((size_t)(p.N * p.K) * 4);
                        ops->gemm_fprop(&p.qx, &p.qw, y[i], DT_F32, stream);
                        ops->gemm_dgrad(&p.qdy, &p.qw, NULL, 0, dx[i], DT_F32, stream);
                        ops->gemm_wgrad(&p.qdy, &p.qx, dw[i], 1, stream);
                }
                CU_ASSERT_EQUAL(memcmp(y[0], y[1], (size_t)(p.M * p.N) * 4), 0);
                CU_ASSERT_EQUAL(memcmp(dx[0], dx[1], (size_t)(p.M * p.K) * 4), 0);
                CU_ASSERT_EQUAL(memcmp(dw[0], dw[1], (size_t)(p.N * p.K) * 4), 0);
                for (int i = 0; i < 2; i++) {
                        xfree(y[i]);
                        xfree(dx[i]);
                        xfree(dw[i]);
                }
                problem_free(&p);
        }
        device_close();
}

/* One NaN scale must reach every output of its row, and no other row. */
TEST(nan_scales_reach_the_output) {
        const struct quant_spec qx = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_row = true }, qw = { .scaling = Q_128X128, .dtype = DT_E4M3, .want_row = true };
        struct qtensor x, w;
        uint16_t *hx, *hw;
        float *y;

        device_open(DT_BF16);
        hx = random_bf16(20, 256, 1);
        hw = random_bf16(10, 256, 1);
        hx[7 * 256 + 200] = 0x7f80;
        x = quantized(&qx, hx, DT_BF16, 20, 256);
        w = quantized(&qw, hw, DT_BF16, 10, 256);
        y = poisoned(200);
        CU_ASSERT_EQUAL(ops->gemm_fprop(&x, &w, y, DT_F32, stream), 0);
        for (int i = 0; i < 200; i++)
                CU_ASSERT_EQUAL((bool)isnan(y[i]), i / 10 == 7);
        qtensor_free(&x);
        qtensor_free(&w);
        xfree(hx);
        xfree(hw);
        xfree(y);
        device_close();
}

TEST(operands_that_do_not_fit) {
        const struct quant_spec q1 = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_row = true }, qt = { .scaling = Q_TENSOR, .dtype = DT_E4M3, .want_row = true };
        struct qtensor a, b;
        uint16_t *h;
        float y[64];

        device_open(DT_BF16);
        h = random_bf16(8, 8, 1);
        a = quantized(&q1, h, DT_BF16, 8, 8);
        b = quantized(&qt, h, DT_BF16, 8, 8);
        CU_ASSERT_EQUAL(ops->gemm_fprop(&a, &b, y, DT_F32, stream), -EINVAL);
        CU_ASSERT_EQUAL(ops->gemm_wgrad(&b, &b, y, 1, stream), -EINVAL); /* no column form */
        b.cols = 4;
        CU_ASSERT_EQUAL(ops->gemm_fprop(&b, &b, y, DT_E4M3, stream), -EINVAL);
        b.cols = 8;
        qtensor_free(&a);
        qtensor_free(&b);
        xfree(h);
        device_close();
}

TEST_MAIN("gemm")
