// SPDX-License-Identifier: Apache-2.0
/*
 * What quantising does to each FP8 tensor, in the steps of metrics.fp8_every.  A rank counts its own shards (dev.h, quant_stats); counts are added and amaxes compared over all ranks.  A tensor that
 * several ranks hold alike is counted by each of them, which leaves its shares what they are.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "worker/train/trainer_private.h"

enum { ELEMENTS, SATURATED, FLUSHED, COUNTS };

static size_t all_sites(const struct trainer *t) {
        return (size_t)t->spec->model.num_hidden_layers * SITES;
}

static size_t own_sites(const struct trainer *t) {
        return (size_t)t->layout.n_layers * SITES;
}

/* The same on all ranks: it is a matter of the job file and of the step's number. */
static bool due(const struct trainer *t, uint64_t step) {
        uint64_t every = (uint64_t)t->spec->metrics.fp8_every;

        return t->fp8.sums && step % every == 0;
}

int fp8_stats_init(struct trainer *t, struct error *e) {
        enum job_recipe r = t->spec->precision.recipe;
        struct fp8_stats *f = &t->fp8;
        size_t n = all_sites(t);

        if (t->spec->metrics.fp8_every == 0 || r == RECIPE_BF16 || r == RECIPE_FP32)
                return 0;
        f->own = calloc(own_sites(t), sizeof(*f->own));
        f->sums = calloc(COUNTS * n, sizeof(*f->sums));
        f->amax = calloc(n, sizeof(*f->amax));
        f->list = calloc(n, sizeof(*f->list));
        return f->own && f->sums && f->amax && f->list ? 0 : error_set(e, -ENOMEM, "no memory for the statistics of %zu FP8 tensors", n);
}

void fp8_stats_done(struct fp8_stats *f) {
        free(f->own);
        free(f->sums);
        free(f->amax);
        free(f->list);
        *f = (struct fp8_stats){ 0 };
}

int fp8_stats_begin(struct trainer *t, struct error *e) {
        t->fp8.n = 0;
        return model_stats_begin(&t->model, due(t, t->progress.step + 1), e);
}

void fp8_stats_end(struct trainer *t) {
        model_stats_end(&t->model);
}

static void own_figures(struct trainer *t) {
        struct fp8_stats *f = &t->fp8;
        size_t n = all_sites(t);

        memset(f->sums, 0, sizeof(*f->sums) * COUNTS * n);
        memset(f->amax, 0, sizeof(*f->amax) * n);
        for (size_t i = 0; i < own_sites(t); i++) {
                size_t at = (size_t)t->model.layers[i / SITES].number * SITES + i % SITES;
                uint32_t bits = (uint32_t)f->own[i].amax;
                float amax;

                memcpy(&amax, &bits, sizeof(amax));
                f->amax[at] = (double)amax;
                f->sums[ELEMENTS * n + at] = (double)f->own[i].elements;
                f->sums[SATURATED * n + at] = (double)f->own[i].saturated;
                f->sums[FLUSHED * n + at] = (double)f->own[i].flushed;
        }
}

int fp8_stats_gather(struct trainer *t, struct error *e) {
        struct fp8_stats *f = &t->fp8;
        struct model *m = &t->model;
        size_t n = all_sites(t);

        if (!due(t, t->progress.step))
                return 0;
        TRY_DEV(e, m->ops->copy_out(f->own, m->stats, sizeof(*f->own) * own_sites(t), m->stream));
        TRY_DEV(e, m->ops->stream_sync(m->stream));
        own_figures(t);
        TRY(comm_all_reduce(t->groups.world, f->sums, COUNTS * n, DT_F64, COMM_SUM, m->stream, e));
        TRY(comm_all_reduce(t->groups.world, f->amax, n, DT_F64, COMM_MAX, m->stream, e));
        for (size_t i = 0; i < n; i++) {
                double elements = f->sums[ELEMENTS * n + i];

                if (elements > 0) /* layers that are not in FP8, sites that the recipe has not */
                        f->list[f->n++] = (struct fp8_tensor){ (int)(i / SITES), site_suffix((enum site)(i % SITES)), f->amax[i], f->sums[SATURATED * n + i] / elements,
                                                               f->sums[FLUSHED * n + i] / elements };
        }
        return 0;
}

size_t trainer_fp8(const struct trainer *t, const struct fp8_tensor **ret) {
        *ret = t->fp8.list;
        return t->fp8.n;
}
