/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the files behind checkpoint.h share. */
#include <stdbool.h>

#include "worker/ckpt/checkpoint.h"

struct manifest_shard {
        char *file;
        uint64_t bytes;
        struct digest digest;
        int rank;
};

struct checkpoint_manifest {
        uint64_t job, step, epoch;
        uint32_t attempt;
        char *layout, *state;
        struct manifest_shard *shards; /* by rank */
        size_t n_shards;
};
