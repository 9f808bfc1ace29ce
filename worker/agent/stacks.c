/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ptrace(2) makes a thread stand still for the unwinding, and waits for it to do so.  A thread in an uninterruptible sleep does not: therefore the unwinding is done by this program
 * started once more (`fp8-worker --stacks PID`), one for each rank at the same time, and what has not answered in time is killed; the kernel then lets go of the
 * threads it held.  libdwfl knows of processes that were stopped before and leaves them so.
 * While it is traced, and for a moment after, /proc tells that of a process and not what it did by itself: one taking at a time, and what was seen before it is kept until it is true again.
 */
#include "worker/agent/stacks.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef HAVE_LIBDW
#include <elfutils/libdwfl.h>
#endif

#include "base/cleanup.h"
#include "base/clock.h"

#define OUTPUT_MAX (128u << 10) /* of one helper */
#define SETTLE_MS 100

/* ------------------------------------------------------------------ /proc */

/* One line of /proc/PID/task/TID/NAME; "" when it cannot be had. These do not take the process's memory lock, so they answer always. */
static void proc_line(pid_t pid, pid_t tid, const char *name, char *buf, size_t size) {
        char path[96];
        ssize_t n = -1;
        int fd;

        snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", (int)pid, (int)tid, name);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
                n = read(fd, buf, size - 1);
                close(fd);
        }
        buf[n > 0 ? n : 0] = '\0';
        buf[strcspn(buf, "\n")] = '\0';
}

/* Names of threads and symbols may hold anything; strings of messages may not. */
static void make_plain(char *s) {
        for (; *s; s++)
                if (*s < 0x20 || *s > 0x7e)
                        *s = '?';
}

static const char *state_word(char letter) {
        switch (letter) {
        case 'R':
                return "runs";
        case 'S':
        case 'I':
                return "sleeps";
        case 'D':
                return "waits for a disk";
        case 'T':
                return "stopped";
        case 't':
                return "traced";
        default:
                return "dead";
        }
}

static const char *thread_state(pid_t pid, pid_t tid) {
        char line[512];
        const char *at;

        proc_line(pid, tid, "stat", line, sizeof(line));
        at = strrchr(line, ')'); /* the name before it may hold anything */
        return state_word(at && at[1] ? at[2] : 'X');
}

/* The processes that are traced just now, and what they did before. */
struct held {
        pid_t pid;
        const char *state;
};

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER; /* of the one taking */
static pthread_mutex_t held_lock = PTHREAD_MUTEX_INITIALIZER;
static const struct held *held;
static size_t n_held;

static void set_held(const struct held *h, size_t n) {
        pthread_mutex_lock(&held_lock);
        held = h;
        n_held = n;
        pthread_mutex_unlock(&held_lock);
}

const char *stacks_process_state(pid_t pid) {
        const char *state = "dead";

        if (pid <= 0)
                return state;
        pthread_mutex_lock(&held_lock); /* read under it: else the tracing could begin between the look and the reading */
        state = thread_state(pid, pid);
        for (size_t i = 0; i < n_held; i++)
                if (held[i].pid == pid && strcmp(state, "dead") != 0)
                        state = held[i].state;
        pthread_mutex_unlock(&held_lock);
        return state;
}

/* A stopped process that was let go of runs for the moment that it takes to stop again. */
static void settle(const struct held *h, size_t n) {
        for (size_t i = 0; i < n; i++)
                for (int ms = 0; ms < SETTLE_MS && strcmp(h[i].state, "stopped") == 0; ms++) {
                        const char *now = thread_state(h[i].pid, h[i].pid);

                        if (strcmp(now, "stopped") == 0 || strcmp(now, "dead") == 0)
                                break;
                        usleep(1000);
                }
}

static char *kernel_words(pid_t pid, pid_t tid) {
        char wchan[96], call[160], out[192];
        unsigned long number;

        proc_line(pid, tid, "wchan", wchan, sizeof(wchan));
        proc_line(pid, tid, "syscall", call, sizeof(call));
        if (strcmp(wchan, "0") == 0)
                wchan[0] = '\0';
        if (sscanf(call, "%lu", &number) == 1)
                snprintf(out, sizeof(out), "%s%ssystem call %lu", wchan, wchan[0] ? ", " : "", number);
        else
                snprintf(out, sizeof(out), "%s", wchan);
        return strdup(out);
}

static Fp8ctl__V1__ThreadState *thread_new(pid_t pid, pid_t tid) {
        Fp8ctl__V1__ThreadState *t = malloc(sizeof(*t));
        char name[64];

        if (!t)
                return NULL;
        fp8ctl__v1__thread_state__init(t);
        proc_line(pid, tid, "comm", name, sizeof(name));
        t->tid = (uint32_t)tid;
        make_plain(name);
        t->name = strdup(name);
        t->state = strdup(thread_state(pid, tid));
        t->kernel = kernel_words(pid, tid);
        t->frames = calloc(STACKS_FRAMES_MAX, sizeof(*t->frames));
        if (!t->name || !t->state || !t->kernel || !t->frames) {
                fp8ctl__v1__thread_state__free_unpacked(t, NULL);
                return NULL;
        }
        return t;
}

static void list_threads(pid_t pid, Fp8ctl__V1__RankDiagnosis *d) {
        char path[48];
        struct dirent *entry;
        DIR *dir;

        snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
        dir = opendir(path);
        d->threads = calloc(STACKS_THREADS_MAX, sizeof(*d->threads));
        while (dir && d->threads && d->n_threads < STACKS_THREADS_MAX && (entry = readdir(dir))) {
                pid_t tid = (pid_t)atoi(entry->d_name);
                Fp8ctl__V1__ThreadState *t = tid > 0 ? thread_new(pid, tid) : NULL;

                if (t)
                        d->threads[d->n_threads++] = t;
        }
        if (dir)
                closedir(dir);
}

/* ------------------------------------------------------------------ the helper, from outside */

struct helper {
        pid_t pid;
        int fd; /* -1: none, or all read */
        char *out;
        size_t len;
};

static void helper_start(struct helper *h, pid_t of) {
        posix_spawn_file_actions_t actions;
        char arg[16];
        char *argv[] = { (char *)"fp8-worker", (char *)"--stacks", arg, NULL };
        int fds[2];

        *h = (struct helper){ .fd = -1 };
        h->out = malloc(OUTPUT_MAX + 1);
        if (!h->out || pipe2(fds, O_CLOEXEC) < 0)
                return;
        snprintf(arg, sizeof(arg), "%d", (int)of);
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_adddup2(&actions, fds[1], STDOUT_FILENO);
        posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
        if (posix_spawn(&h->pid, "/proc/self/exe", &actions, NULL, argv, environ) != 0)
                h->pid = 0;
        posix_spawn_file_actions_destroy(&actions);
        close(fds[1]);
        h->fd = fds[0];
}

static void helper_close(struct helper *h) {
        closep(&h->fd);
        h->fd = -1;
}

static void helper_read(struct helper *h, uint64_t deadline) {
        while (h->fd >= 0) {
                uint64_t now = clock_mono_ns();
                struct pollfd p = { .fd = h->fd, .events = POLLIN };
                ssize_t n;

                if (now >= deadline || h->len == OUTPUT_MAX || poll(&p, 1, (int)((deadline - now) / NSEC_PER_MSEC) + 1) == 0)
                        return;
                n = read(h->fd, h->out + h->len, OUTPUT_MAX - h->len);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        helper_close(h);
                else
                        h->len += (size_t)n;
        }
}

/* True: it had said all. */
static bool helper_end(struct helper *h) {
        bool whole = h->fd < 0 && h->pid > 0;

        if (h->pid > 0) {
                if (!whole)
                        kill(h->pid, SIGKILL);
                waitpid(h->pid, NULL, 0);
        }
        helper_close(h);
        return whole;
}

static Fp8ctl__V1__ThreadState *find_thread(const Fp8ctl__V1__RankDiagnosis *d, long tid) {
        for (size_t i = 0; d->threads && i < d->n_threads; i++)
                if (d->threads[i] && d->threads[i]->tid == (uint32_t)tid)
                        return d->threads[i];
        return NULL;
}

static void take_frames(struct helper *h, Fp8ctl__V1__RankDiagnosis *d) {
        Fp8ctl__V1__ThreadState *t = NULL;
        char *save = NULL;

        if (!h->out)
                return;
        h->out[h->len] = '\0';
        for (char *line = strtok_r(h->out, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
                if (strncmp(line, "T ", 2) == 0) {
                        t = find_thread(d, strtol(line + 2, NULL, 10));
                        if (t && t->n_frames > 0)
                                t = NULL; /* libdwfl may come by a thread twice */
                }
                else if (t && strncmp(line, "F ", 2) == 0 && t->n_frames < STACKS_FRAMES_MAX) {
                        make_plain(line);
                        t->frames[t->n_frames] = strdup(line + 2);
                        t->n_frames += t->frames[t->n_frames] != NULL;
                }
        }
}

static void say_late(Fp8ctl__V1__RankDiagnosis *d, int timeout_ms) {
        char text[96];

        if (d->note != protobuf_c_empty_string)
                return;
        snprintf(text, sizeof(text), "its stacks could not be read within %d ms", timeout_ms);
        d->note = strdup(text);
}

static void take_all(const pid_t *pids, size_t n, uint64_t deadline, int timeout_ms, Fp8ctl__V1__RankDiagnosis **ret) {
        _cleanup_free_ struct helper *helpers = calloc(n + 1, sizeof(*helpers));
        _cleanup_free_ struct held *mine = calloc(n + 1, sizeof(*mine));

        if (!helpers || !mine)
                return;
        for (size_t i = 0; i < n; i++)
                mine[i] = (struct held){ pids[i], thread_state(pids[i], pids[i]) };
        set_held(mine, n);
        for (size_t i = 0; i < n; i++) {
                list_threads(pids[i], ret[i]); /* before anybody traces it */
                helper_start(&helpers[i], pids[i]);
        }
        for (size_t i = 0; i < n; i++)
                helper_read(&helpers[i], deadline);
        for (size_t i = 0; i < n; i++) {
                bool whole = helper_end(&helpers[i]);

                take_frames(&helpers[i], ret[i]);
                free(helpers[i].out);
                if (!whole)
                        say_late(ret[i], timeout_ms);
        }
        settle(mine, n);
        set_held(NULL, 0);
}

void stacks_take(const pid_t *pids, size_t n, int timeout_ms, Fp8ctl__V1__RankDiagnosis **ret) {
        uint64_t deadline = clock_mono_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC;
        struct timespec until = { (time_t)(deadline / NSEC_PER_SEC), (long)(deadline % NSEC_PER_SEC) };

        if (pthread_mutex_clocklock(&turn, CLOCK_MONOTONIC, &until) == 0) {
                take_all(pids, n, deadline, timeout_ms, ret);
                pthread_mutex_unlock(&turn);
                return;
        }
        for (size_t i = 0; i < n; i++)
                say_late(ret[i], timeout_ms);
}

/* ------------------------------------------------------------------ the helper itself */
#ifdef HAVE_LIBDW

static const char *base_name(const char *path) {
        const char *slash = path ? strrchr(path, '/') : NULL;

        return slash ? slash + 1 : path ? path : "?";
}

static int print_frame(Dwfl_Frame *frame, void *arg) {
        Dwfl *dwfl = arg;
        Dwarf_Addr pc;
        bool activation = false;
        Dwfl_Module *module;
        const char *name = NULL;
        GElf_Off offset = 0;
        GElf_Sym sym;

        if (!dwfl_frame_pc(frame, &pc, &activation))
                return DWARF_CB_ABORT;
        module = dwfl_addrmodule(dwfl, pc - !activation);
        if (module)
                name = dwfl_module_addrinfo(module, pc - !activation, &offset, &sym, NULL, NULL, NULL);
        printf("F %s+0x%" PRIx64 " (%s)\n", name ? name : "?", (uint64_t)offset, module ? base_name(dwfl_module_info(module, NULL, NULL, NULL, NULL, NULL, NULL, NULL)) : "?");
        return DWARF_CB_OK;
}

static int print_thread(Dwfl_Thread *thread, void *arg) {
        printf("T %d\n", (int)dwfl_thread_tid(thread));
        (void)dwfl_thread_getframes(thread, print_frame, arg);
        fflush(stdout); /* what was found is there when the next one is waited for in vain */
        return DWARF_CB_OK;
}

int stacks_print(pid_t pid) {
        static const Dwfl_Callbacks callbacks = { .find_elf = dwfl_linux_proc_find_elf, .find_debuginfo = dwfl_standard_find_debuginfo };
        Dwfl *dwfl = dwfl_begin(&callbacks);
        int r = EXIT_FAILURE;

        (void)unsetenv("DEBUGINFOD_URLS"); /* nothing is fetched from elsewhere for this */
        if (dwfl && dwfl_linux_proc_report(dwfl, pid) == 0 && dwfl_report_end(dwfl, NULL, NULL) == 0 && dwfl_linux_proc_attach(dwfl, pid, false) == 0)
                r = dwfl_getthreads(dwfl, print_thread, dwfl) < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
        if (dwfl)
                dwfl_end(dwfl);
        return r;
}

#else

int stacks_print(pid_t pid) {
        (void)pid;
        return EXIT_FAILURE;
}

#endif
