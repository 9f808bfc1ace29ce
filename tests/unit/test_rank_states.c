/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "tests/test.h"
#include "worker/rank/states.h"

static int go(int *state, enum rank_event event) {
        return table_step(&rank_states, state, event, NULL, NULL, NULL);
}

TEST(table_is_sound) {
        struct error e = { 0 };

        ASSERT_OK(table_check(&rank_states, RANK_STATE_STARTING, &e), e);
        CU_ASSERT_EQUAL(rank_states.n_states, RANK_STATE_COUNT);
        CU_ASSERT_EQUAL(rank_states.n_events, RANK_EVENT_COUNT);
}

TEST(a_life) {
        static const enum rank_event events[] = { RANK_EVENT_STARTED, RANK_EVENT_PLAN, RANK_EVENT_LOADED, RANK_EVENT_JOINED, RANK_EVENT_FAULT, RANK_EVENT_ABORT, RANK_EVENT_PLAN,
                                                  RANK_EVENT_LOADED, RANK_EVENT_JOINED, RANK_EVENT_FINISHED, RANK_EVENT_RELEASE };
        int state = RANK_STATE_STARTING;

        for (size_t i = 0; i < sizeof(events) / sizeof(events[0]); i++)
                CU_ASSERT_EQUAL(go(&state, events[i]), 0);
        CU_ASSERT_EQUAL(state, RANK_STATE_LEAVING);
}

/* An abort must be possible wherever an epoch can be, a release everywhere. */
TEST(every_state_can_be_left) {
        for (int state = RANK_STATE_PARKED; state < RANK_STATE_LEAVING; state++) {
                int s = state;

                CU_ASSERT_EQUAL(go(&s, RANK_EVENT_ABORT), 0);
                CU_ASSERT_EQUAL(s, RANK_STATE_PARKED);
                s = state;
                CU_ASSERT_EQUAL(go(&s, RANK_EVENT_RELEASE), 0);
                CU_ASSERT_EQUAL(s, RANK_STATE_LEAVING);
        }
}

TEST(what_is_not_listed_is_refused) {
        struct error e = { 0 };
        int state = RANK_STATE_RUNNING;

        ASSERT_ERROR(table_step(&rank_states, &state, RANK_EVENT_PLAN, NULL, NULL, &e), -EPROTO, e, "running");
        CU_ASSERT_EQUAL(state, RANK_STATE_RUNNING);
        state = RANK_STATE_STARTING;
        CU_ASSERT_EQUAL(go(&state, RANK_EVENT_ABORT), -EPROTO); /* the control thread keeps it until the rank is there */
        state = RANK_STATE_LEAVING;
        CU_ASSERT_EQUAL(go(&state, RANK_EVENT_PLAN), -EPROTO);
}

TEST_MAIN("rank states")
