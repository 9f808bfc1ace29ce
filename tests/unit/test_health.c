/* SPDX-License-Identifier: Apache-2.0 */
/* What the controller makes of what nodes say of their health: every Xid of the catalogue, repetition, two alerts for networks, the breaker, what outlives a restart, and nonsense. */
#include "daemon/core/health.h"
#include "tests/test.h"
#include "tests/unit/core_world.h"

#define S(x) FP8CTL__V1__JOB_STATE__##x
#define TOLD(x) FP8CTL__V1__CONTROLLER_MESSAGE__BODY_##x
#define MINUTE_MS UINT64_C(60000)
#define HOUR (60 * MINUTE_MS)

/* ------------------------------------------------------------------ the table */
TEST(every_xid_of_the_catalogue_has_its_action) {
        /* The lists of the vendor's classes, written down once more. */
        static const struct {
                enum health_action action;
                uint32_t codes[24];
        } want[] = {
                { ACT_LOG, { 43, 44, 63, 66, 67, 92, 121, 137, 160, 0 } },
                { ACT_RESTART_RANK, { 8, 11, 13, 31, 32, 39, 40, 41, 45, 69, 70, 71, 72, 75, 76, 77, 80, 94, 0 } },
                { ACT_RESET_DEVICE, { 46, 48, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 144, 145, 146, 147, 148, 149, 150, 155, 156, 158, 0 } },
                { ACT_EVICT, { 79, 151, 0 } },
                { ACT_WARN, { 74, 999, 1, 0 } }, /* the first of 74; what is not in the table */
                { ACT_RMA, { 54, 0 } },
        };
        const struct xid_past none = { 0 };
        size_t n = 0;
        const char *why;

        for (size_t k = 0; k < sizeof(want) / sizeof(want[0]); k++)
                for (const uint32_t *code = want[k].codes; *code; code++) {
                        enum health_action a = xid_decide(*code, "", &none, &why);

                        if (a != want[k].action)
                                printf("    Xid %u: found '%s', expected '%s'\n", *code, health_action_name(a), health_action_name(want[k].action));
                        CU_ASSERT_EQUAL(a, want[k].action);
                        n += xid_find(*code) != NULL;
                }
        for (uint32_t code = 0; code < 1000; code++)
                n -= xid_find(code) != NULL;
        CU_ASSERT_EQUAL(n, (size_t)-1); /* all rows are above but 154, below */
        for (int i = 1; i < n_xid_rules; i++)
                CU_ASSERT(xid_rules[i].first > xid_rules[i - 1].last && xid_rules[i].first <= xid_rules[i].last);
}

TEST(repetition_and_texts_change_what_an_xid_means) {
        static const struct {
                uint32_t code;
                const char *text;
                struct xid_past past;
                enum health_action want;
        } cases[] = {
                { 45, "", { .other_lately = true }, ACT_LOG },
                { 31, "", { .same_day = 1 }, ACT_DRAIN },
                { 48, "", { .same_day = 1 }, ACT_RMA },
                { 74, "", { .same_day = 1 }, ACT_WARN },
                { 74, "", { .same_hour = 1, .same_day = 1 }, ACT_RESET_DEVICE },
                { 147, "", { .same_day = 1 }, ACT_RMA },
                { 95, "", { .fatal_day = 3 }, ACT_RESET_DEVICE },
                { 95, "", { .fatal_day = 4 }, ACT_RMA },
                { 79, "", { .fatal_day = 4 }, ACT_RMA },
                { 31, "", { .fatal_day = 9 }, ACT_RESTART_RANK },
                { 154, "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)", { 0 }, ACT_LOG },
                { 154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)", { 0 }, ACT_RESET_DEVICE },
                { 154, "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)", { 0 }, ACT_EVICT },
                { 154, "GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)", { 0 }, ACT_DRAIN },
                { 154, "something else", { 0 }, ACT_DRAIN },
                { 154, "", { 0 }, ACT_DRAIN },
        };
        const char *why;

        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
                CU_ASSERT_EQUAL(xid_decide(cases[i].code, cases[i].text, &cases[i].past, &why), cases[i].want);
}

/* ------------------------------------------------------------------ what nodes say */
static void report(struct world *w, uint64_t session, Fp8ctl__V1__NodeCheck *check, Fp8ctl__V1__NodeFinding *finding, bool whole) {
        Fp8ctl__V1__HealthReport r = FP8CTL__V1__HEALTH_REPORT__INIT;

        r.whole = whole;
        r.checks = &check;
        r.n_checks = check ? 1 : 0;
        r.findings = &finding;
        r.n_findings = finding ? 1 : 0;
        world_health(w, session, &r);
}

static void say_xid(struct world *w, uint64_t session, uint32_t code, const char *pci, int32_t device, uint32_t pid) {
        Fp8ctl__V1__NodeFinding f = FP8CTL__V1__NODE_FINDING__INIT;

        f.check = (char *)"xid";
        f.subject = (char *)pci;
        f.code = code;
        f.device = device;
        f.pid = pid;
        f.text = (char *)"NVRM: Xid";
        report(w, session, NULL, &f, false);
}

static void expect_node(struct world *w, const char *name, const char *health, const char *duty, const char *reason, int line) {
        Fp8ctl__V1__Node *n = world_node(w, name);
        bool ok = n && strcmp(n->health, health) == 0 && strcmp(n->duty, duty) == 0 && strstr(n->health_reason, reason);

        if (!ok)
                printf("\n    line %d: node %s: found %s, %s, '%s', expected %s, %s, '%s'\n", line, name, n ? n->health : "?", n ? n->duty : "?", n ? n->health_reason : "?", health, duty, reason);
        CU_ASSERT(ok);
        if (n)
                fp8ctl__v1__node__free_unpacked(n, NULL);
}
#define EXPECT_NODE(w, name, health, duty, reason) expect_node(w, name, health, duty, reason, __LINE__)

static int job_state(struct world *w, uint64_t id) {
        Fp8ctl__V1__Job *j = world_job(w, id);
        int state = j ? (int)j->state : -1;

        if (j)
                fp8ctl__v1__job__free_unpacked(j, NULL);
        return state;
}

static size_t ranks_on(struct world *w, uint64_t session) {
        size_t n = 0;

        for (int r = 0; r < 4; r++)
                n += w->ranks[r].session == session;
        return n;
}

static void uncordon(struct world *w, const char *name) {
        Fp8ctl__V1__SetNodeRequest q = FP8CTL__V1__SET_NODE_REQUEST__INIT;

        q.name = (char *)name;
        q.duty = FP8CTL__V1__SET_NODE_REQUEST__DUTY__OPEN;
        controller_request(w->c, 5, REQ_SET_NODE, &q.base, &world_admin);
        CU_ASSERT_EQUAL(w->status, 0);
        world_pump(w);
}

/* a, b run 4 ranks; c and d are spare. */
static uint64_t begin(struct world *w) {
        uint64_t id = world_start_job(w, "");

        world_attach(w, 3, "c");
        world_attach(w, 4, "d");
        CU_ASSERT_EQUAL(ranks_on(w, 2), 2);
        return id;
}

TEST(a_gpu_off_the_bus_moves_its_nodes_ranks_at_once) {
        struct world w;
        uint64_t id = begin(&w);
        char buf[300];

        say_xid(&w, 2, 79, "0000:3b:00", -1, 0);
        EXPECT_NODE(&w, "b", "evict", "draining", "Xid 79 (GPU has fallen off the bus) on 0000:3b:00");
        CU_ASSERT_EQUAL(world_told(&w, 0, TOLD(KILL_RANKS), 2, 0), 2);
        CU_ASSERT_EQUAL(ranks_on(&w, 2), 0);
        CU_ASSERT_EQUAL(ranks_on(&w, 1), 2);
        CU_ASSERT_EQUAL(job_state(&w, id), S(RUNNING));
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "recovery_started", buf, sizeof(buf)), "Xid 79"));
        uncordon(&w, "b");
        EXPECT_NODE(&w, "b", "ok", "open", "");
        world_stop(&w);
}

TEST(without_a_spare_its_job_waits) {
        struct world w;
        uint64_t id = world_start_job(&w, "");

        say_xid(&w, 2, 79, "0000:3b:00", -1, 0);
        CU_ASSERT_EQUAL(job_state(&w, id), S(PENDING));
        uncordon(&w, "b");
        CU_ASSERT_EQUAL(job_state(&w, id), S(RUNNING));
        world_stop(&w);
}

TEST(an_xid_restarts_the_rank_that_it_hit_and_no_other) {
        struct world w;
        uint64_t id = begin(&w), incarnation[4];

        for (int r = 0; r < 4; r++)
                incarnation[r] = w.ranks[r].incarnation;
        say_xid(&w, 2, 31, "0000:3b:00", -1, 99); /* nobody's */
        CU_ASSERT_EQUAL(world_told(&w, 0, TOLD(KILL_RANKS), 0, 0), 0);
        w.wall_ms += 25 * HOUR;
        say_xid(&w, w.ranks[3].session, 13, "0000:3b:00", 0, 103); /* the process counts, not the device */
        CU_ASSERT(world_told(&w, 0, TOLD(KILL_RANKS), 0, 0) >= 1);
        for (int r = 0; r < 4; r++)
                CU_ASSERT_EQUAL(w.ranks[r].incarnation != incarnation[r], r == 3);
        CU_ASSERT_EQUAL(job_state(&w, id), S(RUNNING));
        EXPECT_NODE(&w, "b", "ok", "open", "");
        world_stop(&w);
}

TEST(a_device_that_needs_a_reset_gets_no_rank_and_the_node_keeps_the_others) {
        struct world w;
        uint64_t id = begin(&w);
        Fp8ctl__V1__Node *n;

        say_xid(&w, 2, 95, "0000:3b:00", 1, 0);
        CU_ASSERT_EQUAL(job_state(&w, id), S(RUNNING));
        CU_ASSERT_EQUAL(ranks_on(&w, 2), 0); /* tp 2 needs both of a node: the group moved */
        n = world_node(&w, "b");
        CU_ASSERT_STRING_EQUAL(n->duty, "open");
        CU_ASSERT_STRING_EQUAL(n->devices[0]->health, "");
        CU_ASSERT_PTR_NOT_NULL(strstr(n->devices[1]->health, "Xid 95"));
        CU_ASSERT_EQUAL(n->n_findings, 1);
        CU_ASSERT_STRING_EQUAL(n->findings[0]->action, "reset device");
        fp8ctl__v1__node__free_unpacked(n, NULL);
        world_stop(&w);
}

TEST(the_same_again_is_worse_and_what_is_worst_is_to_be_replaced) {
        struct world w;
        Fp8ctl__V1__Node *n;

        begin(&w);
        say_xid(&w, 4, 48, "0000:3b:00", 0, 0);
        say_xid(&w, 4, 48, "0000:3b:00", 0, 0); /* one blow */
        EXPECT_NODE(&w, "d", "warn", "open", "Xid 48");
        w.wall_ms += 2 * HOUR;
        say_xid(&w, 4, 48, "0000:5e:00", 0, 0); /* another GPU */
        EXPECT_NODE(&w, "d", "warn", "open", "Xid 48");
        say_xid(&w, 4, 48, "0000:3b:00", 0, 0);
        EXPECT_NODE(&w, "d", "evict", "draining", "twice in 24 h");
        n = world_node(&w, "d");
        CU_ASSERT_PTR_NOT_NULL(strstr(n->rma, "Xid 48"));
        CU_ASSERT_EQUAL(n->findings[0]->count, 2);
        fp8ctl__v1__node__free_unpacked(n, NULL);
        uncordon(&w, "d");
        n = world_node(&w, "d");
        CU_ASSERT_STRING_EQUAL(n->rma, "");
        fp8ctl__v1__node__free_unpacked(n, NULL);
        world_stop(&w);
}

TEST(five_repairs_in_seven_days_are_enough) {
        struct world w;
        char buf[300];

        begin(&w);
        for (int i = 0; i < 5; i++) {
                say_xid(&w, 4, 79, i % 2 ? "0000:3b:00" : "0000:5e:00", -1, 0);
                EXPECT_NODE(&w, "d", "evict", "draining", "Xid 79");
                uncordon(&w, "d");
                w.wall_ms += 26 * HOUR;
        }
        EXPECT_NODE(&w, "d", "evict", "draining", "five repairs in seven days");
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "node_rma", buf, sizeof(buf)), "five repairs"));
        world_stop(&w);
}

TEST(a_check_drains_and_opens_again_after_a_while_and_later_the_next_time) {
        struct world w;
        uint64_t id = begin(&w);

        world_say_check(&w, 2, "disk", "/var", "warn", false);
        EXPECT_NODE(&w, "b", "warn", "open", "the evidence");
        world_say_check(&w, 2, "disk", "/var", "drain", false);
        EXPECT_NODE(&w, "b", "drain", "draining", "disk /var: the evidence");
        CU_ASSERT_EQUAL(world_told(&w, 0, TOLD(KILL_RANKS), 0, 0), 0);
        CU_ASSERT_EQUAL(world_told(&w, 0, TOLD(STOP_RANKS), 2, 0), 1); /* at the end of a step */
        world_say_check(&w, 2, "disk", "/var", "ok", false);
        world_pass(&w, 50000);
        EXPECT_NODE(&w, "b", "drain", "draining", "");
        world_say_check(&w, 2, "disk", "/var", "drain", false); /* a flap: the time begins anew */
        world_say_check(&w, 2, "disk", "/var", "ok", false);
        world_pass(&w, 50000);
        EXPECT_NODE(&w, "b", "drain", "draining", "");
        world_pass(&w, 11000);
        EXPECT_NODE(&w, "b", "ok", "open", "");
        world_say_check(&w, 4, "disk", "/var", "drain", false); /* of another node: its own time */
        world_say_check(&w, 2, "disk", "/var", "drain", false);
        world_say_check(&w, 2, "disk", "/var", "ok", false);
        world_pass(&w, 100000);
        EXPECT_NODE(&w, "b", "drain", "draining", "");
        world_pass(&w, 21000);
        EXPECT_NODE(&w, "b", "ok", "open", "");
        EXPECT_NODE(&w, "d", "drain", "draining", "");
        uncordon(&w, "d"); /* an administrator knows better, until it says something new */
        world_say_check(&w, 4, "disk", "/var", "drain", false);
        EXPECT_NODE(&w, "d", "warn", "open", "the evidence");
        world_say_check(&w, 4, "disk", "/var", "evict", false);
        EXPECT_NODE(&w, "d", "evict", "draining", "disk /var");
        CU_ASSERT_EQUAL(job_state(&w, id), S(RUNNING));
        world_stop(&w);
}

TEST(a_network_alert_alone_does_nothing_and_two_evict) {
        struct world w;
        uint64_t id = begin(&w);

        world_say_check(&w, 2, "infiniband", "mlx5_0/1", "evict", true);
        world_say_check(&w, 2, "infiniband", "mlx5_1/1", "evict", true); /* of the same blow */
        EXPECT_NODE(&w, "b", "warn", "open", "the evidence");
        world_say_check(&w, 2, "infiniband", "mlx5_0/1", "ok", true);
        world_say_check(&w, 2, "infiniband", "mlx5_1/1", "ok", true);
        world_pass(&w, 301000);
        world_say_check(&w, 2, "infiniband", "mlx5_0/1", "drain", true);
        EXPECT_NODE(&w, "b", "warn", "open", "the evidence");
        world_say_check(&w, 2, "infiniband", "mlx5_0/1", "ok", true);
        world_pass(&w, 200000);
        world_say_check(&w, 2, "infiniband", "mlx5_0/1", "drain", true);
        EXPECT_NODE(&w, "b", "evict", "draining", "two network alerts");
        CU_ASSERT_EQUAL(ranks_on(&w, 2), 0);
        CU_ASSERT_EQUAL(job_state(&w, id), S(RUNNING));
        world_stop(&w);
}

/* As worker/health/ib.c says it (test_health_checks has its times): an alert while it is down, and after four minutes a word that needs no second one. */
TEST(a_port_that_flaps_is_ridden_out_and_a_dead_one_evicts_alone) {
        struct world w;
        uint64_t id = begin(&w);
        uint32_t epoch;
        Fp8ctl__V1__Job *j;

        for (int flap = 0; flap < 3; flap++) { /* each shorter than NCCL's retries, 137 s by default, and more than five minutes after the last */
                world_say_check(&w, 2, "ib-port", "mlx5_0/1", "warn", true);
                world_pass(&w, 130000);
                EXPECT_NODE(&w, "b", "warn", "open", "the evidence");
                world_say_check(&w, 2, "ib-port", "mlx5_0/1", "ok", true);
                world_pass(&w, 301000);
                EXPECT_NODE(&w, "b", "ok", "open", "");
        }
        j = world_job(&w, id);
        epoch = (uint32_t)j->epoch;
        CU_ASSERT_EQUAL(epoch, 1); /* nothing was done for any of them */
        fp8ctl__v1__job__free_unpacked(j, NULL);
        world_say_check(&w, 2, "ib-port", "mlx5_0/1", "warn", true);
        world_pass(&w, 240000);
        EXPECT_NODE(&w, "b", "warn", "open", "the evidence");
        CU_ASSERT(ranks_on(&w, 2) > 0);
        world_say_check(&w, 2, "ib-port", "mlx5_0/1", "evict", false);
        EXPECT_NODE(&w, "b", "evict", "draining", "ib-port mlx5_0/1");
        world_pump(&w);
        CU_ASSERT_EQUAL(ranks_on(&w, 2), 0);
        CU_ASSERT_EQUAL(job_state(&w, id), S(RUNNING));
        world_stop(&w);
}

TEST(a_network_check_that_says_so_anew_is_another_alert) {
        struct world w;

        begin(&w);
        w.check_since_ms = 1000;
        world_say_check(&w, 2, "ib-counters", "mlx5_0/1", "evict", true);
        world_pass(&w, 10000);
        world_say_check(&w, 2, "ib-counters", "mlx5_0/1", "evict", true); /* its evidence: the same blow */
        EXPECT_NODE(&w, "b", "warn", "open", "the evidence");
        w.check_since_ms = 2000;
        world_say_check(&w, 2, "ib-counters", "mlx5_0/1", "evict", true);
        EXPECT_NODE(&w, "b", "evict", "draining", "two network alerts");
        world_stop(&w);
}

TEST(the_breaker_keeps_half_of_the_cluster) {
        struct world w;
        Fp8ctl__V1__Node *n;
        uint64_t id = begin(&w);
        char buf[400];

        say_xid(&w, 2, 79, "0000:3b:00", -1, 0);
        say_xid(&w, 4, 79, "0000:3b:00", -1, 0);
        EXPECT_NODE(&w, "d", "evict", "draining", "Xid 79");
        say_xid(&w, 3, 79, "0000:3b:00", -1, 0);
        EXPECT_NODE(&w, "c", "warn", "open", "Xid 79");
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "breaker", buf, sizeof(buf)), "more than 50%"));
        say_xid(&w, 1, 95, "0000:3b:00", 0, 0); /* a device more is too many as well */
        EXPECT_NODE(&w, "a", "warn", "open", "Xid 95");
        CU_ASSERT_EQUAL(job_state(&w, id), S(RUNNING));
        world_pass(&w, 302000); /* the window is over: it is done then */
        EXPECT_NODE(&w, "c", "evict", "draining", "Xid 79");
        EXPECT_NODE(&w, "a", "warn", "open", "Xid 95");
        CU_ASSERT_EQUAL(job_state(&w, id), S(PENDING));
        n = world_node(&w, "a");
        CU_ASSERT_PTR_NOT_NULL(strstr(n->devices[0]->health, "Xid 95"));
        fp8ctl__v1__node__free_unpacked(n, NULL);
        world_stop(&w);
}

TEST(what_was_decided_outlives_the_controller) {
        struct world w;
        uint64_t id = begin(&w);
        Fp8ctl__V1__NodeFinding f = FP8CTL__V1__NODE_FINDING__INIT;
        Fp8ctl__V1__Node *n;

        f.check = (char *)"xid";
        f.subject = (char *)"0000:3b:00";
        f.code = 79;
        f.device = -1;
        f.sequence = 700;
        report(&w, 4, NULL, &f, false);
        say_xid(&w, 3, 95, "0000:3b:00", 1, 0);
        EXPECT_NODE(&w, "d", "evict", "draining", "Xid 79");
        world_restart(&w);
        EXPECT_NODE(&w, "d", "evict", "draining", "Xid 79");
        world_return(&w); /* a and b */
        world_attach(&w, 5, "d");
        report(&w, 5, NULL, &f, true); /* the worker reads the log again */
        n = world_node(&w, "d");
        CU_ASSERT_EQUAL(n->n_findings, 1);
        CU_ASSERT_EQUAL(n->findings[0]->count, 1);
        fp8ctl__v1__node__free_unpacked(n, NULL);
        n = world_node(&w, "c");
        CU_ASSERT_PTR_NOT_NULL(strstr(n->devices[1]->health, "Xid 95"));
        fp8ctl__v1__node__free_unpacked(n, NULL);
        uncordon(&w, "d");
        report(&w, 5, NULL, &f, true);
        EXPECT_NODE(&w, "d", "ok", "open", "");
        f.sequence = 701;
        report(&w, 5, NULL, &f, false);
        n = world_node(&w, "d");
        CU_ASSERT_EQUAL(n->findings[0]->count, 2);
        fp8ctl__v1__node__free_unpacked(n, NULL);
        CU_ASSERT(job_state(&w, id) == S(RUNNING) || job_state(&w, id) == S(RECOVERING));
        world_stop(&w);
}

/* ------------------------------------------------------------------ tests */
static Fp8ctl__V1__NodeTest *answer_test(struct world *w, uint64_t session, const char *verdict) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__NodeTestReply r = FP8CTL__V1__NODE_TEST_REPLY__INIT;
        Fp8ctl__V1__NodeTest t = FP8CTL__V1__NODE_TEST__INIT;
        Fp8ctl__V1__NodeTestPart part = FP8CTL__V1__NODE_TEST_PART__INIT, *parts[1] = { &part };

        for (size_t i = 0; i < w->n_sent; i++)
                if (w->sent[i].session == session && w->sent[i].m->body_case == TOLD(NODE_TEST_REQUEST))
                        r.request = w->sent[i].m->node_test_request->request;
        part.name = (char *)"gemm";
        part.device = 0;
        part.verdict = (char *)verdict;
        part.text = (char *)"digest 12, expected 34";
        t.parts = parts;
        t.n_parts = 1;
        r.test = &t;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_NODE_TEST_REPLY;
        m.node_test_reply = &r;
        controller_worker_message(w->c, session, &m);
        world_pump(w);
        return w->status == 0 && w->reply ? fp8ctl__v1__node_test__unpack(NULL, w->reply_len, w->reply) : NULL;
}

TEST(wrong_arithmetic_evicts_until_an_administrator_says_otherwise) {
        struct world w;
        uint64_t id = begin(&w);
        Fp8ctl__V1__TestNodeRequest q = FP8CTL__V1__TEST_NODE_REQUEST__INIT;
        Fp8ctl__V1__NodeTest *t;

        q.name = (char *)"b";
        controller_request(w.c, 6, REQ_TEST_NODE, &q.base, &world_ben);
        CU_ASSERT_EQUAL(w.status, 7);
        controller_request(w.c, 7, REQ_TEST_NODE, &q.base, &world_admin);
        t = answer_test(&w, 2, "ok");
        CU_ASSERT_FATAL(t != NULL);
        CU_ASSERT_TRUE(t->passed);
        fp8ctl__v1__node_test__free_unpacked(t, NULL);
        controller_request(w.c, 8, REQ_TEST_NODE, &q.base, &world_admin);
        t = answer_test(&w, 2, "evict");
        CU_ASSERT_FATAL(t != NULL);
        CU_ASSERT_FALSE(t->passed);
        fp8ctl__v1__node_test__free_unpacked(t, NULL);
        EXPECT_NODE(&w, "b", "evict", "draining", "test gemm of a device: digest 12, expected 34");
        CU_ASSERT_EQUAL(ranks_on(&w, 2), 0);
        CU_ASSERT_EQUAL(job_state(&w, id), S(RUNNING));
        controller_request(w.c, 9, REQ_TEST_NODE, &q.base, &world_admin);
        world_pass(&w, 121000);
        CU_ASSERT_EQUAL(w.status, 4);
        world_stop(&w);
}

TEST(with_test_nodes_a_node_gets_ranks_when_it_has_passed) {
        struct controller_config config = { .lease_ttl_ms = 10000, .heartbeat_ms = 1000, .restart_budget_ms = 3000, .version = "test", .test_nodes = true };
        struct world w;

        world_start_with(&w, &config);
        world_attach(&w, 1, "a");
        EXPECT_NODE(&w, "a", "testing", "open", "when its test has passed");
        world_submit(&w, "", 1, 1, "", false, &world_admin);
        world_pump(&w);
        CU_ASSERT_EQUAL(world_told(&w, 0, TOLD(START_RANKS), 0, 0), 0);
        CU_ASSERT_PTR_NULL(answer_test(&w, 1, "ok"));
        EXPECT_NODE(&w, "a", "ok", "open", "");
        world_stop(&w);
}

/* ------------------------------------------------------------------ nonsense */
TEST(nothing_that_a_worker_says_of_its_health_can_harm) {
        struct world w;
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__HealthReport r = FP8CTL__V1__HEALTH_REPORT__INIT;
        Fp8ctl__V1__NodeTestReply t = FP8CTL__V1__NODE_TEST_REPLY__INIT;
        static char lots[5000];
        Fp8ctl__V1__Node *n;

        begin(&w);
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_HEALTH_REPORT;
        controller_worker_message(w.c, 4, &m);
        m.health_report = &r;
        controller_worker_message(w.c, 4, &m);
        memset(lots, '\n', sizeof(lots) - 1);
        world_say_check(&w, 4, lots, lots, "evict", false);
        world_say_check(&w, 4, "", "", "drain", false);
        world_say_check(&w, 4, "disk", "", "on fire", false);
        say_xid(&w, 4, UINT32_MAX, lots, INT32_MIN, UINT32_MAX);
        for (int i = 0; i < 2000; i++) {
                char name[20];

                snprintf(name, sizeof(name), "c%d", i);
                world_say_check(&w, 3, name, "", "warn", false);
                say_xid(&w, 3, 1000 + (uint32_t)i, name, 5000, 0);
        }
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_NODE_TEST_REPLY;
        m.node_test_reply = &t;
        controller_worker_message(w.c, 4, &m); /* nobody asked */
        n = world_node(&w, "c");
        CU_ASSERT_EQUAL(n->n_checks, HEALTH_CHECKS_MAX);
        CU_ASSERT_EQUAL(n->n_findings, HEALTH_FINDINGS_MAX);
        CU_ASSERT_STRING_EQUAL(n->duty, "open");
        fp8ctl__v1__node__free_unpacked(n, NULL);
        report(&w, 3, NULL, NULL, true);
        n = world_node(&w, "c");
        CU_ASSERT_EQUAL(n->n_checks, 0);
        fp8ctl__v1__node__free_unpacked(n, NULL);
        world_stop(&w);
}

TEST_MAIN("health")
