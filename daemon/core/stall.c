/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A rank inside a collective waits for every member of the group that has not entered it; one inside a send or receive, for the other end.  Whoever is waited for and waits for nobody is where the chains
 * end.  That rank is stuck when its process is dead or stopped, or when it has not moved (no phase, no collective begun or ended) for as long as the job's collective timeout; else it is
 * slow: it moves, and will come.  Where all of a group are inside the same collective nobody can be named by this: then what they send each other does not arrive.
 *
 * Clocks of nodes are never compared: all times are "so long ago", by each node's own clock.
 */
#include "daemon/core/stall.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/text.h"
#include "proto/flight.h"

/* Thresholds. */
#define WAIT_LONG_MS 500.0  /* below this nobody has waited for long */
#define STUCK_SHARE 0.9     /* of the timeout: recorders are read a little before or after the others gave up */
#define OPEN_MAX 64         /* collectives told of */

struct view {
        const struct stall_shape *shape;
        Fp8ctl__V1__RankDiagnosis *const *ranks;
        const Fp8ctl__V1__RecordedCall **in; /* by rank: the oldest collective it is inside of; NULL: none */
        int *members;                        /* room for one group */
        int world;
        uint64_t epoch;
};

/* ------------------------------------------------------------------ groups */

static int rank_at(const struct stall_shape *s, int pp, int dp, int tp) {
        return (pp * s->dp + dp) * s->tp + tp;
}

/* The members of a rank's group of that kind; how many. */
static int group_of(const struct view *v, int rank, uint32_t group, int *ret) {
        const struct stall_shape *s = v->shape;
        int tp = rank % s->tp, dp = rank / s->tp % s->dp, pp = rank / (s->tp * s->dp), n = 0;

        switch (group) {
        case FLIGHT_TP:
                for (int i = 0; i < s->tp; i++)
                        ret[n++] = rank_at(s, pp, dp, i);
                break;
        case FLIGHT_DP:
                for (int i = 0; i < s->dp; i++)
                        ret[n++] = rank_at(s, pp, i, tp);
                break;
        case FLIGHT_PP:
                for (int i = 0; i < s->pp; i++)
                        ret[n++] = rank_at(s, i, dp, tp);
                break;
        case FLIGHT_STAGE:
                for (int i = 0; i < s->tp * s->dp; i++)
                        ret[n++] = pp * s->tp * s->dp + i;
                break;
        case FLIGHT_EMBED:
                ret[n++] = rank_at(s, 0, dp, tp);
                if (s->pp > 1)
                        ret[n++] = rank_at(s, s->pp - 1, dp, tp);
                break;
        default:
                for (int i = 0; i < v->world; i++)
                        ret[n++] = i;
        }
        return n;
}

static bool unknown(const Fp8ctl__V1__RankDiagnosis *d) {
        return strcmp(d->state, "unknown") == 0;
}

static uint64_t met(const struct view *v, int rank, uint32_t group) {
        const Fp8ctl__V1__RankDiagnosis *d = v->ranks[rank];

        return d->epoch == v->epoch && group < d->n_met ? d->met[group] : 0;
}

static bool is_pair(const Fp8ctl__V1__RecordedCall *c) {
        return c->number == 0;
}

/* Is rank m one that a rank inside c waits for? m is a member of c's group, or its other end. */
static bool awaited(const struct view *v, const Fp8ctl__V1__RecordedCall *c, int m) {
        if (is_pair(c))
                return c->to == m || c->from == m;
        return met(v, m, c->group) < c->number;
}

static bool same_group(const struct view *v, int a, int b, uint32_t group) {
        int n = group_of(v, a, group, v->members);

        for (int i = 0; i < n; i++)
                if (v->members[i] == b)
                        return true;
        return false;
}

static bool waits_for(const struct view *v, int r, int m) {
        const Fp8ctl__V1__RecordedCall *c = v->in[r];

        return c && r != m && awaited(v, c, m) && (is_pair(c) || same_group(v, r, m, c->group));
}

/* ------------------------------------------------------------------ what is open */

static void find_open(struct view *v) {
        for (int i = 0; i < v->world; i++)
                if (v->ranks[i]->epoch > v->epoch)
                        v->epoch = v->ranks[i]->epoch;
        for (int i = 0; i < v->world; i++) {
                const Fp8ctl__V1__RankDiagnosis *d = v->ranks[i];

                for (size_t k = 0; k < d->n_calls && d->epoch == v->epoch && !v->in[i]; k++)
                        if (d->calls[k]->left_ms < 0)
                                v->in[i] = d->calls[k];
        }
}

static Fp8ctl__V1__OpenCollective *open_new(const Fp8ctl__V1__RecordedCall *c, size_t room) {
        Fp8ctl__V1__OpenCollective *o = malloc(sizeof(*o));

        if (!o)
                return NULL;
        fp8ctl__v1__open_collective__init(o);
        o->op = strdup(c->op);
        o->group = strdup(flight_group_name(c->group));
        o->number = c->number;
        o->inside = calloc(room, sizeof(*o->inside));
        o->missing = calloc(room, sizeof(*o->missing));
        o->left = calloc(room, sizeof(*o->left));
        if (o->op && o->group && o->inside && o->missing && o->left)
                return o;
        fp8ctl__v1__open_collective__free_unpacked(o, NULL);
        return NULL;
}

/* The one that rank r is in, with all its members. */
static Fp8ctl__V1__OpenCollective *open_of(const struct view *v, int r) {
        const Fp8ctl__V1__RecordedCall *c = v->in[r];
        Fp8ctl__V1__OpenCollective *o = open_new(c, (size_t)v->world + 2);
        int n = is_pair(c) ? 0 : group_of(v, r, c->group, v->members);

        if (!o)
                return NULL;
        o->since_ms = c->entered_ms;
        if (is_pair(c)) {
                o->inside[o->n_inside++] = (uint32_t)r;
                if (c->to >= 0 && c->to < v->world)
                        o->missing[o->n_missing++] = (uint32_t)c->to;
                if (c->from >= 0 && c->from < v->world && c->from != c->to)
                        o->missing[o->n_missing++] = (uint32_t)c->from;
                return o;
        }
        for (int i = 0; i < n; i++) {
                int m = v->members[i];
                const Fp8ctl__V1__RecordedCall *in = v->in[m];

                if (in && in->group == c->group && in->number == c->number) {
                        o->inside[o->n_inside++] = (uint32_t)m;
                        o->since_ms = in->entered_ms > o->since_ms ? in->entered_ms : o->since_ms;
                } else if (met(v, m, c->group) < c->number) {
                        o->missing[o->n_missing++] = (uint32_t)m;
                } else {
                        o->left[o->n_left++] = (uint32_t)m;
                }
        }
        return o;
}

static int longest_first(const void *a, const void *b) {
        const Fp8ctl__V1__OpenCollective *const *x = a, *const *y = b;

        return (*x)->since_ms < (*y)->since_ms ? 1 : (*x)->since_ms > (*y)->since_ms ? -1 : 0;
}

static int list_open(const struct view *v, Fp8ctl__V1__Diagnosis *ret) {
        _cleanup_free_ bool *told = calloc((size_t)v->world, sizeof(*told));

        ret->open = calloc(OPEN_MAX, sizeof(*ret->open));
        if (!told || !ret->open)
                return -ENOMEM;
        for (int r = 0; r < v->world && ret->n_open < OPEN_MAX; r++) {
                Fp8ctl__V1__OpenCollective *o = v->in[r] && !told[r] ? open_of(v, r) : NULL;

                if (!o && v->in[r] && !told[r])
                        return -ENOMEM;
                if (!o)
                        continue;
                for (size_t i = 0; i < o->n_inside; i++)
                        told[o->inside[i]] = true;
                ret->open[ret->n_open++] = o;
        }
        qsort(ret->open, ret->n_open, sizeof(*ret->open), longest_first);
        return 0;
}

/* ------------------------------------------------------------------ the verdict */

/* How many wait for it, through others too. seen[world], queue[world]. */
static int dependents(const struct view *v, int of, bool *seen, int *queue) {
        int n = 0;

        memset(seen, 0, (size_t)v->world * sizeof(*seen));
        seen[of] = true;
        queue[n++] = of;
        for (int at = 0; at < n; at++)
                for (int r = 0; r < v->world; r++)
                        if (!seen[r] && waits_for(v, r, queue[at])) {
                                seen[r] = true;
                                queue[n++] = r;
                        }
        return n - 1;
}

static double idle_ms(const Fp8ctl__V1__RankDiagnosis *d) {
        double ms = d->phase_ms;

        for (size_t i = 0; i < d->n_calls; i++) {
                double moved = d->calls[i]->left_ms < 0 ? d->calls[i]->entered_ms : d->calls[i]->left_ms;

                ms = moved < ms ? moved : ms;
        }
        return ms;
}

/* The greater, the more certain: what a rank that others wait for and that waits for nobody itself is. */
enum guilt { GUILT_NONE, GUILT_UNKNOWN /* its node does not answer */, GUILT_SLOW, GUILT_STILL, GUILT_STOPPED, GUILT_DEAD };

static enum guilt guilt_of(const struct view *v, int r) {
        const Fp8ctl__V1__RankDiagnosis *d = v->ranks[r];

        if (strcmp(d->state, "dead") == 0)
                return GUILT_DEAD;
        if (strcmp(d->state, "stopped") == 0)
                return GUILT_STOPPED;
        if (unknown(d))
                return GUILT_UNKNOWN;
        if (v->in[r])
                return GUILT_NONE;
        return d->timeout_ms > 0 && idle_ms(d) >= STUCK_SHARE * d->timeout_ms ? GUILT_STILL : GUILT_SLOW;
}

static void say_where(const struct view *v, const Fp8ctl__V1__Diagnosis *d, int culprit, char *buf, size_t size) {
        buf[0] = '\0';
        for (size_t i = 0; i < d->n_open; i++) {
                const Fp8ctl__V1__OpenCollective *o = d->open[i];

                for (size_t k = 0; k < o->n_missing; k++) {
                        if (o->missing[k] != (uint32_t)culprit)
                                continue;
                        if (o->number)
                                snprintf(buf, size, "; it has not entered %s %llu of %s, in which %zu rank%s wait%s, the first for %.1f s", o->op, (unsigned long long)o->number, o->group, o->n_inside,
                                         text_s(o->n_inside), o->n_inside == 1 ? "s" : "", o->since_ms / 1e3);
                        else
                                snprintf(buf, size, "; rank %u waits for it in a %s for %.1f s", o->inside[0], o->op, o->since_ms / 1e3);
                        return;
                }
        }
        if (v->in[culprit])
                snprintf(buf, size, "; it is inside %s of %s for %.1f s", v->in[culprit]->op, flight_group_name(v->in[culprit]->group), v->in[culprit]->entered_ms / 1e3);
}

static void say(const struct view *v, Fp8ctl__V1__Diagnosis *ret, int culprit, enum guilt guilt, int waiting, char *buf, size_t size) {
        const Fp8ctl__V1__RankDiagnosis *d = v->ranks[culprit];
        char where[256], what[256];

        say_where(v, ret, culprit, where, sizeof(where));
        if (guilt == GUILT_DEAD)
                snprintf(what, sizeof(what), "is dead%s%.150s", *d->note ? ": " : "", d->note);
        else if (guilt == GUILT_STOPPED)
                snprintf(what, sizeof(what), "is stopped (by a signal, in phase %s)", d->phase);
        else if (guilt == GUILT_UNKNOWN)
                snprintf(what, sizeof(what), "is on a node that does not answer");
        else if (guilt == GUILT_STILL)
                snprintf(what, sizeof(what), "has not moved for %.1f s (%s, phase %s)", idle_ms(d) / 1e3, d->state, d->phase);
        else
                snprintf(what, sizeof(what), "is slow, not stuck: it moved %.1f s ago (phase %s)", idle_ms(d) / 1e3, d->phase);
        snprintf(buf, size, "rank %d on %.100s %s%s; %d rank%s for it, directly or through others", culprit, d->node, what, where, waiting, waiting == 1 ? " waits" : "s wait");
}

static void say_nobody(const Fp8ctl__V1__Diagnosis *d, char *buf, size_t size) {
        const Fp8ctl__V1__OpenCollective *o = d->n_open ? d->open[0] : NULL;

        if (!o)
                snprintf(buf, size, "nobody waits for anybody");
        else if (o->since_ms < WAIT_LONG_MS)
                snprintf(buf, size, "nobody waits for long: the longest for %.0f ms, in %s of %s", o->since_ms, o->op, o->group);
        else
                snprintf(buf, size, "nobody can be named: %zu rank%s %s inside %s %llu of %s for %.1f s and no member is missing, so what they send each other does not arrive", o->n_inside,
                         text_s(o->n_inside), o->n_inside == 1 ? "is" : "are", o->op, (unsigned long long)o->number, o->group, o->since_ms / 1e3);
}

static int judge(const struct view *v, Fp8ctl__V1__Diagnosis *ret) {
        _cleanup_free_ bool *seen = calloc((size_t)v->world, sizeof(*seen));
        _cleanup_free_ int *queue = calloc((size_t)v->world, sizeof(*queue));
        enum guilt most = GUILT_NONE;
        int waiting = 0, tried = 0;
        char text[1024];

        if (!seen || !queue)
                return -ENOMEM;
        for (int r = 0; r < v->world && ret->n_open && ret->open[0]->since_ms >= WAIT_LONG_MS; r++) {
                enum guilt g = guilt_of(v, r);
                int n;

                if (g == GUILT_NONE || g < most || tried >= 4 * OPEN_MAX)
                        continue;
                n = dependents(v, r, seen, queue);
                tried++;
                if (n == 0 && g != GUILT_STOPPED && g != GUILT_DEAD)
                        continue;
                if (g > most || n > waiting || (n == waiting && idle_ms(v->ranks[r]) > idle_ms(v->ranks[ret->culprit]))) {
                        most = g;
                        waiting = n;
                        ret->culprit = r;
                }
        }
        if (most == GUILT_NONE)
                say_nobody(ret, text, sizeof(text));
        else
                say(v, ret, ret->culprit, most, waiting, text, sizeof(text));
        ret->stuck = most >= GUILT_STILL;
        ret->verdict = strdup(text);
        return ret->verdict ? 0 : -ENOMEM;
}

int stall_diagnose(const struct stall_shape *s, Fp8ctl__V1__RankDiagnosis *const *ranks, Fp8ctl__V1__Diagnosis *ret) {
        struct view v = { .shape = s, .ranks = ranks, .world = s->tp * s->pp * s->dp };
        _cleanup_free_ const Fp8ctl__V1__RecordedCall **in = calloc((size_t)v.world, sizeof(*in));
        _cleanup_free_ int *members = calloc((size_t)v.world + 2, sizeof(*members));
        int r = -ENOMEM;

        ret->culprit = -1;
        v.in = in;
        v.members = members;
        if (in && members) {
                find_open(&v);
                ret->epoch = v.epoch;
                r = list_open(&v, ret);
        }
        if (r == 0)
                r = judge(&v, ret);
        if (r < 0)
                stall_done(ret);
        return r;
}

void stall_done(Fp8ctl__V1__Diagnosis *d) {
        for (size_t i = 0; i < d->n_open; i++)
                fp8ctl__v1__open_collective__free_unpacked(d->open[i], NULL);
        free(d->open);
        if (d->verdict != protobuf_c_empty_string)
                free(d->verdict);
        d->open = NULL;
        d->n_open = 0;
        d->verdict = (char *)protobuf_c_empty_string;
}
