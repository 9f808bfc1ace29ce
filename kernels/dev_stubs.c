/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In rdma-core's manner: a slot that a backend leaves empty gets a function of its very type that returns -EOPNOTSUPP, so that callers test return values and never pointers.
 */
#include <errno.h>
#include <string.h>

#include "kernels/dev.h"

static int missing_open(const struct dev_config *c, struct dev **ret, struct error *e) {
        return error_set(e, -EOPNOTSUPP, "device %s: found a backend that cannot be opened, expected one with open", c->kind);
}

static void missing_close(struct dev *d) {
}

static const char *missing_fingerprint(struct dev *d) {
        return "none";
}

static int missing_alloc(struct dev *d, size_t bytes, void **ret, struct error *e) {
        return -EOPNOTSUPP;
}

static void missing_free(struct dev *d, void *p) {
}

static int missing_stream_new(struct dev *d, struct dev_stream **ret) {
        return -EOPNOTSUPP;
}

static void missing_stream_free(struct dev_stream *s) {
}

static int missing_stream_sync(struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_copy_in(void *dst, const void *src_host, size_t bytes, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_copy_out(void *dst_host, const void *src, size_t bytes, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_copy(void *dst, const void *src, size_t bytes, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_zero(void *dst, size_t bytes, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_cast(void *dst, enum dtype dt, const void *src, enum dtype st, int64_t n, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_add(void *dst, const void *src, enum dtype t, int64_t n, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_scale(dev_real *dst, double factor, int64_t n, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_init_normal(dev_real *dst, int64_t rows, int64_t cols, int64_t row0, int64_t col0, int64_t global_cols,
                               uint64_t seed, uint64_t name_hash, double mean, double std, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_quantize(const void *x, enum dtype xt, const struct quant_spec *q, struct qtensor *out,
                            struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_quantize_many(int n, const void *const *x, enum dtype xt, const struct quant_spec *const *q, struct qtensor *const *out,
                                 struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_requantize_col(struct qtensor *t, const struct quant_spec *q, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_dequantize(const struct qtensor *t, void *x, enum dtype xt, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_quant_stats(const void *x, enum dtype xt, const struct qtensor *t, struct quant_stats *stats, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_gemm_fprop(const struct qtensor *x, const struct qtensor *w, void *y, enum dtype yt,
                              struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_gemm_dgrad(const struct qtensor *dy, const struct qtensor *w, dev_real *sum, int beta, void *dx, enum dtype xt,
                              struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_gemm_wgrad(const struct qtensor *dy, const struct qtensor *x, dev_real *dw, int beta, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_gemm_wgrad_many(int n, const struct qtensor *const *dy, const struct qtensor *const *x, dev_real *const *dw, int beta,
                                   struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_rmsnorm_fwd(void *residual, const void *from, const void *delta, const dev_real *w, double eps, void *y, dev_real *rstd,
                               enum dtype act, int64_t T, int64_t H, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_rmsnorm_quant_fwd(void *residual, const void *from, const void *delta, const dev_real *w, double eps, void *y,
                                     dev_real *rstd, enum dtype act, int64_t T, int64_t H, const struct quant_spec *q,
                                     struct qtensor *out, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_rmsnorm_bwd(void *dresidual, dev_real *dw, const void *dy, enum dtype dyt, const void *x,
                               const dev_real *w, const dev_real *rstd, enum dtype act, int64_t T, int64_t H,
                               struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_rope(void *q, void *k, const struct doc_bounds *docs, double theta, int64_t Hq, int64_t Hkv,
                        int64_t D, bool backward, enum dtype act, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_rope_quant_bwd(const void *const *x, const struct doc_bounds *docs, double theta, int64_t D, enum dtype act,
                                  const struct quant_spec *const *q, struct qtensor *const *out, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_attention_fwd(const void *q, const void *k, const void *v, const struct doc_bounds *docs,
                                 void *out, dev_real *lse, int64_t Hq, int64_t Hkv, int64_t D, enum dtype act,
                                 void *workspace, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_attention_bwd(const void *q, const void *k, const void *v, const void *out, const dev_real *lse,
                                 const void *dout, const struct doc_bounds *docs, void *dq, void *dk, void *dv,
                                 int64_t Hq, int64_t Hkv, int64_t D, enum dtype act, void *workspace,
                                 struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static size_t missing_attention_workspace(int64_t T, int64_t Hq, int64_t Hkv, int64_t D) {
        return 0;
}

static int missing_swiglu_fwd(const void *g, const void *u, void *a, enum dtype act, int64_t T, int64_t I,
                              struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_swiglu_quant_fwd(const void *g, const void *u, void *a, enum dtype act, int64_t T, int64_t I,
                                    const struct quant_spec *q, struct qtensor *out, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_swiglu_bwd(const void *g, const void *u, const void *da, enum dtype dat, void *dg, void *du,
                              enum dtype act, int64_t T, int64_t I, const struct quant_spec *qsg, struct qtensor *qg,
                              const struct quant_spec *qsu, struct qtensor *qu, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_swiglu_cache_fwd(const void *g, const void *u, enum dtype act, const struct quant_spec *sg, struct qtensor *gq,
                                    const struct quant_spec *su, struct qtensor *uq, const struct quant_spec *sa, struct qtensor *out,
                                    struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_swiglu_cached_bwd(const struct qtensor *gq, const struct qtensor *uq, const void *da, enum dtype act,
                                     const struct quant_spec *sa, struct qtensor *aq, const struct quant_spec *sg, struct qtensor *dg,
                                     const struct quant_spec *su, struct qtensor *du, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_gemm_dgrad_sum(int n, const struct qtensor *const *dy, const struct qtensor *const *w, void *dx, enum dtype xt,
                                  struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_embed_fwd(const void *table, const int32_t *ids, void *out, enum dtype act, int64_t T, int64_t H,
                             int64_t v0, int64_t V, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_embed_bwd(dev_real *dtable, const int32_t *ids, const void *dout, enum dtype act, int64_t T, int64_t H,
                             int64_t v0, int64_t V, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_ce_max(const void *logits, enum dtype lt, dev_real *rowmax, int64_t T, int64_t V, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_ce_sum(const void *logits, enum dtype lt, const dev_real *rowmax, const int32_t *labels, dev_real *sumexp,
                          dev_real *target, int64_t T, int64_t v0, int64_t V, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_ce_bwd(const void *logits, enum dtype lt, const dev_real *rowmax, const dev_real *sumexp,
                          const dev_real *target, const int32_t *labels, double gscale, dev_real *loss_sum, void *dlogits,
                          enum dtype act, int64_t T, int64_t v0, int64_t V, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_cross_entropy(const void *logits, enum dtype lt, const int32_t *labels, double gscale, dev_real *loss_sum, void *dlogits,
                                 enum dtype act, dev_real *losses, int64_t T, int64_t V, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_grad_stats(int n, const dev_real *const *grads, const int64_t *counts, const double *factors,
                              const uint64_t *indices, double *sumsq, uint64_t *bad, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_adamw(int n, const struct adamw_tensor *t, enum dtype moments, enum dtype param,
                         const struct step_params *p, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_amax_update(int n, int len, dev_real *history, const dev_real *amax, dev_real *scale, const double *fp8_max,
                               int use_max, int margin, const uint64_t *skip, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int missing_host_pin(struct dev *d, void *p, size_t bytes, struct error *e) {
        return error_set(e, -EOPNOTSUPP, "this backend keeps no host memory in place");
}

static int missing_host_unpin(struct dev *d, void *p) {
        return -EOPNOTSUPP;
}

static const struct dev_ops missing = {
        .open = missing_open,
        .close = missing_close,
        .fingerprint = missing_fingerprint,
        .alloc = missing_alloc,
        .free = missing_free,
        .stream_new = missing_stream_new,
        .stream_free = missing_stream_free,
        .stream_sync = missing_stream_sync,
        .copy_in = missing_copy_in,
        .copy_out = missing_copy_out,
        .copy = missing_copy,
        .zero = missing_zero,
        .cast = missing_cast,
        .add = missing_add,
        .scale = missing_scale,
        .init_normal = missing_init_normal,
        .quantize = missing_quantize,
        .quantize_many = missing_quantize_many,
        .requantize_col = missing_requantize_col,
        .dequantize = missing_dequantize,
        .gemm_fprop = missing_gemm_fprop,
        .gemm_dgrad = missing_gemm_dgrad,
        .gemm_dgrad_sum = missing_gemm_dgrad_sum,
        .gemm_wgrad = missing_gemm_wgrad,
        .gemm_wgrad_many = missing_gemm_wgrad_many,
        .rmsnorm_fwd = missing_rmsnorm_fwd,
        .rmsnorm_quant_fwd = missing_rmsnorm_quant_fwd,
        .rmsnorm_bwd = missing_rmsnorm_bwd,
        .rope = missing_rope,
        .rope_quant_bwd = missing_rope_quant_bwd,
        .attention_fwd = missing_attention_fwd,
        .attention_bwd = missing_attention_bwd,
        .attention_workspace = missing_attention_workspace,
        .swiglu_fwd = missing_swiglu_fwd,
        .swiglu_quant_fwd = missing_swiglu_quant_fwd,
        .swiglu_bwd = missing_swiglu_bwd,
        .swiglu_cache_fwd = missing_swiglu_cache_fwd,
        .swiglu_cached_bwd = missing_swiglu_cached_bwd,
        .embed_fwd = missing_embed_fwd,
        .embed_bwd = missing_embed_bwd,
        .ce_max = missing_ce_max,
        .ce_sum = missing_ce_sum,
        .ce_bwd = missing_ce_bwd,
        .cross_entropy = missing_cross_entropy,
        .grad_stats = missing_grad_stats,
        .adamw = missing_adamw,
        .amax_update = missing_amax_update,
        .host_pin = missing_host_pin,
        .host_unpin = missing_host_unpin,
        .quant_stats = missing_quant_stats,
};

void dev_ops_complete(struct dev_ops *ops) {
        const size_t first = offsetof(struct dev_ops, open), step = sizeof(void (*)(void));

        for (size_t at = first; at < sizeof *ops; at += step) {
                void (*slot)(void);

                memcpy(&slot, (char *)ops + at, step);
                if (!slot || at >= ops->size)
                        memcpy((char *)ops + at, (const char *)&missing + at, step);
        }
}
