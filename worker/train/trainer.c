// SPDX-License-Identifier: Apache-2.0
/*
 * A step, from the batch to the new weights:
 *
 *   forward/backward of all micro-batches (1F1B) -> gradients summed over tp, tied stages, dp (each rank keeps its ZeRO shard's; reduce.c: beside the backward pass) -> all ranks agree on
 *   {finite, loss, norm, requests} -> lease looked at -> AdamW on the shard, part by part, beside it working copies all-gathered -> quantised forms
 *
 * or, when the agreement found something non-finite, nothing but the counters after the agreement.  The loss's mean is over the labelled tokens of the
 * whole batch, whose number is known only at the agreement: gradients are made for a sum divided by the batch's size in tokens, and the rest of
 * the factor goes into the optimizer's grad_scale.
 */
#include "worker/train/trainer.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "worker/train/lr.h"
#include "worker/train/trainer_private.h"

/* ------------------------------------------------------------------ making and freeing */

static int take_more(void *arg, struct arena *arenas) {
        optimizer_take(arg, arenas);
        return 0;
}

static void fingerprint(struct trainer *t) {
        const struct job_spec *s = t->spec;

        snprintf(t->fingerprint, sizeof(t->fingerprint), "%.200s;%s%sreal%zu;%s;tp%d.pp%d.dp%d.sp%d;micro%lld.batch%lld.seq%lld;reduce-%s;moments-%s",
                 t->model.ops->fingerprint(t->model.dev), t->config.collectives ? t->config.collectives : "", t->config.collectives ? ".by-index;" : "", sizeof(dev_real) * 8, job_recipe_name(s->precision.recipe), t->layout.tp, t->layout.pp, t->layout.dp,
                 t->layout.sequence_parallel, (long long)s->train.micro_batch, (long long)s->train.global_batch, (long long)s->data.seq_len,
                 dtype_name(t->model.reduce), dtype_name(t->optimizer.moments));
}

static int host_alloc(struct trainer *t, struct error *e) {
        size_t dp = (size_t)t->layout.dp, n = (size_t)t->layout.n_ranks, micro = (size_t)t->model.n_micro;

        t->actions = calloc(2 * micro, sizeof(*t->actions));
        t->votes = calloc(n, sizeof(*t->votes));
        t->digests = calloc(n, sizeof(*t->digests));
        t->odd = calloc(n, sizeof(*t->odd));
        t->sizes = calloc(dp, sizeof(*t->sizes));
        t->counts = calloc(dp, sizeof(*t->counts));
        t->staging = malloc(STAGING_BYTES);
        t->host_batch = calloc(5 * (size_t)t->model.T + 8, sizeof(int32_t));
        t->doc_starts = calloc((size_t)t->spec->data.seq_len, sizeof(int32_t));
        t->host_losses = calloc(micro, sizeof(dev_real));
        if (!t->actions || !t->votes || !t->digests || !t->odd || !t->sizes || !t->counts || !t->staging || !t->host_batch || !t->doc_starts || !t->host_losses)
                return error_set(e, -ENOMEM, "no memory for the trainer's tables");
        t->n_actions = schedule_1f1b(t->layout.pp, t->layout.pp_index, t->model.n_micro, t->actions);
        return 0;
}

static void progress_reset(struct trainer *t) {
        t->progress = (struct progress){ .loss_first = NAN, .val_loss = NAN };
        loss_scaler_init(&t->progress.scaler, t->spec->precision.loss_scale, t->spec->precision.loss_scale_init);
}

static int check_data(struct trainer *t, struct error *e) {
        const struct job_spec *s = t->spec;
        int64_t part = s->train.micro_batch * s->parallel.dp;

        if (s->train.global_batch % part != 0)
                return error_set(e, -EINVAL, "train.global_batch: found %lld, expected a multiple of micro_batch * dp (%lld)", (long long)s->train.global_batch,
                                 (long long)part);
        if (dataset_vocab(t->data) > s->model.vocab_size)
                return error_set(e, -EINVAL, "data.path: found token ids up to %lld, expected below model.vocab_size (%lld)",
                                 (long long)dataset_vocab(t->data) - 1, (long long)s->model.vocab_size);
        return 0;
}

static int build(struct trainer *t, struct error *e) {
        const struct trainer_config *c = &t->config;

        TRY(layout_init(t->spec, c->rank, &t->layout, e));
        TRY(tensor_table_init(t->spec, &t->layout, &t->table, e));
        TRY(zero_init(&t->table, t->layout.dp, t->layout.dp_index, &t->zero, e));
        t->optimizer.moments = t->spec->precision.moments == JOB_DTYPE_BF16 ? DT_BF16 : DT_F32;
        TRY(model_init(&t->model, t->spec, &t->layout, &t->table, c->ops, c->dev, take_more, t, e));
        TRY(host_alloc(t, e));
        TRY(fp8_stats_init(t, e));
        TRY(optimizer_lists(t, e));
        TRY(reducer_init(t, e));
        TRY(state_list(t, e));
        TRY(dataset_open(t->spec, &t->data, e));
        TRY(check_data(t, e));
        fingerprint(t);
        progress_reset(t);
        return 0;
}

int trainer_new(const struct trainer_config *c, struct trainer **ret, struct error *e) {
        struct trainer *t = calloc(1, sizeof(*t));
        int r;

        if (!t)
                return error_set(e, -ENOMEM, "no memory for a trainer");
        t->config = *c;
        if (t->config.bucket_bytes == 0)
                t->config.bucket_bytes = (int64_t)32 << 20;
        t->spec = c->spec;
        r = build(t, e);
        if (r != 0) {
                trainer_free(t);
                return r;
        }
        *ret = t;
        return 0;
}

struct trainer *trainer_free(struct trainer *t) {
        if (!t)
                return NULL;
        trainer_detach(t);
        dataset_free(t->data);
        reducer_done(t);
        fp8_stats_done(&t->fp8);
        optimizer_done(&t->optimizer);
        model_done(&t->model);
        zero_done(&t->zero);
        tensor_table_done(&t->table);
        free(t->actions);
        free(t->votes);
        free(t->digests);
        free(t->odd);
        free(t->sizes);
        free(t->counts);
        free(t->staging);
        free(t->host_batch);
        free(t->doc_starts);
        free(t->host_losses);
        free(t->state);
        free(t);
        return NULL;
}

int trainer_attach(struct trainer *t, struct comm_mesh *m, struct error *e) {
        trainer_detach(t);
        atomic_store(&t->requests, 0); /* what was asked for in an epoch that is over is asked again, or not wanted any more */
        TRY(groups_new(&t->groups, &t->layout, t->spec->model.tie_word_embeddings, m, e));
        t->model.tp = t->groups.tp;
        return 0;
}

void trainer_detach(struct trainer *t) {
        groups_free(&t->groups);
        t->model.tp = NULL;
}

/* ------------------------------------------------------------------ state */

void trainer_phase(struct trainer *t, enum flight_phase phase) {
        if (t->config.flight)
                flight_set_phase(t->config.flight, phase);
}

int trainer_init(struct trainer *t, struct error *e) {
        progress_reset(t);
        t->state_valid = t->weights_valid = false;
        TRY(optimizer_init_state(t, e));
        t->state_valid = true;
        return 0;
}

/* Amaxes and findings belong to one step; what the quantised weights add to them belongs to the next one. */
static int step_marks_reset(struct trainer *t, struct error *e) {
        const uint64_t none = FINDING_NONE;
        struct model *m = &t->model;

        TRY_DEV(e, m->ops->copy_in(m->bad, &none, sizeof(none), m->stream));
        if (m->amax)
                TRY_DEV(e, m->ops->zero(m->amax, sizeof(dev_real) * (size_t)(t->layout.n_layers * SITES), m->stream));
        TRY_DEV(e, m->ops->stream_sync(m->stream));
        return 0;
}

static int weights_changed(struct trainer *t, struct error *e) {
        return model_weights_changed(&t->model, t->progress.updates == 0, e);
}

int trainer_sync(struct trainer *t, struct error *e) {
        if (!t->groups.world)
                return error_set(e, -ENOTCONN, "trainer_sync: no communicators attached");
        if (!t->state_valid)
                return error_set(e, -ESTALE, "trainer_sync: trainer_init or loading comes first, after a failed step too");
        t->weights_valid = false;
        TRY(agree_position(t, e));
        TRY(optimizer_cast(t, e));
        TRY(optimizer_gather(t, e));
        TRY(step_marks_reset(t, e));
        TRY(weights_changed(t, e));
        t->clean_step = t->progress.step;
        t->weights_valid = true;
        return 0;
}

int trainer_rehearse(struct trainer *t, struct error *e) {
        struct model *m = &t->model;
        void *out;

        if (t->layout.tp > 1)
                return 0;
        t->state_valid = false;
        TRY(model_gradients_clear(m, e));
        TRY(batch_load(t, 0, false, 0, e));
        TRY(model_forward(m, 0, m->work.rx, true, 1, m->head.loss, &out, e));
        TRY(model_backward(m, 0, e));
        return trainer_settle(t, e);
}

/* ------------------------------------------------------------------ a step */

static int gradients(struct trainer *t, struct error *e) {
        struct model *m = &t->model;

        TRY(model_gradients_clear(m, e));
        if (m->head.loss)
                TRY_DEV(e, m->ops->zero(m->head.loss, sizeof(dev_real) * (size_t)m->n_micro, m->stream));
        TRY(reduce_begin(t, e));
        trainer_phase(t, FLIGHT_FORWARD);
        hook_slow(t);
        TRY(hook_flip(t, e));
        TRY(fp8_stats_begin(t, e));
        TRY(pipeline_run(t, e));
        fp8_stats_end(t);
        TRY(hook_overflow(t, e));
        trainer_phase(t, FLIGHT_REDUCE);
        return optimizer_reduce(t, e);
}

/* Past the deadline another may hold this rank's place. Before the first lease (0) nobody can. */
static bool may_commit(const struct flight *f) {
        return !f || atomic_load(&f->lease_deadline_ns) == 0 || flight_lease_ok(f);
}

static int commit(struct trainer *t, double grad_scale, double grad_norm, double lr, struct error *e) {
        double clip = t->spec->optimizer.clip;

        if (clip > 0 && grad_norm > clip)
                grad_scale *= clip / grad_norm;
        if (!may_commit(t->config.flight))
                return error_set(e, -ECANCELED, "the lease ended before step %llu could be committed", (unsigned long long)t->progress.step + 1);
        trainer_phase(t, FLIGHT_UPDATE);
        TRY(optimizer_update(t, lr, grad_scale, e));
        hook_kill(t, "updated");
        trainer_phase(t, FLIGHT_GATHER);
        TRY(optimizer_update_end(t, e));
        t->progress.updates++;
        TRY(step_marks_reset(t, e));
        TRY(weights_changed(t, e));
        hook_kill(t, "gathered");
        return 0;
}

/* The weights stay; the marks of the step go, what the quantised weights had noted (amaxes, a finding) comes back. */
static int skip(struct trainer *t, const struct agreement *a, struct step_result *res, struct error *e) {
        res->bad_rank = finding_rank(a->finding);
        res->bad_amax = a->amax;
        if (finding_name(&t->spec->model, a->finding, res->bad_tensor, sizeof(res->bad_tensor)) < 0)
                snprintf(res->bad_tensor, sizeof(res->bad_tensor), "unknown");
        TRY(step_marks_reset(t, e));
        return t->model.amax ? weights_changed(t, e) : 0;
}

static int decide(struct trainer *t, const struct agreement *a, struct step_result *res, struct error *e) {
        struct progress *p = &t->progress;
        double n = a->labelled > 0 ? (double)a->labelled : 1;
        double grad_scale = (double)(t->spec->train.global_batch * t->spec->data.seq_len) / n / p->scaler.scale;

        *res = (struct step_result){ .bad_rank = -1, .val_loss = NAN, .loss_scale = p->scaler.scale, .agreed_requests = a->requests };
        res->loss64 = a->loss_sum / n;
        res->loss = (float)res->loss64;
        res->grad_norm = sqrt(a->sumsq) * grad_scale;
        res->lr = lr_at(t->spec, p->updates);
        res->skipped = a->finding != FINDING_NONE;
        if (res->skipped)
                TRY(skip(t, a, res, e));
        else
                TRY(commit(t, grad_scale, res->grad_norm, res->lr, e));
        loss_scaler_update(&p->scaler, res->skipped);
        p->consecutive_skips = res->skipped ? p->consecutive_skips + 1 : 0;
        p->skipped_total += res->skipped;
        p->step++;
        p->data_step++;
        p->tokens += (uint64_t)trainer_tokens_per_step(t);
        if (isnan(p->loss_first) && isfinite(res->loss))
                p->loss_first = (double)res->loss;
        return 0;
}

static int after(struct trainer *t, struct step_result *res, struct error *e) {
        const struct job_spec *s = t->spec;
        uint64_t step = t->progress.step, every = (uint64_t)s->train.eval_every;

        TRY(fp8_stats_gather(t, e));
        if (every > 0 && s->train.eval_batches > 0 && dataset_tokens(t->data, true) > 0 && (step % every == 0 || step == (uint64_t)s->train.steps)) {
                trainer_phase(t, FLIGHT_EVAL);
                TRY(evaluate(t, &res->val_loss, e));
                t->progress.val_loss = res->val_loss;
        }
        if (s->metrics.digests) {
                TRY(state_digest(t, &res->state_digest, e));
                res->has_digest = true;
        }
        res->step = step;
        res->skipped_total = t->progress.skipped_total;
        res->consecutive_skips = t->progress.consecutive_skips;
        res->tokens = t->progress.tokens;
        res->memory_bytes = model_memory(&t->model);
        return 0;
}

int trainer_step(struct trainer *t, struct step_result *ret, struct error *e) {
        uint64_t began = clock_mono_ns();
        struct agreement a;
        struct step_result res;

        if (!t->groups.world || !t->weights_valid || !t->state_valid)
                return error_set(e, -ENOTCONN, "trainer_step: trainer_attach and trainer_sync come first");
        t->state_valid = false; /* until it is over: the masters may have moved when the rest fails */
        TRY(gradients(t, e));
        trainer_phase(t, FLIGHT_SNAPSHOT);
        if (t->before_agree)
                TRY(t->before_agree(t->before_agree_arg, e));
        trainer_phase(t, FLIGHT_AGREE);
        TRY(agree(t, &a, e));
        TRY(replica_check(t, e));
        hook_kill(t, "agreed");
        TRY(decide(t, &a, &res, e));
        TRY(after(t, &res, e));
        res.ms = (double)(clock_mono_ns() - began) / 1e6;
        t->state_valid = true;
        *ret = res;
        return 0;
}

/* ------------------------------------------------------------------ questions */

uint64_t trainer_step_number(const struct trainer *t) {
        return t->progress.step;
}

double trainer_loss_first(const struct trainer *t) {
        return t->progress.loss_first;
}

bool trainer_reports_loss(const struct trainer *t) {
        return t->layout.last && t->layout.dp_index == 0 && t->layout.tp_index == 0;
}

int64_t trainer_tokens_per_step(const struct trainer *t) {
        return t->spec->train.global_batch * t->spec->data.seq_len;
}

void trainer_memory_plan(const struct trainer *t, char *buf, size_t size) {
        static const char *const names[ARENA_KINDS] = {
                [ARENA_PARAM] = "weights", [ARENA_GRAD] = "gradients", [ARENA_OPTIMIZER] = "master weights and moments", [ARENA_ACT] = "activations", [ARENA_WORK] = "workspaces",
        };
        size_t at = 0;

        for (int i = 0; i < ARENA_KINDS && at < size; i++)
                at += (size_t)snprintf(buf + at, size - at, "%s %.1f MB, ", names[i], (double)t->model.arenas[i].size / 1e6);
        if (at < size)
                (void)snprintf(buf + at, size - at, "together %.1f MB, all taken now", (double)model_memory(&t->model) / 1e6);
}

const char *trainer_fingerprint(const struct trainer *t) {
        return t->fingerprint;
}

void trainer_before_agree(struct trainer *t, int (*fn)(void *arg, struct error *e), void *arg) {
        t->before_agree = fn;
        t->before_agree_arg = arg;
}

void trainer_request(struct trainer *t, uint32_t bits) {
        atomic_fetch_or(&t->requests, bits);
}

void trainer_skip_data_to(struct trainer *t, uint64_t step) {
        if (step > t->progress.data_step)
                t->progress.data_step = step;
}
