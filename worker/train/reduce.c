// SPDX-License-Identifier: Apache-2.0
/*
 * Gradients of the dp ranks summed to their owners while the backward pass goes on.  Backward makes them final from the end of the flat buffer downwards (head, last layer ... first layer), so
 * the buffer is cut into buckets from its end, between layers, and a bucket goes as soon as the last micro-batch is through its lowest layer: on a stream of its own, which the optimizer
 * waits for.  The lowest bucket has what is final last: norms, embedding.  The cuts follow from the model alone, so the order of sums is the same whenever a bucket goes.
 */
#include <errno.h>
#include <stdlib.h>

#include "worker/train/trainer_private.h"

/* The lowest offset of a layer's matrices. */
static int64_t layer_offset(const struct tensor_table *t, int layer) {
        int64_t lowest = t->elements;

        for (int i = 0; i < t->n; i++)
                if (t->tensors[i].layer == layer && !t->tensors[i].norm && t->tensors[i].offset < lowest)
                        lowest = t->tensors[i].offset;
        return lowest;
}

/* What a rank owns of [lo, hi), and where its own part of the sums lies. */
static int fill(struct trainer *t, struct bucket *b) {
        const struct stats_list *l = &t->optimizer.local;
        const struct zero *z = &t->zero;

        b->counts = calloc((size_t)z->dp, sizeof(*b->counts));
        if (!b->counts)
                return -ENOMEM;
        for (int i = 0; i < z->dp; i++) {
                int64_t lo = z->cuts[i] > b->lo ? z->cuts[i] : b->lo, hi = z->cuts[i + 1] < b->hi ? z->cuts[i + 1] : b->hi;

                b->counts[i] = hi > lo ? (size_t)(hi - lo) : 0;
                if (i == z->index)
                        b->out = t->optimizer.shard_grad + (hi > lo ? lo - z->cuts[i] : 0);
        }
        for (int i = 0; i < l->n; i++) {
                b->stats += l->grads[i] < t->model.grads + b->lo;
                b->n_stats += l->grads[i] >= t->model.grads + b->lo && l->grads[i] < t->model.grads + b->hi;
        }
        return 0;
}

static int cut(struct trainer *t, int64_t lo, struct error *e) {
        struct reducer *r = &t->reducer;
        struct bucket *b = &r->buckets[r->n];
        int64_t hi = r->n > 0 ? b[-1].lo : t->table.elements;

        if (lo > 0 && (hi - lo) * (int64_t)sizeof(dev_real) < t->config.bucket_bytes)
                return 0;
        *b = (struct bucket){ .lo = lo, .hi = hi };
        r->n++;
        return fill(t, b) < 0 ? error_set(e, -ENOMEM, "no memory for the buckets of gradients") : 0;
}

int reducer_init(struct trainer *t, struct error *e) {
        const struct layout *l = &t->layout;
        const struct tensor *head = tensor_table_find(&t->table, TENSOR_HEAD, -1);
        struct reducer *r = &t->reducer;

        r->stream = t->model.stream;
        if (l->dp == 1)
                return 0;
        if (t->config.collectives) {
                TRY_DEV(e, t->model.ops->stream_new(t->model.dev, &r->own));
                r->stream = r->own;
        }
        r->buckets = calloc((size_t)l->n_layers + 2, sizeof(*r->buckets));
        if (!r->buckets)
                return error_set(e, -ENOMEM, "no memory for the buckets of gradients");
        if (head)
                TRY(cut(t, head->offset, e));
        for (int i = l->layer0 + l->n_layers - 1; i >= l->layer0; i--)
                TRY(cut(t, layer_offset(&t->table, i), e));
        return r->buckets[r->n > 0 ? r->n - 1 : 0].lo > 0 || r->n == 0 ? cut(t, 0, e) : 0;
}

void reducer_done(struct trainer *t) {
        struct reducer *r = &t->reducer;

        for (int i = 0; i < r->n; i++)
                free(r->buckets[i].counts);
        free(r->buckets);
        if (r->own)
                t->model.ops->stream_free(r->own);
        *r = (struct reducer){ 0 };
}

int reduce_begin(struct trainer *t, struct error *e) {
        t->reducer.next = 0;
        TRY_DEV(e, t->model.ops->zero(t->optimizer.sumsq, 2 * sizeof(double), t->model.stream));
        return 0;
}

static int run(struct trainer *t, const struct bucket *b, struct error *e) {
        const struct stats_list *l = &t->optimizer.local;
        struct model *m = &t->model;
        struct dev_stream *s = t->reducer.stream;
        int k = b->stats;

        TRY(comm_stream_after(t->groups.dp, s, m->stream, e));
        if (b->n_stats > 0) /* before anything is mixed: afterwards nobody could say whose value it was */
                TRY_DEV(e, m->ops->grad_stats(b->n_stats, l->grads + k, l->counts + k, l->factors + k, l->findings + k, &t->optimizer.sumsq[1], m->bad, s));
        return comm_reduce_scatter_v(t->groups.dp, m->grads + b->lo, b->out, b->counts, DT_F32, COMM_SUM, s, e);
}

int reduce_down_to(void *arg, int64_t offset, struct error *e) {
        struct trainer *t = arg;
        struct reducer *r = &t->reducer;

        while (r->next < r->n && r->buckets[r->next].lo >= offset)
                TRY(run(t, &r->buckets[r->next++], e));
        return 0;
}

int reduce_end(struct trainer *t, struct error *e) {
        return comm_stream_after(t->groups.dp, t->model.stream, t->reducer.stream, e);
}
