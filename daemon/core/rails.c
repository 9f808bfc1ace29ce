/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/core/rails.h"

#include <stdbool.h>
#include <string.h>

#include "daemon/core/rank_plan.h"

/* How many bridges both are below: a root complex is the first, its port the second, what comes then are switches. The devices themselves do not count. */
static int common_bridges(const char *a, const char *b) {
        int n = 0;

        for (size_t i = 0; a[i] && a[i] == b[i]; i++)
                n += a[i] == '/';
        return n;
}

enum rail_distance rails_distance(const struct rail_place *a, const struct rail_place *b) {
        int common = a->path && b->path ? common_bridges(a->path, b->path) : 0;

        if (common > 2)
                return RAIL_SWITCH;
        if (common > 0)
                return RAIL_ROOT;
        return a->numa >= 0 && a->numa == b->numa ? RAIL_NUMA : RAIL_FAR;
}

static bool known(const struct rail_place *p) {
        return p->path && p->path[0];
}

void rails_assign(const struct rail_place *devices, size_t n, const struct rail_place *nics, size_t n_nics, uint64_t *ret) {
        unsigned users[RAILS_MAX] = { 0 };

        n_nics = n_nics < RAILS_MAX ? n_nics : RAILS_MAX;
        for (size_t d = 0; d < n; d++) {
                enum rail_distance nearest = RAIL_FAR;
                size_t best = RAILS_MAX;

                ret[d] = 0;
                for (size_t i = 0; known(&devices[d]) && i < n_nics; i++) {
                        enum rail_distance far = rails_distance(&devices[d], &nics[i]);

                        if (!known(&nics[i]) || (best < RAILS_MAX && (far > nearest || (far == nearest && users[i] >= users[best]))))
                                continue;
                        best = i;
                        nearest = far;
                }
                if (best == RAILS_MAX)
                        continue;
                ret[d] = UINT64_C(1) << best;
                users[best]++;
        }
        for (size_t i = 0; i < n_nics; i++) {
                enum rail_distance nearest = RAIL_NUMA; /* farther than any that counts here */
                size_t best = n;

                for (size_t d = 0; known(&nics[i]) && !users[i] && d < n; d++) {
                        enum rail_distance far = rails_distance(&devices[d], &nics[i]);

                        if (ret[d] && far <= rails_distance(&devices[d], &nics[__builtin_ctzll(ret[d])]) &&
                            (far < nearest || (best < n && far == nearest && __builtin_popcountll(ret[d]) < __builtin_popcountll(ret[best])))) {
                                best = d;
                                nearest = far;
                        }
                }
                if (best < n)
                        ret[best] |= UINT64_C(1) << i;
        }
}

static bool split(int tp, const struct rail_seat *group) {
        for (int t = 1; t < tp; t++)
                if (group[t].domain && group[0].domain && group[t].domain != group[0].domain)
                        return true;
        return false;
}

static void tell_ring(int tp, int pp, int dp, uint32_t stage, uint32_t t, const struct rail_seat *seats, struct rails_told *told) {
        for (int d = 0; d < (dp > 2 ? dp : dp - 1); d++) {
                const struct rail_seat *a = &seats[rank_plan_rank(tp, pp, dp, (struct rank_place){ .pp = stage, .dp = (uint32_t)d, .tp = t })];
                const struct rail_seat *b = &seats[rank_plan_rank(tp, pp, dp, (struct rank_place){ .pp = stage, .dp = (uint32_t)((d + 1) % dp), .tp = t })];

                if (a->node == b->node || !a->rails || !b->rails)
                        continue;
                told->hops++;
                told->crossings += (a->rails & b->rails) == 0;
        }
}

struct rails_told rails_tell(int tp, int pp, int dp, const struct rail_seat *seats) {
        struct rails_told told = { 0 };

        for (int g = 0; g < rank_plan_groups(pp, dp); g++)
                told.split_groups += split(tp, seats + g * tp);
        for (int p = 0; p < pp; p++)
                for (int t = 0; t < tp; t++)
                        tell_ring(tp, pp, dp, (uint32_t)p, (uint32_t)t, seats, &told);
        return told;
}
