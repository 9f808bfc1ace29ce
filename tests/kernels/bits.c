/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Prints one digest over the outputs of the backend's vectorised operations.  It is built against the library as it is and against plain copies for single instruction sets;
 * compare_bits.sh asks for the same line from all of them: results must not depend on the processor a rank happens to run on (BLAS apart, which the fingerprint names).
 */
#include "base/hash.h"
#include "tests/kernels/common.h"

enum { T = 150, H = 300, N = T * H };

static struct digest_stream *digest;

static void take(const void *p, size_t n) {
        digest_stream_add(digest, p, n);
}

static void quantised(const uint16_t *x) {
        for (int v = 0; v < 12; v++) {
                const enum qscaling scalings[] = { Q_1X128, Q_128X128, Q_TENSOR };
                const struct quant_spec q = { .scaling = scalings[v % 3], .dtype = v / 3 % 2 ? DT_E5M2 : DT_E4M3, .pow2 = v / 6, .want_row = true, .want_col = true };
                struct qtensor t = qtensor_new(&q, T, H);
                uint16_t *y = xalloc(N * 2);

                ops->quantize(x, DT_BF16, &q, &t, stream);
                take(t.row, N), take(t.col, N), take(t.row_scale, 4), take(t.col_scale, 4);
                ops->requantize_col(&t, &q, stream);
                ops->dequantize(&t, y, DT_BF16, stream);
                take(t.col, N), take(y, N * 2);
                qtensor_free(&t);
                xfree(y);
        }
}

static void layers(const uint16_t *a, const uint16_t *b, uint16_t *y, uint16_t *z) {
        float *w = random_reals(H, 1), *rstd = random_reals(T, 1), *dw = random_reals(H, 0), *sum = random_reals(T, 1), *target = random_reals(T, 1), loss = 0;
        int32_t labels[T];

        memcpy(z, a, N * 2);
        ops->rmsnorm_fwd(z, z, b, w, 1e-5, y, rstd, DT_BF16, T, H, stream);
        take(y, N * 2), take(z, N * 2), take(rstd, T * 4);
        ops->rmsnorm_bwd(z, dw, y, DT_BF16, a, w, rstd, DT_BF16, T, H, stream);
        take(z, N * 2), take(dw, H * 4);
        ops->swiglu_fwd(a, b, y, DT_BF16, T, H, stream);
        take(y, N * 2);
        ops->swiglu_bwd(a, b, y, DT_BF16, y, z, DT_BF16, T, H, NULL, NULL, NULL, NULL, stream);
        take(y, N * 2), take(z, N * 2);
        for (int i = 0; i < T; i++)
                labels[i] = i * 2;
        ops->ce_max(a, DT_BF16, rstd, T, H, stream);
        ops->ce_sum(a, DT_BF16, rstd, labels, sum, target, T, 0, H, stream);
        ops->ce_bwd(a, DT_BF16, rstd, sum, target, labels, 1, &loss, y, DT_BF16, T, 0, H, stream);
        take(rstd, T * 4), take(sum, T * 4), take(&loss, 4), take(y, N * 2);
        xfree(w), xfree(rstd), xfree(dw), xfree(sum), xfree(target);
}

static void optimizer(uint16_t *m, uint16_t *v) {
        float *master = random_reals(N, 1), *grad = random_reals(N, 1e-3);
        const float *const grads[] = { grad };
        const int64_t counts[] = { N };
        const uint64_t indices[] = { 1 };
        const double factors[] = { 1 };
        const struct adamw_tensor t = { .master = master, .grad = grad, .m = m, .v = v, .count = N, .lr_scale = 1, .weight_decay = 0.1 };
        const struct step_params p = { .lr = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .bias1 = 0.1, .bias2 = 0.001, .grad_scale = 0.7, .rng = 11 };
        double sumsq = 0;
        uint64_t bad = UINT64_MAX;

        memset(m, 0, N * 2);
        memset(v, 0, N * 2);
        ops->grad_stats(1, grads, counts, factors, indices, &sumsq, &bad, stream);
        ops->adamw(1, &t, DT_BF16, DT_BF16, &p, stream);
        take(&sumsq, sizeof sumsq), take(master, N * 4), take(m, N * 2), take(v, N * 2);
        xfree(master), xfree(grad);
}

TEST(bits) {
        char hex[DIGEST_HEX_SIZE];
        uint16_t *a, *b, *y, *z;

        device_open(DT_BF16);
        CU_ASSERT_EQUAL_FATAL(digest_stream_new(&digest), 0);
        a = random_bf16(T, H, 1), b = random_bf16(T, H, 1), y = random_bf16(T, H, 1), z = random_bf16(T, H, 1);
        take(a, N * 2);
        quantised(a);
        layers(a, b, y, z);
        optimizer(y, z);
        digest_hex(digest_stream_end(digest), hex);
        printf("\ndigest %s\n", hex);
        digest_stream_free(digest);
        xfree(a), xfree(b), xfree(y), xfree(z);
        device_close();
}

TEST_MAIN("bits")
