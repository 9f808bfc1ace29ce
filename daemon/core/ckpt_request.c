/* SPDX-License-Identifier: Apache-2.0 */
/* A client asks for a checkpoint to be removed: what a job loads, may have to load or starts from stays, unless it is forced. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "daemon/core/ckpt_private.h"
#include "daemon/core/request_private.h"

/* The committed checkpoint in that folder, whosever it is; NULL. */
static struct checkpoint *find_listed(struct controller *c, const char *path, struct job **ret_job) {
        for (size_t i = 0; i < c->n_jobs; i++) {
                struct checkpoint *k = checkpoint_at(c->jobs[i], path);

                if (k && !k->removing) {
                        *ret_job = c->jobs[i];
                        return k;
                }
        }
        return NULL;
}

/* Says why it should stay; false: nobody needs it. */
static bool needed(struct controller *c, const struct job *j, const struct checkpoint *k, char *why, size_t size) {
        for (size_t i = 0; i < c->n_jobs; i++) {
                const struct job *o = c->jobs[i];

                if (job_ended(o))
                        continue;
                if (checkpoint_being_loaded(o, k->path))
                        snprintf(why, size, "job %" PRIu64 " is loading it", o->id);
                else if (!checkpoint_newest(o) && o->from_checkpoint && strcmp(o->from_checkpoint, k->path) == 0)
                        snprintf(why, size, "job %" PRIu64 " was submitted with it and has no checkpoint of its own yet", o->id);
                else if (o == j && checkpoint_newest(j) == k)
                        snprintf(why, size, "it is the newest checkpoint of job %" PRIu64 ", which has not ended", j->id);
                else
                        continue;
                return true;
        }
        return false;
}

static void forget(struct controller *c, struct job *j, struct checkpoint *k) {
        event_add(c, &(struct event_of){ .job = j, .rank = -1 }, "checkpoint_removed", "step %" PRIu64 " in %s: removed by request", k->step, k->path);
        record_delete_commit(c, j, k);
        checkpoint_remove(c, j, k);
}

void checkpoint_request_remove(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const Fp8ctl__V1__RemoveCheckpointRequest *q = (const Fp8ctl__V1__RemoveCheckpointRequest *)m;
        Fp8ctl__V1__RemoveCheckpointReply r = FP8CTL__V1__REMOVE_CHECKPOINT_REPLY__INIT;
        Fp8ctl__V1__Checkpoint o;
        const char *path = q->path ? q->path : "";
        struct job *j = NULL;
        struct checkpoint *k = find_listed(c, path, &j);
        char why[200];

        if (!k) {
                request_refuse(c, request, ST_NOT_FOUND, "%.300s: no job lists a checkpoint there", path);
        } else if (!request_may_touch(who, j)) {
                request_refuse(c, request, ST_DENIED, "job %" PRIu64 " belongs to %s", j->id, j->user);
        } else if (!q->force && needed(c, j, k, why, sizeof(why))) {
                request_refuse(c, request, ST_PRECONDITION, "%.300s is kept: %s", path, why);
        } else {
                checkpoint_message_fill(j, k, &o);
                r.checkpoint = &o;
                request_answer(c, request, &r.base);
                forget(c, j, k);
        }
}
