/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * FP8 formats (OCP 8-bit Floating Point Specification 1.0; Micikevicius et al. 2022, arXiv 2209.05433).
 * E4M3 (fn): max 448, min normal 2^-6, min subnormal 2^-9, no infinity, NaN = S.1111.111.
 * E5M2: max 57344, min normal 2^-14, min subnormal 2^-16, infinities and NaNs.
 * Casts round to nearest even and saturate (infinities too); NaN stays NaN (0x7f; E5M2: 0x7f), sign dropped as NVIDIA's cvt.rn.satfinite does.
 */
#include <stdint.h>

#define FP8_E4M3_MAX 448.0f
#define FP8_E5M2_MAX 57344.0f
/* Between the greatest value and what would come next: beyond it a cast clips, up to it it rounds. */
#define FP8_E4M3_CLIPS 464.0f
#define FP8_E5M2_CLIPS 61440.0f

uint8_t fp8_e4m3_from_float(float x);
uint8_t fp8_e5m2_from_float(float x);
float fp8_e4m3_to_float(uint8_t q);
float fp8_e5m2_to_float(uint8_t q);
/* All 256 values, for table look-up. */
extern const float *const fp8_e4m3_table;
extern const float *const fp8_e5m2_table;
/* Round to nearest even; NaN becomes quiet. */
uint16_t bf16_from_float(float x);
float bf16_to_float(uint16_t h);

/* The same casts over n elements, vectorised; the results are those of the scalar forms on every processor. */
void fp8_e4m3_from_floats(uint8_t *q, const float *x, int64_t n);
void fp8_e5m2_from_floats(uint8_t *q, const float *x, int64_t n);
void fp8_e4m3_to_floats(float *x, const uint8_t *q, int64_t n);
void fp8_e5m2_to_floats(float *x, const uint8_t *q, int64_t n);
void bf16_from_floats(uint16_t *h, const float *x, int64_t n);
void bf16_to_floats(float *x, const uint16_t *h, int64_t n);
