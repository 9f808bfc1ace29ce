/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Copies of this rank's snapshots on its node's own disk (format/local_copy.h), written from replica memory by a thread while training goes on.
 *
 * All ranks write those of the same steps: each puts into a step's agreement whether it still writes, or could not, and none begins while one is busy.  A copy that all
 * have written is whole; the newest checkpoint.local_keep whole ones stay, the others go when the next begins, so there is always one that all have.  A checkpoint
 * comes first: when one falls due, the copy being written is given up.
 */
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "proto/fp8ctl.pb-c.h"
#include "proto/job_spec.h"
#include "worker/rank/control.h"
#include "worker/rank/identity.h"
#include "worker/rank/snapshot.h"

struct local_tier;

/* fd: the replica segment, sized; stays the caller's. */
int local_tier_new(const struct identity *id, const struct job_spec *spec, struct control *c, struct snapshot *s, int fd, struct local_tier **ret, struct error *e);
/* Not while it writes (local_tier_stop). */
struct local_tier *local_tier_free(struct local_tier *l);
/* An epoch begins with this step loaded. */
void local_tier_begin(struct local_tier *l, uint64_t epoch, uint64_t step);
/* What is being written is not wanted any more. Does not wait. */
void local_tier_cancel(struct local_tier *l);
/* ... and waits; false: the storage has stalled and holds a thread that reads our memory. */
bool local_tier_stop(struct local_tier *l);
/* Is there a copy to make of this step? Then a snapshot of it must be there. */
bool local_tier_due(const struct local_tier *l, uint64_t step);
/* TRAINER_REQUEST_LOCAL_* for the agreement that comes now. */
uint32_t local_tier_bits(struct local_tier *l);
/* At the end of each step: what all said in its agreement. saving: a checkpoint of this step was begun. */
void local_tier_next(struct local_tier *l, uint64_t step, uint32_t agreed, bool saving);
/* A checkpoint is about to be written and needs the one snapshot that can be held fast. */
void local_tier_yield(struct local_tier *l);

struct local_tier_counts {
        uint64_t written, skipped /* an earlier one or a checkpoint was still being written */;
};
struct local_tier_counts local_tier_counted(struct local_tier *l);

/* The copy of that generation into the replica segment, verified. -ENOENT: there is none; anything else was told. */
int local_tier_fetch(struct local_tier *l, uint64_t epoch_now, uint64_t step, uint64_t epoch, uint64_t *ret_bytes, struct error *e);
