/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The flight recorder: one shared-memory segment (memfd) a rank, made by the spawner, mapped by the rank (read-write) and
 * the worker agent.  It outlives the rank, so that it can be read when the rank is stuck or gone: who has not entered
 * collective N.  It is also where the rank's death shows first (the robust mutex `alive`: EOWNERDEAD in 0.3 ms) and where its
 * lease stands.
 *
 * Writers: the rank writes all but `lease_deadline_ns`, which the agent writes.  Single words are atomic; an entry of the ring
 * is valid when its `seq` is the one looked for before and after reading it.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define FLIGHT_MAGIC 0x46503846u /* "FP8F" */
#define FLIGHT_VERSION 3
#define FLIGHT_RING 256

enum flight_op { FLIGHT_ALL_REDUCE = 1, FLIGHT_REDUCE_SCATTER, FLIGHT_ALL_GATHER, FLIGHT_BROADCAST, FLIGHT_SEND, FLIGHT_RECV, FLIGHT_BARRIER };

/* Tags of a training rank's groups: what the controller needs to know who must meet whom. */
enum flight_group { FLIGHT_WORLD, FLIGHT_TP, FLIGHT_DP, FLIGHT_PP, FLIGHT_STAGE /* tp x dp */, FLIGHT_EMBED /* first and last stage */, N_FLIGHT_GROUPS };

struct flight_entry {
        _Atomic uint64_t seq; /* number of the collective on this rank, from 1 in each epoch; 0: empty */
        uint32_t op, group;   /* enum flight_op; tag of the group */
        uint64_t bytes, number; /* number: of this collective in its group, from 1 in each epoch, the same on all its members; 0: SEND and RECV */
        int32_t to, from;     /* SEND, RECV: the other ranks of the job; -1: none */
        _Atomic uint64_t entered_ns, left_ns; /* CLOCK_MONOTONIC; left 0: still in it */
};

enum flight_phase { FLIGHT_STARTING, FLIGHT_PARKED, FLIGHT_LOADING, FLIGHT_JOINING, FLIGHT_FORWARD, FLIGHT_REDUCE, FLIGHT_AGREE, FLIGHT_UPDATE, FLIGHT_GATHER, FLIGHT_SNAPSHOT, FLIGHT_EVAL, FLIGHT_DONE, N_FLIGHT_PHASES };

struct flight {
        uint32_t magic, version;
        uint64_t size;                       /* sizeof(struct flight) of the maker */
        pthread_mutex_t alive;               /* robust, process-shared; held by the rank's main thread for its whole life */
        _Atomic uint32_t alive_held;         /* 1 once the rank holds it */
        _Atomic uint32_t pid;
        _Atomic uint64_t lease_deadline_ns;  /* CLOCK_MONOTONIC; past it no optimizer step may commit; 0: none given yet */
        _Atomic uint64_t epoch, step, phase; /* phase: enum flight_phase */
        _Atomic uint64_t phase_since_ns;
        /* Progress of the rank that reports losses (has_loss); doubles as their bits. */
        _Atomic uint32_t has_loss;
        _Atomic uint64_t loss, loss_first, val_loss, tokens_per_s;
        _Atomic uint64_t skipped_steps, tokens, memory_bytes;
        _Atomic uint64_t waited_ns;          /* in collectives, since the phase began */
        _Atomic uint64_t busy_ns[N_FLIGHT_PHASES]; /* by phase, collectives not counted: what a rank takes for itself */
        _Atomic uint64_t stall_ns;           /* the job's collective timeout; 0: not known */
        _Atomic uint64_t met[N_FLIGHT_GROUPS]; /* number of the newest collective in each group */
        _Atomic uint64_t head;               /* number of the newest entry */
        struct flight_entry ring[FLIGHT_RING];
};

/* A valid entry, copied. */
struct flight_record {
        uint64_t seq;
        uint32_t op, group;
        uint64_t bytes, number, entered_ns, left_ns;
        int32_t to, from;
};

/* What is entered. */
struct flight_call {
        enum flight_op op;
        uint32_t group;
        uint64_t bytes, number;
        int32_t to, from;
};

/* A new memfd with an initialised recorder, sealed in size. One for each incarnation of a rank. */
int flight_create(int *ret_fd, struct error *e);
/* Maps one; magic, version and size are checked (a longer one of a later minor maker is fine). munmap by flight_unmap. */
int flight_map(int fd, struct flight **ret, struct error *e);
struct flight *flight_unmap(struct flight *f);
/* By the rank's main thread, once; held until that thread ends. -EBUSY when it is or was held. */
int flight_hold(struct flight *f, struct error *e);
/* Blocks until the holder dies (returns 0, then and on every later call), or returns -ETIMEDOUT after timeout_ns; -EAGAIN: not held yet. */
int flight_wait_death(struct flight *f, uint64_t timeout_ns);
/* Numbers of collectives begin at 1 again. Between collectives only. */
void flight_begin_epoch(struct flight *f, uint64_t epoch);
uint64_t flight_enter(struct flight *f, const struct flight_call *call);
void flight_leave(struct flight *f, uint64_t seq);
/* False when this collective is no longer, or not yet, in the ring. The newest is number f->head. */
bool flight_read(const struct flight *f, uint64_t seq, struct flight_record *ret);
void flight_set_phase(struct flight *f, enum flight_phase phase);
/* False past the lease, and while none was given. */
bool flight_lease_ok(const struct flight *f);
const char *flight_op_name(uint64_t op);
const char *flight_phase_name(uint64_t phase);
const char *flight_group_name(uint64_t group);
