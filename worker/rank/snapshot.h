/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Snapshots of a rank's state in its replica segment: one shard image a generation, with the small state beside it for saves. */
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
struct snapshot *snapshot_free(struct snapshot *s);

/* "tp2.pp2.dp2/<trainer_fingerprint>" */
const char *snapshot_layout(const struct snapshot *s);
/* Of every image. */
size_t snapshot_bytes(const struct snapshot *s);
/* The trainer's present state as the generation of its step, complete on return (replica.h says why it must be). */
int snapshot_take(struct snapshot *s, uint64_t epoch, struct error *e);
/* The newest one taken by this process: its image, and the small state as JSON. step 0: none. */
uint64_t snapshot_newest(const struct snapshot *s, const void **ret_image, size_t *ret_len, const char **ret_state);
/* Back into the trainer: our own generation of that step, digest verified. epoch: under which it must have been written. */
int snapshot_restore(struct snapshot *s, uint64_t step, uint64_t epoch, struct error *e);
