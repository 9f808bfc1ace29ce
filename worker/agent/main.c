/* SPDX-License-Identifier: Apache-2.0 */
/* fp8-worker: options, the spawner, the agent. Order matters: signals are blocked and the spawner is forked before gRPC has threads. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/log.h"
#include "base/net.h"
#include "base/opt.h"
#include "proto/rpc_server.h"
#include "version.h"
#include "worker/agent/agent.h"
#include "worker/agent/leftovers.h"
#include "worker/agent/node.h"
#include "worker/agent/spawner.h"
#include "worker/agent/stacks.h"

#define EXIT_USAGE 2

struct options {
        const char *name, *dir, *controller, *host, *device_kind, *rank_binary, *log_level, *ca, *cert, *key, *rack, *rdma, *local_dir, *health_root, *health_checks, *panic_to, *rollout_hook;
        int64_t stacks, devices, grace_ms, replica_percent, local_percent, health_interval_ms, canary_ms;
        bool help, version;
};

static const char *const log_levels[] = { "error", "warning", "info", "debug", NULL };
static const char *const device_kinds[] = { "cpu", "cuda", NULL };

static int check_options(const struct options *o, struct error *e) {
        struct sockaddr_in panic_to;

        if (!o->name || !*o->name || strlen(o->name) > 63 || strspn(o->name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") != strlen(o->name))
                return error_set(e, -EINVAL, "--name: found '%s', expected 1 to 63 letters, digits, '.', '-' and '_'", o->name ? o->name : "");
        if (!o->dir || !*o->dir)
                return error_set(e, -EINVAL, "--dir: expected the node's folder");
        if (!o->controller || !*o->controller)
                return error_set(e, -EINVAL, "--controller: expected unix:/path, group:/path or ipv4:address:port");
        if ((!o->ca || !o->cert || !o->key) && (o->ca || o->cert || o->key))
                return error_set(e, -EINVAL, "--tls-ca, --tls-cert and --tls-key belong together");
        if (!o->ca && strncmp(o->controller, "unix:", 5) != 0 && strncmp(o->controller, "group:", 6) != 0)
                return error_set(e, -EINVAL, "--controller %s: not a Unix socket, so --tls-ca, --tls-cert and --tls-key are needed", o->controller);
        return o->panic_to ? net_ipv4(o->panic_to, &panic_to, e) : 0;
}

/* One worker a folder: a lock that ends with the process and that a forked spawner does not inherit (fcntl(2)). */
static int take_lock(const char *dir, int *ret_fd, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/worker.lock", dir);
        _cleanup_close_ int fd = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
        struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

        if (fd < 0)
                return error_errno(e, errno, "cannot open %s", path ? path : "worker.lock");
        if (fcntl(fd, F_SETLK, &l) < 0) {
                struct flock who = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

                (void)fcntl(fd, F_GETLK, &who);
                return error_set(e, -EBUSY, "another fp8-worker (pid %d) runs in %s", (int)who.l_pid, dir);
        }
        *ret_fd = STEAL_FD(fd);
        return 0;
}

static char *beside_ourselves(const char *name) {
        char path[PATH_MAX];
        ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
        char *slash;

        if (n <= 0)
                return NULL;
        path[n] = '\0';
        slash = strrchr(path, '/');
        if (!slash)
                return NULL;
        *slash = '\0';
        return file_path("%s/%s", path, name);
}

/* The folder for copies of snapshots, and each device's part of its space. */
static int local_disk(const struct options *o, const char *dir, char **ret_dir, uint64_t *ret_space, struct error *e) {
        _cleanup_free_ char *path = o->local_dir ? strdup(o->local_dir) : file_path("%s/local", dir), *real = NULL;
        struct statvfs fs;
        int r;

        if (!path)
                return error_errno(e, ENOMEM, "--local-dir");
        r = o->local_percent > 0 ? file_mkdir_p(path, 0711, e) : 0; /* ranks of other users pass through */
        if (r < 0 || o->local_percent == 0)
                return r;
        real = realpath(path, NULL);
        if (!real || statvfs(real, &fs) < 0)
                return error_errno(e, errno, "%s", path);
        *ret_space = (uint64_t)fs.f_blocks * fs.f_frsize / 100 * (uint64_t)o->local_percent / (uint64_t)o->devices;
        *ret_dir = STEAL_PTR(real);
        return 0;
}

static int run(const struct options *o, const char *dir, struct error *e) {
        _cleanup_free_ char *local = NULL;
        _cleanup_free_ char *rank = o->rank_binary ? strdup(o->rank_binary) : beside_ourselves("fp8-rank");
        _cleanup_free_ char *test = beside_ourselves("fp8-nodetest");
        struct tls_files tls = { .ca = o->ca, .cert = o->cert, .key = o->key };
        struct agent_config agent = { .name = o->name, .dir = dir, .controller = o->controller, .host = o->host, .device_kind = o->device_kind,
                                      .tls = o->ca ? &tls : NULL, .devices = (int)o->devices, .grace_ms = (uint32_t)o->grace_ms, .rack = o->rack,
                                      .replica_percent = (uint32_t)o->replica_percent, .rdma = o->rdma, .test_binary = test ? test : "fp8-nodetest", .rank_binary = rank, .health_root = o->health_root,
                                      .health_checks = o->health_checks, .health_interval_ms = (uint32_t)o->health_interval_ms, .canary_ms = (uint32_t)o->canary_ms, .panic_to = o->panic_to, .rollout_hook = o->rollout_hook };
        struct spawner_config spawner = { .dir = dir, .node = o->name, .host = o->host, .device_kind = o->device_kind, .rank_binary = rank,
                                          .log_level = o->log_level, .rdma = o->rdma, .devices = (int)o->devices };
        _cleanup_close_ int lock = -1;
        pid_t pid = 0;
        int r;

        if (!rank || access(rank, X_OK) < 0)
                return error_set(e, -ENOENT, "no rank program at %s; see --rank-binary", rank ? rank : "?");
        r = take_lock(dir, &lock, e);
        if (r == 0)
                r = local_disk(o, dir, &local, &agent.local_space, e);
        if (r < 0)
                return r;
        agent.local_dir = spawner.local_dir = local;
        spawner.local_space = agent.local_space;
        if (leftovers_find_spawner(dir)) {
                log_info("a spawner lives in %s: taking its ranks over", dir);
        } else {
                leftovers_clear(dir);
                r = spawner_fork(&spawner, &pid, e);
                if (r < 0)
                        return r;
        }
        r = rpc_init(e);
        if (r < 0)
                return r;
        r = agent_run(&agent, e);
        if (r != AGENT_RELOAD)
                rpc_shutdown();
        return r;
}

static int prepare(const struct options *o, char **ret_dir, struct error *e) {
        sigset_t set;
        int r;

        r = file_mkdir_p(o->dir, 0711, e); /* ranks of other users pass through */
        if (r < 0)
                return r;
        *ret_dir = realpath(o->dir, NULL);
        if (!*ret_dir)
                return error_errno(e, errno, "%s", o->dir);
        signal(SIGPIPE, SIG_IGN);
        sigemptyset(&set);
        sigaddset(&set, SIGTERM);
        sigaddset(&set, SIGINT);
        sigaddset(&set, SIGHUP);
        sigprocmask(SIG_BLOCK, &set, NULL);
        return 0;
}

int main(int argc, char **argv) {
        struct options o = { .host = "127.0.0.1", .device_kind = "cpu", .log_level = "info", .rack = "", .rdma = "", .devices = 1, .grace_ms = 30000, .replica_percent = 25, .local_percent = 25,
                             .health_root = "", .health_checks = "/etc/fp8ctl/health.d", .health_interval_ms = 60000, .canary_ms = 600000 };
        const struct opt table[] = {
                { "stacks", 0, OPT_INT, "PID", "print the stacks of a process's threads and end (for fp8ctl diagnose)", &o.stacks, 1, INT_MAX, NULL },
                { "name", 0, OPT_STRING, "NAME", "name of this node", &o.name, 0, 0, NULL },
                { "dir", 0, OPT_STRING, "DIR", "folder of this node's files", &o.dir, 0, 0, NULL },
                { "controller", 0, OPT_STRING, "ADDRESS", "unix:/path, group:/path or ipv4:address:port", &o.controller, 0, 0, NULL },
                { "tls-ca", 0, OPT_STRING, "FILE", "certificate authority (PEM)", &o.ca, 0, 0, NULL },
                { "tls-cert", 0, OPT_STRING, "FILE", "this node's certificate (PEM)", &o.cert, 0, 0, NULL },
                { "tls-key", 0, OPT_STRING, "FILE", "its key (PEM)", &o.key, 0, 0, NULL },
                { "devices", 0, OPT_INT, "N", "devices to offer (default 1)", &o.devices, 1, NODE_DEVICES_MAX, NULL },
                { "device-kind", 0, OPT_CHOICE, "KIND", "cpu (default) or cuda", &o.device_kind, 0, 0, device_kinds },
                { "host", 0, OPT_STRING, "ADDRESS", "where ranks of other nodes reach ours (default 127.0.0.1)", &o.host, 0, 0, NULL },
                { "rack", 0, OPT_STRING, "NAME", "what fails together with this node: second copies of snapshots go to another rack", &o.rack, 0, 0, NULL },
                { "rdma", 0, OPT_STRING, "DEVICE[:PORT]", "InfiniBand or RoCE device for second copies of snapshots (default: the first with an active port; off: sockets only)", &o.rdma, 0, 0, NULL },
                { "replica-memory", 0, OPT_INT, "PERCENT", "of this node's memory for snapshots of other nodes' ranks (default 25; 0: none)", &o.replica_percent, 0, 90, NULL },
                { "local-dir", 0, OPT_STRING, "DIR", "on this node's own disk, for copies of snapshots of jobs that want them (default: local in --dir)", &o.local_dir, 0, 0, NULL },
                { "local-space", 0, OPT_INT, "PERCENT", "of that file system's size for them (default 25; 0: none)", &o.local_percent, 0, 95, NULL },
                { "health-checks", 0, OPT_STRING, "DIR", "executables that check this node, with the exit codes of Nagios (default /etc/fp8ctl/health.d)", &o.health_checks, 0, 0, NULL },
                { "health-interval", 0, OPT_DURATION_MS, "TIME", "how often those run (default 1m)", &o.health_interval_ms, 100, 86400000, NULL },
                { "canary", 0, OPT_DURATION_MS, "TIME", "how often a device that nobody uses computes a known answer (default 10m; 0: never)", &o.canary_ms, 0, 86400000, NULL },
                { "health-root", 0, OPT_STRING, "DIR", "look for the machine's files of the other checks below it: a test's", &o.health_root, 0, 0, NULL },
                { "panic-to", 0, OPT_STRING, "ADDRESS", "ipv4:IP:PORT of the controller's --panic-listen: the kernel driver tells it when this node's kernel dies (default: it tells nobody)", &o.panic_to, 0, 0, NULL },
                { "rollout-hook", 0, OPT_STRING, "FILE", "program that changes this node in a rollout: FILE ROLLOUT NODE FACT VALUE (default: none, it is changed by hand)", &o.rollout_hook, 0, 0, NULL },
                { "rank-binary", 0, OPT_STRING, "FILE", "the rank program (default: fp8-rank beside this program)", &o.rank_binary, 0, 0, NULL },
                { "grace", 0, OPT_DURATION_MS, "TIME", "for a last save after SIGTERM (default 30s)", &o.grace_ms, 0, 3600000, NULL },
                { "log-level", 0, OPT_CHOICE, "LEVEL", "error, warning, info (default) or debug", &o.log_level, 0, 0, log_levels },
                { "version", 0, OPT_FLAG, NULL, "print the version", &o.version, 0, 0, NULL },
                { "help", 'h', OPT_FLAG, NULL, "print this help", &o.help, 0, 0, NULL },
        };
        _cleanup_free_ char **rest = calloc((size_t)argc + 1, sizeof(*rest));
        _cleanup_free_ char *dir = NULL;
        struct error e = { 0 };
        int n = 0, r;

        if (!rest)
                return EXIT_FAILURE;
        r = opt_parse(table, ARRAY_SIZE(table), argc, argv, rest, &n, &e);
        if (r == 0 && o.stacks)
                return stacks_print((pid_t)o.stacks);
        if (r == 0 && n > 0)
                r = error_set(&e, -EINVAL, "found '%s', expected options only", rest[0]);
        if (r == 0 && (o.help || o.version)) {
                if (o.version)
                        printf("fp8-worker %s\n", FP8CTL_VERSION);
                else {
                        printf("usage: fp8-worker --name NAME --dir DIR --controller ADDRESS [OPTIONS]\n\n");
                        opt_print_help(table, ARRAY_SIZE(table));
                }
                return EXIT_SUCCESS;
        }
        if (r == 0)
                r = check_options(&o, &e);
        if (r < 0) {
                fprintf(stderr, "fp8-worker: %s\n", e.text);
                return EXIT_USAGE;
        }
        log_open(o.name, (enum log_level)log_level_parse(o.log_level));
        r = prepare(&o, &dir, &e);
        if (r == 0)
                r = run(&o, dir, &e);
        if (r == AGENT_AGAIN || r == AGENT_RELOAD) {
                /* The program that lies there now: after an upgrade not the one that runs. */
                _cleanup_free_ char *program = beside_ourselves("fp8-worker");

                execv(program ? program : "/proc/self/exe", argv);
                r = error_errno(&e, errno, "cannot start over");
        }
        if (r < 0) {
                log_error("%s", e.text);
                return EXIT_FAILURE;
        }
        return EXIT_SUCCESS;
}
