/* SPDX-License-Identifier: Apache-2.0 */
/* Saves whose words were lost with a controller or a worker that died, and words that are said again. */
#include "tests/test.h"
#include "tests/unit/core_world.h"

#define COMMITTED FP8CTL__V1__CONTROLLER_MESSAGE__BODY_CHECKPOINT_COMMITTED
#define DROPPED FP8CTL__V1__CONTROLLER_MESSAGE__BODY_CHECKPOINT_DROPPED

static void all_prepared(struct world *w, uint64_t step, uint32_t attempt) {
        for (uint32_t r = 0; r < 4; r++)
                world_prepared(w, r, step, attempt);
}

static bool is_committed(const struct world *w, uint64_t job, uint64_t step) {
        char key[64];

        snprintf(key, sizeof(key), "commit/%u/%020u", (unsigned)job, (unsigned)step);
        return world_stored(w, key) != NULL;
}

TEST(a_save_is_committed_when_all_have_spoken) {
        struct world w;
        size_t before;
        uint64_t id;

        world_start(&w, false);
        id = world_run_job(&w, "");
        CU_ASSERT_FATAL(id != 0);
        for (uint32_t r = 0; r < 3; r++)
                world_prepared(&w, r, 1, 1);
        CU_ASSERT_EQUAL(w.n_files, 0);
        before = w.n_sent;
        world_prepared(&w, 3, 1, 1);
        CU_ASSERT_EQUAL_FATAL(w.n_files, 1);
        CU_ASSERT_FALSE(is_committed(&w, id, 1));
        world_pump_files(&w, 0);
        CU_ASSERT(is_committed(&w, id, 1));
        CU_ASSERT_EQUAL(world_told(&w, before, COMMITTED, 1, 1), 1);
        CU_ASSERT_EQUAL(world_told(&w, before, COMMITTED, 2, 1), 1);
        world_stop(&w);
}

/* The words of ranks 1 to 3 about saves 1 to 20 were said to a controller that died; they do not come again. */
TEST(saves_that_wait_for_lost_words_do_not_hold_up_later_ones) {
        struct world w;
        uint64_t id;

        world_start(&w, false);
        id = world_run_job(&w, "");
        for (uint64_t step = 1; step <= 20; step++)
                world_prepared(&w, 0, step, 1);
        all_prepared(&w, 21, 1);
        world_pump_files(&w, 0);
        CU_ASSERT(is_committed(&w, id, 21));
        CU_ASSERT_EQUAL(world_count(&w, "commit/"), 1);
        for (uint64_t step = 1; step <= 20; step++)
                for (uint64_t session = 1; session <= 2; session++)
                        CU_ASSERT_EQUAL(world_told(&w, 0, DROPPED, session, step), 1);
        CU_ASSERT_EQUAL(world_told(&w, 0, DROPPED, 0, 21), 0);
        world_stop(&w);
}

/* Older saves are given up only when every rank has gone past them: a slow rank's save is not. */
TEST(a_save_that_is_still_being_written_is_not_given_up) {
        struct world w;
        uint64_t id;

        world_start(&w, false);
        id = world_run_job(&w, "");
        for (uint64_t step = 1; step <= 5; step++)
                for (uint32_t r = 0; r < 3; r++)
                        world_prepared(&w, r, step, 1);
        CU_ASSERT_EQUAL(world_told(&w, 0, DROPPED, 0, 0), 0);
        for (uint64_t step = 1; step <= 5; step++)
                world_prepared(&w, 3, step, 1);
        world_pump_files(&w, 0);
        CU_ASSERT_EQUAL(world_told(&w, 0, DROPPED, 0, 0), 0);
        CU_ASSERT_EQUAL(world_told(&w, 0, COMMITTED, 1, 0), 5);
        CU_ASSERT(is_committed(&w, id, 3) && is_committed(&w, id, 4) && is_committed(&w, id, 5)); /* keep_last 3 */
        CU_ASSERT_EQUAL(world_count(&w, "commit/"), 3);
        world_stop(&w);
}

TEST(a_word_about_a_committed_save_is_answered_again_to_who_said_it) {
        struct world w;
        size_t before;

        world_start(&w, false);
        world_run_job(&w, "");
        all_prepared(&w, 1, 1);
        world_pump_files(&w, 0);
        before = w.n_sent;
        world_prepared(&w, 2, 1, 1); /* rank 2 lives on node b */
        CU_ASSERT_EQUAL(world_told(&w, before, COMMITTED, w.ranks[2].session, 1), 1);
        CU_ASSERT_EQUAL(w.n_sent, before + 1);
        CU_ASSERT_EQUAL(w.n_files, w.files_done); /* and nothing is written again */
        world_stop(&w);
}

TEST(a_word_about_a_dropped_save_is_answered_again_to_who_said_it) {
        struct world w;
        size_t before;

        world_start(&w, false);
        world_run_job(&w, "");
        world_prepared(&w, 0, 1, 1);
        all_prepared(&w, 2, 1);
        world_pump(&w);
        before = w.n_sent;
        world_prepared(&w, 3, 1, 1);
        CU_ASSERT_EQUAL(world_told(&w, before, DROPPED, w.ranks[3].session, 1), 1);
        CU_ASSERT_EQUAL(w.n_sent, before + 1);
        world_stop(&w);
}

/* As after a controller's death: half of the words reached the old one, and each worker says its own again after its welcome. */
TEST(words_said_again_complete_a_save_under_a_new_controller) {
        struct world w;
        uint64_t id;

        world_start(&w, false);
        id = world_run_job(&w, "");
        world_prepared(&w, 0, 1, 1);
        world_prepared(&w, 1, 1, 1);
        world_restart(&w);
        CU_ASSERT_FALSE(is_committed(&w, id, 1));
        for (uint32_t r = 0; r < 4; r++) {
                CU_ASSERT_EQUAL(w.ranks[r].session, r < 2 ? 1 : 2);
                w.ranks[r].session += 2;
        }
        world_attach_ranks(&w, 3, "a");
        world_attach_ranks(&w, 4, "b");
        all_prepared(&w, 1, 1);
        world_pump_files(&w, 0);
        CU_ASSERT(is_committed(&w, id, 1));
        world_stop(&w);
}

TEST_MAIN("saves")
