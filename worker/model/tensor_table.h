/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The parameters of one rank, under Hugging Face's global names: what part of each it holds, and where that part lies in the rank's flat buffers
 * (working copies, gradients).  Norms stand first in the flat order, so that their gradients are one contiguous range.
 */
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "proto/job_spec.h"
#include "worker/ckpt/shard.h"

enum tensor_role {
        TENSOR_EMBED,
        TENSOR_ATTN_NORM,
        TENSOR_Q,
        TENSOR_K,
        TENSOR_V,
        TENSOR_O,
        TENSOR_MLP_NORM,
        TENSOR_GATE,
        TENSOR_UP,
        TENSOR_DOWN,
        TENSOR_FINAL_NORM,
        TENSOR_HEAD,
        TENSOR_ROLES
};
#define TENSORS_PER_LAYER 9 /* ATTN_NORM .. DOWN */

/* Where this rank stands. rank = (pp_index * dp + dp_index) * tp + tp_index */
struct layout {
        int rank, n_ranks;
        int tp, pp, dp;
        int tp_index, pp_index, dp_index;
        bool sequence_parallel; /* only with tp > 1 */
        bool first, last;       /* stage */
        int layer0, n_layers;   /* of this stage */
};

struct tensor {
        char name[SHARD_NAME_MAX];
        enum tensor_role role;
        int layer;                        /* global number, -1: not in a layer */
        uint32_t number;                  /* global, equal on every rank; tensor_name() finds it back */
        uint64_t hash;                    /* of the name, for initialisation */
        int64_t global_rows, global_cols; /* a vector is [1, n] */
        int64_t row0, rows, col0, cols;   /* what this rank holds */
        double mean, std;                 /* of the initial values */
        bool norm;                        /* norm weight: no decay, replicated over tp */
        bool shared_copy;                 /* the last stage's copy of the tied embedding: its gradient is summed with stage 0's */
        bool counted;                     /* its square goes into the global norm here (shared ones once) */
        double lr_scale, weight_decay;
        int64_t offset, count;            /* elements in the flat buffers */
};

struct tensor_table {
        struct tensor *tensors;
        int n;
        int64_t elements;      /* of a flat buffer, padding included */
        int64_t norm_elements; /* the norms are [0, norm_elements) */
};

int layout_init(const struct job_spec *s, int rank, struct layout *ret, struct error *e);
int tensor_table_init(const struct job_spec *s, const struct layout *l, struct tensor_table *ret, struct error *e);
void tensor_table_done(struct tensor_table *t);
/* NULL: not on this rank. layer -1 for those outside layers. */
struct tensor *tensor_table_find(const struct tensor_table *t, enum tensor_role role, int layer);
/* The global name of tensor `number`; -EINVAL when there is none. */
int tensor_name(const struct model_config *m, uint32_t number, char *buf, size_t size);
