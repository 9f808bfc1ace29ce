/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the files of session.c share: the rank itself, how it leaves an epoch (session_end.c), and how it waits (session_wait.c). */
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/rdma.h"
#include "proto/flight.h"
#include "proto/job_spec.h"
#include "worker/comm/comm.h"
#include "worker/rank/control.h"
#include "worker/rank/identity.h"
#include "worker/rank/local_tier.h"
#include "worker/rank/loss_watch.h"
#include "worker/rank/metrics.h"
#include "worker/rank/replicate.h"
#include "worker/rank/report.h"
#include "worker/rank/save.h"
#include "worker/rank/snapshot.h"
#include "worker/rank/states.h"
#include "worker/train/trainer.h"

struct session {
        struct identity me;
        const struct identity *id; /* me, which is a rank once session_open is through */
        struct job_spec *spec;
        struct flight *flight;
        struct comm_abort *abort;
        struct comm_listener *listener;
        struct comm_device *collectives; /* NULL: the device's memory is the host's, or the job has one rank */
        struct control *control;
        const struct dev_ops *ops;
        struct dev *dev;
        struct trainer *trainer;
        struct snapshot *snapshot;
        struct save *save;
        struct local_tier *local;
        struct rdma *rdma; /* NULL: no device */
        struct replicate *replicate;
        struct metrics *metrics;
        int state; /* enum rank_state */
        uint64_t began; /* to be this rank */

        /* of the epoch */
        Fp8ctl__V1__ControllerMessage *plan;
        struct comm_mesh *mesh;
        uint64_t epoch, saved_step; /* a save was begun of it last */
        struct report_loaded loaded;
        bool rolled_back; /* past bad batches, and no step was made since */
        bool stopped;
        bool device_broken; /* it has failed in a way that stays: the process must be replaced */

        struct loss_watch losses;
        uint64_t later; /* steps without a snapshot, because replica memory was still being brought in */
};

/* session.c */
void session_start_save(struct session *s, uint64_t step, uint32_t attempt);

/* session_end.c */
int session_move(struct session *s, enum rank_event event, struct error *e);
void session_leave_epoch(struct session *s);
/* The controller has already said what comes next: then it knows more than we do. */
bool session_overtaken(struct session *s);
/* Tells a fault and parks; the controller makes of it what it will. */
int session_fault(struct session *s, Fp8ctl__V1__RankFault__Kind kind, uint64_t step, int peer, const char *text, struct error *e);
/* r: a positive condition of comm.h, or a negative error, from inside an epoch. negative: LOAD_FAILED or FATAL, what a negative one is told as. */
int session_broken(struct session *s, int r, Fp8ctl__V1__RankFault__Kind negative, struct error *why, struct error *e);

/* session_wait.c: until the next order, which it carries out. */
int session_wait_for_orders(struct session *s, struct error *e);
