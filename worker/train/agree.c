// SPDX-License-Identifier: Apache-2.0
/*
 * The agreement of a step: every rank's findings, sums and requests are gathered and each rank folds them in rank order, so all come to the same bits and
 * the same decision with one collective.
 */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "worker/train/trainer_private.h"

/* The greatest magnitude, a NaN if there is one. */
static double host_amax(const dev_real *x, int64_t n, double amax) {
        for (int64_t i = 0; i < n; i++) {
                double v = fabs((double)x[i]);

                if (isnan(v))
                        return v;
                amax = v > amax ? v : amax;
        }
        return amax;
}

static int list_amax(struct trainer *t, const struct stats_list *l, uint64_t finding, double *amax, bool *found, struct error *e) {
        const int64_t chunk = (int64_t)(STAGING_BYTES / sizeof(dev_real));
        struct model *m = &t->model;

        for (int i = 0; i < l->n; i++) {
                if (l->findings[i] != finding)
                        continue;
                *found = true;
                for (int64_t at = 0; at < l->counts[i] && !isnan(*amax); at += chunk) {
                        int64_t n = l->counts[i] - at < chunk ? l->counts[i] - at : chunk;

                        TRY_DEV(e, m->ops->copy_out(t->staging, l->grads[i] + at, sizeof(dev_real) * (size_t)n, m->stream));
                        TRY_DEV(e, m->ops->stream_sync(m->stream));
                        *amax = host_amax(t->staging, n, *amax);
                }
        }
        return 0;
}

/* The amax behind a finding of this rank: a gradient's is looked up now, a quantiser's where the recipe keeps one. */
static int finding_amax(struct trainer *t, uint64_t finding, double *ret, struct error *e) {
        struct optimizer *o = &t->optimizer;
        struct model *m = &t->model;
        double amax = 0;
        bool found = false;

        *ret = NAN;
        for (int i = 0; i < t->layout.n_layers; i++)
                for (int k = 0; k < SITES; k++) {
                        const struct quant_spec *q = &m->layers[i].spec[k];
                        dev_real x;

                        if (!q->amax || q->index != finding)
                                continue;
                        TRY_DEV(e, m->ops->copy_out(&x, q->amax, sizeof(x), m->stream));
                        TRY_DEV(e, m->ops->stream_sync(m->stream));
                        *ret = (double)x;
                        return 0;
                }
        TRY(list_amax(t, &o->local, finding, &amax, &found, e));
        TRY(list_amax(t, &o->counted, finding, &amax, &found, e));
        TRY(list_amax(t, &o->uncounted, finding, &amax, &found, e));
        if (found)
                *ret = amax;
        return 0;
}

static int collect(struct trainer *t, struct vote *v, struct error *e) {
        struct model *m = &t->model;

        *v = (struct vote){ .finding = FINDING_NONE, .step = t->progress.step, .data_step = t->progress.data_step };
        TRY_DEV(e, m->ops->copy_out(&v->finding, m->bad, sizeof(v->finding), m->stream));
        TRY_DEV(e, m->ops->copy_out(&v->sumsq, t->optimizer.sumsq, sizeof(v->sumsq), m->stream));
        if (t->layout.last && t->layout.tp_index == 0)
                TRY_DEV(e, m->ops->copy_out(t->host_losses, m->head.loss, sizeof(dev_real) * (size_t)m->n_micro, m->stream));
        TRY_DEV(e, m->ops->stream_sync(m->stream));
        if (t->layout.last && t->layout.tp_index == 0) {
                for (int i = 0; i < m->n_micro; i++)
                        v->loss_sum += (double)t->host_losses[i];
                v->labelled = t->labelled;
        }
        return v->finding == FINDING_NONE ? 0 : finding_amax(t, v->finding, &v->amax, e);
}

static int gather(struct trainer *t, const struct vote *mine, struct error *e) {
        t->votes[t->layout.rank] = *mine;
        TRY(comm_all_gather(t->groups.world, &t->votes[t->layout.rank], t->votes, sizeof(*mine), t->model.stream, e));
        for (int i = 0; i < t->layout.n_ranks; i++)
                if (t->votes[i].step != mine->step || t->votes[i].data_step != mine->data_step)
                        return error_set(e, -EPROTO, "rank %d stands at step %llu, batch %llu, this rank (%d) at step %llu, batch %llu", i,
                                         (unsigned long long)t->votes[i].step, (unsigned long long)t->votes[i].data_step, t->layout.rank,
                                         (unsigned long long)mine->step, (unsigned long long)mine->data_step);
        return 0;
}

int agree(struct trainer *t, struct agreement *ret, struct error *e) {
        struct agreement a = { .finding = FINDING_NONE };
        struct vote mine;
        uint32_t asked;
        int r;

        TRY(collect(t, &mine, e));
        TRY(replica_checksum(t, &mine.checksum, e));
        asked = atomic_exchange(&t->requests, 0);
        mine.requests = asked;
        r = gather(t, &mine, e);
        if (r != 0) {
                atomic_fetch_or(&t->requests, asked); /* still to be agreed on */
                return r;
        }
        for (int i = 0; i < t->layout.n_ranks; i++) {
                const struct vote *v = &t->votes[i];

                if (v->finding < a.finding) {
                        a.finding = v->finding;
                        a.amax = v->amax;
                }
                a.sumsq += v->sumsq;
                a.loss_sum += v->loss_sum;
                a.labelled += v->labelled;
                a.requests |= (uint32_t)v->requests;
        }
        *ret = a;
        return 0;
}

int agree_position(struct trainer *t, struct error *e) {
        struct vote mine = { .finding = FINDING_NONE, .step = t->progress.step, .data_step = t->progress.data_step };

        return gather(t, &mine, e);
}

int digest_add(struct trainer *t, struct digest_stream *s, const void *device, size_t bytes, struct error *e) {
        struct model *m = &t->model;

        if (strcmp(m->ops->kind, "cpu") == 0) { /* device memory is the host's own */
                digest_stream_add(s, device, bytes);
                return 0;
        }
        for (size_t at = 0; at < bytes; at += STAGING_BYTES) {
                size_t n = bytes - at < STAGING_BYTES ? bytes - at : STAGING_BYTES;

                TRY_DEV(e, m->ops->copy_out(t->staging, (const char *)device + at, n, m->stream));
                TRY_DEV(e, m->ops->stream_sync(m->stream));
                digest_stream_add(s, t->staging, n);
        }
        return 0;
}

static int digest_own(struct trainer *t, struct digest_stream *s, struct digest *ret, struct error *e) {
        struct optimizer *o = &t->optimizer;
        size_t n = (size_t)zero_count(&t->zero);

        if (n > 0) {
                TRY(digest_add(t, s, o->master, sizeof(dev_real) * n, e));
                TRY(digest_add(t, s, o->m, dtype_size(o->moments) * n, e));
                TRY(digest_add(t, s, o->v, dtype_size(o->moments) * n, e));
        }
        *ret = digest_stream_end(s);
        return 0;
}

int state_digest(struct trainer *t, struct digest *ret, struct error *e) {
        struct digest *all = t->digests, *mine = &all[t->layout.rank];
        struct digest_stream *s = NULL;
        int r;

        if (digest_stream_new(&s) < 0)
                return error_set(e, -ENOMEM, "no memory for a digest");
        r = digest_own(t, s, mine, e);
        digest_stream_free(s);
        TRY(r);
        TRY(comm_all_gather(t->groups.world, mine, all, sizeof(*mine), t->model.stream, e));
        *ret = digest_of(all, sizeof(*all) * (size_t)t->layout.n_ranks);
        return 0;
}
