/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preemption: the waiting job with the highest claim takes the devices of jobs of lower priority, of the lowest first and among those of the youngest first, and of no more of them than it
 * needs.  They save at the end of a step and wait in the queue for devices again.  Nothing is stopped when it would not be enough.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "daemon/core/core.h"

#define J(x) FP8CTL__V1__JOB_STATE__##x

static int by_worth(const void *a, const void *b) {
        const struct job *x = *(struct job *const *)a, *y = *(struct job *const *)b;

        if (x->spec->priority != y->spec->priority)
                return x->spec->priority < y->spec->priority ? -1 : 1;
        return x->started_ms != y->started_ms ? (x->started_ms > y->started_ms ? -1 : 1) : x->id > y->id ? -1 : 1;
}

/* Those that leave already: their devices are on their way. */
static bool room_is_coming(struct controller *c, const struct job *j, struct job **list) {
        size_t n = 0;

        for (size_t i = 0; i < c->n_jobs; i++)
                if (c->jobs[i]->state == J(STOPPING) || c->jobs[i]->leaving || (!job_placed(c->jobs[i]) && c->jobs[i]->release_deadline))
                        list[n++] = c->jobs[i];
        return n > 0 && job_fits_without(c, j, list, n);
}

void preempt_for(struct controller *c, struct job *j) {
        _cleanup_free_ struct job **list = calloc(c->n_jobs + 1, sizeof(*list));
        char why[TEXT_MAX_LEN];
        size_t n = 0, needed = 0;

        if (!list || room_is_coming(c, j, list))
                return;
        for (size_t i = 0; i < c->n_jobs; i++)
                if (job_placed(c->jobs[i]) && c->jobs[i]->state != J(STOPPING) && !c->jobs[i]->leaving && c->jobs[i]->spec->priority < j->spec->priority)
                        list[n++] = c->jobs[i];
        qsort(list, n, sizeof(*list), by_worth);
        while (needed < n && !job_fits_without(c, j, list, ++needed))
                ;
        if (n == 0 || !job_fits_without(c, j, list, needed))
                return;
        /* From the most worthy: whoever it can do without stays. */
        for (size_t i = needed; i-- > 0;) {
                struct job *spared = list[i];

                list[i] = list[needed - 1];
                if (job_fits_without(c, j, list, needed - 1))
                        needed--;
                else
                        list[i] = spared;
        }
        for (size_t i = 0; i < needed; i++) {
                snprintf(why, sizeof(why), "preempted by job %" PRIu64 " (%.100s, priority %" PRId64 ")", j->id, j->name, j->spec->priority);
                event_add(c, &(struct event_of){ .job = list[i], .rank = -1, .severity = "warning" }, "preempted", "%s", why);
                job_stop(c, list[i], STOP_REQUEUE, (uint32_t)list[i]->spec->recovery.grace_ms, false, why);
        }
}
