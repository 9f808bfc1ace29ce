/* SPDX-License-Identifier: Apache-2.0 */
/* Transposition of bytes in 16x16 tiles: four rounds of interleaving rows i and i + 8 (a perfect shuffle of the row index by one bit a round). */
#include "kernels/cpu/transpose.h"

#include <string.h>

#define TILE 16

typedef uint8_t bytes16 __attribute__((vector_size(16)));

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (bytes16){ __VA_ARGS__ })
#else
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#endif

static void transpose_tile(uint8_t *dst, int64_t ldd, const uint8_t *src, int64_t lds) {
        bytes16 a[TILE], b[TILE];

        for (int64_t i = 0; i < TILE; i++)
                memcpy(&a[i], src + i * lds, TILE);
        for (int round = 0; round < 4; round++) {
                for (int64_t i = 0; i < TILE / 2; i++) {
                        b[2 * i] = SHUFFLE(a[i], a[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
                        b[2 * i + 1] = SHUFFLE(a[i], a[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
                }
                memcpy(a, b, sizeof a);
        }
        for (int64_t i = 0; i < TILE; i++)
                memcpy(dst + i * ldd, &a[i], TILE);
}

void cpu_transpose_bytes(uint8_t *dst, int64_t ldd, const uint8_t *src, int64_t lds, int64_t rows, int64_t cols) {
        for (int64_t r = 0; r < rows; r += TILE)
                for (int64_t c = 0; c < cols; c += TILE) {
                        if (r + TILE <= rows && c + TILE <= cols) {
                                transpose_tile(dst + c * ldd + r, ldd, src + r * lds + c, lds);
                                continue;
                        }
                        for (int64_t i = r; i < rows && i < r + TILE; i++)
                                for (int64_t j = c; j < cols && j < c + TILE; j++)
                                        dst[j * ldd + i] = src[i * lds + j];
                }
}
