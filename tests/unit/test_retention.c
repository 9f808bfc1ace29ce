/* SPDX-License-Identifier: Apache-2.0 */
/* How long jobs that ended and events are kept. */
#include "tests/test.h"
#include "tests/unit/core_world.h"

static void start(struct world *w, uint32_t keep_jobs, uint32_t keep_event_days) {
        struct controller_config config = { .lease_ttl_ms = 10000, .heartbeat_ms = 1000, .restart_budget_ms = 3000, .keep_jobs = keep_jobs, .keep_event_days = keep_event_days,
                                            .version = "test" };

        world_start_with(w, &config);
}

static void cancel(struct world *w, uint64_t id) {
        Fp8ctl__V1__CancelJobRequest q = FP8CTL__V1__CANCEL_JOB_REQUEST__INIT;

        q.id = id;
        q.now = true;
        controller_request(w->c, 5, REQ_CANCEL_JOB, &q.base, &world_admin);
}

/* A job that waits and is cancelled. */
static uint64_t one(struct world *w, const char *request, int dir) {
        uint64_t id;

        w->wall_ms += 1000;
        world_submit(w, request, 2, dir, "", false, &world_admin);
        id = world_submitted(w);
        cancel(w, id);
        return id;
}

static bool known(struct world *w, uint64_t id) {
        Fp8ctl__V1__Job *j = world_job(w, id);

        if (j)
                fp8ctl__v1__job__free_unpacked(j, NULL);
        return j != NULL;
}

TEST(the_newest_ended_jobs_are_kept) {
        struct world w;

        start(&w, 3, 30);
        for (int i = 1; i <= 5; i++) {
                char request[8];

                snprintf(request, sizeof(request), "r%d", i);
                CU_ASSERT_EQUAL(one(&w, request, i), (uint64_t)i);
        }
        CU_ASSERT_FALSE(known(&w, 1));
        CU_ASSERT_PTR_NOT_NULL(strstr(w.error, "not kept any more"));
        CU_ASSERT_FALSE(known(&w, 2));
        CU_ASSERT(known(&w, 3) && known(&w, 4) && known(&w, 5));
        CU_ASSERT_FALSE(known(&w, 6));
        CU_ASSERT_PTR_NOT_NULL(strstr(w.error, "not known"));
        CU_ASSERT_EQUAL(world_count(&w, "job/"), 3);
        CU_ASSERT_EQUAL(world_count(&w, "request/"), 3);
        CU_ASSERT_EQUAL(one(&w, "r1", 6), 6); /* its request id may be used again */
        world_restart(&w);
        CU_ASSERT(known(&w, 4) && known(&w, 5) && known(&w, 6));
        CU_ASSERT_FALSE(known(&w, 3));
        CU_ASSERT_EQUAL(one(&w, "r7", 7), 7); /* ids are not */
        world_stop(&w);
}

TEST(a_smaller_limit_holds_from_the_next_start) {
        struct world w;

        start(&w, 200, 30);
        for (int i = 1; i <= 120; i++)
                one(&w, "", i);
        CU_ASSERT_EQUAL(world_count(&w, "job/"), 120);
        w.config.keep_jobs = 10;
        world_restart(&w);
        for (int i = 0; i < 3; i++)
                controller_tick(w.c);
        CU_ASSERT_EQUAL(world_count(&w, "job/"), 10);
        CU_ASSERT(known(&w, 111));
        CU_ASSERT_FALSE(known(&w, 110));
        world_stop(&w);
}

/* A job that runs is kept however old it is; one that ended is kept while its ranks live, and takes its commits and its epoch with it. */
TEST(a_job_is_kept_until_nothing_of_it_is_left) {
        struct world w;
        uint64_t id;

        start(&w, 1, 30);
        id = world_run_job(&w, "");
        for (uint32_t r = 0; r < 4; r++)
                world_prepared(&w, r, 1, 1);
        world_pump(&w);
        CU_ASSERT_EQUAL(world_count(&w, "commit/"), 1);
        for (int i = 2; i <= 4; i++)
                one(&w, "", i);
        CU_ASSERT(known(&w, id) && known(&w, 4));
        CU_ASSERT_FALSE(known(&w, 3));
        w.wall_ms += 1000;
        cancel(&w, id);
        one(&w, "", 5);
        CU_ASSERT(known(&w, id)); /* its ranks have been told to leave and still hold their devices */
        CU_ASSERT(known(&w, 5));
        world_pass(&w, 15000);
        CU_ASSERT_FALSE(known(&w, id));
        CU_ASSERT(known(&w, 5));
        CU_ASSERT_EQUAL(world_count(&w, "commit/"), 0);
        CU_ASSERT_EQUAL(world_count(&w, "epoch/"), 0);
        world_stop(&w);
}

TEST(events_are_kept_for_some_days) {
        struct world w;
        char text[200];

        start(&w, 1000, 2);
        CU_ASSERT_EQUAL(one(&w, "", 1), 1);
        CU_ASSERT_STRING_NOT_EQUAL(world_event(&w, "controller_started", text, sizeof(text)), "");
        w.wall_ms += UINT64_C(47) * 3600 * 1000;
        one(&w, "", 2);
        CU_ASSERT_STRING_NOT_EQUAL(world_event(&w, "controller_started", text, sizeof(text)), "");
        w.wall_ms += UINT64_C(2) * 3600 * 1000;
        for (int i = 3; i < 6; i++)
                one(&w, "", i);
        CU_ASSERT_STRING_EQUAL(world_event(&w, "controller_started", text, sizeof(text)), "");
        CU_ASSERT_STRING_NOT_EQUAL(world_event(&w, "cancelled", text, sizeof(text)), "");
        CU_ASSERT_EQUAL(world_count(&w, "event/"), 8); /* submitted and cancelled: jobs 2 to 5 */
        world_stop(&w);
}

TEST_MAIN("retention")
