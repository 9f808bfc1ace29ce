/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RMSNorm, kernels/cpu/norm.c: a block a row; the sums over a row have an order of their own, so that rstd may differ from the CPU's in its last bits.  Where a row is BF16, a multiple of 8 long
 * and at most 8192, the block has a thread for every eight columns, which keeps them in registers; other rows take the general kernels.
 */
#include "kernels/cuda/device.cuh"

__global__ void __launch_bounds__(THREADS) norm_fwd(void *residual, const void *from, const void *delta, const float *w, float eps, void *y, float *rstd, enum dtype act, int64_t H) {
        const int64_t at = (int64_t)blockIdx.x * H;
        __shared__ float room[THREADS / 32];
        float sum = 0, r;

        for (int64_t c = threadIdx.x * 8; c < H; c += THREADS * 8) {
                const int n = (int)(H - c < 8 ? H - c : 8);
                float x[8], d[8];

                load8(from, act, at + c, n, x);
                if (delta) {
                        load8(delta, act, at + c, n, d);
#pragma unroll
                        for (int k = 0; k < 8; k++) {
                                x[k] += d[k];
                                x[k] = act == DT_BF16 ? bf16_to(bf16_from(x[k])) : x[k];
                        }
                }
                if (delta || from != residual)
                        store8(residual, act, at + c, n, x);
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

#define ROW_MAX 8192 /* columns, eight a thread */

static unsigned row_threads(int64_t H) {
        return (unsigned)((H / 8 + 31) / 32 * 32);
}

static bool row_fits(int64_t H, enum dtype act, const void *const *p, int n) {
        bool ok = act == DT_BF16 && H % 8 == 0 && H <= ROW_MAX;

        for (int i = 0; i < n; i++)
                ok = ok && vector_aligned(p[i]);
        return ok;
}

__global__ void __launch_bounds__(ROW_MAX / 8) norm_fwd_row(void *residual, const void *from, const void *delta, const float *w, float eps, void *y, float *rstd, int64_t H) {
        const int64_t c = threadIdx.x * 8, at = (int64_t)blockIdx.x * H + c;
        __shared__ float room[32];
        float x[8] = {}, d[8], sum = 0, r;

        if (c < H) {
                load_vector<DT_BF16>(from, at, x);
                if (delta) {
                        load_vector<DT_BF16>(delta, at, d);
#pragma unroll
                        for (int k = 0; k < 8; k++)
                                x[k] = bf16_to(bf16_from(x[k] + d[k]));
                }
                if (delta || from != residual)
                        store_vector<DT_BF16>(residual, at, x);
        }
#pragma unroll
        for (int k = 0; k < 8; k++)
                sum += x[k] * x[k];
        sum = block_sum_of<0>(sum, room);
        r = __fdiv_rn(1.f, __fsqrt_rn(__fdiv_rn(sum, (float)H) + eps));
        if (threadIdx.x == 0)
                rstd[blockIdx.x] = r;
        if (y && c < H) {
                load_vector<DT_F32>(w, c, d);
#pragma unroll
                for (int k = 0; k < 8; k++)
                        x[k] = x[k] * r * d[k];
                store_vector<DT_BF16>(y, at, x);
        }
}

extern "C" int cuda_launch_norm_fwd(void *residual, const void *from, const void *delta, const float *w, float eps, void *y, float *rstd, enum dtype act, int64_t T, int64_t H, cudaStream_t s) {
        const void *const all[] = { residual, from, delta, w, y };

        if (T == 0)
                return 0;
        if (row_fits(H, act, all, 5))
                norm_fwd_row<<<(unsigned)T, row_threads(H), 0, s>>>(residual, from, delta, w, eps, y, rstd, H);
        else
                norm_fwd<<<(unsigned)T, THREADS, 0, s>>>(residual, from, delta, w, eps, y, rstd, act, H);
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

template <enum dtype DYT> __global__ void __launch_bounds__(ROW_MAX / 8) norm_bwd_row(void *dresidual, const void *dy, const void *x, const float *w, const float *rstd, int64_t T, int64_t H,
                                                                                      float *partial) {
        const int64_t c = threadIdx.x * 8;
        __shared__ float room[32];
        float g[8] = {}, dw[8] = {};

        if (c < H)
                load_vector<DT_F32>(w, c, g);
        for (int64_t t = blockIdx.x; t < T; t += gridDim.x) {
                const float r = rstd[t];
                float xh[8] = {}, d[8] = {}, dr[8], sum = 0, mean;

                if (c < H) {
                        load_vector<DT_BF16>(x, t * H + c, xh);
                        load_vector<DYT>(dy, t * H + c, d);
                        load_vector<DT_BF16>(dresidual, t * H + c, dr);
                }
#pragma unroll
                for (int k = 0; k < 8; k++) {
                        xh[k] *= r;
                        sum += d[k] * g[k] * xh[k];
                        dw[k] += d[k] * xh[k];
                }
                mean = __fdiv_rn(block_sum_of<0>(sum, room), (float)H);
                if (c < H) {
#pragma unroll
                        for (int k = 0; k < 8; k++)
                                dr[k] += r * (d[k] * g[k] - xh[k] * mean);
                        store_vector<DT_BF16>(dresidual, t * H + c, dr);
                }
        }
        if (c < H)
                store_vector<DT_F32>(partial, (int64_t)blockIdx.x * H + c, dw);
}

#define DW_COLS 32 /* of a block of norm_dw; its THREADS / DW_COLS groups take every so-manieth part */

__global__ void __launch_bounds__(THREADS) norm_dw(float *dw, const float *partial, int parts, int64_t H) {
        constexpr int groups = THREADS / DW_COLS;
        const int64_t c = (int64_t)blockIdx.x * DW_COLS + threadIdx.x % DW_COLS;
        const int group = (int)threadIdx.x / DW_COLS;
        __shared__ float room[groups][DW_COLS];
        float sum = 0;

        if (c < H) {
#pragma unroll 8
                for (int i = group; i < parts; i += groups)
                        sum += partial[i * H + c];
        }
        room[group][threadIdx.x % DW_COLS] = sum;
        __syncthreads();
        if (group != 0 || c >= H)
                return;
        for (int i = 1; i < groups; i++)
                sum += room[i][threadIdx.x];
        dw[c] += sum;
}

/* As many blocks as are there at a time. */
extern "C" int cuda_norm_parts(int64_t T, int64_t H, int sms) {
        const int64_t parts = (int64_t)sms * (H <= ROW_MAX ? 1024 / row_threads(H / 8 * 8 + 8) : 2);

        return (int)(T < parts ? T : parts);
}

/* A block has at most 8 columns a thread, and 1024 threads of blocks are there at a time; a last warp may be empty but for one thread. */
extern "C" size_t cuda_norm_room(int sms) {
        return (size_t)sms * 1024 * 8 * sizeof(float);
}

extern "C" int cuda_launch_norm_bwd(void *dresidual, float *dw, const void *dy, enum dtype dyt, const void *x, const float *w, const float *rstd, enum dtype act, int64_t T, int64_t H,
                                    float *partial, int parts, cudaStream_t s) {
        const void *const all[] = { dresidual, dy, x, w };
        const int shared = (int)(H * 4);

        if (T == 0)
                return 0;
        if (row_fits(H, act, all, 4)) {
                if (dyt == DT_BF16)
                        norm_bwd_row<DT_BF16><<<parts, row_threads(H), 0, s>>>(dresidual, dy, x, w, rstd, T, H, partial);
                else
                        norm_bwd_row<DT_F32><<<parts, row_threads(H), 0, s>>>(dresidual, dy, x, w, rstd, T, H, partial);
        } else {
                if (H > 48 * 1024)
                        return -EINVAL;
                if (cudaFuncSetAttribute(norm_bwd, cudaFuncAttributeMaxDynamicSharedMemorySize, shared) != cudaSuccess)
                        return -EIO;
                norm_bwd<<<parts, THREADS, shared, s>>>(dresidual, dy, dyt, x, w, rstd, act, T, H, partial);
        }
        norm_dw<<<(unsigned)((H + DW_COLS - 1) / DW_COLS), THREADS, 0, s>>>(dw, partial, parts, H);
        return launched();
}
