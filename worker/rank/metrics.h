/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What a step leaves for people: rows of metrics.jsonl (PROTOCOL.md, "Metrics rows") and the figures in the flight recorder. */
#include <stdint.h>

#include "base/error.h"
#include "proto/flight.h"
#include "proto/fp8ctl.pb-c.h"
#include "proto/job_spec.h"
#include "worker/rank/identity.h"
#include "worker/train/trainer.h"

struct metrics;

int metrics_new(const struct identity *id, const struct job_spec *spec, struct trainer *t, struct flight *flight, struct metrics **ret, struct error *e);
struct metrics *metrics_free(struct metrics *m);
/* After loading: the recorder shows where the rank stands. */
void metrics_loaded(struct metrics *m);
/* Appends the row (only where losses are reported). Before the step's snapshot: a step whose snapshot exists has its row. */
struct metrics_ckpt {
        uint64_t waited_ns;                                        /* for the snapshot of the step before */
        uint64_t saves_skipped, replicas_skipped, replicas_missed; /* since the rank began */
        uint64_t replica_bytes, replica_rdma_bytes;                /* of second copies delivered; likewise */
        uint64_t local_copies, local_skipped;                      /* on the node's disk; likewise */
};
void metrics_row(struct metrics *m, uint64_t epoch, const struct step_result *r, const struct metrics_ckpt *k);
/* What the FP8 tensors told in the step just done, if it was one of those: before its row, so that who sees the row has them. */
void metrics_fp8_rows(struct metrics *m, uint64_t epoch, uint64_t step);
/* Puts the step into the recorder, its number last. After the snapshot. */
void metrics_progress(struct metrics *m, const struct step_result *r);
void metrics_fill(const struct metrics *m, Fp8ctl__V1__RankProgress *ret);
