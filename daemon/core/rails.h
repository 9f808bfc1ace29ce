/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Pure: which network devices (InfiniBand, RoCE) are nearest to which GPU, and what a placement makes of it.  A node's network devices in PCI order are its rails 0, 1, ...: nodes made alike have the same device
 * on the same rail, and in a rail-optimised fabric those of one rail share a leaf switch.
 */
#include <stddef.h>
#include <stdint.h>

enum { RAILS_MAX = 64 };

/* The path as of NodeDevice.path. */
struct rail_place {
        const char *path; /* NULL or "": unknown; of a network device: not to be used */
        int32_t numa;     /* -1: unknown */
};

/* From near to far: below one PCIe switch, of one root complex, of one NUMA node. */
enum rail_distance { RAIL_SWITCH, RAIL_ROOT, RAIL_NUMA, RAIL_FAR };
enum rail_distance rails_distance(const struct rail_place *a, const struct rail_place *b);

/*
 * ret[n]: bit i: network device i is this one's.  Each gets the nearest; of equally near ones the one with the fewest so far.  One that nobody got goes to a GPU below the same switch or root complex, if what
 * that has is no nearer.  Of the whole node, whoever uses it: so it is the same for every job, and on nodes made alike.
 */
void rails_assign(const struct rail_place *devices, size_t n, const struct rail_place *nics, size_t n_nics, uint64_t *ret);

/* Where a rank is. */
struct rail_seat {
        int node;
        uint64_t rails;   /* bits as above; 0: its library chooses */
        uint32_t domain;  /* of NVLink; 0: none, or unknown */
};
struct rails_told {
        uint32_t split_groups; /* tensor-parallel groups that are not within one NVLink domain */
        uint32_t hops, crossings; /* from one member of a data-parallel ring to the next on another node, both with a rail; those of them without a common one */
};
struct rails_told rails_tell(int tp, int pp, int dp, const struct rail_seat *seats);
