/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_sim [--seed N] [--seeds COUNT] [--nodes N] [--pairs] [--json] [-v]
 *
 * Two or three jobs on five nodes.  Up to a minute of virtual time ranks die, streams break, nodes lose power and come back, controllers die at transactions, the store fails, workers leave;
 * then all is mended and every job must end.  In one seed of four only streams, the controller and the store fail: then nothing that was saved may be missing in the end.  Half of the
 * seeds save every few steps, so that a controller's death loses words of many saves.  Checked after every event: see worker_check, check_commit, step and on_plan.
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/core/rollout.h"
#include "tests/sim/sim.h"

static const char job_text[] = "{\"version\": 1, \"name\": \"sim\", \"priority\": %d, \"model\": {\"preset\": \"%s\"}, \"data\": {\"path\": \"/data/text\", \"seq_len\": 32},"
                               " \"parallel\": {\"tp\": 2, \"pp\": 1, \"dp\": %d}, \"train\": {\"steps\": %d, \"micro_batch\": 1, \"global_batch\": %d},"
                               " \"checkpoint\": {\"dir\": \"/ckpt/%d\", \"every_steps\": %d, \"keep_last\": %d, \"stall_timeout_ms\": 2000},"
                               " \"recovery\": {\"max_restarts\": -1, \"same_cause_limit\": %d, \"start_timeout_ms\": 20000, \"grace_ms\": 3000, \"min_dp\": %d, \"grow_delay_ms\": 2000}}";

static int replicas_of(const struct sim *s, int i) {
        if (s->big)
                return scale_replicas_of(s, i);
        return s->faults && s->seed % 2 && i == 0 ? 4 : 2;
}

static void submit(struct sim *s, int i, int limit) {
        Fp8ctl__V1__SubmitRequest q = FP8CTL__V1__SUBMIT_REQUEST__INIT;
        struct caller who = { .admin = true, .user = "sim" };
        char text[1024], id[32];

        if (!s->core)
                return;
        snprintf(text, sizeof(text), job_text, s->faults && s->seed % 3 == 0 ? i : 0, "tiny", replicas_of(s, i), s->steps, replicas_of(s, i) > 4 ? replicas_of(s, i) : 4, i, (int)s->save_every, SIM_KEEP_LAST, limit, (int)(s->seed % 2));
        snprintf(id, sizeof(id), "request-%d", i);
        q.job_file = text;
        q.request_id = id;
        s->submit_requests[i] = ++s->next_request;
        sim_enter(s);
        controller_request(s->core, s->submit_requests[i], REQ_SUBMIT, &q.base, &who);
        sim_leave(s);
}

/* A client asks again until it has an answer: what was accepted before is found by its request id. */
static void submit_until_known(struct sim *s, struct ev *e) {
        if (s->jobs[e->a])
                return;
        s->may_fail[e->a] = s->may_fail[e->a] || (s->faults && s->seed % 5 == 0 && e->a == 2); /* a limit that faults may reach */
        submit(s, (int)e->a, s->may_fail[e->a] ? 2 : 1000);
        sim_after(s, 5 * SEC, submit_until_known)->a = e->a;
}

static void boot(struct sim *s, struct ev *e) {
        worker_boot(s, (int)e->a);
}

static void cancel(struct sim *s, int i) {
        Fp8ctl__V1__CancelJobRequest q = FP8CTL__V1__CANCEL_JOB_REQUEST__INIT;
        struct caller who = { .admin = true, .user = "sim" };

        if (!s->jobs[i] || !s->core)
                return;
        q.id = s->jobs[i];
        q.now = sim_chance(s, 30);
        s->cancelled[i] = true;
        sim_say(s, "cancel job %" PRIu64, q.id);
        sim_enter(s);
        controller_request(s->core, ++s->next_request, REQ_CANCEL_JOB, &q.base, &who);
        sim_leave(s);
}

/* A rank of a job that is stopping says that it cannot go on: a failure after all. */
static void fail_while_stopping(struct sim *s, struct ev *e) {
        int node;

        for (int tries = 0; s->rank_faults && tries < 20; tries++) {
                struct proc *p = worker_some_rank(s, &node);

                if (!p || p->job != s->jobs[e->a])
                        continue;
                s->may_fail[e->a] = true;
                worker_fault(s, node, p, FP8CTL__V1__RANK_FAULT__KIND__OVERFLOW_STOP);
                return;
        }
}

static void save_now(struct sim *s, int i) {
        Fp8ctl__V1__SaveJobRequest q = FP8CTL__V1__SAVE_JOB_REQUEST__INIT;
        struct caller who = { .admin = true, .user = "sim" };

        if (!s->jobs[i] || !s->core)
                return;
        q.id = s->jobs[i];
        sim_enter(s);
        controller_request(s->core, ++s->next_request, REQ_SAVE_JOB, &q.base, &who);
        sim_leave(s);
}

static void duty(struct sim *s, int node, int which) {
        Fp8ctl__V1__SetNodeRequest q = FP8CTL__V1__SET_NODE_REQUEST__INIT;
        struct caller who = { .admin = true, .user = "sim" };

        if (!s->core)
                return;
        q.name = s->nodes[node].name;
        q.duty = (Fp8ctl__V1__SetNodeRequest__Duty)which;
        s->nodes[node].unopened = true;
        sim_say(s, "%s: duty %d", q.name, which);
        sim_enter(s);
        controller_request(s->core, ++s->next_request, REQ_SET_NODE, &q.base, &who);
        sim_leave(s);
}

static void scale(struct sim *s, int i) {
        Fp8ctl__V1__ScaleJobRequest q = FP8CTL__V1__SCALE_JOB_REQUEST__INIT;
        struct caller who = { .admin = true, .user = "sim" };

        if (!s->jobs[i] || !s->core)
                return;
        q.id = s->jobs[i];
        q.dp = UINT32_C(1) << sim_random(s, 3);
        sim_say(s, "scale job %" PRIu64 " to dp %u", q.id, q.dp);
        sim_enter(s);
        controller_request(s->core, ++s->next_request, REQ_SCALE_JOB, &q.base, &who);
        sim_leave(s);
}

/* A worker that said it leaves says hello again. */
static void changed_its_mind(struct sim *s, struct ev *e) {
        if (s->nodes[e->a].stream == e->b)
                sim_break_stream(s, e->b);
}

/* What its worker may say of a node's health: Xids of every class, checks that go bad and well, networks. */
static void health(struct sim *s, int node) {
        static const uint32_t xids[] = { 13, 31, 43, 48, 74, 79, 95, 154 };
        static const char *const verdicts[] = { "ok", "warn", "drain", "evict" };
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__HealthReport r = FP8CTL__V1__HEALTH_REPORT__INIT;
        Fp8ctl__V1__NodeFinding f = FP8CTL__V1__NODE_FINDING__INIT, *fs[1] = { &f };
        Fp8ctl__V1__NodeCheck k = FP8CTL__V1__NODE_CHECK__INIT, *ks[1] = { &k };

        if (sim_chance(s, 50)) {
                f.check = (char *)"xid";
                f.subject = (char *)(sim_chance(s, 50) ? "0000:3b:00" : "0000:5e:00");
                f.code = xids[sim_random(s, ARRAY_SIZE(xids))];
                f.device = (int32_t)sim_random(s, 3) - 1;
                r.findings = fs;
                r.n_findings = 1;
        } else {
                k.check = (char *)(sim_chance(s, 50) ? "disk" : "ib-port");
                k.network = k.check[0] == 'i';
                k.verdict = (char *)verdicts[sim_random(s, ARRAY_SIZE(verdicts))];
                k.since_unix_ms = 1;
                k.device = -1;
                r.checks = ks;
                r.n_checks = 1;
        }
        sim_say(s, "%s says of its health: %s %u %s", s->nodes[node].name, f.check, f.code, k.verdict);
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_HEALTH_REPORT;
        m.health_report = &r;
        worker_send(s, node, &m);
}

static void inject(struct sim *s, struct ev *e) {
        uint64_t what = s->rank_faults ? sim_random(s, 140) : 0;
        int node = (int)sim_random(s, (uint64_t)s->n_nodes);
        struct proc *p;

        if (!s->faults)
                return;
        s->injected++;
        if (s->rank_faults && s->seed % 16 == 9 && sim_chance(s, 30)) {
                health(s, node);
                sim_after(s, sim_random(s, 3 * SEC), inject);
                return;
        }
        if (!s->rank_faults)
                what = sim_chance(s, 50) ? 50 : sim_chance(s, 80) ? 70 : sim_chance(s, 50) ? 78 : 85; /* streams, the controller, the store */
        if (what < 45) {
                p = worker_some_rank(s, &node);
                if (p) {
                        sim_say(s, "kill job %" PRIu64 " rank %u (incarnation %" PRIu64 ") on %s", p->job, p->rank, p->incarnation, s->nodes[node].name);
                        s->kills++;
                        save_struck(s, VICTIM_RANK, p->job);
                        worker_kill(s, node, p, 9);
                }
        } else if (what < 65) {
                s->drops++;
                sim_say(s, "%s loses its stream", s->nodes[node].name);
                if (s->nodes[node].stream)
                        sim_break_stream(s, s->nodes[node].stream);
        } else if (what < 70) {
                s->losses++;
                save_struck(s, VICTIM_NODE, 0);
                worker_power_off(s, node);
                sim_after(s, SEC + sim_random(s, 20 * SEC), boot)->a = (uint64_t)node;
        } else if (what < 78) {
                if (!s->big || s->crashes < 3) /* after each, all nodes say hello */
                        sim_core_crash(s);
        } else if (what < 80 && !s->big) {
                s->fail_next_commit = true;
        } else if (what < 85) {
                worker_leave(s, node);
                if (s->nodes[node].stream && sim_chance(s, 50)) {
                        struct ev *again = sim_after(s, 100 * MS, changed_its_mind);

                        again->a = (uint64_t)node;
                        again->b = s->nodes[node].stream;
                }
        } else if (what < 88) {
                sim_say(s, "%s says hello again", s->nodes[node].name);
                worker_hello_again(s, node);
        } else if (what < 93) {
                p = worker_some_rank(s, &node);
                if (p && p->job == s->jobs[2] && sim_chance(s, 5)) {
                        s->may_fail[2] = true;
                        worker_fault(s, node, p, FP8CTL__V1__RANK_FAULT__KIND__OVERFLOW_STOP);
                } else if (p)
                        worker_fault(s, node, p, sim_chance(s, 30) ? FP8CTL__V1__RANK_FAULT__KIND__OVERFLOW_ROLLBACK : sim_chance(s, 50) ? FP8CTL__V1__RANK_FAULT__KIND__TIMEOUT : FP8CTL__V1__RANK_FAULT__KIND__FATAL);
        } else if (what < 97) {
                save_now(s, (int)sim_random(s, (uint64_t)s->n_jobs));
        } else if (what >= 132) {
                sim_replay(s);
        } else if (what >= 124) {
                sim_partition(s, node, sim_random(s, sim_chance(s, 30) ? 25 * SEC : 3 * SEC), 1 + (int)sim_random(s, 3));
        } else if (what >= 121) {
                s->wall_off += (int64_t)sim_random(s, 7200000) - 3600000;
                sim_say(s, "the controller's wall clock jumps to %+" PRId64 " ms", s->wall_off);
        } else if (what >= 118) {
                for (int i = 0, n = 2 + (int)sim_random(s, 2); i < n; i++) {
                        int k = (node + i) % s->n_nodes;

                        s->losses++;
                        worker_power_off(s, k);
                        sim_after(s, SEC + sim_random(s, 20 * SEC), boot)->a = (uint64_t)k;
                }
        } else if (what >= 116) {
                sim_partition(s, node, 2 * SEC + sim_random(s, 12 * SEC), 3); /* a switch */
                sim_partition(s, (node + 1) % s->n_nodes, 2 * SEC + sim_random(s, 12 * SEC), 3);
        } else if (what >= 112) {
                duty(s, node, (int)sim_random(s, 3));
        } else if (what >= 104) {
                scale(s, (int)sim_random(s, (uint64_t)s->n_jobs));
        } else if (what < 100) {
                if (s->n_jobs > 2) {
                        cancel(s, s->n_jobs - 1);
                        if (sim_chance(s, 60))
                                sim_after(s, sim_random(s, 40 * MS), fail_while_stopping)->a = (uint64_t)s->n_jobs - 1;
                }
        } else {
                sim_say(s, "the worker process of %s starts anew", s->nodes[node].name);
                save_struck(s, VICTIM_WORKER, 0);
                save_forget(s, node);
                replica_forget_told(s, node);
                if (s->nodes[node].stream)
                        sim_break_stream(s, s->nodes[node].stream);
        }
        sim_after(s, sim_random(s, s->big ? 300 * MS : 3 * SEC), inject);
}

static void open_all(struct sim *s, struct ev *e) {
        for (int i = 0; i < s->n_nodes; i++)
                if (!s->big || s->nodes[i].unopened)
                        duty(s, i, FP8CTL__V1__SET_NODE_REQUEST__DUTY__OPEN);
}

static void mend(struct sim *s, struct ev *e) {
        if (s->mended)
                return;
        sim_after(s, 5 * SEC, open_all); /* by then there is a controller, and it stays */
        s->mended = true;
        sim_say(s, "no more faults");
        s->faults = s->rank_faults = s->fail_next_commit = false;
        s->calm_at = s->files_done > s->now ? s->files_done : s->now; /* storage that stalls still does */
        for (int i = 0; i < s->n_nodes; i++)
                worker_boot(s, i);
        for (int i = 0; i < s->n_nodes; i++) /* one that said it leaves and did not is started again */
                if (s->nodes[i].stream)
                        sim_break_stream(s, s->nodes[i].stream);
}


static bool all_ended(struct sim *s) {
        bool ended = true;

        for (int i = 0; i < s->n_jobs; i++) {
                Fp8ctl__V1__JobRecord *r;

                if (!s->jobs[i])
                        return false;
                r = sim_stored_job(s, s->jobs[i]);
                if (!r) {
                        sim_fail(s, "job %" PRIu64 " is forgotten", s->jobs[i]);
                        continue;
                }
                s->job_state[i] = r->job->state;
                s->job_restarts[i] = r->job->restarts;
                snprintf(s->job_reason[i], sizeof(s->job_reason[i]), "%s", r->job->reason);
                ended = ended && r->job->state >= FP8CTL__V1__JOB_STATE__COMPLETED;
                fp8ctl__v1__job_record__free_unpacked(r, NULL);
        }
        return ended;
}

/* Jobs that ended leave nothing behind: half a minute later every device is free. */
static void check_all_free(struct sim *s) {
        Fp8ctl__V1__StatusRequest q = FP8CTL__V1__STATUS_REQUEST__INIT;
        struct caller who = { .admin = true, .user = "sim" };
        uint64_t until = s->now + 30 * SEC;

        mend(s, NULL);
        while (s->failures == 0 && s->now < until && sim_turn(s))
                worker_check(s);
        if (!s->core || s->failures)
                return;
        s->status_request = ++s->next_request;
        sim_enter(s);
        controller_request(s->core, s->status_request, REQ_STATUS, &q.base, &who);
        sim_leave(s);
        until = s->now + SEC;
        while (s->now < until && sim_turn(s))
                worker_check(s);
        if (s->devices_total != (uint32_t)(s->n_nodes * s->n_devices) || s->devices_free != s->devices_total)
                sim_fail(s, "all jobs have ended and %u of %u devices are free", s->devices_free, s->devices_total);
}

/* Each of its checkpoints was found bad: the one end that is not COMPLETED. */
static bool cannot_load(const struct sim *s, int i) {
        return s->job_state[i] == FP8CTL__V1__JOB_STATE__FAILED && strstr(s->job_reason[i], "no other checkpoint of the job is left to load");
}

/* Devices as nodes have them, and room for what all of them together do at a time. */
static void make_nodes(struct sim *s, int nodes) {
        s->big = nodes > SIM_NODES;
        s->n_nodes = nodes;
        s->n_devices = s->big ? SIM_BIG_DEVICES : SIM_DEVICES;
        s->nodes = calloc((size_t)nodes, sizeof(*s->nodes));
        s->group = calloc(SIM_WORLD_MAX, sizeof(*s->group));
        s->group_node = calloc(SIM_WORLD_MAX, sizeof(*s->group_node));
        if (!s->nodes || !s->group || !s->group_node)
                abort();
}

static int run(uint64_t seed, bool verbose, bool faults, int nodes, struct sim *total) {
        static struct sim s;
        uint64_t next_look = 0, began = clock_mono_ns();
        int failures;

        memset(&s, 0, sizeof(s));
        make_nodes(&s, nodes);
        s.seed = s.rng = seed;
        s.verbose = verbose;
        s.faults = faults;
        s.steps = s.big ? 60 : faults ? 400 : 30;
        s.rank_faults = faults && seed % 4 != 3;
        s.rank_faults_ever = s.rank_faults;
        s.calm_at = s.rank_faults ? UINT64_MAX : 0;
        s.save_every = seed % 4 >= 2 ? 1 + sim_random(&s, 4) : 10;
        s.n_jobs = s.big ? 12 : faults ? 3 : 2;
        s.crash_at_flush = faults && !s.big ? 1 + sim_random(&s, 100) : 0;
        sim_core_start(&s);
        for (int i = 0; i < s.n_nodes; i++) {
                snprintf(s.nodes[i].name, sizeof(s.nodes[i].name), "node-%d", i);
                worker_boot(&s, i);
        }
        for (int i = 0; i < s.n_jobs; i++)
                sim_after(&s, SEC + (uint64_t)i * SEC, submit_until_known)->a = (uint64_t)i;
        rollouts_begin(&s);
        if (faults) {
                sim_after(&s, 2 * SEC, inject);
                sim_after(&s, (seed % 8 == 1 && !s.big ? 5 + sim_random(&s, 15) : 60) * SEC, mend);
        }
        while (s.failures == 0 && s.now < 600 * SEC && sim_turn(&s)) {
                s.turns++;
                worker_check(&s);
                if (s.now >= next_look) {
                        next_look = s.now + SEC;
                        if (all_ended(&s))
                                break;
                }
        }
        if (s.failures == 0 && !all_ended(&s))
                for (int i = 0; i < s.n_jobs; i++)
                        sim_fail(&s, "job %" PRIu64 " is in state %d (%s) at step %" PRIu64 " after %.0f s, expected an end", s.jobs[i], s.job_state[i], s.job_reason[i], s.best[s.jobs[i] % 16],
                                 (double)s.now / 1e9);
        for (int i = 0; s.failures == 0 && i < s.n_jobs; i++) {
                if (s.job_state[i] != FP8CTL__V1__JOB_STATE__COMPLETED && !(s.cancelled[i] && s.job_state[i] == FP8CTL__V1__JOB_STATE__CANCELLED) && !cannot_load(&s, i) && !(s.may_fail[i] && s.job_state[i] == FP8CTL__V1__JOB_STATE__FAILED))
                        sim_fail(&s, "job %" PRIu64 " ended in state %d (%s), expected COMPLETED", s.jobs[i], s.job_state[i], s.job_reason[i]);
                if (s.job_state[i] == FP8CTL__V1__JOB_STATE__COMPLETED)
                        save_check_kept(&s, s.jobs[i]);
                if (faults && seed % 4 == 3 && !s.lease_kills && s.job_restarts[i] != 0)
                        sim_fail(&s, "job %" PRIu64 " had %u recoveries, expected none: only streams, the controller and the store failed", s.jobs[i], s.job_restarts[i]);
        }
        if (s.failures == 0)
                check_all_free(&s);
        rollouts_end(&s);
        for (int v = 0; v < N_VICTIMS; v++)
                for (int k = 0; k < N_SIM_SAVES; k++)
                        total->struck[v][k] += s.struck[v][k];
        total->kills += s.kills;
        total->injected += s.injected;
        total->turns += s.turns;
        total->crashes += s.crashes;
        total->drops += s.drops;
        total->losses += s.losses;
        total->commits += s.commits;
        total->recoveries += s.recoveries;
        total->from_peers += s.from_peers;
        total->relayouts += s.relayouts;
        total->rollouts_done += s.rollouts_done;
        if (s.big)
                scale_print(&s, clock_mono_ns() - began);
        total->rescued += s.rescued;
        failures = s.failures;
        sim_free(&s);
        return failures;
}

/* ------------------------------------------------------------------ which moves of the core's tables were made */
static const struct table *const tables[] = { &job_table, &recovery_table, &node_table, &save_table, &rollout_table, &rollout_node_table };
static uint64_t moves[ARRAY_SIZE(tables)][64];

int __real_table_step(const struct table *t, int *state, int event, void *ctx, const void *arg, struct error *e);
int __wrap_table_step(const struct table *t, int *state, int event, void *ctx, const void *arg, struct error *e);

/* The linker puts it in table_step's place (--wrap). */
int __wrap_table_step(const struct table *t, int *state, int event, void *ctx, const void *arg, struct error *e) {
        const struct table_row *row = table_find(t, *state, event);

        for (size_t i = 0; row && i < ARRAY_SIZE(tables); i++)
                if (tables[i] == t)
                        moves[i][row - t->rows]++;
        return __real_table_step(t, state, event, ctx, arg, e);
}

/* How many are left; each is named. */
static size_t print_moves(bool all) {
        size_t n = 0, reached = 0;

        for (size_t i = 0; i < ARRAY_SIZE(tables); i++)
                for (size_t k = 0; k < tables[i]->n_rows; k++) {
                        const struct table_row *r = &tables[i]->rows[k];

                        n++;
                        reached += moves[i][k] > 0;
                        if (all || !moves[i][k])
                                printf("  %-9s %-11s %-11s -> %-11s %10" PRIu64 "%s\n", tables[i]->name, tables[i]->states[r->from], tables[i]->events[r->event], tables[i]->states[r->to],
                                       moves[i][k], moves[i][k] ? "" : " never");
                }
        printf("%zu of %zu (state, event) pairs reached\n", reached, n);
        return n - reached;
}

/* One line, to be added up by tests/sim/run. */
static void print_json(const struct sim *total, uint64_t first, uint64_t seeds, const uint64_t *failed, size_t n_failed) {
        printf("{\"from\": %" PRIu64 ", \"seeds\": %" PRIu64 ", \"events\": %" PRIu64 ", \"faults\": %" PRIu64 ", \"commits\": %" PRIu64 ", \"controller_deaths\": %" PRIu64 ", \"recoveries\": %" PRIu64
               ", \"failed\": [",
               first, seeds, total->turns, total->injected, total->commits, total->crashes, total->recoveries);
        for (size_t i = 0; i < n_failed; i++)
                printf("%s%" PRIu64, i ? ", " : "", failed[i]);
        printf("], \"pairs\": {");
        for (size_t i = 0, n = 0; i < ARRAY_SIZE(tables); i++)
                for (size_t k = 0; k < tables[i]->n_rows; k++, n++) {
                        const struct table_row *r = &tables[i]->rows[k];

                        printf("%s\"%s %s %s\": %" PRIu64, n ? ", " : "", tables[i]->name, tables[i]->states[r->from], tables[i]->events[r->event], moves[i][k]);
                }
        printf("}}\n");
}

/* Seeds to try first: such as show what few do. */
static uint64_t first[8];
static size_t n_first;

#ifdef FP8_PLANTED
enum plant planted;

/* 0: the simulation found each of them. */
static int run_plants(uint64_t seed, uint64_t seeds, const char *only) {
#define PLANT_NAME(id, name) name,
        static const char *const names[N_PLANTS] = { "none", PLANTS(PLANT_NAME) };
        static struct sim total;
        int missed = 0;

        for (int k = PLANT_NONE + 1; k < N_PLANTS; k++) {
                uint64_t by = 0, i = 0;

                if (only && strcmp(only, names[k]) != 0)
                        continue;
                planted = (enum plant)k;
                for (; i < n_first + seeds; i++) {
                        by = i < n_first ? first[i] : seed + i - n_first;
                        if (run(by, false, true, SIM_NODES, &total) != 0)
                                break;
                }
                if (i < n_first + seeds)
                        printf("ok  %s is found by seed %" PRIu64 "\n", names[k], by);
                else
                        printf("%s was not found by %" PRIu64 " seeds\n", names[k], seeds);
                missed += i == n_first + seeds;
                fflush(stdout);
        }
        return missed;
}
#else
static int run_plants(uint64_t seed, uint64_t seeds, const char *only) {
        fprintf(stderr, "this core has no mistakes planted: test-sim-planted has\n");
        return 2;
}
#endif

int main(int argc, char **argv) {
        static const struct option options[] = { { "seed", required_argument, NULL, 's' }, { "seeds", required_argument, NULL, 'n' }, { "pairs", no_argument, NULL, 'p' }, { "json", no_argument, NULL, 'j' }, { "nodes", required_argument, NULL, 'N' }, { "plants", no_argument, NULL, 'P' }, { "plant", required_argument, NULL, 'o' }, { "first", required_argument, NULL, 'f' }, { NULL, 0, NULL, 0 } };
        static struct sim total;
        static uint64_t failed[1000]; /* the first so many are named */
        uint64_t seed = 1, seeds = 1, bad = 0;
        bool verbose = false, pairs = false, plants = false, json = false;
        const char *only = NULL;
        int opt, nodes = SIM_NODES;

        while ((opt = getopt_long(argc, argv, "s:n:pv", options, NULL)) != -1)
                switch (opt) {
                case 's': seed = strtoull(optarg, NULL, 10); break;
                case 'n': seeds = strtoull(optarg, NULL, 10); break;
                case 'p': pairs = true; break;
                case 'j': json = true; break;
                case 'N': nodes = atoi(optarg); break;
                case 'o': only = optarg; /* fall through */
                case 'P': plants = true; break;
                case 'f': /* of --plants */
                        if (n_first < ARRAY_SIZE(first))
                                first[n_first++] = strtoull(optarg, NULL, 10);
                        break;
                case 'v': verbose = true; break;
                default: return 2;
                }
        if (plants)
                return run_plants(seed, seeds, only);
        if (nodes < SIM_NODES || nodes > 20000) {
                fprintf(stderr, "--nodes: found %d, expected %d to 20000\n", nodes, SIM_NODES);
                return 2;
        }
        if (run(0, verbose && seed == 0, false, SIM_NODES, &total) != 0) {
                printf("the undisturbed run failed\n");
                return 1;
        }
        for (uint64_t i = 0; i < seeds && seed > 0; i++)
                if (run(seed + i, verbose, true, nodes, &total) != 0) {
                        if (bad < ARRAY_SIZE(failed))
                                failed[bad] = seed + i;
                        bad++;
                }
        if (json) {
                print_json(&total, seed, seeds, failed, bad < ARRAY_SIZE(failed) ? bad : ARRAY_SIZE(failed));
                return bad ? 1 : 0;
        }
        printf("%" PRIu64 " seeds, %" PRIu64 " failed; %" PRIu64 " kills, %" PRIu64 " node losses, %" PRIu64 " broken streams, %" PRIu64 " controller deaths, %" PRIu64 " recoveries, %" PRIu64
               " commits, %" PRIu64 " slices from peers, %" PRIu64 " changes of dp, %" PRIu64 " commits of replica memory, %" PRIu64 " rollouts done\n",
               seeds, bad, total.kills, total.losses, total.drops, total.crashes, total.recoveries, total.commits, total.from_peers, total.relayouts, total.rescued, total.rollouts_done);
        if (pairs)
                print_moves(false);
        save_print_struck(&total);
        return bad ? 1 : 0;
}
