/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What has ended is forgotten in the end, so that neither the store nor the time of a start grows for ever: the newest keep_jobs ended jobs are kept.  Age alone does not count
 * (Slurm's MinJobAge, Kubernetes' ttlSecondsAfterFinished): who comes back from a month's leave finds the job.  Checkpoints on disk and logs on nodes are not touched: they
 * are their users'.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/core/core.h"

#define AT_ONCE 50u /* forgotten in one transaction: a smaller limit must not make a huge one */

/* Nothing of it is under way any more: no folder that is being written or removed, no client that waits, no rank that was told to leave. */
static bool at_rest(const struct controller *c, const struct job *j) {
        if (!job_ended(j) || j->release_deadline || j->zombie_deadline || j->saves)
                return false;
        for (size_t i = 0; i < j->n_checkpoints; i++)
                if (j->checkpoints[i].removing || j->checkpoints[i].file_id)
                        return false;
        for (const struct pending *p = c->pending; p; p = p->next)
                if (p->job == j->id)
                        return false;
        return true;
}

static bool holds_device(const struct controller *c, const struct job *j) {
        for (size_t i = 0; i < c->n_nodes; i++)
                for (size_t k = 0; k < c->nodes[i]->n_devices; k++)
                        if (c->nodes[i]->devices[k].job == j->id)
                                return true;
        return false;
}

static int by_end(const void *a, const void *b) {
        const struct job *x = *(struct job *const *)a, *y = *(struct job *const *)b;

        if (x->ended_ms != y->ended_ms)
                return x->ended_ms < y->ended_ms ? -1 : 1;
        return x->id < y->id ? -1 : x->id > y->id;
}

static void forget(struct controller *c, struct job *j) {
        size_t at = 0;

        while (c->jobs[at] != j)
                at++;
        core_log(c, 6, "job %" PRIu64 " (%s, ended) is forgotten: %u that ended later are kept", j->id, j->name, c->config.keep_jobs);
        record_delete_job(c, j);
        job_free(j);
        memmove(c->jobs + at, c->jobs + at + 1, (c->n_jobs - at - 1) * sizeof(struct job *));
        c->n_jobs--;
}

void retention_apply(struct controller *c) {
        _cleanup_free_ struct job **list = NULL;
        size_t ended = 0, n = 0;

        for (size_t i = 0; i < c->n_jobs; i++)
                ended += job_ended(c->jobs[i]);
        if (ended <= c->config.keep_jobs)
                return; /* nearly always */
        list = calloc(ended, sizeof(*list));
        for (size_t i = 0; list && i < c->n_jobs; i++)
                if (at_rest(c, c->jobs[i]))
                        list[n++] = c->jobs[i];
        if (n <= c->config.keep_jobs)
                return;
        qsort(list, n, sizeof(struct job *), by_end);
        for (size_t i = 0, k = 0; i < n - c->config.keep_jobs && k < AT_ONCE; i++)
                if (!holds_device(c, list[i])) {
                        forget(c, list[i]);
                        k++;
                }
}
