/* SPDX-License-Identifier: Apache-2.0 */
/* The CPU backend's table: complete, and the specification of every other backend. */
#include <errno.h>

#include "kernels/cpu/cpu.h"

/* Fused units that gain nothing here: the plain operations one after another are what they mean. */
static int cpu_gemm_dgrad_sum(int n, const struct qtensor *const *dy, const struct qtensor *const *w, void *dx, enum dtype xt, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int cpu_gemm_wgrad_many(int n, const struct qtensor *const *dy, const struct qtensor *const *x, dev_real *const *dw, int beta, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int cpu_quantize_many(int n, const void *const *x, enum dtype xt, const struct quant_spec *const *q, struct qtensor *const *out, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int cpu_rope_quant_bwd(const void *const *x, const struct doc_bounds *docs, double theta, int64_t D, enum dtype act, const struct quant_spec *const *q, struct qtensor *const *out,
                              struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int cpu_cross_entropy(const void *logits, enum dtype lt, const int32_t *labels, double gscale, dev_real *loss_sum, void *dlogits, enum dtype act, dev_real *losses, int64_t T,
                             int64_t V, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int cpu_swiglu_cache_fwd(const void *g, const void *u, enum dtype act, const struct quant_spec *sg, struct qtensor *gq, const struct quant_spec *su, struct qtensor *uq,
                                const struct quant_spec *sa, struct qtensor *out, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

static int cpu_swiglu_cached_bwd(const struct qtensor *gq, const struct qtensor *uq, const void *da, enum dtype act, const struct quant_spec *sa, struct qtensor *aq,
                                 const struct quant_spec *sg, struct qtensor *dg, const struct quant_spec *su, struct qtensor *du, struct dev_stream *s) {
        return -EOPNOTSUPP;
}

/* The device's memory is the host's. */
static int cpu_host_pin(struct dev *d, void *p, size_t bytes, struct error *e) {
        return 0;
}

static int cpu_host_unpin(struct dev *d, void *p) {
        return 0;
}

const struct dev_ops dev_ops_cpu = {
        .size = sizeof(struct dev_ops),
        .version = DEV_VERSION,
        .kind = "cpu",
        .open = cpu_open,
        .close = cpu_close,
        .fingerprint = cpu_fingerprint,
        .alloc = cpu_alloc,
        .free = cpu_free,
        .stream_new = cpu_stream_new,
        .stream_free = cpu_stream_free,
        .stream_sync = cpu_stream_sync,
        .copy_in = cpu_copy,
        .copy_out = cpu_copy,
        .copy = cpu_copy,
        .zero = cpu_zero,
        .cast = cpu_cast,
        .add = cpu_add,
        .scale = cpu_scale,
        .init_normal = cpu_init_normal,
        .quantize = cpu_quantize,
        .quantize_many = cpu_quantize_many,
        .requantize_col = cpu_requantize_col,
        .dequantize = cpu_dequantize,
        .gemm_fprop = cpu_gemm_fprop,
        .gemm_dgrad = cpu_gemm_dgrad,
        .gemm_dgrad_sum = cpu_gemm_dgrad_sum,
        .gemm_wgrad = cpu_gemm_wgrad,
        .gemm_wgrad_many = cpu_gemm_wgrad_many,
        .rmsnorm_fwd = cpu_rmsnorm_fwd,
        .rmsnorm_quant_fwd = cpu_rmsnorm_quant_fwd,
        .rmsnorm_bwd = cpu_rmsnorm_bwd,
        .rope = cpu_rope,
        .rope_quant_bwd = cpu_rope_quant_bwd,
        .attention_fwd = cpu_attention_fwd,
        .attention_bwd = cpu_attention_bwd,
        .attention_workspace = cpu_attention_workspace,
        .swiglu_fwd = cpu_swiglu_fwd,
        .swiglu_quant_fwd = cpu_swiglu_quant_fwd,
        .swiglu_bwd = cpu_swiglu_bwd,
        .swiglu_cache_fwd = cpu_swiglu_cache_fwd,
        .swiglu_cached_bwd = cpu_swiglu_cached_bwd,
        .embed_fwd = cpu_embed_fwd,
        .embed_bwd = cpu_embed_bwd,
        .ce_max = cpu_ce_max,
        .ce_sum = cpu_ce_sum,
        .ce_bwd = cpu_ce_bwd,
        .cross_entropy = cpu_cross_entropy,
        .grad_stats = cpu_grad_stats,
        .adamw = cpu_adamw,
        .amax_update = cpu_amax_update,
        .host_pin = cpu_host_pin,
        .host_unpin = cpu_host_unpin,
        .quant_stats = cpu_quant_stats,
};
