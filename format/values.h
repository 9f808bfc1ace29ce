/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Floating-point elements as doubles, and back, rounded to nearest even. Of any alignment. */
#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"

/* F32, F64, BF16, F16. */
bool values_are_real(enum dtype t);
void values_read(enum dtype t, const void *src, double *dst, size_t n);
/* F32, F64, BF16. A finite value too large becomes infinite; NaNs stay NaNs. */
void values_write(enum dtype t, const double *src, void *dst, size_t n);
