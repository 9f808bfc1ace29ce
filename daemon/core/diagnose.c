/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asking all workers of a job where its ranks are: for a client (`fp8ctl diagnose`), and when a rank has waited in vain, to find out for whom (rank_fault.c).  What
 * one node does not say in time is told as unknown.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/core/diagnose.h"
#include "daemon/core/request_private.h"
#include "daemon/core/stall.h"
#include "proto/flight.h"
#include "proto/message.h"

/* Thresholds. */
#define DIAGNOSE_MS 6000u            /* for a client; workers take at most 4 s for stacks */
#define REPLY_MAX ((size_t)3 << 20)  /* bytes to a client: gRPC takes 4 MiB */
#define CALLS_MAX 64
#define THREADS_MAX 64
#define FRAMES_MAX 64
#define WORD_MAX 64
#define LINE_MAX_LEN 200
#define EVENT_FRAMES 6               /* of the culprit's stack, in the event */

struct gathering *gathering_free(struct gathering *g) {
        if (!g)
                return NULL;
        for (int i = 0; i < g->world; i++)
                if (g->ranks && g->ranks[i])
                        fp8ctl__v1__rank_diagnosis__free_unpacked(g->ranks[i], NULL);
        free(g->ranks);
        free(g->wait);
        free(g);
        return NULL;
}

static void ask(struct controller *c, const struct node *n, uint64_t job, uint64_t relay, bool stacks) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__DiagnoseRequest q = FP8CTL__V1__DIAGNOSE_REQUEST__INIT;

        q.request = relay;
        q.job_id = job;
        q.stacks = stacks;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_DIAGNOSE_REQUEST;
        m.diagnose_request = &q;
        node_send(c, n, &m);
}

struct gathering *gathering_begin(struct controller *c, const struct job *j, bool stacks) {
        struct gathering *g = calloc(1, sizeof(*g));

        if (!g)
                return NULL;
        g->job = j->id;
        g->world = j->world;
        g->relay = c->next_relay++;
        g->ranks = calloc((size_t)j->world, sizeof(*g->ranks));
        g->wait = calloc(c->n_nodes + 1, sizeof(*g->wait));
        if (!g->ranks || !g->wait)
                return gathering_free(g);
        for (size_t i = 0; i < c->n_nodes; i++)
                if (job_on_node(j, c->nodes[i]) && c->nodes[i]->session) {
                        ask(c, c->nodes[i], j->id, g->relay, stacks);
                        g->wait[g->n_wait++] = c->nodes[i];
                }
        return g;
}

bool gathering_without(struct gathering *g, const struct node *n) {
        for (size_t i = 0; i < g->n_wait; i++)
                if (g->wait[i] == n) {
                        g->wait[i] = g->wait[--g->n_wait];
                        return true;
                }
        return false;
}

/* ------------------------------------------------------------------ what a worker says */

static void clean(char *s, size_t max) {
        if (s && s[0]) /* the empty one is protobuf's own */
                core_text(s, strlen(s) < max ? strlen(s) + 1 : max, s);
}

static bool sound(const Fp8ctl__V1__RankDiagnosis *d) {
        if (d->n_calls > CALLS_MAX || d->n_threads > THREADS_MAX || d->n_met > N_FLIGHT_GROUPS)
                return false;
        for (size_t i = 0; i < d->n_threads; i++)
                if (d->threads[i]->n_frames > FRAMES_MAX)
                        return false;
        return true;
}

static Fp8ctl__V1__RankDiagnosis *take(const Fp8ctl__V1__RankDiagnosis *m, const struct node *n) {
        Fp8ctl__V1__RankDiagnosis *d = sound(m) ? (Fp8ctl__V1__RankDiagnosis *)message_copy(&m->base) : NULL;

        if (!d)
                return NULL;
        clean(d->state, WORD_MAX);
        clean(d->phase, WORD_MAX);
        clean(d->note, LINE_MAX_LEN);
        for (size_t i = 0; i < d->n_calls; i++)
                clean(d->calls[i]->op, WORD_MAX);
        for (size_t i = 0; i < d->n_threads; i++) {
                Fp8ctl__V1__ThreadState *t = d->threads[i];

                clean(t->name, WORD_MAX);
                clean(t->state, WORD_MAX);
                clean(t->kernel, LINE_MAX_LEN);
                for (size_t k = 0; k < t->n_frames; k++)
                        clean(t->frames[k], LINE_MAX_LEN);
        }
        if (d->node != protobuf_c_empty_string)
                free(d->node);
        d->node = strdup(n->name);
        if (d->node)
                return d;
        d->node = (char *)protobuf_c_empty_string;
        fp8ctl__v1__rank_diagnosis__free_unpacked(d, NULL);
        return NULL;
}

static void gathering_take(struct gathering *g, const struct job *j, const struct node *n, const Fp8ctl__V1__DiagnoseReply *m) {
        for (size_t i = 0; i < m->n_ranks; i++) {
                const Fp8ctl__V1__RankDiagnosis *d = m->ranks[i];
                uint32_t r = d ? d->rank : 0;

                /* The processes that the job has now; an older incarnation's recorder says nothing about this epoch. */
                if (!d || r >= (uint32_t)g->world || r >= (uint32_t)j->world || j->ranks[r].node != n || j->ranks[r].incarnation != d->incarnation || g->ranks[r])
                        continue;
                g->ranks[r] = take(d, n);
        }
}

static char *text_or_empty(const char *s) {
        char *copy = s && s[0] ? strdup(s) : NULL;

        return copy ? copy : (char *)protobuf_c_empty_string;
}

/* Of a rank that nobody spoke of. */
static Fp8ctl__V1__RankDiagnosis *nothing_known(const struct job *j, int i) {
        const struct rank *r = &j->ranks[i];
        Fp8ctl__V1__RankDiagnosis *d = malloc(sizeof(*d));

        if (!d)
                return NULL;
        fp8ctl__v1__rank_diagnosis__init(d);
        d->rank = (uint32_t)i;
        d->incarnation = r->incarnation;
        d->pid = r->pid;
        d->node = text_or_empty(r->node ? r->node->name : "");
        d->state = text_or_empty("unknown");
        d->note = text_or_empty(!r->node ? "it has no node" : !r->node->session ? "its node is not connected" : "its node said nothing of it in time");
        return d;
}

int gathering_diagnose(struct controller *c, struct gathering *g, const struct job *j, Fp8ctl__V1__Diagnosis *ret) {
        struct stall_shape shape = { j->spec->parallel.tp, j->spec->parallel.pp, j->spec->parallel.dp };
        int r;

        fp8ctl__v1__diagnosis__init(ret);
        if (g->world != j->world || shape.tp * shape.pp * shape.dp != g->world)
                return -ESTALE; /* it has another number of replicas by now */
        for (int i = 0; i < g->world; i++)
                if (!g->ranks[i] && !(g->ranks[i] = nothing_known(j, i)))
                        return -ENOMEM;
        r = stall_diagnose(&shape, g->ranks, ret);
        if (r < 0)
                return r;
        ret->job_id = j->id;
        ret->unix_ms = c->io.wall_ms(c->io.arg);
        ret->ranks = g->ranks; /* lent */
        ret->n_ranks = (size_t)g->world;
        return 0;
}

void gathering_diagnosed(Fp8ctl__V1__Diagnosis *d) {
        d->ranks = NULL;
        d->n_ranks = 0;
        stall_done(d);
}

/* ------------------------------------------------------------------ of an incident */

void diagnose_incident(struct controller *c, struct job *j) {
        gathering_free(j->gathering);
        j->gathering = gathering_begin(c, j, false);
}

/* The stack of the thread that leads it, as far as it fits. */
static void say_stack(const Fp8ctl__V1__RankDiagnosis *d, char *buf, size_t size) {
        const Fp8ctl__V1__ThreadState *t = NULL;
        size_t at = 0;

        buf[0] = '\0';
        for (size_t i = 0; i < d->n_threads && !t; i++)
                if (d->threads[i]->tid == d->pid)
                        t = d->threads[i];
        if (!t)
                return;
        at += (size_t)snprintf(buf, size, "; its main thread %s%s%s", t->state, *t->kernel ? " in " : "", t->kernel);
        for (size_t i = 0; i < t->n_frames && i < EVENT_FRAMES && at < size; i++)
                at += (size_t)snprintf(buf + at, size - at, "%s%s", i ? " < " : ": ", t->frames[i]);
}

bool diagnose_certain(struct controller *c, struct job *j) {
        Fp8ctl__V1__Diagnosis d;
        bool certain = j->gathering && j->gathering->n_wait == 0 && gathering_diagnose(c, j->gathering, j, &d) == 0;

        if (certain) {
                certain = d.stuck;
                gathering_diagnosed(&d);
        }
        return certain;
}

int diagnose_culprit(struct controller *c, struct job *j, bool *ret_known) {
        Fp8ctl__V1__Diagnosis d;
        char stack[512] = "";
        int culprit = -1;

        *ret_known = false;
        if (!j->gathering || gathering_diagnose(c, j->gathering, j, &d) < 0)
                return -1;
        if (d.culprit >= 0) {
                say_stack(d.ranks[d.culprit], stack, sizeof(stack));
                event_add(c, &(struct event_of){ .job = j, .node = j->ranks[d.culprit].node, .rank = d.culprit, .severity = "warning" }, "diagnosis", "%s%s", d.verdict, stack);
        } else {
                event_add(c, &(struct event_of){ .job = j, .rank = -1, .severity = "warning" }, "diagnosis", "%s", d.verdict);
        }
        /* Where a node has said nothing, those who waited in vain know more. */
        *ret_known = j->gathering->n_wait == 0 && d.culprit >= 0 && strcmp(d.ranks[d.culprit]->state, "unknown") != 0;
        culprit = d.stuck ? d.culprit : -1;
        gathering_diagnosed(&d);
        j->gathering = gathering_free(j->gathering);
        return culprit;
}

/* ------------------------------------------------------------------ of a client */

/* What does not fit goes: stacks of those that are not named first. */
static void shorten(Fp8ctl__V1__Diagnosis *d) {
        for (int round = 0; round < 2 && fp8ctl__v1__diagnosis__get_packed_size(d) > REPLY_MAX; round++)
                for (size_t i = 0; i < d->n_ranks; i++)
                        for (size_t k = 0; k < d->ranks[i]->n_threads && (int)i != d->culprit; k++) {
                                Fp8ctl__V1__ThreadState *t = d->ranks[i]->threads[k];
                                size_t keep = round == 0 ? 4 : 0;

                                while (t->n_frames > keep)
                                        free(t->frames[--t->n_frames]);
                        }
}

void diagnose_answer(struct controller *c, struct pending *p) {
        const struct job *j = job_find(c, p->job);
        Fp8ctl__V1__Diagnosis d;

        if (!j) {
                request_refuse(c, p->request, ST_NOT_FOUND, "job %" PRIu64 " is not kept any more", p->job);
        } else if (gathering_diagnose(c, p->gathering, j, &d) < 0) {
                request_refuse(c, p->request, ST_ABORTED, "job %" PRIu64 " was given another layout meanwhile", p->job);
        } else {
                shorten(&d);
                request_answer(c, p->request, &d.base);
                gathering_diagnosed(&d);
        }
}

void diagnose_request(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const Fp8ctl__V1__DiagnoseJobRequest *q = (const Fp8ctl__V1__DiagnoseJobRequest *)m;
        const struct job *j = request_job(c, request, q->id, who, true);
        struct pending *p;

        if (!j)
                return;
        if (!job_placed(j)) {
                request_refuse(c, request, ST_PRECONDITION, "job %" PRIu64 " is %s: it has no ranks", j->id, job_state_name(j->state));
                return;
        }
        p = pending_add(c, PENDING_DIAGNOSE, request, DIAGNOSE_MS, who);
        if (!p)
                return;
        p->job = j->id;
        p->gathering = gathering_begin(c, j, q->stacks);
        if (!p->gathering)
                request_refuse(c, request, ST_EXHAUSTED, "no memory");
        else if (p->gathering->n_wait == 0)
                diagnose_answer(c, p);
        else
                return;
        pending_remove(c, p);
}

void diagnose_reply(struct controller *c, struct session *s, const Fp8ctl__V1__DiagnoseReply *m) {
        struct pending *p = c->pending;

        while (p && !(p->kind == PENDING_DIAGNOSE && p->gathering->relay == m->request))
                p = p->next;
        if (p) {
                const struct job *j = job_find(c, p->job);

                if (!gathering_without(p->gathering, s->node))
                        return; /* said twice */
                if (j)
                        gathering_take(p->gathering, j, s->node, m);
                if (p->gathering->n_wait == 0) {
                        diagnose_answer(c, p);
                        pending_remove(c, p);
                }
                return;
        }
        for (size_t i = 0; i < c->n_jobs; i++) {
                struct job *j = c->jobs[i];

                if (!j->gathering || j->gathering->relay != m->request || !gathering_without(j->gathering, s->node))
                        continue;
                gathering_take(j->gathering, j, s->node, m);
                if (j->gathering->n_wait == 0)
                        rank_diagnosed(c, j);
                return;
        }
}

void diagnose_node_gone(struct controller *c, struct pending *p, const struct node *n) {
        if (!gathering_without(p->gathering, n) || p->gathering->n_wait > 0)
                return;
        diagnose_answer(c, p);
        pending_remove(c, p);
}
