/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Metrics rows out of a stream of JSON lines: one a step, or what FP8 tensors tell, one a step and layer; of the highest epoch. */
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct metrics;
struct metrics_row {
        uint64_t step, layer, epoch; /* layer: 0 in a row of a step */
        json_t *row;
        bool shown; /* for the reader's use; false again when a higher epoch replaced the row */
};

/* The keys of a row, in the order of csv and json; ends with NULL. */
extern const char *const metrics_keys[];

enum metrics_kind { METRICS_STEPS, METRICS_FP8 };
struct metrics *metrics_new(enum metrics_kind kind);
struct metrics *metrics_free(struct metrics *m);
/* Any piece of the file, cut anywhere. -ENOMEM. */
int metrics_feed(struct metrics *m, const void *data, size_t len);
/* Sorted by step and layer; valid until the next metrics_feed. */
struct metrics_row *metrics_rows(struct metrics *m, size_t *ret_n);
