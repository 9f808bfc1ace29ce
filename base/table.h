/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * State machines as const tables: one row a move, everything not listed is refused.
 */
#include <stddef.h>

#include "base/error.h"

struct table_row {
        int from, event, to;
        /* Called by table_step before the state changes; a negative return leaves the state as it was. NULL: nothing. */
        int (*action)(void *ctx, const void *arg, struct error *e);
};

struct table {
        const char *name;
        const char *const *states; /* names, indexed by state */
        int n_states;
        const char *const *events; /* names, indexed by event */
        int n_events;
        const struct table_row *rows;
        size_t n_rows;
};

/* The row for (state, event), or NULL. */
const struct table_row *table_find(const struct table *t, int state, int event);
/* Moves *state along the table. -EPROTO with "<table>: event E in state S, expected one of ..." when no row fits. */
int table_step(const struct table *t, int *state, int event, void *ctx, const void *arg, struct error *e);
/* For tests: indices in range, no two rows for one (state, event), every state reachable from `initial`. */
int table_check(const struct table *t, int initial, struct error *e);
