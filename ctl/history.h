/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* All that the controller and the workers still have of a job's past. */
#include "ctl/client.h"
#include "ctl/metrics.h"

/* Events of the job, in order, with the pages that hold them. */
struct history {
        Fp8ctl__V1__ListEventsReply **pages;
        const Fp8ctl__V1__Event **events;
        size_t n_pages, n;
};
int history_events(struct client *cl, uint64_t job, struct history *ret, struct error *e);
void history_free(struct history *h);
/* Metrics rows that lie on nodes where the rank that writes them was before: they stay where they were written. Nodes that cannot be asked are passed over. */
int history_metrics_elsewhere(struct client *cl, uint64_t job, struct metrics *m, struct error *e);
/* All of its metrics rows, none before the first step. */
int history_metrics(struct client *cl, uint64_t job, struct metrics *m, struct error *e);
