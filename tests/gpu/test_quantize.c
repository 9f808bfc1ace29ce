/* SPDX-License-Identifier: Apache-2.0 */
/* Quantisers, alone and fused with what comes before, and what they tell of the values. */
#include "tests/gpu/both.h"

/* Counted twice, so that what was there is added to. */
static void compare_stats(const void *x, const void *gx, enum dtype xt, const struct qtensor *t, const struct qtensor *gt) {
        struct quant_stats want = { 0 }, got = { 0 }, *g = up(&got, sizeof got);

        for (int i = 0; i < 2; i++) {
                OK(ops->quant_stats(x, xt, t, &want, stream));
                OK(gpu_ops->quant_stats(gx, xt, gt, g, gpu));
        }
        OK(gpu_ops->copy_out(&got, g, sizeof got, gpu));
        OK(gpu_ops->stream_sync(gpu));
        CU_ASSERT_EQUAL(got.elements, want.elements);
        CU_ASSERT_EQUAL(got.saturated, want.saturated);
        CU_ASSERT_EQUAL(got.flushed, want.flushed);
        CU_ASSERT(got.amax == want.amax || (got.amax > 0x7f800000 && want.amax > 0x7f800000)); /* some NaN */
        down(g);
}

TEST(quantised_forms) {
        static const int64_t shapes[][2] = { { 1, 1 }, { 3, 7 }, { 300, 520 }, { 256, 384 } };

        both_open();
        for (int k = 0; k < 4 * 4 * 2 * 2; k++) {
                static const enum qscaling scalings[] = { Q_1X128, Q_128X128, Q_TENSOR, Q_DELAYED };
                const int64_t rows = shapes[k % 4][0], cols = shapes[k % 4][1], n = rows * cols;
                float scale = 37.5f, amax = 0, *gscale = up(&scale, 4), *gamax = up(&amax, 4);
                uint64_t bad = UINT64_MAX, *gbad = up(&bad, 8);
                struct quant_spec q = { .scaling = scalings[k / 4 % 4], .dtype = k / 16 % 2 ? DT_E5M2 : DT_E4M3, .want_row = true, .want_col = true, .scale = &scale, .amax = &amax, .bad = &bad, .index = 9 }, gq = q;
                uint16_t *x = mixed_bf16(n, 0), *y = fresh((size_t)n * 2);
                struct qtensor want = qtensor_new(&q, rows, cols), got = up_parts(&q, &want);
                void *gx, *gy = up(y, (size_t)n * 2);

                gq.scale = gscale, gq.amax = gamax, gq.bad = gbad;
                if (k / 32) /* a huge value, and in the last shape a NaN */
                        x[n / 2] = k % 4 == 3 ? 0x7fc0 : 0x7f00;
                gx = up(x, (size_t)n * 2);
                OK(ops->quantize(x, DT_BF16, &q, &want, stream));
                OK(gpu_ops->quantize(gx, DT_BF16, &gq, &got, gpu));
                compare_parts("quantise", &q, &want, &got);
                compare("amax", &amax, gamax, DT_F32, 1, 0, 0);
                OK(ops->dequantize(&want, y, DT_BF16, stream));
                OK(gpu_ops->dequantize(&got, gy, DT_BF16, gpu));
                compare("dequantise", y, gy, DT_BF16, n, 0, 0);
                compare_stats(x, gx, DT_BF16, &want, &got);
                OK(ops->requantize_col(&want, &q, stream));
                OK(gpu_ops->requantize_col(&got, &gq, gpu));
                compare_parts("requantise", &q, &want, &got);
                xfree(x), xfree(y), down(gx), down(gy), down(gscale), down(gamax), down(gbad);
                qtensor_free(&want), down_parts(&got);
        }
        both_close();
}

/* RoPE's backward with its quantisers, and quantisers of several weights, beside the device's own operations one after another: the same bits. */
static void rope_quant_case(int32_t T, int64_t Hq, int64_t Hkv, int64_t D) {
        const struct quant_spec q = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_row = true, .want_col = true };
        const int64_t cols[3] = { Hq * D, Hkv * D, Hkv * D };
        struct doc_bounds docs = docs_new(T, 200), gdocs = docs;
        struct qtensor one[3], fused[3], host[3];
        uint16_t *x[3];
        void *gx[3];

        gdocs.pos = up(docs.pos, (size_t)T * 4);
        for (int i = 0; i < 3; i++) {
                x[i] = mixed_bf16(T * cols[i], 0);
                gx[i] = up(x[i], (size_t)(T * cols[i]) * 2);
                host[i] = qtensor_new(&q, T, cols[i]);
                memset(host[i].row_scale, 0, part_bytes(&q, T, cols[i], 1)), memset(host[i].col_scale, 0, part_bytes(&q, T, cols[i], 3));
                one[i] = up_parts(&q, &host[i]), fused[i] = up_parts(&q, &host[i]);
        }
        OK(gpu_ops->rope_quant_bwd((const void *[]){ gx[0], gx[1], gx[2] }, &gdocs, 10000, D, DT_BF16, (const struct quant_spec *[]){ &q, &q, &q },
                                   (struct qtensor *[]){ &fused[0], &fused[1], &fused[2] }, gpu));
        OK(gpu_ops->rope(gx[0], gx[1], &gdocs, 10000, Hq, Hkv, D, true, DT_BF16, gpu));
        for (int i = 0; i < 3; i++) {
                OK(gpu_ops->quantize(gx[i], DT_BF16, &q, &one[i], gpu));
                OK(gpu_ops->copy_out(host[i].row, one[i].row, (size_t)(T * cols[i]), gpu));
                OK(gpu_ops->copy_out(host[i].col, one[i].col, (size_t)(T * cols[i]), gpu));
                OK(gpu_ops->copy_out(host[i].row_scale, one[i].row_scale, part_bytes(&q, T, cols[i], 1), gpu));
                OK(gpu_ops->copy_out(host[i].col_scale, one[i].col_scale, part_bytes(&q, T, cols[i], 3), gpu));
                OK(gpu_ops->stream_sync(gpu));
                compare_parts("rotated back and quantised", &q, &host[i], &fused[i]);
                xfree(x[i]), down(gx[i]), down_parts(&one[i]), down_parts(&fused[i]), qtensor_free(&host[i]);
        }
        xfree((void *)(uintptr_t)docs.cu), xfree((void *)(uintptr_t)docs.pos), xfree((void *)(uintptr_t)docs.doc), down((void *)(uintptr_t)gdocs.pos);
}

TEST(rotated_back_and_quantised) {
        both_open();
        rope_quant_case(1, 1, 1, 32);
        rope_quant_case(300, 4, 2, 64);
        rope_quant_case(272, 5, 3, 128);
        rope_quant_case(1000, 6, 6, 32);
        both_close();
}

TEST(weights_quantised_together) {
        static const int64_t shapes[5][2] = { { 1, 1 }, { 300, 520 }, { 128, 128 }, { 3, 4000 }, { 257, 129 } };
        const struct quant_spec q = { .scaling = Q_128X128, .dtype = DT_E4M3, .want_row = true, .want_col = true }, *specs[5] = { &q, &q, &q, &q, &q };
        struct qtensor want[5], got[5], *out[5];
        uint16_t *x[5];
        void *gx[5];

        both_open();
        for (int i = 0; i < 5; i++) {
                x[i] = mixed_bf16(shapes[i][0] * shapes[i][1], i == 1 ? 977 : 0);
                gx[i] = up(x[i], (size_t)(shapes[i][0] * shapes[i][1]) * 2);
                want[i] = qtensor_new(&q, shapes[i][0], shapes[i][1]);
                got[i] = up_parts(&q, &want[i]);
                out[i] = &got[i];
                OK(ops->quantize(x[i], DT_BF16, &q, &want[i], stream));
        }
        OK(gpu_ops->quantize_many(5, (const void *const *)gx, DT_BF16, specs, out, gpu));
        for (int i = 0; i < 5; i++) {
                compare_parts("together", &q, &want[i], &got[i]);
                xfree(x[i]), down(gx[i]), qtensor_free(&want[i]), down_parts(&got[i]);
        }
        both_close();
}

TEST_MAIN("gpu-quantize")
