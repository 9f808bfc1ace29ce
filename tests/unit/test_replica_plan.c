/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/core/replica_plan.h"

#include "tests/test.h"

enum { MAX = 16 };

static void nodes_of(struct replica_node *n, int count, const int *place, int world) {
        for (int i = 0; i < count; i++)
                n[i] = (struct replica_node){ .rack = "", .holds = true };
        for (int r = 0; r < world; r++)
                n[place[r]].of_job = true;
}

static int most(const int *holder, int world, int n_nodes) {
        int best = 0;

        for (int i = 0; i < n_nodes; i++) {
                int n = 0;

                for (int r = 0; r < world; r++)
                        n += holder[r] == i;
                best = n > best ? n : best;
        }
        return best;
}

TEST(another_node_and_evenly) {
        static const int place[8] = { 0, 0, 1, 1, 2, 2, 3, 3 };
        struct replica_node n[5];
        int holder[8];

        nodes_of(n, 5, place, 8);
        CU_ASSERT_EQUAL(replica_plan(n, 5, place, NULL, 8, holder), 0);
        for (int r = 0; r < 8; r++) {
                CU_ASSERT_NOT_EQUAL(holder[r], place[r]);
                CU_ASSERT(holder[r] >= 0 && holder[r] < 4); /* the spare is not of the job */
        }
        CU_ASSERT_EQUAL(most(holder, 8, 5), 2);
}

TEST(a_single_node_has_nobody) {
        static const int place[4] = { 0, 0, 0, 0 };
        struct replica_node n[2];
        int holder[4];

        nodes_of(n, 2, place, 4);
        CU_ASSERT_EQUAL(replica_plan(n, 1, place, NULL, 4, holder), 4);
        for (int r = 0; r < 4; r++)
                CU_ASSERT_EQUAL(holder[r], -1);
        CU_ASSERT_EQUAL(replica_plan(n, 2, place, NULL, 4, holder), 0); /* a node that is not of the job is better than none */
        for (int r = 0; r < 4; r++)
                CU_ASSERT_EQUAL(holder[r], 1);
        n[1].holds = false;
        CU_ASSERT_EQUAL(replica_plan(n, 2, place, NULL, 4, holder), 4);
}

TEST(another_rack_where_known) {
        static const int place[8] = { 0, 0, 1, 1, 2, 2, 3, 3 };
        struct replica_node n[6];
        int holder[8];

        nodes_of(n, 6, place, 8);
        for (int i = 0; i < 6; i++)
                n[i].rack = i % 2 ? "odd" : "even";
        CU_ASSERT_EQUAL(replica_plan(n, 6, place, NULL, 8, holder), 0);
        for (int r = 0; r < 8; r++) {
                CU_ASSERT_NOT_EQUAL(holder[r] % 2, place[r] % 2);
                CU_ASSERT(holder[r] < 4);
        }
        CU_ASSERT_EQUAL(most(holder, 8, 6), 2);
        n[1].rack = n[3].rack = "even"; /* only the spare in another rack */
        CU_ASSERT_EQUAL(replica_plan(n, 6, place, NULL, 8, holder), 0);
        for (int r = 0; r < 8; r++)
                CU_ASSERT_EQUAL(holder[r], 5);
}

TEST(holders_stay_over_a_recovery) {
        static const int place[8] = { 0, 0, 1, 1, 2, 2, 3, 3 };
        struct replica_node n[5];
        int before[8], after[8], moved[8], same = 0;

        nodes_of(n, 5, place, 8);
        CU_ASSERT_EQUAL(replica_plan(n, 5, place, NULL, 8, before), 0);
        CU_ASSERT_EQUAL(replica_plan(n, 5, place, before, 8, after), 0);
        for (int r = 0; r < 8; r++)
                CU_ASSERT_EQUAL(after[r], before[r]);
        /* Node 1 is lost, its ranks go to node 4: only what lay on node 1 finds another place. */
        for (int r = 0; r < 8; r++)
                moved[r] = place[r] == 1 ? 4 : place[r];
        nodes_of(n, 5, moved, 8);
        n[1].holds = false;
        CU_ASSERT_EQUAL(replica_plan(n, 5, moved, before, 8, after), 0);
        for (int r = 0; r < 8; r++) {
                CU_ASSERT_NOT_EQUAL(after[r], moved[r]);
                CU_ASSERT_NOT_EQUAL(after[r], 1);
                same += after[r] == before[r];
        }
        CU_ASSERT_EQUAL(same, 6);
        CU_ASSERT_EQUAL(most(after, 8, 5), 2);
}

/* The job's one node in the other rack is not given the copies of all others while nodes beside the job could take them. */
TEST(few_nodes_across_a_rack_do_not_get_all) {
        struct replica_node n[16];
        int place[32], holder[32], again[32], here = 0;

        for (int r = 0; r < 32; r++)
                place[r] = r / 4;
        nodes_of(n, 16, place, 32);
        for (int i = 0; i < 16; i++)
                n[i].rack = i > 0 && i < 8 ? "b" : "a";
        CU_ASSERT_EQUAL(replica_plan(n, 16, place, NULL, 32, holder), 0);
        for (int r = 0; r < 32; r++) {
                CU_ASSERT_NOT_EQUAL(n[holder[r]].rack[0], n[place[r]].rack[0]);
                here += holder[r] == 0;
        }
        CU_ASSERT_EQUAL(here, 8);
        CU_ASSERT_EQUAL(most(holder, 32, 16), 8);
        CU_ASSERT_EQUAL(replica_plan(n, 16, place, holder, 32, again), 0);
        for (int r = 0; r < 32; r++)
                CU_ASSERT_EQUAL(again[r], holder[r]);
        for (int i = 8; i < 16; i++) /* nobody else there: then all of them after all */
                n[i].holds = false;
        CU_ASSERT_EQUAL(replica_plan(n, 16, place, holder, 32, again), 0);
        for (int r = 4; r < 32; r++)
                CU_ASSERT_EQUAL(again[r], 0);
}

/* Every shape up to a bound: never the own node, nobody without while another can hold, nobody more than an even share and one rank of rounding. */
TEST(every_small_cluster) {
        for (int nodes = 2; nodes <= 6; nodes++)
                for (int per = 1; per <= 4; per++) {
                        struct replica_node n[6];
                        int place[24], holder[24], again[24], world = nodes * per;

                        for (int r = 0; r < world; r++)
                                place[r] = r / per;
                        nodes_of(n, nodes, place, world);
                        CU_ASSERT_EQUAL(replica_plan(n, nodes, place, NULL, world, holder), 0);
                        CU_ASSERT(most(holder, world, nodes) <= per + 1);
                        for (int gone = 0; gone < nodes; gone++) {
                                n[gone].holds = false;
                                CU_ASSERT_EQUAL(replica_plan(n, nodes, place, holder, world, again), nodes == 2 ? per : 0);
                                for (int r = 0; r < world; r++) {
                                        CU_ASSERT_NOT_EQUAL(again[r], place[r]);
                                        CU_ASSERT_NOT_EQUAL(again[r], gone);
                                }
                                n[gone].holds = true;
                        }
                }
}

TEST_MAIN("replica_plan")
