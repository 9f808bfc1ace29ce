/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What happened, for people: the newest EVENTS_KEPT in memory and in the store, none older than keep_event_days.  Ids only grow; an event is stored in the transaction of the change that it tells.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/core/core.h"

enum { EVENTS_KEPT = 2000 };

static void event_key(uint64_t id, char *buf, size_t size) {
        snprintf(buf, size, "event/%020" PRIu64, id);
}

void event_fill(const struct event *ev, Fp8ctl__V1__Event *m) {
        fp8ctl__v1__event__init(m);
        m->id = ev->id;
        m->unix_ms = ev->unix_ms;
        m->job_id = ev->job;
        m->epoch = ev->epoch;
        m->node = (char *)ev->node;
        m->rank = ev->rank;
        m->kind = (char *)ev->kind;
        m->severity = (char *)ev->severity;
        m->text = ev->text;
        m->ms = ev->ms;
}

static void forget_first(struct controller *c, bool stored_too) {
        struct event *old = &c->events[c->first_event];
        char key[STORE_KEY_MAX];

        if (stored_too) {
                event_key(old->id, key, sizeof(key));
                core_persist(c, STORE_DELETE, key, NULL, 0);
        }
        free(old->text);
        c->first_event = (c->first_event + 1) % EVENTS_KEPT;
        c->n_events--;
}

/* With each new event at most two old ones go: after a long rest they do not go in one huge transaction. */
static void forget_old(struct controller *c, uint64_t now_ms) {
        uint64_t keep_ms = (uint64_t)c->config.keep_event_days * 24 * 3600 * 1000;

        for (int i = 0; i < 2 && c->n_events > 0; i++)
                if (c->events[c->first_event].unix_ms + keep_ms < now_ms)
                        forget_first(c, true);
}

static int event_append(struct controller *c, struct event *ev, bool forget_stored) {
        if (!c->events) {
                c->events = calloc(EVENTS_KEPT, sizeof(*c->events));
                if (!c->events)
                        return -ENOMEM;
        }
        if (c->n_events == EVENTS_KEPT)
                forget_first(c, forget_stored);
        c->events[(c->first_event + c->n_events++) % EVENTS_KEPT] = *ev;
        return 0;
}

void event_add(struct controller *c, const struct event_of *of, const char *kind, const char *fmt, ...) {
        Fp8ctl__V1__EventRecord rec = FP8CTL__V1__EVENT_RECORD__INIT;
        Fp8ctl__V1__Event m;
        _cleanup_free_ uint8_t *buf = NULL;
        struct event ev = { .id = c->next_event, .unix_ms = c->io.wall_ms(c->io.arg), .rank = of->rank, .ms = of->ms };
        char text[1024], key[STORE_KEY_MAX];
        va_list ap;
        size_t len;

        va_start(ap, fmt);
        vsnprintf(text, sizeof(text), fmt, ap);
        va_end(ap);
        if (of->job) {
                ev.job = of->job->id;
                ev.epoch = of->job->epoch;
        }
        if (of->node)
                core_text(ev.node, sizeof(ev.node), of->node->name);
        core_text(ev.kind, sizeof(ev.kind), kind);
        core_text(ev.severity, sizeof(ev.severity), of->severity ? of->severity : "info");
        ev.text = core_strdup(text, sizeof(text));
        if (!ev.text)
                return;
        event_fill(&ev, &m);
        rec.version = RECORD_VERSION;
        rec.event = &m;
        len = fp8ctl__v1__event_record__get_packed_size(&rec);
        buf = malloc(len);
        forget_old(c, ev.unix_ms);
        if (!buf || event_append(c, &ev, true) < 0) {
                free(ev.text);
                return;
        }
        fp8ctl__v1__event_record__pack(&rec, buf);
        event_key(ev.id, key, sizeof(key));
        core_persist(c, STORE_PUT, key, buf, len);
        c->next_event++;
        c->cluster_dirty = true;
        c->events_new = true;
        if (ev.job)
                snprintf(key, sizeof(key), "job %" PRIu64 " ", ev.job);
        core_log(c, strcmp(ev.severity, "error") == 0 ? 3 : strcmp(ev.severity, "warning") == 0 ? 4 : 6, "%s%s: %s", ev.job ? key : "", kind, text);
}

int event_load(struct controller *c, const Fp8ctl__V1__EventRecord *r, struct error *e) {
        const Fp8ctl__V1__Event *m = r->event;
        struct event ev = { 0 };

        if (!m)
                return error_set(e, -EBADMSG, "event record without an event");
        ev.id = m->id;
        ev.unix_ms = m->unix_ms;
        ev.job = m->job_id;
        ev.epoch = m->epoch;
        ev.rank = m->rank;
        ev.ms = m->ms;
        core_text(ev.node, sizeof(ev.node), m->node);
        core_text(ev.kind, sizeof(ev.kind), m->kind);
        core_text(ev.severity, sizeof(ev.severity), m->severity);
        ev.text = core_strdup(m->text, 1024);
        if (!ev.text || event_append(c, &ev, false) < 0) {
                free(ev.text);
                return error_set(e, -ENOMEM, "no memory for events");
        }
        if (ev.id >= c->next_event)
                c->next_event = ev.id + 1;
        return 0;
}

size_t event_select(const struct controller *c, uint64_t after, uint64_t job, bool newest, const struct event **ret, size_t max) {
        size_t n = 0;

        for (size_t i = 0; i < c->n_events && n < max; i++) {
                const struct event *ev = &c->events[(c->first_event + (newest ? c->n_events - 1 - i : i)) % EVENTS_KEPT];

                if (ev->id > after && (!job || ev->job == job))
                        ret[n++] = ev;
        }
        for (size_t i = 0; newest && i < n / 2; i++) {
                const struct event *ev = ret[i];

                ret[i] = ret[n - 1 - i];
                ret[n - 1 - i] = ev;
        }
        return n;
}

void event_log_free(struct controller *c) {
        for (size_t i = 0; i < c->n_events; i++)
                free(c->events[(c->first_event + i) % EVENTS_KEPT].text);
        free(c->events);
        c->events = NULL;
        c->n_events = 0;
}
