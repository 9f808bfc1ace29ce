/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Following a job to its end: its state a few times a second, its events when they are wanted.  A controller that goes away is waited for
 * (the job trains on without it) as long as client_call does, then three times more before giving up.
 */
#include "ctl/wait.h"

#include <errno.h>
#include <inttypes.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "ctl/handlers.h"
#include "ctl/progress.h"

#define POLL_MS 200
#define PLAIN_EVERY_MS 5000
#define MISSES_MAX 4
#define EVENTS_PAGE 100

static struct wait_options given;

const struct opt wait_opts[] = {
        { "timeout", 0, OPT_DURATION_MS, "TIME", "give up after this time (the job goes on)", &given.timeout_ms, 0, 0, NULL },
        { "progress", 0, OPT_FLAG, NULL, "progress lines also where standard error is no terminal", &given.progress, 0, 0, NULL },
        { "events", 0, OPT_FLAG, NULL, "print events as they come", &given.events, 0, 0, NULL },
        { 0 },
};

static int show_events(struct client *cl, uint64_t id, uint64_t *after, struct progress *p, struct error *e) {
        for (;;) {
                _cleanup_message_ Fp8ctl__V1__ListEventsReply *page = NULL;
                int r = client_list_events(cl, id, *after, EVENTS_PAGE, 0, &page, e);

                if (r < 0)
                        return r;
                if (page->n_events)
                        progress_clear(p);
                for (size_t i = 0; i < page->n_events; i++) {
                        if (page->events[i]->id > *after)
                                *after = page->events[i]->id;
                        event_print(page->events[i], stderr);
                }
                if (page->n_events < EVENTS_PAGE)
                        return 0;
        }
}

static inline void progress_freep(struct progress **p) {
        progress_free(*p);
}

int job_wait(struct client *cl, uint64_t id, const struct wait_options *w, Fp8ctl__V1__Job **ret, struct error *e) {
        uint64_t end = w->timeout_ms ? clock_mono_ns() + (uint64_t)w->timeout_ms * NSEC_PER_MSEC : UINT64_MAX, after = 0;
        _cleanup_(progress_freep) struct progress *p = progress_new(w->progress, PLAIN_EVERY_MS);
        int misses = 0;

        for (;;) {
                struct timespec pause = { 0, POLL_MS * (long)NSEC_PER_MSEC };
                _cleanup_message_ Fp8ctl__V1__Job *j = NULL;
                int r = client_get_job(cl, id, &j, e);

                if (r == -ECONNREFUSED && ++misses < MISSES_MAX) {
                        nanosleep(&pause, NULL);
                        continue;
                }
                if (r >= 0 && w->events)
                        r = show_events(cl, id, &after, p, e);
                if (r < 0)
                        return r;
                misses = 0;
                progress_show(p, j);
                if (job_state_is_end(j->state)) {
                        *ret = STEAL_PTR(j);
                        return 0;
                }
                if (clock_mono_ns() > end)
                        return error_set(e, -ETIMEDOUT, "job %" PRIu64 " is %s at step %" PRIu64 " of %" PRIu64 "; it goes on", id, job_state_name(j->state), j->step,
                                         j->steps);
                nanosleep(&pause, NULL);
        }
}

int wait_run(struct ctl *c, int n, char **args) {
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__Job *j = NULL;
        struct error e;
        uint64_t id;

        if (parse_job_id(args[0], &id, &e) < 0)
                return ctl_usage(&e);
        if (client_new(c, &cl, &e) < 0 || job_wait(cl, id, &given, &j, &e) < 0)
                return ctl_fail(&e);
        job_print(c, j);
        return job_exit(j);
}
