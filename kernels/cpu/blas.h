/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
#include <cblas.h>
/* OpenBLAS includes <complex.h>, whose I is the width of an MLP here. */
#undef I

#include "kernels/dev.h"

/* Row-major c[m,n] = alpha op(a) op(b) + beta c in `dev_real`; lda, ldb, ldc are row strides. */
static inline void blas_gemm(enum CBLAS_TRANSPOSE ta, enum CBLAS_TRANSPOSE tb, int64_t m, int64_t n, int64_t k, dev_real alpha, const dev_real *a, int64_t lda, const dev_real *b,
                             int64_t ldb, dev_real beta, dev_real *c, int64_t ldc) {
#ifdef FP8_FP64
        cblas_dgemm(CblasRowMajor, ta, tb, (int)m, (int)n, (int)k, alpha, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
#else
        cblas_sgemm(CblasRowMajor, ta, tb, (int)m, (int)n, (int)k, alpha, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
#endif
}
