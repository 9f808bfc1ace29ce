/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The device interface: what the training engine asks of a device.  Its operations are the *fused* units that a fast GPU backend
 * needs; the CPU backend (kernels/cpu) composes them with the same rounding points and is the specification.
 *
 * Conventions
 *  - Matrices are row-major, contiguous, [rows, cols]; "tokens" T is always the row count of activations.
 *  - Pointers named here are device pointers (host pointers on the CPU backend).  Hyper-parameters that change per step (learning rate,
 *    step, skip flag, scales) lie in device memory, so that a captured graph need not be rebuilt.
 *  - Every operation is enqueued on a stream and returns 0 or a negative errno (-EOPNOTSUPP: this backend has not got it, -EINVAL: shapes).
 *  - No operation allocates.  Scratch is given by the caller (dev_workspace) or sized at dev_open.
 *  - Rounding points are part of the contract: stated per operation.  "bf16(x)" rounds to nearest even.
 *    Every activation and every activation's gradient is stored in the carrier (dev_config.act); what stays F32: sums inside an operation, partial sums that a
 *    collective adds (job file: precision.reduce), logits, rstd, lse, and the gradients of weights.
 *  - In the FP64 build (-DFP8_FP64) an element of DT_F32 is a double everywhere (dev_real), and only recipe fp32 is allowed.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/error.h"

#ifdef FP8_FP64
#define dev_real double
#else
#define dev_real float
#endif

struct dev_stream;
struct dev_event;

/* ------------------------------------------------------------------ quantised tensors */

enum qscaling {
        Q_NONE,     /* not quantised: row is the BF16 or F32 matrix itself (an alias of the source), col unused */
        Q_1X128,    /* row: one scale per token and 128 columns; col: one per column and 128 tokens (of the transposed matrix) */
        Q_128X128,  /* one scale a block, the same bytes in both orientations */
        Q_TENSOR,   /* one scale, computed now (current scaling) */
        Q_DELAYED,  /* one scale, given in *spec->scale (from the amax history) */
};

/*
 * A matrix [rows, cols] quantised for GEMMs that contract over cols (row form) and over rows (col form).
 * Scales are *dequantisation* scales (1/s).  Layouts as TMA and cuBLASLt take them (NUMERICS, cublasLt.h):
 *   Q_1X128   row_scale[kb * ld + m], kb = column block, ld = rows rounded up to 4;   col_scale[tb * ldc + n], tb = token block, ldc = cols rounded up to 4
 *   Q_128X128 row_scale[nb * ld + kb], nb = row block, ld = column blocks rounded up to 4; col_scale: the transposed grid, likewise padded
 *   Q_TENSOR/Q_DELAYED row_scale[0] = col_scale[0]
 */
struct qtensor {
        enum qscaling scaling;
        enum dtype dtype; /* DT_E4M3, DT_E5M2; Q_NONE: DT_BF16 or DT_F32 */
        int64_t rows, cols;
        void *row;        /* [rows, cols] */
        dev_real *row_scale;
        void *col;        /* [cols, rows], physically transposed; NULL when not wanted */
        dev_real *col_scale;
};

/* How to quantise one class of tensor. */
struct quant_spec {
        enum qscaling scaling;
        enum dtype dtype;
        bool pow2;           /* s: mantissa bits masked off */
        bool want_row, want_col;
        dev_real *scale;         /* Q_DELAYED: device, the quantisation scale s to use */
        dev_real *amax;          /* any scaling: device, atomically maxed with this tensor's amax (NaN-propagating); may be NULL */
        uint64_t *bad;       /* device: min'ed with `index` when amax is non-finite (sticky, first offender); may be NULL. UINT64_MAX: none */
        uint64_t index;      /* this tensor's index, see trainer's table of tensors */
};

/* Bytes of each part of a qtensor with this spec, for arenas: {row, row_scale, col, col_scale}. */
void dev_qtensor_bytes(const struct quant_spec *s, int64_t rows, int64_t cols, size_t ret[4]);

/* What quantising did to the values of a tensor, over as many matrices as were added. In device memory. */
struct quant_stats {
        uint64_t elements;
        uint64_t saturated; /* so far beyond the format's greatest value that the cast clipped them: rounding alone would have left the format */
        uint64_t flushed;   /* not zero before, zero after */
        uint64_t amax;      /* bits of the greatest |x| as a 32-bit float, which are ordered as the values are, infinity above all numbers and NaN above infinity */
};

/* ------------------------------------------------------------------ operands of fused operations */

/* Packed documents: cu[0]=0 < cu[1] < ... < cu[n]=T; attention stays inside [cu[i], cu[i+1]), RoPE positions restart at each. Device memory, int32. */
struct doc_bounds {
        const int32_t *cu;
        const int32_t *pos; /* [T] position inside its document */
        const int32_t *doc; /* [T] index of its document */
        int32_t n, tokens;
        const int32_t *host_cu; /* the same as cu, in host memory, or NULL: a backend may choose by it how it does attention, in forward and backward alike */
};

/* Per-step values in device memory. */
struct step_params {
        double lr;           /* of the schedule, before lr_scale of groups */
        double beta1, beta2, eps;
        double bias1, bias2; /* 1 - beta^t, t = optimizer steps done, this one included */
        double grad_scale;   /* gradients are multiplied by it: 1/loss_scale * clip factor */
        uint64_t skip;       /* not 0: nothing changes, bitwise */
        uint64_t rng;        /* seed of stochastic rounding in this step */
};

struct adamw_tensor {
        dev_real *master;        /* [count] FP32 */
        const dev_real *grad;    /* [count] FP32, reduced over dp, not yet unscaled */
        void *m, *v;         /* [count] moments_dtype */
        void *param;         /* [count] BF16 (or F32) working copy to write, bf16(master); may be NULL */
        int64_t count;
        double lr_scale, weight_decay;
        /* Where it stands in its global tensor: rows of `cols` elements from (row0, col0) of a tensor global_cols wide. Stochastic rounding of an element depends on
         * (step_params.rng, name_hash, its global place) only, so it is the same in every layout, and the same on ranks that hold copies. cols 0: one row of count. */
        uint64_t name_hash;
        int64_t row0, col0, cols, global_cols;
};

/* ------------------------------------------------------------------ the table */

struct dev;

/* One device of a process. act: DT_BF16 for all recipes but fp32 (DT_F32). */
struct dev_config {
        const char *kind;       /* as dev_ops_load knows it: "cpu", "cuda" */
        int index;              /* device number on the node */
        int threads;            /* CPU: BLAS threads, default 1 (part of the numeric fingerprint) */
        enum dtype act;         /* activations' carrier */
        bool any_order;         /* sums may be made in whatever order is fastest (attention's backward): the same step twice need not give the same bits */
};

struct dev_ops {
        size_t size;            /* sizeof(struct dev_ops) of the backend */
        uint32_t version;       /* DEV_VERSION */
        const char *kind;

        int (*open)(const struct dev_config *c, struct dev **ret, struct error *e);
        void (*close)(struct dev *d);
        /* "cpu/openblas-SkylakeX/t1/..." : part of the numeric fingerprint */
        const char *(*fingerprint)(struct dev *d);

        int (*alloc)(struct dev *d, size_t bytes, void **ret, struct error *e);      /* 256-byte aligned, zeroed */
        void (*free)(struct dev *d, void *p);
        int (*stream_new)(struct dev *d, struct dev_stream **ret);
        void (*stream_free)(struct dev_stream *s);
        int (*stream_sync)(struct dev_stream *s);
        int (*copy_in)(void *dst, const void *src_host, size_t bytes, struct dev_stream *s);
        int (*copy_out)(void *dst_host, const void *src, size_t bytes, struct dev_stream *s);
        int (*copy)(void *dst, const void *src, size_t bytes, struct dev_stream *s);
        int (*zero)(void *dst, size_t bytes, struct dev_stream *s);
        int (*cast)(void *dst, enum dtype dt, const void *src, enum dtype st, int64_t n, struct dev_stream *s);
        /* dst += src, both of dtype t, in F32, rounded once */
        int (*add)(void *dst, const void *src, enum dtype t, int64_t n, struct dev_stream *s);
        /* dst (F32) *= factor */
        int (*scale)(dev_real *dst, double factor, int64_t n, struct dev_stream *s);
        /* Counter-based normal initialisation: element (r, c) of the global tensor `name_hash` depends on (seed, name_hash, r, c) only;
         * this shard starts at (row0, col0) of a global width global_cols. std 0 with mean: constant. */
        int (*init_normal)(dev_real *dst, int64_t rows, int64_t cols, int64_t row0, int64_t col0, int64_t global_cols, uint64_t seed, uint64_t name_hash,
                           double mean, double std, struct dev_stream *s);

        /* ---- quantisation (rules: NUMERICS "Quantise"); x [rows, cols] of dtype xt, out sized by dev_qtensor_bytes.  The caller sets out's rows, cols and the four pointers;
         * scaling and dtype are set here, and for Q_NONE row becomes x itself.  A group with a non-finite amax: dequantisation scale NaN, all its bytes NaN (Q_DELAYED: the
         * bytes are cvt(x*s), only the scale is NaN).  Padding of the scale grids is left as it was. */
        int (*quantize)(const void *x, enum dtype xt, const struct quant_spec *q, struct qtensor *out, struct dev_stream *s);
        /* The same for n matrices in one launch, where a backend has it; -EOPNOTSUPP: one after another, whose bits these have. */
        int (*quantize_many)(int n, const void *const *x, enum dtype xt, const struct quant_spec *const *q, struct qtensor *const *out, struct dev_stream *s);
        /* col form made from the dequantised row form (cached FP8 activations, needed again transposed); Q_1X128: from row * scale in F32, the others: the same bytes */
        int (*requantize_col)(struct qtensor *t, const struct quant_spec *q, struct dev_stream *s);
        /* x = bf16(row * scale) */
        int (*dequantize)(const struct qtensor *t, void *x, enum dtype xt, struct dev_stream *s);

        /* ---- GEMMs.  Forms used: fprop x.row w.row; dgrad dy.row w.col (the CPU also takes w.row: the bytes are the same); wgrad dy.col x.col.  Q_NONE: row in all. FP8: partial sums of 128 along the contraction, promoted to F32 with both scales applied. BF16/F32 (Q_NONE): F32 accumulation. */
        /* y[M,N] = x[M,K] w[N,K]^T; yt BF16 or F32 */
        int (*gemm_fprop)(const struct qtensor *x, const struct qtensor *w, void *y, enum dtype yt, struct dev_stream *s);
        /* dx[M,K] of xt (BF16 or F32) = xt(beta*sum + dy[M,N] w[N,K]), beta 0 or 1: where several products make one input's gradient (q, k, v; gate, up) they are added in
         * F32 and rounded once.  dx NULL: not the last of them, sum (F32) takes the result.  With dx, sum is scratch afterwards, and may be NULL when beta is 0. */
        int (*gemm_dgrad)(const struct qtensor *dy, const struct qtensor *w, dev_real *sum, int beta, void *dx, enum dtype xt, struct dev_stream *s);
        /* The same for all n pairs at once, dx = xt(sum of their products), where a backend has one kernel for it; -EOPNOTSUPP: gemm_dgrad one after another. */
        int (*gemm_dgrad_sum)(int n, const struct qtensor *const *dy, const struct qtensor *const *w, void *dx, enum dtype xt, struct dev_stream *s);
        /* dw[N,K] (F32) = beta*dw + dy[M,N]^T x[M,K], beta 0 (dw is not read) or 1 */
        int (*gemm_wgrad)(const struct qtensor *dy, const struct qtensor *x, dev_real *dw, int beta, struct dev_stream *s);
        /* The same for n gradients in one launch, whose waves are fuller than those of each alone; the same bits. -EOPNOTSUPP: gemm_wgrad one after another. */
        int (*gemm_wgrad_many)(int n, const struct qtensor *const *dy, const struct qtensor *const *x, dev_real *const *dw, int beta, struct dev_stream *s);

        /* ---- norm.  residual (act) = from (act, may be residual itself) + delta (act, may be NULL) rounded to act; y = act(residual * rstd * w); rstd [T] F32 kept for backward */
        int (*rmsnorm_fwd)(void *residual, const void *from, const void *delta, const dev_real *w, double eps, void *y, dev_real *rstd, enum dtype act, int64_t T, int64_t H,
                           struct dev_stream *s);
        /* the same with y quantised in the same pass (tp = 1, or no sequence parallelism) ; y may be NULL when only q is wanted */
        int (*rmsnorm_quant_fwd)(void *residual, const void *from, const void *delta, const dev_real *w, double eps, void *y, dev_real *rstd, enum dtype act, int64_t T, int64_t H,
                                 const struct quant_spec *q, struct qtensor *out, struct dev_stream *s);
        /* dresidual (act) = act(dresidual + d rmsnorm(dy)); dw (F32) += ; x is the residual value that went in; dy of dtype dyt */
        int (*rmsnorm_bwd)(void *dresidual, dev_real *dw, const void *dy, enum dtype dyt, const void *x, const dev_real *w, const dev_real *rstd, enum dtype act,
                           int64_t T, int64_t H, struct dev_stream *s);

        /* ---- attention.  RoPE rotates halves (Hugging Face Llama), tables in F32; in place on q [T, Hq*D], k [T, Hkv*D] (act). backward: inverse rotation */
        int (*rope)(void *q, void *k, const struct doc_bounds *docs, double theta, int64_t Hq, int64_t Hkv, int64_t D, bool backward, enum dtype act,
                    struct dev_stream *s);
        /* x, q, out: three each, of q, k and v's gradients.  The first two rotated back, then all quantised, in one operation where a backend has it, without their being stored;
         * -EOPNOTSUPP: rope and quantize, whose bits these have. */
        int (*rope_quant_bwd)(const void *const *x, const struct doc_bounds *docs, double theta, int64_t D, enum dtype act, const struct quant_spec *const *q, struct qtensor *const *out,
                              struct dev_stream *s);
        /* causal within documents; scale 1/sqrt(D); softmax in F32; out (act) [T, Hq*D]; lse: Hq*T of F32, by head, then token; with docs->host_cu in
         * an order of the backend's own, for its backward with the same docs. */
        int (*attention_fwd)(const void *q, const void *k, const void *v, const struct doc_bounds *docs, void *out, dev_real *lse, int64_t Hq, int64_t Hkv,
                             int64_t D, enum dtype act, void *workspace, struct dev_stream *s);
        /* the softmax's gradient is p * (dp - rowsum(dout * out)), with `out` as it is stored */
        int (*attention_bwd)(const void *q, const void *k, const void *v, const void *out, const dev_real *lse, const void *dout, const struct doc_bounds *docs,
                             void *dq, void *dk, void *dv, int64_t Hq, int64_t Hkv, int64_t D, enum dtype act, void *workspace, struct dev_stream *s);
        size_t (*attention_workspace)(int64_t T, int64_t Hq, int64_t Hkv, int64_t D);

        /* ---- SwiGLU.  a = act(silu(g) * u), from g, u [T, I] (act) */
        int (*swiglu_fwd)(const void *g, const void *u, void *a, enum dtype act, int64_t T, int64_t I, struct dev_stream *s);
        int (*swiglu_quant_fwd)(const void *g, const void *u, void *a /* may be NULL */, enum dtype act, int64_t T, int64_t I, const struct quant_spec *q,
                                struct qtensor *out, struct dev_stream *s);
        /* dg, du (act) from da (dat), quantised in the same pass when qg/qu are given (then dg/du may be NULL) */
        int (*swiglu_bwd)(const void *g, const void *u, const void *da, enum dtype dat, void *dg, void *du, enum dtype act, int64_t T, int64_t I,
                          const struct quant_spec *qsg, struct qtensor *qg, const struct quant_spec *qsu, struct qtensor *qu, struct dev_stream *s);

        /* SwiGLU whose inputs are kept quantised, as one operation each way where a backend has it; -EOPNOTSUPP: the plain operations one after another, whose bits these have.
         * Forward: gq = quantised g, uq = quantised u, out = quantised act(silu(g) * u).  Backward, g and u being act(dequantised gq, uq): aq = quantised act(silu(g) * u), and
         * dg, du quantised. */
        int (*swiglu_cache_fwd)(const void *g, const void *u, enum dtype act, const struct quant_spec *sg, struct qtensor *gq, const struct quant_spec *su, struct qtensor *uq,
                                const struct quant_spec *sa, struct qtensor *out, struct dev_stream *s);
        int (*swiglu_cached_bwd)(const struct qtensor *gq, const struct qtensor *uq, const void *da, enum dtype act, const struct quant_spec *sa, struct qtensor *aq,
                                 const struct quant_spec *sg, struct qtensor *dg, const struct quant_spec *su, struct qtensor *du, struct dev_stream *s);

        /* ---- vocabulary-parallel embedding and cross-entropy. This shard holds ids [v0, v0+V). */
        /* out (act) [T, H] = table row, 0 for ids of other shards */
        int (*embed_fwd)(const void *table, const int32_t *ids, void *out, enum dtype act, int64_t T, int64_t H, int64_t v0, int64_t V, struct dev_stream *s);
        /* dtable (F32) += ; deterministic order (by token) */
        int (*embed_bwd)(dev_real *dtable, const int32_t *ids, const void *dout, enum dtype act, int64_t T, int64_t H, int64_t v0, int64_t V, struct dev_stream *s);
        /* rowmax[T] of logits (F32 or act) [T, V] */
        int (*ce_max)(const void *logits, enum dtype lt, dev_real *rowmax, int64_t T, int64_t V, struct dev_stream *s);
        /* sumexp[T] = sum exp(l - rowmax), target[T] = l[t] of the label if it is in this shard, else 0. Labels < 0 are ignored */
        int (*ce_sum)(const void *logits, enum dtype lt, const dev_real *rowmax, const int32_t *labels, dev_real *sumexp, dev_real *target, int64_t T, int64_t v0,
                      int64_t V, struct dev_stream *s);
        /* loss_sum (F32[1]) += sum over labelled tokens of log(sumexp) + rowmax - target; dlogits (act, may alias logits) = (softmax - onehot) * gscale;
         * dlogits NULL: evaluation */
        int (*ce_bwd)(const void *logits, enum dtype lt, const dev_real *rowmax, const dev_real *sumexp, const dev_real *target, const int32_t *labels, double gscale,
                      dev_real *loss_sum, void *dlogits, enum dtype act, int64_t T, int64_t v0, int64_t V, struct dev_stream *s);
        /* The three for a shard that is the whole vocabulary, where a backend reads the logits once for all: rowmax, sumexp and target are not given out. -EOPNOTSUPP: the three. */
        int (*cross_entropy)(const void *logits, enum dtype lt, const int32_t *labels, double gscale, dev_real *loss_sum, void *dlogits, enum dtype act, dev_real *losses /* [T], scratch */,
                             int64_t T, int64_t V, struct dev_stream *s);

        /* ---- optimizer */
        /* sumsq (double[1], device) += sum of squares of each tensor x factor[i]; bad min'ed with index[i] of a tensor with a non-finite element. One pass, fixed order. */
        int (*grad_stats)(int n, const dev_real *const *grads, const int64_t *counts, const double *factors, const uint64_t *indices, double *sumsq,
                          uint64_t *bad, struct dev_stream *s);
        /* Decoupled weight decay (Loshchilov & Hutter 2019): master -= lr*lr_scale*(mhat/(sqrt(vhat)+eps) + wd*master) */
        int (*adamw)(int n, const struct adamw_tensor *t, enum dtype moments, enum dtype param, const struct step_params *p, struct dev_stream *s);
        /* delayed scaling: roll the amax history [n][len], scale from it; nothing when *skip. amax 0 or non-finite keeps the previous scale */
        int (*amax_update)(int n, int len, dev_real *history, const dev_real *amax, dev_real *scale, const double *fp8_max, int use_max, int margin, const uint64_t *skip,
                           struct dev_stream *s);

        /* ---- host memory */
        /*
         * From here on the device itself reads and writes these pages of the host, so that copies of them to and from it are under way beside everything else, the calling thread included. They stay
         * where they are in memory meanwhile. Without it, and on an error, copies work as well and are staged by the calling thread. Any thread; one at a time for the same pages.
         */
        int (*host_pin)(struct dev *d, void *p, size_t bytes, struct error *e);
        int (*host_unpin)(struct dev *d, void *p);

        /* ---- statistics. Adds to *stats (device) what became of x [rows, cols] of dtype xt (BF16 or F32) in t, which was quantised from it and has its row form. Saturated: |x| > m * row_scale, the
         * product rounded to F32, m being the midpoint above the format's greatest value (E4M3: 464, E5M2: 61440). A group that is not finite has no finite scale: its elements are neither. */
        int (*quant_stats)(const void *x, enum dtype xt, const struct qtensor *t, struct quant_stats *stats, struct dev_stream *s);
};

#define DEV_VERSION 5

/* The built-in backend of that kind, every slot filled (missing ones return -EOPNOTSUPP); NULL: unknown. */
const struct dev_ops *dev_ops_find(const char *kind);
/* The same, and where it is not built in, libfp8-KIND.so is loaded (dev_plugin.c), once a process. -ENODEV: there is none. */
int dev_ops_load(const char *kind, const struct dev_ops **ret, struct error *e);
/* What such a library exports: its table. */
#define DEV_PLUGIN_SYMBOL "fp8_device_plugin"
const struct dev_ops *fp8_device_plugin(void);
/* Fills the slots that are NULL, or that lie beyond the size the backend was built with, with ones that return -EOPNOTSUPP. */
void dev_ops_complete(struct dev_ops *ops);
extern const struct dev_ops dev_ops_cpu;
