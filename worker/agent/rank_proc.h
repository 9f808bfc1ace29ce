/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* One rank process as the spawner holds it: how it is started, its log, its end. Single-threaded. */
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/file.h"
#include "base/loop.h"
#include "proto/flight.h"
#include "proto/fp8ctl.pb-c.h"
#include "worker/agent/cgroup.h"
#include "worker/agent/guard.h"
#include "worker/agent/outbox.h"

struct rank_proc_config {
        const char *dir, *node, *host, *device_kind, *rank_binary, *log_level, *rdma;
        const char *local_dir; /* for copies of snapshots on this node's disk; NULL: none */
        uint64_t local_space;  /* bytes that a rank may fill there */
        const struct cgroup_base *cgroups;
        const int *guard_fd; /* the driver's; -1: none */
};

/* What it is started with. */
struct rank_proc_identity {
        uint64_t job_id, epoch, incarnation;
        uint32_t rank, device;
        uid_t uid;
        gid_t gid;
        uint64_t log_max_bytes;
        const char *job_name, *cluster; /* "": unknown */
        bool local;                     /* its job wants copies on this node's disk */
        uint64_t standby;               /* not 0: a standby of this number, which becomes a rank later; incarnation 0 */
        bool warm;                      /* ... that opens the device */
};

struct rank_proc {
        struct rank_proc *next;
        uint64_t job_id, epoch, incarnation;
        uint32_t rank, device;
        uid_t uid;
        gid_t gid;
        char *job_name;
        uint64_t standby; /* not 0: no rank yet */
        bool warm, ready;
        uint32_t dp;      /* that a standby was made for */

        pid_t pid;
        int pidfd, sock, log_fd, flight_fd, replica_fd; /* -1: none */
        struct flight *flight;
        struct outbox *out;
        struct loop_source *sock_source, *pid_source, *log_source; /* the spawner's */
        struct rotated_log *log;
        char dir[512], cgroup[512], tail[1024];
        size_t tail_len;
        uint64_t oom_before;
        struct guard_lease lease;

        Fp8ctl__V1__RankPhase phase;
        char endpoint[512];
        char kill_reason[256]; /* not empty: we killed it */
        uint64_t kill_again_ns;
        bool superseded;       /* a newer incarnation stands in its place: forgotten once reaped and told */
        bool released;         /* its job is over: likewise, and its replica memory goes with it */

        bool exited;
        int exit_status, signal;
        bool oom;
        char cause[512];
};

/* replica_fd: the replica segment of the incarnation before (taken over on success), or -1 for a new one. */
int rank_proc_start(struct loop *l, const struct rank_proc_config *c, const struct rank_proc_identity *id, int replica_fd, struct rank_proc **ret,
                    struct error *e);
/*
 * A standby becomes the rank that id names; it is told so, and reports ready when it is one.  replica_fd: of the incarnation before, taken over on success; -1: its own, empty.  An error
 * means that it cannot be used and is to be killed.
 */
int rank_proc_become(struct rank_proc *p, const struct rank_proc_identity *id, int replica_fd, struct error *e);
/* Kills it and everything it forked, now; reason goes into the cause. Harmless when it is over. */
void rank_proc_kill(struct rank_proc *p, const char *reason);
/* Reads what its log pipe has; false at its end. */
bool rank_proc_read_log(struct rank_proc *p);
/* For p->log_fd: reads on until its end, then watches it no more. */
void rank_proc_on_log(void *p, uint32_t revents);
/*
 * Reads what it said, all that is there, and gives each message to `take`. Its end is seen by the pidfd; a message that cannot be read is the process's fault and its
 * end.
 */
void rank_proc_hear(struct rank_proc *p, void (*take)(struct rank_proc *p, Fp8ctl__V1__WorkerMessage *m));
/* After the pidfd became readable: reaps it, fills the exit fields, cleans up what only a living process needs. */
void rank_proc_reap(struct rank_proc *p);
/* Not for a living one. */
struct rank_proc *rank_proc_free(struct rank_proc *p);
/* Points into p; valid until it changes. */
void rank_proc_exited(const struct rank_proc *p, Fp8ctl__V1__RankExited *ret);
