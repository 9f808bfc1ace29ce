/* SPDX-License-Identifier: Apache-2.0 */
/* Who is slower than others that do the same: pure, and out of what workers tell. */
#include <string.h>

#include "daemon/core/pace.h"
#include "proto/flight.h"
#include "tests/test.h"
#include "tests/unit/core_world.h"

static bool slow(const double *v, size_t n, size_t i, double percent) {
        double scratch[16], median;

        return pace_is_slow(v, n, i, percent, scratch, &median);
}

TEST(an_outlier_above_the_others) {
        const double calm[] = { 50, 52, 49, 51, 50, 53, 48, 50 }, one[] = { 50, 52, 49, 51, 50, 80, 48, 50 }, wide[] = { 20, 60, 40, 90, 30, 95, 50, 10 }, two[] = { 50, 70 }, small[] = { 0.5, 0.5, 1.2, 0.5 };

        for (size_t i = 0; i < 8; i++) {
                CU_ASSERT_FALSE(slow(calm, 8, i, 30));
                CU_ASSERT_EQUAL(slow(one, 8, i, 30), i == 5);
                CU_ASSERT_FALSE(slow(wide, 8, i, 30)); /* all differ: nobody stands out */
        }
        CU_ASSERT_FALSE(slow(one, 8, 5, 100));
        CU_ASSERT_TRUE(slow(two, 2, 1, 30));
        CU_ASSERT_FALSE(slow(two, 2, 0, 30));
        CU_ASSERT_FALSE(slow(small, 4, 2, 30)); /* less than a millisecond */
        CU_ASSERT_FALSE(slow(two, 1, 0, 30));   /* alone */
}

TEST(three_windows_make_a_straggler_and_three_end_it) {
        struct world w;
        char text[1200];

        world_start_job(&w, ", \"metrics\": {\"straggler_steps\": 5}");
        for (uint64_t window = 0; window <= 8; window++) {
                world_progress(&w, 1 + 5 * window);
                CU_ASSERT_EQUAL(world_event(&w, "straggler", text, sizeof(text))[0] != 0, window >= 4);
                if (window == 4)
                        CU_ASSERT_PTR_NOT_NULL(strstr(text, "rank 2 on"));
                CU_ASSERT_EQUAL(world_event(&w, "straggler_over", text, sizeof(text))[0] != 0, window >= 8);
                for (int r = 0; r < 4; r++)
                        w.busy_ms[r][FLIGHT_FORWARD] += 5 * (r == 2 && window >= 1 && window <= 4 ? 80 : 50 + r);
                w.busy_ms[0][FLIGHT_LOADING] += 1e6; /* no part of a step */
        }
        world_stop(&w);
}

TEST_MAIN("straggler")
