/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What the files behind controller.h share.  One thread, one event at a time: an entry point of controller.c calls into node.c, request.c, ...; they change
 * struct controller, give io->persist what changed and send; the end of every entry point persists jobs marked dirty, starts what can start, and sets the alarm.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/core/controller.h"
#include "daemon/core/planted.h"
#include "daemon/core/scheduler.h"
#include "base/table.h"
#include "proto/gasp.h"
#include "proto/job_spec.h"

/* gRPC status numbers (grpc/status.h); the core knows the numbers, not the library. */
enum { ST_OK = 0, ST_CANCELLED = 1, ST_INVALID = 3, ST_DEADLINE = 4, ST_NOT_FOUND = 5, ST_DENIED = 7, ST_EXHAUSTED = 8, ST_PRECONDITION = 9, ST_ABORTED = 10,
       ST_INTERNAL = 13, ST_UNAVAILABLE = 14 };

enum {
        PROTOCOL_VERSION_MIN = 1,
        PROTOCOL_VERSION_MAX = 1,
        RECORD_VERSION = 1,
        NAME_MAX_LEN = 128,    /* node names, user names, request ids */
        TEXT_MAX_LEN = 400,    /* a worker's text inside an event */
        ENDPOINT_MAX_LEN = 512,
        DIR_MAX_LEN = 512,     /* a worker's folder */
        HELD_JOBS_MAX = 4096,  /* of which one node keeps peers' generations */
        NODE_DEVICES_MAX = 256,
        PCI_PATH_LEN = 192,
        NIC_NAME_LEN = 32,
        NIC_PORTS_MAX = 4,
        RAIL_LEN = 96,
        NODES_MAX = 65536,
        PLACEMENT_MAX = JOB_MAX_RANKS,
};

/* ------------------------------------------------------------------ nodes */
enum node_duty { NODE_OPEN, NODE_CORDONED /* gets no new ranks */, NODE_DRAINING /* and loses those it has */ };
enum node_state { NODE_UNHEARD, NODE_READY, NODE_LEAVING, NODE_LOST };

/* Who holds a device's memory. It stays until the process is known to be reaped: a plan alone does not free it. */
struct device {
        uint32_t index;
        char kind[16], name[96];
        uint64_t memory_bytes;
        uint64_t job, incarnation; /* job 0: free */
        uint64_t standby_job, standby; /* whose warm standby has it open, and which; 0: none */
        uint32_t rank;
        char pci[24];              /* "": none, or unknown */
        char path[PCI_PATH_LEN];   /* its place in the PCI tree; "": unknown */
        int32_t numa;              /* -1: unknown */
        uint32_t nvlinks, nvlink_domain;
        uint64_t rails;            /* of the node's nics, bit by bit: those that a rank on it is given */
        char rail[RAIL_LEN];       /* the same for its library, NCCL_IB_HCA; "": it chooses */
        char unfit[200];           /* why it gets no rank until it was reset; "": it does */
        uint64_t taken_ms;         /* wall clock: since then */
};

/* An InfiniBand or RoCE device. */
struct nic {
        char name[NIC_NAME_LEN], path[PCI_PATH_LEN];
        int32_t numa;
        uint32_t ports[NIC_PORTS_MAX], used[NIC_PORTS_MAX]; /* used: those that are well */
        size_t n_ports, n_used;
};

struct node {
        char name[NAME_MAX_LEN];
        enum node_state state;
        char reason[TEXT_MAX_LEN];
        enum node_duty duty;
        bool drained;              /* ... and that was said */
        char duty_reason[TEXT_MAX_LEN];
        uint64_t window_from_ms, window_until_ms; /* wall clock: then it is drained; then it is open again; 0: not */
        uint64_t session;          /* 0: no stream */
        uint64_t lease_number, lease_until; /* mono ns; lost after it */
        uint8_t gasp_key[GASP_KEY]; /* of its newest welcome */
        bool gasp_keyed;
        uint64_t last_seen_ms, dropped; /* dropped: messages, by its worker */
        char address[NAME_MAX_LEN], version[64], kernel[NAME_MAX_LEN], boot_id[64], dir[DIR_MAX_LEN];
        char rack[NAME_MAX_LEN], replica_endpoint[NAME_MAX_LEN]; /* "": unknown; none */
        uint64_t incarnation, memory_bytes;
        uint32_t cpus;
        struct device *devices;
        size_t n_devices;
        struct nic *nics;          /* in PCI order: rail 0, 1, ... */
        size_t n_nics;
        bool standbys;             /* its worker can keep them */
        bool saves_memory;         /* ... and write replica memory into a checkpoint's folder */
        bool hung_up;              /* stream and ranks ended together: it is not waited for, though its lease runs */
        uint64_t *held;            /* jobs of which it was told to keep peers' generations */
        size_t n_held;
        struct node_health *health; /* NULL: nothing was ever said of it (health.h) */
        struct node_facts *facts;  /* what it is made of; NULL: not told yet (node_facts.c) */
        uint64_t facts_session;    /* on which they were told; 0: not in this life */
        bool rollout_hook;         /* its worker has a program that changes it */
        struct rollout_node *rollout; /* its entry in the rollout that is not over (rollout.h); NULL: it has none */
};

/* A stream that has not said hello yet, or has. */
struct session {
        uint64_t id;
        struct caller who;
        struct node *node; /* NULL before hello */
};

/* ------------------------------------------------------------------ jobs */
enum rank_state { RANK_NONE, RANK_STARTED, RANK_READY, RANK_PARKING, RANK_PARKED, RANK_LOADED /* plan sent */, RANK_RUN, RANK_FINISHED, RANK_LOST, N_RANK_STATES };

struct rank {
        enum rank_state state;
        struct node *node;
        uint32_t device;
        uint64_t incarnation;
        uint64_t since;           /* mono ns of the last change of state */
        uint64_t step;            /* newest heard */
        uint64_t start_epoch;     /* under which this incarnation was started; 0: before this controller's life */
        uint32_t pid;
        bool heard;               /* since the controller started (else its node has not said hello yet) */
        bool stopped;             /* RankDone{stopped} */
        bool start_pending;       /* StartRanks not sent yet: its node has no stream */
        bool suspect;             /* a peer said it is gone, or it said so itself */
        uint32_t deaths;          /* of its processes on this device without a step gained */
        bool hung_up;             /* a peer's connection to it ended in this epoch */
        uint64_t fault_epoch;     /* under which it last said that it cannot go on */
        int32_t fault_peer;       /* because of whom; -1: unknown */
        bool fault_timeout;       /* it waited for that peer in vain */
        int loaded;               /* Fp8ctl__V1__LoadedFrom */
        uint64_t loaded_bytes;
        char *endpoint, *fingerprint;
        char rail[RAIL_LEN];      /* that its process was given with its first plan, and keeps: the library reads it once */
        uint64_t rail_of;         /* incarnation of that process */
        struct node *zombie_node; /* reported dead there and not yet reaped: zombie is its incarnation */
        uint64_t zombie;
};

/* What a holder of replica memory said it has. */
struct generation {
        uint32_t rank;
        struct node *node;
        uint64_t step, epoch;
        bool held; /* for a rank of another node: a rank gets it from there; else only its own rank can use it */
        bool disk; /* on that node's own disk, not in memory */
        uint32_t shard_count; /* of how many ranks it consists */
        char layout[256];
};

struct checkpoint {
        uint64_t step, epoch, bytes, committed_ms;
        uint32_t attempt;
        char *path;
        bool bad, removing;
        uint64_t file_id; /* removal under way */
};

enum save_state { SAVE_PREPARING, SAVE_WRITING, SAVE_COMMITTED, SAVE_DROPPED, N_SAVE_STATES };
enum save_event { SAVE_E_ALL_PREPARED, SAVE_E_WRITTEN, SAVE_E_FAILED, SAVE_E_TIMEOUT, SAVE_E_FENCED, SAVE_E_SUPERSEDED, N_SAVE_EVENTS };

struct save_shard {
        char *file, *digest;
        uint64_t bytes;
        uint32_t rank;
};

struct save {
        struct save *next;
        struct job *job;
        int state;
        uint64_t epoch, step, deadline, file_id, began, bytes;
        uint32_t attempt;
        int n_prepared, world;
        bool *prepared; /* [world] */
        char *state_json;
        struct save_shard *shards;
        size_t n_shards;
        char why[TEXT_MAX_LEN]; /* it was dropped */
};

/* Recovery: the one state machine of a placed job (recovery.c). */
enum recovery_state { REC_IDLE, REC_FENCE, REC_RESTORE, REC_RESUME, REC_WATCH, REC_SUSPECT, N_REC_STATES };
enum recovery_event { REC_E_PLACED, REC_E_SUSPECT, REC_E_FAULT, REC_E_GATHERED, REC_E_ALL_RUNNING, REC_E_NEW_STEP, REC_E_ENDED, N_REC_EVENTS };

/* One incident, from detection to the first new step. Times are mono ns. */
struct incident {
        bool open;
        uint64_t detected, parked, ready, planned, running;
        uint64_t best_step;  /* best known when it happened (grows while survivors report where they stood) */
        uint64_t load_step;
        char cause[TEXT_MAX_LEN];  /* "rank 5 (incarnation 6) on node-2 was killed by SIGKILL" */
        bool cause_final;          /* reaped, or needs no reaping */
        uint64_t cause_incarnation;
        uint64_t unjudged;         /* this incarnation's death was counted, and what it died of is not known yet; 0: none */
        int survivors, replaced;
        char source[160];
};

/* A process that waits to become a rank: standby.c. */
struct standby {
        struct node *node;
        uint64_t number;
        uint32_t device, rank; /* a warm one's; whose buffers it makes ahead */
        int dp;                /* of the layout it was made for */
        bool warm, ready, fresh /* not told yet */;
};

enum stop_kind { STOP_NONE, STOP_CANCEL, STOP_REQUEUE, STOP_RESIZE /* it goes on elsewhere or with another number of replicas: layout.c */ };

struct job {
        uint64_t id;
        char name[NAME_MAX_LEN], user[NAME_MAX_LEN], request_id[NAME_MAX_LEN];
        uint32_t uid, gid;
        int state; /* Fp8ctl__V1__JobState */
        char reason[512], failure[512];
        uint64_t epoch, next_incarnation;
        uint32_t next_attempt;
        struct job_spec *spec;
        char *job_file, *from_checkpoint, *data_digest;
        char *live_file;            /* job_file with the number of replicas there are now; NULL: the same */
        int dp_wanted;              /* spec->parallel.dp is how many there are now */
        uint64_t bytes_per_rank, snapshot_bytes, parameters; /* see job_spec_bytes_per_rank */
        bool test_hooks;

        /* placement; kept after the end so that logs are found */
        int world;
        struct rank *ranks; /* [world], room for rank_room; node NULL: never placed */
        int rank_room;

        /* recovery */
        int rec;
        uint64_t rec_since, rec_deadline; /* 0: none */
        struct incident inc;
        bool start_is_new;          /* FENCE of a fresh placement, no survivors */
        struct pace *pace;          /* [world]: what each rank takes for a step (straggler.c); NULL: nothing heard in this epoch */
        struct gathering *gathering; /* where its ranks are, asked for when one waited in vain; NULL: nobody did */
        struct generation *generations;
        size_t n_generations;
        struct node **inventory_wait;
        size_t n_inventory_wait;
        uint64_t bad_generation_step, bad_generation_epoch; /* 0: none; a rank could not load replicas of this step, and no step was gained since: older ones only, or those written since */
        uint8_t mesh_key[32];
        bool have_mesh_key;
        uint8_t replica_key[32];
        bool have_replicas;
        struct node **holders; /* [world], kept over epochs; NULL: nobody */
        int without_holder;    /* ranks, when it was last said; -1: never */
        bool holders_judged, holders_shared; /* since the nodes were last looked at: what follows holds; one of them holds for several ranks */
        int holder_worst;                    /* the worst replica_grade() among them */
        Fp8ctl__V1__LoadSource load;
        char *load_path;
        uint32_t same_cause;
        char last_cause[TEXT_MAX_LEN];
        uint64_t best_step, replan_step;
        uint64_t min_replica_epoch, skip_from_step, skip_to_step;
        uint64_t rescue_floor;      /* generations of older epochs are not rescued either: a roll-back undid them */
        struct rescue *rescue;      /* under way (rescue.c); NULL: not */
        bool rescued;               /* in this round what can be is done */
        bool leaving;               /* the round is for that alone, then the job leaves its devices */
        bool relaid;                /* nodes that its ranks have left keep its memory until they run again */
        uint32_t restarts;
        uint64_t lost_steps;
        double lost_s;

        struct standby *standbys;
        size_t n_standbys;
        uint64_t next_standby, standby_at; /* no more are started before then; 0: now */
        uint32_t standby_deaths;           /* in a row */

        /* stop */
        int stop_kind;
        char stop_reason[TEXT_MAX_LEN];
        uint64_t stop_deadline;
        bool stop_now;
        int resize_dp;              /* STOP_RESIZE: to so many replicas */
        bool evacuate_said;         /* that it cannot leave a draining node yet */
        bool scale_asked;           /* by a client: it need not wait for grow_delay_ms */
        uint64_t look_at;           /* ... and then it may be time for it; 0: not known */
        uint64_t zombie_deadline;   /* the dead that are not reaped by then are killed */
        uint64_t release_deadline;  /* ended: ranks that are still there then are killed */

        /* checkpoints */
        struct checkpoint *checkpoints;
        size_t n_checkpoints;
        struct save *saves;
        uint64_t final_retry_at;
        int final_retries;
        uint32_t final_attempt;     /* of the newest retry; 0: none */
        uint64_t cleared_epoch;     /* in this life: unfinished folders of epochs before it were looked for */

        /* progress */
        uint64_t step, skipped, tokens;
        double loss_first, loss_last, val_loss, tokens_per_s;
        uint64_t submitted_ms, started_ms, ended_ms, first_run_ms;
        uint64_t notice_window, notices; /* bound on events from ranks */
        bool dirty;
};

/* ------------------------------------------------------------------ events, requests */
struct event {
        uint64_t id, unix_ms, job, epoch;
        char node[NAME_MAX_LEN], kind[40], severity[12];
        int32_t rank;
        double ms;
        char *text;
};

enum pending_kind { PENDING_EVENTS, PENDING_SAVE, PENDING_SUBMIT, PENDING_READ, PENDING_TEST, PENDING_DIAGNOSE, PENDING_PAIRS };

struct preflight {
        uint64_t id;
        struct node *node;
        bool answered;
        char *error, *data_digest;
};

struct pending {
        struct pending *next;
        enum pending_kind kind;
        uint64_t request, deadline;
        struct caller who;
        uint64_t job;
        uint64_t after_id; uint32_t limit; uint64_t event_job; bool newest;   /* events */
        uint64_t save_step; uint32_t attempt;                     /* save */
        uint64_t relay; struct node *node; uint64_t offset;       /* read */
        struct preflight *preflights; size_t n_preflights;        /* submit */
        char **warnings; size_t n_warnings;
        struct job *draft;
        struct sched_slot *slots;
        bool dry_run;
        struct gathering *gathering;                              /* diagnose */
        struct pairs *pairs;                                      /* pairs */
};

enum drop_kind { DROP_MALFORMED, DROP_JOB, DROP_EPOCH, DROP_INCARNATION, DROP_LEASE, N_DROPS };

struct controller {
        struct cluster_io io;
        struct controller_config config;
        char version[64];
        char cluster_id[40];
        uint64_t started_wall_ms, started;
        uint64_t next_job, next_event, next_lease, next_relay, next_file;
        struct job **jobs; /* by id */
        size_t n_jobs;
        struct node **nodes; /* by name */
        size_t n_nodes;
        struct session **sessions; /* by id */
        size_t n_sessions;
        struct event *events; /* ring by id */
        size_t n_events, first_event;
        struct pending *pending;
        uint64_t drops[N_DROPS];
        bool running, failed, cluster_dirty, schedule_wanted, events_new;
        uint64_t nodes_deadline;   /* the next of all nodes, looked for after all but what ranks say */
        bool standbys_yield; /* a job waits for the devices of warm standbys */
        struct rollout **rollouts; /* by id */
        size_t n_rollouts;
        struct rollout *rollout;   /* the one that is not over; NULL: none */
        bool rollout_wanted;       /* it is to be looked at */
        char failed_why[256];
};

/* text.c-like helpers (controller.c) */
void core_text(char *dst, size_t size, const char *src);               /* bounded copy, control characters blanked; NULL is "" */
char *core_strdup(const char *src, size_t max);                        /* as above; never NULL for a string within memory */
void core_cause(char *dst, size_t size, const Fp8ctl__V1__RankExited *m);
uint64_t core_now(const struct controller *c);
void core_drop(struct controller *c, enum drop_kind why, const char *what);
struct session *session_find(const struct controller *c, uint64_t id);
/* In a list that is in order: the first item that does not come before key, or where it would be. order: as strcmp(item i, key). */
size_t core_position(const void *list, size_t n, int (*order)(const void *list, size_t i, const void *key), const void *key);
void core_persist(struct controller *c, enum store_op_kind kind, const char *key, const void *value, size_t len);
void core_log(const struct controller *c, int level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* event_log.c */
struct event_of {
        const struct job *job;
        const struct node *node;
        int32_t rank; /* -1 */
        const char *severity; /* NULL: info */
        double ms;
};
void event_add(struct controller *c, const struct event_of *of, const char *kind, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
int event_load(struct controller *c, const Fp8ctl__V1__EventRecord *r, struct error *e);
void event_fill(const struct event *ev, Fp8ctl__V1__Event *m);
/* Fills at most max pointers to events after `after` (of job, 0: all), in order: the first of them, or the newest. */
size_t event_select(const struct controller *c, uint64_t after, uint64_t job, bool newest, const struct event **ret, size_t max);
void event_log_free(struct controller *c);

/* record.c */
void record_put_message(struct controller *c, const char *key, const ProtobufCMessage *m);
int record_load(struct controller *c, const char *key, const void *value, size_t len, struct error *e);
void record_put_job(struct controller *c, struct job *j);
void record_put_node(struct controller *c, const struct node *n);
void record_put_cluster(struct controller *c);
void record_put_epoch(struct controller *c, const struct job *j, uint64_t expected); /* expected 0: absent */
void record_expect_epoch(struct controller *c, const struct job *j);
void record_put_commit(struct controller *c, const struct job *j, const struct checkpoint *k);
void record_delete_commit(struct controller *c, const struct job *j, const struct checkpoint *k);
void record_put_request(struct controller *c, const struct job *j);
void record_delete_job(struct controller *c, const struct job *j); /* with its epoch, commits and request */
/* The job as clients see it; the strings stay the job's. Free with job_message_free. */
struct job_message {
        Fp8ctl__V1__Job job;
        Fp8ctl__V1__Plan plan;
        Fp8ctl__V1__PlanRank *ranks, **rank_ptrs;
        char log_dir[DIR_MAX_LEN + 32];
};
int job_message_fill(const struct controller *c, const struct job *j, bool full, struct job_message *m);
void job_message_free(struct job_message *m);
void checkpoint_message_fill(const struct job *j, const struct checkpoint *k, Fp8ctl__V1__Checkpoint *m);

/* node.c */
size_t node_position(const struct controller *c, const char *name); /* in c->nodes, or where it would be */
struct node *node_find(const struct controller *c, const char *name);
struct node *node_get_or_add(struct controller *c, const char *name);
struct device *node_device(struct node *n, uint32_t index);
bool node_device_in_host_memory(const struct device *d); /* what it computes with is the host's memory */
int node_set_devices(struct node *n, Fp8ctl__V1__NodeDevice *const *d, size_t n_d);
void node_hello(struct controller *c, struct session *s, const Fp8ctl__V1__WorkerHello *m);
bool node_hello_has(const Fp8ctl__V1__WorkerHello *m, const char *feature);
void node_heartbeat(struct controller *c, struct session *s, const Fp8ctl__V1__Heartbeat *m);
void node_leaving(struct controller *c, struct session *s, const Fp8ctl__V1__WorkerLeaving *m);
void node_stream_closed(struct controller *c, struct session *s);
void node_gasp(struct controller *c, const void *data, size_t len);
void node_tick(struct controller *c, uint64_t now);
uint64_t node_next_deadline(const struct controller *c);
bool node_usable(const struct node *n);
const char *node_state_name(enum node_state s);
bool node_takes(const struct node *n); /* new ranks */
void node_send(struct controller *c, const struct node *n, const Fp8ctl__V1__ControllerMessage *m);
void node_free_device(struct controller *c, struct node *n, uint64_t job, uint64_t incarnation);
void node_kill_one(struct controller *c, struct node *n, uint64_t job, uint64_t epoch, uint32_t rank, uint64_t incarnation, const char *why);
struct node *node_free(struct node *n);
extern const struct table node_table;
int node_move(struct controller *c, struct node *n, int event);
enum node_event { NODE_E_HELLO, NODE_E_LEAVE, NODE_E_EXPIRED, N_NODE_EVENTS };

/* node_facts.c */
void node_facts_take(struct controller *c, struct node *n, const Fp8ctl__V1__HealthReport *m);
int node_facts_load(struct node *n, const Fp8ctl__V1__Node *m);
void node_facts_fill(const struct node *n, Fp8ctl__V1__Node *m, bool all); /* m points into the node's; all: the facts too, else the fingerprint alone */
struct node_facts *node_facts_free(struct node_facts *f);
int node_makes(const struct controller *c, int *ret); /* [n_nodes]: equal numbers from 1 on for equal fingerprints, 0: not told yet */
const char *node_fingerprint(const struct node *n); /* "": not told yet */
const char *node_fact(const struct node *n, const char *key); /* NULL: not told */

/* node_topology.c */
void node_take_path(char dst[PCI_PATH_LEN], const char *path); /* "": it is none */
int node_take_nics(struct controller *c, struct node *n, Fp8ctl__V1__NodeNic *const *list, size_t n_list);
void node_take_links(struct node *n, const Fp8ctl__V1__HealthReport *m);
void node_rails(struct node *n); /* after its devices, its nics or the checks of its ports have changed */
int node_fill_nics(const struct node *n, Fp8ctl__V1__Node *m, Fp8ctl__V1__NodeNic **ret, Fp8ctl__V1__NodeNic ***ret_ptrs); /* -ENOMEM; free(3) both in any case */

void node_tell_rails(const struct controller *c, Fp8ctl__V1__Plan *plan); /* what the places of its ranks come to; the strings stay the nodes' */

/* drain.c */
const char *node_duty_name(enum node_duty d);
enum node_duty node_duty_parse(const char *name);
void node_check_drained(struct controller *c, struct node *n);
void node_window_tick(struct controller *c, struct node *n);
uint64_t node_window_deadline(const struct controller *c, const struct node *n); /* 0: none */
void node_request_set(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);

/* health.c, health_decide.c, node_test.c; health.h */
void health_report(struct controller *c, struct session *s, const Fp8ctl__V1__HealthReport *m);
void health_hello(struct controller *c, struct node *n, bool rebooted); /* before it takes ranks */
void health_opened(struct controller *c, struct node *n);    /* an administrator says that it is fit again */
void health_tick(struct controller *c, struct node *n);
uint64_t health_deadline(const struct controller *c, const struct node *n); /* 0: none */
bool health_unfit(const struct node *n, uint32_t device);    /* no rank may stay there */
bool health_port_well(const struct node *n, const char *nic, uint32_t port); /* its checks say so: a port that they do not know is not */
bool health_untested(const struct node *n);                  /* it has still to pass its test */
/* A network fault was told of by somebody else than its own worker; the second within five minutes evicts. */
void health_network_alert(struct controller *c, struct node *n, const char *why);
struct node_health *health_free(struct node_health *h);
void node_set_duty(struct controller *c, struct node *n, enum node_duty duty, const char *why); /* drain.c */
void node_test_request(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);
void node_test_reply(struct controller *c, struct session *s, const Fp8ctl__V1__NodeTestReply *m);
uint64_t node_test_ask(struct controller *c, struct node *n); /* the number of its answer; 0: it cannot be asked */
bool health_breaker_open(const struct controller *c);        /* it keeps a node among those that take ranks */

/* rollout.c, rollout_request.c, rollout_record.c; rollout.h */
void rollout_look(struct controller *c);                     /* what can go on does */
uint64_t rollout_deadline(const struct controller *c);       /* 0: none */
int rollout_start(struct controller *c, struct error *e);    /* after all records were read */
void rollout_free_all(struct controller *c);
bool rollout_holds(const struct node *n);                    /* it is emptied, changed or tested for one */
void rollout_failure(struct controller *c, struct node *n, const char *why); /* the node has failed, or a rank of itself there */
void rollout_changed(struct controller *c, struct session *s, const Fp8ctl__V1__RolloutChanged *m);
bool rollout_tests(const struct node *n, uint64_t relay);    /* it has asked for this test */
void rollout_tested(struct controller *c, struct node *n, bool passed, const char *why);
int rollout_load(struct controller *c, const void *value, size_t len, struct error *e);
int rollout_load_node(struct controller *c, const void *value, size_t len, struct error *e);
void rollout_request_start(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);
void rollout_request_list(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);
void rollout_request_get(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);
void rollout_request_set(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);

/* job.c */
enum job_event { JOB_E_PLACE, JOB_E_RUN, JOB_E_FAULT, JOB_E_STOP, JOB_E_REQUEUE, JOB_E_FINISH, JOB_E_FAIL, JOB_E_CANCEL, JOB_E_SUBMIT, N_JOB_EVENTS };
extern const struct table job_table;
struct job *job_find(const struct controller *c, uint64_t id);
struct job *job_new(uint64_t id);
int job_set_spec(struct job *j, const char *canonical, struct error *e); /* parses; sizes ranks */
struct job *job_free(struct job *j);
int job_add(struct controller *c, struct job *j);
int job_move(struct controller *c, struct job *j, enum job_event ev);
bool job_ended(const struct job *j);
bool job_placed(const struct job *j); /* has a live epoch */
bool job_on_node(const struct job *j, const struct node *n);
const char *job_state_name(int state);
void job_schedule(struct controller *c);
/* Would this waiting job find devices if those of these jobs were free? */
bool job_fits_without(struct controller *c, const struct job *j, struct job *const *others, size_t n);
/*
 * Where its ranks would be with dp replicas: those on nodes that stay keep their places; with evacuate, those on draining nodes do not. ret[tp * pp * dp]; -ENOSPC, -EINVAL: no such
 * layout.
 */
int job_place_at(struct controller *c, const struct job *j, int dp, bool evacuate, struct sched_slot *ret);
int job_plan_idle(struct controller *c, const struct job *j, struct sched_slot *ret, size_t *ret_devices); /* on an idle cluster */
int job_node_index(const struct controller *c, const struct node *n);
/* Ends or requeues: one way out for all. FAIL, CANCEL, FINISH, REQUEUE. */
void job_release_node(struct controller *c, struct job *j, struct node *n); /* nothing of the job stays there */
void job_finish(struct controller *c, struct job *j, enum job_event how, const char *reason);
void job_stop(struct controller *c, struct job *j, enum stop_kind kind, uint32_t grace_ms, bool now, const char *reason);
void job_send_stop(struct controller *c, struct job *j, struct node *only);
/* Every rank is done and nothing is left to commit? */
void job_check_done(struct controller *c, struct job *j);
void job_progress(struct controller *c, struct node *n, const Fp8ctl__V1__RankProgress *p);
void job_tick(struct controller *c, struct job *j, uint64_t now);
uint64_t job_next_deadline(const struct job *j);
const char *rank_state_name(enum rank_state s);
void rank_set(struct controller *c, struct rank *r, enum rank_state s);

/* preempt.c */
void preempt_for(struct controller *c, struct job *j); /* the first that waits: running jobs of lower priority make room, if that is enough */

/* layout.c: how many replicas a job has, and where */
int layout_set(struct controller *c, struct job *j, int dp); /* nothing is told or stored */
int layout_replan(struct controller *c, struct job *j);      /* new places for ranks on lost or leaving nodes; -ENOSPC */
int layout_shrink(struct controller *c, struct job *j);      /* ... with fewer replicas */
void layout_resize(struct controller *c, struct job *j, int dp, const char *reason); /* at the end of a step: save, then begin anew with dp replicas where devices are */
void layout_stopped(struct controller *c, struct job *j, uint64_t step, bool saved); /* every rank stands at the end of that step */
bool layout_waits(const struct job *j);                      /* for something that layout_look would do */
void layout_look(struct controller *c);                      /* what was waited for may be there */
void layout_stop_late(struct controller *c, struct job *j);
const char *layout_job_file(const struct job *j);
void layout_request_scale(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);

/* standby.c */
void standbys_look(struct controller *c); /* what there shall be may have changed */
void standby_swap(struct job *j, uint32_t rank); /* a rank to be started takes the device of a warm one of its node, if one is ready */
void standbys_end(struct controller *c, struct job *j);
void standby_status(struct controller *c, struct session *s, const Fp8ctl__V1__StandbyStatus *m);
void standbys_hello(struct controller *c, struct node *n, const Fp8ctl__V1__WorkerHello *m);
void standbys_node_lost(struct controller *c, struct node *n);
void standbys_tick(struct controller *c, struct job *j, uint64_t now);
bool standbys_any(const struct controller *c); /* that has a device */

/* retention.c */
void retention_apply(struct controller *c); /* forgets jobs that ended long ago; no pointer to a job may be held across it */

/* recovery.c: thresholds are at its top; its parts share recovery_private.h */
extern const struct table recovery_table;
void recovery_begin(struct controller *c, struct job *j); /* placed: epoch + 1, all ranks started */
enum lost_how { LOST_KILL /* must be made sure of */, LOST_DYING /* its worker saw it die */, LOST_REAPED };
void recovery_rank_lost(struct controller *c, struct job *j, uint32_t rank, const char *why, enum lost_how how, bool count);
void recovery_node_lost(struct controller *c, struct job *j, struct node *n);
void recovery_hung_up(struct controller *c, struct job *j); /* is a node gone for which the lease need not be waited? */
void recovery_again(struct controller *c, struct job *j, const char *cause, bool count); /* a new round with every rank alive */
void recovery_fault(struct controller *c, struct job *j, struct rank *r, const Fp8ctl__V1__RankFault *m); /* rank_fault.c */
void recovery_refine_cause(struct controller *c, struct job *j, uint64_t incarnation, const char *cause); /* incident.c */
void recovery_check(struct controller *c, struct job *j);  /* has everyone gathered, or is everyone running? */
void recovery_inventory(struct controller *c, struct job *j, struct node *n, const Fp8ctl__V1__Inventory *m); /* generations.c */
void recovery_hello(struct controller *c, struct job *j, struct node *n, const Fp8ctl__V1__WorkerHello *m); /* rejoin.c */
void recovery_new_step(struct controller *c, struct job *j);
void recovery_end(struct controller *c, struct job *j);    /* no live epoch any more */
void recovery_tick(struct controller *c, struct job *j, uint64_t now);
void recovery_kill_zombies(struct controller *c, struct job *j);
void recovery_free(struct job *j);

/* straggler.c */
void straggler_note(struct controller *c, struct job *j, const Fp8ctl__V1__RankProgress *p);
void straggler_forget(struct job *j);

/* ladder.c */
bool ladder_device_suspect(const struct job *j, int rank); /* lost, and its processes died there too often */

/* stuck.c: who holds the others up (pure over what the job knows) */
void stuck_note(struct job *j, uint32_t rank, int32_t peer, bool timeout);
bool stuck_all_spoke(const struct job *j); /* all but one */
int stuck_rank(const struct job *j); /* whom at least half of the others wait for, and who said nothing itself; -1: nobody */

/* rescue.c: what only replica memory has is saved before that goes, or for ranks of another layout */
bool rescue_may(const struct job *j);
/* Off its devices once what replica memory has is saved, or after the grace: the end is job_finish(REQUEUE). False: there is nothing to wait for, and nothing was done. */
bool rescue_leave(struct controller *c, struct job *j, uint32_t grace_ms, const char *reason);
bool rescue_look(struct controller *c, struct job *j); /* in a round; true: it goes on later, or is over for the job */
void rescue_saved(struct controller *c, struct session *s, const Fp8ctl__V1__MemorySaved *m);
void rescue_listed(struct controller *c, struct job *j, struct node *n); /* it said what it has, after a hello perhaps */
void rescue_node_lost(struct controller *c, struct job *j, const struct node *n);
void rescue_tick(struct controller *c, struct job *j, uint64_t now);
uint64_t rescue_next_deadline(const struct job *j);
void rescue_end(struct job *j);

/* restore.c: what is loaded (pure over what the job knows) */
void restore_choose(struct controller *c, struct job *j);
bool restore_has_source(const struct job *j); /* something that the job itself has saved */
uint64_t restore_generation_step(const struct job *j); /* of the newest that its ranks can load as it is; 0: none */
bool restore_barred(const struct job *j, const struct generation *g); /* known to be bad */

/* replicas.c: who holds whose second copy (replica_plan.h decides) */
struct replica_message {
        Fp8ctl__V1__ReplicaPlan plan;
        Fp8ctl__V1__ReplicaNode *nodes, **node_ptrs;
        int32_t *holders;
        uint64_t *incarnations;
        Fp8ctl__V1__ReplicaSource *sources, **source_ptrs; /* of LoadSource */
        size_t n_sources;
};
int replicas_message(const struct controller *c, const struct job *j, struct replica_message *m); /* -ENOMEM; free it in any case */
void replicas_message_free(struct replica_message *m);
bool replicas_on_node(const struct job *j, const struct node *n);
bool replicas_give(const struct node *n); /* what it holds can be had */
void replicas_released(const struct job *j, struct node *n);
void replicas_resume(struct controller *c, struct job *j); /* an earlier life waited for what holders have */
void replicas_free(struct job *j);
void replicas_keep(struct job *j, struct node *n); /* what it has of the job is asked for, though its ranks have left */
void replicas_release_left(struct controller *c, struct job *j); /* ... and released */
void replicas_load(struct controller *c, struct job *j, char *const *names, size_t n); /* as the store has it */
void replicas_begin(struct controller *c, struct job *j); /* of an epoch: key, holders; told to the nodes that get no RankPlan */
void replicas_hello(struct controller *c, struct node *n, const Fp8ctl__V1__WorkerHello *m, bool moved /* its endpoint */);
void replicas_local(struct controller *c, struct node *n, const Fp8ctl__V1__LocalCopies *m); /* copies on its disk: of jobs that are over they go */
void replicas_node_lost(struct controller *c, struct node *n);
void replicas_replan(struct controller *c); /* who may hold has changed */
void replicas_loaded(struct rank *r, const Fp8ctl__V1__RankRunning *m);
void replicas_say_loaded(const struct job *j, char *buf, size_t size);

/* ckpt_coord.c, ckpt_folders.c */
extern const struct table save_table;
void save_prepared(struct controller *c, struct job *j, struct rank *r, const Fp8ctl__V1__CheckpointPrepared *m);
bool save_file_done(struct controller *c, uint64_t id, int rc, const char *text);
void save_fence(struct controller *c, struct job *j, const char *why); /* the epoch is over */
void save_nobody_left(struct controller *c, struct job *j); /* its ranks are gone: nobody writes any more */
uint32_t save_request(struct controller *c, struct job *j, uint64_t step);
bool save_failed(const struct job *j, uint64_t step, const char **ret_why); /* ret_why may be NULL */
bool save_in_flight(const struct job *j, uint64_t step);
bool save_in_hand(const struct job *j, uint64_t step);
void save_tick(struct controller *c, struct job *j, uint64_t now);
uint64_t save_next_deadline(const struct job *j);
void save_resume_clearing(struct controller *c, struct job *j); /* what an earlier life did not finish */
struct save *save_free(struct save *s);
/* A save whose shards are not written by its ranks (rescue.c). */
int save_memory_begin(struct controller *c, struct job *j, uint64_t step, uint32_t attempt, uint32_t shard_count);
int save_memory_shards(struct controller *c, struct job *j, uint64_t step, uint32_t attempt, const Fp8ctl__V1__MemorySaved *m, struct error *e);
void save_memory_write(struct controller *c, struct job *j, uint64_t step, uint32_t attempt);
void save_memory_drop(struct controller *c, struct job *j, uint64_t step, uint32_t attempt, const char *why);
const struct checkpoint *checkpoint_newest(const struct job *j);
bool checkpoint_has(const struct job *j, uint64_t step);
void checkpoint_folder(const struct job *j, uint64_t step, uint64_t epoch, uint32_t attempt, char *buf, size_t size);

/* request.c, request_read.c, submit.c */
void request_handle(struct controller *c, uint64_t request, enum request_kind kind, const ProtobufCMessage *m, const struct caller *who);
void request_gone(struct controller *c, uint64_t request);
void request_preflight_reply(struct controller *c, struct session *s, const Fp8ctl__V1__PreflightReply *m);
void request_fetch_reply(struct controller *c, struct session *s, const Fp8ctl__V1__FetchReply *m);
void request_node_gone(struct controller *c, struct node *n);
void request_committed(struct controller *c, const struct job *j, uint64_t step, uint32_t attempt); /* attempt 0: whoever waits for a save of the job */
void request_save_over(struct controller *c, const struct job *j, uint32_t attempt, const char *why); /* attempt 0: all of the job */
void request_events_new(struct controller *c);
void request_tick(struct controller *c, uint64_t now);
uint64_t request_next_deadline(const struct controller *c);
void request_free_all(struct controller *c);
