/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests of clients: answered at once, or kept in the pending list until an event, a commit, a worker's answer or a deadline.  What only reads is in request_read.c, submitting in
 * submit.c.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/core/diagnose.h"
#include "daemon/core/node_pairs.h"
#include "daemon/core/rank_plan.h"
#include "daemon/core/request_private.h"

/* Thresholds. */
#define FETCH_MS 10000u
#define FETCH_BYTES_MAX (1u << 20)
#define SAVE_MS 300000u
#define PENDING_MAX 4096u     /* requests that wait, of all clients */

void request_refuse(struct controller *c, uint64_t request, int status, const char *fmt, ...) {
        char text[1024];
        va_list ap;

        va_start(ap, fmt);
        vsnprintf(text, sizeof(text), fmt, ap);
        va_end(ap);
        c->io.reply(c->io.arg, request, status, text, NULL);
}

void request_answer(struct controller *c, uint64_t request, const ProtobufCMessage *m) {
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
        gathering_free(p->gathering);
        node_pairs_free(p->pairs);
        free(p);
        return NULL;
}

struct pending *pending_add(struct controller *c, enum pending_kind kind, uint64_t request, uint32_t ms, const struct caller *who) {
        struct pending *p;
        size_t n = 0;

        for (p = c->pending; p; p = p->next)
                n++;
        p = n < PENDING_MAX ? calloc(1, sizeof(*p)) : NULL;
        if (!p) {
                request_refuse(c, request, ST_EXHAUSTED, "too many requests are waiting (%zu)", n);
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

void pending_remove(struct controller *c, struct pending *p) {
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

bool request_may_touch(const struct caller *who, const struct job *j) {
        return who->admin || (!who->is_node && strcmp(who->user, j->user) == 0);
}

struct job *request_job(struct controller *c, uint64_t request, uint64_t id, const struct caller *who, bool touch) {
        struct job *j = job_find(c, id);

        if (!j)
                request_refuse(c, request, ST_NOT_FOUND, id && id < c->next_job ? "job %" PRIu64 " is not kept any more" : "job %" PRIu64 " is not known", id);
        else if (touch && !request_may_touch(who, j))
                request_refuse(c, request, ST_DENIED, "job %" PRIu64 " belongs to %s", id, j->user);
        else
                return j;
        return NULL;
}

void request_answer_job(struct controller *c, uint64_t request, const struct job *j) {
        struct job_message m;

        if (job_message_fill(c, j, true, &m) < 0) {
                request_refuse(c, request, ST_EXHAUSTED, "no memory");
                return;
        }
        if (m.job.plan)
                node_tell_rails(c, m.job.plan);
        request_answer(c, request, &m.job.base);
        job_message_free(&m);
}

/* ------------------------------------------------------------------ cancel, save */
static void on_cancel(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const Fp8ctl__V1__CancelJobRequest *q = (const Fp8ctl__V1__CancelJobRequest *)m;
        struct job *j = request_job(c, request, q->id, who, true);
        char why[TEXT_MAX_LEN], said[200];

        if (!j)
                return;
        core_text(said, sizeof(said), q->reason);
        snprintf(why, sizeof(why), "cancelled by %.100s%s%s", who->user[0] ? who->user : "its owner", said[0] ? ": " : "", said);
        if (!job_ended(j))
                job_stop(c, j, STOP_CANCEL, (uint32_t)j->spec->recovery.grace_ms, q->now, why);
        request_answer_job(c, request, j);
}

static void on_save(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        struct job *j = request_job(c, request, ((const Fp8ctl__V1__SaveJobRequest *)m)->id, who, true);
        struct pending *p;

        if (!j)
                return;
        if (j->state == FP8CTL__V1__JOB_STATE__RUNNING && j->rec == REC_SUSPECT) {
                request_refuse(c, request, ST_PRECONDITION, "job %" PRIu64 ": a rank waits for one that may be lost; it can be saved when it steps again", j->id);
                return;
        }
        if (j->state != FP8CTL__V1__JOB_STATE__RUNNING) {
                request_refuse(c, request, ST_PRECONDITION, "job %" PRIu64 " is %s: only a running job can be saved", j->id, job_state_name(j->state));
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
                if (p->kind != PENDING_SAVE || p->job != j->id || (attempt && p->attempt != attempt && step <= p->save_step))
                        continue;
                r.step = step;
                request_answer(c, p->request, &r.base);
                pending_remove(c, p);
        }
}

void request_save_over(struct controller *c, const struct job *j, uint32_t attempt, const char *why) {
        struct pending *next;

        for (struct pending *p = c->pending; p; p = next) {
                next = p->next;
                if (p->kind != PENDING_SAVE || p->job != j->id || (attempt && p->attempt != attempt))
                        continue;
                request_refuse(c, p->request, ST_ABORTED, "not saved: %s", why);
                pending_remove(c, p);
        }
}

/* ------------------------------------------------------------------ files on workers */
static void answer_empty(struct controller *c, uint64_t request, uint64_t offset, bool ended) {
        Fp8ctl__V1__ReadFileReply r = FP8CTL__V1__READ_FILE_REPLY__INIT;

        r.next_offset = offset;
        r.ended = ended;
        request_answer(c, request, &r.base);
}

static void relay(struct controller *c, uint64_t request, const Fp8ctl__V1__ReadFileRequest *q, struct node *n, int32_t rank, const struct caller *who) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__FetchRequest f = FP8CTL__V1__FETCH_REQUEST__INIT;
        struct pending *p;

        if (!n->session) {
                request_refuse(c, request, ST_UNAVAILABLE, "node %s holds the file and is not connected", n->name);
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
                        request_refuse(c, request, ST_DENIED, "logs of nodes are for administrators");
                else if (!n)
                        request_refuse(c, request, ST_NOT_FOUND, "node '%.128s' is not known", q->node ? q->node : "");
                else
                        relay(c, request, q, n, -1, who);
                return;
        }
        if (q->kind != FP8CTL__V1__FILE_KIND__RANK_LOG && q->kind != FP8CTL__V1__FILE_KIND__METRICS) {
                request_refuse(c, request, ST_INVALID, "kind: found %d, expected RANK_LOG, METRICS or WORKER_LOG", (int)q->kind);
                return;
        }
        j = request_job(c, request, q->job_id, who, true);
        if (!j)
                return;
        if (rank < 0)
                rank = q->kind == FP8CTL__V1__FILE_KIND__METRICS ? (int32_t)rank_plan_reporter(j->spec->parallel.tp, j->spec->parallel.pp, j->spec->parallel.dp) : 0;
        if (q->kind == FP8CTL__V1__FILE_KIND__METRICS && q->node && q->node[0]) {
                struct node *n = node_find(c, q->node);

                if (!n)
                        request_refuse(c, request, ST_NOT_FOUND, "node '%.128s' is not known", q->node);
                else if (rank < j->world && j->ranks[rank].node == n)
                        answer_empty(c, request, q->offset, false);
                else
                        relay(c, request, q, n, rank, who);
                return;
        }
        if (rank >= j->world) {
                request_refuse(c, request, ST_INVALID, "rank: found %d, expected 0 to %d", rank, j->world - 1);
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
                        request_refuse(c, p->request, ST_NOT_FOUND, "%s: %s", s->node->name, said);
                } else if (m->data.len > FETCH_BYTES_MAX) {
                        request_refuse(c, p->request, ST_INTERNAL, "%s sent %zu bytes, expected at most %u", s->node->name, m->data.len, FETCH_BYTES_MAX);
                } else {
                        r.data = m->data;
                        r.next_offset = m->next_offset;
                        r.ended = j && job_ended(j) && m->data.len == 0;
                        request_answer(c, p->request, &r.base);
                }
                pending_remove(c, p);
                return;
        }
}

/* ------------------------------------------------------------------ nodes that go, time */
void request_node_gone(struct controller *c, struct node *n) {
        struct pending *next;

        for (struct pending *p = c->pending; p; p = next) {
                next = p->next;
                if (p->kind == PENDING_READ && p->node == n) {
                        request_refuse(c, p->request, ST_UNAVAILABLE, "node %s went away before it answered", n->name);
                        pending_remove(c, p);
                        continue;
                }
                if (p->kind == PENDING_TEST && p->node == n) {
                        request_refuse(c, p->request, ST_UNAVAILABLE, "node %s went away before its test was over", n->name);
                        pending_remove(c, p);
                        continue;
                }
                if (p->kind == PENDING_SUBMIT)
                        submit_node_gone(c, p, n);
                else if (p->kind == PENDING_PAIRS)
                        node_pairs_gone(c, p, n);
                else if (p->kind == PENDING_DIAGNOSE)
                        diagnose_node_gone(c, p, n);
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
                        read_events(c, p->request, p->after_id, p->event_job, p->limit, p->newest, true);
                        break;
                case PENDING_SAVE:
                        request_refuse(c, p->request, ST_DEADLINE, "the save was not committed within %u s", SAVE_MS / 1000);
                        break;
                case PENDING_READ:
                        request_refuse(c, p->request, ST_DEADLINE, "node %s did not answer within %u s", p->node->name, FETCH_MS / 1000);
                        break;
                case PENDING_TEST:
                        request_refuse(c, p->request, ST_DEADLINE, "node %s did not end its test in time", p->node->name);
                        break;
                case PENDING_PAIRS:
                        node_pairs_late(c, p);
                        continue;
                case PENDING_DIAGNOSE:
                        diagnose_answer(c, p);
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
                [REQ_STATUS] = { &fp8ctl__v1__status_request__descriptor, read_status },
                [REQ_SUBMIT] = { &fp8ctl__v1__submit_request__descriptor, submit_request },
                [REQ_LIST_JOBS] = { &fp8ctl__v1__list_jobs_request__descriptor, read_list_jobs },
                [REQ_GET_JOB] = { &fp8ctl__v1__get_job_request__descriptor, read_get_job },
                [REQ_CANCEL_JOB] = { &fp8ctl__v1__cancel_job_request__descriptor, on_cancel },
                [REQ_SAVE_JOB] = { &fp8ctl__v1__save_job_request__descriptor, on_save },
                [REQ_LIST_NODES] = { &fp8ctl__v1__list_nodes_request__descriptor, read_list_nodes },
                [REQ_GET_NODE] = { &fp8ctl__v1__get_node_request__descriptor, read_get_node },
                [REQ_LIST_EVENTS] = { &fp8ctl__v1__list_events_request__descriptor, read_list_events },
                [REQ_READ_FILE] = { &fp8ctl__v1__read_file_request__descriptor, on_read_file },
                [REQ_LIST_CHECKPOINTS] = { &fp8ctl__v1__list_checkpoints_request__descriptor, read_list_checkpoints },
                [REQ_SCALE_JOB] = { &fp8ctl__v1__scale_job_request__descriptor, layout_request_scale },
                [REQ_SET_NODE] = { &fp8ctl__v1__set_node_request__descriptor, node_request_set },
                [REQ_TEST_PAIRS] = { &fp8ctl__v1__test_pairs_request__descriptor, node_pairs_request },
                [REQ_TEST_NODE] = { &fp8ctl__v1__test_node_request__descriptor, node_test_request },
                [REQ_DIAGNOSE_JOB] = { &fp8ctl__v1__diagnose_job_request__descriptor, diagnose_request },
                [REQ_START_ROLLOUT] = { &fp8ctl__v1__start_rollout_request__descriptor, rollout_request_start },
                [REQ_LIST_ROLLOUTS] = { &fp8ctl__v1__list_rollouts_request__descriptor, rollout_request_list },
                [REQ_GET_ROLLOUT] = { &fp8ctl__v1__get_rollout_request__descriptor, rollout_request_get },
                [REQ_SET_ROLLOUT] = { &fp8ctl__v1__set_rollout_request__descriptor, rollout_request_set },
                [REQ_REMOVE_CHECKPOINT] = { &fp8ctl__v1__remove_checkpoint_request__descriptor, checkpoint_request_remove },
        };

        if ((size_t)kind >= ARRAY_SIZE(kinds) || !kinds[kind].fn || !m || m->descriptor != kinds[kind].type) {
                request_refuse(c, request, ST_INVALID, "request of kind %d: found %s, expected another message", (int)kind, m && m->descriptor ? m->descriptor->name : "nothing");
                return;
        }
        kinds[kind].fn(c, request, m, who);
}

