/* SPDX-License-Identifier: Apache-2.0 */
/* AdamW against a double implementation, gradient statistics, steps that must not count, the amax history, initialisation, and the small operations. */
#include <float.h>

#include "tests/kernels/common.h"

#define COUNT 3001

static struct step_params step_of(int t) {
        return (struct step_params){ .lr = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .bias1 = 1 - pow(0.9, t), .bias2 = 1 - pow(0.95, t), .grad_scale = 0.5,
                                     .rng = 0x1234567 + (uint64_t)t };
}

TEST(adamw_against_double) {
        double w[COUNT], m[COUNT] = { 0 }, v[COUNT] = { 0 }, worst = 0;
        dev_real *master, *grad, *rm, *rv;

        device_open(DT_F32);
        master = random_reals(COUNT, 1), grad = random_reals(COUNT, 1), rm = random_reals(COUNT, 0), rv = random_reals(COUNT, 0);
        for (int i = 0; i < COUNT; i++)
                w[i] = (double)master[i];
        for (int t = 1; t <= 20; t++) {
                const struct adamw_tensor a = { .master = master, .grad = grad, .m = rm, .v = rv, .count = COUNT, .lr_scale = 0.5, .weight_decay = 0.1 };
                const struct step_params p = step_of(t);

                for (int i = 0; i < COUNT; i++) {
                        const double g = (double)(grad[i] = (dev_real)(gauss() * exp2((double)(i % 40) - 30))) * 0.5;

                        m[i] = 0.9 * m[i] + 0.1 * g;
                        v[i] = 0.95 * v[i] + 0.05 * g * g;
                        w[i] -= 1e-2 * 0.5 * (m[i] / p.bias1 / (sqrt(v[i] / p.bias2) + 1e-8) + 0.1 * w[i]);
                }
                CU_ASSERT_EQUAL(ops->adamw(1, &a, DT_F32, DT_F32, &p, stream), 0);
        }
        for (int i = 0; i < COUNT; i++)
                worst = fmax(worst, fabs((double)master[i] - w[i]));
        CU_ASSERT_TRUE(worst < (sizeof(dev_real) == 8 ? 1e-13 : 2e-5));
        if (sizeof(dev_real) == 4)
                CU_ASSERT_TRUE(worst < 3e-6);
        xfree(master), xfree(grad), xfree(rm), xfree(rv);
        device_close();
}

TEST(skipped_step_changes_nothing) {
        device_open(DT_F32);
        for (int bf = 0; bf < (sizeof(dev_real) == 8 ? 1 : 2); bf++) {
                const enum dtype t = bf ? DT_BF16 : DT_F32;
                dev_real *master = random_reals(COUNT, 1), *grad = random_reals(COUNT, 1), *m = random_reals(COUNT, 1), *v = random_reals(COUNT, 1), *w = random_reals(COUNT, 1);
                const struct adamw_tensor a = { .master = master, .grad = grad, .m = m, .v = v, .param = w, .count = COUNT, .lr_scale = 1, .weight_decay = 0.1 };
                const size_t size = COUNT * sizeof(dev_real);
                dev_real *keep[4];
                struct step_params p = step_of(3);

                p.skip = 1;
                grad[5] = (dev_real)NAN;
                for (int i = 0; i < 4; i++) {
                        keep[i] = xalloc(size);
                        memcpy(keep[i], i == 0 ? master : i == 1 ? m : i == 2 ? v : w, size);
                }
                CU_ASSERT_EQUAL(ops->adamw(1, &a, t, t, &p, stream), 0);
                CU_ASSERT_TRUE(!memcmp(keep[0], master, size) && !memcmp(keep[1], m, size) && !memcmp(keep[2], v, size) && !memcmp(keep[3], w, size));
                p.skip = 0;
                grad[5] = 0;
                CU_ASSERT_EQUAL(ops->adamw(1, &a, t, t, &p, stream), 0);
                CU_ASSERT_TRUE(memcmp(keep[0], master, size) && memcmp(keep[1], m, size / 2) && memcmp(keep[2], v, size / 2) && memcmp(keep[3], w, size / 2));
                for (int i = 0; i < 4; i++)
                        xfree(keep[i]);
                xfree(master), xfree(grad), xfree(m), xfree(v), xfree(w);
        }
        device_close();
}

#ifndef FP8_FP64
#define GR 24
#define GC 40
/* Second moments [rows, cols] at (row0, col0) of a tensor [GR, GC] after one step from zero, rounded stochastically; they go where they stand in `to`. */
static void moments_of(int64_t row0, int64_t rows, int64_t col0, int64_t cols, const dev_real *grads, uint64_t name, uint64_t seed, uint16_t *to) {
        const int64_t n = rows * cols;
        dev_real *master = random_reals(n, 1), *grad = random_reals(n, 1);
        uint16_t *m = xalloc((size_t)n * 2), *v = xalloc((size_t)n * 2);
        const struct adamw_tensor a = { .master = master, .grad = grad, .m = m, .v = v, .count = n, .lr_scale = 1, .name_hash = name, .row0 = row0, .col0 = col0,
                                        .cols = cols, .global_cols = GC };
        struct step_params p = step_of(1);

        p.beta2 = 0.999;
        p.rng = seed;
        for (int64_t i = 0; i < n; i++)
                grad[i] = grads[(row0 + i / cols) * GC + col0 + i % cols];
        CU_ASSERT_EQUAL(ops->adamw(1, &a, DT_BF16, DT_BF16, &p, stream), 0);
        for (int64_t i = 0; i < n; i++)
                to[(row0 + i / cols) * GC + col0 + i % cols] = v[i];
        xfree(master), xfree(grad), xfree(m), xfree(v);
}

/* An element's random bits depend on its global place: however the tensor is cut over ranks; and differ from seed to seed, tensor to tensor, place to place. */
TEST(stochastic_rounding_does_not_know_the_layout) {
        uint16_t whole[GR * GC], cut[GR * GC], other[2][GR * GC];
        int64_t differ[2] = { 0 }, up = 0;
        dev_real *grads;

        device_open(DT_BF16);
        grads = random_reals(GR * GC, 1);
        for (int i = 0; i < GR * GC; i++)
                grads[i] = (dev_real)1.3; /* one value everywhere, halfway between two of BF16: what differs is rounding */
        moments_of(0, GR, 0, GC, grads, 77, 5, whole);
        moments_of(0, 8, 0, GC / 2, grads, 77, 5, cut); /* two columns of ranks, bands of rows */
        moments_of(8, GR - 8, 0, GC / 2, grads, 77, 5, cut);
        moments_of(0, GR, GC / 2, GC / 2, grads, 77, 5, cut);
        CU_ASSERT_EQUAL(memcmp(whole, cut, sizeof whole), 0);
        moments_of(0, GR, 0, GC, grads, 78, 5, other[0]);
        moments_of(0, GR, 0, GC, grads, 77, 5 + (UINT64_C(1) << 40), other[1]);
        for (int i = 1; i < GR * GC; i++) {
                up += whole[i] != whole[i - 1];
                for (int k = 0; k < 2; k++)
                        differ[k] += whole[i] != other[k][i];
        }
        CU_ASSERT_TRUE(up > GR * GC / 4);
        CU_ASSERT_TRUE(differ[0] > GR * GC / 20 && differ[1] > GR * GC / 20);
        xfree(grads);
        device_close();
}
#endif

TEST(grad_stats_names_the_first) {
        device_open(DT_F32);
        for (int v = 0; v < 3; v++) {
                const int64_t counts[] = { 1000, 17, 0, 5000 };
                const double factors[] = { 1, 0.5, 1, 0 };
                const uint64_t indices[] = { 40, 12, 3, 30 };
                const dev_real *grads[4];
                dev_real *g[4];
                uint64_t bad = UINT64_MAX;
                double sumsq = 2, want = 2, again = 2;

                for (int i = 0; i < 4; i++) {
                        grads[i] = g[i] = random_reals(counts[i] + 1, 1);
                        for (int64_t j = 0; j < counts[i]; j++)
                                want += factors[i] * (double)g[i][j] * (double)g[i][j];
                        g[i][counts[i]] = (dev_real)NAN; /* beyond the end: not looked at */
                }
                if (v)
                        g[0][999] = (dev_real)INFINITY;
                if (v == 2)
                        g[3][4096] = (dev_real)NAN;
                CU_ASSERT_EQUAL(ops->grad_stats(4, grads, counts, factors, indices, &sumsq, &bad, stream), 0);
                CU_ASSERT_EQUAL(bad, v == 0 ? UINT64_MAX : v == 1 ? 40 : 30);
                if (v == 0) {
                        CU_ASSERT_TRUE(fabs(sumsq - want) / want < 1e-13);
                        ops->grad_stats(4, grads, counts, factors, indices, &again, &bad, stream);
                        CU_ASSERT_EQUAL(memcmp(&again, &sumsq, sizeof again), 0);
                } else {
                        CU_ASSERT_FALSE(isfinite(sumsq));
                }
                for (int i = 0; i < 4; i++)
                        xfree(g[i]);
        }
        device_close();
}

TEST(amax_history) {
        dev_real history[2][4] = { { 0, 8, 1, 2 }, { 0, 0, 0, 0 } }, scale[2] = { 5, 7 }, amax[2] = { 4, 0 };
        const double max[2] = { 448, 57344 };
        uint64_t skip = 1;
        dev_real keep[2][4];

        device_open(DT_F32);
        memcpy(keep, history, sizeof keep);
        CU_ASSERT_EQUAL(ops->amax_update(2, 4, history[0], amax, scale, max, 1, 0, &skip, stream), 0);
        CU_ASSERT_TRUE(!memcmp(keep, history, sizeof keep) && scale[0] == 5 && scale[1] == 7);
        skip = 0;
        /* the maximum of the window, this step's amax included; nothing seen at all keeps the scale */
        CU_ASSERT_EQUAL(ops->amax_update(2, 4, history[0], amax, scale, max, 1, 0, &skip, stream), 0);
        CU_ASSERT_TRUE(scale[0] == 56 && scale[1] == 7);
        CU_ASSERT_TRUE(history[0][0] == 0 && history[0][1] == 1 && history[0][2] == 2 && history[0][3] == 4);
        /* 8 has left the window */
        amax[0] = 1;
        CU_ASSERT_EQUAL(ops->amax_update(2, 4, history[0], amax, scale, max, 1, 1, &skip, stream), 0);
        CU_ASSERT_EQUAL(scale[0], 448.0 / 4 / 2);
        /* most recent */
        CU_ASSERT_EQUAL(ops->amax_update(2, 4, history[0], amax, scale, max, 0, 0, &skip, stream), 0);
        CU_ASSERT_EQUAL(scale[0], 448);
        /* not finite: keeps the scale and leaves no trace in the history */
        amax[0] = (dev_real)NAN, amax[1] = (dev_real)INFINITY;
        CU_ASSERT_EQUAL(ops->amax_update(2, 4, history[0], amax, scale, max, 1, 0, &skip, stream), 0);
        CU_ASSERT_TRUE(scale[0] == 448 && scale[1] == 7);
        for (int i = 0; i < 4; i++)
                CU_ASSERT_TRUE(isfinite(history[0][i]) && isfinite(history[1][i]));
        /* a tiny maximum saturates the scale; a history of one is this step's amax alone */
        amax[0] = (dev_real)1e-40, amax[1] = 57344;
        CU_ASSERT_EQUAL(ops->amax_update(2, 1, history[0], amax, scale, max, 1, 0, NULL, stream), 0);
        CU_ASSERT_TRUE(scale[0] == (dev_real)FLT_MAX && scale[1] == 1);
        CU_ASSERT_EQUAL(ops->amax_update(2, 0, history[0], amax, scale, max, 1, 0, NULL, stream), -EINVAL);
        device_close();
}

TEST(init_does_not_depend_on_the_layout) {
        const int64_t R = 60, C = 50;
        dev_real *whole, *part;
        double mean = 0, var = 0, fourth = 0;
        int64_t errors = 0;

        device_open(DT_F32);
        whole = random_reals(R * C, 1), part = random_reals(R * C, 1);
        CU_ASSERT_EQUAL(ops->init_normal(whole, R, C, 0, 0, C, 7, 99, 1, 0.5, stream), 0);
        CU_ASSERT_EQUAL(ops->init_normal(part, 20, 13, 31, 37, C, 7, 99, 1, 0.5, stream), 0);
        for (int64_t r = 0; r < 20; r++)
                errors += memcmp(part + r * 13, whole + (31 + r) * C + 37, 13 * sizeof(dev_real)) != 0;
        CU_ASSERT_EQUAL(errors, 0);
        for (int64_t i = 0; i < R * C; i++) {
                const double z = ((double)whole[i] - 1) / 0.5;

                mean += z / (double)(R * C);
                var += z * z / (double)(R * C);
                fourth += z * z * z * z / (double)(R * C);
        }
        CU_ASSERT_TRUE(fabs(mean) < 0.08 && fabs(var - 1) < 0.12 && fabs(fourth - 3) < 0.8);
        /* another name, another seed: other numbers */
        CU_ASSERT_EQUAL(ops->init_normal(part, R, C, 0, 0, C, 7, 98, 1, 0.5, stream), 0);
        for (int64_t i = 0; i < R * C; i++)
                errors += part[i] == whole[i];
        CU_ASSERT_EQUAL(ops->init_normal(part, R, C, 0, 0, C, 8, 99, 1, 0.5, stream), 0);
        for (int64_t i = 0; i < R * C; i++)
                errors += part[i] == whole[i];
        CU_ASSERT_TRUE(errors < 3);
        CU_ASSERT_EQUAL(ops->init_normal(part, R, C, 0, 0, C, 8, 99, 1, 0, stream), 0);
        CU_ASSERT_TRUE(part[0] == 1 && part[R * C - 1] == 1);
        xfree(whole), xfree(part);
        device_close();
}

TEST(small_operations) {
        dev_real *a, *b, keep;

        device_open(DT_F32);
        a = random_reals(3000, 1), b = random_reals(3000, 1);
        keep = a[2999];
        CU_ASSERT_EQUAL(ops->add(a, b, DT_F32, 3000, stream), 0);
        CU_ASSERT_EQUAL(a[2999], keep + b[2999]);
        CU_ASSERT_EQUAL(ops->scale(a, 0.25, 3000, stream), 0);
        CU_ASSERT_EQUAL(a[2999], (keep + b[2999]) * (dev_real)0.25);
        CU_ASSERT_EQUAL(ops->copy(b, a, 3000 * sizeof(dev_real), stream), 0);
        CU_ASSERT_EQUAL(memcmp(a, b, 3000 * sizeof(dev_real)), 0);
        CU_ASSERT_EQUAL(ops->zero(b, 3000 * sizeof(dev_real), stream), 0);
        CU_ASSERT_TRUE(b[0] == 0 && b[2999] == 0);
        CU_ASSERT_EQUAL(ops->cast(a, DT_I32, b, DT_F32, 1, stream), -EOPNOTSUPP);
        CU_ASSERT_EQUAL(((uintptr_t)a | (uintptr_t)b) % 256, 0);
        xfree(a), xfree(b);
        device_close();
}

TEST(every_slot_is_filled) {
        const struct dev_ops *o = dev_ops_find("cpu");
        struct dev_ops empty = { .size = sizeof empty, .version = DEV_VERSION, .kind = "none" };

        for (size_t at = offsetof(struct dev_ops, open); at < sizeof *o; at += sizeof(void *)) {
                void *slot;

                memcpy(&slot, (const char *)o + at, sizeof slot);
                CU_ASSERT_PTR_NOT_NULL(slot);
        }
        CU_ASSERT_PTR_NULL(dev_ops_find("abacus"));
        CU_ASSERT_PTR_NULL(dev_ops_find(NULL));
        dev_ops_complete(&empty);
        CU_ASSERT_EQUAL(empty.gemm_fprop(NULL, NULL, NULL, DT_F32, NULL), -EOPNOTSUPP);
        CU_ASSERT_EQUAL(empty.host_pin(NULL, NULL, 0, NULL), -EOPNOTSUPP);
        CU_ASSERT_EQUAL(empty.host_unpin(NULL, NULL), -EOPNOTSUPP);
        CU_ASSERT_EQUAL(empty.amax_update(0, 0, NULL, NULL, NULL, NULL, 0, 0, NULL, NULL), -EOPNOTSUPP);
}

TEST(fingerprint_and_refusals) {
        struct dev_config c = { .kind = "cpu", .threads = -1, .act = DT_F32 };
        struct error e = { 0 };
        struct dev *d = NULL;

        ASSERT_ERROR(dev_ops_find("cpu")->open(&c, &d, &e), -EINVAL, e, "found -1 threads");
        c.threads = 1;
        c.act = DT_E4M3;
        ASSERT_ERROR(dev_ops_find("cpu")->open(&c, &d, &e), -EINVAL, e, "e4m3");
        CU_ASSERT_PTR_NULL(d);
        device_open(DT_F32);
        CU_ASSERT_PTR_EQUAL(strstr(ops->fingerprint(dev), "cpu/openblas-"), ops->fingerprint(dev));
        CU_ASSERT_PTR_NOT_NULL(strstr(ops->fingerprint(dev), sizeof(dev_real) == 8 ? "/t1/fp64" : "/t1/fp32"));
        device_close();
}

#ifdef FP8_FP64
TEST(narrow_types_are_refused) {
        struct quant_spec q = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_row = true };
        struct qtensor t = { .rows = 2, .cols = 2 };
        double x[4] = { 0 };

        device_open(DT_F32);
        CU_ASSERT_EQUAL(ops->quantize(x, DT_F32, &q, &t, stream), -EOPNOTSUPP);
        CU_ASSERT_EQUAL(ops->cast(x, DT_BF16, x, DT_F32, 1, stream), -EOPNOTSUPP);
        CU_ASSERT_EQUAL(ops->swiglu_fwd(x, x, x, DT_BF16, 1, 1, stream), -EINVAL);
        device_close();
}
#else
TEST(casts_between_carriers) {
        const enum dtype narrow[] = { DT_BF16, DT_E4M3, DT_E5M2, DT_F64 };
        float *x, *y;
        void *n;

        device_open(DT_BF16);
        x = random_reals(2500, 10), y = random_reals(2500, 1), n = xalloc(2500 * 8);
        for (int v = 0; v < 4; v++) {
                int64_t errors = 0;

                CU_ASSERT_EQUAL(ops->cast(n, narrow[v], x, DT_F32, 2500, stream), 0);
                CU_ASSERT_EQUAL(ops->cast(y, DT_F32, n, narrow[v], 2500, stream), 0);
                for (int i = 0; i < 2500; i++)
                        errors += y[i] != (v == 0 ? bf16_to_float(bf16_from_float(x[i])) : v == 1 ? fp8_e4m3_to_float(fp8_e4m3_from_float(x[i])) :
                                           v == 2 ? fp8_e5m2_to_float(fp8_e5m2_from_float(x[i])) : x[i]);
                CU_ASSERT_EQUAL(errors, 0);
        }
        xfree(x), xfree(y), xfree(n);
        device_close();
}

TEST(bf16_add_rounds_once) {
        uint16_t *a, *b, *sum;
        int64_t errors = 0;

        device_open(DT_BF16);
        a = random_bf16(10, 100, 1), b = random_bf16(10, 100, 1), sum = xalloc(2000);
        memcpy(sum, a, 2000);
        CU_ASSERT_EQUAL(ops->add(sum, b, DT_BF16, 1000, stream), 0);
        for (int i = 0; i < 1000; i++)
                errors += sum[i] != bf16_from_float(bf16_to_float(a[i]) + bf16_to_float(b[i]));
        CU_ASSERT_EQUAL(errors, 0);
        xfree(a), xfree(b), xfree(sum);
        device_close();
}

/*
 * With beta2 = 0.999 a constant gradient moves v by a thousandth of its distance to g^2, less than BF16 resolves: rounded to nearest, v would stop half-way. Stochastically it arrives.
 */
TEST(bf16_moments) {
        enum { N = 2000 };
        struct step_params p = { .lr = 0, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .bias1 = 1, .bias2 = 1, .grad_scale = 1 };
        float *master, *grad;
        uint16_t *m, *v, *w, *again;
        double mean = 0;

        device_open(DT_BF16);
        master = random_reals(N, 1), grad = random_reals(N, 0), m = random_bf16(1, N, 0), v = random_bf16(1, N, 0), w = xalloc(N * 2), again = xalloc(N * 2);
        for (int i = 0; i < N; i++)
                grad[i] = 1;
        for (int t = 1; t <= 3000; t++) {
                const struct adamw_tensor a = { .master = master, .grad = grad, .m = m, .v = v, .param = w, .count = N, .lr_scale = 1 };

                p.rng = (uint64_t)t;
                ops->adamw(1, &a, DT_BF16, DT_BF16, &p, stream);
        }
        for (int i = 0; i < N; i++) {
                mean += (double)bf16_to_float(v[i]) / N;
                CU_ASSERT_EQUAL_FATAL(w[i], bf16_from_float(master[i]));
        }
        CU_ASSERT_TRUE(fabs(mean - (1 - pow(0.999, 3000))) < 0.005);
        CU_ASSERT_TRUE(fabs((double)bf16_to_float(m[0]) - 1) < 0.05);
        /* the same seed gives the same bits, another one does not; beta2 = 0.95 rounds to nearest, whatever the seed */
        for (int k = 0; k < 4; k++) {
                const struct adamw_tensor a = { .master = master, .grad = grad, .m = m, .v = again, .count = N, .lr_scale = 1 };

                p.beta2 = k < 3 ? 0.999 : 0.95;
                p.rng = k == 1 ? 6 : 5;
                memcpy(again, v, N * 2);
                ops->adamw(1, &a, DT_BF16, DT_BF16, &p, stream);
                if (k == 0)
                        memcpy(w, again, N * 2);
                if (k < 3)
                        CU_ASSERT_EQUAL(memcmp(w, again, N * 2) == 0, k != 1);
                for (int i = 0; k == 3 && i < N; i++)
                        CU_ASSERT_EQUAL_FATAL(again[i], bf16_from_float(0.95f * bf16_to_float(v[i]) + (float)(1 - 0.95)));
        }
        xfree(master), xfree(grad), xfree(m), xfree(v), xfree(w), xfree(again);
        device_close();
}
#endif

TEST_MAIN("optimizer")
