/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "base/robust.h"
#include "tests/test.h"
#include "worker/rank/loss_watch.h"

TEST(median_and_spread) {
        double odd[] = { 3, 1, 2 }, even[] = { 4, 1, 3, 2 }, wild[] = { 1, 2, 3, 4, 1e9 }, median, sigma;

        CU_ASSERT_EQUAL(robust_median(NULL, 0), 0);
        CU_ASSERT_EQUAL(robust_median(odd, 3), 2);
        CU_ASSERT_EQUAL(robust_median(even, 4), 2.5);
        robust_spread(wild, 5, &median, &sigma);
        CU_ASSERT_EQUAL(median, 3);
        CU_ASSERT_DOUBLE_EQUAL(sigma, 1.4826, 1e-12); /* deviations 2 1 0 1 and a wild one */
}

static double falling(int i) {
        return 4 - 0.01 * i + (i % 3) * 0.02;
}

TEST(a_spike_is_told_once) {
        struct loss_watch w = { 0 };
        double median = 0;

        for (int i = 0; i < 100; i++)
                CU_ASSERT_FALSE(loss_watch_add(&w, falling(i), 10, &median));
        CU_ASSERT_TRUE(loss_watch_add(&w, 9, 10, &median));
        CU_ASSERT_TRUE(median > 3 && median < 4);
        CU_ASSERT_FALSE(loss_watch_add(&w, 9, 10, &median)); /* the same one */
        CU_ASSERT_FALSE(loss_watch_add(&w, 3, 10, &median));
        CU_ASSERT_TRUE(loss_watch_add(&w, 9, 10, &median)); /* the next */
}

TEST(no_spike_while_little_is_known_nor_when_off) {
        struct loss_watch w = { 0 }, off = { 0 };
        double median = 0;

        for (int i = 0; i < 15; i++)
                CU_ASSERT_FALSE(loss_watch_add(&w, i % 2 ? 100 : 1, 10, &median));
        for (int i = 0; i < 100; i++)
                CU_ASSERT_FALSE(loss_watch_add(&off, i == 80 ? 1e6 : 3, 0, &median));
        CU_ASSERT_FALSE(loss_watch_add(&off, (double)NAN, 10, &median));
        /* A loss that stands still has no spread: a percent of it is taken. */
        CU_ASSERT_FALSE(loss_watch_add(&off, 3.2, 10, &median));
        CU_ASSERT_TRUE(loss_watch_add(&off, 3.4, 10, &median));
}

TEST_MAIN("loss_watch")
