// SPDX-License-Identifier: Apache-2.0
/* Vocabulary-parallel embedding: each rank looks up its own ids; a sum over tp has one term that is not zero, so it is exact in any type. */
#include "worker/model/model.h"

int embedding_forward(struct model *m, const struct batch *b, void *out, struct error *e) {
        bool scattered = m->layout->sequence_parallel;
        void *full = scattered ? m->work.gathered : out;

        TRY_DEV(e, m->ops->embed_fwd(m->embed_param, b->ids, full, m->act, m->T, m->H, m->v0, m->V, m->stream));
        if (scattered)
                return comm_reduce_scatter(m->tp, full, out, (size_t)(m->Ts * m->H), m->act, COMM_SUM, m->stream, e);
        return m->layout->tp > 1 ? comm_all_reduce(m->tp, full, (size_t)(m->T * m->H), m->act, COMM_SUM, m->stream, e) : 0;
}

int embedding_backward(struct model *m, const struct batch *b, struct error *e) {
        const void *dout;

        TRY(tp_gather(m, m->work.dres, m->work.gathered, &dout, e));
        TRY_DEV(e, m->ops->embed_bwd(m->embed_grad, b->ids, dout, m->act, m->T, m->H, m->v0, m->V, m->stream));
        return 0;
}
