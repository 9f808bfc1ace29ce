/* SPDX-License-Identifier: Apache-2.0 */
/* Rollouts, as clients ask for them and see them. Everyone may look; administrators begin, stop and resume. */
#include <ctype.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/text.h"
#include "daemon/core/request_private.h"
#include "daemon/core/rollout.h"

/* Defaults. */
#define CHANGE_MS (UINT64_C(30) * 60 * 1000)
#define ALPHA 0.05
static const uint32_t default_stages[] = { 5, 20, 50, 100 };

#define HOUR_MS 3600000.0
#define SPAN_MAX_MS (UINT64_C(30) * 24 * 3600 * 1000)
#define PATTERNS_MAX 1024u

/* ------------------------------------------------------------------ out */
void rollout_node_fill(const struct rollout_node *e, Fp8ctl__V1__RolloutNode *m) {
        fp8ctl__v1__rollout_node__init(m);
        m->name = e->node->name;
        m->state = (char *)rollout_node_state_name((int)e->state);
        m->reason = (char *)e->reason;
        m->since_unix_ms = e->since_ms;
        m->changed_failures = e->failures[SIDE_CHANGED];
        m->other_failures = e->failures[SIDE_OTHER];
        m->changed_ms = e->watched_ms[SIDE_CHANGED];
        m->other_ms = e->watched_ms[SIDE_OTHER];
        m->failed_unix_ms = e->failed_ms;
        m->again = e->again;
}

void rollout_fill(const struct controller *c, const struct rollout *r, Fp8ctl__V1__Rollout *m) {
        struct rollout_sums s = rollout_sums(c, r);

        fp8ctl__v1__rollout__init(m);
        m->id = r->id;
        m->name = (char *)r->name;
        m->fact = (char *)r->fact;
        m->value = (char *)r->value;
        m->user = (char *)r->user;
        m->state = (char *)rollout_state_name((int)r->state);
        m->reason = (char *)r->reason;
        m->waits = (char *)r->waits;
        m->stages = (uint32_t *)r->stages;
        m->n_stages = r->n_stages;
        m->stage = (uint32_t)r->stage;
        m->soak_ms = r->soak_ms;
        m->change_ms = r->change_ms;
        m->alpha = r->alpha;
        m->max_failed = r->max_failed;
        m->max_unavailable = r->max_unavailable;
        m->started_unix_ms = r->started_ms;
        m->ended_unix_ms = r->ended_ms;
        m->counted_unix_ms = r->counted_ms;
        m->nodes_total = (uint32_t)r->n_nodes;
        m->nodes_changed = (uint32_t)s.changed;
        m->nodes_failed = (uint32_t)s.failed;
        m->nodes_forgiven = (uint32_t)s.forgiven;
        m->changed_failures = s.failures[SIDE_CHANGED];
        m->other_failures = s.failures[SIDE_OTHER];
        m->changed_hours = (double)s.watched_ms[SIDE_CHANGED] / HOUR_MS;
        m->other_hours = (double)s.watched_ms[SIDE_OTHER] / HOUR_MS;
        m->p = s.p;
}

static void answer(struct controller *c, uint64_t request, const struct rollout *r) {
        _cleanup_free_ Fp8ctl__V1__RolloutNode *list = calloc(r->n_nodes + 1, sizeof(*list));
        _cleanup_free_ Fp8ctl__V1__RolloutNode **ptrs = calloc(r->n_nodes + 1, sizeof(*ptrs));
        Fp8ctl__V1__Rollout m;

        if (!list || !ptrs) {
                request_refuse(c, request, ST_EXHAUSTED, "no memory");
                return;
        }
        rollout_fill(c, r, &m);
        for (size_t i = 0; i < r->n_nodes; i++) {
                rollout_node_fill(&r->nodes[i], &list[i]);
                ptrs[i] = &list[i];
        }
        m.nodes = ptrs;
        m.n_nodes = r->n_nodes;
        request_answer(c, request, &m.base);
}

/* By name (the newest of that name), or number; "": the newest. NULL: refused. */
static struct rollout *find(struct controller *c, uint64_t request, const char *name) {
        char number[24];

        for (size_t i = c->n_rollouts; i-- > 0;) {
                snprintf(number, sizeof(number), "%" PRIu64, c->rollouts[i]->id);
                if (!name || !name[0] || strcmp(name, c->rollouts[i]->name) == 0 || strcmp(name, number) == 0)
                        return c->rollouts[i];
        }
        if (name && name[0])
                request_refuse(c, request, ST_NOT_FOUND, "rollout '%.64s' is not known", name);
        else
                request_refuse(c, request, ST_NOT_FOUND, "there was no rollout yet");
        return NULL;
}

void rollout_request_list(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        Fp8ctl__V1__ListRolloutsReply reply = FP8CTL__V1__LIST_ROLLOUTS_REPLY__INIT;
        _cleanup_free_ Fp8ctl__V1__Rollout *list = calloc(c->n_rollouts + 1, sizeof(*list));
        _cleanup_free_ Fp8ctl__V1__Rollout **ptrs = calloc(c->n_rollouts + 1, sizeof(*ptrs));

        if (!list || !ptrs) {
                request_refuse(c, request, ST_EXHAUSTED, "no memory");
                return;
        }
        for (size_t i = 0; i < c->n_rollouts; i++) {
                rollout_fill(c, c->rollouts[i], &list[i]);
                ptrs[i] = &list[i];
        }
        reply.rollouts = ptrs;
        reply.n_rollouts = c->n_rollouts;
        request_answer(c, request, &reply.base);
}

void rollout_request_get(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const struct rollout *r = find(c, request, ((const Fp8ctl__V1__GetRolloutRequest *)m)->name);

        if (r)
                answer(c, request, r);
}

void rollout_request_set(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        static void (*const actions[])(struct controller *c, struct rollout *r, const char *why) = { NULL, rollout_stop, rollout_resume, rollout_abort };
        static const enum rollout_event moves[] = { 0, ROLLOUT_E_STOP, ROLLOUT_E_RESUME, ROLLOUT_E_ABORT };
        static const char *const rules[] = { NULL, "only one that is running can be stopped", "only one that was stopped can be resumed", "it is over already" };
        const Fp8ctl__V1__SetRolloutRequest *q = (const Fp8ctl__V1__SetRolloutRequest *)m;
        char said[200], why[TEXT_MAX_LEN];
        struct rollout *r;

        if (!who->admin) {
                request_refuse(c, request, ST_DENIED, "only administrators stop, resume and abort rollouts");
                return;
        }
        if (q->action < FP8CTL__V1__SET_ROLLOUT_REQUEST__ACTION__STOP || q->action > FP8CTL__V1__SET_ROLLOUT_REQUEST__ACTION__ABORT) {
                request_refuse(c, request, ST_INVALID, "action: found %d, allowed: STOP, RESUME, ABORT", (int)q->action);
                return;
        }
        r = find(c, request, q->name);
        if (!r)
                return;
        if (!table_find(&rollout_table, (int)r->state, (int)moves[q->action])) {
                request_refuse(c, request, ST_PRECONDITION, "rollout %s is %s: %s", r->name, rollout_state_name((int)r->state), rules[q->action]);
                return;
        }
        core_text(said, sizeof(said), q->reason);
        snprintf(why, sizeof(why), "by %.100s%s%s", who->user[0] ? who->user : "an administrator", said[0] ? ": " : "", said);
        actions[q->action](c, r, why);
        rollout_look(c);
        answer(c, request, r);
}

/* ------------------------------------------------------------------ start */
static bool name_ok(const char *s) {
        size_t n = strlen(s);

        for (size_t i = 0; i < n; i++)
                if (!isalnum((unsigned char)s[i]) && !strchr("._-", s[i]))
                        return false;
        return n < ROLLOUT_NAME_LEN && (n == 0 || isalpha((unsigned char)s[0]));
}

static bool text_ok(const char *s, size_t size) {
        char clean[ROLLOUT_VALUE_LEN];

        core_text(clean, size, s);
        return s[0] && strcmp(s, clean) == 0;
}

/* False: refused. */
static bool take_settings(struct controller *c, uint64_t request, const Fp8ctl__V1__StartRolloutRequest *q, struct rollout *r) {
        const uint32_t *stages = q->n_stages ? q->stages : default_stages;
        size_t n = q->n_stages ? q->n_stages : ARRAY_SIZE(default_stages);
        bool grows = n <= ROLLOUT_STAGES_MAX && stages[n - 1] == 100;

        for (size_t i = 0; grows && i < n; i++)
                grows = stages[i] > (i ? stages[i - 1] : 0);
        if (!name_ok(q->name))
                request_refuse(c, request, ST_INVALID, "name: found '%.64s', expected a letter, then letters, digits, '.', '_', '-', at most %d", q->name, ROLLOUT_NAME_LEN - 1);
        else if (!text_ok(q->fact, sizeof(r->fact)) || !text_ok(q->value, sizeof(r->value)))
                request_refuse(c, request, ST_INVALID, "fact: found '%.64s' to be '%.128s', expected a key of up to %d and a value of up to %d characters", q->fact, q->value, ROLLOUT_FACT_LEN - 1, ROLLOUT_VALUE_LEN - 1);
        else if (!grows)
                request_refuse(c, request, ST_INVALID, "stages: expected up to %d percentages that grow, the last 100", ROLLOUT_STAGES_MAX);
        else if (!(q->alpha >= 0 && q->alpha < 1))
                request_refuse(c, request, ST_INVALID, "alpha: found %g, expected 0 to less than 1", q->alpha);
        else if (q->soak_ms > SPAN_MAX_MS || q->change_ms > SPAN_MAX_MS)
                request_refuse(c, request, ST_INVALID, "soak, change timeout: found %" PRIu64 " and %" PRIu64 " ms, expected at most 30 days", q->soak_ms, q->change_ms);
        else {
                memcpy(r->stages, stages, n * sizeof(*stages));
                r->n_stages = n;
                core_text(r->fact, sizeof(r->fact), q->fact);
                core_text(r->value, sizeof(r->value), q->value);
                r->soak_ms = q->soak_ms;
                r->change_ms = q->change_ms ? q->change_ms : CHANGE_MS;
                r->alpha = q->alpha > 0 ? q->alpha : ALPHA;
                r->max_failed = q->max_failed;
                r->max_unavailable = q->max_unavailable ? q->max_unavailable : 1;
                return true;
        }
        return false;
}

static bool wanted(const Fp8ctl__V1__StartRolloutRequest *q, const struct node *n, bool *hit) {
        bool any = q->n_nodes == 0;

        for (size_t i = 0; i < q->n_nodes; i++)
                if (fnmatch(q->nodes[i], n->name, 0) == 0)
                        any = hit[i] = true;
        return any;
}

/* Those that were asked for, are there, and do not show it yet. False: refused. */
static bool take_nodes(struct controller *c, uint64_t request, const Fp8ctl__V1__StartRolloutRequest *q, struct rollout *r) {
        _cleanup_free_ bool *hit = calloc(q->n_nodes + 1, sizeof(*hit));
        size_t lost = 0, shown = 0;

        r->nodes = calloc(c->n_nodes + 1, sizeof(*r->nodes));
        if (!hit || !r->nodes || q->n_nodes > PATTERNS_MAX) {
                request_refuse(c, request, ST_EXHAUSTED, "no memory for a rollout, or more than %u patterns of nodes", PATTERNS_MAX);
                return false;
        }
        for (size_t i = 0; i < c->n_nodes; i++) {
                struct node *n = c->nodes[i];
                const char *value = node_fact(n, r->fact);

                if (!wanted(q, n, hit))
                        continue;
                if (n->state == NODE_LOST)
                        lost++;
                else if (value && strcmp(value, r->value) == 0)
                        shown++;
                else
                        r->nodes[r->n_nodes++] = (struct rollout_node){ .node = n, .since_ms = r->started_ms };
        }
        for (size_t i = 0; i < q->n_nodes; i++)
                if (!hit[i]) {
                        request_refuse(c, request, ST_NOT_FOUND, "nodes: found none like '%.128s'", q->nodes[i]);
                        return false;
                }
        if (r->n_nodes == 0)
                request_refuse(c, request, ST_PRECONDITION, "nodes: found none to change: %zu show %s %s, %zu are lost", shown, r->fact, r->value, lost);
        return r->n_nodes > 0;
}

/* The oldest goes: those that are kept are for looking back. */
static void make_room(struct controller *c) {
        if (c->n_rollouts < ROLLOUTS_KEPT)
                return;
        rollout_delete(c, c->rollouts[0]);
        rollout_free(c->rollouts[0]);
        memmove(c->rollouts, c->rollouts + 1, --c->n_rollouts * sizeof(struct rollout *));
}

void rollout_request_start(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const Fp8ctl__V1__StartRolloutRequest *q = (const Fp8ctl__V1__StartRolloutRequest *)m;
        struct rollout *r;

        if (!who->admin) {
                request_refuse(c, request, ST_DENIED, "only administrators begin rollouts");
                return;
        }
        if (c->rollout) {
                request_refuse(c, request, ST_PRECONDITION, "rollout %s is %s: one is begun when the one before is over (fp8ctl rollout abort)", c->rollout->name, rollout_state_name((int)c->rollout->state));
                return;
        }
        r = calloc(1, sizeof(*r));
        if (!r) {
                request_refuse(c, request, ST_EXHAUSTED, "no memory");
                return;
        }
        r->known = true;
        r->started_ms = r->counted_ms = c->io.wall_ms(c->io.arg);
        if (!take_settings(c, request, q, r) || !take_nodes(c, request, q, r)) {
                rollout_free(r);
                return;
        }
        r->id = c->n_rollouts ? c->rollouts[c->n_rollouts - 1]->id + 1 : 1;
        make_room(c);
        if (q->name[0])
                core_text(r->name, sizeof(r->name), q->name);
        else
                snprintf(r->name, sizeof(r->name), "rollout-%" PRIu64, r->id);
        core_text(r->user, sizeof(r->user), who->user);
        if (rollout_add(c, r) < 0) {
                request_refuse(c, request, ST_EXHAUSTED, "no memory");
                rollout_free(r);
                return;
        }
        rollout_begin(c, r);
        rollout_look(c);
        answer(c, request, r);
}
