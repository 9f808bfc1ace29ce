/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/core/scheduler.h"

#include <errno.h>

#include "base/cleanup.h"
#include "tests/test.h"

enum { NODES = 6, DEVICES = 4 };

struct cluster {
        struct sched_device devices[NODES][DEVICES];
        struct sched_node nodes[NODES];
};

static void cluster_init(struct cluster *c) {
        static const char *const names[NODES] = { "a", "b", "c", "d", "e", "f" };

        for (int i = 0; i < NODES; i++) {
                for (uint32_t k = 0; k < DEVICES; k++)
                        c->devices[i][k] = (struct sched_device){ .index = k, .state = SCHED_FREE, .memory_bytes = 100, .kind = 1 };
                c->nodes[i] = (struct sched_node){ .name = names[i], .devices = c->devices[i], .n_devices = DEVICES };
        }
}

static void check_placement(const struct cluster *c, const struct sched_want *w, const struct sched_slot *s) {
        int used[NODES][DEVICES] = { { 0 } };

        for (int r = 0; r < w->tp * w->pp * w->dp; r++) {
                CU_ASSERT_FATAL(s[r].node >= 0 && s[r].node < NODES && s[r].device < DEVICES);
                CU_ASSERT_EQUAL(used[s[r].node][s[r].device]++, 0);
                CU_ASSERT_EQUAL(c->devices[s[r].node][s[r].device].state, SCHED_FREE);
                if (r % w->tp) {
                        CU_ASSERT_EQUAL(s[r].node, s[r - 1].node);
                        CU_ASSERT_EQUAL(s[r].device, s[r - 1].device + 1);
                }
        }
}

TEST(random_clusters_keep_the_rules_and_fit_when_something_fits) {
        unsigned seed = 1;

        for (int round = 0; round < 3000; round++) {
                struct cluster c;
                struct sched_want w = { .tp = 1 << rand_r(&seed) % 3, .pp = 1 + rand_r(&seed) % 3, .dp = 1 + rand_r(&seed) % 3, .bytes_per_rank = 50 };
                struct sched_slot s[64], prefer[64];
                int rows = 0, r;

                cluster_init(&c);
                for (int i = 0; i < NODES; i++)
                        for (int k = 0; k < DEVICES; k++)
                                c.devices[i][k].state = rand_r(&seed) % 3 ? SCHED_FREE : SCHED_BUSY;
                for (int i = 0; i < 64; i++)
                        prefer[i] = (struct sched_slot){ .node = (int)(rand_r(&seed) % (NODES + 1)) - 1, .device = (uint32_t)rand_r(&seed) % DEVICES };
                if (rand_r(&seed) % 2)
                        w.prefer = prefer;
                /* How many groups fit, counted apart: runs of free devices, cut from the left. */
                for (int i = 0; i < NODES; i++) {
                        int run = 0;

                        for (int k = 0; k < DEVICES; k++) {
                                run = c.devices[i][k].state == SCHED_FREE ? run + 1 : 0;
                                if (run == w.tp) {
                                        rows++;
                                        run = 0;
                                }
                        }
                }
                r = scheduler_place(c.nodes, NODES, &w, s);
                CU_ASSERT_EQUAL(r, rows >= w.pp * w.dp ? 0 : -ENOSPC);
                if (r == 0)
                        check_placement(&c, &w, s);
        }
}

TEST(a_restarted_job_stays_where_it_was) {
        struct cluster c;
        struct sched_slot was[4] = { { 3, 2 }, { 3, 3 }, { 1, 0 }, { 1, 1 } }, s[4];
        struct sched_want w = { .tp = 2, .pp = 1, .dp = 2, .prefer = was };

        cluster_init(&c);
        CU_ASSERT_EQUAL_FATAL(scheduler_place(c.nodes, NODES, &w, s), 0);
        for (int i = 0; i < 4; i++)
                CU_ASSERT(s[i].node == was[i].node && s[i].device == was[i].device);
}

TEST(survivors_are_pinned_and_lost_groups_move) {
        struct cluster c;
        struct sched_slot pinned[4] = { { 3, 2 }, { 3, 3 }, { -1, 0 }, { -1, 0 } }, s[4];
        struct sched_want w = { .tp = 2, .pp = 1, .dp = 2, .prefer = pinned, .pinned = pinned };

        cluster_init(&c);
        c.devices[3][2].state = c.devices[3][3].state = SCHED_BUSY; /* its own ranks */
        for (int k = 0; k < DEVICES; k++)
                c.devices[1][k].state = SCHED_GONE;
        CU_ASSERT_EQUAL_FATAL(scheduler_place(c.nodes, NODES, &w, s), 0);
        CU_ASSERT(s[0].node == 3 && s[0].device == 2 && s[1].node == 3 && s[1].device == 3);
        CU_ASSERT(s[2].node != 1 && s[2].node == s[3].node && s[3].device == s[2].device + 1);
}

TEST(too_little_memory_is_no_place) {
        struct cluster c;
        struct sched_slot s[1];
        struct sched_want w = { .tp = 1, .pp = 1, .dp = 1, .bytes_per_rank = 101 };

        cluster_init(&c);
        CU_ASSERT_EQUAL(scheduler_place(c.nodes, NODES, &w, s), -ENOSPC);
        w.bytes_per_rank = 100;
        CU_ASSERT_EQUAL(scheduler_place(c.nodes, NODES, &w, s), 0);
        /* Snapshots are in the host's memory: a GPU's holds the rest. */
        w.bytes_per_rank = 110;
        w.snapshot_bytes = 10;
        CU_ASSERT_EQUAL(scheduler_place(c.nodes, NODES, &w, s), 0);
        for (int i = 0; i < NODES; i++)
                for (int k = 0; k < DEVICES; k++)
                        c.devices[i][k].in_host_memory = true;
        CU_ASSERT_EQUAL(scheduler_place(c.nodes, NODES, &w, s), -ENOSPC);
}

TEST(a_job_that_wants_nodes_made_alike_gets_those_of_one_make) {
        struct cluster c;
        struct sched_slot s[12], pinned[12];
        struct sched_want w = { .tp = 4, .pp = 1, .dp = 3, .equal = true };

        cluster_init(&c);
        CU_ASSERT_EQUAL(scheduler_place(c.nodes, NODES, &w, s), -ENOSPC); /* nobody has told */
        for (int i = 0; i < NODES; i++)
                c.nodes[i].make = 1 + i % 2;
        CU_ASSERT_EQUAL_FATAL(scheduler_place(c.nodes, NODES, &w, s), 0);
        for (int r = 0; r < 12; r++)
                CU_ASSERT_EQUAL(c.nodes[s[r].node].make, c.nodes[s[0].node].make);
        c.devices[0][1].state = SCHED_BUSY; /* of the first make: the second has room */
        CU_ASSERT_EQUAL_FATAL(scheduler_place(c.nodes, NODES, &w, s), 0);
        for (int r = 0; r < 12; r++)
                CU_ASSERT_EQUAL(c.nodes[s[r].node].make, 2);
        /* What is pinned says which: and there the make of the others has no room. */
        for (int r = 0; r < 12; r++)
                pinned[r] = (struct sched_slot){ .node = r < 4 ? 2 : -1, .device = (uint32_t)r % 4 };
        for (uint32_t k = 0; k < DEVICES; k++)
                c.devices[2][k].state = SCHED_BUSY; /* its own */
        w.pinned = w.prefer = pinned;
        CU_ASSERT_EQUAL(scheduler_place(c.nodes, NODES, &w, s), -ENOSPC);
        w.equal = false;
        CU_ASSERT_EQUAL(scheduler_place(c.nodes, NODES, &w, s), 0);
        w.equal = true;
        c.devices[0][1].state = SCHED_FREE;
        CU_ASSERT_EQUAL_FATAL(scheduler_place(c.nodes, NODES, &w, s), 0);
        for (int r = 0; r < 12; r++)
                CU_ASSERT_EQUAL(c.nodes[s[r].node].make, 1);
        c.nodes[5].make = 99; /* nonsense is none */
        CU_ASSERT_EQUAL(scheduler_place(c.nodes, NODES, &w, s), 0);
}

/* Small jobs come for ever; the large one that came first starts as soon as the running ones end. */
TEST(backfill_never_starves_the_head) {
        struct cluster c;
        struct sched_slot a[32], b[4], *ret[2] = { a, b };
        struct sched_want w[2] = { { .tp = 2, .pp = 1, .dp = 10 }, { .tp = 2, .pp = 1, .dp = 1 } };
        int until[NODES][DEVICES] = { { 0 } }, started = -1;
        bool placed[2];

        cluster_init(&c);
        for (int i = 0; i < NODES; i++)
                for (int k = 0; k < DEVICES; k++)
                        if (i < 4) {
                                c.devices[i][k].state = SCHED_BUSY;
                                until[i][k] = 5 + 3 * i;
                        }
        for (int t = 0; t < 40 && started < 0; t++) {
                for (int i = 0; i < NODES; i++)
                        for (int k = 0; k < DEVICES; k++)
                                if (c.devices[i][k].state == SCHED_BUSY && t >= until[i][k])
                                        c.devices[i][k].state = SCHED_FREE;
                CU_ASSERT_EQUAL_FATAL(scheduler_queue(c.nodes, NODES, w, 2, ret, placed), 0);
                if (placed[0])
                        started = t;
                if (placed[1] && !placed[0])
                        for (int r = 0; r < 2; r++) {
                                c.devices[b[r].node][b[r].device].state = SCHED_BUSY;
                                until[b[r].node][b[r].device] = t + 1000; /* would never end */
                        }
        }
        CU_ASSERT(started >= 0 && started <= 14);
}

TEST(too_large_a_job_blocks_nobody) {
        struct cluster c;
        struct sched_slot a[64], b[4], *ret[2] = { a, b };
        struct sched_want w[2] = { { .tp = 4, .pp = 1, .dp = 7 }, { .tp = 2, .pp = 1, .dp = 1 } };
        bool placed[2];

        cluster_init(&c);
        CU_ASSERT_EQUAL(scheduler_queue(c.nodes, NODES, w, 2, ret, placed), 0);
        CU_ASSERT(!placed[0] && placed[1]);
}

TEST(a_group_stays_within_one_nvlink_domain_where_it_can) {
        struct cluster c;
        struct sched_want w = { .tp = 2, .pp = 1, .dp = 1, .bytes_per_rank = 50 };
        struct sched_slot s[2];

        cluster_init(&c);
        for (int i = 0; i < NODES; i++)
                for (uint32_t k = 0; k < DEVICES; k++)
                        c.devices[i][k].domain = 1 + k / 2;
        c.devices[0][0].state = SCHED_BUSY; /* the fullest node would be filled first, from the left: devices 1 and 2 */
        CU_ASSERT_EQUAL_FATAL(scheduler_place(c.nodes, NODES, &w, s), 0);
        CU_ASSERT(s[0].node == 0 && s[0].device == 2);
        /* Nothing else is free: it runs over two domains rather than not at all. */
        for (int i = 0; i < NODES; i++)
                c.devices[i][0].state = c.devices[i][3].state = SCHED_BUSY;
        CU_ASSERT_EQUAL_FATAL(scheduler_place(c.nodes, NODES, &w, s), 0);
        CU_ASSERT_EQUAL(s[0].device, 1);
}

TEST(a_ring_goes_on_along_its_rail_on_the_next_node) {
        struct cluster c;
        struct sched_want w = { .tp = 1, .pp = 1, .dp = 8, .bytes_per_rank = 50 };
        struct sched_slot s[8];
        static const uint32_t there_and_back[8] = { 0, 1, 2, 3, 3, 0, 1, 2 };

        cluster_init(&c);
        CU_ASSERT_EQUAL_FATAL(scheduler_place(c.nodes, NODES, &w, s), 0);
        for (int i = 0; i < 8; i++)
                CU_ASSERT_EQUAL(s[i].device, (uint32_t)i % 4); /* no rails: from the left */
        for (int i = 0; i < NODES; i++)
                for (uint32_t k = 0; k < DEVICES; k++)
                        c.devices[i][k].rails = UINT64_C(1) << k;
        CU_ASSERT_EQUAL_FATAL(scheduler_place(c.nodes, NODES, &w, s), 0);
        for (int i = 0; i < 8; i++)
                CU_ASSERT_EQUAL(s[i].device, there_and_back[i]);
        w.tp = 2;
        w.dp = 4;
        CU_ASSERT_EQUAL_FATAL(scheduler_place(c.nodes, NODES, &w, s), 0);
        CU_ASSERT(s[2].device == 2 && s[4].device == 2 && s[4].node != s[2].node); /* out on rails 2 and 3 ... */
        CU_ASSERT(s[6].device == 0 && s[6].node == s[4].node);                     /* ... and back on 0 and 1 */
}

TEST_MAIN("scheduler")
