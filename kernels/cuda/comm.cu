/* SPDX-License-Identifier: Apache-2.0 */
/* The sum of what a collective brought, in the order of the group's index: worker/comm/reduce.c, bit for bit. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/fold.h"

static __device__ float combine(float a, float b, int op) {
        if (op == DEV_COMM_SUM)
                return a + b;
        if (a != a || b != b)
                return a != a ? a : b;
        return op == DEV_COMM_MAX ? (a > b ? a : b) : (a < b ? a : b);
}

static __device__ float widen(uint16_t h) {
        return bf16_to(h);
}

static __device__ float widen(float x) {
        return x;
}

static __device__ void narrow(float *dst, float x) {
        *dst = x;
}

static __device__ void narrow(uint16_t *dst, float x) {
        *dst = bf16_from(x);
}

/* 16 bytes at a time where everything lies so. */
template <typename T>
__global__ void __launch_bounds__(THREADS) fold(T *dst, const char *staging, size_t stride, const T *own, int own_index, int n, size_t count, int op, bool wide) {
        const size_t each = wide ? 16 / sizeof(T) : 1, step = (size_t)gridDim.x * THREADS * each;

        for (size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * each; i < count; i += step) {
                const bool whole = wide && i + each <= count;
                const int here = whole ? (int)each : wide ? (int)(count - i) : 1;
                alignas(16) T v[16 / sizeof(T)];
                float sum[16 / sizeof(T)];

                for (int k = 0; k < n; k++) {
                        const T *src = (k == own_index ? own : reinterpret_cast<const T *>(staging + (size_t)k * stride)) + i;

                        if (whole)
                                *reinterpret_cast<uint4 *>(v) = *reinterpret_cast<const uint4 *>(src);
#pragma unroll
                        for (int j = 0; j < (int)(16 / sizeof(T)); j++) {
                                if (j >= here)
                                        break;
                                const float x = widen(whole ? v[j] : src[j]);
                                sum[j] = k == 0 ? x : combine(sum[j], x, op);
                        }
                }
#pragma unroll
                for (int j = 0; j < (int)(16 / sizeof(T)); j++) {
                        if (j >= here)
                                break;
                        narrow(&v[j], sum[j]);
                        if (!whole)
                                dst[i + j] = v[j];
                }
                if (whole)
                        *reinterpret_cast<uint4 *>(dst + i) = *reinterpret_cast<const uint4 *>(v);
        }
}

template <typename T>
static int launch(void *dst, const void *staging, size_t stride, const void *own, int own_index, int n, size_t count, int op, cudaStream_t s) {
        const bool wide = ((uintptr_t)dst | (uintptr_t)staging | (uintptr_t)own | stride) % 16 == 0;
        const size_t blocks = (count / (wide ? 16 / sizeof(T) : 1) + THREADS) / THREADS;

        fold<T><<<(unsigned)(blocks < 2048 ? blocks : 2048), THREADS, 0, s>>>((T *)dst, (const char *)staging, stride, (const T *)own, own_index, n, count, op, wide);
        return cudaGetLastError() == cudaSuccess ? 0 : -EIO;
}

int cuda_launch_fold(void *dst, const void *staging, size_t stride, const void *own, int own_index, int n, size_t count, enum dtype t, int op, cudaStream_t s) {
        if (count == 0)
                return 0;
        if (t == DT_F32)
                return launch<float>(dst, staging, stride, own, own_index, n, count, op, s);
        return t == DT_BF16 ? launch<uint16_t>(dst, staging, stride, own, own_index, n, count, op, s) : -EOPNOTSUPP;
}
