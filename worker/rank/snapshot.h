/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Snapshots of a rank's state in its replica segment: one shard image a generation, with the small state beside it for saves.  Taken by a thread of their own
 * while the next step computes its gradients: until that step's agreement nothing changes what a snapshot consists of.
 */
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "proto/job_spec.h"
#include "worker/ckpt/shard.h"
#include "worker/rank/identity.h"
#include "worker/train/trainer.h"

struct snapshot;

/* fd: the replica segment, sized here; stays the caller's. */
int snapshot_new(const struct identity *id, const struct job_spec *spec, struct trainer *t, const struct dev_ops *ops, struct dev *dev, int fd, struct snapshot **ret,
                 struct error *e);
/* Waits for the one under way. */
struct snapshot *snapshot_free(struct snapshot *s);

/* "tp2.pp2.dp2/<trainer_fingerprint>" */
const char *snapshot_layout(const struct snapshot *s);
/* Of every image. */
size_t snapshot_bytes(const struct snapshot *s);
/* Begins to take the trainer's present state as the generation of its step, after the one before is done. The state must not change before snapshot_wait has returned. */
int snapshot_start(struct snapshot *s, uint64_t epoch, struct error *e);
/* Until no snapshot is under way; what became of the last one. */
int snapshot_wait(struct snapshot *s, struct error *e);
/* The newest one begun by this process: its image, and the small state as JSON. step 0: none. */
uint64_t snapshot_newest(const struct snapshot *s, const void **ret_image, size_t *ret_len, const char **ret_state);
/*
 * The newest one's image stays as it is until snapshot_unpin; -EBUSY when another is pinned.  The next two may be called from any thread: pinned waits until it is whole
 * and gives its digest.
 */
int snapshot_pin(struct snapshot *s);
int snapshot_pinned(struct snapshot *s, struct digest *ret, struct error *e);
void snapshot_unpin(struct snapshot *s);
/* Time that training has waited for snapshots since the last call, in ns. */
uint64_t snapshot_take_waited(struct snapshot *s);
/*
 * Would the next snapshot be written into memory that was used before?  First use costs many times the copying (seconds a gigabyte where the machine is a guest that its host has not given
 * the memory yet), which training must not wait for: it is brought in beside the first steps.
 */
bool snapshot_ready(struct snapshot *s);
/* True once when the device cannot write into replica memory by itself: why. Snapshots are taken all the same. */
bool snapshot_told_slow(struct snapshot *s, char *buf, size_t size);
/* Back into the trainer: our own generation of that step, digest verified. epoch: under which it must have been written. */
int snapshot_restore(struct snapshot *s, uint64_t step, uint64_t epoch, struct error *e);
