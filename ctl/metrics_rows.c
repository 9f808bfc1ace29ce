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
        struct metrics_row *rows; /* sorted by step when asked for */
        size_t n, size;
        char *line; /* a line whose end has not come yet */
        size_t line_len, line_size;
        bool line_bad;
};

struct metrics *metrics_new(void) {
        return calloc(1, sizeof(struct metrics));
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

/* Steps mostly come in order: the place is searched from the end. */
static int put_row(struct metrics *m, uint64_t step, uint64_t epoch, json_t *row) {
        size_t at = m->n;

        while (at > 0 && m->rows[at - 1].step > step)
                at--;
        if (at > 0 && m->rows[at - 1].step == step) {
                struct metrics_row *old = &m->rows[at - 1];

                if (old->epoch > epoch)
                        return 0;
                json_decref(old->row);
                *old = (struct metrics_row){ step, epoch, json_incref(row), false };
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
        m->rows[at] = (struct metrics_row){ step, epoch, json_incref(row), false };
        m->n++;
        return 0;
}

/* A row with our keys only, in our order; what is not there is null. */
static int add_line(struct metrics *m, const char *line, size_t len) {
        _cleanup_json_ json_t *in = json_loadb(line, len, 0, NULL), *row = json_object();
        const json_t *step = json_object_get(in, "step"), *epoch = json_object_get(in, "epoch");

        if (!row)
                return -ENOMEM;
        if (!json_is_integer(step) || !json_is_integer(epoch) || json_integer_value(step) < 0 || json_integer_value(epoch) < 0)
                return 0;
        for (const char *const *key = metrics_keys; *key; key++) {
                json_t *v = json_object_get(in, *key);

                if (v && (json_is_object(v) || json_is_array(v)))
                        v = NULL;
                json_object_set(row, *key, v ? v : json_null());
        }
        return put_row(m, (uint64_t)json_integer_value(step), (uint64_t)json_integer_value(epoch), row);
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
