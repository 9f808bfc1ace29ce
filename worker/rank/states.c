/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/rank/states.h"

#include "base/cleanup.h"

static const char *const states[] = { "starting", "parked", "loading", "joining", "running", "faulted", "done", "leaving" };
static const char *const events[] = { "started", "plan", "loaded", "joined", "fault", "abort", "finished", "release" };

/* A fault is told and then waits: only the controller's abort (or its next plan, which says the same) ends it. */
static const struct table_row rows[] = {
        { RANK_STATE_STARTING, RANK_EVENT_STARTED, RANK_STATE_PARKED, NULL },
        { RANK_STATE_STARTING, RANK_EVENT_RELEASE, RANK_STATE_LEAVING, NULL },

        { RANK_STATE_PARKED, RANK_EVENT_PLAN, RANK_STATE_LOADING, NULL },
        { RANK_STATE_PARKED, RANK_EVENT_ABORT, RANK_STATE_PARKED, NULL },
        { RANK_STATE_PARKED, RANK_EVENT_RELEASE, RANK_STATE_LEAVING, NULL },

        { RANK_STATE_LOADING, RANK_EVENT_LOADED, RANK_STATE_JOINING, NULL },
        { RANK_STATE_LOADING, RANK_EVENT_FAULT, RANK_STATE_FAULTED, NULL },
        { RANK_STATE_LOADING, RANK_EVENT_ABORT, RANK_STATE_PARKED, NULL },
        { RANK_STATE_LOADING, RANK_EVENT_RELEASE, RANK_STATE_LEAVING, NULL },

        { RANK_STATE_JOINING, RANK_EVENT_JOINED, RANK_STATE_RUNNING, NULL },
        { RANK_STATE_JOINING, RANK_EVENT_FAULT, RANK_STATE_FAULTED, NULL },
        { RANK_STATE_JOINING, RANK_EVENT_ABORT, RANK_STATE_PARKED, NULL },
        { RANK_STATE_JOINING, RANK_EVENT_RELEASE, RANK_STATE_LEAVING, NULL },

        { RANK_STATE_RUNNING, RANK_EVENT_FAULT, RANK_STATE_FAULTED, NULL },
        { RANK_STATE_RUNNING, RANK_EVENT_ABORT, RANK_STATE_PARKED, NULL },
        { RANK_STATE_RUNNING, RANK_EVENT_FINISHED, RANK_STATE_DONE, NULL },
        { RANK_STATE_RUNNING, RANK_EVENT_RELEASE, RANK_STATE_LEAVING, NULL },

        { RANK_STATE_FAULTED, RANK_EVENT_PLAN, RANK_STATE_LOADING, NULL },
        { RANK_STATE_FAULTED, RANK_EVENT_ABORT, RANK_STATE_PARKED, NULL },
        { RANK_STATE_FAULTED, RANK_EVENT_RELEASE, RANK_STATE_LEAVING, NULL },

        /* A peer can be lost while the last checkpoint is on its way. */
        { RANK_STATE_DONE, RANK_EVENT_PLAN, RANK_STATE_LOADING, NULL },
        { RANK_STATE_DONE, RANK_EVENT_ABORT, RANK_STATE_PARKED, NULL },
        { RANK_STATE_DONE, RANK_EVENT_RELEASE, RANK_STATE_LEAVING, NULL },
};

const struct table rank_states = {
        .name = "rank",
        .states = states,
        .n_states = ARRAY_SIZE(states),
        .events = events,
        .n_events = ARRAY_SIZE(events),
        .rows = rows,
        .n_rows = ARRAY_SIZE(rows),
};
