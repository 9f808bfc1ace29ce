/* SPDX-License-Identifier: Apache-2.0 */
/* What only replica memory has becomes a checkpoint before it goes, or for another layout. Four ranks on two nodes, each of which keeps the other's copies; step 3 is saved, step 4 is in memory. */
#include "tests/test.h"
#include "tests/unit/core_world.h"

#define S(x) FP8CTL__V1__JOB_STATE__##x
#define LOAD(x) FP8CTL__V1__LOAD_SOURCE__KIND__##x
#define TOLD(x) FP8CTL__V1__CONTROLLER_MESSAGE__BODY_##x

#define ELASTIC ", \"recovery\": {\"min_dp\": 1, \"rescue_ms\": 20000}"

static uint64_t start(struct world *w, const char *more) {
        uint64_t id;

        world_start(w, false);
        w->saves_memory = true;
        id = world_run_job(w, more);
        for (uint32_t r = 0; r < 4; r++)
                world_prepared(w, r, 3, 1);
        world_pump(w);
        world_progress(w, 4);
        w->replicas = w->held = 1 << 4;
        return id;
}

static int state_of(struct world *w, uint64_t id, char *reason, size_t size) {
        Fp8ctl__V1__Job *j = world_job(w, id);
        int state = j ? (int)j->state : -1;

        snprintf(reason, size, "%s", j ? j->reason : "");
        if (j)
                fp8ctl__v1__job__free_unpacked(j, NULL);
        return state;
}

static const Fp8ctl__V1__SaveMemory *asked(const struct world *w) {
        for (size_t i = w->n_sent; i-- > 0;)
                if (w->sent[i].m->body_case == TOLD(SAVE_MEMORY))
                        return w->sent[i].m->save_memory;
        return NULL;
}

TEST(fewer_replicas_go_on_from_what_memory_has) {
        const Fp8ctl__V1__SaveMemory *q;
        char text[400];
        struct world w;
        uint64_t id = start(&w, ELASTIC);

        world_lose_b(&w);
        CU_ASSERT_EQUAL(state_of(&w, id, text, sizeof(text)), S(RUNNING));
        q = asked(&w);
        CU_ASSERT_PTR_NOT_NULL_FATAL(q);
        CU_ASSERT(q->n_ranks == 4 && q->shard_count == 4 && q->step == 4 && q->generation_epoch == 1 && q->epoch == 2);
        CU_ASSERT_STRING_EQUAL(q->directory, "/ckpt1/step_00000004.e2.2");
        CU_ASSERT_EQUAL(w.load_kind, LOAD(CHECKPOINT));
        CU_ASSERT_EQUAL(w.load_step, 4);
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "checkpoint_committed", text, sizeof(text)), "step 4 saved in /ckpt1/step_00000004.e2.2, 40 bytes"));
        world_stop(&w);
}

TEST(what_cannot_be_saved_is_done_again) {
        char text[400];
        struct world w;
        uint64_t id = start(&w, ELASTIC);

        w.save_error = "No space left on device";
        world_lose_b(&w);
        CU_ASSERT_EQUAL(state_of(&w, id, text, sizeof(text)), S(RUNNING));
        CU_ASSERT_EQUAL(w.load_step, 3);
        CU_ASSERT_STRING_EQUAL(world_event(&w, "memory_not_saved", text, sizeof(text)), "step 4 in replica memory could not be saved: a: No space left on device");
        world_stop(&w);
}

TEST(what_takes_too_long_is_given_up) {
        char text[400];
        struct world w;
        uint64_t id = start(&w, ELASTIC);

        w.lose_memory = true;
        world_lose_b(&w);
        CU_ASSERT_EQUAL(state_of(&w, id, text, sizeof(text)), S(RECOVERING));
        world_pass(&w, 21000);
        CU_ASSERT_EQUAL(state_of(&w, id, text, sizeof(text)), S(RUNNING));
        CU_ASSERT_EQUAL(w.load_step, 3);
        world_stop(&w);
}

TEST(without_time_for_it_nobody_is_asked) {
        char text[400];
        struct world w;
        uint64_t id = start(&w, ", \"recovery\": {\"min_dp\": 1, \"rescue_ms\": 0}");

        world_lose_b(&w);
        CU_ASSERT_EQUAL(state_of(&w, id, text, sizeof(text)), S(RUNNING));
        CU_ASSERT_PTR_NULL(asked(&w));
        CU_ASSERT_EQUAL(w.load_step, 3);
        world_stop(&w);
}

TEST(a_job_that_must_wait_for_devices_goes_on_from_what_memory_had) {
        char text[400];
        struct world w;
        uint64_t id = start(&w, "");

        world_lose_b(&w);
        CU_ASSERT_EQUAL(state_of(&w, id, text, sizeof(text)), S(PENDING));
        w.replicas = w.held = 0;
        world_attach(&w, 3, "b");
        world_pump(&w);
        CU_ASSERT_EQUAL(state_of(&w, id, text, sizeof(text)), S(RUNNING));
        CU_ASSERT_EQUAL(w.load_step, 4);
        world_stop(&w);
}

/* The rank's death is told, and before anybody has parked its node leaves. */
TEST(a_job_that_leaves_while_it_recovers_keeps_what_memory_has) {
        char text[400];
        struct world w;
        uint64_t id = start(&w, "");

        world_exited(&w, 1, "killed by SIGKILL");
        CU_ASSERT_EQUAL(state_of(&w, id, text, sizeof(text)), S(RECOVERING));
        world_leaving(&w, 2);
        CU_ASSERT_EQUAL(state_of(&w, id, text, sizeof(text)), S(RECOVERING));
        world_pump(&w);
        CU_ASSERT_EQUAL(state_of(&w, id, text, sizeof(text)), S(PENDING));
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "requeued", text, sizeof(text)), "goes on from step 4"));
        world_stop(&w);
}

TEST(a_controller_that_dies_over_it_goes_on_with_it) {
        char text[400];
        struct world w;
        uint64_t id = start(&w, "");

        w.lose_memory = true;
        world_exited(&w, 1, "killed by SIGKILL");
        world_leaving(&w, 2);
        world_pump(&w);
        CU_ASSERT_PTR_NOT_NULL(asked(&w));
        CU_ASSERT_EQUAL(state_of(&w, id, text, sizeof(text)), S(RECOVERING));
        world_restart(&w);
        w.lose_memory = false;
        world_return(&w);
        world_pump(&w);
        CU_ASSERT_EQUAL(state_of(&w, id, text, sizeof(text)), S(RUNNING)); /* again, now that both are back */
        CU_ASSERT_EQUAL(w.load_step, 4);
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "requeued", text, sizeof(text)), "goes on from step 4"));
        world_stop(&w);
}

TEST_MAIN("rescue")
