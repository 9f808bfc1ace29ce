/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the files of this folder share. Tests of the engine look inside through it too. */
#include <stdatomic.h>

#include "worker/data/dataset.h"
#include "worker/model/model.h"
#include "worker/train/loss_scaler.h"
#include "worker/train/schedule_1f1b.h"
#include "worker/train/trainer.h"
#include "worker/train/zero.h"

/* Communicators of an epoch. */
struct groups {
        struct comm *world;
        struct comm *tp;
        struct comm *dp;
        struct comm *pp;    /* group index = stage */
        struct comm *stage; /* all tp x dp ranks of the stage */
        struct comm *embed; /* first and last stage, when they share the embedding; NULL elsewhere */
};

/* Everything besides tensors that a later step depends on. */
struct progress {
        uint64_t step;      /* steps done, skipped ones included */
        uint64_t data_step; /* batches passed; differs from step after a rollback past bad batches */
        uint64_t updates;   /* optimizer steps committed: the schedule's position and Adam's t */
        uint64_t skipped_total, consecutive_skips;
        uint64_t tokens;
        double loss_first, val_loss; /* NaN: not known yet */
        struct loss_scaler scaler;
};

/* Tensors as dev_ops.grad_stats takes them. */
struct stats_list {
        int n;
        const dev_real **grads;
        int64_t *counts;
        double *factors;
        uint64_t *findings;
};

struct optimizer {
        dev_real *master;     /* [zero_count] */
        void *m, *v;      /* [zero_count] moments */
        dev_real *shard_grad; /* [zero_count], reduced over dp; inside model.grads when dp = 1 */
        enum dtype moments;
        struct step_params *params; /* device */
        double *sumsq;              /* device [2]: counted ones; the rest, looked at for finiteness only */
        struct adamw_tensor *list;  /* [zero.n_pieces] */
        struct adamw_tensor *sorted;/* the same in the order of the flat buffer, which the update goes through in parts */
        int parts;
        int64_t *part_cuts;         /* [dp][parts + 1], elements: what of each rank's shard a part is */
        size_t *offsets, *sizes;    /* [dp], bytes: of a part */
        struct stats_list local;    /* whole gradients of this rank, before the reduction, in the order of the flat buffer */
        struct stats_list counted, uncounted; /* reduced pieces */
};

/* Gradients that are summed together, see reduce.c. */
struct bucket {
        int64_t lo, hi;     /* of the flat buffer, elements */
        size_t *counts;     /* [dp] of it, that each rank owns */
        dev_real *out;      /* where this rank's go */
        int stats, n_stats; /* of optimizer.local */
};

struct reducer {
        struct dev_stream *stream; /* of what goes on beside the model's; on the CPU and with dp = 1 the model's */
        struct dev_stream *own;
        struct bucket *buckets;    /* from the end of the buffer downwards */
        int n, next;
};

/* What one rank brings to the agreement. */
struct vote {
        uint64_t finding; /* first non-finite value seen, FINDING_NONE */
        double amax;      /* of it */
        double sumsq;     /* of this rank's gradient pieces, shared ones counted once */
        double loss_sum;
        int64_t labelled;
        uint64_t requests, step, data_step;
        uint64_t checksum; /* of its parameters; 0: not due */
};

/* Room for the statistics of all sites of all layers. */
struct fp8_stats {
        struct quant_stats *own;   /* [this stage's sites] */
        double *sums, *amax;       /* [3][all sites], [all sites] */
        struct fp8_tensor *list;   /* [all sites] */
        size_t n;                  /* of them valid */
};

struct trainer {
        struct trainer_config config;
        const struct job_spec *spec;
        struct layout layout;
        struct tensor_table table;
        struct zero zero;
        struct model model;
        struct optimizer optimizer;
        struct reducer reducer;
        struct groups groups;
        struct dataset *data;
        struct progress progress;
        struct fp8_stats fp8;
        struct schedule_action *actions; /* [2 * n_micro] */
        int n_actions;
        struct vote *votes;              /* [n_ranks] */
        size_t *sizes, *counts;          /* [dp]: of the ZeRO collectives */
        struct digest *digests;          /* [n_ranks] */
        bool *odd;                       /* [n_ranks]: checksums of the newest step that differed */
        bool flipped;                    /* by test.flip_step */
        uint64_t clean_step;             /* the newest step that was made of parameters that agreed, or were loaded */
        void *staging;                   /* host, STAGING_BYTES */
        int32_t *host_batch;             /* [5 * T + 8] ids, labels, cu, pos, doc */
        int32_t *doc_starts;             /* [seq_len] */
        dev_real *host_losses;               /* [n_micro] */
        int64_t labelled;                /* of this step, this rank's micro-batches */
        struct shard_tensor *state;
        size_t n_state;
        _Atomic uint32_t requests;
        int (*before_agree)(void *arg, struct error *e);
        void *before_agree_arg;
        bool state_valid;                /* made or loaded, and no step has failed since: then it may lie between two steps */
        bool weights_valid;              /* working copies stand for the master weights */
        char fingerprint[512];
};

#define STAGING_BYTES ((size_t)1 << 20)

int groups_new(struct groups *g, const struct layout *l, bool tied, struct comm_mesh *m, struct error *e);
void groups_free(struct groups *g);

/* Sequences [index, index + micro_batch) into a slot's batch. */
int batch_load(struct trainer *t, int slot, bool validation, uint64_t index, struct error *e);

/* All micro-batches forward and backward; gradients and losses are left in the model. */
int pipeline_run(struct trainer *t, struct error *e);
/* One micro-batch forward only, through all stages; *loss_sum is added to on the last stage. */
int pipeline_forward(struct trainer *t, int slot, dev_real *loss_sum, struct error *e);

/* Arena sizes and pointers (called in both passes), then the lists over them. */
void optimizer_take(struct trainer *t, struct arena *arenas);
int optimizer_lists(struct trainer *t, struct error *e);
void optimizer_done(struct optimizer *o);
int optimizer_init_state(struct trainer *t, struct error *e);
/* Sums over tp (norms), the tied stages and what is left to be summed over dp; then finiteness and sum of squares of what this rank owns. */
int optimizer_reduce(struct trainer *t, struct error *e);
/* Part by part; the working copies of a part go to all dp ranks while the next one is updated, those of the last one in optimizer_update_end. */
int optimizer_update(struct trainer *t, double lr, double grad_scale, struct error *e);
int optimizer_update_end(struct trainer *t, struct error *e);
/* Working copies of all shards to all dp ranks. */
int optimizer_gather(struct trainer *t, struct error *e);
/* Working copies of this rank's shard from its master weights. */
int optimizer_cast(struct trainer *t, struct error *e);

int reducer_init(struct trainer *t, struct error *e);
void reducer_done(struct trainer *t);
/* Before the step's first gradient. */
int reduce_begin(struct trainer *t, struct error *e);
/* arg: the trainer. All gradients from this offset on are final: buckets that lie above it go. */
int reduce_down_to(void *arg, int64_t offset, struct error *e);
/* What is enqueued for the model from now on comes after all buckets that went. */
int reduce_end(struct trainer *t, struct error *e);

/* What the ranks decided together, the same on all of them. */
struct agreement {
        uint64_t finding;
        double amax, sumsq, loss_sum;
        int64_t labelled;
        uint32_t requests;
};
int agree(struct trainer *t, struct agreement *ret, struct error *e);
/* All ranks' digests of their master weights and moments, hashed in rank order. */
int state_digest(struct trainer *t, struct digest *ret, struct error *e);
int digest_add(struct trainer *t, struct digest_stream *s, const void *device, size_t bytes, struct error *e);
/* -EPROTO unless all ranks are at the same position. */
int agree_position(struct trainer *t, struct error *e);

/* Of the working parameters, which all replicas have alike; 0: not due in this step. */
int replica_checksum(struct trainer *t, uint64_t *ret, struct error *e);
/* Whose differs from those of the other replicas, by majority; where there is none all of them. How many. */
int replica_odd(const struct layout *l, const struct vote *votes, bool *odd);
int replica_check(struct trainer *t, struct error *e); /* after the votes are in. -EILSEQ: they differ */

int fp8_stats_init(struct trainer *t, struct error *e);
void fp8_stats_done(struct fp8_stats *f);
/* Before and after a step's micro-batches. */
int fp8_stats_begin(struct trainer *t, struct error *e);
void fp8_stats_end(struct trainer *t);
/* When the step is decided on: all ranks' figures put together. */
int fp8_stats_gather(struct trainer *t, struct error *e);

int evaluate(struct trainer *t, double *ret_loss, struct error *e);
int state_list(struct trainer *t, struct error *e);

/* Test hooks of the job file. */
void hook_kill(struct trainer *t, const char *point);
int hook_overflow(struct trainer *t, struct error *e);
void hook_slow(struct trainer *t);
int hook_flip(struct trainer *t, struct error *e);

void trainer_phase(struct trainer *t, enum flight_phase phase);
