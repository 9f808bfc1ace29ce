/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * For the tests of the loaded CUDA backend's operations beside the CPU backend's, on the same random and edge inputs.  A comparison counts all elements that differ by more than it allows, prints the
 * first ones, and goes on.  Results lie in poisoned memory.  Skipped where the backend or a device is missing.
 */
#include <math.h>

#include "tests/kernels/common.h"

static const struct dev_ops *gpu_ops;
static struct dev *gpu_dev;
static struct dev_stream *gpu;

#define OK(call)                                                          \
        do {                                                              \
                int ok_ = (call);                                         \
                if (ok_ != 0)                                             \
                        printf("    line %d: %d from %.100s\n", __LINE__, ok_, #call); \
                CU_ASSERT_EQUAL(ok_, 0);                                  \
        } while (0)

static inline void both_open(void) {
        const struct dev_config c = { .kind = "cuda", .act = DT_BF16 };
        struct error e = { 0 };

        if (dev_ops_load("cuda", &gpu_ops, &e) < 0 || gpu_ops->open(&c, &gpu_dev, &e) < 0)
                TEST_SKIP_ALL(e.text);
        device_open(DT_BF16);
        CU_ASSERT_EQUAL_FATAL(gpu_ops->stream_new(gpu_dev, &gpu), 0);
}

static inline void both_close(void) {
        gpu_ops->stream_free(gpu);
        gpu_ops->close(gpu_dev);
        device_close();
}

static inline void *up(const void *host, size_t bytes) {
        struct error e = { 0 };
        void *p = NULL;

        ASSERT_OK(gpu_ops->alloc(gpu_dev, bytes + 256, &p, &e), e);
        CU_ASSERT_EQUAL_FATAL(gpu_ops->copy_in(p, host, bytes, gpu), 0);
        CU_ASSERT_EQUAL_FATAL(gpu_ops->stream_sync(gpu), 0);
        return p;
}

/* Poisoned, on the host and the device. */
static inline void *fresh(size_t bytes) {
        void *p = xalloc(bytes);

        memset(p, 0xff, bytes);
        return p;
}

static inline void down(void *p) {
        gpu_ops->free(gpu_dev, p);
}

static inline float at(const void *p, enum dtype t, int64_t i) {
        if (t == DT_BF16)
                return bf16_to_float(((const uint16_t *)p)[i]);
        if (t == DT_E4M3 || t == DT_E5M2)
                return (t == DT_E4M3 ? fp8_e4m3_table : fp8_e5m2_table)[((const uint8_t *)p)[i]];
        return ((const float *)p)[i];
}

/* Elements of the device's that are further than rel * |want| + abs from the host's. */
static inline void compare(const char *what, const void *want, const void *device, enum dtype t, int64_t n, double rel, double abs) {
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

static const uint32_t edges[] = { 0, 0x80000000u, 1, 0x007fffffu, 0x00800000u, 0x7f7fffffu, 0xff7fffffu, 0x7f800000u, 0xff800000u, 0x7fc00000u, 0x3f800000u, 0x42c80000u, 0xc2c80000u };

/* BF16, some of them edges. */
static inline uint16_t *mixed_bf16(int64_t n, int every) {
        uint16_t *p = xalloc((size_t)n * 2);

        for (int64_t i = 0; i < n; i++)
                p[i] = every && i % every == every - 1 ? (uint16_t)(edges[(size_t)(i / every) % (sizeof edges / sizeof *edges)] >> 16) : bf16_from_float((float)gauss());
        return p;
}

static inline void compare_parts(const char *what, const struct quant_spec *q, const struct qtensor *want, const struct qtensor *got) {
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

static inline struct qtensor up_parts(const struct quant_spec *q, const struct qtensor *t) {
        struct qtensor g = *t;
        size_t bytes[4];

        dev_qtensor_bytes(q, t->rows, t->cols, bytes);
        g.row = bytes[0] ? up(t->row, bytes[0]) : NULL;
        g.row_scale = bytes[1] ? up(t->row_scale, bytes[1]) : NULL;
        g.col = bytes[2] ? up(t->col, bytes[2]) : NULL;
        g.col_scale = bytes[3] ? up(t->col_scale, bytes[3]) : NULL;
        return g;
}

static inline void down_parts(struct qtensor *t) {
        down(t->row), down(t->row_scale), down(t->col), down(t->col_scale);
}

static inline size_t part_bytes(const struct quant_spec *q, int64_t rows, int64_t cols, int part) {
        size_t bytes[4];

        dev_qtensor_bytes(q, rows, cols, bytes);
        return bytes[part];
}

/* What the device has made, for the CPU's quantiser: from the same BF16 both make the same bytes. */
static inline void device_bf16(uint16_t *host, const void *device, int64_t n) {
        OK(gpu_ops->copy_out(host, device, (size_t)n * 2, gpu));
        OK(gpu_ops->stream_sync(gpu));
}

/* NaN where one is there. */
static inline float greatest(const uint16_t *x, int64_t n) {
        uint16_t most = 0;

        for (int64_t i = 0; i < n; i++)
                most = (x[i] & 0x7fff) > most ? x[i] & 0x7fff : most;
        return bf16_to_float(most);
}

/* Documents of uneven length, some of one token. */
/* Documents of 1 to longest tokens; longest < 0: all of -longest. */
static inline struct doc_bounds docs_new(int32_t T, int32_t longest) {
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

static inline struct doc_bounds docs_up(const struct doc_bounds *d) {
        return (struct doc_bounds){ .cu = up(d->cu, (size_t)(d->n + 1) * 4), .pos = up(d->pos, (size_t)d->tokens * 4), .doc = up(d->doc, (size_t)d->tokens * 4), .n = d->n, .tokens = d->tokens };
}
