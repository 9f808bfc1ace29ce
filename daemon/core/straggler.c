/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks that are slower than others that do the same.  Everyone's step takes as long as the slowest rank's, so steps say nothing; what a rank takes for itself, collectives not counted, does.  Workers
 * tell it by phase with each heartbeat; every rank's own window ends when all have made so many steps.  Only ranks of one pipeline stage do the same work.
 *
 * Three windows in a row make a straggler, and three in which it takes less than half of the allowance more than the others end it.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/robust.h"
#include "daemon/core/core.h"
#include "daemon/core/pace.h"
#include "proto/flight.h"

/* Thresholds. */
#define WINDOWS 3
#define SIGMAS 4.0
#define LEAST_MS 1.0

struct pace {
        bool begun;
        uint64_t step0, step;
        double busy0[N_FLIGHT_PHASES], busy[N_FLIGHT_PHASES];
        int slow, fine; /* windows in a row */
        bool told;
};

void straggler_forget(struct job *j) {
        free(j->pace);
        j->pace = NULL;
}

bool pace_is_slow(const double *v, size_t n, size_t i, double percent, double *scratch, double *ret_median) {
        double sigma;
        size_t k = 0;

        for (size_t m = 0; m < n; m++)
                if (m != i)
                        scratch[k++] = v[m];
        *ret_median = 0;
        if (k == 0)
                return false;
        robust_spread(scratch, k, ret_median, &sigma);
        return v[i] > *ret_median * (1 + percent / 100) && v[i] > *ret_median + SIGMAS * sigma && v[i] > *ret_median + LEAST_MS;
}

/* Phases of a step; an evaluation does not come in every window. */
static bool counts(int phase) {
        return phase >= FLIGHT_FORWARD && phase < FLIGHT_EVAL;
}

static double per_step(const struct pace *p, int phase) {
        return (p->busy[phase] - p->busy0[phase]) / (double)(p->step - p->step0);
}

static double own_ms(const struct pace *p) {
        double ms = 0;

        for (int i = 0; i < N_FLIGHT_PHASES; i++)
                ms += counts(i) ? per_step(p, i) : 0;
        return ms;
}

/* Where it loses most against the quickest of its stage. */
static int worst_phase(const struct pace *p, const struct pace *stage, size_t n) {
        double most = -INFINITY;
        int phase = FLIGHT_FORWARD;

        for (int i = 0; i < N_FLIGHT_PHASES; i++) {
                double least = INFINITY;

                for (size_t k = 0; k < n && counts(i); k++)
                        least = per_step(&stage[k], i) < least ? per_step(&stage[k], i) : least;
                if (counts(i) && per_step(p, i) - least > most) {
                        most = per_step(p, i) - least;
                        phase = i;
                }
        }
        return phase;
}

static void judge(struct controller *c, struct job *j, int rank, const double *v, size_t n, size_t i, double *scratch) {
        double percent = (double)j->spec->metrics.straggler_percent, median;
        struct pace *p = &j->pace[rank], *stage = p - i;
        const struct event_of of = { .job = j, .node = j->ranks[rank].node, .rank = rank, .severity = "warning", .ms = v[i] };

        if (pace_is_slow(v, n, i, percent, scratch, &median)) {
                p->fine = 0;
                if (++p->slow == WINDOWS && !p->told) {
                        int phase = worst_phase(p, stage, n);

                        p->told = true;
                        event_add(c, &of, "straggler", "rank %d on %s takes %.1f ms a step for itself, %.2f times the median of the others of its stage (%.1f ms), for %d steps; most of it in phase %s", rank,
                                  j->ranks[rank].node->name, v[i], v[i] / (median > 1e-3 ? median : 1e-3), median, WINDOWS * (int)j->spec->metrics.straggler_steps, flight_phase_name((uint64_t)phase));
                }
                return;
        }
        p->slow = 0;
        p->fine = v[i] < median * (1 + percent / 200) ? p->fine + 1 : 0;
        if (p->told && p->fine == WINDOWS) {
                p->told = false;
                event_add(c, &(struct event_of){ .job = j, .node = of.node, .rank = rank, .ms = v[i] }, "straggler_over", "rank %d on %s takes %.1f ms a step for itself again, the others of its stage %.1f ms", rank,
                          j->ranks[rank].node->name, v[i], median);
        }
}

/* A stage's ranks lie side by side. */
static void judge_stage(struct controller *c, struct job *j, int first, int n) {
        _cleanup_free_ double *v = calloc((size_t)n, sizeof(*v)), *scratch = calloc((size_t)n, sizeof(*scratch));

        for (int i = 0; i < n && v && scratch; i++)
                v[i] = own_ms(&j->pace[first + i]);
        for (int i = 0; i < n && v && scratch; i++)
                judge(c, j, first + i, v, (size_t)n, (size_t)i, scratch);
}

static void window_over(struct controller *c, struct job *j) {
        int n = j->spec->parallel.tp * j->spec->parallel.dp;

        for (int i = 0; i < j->world; i++)
                if (!j->pace[i].begun || j->pace[i].step < j->pace[i].step0 + (uint64_t)j->spec->metrics.straggler_steps)
                        return;
        for (int first = 0; first + n <= j->world; first += n)
                judge_stage(c, j, first, n);
        for (int i = 0; i < j->world; i++) {
                j->pace[i].step0 = j->pace[i].step;
                memcpy(j->pace[i].busy0, j->pace[i].busy, sizeof(j->pace[i].busy0));
        }
}

void straggler_note(struct controller *c, struct job *j, const Fp8ctl__V1__RankProgress *p) {
        struct pace *k;

        if (!j->spec->metrics.straggler_percent || (j->rec != REC_WATCH && j->rec != REC_RESUME) || p->n_busy_ms > N_FLIGHT_PHASES || p->n_busy_ms == 0)
                return;
        for (size_t i = 0; i < p->n_busy_ms; i++)
                if (!isfinite(p->busy_ms[i]) || p->busy_ms[i] < 0)
                        return;
        if (!j->pace && !(j->pace = calloc((size_t)j->world, sizeof(*j->pace))))
                return;
        k = &j->pace[p->rank];
        if (k->begun && p->step == k->step)
                return;
        k->step = p->step;
        memcpy(k->busy, p->busy_ms, p->n_busy_ms * sizeof(*p->busy_ms));
        if (!k->begun || p->step < k->step0) {
                k->begun = true;
                k->step0 = p->step;
                memcpy(k->busy0, k->busy, sizeof(k->busy0));
        }
        window_over(c, j);
}
