/* SPDX-License-Identifier: Apache-2.0 */
/* Around the quantiser (quantize.cu): a whole tensor's amax, dequantisation, what quantising did to the values, transposition of bytes and of grids of scales. */
#include "kernels/cuda/device.cuh"
#include "kernels/fp8.h"

__global__ void __launch_bounds__(THREADS) find_amax(const void *x, enum dtype t, int64_t n, uint32_t *amax) {
        uint32_t most = 0;

        for (int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 8; i < n; i += (int64_t)gridDim.x * THREADS * 8) {
                float v[8];

                load8(x, t, i, (int)(n - i < 8 ? n - i : 8), v);
#pragma unroll
                for (int k = 0; k < 8; k++)
                        most = max(most, __float_as_uint(v[k]) & 0x7fffffffu);
        }
        most = __reduce_max_sync(0xffffffff, most);
        if (threadIdx.x % 32 == 0 && most)
                atomicMax(amax, most);
}

extern "C" int cuda_launch_amax(const void *x, enum dtype t, int64_t n, uint32_t *amax, int sms, cudaStream_t s) {
        const unsigned blocks = blocks_of8(n);

        if (cudaMemsetAsync(amax, 0, sizeof *amax, s) != cudaSuccess)
                return -EIO;
        if (n > 0)
                find_amax<<<blocks < (unsigned)sms * 8 ? blocks : (unsigned)sms * 8, THREADS, 0, s>>>(x, t, n, amax);
        return launched();
}

/* Dequantisation scale of row r in column block kb. */
__device__ __forceinline__ float scale_at(const float *scale, int how, int64_t ld, int64_t r, int64_t kb) {
        return how == 1 ? scale[kb * ld + r] : how == 2 ? scale[r / 128 * ld + kb] : scale[0];
}

__global__ void __launch_bounds__(THREADS) dequantize(const void *q, enum dtype qt, const float *scale, int how, int64_t ld, int64_t rows, int64_t cols, void *x, enum dtype xt) {
        const int64_t in_row = (cols + 7) / 8, n = (int64_t)blockIdx.x * THREADS + threadIdx.x, r = n / in_row, c = n % in_row * 8;
        const int count = (int)(cols - c < 8 ? cols - c : 8);
        float v[8], f;

        if (r >= rows)
                return;
        f = scale_at(scale, how, ld, r, c / 128);
        load8(q, qt, r * cols + c, count, v);
#pragma unroll
        for (int k = 0; k < 8; k++)
                v[k] *= f;
        store8(x, xt, r * cols + c, count, v);
}

extern "C" int cuda_launch_dequantize(const void *q, enum dtype qt, const float *scale, int how, int64_t ld, int64_t rows, int64_t cols, void *x, enum dtype xt, cudaStream_t s) {
        const int64_t n = rows * ((cols + 7) / 8);

        if (n == 0)
                return 0;
        dequantize<<<(unsigned)((n + THREADS - 1) / THREADS), THREADS, 0, s>>>(q, qt, scale, how, ld, rows, cols, x, xt);
        return launched();
}

/* Eight elements a thread at a time; counted in registers, then in the warp, so that memory sees few additions. */
__global__ void __launch_bounds__(THREADS) quant_stats(const void *x, enum dtype xt, const uint8_t *q, bool e5m2, const float *scale, int how, int64_t ld, int64_t rows, int64_t cols,
                                                       unsigned long long *stats) {
        const int64_t in_row = (cols + 7) / 8, total = rows * in_row;
        const float clips = e5m2 ? FP8_E5M2_CLIPS : FP8_E4M3_CLIPS;
        unsigned saturated = 0, flushed = 0, amax = 0;

        for (int64_t n = (int64_t)blockIdx.x * THREADS + threadIdx.x; n < total; n += (int64_t)gridDim.x * THREADS) {
                const int64_t r = n / in_row, c = n % in_row * 8, at = r * cols + c;
                const int count = (int)(cols - c < 8 ? cols - c : 8);
                const float limit = clips * scale_at(scale, how, ld, r, c / 128);
                float v[8];

                load8(x, xt, at, count, v);
#pragma unroll
                for (int k = 0; k < 8; k++) {
                        if (k >= count)
                                continue;
                        amax = max(amax, __float_as_uint(v[k]) & 0x7fffffffu);
                        saturated += fabsf(v[k]) > limit;
                        flushed += (__float_as_uint(v[k]) & 0x7fffffffu) != 0 && (q[at + k] & 0x7f) == 0;
                }
        }
        saturated = __reduce_add_sync(0xffffffff, saturated);
        flushed = __reduce_add_sync(0xffffffff, flushed);
        amax = __reduce_max_sync(0xffffffff, amax);
        if (threadIdx.x % 32 == 0) {
                if (saturated)
                        atomicAdd(&stats[1], saturated);
                if (flushed)
                        atomicAdd(&stats[2], flushed);
                if (amax)
                        atomicMax(&stats[3], amax);
        }
        if (blockIdx.x == 0 && threadIdx.x == 0)
                atomicAdd(&stats[0], (unsigned long long)(rows * cols));
}

extern "C" int cuda_launch_quant_stats(const void *x, enum dtype xt, const uint8_t *q, bool e5m2, const float *scale, int how, int64_t ld, int64_t rows, int64_t cols, unsigned long long *stats,
                                       cudaStream_t s) {
        const int64_t most = 1024, n = (rows * ((cols + 7) / 8) + THREADS - 1) / THREADS;

        if (n == 0)
                return 0;
        quant_stats<<<(unsigned)(n < most ? n : most), THREADS, 0, s>>>(x, xt, q, e5m2, scale, how, ld, rows, cols, stats);
        return launched();
}

__global__ void transpose(const uint8_t *row, uint8_t *col, int64_t rows, int64_t cols) {
        __shared__ uint8_t tile[32][33];
        const int64_t r0 = (int64_t)blockIdx.y * 32, c0 = (int64_t)blockIdx.x * 32;

        for (int i = (int)threadIdx.y; i < 32; i += 8)
                if (r0 + i < rows && c0 + threadIdx.x < cols)
                        tile[i][threadIdx.x] = row[(r0 + i) * cols + c0 + threadIdx.x];
        __syncthreads();
        for (int i = (int)threadIdx.y; i < 32; i += 8)
                if (c0 + i < cols && r0 + threadIdx.x < rows)
                        col[(c0 + i) * rows + r0 + threadIdx.x] = tile[threadIdx.x][i];
}

extern "C" int cuda_launch_transpose(const uint8_t *row, uint8_t *col, int64_t rows, int64_t cols, cudaStream_t s) {
        const int64_t y = (rows + 31) / 32, x = (cols + 31) / 32;

        if (x == 0 || y == 0)
                return 0;
        if (y > 65535)
                return -EINVAL;
        transpose<<<dim3((unsigned)x, (unsigned)y), dim3(32, 8), 0, s>>>(row, col, rows, cols);
        return launched();
}

__global__ void __launch_bounds__(THREADS) transpose_scales(const float *row, float *col, int64_t rows, int64_t cols, int64_t row_ld, int64_t col_ld) {
        const int64_t n = (int64_t)blockIdx.x * THREADS + threadIdx.x, r = n / cols, c = n % cols;

        if (r < rows)
                col[c * col_ld + r] = row[r * row_ld + c];
}

extern "C" int cuda_launch_transpose_scales(const float *row, float *col, int64_t rows, int64_t cols, int64_t row_ld, int64_t col_ld, cudaStream_t s) {
        if (rows * cols == 0)
                return 0;
        transpose_scales<<<(unsigned)((rows * cols + THREADS - 1) / THREADS), THREADS, 0, s>>>(row, col, rows, cols, row_ld, col_ld);
        return launched();
}
