/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the files of the spawner share: spawner.c has the ranks, spawner_agent.c the agent's connection. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/loop.h"
#include "proto/ipc.h"
#include "worker/agent/rank_proc.h"
#include "worker/agent/spawner.h"

#define HELD_MAX 1024

struct kept;

struct spawner {
        const struct spawner_config *config;
        struct rank_proc_config proc_config;
        struct cgroup_base cgroups;
        int guard_fd; /* the driver holds the ranks' leases too; -1: there is none */
        struct loop *loop;
        char socket_path[512];
        dev_t socket_dev;
        ino_t socket_ino;
        int listen_fd, agent_fd;
        struct loop_source *listen_source, *agent_source, *tick;
        struct outbox *agent_out;
        bool synced;       /* the agent said hello */
        uint64_t alone_since_ns;
        struct rank_proc *procs, *standbys;
        ProtobufCMessage *held[HELD_MAX]; /* WorkerMessage; oldest first */
        size_t n_held;
        struct kept *kept;
        bool exiting;
        uint64_t exit_deadline_ns;
};

/* spawner.c: what the agent asks for. */
void spawner_start(struct spawner *s, const Fp8ctl__V1__StartRanks *m);
void spawner_kill(struct spawner *s, const Fp8ctl__V1__KillRanks *m);
void spawner_relay(struct spawner *s, const Fp8ctl__V1__RelayToRank *m);
void spawner_release(struct spawner *s, Fp8ctl__V1__ReleaseJob *m);
void spawner_leave(struct spawner *s);
size_t spawner_count(const struct spawner *s, bool living); /* standbys included */
/* The job's folder on this node, with the job file in it. */
int spawner_job_folder(struct spawner *s, uint64_t job, const char *job_file, uid_t uid, gid_t gid, struct error *e);
/* The bound of a rank's log, and whether it makes copies on this node's disk, from the job file; the rest of it is the rank's business. */
uint64_t spawner_read_job_file(const char *job_file, bool *ret_local, uint32_t *ret_dp);
/* A rank's, or a standby's that has just become one. */
int spawner_watch(struct spawner *s, struct rank_proc *p);

/* spawner_standby.c */
void standbys_plan(struct spawner *s, const Fp8ctl__V1__StandbyPlan *m);
/* One that fits becomes the rank that id names and leaves the list; NULL: there is none. replica_fd as of rank_proc_become(). */
struct rank_proc *standby_take(struct spawner *s, const struct rank_proc_identity *id, int replica_fd);
void standbys_say(struct spawner *s); /* to an agent that has just come */
void standbys_release(struct spawner *s, uint64_t job, const char *why); /* 0: of all jobs */
void standbys_tick(struct spawner *s, uint64_t now);
void standbys_free(struct spawner *s);

/* spawner_agent.c: what it is told. Nothing is sent before it said hello; what ranks say is held until then. */
void spawner_say(struct spawner *s, Fp8ctl__V1__WorkerMessage *m);
void spawner_say_rank(struct spawner *s, const struct rank_proc *p);
void spawner_say_standby(struct spawner *s, const struct rank_proc *p, Fp8ctl__V1__StandbyStatus__State state);
void spawner_say_exited(struct spawner *s, const struct rank_proc *p);
/* A rank that could not be started, or of which nothing is known: as good as dead, and said so. */
void spawner_say_never_was(struct spawner *s, uint64_t job, uint64_t epoch, uint32_t rank, uint64_t incarnation, const char *cause);
/* For s->listen_fd. One agent at a time, and the newest wins: the one before is gone or about to be. Only our own user may connect. */
void spawner_on_connect(void *arg, uint32_t revents);
void spawner_agent_gone(struct spawner *s, const char *why);
/* Descriptors that an agent gave for the next one: those of a job's replicas, or all. */
void spawner_kept_forget(struct spawner *s, uint64_t job, bool all);
