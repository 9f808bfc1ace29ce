/* SPDX-License-Identifier: Apache-2.0 */
/* Outside an epoch: parked after a fault, or at the end of the job, until the controller says what comes. */
#include <errno.h>
#include <inttypes.h>

#include "base/log.h"
#include "worker/rank/session_private.h"

/* Asked for while we stand at the end (the attempt before was lost or could not be written). */
static void save_again(struct session *s) {
        uint64_t at = trainer_step_number(s->trainer);
        struct error why = { 0 };
        uint32_t attempt;
        const void *image;
        const char *state;
        size_t len;
        bool late;

        while (control_take_save(s->control, at, true, &attempt, &late)) {
                if (late)
                        save_refuse(s->save, at, s->epoch, attempt, "the step asked for is over");
                else if (snapshot_newest(s->snapshot, &image, &len, &state) != at && snapshot_start(s->snapshot, s->epoch, &why) < 0)
                        save_refuse(s->save, at, s->epoch, attempt, why.text);
                else
                        session_start_save(s, at, attempt);
        }
}

int session_wait_for_orders(struct session *s, struct error *e) {
        unsigned news = control_wait(s->control, NEWS_ABORT | NEWS_PLAN | NEWS_RELEASE | NEWS_GONE | (s->state == RANK_STATE_DONE ? NEWS_SAVE : 0), -1);
        char reason[256] = "";
        uint64_t epoch;
        int r;

        if (news & NEWS_GONE)
                return error_set(e, -EPIPE, "the spawner is gone");
        if (news & NEWS_RELEASE)
                return session_move(s, RANK_EVENT_RELEASE, e);
        epoch = control_take_abort(s->control, reason, sizeof(reason));
        if (epoch) {
                session_leave_epoch(s);
                r = session_move(s, RANK_EVENT_ABORT, e);
                if (r < 0)
                        return r;
                flight_set_phase(s->flight, FLIGHT_PARKED);
                log_info("parked for epoch %" PRIu64 " at step %" PRIu64 ": %s", epoch, trainer_step_number(s->trainer), reason);
                report_parked(s->control, s->id, epoch, trainer_step_number(s->trainer));
        }
        if (news & NEWS_PLAN) {
                Fp8ctl__V1__ControllerMessage *plan = control_take_plan(s->control);

                if (plan) {
                        session_leave_epoch(s);
                        s->plan = plan;
                        return session_move(s, RANK_EVENT_PLAN, e);
                }
        }
        if (s->state == RANK_STATE_DONE && (news & NEWS_SAVE))
                save_again(s);
        return 0;
}
