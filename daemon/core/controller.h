/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The controller's core: all state, no I/O, no clock, no threads, no gRPC.  It is called with one event at a time and acts through
 * struct cluster_io.  tests/sim runs the same code with thousands of simulated workers on virtual time.
 *
 * Persist before act: during one call of the core, everything given to io->persist forms one transaction; whatever the core sends, replies or
 * hands to the file helper *during the same call* leaves only after that transaction is durable.  When the transaction fails (-ECANCELED: an EXPECT did
 * not hold, we are not the owner of that epoch any more), none of it leaves and controller_persist_failed is called.  The core then is ahead of its store and does
 * nothing more: requests are answered UNAVAILABLE.  The I/O layer says why and ends the process; the next start goes on from the store, which is the truth.
 */
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "daemon/store/store.h"
#include "proto/fp8ctl.pb-c.h"

struct controller;

/* Who asks; filled by the I/O layer from the verified identity. */
struct caller {
        bool admin;      /* may touch everyone's jobs */
        bool is_node;    /* a worker's certificate; node[] is its name */
        char user[128];
        char node[128];
        uint32_t uid, gid;
};

enum request_kind { REQ_STATUS, REQ_SUBMIT, REQ_LIST_JOBS, REQ_GET_JOB, REQ_CANCEL_JOB, REQ_SAVE_JOB, REQ_LIST_NODES, REQ_GET_NODE, REQ_LIST_EVENTS,
                    REQ_READ_FILE, REQ_LIST_CHECKPOINTS, REQ_REMOVE_CHECKPOINT, REQ_SCALE_JOB, REQ_SET_NODE, REQ_TEST_NODE, REQ_DIAGNOSE_JOB, REQ_TEST_PAIRS,
                    REQ_START_ROLLOUT, REQ_LIST_ROLLOUTS, REQ_GET_ROLLOUT, REQ_SET_ROLLOUT };

/* File work done outside the loop by a helper running as the submitting user. */
struct file_work {
        uint64_t id;
        enum { FILE_WRITE_MANIFEST, FILE_REMOVE_TREE, FILE_REMOVE_UNFINISHED /* unless it has a manifest */,
               FILE_REMOVE_STALE /* every step folder without one of an epoch below that in text */ } kind;
        uint32_t uid, gid;
        const char *path; /* manifest: folder of the step; tree: what to remove (must lie under the job's checkpoint folder); stale: that folder */
        const char *text; /* manifest.json */
};

struct cluster_io {
        void *arg;
        uint64_t (*mono_ns)(void *arg);
        uint64_t (*wall_ms)(void *arg);
        void (*random)(void *arg, void *buf, size_t len);
        void (*persist)(void *arg, const struct store_op *op);                                                  /* copies */
        void (*send_worker)(void *arg, uint64_t session, const Fp8ctl__V1__ControllerMessage *m);               /* packs at once */
        void (*close_worker)(void *arg, uint64_t session, int rpc_status, const char *why);
        void (*reply)(void *arg, uint64_t request, int rpc_status, const char *error, const ProtobufCMessage *m); /* rpc_status 0: m */
        void (*file_work)(void *arg, const struct file_work *w);                                                /* copies; answered by controller_file_done */
        void (*wake_at)(void *arg, uint64_t mono_ns);                                                           /* controller_tick no later than this */
        void (*log)(void *arg, int level, const char *text);
};

struct controller_config {
        uint32_t lease_ttl_ms;   /* 10000 */
        uint32_t heartbeat_ms;   /* 1000 */
        uint32_t restart_budget_ms; /* 3000 */
        uint32_t keep_jobs;         /* that have ended, the newest; 1000 */
        uint32_t keep_event_days;   /* 30 */
        bool test_hooks;
        uint32_t health_share;      /* percent of all devices: no more than those are kept from ranks because of their health within health_window_ms; 50 */
        uint32_t health_window_ms;  /* 300000 */
        uint32_t health_settle_ms;  /* a node whose checks are well again takes ranks again after that, and after twice as long each time; 60000 */
        bool gasps;                 /* datagrams of dying kernels are listened for: workers get keys */
        bool test_nodes;            /* a node gets ranks after its test only, once a boot */
        const char *version;
};

int controller_new(const struct cluster_io *io, const struct controller_config *c, struct controller **ret, struct error *e);
struct controller *controller_free(struct controller *c);

/* Before the first event: each stored record, in any order; then controller_start (waits out leases of an earlier life, decides what goes on). */
int controller_load(struct controller *c, const char *key, const void *value, size_t len, struct error *e);
int controller_start(struct controller *c, struct error *e);

/* A worker's stream. session: a number the I/O layer never uses twice. */
void controller_worker_opened(struct controller *c, uint64_t session, const struct caller *who);
void controller_worker_message(struct controller *c, uint64_t session, const Fp8ctl__V1__WorkerMessage *m);
void controller_worker_closed(struct controller *c, uint64_t session);

/* A client's request; answered by exactly one io->reply, now or later. */
void controller_request(struct controller *c, uint64_t request, enum request_kind kind, const ProtobufCMessage *m, const struct caller *who);
void controller_request_gone(struct controller *c, uint64_t request); /* the client hung up: forget, do not reply */

void controller_file_done(struct controller *c, uint64_t id, int rc, const char *text);
void controller_persist_failed(struct controller *c, int rc, const char *text);
/* A datagram from anywhere, perhaps of a node whose kernel is dying (proto/gasp.h). One that is signed with the key of that node's newest session, from the boot that it told of, makes the node lost at once. */
void controller_gasp(struct controller *c, const void *data, size_t len);
void controller_tick(struct controller *c);
