/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/loop.h"
#include "test.h"

struct state {
        struct loop *loop;
        struct loop_source *a, *b;
        int fds[2], calls_a, calls_b, order[64], n;
        uint64_t fired_ns;
};

static void setup(struct state *s) {
        *s = (struct state){ 0 };
        CU_ASSERT_EQUAL_FATAL(loop_new(&s->loop), 0);
        CU_ASSERT_EQUAL_FATAL(pipe(s->fds), 0);
}

static void teardown(struct state *s) {
        s->loop = loop_free(s->loop);
        CU_ASSERT_PTR_NULL(s->loop);
        close(s->fds[0]);
        close(s->fds[1]);
}

static void read_one(void *arg, uint32_t revents) {
        struct state *s = arg;
        char c;

        if (revents & EPOLLIN && read(s->fds[0], &c, 1) == 1)
                s->calls_a++;
}

TEST(fd_events) {
        struct state s;

        setup(&s);
        CU_ASSERT_EQUAL(loop_add_fd(s.loop, s.fds[0], EPOLLIN, read_one, &s, &s.a), 0);
        CU_ASSERT_EQUAL(loop_add_fd(s.loop, s.fds[0], EPOLLIN, read_one, &s, NULL), -EEXIST);
        CU_ASSERT_EQUAL(loop_add_fd(s.loop, -1, EPOLLIN, read_one, &s, NULL), -EBADF);
        CU_ASSERT_EQUAL(loop_turn(s.loop, 0), 0);
        CU_ASSERT_EQUAL(s.calls_a, 0);
        CU_ASSERT_EQUAL(write(s.fds[1], "xy", 2), 2);
        loop_turn(s.loop, 1000);
        loop_turn(s.loop, 1000); /* level-triggered */
        CU_ASSERT_EQUAL(s.calls_a, 2);
        CU_ASSERT_EQUAL(write(s.fds[1], "z", 1), 1);
        CU_ASSERT_EQUAL(loop_fd_set_events(s.a, 0), 0);
        loop_turn(s.loop, 0);
        CU_ASSERT_EQUAL(s.calls_a, 2);
        CU_ASSERT_EQUAL(loop_fd_set_events(s.a, EPOLLIN), 0);
        loop_turn(s.loop, 1000);
        CU_ASSERT_EQUAL(s.calls_a, 3);
        CU_ASSERT_PTR_NULL(loop_remove(s.a));
        CU_ASSERT_PTR_NULL(loop_remove(NULL));
        teardown(&s);
}

static void remove_both_a(void *arg, uint32_t revents) {
        struct state *s = arg;

        s->calls_a++;
        s->a = loop_remove(s->a);
        s->b = loop_remove(s->b);
}

static void remove_both_b(void *arg, uint32_t revents) {
        struct state *s = arg;

        s->calls_b++;
        s->a = loop_remove(s->a);
        s->b = loop_remove(s->b);
}

/* Both are ready in one turn; whichever comes first removes both: the other must not be called any more. */
TEST(a_removed_source_is_not_called) {
        struct state s;
        int other[2];

        setup(&s);
        CU_ASSERT_EQUAL_FATAL(pipe(other), 0);
        CU_ASSERT_EQUAL(loop_add_fd(s.loop, s.fds[0], EPOLLIN, remove_both_a, &s, &s.a), 0);
        CU_ASSERT_EQUAL(loop_add_fd(s.loop, other[0], EPOLLIN, remove_both_b, &s, &s.b), 0);
        CU_ASSERT_EQUAL(write(s.fds[1], "x", 1), 1);
        CU_ASSERT_EQUAL(write(other[1], "x", 1), 1);
        loop_turn(s.loop, 1000);
        loop_turn(s.loop, 0);
        CU_ASSERT_EQUAL(s.calls_a + s.calls_b, 1);
        teardown(&s);
        close(other[0]);
        close(other[1]);
}

static void note(void *arg) {
        struct state *s = arg;

        s->order[s->n++] = 1;
        s->fired_ns = clock_mono_ns();
}

static void note_two(void *arg) {
        struct state *s = arg;

        s->order[s->n++] = 2;
}

TEST(timers_fire_in_order_and_not_early) {
        uint64_t now = clock_mono_ns(), early = now + 5 * NSEC_PER_MSEC, late = now + 12 * NSEC_PER_MSEC;
        struct loop_source *off;
        struct state s;

        setup(&s);
        CU_ASSERT_EQUAL(loop_add_timer(s.loop, late, note, &s, &s.a), 0);
        CU_ASSERT_EQUAL(loop_add_timer(s.loop, early, note_two, &s, &s.b), 0);
        CU_ASSERT_EQUAL(loop_add_timer(s.loop, 0, note, &s, &off), 0);
        while (s.n < 2 && clock_mono_ns() < now + 2 * NSEC_PER_SEC)
                loop_turn(s.loop, 100);
        CU_ASSERT_EQUAL(s.n, 2);
        CU_ASSERT_EQUAL(s.order[0], 2);
        CU_ASSERT_EQUAL(s.order[1], 1);
        CU_ASSERT_TRUE(s.fired_ns >= late);
        /* set, then moved later, then off: nothing fires */
        loop_timer_set(off, clock_mono_ns() + NSEC_PER_MSEC);
        loop_timer_set(off, UINT64_MAX);
        loop_turn(s.loop, 5);
        loop_turn(s.loop, 5);
        CU_ASSERT_EQUAL(s.n, 2);
        loop_timer_set(off, 1); /* long past: at once */
        loop_turn(s.loop, 1000);
        CU_ASSERT_EQUAL(s.n, 3);
        loop_timer_set(off, 1);
        loop_remove(off);
        loop_turn(s.loop, 2);
        CU_ASSERT_EQUAL(s.n, 3);
        teardown(&s);
}

static void rearm_past(void *arg) {
        struct state *s = arg;

        s->calls_a++;
        loop_timer_set(s->a, 1);
}

TEST(a_timer_set_to_the_past_by_its_handler_does_not_starve_the_loop) {
        struct state s;

        setup(&s);
        CU_ASSERT_EQUAL(loop_add_timer(s.loop, 1, rearm_past, &s, &s.a), 0);
        for (int i = 1; i <= 5; i++) {
                loop_turn(s.loop, 1000);
                CU_ASSERT_EQUAL(s.calls_a, i);
        }
        teardown(&s);
}

static void remove_other_timer(void *arg) {
        struct state *s = arg;

        s->calls_a++;
        s->b = loop_remove(s->b);
        s->a = loop_remove(s->a);
}

TEST(a_timer_may_remove_others_and_itself) {
        struct state s;

        setup(&s);
        CU_ASSERT_EQUAL(loop_add_timer(s.loop, 1, remove_other_timer, &s, &s.a), 0);
        CU_ASSERT_EQUAL(loop_add_timer(s.loop, 2, note, &s, &s.b), 0);
        loop_turn(s.loop, 1000);
        loop_turn(s.loop, 0);
        CU_ASSERT_EQUAL(s.calls_a, 1);
        CU_ASSERT_EQUAL(s.n, 0);
        teardown(&s);
}

static void on_signal(void *arg, int signo) {
        struct state *s = arg;

        s->order[s->n++] = signo;
}

TEST(signals) {
        sigset_t set, old;
        struct state s;

        setup(&s);
        sigemptyset(&set);
        sigaddset(&set, SIGUSR1);
        pthread_sigmask(SIG_BLOCK, &set, &old);
        CU_ASSERT_EQUAL(loop_add_signal(s.loop, SIGUSR1, on_signal, &s, NULL), 0);
        kill(getpid(), SIGUSR1);
        loop_turn(s.loop, 1000);
        CU_ASSERT_EQUAL(s.n, 1);
        CU_ASSERT_EQUAL(s.order[0], SIGUSR1);
        teardown(&s);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
}

#define POSTS 2000

struct posting {
        struct loop *loop;
        int seen, in_order;
        struct post_item {
                struct posting *p;
                int i;
        } items[POSTS];
};

static void on_post(void *arg) {
        struct post_item *item = arg;
        struct posting *p = item->p;

        p->in_order += item->i == p->seen;
        if (++p->seen == POSTS)
                loop_stop(p->loop, 42);
}

static void *post_all(void *arg) {
        struct posting *p = arg;

        for (int i = 0; i < POSTS; i++) {
                p->items[i] = (struct post_item){ p, i };
                if (loop_post(p->loop, on_post, &p->items[i]) < 0)
                        loop_stop(p->loop, -1);
        }
        return NULL;
}

TEST(posts_from_another_thread_come_in_order) {
        struct posting *p = calloc(1, sizeof(*p));
        pthread_t thread;

        CU_ASSERT_EQUAL_FATAL(loop_new(&p->loop), 0);
        CU_ASSERT_EQUAL_FATAL(pthread_create(&thread, NULL, post_all, p), 0);
        CU_ASSERT_EQUAL(loop_run(p->loop), 42);
        CU_ASSERT_EQUAL(p->in_order, POSTS);
        pthread_join(thread, NULL);
        /* a post that is never run is freed with the loop; the loop can run again after a stop */
        CU_ASSERT_EQUAL(loop_post(p->loop, on_post, &p->items[0]), 0);
        loop_stop(p->loop, 7);
        CU_ASSERT_EQUAL(loop_run(p->loop), 7);
        loop_free(p->loop);
        free(p);
}

TEST_MAIN("loop")
