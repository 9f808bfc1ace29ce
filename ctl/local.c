/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/local.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"

#define FILE_VERSION 1
#define STATE_MAX (1u << 20)
#define LOCK_TRIES 30
#define LOCK_PAUSE_MS 10
#define SOCKET_NAME_ROOM 40 /* the longest name below a node's folder: sockets of ranks */

/* A JSON object of our version from a file of the home. */
static int read_object(const char *home, const char *name, json_t **ret, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/%s", home, name), *text = NULL;
        json_error_t je;
        size_t len;
        json_t *o;
        int r;

        if (!path)
                return error_set(e, -ENOMEM, "no memory");
        r = file_read(path, STATE_MAX, &text, &len, e);
        if (r < 0)
                return r;
        o = json_loadb(text, len, 0, &je);
        if (!json_is_object(o) || json_integer_value(json_object_get(o, "v")) != FILE_VERSION) {
                json_decref(o);
                return error_set(e, -EPROTO, "%s: found no cluster file of version %d; was it written by another version?", path, FILE_VERSION);
        }
        *ret = o;
        return 0;
}

static int write_object(const char *home, const char *name, json_t *o, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/%s", home, name), *text = json_dumps(o, JSON_INDENT(1));

        json_decref(o);
        if (!path || !text)
                return error_set(e, -ENOMEM, "no memory");
        return file_write_atomic(path, text, strlen(text), 0600, e);
}

int local_config_read(const char *home, struct local_config *ret, struct error *e) {
        json_t *o = NULL;
        struct local_config c;
        int r = read_object(home, "cluster.json", &o, e);

        if (r < 0)
                return r;
        c.nodes = json_integer_value(json_object_get(o, "nodes"));
        c.devices = json_integer_value(json_object_get(o, "devices"));
        c.test_hooks = json_is_true(json_object_get(o, "allow_test_hooks"));
        c.cuda = json_is_true(json_object_get(o, "cuda"));
        json_decref(o);
        if (c.nodes < 1 || c.nodes > LOCAL_NODES_MAX || c.devices < 1 || c.devices > LOCAL_DEVICES_MAX)
                return error_set(e, -EPROTO, "%s/cluster.json: found %" PRId64 " nodes of %" PRId64 " devices, expected 1 to %d of 1 to %d", home, c.nodes, c.devices,
                                 LOCAL_NODES_MAX, LOCAL_DEVICES_MAX);
        *ret = c;
        return 0;
}

int local_config_write(const char *home, const struct local_config *c, struct error *e) {
        return write_object(home, "cluster.json",
                            json_pack("{s:i, s:I, s:I, s:b, s:b}", "v", FILE_VERSION, "nodes", (json_int_t)c->nodes, "devices", (json_int_t)c->devices, "allow_test_hooks",
                                      (int)c->test_hooks, "cuda", (int)c->cuda),
                            e);
}

int local_check_home(const char *home, int64_t nodes, struct error *e) {
        struct sockaddr_un un;
        char name[48];
        size_t room = sizeof(un.sun_path) - 1, need;

        snprintf(name, sizeof(name), "/nodes/node-%" PRId64 "/", nodes - 1);
        need = strlen(name) + SOCKET_NAME_ROOM;
        if (strlen(home) + need > room)
                return error_set(e, -ENAMETOOLONG, "%s: found a folder name of %zu bytes, allowed for the sockets in it: %zu; give a shorter one by --dir", home,
                                 strlen(home), room - need);
        return 0;
}

int process_id_of(pid_t pid, struct process_id *ret) {
        char path[32], text[1024], *end;
        unsigned long long start;
        char state;
        _cleanup_close_ int fd = -1;
        ssize_t n;

        snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return -ENOENT;
        n = read(fd, text, sizeof(text) - 1);
        if (n <= 0)
                return -ENOENT;
        text[n] = 0;
        end = strrchr(text, ')'); /* the name may hold anything, a ')' too */
        if (!end || sscanf(end + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &state, &start) != 2 || state == 'Z' ||
            state == 'X')
                return -ENOENT;
        *ret = (struct process_id){ pid, start };
        return 0;
}

bool process_alive(const struct process_id *p) {
        struct process_id now;

        return p->pid > 0 && process_id_of(p->pid, &now) == 0 && now.start == p->start;
}

static void copy_string(char *to, size_t size, const json_t *o, const char *key) {
        const char *s = json_string_value(json_object_get(o, key));

        snprintf(to, size, "%s", s ? s : "");
}

int local_state_read(const char *home, struct local_state *ret, struct error *e) {
        json_t *o = NULL, *list, *d;
        struct local_state s = { 0 };
        size_t i;
        int r = read_object(home, "keeper.json", &o, e);

        if (r < 0)
                return r;
        list = json_object_get(o, "daemons");
        s.daemons = calloc(json_array_size(list) + 1, sizeof(*s.daemons));
        if (!s.daemons) {
                json_decref(o);
                return error_set(e, -ENOMEM, "no memory");
        }
        json_array_foreach(list, i, d) {
                struct local_daemon *to = &s.daemons[s.n++];

                copy_string(to->name, sizeof(to->name), d, "name");
                copy_string(to->state, sizeof(to->state), d, "state");
                copy_string(to->last_end, sizeof(to->last_end), d, "last_end");
                to->process.pid = (pid_t)json_integer_value(json_object_get(d, "pid"));
                to->process.start = (uint64_t)json_integer_value(json_object_get(d, "start"));
                to->restarts = (unsigned)json_integer_value(json_object_get(d, "restarts"));
                to->since_unix_ms = (uint64_t)json_integer_value(json_object_get(d, "since_unix_ms"));
        }
        json_decref(o);
        *ret = s;
        return 0;
}

int local_state_write(const char *home, const struct local_state *s, struct error *e) {
        json_t *list = json_array();

        for (size_t i = 0; i < s->n; i++) {
                const struct local_daemon *d = &s->daemons[i];

                json_array_append_new(list, json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:s}", "name", d->name, "state", d->state, "pid", (json_int_t)d->process.pid,
                                                      "start", (json_int_t)d->process.start, "restarts", (json_int_t)d->restarts, "since_unix_ms",
                                                      (json_int_t)d->since_unix_ms, "last_end", d->last_end));
        }
        return write_object(home, "keeper.json", json_pack("{s:i, s:o}", "v", FILE_VERSION, "daemons", list), e);
}

void local_state_free(struct local_state *s) {
        free(s->daemons);
        *s = (struct local_state){ 0 };
}

int local_keeper_lock(const char *home, int *ret_fd, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/keeper.pid", home);
        _cleanup_close_ int fd = -1;

        if (!path)
                return error_set(e, -ENOMEM, "no memory");
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0)
                return error_errno(e, errno, "%s", path);
        /* Who only looks (local_keeper) holds the lock for a moment, and so does a child between fork and exec of a keeper that was killed. */
        for (int tries = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; tries++) {
                struct timespec pause = { 0, LOCK_PAUSE_MS * (long)NSEC_PER_MSEC };

                if (errno != EWOULDBLOCK)
                        return error_errno(e, errno, "%s", path);
                if (tries == LOCK_TRIES)
                        return error_set(e, -EBUSY, "%s: another keeper holds this cluster", home);
                nanosleep(&pause, NULL);
        }
        *ret_fd = STEAL_FD(fd);
        return 0;
}

pid_t local_keeper(const char *home) {
        _cleanup_free_ char *path = file_path("%s/keeper.pid", home);
        _cleanup_close_ int fd = -1;
        char text[32] = "";

        if (!path)
                return 0;
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || flock(fd, LOCK_SH | LOCK_NB) == 0 || read(fd, text, sizeof(text) - 1) <= 0)
                return 0;
        return (pid_t)strtol(text, NULL, 10);
}

char *local_log_path(const char *home, const char *name) {
        return strcmp(name, "fp8d") == 0 ? file_path("%s/fp8d.log", home) : file_path("%s/nodes/%s/worker.log", home, name);
}

struct process_id local_spawner(const char *home, const char *node) {
        _cleanup_free_ char *path = file_path("%s/nodes/%s/spawner.pid", home, node), *text = NULL;
        struct process_id p = { 0 }, none = { 0 };
        unsigned long long start;
        size_t len;
        int pid;

        if (!path || file_read(path, 4096, &text, &len, NULL) < 0 || sscanf(text, "%d %llu", &pid, &start) != 2)
                return none;
        p.pid = pid;
        p.start = start;
        return process_alive(&p) ? p : none;
}

static bool try_program(const char *dir, const char *below, const char *name, char **ret) {
        char *path = file_path("%s%s/%s", dir, below, name);

        if (path && access(path, X_OK) == 0) {
                *ret = path;
                return true;
        }
        free(path);
        return false;
}

static bool try_path(const char *name, char **ret) {
        const char *p = getenv("PATH");

        while (p && *p) {
                size_t len = strcspn(p, ":");
                _cleanup_free_ char *dir = strndup(p, len);

                if (dir && *dir == '/' && try_program(dir, "", name, ret))
                        return true;
                p += len + (p[len] == ':');
        }
        return false;
}

int local_find_program(const char *name, char **ret, struct error *e) {
        /* Seen from ctl/fp8ctl and from a link at the top of the build tree. */
        static const char *const below[] = { "", "/..", "/../daemon", "/../daemon/io", "/../worker/agent", "/daemon", "/worker/agent" };
        const char *bindir = getenv("FP8CTL_BINDIR");
        char self[PATH_MAX];
        ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

        if (bindir && *bindir) {
                if (try_program(bindir, "", name, ret))
                        return 0;
                return error_set(e, -ENOENT, "FP8CTL_BINDIR=%s: no program %s there", bindir, name);
        }
        if (n > 0) {
                const char *dir;

                self[n] = 0;
                dir = dirname(self);
                for (size_t i = 0; i < ARRAY_SIZE(below); i++)
                        if (try_program(dir, below[i], name, ret))
                                return 0;
        }
        if (try_path(name, ret))
                return 0;
        return error_set(e, -ENOENT, "no program %s beside fp8ctl, in its build tree or in PATH; FP8CTL_BINDIR names another folder", name);
}
