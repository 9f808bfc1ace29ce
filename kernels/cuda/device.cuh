/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What the memory-bound kernels share: eight elements of any carrier at a time, sums over a block in a fixed order, and the arithmetic of kernels/cpu.  Their files are compiled
 * without contraction (-fmad=false), so that what is elementwise has the CPU's bits.
 */
#include <cuda_fp8.h>
#include <errno.h>

#include "base/dtype.h"
#include "kernels/cuda/ops.h"

#define THREADS 256

__device__ __forceinline__ float bf16_to(uint16_t h) {
        return __uint_as_float((uint32_t)h << 16);
}

/* NaN stays NaN with its upper bits, as on the CPU. */
__device__ __forceinline__ uint16_t bf16_from(float x) {
        const uint32_t u = __float_as_uint(x);

        return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : (u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

__device__ __forceinline__ float fp8_to(uint8_t q, bool e5m2) {
        return __half2float(__half(__nv_cvt_fp8_to_halfraw(q, e5m2 ? __NV_E5M2 : __NV_E4M3)));
}

__device__ __forceinline__ uint8_t fp8_from(float x, bool e5m2) {
        return (uint8_t)__nv_cvt_float_to_fp8(x, __NV_SATFINITE, e5m2 ? __NV_E5M2 : __NV_E4M3);
}

__device__ __forceinline__ float load1(const void *p, enum dtype t, int64_t i) {
        return t == DT_BF16 ? bf16_to(((const uint16_t *)p)[i]) : t == DT_F32 ? ((const float *)p)[i] : fp8_to(((const uint8_t *)p)[i], t == DT_E5M2);
}

__device__ __forceinline__ void store1(void *p, enum dtype t, int64_t i, float x) {
        if (t == DT_BF16)
                ((uint16_t *)p)[i] = bf16_from(x);
        else if (t == DT_F32)
                ((float *)p)[i] = x;
        else
                ((uint8_t *)p)[i] = fp8_from(x, t == DT_E5M2);
}

/* Elements i .. i + n, n at most 8; what lies behind n is 0. */
__device__ __forceinline__ void load8(const void *p, enum dtype t, int64_t i, int n, float (&v)[8]) {
        if (n == 8 && t == DT_BF16 && ((uintptr_t)p + 2 * (uintptr_t)i) % 16 == 0) {
                const uint4 u = *(const uint4 *)((const uint16_t *)p + i);
                const uint32_t w[4] = { u.x, u.y, u.z, u.w };

#pragma unroll
                for (int k = 0; k < 4; k++) {
                        v[2 * k] = __uint_as_float(w[k] << 16);
                        v[2 * k + 1] = __uint_as_float(w[k] & 0xffff0000u);
                }
                return;
        }
        if (n == 8 && t == DT_F32 && ((uintptr_t)p + 4 * (uintptr_t)i) % 16 == 0) {
                const float4 a = ((const float4 *)((const float *)p + i))[0], b = ((const float4 *)((const float *)p + i))[1];

                v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
                return;
        }
#pragma unroll
        for (int k = 0; k < 8; k++)
                v[k] = k < n ? load1(p, t, i + k) : 0;
}

__device__ __forceinline__ void store8(void *p, enum dtype t, int64_t i, int n, const float (&v)[8]) {
        if (n == 8 && t == DT_BF16 && ((uintptr_t)p + 2 * (uintptr_t)i) % 16 == 0) {
                uint32_t w[4];

#pragma unroll
                for (int k = 0; k < 4; k++)
                        w[k] = bf16_from(v[2 * k]) | (uint32_t)bf16_from(v[2 * k + 1]) << 16;
                *(uint4 *)((uint16_t *)p + i) = make_uint4(w[0], w[1], w[2], w[3]);
                return;
        }
        if (n == 8 && t == DT_F32 && ((uintptr_t)p + 4 * (uintptr_t)i) % 16 == 0) {
                ((float4 *)((float *)p + i))[0] = make_float4(v[0], v[1], v[2], v[3]);
                ((float4 *)((float *)p + i))[1] = make_float4(v[4], v[5], v[6], v[7]);
                return;
        }
#pragma unroll
        for (int k = 0; k < 8; k++)
                if (k < n)
                        store1(p, t, i + k, v[k]);
}

/* Eight at once, of a type known when compiled; i and the pointer are such that it is aligned to 16 bytes. Without branches the loads of several arrays are in flight together. */
template <enum dtype T> __device__ __forceinline__ void load_vector(const void *p, int64_t i, float (&v)[8]) {
        if constexpr (T == DT_BF16) {
                const uint4 u = *(const uint4 *)((const uint16_t *)p + i);
                const uint32_t w[4] = { u.x, u.y, u.z, u.w };

#pragma unroll
                for (int k = 0; k < 4; k++) {
                        v[2 * k] = __uint_as_float(w[k] << 16);
                        v[2 * k + 1] = __uint_as_float(w[k] & 0xffff0000u);
                }
        } else {
                const float4 a = ((const float4 *)((const float *)p + i))[0], b = ((const float4 *)((const float *)p + i))[1];

                v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
        }
}

template <enum dtype T> __device__ __forceinline__ void store_vector(void *p, int64_t i, const float (&v)[8]) {
        if constexpr (T == DT_BF16) {
                uint32_t w[4];

#pragma unroll
                for (int k = 0; k < 4; k++)
                        w[k] = bf16_from(v[2 * k]) | (uint32_t)bf16_from(v[2 * k + 1]) << 16;
                *(uint4 *)((uint16_t *)p + i) = make_uint4(w[0], w[1], w[2], w[3]);
        } else {
                ((float4 *)((float *)p + i))[0] = make_float4(v[0], v[1], v[2], v[3]);
                ((float4 *)((float *)p + i))[1] = make_float4(v[4], v[5], v[6], v[7]);
        }
}

static inline bool vector_aligned(const void *p) {
        return (uintptr_t)p % 16 == 0;
}

/* kernels/cpu/exp.h, operation for operation. */
__device__ __forceinline__ float exp_cpu(float x) {
        const float c = x > 89.0f ? 89.0f : x < -104.5f ? -104.5f : x;
        const float shifted = c * 1.44269504088896341f + 12582912.0f, n = shifted - 12582912.0f;
        const float r = c - n * 0.693359375f - n * -2.12194440e-4f;
        const int32_t k = (int32_t)(__float_as_uint(shifted) - __float_as_uint(12582912.0f)), half = k >> 1;
        float p = 1.9875691500e-4f;

        p = p * r + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        p = p * (r * r) + r + 1.0f;
        return p * __uint_as_float((uint32_t)(half + 127) << 23) * __uint_as_float((uint32_t)(k - half + 127) << 23);
}

/*
 * SwiGLU by the special-function unit: errors of about 2^-22, so that what is rounded to BF16 is the CPU's value or, one time in some thousand, its neighbour.  Below 2^-126 (x under -87) the
 * sigmoid is 0.  All kernels use these, so that fused ones have the bits of the plain ones.
 */
__device__ __forceinline__ float sigmoid(float x) {
        float e, r;

        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * -1.44269504088896341f));
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1 + e));
        return r;
}

__device__ __forceinline__ float swiglu(float g, float u) {
        return g * sigmoid(g) * u;
}

/* Of the output's gradient d; returns the output. */
__device__ __forceinline__ float swiglu_gradients(float g, float u, float d, float *dg, float *du) {
        const float s = sigmoid(g), silu = g * s;

        *dg = d * u * (s * __fmaf_rn(g, 1 - s, 1.f));
        *du = d * silu;
        return silu * u;
}

template <typename T> __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
        for (int d = 16; d > 0; d >>= 1)
                x += __shfl_xor_sync(0xffffffff, x, d);
        return x;
}

/* Over the block's N threads (0: as many as it has, whole warps), the same value in all of them; room: one a warp, and free again afterwards. */
template <int N, typename T> __device__ __forceinline__ T block_sum_of(T x, T *room) {
        const int warps = (N ? N : (int)blockDim.x) / 32;
        T all = 0;

        x = warp_sum(x);
        if (threadIdx.x % 32 == 0)
                room[threadIdx.x / 32] = x;
        __syncthreads();
        for (int w = 0; w < warps; w++)
                all += room[w];
        __syncthreads();
        return all;
}

template <typename T> __device__ __forceinline__ T block_sum(T x, T *room) {
        return block_sum_of<THREADS>(x, room);
}

static inline int launched(void) {
        return cudaGetLastError() == cudaSuccess ? 0 : -EIO;
}

/* Blocks for n elements, eight a thread; 0: nothing to do. */
static inline unsigned blocks_of8(int64_t n) {
        return (unsigned)((n + 8 * THREADS - 1) / (8 * THREADS));
}
