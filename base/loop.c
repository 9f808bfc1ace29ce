/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Event loop over epoll.  Timers live in one list sorted by deadline, served by one timerfd (epoll's own timeout counts in milliseconds, recovery in
 * fractions of one).  loop_post and loop_stop wake the loop through an eventfd.
 *
 * Lifetime: a handler may remove any source, also one whose event epoll_wait has already returned.  loop_remove therefore only marks the source dead and
 * moves it to a list that is freed when no handler of this turn can hold it any more.
 */
#include "base/loop.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"

#define EVENTS_A_TURN 64

enum source_kind { SOURCE_FD, SOURCE_TIMER, SOURCE_SIGNAL };

struct loop_source {
        struct loop *loop;
        struct loop_source *prev, *next; /* in loop->sources, or (next only) in loop->dead */
        enum source_kind kind;
        bool dead;
        void *arg;
        union {
                struct {
                        int fd;
                        void (*fn)(void *arg, uint32_t revents);
                } io;
                struct {
                        uint64_t deadline; /* 0: off, not in loop->timers */
                        struct loop_source *prev, *next;
                        void (*fn)(void *arg);
                } timer;
                struct {
                        int fd, signo;
                        void (*fn)(void *arg, int signo);
                } signal;
        };
};

struct post {
        struct post *next;
        void (*fn)(void *arg);
        void *arg;
};

struct loop {
        int epoll_fd, timer_fd, wake_fd;
        struct loop_source *sources, *timers, *dead;
        uint64_t armed; /* what timer_fd is set to, 0: off */
        uint64_t firing; /* while timers are run: the time they are run for; what is set then comes later */
        int depth;      /* loop_turn inside a handler: the outer one may hold dead sources */
        pthread_mutex_t post_lock;
        struct post *posts, **posts_tail;
        atomic_bool stopped;
        atomic_int stop_code;
};

DEFINE_CLEANUP(struct loop *, loop_free);

static int watch(struct loop *l, int fd, uint32_t events, void *tag) {
        struct epoll_event ev = { .events = events, .data = { .ptr = tag } };

        return epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0 ? -errno : 0;
}

int loop_new(struct loop **ret) {
        _cleanup_(loop_freep) struct loop *l = calloc(1, sizeof(*l));
        int r;

        if (!l)
                return -ENOMEM;
        pthread_mutex_init(&l->post_lock, NULL);
        l->posts_tail = &l->posts;
        l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        l->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
        l->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (l->epoll_fd < 0 || l->timer_fd < 0 || l->wake_fd < 0)
                return -errno;
        r = watch(l, l->timer_fd, EPOLLIN, &l->timer_fd);
        if (r == 0)
                r = watch(l, l->wake_fd, EPOLLIN, &l->wake_fd);
        if (r < 0)
                return r;
        *ret = STEAL_PTR(l);
        return 0;
}

static void free_dead(struct loop *l) {
        while (l->dead) {
                struct loop_source *s = l->dead;

                l->dead = s->next;
                free(s);
        }
}

struct loop *loop_free(struct loop *l) {
        if (!l)
                return NULL;
        while (l->sources)
                loop_remove(l->sources);
        free_dead(l);
        while (l->posts) {
                struct post *p = l->posts;

                l->posts = p->next;
                free(p);
        }
        closep(&l->epoll_fd);
        closep(&l->timer_fd);
        closep(&l->wake_fd);
        pthread_mutex_destroy(&l->post_lock);
        free(l);
        return NULL;
}

static struct loop_source *source_new(struct loop *l, enum source_kind kind, void *arg) {
        struct loop_source *s = calloc(1, sizeof(*s));

        if (!s)
                return NULL;
        s->loop = l;
        s->kind = kind;
        s->arg = arg;
        return s;
}

static void source_link(struct loop_source *s, struct loop_source **ret) {
        struct loop *l = s->loop;

        s->next = l->sources;
        if (s->next)
                s->next->prev = s;
        l->sources = s;
        if (ret)
                *ret = s;
}

int loop_add_fd(struct loop *l, int fd, uint32_t events, void (*fn)(void *arg, uint32_t revents), void *arg, struct loop_source **ret) {
        struct loop_source *s = source_new(l, SOURCE_FD, arg);
        int r;

        if (!s)
                return -ENOMEM;
        s->io.fd = fd;
        s->io.fn = fn;
        r = watch(l, fd, events, s);
        if (r < 0) {
                free(s);
                return r;
        }
        source_link(s, ret);
        return 0;
}

int loop_fd_set_events(struct loop_source *s, uint32_t events) {
        struct epoll_event ev = { .events = events, .data = { .ptr = s } };

        return epoll_ctl(s->loop->epoll_fd, EPOLL_CTL_MOD, s->io.fd, &ev) < 0 ? -errno : 0;
}

int loop_add_signal(struct loop *l, int signo, void (*fn)(void *arg, int signo), void *arg, struct loop_source **ret) {
        struct loop_source *s = source_new(l, SOURCE_SIGNAL, arg);
        sigset_t set;
        int r;

        if (!s)
                return -ENOMEM;
        sigemptyset(&set);
        sigaddset(&set, signo);
        s->signal.signo = signo;
        s->signal.fn = fn;
        s->signal.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
        r = s->signal.fd < 0 ? -errno : watch(l, s->signal.fd, EPOLLIN, s);
        if (r < 0) {
                closep(&s->signal.fd);
                free(s);
                return r;
        }
        source_link(s, ret);
        return 0;
}

/* timer_fd follows the head of the list; it may be left set to something earlier, which costs one idle wake-up. */
static void arm(struct loop *l) {
        uint64_t want = l->timers ? l->timers->timer.deadline : 0;
        struct itimerspec t = { 0 };

        if (!want || (l->armed && l->armed <= want))
                return;
        t.it_value.tv_sec = (time_t)(want / NSEC_PER_SEC);
        t.it_value.tv_nsec = (long)(want % NSEC_PER_SEC);
        if (timerfd_settime(l->timer_fd, TFD_TIMER_ABSTIME, &t, NULL) == 0)
                l->armed = want;
}

static void timer_unlink(struct loop_source *s) {
        if (!s->timer.deadline)
                return;
        if (s->timer.prev)
                s->timer.prev->timer.next = s->timer.next;
        else
                s->loop->timers = s->timer.next;
        if (s->timer.next)
                s->timer.next->timer.prev = s->timer.prev;
        s->timer.prev = s->timer.next = NULL;
        s->timer.deadline = 0;
}

void loop_timer_set(struct loop_source *s, uint64_t deadline_ns) {
        struct loop_source *prev = NULL, *at;

        timer_unlink(s);
        if (!deadline_ns)
                return;
        if (deadline_ns <= s->loop->firing)
                deadline_ns = s->loop->firing + 1;
        /* itimerspec's seconds are signed; a deadline of "never" must not become one in the past. */
        if (deadline_ns > INT64_MAX)
                deadline_ns = INT64_MAX;
        for (at = s->loop->timers; at && at->timer.deadline <= deadline_ns; at = at->timer.next)
                prev = at;
        s->timer.deadline = deadline_ns;
        s->timer.prev = prev;
        s->timer.next = at;
        if (prev)
                prev->timer.next = s;
        else
                s->loop->timers = s;
        if (at)
                at->timer.prev = s;
        arm(s->loop);
}

int loop_add_timer(struct loop *l, uint64_t deadline_ns, void (*fn)(void *arg), void *arg, struct loop_source **ret) {
        struct loop_source *s = source_new(l, SOURCE_TIMER, arg);

        if (!s)
                return -ENOMEM;
        s->timer.fn = fn;
        source_link(s, ret);
        loop_timer_set(s, deadline_ns);
        return 0;
}

struct loop_source *loop_remove(struct loop_source *s) {
        struct loop *l;

        if (!s)
                return NULL;
        l = s->loop;
        if (s->kind == SOURCE_FD)
                epoll_ctl(l->epoll_fd, EPOLL_CTL_DEL, s->io.fd, NULL); /* fails when the owner closed the fd first: then it is gone already */
        else if (s->kind == SOURCE_SIGNAL)
                closep(&s->signal.fd);
        else
                timer_unlink(s);
        if (s->prev)
                s->prev->next = s->next;
        else
                l->sources = s->next;
        if (s->next)
                s->next->prev = s->prev;
        s->dead = true;
        s->next = l->dead;
        l->dead = s;
        if (l->depth == 0)
                free_dead(l);
        return NULL;
}

static void wake(struct loop *l) {
        uint64_t one = 1;
        ssize_t n;

        do
                n = write(l->wake_fd, &one, sizeof(one));
        while (n < 0 && errno == EINTR); /* EAGAIN: the counter is full, so it is awake */
}

int loop_post(struct loop *l, void (*fn)(void *arg), void *arg) {
        struct post *p = malloc(sizeof(*p));
        bool first;

        if (!p)
                return -ENOMEM;
        *p = (struct post){ .fn = fn, .arg = arg };
        pthread_mutex_lock(&l->post_lock);
        first = !l->posts;
        *l->posts_tail = p;
        l->posts_tail = &p->next;
        /* Under the lock: once it is released the loop's thread may run fn, and fn may be what frees the loop. */
        if (first)
                wake(l);
        pthread_mutex_unlock(&l->post_lock);
        return 0;
}

static void run_posts(struct loop *l) {
        struct post *p, *next;

        pthread_mutex_lock(&l->post_lock);
        p = l->posts;
        l->posts = NULL;
        l->posts_tail = &l->posts;
        pthread_mutex_unlock(&l->post_lock);
        for (; p; p = next) {
                next = p->next;
                p->fn(p->arg);
                free(p);
        }
}

static void run_timers(struct loop *l) {
        uint64_t now = clock_mono_ns(), outer = l->firing;

        l->firing = now;
        while (l->timers && l->timers->timer.deadline <= now) {
                struct loop_source *s = l->timers;

                timer_unlink(s);
                s->timer.fn(s->arg);
        }
        l->firing = outer;
}

static void drain(int fd) {
        uint64_t count;

        while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR)
                ;
}

static void run_source(struct loop_source *s, uint32_t revents) {
        struct signalfd_siginfo info;

        if (s->dead)
                return;
        if (s->kind == SOURCE_FD)
                s->io.fn(s->arg, revents);
        else if (read(s->signal.fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
                s->signal.fn(s->arg, s->signal.signo);
}

int loop_turn(struct loop *l, int timeout_ms) {
        struct epoll_event events[EVENTS_A_TURN];
        bool timers = false, posts = false;
        int n;

        n = epoll_wait(l->epoll_fd, events, EVENTS_A_TURN, timeout_ms);
        if (n < 0)
                return errno == EINTR ? 0 : -errno;
        l->depth++;
        for (int i = 0; i < n; i++) {
                void *tag = events[i].data.ptr;

                if (tag == &l->timer_fd) {
                        drain(l->timer_fd);
                        timers = true;
                } else if (tag == &l->wake_fd) {
                        drain(l->wake_fd);
                        posts = true;
                } else
                        run_source(tag, events[i].events);
        }
        if (posts)
                run_posts(l);
        if (timers) {
                l->armed = 0;
                run_timers(l);
                arm(l);
        }
        l->depth--;
        if (l->depth == 0)
                free_dead(l);
        return 0;
}

int loop_run(struct loop *l) {
        while (!l->stopped) {
                int r = loop_turn(l, -1);

                if (r < 0)
                        return r;
        }
        l->stopped = false;
        return l->stop_code;
}

void loop_stop(struct loop *l, int code) {
        l->stop_code = code;
        l->stopped = true;
        wake(l);
}
