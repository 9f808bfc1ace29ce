/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "base/cleanup.h"
#include "daemon/core/rate_test.h"
#include "tests/test.h"

/* The values are from exact fractions: sum(comb(n, k) * q**k * (1 - q)**(n - k) for k in range(x, n + 1)) with n = x + other and q = Fraction(time) / (time + other_time) of Python. */
TEST(known_values) {
        static const struct {
                uint64_t x, other;
                double time, other_time, p;
        } cases[] = {
                { 1, 0, 1, 19, 0.05 },
                { 2, 0, 1, 19, 0.0025 },
                { 3, 1, 1, 19, 0.00048125 },
                { 1, 1, 1, 1, 0.75 },
                { 5, 5, 10, 10, 0.623046875 },
                { 8, 2, 10, 10, 0.0546875 },
                { 10, 40, 3, 100, 1.5506822634418913e-06 },
                { 60, 900, 50, 950, 0.047885897260503914 },
                { 600, 400, 500, 500, 1.3642320780330092e-10 },
                { 3, 2, 0.5, 7.25, 0.002432206250195823 },
        };

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
                CU_ASSERT_TRUE(fabs(rate_test_worse(cases[i].x, cases[i].time, cases[i].other, cases[i].other_time) - cases[i].p) < 1e-12 * cases[i].p);
}

/* Every outcome of 12 events, each of them in either: counted one by one. */
TEST(by_counting_all_outcomes) {
        enum { N = 12, OF = 4, PARTS = 5 }; /* the first has 4 of 5 parts of the time */

        for (int x = 1; x <= N; x++) {
                double p = 0;

                for (unsigned outcome = 0; outcome < 1u << N; outcome++) {
                        int first = __builtin_popcount(outcome);

                        if (first >= x)
                                p += pow(OF, first) * pow(PARTS - OF, N - first) / pow(PARTS, N);
                }
                CU_ASSERT_TRUE(fabs(rate_test_worse((uint64_t)x, OF, (uint64_t)(N - x), PARTS - OF) - p) < 1e-10);
        }
}

TEST(nothing_to_compare_is_never_worse) {
        CU_ASSERT_EQUAL(rate_test_worse(0, 10, 50, 10), 1);
        CU_ASSERT_EQUAL(rate_test_worse(5, 0, 1, 10), 1);
        CU_ASSERT_EQUAL(rate_test_worse(5, 10, 1, 0), 1); /* nobody is left that was not changed */
        CU_ASSERT_EQUAL(rate_test_worse(5, 10, 0, -1), 1);
        CU_ASSERT_EQUAL(rate_test_worse(5, NAN, 0, 1), 1);
        CU_ASSERT_EQUAL(rate_test_worse(5, INFINITY, 0, 1), 1);
        CU_ASSERT_EQUAL(rate_test_worse(UINT64_MAX, 1, 1, 1), 1);
        CU_ASSERT_EQUAL(rate_test_worse(5, 1e300, 0, 1e-300), 1);
}

/* Where single terms are too small for a double. */
TEST(many_events) {
        CU_ASSERT_EQUAL(rate_test_worse(1, 9, 100000, 1), 1);
        CU_ASSERT_TRUE(rate_test_worse(90000, 1, 10000, 9) < 1e-300);
        CU_ASSERT_TRUE(fabs(rate_test_worse(50000, 1, 50000, 1) - 0.50126156) < 1e-6); /* 1/2 + half the term in the middle, 1 / sqrt(pi * 50000) */
}

TEST_MAIN("rate_test")
