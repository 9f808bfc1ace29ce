/* SPDX-License-Identifier: Apache-2.0 */
/* Built without libibverbs. */
#include <errno.h>
#include <stddef.h>

#include "base/rdma.h"

int rdma_open(const char *want, struct rdma **ret, struct error *e) {
        return error_set(e, -ENODEV, "built without libibverbs");
}

struct rdma *rdma_free(struct rdma *r) {
        return NULL;
}

struct lane_device rdma_lanes(struct rdma *r) {
        return (struct lane_device){ 0 };
}

const char *rdma_name(const struct rdma *r) {
        return "";
}
