/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between fork and exec the child only makes system calls (the spawner has one thread, so this is habit, not need).  Order
 * matters there: the parent-death signal is cleared by a change of user, so it is asked for after; and the parent may have died before
 * that, so getppid is looked at after asking (prctl(2)).
 */
#include "worker/agent/rank_proc.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <linux/close_range.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "format/local_copy.h"
#include "proto/ipc.h"
#include "proto/replica.h"
#include "worker/agent/user.h"

/* glibc has no name for it before 2.36; the number is linux/wait.h's, which does not go with sys/wait.h. */
#if !__GLIBC_PREREQ(2, 36)
#define P_PIDFD ((idtype_t)3)
#endif

#define OOM_SCORE "600" /* a rank goes before the daemons when memory is out */

DEFINE_CLEANUP(struct rank_proc *, rank_proc_free);

/* Kills by the kernel's out-of-memory killer so far: in the group where it counts them, else on the whole machine. */
static uint64_t oom_kills(const char *cgroup) {
        uint64_t n = cgroup_oom_kills(cgroup);
        _cleanup_fclose_ FILE *f = NULL;
        char line[128];

        if (n)
                return n;
        f = fopen("/proc/vmstat", "re");
        while (f && fgets(line, sizeof(line), f))
                if (sscanf(line, "oom_kill %" SCNu64, &n) == 1)
                        return n;
        return 0;
}

struct child {
        const struct rank_proc *p;
        const char *binary;
        char **argv, **envp;
        int sock, log;
        pid_t parent;
        gid_t groups[64];
        int n_groups;
};

static void child_fail(const char *what) {
        char text[256];
        int n = snprintf(text, sizeof(text), "%s: %s\n", what, strerror(errno));

        if (n > 0)
                (void)!write(STDERR_FILENO, text, (size_t)n);
        _exit(127);
}

static void child_become(const struct child *c) {
        int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

        if (fd >= 0) {
                (void)!write(fd, OOM_SCORE, strlen(OOM_SCORE));
                close(fd);
        }
        if (c->p->cgroup[0])
                (void)cgroup_enter(c->p->cgroup);
        setsid();
        if (user_is_other(c->p->uid) && (setgroups((size_t)c->n_groups, c->groups) < 0 || setgid(c->p->gid) < 0 || setuid(c->p->uid) < 0))
                child_fail("cannot become the job's user");
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
                child_fail("PR_SET_PDEATHSIG");
        if (getppid() != c->parent)
                _exit(127);
}

static void __attribute__((noreturn)) child_run(const struct child *c) {
        const int from[] = { c->sock, c->p->flight_fd, c->p->replica_fd };
        int high[3], null;
        sigset_t none;

        if (dup2(c->log, STDERR_FILENO) < 0 || dup2(c->log, STDOUT_FILENO) < 0)
                _exit(127);
        null = open("/dev/null", O_RDONLY);
        if (null < 0 || dup2(null, STDIN_FILENO) < 0)
                child_fail("/dev/null");
        child_become(c);
        /* First out of the way, then into place: the sources may lie on 3, 4, 5 in any order. */
        for (size_t i = 0; i < ARRAY_SIZE(from); i++) {
                high[i] = fcntl(from[i], F_DUPFD, 16);
                if (high[i] < 0)
                        child_fail("cannot place descriptors");
        }
        for (size_t i = 0; i < ARRAY_SIZE(from); i++)
                if (dup2(high[i], 3 + (int)i) < 0)
                        child_fail("cannot place descriptors");
        (void)syscall(SYS_close_range, 6U, ~0U, 0U);
        for (int s = 1; s < 32; s++)
                signal(s, SIG_DFL);
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        execve(c->binary, c->argv, c->envp);
        child_fail(c->binary);
        _exit(127);
}

/* Environment of a rank: ours, with BLAS and OpenMP held to one thread (part of the numeric fingerprint). */
static int make_environment(char ***ret) {
        static const char *const fixed[] = { "OPENBLAS_NUM_THREADS=1", "OMP_NUM_THREADS=1", "GOTO_NUM_THREADS=1" };
        static const char *const drop[] = { "OPENBLAS_NUM_THREADS=", "OMP_NUM_THREADS=", "GOTO_NUM_THREADS=", "NOTIFY_SOCKET=", "WATCHDOG_PID=", "WATCHDOG_USEC=",
                                            "LISTEN_FDS=", "LISTEN_PID=" };
        size_t n = 0, k = 0;
        char **env;

        while (environ[n])
                n++;
        env = calloc(n + ARRAY_SIZE(fixed) + 1, sizeof(*env));
        if (!env)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++) {
                bool keep = true;

                for (size_t j = 0; j < ARRAY_SIZE(drop); j++)
                        keep = keep && strncmp(environ[i], drop[j], strlen(drop[j])) != 0;
                if (keep)
                        env[k++] = environ[i];
        }
        for (size_t i = 0; i < ARRAY_SIZE(fixed); i++)
                env[k++] = (char *)fixed[i];
        *ret = env;
        return 0;
}

/* The job's folder on this node's disk, the user's own; NULL: there is none, which the rank says when its job wants one. */
static char *local_folder(const struct rank_proc_config *c, const struct rank_proc_identity *id) {
        _cleanup_free_ char *dir = c->local_dir ? local_copies_of_job(c->local_dir, id->cluster ? id->cluster : "", id->job_id) : NULL;
        struct error e = { 0 };
        int r = dir ? file_mkdir_p(c->local_dir, 0711, &e) : 0;

        if (dir && r == 0)
                r = file_mkdir_p(dir, 0700, &e);
        if (dir && r == 0 && user_is_other(id->uid) && lchown(dir, id->uid, id->gid) < 0)
                r = error_errno(&e, errno, "%s", dir);
        if (r == 0)
                return STEAL_PTR(dir);
        log_warning("no copies of snapshots on this node's disk: %s", e.text);
        return NULL;
}

static int spawn(struct rank_proc *p, const struct rank_proc_config *c, const struct rank_proc_identity *id, int sock, int log, struct error *e) {
        _cleanup_free_ char *local = id->local ? local_folder(c, id) : NULL;
        char job[24], rank[16], incarnation[24], device[16], epoch[24], space[24], standby[24];
        char *argv[] = { (char *)"fp8-rank",      (char *)"--job",    job,                (char *)"--rank",        rank,
                         (char *)"--incarnation", incarnation,        (char *)"--device", device,                  (char *)"--dir",
                         (char *)c->dir,          (char *)"--node",   (char *)c->node,    (char *)"--epoch",       epoch,
                         (char *)"--host",        (char *)c->host,    (char *)"--device-kind", (char *)c->device_kind, (char *)"--log-level",
                         (char *)c->log_level,    (char *)"--rdma",   (char *)c->rdma,    (char *)"--local-dir",   local ? local : (char *)"",
                         (char *)"--local-space", space,              p->standby ? (char *)"--standby" : NULL,  standby, p->warm ? (char *)"--warm" : NULL,
                         NULL };
        _cleanup_free_ char **env = NULL;
        struct child child = { .p = p, .binary = c->rank_binary, .argv = argv, .sock = sock, .log = log, .parent = getpid() };
        int r;

        snprintf(job, sizeof(job), "%" PRIu64, p->job_id);
        snprintf(rank, sizeof(rank), "%" PRIu32, p->rank);
        snprintf(incarnation, sizeof(incarnation), "%" PRIu64, p->incarnation);
        snprintf(device, sizeof(device), "%" PRIu32, p->device);
        snprintf(epoch, sizeof(epoch), "%" PRIu64, p->epoch);
        snprintf(space, sizeof(space), "%" PRIu64, c->local_space);
        snprintf(standby, sizeof(standby), "%" PRIu64, p->standby);
        if (user_is_other(p->uid)) {
                struct passwd *pw = getpwuid(p->uid);

                child.n_groups = ARRAY_SIZE(child.groups);
                if (!pw || getgrouplist(pw->pw_name, p->gid, child.groups, &child.n_groups) < 0) {
                        child.groups[0] = p->gid;
                        child.n_groups = 1;
                }
        }
        r = make_environment(&env);
        if (r < 0)
                return error_errno(e, -r, "environment of a rank");
        child.envp = env;
        p->pid = fork();
        if (p->pid < 0)
                return error_errno(e, errno, "cannot fork a rank process");
        if (p->pid == 0)
                child_run(&child);
        p->pidfd = (int)syscall(SYS_pidfd_open, p->pid, 0);
        if (p->pidfd < 0) {
                r = error_errno(e, errno, "pidfd_open(%d)", (int)p->pid);
                kill(p->pid, SIGKILL);
                waitpid(p->pid, NULL, 0);
                p->pid = 0;
                return r;
        }
        return 0;
}

/* What its files and its control group are called after. */
static void proc_tag(const struct rank_proc *p, char *buf, size_t size) {
        if (p->standby)
                snprintf(buf, size, "%" PRIu64 ".s%" PRIu64, p->job_id, p->standby);
        else
                snprintf(buf, size, "%" PRIu64 ".%" PRIu32 ".%" PRIu64, p->job_id, p->rank, p->incarnation);
}

static void pid_file(const struct rank_proc *p, char *buf, size_t size) {
        char tag[96];

        proc_tag(p, tag, sizeof(tag));
        snprintf(buf, size, "%s/../../ranks/%s", p->dir, tag);
}

/* pid and start time, by which a later life finds a rank that outlived everything (worker/agent/leftovers.c). */
static void record_pid(const struct rank_proc *p) {
        char path[640], text[128], stat[1024];
        _cleanup_close_ int fd = -1;
        unsigned long long start = 0;
        const char *end;
        ssize_t n;

        snprintf(path, sizeof(path), "/proc/%d/stat", (int)p->pid);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        n = fd < 0 ? -1 : read(fd, stat, sizeof(stat) - 1);
        if (n <= 0)
                return;
        stat[n] = '\0';
        end = strrchr(stat, ')');
        if (!end || sscanf(end + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &start) != 1)
                return;
        pid_file(p, path, sizeof(path));
        n = snprintf(text, sizeof(text), "%d %llu\n", (int)p->pid, start);
        file_write_atomic(path, text, (size_t)n, 0600, NULL);
}

static int open_log_file(const struct rank_proc *p, uint64_t max_bytes, struct rotated_log **ret, struct error *e) {
        char path[640];
        int r;

        if (p->standby)
                snprintf(path, sizeof(path), "%s/standby.log", p->dir);
        else
                snprintf(path, sizeof(path), "%s/rank%" PRIu32 ".log", p->dir, p->rank);
        user_enter(p->uid, p->gid);
        r = rotated_log_open(path, max_bytes, ret, e);
        user_leave();
        return r;
}

static int open_log(struct rank_proc *p, uint64_t max_bytes, int *ret_write_end, struct error *e) {
        int fds[2], r;

        r = open_log_file(p, max_bytes, &p->log, e);
        if (r < 0)
                return r;
        if (pipe2(fds, O_CLOEXEC) < 0)
                return error_errno(e, errno, "pipe for a rank's output");
        p->log_fd = fds[0];
        *ret_write_end = fds[1];
        if (fcntl(p->log_fd, F_SETFL, O_NONBLOCK) < 0)
                return error_errno(e, errno, "pipe for a rank's output");
        return 0;
}

int rank_proc_start(struct loop *l, const struct rank_proc_config *c, const struct rank_proc_identity *id, int replica_fd, struct rank_proc **ret,
                    struct error *e) {
        _cleanup_(rank_proc_freep) struct rank_proc *p = calloc(1, sizeof(*p));
        _cleanup_close_ int log = -1, new_replica = -1, peer = -1;
        char name[128], tag[96];
        uint64_t late = 0;
        int pair[2] = { -1, -1 }, r;

        if (!p)
                return error_errno(e, ENOMEM, "rank process");
        p->job_id = id->job_id;
        p->epoch = id->epoch;
        p->incarnation = id->incarnation;
        p->rank = id->rank;
        p->device = id->device;
        p->standby = id->standby;
        p->warm = id->warm;
        p->uid = id->uid;
        p->gid = id->gid;
        p->pidfd = p->sock = p->log_fd = p->flight_fd = p->replica_fd = -1;
        p->job_name = strdup(id->job_name ? id->job_name : "");
        snprintf(p->dir, sizeof(p->dir), "%s/jobs/%" PRIu64, c->dir, id->job_id);
        r = flight_create(&p->flight_fd, e);
        if (r == 0)
                r = flight_map(p->flight_fd, &p->flight, e);
        if (r == 0 && replica_fd < 0)
                r = replica_create(&new_replica, e);
        if (r == 0)
                r = ipc_pair(pair, e);
        if (r < 0)
                return r;
        p->sock = pair[0];
        peer = pair[1];
        if (fcntl(p->sock, F_SETFL, O_NONBLOCK) < 0)
                return error_errno(e, errno, "socket of a rank");
        r = outbox_new(l, p->sock, &p->out);
        if (r < 0)
                return error_errno(e, -r, "socket of a rank");
        r = open_log(p, id->log_max_bytes, &log, e);
        if (r < 0)
                return r;
        proc_tag(p, tag, sizeof(tag));
        snprintf(name, sizeof(name), "job%s", tag);
        cgroup_make(c->cgroups, name, p->cgroup, sizeof(p->cgroup));
        p->oom_before = oom_kills(p->cgroup);
        guard_arm(*c->guard_fd, p->cgroup, &p->lease);
        p->replica_fd = replica_fd >= 0 ? replica_fd : new_replica;
        r = spawn(p, c, id, peer, log, e);
        if (r < 0) {
                (void)guard_drop(&p->lease, &late);
                cgroup_remove(p->cgroup);
                if (replica_fd >= 0)
                        p->replica_fd = -1; /* still the caller's */
                else
                        new_replica = -1;
                return r;
        }
        new_replica = -1;
        p->phase = FP8CTL__V1__RANK_PHASE__RANK_STARTING;
        record_pid(p);
        *ret = STEAL_PTR(p);
        return 0;
}

int rank_proc_become(struct rank_proc *p, const struct rank_proc_identity *id, int replica_fd, struct error *e) {
        Fp8ctl__V1__NodeToRank m = FP8CTL__V1__NODE_TO_RANK__INIT;
        Fp8ctl__V1__BecomeRank become = FP8CTL__V1__BECOME_RANK__INIT;
        struct rotated_log *log = NULL;
        char path[640];
        int r;

        become.rank = id->rank;
        become.incarnation = id->incarnation;
        become.epoch = id->epoch;
        become.device = id->device;
        m.version = IPC_VERSION;
        m.become = &become;
        pid_file(p, path, sizeof(path));
        (void)rank_proc_read_log(p);
        p->rank = id->rank;
        p->incarnation = id->incarnation;
        p->epoch = id->epoch;
        p->device = id->device;
        p->standby = 0;
        unlink(path);
        record_pid(p);
        r = open_log_file(p, id->log_max_bytes, &log, e);
        if (r == 0)
                r = outbox_send(p->out, &m.base, &replica_fd, replica_fd >= 0, e);
        if (r < 0) {
                rotated_log_free(log);
                return r;
        }
        rotated_log_free(p->log);
        p->log = log;
        p->tail_len = 0;
        p->oom_before = oom_kills(p->cgroup);
        if (replica_fd >= 0) {
                closep(&p->replica_fd);
                p->replica_fd = replica_fd;
        }
        return 0;
}

/*
 * Is it on its way out already?  Then whatever took it is the cause, not the kill that comes after.  proc(5), stat: field 3 is the state, field 9 the kernel's
 * flags, of which 0x4 is PF_EXITING (include/linux/sched.h).
 */
static bool is_dying(pid_t pid) {
        _cleanup_fclose_ FILE *f = NULL;
        char path[64], line[1024], *at;
        char state;
        unsigned flags;

        snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
        f = fopen(path, "re");
        if (!f || !fgets(line, sizeof(line), f))
                return true;
        at = strrchr(line, ')'); /* the name before it may hold anything */
        if (!at || sscanf(at + 1, " %c %*d %*d %*d %*d %*d %u", &state, &flags) != 2)
                return false;
        return state == 'Z' || state == 'X' || (flags & 0x4);
}

void rank_proc_kill(struct rank_proc *p, const char *reason) {
        if (p->exited || p->pid <= 0)
                return;
        if (!p->kill_reason[0] && !is_dying(p->pid))
                snprintf(p->kill_reason, sizeof(p->kill_reason), "%s", reason && *reason ? reason : "asked to");
        (void)syscall(SYS_pidfd_send_signal, p->pidfd, SIGKILL, NULL, 0);
        kill(-p->pid, SIGKILL); /* its session's process group */
        cgroup_kill(p->cgroup);
        p->kill_again_ns = clock_mono_ns() + NSEC_PER_SEC;
}

static void tail_add(struct rank_proc *p, const char *data, size_t len) {
        size_t room = sizeof(p->tail) - 1;

        if (len >= room) {
                data += len - room;
                len = room;
                p->tail_len = 0;
        } else if (p->tail_len + len > room) {
                size_t drop = p->tail_len + len - room;

                memmove(p->tail, p->tail + drop, p->tail_len - drop);
                p->tail_len -= drop;
        }
        memcpy(p->tail + p->tail_len, data, len);
        p->tail_len += len;
        p->tail[p->tail_len] = '\0';
}

bool rank_proc_read_log(struct rank_proc *p) {
        char buf[16384];

        for (int turns = 0; turns < 16 && p->log_fd >= 0; turns++) {
                ssize_t n = read(p->log_fd, buf, sizeof(buf));

                if (n < 0)
                        return errno == EAGAIN || errno == EINTR;
                if (n == 0)
                        return false;
                tail_add(p, buf, (size_t)n);
                user_enter(p->uid, p->gid);
                rotated_log_write(p->log, buf, (size_t)n);
                user_leave();
        }
        return p->log_fd >= 0;
}

/* The last line that says something, printable characters only, without the log's time, name and level (base/log.c). */
static void last_line(const struct rank_proc *p, char *ret, size_t size) {
        size_t end = p->tail_len, begin, n = 0;
        const char *text;

        while (end > 0 && (p->tail[end - 1] == '\n' || p->tail[end - 1] == '\r' || p->tail[end - 1] == ' '))
                end--;
        for (begin = end; begin > 0 && p->tail[begin - 1] != '\n'; begin--)
                ;
        text = memmem(p->tail + begin, end - begin, " error: ", 8);
        if (text)
                begin = (size_t)(text - p->tail) + 8;
        for (size_t i = begin; i < end && n + 1 < size; i++)
                ret[n++] = (unsigned char)p->tail[i] < 0x20 ? ' ' : p->tail[i];
        ret[n] = '\0';
}

static void fill_cause(struct rank_proc *p) {
        uint64_t deadline = atomic_load(&p->flight->lease_deadline_ns);
        const char *name = p->signal ? sigabbrev_np(p->signal) : NULL;
        char line[384];

        last_line(p, line, sizeof(line));
        if (!p->signal) {
                if (p->exit_status == 0)
                        snprintf(p->cause, sizeof(p->cause), "exited");
                else
                        snprintf(p->cause, sizeof(p->cause), "exit %d: %s", p->exit_status, line[0] ? line : "it said nothing");
                return;
        }
        if (p->signal == SIGKILL && p->kill_reason[0])
                snprintf(p->cause, sizeof(p->cause), "killed by SIGKILL: %s", p->kill_reason);
        else if (p->oom)
                snprintf(p->cause, sizeof(p->cause), "killed by the kernel's out-of-memory killer");
        else if (p->signal == SIGKILL && deadline && clock_mono_ns() > deadline)
                snprintf(p->cause, sizeof(p->cause), "killed by its lease timer");
        else
                snprintf(p->cause, sizeof(p->cause), "killed by SIG%s", name ? name : "?");
}

void rank_proc_reap(struct rank_proc *p) {
        siginfo_t info = { 0 };
        uint64_t late = 0;
        char path[640];

        if (p->exited || waitid(P_PIDFD, (id_t)p->pidfd, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid == 0)
                return;
        /* What it forked, while the zombie still keeps the number of the process group from being used again. */
        kill(-p->pid, SIGKILL);
        cgroup_kill(p->cgroup);
        if (waitid(P_PIDFD, (id_t)p->pidfd, &info, WEXITED | WNOHANG) < 0 || info.si_pid == 0)
                return;
        p->exited = true;
        p->phase = FP8CTL__V1__RANK_PHASE__RANK_EXITED;
        if (info.si_code == CLD_EXITED) {
                p->exit_status = info.si_status;
        } else {
                p->exit_status = -1;
                p->signal = info.si_status;
        }
        if (guard_drop(&p->lease, &late) && !p->kill_reason[0])
                snprintf(p->kill_reason, sizeof(p->kill_reason), "the node's lease is over: by the driver, %.3f ms after the deadline", (double)late / NSEC_PER_MSEC);
        p->oom = p->signal == SIGKILL && !p->kill_reason[0] && oom_kills(p->cgroup) > p->oom_before;
        (void)rank_proc_read_log(p);
        fill_cause(p);
        cgroup_remove(p->cgroup);
        snprintf(path, sizeof(path), "%s/r%" PRIu32 ".i%" PRIu64 ".sock", p->dir, p->rank, p->incarnation);
        user_enter(p->uid, p->gid);
        unlink(path);
        user_leave();
        pid_file(p, path, sizeof(path));
        unlink(path);
}

struct rank_proc *rank_proc_free(struct rank_proc *p) {
        if (!p)
                return NULL;
        loop_remove(p->sock_source);
        loop_remove(p->pid_source);
        loop_remove(p->log_source);
        outbox_free(p->out);
        rotated_log_free(p->log);
        flight_unmap(p->flight);
        closep(&p->pidfd);
        closep(&p->sock);
        closep(&p->log_fd);
        closep(&p->flight_fd);
        closep(&p->replica_fd);
        free(p->job_name);
        free(p);
        return NULL;
}

void rank_proc_on_log(void *arg, uint32_t revents) {
        struct rank_proc *p = arg;

        if (!rank_proc_read_log(p))
                p->log_source = loop_remove(p->log_source);
}

void rank_proc_hear(struct rank_proc *p, void (*take)(struct rank_proc *p, Fp8ctl__V1__WorkerMessage *m)) {
        for (;;) {
                ProtobufCMessage *base = NULL;
                struct error e = { 0 };
                int r = ipc_recv(p->sock, &fp8ctl__v1__rank_to_node__descriptor, &base, NULL, &e);

                if (r == -EAGAIN)
                        return;
                if (r <= 0) {
                        if (r < 0)
                                rank_proc_kill(p, e.text);
                        p->sock_source = loop_remove(p->sock_source);
                        return;
                }
                Fp8ctl__V1__RankToNode *m = (Fp8ctl__V1__RankToNode *)base;

                if (m->message)
                        take(p, m->message);
                else
                        log_warning("rank %" PRIu32 " of job %" PRIu64 ": dropped an empty message", p->rank, p->job_id);
                protobuf_c_message_free_unpacked(base, NULL);
        }
}

void rank_proc_exited(const struct rank_proc *p, Fp8ctl__V1__RankExited *ret) {
        fp8ctl__v1__rank_exited__init(ret);
        ret->job_id = p->job_id;
        ret->epoch = p->epoch;
        ret->rank = p->rank;
        ret->incarnation = p->incarnation;
        ret->exit_status = p->exit_status;
        ret->signal = p->signal;
        ret->reaped = true;
        ret->cause = (char *)p->cause;
        ret->oom = p->oom;
}
