/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/agent/task.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"

#define TASKS_MAX 64

struct tasks {
        struct loop *loop;
        pthread_mutex_t lock;
        pthread_cond_t idle;
        int running;
};

struct task {
        struct tasks *owner;
        void (*work)(void *arg);
        void (*done)(void *arg);
        void *arg;
};

int tasks_new(struct loop *l, struct tasks **ret) {
        struct tasks *t = calloc(1, sizeof(*t));
        pthread_condattr_t attr;

        if (!t)
                return -ENOMEM;
        t->loop = l;
        pthread_mutex_init(&t->lock, NULL);
        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        pthread_cond_init(&t->idle, &attr);
        pthread_condattr_destroy(&attr);
        *ret = t;
        return 0;
}

static void *run(void *arg) {
        struct task *k = arg;
        struct tasks *t = k->owner;

        k->work(k->arg);
        loop_post(t->loop, k->done, k->arg);
        free(k);
        pthread_mutex_lock(&t->lock);
        t->running--;
        pthread_cond_signal(&t->idle);
        pthread_mutex_unlock(&t->lock);
        return NULL;
}

int tasks_run(struct tasks *t, void (*work)(void *arg), void (*done)(void *arg), void *arg, struct error *e) {
        struct task *k;
        pthread_attr_t attr;
        pthread_t thread;
        int r;

        pthread_mutex_lock(&t->lock);
        r = t->running < TASKS_MAX ? 0 : EBUSY;
        t->running += r == 0;
        pthread_mutex_unlock(&t->lock);
        if (r)
                return error_set(e, -EBUSY, "%d file tasks run already", TASKS_MAX);
        k = malloc(sizeof(*k));
        if (k) {
                *k = (struct task){ .owner = t, .work = work, .done = done, .arg = arg };
                pthread_attr_init(&attr);
                pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
                r = pthread_create(&thread, &attr, run, k);
                pthread_attr_destroy(&attr);
        } else {
                r = ENOMEM;
        }
        if (r) {
                free(k);
                pthread_mutex_lock(&t->lock);
                t->running--;
                pthread_mutex_unlock(&t->lock);
                return error_errno(e, r, "cannot start a thread");
        }
        return 0;
}

bool tasks_wait(struct tasks *t, int timeout_ms) {
        uint64_t deadline = clock_mono_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC;
        struct timespec ts = { .tv_sec = (time_t)(deadline / NSEC_PER_SEC), .tv_nsec = (long)(deadline % NSEC_PER_SEC) };
        bool idle;

        pthread_mutex_lock(&t->lock);
        while (t->running > 0 && pthread_cond_timedwait(&t->idle, &t->lock, &ts) == 0)
                ;
        idle = t->running == 0;
        pthread_mutex_unlock(&t->lock);
        return idle;
}

struct tasks *tasks_free(struct tasks *t) {
        if (!t)
                return NULL;
        pthread_cond_destroy(&t->idle);
        pthread_mutex_destroy(&t->lock);
        free(t);
        return NULL;
}
