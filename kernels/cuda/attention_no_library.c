/* SPDX-License-Identifier: Apache-2.0 */
/* Built in place of attention_library.cpp where cudnn-frontend's headers are missing: attention.cu does all. */
#include <errno.h>

#include "kernels/cuda/attention_library.h"

int attention_library_new(struct attention_library **ret) {
        *ret = NULL;
        return -EOPNOTSUPP;
}

struct attention_library *attention_library_free(struct attention_library *l) {
        return NULL;
}

int attention_library_find(struct attention_library *l, const struct attention_launch *a, const int32_t *bounds, int n, bool backward, bool any_order, struct attention_plan **ret) {
        *ret = NULL;
        return -EOPNOTSUPP;
}

size_t attention_plan_workspace(const struct attention_plan *p) {
        return 0;
}

int attention_plan_run(struct attention_plan *p, const struct attention_launch *a, int n, void *workspace, cudaStream_t s) {
        return -EOPNOTSUPP;
}
