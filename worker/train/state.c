// SPDX-License-Identifier: Apache-2.0
/*
 * What a snapshot of a rank consists of: slices of master weights and moments under global names, delayed scaling's history (the same on every rank of the
 * stage, and kept by each, so that each can go on from its own shard alone), and the small state as JSON.
 */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "worker/train/trainer_private.h"

static void add(struct trainer *t, const char *prefix, const char *name, enum dtype type, int64_t global_rows, int64_t global_cols, int64_t row0,
                int64_t rows, int64_t col0, int64_t cols, void *data) {
        struct shard_tensor *s = &t->state[t->n_state++];

        *s = (struct shard_tensor){
                .dtype = type, .global_rows = global_rows, .global_cols = global_cols,
                .row0 = row0, .rows = rows, .col0 = col0, .cols = cols, .data = data,
        };
        snprintf(s->name, sizeof(s->name), "%s%.200s", prefix, name);
}

int state_list(struct trainer *t, struct error *e) {
        enum dtype f = sizeof(dev_real) == 8 ? DT_F64 : DT_F32, moments = t->optimizer.moments == DT_F32 ? f : t->optimizer.moments;
        size_t max = 3 * (size_t)t->zero.n_pieces + 2 * (size_t)t->layout.n_layers;
        int64_t len = t->spec->precision.amax_history;
        struct model *m = &t->model;

        t->state = calloc(max, sizeof(*t->state));
        if (!t->state)
                return error_set(e, -ENOMEM, "no memory for the list of state tensors");
        for (int i = 0; i < t->zero.n_pieces; i++) {
                const struct zero_piece *p = &t->zero.pieces[i];
                const struct tensor *x = p->tensor;
                struct adamw_tensor *a = &t->optimizer.list[i];
                int64_t row0 = x->row0 + p->row0;

                add(t, "", x->name, f, x->global_rows, x->global_cols, row0, p->rows, x->col0, x->cols, a->master);
                add(t, "exp_avg:", x->name, moments, x->global_rows, x->global_cols, row0, p->rows, x->col0, x->cols, a->m);
                add(t, "exp_avg_sq:", x->name, moments, x->global_rows, x->global_cols, row0, p->rows, x->col0, x->cols, a->v);
        }
        for (int i = 0; i < t->layout.n_layers && m->n_sites > 0; i++) {
                char name[64];

                snprintf(name, sizeof(name), "model.layers.%d", t->layout.layer0 + i);
                add(t, "amax_history:", name, f, SITES, len, 0, SITES, 0, len, m->history + (int64_t)i * SITES * len);
                add(t, "scale:", name, f, 1, SITES, 0, 1, 0, SITES, m->scale + (ptrdiff_t)i * SITES);
        }
        return 0;
}

void trainer_state(struct trainer *t, const struct shard_tensor **ret_list, size_t *ret_n) {
        *ret_list = t->state;
        *ret_n = t->n_state;
}

/* ------------------------------------------------------------------ small state */

int trainer_settle(struct trainer *t, struct error *e) {
        TRY_DEV(e, t->model.ops->stream_sync(t->reducer.stream)); /* the other one waits for it, but not where an epoch broke off */
        TRY_DEV(e, t->model.ops->stream_sync(t->model.stream));
        return 0;
}

static json_t *real_or_null(double x) {
        return isfinite(x) ? json_real(x) : json_null();
}

static json_t *pack(const struct trainer *t) {
        const struct progress *p = &t->progress;

        return json_pack("{s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:{s:f, s:I}, s:{s:I, s:I}, s:s}",
                         "version", 1,
                         "step", (json_int_t)p->step,
                         "data_step", (json_int_t)p->data_step,
                         "updates", (json_int_t)p->updates,
                         "skipped_total", (json_int_t)p->skipped_total,
                         "consecutive_skips", (json_int_t)p->consecutive_skips,
                         "tokens", (json_int_t)p->tokens,
                         "loss_first", real_or_null(p->loss_first),
                         "val_loss", real_or_null(p->val_loss),
                         "scaler", "scale", p->scaler.scale, "clean", (json_int_t)p->scaler.clean,
                         /* both generators count: values follow from the seeds and the positions above */
                         "rng", "seed", (json_int_t)t->spec->train.seed, "data_seed", (json_int_t)t->spec->data.seed,
                         "fingerprint", t->fingerprint);
}

int trainer_state_json(struct trainer *t, char *buf, size_t size, struct error *e) {
        json_t *root = pack(t);
        size_t n;

        if (!root)
                return error_set(e, -ENOMEM, "no memory for the small state");
        n = json_dumpb(root, buf, size, JSON_COMPACT | JSON_REAL_PRECISION(17)); /* 17 digits give a double back exactly */
        json_decref(root);
        if (n == 0 || n >= size)
                return error_set(e, -ENOSPC, "small state: found %zu bytes, expected less than %zu", n, size);
        buf[n] = '\0';
        return 0;
}

static int counter(json_t *root, const char *key, uint64_t *ret, struct error *e) {
        json_t *j = json_object_get(root, key);

        if (!json_is_integer(j) || json_integer_value(j) < 0)
                return error_set(e, -EBADMSG, "small state: '%s' expected as an integer of at least 0", key);
        *ret = (uint64_t)json_integer_value(j);
        return 0;
}

static int number_or_null(json_t *root, const char *key, double *ret, struct error *e) {
        json_t *j = json_object_get(root, key);

        if (!json_is_number(j) && !json_is_null(j))
                return error_set(e, -EBADMSG, "small state: '%s' expected as a number or null", key);
        *ret = json_is_null(j) ? NAN : json_number_value(j);
        return 0;
}

static int parse(struct trainer *t, json_t *root, struct progress *p, struct error *e) {
        json_t *scaler = json_object_get(root, "scaler"), *scale = json_object_get(scaler, "scale");
        uint64_t version = 0;

        TRY(counter(root, "version", &version, e));
        if (version != 1)
                return error_set(e, -EBADMSG, "small state: found version %llu, expected 1", (unsigned long long)version);
        TRY(counter(root, "step", &p->step, e));
        TRY(counter(root, "data_step", &p->data_step, e));
        TRY(counter(root, "updates", &p->updates, e));
        TRY(counter(root, "skipped_total", &p->skipped_total, e));
        TRY(counter(root, "consecutive_skips", &p->consecutive_skips, e));
        TRY(counter(root, "tokens", &p->tokens, e));
        TRY(number_or_null(root, "loss_first", &p->loss_first, e));
        TRY(number_or_null(root, "val_loss", &p->val_loss, e));
        TRY(counter(scaler, "clean", &p->scaler.clean, e));
        if (!json_is_number(scale) || !(json_number_value(scale) >= 1) || !isfinite(json_number_value(scale)))
                return error_set(e, -EBADMSG, "small state: 'scaler.scale' expected as a number of at least 1");
        p->scaler.kind = t->spec->precision.loss_scale;
        p->scaler.scale = p->scaler.kind == LOSS_SCALE_OFF ? 1 : json_number_value(scale);
        return 0;
}

int trainer_set_state_json(struct trainer *t, const char *json, struct error *e) {
        struct progress p = { 0 };
        json_error_t je;
        json_t *root = json_loads(json, JSON_REJECT_DUPLICATES, &je);
        int r;

        if (!root)
                return error_set(e, -EBADMSG, "small state: not JSON: %s", je.text);
        r = parse(t, root, &p, e);
        json_decref(root);
        TRY(r);
        t->progress = p;
        t->state_valid = true;
        t->weights_valid = false;
        return 0;
}
