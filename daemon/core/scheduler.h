/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Pure: nodes and one job's wish -> placement.  Gang: all groups or none.  A tensor-parallel group lies on tp neighbouring devices of one node,
 * within one NVLink domain where that is possible.  Of windows of a node that are as good, a group takes the one on whose rails the group before it in its data-parallel ring is, when that is on another node.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum sched_device_state { SCHED_GONE, SCHED_BUSY, SCHED_FREE };

struct sched_device {
        uint32_t index;
        enum sched_device_state state;
        uint64_t memory_bytes; /* 0: unknown */
        int kind;              /* a job runs on devices of one kind */
        bool warm;             /* a standby of the job has it open: taken first */
        bool in_host_memory;   /* its memory is the host's, where snapshots are */
        uint32_t domain;       /* of NVLink; 0: none, or unknown */
        uint64_t rails;        /* rails.h; 0: none */
};

struct sched_node {
        const char *name;
        const struct sched_device *devices; /* in index order */
        size_t n_devices;
        int make;                          /* nodes of one make are made alike; 0: unknown */
};

struct sched_slot {
        int node; /* -1: none */
        uint32_t device;
};

struct sched_want {
        int tp, pp, dp;
        uint64_t bytes_per_rank, snapshot_bytes; /* the second is of the first: in the host's memory */
        const struct sched_slot *prefer; /* [world], where it was; NULL */
        const struct sched_slot *pinned; /* [world], slots that must stay as they are (node >= 0); NULL. A group with a pinned rank stays on that node. */
        bool equal;                      /* on nodes of one make only: that of the pinned ones where there are any */
        bool reserve;                    /* take busy devices too, as few as can be: what the head of the queue waits for */
};

/* ret[world], in rank order. 0, or -ENOSPC: it does not fit. */
int scheduler_place(const struct sched_node *nodes, size_t n, const struct sched_want *want, struct sched_slot *ret);

/*
 * FIFO with backfill: tells for each queued job (in queue order) its placement, if it starts now (ret_placed[i]).  ret[i] has world entries.  Devices of placed
 * jobs are taken in turn.  The first job that does not fit but could on a drained cluster reserves devices (free ones before busy ones); later jobs
 * start only beside its reservation, so however many small jobs come they never delay it: a device that it waits for is never handed to another.
 * A job too large for the whole cluster reserves nothing.  Returns 0 or -ENOMEM.
 */
int scheduler_queue(const struct sched_node *nodes, size_t n, const struct sched_want *wants, size_t n_wants, struct sched_slot **ret, bool *ret_placed);
