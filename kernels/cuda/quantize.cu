/* SPDX-License-Identifier: Apache-2.0 */
/* Quantisation of a matrix that lies in memory, tile by tile. */
#include <errno.h>

#include "kernels/cuda/tile.cuh"

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

/* What training asks for most. */
__global__ void __launch_bounds__(TILE_THREADS, 3) quantize_both(const __grid_constant__ struct quantize_launch q) {
        __shared__ struct both_room room;
        const int64_t r0 = (int64_t)blockIdx.y * TILE + threadIdx.x / 16 * 4, c = (int64_t)blockIdx.x * TILE + threadIdx.x % 16 * 8;
        uint4 v[4];

#pragma unroll
        for (int i = 0; i < 4; i++)
                v[i] = r0 + i < q.rows && c < q.cols ? __ldcs((const uint4 *)((const uint16_t *)q.x + (r0 + i) * q.cols + c)) : make_uint4(0, 0, 0, 0);
        emit_both(q, v, &room, blockIdx.y, blockIdx.x);
}

template <bool F32, bool E5M2> static int launch(const struct quantize_launch *q, cudaStream_t s) {
        const int64_t tr = (q->rows + TILE - 1) / TILE, tc = (q->cols + TILE - 1) / TILE;
        const dim3 grid((unsigned)tc, (unsigned)tr);

        if (tr == 0 || tc == 0)
                return 0;
        if (tr > 65535 || tc > INT32_MAX)
                return -EINVAL;
        if (both_fit(q) && !q->x_scale)
                quantize_both<<<grid, TILE_THREADS, 0, s>>>(*q);
        else if (q->blocks)
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

/* ------------------------------------------------------------------ weights */

struct several {
        struct quantize_launch q[QUANTIZE_MANY];
        int n, first[QUANTIZE_MANY]; /* number of matrix i's first tile */
};

/* One launch for the weights of a layer, each of which alone fills the device for one wave or less. */
__global__ void __launch_bounds__(THREADS, 3) quantize_several(const __grid_constant__ struct several p) {
        __shared__ struct tile_room room;
        struct tile t;
        eight<false> x[8];
        int i = 0, number, tiles;

        while (i + 1 < p.n && (int)blockIdx.x >= p.first[i + 1])
                i++;
        const struct quantize_launch &q = p.q[i];

        number = (int)blockIdx.x - p.first[i];
        tiles = (int)((q.cols + TILE - 1) / TILE);
        t = tile_here(number / tiles, number % tiles, q.rows, q.cols);
#pragma unroll
        for (int k = 0; k < 8; k++)
                x[k].load(q.x, (t.r0 + k) * q.cols + t.c0, k < t.rows ? t.cols : 0, q.cols % 8 == 0);
        emit<false, false, true>(q, x, t, room.staged, room.col);
}

extern "C" int cuda_launch_quantize_many(int n, const struct quantize_launch *q, cudaStream_t s) {
        struct several p;
        int64_t tiles = 0;

        p.n = n;
        for (int i = 0; i < n; i++) {
                p.q[i] = q[i];
                p.first[i] = (int)tiles;
                tiles += (q[i].rows + TILE - 1) / TILE * ((q[i].cols + TILE - 1) / TILE);
        }
        if (tiles > INT32_MAX)
                return -EOPNOTSUPP;
        if (tiles > 0)
                quantize_several<<<(unsigned)tiles, THREADS, 0, s>>>(p);
        return cudaGetLastError() == cudaSuccess ? 0 : -EIO;
}
