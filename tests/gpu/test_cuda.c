/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA kernels beside the CPU backend: quantisers bit for bit, products element by element against the dequantised operands.  Everything that is written lies in poisoned memory
 * first.  Skipped where there is no device.
 */
#include <cblas.h>
#undef I
#include <errno.h>

#include "base/cleanup.h"
#include "kernels/cuda/hopper.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/plan.h"
#include "tests/kernels/common.h"

static struct dev_stream *gpu;

static void gpu_open(void) {
        struct error e = { 0 };
        int count = 0;

        if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0)
                TEST_SKIP_ALL("no CUDA device");
        device_open(DT_BF16);
        ASSERT_OK(cuda_stream_new(&gpu, &e), e);
}

static void gpu_close(void) {
        gpu = cuda_stream_free(gpu);
        device_close();
}

static void must(cudaError_t r) {
        if (r != cudaSuccess)
                printf("    CUDA: %s\n", cudaGetErrorString(r));
        CU_ASSERT_EQUAL_FATAL(r, cudaSuccess);
}

static void *gpu_alloc(size_t bytes) {
        void *p;

        must(cudaMalloc(&p, bytes + 256));
        must(cudaMemset(p, 0xff, bytes + 256));
        return p;
}

static void *gpu_copy(const void *host, size_t bytes) {
        void *p = gpu_alloc(bytes);

        must(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice));
        must(cudaDeviceSynchronize()); /* a small copy may still be under way, and the test's stream does not wait for it */
        return p;
}

static struct qtensor gpu_qtensor(const struct quant_spec *q, int64_t rows, int64_t cols) {
        struct qtensor t = { .rows = rows, .cols = cols };
        size_t bytes[4];

        dev_qtensor_bytes(q, rows, cols, bytes);
        t.row = bytes[0] ? gpu_alloc(bytes[0]) : NULL;
        t.row_scale = bytes[1] ? gpu_alloc(bytes[1]) : NULL;
        t.col = bytes[2] ? gpu_alloc(bytes[2]) : NULL;
        t.col_scale = bytes[3] ? gpu_alloc(bytes[3]) : NULL;
        return t;
}

static void gpu_qtensor_free(struct qtensor *t) {
        must(cudaFree(t->row));
        must(cudaFree(t->row_scale));
        must(cudaFree(t->col));
        must(cudaFree(t->col_scale));
}

/* First byte that differs, -1: none; also none may have been written behind. */
static int64_t difference(const void *want, const void *device, size_t bytes) {
        uint8_t *got = malloc(bytes + 256);
        int64_t at = -1;

        CU_ASSERT_PTR_NOT_NULL_FATAL(got);
        must(cudaMemcpy(got, device, bytes + 256, cudaMemcpyDeviceToHost));
        for (size_t i = 0; i < bytes + 256 && at < 0; i++)
                if (got[i] != (i < bytes ? ((const uint8_t *)want)[i] : 0xff))
                        at = (int64_t)i;
        free(got);
        return at;
}

/* ------------------------------------------------------------------ quantisers */

struct quantize_case {
        const char *what;
        int64_t rows, cols;
        enum dtype xt;
        struct quant_spec q;
};

static bool same_quantised(const struct quantize_case *c, const void *x, struct quant_spec q) {
        const size_t size = (size_t)(c->rows * c->cols) * dtype_size(c->xt);
        struct qtensor want = qtensor_new(&q, c->rows, c->cols), got = gpu_qtensor(&q, c->rows, c->cols);
        float amax = 0, *gpu_amax = gpu_copy(&amax, sizeof amax);
        uint64_t bad = UINT64_MAX, *gpu_bad = gpu_copy(&bad, sizeof bad);
        void *gx = gpu_copy(x, size);
        const void *part[4] = { want.row, want.row_scale, want.col, want.col_scale };
        const void *gpart[4] = { got.row, got.row_scale, got.col, got.col_scale };
        size_t bytes[4];
        bool ok = true;

        q.index = 5;
        q.amax = &amax;
        q.bad = &bad;
        CU_ASSERT_EQUAL_FATAL(ops->quantize(x, c->xt, &q, &want, stream), 0);
        q.amax = gpu_amax;
        q.bad = gpu_bad;
        CU_ASSERT_EQUAL_FATAL(cuda_quantize(gx, c->xt, &q, &got, gpu), 0);
        must(cudaStreamSynchronize(gpu->stream));
        dev_qtensor_bytes(&q, c->rows, c->cols, bytes);
        for (int i = 0; i < 4; i++) {
                const int64_t at = bytes[i] ? difference(part[i], gpart[i], bytes[i]) : -1;

                if (at >= 0) {
                        static const char *const names[] = { "row", "row_scale", "col", "col_scale" };

                        printf("    %s %lldx%lld %s %s scaling %d pow2 %d: %s differs at byte %lld\n", c->what, (long long)c->rows, (long long)c->cols, dtype_name(c->xt),
                               dtype_name(q.dtype), (int)q.scaling, q.pow2, names[i], (long long)at);
                        ok = false;
                }
        }
        if (difference(&amax, gpu_amax, sizeof amax) >= 0 || difference(&bad, gpu_bad, sizeof bad) >= 0) {
                printf("    %s: amax or the flag differs\n", c->what);
                ok = false;
        }
        must(cudaFree(gx));
        must(cudaFree(gpu_amax));
        must(cudaFree(gpu_bad));
        qtensor_free(&want);
        gpu_qtensor_free(&got);
        return ok;
}

/* All specs over one matrix. */
static void compare_quantisers(const char *what, const void *x, enum dtype xt, int64_t rows, int64_t cols) {
        for (int i = 0; i < 48; i++) {
                const struct quantize_case c = { .what = what, .rows = rows, .cols = cols, .xt = xt };
                const struct quant_spec q = { .scaling = i & 1 ? Q_128X128 : Q_1X128, .dtype = i & 2 ? DT_E5M2 : DT_E4M3, .pow2 = i & 4, .want_row = i / 8 % 3 != 1, .want_col = i / 8 % 3 != 2 };

                CU_ASSERT_TRUE(same_quantised(&c, x, q));
        }
}

TEST(quantisers_same_bits_random) {
        static const int64_t shapes[][2] = { { 1, 128 }, { 128, 128 }, { 1, 1 }, { 3, 7 }, { 300, 520 }, { 129, 257 }, { 512, 1040 }, { 256, 100 }, { 130, 16 } };

        gpu_open();
        for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
                const int64_t n = shapes[i][0] * shapes[i][1];
                uint16_t *h = random_bf16(shapes[i][0], shapes[i][1], 1);
                dev_real *f = random_reals(n, 3e-6);

                compare_quantisers("random", h, DT_BF16, shapes[i][0], shapes[i][1]);
                compare_quantisers("random", f, DT_F32, shapes[i][0], shapes[i][1]);
                xfree(h);
                xfree(f);
        }
        gpu_close();
}

/* Every BF16 there is, 128 by 512, in an order that puts values of one magnitude into one group and in one that mixes them all. */
TEST(quantisers_same_bits_all_bf16) {
        uint16_t *h;

        gpu_open();
        h = xalloc(65536 * 2);
        for (int i = 0; i < 65536; i++)
                h[i] = (uint16_t)i;
        compare_quantisers("every bf16", h, DT_BF16, 128, 512);
        for (int i = 0; i < 65536; i++)
                h[i] = (uint16_t)(i * 40503);
        compare_quantisers("every bf16, mixed", h, DT_BF16, 128, 512);
        xfree(h);
        gpu_close();
}

/* Groups that are zero, hold one huge value, subnormals only, a NaN, an infinity; each in its own tile. */
TEST(quantisers_same_bits_special) {
        static const uint32_t special[] = { 0, 0x80000000u, 1, 0x80000001u, 0x00010000u, 0x007fffffu, 0x00800000u, 0x7f7fffffu, 0xff7fffffu, 0x7f800000u, 0xff800000u,
                                            0x7fc00000u, 0xffc00000u, 0x7f800001u, 0x7fffffffu, 0x3f800000u, 0x33d6bf95u };
        const int64_t rows = 256, cols = 128 * (int64_t)ARRAY_SIZE(special);
        dev_real *f;
        uint16_t *h;

        gpu_open();
        f = xalloc((size_t)(rows * cols) * sizeof *f);
        h = xalloc((size_t)(rows * cols) * 2);
        for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < cols; c++) {
                        const uint32_t v = special[c / 128];
                        const bool alone = (r * 37 + c) % 61 == 0;

                        f[r * cols + c] = r < 128 ? (alone ? from_bits(v) : (float)gauss()) : from_bits(v);
                        h[r * cols + c] = r < 128 && !alone ? bf16_from_float((float)gauss()) : (uint16_t)(v >> 16);
                }
        compare_quantisers("special", f, DT_F32, rows, cols);
        compare_quantisers("special", h, DT_BF16, rows, cols);
        xfree(f);
        xfree(h);
        gpu_close();
}

/* ------------------------------------------------------------------ products */

/* The dequantised matrix with the contraction contiguous: rows of the row form, or of the column form. */
static double *dequantised(const struct qtensor *t, bool col) {
        const int64_t rows = col ? t->cols : t->rows, k = col ? t->rows : t->cols;
        double *x = malloc((size_t)(rows * k) * sizeof *x);

        CU_ASSERT_PTR_NOT_NULL_FATAL(x);
        for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < k; j++)
                        x[i * k + j] = col ? col_value(t, j, i) : row_value(t, i, j);
        return x;
}

/* ref and bound of a b^T. */
static void reference(double *a, double *b, int64_t M, int64_t N, int64_t K, double *ref, double *sum) {
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)M, (int)N, (int)K, 1, a, (int)K, b, (int)K, 0, ref, (int)N);
        for (int64_t i = 0; i < M * K; i++)
                a[i] = fabs(a[i]);
        for (int64_t i = 0; i < N * K; i++)
                b[i] = fabs(b[i]);
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)M, (int)N, (int)K, 1, a, (int)K, b, (int)K, 0, sum, (int)N);
}

enum form { FPROP_BF16, FPROP_F32, DGRAD, DGRAD_ADD, WGRAD };

/*
 * Normal numbers: the tensor core aligns 32 products and what it has to the largest and keeps 13 bits below (DeepSeek-V3, arXiv 2412.19437 section 3.5.2), four times in each 128 of
 * K, so that the bound is 4 times 2^-13 of the sum of magnitudes (2.1 times was seen, in sums that hardly cancel; long ones stay under half of 2^-13).  And -1, 0, 1 times a power of two of the group: their sums fit into those bits, so that only the scales are rounded and a wrong index shows.
 */
enum numbers { NORMAL, SIGNS };

static uint16_t *operand_new(enum numbers n, int64_t rows, int64_t cols) {
        uint16_t *p = xalloc((size_t)(rows * cols) * 2);

        for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < cols; c++) {
                        const double power = exp2((double)((r / 128 * 3 + c / 128 * 5) % 7) - 3);

                        p[r * cols + c] = bf16_from_float((float)(n == NORMAL ? gauss() : (double)rng_in(-1, 1) * power));
                }
        return p;
}

/* One product of [M,K] by [N,K] in each way that a form has it; returns the number of wrong elements. */
static int64_t wrong_elements(enum numbers numbers, enum form form, int64_t M, int64_t N, int64_t K) {
        const bool wgrad = form == WGRAD, dgrad = form == DGRAD || form == DGRAD_ADD, add = wgrad || form == DGRAD_ADD;
        const struct quant_spec qa = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_row = !wgrad, .want_col = wgrad };
        const struct quant_spec qb = { .scaling = wgrad ? Q_1X128 : Q_128X128, .dtype = DT_E4M3, .want_row = !wgrad && !dgrad, .want_col = wgrad || dgrad };
        const int64_t ar = wgrad ? K : M, ac = wgrad ? M : K, br = wgrad || dgrad ? K : N, bc = wgrad || dgrad ? N : K;
        const size_t bytes = (size_t)(M * N) * (form == FPROP_BF16 ? 2 : 4);
        uint16_t *a = operand_new(numbers, ar, ac), *b = operand_new(numbers, br, bc);
        struct qtensor qta = qtensor_new(&qa, ar, ac), qtb = qtensor_new(&qb, br, bc), ga = gpu_qtensor(&qa, ar, ac), gb = gpu_qtensor(&qb, br, bc);
        void *xa = gpu_copy(a, (size_t)(M * K) * 2), *xb = gpu_copy(b, (size_t)(N * K) * 2), *d, *got = malloc(bytes + 256);
        double *da, *db, *ref = malloc((size_t)(M * N) * sizeof *ref), *sum = malloc((size_t)(M * N) * sizeof *sum), worst = 0;
        dev_real *before = add ? random_reals(M * N, 1) : NULL;
        int64_t wrong = 0;
        int r;

        CU_ASSERT_FATAL(got && ref && sum);
        CU_ASSERT_EQUAL_FATAL(ops->quantize(a, DT_BF16, &qa, &qta, stream), 0);
        CU_ASSERT_EQUAL_FATAL(ops->quantize(b, DT_BF16, &qb, &qtb, stream), 0);
        CU_ASSERT_EQUAL_FATAL(cuda_quantize(xa, DT_BF16, &qa, &ga, gpu), 0);
        CU_ASSERT_EQUAL_FATAL(cuda_quantize(xb, DT_BF16, &qb, &gb, gpu), 0);
        da = dequantised(&qta, wgrad);
        db = dequantised(&qtb, wgrad || dgrad);
        reference(da, db, M, N, K, ref, sum);
        d = add ? gpu_copy(before, bytes) : gpu_alloc(bytes);
        must(cudaDeviceSynchronize()); /* the copies are of another stream */
        if (wgrad)
                r = cuda_gemm_wgrad(&ga, &gb, d, 1, gpu);
        else if (dgrad)
                r = cuda_gemm_dgrad(&ga, &gb, d, add, NULL, DT_F32, gpu);
        else
                r = cuda_gemm_fprop(&ga, &gb, d, form == FPROP_BF16 ? DT_BF16 : DT_F32, gpu);
        CU_ASSERT_EQUAL_FATAL(r, 0);
        must(cudaStreamSynchronize(gpu->stream));
        must(cudaMemcpy(got, d, bytes + 256, cudaMemcpyDeviceToHost));
        for (int64_t i = 0; i < M * N; i++) {
                const double want = ref[i] + (add ? (double)before[i] : 0), y = form == FPROP_BF16 ? (double)bf16_to_float(((uint16_t *)got)[i]) : (double)((float *)got)[i];
                const double bound = (numbers == NORMAL ? 0x1p-11 : 0x1p-20) * sum[i] + (form == FPROP_BF16 ? 0x1p-8 : 0x1p-23) * fabs(want) + (add ? 0x1p-23 * fabs((double)before[i]) : 0);

                worst = fmax(worst, fabs(y - ref[i] - (add ? (double)before[i] : 0)) / bound);
                if (!(fabs(y - want) <= bound) && wrong++ < 4)
                        printf("    form %d tile %d (%lld,%lld,%lld) at %lld,%lld: %g, expected %g +- %g\n", (int)form, gpu->tile, (long long)M, (long long)N, (long long)K,
                               (long long)(i / N), (long long)(i % N), y, want, bound);
        }
        for (int i = 0; i < 256; i++)
                wrong += ((uint8_t *)got)[bytes + (size_t)i] != 0xff;
        printf("    form %d tile %d (%lld,%lld,%lld): numbers %d, worst error %.3f of the bound\n", (int)form, gpu->tile, (long long)M, (long long)N, (long long)K, (int)numbers, worst);
        free(da), free(db), free(ref), free(sum), free(got);
        must(cudaFree(xa)), must(cudaFree(xb)), must(cudaFree(d));
        gpu_qtensor_free(&ga), gpu_qtensor_free(&gb), qtensor_free(&qta), qtensor_free(&qtb);
        xfree(a), xfree(b), xfree(before);
        return wrong;
}

TEST(products_within_the_bound) {
        static const int64_t shapes[][3] = { { 128, 128, 128 }, { 1, 16, 16 }, { 17, 144, 400 }, { 300, 528, 1040 }, { 1000, 400, 2064 }, { 515, 1152, 640 } };

        gpu_open();
        for (gpu->tile = 0; gpu->tile < N_GEMM_TILES; gpu->tile++)
                for (size_t i = 0; i < ARRAY_SIZE(shapes); i++)
                        for (int f = FPROP_BF16; f <= WGRAD; f++)
                                for (int n = NORMAL; n <= SIGNS; n++)
                                        CU_ASSERT_EQUAL(wrong_elements((enum numbers)n, (enum form)f, shapes[i][0], shapes[i][1], shapes[i][2]), 0);
        gpu_close();
}

/* More tiles than the device has multiprocessors, so that blocks go on to further ones; as planned. */
TEST(products_of_many_tiles) {
        gpu_open();
        CU_ASSERT_EQUAL(wrong_elements(SIGNS, FPROP_BF16, 4100, 7168, 272), 0);
        CU_ASSERT_EQUAL(wrong_elements(NORMAL, FPROP_BF16, 4096, 2112, 640), 0);
        CU_ASSERT_EQUAL(wrong_elements(SIGNS, WGRAD, 4104, 4096, 528), 0);
        CU_ASSERT_EQUAL(wrong_elements(NORMAL, WGRAD, 4096, 1536, 1040), 0);
        gpu_close();
}

/* The same inputs give the same bits. */
TEST(products_repeat) {
        const struct quant_spec q = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_col = true };
        const int64_t T = 2048, n = 2048;
        struct qtensor t;
        uint16_t *x;
        float *first, *d;
        void *gx;

        gpu_open();
        x = random_bf16(T, n, 1);
        gx = gpu_copy(x, (size_t)(T * n) * 2);
        t = gpu_qtensor(&q, T, n);
        first = malloc((size_t)(n * n) * 4);
        d = gpu_alloc((size_t)(n * n) * 4);
        CU_ASSERT_PTR_NOT_NULL_FATAL(first);
        CU_ASSERT_EQUAL_FATAL(cuda_quantize(gx, DT_BF16, &q, &t, gpu), 0);
        for (int i = 0; i < 50; i++) {
                must(cudaMemsetAsync(d, 0, (size_t)(n * n) * 4, gpu->stream));
                CU_ASSERT_EQUAL_FATAL(cuda_gemm_wgrad(&t, &t, d, 1, gpu), 0);
                must(cudaStreamSynchronize(gpu->stream));
                if (i == 0)
                        must(cudaMemcpy(first, d, (size_t)(n * n) * 4, cudaMemcpyDeviceToHost));
                else
                        CU_ASSERT_EQUAL_FATAL(difference(first, d, (size_t)(n * n) * 4), -1);
        }
        free(first);
        must(cudaFree(d)), must(cudaFree(gx));
        gpu_qtensor_free(&t);
        xfree(x);
        gpu_close();
}

TEST(products_refused) {
        const struct qtensor x = { .scaling = Q_1X128, .dtype = DT_E4M3, .rows = 16, .cols = 24, .row = &gpu, .row_scale = (dev_real *)&gpu };
        const struct qtensor w = { .scaling = Q_128X128, .dtype = DT_E4M3, .rows = 16, .cols = 24, .row = &gpu, .row_scale = (dev_real *)&gpu };
        struct qtensor other = w;

        gpu_open();
        CU_ASSERT_EQUAL(cuda_gemm_fprop(&x, &w, &gpu, DT_BF16, gpu), -EINVAL); /* 24 is no multiple of 16 */
        other.dtype = DT_E5M2;
        CU_ASSERT_EQUAL(cuda_gemm_fprop(&x, &other, &gpu, DT_BF16, gpu), -EOPNOTSUPP);
        other = w;
        other.cols = 32;
        CU_ASSERT_EQUAL(cuda_gemm_fprop(&x, &other, &gpu, DT_BF16, gpu), -EINVAL);
        gpu_close();
}

TEST_MAIN("cuda")
