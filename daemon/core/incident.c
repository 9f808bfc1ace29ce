/* SPDX-License-Identifier: Apache-2.0 */
/* An incident: its cause, how often the same one came without a step gained, and when that is too often. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "daemon/core/recovery_private.h"

void incident_open(struct controller *c, struct job *j, const char *cause, bool final, uint64_t incarnation) {
        if (!j->inc.open) {
                j->inc = (struct incident){ .open = true, .detected = core_now(c), .best_step = j->best_step };
        } else if (j->inc.cause_final && !final) {
                return; /* the first cause that is certain names the incident */
        }
        core_text(j->inc.cause, sizeof(j->inc.cause), cause);
        j->inc.cause_final = final;
        j->inc.cause_incarnation = incarnation;
}

static bool limit_reached(struct controller *c, struct job *j) {
        char why[sizeof(j->reason)];

        if (j->same_cause < (uint64_t)j->spec->recovery.same_cause_limit)
                return false;
        snprintf(why, sizeof(why), "%u times the same cause without a step gained: %s", j->same_cause, j->last_cause);
        job_finish(c, j, JOB_E_FAIL, why);
        return true;
}

/* Counts a failure. True: it was one too many and the job is over. An uncertain cause (death seen, not reaped) is judged when it is refined. */
bool incident_count(struct controller *c, struct job *j, const char *why, bool final) {
        if (j->best_step > j->replan_step)
                j->same_cause = 0;
        j->replan_step = j->best_step;
        if (j->same_cause && final && strcmp(j->last_cause, why) != 0)
                j->same_cause = 0;
        j->same_cause++;
        if (final || j->same_cause == 1)
                core_text(j->last_cause, sizeof(j->last_cause), why);
        j->dirty = true;
        return final && limit_reached(c, j);
}

bool incident_restarts_used_up(struct controller *c, struct job *j) {
        char why[sizeof(j->reason)];

        j->restarts++;
        if (j->spec->recovery.max_restarts < 0 || j->restarts <= (uint64_t)j->spec->recovery.max_restarts)
                return false;
        j->restarts--;
        snprintf(why, sizeof(why), "recovery.max_restarts (%" PRId64 ") used up; %.300s", j->spec->recovery.max_restarts, j->inc.cause);
        job_finish(c, j, JOB_E_FAIL, why);
        return true;
}

/* The first death of an incident names it. True: this one has. */
static bool name_incident(struct job *j, uint64_t incarnation, const char *why) {
        const char *was;

        if (j->inc.cause_final || !j->inc.cause_incarnation || j->inc.cause_incarnation != incarnation)
                return false;
        was = strrchr(j->inc.cause, ' ') ? strstr(j->inc.cause, " died") : NULL;
        j->inc.cause_final = true;
        if (was) {
                char text[TEXT_MAX_LEN];

                snprintf(text, sizeof(text), "%.*s %.200s", (int)(was - j->inc.cause), j->inc.cause, why);
                core_text(j->inc.cause, sizeof(j->inc.cause), text);
        }
        j->dirty = true;
        return true;
}

void recovery_refine_cause(struct controller *c, struct job *j, uint64_t incarnation, const char *why) {
        /* The job may be quicker than whoever holds the dead process (a debugger, much memory to be freed): then the cause is told by itself. */
        if (name_incident(j, incarnation, why) && !j->inc.open)
                event_add(c, &(struct event_of){ .job = j, .rank = -1, .severity = "warning" }, "rank_exited", "%s", j->inc.cause);
        if (!j->inc.open || j->inc.unjudged != incarnation)
                return;
        j->inc.unjudged = 0;
        if (j->same_cause > 1 && strcmp(j->last_cause, why) != 0)
                j->same_cause = 1;
        core_text(j->last_cause, sizeof(j->last_cause), why);
        j->dirty = true;
        limit_reached(c, j);
}
