/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the agent's files share: one struct, owned by the loop's thread. */
#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "base/loop.h"
#include "proto/flight.h"
#include "proto/fp8ctl.pb-c.h"
#include "proto/rpc_client.h"
#include "worker/agent/agent.h"
#include "worker/agent/holder.h"
#include "worker/agent/lease.h"
#include "worker/agent/node.h"
#include "worker/agent/outbox.h"
#include "worker/agent/task.h"
#include "worker/agent/watcher.h"
#include "worker/health/health.h"

#define AGENT_PROTOCOL_MIN 1
#define AGENT_PROTOCOL_MAX 1
#define AGENT_HELD_MAX 1024
#define AGENT_PREPARED_MAX 8 /* of a rank; the newest */

/* A rank process of this node, as the spawner told us. */
struct local_rank {
        struct local_rank *next;
        struct agent *agent;
        uint64_t job_id, epoch, incarnation;
        uint32_t rank, device, pid;
        Fp8ctl__V1__RankPhase phase;
        char endpoint[512];
        struct flight *flight;
        int replica_fd;          /* -1: none */
        struct watcher *watcher;
        bool death_told;         /* by the mutex, before the spawner reaped it */
        bool released;
        int await_steps;         /* so many of its next steps beyond seen_step are told to the controller at once */
        uint64_t seen_step;      /* from its plan: steps up to it are done again */
        bool exited;
        int exit_status, signal;
        bool oom;
        char cause[512];
        Fp8ctl__V1__RankDiagnosis *stalled; /* its threads when it last stood still for half of its job's timeout, and so once each time; NULL: it never did */
        uint64_t stalled_ns, seen_head, seen_phase_ns;
        bool stall_seen, stall_new; /* in the state it is in; just now */
        ProtobufCMessage *prepared[AGENT_PREPARED_MAX]; /* CheckpointPrepared that the controller did not answer, the oldest first */
        size_t n_prepared;
};

struct agent {
        const struct agent_config *config;
        struct loop *loop;
        struct tasks *tasks;
        struct node_info node;
        struct rdma *rdma; /* NULL: no device */
        struct holder *holder;
        struct health *health;
        bool testing;
        struct node_test *test; /* that runs; NULL: none, or of another kind */
        struct canary *canary;  /* NULL: none */
        struct rollout_hook *rollout; /* the change that is being made; NULL: none */
        struct last_gasp *gasp; /* NULL: not asked for */

        /* the spawner (link.c) */
        int link_fd;
        struct loop_source *link_source;
        struct outbox *link_out;
        bool synced;

        /* the controller (stream.c) */
        struct rpc_client *client;
        struct rpc_stream *stream;
        struct loop_source *reconnect, *heartbeat, *lease_timer, *fast;
        bool welcomed;
        uint64_t hello_sent_ns, opened_ns, last_ack_ns, heartbeat_ns;
        uint32_t failures;             /* in a row, for the log */
        uint64_t dropped;              /* messages of another epoch, incarnation or lease number, and those not understood */
        struct lease lease;
        char cluster[40];                       /* of the newest welcome; names folders on this node's disk */
        char why[512];                          /* the stream was closed last */
        ProtobufCMessage *held[AGENT_HELD_MAX]; /* WorkerMessages said while nobody listened */
        size_t n_held;

        struct local_rank *ranks;
        struct local_standby *standbys; /* local_standby.c */

        /* leaving */
        bool leaving, ready_told;
        uint64_t leave_deadline_ns;
        struct loop_source *leave_timer, *watchdog, *signals[3];
        int end;
};

/* local_standby.c: the agent's view of the standbys on its node */
void local_standby_update(struct agent *a, Fp8ctl__V1__StandbyStatus *m, int flight_fd);
size_t local_standbys(const struct agent *a);
void local_standbys_status(const struct agent *a, Fp8ctl__V1__StandbyStatus *ret); /* [local_standbys()] */
bool local_standby_on(const struct agent *a, uint32_t device); /* a warm one, which has it open */
void local_standbys_jobs(const struct agent *a, uint64_t *ret);                   /* likewise */
void local_standbys_set_lease(struct agent *a);
void local_standbys_free(struct agent *a);

/* stream.c */
int stream_start(struct agent *a, struct error *e);
void stream_stop(struct agent *a);
/* Sent now, or held (bounded) until the next welcome. */
void stream_send(struct agent *a, Fp8ctl__V1__WorkerMessage *m);
void stream_welcome(struct agent *a, const Fp8ctl__V1__Welcome *m);
void stream_acknowledged(struct agent *a, const Fp8ctl__V1__HeartbeatAck *m);
void stream_heartbeat(struct agent *a);
void stream_watch_steps(struct agent *a);

/* link.c */
int link_start(struct agent *a, struct error *e);
void link_stop(struct agent *a);
void link_send(struct agent *a, Fp8ctl__V1__AgentToSpawner *m);
void link_keep(void *agent, Fp8ctl__V1__KeptFd__Kind kind, uint64_t job, uint32_t rank, int fd);
void link_relay(struct agent *a, const struct local_rank *r, Fp8ctl__V1__ControllerMessage *m);
void link_kill(struct agent *a, uint64_t job, uint64_t epoch, uint32_t rank, uint64_t incarnation, const char *reason);

/* orders.c: what the controller says */
void orders_dispatch(struct agent *a, Fp8ctl__V1__ControllerMessage *m);

/* local_rank.c */
struct local_rank *local_rank_find(struct agent *a, uint64_t job, uint32_t rank, uint64_t incarnation);
/* fds of the flight recorder and the replica segment; the second may be -1 and is taken over. */
int local_rank_update(struct agent *a, const Fp8ctl__V1__SpawnerRank *m, int flight_fd, int replica_fd, struct error *e);
void local_rank_exited(struct agent *a, Fp8ctl__V1__RankExited *m);
void local_rank_note(struct local_rank *r, const Fp8ctl__V1__WorkerMessage *m);
void local_rank_release(struct agent *a, uint64_t job);
void local_ranks_set_lease(struct agent *a);
void local_ranks_free(struct agent *a);
size_t local_ranks_living(const struct agent *a);
/* Points into r and *ret_exited. */
void local_rank_status(const struct local_rank *r, Fp8ctl__V1__RankStatus *ret, Fp8ctl__V1__RankExited *ret_exited);
void local_rank_progress(const struct local_rank *r, Fp8ctl__V1__RankProgress *ret, double busy_ms[N_FLIGHT_PHASES]); /* points into busy_ms */

/* agent.c */
void agent_say_leaving(struct agent *a); /* with what is left of the grace */
bool agent_leaving(const struct agent *a, Fp8ctl__V1__WorkerLeaving *ret); /* false: it does not, or the grace is over */

/* prepared.c: CheckpointPrepared that are said again after a reconnection, until they are answered */
void prepared_keep(struct local_rank *r, const Fp8ctl__V1__WorkerMessage *m);
void prepared_answered(struct agent *a, uint64_t job, uint64_t epoch, uint64_t step, uint32_t attempt);
void prepared_forget(struct local_rank *r);
void prepared_send(struct agent *a);

/* local_files.c: copies of snapshots on this node's disk, in threads */
void local_files_say(struct agent *a);                                     /* of which jobs there are any; after a welcome */
void local_files_prune(struct agent *a, const Fp8ctl__V1__StartRanks *m); /* ranks come */
void local_files_release(struct agent *a, uint64_t job);

/* memory.c: a job's replica memory on this node */
struct memory {
        int *fds; /* duplicates, for a thread */
        size_t n, n_own; /* those of ranks of this node come first */
};
int memory_collect(struct agent *a, uint64_t job, struct memory *ret); /* -ENOMEM */
void memory_free(struct memory *m);

/* inventory.c, save_memory.c, preflight.c, fetch.c: answered later through stream_send */
void inventory_begin(struct agent *a, const Fp8ctl__V1__InventoryRequest *m);
void save_memory_begin(struct agent *a, const Fp8ctl__V1__SaveMemory *m);
void preflight_begin(struct agent *a, const Fp8ctl__V1__PreflightRequest *m);
void fetch_answer(struct agent *a, const Fp8ctl__V1__FetchRequest *m);
/* node_test.c */
void node_test_start(struct agent *a, const Fp8ctl__V1__NodeTestRequest *m);
/* What fp8-nodetest printed, which is cut into lines; the objects hold the parts' strings. */
size_t node_test_parts(char *output, Fp8ctl__V1__NodeTestPart *parts, json_t **objects, size_t max);
char *node_test_wrong(const struct agent *a); /* not NULL: a test wants it to fail; free() it */

/* pair_test.c: one end of a pair of nodes that measure what is between them */
void pair_test_start(struct agent *a, const Fp8ctl__V1__NodePairRequest *m);
/* reduce_test.c: the same by sums */
void reduce_test_start(struct agent *a, const Fp8ctl__V1__NodePairRequest *m);

/* rollout.c */
void rollout_change(struct agent *a, const Fp8ctl__V1__RolloutChange *m);
void rollout_close(struct agent *a);

/* canary.c: products with known digests on devices that nobody uses */
int canary_open(struct agent *a, struct error *e);
void canary_stop(struct agent *a); /* ranks come: the one that runs is ended */
void canary_close(struct agent *a);

/* diagnose.c */
void diagnose_begin(struct agent *a, const Fp8ctl__V1__DiagnoseRequest *m);
void diagnose_watch(struct agent *a); /* with each heartbeat: stacks of ranks that stand still, before somebody kills them */
void diagnose_forget(struct local_rank *r);
