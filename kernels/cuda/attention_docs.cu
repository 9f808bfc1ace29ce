/* SPDX-License-Identifier: Apache-2.0 */
/* Bounds of documents as cuDNN's packed layout has them. */
#include "kernels/cuda/attention_library.h"
#include "kernels/cuda/device.cuh"

__global__ void __launch_bounds__(THREADS) attention_docs(const int32_t *cu, int n, int batch, int q_stride, int k_stride, int heads, int32_t *length, int32_t *q, int32_t *k,
                                                          int32_t *stats) {
        const int i = (int)(blockIdx.x * THREADS + threadIdx.x);

        if (i > batch)
                return;
        const int32_t at = cu[min(i, n)];

        q[i] = at * q_stride;
        k[i] = at * k_stride;
        stats[i] = at * heads;
        if (i < batch)
                length[i] = cu[min(i + 1, n)] - at;
}

extern "C" int cuda_launch_attention_docs(const int32_t *cu, int n, int batch, int q_stride, int k_stride, int heads, int32_t *length, int32_t *q, int32_t *k, int32_t *stats,
                                          cudaStream_t s) {
        attention_docs<<<(unsigned)(batch / THREADS + 1), THREADS, 0, s>>>(cu, n, batch, q_stride, k_stride, heads, length, q, k, stats);
        return launched();
}
