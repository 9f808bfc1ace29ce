/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds by the circle method of tournaments: one place is fixed, the others turn about it, and who stand opposite each other meet.  Distinct rounds give distinct partners, so k rounds are k figures of every node
 * with k others: a bad link spoils one of them, a bad node all.
 */
#include "daemon/core/pair_plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

#define ROUNDS_MIN 3
#define SIGMAS 4.0
#define SIGMA_MIN 0.05 /* of what is usual */
#define SIGMA_MAX 0.15 /* what has less than 40% is slow, however much the others differ */
#define MAD_TO_SIGMA 1.4826 /* of a normal distribution (Rousseeuw and Croux 1993) */

int pair_rounds(int n, bool all) {
        int even = n + n % 2, rounds = 0;

        if (n < 2)
                return 0;
        while (1 << rounds < n)
                rounds++;
        if (rounds < ROUNDS_MIN)
                rounds = ROUNDS_MIN;
        return all || rounds > even - 1 ? even - 1 : rounds;
}

int pair_round(int n, int round, struct pair_figure *ret) {
        int even = n + n % 2, turning = even - 1, k = 0;

        for (int i = 0; i < even / 2; i++) {
                int a = i == 0 ? even - 1 : (round + i) % turning, b = (round + turning - i) % turning;

                if (a < n && b < n) /* the other of an odd number has nobody */
                        ret[k++] = (struct pair_figure){ .a = a < b ? a : b, .b = a < b ? b : a, .gbs = NAN };
        }
        return k;
}

static int by_size(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;

        return x < y ? -1 : x > y;
}

static double median(double *v, size_t n) {
        qsort(v, n, sizeof(*v), by_size);
        return n == 0 ? 0 : n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

static double larger(double a, double b) {
        return a > b ? a : b;
}

/* The worst first, and then without its pairs: what a bad node spoils is no word against its partners. */
bool pair_name(const struct pair_figure *f, size_t n_figures, int n, bool *ret_bad) {
        _cleanup_free_ int *slow = calloc((size_t)n + 1, sizeof(*slow)), *all = calloc((size_t)n + 1, sizeof(*all));
        int worst = 0;

        memset(ret_bad, 0, (size_t)n * sizeof(*ret_bad));
        if (!slow || !all)
                return false;
        while (worst >= 0) {
                memset(slow, 0, (size_t)n * sizeof(*slow));
                memset(all, 0, (size_t)n * sizeof(*all));
                for (size_t i = 0; i < n_figures; i++) {
                        if (ret_bad[f[i].a] || ret_bad[f[i].b])
                                continue;
                        all[f[i].a]++;
                        all[f[i].b]++;
                        slow[f[i].a] += f[i].slow;
                        slow[f[i].b] += f[i].slow;
                }
                worst = -1;
                for (int i = 0; i < n; i++)
                        if (all[i] >= 2 && 2 * slow[i] > all[i] && (worst < 0 || slow[i] * all[worst] > slow[worst] * all[i]))
                                worst = i;
                if (worst >= 0)
                        ret_bad[worst] = true;
        }
        return true;
}

double pair_judge(struct pair_figure *f, size_t n_figures, int n, double least, bool *ret_bad) {
        _cleanup_free_ double *best = calloc((size_t)n + 1, sizeof(*best)), *v = calloc((size_t)n + 1, sizeof(*v));
        double usual, sigma;
        size_t k = 0;

        if (!best || !v)
                return 0;
        for (size_t i = 0; i < n_figures; i++) {
                if (isnan(f[i].gbs))
                        continue;
                best[f[i].a] = larger(best[f[i].a], f[i].gbs);
                best[f[i].b] = larger(best[f[i].b], f[i].gbs);
        }
        for (int i = 0; i < n; i++)
                if (best[i] > 0)
                        v[k++] = best[i];
        usual = median(v, k);
        for (size_t i = 0; i < k; i++)
                v[i] = larger(v[i] - usual, usual - v[i]);
        sigma = larger(MAD_TO_SIGMA * median(v, k), SIGMA_MIN * usual);
        sigma = sigma < SIGMA_MAX * usual ? sigma : SIGMA_MAX * usual;
        for (size_t i = 0; i < n_figures; i++)
                f[i].slow = isnan(f[i].gbs) || f[i].gbs < usual - SIGMAS * sigma || f[i].gbs < least;
        return pair_name(f, n_figures, n, ret_bad) ? usual : 0;
}
