// SPDX-License-Identifier: Apache-2.0
/*
 * Validation loss: train.eval_batches micro-batches of each replica, from the beginning of the validation split, dealt to the replicas in turn.
 * Nothing of a training step's state is touched: no amax is noted, the loss is summed apart.
 */
#include <math.h>

#include "worker/train/trainer_private.h"

struct tally {
        double sum;
        int64_t labelled;
};

static void observe(struct model *m, bool on) {
        for (int i = 0; i < m->layout->n_layers; i++)
                for (int k = 0; k < SITES; k++) {
                        struct quant_spec *q = &m->layers[i].spec[k];

                        q->bad = on && q->scaling != Q_NONE ? m->bad : NULL;
                        q->amax = on && q->scaling != Q_NONE && m->amax ? m->amax + (ptrdiff_t)i * SITES + k : NULL;
                }
}

static int run(struct trainer *t, struct tally *ret, struct error *e) {
        struct model *m = &t->model;
        dev_real *loss = m->head.eval_loss, sum;

        for (int64_t i = 0; i < t->spec->train.eval_batches; i++) {
                TRY(batch_load(t, 0, true, (uint64_t)((i * t->layout.dp + t->layout.dp_index) * t->spec->train.micro_batch), e));
                if (loss)
                        TRY_DEV(e, m->ops->zero(loss, sizeof(*loss), m->stream));
                TRY(pipeline_forward(t, 0, loss, e));
                if (!loss || t->layout.tp_index != 0)
                        continue;
                TRY_DEV(e, m->ops->copy_out(&sum, loss, sizeof(sum), m->stream));
                TRY_DEV(e, m->ops->stream_sync(m->stream));
                ret->sum += (double)sum;
                ret->labelled += m->batches[0].labelled;
        }
        return 0;
}

int evaluate(struct trainer *t, double *ret_loss, struct error *e) {
        struct tally mine = { 0 }, all = { 0 };
        struct vote *votes = t->votes;
        int r;

        observe(&t->model, false);
        r = run(t, &mine, e);
        observe(&t->model, true);
        TRY(r);
        votes[t->layout.rank] = (struct vote){ .loss_sum = mine.sum, .labelled = mine.labelled };
        TRY(comm_all_gather(t->groups.world, &votes[t->layout.rank], votes, sizeof(*votes), t->model.stream, e));
        for (int i = 0; i < t->layout.n_ranks; i++) {
                all.sum += votes[i].loss_sum;
                all.labelled += votes[i].labelled;
        }
        *ret_loss = all.labelled > 0 ? all.sum / (double)all.labelled : NAN;
        return 0;
}
