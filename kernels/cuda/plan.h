/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
#include "kernels/cuda/launch.h"

/* The tile that makes d[M,N] soonest on that many multiprocessors; vector: both operands have a scale a row. */
enum gemm_tile gemm_plan(int64_t M, int64_t N, int64_t K, bool vector, int multiprocessors);

/* Whether FP32 with a scale a row of both operands leaves through shared memory. */
bool gemm_plan_staged(int64_t K);
