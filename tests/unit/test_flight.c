/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "proto/flight.h"
#include "test.h"

/* A child that holds the recorder and then sleeps; returns its pid when it holds it. */
static pid_t start_holder(struct flight *f) {
        pid_t pid = fork();

        CU_ASSERT_FATAL(pid >= 0);
        if (pid == 0) {
                if (flight_hold(f, NULL) < 0)
                        _exit(1);
                for (;;)
                        pause();
        }
        while (!f->alive_held)
                usleep(200);
        return pid;
}

TEST(death_by_sigkill_is_seen_and_stays) {
        struct flight *f;
        struct error e;
        uint64_t t0, ns;
        pid_t pid;
        int fd = -1;

        ASSERT_OK(flight_create(&fd, &e), e);
        ASSERT_OK(flight_map(fd, &f, &e), e);
        CU_ASSERT_EQUAL(flight_wait_death(f, 0), -EAGAIN);
        pid = start_holder(f);
        CU_ASSERT_EQUAL(f->pid, (uint32_t)pid);
        CU_ASSERT_EQUAL(flight_wait_death(f, 5 * NSEC_PER_MSEC), -ETIMEDOUT);
        ASSERT_ERROR(flight_hold(f, &e), -EBUSY, e, "taken");
        t0 = clock_mono_ns();
        kill(pid, SIGKILL);
        CU_ASSERT_EQUAL(flight_wait_death(f, 10 * NSEC_PER_SEC), 0);
        ns = clock_mono_ns() - t0;
        printf("    seen after %.3f ms\n", (double)ns / 1e6);
        CU_ASSERT_EQUAL(flight_wait_death(f, 0), 0);
        CU_ASSERT_EQUAL(flight_wait_death(f, UINT64_MAX), 0);
        ASSERT_ERROR(flight_hold(f, &e), -EBUSY, e, "dead");
        waitpid(pid, NULL, 0);
        flight_unmap(f);
        close(fd);
}

TEST(an_exit_is_a_death_too) {
        struct flight *f;
        struct error e;
        pid_t pid;
        int fd = -1;

        ASSERT_OK(flight_create(&fd, &e), e);
        ASSERT_OK(flight_map(fd, &f, &e), e);
        pid = fork();
        CU_ASSERT_FATAL(pid >= 0);
        if (pid == 0) {
                flight_hold(f, NULL);
                _exit(0);
        }
        waitpid(pid, NULL, 0);
        CU_ASSERT_EQUAL(flight_wait_death(f, NSEC_PER_SEC), 0);
        flight_unmap(f);
        close(fd);
}

TEST(ring_keeps_the_newest) {
        struct flight_record r;
        struct flight *f;
        struct error e;
        uint64_t seq = 0;
        int fd = -1;

        ASSERT_OK(flight_create(&fd, &e), e);
        ASSERT_OK(flight_map(fd, &f, &e), e);
        flight_begin_epoch(f, 3);
        CU_ASSERT_EQUAL(f->epoch, 3);
        for (uint64_t i = 1; i <= FLIGHT_RING + 5; i++) {
                seq = flight_enter(f, &(struct flight_call){ FLIGHT_ALL_GATHER, 7, i * 10, i, -1, -1 });
                CU_ASSERT_EQUAL(seq, i);
                if (i != FLIGHT_RING + 5)
                        flight_leave(f, seq);
        }
        CU_ASSERT_EQUAL(f->head, FLIGHT_RING + 5);
        CU_ASSERT_TRUE_FATAL(flight_read(f, seq, &r));
        CU_ASSERT_EQUAL(r.op, FLIGHT_ALL_GATHER);
        CU_ASSERT_EQUAL(r.group, 7);
        CU_ASSERT_EQUAL(r.bytes, (FLIGHT_RING + 5) * 10);
        CU_ASSERT_TRUE(r.entered_ns > 0);
        CU_ASSERT_EQUAL(r.left_ns, 0); /* still in it */
        CU_ASSERT_TRUE(flight_read(f, seq - 1, &r));
        CU_ASSERT_TRUE(r.left_ns >= r.entered_ns);
        CU_ASSERT_TRUE(flight_read(f, 6, &r));
        CU_ASSERT_FALSE(flight_read(f, 5, &r)); /* overwritten */
        CU_ASSERT_FALSE(flight_read(f, seq + 1, &r));
        CU_ASSERT_FALSE(flight_read(f, 0, &r));
        flight_leave(f, 5); /* of an entry that is gone: nothing happens */
        flight_begin_epoch(f, 4);
        CU_ASSERT_FALSE(flight_read(f, seq, &r));
        CU_ASSERT_EQUAL(flight_enter(f, &(struct flight_call){ .op = FLIGHT_BARRIER }), 1);
        flight_unmap(f);
        close(fd);
}

TEST(lease_and_phase) {
        struct flight *f;
        struct error e;
        int fd = -1;

        ASSERT_OK(flight_create(&fd, &e), e);
        ASSERT_OK(flight_map(fd, &f, &e), e);
        CU_ASSERT_FALSE(flight_lease_ok(f)); /* none given */
        f->lease_deadline_ns = clock_mono_ns() + 60 * NSEC_PER_SEC;
        CU_ASSERT_TRUE(flight_lease_ok(f));
        f->lease_deadline_ns = clock_mono_ns();
        CU_ASSERT_FALSE(flight_lease_ok(f));
        flight_set_phase(f, FLIGHT_UPDATE);
        CU_ASSERT_EQUAL(f->phase, FLIGHT_UPDATE);
        CU_ASSERT_TRUE(f->phase_since_ns > 0);
        CU_ASSERT_STRING_EQUAL(flight_phase_name(FLIGHT_UPDATE), "update");
        CU_ASSERT_STRING_EQUAL(flight_phase_name(FLIGHT_DONE), "done");
        CU_ASSERT_STRING_EQUAL(flight_phase_name(99), "unknown");
        CU_ASSERT_STRING_EQUAL(flight_op_name(FLIGHT_BARRIER), "barrier");
        CU_ASSERT_STRING_EQUAL(flight_op_name(FLIGHT_ALL_REDUCE), "all_reduce");
        CU_ASSERT_STRING_EQUAL(flight_op_name(UINT64_MAX), "unknown");
        flight_unmap(f);
        close(fd);
}

TEST(only_a_recorder_is_mapped) {
        struct flight *f = NULL, *good;
        struct error e;
        int fd = -1, other = memfd_create("x", 0), pipes[2];

        CU_ASSERT_EQUAL(ftruncate(other, 100), 0);
        ASSERT_ERROR(flight_map(other, &f, &e), -EBADMSG, e, "found 100 bytes");
        CU_ASSERT_EQUAL(ftruncate(other, sizeof(*f)), 0);
        ASSERT_ERROR(flight_map(other, &f, &e), -EBADMSG, e, "magic 00000000");
        close(other);
        CU_ASSERT_EQUAL(pipe(pipes), 0);
        ASSERT_ERROR(flight_map(pipes[0], &f, &e), -EBADMSG, e, "expected at least");
        close(pipes[0]);
        close(pipes[1]);
        CU_ASSERT_TRUE(flight_map(-1, &f, &e) < 0);
        ASSERT_OK(flight_create(&fd, &e), e);
        CU_ASSERT_EQUAL(ftruncate(fd, 10), -1); /* sealed */
        ASSERT_OK(flight_map(fd, &good, &e), e);
        good->version = FLIGHT_VERSION + 1;
        ASSERT_ERROR(flight_map(fd, &f, &e), -EBADMSG, e, "version 3");
        good->version = FLIGHT_VERSION;
        good->size = UINT64_MAX;
        ASSERT_ERROR(flight_map(fd, &f, &e), -EBADMSG, e, "a size of");
        good->size = 1;
        ASSERT_ERROR(flight_map(fd, &f, &e), -EBADMSG, e, "a size of 1");
        CU_ASSERT_PTR_NULL(f);
        flight_unmap(good);
        flight_unmap(NULL);
        close(fd);
}

TEST_MAIN("flight")
