/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nodes that get no new ranks (cordoned), and nodes that are emptied too (draining): each of their jobs saves at the end of a step and goes on with those ranks elsewhere (layout.c); where
 * no device is free it goes on with fewer replicas if it may, and else stays and is moved when there is one.  A window does the same by the clock: draining from its begin, open again
 * at its end.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "daemon/core/health.h"
#include "daemon/core/request_private.h"
#include "daemon/core/rollout.h"

static const char *const duty_names[] = { "open", "cordoned", "draining" };

const char *node_duty_name(enum node_duty d) {
        return duty_names[d];
}

enum node_duty node_duty_parse(const char *name) {
        for (int i = NODE_OPEN; name && i <= NODE_DRAINING; i++)
                if (strcmp(name, duty_names[i]) == 0)
                        return (enum node_duty)i;
        return NODE_OPEN;
}

static bool empty(const struct node *n) {
        for (size_t i = 0; i < n->n_devices; i++)
                if (n->devices[i].job)
                        return false;
        return true;
}

void node_check_drained(struct controller *c, struct node *n) {
        if (n->duty != NODE_DRAINING || n->drained || !empty(n))
                return;
        n->drained = true;
        c->rollout_wanted = c->rollout_wanted || n->rollout;
        event_add(c, &(struct event_of){ .node = n, .rank = -1 }, "node_drained", "no rank is left on %s: it can be stopped", n->name);
}

void node_set_duty(struct controller *c, struct node *n, enum node_duty duty, const char *why) {
        static const char *const kinds[] = { "node_uncordoned", "node_cordoned", "node_draining" };

        core_text(n->duty_reason, sizeof(n->duty_reason), why);
        if (n->duty != duty) {
                n->duty = duty;
                n->drained = false;
                event_add(c, &(struct event_of){ .node = n, .rank = -1 }, kinds[duty], "%s %s%s%s", n->name,
                          duty == NODE_OPEN ? "takes ranks again" : duty == NODE_CORDONED ? "gets no new ranks" : "is emptied: its ranks move to other nodes", why[0] ? ": " : "", why);
                if (duty == NODE_DRAINING)
                        replicas_replan(c); /* second copies are better kept elsewhere */
        }
        record_put_node(c, n);
        node_check_drained(c, n);
        c->schedule_wanted = c->rollout_wanted = true;
}

/* ------------------------------------------------------------------ windows */
void node_window_tick(struct controller *c, struct node *n) {
        uint64_t wall = c->io.wall_ms(c->io.arg);

        if (n->window_until_ms && wall >= n->window_until_ms) {
                n->window_from_ms = n->window_until_ms = 0;
                if (n->health && n->health->hold != HOLD_NONE)
                        n->health->duty_before = NODE_OPEN; /* and then, when it is well */
                else
                        node_set_duty(c, n, NODE_OPEN, "its window is over");
        } else if (n->window_from_ms && wall >= n->window_from_ms) {
                char why[TEXT_MAX_LEN];

                core_text(why, sizeof(why), n->duty_reason);
                n->window_from_ms = 0;
                node_set_duty(c, n, NODE_DRAINING, why);
        }
}

uint64_t node_window_deadline(const struct controller *c, const struct node *n) {
        uint64_t at = n->window_from_ms ? n->window_from_ms : n->window_until_ms, wall;

        if (!at)
                return 0;
        wall = c->io.wall_ms(c->io.arg);
        return core_now(c) + (at > wall ? at - wall : 0) * NSEC_PER_MSEC;
}

/* ------------------------------------------------------------------ asked for */
void node_request_set(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who) {
        const Fp8ctl__V1__SetNodeRequest *q = (const Fp8ctl__V1__SetNodeRequest *)m;
        struct node *n = node_find(c, q->name);
        uint64_t wall = c->io.wall_ms(c->io.arg);
        char why[TEXT_MAX_LEN];

        if (!who->admin) {
                request_refuse(c, request, ST_DENIED, "only administrators cordon and drain nodes");
                return;
        }
        if (!n) {
                request_refuse(c, request, ST_NOT_FOUND, "node '%.128s' is not known", q->name ? q->name : "");
                return;
        }
        if (q->duty > FP8CTL__V1__SET_NODE_REQUEST__DUTY__DRAIN || (q->duty != FP8CTL__V1__SET_NODE_REQUEST__DUTY__DRAIN && (q->after_ms || q->for_ms))) {
                request_refuse(c, request, ST_INVALID, "duty: found %d, allowed: OPEN, CORDON, DRAIN; a window is for DRAIN", (int)q->duty);
                return;
        }
        if (rollout_holds(n)) {
                request_refuse(c, request, ST_PRECONDITION, "node %s is being changed by rollout %s: fp8ctl rollout stop or abort comes first", n->name, c->rollout->name);
                return;
        }
        core_text(why, sizeof(why), q->reason);
        if (n->health)
                n->health->duty_before = (enum node_duty)q->duty;
        n->window_from_ms = q->after_ms ? wall + q->after_ms : 0;
        n->window_until_ms = q->for_ms ? wall + q->after_ms + q->for_ms : 0;
        if (n->window_from_ms) {
                core_text(n->duty_reason, sizeof(n->duty_reason), why);
                event_add(c, &(struct event_of){ .node = n, .rank = -1 }, "node_window", "%s will be emptied in %.0f s%s%s", n->name, (double)q->after_ms / 1e3, why[0] ? ": " : "", why);
                record_put_node(c, n);
        } else {
                node_set_duty(c, n, (enum node_duty)q->duty, why);
        }
        if (q->duty == FP8CTL__V1__SET_NODE_REQUEST__DUTY__OPEN)
                health_opened(c, n);
        request_answer_node(c, request, n);
}
