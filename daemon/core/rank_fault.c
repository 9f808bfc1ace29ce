/* SPDX-License-Identifier: Apache-2.0 */
/* What a rank says about itself and about others: who is lost or stuck, what cannot be loaded, what is rolled back. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "daemon/core/diagnose.h"
#include "daemon/core/health.h"
#include "daemon/core/recovery_private.h"

/* Thresholds. */
#define DIAGNOSIS_MS 200u          /* ... and when all have, workers have so long to tell where the ranks are */
#define STUCK_VOTE_MS 500u         /* after the first rank that waited in vain for a peer, the others have so long to say for whom they wait */

#define J(x) FP8CTL__V1__JOB_STATE__##x

/* One that holds the others up does not park either: it is killed now. Else all begin a new round. */
void rank_suspicion_over(struct controller *c, struct job *j) {
        char text[TEXT_MAX_LEN];
        bool known;
        int named = stuck_rank(j), found = diagnose_culprit(c, j, &known), stuck = known ? found : named;

        core_text(text, sizeof(text), j->inc.cause);
        j->rec_deadline = 0;
        if (stuck >= 0)
                recovery_rank_lost(c, j, (uint32_t)stuck, "is stuck: the others waited for it in vain", LOST_KILL, true);
        else
                recovery_again(c, j, text, true);
}

/* All workers have told where their ranks are. */
void rank_diagnosed(struct controller *c, struct job *j) {
        if (j->rec == REC_SUSPECT && (stuck_all_spoke(j) || diagnose_certain(c, j)))
                rank_suspicion_over(c, j);
}

static void suspect(struct controller *c, struct job *j, struct rank *r, const Fp8ctl__V1__RankFault *m, const char *text) {
        bool timeout = m->kind == FP8CTL__V1__RANK_FAULT__KIND__TIMEOUT;
        uint64_t ms = timeout ? STUCK_VOTE_MS : (uint64_t)j->spec->recovery.peer_grace_ms, /* a lost peer's own worker has so long to say what happened */
                 deadline = core_now(c) + ms * NSEC_PER_MSEC;

        stuck_note(j, m->rank, m->peer, timeout);
        if (j->rec != REC_SUSPECT) {
                if (recovery_step(c, j, REC_E_SUSPECT) < 0)
                        return;
                incident_open(c, j, text, false, 0);
                j->rec_deadline = deadline;
                event_add(c, &(struct event_of){ .job = j, .node = r->node, .rank = (int32_t)m->rank, .severity = "warning" }, "rank_fault", "%s; waiting at most %.1f s for %s", text,
                          (double)ms / 1e3, timeout ? "what the other ranks say" : "its worker's word");
        } else if (timeout && deadline < j->rec_deadline) {
                j->rec_deadline = deadline;
        }
        if (timeout && !j->gathering)
                diagnose_incident(c, j);
        if (m->peer >= 0 && m->peer < j->world)
                j->ranks[m->peer].suspect = true;
        if (m->kind == FP8CTL__V1__RANK_FAULT__KIND__PEER_LOST && m->peer >= 0 && m->peer < j->world) {
                j->ranks[m->peer].hung_up = true;
                recovery_hung_up(c, j);
                if (j->rec != REC_SUSPECT)
                        return;
        }
        if (stuck_all_spoke(j) && (timeout || stuck_rank(j) >= 0)) {
                uint64_t soon = core_now(c) + DIAGNOSIS_MS * NSEC_PER_MSEC;

                if (!j->gathering || j->gathering->n_wait == 0)
                        rank_suspicion_over(c, j);
                else if (soon < j->rec_deadline)
                        j->rec_deadline = soon;
        }
}

static void roll_back(struct controller *c, struct job *j, const Fp8ctl__V1__RankFault *m, const char *text) {
        const struct checkpoint *k = checkpoint_newest(j);

        j->min_replica_epoch = j->rescue_floor = j->epoch + 1;
        j->skip_from_step = k ? k->step : 0;
        j->skip_to_step = m->step;
        event_add(c, &(struct event_of){ .job = j, .rank = (int32_t)m->rank, .severity = "warning" }, "rollback", "%s; back to step %" PRIu64 ", the data up to step %" PRIu64 " is passed over", text,
                  j->skip_from_step, m->step);
        recovery_again(c, j, text, true);
}

/*
 * Replicas computed with different parameters. The step that found it is not committed; nothing newer than what was made of parameters that agreed is loaded.  Where a majority names a rank its node drains; else all that
 * differ are suspects, and their nodes are tested before they get new ranks.
 */
static void checksums_differ(struct controller *c, struct job *j, const Fp8ctl__V1__RankFault *m, const char *said) {
        bool named = m->peer >= 0 && m->peer < j->world;
        char text[TEXT_MAX_LEN], list[160] = "";
        size_t at = 0;

        for (size_t i = 0; i < m->n_suspects && at < sizeof(list); i++) {
                struct node *n = m->suspects[i] < (uint32_t)j->world ? j->ranks[m->suspects[i]].node : NULL;
                struct node_health *h = n ? health_get(n) : NULL;

                if (!n)
                        continue;
                at += (size_t)snprintf(list + at, sizeof(list) - at, "%s%u on %.40s", at ? ", " : "", m->suspects[i], n->name);
                if (h && !named && !h->untested && n->session)
                        node_test_begin(c, n);
        }
        if (named)
                snprintf(text, sizeof(text), "rank %d on %.100s computed with other parameters than its replicas: %.180s", m->peer, j->ranks[m->peer].node->name, said);
        else
                snprintf(text, sizeof(text), "%.120s; suspects: rank %.150s", said, list);
        event_add(c, &(struct event_of){ .job = j, .node = named ? j->ranks[m->peer].node : NULL, .rank = named ? m->peer : -1, .severity = "error" }, "checksums_differ", "%s; nothing newer than step %" PRIu64 " is loaded",
                  text, m->clean_step);
        j->bad_generation_step = m->clean_step + 1;
        j->bad_generation_epoch = j->epoch;
        for (size_t i = 0; i < j->n_checkpoints; i++)
                j->checkpoints[i].bad = j->checkpoints[i].bad || (j->checkpoints[i].step > m->clean_step && j->checkpoints[i].epoch == j->epoch);
        recovery_again(c, j, text, true);
        if (named && job_placed(j) && health_get(j->ranks[m->peer].node))
                health_take(c, j->ranks[m->peer].node, HEALTH_DRAIN, HOLD_ADMIN, text);
}

/* Another source is tried; a job that has saved is never begun anew because nothing that it saved can be loaded: that may be the fault of a file system that is away. */
static void load_failed(struct controller *c, struct job *j, const char *text) {
        if (j->load.kind == FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA) {
                j->bad_generation_step = j->load.step;
                j->bad_generation_epoch = j->load.generation_epoch;
        } else if (j->load.kind == FP8CTL__V1__LOAD_SOURCE__KIND__CHECKPOINT) {
                bool known = false;

                for (size_t i = 0; i < j->n_checkpoints; i++)
                        if (j->load_path && strcmp(j->checkpoints[i].path, j->load_path) == 0)
                                known = j->checkpoints[i].bad = true;
                if (!known || !restore_has_source(j)) {
                        char why[sizeof(j->reason)];

                        snprintf(why, sizeof(why), "%.380s%s", text, known ? "; no other checkpoint of the job is left to load" : "");
                        job_finish(c, j, JOB_E_FAIL, why);
                        return;
                }
        }
        recovery_again(c, j, text, true);
}

void recovery_fault(struct controller *c, struct job *j, struct rank *r, const Fp8ctl__V1__RankFault *m) {
        char text[TEXT_MAX_LEN], said[200];

        if (m->step <= (uint64_t)j->spec->train.steps && m->step > j->best_step && j->rec != REC_RESTORE)
                j->best_step = m->step;
        core_text(said, sizeof(said), m->text);
        snprintf(text, sizeof(text), "rank %u (incarnation %" PRIu64 ") on %.100s: %.200s", m->rank, r->incarnation, r->node->name, said[0] ? said : "cannot go on");
        switch (m->kind) {
        case FP8CTL__V1__RANK_FAULT__KIND__OVERFLOW_STOP:
                job_finish(c, j, JOB_E_FAIL, text);
                return;
        case FP8CTL__V1__RANK_FAULT__KIND__FATAL:
                recovery_rank_lost(c, j, m->rank, said[0] ? said : "cannot go on", LOST_KILL, true);
                return;
        default:
                break;
        }
        if (j->state == J(STOPPING)) {
                recovery_stop_cut_short(c, j, text);
                return;
        }
        if (j->rec == REC_FENCE)
                return; /* of a round that has not begun: it will park */
        switch (m->kind) {
        case FP8CTL__V1__RANK_FAULT__KIND__OVERFLOW_ROLLBACK:
                if (m->step <= (uint64_t)j->spec->train.steps)
                        roll_back(c, j, m, text);
                return;
        case FP8CTL__V1__RANK_FAULT__KIND__CHECKSUM:
                checksums_differ(c, j, m, said);
                return;
        case FP8CTL__V1__RANK_FAULT__KIND__LOAD_FAILED:
                load_failed(c, j, text);
                return;
        default:
                suspect(c, j, r, m, text);
                return;
        }
}
