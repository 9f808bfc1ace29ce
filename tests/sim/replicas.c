/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replica memory as ranks and holders keep it: a rank's own four slots, a holder's two, transfers that take their time, are lost, and are refused by a holder that
 * was told another epoch; and what must hold: while at most one node was lost since all ranks delivered a step, no recovery goes back behind it.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

struct replica *replica_find(struct sim *s, int node, uint64_t job, uint32_t rank, uint64_t step, uint64_t epoch, bool held) {
        for (int i = 0; i < s->nodes[node].n_replicas; i++) {
                struct replica *r = &s->nodes[node].replicas[i];

                if (r->job == job && r->rank == rank && r->step == step && r->epoch == epoch && r->held == held)
                        return r;
        }
        return NULL;
}

/* As replica_begin and replica_commit: later ones are dropped, the oldest that is not kept makes room. */
void replica_put(struct sim *s, int node, const struct replica *what, uint64_t keep_a, uint64_t keep_b) {
        struct replica *oldest = NULL, *empty = NULL;
        struct snode *h = &s->nodes[node];
        int n = 0;

        for (int i = 0; i < h->n_replicas; i++) {
                struct replica *r = &s->nodes[node].replicas[i];

                if (r->job == what->job && r->rank == what->rank && r->held == what->held) {
                        if (r->step >= what->step) {
                                *r = (struct replica){ 0 };
                        } else {
                                n++;
                                if (r->step != keep_a && r->step != keep_b && (!oldest || r->step < oldest->step))
                                        oldest = r;
                        }
                }
                if (!r->job && !empty)
                        empty = r;
        }
        if (!empty && h->n_replicas < SIM_REPLICAS_MAX)
                empty = &h->replicas[h->n_replicas++];
        if (n >= (what->held ? 2 : 4))
                empty = oldest;
        if (!empty)
                sim_fail(s, "%s: no room for step %" PRIu64 " of job %" PRIu64 " rank %u", s->nodes[node].name, what->step, what->job, what->rank);
        else
                *empty = *what;
}

static uint64_t *keep_of(struct sim *s, int node, const struct proc *p) {
        struct snode *n = &s->nodes[node];
        int i = 0;

        while (i < n->n_keeps && (n->keeps[i].job != p->job || n->keeps[i].rank != p->rank))
                i++;
        if (i == SIM_REPLICAS_MAX)
                abort();
        if (i == n->n_keeps)
                n->keeps[n->n_keeps++] = (struct keep){ .job = p->job, .rank = p->rank };
        return &n->keeps[i].step;
}

/* ------------------------------------------------------------------ transfers */
static void arrives(struct sim *s, struct ev *e) {
        struct proc *p = worker_proc_of(s, e);
        struct snode *h;

        if (!p || p->dead || p->sending != e->d || p->sent || p->missed)
                return;
        if (p->holder < 0 || (s->faults && sim_chance(s, 3))) {
                p->missed = true;
                return;
        }
        h = &s->nodes[p->holder];
        if (!h->up || h->told[p->job % 16] != p->epoch || h->told_key[p->job % 16] != p->replica_key) {
                p->missed = true;
                return;
        }
        if (p->epoch < h->told[p->job % 16])
                sim_fail(s, "%s takes a snapshot of epoch %" PRIu64 " after it was told %" PRIu64, h->name, p->epoch, h->told[p->job % 16]);
        if (!replica_find(s, p->holder, p->job, p->rank, p->sending, p->sending_epoch, true))
                replica_put(s, p->holder, &(struct replica){ .job = p->job, .rank = p->rank, .step = p->sending, .epoch = p->sending_epoch, .world = p->world, .held = true },
                            p->kept < p->sending ? p->kept : 0, 0);
        p->sent = true;
        p->sent_at = s->memory_losses;
}

void replica_send(struct sim *s, int node, struct proc *p) {
        p->sent = p->missed = false;
        if (p->sending)
                worker_proc_after(s, node, p, sim_random(s, sim_chance(s, 10) ? 200 * MS : 20 * MS), arrives)->d = p->sending;
}

void replica_agreed(struct sim *s, struct proc *const *p, const int *node, int n) {
        bool busy = false, missing = false, in_vain = false /* at a holder that the controller gave up, and died before it named another */;
        uint64_t first = s->memory_losses;

        for (int i = 0; i < n; i++) {
                first = p[i]->sent && p[i]->sent_at < first ? p[i]->sent_at : first;
                busy = busy || (p[i]->sending && !p[i]->sent && !p[i]->missed);
                missing = missing || p[i]->missed;
                in_vain = in_vain || (p[i]->holder >= 0 && s->nodes[p[i]->holder].given_up);
                if (p[i]->sending != p[0]->sending)
                        sim_fail(s, "job %" PRIu64 ": ranks %u and %u keep steps %" PRIu64 " and %" PRIu64 ", send %" PRIu64 " and %" PRIu64, p[0]->job, p[0]->rank, p[i]->rank, p[0]->kept,
                                 p[i]->kept, p[0]->sending, p[i]->sending);
        }
        if (busy)
                return;
        for (int i = 0; i < n; i++) {
                if (p[i]->sending && !missing) {
                        p[i]->kept = *keep_of(s, node[i], p[i]) = p[i]->sending;
                        s->covered[p[i]->job % 16] = in_vain ? 0 : p[i]->sending;
                        s->covered_at[p[i]->job % 16] = first;
                }
                p[i]->sending = p[i]->step + 1;
                p[i]->sending_epoch = p[i]->epoch;
                replica_send(s, node[i], p[i]);
        }
}

/* ------------------------------------------------------------------ plans */
static int node_named(struct sim *s, const char *name) {
        int i;

        return sscanf(name, "node-%d", &i) == 1 && i >= 0 && i < s->n_nodes ? i : -1;
}

static uint64_t key_of(const Fp8ctl__V1__ReplicaPlan *m) {
        uint64_t key = 0;

        memcpy(&key, m->key.data, m->key.len < sizeof(key) ? m->key.len : sizeof(key));
        return key | 1;
}

static void take_holder(struct sim *s, struct proc *p, const Fp8ctl__V1__ReplicaPlan *m) {
        int32_t at = p->rank < m->n_holders ? m->holders[p->rank] : -1;

        p->holder = at >= 0 && (size_t)at < m->n_nodes ? node_named(s, m->nodes[at]->name) : -1;
        p->replica_key = key_of(m);
}

void replica_begin_epoch(struct sim *s, int node, struct proc *p, const Fp8ctl__V1__RankPlan *m) {
        uint64_t *keep = keep_of(s, node, p);
        bool base = m->load->kind == FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA;

        p->sending = base ? m->load->step : 0;
        p->kept = *keep && *keep < p->sending ? *keep : p->sending;
        *keep = p->kept;
        p->sending_epoch = base ? m->load->generation_epoch : 0;
}

void replica_plan_told(struct sim *s, int node, const Fp8ctl__V1__ReplicaPlan *m, bool alone) {
        struct snode *n = &s->nodes[node];

        if (m->epoch < n->told[m->job_id % 16]) /* streams keep the order: an old plan would be a controller's mistake */
                sim_fail(s, "%s: a plan for replicas of epoch %" PRIu64 " after epoch %" PRIu64, n->name, m->epoch, n->told[m->job_id % 16]);
        n->told[m->job_id % 16] = m->epoch;
        n->told_key[m->job_id % 16] = key_of(m);
        for (int i = 0; i < n->n_procs; i++) {
                struct proc *p = &n->procs[i];

                if (!p->used || p->dead || p->job != m->job_id || p->epoch != m->epoch || !p->planned || p->rank >= m->n_incarnations || m->incarnations[p->rank] != p->incarnation)
                        continue;
                take_holder(s, p, m);
                if (p->holder == node)
                        sim_fail(s, "%s: job %" PRIu64 " rank %u has its second copy on its own node", n->name, p->job, p->rank);
                if (alone && p->sending && !p->missed)
                        replica_send(s, node, p);
        }
}

void replica_fenced(struct sim *s, int node, uint64_t job, uint64_t epoch) {
        struct snode *n = &s->nodes[node];

        if (epoch > n->told[job % 16]) {
                n->told[job % 16] = epoch;
                n->told_key[job % 16] = 0;
        }
}

void replica_forget_told(struct sim *s, int node) {
        memset(s->nodes[node].told, 0, sizeof(s->nodes[node].told));
        memset(s->nodes[node].told_key, 0, sizeof(s->nodes[node].told_key));
}

/* ------------------------------------------------------------------ back */
/* The copies of a job that ended or waits again go with the word that reaches their node first. */
bool sim_epoch_over(const struct sim *s, uint64_t job, uint64_t epoch) {
        Fp8ctl__V1__JobRecord *r = sim_stored_job(s, job);
        bool yes = !r || r->job->state >= FP8CTL__V1__JOB_STATE__COMPLETED || r->job->state == FP8CTL__V1__JOB_STATE__PENDING || r->job->epoch > epoch;

        if (r)
                fp8ctl__v1__job_record__free_unpacked(r, NULL);
        return yes;
}

bool replica_fetch(struct sim *s, int node, struct proc *p, const Fp8ctl__V1__RankPlan *m) {
        const Fp8ctl__V1__LoadSource *l = m->load;
        bool named = false;

        if (replica_find(s, node, p->job, p->rank, l->step, l->generation_epoch, false))
                return true;
        for (size_t i = 0; i < l->n_sources; i++) {
                int from = l->sources[i]->rank == p->rank && l->sources[i]->node < m->replicas->n_nodes ? node_named(s, m->replicas->nodes[l->sources[i]->node]->name) : -1;

                named = named || from >= 0;
                if (from < 0 || !s->nodes[from].up)
                        continue;
                if (replica_find(s, from, p->job, p->rank, l->step, l->generation_epoch, true)) {
                        replica_put(s, node, &(struct replica){ .job = p->job, .rank = p->rank, .step = l->step, .epoch = l->generation_epoch, .world = (uint32_t)m->n_peers }, 0, 0);
                        s->from_peers++;
                        return true;
                }
                if (s->nodes[from].listed[p->job % 16] == m->epoch && !sim_epoch_over(s, p->job, m->epoch))
                        sim_fail(s, "%s: job %" PRIu64 " rank %u: step %" PRIu64 " was listed for epoch %" PRIu64 " and is gone", s->nodes[from].name, p->job, p->rank, l->step, m->epoch);
        }
        if (!named && s->memory_losses == s->plan_losses[p->job % 16])
                sim_fail(s, "%s: job %" PRIu64 " rank %u is told to load step %" PRIu64 " of epoch %" PRIu64 " from replica memory that does not hold it", s->nodes[node].name, p->job, p->rank,
                         l->step, l->generation_epoch);
        return false;
}

/* ------------------------------------------------------------------ into a checkpoint */
static void saved(struct sim *s, struct ev *e) {
        Fp8ctl__V1__SaveMemory *m = fp8ctl__v1__save_memory__unpack(NULL, e->len, e->data);
        Fp8ctl__V1__ShardInfo shards[SIM_WORLD_MAX], *ptrs[SIM_WORLD_MAX];
        Fp8ctl__V1__WorkerMessage out = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__MemorySaved x = FP8CTL__V1__MEMORY_SAVED__INIT;
        struct snode *n = &s->nodes[e->a];

        if (!m || m->n_ranks > SIM_WORLD_MAX)
                abort();
        for (size_t i = 0; n->up && n->life == e->b && i < m->n_ranks; i++) {
                bool there = replica_find(s, (int)e->a, m->job_id, m->ranks[i], m->step, m->generation_epoch, false) ||
                             replica_find(s, (int)e->a, m->job_id, m->ranks[i], m->step, m->generation_epoch, true);

                /* Once the epoch has its plan this is of no use to anybody: another node could not. */
                if (!there && n->listed[m->job_id % 16] == m->epoch && s->plan_epoch[m->job_id % 16] < m->epoch && !sim_epoch_over(s, m->job_id, m->epoch))
                        sim_fail(s, "%s: job %" PRIu64 " rank %u: step %" PRIu64 " was to be saved from memory in epoch %" PRIu64 " and is gone", n->name, m->job_id, m->ranks[i], m->step, m->epoch);
                fp8ctl__v1__shard_info__init(&shards[i]);
                shards[i].file = (char *)"shard.safetensors";
                shards[i].digest = (char *)"00112233445566778899aabbccddeeff";
                shards[i].bytes = 1000;
                shards[i].rank = m->ranks[i];
                ptrs[i] = &shards[i];
                x.n_shards++;
                x.state_json = m->ranks[i] == 0 ? (char *)"{\"step\": 1}" : x.state_json;
                x.error = there ? x.error : (char *)"no such snapshot";
        }
        x.job_id = m->job_id;
        x.epoch = m->epoch;
        x.step = m->step;
        x.attempt = m->attempt;
        x.shards = ptrs;
        if (s->rank_faults && sim_chance(s, 3))
                x.error = (char *)"No space left on device";
        out.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_MEMORY_SAVED;
        out.memory_saved = &x;
        if (x.n_shards)
                worker_send(s, (int)e->a, &out);
        fp8ctl__v1__save_memory__free_unpacked(m, NULL);
}

void replica_save(struct sim *s, int node, const Fp8ctl__V1__SaveMemory *m) {
        struct ev *e = sim_after(s, MS + sim_random(s, sim_chance(s, 5) ? 4 * SEC : 50 * MS), saved);

        e->a = (uint64_t)node;
        e->b = s->nodes[node].life;
        e->len = fp8ctl__v1__save_memory__get_packed_size(m);
        e->data = malloc(e->len + 1);
        if (!e->data)
                abort();
        fp8ctl__v1__save_memory__pack(m, e->data);
        s->saved_world[m->job_id % 16] = m->shard_count;
        s->saved_attempt[m->job_id % 16] = m->attempt;
}

/* Its segment is sized anew, and what was in it is gone. */
void replica_other_layout(struct sim *s, int node, const struct proc *p) {
        for (int i = 0; i < s->nodes[node].n_replicas; i++) {
                struct replica *r = &s->nodes[node].replicas[i];

                if (r->job == p->job && r->rank == p->rank && !r->held && r->world == p->world)
                        *r = (struct replica){ 0 };
        }
}

void replica_check_plan(struct sim *s, const Fp8ctl__V1__RankPlan *m) {
        uint64_t job = m->job_id % 16;

        if (m->n_peers != s->plan_world[job]) {
                s->relayouts += s->plan_world[job] != 0;
                s->plan_world[job] = m->n_peers;
                replica_uncover(s, m->job_id); /* copies are of one layout */
        }
        if (s->covered[job] && s->memory_losses - s->covered_at[job] <= 1 && m->load->step < s->covered[job])
                sim_fail(s, "job %" PRIu64 " epoch %" PRIu64 ": goes back to step %" PRIu64 ", expected at least %" PRIu64 ": all ranks have second copies of it, and %" PRIu64 " node was lost since",
                         m->job_id, m->epoch, m->load->step, s->covered[job], s->memory_losses - s->covered_at[job]);
}

void replica_uncover(struct sim *s, uint64_t job) {
        for (uint64_t i = 0; i < 16; i++)
                if (!job || i == job % 16)
                        s->covered[i] = 0;
}
