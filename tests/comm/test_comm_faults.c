/* SPDX-License-Identifier: Apache-2.0 */
/* What happens to a mesh when its peers die, stop, come from another time, or when the rank itself is told to leave. Bounds in time are generous: the machine
 * may be loaded; they tell milliseconds from timeouts, which here are a minute. */
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "tests/comm/ranks.h"
#include "tests/test.h"
#include "worker/comm/comm_private.h"

#define SOON_NS (10 * NSEC_PER_SEC)

/* All-reduces a large buffer until something happens. */
static int reduce_until(struct ranks *r, struct comm *c, size_t count, uint64_t *ret_ns, struct error *e) {
        dev_real *buf = malloc(count * sizeof(dev_real));
        uint64_t start = 0;
        int rc = 0;

        RANK_CHECK(r, buf);
        memset(buf, 0, count * sizeof(dev_real));
        while (rc == 0) {
                start = clock_mono_ns();
                rc = comm_all_reduce(c, buf, count, DT_F32, COMM_SUM, NULL, e);
                atomic_fetch_add(&r->shared->value[r->rank], 1);
        }
        *ret_ns = clock_mono_ns() - start;
        free(buf);
        return rc;
}

/* Waits until every rank has done so many all-reduces. */
static void wait_rounds(struct ranks *r, uint64_t rounds) {
        for (int i = 0; i < r->n; i++)
                while (atomic_load(&r->shared->value[i]) < rounds)
                        usleep(1000);
}

static void killed_fn(struct ranks *r, int rank) {
        int victim = *(int *)r->arg, rc;
        struct comm_mesh *m = NULL;
        struct error e = { 0 };
        struct comm *c;
        uint64_t ns;

        RANK_OK(r, ranks_mesh(r, 1, &m, &e), e);
        c = ranks_world(r, m);
        rc = reduce_until(r, c, 4 << 20, &ns, &e);
        RANK_CHECK(r, rc == COMM_E_PEER_LOST && ns < SOON_NS);
        RANK_CHECK(r, rank != victim && comm_mesh_lost_peer(m) >= 0 && comm_mesh_lost_peer(m) < r->n);
        RANK_CHECK(r, strstr(e.text, "all-reduce") && strstr(e.text, "of epoch 1") && strstr(e.text, "rank "));
        /* an ended mesh stays ended */
        RANK_CHECK(r, comm_barrier(c, &e) == COMM_E_PEER_LOST && strstr(e.text, "has ended"));
        c = comm_free(c);
        m = comm_mesh_free(m);
}

TEST(a_killed_peer_is_seen_by_all) {
        for (int victim = 0; victim < 4; victim += 3) {
                struct ranks r = { .n = 4, .fn = killed_fn, .arg = &victim, .tcp = victim == 3 };

                ranks_start(&r);
                wait_rounds(&r, 2);
                CU_ASSERT_EQUAL(kill(r.pids[victim], SIGKILL), 0);
                CU_ASSERT_EQUAL(ranks_wait(&r, victim), 0);
        }
}

static void stopped_fn(struct ranks *r, int rank) {
        struct comm_mesh *m = NULL;
        struct error e = { 0 };
        struct comm *c;
        uint64_t ns;
        int rc;

        RANK_OK(r, ranks_mesh(r, 1, &m, &e), e);
        c = ranks_world(r, m);
        rc = reduce_until(r, c, 1 << 20, &ns, &e);
        /* whose time is over first closes its connections, which the others see */
        RANK_CHECK(r, rank != 1 && (rc == COMM_E_TIMEOUT || rc == COMM_E_PEER_LOST));
        RANK_CHECK(r, ns >= 400 * NSEC_PER_MSEC && ns < SOON_NS);
        if (rc == COMM_E_TIMEOUT) {
                atomic_fetch_add(&r->shared->value[32], 1);
                RANK_CHECK(r, strstr(e.text, "no byte moved for 500 ms"));
        }
        c = comm_free(c);
        m = comm_mesh_free(m);
}

TEST(a_stopped_peer_is_a_timeout) {
        struct ranks r = { .n = 3, .fn = stopped_fn, .timeout_ms = 500 };

        ranks_start(&r);
        wait_rounds(&r, 2);
        CU_ASSERT_EQUAL(kill(r.pids[1], SIGSTOP), 0);
        for (int i = 0; i < 3; i += 2) {
                siginfo_t info;

                CU_ASSERT_EQUAL(waitid(P_PID, (id_t)r.pids[i], &info, WEXITED | WNOWAIT), 0);
        }
        CU_ASSERT(atomic_load(&r.shared->value[32]) >= 1);
        CU_ASSERT_EQUAL(kill(r.pids[1], SIGKILL), 0);
        CU_ASSERT_EQUAL(ranks_wait(&r, 1), 0);
}

/* Slower than the timeout in all, but never silent for so long. */
static void slow_fn(struct ranks *r, int rank) {
        struct comm_mesh *m = NULL;
        struct error e = { 0 };
        struct comm *c;
        size_t piece = 6 << 20;
        uint8_t *buf = calloc(8, piece);

        RANK_CHECK(r, buf);
        RANK_OK(r, ranks_mesh(r, 1, &m, &e), e);
        c = ranks_world(r, m);
        if (rank == 0) {
                RANK_OK(r, comm_send(c, buf, 8 * piece, 1, NULL, &e), e);
        } else {
                uint64_t start = clock_mono_ns();

                for (int i = 0; i < 8; i++) {
                        usleep(250000);
                        RANK_OK(r, comm_recv(c, buf, piece, 0, NULL, &e), e);
                }
                RANK_CHECK(r, clock_mono_ns() - start > 1500 * NSEC_PER_MSEC);
        }
        c = comm_free(c);
        m = comm_mesh_free(m);
        free(buf);
}

TEST(progress_restarts_the_timeout) {
        struct ranks r = { .n = 2, .fn = slow_fn, .timeout_ms = 1500 };

        ranks_start(&r);
        CU_ASSERT_EQUAL(ranks_wait(&r, -1), 0);
}

struct raiser {
        struct comm_abort *abort;
        unsigned after_us;
        _Atomic uint64_t raised_ns;
};

static void *raise_later(void *arg) {
        struct raiser *x = arg;

        usleep(x->after_us);
        atomic_store(&x->raised_ns, clock_mono_ns());
        comm_abort_raise(x->abort);
        return NULL;
}

static void abort_fn(struct ranks *r, int rank) {
        struct raiser x = { .abort = r->abort, .after_us = 100000 };
        struct comm_mesh *m = NULL;
        struct error e = { 0 };
        struct comm *c;
        pthread_t t;
        uint64_t ns;
        int rc;

        RANK_OK(r, ranks_mesh(r, 1, &m, &e), e);
        c = ranks_world(r, m);
        RANK_CHECK(r, pthread_create(&t, NULL, raise_later, &x) == 0);
        rc = reduce_until(r, c, 2 << 20, &ns, &e);
        /* the first to abort closes its connections */
        RANK_CHECK(r, rc == COMM_E_ABORTED || rc == COMM_E_PEER_LOST);
        RANK_CHECK(r, pthread_join(t, NULL) == 0);
        c = comm_free(c);
        m = comm_mesh_free(m);

        /* waiting for somebody who does not come: nothing but the abort can end it */
        comm_abort_reset(r->abort);
        RANK_OK(r, ranks_mesh(r, 2, &m, &e), e);
        c = ranks_world(r, m);
        uint8_t byte;

        if (rank == 0) {
                x.after_us = 50000;
                RANK_CHECK(r, pthread_create(&t, NULL, raise_later, &x) == 0);
                RANK_CHECK(r, comm_recv(c, &byte, 1, 1, NULL, &e) == COMM_E_ABORTED);
                ns = clock_mono_ns() - atomic_load(&x.raised_ns);
                RANK_CHECK(r, ns < SOON_NS && strstr(e.text, "aborted"));
                RANK_CHECK(r, pthread_join(t, NULL) == 0);
        } else {
                RANK_CHECK(r, comm_recv(c, &byte, 1, 0, NULL, &e) == COMM_E_PEER_LOST);
        }
        c = comm_free(c);
        m = comm_mesh_free(m);
        /* raised: nothing begins */
        comm_abort_raise(r->abort);
        RANK_CHECK(r, ranks_mesh(r, 3, &m, &e) == COMM_E_ABORTED && !m);
}

TEST(abort_from_another_thread) {
        struct ranks r = { .n = 4, .fn = abort_fn };

        ranks_start(&r);
        CU_ASSERT_EQUAL(ranks_wait(&r, -1), 0);
}

static void abort_build_fn(struct ranks *r, int rank) {
        struct raiser x = { .abort = r->abort, .after_us = 100000 };
        struct comm_mesh *m = NULL;
        struct error e = { 0 };
        uint64_t start = clock_mono_ns();
        pthread_t t;

        if (rank == 2) { /* never joins */
                while (atomic_load(&r->shared->value[34]) < 3)
                        usleep(1000);
                return;
        }
        RANK_CHECK(r, pthread_create(&t, NULL, raise_later, &x) == 0);
        int rc = ranks_mesh(r, 1, &m, &e);
        RANK_CHECK(r, (rc == COMM_E_ABORTED || rc == COMM_E_PEER_LOST) && !m && clock_mono_ns() - start < SOON_NS);
        RANK_CHECK(r, pthread_join(t, NULL) == 0);
        atomic_fetch_add(&r->shared->value[34], 1);
}

/* A raise that a reset met half way: the event is there, the flag is not. The abort counts; above all nobody turns in poll for ever. */
static void half_raised_fn(struct ranks *r, int rank) {
        struct comm_mesh *m = NULL;
        struct error e = { 0 };
        struct comm *c;
        uint64_t one = 1;
        uint8_t byte;

        RANK_OK(r, ranks_mesh(r, 1, &m, &e), e);
        c = ranks_world(r, m);
        if (rank == 0) {
                RANK_CHECK(r, write(r->abort->fd, &one, sizeof(one)) == sizeof(one));
                RANK_CHECK(r, comm_recv(c, &byte, 1, 1, NULL, &e) == COMM_E_ABORTED);
        } else {
                RANK_CHECK(r, comm_recv(c, &byte, 1, 0, NULL, &e) == COMM_E_PEER_LOST);
        }
        c = comm_free(c);
        m = comm_mesh_free(m);
        if (rank == 0) /* nobody comes */
                RANK_CHECK(r, ranks_mesh(r, 2, &m, &e) == COMM_E_ABORTED && !m);
}

TEST(an_abort_that_met_a_reset) {
        struct ranks r = { .n = 2, .fn = half_raised_fn };

        ranks_start(&r);
        CU_ASSERT_EQUAL(ranks_wait(&r, -1), 0);
}

TEST(abort_while_the_mesh_is_built) {
        struct ranks r = { .n = 4, .fn = abort_build_fn };

        ranks_start(&r);
        CU_ASSERT_EQUAL(ranks_wait(&r, -1), 0);
}

static void die_build_fn(struct ranks *r, int rank) {
        struct comm_mesh *m = NULL;
        struct error e = { 0 };
        uint64_t start = clock_mono_ns();
        int rc;

        if (rank == 0) { /* keeps the others waiting */
                while (atomic_load(&r->shared->value[35]) < 2)
                        usleep(1000);
                return;
        }
        rc = ranks_mesh(r, 1, &m, &e);
        RANK_CHECK(r, rank != 3 && rc == COMM_E_PEER_LOST && !m && clock_mono_ns() - start < SOON_NS);
        RANK_CHECK(r, strstr(e.text, "before the mesh was complete"));
        atomic_fetch_add(&r->shared->value[35], 1);
}

TEST(death_while_the_mesh_is_built) {
        struct ranks r = { .n = 4, .fn = die_build_fn };

        ranks_start(&r);
        usleep(300000); /* 1, 2 and 3 know each other by now */
        CU_ASSERT_EQUAL(kill(r.pids[3], SIGKILL), 0);
        CU_ASSERT_EQUAL(ranks_wait(&r, 3), 0);
}

static void rebuild_fn(struct ranks *r, int rank) {
        struct error e = { 0 };

        for (uint64_t epoch = 1; epoch <= 20; epoch++) {
                struct comm_mesh *m = NULL;
                struct comm *c;
                dev_real x[5] = { 1, (dev_real)rank, 0, 0, (dev_real)epoch };

                RANK_OK(r, ranks_mesh(r, epoch, &m, &e), e);
                c = ranks_world(r, m);
                RANK_OK(r, comm_all_reduce(c, x, 5, DT_F32, COMM_SUM, NULL, &e), e);
                RANK_CHECK(r, x[0] == 4 && x[1] == 6 && x[4] == (dev_real)(4 * epoch));
                /* half of the epochs end in the middle of something */
                if (epoch % 2) {
                        size_t count = 1 << 18;
                        dev_real *buf = calloc(count, sizeof(dev_real));

                        RANK_CHECK(r, buf);
                        if ((uint64_t)rank == epoch % 4)
                                comm_abort_raise(r->abort);
                        int rc = comm_all_reduce(c, buf, count, DT_F32, COMM_SUM, NULL, &e);
                        RANK_CHECK(r, rc == ((uint64_t)rank == epoch % 4 ? COMM_E_ABORTED : COMM_E_PEER_LOST));
                        free(buf);
                }
                c = comm_free(c);
                m = comm_mesh_free(m);
                comm_abort_reset(r->abort);
        }
}

TEST(twenty_epochs_in_the_same_processes) {
        for (int tcp = 0; tcp < 2; tcp++) {
                struct ranks r = { .n = 4, .fn = rebuild_fn, .tcp = tcp };

                ranks_start(&r);
                CU_ASSERT_EQUAL(ranks_wait(&r, -1), 0);
        }
}

/* Rank 1 comes with something wrong; rank 0 refuses it, goes on waiting, and takes it once it comes right. */
static void refused_fn(struct ranks *r, int rank) {
        int what = *(int *)r->arg;
        struct comm_peer peers[RANKS_MOST];
        struct comm_mesh_config c = ranks_config(r, 5, peers);
        struct comm_mesh *m = NULL;
        struct error e = { 0 };

        if (rank == 1) {
                struct comm_mesh_config wrong = c;
                struct comm_peer other[RANKS_MOST];

                memcpy(other, peers, sizeof(other));
                wrong.peers = other;
                wrong.connect_timeout_ms = 300;
                if (what == 0)
                        wrong.key[31] ^= 1;
                else if (what == 1)
                        wrong.epoch = 4;
                else if (what == 2)
                        wrong.job = 8;
                else if (what == 3)
                        other[1].incarnation = 99; /* an earlier life of rank 1 */
                else
                        other[0].incarnation = 99; /* looks for an earlier life of rank 0 */
                RANK_CHECK(r, comm_mesh_new(r->listener, r->abort, &wrong, &m, &e) == COMM_E_TIMEOUT && !m);
                RANK_CHECK(r, strstr(e.text, "1 ranks not met within 300 ms (0)"));
        }
        RANK_OK(r, comm_mesh_new(r->listener, r->abort, &c, &m, &e), e);
        if (rank == 0)
                RANK_CHECK(r, comm_listener_refused(r->listener) >= 1);
        struct comm *w = ranks_world(r, m);
        RANK_OK(r, comm_barrier(w, &e), e);
        w = comm_free(w);
        m = comm_mesh_free(m);
}

TEST(wrong_key_epoch_job_and_incarnation_are_refused) {
        for (int what = 0; what < 5; what++) {
                struct ranks r = { .n = 2, .fn = refused_fn, .arg = &what, .tcp = what % 2 };

                ranks_start(&r);
                CU_ASSERT_EQUAL(ranks_wait(&r, -1), 0);
        }
}

static int connect_to(const char *path) {
        struct sockaddr_un a = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        (void)snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
        if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0)
                return fd;
        if (fd >= 0)
                close(fd);
        return -1;
}

/* More strangers than are let in at once, silent, talking nonsense, or hanging up; the mesh comes about all the same. */
static void strangers_fn(struct ranks *r, int rank) {
        struct comm_mesh *m = NULL;
        struct error e = { 0 };
        int fds[150];

        if (rank == 1) {
                const char *path = r->shared->endpoint[0] + strlen("unix:");
                uint8_t noise[200];

                memset(noise, 0x5a, sizeof(noise));
                for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
                        fds[i] = connect_to(path);
                        RANK_CHECK(r, fds[i] >= 0);
                        if (i % 3 == 1)
                                RANK_CHECK(r, send(fds[i], noise, i, MSG_NOSIGNAL) == (ssize_t)i);
                        if (i % 3 == 2) {
                                close(fds[i]);
                                fds[i] = -1;
                        }
                }
        } else {
                usleep(100000); /* they wait in the backlog */
        }
        RANK_OK(r, ranks_mesh(r, 1, &m, &e), e);
        if (rank == 0)
                RANK_CHECK(r, comm_listener_refused(r->listener) > 0);
        m = comm_mesh_free(m);
        for (size_t i = 0; rank == 1 && i < ARRAY_SIZE(fds); i++)
                if (fds[i] >= 0)
                        close(fds[i]);
}

TEST(strangers_do_not_hold_up_a_mesh) {
        struct ranks r = { .n = 2, .fn = strangers_fn };

        ranks_start(&r);
        CU_ASSERT_EQUAL(ranks_wait(&r, -1), 0);
}

static void nobody_fn(struct ranks *r, int rank) {
        struct comm_mesh *m = NULL;
        struct error e = { 0 };

        if (rank == 1) {
                RANK_CHECK(r, ranks_mesh(r, 1, &m, &e) == COMM_E_TIMEOUT && !m);
                RANK_CHECK(r, strstr(e.text, "2 ranks not met within 200 ms (0, 2)"));
        }
        (void)pthread_barrier_wait(&r->shared->met);
}

TEST(the_message_names_who_did_not_come) {
        struct ranks r = { .n = 3, .fn = nobody_fn, .connect_timeout_ms = 200 };

        ranks_start(&r);
        CU_ASSERT_EQUAL(ranks_wait(&r, -1), 0);
}

TEST(listeners) {
        _cleanup_free_ char *deep = NULL;
        struct comm_listener *l = NULL;
        struct error e = { 0 };
        char dir[] = "/tmp/fp8ctl-comm-XXXXXX", name[150];

        CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(dir));
        CU_ASSERT_EQUAL(comm_listener_new(NULL, NULL, "r0", &l, &e), -EINVAL);
        ASSERT_ERROR(comm_listener_new("/nonexistent/folder", NULL, "r0", &l, &e), -ENOENT, e, "/nonexistent/folder/r0.sock");
        CU_ASSERT_PTR_NULL(l);
        /* a path longer than a socket address holds */
        memset(name, 'd', sizeof(name));
        name[sizeof(name) - 1] = '\0';
        deep = file_path("%s/%s", dir, name);
        CU_ASSERT_PTR_NOT_NULL_FATAL(deep);
        ASSERT_OK(file_mkdir_p(deep, 0700, &e), e);
        ASSERT_OK(comm_listener_new(deep, "127.0.0.1", "r0", &l, &e), e);
        CU_ASSERT_PTR_NOT_NULL(strstr(comm_listener_endpoint(l), ",tcp:127.0.0.1:"));
        l = comm_listener_free(l);
        /* what an earlier life left is replaced, and nothing is left behind */
        ASSERT_OK(comm_listener_new(dir, NULL, "r0", &l, &e), e);
        (void)snprintf(name, sizeof(name), "%s/r0.sock", dir);
        CU_ASSERT_EQUAL(access(name, F_OK), 0);
        l = comm_listener_free(l);
        CU_ASSERT_EQUAL(access(name, F_OK), -1);
        (void)file_remove_tree(dir, NULL);
}

/* A link that is back is found out within a second, however long it was down. Kernels before 6.15 do not have the option: nothing to see there. */
TEST(tcp_backs_off_no_further_than_a_second) {
        _cleanup_close_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        socklen_t size = sizeof(int);
        int found = 0;

        CU_ASSERT_FATAL(fd >= 0);
        comm_socket_tune(fd, true);
        if (getsockopt(fd, IPPROTO_TCP, COMM_TCP_RTO_MAX_MS, &found, &size) == 0) {
                CU_ASSERT_EQUAL(found, 1000);
        } else {
                CU_ASSERT_EQUAL(errno, ENOPROTOOPT);
        }
}

TEST_MAIN("comm-faults")
