/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Inside of the CPU backend.  Activations are handled a row or a tile at a time: loaded into `dev_real`, computed, stored with one rounding.  A stream is used by one thread at a time and owns
 * scratch that grows at first use and is then reused, so that a step in steady state allocates nothing.
 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/dev.h"
#include "kernels/fp8.h"
#include "kernels/fp8_bits.h"

#ifdef FP8_FP64
#define CPU_FP64 true
#else
#define CPU_FP64 false
#endif

#define CPU_BLOCK 128 /* columns or tokens under one scale, and the contraction's promotion interval */
#define CPU_LANES 16  /* partial sums of every reduction: part of the result, equal for every vector width */

/* One buffer a purpose; two of an operation that is nested in another never share one. */
enum cpu_slot {
        CPU_GEMM_A, CPU_GEMM_B, CPU_GEMM_P, CPU_GEMM_ACC,
        CPU_ROW0, CPU_ROW1, CPU_ROW2, CPU_ROW3,
        CPU_TILE, CPU_QUANT0, CPU_QUANT1,
        CPU_ATT_Q, CPU_ATT_K, CPU_ATT_V, CPU_ATT_O, CPU_ATT_DO, CPU_ATT_DQ, CPU_ATT_DK, CPU_ATT_DV, CPU_ATT_S, CPU_ATT_DS,
        CPU_OUT0, CPU_OUT1,
        CPU_N_SLOTS
};

struct dev {
        struct dev_config config;
        char fingerprint[160];
};

struct dev_stream {
        struct dev *dev;
        void *scratch[CPU_N_SLOTS];
        size_t size[CPU_N_SLOTS];
        /* RoPE tables [rope_len, D/2] of cosines then sines, for the theta and D they were made for */
        dev_real *rope;
        double rope_theta;
        int64_t rope_len, rope_dim;
};

/* At least `bytes` of 64-byte aligned scratch with undefined contents; NULL: no memory. */
void *cpu_scratch(struct dev_stream *s, enum cpu_slot slot, size_t bytes);
static inline dev_real *cpu_reals(struct dev_stream *s, enum cpu_slot slot, int64_t n) {
        return cpu_scratch(s, slot, (size_t)n * sizeof(dev_real));
}

static inline int64_t cpu_min(int64_t a, int64_t b) {
        return a < b ? a : b;
}
static inline int64_t cpu_blocks(int64_t n) {
        return (n + CPU_BLOCK - 1) / CPU_BLOCK;
}
static inline int64_t cpu_pad4(int64_t n) {
        return (n + 3) & ~(int64_t)3;
}

/* ---- convert.c */

/* A carrier of activations: DT_F32, or DT_BF16 (not in the FP64 build, where rounding to BF16 would pass through float). */
bool cpu_is_act(enum dtype t);
/* dst[i] = src[offset + i]; any floating type. */
void cpu_load(dev_real *dst, const void *src, enum dtype t, int64_t offset, int64_t n);
/* dst[offset + i] = round(src[i]); DT_F32, DT_BF16, DT_F64, or FP8 (saturating). */
void cpu_store(void *dst, enum dtype t, int64_t offset, const dev_real *src, int64_t n);
bool cpu_is_float(enum dtype t);
/* src[offset .. offset + n) as reals: DT_F32 where it lies, others in scratch. NULL: no memory. */
const dev_real *cpu_widened(struct dev_stream *s, enum cpu_slot slot, const void *src, enum dtype t, int64_t offset, int64_t n);
static inline void *cpu_at(const void *p, enum dtype t, int64_t offset) {
        return (char *)p + offset * (int64_t)dtype_size(t);
}

/* ---- vector.c: rows */

dev_real cpu_dot(const dev_real *a, const dev_real *b, int64_t n);
dev_real cpu_sum(const dev_real *a, int64_t n);
dev_real cpu_row_max(const dev_real *a, int64_t n);
/* y = exp(x - shift); returns the sum. y may be x. */
dev_real cpu_exp_sum(dev_real *y, const dev_real *x, dev_real shift, int64_t n);

/* ---- operations, one noun a file; contracts in dev.h */

int cpu_open(const struct dev_config *c, struct dev **ret, struct error *e);
void cpu_close(struct dev *d);
const char *cpu_fingerprint(struct dev *d);
int cpu_alloc(struct dev *d, size_t bytes, void **ret, struct error *e);
void cpu_free(struct dev *d, void *p);
int cpu_stream_new(struct dev *d, struct dev_stream **ret);
void cpu_stream_free(struct dev_stream *s);
int cpu_stream_sync(struct dev_stream *s);
int cpu_copy(void *dst, const void *src, size_t bytes, struct dev_stream *s);
int cpu_zero(void *dst, size_t bytes, struct dev_stream *s);
int cpu_cast(void *dst, enum dtype dt, const void *src, enum dtype st, int64_t n, struct dev_stream *s);
int cpu_add(void *dst, const void *src, enum dtype t, int64_t n, struct dev_stream *s);
int cpu_scale(dev_real *dst, double factor, int64_t n, struct dev_stream *s);
int cpu_init_normal(dev_real *dst, int64_t rows, int64_t cols, int64_t row0, int64_t col0, int64_t global_cols, uint64_t seed, uint64_t name_hash, double mean,
                    double std, struct dev_stream *s);

int cpu_quantize(const void *x, enum dtype xt, const struct quant_spec *q, struct qtensor *out, struct dev_stream *s);
int cpu_requantize_col(struct qtensor *t, const struct quant_spec *q, struct dev_stream *s);
int cpu_dequantize(const struct qtensor *t, void *x, enum dtype xt, struct dev_stream *s);
int cpu_quant_stats(const void *x, enum dtype xt, const struct qtensor *t, struct quant_stats *stats, struct dev_stream *s);

int cpu_gemm_fprop(const struct qtensor *x, const struct qtensor *w, void *y, enum dtype yt, struct dev_stream *s);
int cpu_gemm_dgrad(const struct qtensor *dy, const struct qtensor *w, dev_real *sum, int beta, void *dx, enum dtype xt, struct dev_stream *s);
int cpu_gemm_wgrad(const struct qtensor *dy, const struct qtensor *x, dev_real *dw, int beta, struct dev_stream *s);

int cpu_rmsnorm_fwd(void *residual, const void *from, const void *delta, const dev_real *w, double eps, void *y, dev_real *rstd, enum dtype act, int64_t T, int64_t H, struct dev_stream *s);
int cpu_rmsnorm_quant_fwd(void *residual, const void *from, const void *delta, const dev_real *w, double eps, void *y, dev_real *rstd, enum dtype act, int64_t T, int64_t H,
                          const struct quant_spec *q, struct qtensor *out, struct dev_stream *s);
int cpu_rmsnorm_bwd(void *dresidual, dev_real *dw, const void *dy, enum dtype dyt, const void *x, const dev_real *w, const dev_real *rstd, enum dtype act, int64_t T, int64_t H,
                    struct dev_stream *s);

int cpu_rope(void *q, void *k, const struct doc_bounds *docs, double theta, int64_t Hq, int64_t Hkv, int64_t D, bool backward, enum dtype act, struct dev_stream *s);
int cpu_attention_fwd(const void *q, const void *k, const void *v, const struct doc_bounds *docs, void *out, dev_real *lse, int64_t Hq, int64_t Hkv, int64_t D,
                      enum dtype act, void *workspace, struct dev_stream *s);
int cpu_attention_bwd(const void *q, const void *k, const void *v, const void *out, const dev_real *lse, const void *dout, const struct doc_bounds *docs, void *dq, void *dk,
                      void *dv, int64_t Hq, int64_t Hkv, int64_t D, enum dtype act, void *workspace, struct dev_stream *s);
size_t cpu_attention_workspace(int64_t T, int64_t Hq, int64_t Hkv, int64_t D);

int cpu_swiglu_fwd(const void *g, const void *u, void *a, enum dtype act, int64_t T, int64_t I, struct dev_stream *s);
int cpu_swiglu_quant_fwd(const void *g, const void *u, void *a, enum dtype act, int64_t T, int64_t I, const struct quant_spec *q, struct qtensor *out,
                         struct dev_stream *s);
int cpu_swiglu_bwd(const void *g, const void *u, const void *da, enum dtype dat, void *dg, void *du, enum dtype act, int64_t T, int64_t I,
                   const struct quant_spec *qsg, struct qtensor *qg, const struct quant_spec *qsu, struct qtensor *qu, struct dev_stream *s);

int cpu_embed_fwd(const void *table, const int32_t *ids, void *out, enum dtype act, int64_t T, int64_t H, int64_t v0, int64_t V, struct dev_stream *s);
int cpu_embed_bwd(dev_real *dtable, const int32_t *ids, const void *dout, enum dtype act, int64_t T, int64_t H, int64_t v0, int64_t V, struct dev_stream *s);
int cpu_ce_max(const void *logits, enum dtype lt, dev_real *rowmax, int64_t T, int64_t V, struct dev_stream *s);
int cpu_ce_sum(const void *logits, enum dtype lt, const dev_real *rowmax, const int32_t *labels, dev_real *sumexp, dev_real *target, int64_t T, int64_t v0, int64_t V,
               struct dev_stream *s);
int cpu_ce_bwd(const void *logits, enum dtype lt, const dev_real *rowmax, const dev_real *sumexp, const dev_real *target, const int32_t *labels, double gscale, dev_real *loss_sum,
               void *dlogits, enum dtype act, int64_t T, int64_t v0, int64_t V, struct dev_stream *s);

int cpu_grad_stats(int n, const dev_real *const *grads, const int64_t *counts, const double *factors, const uint64_t *indices, double *sumsq, uint64_t *bad,
                   struct dev_stream *s);
int cpu_adamw(int n, const struct adamw_tensor *t, enum dtype moments, enum dtype param, const struct step_params *p, struct dev_stream *s);
int cpu_amax_update(int n, int len, dev_real *history, const dev_real *amax, dev_real *scale, const double *fp8_max, int use_max, int margin, const uint64_t *skip,
                    struct dev_stream *s);
