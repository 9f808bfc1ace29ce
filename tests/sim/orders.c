/* SPDX-License-Identifier: Apache-2.0 */
/* What a worker of the simulation does when the controller tells it to. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

#define BODY(x) FP8CTL__V1__WORKER_MESSAGE__BODY_##x

static struct proc *proc_find(struct sim *s, int node, uint64_t job, uint64_t incarnation) {
        for (int i = 0; i < s->nodes[node].n_procs; i++) {
                struct proc *p = &s->nodes[node].procs[i];

                if (p->used && p->job == job && p->incarnation == incarnation)
                        return p;
        }
        return NULL;
}

/* Where its ranks are looked for, and who has to be looked at after this event. */
static void note_start(struct sim *s, int node, uint64_t job) {
        struct snode *n = &s->nodes[node];
        uint64_t j = job % 16;
        int i;

        if (!n->unchecked) {
                if (s->n_started == s->room_started) {
                        s->room_started = s->room_started ? 2 * s->room_started : 16;
                        s->started = realloc(s->started, (size_t)s->room_started * sizeof(*s->started));
                        if (!s->started)
                                abort();
                }
                s->started[s->n_started++] = node;
                n->unchecked = true;
        }
        if (n->here & UINT32_C(1) << j)
                return;
        n->here |= UINT32_C(1) << j;
        if (s->n_where[j] == s->room_where[j]) {
                s->room_where[j] = s->room_where[j] ? 2 * s->room_where[j] : 16;
                s->where[j] = realloc(s->where[j], (size_t)s->room_where[j] * sizeof(*s->where[j]));
                if (!s->where[j])
                        abort();
        }
        for (i = s->n_where[j]++; i > 0 && s->where[j][i - 1] > node; i--)
                s->where[j][i] = s->where[j][i - 1];
        s->where[j][i] = node;
}

static void on_start(struct sim *s, int node, const Fp8ctl__V1__StartRanks *m) {
        struct snode *n = &s->nodes[node];

        for (size_t i = 0; i < m->n_ranks; i++) {
                struct proc *p = NULL;
                const char *dir;

                for (int k = 0; k < SIM_RANKS_MAX && (k < n->n_procs || !p); k++) {
                        if (k == n->n_procs)
                                n->n_procs++;
                        if (n->procs[k].used && !n->procs[k].dead && n->procs[k].device == m->ranks[i]->device)
                                sim_fail(s, "%s: device %u is given to job %" PRIu64 " rank %u while job %" PRIu64 " rank %u (incarnation %" PRIu64 ") lives on it", n->name,
                                         m->ranks[i]->device, m->job_id, m->ranks[i]->rank, n->procs[k].job, n->procs[k].rank, n->procs[k].incarnation);
                        if (!p && !n->procs[k].used)
                                p = &n->procs[k];
                }
                if (!p)
                        abort();
                note_start(s, node, m->job_id);
                *p = (struct proc){ .used = true, .job = m->job_id, .epoch = m->epoch, .start_epoch = m->epoch, .rank = m->ranks[i]->rank, .incarnation = m->ranks[i]->incarnation,
                                    .device = m->ranks[i]->device, .phase = PROC_STARTING,
                                    .gen = n->life, .hangs = s->rank_faults && sim_chance(s, 2) };
                dir = strstr(m->job_file, "/ckpt/");
                snprintf(p->ckpt, sizeof(p->ckpt), "%.*s", dir ? (int)strcspn(dir, "\"") : 0, dir ? dir : "");
                worker_proc_after(s, node, p, 20 * MS + sim_random(s, 100 * MS), worker_ready);
        }
}

static void on_inventory(struct sim *s, int node, const Fp8ctl__V1__InventoryRequest *m) {
        Fp8ctl__V1__WorkerMessage out = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__Inventory x = FP8CTL__V1__INVENTORY__INIT;
        Fp8ctl__V1__Generation list[SIM_REPLICAS_MAX], *ptrs[SIM_REPLICAS_MAX];
        char layouts[SIM_REPLICAS_MAX][32];

        replica_fenced(s, node, m->job_id, m->epoch);
        s->nodes[node].listed[m->job_id % 16] = m->epoch;
        x.job_id = m->job_id;
        x.epoch = m->epoch;
        for (int i = 0; i < s->nodes[node].n_replicas; i++) {
                const struct replica *r = &s->nodes[node].replicas[i];
                Fp8ctl__V1__Generation *g = &list[x.n_generations];

                if (r->job != m->job_id)
                        continue;
                fp8ctl__v1__generation__init(g);
                g->rank = r->rank;
                g->step = r->step;
                g->epoch = r->epoch;
                g->shard_count = r->world;
                g->held = r->held;
                snprintf(layouts[x.n_generations], sizeof(layouts[0]), "tp2.pp1.dp%u/sim", r->world / 2);
                g->layout = layouts[x.n_generations];
                ptrs[x.n_generations++] = g;
        }
        x.generations = ptrs;
        out.body_case = BODY(INVENTORY);
        out.inventory = &x;
        worker_send(s, node, &out);
}

static void kill_some(struct sim *s, int node, const Fp8ctl__V1__KillRanks *m) {
        for (size_t i = 0; i < m->n_ranks; i++) {
                struct proc *p = proc_find(s, node, m->job_id, m->ranks[i]->incarnation);

                if (p)
                        worker_kill(s, node, p, 9);
        }
}

static void on_abort(struct sim *s, int node, const Fp8ctl__V1__AbortEpoch *m) {
        replica_fenced(s, node, m->job_id, m->epoch);
        for (int i = 0; i < s->nodes[node].n_procs; i++) {
                struct proc *p = &s->nodes[node].procs[i];

                if (!p->used || p->dead || p->job != m->job_id || p->epoch >= m->epoch || p->hangs)
                        continue;
                if (p->phase == PROC_STARTING)
                        p->pending_abort = m->epoch;
                else
                        worker_proc_after(s, node, p, MS / 2 + sim_random(s, 5 * MS), worker_parked)->d = m->epoch;
        }
}

static void on_save_now(struct sim *s, int node, const Fp8ctl__V1__SaveNow *m) {
        for (int i = 0; i < s->nodes[node].n_procs; i++) {
                struct proc *p = &s->nodes[node].procs[i];

                if (!p->used || p->dead || p->job != m->job_id || p->epoch != m->epoch)
                        continue;
                if (p->done && m->step == p->step)
                        save_begin(s, node, p, m->attempt);
                else
                        p->save_attempt = m->attempt;
        }
}

static void on_stop(struct sim *s, int node, const Fp8ctl__V1__StopRanks *m) {
        for (int i = 0; i < s->nodes[node].n_procs; i++) {
                struct proc *p = &s->nodes[node].procs[i];

                if (p->used && !p->dead && p->job == m->job_id && p->epoch == m->epoch)
                        p->stop = p->stop || !p->done;
        }
}

static void on_release(struct sim *s, int node, const Fp8ctl__V1__ReleaseJob *m) {
        struct snode *n = &s->nodes[node];

        for (int i = 0; i < n->n_procs; i++)
                if (n->procs[i].used && n->procs[i].job == m->job_id)
                        worker_kill(s, node, &n->procs[i], 0);
        for (int i = 0; i < n->n_replicas; i++)
                if (n->replicas[i].job == m->job_id)
                        n->replicas[i] = (struct replica){ 0 };
        replica_uncover(s, m->job_id);
}

static void on_preflight(struct sim *s, int node, const Fp8ctl__V1__PreflightRequest *m) {
        Fp8ctl__V1__WorkerMessage out = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__PreflightReply x = FP8CTL__V1__PREFLIGHT_REPLY__INIT;

        x.request = m->request;
        x.data_digest = (char *)"aa";
        out.body_case = BODY(PREFLIGHT_REPLY);
        out.preflight_reply = &x;
        worker_send(s, node, &out);
}

void worker_message(struct sim *s, int node, const Fp8ctl__V1__ControllerMessage *m) {
        struct snode *n = &s->nodes[node];

        switch (m->body_case) {
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_WELCOME:
                n->lease_number = m->welcome->lease_number;
                n->lease_ttl = m->welcome->lease_ttl_ms * MS;
                if (n->hello_sent + n->lease_ttl > n->lease_until)
                        n->lease_until = n->hello_sent + n->lease_ttl;
                save_say_again(s, node);
                rollout_welcomed(s, node);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_CHECKPOINT_COMMITTED:
                save_answered(s, node, m->checkpoint_committed->job_id, m->checkpoint_committed->epoch, m->checkpoint_committed->step, m->checkpoint_committed->attempt);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_CHECKPOINT_DROPPED:
                save_answered(s, node, m->checkpoint_dropped->job_id, m->checkpoint_dropped->epoch, m->checkpoint_dropped->step, m->checkpoint_dropped->attempt);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_HEARTBEAT_ACK:
                if (m->heartbeat_ack->sent_mono_ns + n->lease_ttl > n->lease_until)
                        n->lease_until = m->heartbeat_ack->sent_mono_ns + n->lease_ttl;
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_START_RANKS: on_start(s, node, m->start_ranks); break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_KILL_RANKS: kill_some(s, node, m->kill_ranks); break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_ABORT_EPOCH: on_abort(s, node, m->abort_epoch); break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_RANK_PLAN:
                worker_plan(s, node, m->rank_plan);
                replica_plan_told(s, node, m->rank_plan->replicas, false);
                break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_REPLICA_PLAN: replica_plan_told(s, node, m->replica_plan, true); break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_INVENTORY_REQUEST: on_inventory(s, node, m->inventory_request); break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_SAVE_MEMORY: replica_save(s, node, m->save_memory); break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_SAVE_NOW: on_save_now(s, node, m->save_now); break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_STOP_RANKS: on_stop(s, node, m->stop_ranks); break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_RELEASE_JOB: on_release(s, node, m->release_job); break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_PREFLIGHT_REQUEST: on_preflight(s, node, m->preflight_request); break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_ROLLOUT_CHANGE: rollout_ordered(s, node, m->rollout_change); break;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_NODE_TEST_REQUEST:
                if (rollouts_on(s))
                        rollout_test(s, node, m->node_test_request);
                break;
        default:
                break;
        }
}
