/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A Llama-style transformer's stage on one rank: RMSNorm, RoPE, grouped-query attention, SwiGLU, vocabulary-parallel embedding and head.
 *
 * Shapes used everywhere: T tokens of a micro-batch, Ts of them on this rank in the sequence-parallel regions (T / tp there, else T), H hidden,
 * I intermediate / tp, Q query heads * head_dim / tp, K key-value heads * head_dim / tp, V this shard's vocabulary.
 * "act" is the activations' type: BF16, or F32 in recipe fp32.  The residual stream and its gradient are [Ts, H] act.
 *
 * What is kept from forward to backward: struct layer_acts, one per layer and micro-batch in flight.  A layer whose activations are recomputed keeps x1
 * alone; the rest of its struct points to memory shared by all such layers.
 */
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "kernels/dev.h"
#include "proto/job_spec.h"
#include "worker/comm/comm.h"
#include "worker/model/arena.h"
#include "worker/model/tensor_table.h"

/* Leaves the calling function with what failed: negative errors and positive conditions of the collectives alike. */
#define TRY(call)                \
        do {                     \
                int try_ = (call); \
                if (try_ != 0)   \
                        return try_; \
        } while (0)
/* The same for an operation of the device, which brings no text of its own. */
#define TRY_DEV(e, call)                                                                                     \
        do {                                                                                                 \
                int try_ = (call);                                                                           \
                if (try_ < 0)                                                                                \
                        return error_set((e), try_, "device operation failed with %d: %.200s", try_, #call); \
        } while (0)

/* ------------------------------------------------------------------ what is quantised where */

/* Places of a layer where a tensor is quantised, in the order of the data's way. */
enum site {
        SITE_X_ATTN, /* input of q, k, v */
        SITE_W_Q,
        SITE_W_K,
        SITE_W_V,
        SITE_X_O,
        SITE_W_O,
        SITE_X_MLP, /* input of gate, up */
        SITE_W_GATE,
        SITE_W_UP,
        SITE_CACHE_GATE, /* SwiGLU's inputs, kept in FP8 (recipe block) */
        SITE_CACHE_UP,
        SITE_X_DOWN,
        SITE_W_DOWN,
        SITE_DY_DOWN, /* gradients of the Linears' outputs */
        SITE_DY_GATE,
        SITE_DY_UP,
        SITE_DY_O,
        SITE_DY_Q,
        SITE_DY_K,
        SITE_DY_V,
        SITES
};

/* A non-finite value's finder: orders all sites and gradients of a step along the data's way; the lowest wins. Rank in the low bits. */
#define FINDING_NONE UINT64_MAX
uint64_t finding_site(const struct model_config *m, int layer, enum site site, int rank);
/* A gradient before (reduced false) or after the reduction over dp. */
uint64_t finding_gradient(const struct model_config *m, uint32_t tensor_number, bool reduced, int rank);
int finding_rank(uint64_t finding);
/* "model.layers.3.mlp.down_proj.input"; -EINVAL for what no finding_* makes. */
int finding_name(const struct model_config *m, uint64_t finding, char *buf, size_t size);
void site_name(int layer, enum site site, char *buf, size_t size);
const char *site_suffix(enum site site); /* "mlp.down_proj.input" */

/* ------------------------------------------------------------------ parts */

struct linear {
        struct tensor *tensor;
        void *param;          /* [N, K] act, the working copy */
        dev_real *grad;           /* [N, K] F32, accumulated over micro-batches */
        struct qtensor q;     /* the weight as the GEMMs take it; Q_NONE: alias of param */
        struct quant_spec *spec;
};

struct norm {
        struct tensor *tensor;
        dev_real *weight; /* [H] F32, the working copy's values */
        dev_real *grad;
};

struct layer {
        int number; /* global */
        bool fp8, recompute;
        struct norm attn_norm, mlp_norm;
        struct linear q, k, v, o, gate, up, down;
        struct quant_spec spec[SITES];
};

struct layer_acts {
        void *x1, *x2;           /* [Ts, H] act: what went into the two norms */
        dev_real *rstd1, *rstd2;     /* [Ts] */
        struct qtensor xq1, xq2; /* [T, H] inputs of q, k, v and gate, up */
        void *q, *k, *v;         /* [T, Q], [T, K], [T, K] act, rotated */
        void *attn;              /* [T, Q] act */
        dev_real *lse;               /* [heads / tp, T] */
        struct qtensor oq;       /* [T, Q] input of o */
        void *g, *u;             /* [T, I] act; recipe block: scratch, see gq, uq */
        struct qtensor gq, uq;   /* recipe block: g, u in FP8 */
        struct qtensor aq;       /* [T, I] input of down; recipe block: scratch, made again in backward */
};

/* Tokens of one micro-batch in flight. */
struct batch {
        int32_t *ids, *labels;  /* device [T] */
        int32_t *cu, *pos, *doc;/* device [T + 1], [T], [T] */
        int32_t *host_cu;       /* host, as cu */
        struct doc_bounds docs;
        int64_t labelled;       /* labels >= 0 */
};

struct head_acts {
        void *x;          /* [Ts, H] act: what went into the final norm */
        dev_real *rstd;       /* [Ts] */
        void *y;          /* [T, H] act, normalised and gathered */
        dev_real *logits;     /* [T, V] F32 */
        void *dlogits;    /* [T, V] act */
        dev_real *rowmax;     /* [T] */
        dev_real *sums;       /* [2 * T]: sum of exponentials, target logit */
        dev_real *loss;       /* [n_micro] sums of the losses of a step's micro-batches */
        dev_real *eval_loss;  /* [1] */
};

/* Gradients of the Linears' outputs as the GEMMs take them. */
struct work_gradients {
        struct qtensor dy;     /* [T, H] of o and down */
        struct qtensor dg, du; /* [T, I] */
        struct qtensor dq, dk, dv;
};

struct work {
        void *delta;             /* [Ts, H] act: what the next norm adds to the residual */
        void *rx, *tx;           /* [Ts, H] act: residual from the stage before, to the stage after */
        void *dres;              /* [Ts, H] act: gradient of the residual stream */
        void *gathered;          /* [T, H] act */
        void *partial;           /* [T, H]: with tp > 1 partial sums, of `reduce`; else an input's gradient, act */
        void *reduced;           /* [Ts, H] F32 */
        dev_real *dx;                /* [T, H] F32: sum of the products that make an input's gradient */
        void *dwide;             /* [T, max(I, Q)] act: gradient of SwiGLU's output, then of the attention's */
        void *a;                 /* [T, I] act */
        void *dg, *du;           /* [T, I] act */
        void *dq, *dk, *dv;      /* act */
        struct work_gradients q[2]; /* [layer->fp8] */
        void *attention;         /* the device's own scratch */
        /* of FP8 layers: row forms, which only the forward product reads, [T, H], [T, Q], [T, I]; recipe block: g, u, and the column form of a */
        struct qtensor row_h, row_q, row_i;
        void *g, *u;
};

struct model {
        const struct job_spec *spec;
        const struct model_config *config;
        const struct layout *layout;
        struct tensor_table *table;
        const struct dev_ops *ops;
        struct dev *dev;
        struct dev_stream *stream;
        struct comm *tp; /* of the epoch */
        /* Told by model_backward where it is set: the gradients in the flat buffer from this offset on get nothing more in this backward pass. */
        int (*gradients_final)(void *arg, int64_t offset, struct error *e);
        void *gradients_final_arg;

        enum dtype act, reduce; /* reduce: of row-parallel partial sums and of input gradients between tp ranks */
        int64_t T, Ts, H, I, Q, K, D, V, v0, heads, kv_heads;
        int n_slots;   /* micro-batches in flight at most */
        int n_micro;   /* of a step */

        struct layer *layers;     /* [layout->n_layers] */
        struct layer_acts *acts;  /* [n_slots * n_layers] */
        struct batch *batches;    /* [n_slots] */
        struct norm final_norm;
        void *embed_param, *head_param; /* [V, H] act, NULL where the stage has none; the same when tied on one stage */
        dev_real *embed_grad, *head_grad;
        struct head_acts head;
        struct work work;

        /* flat buffers, see tensor_table.h */
        void *params;
        dev_real *grads;
        dev_real *norm_weights; /* [norm_elements] */
        bool grads_fresh; /* no micro-batch of the step has added to the gradients yet: those of matrices are written without being read, see model_gradients_clear */

        /* delayed scaling: one row a site of every layer; amax (of this step) in every FP8 recipe */
        int n_sites;                  /* 0 in the others */
        dev_real *amax, *scale, *history; /* [n_sites], [n_sites], [n_sites][amax_history] */
        double *fp8_max;              /* [n_sites] */
        uint64_t *bad;                /* [1] */
        struct quant_stats *stats;    /* [sites], of a step; NULL unless metrics.fp8_every asks for them */
        bool stats_now;               /* in this step. Then nothing is quantised where it is made: the values have to be seen (other operations, the same bits) */

        struct arena arenas[ARENA_KINDS];
};

static inline size_t act_bytes(const struct model *m, int64_t n) {
        return dtype_size(m->act) * (size_t)n;
}

/* Fills everything but tp; the arenas of other kinds may be added to by `more` in both passes. */
int model_init(struct model *m, const struct job_spec *spec, const struct layout *l, struct tensor_table *table, const struct dev_ops *ops,
               struct dev *dev, int (*more)(void *arg, struct arena *arenas), void *arg, struct error *e);
void model_done(struct model *m);
/* After the working copies changed: norm weights in F32, quantised forms. `bootstrap`: recipe delayed without any history yet scales by the present amax. */
int model_weights_changed(struct model *m, bool bootstrap, struct error *e);
size_t model_memory(const struct model *m);

/* Forward of the stage for the micro-batch in `slot`: in (residual; NULL on the first stage) -> *out (residual to send; NULL on the last stage, whose
 * loss sum is added to *loss_sum). training false: no gradients are prepared. Labels and ids: batches[slot]. */
int model_forward(struct model *m, int slot, const void *in, bool training, double gscale, dev_real *loss_sum, void **ret_out, struct error *e);
/* Before the first micro-batch of a step. */
int model_gradients_clear(struct model *m, struct error *e);
/* Before the first micro-batch of a step: whether it shall count what quantising does to the values of each FP8 tensor. The weights' figures are taken now. */
int model_stats_begin(struct model *m, bool wanted, struct error *e);
/* After the last one: what is quantised from now on belongs to no step's statistics. */
void model_stats_end(struct model *m);
/* work.dres holds the gradient of the stage's output (ignored on the last stage), and of its input afterwards. */
int model_backward(struct model *m, int slot, struct error *e);

/* ------------------------------------------------------------------ between the files of this folder */

int quantize_at(struct model *m, const struct quant_spec *spec, const void *x, enum dtype xt, int64_t rows, int64_t cols, struct qtensor *out,
                struct error *e);
int quant_specs_init(struct model *m, struct layer *layer, int local);
void quant_specs_scaling(struct model *m, bool bootstrap);
/* The parts of a quantised [rows, cols]: row and col forms from the arenas given (NULL: not from here). */
void qtensor_take(const struct quant_spec *spec, int64_t rows, int64_t cols, struct arena *row, struct arena *col, struct qtensor *out);

int linear_forward(struct model *m, const struct linear *l, const struct qtensor *x, void *y, enum dtype yt, struct error *e);
/* dx of type xt, or, where it is NULL, one more product into work.dx (dev.h, gemm_dgrad). */
int linear_dgrad(struct model *m, const struct linear *l, const struct qtensor *dy, int beta, void *dx, enum dtype xt, struct error *e);
/* The gradient of an input [T, H] that n (at most 3) Linears share: the rank's part of the sum, in work.partial. */
int linear_dgrad_inputs(struct model *m, int n, const struct linear *const *l, const struct qtensor *const *dy, struct error *e);
/* The gradients of n Linears' weights. */
#define LINEAR_WGRADS 4
int linear_wgrads(struct model *m, int n, const struct linear *const *l, const struct qtensor *const *dy, const struct qtensor *const *x, struct error *e);

/* [Ts, H] act -> [T, H] act: all-gathered into `room` under sequence parallelism, else `x` itself. */
int tp_gather(struct model *m, const void *x, void *room, const void **ret, struct error *e);
/* y = sum over tp of x W^T, [T, H] -> the rank's [Ts, H] act. */
int tp_row_linear(struct model *m, const struct linear *l, const struct qtensor *x, void *y, struct error *e);
/* Type of an input's gradient in work.partial: rounded to act once all is summed, over tp too. */
enum dtype tp_dx_dtype(const struct model *m);
/* work.partial [T, H] summed over tp -> the rank's [Ts, H] act. */
int tp_reduce_dx(struct model *m, void **ret, struct error *e);

/* RMSNorm of x = from + delta (NULL: nothing; from may be x) and what the Linears behind it take. */
int norm_forward(struct model *m, const struct norm *n, void *x, const void *from, const void *delta, dev_real *rstd, const struct quant_spec *spec, struct qtensor *out,
                 struct error *e);
/* work.dres += gradient through the norm of what is in work.partial. */
int norm_backward(struct model *m, const struct norm *n, const void *x, const dev_real *rstd, struct error *e);

int attention_forward(struct model *m, struct layer *l, struct layer_acts *a, const struct doc_bounds *docs, const void *residual, const void *delta,
                      struct error *e);
int attention_backward(struct model *m, struct layer *l, struct layer_acts *a, const struct doc_bounds *docs, struct error *e);
/* for_backward: all but the last product, whose result is not needed again */
int mlp_forward(struct model *m, struct layer *l, struct layer_acts *a, const void *residual, bool for_backward, struct error *e);
int mlp_backward(struct model *m, struct layer *l, struct layer_acts *a, struct error *e);
int layer_forward(struct model *m, struct layer *l, struct layer_acts *a, const struct doc_bounds *docs, const void *residual, const void *delta,
                  struct error *e);
int layer_backward(struct model *m, struct layer *l, struct layer_acts *a, const struct doc_bounds *docs, struct error *e);
void layer_acts_take(struct model *m, struct layer *l, struct arena *arena, struct layer_acts *a);

int embedding_forward(struct model *m, const struct batch *b, void *out, struct error *e);
int embedding_backward(struct model *m, const struct batch *b, struct error *e);
int head_forward(struct model *m, const struct batch *b, const void *residual, const void *delta, bool training, double gscale, dev_real *loss_sum,
                 struct error *e);
int head_backward(struct model *m, struct error *e);
