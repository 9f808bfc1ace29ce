/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Statistics that one wild value does not move. */
#include <stddef.h>

/* v is sorted. 0 for none. */
double robust_median(double *v, size_t n);
/* Median, and the median absolute deviation from it times 1.4826: the standard deviation of a normal distribution (Rousseeuw and Croux, JASA 88, 1993, section 1). v is overwritten. */
void robust_spread(double *v, size_t n, double *ret_median, double *ret_sigma);
