/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is remembered, and until when.  A rank process stays in the list after its death, with its cause and its replica memory, until a newer
 * incarnation stands in its place (then it was told to an agent, or will be in the next synchronisation) or its job is released.  So an agent that
 * comes back, or a new one, hears of every death, and the snapshots survive any number of incarnations.
 */
#include "worker/agent/spawner_private.h"

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
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "worker/agent/user.h"

#define TICK_NS (100 * NSEC_PER_MSEC)
#define ALONE_NS (60 * NSEC_PER_SEC) /* without agent and living ranks: leave */
#define DEFAULT_LOG_BYTES (UINT64_C(16) * 1024 * 1024)
#define RANKS_MAX 1024 /* processes of a node, dead ones still remembered included */

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

static struct spawner *the_spawner; /* one a process; handlers get the rank as their argument */

static void take_message(struct rank_proc *p, Fp8ctl__V1__WorkerMessage *m) {
        if (proc_may_say(p, m)) {
                proc_note(p, m);
                spawner_say(the_spawner, m);
        } else {
                log_warning("rank %" PRIu32 " of job %" PRIu64 ": dropped a message about somebody else", p->rank, p->job_id);
        }
}

static void on_rank_message(void *arg, uint32_t revents) {
        rank_proc_hear(arg, take_message);
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
        spawner_say_exited(the_spawner, p);
        if (p->superseded || p->released)
                proc_forget(the_spawner, p);
}

int spawner_watch(struct spawner *s, struct rank_proc *p) {
        int r = loop_add_fd(s->loop, p->sock, EPOLLIN, on_rank_message, p, &p->sock_source);

        if (r == 0)
                r = loop_add_fd(s->loop, p->pidfd, EPOLLIN, on_rank_end, p, &p->pid_source);
        if (r == 0)
                r = loop_add_fd(s->loop, p->log_fd, EPOLLIN, rank_proc_on_log, p, &p->log_source);
        return r;
}

/* ------------------------------------------------------------------ what the agent asks for */

uint64_t spawner_read_job_file(const char *job_file, bool *ret_local, uint32_t *ret_dp) {
        json_error_t je;
        json_t *root = json_loads(job_file, JSON_REJECT_DUPLICATES, &je);
        json_int_t n = json_integer_value(json_object_get(json_object_get(root, "metrics"), "max_bytes"));

        if (ret_dp)
                *ret_dp = (uint32_t)json_integer_value(json_object_get(json_object_get(root, "parallel"), "dp"));
        *ret_local = json_integer_value(json_object_get(json_object_get(root, "checkpoint"), "local_every")) > 0;
        json_decref(root);
        return n > 0 ? (uint64_t)n : DEFAULT_LOG_BYTES;
}

int spawner_job_folder(struct spawner *s, uint64_t number, const char *job_file, uid_t uid, gid_t gid, struct error *e) {
        _cleanup_free_ char *jobs = file_path("%s/jobs", s->config->dir), *dir = file_path("%s/jobs/%" PRIu64, s->config->dir, number);
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
        if (user_is_other(uid) && lchown(dir, uid, gid) < 0)
                return error_errno(e, errno, "cannot give %s to user %" PRIu32, dir, uid);
        user_enter(uid, gid);
        r = file_write_atomic(job, job_file, strlen(job_file), 0600, e);
        user_leave();
        return r;
}

size_t spawner_count(const struct spawner *s, bool living) {
        size_t n = 0;

        for (const struct rank_proc *p = s->procs; p; p = p->next)
                n += !living || !p->exited;
        for (const struct rank_proc *p = s->standbys; p; p = p->next)
                n += !living || !p->exited;
        return n;
}

static void start_one(struct spawner *s, const Fp8ctl__V1__StartRanks *m, const Fp8ctl__V1__RankStart *start, uint64_t log_max, bool local) {
        struct rank_proc_identity id = { .job_id = m->job_id, .epoch = m->epoch, .incarnation = start->incarnation, .rank = start->rank, .device = start->device,
                                         .uid = m->uid, .gid = m->gid, .log_max_bytes = log_max, .job_name = m->job_name, .cluster = m->cluster_id,
                                         .local = local };
        struct rank_proc *old = proc_newest(s, m->job_id, start->rank), *p = NULL;
        struct error e = { 0 };
        int r;

        if (old && old->incarnation >= start->incarnation) {
                if (old->incarnation == start->incarnation)
                        spawner_say_rank(s, old); /* asked twice: what became of it */
                return;
        }
        if (start->device >= (uint32_t)s->config->devices) {
                error_set(&e, -EINVAL, "device %" PRIu32 " asked for, this node has %d", start->device, s->config->devices);
                spawner_say_never_was(s, m->job_id, m->epoch, start->rank, start->incarnation, e.text);
                return;
        }
        if (old)
                rank_proc_kill(old, "replaced by a newer incarnation");
        p = standby_take(s, &id, old ? old->replica_fd : -1);
        r = p ? 0 : rank_proc_start(s->loop, &s->proc_config, &id, old ? old->replica_fd : -1, &p, &e);
        if (r == 0) {
                if (old) {
                        old->replica_fd = -1; /* taken over */
                        old->superseded = true;
                }
                r = spawner_watch(s, p);
                if (r < 0)
                        rank_proc_kill(p, "cannot be watched");
                p->next = s->procs;
                s->procs = p;
                log_info("job %" PRIu64 " rank %" PRIu32 " incarnation %" PRIu64 " started on device %" PRIu32 " (pid %d)", p->job_id, p->rank, p->incarnation,
                         p->device, (int)p->pid);
                spawner_say_rank(s, p);
                if (old && old->exited)
                        proc_forget(s, old);
                return;
        }
        log_error("job %" PRIu64 " rank %" PRIu32 ": %s", m->job_id, start->rank, e.text);
        spawner_say_never_was(s, m->job_id, m->epoch, start->rank, start->incarnation, e.text);
}

/* It may be loaded at any time. */
static void find_driver(struct spawner *s) {
        int r = s->guard_fd < 0 ? guard_open() : -EALREADY;

        if (r < 0)
                return;
        s->guard_fd = r;
        log_info("the driver holds the leases of this node's ranks too");
}

void spawner_start(struct spawner *s, const Fp8ctl__V1__StartRanks *m) {
        bool local;
        uint64_t log_max = spawner_read_job_file(m->job_file, &local, NULL);
        struct error e = { 0 };
        int r = spawner_job_folder(s, m->job_id, m->job_file, m->uid, m->gid, &e);

        find_driver(s);
        for (size_t i = 0; i < m->n_ranks; i++) {
                if (r == 0 && spawner_count(s, false) >= RANKS_MAX)
                        r = error_set(&e, -EBUSY, "%d rank processes are remembered here already", RANKS_MAX);
                if (r < 0)
                        spawner_say_never_was(s, m->job_id, m->epoch, m->ranks[i]->rank, m->ranks[i]->incarnation, e.text);
                else
                        start_one(s, m, m->ranks[i], log_max, local);
        }
}

void spawner_kill(struct spawner *s, const Fp8ctl__V1__KillRanks *m) {
        for (size_t i = 0; i < m->n_ranks; i++) {
                struct rank_proc *p = proc_find(s, m->job_id, m->ranks[i]->rank, m->ranks[i]->incarnation);

                if (!p)
                        spawner_say_never_was(s, m->job_id, m->epoch, m->ranks[i]->rank, m->ranks[i]->incarnation, "is not on this node");
                else if (p->exited)
                        spawner_say_exited(s, p);
                else
                        rank_proc_kill(p, m->reason);
        }
}

void spawner_relay(struct spawner *s, const Fp8ctl__V1__RelayToRank *m) {
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

/* The job is over here: living ranks are told to leave (and made to, by the tick), dead ones are forgotten with their replica memory. */
void spawner_release(struct spawner *s, Fp8ctl__V1__ReleaseJob *m) {
        Fp8ctl__V1__ControllerMessage cm = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__NodeToRank out = FP8CTL__V1__NODE_TO_RANK__INIT;
        struct rank_proc *next;

        spawner_kept_forget(s, m->job_id, false);
        standbys_release(s, m->job_id, "the job has left this node");
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

void spawner_leave(struct spawner *s) {
        s->exiting = true;
        s->exit_deadline_ns = clock_mono_ns() + 5 * NSEC_PER_SEC;
        for (struct rank_proc *p = s->procs; p; p = p->next)
                rank_proc_kill(p, "the worker leaves");
        standbys_release(s, 0, "the worker leaves");
        if (spawner_count(s, true) == 0)
                loop_stop(s->loop, 0);
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
        guard_keep(&p->lease, p->pid, deadline, now);
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
        standbys_tick(s, now);
        if (s->exiting) {
                if (spawner_count(s, true) == 0 || now > s->exit_deadline_ns)
                        loop_stop(s->loop, 0);
        } else if (!folder_is_ours(s)) {
                log_warning("spawner: %s is gone or another's; leaving", s->socket_path);
                spawner_leave(s);
        } else if (s->agent_fd < 0 && spawner_count(s, true) == 0 && now > s->alone_since_ns + ALONE_NS) {
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
        r = loop_add_fd(s->loop, s->listen_fd, EPOLLIN, spawner_on_connect, s, &s->listen_source);
        if (r == 0)
                r = loop_add_timer(s->loop, clock_mono_ns() + TICK_NS, on_tick, s, &s->tick);
        return r < 0 ? error_errno(e, -r, "event loop") : 0;
}

static void spawner_close(struct spawner *s) {
        while (s->procs)
                proc_forget(s, s->procs);
        standbys_free(s);
        spawner_agent_gone(s, "leaving");
        spawner_kept_forget(s, 0, true);
        for (size_t i = 0; i < s->n_held; i++)
                protobuf_c_message_free_unpacked(s->held[i], NULL);
        if (s->socket_path[0] && s->listen_fd >= 0 && folder_is_ours(s)) {
                _cleanup_free_ char *pid = file_path("%s/" SPAWNER_PID, s->config->dir);

                unlink(s->socket_path);
                if (pid)
                        unlink(pid);
        }
        closep(&s->listen_fd);
        closep(&s->guard_fd);
        loop_free(s->loop);
        if (s->cgroups.path[0])
                cgroup_clear(s->cgroups.path);
}

int spawner_run(const struct spawner_config *c, int ready_fd) {
        struct spawner s = { .config = c, .listen_fd = -1, .agent_fd = -1, .guard_fd = -1, .alone_since_ns = clock_mono_ns() };
        struct error e = { 0 };
        int r;

        s.proc_config = (struct rank_proc_config){ .dir = c->dir, .node = c->node, .host = c->host, .device_kind = c->device_kind, .rank_binary = c->rank_binary, .rdma = c->rdma ? c->rdma : "", .local_dir = c->local_dir, .local_space = c->local_space,
                                                   .log_level = c->log_level, .cgroups = &s.cgroups, .guard_fd = &s.guard_fd };
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
