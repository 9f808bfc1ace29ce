/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which tile a product gets.  A pair of blocks takes one pair of tiles at a time, so the time is waves of pairs, each as long as the pair's outputs over the rate that the tile
 * reaches (docs/performance.md), plus the part of its end that nothing hides.
 */
#include "kernels/cuda/plan.h"

static int64_t up(int64_t n, int64_t d) {
        return (n + d - 1) / d;
}

enum gemm_tile gemm_plan(int64_t M, int64_t N, int64_t K, int multiprocessors) {
        /* Share of the tensor core's rate in the main loop, relative to the best. */
        static const double rate[N_GEMM_TILES] = { [TILE_256X128] = 1, [TILE_128X192] = 0.97, [TILE_128X128] = 0.92 };
        enum gemm_tile best = TILE_256X128;
        double least = 0;

        for (int i = 0; i < N_GEMM_TILES; i++) {
                const struct gemm_tile_shape *t = &gemm_tile_shapes[i];
                const int64_t m = t->m * (t->share_a ? 1 : 2), n = t->n * (t->share_a ? 2 : 1);
                const double time = (double)up(up(M, m) * up(N, n), multiprocessors / 2) * (double)(t->m * t->n) * ((double)K + 128) / rate[i];

                if (i == 0 || time < least) {
                        best = i;
                        least = time;
                }
        }
        return best;
}
