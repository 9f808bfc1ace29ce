/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What a device backend gives worker/comm: bytes between devices and the ordered sum of what came.  The one primitive that moves data is a group of sends and receives; sums are made here in the
 * order of the group's index, so no algorithm, protocol, number of channels or placement of the library below changes a bit.  Everything a step enqueues is asynchronous on the stream given.
 *
 * Threads: calls on one communicator come from one thread at a time, except `abort`, after which the handle is gone.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/error.h"
#include "kernels/dev.h"

#define DEV_COMM_VERSION 3
#define DEV_COMM_ID 128
#define DEV_COMM_CARD 128

struct dev_comm;

/* Job keys nccl.*; the process's, taken at its first use. */
struct dev_comm_settings {
        int ib_timeout, ib_retry_cnt;
        const char *ib_hca; /* network ports; "": those of `use_ports` */
        int channels; /* 0: the library's choice */
        bool nvls;    /* multicast over NVLink */
        bool peer_copies; /* inside a host by the copy engines into each other's memory, where the devices can */
};

struct dev_comm_part {
        void *ptr; /* of a send: only read */
        size_t bytes;
        int peer; /* group index */
        bool send;
};

enum dev_comm_op { DEV_COMM_SUM, DEV_COMM_MAX, DEV_COMM_MIN };

/* Sized and versioned as dev_ops; every slot is there. 0 or a negative errno: -ECOMM a peer or the network, -EIO this device, -EINPROGRESS ask `state`. */
struct dev_comm_ops {
        size_t size;
        uint32_t version;
        const char *kind; /* of the device */

        /* Loads the library; once a process. -ENODEV: it is not there. */
        int (*load)(const struct dev_comm_settings *s, struct error *e);
        const char *(*fingerprint)(void); /* "nccl2.28.3" */
        /* Network ports for what is started from now on, "=mlx5_0:1,mlx5_1:1"; before the first `start` of the process, later it changes nothing. The job's own and the environment's go first. */
        void (*use_ports)(const char *list);
        /* The calling thread works on this device from now on. */
        int (*enter)(struct dev *d);
        int (*unique_id)(uint8_t ret[DEV_COMM_ID], struct error *e);
        /* Begins to meet the others who were given the same id; `state` tells when that is done. */
        int (*start)(struct dev *d, const uint8_t id[DEV_COMM_ID], int n, int index, struct dev_comm **ret, struct error *e);
        /* The other way to meet, for members of one host: memory of this device that the others may write into, and a card that tells them how; then, with everybody's cards in the order of the
         * group, theirs.  -EOPNOTSUPP: not with these.  A communicator that was not joined by all is aborted by all, who then `start` one. */
        int (*open_window)(struct dev *d, int n, int index, uint8_t ret_card[DEV_COMM_CARD], struct dev_comm **ret, struct error *e);
        int (*join_windows)(struct dev_comm *c, const uint8_t (*cards)[DEV_COMM_CARD], struct error *e);
        /* 0: ready, and everything it was told is enqueued; -EINPROGRESS; or what broke it. */
        int (*state)(struct dev_comm *c, struct error *e);
        int (*exchange)(struct dev_comm *c, const struct dev_comm_part *parts, int n, struct dev_stream *s, struct error *e);
        /* Ends what is under way, on the device too, and frees it. May take long, or hang in a broken driver: threads that nobody waits for call it. */
        void (*abort)(struct dev_comm *c);
        /* dst[i] = source 0 op source 1 op ... in F32, rounded once; source k is staging + k * stride bytes, but `own` for k = own_index; dst may be own. DT_F32, DT_BF16. NaNs win. */
        int (*fold)(void *dst, const void *staging, size_t stride, const void *own, int own_index, int n, size_t count, enum dtype t, enum dev_comm_op op, struct dev_stream *s);

        int (*event_new)(struct dev_event **ret);
        void (*event_free)(struct dev_event *ev);
        int (*event_record)(struct dev_event *ev, struct dev_stream *s);
        int (*event_done)(struct dev_event *ev); /* 1, 0, or negative; waits for nothing */
        int (*event_wait)(struct dev_event *ev, struct dev_stream *s); /* what is enqueued on s from now on comes after what was recorded */
};

/* The table beside the backend that dev_ops_load gave for this kind. -ENODEV: it has none. */
int dev_comm_load(const char *kind, const struct dev_comm_ops **ret, struct error *e);
#define DEV_COMM_PLUGIN_SYMBOL "fp8_comm_plugin"
const struct dev_comm_ops *fp8_comm_plugin(void);
