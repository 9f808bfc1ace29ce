/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tests of a node: asked for by a client, or before it gets its first rank of a boot (--test-nodes).  What a part of it came to is kept with the node and acted on as a check's word is: arithmetic that
 * is wrong evicts at once.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "daemon/core/health.h"
#include "daemon/core/request_private.h"
#include "proto/message.h"

/* Thresholds. */
#define TEST_MS 120000u

static void ask(struct controller *c, struct node *n, uint64_t relay) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__NodeTestRequest t = FP8CTL__V1__NODE_TEST_REQUEST__INIT;

        t.request = relay;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_NODE_TEST_REQUEST;
        m.node_test_request = &t;
        node_send(c, n, &m);
}

uint64_t node_test_ask(struct controller *c, struct node *n) {
        uint64_t relay = n->session && health_get(n) ? c->next_relay++ : 0;

        if (relay)
                ask(c, n, relay);
        return relay;
}

void node_test_begin(struct controller *c, struct node *n) {
        struct node_health *h = n->health;

        h->untested = true;
        h->test_relay = c->next_relay++;
        h->test_deadline = core_now(c) + TEST_MS * NSEC_PER_MSEC;
        ask(c, n, h->test_relay);
}

void node_test_request(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const char *name = ((const Fp8ctl__V1__TestNodeRequest *)m)->name;
        struct node *n = node_find(c, name);
        struct pending *p;

        if (!who->admin) {
                request_refuse(c, request, ST_DENIED, "only administrators test nodes");
                return;
        }
        if (!n) {
                request_refuse(c, request, ST_NOT_FOUND, "node '%.128s' is not known", name ? name : "");
                return;
        }
        if (!n->session || !health_get(n)) {
                request_refuse(c, request, ST_UNAVAILABLE, "node %s is not connected", n->name);
                return;
        }
        p = pending_add(c, PENDING_TEST, request, TEST_MS, who);
        if (!p)
                return;
        p->node = n;
        p->relay = c->next_relay++;
        ask(c, n, p->relay);
}

static void clean(char *s, size_t max) {
        if (s && s[0]) /* the empty one is protobuf's own */
                core_text(s, strlen(s) < max ? strlen(s) + 1 : max, s);
}

/* A copy that can be kept and shown. NULL: not sound, or no memory. */
static Fp8ctl__V1__NodeTest *take(const struct controller *c, const Fp8ctl__V1__NodeTest *m) {
        Fp8ctl__V1__NodeTest *t;

        if (!m || m->n_parts > HEALTH_TEST_PARTS_MAX)
                return NULL;
        t = (Fp8ctl__V1__NodeTest *)message_copy(&m->base);
        if (!t)
                return NULL;
        t->unix_ms = c->io.wall_ms(c->io.arg);
        t->pairs = false;
        t->passed = !t->error || !t->error[0];
        clean(t->error, HEALTH_TEXT_LEN);
        for (size_t i = 0; i < t->n_parts; i++) {
                clean(t->parts[i]->name, HEALTH_NAME_LEN);
                clean(t->parts[i]->verdict, HEALTH_NAME_LEN);
                clean(t->parts[i]->unit, HEALTH_NAME_LEN);
                clean(t->parts[i]->text, HEALTH_TEXT_LEN);
                t->passed = t->passed && health_verdict_parse(t->parts[i]->verdict) < HEALTH_DRAIN;
        }
        return t;
}

static size_t own_tests(const struct node_health *h) {
        size_t n = 0;

        for (size_t i = 0; i < h->n_tests; i++)
                n += !h->tests[i]->pairs;
        return n;
}

bool node_tested(const struct node_health *h) {
        return own_tests(h) > 0;
}

/* For a new one the oldest goes, but for the last of the node's own. */
static void keep(struct node_health *h, Fp8ctl__V1__NodeTest *t) {
        if (h->n_tests == HEALTH_TESTS_MAX) {
                size_t oldest = h->tests[0]->pairs || own_tests(h) > 1 || !t->pairs ? 0 : 1;

                fp8ctl__v1__node_test__free_unpacked(h->tests[oldest], NULL);
                h->n_tests--;
                memmove(h->tests + oldest, h->tests + oldest + 1, (h->n_tests - oldest) * sizeof(h->tests[0]));
        }
        h->tests[h->n_tests++] = t;
}

/* Keeps it from ranks when a part says so: why. */
static bool fail(struct controller *c, struct node *n, const Fp8ctl__V1__NodeTest *t, char *why, size_t size) {
        const Fp8ctl__V1__NodeTestPart *worst = NULL;
        int verdict = HEALTH_OK;

        for (size_t i = 0; i < t->n_parts; i++) {
                int v = health_verdict_parse(t->parts[i]->verdict);

                if (v > verdict && v != HEALTH_ABSENT) {
                        verdict = v;
                        worst = t->parts[i];
                }
        }
        if (verdict < HEALTH_DRAIN)
                return false;
        snprintf(why, size, "test %.40s%s: %.160s", worst->name, worst->device >= 0 ? " of a device" : "", worst->text);
        event_add(c, &(struct event_of){ .node = n, .rank = -1, .severity = "error", .ms = t->ms }, "node_test_failed", "%s: %s", n->name, why);
        health_take(c, n, (enum health_verdict)verdict, HOLD_ADMIN, why);
        return true;
}

/* why: of a test that was not passed. */
static void judge(struct controller *c, struct node *n, const Fp8ctl__V1__NodeTest *t, char *why, size_t size) {
        if (fail(c, n, t, why, size))
                return;
        if (!t->passed) {
                snprintf(why, size, "it could not be tested: %.200s", t->error);
                event_add(c, &(struct event_of){ .node = n, .rank = -1, .severity = "warning", .ms = t->ms }, "node_test_failed", "%s could not be tested: %s", n->name, t->error);
                return;
        }
        event_add(c, &(struct event_of){ .node = n, .rank = -1, .ms = t->ms }, "node_tested", "%s passed its test: %zu parts in %.1f s", n->name, t->n_parts, t->ms / 1e3);
        if (n->health->untested)
                c->schedule_wanted = true;
        n->health->untested = false;
}

void node_test_pairs(struct controller *c, struct node *n, const Fp8ctl__V1__NodeTest *m) {
        struct node_health *h = health_get(n);
        Fp8ctl__V1__NodeTest *t = h ? take(c, m) : NULL;
        char why[HEALTH_TEXT_LEN];

        if (!t)
                return;
        t->pairs = true;
        keep(h, t);
        (void)fail(c, n, t, why, sizeof(why));
        record_put_node(c, n);
}

void node_test_reply(struct controller *c, struct session *s, const Fp8ctl__V1__NodeTestReply *m) {
        struct node *n = s->node;
        struct node_health *h = n->health;
        Fp8ctl__V1__NodeTest *t;
        struct pending *p = c->pending;
        bool rollout = rollout_tests(n, m->request);
        char why[HEALTH_TEXT_LEN] = "its test found no answer";

        while (p && !(p->kind == PENDING_TEST && p->node == n && p->relay == m->request))
                p = p->next;
        if (!h || (!p && !rollout && (!m->request || m->request != h->test_relay))) {
                core_drop(c, DROP_MALFORMED, "node_test_reply");
                return;
        }
        t = take(c, m->test);
        if (m->request == h->test_relay)
                h->test_relay = h->test_deadline = 0;
        if (!t) {
                core_drop(c, DROP_MALFORMED, "node_test_reply");
                return;
        }
        keep(h, t);
        judge(c, n, t, why, sizeof(why));
        record_put_node(c, n);
        if (rollout)
                rollout_tested(c, n, t->passed, why);
        if (p) {
                request_answer(c, p->request, &t->base);
                pending_remove(c, p);
        }
}
