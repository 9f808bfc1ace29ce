/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Lanes over InfiniBand, RoCE or Soft-RoCE by libibverbs: a reliable connected queue pair a lane, RDMA writes, registered memory.
 */
#include "base/lane.h"

struct rdma;

/*
 * The first device with an active port; want: "DEVICE" or "DEVICE:PORT" chooses one, "off" none, NULL or "" any. -ENODEV: there is none, or this was built
 * without libibverbs.
 */
int rdma_open(const char *want, struct rdma **ret, struct error *e);
/* After all of its lanes were closed. */
struct rdma *rdma_free(struct rdma *r);
/* NULL: no device, {NULL}. */
struct lane_device rdma_lanes(struct rdma *r);
/* "mlx5_0/1" */
const char *rdma_name(const struct rdma *r);

/* What two ends tell each other. A text, checked when it is read. */
struct rdma_address {
        uint32_t qpn, psn, lid, mtu; /* mtu: 1 (256 bytes) to 5 (4096), as in verbs */
        uint8_t ethernet;            /* RoCE: by gid; else by lid */
        uint8_t gid[16];
};
void rdma_address_print(const struct rdma_address *a, char ret[LANE_ADDRESS]);
int rdma_address_read(const char *text, struct rdma_address *ret, struct error *e);
