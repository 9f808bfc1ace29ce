/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A lane: memory of this process reaches memory of a process on another node without passing through either's processor (RDMA).  The two ends find each other over
 * a connection that they have anyway, by exchanging their addresses.  A table of operations, so that what uses lanes runs without the hardware (see base/rdma.h
 * for the one with it).  A lane is of one thread.
 */
#include <stdint.h>

#include "base/error.h"

#define LANE_ADDRESS 128 /* text, with its 0 */

struct lane;

/* A mapping that lies still as long as the lane has it registered; id tells apart two that were at the same place one after the other. */
struct lane_pool {
        void *base;
        uint64_t size, id;
};

struct lane_ops {
        const char *name;
        /* This end, and what the other one must know of it. */
        int (*open)(void *device, char ret_address[LANE_ADDRESS], struct lane **ret, struct error *e);
        int (*connect)(struct lane *l, const char *address, struct error *e);
        /* The other end may write into p from now on, with this key, until another pool is exposed or the lane is closed. Registered once a pool. */
        int (*expose)(struct lane *l, const struct lane_pool *p, uint32_t *ret_key, struct error *e);
        /*
         * Returns when all bytes lie at `to` in the other end's memory. p: where `from` lies. -ETIMEDOUT: nothing was completed for timeout_ms. After an
         * error the lane is of no use but to be closed.
         */
        int (*write)(struct lane *l, const struct lane_pool *p, const void *from, uint64_t bytes, uint64_t to, uint32_t key, int timeout_ms, struct error *e);
        /* When it returns nothing can be written into the exposed pool any more. NULL is allowed. */
        struct lane *(*close)(struct lane *l);
};

/* ops NULL: there are none here. */
struct lane_device {
        const struct lane_ops *ops;
        void *device;
};
