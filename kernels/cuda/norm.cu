/* SPDX-License-Identifier: Apache-2.0 */
/* RMSNorm, kernels/cpu/norm.c: a block a row; the sums over a row have an order of their own, so that rstd may differ from the CPU's in its last bits. */
#include "kernels/cuda/device.cuh"

__global__ void __launch_bounds__(THREADS) norm_fwd(void *residual, const void *delta, const float *w, float eps, void *y, float *rstd, enum dtype act, int64_t H) {
        const int64_t at = (int64_t)blockIdx.x * H;
        __shared__ float room[THREADS / 32];
        float sum = 0, r;

        for (int64_t c = threadIdx.x * 8; c < H; c += THREADS * 8) {
                const int n = (int)(H - c < 8 ? H - c : 8);
                float x[8], d[8];

                load8(residual, act, at + c, n, x);
                if (delta) {
                        load8(delta, act, at + c, n, d);
#pragma unroll
                        for (int k = 0; k < 8; k++) {
                                x[k] += d[k];
                                x[k] = act == DT_BF16 ? bf16_to(bf16_from(x[k])) : x[k];
                        }
                        store8(residual, act, at + c, n, x);
                }
#pragma unroll
                for (int k = 0; k < 8; k++)
                        sum += x[k] * x[k];
        }
        sum = block_sum(sum, room);
        r = __fdiv_rn(1.f, __fsqrt_rn(__fdiv_rn(sum, (float)H) + eps));
        if (threadIdx.x == 0)
                rstd[blockIdx.x] = r;
        /* Each thread reads back what it wrote itself. */
        for (int64_t c = threadIdx.x * 8; y && c < H; c += THREADS * 8) {
                const int n = (int)(H - c < 8 ? H - c : 8);
                float x[8], g[8];

                load8(residual, act, at + c, n, x);
                load8(w, DT_F32, c, n, g);
#pragma unroll
                for (int k = 0; k < 8; k++)
                        x[k] = x[k] * r * g[k];
                store8(y, act, at + c, n, x);
        }
}

extern "C" int cuda_launch_norm_fwd(void *residual, const void *delta, const float *w, float eps, void *y, float *rstd, enum dtype act, int64_t T, int64_t H, cudaStream_t s) {
        if (T == 0)
                return 0;
        norm_fwd<<<(unsigned)T, THREADS, 0, s>>>(residual, delta, w, eps, y, rstd, act, H);
        return launched();
}

/* Rows blockIdx.x, + gridDim.x, ...: a thread owns its columns, so that its part of dw needs no other's. */
__global__ void __launch_bounds__(THREADS) norm_bwd(void *dresidual, const void *dy, enum dtype dyt, const void *x, const float *w, const float *rstd, enum dtype act, int64_t T,
                                                    int64_t H, float *partial) {
        extern __shared__ float dw[];
        __shared__ float room[THREADS / 32];

        for (int64_t c = threadIdx.x * 8; c < H; c += THREADS * 8)
                for (int k = 0; k < 8 && c + k < H; k++)
                        dw[c + k] = 0;
        for (int64_t t = blockIdx.x; t < T; t += gridDim.x) {
                const float r = rstd[t];
                float sum = 0, mean;

                for (int64_t c = threadIdx.x * 8; c < H; c += THREADS * 8) {
                        const int n = (int)(H - c < 8 ? H - c : 8);
                        float xh[8], d[8], g[8];

                        load8(x, act, t * H + c, n, xh);
                        load8(dy, dyt, t * H + c, n, d);
                        load8(w, DT_F32, c, n, g);
#pragma unroll
                        for (int k = 0; k < 8; k++) {
                                xh[k] *= r;
                                sum += d[k] * g[k] * xh[k];
                                if (k < n)
                                        dw[c + k] += d[k] * xh[k];
                        }
                }
                mean = __fdiv_rn(block_sum(sum, room), (float)H);
                for (int64_t c = threadIdx.x * 8; c < H; c += THREADS * 8) {
                        const int n = (int)(H - c < 8 ? H - c : 8);
                        float xh[8], d[8], g[8], dr[8];

                        load8(x, act, t * H + c, n, xh);
                        load8(dy, dyt, t * H + c, n, d);
                        load8(w, DT_F32, c, n, g);
                        load8(dresidual, act, t * H + c, n, dr);
#pragma unroll
                        for (int k = 0; k < 8; k++)
                                dr[k] += r * (d[k] * g[k] - xh[k] * r * mean);
                        store8(dresidual, act, t * H + c, n, dr);
                }
        }
        for (int64_t c = threadIdx.x * 8; c < H; c += THREADS * 8)
                for (int k = 0; k < 8 && c + k < H; k++)
                        partial[(int64_t)blockIdx.x * H + c + k] = dw[c + k];
}

__global__ void __launch_bounds__(THREADS) norm_dw(float *dw, const float *partial, int parts, int64_t H) {
        const int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x;
        float sum = 0;

        if (c >= H)
                return;
        for (int i = 0; i < parts; i++)
                sum += partial[i * H + c];
        dw[c] += sum;
}

extern "C" int cuda_launch_norm_bwd(void *dresidual, float *dw, const void *dy, enum dtype dyt, const void *x, const float *w, const float *rstd, enum dtype act, int64_t T, int64_t H,
                                    float *partial, cudaStream_t s) {
        const int parts = (int)(T < CUDA_NORM_PARTS ? T : CUDA_NORM_PARTS), shared = (int)(H * 4);

        if (T == 0)
                return 0;
        if (H > 48 * 1024)
                return -EINVAL;
        if (cudaFuncSetAttribute(norm_bwd, cudaFuncAttributeMaxDynamicSharedMemorySize, shared) != cudaSuccess)
                return -EIO;
        norm_bwd<<<parts, THREADS, shared, s>>>(dresidual, dy, dyt, x, w, rstd, act, T, H, partial);
        norm_dw<<<(unsigned)((H + THREADS - 1) / THREADS), THREADS, 0, s>>>(dw, partial, parts, H);
        return launched();
}
