// SPDX-License-Identifier: Apache-2.0
/*
 * Runs the schedule's actions and moves activations between stages.  Where a send to a neighbour is followed by a receive from the same neighbour, both
 * are one comm_send_recv: the neighbour stands at the mirror image of it, and two plain sends would wait for each other.
 */
#include "worker/train/trainer_private.h"

static int load(struct trainer *t, int slot, int micro_batch, struct error *e) {
        const struct layout *l = &t->layout;
        uint64_t size = (uint64_t)t->spec->train.micro_batch;
        uint64_t at = t->progress.data_step * (uint64_t)t->spec->train.global_batch + ((uint64_t)micro_batch * (uint64_t)l->dp + (uint64_t)l->dp_index) * size;

        TRY(batch_load(t, slot, false, at, e));
        t->labelled += t->model.batches[slot].labelled;
        return 0;
}

static size_t boundary_bytes(const struct model *m) {
        return act_bytes(m, m->Ts * m->H);
}

static int compute(struct trainer *t, const struct schedule_action *a, struct error *e) {
        struct model *m = &t->model;
        int slot = a->micro_batch % m->n_slots;
        double gscale = t->progress.scaler.scale / (double)(t->spec->train.global_batch * t->spec->data.seq_len);
        void *out;

        if (a->backward)
                return model_backward(m, slot, e);
        TRY(load(t, slot, a->micro_batch, e));
        return model_forward(m, slot, m->work.rx, true, gscale, m->head.loss ? m->head.loss + a->micro_batch : NULL, &out, e);
}

/* Where an action's result goes and where its input comes from; -1: nowhere. */
static int goes_to(const struct layout *l, const struct schedule_action *a) {
        if (a->backward)
                return l->first ? -1 : l->pp_index - 1;
        return l->last ? -1 : l->pp_index + 1;
}

static int comes_from(const struct layout *l, const struct schedule_action *a) {
        if (!a)
                return -1;
        if (a->backward)
                return l->last ? -1 : l->pp_index + 1;
        return l->first ? -1 : l->pp_index - 1;
}

/* After `a` (NULL: before the first), before `next` (NULL: after the last). */
static int transfer(struct trainer *t, const struct schedule_action *a, const struct schedule_action *next, struct error *e) {
        struct model *m = &t->model;
        size_t bytes = boundary_bytes(m);
        int to = a ? goes_to(&t->layout, a) : -1, from = comes_from(&t->layout, next);
        void *out = a && a->backward ? m->work.dres : m->work.tx, *in = next && next->backward ? m->work.dres : m->work.rx;

        if (to >= 0 && to == from)
                return comm_send_recv(t->groups.pp, out, bytes, to, in, bytes, from, m->stream, e);
        if (to >= 0)
                TRY(comm_send(t->groups.pp, out, bytes, to, m->stream, e));
        if (from >= 0)
                TRY(comm_recv(t->groups.pp, in, bytes, from, m->stream, e));
        return 0;
}

int pipeline_run(struct trainer *t, struct error *e) {
        const struct schedule_action *last = NULL;
        int r;

        t->labelled = 0;
        for (int i = 0; i < t->n_actions; i++) {
                TRY(transfer(t, last, &t->actions[i], e));
                last = &t->actions[i];
                /* A test's infinity comes when all gradients are there: they wait for it. */
                if (i == t->n_actions - 1 && !t->spec->test.overflow_tensor) {
                        t->model.gradients_final = reduce_down_to;
                        t->model.gradients_final_arg = t;
                }
                r = compute(t, last, e);
                t->model.gradients_final = NULL;
                if (r != 0)
                        return r;
                if (i == 0)
                        hook_kill(t, "forward");
        }
        return transfer(t, last, NULL, e);
}

int pipeline_forward(struct trainer *t, int slot, dev_real *loss_sum, struct error *e) {
        struct model *m = &t->model;
        const struct layout *l = &t->layout;
        void *out;

        if (!l->first)
                TRY(comm_recv(t->groups.pp, m->work.rx, boundary_bytes(m), l->pp_index - 1, m->stream, e));
        TRY(model_forward(m, slot, m->work.rx, false, 0, loss_sum, &out, e));
        if (!l->last)
                TRY(comm_send(t->groups.pp, out, boundary_bytes(m), l->pp_index + 1, m->stream, e));
        return 0;
}
