/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs of thousands of nodes of eight devices: the same faults and invariants, larger jobs, heartbeats and steps at the real pace; and what an event costs the core, in this machine's time.
 */
#include <inttypes.h>
#include <stdio.h>

#include "tests/sim/sim.h"

/* Twelve jobs, the largest of 256 ranks: a plan is sent to every node of its job, and what unpacks larger ones here would take most of the time. */
int scale_replicas_of(const struct sim *s, int i) {
        int largest = s->n_nodes * s->n_devices / 16 / 2, dp = 4;

        if (i >= 6)
                return 4;
        while (2 * dp <= largest && 2 * (2 * dp) <= 256)
                dp *= 2;
        return dp >> i > 4 ? dp >> i : 4;
}

void scale_print(const struct sim *s, uint64_t wall_ns) {
        uint64_t ranks = 0;

        for (int i = 0; i < s->n_jobs; i++)
                ranks += 2 * (uint64_t)scale_replicas_of(s, i);
        printf("%d nodes of %d devices, %d jobs of %" PRIu64 " ranks together: %.1f s of virtual time in %.1f s\n", s->n_nodes, s->n_devices, s->n_jobs, ranks, (double)s->now / 1e9,
               (double)wall_ns / 1e9);
        printf("%" PRIu64 " events, %.0f ns each; %" PRIu64 " of them in the core, %.0f ns each, %.1f ms at most\n", s->turns, (double)wall_ns / (double)s->turns, s->core_events,
               (double)s->core_ns / (double)s->core_events, (double)s->core_worst_ns / 1e6);
        printf("%" PRIu64 " faults: %" PRIu64 " ranks killed, %" PRIu64 " nodes lost, %" PRIu64 " streams broken, %" PRIu64 " partitions, %" PRIu64 " deaths of the controller; %" PRIu64
               " recoveries, %" PRIu64 " commits\n",
               s->injected, s->kills, s->losses, s->drops, s->partitions, s->crashes, s->recoveries, s->commits);
}
