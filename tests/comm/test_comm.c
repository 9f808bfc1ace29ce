/* SPDX-License-Identifier: Apache-2.0 */
/* Results of every collective against a naive computation, on all ranks, bit for bit. */
#include <errno.h>
#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "kernels/fp8.h"
#include "proto/flight.h"
#include "tests/comm/ranks.h"
#include "tests/test.h"
#include "worker/comm/comm_private.h"

/* A value that every rank can compute for every other: a hash of (rank, element, salt), in a range where sums need rounding. */
static uint64_t mix(uint64_t rank, uint64_t i, uint64_t salt) {
        uint64_t x = rank * 0x9e3779b97f4a7c15u + i * 0xbf58476d1ce4e5b9u + salt * 0x94d049bb133111ebu;

        x = (x ^ (x >> 31)) * 0xd6e8feb86659fd93u;
        return x ^ (x >> 29);
}

static double value(uint64_t rank, uint64_t i, uint64_t salt) {
        return (double)(int64_t)(mix(rank, i, salt) % 2000001 - 1000000) / 1024.0;
}

static void put(void *buf, size_t i, enum dtype t, double v) {
        switch (t) {
        case DT_F32:
                ((dev_real *)buf)[i] = (dev_real)v;
                break;
        case DT_F64:
                ((double *)buf)[i] = v;
                break;
        case DT_BF16:
                ((uint16_t *)buf)[i] = bf16_from_float((float)v);
                break;
        case DT_I32:
                ((int32_t *)buf)[i] = (int32_t)v;
                break;
        case DT_I64:
                ((int64_t *)buf)[i] = (int64_t)v;
                break;
        default:
                ((uint8_t *)buf)[i] = (uint8_t)(int)fabs(v);
        }
}

static double get(const void *buf, size_t i, enum dtype t) {
        switch (t) {
        case DT_F32:
                return (double)((const dev_real *)buf)[i];
        case DT_F64:
                return ((const double *)buf)[i];
        case DT_BF16:
                return (double)bf16_to_float(((const uint16_t *)buf)[i]);
        case DT_I32:
                return (double)((const int32_t *)buf)[i];
        case DT_I64:
                return (double)((const int64_t *)buf)[i];
        default:
                return (double)((const uint8_t *)buf)[i];
        }
}

/* The naive result in double, and how far a sum in another order and precision may be from it. */
static double expected(const int *ranks, int n, size_t i, uint64_t salt, enum dtype t, enum comm_op op, double *ret_bound) {
        double one[1], sum = 0, most = -INFINITY, least = INFINITY, magnitude = 0;

        for (int k = 0; k < n; k++) {
                double v;

                put(one, 0, t, value((uint64_t)ranks[k], i, salt));
                v = get(one, 0, t);
                sum += v;
                magnitude += fabs(v);
                most = v > most ? v : most;
                least = v < least ? v : least;
        }
        *ret_bound = 0;
        if (op == COMM_MAX)
                return most;
        if (op == COMM_MIN)
                return least;
        if (t == DT_F32 || t == DT_F64)
                *ret_bound = magnitude * (double)n * (t == DT_F32 && sizeof(dev_real) == 4 ? 6.0e-8 : 1.2e-16);
        else if (t == DT_BF16) /* half an ulp of 8 bits once, and F32 sums */
                *ret_bound = fabs(sum) / 256.0 + magnitude * (double)n * 6.0e-8;
        else if (t == DT_U8)
                sum = fmod(sum, 256.0);
        return sum;
}

static void check_values(struct ranks *r, const void *buf, size_t first, size_t count, const int *ranks, int n, uint64_t salt, enum dtype t, enum comm_op op) {
        for (size_t i = 0; i < count; i++) {
                double bound, want = expected(ranks, n, first + i, salt, t, op, &bound), found = get(buf, i, t);

                if (!(fabs(found - want) <= bound))
                        ranks_fail(r, "element %zu of %zu, %s, op %d, %d ranks: found %.9g, expected %.9g +- %.3g", first + i, count, dtype_name(t), (int)op, n,
                                   found, want, bound);
        }
}

/* All members hold the same bytes. */
static void check_equal(struct ranks *r, struct comm *c, const void *buf, size_t bytes) {
        struct error e = { 0 };
        uint8_t *all = malloc(bytes * (size_t)comm_size(c) + 1);

        RANK_CHECK(r, all);
        RANK_OK(r, comm_all_gather(c, buf, all, bytes, NULL, &e), e);
        for (int i = 0; i < comm_size(c); i++)
                if (memcmp(all + (size_t)i * bytes, buf, bytes) != 0)
                        ranks_fail(r, "ranks 0 and %d differ after an all-reduce of %zu bytes", i, bytes);
        free(all);
}

static void fill(void *buf, size_t count, int rank, uint64_t salt, enum dtype t) {
        for (size_t i = 0; i < count; i++)
                put(buf, i, t, value((uint64_t)rank, i, salt));
}

static void one_all_reduce(struct ranks *r, struct comm *c, const int *ranks, int n, size_t count, enum dtype t, enum comm_op op) {
        struct error e = { 0 };
        size_t bytes = count * dtype_size(t);
        uint8_t *a = malloc(bytes + 8), *b = malloc(bytes + 8);

        RANK_CHECK(r, a && b);
        memset(a + bytes, 0xa5, 8);
        fill(a, count, r->rank, count, t);
        fill(b, count, r->rank, count, t);
        RANK_OK(r, comm_all_reduce(c, a, count, t, op, NULL, &e), e);
        check_values(r, a, 0, count, ranks, n, count, t, op);
        for (int i = 0; i < 8; i++)
                RANK_CHECK(r, a[bytes + (size_t)i] == 0xa5);
        RANK_OK(r, comm_all_reduce(c, b, count, t, op, NULL, &e), e);
        RANK_CHECK(r, memcmp(a, b, bytes) == 0);
        check_equal(r, c, a, bytes);
        free(a);
        free(b);
}

static void one_reduce_scatter(struct ranks *r, struct comm *c, const int *ranks, int n, size_t count, enum dtype t, enum comm_op op) {
        struct error e = { 0 };
        size_t total = count * (size_t)n, size = dtype_size(t), me = (size_t)comm_rank(c), at = 0, counts[RANKS_MOST], sum = 0;
        uint8_t *in = malloc(total * size * 2 + 64), *out = malloc(total * size * 2 + 64);

        RANK_CHECK(r, in && out);
        memset(out, 0xa5, count * size + 8);
        fill(in, total, r->rank, 3, t);
        RANK_OK(r, comm_reduce_scatter(c, in, out, count, t, op, NULL, &e), e);
        check_values(r, out, me * count, count, ranks, n, 3, t, op);
        RANK_CHECK(r, out[count * size] == 0xa5);
        /* uneven, one member with nothing */
        for (int i = 0; i < n; i++) {
                counts[i] = i == 1 ? 0 : count + (size_t)i;
                at += i < (int)me ? counts[i] : 0;
                sum += counts[i];
        }
        in = realloc(in, sum * size + 8);
        out = realloc(out, counts[me] * size + 8);
        RANK_CHECK(r, in && out);
        fill(in, sum, r->rank, 5, t);
        RANK_OK(r, comm_reduce_scatter_v(c, in, out, counts, t, op, NULL, &e), e);
        check_values(r, out, at, counts[me], ranks, n, 5, t, op);
        free(in);
        free(out);
}

static void one_gather(struct ranks *r, struct comm *c, const int *ranks, int n, size_t bytes) {
        struct error e = { 0 };
        size_t me = (size_t)comm_rank(c), sizes[RANKS_MOST], at = 0, sum = 0;
        uint8_t *out = malloc((bytes + RANKS_MOST) * (size_t)n + 8), *in = malloc(bytes + RANKS_MOST);

        RANK_CHECK(r, out && in);
        for (size_t i = 0; i < bytes + RANKS_MOST; i++)
                in[i] = (uint8_t)mix((uint64_t)r->rank, i, 9);
        RANK_OK(r, comm_all_gather(c, in, out, bytes, NULL, &e), e);
        for (int k = 0; k < n; k++)
                for (size_t i = 0; i < bytes; i++)
                        RANK_CHECK(r, out[(size_t)k * bytes + i] == (uint8_t)mix((uint64_t)ranks[k], i, 9));
        /* in place, uneven, one with nothing */
        for (int i = 0; i < n; i++) {
                sizes[i] = i == n - 1 && n > 1 ? 0 : bytes + (size_t)i;
                at += i < (int)me ? sizes[i] : 0;
                sum += sizes[i];
        }
        memset(out, 0, sum);
        memcpy(out + at, in, sizes[me]);
        RANK_OK(r, comm_all_gather_v(c, out + at, out, sizes, NULL, &e), e);
        at = 0;
        for (int k = 0; k < n; k++)
                for (size_t i = 0; i < sizes[k]; i++)
                        RANK_CHECK(r, out[at++] == (uint8_t)mix((uint64_t)ranks[k], i, 9));
        free(in);
        free(out);
}

static void one_broadcast(struct ranks *r, struct comm *c, const int *ranks, int n, size_t bytes) {
        struct error e = { 0 };
        uint8_t *buf = malloc(bytes + 1);

        RANK_CHECK(r, buf);
        for (int root = 0; root < n; root++) {
                for (size_t i = 0; i < bytes; i++)
                        buf[i] = comm_rank(c) == root ? (uint8_t)mix((uint64_t)ranks[root], i, 11) : 0;
                buf[bytes] = 0xa5;
                RANK_OK(r, comm_broadcast(c, buf, bytes, root, NULL, &e), e);
                for (size_t i = 0; i < bytes; i++)
                        RANK_CHECK(r, buf[i] == (uint8_t)mix((uint64_t)ranks[root], i, 11));
                RANK_CHECK(r, buf[bytes] == 0xa5);
        }
        free(buf);
}

static void every_op(struct ranks *r, struct comm_mesh *m, const int *ranks, int n) {
        static const enum dtype types[] = { DT_F32, DT_BF16, DT_I32, DT_I64, DT_F64, DT_U8 };
        static const size_t counts[] = { 1, 7, 1021, 40009, 131101 };
        const size_t n_counts = ARRAY_SIZE(counts) - r->tcp; /* TCP changes how bytes go, not which way is taken for how many */
        struct error e = { 0 };
        struct comm *c = NULL;
        bool member = false;

        for (int i = 0; i < n; i++)
                member = member || ranks[i] == r->rank;
        if (!member)
                return;
        RANK_OK(r, comm_new(m, ranks, n, 42, &c, &e), e);
        RANK_CHECK(r, comm_size(c) == n && ranks[comm_rank(c)] == r->rank);
        for (size_t t = 0; t < ARRAY_SIZE(types); t++)
                for (size_t k = 0; k < n_counts; k++)
                        for (int op = COMM_SUM; op <= COMM_MIN; op++) {
                                /* the greatest makes rings of small elements: larger ones have gone that way before */
                                if (k == 4 && (TEST_SANITIZED ? types[t] != DT_BF16 : dtype_size(types[t]) == 8))
                                        continue;
                                if (op != COMM_SUM && k % 2 == 0) /* both small and ring sizes remain */
                                        continue;
                                one_all_reduce(r, c, ranks, n, counts[k], types[t], (enum comm_op)op);
                                one_reduce_scatter(r, c, ranks, n, counts[k] / 3 + 1, types[t], (enum comm_op)op);
                        }
        for (size_t k = 0; k < n_counts; k++) {
                one_gather(r, c, ranks, n, counts[k]);
                one_broadcast(r, c, ranks, n, counts[k] * 3);
        }
        RANK_OK(r, comm_barrier(c, &e), e);
        c = comm_free(c);
}

static void ops_fn(struct ranks *r, int rank) {
        static const int all[] = { 0, 1, 2, 3 }, turned[] = { 2, 0, 3, 1 }, odd[] = { 3, 0, 1 }, pairs[2][2] = { { 0, 2 }, { 3, 1 } };
        struct comm_mesh *m = NULL;
        struct error e = { 0 };

        RANK_OK(r, ranks_mesh(r, 1, &m, &e), e);
        every_op(r, m, all, 4);
        every_op(r, m, turned, 4);
        every_op(r, m, odd, 3);
        every_op(r, m, pairs[0], 2);
        every_op(r, m, pairs[1], 2);
        every_op(r, m, &rank, 1);
        m = comm_mesh_free(m);
}

TEST(every_op_type_count_and_group) {
        struct ranks r = { .n = 4, .fn = ops_fn };

        ranks_start(&r);
        CU_ASSERT_EQUAL(ranks_wait(&r, -1), 0);
}

TEST(over_tcp) {
        struct ranks r = { .n = 4, .fn = ops_fn, .tcp = true };

        ranks_start(&r);
        CU_ASSERT_EQUAL(ranks_wait(&r, -1), 0);
}

static void eight_fn(struct ranks *r, int rank) {
        static const int all[] = { 7, 6, 5, 4, 3, 2, 1, 0 };
        struct comm_mesh *m = NULL;
        struct error e = { 0 };
        struct comm *c = NULL;

        RANK_OK(r, ranks_mesh(r, 1, &m, &e), e);
        RANK_OK(r, comm_new(m, all, 8, 1, &c, &e), e);
        one_all_reduce(r, c, all, 8, 1, DT_F32, COMM_SUM);
        one_all_reduce(r, c, all, 8, 300007, DT_F32, COMM_SUM);
        one_all_reduce(r, c, all, 8, 300007, DT_BF16, COMM_SUM);
        one_reduce_scatter(r, c, all, 8, 40007, DT_F32, COMM_SUM);
        one_gather(r, c, all, 8, 50001);
        c = comm_free(c);
        m = comm_mesh_free(m);
}

TEST(eight_ranks) {
        struct ranks r = { .n = 8, .fn = eight_fn };

        ranks_start(&r);
        CU_ASSERT_EQUAL(ranks_wait(&r, -1), 0);
}

/* The layout tp=2 x dp=2: groups that cross share one mesh; pipeline neighbours send and receive in between. */
static void groups_fn(struct ranks *r, int rank) {
        int tp[2] = { rank & ~1, rank | 1 }, dp[2] = { rank & 1, (rank & 1) + 2 }, n = 30011;
        struct comm *ct = NULL, *cd = NULL, *cw;
        struct comm_mesh *m = NULL;
        struct error e = { 0 };
        int32_t *a = malloc((size_t)n * 4), *b = malloc((size_t)n * 4);

        RANK_CHECK(r, a && b);
        RANK_OK(r, ranks_mesh(r, 1, &m, &e), e);
        RANK_OK(r, comm_new(m, tp, 2, 1, &ct, &e), e);
        RANK_OK(r, comm_new(m, dp, 2, 2, &cd, &e), e);
        cw = ranks_world(r, m);
        for (int round = 0; round < (TEST_SANITIZED ? 10 : 50); round++) {
                for (int i = 0; i < n; i++)
                        a[i] = rank + i + round;
                RANK_OK(r, comm_all_reduce(ct, a, (size_t)n, DT_I32, COMM_SUM, NULL, &e), e);
                for (int i = 0; i < n; i++)
                        RANK_CHECK(r, a[i] == tp[0] + tp[1] + 2 * (i + round));
                RANK_OK(r, comm_all_reduce(cd, a, (size_t)n, DT_I32, COMM_SUM, NULL, &e), e);
                for (int i = 0; i < n; i++)
                        RANK_CHECK(r, a[i] == 0 + 1 + 2 + 3 + 4 * (i + round));
                /* towards the next of the world, uneven sizes in both directions at once */
                a[0] = rank;
                RANK_OK(r, comm_send_recv(cw, a, (size_t)(n - rank) * 4, (rank + 1) % 4, b, (size_t)(n - (rank + 3) % 4) * 4, (rank + 3) % 4, NULL, &e), e);
                RANK_CHECK(r, b[0] == (rank + 3) % 4 && b[1] == a[1]);
                if (rank % 2 == 0)
                        RANK_OK(r, comm_send(ct, a, (size_t)n * 4, 1, NULL, &e), e);
                else
                        RANK_OK(r, comm_recv(ct, b, (size_t)n * 4, 0, NULL, &e), e);
                RANK_CHECK(r, rank % 2 == 0 || b[0] == rank - 1);
        }
        RANK_CHECK(r, comm_send(ct, a, 4, comm_rank(ct), NULL, &e) == -EINVAL);
        RANK_CHECK(r, comm_broadcast(ct, a, 4, 2, NULL, &e) == -EINVAL);
        RANK_CHECK(r, comm_all_reduce(ct, a, 4, DT_E4M3, COMM_SUM, NULL, &e) == -EINVAL);
        RANK_OK(r, comm_barrier(cw, &e), e);
        ct = comm_free(ct);
        cd = comm_free(cd);
        cw = comm_free(cw);
        m = comm_mesh_free(m);
        free(a);
        free(b);
}

TEST(crossing_groups_in_one_mesh) {
        struct ranks r = { .n = 4, .fn = groups_fn };

        ranks_start(&r);
        CU_ASSERT_EQUAL(ranks_wait(&r, -1), 0);
}

static void nan_fn(struct ranks *r, int rank) {
        struct comm_mesh *m = NULL;
        struct error e = { 0 };
        struct comm *c;
        size_t n = 100003;
        dev_real *a = malloc(n * sizeof(dev_real));

        RANK_CHECK(r, a);
        RANK_OK(r, ranks_mesh(r, 1, &m, &e), e);
        c = ranks_world(r, m);
        for (int at = 0; at < r->n; at++)
                for (size_t count = 5; count <= n; count += n - 5) {
                        for (size_t i = 0; i < count; i++)
                                a[i] = (dev_real)rank;
                        if (rank == at)
                                a[2] = (dev_real)NAN;
                        RANK_OK(r, comm_all_reduce(c, a, count, DT_F32, at % 2 ? COMM_MAX : COMM_MIN, NULL, &e), e);
                        RANK_CHECK(r, isnan(a[2]) && a[1] == (dev_real)(at % 2 ? r->n - 1 : 0) && a[3] == a[1]);
                }
        c = comm_free(c);
        m = comm_mesh_free(m);
        free(a);
}

TEST(a_nan_is_never_hidden_by_max_or_min) {
        struct ranks r = { .n = 3, .fn = nan_fn };

        ranks_start(&r);
        CU_ASSERT_EQUAL(ranks_wait(&r, -1), 0);
}

static void flight_fn(struct ranks *r, int rank) {
        struct comm_peer peers[RANKS_MOST];
        struct comm_mesh_config c = ranks_config(r, 1, peers);
        struct comm_mesh *m = NULL;
        struct flight *f = NULL;
        struct error e = { 0 };
        struct comm *w;
        dev_real x[3] = { 1, 2, 3 };
        int fd = -1;

        RANK_OK(r, flight_create(&fd, &e), e);
        RANK_OK(r, flight_map(fd, &f, &e), e);
        c.flight = f;
        RANK_OK(r, comm_mesh_new(r->listener, r->abort, &c, &m, &e), e);
        w = ranks_world(r, m);
        for (int i = 0; i < 3; i++)
                RANK_OK(r, comm_all_reduce(w, x, 3, DT_F32, COMM_SUM, NULL, &e), e);
        RANK_OK(r, comm_barrier(w, &e), e);
        RANK_CHECK(r, atomic_load(&f->head) == 4);
        for (uint64_t s = 1; s <= 4; s++) {
                const struct flight_entry *x1 = &f->ring[s % FLIGHT_RING];

                RANK_CHECK(r, atomic_load(&x1->seq) == s && x1->op == (s < 4 ? FLIGHT_ALL_REDUCE : FLIGHT_BARRIER));
                RANK_CHECK(r, atomic_load(&x1->left_ns) >= atomic_load(&x1->entered_ns) && atomic_load(&x1->entered_ns) > 0);
        }
        w = comm_free(w);
        m = comm_mesh_free(m);
        f = flight_unmap(f);
        close(fd);
}

TEST(every_collective_is_numbered_in_the_recorder) {
        struct ranks r = { .n = 2, .fn = flight_fn };

        ranks_start(&r);
        CU_ASSERT_EQUAL(ranks_wait(&r, -1), 0);
}

TEST(bf16_rounds_as_the_kernels_do) {
        uint16_t *in = malloc(65536 * 2), *out = malloc(65536 * 2);
        uint64_t bad = 0;

        CU_ASSERT_FATAL(in && out);
        for (unsigned i = 0; i < 65536; i++)
                in[i] = (uint16_t)i;
        for (unsigned k = 0; k < 65536; k += 251) { /* each value plus k, in F32 */
                uint16_t second[256];
                const uint16_t *src[2] = { NULL, second };

                for (unsigned i = 0; i < 256; i++)
                        second[i] = (uint16_t)k;
                for (unsigned at = 0; at < 65536; at += 256) {
                        src[0] = in + at;
                        reduce_bf16(out + at, src, 2, 256, COMM_SUM);
                }
                for (unsigned i = 0; i < 65536; i++) {
                        float want = bf16_to_float(in[i]) + bf16_to_float((uint16_t)k);
                        bool nan = isnan(want) && isnan(bf16_to_float(out[i]));

                        bad += !nan && out[i] != bf16_from_float(want);
                }
        }
        CU_ASSERT_EQUAL(bad, 0);
        free(in);
        free(out);
}

TEST_MAIN("comm")
