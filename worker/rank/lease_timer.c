/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/rank/lease_timer.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"

#define LOOK_MIN_MS 20
#define LOOK_MAX_MS 1000

struct lease_timer {
        timer_t id;
};

int lease_timer_new(struct lease_timer **ret, struct error *e) {
        struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL };
        struct lease_timer *t = calloc(1, sizeof(*t));

        if (!t)
                return error_errno(e, ENOMEM, "lease timer");
        if (timer_create(CLOCK_MONOTONIC, &ev, &t->id) < 0) {
                int r = error_errno(e, errno, "lease timer");

                free(t);
                return r;
        }
        *ret = t;
        return 0;
}

int lease_timer_set(struct lease_timer *t, uint64_t deadline_ns) {
        struct itimerspec when = { .it_value = { .tv_sec = (time_t)(deadline_ns / NSEC_PER_SEC), .tv_nsec = (long)(deadline_ns % NSEC_PER_SEC) } };

        return timer_settime(t->id, TIMER_ABSTIME, &when, NULL) < 0 ? -errno : 0;
}

int lease_timer_follow(struct lease_timer *t, const struct flight *flight, uint64_t *armed_ns) {
        uint64_t deadline = atomic_load(&flight->lease_deadline_ns), now = clock_mono_ns(), left;

        if (deadline != *armed_ns && lease_timer_set(t, deadline) == 0)
                *armed_ns = deadline;
        left = deadline > now ? (deadline - now) / 4 / NSEC_PER_MSEC : 0;
        return left < LOOK_MIN_MS ? LOOK_MIN_MS : left > LOOK_MAX_MS ? LOOK_MAX_MS : (int)left;
}

struct lease_timer *lease_timer_free(struct lease_timer *t) {
        if (!t)
                return NULL;
        timer_delete(t->id);
        free(t);
        return NULL;
}
