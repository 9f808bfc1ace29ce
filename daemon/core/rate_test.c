/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/core/rate_test.h"

#include <math.h>

/* Of n draws, each true with chance q, exactly k are. In logarithms: C(n, k) alone may be beyond a double. */
static double binomial(uint64_t n, uint64_t k, double q) {
        double logarithm = (double)k * log(q) + (double)(n - k) * log1p(-q);
        uint64_t few = k < n - k ? k : n - k;

        for (uint64_t i = 1; i <= few; i++)
                logarithm += log((double)(n - few + i) / (double)i);
        return exp(logarithm);
}

/*
 * Given that there were n = x + other_x events, each of them is one of the first with the share q that its time has of all time: x of n is binomial, and p is the sum of its terms from x to n.  Each
 * term is made from the one before, away from the largest; below the mean the terms under x are summed instead, for that of x itself may be too small for a double there.
 */
double rate_test_worse(uint64_t x, double time, uint64_t other_x, double other_time) {
        uint64_t n = x + other_x;
        double q, term, sum;

        if (x == 0 || n < x || !(time > 0) || !(other_time > 0) || !isfinite(time + other_time))
                return 1;
        q = time / (time + other_time);
        if (!(q > 0 && q < 1))
                return 1; /* one time is nothing beside the other */
        if ((double)x > (double)n * q) {
                term = sum = binomial(n, x, q);
                for (uint64_t k = x; k < n; k++)
                        sum += term *= (double)(n - k) / (double)(k + 1) * (q / (1 - q));
                return fmin(sum, 1);
        }
        term = sum = binomial(n, x - 1, q);
        for (uint64_t k = x - 1; k > 0; k--)
                sum += term *= (double)k / (double)(n - k + 1) * ((1 - q) / q);
        return fmax(1 - sum, 0);
}
