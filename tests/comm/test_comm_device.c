/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The collectives of device memory over a table that plays the device: parts move between processes through shared memory as `state` is asked, as slowly as it takes; events can be made
 * to stand still; and an abort keeps its communicator until the aborts of all the others have begun, as a library that waits for the whole device does.
 */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "tests/comm/ranks.h"
#include "tests/test.h"
#include "worker/comm/comm_private.h"

#define RANKS 3
#define COMMS 8
#define SLOT 4096
#define SOON_NS (10 * NSEC_PER_SEC)

struct mailbox {
        _Atomic size_t full; /* bytes; 0: may be filled */
        uint8_t bytes[SLOT];
};

static struct shared {
        _Atomic uint64_t ids;
        struct mailbox box[COMMS][RANKS][RANKS]; /* from, to */
} *shared;

struct dev_comm {
        uint64_t id;
        bool window;
        int n, index, n_parts;
        struct dev_comm_part parts[2 * RANKS];
};

struct dev_event {
        bool end;
};

static _Atomic int stand_still, aborts, alive;
static enum { NO_WINDOWS, WINDOWS, WINDOWS_BUT_ONE } windows;
static struct dev_comm_settings settings_seen;

static int fake_load(const struct dev_comm_settings *s, struct error *e) {
        settings_seen = *s;
        return 0;
}

static const char *fake_fingerprint(void) {
        return "fake1";
}

static int fake_enter(struct dev *d) {
        return 0;
}

static int fake_unique_id(uint8_t ret[DEV_COMM_ID], struct error *e) {
        uint64_t id = atomic_fetch_add(&shared->ids, 1);

        memset(ret, 0, DEV_COMM_ID);
        memcpy(ret, &id, sizeof(id));
        return 0;
}

static int fake_start(struct dev *d, const uint8_t id[DEV_COMM_ID], int n, int index, struct dev_comm **ret, struct error *e) {
        struct dev_comm *c = calloc(1, sizeof(*c));

        memcpy(&c->id, id, sizeof(c->id));
        c->n = n;
        c->index = index;
        atomic_fetch_add(&alive, 1);
        *ret = c;
        return 0;
}

static int fake_open_window(struct dev *d, int n, int index, uint8_t ret_card[DEV_COMM_CARD], struct dev_comm **ret, struct error *e) {
        uint8_t id[DEV_COMM_ID] = { 0 };

        if (windows == NO_WINDOWS)
                return -EOPNOTSUPP;
        if (index == 0)
                fake_unique_id(id, e);
        memcpy(ret_card, id, sizeof(uint64_t));
        fake_start(d, id, n, index, ret, e);
        (*ret)->window = true;
        return 0;
}

static int fake_join_windows(struct dev_comm *c, const uint8_t (*cards)[DEV_COMM_CARD], struct error *e) {
        memcpy(&c->id, cards[0], sizeof(c->id)); /* of the first member */
        return windows == WINDOWS_BUT_ONE && c->index == 1 ? -EOPNOTSUPP : 0;
}

static void move_part(struct dev_comm *c, struct dev_comm_part *p) {
        struct mailbox *b = p->send ? &shared->box[c->id][c->index][p->peer] : &shared->box[c->id][p->peer][c->index];
        size_t full = atomic_load(&b->full), n = p->bytes < SLOT ? p->bytes : SLOT;

        if ((full == 0) != p->send || p->bytes == 0)
                return;
        if (p->send)
                memcpy(b->bytes, p->ptr, n);
        else
                memcpy(p->ptr, b->bytes, n);
        atomic_store(&b->full, p->send ? n : 0);
        p->ptr = (uint8_t *)p->ptr + n;
        p->bytes -= n;
}

static int fake_state(struct dev_comm *c, struct error *e) {
        size_t left = 0;

        for (int i = 0; i < c->n_parts; i++) {
                move_part(c, &c->parts[i]);
                left += c->parts[i].bytes;
        }
        return left > 0 ? -EINPROGRESS : 0;
}

static int fake_exchange(struct dev_comm *c, const struct dev_comm_part *parts, int n, struct dev_stream *s, struct error *e) {
        memcpy(c->parts, parts, sizeof(*parts) * (size_t)n);
        c->n_parts = n;
        return -EINPROGRESS;
}

static void fake_abort(struct dev_comm *c) {
        int all = atomic_load(&alive);

        if (windows == WINDOWS_BUT_ONE && c->window) { /* given up before it was used: nothing waits for it */
                atomic_fetch_sub(&alive, 1);
                free(c);
                return;
        }
        atomic_fetch_add(&aborts, 1);
        while (atomic_load(&aborts) < all)
                usleep(100);
        free(c);
}

static int fake_fold(void *dst, const void *staging, size_t stride, const void *own, int own_index, int n, size_t count, enum dtype t, enum dev_comm_op op, struct dev_stream *s) {
        for (size_t i = 0; i < count && t == DT_F32; i++) {
                float sum = 0;

                for (int k = 0; k < n; k++) {
                        float x = (k == own_index ? (const float *)own : (const float *)(const void *)((const uint8_t *)staging + (size_t)k * stride))[i];

                        sum = k == 0 ? x : op == DEV_COMM_SUM ? sum + x : isnan(sum) || sum > x ? sum : x;
                }
                ((float *)dst)[i] = sum;
        }
        return t == DT_F32 ? 0 : -EOPNOTSUPP;
}

/* They are made in pairs, of a piece's beginning and its end. */
static int fake_event_new(struct dev_event **ret) {
        static bool end;

        *ret = calloc(1, sizeof(**ret));
        if (!*ret)
                return -ENOMEM;
        (*ret)->end = end;
        end = !end;
        return 0;
}

static void fake_event_free(struct dev_event *ev) {
        free(ev);
}

static int fake_event_record(struct dev_event *ev, struct dev_stream *s) {
        return 0;
}

/* While all stands still, only beginnings come. */
static int fake_event_done(struct dev_event *ev) {
        return ev->end ? atomic_load(&stand_still) == 0 : 1;
}

static _Atomic int waits;

static int fake_event_wait(struct dev_event *ev, struct dev_stream *s) {
        atomic_fetch_add(&waits, 1);
        return 0;
}

static char ports_seen[64];

static void fake_use_ports(const char *list) {
        snprintf(ports_seen, sizeof(ports_seen), "%s", list);
}

static const struct dev_comm_ops fake = {
        .size = sizeof(fake), .version = DEV_COMM_VERSION, .kind = "cpu", .load = fake_load, .use_ports = fake_use_ports, .fingerprint = fake_fingerprint, .enter = fake_enter, .unique_id = fake_unique_id,
        .start = fake_start, .open_window = fake_open_window, .join_windows = fake_join_windows, .state = fake_state, .exchange = fake_exchange, .abort = fake_abort, .fold = fake_fold, .event_new = fake_event_new, .event_free = fake_event_free,
        .event_record = fake_event_record, .event_done = fake_event_done, .event_wait = fake_event_wait,
};

/* ------------------------------------------------------------------ in a rank */

struct node {
        struct dev *dev;
        struct dev_stream *stream;
        struct comm_device *device;
        struct comm_mesh *mesh;
        struct comm *world, *again, *pair; /* again: the same ranks; pair: 0 and 1, NULL at 2 */
};

static void open_device(struct ranks *r, struct node *x) {
        const struct dev_config c = { .kind = "cpu", .threads = 1, .act = DT_F32 };
        const struct dev_comm_settings s = { .ib_timeout = 22, .ib_retry_cnt = 7 };
        struct error e = { 0 };

        RANK_OK(r, dev_ops_cpu.open(&c, &x->dev, &e), e);
        RANK_CHECK(r, dev_ops_cpu.stream_new(x->dev, &x->stream) == 0);
        RANK_OK(r, comm_device_open(&fake, &dev_ops_cpu, x->dev, &s, 24 << 10, &x->device, &e), e);
        RANK_CHECK(r, settings_seen.ib_timeout == 22 && strcmp(comm_device_fingerprint(x->device), "fake1") == 0);
        if (r->rank == 0) {
                RANK_CHECK(r, !comm_device_use_ports(x->device, "mlx5_0") && !comm_device_use_ports(x->device, "=") && !comm_device_use_ports(x->device, "=mlx5_0:1 LD_X=1") && !ports_seen[0]);
                RANK_CHECK(r, comm_device_use_ports(x->device, "=mlx5_0:1,mlx5_1:1") && strcmp(ports_seen, "=mlx5_0:1,mlx5_1:1") == 0);
                ports_seen[0] = 0;
        }
}

static void meet(struct ranks *r, struct node *x, uint64_t epoch) {
        static const int all[RANKS] = { 0, 1, 2 };
        struct comm_peer peers[RANKS_MOST];
        struct comm_mesh_config c = ranks_config(r, epoch, peers);
        struct error e = { 0 };

        c.device = x->device;
        c.ops = &dev_ops_cpu;
        atomic_store(&alive, 0);
        atomic_store(&aborts, 0);
        RANK_OK(r, comm_mesh_new(r->listener, r->abort, &c, &x->mesh, &e), e);
        RANK_OK(r, comm_new_device(x->mesh, all, RANKS, 1, &x->world, &e), e);
        RANK_OK(r, comm_new_device(x->mesh, all, RANKS, 2, &x->again, &e), e);
        if (r->rank < 2)
                RANK_OK(r, comm_new_device(x->mesh, all, 2, 3, &x->pair, &e), e);
        RANK_CHECK(r, x->world->link == x->again->link && atomic_load(&alive) == (r->rank < 2 ? 2 : 1));
}

static void part(struct node *x) {
        x->world = comm_free(x->world);
        x->again = comm_free(x->again);
        x->pair = comm_free(x->pair);
        x->mesh = comm_mesh_free(x->mesh);
}

static void close_device(struct node *x) {
        x->device = comm_device_free(x->device);
        dev_ops_cpu.stream_free(x->stream);
        dev_ops_cpu.close(x->dev);
}

static float value(int rank, size_t i) {
        return (float)((double)((i * 2654435761u + (size_t)rank * 40503u) % 1000003) / 1000 - 300 * rank); /* sums round, differently in another order */
}

static float *fill(int rank, size_t n) {
        float *p = malloc(n * sizeof(*p));

        for (size_t i = 0; p && i < n; i++)
                p[i] = value(rank, i);
        return p;
}

static float sum_at(size_t i) {
        return value(0, i) + value(1, i) + value(2, i);
}

static void sums(struct ranks *r, struct node *x) {
        static const size_t counts[] = { 1, 100, 2000, 70001 }, cut[RANKS] = { 20000, 19, 30000 };
        struct error e = { 0 };
        size_t start = 0;
        float *p, *q;

        for (size_t k = 0; k < ARRAY_SIZE(counts); k++) {
                p = fill(r->rank, counts[k]);
                RANK_OK(r, comm_all_reduce(x->world, p, counts[k], DT_F32, COMM_SUM, x->stream, &e), e);
                for (size_t i = 0; i < counts[k]; i++)
                        RANK_CHECK(r, p[i] == sum_at(i));
                free(p);
        }
        p = fill(r->rank, 50019);
        q = calloc(50019, sizeof(*q));
        RANK_OK(r, comm_reduce_scatter_v(x->again, p, q, cut, DT_F32, COMM_SUM, x->stream, &e), e);
        for (int i = 0; i < r->rank; i++)
                start += cut[i];
        for (size_t i = 0; i < cut[r->rank]; i++)
                RANK_CHECK(r, q[i] == sum_at(start + i));
        RANK_OK(r, comm_all_gather_v(x->world, q, p, (const size_t[]){ 80000, 76, 120000 }, x->stream, &e), e);
        for (size_t i = 0; i < 50019; i++)
                RANK_CHECK(r, p[i] == sum_at(i));
        memset(p, 0, 4 * 1000);
        p[10 * r->rank + 5] = (float)r->rank + 1;
        RANK_OK(r, comm_stream_after(x->world, x->stream, x->stream, &e), e);
        RANK_OK(r, comm_all_gather_at(x->world, p, (const size_t[]){ 20, 60, 100 }, (const size_t[]){ 4, 8, 4 }, x->stream, &e), e);
        RANK_CHECK(r, p[5] == 1 && p[15] == 2 && p[25] == 3 && p[16] == 0 && atomic_load(&waits) > 0);
        for (size_t i = 0; i < 1000; i++)
                p[i] = sum_at(i);
        p[7] = r->rank == 1 ? NAN : (float)r->rank;
        RANK_OK(r, comm_all_reduce(x->world, p, 8, DT_F32, COMM_MAX, x->stream, &e), e);
        RANK_CHECK(r, isnan(p[7]) && p[6] == sum_at(6));
        free(p);
        free(q);
}

static void moves(struct ranks *r, struct node *x) {
        int to = (r->rank + 1) % RANKS, from = (r->rank + 2) % RANKS;
        uint8_t out[10000], in[10000] = { 0 };
        struct error e = { 0 };

        memset(out, 10 + r->rank, sizeof(out));
        RANK_OK(r, comm_send_recv(x->world, out, sizeof(out), to, in, sizeof(in), from, x->stream, &e), e);
        RANK_CHECK(r, in[0] == 10 + from && in[9999] == 10 + from);
        RANK_OK(r, comm_broadcast(x->world, out, sizeof(out), 2, x->stream, &e), e);
        RANK_CHECK(r, out[0] == 12 && out[9999] == 12);
        if (r->rank == 0)
                RANK_OK(r, comm_send(x->pair, "abc", 4, 1, x->stream, &e), e);
        if (r->rank == 1) {
                RANK_OK(r, comm_recv(x->pair, in, 4, 0, x->stream, &e), e);
                RANK_CHECK(r, memcmp(in, "abc", 4) == 0);
        }
        RANK_OK(r, comm_barrier(x->world, &e), e);
}

static void whole_fn(struct ranks *r, int rank) {
        struct node x = { 0 };

        open_device(r, &x);
        for (uint64_t epoch = 1; epoch <= 2; epoch++) {
                meet(r, &x, epoch);
                sums(r, &x);
                moves(r, &x);
                part(&x);
                RANK_CHECK(r, atomic_load(&aborts) == atomic_load(&alive));
        }
        close_device(&x);
}

/* ------------------------------------------------------------------ what goes wrong */

static int until_it_ends(struct ranks *r, struct node *x, uint64_t *ret_ns, struct error *e) {
        float *p = fill(r->rank, 5000);
        uint64_t start = 0;
        int rc = 0;

        while (rc == 0) {
                start = clock_mono_ns();
                rc = comm_all_reduce(x->world, p, 5000, DT_F32, COMM_SUM, x->stream, e);
                if (atomic_fetch_add(&r->shared->value[r->rank], 1) == 5 && r->rank == 2)
                        return 1000; /* the one that something happens to */
        }
        *ret_ns = clock_mono_ns() - start;
        free(p);
        return rc;
}

static void lost_fn(struct ranks *r, int rank) {
        struct node x = { 0 };
        struct error e = { 0 };
        uint64_t ns;
        int rc;

        open_device(r, &x);
        meet(r, &x, 1);
        rc = until_it_ends(r, &x, &ns, &e);
        if (rc == 1000)
                raise(SIGKILL);
        RANK_CHECK(r, rc == COMM_E_PEER_LOST && ns < SOON_NS);
        /* it stays so, on the host as well: nothing may be agreed on any more */
        RANK_CHECK(r, comm_barrier(x.world, &e) == COMM_E_PEER_LOST);
        part(&x); /* both communicators were aborted together, or the first abort would still wait */
        RANK_CHECK(r, atomic_load(&aborts) == 2);
        close_device(&x);
}

static void *abort_soon(void *arg) {
        usleep(50000);
        comm_abort_raise(arg);
        return NULL;
}

static void aborted_fn(struct ranks *r, int rank) {
        struct node x = { 0 };
        struct error e = { 0 };
        pthread_t t;
        float f[8] = { 0 };

        open_device(r, &x);
        meet(r, &x, 1);
        RANK_CHECK(r, pthread_create(&t, NULL, abort_soon, r->abort) == 0);
        if (rank != 2) /* 2 does not come */
                RANK_CHECK(r, comm_all_reduce(x.world, f, 8, DT_F32, COMM_SUM, x.stream, &e) > 0);
        pthread_join(t, NULL);
        part(&x);
        (void)pthread_barrier_wait(&r->shared->met);
        comm_abort_reset(r->abort);
        /* the same process goes on */
        meet(r, &x, 2);
        sums(r, &x);
        RANK_OK(r, comm_barrier(x.world, &e), e); /* who hangs up ends what the others still wait for */
        part(&x);
        close_device(&x);
}

static void still_fn(struct ranks *r, int rank) {
        struct node x = { 0 };
        struct error e = { 0 };
        uint64_t began = clock_mono_ns();
        float f[8] = { 0 };
        int rc;

        open_device(r, &x);
        meet(r, &x, 1);
        atomic_store(&stand_still, 1);
        RANK_OK(r, comm_all_reduce(x.world, f, 8, DT_F32, COMM_SUM, x.stream, &e), e); /* enqueued */
        do
                rc = comm_barrier(x.world, &e);
        while (rc == 0 && clock_mono_ns() - began < SOON_NS);
        RANK_CHECK(r, rc == COMM_E_TIMEOUT || rc == COMM_E_PEER_LOST); /* whose time is over first closes its connections */
        RANK_CHECK(r, clock_mono_ns() - began >= 200 * NSEC_PER_MSEC);
        if (rc == COMM_E_TIMEOUT)
                atomic_fetch_add(&r->shared->value[32], 1);
        part(&x);
        close_device(&x);
}

static int run(void (*fn)(struct ranks *r, int rank), int timeout_ms, int killed) {
        struct ranks r = { .n = RANKS, .fn = fn, .timeout_ms = timeout_ms };

        shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (shared == MAP_FAILED)
                return -1;
        ranks_start(&r);
        return ranks_wait(&r, killed);
}

TEST(sums_are_those_of_the_group_order) {
        CU_ASSERT_EQUAL(run(whole_fn, 0, -1), 0);
}

TEST(so_they_are_where_members_write_into_each_others_memory) {
        windows = WINDOWS;
        CU_ASSERT_EQUAL(run(whole_fn, 0, -1), 0);
        CU_ASSERT_EQUAL(run(lost_fn, 0, 2), 0);
        windows = NO_WINDOWS;
}

TEST(where_one_member_cannot_they_all_meet_by_the_library) {
        windows = WINDOWS_BUT_ONE;
        CU_ASSERT_EQUAL(run(whole_fn, 0, -1), 0);
        windows = NO_WINDOWS;
}

TEST(a_lost_peer_ends_all_communicators_together) {
        CU_ASSERT_EQUAL(run(lost_fn, 0, 2), 0);
}

TEST(an_abort_reaches_a_call_and_the_process_goes_on) {
        CU_ASSERT_EQUAL(run(aborted_fn, 0, -1), 0);
}

TEST(what_makes_no_progress_on_the_device_ends) {
        CU_ASSERT_EQUAL(run(still_fn, 300, -1), 0);
}

TEST_MAIN("comm_device")
