/* SPDX-License-Identifier: Apache-2.0 */
/* Quantisers, bitwise against a scalar implementation that takes the rules one element at a time. */
#include <float.h>

#include "tests/kernels/common.h"

struct want {
        float scale; /* quantisation */
        float inverse;
        bool bad;
};

/* The rule of a group, from its amax as a value. */
static struct want group_rule(double amax, bool any_bad, float fp8_max, bool pow2) {
        struct want w = { 1, 1, any_bad };

        if (any_bad) {
                w.scale = w.inverse = NAN;
        } else if (amax > 0) {
                w.scale = fp8_max / (float)amax;
                if (w.scale > FLT_MAX)
                        w.scale = FLT_MAX;
                if (pow2)
                        w.scale = from_bits(to_bits(w.scale) & 0xff800000u);
                w.inverse = 1.0f / w.scale;
        }
        return w;
}

struct matrix {
        enum dtype t;
        const void *p;
        int64_t rows, cols;
        bool transposed;
};

static float at(const struct matrix *m, int64_t r, int64_t c) {
        const int64_t i = m->transposed ? c * m->rows + r : r * m->cols + c;

        return m->t == DT_BF16 ? bf16_to_float(((const uint16_t *)m->p)[i]) : ((const float *)m->p)[i];
}

static struct want rule_over(const struct matrix *m, int64_t r0, int64_t r1, int64_t c0, int64_t c1, const struct quant_spec *q) {
        double amax = 0;
        bool bad = false;

        for (int64_t r = r0; r < r1; r++)
                for (int64_t c = c0; c < c1; c++) {
                        bad |= !isfinite(at(m, r, c));
                        amax = fmax(amax, fabs((double)at(m, r, c)));
                }
        return group_rule(amax, bad, q->dtype == DT_E5M2 ? FP8_E5M2_MAX : FP8_E4M3_MAX, q->pow2);
}

static uint8_t cast_ref(float x, enum dtype t) {
        return t == DT_E5M2 ? fp8_e5m2_from_float(x) : fp8_e4m3_from_float(x);
}

static int64_t imin(int64_t a, int64_t b) {
        return a < b ? a : b;
}

static bool same(float a, float b) {
        return (isnan(a) && isnan(b)) || to_bits(a) == to_bits(b);
}

/* Errors of one orientation: `m` read as [rows, cols] with groups of gr x gc; bytes [rows, cols], scale of group (i, j) at index(i, j). */
static int64_t check_form(const struct matrix *m, const struct quant_spec *q, const uint8_t *bytes, const float *scale, int64_t gr, int64_t gc, int64_t si, int64_t sj) {
        int64_t errors = 0;

        for (int64_t i = 0; i * gr < m->rows; i++)
                for (int64_t j = 0; j * gc < m->cols; j++) {
                        const int64_t r1 = imin(m->rows, (i + 1) * gr), c1 = imin(m->cols, (j + 1) * gc);
                        const struct want w = rule_over(m, i * gr, r1, j * gc, c1, q);

                        errors += !same(scale[i * si + j * sj], w.inverse);
                        for (int64_t r = i * gr; r < r1; r++)
                                for (int64_t c = j * gc; c < c1; c++)
                                        errors += bytes[r * m->cols + c] != cast_ref(at(m, r, c) * w.scale, q->dtype);
                }
        return errors;
}

static int64_t pad4(int64_t n) {
        return (n + 3) / 4 * 4;
}

static int64_t blocks(int64_t n) {
        return (n + 127) / 128;
}

static int64_t check(const void *x, enum dtype xt, int64_t rows, int64_t cols, const struct quant_spec *q) {
        const struct matrix m = { xt, x, rows, cols, false }, mt = { xt, x, cols, rows, true };
        struct qtensor t = qtensor_new(q, rows, cols);
        int64_t errors = 0;

        CU_ASSERT_EQUAL_FATAL(ops->quantize(x, xt, q, &t, stream), 0);
        CU_ASSERT_TRUE(t.scaling == q->scaling && t.dtype == q->dtype);
        if (q->scaling == Q_1X128) {
                errors += q->want_row ? check_form(&m, q, t.row, t.row_scale, 1, 128, 1, pad4(rows)) : 0;
                errors += q->want_col ? check_form(&mt, q, t.col, t.col_scale, 1, 128, 1, pad4(cols)) : 0;
        } else if (q->scaling == Q_128X128) {
                errors += q->want_row ? check_form(&m, q, t.row, t.row_scale, 128, 128, pad4(blocks(cols)), 1) : 0;
                errors += q->want_col ? check_form(&mt, q, t.col, t.col_scale, 128, 128, pad4(blocks(rows)), 1) : 0;
        } else {
                errors += q->want_row ? check_form(&m, q, t.row, t.row_scale, rows, cols, 0, 0) : 0;
                errors += q->want_col ? check_form(&mt, q, t.col, t.col_scale, cols, rows, 0, 0) : 0;
        }
        qtensor_free(&t);
        return errors;
}

TEST(ragged_shapes_bitwise) {
        const int64_t shapes[][2] = { { 1, 1 }, { 1, 128 }, { 128, 1 }, { 3, 130 }, { 128, 128 }, { 129, 127 }, { 200, 384 }, { 257, 300 }, { 16, 16 }, { 17, 31 }, { 512, 128 } };
        const enum qscaling scalings[] = { Q_1X128, Q_128X128, Q_TENSOR };

        device_open(DT_BF16);
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
                for (int v = 0; v < 36; v++) {
                        const struct quant_spec q = { .scaling = scalings[v % 3], .dtype = v / 3 % 2 ? DT_E5M2 : DT_E4M3, .pow2 = v / 6 % 2, .want_row = v / 12 != 1,
                                                      .want_col = v / 12 != 2 };
                        uint16_t *x = random_bf16(shapes[i][0], shapes[i][1], 0.02);
                        float *f = random_reals(shapes[i][0] * shapes[i][1], 1e-7);

                        CU_ASSERT_EQUAL(check(x, DT_BF16, shapes[i][0], shapes[i][1], &q), 0);
                        CU_ASSERT_EQUAL(check(f, DT_F32, shapes[i][0], shapes[i][1], &q), 0);
                        xfree(x);
                        xfree(f);
                }
        device_close();
}

TEST(zero_denormal_and_huge_groups) {
        const float values[] = { 0, -0.0f, 0x1p-149f, 0x1p-130f, 0x1p-126f, 1e-9f, FLT_MAX, 448, 449, 57344, 1e30f };

        device_open(DT_BF16);
        for (size_t i = 0; i < sizeof values / sizeof *values; i++)
                for (int v = 0; v < 12; v++) {
                        const enum qscaling scalings[] = { Q_1X128, Q_128X128, Q_TENSOR };
                        const struct quant_spec q = { .scaling = scalings[v % 3], .dtype = v / 3 % 2 ? DT_E5M2 : DT_E4M3, .pow2 = v / 6, .want_row = true, .want_col = true };
                        float *x = xalloc(4 * 150 * 140);

                        for (int k = 0; k < 150 * 140; k++)
                                x[k] = k % 3 ? (float)(values[i] * (float)uniform()) : values[i];
                        CU_ASSERT_EQUAL(check(x, DT_F32, 150, 140, &q), 0);
                        xfree(x);
                }
        device_close();
}

TEST(not_finite_is_flagged_and_spreads) {
        const float poison[] = { NAN, -NAN, INFINITY, -INFINITY };

        device_open(DT_BF16);
        for (int v = 0; v < 24; v++) {
                const enum qscaling scalings[] = { Q_1X128, Q_128X128, Q_TENSOR };
                uint64_t bad = v & 1 ? UINT64_MAX : 3;
                float amax = 2;
                const struct quant_spec q = { .scaling = scalings[v % 3], .dtype = DT_E4M3, .pow2 = v / 12, .want_row = true, .want_col = true, .bad = &bad, .amax = &amax,
                                              .index = 7 };
                uint16_t *x = random_bf16(200, 260, 1);
                struct qtensor t = qtensor_new(&q, 200, 260);
                int64_t finite = 0;

                x[131 * 260 + 200] = bf16_from_float(poison[v / 3 % 4]);
                CU_ASSERT_EQUAL(ops->quantize(x, DT_BF16, &q, &t, stream), 0);
                /* the first offender stays */
                CU_ASSERT_EQUAL(bad, v & 1 ? 7 : 3);
                CU_ASSERT_FALSE(isfinite(amax));
                /* every element of its group is NaN in both forms, and nothing outside the group */
                for (int64_t r = 0; r < 200; r++)
                        for (int64_t c = 0; c < 260; c++) {
                                const bool block = r / 128 == 1 && c / 128 == 1, all = q.scaling == Q_TENSOR;
                                const bool in_row = all || (block && (q.scaling == Q_128X128 || r == 131)), in_col = all || (block && (q.scaling == Q_128X128 || c == 200));

                                finite += isnan(row_value(&t, r, c)) != in_row;
                                finite += isnan(col_value(&t, r, c)) != in_col;
                        }
                CU_ASSERT_EQUAL(finite, 0);
                CU_ASSERT_EQUAL(check(x, DT_BF16, 200, 260, &q), 0);
                qtensor_free(&t);
                xfree(x);
        }
        device_close();
}

TEST(delayed_uses_the_given_scale) {
        float scale = 3.0f, amax = 0;
        uint64_t bad = UINT64_MAX;
        const struct quant_spec q = { .scaling = Q_DELAYED, .dtype = DT_E5M2, .want_row = true, .want_col = true, .scale = &scale, .amax = &amax, .bad = &bad, .index = 1 };
        struct qtensor t;
        uint16_t *x;
        float want = 0;

        device_open(DT_BF16);
        x = random_bf16(130, 70, 30000);
        t = qtensor_new(&q, 130, 70);
        CU_ASSERT_EQUAL(ops->quantize(x, DT_BF16, &q, &t, stream), 0);
        for (int i = 0; i < 130 * 70; i++) {
                const float v = bf16_to_float(x[i]);

                want = fmaxf(want, fabsf(v));
                CU_ASSERT_EQUAL_FATAL(((uint8_t *)t.row)[i], fp8_e5m2_from_float(v * 3.0f));
                CU_ASSERT_EQUAL_FATAL(((uint8_t *)t.col)[(i % 70) * 130 + i / 70], ((uint8_t *)t.row)[i]);
        }
        CU_ASSERT_TRUE(same(amax, want) && same(t.row_scale[0], 1.0f / 3.0f) && same(t.col_scale[0], 1.0f / 3.0f) && bad == UINT64_MAX);
        /* a smaller tensor leaves the maximum, an infinite one spoils scale and flag */
        amax = 1e30f;
        CU_ASSERT_EQUAL(ops->quantize(x, DT_BF16, &q, &t, stream), 0);
        CU_ASSERT_EQUAL(amax, 1e30f);
        x[77] = 0x7f80;
        CU_ASSERT_EQUAL(ops->quantize(x, DT_BF16, &q, &t, stream), 0);
        CU_ASSERT_TRUE(isnan(t.row_scale[0]) && isnan(t.col_scale[0]) && isinf(amax) && bad == 1);
        qtensor_free(&t);
        xfree(x);
        device_close();
}

TEST(requantized_columns) {
        device_open(DT_BF16);
        for (int v = 0; v < 8; v++) {
                const enum qscaling scalings[] = { Q_1X128, Q_128X128, Q_TENSOR, Q_1X128 };
                const struct quant_spec q = { .scaling = scalings[v % 4], .dtype = v / 4 ? DT_E5M2 : DT_E4M3, .pow2 = v % 4 == 3, .want_row = true, .want_col = true };
                uint16_t *x = random_bf16(300, 200, 1);
                struct qtensor t = qtensor_new(&q, 300, 200);
                float *deq = xalloc(300 * 200 * 4);
                struct matrix mt = { DT_F32, deq, 200, 300, true };
                uint8_t *col = malloc(300 * 200);

                CU_ASSERT_EQUAL(ops->quantize(x, DT_BF16, &q, &t, stream), 0);
                memcpy(col, t.col, 300 * 200);
                memset(t.col, 0xff, 300 * 200);
                CU_ASSERT_EQUAL(ops->requantize_col(&t, &q, stream), 0);
                if (q.scaling == Q_1X128) {
                        /* equal to quantising the dequantised row form, transposed */
                        CU_ASSERT_EQUAL(ops->dequantize(&t, deq, DT_F32, stream), 0);
                        CU_ASSERT_EQUAL(check_form(&mt, &q, t.col, t.col_scale, 1, 128, 1, pad4(200)), 0);
                } else {
                        CU_ASSERT_EQUAL(memcmp(col, t.col, 300 * 200), 0);
                }
                free(col);
                xfree(deq);
                qtensor_free(&t);
                xfree(x);
        }
        device_close();
}

TEST(dequantize_rounds_once) {
        device_open(DT_BF16);
        for (int v = 0; v < 3; v++) {
                const enum qscaling scalings[] = { Q_1X128, Q_128X128, Q_TENSOR };
                const struct quant_spec q = { .scaling = scalings[v], .dtype = DT_E4M3, .want_row = true };
                uint16_t *x = random_bf16(150, 300, 1), *y = xalloc(150 * 300 * 2);
                struct qtensor t = qtensor_new(&q, 150, 300);
                int64_t errors = 0;

                CU_ASSERT_EQUAL(ops->quantize(x, DT_BF16, &q, &t, stream), 0);
                CU_ASSERT_EQUAL(ops->dequantize(&t, y, DT_BF16, stream), 0);
                for (int64_t i = 0; i < 150 * 300; i++)
                        errors += y[i] != bf16_from_float((float)row_value(&t, i / 300, i % 300));
                CU_ASSERT_EQUAL(errors, 0);
                qtensor_free(&t);
                xfree(x);
                xfree(y);
        }
        device_close();
}

/* Scale 4: beyond 116 E4M3 clips, below 2^-12 it flushes (2^-10 is half of its least value; ties go to zero). */
TEST(what_became_of_the_values) {
        const struct { float x; bool saturated, flushed; } cases[] = {
                { 0, 0, 0 }, { -0.0f, 0, 0 }, { 1, 0, 0 }, { 112, 0, 0 }, { -116, 0, 0 }, { 116.5f, 1, 0 }, { -1000, 1, 0 }, { 0x1p-12f, 0, 1 }, { -0x1p-12f, 0, 1 }, { 0x1.02p-12f, 0, 0 }, { 0x1p-30f, 0, 1 },
        };
        enum { N = sizeof cases / sizeof *cases };
        dev_real scale = 4;
        const struct quant_spec q = { .scaling = Q_DELAYED, .dtype = DT_E4M3, .want_row = true, .scale = &scale };
        struct quant_stats all = { 0 };

        device_open(DT_BF16);
        for (int i = 0; i < N; i++) {
                struct qtensor t = qtensor_new(&q, 1, 1);
                struct quant_stats one = { 0 };

                CU_ASSERT_EQUAL(ops->quantize(&cases[i].x, DT_F32, &q, &t, stream), 0);
                CU_ASSERT_EQUAL(ops->quant_stats(&cases[i].x, DT_F32, &t, &one, stream), 0);
                CU_ASSERT_EQUAL(ops->quant_stats(&cases[i].x, DT_F32, &t, &all, stream), 0);
                CU_ASSERT_EQUAL(one.elements, 1);
                CU_ASSERT_EQUAL(one.saturated, cases[i].saturated);
                CU_ASSERT_EQUAL(one.flushed, cases[i].flushed);
                CU_ASSERT_EQUAL(one.amax, to_bits(fabsf(cases[i].x)));
                qtensor_free(&t);
        }
        CU_ASSERT_EQUAL(all.elements, N);
        CU_ASSERT_EQUAL(all.saturated, 2);
        CU_ASSERT_EQUAL(all.flushed, 3);
        CU_ASSERT_EQUAL(all.amax, to_bits(1000));
        device_close();
}

/* Scales made from the values themselves clip nothing, whatever their rounding; what is lost is counted element by element, and a NaN is the amax. */
TEST(what_became_of_blocks) {
        device_open(DT_BF16);
        for (int v = 0; v < 3 * 2; v++) {
                const enum qscaling scalings[] = { Q_1X128, Q_128X128, Q_TENSOR };
                const struct quant_spec q = { .scaling = scalings[v / 2], .dtype = v % 2 ? DT_E5M2 : DT_E4M3, .want_row = true };
                uint16_t *x = random_bf16(150, 300, 1);
                struct qtensor t = qtensor_new(&q, 150, 300);
                struct quant_stats s = { 0 };
                uint64_t lost = 0;

                for (int64_t i = 0; i < 150 * 300; i += 3) /* small beside their neighbours */
                        x[i] = bf16_from_float((float)(gauss() * 0x1p-16));
                CU_ASSERT_EQUAL(ops->quantize(x, DT_BF16, &q, &t, stream), 0);
                CU_ASSERT_EQUAL(ops->quant_stats(x, DT_BF16, &t, &s, stream), 0);
                for (int64_t i = 0; i < 150 * 300; i++)
                        lost += x[i] & 0x7fff && row_value(&t, i / 300, i % 300) == 0;
                CU_ASSERT_EQUAL(s.elements, 150 * 300);
                CU_ASSERT_EQUAL(s.saturated, 0);
                CU_ASSERT_EQUAL(s.flushed, lost);
                CU_ASSERT(v % 2 || lost > 0);
                x[77] = 0x7fc0;
                CU_ASSERT_EQUAL(ops->quantize(x, DT_BF16, &q, &t, stream), 0);
                CU_ASSERT_EQUAL(ops->quant_stats(x, DT_BF16, &t, &s, stream), 0);
                CU_ASSERT(s.amax > 0x7f800000 && s.saturated == 0);
                CU_ASSERT_EQUAL(ops->quant_stats(x, DT_F16, &t, &s, stream), -EINVAL);
                qtensor_free(&t);
                xfree(x);
        }
        device_close();
}

TEST(bytes_and_bounds) {
        const struct quant_spec block = { .scaling = Q_128X128, .dtype = DT_E4M3, .want_row = true, .want_col = true };
        const struct quant_spec rows = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_row = true };
        const struct quant_spec none = { .scaling = Q_NONE };
        struct qtensor t = { .rows = 4, .cols = 4 };
        uint16_t x[16] = { 0 };
        size_t b[4];

        device_open(DT_BF16);
        dev_qtensor_bytes(&block, 300, 600, b);
        CU_ASSERT_TRUE(b[0] == 180000 && b[1] == 3 * 8 * 4 && b[2] == 180000 && b[3] == 5 * 4 * 4);
        dev_qtensor_bytes(&rows, 301, 600, b);
        CU_ASSERT_TRUE(b[0] == 180600 && b[1] == 5 * 304 * 4 && b[2] == 0 && b[3] == 0);
        dev_qtensor_bytes(&none, 300, 600, b);
        CU_ASSERT_TRUE(b[0] == 0 && b[1] == 0 && b[2] == 0 && b[3] == 0);
        CU_ASSERT_EQUAL(ops->quantize(x, DT_BF16, &none, &t, stream), 0);
        CU_ASSERT_TRUE(t.row == x && t.dtype == DT_BF16 && t.scaling == Q_NONE);
        t.row = NULL;
        CU_ASSERT_EQUAL(ops->quantize(x, DT_BF16, &rows, &t, stream), -EINVAL);
        device_close();
}

TEST_MAIN("quantize")
