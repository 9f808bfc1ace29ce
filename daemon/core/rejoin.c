/* SPDX-License-Identifier: Apache-2.0 */
/* A node came back: its hello tells what of a job lives there, and recovery goes on from that. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/recovery_private.h"

#define J(x) FP8CTL__V1__JOB_STATE__##x

struct hello_result {
        bool again, resend_plan, abort_needed;
        int lost;
        bool count;
        char cause[TEXT_MAX_LEN], why[TEXT_MAX_LEN];
};

static const Fp8ctl__V1__RankStatus *status_of(const Fp8ctl__V1__WorkerHello *m, const struct job *j, uint32_t rank) {
        for (size_t i = 0; i < m->n_ranks; i++) {
                const Fp8ctl__V1__RankStatus *st = m->ranks[i];

                if (st && st->job_id == j->id && st->rank == rank && (st->incarnation == j->ranks[rank].incarnation || PLANTED(STALE_ADOPTION)))
                        return st;
        }
        return NULL;
}

/* In a round that gathers, only a rank that this controller started for it counts: of others the order to start was perhaps lost with the controller that gave it. */
static void hello_gone(struct controller *c, struct job *j, uint32_t i, const Fp8ctl__V1__RankStatus *st, struct hello_result *res) {
        struct rank *r = &j->ranks[i];
        bool of_this_round = j->rec != REC_FENCE || r->start_epoch == j->epoch;

        if (st && st->exited && st->exited->cause && st->exited->cause[0]) {
                core_cause(res->why, sizeof(res->why), st->exited);
                res->count = res->count || of_this_round;
        } else {
                snprintf(res->why, sizeof(res->why), "%s", st ? "died" : r->state == RANK_STARTED ? "was never started there" : "is gone: its worker came back without it");
                res->count = res->count || (of_this_round && r->state != RANK_STARTED);
        }
        snprintf(res->cause, sizeof(res->cause), "rank %u (incarnation %" PRIu64 ") on %.100s %.200s", i, r->incarnation, r->node->name, res->why);
        recovery_mark_lost(c, j, i, res->why, LOST_KILL);
        res->lost++;
}

static void hello_alive(struct controller *c, struct job *j, struct rank *r, const Fp8ctl__V1__RankStatus *st, struct hello_result *res) {
        bool same = st->epoch == j->epoch;

        r->heard = true;
        r->pid = st->pid;
        if (st->step <= (uint64_t)j->spec->train.steps && st->step > r->step)
                r->step = st->step;
        if (st->endpoint && st->endpoint[0] && strlen(st->endpoint) < ENDPOINT_MAX_LEN) {
                free(r->endpoint);
                r->endpoint = core_strdup(st->endpoint, ENDPOINT_MAX_LEN);
        }
        if (j->rec == REC_FENCE) {
                if (same && st->phase == FP8CTL__V1__RANK_PHASE__RANK_PARKED && r->endpoint) {
                        rank_set(c, r, RANK_PARKED);
                } else if (same && st->phase == FP8CTL__V1__RANK_PHASE__RANK_STARTING) {
                        rank_set(c, r, RANK_STARTED);
                } else {
                        rank_set(c, r, RANK_PARKING);
                        res->abort_needed = true;
                }
                return;
        }
        if (!same || st->phase == FP8CTL__V1__RANK_PHASE__RANK_STARTING) {
                res->again = true;
                return;
        }
        switch (st->phase) {
        case FP8CTL__V1__RANK_PHASE__RANK_PARKED:
                if (j->rec == REC_RESTORE && j->have_mesh_key)
                        res->resend_plan = true;
                else
                        res->again = true;
                return;
        case FP8CTL__V1__RANK_PHASE__RANK_LOADING:
                if (j->rec == REC_RESTORE)
                        rank_set(c, r, RANK_LOADED);
                else
                        res->again = true;
                return;
        case FP8CTL__V1__RANK_PHASE__RANK_DONE:
                rank_set(c, r, RANK_FINISHED);
                return;
        default:
                rank_set(c, r, RANK_RUN);
                return;
        }
}

void recovery_hello(struct controller *c, struct job *j, struct node *n, const Fp8ctl__V1__WorkerHello *m) {
        struct hello_result res = { 0 };

        for (int i = 0; i < j->world; i++) {
                struct rank *r = &j->ranks[i];
                const Fp8ctl__V1__RankStatus *st;

                if (r->node != n || r->state == RANK_LOST || r->state == RANK_NONE || r->start_pending)
                        continue;
                st = status_of(m, j, (uint32_t)i);
                if (!st || st->phase == FP8CTL__V1__RANK_PHASE__RANK_EXITED || st->exited)
                        hello_gone(c, j, (uint32_t)i, st, &res);
                else
                        hello_alive(c, j, r, st, &res);
        }
        order_starts(c, j, n);
        if (j->rec == REC_FENCE) {
                if (res.abort_needed)
                        order_abort(c, j, n, "an epoch began while the stream was away");
                generations_forget(j, n);
                if (order_inventory_wanted(j))
                        order_inventory(c, j, n);
        }
        if (res.lost)
                recovery_act(c, j, res.cause, res.why, true, res.count, 0);
        else if (res.again && j->rec != REC_FENCE)
                recovery_again(c, j, "a rank was found parked after a broken stream or a restart of the controller", false);
        else if (res.resend_plan)
                order_plan(c, j, n);
        if (j->state == J(STOPPING) || (j->stop_kind == STOP_RESIZE && j->rec != REC_FENCE && j->rec != REC_RESTORE))
                job_send_stop(c, j, n);
        if (job_placed(j))
                recovery_check(c, j);
}
