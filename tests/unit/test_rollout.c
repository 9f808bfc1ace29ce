/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rollouts over four nodes (a to d, sessions 1 to 4), whose workers do at once what they are asked: change, tell, and pass their test, unless the test has it otherwise.
 */
#include <errno.h>

#include "base/cleanup.h"
#include "daemon/core/rollout.h"
#include "tests/test.h"
#include "tests/unit/core_world.h"

#define ACTION(x) FP8CTL__V1__SET_ROLLOUT_REQUEST__ACTION__##x

enum { NODES = 4 };

#define NODE_OF(session) (((session)-1) % NODES) /* its streams: 1, 5, 9 of a; 2, 6, 10 of b; ... */

struct play {
        struct world w;
        bool bad_hook[NODES], bad_test[NODES], no_hook, silent_test, no_change; /* no_change: the hook ends well, and nothing is other than before */
        char told[NODES][8]; /* each node's version */
        size_t seen, hooks, tests;
        bool restart;        /* the controller dies whenever something has moved */
        char moved[4000];
};

static void tell(struct play *p, uint64_t session) {
        Fp8ctl__V1__HealthReport r = FP8CTL__V1__HEALTH_REPORT__INIT;
        Fp8ctl__V1__NodeFact f = FP8CTL__V1__NODE_FACT__INIT, *list[] = { &f };

        f.key = (char *)"site.version";
        f.value = p->told[NODE_OF(session)];
        r.facts = list;
        r.n_facts = 1;
        world_health(&p->w, session, &r);
}

static void attach(struct play *p, uint64_t session) {
        world_attach(&p->w, session, (char[2]){ (char)('a' + NODE_OF(session)), 0 });
        tell(p, session);
}

static void begin(struct play *p) {
        memset(p, 0, sizeof(*p));
        world_start(&p->w, false);
        p->w.rollout_hook = true;
        for (uint64_t s = 1; s <= NODES; s++) {
                snprintf(p->told[s - 1], sizeof(p->told[0]), "1");
                attach(p, s);
        }
}

static void end(struct play *p) {
        world_stop(&p->w);
}

/* ------------------------------------------------------------------ clients */
static Fp8ctl__V1__Rollout *reply(struct play *p) {
        return p->w.status == 0 ? fp8ctl__v1__rollout__unpack(NULL, p->w.reply_len, p->w.reply) : NULL;
}

static Fp8ctl__V1__Rollout *get(struct play *p) {
        Fp8ctl__V1__GetRolloutRequest q = FP8CTL__V1__GET_ROLLOUT_REQUEST__INIT;

        controller_request(p->w.c, 5, REQ_GET_ROLLOUT, &q.base, &world_ben);
        return reply(p);
}

static Fp8ctl__V1__StartRolloutRequest quarters(uint64_t soak_ms) {
        static uint32_t stages[] = { 25, 50, 100 };
        Fp8ctl__V1__StartRolloutRequest q = FP8CTL__V1__START_ROLLOUT_REQUEST__INIT;

        q.fact = (char *)"site.version";
        q.value = (char *)"2";
        q.stages = stages;
        q.n_stages = 3;
        q.soak_ms = soak_ms;
        return q;
}

static int start(struct play *p, const Fp8ctl__V1__StartRolloutRequest *q) {
        controller_request(p->w.c, 6, REQ_START_ROLLOUT, &q->base, &world_admin);
        return p->w.status;
}

static int set(struct play *p, Fp8ctl__V1__SetRolloutRequest__Action action) {
        Fp8ctl__V1__SetRolloutRequest q = FP8CTL__V1__SET_ROLLOUT_REQUEST__INIT;

        q.action = action;
        q.reason = (char *)"we looked";
        controller_request(p->w.c, 7, REQ_SET_ROLLOUT, &q.base, &world_admin);
        return p->w.status;
}

static int set_node(struct play *p, const char *name, Fp8ctl__V1__SetNodeRequest__Duty duty) {
        Fp8ctl__V1__SetNodeRequest q = FP8CTL__V1__SET_NODE_REQUEST__INIT;

        q.name = (char *)name;
        q.duty = duty;
        controller_request(p->w.c, 8, REQ_SET_NODE, &q.base, &world_admin);
        return p->w.status;
}

/* "running 0: dddd": its state, its stage, and the first letters of its nodes' states (f for failed, a for draining). */
static const char *is(struct play *p, char buf[64]) {
        Fp8ctl__V1__Rollout *r = get(p);
        int n = snprintf(buf, 64, "none");

        if (!r)
                return buf;
        n = snprintf(buf, 64, "%s %u: ", r->state, r->stage);
        for (size_t i = 0; i < r->n_nodes && n < 63; i++)
                n += snprintf(buf + n, 64 - (size_t)n, "%c", strcmp(r->nodes[i]->state, "draining") == 0 ? 'a' : r->nodes[i]->state[0]);
        fp8ctl__v1__rollout__free_unpacked(r, NULL);
        return buf;
}

#define EXPECT(p, text)                                                            \
        do {                                                                       \
                char is_[64];                                                      \
                if (strcmp(is(p, is_), text) != 0)                                 \
                        printf("\n    found '%s', expected '%s'\n", is_, text);    \
                CU_ASSERT_STRING_EQUAL(is_, text);                                 \
        } while (0)

static void expect_event(struct play *p, const char *kind, const char *text, int line) {
        char buf[1200];
        bool ok = strstr(world_event(&p->w, kind, buf, sizeof(buf)), text) != NULL;

        if (!ok)
                printf("\n    line %d: %s: found '%s', expected '%s'\n", line, kind, buf, text);
        CU_ASSERT_TRUE(ok);
}
#define EXPECT_EVENT(p, kind, text) expect_event(p, kind, text, __LINE__)

static void expect_reason(struct play *p, const char *text, int line) {
        Fp8ctl__V1__Rollout *r = get(p);
        bool ok = r && (strstr(r->reason, text) || strstr(r->waits, text));

        if (!ok)
                printf("\n    line %d: found '%s', waits for '%s', expected '%s'\n", line, r ? r->reason : "", r ? r->waits : "", text);
        CU_ASSERT_TRUE(ok);
        if (r)
                fp8ctl__v1__rollout__free_unpacked(r, NULL);
}
#define EXPECT_REASON(p, text) expect_reason(p, text, __LINE__)

/* ------------------------------------------------------------------ workers */
static void hook(struct play *p, uint64_t session, const Fp8ctl__V1__RolloutChange *c) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__RolloutChanged r = FP8CTL__V1__ROLLOUT_CHANGED__INIT;

        CU_ASSERT_STRING_EQUAL(c->fact, "site.version");
        p->hooks++;
        r.rollout = c->rollout;
        if (p->bad_hook[NODE_OF(session)])
                r.error = (char *)"exit 1: no space left on device";
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_ROLLOUT_CHANGED;
        m.rollout_changed = &r;
        controller_worker_message(p->w.c, session, &m);
        if (p->bad_hook[NODE_OF(session)] || p->no_change)
                return;
        snprintf(p->told[NODE_OF(session)], sizeof(p->told[0]), "%s", c->value);
        tell(p, session);
}

static void test(struct play *p, uint64_t session, uint64_t request) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__NodeTestReply r = FP8CTL__V1__NODE_TEST_REPLY__INIT;
        Fp8ctl__V1__NodeTest t = FP8CTL__V1__NODE_TEST__INIT;
        Fp8ctl__V1__NodeTestPart part = FP8CTL__V1__NODE_TEST_PART__INIT, *parts[] = { &part };

        p->tests++;
        part.name = (char *)"gemm";
        part.device = 0;
        part.verdict = (char *)(p->bad_test[NODE_OF(session)] ? "evict" : "ok");
        part.text = (char *)"another digest";
        t.parts = parts;
        t.n_parts = 1;
        r.request = request;
        r.test = &t;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_NODE_TEST_REPLY;
        m.node_test_reply = &r;
        controller_worker_message(p->w.c, session, &m);
}

static void note_moved(struct play *p, const char *now) {
        size_t n = strlen(p->moved);

        if (n < strlen(now) || strcmp(p->moved + n - strlen(now), now) != 0)
                snprintf(p->moved + n, sizeof(p->moved) - n, "|%s", now);
}

/* No more than a share of the nodes has begun, and one at a time is away. */
static void check_share(struct play *p) {
        Fp8ctl__V1__Rollout *r = get(p);
        size_t begun = 0, away = 0;

        for (size_t i = 0; r && i < r->n_nodes; i++) {
                const char *s = r->nodes[i]->state;

                begun += strcmp(s, "pending") != 0;
                away += strcmp(s, "draining") == 0 || strcmp(s, "changing") == 0 || strcmp(s, "testing") == 0;
        }
        CU_ASSERT_TRUE(!r || (begun <= (r->stages[r->stage] * r->n_nodes + 99) / 100 && away <= r->max_unavailable));
        if (r)
                fp8ctl__v1__rollout__free_unpacked(r, NULL);
}

static void restart(struct play *p) {
        char before[64], after[64];

        is(p, before);
        world_restart(&p->w);
        p->seen = p->w.n_sent;
        CU_ASSERT_STRING_EQUAL(is(p, after), before);
        for (uint64_t s = 1; s <= NODES; s++)
                attach(p, s);
}

/* Workers answer one message after the other until nothing is left. */
static void pump(struct play *p) {
        const struct world_sent *s;
        char now[64], before[64] = "";

        for (;;) {
                note_moved(p, is(p, now));
                check_share(p);
                if (p->restart && strcmp(now, before) != 0)
                        restart(p);
                snprintf(before, sizeof(before), "%s", now);
                if (p->seen >= p->w.n_sent)
                        return;
                s = &p->w.sent[p->seen++];
                if (s->m->body_case == FP8CTL__V1__CONTROLLER_MESSAGE__BODY_ROLLOUT_CHANGE && !p->no_hook)
                        hook(p, s->session, s->m->rollout_change);
                else if (s->m->body_case == FP8CTL__V1__CONTROLLER_MESSAGE__BODY_NODE_TEST_REQUEST && !p->silent_test)
                        test(p, s->session, s->m->node_test_request->request);
        }
}

static void pass(struct play *p, uint64_t ms) {
        pump(p);
        for (; ms >= 100; ms -= 100) {
                world_pass(&p->w, 100);
                pump(p);
        }
}

/* ------------------------------------------------------------------ the tests */
TEST(tables_are_sound) {
        struct error e = { 0 };

        ASSERT_OK(table_check(&rollout_table, ROLLOUT_RUNNING, &e), e);
        ASSERT_OK(table_check(&rollout_node_table, RN_PENDING, &e), e);
        for (int ev = 0; ev < N_ROLLOUT_EVENTS; ev++) {
                CU_ASSERT_PTR_NULL(table_find(&rollout_table, ROLLOUT_DONE, ev));
                CU_ASSERT_PTR_NULL(table_find(&rollout_table, ROLLOUT_ABORTED, ev));
        }
}

TEST(share_by_share_to_the_end) {
        static struct play p;
        Fp8ctl__V1__StartRolloutRequest q = quarters(2000);

        begin(&p);
        q.name = (char *)"driver";
        CU_ASSERT_EQUAL_FATAL(start(&p, &q), 0);
        EXPECT_EVENT(&p, "rollout_started", "driver: site.version is to be 2 on 4 nodes, first on 1 of them");
        pass(&p, 1000);
        EXPECT(&p, "running 0: sppp");
        EXPECT_EVENT(&p, "rollout_node_changed", "driver: a shows site.version 2");
        EXPECT_REASON(&p, "a to have been watched for long enough");
        pass(&p, 1100);
        EXPECT(&p, "running 1: dspp");
        EXPECT_EVENT(&p, "rollout_stage", "driver: 1 of 4 nodes are changed");
        pass(&p, 2000);
        EXPECT(&p, "running 2: ddss");
        pass(&p, 2100);
        EXPECT(&p, "done 2: dddd");
        EXPECT_EVENT(&p, "rollout_done", "driver: 4 of 4 nodes show site.version 2");
        CU_ASSERT_EQUAL(p.hooks, 4);
        CU_ASSERT_EQUAL(p.tests, 4);
        for (const char *n = "abcd"; *n; n++) {
                Fp8ctl__V1__Node *node = world_node(&p.w, (char[2]){ *n, 0 });

                CU_ASSERT_STRING_EQUAL(node->duty, "open");
                fp8ctl__v1__node__free_unpacked(node, NULL);
        }
        end(&p);
}

/* At every move the controller dies: it goes on from there. */
TEST(a_controller_that_dies_at_every_move_goes_on) {
        static struct play p;
        Fp8ctl__V1__StartRolloutRequest q = quarters(500);

        begin(&p);
        p.restart = true;
        CU_ASSERT_EQUAL_FATAL(start(&p, &q), 0);
        pass(&p, 4000);
        EXPECT(&p, "done 2: dddd");
        CU_ASSERT_TRUE(p.hooks >= 4 && p.tests >= 4);
        end(&p);
}

TEST(a_hook_that_fails_stops_it) {
        static struct play p;
        Fp8ctl__V1__StartRolloutRequest q = quarters(1000);
        size_t hooks;

        begin(&p);
        p.bad_hook[1] = true;
        CU_ASSERT_EQUAL_FATAL(start(&p, &q), 0);
        pass(&p, 2000);
        EXPECT(&p, "stopped 1: dfpp");
        EXPECT_REASON(&p, "1 node failed, expected at most 0: b: its hook: exit 1: no space left on device");
        EXPECT_EVENT(&p, "rollout_stopped", "rollout-1 was stopped in stage 2 (50%): 1 node failed");
        EXPECT_EVENT(&p, "rollout_node_failed", "b failed while it was changing");
        pass(&p, 20000);
        EXPECT(&p, "stopped 1: dfpp"); /* for as long as nobody looks */
        world_restart(&p.w);
        p.seen = p.w.n_sent;
        for (uint64_t s = 1; s <= NODES; s++)
                attach(&p, s);
        pass(&p, 2000);
        EXPECT(&p, "stopped 1: dfpp");
        hooks = p.hooks;
        CU_ASSERT_EQUAL(set(&p, ACTION(RESUME)), 0); /* and fails again */
        pass(&p, 500);
        EXPECT(&p, "stopped 1: dfpp");
        CU_ASSERT_EQUAL(p.hooks, hooks + 1);
        p.bad_hook[1] = false;
        CU_ASSERT_EQUAL(set(&p, ACTION(RESUME)), 0);
        EXPECT_EVENT(&p, "rollout_resumed", "goes on with stage 2 (50%): by ann: we looked; 1 node failed and begins again if well");
        pass(&p, 4000);
        EXPECT(&p, "done 2: dddd");
        end(&p);
}

TEST(a_test_that_fails_stops_it_and_the_node_is_passed_over) {
        static struct play p;
        Fp8ctl__V1__StartRolloutRequest q = quarters(500);

        begin(&p);
        p.bad_test[0] = true;
        CU_ASSERT_EQUAL_FATAL(start(&p, &q), 0);
        pass(&p, 500);
        EXPECT(&p, "stopped 0: fppp");
        EXPECT_REASON(&p, "a: test gemm of a device: another digest");
        CU_ASSERT_EQUAL(set(&p, ACTION(RESUME)), 0); /* a is held by its health */
        EXPECT_EVENT(&p, "rollout_resumed", "1 node failed and begins again if well");
        pass(&p, 4000);
        EXPECT(&p, "done 2: fddd");
        EXPECT_EVENT(&p, "rollout_done", "3 of 4 nodes");
        end(&p);
}

static void blow(struct play *p, uint64_t session) {
        world_say_check(&p->w, session, "disk", "/var", "drain", false);
        world_say_check(&p->w, session, "disk", "/var", "ok", false);
        pump(p);
}

TEST(a_worse_rate_stops_it) {
        static struct play p;
        Fp8ctl__V1__StartRolloutRequest q = quarters(600000);

        begin(&p);
        q.alpha = 0.01;
        CU_ASSERT_EQUAL_FATAL(start(&p, &q), 0);
        pass(&p, 100000);
        EXPECT(&p, "running 0: sppp");
        blow(&p, 4); /* not changed */
        EXPECT(&p, "running 0: sppp");
        blow(&p, 1); /* one of two within a quarter of the time: p = 7/16 */
        EXPECT(&p, "running 0: sppp");
        pass(&p, 30000);
        blow(&p, 1); /* within a minute: the same one */
        EXPECT(&p, "running 0: sppp");
        for (int i = 0; i < 3; i++) {
                pass(&p, 61000);
                CU_ASSERT_EQUAL(set_node(&p, "a", FP8CTL__V1__SET_NODE_REQUEST__DUTY__OPEN), 0);
                EXPECT(&p, "running 0: sppp");
                blow(&p, 1); /* 2 of 3: p = 5/32; 3 of 4: 13/256; 4 of 5: 1/64; */
        }
        EXPECT(&p, "running 0: sppp");
        pass(&p, 61000);
        CU_ASSERT_EQUAL(set_node(&p, "a", FP8CTL__V1__SET_NODE_REQUEST__DUTY__OPEN), 0);
        blow(&p, 1); /* 5 of 6: 19/4096 */
        EXPECT(&p, "stopped 0: sppp");
        EXPECT_REASON(&p, "changed nodes failed 5 times");
        EXPECT_REASON(&p, "the others 1 in");
        EXPECT_REASON(&p, "p = 0.0046, expected more than 0.01; failed: a");
        end(&p);
}

TEST(ranks_that_crash_and_lost_nodes_count) {
        static struct play p;
        Fp8ctl__V1__StartRolloutRequest q = quarters(60000);
        Fp8ctl__V1__Rollout *r;

        begin(&p);
        world_submit(&p.w, "", 2, 1, ", \"recovery\": {\"max_restarts\": 100}", false, &world_admin);
        world_pump(&p.w);
        q.stages = (uint32_t[]){ 50, 100 };
        q.n_stages = 2;
        CU_ASSERT_EQUAL_FATAL(start(&p, &q), 0);
        pass(&p, 1000);
        world_exited(&p.w, 0, "killed by SIGSEGV");
        world_pump(&p.w);
        r = get(&p);
        CU_ASSERT_EQUAL(r->changed_failures + r->other_failures, 1);
        fp8ctl__v1__rollout__free_unpacked(r, NULL);
        end(&p);
        begin(&p);
        CU_ASSERT_EQUAL_FATAL(start(&p, &q), 0);
        pass(&p, 1000);
        EXPECT(&p, "running 0: sspp");
        for (uint64_t s = 1; s <= NODES; s++)
                controller_worker_closed(p.w.c, s);
        world_pass(&p.w, 11000);
        r = get(&p);
        CU_ASSERT_EQUAL(r->changed_failures, 2);
        CU_ASSERT_EQUAL(r->other_failures, 2);
        fp8ctl__v1__rollout__free_unpacked(r, NULL);
        end(&p);
}

TEST(a_node_that_is_not_well_after_its_soak_fails) {
        static struct play p;
        Fp8ctl__V1__StartRolloutRequest q = quarters(20000);

        begin(&p);
        q.max_failed = 1;
        CU_ASSERT_EQUAL_FATAL(start(&p, &q), 0);
        pass(&p, 1000);
        world_say_check(&p.w, 1, "disk", "/var", "drain", false);
        pass(&p, 20000);
        EXPECT(&p, "running 1: fspp"); /* one may */
        EXPECT_EVENT(&p, "rollout_node_failed", "a failed while it was soaking: at the end of its soak it was kept from ranks: disk /var");
        snprintf(p.told[1], sizeof(p.told[1]), "1"); /* somebody took it back */
        tell(&p, 2);
        pass(&p, 20000);
        EXPECT(&p, "stopped 1: ffpp");
        EXPECT_REASON(&p, "2 nodes failed, expected at most 1");
        EXPECT_EVENT(&p, "rollout_node_failed", "site.version: found '1' at the end of its soak, expected '2'");
        end(&p);
}

TEST(what_does_not_come_in_time_fails) {
        static struct play p;
        Fp8ctl__V1__StartRolloutRequest q = quarters(0);

        begin(&p);
        q.change_ms = 5000;
        p.no_change = true;
        CU_ASSERT_EQUAL_FATAL(start(&p, &q), 0);
        pass(&p, 4000);
        EXPECT(&p, "running 0: cppp");
        EXPECT_REASON(&p, "a to be changed");
        pass(&p, 1100);
        EXPECT(&p, "stopped 0: fppp");
        EXPECT_REASON(&p, "site.version: found '1', expected '2' within 5 s");
        p.no_change = false;
        p.silent_test = true;
        CU_ASSERT_EQUAL(set(&p, ACTION(RESUME)), 0);
        pass(&p, 4000);
        EXPECT(&p, "running 0: tppp");
        pass(&p, 1100);
        EXPECT(&p, "stopped 0: fppp");
        EXPECT_REASON(&p, "a: it did not answer its test in time");
        end(&p);
}

TEST(by_hand_where_no_hook_is) {
        static struct play p;
        Fp8ctl__V1__StartRolloutRequest q = quarters(500);

        begin(&p);
        world_restart(&p.w);
        p.seen = p.w.n_sent;
        p.w.rollout_hook = false;
        for (uint64_t s = 1; s <= NODES; s++)
                attach(&p, s);
        CU_ASSERT_EQUAL_FATAL(start(&p, &q), 0);
        pass(&p, 3000);
        EXPECT(&p, "running 0: cppp");
        EXPECT_REASON(&p, "a to be changed by hand: its worker has no --rollout-hook");
        CU_ASSERT_EQUAL(p.hooks, 0);
        CU_ASSERT_EQUAL(set_node(&p, "a", FP8CTL__V1__SET_NODE_REQUEST__DUTY__OPEN), 9);
        CU_ASSERT_PTR_NOT_NULL(strstr(p.w.error, "node a is being changed by rollout rollout-1"));
        snprintf(p.told[0], sizeof(p.told[0]), "2");
        tell(&p, 1);
        pass(&p, 300);
        EXPECT(&p, "running 0: sppp");
        end(&p);
}

/* The change takes the worker with it: what counts is what the node shows on its next stream, and there it is asked again if it does not. */
TEST(a_worker_that_is_restarted_by_its_change) {
        static struct play p;
        Fp8ctl__V1__StartRolloutRequest q = quarters(60000);

        begin(&p);
        q.max_unavailable = 2;
        q.stages = (uint32_t[]){ 50, 100 };
        q.n_stages = 2;
        p.no_hook = true;
        CU_ASSERT_EQUAL_FATAL(start(&p, &q), 0);
        pass(&p, 300);
        EXPECT(&p, "running 0: ccpp");
        controller_worker_closed(p.w.c, 1);
        controller_worker_closed(p.w.c, 2);
        pass(&p, 11000); /* they are lost, as a node is that is rebooted */
        EXPECT(&p, "running 0: ccpp");
        p.no_hook = false;
        snprintf(p.told[0], sizeof(p.told[0]), "2");
        world_attach(&p.w, 5, "a");
        world_attach(&p.w, 6, "b");
        pump(&p);
        EXPECT(&p, "running 0: ccpp"); /* what they said before they went does not count */
        CU_ASSERT_EQUAL(p.hooks, 0);
        tell(&p, 5);
        tell(&p, 6);
        pump(&p);
        EXPECT(&p, "running 0: sspp");
        CU_ASSERT_EQUAL(p.hooks, 1);
        end(&p);
}

TEST(an_aborted_one_leaves_what_is_half_changed_drained) {
        static struct play p;
        Fp8ctl__V1__StartRolloutRequest q = quarters(500);
        Fp8ctl__V1__Node *n;

        begin(&p);
        p.no_hook = true;
        CU_ASSERT_EQUAL_FATAL(start(&p, &q), 0);
        pass(&p, 300);
        EXPECT(&p, "running 0: cppp");
        CU_ASSERT_EQUAL(set(&p, ACTION(STOP)), 0);
        EXPECT(&p, "stopped 0: cppp"); /* it goes on until it is tested */
        CU_ASSERT_EQUAL(set(&p, ACTION(STOP)), 9);
        CU_ASSERT_STRING_EQUAL(p.w.error, "rollout rollout-1 is stopped: only one that is running can be stopped");
        CU_ASSERT_EQUAL(set(&p, ACTION(ABORT)), 0);
        EXPECT(&p, "aborted 0: fppp");
        EXPECT_EVENT(&p, "rollout_aborted", "rollout-1 was aborted: by ann: we looked");
        n = world_node(&p.w, "a");
        CU_ASSERT_STRING_EQUAL(n->duty, "draining");
        fp8ctl__v1__node__free_unpacked(n, NULL);
        CU_ASSERT_EQUAL(set_node(&p, "a", FP8CTL__V1__SET_NODE_REQUEST__DUTY__OPEN), 0);
        CU_ASSERT_EQUAL(set(&p, ACTION(RESUME)), 9);
        CU_ASSERT_EQUAL(set(&p, ACTION(ABORT)), 9);
        p.no_hook = false;
        CU_ASSERT_EQUAL_FATAL(start(&p, &q), 0);
        pass(&p, 3000);
        EXPECT(&p, "done 2: dddd");
        end(&p);
}

/* The job's ranks have nowhere to go: c and d are cordoned. */
TEST(a_stopped_one_sends_back_what_is_not_changed_yet) {
        static struct play p;
        Fp8ctl__V1__StartRolloutRequest q = quarters(500);
        Fp8ctl__V1__Node *n;

        begin(&p);
        world_submit(&p.w, "", 2, 1, "", false, &world_admin);
        world_pump(&p.w);
        CU_ASSERT_EQUAL(set_node(&p, "c", FP8CTL__V1__SET_NODE_REQUEST__DUTY__CORDON), 0);
        CU_ASSERT_EQUAL(set_node(&p, "d", FP8CTL__V1__SET_NODE_REQUEST__DUTY__CORDON), 0);
        CU_ASSERT_EQUAL_FATAL(start(&p, &q), 0);
        pass(&p, 1000);
        EXPECT(&p, "running 0: appp");
        EXPECT_REASON(&p, "a to be empty");
        CU_ASSERT_EQUAL(set(&p, ACTION(STOP)), 0);
        EXPECT(&p, "stopped 0: pppp");
        n = world_node(&p.w, "a");
        CU_ASSERT_STRING_EQUAL(n->duty, "open");
        fp8ctl__v1__node__free_unpacked(n, NULL);
        CU_ASSERT_EQUAL(set(&p, ACTION(RESUME)), 0);
        EXPECT(&p, "running 0: appp");
        CU_ASSERT_EQUAL(set(&p, ACTION(ABORT)), 0);
        EXPECT(&p, "aborted 0: pppp");
        end(&p);
}

TEST(nodes_that_take_no_ranks_are_not_begun) {
        static struct play p;
        Fp8ctl__V1__StartRolloutRequest q = quarters(500);
        Fp8ctl__V1__SetNodeRequest window = FP8CTL__V1__SET_NODE_REQUEST__INIT;

        begin(&p);
        for (const char *n = "abc"; *n; n++)
                CU_ASSERT_EQUAL(set_node(&p, (char[2]){ *n, 0 }, FP8CTL__V1__SET_NODE_REQUEST__DUTY__CORDON), 0);
        window.name = (char *)"d"; /* a maintenance window lies ahead */
        window.duty = FP8CTL__V1__SET_NODE_REQUEST__DUTY__DRAIN;
        window.after_ms = 3000;
        window.for_ms = 1000;
        controller_request(p.w.c, 8, REQ_SET_NODE, &window.base, &world_admin);
        CU_ASSERT_EQUAL_FATAL(start(&p, &q), 0);
        pass(&p, 2000);
        EXPECT(&p, "running 0: pppp");
        EXPECT_REASON(&p, "a node that is connected, well and takes ranks");
        pass(&p, 2100);
        EXPECT(&p, "running 0: ppps"); /* it is over */
        end(&p);
}

TEST(the_breaker_holds_it) {
        static struct play p;
        Fp8ctl__V1__StartRolloutRequest q = quarters(1000);

        begin(&p);
        CU_ASSERT_EQUAL_FATAL(start(&p, &q), 0);
        pass(&p, 300);
        for (uint64_t s = 2; s <= 4; s++)
                world_say_check(&p.w, s, "disk", "/var", "drain", false); /* the third is beyond the share */
        pass(&p, 1500);
        EXPECT(&p, "running 1: dppp");
        EXPECT_REASON(&p, "the breaker");
        end(&p);
}

TEST(refusals) {
        static struct play p;
        Fp8ctl__V1__StartRolloutRequest q;
        Fp8ctl__V1__GetRolloutRequest g = FP8CTL__V1__GET_ROLLOUT_REQUEST__INIT;
        Fp8ctl__V1__SetRolloutRequest s = FP8CTL__V1__SET_ROLLOUT_REQUEST__INIT;
        static uint32_t falling[] = { 50, 20, 100 }, short_of[] = { 5, 50 }, beyond[] = { 50, 101 }, zero[] = { 0, 100 };
        static const struct {
                uint32_t *stages;
                size_t n;
        } bad[] = { { falling, 3 }, { short_of, 2 }, { beyond, 2 }, { zero, 2 } };
        static char *z[] = { (char *)"z*" };

        begin(&p);
        CU_ASSERT_PTR_NULL(get(&p));
        CU_ASSERT_STRING_EQUAL(p.w.error, "there was no rollout yet");
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                q = quarters(0);
                q.stages = bad[i].stages;
                q.n_stages = bad[i].n;
                CU_ASSERT_EQUAL(start(&p, &q), 3);
        }
        q = quarters(0);
        q.name = (char *)"7 days";
        CU_ASSERT_EQUAL(start(&p, &q), 3);
        q = quarters(0);
        q.value = (char *)"";
        CU_ASSERT_EQUAL(start(&p, &q), 3);
        q = quarters(0);
        q.alpha = 1;
        CU_ASSERT_EQUAL(start(&p, &q), 3);
        q = quarters(UINT64_MAX);
        CU_ASSERT_EQUAL(start(&p, &q), 3);
        q = quarters(0);
        q.nodes = z;
        q.n_nodes = 1;
        CU_ASSERT_EQUAL(start(&p, &q), 5);
        CU_ASSERT_STRING_EQUAL(p.w.error, "nodes: found none like 'z*'");
        q = quarters(0);
        q.value = (char *)"1";
        CU_ASSERT_EQUAL(start(&p, &q), 9);
        CU_ASSERT_STRING_EQUAL(p.w.error, "nodes: found none to change: 4 show site.version 1, 0 are lost");
        q = quarters(0);
        controller_request(p.w.c, 6, REQ_START_ROLLOUT, &q.base, &world_ben);
        CU_ASSERT_EQUAL(p.w.status, 7);
        CU_ASSERT_EQUAL(world_count(&p.w, "rollout"), 0);
        CU_ASSERT_EQUAL(start(&p, &q), 0);
        CU_ASSERT_EQUAL(start(&p, &q), 9);
        CU_ASSERT_PTR_NOT_NULL(strstr(p.w.error, "rollout rollout-1 is running"));
        CU_ASSERT_EQUAL(set(&p, (Fp8ctl__V1__SetRolloutRequest__Action)7), 3);
        s.action = ACTION(STOP);
        controller_request(p.w.c, 7, REQ_SET_ROLLOUT, &s.base, &world_ben);
        CU_ASSERT_EQUAL(p.w.status, 7);
        g.name = (char *)"2";
        controller_request(p.w.c, 5, REQ_GET_ROLLOUT, &g.base, &world_ben);
        CU_ASSERT_EQUAL(p.w.status, 5);
        end(&p);
}

/* Some of the nodes; a second one for the rest; the store forgets the oldest. */
TEST(patterns_names_and_what_is_kept) {
        static struct play p;
        Fp8ctl__V1__StartRolloutRequest q = quarters(0);
        Fp8ctl__V1__ListRolloutsRequest l = FP8CTL__V1__LIST_ROLLOUTS_REQUEST__INIT;
        Fp8ctl__V1__ListRolloutsReply *list;
        static char *some[] = { (char *)"[ab]", (char *)"b" };
        char version[8];

        begin(&p);
        q.nodes = some;
        q.n_nodes = 2;
        CU_ASSERT_EQUAL(start(&p, &q), 0);
        pass(&p, 300);
        EXPECT(&p, "done 2: dd");
        q.n_nodes = 0;
        CU_ASSERT_EQUAL(start(&p, &q), 0); /* a and b show it already */
        pass(&p, 300);
        EXPECT(&p, "done 2: dd");
        q.value = version;
        for (int i = 3; i <= 20; i++) {
                snprintf(version, sizeof(version), "%d", i);
                CU_ASSERT_EQUAL(start(&p, &q), 0);
                pass(&p, 300);
                EXPECT(&p, "done 2: dddd");
        }
        controller_request(p.w.c, 9, REQ_LIST_ROLLOUTS, &l.base, &world_ben);
        list = fp8ctl__v1__list_rollouts_reply__unpack(NULL, p.w.reply_len, p.w.reply);
        CU_ASSERT_EQUAL_FATAL(list->n_rollouts, ROLLOUTS_KEPT);
        CU_ASSERT_EQUAL(list->rollouts[0]->id, 5);
        CU_ASSERT_STRING_EQUAL(list->rollouts[ROLLOUTS_KEPT - 1]->name, "rollout-20");
        fp8ctl__v1__list_rollouts_reply__free_unpacked(list, NULL);
        CU_ASSERT_EQUAL(world_count(&p.w, "rollout/"), ROLLOUTS_KEPT);
        CU_ASSERT_EQUAL(world_count(&p.w, "rollout-node/"), ROLLOUTS_KEPT * 4);
        end(&p);
}

/* Words nobody asked for. */
TEST(stray_answers_are_dropped) {
        static struct play p;
        Fp8ctl__V1__StartRolloutRequest q = quarters(1000);
        Fp8ctl__V1__RolloutChange c = FP8CTL__V1__ROLLOUT_CHANGE__INIT;

        begin(&p);
        c.fact = (char *)"site.version";
        p.no_change = p.bad_hook[0] = p.bad_hook[1] = true;
        c.rollout = 1;
        hook(&p, 1, &c); /* there is none */
        p.no_hook = true;
        CU_ASSERT_EQUAL(start(&p, &q), 0);
        hook(&p, 2, &c); /* it is not b's turn */
        c.rollout = 2;
        hook(&p, 1, &c); /* of another */
        test(&p, 1, 1);  /* nor is it tested */
        pass(&p, 300);
        EXPECT(&p, "running 0: cppp");
        end(&p);
}

TEST(a_record_that_is_none_is_refused) {
        static struct play p;
        struct error e = { 0 };
        Fp8ctl__V1__StartRolloutRequest q = quarters(1000);
        const struct world_kept *k;

        begin(&p);
        CU_ASSERT_EQUAL(start(&p, &q), 0);
        k = world_stored(&p.w, "rollout/00000000000000000001");
        CU_ASSERT_PTR_NOT_NULL_FATAL(k);
        CU_ASSERT_EQUAL(controller_load(p.w.c, "rollout/00000000000000000001", "x", 1, &e), -EBADMSG);
        CU_ASSERT_EQUAL(controller_load(p.w.c, "rollout-node/1/a", "x", 1, &e), -EBADMSG);
        CU_ASSERT_EQUAL(controller_load(p.w.c, "rollout-node/1/a", k->value, k->len, &e), -EBADMSG);
        end(&p);
}

TEST_MAIN("rollout")
