/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Where a rank stands between epochs, as a table (base/table.h). */
#include "base/table.h"

enum rank_state { RANK_STATE_STARTING, RANK_STATE_PARKED, RANK_STATE_LOADING, RANK_STATE_JOINING, RANK_STATE_RUNNING, RANK_STATE_FAULTED, RANK_STATE_DONE, RANK_STATE_LEAVING,
                  RANK_STATE_COUNT };
enum rank_event {
        RANK_EVENT_STARTED,  /* listener bound, memory there */
        RANK_EVENT_PLAN,     /* an epoch to join */
        RANK_EVENT_LOADED,
        RANK_EVENT_JOINED,   /* meshed and synchronised */
        RANK_EVENT_FAULT,    /* cannot go on in this epoch */
        RANK_EVENT_ABORT,    /* the controller ends the epoch */
        RANK_EVENT_FINISHED, /* last step, or asked to stop */
        RANK_EVENT_RELEASE,
        RANK_EVENT_COUNT,
};

extern const struct table rank_states;
