/* SPDX-License-Identifier: Apache-2.0 */
#include "format/values.h"

#include <math.h>
#include <string.h>

bool values_are_real(enum dtype t) {
        return t == DT_F32 || t == DT_F64 || t == DT_BF16 || t == DT_F16;
}

static float of_bits(uint32_t bits) {
        float f;

        memcpy(&f, &bits, sizeof(f));
        return f;
}

static uint32_t bits_of(float f) {
        uint32_t bits;

        memcpy(&bits, &f, sizeof(bits));
        return bits;
}

/* IEEE 754 binary16: 5 bits of exponent with bias 15, 10 of fraction. */
static double of_f16(uint16_t h) {
        int exponent = h >> 10 & 31, fraction = h & 1023;
        double v = exponent == 0 ? ldexp(fraction, -24) : exponent == 31 ? (fraction ? (double)NAN : (double)INFINITY) : ldexp(1024 + fraction, exponent - 25);

        return h & 0x8000 ? -v : v;
}

/* Through the odd-rounded float: double to float to bfloat16 would round twice (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums"). */
static uint16_t to_bf16(double v) {
        float f = (float)v;
        uint32_t bits = bits_of(f);

        if (isnan(v))
                return (uint16_t)(bits >> 16 | 0x40);
        if ((double)f != v && isfinite(f)) {
                if (fabs((double)f) > fabs(v))
                        bits--; /* towards zero */
                bits |= 1;
        }
        return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void values_read(enum dtype t, const void *src, double *dst, size_t n) {
        const uint8_t *p = src;
        size_t size = dtype_size(t);

        for (size_t i = 0; i < n; i++, p += size) {
                if (size == 8)
                        memcpy(&dst[i], p, 8);
                else if (size == 4) {
                        float f;

                        memcpy(&f, p, 4);
                        dst[i] = (double)f;
                } else {
                        uint16_t h;

                        memcpy(&h, p, 2);
                        dst[i] = t == DT_BF16 ? (double)of_bits((uint32_t)h << 16) : of_f16(h);
                }
        }
}

void values_write(enum dtype t, const double *src, void *dst, size_t n) {
        uint8_t *p = dst;
        size_t size = dtype_size(t);

        for (size_t i = 0; i < n; i++, p += size) {
                if (size == 8)
                        memcpy(p, &src[i], 8);
                else if (size == 4) {
                        float f = (float)src[i];

                        memcpy(p, &f, 4);
                } else {
                        uint16_t h = to_bf16(src[i]);

                        memcpy(p, &h, 2);
                }
        }
}
