/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Recovery: Detect -> Fence -> Decide -> Replan -> Restore -> Resume, one state machine for every placed job; a first start is the same without survivors.
 *
 *   fence    epoch + 1 is stored; survivors abort and park, lost ranks are started anew (in place, or elsewhere when their node is lost), replica memory is listed
 *   restore  everyone is there: what to load is chosen, RankPlan is out, ranks load and mesh
 *   resume   all run; waiting for the first step that is new
 *   watch    nothing is amiss
 *   suspect  (detect) a rank lost a peer and nobody has said why: its worker has recovery.peer_grace_ms to tell; or waited for one in vain: the others have STUCK_VOTE_MS to tell for whom they wait
 *
 * Rules: an epoch gets at most one RankPlan.  Everything older is over once the new epoch is stored.  A failure before the plan went out joins the round; after it,
 * the next epoch begins.  A node without a stream is waited for until its lease is over, never longer; no deadline runs against a rank whose node cannot be asked.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/text.h"
#include "daemon/core/diagnose.h"
#include "daemon/core/ladder.h"
#include "daemon/core/recovery_private.h"

/* Thresholds that are not the job's (recovery.*). */
#define ZOMBIE_MS 5000u            /* a rank whose death was seen and that is not reaped is killed */
#define LOOK_AGAIN_MS 1000u        /* deadlines that wait for a node's stream are looked at again */

#define J(x) FP8CTL__V1__JOB_STATE__##x

static const char *const state_names[] = { "idle", "fence", "restore", "resume", "watch", "suspect" };
static const char *const event_names[] = { "placed", "suspect", "fault", "gathered", "all_running", "new_step", "ended" };
static const struct table_row rows[] = {
        { REC_IDLE, REC_E_PLACED, REC_FENCE, NULL },
        { REC_FENCE, REC_E_FAULT, REC_FENCE, NULL },
        { REC_FENCE, REC_E_GATHERED, REC_RESTORE, NULL },
        { REC_FENCE, REC_E_ENDED, REC_IDLE, NULL },
        { REC_RESTORE, REC_E_SUSPECT, REC_SUSPECT, NULL },
        { REC_RESTORE, REC_E_FAULT, REC_FENCE, NULL },
        { REC_RESTORE, REC_E_ALL_RUNNING, REC_RESUME, NULL },
        { REC_RESTORE, REC_E_ENDED, REC_IDLE, NULL },
        { REC_RESUME, REC_E_SUSPECT, REC_SUSPECT, NULL },
        { REC_RESUME, REC_E_FAULT, REC_FENCE, NULL },
        { REC_RESUME, REC_E_NEW_STEP, REC_WATCH, NULL },
        { REC_RESUME, REC_E_ENDED, REC_IDLE, NULL },
        { REC_WATCH, REC_E_SUSPECT, REC_SUSPECT, NULL },
        { REC_WATCH, REC_E_FAULT, REC_FENCE, NULL },
        { REC_WATCH, REC_E_ENDED, REC_IDLE, NULL },
        { REC_SUSPECT, REC_E_FAULT, REC_FENCE, NULL },
        { REC_SUSPECT, REC_E_ENDED, REC_IDLE, NULL },
};
const struct table recovery_table = { "recovery", state_names, ARRAY_SIZE(state_names), event_names, N_REC_EVENTS, rows, ARRAY_SIZE(rows) };

int recovery_step(struct controller *c, struct job *j, enum recovery_event ev) {
        struct error e = { 0 };
        int before = j->rec, r = table_step(&recovery_table, &j->rec, (int)ev, j, NULL, &e);

        if (r < 0) {
                core_log(c, 3, "job %" PRIu64 ": %s", j->id, e.text);
                return r;
        }
        if (before != j->rec || ev == REC_E_FAULT) {
                j->rec_since = core_now(c);
                j->dirty = true;
        }
        return 0;
}

void recovery_free(struct job *j) {
        free(j->generations);
        free(j->inventory_wait);
        free(j->load_path);
        j->generations = NULL;
        j->inventory_wait = NULL;
        j->load_path = NULL;
        j->n_generations = j->n_inventory_wait = 0;
        j->gathering = gathering_free(j->gathering);
        rescue_end(j);
        straggler_forget(j);
        memset(j->mesh_key, 0, sizeof(j->mesh_key));
        j->have_mesh_key = false;
}

void recovery_end(struct controller *c, struct job *j) {
        for (int i = 0; i < j->world; i++)
                if (j->ranks[i].start_pending) {
                        node_free_device(c, j->ranks[i].node, j->id, j->ranks[i].incarnation);
                        j->ranks[i].start_pending = false;
                }
        recovery_free(j);
        replicas_free(j);
        standbys_end(c, j);
        if (j->rec != REC_IDLE)
                recovery_step(c, j, REC_E_ENDED);
        j->rec_deadline = 0;
        j->inc = (struct incident){ 0 };
}

/* ------------------------------------------------------------------ rounds */
static void start_rank(struct controller *c, struct job *j, uint32_t i) {
        struct rank *r = &j->ranks[i];
        struct device *d = node_device(r->node, r->device);

        r->incarnation = j->next_incarnation++;
        r->start_epoch = j->epoch;
        r->start_pending = true;
        r->stopped = r->suspect = r->hung_up = false;
        r->heard = true;
        r->pid = 0;
        r->step = 0;
        free(r->endpoint);
        free(r->fingerprint);
        r->endpoint = r->fingerprint = NULL;
        rank_set(c, r, RANK_STARTED);
        if (d) {
                d->job = j->id;
                d->rank = i;
                d->incarnation = r->incarnation;
        }
        j->dirty = true;
}

static void start_lost(struct controller *c, struct job *j) {
        for (int i = 0; i < j->world; i++)
                if (j->ranks[i].state == RANK_LOST || j->ranks[i].state == RANK_NONE) {
                        standby_swap(j, (uint32_t)i);
                        start_rank(c, j, (uint32_t)i);
                        j->inc.replaced += j->inc.open;
                }
        for (size_t i = 0; i < c->n_nodes; i++)
                if (job_on_node(j, c->nodes[i]))
                        order_starts(c, j, c->nodes[i]);
}

static void fence(struct controller *c, struct job *j, const char *why) {
        uint64_t old = j->epoch;

        j->epoch++;
        record_put_epoch(c, j, old);
        save_fence(c, j, why);
        recovery_free(j);
        j->final_retry_at = 0;
        j->final_retries = 0;
        j->inc.survivors = j->inc.replaced = 0;
        j->inc.parked = j->inc.ready = j->inc.planned = j->inc.running = 0;
        for (int i = 0; i < j->world; i++) {
                struct rank *r = &j->ranks[i];

                if (r->state == RANK_LOST || r->state == RANK_NONE)
                        continue;
                r->stopped = r->suspect = r->hung_up = false;
                rank_set(c, r, RANK_PARKING);
                j->inc.survivors++;
        }
        for (size_t i = 0; i < c->n_nodes; i++) {
                struct node *n = c->nodes[i];

                if (n->hung_up || n->state == NODE_LOST || (!job_on_node(j, n) && !replicas_on_node(j, n)))
                        continue;
                if (j->inc.survivors && job_on_node(j, n))
                        order_abort(c, j, n, why);
                if (order_inventory_wanted(j))
                        order_inventory(c, j, n);
        }
        if (!j->leaving)
                start_lost(c, j);
        j->rec_deadline = core_now(c) + LOOK_AGAIN_MS * NSEC_PER_MSEC;
}

void recovery_begin(struct controller *c, struct job *j) {
        if (job_move(c, j, JOB_E_PLACE) < 0)
                return;
        j->started_ms = c->io.wall_ms(c->io.arg);
        j->start_is_new = true;
        j->inc = (struct incident){ 0 };
        for (int i = 0; i < j->world; i++)
                rank_set(c, &j->ranks[i], RANK_NONE);
        recovery_step(c, j, REC_E_PLACED);
        fence(c, j, "a new start");
        snprintf(j->reason, sizeof(j->reason), "starting %d rank%s", j->world, text_s((uint64_t)j->world));
        event_add(c, &(struct event_of){ .job = j, .rank = -1 }, "placed", "%d rank%s (tp %d, pp %d, dp %d) placed, rank 0 on %s; epoch %" PRIu64, j->world, text_s((uint64_t)j->world), j->spec->parallel.tp,
                  j->spec->parallel.pp, j->spec->parallel.dp, j->ranks[0].node->name, j->epoch);
}

void recovery_stop_cut_short(struct controller *c, struct job *j, const char *cause) {
        char why[sizeof(j->reason)];

        uint64_t now = core_now(c);

        snprintf(why, sizeof(why), "%.200s; no last save, because %.250s", j->stop_reason, cause);
        if (j->stop_kind == STOP_REQUEUE && rescue_leave(c, j, j->stop_deadline > now ? (uint32_t)((j->stop_deadline - now) / NSEC_PER_MSEC) : 0, why))
                return;
        job_finish(c, j, j->stop_kind == STOP_REQUEUE ? JOB_E_REQUEUE : JOB_E_CANCEL, why);
}

/* Ranks were marked lost (or a round must begin with all alive): one round for all of them. */
void recovery_act(struct controller *c, struct job *j, const char *cause, const char *why, bool final, bool count, uint64_t incarnation) {
        struct blow b = { .cause = cause, .why = why, .final = final, .count = count, .joined = j->rec == REC_FENCE };

        if (j->state == J(JOB_STATE_UNSPECIFIED) || !job_placed(j))
                return;
        if (j->state == J(STOPPING)) {
                recovery_stop_cut_short(c, j, cause);
                return;
        }
        if (j->leaving) { /* nobody is started any more */
                rescue_look(c, j);
                return;
        }
        for (int i = 0; i < j->world; i++)
                b.lost += j->ranks[i].state == RANK_LOST;
        incident_open(c, j, cause, final, incarnation);
        if (count && !final)
                j->inc.unjudged = incarnation;
        if (ladder_climb(c, j, &b) == LADDER_OVER)
                return;
        if (b.joined) {
                recovery_step(c, j, REC_E_FAULT);
                start_lost(c, j);
                j->rec_deadline = core_now(c) + LOOK_AGAIN_MS * NSEC_PER_MSEC;
                return;
        }
        recovery_round(c, j, cause);
}

void recovery_round(struct controller *c, struct job *j, const char *cause) {
        if (job_move(c, j, JOB_E_FAULT) < 0)
                return;
        if (j->stop_kind == STOP_RESIZE) {
                j->stop_kind = STOP_NONE; /* tried again when it runs */
                j->stop_deadline = 0;
        }
        core_text(j->reason, sizeof(j->reason), cause);
        j->start_is_new = false;
        recovery_step(c, j, REC_E_FAULT);
        fence(c, j, cause);
        event_add(c, &(struct event_of){ .job = j, .rank = -1, .severity = "warning" }, "recovery_started", "%s; epoch %" PRIu64 " fences the old one: %d survivor%s %s, %d rank%s %s anew",
                  cause, j->epoch, j->inc.survivors, text_s((uint64_t)j->inc.survivors), j->inc.survivors == 1 ? "parks" : "park", j->inc.replaced,
                  text_s((uint64_t)j->inc.replaced), j->inc.replaced == 1 ? "starts" : "start");
}

void recovery_mark_lost(struct controller *c, struct job *j, uint32_t i, const char *why, enum lost_how how) {
        struct rank *r = &j->ranks[i];

        event_add(c, &(struct event_of){ .job = j, .node = r->node, .rank = (int32_t)i, .severity = "warning" }, "rank_lost", "rank %u (incarnation %" PRIu64 ") on %s %s", i, r->incarnation,
                  r->node->name, why);
        if (r->start_pending)
                node_free_device(c, r->node, j->id, r->incarnation);
        else if (how == LOST_KILL)
                node_kill_one(c, r->node, j->id, j->epoch, i, r->incarnation, why);
        if (how == LOST_DYING) {
                /* Killing it again now would hide from its worker what it dies of (the out-of-memory killer, say). */
                r->zombie = r->incarnation;
                r->zombie_node = r->node;
                j->zombie_deadline = core_now(c) + ZOMBIE_MS * NSEC_PER_MSEC;
        }
        r->start_pending = false;
        rank_set(c, r, RANK_LOST);
}

void recovery_rank_lost(struct controller *c, struct job *j, uint32_t i, const char *why, enum lost_how how, bool count) {
        struct rank *r = &j->ranks[i];
        char cause[TEXT_MAX_LEN];
        /* Deaths of one blow count once: in a round that is still gathering only a rank started for this very round counts again. */
        bool counts = count && (j->rec != REC_FENCE || r->start_epoch == j->epoch);

        if (r->state == RANK_LOST || r->state == RANK_NONE)
                return;
        snprintf(cause, sizeof(cause), "rank %u (incarnation %" PRIu64 ") on %.100s %.200s", i, r->incarnation, r->node->name, why);
        r->deaths += counts;
        if (counts)
                rollout_failure(c, r->node, cause);
        recovery_mark_lost(c, j, i, why, how);
        recovery_act(c, j, cause, why, how != LOST_DYING, counts, r->incarnation);
}

void recovery_node_lost(struct controller *c, struct job *j, struct node *n) {
        char cause[TEXT_MAX_LEN];
        int lost = 0;

        for (int i = 0; i < j->world; i++)
                if (j->ranks[i].node == n && j->ranks[i].state != RANK_LOST) {
                        j->ranks[i].start_pending = false;
                        rank_set(c, &j->ranks[i], RANK_LOST);
                        lost++;
                }
        inventory_forget(j, n);
        snprintf(cause, sizeof(cause), "node %.100s was lost with %d rank%s", n->name, lost, text_s((uint64_t)lost));
        recovery_act(c, j, cause, cause, true, false, 0);
        if (job_placed(j))
                rescue_node_lost(c, j, n);
        if (job_placed(j))
                recovery_check(c, j);
}

/*
 * A worker's stream and a connection of one of its ranks ended both: what was there has ended, or its node is off, for a network that is cut ends no connection.  When there are free devices
 * the lease is not waited for.  That is safe whatever is still alive there: the new epoch fences it, and its devices stay taken until the node says hello or its lease is over.
 */
void recovery_hung_up(struct controller *c, struct job *j) {
        _cleanup_free_ struct sched_slot *slots = calloc((size_t)j->world, sizeof(*slots));
        struct node *n = NULL;
        char cause[TEXT_MAX_LEN];
        int lost = 0;

        for (int i = 0; i < j->world && !n; i++)
                if (j->ranks[i].hung_up && !j->ranks[i].node->session && j->ranks[i].node->state == NODE_READY && !j->ranks[i].node->hung_up)
                        n = j->ranks[i].node;
        if (!slots || !n || j->rec != REC_SUSPECT || j->state == J(STOPPING))
                return;
        n->hung_up = true;
        if (job_place_at(c, j, j->spec->parallel.dp, true, slots) < 0) {
                n->hung_up = false;
                return;
        }
        for (int i = 0; i < j->world; i++)
                if (j->ranks[i].node == n && j->ranks[i].state != RANK_LOST) {
                        recovery_mark_lost(c, j, (uint32_t)i, "hung up, and its worker too", LOST_REAPED);
                        lost++;
                }
        inventory_forget(j, n);
        replicas_node_lost(c, n);
        snprintf(cause, sizeof(cause), "node %.100s hung up: its worker's stream and connections of its %d rank%s ended together", n->name, lost, text_s((uint64_t)lost));
        recovery_act(c, j, cause, cause, true, false, 0);
}

void recovery_again(struct controller *c, struct job *j, const char *cause, bool count) {
        recovery_act(c, j, cause, cause, true, count, 0);
}

/* ------------------------------------------------------------------ gathering */
static bool gathered(struct controller *c, struct job *j) {
        bool parked = true, all = true;
        uint64_t now = core_now(c);

        for (int i = 0; i < j->world; i++) {
                const struct rank *r = &j->ranks[i];

                if (r->state == RANK_PARKING)
                        parked = false;
                if ((r->state != RANK_READY && r->state != RANK_PARKED) || !r->endpoint || !r->heard)
                        all = false;
        }
        if (parked && !j->inc.parked)
                j->inc.parked = now;
        if (!all)
                return false;
        if (!j->inc.ready)
                j->inc.ready = now;
        return j->n_inventory_wait == 0;
}

static void warn_fingerprints(struct controller *c, struct job *j) {
        for (int i = 1; i < j->world; i++) {
                const char *a = j->ranks[0].fingerprint, *b = j->ranks[i].fingerprint;

                if (a && b && strcmp(a, b) != 0) {
                        event_add(c, &(struct event_of){ .job = j, .node = j->ranks[i].node, .rank = i, .severity = "warning" }, "fingerprint_differs",
                                  "rank %d computes with '%.150s', rank 0 with '%.150s': results need not be bitwise those of before", i, b, a);
                        return;
                }
        }
}

static void go_restore(struct controller *c, struct job *j) {
        if (recovery_step(c, j, REC_E_GATHERED) < 0)
                return;
        j->rescue_floor = j->min_replica_epoch;
        restore_choose(c, j);
        replicas_begin(c, j);
        c->io.random(c->io.arg, j->mesh_key, sizeof(j->mesh_key));
        j->have_mesh_key = true;
        j->inc.planned = core_now(c);
        if (j->inc.best_step < j->best_step)
                j->inc.best_step = j->best_step;
        if (j->replan_step < j->best_step && j->same_cause)
                j->replan_step = j->best_step; /* what survivors report about the past is no step gained since */
        j->inc.load_step = j->load.step;
        for (int i = 0; i < j->world; i++)
                rank_set(c, &j->ranks[i], RANK_LOADED);
        order_plan(c, j, NULL);
        j->rec_deadline = core_now(c) + (uint64_t)j->spec->recovery.start_timeout_ms * NSEC_PER_MSEC;
        warn_fingerprints(c, j);
        if (j->inc.open)
                event_add(c, &(struct event_of){ .job = j, .rank = -1, .ms = ms_since(j->inc.detected, j->inc.planned) }, "plan",
                          "survivors (%d) parked in %.0f ms, all ranks there after %.0f ms; resuming from step %" PRIu64 " %s", j->inc.survivors, ms_since(j->inc.detected, j->inc.parked),
                          ms_since(j->inc.detected, j->inc.ready), j->load.step, j->inc.source);
        else
                event_add(c, &(struct event_of){ .job = j, .rank = -1 }, "plan", "all ranks (%d) are up; %s", j->world, j->inc.source);
        j->dirty = true;
}

static void go_resume(struct controller *c, struct job *j) {
        uint64_t now = core_now(c);
        char loaded[160];

        if (recovery_step(c, j, REC_E_ALL_RUNNING) < 0)
                return;
        j->rec_deadline = 0;
        j->inc.running = now;
        if (j->state != J(STOPPING))
                job_move(c, j, JOB_E_RUN);
        if (!j->first_run_ms)
                j->first_run_ms = c->io.wall_ms(c->io.arg);
        replicas_release_left(c, j);
        snprintf(j->reason, sizeof(j->reason), "all ranks (%d) run", j->world);
        if (j->inc.open) {
                replicas_say_loaded(j, loaded, sizeof(loaded));
                event_add(c, &(struct event_of){ .job = j, .rank = -1, .ms = ms_since(j->inc.planned, now) }, "resumed", "all ranks (%d) run again from step %" PRIu64 " in epoch %" PRIu64 "%s", j->world,
                          j->load.step, j->epoch, loaded);
        } else {
                event_add(c, &(struct event_of){ .job = j, .rank = -1 }, "running", "all ranks (%d) run from step %" PRIu64, j->world, j->load.step);
                recovery_step(c, j, REC_E_NEW_STEP); /* nothing to close */
                c->schedule_wanted = c->schedule_wanted || layout_waits(j) || j->spec->recovery.standby > 0;
        }
}

void recovery_check(struct controller *c, struct job *j) {
        if (j->leaving) {
                rescue_look(c, j);
                return;
        }
        if (j->rec == REC_FENCE && gathered(c, j) && !rescue_look(c, j))
                go_restore(c, j);
        if (j->rec == REC_RESTORE) {
                for (int i = 0; i < j->world; i++)
                        if (j->ranks[i].state != RANK_RUN && j->ranks[i].state != RANK_FINISHED)
                                return;
                go_resume(c, j);
        }
        job_check_done(c, j);
}

void recovery_new_step(struct controller *c, struct job *j) {
        uint64_t now = core_now(c), again;
        double ms;

        if (j->rec != REC_RESUME || j->best_step <= j->inc.best_step)
                return;
        recovery_step(c, j, REC_E_NEW_STEP);
        ms = ms_since(j->inc.detected, now);
        again = j->inc.best_step > j->load.step ? j->inc.best_step - j->load.step : 0;
        j->lost_s += ms / 1e3;
        j->lost_steps += again;
        event_add(c, &(struct event_of){ .job = j, .rank = -1, .ms = ms }, "recovered",
                  "%s; %d survivors parked in %.0f ms; resuming from step %" PRIu64 " %s; %" PRIu64 " step%s done again; %.2f s from detection to the first new step", j->inc.cause,
                  j->inc.survivors, ms_since(j->inc.detected, j->inc.parked), j->load.step, j->inc.source, again, again == 1 ? "" : "s", ms / 1e3);
        j->inc.open = false;
        for (int i = 0; i < j->world; i++)
                j->ranks[i].deaths = 0;
        j->bad_generation_step = 0;
        j->dirty = true;
        c->schedule_wanted = c->schedule_wanted || layout_waits(j) || j->spec->recovery.standby > 0;
}

/* ------------------------------------------------------------------ time */
void recovery_kill_zombies(struct controller *c, struct job *j) {
        j->zombie_deadline = 0;
        for (int i = 0; i < j->world; i++) {
                struct rank *r = &j->ranks[i];

                if (r->zombie && r->zombie_node)
                        node_kill_one(c, r->zombie_node, j->id, j->epoch, (uint32_t)i, r->zombie, "its death was seen, but it was not reaped");
                r->zombie = 0;
        }
}

/* Ranks that can be asked and did not come in time. True: the job is in a new round or over. */
static bool late(struct controller *c, struct job *j, uint64_t now) {
        uint64_t start_ns = (uint64_t)j->spec->recovery.start_timeout_ms * NSEC_PER_MSEC, park_ms = (uint64_t)j->spec->recovery.park_timeout_ms; /* NCCL's abort may hang on its proxy thread */
        char why[160];

        for (int i = 0; i < j->world; i++) {
                struct rank *r = &j->ranks[i];
                uint64_t waited = now > r->since ? now - r->since : 0;

                if (!r->node->session || !r->heard || r->start_pending)
                        continue;
                if (r->state == RANK_PARKING && waited >= park_ms * NSEC_PER_MSEC)
                        snprintf(why, sizeof(why), "did not park within recovery.park_timeout_ms (%" PRIu64 ")", park_ms);
                else if (r->state == RANK_STARTED && waited >= start_ns)
                        snprintf(why, sizeof(why), "was not ready within recovery.start_timeout_ms (%" PRId64 ")", j->spec->recovery.start_timeout_ms);
                else if (r->state == RANK_PARKED && !r->endpoint && waited >= park_ms * NSEC_PER_MSEC)
                        snprintf(why, sizeof(why), "parked without an endpoint");
                else if (r->state == RANK_LOADED && j->rec == REC_RESTORE && waited >= start_ns)
                        snprintf(why, sizeof(why), "had not loaded and met its peers within recovery.start_timeout_ms (%" PRId64 ")", j->spec->recovery.start_timeout_ms);
                else
                        continue;
                recovery_rank_lost(c, j, (uint32_t)i, why, LOST_KILL, r->state != RANK_PARKING);
                return true;
        }
        return false;
}

void recovery_tick(struct controller *c, struct job *j, uint64_t now) {
        if (!j->rec_deadline || now < j->rec_deadline)
                return;
        switch (j->rec) {
        case REC_SUSPECT:
                rank_suspicion_over(c, j);
                return;
        case REC_FENCE:
        case REC_RESTORE:
                j->rec_deadline = now + LOOK_AGAIN_MS * NSEC_PER_MSEC;
                for (int i = 0; i <= j->world; i++)
                        if (!job_placed(j) || !late(c, j, now))
                                break;
                if (j->rec == REC_FENCE && j->n_inventory_wait && now >= j->rec_since + (uint64_t)j->spec->recovery.inventory_timeout_ms * NSEC_PER_MSEC) {
                        event_add(c, &(struct event_of){ .job = j, .node = j->inventory_wait[0], .rank = -1, .severity = "warning" }, "inventory_late",
                                  "%zu node%s sent no list of replica memory within %.1f s; going on without", j->n_inventory_wait, text_s(j->n_inventory_wait), (double)j->spec->recovery.inventory_timeout_ms / 1e3);
                        j->n_inventory_wait = 0;
                }
                if (job_placed(j))
                        recovery_check(c, j);
                return;
        default:
                j->rec_deadline = 0;
        }
}
