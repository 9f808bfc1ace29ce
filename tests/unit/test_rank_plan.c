/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/core/rank_plan.h"
#include "tests/test.h"

TEST(every_rank_once_and_back) {
        for (int tp = 1; tp <= 4; tp++)
                for (int pp = 1; pp <= 4; pp++)
                        for (int dp = 1; dp <= 4; dp++)
                                for (uint32_t r = 0; r < (uint32_t)(tp * pp * dp); r++) {
                                        struct rank_place p = rank_plan_place(tp, pp, dp, r);

                                        CU_ASSERT(p.tp < (uint32_t)tp && p.pp < (uint32_t)pp && p.dp < (uint32_t)dp);
                                        CU_ASSERT_EQUAL(rank_plan_rank(tp, pp, dp, p), r);
                                }
}

TEST(tensor_parallel_is_innermost) {
        struct rank_place a = rank_plan_place(2, 2, 2, 4), b = rank_plan_place(2, 2, 2, 5);

        CU_ASSERT(a.pp == 1 && a.dp == 0 && a.tp == 0);
        CU_ASSERT(b.pp == 1 && b.dp == 0 && b.tp == 1);
}

TEST(reporter_is_last_stage) {
        CU_ASSERT_EQUAL(rank_plan_reporter(2, 2, 2), 4);
        CU_ASSERT_EQUAL(rank_plan_reporter(1, 1, 4), 0);
        CU_ASSERT_EQUAL(rank_plan_reporter(1, 4, 1), 3);
}

TEST_MAIN("rank_plan")
