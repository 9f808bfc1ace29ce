/* SPDX-License-Identifier: Apache-2.0 */
/* A lane's thread: its checks, each when it is due, and what changed posted to the loop. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "worker/health/health_private.h"
#include "worker/health/nvml.h"

#define STACK_BYTES ((size_t)1 << 20)
#define IDLE_NS (3600 * NSEC_PER_SEC)
#define TELL_AGAIN_NS (60 * NSEC_PER_SEC) /* evidence that changed under the same verdict */

static int gravity(enum health_verdict v) {
        return v == HEALTH_ABSENT ? 0 : (int)v;
}

static struct health_state *state_of(struct lane *l, const struct check *c, const char *subject) {
        for (size_t i = 0; i < l->n_states; i++)
                if (l->states[i].check == c && strcmp(l->states[i].said.subject, subject) == 0)
                        return &l->states[i];
        return NULL;
}

/* True: the controller is to be told. */
static bool merge(struct lane *l, const struct check *c, const struct said *s) {
        const struct health_world *w = &l->health->world;
        struct health_state *k = state_of(l, c, s->subject);
        uint64_t now = w->mono_ns();
        bool changed;

        if (!k) {
                if (l->n_states == HEALTH_STATES_MAX)
                        return false;
                k = &l->states[l->n_states++];
                *k = (struct health_state){ .check = c, .said = *s, .since_ms = w->wall_ns() / NSEC_PER_MSEC, .told_ns = now };
                if (c->rise > 1 && gravity(s->verdict) > HEALTH_OK) {
                        k->said.verdict = HEALTH_OK;
                        k->graver = 1;
                }
                return true;
        }
        if (gravity(s->verdict) > gravity(k->said.verdict) && ++k->graver < c->rise)
                return false;
        k->graver = 0;
        changed = s->verdict != k->said.verdict || s->blow != k->said.blow;
        if (!changed && (strcmp(s->evidence, k->said.evidence) == 0 || now - k->told_ns < TELL_AGAIN_NS))
                return false;
        if (changed)
                k->since_ms = w->wall_ns() / NSEC_PER_MSEC;
        k->said = *s;
        k->told_ns = now;
        return true;
}

size_t lane_run(struct lane *l, size_t check, struct health_state *changed, size_t *ret_gone) {
        const struct check *c = &health_checks[check];
        struct check_out o = { .list = l->said };
        size_t n = 0, k = 0, gone = 0;

        c->run(&l->health->world, &l->state[check], &o);
        for (size_t i = 0; i < o.n; i++)
                if (merge(l, c, &o.list[i]) && n < HEALTH_STATES_MAX)
                        changed[n++] = *state_of(l, c, o.list[i].subject);
        for (size_t i = 0; i < l->n_states; i++) {
                bool said = l->states[i].check != c;

                for (size_t s = 0; s < o.n && !said; s++)
                        said = strcmp(o.list[s].subject, l->states[i].said.subject) == 0;
                if (said)
                        l->states[k++] = l->states[i];
                else if (n < HEALTH_STATES_MAX) {
                        changed[n++] = l->states[i];
                        gone++;
                }
        }
        l->n_states = k;
        *ret_gone = gone;
        return n;
}

static void post_facts(struct lane *l, enum fact_group g) {
        struct update *u = l->health->world.facts[g] ? calloc(1, sizeof(*u)) : NULL;

        if (!u)
                return;
        u->health = l->health;
        u->group = g;
        u->facts = l->health->world.facts[g];
        l->health->world.facts[g] = NULL;
        if (loop_post(l->health->config.loop, health_take, u) < 0) {
                free(u->facts);
                free(u);
        }
}

static void post(struct lane *l, const struct health_state *list, size_t n, size_t gone, uint32_t xid, const char *pci) {
        struct update *u = calloc(1, sizeof(*u));

        if (!u)
                return; /* said again when it changes, or after a welcome by the states that are known */
        u->health = l->health;
        u->xid = xid;
        memcpy(u->pci, pci, strnlen(pci, sizeof(u->pci) - 1));
        u->states = n ? malloc(n * sizeof(*list)) : NULL;
        if (n && u->states) {
                memcpy(u->states, list, n * sizeof(*list));
                u->n = n;
                u->n_gone = gone;
        }
        if (loop_post(l->health->config.loop, health_take, u) < 0) {
                free(u->states);
                free(u);
        }
}

static void busy(struct lane *l, const char *check) {
        pthread_mutex_lock(&l->lock);
        l->busy = check;
        l->busy_since = check ? clock_mono_ns() : 0;
        pthread_mutex_unlock(&l->lock);
}

/* False: it is to end. */
static bool rest(struct lane *l, uint64_t until) {
        struct timespec ts = { .tv_sec = (time_t)(until / NSEC_PER_SEC), .tv_nsec = (long)(until % NSEC_PER_SEC) };
        bool stop;

        pthread_mutex_lock(&l->lock);
        while (!l->stop && !l->poked && clock_mono_ns() < until && pthread_cond_timedwait(&l->wake, &l->lock, &ts) == 0)
                ;
        stop = l->stop;
        pthread_mutex_unlock(&l->lock);
        return !stop;
}

static uint64_t run_due(struct lane *l, struct health_state *changed) {
        uint64_t next = clock_mono_ns() + IDLE_NS;
        uint32_t poked;

        pthread_mutex_lock(&l->lock);
        poked = l->poked;
        l->poked = 0;
        pthread_mutex_unlock(&l->lock);
        for (size_t i = 0; i < n_health_checks; i++) {
                uint32_t every = health_checks[i].interval_ms ? health_checks[i].interval_ms : l->health->world.site_ms;
                size_t n, gone;

                if (health_checks[i].lane != l->which)
                        continue;
                if ((poked >> i & 1) || clock_mono_ns() >= l->due[i]) {
                        busy(l, health_checks[i].name);
                        n = lane_run(l, i, changed, &gone);
                        busy(l, NULL);
                        if (n)
                                post(l, changed, n, gone, 0, "");
                        if (l->which == LANE_HOST || l->which == LANE_GPU)
                                post_facts(l, l->which == LANE_HOST ? FACTS_HOST : FACTS_GPU);
                        l->due[i] = clock_mono_ns() + every * NSEC_PER_MSEC;
                }
                if (l->due[i] < next)
                        next = l->due[i];
        }
        return next;
}

static void *lane_main(void *arg) {
        struct lane *l = arg;
        struct health_state *changed = calloc(HEALTH_STATES_MAX, sizeof(*changed));
        bool go = changed != NULL;

        while (go) {
                uint64_t next = run_due(l, changed), now = clock_mono_ns();
                const char *pci;
                uint32_t xid;

                if (l->which == LANE_GPU && l->health->world.nvml && l->health->world.nvml->events && next > now) {
                        uint64_t ms = (next - now) / NSEC_PER_MSEC;

                        if (nvml_wait_xid(&l->health->world, ms < 500 ? (uint32_t)ms : 500, &xid, &pci))
                                post(l, NULL, 0, 0, xid, pci);
                        go = rest(l, clock_mono_ns());
                        continue;
                }
                go = rest(l, next);
        }
        if (l->which == LANE_GPU)
                nvml_close(&l->health->world);
        free(changed);
        return NULL;
}

void lane_poke(struct lane *l, size_t check) {
        pthread_mutex_lock(&l->lock);
        l->poked |= UINT32_C(1) << check;
        pthread_cond_signal(&l->wake);
        pthread_mutex_unlock(&l->lock);
}

int lane_start(struct health *h, enum health_lane which) {
        struct lane *l = &h->lanes[which];
        pthread_condattr_t clock;
        pthread_attr_t attr;
        int r;

        l->health = h;
        l->which = which;
        l->states = calloc(HEALTH_STATES_MAX, sizeof(*l->states));
        l->said = calloc(CHECK_SAID_MAX, sizeof(*l->said));
        pthread_mutex_init(&l->lock, NULL);
        pthread_condattr_init(&clock);
        pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
        pthread_cond_init(&l->wake, &clock);
        pthread_condattr_destroy(&clock);
        if (!l->states || !l->said)
                return -ENOMEM;
        pthread_attr_init(&attr);
        pthread_attr_setstacksize(&attr, STACK_BYTES);
        r = pthread_create(&l->thread, &attr, lane_main, l);
        pthread_attr_destroy(&attr);
        l->started = r == 0;
        return -r;
}

bool thread_ended(pthread_t thread, uint64_t deadline_ns) {
        uint64_t now = clock_mono_ns(), wall = clock_wall_ns() + (deadline_ns > now ? deadline_ns - now : 0);
        struct timespec ts = { .tv_sec = (time_t)(wall / NSEC_PER_SEC), .tv_nsec = (long)(wall % NSEC_PER_SEC) };

        return pthread_timedjoin_np(thread, NULL, &ts) == 0;
}

bool lane_stop(struct lane *l, uint64_t deadline_ns) {
        if (l->started) {
                pthread_mutex_lock(&l->lock);
                l->stop = true;
                pthread_cond_signal(&l->wake);
                pthread_mutex_unlock(&l->lock);
                if (!thread_ended(l->thread, deadline_ns))
                        return false;
                l->started = false;
        }
        for (size_t i = 0; i < HEALTH_CHECKS_MAX; i++)
                free(l->state[i]);
        free(l->states);
        free(l->said);
        if (l->health) {
                pthread_cond_destroy(&l->wake);
                pthread_mutex_destroy(&l->lock);
        }
        *l = (struct lane){ 0 };
        return true;
}
