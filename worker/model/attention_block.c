// SPDX-License-Identifier: Apache-2.0
/* Norm, q, k, v, RoPE, attention, o.  Column-parallel in, row-parallel out; heads are divided over tp. */
#include <errno.h>

#include "worker/model/model.h"

int attention_forward(struct model *m, struct layer *l, struct layer_acts *a, const struct doc_bounds *docs, const void *residual, const void *delta,
                      struct error *e) {
        const struct dev_ops *ops = m->ops;

        TRY(norm_forward(m, &l->attn_norm, a->x1, residual, delta, a->rstd1, &l->spec[SITE_X_ATTN], &a->xq1, e));
        TRY(linear_forward(m, &l->q, &a->xq1, a->q, m->act, e));
        TRY(linear_forward(m, &l->k, &a->xq1, a->k, m->act, e));
        TRY(linear_forward(m, &l->v, &a->xq1, a->v, m->act, e));
        TRY_DEV(e, ops->rope(a->q, a->k, docs, m->config->rope_theta, m->heads, m->kv_heads, m->D, false, m->act, m->stream));
        TRY_DEV(e, ops->attention_fwd(a->q, a->k, a->v, docs, a->attn, a->lse, m->heads, m->kv_heads, m->D, m->act, m->work.attention, m->stream));
        TRY(quantize_at(m, &l->spec[SITE_X_O], a->attn, m->act, m->T, m->Q, &a->oq, e));
        return tp_row_linear(m, &l->o, &a->oq, m->work.delta, e);
}

/* Gradients of q, k and v as the products take them, q and k's before RoPE. */
static int rotate_back(struct model *m, struct layer *l, const struct doc_bounds *docs, struct work_gradients *wq, struct error *e) {
        struct work *w = &m->work;
        const struct quant_spec *spec = l->spec;
        int r = m->stats_now ? -EOPNOTSUPP : m->ops->rope_quant_bwd((const void *[]){ w->dq, w->dk, w->dv }, docs, m->config->rope_theta, m->D, m->act,
                                       (const struct quant_spec *[]){ &spec[SITE_DY_Q], &spec[SITE_DY_K], &spec[SITE_DY_V] }, (struct qtensor *[]){ &wq->dq, &wq->dk, &wq->dv }, m->stream);

        if (r != -EOPNOTSUPP) {
                TRY_DEV(e, r);
                return 0;
        }
        TRY_DEV(e, m->ops->rope(w->dq, w->dk, docs, m->config->rope_theta, m->heads, m->kv_heads, m->D, true, m->act, m->stream));
        TRY(quantize_at(m, &spec[SITE_DY_Q], w->dq, m->act, m->T, m->Q, &wq->dq, e));
        TRY(quantize_at(m, &spec[SITE_DY_K], w->dk, m->act, m->T, m->K, &wq->dk, e));
        return quantize_at(m, &spec[SITE_DY_V], w->dv, m->act, m->T, m->K, &wq->dv, e);
}

int attention_backward(struct model *m, struct layer *l, struct layer_acts *a, const struct doc_bounds *docs, struct error *e) {
        const struct dev_ops *ops = m->ops;
        struct work *w = &m->work;
        struct work_gradients *wq = &w->q[l->fp8];
        const void *dy;

        TRY(tp_gather(m, w->dres, w->gathered, &dy, e));
        TRY(quantize_at(m, &l->spec[SITE_DY_O], dy, m->act, m->T, m->H, &wq->dy, e));
        TRY(linear_dgrad(m, &l->o, &wq->dy, 0, w->dwide, m->act, e));
        TRY_DEV(e, ops->attention_bwd(a->q, a->k, a->v, a->attn, a->lse, w->dwide, docs, w->dq, w->dk, w->dv, m->heads, m->kv_heads, m->D, m->act,
                                      w->attention, m->stream));
        TRY(rotate_back(m, l, docs, wq, e));
        TRY(linear_dgrad_inputs(m, 3, (const struct linear *[]){ &l->q, &l->k, &l->v }, (const struct qtensor *[]){ &wq->dq, &wq->dk, &wq->dv }, e));
        TRY(linear_wgrads(m, 4, (const struct linear *[]){ &l->q, &l->k, &l->v, &l->o }, (const struct qtensor *[]){ &wq->dq, &wq->dk, &wq->dv, &wq->dy },
                          (const struct qtensor *[]){ &a->xq1, &a->xq1, &a->xq1, &a->oq }, e));
        return norm_backward(m, &l->attn_norm, a->x1, a->rstd1, e);
}
