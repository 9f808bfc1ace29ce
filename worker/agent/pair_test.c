/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two nodes measure what is between them, as it carries snapshots: the protocol of replica memory (proto/replica_link.h), by RDMA where both have a device, else by sockets.  The one that listens keeps a single
 * transfer; the other brings it and takes it back, again and again, and every byte is compared by its digest.  The key is of this pair.
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/net.h"
#include "base/rdma.h"
#include "proto/replica_link.h"
#include "worker/agent/agent_private.h"

#define DEADLINE_NS (7 * NSEC_PER_SEC) /* the controller waits a second longer */
#define BYTES_MAX (UINT64_C(1) << 30)
#define PAIR_STEP 1
#define PINGS 64
#define PING_BYTES 8
#define PARTS 32 /* of a transfer, the first */
#define LOOK_MS 20

struct pair_test {
        struct agent *agent;
        uint64_t request, bytes, deadline;
        uint32_t ms;
        uint8_t key[REPLICA_KEY];
        char *endpoint;         /* NULL: it listens */
        int fd;
        uint8_t *memory;        /* bytes of it to send, and bytes to receive into */
        struct lane_pool pool;
        struct replica_slot slot; /* what lies here, when it listens */
        bool there, rdma;
        double gbs, latency_us;
        struct error error;
};

static bool late(void *arg) {
        return clock_mono_ns() > ((const struct pair_test *)arg)->deadline;
}

/* ------------------------------------------------------------------ the end that listens */
static int on_admit(void *arg, const struct replica_peer *who, uint8_t ret_key[REPLICA_KEY], struct error *e) {
        struct pair_test *t = arg;

        if (who->job != t->request)
                return error_set(e, -EACCES, "not the pair that is waited for");
        memcpy(ret_key, t->key, REPLICA_KEY);
        return 0;
}

static int on_put_begin(void *arg, const struct replica_peer *who, const struct replica_slot *what, uint64_t keep_step, void **ret_payload, void **ret_token, struct error *e) {
        struct pair_test *t = arg;

        if (what->bytes > t->bytes)
                return error_set(e, -E2BIG, "found %llu bytes, expected at most %llu", (unsigned long long)what->bytes, (unsigned long long)t->bytes);
        t->there = false;
        *ret_payload = t->memory;
        *ret_token = t;
        return 0;
}

static int on_put_end(void *arg, const struct replica_peer *who, const struct replica_slot *what, void *token, bool whole, struct error *e) {
        struct pair_test *t = arg;

        memcpy(&t->slot, what, sizeof(t->slot));
        t->there = whole;
        return 0;
}

static int on_get_begin(void *arg, const struct replica_peer *who, uint64_t step, uint64_t epoch, struct replica_slot *ret, const void **ret_payload, void **ret_token, struct error *e) {
        struct pair_test *t = arg;

        if (!t->there || t->slot.step != step)
                return error_set(e, -ENOENT, "not there");
        memcpy(ret, &t->slot, sizeof(*ret));
        *ret_payload = t->memory;
        *ret_token = t;
        return 0;
}

static void on_get_end(void *arg, void *token) {
}

static struct lane_pool on_pool(void *arg, void *token) {
        return ((struct pair_test *)arg)->pool;
}

static void serve(struct pair_test *t) {
        const struct replica_host host = { t, on_admit, on_put_begin, on_put_end, on_get_begin, on_get_end, on_pool, rdma_lanes(t->agent->rdma) };
        const struct replica_wait wait = { late, t };

        while (!late(t)) {
                struct pollfd p = { .fd = t->fd, .events = POLLIN };
                struct error e = { 0 };
                int fd = poll(&p, 1, LOOK_MS) > 0 ? accept4(t->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK) : -1;

                if (fd < 0)
                        continue;
                (void)replica_serve(fd, &host, &wait, &e);
                close(fd);
                if (e.code != -EACCES && e.code != -EPROTO) /* somebody else's connection is not the pair's end */
                        return;
        }
}

/* ------------------------------------------------------------------ the end that measures */
static int by_size(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;

        return x < y ? -1 : x > y;
}

static void describe(struct pair_test *t, uint64_t bytes, struct replica_slot *ret) {
        struct digest d = digest_of(t->memory, (size_t)bytes);

        *ret = (struct replica_slot){ .step = PAIR_STEP, .epoch = 1, .bytes = bytes, .digest_hi = d.hi, .digest_lo = d.lo };
}

static uint64_t slower(const uint64_t ns[2]) {
        return ns[0] > ns[1] ? ns[0] : ns[1];
}

/* best: of each way so far. */
static int there_and_back(struct pair_test *t, const struct replica_transport *how, struct replica_link *l, const struct replica_slot *what, uint64_t best[2], struct error *e) {
        struct replica_slot got;
        uint64_t at[3];
        int r;

        at[0] = clock_mono_ns();
        r = how->put(l, what, t->memory, 0, e);
        at[1] = clock_mono_ns();
        if (r >= 0)
                r = how->get(l, PAIR_STEP, 1, &got, t->memory + t->bytes, t->bytes, e);
        at[2] = clock_mono_ns();
        for (int i = 0; i < 2; i++)
                best[i] = at[i + 1] - at[i] < best[i] ? at[i + 1] - at[i] : best[i];
        return r;
}

/* Both ways; each one's best counts, and of the two the slower. A first small transfer says how many bytes a slow way carries in time. */
static int measure(struct pair_test *t, const struct replica_transport *how, struct replica_link *l, struct error *e) {
        uint64_t best[2] = { UINT64_MAX, UINT64_MAX }, bytes = t->bytes / PARTS > PING_BYTES ? t->bytes / PARTS : PING_BYTES, room, one, end;
        struct replica_slot what;
        int r;

        describe(t, bytes, &what);
        r = there_and_back(t, how, l, &what, best, e);
        if (r < 0)
                return r;
        room = late(t) ? 0 : (t->deadline - clock_mono_ns()) / 8;
        one = slower(best);
        if (one <= room / PARTS)
                bytes = t->bytes;
        else if (one < room)
                bytes *= room / one;
        best[0] = best[1] = UINT64_MAX;
        describe(t, bytes, &what);
        end = clock_mono_ns() + t->ms * NSEC_PER_MSEC;
        for (int i = 0; r >= 0 && (i == 0 || clock_mono_ns() < end); i++)
                r = there_and_back(t, how, l, &what, best, e);
        t->gbs = (double)bytes / (double)slower(best);
        return r;
}

static int ping(struct pair_test *t, const struct replica_transport *how, struct replica_link *l, struct error *e) {
        double us[PINGS];
        struct replica_slot what;
        int r = 0;

        describe(t, PING_BYTES, &what);
        for (int i = 0; r >= 0 && i < PINGS; i++) {
                uint64_t at = clock_mono_ns();

                r = how->put(l, &what, t->memory, 0, e);
                us[i] = (double)(clock_mono_ns() - at) / 1e3;
        }
        if (r < 0)
                return r;
        qsort(us, PINGS, sizeof(us[0]), by_size);
        t->latency_us = us[PINGS / 2] / 2; /* a put is two messages there and two back */
        return 0;
}

static void visit(struct pair_test *t) {
        const struct replica_peer self = { .job = t->request, .epoch = 1, .incarnation = 1 };
        const struct replica_wait wait = { late, t };
        const struct replica_lanes lanes = { rdma_lanes(t->agent->rdma), t->pool };
        const struct replica_transport *how = NULL;
        struct replica_traffic traffic = { 0 };
        struct replica_link *l = NULL;
        int r = replica_transport_find(t->endpoint, &how, &t->error);

        for (uint64_t i = 0; r == 0 && i < t->bytes / 8; i++)
                ((uint64_t *)t->memory)[i] = (i + t->request) * UINT64_C(0x9e3779b97f4a7c15);
        if (r == 0)
                r = how->open(t->endpoint, &self, t->key, &wait, &lanes, &l, &t->error);
        if (r == 0)
                r = measure(t, how, l, &t->error);
        if (r >= 0)
                r = ping(t, how, l, &t->error);
        if (r < 0 && !t->error.text[0])
                error_errno(&t->error, -r, "the other end");
        if (l) {
                how->traffic(l, &traffic);
                t->rdma = traffic.lane_bytes > traffic.socket_bytes;
                how->close(l);
        }
}

/* ------------------------------------------------------------------ life */
static void say(const struct pair_test *t, const char *endpoint) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__NodePairReply reply = FP8CTL__V1__NODE_PAIR_REPLY__INIT;

        reply.request = t->request;
        reply.endpoint = (char *)endpoint;
        reply.gbs = t->gbs;
        reply.latency_us = t->latency_us;
        reply.rdma = t->rdma;
        reply.error = (char *)t->error.text;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_NODE_PAIR_REPLY;
        m.node_pair_reply = &reply;
        stream_send(t->agent, &m);
}

static struct pair_test *pair_test_free(struct pair_test *t) {
        if (t) {
                closep(&t->fd);
                if (t->memory)
                        munmap(t->memory, t->pool.size);
                free(t->endpoint);
        }
        free(t);
        return NULL;
}

static void work(void *arg) {
        struct pair_test *t = arg;

        if (t->endpoint)
                visit(t);
        else
                serve(t);
}

static void done(void *arg) {
        struct pair_test *t = arg;

        if (t->endpoint || t->error.text[0])
                say(t, "");
        pair_test_free(t);
}

static int prepare(struct pair_test *t, const Fp8ctl__V1__NodePairRequest *m) {
        void *memory;

        if (m->key.len != REPLICA_KEY || m->bytes < PING_BYTES || m->bytes > BYTES_MAX || m->ms > DEADLINE_NS / NSEC_PER_MSEC)
                return error_set(&t->error, -EINVAL, "pair test: found a key of %zu bytes and transfers of %llu, expected %d and %d to %llu", m->key.len, (unsigned long long)m->bytes, REPLICA_KEY, PING_BYTES,
                                 (unsigned long long)BYTES_MAX);
        memcpy(t->key, m->key.data, REPLICA_KEY);
        t->bytes = m->bytes;
        t->ms = m->ms;
        t->endpoint = m->endpoint && m->endpoint[0] ? strdup(m->endpoint) : NULL;
        memory = mmap(NULL, (size_t)(2 * t->bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
                return error_errno(&t->error, errno, "pair test");
        t->memory = memory;
        t->pool = (struct lane_pool){ .base = memory, .size = 2 * t->bytes, .id = clock_mono_ns() };
        return t->endpoint ? 0 : net_listen(t->agent->config->host, 4, &t->fd, &t->error);
}

void pair_test_start(struct agent *a, const Fp8ctl__V1__NodePairRequest *m) {
        struct pair_test *t = calloc(1, sizeof(*t));
        _cleanup_free_ char *where = NULL, *endpoint = NULL;
        int r;

        if (!t)
                return;
        t->agent = a;
        t->request = m->request;
        t->fd = -1;
        t->deadline = clock_mono_ns() + DEADLINE_NS;
        r = prepare(t, m);
        if (r == 0 && !t->endpoint) {
                r = net_endpoint(a->config->host, t->fd, &where, &t->error);
                if (r == 0 && asprintf(&endpoint, "tcp:%s", where) < 0)
                        r = error_errno(&t->error, ENOMEM, "pair test");
        }
        if (r == 0)
                r = tasks_run(a->tasks, work, done, t, &t->error);
        if (r < 0) {
                say(t, "");
                pair_test_free(t);
                return;
        }
        if (endpoint)
                say(t, endpoint);
}
