/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which tile a product gets.  A pair of blocks takes one pair of tiles at a time, so the time is waves of pairs, each as long as the pair's outputs over the rate that the tile
 * reaches (docs/performance.md), plus the part of its end that nothing hides.
 */
#include "kernels/cuda/plan.h"

static int64_t up(int64_t n, int64_t d) {
        return (n + d - 1) / d;
}

/*
 * Of a tile: the share of the tensor core's rate in the main loop, relative to the best, and what its end costs as so much more of K; from the figures of docs/performance.md.  With a
 * scale a row on both sides the promotion is longer and the end is not hidden.
 */
static const struct {
        double rate, end;
} costs[2][N_GEMM_TILES] = {
        { [TILE_256X128] = { 1, 128 }, [TILE_128X192] = { 0.97, 128 }, [TILE_128X128] = { 0.92, 128 }, [TILE_192X128] = { 0.985, 128 } },
        { [TILE_256X128] = { 1, 740 }, [TILE_128X192] = { 0.91, 400 }, [TILE_128X128] = { 0.88, 256 }, [TILE_192X128] = { 1.075, 600 } },
};

enum gemm_tile gemm_plan(int n, const int64_t *M, const int64_t *N, int64_t K, bool vector, int multiprocessors) {
        enum gemm_tile best = TILE_256X128;
        double least = 0;

        for (int i = 0; i < N_GEMM_TILES; i++) {
                const struct gemm_tile_shape *t = &gemm_tile_shapes[i];
                const int64_t rows = t->m * (t->share_a ? 1 : 2), cols = t->n * (t->share_a ? 2 : 1);
                int64_t pairs = 0;
                double time;

                for (int k = 0; k < n; k++)
                        pairs += up(M[k], rows) * up(N[k], cols);
                time = (double)up(pairs, multiprocessors / 2) * (double)(t->m * t->n) * ((double)K + costs[vector][i].end) / costs[vector][i].rate;
                if (i == 0 || time < least) {
                        best = i;
                        least = time;
                }
        }
        return best;
}

/* At K = 512 it is 15% faster, at 1536 3% slower: the stages that it takes the room of are missed. */
bool gemm_plan_staged(int64_t K) {
        return K <= 1024;
}
