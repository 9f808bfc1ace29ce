/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * exp for loops that vectorise.  Float: Cody and Waite's reduction x = n ln2 + r with ln2 in two parts (n times the first is exact for |n| < 2^15), a minimax polynomial on |r| <= ln2/2
 * (coefficients of Cephes' expf, S. Moshier), and 2^n put together in two factors so that results below the smallest normal are right as well.  Its error is below 1.1 ulp
 * (tests/kernels/test_cast.c measures it).  The FP64 build uses libm.
 */
#include <math.h>

#include "kernels/dev.h"
#include "kernels/fp8_bits.h"

#ifdef FP8_FP64
static inline double cpu_exp(double x) {
        return exp(x);
}
#else
static inline float cpu_exp(float x) {
        /* Beyond these the result is 0 or infinite whatever the rest does; the comparisons keep NaN. */
        const float c = x > 89.0f ? 89.0f : x < -104.5f ? -104.5f : x;
        const float shifted = c * 1.44269504088896341f + 0x1.8p23f, n = shifted - 0x1.8p23f;
        const float r = c - n * 0.693359375f - n * -2.12194440e-4f;
        const int32_t k = (int32_t)(float_bits(shifted) - float_bits(0x1.8p23f)), half = k >> 1;
        float p = 1.9875691500e-4f;

        p = p * r + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        p = p * (r * r) + r + 1.0f;
        return p * bits_float((uint32_t)(half + 127) << 23) * bits_float((uint32_t)(k - half + 127) << 23);
}
#endif
