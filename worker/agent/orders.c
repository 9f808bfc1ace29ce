/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the controller says, and to which ranks it goes.  Epochs are checked twice: here, so that an order that comes late or doubled
 * reaches nobody it is not for, and by each rank, which knows better than the agent where it stands.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/text.h"
#include "worker/agent/agent_private.h"
#include "worker/agent/job_folders.h"

static void relay_to_job(struct agent *a, uint64_t job, Fp8ctl__V1__ControllerMessage *m) {
        for (struct local_rank *r = a->ranks; r && a->link_fd >= 0; r = r->next)
                if (r->job_id == job && !r->exited)
                        link_relay(a, r, m);
}

/* Ranks of an older epoch leave it. */
static void abort_older(struct agent *a, Fp8ctl__V1__ControllerMessage *m) {
        for (struct local_rank *r = a->ranks; r && a->link_fd >= 0; r = r->next)
                if (r->job_id == m->abort_epoch->job_id && !r->exited && r->epoch < m->abort_epoch->epoch)
                        link_relay(a, r, m);
}

struct pruning {
        char *dir;
        size_t n_in_use;
        uint64_t in_use[];
};

static void prune(void *arg) {
        struct pruning *p = arg;
        struct error e;
        int r = job_folders_prune(p->dir, JOB_FOLDERS_KEPT, p->in_use, p->n_in_use, &e);

        if (r < 0)
                log_warning("folders of old jobs stay: %s", e.text);
        else if (r > 0)
                log_info("removed the folder%s of %d old job%s; the newest %d are kept", text_s((uint64_t)r), r, text_s((uint64_t)r), JOB_FOLDERS_KEPT);
}

static void prune_done(void *arg) {
        struct pruning *p = arg;

        free(p->dir);
        free(p);
}

/* A new job's folder comes: the oldest of those that no rank uses go, in a thread. When it cannot be had now, the next job's start does it. */
static void prune_folders(struct agent *a, uint64_t starting) {
        struct pruning *p;
        size_t n = 1 + local_standbys(a);

        for (struct local_rank *r = a->ranks; r; r = r->next)
                n++;
        p = malloc(sizeof(*p) + n * sizeof(p->in_use[0]));
        if (!p)
                return;
        p->dir = strdup(a->config->dir);
        p->n_in_use = 0;
        p->in_use[p->n_in_use++] = starting;
        for (struct local_rank *r = a->ranks; r; r = r->next)
                p->in_use[p->n_in_use++] = r->job_id;
        local_standbys_jobs(a, p->in_use + p->n_in_use);
        p->n_in_use += local_standbys(a);
        if (!p->dir || tasks_run(a->tasks, prune, prune_done, p, NULL) < 0)
                prune_done(p);
}

/* A holder is on its way to other ranks, or back: they are told, and this node if it is one. */
static void on_replica_plan(struct agent *a, Fp8ctl__V1__ControllerMessage *m) {
        const Fp8ctl__V1__ReplicaPlan *p = m->replica_plan;

        holder_plan(a->holder, p);
        for (struct local_rank *r = a->ranks; r && a->link_fd >= 0; r = r->next)
                if (r->job_id == p->job_id && !r->exited && r->rank < p->n_incarnations && p->incarnations[r->rank] == r->incarnation)
                        link_relay(a, r, m);
}

static void on_start(struct agent *a, Fp8ctl__V1__StartRanks *m) {
        Fp8ctl__V1__AgentToSpawner out = FP8CTL__V1__AGENT_TO_SPAWNER__INIT;

        out.body_case = FP8CTL__V1__AGENT_TO_SPAWNER__BODY_START;
        out.start = m;
        canary_stop(a);
        link_send(a, &out);
        prune_folders(a, m->job_id);
        local_files_prune(a, m);
}

/*
 * A killed process hangs up only when its memory is freed (0.4 s at 6 GiB); its peers here are told with the kill instead of waiting for that.
 * Only when the kill belongs to a newer epoch than the peers'.
 */
static void on_kill(struct agent *a, Fp8ctl__V1__KillRanks *m) {
        Fp8ctl__V1__AgentToSpawner out = FP8CTL__V1__AGENT_TO_SPAWNER__INIT;
        Fp8ctl__V1__ControllerMessage abort_message = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__AbortEpoch abort_epoch = FP8CTL__V1__ABORT_EPOCH__INIT;

        out.body_case = FP8CTL__V1__AGENT_TO_SPAWNER__BODY_KILL;
        out.kill = m;
        link_send(a, &out);
        for (size_t i = 0; i < m->n_ranks; i++)
                log_info("job %" PRIu64 " rank %" PRIu32 " incarnation %" PRIu64 ": killed on the controller's order (%s)", m->job_id, m->ranks[i]->rank,
                         m->ranks[i]->incarnation, m->reason);
        abort_epoch.job_id = m->job_id;
        abort_epoch.epoch = m->epoch;
        abort_epoch.reason = m->reason;
        abort_message.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_ABORT_EPOCH;
        abort_message.abort_epoch = &abort_epoch;
        abort_older(a, &abort_message);
}

static void on_standbys(struct agent *a, Fp8ctl__V1__StandbyPlan *m) {
        Fp8ctl__V1__AgentToSpawner out = FP8CTL__V1__AGENT_TO_SPAWNER__INIT;

        out.body_case = FP8CTL__V1__AGENT_TO_SPAWNER__BODY_STANDBYS;
        out.standbys = m;
        link_send(a, &out);
        if (m->n_standbys)
                prune_folders(a, m->job_id);
}

static void on_plan(struct agent *a, Fp8ctl__V1__ControllerMessage *m) {
        const Fp8ctl__V1__RankPlan *p = m->rank_plan;

        holder_plan(a->holder, p->replicas);
        for (struct local_rank *r = a->ranks; r && a->link_fd >= 0; r = r->next) {
                if (r->job_id != p->job_id || r->exited)
                        continue;
                if (r->rank >= p->n_peers || p->peers[r->rank]->incarnation != r->incarnation || p->epoch < r->epoch) {
                        a->dropped++;
                        continue;
                }
                r->epoch = p->epoch;
                r->seen_step = p->best_step;
                r->phase = FP8CTL__V1__RANK_PHASE__RANK_LOADING;
                link_relay(a, r, m);
        }
}

static void on_release(struct agent *a, Fp8ctl__V1__ReleaseJob *m) {
        Fp8ctl__V1__AgentToSpawner out = FP8CTL__V1__AGENT_TO_SPAWNER__INIT;

        out.body_case = FP8CTL__V1__AGENT_TO_SPAWNER__BODY_RELEASE;
        out.release = m;
        link_send(a, &out);
        holder_release(a->holder, m->job_id);
        local_rank_release(a, m->job_id);
        if (!m->keep_local)
                local_files_release(a, m->job_id);
}

void orders_dispatch(struct agent *a, Fp8ctl__V1__ControllerMessage *m) {
        if (!a->welcomed && m->body_case != FP8CTL__V1__CONTROLLER_MESSAGE__BODY_WELCOME) {
                a->dropped++;
                return;
        }
        switch (m->body_case) {
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_WELCOME:
                stream_welcome(a, m->welcome);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_HEARTBEAT_ACK:
                stream_acknowledged(a, m->heartbeat_ack);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_START_RANKS:
                on_start(a, m->start_ranks);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_KILL_RANKS:
                on_kill(a, m->kill_ranks);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_ABORT_EPOCH:
                holder_fence(a->holder, m->abort_epoch->job_id, m->abort_epoch->epoch);
                abort_older(a, m);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_RANK_PLAN:
                on_plan(a, m);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_REPLICA_PLAN:
                on_replica_plan(a, m);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_STANDBY_PLAN:
                on_standbys(a, m->standby_plan);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_SAVE_MEMORY:
                save_memory_begin(a, m->save_memory);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_SAVE_NOW:
                relay_to_job(a, m->save_now->job_id, m);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_STOP_RANKS:
                relay_to_job(a, m->stop_ranks->job_id, m);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_CHECKPOINT_COMMITTED:
                prepared_answered(a, m->checkpoint_committed->job_id, m->checkpoint_committed->epoch, m->checkpoint_committed->step, m->checkpoint_committed->attempt);
                relay_to_job(a, m->checkpoint_committed->job_id, m);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_CHECKPOINT_DROPPED:
                prepared_answered(a, m->checkpoint_dropped->job_id, m->checkpoint_dropped->epoch, m->checkpoint_dropped->step, m->checkpoint_dropped->attempt);
                relay_to_job(a, m->checkpoint_dropped->job_id, m);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_RELEASE_JOB:
                on_release(a, m->release_job);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_INVENTORY_REQUEST:
                holder_fence(a->holder, m->inventory_request->job_id, m->inventory_request->epoch); /* what is listed now stays as it is */
                inventory_begin(a, m->inventory_request);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_PREFLIGHT_REQUEST:
                preflight_begin(a, m->preflight_request);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_DIAGNOSE_REQUEST:
                diagnose_begin(a, m->diagnose_request);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_FETCH_REQUEST:
                fetch_answer(a, m->fetch_request);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_NODE_PAIR_REQUEST:
                (m->node_pair_request->all_reduce ? reduce_test_start : pair_test_start)(a, m->node_pair_request);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_NODE_TEST_REQUEST:
                node_test_start(a, m->node_test_request);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_ROLLOUT_CHANGE:
                rollout_change(a, m->rollout_change);
                break;
        default:
                a->dropped++; /* of a newer controller */
                break;
        }
}
