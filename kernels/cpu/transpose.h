/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
#include <stdint.h>

/* dst[c * ldd + r] = src[r * lds + c] for r < rows, c < cols */
void cpu_transpose_bytes(uint8_t *dst, int64_t ldd, const uint8_t *src, int64_t lds, int64_t rows, int64_t cols);
