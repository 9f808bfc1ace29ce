/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gradient statistics, AdamW and the amax history, kernels/cpu/optimizer.c: AdamW element for element in the CPU's bits.  Lists of tensors go by value with the launch, a batch at a
 * time, so that nothing is uploaded.
 */
#include <float.h>

#include "kernels/cuda/device.cuh"
#include "kernels/dev.h"

/* ------------------------------------------------------------------ statistics */

struct stats_batch {
        const float *grad[CUDA_STATS_BATCH];
        int64_t count[CUDA_STATS_BATCH];
        double factor[CUDA_STATS_BATCH];
        unsigned long long index[CUDA_STATS_BATCH];
        int n;
};

/* Row y of the grid: tensor y. Each block's sum has its place, whatever order they run in. */
__global__ void __launch_bounds__(THREADS) grad_parts(const __grid_constant__ stats_batch b, unsigned long long *bad, double *partial) {
        const float *g = b.grad[blockIdx.y];
        const int64_t count = b.count[blockIdx.y], step = (int64_t)gridDim.x * THREADS * 8;
        __shared__ double room[THREADS / 32];
        double sum = 0;
        int wrong = 0;

        for (int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 8; i < count; i += step) {
                float v[8];

                load8(g, DT_F32, i, (int)(count - i < 8 ? count - i : 8), v);
#pragma unroll
                for (int k = 0; k < 8; k++) {
                        sum += (double)v[k] * (double)v[k];
                        wrong |= (__float_as_uint(v[k]) & 0x7f800000u) == 0x7f800000u;
                }
        }
        sum = block_sum(sum, room);
        if (threadIdx.x == 0)
                partial[blockIdx.y * CUDA_STATS_BLOCKS + blockIdx.x] = sum;
        if (bad && __syncthreads_or(wrong) && threadIdx.x == 0)
                atomicMin(bad, b.index[blockIdx.y]);
}

__global__ void __launch_bounds__(CUDA_STATS_BATCH) grad_total(const __grid_constant__ stats_batch b, double *sumsq, const double *partial, int blocks) {
        __shared__ double sums[CUDA_STATS_BATCH];
        double sum = 0;

        if (threadIdx.x < b.n)
                for (int i = 0; i < blocks; i++)
                        sum += partial[threadIdx.x * CUDA_STATS_BLOCKS + i];
        sums[threadIdx.x] = sum;
        __syncthreads();
        if (threadIdx.x == 0) {
                double total = *sumsq;

                for (int i = 0; i < b.n; i++)
                        if (b.factor[i] != 0)
                                total += sums[i] * b.factor[i];
                *sumsq = total;
        }
}

extern "C" int cuda_launch_grad_stats(int n, const float *const *grads, const int64_t *counts, const double *factors, const uint64_t *indices, double *sumsq, unsigned long long *bad,
                                      double *partial, cudaStream_t s) {
        for (int first = 0; first < n; first += CUDA_STATS_BATCH) {
                stats_batch b = {};

                b.n = n - first < CUDA_STATS_BATCH ? n - first : CUDA_STATS_BATCH;
                for (int i = 0; i < b.n; i++) {
                        b.grad[i] = grads[first + i];
                        b.count[i] = counts[first + i];
                        b.factor[i] = factors[first + i];
                        b.index[i] = indices[first + i];
                }
                grad_parts<<<dim3(CUDA_STATS_BLOCKS, (unsigned)b.n), THREADS, 0, s>>>(b, bad, partial);
                grad_total<<<1, CUDA_STATS_BATCH, 0, s>>>(b, sumsq, partial, CUDA_STATS_BLOCKS);
        }
        return launched();
}

/* ------------------------------------------------------------------ AdamW */

#define ADAM_BATCH 24
#define NEAREST_MAX_BETA 0.95 /* kernels/cpu/optimizer.c */

struct adam_batch {
        adamw_tensor t[ADAM_BATCH];
        const step_params *p;
        enum dtype moments, param;
        uint32_t vectors; /* bit i: tensor i is a multiple of 8 long, all its arrays are aligned */
};

__device__ __forceinline__ uint64_t mix64(uint64_t z) {
        z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
        return z ^ (z >> 31);
}

__device__ __forceinline__ uint64_t rounding_key(const adamw_tensor &t, uint64_t rng, uint64_t moment) {
        return mix64(mix64(rng) ^ mix64(t.name_hash + moment));
}

__device__ __forceinline__ uint64_t place_of(const adamw_tensor &t, int64_t i) {
        const int64_t cols = t.cols > 0 ? t.cols : t.count;

        return (uint64_t)((t.row0 + i / cols) * t.global_cols + t.col0 + i % cols);
}

/* A moment's neighbours i .. i + n: to nearest, or up with the probability of the dropped part. */
__device__ __forceinline__ void store_moment(const adamw_tensor &t, void *to, enum dtype type, int64_t i, int n, const float (&x)[8], bool stochastic, uint64_t key) {
        if (type != DT_BF16 || !stochastic) {
                store8(to, type, i, n, x);
                return;
        }
        for (int k = 0; k < n; k++) {
                const uint32_t u = __float_as_uint(x[k]), random = (uint32_t)(mix64(key + place_of(t, i + k) * UINT64_C(0x9e3779b97f4a7c15)) >> 48);

                ((uint16_t *)to)[i + k] = (u & 0x7f800000u) == 0x7f800000u ? bf16_from(x[k]) : (uint16_t)((u + random) >> 16);
        }
}

struct adam_factors {
        float lr, decay, beta1, beta2, one_beta1, one_beta2, eps, bias1, bias2, grad_scale;
};

__device__ __forceinline__ void adam_step(const adam_factors &f, float (&w)[8], const float (&g)[8], float (&m)[8], float (&v)[8]) {
#pragma unroll
        for (int k = 0; k < 8; k++) {
                const float x = g[k] * f.grad_scale;

                m[k] = f.beta1 * m[k] + f.one_beta1 * x;
                v[k] = f.beta2 * v[k] + f.one_beta2 * (x * x);
                w[k] -= f.lr * (__fdiv_rn(__fdiv_rn(m[k], f.bias1), __fsqrt_rn(__fdiv_rn(v[k], f.bias2)) + f.eps) + f.decay * w[k]);
        }
}

/* Whole vectors only. */
template <enum dtype MOMENTS> __device__ __forceinline__ void adam_vectors(const adamw_tensor &t, const adam_factors &f, bool m_random, bool v_random, uint64_t m_key, uint64_t v_key) {
        for (int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 8; i < t.count; i += (int64_t)gridDim.x * THREADS * 8) {
                float w[8], g[8], m[8], v[8];

                load_vector<DT_F32>(t.master, i, w);
                load_vector<DT_F32>(t.grad, i, g);
                load_vector<MOMENTS>(t.m, i, m);
                load_vector<MOMENTS>(t.v, i, v);
                adam_step(f, w, g, m, v);
                store_vector<DT_F32>(t.master, i, w);
                if constexpr (MOMENTS == DT_BF16) {
                        store_moment(t, t.m, MOMENTS, i, 8, m, m_random, m_key);
                        store_moment(t, t.v, MOMENTS, i, 8, v, v_random, v_key);
                } else {
                        store_vector<MOMENTS>(t.m, i, m);
                        store_vector<MOMENTS>(t.v, i, v);
                }
                if (t.param)
                        store_vector<DT_BF16>(t.param, i, w);
        }
}

__global__ void __launch_bounds__(THREADS) adamw(const __grid_constant__ adam_batch b) {
        const adamw_tensor &t = b.t[blockIdx.y];
        const step_params p = *b.p;
        const adam_factors f = {
                .lr = (float)(p.lr * t.lr_scale), .decay = (float)t.weight_decay, .beta1 = (float)p.beta1, .beta2 = (float)p.beta2, .one_beta1 = (float)(1 - p.beta1),
                .one_beta2 = (float)(1 - p.beta2), .eps = (float)p.eps, .bias1 = (float)p.bias1, .bias2 = (float)p.bias2, .grad_scale = (float)p.grad_scale,
        };
        const bool m_random = p.beta1 > NEAREST_MAX_BETA, v_random = p.beta2 > NEAREST_MAX_BETA;
        const uint64_t m_key = rounding_key(t, p.rng, 0), v_key = rounding_key(t, p.rng, 1);

        if (p.skip)
                return;
        if (b.vectors >> blockIdx.y & 1) {
                if (b.moments == DT_BF16)
                        adam_vectors<DT_BF16>(t, f, m_random, v_random, m_key, v_key);
                else
                        adam_vectors<DT_F32>(t, f, m_random, v_random, m_key, v_key);
                return;
        }
        for (int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 8; i < t.count; i += (int64_t)gridDim.x * THREADS * 8) {
                const int n = (int)(t.count - i < 8 ? t.count - i : 8);
                float w[8], g[8], m[8], v[8];

                load8(t.master, DT_F32, i, n, w);
                load8(t.grad, DT_F32, i, n, g);
                load8(t.m, b.moments, i, n, m);
                load8(t.v, b.moments, i, n, v);
                adam_step(f, w, g, m, v);
                store8(t.master, DT_F32, i, n, w);
                store_moment(t, t.m, b.moments, i, n, m, m_random, m_key);
                store_moment(t, t.v, b.moments, i, n, v, v_random, v_key);
                if (t.param)
                        store8(t.param, b.param, i, n, w);
        }
}

static bool adam_aligned(const struct adamw_tensor *t, enum dtype param) {
        return t->count % 8 == 0 && vector_aligned(t->master) && vector_aligned(t->grad) && vector_aligned(t->m) && vector_aligned(t->v) &&
               (!t->param || (param == DT_BF16 && vector_aligned(t->param)));
}

extern "C" int cuda_launch_adamw(int n, const struct adamw_tensor *t, enum dtype moments, enum dtype param, const struct step_params *p, int sms, cudaStream_t s) {
        for (int first = 0; first < n; first += ADAM_BATCH) {
                const int count = n - first < ADAM_BATCH ? n - first : ADAM_BATCH;
                adam_batch b = {};

                b.p = p;
                b.moments = moments;
                b.param = param;
                for (int i = 0; i < count; i++) {
                        b.t[i] = t[first + i];
                        b.vectors |= (uint32_t)adam_aligned(&b.t[i], param) << i;
                }
                adamw<<<dim3((unsigned)sms * 4, (unsigned)count), THREADS, 0, s>>>(b);
        }
        return launched();
}

/* ------------------------------------------------------------------ the amax history */

/* A block a history: reduced, rolled by one through shared memory, slot 0 cleared. */
__global__ void __launch_bounds__(THREADS) amax_update(int len, float *history, const float *amax, float *scale, const double *fp8_max, bool use_max, int margin, const uint64_t *skip) {
        float *h = history + (int64_t)blockIdx.x * len;
        const float now = amax[blockIdx.x];
        const bool finite = (__float_as_uint(now) & 0x7f800000u) != 0x7f800000u;
        __shared__ float room[THREADS / 32];
        extern __shared__ float rolled[];
        float max = finite ? now : 0;

        if (skip && *skip)
                return;
        for (int i = (int)threadIdx.x + 1; i < len; i += THREADS) {
                rolled[i - 1] = h[i];
                if (use_max)
                        max = h[i] > max ? h[i] : max;
        }
        for (int d = 16; d > 0; d >>= 1)
                max = fmaxf(max, __shfl_xor_sync(0xffffffff, max, d));
        if (threadIdx.x % 32 == 0)
                room[threadIdx.x / 32] = max;
        __syncthreads();
        for (int i = (int)threadIdx.x; i < len - 1; i += THREADS)
                h[i] = rolled[i];
        __syncthreads();
        if (threadIdx.x != 0)
                return;
        for (int w = 1; w < THREADS / 32; w++)
                max = fmaxf(max, room[w]);
        if (max > 0 && finite) {
                const double s = ldexp(fp8_max[blockIdx.x] / (double)max, -margin);

                scale[blockIdx.x] = s > FLT_MAX ? FLT_MAX : (float)s;
        }
        h[len - 1] = finite ? now : 0;
        h[0] = 0;
}

extern "C" int cuda_launch_amax_update(int n, int len, float *history, const float *amax, float *scale, const double *fp8_max, bool use_max, int margin, const uint64_t *skip,
                                       cudaStream_t s) {
        if (n == 0)
                return 0;
        if (len > 48 * 1024 / 4)
                return -EINVAL;
        amax_update<<<(unsigned)n, THREADS, (size_t)len * 4, s>>>(len, history, amax, scale, fp8_max, use_max, margin, skip);
        return launched();
}
