/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Pure: which pairs of n nodes measure what is between them in which round, and what the figures say of nodes and links. */
#include <stdbool.h>
#include <stddef.h>

struct pair_figure {
        int a, b;
        double gbs; /* NaN: not to be had */
        bool slow;  /* pair_judge's word */
};

/* Rounds in which each of n nodes has another partner: all of them meet (n - 1, or n when it is odd), or so many as tell a node from a link: about log2(n), at least 3. */
int pair_rounds(int n, bool all);
/* The pairs of a round, 0 to pair_rounds(n, true) - 1; ret[n / 2]. Returns how many: a node is in one at most. */
int pair_round(int n, int round, struct pair_figure *ret);
/*
 * What is usual: the median over the nodes of the best that each had, so that one bad node, which spoils a figure of all others, does not move it.  A pair is slow below that by four robust standard deviations (1.4826
 * times the median absolute deviation of those; at least 5 %, at most 15 % each), or below `least` (0: nothing is asked for).
 * ret_bad[n]: more than half of what the node measured, of two figures or more, is slow or was not to be had; the worst is named first, and its pairs count against nobody else.
 * Returns what is usual, 0: nothing was measured.
 */
double pair_judge(struct pair_figure *f, size_t n_figures, int n, double least, bool *ret_bad);
/* The last of these rules by itself, for figures that are `slow` (or wrong) already. False: no memory, and nobody is named. */
bool pair_name(const struct pair_figure *f, size_t n_figures, int n, bool *ret_bad);
