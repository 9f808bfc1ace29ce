/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
#include "kernels/cuda/launch.h"

/* The tile that makes n products d[M,N] of one K soonest on that many multiprocessors; vector: both operands have a scale a row. */
enum gemm_tile gemm_plan(int n, const int64_t *M, const int64_t *N, int64_t K, bool vector, int multiprocessors);

/* Whether FP32 with a scale a row of both operands leaves through shared memory. */
bool gemm_plan_staged(int64_t K);
