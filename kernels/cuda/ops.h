/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The other operations as launches, plain values in, 0 or a negative errno out; what each computes stands in dev.h. */
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

int cuda_launch_cast(void *dst, enum dtype dt, const void *src, enum dtype st, int64_t n, cudaStream_t s);
int cuda_launch_add(void *dst, const void *src, enum dtype t, int64_t n, cudaStream_t s);
int cuda_launch_scale(float *dst, float factor, int64_t n, cudaStream_t s);
int cuda_launch_init(float *dst, int64_t rows, int64_t cols, int64_t row0, int64_t col0, uint64_t seed, uint64_t name_hash, double mean, double std, cudaStream_t s);
int cuda_launch_swiglu_fwd(const void *g, const void *u, void *a, enum dtype act, int64_t n, cudaStream_t s);
int cuda_launch_swiglu_bwd(const void *g, const void *u, const void *da, enum dtype dat, void *dg, void *du, enum dtype act, int64_t n, cudaStream_t s);
int cuda_launch_rope(void *q, void *k, const int32_t *pos, int64_t T, double theta, int64_t Hq, int64_t Hkv, int64_t D, bool backward, enum dtype act, cudaStream_t s);
int cuda_launch_embed_fwd(const void *table, const int32_t *ids, void *out, enum dtype act, int64_t T, int64_t H, int64_t v0, int64_t V, cudaStream_t s);
int cuda_launch_embed_bwd(float *dtable, const int32_t *ids, const void *dout, enum dtype act, int64_t T, int64_t H, int64_t v0, int64_t V, cudaStream_t s);

int cuda_launch_norm_fwd(void *residual, const void *from, const void *delta, const float *w, float eps, void *y, float *rstd, enum dtype act, int64_t T, int64_t H, cudaStream_t s);
/* partial: parts * H floats, parts as cuda_norm_parts says */
int cuda_norm_parts(int64_t T, int64_t H, int sms);
/* Bytes that are enough for rows of up to 8192. */
size_t cuda_norm_room(int sms);
int cuda_launch_norm_bwd(void *dresidual, float *dw, const void *dy, enum dtype dyt, const void *x, const float *w, const float *rstd, enum dtype act, int64_t T, int64_t H,
                         float *partial, int parts, cudaStream_t s);

int cuda_launch_ce_max(const void *logits, enum dtype lt, float *rowmax, int64_t T, int64_t V, cudaStream_t s);
int cuda_launch_ce_sum(const void *logits, enum dtype lt, const float *rowmax, const int32_t *labels, float *sumexp, float *target, int64_t T, int64_t v0, int64_t V, cudaStream_t s);
int cuda_launch_ce_bwd(const void *logits, enum dtype lt, const float *rowmax, const float *sumexp, const float *target, const int32_t *labels, double gscale, float *loss_sum,
                       void *dlogits, enum dtype act, int64_t T, int64_t v0, int64_t V, cudaStream_t s);

/* F32 logits of the whole vocabulary; losses: [T], one a token. */
int cuda_launch_cross_entropy(const void *logits, const int32_t *labels, double gscale, float *loss_sum, void *dlogits, float *losses, int64_t T, int64_t V, cudaStream_t s);

struct attention_launch {
        const uint16_t *q, *k, *v, *dout, *out;
        uint16_t *o, *dq, *dk, *dv;
        float *lse, *delta;
        const int32_t *cu, *doc;
        int T, Hq, Hkv, D;
};
int cuda_launch_attention_fwd(const struct attention_launch *a, cudaStream_t s);
int cuda_launch_attention_bwd(const struct attention_launch *a, cudaStream_t s);

struct adamw_tensor;
struct step_params;
/* partial: CUDA_STATS_BATCH * CUDA_STATS_BLOCKS doubles */
#define CUDA_STATS_BATCH 64
#define CUDA_STATS_BLOCKS 256
int cuda_launch_grad_stats(int n, const float *const *grads, const int64_t *counts, const double *factors, const uint64_t *indices, double *sumsq, unsigned long long *bad,
                           double *partial, cudaStream_t s);
int cuda_launch_adamw(int n, const struct adamw_tensor *t, enum dtype moments, enum dtype param, const struct step_params *p, int sms, cudaStream_t s);
int cuda_launch_amax_update(int n, int len, float *history, const float *amax, float *scale, const double *fp8_max, bool use_max, int margin, const uint64_t *skip, cudaStream_t s);

/* Whole-tensor amax as bits into *amax (zeroed first). */
int cuda_launch_amax(const void *x, enum dtype t, int64_t n, uint32_t *amax, int sms, cudaStream_t s);
/* ld: scale of (r, kb) at kb * ld + r (rows 1), or at r / 128 * ld + kb (blocks), or at 0 (neither) */
int cuda_launch_dequantize(const void *q, enum dtype qt, const float *scale, int how, int64_t ld, int64_t rows, int64_t cols, void *x, enum dtype xt, cudaStream_t s);
/* stats: a struct quant_stats, as four counters; scales as above */
int cuda_launch_quant_stats(const void *x, enum dtype xt, const uint8_t *q, bool e5m2, const float *scale, int how, int64_t ld, int64_t rows, int64_t cols, unsigned long long *stats, cudaStream_t s);
int cuda_launch_transpose(const uint8_t *row, uint8_t *col, int64_t rows, int64_t cols, cudaStream_t s);
int cuda_launch_transpose_scales(const float *row, float *col, int64_t rows, int64_t cols, int64_t row_ld, int64_t col_ld, cudaStream_t s);

#ifdef __cplusplus
}
#endif
