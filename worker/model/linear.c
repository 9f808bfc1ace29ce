// SPDX-License-Identifier: Apache-2.0
/* A Linear's three products, and what tensor parallelism puts around them (Megatron-LM, Shoeybi et al. 2019; sequence parallelism: Korthikanti et al. 2022). */
#include <errno.h>

#include "worker/model/model.h"

int linear_forward(struct model *m, const struct linear *l, const struct qtensor *x, void *y, enum dtype yt, struct error *e) {
        TRY_DEV(e, m->ops->gemm_fprop(x, &l->q, y, yt, m->stream));
        return 0;
}

int linear_dgrad(struct model *m, const struct linear *l, const struct qtensor *dy, int beta, void *dx, enum dtype xt, struct error *e) {
        TRY_DEV(e, m->ops->gemm_dgrad(dy, &l->q, m->work.dx, beta, dx, xt, m->stream));
        return 0;
}

enum dtype tp_dx_dtype(const struct model *m) {
        return m->layout->tp > 1 ? m->reduce : m->act;
}

int linear_dgrad_inputs(struct model *m, int n, const struct linear *const *l, const struct qtensor *const *dy, struct error *e) {
        const struct qtensor *w[3];
        int r;

        for (int i = 0; i < n; i++)
                w[i] = &l[i]->q;
        r = m->ops->gemm_dgrad_sum(n, dy, w, m->work.partial, tp_dx_dtype(m), m->stream);
        if (r != -EOPNOTSUPP) {
                TRY_DEV(e, r);
                return 0;
        }
        for (int i = 0; i < n; i++)
                TRY(linear_dgrad(m, l[i], dy[i], i > 0, i == n - 1 ? m->work.partial : NULL, tp_dx_dtype(m), e));
        return 0;
}

int linear_wgrads(struct model *m, int n, const struct linear *const *l, const struct qtensor *const *dy, const struct qtensor *const *x, struct error *e) {
        dev_real *dw[LINEAR_WGRADS] = { 0 };
        int r;

        for (int i = 0; i < n; i++)
                dw[i] = l[i]->grad;
        r = m->ops->gemm_wgrad_many(n, dy, x, dw, !m->grads_fresh, m->stream);
        if (r != -EOPNOTSUPP) {
                TRY_DEV(e, r);
                return 0;
        }
        for (int i = 0; i < n; i++)
                TRY_DEV(e, m->ops->gemm_wgrad(dy[i], x[i], dw[i], !m->grads_fresh, m->stream));
        return 0;
}

int tp_gather(struct model *m, const void *x, void *room, const void **ret, struct error *e) {
        if (!m->layout->sequence_parallel) {
                *ret = x;
                return 0;
        }
        TRY(comm_all_gather(m->tp, x, room, act_bytes(m, m->Ts * m->H), m->stream, e));
        *ret = room;
        return 0;
}

/* buf [T, H] of type t, summed over tp; *ret is the rank's [Ts, H]: buf itself, or `room` under sequence parallelism. */
static int tp_reduce(struct model *m, void *buf, void *room, enum dtype t, void **ret, struct error *e) {
        size_t count = (size_t)(m->Ts * m->H);

        if (m->layout->sequence_parallel) {
                TRY(comm_reduce_scatter(m->tp, buf, room, count, t, COMM_SUM, m->stream, e));
                *ret = room;
                return 0;
        }
        if (m->layout->tp > 1)
                TRY(comm_all_reduce(m->tp, buf, count, t, COMM_SUM, m->stream, e));
        *ret = buf;
        return 0;
}

int tp_row_linear(struct model *m, const struct linear *l, const struct qtensor *x, void *y, struct error *e) {
        void *sum;

        if (m->layout->tp == 1)
                return linear_forward(m, l, x, y, m->act, e);
        TRY(linear_forward(m, l, x, m->work.partial, m->reduce, e));
        if (m->reduce == m->act && m->layout->sequence_parallel)
                return tp_reduce(m, m->work.partial, y, m->reduce, &sum, e);
        TRY(tp_reduce(m, m->work.partial, m->work.reduced, m->reduce, &sum, e));
        TRY_DEV(e, m->ops->cast(y, m->act, sum, m->reduce, m->Ts * m->H, m->stream));
        return 0;
}

int tp_reduce_dx(struct model *m, void **ret, struct error *e) {
        enum dtype t = tp_dx_dtype(m);
        void *sum;

        TRY(tp_reduce(m, m->work.partial, m->work.reduced, t, &sum, e));
        if (t != m->act) {
                TRY_DEV(e, m->ops->cast(m->work.dx, m->act, sum, t, m->Ts * m->H, m->stream)); /* its sum was taken over: free */
                sum = m->work.dx;
        }
        *ret = sum;
        return 0;
}

int norm_forward(struct model *m, const struct norm *n, void *x, const void *from, const void *delta, dev_real *rstd, const struct quant_spec *spec, struct qtensor *out,
                 struct error *e) {
        double eps = m->config->rms_norm_eps;
        bool plain = spec->scaling == Q_NONE;
        void *room = plain ? out->row : m->work.gathered;
        char *mine = room;

        out->scaling = spec->scaling;
        out->dtype = spec->dtype;
        if (!m->layout->sequence_parallel && !plain && !m->stats_now) {
                TRY_DEV(e, m->ops->rmsnorm_quant_fwd(x, from, delta, n->weight, eps, NULL, rstd, m->act, m->T, m->H, spec, out, m->stream));
                return 0;
        }
        if (m->layout->sequence_parallel) /* in its place among the others', which saves the gather a copy */
                mine += act_bytes(m, m->Ts * m->H) * (size_t)m->layout->tp_index;
        TRY_DEV(e, m->ops->rmsnorm_fwd(x, from, delta, n->weight, eps, mine, rstd, m->act, m->Ts, m->H, m->stream));
        if (m->layout->sequence_parallel)
                TRY(comm_all_gather(m->tp, mine, room, act_bytes(m, m->Ts * m->H), m->stream, e));
        return plain ? 0 : quantize_at(m, spec, room, m->act, m->T, m->H, out, e);
}

int norm_backward(struct model *m, const struct norm *n, const void *x, const dev_real *rstd, struct error *e) {
        void *dy = NULL;

        TRY(tp_reduce_dx(m, &dy, e));
        TRY_DEV(e, m->ops->rmsnorm_bwd(m->work.dres, n->grad, dy, m->act, x, n->weight, rstd, m->act, m->Ts, m->H, m->stream));
        return 0;
}
