/* SPDX-License-Identifier: Apache-2.0 */
/* Deaths of processes that hold a flight recorder, as the worker's loop hears of them. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/loop.h"
#include "proto/flight.h"
#include "tests/test.h"
#include "worker/agent/watcher.h"

#define RANKS 4

struct rank {
        int fd;
        struct flight *flight;
        pid_t pid;
        struct watcher *watcher;
        unsigned deaths;
};

struct node {
        struct loop *loop;
        struct rank ranks[RANKS];
};

static void on_death(void *arg) {
        ((struct rank *)arg)->deaths++;
}

static void watch(struct node *n, struct rank *r) {
        struct error e = { 0 };

        ASSERT_OK(flight_create(&r->fd, &e), e);
        ASSERT_OK(flight_map(r->fd, &r->flight, &e), e);
        ASSERT_OK(watcher_new(n->loop, r->fd, on_death, r, &r->watcher, &e), e);
}

static void hold(struct rank *r) {
        r->pid = fork();
        CU_ASSERT_FATAL(r->pid >= 0);
        if (r->pid == 0) {
                if (flight_hold(r->flight, NULL) < 0)
                        _exit(1);
                for (;;)
                        pause();
        }
        while (!atomic_load(&r->flight->alive_held))
                usleep(200);
}

static void end(struct node *n) {
        for (int i = 0; i < RANKS; i++) {
                struct rank *r = &n->ranks[i];

                watcher_free(r->watcher);
                if (r->pid > 0) {
                        kill(r->pid, SIGKILL);
                        waitpid(r->pid, NULL, 0);
                }
                flight_unmap(r->flight);
                if (r->flight)
                        close(r->fd);
        }
        loop_free(n->loop);
}

static void turn(struct node *n, unsigned ms) {
        uint64_t until = clock_mono_ns() + ms * NSEC_PER_MSEC;

        while (clock_mono_ns() < until)
                loop_turn(n->loop, 5);
}

TEST(each_death_is_told_once) {
        struct node n = { 0 };
        uint64_t until = clock_mono_ns() + 10 * NSEC_PER_SEC;
        unsigned deaths = 0;

        CU_ASSERT_EQUAL_FATAL(loop_new(&n.loop), 0);
        /* Watched before they are held, as the worker does when a rank is being started. */
        for (int i = 0; i < RANKS; i++)
                watch(&n, &n.ranks[i]);
        for (int i = 0; i < RANKS; i++)
                hold(&n.ranks[i]);
        turn(&n, 3 * WATCHER_SLICE_MS);
        for (int i = 0; i < RANKS; i++)
                CU_ASSERT_EQUAL(n.ranks[i].deaths, 0);
        for (int i = 0; i < RANKS - 1; i++)
                kill(n.ranks[i].pid, SIGKILL);
        while (deaths < RANKS - 1 && clock_mono_ns() < until) {
                loop_turn(n.loop, 5);
                deaths = 0;
                for (int i = 0; i < RANKS; i++)
                        deaths += n.ranks[i].deaths;
        }
        turn(&n, 3 * WATCHER_SLICE_MS);
        for (int i = 0; i < RANKS; i++)
                CU_ASSERT_EQUAL(n.ranks[i].deaths, i < RANKS - 1);
        end(&n);
}

TEST(nothing_is_told_after_the_end) {
        struct node n = { 0 };
        struct rank *told = &n.ranks[0], *alive = &n.ranks[1], *never = &n.ranks[2];

        CU_ASSERT_EQUAL_FATAL(loop_new(&n.loop), 0);
        for (int i = 0; i < 3; i++)
                watch(&n, &n.ranks[i]);
        hold(told);
        hold(alive);
        kill(told->pid, SIGKILL);
        CU_ASSERT_EQUAL(flight_wait_death(told->flight, 10 * NSEC_PER_SEC), 0);
        usleep(2000 * WATCHER_SLICE_MS); /* posted by now; the loop has not looked yet */
        told->watcher = watcher_free(told->watcher);
        alive->watcher = watcher_free(alive->watcher);
        never->watcher = watcher_free(never->watcher);
        kill(alive->pid, SIGKILL);
        turn(&n, 3 * WATCHER_SLICE_MS);
        CU_ASSERT_EQUAL(told->deaths + alive->deaths + never->deaths, 0);
        end(&n);
}

TEST_MAIN("watcher")
