/* SPDX-License-Identifier: Apache-2.0 */
/* Products with one scale a tensor and without, and weight gradients made together. */
#include "tests/gpu/both.h"

/* What rounding may do to a sum of k products of normal numbers, in F32 and then to the result's type. */
TEST(plain_and_tensor_products) {
        static const int64_t shapes[][3] = { { 16, 16, 16 }, { 48, 80, 144 }, { 256, 320, 512 } };

        both_open();
        for (int k = 0; k < 9; k++) {
                const int64_t M = shapes[k % 3][0], N = shapes[k % 3][1], K = shapes[k % 3][2];
                const enum qscaling how = k < 3 ? Q_NONE : k < 6 ? Q_TENSOR : Q_1X128;
                const bool block = how == Q_1X128;
                const struct quant_spec qx = { .scaling = how, .dtype = DT_E4M3, .want_row = true, .want_col = true }, qdy = { .scaling = how, .dtype = block ? DT_E4M3 : DT_E5M2, .want_row = true, .want_col = true };
                const struct quant_spec qw = { .scaling = block ? Q_128X128 : how, .dtype = DT_E4M3, .want_row = true, .want_col = true };
                uint16_t *x = mixed_bf16(M * K, 0), *w = mixed_bf16(N * K, 0), *dy = mixed_bf16(M * N, 0), *y = fresh((size_t)(M * N) * 2), *dx = fresh((size_t)(M * K) * 2);
                dev_real *sum = random_reals(M * K, 1), *dw = random_reals(N * K, 1);
                struct qtensor tx = qtensor_new(&qx, M, K), tw = qtensor_new(&qw, N, K), tdy = qtensor_new(&qdy, M, N), gtx = up_parts(&qx, &tx), gtw = up_parts(&qw, &tw), gtdy = up_parts(&qdy, &tdy);
                void *gx = up(x, (size_t)(M * K) * 2), *gw = up(w, (size_t)(N * K) * 2), *gdy = up(dy, (size_t)(M * N) * 2), *gy = up(y, (size_t)(M * N) * 2), *gdx = up(dx, (size_t)(M * K) * 2);
                void *gsum = up(sum, (size_t)(M * K) * 4), *gdw = up(dw, (size_t)(N * K) * 4);
                const double f = how == Q_NONE ? 1e-5 : 4e-3;

                printf("  products %lld,%lld,%lld scaling %d\n", (long long)M, (long long)N, (long long)K, (int)how);
                OK(ops->quantize(x, DT_BF16, &qx, &tx, stream));
                OK(ops->quantize(w, DT_BF16, &qw, &tw, stream));
                OK(ops->quantize(dy, DT_BF16, &qdy, &tdy, stream));
                OK(gpu_ops->quantize(gx, DT_BF16, &qx, &gtx, gpu));
                OK(gpu_ops->quantize(gw, DT_BF16, &qw, &gtw, gpu));
                OK(gpu_ops->quantize(gdy, DT_BF16, &qdy, &gtdy, gpu));
                OK(ops->gemm_fprop(&tx, &tw, y, DT_BF16, stream));
                OK(gpu_ops->gemm_fprop(&gtx, &gtw, gy, DT_BF16, gpu));
                compare("fprop", y, gy, DT_BF16, M * N, 0x1p-7, f * sqrt((double)K));
                OK(ops->gemm_dgrad(&tdy, &tw, NULL, 0, dx, DT_BF16, stream));
                OK(gpu_ops->gemm_dgrad(&gtdy, &gtw, NULL, 0, gdx, DT_BF16, gpu));
                compare("dgrad", dx, gdx, DT_BF16, M * K, 0x1p-7, f * sqrt((double)N));
                OK(ops->gemm_dgrad(&tdy, &tw, sum, 0, NULL, DT_BF16, stream));
                OK(gpu_ops->gemm_dgrad(&gtdy, &gtw, gsum, 0, NULL, DT_BF16, gpu));
                compare("dgrad sum", sum, gsum, DT_F32, M * K, 1e-5, f * sqrt((double)N));
                OK(ops->gemm_dgrad(&tdy, &tw, sum, 1, dx, DT_BF16, stream));
                OK(gpu_ops->gemm_dgrad(&gtdy, &gtw, gsum, 1, gdx, DT_BF16, gpu));
                compare("dgrad added", dx, gdx, DT_BF16, M * K, 0x1p-7, 2 * f * sqrt((double)N));
                if (block) {
                        const struct qtensor *const dys[] = { &gtdy, &gtdy, &gtdy }, *const ws[] = { &gtw, &gtw, &gtw };

                        for (int pairs = 2; pairs <= 3; pairs++) {
                                for (int i = 0; i < pairs; i++)
                                        OK(ops->gemm_dgrad(&tdy, &tw, sum, i > 0, i == pairs - 1 ? dx : NULL, DT_BF16, stream));
                                OK(gpu_ops->gemm_dgrad_sum(pairs, dys, ws, gdx, DT_BF16, gpu));
                                compare("dgrad of a sum", dx, gdx, DT_BF16, M * K, 0x1p-7, pairs * f * sqrt((double)N));
                        }
                }
                OK(ops->gemm_wgrad(&tdy, &tx, dw, 1, stream));
                OK(gpu_ops->gemm_wgrad(&gtdy, &gtx, gdw, 1, gpu));
                compare("wgrad", dw, gdw, DT_F32, N * K, 1e-5, f * sqrt((double)M));
                memset(dw, 0xff, (size_t)(N * K) * 4);
                OK(gpu_ops->copy_in(gdw, dw, (size_t)(N * K) * 4, gpu)); /* NaN: it is not read */
                OK(ops->gemm_wgrad(&tdy, &tx, dw, 0, stream));
                OK(gpu_ops->gemm_wgrad(&gtdy, &gtx, gdw, 0, gpu));
                compare("wgrad alone", dw, gdw, DT_F32, N * K, 1e-5, f * sqrt((double)M));
                xfree(x), xfree(w), xfree(dy), xfree(y), xfree(dx), xfree(sum), xfree(dw);
                if (how != Q_NONE)
                        qtensor_free(&tx), qtensor_free(&tw), qtensor_free(&tdy), down_parts(&gtx), down_parts(&gtw), down_parts(&gtdy);
                down(gx), down(gw), down(gdy), down(gy), down(gdx), down(gsum), down(gdw);
        }
        both_close();
}

/* Gradients of several weights in one launch beside one after another: the same bits, with and without what was there. */
TEST(grouped_weight_gradients) {
        static const int64_t T = 1040, N[4] = { 272, 2048, 128, 1600 }, K[4] = { 2048, 272, 16, 1600 };
        const struct quant_spec q = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_col = true };
        struct qtensor dy[4], x[4], gdy[4], gx[4];
        const struct qtensor *pdy[4], *px[4];
        dev_real *one[4], *many[4], *got[4];

        both_open();
        for (int i = 0; i < 4; i++) {
                uint16_t *a = mixed_bf16(T * N[i], 0), *b = mixed_bf16(T * K[i], 0);

                got[i] = random_reals(N[i] * K[i], 1);
                one[i] = up(got[i], (size_t)(N[i] * K[i]) * 4), many[i] = up(got[i], (size_t)(N[i] * K[i]) * 4);
                dy[i] = qtensor_new(&q, T, N[i]), x[i] = qtensor_new(&q, T, K[i]);
                OK(ops->quantize(a, DT_BF16, &q, &dy[i], stream));
                OK(ops->quantize(b, DT_BF16, &q, &x[i], stream));
                gdy[i] = up_parts(&q, &dy[i]), gx[i] = up_parts(&q, &x[i]);
                pdy[i] = &gdy[i], px[i] = &gx[i];
                xfree(a), xfree(b);
        }
        for (int round = 0; round < 4; round++) {
                const int beta = round % 2, n = round < 2 ? 4 : 3;

                for (int i = 0; i < n; i++)
                        OK(gpu_ops->gemm_wgrad(pdy[i], px[i], one[i], beta, gpu));
                OK(gpu_ops->gemm_wgrad_many(n, pdy, px, many, beta, gpu));
                for (int i = 0; i < n; i++) {
                        OK(gpu_ops->copy_out(got[i], one[i], (size_t)(N[i] * K[i]) * 4, gpu));
                        OK(gpu_ops->stream_sync(gpu));
                        compare(beta ? "grouped wgrad added" : "grouped wgrad", got[i], many[i], DT_F32, N[i] * K[i], 0, 0);
                }
        }
        for (int i = 0; i < 4; i++) {
                down_parts(&gdy[i]), down_parts(&gx[i]), qtensor_free(&dy[i]), qtensor_free(&x[i]);
                xfree(got[i]), down(one[i]), down(many[i]);
        }
        both_close();
}

TEST_MAIN("gpu-products")
