/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Attention by cuDNN, where a node has it: libcudnn.so.9 is looked for at run time, once.  A plan is made for each shape at its first use and kept; documents of one length are a batch,
 * others go packed, their number and the longest rounded up to powers of two so that few plans serve all batches.
 */
#include "kernels/cuda/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

struct attention_library;
struct attention_plan;

/* -EOPNOTSUPP: no cuDNN 9 on this node, or built without its headers. */
int attention_library_new(struct attention_library **ret);
struct attention_library *attention_library_free(struct attention_library *l);

/* bounds: host, n + 1 of them. -EOPNOTSUPP: a shape that cuDNN has nothing for, or that attention.cu is better at (short documents). The plan is the library's. */
int attention_library_find(struct attention_library *l, const struct attention_launch *a, const int32_t *bounds, int n, bool backward, bool any_order, struct attention_plan **ret);
size_t attention_plan_workspace(const struct attention_plan *p);
/* lse is in the plan's own order, and delta is not used. */
int attention_plan_run(struct attention_plan *p, const struct attention_launch *a, int n, void *workspace, cudaStream_t s);

/* Of a packed batch of room `batch`: lengths [batch] and offsets [batch + 1] in elements; documents from n on are empty. */
int cuda_launch_attention_docs(const int32_t *cu, int n, int batch, int q_stride, int k_stride, int heads, int32_t *length, int32_t *q, int32_t *k, int32_t *stats, cudaStream_t s);

#ifdef __cplusplus
}
#endif
