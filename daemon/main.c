/* SPDX-License-Identifier: Apache-2.0 */
/* fp8d: parses its options and runs (daemon/io/fp8d.h). */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/opt.h"
#include "daemon/io/fp8d.h"
#include "daemon/io/notify.h"
#include "proto/rpc_server.h"
#include "version.h"

#define EXIT_USAGE 2

struct options {
        const char *socket, *state, *listen, *panic_listen, *group, *level;
        struct tls_files tls;
        int64_t lease_ttl_ms, heartbeat_ms, keep_jobs, keep_event_days, health_share, health_window_ms, health_settle_ms;
        bool test_nodes, test_hooks, version, help;
};

static const char *const levels[] = { "error", "warning", "info", "debug", NULL };

static int parse(int argc, char **argv, struct options *o, struct error *e) {
        const struct opt table[] = {
                { "socket", 's', OPT_STRING, "PATH", "Unix socket for clients and workers (default STATE/fp8d.sock)", &o->socket, 0, 0, NULL },
                { "state", 'd', OPT_STRING, "DIR", "folder of the store; must be given", &o->state, 0, 0, NULL },
                { "group", 'g', OPT_STRING, "NAME", "let this group use the socket; callers are known by their credentials", &o->group, 0, 0, NULL },
                { "listen", 'l', OPT_STRING, "ADDRESS", "listen on ipv4:IP:PORT as well; needs the three TLS files", &o->listen, 0, 0, NULL },
                { "panic-listen", 0, OPT_STRING, "ADDRESS", "listen on ipv4:IP:PORT for the datagrams of workers' kernels that die (fp8-worker --panic-to); off without it", &o->panic_listen, 0, 0, NULL },
                { "tls-ca", 0, OPT_STRING, "FILE", "PEM file of the authority that signed the clients' certificates", &o->tls.ca, 0, 0, NULL },
                { "tls-cert", 0, OPT_STRING, "FILE", "PEM file of the controller's certificate", &o->tls.cert, 0, 0, NULL },
                { "tls-key", 0, OPT_STRING, "FILE", "PEM file of its key", &o->tls.key, 0, 0, NULL },
                { "lease-ttl", 0, OPT_DURATION_MS, "TIME", "how long a worker may hold its ranks without being heard (default 10s)", &o->lease_ttl_ms, 1000, 600000, NULL },
                { "heartbeat", 0, OPT_DURATION_MS, "TIME", "how often workers are to report (default 1s)", &o->heartbeat_ms, 50, 60000, NULL },
                { "keep-jobs", 0, OPT_INT, "N", "how many jobs that have ended are kept, the newest (default 1000)", &o->keep_jobs, 1, 100000, NULL },
                { "keep-event-days", 0, OPT_INT, "DAYS", "how long events are kept, at most 2000 of them (default 30)", &o->keep_event_days, 1, 3650, NULL },
                { "health-share", 0, OPT_INT, "PERCENT", "of all devices that may be kept from ranks for their health within --health-window (default 50)", &o->health_share, 1, 100, NULL },
                { "health-window", 0, OPT_DURATION_MS, "TIME", "see --health-share (default 5m)", &o->health_window_ms, 1000, 86400000, NULL },
                { "health-settle", 0, OPT_DURATION_MS, "TIME", "a node whose checks are well again gets ranks after that, and after twice as long each time (default 1m)", &o->health_settle_ms, 1, 86400000, NULL },
                { "test-nodes", 0, OPT_FLAG, NULL, "a node gets ranks when its test has passed, once a boot (fp8ctl node test)", &o->test_nodes, 0, 0, NULL },
                { "allow-test-hooks", 0, OPT_FLAG, NULL, "accept job files with test.* keys", &o->test_hooks, 0, 0, NULL },
                { "log-level", 0, OPT_CHOICE, "LEVEL", "error, warning, info (default) or debug", &o->level, 0, 0, levels },
                { "version", 'V', OPT_FLAG, NULL, "print the version and stop", &o->version, 0, 0, NULL },
                { "help", 'h', OPT_FLAG, NULL, "print this text and stop", &o->help, 0, 0, NULL },
        };
        _cleanup_free_ char **rest = calloc((size_t)argc + 1, sizeof(*rest));
        int n = 0, r;

        if (!rest)
                return error_errno(e, ENOMEM, "options");
        r = opt_parse(table, ARRAY_SIZE(table), argc, argv, rest, &n, e);

        if (r == 0 && o->help) {
                printf("usage: fp8d --state DIR [OPTION...]\n\nThe controller of an fp8ctl cluster.\n\n");
                opt_print_help(table, ARRAY_SIZE(table));
        }
        if (r == 0 && n > 0)
                r = error_set(e, -EINVAL, "found '%s', expected options only", rest[0]);
        return r;
}

static int check(const struct options *o, struct error *e) {
        bool all = o->tls.ca && o->tls.cert && o->tls.key;

        if (!o->state)
                return error_set(e, -EINVAL, "--state DIR is missing: where the controller keeps what it must not forget");
        if (o->listen && strncmp(o->listen, "ipv4:", 5) != 0)
                return error_set(e, -EINVAL, "--listen: found '%s', expected ipv4:IP:PORT (the Unix socket is --socket)", o->listen);
        if (o->listen && !all)
                return error_set(e, -EINVAL,
                                 "--listen %s needs --tls-ca, --tls-cert and --tls-key: only the Unix socket works without mTLS. Make certificates with: "
                                 "fp8ctl admin certs --help",
                                 o->listen);
        if (!o->listen && (o->tls.ca || o->tls.cert || o->tls.key))
                return error_set(e, -EINVAL, "--tls-* are given without --listen ipv4:IP:PORT");
        if (o->heartbeat_ms * 3 > o->lease_ttl_ms)
                return error_set(e, -EINVAL, "--heartbeat %" PRId64 " ms: expected at most a third of --lease-ttl (%" PRId64 " ms)", o->heartbeat_ms, o->lease_ttl_ms);
        return 0;
}

static void on_signal(void *arg, int signo) {
        log_info("%s: stopping", strsignal(signo));
        loop_stop(arg, 0);
}

static int run(struct loop *l, const struct options *o, struct error *e) {
        char socket[4096];
        struct fp8d_config c = { .state_dir = o->state, .socket = socket, .group = o->group, .listen = o->listen, .tls = &o->tls, .panic_listen = o->panic_listen,
                                 .lease_ttl_ms = (uint32_t)o->lease_ttl_ms, .heartbeat_ms = (uint32_t)o->heartbeat_ms,
                                 .keep_jobs = (uint32_t)o->keep_jobs, .keep_event_days = (uint32_t)o->keep_event_days, .health_share = (uint32_t)o->health_share,
                                 .health_window_ms = (uint32_t)o->health_window_ms, .health_settle_ms = (uint32_t)o->health_settle_ms, .test_nodes = o->test_nodes, .test_hooks = o->test_hooks };
        struct notify *notify = NULL;
        struct fp8d *d = NULL;
        int r;

        if (snprintf(socket, sizeof(socket), o->socket ? "%s" : "%s/fp8d.sock", o->socket ? o->socket : o->state) >= (int)sizeof(socket))
                return error_set(e, -ENAMETOOLONG, "the socket's path is too long");
        r = loop_add_signal(l, SIGTERM, on_signal, l, NULL);
        if (r == 0)
                r = loop_add_signal(l, SIGINT, on_signal, l, NULL);
        if (r < 0)
                return error_errno(e, -r, "signals");
        r = fp8d_new(l, &c, &d, e);
        if (r < 0)
                return r;
        r = notify_ready(l, "serving", &notify, e);
        if (r == 0) {
                log_info("fp8d " FP8CTL_VERSION " serves on %s%s%s", socket, o->listen ? " and " : "", o->listen ? o->listen : "");
                r = loop_run(l);
                if (r < 0)
                        error_set(e, r, "stopped: %s", strerror(-r));
        }
        notify_stopping(notify);
        fp8d_free(d);
        return r;
}

int main(int argc, char **argv) {
        struct options o = { .lease_ttl_ms = 10000, .heartbeat_ms = 1000, .keep_jobs = 1000, .keep_event_days = 30, .health_share = 50, .health_window_ms = 300000, .health_settle_ms = 60000 };
        struct error e = { 0 };
        struct loop *l = NULL;
        sigset_t block;
        int r;

        log_open("fp8d", LOG_LEVEL_INFO);
        r = parse(argc, argv, &o, &e);
        if (r == 0 && o.help)
                return 0;
        if (r == 0 && o.version) {
                puts("fp8d " FP8CTL_VERSION);
                return 0;
        }
        if (r == 0)
                r = check(&o, &e);
        if (r < 0) {
                fprintf(stderr, "fp8d: %s\n", e.text);
                return EXIT_USAGE;
        }
        log_open("fp8d", o.level ? (enum log_level)log_level_parse(o.level) : LOG_LEVEL_INFO);
        umask(077);
        /* gRPC's threads must not get them: they are read from signalfds. */
        sigemptyset(&block);
        sigaddset(&block, SIGTERM);
        sigaddset(&block, SIGINT);
        sigaddset(&block, SIGPIPE);
        sigprocmask(SIG_BLOCK, &block, NULL);
        r = rpc_init(&e);
        if (r == 0) {
                r = loop_new(&l);
                if (r == 0)
                        r = run(l, &o, &e);
                else
                        error_errno(&e, -r, "event loop");
                loop_free(l);
                rpc_shutdown();
        }
        if (r < 0)
                log_error("%s", e.text);
        return r < 0 ? 1 : 0;
}
