/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Rank processes for tests and benchmarks of worker/comm: forked, met through shared memory, their failures reported by the parent. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>

#include "worker/comm/comm.h"

#define RANKS_MOST 16

struct ranks_shared {
        pthread_barrier_t met; /* all of them, endpoints written */
        char endpoint[RANKS_MOST][256];
        char failure[RANKS_MOST][1024];
        _Atomic uint64_t value[64]; /* for the test's own use */
};

struct ranks {
        int n;
        bool tcp; /* every rank on a node of its own */
        int timeout_ms, connect_timeout_ms;
        char dir[64];
        pid_t pids[RANKS_MOST];
        struct ranks_shared *shared;
        void (*fn)(struct ranks *r, int rank);
        void *arg;
        /* in a child: */
        int rank;
        struct comm_listener *listener;
        struct comm_abort *abort;
};

/* Starts n processes that run fn; fields n, fn and others are set by the caller, the rest zero. */
void ranks_start(struct ranks *r);
/* Waits for all; 0: each returned from fn; else how many failed, their reasons printed. `killed` (a rank or -1) may have died of a signal. */
int ranks_wait(struct ranks *r, int killed);
/* In a child: a mesh of all ranks (incarnation 100 + rank, key of the epoch). */
struct comm_mesh_config ranks_config(struct ranks *r, uint64_t epoch, struct comm_peer *peers);
int ranks_mesh(struct ranks *r, uint64_t epoch, struct comm_mesh **ret, struct error *e);
struct comm *ranks_world(struct ranks *r, struct comm_mesh *m);
/* In a child: ends the process with this as its reason. */
void ranks_fail(struct ranks *r, const char *fmt, ...) __attribute__((format(printf, 2, 3), noreturn));

#define RANK_CHECK(r, cond)                                                                     \
        do {                                                                                    \
                if (!(cond))                                                                    \
                        ranks_fail((r), "%s:%d: not true: %s", __FILE__, __LINE__, #cond);      \
        } while (0)
#define RANK_OK(r, call, err)                                                                   \
        do {                                                                                    \
                int rank_rc = (call);                                                           \
                if (rank_rc != 0)                                                               \
                        ranks_fail((r), "%s:%d: rc %d: %s", __FILE__, __LINE__, rank_rc, (err).text); \
        } while (0)
