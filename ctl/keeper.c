/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keeper holds each daemon by a pidfd, which works for its own children and for those that a keeper before it left behind alike: a keeper
 * that was killed costs the cluster nothing, the next `cluster up` starts one that adopts what keeper.json names (pid and start time must fit).
 *
 * A daemon that ends is started again at once; when it ends again within HEALTHY_MS, after a pause that doubles up to BACKOFF_MAX_MS.
 *
 * Stopping: workers get SIGTERM first, while the controller is still there to commit the last checkpoints of their jobs; then fp8d; whoever is over its
 * grace gets SIGKILL. A worker that had to be killed leaves its spawner (it outlives its worker by design), so spawners are looked for by their pid files
 * last. Being a subreaper, the keeper inherits such orphans and reaps them, where no init would.
 */
#include "ctl/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
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
#include "base/file.h"
#include "base/log.h"
#include "base/loop.h"

#define BACKOFF_MIN_MS 50
#define BACKOFF_MAX_MS 5000
#define HEALTHY_MS 10000
#define WORKER_GRACE_MS 60000
#define CONTROLLER_GRACE_MS 10000
#define SPAWNER_GRACE_MS 3000
#define STOP_POLL_MS 20
#define LOG_CHECK_MS 30000
#define LOG_MAX_BYTES (16 << 20)

struct kept {
        struct keeper *keeper;
        struct local_daemon *d; /* in keeper->state, same index */
        int pidfd;
        struct loop_source *exit_source, *start_timer;
        uint64_t started_ns;
        unsigned quick_ends; /* in a row */
};

struct keeper {
        const char *home;
        struct loop *loop;
        struct local_config config;
        struct local_state state;
        struct kept *kept;
        char *fp8d, *worker;
        struct loop_source *log_timer, *stop_timer;
        enum { KEEP, STOP_WORKERS, STOP_CONTROLLER, STOP_SPAWNERS } phase;
        uint64_t deadline_ns; /* of the phase */
        bool killed;          /* SIGKILL was sent in this phase */
        bool workers_killed;  /* their spawners will not end by themselves */
};

static int pidfd_open_(pid_t pid) {
        return (int)syscall(SYS_pidfd_open, pid, 0);
}

static void save(struct keeper *k) {
        struct error e;

        if (local_state_write(k->home, &k->state, &e) < 0)
                log_warning("%s", e.text);
}

static bool is_controller(const struct kept *kp) {
        return strcmp(kp->d->name, "fp8d") == 0;
}

static void set_state(struct kept *kp, const char *state) {
        snprintf(kp->d->state, sizeof(kp->d->state), "%s", state);
        kp->d->since_unix_ms = clock_wall_ns() / NSEC_PER_MSEC;
}

static void schedule_start(struct kept *kp) {
        unsigned shift = kp->quick_ends > 8 ? 8 : kp->quick_ends;
        uint64_t pause = kp->quick_ends ? (uint64_t)BACKOFF_MIN_MS << (shift - 1) : 0;

        if (pause > BACKOFF_MAX_MS)
                pause = BACKOFF_MAX_MS;
        set_state(kp, "waiting");
        loop_timer_set(kp->start_timer, clock_mono_ns() + pause * NSEC_PER_MSEC + 1);
}

static void reap(struct kept *kp) {
        struct local_daemon *d = kp->d;
        int status;

        if (waitpid(d->process.pid, &status, WNOHANG) != d->process.pid)
                snprintf(d->last_end, sizeof(d->last_end), "ended (started by an earlier keeper)");
        else if (WIFSIGNALED(status))
                snprintf(d->last_end, sizeof(d->last_end), "killed by signal %d", WTERMSIG(status));
        else
                snprintf(d->last_end, sizeof(d->last_end), "exit %d", WEXITSTATUS(status));
}

static void reap_orphans(struct keeper *k);

static void on_exit_(void *arg, uint32_t revents) {
        struct kept *kp = arg;
        struct keeper *k = kp->keeper;

        reap(kp);
        kp->exit_source = loop_remove(kp->exit_source);
        close(kp->pidfd);
        kp->pidfd = -1;
        log_write(k->phase == KEEP ? LOG_LEVEL_WARNING : LOG_LEVEL_INFO, "%s (pid %d): %s", kp->d->name, (int)kp->d->process.pid, kp->d->last_end);
        kp->d->process = (struct process_id){ 0 };
        if (k->phase == KEEP) {
                kp->quick_ends = clock_mono_ns() - kp->started_ns < HEALTHY_MS * NSEC_PER_MSEC ? kp->quick_ends + 1 : 0;
                kp->d->restarts++;
                schedule_start(kp);
        } else
                set_state(kp, "stopped");
        save(k);
        reap_orphans(k);
}

/* pid is alive: watches it. */
static int hold(struct kept *kp, const struct process_id *p) {
        int r;

        kp->pidfd = pidfd_open_(p->pid);
        if (kp->pidfd < 0)
                return -errno;
        fcntl(kp->pidfd, F_SETFD, FD_CLOEXEC);
        kp->d->process = *p;
        kp->started_ns = clock_mono_ns();
        r = loop_add_fd(kp->keeper->loop, kp->pidfd, EPOLLIN, on_exit_, kp, &kp->exit_source);
        if (r < 0) {
                close(kp->pidfd);
                kp->pidfd = -1;
                return r;
        }
        set_state(kp, "running");
        return 0;
}

static void exec_daemon(struct keeper *k, const struct kept *kp, int log_fd) {
        _cleanup_free_ char *socket = file_path("%s/fp8d.sock", k->home), *address = file_path("unix:%s/fp8d.sock", k->home);
        _cleanup_free_ char *dir = file_path("%s/nodes/%s", k->home, kp->d->name);
        char devices[24];
        const char *argv[16];
        size_t n = 0;
        sigset_t none;
        int null = open("/dev/null", O_RDONLY);

        if (!socket || !address || !dir || null < 0)
                _exit(127);
        snprintf(devices, sizeof(devices), "%" PRId64, k->config.devices);
        if (is_controller(kp)) {
                argv[n++] = k->fp8d;
                argv[n++] = "--socket";
                argv[n++] = socket;
                argv[n++] = "--state";
                argv[n++] = k->home;
                if (k->config.test_hooks)
                        argv[n++] = "--allow-test-hooks";
        } else {
                argv[n++] = k->worker;
                argv[n++] = "--name";
                argv[n++] = kp->d->name;
                argv[n++] = "--dir";
                argv[n++] = dir;
                argv[n++] = "--controller";
                argv[n++] = address;
                argv[n++] = "--devices";
                argv[n++] = devices;
                argv[n++] = "--device-kind";
                argv[n++] = k->config.cuda ? "cuda" : "cpu";
        }
        argv[n] = NULL;
        dup2(null, STDIN_FILENO);
        dup2(log_fd, STDOUT_FILENO);
        dup2(log_fd, STDERR_FILENO);
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        execv(argv[0], (char *const *)argv);
        dprintf(STDERR_FILENO, "cannot start %s: %s\n", argv[0], strerror(errno));
        _exit(127);
}

/* Makes the table by which base/file.h's reader finds its way in a log that another process appends to. */
static int prepare_log(const char *path, struct error *e) {
        struct rotated_log *l;
        int r = rotated_log_open(path, LOG_MAX_BYTES, &l, e);

        if (r >= 0)
                rotated_log_free(l);
        return r;
}

static int start(struct kept *kp, struct error *e) {
        struct keeper *k = kp->keeper;
        _cleanup_free_ char *log_path = local_log_path(k->home, kp->d->name), *dir = file_path("%s/nodes/%s", k->home, kp->d->name);
        _cleanup_close_ int log_fd = -1;
        struct process_id p;
        pid_t pid;
        int r;

        if (!log_path || !dir)
                return error_set(e, -ENOMEM, "no memory");
        if (!is_controller(kp)) {
                r = file_mkdir_p(dir, 0700, e);
                if (r < 0)
                        return r;
        }
        r = prepare_log(log_path, e);
        if (r < 0)
                return r;
        log_fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (log_fd < 0)
                return error_errno(e, errno, "%s", log_path);
        pid = fork();
        if (pid < 0)
                return error_errno(e, errno, "cannot start %s", kp->d->name);
        if (pid == 0)
                exec_daemon(k, kp, log_fd);
        /* Not reaped yet, so the number is its own even if it has ended. */
        if (process_id_of(pid, &p) < 0)
                p = (struct process_id){ pid, 0 };
        r = hold(kp, &p);
        if (r < 0)
                return error_errno(e, -r, "cannot watch %s", kp->d->name);
        log_info("%s is pid %d", kp->d->name, (int)pid);
        return 0;
}

static void on_start_timer(void *arg) {
        struct kept *kp = arg;
        struct error e;

        if (kp->keeper->phase != KEEP || kp->pidfd >= 0)
                return;
        if (start(kp, &e) < 0) {
                log_error("%s", e.text);
                kp->quick_ends++;
                schedule_start(kp);
        }
        save(kp->keeper);
}

/* ------------------------------------------------------------------ stopping */

static size_t alive(const struct keeper *k, bool controller) {
        size_t n = 0;

        for (size_t i = 0; i < k->state.n; i++)
                n += k->kept[i].pidfd >= 0 && is_controller(&k->kept[i]) == controller;
        return n;
}

static void signal_all(struct keeper *k, bool controller, int signo) {
        for (size_t i = 0; i < k->state.n; i++)
                if (k->kept[i].pidfd >= 0 && is_controller(&k->kept[i]) == controller)
                        syscall(SYS_pidfd_send_signal, k->kept[i].pidfd, signo, NULL, 0);
}

static size_t signal_spawners(struct keeper *k, int signo) {
        size_t n = 0;

        for (size_t i = 0; i < k->state.n; i++) {
                struct process_id p = local_spawner(k->home, k->state.daemons[i].name);

                if (is_controller(&k->kept[i]) || p.pid == 0)
                        continue;
                n++;
                if (signo)
                        kill(p.pid, signo);
        }
        return n;
}

static void enter(struct keeper *k, int phase, uint64_t grace_ms) {
        k->phase = phase;
        k->deadline_ns = clock_mono_ns() + grace_ms * NSEC_PER_MSEC;
        k->killed = false;
}

/* Orphans that became ours: spawners and ranks of workers that were killed. Our own daemons are reaped by their pidfd. */
static void reap_orphans(struct keeper *k) {
        for (;;) {
                siginfo_t info = { 0 };
                bool own = false;

                if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid == 0)
                        return;
                for (size_t i = 0; i < k->state.n; i++)
                        own |= k->state.daemons[i].process.pid == info.si_pid;
                if (own)
                        return; /* the loop comes to it */
                waitpid(info.si_pid, NULL, WNOHANG);
        }
}

static void on_stop_timer(void *arg) {
        struct keeper *k = arg;
        bool over = clock_mono_ns() >= k->deadline_ns;
        size_t left = k->phase == STOP_SPAWNERS ? signal_spawners(k, 0) : alive(k, k->phase == STOP_CONTROLLER);

        reap_orphans(k);
        if (left == 0 && k->phase == STOP_WORKERS) {
                enter(k, STOP_CONTROLLER, CONTROLLER_GRACE_MS);
                signal_all(k, true, SIGTERM);
        } else if (left == 0 && k->phase == STOP_CONTROLLER)
                enter(k, STOP_SPAWNERS, k->workers_killed ? 0 : SPAWNER_GRACE_MS);
        else if (left == 0) {
                loop_stop(k->loop, 0);
                return;
        } else if (over && !k->killed) {
                log_warning("%zu %s did not end in time: SIGKILL", left,
                            k->phase == STOP_WORKERS ? "workers" : k->phase == STOP_CONTROLLER ? "controller" : "spawners");
                k->killed = true;
                k->workers_killed |= k->phase == STOP_WORKERS;
                if (k->phase == STOP_SPAWNERS)
                        signal_spawners(k, SIGKILL);
                else
                        signal_all(k, k->phase == STOP_CONTROLLER, SIGKILL);
        }
        loop_timer_set(k->stop_timer, clock_mono_ns() + STOP_POLL_MS * NSEC_PER_MSEC);
}

static void begin_stop(struct keeper *k, bool now) {
        if (k->phase == KEEP) {
                log_info("stopping%s", now ? " at once" : "");
                enter(k, STOP_WORKERS, WORKER_GRACE_MS);
                for (size_t i = 0; i < k->state.n; i++) {
                        loop_timer_set(k->kept[i].start_timer, 0);
                        if (k->kept[i].pidfd < 0)
                                set_state(&k->kept[i], "stopped");
                }
                if (!now)
                        signal_all(k, false, SIGTERM);
                loop_timer_set(k->stop_timer, clock_mono_ns() + 1);
        }
        if (now)
                k->deadline_ns = clock_mono_ns();
}

/* ------------------------------------------------------------------ life */

/* The daemons hold their log files open, so the oldest part is copied away and the file cut (as logrotate's copytruncate does). */
static void bound_log(const char *path) {
        _cleanup_free_ char *old = file_path("%s.1", path), *table = file_path("%s.offset", path), *text = NULL;
        struct error e = { 0 };
        struct stat st;
        size_t len;

        if (!old || !table || stat(path, &st) < 0 || st.st_size <= LOG_MAX_BYTES)
                return;
        if (file_read(path, (size_t)2 * LOG_MAX_BYTES, &text, &len, NULL) == 0)
                file_write_atomic(old, text, len, 0600, NULL);
        if (truncate(path, 0) < 0)
                log_warning("%s: %s", path, strerror(errno));
        /* The table told where the bytes of before began: made anew, it counts from the older file's first byte. */
        unlink(table);
        if (prepare_log(path, &e) < 0)
                log_warning("%s", e.text);
}

static void on_log_timer(void *arg) {
        struct keeper *k = arg;
        _cleanup_free_ char *own = file_path("%s/keeper.log", k->home);

        for (size_t i = 0; i < k->state.n; i++) {
                _cleanup_free_ char *path = local_log_path(k->home, k->state.daemons[i].name);

                if (path)
                        bound_log(path);
        }
        if (own)
                bound_log(own);
        loop_timer_set(k->log_timer, clock_mono_ns() + LOG_CHECK_MS * NSEC_PER_MSEC);
}

static void on_signal(void *arg, int signo) {
        struct keeper *k = arg;

        if (signo == SIGCHLD)
                reap_orphans(k);
        else if (signo == SIGHUP) {
                for (size_t i = 0; i < k->state.n; i++)
                        if (k->kept[i].pidfd < 0 && k->phase == KEEP) {
                                k->kept[i].quick_ends = 0;
                                schedule_start(&k->kept[i]);
                        }
        } else
                begin_stop(k, signo == SIGINT);
}

/* What keeper.json says of a daemon of that name, when it still lives. */
static bool adopt(struct kept *kp, const struct local_state *before) {
        for (size_t i = 0; i < before->n; i++) {
                const struct local_daemon *d = &before->daemons[i];

                if (strcmp(d->name, kp->d->name) != 0)
                        continue;
                kp->d->restarts = d->restarts;
                snprintf(kp->d->last_end, sizeof(kp->d->last_end), "%s", d->last_end);
                if (process_alive(&d->process) && hold(kp, &d->process) == 0) {
                        log_info("%s still runs as pid %d", d->name, (int)d->process.pid);
                        return true;
                }
        }
        return false;
}

static int make_daemons(struct keeper *k, bool only_adopt, struct error *e) {
        struct local_state before = { 0 };
        size_t n = (size_t)k->config.nodes + 1;
        int r;

        k->state.daemons = calloc(n, sizeof(*k->state.daemons));
        k->kept = calloc(n, sizeof(*k->kept));
        if (!k->state.daemons || !k->kept)
                return error_set(e, -ENOMEM, "no memory");
        r = local_state_read(k->home, &before, e);
        if (r < 0 && r != -ENOENT)
                log_warning("%s", e->text);
        k->state.n = n;
        for (size_t i = 0; i < n; i++) {
                struct kept *kp = &k->kept[i];

                kp->keeper = k;
                kp->d = &k->state.daemons[i];
                kp->pidfd = -1;
                if (i == 0)
                        snprintf(kp->d->name, sizeof(kp->d->name), "fp8d");
                else
                        snprintf(kp->d->name, sizeof(kp->d->name), "node-%zu", i - 1);
                r = loop_add_timer(k->loop, 0, on_start_timer, kp, &kp->start_timer);
                if (r < 0)
                        break;
                if (!adopt(kp, &before) && !only_adopt)
                        schedule_start(kp);
        }
        local_state_free(&before);
        return r < 0 && r != -ENOENT && r != -EPROTO ? error_errno(e, -r, "event loop") : 0;
}

static int set_up(struct keeper *k, const struct keeper_options *o, struct error *e) {
        static const int signals[] = { SIGTERM, SIGINT, SIGHUP, SIGCHLD };
        sigset_t set;
        int r;

        sigemptyset(&set);
        for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
                sigaddset(&set, signals[i]);
        sigprocmask(SIG_BLOCK, &set, NULL);
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        r = local_config_read(k->home, &k->config, e);
        if (r >= 0 && !o->stop)
                r = local_find_program("fp8d", &k->fp8d, e);
        if (r >= 0 && !o->stop)
                r = local_find_program("fp8-worker", &k->worker, e);
        if (r < 0)
                return r;
        r = loop_new(&k->loop);
        for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(signals); i++)
                r = loop_add_signal(k->loop, signals[i], on_signal, k, NULL);
        if (r >= 0)
                r = loop_add_timer(k->loop, clock_mono_ns() + LOG_CHECK_MS * NSEC_PER_MSEC, on_log_timer, k, &k->log_timer);
        if (r >= 0)
                r = loop_add_timer(k->loop, 0, on_stop_timer, k, &k->stop_timer);
        if (r < 0)
                return error_errno(e, -r, "event loop");
        return make_daemons(k, o->stop, e);
}

int keeper_run(const struct keeper_options *o, struct error *e) {
        struct keeper k = { .home = o->home };
        _cleanup_close_ int lock = -1;
        int r = local_keeper_lock(o->home, &lock, e);

        if (r < 0)
                return r;
        if (ftruncate(lock, 0) < 0 || dprintf(lock, "%d\n", (int)getpid()) < 0)
                return error_errno(e, errno, "%s/keeper.pid", o->home);
        r = set_up(&k, o, e);
        if (r >= 0) {
                save(&k);
                if (o->stop)
                        begin_stop(&k, false);
                r = loop_run(k.loop);
                if (r < 0)
                        error_errno(e, -r, "event loop");
                log_info("stopped");
                save(&k);
        }
        for (size_t i = 0; k.kept && i < k.state.n; i++)
                if (k.kept[i].pidfd >= 0)
                        close(k.kept[i].pidfd);
        loop_free(k.loop);
        local_state_free(&k.state);
        free(k.kept);
        free(k.fp8d);
        free(k.worker);
        return r;
}
