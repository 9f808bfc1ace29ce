/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* How a shard's header spells what is ours. */
#define SHARD_STATE_KEY "state"
#define SHARD_SLICE_PREFIX "slice:"
/* "[[r0,r1],[c0,c1]] of [R,C]" */
#define SHARD_SLICE_FORMAT "[[%" PRId64 ",%" PRId64 "],[%" PRId64 ",%" PRId64 "]] of [%" PRId64 ",%" PRId64 "]"
