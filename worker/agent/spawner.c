/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is remembered, and until when.  A rank process stays in the list after its death, with its cause and its replica memory, until a newer
 * incarnation stands in its place (then it was told to an agent, or will be in the next synchronisation) or its job is released.  So an agent that
 * comes back, or a new one, hears of every death, and the snapshots survive any number of incarnations.
 *
 * While no agent is there, what ranks say is held (bounded) and given to the next one after SpawnerSynced: a RankReady said into the gap must
 * not be lost, or the job would wait for it for ever.
 */
#include "worker/agent/spawner.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "proto/ipc.h"
#include "worker/agent/rank_proc.h"
#include "worker/agent/user.h"

#define TICK_NS (100 * NSEC_PER_MSEC)
#define ALONE_NS (60 * NSEC_PER_SEC) /* without agent and living ranks: leave */
#define HELD_MAX 1024
#define DEFAULT_LOG_BYTES (UINT64_C(16) * 1024 * 1024)
#define KEPT_MAX 8192                /* descriptors: a rank of another node each */
#define RANKS_MAX 1024               /* processes of a node, dead ones still remembered included */

/* A descriptor that an agent gave for the next one. */
struct kept {
        struct kept *next;
        Fp8ctl__V1__KeptFd__Kind kind;
        uint64_t job_id;
        uint32_t rank;
        int fd;
};

struct spawner {
        const struct spawner_config *config;
        struct rank_proc_config proc_config;
        struct cgroup_base cgroups;
        struct loop *loop;
        char socket_path[512];
        dev_t socket_dev;
        ino_t socket_ino;
        int listen_fd, agent_fd;
        struct loop_source *listen_source, *agent_source, *tick;
        struct outbox *agent_out;
        bool synced;       /* the agent said hello */
        uint64_t alone_since_ns;
        struct rank_proc *procs;
        ProtobufCMessage *held[HELD_MAX]; /* WorkerMessage; oldest first */
        size_t n_held;
        struct kept *kept;
        bool exiting;
        uint64_t exit_deadline_ns;
};

static void agent_gone(struct spawner *s, const char *why);

/* ------------------------------------------------------------------ to the agent */

static void agent_send(struct spawner *s, Fp8ctl__V1__SpawnerToAgent *m, const int *fds, size_t n_fds) {
        struct error e = { 0 };

        if (!s->agent_out || !s->synced)
                return;
        m->version = IPC_VERSION;
        if (outbox_send(s->agent_out, &m->base, fds, n_fds, &e) < 0)
                agent_gone(s, e.text);
}

static void agent_relay(struct spawner *s, Fp8ctl__V1__WorkerMessage *m) {
        Fp8ctl__V1__SpawnerToAgent out = FP8CTL__V1__SPAWNER_TO_AGENT__INIT;

        if (s->synced) {
                out.body_case = FP8CTL__V1__SPAWNER_TO_AGENT__BODY_RELAY;
                out.relay = m;
                agent_send(s, &out, NULL, 0);
                return;
        }
        if (s->n_held == HELD_MAX) {
                protobuf_c_message_free_unpacked(s->held[0], NULL);
                memmove(s->held, s->held + 1, (HELD_MAX - 1) * sizeof(s->held[0]));
                s->n_held--;
        }
        s->held[s->n_held] = message_copy(&m->base);
        if (s->held[s->n_held])
                s->n_held++;
}

static void agent_exited(struct spawner *s, const struct rank_proc *p) {
        Fp8ctl__V1__SpawnerToAgent out = FP8CTL__V1__SPAWNER_TO_AGENT__INIT;
        Fp8ctl__V1__RankExited exited;

        rank_proc_exited(p, &exited);
        out.body_case = FP8CTL__V1__SPAWNER_TO_AGENT__BODY_EXITED;
        out.exited = &exited;
        agent_send(s, &out, NULL, 0);
}

/* A rank that could not be started, or of which nothing is known: as good as dead, and said so. */
static void agent_never_was(struct spawner *s, uint64_t job, uint64_t epoch, uint32_t rank, uint64_t incarnation, const char *cause) {
        Fp8ctl__V1__SpawnerToAgent out = FP8CTL__V1__SPAWNER_TO_AGENT__INIT;
        Fp8ctl__V1__RankExited exited = FP8CTL__V1__RANK_EXITED__INIT;

        exited.job_id = job;
        exited.epoch = epoch;
        exited.rank = rank;
        exited.incarnation = incarnation;
        exited.exit_status = 127;
        exited.reaped = true;
        exited.cause = (char *)cause;
        out.body_case = FP8CTL__V1__SPAWNER_TO_AGENT__BODY_EXITED;
        out.exited = &exited;
        agent_send(s, &out, NULL, 0);
}

static void agent_rank(struct spawner *s, const struct rank_proc *p) {
        Fp8ctl__V1__SpawnerToAgent out = FP8CTL__V1__SPAWNER_TO_AGENT__INIT;
        Fp8ctl__V1__SpawnerRank rank = FP8CTL__V1__SPAWNER_RANK__INIT;
        Fp8ctl__V1__RankStatus status = FP8CTL__V1__RANK_STATUS__INIT;
        Fp8ctl__V1__RankExited exited;
        int fds[2] = { p->flight_fd, p->replica_fd };

        status.job_id = p->job_id;
        status.epoch = p->epoch;
        status.rank = p->rank;
        status.incarnation = p->incarnation;
        status.device = p->device;
        status.pid = (uint32_t)p->pid;
        status.phase = p->phase;
        status.endpoint = (char *)p->endpoint;
        status.step = atomic_load(&p->flight->step);
        if (p->exited) {
                rank_proc_exited(p, &exited);
                status.exited = &exited;
        }
        rank.status = &status;
        rank.job_name = p->job_name;
        out.body_case = FP8CTL__V1__SPAWNER_TO_AGENT__BODY_RANK;
        out.rank = &rank;
        agent_send(s, &out, fds, p->replica_fd >= 0 ? 2 : 1);
}

/* ------------------------------------------------------------------ ranks */

static struct rank_proc *proc_find(struct spawner *s, uint64_t job, uint32_t rank, uint64_t incarnation) {
        for (struct rank_proc *p = s->procs; p; p = p->next)
                if (p->job_id == job && p->rank == rank && p->incarnation == incarnation)
                        return p;
        return NULL;
}

/* The newest incarnation in that place. */
static struct rank_proc *proc_newest(struct spawner *s, uint64_t job, uint32_t rank) {
        struct rank_proc *best = NULL;

        for (struct rank_proc *p = s->procs; p; p = p->next)
                if (p->job_id == job && p->rank == rank && (!best || p->incarnation > best->incarnation))
                        best = p;
        return best;
}

static void proc_forget(struct spawner *s, struct rank_proc *p) {
        for (struct rank_proc **at = &s->procs; *at; at = &(*at)->next)
                if (*at == p) {
                        *at = p->next;
                        rank_proc_free(p);
                        return;
                }
}

static void proc_note(struct rank_proc *p, const Fp8ctl__V1__WorkerMessage *m) {
        switch (m->body_case) {
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_READY:
                p->phase = FP8CTL__V1__RANK_PHASE__RANK_PARKED;
                snprintf(p->endpoint, sizeof(p->endpoint), "%s", m->rank_ready->endpoint);
                break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_PARKED:
                p->phase = FP8CTL__V1__RANK_PHASE__RANK_PARKED;
                if (m->rank_parked->epoch > p->epoch)
                        p->epoch = m->rank_parked->epoch;
                break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_RUNNING:
                p->phase = FP8CTL__V1__RANK_PHASE__RANK_RUNNING;
                if (m->rank_running->epoch > p->epoch)
                        p->epoch = m->rank_running->epoch;
                break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_FAULT:
                p->phase = FP8CTL__V1__RANK_PHASE__RANK_PARKED;
                break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_DONE:
                p->phase = FP8CTL__V1__RANK_PHASE__RANK_DONE;
                break;
        default:
                break;
        }
}

/* What a rank may say, and that it says it about itself only. */
static bool proc_may_say(const struct rank_proc *p, const Fp8ctl__V1__WorkerMessage *m) {
#define SELF(x) ((x)->job_id == p->job_id && (x)->rank == p->rank && (x)->incarnation == p->incarnation)
        switch (m->body_case) {
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_READY:
                return SELF(m->rank_ready);
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_PARKED:
                return SELF(m->rank_parked);
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_RUNNING:
                return SELF(m->rank_running);
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_FAULT:
                return SELF(m->rank_fault);
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_DONE:
                return SELF(m->rank_done);
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_NOTICE:
                return SELF(m->rank_notice);
        case FP8CTL__V1__WORKER_MESSAGE__BODY_CHECKPOINT_PREPARED:
                return SELF(m->checkpoint_prepared);
        default:
                return false;
        }
#undef SELF
}

static void close_all(int fds[IPC_MAX_FDS]) {
        for (int i = 0; i < IPC_MAX_FDS; i++)
                closep(&fds[i]);
}

static struct spawner *the_spawner; /* one a process; handlers get the rank as their argument */

static void on_rank_message(void *arg, uint32_t revents) {
        struct rank_proc *p = arg;

        for (;;) {
                int fds[IPC_MAX_FDS] = { -1, -1, -1, -1 };
                ProtobufCMessage *base = NULL;
                struct error e = { 0 };
                int r = ipc_recv(p->sock, &fp8ctl__v1__rank_to_node__descriptor, &base, fds, &e);

                close_all(fds);
                if (r == -EAGAIN)
                        return;
                if (r <= 0) {
                        /* Its end is seen by the pidfd; a message that cannot be read is the rank's fault and its end. */
                        if (r < 0)
                                rank_proc_kill(p, e.text);
                        p->sock_source = loop_remove(p->sock_source);
                        return;
                }
                Fp8ctl__V1__RankToNode *m = (Fp8ctl__V1__RankToNode *)base;

                if (m->message && proc_may_say(p, m->message)) {
                        proc_note(p, m->message);
                        agent_relay(the_spawner, m->message);
                } else {
                        log_warning("rank %" PRIu32 " of job %" PRIu64 ": dropped a message about somebody else", p->rank, p->job_id);
                }
                protobuf_c_message_free_unpacked(base, NULL);
        }
}

static void on_rank_log(void *arg, uint32_t revents) {
        struct rank_proc *p = arg;

        if (!rank_proc_read_log(p))
                p->log_source = loop_remove(p->log_source);
}

static void on_rank_end(void *arg, uint32_t revents) {
        struct rank_proc *p = arg;

        /* What it said before it died comes first. */
        if (p->sock_source)
                on_rank_message(p, 0);
        rank_proc_reap(p);
        if (!p->exited)
                return;
        p->pid_source = loop_remove(p->pid_source);
        p->sock_source = loop_remove(p->sock_source);
        log_info("job %" PRIu64 " rank %" PRIu32 " incarnation %" PRIu64 " (pid %d): %s", p->job_id, p->rank, p->incarnation, (int)p->pid, p->cause);
        agent_exited(the_spawner, p);
        if (p->superseded || p->released)
                proc_forget(the_spawner, p);
}

static int proc_watch(struct spawner *s, struct rank_proc *p) {
        int r = loop_add_fd(s->loop, p->sock, EPOLLIN, on_rank_message, p, &p->sock_source);

        if (r == 0)
                r = loop_add_fd(s->loop, p->pidfd, EPOLLIN, on_rank_end, p, &p->pid_source);
        if (r == 0)
                r = loop_add_fd(s->loop, p->log_fd, EPOLLIN, on_rank_log, p, &p->log_source);
        return r;
}

/* ------------------------------------------------------------------ what the agent asks for */

/* The bound of a rank's log from the job file; the rest of it is the rank's business. */
static uint64_t log_bound(const char *job_file) {
        json_error_t je;
        json_t *root = json_loads(job_file, JSON_REJECT_DUPLICATES, &je);
        json_int_t n = json_integer_value(json_object_get(json_object_get(root, "metrics"), "max_bytes"));

        json_decref(root);
        return n > 0 ? (uint64_t)n : DEFAULT_LOG_BYTES;
}

static int make_job_folder(struct spawner *s, const Fp8ctl__V1__StartRanks *m, struct error *e) {
        _cleanup_free_ char *jobs = file_path("%s/jobs", s->config->dir), *dir = file_path("%s/jobs/%" PRIu64, s->config->dir, m->job_id);
        _cleanup_free_ char *job = dir ? file_path("%s/job.json", dir) : NULL;
        int r;

        if (!jobs || !dir || !job)
                return error_errno(e, ENOMEM, "job folder");
        /* What a job trains on and what it says is its user's business: others pass through, and see nothing of it. */
        r = file_mkdir_p(jobs, 0711, e);
        if (r == 0)
                r = file_mkdir_p(dir, 0700, e);
        if (r < 0)
                return r;
        if (user_is_other(m->uid) && lchown(dir, m->uid, m->gid) < 0)
                return error_errno(e, errno, "cannot give %s to user %" PRIu32, dir, m->uid);
        user_enter(m->uid, m->gid);
        r = file_write_atomic(job, m->job_file, strlen(m->job_file), 0600, e);
        user_leave();
        return r;
}

static size_t count_procs(const struct spawner *s, bool living) {
        size_t n = 0;

        for (const struct rank_proc *p = s->procs; p; p = p->next)
                n += !living || !p->exited;
        return n;
}

static void start_one(struct spawner *s, const Fp8ctl__V1__StartRanks *m, const Fp8ctl__V1__RankStart *start, uint64_t log_max) {
        struct rank_proc_identity id = { .job_id = m->job_id, .epoch = m->epoch, .incarnation = start->incarnation, .rank = start->rank, .device = start->device,
                                         .uid = m->uid, .gid = m->gid, .log_max_bytes = log_max, .job_name = m->job_name };
        struct rank_proc *old = proc_newest(s, m->job_id, start->rank), *p = NULL;
        struct error e = { 0 };
        int r;

        if (old && old->incarnation >= start->incarnation) {
                if (old->incarnation == start->incarnation)
                        agent_rank(s, old); /* asked twice: what became of it */
                return;
        }
        if (start->device >= (uint32_t)s->config->devices) {
                error_set(&e, -EINVAL, "device %" PRIu32 " asked for, this node has %d", start->device, s->config->devices);
                agent_never_was(s, m->job_id, m->epoch, start->rank, start->incarnation, e.text);
                return;
        }
        if (old)
                rank_proc_kill(old, "replaced by a newer incarnation");
        r = rank_proc_start(s->loop, &s->proc_config, &id, old ? old->replica_fd : -1, &p, &e);
        if (r == 0) {
                if (old) {
                        old->replica_fd = -1; /* taken over */
                        old->superseded = true;
                }
                r = proc_watch(s, p);
                if (r < 0)
                        rank_proc_kill(p, "cannot be watched");
                p->next = s->procs;
                s->procs = p;
                log_info("job %" PRIu64 " rank %" PRIu32 " incarnation %" PRIu64 " started on device %" PRIu32 " (pid %d)", p->job_id, p->rank, p->incarnation,
                         p->device, (int)p->pid);
                agent_rank(s, p);
                if (old && old->exited)
                        proc_forget(s, old);
                return;
        }
        log_error("job %" PRIu64 " rank %" PRIu32 ": %s", m->job_id, start->rank, e.text);
        agent_never_was(s, m->job_id, m->epoch, start->rank, start->incarnation, e.text);
}

static void on_start(struct spawner *s, const Fp8ctl__V1__StartRanks *m) {
        uint64_t log_max = log_bound(m->job_file);
        struct error e = { 0 };
        int r = make_job_folder(s, m, &e);

        for (size_t i = 0; i < m->n_ranks; i++) {
                if (r == 0 && count_procs(s, false) >= RANKS_MAX)
                        r = error_set(&e, -EBUSY, "%d rank processes are remembered here already", RANKS_MAX);
                if (r < 0)
                        agent_never_was(s, m->job_id, m->epoch, m->ranks[i]->rank, m->ranks[i]->incarnation, e.text);
                else
                        start_one(s, m, m->ranks[i], log_max);
        }
}

static void on_kill(struct spawner *s, const Fp8ctl__V1__KillRanks *m) {
        for (size_t i = 0; i < m->n_ranks; i++) {
                struct rank_proc *p = proc_find(s, m->job_id, m->ranks[i]->rank, m->ranks[i]->incarnation);

                if (!p)
                        agent_never_was(s, m->job_id, m->epoch, m->ranks[i]->rank, m->ranks[i]->incarnation, "is not on this node");
                else if (p->exited)
                        agent_exited(s, p);
                else
                        rank_proc_kill(p, m->reason);
        }
}

static void on_relay(struct spawner *s, const Fp8ctl__V1__RelayToRank *m) {
        struct rank_proc *p = proc_find(s, m->job_id, m->rank, m->incarnation);
        Fp8ctl__V1__NodeToRank out = FP8CTL__V1__NODE_TO_RANK__INIT;
        struct error e = { 0 };

        if (!p || p->exited || !m->message)
                return;
        if (m->message->body_case == FP8CTL__V1__CONTROLLER_MESSAGE__BODY_RANK_PLAN) {
                p->phase = FP8CTL__V1__RANK_PHASE__RANK_LOADING;
                if (m->message->rank_plan->epoch > p->epoch)
                        p->epoch = m->message->rank_plan->epoch;
        }
        out.version = IPC_VERSION;
        out.message = m->message;
        if (outbox_send(p->out, &out.base, NULL, 0, &e) < 0 && e.code != -EPIPE && e.code != -ECONNRESET)
                rank_proc_kill(p, e.text);
}

/* The newest of its place wins. */
static void on_keep(struct spawner *s, const Fp8ctl__V1__KeptFd *m, int *fd) {
        struct kept *k = s->kept;
        size_t n = 0;

        if (*fd < 0)
                return;
        for (struct kept *i = s->kept; i; i = i->next)
                n++;
        while (k && (k->kind != m->kind || k->job_id != m->job_id || k->rank != m->rank))
                k = k->next;
        if (!k) {
                k = n < KEPT_MAX ? calloc(1, sizeof(*k)) : NULL;
                if (!k)
                        return;
                *k = (struct kept){ .next = s->kept, .kind = m->kind, .job_id = m->job_id, .rank = m->rank, .fd = -1 };
                s->kept = k;
        }
        closep(&k->fd);
        k->fd = STEAL_FD(*fd);
}

static void kept_forget(struct spawner *s, uint64_t job, bool all) {
        for (struct kept **at = &s->kept; *at;) {
                struct kept *k = *at;

                if (!all && (k->kind != FP8CTL__V1__KEPT_FD__KIND__REPLICA || k->job_id != job)) {
                        at = &k->next;
                        continue;
                }
                *at = k->next;
                closep(&k->fd);
                free(k);
        }
}

static void give_kept(struct spawner *s) {
        for (struct kept *k = s->kept; k && s->synced; k = k->next) {
                Fp8ctl__V1__SpawnerToAgent out = FP8CTL__V1__SPAWNER_TO_AGENT__INIT;
                Fp8ctl__V1__KeptFd m = FP8CTL__V1__KEPT_FD__INIT;

                m.kind = k->kind;
                m.job_id = k->job_id;
                m.rank = k->rank;
                out.body_case = FP8CTL__V1__SPAWNER_TO_AGENT__BODY_KEPT;
                out.kept = &m;
                agent_send(s, &out, &k->fd, 1);
        }
}

/* The job is over here: living ranks are told to leave (and made to, by the tick), dead ones are forgotten with their replica memory. */
static void on_release(struct spawner *s, Fp8ctl__V1__ReleaseJob *m) {
        Fp8ctl__V1__ControllerMessage cm = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__NodeToRank out = FP8CTL__V1__NODE_TO_RANK__INIT;
        struct rank_proc *next;

        kept_forget(s, m->job_id, false);
        cm.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_RELEASE_JOB;
        cm.release_job = m;
        out.version = IPC_VERSION;
        out.message = &cm;
        for (struct rank_proc *p = s->procs; p; p = next) {
                next = p->next;
                if (p->job_id != m->job_id)
                        continue;
                if (p->exited) {
                        proc_forget(s, p);
                        continue;
                }
                p->released = true;
                p->kill_again_ns = clock_mono_ns() + 5 * NSEC_PER_SEC;
                outbox_send(p->out, &out.base, NULL, 0, NULL);
        }
}

static void on_exit_asked(struct spawner *s) {
        s->exiting = true;
        s->exit_deadline_ns = clock_mono_ns() + 5 * NSEC_PER_SEC;
        for (struct rank_proc *p = s->procs; p; p = p->next)
                rank_proc_kill(p, "the worker leaves");
        if (count_procs(s, true) == 0)
                loop_stop(s->loop, 0);
}

static void on_hello(struct spawner *s) {
        Fp8ctl__V1__SpawnerToAgent out = FP8CTL__V1__SPAWNER_TO_AGENT__INIT;
        Fp8ctl__V1__SpawnerSynced synced = FP8CTL__V1__SPAWNER_SYNCED__INIT;

        s->synced = true;
        for (struct rank_proc *p = s->procs; p && s->synced; p = p->next)
                agent_rank(s, p);
        give_kept(s);
        synced.ranks = (uint32_t)count_procs(s, false);
        out.body_case = FP8CTL__V1__SPAWNER_TO_AGENT__BODY_SYNCED;
        out.synced = &synced;
        agent_send(s, &out, NULL, 0);
        for (size_t i = 0; i < s->n_held; i++) {
                if (s->synced)
                        agent_relay(s, (Fp8ctl__V1__WorkerMessage *)s->held[i]);
                protobuf_c_message_free_unpacked(s->held[i], NULL);
        }
        s->n_held = 0;
}

static void agent_dispatch(struct spawner *s, Fp8ctl__V1__AgentToSpawner *m, int fds[IPC_MAX_FDS]) {
        switch (m->body_case) {
        case FP8CTL__V1__AGENT_TO_SPAWNER__BODY_HELLO:
                on_hello(s);
                break;
        case FP8CTL__V1__AGENT_TO_SPAWNER__BODY_START:
                on_start(s, m->start);
                break;
        case FP8CTL__V1__AGENT_TO_SPAWNER__BODY_KILL:
                on_kill(s, m->kill);
                break;
        case FP8CTL__V1__AGENT_TO_SPAWNER__BODY_RELAY:
                on_relay(s, m->relay);
                break;
        case FP8CTL__V1__AGENT_TO_SPAWNER__BODY_RELEASE:
                on_release(s, m->release);
                break;
        case FP8CTL__V1__AGENT_TO_SPAWNER__BODY_KEEP:
                on_keep(s, m->keep, &fds[0]);
                break;
        case FP8CTL__V1__AGENT_TO_SPAWNER__BODY_EXIT:
                on_exit_asked(s);
                break;
        default:
                log_warning("spawner: dropped an unknown message of the agent");
                break;
        }
}

/* ------------------------------------------------------------------ the agent's connection */

static void agent_gone(struct spawner *s, const char *why) {
        if (s->agent_fd < 0)
                return;
        log_info("spawner: the agent is gone (%s); %zu ranks go on", why, count_procs(s, true));
        s->agent_source = loop_remove(s->agent_source);
        s->agent_out = outbox_free(s->agent_out);
        closep(&s->agent_fd);
        s->agent_fd = -1;
        s->synced = false;
        s->alone_since_ns = clock_mono_ns();
}

static void on_agent_message(void *arg, uint32_t revents) {
        struct spawner *s = arg;

        while (s->agent_fd >= 0) {
                int fds[IPC_MAX_FDS] = { -1, -1, -1, -1 };
                ProtobufCMessage *base = NULL;
                struct error e = { 0 };
                int r = ipc_recv(s->agent_fd, &fp8ctl__v1__agent_to_spawner__descriptor, &base, fds, &e);

                if (r == -EAGAIN)
                        return;
                if (r <= 0) {
                        close_all(fds);
                        agent_gone(s, r < 0 ? e.text : "hung up");
                        return;
                }
                agent_dispatch(s, (Fp8ctl__V1__AgentToSpawner *)base, fds);
                close_all(fds);
                protobuf_c_message_free_unpacked(base, NULL);
        }
}

/* One agent at a time, and the newest wins: the one before is gone or about to be. Only our own user may connect. */
static void on_connect(void *arg, uint32_t revents) {
        struct spawner *s = arg;
        int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK), r;
        struct ucred peer = { 0 };
        socklen_t len = sizeof(peer);

        if (fd < 0)
                return;
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 || (peer.uid != geteuid() && peer.uid != 0)) {
                log_warning("spawner: refused a connection of uid %u", peer.uid);
                close(fd);
                return;
        }
        agent_gone(s, "another one came");
        s->agent_fd = fd;
        r = outbox_new(s->loop, fd, &s->agent_out);
        if (r == 0)
                r = loop_add_fd(s->loop, fd, EPOLLIN, on_agent_message, s, &s->agent_source);
        if (r < 0)
                agent_gone(s, strerror(-r));
}

/* ------------------------------------------------------------------ the tick */

static bool folder_is_ours(const struct spawner *s) {
        struct stat st;

        return stat(s->socket_path, &st) == 0 && st.st_ino == s->socket_ino && st.st_dev == s->socket_dev;
}

static void check_rank(struct rank_proc *p, uint64_t now) {
        uint64_t deadline = atomic_load(&p->flight->lease_deadline_ns);

        if (p->exited)
                return;
        if (deadline && now > deadline && !p->kill_reason[0])
                rank_proc_kill(p, "the node's lease is over");
        else if (p->kill_again_ns && now > p->kill_again_ns)
                rank_proc_kill(p, p->released ? "did not leave in time" : p->kill_reason);
}

static void on_tick(void *arg) {
        struct spawner *s = arg;
        uint64_t now = clock_mono_ns();

        for (struct rank_proc *p = s->procs; p; p = p->next)
                check_rank(p, now);
        if (s->exiting) {
                if (count_procs(s, true) == 0 || now > s->exit_deadline_ns)
                        loop_stop(s->loop, 0);
        } else if (!folder_is_ours(s)) {
                log_warning("spawner: %s is gone or another's; leaving", s->socket_path);
                on_exit_asked(s);
        } else if (s->agent_fd < 0 && count_procs(s, true) == 0 && now > s->alone_since_ns + ALONE_NS) {
                log_info("spawner: no agent and no ranks; leaving");
                loop_stop(s->loop, 0);
        }
        loop_timer_set(s->tick, now + TICK_NS);
}

/* ------------------------------------------------------------------ life */

static int write_pid_file(const struct spawner *s, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/" SPAWNER_PID, s->config->dir);
        unsigned long long start = 0;
        char *stat = NULL, text[700];
        size_t len;
        int n;

        if (!path)
                return error_errno(e, ENOMEM, "spawner.pid");
        if (file_read("/proc/self/stat", 4096, &stat, &len, NULL) == 0) {
                const char *end = strrchr(stat, ')');

                if (!end || sscanf(end + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &start) != 1)
                        start = 0;
        }
        free(stat);
        n = snprintf(text, sizeof(text), "%d %llu %s\n", (int)getpid(), start, s->cgroups.path);
        return file_write_atomic(path, text, (size_t)n, 0600, e);
}

static int spawner_open(struct spawner *s, struct error *e) {
        _cleanup_free_ char *ranks = file_path("%s/ranks", s->config->dir);
        struct stat st;
        int r;

        if (!ranks)
                return error_errno(e, ENOMEM, "spawner");
        r = file_mkdir_p(ranks, 0700, e);
        if (r < 0)
                return r;
        r = loop_new(&s->loop);
        if (r < 0)
                return error_errno(e, -r, "event loop");
        cgroup_base_make(s->config->node, &s->cgroups);
        snprintf(s->socket_path, sizeof(s->socket_path), "%s/" SPAWNER_SOCKET, s->config->dir);
        r = ipc_listen(s->socket_path, &s->listen_fd, e);
        if (r < 0)
                return r;
        if (stat(s->socket_path, &st) < 0)
                return error_errno(e, errno, "%s", s->socket_path);
        s->socket_dev = st.st_dev;
        s->socket_ino = st.st_ino;
        r = write_pid_file(s, e);
        if (r < 0)
                return r;
        r = loop_add_fd(s->loop, s->listen_fd, EPOLLIN, on_connect, s, &s->listen_source);
        if (r == 0)
                r = loop_add_timer(s->loop, clock_mono_ns() + TICK_NS, on_tick, s, &s->tick);
        return r < 0 ? error_errno(e, -r, "event loop") : 0;
}

static void spawner_close(struct spawner *s) {
        while (s->procs)
                proc_forget(s, s->procs);
        agent_gone(s, "leaving");
        kept_forget(s, 0, true);
        for (size_t i = 0; i < s->n_held; i++)
                protobuf_c_message_free_unpacked(s->held[i], NULL);
        if (s->socket_path[0] && s->listen_fd >= 0 && folder_is_ours(s)) {
                _cleanup_free_ char *pid = file_path("%s/" SPAWNER_PID, s->config->dir);

                unlink(s->socket_path);
                if (pid)
                        unlink(pid);
        }
        closep(&s->listen_fd);
        loop_free(s->loop);
        if (s->cgroups.path[0])
                cgroup_clear(s->cgroups.path);
}

int spawner_run(const struct spawner_config *c, int ready_fd) {
        struct spawner s = { .config = c, .listen_fd = -1, .agent_fd = -1, .alone_since_ns = clock_mono_ns() };
        struct error e = { 0 };
        int r;

        s.proc_config = (struct rank_proc_config){ .dir = c->dir, .node = c->node, .host = c->host, .device_kind = c->device_kind, .rank_binary = c->rank_binary,
                                                   .log_level = c->log_level, .cgroups = &s.cgroups };
        the_spawner = &s;
        r = spawner_open(&s, &e);
        if (r < 0) {
                log_error("spawner: %s", e.text);
                spawner_close(&s);
                return 1;
        }
        if (ready_fd >= 0) {
                (void)!write(ready_fd, "1", 1);
                close(ready_fd);
        }
        r = loop_run(s.loop);
        if (r < 0)
                log_error("spawner: event loop: %s", strerror(-r));
        spawner_close(&s);
        return r < 0 ? 1 : 0;
}

int spawner_fork(const struct spawner_config *c, pid_t *ret_pid, struct error *e) {
        _cleanup_close_ int in = -1;
        int fds[2], null;
        pid_t pid;
        char byte;
        ssize_t n;

        if (pipe2(fds, O_CLOEXEC) < 0)
                return error_errno(e, errno, "pipe to the spawner");
        in = fds[0];
        pid = fork();
        if (pid < 0) {
                close(fds[1]);
                return error_errno(e, errno, "cannot fork the spawner");
        }
        if (pid == 0) {
                setsid(); /* a signal to the worker's process group is not for us */
                prctl(PR_SET_NAME, "fp8-spawner");
                /* Only the ready pipe and the log go along. */
                if (fds[1] != 3) {
                        dup2(fds[1], 3);
                        fds[1] = 3;
                }
                fcntl(3, F_SETFD, FD_CLOEXEC);
                (void)syscall(SYS_close_range, 4U, ~0U, 0U);
                null = open("/dev/null", O_RDWR | O_CLOEXEC);
                if (null >= 0) {
                        dup2(null, STDIN_FILENO);
                        dup2(null, STDOUT_FILENO);
                        close(null);
                }
                _exit(spawner_run(c, fds[1]));
        }
        close(fds[1]);
        do
                n = read(in, &byte, 1);
        while (n < 0 && errno == EINTR);
        if (n != 1) {
                waitpid(pid, NULL, 0);
                return error_set(e, -EIO, "the spawner did not start in %s, see the log", c->dir);
        }
        *ret_pid = pid;
        return 0;
}
