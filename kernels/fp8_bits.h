/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The casts of fp8.h as branch-free integer arithmetic that compilers vectorise.  Everything here is inlined into loops that are compiled once for
 * each instruction set (FP8_CLONES); no step depends on contraction or on the vector's width, so all of them give the same bits.
 */
#include <stdint.h>
#include <string.h>

/*
 * One copy of a hot loop for each x86-64 level (gcc before 12 knows single extensions only), chosen when the program is loaded.  Not under sanitizers (the chooser would run before
 * their shadow memory is there), not with clang, whose target_clones does not know the levels, and not where FP8_NO_CLONES asks for one plain copy (tests compare them).
 */
#if defined(FP8_NO_CLONES) || !defined(__x86_64__) || defined(__clang__) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FP8_CLONES
#elif __GNUC__ >= 12
#define FP8_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FP8_CLONES __attribute__((target_clones("avx2", "default")))
#endif

static inline uint32_t float_bits(float x) {
        uint32_t u;

        memcpy(&u, &x, sizeof u);
        return u;
}

static inline float bits_float(uint32_t u) {
        float x;

        memcpy(&x, &u, sizeof x);
        return x;
}

/*
 * To FP8 with `mant` mantissa bits, exponent bias `bias`, largest magnitude `max`.  Normal results: add half an ulp less one, plus the bit that makes ties go to even, and drop the
 * low bits.  Subnormal results: added to a power of two whose ulp is FP8's smallest step, the FPU itself rounds to nearest even and leaves the code in the low bits (which also gives the
 * smallest normal when it rounds up to that).
 */
static inline uint8_t fp8_from_bits(uint32_t bits, uint32_t mant, uint32_t bias, float max) {
        const uint32_t drop = 23 - mant, abs = bits & 0x7fffffffu, max_bits = float_bits(max);
        const uint32_t min_normal = (127 - bias + 1) << 23;
        const float magic = bits_float((127 + 23 + 1 - bias - mant) << 23);
        const uint32_t sat = abs > max_bits ? max_bits : abs;
        const uint32_t normal = ((sat + ((1u << (drop - 1)) - 1) + ((sat >> drop) & 1)) >> drop) - ((127 - bias) << mant);
        /* Normal lanes must not overflow the sum: they take part with zero. */
        const uint32_t sub = float_bits(bits_float(sat < min_normal ? sat : 0) + magic) - float_bits(magic);
        const uint32_t q = (sat < min_normal ? sub : normal) | ((bits >> 24) & 0x80u);

        return (uint8_t)(abs > 0x7f800000u ? 0x7fu : q);
}

static inline uint8_t e4m3_from(float x) {
        return fp8_from_bits(float_bits(x), 3, 7, 448.0f);
}

static inline uint8_t e5m2_from(float x) {
        return fp8_from_bits(float_bits(x), 2, 15, 57344.0f);
}

/*
 * From E4M3: the code, moved to float's place, is a number with the wrong bias; subnormals become the distance from 2^-6 (exact).
 */
static inline float e4m3_to(uint8_t q) {
        const uint32_t v = (uint32_t)(q & 0x7f) << 20;
        const float sub = bits_float(v + (121u << 23)) - 0x1p-6f;
        const uint32_t mag = v < (1u << 23) ? float_bits(sub) : v + (120u << 23);
        const uint32_t out = (q & 0x7f) == 0x7f ? 0x7fc00000u : mag;

        return bits_float(out | ((uint32_t)(q & 0x80) << 24));
}

static inline float e5m2_to(uint8_t q) {
        const uint32_t v = (uint32_t)(q & 0x7f) << 21;
        const float sub = bits_float(v + (113u << 23)) - 0x1p-14f;
        const uint32_t mag = v < (1u << 23) ? float_bits(sub) : v + (112u << 23);
        const uint32_t code = q & 0x7f;
        const uint32_t out = code > 0x7c ? 0x7fc00000u : code == 0x7c ? 0x7f800000u : mag;

        return bits_float(out | ((uint32_t)(q & 0x80) << 24));
}

static inline uint16_t bf16_from(float x) {
        const uint32_t u = float_bits(x);
        const uint32_t r = (u + 0x7fffu + ((u >> 16) & 1)) >> 16;

        return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : r);
}

static inline float bf16_to(uint16_t h) {
        return bits_float((uint32_t)h << 16);
}
