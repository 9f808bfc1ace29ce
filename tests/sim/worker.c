/* SPDX-License-Identifier: Apache-2.0 */
/* A small, faithful model of the worker's side of PROTOCOL.md: processes, replica memory with two generations, steps that all ranks finish together or not at all. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/planted.h"
#include "tests/sim/sim.h"

#define BODY(x) FP8CTL__V1__WORKER_MESSAGE__BODY_##x

void worker_send(struct sim *s, int node, Fp8ctl__V1__WorkerMessage *m) {
        if (s->nodes[node].stream)
                sim_to_core(s, s->nodes[node].stream, m);
}

/* An event about one process: node in a, slot in b, incarnation in c; gone processes are not spoken for. */
struct proc *worker_proc_of(struct sim *s, struct ev *e) {
        struct proc *p = &s->nodes[e->a].procs[e->b];

        return p->used && p->incarnation == e->c && p->gen == s->nodes[e->a].life ? p : NULL;
}

struct ev *worker_proc_after(struct sim *s, int node, struct proc *p, uint64_t ns, void (*fn)(struct sim *, struct ev *)) {
        struct ev *e = sim_after(s, ns, fn);

        e->a = (uint64_t)node;
        e->b = (uint64_t)(p - s->nodes[node].procs);
        e->c = p->incarnation;
        return e;
}

/* ------------------------------------------------------------------ replica memory */
static void snapshot(struct sim *s, int node, const struct proc *p) {
        replica_put(s, node, &(struct replica){ .job = p->job, .rank = p->rank, .step = p->step, .epoch = p->epoch, .world = p->world }, PLANTED(GENERATION_DROPPED) ? 0 : p->kept, PLANTED(GENERATION_DROPPED) ? 0 : p->sending);
}

/* ------------------------------------------------------------------ deaths */
static void say_exit(struct sim *s, struct ev *e) {
        struct proc *p = worker_proc_of(s, e);
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__RankExited x = FP8CTL__V1__RANK_EXITED__INIT;

        if (!p)
                return;
        x.job_id = p->job;
        x.epoch = p->epoch;
        x.rank = p->rank;
        x.incarnation = p->incarnation;
        x.signal = p->signal;
        x.exit_status = p->signal ? -1 : 0;
        x.reaped = e->d == 1;
        x.cause = x.reaped ? (char *)(p->signal ? "killed by SIGKILL" : "exit 0") : (char *)"";
        m.body_case = BODY(RANK_EXITED);
        m.rank_exited = &x;
        if (x.reaped)
                p->reaped = true;
        worker_send(s, (int)e->a, &m);
        if (x.reaped && s->nodes[e->a].stream)
                p->used = false; /* told; what a broken stream loses, a hello without it tells */
}

void worker_kill(struct sim *s, int node, struct proc *p, int signal) {
        if (p->dead)
                return;
        p->dead = true;
        p->signal = signal;
        p->phase = PROC_EXITED;
        if (signal)
                worker_proc_after(s, node, p, MS / 3, say_exit);
        worker_proc_after(s, node, p, MS + sim_random(s, 400 * MS), say_exit)->d = 1;
}

/* ------------------------------------------------------------------ ready, park, load */
static void park(struct sim *s, int node, struct proc *p, uint64_t epoch) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__RankParked x = FP8CTL__V1__RANK_PARKED__INIT;

        p->phase = PROC_PARKED;
        p->epoch = epoch;
        p->planned = p->meshed = p->stop = p->done = p->faulted = false;
        p->save_attempt = 0;
        x.job_id = p->job;
        x.epoch = epoch;
        x.rank = p->rank;
        x.incarnation = p->incarnation;
        x.step = p->step;
        m.body_case = BODY(RANK_PARKED);
        m.rank_parked = &x;
        worker_send(s, node, &m);
}

void worker_parked(struct sim *s, struct ev *e) {
        struct proc *p = worker_proc_of(s, e);

        if (p && !p->dead && p->phase != PROC_STARTING && p->epoch < e->d)
                park(s, (int)e->a, p, e->d);
}

static void endpoint_of(const struct proc *p, char *buf, size_t size) {
        snprintf(buf, size, "unix:/sim/%" PRIu64 ".%" PRIu64, p->job, p->incarnation);
}

void worker_ready(struct sim *s, struct ev *e) {
        struct proc *p = worker_proc_of(s, e);
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__RankReady x = FP8CTL__V1__RANK_READY__INIT;
        char endpoint[64];

        if (!p || p->dead)
                return;
        endpoint_of(p, endpoint, sizeof(endpoint));
        p->phase = PROC_PARKED;
        x.job_id = p->job;
        x.epoch = p->start_epoch;
        x.rank = p->rank;
        x.incarnation = p->incarnation;
        x.endpoint = endpoint;
        x.fingerprint = (char *)"sim";
        x.pid = (uint32_t)p->incarnation + 1000;
        m.body_case = BODY(RANK_READY);
        m.rank_ready = &x;
        worker_send(s, (int)e->a, &m);
        if (p->pending_abort > p->epoch)
                park(s, (int)e->a, p, p->pending_abort);
}

static void fault(struct sim *s, int node, struct proc *p, int kind, const char *text) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__RankFault x = FP8CTL__V1__RANK_FAULT__INIT;

        p->faulted = true;
        p->phase = PROC_PARKED;
        x.kind = (Fp8ctl__V1__RankFault__Kind)kind;
        x.job_id = p->job;
        x.epoch = p->epoch;
        x.rank = p->rank;
        x.incarnation = p->incarnation;
        x.step = p->step;
        x.peer = -1;
        x.text = (char *)text;
        m.body_case = BODY(RANK_FAULT);
        m.rank_fault = &x;
        worker_send(s, node, &m);
}

void worker_fault(struct sim *s, int node, struct proc *p, int kind) {
        if (p->dead || p->phase != PROC_RUNNING)
                return;
        if (kind == FP8CTL__V1__RANK_FAULT__KIND__OVERFLOW_ROLLBACK)
                replica_uncover(s, p->job);
        fault(s, node, p, kind, "injected");
}

/* ------------------------------------------------------------------ steps */
struct group {
        struct proc **p;
        int *node, n;
};

static struct group group_of(struct sim *s, uint64_t job, uint64_t epoch) {
        struct group g = { .p = s->group, .node = s->group_node };

        for (int k = 0; k < s->n_where[job % 16]; k++) {
                int n = s->where[job % 16][k];

                for (int i = 0; s->nodes[n].up && i < s->nodes[n].n_procs; i++) {
                        struct proc *p = &s->nodes[n].procs[i];

                        if (p->used && !p->dead && !p->faulted && p->job == job && p->epoch == epoch && p->meshed && g.n < SIM_WORLD_MAX) {
                                g.p[g.n] = p;
                                g.node[g.n++] = n;
                        }
                }
        }
        return g;
}

static void say_done(struct sim *s, struct ev *e) {
        struct proc *p = worker_proc_of(s, e);
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__RankDone x = FP8CTL__V1__RANK_DONE__INIT;
        Fp8ctl__V1__RankProgress g = FP8CTL__V1__RANK_PROGRESS__INIT;

        if (!p || p->dead || !p->meshed || p->epoch != e->d || p->faulted)
                return;
        p->phase = PROC_DONE;
        p->done = true;
        x.job_id = p->job;
        x.epoch = p->epoch;
        x.rank = p->rank;
        x.incarnation = p->incarnation;
        x.stopped = p->stop;
        g.step = p->step;
        x.progress = &g;
        m.body_case = BODY(RANK_DONE);
        m.rank_done = &x;
        worker_send(s, (int)e->a, &m);
}

static void peer_lost(struct sim *s, struct ev *e) {
        struct proc *p = worker_proc_of(s, e);

        if (p && !p->dead && !p->faulted && p->meshed && p->epoch == e->d && p->phase == PROC_RUNNING)
                fault(s, (int)e->a, p, FP8CTL__V1__RANK_FAULT__KIND__PEER_LOST, "a peer hung up");
}

static void step(struct sim *s, struct ev *e) {
        struct group g = group_of(s, e->a, e->b);
        bool stop = false, last, partial;
        uint32_t attempt = 0;

        /* A rank looks at its lease before every optimizer commit; the heartbeat's look comes every 200 ms only. */
        for (int i = 0; i < g.n; i++)
                if (s->nodes[g.node[i]].lease_until && s->now > s->nodes[g.node[i]].lease_until) {
                        worker_kill(s, g.node[i], g.p[i], 9);
                        s->lease_kills++;
                }
        for (int i = 0; i < g.n; i++)
                if (g.p[i]->phase != PROC_RUNNING || g.p[i]->dead) {
                        g.p[i] = g.p[--g.n];
                        g.node[i] = g.node[g.n];
                        i--;
                }
        if (g.n == 0)
                return;
        if (g.n < (int)g.p[0]->world) {
                for (int i = 0; i < g.n; i++)
                        worker_proc_after(s, g.node[i], g.p[i], MS + sim_random(s, 20 * MS), peer_lost)->d = e->b;
                return;
        }
        for (int i = 0; i < g.n; i++) {
                if (g.p[i]->rank == 0) {
                        stop = g.p[i]->stop;
                        attempt = g.p[i]->save_attempt;
                }
                if (g.p[i]->step != g.p[0]->step)
                        sim_fail(s, "job %" PRIu64 " epoch %" PRIu64 ": ranks step at %" PRIu64 " and %" PRIu64, e->a, e->b, g.p[i]->step, g.p[0]->step);
        }
        if (e->b < s->stepped_epoch[e->a % 16])
                sim_fail(s, "job %" PRIu64 " steps in epoch %" PRIu64 " after %" PRIu64, e->a, e->b, s->stepped_epoch[e->a % 16]);
        s->stepped_epoch[e->a % 16] = e->b;
        save_note_calm(s, e->a, e->b, g.p[0]->step);
        if (g.p[0]->step < (uint64_t)s->steps)
                replica_agreed(s, g.p, g.node, g.n);
        /* Between the parameter all-gather of some ranks and others: a part of them has the step. */
        partial = s->rank_faults && sim_chance(s, 1);
        for (int i = 0; i < g.n; i++) {
                if ((partial && sim_chance(s, 50)) || g.p[i]->step >= (uint64_t)s->steps)
                        continue; /* loaded at the last step: saves it again and is done */
                g.p[i]->step++;
                snapshot(s, g.node[i], g.p[i]);
        }
        if (partial) {
                s->kills++;
                worker_kill(s, g.node[0], g.p[0], 9);
                for (int i = 1; i < g.n; i++)
                        worker_proc_after(s, g.node[i], g.p[i], MS + sim_random(s, 20 * MS), peer_lost)->d = e->b;
                return;
        }
        if (g.p[0]->step > s->best[e->a % 16])
                s->best[e->a % 16] = g.p[0]->step;
        last = g.p[0]->step >= (uint64_t)s->steps;
        for (int i = 0; i < g.n; i++) {
                uint64_t said = s->now;

                if (g.p[i]->step % s->save_every == 0 || last || stop)
                        said = save_begin(s, g.node[i], g.p[i], 1);
                if (attempt)
                        said = save_begin(s, g.node[i], g.p[i], attempt);
                g.p[i]->save_attempt = 0;
                if (last || stop) {
                        g.p[i]->stop = stop;
                        worker_proc_after(s, g.node[i], g.p[i], said - s->now + MS, say_done)->d = e->b;
                }
        }
        if (!last && !stop) {
                struct ev *next = sim_after(s, s->big ? 500 * MS + sim_random(s, 500 * MS) : 20 * MS + sim_random(s, 40 * MS), step);

                next->a = e->a;
                next->b = e->b;
        }
}

static void loaded(struct sim *s, struct ev *e) {
        struct proc *p = worker_proc_of(s, e);
        struct group g;
        struct ev *next;

        if (!p || p->dead || p->faulted || !p->planned || p->epoch != e->d)
                return;
        if (s->rank_faults && p->step > 0 && sim_chance(s, 1)) {
                replica_uncover(s, p->job);
                fault(s, (int)e->a, p, FP8CTL__V1__RANK_FAULT__KIND__LOAD_FAILED, "a digest does not match");
                return;
        }
        p->meshed = true;
        g = group_of(s, p->job, p->epoch);
        if (g.n < (int)p->world)
                return;
        for (int i = 0; i < g.n; i++) {
                Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
                Fp8ctl__V1__RankRunning x = FP8CTL__V1__RANK_RUNNING__INIT;

                g.p[i]->phase = PROC_RUNNING;
                x.job_id = p->job;
                x.epoch = p->epoch;
                x.rank = g.p[i]->rank;
                x.incarnation = g.p[i]->incarnation;
                x.step = g.p[i]->step;
                m.body_case = BODY(RANK_RUNNING);
                m.rank_running = &x;
                worker_send(s, g.node[i], &m);
        }
        next = sim_after(s, 20 * MS, step);
        next->a = p->job;
        next->b = p->epoch;
}

/* What the store says of roll-backs: generations of older epochs are poisoned. */
static uint64_t undone_before(struct sim *s, uint64_t job) {
        Fp8ctl__V1__JobRecord *r = sim_stored_job(s, job);
        uint64_t epoch = r ? r->min_replica_epoch : 0;

        if (r)
                fp8ctl__v1__job_record__free_unpacked(r, NULL);
        return epoch;
}

void worker_plan(struct sim *s, int node, const Fp8ctl__V1__RankPlan *m) {
        struct snode *n = &s->nodes[node];
        bool again = m->epoch <= s->plan_epoch[m->job_id % 16]; /* told once more to a node that was away */
        uint64_t key = 0;

        /* An epoch has one plan: a second one with another key would let two meshes of one epoch be. */
        memcpy(&key, m->mesh_key.data, m->mesh_key.len < sizeof(key) ? m->mesh_key.len : sizeof(key));
        if (m->epoch == s->plan_epoch[m->job_id % 16] && key != s->plan_key[m->job_id % 16])
                sim_fail(s, "job %" PRIu64 ": a second plan under epoch %" PRIu64, m->job_id, m->epoch);
        if (m->epoch >= s->plan_epoch[m->job_id % 16]) {
                s->plan_epoch[m->job_id % 16] = m->epoch;
                s->plan_key[m->job_id % 16] = key;
        }
        if (!again)
                replica_check_plan(s, m);
        for (int i = 0; i < n->n_procs; i++) {
                struct proc *p = &n->procs[i];

                if (p->used && !p->dead && p->job == m->job_id && p->epoch < m->epoch && p->rank < m->n_peers && m->peers[p->rank]->incarnation == p->incarnation)
                        sim_fail(s, "%s: job %" PRIu64 " rank %u is in the plan of epoch %" PRIu64 " and has not left epoch %" PRIu64, n->name, p->job, p->rank, m->epoch, p->epoch);
                if (!p->used || p->dead || p->job != m->job_id || p->epoch != m->epoch || p->phase != PROC_PARKED || p->planned || p->faulted)
                        continue;
                if (p->rank >= m->n_peers || m->peers[p->rank]->incarnation != p->incarnation)
                        continue;
                p->planned = true;
                p->phase = PROC_LOADING;
                if (p->world != m->n_peers)
                        replica_other_layout(s, node, p);
                p->world = (uint32_t)m->n_peers;
                if (m->load->kind == FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA && !replica_fetch(s, node, p, m)) {
                        replica_uncover(s, p->job);
                        fault(s, node, p, FP8CTL__V1__RANK_FAULT__KIND__LOAD_FAILED, "its source is gone");
                        continue;
                }
                replica_begin_epoch(s, node, p, m);
                replica_send(s, node, p);
                if (m->load->kind == FP8CTL__V1__LOAD_SOURCE__KIND__CHECKPOINT) {
                        char name[80];

                        snprintf(name, sizeof(name), "commit/%" PRIu64 "/%020" PRIu64, p->job, m->load->step);
                        if (!sim_stored(s, name) && !sim_epoch_over(s, p->job, m->epoch))
                                sim_fail(s, "job %" PRIu64 " is told to load step %" PRIu64 ", which is not committed", p->job, m->load->step);
                }
                if (m->load->kind == FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA && m->load->generation_epoch < undone_before(s, p->job) && !sim_epoch_over(s, p->job, m->epoch))
                        sim_fail(s, "job %" PRIu64 " rank %u is told to load step %" PRIu64 " of epoch %" PRIu64 ", which a roll-back undid", p->job, p->rank, m->load->step,
                                 m->load->generation_epoch);
                p->step = m->load->step;
                worker_proc_after(s, node, p, 5 * MS + sim_random(s, 30 * MS), loaded)->d = p->epoch;
        }
}

/* ------------------------------------------------------------------ the stream */
static void heartbeat(struct sim *s, struct ev *e) {
        struct snode *n = &s->nodes[e->a];
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__Heartbeat h = FP8CTL__V1__HEARTBEAT__INIT;
        Fp8ctl__V1__RankProgress list[SIM_RANKS_MAX], *ptrs[SIM_RANKS_MAX];
        struct ev *next;

        if (!n->up || n->life != e->b)
                return;
        next = sim_after(s, s->big ? SEC : 200 * MS, heartbeat);
        next->a = e->a;
        next->b = e->b;
        if (n->lease_until && s->now > n->lease_until) {
                for (int i = 0; i < n->n_procs; i++)
                        if (n->procs[i].used && !n->procs[i].dead) {
                                worker_kill(s, (int)e->a, &n->procs[i], 9);
                                s->lease_kills++;
                        }
        }
        h.sent_mono_ns = s->now;
        h.lease_number = n->lease_number;
        for (int i = 0; i < n->n_procs; i++) {
                const struct proc *p = &n->procs[i];
                Fp8ctl__V1__RankProgress *g = &list[h.n_ranks];

                if (!p->used || p->dead || p->phase < PROC_RUNNING)
                        continue;
                fp8ctl__v1__rank_progress__init(g);
                g->job_id = p->job;
                g->epoch = p->epoch;
                g->rank = p->rank;
                g->incarnation = p->incarnation;
                g->step = p->step;
                ptrs[h.n_ranks++] = g;
        }
        h.ranks = ptrs;
        m.body_case = BODY(HEARTBEAT);
        m.heartbeat = &h;
        if (n->lease_number)
                worker_send(s, (int)e->a, &m);
}

static void hello(struct sim *s, int node, uint64_t stream) {
        struct snode *n = &s->nodes[node];
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__WorkerHello h = FP8CTL__V1__WORKER_HELLO__INIT;
        Fp8ctl__V1__Node nd = FP8CTL__V1__NODE__INIT;
        Fp8ctl__V1__NodeDevice dev[SIM_BIG_DEVICES], *devs[SIM_BIG_DEVICES];
        Fp8ctl__V1__RankStatus list[SIM_RANKS_MAX], *ptrs[SIM_RANKS_MAX];
        Fp8ctl__V1__RankExited exited[SIM_RANKS_MAX];
        char endpoints[SIM_RANKS_MAX][64], replica_endpoint[64], rack[16];
        uint64_t held[SIM_REPLICAS_MAX];
        char *features[] = { (char *)"save-memory", (char *)"rollout-hook" };

        for (uint32_t i = 0; i < (uint32_t)s->n_devices; i++) {
                fp8ctl__v1__node_device__init(&dev[i]);
                dev[i].index = i;
                dev[i].kind = (char *)"cpu";
                devs[i] = &dev[i];
        }
        nd.name = n->name;
        nd.devices = devs;
        nd.n_devices = (size_t)s->n_devices;
        snprintf(replica_endpoint, sizeof(replica_endpoint), "tcp:%s:%" PRIu64, n->name, n->life);
        nd.replica_endpoint = replica_endpoint;
        nd.rack = (char *)(node < 2 ? "x" : node < 4 ? "y" : "");
        if (s->big) {
                snprintf(rack, sizeof(rack), "rack-%d", node / 16);
                nd.rack = rack;
        }
        for (int i = 0; i < n->n_replicas; i++)
                if (n->replicas[i].held)
                        held[h.n_held_jobs++] = n->replicas[i].job; /* doubles are allowed */
        h.held_jobs = held;
        for (int i = 0; i < n->n_procs; i++) {
                struct proc *p = &n->procs[i];
                Fp8ctl__V1__RankStatus *st = &list[h.n_ranks];

                if (!p->used)
                        continue;
                if (p->dead && p->reaped && sim_chance(s, 30)) {
                        p->used = false; /* the worker came back without a word of it */
                        continue;
                }
                fp8ctl__v1__rank_status__init(st);
                st->job_id = p->job;
                st->epoch = p->epoch;
                st->rank = p->rank;
                st->incarnation = p->incarnation;
                st->device = p->device;
                st->phase = (Fp8ctl__V1__RankPhase)p->phase;
                st->step = p->step;
                endpoint_of(p, endpoints[h.n_ranks], sizeof(endpoints[0]));
                if (p->phase != PROC_STARTING)
                        st->endpoint = endpoints[h.n_ranks];
                if (p->dead) {
                        fp8ctl__v1__rank_exited__init(&exited[h.n_ranks]);
                        exited[h.n_ranks].cause = (char *)"killed by SIGKILL";
                        exited[h.n_ranks].reaped = p->reaped;
                        st->exited = &exited[h.n_ranks];
                        if (p->reaped)
                                p->used = false;
                }
                ptrs[h.n_ranks++] = st;
        }
        n->hello_sent = s->now;
        h.protocol_min = h.protocol_max = 1;
        h.features = features;
        h.n_features = s->seed % 8 == 3 ? 0 /* a worker of the version before */ : rollouts_on(s) ? 2 : 1;
        h.node = &nd;
        h.ranks = ptrs;
        m.body_case = BODY(HELLO);
        m.hello = &h;
        sim_to_core(s, stream, &m);
}

/* Says hello on a second stream while the first is still open: the core closes the first. */
void worker_hello_again(struct sim *s, int node) {
        struct snode *n = &s->nodes[node];
        uint64_t stream;

        if (!n->up || !n->stream || !s->core)
                return;
        stream = sim_open_stream(s, node);
        n->stream = stream;
        n->lease_number = 0;
        hello(s, node, stream);
}

static void connect_again(struct sim *s, struct ev *e) {
        worker_connect(s, (int)e->a);
}

void worker_connect(struct sim *s, int node) {
        struct snode *n = &s->nodes[node];

        if (!n->up || n->stream)
                return;
        if (!s->core || n->leaving) {
                sim_after(s, 200 * MS + sim_random(s, 300 * MS), connect_again)->a = (uint64_t)node;
                return;
        }
        n->lease_number = 0;
        n->given_up = false;
        n->stream = sim_open_stream(s, node);
        hello(s, node, n->stream);
}

/* ------------------------------------------------------------------ a node's life */
void worker_boot(struct sim *s, int node) {
        struct snode *n = &s->nodes[node];
        struct ev *e;

        if (n->up)
                return;
        n->up = true;
        n->leaving = false;
        n->changing = false;
        n->life++;
        e = sim_after(s, sim_random(s, 200 * MS), heartbeat);
        e->a = (uint64_t)node;
        e->b = n->life;
        worker_connect(s, node);
}

void worker_power_off(struct sim *s, int node) {
        struct snode *n = &s->nodes[node];

        if (!n->up)
                return;
        sim_say(s, "%s loses power", n->name);
        n->up = false;
        if (n->stream)
                sim_break_stream(s, n->stream);
        n->stream = 0;
        n->lease_until = n->lease_number = 0;
        memset(n->procs, 0, sizeof(n->procs[0]) * (size_t)n->n_procs);
        memset(n->replicas, 0, sizeof(n->replicas[0]) * (size_t)n->n_replicas);
        memset(n->listed, 0, sizeof(n->listed));
        n->n_procs = n->n_replicas = n->n_keeps = 0;
        replica_forget_told(s, node);
        s->memory_losses++;
}

void worker_leave(struct sim *s, int node) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__WorkerLeaving x = FP8CTL__V1__WORKER_LEAVING__INIT;

        x.grace_ms = 3000;
        x.reason = (char *)"spot notice";
        m.body_case = BODY(LEAVING);
        m.leaving = &x;
        s->nodes[node].said_leaving = true;
        worker_send(s, node, &m);
}

struct proc *worker_some_rank(struct sim *s, int *ret_node) {
        struct proc *found = NULL;
        uint64_t n = 0;

        for (int k = 0; k < s->n_nodes; k++)
                for (int i = 0; s->nodes[k].up && i < s->nodes[k].n_procs; i++)
                        if (s->nodes[k].procs[i].used && !s->nodes[k].procs[i].dead && sim_random(s, ++n) == 0) {
                                found = &s->nodes[k].procs[i];
                                *ret_node = k;
                        }
        return found;
}

/* After every event, where it started ranks (nothing else takes a device): no device in two jobs. */
void worker_check(struct sim *s) {
        while (s->n_started > 0) {
                uint64_t owner[SIM_BIG_DEVICES] = { 0 };
                int k = s->started[--s->n_started];

                s->nodes[k].unchecked = false;
                for (int i = 0; s->nodes[k].up && i < s->nodes[k].n_procs; i++) {
                        const struct proc *p = &s->nodes[k].procs[i];

                        if (!p->used || p->dead)
                                continue;
                        if (p->device >= (uint32_t)s->n_devices || owner[p->device])
                                sim_fail(s, "%s: device %u is held by job %" PRIu64 " and job %" PRIu64, s->nodes[k].name, p->device, owner[p->device % SIM_BIG_DEVICES], p->job);
                        else
                                owner[p->device] = p->job;
                }
        }
}
