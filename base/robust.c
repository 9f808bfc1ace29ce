/* SPDX-License-Identifier: Apache-2.0 */
#include "base/robust.h"

#include <math.h>
#include <stdlib.h>

static int compare(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;

        return (x > y) - (x < y);
}

double robust_median(double *v, size_t n) {
        if (n == 0)
                return 0;
        qsort(v, n, sizeof(*v), compare);
        return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

void robust_spread(double *v, size_t n, double *ret_median, double *ret_sigma) {
        double median = robust_median(v, n);

        for (size_t i = 0; i < n; i++)
                v[i] = fabs(v[i] - median);
        *ret_median = median;
        *ret_sigma = 1.4826 * robust_median(v, n);
}
