/* SPDX-License-Identifier: Apache-2.0 */
#include "base/backoff.h"
#include "tests/test.h"

TEST(intervals_double_up_to_the_bound) {
        static const uint64_t want[] = { 50, 100, 200, 400, 800, 1000, 1000, 1000 };
        struct backoff b = { .first = 50, .most = 1000 };
        uint64_t now = 7000;

        CU_ASSERT_EQUAL(backoff_wait(&b, now), 0);
        for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
                backoff_failed(&b, now);
                CU_ASSERT_EQUAL(backoff_wait(&b, now), want[i]);
                CU_ASSERT_EQUAL(backoff_wait(&b, now + want[i] - 1), 1);
                CU_ASSERT_EQUAL(backoff_wait(&b, now + want[i]), 0);
                now += want[i] + 3; /* the try itself */
        }
        backoff_reset(&b);
        CU_ASSERT_EQUAL(backoff_wait(&b, now), 0);
        backoff_failed(&b, now);
        CU_ASSERT_EQUAL(backoff_wait(&b, now), 50);
}

/* What a peer that is down for ten seconds costs: 50 ms apart it would be 200 tries. */
TEST(a_peer_that_is_down_is_tried_less_and_less) {
        struct backoff b = { .first = 50, .most = 1000 };
        int tries = 0;

        for (uint64_t now = 0; now < 10000; now++)
                if (backoff_wait(&b, now) == 0) {
                        tries++;
                        backoff_failed(&b, now);
                }
        CU_ASSERT_EQUAL(tries, 14);
}

TEST(no_interval_is_longer_than_the_bound) {
        struct backoff b = { .first = 3, .most = UINT64_MAX };

        for (int i = 0; i < 200; i++) {
                uint64_t was = b.interval;

                backoff_failed(&b, 0);
                CU_ASSERT_TRUE(b.interval > was || b.interval == UINT64_MAX);
        }
        CU_ASSERT_EQUAL(b.interval, UINT64_MAX);
}

TEST_MAIN("backoff")
