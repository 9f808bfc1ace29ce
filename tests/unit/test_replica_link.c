/* SPDX-License-Identifier: Apache-2.0 */
/* Ranks and a holder over true sockets: who is let in, what is taken, and what a new epoch puts an end to. */
#include <errno.h>
#include <fcntl.h>
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
        return (*t)->open(holder_endpoint(f->h), &self, f->key, NULL, ret, e);
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

TEST_MAIN("replica_link")
