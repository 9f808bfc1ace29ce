/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the two halves of shard.h share. */
#include "worker/ckpt/shard.h"

/* Names of the safetensors format; NULL: it has none for this type. A "real" is F32, in the FP64 build F64. */
const char *shard_dtype_text(enum dtype t);
/* -EINVAL: a name that we have no type for. */
int shard_dtype_parse(const char *text, enum dtype *ret);

/* A name, type and slice that can be stored. */
int shard_tensor_check(const struct shard_tensor *t, struct error *e);

#define SHARD_STATE_KEY "state"
#define SHARD_SLICE_PREFIX "slice:"
/* "[[r0,r1],[c0,c1]] of [R,C]" */
#define SHARD_SLICE_FORMAT "[[%" PRId64 ",%" PRId64 "],[%" PRId64 ",%" PRId64 "]] of [%" PRId64 ",%" PRId64 "]"
