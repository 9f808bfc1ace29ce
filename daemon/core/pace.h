/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Ranks that do the same work, compared by what each takes for its own part of a step (pure). */
#include <stdbool.h>
#include <stddef.h>

/* Is v[i] an outlier above the others?  More than percent above their median, by more than four robust standard deviations of them, and by more than a millisecond. scratch[n]. */
bool pace_is_slow(const double *v, size_t n, size_t i, double percent, double *scratch, double *ret_median);
