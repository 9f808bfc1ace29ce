/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * One block of device memory for each kind of tensor.  What goes into it is told by a function that runs twice: first with no memory (only sizes are
 * added up; every pointer is NULL), then for real.  So the sizes cannot disagree with the use, and nothing is allocated during a step.
 */
#include <stddef.h>

#include "base/error.h"
#include "kernels/dev.h"

enum arena_kind {
        ARENA_PARAM,     /* working copies of the weights, quantised forms included */
        ARENA_GRAD,      /* gradient accumulation and the reduced shard */
        ARENA_OPTIMIZER, /* master weights, moments, amax histories */
        ARENA_ACT,       /* activations kept from forward to backward, for every micro-batch in flight */
        ARENA_WORK,      /* scratch of one layer */
        ARENA_KINDS
};

struct arena {
        char *base; /* NULL: counting */
        size_t used, size;
};

/* 256-byte aligned; NULL while counting, and for 0 bytes. */
void *arena_take(struct arena *a, size_t bytes);
/* Allocates what was counted and starts over. */
int arena_commit(struct arena *a, const struct dev_ops *ops, struct dev *d, struct error *e);
void arena_release(struct arena *a, const struct dev_ops *ops, struct dev *d);
