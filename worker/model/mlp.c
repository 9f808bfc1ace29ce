// SPDX-License-Identifier: Apache-2.0
/*
 * Norm, gate, up, SwiGLU, down.  In recipe block SwiGLU's inputs are kept in FP8 and its output is made again from them in backward (DeepSeek-V3,
 * section 3.3.3); otherwise g, u stay in the activations' type and the quantised output is kept.
 */
#include <errno.h>

#include "worker/model/model.h"

static bool caches_fp8(const struct model *m, const struct layer *l) {
        return l->fp8 && m->spec->precision.recipe == RECIPE_BLOCK;
}

/* Both inputs quantised, and the output, in one operation. 1: done, 0: this device has none, or the values have to be seen. */
static int activate_at_once(struct model *m, struct layer *l, struct layer_acts *a, const struct quant_spec *down, struct error *e) {
        int r = m->stats_now ? -EOPNOTSUPP : m->ops->swiglu_cache_fwd(a->g, a->u, m->act, &l->spec[SITE_CACHE_GATE], &a->gq, &l->spec[SITE_CACHE_UP], &a->uq, down, &a->aq, m->stream);

        if (r == -EOPNOTSUPP)
                return 0;
        TRY_DEV(e, r);
        return 1;
}

static int activate(struct model *m, struct layer *l, struct layer_acts *a, struct error *e) {
        struct quant_spec down = l->spec[SITE_X_DOWN];

        if (!l->fp8) {
                TRY_DEV(e, m->ops->swiglu_fwd(a->g, a->u, a->aq.row, m->act, m->T, m->I, m->stream));
                return 0;
        }
        if (caches_fp8(m, l)) {
                int r;

                down.want_col = false;
                r = activate_at_once(m, l, a, &down, e);
                if (r != 0)
                        return r < 0 ? r : 0;
                TRY(quantize_at(m, &l->spec[SITE_CACHE_GATE], a->g, m->act, m->T, m->I, &a->gq, e));
                TRY(quantize_at(m, &l->spec[SITE_CACHE_UP], a->u, m->act, m->T, m->I, &a->uq, e));
        }
        if (m->stats_now) {
                TRY_DEV(e, m->ops->swiglu_fwd(a->g, a->u, m->work.a, m->act, m->T, m->I, m->stream));
                return quantize_at(m, &down, m->work.a, m->act, m->T, m->I, &a->aq, e);
        }
        a->aq.scaling = down.scaling;
        TRY_DEV(e, m->ops->swiglu_quant_fwd(a->g, a->u, NULL, m->act, m->T, m->I, &down, &a->aq, m->stream));
        return 0;
}

int mlp_forward(struct model *m, struct layer *l, struct layer_acts *a, const void *residual, bool for_backward, struct error *e) {
        TRY(norm_forward(m, &l->mlp_norm, a->x2, residual, m->work.delta, a->rstd2, &l->spec[SITE_X_MLP], &a->xq2, e));
        TRY(linear_forward(m, &l->gate, &a->xq2, a->g, m->act, e));
        TRY(linear_forward(m, &l->up, &a->xq2, a->u, m->act, e));
        TRY(activate(m, l, a, e));
        return for_backward ? 0 : tp_row_linear(m, &l->down, &a->aq, m->work.delta, e);
}

/* g, u and the column form of SwiGLU's output from what was kept in FP8. */
static int restore(struct model *m, struct layer *l, struct layer_acts *a, struct error *e) {
        struct quant_spec down = l->spec[SITE_X_DOWN];

        down.want_row = false;
        TRY_DEV(e, m->ops->dequantize(&a->gq, a->g, m->act, m->stream));
        TRY_DEV(e, m->ops->dequantize(&a->uq, a->u, m->act, m->stream));
        TRY_DEV(e, m->ops->swiglu_fwd(a->g, a->u, m->work.a, m->act, m->T, m->I, m->stream));
        return quantize_at(m, &down, m->work.a, m->act, m->T, m->I, &a->aq, e);
}

static int swiglu_backward(struct model *m, struct layer *l, struct layer_acts *a, struct error *e) {
        struct quant_spec *sg = &l->spec[SITE_DY_GATE], *su = &l->spec[SITE_DY_UP];
        struct work *w = &m->work;
        struct work_gradients *wq = &w->q[l->fp8];

        if (!l->fp8 || m->stats_now) {
                TRY_DEV(e, m->ops->swiglu_bwd(a->g, a->u, w->dwide, m->act, w->dg, w->du, m->act, m->T, m->I, NULL, NULL, NULL, NULL, m->stream));
                TRY(quantize_at(m, sg, w->dg, m->act, m->T, m->I, &wq->dg, e));
                return quantize_at(m, su, w->du, m->act, m->T, m->I, &wq->du, e);
        }
        wq->dg.scaling = sg->scaling;
        wq->du.scaling = su->scaling;
        TRY_DEV(e, m->ops->swiglu_bwd(a->g, a->u, w->dwide, m->act, NULL, NULL, m->act, m->T, m->I, sg, &wq->dg, su, &wq->du, m->stream));
        return 0;
}

/* What restore and swiglu_backward do, in one operation. 1: done, 0: this device has none, or the values have to be seen. */
static int cached_backward(struct model *m, struct layer *l, struct layer_acts *a, struct error *e) {
        struct work_gradients *wq = &m->work.q[l->fp8];
        struct quant_spec down = l->spec[SITE_X_DOWN];
        int r;

        if (!caches_fp8(m, l) || m->stats_now)
                return 0;
        down.want_row = false;
        r = m->ops->swiglu_cached_bwd(&a->gq, &a->uq, m->work.dwide, m->act, &down, &a->aq, &l->spec[SITE_DY_GATE], &wq->dg, &l->spec[SITE_DY_UP], &wq->du, m->stream);
        if (r == -EOPNOTSUPP)
                return 0;
        TRY_DEV(e, r);
        return 1;
}

int mlp_backward(struct model *m, struct layer *l, struct layer_acts *a, struct error *e) {
        struct work *w = &m->work;
        struct work_gradients *wq = &w->q[l->fp8];
        const void *dy;
        int r;

        TRY(tp_gather(m, w->dres, w->gathered, &dy, e));
        TRY(quantize_at(m, &l->spec[SITE_DY_DOWN], dy, m->act, m->T, m->H, &wq->dy, e));
        TRY(linear_dgrad(m, &l->down, &wq->dy, 0, w->dwide, m->act, e));
        r = cached_backward(m, l, a, e);
        if (r < 0)
                return r;
        if (r == 0 && caches_fp8(m, l))
                TRY(restore(m, l, a, e));
        if (r == 0)
                TRY(swiglu_backward(m, l, a, e));
        TRY(linear_dgrad_inputs(m, 2, (const struct linear *[]){ &l->gate, &l->up }, (const struct qtensor *[]){ &wq->dg, &wq->du }, e));
        TRY(linear_wgrads(m, 3, (const struct linear *[]){ &l->gate, &l->up, &l->down }, (const struct qtensor *[]){ &wq->dg, &wq->du, &wq->dy },
                          (const struct qtensor *[]){ &a->xq2, &a->xq2, &a->aq }, e));
        return norm_backward(m, &l->mlp_norm, a->x2, a->rstd2, e);
}
