/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every operation of the loaded CUDA backend beside the CPU backend's, on the same random and edge inputs.  A comparison counts all elements that differ by more than it allows, prints the
 * first ones, and goes on.  Results lie in poisoned memory.  Skipped where the backend or a device is missing.
 */
#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/kernels/common.h"

static const struct dev_ops *gpu_ops;
static struct dev *gpu_dev;
static struct dev_stream *gpu;

static void both_open(void) {
        const struct dev_config c = { .kind = "cuda", .act = DT_BF16 };
        struct error e = { 0 };

        if (dev_ops_load("cuda", &gpu_ops, &e) < 0 || gpu_ops->open(&c, &gpu_dev, &e) < 0)
                TEST_SKIP_ALL(e.text);
        device_open(DT_BF16);
        CU_ASSERT_EQUAL_FATAL(gpu_ops->stream_new(gpu_dev, &gpu), 0);
}

static void both_close(void) {
        gpu_ops->stream_free(gpu);
        gpu_ops->close(gpu_dev);
        device_close();
}

static void *up(const void *host, size_t bytes) {
        struct error e = { 0 };
        void *p = NULL;

        ASSERT_OK(gpu_ops->alloc(gpu_dev, bytes + 256, &p, &e), e);
        CU_ASSERT_EQUAL_FATAL(gpu_ops->copy_in(p, host, bytes, gpu), 0);
        CU_ASSERT_EQUAL_FATAL(gpu_ops->stream_sync(gpu), 0);
        return p;
}

/* Poisoned, on the host and the device. */
static void *fresh(size_t bytes) {
        void *p = xalloc(bytes);

        memset(p, 0xff, bytes);
        return p;
}

static void down(void *p) {
        gpu_ops->free(gpu_dev, p);
}

static float at(const void *p, enum dtype t, int64_t i) {
        if (t == DT_BF16)
                return bf16_to_float(((const uint16_t *)p)[i]);
        if (t == DT_E4M3 || t == DT_E5M2)
                return (t == DT_E4M3 ? fp8_e4m3_table : fp8_e5m2_table)[((const uint8_t *)p)[i]];
        return ((const float *)p)[i];
}

/* Elements of the device's that are further than rel * |want| + abs from the host's. */
static void compare(const char *what, const void *want, const void *device, enum dtype t, int64_t n, double rel, double abs) {
        const size_t bytes = (size_t)n * dtype_size(t);
        void *got = malloc(bytes ? bytes : 1);
        double worst = 0;
        int64_t wrong = 0;

        CU_ASSERT_PTR_NOT_NULL_FATAL(got);
        CU_ASSERT_EQUAL_FATAL(gpu_ops->copy_out(got, device, bytes, gpu), 0);
        CU_ASSERT_EQUAL_FATAL(gpu_ops->stream_sync(gpu), 0);
        for (int64_t i = 0; i < n; i++) {
                const double w = (double)at(want, t, i), g = (double)at(got, t, i), d = fabs(g - w), limit = rel * fabs(w) + abs;
                const bool same = (isnan(w) && isnan(g)) || w == g;

                if (!same && isfinite(d))
                        worst = fmax(worst, limit > 0 ? d / limit : INFINITY);
                if (!same && !(d <= limit) && wrong++ < 4)
                        printf("    %s [%lld]: %.9g, expected %.9g +- %.3g\n", what, (long long)i, g, w, limit);
        }
        if (wrong || worst > 0)
                printf("    %s: %lld of %lld wrong, worst %.3g of the allowance\n", what, (long long)wrong, (long long)n, worst);
        CU_ASSERT_EQUAL(wrong, 0);
        free(got);
}

#define OK(call)                                                          \
        do {                                                              \
                int ok_ = (call);                                         \
                if (ok_ != 0)                                             \
                        printf("    line %d: %d from %.100s\n", __LINE__, ok_, #call); \
                CU_ASSERT_EQUAL(ok_, 0);                                  \
        } while (0)

static const uint32_t edges[] = { 0, 0x80000000u, 1, 0x007fffffu, 0x00800000u, 0x7f7fffffu, 0xff7fffffu, 0x7f800000u, 0xff800000u, 0x7fc00000u, 0x3f800000u, 0x42c80000u, 0xc2c80000u };

/* BF16, some of them edges. */
static uint16_t *mixed_bf16(int64_t n, int every) {
        uint16_t *p = xalloc((size_t)n * 2);

        for (int64_t i = 0; i < n; i++)
                p[i] = every && i % every == every - 1 ? (uint16_t)(edges[(size_t)(i / every) % (sizeof edges / sizeof *edges)] >> 16) : bf16_from_float((float)gauss());
        return p;
}

TEST(casts_and_sums) {
        static const int64_t sizes[] = { 1, 7, 1000, 4099 };

        both_open();
        for (size_t k = 0; k < 4; k++) {
                const int64_t n = sizes[k];
                dev_real *f = random_reals(n, 3), *f2;
                uint16_t *h = mixed_bf16(n, 5), *h2 = mixed_bf16(n, 0);
                void *gf, *gh = up(h, (size_t)n * 2), *gh2 = up(h2, (size_t)n * 2);

                for (int64_t i = 0; i < n; i += 3)
                        f[i] = from_bits(edges[(size_t)i % (sizeof edges / sizeof *edges)]);
                gf = up(f, (size_t)n * 4);
                for (enum dtype t = DT_BF16; t <= DT_E5M2; t++) {
                        void *want = fresh((size_t)n * 4), *got = up(want, (size_t)n * 4), *back = fresh((size_t)n * 4), *gback = up(back, (size_t)n * 4);

                        OK(ops->cast(want, t, f, DT_F32, n, stream));
                        OK(gpu_ops->cast(got, t, gf, DT_F32, n, gpu));
                        compare("cast from f32", want, got, t, n, 0, 0);
                        OK(ops->cast(back, DT_F32, want, t, n, stream));
                        OK(gpu_ops->cast(gback, DT_F32, got, t, n, gpu));
                        compare("cast to f32", back, gback, DT_F32, n, 0, 0);
                        xfree(want), xfree(back), down(got), down(gback);
                }
                OK(ops->add(h, h2, DT_BF16, n, stream));
                OK(gpu_ops->add(gh, gh2, DT_BF16, n, gpu));
                compare("add bf16", h, gh, DT_BF16, n, 0, 0);
                f2 = random_reals(n, 1);
                OK(ops->scale(f2, 0.37, n, stream));
                down(gf), gf = up(f2, (size_t)n * 4);
                OK(ops->scale(f2, -1.25, n, stream));
                OK(gpu_ops->scale(gf, -1.25, n, gpu));
                compare("scale", f2, gf, DT_F32, n, 0, 0);
                OK(ops->init_normal(f, 1, n, 3, 5, n + 9, 11, 0x1234567, 0.5, 0.02, stream));
                OK(gpu_ops->init_normal(gf, 1, n, 3, 5, n + 9, 11, 0x1234567, 0.5, 0.02, gpu));
                compare("init", f, gf, DT_F32, n, 1e-6, 1e-7);
                xfree(f), xfree(f2), xfree(h), xfree(h2), down(gf), down(gh), down(gh2);
        }
        both_close();
}

static void compare_parts(const char *what, const struct quant_spec *q, const struct qtensor *want, const struct qtensor *got) {
        size_t bytes[4];
        const int64_t n = want->rows * want->cols;
        char name[96];

        dev_qtensor_bytes(q, want->rows, want->cols, bytes);
        (void)snprintf(name, sizeof name, "%.40s scaling %d %s %lldx%lld", what, (int)q->scaling, dtype_name(q->dtype), (long long)want->rows, (long long)want->cols);
        if (q->want_row) {
                compare(name, want->row, got->row, q->dtype, n, 0, 0);
                compare(name, want->row_scale, got->row_scale, DT_F32, (int64_t)bytes[1] / 4, 0, 0);
        }
        if (q->want_col) {
                compare(name, want->col, got->col, q->dtype, n, 0, 0);
                compare(name, want->col_scale, got->col_scale, DT_F32, (int64_t)bytes[3] / 4, 0, 0);
        }
}

static struct qtensor up_parts(const struct quant_spec *q, const struct qtensor *t) {
        struct qtensor g = *t;
        size_t bytes[4];

        dev_qtensor_bytes(q, t->rows, t->cols, bytes);
        g.row = bytes[0] ? up(t->row, bytes[0]) : NULL;
        g.row_scale = bytes[1] ? up(t->row_scale, bytes[1]) : NULL;
        g.col = bytes[2] ? up(t->col, bytes[2]) : NULL;
        g.col_scale = bytes[3] ? up(t->col_scale, bytes[3]) : NULL;
        return g;
}

static void down_parts(struct qtensor *t) {
        down(t->row), down(t->row_scale), down(t->col), down(t->col_scale);
}

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

static size_t part_bytes(const struct quant_spec *q, int64_t rows, int64_t cols, int part) {
        size_t bytes[4];

        dev_qtensor_bytes(q, rows, cols, bytes);
        return bytes[part];
}

/* What the device has made, for the CPU's quantiser: from the same BF16 both make the same bytes. */
static void device_bf16(uint16_t *host, const void *device, int64_t n) {
        OK(gpu_ops->copy_out(host, device, (size_t)n * 2, gpu));
        OK(gpu_ops->stream_sync(gpu));
}

/* NaN where one is there. */
static float greatest(const uint16_t *x, int64_t n) {
        uint16_t most = 0;

        for (int64_t i = 0; i < n; i++)
                most = (x[i] & 0x7fff) > most ? x[i] & 0x7fff : most;
        return bf16_to_float(most);
}

/* Its values are within one rounding of the CPU's: the sigmoid is made by the special-function unit. */
TEST(swiglu) {
        static const int64_t shapes[][2] = { { 1, 16 }, { 5, 100 }, { 130, 384 } };

        both_open();
        for (int k = 0; k < 6; k++) {
                const int64_t T = shapes[k % 3][0], I = shapes[k % 3][1], n = T * I;
                const size_t bytes = (size_t)n * 2;
                const struct quant_spec q = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_row = true, .want_col = true };
                uint16_t *g = mixed_bf16(n, k < 3 ? 0 : 7), *u = mixed_bf16(n, k < 3 ? 0 : 11), *da = mixed_bf16(n, 0), *a = fresh(bytes), *dg = fresh(bytes), *du = fresh(bytes);
                void *gg = up(g, bytes), *gu = up(u, bytes), *gda = up(da, bytes), *ga = up(a, bytes), *gdg = up(dg, bytes), *gdu = up(du, bytes);
                struct qtensor w1 = qtensor_new(&q, T, I), w2 = qtensor_new(&q, T, I), g1 = up_parts(&q, &w1), g2 = up_parts(&q, &w2);

                OK(ops->swiglu_fwd(g, u, a, DT_BF16, T, I, stream));
                OK(gpu_ops->swiglu_fwd(gg, gu, ga, DT_BF16, T, I, gpu));
                compare("swiglu", a, ga, DT_BF16, n, 0x1p-7, 1e-35);
                device_bf16(a, ga, n);
                OK(ops->quantize(a, DT_BF16, &q, &w1, stream));
                OK(gpu_ops->swiglu_quant_fwd(gg, gu, NULL, DT_BF16, T, I, &q, &g1, gpu));
                compare_parts("swiglu quantised", &q, &w1, &g1);
                OK(ops->swiglu_bwd(g, u, da, DT_BF16, dg, du, DT_BF16, T, I, NULL, NULL, NULL, NULL, stream));
                OK(gpu_ops->swiglu_bwd(gg, gu, gda, DT_BF16, gdg, gdu, DT_BF16, T, I, &q, &g1, &q, &g2, gpu));
                compare("swiglu dg", dg, gdg, DT_BF16, n, 0x1p-7, 1e-5);
                compare("swiglu du", du, gdu, DT_BF16, n, 0x1p-7, 1e-35);
                device_bf16(dg, gdg, n);
                device_bf16(du, gdu, n);
                OK(ops->quantize(dg, DT_BF16, &q, &w1, stream));
                OK(ops->quantize(du, DT_BF16, &q, &w2, stream));
                compare_parts("swiglu dg quantised", &q, &w1, &g1);
                compare_parts("swiglu du quantised", &q, &w2, &g2);
                xfree(g), xfree(u), xfree(da), xfree(a), xfree(dg), xfree(du);
                down(gg), down(gu), down(gda), down(ga), down(gdg), down(gdu);
                qtensor_free(&w1), qtensor_free(&w2), down_parts(&g1), down_parts(&g2);
        }
        both_close();
}

/* The operations that keep SwiGLU's inputs in FP8 beside the device's own plain ones and the CPU's quantiser: the same bits. */
TEST(cached_swiglu) {
        static const int64_t shapes[][2] = { { 1, 16 }, { 5, 104 }, { 130, 384 }, { 272, 328 } };

        both_open();
        for (int k = 0; k < 8; k++) {
                const int64_t T = shapes[k % 4][0], I = shapes[k % 4][1], n = T * I;
                const size_t bytes = (size_t)n * 2;
                const struct quant_spec row = { .scaling = Q_1X128, .dtype = DT_E4M3, .pow2 = true, .want_row = true }, col = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_col = true };
                const struct quant_spec plain = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_row = true }, both = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_row = true, .want_col = true };
                uint16_t *g = mixed_bf16(n, k < 4 ? 0 : 7), *u = mixed_bf16(n, k < 4 ? 0 : 11), *da = mixed_bf16(n, 0), *a = fresh(bytes), *d = fresh(bytes), *e = fresh(bytes);
                void *gg = up(g, bytes), *gu = up(u, bytes), *gda = up(da, bytes), *ga = up(a, bytes), *gd = up(d, bytes), *ge = up(e, bytes);
                float seen[6] = { 0 }, *gseen = up(seen, sizeof seen);
                struct quant_spec noted[6] = { row, row, plain, col, both, both };
                struct qtensor gq = qtensor_new(&both, T, I), uq = qtensor_new(&both, T, I), aq = qtensor_new(&both, T, I), dg = qtensor_new(&both, T, I), du = qtensor_new(&both, T, I);
                struct qtensor ggq = up_parts(&both, &gq), guq = up_parts(&both, &uq), gaq = up_parts(&both, &aq), gdg = up_parts(&both, &dg), gdu = up_parts(&both, &du);

                OK(ops->quantize(g, DT_BF16, &row, &gq, stream));
                OK(ops->quantize(u, DT_BF16, &row, &uq, stream));
                for (int i = 0; i < 6; i++)
                        noted[i].amax = gseen + i;
                OK(gpu_ops->swiglu_fwd(gg, gu, ga, DT_BF16, T, I, gpu));
                device_bf16(a, ga, n);
                OK(ops->quantize(a, DT_BF16, &plain, &aq, stream));
                seen[0] = greatest(g, n), seen[1] = greatest(u, n), seen[2] = greatest(a, n);
                OK(gpu_ops->swiglu_cache_fwd(gg, gu, DT_BF16, &noted[0], &ggq, &noted[1], &guq, &noted[2], &gaq, gpu));
                compare_parts("cached g", &row, &gq, &ggq);
                compare_parts("cached u", &row, &uq, &guq);
                compare_parts("cached swiglu", &plain, &aq, &gaq);
                OK(gpu_ops->dequantize(&ggq, gg, DT_BF16, gpu));
                OK(gpu_ops->dequantize(&guq, gu, DT_BF16, gpu));
                OK(gpu_ops->swiglu_fwd(gg, gu, ga, DT_BF16, T, I, gpu));
                OK(gpu_ops->swiglu_bwd(gg, gu, gda, DT_BF16, gd, ge, DT_BF16, T, I, NULL, NULL, NULL, NULL, gpu));
                device_bf16(a, ga, n), device_bf16(d, gd, n), device_bf16(e, ge, n);
                OK(ops->quantize(a, DT_BF16, &col, &aq, stream));
                OK(ops->quantize(d, DT_BF16, &both, &dg, stream));
                OK(ops->quantize(e, DT_BF16, &both, &du, stream));
                seen[3] = greatest(a, n), seen[4] = greatest(d, n), seen[5] = greatest(e, n);
                OK(gpu_ops->swiglu_cached_bwd(&ggq, &guq, gda, DT_BF16, &noted[3], &gaq, &noted[4], &gdg, &noted[5], &gdu, gpu));
                compare("amaxes noted", seen, gseen, DT_F32, 6, 0, 0);
                compare_parts("swiglu again", &col, &aq, &gaq);
                compare_parts("cached dg", &both, &dg, &gdg);
                compare_parts("cached du", &both, &du, &gdu);
                xfree(g), xfree(u), xfree(da), xfree(a), xfree(d), xfree(e), down(gg), down(gu), down(gda), down(ga), down(gd), down(ge), down(gseen);
                qtensor_free(&gq), qtensor_free(&uq), qtensor_free(&aq), qtensor_free(&dg), qtensor_free(&du);
                down_parts(&ggq), down_parts(&guq), down_parts(&gaq), down_parts(&gdg), down_parts(&gdu);
        }
        both_close();
}

/* Norm and quantiser in one operation beside the device's own two. */
static void norm_quant_case(const void *gx, const dev_real *gw, int64_t T, int64_t H) {
        const struct quant_spec q = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_row = true, .want_col = true };
        uint16_t *y = fresh((size_t)(T * H) * 2), *x = xalloc((size_t)(T * H) * 2);
        void *gy = up(y, (size_t)(T * H) * 2), *rstd = up(y, (size_t)T * 4), *gx2;
        struct qtensor host = qtensor_new(&q, T, H), one, two;

        memset(host.row_scale, 0, part_bytes(&q, T, H, 1)), memset(host.col_scale, 0, part_bytes(&q, T, H, 3));
        one = up_parts(&q, &host), two = up_parts(&q, &host);
        OK(gpu_ops->copy_out(x, gx, (size_t)(T * H) * 2, gpu));
        OK(gpu_ops->stream_sync(gpu));
        gx2 = up(x, (size_t)(T * H) * 2);
        OK(gpu_ops->rmsnorm_fwd(gx2, gx2, NULL, gw, 1e-5, gy, rstd, DT_BF16, T, H, gpu));
        OK(gpu_ops->quantize(gy, DT_BF16, &q, &one, gpu));
        OK(gpu_ops->rmsnorm_quant_fwd(gx2, gx2, NULL, gw, 1e-5, NULL, rstd, DT_BF16, T, H, &q, &two, gpu));
        OK(gpu_ops->copy_out(host.row, one.row, (size_t)(T * H), gpu));
        OK(gpu_ops->copy_out(host.col, one.col, (size_t)(T * H), gpu));
        OK(gpu_ops->copy_out(host.row_scale, one.row_scale, part_bytes(&q, T, H, 1), gpu));
        OK(gpu_ops->copy_out(host.col_scale, one.col_scale, part_bytes(&q, T, H, 3), gpu));
        OK(gpu_ops->stream_sync(gpu));
        compare_parts("norm quantised", &q, &host, &two);
        xfree(y), xfree(x), down(gy), down(rstd), down(gx2), qtensor_free(&host), down_parts(&one), down_parts(&two);
}

TEST(norm) {
        static const int64_t shapes[][2] = { { 1, 16 }, { 5, 100 }, { 300, 768 }, { 9, 4096 } };

        both_open();
        for (int k = 0; k < 4; k++) {
                const int64_t T = shapes[k][0], H = shapes[k][1], n = T * H;
                const size_t bytes = (size_t)n * 2;
                uint16_t *x = mixed_bf16(n, 0), *d = mixed_bf16(n, 0), *y = fresh(bytes), *dy = mixed_bf16(n, 0), *dr = mixed_bf16(n, 0);
                dev_real *w = random_reals(H, 1), *rstd = fresh((size_t)T * 4), *dw = random_reals(H, 1);
                void *gx = up(x, bytes), *gd = up(d, bytes), *gy = up(y, bytes), *gdy = up(dy, bytes), *gdr = up(dr, bytes), *gw = up(w, (size_t)H * 4), *grstd = up(rstd, (size_t)T * 4),
                     *gdw = up(dw, (size_t)H * 4);

                OK(gpu_ops->rmsnorm_fwd(gy, gx, NULL, gw, 1e-5, NULL, grstd, DT_BF16, T, H, gpu));
                compare("norm residual of nothing added", x, gy, DT_BF16, n, 0, 0);
                OK(ops->rmsnorm_fwd(y, x, d, w, 1e-5, NULL, rstd, DT_BF16, T, H, stream));
                OK(gpu_ops->rmsnorm_fwd(gy, gx, gd, gw, 1e-5, NULL, grstd, DT_BF16, T, H, gpu));
                compare("norm residual elsewhere", y, gy, DT_BF16, n, 0, 0);
                OK(ops->rmsnorm_fwd(x, x, d, w, 1e-5, y, rstd, DT_BF16, T, H, stream));
                OK(gpu_ops->rmsnorm_fwd(gx, gx, gd, gw, 1e-5, gy, grstd, DT_BF16, T, H, gpu));
                compare("norm residual", x, gx, DT_BF16, n, 0, 0);
                compare("norm rstd", rstd, grstd, DT_F32, T, 1e-6, 0);
                compare("norm y", y, gy, DT_BF16, n, 0x1p-7, 0);
                OK(ops->rmsnorm_bwd(dr, dw, dy, DT_BF16, x, w, rstd, DT_BF16, T, H, stream));
                OK(gpu_ops->rmsnorm_bwd(gdr, gdw, gdy, DT_BF16, gx, gw, grstd, DT_BF16, T, H, gpu));
                compare("norm dresidual", dr, gdr, DT_BF16, n, 0x1p-7, 1e-4);
                compare("norm dw", dw, gdw, DT_F32, H, 1e-5, 1e-4);
                norm_quant_case(gx, gw, T, H);
                xfree(x), xfree(d), xfree(y), xfree(dy), xfree(dr), xfree(w), xfree(rstd), xfree(dw);
                down(gx), down(gd), down(gy), down(gdy), down(gdr), down(gw), down(grstd), down(gdw);
        }
        both_close();
}

/* Documents of uneven length, some of one token. */
/* Documents of 1 to longest tokens; longest < 0: all of -longest. */
static struct doc_bounds docs_new(int32_t T, int32_t longest) {
        int32_t *cu = xalloc((size_t)(T + 1) * 4), *pos = xalloc((size_t)T * 4), *doc = xalloc((size_t)T * 4), n = 0;

        for (int32_t t = 0, left = 0; t < T; t++, left--) {
                if (left == 0) {
                        cu[n++] = t;
                        left = longest < 0 ? -longest : (int32_t)rng_in(1, longest);
                }
                doc[t] = n - 1;
                pos[t] = t - cu[n - 1];
        }
        cu[n] = T;
        return (struct doc_bounds){ .cu = cu, .pos = pos, .doc = doc, .n = n, .tokens = T };
}

static struct doc_bounds docs_up(const struct doc_bounds *d) {
        return (struct doc_bounds){ .cu = up(d->cu, (size_t)(d->n + 1) * 4), .pos = up(d->pos, (size_t)d->tokens * 4), .doc = up(d->doc, (size_t)d->tokens * 4), .n = d->n, .tokens = d->tokens };
}

/* known: the backend is told the bounds of documents and may take another way, twice with the same bits. */
static void attention_case(int32_t T, int32_t longest, int64_t Hq, int64_t Hkv, int64_t D, bool known) {
        const int64_t nq = T * Hq * D, nk = T * Hkv * D;
        const size_t bq = (size_t)nq * 2, bk = (size_t)nk * 2;
        struct doc_bounds docs = docs_new(T, longest), gdocs = docs_up(&docs);
        uint16_t *q = mixed_bf16(nq, 0), *k = mixed_bf16(nk, 0), *v = mixed_bf16(nk, 0), *dout = mixed_bf16(nq, 0), *out = fresh(bq), *dq = fresh(bq), *dk = fresh(bk), *dv = fresh(bk);
        dev_real *lse = fresh((size_t)(T * Hq) * 4);
        void *gq = up(q, bq), *gk = up(k, bk), *gv = up(v, bk), *gdout = up(dout, bq), *gout = up(out, bq), *gdq = up(dq, bq), *gdk = up(dk, bk), *gdv = up(dv, bk), *glse = up(lse, (size_t)(T * Hq) * 4);
        const size_t room = gpu_ops->attention_workspace(T, Hq, Hkv, D);
        void *zero = xalloc(room), *work = up(zero, room);

        printf("  attention T %d documents %d heads %lld/%lld of %lld%s\n", T, docs.n, (long long)Hq, (long long)Hkv, (long long)D, known ? ", bounds known" : "");
        gdocs.host_cu = known ? docs.cu : NULL;
        OK(ops->rope(q, k, &docs, 10000, Hq, Hkv, D, false, DT_BF16, stream));
        OK(gpu_ops->rope(gq, gk, &gdocs, 10000, Hq, Hkv, D, false, DT_BF16, gpu));
        compare("rope q", q, gq, DT_BF16, nq, 0x1p-7, 1e-5);
        compare("rope k", k, gk, DT_BF16, nk, 0x1p-7, 1e-5);
        OK(ops->attention_fwd(q, k, v, &docs, out, lse, Hq, Hkv, D, DT_BF16, NULL, stream));
        OK(gpu_ops->copy_in(gq, q, bq, gpu));
        OK(gpu_ops->copy_in(gk, k, bk, gpu));
        OK(gpu_ops->attention_fwd(gq, gk, gv, &gdocs, gout, glse, Hq, Hkv, D, DT_BF16, work, gpu));
        compare("attention out", out, gout, DT_BF16, nq, 0x1p-6, 0.01);
        if (!known)
                compare("attention lse", lse, glse, DT_F32, T * Hq, 1e-5, 1e-4);
        OK(ops->attention_bwd(q, k, v, out, lse, dout, &docs, dq, dk, dv, Hq, Hkv, D, DT_BF16, NULL, stream));
        if (!known)
                OK(gpu_ops->copy_in(gout, out, bq, gpu));
        OK(gpu_ops->attention_bwd(gq, gk, gv, gout, glse, gdout, &gdocs, gdq, gdk, gdv, Hq, Hkv, D, DT_BF16, work, gpu));
        compare("attention dq", dq, gdq, DT_BF16, nq, 0x1p-5, 0.03);
        compare("attention dk", dk, gdk, DT_BF16, nk, 0x1p-5, 0.05);
        compare("attention dv", dv, gdv, DT_BF16, nk, 0x1p-5, 0.05);
        OK(gpu_ops->copy_out(dq, gdq, bq, gpu));
        OK(gpu_ops->copy_out(dk, gdk, bk, gpu));
        OK(gpu_ops->attention_bwd(gq, gk, gv, gout, glse, gdout, &gdocs, gdq, gdk, gdv, Hq, Hkv, D, DT_BF16, work, gpu));
        compare("attention dq again", dq, gdq, DT_BF16, nq, 0, 0);
        compare("attention dk again", dk, gdk, DT_BF16, nk, 0, 0);
        OK(ops->rope(dq, dk, &docs, 10000, Hq, Hkv, D, true, DT_BF16, stream));
        xfree((void *)(uintptr_t)docs.cu), xfree((void *)(uintptr_t)docs.pos), xfree((void *)(uintptr_t)docs.doc);
        down((void *)(uintptr_t)gdocs.cu), down((void *)(uintptr_t)gdocs.pos), down((void *)(uintptr_t)gdocs.doc);
        xfree(q), xfree(k), xfree(v), xfree(dout), xfree(out), xfree(dq), xfree(dk), xfree(dv), xfree(lse), xfree(zero);
        down(gq), down(gk), down(gv), down(gdout), down(gout), down(gdq), down(gdk), down(gdv), down(glse), down(work);
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

TEST(attention) {
        both_open();
        attention_case(1, 1, 1, 1, 64, false);
        attention_case(64, 64, 2, 2, 64, false);
        attention_case(130, 40, 4, 2, 16, false);
        attention_case(300, 300, 4, 1, 64, false);
        attention_case(517, 200, 2, 2, 128, false);
        attention_case(200, 3, 3, 3, 32, false);
        attention_case(190, 190, 2, 1, 96, false);
        attention_case(1024, -256, 2, 2, 128, true);
        attention_case(768, -768, 4, 1, 64, true);
        attention_case(600, -200, 2, 2, 128, true);
        attention_case(1500, 700, 2, 2, 128, true);
        attention_case(1100, 900, 4, 2, 64, true);
        attention_case(700, 20, 2, 2, 64, true);
        both_close();
}

TEST(embedding_and_loss) {
        static const int64_t shapes[][3] = { { 1, 16, 10 }, { 300, 72, 50 }, { 600, 256, 1000 } };

        both_open();
        for (int k = 0; k < 6; k++) {
                const int64_t T = shapes[k % 3][0], H = shapes[k % 3][1], V = shapes[k % 3][2], v0 = k < 3 ? 0 : V / 2;
                uint16_t *table = mixed_bf16(V * H, 0), *out = fresh((size_t)(T * H) * 2), *dl = fresh((size_t)(T * V) * 2);
                dev_real *dt = random_reals(V * H, 1), *logits = random_reals(T * V, 3), *max = fresh((size_t)T * 4), *sum = fresh((size_t)T * 4), *target = fresh((size_t)T * 4);
                int32_t *ids = xalloc((size_t)T * 4), *labels = xalloc((size_t)T * 4);
                float loss = 0.5f;
                void *gtable = up(table, (size_t)(V * H) * 2), *gout = up(out, (size_t)(T * H) * 2), *gdl = up(dl, (size_t)(T * V) * 2), *gdt = up(dt, (size_t)(V * H) * 4);
                void *glogits = up(logits, (size_t)(T * V) * 4), *gmax = up(max, (size_t)T * 4), *gsum = up(sum, (size_t)T * 4), *gtarget = up(target, (size_t)T * 4), *gloss = up(&loss, 4), *gids, *glabels;

                for (int64_t t = 0; t < T; t++) {
                        ids[t] = (int32_t)rng_in(0, t % 3 ? V + v0 - 1 : v0);
                        labels[t] = t % 5 == 4 ? -1 : (int32_t)rng_in(0, V + v0 - 1);
                }
                gids = up(ids, (size_t)T * 4), glabels = up(labels, (size_t)T * 4);
                OK(ops->embed_fwd(table, ids, out, DT_BF16, T, H, v0, V, stream));
                OK(gpu_ops->embed_fwd(gtable, gids, gout, DT_BF16, T, H, v0, V, gpu));
                compare("embed", out, gout, DT_BF16, T * H, 0, 0);
                OK(ops->embed_bwd(dt, ids, out, DT_BF16, T, H, v0, V, stream));
                OK(gpu_ops->embed_bwd(gdt, gids, gout, DT_BF16, T, H, v0, V, gpu));
                compare("embed gradient", dt, gdt, DT_F32, V * H, 0, 0);
                OK(ops->ce_max(logits, DT_F32, max, T, V, stream));
                OK(gpu_ops->ce_max(glogits, DT_F32, gmax, T, V, gpu));
                compare("ce max", max, gmax, DT_F32, T, 0, 0);
                OK(ops->ce_sum(logits, DT_F32, max, labels, sum, target, T, v0, V, stream));
                OK(gpu_ops->ce_sum(glogits, DT_F32, gmax, glabels, gsum, gtarget, T, v0, V, gpu));
                compare("ce sum", sum, gsum, DT_F32, T, 1e-6, 0);
                compare("ce target", target, gtarget, DT_F32, T, 0, 0);
                OK(ops->ce_bwd(logits, DT_F32, max, sum, target, labels, 0.125, &loss, dl, DT_BF16, T, v0, V, stream));
                OK(gpu_ops->ce_bwd(glogits, DT_F32, gmax, gsum, gtarget, glabels, 0.125, gloss, gdl, DT_BF16, T, v0, V, gpu));
                compare("loss", &loss, gloss, DT_F32, 1, 1e-6, 0);
                compare("ce gradient", dl, gdl, DT_BF16, T * V, 0x1p-7, 1e-9);
                if (v0 == 0 && V % 8 == 0) {
                        const float half = 0.5f;

                        OK(gpu_ops->copy_in(gloss, &half, 4, gpu));
                        OK(gpu_ops->zero(gdl, (size_t)(T * V) * 2, gpu));
                        OK(gpu_ops->cross_entropy(glogits, DT_F32, glabels, 0.125, gloss, gdl, DT_BF16, gmax, T, V, gpu));
                        compare("loss at once", &loss, gloss, DT_F32, 1, 1e-6, 0);
                        compare("ce gradient at once", dl, gdl, DT_BF16, T * V, 0x1p-7, 1e-8);
                }
                xfree(table), xfree(out), xfree(dl), xfree(dt), xfree(logits), xfree(max), xfree(sum), xfree(target), xfree(ids), xfree(labels);
                down(gtable), down(gout), down(gdl), down(gdt), down(glogits), down(gmax), down(gsum), down(gtarget), down(gloss), down(gids), down(glabels);
        }
        both_close();
}

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

/* n / 30 elements a tensor: 56 are taken in vectors, 55 are not. */
static void adamw_case(int64_t n, enum dtype moments, double beta2, uint64_t skip) {
        const int64_t size = (int64_t)dtype_size(moments);
        dev_real *w = random_reals(n, 1), *g = random_reals(n, 1e-3);
        void *m = xalloc((size_t)(n * size)), *v = xalloc((size_t)(n * size));
        uint16_t *p = fresh((size_t)n * 2);
        void *gw = up(w, (size_t)n * 4), *gg = up(g, (size_t)n * 4), *gm = up(m, (size_t)(n * size)), *gv = up(v, (size_t)(n * size)), *gp = up(p, (size_t)n * 2);
        const struct step_params sp = { .lr = 1e-3, .beta1 = 0.9, .beta2 = beta2, .eps = 1e-8, .bias1 = 0.1, .bias2 = 1 - beta2, .grad_scale = 0.7, .skip = skip, .rng = 77 };
        struct step_params *gsp = up(&sp, sizeof sp);
        struct adamw_tensor t[30], gt[30];

        for (int i = 0; i < 30; i++) {
                const int64_t first = n / 30 * i, count = i == 29 ? n - first : n / 30;

                t[i] = (struct adamw_tensor){ .master = w + first, .grad = g + first, .m = (char *)m + first * size, .v = (char *)v + first * size, .param = p + first, .count = count, .lr_scale = 1,
                                              .weight_decay = i % 2 ? 0.1 : 0, .name_hash = (uint64_t)i * 991, .row0 = 3, .col0 = 2, .cols = 11, .global_cols = 40 };
                gt[i] = t[i];
                gt[i].master = (float *)gw + first, gt[i].grad = (float *)gg + first, gt[i].m = (char *)gm + first * size, gt[i].v = (char *)gv + first * size, gt[i].param = (uint16_t *)gp + first;
        }
        for (int step = 0; step < 3; step++) {
                OK(ops->adamw(30, t, moments, DT_BF16, &sp, stream));
                OK(gpu_ops->adamw(30, gt, moments, DT_BF16, gsp, gpu));
        }
        compare("adamw master", w, gw, DT_F32, n, 0, 0);
        compare("adamw m", m, gm, moments, n, 0, 0);
        compare("adamw v", v, gv, moments, n, 0, 0);
        compare("adamw param", p, gp, DT_BF16, n, 0, 0);
        xfree(w), xfree(g), xfree(m), xfree(v), xfree(p), down(gw), down(gg), down(gm), down(gv), down(gp), down(gsp);
}

TEST(optimizer) {
        both_open();
        for (int64_t n = 30 * 55; n <= 30 * 56; n += 30) {
                adamw_case(n, DT_F32, 0.95, 0);
                adamw_case(n, DT_BF16, 0.95, 0);
                adamw_case(n, DT_BF16, 0.999, 0);
                adamw_case(n, DT_F32, 0.95, 1);
        }
        both_close();
}

TEST(gradient_statistics) {
        both_open();
        for (int k = 0; k < 3; k++) {
                const int64_t n = 100000;
                dev_real *g = random_reals(n, 1);
                const dev_real *list[70], *glist[70];
                int64_t counts[70];
                double factors[70], sum = 1, got = 0;
                uint64_t index[70], bad = UINT64_MAX, gbad = UINT64_MAX;
                void *gg, *gsum = up(&sum, 8), *gbadp = up(&bad, 8);

                if (k)
                        g[70000] = k == 1 ? NAN : INFINITY;
                if (k == 2)
                        g[3] = -INFINITY;
                gg = up(g, (size_t)n * 4);
                for (int i = 0; i < 70; i++) {
                        list[i] = g + i * 1400, glist[i] = (float *)gg + i * 1400;
                        counts[i] = i == 69 ? 3 : 1400 - i;
                        factors[i] = i % 7 == 3 ? 0 : 1 + i % 2;
                        index[i] = 1000 - (uint64_t)i;
                }
                OK(ops->grad_stats(70, list, counts, factors, index, &sum, &bad, stream));
                OK(gpu_ops->grad_stats(70, glist, counts, factors, index, gsum, gbadp, gpu));
                OK(gpu_ops->copy_out(&got, gsum, 8, gpu));
                OK(gpu_ops->copy_out(&gbad, gbadp, 8, gpu));
                OK(gpu_ops->stream_sync(gpu));
                printf("    sum of squares %.17g, expected %.17g; finding %llu, expected %llu\n", got, sum, (unsigned long long)gbad, (unsigned long long)bad);
                CU_ASSERT(fabs(got - sum) <= 1e-12 * fabs(sum) || (!isfinite(got) && !isfinite(sum)));
                CU_ASSERT_EQUAL(gbad, bad);
                xfree(g), down(gg), down(gsum), down(gbadp);
        }
        both_close();
}

TEST(amax_history) {
        both_open();
        for (int k = 0; k < 8; k++) {
                const int n = 5, len = k % 4 == 0 ? 1 : k % 4 == 1 ? 2 : 700;
                dev_real *h = random_reals(n * len, 1), *scale = random_reals(n, 1);
                const double max[5] = { 448, 57344, 448, 57344, 448 };
                const float amax[5] = { 1.5f, 0, NAN, INFINITY, 1e-38f };
                const uint64_t skip = k == 7;
                void *gh, *gscale, *gmax = up(max, sizeof max), *gamax = up(amax, sizeof amax), *gskip = up(&skip, 8);

                for (int i = 0; i < n * len; i++)
                        h[i] = fabsf(h[i]);
                gh = up(h, (size_t)(n * len) * 4), gscale = up(scale, (size_t)n * 4);
                OK(ops->amax_update(n, len, h, amax, scale, max, k / 4, k % 2, &skip, stream));
                OK(gpu_ops->amax_update(n, len, gh, gamax, gscale, gmax, k / 4, k % 2, gskip, gpu));
                compare("history", h, gh, DT_F32, n * len, 0, 0);
                compare("scale", scale, gscale, DT_F32, n, 0, 0);
                xfree(h), xfree(scale), down(gh), down(gscale), down(gmax), down(gamax), down(gskip);
        }
        both_close();
}

/* Replica memory as ranks have it: a shared mapping, kept in place; snapshots go there on a stream of their own while another computes. */
TEST(host_memory_kept_in_place_is_copied_beside_the_work) {
        const size_t bytes = (size_t)256 << 20, count = bytes / sizeof(float), rounds = 400;
        struct error e = { 0 };
        struct dev_stream *copies;
        float *want;
        int fd = memfd_create("gpu-ops", MFD_CLOEXEC);
        uint64_t began, asked, queued, copied, computed;
        void *host, *from, *busy;

        both_open();
        want = xalloc(bytes);
        CU_ASSERT_TRUE_FATAL(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
        host = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        CU_ASSERT_TRUE_FATAL(host != MAP_FAILED);
        for (size_t i = 0; i < count; i++)
                want[i] = (float)(i * 2654435761u % 1000003u);
        from = up(want, bytes);
        busy = up(want, bytes);
        CU_ASSERT_EQUAL_FATAL(gpu_ops->stream_new(gpu_dev, &copies), 0);
        ASSERT_OK(gpu_ops->host_pin(gpu_dev, host, bytes, &e), e);
        CU_ASSERT_TRUE(gpu_ops->host_pin(gpu_dev, host, bytes, &e) < 0); /* twice is an error, and the device is well after it */
        began = clock_mono_ns();
        for (size_t i = 0; i < rounds; i++)
                CU_ASSERT_EQUAL_FATAL(gpu_ops->scale(busy, 0.999, (int64_t)count, gpu), 0);
        asked = clock_mono_ns();
        CU_ASSERT_EQUAL(gpu_ops->copy_out(host, from, bytes, copies), 0);
        queued = clock_mono_ns();
        CU_ASSERT_EQUAL(gpu_ops->stream_sync(copies), 0);
        copied = clock_mono_ns();
        CU_ASSERT_EQUAL(gpu_ops->stream_sync(gpu), 0);
        computed = clock_mono_ns();
        printf("(asked for in %.2f ms, copied in %.2f ms, computed in %.2f ms) ", (double)(queued - asked) / 1e6, (double)(copied - asked) / 1e6, (double)(computed - began) / 1e6);
        CU_ASSERT_EQUAL(memcmp(host, want, bytes), 0);
        CU_ASSERT_TRUE(queued - asked < (copied - asked) / 2); /* the call does not wait for the copy, */
        CU_ASSERT_TRUE(copied < computed);                     /* nor the copy for what the other stream computes */
        CU_ASSERT_EQUAL(gpu_ops->host_unpin(gpu_dev, host), 0);
        CU_ASSERT_EQUAL(gpu_ops->copy_out(host, from, bytes, copies), 0); /* works as before */
        CU_ASSERT_EQUAL(gpu_ops->stream_sync(copies), 0);
        gpu_ops->stream_free(copies);
        down(from), down(busy);
        munmap(host, bytes);
        close(fd);
        xfree(want);
        both_close();
}

TEST_MAIN("gpu-ops")
