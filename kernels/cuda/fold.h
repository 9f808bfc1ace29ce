/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
#include <cuda_runtime_api.h>

#include "kernels/dev_comm.h"

#ifdef __cplusplus
extern "C" {
#endif
int cuda_launch_fold(void *dst, const void *staging, size_t stride, const void *own, int own_index, int n, size_t count, enum dtype t, int op, cudaStream_t s);
#ifdef __cplusplus
}
#endif
