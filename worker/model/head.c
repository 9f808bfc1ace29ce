// SPDX-License-Identifier: Apache-2.0
/*
 * Final norm, head, vocabulary-parallel cross-entropy (Megatron-LM, section 3: the maximum, then the sum of exponentials and the label's logit, are
 * reduced over tp; logits are never gathered).  Products in the activations' type with F32 results, never in FP8.
 */
#include <errno.h>

#include "worker/model/model.h"

static struct qtensor plain(enum dtype t, const void *x, int64_t rows, int64_t cols) {
        return (struct qtensor){ .scaling = Q_NONE, .dtype = t, .rows = rows, .cols = cols, .row = (void *)(uintptr_t)x };
}

int head_forward(struct model *m, const struct batch *b, const void *residual, const void *delta, bool training, double gscale, dev_real *loss_sum,
                 struct error *e) {
        const struct quant_spec none = { .scaling = Q_NONE, .dtype = m->act, .want_row = true };
        const struct dev_ops *ops = m->ops;
        struct head_acts *h = &m->head;
        struct qtensor y = plain(m->act, h->y, m->T, m->H), w = plain(m->act, m->head_param, m->V, m->H);
        dev_real *sumexp = h->sums, *target = h->sums + m->T;

        TRY(norm_forward(m, &m->final_norm, h->x, residual, delta, h->rstd, &none, &y, e));
        TRY_DEV(e, ops->gemm_fprop(&y, &w, h->logits, DT_F32, m->stream));
        if (m->layout->tp == 1) {
                int r = ops->cross_entropy(h->logits, DT_F32, b->labels, gscale, loss_sum, training ? h->dlogits : NULL, m->act, h->rowmax, m->T, m->V, m->stream);

                if (r != -EOPNOTSUPP) {
                        TRY_DEV(e, r);
                        return 0;
                }
        }
        TRY_DEV(e, ops->ce_max(h->logits, DT_F32, h->rowmax, m->T, m->V, m->stream));
        if (m->layout->tp > 1)
                TRY(comm_all_reduce(m->tp, h->rowmax, (size_t)m->T, DT_F32, COMM_MAX, m->stream, e));
        TRY_DEV(e, ops->ce_sum(h->logits, DT_F32, h->rowmax, b->labels, sumexp, target, m->T, m->v0, m->V, m->stream));
        if (m->layout->tp > 1)
                TRY(comm_all_reduce(m->tp, h->sums, (size_t)(2 * m->T), DT_F32, COMM_SUM, m->stream, e));
        TRY_DEV(e, ops->ce_bwd(h->logits, DT_F32, h->rowmax, sumexp, target, b->labels, gscale, loss_sum, training ? h->dlogits : NULL, m->act, m->T,
                               m->v0, m->V, m->stream));
        return 0;
}

int head_backward(struct model *m, struct error *e) {
        struct head_acts *h = &m->head;
        struct qtensor y = plain(m->act, h->y, m->T, m->H), w = plain(m->act, m->head_param, m->V, m->H), dy = plain(m->act, h->dlogits, m->T, m->V);

        TRY_DEV(e, m->ops->zero(m->work.dres, act_bytes(m, m->Ts * m->H), m->stream));
        TRY_DEV(e, m->ops->gemm_dgrad(&dy, &w, m->work.dx, 0, m->work.partial, tp_dx_dtype(m), m->stream));
        TRY_DEV(e, m->ops->gemm_wgrad(&dy, &y, m->head_grad, !m->grads_fresh, m->stream));
        return norm_backward(m, &m->final_norm, h->x, h->rstd, e);
}
