/* SPDX-License-Identifier: Apache-2.0 */
/* fp8-rank: one training process a device. Started by the spawner, see PROTOCOL.md, "Inside the node". */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/opt.h"
#include "version.h"
#include "worker/rank/identity.h"
#include "worker/rank/reduce_test.h"
#include "worker/rank/session.h"

#define EXIT_USAGE 2

static const char *const log_levels[] = { "error", "warning", "info", "debug", NULL };

/* What it says is JSON, read by fp8-worker. */
static int run_reduce_test(struct reduce_test *t, int64_t request, int64_t device, int64_t bytes, int64_t ms, const char *host, const char *kind) {
        json_t *o;
        struct error e = { 0 };
        int r;

        signal(SIGPIPE, SIG_IGN);
        log_open("reduce test", LOG_LEVEL_ERROR);
        t->request = (uint64_t)request;
        t->peer = t->peer ? t->peer : "";
        t->host = host;
        t->device_kind = kind;
        t->device = device < 0 ? 0 : (int)device;
        t->bytes = (uint64_t)bytes;
        t->ms = (uint32_t)ms;
        r = fread(t->key, 1, sizeof(t->key), stdin) == sizeof(t->key) ? reduce_test_run(t, &e) : error_set(&e, -EINVAL, "reduce test: no key on the standard input; fp8-worker gives it");
        explicit_bzero(t->key, sizeof(t->key));
        if (r == 0)
                return EXIT_SUCCESS;
        o = json_pack("{s:s}", "error", e.text);
        if (o)
                json_dumpf(o, stdout, 0);
        putchar('\n');
        json_decref(o);
        return EXIT_FAILURE;
}

int main(int argc, char **argv) {
        int64_t job = 0, rank = -1, incarnation = 0, device = -1, epoch = 0, local_space = 0, standby = 0;
        const char *local_dir = "", *dir = NULL, *node = NULL, *host = "127.0.0.1", *kind = "cpu", *level = "info", *rdma = "";
        struct reduce_test test = { .bytes = 0 };
        bool help = false, version = false, warm = false, reduce = false;
        int64_t bytes = 0, ms = 0;
        const struct opt table[] = {
                { "job", 0, OPT_INT, "N", "number of the job", &job, 1, INT64_MAX, NULL },
                { "rank", 0, OPT_INT, "R", "rank in the job", &rank, 0, UINT32_MAX, NULL },
                { "incarnation", 0, OPT_INT, "I", "number of this process in the job", &incarnation, 0, INT64_MAX, NULL },
                { "device", 0, OPT_INT, "D", "device on this node", &device, 0, UINT32_MAX, NULL },
                { "epoch", 0, OPT_INT, "E", "epoch it is started under", &epoch, 0, INT64_MAX, NULL },
                { "dir", 0, OPT_STRING, "DIR", "folder of the node", &dir, 0, 0, NULL },
                { "node", 0, OPT_STRING, "NAME", "name of the node", &node, 0, 0, NULL },
                { "host", 0, OPT_STRING, "ADDRESS", "where ranks of other nodes reach this one", &host, 0, 0, NULL },
                { "device-kind", 0, OPT_STRING, "KIND", "cpu (default) or cuda", &kind, 0, 0, NULL },
                { "rdma", 0, OPT_STRING, "DEVICE[:PORT]", "for second copies of snapshots (default: any; off: none)", &rdma, 0, 0, NULL },
                { "local-dir", 0, OPT_STRING, "DIR", "the job's folder for copies of snapshots on this node's disk", &local_dir, 0, 0, NULL },
                { "local-space", 0, OPT_INT, "BYTES", "that this rank may fill there", &local_space, 0, INT64_MAX, NULL },
                { "standby", 0, OPT_INT, "N", "wait to become a rank; number of this process among the job's standbys", &standby, 1, INT64_MAX, NULL },
                { "warm", 0, OPT_FLAG, NULL, "... with the device opened and buffers made for --rank", &warm, 0, 0, NULL },
                { "reduce-test", 0, OPT_FLAG, NULL, "no rank: one end of two nodes that sum numbers (--job: their number), for node test --all-reduce", &reduce, 0, 0, NULL },
                { "peer", 0, OPT_STRING, "ENDPOINT", "... of the other, which listens", &test.peer, 0, 0, NULL },
                { "bytes", 0, OPT_INT, "N", "... at most in one sum", &bytes, 8, INT64_C(1) << 30, NULL },
                { "ms", 0, OPT_INT, "N", "... about so long", &ms, 0, 10000, NULL },
                { "spoil", 0, OPT_FLAG, NULL, "... with a wrong number, for tests", &test.spoil, 0, 0, NULL },
                { "log-level", 0, OPT_CHOICE, "LEVEL", "error, warning, info (default) or debug", &level, 0, 0, log_levels },
                { "version", 0, OPT_FLAG, NULL, "print the version", &version, 0, 0, NULL },
                { "help", 'h', OPT_FLAG, NULL, "print this help", &help, 0, 0, NULL },
        };
        _cleanup_free_ char **rest = calloc((size_t)argc + 1, sizeof(*rest));
        struct identity id;
        struct error e = { 0 };
        char name[32];
        int n = 0, r;

        if (!rest)
                return EXIT_FAILURE;
        r = opt_parse(table, ARRAY_SIZE(table), argc, argv, rest, &n, &e);
        if (r == 0 && (help || version)) {
                if (version)
                        printf("fp8-rank %s\n", FP8CTL_VERSION);
                else {
                        printf("usage: fp8-rank OPTIONS (started by fp8-worker, not by hand)\n\n");
                        opt_print_help(table, ARRAY_SIZE(table));
                }
                return EXIT_SUCCESS;
        }
        if (r == 0 && reduce)
                return run_reduce_test(&test, job, device, bytes, ms, host, kind);
        if (r == 0 && (n > 0 || job == 0 || rank < 0 || device < 0 || epoch == 0 || !dir || !node))
                r = error_set(&e, -EINVAL, "--job, --rank, --incarnation, --device, --epoch, --dir and --node are needed; fp8-worker gives them");
        if (r < 0) {
                fprintf(stderr, "fp8-rank: %s\n", e.text);
                return EXIT_USAGE;
        }
        signal(SIGPIPE, SIG_IGN);
        (void)prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0); /* Yama would let nobody but ancestors take its stacks (fp8ctl diagnose); refused where there is no Yama */
        id = (struct identity){ .job = (uint64_t)job, .incarnation = (uint64_t)incarnation, .epoch = (uint64_t)epoch, .rank = (uint32_t)rank,
                                .device = (uint32_t)device, .dir = dir, .node = node, .host = host, .device_kind = kind, .rdma = rdma,
                                .local_dir = local_dir, .local_space = (uint64_t)local_space, .standby = (uint64_t)standby, .warm = warm,
                                .log_level = log_level_parse(level) };
        if (standby)
                snprintf(name, sizeof(name), "standby %" PRId64, standby);
        else
                snprintf(name, sizeof(name), "rank %d", (int)rank);
        log_open(name, (enum log_level)log_level_parse(level));
        r = session_run(&id, &e);
        if (r < 0) {
                log_error("%s", e.text);
                return EXIT_FAILURE;
        }
        return EXIT_SUCCESS;
}
