/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The post to the loop carries a small notice of its own, shared by thread and owner, so that a death that is on its way when the watcher is freed
 * is dropped instead of meeting freed memory.
 */
#include "worker/agent/watcher.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "proto/flight.h"

struct notice {
        void (*died)(void *arg); /* NULL: nobody wants it any more */
        void *arg;
        int refs; /* the watcher's and, once posted, the loop's; the thread is joined or has posted before the loop's thread looks */
};

struct watcher {
        struct loop *loop;
        struct flight *flight;
        pthread_t thread;
        atomic_bool stop;
        struct notice *notice;
};

static void notice_unref(struct notice *n) {
        if (--n->refs == 0)
                free(n);
}

static void deliver(void *arg) {
        struct notice *n = arg;

        if (n->died)
                n->died(n->arg);
        notice_unref(n);
}

static void *watch(void *arg) {
        struct watcher *w = arg;

        while (!w->stop) {
                int r = flight_wait_death(w->flight, WATCHER_SLICE_MS * NSEC_PER_MSEC);

                if (r == 0) {
                        w->notice->refs++;
                        if (loop_post(w->loop, deliver, w->notice) < 0)
                                w->notice->refs--; /* no memory: the pidfd will tell, later */
                        break;
                }
                if (r != -ETIMEDOUT) /* not held yet */
                        nanosleep(&(struct timespec){ .tv_nsec = 2 * (long)NSEC_PER_MSEC }, NULL);
        }
        return NULL;
}

int watcher_new(struct loop *l, int flight_fd, void (*died)(void *arg), void *arg, struct watcher **ret, struct error *e) {
        struct watcher *w = calloc(1, sizeof(*w));
        int r = w ? flight_map(flight_fd, &w->flight, e) : -ENOMEM;

        if (r == 0) {
                w->notice = calloc(1, sizeof(*w->notice));
                r = w->notice ? 0 : -ENOMEM;
        }
        if (r == 0) {
                w->loop = l;
                w->notice->died = died;
                w->notice->arg = arg;
                w->notice->refs = 1;
                r = -pthread_create(&w->thread, NULL, watch, w);
        }
        if (r < 0) {
                if (w) {
                        flight_unmap(w->flight);
                        free(w->notice);
                }
                free(w);
                return error_errno(e, -r, "cannot watch a rank");
        }
        *ret = w;
        return 0;
}

struct watcher *watcher_free(struct watcher *w) {
        if (!w)
                return NULL;
        w->stop = true;
        pthread_join(w->thread, NULL);
        w->notice->died = NULL;
        notice_unref(w->notice);
        flight_unmap(w->flight);
        free(w);
        return NULL;
}
