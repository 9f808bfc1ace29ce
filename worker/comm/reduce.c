/* SPDX-License-Identifier: Apache-2.0 */
/* Element-wise sums, maxima and minima. Plain loops without branches inside, which the compiler turns into vector code. */
#include <errno.h>
#include <string.h>

#include "worker/comm/comm_private.h"

#define REDUCE_SUM(T)                                                                       \
        static void sum_##T(T *dst, const T *a, const T *b, size_t n) {                     \
                for (size_t i = 0; i < n; i++)                                              \
                        dst[i] = (T)(a[i] + b[i]);                                          \
        }
/* a NaN compares unequal to itself: it wins from either side */
#define REDUCE_MINMAX(T)                                                                    \
        static void max_##T(T *dst, const T *a, const T *b, size_t n) {                     \
                for (size_t i = 0; i < n; i++)                                              \
                        dst[i] = a[i] != a[i] || a[i] > b[i] ? a[i] : b[i];                 \
        }                                                                                   \
        static void min_##T(T *dst, const T *a, const T *b, size_t n) {                     \
                for (size_t i = 0; i < n; i++)                                              \
                        dst[i] = a[i] != a[i] || a[i] < b[i] ? a[i] : b[i];                 \
        }
#define REDUCE_TYPE(T)   \
        REDUCE_SUM(T)    \
        REDUCE_MINMAX(T) \
        static void reduce_##T(void *dst, const void *a, const void *b, size_t n, enum comm_op op) { \
                if (op == COMM_SUM)                                                         \
                        sum_##T(dst, a, b, n);                                              \
                else if (op == COMM_MAX)                                                    \
                        max_##T(dst, a, b, n);                                              \
                else                                                                        \
                        min_##T(dst, a, b, n);                                              \
        }

#ifndef FP8_FP64
REDUCE_TYPE(float)
#endif
REDUCE_TYPE(double)
/* Unsigned, so that a sum that overflows wraps instead of being undefined. */
REDUCE_SUM(uint32_t)
REDUCE_SUM(uint64_t)
REDUCE_MINMAX(int32_t)
REDUCE_MINMAX(int64_t)
REDUCE_TYPE(uint8_t)

int reduce_check(enum dtype t) {
        return t == DT_F32 || t == DT_F64 || t == DT_I32 || t == DT_I64 || t == DT_U8 ? 0 : -EINVAL;
}

void reduce(void *dst, const void *a, const void *b, size_t n, enum dtype t, enum comm_op op) {
        switch (t) {
        case DT_F32:
#ifndef FP8_FP64
                reduce_float(dst, a, b, n, op);
                break;
#endif
        case DT_F64:
                reduce_double(dst, a, b, n, op);
                break;
        case DT_I32:
                if (op == COMM_SUM)
                        sum_uint32_t(dst, a, b, n);
                else if (op == COMM_MAX)
                        max_int32_t(dst, a, b, n);
                else
                        min_int32_t(dst, a, b, n);
                break;
        case DT_I64:
                if (op == COMM_SUM)
                        sum_uint64_t(dst, a, b, n);
                else if (op == COMM_MAX)
                        max_int64_t(dst, a, b, n);
                else
                        min_int64_t(dst, a, b, n);
                break;
        default:
                reduce_uint8_t(dst, a, b, n, op);
                break;
        }
}

/* As bf16_to_float and bf16_from_float of kernels/fp8.h (a test compares them), inline for vector code. */
static inline float widen(uint16_t h) {
        uint32_t bits = (uint32_t)h << 16;
        float x;

        memcpy(&x, &bits, sizeof(x));
        return x;
}

static inline uint16_t narrow(float x) {
        uint32_t bits;

        memcpy(&bits, &x, sizeof(bits));
        /* to nearest even; a NaN keeps its sign and upper payload and becomes quiet */
        return (bits & 0x7fffffffu) > 0x7f800000u ? (uint16_t)(bits >> 16 | 0x40) : (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

static inline float combine(float a, float b, enum comm_op op) {
        if (op == COMM_SUM)
                return a + b;
        if (op == COMM_MAX)
                return a != a || a > b ? a : b;
        return a != a || a < b ? a : b;
}

void reduce_bf16(uint16_t *dst, const uint16_t *const *src, int n_src, size_t n, enum comm_op op) {
        float sum[256];

        for (size_t at = 0; at < n; at += 256) {
                size_t k = n - at < 256 ? n - at : 256;

                for (size_t i = 0; i < k; i++)
                        sum[i] = widen(src[0][at + i]);
                for (int s = 1; s < n_src; s++) {
                        const uint16_t *b = src[s] + at;

                        for (size_t i = 0; i < k; i++)
                                sum[i] = combine(sum[i], widen(b[i]), op);
                }
                for (size_t i = 0; i < k; i++)
                        dst[at + i] = narrow(sum[i]);
        }
}
