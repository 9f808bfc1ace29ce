/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Who this rank process is: given on its command line, stamped on everything it says. */
#include <stdbool.h>
#include <stdint.h>

struct identity {
        uint64_t job, incarnation, epoch; /* epoch: of the StartRanks */
        uint32_t rank, device;
        const char *dir, *node, *host, *device_kind, *rdma;
        const char *local_dir; /* the job's folder on this node's disk for copies of snapshots; NULL or "": none */
        uint64_t standby;      /* not 0: no rank yet but a standby of this number; rank is the one whose buffers are made ahead */
        bool warm;             /* ... with the device opened */
        int log_level;
        uint64_t local_space;  /* bytes of it that this rank may fill */
};
