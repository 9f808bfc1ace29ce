/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Metrics rows out of a stream of JSON lines: one a step, of the highest epoch. */
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct metrics;
struct metrics_row {
        uint64_t step, epoch;
        json_t *row;
        bool shown; /* for the reader's use; false again when a higher epoch replaced the row */
};

/* The keys of a row, in the order of csv and json; ends with NULL. */
extern const char *const metrics_keys[];

struct metrics *metrics_new(void);
struct metrics *metrics_free(struct metrics *m);
/* Any piece of the file, cut anywhere. -ENOMEM. */
int metrics_feed(struct metrics *m, const void *data, size_t len);
/* Sorted by step; valid until the next metrics_feed. */
struct metrics_row *metrics_rows(struct metrics *m, size_t *ret_n);
