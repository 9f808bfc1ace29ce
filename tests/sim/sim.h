/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A whole cluster in one process on virtual time: the true controller core, a store that commits late, streams that lose what is under way when they break, and
 * workers whose ranks step together.  Everything random comes from one seed: a failing run replays exactly.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/core/controller.h"

#define MS UINT64_C(1000000)
#define SEC UINT64_C(1000000000)

enum { SIM_KEEP_LAST = 3, SIM_WORDS_MAX = 8 /* as AGENT_PREPARED_MAX */ };
enum { SIM_NODES = 5, SIM_DEVICES = 2, SIM_BIG_DEVICES = 8 /* in runs of more nodes (scale.c) */, SIM_RANKS_MAX = 64, SIM_REPLICAS_MAX = 1024, SIM_WORLD_MAX = 4096 };

struct sim;

struct ev {
        uint64_t at, seq;
        void (*fn)(struct sim *s, struct ev *e);
        uint64_t a, b, c, d;
        uint8_t *data;
        size_t len;
};

struct kv {
        char *key;
        uint8_t *value;
        size_t len;
};

struct item {
        enum { ITEM_SEND, ITEM_CLOSE, ITEM_REPLY, ITEM_FILE } kind;
        uint64_t id;
        int file; /* its kind */
        int status;
        char *text;
        uint8_t *data;
        size_t len;
};

struct batch {
        struct kv *ops;
        int *kinds;
        size_t n_ops;
        struct item *items;
        size_t n_items;
};

struct stream {
        uint64_t id;
        int node;
        bool up;
        uint64_t last_down, last_up; /* nothing overtakes within a stream */
};

struct replica {
        uint64_t job, step, epoch;
        uint32_t rank, world;
        bool held; /* for a rank of another node */
};

/* What the segment of a rank says is kept. */
struct keep {
        uint64_t job, step;
        uint32_t rank;
};

/* What a rank said of its shard of a save; its worker keeps it until it is answered. */
struct word {
        uint64_t epoch, step;
        uint32_t attempt;
        bool failed;
};

/* As enum RankPhase. */
enum proc_phase { PROC_STARTING, PROC_PARKED, PROC_LOADING, PROC_RUNNING, PROC_DONE, PROC_EXITED };

/* A rank process. */
struct proc {
        bool used, dead, reaped, faulted, planned, meshed, stop, done, hangs, told_stopped;
        uint64_t job, epoch, start_epoch, incarnation, step, pending_abort;
        uint32_t rank, device, world, attempt;
        uint32_t save_attempt;
        int phase, signal;
        char ckpt[16];
        uint64_t gen; /* of the node's life */
        uint64_t written; /* when what it writes now will be */
        struct word words[SIM_WORDS_MAX];
        size_t n_words;
        /* second copies (replicas.c) */
        int holder;
        uint64_t kept, sending, sending_epoch, replica_key;
        bool sent, missed;
        uint64_t sent_at; /* memory_losses then */
};

/* What the store said of the newest one. */
struct sim_rollout {
        uint64_t id; /* 0: there was none */
        uint32_t stage;
        size_t begun;
        bool stopped, ended;
};

struct snode {
        char name[16];
        uint64_t hello_sent;
        uint64_t held_up, held_down; /* partitioned: what is sent arrives after that */
        bool up, leaving, said_leaving /* on this stream */, given_up /* by the controller, until it says hello */;
        uint64_t life, stream, lease_until, lease_number, lease_ttl;
        bool unopened; /* it was cordoned or drained */
        int version;    /* what rollouts change */
        bool changing;
        uint32_t here;  /* bit job % 16: it ever had ranks of it */
        bool unchecked; /* a rank was started since worker_check() */
        int n_procs, n_replicas, n_keeps; /* up to the last one that was ever used */
        struct proc procs[SIM_RANKS_MAX];
        struct replica replicas[SIM_REPLICAS_MAX];
        struct keep keeps[SIM_REPLICAS_MAX];
        uint64_t told[16], told_key[16] /* 0: no plan of that epoch is known */, listed[16]; /* by job: epochs */
};

/* Who died, and where a save of the job (of any job, for a node or the controller) stood then. */
enum sim_victim { VICTIM_RANK, VICTIM_WORKER, VICTIM_NODE, VICTIM_CONTROLLER, N_VICTIMS };
enum sim_save { SIM_SAVE_NONE, SIM_SAVE_WRITING, SIM_SAVE_PREPARED /* by some ranks */, SIM_SAVE_MANIFEST, SIM_SAVE_COMMIT /* in the store's hands */, N_SIM_SAVES };

struct sim {
        uint64_t seed, rng, now, seq;
        struct ev **heap;
        size_t n_heap, cap_heap;
        struct kv *store;
        size_t n_store, room_store;
        struct controller *core;
        uint64_t core_gen, wake_at, last_commit, files_done, flushes, crash_at_flush;
        bool in_core, faults, rank_faults /* else only streams, the store and the controller suffer */, mended, fail_next_commit;
        struct batch cur;
        struct stream *streams;
        size_t n_streams, room_streams;
        struct snode *nodes;
        int n_nodes, n_devices; /* of each */
        bool big;               /* more nodes than SIM_NODES */
        int *where[16], n_where[16], room_where[16]; /* by job: the nodes that ever had ranks of it, in order */
        int *started, n_started, room_started;       /* nodes that worker_check() has to look at */
        struct proc **group;                         /* [SIM_WORLD_MAX]: for one event at a time */
        int *group_node;
        uint64_t core_ns, core_worst_ns, core_events, core_began; /* of big runs */
        uint64_t next_session, next_request;
        /* what the run saw */
        uint64_t plan_epoch[16], plan_key[16], plan_losses[16]; /* the newest plan seen, by job; memory_losses then */
        uint32_t devices_free, devices_total;  /* of the last StatusReply */
        uint64_t status_request;
        uint64_t covered[16], covered_at[16]; /* by job: the newest step that all ranks delivered, and memory_losses when the first of them had */
        uint64_t memory_losses; /* nodes whose memory went */
        uint64_t from_peers;
        uint64_t stepped_epoch[16], jobs[16], best[16];
        bool cancelled[16], may_fail[16];
        int job_state[16];
        uint32_t job_restarts[16];
        char job_reason[16][256];
        uint64_t calm_epoch[16], calm_step[16]; /* no fault of a rank, a node or a disk since this step of this epoch */
        uint64_t calm_at, save_every;
        int64_t wall_off; /* the wall clock's, in ms */
        struct old_message {
                uint8_t *data;
                size_t len;
                int node;
        } old[64]; /* what workers said, to be said again */
        uint64_t n_old, injected, doubled, replayed, overtaken, partitions, slow_commits;
        int n_jobs, steps;
        bool rank_faults_ever;
        struct sim_rollout rollout;
        int version;            /* the newest that was asked for */
        uint64_t rollouts_done;
        uint64_t plan_world[16], relayouts;
        uint64_t saved_world[16], saved_attempt[16]; /* by job: of the newest that replica memory was saved for */
        uint64_t rescued; /* commits of replica memory */
        uint64_t commits_under_way; /* transactions that the store holds */
        uint64_t struck[N_VICTIMS][N_SIM_SAVES];
        uint64_t turns, kills, lease_kills, crashes, drops, losses, commits, recoveries;
        int failures;
        bool verbose;
        int last_status;
        uint64_t submit_requests[16];
};

/* world.c */
uint64_t sim_random(struct sim *s, uint64_t n); /* 0 .. n - 1 */
bool sim_chance(struct sim *s, unsigned percent);
struct ev *sim_after(struct sim *s, uint64_t ns, void (*fn)(struct sim *, struct ev *));
void sim_fail(struct sim *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void sim_say(struct sim *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool sim_turn(struct sim *s); /* false: nothing left */
void sim_core_start(struct sim *s);
void sim_core_crash(struct sim *s);
void sim_enter(struct sim *s);
void sim_leave(struct sim *s);
struct stream *sim_stream(struct sim *s, uint64_t id);
uint64_t sim_open_stream(struct sim *s, int node);
void sim_break_stream(struct sim *s, uint64_t id);
void sim_to_core(struct sim *s, uint64_t stream, const Fp8ctl__V1__WorkerMessage *m);
const struct kv *sim_stored(const struct sim *s, const char *key);
/* What the store says of a job; NULL: nothing. fp8ctl__v1__job_record__free_unpacked() it. */
Fp8ctl__V1__JobRecord *sim_stored_job(const struct sim *s, uint64_t job);
void sim_replay(struct sim *s);
void sim_partition(struct sim *s, int node, uint64_t ns, int which); /* 1: what it says, 2: what it is told, 3: both */
void sim_free(struct sim *s);

/* scale.c: runs of more than SIM_NODES nodes */
int scale_replicas_of(const struct sim *s, int i); /* parallel.dp of job i */
void scale_print(const struct sim *s, uint64_t wall_ns);

/* saves.c */
void save_struck(struct sim *s, enum sim_victim who, uint64_t job); /* job 0: any */
void save_print_struck(const struct sim *total);
uint64_t save_begin(struct sim *s, int node, struct proc *p, uint32_t attempt); /* when it will have been said */
void save_say_again(struct sim *s, int node);
void save_answered(struct sim *s, int node, uint64_t job, uint64_t epoch, uint64_t step, uint32_t attempt);
void save_forget(struct sim *s, int node); /* the worker process starts anew, its ranks live on */
void save_note_calm(struct sim *s, uint64_t job, uint64_t epoch, uint64_t step);
void save_check_removal(struct sim *s, const char *path);
void save_check_kept(struct sim *s, uint64_t job);

/* rollouts.c */
bool rollouts_on(const struct sim *s);
void rollouts_begin(struct sim *s);
void rollouts_end(struct sim *s);
void rollout_check(struct sim *s); /* a move has landed in the store */
void rollout_welcomed(struct sim *s, int node);
void rollout_ordered(struct sim *s, int node, const Fp8ctl__V1__RolloutChange *m);
void rollout_test(struct sim *s, int node, const Fp8ctl__V1__NodeTestRequest *m);

/* replicas.c */
struct replica *replica_find(struct sim *s, int node, uint64_t job, uint32_t rank, uint64_t step, uint64_t epoch, bool held);
void replica_put(struct sim *s, int node, const struct replica *what, uint64_t keep_a, uint64_t keep_b);
void replica_agreed(struct sim *s, struct proc *const *p, const int *node, int n); /* all ranks of an epoch, before their snapshot of the next step */
void replica_begin_epoch(struct sim *s, int node, struct proc *p, const Fp8ctl__V1__RankPlan *m);
void replica_send(struct sim *s, int node, struct proc *p);
bool replica_fetch(struct sim *s, int node, struct proc *p, const Fp8ctl__V1__RankPlan *m); /* false: no source has it any more */
void replica_save(struct sim *s, int node, const Fp8ctl__V1__SaveMemory *m); /* answered later */
void replica_plan_told(struct sim *s, int node, const Fp8ctl__V1__ReplicaPlan *m, bool alone);
void replica_fenced(struct sim *s, int node, uint64_t job, uint64_t epoch);
void replica_forget_told(struct sim *s, int node);
void replica_other_layout(struct sim *s, int node, const struct proc *p);
void replica_check_plan(struct sim *s, const Fp8ctl__V1__RankPlan *m);
/* The job ended, waits, or has a later epoch: what was told for this one may be gone. */
bool sim_epoch_over(const struct sim *s, uint64_t job, uint64_t epoch);
void replica_uncover(struct sim *s, uint64_t job); /* 0: all: copies may be gone, or are not wanted */

/* worker.c */
void worker_send(struct sim *s, int node, Fp8ctl__V1__WorkerMessage *m);
struct proc *worker_proc_of(struct sim *s, struct ev *e);
struct ev *worker_proc_after(struct sim *s, int node, struct proc *p, uint64_t ns, void (*fn)(struct sim *, struct ev *));
void worker_boot(struct sim *s, int node);
void worker_power_off(struct sim *s, int node);
void worker_hello_again(struct sim *s, int node);
void worker_connect(struct sim *s, int node);
void worker_kill(struct sim *s, int node, struct proc *p, int signal);
void worker_leave(struct sim *s, int node);
struct proc *worker_some_rank(struct sim *s, int *ret_node);
void worker_fault(struct sim *s, int node, struct proc *p, int kind);
void worker_check(struct sim *s);
void worker_ready(struct sim *s, struct ev *e);
void worker_parked(struct sim *s, struct ev *e); /* for epoch e->d */
void worker_plan(struct sim *s, int node, const Fp8ctl__V1__RankPlan *m);

/* orders.c */
void worker_message(struct sim *s, int node, const Fp8ctl__V1__ControllerMessage *m);
