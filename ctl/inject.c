/* SPDX-License-Identifier: Apache-2.0 */
/* Drills. A rank's process is one of this machine in a local cluster; the kernel decides whether we may send it a signal. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "ctl/handlers.h"
#include "ctl/job_view.h"

static const char *const signals[] = { "KILL", "STOP", "CONT", "TERM", NULL };

static struct {
        int64_t rank;
        const char *signal;
} given = { .rank = -1, .signal = "KILL" };

const struct opt inject_opts[] = {
        { "rank", 'r', OPT_INT, "RANK", "which rank", &given.rank, 0, 4096, NULL },
        { "signal", 0, OPT_CHOICE, "NAME", "what to send", &given.signal, 0, 0, signals },
        { 0 },
};

static int signal_number(void) {
        return strcmp(given.signal, "STOP") == 0 ? SIGSTOP : strcmp(given.signal, "CONT") == 0 ? SIGCONT : strcmp(given.signal, "TERM") == 0 ? SIGTERM : SIGKILL;
}

/* The process table has moved on since the controller heard of the pid: send only to something that is a rank of that job. */
static int check_is_rank(uint32_t pid, uint64_t job, struct error *e) {
        _cleanup_free_ char *path = file_path("/proc/%u/cmdline", pid), *text = NULL;
        char want[32];
        size_t len = 0;
        int r;

        if (!path)
                return error_set(e, -ENOMEM, "no memory");
        r = file_read(path, 65536, &text, &len, e);
        if (r < 0)
                return error_set(e, -ENOENT, "rank %" PRId64 " of job %" PRIu64 " has pid %u, but no such process is on this machine", given.rank, job, pid);
        for (size_t i = 0; i < len; i++)
                if (text[i] == 0)
                        text[i] = ' ';
        snprintf(want, sizeof(want), "--job %" PRIu64 " ", job);
        if (!strstr(text, "fp8-rank") || !strstr(text, want))
                return error_set(e, -ENOENT, "pid %u is no rank of job %" PRIu64 " on this machine", pid, job);
        return 0;
}

static bool drills_allowed(const Fp8ctl__V1__Job *j) {
        _cleanup_json_ json_t *file = j->job_file ? json_loads(j->job_file, 0, NULL) : NULL;

        return json_is_true(json_object_get(json_object_get(file, "recovery"), "drills"));
}

int inject_run(struct ctl *c, int n, char **args) {
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__Job *j = NULL;
        struct error e;
        uint64_t id;

        if (parse_job_id(args[0], &id, &e) < 0)
                return ctl_usage(&e);
        if (given.rank < 0) {
                error_set(&e, -EINVAL, "inject: found no --rank, expected --rank RANK");
                return ctl_usage(&e);
        }
        if (client_new(c, &cl, &e) < 0 || client_get_job(cl, id, &j, &e) < 0)
                return ctl_fail(&e);
        if (!drills_allowed(j)) {
                error_set(&e, -EPERM, "job %" PRIu64 " allows no drills, expected recovery.drills: true in its job file", id);
                return ctl_fail(&e);
        }
        for (size_t i = 0; j->plan && i < j->plan->n_ranks; i++) {
                const Fp8ctl__V1__PlanRank *r = j->plan->ranks[i];

                if (r->rank != given.rank || r->pid == 0)
                        continue;
                if (check_is_rank(r->pid, id, &e) < 0)
                        return ctl_fail(&e);
                if (kill((pid_t)r->pid, signal_number()) < 0) {
                        error_errno(&e, errno, "rank %" PRId64 ", pid %u", given.rank, r->pid);
                        return ctl_fail(&e);
                }
                printf("SIG%s to rank %" PRId64 " of job %" PRIu64 " (pid %u on %s, step %" PRIu64 ")\n", given.signal, given.rank, id, r->pid, r->node, j->step);
                return EXIT_DONE;
        }
        error_set(&e, -ENOENT, "job %" PRIu64 " has no process of rank %" PRId64, id, given.rank);
        return ctl_fail(&e);
}
