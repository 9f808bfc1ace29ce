/* SPDX-License-Identifier: Apache-2.0 */
/* The agent's view of the ranks on its node: a row each incarnation that the spawner holds, with the recorder mapped. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "worker/agent/agent_private.h"

static struct local_rank *local_rank_free(struct local_rank *r) {
        if (!r)
                return NULL;
        prepared_forget(r);
        diagnose_forget(r);
        watcher_free(r->watcher);
        flight_unmap(r->flight);
        closep(&r->replica_fd);
        free(r);
        return NULL;
}

static void remove_rank(struct agent *a, struct local_rank *r) {
        for (struct local_rank **at = &a->ranks; *at; at = &(*at)->next)
                if (*at == r) {
                        *at = r->next;
                        local_rank_free(r);
                        return;
                }
}

struct local_rank *local_rank_find(struct agent *a, uint64_t job, uint32_t rank, uint64_t incarnation) {
        for (struct local_rank *r = a->ranks; r; r = r->next)
                if (r->job_id == job && r->rank == rank && r->incarnation == incarnation)
                        return r;
        return NULL;
}

/* The mutex says that it is gone: the controller hears it now; how it died follows from the spawner. */
static void on_died(void *arg) {
        struct local_rank *r = arg;
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__RankExited exited = FP8CTL__V1__RANK_EXITED__INIT;

        if (r->exited || r->death_told)
                return;
        r->death_told = true;
        exited.job_id = r->job_id;
        exited.epoch = r->epoch;
        exited.rank = r->rank;
        exited.incarnation = r->incarnation;
        exited.exit_status = -1;
        exited.cause = (char *)"its process ended";
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_EXITED;
        m.rank_exited = &exited;
        stream_send(r->agent, &m);
}

static void take_exit(struct local_rank *r, const Fp8ctl__V1__RankExited *m) {
        r->exited = true;
        r->phase = FP8CTL__V1__RANK_PHASE__RANK_EXITED;
        r->exit_status = m->exit_status;
        r->signal = m->signal;
        r->oom = m->oom;
        snprintf(r->cause, sizeof(r->cause), "%s", m->cause);
}

/* An older incarnation's row makes room: its death was or will be told by the spawner's message alone. */
static void drop_older(struct agent *a, struct local_rank *newer) {
        struct local_rank *next;

        for (struct local_rank *r = a->ranks; r; r = next) {
                next = r->next;
                if (r != newer && r->job_id == newer->job_id && r->rank == newer->rank && r->incarnation < newer->incarnation)
                        remove_rank(a, r);
        }
}

static int add_rank(struct agent *a, const Fp8ctl__V1__RankStatus *s, int flight_fd, struct local_rank **ret, struct error *e) {
        struct local_rank *r = calloc(1, sizeof(*r));
        int rc;

        if (!r)
                return error_errno(e, ENOMEM, "rank");
        r->agent = a;
        r->job_id = s->job_id;
        r->rank = s->rank;
        r->incarnation = s->incarnation;
        r->replica_fd = -1;
        rc = flight_map(flight_fd, &r->flight, e);
        if (rc == 0 && !s->exited)
                rc = watcher_new(a->loop, flight_fd, on_died, r, &r->watcher, e);
        if (rc < 0) {
                local_rank_free(r);
                return rc;
        }
        r->next = a->ranks;
        a->ranks = r;
        *ret = r;
        return 0;
}

int local_rank_update(struct agent *a, const Fp8ctl__V1__SpawnerRank *m, int flight_fd, int replica_fd, struct error *e) {
        const Fp8ctl__V1__RankStatus *s = m->status;
        struct local_rank *r = local_rank_find(a, s->job_id, s->rank, s->incarnation);
        int rc;

        if (!r) {
                rc = add_rank(a, s, flight_fd, &r, e);
                if (rc < 0) {
                        closep(&replica_fd);
                        return rc;
                }
        }
        r->epoch = s->epoch > r->epoch ? s->epoch : r->epoch;
        r->device = s->device;
        r->pid = s->pid;
        r->phase = s->phase;
        snprintf(r->endpoint, sizeof(r->endpoint), "%s", s->endpoint);
        closep(&r->replica_fd);
        r->replica_fd = replica_fd;
        if (s->exited)
                take_exit(r, s->exited);
        drop_older(a, r);
        local_ranks_set_lease(a);
        return 0;
}

void local_rank_exited(struct agent *a, Fp8ctl__V1__RankExited *m) {
        struct local_rank *r = local_rank_find(a, m->job_id, m->rank, m->incarnation);

        if (!r)
                return;
        take_exit(r, m);
        r->watcher = watcher_free(r->watcher);
        if (r->released)
                remove_rank(a, r);
}

void local_rank_note(struct local_rank *r, const Fp8ctl__V1__WorkerMessage *m) {
        switch (m->body_case) {
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_READY:
                r->phase = FP8CTL__V1__RANK_PHASE__RANK_PARKED;
                snprintf(r->endpoint, sizeof(r->endpoint), "%s", m->rank_ready->endpoint);
                break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_PARKED:
                r->phase = FP8CTL__V1__RANK_PHASE__RANK_PARKED;
                r->epoch = m->rank_parked->epoch > r->epoch ? m->rank_parked->epoch : r->epoch;
                break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_RUNNING:
                r->phase = FP8CTL__V1__RANK_PHASE__RANK_RUNNING;
                r->epoch = m->rank_running->epoch > r->epoch ? m->rank_running->epoch : r->epoch;
                r->await_steps = 2;
                if (r->seen_step < m->rank_running->step)
                        r->seen_step = m->rank_running->step;
                stream_watch_steps(r->agent);
                break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_FAULT: /* left its epoch, waits for the next */
                r->phase = FP8CTL__V1__RANK_PHASE__RANK_PARKED;
                break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_DONE:
                r->phase = FP8CTL__V1__RANK_PHASE__RANK_DONE;
                break;
        default:
                break;
        }
}

void local_rank_release(struct agent *a, uint64_t job) {
        struct local_rank *next;

        for (struct local_rank *r = a->ranks; r; r = next) {
                next = r->next;
                if (r->job_id != job)
                        continue;
                if (r->exited)
                        remove_rank(a, r);
                else
                        r->released = true;
        }
}

void local_ranks_set_lease(struct agent *a) {
        for (struct local_rank *r = a->ranks; r; r = r->next)
                if (!r->exited && a->lease.deadline_ns > atomic_load(&r->flight->lease_deadline_ns))
                        atomic_store(&r->flight->lease_deadline_ns, a->lease.deadline_ns);
        local_standbys_set_lease(a);
}

void local_ranks_free(struct agent *a) {
        while (a->ranks)
                remove_rank(a, a->ranks);
        local_standbys_free(a);
}

size_t local_ranks_living(const struct agent *a) {
        size_t n = 0;

        for (const struct local_rank *r = a->ranks; r; r = r->next)
                n += !r->exited;
        return n;
}

void local_rank_status(const struct local_rank *r, Fp8ctl__V1__RankStatus *ret, Fp8ctl__V1__RankExited *ret_exited) {
        fp8ctl__v1__rank_status__init(ret);
        ret->job_id = r->job_id;
        ret->epoch = r->epoch;
        ret->rank = r->rank;
        ret->incarnation = r->incarnation;
        ret->device = r->device;
        ret->pid = r->pid;
        ret->phase = r->phase;
        ret->endpoint = (char *)r->endpoint;
        ret->step = atomic_load(&r->flight->step);
        if (!r->exited)
                return;
        fp8ctl__v1__rank_exited__init(ret_exited);
        ret_exited->job_id = r->job_id;
        ret_exited->epoch = r->epoch;
        ret_exited->rank = r->rank;
        ret_exited->incarnation = r->incarnation;
        ret_exited->exit_status = r->exit_status;
        ret_exited->signal = r->signal;
        ret_exited->reaped = true;
        ret_exited->cause = (char *)r->cause;
        ret_exited->oom = r->oom;
        ret->exited = ret_exited;
}

/* The recorder keeps doubles as their bits. */
static double as_double(uint64_t bits) {
        double d;

        memcpy(&d, &bits, sizeof(d));
        return d;
}

void local_rank_progress(const struct local_rank *r, Fp8ctl__V1__RankProgress *ret, double busy_ms[N_FLIGHT_PHASES]) {
        const struct flight *f = r->flight;

        fp8ctl__v1__rank_progress__init(ret);
        ret->job_id = r->job_id;
        ret->epoch = atomic_load(&f->epoch);
        ret->rank = r->rank;
        ret->incarnation = r->incarnation;
        ret->step = atomic_load(&f->step);
        ret->has_loss = atomic_load(&f->has_loss) != 0;
        ret->loss = as_double(atomic_load(&f->loss));
        ret->loss_first = as_double(atomic_load(&f->loss_first));
        ret->val_loss = as_double(atomic_load(&f->val_loss));
        ret->tokens_per_s = as_double(atomic_load(&f->tokens_per_s));
        ret->skipped_steps = atomic_load(&f->skipped_steps);
        ret->tokens = atomic_load(&f->tokens);
        ret->memory_bytes = atomic_load(&f->memory_bytes);
        for (int i = 0; i < N_FLIGHT_PHASES; i++)
                busy_ms[i] = (double)atomic_load(&f->busy_ns[i]) / 1e6;
        ret->busy_ms = busy_ms;
        ret->n_busy_ms = N_FLIGHT_PHASES;
}
