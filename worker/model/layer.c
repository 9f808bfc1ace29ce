// SPDX-License-Identifier: Apache-2.0
#include "worker/model/model.h"

int layer_forward(struct model *m, struct layer *l, struct layer_acts *a, const struct doc_bounds *docs, const void *residual, const void *delta,
                  struct error *e) {
        TRY(attention_forward(m, l, a, docs, residual, delta, e));
        return mlp_forward(m, l, a, a->x1, false, e);
}

int layer_backward(struct model *m, struct layer *l, struct layer_acts *a, const struct doc_bounds *docs, struct error *e) {
        /* x1 holds the sum already, so the recomputation adds nothing: the same values give the same bits */
        if (l->recompute) {
                TRY(attention_forward(m, l, a, docs, a->x1, NULL, e));
                TRY(mlp_forward(m, l, a, a->x1, true, e));
        }
        TRY(mlp_backward(m, l, a, e));
        return attention_backward(m, l, a, docs, e);
}

/* A quantised input: columns kept for the weight gradient, rows shared by all layers. */
static void input_take(const struct quant_spec *spec, int64_t rows, int64_t cols, struct arena *arena, const struct qtensor *shared,
                       struct qtensor *out) {
        if (spec->scaling == Q_NONE) {
                qtensor_take(spec, rows, cols, arena, NULL, out);
                return;
        }
        qtensor_take(spec, rows, cols, NULL, arena, out);
        out->row = shared->row;
        out->row_scale = shared->row_scale;
}

void layer_acts_take(struct model *m, struct layer *l, struct arena *arena, struct layer_acts *a) {
        bool block = l->fp8 && m->spec->precision.recipe == RECIPE_BLOCK;
        struct work *w = &m->work;
        struct quant_spec none = { .scaling = Q_NONE, .dtype = m->act, .want_row = true };

        a->rstd1 = arena_take(arena, sizeof(dev_real) * (size_t)m->Ts);
        a->rstd2 = arena_take(arena, sizeof(dev_real) * (size_t)m->Ts);
        a->x2 = arena_take(arena, act_bytes(m, m->Ts * m->H));
        a->q = arena_take(arena, act_bytes(m, m->T * m->Q));
        a->k = arena_take(arena, act_bytes(m, m->T * m->K));
        a->v = arena_take(arena, act_bytes(m, m->T * m->K));
        a->attn = arena_take(arena, act_bytes(m, m->T * m->Q));
        a->lse = arena_take(arena, sizeof(dev_real) * (size_t)(m->heads * m->T));
        input_take(&l->spec[SITE_X_ATTN], m->T, m->H, arena, &w->row_h, &a->xq1);
        input_take(&l->spec[SITE_X_MLP], m->T, m->H, arena, &w->row_h, &a->xq2);
        if (l->fp8)
                input_take(&l->spec[SITE_X_O], m->T, m->Q, arena, &w->row_q, &a->oq);
        else
                qtensor_take(&none, m->T, m->Q, NULL, NULL, &a->oq); /* becomes an alias of attn */
        if (block) {
                a->g = w->g;
                a->u = w->u;
                a->aq = w->row_i;
                qtensor_take(&l->spec[SITE_CACHE_GATE], m->T, m->I, arena, NULL, &a->gq);
                qtensor_take(&l->spec[SITE_CACHE_UP], m->T, m->I, arena, NULL, &a->uq);
                return;
        }
        a->g = arena_take(arena, act_bytes(m, m->T * m->I));
        a->u = arena_take(arena, act_bytes(m, m->T * m->I));
        input_take(&l->spec[SITE_X_DOWN], m->T, m->I, arena, &w->row_i, &a->aq);
}
