/* SPDX-License-Identifier: Apache-2.0 */
/* Ranks and a holder over true sockets: who is let in, what is taken, and what a new epoch puts an end to. */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "proto/replica_link.h"
#include "tests/test.h"
#include "worker/agent/holder.h"

enum { WORLD = 4, BYTES = 100000 };

struct fixture {
        struct holder *h;
        int kept[WORLD + 1]; /* by rank, the listener last */
        uint8_t key[REPLICA_KEY];
        struct replica_lanes *lanes;
};

static void keep(void *arg, Fp8ctl__V1__KeptFd__Kind kind, uint64_t job, uint32_t rank, int fd) {
        struct fixture *f = arg;

        f->kept[kind == FP8CTL__V1__KEPT_FD__KIND__LISTENER ? WORLD : rank] = fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

static struct holder *start(struct fixture *f, uint64_t memory) {
        struct holder_config c = { .node = "b", .host = "127.0.0.1", .memory = memory, .keep = keep, .arg = f };
        struct holder *h = NULL;
        struct error e;

        ASSERT_OK(holder_new(&c, &h, &e), e);
        return h;
}

static void setup(struct fixture *f, uint64_t memory) {
        struct error e;

        *f = (struct fixture){ .kept = { -1, -1, -1, -1, -1 } };
        f->h = start(f, memory);
        ASSERT_OK(holder_start(f->h, &e), e);
}

static void teardown(struct fixture *f) {
        holder_free(f->h);
        for (int i = 0; i <= WORLD; i++)
                if (f->kept[i] >= 0)
                        close(f->kept[i]);
}

/* Rank r is incarnation 10 + r; b holds ranks 0 and 1. */
static void plan(struct fixture *f, uint64_t epoch, uint64_t base_step, uint64_t base_epoch) {
        Fp8ctl__V1__ReplicaPlan m = FP8CTL__V1__REPLICA_PLAN__INIT;
        Fp8ctl__V1__ReplicaNode a = FP8CTL__V1__REPLICA_NODE__INIT, b = FP8CTL__V1__REPLICA_NODE__INIT, *nodes[] = { &a, &b };
        int32_t holders[WORLD] = { 1, 1, 0, -1 };
        uint64_t incarnations[WORLD] = { 10, 11, 12, 13 };

        a.name = (char *)"a";
        b.name = (char *)"b";
        memset(f->key, (int)epoch, sizeof(f->key));
        m.job_id = 7;
        m.epoch = epoch;
        m.key.data = f->key;
        m.key.len = sizeof(f->key);
        m.nodes = nodes;
        m.n_nodes = 2;
        m.holders = holders;
        m.n_holders = WORLD;
        m.incarnations = incarnations;
        m.n_incarnations = WORLD;
        m.base_step = base_step;
        m.base_epoch = base_epoch;
        holder_plan(f->h, &m);
}

static int dial(struct fixture *f, uint32_t rank, uint64_t incarnation, uint64_t epoch, struct replica_link **ret, const struct replica_transport **t, struct error *e) {
        struct replica_peer self = { .job = 7, .epoch = epoch, .incarnation = incarnation, .rank = rank };

        ASSERT_OK(replica_transport_find(holder_endpoint(f->h), t, e), *e);
        return (*t)->open(holder_endpoint(f->h), &self, f->key, NULL, f->lanes, ret, e);
}

static uint8_t payload[BYTES];

static struct replica_slot image(uint32_t rank, uint64_t step, uint64_t epoch) {
        struct replica_slot s = { .step = step, .epoch = epoch, .rank = rank, .shard_count = WORLD, .bytes = BYTES, .layout = "tp2.pp1.dp2/x" };
        struct digest d;

        memset(payload, (int)(step * 3 + epoch), sizeof(payload));
        d = digest_of(payload, sizeof(payload));
        s.digest_hi = d.hi;
        s.digest_lo = d.lo;
        return s;
}

TEST(put_and_get) {
        struct fixture f;
        const struct replica_transport *t;
        struct replica_link *l = NULL;
        struct replica_slot s, got;
        static uint8_t back[BYTES];
        struct error e = { 0 };

        setup(&f, 10 * BYTES);
        plan(&f, 1, 0, 0);
        ASSERT_OK(dial(&f, 1, 11, 1, &l, &t, &e), e);
        ASSERT_ERROR(t->get(l, 5, 1, &got, back, sizeof(back), &e), -ENOENT, e, "nothing of rank 1");
        s = image(1, 5, 1);
        CU_ASSERT_EQUAL(t->put(l, &s, payload, 0, &e), 0);
        CU_ASSERT_EQUAL(t->put(l, &s, payload, 0, &e), 1); /* it is there */
        ASSERT_OK(t->get(l, 5, 1, &got, back, sizeof(back), &e), e);
        CU_ASSERT_EQUAL(memcmp(back, payload, BYTES), 0);
        CU_ASSERT_STRING_EQUAL(got.layout, "tp2.pp1.dp2/x");
        ASSERT_ERROR(t->get(l, 5, 2, &got, back, sizeof(back), &e), -ENOENT, e, "of epoch 1");
        ASSERT_ERROR(t->get(l, 6, 1, &got, back, sizeof(back), &e), -ENOENT, e, "");
        /* Two generations; the one that all ranks have stays while others come and go. */
        for (uint64_t step = 6; step < 10; step++) {
                s = image(1, step, 1);
                CU_ASSERT_EQUAL(t->put(l, &s, payload, 5, &e), 0);
                ASSERT_OK(t->get(l, 5, 1, &got, back, sizeof(back), &e), e);
                ASSERT_OK(t->get(l, step, 1, &got, back, sizeof(back), &e), e);
        }
        CU_ASSERT_EQUAL(holder_count(f.h, 7), 2);
        t->close(l);
        holder_release(f.h, 7);
        CU_ASSERT_EQUAL(holder_count(f.h, 7), 0);
        teardown(&f);
}

TEST(what_is_not_taken) {
        struct fixture f;
        const struct replica_transport *t;
        struct replica_link *l = NULL;
        struct replica_slot s;
        struct error e = { 0 };

        setup(&f, 3 * BYTES);
        CU_ASSERT(dial(&f, 0, 10, 1, &l, &t, &e) < 0); /* nothing was told */
        plan(&f, 1, 0, 0);
        CU_ASSERT(dial(&f, 0, 99, 1, &l, &t, &e) < 0); /* another incarnation */
        CU_ASSERT(dial(&f, 0, 10, 2, &l, &t, &e) < 0); /* an epoch that is not yet */
        f.key[0] ^= 1;
        ASSERT_ERROR(dial(&f, 0, 10, 1, &l, &t, &e), -EACCES, e, "key");
        f.key[0] ^= 1;
        ASSERT_OK(dial(&f, 2, 12, 1, &l, &t, &e), e);
        s = image(2, 5, 1);
        ASSERT_ERROR(t->put(l, &s, payload, 0, &e), -ECONNREFUSED, e, "elsewhere");
        t->close(l);
        ASSERT_OK(dial(&f, 0, 10, 1, &l, &t, &e), e);
        s = image(0, 5, 1);
        s.digest_lo ^= 1; /* damaged on the way */
        ASSERT_ERROR(t->put(l, &s, payload, 0, &e), -ECONNREFUSED, e, "digest");
        s.digest_lo ^= 1;
        s.epoch = 3;
        ASSERT_ERROR(t->put(l, &s, payload, 0, &e), -ECONNREFUSED, e, "epoch 3");
        s = image(0, 5, 1);
        s.bytes = 3 * BYTES;
        ASSERT_ERROR(t->put(l, &s, payload, 0, &e), -ECONNREFUSED, e, "no room");
        s = image(0, 5, 1);
        CU_ASSERT_EQUAL(t->put(l, &s, payload, 0, &e), 0);
        t->close(l);
        ASSERT_OK(dial(&f, 1, 11, 1, &l, &t, &e), e);
        s = image(1, 5, 1);
        ASSERT_ERROR(t->put(l, &s, payload, 0, &e), -ECONNREFUSED, e, "no room"); /* the bound is over all */
        t->close(l);
        teardown(&f);
}

/* Once a new epoch is told nothing of the old one is taken, connections that stand included; what lay here before stays and can be got in the new one. */
TEST(a_new_epoch_fences) {
        struct fixture f;
        const struct replica_transport *t;
        struct replica_link *old = NULL, *l = NULL;
        struct replica_slot s, got;
        static uint8_t back[BYTES];
        struct error e = { 0 };

        setup(&f, 10 * BYTES);
        plan(&f, 1, 0, 0);
        ASSERT_OK(dial(&f, 0, 10, 1, &old, &t, &e), e);
        s = image(0, 5, 1);
        CU_ASSERT_EQUAL(t->put(old, &s, payload, 0, &e), 0);
        holder_fence(f.h, 7, 2);
        s = image(0, 6, 1);
        ASSERT_ERROR(t->put(old, &s, payload, 0, &e), -ECONNREFUSED, e, "epoch 1, expected 2");
        CU_ASSERT(dial(&f, 0, 10, 1, &l, &t, &e) < 0);
        CU_ASSERT(dial(&f, 0, 10, 2, &l, &t, &e) < 0); /* no plan yet */
        plan(&f, 1, 0, 0);                             /* late: changes nothing */
        CU_ASSERT(dial(&f, 0, 10, 1, &l, &t, &e) < 0);
        plan(&f, 2, 5, 1);
        ASSERT_ERROR(t->put(old, &s, payload, 0, &e), -ECONNREFUSED, e, "epoch 1, expected 2");
        t->close(old);
        ASSERT_OK(dial(&f, 0, 10, 2, &l, &t, &e), e);
        ASSERT_OK(t->get(l, 5, 1, &got, back, sizeof(back), &e), e);
        ASSERT_ERROR(t->put(l, &s, payload, 0, &e), -ECONNREFUSED, e, "snapshot of epoch 1"); /* of the old epoch, and not what the new one began from */
        s = image(0, 5, 1);
        CU_ASSERT_EQUAL(t->put(l, &s, payload, 0, &e), 1);
        s = image(0, 6, 2);
        CU_ASSERT_EQUAL(t->put(l, &s, payload, 5, &e), 0);
        t->close(l);
        teardown(&f);
}

/* The worker is killed: what the spawner kept is what the next one has, torn parts excepted, and it gives nothing before it is told the plan. */
TEST(the_next_agent_has_it) {
        struct fixture f;
        const struct replica_transport *t;
        struct replica_link *l = NULL;
        struct replica_slot s, got;
        static uint8_t back[BYTES];
        struct replica *torn = NULL;
        struct error e = { 0 };
        uint64_t jobs[4];
        char endpoint[300];
        void *p;

        setup(&f, 10 * BYTES);
        plan(&f, 1, 0, 0);
        ASSERT_OK(dial(&f, 0, 10, 1, &l, &t, &e), e);
        s = image(0, 5, 1);
        CU_ASSERT_EQUAL(t->put(l, &s, payload, 0, &e), 0);
        t->close(l);
        snprintf(endpoint, sizeof(endpoint), "%s", holder_endpoint(f.h));
        holder_free(f.h);
        ASSERT_OK(replica_map(f.kept[0], &torn, &e), e);
        ASSERT_OK(replica_begin(torn, 6, &p, &e), e); /* killed while 6 came */
        replica_unmap(torn);
        f.h = start(&f, 10 * BYTES);
        holder_kept(f.h, FP8CTL__V1__KEPT_FD__KIND__LISTENER, 0, 0, fcntl(f.kept[WORLD], F_DUPFD_CLOEXEC, 3));
        holder_kept(f.h, FP8CTL__V1__KEPT_FD__KIND__REPLICA, 7, 0, fcntl(f.kept[0], F_DUPFD_CLOEXEC, 3));
        ASSERT_OK(holder_start(f.h, &e), e);
        CU_ASSERT_STRING_EQUAL(holder_endpoint(f.h), endpoint);
        CU_ASSERT_EQUAL(holder_jobs(f.h, jobs, 4), 1);
        CU_ASSERT_EQUAL(jobs[0], 7);
        CU_ASSERT(dial(&f, 0, 10, 1, &l, &t, &e) < 0);
        plan(&f, 1, 0, 0);
        ASSERT_OK(dial(&f, 0, 10, 1, &l, &t, &e), e);
        ASSERT_OK(t->get(l, 5, 1, &got, back, sizeof(back), &e), e);
        CU_ASSERT(t->get(l, 6, 1, &got, back, sizeof(back), &e) < 0);
        t->close(l);
        teardown(&f);
}

/* ------------------------------------------------------------------ lanes: a write is a copy, as both ends are this process */
enum breaks { SOUND, NO_OPEN, NO_CONNECT, NO_EXPOSE, BREAKS_HALFWAY, TIMES_OUT, DAMAGES };

struct fake {
        atomic_int breaks, opened, closed;
        atomic_uint_fast64_t written;
};

struct lane {
        struct fake *device;
        bool connected;
};

static int fake_open(void *device, char ret_address[LANE_ADDRESS], struct lane **ret, struct error *e) {
        struct fake *f = device;

        if (f->breaks == NO_OPEN)
                return error_set(e, -ENETDOWN, "the port is down");
        *ret = calloc(1, sizeof(**ret));
        (*ret)->device = f;
        f->opened++;
        snprintf(ret_address, LANE_ADDRESS, "fake");
        return 0;
}

static int fake_connect(struct lane *l, const char *address, struct error *e) {
        if (l->device->breaks == NO_CONNECT || strcmp(address, "fake") != 0)
                return error_set(e, -EPROTO, "no way there");
        l->connected = true;
        return 0;
}

static int fake_expose(struct lane *l, const struct lane_pool *p, uint32_t *ret_key, struct error *e) {
        if (l->device->breaks == NO_EXPOSE)
                return error_set(e, -ENOMEM, "cannot be registered");
        *ret_key = 77;
        return 0;
}

static int fake_write(struct lane *l, const struct lane_pool *p, const void *from, uint64_t bytes, uint64_t to, uint32_t key, int timeout_ms, struct error *e) {
        int breaks = l->device->breaks;
        uint64_t n = breaks == SOUND || breaks == DAMAGES ? bytes : bytes / 2;

        CU_ASSERT_EQUAL(key, 77);
        CU_ASSERT(l->connected);
        CU_ASSERT((const uint8_t *)from >= (const uint8_t *)p->base && (const uint8_t *)from + bytes <= (const uint8_t *)p->base + p->size);
        memcpy((void *)(uintptr_t)to, from, n); // NOLINT(performance-no-int-to-ptr): it is an address of the other end
        l->device->written += n;
        if (breaks == DAMAGES)
                ((uint8_t *)(uintptr_t)to)[n / 2] ^= 1; // NOLINT(performance-no-int-to-ptr)
        return n == bytes ? 0 : error_set(e, breaks == TIMES_OUT ? -ETIMEDOUT : -EIO, "the cable was pulled");
}

static struct lane *fake_close(struct lane *l) {
        if (l)
                l->device->closed++;
        free(l);
        return NULL;
}

static const struct lane_ops fakes = { "fake", fake_open, fake_connect, fake_expose, fake_write, fake_close };

struct laned {
        struct fixture f;
        struct fake device;
        struct replica_lanes lanes;
        uint8_t room[2 * BYTES]; /* what is put, what is got */
};

/* Both ends have a lane device, of which the first is the rank's. */
static void laned_setup(struct laned *x, bool host_too) {
        struct holder_config c = { .node = "b", .host = "127.0.0.1", .memory = 10 * BYTES, .keep = keep, .arg = &x->f };
        struct error e;

        memset(x, 0, sizeof(*x));
        for (int i = 0; i <= WORLD; i++)
                x->f.kept[i] = -1;
        if (host_too)
                c.lanes = (struct lane_device){ &fakes, &x->device };
        ASSERT_OK(holder_new(&c, &x->f.h, &e), e);
        ASSERT_OK(holder_start(x->f.h, &e), e);
        plan(&x->f, 1, 0, 0);
        x->lanes = (struct replica_lanes){ { &fakes, &x->device }, { x->room, sizeof(x->room), 1 } };
        x->f.lanes = &x->lanes;
}

static void laned_teardown(struct laned *x) {
        teardown(&x->f);
        CU_ASSERT_EQUAL(x->device.opened, x->device.closed);
}

static struct replica_traffic traffic_of(const struct replica_transport *t, const struct replica_link *l) {
        struct replica_traffic n = { 0 };

        t->traffic(l, &n);
        return n;
}

static void put_and_get_back(struct laned *x, const struct replica_transport *t, struct replica_link *l, uint64_t step) {
        struct replica_slot s = image(1, step, 1), got;
        struct error e = { 0 };

        memcpy(x->room, payload, BYTES);
        memset(x->room + BYTES, 0, BYTES);
        ASSERT_OK(t->put(l, &s, x->room, 0, &e), e);
        ASSERT_OK(t->get(l, step, 1, &got, x->room + BYTES, BYTES, &e), e);
        CU_ASSERT_EQUAL(memcmp(x->room + BYTES, payload, BYTES), 0);
        CU_ASSERT_EQUAL(got.digest_lo, s.digest_lo);
}

TEST(by_lane) {
        static struct laned x;
        const struct replica_transport *t;
        struct replica_link *l = NULL;
        struct replica_traffic n;
        struct error e = { 0 };

        laned_setup(&x, true);
        ASSERT_OK(dial(&x.f, 1, 11, 1, &l, &t, &e), e);
        for (uint64_t step = 1; step <= 3; step++)
                put_and_get_back(&x, t, l, step);
        n = traffic_of(t, l);
        CU_ASSERT_EQUAL(n.lane_bytes, 6 * BYTES);
        CU_ASSERT_EQUAL(n.socket_bytes, 0);
        CU_ASSERT_EQUAL(n.falls, 0);
        CU_ASSERT_EQUAL(x.device.written, 6 * BYTES);
        t->close(l);
        laned_teardown(&x);
}

/* Whatever breaks, before or in the middle: the same payload arrives by the socket, and so do later ones. */
TEST(a_lane_that_breaks) {
        static struct laned x;

        for (int how = NO_OPEN; how <= DAMAGES; how++) {
                const struct replica_transport *t;
                struct replica_link *l = NULL;
                struct replica_traffic n;
                bool told = how != NO_CONNECT; /* then it is the host that has no way here, and says so in its own log */
                struct error e = { 0 };

                laned_setup(&x, true);
                x.device.breaks = how;
                ASSERT_OK(dial(&x.f, 1, 11, 1, &l, &t, &e), e);
                put_and_get_back(&x, t, l, 1);
                put_and_get_back(&x, t, l, 2);
                n = traffic_of(t, l);
                CU_ASSERT_EQUAL(n.lane_bytes, 0);
                CU_ASSERT_EQUAL(n.socket_bytes, 4 * BYTES);
                CU_ASSERT_EQUAL(n.falls, told ? 1 : 0);
                CU_ASSERT_EQUAL(n.why[0] != '\0', told);
                t->close(l);
                laned_teardown(&x);
        }
}

/* Sound while it puts, broken while it gets. */
TEST(a_lane_that_breaks_on_the_way_back) {
        static struct laned x;

        for (int how = BREAKS_HALFWAY; how <= DAMAGES; how++) {
                const struct replica_transport *t;
                struct replica_link *l = NULL;
                struct replica_slot s = image(1, 1, 1), got;
                struct error e = { 0 };

                laned_setup(&x, true);
                ASSERT_OK(dial(&x.f, 1, 11, 1, &l, &t, &e), e);
                memcpy(x.room, payload, BYTES);
                ASSERT_OK(t->put(l, &s, x.room, 0, &e), e);
                x.device.breaks = how;
                ASSERT_OK(t->get(l, 1, 1, &got, x.room + BYTES, BYTES, &e), e);
                CU_ASSERT_EQUAL(memcmp(x.room + BYTES, payload, BYTES), 0);
                CU_ASSERT_EQUAL(traffic_of(t, l).falls, 1);
                CU_ASSERT_EQUAL(traffic_of(t, l).lane_bytes, BYTES);
                CU_ASSERT_EQUAL(traffic_of(t, l).socket_bytes, BYTES);
                t->close(l);
                laned_teardown(&x);
        }
}

/* The other node has no device: nothing to tell. */
TEST(a_lane_that_nobody_answers) {
        static struct laned x;
        const struct replica_transport *t;
        struct replica_link *l = NULL;
        struct error e = { 0 };

        laned_setup(&x, false);
        ASSERT_OK(dial(&x.f, 1, 11, 1, &l, &t, &e), e);
        put_and_get_back(&x, t, l, 1);
        CU_ASSERT_EQUAL(traffic_of(t, l).falls, 0);
        CU_ASSERT_EQUAL(traffic_of(t, l).socket_bytes, 2 * BYTES);
        t->close(l);
        laned_teardown(&x);
}

TEST_MAIN("replica_link")
