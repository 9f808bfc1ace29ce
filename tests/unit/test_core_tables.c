/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/core/core.h"
#include "tests/test.h"

TEST(tables_are_sound) {
        struct error e = { 0 };

        ASSERT_OK(table_check(&job_table, FP8CTL__V1__JOB_STATE__JOB_STATE_UNSPECIFIED, &e), e);
        ASSERT_OK(table_check(&recovery_table, REC_IDLE, &e), e);
        ASSERT_OK(table_check(&save_table, SAVE_PREPARING, &e), e);
        ASSERT_OK(table_check(&node_table, NODE_UNHEARD, &e), e);
}

TEST(an_ended_job_stays_ended) {
        for (int state = FP8CTL__V1__JOB_STATE__COMPLETED; state <= FP8CTL__V1__JOB_STATE__CANCELLED; state++)
                for (int ev = 0; ev < N_JOB_EVENTS; ev++)
                        CU_ASSERT_PTR_NULL(table_find(&job_table, state, ev));
}

/* A fault in any state of a live epoch leads to a new fence, and every live state can end. */
TEST(every_live_state_can_be_fenced_and_ended) {
        for (int state = REC_FENCE; state < N_REC_STATES; state++) {
                const struct table_row *fault = table_find(&recovery_table, state, REC_E_FAULT), *end = table_find(&recovery_table, state, REC_E_ENDED);

                CU_ASSERT_FATAL(fault != NULL && end != NULL);
                CU_ASSERT_EQUAL(fault->to, REC_FENCE);
                CU_ASSERT_EQUAL(end->to, REC_IDLE);
        }
}

TEST(bounded_text_blanks_controls_and_keeps_utf8_whole) {
        char b[6];

        core_text(b, sizeof(b), "a\nb\tc");
        CU_ASSERT_STRING_EQUAL(b, "a b c");
        core_text(b, sizeof(b), "abcd\xc3\xa4");
        CU_ASSERT_STRING_EQUAL(b, "abcd");
        core_text(b, sizeof(b), NULL);
        CU_ASSERT_STRING_EQUAL(b, "");
}

/* Eight ranks in epoch 3; rank 5 is stopped. */
TEST(a_stuck_rank_is_found_over_those_who_wait_for_its_victims) {
        struct rank ranks[8] = { 0 };
        struct job j = { .epoch = 3, .world = 8, .ranks = ranks };

        CU_ASSERT_EQUAL(stuck_rank(&j), -1);
        stuck_note(&j, 4, 5, true);
        stuck_note(&j, 6, 4, true);
        CU_ASSERT_EQUAL(stuck_rank(&j), -1); /* two of seven */
        stuck_note(&j, 7, 6, false);
        CU_ASSERT_EQUAL(stuck_rank(&j), -1);
        stuck_note(&j, 0, 4, true);
        CU_ASSERT_EQUAL(stuck_rank(&j), 5);
        CU_ASSERT_FALSE(stuck_all_spoke(&j));
        for (uint32_t i = 1; i < 4; i++)
                stuck_note(&j, i, -1, true);
        CU_ASSERT_TRUE(stuck_all_spoke(&j));
        CU_ASSERT_EQUAL(stuck_rank(&j), 5);
        stuck_note(&j, 5, 4, true); /* it moves after all: they wait for each other */
        CU_ASSERT_EQUAL(stuck_rank(&j), -1);
        j.epoch = 4; /* what was said before does not count */
        CU_ASSERT_EQUAL(stuck_rank(&j), -1);
        CU_ASSERT_FALSE(stuck_all_spoke(&j));
}

TEST(nobody_is_stuck_whom_nobody_waited_for) {
        struct rank ranks[2] = { 0 };
        struct job j = { .epoch = 1, .world = 2, .ranks = ranks };

        stuck_note(&j, 0, 1, false); /* its connection broke: its worker will say why */
        CU_ASSERT_EQUAL(stuck_rank(&j), -1);
        stuck_note(&j, 0, 9, true); /* no such rank */
        CU_ASSERT_EQUAL(stuck_rank(&j), -1);
        stuck_note(&j, 0, 0, true);
        CU_ASSERT_EQUAL(stuck_rank(&j), -1);
        stuck_note(&j, 0, 1, true);
        CU_ASSERT_EQUAL(stuck_rank(&j), 1);
}

TEST_MAIN("core_tables")
