/* SPDX-License-Identifier: Apache-2.0 */
/* Rounds of pairs: who meets whom, what figures say of nodes and links, and the way through the controller when somebody does not answer, goes away, or says nonsense. */
#include <math.h>
#include <stdlib.h>

#include "daemon/core/health.h"
#include "daemon/core/pair_plan.h"
#include "tests/test.h"
#include "tests/unit/core_world.h"

#define TOLD(x) FP8CTL__V1__CONTROLLER_MESSAGE__BODY_##x

enum { MOST = 40 };

/* ------------------------------------------------------------------ the plan */
TEST(in_each_round_everybody_has_one_partner_and_never_the_same_again) {
        for (int n = 2; n <= MOST; n++) {
                int met[MOST][MOST] = { { 0 } }, all = pair_rounds(n, true);

                CU_ASSERT_EQUAL(all, n % 2 ? n : n - 1);
                for (int round = 0; round < all; round++) {
                        struct pair_figure f[MOST / 2];
                        int k = pair_round(n, round, f), busy[MOST] = { 0 };

                        CU_ASSERT_EQUAL_FATAL(k, n / 2);
                        for (int i = 0; i < k; i++) {
                                CU_ASSERT_FATAL(f[i].a >= 0 && f[i].a < f[i].b && f[i].b < n);
                                CU_ASSERT(busy[f[i].a]++ == 0 && busy[f[i].b]++ == 0);
                                met[f[i].a][f[i].b]++;
                        }
                }
                for (int a = 0; a < n; a++)
                        for (int b = a + 1; b < n; b++)
                                CU_ASSERT_EQUAL(met[a][b], 1);
        }
        CU_ASSERT_EQUAL(pair_rounds(1, true), 0);
        CU_ASSERT_EQUAL(pair_rounds(2, false), 1);
        CU_ASSERT_EQUAL(pair_rounds(8, false), 3);
        CU_ASSERT_EQUAL(pair_rounds(9, false), 4);
        CU_ASSERT_EQUAL(pair_rounds(1024, false), 10);
}

/* All rounds of n nodes; a pair with `bad` has a part of the speed, the pair (x, y) too; 0: not to be had. */
static size_t figures(int n, bool all, int bad, int x, int y, double part, struct pair_figure *ret) {
        size_t k = 0;

        for (int round = 0; round < pair_rounds(n, all); round++)
                k += (size_t)pair_round(n, round, ret + k);
        for (size_t i = 0; i < k; i++) {
                bool hit = ret[i].a == bad || ret[i].b == bad || (ret[i].a == x && ret[i].b == y);

                ret[i].gbs = 10 + 0.03 * (double)(i * 7 % 11); /* noise of 3 % */
                if (hit)
                        ret[i].gbs = part > 0 ? ret[i].gbs * part : NAN;
        }
        return k;
}

TEST(a_bad_node_is_named_and_a_bad_link_is_no_node) {
        static struct pair_figure f[MOST * MOST];
        const double parts[] = { 0.7, 0.1, 0 };
        bool bad[MOST];

        for (int n = 3; n <= MOST; n++)
                for (int all = 0; all < 2; all++)
                        for (size_t p = 0; p < sizeof(parts) / sizeof(parts[0]); p++) {
                                size_t k = figures(n, all, n / 2, -1, -1, parts[p], f);
                                double usual = pair_judge(f, k, n, 0, bad);

                                CU_ASSERT(usual > 9.9 && usual < 10.5);
                                for (int i = 0; i < n; i++)
                                        CU_ASSERT_EQUAL(bad[i], i == n / 2);
                                for (size_t i = 0; i < k; i++)
                                        CU_ASSERT_EQUAL(f[i].slow, f[i].a == n / 2 || f[i].b == n / 2);
                        }
        for (int n = 4; n <= MOST; n++) {
                size_t slow = 0, k = figures(n, true, -1, 0, 2, 0.2, f);

                pair_judge(f, k, n, 0, bad);
                for (int i = 0; i < n; i++)
                        CU_ASSERT_FALSE(bad[i]);
                for (size_t i = 0; i < k; i++)
                        slow += f[i].slow;
                CU_ASSERT_EQUAL(slow, 1);
        }
}

TEST(noise_names_nobody_and_two_alone_accuse_each_other) {
        struct pair_figure f[MOST * MOST] = { 0 };
        bool bad[MOST];
        size_t k = figures(8, true, -1, -1, -1, 1, f);

        pair_judge(f, k, 8, 0, bad);
        for (size_t i = 0; i < k; i++)
                CU_ASSERT_FALSE(f[i].slow);
        /* However much the others differ, a tenth is slow; and what the bad one spoils does not make another bad. */
        k = figures(4, true, 2, -1, -1, 0.1, f);
        for (size_t i = 0; i < k; i++)
                if (f[i].a == 0 && f[i].b == 1)
                        f[i].gbs = 3;
                else if (f[i].a != 2 && f[i].b != 2)
                        f[i].gbs = f[i].a == 1 ? 6 : 15;
        pair_judge(f, k, 4, 0, bad);
        CU_ASSERT(bad[2] && !bad[0] && !bad[1] && !bad[3]);
        k = figures(8, true, -1, -1, -1, 1, f);
        /* A cluster whose links differ by a third has that for usual. */
        for (size_t i = 0; i < k; i++)
                f[i].gbs = f[i].a % 2 && f[i].b % 2 ? 10 : 7;
        pair_judge(f, k, 8, 0, bad);
        for (int i = 0; i < 8; i++)
                CU_ASSERT_FALSE(bad[i]);
        /* Unless more is asked for: then those that have it are well. */
        pair_judge(f, k, 8, 9, bad);
        for (size_t i = 0; i < k; i++)
                CU_ASSERT_EQUAL(f[i].slow, f[i].gbs < 9);
        CU_ASSERT_TRUE(bad[0] && bad[2] && bad[4] && bad[6] && !bad[1] && !bad[3] && !bad[5] && !bad[7]);
        k = figures(2, true, 1, -1, -1, 0, f);
        CU_ASSERT_EQUAL(pair_judge(f, k, 2, 0, bad), 0);
        CU_ASSERT_TRUE(f[0].slow);
        CU_ASSERT_FALSE(bad[0] || bad[1]);
}

/* ------------------------------------------------------------------ through the controller */
static void ask(struct world *w, uint64_t request, const struct caller *who, size_t n, char **names) {
        Fp8ctl__V1__TestPairsRequest q = FP8CTL__V1__TEST_PAIRS_REQUEST__INIT;

        q.names = names;
        q.n_names = n;
        q.all = true;
        w->replies = 0;
        controller_request(w->c, request, REQ_TEST_PAIRS, &q.base, who);
}

static void reply(struct world *w, uint64_t session, uint64_t request, const char *endpoint, double gbs, const char *error) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__NodePairReply r = FP8CTL__V1__NODE_PAIR_REPLY__INIT;

        r.request = request;
        r.endpoint = (char *)endpoint;
        r.gbs = gbs;
        r.latency_us = 20;
        r.error = (char *)error;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_NODE_PAIR_REPLY;
        m.node_pair_reply = &r;
        controller_worker_message(w->c, session, &m);
}

/* Workers answer what they were asked since `from`, but for the one of the silent session; that of `bad` is slow. */
static size_t answer(struct world *w, size_t from, uint64_t silent, uint64_t bad) {
        size_t i = from;

        for (; i < w->n_sent; i++) {
                const Fp8ctl__V1__NodePairRequest *q = w->sent[i].m->body_case == TOLD(NODE_PAIR_REQUEST) ? w->sent[i].m->node_pair_request : NULL;
                char where[64];
                bool slow;

                if (!q || w->sent[i].session == silent)
                        continue;
                CU_ASSERT_EQUAL(q->key.len, 32);
                snprintf(where, sizeof(where), "tcp:node%d:1", (int)w->sent[i].session);
                slow = w->sent[i].session == bad || (bad && q->endpoint[0] && q->endpoint[8] == '0' + (char)bad);
                reply(w, w->sent[i].session, q->request, q->endpoint[0] ? "" : where, q->endpoint[0] ? (slow ? 2 : 10) : 0, "");
        }
        return i;
}

static Fp8ctl__V1__PairTest *result(struct world *w) {
        CU_ASSERT_EQUAL_FATAL(w->replies, 1);
        CU_ASSERT_EQUAL_FATAL(w->status, 0);
        return fp8ctl__v1__pair_test__unpack(NULL, w->reply_len, w->reply);
}

static void four_nodes(struct world *w) {
        world_start(w, false);
        for (uint64_t s = 1; s <= 4; s++)
                world_attach(w, s, (char[2]){ (char)('a' + s - 1), 0 });
}

static char *names[] = { (char *)"a", (char *)"b", (char *)"c", (char *)"d", (char *)"a", (char *)"x" };

TEST(rounds_go_one_after_the_other_and_the_slow_node_is_told) {
        struct world w;
        Fp8ctl__V1__PairTest *t;
        char buf[300];
        size_t before;

        four_nodes(&w);
        before = w.n_sent;
        ask(&w, 7, &world_admin, 4, names);
        CU_ASSERT_EQUAL(world_told(&w, before, TOLD(NODE_PAIR_REQUEST), 0, 0), 2); /* those that listen; the other rounds wait */
        answer(&w, before, 0, 3);
        t = result(&w);
        CU_ASSERT_EQUAL(t->rounds, 3);
        CU_ASSERT_EQUAL(t->n_pairs, 6);
        CU_ASSERT_EQUAL_FATAL(t->n_slow_nodes, 1);
        CU_ASSERT_STRING_EQUAL(t->slow_nodes[0], "c");
        CU_ASSERT_EQUAL(t->slow_links, 0);
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "node_pairs", buf, sizeof(buf)), "slow with more than half of the others: c"));
        fp8ctl__v1__pair_test__free_unpacked(t, NULL);
        world_stop(&w);
}

TEST(who_does_not_answer_or_goes_away_was_not_to_be_had) {
        struct world w;
        Fp8ctl__V1__PairTest *t;
        size_t at;

        four_nodes(&w);
        at = w.n_sent;
        ask(&w, 7, &world_admin, 4, names);
        for (int round = 0; round < 3; round++) {
                at = answer(&w, at, 4, 0);
                CU_ASSERT_EQUAL(w.replies, 0);
                world_pass(&w, 9000);
        }
        t = result(&w);
        CU_ASSERT_EQUAL_FATAL(t->n_slow_nodes, 1);
        CU_ASSERT_STRING_EQUAL(t->slow_nodes[0], "d");
        for (size_t i = 0; i < t->n_pairs; i++)
                CU_ASSERT_EQUAL(isnan(t->pairs[i]->gbs) && t->pairs[i]->error[0], strcmp(t->pairs[i]->a, "d") == 0 || strcmp(t->pairs[i]->b, "d") == 0);
        fp8ctl__v1__pair_test__free_unpacked(t, NULL);
        world_stop(&w);

        four_nodes(&w);
        at = w.n_sent;
        ask(&w, 7, &world_admin, 4, names);
        controller_worker_closed(w.c, 4); /* at once, in all rounds */
        answer(&w, at, 4, 0);
        t = result(&w);
        CU_ASSERT_EQUAL(t->n_slow_nodes, 1);
        fp8ctl__v1__pair_test__free_unpacked(t, NULL);
        world_stop(&w);
}

TEST(what_is_asked_or_said_wrongly_does_no_harm) {
        struct world w;
        Fp8ctl__V1__PairTest *t;
        size_t at;

        four_nodes(&w);
        ask(&w, 7, &world_ben, 2, names);
        CU_ASSERT_EQUAL(w.status, 7);
        ask(&w, 7, &world_admin, 1, names);
        CU_ASSERT_EQUAL(w.status, 3);
        ask(&w, 7, &world_admin, 5, names); /* one twice */
        CU_ASSERT_EQUAL(w.status, 3);
        ask(&w, 7, &world_admin, 1, names + 5);
        CU_ASSERT_EQUAL(w.status, 3);
        ask(&w, 7, &world_admin, 2, names + 4);
        CU_ASSERT_EQUAL(w.status, 5);
        at = w.n_sent;
        ask(&w, 7, &world_admin, 2, names);
        for (uint64_t request = 0; request < 1000; request++)
                reply(&w, 3, request, "tcp:evil:1", 1, ""); /* not of the pair */
        CU_ASSERT_EQUAL(w.replies, 0);
        CU_ASSERT_EQUAL(world_told(&w, at, TOLD(NODE_PAIR_REQUEST), 0, 0), 1);
        for (size_t i = at; i < w.n_sent; i++) {
                const Fp8ctl__V1__NodePairRequest *q = w.sent[i].m->body_case == TOLD(NODE_PAIR_REQUEST) ? w.sent[i].m->node_pair_request : NULL;

                if (q)
                        reply(&w, w.sent[i].session, q->request, q->endpoint[0] ? "" : "tcp:a:1", -INFINITY, "");
        }
        t = result(&w);
        CU_ASSERT(isnan(t->pairs[0]->gbs));
        fp8ctl__v1__pair_test__free_unpacked(t, NULL);
        at = w.n_sent;
        ask(&w, 9, &world_admin, 4, names);
        controller_request_gone(w.c, 9); /* the client has left; what comes late is dropped */
        answer(&w, at, 0, 0);
        CU_ASSERT_EQUAL(w.replies, 0);
        world_stop(&w);
}

/* ------------------------------------------------------------------ sums */
/* As answer(), for sums: those of `bad`, and those between x and y, are wrong. by: what made them. */
static void add_up(struct world *w, size_t from, uint64_t bad, uint64_t x, uint64_t y, const char *by) {
        for (size_t i = from; i < w->n_sent; i++) {
                const Fp8ctl__V1__NodePairRequest *q = w->sent[i].m->body_case == TOLD(NODE_PAIR_REQUEST) ? w->sent[i].m->node_pair_request : NULL;
                Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
                Fp8ctl__V1__NodePairReply r = FP8CTL__V1__NODE_PAIR_REPLY__INIT;
                uint64_t here, there = 0;
                char where[64];

                if (!q)
                        continue;
                CU_ASSERT_TRUE(q->all_reduce);
                here = w->sent[i].session;
                snprintf(where, sizeof(where), "tcp:node%d:1", (int)here);
                r.request = q->request;
                r.endpoint = where;
                if (q->endpoint[0]) {
                        there = (uint64_t)(q->endpoint[8] - '0');
                        r.endpoint = (char *)"";
                        r.wrong = (bad && (here == bad || there == bad)) || (here + there == x + y && (here == x || here == y));
                        r.gbs = 10;
                        r.latency_us = 20;
                        r.by = (char *)by;
                        r.error = (char *)(r.wrong ? "wrong sums (1 and 1 numbers)" : "");
                }
                m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_NODE_PAIR_REPLY;
                m.node_pair_reply = &r;
                controller_worker_message(w->c, here, &m);
        }
}

static Fp8ctl__V1__PairTest *sums(struct world *w, uint64_t bad, uint64_t x, uint64_t y, const char *by) {
        Fp8ctl__V1__TestPairsRequest q = FP8CTL__V1__TEST_PAIRS_REQUEST__INIT;
        size_t at = w->n_sent;

        q.names = names;
        q.n_names = 4;
        q.all_reduce = true;
        w->replies = 0;
        controller_request(w->c, 7, REQ_TEST_PAIRS, &q.base, &world_admin);
        add_up(w, at, bad, x, y, by);
        return result(w);
}

static void newest_test(struct world *w, const char *name, bool passed, size_t evicting) {
        Fp8ctl__V1__Node *n = world_node(w, name);
        const Fp8ctl__V1__NodeTest *t;
        size_t k = 0;

        CU_ASSERT_PTR_NOT_NULL_FATAL(n);
        CU_ASSERT_FATAL(n->n_tests > 0);
        t = n->tests[n->n_tests - 1];
        CU_ASSERT_EQUAL(t->passed, passed);
        CU_ASSERT_EQUAL(t->n_parts, 3);
        for (size_t i = 0; i < t->n_parts; i++) {
                CU_ASSERT_STRING_EQUAL(t->parts[i]->name, "all-reduce");
                k += strcmp(t->parts[i]->verdict, "evict") == 0;
        }
        CU_ASSERT_EQUAL(k, evicting);
        CU_ASSERT_STRING_EQUAL(n->health, evicting ? "evict" : "ok");
        fp8ctl__v1__node__free_unpacked(n, NULL);
}

TEST(a_node_whose_sums_are_wrong_with_all_others_is_evicted) {
        struct world w;
        Fp8ctl__V1__PairTest *t;
        char buf[300];

        four_nodes(&w);
        t = sums(&w, 3, 0, 0, "sockets");
        CU_ASSERT_TRUE(t->all_reduce);
        CU_ASSERT_EQUAL_FATAL(t->n_wrong_nodes, 1);
        CU_ASSERT_STRING_EQUAL(t->wrong_nodes[0], "c");
        for (size_t i = 0; i < t->n_pairs; i++) {
                bool wrong = strcmp(t->pairs[i]->a, "c") == 0 || strcmp(t->pairs[i]->b, "c") == 0;

                CU_ASSERT_EQUAL(t->pairs[i]->wrong, wrong);
                CU_ASSERT_STRING_EQUAL(t->pairs[i]->by, wrong ? "" : "sockets");
        }
        fp8ctl__v1__pair_test__free_unpacked(t, NULL);
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "node_test_failed", buf, sizeof(buf)), "c: test all-reduce: with "));
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "node_pairs", buf, sizeof(buf)), "wrong sums between "));
        newest_test(&w, "c", false, 3);
        newest_test(&w, "a", false, 0);
        world_stop(&w);
}

TEST(a_pair_whose_sums_are_wrong_is_named_and_nobody_evicted) {
        struct world w;
        Fp8ctl__V1__PairTest *t;
        char buf[300];

        four_nodes(&w);
        t = sums(&w, 0, 1, 4, "sockets");
        CU_ASSERT_EQUAL(t->n_wrong_nodes, 0);
        CU_ASSERT_EQUAL(t->slow_links, 1);
        fp8ctl__v1__pair_test__free_unpacked(t, NULL);
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "node_pairs", buf, sizeof(buf)), "wrong sums between a and d"));
        newest_test(&w, "a", false, 0);
        newest_test(&w, "b", true, 0);
        newest_test(&w, "d", false, 0);
        t = sums(&w, 0, 0, 0, "nccl2.28.3");
        CU_ASSERT_EQUAL(t->slow_links, 0);
        CU_ASSERT_STRING_EQUAL(t->pairs[0]->by, "nccl2.28.3");
        fp8ctl__v1__pair_test__free_unpacked(t, NULL);
        newest_test(&w, "a", true, 0);
        t = sums(&w, 0, 0, 0, ""); /* an older worker measures something else */
        CU_ASSERT(isnan(t->pairs[0]->gbs));
        CU_ASSERT_STRING_EQUAL(t->pairs[0]->error, "its worker is too old for this test");
        fp8ctl__v1__pair_test__free_unpacked(t, NULL);
        world_stop(&w);
}

TEST(what_pairs_measured_is_no_test_of_the_node_itself) {
        struct controller_config config = { .lease_ttl_ms = 10000, .heartbeat_ms = 1000, .restart_budget_ms = 3000, .version = "test", .test_nodes = true };
        struct world w;
        Fp8ctl__V1__Node *n;
        Fp8ctl__V1__NodeTestReply r = FP8CTL__V1__NODE_TEST_REPLY__INIT;
        Fp8ctl__V1__NodeTest own = FP8CTL__V1__NODE_TEST__INIT;
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        size_t at;

        world_start_with(&w, &config);
        for (uint64_t s = 1; s <= 4; s++)
                world_attach(&w, s, (char[2]){ (char)('a' + s - 1), 0 });
        fp8ctl__v1__pair_test__free_unpacked(sums(&w, 0, 0, 0, "sockets"), NULL);
        controller_worker_closed(w.c, 1);
        at = w.n_sent;
        world_attach(&w, 5, "a"); /* its own test was lost with its stream */
        CU_ASSERT_EQUAL_FATAL(world_told(&w, at, TOLD(NODE_TEST_REQUEST), 0, 0), 1);
        for (size_t i = at; i < w.n_sent; i++)
                if (w.sent[i].m->body_case == TOLD(NODE_TEST_REQUEST))
                        r.request = w.sent[i].m->node_test_request->request;
        r.test = &own;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_NODE_TEST_REPLY;
        m.node_test_reply = &r;
        controller_worker_message(w.c, 5, &m);
        /* However often pairs are measured then, that it was tested is not forgotten. */
        for (int i = 0; i < 12; i++) {
                Fp8ctl__V1__NodeTest of_pairs = FP8CTL__V1__NODE_TEST__INIT;

                of_pairs.ms = i;
                node_test_pairs(w.c, node_find(w.c, "a"), &of_pairs);
        }
        n = world_node(&w, "a");
        CU_ASSERT_EQUAL_FATAL(n->n_tests, 8);
        CU_ASSERT_FALSE(n->tests[0]->pairs);
        CU_ASSERT_TRUE(n->tests[1]->pairs && n->tests[1]->ms == 5 && n->tests[7]->ms == 11);
        fp8ctl__v1__node__free_unpacked(n, NULL);
        controller_worker_closed(w.c, 5);
        at = w.n_sent;
        world_attach(&w, 6, "a");
        CU_ASSERT_EQUAL(world_told(&w, at, TOLD(NODE_TEST_REQUEST), 0, 0), 0);
        world_stop(&w);
}

TEST_MAIN("node_pairs")
