/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vfork: the worker may have hundreds of gigabytes mapped, which fork would copy the tables of.  Until it execs the child makes plain system calls only; glibc's setuid would tell every thread of the parent.
 */
#include "worker/health/program.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"

#define NOBODY 65534
#define POLL_MS 20
#define EXIT_NO_EXEC 127

static pid_t start(const struct program *p, int out, int in) {
        static char *const environment[] = { (char *)"PATH=/usr/sbin:/usr/bin:/sbin:/bin", (char *)"LC_ALL=C", NULL };
        sigset_t none;
        const struct sched_param lowest = { 0 };
        bool other = p->nobody && geteuid() == 0;
        pid_t pid;

        sigemptyset(&none);
        /* NOLINTBEGIN(clang-analyzer-security.insecureAPI.vfork,clang-analyzer-unix.Vfork): posix_spawn cannot change the user; the calls below leave the parent's memory alone */
        pid = vfork();
        if (pid != 0)
                return pid;
        (void)setpgid(0, 0);
        if (p->background)
                (void)syscall(SYS_sched_setscheduler, 0, SCHED_IDLE, &lowest);
        if (dup2(in, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0 || dup2(out, STDERR_FILENO) < 0)
                _exit(EXIT_NO_EXEC);
        if (other && (syscall(SYS_setgroups, (size_t)0, NULL) < 0 || syscall(SYS_setresgid, NOBODY, NOBODY, NOBODY) < 0 || syscall(SYS_setresuid, NOBODY, NOBODY, NOBODY) < 0))
                _exit(EXIT_NO_EXEC);
        signal(SIGPIPE, SIG_DFL);
        sigprocmask(SIG_SETMASK, &none, NULL);
        execve(p->path, p->argv, p->our_environment ? environ : environment);
        _exit(EXIT_NO_EXEC);
        /* NOLINTEND(clang-analyzer-security.insecureAPI.vfork,clang-analyzer-unix.Vfork) */
}

/* Until it has ended and said all, or its time is over. A grandchild that keeps the pipe open is not waited for. */
static int collect(const struct program *p, pid_t pid, int in, uint64_t deadline, char *out, size_t size, int *ret_status) {
        size_t len = 0;
        bool ended = false, more = true, cancelled;
        char rest[512];

        while (!ended || more) {
                struct pollfd f = { .fd = more ? in : -1, .events = POLLIN };
                bool full = len + 1 >= size, idle = poll(&f, 1, POLL_MS) <= 0;

                if (!idle && f.revents) {
                        ssize_t n = full ? read(in, rest, sizeof(rest)) : read(in, out + len, size - 1 - len);

                        if (n > 0 && !full) {
                                len += (size_t)n;
                                out[len] = 0;
                                if (p->said)
                                        p->said(p->arg, out);
                        }
                        more = n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
                }
                if (ended && idle)
                        break;
                if (!ended)
                        ended = waitpid(pid, ret_status, WNOHANG) == pid;
                cancelled = p->cancel && atomic_load(p->cancel);
                if (clock_mono_ns() < deadline && !cancelled)
                        continue;
                kill(-pid, SIGKILL);
                if (!ended)
                        (void)waitpid(pid, ret_status, 0);
                out[len] = 0;
                return ended ? 0 : cancelled ? -ECANCELED : -ETIMEDOUT;
        }
        kill(-pid, SIGKILL); /* what it has left behind */
        out[len] = 0;
        return 0;
}

/* What it can read on its standard input. */
static int input(const struct program *p) {
        _cleanup_close_ int write_end = -1, read_end = -1;
        int pipes[2];

        if (!p->input)
                return open("/dev/null", O_RDWR | O_CLOEXEC);
        if (pipe2(pipes, O_CLOEXEC) < 0)
                return -1;
        read_end = pipes[0];
        write_end = pipes[1];
        return write(write_end, p->input, p->input_len) == (ssize_t)p->input_len ? STEAL_FD(read_end) : -1;
}

int program_safe(const char *path, struct error *e) {
        struct stat s;

        if (stat(path, &s) < 0)
                return error_errno(e, errno, "it cannot be looked at");
        if (!S_ISREG(s.st_mode))
                return error_set(e, -EPERM, "not a file");
        if (s.st_mode & (S_IWGRP | S_IWOTH))
                return error_set(e, -EPERM, "others may write it");
        if (s.st_uid != 0 && s.st_uid != geteuid())
                return error_set(e, -EPERM, "it belongs to somebody else");
        return 0;
}

int program_run(const struct program *p, char *out, size_t size, int *ret_status, struct error *e) {
        uint64_t deadline = clock_mono_ns() + p->timeout_ms * NSEC_PER_MSEC;
        _cleanup_close_ int from = input(p), in = -1, fd = -1;
        int pipes[2], status = 0, r;
        pid_t pid;

        out[0] = 0;
        if (from < 0 || pipe2(pipes, O_CLOEXEC) < 0)
                return error_errno(e, errno, "%s", p->path);
        in = pipes[0];
        fd = pipes[1];
        if (fcntl(in, F_SETFL, O_NONBLOCK) < 0)
                return error_errno(e, errno, "%s", p->path);
        pid = start(p, fd, from);
        if (pid < 0)
                return error_errno(e, errno, "%s", p->path);
        close(STEAL_FD(fd));
        r = collect(p, pid, in, deadline, out, size, &status);
        *ret_status = status;
        if (r == -ETIMEDOUT)
                return error_set(e, r, "%s did not end within %.1f s", p->path, p->timeout_ms / 1e3);
        if (r == -ECANCELED)
                return error_set(e, r, "%s was ended: its device is wanted", p->path);
        if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_NO_EXEC && !out[0])
                return error_set(e, -ENOEXEC, "%s could not be executed", p->path);
        return 0;
}
