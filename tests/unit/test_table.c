/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "base/table.h"
#include "test.h"

enum { IDLE, BUSY, DONE, N_STATES };
enum { START, FINISH, N_EVENTS };

static int refuse_all(void *ctx, const void *arg, struct error *e) {
        ++*(int *)ctx;
        return arg ? 0 : error_set(e, -EAGAIN, "not now");
}

static const char *const states[] = { "idle", "busy", "done" };
static const char *const events[] = { "start", "finish" };
static const struct table_row rows[] = { { IDLE, START, BUSY, NULL }, { BUSY, FINISH, DONE, refuse_all } };
static const struct table machine = { "machine", states, N_STATES, events, N_EVENTS, rows, 2 };

TEST(moves_along_its_rows) {
        struct error e;
        int state = IDLE, calls = 0;

        ASSERT_OK(table_check(&machine, IDLE, &e), e);
        ASSERT_OK(table_step(&machine, &state, START, &calls, NULL, &e), e);
        CU_ASSERT_EQUAL(state, BUSY);
        ASSERT_ERROR(table_step(&machine, &state, FINISH, &calls, NULL, &e), -EAGAIN, e, "not now");
        CU_ASSERT_EQUAL(state, BUSY); /* a failing action leaves it */
        ASSERT_OK(table_step(&machine, &state, FINISH, &calls, "x", &e), e);
        CU_ASSERT_EQUAL(state, DONE);
        CU_ASSERT_EQUAL(calls, 2);
}

TEST(refuses_what_is_not_listed) {
        struct error e;
        int state = IDLE;

        ASSERT_ERROR(table_step(&machine, &state, FINISH, NULL, NULL, &e), -EPROTO, e, "machine: event finish in state idle, expected one of start");
        state = DONE;
        ASSERT_ERROR(table_step(&machine, &state, START, NULL, NULL, &e), -EPROTO, e, "final state");
        ASSERT_ERROR(table_step(&machine, &state, 77, NULL, NULL, &e), -EPROTO, e, "(unknown)");
        CU_ASSERT_EQUAL(state, DONE);
        CU_ASSERT_PTR_NULL(table_find(&machine, 9, 9));
}

TEST(check_finds_bad_tables) {
        static const struct table_row twice[] = { { IDLE, START, BUSY, NULL }, { IDLE, START, DONE, NULL } };
        static const struct table_row outside[] = { { IDLE, START, 9, NULL } };
        static const struct table_row island[] = { { IDLE, START, BUSY, NULL } };
        static const char *const no_name[] = { "idle", NULL, "done" };
        struct error e;

        ASSERT_ERROR(table_check(&(struct table){ "t", states, 3, events, 2, twice, 2 }, IDLE, &e), -EINVAL, e, "listed twice");
        ASSERT_ERROR(table_check(&(struct table){ "t", states, 3, events, 2, outside, 1 }, IDLE, &e), -EINVAL, e, "row 0");
        ASSERT_ERROR(table_check(&(struct table){ "t", states, 3, events, 2, island, 1 }, IDLE, &e), -EINVAL, e, "done cannot be reached");
        ASSERT_ERROR(table_check(&(struct table){ "t", no_name, 3, events, 2, rows, 2 }, IDLE, &e), -EINVAL, e, "no name");
        ASSERT_ERROR(table_check(&machine, 3, &e), -EINVAL, e, "initial state 3");
}

TEST_MAIN("table")
