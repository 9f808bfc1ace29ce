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

TEST_MAIN("core_tables")
