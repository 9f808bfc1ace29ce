/* SPDX-License-Identifier: Apache-2.0 */
/* Which devices jobs have: fewer when some are lost, more when they are back, as many as a client asks for; others when a node is drained or somebody with more claim comes. */
#include "tests/test.h"
#include "tests/unit/core_world.h"

#define S(x) FP8CTL__V1__JOB_STATE__##x
#define LOAD(x) FP8CTL__V1__LOAD_SOURCE__KIND__##x
#define TOLD(x) FP8CTL__V1__CONTROLLER_MESSAGE__BODY_##x

static void expect(struct world *w, uint64_t id, int state, uint32_t dp, uint32_t wanted, int line) {
        Fp8ctl__V1__Job *j = world_job(w, id);
        bool as_expected = j && (int)j->state == state && j->dp == dp && j->dp_wanted == wanted && j->plan->n_ranks == 2 * (size_t)dp;

        if (!as_expected)
                printf("\n    line %d: found state %d, dp %u of %u, '%s', expected %d, %u of %u\n", line, j ? (int)j->state : -1, j ? j->dp : 0, j ? j->dp_wanted : 0, j ? j->reason : "", state, dp,
                       wanted);
        CU_ASSERT(as_expected);
        if (j)
                fp8ctl__v1__job__free_unpacked(j, NULL);
}
#define EXPECT(w, id, state, dp, wanted) expect(w, id, state, dp, wanted, __LINE__)

static void save(struct world *w, uint32_t ranks, uint64_t step) {
        for (uint32_t r = 0; r < ranks; r++)
                world_prepared(w, r, step, 1);
        world_pump(w);
        world_progress(w, step);
}

/* All do what StopRanks asks for. */
static void stop_at(struct world *w, uint32_t ranks, uint64_t step) {
        for (uint32_t r = 0; r < ranks; r++) {
                world_prepared(w, r, step, 1);
                world_done(w, r, step, true);
        }
        world_pump(w);
}

static void scale(struct world *w, uint64_t id, uint32_t dp, int status) {
        Fp8ctl__V1__ScaleJobRequest q = FP8CTL__V1__SCALE_JOB_REQUEST__INIT;

        q.id = id;
        q.dp = dp;
        controller_request(w->c, 7, REQ_SCALE_JOB, &q.base, &world_admin);
        CU_ASSERT_EQUAL(w->status, status);
        world_pump(w);
}

#define ELASTIC ", \"recovery\": {\"min_dp\": 1, \"grow_delay_ms\": 2000}"

TEST(with_min_dp_a_lost_node_costs_a_replica_and_gives_it_back) {
        struct world w;
        uint64_t id = world_start_job(&w, ELASTIC);
        size_t since;
        char buf[300];

        save(&w, 4, 3);
        w.replicas = 1 << 4; /* of four ranks: of no use to two */
        world_lose_b(&w);
        EXPECT(&w, id, S(RUNNING), 1, 2);
        CU_ASSERT_EQUAL(w.load_kind, LOAD(CHECKPOINT));
        CU_ASSERT_EQUAL(w.load_step, 3);
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "shrunk", buf, sizeof(buf)), "1 replica instead of 2, with 4 micro-batches each instead of 2"));
        save(&w, 2, 5);
        since = w.n_sent;
        world_attach(&w, 3, "b");
        world_pump(&w);
        world_pass(&w, 1000);
        CU_ASSERT_EQUAL(world_told(&w, since, TOLD(STOP_RANKS), 0, 0), 0); /* grow_delay_ms */
        world_pass(&w, 2000);
        CU_ASSERT_EQUAL(world_told(&w, since, TOLD(STOP_RANKS), 1, 0), 1);
        EXPECT(&w, id, S(RUNNING), 1, 2);
        stop_at(&w, 2, 7);
        EXPECT(&w, id, S(RUNNING), 2, 2);
        CU_ASSERT_EQUAL(w.load_kind, LOAD(CHECKPOINT));
        CU_ASSERT_EQUAL(w.load_step, 7);
        world_stop(&w);
}

TEST(without_min_dp_it_waits_for_devices) {
        struct world w;
        uint64_t id = world_start_job(&w, "");

        save(&w, 4, 3);
        world_lose_b(&w);
        EXPECT(&w, id, S(PENDING), 2, 2);
        world_stop(&w);
}

TEST(a_controller_that_dies_knows_how_many_replicas_there_are_and_what_was_asked_for) {
        struct world w;
        uint64_t id = world_start_job(&w, ELASTIC);

        save(&w, 4, 3);
        scale(&w, id, 1, 0);
        EXPECT(&w, id, S(RUNNING), 2, 1);
        CU_ASSERT_EQUAL(world_told(&w, 0, TOLD(STOP_RANKS), 0, 0), 2);
        world_restart(&w); /* between the order and the last step */
        world_return(&w);
        world_pump(&w);
        CU_ASSERT_EQUAL(world_told(&w, 0, TOLD(STOP_RANKS), 3, 0), 1); /* it may not have arrived */
        stop_at(&w, 4, 6);
        EXPECT(&w, id, S(RUNNING), 1, 1);
        CU_ASSERT_EQUAL(w.load_step, 6);
        world_restart(&w);
        EXPECT(&w, id, S(RUNNING), 1, 1);
        world_stop(&w);
}

TEST(a_failure_while_they_stop_is_a_recovery_and_then_it_is_tried_again) {
        struct world w;
        uint64_t id = world_start_job(&w, ELASTIC);
        size_t since;

        save(&w, 4, 3);
        scale(&w, id, 1, 0);
        since = w.n_sent;
        world_exited(&w, 1, "killed by SIGKILL");
        world_pump(&w);
        EXPECT(&w, id, S(RUNNING), 2, 1);
        CU_ASSERT_EQUAL(world_told(&w, since, TOLD(STOP_RANKS), 0, 0), 0);
        world_progress(&w, 5);
        world_pump(&w);
        CU_ASSERT_EQUAL(world_told(&w, since, TOLD(STOP_RANKS), 0, 0), 2);
        stop_at(&w, 4, 6);
        EXPECT(&w, id, S(RUNNING), 1, 1);
        world_stop(&w);
}

TEST(what_cannot_be_saved_in_time_changes_nothing) {
        struct world w;
        uint64_t id = world_start_job(&w, ", \"recovery\": {\"grace_ms\": 1000}");

        save(&w, 4, 3);
        scale(&w, id, 1, 0);
        world_pass(&w, 12000);
        EXPECT(&w, id, S(RUNNING), 2, 1);
        CU_ASSERT(w.plans > 2); /* a new epoch of the old layout */
        world_stop(&w);
}

TEST(only_a_number_that_divides_the_batch_can_be_asked_for) {
        struct world w;
        uint64_t id = world_start_job(&w, "");

        save(&w, 4, 3);
        scale(&w, id, 3, 3);
        CU_ASSERT_PTR_NOT_NULL(strstr(w.error, "what divides train.global_batch / train.micro_batch (4)"));
        scale(&w, id, 0, 3);
        scale(&w, id, 4, 0); /* there are no devices for it yet */
        EXPECT(&w, id, S(RUNNING), 2, 4);
        scale(&w, id + 1, 1, 5);
        world_stop(&w);
}

static void set_node(struct world *w, const char *name, Fp8ctl__V1__SetNodeRequest__Duty duty, uint64_t after_ms, uint64_t for_ms, int status) {
        Fp8ctl__V1__SetNodeRequest q = FP8CTL__V1__SET_NODE_REQUEST__INIT;

        q.name = (char *)name;
        q.duty = duty;
        q.after_ms = after_ms;
        q.for_ms = for_ms;
        q.reason = (char *)"new fans";
        controller_request(w->c, 8, REQ_SET_NODE, &q.base, &world_admin);
        CU_ASSERT_EQUAL(w->status, status);
        world_pump(w);
}
#define DUTY(x) FP8CTL__V1__SET_NODE_REQUEST__DUTY__##x

static bool has_ranks_on(struct world *w, uint64_t id, const char *node) {
        Fp8ctl__V1__Job *j = world_job(w, id);
        bool found = false;

        for (size_t i = 0; j && i < j->plan->n_ranks; i++)
                found = found || strcmp(j->plan->ranks[i]->node, node) == 0;
        if (j)
                fp8ctl__v1__job__free_unpacked(j, NULL);
        return found;
}

TEST(a_drained_node_s_ranks_move_at_the_end_of_a_step) {
        struct world w;
        uint64_t id;
        size_t since;
        char buf[300];

        world_start(&w, false);
        id = world_run_job(&w, "");
        save(&w, 4, 3);
        set_node(&w, "x", DUTY(DRAIN), 0, 0, 5);
        set_node(&w, "b", DUTY(DRAIN), 0, 0, 0);
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "drain_waits", buf, sizeof(buf)), "no free devices"));
        since = w.n_sent;
        world_restart(&w); /* it is still draining */
        world_return(&w);
        world_attach(&w, 2, "c");
        world_pump(&w);
        CU_ASSERT_EQUAL(world_told(&w, since, TOLD(STOP_RANKS), 0, 0), 2);
        stop_at(&w, 4, 6);
        EXPECT(&w, id, S(RUNNING), 2, 2);
        CU_ASSERT_FALSE(has_ranks_on(&w, id, "b"));
        CU_ASSERT_TRUE(has_ranks_on(&w, id, "c"));
        CU_ASSERT_EQUAL(w.load_step, 6);
        CU_ASSERT_STRING_NOT_EQUAL(world_event(&w, "node_drained", buf, sizeof(buf)), "");
        world_stop(&w);
}

TEST(a_cordoned_node_keeps_its_ranks_and_gets_no_others) {
        struct world w;
        uint64_t id;

        world_start(&w, false);
        id = world_run_job(&w, "");
        set_node(&w, "b", DUTY(CORDON), 0, 0, 0);
        world_exited(&w, 2, "killed by SIGKILL"); /* in place is no new rank */
        world_pump(&w);
        EXPECT(&w, id, S(RUNNING), 2, 2);
        CU_ASSERT_TRUE(has_ranks_on(&w, id, "b"));
        scale(&w, id, 1, 0);
        stop_at(&w, 4, 4);
        EXPECT(&w, id, S(RUNNING), 1, 1);
        world_progress(&w, 5);
        scale(&w, id, 2, 0);
        EXPECT(&w, id, S(RUNNING), 1, 2);
        CU_ASSERT_EQUAL(world_told(&w, 0, TOLD(STOP_RANKS), 0, 0), 2);
        set_node(&w, "b", DUTY(OPEN), 0, 0, 0);
        world_pass(&w, 11000); /* grow_delay_ms */
        stop_at(&w, 2, 7);
        EXPECT(&w, id, S(RUNNING), 2, 2);
        world_stop(&w);
}

TEST(a_window_drains_and_opens_by_itself) {
        struct world w;
        uint64_t id;
        char buf[300];

        world_start(&w, false);
        id = world_run_job(&w, ELASTIC);
        save(&w, 4, 3);
        set_node(&w, "b", DUTY(CORDON), 1, 1, 3);
        set_node(&w, "b", DUTY(DRAIN), 3000, 20000, 0);
        world_pass(&w, 2500);
        CU_ASSERT_EQUAL(world_told(&w, 0, TOLD(STOP_RANKS), 0, 0), 0);
        world_pass(&w, 1000);
        CU_ASSERT_EQUAL(world_told(&w, 0, TOLD(STOP_RANKS), 0, 0), 2);
        stop_at(&w, 4, 6);
        EXPECT(&w, id, S(RUNNING), 1, 2);
        world_progress(&w, 7);
        world_pass(&w, 15000);
        CU_ASSERT_STRING_EQUAL(world_event(&w, "node_uncordoned", buf, sizeof(buf)), "");
        world_pass(&w, 6000);
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "node_uncordoned", buf, sizeof(buf)), "its window is over"));
        stop_at(&w, 2, 8);
        EXPECT(&w, id, S(RUNNING), 2, 2);
        world_stop(&w);
}

TEST(who_has_more_claim_takes_devices_from_who_has_less) {
        struct world w;
        uint64_t id, other, third;

        world_start(&w, false);
        id = world_run_job(&w, "");
        save(&w, 4, 3);
        world_submit(&w, "2", 2, 2, "", false, &world_admin);
        other = world_submitted(&w);
        world_pump(&w);
        EXPECT(&w, other, S(PENDING), 2, 2); /* no more claim, and it came later */
        CU_ASSERT_EQUAL(world_told(&w, 0, TOLD(STOP_RANKS), 0, 0), 0);
        world_submit(&w, "3", 1, 3, ", \"priority\": 5", false, &world_admin);
        third = world_submitted(&w);
        world_pump(&w);
        CU_ASSERT_EQUAL(world_told(&w, 0, TOLD(STOP_RANKS), 0, 0), 2);
        EXPECT(&w, third, S(PENDING), 1, 1);
        stop_at(&w, 4, 6);
        EXPECT(&w, third, S(RUNNING), 1, 1);
        EXPECT(&w, id, S(PENDING), 2, 2);
        EXPECT(&w, other, S(PENDING), 2, 2);
        world_stop(&w);
}

/* Its stream broke over it: the next one begins where the last ended. */
TEST(a_worker_that_leaves_and_says_hello_again_gets_no_ranks) {
        char text[300];
        struct world w;
        uint64_t id;

        world_start(&w, false);
        world_attach(&w, 1, "a");
        world_attach(&w, 2, "b");
        world_leaving(&w, 2);
        controller_worker_closed(w.c, 2);
        w.leaving_ms = 2000;
        world_attach(&w, 3, "b");
        world_submit(&w, "", 2, 1, "", false, &world_admin);
        id = world_submitted(&w);
        world_pump(&w);
        EXPECT(&w, id, S(PENDING), 2, 2);
        CU_ASSERT_STRING_EQUAL(world_event(&w, "node_leaving", text, sizeof(text)), "b is leaving in 3.0 s: SIGTERM"); /* said once */
        w.leaving_ms = 0;
        world_attach(&w, 4, "b"); /* started anew */
        world_pump(&w);
        EXPECT(&w, id, S(RUNNING), 2, 2);
        world_stop(&w);
}

TEST_MAIN("layout")
