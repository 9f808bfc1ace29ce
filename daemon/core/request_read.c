/* SPDX-License-Identifier: Apache-2.0 */
/* Requests that change nothing: what is known of the cluster, of jobs, nodes, checkpoints and events. */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "daemon/core/health.h"
#include "daemon/core/request_private.h"

/* Thresholds. */
#define WAIT_MS_MAX 60000u
#define EVENTS_DEFAULT 100u
#define EVENTS_MAX 1000u

/* ------------------------------------------------------------------ status, lists */
void read_status(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        Fp8ctl__V1__StatusReply r = FP8CTL__V1__STATUS_REPLY__INIT;

        r.version = c->version;
        r.protocol_min = PROTOCOL_VERSION_MIN;
        r.protocol_max = PROTOCOL_VERSION_MAX;
        r.cluster_id = c->cluster_id;
        r.started_unix_ms = c->started_wall_ms;
        r.nodes_total = (uint32_t)c->n_nodes;
        for (size_t i = 0; i < c->n_nodes; i++) {
                const struct node *n = c->nodes[i];

                r.nodes_ready += node_usable(n);
                r.devices_total += (uint32_t)n->n_devices;
                for (size_t k = 0; k < n->n_devices; k++)
                        r.devices_free += node_usable(n) && !n->devices[k].job;
        }
        for (size_t i = 0; i < c->n_jobs; i++)
                r.jobs_active += !job_ended(c->jobs[i]);
        for (int i = 0; i < N_DROPS; i++)
                r.dropped_messages += c->drops[i];
        r.test_hooks = c->config.test_hooks;
        request_answer(c, request, &r.base);
}

void read_list_jobs(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const Fp8ctl__V1__ListJobsRequest *q = (const Fp8ctl__V1__ListJobsRequest *)m;
        Fp8ctl__V1__ListJobsReply r = FP8CTL__V1__LIST_JOBS_REPLY__INIT;
        _cleanup_free_ struct job_message *list = calloc(c->n_jobs + 1, sizeof(*list));
        _cleanup_free_ Fp8ctl__V1__Job **ptrs = calloc(c->n_jobs + 1, sizeof(*ptrs));

        if (!list || !ptrs) {
                request_refuse(c, request, ST_EXHAUSTED, "no memory");
                return;
        }
        for (size_t i = 0; i < c->n_jobs; i++)
                if (q->all || !job_ended(c->jobs[i])) {
                        job_message_fill(c, c->jobs[i], false, &list[r.n_jobs]);
                        ptrs[r.n_jobs] = &list[r.n_jobs].job;
                        r.n_jobs++;
                }
        r.jobs = ptrs;
        request_answer(c, request, &r.base);
}

void read_get_job(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        struct job *j = request_job(c, request, ((const Fp8ctl__V1__GetJobRequest *)m)->id, who, false);

        if (j)
                request_answer_job(c, request, j);
}

struct node_message {
        Fp8ctl__V1__Node node;
        Fp8ctl__V1__NodeDevice *devices, **ptrs;
        Fp8ctl__V1__NodeNic *nics, **nic_ptrs;
        struct health_message health;
};

/* all: with what is kept of its health. */
static int node_message_fill(const struct node *n, bool all, bool facts, struct node_message *m) {
        fp8ctl__v1__node__init(&m->node);
        m->devices = calloc(n->n_devices + 1, sizeof(*m->devices));
        m->ptrs = calloc(n->n_devices + 1, sizeof(*m->ptrs));
        if (!m->devices || !m->ptrs)
                return -ENOMEM;
        for (size_t i = 0; i < n->n_devices; i++) {
                const struct device *d = &n->devices[i];
                Fp8ctl__V1__NodeDevice *o = &m->devices[i];

                fp8ctl__v1__node_device__init(o);
                o->index = d->index;
                o->kind = (char *)d->kind;
                o->name = (char *)d->name;
                o->memory_bytes = d->memory_bytes;
                o->job_id = d->job;
                o->rank = d->rank;
                o->health = (char *)d->unfit;
                o->pci = (char *)d->pci;
                if (all)
                        o->path = (char *)d->path;
                o->numa = d->numa;
                o->nvlinks = d->nvlinks;
                o->nvlink_domain = d->nvlink_domain;
                o->rail = (char *)d->rail;
                m->ptrs[i] = o;
        }
        m->node.name = (char *)n->name;
        m->node.state = (char *)node_state_name(n->state);
        m->node.reason = n->state == NODE_READY && !n->session ? (char *)"its stream is away, the lease runs on" : (char *)n->reason;
        m->node.address = (char *)n->address;
        m->node.version = (char *)n->version;
        m->node.kernel = (char *)n->kernel;
        m->node.boot_id = (char *)n->boot_id;
        m->node.dir = (char *)n->dir;
        m->node.rack = (char *)n->rack;
        m->node.replica_endpoint = (char *)n->replica_endpoint;
        m->node.incarnation = n->incarnation;
        m->node.last_seen_unix_ms = n->last_seen_ms;
        m->node.memory_bytes = n->memory_bytes;
        m->node.cpus = n->cpus;
        m->node.dropped_messages = n->dropped;
        m->node.duty = (char *)node_duty_name(n->duty);
        m->node.duty_reason = (char *)n->duty_reason;
        m->node.window_from_unix_ms = n->window_from_ms;
        m->node.window_until_unix_ms = n->window_until_ms;
        m->node.devices = m->ptrs;
        m->node.n_devices = n->n_devices;
        node_facts_fill(n, &m->node, facts);
        if (all && node_fill_nics(n, &m->node, &m->nics, &m->nic_ptrs) < 0)
                return -ENOMEM;
        return health_fill(n, &m->node, all, &m->health);
}

static void node_message_free(struct node_message *m) {
        health_message_free(&m->health);
        free(m->devices);
        free(m->ptrs);
        free(m->nics);
        free(m->nic_ptrs);
}

void read_list_nodes(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        Fp8ctl__V1__ListNodesReply r = FP8CTL__V1__LIST_NODES_REPLY__INIT;
        _cleanup_free_ struct node_message *list = calloc(c->n_nodes + 1, sizeof(*list));
        _cleanup_free_ Fp8ctl__V1__Node **ptrs = calloc(c->n_nodes + 1, sizeof(*ptrs));
        int rc = list && ptrs ? 0 : -ENOMEM;

        for (size_t i = 0; rc == 0 && i < c->n_nodes; i++) {
                rc = node_message_fill(c->nodes[i], false, ((const Fp8ctl__V1__ListNodesRequest *)m)->facts, &list[i]);
                ptrs[i] = &list[i].node;
        }
        r.nodes = ptrs;
        r.n_nodes = c->n_nodes;
        if (rc == 0)
                request_answer(c, request, &r.base);
        else
                request_refuse(c, request, ST_EXHAUSTED, "no memory");
        for (size_t i = 0; list && i < c->n_nodes; i++)
                node_message_free(&list[i]);
}

void request_answer_node(struct controller *c, uint64_t request, const struct node *n) {
        struct node_message nm = { 0 };

        if (node_message_fill(n, true, true, &nm) < 0)
                request_refuse(c, request, ST_EXHAUSTED, "no memory");
        else
                request_answer(c, request, &nm.node.base);
        node_message_free(&nm);
}

void read_get_node(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const char *name = ((const Fp8ctl__V1__GetNodeRequest *)m)->name;
        const struct node *n = node_find(c, name);

        if (n)
                request_answer_node(c, request, n);
        else
                request_refuse(c, request, ST_NOT_FOUND, "node '%.128s' is not known", name ? name : "");
}

void read_list_checkpoints(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        struct job *j = request_job(c, request, ((const Fp8ctl__V1__ListCheckpointsRequest *)m)->job_id, who, false);
        Fp8ctl__V1__ListCheckpointsReply r = FP8CTL__V1__LIST_CHECKPOINTS_REPLY__INIT;
        _cleanup_free_ Fp8ctl__V1__Checkpoint *list = NULL;
        _cleanup_free_ Fp8ctl__V1__Checkpoint **ptrs = NULL;

        if (!j)
                return;
        list = calloc(j->n_checkpoints + 1, sizeof(*list));
        ptrs = calloc(j->n_checkpoints + 1, sizeof(*ptrs));
        if (!list || !ptrs) {
                request_refuse(c, request, ST_EXHAUSTED, "no memory");
                return;
        }
        for (size_t i = 0; i < j->n_checkpoints; i++) {
                Fp8ctl__V1__Checkpoint *o = &list[r.n_checkpoints];

                if (j->checkpoints[i].removing)
                        continue;
                checkpoint_message_fill(j, &j->checkpoints[i], o);
                ptrs[r.n_checkpoints++] = o;
        }
        r.checkpoints = ptrs;
        request_answer(c, request, &r.base);
}

/* ------------------------------------------------------------------ events */
bool read_events(struct controller *c, uint64_t request, uint64_t after, uint64_t job, uint32_t limit, bool newest, bool empty_too) {
        Fp8ctl__V1__ListEventsReply r = FP8CTL__V1__LIST_EVENTS_REPLY__INIT;
        _cleanup_free_ const struct event **found = calloc(limit, sizeof(*found));
        _cleanup_free_ Fp8ctl__V1__Event *list = calloc(limit, sizeof(*list));
        _cleanup_free_ Fp8ctl__V1__Event **ptrs = calloc(limit, sizeof(*ptrs));

        if (!found || !list || !ptrs) {
                request_refuse(c, request, ST_EXHAUSTED, "no memory");
                return true;
        }
        r.n_events = event_select(c, after, job, newest, found, limit);
        if (r.n_events == 0 && !empty_too)
                return false;
        for (size_t i = 0; i < r.n_events; i++) {
                event_fill(found[i], &list[i]);
                ptrs[i] = &list[i];
        }
        r.events = ptrs;
        request_answer(c, request, &r.base);
        return true;
}

void read_list_events(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const Fp8ctl__V1__ListEventsRequest *q = (const Fp8ctl__V1__ListEventsRequest *)m;
        uint32_t limit = q->limit ? q->limit : EVENTS_DEFAULT, wait = q->wait_ms > WAIT_MS_MAX ? WAIT_MS_MAX : q->wait_ms;
        struct pending *p;

        if (limit > EVENTS_MAX)
                limit = EVENTS_MAX;
        if (q->job_id && !request_job(c, request, q->job_id, who, false))
                return;
        if (read_events(c, request, q->after_id, q->job_id, limit, q->newest, wait == 0))
                return;
        p = pending_add(c, PENDING_EVENTS, request, wait, who);
        if (!p)
                return;
        p->after_id = q->after_id;
        p->event_job = q->job_id;
        p->limit = limit;
        p->newest = q->newest;
}

void request_events_new(struct controller *c) {
        struct pending *next;

        for (struct pending *p = c->pending; p; p = next) {
                next = p->next;
                if (p->kind == PENDING_EVENTS && read_events(c, p->request, p->after_id, p->event_job, p->limit, p->newest, false))
                        pending_remove(c, p);
        }
}

