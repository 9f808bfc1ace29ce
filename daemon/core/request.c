/* SPDX-License-Identifier: Apache-2.0 */
/* Requests of clients: answered at once, or kept in the pending list until an event, a commit, a worker's answer or a deadline. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/text.h"
#include "daemon/core/core.h"
#include "daemon/core/rank_plan.h"

/* Thresholds. */
#define PREFLIGHT_MS 30000u   /* data digests of large files take their time */
#define FETCH_MS 10000u
#define FETCH_BYTES_MAX (1u << 20)
#define SAVE_MS 300000u
#define WAIT_MS_MAX 60000u
#define EVENTS_DEFAULT 100u
#define EVENTS_MAX 1000u
#define PENDING_MAX 4096u     /* requests that wait, of all clients */

static void refuse(struct controller *c, uint64_t request, int status, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static void refuse(struct controller *c, uint64_t request, int status, const char *fmt, ...) {
        char text[1024];
        va_list ap;

        va_start(ap, fmt);
        vsnprintf(text, sizeof(text), fmt, ap);
        va_end(ap);
        c->io.reply(c->io.arg, request, status, text, NULL);
}

static void answer(struct controller *c, uint64_t request, const ProtobufCMessage *m) {
        c->io.reply(c->io.arg, request, ST_OK, NULL, m);
}

/* ------------------------------------------------------------------ the pending list */
static struct pending *pending_free(struct pending *p) {
        if (!p)
                return NULL;
        for (size_t i = 0; i < p->n_preflights; i++) {
                free(p->preflights[i].error);
                free(p->preflights[i].data_digest);
        }
        for (size_t i = 0; i < p->n_warnings; i++)
                free(p->warnings[i]);
        free(p->preflights);
        free(p->warnings);
        free(p->slots);
        job_free(p->draft);
        free(p);
        return NULL;
}

static struct pending *pending_add(struct controller *c, enum pending_kind kind, uint64_t request, uint32_t ms, const struct caller *who) {
        struct pending *p;
        size_t n = 0;

        for (p = c->pending; p; p = p->next)
                n++;
        p = n < PENDING_MAX ? calloc(1, sizeof(*p)) : NULL;
        if (!p) {
                refuse(c, request, ST_EXHAUSTED, "too many requests are waiting (%zu)", n);
                return NULL;
        }
        p->kind = kind;
        p->request = request;
        p->who = *who;
        p->deadline = core_now(c) + (uint64_t)ms * NSEC_PER_MSEC;
        p->next = c->pending;
        c->pending = p;
        return p;
}

static void pending_remove(struct controller *c, struct pending *p) {
        struct pending **q = &c->pending;

        while (*q && *q != p)
                q = &(*q)->next;
        if (*q)
                *q = p->next;
        pending_free(p);
}

void request_gone(struct controller *c, uint64_t request) {
        for (struct pending *p = c->pending; p; p = p->next)
                if (p->request == request) {
                        pending_remove(c, p);
                        return;
                }
}

void request_free_all(struct controller *c) {
        while (c->pending)
                pending_remove(c, c->pending);
}

static bool may_touch(const struct caller *who, const struct job *j) {
        return who->admin || (!who->is_node && strcmp(who->user, j->user) == 0);
}

static struct job *job_for(struct controller *c, uint64_t request, uint64_t id, const struct caller *who, bool touch) {
        struct job *j = job_find(c, id);

        if (!j)
                refuse(c, request, ST_NOT_FOUND, "job %" PRIu64 " is not known", id);
        else if (touch && !may_touch(who, j))
                refuse(c, request, ST_DENIED, "job %" PRIu64 " belongs to %s", id, j->user);
        else
                return j;
        return NULL;
}

static void answer_job(struct controller *c, uint64_t request, const struct job *j) {
        struct job_message m;

        if (job_message_fill(c, j, true, &m) < 0) {
                refuse(c, request, ST_EXHAUSTED, "no memory");
                return;
        }
        answer(c, request, &m.job.base);
        job_message_free(&m);
}

/* ------------------------------------------------------------------ status, lists */
static void on_status(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
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
        answer(c, request, &r.base);
}

static void on_list_jobs(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const Fp8ctl__V1__ListJobsRequest *q = (const Fp8ctl__V1__ListJobsRequest *)m;
        Fp8ctl__V1__ListJobsReply r = FP8CTL__V1__LIST_JOBS_REPLY__INIT;
        _cleanup_free_ struct job_message *list = calloc(c->n_jobs + 1, sizeof(*list));
        _cleanup_free_ Fp8ctl__V1__Job **ptrs = calloc(c->n_jobs + 1, sizeof(*ptrs));

        if (!list || !ptrs) {
                refuse(c, request, ST_EXHAUSTED, "no memory");
                return;
        }
        for (size_t i = 0; i < c->n_jobs; i++)
                if (q->all || !job_ended(c->jobs[i])) {
                        job_message_fill(c, c->jobs[i], false, &list[r.n_jobs]);
                        ptrs[r.n_jobs] = &list[r.n_jobs].job;
                        r.n_jobs++;
                }
        r.jobs = ptrs;
        answer(c, request, &r.base);
}

static void on_get_job(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        struct job *j = job_for(c, request, ((const Fp8ctl__V1__GetJobRequest *)m)->id, who, false);

        if (j)
                answer_job(c, request, j);
}

struct node_message {
        Fp8ctl__V1__Node node;
        Fp8ctl__V1__NodeDevice *devices, **ptrs;
};

static int node_message_fill(const struct node *n, struct node_message *m) {
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
        m->node.incarnation = n->incarnation;
        m->node.last_seen_unix_ms = n->last_seen_ms;
        m->node.memory_bytes = n->memory_bytes;
        m->node.cpus = n->cpus;
        m->node.devices = m->ptrs;
        m->node.n_devices = n->n_devices;
        return 0;
}

static void node_message_free(struct node_message *m) {
        free(m->devices);
        free(m->ptrs);
}

static void on_list_nodes(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        Fp8ctl__V1__ListNodesReply r = FP8CTL__V1__LIST_NODES_REPLY__INIT;
        _cleanup_free_ struct node_message *list = calloc(c->n_nodes + 1, sizeof(*list));
        _cleanup_free_ Fp8ctl__V1__Node **ptrs = calloc(c->n_nodes + 1, sizeof(*ptrs));
        int rc = list && ptrs ? 0 : -ENOMEM;

        for (size_t i = 0; rc == 0 && i < c->n_nodes; i++) {
                rc = node_message_fill(c->nodes[i], &list[i]);
                ptrs[i] = &list[i].node;
        }
        r.nodes = ptrs;
        r.n_nodes = c->n_nodes;
        if (rc == 0)
                answer(c, request, &r.base);
        else
                refuse(c, request, ST_EXHAUSTED, "no memory");
        for (size_t i = 0; list && i < c->n_nodes; i++)
                node_message_free(&list[i]);
}

static void on_get_node(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const char *name = ((const Fp8ctl__V1__GetNodeRequest *)m)->name;
        const struct node *n = node_find(c, name);
        struct node_message nm = { 0 };

        if (!n)
                refuse(c, request, ST_NOT_FOUND, "node '%.128s' is not known", name ? name : "");
        else if (node_message_fill(n, &nm) < 0)
                refuse(c, request, ST_EXHAUSTED, "no memory");
        else
                answer(c, request, &nm.node.base);
        node_message_free(&nm);
}

static void on_list_checkpoints(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        struct job *j = job_for(c, request, ((const Fp8ctl__V1__ListCheckpointsRequest *)m)->job_id, who, false);
        Fp8ctl__V1__ListCheckpointsReply r = FP8CTL__V1__LIST_CHECKPOINTS_REPLY__INIT;
        _cleanup_free_ Fp8ctl__V1__Checkpoint *list = NULL;
        _cleanup_free_ Fp8ctl__V1__Checkpoint **ptrs = NULL;

        if (!j)
                return;
        list = calloc(j->n_checkpoints + 1, sizeof(*list));
        ptrs = calloc(j->n_checkpoints + 1, sizeof(*ptrs));
        if (!list || !ptrs) {
                refuse(c, request, ST_EXHAUSTED, "no memory");
                return;
        }
        for (size_t i = 0; i < j->n_checkpoints; i++) {
                const struct checkpoint *k = &j->checkpoints[i];
                Fp8ctl__V1__Checkpoint *o = &list[r.n_checkpoints];

                if (k->removing)
                        continue;
                fp8ctl__v1__checkpoint__init(o);
                o->job_id = j->id;
                o->step = k->step;
                o->epoch = k->epoch;
                o->attempt = k->attempt;
                o->path = k->path;
                o->bytes = k->bytes;
                o->committed_unix_ms = k->committed_ms;
                ptrs[r.n_checkpoints++] = o;
        }
        r.checkpoints = ptrs;
        answer(c, request, &r.base);
}

/* ------------------------------------------------------------------ events */
static bool answer_events(struct controller *c, uint64_t request, uint64_t after, uint64_t job, uint32_t limit, bool empty_too) {
        Fp8ctl__V1__ListEventsReply r = FP8CTL__V1__LIST_EVENTS_REPLY__INIT;
        _cleanup_free_ const struct event **found = calloc(limit, sizeof(*found));
        _cleanup_free_ Fp8ctl__V1__Event *list = calloc(limit, sizeof(*list));
        _cleanup_free_ Fp8ctl__V1__Event **ptrs = calloc(limit, sizeof(*ptrs));

        if (!found || !list || !ptrs) {
                refuse(c, request, ST_EXHAUSTED, "no memory");
                return true;
        }
        r.n_events = event_select(c, after, job, found, limit);
        if (r.n_events == 0 && !empty_too)
                return false;
        for (size_t i = 0; i < r.n_events; i++) {
                event_fill(found[i], &list[i]);
                ptrs[i] = &list[i];
        }
        r.events = ptrs;
        answer(c, request, &r.base);
        return true;
}

static void on_list_events(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const Fp8ctl__V1__ListEventsRequest *q = (const Fp8ctl__V1__ListEventsRequest *)m;
        uint32_t limit = q->limit ? q->limit : EVENTS_DEFAULT, wait = q->wait_ms > WAIT_MS_MAX ? WAIT_MS_MAX : q->wait_ms;
        struct pending *p;

        if (limit > EVENTS_MAX)
                limit = EVENTS_MAX;
        if (q->job_id && !job_for(c, request, q->job_id, who, false))
                return;
        if (answer_events(c, request, q->after_id, q->job_id, limit, wait == 0))
                return;
        p = pending_add(c, PENDING_EVENTS, request, wait, who);
        if (!p)
                return;
        p->after_id = q->after_id;
        p->event_job = q->job_id;
        p->limit = limit;
}

void request_events_new(struct controller *c) {
        struct pending *next;

        for (struct pending *p = c->pending; p; p = next) {
                next = p->next;
                if (p->kind == PENDING_EVENTS && answer_events(c, p->request, p->after_id, p->event_job, p->limit, false))
                        pending_remove(c, p);
        }
}

/* ------------------------------------------------------------------ cancel, save */
static void on_cancel(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const Fp8ctl__V1__CancelJobRequest *q = (const Fp8ctl__V1__CancelJobRequest *)m;
        struct job *j = job_for(c, request, q->id, who, true);
        char why[TEXT_MAX_LEN], said[200];

        if (!j)
                return;
        core_text(said, sizeof(said), q->reason);
        snprintf(why, sizeof(why), "cancelled by %.100s%s%s", who->user[0] ? who->user : "its owner", said[0] ? ": " : "", said);
        if (!job_ended(j))
                job_stop(c, j, STOP_CANCEL, (uint32_t)j->spec->recovery.grace_ms, q->now, why);
        answer_job(c, request, j);
}

static void on_save(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        struct job *j = job_for(c, request, ((const Fp8ctl__V1__SaveJobRequest *)m)->id, who, true);
        struct pending *p;

        if (!j)
                return;
        if (j->state != FP8CTL__V1__JOB_STATE__RUNNING || j->rec == REC_SUSPECT) {
                refuse(c, request, ST_PRECONDITION, "job %" PRIu64 " is %s: only a running job can be saved", j->id, job_state_name(j->state));
                return;
        }
        p = pending_add(c, PENDING_SAVE, request, SAVE_MS, who);
        if (!p)
                return;
        p->job = j->id;
        p->save_step = j->best_step;
        p->attempt = save_request(c, j, 0);
}

void request_committed(struct controller *c, const struct job *j, uint64_t step, uint32_t attempt) {
        struct pending *next;

        for (struct pending *p = c->pending; p; p = next) {
                Fp8ctl__V1__SaveJobReply r = FP8CTL__V1__SAVE_JOB_REPLY__INIT;

                next = p->next;
                if (p->kind != PENDING_SAVE || p->job != j->id || (p->attempt != attempt && step <= p->save_step))
                        continue;
                r.step = step;
                answer(c, p->request, &r.base);
                pending_remove(c, p);
        }
}

void request_save_over(struct controller *c, const struct job *j, uint32_t attempt, const char *why) {
        struct pending *next;

        for (struct pending *p = c->pending; p; p = next) {
                next = p->next;
                if (p->kind != PENDING_SAVE || p->job != j->id || (attempt && p->attempt != attempt))
                        continue;
                refuse(c, p->request, ST_ABORTED, "not saved: %s", why);
                pending_remove(c, p);
        }
}

/* ------------------------------------------------------------------ files on workers */
static void answer_empty(struct controller *c, uint64_t request, uint64_t offset, bool ended) {
        Fp8ctl__V1__ReadFileReply r = FP8CTL__V1__READ_FILE_REPLY__INIT;

        r.next_offset = offset;
        r.ended = ended;
        answer(c, request, &r.base);
}

static void relay(struct controller *c, uint64_t request, const Fp8ctl__V1__ReadFileRequest *q, struct node *n, int32_t rank, const struct caller *who) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__FetchRequest f = FP8CTL__V1__FETCH_REQUEST__INIT;
        struct pending *p;

        if (!n->session) {
                refuse(c, request, ST_UNAVAILABLE, "node %s holds the file and is not connected", n->name);
                return;
        }
        p = pending_add(c, PENDING_READ, request, FETCH_MS, who);
        if (!p)
                return;
        p->relay = c->next_relay++;
        p->node = n;
        p->job = q->job_id;
        p->offset = q->offset;
        f.request = p->relay;
        f.job_id = q->job_id;
        f.rank = rank;
        f.kind = q->kind;
        f.offset = q->offset;
        f.max_bytes = q->max_bytes == 0 || q->max_bytes > FETCH_BYTES_MAX ? FETCH_BYTES_MAX : q->max_bytes;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_FETCH_REQUEST;
        m.fetch_request = &f;
        node_send(c, n, &m);
}

static void on_read_file(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const Fp8ctl__V1__ReadFileRequest *q = (const Fp8ctl__V1__ReadFileRequest *)m;
        int32_t rank = q->rank;
        struct job *j;

        if (q->kind == FP8CTL__V1__FILE_KIND__WORKER_LOG) {
                struct node *n = node_find(c, q->node);

                if (!who->admin)
                        refuse(c, request, ST_DENIED, "logs of nodes are for administrators");
                else if (!n)
                        refuse(c, request, ST_NOT_FOUND, "node '%.128s' is not known", q->node ? q->node : "");
                else
                        relay(c, request, q, n, -1, who);
                return;
        }
        if (q->kind != FP8CTL__V1__FILE_KIND__RANK_LOG && q->kind != FP8CTL__V1__FILE_KIND__METRICS) {
                refuse(c, request, ST_INVALID, "kind: found %d, expected RANK_LOG, METRICS or WORKER_LOG", (int)q->kind);
                return;
        }
        j = job_for(c, request, q->job_id, who, true);
        if (!j)
                return;
        if (rank < 0)
                rank = q->kind == FP8CTL__V1__FILE_KIND__METRICS ? (int32_t)rank_plan_reporter(j->spec->parallel.tp, j->spec->parallel.pp, j->spec->parallel.dp) : 0;
        if (rank >= j->world) {
                refuse(c, request, ST_INVALID, "rank: found %d, expected 0 to %d", rank, j->world - 1);
                return;
        }
        if (!j->ranks[rank].node)
                answer_empty(c, request, q->offset, job_ended(j));
        else
                relay(c, request, q, j->ranks[rank].node, rank, who);
}

void request_fetch_reply(struct controller *c, struct session *s, const Fp8ctl__V1__FetchReply *m) {
        for (struct pending *p = c->pending; p; p = p->next) {
                Fp8ctl__V1__ReadFileReply r = FP8CTL__V1__READ_FILE_REPLY__INIT;
                const struct job *j;

                if (p->kind != PENDING_READ || p->relay != m->request || p->node != s->node)
                        continue;
                j = job_find(c, p->job);
                if (m->error && m->error[0]) {
                        char said[TEXT_MAX_LEN];

                        core_text(said, sizeof(said), m->error);
                        refuse(c, p->request, ST_NOT_FOUND, "%s: %s", s->node->name, said);
                } else if (m->data.len > FETCH_BYTES_MAX) {
                        refuse(c, p->request, ST_INTERNAL, "%s sent %zu bytes, expected at most %u", s->node->name, m->data.len, FETCH_BYTES_MAX);
                } else {
                        r.data = m->data;
                        r.next_offset = m->next_offset;
                        r.ended = j && job_ended(j) && m->data.len == 0;
                        answer(c, p->request, &r.base);
                }
                pending_remove(c, p);
                return;
        }
}

/* ------------------------------------------------------------------ submit */
static void warn(struct pending *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void warn(struct pending *p, const char *fmt, ...) {
        char **list, text[TEXT_MAX_LEN];
        va_list ap;

        if (p->n_warnings >= 32)
                return;
        list = realloc(p->warnings, (p->n_warnings + 1) * sizeof(*list));
        if (!list)
                return;
        p->warnings = list;
        va_start(ap, fmt);
        vsnprintf(text, sizeof(text), fmt, ap);
        va_end(ap);
        list[p->n_warnings] = core_strdup(text, sizeof(text));
        if (list[p->n_warnings])
                p->n_warnings++;
}

static const struct job *job_of_request(const struct controller *c, const char *id) {
        for (size_t i = 0; id && id[0] && i < c->n_jobs; i++)
                if (strcmp(c->jobs[i]->request_id, id) == 0)
                        return c->jobs[i];
        return NULL;
}

static void answer_submit(struct controller *c, uint64_t request, const struct job *j, struct pending *p) {
        Fp8ctl__V1__SubmitReply r = FP8CTL__V1__SUBMIT_REPLY__INIT;
        struct job_message m;

        if (job_message_fill(c, j, true, &m) < 0) {
                refuse(c, request, ST_EXHAUSTED, "no memory");
                return;
        }
        r.job = &m.job;
        r.plan = m.job.plan;
        if (p && p->slots)
                for (int i = 0; i < j->world; i++) {
                        bool somewhere = p->slots[i].node >= 0 && (size_t)p->slots[i].node < c->n_nodes;

                        m.ranks[i].node = somewhere ? c->nodes[p->slots[i].node]->name : (char *)"";
                        m.ranks[i].device = p->slots[i].device;
                }
        if (p) {
                r.warnings = p->warnings;
                r.n_warnings = p->n_warnings;
        }
        answer(c, request, &r.base);
        job_message_free(&m);
}

/* Two jobs that write the same step folders would destroy each other's checkpoints. */
static const struct job *other_user_of_folder(const struct controller *c, const struct job *j, bool ended) {
        const char *dir = j->spec->checkpoint.dir;

        for (size_t i = c->n_jobs; dir && dir[0] && i-- > 0;) {
                const struct job *o = c->jobs[i];

                if (o->spec->checkpoint.dir && strcmp(o->spec->checkpoint.dir, dir) == 0 && job_ended(o) == ended && (!ended || o->n_checkpoints))
                        return o;
        }
        return NULL;
}

static void submit_finish(struct controller *c, struct pending *p) {
        struct job *j = p->draft;
        const struct job *before = job_of_request(c, j->request_id), *other;

        if (before && may_touch(&p->who, before)) {
                answer_submit(c, p->request, before, p);
                pending_remove(c, p);
                return;
        }
        for (size_t i = 0; i < p->n_preflights; i++)
                if (p->preflights[i].data_digest && p->preflights[i].data_digest[0] && !(j->data_digest && j->data_digest[0])) {
                        free(j->data_digest);
                        j->data_digest = strdup(p->preflights[i].data_digest);
                }
        other = other_user_of_folder(c, j, false);
        if (other) {
                refuse(c, p->request, ST_INVALID, "key 'checkpoint.dir': found %.300s, where job %" PRIu64 " saves, allowed: a folder that no other running job uses", j->spec->checkpoint.dir, other->id);
                pending_remove(c, p);
                return;
        }
        other = other_user_of_folder(c, j, true);
        if (other)
                warn(p, "checkpoint.dir %.200s holds checkpoints of job %" PRIu64 "; those of equal step and epoch are replaced", j->spec->checkpoint.dir, other->id);
        if (p->dry_run) {
                answer_submit(c, p->request, j, p);
                pending_remove(c, p);
                return;
        }
        p->draft = NULL;
        j->id = c->next_job;
        j->submitted_ms = c->io.wall_ms(c->io.arg);
        if (job_add(c, j) < 0) {
                job_free(j);
                refuse(c, p->request, ST_EXHAUSTED, "no memory");
                pending_remove(c, p);
                return;
        }
        c->cluster_dirty = true;
        job_move(c, j, JOB_E_SUBMIT);
        snprintf(j->reason, sizeof(j->reason), "waits for the scheduler");
        record_put_request(c, j);
        record_put_job(c, j);
        event_add(c, &(struct event_of){ .job = j, .rank = -1 }, "submitted", "%s by %s: %d rank%s (tp %d, pp %d, dp %d), %" PRIu64 " parameters, %" PRId64 " step%s", j->name, j->user, j->world, text_s((uint64_t)j->world),
                  j->spec->parallel.tp, j->spec->parallel.pp, j->spec->parallel.dp, j->parameters, j->spec->train.steps, text_s((uint64_t)j->spec->train.steps));
        answer_submit(c, p->request, j, p);
        pending_remove(c, p);
        c->schedule_wanted = true;
}

/* All answered (or nobody to ask): errors refuse, different data refuses, else it is stored. */
static void submit_check(struct controller *c, struct pending *p, bool deadline) {
        const char *digest = NULL, *digest_node = NULL;

        for (size_t i = 0; i < p->n_preflights; i++) {
                const struct preflight *f = &p->preflights[i];

                if (!f->answered && !deadline)
                        return;
        }
        for (size_t i = 0; i < p->n_preflights; i++) {
                const struct preflight *f = &p->preflights[i];

                if (!f->answered) {
                        warn(p, "node %s did not answer the preflight", f->node->name);
                } else if (f->error && f->error[0]) {
                        refuse(c, p->request, ST_INVALID, "preflight on node %s: %s", f->node->name, f->error);
                        pending_remove(c, p);
                        return;
                } else if (f->data_digest && f->data_digest[0]) {
                        if (digest && strcmp(digest, f->data_digest) != 0) {
                                refuse(c, p->request, ST_INVALID, "data.path: node %s holds other data (digest %s) than node %s (%s)", f->node->name, f->data_digest, digest_node, digest);
                                pending_remove(c, p);
                                return;
                        }
                        digest = f->data_digest;
                        digest_node = f->node->name;
                }
        }
        submit_finish(c, p);
}

static void send_preflights(struct controller *c, struct pending *p) {
        const struct job *j = p->draft;

        for (size_t i = 0; i < c->n_nodes; i++) {
                Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
                Fp8ctl__V1__PreflightRequest q = FP8CTL__V1__PREFLIGHT_REQUEST__INIT;
                struct preflight *list;

                for (int k = 0; p->slots && k < j->world; k++)
                        q.ranks_here += p->slots[k].node == (int)i;
                if (!q.ranks_here)
                        continue;
                if (!c->nodes[i]->session) {
                        warn(p, "node %s is not connected and was not checked", c->nodes[i]->name);
                        continue;
                }
                list = realloc(p->preflights, (p->n_preflights + 1) * sizeof(*list));
                if (!list)
                        return;
                p->preflights = list;
                list[p->n_preflights] = (struct preflight){ .id = c->next_relay++, .node = c->nodes[i] };
                q.request = list[p->n_preflights++].id;
                q.job_file = j->job_file;
                q.bytes_per_rank = j->bytes_per_rank;
                q.uid = j->uid;
                q.gid = j->gid;
                q.from_checkpoint = j->from_checkpoint ? j->from_checkpoint : (char *)"";
                m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_PREFLIGHT_REQUEST;
                m.preflight_request = &q;
                node_send(c, c->nodes[i], &m);
        }
}

void request_preflight_reply(struct controller *c, struct session *s, const Fp8ctl__V1__PreflightReply *m) {
        for (struct pending *p = c->pending; p; p = p->next) {
                if (p->kind != PENDING_SUBMIT)
                        continue;
                for (size_t i = 0; i < p->n_preflights; i++) {
                        struct preflight *f = &p->preflights[i];

                        if (f->id != m->request || f->node != s->node || f->answered)
                                continue;
                        f->answered = true;
                        f->error = core_strdup(m->error, TEXT_MAX_LEN);
                        f->data_digest = core_strdup(m->data_digest, 64);
                        for (size_t k = 0; k < m->n_warnings && k < 8; k++)
                                if (m->warnings[k])
                                        warn(p, "%s: %.300s", s->node->name, m->warnings[k]);
                        submit_check(c, p, false);
                        return;
                }
        }
}

/* Parses and checks; NULL: refused. */
static struct job *draft_job(struct controller *c, uint64_t request, const Fp8ctl__V1__SubmitRequest *q, const struct caller *who) {
        struct job_spec *spec = NULL;
        struct error e = { 0 };
        char *json = NULL, file[256];
        struct job *j = NULL;
        size_t len = q->job_file ? strlen(q->job_file) : 0;
        int r;

        core_text(file, sizeof(file), q->file_name && q->file_name[0] ? q->file_name : "job file");
        if (len == 0 || len > JOB_FILE_MAX)
                r = error_set(&e, -EINVAL, "%s: found %zu bytes, allowed: 1 to %u", file, len, JOB_FILE_MAX);
        else
                r = job_spec_parse(q->job_file, len, file, NULL, &spec, &e);
        if (r == 0 && job_spec_uses_test_hooks(spec) && !c->config.test_hooks)
                r = error_set(&e, -EINVAL, "%s: key 'test': test hooks are refused; fp8d runs without --allow-test-hooks", file);
        if (r == 0)
                r = job_spec_to_json(spec, &json, &e);
        if (r == 0) {
                j = job_new(0);
                r = j ? job_set_spec(j, json, &e) : error_set(&e, -ENOMEM, "no memory");
        }
        if (r < 0 || !j) {
                refuse(c, request, r == -ENOMEM ? ST_EXHAUSTED : ST_INVALID, "%s", e.text);
                j = job_free(j);
        } else {
                core_text(j->name, sizeof(j->name), spec->name);
                core_text(j->user, sizeof(j->user), who->user[0] ? who->user : q->user);
                core_text(j->request_id, sizeof(j->request_id), q->request_id);
                j->uid = who->uid;
                j->gid = who->gid;
                j->from_checkpoint = core_strdup(q->from_checkpoint, 4096);
        }
        job_spec_free(spec);
        free(json);
        return j;
}

static void on_submit(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const Fp8ctl__V1__SubmitRequest *q = (const Fp8ctl__V1__SubmitRequest *)m;
        const struct job *before;
        struct pending *p;
        struct job *j;
        size_t devices = 0;

        if (who->is_node) {
                refuse(c, request, ST_DENIED, "a node's certificate may not submit jobs");
                return;
        }
        if (q->request_id && strlen(q->request_id) >= NAME_MAX_LEN) {
                refuse(c, request, ST_INVALID, "request_id: found %zu characters, allowed: at most %d", strlen(q->request_id), NAME_MAX_LEN - 1);
                return;
        }
        before = job_of_request(c, q->request_id);
        if (before && !q->dry_run) {
                if (may_touch(who, before))
                        answer_submit(c, request, before, NULL);
                else
                        refuse(c, request, ST_DENIED, "request_id '%s' was used by another user", q->request_id);
                return;
        }
        j = draft_job(c, request, q, who);
        if (!j)
                return;
        p = pending_add(c, PENDING_SUBMIT, request, PREFLIGHT_MS, who);
        if (!p) {
                job_free(j);
                return;
        }
        p->draft = j;
        p->dry_run = q->dry_run;
        p->slots = calloc((size_t)j->world, sizeof(*p->slots));
        if (!p->slots) {
                refuse(c, request, ST_EXHAUSTED, "no memory");
                pending_remove(c, p);
                return;
        }
        if (job_plan_idle(c, j, p->slots, &devices) < 0) {
                if (devices) {
                        refuse(c, request, ST_INVALID,
                               "%.200s: key 'parallel': found tp %d x pp %d x dp %d = %d rank%s of %" PRIu64 " MiB, allowed: what fits the cluster's %zu device%s (tp neighbouring devices of one node)",
                               q->file_name && q->file_name[0] ? q->file_name : "job file", j->spec->parallel.tp, j->spec->parallel.pp, j->spec->parallel.dp, j->world,
                               text_s((uint64_t)j->world), j->bytes_per_rank >> 20, devices, text_s(devices));
                        pending_remove(c, p);
                        return;
                }
                warn(p, "no node has joined yet; the job waits");
                free(p->slots);
                p->slots = NULL;
        }
        if (!q->skip_preflight)
                send_preflights(c, p);
        submit_check(c, p, false);
}

/* ------------------------------------------------------------------ nodes that go, time */
void request_node_gone(struct controller *c, struct node *n) {
        struct pending *next;

        for (struct pending *p = c->pending; p; p = next) {
                bool changed = false;

                next = p->next;
                if (p->kind == PENDING_READ && p->node == n) {
                        refuse(c, p->request, ST_UNAVAILABLE, "node %s went away before it answered", n->name);
                        pending_remove(c, p);
                        continue;
                }
                if (p->kind != PENDING_SUBMIT)
                        continue;
                for (size_t i = 0; i < p->n_preflights; i++)
                        if (p->preflights[i].node == n && !p->preflights[i].answered) {
                                p->preflights[i].answered = changed = true;
                                warn(p, "node %s went away before it was checked", n->name);
                        }
                if (changed)
                        submit_check(c, p, false);
        }
}

void request_tick(struct controller *c, uint64_t now) {
        struct pending *next;

        for (struct pending *p = c->pending; p; p = next) {
                next = p->next;
                if (now < p->deadline)
                        continue;
                switch (p->kind) {
                case PENDING_EVENTS:
                        answer_events(c, p->request, p->after_id, p->event_job, p->limit, true);
                        break;
                case PENDING_SAVE:
                        refuse(c, p->request, ST_DEADLINE, "the save was not committed within %u s", SAVE_MS / 1000);
                        break;
                case PENDING_READ:
                        refuse(c, p->request, ST_DEADLINE, "node %s did not answer within %u s", p->node->name, FETCH_MS / 1000);
                        break;
                case PENDING_SUBMIT:
                        submit_check(c, p, true);
                        continue;
                }
                pending_remove(c, p);
        }
}

uint64_t request_next_deadline(const struct controller *c) {
        uint64_t best = 0;

        for (const struct pending *p = c->pending; p; p = p->next)
                if (!best || p->deadline < best)
                        best = p->deadline;
        return best;
}

void request_handle(struct controller *c, uint64_t request, enum request_kind kind, const ProtobufCMessage *m, const struct caller *who) {
        static const struct {
                const ProtobufCMessageDescriptor *type;
                void (*fn)(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);
        } kinds[] = {
                [REQ_STATUS] = { &fp8ctl__v1__status_request__descriptor, on_status },
                [REQ_SUBMIT] = { &fp8ctl__v1__submit_request__descriptor, on_submit },
                [REQ_LIST_JOBS] = { &fp8ctl__v1__list_jobs_request__descriptor, on_list_jobs },
                [REQ_GET_JOB] = { &fp8ctl__v1__get_job_request__descriptor, on_get_job },
                [REQ_CANCEL_JOB] = { &fp8ctl__v1__cancel_job_request__descriptor, on_cancel },
                [REQ_SAVE_JOB] = { &fp8ctl__v1__save_job_request__descriptor, on_save },
                [REQ_LIST_NODES] = { &fp8ctl__v1__list_nodes_request__descriptor, on_list_nodes },
                [REQ_GET_NODE] = { &fp8ctl__v1__get_node_request__descriptor, on_get_node },
                [REQ_LIST_EVENTS] = { &fp8ctl__v1__list_events_request__descriptor, on_list_events },
                [REQ_READ_FILE] = { &fp8ctl__v1__read_file_request__descriptor, on_read_file },
                [REQ_LIST_CHECKPOINTS] = { &fp8ctl__v1__list_checkpoints_request__descriptor, on_list_checkpoints },
        };

        if ((size_t)kind >= ARRAY_SIZE(kinds) || !kinds[kind].fn || !m || m->descriptor != kinds[kind].type) {
                refuse(c, request, ST_INVALID, "request of kind %d: found %s, expected another message", (int)kind, m && m->descriptor ? m->descriptor->name : "nothing");
                return;
        }
        kinds[kind].fn(c, request, m, who);
}
