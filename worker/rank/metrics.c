/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "worker/rank/metrics.h"

#define SMOOTHING 0.1 /* of tokens per second in the recorder: about ten steps */

struct metrics {
        const struct identity *id;
        struct trainer *trainer;
        struct flight *flight;
        struct rotated_log *log; /* NULL: this rank does not report losses */
        uint64_t last_ns;        /* end of the step before; 0: none in this epoch */
        double rate, seconds;
        bool complained;
};

int metrics_new(const struct identity *id, const struct job_spec *spec, struct trainer *t, struct flight *flight, struct metrics **ret, struct error *e) {
        struct metrics *m = calloc(1, sizeof(*m));
        _cleanup_free_ char *path = file_path("%s/jobs/%" PRIu64 "/metrics.jsonl", id->dir, id->job);
        int r = 0;

        if (!m || !path) {
                free(m);
                return error_errno(e, ENOMEM, "metrics");
        }
        m->id = id;
        m->trainer = t;
        m->flight = flight;
        if (trainer_reports_loss(t))
                r = rotated_log_open(path, (uint64_t)spec->metrics.max_bytes, &m->log, e);
        if (r < 0) {
                free(m);
                return r;
        }
        *ret = m;
        return 0;
}

struct metrics *metrics_free(struct metrics *m) {
        if (!m)
                return NULL;
        rotated_log_free(m->log);
        free(m);
        return NULL;
}

static uint64_t bits(double x) {
        uint64_t b;

        memcpy(&b, &x, sizeof(b));
        return b;
}

void metrics_loaded(struct metrics *m) {
        m->last_ns = 0;
        m->rate = 0;
        atomic_store(&m->flight->step, trainer_step_number(m->trainer));
}

static json_t *number(double x) {
        return isfinite(x) ? json_real(x) : json_null();
}

/* Takes the row. */
static void append(struct metrics *m, uint64_t step, json_t *row) {
        char *text = row ? json_dumps(row, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;

        json_decref(row);
        if (text) {
                size_t len = strlen(text);

                text[len] = '\n'; /* over the NUL: one write, one line */
                if (rotated_log_write(m->log, text, len + 1) < 0 && !m->complained) {
                        log_error("metrics of step %" PRIu64 " cannot be written; going on without", step);
                        m->complained = true;
                }
        }
        free(text);
}

void metrics_row(struct metrics *m, uint64_t epoch, const struct step_result *r, const struct metrics_ckpt *k) {
        uint64_t now = clock_mono_ns();
        double tokens = (double)trainer_tokens_per_step(m->trainer);
        char hex[16], digest[DIGEST_HEX_SIZE];
        uint32_t loss_bits;
        json_t *row;

        /* A step costs what lies between two ends of a step, snapshot and all; the first of an epoch, what the trainer measured. */
        m->seconds = m->last_ns ? (double)(now - m->last_ns) / 1e9 : r->ms / 1e3;
        m->last_ns = now;
        m->rate = m->rate > 0 ? m->rate + SMOOTHING * (tokens / m->seconds - m->rate) : tokens / m->seconds;
        if (!m->log)
                return;
        memcpy(&loss_bits, &r->loss, sizeof(loss_bits));
        snprintf(hex, sizeof(hex), "%08" PRIx32, loss_bits);
        digest_hex(r->state_digest, digest);
        row = json_pack("{s:i, s:I, s:I, s:f, s:o, s:s, s:o, s:f, s:f, s:b, s:I, s:f, s:f, s:I, s:o, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "v", 1, "step", (json_int_t)r->step, "epoch",
                        (json_int_t)epoch, "t", (double)clock_wall_ns() / 1e9, "loss", number((double)r->loss), "loss_hex", hex, "grad_norm",
                        number(r->grad_norm), "lr", r->lr, "loss_scale", r->loss_scale, "skipped", (int)r->skipped, "tokens", (json_int_t)r->tokens,
                        "tokens_per_s", tokens / m->seconds, "ms", m->seconds * 1e3, "memory", (json_int_t)r->memory_bytes, "val_loss", number(r->val_loss),
                        "snapshot_ms", (double)k->waited_ns / 1e6, "saves_skipped", (json_int_t)k->saves_skipped, "replicas_skipped", (json_int_t)k->replicas_skipped,
                        "replicas_missed", (json_int_t)k->replicas_missed, "replica_bytes", (json_int_t)k->replica_bytes, "replica_rdma_bytes",
                        (json_int_t)k->replica_rdma_bytes, "local_copies", (json_int_t)k->local_copies, "local_skipped", (json_int_t)k->local_skipped, "digest", r->has_digest ? json_string(digest) : json_null());
        append(m, r->step, row);
}

/* A row a layer: a line stays short however deep the model is. Not "step": who looks for rows of steps passes these over. */
void metrics_fp8_rows(struct metrics *m, uint64_t epoch, uint64_t step) {
        const struct fp8_tensor *f;
        size_t n = trainer_fp8(m->trainer, &f), end;

        for (size_t i = 0; m->log && i < n; i = end) {
                json_t *tensors = json_object();

                for (end = i; end < n && f[end].layer == f[i].layer; end++)
                        json_object_set_new(tensors, f[end].name, json_pack("[o, f, f]", number(f[end].amax), f[end].saturated, f[end].flushed));
                append(m, step, json_pack("{s:i, s:I, s:I, s:f, s:i, s:o}", "v", 1, "fp8_step", (json_int_t)step, "epoch", (json_int_t)epoch, "t", (double)clock_wall_ns() / 1e9, "layer",
                                          f[i].layer, "tensors", tensors));
        }
}

void metrics_progress(struct metrics *m, const struct step_result *r) {
        struct flight *f = m->flight;

        atomic_store(&f->tokens_per_s, bits(m->rate));
        atomic_store(&f->skipped_steps, r->skipped_total);
        atomic_store(&f->tokens, r->tokens);
        atomic_store(&f->memory_bytes, r->memory_bytes);
        if (trainer_reports_loss(m->trainer)) {
                atomic_store(&f->loss, bits((double)r->loss));
                atomic_store(&f->loss_first, bits(trainer_loss_first(m->trainer)));
                if (!isnan(r->val_loss) || !atomic_load(&f->has_loss))
                        atomic_store(&f->val_loss, bits(r->val_loss));
                atomic_store(&f->has_loss, 1);
        }
        atomic_store(&f->step, r->step);
}

static double value(uint64_t b) {
        double x;

        memcpy(&x, &b, sizeof(x));
        return x;
}

void metrics_fill(const struct metrics *m, Fp8ctl__V1__RankProgress *ret) {
        const struct flight *f = m->flight;

        fp8ctl__v1__rank_progress__init(ret);
        ret->job_id = m->id->job;
        ret->epoch = atomic_load(&f->epoch);
        ret->rank = m->id->rank;
        ret->incarnation = m->id->incarnation;
        ret->step = atomic_load(&f->step);
        ret->has_loss = atomic_load(&f->has_loss) != 0;
        ret->loss = value(atomic_load(&f->loss));
        ret->loss_first = value(atomic_load(&f->loss_first));
        ret->val_loss = value(atomic_load(&f->val_loss));
        ret->tokens_per_s = value(atomic_load(&f->tokens_per_s));
        ret->skipped_steps = atomic_load(&f->skipped_steps);
        ret->tokens = atomic_load(&f->tokens);
        ret->memory_bytes = atomic_load(&f->memory_bytes);
}
