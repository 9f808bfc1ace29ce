/* SPDX-License-Identifier: Apache-2.0 */
#include "base/table.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

const struct table_row *table_find(const struct table *t, int state, int event) {
        for (size_t i = 0; i < t->n_rows; i++)
                if (t->rows[i].from == state && t->rows[i].event == event)
                        return &t->rows[i];
        return NULL;
}

static const char *name_of(const char *const *names, int n, int i) {
        return i >= 0 && i < n && names[i] ? names[i] : "(unknown)";
}

static int refuse(const struct table *t, int state, int event, struct error *e) {
        char list[512] = "";
        size_t len = 0;

        for (size_t i = 0; i < t->n_rows && len < sizeof(list); i++)
                if (t->rows[i].from == state)
                        len += (size_t)snprintf(list + len, sizeof(list) - len, "%s%s", len ? ", " : "",
                                                name_of(t->events, t->n_events, t->rows[i].event));
        return error_set(e, -EPROTO, "%s: event %s in state %s, expected %s%s", t->name, name_of(t->events, t->n_events, event),
                         name_of(t->states, t->n_states, state), len ? "one of " : "no event (it is a final state)", list);
}

int table_step(const struct table *t, int *state, int event, void *ctx, const void *arg, struct error *e) {
        const struct table_row *row = table_find(t, *state, event);

        if (!row)
                return refuse(t, *state, event, e);
        if (row->action) {
                int r = row->action(ctx, arg, e);

                if (r < 0)
                        return r;
        }
        *state = row->to;
        return 0;
}

static int check_row(const struct table *t, size_t i, struct error *e) {
        const struct table_row *row = &t->rows[i];

        if (row->from < 0 || row->from >= t->n_states || row->to < 0 || row->to >= t->n_states || row->event < 0 || row->event >= t->n_events)
                return error_set(e, -EINVAL, "%s: row %zu: found (%d, %d, %d), expected states below %d and events below %d", t->name, i,
                                 row->from, row->event, row->to, t->n_states, t->n_events);
        if (table_find(t, row->from, row->event) != row)
                return error_set(e, -EINVAL, "%s: row %zu: event %s in state %s is listed twice", t->name, i, t->events[row->event],
                                 t->states[row->from]);
        return 0;
}

int table_check(const struct table *t, int initial, struct error *e) {
        _cleanup_free_ bool *seen = NULL;
        bool grew = true;
        int r;

        if (initial < 0 || initial >= t->n_states)
                return error_set(e, -EINVAL, "%s: found initial state %d, expected one below %d", t->name, initial, t->n_states);
        for (int i = 0; i < t->n_states; i++)
                if (!t->states[i])
                        return error_set(e, -EINVAL, "%s: state %d has no name", t->name, i);
        for (int i = 0; i < t->n_events; i++)
                if (!t->events[i])
                        return error_set(e, -EINVAL, "%s: event %d has no name", t->name, i);
        for (size_t i = 0; i < t->n_rows; i++) {
                r = check_row(t, i, e);
                if (r < 0)
                        return r;
        }
        seen = calloc((size_t)t->n_states, sizeof(*seen));
        if (!seen)
                return error_set(e, -ENOMEM, "no memory");
        seen[initial] = true;
        while (grew) {
                grew = false;
                for (size_t i = 0; i < t->n_rows; i++)
                        if (seen[t->rows[i].from] && !seen[t->rows[i].to])
                                seen[t->rows[i].to] = grew = true;
        }
        for (int i = 0; i < t->n_states; i++)
                if (!seen[i])
                        return error_set(e, -EINVAL, "%s: state %s cannot be reached from %s", t->name, t->states[i], t->states[initial]);
        return 0;
}
