/* SPDX-License-Identifier: Apache-2.0 */
/* Submitting a job: parsed, checked, planned, asked of the nodes that it would use, stored, answered. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "daemon/core/request_private.h"

#define PREFLIGHT_MS 30000u   /* data digests of large files take their time */

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
                request_refuse(c, request, ST_EXHAUSTED, "no memory");
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
        if (m.job.plan)
                node_tell_rails(c, m.job.plan);
        if (p) {
                r.warnings = p->warnings;
                r.n_warnings = p->n_warnings;
        }
        request_answer(c, request, &r.base);
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

        if (before && request_may_touch(&p->who, before)) {
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
                request_refuse(c, p->request, ST_INVALID, "key 'checkpoint.dir': found %.300s, where job %" PRIu64 " saves, allowed: a folder that no other running job uses", j->spec->checkpoint.dir, other->id);
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
                request_refuse(c, p->request, ST_EXHAUSTED, "no memory");
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
void submit_check(struct controller *c, struct pending *p, bool deadline) {
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
                        request_refuse(c, p->request, ST_INVALID, "preflight on node %s: %s", f->node->name, f->error);
                        pending_remove(c, p);
                        return;
                } else if (f->data_digest && f->data_digest[0]) {
                        if (digest && strcmp(digest, f->data_digest) != 0) {
                                request_refuse(c, p->request, ST_INVALID, "data.path: node %s holds other data (digest %s) than node %s (%s)", f->node->name, f->data_digest, digest_node, digest);
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
                q.bytes_per_rank = c->nodes[i]->n_devices && !node_device_in_host_memory(&c->nodes[i]->devices[0]) ? j->snapshot_bytes : j->bytes_per_rank;
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
                request_refuse(c, request, r == -ENOMEM ? ST_EXHAUSTED : ST_INVALID, "%s", e.text);
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

void submit_request(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const Fp8ctl__V1__SubmitRequest *q = (const Fp8ctl__V1__SubmitRequest *)m;
        const struct job *before;
        struct pending *p;
        struct job *j;
        size_t devices = 0;

        if (who->is_node) {
                request_refuse(c, request, ST_DENIED, "a node's certificate may not submit jobs");
                return;
        }
        if (q->request_id && strlen(q->request_id) >= NAME_MAX_LEN) {
                request_refuse(c, request, ST_INVALID, "request_id: found %zu characters, allowed: at most %d", strlen(q->request_id), NAME_MAX_LEN - 1);
                return;
        }
        before = job_of_request(c, q->request_id);
        if (before && !q->dry_run) {
                if (request_may_touch(who, before))
                        answer_submit(c, request, before, NULL);
                else
                        request_refuse(c, request, ST_DENIED, "request_id '%s' was used by another user", q->request_id);
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
                request_refuse(c, request, ST_EXHAUSTED, "no memory");
                pending_remove(c, p);
                return;
        }
        if (job_plan_idle(c, j, p->slots, &devices) < 0) {
                if (devices) {
                        request_refuse(c, request, ST_INVALID,
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

void submit_node_gone(struct controller *c, struct pending *p, const struct node *n) {
        bool changed = false;

        for (size_t i = 0; i < p->n_preflights; i++)
                if (p->preflights[i].node == n && !p->preflights[i].answered) {
                        p->preflights[i].answered = changed = true;
                        warn(p, "node %s went away before it was checked", n->name);
                }
        if (changed)
                submit_check(c, p, false);
}
