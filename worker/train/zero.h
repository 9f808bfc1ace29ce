/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * ZeRO-1 (Rajbhandari et al. 2020): each dp rank owns one contiguous range of the flat buffers, its master weights and moments, and updates them alone.
 * Ranges end only between tensors or, inside a matrix, between bands of 128 rows, so that no 128x128 block's scale needs values of two ranks.
 */
#include <stdint.h>

#include "base/error.h"
#include "worker/model/tensor_table.h"

#define ZERO_BAND 128

struct zero_piece {
        const struct tensor *tensor;
        int64_t row0, rows;     /* of the rank's tensor */
        int64_t offset, count;  /* in the flat buffer, elements */
};

struct zero {
        int dp, index;
        int64_t *cuts;             /* [dp + 1], elements of the flat buffer */
        struct zero_piece *pieces; /* of this rank */
        int n_pieces;
};

int zero_init(const struct tensor_table *t, int dp, int index, struct zero *ret, struct error *e);
void zero_done(struct zero *z);
static inline int64_t zero_begin(const struct zero *z) {
        return z->cuts[z->index];
}
static inline int64_t zero_count(const struct zero *z) {
        return z->cuts[z->index + 1] - z->cuts[z->index];
}
