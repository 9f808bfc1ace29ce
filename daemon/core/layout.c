/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many replicas a job has, and where its ranks are.  When devices are lost and none are free it goes on with fewer replicas (recovery.min_dp), when they come back it takes them again;
 * a client asks for another number with ScaleJob.  The global batch stays: each replica makes more micro-batches or fewer, and which samples a step consists of does not depend on it.
 *
 * What is not forced happens at the end of a step: all ranks stop there and save (STOP_RESIZE), then the next epoch has the other layout and loads that checkpoint, so nothing is done again.
 * Generations in replica memory are of one layout and barred when it changes (min_replica_epoch): after a forced change the newest of them is saved first, by the nodes that have it (rescue.c), and
 * that checkpoint is loaded.  Ranks that stay keep process and device; they make everything that depends on the layout anew when the plan says so.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/text.h"
#include "daemon/core/recovery_private.h"
#include "daemon/core/request_private.h"

/* Threshold: beyond the grace, for the step under way and the manifest. */
#define RESIZE_MARGIN_MS 10000u

#define J(x) FP8CTL__V1__JOB_STATE__##x

const char *layout_job_file(const struct job *j) {
        return j->live_file ? j->live_file : j->job_file;
}

static bool divides(const struct job *j, int dp) {
        return dp >= 1 && (int64_t)j->spec->parallel.tp * j->spec->parallel.pp * dp <= JOB_MAX_RANKS && j->spec->train.global_batch % (j->spec->train.micro_batch * dp) == 0;
}

static int make_room(struct job *j, int world) {
        struct rank *ranks;

        if (world <= j->rank_room)
                return 0;
        ranks = realloc(j->ranks, (size_t)world * sizeof(*ranks));
        if (!ranks)
                return -ENOMEM;
        memset(ranks + j->rank_room, 0, (size_t)(world - j->rank_room) * sizeof(*ranks));
        j->ranks = ranks;
        j->rank_room = world;
        return 0;
}

int layout_set(struct controller *c, struct job *j, int dp) {
        int world = j->spec->parallel.tp * j->spec->parallel.pp * dp, was = j->spec->parallel.dp, r;
        struct error e = { 0 };
        char *json = NULL;

        if (!divides(j, dp))
                return -EINVAL;
        r = make_room(j, world);
        if (r == 0)
                r = job_spec_set_dp(j->spec, dp);
        if (r == 0)
                r = job_spec_to_json(j->spec, &json, &e);
        if (r < 0) {
                core_log(c, 3, "job %" PRIu64 ": dp %d: %s", j->id, dp, e.text[0] ? e.text : strerror(-r));
                (void)job_spec_set_dp(j->spec, was);
                return r;
        }
        free(j->live_file);
        j->live_file = json;
        for (int i = world; i < j->world; i++) {
                free(j->ranks[i].endpoint);
                free(j->ranks[i].fingerprint);
                j->ranks[i] = (struct rank){ 0 };
        }
        j->world = world;
        j->bytes_per_rank = job_spec_bytes_per_rank(j->spec, &j->snapshot_bytes);
        replicas_free(j);
        j->dirty = true;
        return 0;
}

/* A process that is not wanted (there) any more. Its device stays taken until it is reaped, or given to a rank of the same job that starts after it. */
static void dismiss(struct controller *c, struct job *j, uint32_t i, const char *why) {
        struct rank *r = &j->ranks[i];

        if (!r->node || r->state == RANK_LOST || r->state == RANK_NONE)
                return;
        if (r->start_pending)
                node_free_device(c, r->node, j->id, r->incarnation);
        else
                node_kill_one(c, r->node, j->id, j->epoch, i, r->incarnation, why);
        r->start_pending = false;
        rank_set(c, r, RANK_LOST);
}

/* keep: what replica memory has is wanted yet, wherever it lies. */
static int apply(struct controller *c, struct job *j, int dp, const struct sched_slot *slots, bool keep) {
        int was = j->world, was_dp = j->spec->parallel.dp, world = was / was_dp * dp, r;
        _cleanup_free_ bool *on = calloc(c->n_nodes + 1, sizeof(*on));

        r = on ? make_room(j, world) : -ENOMEM;
        if (r < 0)
                return r;
        for (size_t i = 0; i < c->n_nodes; i++)
                on[i] = job_on_node(j, c->nodes[i]);
        if (dp != was_dp)
                save_fence(c, j, "the number of replicas changes");
        for (int i = 0; i < was; i++) {
                const struct rank *k = &j->ranks[i];

                if (i >= world || k->node != c->nodes[slots[i].node] || k->device != slots[i].device)
                        dismiss(c, j, (uint32_t)i, i >= world ? "its replica is given up" : "it is moved to another device");
        }
        if (dp != was_dp) {
                r = layout_set(c, j, dp);
                if (r < 0)
                        return r;
                rescue_end(j);
                if (!keep)
                        j->rescue_floor = j->epoch + 1;
                if (!PLANTED(OLD_LAYOUT))
                        j->min_replica_epoch = j->rec == REC_FENCE ? j->epoch : j->epoch + 1;
        }
        for (int i = 0; i < world; i++) {
                struct rank *k = &j->ranks[i];

                if (k->node != c->nodes[slots[i].node] || k->device != slots[i].device)
                        k->deaths = 0;
                k->node = c->nodes[slots[i].node];
                k->device = slots[i].device;
        }
        if (j->rec == REC_FENCE) {
                j->inc.survivors = 0;
                for (int i = 0; i < world; i++)
                        j->inc.survivors += j->ranks[i].state == RANK_PARKING || j->ranks[i].state == RANK_PARKED;
        }
        for (size_t i = 0; i < c->n_nodes; i++) {
                if (!on[i] || job_on_node(j, c->nodes[i]))
                        continue;
                if ((keep || dp == was_dp) && c->nodes[i]->state != NODE_LOST) {
                        replicas_keep(j, c->nodes[i]);
                } else {
                        inventory_forget(j, c->nodes[i]);
                        job_release_node(c, j, c->nodes[i]);
                }
        }
        j->dirty = true;
        return 0;
}

static int place_and_apply(struct controller *c, struct job *j, int dp, bool evacuate, bool keep) {
        _cleanup_free_ struct sched_slot *slots = calloc((size_t)(j->world / j->spec->parallel.dp) * (size_t)dp, sizeof(*slots));
        int r = slots ? job_place_at(c, j, dp, evacuate, slots) : -ENOMEM;

        return r < 0 ? r : apply(c, j, dp, slots, keep);
}

int layout_replan(struct controller *c, struct job *j) {
        int r = place_and_apply(c, j, j->spec->parallel.dp, true, false);

        return r < 0 ? place_and_apply(c, j, j->spec->parallel.dp, false, false) : r;
}

int layout_shrink(struct controller *c, struct job *j) {
        int was = j->spec->parallel.dp, r = -ENOSPC;
        int64_t micro = j->spec->train.micro_batch, batch = j->spec->train.global_batch;

        if (j->spec->recovery.min_dp < 1)
                return r;
        for (int dp = was - 1; dp >= j->spec->recovery.min_dp; dp--) {
                r = place_and_apply(c, j, dp, false, rescue_may(j));
                if (r < 0)
                        continue;
                event_add(c, &(struct event_of){ .job = j, .rank = -1, .severity = "warning" }, "shrunk",
                          "no free devices for the lost ranks: %d replica%s instead of %d, with %" PRId64 " micro-batches each instead of %" PRId64
                          "; the batch is the same, its sums are rounded in another order", dp, text_s((uint64_t)dp), was, batch / (micro * dp), batch / (micro * was));
                return 0;
        }
        return r;
}

/* ------------------------------------------------------------------ at the end of a step */
void layout_resize(struct controller *c, struct job *j, int dp, const char *reason) {
        uint64_t ms = (uint64_t)j->spec->recovery.grace_ms + RESIZE_MARGIN_MS;

        j->stop_kind = STOP_RESIZE;
        j->resize_dp = dp;
        core_text(j->stop_reason, sizeof(j->stop_reason), reason);
        j->stop_deadline = core_now(c) + ms * NSEC_PER_MSEC;
        j->dirty = true;
        event_add(c, &(struct event_of){ .job = j, .rank = -1 }, "resizing", "%s: all ranks save at the end of a step and go on with dp %d", j->stop_reason, dp);
        job_send_stop(c, j, NULL);
}

void layout_stop_late(struct controller *c, struct job *j) {
        char why[sizeof(j->stop_reason) + 64];

        snprintf(why, sizeof(why), "%s: the ranks did not stop and save in time", j->stop_reason);
        j->stop_kind = STOP_NONE;
        recovery_again(c, j, why, false);
}

void layout_stopped(struct controller *c, struct job *j, uint64_t step, bool saved) {
        int was = j->spec->parallel.dp, dp = j->resize_dp, r = -ENOSPC;
        char why[sizeof(j->stop_reason) + 96];

        j->stop_kind = STOP_NONE;
        j->stop_deadline = 0;
        if (!saved) {
                snprintf(why, sizeof(why), "%s: step %" PRIu64 " could not be saved, nothing is changed", j->stop_reason, step);
                recovery_again(c, j, why, false);
                return;
        }
        /* Free devices may be fewer by now. */
        for (; r < 0 && (was < j->resize_dp ? dp >= was : dp == j->resize_dp); dp -= r < 0)
                r = place_and_apply(c, j, dp, true, false);
        if (r < 0) {
                snprintf(why, sizeof(why), "%s: the devices are not free any more, nothing is changed", j->stop_reason);
                recovery_again(c, j, why, false);
                return;
        }
        if (dp == was)
                snprintf(why, sizeof(why), "%s: ranks move at the end of step %" PRIu64, j->stop_reason, step);
        else
                snprintf(why, sizeof(why), "%s: dp %d becomes %d at the end of step %" PRIu64, j->stop_reason, was, dp, step);
        incident_open(c, j, why, true, 0);
        event_add(c, &(struct event_of){ .job = j, .rank = -1 }, "resized", "%s", why);
        recovery_round(c, j, why);
}

static int largest(struct controller *c, const struct job *j, int from, int to) {
        _cleanup_free_ struct sched_slot *slots = calloc((size_t)(j->world / j->spec->parallel.dp) * (size_t)from, sizeof(*slots));

        for (int dp = from; slots && dp >= to; dp--)
                if (job_place_at(c, j, dp, true, slots) == 0)
                        return dp;
        return 0;
}

static bool anybody_waits(const struct controller *c) {
        for (size_t i = 0; i < c->n_jobs; i++)
                if (c->jobs[i]->state == J(PENDING))
                        return true;
        return false;
}

static const struct node *on_draining(const struct job *j) {
        for (int i = 0; i < j->world; i++)
                if (j->ranks[i].node && j->ranks[i].node->duty == NODE_DRAINING)
                        return j->ranks[i].node;
        return NULL;
}

/* Off the draining nodes: elsewhere, or with fewer replicas. False: neither can be now. */
static bool evacuate(struct controller *c, struct job *j, const struct node *n) {
        int dp = j->spec->parallel.dp, least = j->spec->recovery.min_dp > 0 ? (int)j->spec->recovery.min_dp : dp, to = largest(c, j, dp, least);
        char why[TEXT_MAX_LEN];

        if (to) {
                j->evacuate_said = false;
                snprintf(why, sizeof(why), "%.100s is drained", n->name);
                layout_resize(c, j, to, why);
                return true;
        }
        if (!j->evacuate_said)
                event_add(c, &(struct event_of){ .job = j, .node = n, .rank = -1, .severity = "warning" }, "drain_waits", "%.100s is drained, and there are no free devices for the job's ranks on it: they stay until there are",
                          n->name);
        j->evacuate_said = true;
        return false;
}

static void look_at(struct controller *c, struct job *j) {
        int dp = j->spec->parallel.dp, to;
        uint64_t delay = (uint64_t)j->spec->recovery.grow_delay_ms * NSEC_PER_MSEC;

        if (j->dp_wanted < dp) {
                layout_resize(c, j, j->dp_wanted, "fewer replicas are wanted");
                return;
        }
        if (!j->scale_asked && core_now(c) < j->rec_since + delay) {
                j->look_at = j->rec_since + delay;
                return;
        }
        j->scale_asked = false;
        to = anybody_waits(c) ? 0 : largest(c, j, j->dp_wanted, dp + 1);
        if (to)
                layout_resize(c, j, to, "devices are free");
}

bool layout_waits(const struct job *j) {
        return j->dp_wanted != j->spec->parallel.dp || on_draining(j);
}

void layout_look(struct controller *c) {
        for (size_t i = 0; i < c->n_jobs; i++) {
                struct job *j = c->jobs[i];
                const struct node *from;

                if (j->state != J(RUNNING) || j->rec != REC_WATCH || j->stop_kind != STOP_NONE || j->step >= (uint64_t)j->spec->train.steps)
                        continue;
                from = on_draining(j);
                if (from && evacuate(c, j, from))
                        continue;
                if (j->dp_wanted != j->spec->parallel.dp)
                        look_at(c, j);
        }
}

/* ------------------------------------------------------------------ asked for */
void layout_request_scale(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const Fp8ctl__V1__ScaleJobRequest *q = (const Fp8ctl__V1__ScaleJobRequest *)m;
        struct job *j = request_job(c, request, q->id, who, true);
        int dp = q->dp <= JOB_MAX_RANKS ? (int)q->dp : 0;

        if (!j)
                return;
        if (job_ended(j) || j->state == J(STOPPING)) {
                request_refuse(c, request, ST_PRECONDITION, "job %" PRIu64 " is %s: it gets no other number of replicas any more", j->id, job_state_name(j->state));
                return;
        }
        if (!divides(j, dp)) {
                request_refuse(c, request, ST_INVALID, "dp: found %u, allowed: what divides train.global_batch / train.micro_batch (%" PRId64 ") and is at most %d", q->dp,
                               j->spec->train.global_batch / j->spec->train.micro_batch, JOB_MAX_RANKS / (j->spec->parallel.tp * j->spec->parallel.pp));
                return;
        }
        if (dp != j->dp_wanted)
                event_add(c, &(struct event_of){ .job = j, .rank = -1 }, "scaled", "%.100s wants dp %d, it was %d", who->user[0] ? who->user : "its owner", dp, j->dp_wanted);
        j->dp_wanted = dp;
        j->scale_asked = true;
        j->dirty = true;
        if (j->state == J(PENDING) && layout_set(c, j, dp) < 0) {
                request_refuse(c, request, ST_EXHAUSTED, "no memory");
                return;
        }
        c->schedule_wanted = true;
        request_answer_job(c, request, j);
}
