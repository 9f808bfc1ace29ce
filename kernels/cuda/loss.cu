/* SPDX-License-Identifier: Apache-2.0 */
/* Vocabulary-parallel cross-entropy, kernels/cpu/cross_entropy.c: a block a token. */
#include <float.h>

#include "kernels/cuda/device.cuh"

/* The greatest, NaN if one is there: the sum after it is NaN in any case. */
__device__ __forceinline__ float greater(float a, float b) {
        return a >= b || a != a ? a : b;
}

__global__ void __launch_bounds__(THREADS) ce_max(const void *logits, enum dtype lt, float *rowmax, int64_t V) {
        const int64_t at = (int64_t)blockIdx.x * V;
        __shared__ float room[THREADS / 32];
        float m = -INFINITY;

        for (int64_t c = threadIdx.x * 8; c < V; c += THREADS * 8) {
                const int n = (int)(V - c < 8 ? V - c : 8);
                float x[8];

                load8(logits, lt, at + c, n, x);
#pragma unroll
                for (int k = 0; k < 8; k++)
                        m = k < n ? greater(m, x[k]) : m;
        }
        for (int d = 16; d > 0; d >>= 1)
                m = greater(m, __shfl_xor_sync(0xffffffff, m, d));
        if (threadIdx.x % 32 == 0)
                room[threadIdx.x / 32] = m;
        __syncthreads();
        if (threadIdx.x == 0) {
                for (int w = 1; w < THREADS / 32; w++)
                        m = greater(m, room[w]);
                rowmax[blockIdx.x] = m;
        }
}

extern "C" int cuda_launch_ce_max(const void *logits, enum dtype lt, float *rowmax, int64_t T, int64_t V, cudaStream_t s) {
        if (T == 0)
                return 0;
        ce_max<<<(unsigned)T, THREADS, 0, s>>>(logits, lt, rowmax, V);
        return launched();
}

__global__ void __launch_bounds__(THREADS) ce_sum(const void *logits, enum dtype lt, const float *rowmax, const int32_t *labels, float *sumexp, float *target, int64_t v0, int64_t V) {
        const int64_t t = blockIdx.x, at = t * V, label = labels[t] - v0;
        const float shift = rowmax[t];
        __shared__ float room[THREADS / 32];
        float sum = 0;

        for (int64_t c = threadIdx.x * 8; c < V; c += THREADS * 8) {
                const int n = (int)(V - c < 8 ? V - c : 8);
                float x[8];

                load8(logits, lt, at + c, n, x);
#pragma unroll
                for (int k = 0; k < 8; k++)
                        sum += k < n ? exp_cpu(x[k] - shift) : 0;
        }
        sum = block_sum(sum, room);
        if (threadIdx.x == 0) {
                sumexp[t] = sum;
                target[t] = labels[t] >= 0 && label >= 0 && label < V ? load1(logits, lt, at + label) : 0;
        }
}

extern "C" int cuda_launch_ce_sum(const void *logits, enum dtype lt, const float *rowmax, const int32_t *labels, float *sumexp, float *target, int64_t T, int64_t v0, int64_t V,
                                  cudaStream_t s) {
        if (T == 0)
                return 0;
        ce_sum<<<(unsigned)T, THREADS, 0, s>>>(logits, lt, rowmax, labels, sumexp, target, v0, V);
        return launched();
}

/* One block: the sum is in an order of its own, but always in the same. */
__global__ void __launch_bounds__(THREADS) ce_loss(const float *rowmax, const float *sumexp, const float *target, const int32_t *labels, float *loss_sum, int64_t T) {
        __shared__ double room[THREADS / 32];
        double loss = 0;

        for (int64_t t = threadIdx.x; t < T; t += THREADS)
                if (labels[t] >= 0)
                        loss += (double)((float)log((double)sumexp[t]) + rowmax[t] - target[t]);
        loss = block_sum(loss, room);
        if (threadIdx.x == 0)
                *loss_sum = (float)((double)*loss_sum + loss);
}

__global__ void __launch_bounds__(THREADS) ce_bwd(const void *logits, enum dtype lt, const float *rowmax, const float *sumexp, const int32_t *labels, double gscale, void *dlogits,
                                                  enum dtype act, int64_t v0, int64_t V) {
        const int64_t t = blockIdx.x, at = t * V, label = labels[t] - v0;
        const float shift = rowmax[t], factor = (float)(gscale / (double)sumexp[t]);
        const bool counts = labels[t] >= 0;

        for (int64_t c = threadIdx.x * 8; c < V; c += THREADS * 8) {
                const int n = (int)(V - c < 8 ? V - c : 8);
                float x[8];

                load8(logits, lt, at + c, n, x);
#pragma unroll
                for (int k = 0; k < 8; k++) {
                        x[k] = counts ? exp_cpu(x[k] - shift) * factor : 0;
                        x[k] -= counts && c + k == label ? (float)gscale : 0;
                }
                store8(dlogits, act, at + c, n, x);
        }
}

extern "C" int cuda_launch_ce_bwd(const void *logits, enum dtype lt, const float *rowmax, const float *sumexp, const float *target, const int32_t *labels, double gscale,
                                  float *loss_sum, void *dlogits, enum dtype act, int64_t T, int64_t v0, int64_t V, cudaStream_t s) {
        if (T == 0)
                return 0;
        ce_loss<<<1, THREADS, 0, s>>>(rowmax, sumexp, target, labels, loss_sum, T);
        if (dlogits)
                ce_bwd<<<(unsigned)T, THREADS, 0, s>>>(logits, lt, rowmax, sumexp, labels, gscale, dlogits, act, v0, V);
        return launched();
}

/* ------------------------------------------------------------------ all of it, for a whole vocabulary */

#define ROW_THREADS 1024
#define LOG2_E 1.44269504088896341f

__device__ __forceinline__ float exp2_fast(float x) {
        float r;

        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
        return r;
}

/*
 * A block a token and one block a multiprocessor, so that what the second pass reads (128 KB at 32,000 logits) is still in the second-level cache.  The first pass keeps a maximum and a sum of
 * exponentials a thread and scales the sum when the maximum grows; a NaN is lost to the maximum, but not to the sum.
 */
__global__ void __launch_bounds__(ROW_THREADS) ce_row(const float *logits, const int32_t *labels, double gscale, uint16_t *dlogits, float *losses, int64_t V) {
        const int64_t t = blockIdx.x;
        const int32_t label = labels[t];
        const float *row = logits + t * V;
        __shared__ float maxima[ROW_THREADS / 32], room[ROW_THREADS / 32];
        float most = -FLT_MAX, sum = 0, all;

#pragma unroll 2
        for (int64_t c = threadIdx.x * 8; c < V; c += ROW_THREADS * 8) {
                float x[8], m = most;

                load_vector<DT_F32>(row, c, x);
#pragma unroll
                for (int k = 0; k < 8; k++)
                        m = fmaxf(m, x[k]);
                sum *= exp2_fast((most - m) * LOG2_E);
#pragma unroll
                for (int k = 0; k < 8; k++)
                        sum += exp2_fast((x[k] - m) * LOG2_E);
                most = m;
        }
        all = most;
#pragma unroll
        for (int d = 16; d > 0; d >>= 1)
                all = fmaxf(all, __shfl_xor_sync(0xffffffff, all, d));
        if (threadIdx.x % 32 == 0)
                maxima[threadIdx.x / 32] = all;
        __syncthreads();
#pragma unroll
        for (int w = 0; w < ROW_THREADS / 32; w++)
                all = fmaxf(all, maxima[w]);
        sum = block_sum_of<ROW_THREADS>(sum * exp2_fast((most - all) * LOG2_E), room);
        if (threadIdx.x == 0)
                losses[t] = label >= 0 ? (float)log((double)sum) + all - (label < V ? row[label] : 0) : 0;
        if (!dlogits)
                return;
        const float factor = label >= 0 ? (float)(gscale / (double)sum) : 0;

#pragma unroll 2
        for (int64_t c = threadIdx.x * 8; c < V; c += ROW_THREADS * 8) {
                float x[8];
                uint32_t w[4];

                load_vector<DT_F32>(row, c, x);
#pragma unroll
                for (int k = 0; k < 8; k++)
                        x[k] = label >= 0 ? exp2_fast((x[k] - all) * LOG2_E) * factor : 0;
                if (label >= c && label < c + 8)
#pragma unroll
                        for (int k = 0; k < 8; k++)
                                x[k] -= c + k == label ? (float)gscale : 0;
#pragma unroll
                for (int k = 0; k < 4; k++)
                        w[k] = bf16_from(x[2 * k]) | (uint32_t)bf16_from(x[2 * k + 1]) << 16;
                __stcs((uint4 *)(dlogits + t * V + c), make_uint4(w[0], w[1], w[2], w[3]));
        }
}

__global__ void __launch_bounds__(ROW_THREADS) ce_total(const float *losses, const int32_t *labels, float *loss_sum, int64_t T) {
        __shared__ double room[ROW_THREADS / 32];
        double loss = 0;

        for (int64_t t = threadIdx.x; t < T; t += ROW_THREADS)
                if (labels[t] >= 0)
                        loss += (double)losses[t];
        loss = block_sum_of<ROW_THREADS>(loss, room);
        if (threadIdx.x == 0)
                *loss_sum = (float)((double)*loss_sum + loss);
}

extern "C" int cuda_launch_cross_entropy(const void *logits, const int32_t *labels, double gscale, float *loss_sum, void *dlogits, float *losses, int64_t T, int64_t V, cudaStream_t s) {
        if (V % 8 != 0 || !vector_aligned(logits) || !vector_aligned(dlogits) || logits == dlogits)
                return -EOPNOTSUPP;
        if (T == 0)
                return 0;
        ce_row<<<(unsigned)T, ROW_THREADS, 0, s>>>((const float *)logits, labels, gscale, (uint16_t *)dlogits, losses, V);
        ce_total<<<1, ROW_THREADS, 0, s>>>(losses, labels, loss_sum, T);
        return launched();
}
