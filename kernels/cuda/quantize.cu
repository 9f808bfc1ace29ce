/* SPDX-License-Identifier: Apache-2.0 */
/* Quantisation of a matrix that lies in memory, tile by tile. */
#include <errno.h>

#include "kernels/cuda/quantize.cuh"

template <bool F32, bool E5M2, bool BLOCKS> __global__ void __launch_bounds__(THREADS, F32 ? 2 : 3) quantize(const __grid_constant__ struct quantize_launch q) {
        __shared__ struct tile_room room;
        const struct tile t = tile_here(blockIdx.y, blockIdx.x, q.rows, q.cols);
        eight<F32> x[8];

#pragma unroll
        for (int i = 0; i < 8; i++) {
                const int n = i < t.rows ? t.cols : 0;

                if constexpr (F32) {
                        if (q.x_scale) {
                                x[i].load_fp8((const uint8_t *)q.x + (t.r0 + i) * q.cols + t.c0, n > 0 ? q.x_scale[t.tc * q.x_scale_ld + t.r0 + i] : 0, n, E5M2);
                                continue;
                        }
                }
                x[i].load(q.x, (t.r0 + i) * q.cols + t.c0, n, q.cols % 8 == 0);
        }
        emit<F32, E5M2, BLOCKS>(q, x, t, room.staged, room.col);
}

template <bool F32, bool E5M2> static int launch(const struct quantize_launch *q, cudaStream_t s) {
        const int64_t tr = (q->rows + TILE - 1) / TILE, tc = (q->cols + TILE - 1) / TILE;
        const dim3 grid((unsigned)tc, (unsigned)tr);

        if (tr == 0 || tc == 0)
                return 0;
        if (tr > 65535 || tc > INT32_MAX)
                return -EINVAL;
        if (q->blocks)
                quantize<F32, E5M2, true><<<grid, THREADS, 0, s>>>(*q);
        else
                quantize<F32, E5M2, false><<<grid, THREADS, 0, s>>>(*q);
        return cudaGetLastError() == cudaSuccess ? 0 : -EIO;
}

extern "C" int cuda_launch_quantize(const struct quantize_launch *q, cudaStream_t s) {
        if (q->f32)
                return q->e5m2 ? launch<true, true>(q, s) : launch<true, false>(q, s);
        return q->e5m2 ? launch<false, true>(q, s) : launch<false, false>(q, s);
}
