/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Checkpoint shards: written from the newest snapshot by a thread, reported prepared when durable. The commit is the controller's. */
#include <stdint.h>

#include "base/error.h"
#include "proto/job_spec.h"
#include "worker/rank/control.h"
#include "worker/rank/identity.h"
#include "worker/rank/snapshot.h"

struct save;

int save_new(const struct identity *id, const struct job_spec *spec, struct control *c, struct snapshot *s, struct save **ret, struct error *e);
/* Waits for the write under way. */
struct save *save_free(struct save *s);
/*
 * Starts writing the snapshot of `step`, which must be the newest, under epoch and attempt; waits for an earlier write first.  What goes wrong is
 * reported to the controller (CheckpointPrepared with an error), never returned: training goes on without this checkpoint.
 */
void save_start(struct save *s, uint64_t step, uint64_t epoch, uint32_t attempt);
/* Says that the attempt cannot be made. */
void save_refuse(struct save *s, uint64_t step, uint64_t epoch, uint32_t attempt, const char *why);
void save_wait(struct save *s);
