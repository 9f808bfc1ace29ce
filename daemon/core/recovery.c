/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Recovery: Detect -> Fence -> Decide -> Replan -> Restore -> Resume, one state machine for every placed job; a first start is the same without survivors.
 *
 *   fence    epoch + 1 is stored; survivors abort and park, lost ranks are started anew (in place, or elsewhere when their node is lost), replica memory is listed
 *   restore  everyone is there: what to load is chosen, RankPlan is out, ranks load and mesh
 *   resume   all run; waiting for the first step that is new
 *   watch    nothing is amiss
 *   suspect  (detect) a rank lost a peer and nobody has said why: its worker has PEER_GRACE_MS to tell; or waited for one in vain: the others have STUCK_VOTE_MS to tell for whom they wait
 *
 * Rules: an epoch gets at most one RankPlan.  Everything older is over once the new epoch is stored.  A failure before the plan went out joins the round; after it,
 * the next epoch begins.  A node without a stream is waited for until its lease is over, never longer; no deadline runs against a rank whose node cannot be asked.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/text.h"
#include "daemon/core/core.h"

/* Thresholds. start_timeout_ms, same_cause_limit and max_restarts are the job's. */
#define PARK_TIMEOUT_MS 5000u      /* a survivor that has not parked is killed and replaced: NCCL's abort may hang on its proxy thread */
#define INVENTORY_TIMEOUT_MS 5000u /* then what is known decides */
#define PEER_GRACE_MS 2000u        /* a lost peer's own worker has so long to say what happened */
#define ZOMBIE_MS 5000u            /* a rank whose death was seen and that is not reaped is killed */
#define STUCK_VOTE_MS 500u         /* after the first rank that waited in vain for a peer, the others have so long to say for whom they wait */
#define GENERATIONS_PER_RANK 4u    /* told by one node for one rank, at most */
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
        { REC_WATCH, REC_E_NEW_STEP, REC_WATCH, NULL },
        { REC_WATCH, REC_E_ENDED, REC_IDLE, NULL },
        { REC_SUSPECT, REC_E_SUSPECT, REC_SUSPECT, NULL },
        { REC_SUSPECT, REC_E_FAULT, REC_FENCE, NULL },
        { REC_SUSPECT, REC_E_NEW_STEP, REC_SUSPECT, NULL },
        { REC_SUSPECT, REC_E_ENDED, REC_IDLE, NULL },
};
const struct table recovery_table = { "recovery", state_names, ARRAY_SIZE(state_names), event_names, N_REC_EVENTS, rows, ARRAY_SIZE(rows) };

static int step_to(struct controller *c, struct job *j, enum recovery_event ev) {
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

static double ms_since(uint64_t from, uint64_t to) {
        return from && to > from ? (double)(to - from) / 1e6 : 0;
}

void recovery_free(struct job *j) {
        free(j->generations);
        free(j->inventory_wait);
        free(j->load_path);
        j->generations = NULL;
        j->inventory_wait = NULL;
        j->load_path = NULL;
        j->n_generations = j->n_inventory_wait = 0;
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
        if (j->rec != REC_IDLE)
                step_to(c, j, REC_E_ENDED);
        j->rec_deadline = 0;
        j->inc = (struct incident){ 0 };
}

/* ------------------------------------------------------------------ messages to the nodes of a job */
static void send_starts(struct controller *c, struct job *j, struct node *n) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__StartRanks start = FP8CTL__V1__START_RANKS__INIT;
        _cleanup_free_ Fp8ctl__V1__RankStart *list = calloc((size_t)j->world, sizeof(*list));
        _cleanup_free_ Fp8ctl__V1__RankStart **ptrs = calloc((size_t)j->world, sizeof(*ptrs));

        if (!n->session || !list || !ptrs)
                return;
        for (int i = 0; i < j->world; i++) {
                struct rank *r = &j->ranks[i];
                Fp8ctl__V1__RankStart *s = &list[start.n_ranks];

                if (r->node != n || !r->start_pending)
                        continue;
                fp8ctl__v1__rank_start__init(s);
                s->rank = (uint32_t)i;
                s->incarnation = r->incarnation;
                s->device = r->device;
                ptrs[start.n_ranks++] = s;
                r->start_pending = false;
                r->since = core_now(c);
        }
        if (start.n_ranks == 0)
                return;
        start.job_id = j->id;
        start.epoch = j->epoch;
        start.job_file = j->job_file;
        start.job_name = j->name;
        start.uid = j->uid;
        start.gid = j->gid;
        start.ranks = ptrs;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_START_RANKS;
        m.start_ranks = &start;
        node_send(c, n, &m);
}

static void send_abort(struct controller *c, struct job *j, struct node *n, const char *why) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__AbortEpoch abort_epoch = FP8CTL__V1__ABORT_EPOCH__INIT;

        abort_epoch.job_id = j->id;
        abort_epoch.epoch = j->epoch;
        abort_epoch.reason = (char *)why;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_ABORT_EPOCH;
        m.abort_epoch = &abort_epoch;
        node_send(c, n, &m);
}

static void ask_inventory(struct controller *c, struct job *j, struct node *n) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__InventoryRequest req = FP8CTL__V1__INVENTORY_REQUEST__INIT;
        struct node **list;

        for (size_t i = 0; i < j->n_inventory_wait; i++)
                if (j->inventory_wait[i] == n)
                        goto send;
        list = realloc(j->inventory_wait, (j->n_inventory_wait + 1) * sizeof(*list));
        if (!list)
                return;
        j->inventory_wait = list;
        list[j->n_inventory_wait++] = n;
send:
        req.job_id = j->id;
        req.epoch = j->epoch;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_INVENTORY_REQUEST;
        m.inventory_request = &req;
        node_send(c, n, &m);
}

/* What a node said about its replica memory is void: it is lost, or it says hello again and may have been through a boot. */
static void forget_generations(struct job *j, const struct node *n) {
        size_t kept = 0;

        for (size_t i = 0; i < j->n_generations; i++)
                if (j->generations[i].node != n)
                        j->generations[kept++] = j->generations[i];
        j->n_generations = kept;
}

static void send_plan(struct controller *c, struct job *j, struct node *only) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__RankPlan plan = FP8CTL__V1__RANK_PLAN__INIT;
        _cleanup_free_ Fp8ctl__V1__RankPeer *list = calloc((size_t)j->world, sizeof(*list));
        _cleanup_free_ Fp8ctl__V1__RankPeer **ptrs = calloc((size_t)j->world, sizeof(*ptrs));

        if (!list || !ptrs)
                return; /* the deadline of restore finds the ranks not running and starts over */
        for (int i = 0; i < j->world; i++) {
                fp8ctl__v1__rank_peer__init(&list[i]);
                list[i].rank = (uint32_t)i;
                list[i].incarnation = j->ranks[i].incarnation;
                list[i].endpoint = j->ranks[i].endpoint ? j->ranks[i].endpoint : (char *)"";
                list[i].node = j->ranks[i].node->name;
                ptrs[i] = &list[i];
        }
        plan.job_id = j->id;
        plan.epoch = j->epoch;
        plan.mesh_key.data = j->mesh_key;
        plan.mesh_key.len = sizeof(j->mesh_key);
        plan.tp = (uint32_t)j->spec->parallel.tp;
        plan.pp = (uint32_t)j->spec->parallel.pp;
        plan.dp = (uint32_t)j->spec->parallel.dp;
        plan.peers = ptrs;
        plan.n_peers = (size_t)j->world;
        plan.load = &j->load;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_RANK_PLAN;
        m.rank_plan = &plan;
        for (size_t i = 0; i < c->n_nodes; i++)
                if ((!only || only == c->nodes[i]) && job_on_node(j, c->nodes[i]))
                        node_send(c, c->nodes[i], &m);
}

/* ------------------------------------------------------------------ rounds */
static void start_rank(struct controller *c, struct job *j, uint32_t i) {
        struct rank *r = &j->ranks[i];
        struct device *d = node_device(r->node, r->device);

        r->incarnation = j->next_incarnation++;
        r->start_epoch = j->epoch;
        r->start_pending = true;
        r->stopped = r->suspect = false;
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
                        start_rank(c, j, (uint32_t)i);
                        j->inc.replaced += j->inc.open;
                }
        for (size_t i = 0; i < c->n_nodes; i++)
                if (job_on_node(j, c->nodes[i]))
                        send_starts(c, j, c->nodes[i]);
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
                r->stopped = r->suspect = false;
                rank_set(c, r, RANK_PARKING);
                j->inc.survivors++;
        }
        for (size_t i = 0; i < c->n_nodes; i++) {
                struct node *n = c->nodes[i];

                if (!job_on_node(j, n))
                        continue;
                if (j->inc.survivors)
                        send_abort(c, j, n, why);
                if (!j->start_is_new)
                        ask_inventory(c, j, n);
        }
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
        step_to(c, j, REC_E_PLACED);
        fence(c, j, "a new start");
        snprintf(j->reason, sizeof(j->reason), "starting %d rank%s", j->world, text_s((uint64_t)j->world));
        event_add(c, &(struct event_of){ .job = j, .rank = -1 }, "placed", "%d rank%s (tp %d, pp %d, dp %d) placed, rank 0 on %s; epoch %" PRIu64, j->world, text_s((uint64_t)j->world), j->spec->parallel.tp,
                  j->spec->parallel.pp, j->spec->parallel.dp, j->ranks[0].node->name, j->epoch);
}

static void open_incident(struct controller *c, struct job *j, const char *cause, bool final, uint64_t incarnation) {
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
static bool count_failure(struct controller *c, struct job *j, const char *why, bool final) {
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

static bool restarts_used_up(struct controller *c, struct job *j) {
        char why[sizeof(j->reason)];

        j->restarts++;
        if (j->spec->recovery.max_restarts < 0 || j->restarts <= (uint64_t)j->spec->recovery.max_restarts)
                return false;
        j->restarts--;
        snprintf(why, sizeof(why), "recovery.max_restarts (%" PRId64 ") used up; %.300s", j->spec->recovery.max_restarts, j->inc.cause);
        job_finish(c, j, JOB_E_FAIL, why);
        return true;
}

static void stop_cut_short(struct controller *c, struct job *j, const char *cause) {
        char why[sizeof(j->reason)];

        snprintf(why, sizeof(why), "%.200s; no last save, because %.250s", j->stop_reason, cause);
        job_finish(c, j, j->stop_kind == STOP_REQUEUE ? JOB_E_REQUEUE : JOB_E_CANCEL, why);
}

/* Ranks were marked lost (or a round must begin with all alive): one round for all of them. */
static void act(struct controller *c, struct job *j, const char *cause, const char *why, bool final, bool count, uint64_t incarnation) {
        bool joined = j->rec == REC_FENCE, moved = false;
        int lost = 0, r;

        if (j->state == J(JOB_STATE_UNSPECIFIED) || !job_placed(j))
                return;
        if (j->state == J(STOPPING)) {
                stop_cut_short(c, j, cause);
                return;
        }
        for (int i = 0; i < j->world; i++) {
                lost += j->ranks[i].state == RANK_LOST;
                moved = moved || (j->ranks[i].state == RANK_LOST && (j->ranks[i].node->state == NODE_LOST || j->ranks[i].node->state == NODE_LEAVING));
        }
        open_incident(c, j, cause, final, incarnation);
        if (count && count_failure(c, j, why, final))
                return;
        /* With nobody lost and nothing to blame it is the controller that was away, and not the job's budget that pays. */
        if (!joined && (lost > 0 || count) && restarts_used_up(c, j))
                return;
        if (moved) {
                r = job_replan(c, j);
                if (r < 0) {
                        char text[sizeof(j->reason)];

                        snprintf(text, sizeof(text), "%.300s; no free devices to replace %d rank%s", cause, lost, text_s((uint64_t)lost));
                        job_finish(c, j, JOB_E_REQUEUE, text);
                        return;
                }
        }
        if (joined) {
                step_to(c, j, REC_E_FAULT);
                start_lost(c, j);
                j->rec_deadline = core_now(c) + LOOK_AGAIN_MS * NSEC_PER_MSEC;
                return;
        }
        if (job_move(c, j, JOB_E_FAULT) < 0)
                return;
        core_text(j->reason, sizeof(j->reason), cause);
        j->start_is_new = false;
        step_to(c, j, REC_E_FAULT);
        fence(c, j, cause);
        event_add(c, &(struct event_of){ .job = j, .rank = -1, .severity = "warning" }, "recovery_started", "%s; epoch %" PRIu64 " fences the old one: %d survivor%s %s, %d rank%s %s anew",
                  cause, j->epoch, j->inc.survivors, text_s((uint64_t)j->inc.survivors), j->inc.survivors == 1 ? "parks" : "park", j->inc.replaced,
                  text_s((uint64_t)j->inc.replaced), j->inc.replaced == 1 ? "starts" : "start");
}

static void mark_lost(struct controller *c, struct job *j, uint32_t i, const char *why, enum lost_how how) {
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
        mark_lost(c, j, i, why, how);
        act(c, j, cause, why, how != LOST_DYING, counts, r->incarnation);
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
        for (size_t i = 0; i < j->n_inventory_wait; i++)
                if (j->inventory_wait[i] == n)
                        j->inventory_wait[i--] = j->inventory_wait[--j->n_inventory_wait];
        forget_generations(j, n);
        snprintf(cause, sizeof(cause), "node %.100s was lost with %d rank%s", n->name, lost, text_s((uint64_t)lost));
        act(c, j, cause, cause, true, false, 0);
        if (job_placed(j))
                recovery_check(c, j);
}

void recovery_again(struct controller *c, struct job *j, const char *cause, bool count) {
        act(c, j, cause, cause, true, count, 0);
}

void recovery_refine_cause(struct controller *c, struct job *j, uint64_t incarnation, const char *why) {
        const char *was;

        if (!j->inc.open || j->inc.cause_final || j->inc.cause_incarnation != incarnation)
                return;
        was = strrchr(j->inc.cause, ' ') ? strstr(j->inc.cause, " died") : NULL;
        j->inc.cause_final = true;
        if (was) {
                char text[TEXT_MAX_LEN];

                snprintf(text, sizeof(text), "%.*s %.200s", (int)(was - j->inc.cause), j->inc.cause, why);
                core_text(j->inc.cause, sizeof(j->inc.cause), text);
        }
        if (j->same_cause > 1 && strcmp(j->last_cause, why) != 0)
                j->same_cause = 1;
        core_text(j->last_cause, sizeof(j->last_cause), why);
        j->dirty = true;
        limit_reached(c, j);
}

/* ------------------------------------------------------------------ what ranks say about others */
/* One that holds the others up does not park either: it is killed now. Else all begin a new round. */
static void suspicion_over(struct controller *c, struct job *j) {
        char text[TEXT_MAX_LEN];
        int stuck = stuck_rank(j);

        core_text(text, sizeof(text), j->inc.cause);
        j->rec_deadline = 0;
        if (stuck >= 0)
                recovery_rank_lost(c, j, (uint32_t)stuck, "is stuck: the others waited for it in vain", true, true);
        else
                recovery_again(c, j, text, true);
}

static void suspect(struct controller *c, struct job *j, struct rank *r, const Fp8ctl__V1__RankFault *m, const char *text) {
        bool timeout = m->kind == FP8CTL__V1__RANK_FAULT__KIND__TIMEOUT;
        uint64_t ms = timeout ? STUCK_VOTE_MS : PEER_GRACE_MS, deadline = core_now(c) + ms * NSEC_PER_MSEC;

        stuck_note(j, m->rank, m->peer, timeout);
        if (j->rec != REC_SUSPECT) {
                if (step_to(c, j, REC_E_SUSPECT) < 0)
                        return;
                open_incident(c, j, text, false, 0);
                j->rec_deadline = deadline;
                event_add(c, &(struct event_of){ .job = j, .node = r->node, .rank = (int32_t)m->rank, .severity = "warning" }, "rank_fault", "%s; waiting at most %.1f s for %s", text,
                          (double)ms / 1e3, timeout ? "what the other ranks say" : "its worker's word");
        } else if (timeout && deadline < j->rec_deadline) {
                j->rec_deadline = deadline;
        }
        if (m->peer >= 0 && m->peer < j->world)
                j->ranks[m->peer].suspect = true;
        if (stuck_all_spoke(j) && (timeout || stuck_rank(j) >= 0))
                suspicion_over(c, j);
}

static void roll_back(struct controller *c, struct job *j, const Fp8ctl__V1__RankFault *m, const char *text) {
        const struct checkpoint *k = checkpoint_newest(j);

        j->min_replica_epoch = j->epoch + 1;
        j->skip_from_step = k ? k->step : 0;
        j->skip_to_step = m->step;
        event_add(c, &(struct event_of){ .job = j, .rank = (int32_t)m->rank, .severity = "warning" }, "rollback", "%s; back to step %" PRIu64 ", the data up to step %" PRIu64 " is passed over", text,
                  j->skip_from_step, m->step);
        recovery_again(c, j, text, true);
}

static void load_failed(struct controller *c, struct job *j, const char *text) {
        if (j->load.kind == FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA) {
                j->bad_generation_step = j->load.step;
        } else if (j->load.kind == FP8CTL__V1__LOAD_SOURCE__KIND__CHECKPOINT) {
                bool known = false;

                for (size_t i = 0; i < j->n_checkpoints; i++)
                        if (j->load_path && strcmp(j->checkpoints[i].path, j->load_path) == 0)
                                known = j->checkpoints[i].bad = true;
                if (!known) {
                        job_finish(c, j, JOB_E_FAIL, text);
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
                stop_cut_short(c, j, text);
                return;
        }
        if (j->rec == REC_FENCE)
                return; /* of a round that has not begun: it will park */
        switch (m->kind) {
        case FP8CTL__V1__RANK_FAULT__KIND__OVERFLOW_ROLLBACK:
                if (m->step <= (uint64_t)j->spec->train.steps)
                        roll_back(c, j, m, text);
                return;
        case FP8CTL__V1__RANK_FAULT__KIND__LOAD_FAILED:
                load_failed(c, j, text);
                return;
        default:
                suspect(c, j, r, m, text);
                return;
        }
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
        if (step_to(c, j, REC_E_GATHERED) < 0)
                return;
        restore_choose(c, j);
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
        send_plan(c, j, NULL);
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

        if (step_to(c, j, REC_E_ALL_RUNNING) < 0)
                return;
        j->rec_deadline = 0;
        j->inc.running = now;
        if (j->state != J(STOPPING))
                job_move(c, j, JOB_E_RUN);
        if (!j->first_run_ms)
                j->first_run_ms = c->io.wall_ms(c->io.arg);
        snprintf(j->reason, sizeof(j->reason), "all ranks (%d) run", j->world);
        if (j->inc.open) {
                event_add(c, &(struct event_of){ .job = j, .rank = -1, .ms = ms_since(j->inc.planned, now) }, "resumed", "all ranks (%d) run again from step %" PRIu64 " in epoch %" PRIu64, j->world,
                          j->load.step, j->epoch);
        } else {
                event_add(c, &(struct event_of){ .job = j, .rank = -1 }, "running", "all ranks (%d) run from step %" PRIu64, j->world, j->load.step);
                step_to(c, j, REC_E_NEW_STEP); /* nothing to close */
        }
}

void recovery_check(struct controller *c, struct job *j) {
        if (j->rec == REC_FENCE && gathered(c, j))
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
        step_to(c, j, REC_E_NEW_STEP);
        ms = ms_since(j->inc.detected, now);
        again = j->inc.best_step > j->load.step ? j->inc.best_step - j->load.step : 0;
        j->lost_s += ms / 1e3;
        j->lost_steps += again;
        event_add(c, &(struct event_of){ .job = j, .rank = -1, .ms = ms }, "recovered",
                  "%s; %d survivors parked in %.0f ms; resuming from step %" PRIu64 " %s; %" PRIu64 " step%s done again; %.2f s from detection to the first new step", j->inc.cause,
                  j->inc.survivors, ms_since(j->inc.detected, j->inc.parked), j->load.step, j->inc.source, again, again == 1 ? "" : "s", ms / 1e3);
        j->inc.open = false;
        j->dirty = true;
}

void recovery_inventory(struct controller *c, struct job *j, struct node *n, const Fp8ctl__V1__Inventory *m) {
        struct generation *list;
        bool waited = false;

        if (j->rec != REC_FENCE || m->epoch != j->epoch) {
                core_drop(c, DROP_EPOCH, "inventory");
                return;
        }
        for (size_t i = 0; i < j->n_inventory_wait && !waited; i++)
                if (j->inventory_wait[i] == n) {
                        j->inventory_wait[i] = j->inventory_wait[--j->n_inventory_wait];
                        waited = true;
                }
        if (!waited)
                return; /* a second answer */
        if (m->n_generations > (size_t)j->world * GENERATIONS_PER_RANK) {
                core_drop(c, DROP_MALFORMED, "inventory");
                recovery_check(c, j);
                return;
        }
        list = realloc(j->generations, (j->n_generations + m->n_generations + 1) * sizeof(*list));
        if (list) {
                j->generations = list;
                for (size_t i = 0; i < m->n_generations; i++) {
                        const Fp8ctl__V1__Generation *g = m->generations[i];

                        if (!g || g->rank >= (uint32_t)j->world || g->shard_count != (uint32_t)j->world || g->step > (uint64_t)j->spec->train.steps || g->epoch >= j->epoch) {
                                core_drop(c, DROP_MALFORMED, "generation");
                                continue;
                        }
                        list[j->n_generations] = (struct generation){ .rank = g->rank, .node = n, .step = g->step, .epoch = g->epoch };
                        core_text(list[j->n_generations].layout, sizeof(list[0].layout), g->layout);
                        j->n_generations++;
                }
        }
        recovery_check(c, j);
}

/* ------------------------------------------------------------------ a node came back */
struct hello_result {
        bool again, resend_plan, abort_needed;
        int lost;
        bool count;
        char cause[TEXT_MAX_LEN], why[TEXT_MAX_LEN];
};

static const Fp8ctl__V1__RankStatus *status_of(const Fp8ctl__V1__WorkerHello *m, const struct job *j, uint32_t rank) {
        for (size_t i = 0; i < m->n_ranks; i++) {
                const Fp8ctl__V1__RankStatus *st = m->ranks[i];

                if (st && st->job_id == j->id && st->rank == rank && st->incarnation == j->ranks[rank].incarnation)
                        return st;
        }
        return NULL;
}

static void hello_gone(struct controller *c, struct job *j, uint32_t i, const Fp8ctl__V1__RankStatus *st, struct hello_result *res) {
        struct rank *r = &j->ranks[i];

        if (st && st->exited && st->exited->cause && st->exited->cause[0]) {
                core_cause(res->why, sizeof(res->why), st->exited);
                res->count = res->count || j->rec != REC_FENCE || r->start_epoch == j->epoch;
        } else {
                snprintf(res->why, sizeof(res->why), "%s", st ? "died" : r->state == RANK_STARTED ? "was never started there" : "is gone: its worker came back without it");
                res->count = res->count || r->state != RANK_STARTED;
        }
        snprintf(res->cause, sizeof(res->cause), "rank %u (incarnation %" PRIu64 ") on %.100s %.200s", i, r->incarnation, r->node->name, res->why);
        mark_lost(c, j, i, res->why, LOST_KILL);
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
        send_starts(c, j, n);
        if (j->rec == REC_FENCE) {
                if (res.abort_needed)
                        send_abort(c, j, n, "an epoch began while the stream was away");
                forget_generations(j, n);
                if (!j->start_is_new)
                        ask_inventory(c, j, n);
        }
        if (res.lost)
                act(c, j, res.cause, res.why, true, res.count, 0);
        else if (res.again && j->rec != REC_FENCE)
                recovery_again(c, j, "a rank was found parked after a broken stream or a restart of the controller", false);
        else if (res.resend_plan)
                send_plan(c, j, n);
        if (j->state == J(STOPPING))
                job_send_stop(c, j, n);
        if (job_placed(j))
                recovery_check(c, j);
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
        uint64_t start_ns = (uint64_t)j->spec->recovery.start_timeout_ms * NSEC_PER_MSEC;
        char why[160];

        for (int i = 0; i < j->world; i++) {
                struct rank *r = &j->ranks[i];
                uint64_t waited = now > r->since ? now - r->since : 0;

                if (!r->node->session || !r->heard || r->start_pending)
                        continue;
                if (r->state == RANK_PARKING && waited >= PARK_TIMEOUT_MS * NSEC_PER_MSEC)
                        snprintf(why, sizeof(why), "did not park within %u ms", PARK_TIMEOUT_MS);
                else if (r->state == RANK_STARTED && waited >= start_ns)
                        snprintf(why, sizeof(why), "was not ready within recovery.start_timeout_ms (%" PRId64 ")", j->spec->recovery.start_timeout_ms);
                else if (r->state == RANK_PARKED && !r->endpoint && waited >= PARK_TIMEOUT_MS * NSEC_PER_MSEC)
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
                suspicion_over(c, j);
                return;
        case REC_FENCE:
        case REC_RESTORE:
                j->rec_deadline = now + LOOK_AGAIN_MS * NSEC_PER_MSEC;
                for (int i = 0; i <= j->world; i++)
                        if (!job_placed(j) || !late(c, j, now))
                                break;
                if (j->rec == REC_FENCE && j->n_inventory_wait && now >= j->rec_since + INVENTORY_TIMEOUT_MS * NSEC_PER_MSEC) {
                        event_add(c, &(struct event_of){ .job = j, .node = j->inventory_wait[0], .rank = -1, .severity = "warning" }, "inventory_late",
                                  "%zu node%s sent no list of replica memory within %.1f s; going on without", j->n_inventory_wait, text_s(j->n_inventory_wait), INVENTORY_TIMEOUT_MS / 1e3);
                        j->n_inventory_wait = 0;
                }
                if (job_placed(j))
                        recovery_check(c, j);
                return;
        default:
                j->rec_deadline = 0;
        }
}
