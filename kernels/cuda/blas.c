/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products by cuBLASLt: descriptions and the algorithm that its heuristic names are kept for each shape, so that a step in steady state asks for nothing.  The workspace is one of the
 * stream, so products of one stream alone use it.
 */
#include "kernels/cuda/blas.h"

#include <cublasLt.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PLANS 256

struct plan_key {
        int64_t m, n, k, lda, ldb, ldd;
        int32_t ta, tb, at, bt, dt, beta;
        uint32_t a_align, b_align, d_align, unused;
};

struct plan {
        struct plan_key key;
        cublasLtMatmulDesc_t desc;
        cublasLtMatrixLayout_t a, b, d;
        cublasLtMatmulAlgo_t algo;
};

struct cuda_blas {
        cublasLtHandle_t handle;
        struct plan plans[MAX_PLANS];
        int n;
};

static void plan_done(struct plan *p) {
        if (p->a)
                (void)cublasLtMatrixLayoutDestroy(p->a);
        if (p->b)
                (void)cublasLtMatrixLayoutDestroy(p->b);
        if (p->d)
                (void)cublasLtMatrixLayoutDestroy(p->d);
        if (p->desc)
                (void)cublasLtMatmulDescDestroy(p->desc);
        *p = (struct plan){ 0 };
}

struct cuda_blas *cuda_blas_free(struct cuda_blas *b) {
        if (!b)
                return NULL;
        for (int i = 0; i < b->n; i++)
                plan_done(&b->plans[i]);
        (void)cublasLtDestroy(b->handle);
        free(b);
        return NULL;
}

static int blas_new(struct cuda_blas **ret) {
        struct cuda_blas *b = calloc(1, sizeof *b);

        if (!b)
                return -ENOMEM;
        if (cublasLtCreate(&b->handle) != CUBLAS_STATUS_SUCCESS) {
                free(b);
                return -EIO;
        }
        *ret = b;
        return 0;
}

static bool is_fp8(enum dtype t) {
        return t == DT_E4M3 || t == DT_E5M2;
}

static cudaDataType_t type_of(enum dtype t) {
        return t == DT_BF16 ? CUDA_R_16BF : t == DT_E4M3 ? CUDA_R_8F_E4M3 : t == DT_E5M2 ? CUDA_R_8F_E5M2 : CUDA_R_32F;
}

/* Largest power of two, at most 256, that divides an address. */
static uint32_t alignment(const void *p) {
        const uintptr_t a = (uintptr_t)p & -(uintptr_t)p;

        return a == 0 || a > 256 ? 256 : (uint32_t)a;
}

static bool preference_set(cublasLtMatmulPreference_t p, const struct plan_key *k) {
        const size_t workspace = CUDA_BLAS_WORKSPACE;

        return cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace) == CUBLAS_STATUS_SUCCESS &&
               cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &k->a_align, sizeof k->a_align) == CUBLAS_STATUS_SUCCESS &&
               cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &k->b_align, sizeof k->b_align) == CUBLAS_STATUS_SUCCESS &&
               cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &k->d_align, sizeof k->d_align) == CUBLAS_STATUS_SUCCESS &&
               cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &k->d_align, sizeof k->d_align) == CUBLAS_STATUS_SUCCESS;
}

static int choose(struct cuda_blas *b, struct plan *p) {
        cublasLtMatmulHeuristicResult_t found;
        cublasLtMatmulPreference_t preference;
        int count = 0;
        bool ok;

        if (cublasLtMatmulPreferenceCreate(&preference) != CUBLAS_STATUS_SUCCESS)
                return -ENOMEM;
        ok = preference_set(preference, &p->key) &&
             cublasLtMatmulAlgoGetHeuristic(b->handle, p->desc, p->a, p->b, p->d, p->d, preference, 1, &found, &count) == CUBLAS_STATUS_SUCCESS && count == 1;
        (void)cublasLtMatmulPreferenceDestroy(preference);
        if (!ok)
                return -EOPNOTSUPP;
        p->algo = found.algo;
        return 0;
}

static int scales_set(const struct plan *p, const struct blas_call *c) {
        if (!is_fp8(c->at))
                return 0;
        return cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &c->a_scale, sizeof c->a_scale) == CUBLAS_STATUS_SUCCESS &&
                               cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &c->b_scale, sizeof c->b_scale) == CUBLAS_STATUS_SUCCESS
                       ? 0
                       : -EIO;
}

static int plan_make(struct cuda_blas *b, struct plan *p, const struct blas_call *c) {
        const cublasOperation_t ta = c->ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb = c->tb ? CUBLAS_OP_T : CUBLAS_OP_N;
        const int64_t ar = c->ta ? c->k : c->m, ac = c->ta ? c->m : c->k, br = c->tb ? c->n : c->k, bc = c->tb ? c->k : c->n;

        if (cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) != CUBLAS_STATUS_SUCCESS ||
            cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &ta, sizeof ta) != CUBLAS_STATUS_SUCCESS ||
            cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &tb, sizeof tb) != CUBLAS_STATUS_SUCCESS ||
            cublasLtMatrixLayoutCreate(&p->a, type_of(c->at), (uint64_t)ar, (uint64_t)ac, c->lda) != CUBLAS_STATUS_SUCCESS ||
            cublasLtMatrixLayoutCreate(&p->b, type_of(c->bt), (uint64_t)br, (uint64_t)bc, c->ldb) != CUBLAS_STATUS_SUCCESS ||
            cublasLtMatrixLayoutCreate(&p->d, type_of(c->dt), (uint64_t)c->m, (uint64_t)c->n, c->ldd) != CUBLAS_STATUS_SUCCESS || scales_set(p, c) < 0)
                return -EINVAL;
        return choose(b, p);
}

static int plan_find(struct cuda_blas *b, const struct blas_call *c, struct plan **ret) {
        const struct plan_key key = {
                .m = c->m, .n = c->n, .k = c->k, .lda = c->lda, .ldb = c->ldb, .ldd = c->ldd, .ta = c->ta, .tb = c->tb, .at = (int32_t)c->at, .bt = (int32_t)c->bt, .dt = (int32_t)c->dt,
                .beta = c->beta, .a_align = alignment(c->a), .b_align = alignment(c->b), .d_align = alignment(c->d),
        };
        struct plan *p;
        int r;

        for (int i = 0; i < b->n; i++)
                if (memcmp(&b->plans[i].key, &key, sizeof key) == 0) {
                        *ret = &b->plans[i];
                        return 0;
                }
        if (b->n == MAX_PLANS) /* more shapes than a model has: the oldest go */
                for (int i = 0; i < MAX_PLANS; i++)
                        plan_done(&b->plans[i]);
        b->n %= MAX_PLANS;
        p = &b->plans[b->n];
        p->key = key;
        r = plan_make(b, p, c);
        if (r < 0) {
                plan_done(p);
                return r;
        }
        b->n++;
        *ret = p;
        return 0;
}

int cuda_blas(const struct blas_call *c, struct dev_stream *s) {
        const float alpha = 1, beta = (float)c->beta;
        void *workspace = cuda_scratch(s, CUDA_SLOT_BLAS, CUDA_BLAS_WORKSPACE);
        struct plan *p;
        int r = 0;

        if (c->m == 0 || c->n == 0)
                return 0;
        if (c->k == 0)
                return c->beta || cudaMemsetAsync(c->d, 0, (size_t)c->m * (size_t)c->n * dtype_size(c->dt), s->stream) == cudaSuccess ? 0 : -EIO;
        if (!workspace)
                return -ENOMEM;
        if (!s->blas)
                r = blas_new(&s->blas);
        if (r == 0)
                r = plan_find(s->blas, c, &p);
        if (r == 0)
                r = scales_set(p, c);
        if (r < 0)
                return r;
        return cublasLtMatmul(s->blas->handle, p->desc, &alpha, c->a, p->a, c->b, p->b, &beta, c->d, p->d, c->d, p->d, &p->algo, workspace, CUDA_BLAS_WORKSPACE, s->stream) ==
                               CUBLAS_STATUS_SUCCESS
                       ? 0
                       : -EIO;
}
