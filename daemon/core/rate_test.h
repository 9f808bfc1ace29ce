/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Do these fail more often than those? (pure) */
#include <stdint.h>

/*
 * Two Poisson processes were watched for `time` and `other_time` (of any one unit) and showed x and other_x events.  The chance that the first shows x or more of them all if both rates were equal
 * (one-sided p value of the exact conditional test: J. Przyborowski, H. Wilenski, "Homogeneity of Results in Testing Samples from Poisson Series", Biometrika 31, 1940).
 * 1 where there is nothing to compare: no event of the first, or a time that is not positive.
 */
double rate_test_worse(uint64_t x, double time, uint64_t other_x, double other_time);
