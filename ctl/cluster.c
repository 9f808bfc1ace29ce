/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cluster up, down, status: a whole cluster on this machine, for one user, in one folder.  The processes are the keeper's (keeper.c); this file
 * starts it, waits for what was asked for, and tells it to stop.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/text.h"
#include "ctl/client.h"
#include "ctl/handlers.h"
#include "ctl/keeper.h"
#include "ctl/print.h"

#define NODES_DEFAULT 4
#define DEVICES_DEFAULT 2
#define UP_TIMEOUT_MS 60000
#define GRACE_MS 30000
#define KILL_MARGIN_MS 20000 /* after SIGINT: controller and spawners have their own bounds */
#define POLL_MS 20
#define STATUS_TIMEOUT_MS 2000
#define QUICK_ENDS_MAX 4 /* a daemon that ended so often while we wait will not come up */

static struct {
        int64_t nodes, devices, timeout_ms, grace_ms;
        bool test_hooks, now, stop;
        const char *device;
} given = { .timeout_ms = UP_TIMEOUT_MS, .grace_ms = GRACE_MS };

static const char *const device_kinds[] = { "cpu", "cuda", NULL };

const struct opt cluster_up_opts[] = {
        { "nodes", 'n', OPT_INT, "N", "workers (4, or as it was)", &given.nodes, 1, LOCAL_NODES_MAX, NULL },
        { "devices", 'd', OPT_INT, "M", "devices of each (2, or as it was; cuda: all)", &given.devices, 1, LOCAL_DEVICES_MAX, NULL },
        { "device", 0, OPT_CHOICE, "KIND", "cpu (default, or as it was), or cuda: this machine's GPUs, of one worker", &given.device, 0, 0, device_kinds },
        { "allow-test-hooks", 0, OPT_FLAG, NULL, "accept job files with test keys", &given.test_hooks, 0, 0, NULL },
        { "timeout", 0, OPT_DURATION_MS, "TIME", "wait so long for the nodes (60s)", &given.timeout_ms, 1, INT32_MAX, NULL },
        { 0 },
};
const struct opt cluster_down_opts[] = {
        { "now", 0, OPT_FLAG, NULL, "kill, without last checkpoints", &given.now, 0, 0, NULL },
        { "grace", 0, OPT_DURATION_MS, "TIME", "time for last checkpoints (30s)", &given.grace_ms, 0, INT32_MAX, NULL },
        { 0 },
};
const struct opt cluster_keep_opts[] = {
        { "stop", 0, OPT_FLAG, NULL, "only stop what an earlier keeper left", &given.stop, 0, 0, NULL },
        { 0 },
};

static void pause_ms(long ms) {
        struct timespec t = { ms / 1000, ms % 1000 * (long)NSEC_PER_MSEC };

        nanosleep(&t, NULL);
}

/* up and down of one cluster do not run at the same time. */
static int lock_home(const char *home, int *ret_fd, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/cluster.lock", home);
        _cleanup_close_ int fd = -1;

        if (!path)
                return error_set(e, -ENOMEM, "no memory");
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0 || flock(fd, LOCK_EX) < 0)
                return error_errno(e, errno, "%s", path);
        *ret_fd = STEAL_FD(fd);
        return 0;
}

static int make_home(const char *home, struct error *e) {
        struct stat st;
        int r = file_mkdir_p(home, 0700, e);

        if (r < 0)
                return r;
        if (stat(home, &st) < 0)
                return error_errno(e, errno, "%s", home);
        if (st.st_uid != geteuid())
                return error_set(e, -EACCES, "%s: found owner %u, expected %u: a cluster's folder is its user's own", home, st.st_uid, geteuid());
        if ((st.st_mode & 077) && chmod(home, 0700) < 0)
                return error_errno(e, errno, "%s: mode 0700", home);
        return 0;
}

/* A process of its own session, not our child, running `fp8ctl cluster keep`. */
static int spawn_keeper(const char *home, bool stop, struct error *e) {
        _cleanup_free_ char *log_path = file_path("%s/keeper.log", home), *dir = file_path("--dir=%s", home);
        _cleanup_close_ int log_fd = -1, null_fd = -1;
        char self[PATH_MAX];
        ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);
        pid_t pid;

        if (!log_path || !dir)
                return error_set(e, -ENOMEM, "no memory");
        if (len < 0)
                return error_errno(e, errno, "/proc/self/exe");
        self[len] = 0;
        log_fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (log_fd < 0 || null_fd < 0)
                return error_errno(e, errno, "%s", log_path);
        pid = fork();
        if (pid < 0)
                return error_errno(e, errno, "cannot start the keeper");
        if (pid == 0) {
                setsid();
                if (fork() != 0)
                        _exit(0);
                dup2(null_fd, STDIN_FILENO);
                dup2(log_fd, STDOUT_FILENO);
                dup2(log_fd, STDERR_FILENO);
                if (chdir("/") < 0)
                        _exit(1);
                execl(self, "fp8ctl", "cluster", "keep", dir, stop ? "--stop" : NULL, (char *)NULL);
                _exit(127);
        }
        waitpid(pid, NULL, 0);
        return 0;
}

/* The last line of a log, for people. */
static void last_line(const char *path, char *ret, size_t size) {
        char text[2048];
        _cleanup_close_ int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        struct stat st;
        ssize_t n;
        char *nl;

        ret[0] = 0;
        if (fd < 0 || fstat(fd, &st) < 0)
                return;
        n = pread(fd, text, sizeof(text) - 1, st.st_size > (off_t)sizeof(text) - 1 ? st.st_size - (off_t)sizeof(text) + 1 : 0);
        if (n <= 0)
                return;
        text[n] = 0;
        while (n > 0 && text[n - 1] == '\n')
                text[--n] = 0;
        nl = strrchr(text, '\n');
        snprintf(ret, size, "%.*s", (int)size - 1, nl ? nl + 1 : text);
}

/* A daemon that ends again and again will not come up by waiting: say what it said last. */
static int check_daemons(const char *home, const struct local_state *before, struct error *e) {
        struct local_state now = { 0 };
        int r = 0;

        if (local_state_read(home, &now, NULL) < 0)
                return 0;
        for (size_t i = 0; i < now.n && r == 0; i++) {
                unsigned had = 0;

                for (size_t k = 0; k < before->n; k++)
                        if (strcmp(before->daemons[k].name, now.daemons[i].name) == 0)
                                had = before->daemons[k].restarts;
                if (now.daemons[i].restarts >= had + QUICK_ENDS_MAX) {
                        _cleanup_free_ char *log = local_log_path(home, now.daemons[i].name);
                        char said[400];

                        last_line(log, said, sizeof(said));
                        r = error_set(e, -EIO, "%s does not stay up (%s; %s says: %s)", now.daemons[i].name, now.daemons[i].last_end, log ? log : "its log", said);
                }
        }
        local_state_free(&now);
        return r;
}

static int keeper_gone(const char *home, struct error *e) {
        _cleanup_free_ char *log = file_path("%s/keeper.log", home);
        char said[400];

        last_line(log, said, sizeof(said));
        return error_set(e, -EIO, "the keeper of %s ended: %s", home, said[0] ? said : "see keeper.log there");
}

static int wait_keeper(const char *home, uint64_t end_ns, struct error *e) {
        uint64_t give_up = clock_mono_ns() + 5 * NSEC_PER_SEC;

        while (!local_keeper(home)) {
                if (clock_mono_ns() > end_ns || clock_mono_ns() > give_up)
                        return keeper_gone(home, e);
                pause_ms(POLL_MS);
        }
        return 0;
}

/* Until the controller says that n nodes are ready. */
static int wait_ready(struct ctl *c, int64_t n, const struct local_state *before, uint64_t end_ns, struct error *e) {
        _cleanup_(client_freep) struct client *cl = NULL;
        int r = client_new(c, &cl, e);

        while (r >= 0) {
                _cleanup_message_ Fp8ctl__V1__StatusReply *st = NULL;
                struct error why = { 0 };

                if (client_status(cl, STATUS_TIMEOUT_MS, &st, &why) == 0 && st->nodes_ready >= n)
                        return 0;
                if (!local_keeper(c->home))
                        return keeper_gone(c->home, e);
                r = check_daemons(c->home, before, e);
                if (r == 0 && clock_mono_ns() > end_ns)
                        r = st ? error_set(e, -ETIMEDOUT, "%u of %" PRId64 " nodes are ready after %" PRId64 " s; see nodes/*/worker.log in %s", st->nodes_ready, n,
                                           given.timeout_ms / 1000, c->home)
                               : error_set(e, -ETIMEDOUT, "after %" PRId64 " s: %.600s", given.timeout_ms / 1000, why.text);
                pause_ms(POLL_MS);
        }
        return r;
}

/* GPUs of this machine: /dev/nvidia0 and on. */
static int64_t count_gpus(void) {
        int64_t n = 0;
        char path[32];

        for (; n < LOCAL_DEVICES_MAX; n++) {
                snprintf(path, sizeof(path), "/dev/nvidia%" PRId64, n);
                if (access(path, F_OK) < 0)
                        break;
        }
        return n;
}

static int decide_gpus(struct local_config *want, struct error *e) {
        int64_t gpus = count_gpus();

        want->nodes = given.nodes ? given.nodes : 1;
        want->devices = given.devices ? given.devices : gpus;
        if (want->nodes != 1)
                return error_set(e, -EINVAL, "--nodes: found %" PRId64 ", expected 1 with --device cuda: workers of one machine would use the same GPUs", want->nodes);
        if (gpus == 0 || want->devices > gpus)
                return error_set(e, -ENODEV, "--device cuda: found %" PRId64 " GPUs (/dev/nvidia0 and on), expected at least %" PRId64, gpus, want->devices ? want->devices : 1);
        return 0;
}

/* What is asked for, over what it was. Sets *ret_running when a keeper is there already. */
static int decide(const char *home, struct local_config *ret, bool *ret_running, struct error *e) {
        struct local_config was = { 0 }, want;
        int r = local_config_read(home, &was, e);
        bool known = r >= 0;

        if (r < 0 && r != -ENOENT)
                return r;
        want.nodes = given.nodes ? given.nodes : known ? was.nodes : NODES_DEFAULT;
        want.devices = given.devices ? given.devices : known ? was.devices : DEVICES_DEFAULT;
        want.cuda = given.device ? strcmp(given.device, "cuda") == 0 : known && was.cuda;
        *ret_running = local_keeper(home) != 0;
        if (want.cuda) {
                r = decide_gpus(&want, e);
                if (r < 0)
                        return r;
        }
        want.test_hooks = given.test_hooks || (*ret_running && was.test_hooks);
        if (*ret_running && (want.nodes != was.nodes || want.devices != was.devices || want.test_hooks != was.test_hooks || want.cuda != was.cuda))
                return error_set(e, -EBUSY,
                                 "the cluster in %s is up with %" PRId64 " nodes of %" PRId64 " %s devices%s, asked for: %" PRId64 " of %" PRId64 " %s%s; `fp8ctl cluster down` first",
                                 home, was.nodes, was.devices, was.cuda ? "cuda" : "cpu", was.test_hooks ? " and test hooks" : "", want.nodes, want.devices, want.cuda ? "cuda" : "cpu",
                                 want.test_hooks ? " and test hooks" : "");
        *ret = want;
        return 0;
}

static int bring_up(struct ctl *c, struct local_config *ret, struct error *e) {
        uint64_t end = clock_mono_ns() + (uint64_t)given.timeout_ms * NSEC_PER_MSEC;
        struct local_state before = { 0 };
        _cleanup_close_ int lock = -1;
        bool running = false;
        int r;

        r = local_check_home(c->home, given.nodes ? given.nodes : NODES_DEFAULT, e);
        if (r >= 0)
                r = make_home(c->home, e);
        if (r >= 0)
                r = lock_home(c->home, &lock, e);
        if (r >= 0)
                r = decide(c->home, ret, &running, e);
        if (r < 0)
                return r;
        local_state_read(c->home, &before, NULL);
        if (running)
                kill(local_keeper(c->home), SIGHUP);
        else {
                r = local_config_write(c->home, ret, e);
                if (r >= 0)
                        r = spawn_keeper(c->home, false, e);
                if (r >= 0)
                        r = wait_keeper(c->home, end, e);
        }
        if (r >= 0)
                r = wait_ready(c, ret->nodes, &before, end, e);
        local_state_free(&before);
        return r;
}

int cluster_up_run(struct ctl *c, int n, char **args) {
        struct local_config config = { 0 };
        struct error e;

        if (c->controller) {
                error_set(&e, -EINVAL, "cluster up: found --controller %s, expected a folder (--dir): it starts a cluster of its own", c->controller);
                return ctl_usage(&e);
        }
        if (bring_up(c, &config, &e) < 0)
                return ctl_fail(&e);
        if (c->format != FORMAT_TABLE)
                return cluster_status_run(c, 0, NULL);
        printf("cluster in %s is up: %" PRId64 " node%s, %" PRId64 " device%s\n", c->home, config.nodes, text_s((uint64_t)config.nodes), config.nodes * config.devices,
               text_s((uint64_t)(config.nodes * config.devices)));
        return EXIT_DONE;
}

/* ------------------------------------------------------------------ down */

/* Does a process that keeper.json or a spawner.pid names still live? */
static bool anything_left(const char *home) {
        struct local_state s = { 0 };
        bool left = false;

        if (local_state_read(home, &s, NULL) < 0)
                return false;
        for (size_t i = 0; i < s.n; i++)
                left |= process_alive(&s.daemons[i].process) || local_spawner(home, s.daemons[i].name).pid != 0;
        local_state_free(&s);
        return left;
}

static bool wait_gone(const char *home, uint64_t ms) {
        uint64_t end = clock_mono_ns() + ms * NSEC_PER_MSEC;

        while (local_keeper(home)) {
                if (clock_mono_ns() > end)
                        return false;
                pause_ms(POLL_MS);
        }
        return true;
}

static int bring_down(const char *home, bool *ret_was_up, struct error *e) {
        _cleanup_close_ int lock = -1;
        uint64_t end = clock_mono_ns() + (uint64_t)UP_TIMEOUT_MS * NSEC_PER_MSEC;
        pid_t keeper;
        int r;

        *ret_was_up = false;
        if (access(home, F_OK) < 0)
                return 0;
        r = lock_home(home, &lock, e);
        if (r < 0)
                return r;
        if (!local_keeper(home)) {
                if (!anything_left(home))
                        return 0;
                r = spawn_keeper(home, true, e);
                if (r >= 0)
                        r = wait_keeper(home, end, e);
                if (r < 0 && anything_left(home))
                        return r;
        }
        *ret_was_up = true;
        keeper = local_keeper(home);
        if (keeper && !given.now)
                kill(keeper, SIGTERM);
        if (!given.now && wait_gone(home, (uint64_t)given.grace_ms))
                return 0;
        keeper = local_keeper(home);
        if (keeper)
                kill(keeper, SIGINT);
        if (!wait_gone(home, KILL_MARGIN_MS))
                return error_set(e, -ETIMEDOUT, "the keeper (pid %d) did not end; see %s/keeper.log", (int)keeper, home);
        return 0;
}

int cluster_down_run(struct ctl *c, int n, char **args) {
        struct error e;
        bool was_up;

        if (c->controller) {
                error_set(&e, -EINVAL, "cluster down: found --controller %s, expected a folder (--dir)", c->controller);
                return ctl_usage(&e);
        }
        if (bring_down(c->home, &was_up, &e) < 0)
                return ctl_fail(&e);
        printf(was_up ? "cluster in %s is down\n" : "no cluster runs in %s\n", c->home);
        return EXIT_DONE;
}

/* ------------------------------------------------------------------ status */

static void daemon_row(struct sheet *s, const char *name, pid_t pid, const char *state, unsigned restarts, uint64_t since, const char *log) {
        char buf[TEXT_BUF];

        sheet_add(s, "%s", name);
        sheet_add(s, pid ? "%d" : "-", (int)pid);
        sheet_add(s, "%s", state);
        sheet_add(s, "%u", restarts);
        sheet_add(s, "%s", text_age(buf, since));
        sheet_add(s, "%s", log);
}

static json_t *daemon_json(const char *name, pid_t pid, const char *state, unsigned restarts, uint64_t since, const char *log, const char *end) {
        return json_pack("{s:s, s:o, s:s, s:I, s:o, s:s, s:o}", "name", name, "pid", pid ? json_integer(pid) : json_null(), "state", state, "restarts",
                         (json_int_t)restarts, "since_unix_ms", since ? json_integer((json_int_t)since) : json_null(), "log", log, "last_end",
                         end[0] ? json_string(end) : json_null());
}

/* The home's processes, into the sheet and the array. True when all of them run. */
static bool add_daemons(const char *home, struct sheet *s, json_t *array) {
        struct local_state st = { 0 };
        pid_t keeper = local_keeper(home);
        _cleanup_free_ char *keeper_log = file_path("%s/keeper.log", home);
        bool all = keeper != 0;

        daemon_row(s, "keeper", keeper, keeper ? "running" : "stopped", 0, 0, keeper_log);
        json_array_append_new(array, daemon_json("keeper", keeper, keeper ? "running" : "stopped", 0, 0, keeper_log, ""));
        if (local_state_read(home, &st, NULL) < 0)
                return false;
        for (size_t i = 0; i < st.n; i++) {
                const struct local_daemon *d = &st.daemons[i];
                bool alive = process_alive(&d->process);
                /* Without a keeper nobody kept the file true. */
                const char *state = alive ? "running" : keeper ? d->state : "stopped";
                _cleanup_free_ char *log = local_log_path(home, d->name);

                all &= alive;
                daemon_row(s, d->name, alive ? d->process.pid : 0, state, d->restarts, d->since_unix_ms, log);
                json_array_append_new(array, daemon_json(d->name, alive ? d->process.pid : 0, state, d->restarts, d->since_unix_ms, log, d->last_end));
        }
        local_state_free(&st);
        return all;
}

static void print_controller(const char *where, const Fp8ctl__V1__StatusReply *st, const char *why) {
        char buf[TEXT_BUF];

        if (!st) {
                printf("controller at %s: %s\n", where, why);
                return;
        }
        printf("controller at %s: version %s, up %s, %u of %u nodes ready, %u of %u devices free, %u job%s%s\n", where, st->version,
               text_age(buf, st->started_unix_ms), st->nodes_ready, st->nodes_total, st->devices_free, st->devices_total, st->jobs_active, text_s(st->jobs_active),
               st->test_hooks ? ", test hooks allowed" : "");
        if (st->dropped_messages)
                printf("%" PRIu64 " message%s from workers dropped: of another epoch, incarnation or lease\n", st->dropped_messages, text_s(st->dropped_messages));
}

static int remote_status(struct ctl *c, struct client *cl, const Fp8ctl__V1__StatusReply *st, const struct error *why) {
        _cleanup_json_ json_t *o = NULL;

        if (!st)
                return ctl_fail(why);
        if (c->format == FORMAT_TABLE || c->format == FORMAT_WIDE) {
                print_controller(client_where(cl), st, "");
                return EXIT_DONE;
        }
        if (c->format == FORMAT_NAME) {
                printf("%s\n", client_where(cl));
                return EXIT_DONE;
        }
        o = json_pack("{s:i, s:s, s:s, s:o}", "v", CTL_JSON_VERSION, "state", "up", "address", client_where(cl), "controller", pb_to_json(&st->base));
        print_object(c, o);
        return EXIT_DONE;
}

int cluster_status_run(struct ctl *c, int n, char **args) {
        static const struct sheet_column columns[] = {
                { "DAEMON", false, false, false },  { "PID", true, false, false },   { "STATE", false, false, true },
                { "RESTARTS", true, false, false }, { "SINCE", true, false, false }, { "LOG", false, false, false },
        };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__StatusReply *st = NULL;
        _cleanup_json_ json_t *o = NULL, *daemons = json_array();
        struct error why = { 0 };
        const char *state;
        bool all;

        if (client_new(c, &cl, &why) < 0)
                return ctl_fail(&why);
        client_status(cl, STATUS_TIMEOUT_MS, &st, &why);
        if (c->controller)
                return remote_status(c, cl, st, &why);
        all = add_daemons(c->home, s, daemons);
        state = all && st && st->nodes_ready == st->nodes_total ? "up" : st || anything_left(c->home) ? "degraded" : "down";
        if (c->format == FORMAT_NAME) {
                json_t *d;
                size_t i;

                json_array_foreach(daemons, i, d) {
                        printf("%s\n", json_string_value(json_object_get(d, "name")));
                }
        } else if (c->format == FORMAT_TABLE || c->format == FORMAT_WIDE) {
                printf("cluster in %s is %s\n", c->home, state);
                print_controller(client_where(cl), st, why.text);
                sheet_print(s, c->format == FORMAT_WIDE, stdout);
        } else {
                o = json_pack("{s:i, s:s, s:s, s:s, s:O, s:o}", "v", CTL_JSON_VERSION, "state", state, "home", c->home, "address", client_where(cl), "daemons", daemons,
                              "controller", st ? pb_to_json(&st->base) : json_null());
                print_object(c, o);
        }
        return st ? EXIT_DONE : EXIT_UNREACHABLE;
}

int cluster_keep_run(struct ctl *c, int n, char **args) {
        struct keeper_options o = { .home = c->home, .stop = given.stop };
        struct error e;

        log_open("keeper", LOG_LEVEL_INFO);
        if (keeper_run(&o, &e) < 0) {
                log_error("%s", e.text);
                return EXIT_FAILED;
        }
        return EXIT_DONE;
}
