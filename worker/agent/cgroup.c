/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control groups by plain files (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/).  No controller is enabled for the groups made
 * here: they only hold processes together.  Limits are the service manager's business.
 */
#include "worker/agent/cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

/* Where a hierarchy is mounted. controller NULL: version 2. */
static int find_mount(const char *controller, char *ret, size_t size) {
        _cleanup_fclose_ FILE *f = fopen("/proc/self/mountinfo", "re");
        char line[2048];

        if (!f)
                return -errno;
        while (fgets(line, sizeof(line), f)) {
                char point[512], type[64], options[512];
                const char *dash = strstr(line, " - ");

                if (!dash || sscanf(line, "%*s %*s %*s %*s %511s", point) != 1 || sscanf(dash, " - %63s %*s %511s", type, options) != 2)
                        continue;
                if (!controller ? strcmp(type, "cgroup2") != 0 : strcmp(type, "cgroup") != 0)
                        continue;
                if (controller) {
                        bool found = false;

                        for (char *save, *o = strtok_r(options, ",", &save); o; o = strtok_r(NULL, ",", &save))
                                found = found || strcmp(o, controller) == 0;
                        if (!found)
                                continue;
                }
                if (strlen(point) >= size)
                        return -ENAMETOOLONG;
                memcpy(ret, point, strlen(point) + 1);
                return 0;
        }
        return -ENOENT;
}

/* Our own group's path in that hierarchy ("/" at least). */
static int own_path(const char *controller, char *ret, size_t size) {
        _cleanup_fclose_ FILE *f = fopen("/proc/self/cgroup", "re");
        char line[1024];

        if (!f)
                return -errno;
        while (fgets(line, sizeof(line), f)) {
                char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
                bool found = false;

                if (!path)
                        continue;
                *path++ = '\0';
                controllers++;
                path[strcspn(path, "\n")] = '\0';
                if (!controller)
                        found = *controllers == '\0';
                else
                        for (char *save, *c = strtok_r(controllers, ",", &save); c; c = strtok_r(NULL, ",", &save))
                                found = found || strcmp(c, controller) == 0;
                if (!found)
                        continue;
                if (strlen(path) >= size)
                        return -ENAMETOOLONG;
                memcpy(ret, path, strlen(path) + 1);
                return 0;
        }
        return -ENOENT;
}

static bool try_base(const char *controller, const char *name, struct cgroup_base *ret) {
        char mount[512], own[512], path[sizeof(ret->path)], procs[600];
        int n;

        if (find_mount(controller, mount, sizeof(mount)) < 0 || own_path(controller, own, sizeof(own)) < 0)
                return false;
        n = snprintf(path, sizeof(path), "%s%s/fp8-%s.%d", mount, strcmp(own, "/") == 0 ? "" : own, name, (int)getpid());
        if (n < 0 || (size_t)n >= sizeof(path) || mkdir(path, 0755) < 0)
                return false;
        snprintf(procs, sizeof(procs), "%s/cgroup.procs", path);
        if (access(procs, W_OK) < 0) {
                rmdir(path);
                return false;
        }
        memcpy(ret->path, path, strlen(path) + 1);
        ret->v2 = !controller;
        return true;
}

void cgroup_base_make(const char *name, struct cgroup_base *ret) {
        static const char *const controllers[] = { NULL, "pids", "memory", "freezer" };

        ret->path[0] = '\0';
        ret->v2 = false;
        for (size_t i = 0; i < ARRAY_SIZE(controllers); i++)
                if (try_base(controllers[i], name, ret))
                        return;
}

void cgroup_base_remove(const struct cgroup_base *b) {
        if (b->path[0])
                rmdir(b->path);
}

void cgroup_make(const struct cgroup_base *b, const char *name, char *ret, size_t size) {
        int n;

        ret[0] = '\0';
        if (!b->path[0])
                return;
        n = snprintf(ret, size, "%s/%s", b->path, name);
        if (n < 0 || (size_t)n >= size || (mkdir(ret, 0755) < 0 && errno != EEXIST))
                ret[0] = '\0';
}

static int open_file(const char *path, const char *file, int flags) {
        char p[768];
        int n = snprintf(p, sizeof(p), "%s/%s", path, file), fd;

        if (n < 0 || (size_t)n >= sizeof(p))
                return -ENAMETOOLONG;
        fd = open(p, flags | O_CLOEXEC);
        return fd < 0 ? -errno : fd;
}

int cgroup_enter(const char *path) {
        int fd = open_file(path, "cgroup.procs", O_WRONLY), r = 0;

        if (fd < 0)
                return fd;
        if (write(fd, "0", 1) != 1)
                r = -errno;
        close(fd);
        return r;
}

/* Calls fn for each process; returns how many there were. */
static int each_process(const char *path, void (*fn)(pid_t pid)) {
        int fd = open_file(path, "cgroup.procs", O_RDONLY), n = 0;
        _cleanup_fclose_ FILE *f = fd < 0 ? NULL : fdopen(fd, "re");
        char line[32];

        if (!f) {
                closep(&fd);
                return 0;
        }
        while (fgets(line, sizeof(line), f)) {
                long pid = strtol(line, NULL, 10);

                if (pid <= 1)
                        continue;
                n++;
                if (fn)
                        fn((pid_t)pid);
        }
        return n;
}

static void kill_one(pid_t pid) {
        kill(pid, SIGKILL);
}

int cgroup_kill(const char *path) {
        _cleanup_close_ int fd = -1;

        if (!path[0])
                return -ENOENT;
        fd = open_file(path, "cgroup.kill", O_WRONLY);
        if (fd >= 0 && write(fd, "1", 1) == 1)
                return 0;
        each_process(path, kill_one);
        return 0;
}

int cgroup_count(const char *path) {
        return path[0] ? each_process(path, NULL) : 0;
}

uint64_t cgroup_oom_kills(const char *path) {
        static const char *const files[] = { "memory.events", "memory.oom_control" };
        char line[128];

        for (size_t i = 0; path[0] && i < ARRAY_SIZE(files); i++) {
                int fd = open_file(path, files[i], O_RDONLY);
                _cleanup_fclose_ FILE *f = fd < 0 ? NULL : fdopen(fd, "re");

                if (!f) {
                        closep(&fd);
                        continue;
                }
                while (fgets(line, sizeof(line), f)) {
                        unsigned long long n;

                        if (sscanf(line, "oom_kill %llu", &n) == 1)
                                return n;
                }
        }
        return 0;
}

void cgroup_remove(const char *path) {
        if (path[0])
                rmdir(path);
}

void cgroup_clear(const char *path) {
        const char *name = strrchr(path, '/');
        _cleanup_free_ struct dirent **entries = NULL;
        int n;

        if (!name || strncmp(name, "/fp8-", 5) != 0 || strncmp(path, "/", 1) != 0 || strstr(path, ".."))
                return;
        n = scandir(path, &entries, NULL, NULL);
        for (int i = 0; i < n; i++) {
                char sub[1024];

                if (entries[i]->d_type == DT_DIR && entries[i]->d_name[0] != '.') {
                        snprintf(sub, sizeof(sub), "%s/%s", path, entries[i]->d_name);
                        cgroup_kill(sub);
                        for (int tries = 0; tries < 100 && rmdir(sub) < 0 && errno == EBUSY; tries++)
                                usleep(10000);
                }
                free(entries[i]);
        }
        rmdir(path);
}

static bool read_number(const char *path, const char *file, uint64_t *ret) {
        int fd = open_file(path, file, O_RDONLY);
        char text[64] = "";
        unsigned long long n;
        ssize_t len;

        if (fd < 0)
                return false;
        len = read(fd, text, sizeof(text) - 1);
        close(fd);
        if (len <= 0 || sscanf(text, "%llu", &n) != 1)
                return false; /* "max" */
        *ret = n;
        return true;
}

uint64_t cgroup_memory_left(void) {
        static const struct {
                const char *controller, *limit, *usage;
        } kinds[] = { { NULL, "memory.max", "memory.current" }, { "memory", "memory.limit_in_bytes", "memory.usage_in_bytes" } };
        uint64_t left = UINT64_MAX;

        for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
                char mount[512], own[512], path[600];
                uint64_t limit, usage;
                int n;

                if (find_mount(kinds[i].controller, mount, sizeof(mount)) < 0 || own_path(kinds[i].controller, own, sizeof(own)) < 0)
                        continue;
                n = snprintf(path, sizeof(path), "%s%s", mount, own);
                if (n < 0 || (size_t)n >= sizeof(path) || !read_number(path, kinds[i].limit, &limit) || !read_number(path, kinds[i].usage, &usage))
                        continue;
                limit = limit > usage ? limit - usage : 0;
                left = limit < left ? limit : left;
        }
        return left;
}
