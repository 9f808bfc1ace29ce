/* SPDX-License-Identifier: Apache-2.0 */
/* Keeps this node's disk clear of copies that nobody needs (worker/agent/local_copies.h), in threads: the disk may be slow, or away. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/text.h"
#include "worker/agent/agent_private.h"
#include "worker/agent/local_copies.h"

struct errand {
        struct agent *agent;
        char *dir, cluster[40];
        uint64_t job, space; /* release; prune */
        uint64_t *jobs;      /* say */
        size_t n_jobs, n_here;
        struct local_rank_place here[]; /* prune */
};

static void errand_free(struct errand *x) {
        if (!x)
                return;
        free(x->dir);
        free(x->jobs);
        free(x);
}

static struct errand *errand_new(struct agent *a, size_t room) {
        struct errand *x = a->config->local_dir && a->cluster[0] ? calloc(1, sizeof(*x) + room * sizeof(x->here[0])) : NULL;

        if (!x)
                return NULL;
        x->agent = a;
        x->dir = strdup(a->config->local_dir);
        memcpy(x->cluster, a->cluster, sizeof(x->cluster));
        if (!x->dir) {
                errand_free(x);
                return NULL;
        }
        return x;
}

/* When it cannot be had now, the next occasion does it. */
static void errand_run(struct agent *a, struct errand *x, void (*work)(void *arg), void (*done)(void *arg)) {
        if (x && tasks_run(a->tasks, work, done, x, NULL) < 0)
                errand_free(x);
}

static void only_free(void *arg) {
        errand_free(arg);
}

/* ------------------------------------------------------------------ jobs that may be over */
static void list_jobs(void *arg) {
        struct errand *x = arg;
        struct error e = { 0 };

        if (local_copies_jobs(x->dir, x->cluster, &x->jobs, &x->n_jobs, &e) < 0)
                log_warning("%s", e.text);
}

static void say_jobs(void *arg) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__LocalCopies l = FP8CTL__V1__LOCAL_COPIES__INIT;
        struct errand *x = arg;

        l.jobs = x->jobs;
        l.n_jobs = x->n_jobs;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_LOCAL_COPIES;
        m.local_copies = &l;
        if (x->n_jobs > 0)
                stream_send(x->agent, &m);
        errand_free(x);
}

void local_files_say(struct agent *a) {
        errand_run(a, errand_new(a, 0), list_jobs, say_jobs);
}

static void release(void *arg) {
        struct errand *x = arg;
        struct error e = { 0 };

        if (local_copies_remove(x->dir, x->cluster, x->job, &e) < 0)
                log_warning("copies of job %" PRIu64 " stay on this node's disk: %s", x->job, e.text);
}

void local_files_release(struct agent *a, uint64_t job) {
        struct errand *x = errand_new(a, 0);

        if (x)
                x->job = job;
        errand_run(a, x, release, only_free);
}

/* ------------------------------------------------------------------ ranks come */
static void prune(void *arg) {
        struct errand *x = arg;
        struct error e = { 0 };
        int r = local_copies_prune(x->dir, x->cluster, x->here, x->n_here, x->space, &e);

        if (r < 0)
                log_warning("%s", e.text);
        else if (r > 0)
                log_info("removed the copies of %d other job%s from this node's disk", r, text_s((uint64_t)r));
}

/* Each of the ranks may fill its part of the space; what is left of it is for jobs that wait. */
void local_files_prune(struct agent *a, const Fp8ctl__V1__StartRanks *m) {
        size_t n = m->n_ranks;
        uint64_t devices = (uint64_t)a->config->devices;
        struct errand *x;

        for (struct local_rank *r = a->ranks; r; r = r->next)
                n++;
        x = errand_new(a, n);
        if (!x)
                return;
        for (size_t i = 0; i < m->n_ranks; i++)
                x->here[x->n_here++] = (struct local_rank_place){ m->job_id, m->ranks[i]->rank };
        for (struct local_rank *r = a->ranks; r; r = r->next)
                if (!r->released && (r->job_id != m->job_id || !r->exited))
                        x->here[x->n_here++] = (struct local_rank_place){ r->job_id, r->rank };
        x->space = x->n_here < devices ? (devices - x->n_here) * a->config->local_space : 0;
        errand_run(a, x, prune, only_free);
}
