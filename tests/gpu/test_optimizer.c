/* SPDX-License-Identifier: Apache-2.0 */
/* AdamW, the gradients' norm and finiteness, histories of amaxes. */
#include "tests/gpu/both.h"

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

TEST_MAIN("gpu-optimizer")
