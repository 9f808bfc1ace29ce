/* SPDX-License-Identifier: Apache-2.0 */
/*
 * goodput JOB: where a job's time went, from its metrics rows and events.  From the first step's begin to the newest row (or to now while it is being recovered or waits):
 *
 *   productive     new steps x the undisturbed (median) time from one to the next
 *   lost           steps that were done and had to be done again, at the same median
 *   waiting        without devices, from `requeued` to `placed`
 *   recovering     between the last row of one epoch and the first of the next, less the three above
 *   checkpointing  what steps waited for snapshots
 *   skipped        steps that were not finite
 *   other          what is left: evaluations, and steps slower than the median (negative when they were quicker)
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/robust.h"
#include "ctl/handlers.h"
#include "ctl/history.h"
#include "ctl/job_view.h"

struct goodput {
        uint64_t new_steps;
        double wall, median, productive, lost, recovering, checkpointing, skipped, waiting, other;
};

static double number(const struct metrics_row *r, const char *key) {
        const json_t *v = json_object_get(r->row, key);

        return json_is_number(v) ? json_number_value(v) : 0;
}

static bool was_skipped(const struct metrics_row *r) {
        return json_is_true(json_object_get(r->row, "skipped"));
}

/* Of steps that came straight after another in the same epoch. */
static int median_step(const struct metrics_row *rows, size_t n, double *ret) {
        _cleanup_free_ double *d = calloc(n ? n : 1, sizeof(*d));
        size_t k = 0;

        if (!d)
                return -1;
        for (size_t i = 1; i < n; i++)
                if (rows[i].epoch == rows[i - 1].epoch && rows[i].step == rows[i - 1].step + 1 && !was_skipped(&rows[i]))
                        d[k++] = number(&rows[i], "t") - number(&rows[i - 1], "t");
        *ret = robust_median(d, k);
        return 0;
}

static double waited(const struct history *h, double from, double until) {
        double sum = 0, since = 0;

        for (size_t i = 0; i < h->n; i++) {
                double t = (double)h->events[i]->unix_ms / 1e3;

                if (strcmp(h->events[i]->kind, "requeued") == 0 && since == 0)
                        since = fmax(t, from);
                else if (strcmp(h->events[i]->kind, "placed") == 0 && since > 0) {
                        sum += fmax(fmin(t, until) - since, 0);
                        since = 0;
                }
        }
        return sum + (since > 0 ? fmax(until - since, 0) : 0);
}

static int account(const struct metrics_row *rows, size_t n, const struct history *h, const Fp8ctl__V1__Job *j, struct goodput *g) {
        bool away = j->state == FP8CTL__V1__JOB_STATE__RECOVERING || j->state == FP8CTL__V1__JOB_STATE__PENDING || j->state == FP8CTL__V1__JOB_STATE__STARTING;
        double from, until, gaps = 0;

        *g = (struct goodput){ 0 };
        if (n == 0)
                return 0;
        if (median_step(rows, n, &g->median) < 0)
                return -1;
        from = number(&rows[0], "t") - number(&rows[0], "ms") / 1e3;
        until = number(&rows[n - 1], "t");
        if (away)
                until = fmax(until, (double)clock_wall_ns() / 1e9);
        for (size_t i = 0; i < n; i++) {
                double before = i ? number(&rows[i - 1], "t") : from, took = number(&rows[i], "t") - before;

                g->checkpointing += number(&rows[i], "snapshot_ms") / 1e3;
                if (i && rows[i].epoch != rows[i - 1].epoch)
                        gaps += fmax(took - g->median, 0);
                else if (was_skipped(&rows[i]))
                        g->skipped += took;
                g->new_steps += !was_skipped(&rows[i]);
        }
        gaps += until - number(&rows[n - 1], "t");
        g->wall = until - from;
        g->productive = fmin((double)g->new_steps * g->median, g->wall);
        g->waiting = fmin(waited(h, from, until), gaps);
        g->lost = fmin((double)j->lost_steps * g->median, gaps - g->waiting);
        g->recovering = gaps - g->waiting - g->lost;
        g->other = g->wall - g->productive - g->lost - g->recovering - g->checkpointing - g->skipped - g->waiting;
        return 0;
}

static void print_goodput(const struct goodput *g) {
        const struct {
                const char *name;
                double s;
        } parts[] = { { "productive", g->productive }, { "lost", g->lost },       { "recovering", g->recovering }, { "checkpointing", g->checkpointing },
                      { "skipped", g->skipped },       { "waiting", g->waiting }, { "other", g->other } };

        printf("%" PRIu64 " new steps of %.1f ms in %.1f s\n", g->new_steps, g->median * 1e3, g->wall);
        for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
                printf("%-14s %10.2f s  %6.2f%%\n", parts[i].name, parts[i].s, g->wall > 0 ? 100 * parts[i].s / g->wall : 0);
}

static inline void metrics_freep(struct metrics **m) {
        metrics_free(*m);
}

int goodput_run(struct ctl *c, int n, char **args) {
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_(history_free) struct history h = { 0 };
        _cleanup_(metrics_freep) struct metrics *m = metrics_new(METRICS_STEPS);
        _cleanup_message_ Fp8ctl__V1__Job *j = NULL;
        const struct metrics_row *rows;
        struct goodput g;
        struct error e;
        uint64_t job;
        size_t n_rows;

        (void)n;
        if (parse_job_id(args[0], &job, &e) < 0)
                return ctl_usage(&e);
        if (!m || client_new(c, &cl, &e) < 0)
                return m ? ctl_fail(&e) : EXIT_FAILED;
        if (client_get_job(cl, job, &j, &e) < 0 || history_events(cl, job, &h, &e) < 0 || history_metrics(cl, job, m, &e) < 0)
                return ctl_fail(&e);
        rows = metrics_rows(m, &n_rows);
        if (account(rows, n_rows, &h, j, &g) < 0)
                return EXIT_FAILED;
        if (c->format == FORMAT_TABLE)
                print_goodput(&g);
        else {
                _cleanup_json_ json_t *o = json_pack("{s:i, s:I, s:f, s:f, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "v", CTL_JSON_VERSION, "job", (json_int_t)job, "goodput",
                                                     g.wall > 0 ? g.productive / g.wall : 0, "wall_s", g.wall, "new_steps", (json_int_t)g.new_steps, "step_ms", g.median * 1e3,
                                                     "productive_s", g.productive, "lost_s", g.lost, "recovering_s", g.recovering, "checkpointing_s", g.checkpointing, "skipped_s",
                                                     g.skipped, "waiting_s", g.waiting, "other_s", g.other);

                print_object(c, o);
        }
        return EXIT_DONE;
}
