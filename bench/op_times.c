// SPDX-License-Identifier: Apache-2.0
#include "bench/op_times.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/hopper.h"

#define MAX_MARKS 16384
#define MAX_OPS 256

struct mark {
        cudaEvent_t from, to;
        int op;
};

static const struct dev_ops *real;
static struct dev_ops table;
static struct mark marks[MAX_MARKS];
static struct op_time ops[MAX_OPS];
static int n_marks, n_made, n_ops;
static bool on;

static int op_find(const char *name) {
        int i = 0;

        while (i < n_ops && strcmp(ops[i].name, name) != 0)
                i++;
        if (i == n_ops && n_ops < MAX_OPS) {
                ops[i] = (struct op_time){ 0 };
                (void)snprintf(ops[i].name, sizeof ops[i].name, "%s", name);
                n_ops++;
        }
        return i;
}

static bool mark_begin(const char *name, double bytes, double flops, bool fp8, struct dev_stream *s) {
        struct mark *m = &marks[n_marks];

        if (!on || n_marks == MAX_MARKS)
                return false;
        m->op = op_find(name);
        if (m->op == MAX_OPS)
                return false;
        if (n_marks == n_made) {
                if (cudaEventCreate(&m->from) != cudaSuccess || cudaEventCreate(&m->to) != cudaSuccess)
                        return false;
                n_made++;
        }
        ops[m->op].calls++;
        ops[m->op].bytes += bytes;
        ops[m->op].flops += flops;
        ops[m->op].fp8 = fp8;
        return cudaEventRecord(m->from, s->stream) == cudaSuccess;
}

static int mark_end(bool begun, int r, struct dev_stream *s) {
        if (begun)
                (void)cudaEventRecord(marks[n_marks++].to, s->stream);
        return r;
}

/* An operation that moves `moved` bytes. */
#define MOVES(op, moved, parameters, arguments)                                      \
        static int t_##op parameters {                                               \
                const bool begun = mark_begin(#op, (double)(moved), 0, false, s);    \
                                                                                     \
                return mark_end(begun, real->op arguments, s);                       \
        }

static double act_size(enum dtype t) {
        return (double)dtype_size(t);
}

/* Bytes that a quantiser writes for n elements. */
static double forms(const struct quant_spec *q, double n) {
        return q && q->scaling != Q_NONE ? n * (q->want_row + q->want_col) : 0;
}

MOVES(copy, 2 * bytes, (void *dst, const void *src, size_t bytes, struct dev_stream *s), (dst, src, bytes, s))
MOVES(zero, bytes, (void *dst, size_t bytes, struct dev_stream *s), (dst, bytes, s))
MOVES(cast, (double)n *(act_size(dt) + act_size(st)), (void *dst, enum dtype dt, const void *src, enum dtype st, int64_t n, struct dev_stream *s), (dst, dt, src, st, n, s))
MOVES(add, 3 * (double)n * act_size(t), (void *dst, const void *src, enum dtype t, int64_t n, struct dev_stream *s), (dst, src, t, n, s))
MOVES(dequantize, (double)(t->rows * t->cols) * (1 + act_size(xt)), (const struct qtensor *t, void *x, enum dtype xt, struct dev_stream *s), (t, x, xt, s))
MOVES(rmsnorm_fwd, (double)(T * H) * act_size(act) * (delta ? 4 : 2),
      (void *residual, const void *from, const void *delta, const dev_real *w, double eps, void *y, dev_real *rstd, enum dtype act, int64_t T, int64_t H, struct dev_stream *s),
      (residual, from, delta, w, eps, y, rstd, act, T, H, s))
MOVES(rmsnorm_quant_fwd, (double)(T * H) * act_size(act) * ((delta ? 3 : from == residual ? 1 : 2) + (y != NULL)) + forms(q, (double)(T * H)),
      (void *residual, const void *from, const void *delta, const dev_real *w, double eps, void *y, dev_real *rstd, enum dtype act, int64_t T, int64_t H, const struct quant_spec *q, struct qtensor *out,
       struct dev_stream *s),
      (residual, from, delta, w, eps, y, rstd, act, T, H, q, out, s))
MOVES(rmsnorm_bwd, (double)(T * H) * (3 * act_size(act) + act_size(dyt)),
      (void *dresidual, dev_real *dw, const void *dy, enum dtype dyt, const void *x, const dev_real *w, const dev_real *rstd, enum dtype act, int64_t T, int64_t H, struct dev_stream *s),
      (dresidual, dw, dy, dyt, x, w, rstd, act, T, H, s))
MOVES(rope, 2 * act_size(act) * (double)(docs->tokens * (Hq + Hkv) * D),
      (void *q, void *k, const struct doc_bounds *docs, double theta, int64_t Hq, int64_t Hkv, int64_t D, bool backward, enum dtype act, struct dev_stream *s),
      (q, k, docs, theta, Hq, Hkv, D, backward, act, s))
MOVES(swiglu_fwd, 3 * act_size(act) * (double)(T * I), (const void *g, const void *u, void *a, enum dtype act, int64_t T, int64_t I, struct dev_stream *s), (g, u, a, act, T, I, s))
MOVES(swiglu_quant_fwd, (double)(T * I) * act_size(act) * (2 + (a != NULL)) + forms(q, (double)(T * I)),
      (const void *g, const void *u, void *a, enum dtype act, int64_t T, int64_t I, const struct quant_spec *q, struct qtensor *out, struct dev_stream *s), (g, u, a, act, T, I, q, out, s))
MOVES(swiglu_bwd, (double)(T * I) * (act_size(act) * (2 + (dg != NULL) + (du != NULL)) + act_size(dat)) + forms(qsg, (double)(T * I)) + forms(qsu, (double)(T * I)),
      (const void *g, const void *u, const void *da, enum dtype dat, void *dg, void *du, enum dtype act, int64_t T, int64_t I, const struct quant_spec *qsg, struct qtensor *qg,
       const struct quant_spec *qsu, struct qtensor *qu, struct dev_stream *s),
      (g, u, da, dat, dg, du, act, T, I, qsg, qg, qsu, qu, s))
MOVES(embed_fwd, 2 * act_size(act) * (double)(T * H),
      (const void *t, const int32_t *ids, void *out, enum dtype act, int64_t T, int64_t H, int64_t v0, int64_t V, struct dev_stream *s), (t, ids, out, act, T, H, v0, V, s))
MOVES(embed_bwd, (act_size(act) + 8) * (double)(T * H),
      (dev_real * dt, const int32_t *ids, const void *dout, enum dtype act, int64_t T, int64_t H, int64_t v0, int64_t V, struct dev_stream *s), (dt, ids, dout, act, T, H, v0, V, s))
MOVES(ce_max, act_size(lt) * (double)(T * V), (const void *l, enum dtype lt, dev_real *rowmax, int64_t T, int64_t V, struct dev_stream *s), (l, lt, rowmax, T, V, s))
MOVES(ce_sum, act_size(lt) * (double)(T * V),
      (const void *l, enum dtype lt, const dev_real *rowmax, const int32_t *labels, dev_real *sumexp, dev_real *target, int64_t T, int64_t v0, int64_t V, struct dev_stream *s),
      (l, lt, rowmax, labels, sumexp, target, T, v0, V, s))
MOVES(ce_bwd, (act_size(lt) + act_size(act)) * (double)(T * V),
      (const void *l, enum dtype lt, const dev_real *rowmax, const dev_real *sumexp, const dev_real *target, const int32_t *labels, double gscale, dev_real *loss_sum, void *dlogits,
       enum dtype act, int64_t T, int64_t v0, int64_t V, struct dev_stream *s),
      (l, lt, rowmax, sumexp, target, labels, gscale, loss_sum, dlogits, act, T, v0, V, s))

MOVES(cross_entropy, (act_size(lt) + (dlogits ? act_size(act) : 0)) * (double)(T * V),
      (const void *l, enum dtype lt, const int32_t *labels, double gscale, dev_real *loss_sum, void *dlogits, enum dtype act, dev_real *losses, int64_t T, int64_t V, struct dev_stream *s),
      (l, lt, labels, gscale, loss_sum, dlogits, act, losses, T, V, s))

static int t_quantize_many(int n, const void *const *x, enum dtype xt, const struct quant_spec *const *q, struct qtensor *const *out, struct dev_stream *s) {
        double bytes = 0;
        bool begun;
        int r;

        for (int i = 0; i < n; i++)
                bytes += (double)(out[i]->rows * out[i]->cols) * act_size(xt) + forms(q[i], (double)(out[i]->rows * out[i]->cols));
        if (q[0]->scaling != Q_128X128) /* there is no such operation: not counted */
                return real->quantize_many(n, x, xt, q, out, s);
        begun = mark_begin("quantize many", bytes, 0, false, s);
        r = real->quantize_many(n, x, xt, q, out, s);
        return mark_end(begun, r, s);
}

static int t_rope_quant_bwd(const void *const *x, const struct doc_bounds *docs, double theta, int64_t D, enum dtype act, const struct quant_spec *const *q, struct qtensor *const *out,
                            struct dev_stream *s) {
        double bytes = 0;
        bool begun;
        int r;

        for (int i = 0; i < 3; i++)
                bytes += (double)(out[i]->rows * out[i]->cols) * act_size(act) + forms(q[i], (double)(out[i]->rows * out[i]->cols));
        if (q[0]->scaling != Q_1X128)
                return real->rope_quant_bwd(x, docs, theta, D, act, q, out, s);
        begun = mark_begin("rope_quant_bwd", bytes, 0, false, s);
        r = real->rope_quant_bwd(x, docs, theta, D, act, q, out, s);
        return mark_end(begun, r, s);
}

static double sum_of(const int64_t *n, int count) {
        double sum = 0;

        for (int i = 0; i < count; i++)
                sum += (double)n[i];
        return sum;
}

MOVES(grad_stats, 4 * sum_of(counts, n),
      (int n, const dev_real *const *grads, const int64_t *counts, const double *factors, const uint64_t *indices, double *sumsq, uint64_t *bad, struct dev_stream *s),
      (n, grads, counts, factors, indices, sumsq, bad, s))

static double adam_bytes(int n, const struct adamw_tensor *t, enum dtype moments, enum dtype param) {
        double sum = 0;

        for (int i = 0; i < n; i++)
                sum += (double)t[i].count * (12 + 4 * act_size(moments) + (t[i].param ? act_size(param) : 0));
        return sum;
}

MOVES(adamw, adam_bytes(n, t, moments, param), (int n, const struct adamw_tensor *t, enum dtype moments, enum dtype param, const struct step_params *p, struct dev_stream *s),
      (n, t, moments, param, p, s))

static int t_quantize(const void *x, enum dtype xt, const struct quant_spec *q, struct qtensor *out, struct dev_stream *s) {
        const double n = (double)(out->rows * out->cols);
        const bool begun = mark_begin(q->scaling == Q_128X128 ? "quantize 128x128" : q->want_col && q->want_row ? "quantize both" : q->want_row ? "quantize row" : "quantize col",
                                      n * act_size(xt) + forms(q, n), 0, false, s);

        return mark_end(begun, real->quantize(x, xt, q, out, s), s);
}

static bool product_begin(const char *kind, int64_t M, int64_t N, int64_t K, const struct qtensor *a, struct dev_stream *s) {
        char name[64];

        (void)snprintf(name, sizeof name, "%s %s %lld,%lld,%lld", kind, dtype_name(a->dtype), (long long)M, (long long)N, (long long)K);
        return mark_begin(name, 0, 2 * (double)M * (double)N * (double)K, a->scaling != Q_NONE, s);
}

static int t_gemm_fprop(const struct qtensor *x, const struct qtensor *w, void *y, enum dtype yt, struct dev_stream *s) {
        const bool begun = product_begin("fprop", x->rows, w->rows, x->cols, x, s);

        return mark_end(begun, real->gemm_fprop(x, w, y, yt, s), s);
}

static int t_gemm_dgrad(const struct qtensor *dy, const struct qtensor *w, dev_real *sum, int beta, void *dx, enum dtype xt, struct dev_stream *s) {
        const bool begun = product_begin("dgrad", dy->rows, w->cols, dy->cols, dy, s);

        return mark_end(begun, real->gemm_dgrad(dy, w, sum, beta, dx, xt, s), s);
}

static int t_gemm_wgrad(const struct qtensor *dy, const struct qtensor *x, dev_real *dw, int beta, struct dev_stream *s) {
        const bool begun = product_begin("wgrad", dy->cols, x->cols, dy->rows, dy, s);

        return mark_end(begun, real->gemm_wgrad(dy, x, dw, beta, s), s);
}

static int t_gemm_wgrad_many(int n, const struct qtensor *const *dy, const struct qtensor *const *x, dev_real *const *dw, int beta, struct dev_stream *s) {
        double flops = 0;
        char name[64];
        bool begun;
        int r;

        for (int i = 0; i < n; i++)
                flops += 2 * (double)dy[i]->cols * (double)x[i]->cols * (double)dy[i]->rows;
        if (dy[0]->scaling == Q_NONE) /* there is no such operation: not counted */
                return real->gemm_wgrad_many(n, dy, x, dw, beta, s);
        (void)snprintf(name, sizeof name, "wgrad of %d, %lld,%lld,%lld first", n, (long long)dy[0]->cols, (long long)x[0]->cols, (long long)dy[0]->rows);
        begun = mark_begin(name, 0, flops, true, s);
        r = real->gemm_wgrad_many(n, dy, x, dw, beta, s);
        return mark_end(begun, r, s);
}

static int t_gemm_dgrad_sum(int n, const struct qtensor *const *dy, const struct qtensor *const *w, void *dx, enum dtype xt, struct dev_stream *s) {
        int64_t K = 0;
        bool begun;
        int r;

        for (int i = 0; i < n; i++)
                K += dy[i]->cols;
        if (dy[0]->scaling == Q_NONE) /* there is no such operation: not counted */
                return real->gemm_dgrad_sum(n, dy, w, dx, xt, s);
        begun = product_begin("dgrad sum", dy[0]->rows, w[0]->cols, K, dy[0], s);
        r = real->gemm_dgrad_sum(n, dy, w, dx, xt, s);
        return mark_end(begun, r, s);
}

static int t_swiglu_cache_fwd(const void *g, const void *u, enum dtype act, const struct quant_spec *sg, struct qtensor *gq, const struct quant_spec *su, struct qtensor *uq,
                              const struct quant_spec *sa, struct qtensor *out, struct dev_stream *s) {
        const double n = (double)(out->rows * out->cols);
        const bool begun = sa->scaling == Q_1X128 && mark_begin("swiglu_cache_fwd", n * 2 * act_size(act) + forms(sg, n) + forms(su, n) + forms(sa, n), 0, false, s);

        return mark_end(begun, real->swiglu_cache_fwd(g, u, act, sg, gq, su, uq, sa, out, s), s);
}

static int t_swiglu_cached_bwd(const struct qtensor *gq, const struct qtensor *uq, const void *da, enum dtype act, const struct quant_spec *sa, struct qtensor *aq, const struct quant_spec *sg,
                               struct qtensor *dg, const struct quant_spec *su, struct qtensor *du, struct dev_stream *s) {
        const double n = (double)(aq->rows * aq->cols);
        const bool begun = sa->scaling == Q_1X128 && mark_begin("swiglu_cached_bwd", n * (2 + act_size(act)) + forms(sa, n) + forms(sg, n) + forms(su, n), 0, false, s);

        return mark_end(begun, real->swiglu_cached_bwd(gq, uq, da, act, sa, aq, sg, dg, su, du, s), s);
}

/* Pairs of a causal mask. */
static double attention_flops(const struct doc_bounds *d, int64_t Hq, int64_t D, double products) {
        double pairs = 0;

        for (int i = 0; d->host_cu && i < d->n; i++) {
                const double length = (double)(d->host_cu[i + 1] - d->host_cu[i]);

                pairs += length * length / 2;
        }
        return 2 * products * pairs * (double)(Hq * D);
}

static int t_attention_fwd(const void *q, const void *k, const void *v, const struct doc_bounds *docs, void *out, dev_real *lse, int64_t Hq, int64_t Hkv, int64_t D, enum dtype act,
                           void *workspace, struct dev_stream *s) {
        const bool begun = mark_begin("attention_fwd", 0, attention_flops(docs, Hq, D, 2), false, s);

        return mark_end(begun, real->attention_fwd(q, k, v, docs, out, lse, Hq, Hkv, D, act, workspace, s), s);
}

static int t_attention_bwd(const void *q, const void *k, const void *v, const void *out, const dev_real *lse, const void *dout, const struct doc_bounds *docs, void *dq, void *dk, void *dv,
                           int64_t Hq, int64_t Hkv, int64_t D, enum dtype act, void *workspace, struct dev_stream *s) {
        const bool begun = mark_begin("attention_bwd", 0, attention_flops(docs, Hq, D, 5), false, s);

        return mark_end(begun, real->attention_bwd(q, k, v, out, lse, dout, docs, dq, dk, dv, Hq, Hkv, D, act, workspace, s), s);
}

const struct dev_ops *op_times_table(void) {
        real = fp8_device_plugin();
        table = *real;
        table.copy = t_copy, table.zero = t_zero, table.cast = t_cast, table.add = t_add, table.quantize = t_quantize, table.dequantize = t_dequantize;
        table.gemm_fprop = t_gemm_fprop, table.gemm_dgrad = t_gemm_dgrad, table.gemm_wgrad = t_gemm_wgrad;
        table.gemm_dgrad_sum = t_gemm_dgrad_sum, table.swiglu_cache_fwd = t_swiglu_cache_fwd, table.swiglu_cached_bwd = t_swiglu_cached_bwd;
        table.rmsnorm_fwd = t_rmsnorm_fwd, table.rmsnorm_quant_fwd = t_rmsnorm_quant_fwd, table.rmsnorm_bwd = t_rmsnorm_bwd;
        table.rope = t_rope, table.attention_fwd = t_attention_fwd, table.attention_bwd = t_attention_bwd;
        table.swiglu_fwd = t_swiglu_fwd, table.swiglu_quant_fwd = t_swiglu_quant_fwd, table.swiglu_bwd = t_swiglu_bwd;
        table.embed_fwd = t_embed_fwd, table.embed_bwd = t_embed_bwd, table.ce_max = t_ce_max, table.ce_sum = t_ce_sum, table.ce_bwd = t_ce_bwd;
        table.gemm_wgrad_many = t_gemm_wgrad_many, table.cross_entropy = t_cross_entropy;
        table.quantize_many = t_quantize_many, table.rope_quant_bwd = t_rope_quant_bwd;
        table.grad_stats = t_grad_stats, table.adamw = t_adamw;
        dev_ops_complete(&table);
        return &table;
}

void op_times_start(void) {
        n_marks = n_ops = 0;
        on = true;
}

static int longer(const void *a, const void *b) {
        const double x = ((const struct op_time *)a)->seconds, y = ((const struct op_time *)b)->seconds;

        return (x < y) - (x > y);
}

int op_times_stop(struct op_time **ret) {
        on = false;
        for (int i = 0; i < n_marks; i++) {
                float ms = 0;

                if (cudaEventElapsedTime(&ms, marks[i].from, marks[i].to) == cudaSuccess)
                        ops[marks[i].op].seconds += (double)ms / 1e3;
        }
        qsort(ops, (size_t)n_ops, sizeof *ops, longer);
        *ret = ops;
        return n_ops;
}
