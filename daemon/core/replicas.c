/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Peers' replica memory: who holds whose second copy, how that is told, and what of it is used to begin an epoch.
 *
 * Fencing: a holder hears of each new epoch with InventoryRequest before it says what it has, and takes nothing of an older one from then on; what it said stays true
 * until the plan of that epoch comes with a new key.  So what restore_choose counts on is there when the ranks come for it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/text.h"
#include "daemon/core/recovery_private.h"
#include "daemon/core/replica_plan.h"

/* ------------------------------------------------------------------ which jobs a node holds something of */
bool replicas_on_node(const struct job *j, const struct node *n) {
        for (size_t i = 0; i < n->n_held; i++)
                if (n->held[i] == j->id)
                        return true;
        return false;
}

static void note_held(struct node *n, uint64_t job) {
        uint64_t *list;

        for (size_t i = 0; i < n->n_held; i++)
                if (n->held[i] == job)
                        return;
        list = realloc(n->held, (n->n_held + 1) * sizeof(*list));
        if (!list)
                return; /* it says so itself with its next hello */
        n->held = list;
        n->held[n->n_held++] = job;
}

void replicas_load(struct controller *c, struct job *j, char *const *names, size_t n) {
        if (n != (size_t)j->world || j->holders)
                return;
        j->holders = calloc(n, sizeof(struct node *));
        for (size_t i = 0; j->holders && i < n; i++) {
                j->holders[i] = names[i][0] ? node_get_or_add(c, names[i]) : NULL;
                if (j->holders[i])
                        note_held(j->holders[i], j->id);
        }
}

void replicas_released(const struct job *j, struct node *n) {
        for (size_t i = 0; i < n->n_held; i++)
                if (n->held[i] == j->id)
                        n->held[i--] = n->held[--n->n_held];
}

void replicas_free(struct job *j) {
        free(j->holders);
        j->holders = NULL;
        j->have_replicas = false;
        j->without_holder = -1;
        memset(j->replica_key, 0, sizeof(j->replica_key));
}

/* ------------------------------------------------------------------ the plan */
static bool holds(const struct node *n) {
        return n->state == NODE_READY && n->replica_endpoint[0] && n->duty != NODE_DRAINING;
}

/* So that nodes which come later need be looked at only where they could be better: always, where somebody has none or one holds more than is fair. */
static void judge_holders(struct job *j, const struct replica_node *nodes, int n_nodes, const int *place, const int *after) {
        _cleanup_free_ int *load = calloc((size_t)n_nodes + 1, sizeof(*load));
        int fair = replica_fair_load(n_nodes, place, j->world);

        j->holders_judged = load != NULL;
        j->holders_shared = false;
        j->holder_worst = 0;
        for (int i = 0; load && i < j->world; i++) {
                int g = place[i] < 0 || after[i] < 0 ? -1 : replica_grade(&nodes[place[i]], &nodes[after[i]]);

                if (g < 0 || ++load[after[i]] > fair) {
                        j->holders_judged = false;
                        return;
                }
                if (g > j->holder_worst)
                        j->holder_worst = g;
                j->holders_shared = j->holders_shared || load[after[i]] > 1;
        }
}

/* A node came. Without ranks of the job its grade is 1 for those of other racks, and 3 for others. */
static bool could_hold_better(const struct job *j, const struct node *n) {
        if (!j->holders_judged || job_on_node(j, n) || replicas_on_node(j, n))
                return true;
        if (!holds(n))
                return false;
        return n->rack[0] ? j->holder_worst > 1 || (j->holder_worst == 1 && j->holders_shared) : j->holder_worst == 3 && j->holders_shared;
}

/* New holders for every rank; true when one of them is another than before. */
static bool choose_holders(struct controller *c, struct job *j) {
        _cleanup_free_ struct replica_node *nodes = calloc(c->n_nodes + 1, sizeof(*nodes));
        _cleanup_free_ int *place = calloc((size_t)j->world, sizeof(*place)), *before = calloc((size_t)j->world, sizeof(*before)), *after = calloc((size_t)j->world, sizeof(*after));
        bool changed = false;
        int without;

        if (!j->holders)
                j->holders = calloc((size_t)j->world, sizeof(struct node *));
        if (!nodes || !place || !before || !after || !j->holders)
                return false;
        for (size_t i = 0; i < c->n_nodes; i++)
                nodes[i] = (struct replica_node){ .rack = c->nodes[i]->rack, .holds = holds(c->nodes[i]) };
        for (int i = 0; i < j->world; i++) {
                place[i] = job_node_index(c, j->ranks[i].node);
                if (place[i] >= 0)
                        nodes[place[i]].of_job = true;
                before[i] = job_node_index(c, j->holders[i]);
        }
        without = replica_plan(nodes, (int)c->n_nodes, place, before, j->world, after);
        if (without < 0)
                return false;
        judge_holders(j, nodes, (int)c->n_nodes, place, after);
        for (int i = 0; i < j->world; i++) {
                struct node *n = after[i] >= 0 ? c->nodes[after[i]] : NULL;

                changed = changed || n != j->holders[i];
                j->holders[i] = n;
        }
        if (without != j->without_holder && (without || j->without_holder > 0)) {
                if (without)
                        event_add(c, &(struct event_of){ .job = j, .rank = -1, .severity = j->without_holder == 0 ? "warning" : NULL }, "replicas_local",
                                  "%d of %d rank%s %s no other node whose memory could hold a second copy: after the loss of a node the job goes back to its last checkpoint", without, j->world,
                                  text_s((uint64_t)j->world), without == 1 ? "has" : "have");
                else
                        event_add(c, &(struct event_of){ .job = j, .rank = -1 }, "replicas_held", "every rank has a second copy in another node's memory again");
        }
        j->without_holder = without;
        j->dirty = j->dirty || changed;
        return changed;
}

/* One that leaves takes nothing new, and gives what it has while it is there. */
bool replicas_give(const struct node *n) {
        return n->replica_endpoint[0] && !n->hung_up && (n->state == NODE_READY || (n->state == NODE_LEAVING && n->session));
}

static int32_t node_number(struct replica_message *m, const struct node *n) {
        for (size_t i = 0; i < m->plan.n_nodes; i++)
                if (m->node_ptrs[i]->name == n->name)
                        return (int32_t)i;
        fp8ctl__v1__replica_node__init(&m->nodes[m->plan.n_nodes]);
        m->nodes[m->plan.n_nodes].name = (char *)n->name;
        m->nodes[m->plan.n_nodes].endpoint = (char *)n->replica_endpoint;
        m->node_ptrs[m->plan.n_nodes] = &m->nodes[m->plan.n_nodes];
        return (int32_t)m->plan.n_nodes++;
}

void replicas_message_free(struct replica_message *m) {
        free(m->nodes);
        free(m->node_ptrs);
        free(m->holders);
        free(m->incarnations);
        free(m->sources);
        free(m->source_ptrs);
}

int replicas_message(const struct controller *c, const struct job *j, struct replica_message *m) {
        size_t world = (size_t)j->world;

        *m = (struct replica_message){ .plan = FP8CTL__V1__REPLICA_PLAN__INIT };
        m->nodes = calloc(c->n_nodes + 1, sizeof(*m->nodes));
        m->node_ptrs = calloc(c->n_nodes + 1, sizeof(*m->node_ptrs));
        m->holders = calloc(world, sizeof(*m->holders));
        m->incarnations = calloc(world, sizeof(*m->incarnations));
        m->sources = calloc(j->n_generations + 1, sizeof(*m->sources));
        m->source_ptrs = calloc(j->n_generations + 1, sizeof(*m->source_ptrs));
        if (!m->nodes || !m->node_ptrs || !m->holders || !m->incarnations || !m->sources || !m->source_ptrs)
                return -ENOMEM;
        for (size_t i = 0; i < world; i++) {
                m->holders[i] = j->holders && j->holders[i] ? node_number(m, j->holders[i]) : -1;
                m->incarnations[i] = j->ranks[i].incarnation;
        }
        for (size_t i = 0; i < j->n_generations && j->load.kind == FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA; i++) {
                const struct generation *g = &j->generations[i];

                if (!g->held || g->rank >= world || g->shard_count != world || g->step != j->load.step || g->epoch != j->load.generation_epoch || !replicas_give(g->node))
                        continue;
                fp8ctl__v1__replica_source__init(&m->sources[m->n_sources]);
                m->sources[m->n_sources].rank = g->rank;
                m->sources[m->n_sources].node = (uint32_t)node_number(m, g->node);
                m->source_ptrs[m->n_sources] = &m->sources[m->n_sources];
                m->n_sources++;
        }
        m->plan.job_id = j->id;
        m->plan.epoch = j->epoch;
        m->plan.key.data = (uint8_t *)j->replica_key;
        m->plan.key.len = sizeof(j->replica_key);
        m->plan.nodes = m->node_ptrs;
        m->plan.holders = m->holders;
        m->plan.n_holders = world;
        m->plan.incarnations = m->incarnations;
        m->plan.n_incarnations = world;
        if (j->load.kind == FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA) {
                m->plan.base_step = j->load.step;
                m->plan.base_epoch = j->load.generation_epoch;
        }
        return 0;
}

/* To one node, or to all that hold; to those with ranks too (`ranks`) when it does not come with RankPlan. */
static void send_plan(struct controller *c, struct job *j, const struct node *only, bool ranks) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        _cleanup_(replicas_message_free) struct replica_message r = { 0 };

        if (replicas_message(c, j, &r) < 0)
                return;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_REPLICA_PLAN;
        m.replica_plan = &r.plan;
        for (size_t i = 0; i < c->n_nodes; i++) {
                struct node *n = c->nodes[i];
                bool involved = false;

                for (size_t k = 0; k < r.plan.n_nodes; k++)
                        involved = involved || r.node_ptrs[k]->name == n->name;
                if (involved)
                        note_held(n, j->id);
                if (only ? only == n && (involved || job_on_node(j, n)) : job_on_node(j, n) ? ranks : involved)
                        node_send(c, n, &m);
        }
}

void replicas_keep(struct job *j, struct node *n) {
        note_held(n, j->id);
        j->relaid = true;
}

void replicas_release_left(struct controller *c, struct job *j) {
        if (!j->relaid)
                return;
        j->relaid = false;
        for (size_t i = 0; i < c->n_nodes; i++) {
                bool holds_any = job_on_node(j, c->nodes[i]) || !replicas_on_node(j, c->nodes[i]);

                for (int k = 0; j->holders && k < j->world && !holds_any; k++)
                        holds_any = j->holders[k] == c->nodes[i];
                if (!holds_any)
                        job_release_node(c, j, c->nodes[i]);
        }
}

void replicas_begin(struct controller *c, struct job *j) {
        c->io.random(c->io.arg, j->replica_key, sizeof(j->replica_key));
        j->have_replicas = true;
        choose_holders(c, j);
        send_plan(c, j, NULL, false);
}

/* An earlier life of the controller made the plan, and its key died with it. */
static void begin_again(struct controller *c, struct job *j) {
        for (int i = 0; i < j->world; i++)
                if (!j->ranks[i].heard || !j->ranks[i].node)
                        return;
        c->io.random(c->io.arg, j->replica_key, sizeof(j->replica_key));
        j->have_replicas = true;
        choose_holders(c, j);
        send_plan(c, j, NULL, true);
}

/* Nodes with ranks of the job are waited for anyway; their hello asks them. */
void replicas_resume(struct controller *c, struct job *j) {
        for (size_t i = 0; i < c->n_nodes; i++)
                if (!job_on_node(j, c->nodes[i]) && replicas_on_node(j, c->nodes[i]) && c->nodes[i]->state != NODE_LOST)
                        order_inventory(c, j, c->nodes[i]);
}

/* ------------------------------------------------------------------ nodes come and go */
static void release(struct controller *c, struct node *n, uint64_t job) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__ReleaseJob rel = FP8CTL__V1__RELEASE_JOB__INIT;
        const struct job *j = job_find(c, job);

        rel.job_id = job;
        rel.epoch = j ? j->epoch : 0;
        rel.keep_local = j && !job_ended(j);
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_RELEASE_JOB;
        m.release_job = &rel;
        node_send(c, n, &m);
}

void replicas_local(struct controller *c, struct node *n, const Fp8ctl__V1__LocalCopies *m) {
        for (size_t i = 0; i < m->n_jobs && i < HELD_JOBS_MAX; i++) {
                const struct job *j = job_find(c, m->jobs[i]);

                if (!j || job_ended(j))
                        release(c, n, m->jobs[i]);
        }
}

void replicas_hello(struct controller *c, struct node *n, const Fp8ctl__V1__WorkerHello *m, bool moved) {
        n->n_held = 0;
        for (size_t i = 0; i < m->n_held_jobs && i < HELD_JOBS_MAX; i++) {
                const struct job *j = job_find(c, m->held_jobs[i]);

                if (j && job_placed(j))
                        note_held(n, j->id);
                else
                        release(c, n, m->held_jobs[i]);
        }
        for (size_t i = 0; i < m->n_ranks; i++) { /* memory of ranks that have gone elsewhere */
                struct job *j = m->ranks[i] ? job_find(c, m->ranks[i]->job_id) : NULL;

                if (j && job_placed(j) && !job_on_node(j, n))
                        replicas_keep(j, n);
        }
        for (size_t i = 0; i < c->n_jobs; i++) {
                struct job *j = c->jobs[i];

                if (!job_placed(j))
                        continue;
                if (j->rec == REC_FENCE) {
                        if (!job_on_node(j, n) && replicas_on_node(j, n) && !j->start_is_new) {
                                generations_forget(j, n);
                                order_inventory(c, j, n);
                        }
                        continue;
                }
                if (!j->have_replicas)
                        begin_again(c, j);
                else if ((could_hold_better(j, n) && choose_holders(c, j)) || moved)
                        send_plan(c, j, NULL, true);
                else if (job_on_node(j, n) || replicas_on_node(j, n))
                        send_plan(c, j, n, true); /* what it knew may have gone with its worker process */
        }
}

void replicas_node_lost(struct controller *c, struct node *n) {
        n->n_held = 0;
        n->replica_endpoint[0] = 0;
        for (size_t i = 0; i < c->n_jobs; i++) {
                struct job *j = c->jobs[i];
                bool matters = job_on_node(j, n);

                if (!job_placed(j))
                        continue;
                for (int k = 0; j->holders && k < j->world; k++)
                        if (j->holders[k] == n) {
                                j->holders[k] = NULL;
                                matters = true;
                        }
                inventory_forget(j, n);
                rescue_node_lost(c, j, n);
                if (!job_placed(j))
                        continue;
                if (j->rec == REC_FENCE)
                        recovery_check(c, j);
                else if (j->have_replicas && matters && choose_holders(c, j))
                        send_plan(c, j, NULL, true);
        }
}

void replicas_replan(struct controller *c) {
        for (size_t i = 0; i < c->n_jobs; i++) {
                struct job *j = c->jobs[i];

                if (job_placed(j) && j->rec != REC_FENCE && j->have_replicas && choose_holders(c, j))
                        send_plan(c, j, NULL, true);
        }
}

/* ------------------------------------------------------------------ what ranks loaded */
void replicas_loaded(struct rank *r, const Fp8ctl__V1__RankRunning *m) {
        r->loaded = (int)m->loaded;
        r->loaded_bytes = m->loaded_bytes;
}

void replicas_say_loaded(const struct job *j, char *buf, size_t size) {
        int own = 0, peer = 0, disk = 0, local = 0, initial = 0;
        uint64_t bytes = 0;

        for (int i = 0; i < j->world; i++) {
                const struct rank *r = &j->ranks[i];

                own += r->loaded == FP8CTL__V1__LOADED_FROM__LOADED_OWN_MEMORY;
                peer += r->loaded == FP8CTL__V1__LOADED_FROM__LOADED_PEER_MEMORY;
                disk += r->loaded == FP8CTL__V1__LOADED_FROM__LOADED_DISK;
                local += r->loaded == FP8CTL__V1__LOADED_FROM__LOADED_LOCAL_DISK;
                initial += r->loaded == FP8CTL__V1__LOADED_FROM__LOADED_INITIAL;
                bytes += r->loaded == FP8CTL__V1__LOADED_FROM__LOADED_PEER_MEMORY ? r->loaded_bytes : 0;
        }
        if (own + peer + disk + local + initial == 0)
                buf[0] = 0; /* of workers that do not say */
        else if (local)
                snprintf(buf, size, "; slices: %d from their own node's memory, %d from peers' (%" PRIu64 " bytes), %d from their own node's disk, %d from disk", own, peer, bytes, local, disk);
        else
                snprintf(buf, size, "; slices: %d from their own node's memory, %d from peers' (%" PRIu64 " bytes), %d from disk", own, peer, bytes, disk);
}
