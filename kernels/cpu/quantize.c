/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quantisation.  amax is taken on the bits of |x| as integers: their order is that of the values, infinity stands above all numbers and NaN above infinity, so the maximum
 * propagates NaN by itself and vectorises.  Column forms are made tile by tile and transposed as bytes.
 */
#include <float.h>
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/transpose.h"

#ifdef FP8_FP64

int cpu_quantize(const void *x, enum dtype xt, const struct quant_spec *q, struct qtensor *out, struct dev_stream *s) {
        if (q->scaling != Q_NONE)
                return -EOPNOTSUPP;
        out->scaling = Q_NONE;
        out->dtype = xt;
        out->row = (void *)x;
        return 0;
}

int cpu_requantize_col(struct qtensor *t, const struct quant_spec *q, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

int cpu_dequantize(const struct qtensor *t, void *x, enum dtype xt, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

int cpu_quant_stats(const void *x, enum dtype xt, const struct qtensor *t, struct quant_stats *stats, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

#else

#define INFINITY_BITS 0x7f800000u
#define INLINE static inline __attribute__((always_inline))

/* A source matrix; bf and e5 are compile-time constants in each instance of the loops below. */
INLINE float load_one(const void *x, bool bf, int64_t i) {
        return bf ? bf16_to(((const uint16_t *)x)[i]) : ((const float *)x)[i];
}

INLINE uint32_t abs_bits(const void *x, bool bf, int64_t i) {
        return float_bits(load_one(x, bf, i)) & 0x7fffffffu;
}

INLINE uint8_t to_fp8(float x, bool e5) {
        return e5 ? e5m2_from(x) : e4m3_from(x);
}

INLINE uint32_t amax_bits(const void *x, bool bf, int64_t at, int64_t n) {
        int32_t max = 0; /* signed: every x86-64 has that maximum, and the sign bit is clear */

        for (int64_t i = 0; i < n; i++) {
                const int32_t b = (int32_t)abs_bits(x, bf, at + i);

                max = b > max ? b : max;
        }
        return (uint32_t)max;
}

/* Quantisation scale of a group. Its reciprocal is the dequantisation scale. */
INLINE float scale_of(uint32_t amax, float fp8_max, bool pow2) {
        float s;

        if (amax == 0)
                return 1;
        if (amax >= INFINITY_BITS)
                return NAN;
        s = fp8_max / bits_float(amax);
        s = s > FLT_MAX ? FLT_MAX : s;
        return pow2 ? bits_float(float_bits(s) & 0xff800000u) : s;
}

struct source {
        const void *x;
        int64_t ld; /* elements from row to row */
        float max;
        bool pow2;
};

/* One row in groups of 128: bytes to q, dequantisation scale of group kb to scale[kb * ld]. Returns the row's amax. */
INLINE uint32_t row_groups(const struct source *c, bool bf, bool e5, int64_t at, int64_t cols, uint8_t *restrict q, float *restrict scale, int64_t ld) {
        uint32_t all = 0;

        for (int64_t k = 0; k < cols; k += CPU_BLOCK) {
                const int64_t n = cpu_min(CPU_BLOCK, cols - k);
                const uint32_t amax = n == CPU_BLOCK ? amax_bits(c->x, bf, at + k, CPU_BLOCK) : amax_bits(c->x, bf, at + k, n);
                const float s = scale_of(amax, c->max, c->pow2);

                all = amax > all ? amax : all;
                if (!q)
                        continue;
                for (int64_t i = 0; i < n; i++)
                        q[k + i] = to_fp8(load_one(c->x, bf, at + k + i) * s, e5);
                scale[k / CPU_BLOCK * ld] = 1 / s;
        }
        return all;
}

/* Up to 128 rows and columns, one scale a column: bytes to tile [rows][CPU_BLOCK], dequantisation scales to scale[cols]. Returns the amax. */
INLINE uint32_t column_tile(const struct source *c, bool bf, bool e5, int64_t at, int64_t rows, int64_t cols, uint8_t *restrict tile, float *restrict scale) {
        int32_t max[CPU_BLOCK] = { 0 };
        float s[CPU_BLOCK];
        uint32_t all = 0;

        for (int64_t r = 0; r < rows; r++)
                for (int64_t i = 0; i < cols; i++) {
                        const int32_t b = (int32_t)abs_bits(c->x, bf, at + r * c->ld + i);

                        max[i] = b > max[i] ? b : max[i];
                }
        for (int64_t i = 0; i < cols; i++) {
                all = (uint32_t)max[i] > all ? (uint32_t)max[i] : all;
                s[i] = scale_of((uint32_t)max[i], c->max, c->pow2);
                scale[i] = 1 / s[i];
        }
        for (int64_t r = 0; r < rows; r++)
                for (int64_t i = 0; i < cols; i++)
                        tile[r * CPU_BLOCK + i] = to_fp8(load_one(c->x, bf, at + r * c->ld + i) * s[i], e5);
        return all;
}

INLINE void scaled_run(const void *x, bool bf, bool e5, int64_t at, int64_t n, float s, uint8_t *restrict q) {
        for (int64_t i = 0; i < n; i++)
                q[i] = to_fp8(load_one(x, bf, at + i) * s, e5);
}

/* The loops for each carrier and format. */
struct loops {
        uint32_t (*row)(const struct source *c, int64_t at, int64_t cols, uint8_t *q, float *scale, int64_t ld);
        uint32_t (*tile)(const struct source *c, int64_t at, int64_t rows, int64_t cols, uint8_t *tile, float *scale);
        void (*run)(const void *x, int64_t at, int64_t n, float s, uint8_t *q);
        uint32_t (*amax)(const void *x, int64_t at, int64_t n);
};

#define LOOPS(id, bf, e5)                                                                                                                          \
        FP8_CLONES static uint32_t row_##id(const struct source *c, int64_t at, int64_t cols, uint8_t *q, float *scale, int64_t ld) {              \
                return row_groups(c, bf, e5, at, cols, q, scale, ld);                                                                              \
        }                                                                                                                                          \
        FP8_CLONES static uint32_t tile_##id(const struct source *c, int64_t at, int64_t rows, int64_t cols, uint8_t *tile, float *scale) {        \
                return cols == CPU_BLOCK ? column_tile(c, bf, e5, at, rows, CPU_BLOCK, tile, scale) : column_tile(c, bf, e5, at, rows, cols, tile, scale); \
        }                                                                                                                                          \
        FP8_CLONES static void run_##id(const void *x, int64_t at, int64_t n, float s, uint8_t *q) {                                               \
                scaled_run(x, bf, e5, at, n, s, q);                                                                                                \
        }                                                                                                                                          \
        FP8_CLONES static uint32_t amax_##id(const void *x, int64_t at, int64_t n) {                                                               \
                return amax_bits(x, bf, at, n);                                                                                                    \
        }                                                                                                                                          \
        static const struct loops loops_##id = { row_##id, tile_##id, run_##id, amax_##id };

LOOPS(bf16_e4m3, true, false)
LOOPS(bf16_e5m2, true, true)
LOOPS(f32_e4m3, false, false)
LOOPS(f32_e5m2, false, true)

static const struct loops *loops_of(enum dtype xt, enum dtype qt) {
        if (xt == DT_BF16)
                return qt == DT_E5M2 ? &loops_bf16_e5m2 : &loops_bf16_e4m3;
        return qt == DT_E5M2 ? &loops_f32_e5m2 : &loops_f32_e4m3;
}

/* The sticky flag and the tensor's maximum. */
static void note(const struct quant_spec *q, uint32_t amax) {
        if (q->amax && amax > float_bits(*q->amax))
                *q->amax = bits_float(amax);
        if (q->bad && amax >= INFINITY_BITS && q->index < *q->bad)
                *q->bad = q->index;
}

/* Bytes [n, 128 tile] -> columns c0.. of col [cols, rows], tokens r0.. */
static void tile_out(struct qtensor *out, const uint8_t *tile, int64_t r0, int64_t rows, int64_t c0, int64_t cols) {
        cpu_transpose_bytes((uint8_t *)out->col + c0 * out->rows + r0, out->rows, tile, CPU_BLOCK, rows, cols);
}

static uint32_t quantize_1x128(const struct source *c, const struct loops *l, const struct quant_spec *q, struct qtensor *out) {
        const int64_t rows = out->rows, cols = out->cols, ld = cpu_pad4(rows), ldc = cpu_pad4(cols);
        uint8_t tile[CPU_BLOCK * CPU_BLOCK];
        uint32_t all = 0, a;

        for (int64_t r0 = 0; r0 < rows; r0 += CPU_BLOCK) {
                const int64_t n = cpu_min(CPU_BLOCK, rows - r0);

                for (int64_t r = r0; q->want_row && r < r0 + n; r++) {
                        a = l->row(c, r * c->ld, cols, (uint8_t *)out->row + r * cols, out->row_scale + r, ld);
                        all = a > all ? a : all;
                }
                for (int64_t c0 = 0; q->want_col && c0 < cols; c0 += CPU_BLOCK) {
                        const int64_t m = cpu_min(CPU_BLOCK, cols - c0);

                        a = l->tile(c, r0 * c->ld + c0, n, m, tile, out->col_scale + r0 / CPU_BLOCK * ldc + c0);
                        all = a > all ? a : all;
                        tile_out(out, tile, r0, n, c0, m);
                }
        }
        return all;
}

/* Bytes are the same in both orientations: q is [rows, cols], in out->row or in scratch. */
static uint32_t quantize_128x128(const struct source *c, const struct loops *l, const struct quant_spec *q, struct qtensor *out, uint8_t *bytes) {
        const int64_t rows = out->rows, cols = out->cols, ld = cpu_pad4(cpu_blocks(cols)), ldc = cpu_pad4(cpu_blocks(rows));
        uint32_t all = 0;

        for (int64_t r0 = 0; r0 < rows; r0 += CPU_BLOCK)
                for (int64_t c0 = 0; c0 < cols; c0 += CPU_BLOCK) {
                        const int64_t n = cpu_min(CPU_BLOCK, rows - r0), m = cpu_min(CPU_BLOCK, cols - c0);
                        uint32_t amax = 0;
                        float s;

                        for (int64_t r = r0; r < r0 + n; r++) {
                                const uint32_t a = l->amax(c->x, r * c->ld + c0, m);

                                amax = a > amax ? a : amax;
                        }
                        s = scale_of(amax, c->max, c->pow2);
                        for (int64_t r = r0; r < r0 + n; r++)
                                l->run(c->x, r * c->ld + c0, m, s, bytes + r * cols + c0);
                        if (q->want_row)
                                out->row_scale[r0 / CPU_BLOCK * ld + c0 / CPU_BLOCK] = 1 / s;
                        if (q->want_col)
                                out->col_scale[c0 / CPU_BLOCK * ldc + r0 / CPU_BLOCK] = 1 / s;
                        all = amax > all ? amax : all;
                }
        if (q->want_col)
                cpu_transpose_bytes(out->col, rows, bytes, cols, rows, cols);
        return all;
}

static uint32_t quantize_whole(const struct source *c, const struct loops *l, const struct quant_spec *q, struct qtensor *out, uint8_t *bytes) {
        const int64_t n = out->rows * out->cols;
        const uint32_t amax = l->amax(c->x, 0, n);
        const float s = q->scaling == Q_DELAYED ? *q->scale : scale_of(amax, c->max, c->pow2), inverse = amax >= INFINITY_BITS ? NAN : 1 / s;

        l->run(c->x, 0, n, s, bytes);
        if (q->want_row)
                out->row_scale[0] = inverse;
        if (q->want_col) {
                out->col_scale[0] = inverse;
                cpu_transpose_bytes(out->col, out->rows, bytes, out->cols, out->rows, out->cols);
        }
        return amax;
}

int cpu_quantize(const void *x, enum dtype xt, const struct quant_spec *q, struct qtensor *out, struct dev_stream *s) {
        const struct source c = { x, out->cols, q->dtype == DT_E5M2 ? FP8_E5M2_MAX : FP8_E4M3_MAX, q->pow2 };
        const struct loops *l = loops_of(xt, q->dtype);
        uint8_t *bytes = out->row;

        if (!cpu_is_act(xt) || out->rows < 0 || out->cols < 0)
                return -EINVAL;
        if (q->scaling == Q_NONE) {
                out->scaling = Q_NONE;
                out->dtype = xt;
                out->row = (void *)x;
                return 0;
        }
        if ((q->dtype != DT_E4M3 && q->dtype != DT_E5M2) || (q->want_row && (!out->row || !out->row_scale)) || (q->want_col && (!out->col || !out->col_scale)) ||
            (q->scaling == Q_DELAYED && !q->scale))
                return -EINVAL;
        out->scaling = q->scaling;
        out->dtype = q->dtype;
        if (q->scaling == Q_1X128) {
                note(q, quantize_1x128(&c, l, q, out));
                return 0;
        }
        if (!q->want_row)
                bytes = cpu_scratch(s, CPU_QUANT0, (size_t)(out->rows * out->cols));
        if (!bytes)
                return -ENOMEM;
        note(q, q->scaling == Q_128X128 ? quantize_128x128(&c, l, q, out, bytes) : quantize_whole(&c, l, q, out, bytes));
        return 0;
}

/* Of row r in column block kb. */
static float row_scale(const struct qtensor *t, int64_t r, int64_t kb) {
        if (t->scaling == Q_1X128)
                return t->row_scale[kb * cpu_pad4(t->rows) + r];
        return t->scaling == Q_128X128 ? t->row_scale[r / CPU_BLOCK * cpu_pad4(cpu_blocks(t->cols)) + kb] : t->row_scale[0];
}

/* One row of dequantised values, cols c0 .. c0 + n. */
static void dequantized_row(const struct qtensor *t, int64_t r, int64_t c0, int64_t n, float *x) {
        cpu_load(x, t->row, t->dtype, r * t->cols + c0, n);
        for (int64_t k = 0; k < n;) {
                const int64_t kb = (c0 + k) / CPU_BLOCK, end = cpu_min(n, (kb + 1) * CPU_BLOCK - c0);
                const float f = row_scale(t, r, kb);

                for (; k < end; k++)
                        x[k] *= f;
        }
}

static void requantize_tiles(struct qtensor *t, const struct quant_spec *q, float *x) {
        const struct source c = { x, CPU_BLOCK, q->dtype == DT_E5M2 ? FP8_E5M2_MAX : FP8_E4M3_MAX, q->pow2 };
        const struct loops *l = loops_of(DT_F32, q->dtype);
        uint8_t tile[CPU_BLOCK * CPU_BLOCK];
        uint32_t all = 0, a;

        for (int64_t r0 = 0; r0 < t->rows; r0 += CPU_BLOCK)
                for (int64_t c0 = 0; c0 < t->cols; c0 += CPU_BLOCK) {
                        const int64_t n = cpu_min(CPU_BLOCK, t->rows - r0), m = cpu_min(CPU_BLOCK, t->cols - c0);

                        for (int64_t r = 0; r < n; r++)
                                dequantized_row(t, r0 + r, c0, m, x + r * CPU_BLOCK);
                        a = l->tile(&c, 0, n, m, tile, t->col_scale + r0 / CPU_BLOCK * cpu_pad4(t->cols) + c0);
                        all = a > all ? a : all;
                        tile_out(t, tile, r0, n, c0, m);
                }
        note(q, all);
}

int cpu_requantize_col(struct qtensor *t, const struct quant_spec *q, struct dev_stream *s) {
        const int64_t nb = cpu_blocks(t->rows), kb = cpu_blocks(t->cols);
        float *x;

        if (t->scaling == Q_NONE)
                return 0;
        if (q->scaling != t->scaling || q->dtype != t->dtype || !t->row || !t->row_scale || !t->col || !t->col_scale)
                return -EINVAL;
        if (t->scaling == Q_1X128) {
                x = cpu_reals(s, CPU_QUANT1, (int64_t)CPU_BLOCK * CPU_BLOCK);
                if (!x)
                        return -ENOMEM;
                requantize_tiles(t, q, x);
                return 0;
        }
        cpu_transpose_bytes(t->col, t->rows, t->row, t->cols, t->rows, t->cols);
        if (t->scaling != Q_128X128)
                t->col_scale[0] = t->row_scale[0];
        else
                for (int64_t i = 0; i < nb; i++)
                        for (int64_t j = 0; j < kb; j++)
                                t->col_scale[j * cpu_pad4(nb) + i] = t->row_scale[i * cpu_pad4(kb) + j];
        return 0;
}

int cpu_dequantize(const struct qtensor *t, void *x, enum dtype xt, struct dev_stream *s) {
        float *row;

        if (!cpu_is_act(xt) || !t->row)
                return -EINVAL;
        if (t->scaling == Q_NONE)
                return cpu_cast(x, xt, t->row, t->dtype, t->rows * t->cols, s);
        row = cpu_reals(s, CPU_ROW0, t->cols);
        if (!row)
                return -ENOMEM;
        for (int64_t r = 0; r < t->rows; r++) {
                dequantized_row(t, r, 0, t->cols, row);
                cpu_store(x, xt, r * t->cols, row, t->cols);
        }
        return 0;
}

int cpu_quant_stats(const void *x, enum dtype xt, const struct qtensor *t, struct quant_stats *stats, struct dev_stream *s) {
        const float clips = t->dtype == DT_E5M2 ? FP8_E5M2_CLIPS : FP8_E4M3_CLIPS;
        const uint8_t *q = t->row;
        uint32_t amax = 0;

        if (!cpu_is_act(xt) || t->scaling == Q_NONE || !t->row || !t->row_scale)
                return -EINVAL;
        for (int64_t r = 0; r < t->rows; r++)
                for (int64_t c = 0; c < t->cols; c++) {
                        const int64_t i = r * t->cols + c;
                        const uint32_t a = abs_bits(x, xt == DT_BF16, i);

                        amax = a > amax ? a : amax;
                        stats->saturated += bits_float(a) > clips * row_scale(t, r, c / CPU_BLOCK);
                        stats->flushed += a != 0 && (q[i] & 0x7f) == 0;
                }
        stats->elements += (uint64_t)(t->rows * t->cols);
        stats->amax = amax > stats->amax ? amax : stats->amax;
        return 0;
}

#endif
