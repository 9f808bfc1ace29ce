/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Causal attention inside each document, for grouped queries.  Query rows are taken ROWS at a time against all keys up to the last of them, so that scratch grows with the longest
 * document only.  The backward pass recomputes the probabilities from lse (FlashAttention-2, arXiv 2307.08691, section 3.1.2):
 * P = exp(S - lse), delta = rowsum(dO * O), dS = P * (dO V^T - delta), dQ = scale dS K, dK = scale dS^T Q, dV = P^T dO.
 */
#include <math.h>

#include "kernels/cpu/blas.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/exp.h"

#define ROWS 128

struct attention {
        const dev_real *q, *k, *v, *out, *dout;
        dev_real *o, *dq, *dk, *dv, *s, *ds;
        dev_real *lse;
        int64_t T, Hq, Hkv, D;
        dev_real scale;
};

static bool docs_valid(const struct doc_bounds *d) {
        if (d->n < 0 || d->tokens < 0 || (d->n == 0) != (d->tokens == 0) || (d->n && (d->cu[0] != 0 || d->cu[d->n] != d->tokens)))
                return false;
        for (int32_t i = 0; i < d->n; i++)
                if (d->cu[i] >= d->cu[i + 1])
                        return false;
        return true;
}

static bool shapes_valid(const struct doc_bounds *d, int64_t Hq, int64_t Hkv, int64_t D, enum dtype act) {
        return cpu_is_act(act) && Hkv > 0 && Hq > 0 && Hq % Hkv == 0 && D > 0 && docs_valid(d);
}

static int64_t longest(const struct doc_bounds *d) {
        int64_t max = 0;

        for (int32_t i = 0; i < d->n; i++)
                if (d->cu[i + 1] - d->cu[i] > max)
                        max = d->cu[i + 1] - d->cu[i];
        return max;
}

/* S = scale Q K^T for query rows r0..r0+m of head h against keys c0..c0+n. */
static void scores(const struct attention *a, int64_t h, int64_t r0, int64_t m, int64_t c0, int64_t n) {
        const int64_t lq = a->Hq * a->D, lk = a->Hkv * a->D, hk = h / (a->Hq / a->Hkv);

        blas_gemm(CblasNoTrans, CblasTrans, m, n, a->D, a->scale, a->q + r0 * lq + h * a->D, lq, a->k + c0 * lk + hk * a->D, lk, 0, a->s, n);
}

FP8_CLONES static void divide_row(dev_real *x, dev_real by, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                x[i] /= by;
}

static void fwd_rows(const struct attention *a, int64_t h, int64_t r0, int64_t m, int64_t c0) {
        const int64_t n = r0 + m - c0, lq = a->Hq * a->D, lk = a->Hkv * a->D, hk = h / (a->Hq / a->Hkv);
        dev_real sums[ROWS];

        scores(a, h, r0, m, c0, n);
        for (int64_t r = 0; r < m; r++) {
                const int64_t keys = r0 + r - c0 + 1;
                dev_real *s = a->s + r * n;
                const dev_real max = cpu_row_max(s, keys);

                sums[r] = cpu_exp_sum(s, s, max, keys);
                memset(s + keys, 0, (size_t)(n - keys) * sizeof *s);
                a->lse[h * a->T + r0 + r] = max + (dev_real)log((double)sums[r]);
        }
        blas_gemm(CblasNoTrans, CblasNoTrans, m, a->D, n, 1, a->s, n, a->v + c0 * lk + hk * a->D, lk, 0, a->o + r0 * lq + h * a->D, lq);
        for (int64_t r = 0; r < m; r++)
                divide_row(a->o + (r0 + r) * lq + h * a->D, sums[r], a->D);
}

int cpu_attention_fwd(const void *q, const void *k, const void *v, const struct doc_bounds *docs, void *out, dev_real *lse, int64_t Hq, int64_t Hkv, int64_t D,
                      enum dtype act, void *workspace, struct dev_stream *s) {
        const int64_t T = docs->tokens, nq = T * Hq * D, nk = T * Hkv * D;
        struct attention a = { .lse = lse, .T = T, .Hq = Hq, .Hkv = Hkv, .D = D, .scale = (dev_real)(1 / sqrt((double)D)) };

        (void)workspace;
        if (!shapes_valid(docs, Hq, Hkv, D, act))
                return -EINVAL;
        a.q = cpu_widened(s, CPU_ATT_Q, q, act, 0, nq);
        a.k = cpu_widened(s, CPU_ATT_K, k, act, 0, nk);
        a.v = cpu_widened(s, CPU_ATT_V, v, act, 0, nk);
        a.o = act == DT_F32 ? out : cpu_reals(s, CPU_ATT_O, nq);
        a.s = cpu_reals(s, CPU_ATT_S, ROWS * longest(docs));
        if (!a.q || !a.k || !a.v || !a.o || !a.s)
                return -ENOMEM;
        for (int32_t i = 0; i < docs->n; i++)
                for (int64_t h = 0; h < Hq; h++)
                        for (int64_t r0 = docs->cu[i]; r0 < docs->cu[i + 1]; r0 += ROWS)
                                fwd_rows(&a, h, r0, cpu_min(ROWS, docs->cu[i + 1] - r0), docs->cu[i]);
        if (act != DT_F32)
                cpu_store(out, act, 0, a.o, nq);
        return 0;
}

FP8_CLONES static void probabilities(dev_real *s, dev_real lse, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                s[i] = cpu_exp(s[i] - lse);
}

FP8_CLONES static void score_gradients(dev_real *restrict ds, const dev_real *restrict p, dev_real delta, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                ds[i] = p[i] * (ds[i] - delta);
}

static void bwd_rows(const struct attention *a, int64_t h, int64_t r0, int64_t m, int64_t c0) {
        const int64_t n = r0 + m - c0, D = a->D, lq = a->Hq * D, lk = a->Hkv * D, hk = h / (a->Hq / a->Hkv);
        const int64_t at_q = r0 * lq + h * D, at_k = c0 * lk + hk * D;

        scores(a, h, r0, m, c0, n);
        blas_gemm(CblasNoTrans, CblasTrans, m, n, D, 1, a->dout + at_q, lq, a->v + at_k, lk, 0, a->ds, n);
        for (int64_t r = 0; r < m; r++) {
                const int64_t keys = r0 + r - c0 + 1;
                dev_real *s = a->s + r * n, *ds = a->ds + r * n;

                probabilities(s, a->lse[h * a->T + r0 + r], keys);
                score_gradients(ds, s, cpu_dot(a->dout + at_q + r * lq, a->out + at_q + r * lq, D), keys);
                memset(s + keys, 0, (size_t)(n - keys) * sizeof *s);
                memset(ds + keys, 0, (size_t)(n - keys) * sizeof *ds);
        }
        blas_gemm(CblasTrans, CblasNoTrans, n, D, m, 1, a->s, n, a->dout + at_q, lq, 1, a->dv + at_k, lk);
        blas_gemm(CblasNoTrans, CblasNoTrans, m, D, n, a->scale, a->ds, n, a->k + at_k, lk, 0, a->dq + at_q, lq);
        blas_gemm(CblasTrans, CblasNoTrans, n, D, m, a->scale, a->ds, n, a->q + at_q, lq, 1, a->dk + at_k, lk);
}

int cpu_attention_bwd(const void *q, const void *k, const void *v, const void *out, const dev_real *lse, const void *dout, const struct doc_bounds *docs, void *dq, void *dk,
                      void *dv, int64_t Hq, int64_t Hkv, int64_t D, enum dtype act, void *workspace, struct dev_stream *s) {
        const int64_t T = docs->tokens, nq = T * Hq * D, nk = T * Hkv * D;
        const bool direct = act == DT_F32;
        struct attention a = { .lse = (dev_real *)lse, .T = T, .Hq = Hq, .Hkv = Hkv, .D = D, .scale = (dev_real)(1 / sqrt((double)D)) };

        (void)workspace;
        if (!shapes_valid(docs, Hq, Hkv, D, act))
                return -EINVAL;
        a.q = cpu_widened(s, CPU_ATT_Q, q, act, 0, nq);
        a.k = cpu_widened(s, CPU_ATT_K, k, act, 0, nk);
        a.v = cpu_widened(s, CPU_ATT_V, v, act, 0, nk);
        a.out = cpu_widened(s, CPU_ATT_O, out, act, 0, nq);
        a.dout = cpu_widened(s, CPU_ATT_DO, dout, act, 0, nq);
        a.dq = direct ? dq : cpu_reals(s, CPU_ATT_DQ, nq);
        a.dk = direct ? dk : cpu_reals(s, CPU_ATT_DK, nk);
        a.dv = direct ? dv : cpu_reals(s, CPU_ATT_DV, nk);
        a.s = cpu_reals(s, CPU_ATT_S, ROWS * longest(docs));
        a.ds = cpu_reals(s, CPU_ATT_DS, ROWS * longest(docs));
        if (!a.q || !a.k || !a.v || !a.out || !a.dout || !a.dq || !a.dk || !a.dv || !a.s || !a.ds)
                return -ENOMEM;
        memset(a.dk, 0, (size_t)nk * sizeof(dev_real));
        memset(a.dv, 0, (size_t)nk * sizeof(dev_real));
        for (int32_t i = 0; i < docs->n; i++)
                for (int64_t h = 0; h < Hq; h++)
                        for (int64_t r0 = docs->cu[i]; r0 < docs->cu[i + 1]; r0 += ROWS)
                                bwd_rows(&a, h, r0, cpu_min(ROWS, docs->cu[i + 1] - r0), docs->cu[i]);
        if (!direct) {
                cpu_store(dq, act, 0, a.dq, nq);
                cpu_store(dk, act, 0, a.dk, nk);
                cpu_store(dv, act, 0, a.dv, nk);
        }
        return 0;
}

size_t cpu_attention_workspace(int64_t T, int64_t Hq, int64_t Hkv, int64_t D) {
        /* The stream's own scratch is used: it is sized by the longest document, not by T. */
        (void)T, (void)Hq, (void)Hkv, (void)D;
        return 0;
}
