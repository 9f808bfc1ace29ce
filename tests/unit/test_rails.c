/* SPDX-License-Identifier: Apache-2.0 */
/* Which network devices are nearest to which GPU, on made-up machines; and what placements make of it. */
#include "daemon/core/rails.h"

#include <stdio.h>

#include "base/cleanup.h"
#include "tests/test.h"

enum { GPUS = 8, NICS = 10 };

struct machine {
        char gpu_paths[GPUS][96], nic_paths[NICS][96];
        struct rail_place gpus[GPUS], nics[NICS];
        uint64_t rails[GPUS];
};

/* per_switch GPUs and as many network devices below each of the switches, half of which are of each NUMA node. */
static void dgx(struct machine *m, int per_switch) {
        for (int i = 0; i < GPUS; i++) {
                int sw = i / per_switch, slot = i % per_switch;

                snprintf(m->gpu_paths[i], sizeof(m->gpu_paths[i]), "pci0000:%d0/0000:%d0:01.0/0000:%d1:00.0/0000:%d2:%02d.0/0000:%d%d:00.0", sw, sw, sw, sw, slot, sw, slot + 3);
                snprintf(m->nic_paths[i], sizeof(m->nic_paths[i]), "pci0000:%d0/0000:%d0:01.0/0000:%d1:00.0/0000:%d2:1%d.0/0000:%d%d:00.0", sw, sw, sw, sw, slot, sw, slot + 6);
                m->gpus[i] = (struct rail_place){ m->gpu_paths[i], i / 4 };
                m->nics[i] = (struct rail_place){ m->nic_paths[i], i / 4 };
        }
}

static void assign(struct machine *m, size_t n_nics) {
        rails_assign(m->gpus, GPUS, m->nics, n_nics, m->rails);
}

TEST(near_and_far) {
        static const struct {
                struct rail_place a, b;
                enum rail_distance far;
        } rows[] = {
                { { "pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:01.0/0000:18:00.0", 0 }, { "pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:02.0/0000:19:00.0", 0 }, RAIL_SWITCH },
                { { "pci0000:15/0000:15:01.0/0000:16:00.0", 0 }, { "pci0000:15/0000:15:01.0/0000:16:00.1", 0 }, RAIL_ROOT }, /* two functions of a card: no switch */
                { { "pci0000:15/0000:15:01.0/0000:16:00.0", 0 }, { "pci0000:15/0000:15:02.0/0000:17:00.0", 0 }, RAIL_ROOT },
                { { "pci0000:15/0000:15:01.0/0000:16:00.0", 1 }, { "pci0000:20/0000:20:01.0/0000:21:00.0", 1 }, RAIL_NUMA },
                { { "pci0000:15/0000:15:01.0/0000:16:00.0", 1 }, { "pci0000:20/0000:20:01.0/0000:21:00.0", 0 }, RAIL_FAR },
                { { "pci0000:15/0000:15:01.0/0000:16:00.0", -1 }, { "pci0000:20/0000:20:01.0/0000:21:00.0", -1 }, RAIL_FAR },
                { { "", 0 }, { "", 0 }, RAIL_NUMA },
                { { NULL, -1 }, { "pci0000:20/0000:21:00.0", -1 }, RAIL_FAR },
        };

        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                CU_ASSERT_EQUAL(rails_distance(&rows[i].a, &rows[i].b), rows[i].far);
                CU_ASSERT_EQUAL(rails_distance(&rows[i].b, &rows[i].a), rows[i].far);
        }
}

TEST(each_gpu_of_a_dgx_has_its_own) {
        for (int per_switch = 1; per_switch <= 4; per_switch *= 2) {
                struct machine m;

                dgx(&m, per_switch);
                assign(&m, GPUS);
                for (int i = 0; i < GPUS; i++)
                        CU_ASSERT_EQUAL(m.rails[i], UINT64_C(1) << i);
        }
}

TEST(one_that_is_not_to_be_used_is_replaced_by_the_next_nearest) {
        struct machine m;

        dgx(&m, 2);
        m.nics[2].path = NULL;
        assign(&m, GPUS);
        CU_ASSERT_EQUAL(m.rails[2], UINT64_C(1) << 3); /* below the same switch, shared with GPU 3 ... */
        CU_ASSERT_EQUAL(m.rails[3], UINT64_C(1) << 3);
        m.nics[3].path = NULL;
        assign(&m, GPUS);
        CU_ASSERT_EQUAL(m.rails[2], UINT64_C(1) << 0); /* ... then of the same NUMA node, evenly */
        CU_ASSERT_EQUAL(m.rails[3], UINT64_C(1) << 1);
        CU_ASSERT_EQUAL(m.rails[0], UINT64_C(1) << 0);
        CU_ASSERT_EQUAL(m.rails[7], UINT64_C(1) << 7);
        for (int i = 0; i < GPUS; i++)
                m.nics[i].path = NULL;
        assign(&m, GPUS);
        for (int i = 0; i < GPUS; i++)
                CU_ASSERT_EQUAL(m.rails[i], 0);
}

TEST(storage_cards_elsewhere_are_left_alone_and_a_second_card_nearby_is_used) {
        struct machine m;

        dgx(&m, 2);
        m.nics[8] = (struct rail_place){ "pci0000:90/0000:90:01.0/0000:91:00.0", 0 };
        m.nics[9] = (struct rail_place){ "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:19.0/0000:09:00.0", 0 };
        assign(&m, NICS);
        CU_ASSERT_EQUAL(m.rails[0], UINT64_C(1) << 0 | UINT64_C(1) << 9);
        for (int i = 1; i < GPUS; i++)
                CU_ASSERT_EQUAL(m.rails[i], UINT64_C(1) << i);
}

TEST(two_cards_for_eight_gpus_and_none) {
        struct machine m;

        dgx(&m, 2);
        m.nics[0] = (struct rail_place){ "pci0000:80/0000:80:01.0/0000:81:00.0", 0 };
        m.nics[1] = (struct rail_place){ "pci0000:a0/0000:a0:01.0/0000:a1:00.0", 1 };
        assign(&m, 2);
        for (int i = 0; i < GPUS; i++)
                CU_ASSERT_EQUAL(m.rails[i], UINT64_C(1) << i / 4);
        m.nics[0].numa = m.nics[1].numa = -1; /* a guest that is told nothing: evenly */
        assign(&m, 2);
        for (int i = 0; i < GPUS; i++)
                CU_ASSERT_EQUAL(m.rails[i], UINT64_C(1) << i % 2);
        assign(&m, 0);
        for (int i = 0; i < GPUS; i++)
                CU_ASSERT_EQUAL(m.rails[i], 0);
        /* Nobody knows where the GPUs are: their library chooses. */
        for (int i = 0; i < GPUS; i++)
                m.gpus[i].path = "";
        assign(&m, 2);
        for (int i = 0; i < GPUS; i++)
                CU_ASSERT_EQUAL(m.rails[i], 0);
}

TEST(what_a_placement_comes_to) {
        struct rail_seat s[32] = { { 0 } };
        struct rails_told t;

        /* tp 4, dp 4 over two nodes of eight: dp 0 and 1 on the first; 1 to 2 and 3 to 0 go between nodes, from GPUs 4..7 to 0..3 and back. */
        for (int i = 0; i < 16; i++)
                s[i] = (struct rail_seat){ .node = i / 8, .rails = UINT64_C(1) << i % 8, .domain = 1 };
        t = rails_tell(4, 1, 4, s);
        CU_ASSERT_EQUAL(t.split_groups, 0);
        CU_ASSERT_EQUAL(t.hops, 8);
        CU_ASSERT_EQUAL(t.crossings, 8);
        for (int i = 8; i < 16; i++)
                s[i].rails = UINT64_C(1) << (i + 4) % 8;
        t = rails_tell(4, 1, 4, s);
        CU_ASSERT_EQUAL(t.hops, 8);
        CU_ASSERT_EQUAL(t.crossings, 0);
        /* Two members: one hop each; a node without network devices counts for nothing. */
        t = rails_tell(8, 1, 2, s);
        CU_ASSERT_EQUAL(t.hops, 8);
        CU_ASSERT_EQUAL(t.crossings, 8);
        for (int i = 8; i < 16; i++)
                s[i].rails = 0;
        t = rails_tell(8, 1, 2, s);
        CU_ASSERT_EQUAL(t.hops, 0);
        /* A group over two pairs of NVLink; unknown is not split. */
        s[2].domain = s[3].domain = 2;
        CU_ASSERT_EQUAL(rails_tell(4, 1, 4, s).split_groups, 1);
        CU_ASSERT_EQUAL(rails_tell(2, 2, 4, s).split_groups, 0);
        s[2].domain = s[3].domain = 0;
        CU_ASSERT_EQUAL(rails_tell(4, 1, 4, s).split_groups, 0);
}

TEST_MAIN("rails")
