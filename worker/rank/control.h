/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The control thread: reads the spawner's socket, so that an abort reaches a rank that is deep in a collective, and keeps the lease timer
 * armed.  What it learns waits in a mailbox until the main thread looks.  Orders of an epoch that is over are dropped here.
 */
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "proto/flight.h"
#include "proto/fp8ctl.pb-c.h"
#include "worker/comm/comm.h"
#include "worker/rank/identity.h"

enum control_news {
        NEWS_ABORT = 1,   /* leave the epoch */
        NEWS_PLAN = 2,
        NEWS_RELEASE = 4,
        NEWS_SAVE = 8,
        NEWS_STOP = 16,
        NEWS_GONE = 32,   /* the spawner hung up */
};

struct control_stop {
        bool save;
        uint64_t step; /* 0: the next one that all can make */
        char reason[256];
};

struct control;

/* A new ReplicaPlan of the live epoch; called by the control thread. */
typedef void (*control_replicas_fn)(void *arg, const Fp8ctl__V1__ReplicaPlan *m);

/* fd: this process's end of the spawner's socket, blocking; stays the caller's. */
int control_new(const struct identity *id, int fd, struct flight *flight, struct comm_abort *abort, struct control **ret, struct error *e);
struct control *control_free(struct control *c);

/* Who is told of changed plans for replicas; NULL: nobody any more, and a call under way is over. */
void control_on_replicas(struct control *c, control_replicas_fn fn, void *arg);
/* Any thread. An error means that the spawner is gone. */
int control_send(struct control *c, Fp8ctl__V1__WorkerMessage *m);

/* Waits until any of `mask` is there, or timeout_ms (-1: no limit); returns all news there is. */
unsigned control_wait(struct control *c, unsigned mask, int timeout_ms);
/* The epoch of the newest abort, which is then no news any more; 0: none. */
uint64_t control_take_abort(struct control *c, char *ret_reason, size_t size);
/* The newest plan (free with fp8ctl__v1__controller_message__free_unpacked), NULL when it was overtaken. Clears the abort handle for the new epoch. */
Fp8ctl__V1__ControllerMessage *control_take_plan(struct control *c);
/* A save asked for at this step, or at any (`any`: those with step 0 too); one a call. Saves of steps past are given with *ret_late. */
bool control_take_save(struct control *c, uint64_t step, bool any, uint32_t *ret_attempt, bool *ret_late);
/* True while a save without a step waits. */
bool control_save_wanted(struct control *c);
/* The stop asked for, if any; it stays until the next plan. */
bool control_stop_wanted(struct control *c, struct control_stop *ret);
