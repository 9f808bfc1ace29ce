/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pairs of nodes measure what is between them, round after round: in each a node has one partner, so that no figure is another's fault.  Of a pair one is told to listen; when it has said where, the other is sent there,
 * and answers with the figures.  Who does not answer within the round's time is a figure too: it was not to be had.  What is slow is told and no more: networks are judged by their checks.  Wrong sums are arithmetic or memory
 * that cannot be trusted, so a node that is in most of its wrong pairs is evicted as by its own test.
 */
#include "daemon/core/node_pairs.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/text.h"
#include "daemon/core/health.h"
#include "daemon/core/pair_plan.h"
#include "daemon/core/request_private.h"

enum { PAIR_NODES_MAX = 1024, PAIR_NAMES_TOLD = 8, PAIR_WRONG_TOLD = 3 };

#define ROUND_MS 8000u
#define SUMS_MS 25000u /* devices and their libraries take seconds to begin */
#define TRANSFER_BYTES (UINT64_C(32) << 20)
#define MEASURE_MS 300u

struct measured {
        uint64_t relay; /* 0: it is over */
        uint32_t round;
        double latency_us;
        bool rdma, connecting, wrong;
        char by[32], error[200];
};

struct pairs {
        struct node **nodes;
        int n, rounds, round; /* rounds begun */
        struct pair_figure *figures;
        struct measured *of;  /* each figure's */
        size_t n_figures, waiting;
        uint8_t key[32];
        bool all_reduce;
        double least;
        uint64_t began;
        Fp8ctl__V1__PairFigure *messages, **list;
        char **names, **wrong_names;
};

struct pairs *node_pairs_free(struct pairs *k) {
        if (k) {
                free(k->nodes);
                free(k->figures);
                free(k->of);
                free(k->messages);
                free(k->list);
                free(k->names);
                free(k->wrong_names);
        }
        free(k);
        return NULL;
}

static void node_pairs_freep(struct pairs **k) {
        node_pairs_free(*k);
}

static int make(struct pairs *k) {
        size_t most = (size_t)k->rounds * (size_t)(k->n / 2) + 1;

        k->figures = calloc(most, sizeof(*k->figures));
        k->of = calloc(most, sizeof(*k->of));
        k->messages = calloc(most, sizeof(*k->messages));
        k->list = calloc(most, sizeof(*k->list));
        k->names = calloc((size_t)k->n + 1, sizeof(*k->names));
        k->wrong_names = calloc((size_t)k->n + 1, sizeof(*k->wrong_names));
        return k->figures && k->of && k->messages && k->list && k->names && k->wrong_names ? 0 : -ENOMEM;
}

/* ------------------------------------------------------------------ asking */
static void ask(struct controller *c, const struct pairs *k, size_t i, const struct node *n, const char *endpoint) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__NodePairRequest q = FP8CTL__V1__NODE_PAIR_REQUEST__INIT;

        q.request = k->of[i].relay;
        q.key.data = (uint8_t *)k->key;
        q.key.len = sizeof(k->key);
        q.endpoint = (char *)endpoint;
        q.bytes = TRANSFER_BYTES;
        q.ms = MEASURE_MS;
        q.all_reduce = k->all_reduce;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_NODE_PAIR_REQUEST;
        m.node_pair_request = &q;
        node_send(c, n, &m);
}

static void over(struct pairs *k, size_t i, const char *error) {
        if (!k->of[i].relay)
                return;
        k->of[i].relay = 0;
        k->waiting--;
        core_text(k->of[i].error, sizeof(k->of[i].error), error);
        if (error)
                k->figures[i].gbs = NAN;
}

static uint32_t round_ms(const struct pairs *k) {
        return k->all_reduce ? SUMS_MS : ROUND_MS;
}

static void begin_round(struct controller *c, struct pending *p) {
        struct pairs *k = p->pairs;
        int pairs = pair_round(k->n, k->round, k->figures + k->n_figures);

        for (size_t i = k->n_figures; i < k->n_figures + (size_t)pairs; i++) {
                k->of[i] = (struct measured){ .relay = c->next_relay++, .round = (uint32_t)k->round };
                k->waiting++;
        }
        k->n_figures += (size_t)pairs;
        k->round++;
        p->deadline = core_now(c) + round_ms(k) * NSEC_PER_MSEC;
        for (size_t i = k->n_figures - (size_t)pairs; i < k->n_figures; i++) {
                const struct node *a = k->nodes[k->figures[i].a], *b = k->nodes[k->figures[i].b];

                if (a->session && b->session)
                        ask(c, k, i, a, "");
                else
                        over(k, i, "one of them is not connected");
        }
}

/* ------------------------------------------------------------------ telling */
static void tell(struct controller *c, const struct pairs *k, const Fp8ctl__V1__PairTest *t) {
        char text[TEXT_MAX_LEN] = "";
        size_t len = 0, wrong = 0;

        for (size_t i = 0; i < t->n_pairs; i++)
                if (t->pairs[i]->wrong && wrong++ < PAIR_WRONG_TOLD)
                        len += (size_t)snprintf(text + len, sizeof(text) - len, "%s%.32s and %.32s", wrong > 1 ? "; " : "", t->pairs[i]->a, t->pairs[i]->b);
        if (wrong) {
                event_add(c, &(struct event_of){ .rank = -1, .severity = "error", .ms = t->ms }, "node_pairs", "%d nodes in pairs, %" PRIu32 " rounds: wrong sums between %s%s", k->n, t->rounds, text, wrong > PAIR_WRONG_TOLD ? "; ..." : "");
                return;
        }
        for (size_t i = 0; i < t->n_slow_nodes && i < PAIR_NAMES_TOLD; i++)
                len += (size_t)snprintf(text + len, sizeof(text) - len, "%s%.32s", i ? ", " : "", t->slow_nodes[i]);
        if (t->n_slow_nodes)
                event_add(c, &(struct event_of){ .rank = -1, .severity = "warning", .ms = t->ms }, "node_pairs", "%d nodes in pairs, %" PRIu32 " rounds: slow with more than half of the others: %s%s", k->n, t->rounds, text,
                          t->n_slow_nodes > PAIR_NAMES_TOLD ? ", ..." : "");
        else
                event_add(c, &(struct event_of){ .rank = -1, .severity = t->slow_links ? "warning" : NULL, .ms = t->ms }, "node_pairs", "%d nodes in pairs, %" PRIu32 " rounds: %" PRIu32 " slow link%s, %.3g GB/s is usual", k->n, t->rounds,
                          t->slow_links, text_s(t->slow_links), t->usual_gbs);
}

static void fill(const struct pairs *k, size_t i) {
        const struct pair_figure *f = &k->figures[i];
        Fp8ctl__V1__PairFigure *m = &k->messages[i];

        fp8ctl__v1__pair_figure__init(m);
        m->a = k->nodes[f->a]->name;
        m->b = k->nodes[f->b]->name;
        m->round = k->of[i].round;
        m->gbs = f->gbs;
        m->latency_us = k->of[i].latency_us;
        m->rdma = k->of[i].rdma;
        m->slow = f->slow;
        m->error = (char *)k->of[i].error;
        m->wrong = k->of[i].wrong;
        m->by = (char *)k->of[i].by;
        k->list[i] = m;
}

/* Whose sums are wrong with most of the others. */
static void name_wrong(const struct pairs *k, Fp8ctl__V1__PairTest *t, bool *bad) {
        _cleanup_free_ struct pair_figure *f = malloc((k->n_figures + 1) * sizeof(*f));

        for (size_t i = 0; f && i < k->n_figures; i++) {
                f[i] = k->figures[i];
                f[i].slow = k->of[i].wrong;
        }
        if (!f || !pair_name(f, k->n_figures, k->n, bad))
                return;
        for (int i = 0; i < k->n; i++)
                if (bad[i])
                        k->wrong_names[t->n_wrong_nodes++] = k->nodes[i]->name;
}

/* In the node's own history: a part for each partner. */
static void keep(struct controller *c, const struct pairs *k, const Fp8ctl__V1__PairTest *t, int node, bool evict) {
        Fp8ctl__V1__NodeTest m = FP8CTL__V1__NODE_TEST__INIT;
        _cleanup_free_ Fp8ctl__V1__NodeTestPart *parts = calloc(HEALTH_TEST_PARTS_MAX, sizeof(*parts)), **list = calloc(HEALTH_TEST_PARTS_MAX, sizeof(*list));
        _cleanup_free_ char *texts = malloc(HEALTH_TEST_PARTS_MAX * HEALTH_TEXT_LEN);

        if (!parts || !list || !texts)
                return;
        m.ms = t->ms;
        for (size_t i = 0; i < k->n_figures && m.n_parts < HEALTH_TEST_PARTS_MAX; i++) {
                const struct pair_figure *f = &k->figures[i];
                const struct measured *o = &k->of[i];
                Fp8ctl__V1__NodeTestPart *p = &parts[m.n_parts];
                char *text = texts + m.n_parts * HEALTH_TEXT_LEN;

                if (f->a != node && f->b != node)
                        continue;
                fp8ctl__v1__node_test_part__init(p);
                snprintf(text, HEALTH_TEXT_LEN, "with %.48s%s%s%s%.140s", k->nodes[f->a == node ? f->b : f->a]->name, o->by[0] ? " by " : "", o->by, o->error[0] ? ": " : "", o->error);
                p->name = (char *)(k->all_reduce ? "all-reduce" : o->rdma ? "transfer-rdma" : "transfer-tcp");
                p->device = -1;
                p->verdict = (char *)(o->wrong && evict ? "evict" : f->slow ? "warn" : "ok");
                p->value = f->gbs;
                p->unit = (char *)"GB/s";
                p->text = text;
                list[m.n_parts++] = p;
                if (o->wrong)
                        m.error = (char *)"wrong sums with another node";
        }
        m.parts = list;
        node_test_pairs(c, k->nodes[node], &m);
}

static void answer(struct controller *c, struct pending *p) {
        struct pairs *k = p->pairs;
        Fp8ctl__V1__PairTest t = FP8CTL__V1__PAIR_TEST__INIT;
        _cleanup_free_ bool *bad = calloc((size_t)k->n + 1, sizeof(*bad));

        if (!bad) {
                request_refuse(c, p->request, ST_EXHAUSTED, "no memory");
                pending_remove(c, p);
                return;
        }
        t.usual_gbs = pair_judge(k->figures, k->n_figures, k->n, k->least, bad);
        for (size_t i = 0; i < k->n_figures; i++) {
                fill(k, i);
                t.slow_links += k->figures[i].slow && !bad[k->figures[i].a] && !bad[k->figures[i].b];
        }
        for (int i = 0; i < k->n; i++)
                if (bad[i])
                        k->names[t.n_slow_nodes++] = k->nodes[i]->name;
        name_wrong(k, &t, bad);
        t.all_reduce = k->all_reduce;
        t.wrong_nodes = k->wrong_names;
        t.unix_ms = c->io.wall_ms(c->io.arg);
        t.ms = (double)(core_now(c) - k->began) / 1e6;
        t.rounds = (uint32_t)k->rounds;
        t.pairs = k->list;
        t.n_pairs = k->n_figures;
        t.slow_nodes = k->names;
        tell(c, k, &t);
        for (int i = 0; i < k->n; i++)
                keep(c, k, &t, i, bad[i]);
        request_answer(c, p->request, &t.base);
        pending_remove(c, p);
}

static void go_on(struct controller *c, struct pending *p) {
        while (p->pairs->waiting == 0 && p->pairs->round < p->pairs->rounds)
                begin_round(c, p);
        if (p->pairs->waiting == 0)
                answer(c, p);
}

void node_pairs_late(struct controller *c, struct pending *p) {
        for (size_t i = 0; i < p->pairs->n_figures; i++)
                over(p->pairs, i, p->pairs->of[i].connecting ? "the second did not answer in time" : "the first did not answer in time");
        go_on(c, p);
}

void node_pairs_gone(struct controller *c, struct pending *p, const struct node *n) {
        struct pairs *k = p->pairs;

        for (size_t i = 0; i < k->n_figures; i++)
                if (k->nodes[k->figures[i].a] == n || k->nodes[k->figures[i].b] == n)
                        over(k, i, "one of them went away");
        go_on(c, p);
}

/* ------------------------------------------------------------------ what is asked for, and said */
static int choose(struct controller *c, uint64_t request, const Fp8ctl__V1__TestPairsRequest *q, struct pairs *k) {
        if (q->n_names < 2 || q->n_names > PAIR_NODES_MAX) {
                request_refuse(c, request, ST_INVALID, "found %zu nodes, expected 2 to %d", q->n_names, PAIR_NODES_MAX);
                return -EINVAL;
        }
        k->nodes = calloc(q->n_names, sizeof(*k->nodes));
        if (!k->nodes) {
                request_refuse(c, request, ST_EXHAUSTED, "no memory");
                return -ENOMEM;
        }
        for (size_t i = 0; i < q->n_names; i++) {
                struct node *n = node_find(c, q->names[i]);

                for (int s = 0; n && s < k->n; s++)
                        if (k->nodes[s] == n) {
                                request_refuse(c, request, ST_INVALID, "node %s was given twice", n->name);
                                return -EINVAL;
                        }
                if (!n) {
                        request_refuse(c, request, ST_NOT_FOUND, "node '%.128s' is not known", q->names[i] ? q->names[i] : "");
                        return -ENOENT;
                }
                if (!n->session) {
                        request_refuse(c, request, ST_PRECONDITION, "node %s is not connected", n->name);
                        return -ENOTCONN;
                }
                k->nodes[k->n++] = n;
        }
        return 0;
}

void node_pairs_request(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const Fp8ctl__V1__TestPairsRequest *q = (const Fp8ctl__V1__TestPairsRequest *)m;
        _cleanup_(node_pairs_freep) struct pairs *k = calloc(1, sizeof(*k));
        struct pending *p;

        if (!who->admin) {
                request_refuse(c, request, ST_DENIED, "only administrators test nodes");
                return;
        }
        if (!k) {
                request_refuse(c, request, ST_EXHAUSTED, "no memory");
                return;
        }
        if (choose(c, request, q, k) < 0)
                return;
        k->rounds = pair_rounds(k->n, q->all);
        k->all_reduce = q->all_reduce;
        k->least = isfinite(q->at_least) ? q->at_least : 0;
        k->began = core_now(c);
        c->io.random(c->io.arg, k->key, sizeof(k->key));
        if (make(k) < 0) {
                request_refuse(c, request, ST_EXHAUSTED, "no memory");
                return;
        }
        p = pending_add(c, PENDING_PAIRS, request, round_ms(k), who);
        if (!p)
                return;
        p->pairs = STEAL_PTR(k);
        go_on(c, p);
}

void node_pair_reply(struct controller *c, struct session *s, const Fp8ctl__V1__NodePairReply *m) {
        struct pairs *k = NULL;
        struct pending *p;
        size_t i = 0;

        for (p = c->pending; p && !k; p = k ? p : p->next) {
                if (p->kind != PENDING_PAIRS || !m->request)
                        continue;
                for (i = 0; i < p->pairs->n_figures && p->pairs->of[i].relay != m->request; i++)
                        ;
                k = i < p->pairs->n_figures ? p->pairs : NULL;
        }
        if (!k || s->node != k->nodes[k->of[i].connecting ? k->figures[i].b : k->figures[i].a]) {
                if (!k)
                        core_drop(c, DROP_MALFORMED, "node_pair_reply"); /* or one that comes late */
                return;
        }
        if (m->error && m->error[0]) {
                k->of[i].wrong = k->all_reduce && m->wrong;
                over(k, i, m->error);
        } else if (!k->of[i].connecting) {
                k->of[i].connecting = true;
                ask(c, k, i, k->nodes[k->figures[i].b], m->endpoint);
                return;
        } else {
                k->figures[i].gbs = isfinite(m->gbs) && m->gbs > 0 ? m->gbs : NAN;
                k->of[i].latency_us = isfinite(m->latency_us) && m->latency_us >= 0 ? m->latency_us : 0;
                k->of[i].rdma = m->rdma;
                core_text(k->of[i].by, sizeof(k->of[i].by), m->by);
                over(k, i, k->all_reduce && !k->of[i].by[0] ? "its worker is too old for this test" : NULL);
        }
        go_on(c, p);
}
