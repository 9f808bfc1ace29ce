/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two passes.  The first keeps every holder of before that is as good as any and has not more than its even share.  The second gives each rank that is left to
 * the best node: another rack, then of the job, then the least loaded, then the next one after the rank's own (so that neighbours hold each other's in a ring
 * and no node's loss hits two copies of one rank).
 */
#include "daemon/core/replica_plan.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

int replica_grade(const struct replica_node *own, const struct replica_node *at) {
        bool apart = at->rack[0] && own->rack[0] && strcmp(at->rack, own->rack) != 0;

        return (apart ? 0 : 2) + (at->of_job ? 0 : 1);
}

/* -1: cannot hold. */
static int grade(const struct replica_node *nodes, int own, int at) {
        return at == own || !nodes[at].holds ? -1 : replica_grade(&nodes[own], &nodes[at]);
}

static int best_grade(const struct replica_node *nodes, int n_nodes, int own) {
        int best = -1;

        for (int i = 0; i < n_nodes; i++) {
                int g = grade(nodes, own, i);

                if (g >= 0 && (best < 0 || g < best))
                        best = g;
        }
        return best;
}

/* What each node of the best grade for somebody would hold if all were spread evenly over them. */
static int even_share(const struct replica_node *nodes, int n_nodes, const int *place, const int *best, int world) {
        int could = 0;

        for (int i = 0; i < n_nodes; i++) {
                bool wanted = false;

                for (int r = 0; r < world && !wanted; r++)
                        wanted = (r == 0 || place[r] != place[r - 1]) && best[place[r]] >= 0 && grade(nodes, place[r], i) == best[place[r]];
                could += wanted;
        }
        return could ? (world + could - 1) / could : 0;
}

/* The least loaded of this grade below the bound. */
static int choose(const struct replica_node *nodes, int n_nodes, int own, int wanted, const int *load, int bound) {
        int found = -1;

        for (int k = 1; k < n_nodes; k++) {
                int at = (own + k) % n_nodes;

                if (grade(nodes, own, at) == wanted && load[at] < bound && (found < 0 || load[at] < load[found]))
                        found = at;
        }
        return found;
}

int replica_fair_load(int n_nodes, const int *place, int world) {
        _cleanup_free_ int *ranks = calloc((size_t)n_nodes + 1, sizeof(*ranks));
        int most = 0;

        for (int r = 0; ranks && r < world; r++)
                if (++ranks[place[r]] > most)
                        most = ranks[place[r]];
        return ranks ? 2 * most : world;
}

/* For one who has no holder yet. Nodes of the job, then others as far away, then those of the job whatever they have. */
static int choose_fairly(const struct replica_node *nodes, int n_nodes, int own, int best, int was, const int *load, int fair) {
        int at = choose(nodes, n_nodes, own, best, load, fair);

        if (at < 0 && best % 2 == 0) {
                at = choose(nodes, n_nodes, own, best + 1, load, INT_MAX);
                if (at >= 0 && was >= 0 && was < n_nodes && grade(nodes, own, was) == best + 1 && load[was] <= load[at])
                        at = was;
        }
        return at >= 0 ? at : choose(nodes, n_nodes, own, best, load, INT_MAX);
}

int replica_plan(const struct replica_node *nodes, int n_nodes, const int *place, const int *before, int world, int *ret) {
        _cleanup_free_ int *load = calloc((size_t)n_nodes + 1, sizeof(*load)), *best = calloc((size_t)n_nodes + 1, sizeof(*best));
        int share, fair, without = 0;

        if (!load || !best)
                return -ENOMEM;
        for (int i = 0; i < n_nodes; i++)
                best[i] = -2; /* not looked for */
        for (int r = 0; r < world; r++)
                if (best[place[r]] == -2)
                        best[place[r]] = best_grade(nodes, n_nodes, place[r]);
        fair = replica_fair_load(n_nodes, place, world);
        share = before ? even_share(nodes, n_nodes, place, best, world) : 0;
        for (int r = 0; r < world; r++) {
                int was = before ? before[r] : -1, own = place[r];

                ret[r] = was >= 0 && was < n_nodes && best[own] >= 0 && grade(nodes, own, was) == best[own] && load[was] < share && load[was] < fair ? was : -1;
                if (ret[r] >= 0)
                        load[was]++;
        }
        for (int r = 0; r < world; r++) {
                if (ret[r] >= 0)
                        continue;
                ret[r] = best[place[r]] < 0 ? -1 : choose_fairly(nodes, n_nodes, place[r], best[place[r]], before ? before[r] : -1, load, fair);
                if (ret[r] >= 0)
                        load[ret[r]]++;
                else
                        without++;
        }
        return without;
}
