/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/fp8.h"

#include "kernels/fp8_bits.h"

static float e4m3_values[256], e5m2_values[256];
const float *const fp8_e4m3_table = e4m3_values;
const float *const fp8_e5m2_table = e5m2_values;

__attribute__((constructor)) static void fill_tables(void) {
        for (int i = 0; i < 256; i++) {
                e4m3_values[i] = e4m3_to((uint8_t)i);
                e5m2_values[i] = e5m2_to((uint8_t)i);
        }
}

uint8_t fp8_e4m3_from_float(float x) {
        return e4m3_from(x);
}

uint8_t fp8_e5m2_from_float(float x) {
        return e5m2_from(x);
}

float fp8_e4m3_to_float(uint8_t q) {
        return e4m3_to(q);
}

float fp8_e5m2_to_float(uint8_t q) {
        return e5m2_to(q);
}

uint16_t bf16_from_float(float x) {
        return bf16_from(x);
}

float bf16_to_float(uint16_t h) {
        return bf16_to(h);
}

FP8_CLONES void fp8_e4m3_from_floats(uint8_t *restrict q, const float *restrict x, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                q[i] = e4m3_from(x[i]);
}

FP8_CLONES void fp8_e5m2_from_floats(uint8_t *restrict q, const float *restrict x, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                q[i] = e5m2_from(x[i]);
}

FP8_CLONES void fp8_e4m3_to_floats(float *restrict x, const uint8_t *restrict q, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                x[i] = e4m3_to(q[i]);
}

FP8_CLONES void fp8_e5m2_to_floats(float *restrict x, const uint8_t *restrict q, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                x[i] = e5m2_to(q[i]);
}

FP8_CLONES void bf16_from_floats(uint16_t *restrict h, const float *restrict x, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                h[i] = bf16_from(x[i]);
}

FP8_CLONES void bf16_to_floats(float *restrict x, const uint16_t *restrict h, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                x[i] = bf16_to(h[i]);
}
