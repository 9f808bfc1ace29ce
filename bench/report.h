/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The rows that a bench program prints with -o json. */
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>

/* peer: what another program takes, and its part of it; NaN, 0 or less: none (null). rows NULL: no memory, nothing is added. */
static inline void report_add(json_t *rows, const char *name, double value, const char *unit, double peer) {
        bool has = isfinite(peer) && peer > 0;

        json_array_append_new(rows, json_pack("{s:s, s:f, s:s, s:o, s:o}", "name", name, "value", value, "unit", unit, "peer", has ? json_real(peer) : json_null(), "ratio", has ? json_real(value / peer) : json_null()));
}

/* All of them, which are freed. digits: of each number; 0: as many as it takes. An exit code. */
static inline int report_print(json_t *rows, size_t digits) {
        int r = rows ? json_dumpf(rows, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(digits)) : -1;

        (void)putchar('\n');
        json_decref(rows);
        return r == 0 ? 0 : 1;
}
