/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Hopper kernels behind the signatures of dev.h; what each operation computes stands there, kernels/cpu is the specification.  Carriers of activations are BF16 (recipe fp32 is the
 * CPU's): DT_F32 is taken for what a collective may have added, and refused where an operation says so.  Scratch of a stream grows at its first use and is then reused.
 */
#include <cuda_runtime_api.h>

#include "kernels/dev.h"

#ifdef FP8_FP64
#error "there is no FP64 build of the CUDA kernels"
#endif

/* One buffer a purpose. */
enum cuda_slot { CUDA_SLOT_AMAX, CUDA_SLOT_NORM, CUDA_SLOT_STATS, CUDA_SLOT_OUT0, CUDA_SLOT_OUT1, CUDA_SLOT_BLAS, CUDA_SLOT_ATTENTION, CUDA_SLOTS };

struct cuda_blas;
struct attention_library;

struct dev {
        int index;
        bool any_order;
        char fingerprint[200];
};

struct dev_stream {
        struct dev *dev; /* NULL: made by cuda_stream_new */
        cudaStream_t stream;
        int multiprocessors;
        int tile; /* enum gemm_tile that all products shall have (tests, measurements); -1: by plan */
        void *scratch[CUDA_SLOTS];
        size_t size[CUDA_SLOTS];
        struct cuda_blas *blas; /* made at the first product that needs it */
        struct attention_library *attention; /* made at the first attention; NULL after that: this node has none */
        bool attention_tried;
};

/* A stream on the current device; -ENODEV unless that has compute capability 9.0. */
int cuda_stream_new(struct dev_stream **ret, struct error *e);
struct dev_stream *cuda_stream_free(struct dev_stream *s);
/* What training needs at every step is taken at once, so that a step takes nothing. */
int cuda_scratch_reserve(struct dev_stream *s);
/* At least `bytes` with undefined contents; NULL: no memory. What was there is freed only when the stream is done with it. */
void *cuda_scratch(struct dev_stream *s, enum cuda_slot slot, size_t bytes);

int cuda_quantize(const void *x, enum dtype xt, const struct quant_spec *q, struct qtensor *out, struct dev_stream *s);
/* Quantised where the value is made; 1x128 E4M3 of BF16 only, else -EOPNOTSUPP. */
int cuda_norm_quant(const void *x, const float *rstd, const float *w, const struct quant_spec *q, struct qtensor *out, struct dev_stream *s);
int cuda_swiglu_cache_fwd(const void *g, const void *u, enum dtype act, const struct quant_spec *sg, struct qtensor *gq, const struct quant_spec *su, struct qtensor *uq,
                          const struct quant_spec *sa, struct qtensor *out, struct dev_stream *s);
int cuda_swiglu_cached_bwd(const struct qtensor *gq, const struct qtensor *uq, const void *da, enum dtype act, const struct quant_spec *sa, struct qtensor *aq, const struct quant_spec *sg,
                           struct qtensor *dg, const struct quant_spec *su, struct qtensor *du, struct dev_stream *s);
int cuda_rope_quant_bwd(const void *const *x, const struct doc_bounds *docs, double theta, int64_t D, enum dtype act, const struct quant_spec *const *q, struct qtensor *const *out,
                        struct dev_stream *s);
int cuda_quantize_many(int n, const void *const *x, enum dtype xt, const struct quant_spec *const *q, struct qtensor *const *out, struct dev_stream *s);
int cuda_requantize_col(struct qtensor *t, const struct quant_spec *q, struct dev_stream *s);
int cuda_dequantize(const struct qtensor *t, void *x, enum dtype xt, struct dev_stream *s);
int cuda_quant_stats(const void *x, enum dtype xt, const struct qtensor *t, struct quant_stats *stats, struct dev_stream *s);

/*
 * E4M3 with scales of 1x128 by 128x128 (fprop, dgrad) and 1x128 by 1x128 (wgrad): our kernels.  The copy engine wants rows of a multiple of 16 bytes and the results leave 16
 * bytes at a time: the contraction must be a multiple of 16, and the output's columns too, else -EINVAL.  dgrad takes w.col.  Where the output is added to, subnormal sums become zero
 * (PTX ISA, red.f32 on global memory).  One scale a tensor, BF16 and F32: cuBLASLt (blas.c).
 */
int cuda_gemm_fprop(const struct qtensor *x, const struct qtensor *w, void *y, enum dtype yt, struct dev_stream *s);
int cuda_gemm_dgrad(const struct qtensor *dy, const struct qtensor *w, dev_real *sum, int beta, void *dx, enum dtype xt, struct dev_stream *s);
int cuda_gemm_dgrad_sum(int n, const struct qtensor *const *dy, const struct qtensor *const *w, void *dx, enum dtype xt, struct dev_stream *s);
int cuda_gemm_wgrad(const struct qtensor *dy, const struct qtensor *x, dev_real *dw, int beta, struct dev_stream *s);
int cuda_gemm_wgrad_many(int n, const struct qtensor *const *dy, const struct qtensor *const *x, dev_real *const *dw, int beta, struct dev_stream *s);
