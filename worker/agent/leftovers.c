/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks die with their spawner (PR_SET_PDEATHSIG), so mostly there is nothing to do.  What is done is done safely: a pid is killed only when the
 * process that has it now started at the recorded time and is one of ours by name.
 */
#include "worker/agent/leftovers.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/log.h"
#include "proto/ipc.h"
#include "worker/agent/cgroup.h"
#include "worker/agent/spawner.h"

int leftovers_find_spawner(const char *dir) {
        _cleanup_free_ char *path = file_path("%s/" SPAWNER_SOCKET, dir);
        _cleanup_close_ int fd = -1;

        return path && ipc_connect(path, &fd, NULL) == 0;
}

/* Start time (clock ticks since boot) and name of a process. */
static bool process_look(pid_t pid, unsigned long long *ret_start, char name[32]) {
        _cleanup_free_ char *path = file_path("/proc/%d/stat", (int)pid), *text = NULL;
        const char *open, *close_;
        size_t len;

        if (!path || file_read(path, 4096, &text, &len, NULL) < 0)
                return false;
        open = strchr(text, '(');
        close_ = strrchr(text, ')');
        if (!open || !close_ || close_ < open)
                return false;
        snprintf(name, 32, "%.*s", (int)(close_ - open - 1), open + 1);
        return sscanf(close_ + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", ret_start) == 1;
}

static void kill_recorded(pid_t pid, unsigned long long start) {
        int fd = pid > 1 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
        unsigned long long now;
        char name[32];

        /* The pidfd first: what is looked at after it is the process that would be killed. */
        if (fd < 0)
                return;
        if (process_look(pid, &now, name) && now == start && strncmp(name, "fp8-", 4) == 0) {
                log_warning("killing %s (pid %d), left by an earlier life", name, (int)pid);
                (void)syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0);
        }
        close(fd);
}

static void clear_spawner(const char *dir) {
        _cleanup_free_ char *path = file_path("%s/" SPAWNER_PID, dir), *text = NULL;
        unsigned long long start;
        char group[512] = "";
        size_t len;
        int pid;

        if (!path || file_read(path, 4096, &text, &len, NULL) < 0)
                return;
        if (sscanf(text, "%d %llu %511[^\n]", &pid, &start, group) >= 2)
                kill_recorded(pid, start);
        if (group[0])
                cgroup_clear(group);
        unlink(path);
}

static void clear_ranks(const char *dir) {
        _cleanup_free_ char *folder = file_path("%s/ranks", dir);
        DIR *d = folder ? opendir(folder) : NULL;
        struct dirent *entry;

        while (d && (entry = readdir(d))) {
                _cleanup_free_ char *path = file_path("%s/%s", folder, entry->d_name), *text = NULL;
                unsigned long long start;
                size_t len;
                int pid;

                if (entry->d_name[0] == '.' || !path)
                        continue;
                if (file_read(path, 256, &text, &len, NULL) == 0 && sscanf(text, "%d %llu", &pid, &start) == 2)
                        kill_recorded(pid, start);
                unlink(path);
        }
        if (d)
                closedir(d);
}

static void clear_sockets(const char *dir) {
        _cleanup_free_ char *jobs = file_path("%s/jobs", dir), *own = file_path("%s/" SPAWNER_SOCKET, dir);
        DIR *d = jobs ? opendir(jobs) : NULL;
        struct dirent *job;

        if (own)
                unlink(own);
        while (d && (job = readdir(d))) {
                int fd = job->d_name[0] == '.' ? -1 : openat(dirfd(d), job->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
                DIR *in = fd < 0 ? NULL : fdopendir(fd);
                struct dirent *file;

                while (in && (file = readdir(in))) {
                        size_t n = strlen(file->d_name);

                        if (n > 5 && strcmp(file->d_name + n - 5, ".sock") == 0)
                                unlinkat(dirfd(in), file->d_name, 0);
                }
                if (in)
                        closedir(in);
                else
                        closep(&fd);
        }
        if (d)
                closedir(d);
}

void leftovers_clear(const char *dir) {
        clear_spawner(dir);
        clear_ranks(dir);
        clear_sockets(dir);
}
