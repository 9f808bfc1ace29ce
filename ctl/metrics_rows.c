/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "ctl/metrics.h"
#include "ctl/print.h"

#define LINE_MAX_BYTES ((size_t)64 * 1024)

const char *const metrics_keys[] = { "step", "epoch", "loss", "loss_hex", "grad_norm", "lr", "loss_scale", "skipped", "tokens", "tokens_per_s", "ms", "memory",
                                     "val_loss", "snapshot_ms", "saves_skipped", "replicas_skipped", "replicas_missed", "replica_bytes", "replica_rdma_bytes", "local_copies", "local_skipped", "digest", "t", NULL };

struct metrics {
        enum metrics_kind kind;
        struct metrics_row *rows; /* sorted */
        size_t n, size;
        char *line; /* a line whose end has not come yet */
        size_t line_len, line_size;
        bool line_bad;
};

struct metrics *metrics_new(enum metrics_kind kind) {
        struct metrics *m = calloc(1, sizeof(*m));

        if (m)
                m->kind = kind;
        return m;
}

struct metrics *metrics_free(struct metrics *m) {
        if (!m)
                return NULL;
        for (size_t i = 0; i < m->n; i++)
                json_decref(m->rows[i].row);
        free(m->rows);
        free(m->line);
        free(m);
        return NULL;
}

static bool after(const struct metrics_row *a, const struct metrics_row *b) {
        return a->step != b->step ? a->step > b->step : a->layer > b->layer;
}

/* Steps mostly come in order: the place is searched from the end. The row is taken when it is put in. */
static int put_row(struct metrics *m, const struct metrics_row *row) {
        size_t at = m->n;

        while (at > 0 && after(&m->rows[at - 1], row))
                at--;
        if (at > 0 && !after(row, &m->rows[at - 1])) {
                struct metrics_row *old = &m->rows[at - 1];

                if (old->epoch > row->epoch)
                        return 0;
                json_decref(old->row);
                *old = *row;
                json_incref(row->row);
                return 0;
        }
        if (m->n == m->size) {
                size_t size = m->size ? 2 * m->size : 256;
                struct metrics_row *rows = realloc(m->rows, size * sizeof(*rows));

                if (!rows)
                        return -ENOMEM;
                m->rows = rows;
                m->size = size;
        }
        memmove(m->rows + at + 1, m->rows + at, (m->n - at) * sizeof(*m->rows));
        m->rows[at] = *row;
        json_incref(row->row);
        m->n++;
        return 0;
}

/* A number of `in` that may not be negative. */
static bool counted(const json_t *in, const char *key, uint64_t *ret) {
        const json_t *v = json_object_get(in, key);

        if (!json_is_integer(v) || json_integer_value(v) < 0)
                return false;
        *ret = (uint64_t)json_integer_value(v);
        return true;
}

/* What of `v` is a number; else null. */
static json_t *number_or_null(json_t *v) {
        return json_is_number(v) ? json_incref(v) : json_null();
}

/* {"layer", "tensors": {NAME: [amax, saturated, flushed]}} */
static int add_fp8(struct metrics *m, const json_t *in) {
        struct metrics_row r = { 0 };
        json_t *tensors = json_object_get(in, "tensors"), *v, *list;
        const char *name;

        if (!counted(in, "fp8_step", &r.step) || !counted(in, "epoch", &r.epoch) || !counted(in, "layer", &r.layer) || !json_is_object(tensors))
                return 0;
        list = json_array();
        json_object_foreach(tensors, name, v) {
                json_array_append_new(list, json_pack("{s:s, s:o, s:o, s:o}", "tensor", name, "amax", number_or_null(json_array_get(v, 0)), "saturated", number_or_null(json_array_get(v, 1)),
                                                      "flushed", number_or_null(json_array_get(v, 2))));
        }
        r.row = json_pack("{s:I, s:I, s:I, s:o}", "step", (json_int_t)r.step, "epoch", (json_int_t)r.epoch, "layer", (json_int_t)r.layer, "tensors", list);
        if (r.row) {
                int put = put_row(m, &r);

                json_decref(r.row);
                return put;
        }
        return -ENOMEM;
}

/* A row with our keys only, in our order; what is not there is null. */
static int add_line(struct metrics *m, const char *line, size_t len) {
        _cleanup_json_ json_t *in = json_loadb(line, len, 0, NULL), *row = json_object();
        struct metrics_row r = { .row = row };

        if (!row)
                return -ENOMEM;
        if (m->kind == METRICS_FP8)
                return add_fp8(m, in);
        if (!counted(in, "step", &r.step) || !counted(in, "epoch", &r.epoch))
                return 0;
        for (const char *const *key = metrics_keys; *key; key++) {
                json_t *v = json_object_get(in, *key);

                if (v && (json_is_object(v) || json_is_array(v)))
                        v = NULL;
                json_object_set(row, *key, v ? v : json_null());
        }
        return put_row(m, &r);
}

int metrics_feed(struct metrics *m, const void *data, size_t len) {
        const char *p = len ? data : "", *end = p + len; /* an empty message has no data at all */

        while (p < end) {
                const char *nl = memchr(p, '\n', (size_t)(end - p));
                size_t part = (size_t)((nl ? nl : end) - p);

                if (m->line_len + part > LINE_MAX_BYTES)
                        m->line_bad = true;
                if (!m->line_bad && part) {
                        if (m->line_len + part > m->line_size) {
                                size_t size = 2 * (m->line_len + part);
                                char *line = realloc(m->line, size);

                                if (!line)
                                        return -ENOMEM;
                                m->line = line;
                                m->line_size = size;
                        }
                        memcpy(m->line + m->line_len, p, part);
                        m->line_len += part;
                }
                if (!nl)
                        return 0;
                if (!m->line_bad && m->line_len) {
                        int r = add_line(m, m->line, m->line_len);

                        if (r < 0)
                                return r;
                }
                m->line_len = 0;
                m->line_bad = false;
                p = nl + 1;
        }
        return 0;
}

struct metrics_row *metrics_rows(struct metrics *m, size_t *ret_n) {
        *ret_n = m->n;
        return m->rows;
}
