/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The training engine of one rank: model shard, optimizer shard, data, schedule, scalers.  It knows groups and steps, not epochs or recovery: after any
 * non-zero return of trainer_step its live state is undefined and must be loaded again: trainer_sync refuses with -ESTALE until it was.
 */
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/hash.h"
#include "kernels/dev.h"
#include "proto/flight.h"
#include "proto/job_spec.h"
#include "worker/ckpt/shard.h"
#include "worker/comm/comm.h"

struct trainer;

struct trainer_config {
        const struct job_spec *spec;  /* kept by the caller for the trainer's life */
        const struct dev_ops *ops;
        struct dev *dev;
        int rank;                     /* (pp_index * dp + dp_index) * tp + tp_index */
        const char *collectives;      /* what makes sums between devices, for the fingerprint; NULL: the host */
        struct flight *flight;        /* may be NULL */
        bool test_hooks_armed;        /* kill_* hooks fire (first incarnation only) */
        int64_t bucket_bytes;         /* of gradients that are summed together, at least; 0: 32 MiB. Smaller ones in tests, whose models are small */
};

/* One optimizer step as it is reported. All ranks get step, skipped, grad_norm, loss (averaged over the global batch). */
struct step_result {
        uint64_t step;          /* 1-based number of the step now finished (skipped ones count: the data position advances) */
        float loss;             /* nats per token, mean over the global batch; the value whose 32 bits are compared */
        double grad_norm, lr, loss_scale;
        bool skipped;
        uint64_t skipped_total, consecutive_skips;
        uint64_t tokens;        /* in all, this step included */
        double val_loss;        /* NaN unless evaluated in this step */
        bool has_digest;
        struct digest state_digest; /* over all ranks' master weights and moments, in rank order */
        /* first offender of a skipped step, the same on all ranks */
        int bad_rank;
        char bad_tensor[SHARD_NAME_MAX]; /* layer and tensor by its global name */
        double bad_amax;
        uint64_t memory_bytes;  /* peak of this rank */
        double ms;
        double loss64;          /* before rounding to float; for comparisons in the FP64 build */
        uint32_t agreed_requests; /* TRAINER_REQUEST_* bits of any rank, the same on all ranks: they act at the end of this step */
};

/* Asked-for saves and stops travel with the agreement of a step, so that every rank acts at the end of the same one. */
#define TRAINER_REQUEST_SAVE 1u
#define TRAINER_REQUEST_STOP 2u
#define TRAINER_REQUEST_SAVE_BUSY 4u /* a rank still writes an earlier save: none begins at this step */
#define TRAINER_REQUEST_REPLICA_BUSY 8u     /* a rank's snapshot is still on its way to a peer's memory */
#define TRAINER_REQUEST_REPLICA_MISSING 16u /* a rank's snapshot did not get there */
#define TRAINER_REQUEST_LOCAL_BUSY 32u      /* a rank still writes its copy on the node's disk */
#define TRAINER_REQUEST_SNAPSHOT_LATER 128u /* a rank's replica memory is still being brought in: no snapshot of this step unless it is saved */
#define TRAINER_REQUEST_LOCAL_MISSING 64u   /* a rank's copy could not be written */

int trainer_new(const struct trainer_config *c, struct trainer **ret, struct error *e); /* allocates everything; opens the data */
struct trainer *trainer_free(struct trainer *t);

/*
 * Before the first epoch: a micro-batch forward and backward on whatever the buffers hold, so that a device has loaded its kernels and planned its products before others wait for a step.
 * The state is undefined afterwards, as after a step that failed.  Does nothing with tp > 1, whose layers need their peers.
 */
int trainer_rehearse(struct trainer *t, struct error *e);
/* Communicators of an epoch; replaces (and frees) those of an earlier one. The mesh stays the caller's and must outlive them. */
int trainer_attach(struct trainer *t, struct comm_mesh *m, struct error *e);
void trainer_detach(struct trainer *t);

/* State: fresh from the seed (equal for every layout), or read back through the list + small state below, then synchronised. */
int trainer_init(struct trainer *t, struct error *e);
/* What a snapshot consists of. The list is fixed for the trainer's life. */
void trainer_state(struct trainer *t, const struct shard_tensor **ret_list, size_t *ret_n);
/* Until the device has done all that it was told: another stream may read the state then. */
int trainer_settle(struct trainer *t, struct error *e);
#define TRAINER_STATE_JSON_MAX 4096
/* Small state as JSON: step, data position, RNG, loss scaler, skip counters, loss_first, tokens, val_loss, fingerprint. buf of TRAINER_STATE_JSON_MAX. */
int trainer_state_json(struct trainer *t, char *buf, size_t size, struct error *e);
int trainer_set_state_json(struct trainer *t, const char *json, struct error *e);
/* After loading: working weights from master weights (all-gather over dp), quantised forms, cross-rank checks (all at the same step). 0, condition > 0, or negative. */
int trainer_sync(struct trainer *t, struct error *e);

/* After trainer_step returned -EILSEQ: the ranks in question, the one whose parameters differ from all others' (-1: only that they differ), and the newest step made of sound ones. */
size_t trainer_suspects(const struct trainer *t, uint32_t *ret, size_t max, int *ret_odd, uint64_t *ret_clean);
uint64_t trainer_step_number(const struct trainer *t); /* steps done */
double trainer_loss_first(const struct trainer *t);
bool trainer_reports_loss(const struct trainer *t);    /* the rank that writes the metrics: last stage, dp 0, tp 0 */
/* What quantising did to an FP8 tensor in a step, over all ranks and micro-batches. */
struct fp8_tensor {
        int layer;
        const char *name;         /* inside the layer: "mlp.down_proj.input" */
        double amax;              /* NaN where a value was */
        double saturated, flushed; /* shares of its elements: clipped at the format's greatest value; not zero before, zero after */
};
/* Of the step just done, by layer; none unless it was one of metrics.fp8_every. The same on all ranks, until the next step. */
size_t trainer_fp8(const struct trainer *t, const struct fp8_tensor **ret);
int64_t trainer_tokens_per_step(const struct trainer *t);
/* One line: what the arenas hold, in MB, for the log. */
void trainer_memory_plan(const struct trainer *t, char *buf, size_t size);
const char *trainer_fingerprint(const struct trainer *t);
/* Called in each step before its agreement: the last moment at which the state of the step before is what it was. Not 0: trainer_step returns that. */
void trainer_before_agree(struct trainer *t, int (*fn)(void *arg, struct error *e), void *arg);
/* One step. 0, a positive comm condition, -ECANCELED (lease lost before the commit), -EILSEQ (replicas' parameters differ), or another negative errno. */
int trainer_step(struct trainer *t, struct step_result *ret, struct error *e);
/* From any thread: bits for the next agreement. */
void trainer_request(struct trainer *t, uint32_t bits);
/* Rollback past bad batches: the data goes on at the position that `step` undisturbed steps end at (never backwards); weights as loaded. */
void trainer_skip_data_to(struct trainer *t, uint64_t step);
