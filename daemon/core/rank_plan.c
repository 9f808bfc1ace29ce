/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/core/rank_plan.h"

struct rank_place rank_plan_place(int tp, int pp, int dp, uint32_t rank) {
        uint32_t t = (uint32_t)tp, d = (uint32_t)dp;

        (void)pp;
        return (struct rank_place){ .tp = rank % t, .dp = rank / t % d, .pp = rank / (t * d) };
}

uint32_t rank_plan_rank(int tp, int pp, int dp, struct rank_place p) {
        (void)pp;
        return (p.pp * (uint32_t)dp + p.dp) * (uint32_t)tp + p.tp;
}

uint32_t rank_plan_reporter(int tp, int pp, int dp) {
        return rank_plan_rank(tp, pp, dp, (struct rank_place){ .pp = (uint32_t)pp - 1 });
}
