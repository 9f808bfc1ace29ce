/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Checkpoint shards: written from the newest snapshot by a thread, reported prepared when durable. The commit is the controller's.  One write at a time and none
 * queued: what falls due meanwhile is skipped and counted.  What goes wrong with the storage is told as an event; training goes on.
 */
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "proto/job_spec.h"
#include "worker/rank/control.h"
#include "worker/rank/identity.h"
#include "worker/rank/snapshot.h"

struct save;

int save_new(const struct identity *id, const struct job_spec *spec, struct control *c, struct snapshot *s, struct save **ret, struct error *e);
/* Not while a write is under way (save_finish). */
struct save *save_free(struct save *s);
/* A write is under way. */
bool save_busy(const struct save *s);
/*
 * Starts writing the newest snapshot, which must be of `step`, under epoch and attempt.  What goes wrong is reported to the controller (CheckpointPrepared with an
 * error), never returned: training goes on without this checkpoint.
 */
void save_start(struct save *s, uint64_t step, uint64_t epoch, uint32_t attempt);
/* Says that the attempt cannot be made. */
void save_refuse(struct save *s, uint64_t step, uint64_t epoch, uint32_t attempt, const char *why);
/* A periodic save that all ranks pass over, because some rank still writes. */
void save_skip(struct save *s, uint64_t step, uint64_t epoch);
uint64_t save_skipped(const struct save *s);
/* Once a step: tells when the write under way makes no progress. */
void save_watch(struct save *s);
/* Until the write under way is done; false: it makes no progress, its attempt is given up and training need not wait for it. */
bool save_finish(struct save *s);
/* The epoch of the write under way is over: it is not wanted any more. Does not wait. */
void save_cancel(struct save *s);
