/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rollouts in one seed of sixteen: an administrator who begins them, looks when one has stopped, and goes on or gives up; workers whose program changes their node, fails, or takes the worker with it.  What the store
 * says is checked whenever a move lands: shares, nodes away, failures and rates; and no rank may live on a node that is being changed.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "tests/sim/sim.h"

#define BODY(x) FP8CTL__V1__WORKER_MESSAGE__BODY_##x
#define LOOK (2 * SEC)

static const struct caller admin = { .admin = true, .user = "sim" };

bool rollouts_on(const struct sim *s) {
        return s->rank_faults_ever && s->seed % 16 == 5 && !s->big;
}

/* ------------------------------------------------------------------ workers */
static void tell_facts(struct sim *s, int node) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__HealthReport r = FP8CTL__V1__HEALTH_REPORT__INIT;
        Fp8ctl__V1__NodeFact f = FP8CTL__V1__NODE_FACT__INIT, *list[1] = { &f };
        char value[16];

        snprintf(value, sizeof(value), "%d", s->nodes[node].version);
        f.key = (char *)"site.version";
        f.value = value;
        r.facts = list;
        r.n_facts = 1;
        m.body_case = BODY(HEALTH_REPORT);
        m.health_report = &r;
        worker_send(s, node, &m);
}

void rollout_welcomed(struct sim *s, int node) {
        if (rollouts_on(s))
                tell_facts(s, node);
}

static bool same_life(const struct sim *s, const struct ev *e) {
        return s->nodes[e->a].up && s->nodes[e->a].life == e->b;
}

static struct ev *later(struct sim *s, int node, uint64_t most, void (*fn)(struct sim *, struct ev *)) {
        struct ev *e = sim_after(s, sim_random(s, most), fn);

        e->a = (uint64_t)node;
        e->b = s->nodes[node].life;
        return e;
}

/* The program has ended. */
static void changed(struct sim *s, struct ev *e) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__RolloutChanged x = FP8CTL__V1__ROLLOUT_CHANGED__INIT;
        int node = (int)e->a;
        bool bad = s->faults && sim_chance(s, 8), restarts = sim_chance(s, 20);

        if (!same_life(s, e))
                return;
        s->nodes[node].changing = false;
        if (!bad)
                s->nodes[node].version = (int)e->d;
        sim_say(s, "%s: its program has ended%s%s", s->nodes[node].name, bad ? ", badly" : "", restarts ? ", and its worker with it" : "");
        if (restarts && s->nodes[node].stream) {
                sim_break_stream(s, s->nodes[node].stream);
                return;
        }
        x.rollout = e->c;
        x.error = (char *)(bad ? "exit code 1" : "");
        m.body_case = BODY(ROLLOUT_CHANGED);
        m.rollout_changed = &x;
        worker_send(s, node, &m);
        tell_facts(s, node);
}

void rollout_ordered(struct sim *s, int node, const Fp8ctl__V1__RolloutChange *m) {
        struct snode *n = &s->nodes[node];
        struct ev *e;

        for (int i = 0; i < n->n_procs; i++)
                if (n->procs[i].used && !n->procs[i].dead)
                        sim_fail(s, "%s is to be changed while rank %u of job %" PRIu64 " lives there", n->name, n->procs[i].rank, n->procs[i].job);
        if (n->changing)
                return;
        n->changing = true;
        e = later(s, node, 3 * SEC, changed);
        e->c = m->rollout;
        e->d = strtoull(m->value, NULL, 10);
}

static void tested(struct sim *s, struct ev *e) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__NodeTestReply r = FP8CTL__V1__NODE_TEST_REPLY__INIT;
        Fp8ctl__V1__NodeTest t = FP8CTL__V1__NODE_TEST__INIT;

        if (!same_life(s, e))
                return;
        t.error = (char *)(s->faults && sim_chance(s, 8) ? "no device" : "");
        r.request = e->c;
        r.test = &t;
        m.body_case = BODY(NODE_TEST_REPLY);
        m.node_test_reply = &r;
        worker_send(s, (int)e->a, &m);
}

void rollout_test(struct sim *s, int node, const Fp8ctl__V1__NodeTestRequest *m) {
        later(s, node, 2 * SEC, tested)->c = m->request;
}

/* ------------------------------------------------------------------ the store */
/* The newest; NULL: none. Its nodes' records are in ret, *ret_n of them. */
static Fp8ctl__V1__RolloutRecord *newest(const struct sim *s, Fp8ctl__V1__RolloutNodeRecord *ret[SIM_NODES], size_t *ret_n) {
        Fp8ctl__V1__RolloutRecord *r = NULL;

        *ret_n = 0;
        for (size_t i = 0; i < s->n_store; i++)
                if (strncmp(s->store[i].key, "rollout/", 8) == 0) {
                        if (r)
                                fp8ctl__v1__rollout_record__free_unpacked(r, NULL);
                        r = fp8ctl__v1__rollout_record__unpack(NULL, s->store[i].len, s->store[i].value);
                }
        for (size_t i = 0; r && i < s->n_store && *ret_n < SIM_NODES; i++) {
                Fp8ctl__V1__RolloutNodeRecord *k = strncmp(s->store[i].key, "rollout-node/", 13) == 0 ? fp8ctl__v1__rollout_node_record__unpack(NULL, s->store[i].len, s->store[i].value) : NULL;

                if (k && k->rollout == r->rollout->id)
                        ret[(*ret_n)++] = k;
                else if (k)
                        fp8ctl__v1__rollout_node_record__free_unpacked(k, NULL);
        }
        return r;
}

static void drop(Fp8ctl__V1__RolloutRecord *r, Fp8ctl__V1__RolloutNodeRecord **list, size_t n) {
        for (size_t i = 0; i < n; i++)
                fp8ctl__v1__rollout_node_record__free_unpacked(list[i], NULL);
        if (r)
                fp8ctl__v1__rollout_record__free_unpacked(r, NULL);
}

static bool is(const char *state, const char *names) {
        return strstr(names, state) != NULL;
}

/* All terms, each by itself: the chance that of n failures x or more fall on the first. */
static double by_chance(uint64_t x, uint64_t n, double q) {
        double p = 0;

        for (uint64_t k = x; k <= n; k++) {
                double term = pow(q, (double)k) * pow(1 - q, (double)(n - k));

                for (uint64_t i = 1; i <= k; i++)
                        term *= (double)(n - k + i) / (double)i;
                p += term;
        }
        return p;
}

/* It went on to the next stage, or is done: as its own figures say. */
static void check_rate(struct sim *s, const Fp8ctl__V1__Rollout *r) {
        double all = r->changed_hours + r->other_hours, p;

        if (!(r->changed_hours > 0 && r->other_hours > 0))
                return;
        p = by_chance(r->changed_failures, r->changed_failures + r->other_failures, r->changed_hours / all);
        if (p <= r->alpha * (1 - 1e-9) || fabs(p - r->p) > 1e-6)
                sim_fail(s, "rollout %s went on: %u failures in %g changed node hours, %u in %g others: p = %g (it says %g), expected more than %g", r->name, r->changed_failures, r->changed_hours, r->other_failures,
                         r->other_hours, p, r->p, r->alpha);
}

void rollout_check(struct sim *s) {
        Fp8ctl__V1__RolloutNodeRecord *nodes[SIM_NODES];
        size_t n, begun = 0, away = 0, failed = 0, again = 0, share;
        Fp8ctl__V1__RolloutRecord *rec = newest(s, nodes, &n);
        const Fp8ctl__V1__Rollout *r = rec ? rec->rollout : NULL;
        struct sim_rollout now = { 0 };

        if (!r) {
                drop(rec, nodes, n);
                return;
        }
        for (size_t i = 0; i < n; i++) {
                begun += !is(nodes[i]->node->state, "pending");
                away += is(nodes[i]->node->state, "draining changing testing");
                failed += is(nodes[i]->node->state, "failed");
                again += is(nodes[i]->node->state, "failed") && nodes[i]->node->again;
        }
        share = (n * r->stages[r->stage] + 99) / 100;
        if (begun > share || away > r->max_unavailable)
                sim_fail(s, "rollout %s, %u%%: found %zu of %zu nodes begun and %zu away, expected at most %zu and %u", r->name, r->stages[r->stage], begun, n, away, share, r->max_unavailable);
        if (is(r->state, "running") && failed - again > r->max_failed)
                sim_fail(s, "rollout %s goes on with %zu failed nodes, expected at most %u", r->name, failed - again, r->max_failed);
        now = (struct sim_rollout){ .id = r->id, .stage = r->stage, .begun = begun, .stopped = is(r->state, "stopped"), .ended = is(r->state, "done aborted") };
        if (now.id == s->rollout.id) {
                if (now.stage < s->rollout.stage || now.stage > s->rollout.stage + 1 || (s->rollout.ended && !now.ended))
                        sim_fail(s, "rollout %s: found stage %u (%s) after stage %u", r->name, r->stage, r->state, s->rollout.stage);
                if (now.stopped && s->rollout.stopped && begun > s->rollout.begun)
                        sim_fail(s, "rollout %s is stopped and has begun another node", r->name);
                if (now.stage > s->rollout.stage || (is(r->state, "done") && !s->rollout.ended))
                        check_rate(s, r);
        }
        s->rollouts_done += is(r->state, "done") && !s->rollout.ended;
        s->rollout = now;
        drop(rec, nodes, n);
}

/* ------------------------------------------------------------------ the administrator */
/* A controller may die of any request. */
static void ask(struct sim *s, enum request_kind kind, const ProtobufCMessage *q) {
        if (!s->core)
                return;
        sim_enter(s);
        controller_request(s->core, ++s->next_request, kind, q, &admin);
        sim_leave(s);
}

static void begin(struct sim *s) {
        Fp8ctl__V1__StartRolloutRequest q = FP8CTL__V1__START_ROLLOUT_REQUEST__INIT;
        uint32_t stages[] = { 20, 60, 100 };
        char value[16];

        snprintf(value, sizeof(value), "%d", ++s->version);
        q.fact = (char *)"site.version";
        q.value = value;
        q.stages = stages + sim_random(s, 2);
        q.n_stages = q.stages == stages ? 3 : 2;
        q.soak_ms = sim_random(s, 3000);
        q.change_ms = 15000;
        q.max_failed = (uint32_t)sim_random(s, 2);
        q.max_unavailable = 1 + (uint32_t)sim_random(s, 2);
        sim_say(s, "a rollout to version %d", s->version);
        ask(s, REQ_START_ROLLOUT, &q.base);
}

static void set(struct sim *s, Fp8ctl__V1__SetRolloutRequest__Action action) {
        Fp8ctl__V1__SetRolloutRequest q = FP8CTL__V1__SET_ROLLOUT_REQUEST__INIT;

        q.action = action;
        sim_say(s, "rollout: action %d", (int)action);
        ask(s, REQ_SET_ROLLOUT, &q.base);
}

/* Nodes that failed are looked at and take ranks again. */
static void open_failed(struct sim *s) {
        Fp8ctl__V1__RolloutNodeRecord *nodes[SIM_NODES];
        size_t n;
        Fp8ctl__V1__RolloutRecord *rec = newest(s, nodes, &n);

        for (size_t i = 0; i < n; i++) {
                Fp8ctl__V1__SetNodeRequest q = FP8CTL__V1__SET_NODE_REQUEST__INIT;

                if (!is(nodes[i]->node->state, "failed"))
                        continue;
                q.name = nodes[i]->node->name;
                ask(s, REQ_SET_NODE, &q.base);
        }
        drop(rec, nodes, n);
}

static void look(struct sim *s, struct ev *e) {
        sim_after(s, LOOK, look);
        if ((!s->rollout.id || s->rollout.ended) && !s->mended && sim_chance(s, 40))
                begin(s);
        else if (s->rollout.stopped || s->rollout.ended)
                open_failed(s);
        if (s->rollout.stopped && (!s->mended || sim_chance(s, 50)))
                set(s, sim_chance(s, 80) ? FP8CTL__V1__SET_ROLLOUT_REQUEST__ACTION__RESUME : FP8CTL__V1__SET_ROLLOUT_REQUEST__ACTION__ABORT);
        else if (!s->mended && s->rollout.id && !s->rollout.ended && sim_chance(s, 5))
                set(s, sim_chance(s, 70) ? FP8CTL__V1__SET_ROLLOUT_REQUEST__ACTION__STOP : FP8CTL__V1__SET_ROLLOUT_REQUEST__ACTION__ABORT);
}

void rollouts_begin(struct sim *s) {
        s->version = 1;
        for (int i = 0; i < s->n_nodes; i++)
                s->nodes[i].version = 1;
        if (rollouts_on(s))
                sim_after(s, 3 * SEC, look);
}

/* Without faults each ends, or stops for a reason. */
void rollouts_end(struct sim *s) {
        uint64_t until = s->now + 120 * SEC;

        while (s->failures == 0 && s->rollout.id && !s->rollout.ended && s->now < until && sim_turn(s))
                worker_check(s);
        if (s->failures == 0 && s->rollout.id && !s->rollout.ended)
                sim_fail(s, "rollout %" PRIu64 " is in stage %u after two minutes without faults, expected its end", s->rollout.id, s->rollout.stage);
}
