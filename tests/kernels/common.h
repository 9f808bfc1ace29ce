/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A device, a stream, numbers and quantised tensors for the kernel tests. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/dev.h"
#include "kernels/fp8.h"
#include "tests/test.h"

static const struct dev_ops *ops;
static struct dev *dev;
static struct dev_stream *stream;

static inline void device_open(enum dtype act) {
        const struct dev_config c = { .kind = "cpu", .act = act, .threads = 1 };
        struct error e = { 0 };

        ops = dev_ops_find("cpu");
        CU_ASSERT_PTR_NOT_NULL_FATAL(ops);
        ASSERT_OK(ops->open(&c, &dev, &e), e);
        CU_ASSERT_EQUAL_FATAL(ops->stream_new(dev, &stream), 0);
}

static inline void device_close(void) {
        ops->stream_free(stream);
        ops->close(dev);
        stream = NULL;
        dev = NULL;
}

static uint64_t rng_state = UINT64_C(0x853c49e6748fea9b);

static inline uint64_t rng(void) {
        uint64_t z = (rng_state += UINT64_C(0x9e3779b97f4a7c15));

        z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
        return z ^ (z >> 31);
}

static inline double uniform(void) {
        return (double)(rng() >> 11) * 0x1p-53;
}

static inline int64_t rng_in(int64_t lo, int64_t hi) {
        return lo + (int64_t)(rng() % (uint64_t)(hi - lo + 1));
}

static inline double gauss(void) {
        return sqrt(-2 * log(1 - uniform())) * cos(6.283185307179586 * uniform());
}

static inline void *xalloc(size_t bytes) {
        void *p = NULL;
        struct error e = { 0 };

        ASSERT_OK(ops->alloc(dev, bytes, &p, &e), e);
        return p;
}

static inline void xfree(void *p) {
        ops->free(dev, p);
}

static inline float from_bits(uint32_t u) {
        float x;

        memcpy(&x, &u, sizeof x);
        return x;
}

static inline uint32_t to_bits(float x) {
        uint32_t u;

        memcpy(&u, &x, sizeof u);
        return u;
}

static inline dev_real *random_reals(int64_t n, double std) {
        dev_real *p = xalloc((size_t)n * sizeof *p);

        for (int64_t i = 0; i < n; i++)
                p[i] = (dev_real)(gauss() * std);
        return p;
}

#ifndef FP8_FP64
/* BF16 values whose magnitude varies from row to row and column to column, as activations' does. */
static inline uint16_t *random_bf16(int64_t rows, int64_t cols, double std) {
        uint16_t *p = xalloc((size_t)(rows * cols) * 2);

        for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < cols; c++)
                        p[r * cols + c] = bf16_from_float((float)(gauss() * std * exp2((double)(r % 7) - 3) * exp2((double)(c / 64 % 5) - 2)));
        return p;
}

/* Parts in poisoned memory: 0xff is NaN in every format. */
static inline struct qtensor qtensor_new(const struct quant_spec *q, int64_t rows, int64_t cols) {
        struct qtensor t = { .rows = rows, .cols = cols };
        size_t bytes[4];
        void **const part[4] = { &t.row, (void **)&t.row_scale, &t.col, (void **)&t.col_scale };

        dev_qtensor_bytes(q, rows, cols, bytes);
        for (int i = 0; i < 4; i++)
                if (bytes[i]) {
                        *part[i] = xalloc(bytes[i]);
                        memset(*part[i], 0xff, bytes[i]);
                }
        return t;
}

static inline void qtensor_free(struct qtensor *t) {
        if (t->row_scale) /* else row is another's matrix */
                xfree(t->row);
        xfree(t->row_scale);
        xfree(t->col);
        xfree(t->col_scale);
}

/* The dequantised value of row form element (r, c), in double. */
static inline double row_value(const struct qtensor *t, int64_t r, int64_t c) {
        const int64_t i = r * t->cols + c, kb = c / 128;
        double scale;

        if (t->scaling == Q_NONE)
                return t->dtype == DT_BF16 ? (double)bf16_to_float(((const uint16_t *)t->row)[i]) : (double)((const float *)t->row)[i];
        if (t->scaling == Q_1X128)
                scale = (double)t->row_scale[kb * ((t->rows + 3) / 4 * 4) + r];
        else if (t->scaling == Q_128X128)
                scale = (double)t->row_scale[r / 128 * (((t->cols + 127) / 128 + 3) / 4 * 4) + kb];
        else
                scale = (double)t->row_scale[0];
        return (double)(t->dtype == DT_E4M3 ? fp8_e4m3_table : fp8_e5m2_table)[((const uint8_t *)t->row)[i]] * scale;
}

/* The same of column form: element (r, c) of the matrix lies at col[c, r]. */
static inline double col_value(const struct qtensor *t, int64_t r, int64_t c) {
        const int64_t i = c * t->rows + r, tb = r / 128;
        double scale;

        if (t->scaling == Q_NONE)
                return row_value(t, r, c);
        if (t->scaling == Q_1X128)
                scale = (double)t->col_scale[tb * ((t->cols + 3) / 4 * 4) + c];
        else if (t->scaling == Q_128X128)
                scale = (double)t->col_scale[c / 128 * (((t->rows + 127) / 128 + 3) / 4 * 4) + tb];
        else
                scale = (double)t->col_scale[0];
        return (double)(t->dtype == DT_E4M3 ? fp8_e4m3_table : fp8_e5m2_table)[((const uint8_t *)t->col)[i]] * scale;
}
#endif
