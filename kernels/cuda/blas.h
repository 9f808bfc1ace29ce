/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
#include "kernels/cuda/hopper.h"

#define CUDA_BLAS_WORKSPACE ((size_t)64 << 20)

/* d[m,n] (+)= op(a) op(b) as cuBLASLt counts, by columns; leading dimensions in elements. beta needs d of DT_F32. */
struct blas_call {
        bool ta, tb;
        int64_t m, n, k, lda, ldb, ldd;
        enum dtype at, bt, dt;
        const void *a, *b;
        void *d;
        const float *a_scale, *b_scale; /* FP8 only */
        int beta;
};

int cuda_blas(const struct blas_call *c, struct dev_stream *s);
struct cuda_blas *cuda_blas_free(struct cuda_blas *b);
