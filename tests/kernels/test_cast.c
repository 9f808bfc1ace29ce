/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Casts against an implementation that shares nothing with theirs: the 256 values from the formats' definition, nearest by exact distances in double, ties to the even code.
 * In every run: all exponents, every tie and its neighbours, and some millions of random floats. With FP8_SLOW=1: all 2^32 floats, on all processors.
 */
#include <pthread.h>
#include <unistd.h>

#include "kernels/cpu/exp.h"
#include "tests/kernels/common.h"

struct format {
        const char *name;
        int mant, bias, codes; /* codes 0 .. codes - 1 are the finite magnitudes */
        uint8_t (*from)(float x);
        float (*to)(uint8_t q);
        void (*from_bulk)(uint8_t *q, const float *x, int64_t n);
        void (*to_bulk)(float *x, const uint8_t *q, int64_t n);
};

static const struct format formats[] = {
        { "e4m3", 3, 7, 0x7f, fp8_e4m3_from_float, fp8_e4m3_to_float, fp8_e4m3_from_floats, fp8_e4m3_to_floats },
        { "e5m2", 2, 15, 0x7c, fp8_e5m2_from_float, fp8_e5m2_to_float, fp8_e5m2_from_floats, fp8_e5m2_to_floats },
};

static double magnitudes[2][128];

__attribute__((constructor)) static void fill_magnitudes(void) {
        for (int i = 0; i < 2; i++)
                for (int c = 0; c < 128; c++) {
                        const int mant = formats[i].mant, bias = formats[i].bias, e = c >> mant, m = c & ((1 << mant) - 1);

                        magnitudes[i][c] = e == 0 ? ldexp(m, 1 - bias - mant) : ldexp((1 << mant) + m, e - bias - mant);
                }
}

static double magnitude(const struct format *f, int code) {
        return magnitudes[f - formats][code];
}

static uint8_t reference(const struct format *f, float x) {
        const double a = fabs((double)x);
        int best = 0;

        if (isnan(x))
                return 0x7f;
        for (int c = 1; c < f->codes; c++) {
                const double d = fabs(magnitude(f, c) - a), b = fabs(magnitude(f, best) - a);

                if (d < b || (d == b && (c & 1) == 0))
                        best = c;
        }
        /* Far above the largest value, distances are equal in double. */
        if (a >= magnitude(f, f->codes - 1))
                best = f->codes - 1;
        return (uint8_t)(best | (signbit(x) ? 0x80 : 0));
}

TEST(values_are_the_formats) {
        for (size_t i = 0; i < 2; i++) {
                const struct format *f = &formats[i];

                for (int c = 0; c < 256; c++) {
                        const float v = f->to((uint8_t)c);
                        const int mag = c & 0x7f;

                        if (mag < f->codes) {
                                CU_ASSERT_EQUAL((double)v, (c & 0x80 ? -1 : 1) * magnitude(f, mag));
                                CU_ASSERT_EQUAL(f->from(v), c);
                        } else if (f->mant == 2 && mag == 0x7c) {
                                CU_ASSERT_TRUE(isinf(v) && (v < 0) == (c >= 0x80));
                        } else {
                                CU_ASSERT_TRUE(isnan(v));
                        }
                }
        }
        CU_ASSERT_EQUAL(magnitude(&formats[0], 0x7e), 448);
        CU_ASSERT_EQUAL(magnitude(&formats[1], 0x7b), 57344);
        CU_ASSERT_EQUAL(memcmp(&fp8_e4m3_table[8], &(float){ 0x1p-6f }, 4), 0);
}

/* Compares n floats in both forms; counts what differs. */
static int64_t differing(const struct format *f, const float *x, int64_t n) {
        uint8_t q[256];
        int64_t bad = 0;

        f->from_bulk(q, x, n);
        for (int64_t i = 0; i < n; i++) {
                const uint8_t want = reference(f, x[i]), scalar = f->from(x[i]);

                if (q[i] == want && scalar == want)
                        continue;
                if (bad++ == 0)
                        printf("    %s(%a): found %02x and %02x, expected %02x\n", f->name, (double)x[i], q[i], scalar, want);
        }
        return bad;
}

TEST(ties_and_their_neighbours) {
        for (size_t i = 0; i < 2; i++) {
                const struct format *f = &formats[i];
                int64_t bad = 0;

                for (int c = 0; c < f->codes; c++) {
                        const float tie = (float)((magnitude(f, c) + (c + 1 < f->codes ? magnitude(f, c + 1) : 2 * magnitude(f, c) - magnitude(f, c - 1))) / 2);
                        const float v = (float)magnitude(f, c);
                        const float x[] = { tie, -tie, nextafterf(tie, 0), nextafterf(tie, INFINITY), -nextafterf(tie, 0), -nextafterf(tie, INFINITY),
                                            v, -v, nextafterf(v, 0), nextafterf(v, INFINITY) };

                        bad += differing(f, x, 10);
                }
                CU_ASSERT_EQUAL(bad, 0);
        }
}

TEST(every_exponent_and_random_bits) {
        for (size_t i = 0; i < 2; i++) {
                int64_t bad = 0;
                float x[256];

                for (uint32_t e = 0; e < 512; e++) {
                        for (uint32_t j = 0; j < 256; j++)
                                x[j] = from_bits(e << 23 | (j < 4 ? (j & 1) + (j & 2) * 0x3fffff : (uint32_t)rng() & 0x7fffff));
                        bad += differing(&formats[i], x, 256);
                }
                for (int round = 0; round < 4000; round++) {
                        for (int j = 0; j < 256; j++) /* mostly inside the format's range */
                                x[j] = j % 8 ? from_bits((uint32_t)rng_in(100, 145) << 23 | ((uint32_t)rng() & 0x807fffff)) : from_bits((uint32_t)rng());
                        bad += differing(&formats[i], x, 256);
                }
                CU_ASSERT_EQUAL(bad, 0);
        }
}

TEST(bulk_forms_agree_on_every_length) {
        float x[80], y[80];
        uint8_t q[80];
        uint16_t h[80];

        for (int64_t n = 0; n < 80; n++) {
                for (int64_t i = 0; i < 80; i++)
                        x[i] = from_bits((uint32_t)rng());
                memset(q, 0xa5, sizeof q);
                formats[n & 1].from_bulk(q, x, n);
                formats[n & 1].to_bulk(y, q, n);
                for (int64_t i = 0; i < n; i++) {
                        const float want = formats[n & 1].to(q[i]);

                        CU_ASSERT_EQUAL(q[i], formats[n & 1].from(x[i]));
                        CU_ASSERT_EQUAL(memcmp(&y[i], &want, 4), 0);
                }
                CU_ASSERT_EQUAL(q[n], 0xa5);
                bf16_from_floats(h, x, n);
                for (int64_t i = 0; i < n; i++)
                        CU_ASSERT_EQUAL(h[i], bf16_from_float(x[i]));
        }
}

/* Round to nearest even by distances to the two neighbours that share the upper 16 bits. */
static uint16_t bf16_reference(float x) {
        const uint32_t u = to_bits(x);
        const uint16_t down = (uint16_t)(u >> 16), up = (uint16_t)(down + 1);
        const double a = (double)from_bits((uint32_t)down << 16);
        double b = (double)from_bits((uint32_t)up << 16), da, db;

        if (isinf(x))
                return down;
        if (isinf(b)) /* rounding sees the exponent as unbounded */
                b = copysign(0x1p128, (double)x);
        da = fabs((double)x - a);
        db = fabs((double)x - b);
        return da < db || (da == db && !(down & 1)) ? down : up;
}

TEST(bf16) {
        for (uint32_t i = 0; i < 0x10000; i++) {
                const uint32_t low[] = { 0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, (uint32_t)rng() & 0xffff };

                for (size_t j = 0; j < 7; j++) {
                        const float x = from_bits(i << 16 | low[j]);
                        const uint16_t h = bf16_from_float(x);

                        CU_ASSERT_TRUE_FATAL(isnan(x) ? isnan(bf16_to_float(h)) && (h & 0x40) : h == bf16_reference(x));
                }
                CU_ASSERT_EQUAL_FATAL(to_bits(bf16_to_float((uint16_t)i)), i << 16);
        }
}

/* Error of cpu_exp in units of the last place of the true value. */
static double exp_error(float x) {
        const double want = exp((double)x), got = (double)cpu_exp(x);
        int e;

        if (isnan(x))
                return isnan(got) ? 0 : INFINITY;
        if (want >= 0x1.ffffffp127)
                return isinf(got) ? 0 : INFINITY;
        (void)frexp(want, &e);
        return fabs(got - want) / ldexp(1, e - 24 < -149 ? -149 : e - 24);
}

TEST(exp_within_two_ulp) {
        const float special[] = { 0, -0.0f, 88.72283f, 88.722839f, 89, 1e30f, INFINITY, -87.3f, -87.4f, -103.9f, -104.1f, -1e30f, -INFINITY, NAN, 0x1p-149f };
        double worst = 0;

        for (size_t i = 0; i < sizeof special / sizeof *special; i++)
                worst = fmax(worst, exp_error(special[i]));
        for (int i = 0; i < 4000000; i++)
                worst = fmax(worst, exp_error((float)(i < 3000000 ? uniform() * 194 - 105 : uniform() * 2 - 1)));
        printf("    worst error of exp: %.3f ulp\n", worst);
        CU_ASSERT_TRUE(worst < 2);
        CU_ASSERT_EQUAL(cpu_exp(0), 1);
        CU_ASSERT_EQUAL(cpu_exp(-INFINITY), 0);
}

/* ---- all 2^32 floats: both formats' boundaries are passed once in each thread's ascending range of magnitudes */

struct part {
        uint32_t from, to;
        int64_t bad;
        pthread_t thread;
};

static void part_run(struct part *p, const struct format *f) {
        float x[1024], minus[1024];
        uint8_t q[1024], qm[1024];
        double tie = -1; /* the boundary above code; none yet */
        int code = 0;

        for (uint64_t at = p->from; at < p->to; at += 1024) {
                for (uint32_t i = 0; i < 1024; i++) {
                        x[i] = from_bits((uint32_t)at + i);
                        minus[i] = from_bits((uint32_t)(at + i) | 0x80000000u);
                }
                f->from_bulk(q, x, 1024);
                f->from_bulk(qm, minus, 1024);
                for (int i = 0; i < 1024; i++) {
                        if (isnan(x[i])) {
                                p->bad += q[i] != 0x7f || qm[i] != 0x7f;
                                continue;
                        }
                        while (code < f->codes - 1) {
                                tie = (magnitude(f, code) + magnitude(f, code + 1)) / 2;
                                if ((double)x[i] < tie || ((double)x[i] == tie && !(code & 1)))
                                        break;
                                code++;
                        }
                        p->bad += q[i] != code || qm[i] != (code | 0x80);
                }
        }
}

static void *part_thread(void *arg) {
        for (size_t i = 0; i < 2; i++)
                part_run(arg, &formats[i]);
        return NULL;
}

TEST(all_floats) {
        struct part parts[64];
        long n = sysconf(_SC_NPROCESSORS_ONLN);
        const uint64_t all = UINT64_C(1) << 31, piece = 1u << 20;
        int64_t bad = 0;

        if (!getenv("FP8_SLOW")) {
                /* One piece of the same loop, around 1.0, so that the test's own code is run each time. */
                struct part p = { .from = 0x3f800000u, .to = 0x3f800000u + piece };

                part_thread(&p);
                CU_ASSERT_EQUAL(p.bad, 0);
                return;
        }
        n = n < 1 ? 1 : n > 64 ? 64 : n;
        for (long i = 0; i < n; i++) {
                parts[i] = (struct part){ .from = (uint32_t)(all * (uint64_t)i / (uint64_t)n / 1024 * 1024),
                                          .to = (uint32_t)(all * (uint64_t)(i + 1) / (uint64_t)n / 1024 * 1024) };
                CU_ASSERT_EQUAL_FATAL(pthread_create(&parts[i].thread, NULL, part_thread, &parts[i]), 0);
        }
        for (long i = 0; i < n; i++) {
                pthread_join(parts[i].thread, NULL);
                bad += parts[i].bad;
        }
        CU_ASSERT_EQUAL(bad, 0);
}

TEST_MAIN("cast")
