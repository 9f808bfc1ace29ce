/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Pure: where a rank stands in the grid. rank = (pp * DP + dp) * TP + tp: tensor parallelism innermost, so that its heavy traffic stays inside a node. */
#include <stdint.h>

struct rank_place {
        uint32_t pp, dp, tp;
};

struct rank_place rank_plan_place(int tp, int pp, int dp, uint32_t rank);
uint32_t rank_plan_rank(int tp, int pp, int dp, struct rank_place p);
/* The rank that reports losses and writes the metrics: last stage, dp 0, tp 0. */
uint32_t rank_plan_reporter(int tp, int pp, int dp);
/* tensor-parallel groups: ranks [group * tp, group * tp + tp). */
static inline int rank_plan_groups(int pp, int dp) {
        return pp * dp;
}
