/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the ranks of this node are.  Their flight recorders are read at once, whether they live or not.  Stacks are taken when somebody asks for them, and once each time that a rank has
 * stood still for half of its job's collective timeout: when the timeout is over, who holds the others up is killed, and it is too late.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "proto/message.h"
#include "worker/agent/agent_private.h"
#include "worker/agent/stacks.h"

#define STACKS_MS 4000 /* for the stacks of all ranks of a node; the controller waits longer */
#define CALLS_MAX 12   /* of a rank's newest collectives */

static Fp8ctl__V1__RankDiagnosis *diagnosis_free(Fp8ctl__V1__RankDiagnosis *d) {
        if (d)
                fp8ctl__v1__rank_diagnosis__free_unpacked(d, NULL);
        return NULL;
}

void diagnose_forget(struct local_rank *r) {
        r->stalled = diagnosis_free(r->stalled);
}

/* ------------------------------------------------------------------ the recorder */

static double ms_ago(uint64_t now, uint64_t then) {
        return then && now > then ? (double)(now - then) / 1e6 : 0;
}

static void add_call(Fp8ctl__V1__RankDiagnosis *d, const struct flight_record *f, uint64_t now) {
        Fp8ctl__V1__RecordedCall *c = malloc(sizeof(*c));

        if (!c)
                return;
        fp8ctl__v1__recorded_call__init(c);
        c->op = strdup(flight_op_name(f->op));
        c->group = f->group;
        c->number = f->number;
        c->to = f->to;
        c->from = f->from;
        c->bytes = f->bytes;
        c->entered_ms = ms_ago(now, f->entered_ns);
        c->left_ms = f->left_ns ? ms_ago(now, f->left_ns) : -1;
        if (c->op)
                d->calls[d->n_calls++] = c;
        else
                free(c);
}

static int take_calls(Fp8ctl__V1__RankDiagnosis *d, const struct flight *f, uint64_t now) {
        uint64_t head = atomic_load(&f->head);

        d->calls = calloc(CALLS_MAX, sizeof(*d->calls));
        d->met = calloc(N_FLIGHT_GROUPS, sizeof(*d->met));
        if (!d->calls || !d->met)
                return -ENOMEM;
        for (size_t i = 0; i < N_FLIGHT_GROUPS; i++)
                d->met[d->n_met++] = atomic_load(&f->met[i]);
        for (uint64_t seq = head > CALLS_MAX ? head - CALLS_MAX + 1 : 1; seq <= head; seq++) {
                struct flight_record rec;

                if (flight_read(f, seq, &rec))
                        add_call(d, &rec, now);
        }
        return 0;
}

/* The threads that were seen when it stood still. */
static void take_kept(Fp8ctl__V1__RankDiagnosis *d, const struct local_rank *r, uint64_t now) {
        Fp8ctl__V1__RankDiagnosis *copy = r->stalled ? (Fp8ctl__V1__RankDiagnosis *)message_copy(&r->stalled->base) : NULL;

        if (!copy)
                return;
        d->threads = copy->threads;
        d->n_threads = copy->n_threads;
        d->stacks_ms = ms_ago(now, r->stalled_ns);
        copy->threads = NULL;
        copy->n_threads = 0;
        diagnosis_free(copy);
}

static Fp8ctl__V1__RankDiagnosis *look_at(const struct local_rank *r, bool kept) {
        Fp8ctl__V1__RankDiagnosis *d = malloc(sizeof(*d));
        const struct flight *f = r->flight;
        uint64_t now = clock_mono_ns();

        if (!d)
                return NULL;
        fp8ctl__v1__rank_diagnosis__init(d);
        d->rank = r->rank;
        d->incarnation = r->incarnation;
        d->pid = r->pid;
        d->epoch = atomic_load(&f->epoch);
        d->step = atomic_load(&f->step);
        d->phase_ms = ms_ago(now, atomic_load(&f->phase_since_ns));
        d->timeout_ms = (double)atomic_load(&f->stall_ns) / 1e6;
        d->phase = strdup(flight_phase_name(atomic_load(&f->phase)));
        d->state = strdup(r->exited || r->death_told ? "dead" : stacks_process_state((pid_t)r->pid));
        d->note = r->exited ? strdup(r->cause) : (char *)protobuf_c_empty_string;
        if (!d->phase || !d->state || !d->note || take_calls(d, f, now) < 0)
                return diagnosis_free(d);
        if (kept)
                take_kept(d, r, now);
        return d;
}

/* ------------------------------------------------------------------ stacks, in a thread */

struct taking {
        struct agent *agent;
        uint64_t request; /* 0: for ourselves, of ranks that stand still */
        uint64_t job;
        Fp8ctl__V1__RankDiagnosis **all;
        size_t n;
};

static struct taking *taking_free(struct taking *t) {
        if (!t)
                return NULL;
        for (size_t i = 0; i < t->n; i++)
                diagnosis_free(t->all[i]);
        free(t->all);
        free(t);
        return NULL;
}

static struct taking *taking_new(struct agent *a, uint64_t job, uint64_t request) {
        struct taking *t = calloc(1, sizeof(*t));
        size_t n = 0;

        for (struct local_rank *r = a->ranks; r; r = r->next)
                n++;
        if (!t || !(t->all = calloc(n + 1, sizeof(*t->all)))) {
                free(t);
                return NULL;
        }
        t->agent = a;
        t->request = request;
        t->job = job;
        return t;
}

static void work(void *arg) {
        struct taking *t = arg;
        _cleanup_free_ Fp8ctl__V1__RankDiagnosis **living = calloc(t->n + 1, sizeof(*living));
        _cleanup_free_ pid_t *pids = calloc(t->n + 1, sizeof(*pids));
        size_t n = 0;

        for (size_t i = 0; i < t->n && living && pids; i++)
                if (strcmp(t->all[i]->state, "dead") != 0 && t->all[i]->n_threads == 0) {
                        living[n] = t->all[i];
                        pids[n++] = (pid_t)t->all[i]->pid;
                }
        if (n > 0)
                stacks_take(pids, n, STACKS_MS, living);
}

static void answer(struct taking *t) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__DiagnoseReply out = FP8CTL__V1__DIAGNOSE_REPLY__INIT;

        out.request = t->request;
        out.ranks = t->all;
        out.n_ranks = t->n;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_DIAGNOSE_REPLY;
        m.diagnose_reply = &out;
        stream_send(t->agent, &m);
}

static void answered(void *arg) {
        answer(arg);
        taking_free(arg);
}

void diagnose_begin(struct agent *a, const Fp8ctl__V1__DiagnoseRequest *m) {
        struct taking *t = taking_new(a, m->job_id, m->request);
        struct error e;

        if (!t)
                return;
        for (struct local_rank *r = a->ranks; r; r = r->next) {
                Fp8ctl__V1__RankDiagnosis *d = r->job_id == m->job_id ? look_at(r, !m->stacks || r->exited) : NULL;

                if (d)
                        t->all[t->n++] = d;
        }
        if (!m->stacks || t->n == 0) {
                answered(t);
        } else if (tasks_run(a->tasks, work, answered, t, &e) < 0) {
                log_warning("stacks of job %" PRIu64 ": %s", m->job_id, e.text);
                answered(t); /* without them */
        }
}

/* ------------------------------------------------------------------ ranks that stand still */

static void keep(void *arg) {
        struct taking *t = arg;

        for (size_t i = 0; i < t->n; i++) {
                struct local_rank *r = local_rank_find(t->agent, t->job, t->all[i]->rank, t->all[i]->incarnation);

                if (!r || t->all[i]->n_threads == 0)
                        continue;
                diagnose_forget(r);
                r->stalled = t->all[i];
                r->stalled_ns = clock_mono_ns();
                t->all[i] = NULL;
        }
        taking_free(t);
}

/* In an epoch, and for half of the timeout in the same collective and phase: said once. Those that wait for orders or for files may take their time. */
static bool stands_still(struct local_rank *r, uint64_t now) {
        const struct flight *f = r->flight;
        uint64_t head = atomic_load(&f->head), since = atomic_load(&f->phase_since_ns), limit = atomic_load(&f->stall_ns) / 2;
        struct flight_record newest;

        if (head != r->seen_head || since != r->seen_phase_ns)
                r->stall_seen = false;
        r->seen_head = head;
        r->seen_phase_ns = since;
        if (r->exited || r->stall_seen || limit == 0 || r->phase != FP8CTL__V1__RANK_PHASE__RANK_RUNNING)
                return false;
        if (flight_read(f, head, &newest)) {
                uint64_t moved = newest.left_ns > newest.entered_ns ? newest.left_ns : newest.entered_ns;

                since = moved > since ? moved : since;
        }
        r->stall_seen = now > since && now - since > limit;
        return r->stall_seen;
}

/* Those of one job together. */
static void take_job(struct agent *a, uint64_t job) {
        struct taking *t = taking_new(a, job, 0);

        if (!t)
                return;
        for (struct local_rank *r = a->ranks; r; r = r->next) {
                Fp8ctl__V1__RankDiagnosis *d = r->job_id == job && r->stall_new ? look_at(r, false) : NULL;

                if (d)
                        t->all[t->n++] = d;
                if (r->job_id == job)
                        r->stall_new = false;
        }
        if (tasks_run(a->tasks, work, keep, t, NULL) < 0)
                taking_free(t);
}

void diagnose_watch(struct agent *a) {
        uint64_t now = clock_mono_ns();

        for (struct local_rank *r = a->ranks; r; r = r->next)
                r->stall_new = stands_still(r, now);
        for (struct local_rank *r = a->ranks; r; r = r->next)
                if (r->stall_new)
                        take_job(a, r->job_id);
}
