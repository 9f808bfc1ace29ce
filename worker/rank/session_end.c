/* SPDX-License-Identifier: Apache-2.0 */
/* What ends an epoch: a fault of our own, a word of a peer's, or the controller's abort. All that stays is the process, the device and the buffers. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "worker/rank/session_private.h"

int session_move(struct session *s, enum rank_event event, struct error *e) {
        int r = table_step(&rank_states, &s->state, event, s, NULL, e);

        if (r < 0)
                return r;
        log_debug("%s -> %s", rank_states.events[event], rank_states.states[s->state]);
        return 0;
}

void session_leave_epoch(struct session *s) {
        if (s->save)
                save_cancel(s->save); /* nobody would commit it */
        if (s->local)
                local_tier_cancel(s->local);
        if (s->snapshot)
                (void)snapshot_wait(s->snapshot, NULL); /* what the next epoch can begin from is asked for soon */
        if (s->replicate)
                replicate_end(s->replicate);
        if (s->trainer)
                trainer_detach(s->trainer);
        s->mesh = comm_mesh_free(s->mesh);
        /* What is queued on the device runs to its end, on garbage perhaps, before anything is loaded over it. */
        if (s->trainer && trainer_settle(s->trainer, NULL) < 0)
                s->device_broken = true;
        if (s->plan)
                fp8ctl__v1__controller_message__free_unpacked(STEAL_PTR(s->plan), NULL);
}

bool session_overtaken(struct session *s) {
        return control_wait(s->control, 0, 0) & (NEWS_ABORT | NEWS_PLAN | NEWS_RELEASE | NEWS_GONE);
}

/* Silent when the controller already ended the epoch. */
int session_fault(struct session *s, Fp8ctl__V1__RankFault__Kind kind, uint64_t step, int peer, const char *text, struct error *e) {
        bool told = session_overtaken(s);

        session_leave_epoch(s);
        if (!told) {
                log_warning("epoch %" PRIu64 ": %s", s->epoch, text);
                report_fault(s->control, s->id, s->epoch, kind, step, peer, text);
        }
        flight_set_phase(s->flight, FLIGHT_PARKED);
        return session_move(s, RANK_EVENT_FAULT, e);
}

/* Replicas computed with different parameters. Every rank comes to the same; the controller takes the first word. */
static int corrupt(struct session *s, uint64_t step, const char *text, struct error *e) {
        bool told = session_overtaken(s);
        uint32_t suspects[64];
        uint64_t clean;
        int odd;
        size_t n = trainer_suspects(s->trainer, suspects, ARRAY_SIZE(suspects), &odd, &clean);

        session_leave_epoch(s);
        if (!told) {
                log_warning("epoch %" PRIu64 ": %s", s->epoch, text);
                report_corrupt(s->control, s->id, s->epoch, step, odd, suspects, n, clean, text);
        }
        flight_set_phase(s->flight, FLIGHT_PARKED);
        return session_move(s, RANK_EVENT_FAULT, e);
}

int session_broken(struct session *s, int r, Fp8ctl__V1__RankFault__Kind negative, struct error *why, struct error *e) {
        uint64_t step = trainer_step_number(s->trainer);
        int peer = s->mesh ? comm_mesh_lost_peer(s->mesh) : -1;
        char text[256];

        switch (r) {
        case COMM_E_PEER_LOST:
                snprintf(text, sizeof(text), "the connection to rank %d is lost", peer);
                return session_fault(s, FP8CTL__V1__RANK_FAULT__KIND__PEER_LOST, step, peer, why->text[0] ? why->text : text, e);
        case COMM_E_TIMEOUT:
                snprintf(text, sizeof(text), "no progress with rank %d for %" PRId64 " ms", peer, s->spec->recovery.collective_timeout_ms);
                return session_fault(s, FP8CTL__V1__RANK_FAULT__KIND__TIMEOUT, step, peer, why->text[0] ? why->text : text, e);
        case COMM_E_ABORTED:
                return session_fault(s, FP8CTL__V1__RANK_FAULT__KIND__ABORTED, step, -1, "the epoch was aborted", e);
        case -EILSEQ:
                return corrupt(s, step, why->text, e);
        case -ECANCELED:
                return session_fault(s, FP8CTL__V1__RANK_FAULT__KIND__LEASE, step, -1, why->text, e);
        default:
                break;
        }
        if (negative == FP8CTL__V1__RANK_FAULT__KIND__LOAD_FAILED)
                return session_fault(s, negative, step, -1, why->text, e);
        report_fault(s->control, s->id, s->epoch, FP8CTL__V1__RANK_FAULT__KIND__FATAL, step, -1, why->text);
        *e = *why;
        return r < 0 ? r : -EIO;
}
