/* SPDX-License-Identifier: Apache-2.0 */
/* The agent's view of the standbys on its node: what the hello lists, and the recorders through which they get the lease. The spawner has the processes. */
#include <stdlib.h>

#include "base/log.h"
#include "worker/agent/agent_private.h"

struct local_standby {
        struct local_standby *next;
        uint64_t job, number;
        uint32_t device, pid, dp;
        bool warm, ready;
        struct flight *flight;
};

static void forget(struct agent *a, uint64_t job, uint64_t number) {
        for (struct local_standby **at = &a->standbys; *at; at = &(*at)->next)
                if ((*at)->job == job && (*at)->number == number) {
                        struct local_standby *s = *at;

                        *at = s->next;
                        flight_unmap(s->flight);
                        free(s);
                        return;
                }
}

static void keep(struct agent *a, const Fp8ctl__V1__StandbyStatus *m, int flight_fd) {
        struct local_standby *s = calloc(1, sizeof(*s));
        struct error e = { 0 };

        if (!s || flight_map(flight_fd, &s->flight, &e) < 0) {
                log_warning("a standby gets no lease: %s", s ? e.text : "no memory");
                free(s);
                return;
        }
        s->job = m->job_id;
        s->number = m->number;
        s->device = m->device;
        s->pid = m->pid;
        s->dp = m->dp;
        s->warm = m->warm;
        s->ready = m->state == FP8CTL__V1__STANDBY_STATUS__STATE__READY;
        s->next = a->standbys;
        a->standbys = s;
}

void local_standby_update(struct agent *a, Fp8ctl__V1__StandbyStatus *m, int flight_fd) {
        Fp8ctl__V1__WorkerMessage out = FP8CTL__V1__WORKER_MESSAGE__INIT;

        forget(a, m->job_id, m->number);
        if (m->state != FP8CTL__V1__STANDBY_STATUS__STATE__TAKEN && m->state != FP8CTL__V1__STANDBY_STATUS__STATE__GONE && flight_fd >= 0)
                keep(a, m, flight_fd);
        local_standbys_set_lease(a);
        if (!a->welcomed)
                return; /* the hello lists what there is */
        out.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_STANDBY_STATUS;
        out.standby_status = m;
        stream_send(a, &out);
}

bool local_standby_on(const struct agent *a, uint32_t device) {
        for (const struct local_standby *s = a->standbys; s; s = s->next)
                if (s->warm && s->device == device)
                        return true;
        return false;
}

size_t local_standbys(const struct agent *a) {
        size_t n = 0;

        for (const struct local_standby *s = a->standbys; s; s = s->next)
                n++;
        return n;
}

void local_standbys_status(const struct agent *a, Fp8ctl__V1__StandbyStatus *ret) {
        for (const struct local_standby *s = a->standbys; s; s = s->next, ret++) {
                fp8ctl__v1__standby_status__init(ret);
                ret->job_id = s->job;
                ret->number = s->number;
                ret->device = s->device;
                ret->pid = s->pid;
                ret->dp = s->dp;
                ret->warm = s->warm;
                ret->state = s->ready ? FP8CTL__V1__STANDBY_STATUS__STATE__READY : FP8CTL__V1__STANDBY_STATUS__STATE__STARTING;
        }
}

void local_standbys_jobs(const struct agent *a, uint64_t *ret) {
        for (const struct local_standby *s = a->standbys; s; s = s->next)
                *ret++ = s->job;
}

void local_standbys_set_lease(struct agent *a) {
        for (struct local_standby *s = a->standbys; s; s = s->next)
                if (a->lease.deadline_ns > atomic_load(&s->flight->lease_deadline_ns))
                        atomic_store(&s->flight->lease_deadline_ns, a->lease.deadline_ns);
}

void local_standbys_free(struct agent *a) {
        while (a->standbys)
                forget(a, a->standbys->job, a->standbys->number);
}
