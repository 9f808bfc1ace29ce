// SPDX-License-Identifier: Apache-2.0
/* Gradients from all ranks to their owner, AdamW on what this rank owns, working copies back to all. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/train/trainer_private.h"

#define PARTS 8 /* of an update of more than a bucket's size; what the gather of the last one takes is not hidden */

void optimizer_take(struct trainer *t, struct arena *a) {
        struct optimizer *o = &t->optimizer;
        size_t n = (size_t)zero_count(&t->zero), ms = dtype_size(o->moments);

        o->master = arena_take(&a[ARENA_OPTIMIZER], sizeof(dev_real) * n);
        o->m = arena_take(&a[ARENA_OPTIMIZER], ms * n);
        o->v = arena_take(&a[ARENA_OPTIMIZER], ms * n);
        o->params = arena_take(&a[ARENA_OPTIMIZER], sizeof(*o->params));
        o->sumsq = arena_take(&a[ARENA_OPTIMIZER], 2 * sizeof(double));
        o->shard_grad = t->layout.dp > 1 ? arena_take(&a[ARENA_GRAD], sizeof(dev_real) * n) : t->model.grads;
}

static int stats_alloc(struct stats_list *l, int n) {
        size_t k = n > 0 ? (size_t)n : 1;

        l->grads = calloc(k, sizeof(*l->grads));
        l->counts = calloc(k, sizeof(*l->counts));
        l->factors = calloc(k, sizeof(*l->factors));
        l->findings = calloc(k, sizeof(*l->findings));
        return l->grads && l->counts && l->factors && l->findings ? 0 : -ENOMEM;
}

static void stats_add(struct stats_list *l, const dev_real *grad, int64_t count, uint64_t finding) {
        l->grads[l->n] = grad;
        l->counts[l->n] = count;
        l->factors[l->n] = 1;
        l->findings[l->n++] = finding;
}

static void stats_free(struct stats_list *l) {
        free(l->grads);
        free(l->counts);
        free(l->factors);
        free(l->findings);
        *l = (struct stats_list){ 0 };
}

static int by_place(const void *a, const void *b) {
        const dev_real *x = ((const struct adamw_tensor *)a)->master, *y = ((const struct adamw_tensor *)b)->master;

        return (x > y) - (x < y);
}

/* Where tensors begin, each rank's shard is cut into parts of about the same size; every rank knows all the cuts. */
static int parts_init(struct trainer *t, struct error *e) {
        struct optimizer *o = &t->optimizer;
        size_t dp = (size_t)t->layout.dp;

        o->parts = dp > 1 && t->table.elements / t->layout.dp * (int64_t)sizeof(dev_real) >= t->config.bucket_bytes ? PARTS : 1;
        o->sorted = calloc((size_t)t->zero.n_pieces + 1, sizeof(*o->sorted));
        o->part_cuts = calloc(dp * (size_t)(o->parts + 1), sizeof(*o->part_cuts));
        o->offsets = calloc(dp, sizeof(*o->offsets));
        o->sizes = calloc(dp, sizeof(*o->sizes));
        if (!o->sorted || !o->part_cuts || !o->offsets || !o->sizes)
                return error_set(e, -ENOMEM, "no memory for the optimizer's parts");
        memcpy(o->sorted, o->list, sizeof(*o->list) * (size_t)t->zero.n_pieces);
        qsort(o->sorted, (size_t)t->zero.n_pieces, sizeof(*o->sorted), by_place);
        for (int i = 0; i < t->layout.dp; i++) {
                int64_t *cuts = o->part_cuts + i * (o->parts + 1), lo = t->zero.cuts[i], hi = t->zero.cuts[i + 1];

                for (int k = 0; k <= o->parts; k++)
                        cuts[k] = k == o->parts ? hi : lo;
                for (int k = 1; k < o->parts; k++)
                        for (int j = 0; j < t->table.n; j++) {
                                int64_t at = t->table.tensors[j].offset;

                                if (at > cuts[k] && at <= lo + (hi - lo) * k / o->parts)
                                        cuts[k] = at;
                        }
        }
        return 0;
}

int optimizer_lists(struct trainer *t, struct error *e) {
        struct optimizer *o = &t->optimizer;
        const struct model_config *c = &t->spec->model;
        int64_t lo = zero_begin(&t->zero);

        o->list = calloc((size_t)t->zero.n_pieces + 1, sizeof(*o->list));
        if (!o->list || stats_alloc(&o->local, t->table.n) < 0 || stats_alloc(&o->counted, t->zero.n_pieces) < 0 ||
            stats_alloc(&o->uncounted, t->zero.n_pieces) < 0)
                return error_set(e, -ENOMEM, "no memory for the optimizer's lists");
        for (int i = 0; i < 2 * t->table.n; i++) { /* norms first, as they lie */
                const struct tensor *x = &t->table.tensors[i % t->table.n];

                if (x->norm == (i < t->table.n))
                        stats_add(&o->local, t->model.grads + x->offset, x->count, finding_gradient(c, x->number, false, t->layout.rank));
        }
        for (int i = 0; i < t->zero.n_pieces; i++) {
                const struct zero_piece *p = &t->zero.pieces[i];
                dev_real *grad = o->shard_grad + (p->offset - lo);

                stats_add(p->tensor->counted ? &o->counted : &o->uncounted, grad, p->count, finding_gradient(c, p->tensor->number, true, t->layout.rank));
                o->list[i] = (struct adamw_tensor){
                        .master = o->master + (p->offset - lo),
                        .grad = grad,
                        .m = (char *)o->m + dtype_size(o->moments) * (size_t)(p->offset - lo),
                        .v = (char *)o->v + dtype_size(o->moments) * (size_t)(p->offset - lo),
                        .param = (char *)t->model.params + act_bytes(&t->model, p->offset),
                        .count = p->count,
                        .lr_scale = p->tensor->lr_scale,
                        .weight_decay = p->tensor->weight_decay,
                        .name_hash = p->tensor->hash,
                        .row0 = p->tensor->row0 + p->row0,
                        .col0 = p->tensor->col0,
                        .cols = p->tensor->cols,
                        .global_cols = p->tensor->global_cols,
                };
        }
        for (int i = 0; i < t->layout.dp; i++) {
                t->counts[i] = (size_t)(t->zero.cuts[i + 1] - t->zero.cuts[i]);
                t->sizes[i] = t->counts[i] * dtype_size(t->model.act);
        }
        return parts_init(t, e);
}

void optimizer_done(struct optimizer *o) {
        free(o->list);
        free(o->sorted);
        free(o->part_cuts);
        free(o->offsets);
        free(o->sizes);
        stats_free(&o->local);
        stats_free(&o->counted);
        stats_free(&o->uncounted);
        *o = (struct optimizer){ 0 };
}

int optimizer_init_state(struct trainer *t, struct error *e) {
        struct optimizer *o = &t->optimizer;
        struct model *m = &t->model;
        size_t n = (size_t)zero_count(&t->zero);

        TRY_DEV(e, m->ops->zero(o->master, sizeof(dev_real) * n, m->stream));
        TRY_DEV(e, m->ops->zero(o->m, dtype_size(o->moments) * n, m->stream));
        TRY_DEV(e, m->ops->zero(o->v, dtype_size(o->moments) * n, m->stream));
        for (int i = 0; i < t->zero.n_pieces; i++) {
                const struct zero_piece *p = &t->zero.pieces[i];
                const struct tensor *x = p->tensor;

                TRY_DEV(e, m->ops->init_normal(o->list[i].master, p->rows, x->cols, x->row0 + p->row0, x->col0, x->global_cols,
                                               (uint64_t)t->spec->train.seed, x->hash, x->mean, x->std, m->stream));
        }
        if (m->n_sites > 0)
                TRY_DEV(e, m->ops->zero(m->history, sizeof(dev_real) * (size_t)m->n_sites * (size_t)t->spec->precision.amax_history, m->stream));
        for (int i = 0; i < m->n_sites; i++) {
                const dev_real one = 1;

                TRY_DEV(e, m->ops->copy_in(m->scale + i, &one, sizeof(one), m->stream));
        }
        TRY_DEV(e, m->ops->stream_sync(m->stream));
        return 0;
}

static int stats(struct trainer *t, const struct stats_list *l, double *sumsq, struct error *e) {
        if (l->n > 0)
                TRY_DEV(e, t->model.ops->grad_stats(l->n, l->grads, l->counts, l->factors, l->findings, sumsq, t->model.bad, t->model.stream));
        return 0;
}

int optimizer_reduce(struct trainer *t, struct error *e) {
        struct optimizer *o = &t->optimizer;
        struct model *m = &t->model;
        const struct tensor *embed = t->groups.embed ? tensor_table_find(&t->table, TENSOR_EMBED, -1) : NULL;

        if (t->layout.n_ranks > 1 && t->layout.dp == 1) /* before anything is mixed; buckets do so for themselves */
                TRY(stats(t, &o->local, &o->sumsq[1], e));
        if (t->layout.sequence_parallel) /* each rank saw its tokens only */
                TRY(comm_all_reduce(t->groups.tp, m->grads, (size_t)t->table.norm_elements, DT_F32, COMM_SUM, m->stream, e));
        if (embed)
                TRY(comm_all_reduce(t->groups.embed, m->grads + embed->offset, (size_t)embed->count, DT_F32, COMM_SUM, m->stream, e));
        TRY(reduce_down_to(t, 0, e));
        TRY(reduce_end(t, e));
        TRY(stats(t, &o->counted, &o->sumsq[0], e));
        TRY(stats(t, &o->uncounted, &o->sumsq[1], e));
        if (m->n_sites > 0) /* one history for all ranks that hold a part of the same tensor */
                TRY(comm_all_reduce(t->groups.stage, m->amax, (size_t)m->n_sites, DT_F32, COMM_MAX, m->stream, e));
        return 0;
}

/* SplitMix64's finaliser: all bits of the seed count, and seeds and updates that lie close together give keys that do not. */
static uint64_t rounding_seed(int64_t seed, uint64_t update) {
        uint64_t z = (uint64_t)seed * UINT64_C(0x9e3779b97f4a7c15);

        for (int i = 0; i < 2; i++) {
                z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
                z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
                z = (z ^ (z >> 31)) + (i == 0 ? update * UINT64_C(0x9e3779b97f4a7c15) : 0);
        }
        return z;
}

/* Working copies of the part to all dp ranks, as soon as it is updated and beside what comes next. */
static int gather_part(struct trainer *t, int part, struct error *e) {
        struct optimizer *o = &t->optimizer;
        struct model *m = &t->model;

        if (t->layout.dp == 1)
                return 0;
        for (int i = 0; i < t->layout.dp; i++) {
                const int64_t *cuts = o->part_cuts + i * (o->parts + 1) + part;

                o->offsets[i] = act_bytes(m, cuts[0]);
                o->sizes[i] = act_bytes(m, cuts[1] - cuts[0]);
        }
        TRY(comm_stream_after(t->groups.dp, t->reducer.stream, m->stream, e));
        return comm_all_gather_at(t->groups.dp, m->params, o->offsets, o->sizes, t->reducer.stream, e);
}

static int update_part(struct trainer *t, int part, struct error *e) {
        struct optimizer *o = &t->optimizer;
        struct model *m = &t->model;
        const int64_t *cuts = o->part_cuts + t->layout.dp_index * (o->parts + 1) + part;
        int first = 0, n = 0;

        while (first < t->zero.n_pieces && o->sorted[first].master - o->master < cuts[0] - zero_begin(&t->zero))
                first++;
        while (first + n < t->zero.n_pieces && o->sorted[first + n].master - o->master < cuts[1] - zero_begin(&t->zero))
                n++;
        if (n > 0)
                TRY_DEV(e, m->ops->adamw(n, o->sorted + first, o->moments, m->act, o->params, m->stream));
        return 0;
}

int optimizer_update(struct trainer *t, double lr, double grad_scale, struct error *e) {
        struct optimizer *o = &t->optimizer;
        struct model *m = &t->model;
        double n = (double)t->progress.updates + 1;
        struct step_params p = {
                .lr = lr,
                .beta1 = t->spec->optimizer.beta1,
                .beta2 = t->spec->optimizer.beta2,
                .eps = t->spec->optimizer.eps,
                .bias1 = 1 - pow(t->spec->optimizer.beta1, n),
                .bias2 = 1 - pow(t->spec->optimizer.beta2, n),
                .grad_scale = grad_scale,
                .rng = rounding_seed(t->spec->train.seed, t->progress.updates + 1),
        };
        const struct job_spec *s = t->spec;

        TRY_DEV(e, m->ops->copy_in(o->params, &p, sizeof(p), m->stream));
        for (int i = 0; i < o->parts; i++) {
                if (i > 0)
                        TRY(gather_part(t, i - 1, e));
                TRY(update_part(t, i, e));
        }
        if (m->n_sites > 0)
                TRY_DEV(e, m->ops->amax_update(m->n_sites, (int)s->precision.amax_history, m->history, m->amax, m->scale, m->fp8_max,
                                               s->precision.amax_algo == AMAX_MAX, (int)s->precision.margin, &o->params->skip, m->stream));
        return 0;
}

int optimizer_update_end(struct trainer *t, struct error *e) {
        TRY(gather_part(t, t->optimizer.parts - 1, e));
        return reduce_end(t, e);
}

int optimizer_gather(struct trainer *t, struct error *e) {
        struct model *m = &t->model;
        char *mine = (char *)m->params + act_bytes(m, zero_begin(&t->zero));

        if (t->layout.dp > 1)
                TRY(comm_all_gather_v(t->groups.dp, mine, m->params, t->sizes, m->stream, e));
        return 0;
}

int optimizer_cast(struct trainer *t, struct error *e) {
        struct model *m = &t->model;
        char *mine = (char *)m->params + act_bytes(m, zero_begin(&t->zero));

        if (zero_count(&t->zero) > 0)
                TRY_DEV(e, m->ops->cast(mine, m->act, t->optimizer.master, DT_F32, zero_count(&t->zero), m->stream));
        return 0;
}
