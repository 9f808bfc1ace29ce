/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
#include "kernels/cuda/launch.h"

/* The tile that makes d[M,N] soonest on that many multiprocessors. */
enum gemm_tile gemm_plan(int64_t M, int64_t N, int64_t K, int multiprocessors);
