/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two ranks on two nodes: a mesh of sockets, and for devices the collectives of their library over it, as a job's ranks have them.  Numbers of 24 random bits are summed in F32: a sum of two has one right value, whatever
 * adds them in whatever order, and both ends compare every bit of every sum with what the processor makes of it.  The second end leads: it says before each sum how many numbers it has, and it takes the time.
 */
#include "worker/rank/reduce_test.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "kernels/dev_comm.h"
#include "worker/comm/comm.h"

enum { LISTENS, LEADS, ENDS };
enum { PINGS = 64, MIDDLE = PINGS / 2, PING_COUNT = 2, PARTS = 32 /* of the largest sum, the first */ };

#define MEET_MS 15000 /* a device and its library take seconds to begin */
#define STEP_MS 5000
#define ROOM_NS (600 * NSEC_PER_MSEC) /* for one sum where the way is slow */
#define SCRATCH ((size_t)4 << 20)

struct sums {
        const struct reduce_test *config;
        int end;
        const struct dev_ops *ops;
        struct dev *dev;
        struct dev_stream *stream;
        struct comm_device *device; /* NULL: host memory */
        struct comm_listener *listener;
        struct comm_abort *abort;
        struct comm_mesh *mesh;
        struct comm *host, *group;
        size_t count;               /* of the largest sum */
        float *own, *right, *got;
        void *buf;
        struct verdict {
                uint64_t wrong, place; /* so many numbers, the first of them */
                uint32_t found, expected;
        } verdict;
};

static float number(uint64_t request, int end, size_t i) {
        uint64_t x = ((uint64_t)i * ENDS + (uint64_t)end + request) * UINT64_C(0x9e3779b97f4a7c15);

        return (float)((int32_t)(x >> 40) - (1 << 23)) * 0x1p-23f;
}

/* A condition of the mesh is the end of it here. */
static int fatal(int r) {
        return r > 0 ? -ECOMM : r;
}

static void check(struct sums *s, size_t n) {
        uint32_t found, expected;

        if (memcmp(s->got, s->right, n * sizeof(*s->got)) == 0)
                return;
        for (size_t i = 0; i < n; i++) {
                memcpy(&found, &s->got[i], sizeof(found));
                memcpy(&expected, &s->right[i], sizeof(expected));
                if (found == expected)
                        continue;
                if (s->verdict.wrong++ == 0) {
                        s->verdict.place = i;
                        s->verdict.found = found;
                        s->verdict.expected = expected;
                }
        }
}

/* A sum of n numbers by both; its time counts at the end that leads. */
static int sum(struct sums *s, size_t n, uint64_t *ret_ns, struct error *e) {
        uint64_t at;
        int r = s->ops->copy_in(s->buf, s->own, n * sizeof(*s->own), s->stream);

        if (r == 0)
                r = s->ops->stream_sync(s->stream);
        if (r < 0)
                return error_set(e, r, "device %d: a copy failed", s->config->device);
        r = fatal(comm_barrier(s->host, e));
        if (r < 0)
                return r;
        at = clock_mono_ns();
        r = fatal(comm_all_reduce(s->group, s->buf, n, DT_F32, COMM_SUM, s->stream, e));
        if (r < 0)
                return r;
        r = s->ops->stream_sync(s->stream);
        *ret_ns = clock_mono_ns() - at;
        if (r < 0)
                return error_set(e, r, "device %d: the sum failed", s->config->device);
        r = fatal(comm_barrier(s->host, e)); /* what was queued behind a lost peer is no sum */
        if (r < 0)
                return r;
        r = s->ops->copy_out(s->got, s->buf, n * sizeof(*s->got), s->stream);
        if (r == 0)
                r = s->ops->stream_sync(s->stream);
        if (r < 0)
                return error_set(e, r, "device %d: a copy failed", s->config->device);
        check(s, n);
        return 0;
}

/* The next one, which has n numbers if we lead; 0: there is none. Returns 1 when it was made. */
static int next(struct sums *s, size_t n, uint64_t *ret_ns, struct error *e) {
        uint64_t word = n;
        int r = fatal(comm_broadcast(s->host, &word, sizeof(word), LEADS, NULL, e));

        if (r == 0 && word > s->count)
                return error_set(e, -EPROTO, "found a sum of %" PRIu64 " numbers, expected at most %zu", word, s->count);
        if (r != 0 || word == 0)
                return r;
        r = sum(s, (size_t)word, ret_ns, e);
        return r < 0 ? r : 1;
}

static int follow(struct sums *s, struct error *e) {
        uint64_t ns;
        int r = 1;

        while (r == 1)
                r = next(s, 0, &ns, e);
        return r;
}

static int by_time(const void *a, const void *b) {
        uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

        return x < y ? -1 : x > y;
}

static int lead(struct sums *s, double *ret_gbs, double *ret_us, struct error *e) {
        uint64_t ns[PINGS], best, end;
        size_t n = s->count / PARTS > PING_COUNT ? s->count / PARTS : PING_COUNT;
        int r = 1;

        for (int i = 0; r == 1 && i < PINGS; i++)
                r = next(s, PING_COUNT, &ns[i], e);
        if (r == 1)
                r = next(s, n, &best, e);
        if (r != 1)
                return r;
        qsort(ns, PINGS, sizeof(ns[0]), by_time);
        *ret_us = (double)ns[MIDDLE] / 1e3;
        if (best <= ROOM_NS / PARTS)
                n = s->count;
        else if (best < ROOM_NS)
                n *= ROOM_NS / best;
        best = UINT64_MAX;
        end = clock_mono_ns() + s->config->ms * NSEC_PER_MSEC;
        for (int i = 0; r == 1 && (i == 0 || clock_mono_ns() < end); i++) {
                r = next(s, n, &ns[0], e);
                best = r == 1 && ns[0] < best ? ns[0] : best;
        }
        if (r != 1)
                return r;
        *ret_gbs = (double)(n * sizeof(float)) / (double)(best ? best : 1); /* bus bandwidth of two: 2 (n - 1) / n is 1 */
        return next(s, 0, &ns[0], e);
}

/* ------------------------------------------------------------------ both ends */
static int open_all(struct sums *s, struct error *e) {
        const struct reduce_test *t = s->config;
        const struct dev_config device = { .kind = t->device_kind, .index = t->device, .threads = 1, .act = DT_F32 };
        const struct dev_comm_settings settings = { .ib_timeout = 20, .ib_retry_cnt = 7, .ib_hca = "" }; /* the library's own */
        char name[48];
        int r = dev_ops_load(t->device_kind, &s->ops, e);

        if (r == 0)
                r = s->ops->open(&device, &s->dev, e);
        if (r == 0 && strcmp(s->ops->kind, "cpu") != 0)
                r = comm_device_new(s->ops, s->dev, &settings, SCRATCH, &s->device, e);
        snprintf(name, sizeof(name), "reduce-test.%" PRIu64, t->request);
        if (r == 0)
                r = comm_listener_new(NULL, t->host, name, &s->listener, e);
        if (r == 0)
                r = comm_abort_new(&s->abort, e);
        if (r == 0)
                r = s->ops->alloc(s->dev, s->count * sizeof(float), &s->buf, e);
        if (r < 0)
                return r;
        r = s->ops->stream_new(s->dev, &s->stream);
        if (r < 0)
                return error_set(e, r, "device %d: no stream", t->device);
        s->own = malloc(s->count * sizeof(float));
        s->right = malloc(s->count * sizeof(float));
        s->got = malloc(s->count * sizeof(float));
        if (!s->own || !s->right || !s->got)
                return error_errno(e, ENOMEM, "sums of %zu numbers", s->count);
        for (size_t i = 0; i < s->count; i++) {
                s->own[i] = number(t->request, s->end, i);
                s->right[i] = number(t->request, 0, i) + number(t->request, 1, i);
        }
        if (t->spoil)
                s->own[0] = -s->own[0] + 0x1p-20f; /* never the same */
        return 0;
}

static int meet(struct sums *s, struct error *e) {
        const int both[ENDS] = { LISTENS, LEADS };
        const struct comm_peer peers[ENDS] = { { LISTENS + 1, s->config->peer, "0" }, { LEADS + 1, "", "1" } }; /* the higher rank connects */
        struct comm_mesh_config c = { .job = s->config->request, .epoch = 1, .rank = s->end, .n_ranks = ENDS, .peers = peers, .node = s->end == LEADS ? "1" : "0", .timeout_ms = STEP_MS, .connect_timeout_ms = MEET_MS,
                                      .ops = s->ops, .device = s->device };
        int r;

        memcpy(c.key, s->config->key, sizeof(c.key));
        r = fatal(comm_mesh_new(s->listener, s->abort, &c, &s->mesh, e));
        if (r == 0)
                r = fatal(comm_new(s->mesh, both, ENDS, 0, &s->host, e));
        return r == 0 ? fatal(comm_new_device(s->mesh, both, ENDS, 1, &s->group, e)) : r;
}

static void close_all(struct sums *s) {
        comm_free(s->group);
        comm_free(s->host);
        comm_mesh_free(s->mesh);
        comm_device_free(s->device);
        comm_listener_free(s->listener);
        comm_abort_free(s->abort);
        if (s->stream)
                s->ops->stream_free(s->stream);
        if (s->buf)
                s->ops->free(s->dev, s->buf);
        if (s->dev)
                s->ops->close(s->dev);
        free(s->own);
        free(s->right);
        free(s->got);
}

static void tell(const struct sums *s, const struct verdict of[ENDS], double gbs, double us) {
        char text[160] = "";
        bool wrong = of[LISTENS].wrong || of[LEADS].wrong;
        const struct verdict *v = &of[of[LISTENS].wrong ? LISTENS : LEADS];

        if (wrong)
                snprintf(text, sizeof(text), "wrong sums (%" PRIu64 " and %" PRIu64 " numbers): found 0x%08" PRIx32 " at %" PRIu64 ", expected 0x%08" PRIx32, of[LISTENS].wrong, of[LEADS].wrong, v->found, v->place, v->expected);
        printf("{\"gbs\": %.6f, \"latency_us\": %.3f, \"by\": \"%s\", \"wrong\": %s, \"text\": \"%s\"}\n", gbs, us, s->device ? comm_device_fingerprint(s->device) : "sockets", wrong ? "true" : "false", text);
        fflush(stdout);
}

static int run(struct sums *s, struct error *e) {
        struct verdict both[ENDS];
        double gbs = 0, us = 0;
        int r = open_all(s, e);

        if (r == 0 && s->end == LISTENS) {
                printf("{\"endpoint\": \"%s\"}\n", comm_listener_endpoint(s->listener));
                fflush(stdout);
        }
        if (r == 0)
                r = meet(s, e);
        if (r == 0)
                r = s->end == LEADS ? lead(s, &gbs, &us, e) : follow(s, e);
        if (r == 0)
                r = fatal(comm_all_gather(s->host, &s->verdict, both, sizeof(s->verdict), NULL, e));
        if (r == 0)
                tell(s, both, gbs, us);
        return r;
}

int reduce_test_run(const struct reduce_test *t, struct error *e) {
        struct sums s = { .config = t, .end = t->peer[0] ? LEADS : LISTENS, .count = (size_t)(t->bytes / sizeof(float)) };
        int r = s.count < PING_COUNT ? error_set(e, -EINVAL, "found sums of %" PRIu64 " bytes, expected some", t->bytes) : run(&s, e);

        close_all(&s);
        return r;
}
