/* SPDX-License-Identifier: Apache-2.0 */
/*
 * controller [-o table|json] [--nodes N] [--rounds R]: nanoseconds that the controller's core takes for an event, by kind of event, on clusters of 100, 1,000 and 10,000 nodes (or N) of
 * eight devices, nine tenths of them taken by jobs of 8 to 1,024 ranks.
 *
 * Workers answer at once what they are told; in every round (a second of virtual time) each node sends a heartbeat with the progress of its ranks, and a rank of another job dies.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/opt.h"
#include "bench/report.h"
#include "daemon/core/controller.h"

#define BODY(x) FP8CTL__V1__WORKER_MESSAGE__BODY_##x
#define TOLD(x) FP8CTL__V1__CONTROLLER_MESSAGE__BODY_##x

enum { DEVICES = 8 };
enum kind { K_HELLO, K_SUBMIT, K_READY, K_PARKED, K_RUNNING, K_EXITED, K_INVENTORY, K_HEARTBEAT, K_TICK, N_KINDS };
static const char *const kind_names[N_KINDS] = { "hello", "submit", "rank_ready", "rank_parked", "rank_running", "rank_exited", "inventory", "heartbeat", "tick" };

struct live {
        uint64_t job, epoch, incarnation;
        uint32_t rank;
};

struct host {
        uint64_t lease;
        struct live ranks[DEVICES]; /* by device; job 0: none */
};

/* What a worker was told and has not done yet. */
struct told {
        size_t host;
        Fp8ctl__V1__ControllerMessage *m;
};

struct bench {
        struct controller *c;
        uint64_t now, wake, step, jobs, taken;
        struct host *hosts; /* [n]; session of host i: i + 1 */
        size_t n;
        struct told *queue;
        size_t n_queue, room, done;
        uint64_t ns[N_KINDS], events[N_KINDS], worst[N_KINDS];
        int status;
        char error[300];
};

static uint64_t io_mono(void *arg) {
        return ((struct bench *)arg)->now;
}
static uint64_t io_wall(void *arg) {
        return UINT64_C(1700000000000) + ((struct bench *)arg)->now / NSEC_PER_MSEC;
}
static void io_random(void *arg, void *buf, size_t len) {
        memset(buf, 7, len);
}
static void io_persist(void *arg, const struct store_op *op) {
}
static void io_close(void *arg, uint64_t session, int status, const char *why) {
}
static void io_file(void *arg, const struct file_work *w) {
}
static void io_reply(void *arg, uint64_t request, int status, const char *error, const ProtobufCMessage *m) {
        struct bench *b = arg;

        b->status = status;
        snprintf(b->error, sizeof(b->error), "%s", error ? error : "");
}
static void io_wake(void *arg, uint64_t at) {
        struct bench *b = arg;

        if (!b->wake || at < b->wake)
                b->wake = at;
}

/* Packed and unpacked, as on the wire. */
static void io_send(void *arg, uint64_t session, const Fp8ctl__V1__ControllerMessage *m) {
        struct bench *b = arg;
        size_t len = fp8ctl__v1__controller_message__get_packed_size(m);
        _cleanup_free_ uint8_t *buf = malloc(len + 1);

        if (m->body_case == TOLD(WELCOME))
                b->hosts[session - 1].lease = m->welcome->lease_number;
        if (m->body_case == TOLD(HEARTBEAT_ACK) || m->body_case == TOLD(WELCOME))
                return;
        if (b->n_queue == b->room) {
                b->room = b->room ? 2 * b->room : 1024;
                b->queue = realloc(b->queue, b->room * sizeof(*b->queue));
        }
        if (!buf || !b->queue)
                abort();
        fp8ctl__v1__controller_message__pack(m, buf);
        b->queue[b->n_queue++] = (struct told){ session - 1, fp8ctl__v1__controller_message__unpack(NULL, len, buf) };
}

static void count(struct bench *b, enum kind k, uint64_t began) {
        uint64_t ns = clock_mono_ns() - began;

        b->ns[k] += ns;
        b->events[k]++;
        if (ns > b->worst[k])
                b->worst[k] = ns;
}

static void say(struct bench *b, enum kind k, size_t host, const Fp8ctl__V1__WorkerMessage *m) {
        uint64_t began = clock_mono_ns();

        controller_worker_message(b->c, host + 1, m);
        count(b, k, began);
}

#define SAY(b_, kind_, host_, live_, case_, field_, x_)                          \
        do {                                                                     \
                Fp8ctl__V1__WorkerMessage m_ = FP8CTL__V1__WORKER_MESSAGE__INIT; \
                (x_).job_id = (live_)->job;                                      \
                (x_).epoch = (live_)->epoch;                                     \
                (x_).rank = (live_)->rank;                                       \
                (x_).incarnation = (live_)->incarnation;                         \
                m_.body_case = BODY(case_);                                      \
                m_.field_ = &(x_);                                               \
                say((b_), (kind_), (host_), &m_);                                \
        } while (0)

static void hello(struct bench *b, size_t i) {
        Fp8ctl__V1__NodeDevice d[DEVICES], *ds[DEVICES];
        Fp8ctl__V1__Node n = FP8CTL__V1__NODE__INIT;
        Fp8ctl__V1__WorkerHello h = FP8CTL__V1__WORKER_HELLO__INIT;
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        struct caller who = { .admin = true, .user = "bench" };
        char name[32];

        for (uint32_t k = 0; k < DEVICES; k++) {
                fp8ctl__v1__node_device__init(&d[k]);
                d[k].index = k;
                d[k].kind = (char *)"cpu";
                ds[k] = &d[k];
        }
        snprintf(name, sizeof(name), "node-%05zu", i);
        n.name = name;
        n.devices = ds;
        n.n_devices = DEVICES;
        h.protocol_min = h.protocol_max = 1;
        h.node = &n;
        m.body_case = BODY(HELLO);
        m.hello = &h;
        controller_worker_opened(b->c, i + 1, &who);
        say(b, K_HELLO, i, &m);
}

static int submit(struct bench *b, int dp) {
        static const char job[] = "{\"version\": 1, \"name\": \"j\", \"model\": {\"preset\": \"tiny\"}, \"data\": {\"path\": \"/data\", \"seq_len\": 32}, \"parallel\": {\"tp\": 2, \"dp\": %d},"
                                  " \"train\": {\"steps\": 1000000, \"global_batch\": %d, \"micro_batch\": 1}, \"checkpoint\": {\"dir\": \"/ckpt%" PRIu64 "\", \"every_steps\": 1000000},"
                                  " \"recovery\": {\"max_restarts\": -1, \"same_cause_limit\": 1000}}";
        Fp8ctl__V1__SubmitRequest q = FP8CTL__V1__SUBMIT_REQUEST__INIT;
        struct caller who = { .admin = true, .user = "bench" };
        uint64_t began;
        char text[1024];

        snprintf(text, sizeof(text), job, dp, dp, b->jobs);
        q.job_file = text;
        q.skip_preflight = true;
        began = clock_mono_ns();
        controller_request(b->c, 1, REQ_SUBMIT, &q.base, &who);
        count(b, K_SUBMIT, began);
        b->jobs++;
        b->taken += 2 * (uint64_t)dp;
        return b->status;
}

/* ------------------------------------------------------------------ workers on which everything goes well */
static void start_ranks(struct bench *b, size_t host, const Fp8ctl__V1__StartRanks *s) {
        for (size_t i = 0; i < s->n_ranks; i++) {
                Fp8ctl__V1__RankReady x = FP8CTL__V1__RANK_READY__INIT;
                struct live *l = &b->hosts[host].ranks[s->ranks[i]->device];

                *l = (struct live){ s->job_id, s->epoch, s->ranks[i]->incarnation, s->ranks[i]->rank };
                x.endpoint = (char *)"unix:/w";
                x.fingerprint = (char *)"bench";
                SAY(b, K_READY, host, l, RANK_READY, rank_ready, x);
        }
}

static void kill_ranks(struct bench *b, size_t host, const Fp8ctl__V1__KillRanks *k) {
        for (size_t i = 0; i < k->n_ranks; i++)
                for (int d = 0; d < DEVICES; d++) {
                        Fp8ctl__V1__RankExited x = FP8CTL__V1__RANK_EXITED__INIT;
                        struct live was = b->hosts[host].ranks[d];

                        if (was.job != k->job_id || was.incarnation != k->ranks[i]->incarnation || was.rank != k->ranks[i]->rank)
                                continue;
                        b->hosts[host].ranks[d].job = 0;
                        x.signal = 9;
                        x.reaped = true;
                        x.cause = (char *)"killed by SIGKILL";
                        SAY(b, K_EXITED, host, &was, RANK_EXITED, rank_exited, x);
                }
}

static void obey(struct bench *b, size_t host, const Fp8ctl__V1__ControllerMessage *m) {
        if (m->body_case == TOLD(START_RANKS))
                start_ranks(b, host, m->start_ranks);
        if (m->body_case == TOLD(KILL_RANKS))
                kill_ranks(b, host, m->kill_ranks);
        for (int d = 0; d < DEVICES; d++) {
                struct live *l = &b->hosts[host].ranks[d];

                if (m->body_case == TOLD(ABORT_EPOCH) && l->job == m->abort_epoch->job_id && l->epoch < m->abort_epoch->epoch) {
                        Fp8ctl__V1__RankParked x = FP8CTL__V1__RANK_PARKED__INIT;

                        l->epoch = m->abort_epoch->epoch;
                        SAY(b, K_PARKED, host, l, RANK_PARKED, rank_parked, x);
                }
                if (m->body_case == TOLD(RANK_PLAN) && l->job == m->rank_plan->job_id && l->epoch == m->rank_plan->epoch) {
                        Fp8ctl__V1__RankRunning x = FP8CTL__V1__RANK_RUNNING__INIT;

                        x.step = m->rank_plan->load->step;
                        SAY(b, K_RUNNING, host, l, RANK_RUNNING, rank_running, x);
                }
        }
        if (m->body_case == TOLD(INVENTORY_REQUEST)) {
                Fp8ctl__V1__WorkerMessage out = FP8CTL__V1__WORKER_MESSAGE__INIT;
                Fp8ctl__V1__Inventory x = FP8CTL__V1__INVENTORY__INIT;

                x.job_id = m->inventory_request->job_id;
                x.epoch = m->inventory_request->epoch;
                out.body_case = BODY(INVENTORY);
                out.inventory = &x;
                say(b, K_INVENTORY, host, &out);
        }
}

static void pump(struct bench *b) {
        for (; b->done < b->n_queue; b->done++) {
                struct told t = b->queue[b->done];

                obey(b, t.host, t.m);
                fp8ctl__v1__controller_message__free_unpacked(t.m, NULL);
        }
        b->done = b->n_queue = 0;
}

static void heartbeat(struct bench *b, size_t host) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__Heartbeat h = FP8CTL__V1__HEARTBEAT__INIT;
        Fp8ctl__V1__RankProgress list[DEVICES], *ptrs[DEVICES];

        for (int d = 0; d < DEVICES; d++) {
                const struct live *l = &b->hosts[host].ranks[d];
                Fp8ctl__V1__RankProgress *p = &list[h.n_ranks];

                if (!l->job)
                        continue;
                fp8ctl__v1__rank_progress__init(p);
                p->job_id = l->job;
                p->epoch = l->epoch;
                p->rank = l->rank;
                p->incarnation = l->incarnation;
                p->step = b->step;
                ptrs[h.n_ranks++] = p;
        }
        h.lease_number = b->hosts[host].lease;
        h.sent_mono_ns = b->now;
        h.ranks = ptrs;
        m.body_case = BODY(HEARTBEAT);
        m.heartbeat = &h;
        say(b, K_HEARTBEAT, host, &m);
}

/* A second: all nodes are heard, the alarm goes off where it is due, a rank dies. */
static void one_second(struct bench *b) {
        size_t victim = (size_t)(b->step * 7919) % b->n;
        struct live *l = &b->hosts[victim].ranks[b->step % DEVICES], was = *l;

        b->step++;
        for (size_t i = 0; i < b->n; i++) {
                b->now += NSEC_PER_SEC / b->n;
                heartbeat(b, i);
                if (b->wake && b->now >= b->wake) {
                        uint64_t began = clock_mono_ns();

                        b->wake = 0;
                        controller_tick(b->c);
                        count(b, K_TICK, began);
                }
                pump(b);
        }
        if (was.job) {
                Fp8ctl__V1__RankExited x = FP8CTL__V1__RANK_EXITED__INIT;

                l->job = 0;
                x.signal = 11;
                x.reaped = true;
                x.cause = (char *)"killed by SIGSEGV";
                SAY(b, K_EXITED, victim, &was, RANK_EXITED, rank_exited, x);
                pump(b);
        }
}

static int run(size_t n, int64_t rounds, json_t *rows, bool table) {
        static const int dp[] = { 4, 4, 8, 4, 16, 32, 4, 8, 128, 4, 16, 64, 4, 512 };
        struct cluster_io io = { NULL, io_mono, io_wall, io_random, io_persist, io_send, io_close, io_reply, io_file, io_wake, NULL };
        struct controller_config config = { .lease_ttl_ms = 10000, .heartbeat_ms = 1000, .restart_budget_ms = 3000, .version = "bench" };
        struct bench b = { .now = NSEC_PER_SEC, .n = n, .hosts = calloc(n, sizeof(struct host)) };
        struct error e = { 0 };
        uint64_t events = 0, ns = 0, alive = 0;
        int r;

        io.arg = &b;
        if (!b.hosts)
                return -1;
        r = controller_new(&io, &config, &b.c, &e);
        if (r == 0)
                r = controller_start(b.c, &e);
        for (size_t i = 0; r == 0 && i < n; i++)
                hello(&b, i);
        for (size_t i = 0; r == 0 && b.taken < n * DEVICES * 9 / 10; i++) {
                int size = dp[i % ARRAY_SIZE(dp)];

                if (b.taken + 2 * (uint64_t)size > n * DEVICES * 95 / 100)
                        size = 4;
                if (submit(&b, size) != 0)
                        r = error_set(&e, -1, "a job was refused: %s", b.error);
                pump(&b);
        }
        for (int64_t i = 0; r == 0 && i < rounds; i++)
                one_second(&b);
        for (size_t i = 0; i < n; i++)
                for (int d = 0; d < DEVICES; d++)
                        alive += b.hosts[i].ranks[d].job != 0;
        if (r == 0 && alive != b.taken)
                r = error_set(&e, -1, "found %" PRIu64 " ranks alive at the end, expected %" PRIu64, alive, b.taken);
        for (int k = 0; r == 0 && k < N_KINDS; k++) {
                char name[64];

                events += b.events[k];
                ns += b.ns[k];
                snprintf(name, sizeof(name), "%s_ns_at_%zu_nodes", kind_names[k], n);
                report_add(rows, name, b.events[k] ? (double)b.ns[k] / (double)b.events[k] : 0.0, "ns", NAN);
                if (table)
                        printf("%8zu %-14s %10" PRIu64 " %12.0f %12.0f\n", n, kind_names[k], b.events[k], b.events[k] ? (double)b.ns[k] / (double)b.events[k] : 0.0, (double)b.worst[k] / 1e3);
        }
        if (r == 0) {
                char name[64];

                snprintf(name, sizeof(name), "event_ns_at_%zu_nodes", n);
                report_add(rows, name, (double)ns / (double)events, "ns", NAN);
                if (table)
                        printf("%8zu %-14s %10" PRIu64 " %12.0f   (%" PRIu64 " jobs of %" PRIu64 " ranks)\n", n, "all", events, (double)ns / (double)events, b.jobs, b.taken);
        } else {
                fprintf(stderr, "controller: %s\n", e.text);
        }
        controller_free(b.c);
        for (size_t i = b.done; i < b.n_queue; i++)
                fp8ctl__v1__controller_message__free_unpacked(b.queue[i].m, NULL);
        free(b.queue);
        free(b.hosts);
        return r;
}

int main(int argc, char **argv) {
        static const char *const formats[] = { "table", "json", NULL };
        static const size_t sizes[] = { 100, 1000, 10000 };
        const char *format = "table";
        int64_t nodes = 0, rounds = 10;
        const struct opt table[] = {
                { "output", 'o', OPT_CHOICE, "FORMAT", "table or json", &format, 0, 0, formats },
                { "nodes", 0, OPT_INT, "N", "one size only (default 100, 1,000 and 10,000)", &nodes, 1, 20000, NULL },
                { "rounds", 0, OPT_INT, "R", "seconds of virtual time (default 10)", &rounds, 1, 1000, NULL },
        };
        _cleanup_free_ char **rest = calloc((size_t)argc + 1, sizeof(*rest));
        struct error e = { 0 };
        json_t *rows = json_array();
        int n = 0, r = rest ? opt_parse(table, ARRAY_SIZE(table), argc, argv, rest, &n, &e) : -1;
        bool json = strcmp(format, "json") == 0;

        if (r < 0 || n > 0) {
                fprintf(stderr, "controller: %s\n", r < 0 ? e.text : "expected options only");
                json_decref(rows);
                return 2;
        }
        if (!json)
                printf("%8s %-14s %10s %12s %12s\n", "NODES", "EVENT", "COUNT", "MEAN ns", "MAX us");
        r = 0;
        for (size_t i = 0; r == 0 && i < (nodes ? 1 : ARRAY_SIZE(sizes)); i++)
                r = run(nodes ? (size_t)nodes : sizes[i], rounds, rows, !json);
        if (r == 0 && json)
                return report_print(rows, 0);
        json_decref(rows);
        return r < 0 ? 1 : 0;
}
