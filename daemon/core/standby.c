/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Standbys: processes that a job keeps ready to become ranks (recovery.standby), so that a replacement costs no start-up.  Warm ones have a free device open; on each node where the job
 * runs others hold the loaded program only.  The controller says which there shall be; who becomes what is the spawner's: a StartRanks takes a standby that fits.
 *
 * They are soft state: nothing is stored, hellos list them.  A warm one's device is taken for all other jobs until it is known to be reaped; when a job waits for devices they go.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/core/core.h"

/* Thresholds. */
#define BACK_OFF_MS 1000u      /* after the death of one; doubled with each that follows ... */
#define BACK_OFF_MAX_MS 60000u /* ... up to this, until one is ready */

#define J(x) FP8CTL__V1__JOB_STATE__##x

static struct standby *find(struct job *j, const struct node *n, uint64_t number) {
        for (size_t i = 0; i < j->n_standbys; i++)
                if (j->standbys[i].node == n && j->standbys[i].number == number)
                        return &j->standbys[i];
        return NULL;
}

static void drop(struct job *j, struct standby *s) {
        *s = j->standbys[--j->n_standbys];
}

static struct standby *add(struct job *j, const struct standby *s) {
        struct standby *list = realloc(j->standbys, (j->n_standbys + 1) * sizeof(*list));

        if (!list)
                return NULL;
        j->standbys = list;
        list[j->n_standbys] = *s;
        return &list[j->n_standbys++];
}

/* All that this node is to keep of the job; j NULL: nothing of a job that is not known here. */
static void tell(struct controller *c, const struct job *j, uint64_t id, const struct node *n) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__StandbyPlan plan = FP8CTL__V1__STANDBY_PLAN__INIT;
        size_t room = j ? j->n_standbys + 1 : 1;
        _cleanup_free_ Fp8ctl__V1__Standby *list = calloc(room, sizeof(*list));
        _cleanup_free_ Fp8ctl__V1__Standby **ptrs = calloc(room, sizeof(*ptrs));

        if (!list || !ptrs)
                return;
        plan.job_id = id;
        for (size_t i = 0; j && i < j->n_standbys; i++) {
                const struct standby *s = &j->standbys[i];
                Fp8ctl__V1__Standby *o = &list[plan.n_standbys];

                if (s->node != n)
                        continue;
                fp8ctl__v1__standby__init(o);
                o->number = s->number;
                o->device = s->device;
                o->warm = s->warm;
                o->rank = s->rank;
                ptrs[plan.n_standbys++] = o;
        }
        plan.standbys = ptrs;
        if (plan.n_standbys) {
                plan.epoch = j->epoch;
                plan.job_file = (char *)layout_job_file(j);
                plan.job_name = (char *)j->name;
                plan.uid = j->uid;
                plan.gid = j->gid;
                plan.cluster_id = c->cluster_id;
        }
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_STANDBY_PLAN;
        m.standby_plan = &plan;
        node_send(c, n, &m);
}

void standbys_end(struct controller *c, struct job *j) {
        while (j->n_standbys) {
                const struct node *n = j->standbys[0].node;

                for (size_t i = 0; i < j->n_standbys;)
                        if (j->standbys[i].node == n)
                                drop(j, &j->standbys[i]);
                        else
                                i++;
                tell(c, j, j->id, n);
        }
        free(j->standbys);
        j->standbys = NULL;
}

/* ------------------------------------------------------------------ what workers say */
static void free_device(struct node *n, uint64_t job, uint64_t number) {
        for (size_t i = 0; i < n->n_devices; i++)
                if (n->devices[i].standby_job == job && n->devices[i].standby == number)
                        n->devices[i].standby_job = n->devices[i].standby = 0;
}

static void back_off(struct controller *c, struct job *j) {
        uint64_t ms = (uint64_t)BACK_OFF_MS << (j->standby_deaths < 6 ? j->standby_deaths : 6);

        j->standby_deaths++;
        j->standby_at = core_now(c) + (ms < BACK_OFF_MAX_MS ? ms : BACK_OFF_MAX_MS) * NSEC_PER_MSEC;
}

void standby_status(struct controller *c, struct session *from, const Fp8ctl__V1__StandbyStatus *m) {
        struct node *n = from->node;
        struct job *j = job_find(c, m->job_id);
        struct standby *s = j ? find(j, n, m->number) : NULL;
        char cause[200];

        switch (m->state) {
        case FP8CTL__V1__STANDBY_STATUS__STATE__READY:
                if (s && !s->ready) {
                        s->ready = true;
                        j->standby_deaths = 0;
                        event_add(c, &(struct event_of){ .job = j, .node = n, .rank = -1 }, "standby_ready", "a standby is ready on %.100s%s", n->name, s->warm ? ", its device open" : "");
                }
                return;
        case FP8CTL__V1__STANDBY_STATUS__STATE__TAKEN:
                free_device(n, m->job_id, m->number);
                if (s)
                        drop(j, s);
                break;
        case FP8CTL__V1__STANDBY_STATUS__STATE__GONE:
                free_device(n, m->job_id, m->number);
                if (s) {
                        core_text(cause, sizeof(cause), m->cause);
                        drop(j, s);
                        back_off(c, j);
                        event_add(c, &(struct event_of){ .job = j, .node = n, .rank = -1, .severity = "warning" }, "standby_lost", "a standby on %.100s %.200s; another is started in %.0f s", n->name,
                                  cause, (double)(j->standby_at - core_now(c)) / 1e9);
                }
                break;
        default:
                return;
        }
        c->schedule_wanted = true;
}

/* Those made for the job as it is now are taken over; the node is told to end the others. */
void standbys_hello(struct controller *c, struct node *n, const Fp8ctl__V1__WorkerHello *m) {
        n->standbys = node_hello_has(m, "standby");
        standbys_node_lost(c, n);
        for (size_t i = 0; i < m->n_standbys; i++) {
                const Fp8ctl__V1__StandbyStatus *st = m->standbys[i];
                struct job *j = st ? job_find(c, st->job_id) : NULL;
                struct device *d = st ? node_device(n, st->device) : NULL;

                if (st && st->warm && d) {
                        d->standby_job = st->job_id;
                        d->standby = st->number;
                }
                if (!j)
                        continue;
                if (st->number >= j->next_standby)
                        j->next_standby = st->number + 1;
                if (job_placed(j) && j->spec->recovery.standby > 0 && st->dp == (uint32_t)j->spec->parallel.dp && d)
                        (void)add(j, &(struct standby){ .node = n, .number = st->number, .device = st->device, .dp = j->spec->parallel.dp, .warm = st->warm,
                                                        .ready = st->state == FP8CTL__V1__STANDBY_STATUS__STATE__READY });
        }
        for (size_t i = 0; i < m->n_standbys; i++)
                if (m->standbys[i])
                        tell(c, job_find(c, m->standbys[i]->job_id), m->standbys[i]->job_id, n);
}

void standbys_node_lost(struct controller *c, struct node *n) {
        for (size_t i = 0; i < n->n_devices; i++)
                n->devices[i].standby_job = n->devices[i].standby = 0;
        for (size_t k = 0; k < c->n_jobs; k++)
                for (size_t i = 0; i < c->jobs[k]->n_standbys;)
                        if (c->jobs[k]->standbys[i].node == n)
                                drop(c->jobs[k], &c->jobs[k]->standbys[i]);
                        else
                                i++;
}

/* ------------------------------------------------------------------ use */
/* Its own device may be slow to be free again; one of the same node, so that its replica memory serves. */
void standby_swap(struct job *j, uint32_t rank) {
        struct rank *r = &j->ranks[rank];
        const struct device *own = node_device(r->node, r->device);

        /* Placed where one is ready already, or nothing stood there before. */
        if (r->state != RANK_LOST || !node_takes(r->node) || !own || own->standby_job == j->id)
                return;
        for (size_t k = 0; k < j->n_standbys; k++) {
                const struct standby *s = &j->standbys[k];
                const struct device *d = node_device(s->node, s->device);

                if (s->node != r->node || !s->warm || !s->ready || !d || d->job || d->standby != s->number || d->standby_job != j->id)
                        continue;
                r->device = s->device;
                r->deaths = 0;
                return;
        }
}

/* ------------------------------------------------------------------ which there shall be */
static bool fits(const struct controller *c, const struct job *j, const struct node *n, const struct device *d) {
        const struct device *like = node_device(j->ranks[0].node, j->ranks[0].device);

        (void)c;
        return node_takes(n) && n->standbys && !d->job && !d->standby_job && !health_unfit(n, d->index) && like && strcmp(like->kind, d->kind) == 0 &&
               (!d->memory_bytes || d->memory_bytes >= j->bytes_per_rank - (node_device_in_host_memory(d) ? 0 : j->snapshot_bytes));
}

static bool wanted(const struct controller *c, const struct job *j, const struct standby *s) {
        if (s->dp != j->spec->parallel.dp || !node_takes(s->node) || (s->warm && health_unfit(s->node, s->device)))
                return false;
        return s->warm ? !c->standbys_yield : job_on_node(j, s->node);
}

static size_t count(const struct job *j, const struct node *n, bool warm) {
        size_t k = 0;

        for (size_t i = 0; i < j->n_standbys; i++)
                k += j->standbys[i].warm == warm && (!n || j->standbys[i].node == n);
        return k;
}

/* Free devices of nodes without ranks of the job come first: they also serve when a whole node is lost. */
static struct device *free_place(const struct controller *c, const struct job *j, struct node **ret) {
        for (int own = 0; own < 2; own++)
                for (size_t i = 0; i < c->n_nodes; i++) {
                        struct node *n = c->nodes[i];

                        if (job_on_node(j, n) != own)
                                continue;
                        for (size_t k = 0; k < n->n_devices; k++)
                                if (fits(c, j, n, &n->devices[k])) {
                                        *ret = n;
                                        return &n->devices[k];
                                }
                }
        return NULL;
}

static void fill(struct controller *c, struct job *j) {
        size_t n_wanted = (size_t)j->spec->recovery.standby;

        for (size_t i = 0; i < c->n_nodes; i++) {
                struct node *n = c->nodes[i];
                size_t here = 0;

                for (int r = 0; r < j->world; r++)
                        here += j->ranks[r].node == n;
                while (node_takes(n) && n->standbys && count(j, n, false) < (here < n_wanted ? here : n_wanted))
                        if (!add(j, &(struct standby){ .node = n, .number = j->next_standby++, .dp = j->spec->parallel.dp, .fresh = true, .device = n->devices[0].index }))
                                return;
        }
        while (!c->standbys_yield && count(j, NULL, true) < n_wanted) {
                struct node *n;
                struct device *d = free_place(c, j, &n);

                if (!d || !add(j, &(struct standby){ .node = n, .number = j->next_standby, .device = d->index, .dp = j->spec->parallel.dp, .fresh = true, .warm = true,
                                                     .rank = (uint32_t)(count(j, NULL, true) % (size_t)j->world) }))
                        return;
                d->standby_job = j->id;
                d->standby = j->next_standby++;
        }
}

static void look(struct controller *c, struct job *j) {
        _cleanup_free_ bool *changed = calloc(c->n_nodes + 1, sizeof(*changed));

        if (!changed)
                return;
        for (size_t i = 0; i < j->n_standbys;)
                if (wanted(c, j, &j->standbys[i]) && (j->spec->recovery.standby > 0)) {
                        i++;
                } else {
                        changed[job_node_index(c, j->standbys[i].node)] = true;
                        drop(j, &j->standbys[i]);
                }
        if (j->state == J(RUNNING) && j->rec == REC_WATCH && j->stop_kind == STOP_NONE && core_now(c) >= j->standby_at)
                fill(c, j);
        for (size_t i = 0; i < j->n_standbys; i++)
                if (j->standbys[i].fresh) {
                        j->standbys[i].fresh = false;
                        changed[job_node_index(c, j->standbys[i].node)] = true;
                }
        for (size_t i = 0; i < c->n_nodes; i++)
                if (changed[i])
                        tell(c, j, j->id, c->nodes[i]);
}

void standbys_look(struct controller *c) {
        bool waits = false;

        for (size_t i = 0; i < c->n_jobs; i++)
                waits = waits || c->jobs[i]->state == J(PENDING);
        c->standbys_yield = c->standbys_yield && waits;
        for (size_t i = 0; i < c->n_jobs; i++)
                if (job_placed(c->jobs[i]) && (c->jobs[i]->n_standbys || c->jobs[i]->spec->recovery.standby > 0) && c->jobs[i]->rec == REC_WATCH)
                        look(c, c->jobs[i]);
}

void standbys_tick(struct controller *c, struct job *j, uint64_t now) {
        if (j->standby_at && now >= j->standby_at) {
                j->standby_at = 0;
                c->schedule_wanted = true;
        }
}

bool standbys_any(const struct controller *c) {
        for (size_t i = 0; i < c->n_jobs; i++)
                if (count(c->jobs[i], NULL, true))
                        return true;
        return false;
}
