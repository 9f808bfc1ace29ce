/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The walk of a rollout.  Whatever may let it go on (a node said hello, told its facts, is empty, has answered its test, has failed; time) sets rollout_wanted, and rollout_look() moves what can
 * move: nodes along rollout_node_table, the whole along rollout_table.  Every move is stored in the transaction of what it does, so that a controller that was killed goes on where it was; what it
 * had asked a node for is asked again on the node's next stream.
 *
 * A stopped rollout begins no node, and sends those that are being emptied back; what is being changed or tested already goes on, since half a change helps nobody.
 */
#include "daemon/core/rollout.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/text.h"
#include "daemon/core/health.h"
#include "daemon/core/rate_test.h"

/* Thresholds. */
#define BLOW_MS 60000u /* failures of one node within that are one: the test is of independent events, and a node that dies takes all of its ranks with it */
#define HOUR_MS 3600000.0

struct step {
        struct controller *c;
        struct rollout *r;
        struct rollout_node *e;
        const char *why;
};

static uint64_t wall(const struct controller *c) {
        return c->io.wall_ms(c->io.arg);
}

/* ------------------------------------------------------------------ the tables */
static int empty_node(void *ctx, const void *arg, struct error *e) {
        const struct step *s = ctx;
        char why[TEXT_MAX_LEN];

        snprintf(why, sizeof(why), "rollout %s: %s is to be %s", s->r->name, s->r->fact, s->r->value);
        node_set_duty(s->c, s->e->node, NODE_DRAINING, why);
        return 0;
}

static int open_node(void *ctx, const void *arg, struct error *e) {
        const struct step *s = ctx;
        struct node *n = s->e->node;
        char why[TEXT_MAX_LEN];

        if (n->health && n->health->hold != HOLD_NONE) {
                n->health->duty_before = NODE_OPEN; /* when it is well */
                record_put_node(s->c, n);
                return 0;
        }
        snprintf(why, sizeof(why), "rollout %s: %.300s", s->r->name, s->why);
        node_set_duty(s->c, n, NODE_OPEN, why);
        return 0;
}

static const char *const node_states[] = { "pending", "draining", "changing", "testing", "soaking", "done", "failed" };
static const char *const node_events[] = { "begin", "drained", "back", "changed", "passed", "soaked", "failed", "again" };
static const struct table_row node_rows[] = {
        { RN_PENDING, RN_E_BEGIN, RN_DRAINING, empty_node },
        { RN_DRAINING, RN_E_DRAINED, RN_CHANGING, NULL },
        { RN_DRAINING, RN_E_BACK, RN_PENDING, open_node },
        { RN_CHANGING, RN_E_CHANGED, RN_TESTING, NULL },
        { RN_CHANGING, RN_E_FAILED, RN_FAILED, NULL },
        { RN_TESTING, RN_E_PASSED, RN_SOAKING, open_node },
        { RN_TESTING, RN_E_FAILED, RN_FAILED, NULL },
        { RN_SOAKING, RN_E_SOAKED, RN_DONE, NULL },
        { RN_SOAKING, RN_E_FAILED, RN_FAILED, NULL },
        { RN_FAILED, RN_E_AGAIN, RN_DRAINING, empty_node },
};
const struct table rollout_node_table = { "rollout of a node", node_states, N_RN_STATES, node_events, N_RN_EVENTS, node_rows, ARRAY_SIZE(node_rows) };

static const char *const states[] = { "running", "stopped", "done", "aborted" };
static const char *const events[] = { "stage", "stop", "resume", "finish", "abort" };
static const struct table_row rows[] = {
        { ROLLOUT_RUNNING, ROLLOUT_E_STAGE, ROLLOUT_RUNNING, NULL },
        { ROLLOUT_RUNNING, ROLLOUT_E_STOP, ROLLOUT_STOPPED, NULL },
        { ROLLOUT_RUNNING, ROLLOUT_E_FINISH, ROLLOUT_DONE, NULL },
        { ROLLOUT_RUNNING, ROLLOUT_E_ABORT, ROLLOUT_ABORTED, NULL },
        { ROLLOUT_STOPPED, ROLLOUT_E_RESUME, ROLLOUT_RUNNING, NULL },
        { ROLLOUT_STOPPED, ROLLOUT_E_ABORT, ROLLOUT_ABORTED, NULL },
};
const struct table rollout_table = { "rollout", states, N_ROLLOUT_STATES, events, N_ROLLOUT_EVENTS, rows, ARRAY_SIZE(rows) };

const char *rollout_state_name(int s) {
        return s >= 0 && s < N_ROLLOUT_STATES ? states[s] : "unknown";
}

const char *rollout_node_state_name(int s) {
        return s >= 0 && s < N_RN_STATES ? node_states[s] : "unknown";
}

bool rollout_live(const struct rollout *r) {
        return r->state == ROLLOUT_RUNNING || r->state == ROLLOUT_STOPPED;
}

/* ------------------------------------------------------------------ who fails how often */
static enum rollout_side side_of(const struct rollout_node *e) {
        return e->state < RN_CHANGING ? SIDE_OTHER : e->state == RN_SOAKING || e->state == RN_DONE ? SIDE_CHANGED : SIDE_NONE;
}

/* Since it came into its state, or since the count began. A lost node is watched until it was last heard. */
static uint64_t watched_until(uint64_t now, const struct rollout *r, const struct rollout_node *e) {
        uint64_t from = e->since_ms > r->counted_ms ? e->since_ms : r->counted_ms, to = r->ended_ms ? r->ended_ms : now;

        if (e->node->state == NODE_LOST && e->node->last_seen_ms < to)
                to = e->node->last_seen_ms;
        return to > from ? to - from : 0;
}

struct rollout_sums rollout_sums(const struct controller *c, const struct rollout *r) {
        struct rollout_sums s = { 0 };
        uint64_t now = wall(c);

        for (size_t i = 0; i < r->n_nodes; i++) {
                const struct rollout_node *e = &r->nodes[i];
                enum rollout_side side = side_of(e);

                s.begun += e->state != RN_PENDING;
                s.away += e->state == RN_DRAINING || e->state == RN_CHANGING || e->state == RN_TESTING;
                s.changed += side == SIDE_CHANGED;
                s.failed += e->state == RN_FAILED;
                s.forgiven += e->state == RN_FAILED && e->again;
                for (int k = 0; k < 2; k++) {
                        s.failures[k] += e->failures[k];
                        s.watched_ms[k] += e->watched_ms[k] + (side == (enum rollout_side)k ? watched_until(now, r, e) : 0);
                }
        }
        s.p = rate_test_worse(s.failures[SIDE_CHANGED], (double)s.watched_ms[SIDE_CHANGED], s.failures[SIDE_OTHER], (double)s.watched_ms[SIDE_OTHER]);
        return s;
}

void rollout_failure(struct controller *c, struct node *n, const char *why) {
        struct rollout_node *e = n->rollout;
        enum rollout_side side = e ? side_of(e) : SIDE_NONE;
        uint64_t now = wall(c);

        if (side == SIDE_NONE || (e->failed_ms && e->failed_ms <= now && now < e->failed_ms + BLOW_MS))
                return;
        e->failed_ms = now;
        e->failures[side]++;
        core_text(e->reason, sizeof(e->reason), why);
        rollout_put_node(c, c->rollout, e);
        c->rollout->compare = c->rollout->compare || side == SIDE_CHANGED;
        c->rollout_wanted = true;
}

/* ------------------------------------------------------------------ moves */
static bool move(struct controller *c, struct rollout *r, enum rollout_event ev, const char *why) {
        struct error e = { 0 };
        int state = (int)r->state;

        if (table_step(&rollout_table, &state, ev, NULL, NULL, &e) < 0) {
                core_log(c, 3, "%s", e.text);
                return false;
        }
        r->state = (enum rollout_state)state;
        core_text(r->reason, sizeof(r->reason), why);
        return true;
}

static void move_node(struct controller *c, struct rollout *r, struct rollout_node *e, enum rollout_node_event ev, const char *why) {
        struct step s = { c, r, e, why };
        struct error err = { 0 };
        enum rollout_side side = side_of(e);
        uint64_t watched = watched_until(wall(c), r, e);
        int state = (int)e->state;

        if (table_step(&rollout_node_table, &state, ev, &s, NULL, &err) < 0) {
                core_log(c, 3, "%s: %s", e->node->name, err.text);
                return;
        }
        if (side != SIDE_NONE)
                e->watched_ms[side] += watched;
        e->state = (enum rollout_node_state)state;
        e->since_ms = wall(c);
        e->asked = e->relay = 0;
        e->again = false;
        core_text(e->reason, sizeof(e->reason), why);
        rollout_put_node(c, r, e);
        c->rollout_wanted = true;
}

static void fail_node(struct controller *c, struct rollout *r, struct rollout_node *e, const char *why) {
        const char *doing = rollout_node_state_name((int)e->state);

        event_add(c, &(struct event_of){ .node = e->node, .rank = -1, .severity = "error" }, "rollout_node_failed", "%s: %s failed while it was %s: %s", r->name, e->node->name, doing, why);
        move_node(c, r, e, RN_E_FAILED, why);
}

/* ------------------------------------------------------------------ a node's walk */
static void wake_at(const struct controller *c, struct rollout *r, uint64_t wall_ms) {
        uint64_t now = wall(c), at = core_now(c) + (wall_ms > now ? wall_ms - now : 0) * NSEC_PER_MSEC;

        if (!r->wake || at < r->wake)
                r->wake = at;
}

static void waits_for(struct rollout *r, const char *node, const char *what) {
        if (!r->waits[0])
                snprintf(r->waits, sizeof(r->waits), "%s%s%s", node, node[0] ? " " : "", what);
}

static bool held(const struct node *n) {
        return n->health && n->health->hold != HOLD_NONE;
}

static bool shows(const struct rollout *r, const struct node *n) {
        const char *value = node_fact(n, r->fact);

        return value && strcmp(value, r->value) == 0;
}

static void look_draining(struct controller *c, struct rollout *r, struct rollout_node *e) {
        struct node *n = e->node;

        if (r->state == ROLLOUT_STOPPED || n->state == NODE_LOST || held(n)) {
                move_node(c, r, e, RN_E_BACK, r->state == ROLLOUT_STOPPED ? "the rollout was stopped before it was changed" : "it was lost, or its health took it, before it was changed");
                return;
        }
        if (node_usable(n)) /* after a controller's restart it has told what runs there */
                node_check_drained(c, n);
        if (n->drained || PLANTED(CHANGED_IN_USE))
                move_node(c, r, e, RN_E_DRAINED, "");
        else
                waits_for(r, n->name, "to be empty");
}

static void order_change(struct controller *c, const struct rollout *r, struct rollout_node *e) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__RolloutChange change = FP8CTL__V1__ROLLOUT_CHANGE__INIT;

        change.rollout = r->id;
        change.name = (char *)r->name;
        change.fact = (char *)r->fact;
        change.value = (char *)r->value;
        change.timeout_ms = r->change_ms;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_ROLLOUT_CHANGE;
        m.rollout_change = &change;
        e->asked = e->node->session;
        node_send(c, e->node, &m);
}

/* The change may take the worker with it, or reboot the node: what counts is what it shows on its newest stream. */
static void look_changing(struct controller *c, struct rollout *r, struct rollout_node *e) {
        struct node *n = e->node;
        bool told = n->session && n->facts_session == n->session;
        const char *value;
        char why[ROLLOUT_TEXT_LEN];

        if (told && shows(r, n)) {
                move_node(c, r, e, RN_E_CHANGED, "");
                return;
        }
        if (wall(c) >= e->since_ms + r->change_ms) {
                value = node_fact(n, r->fact);
                snprintf(why, sizeof(why), "%s: found %s%s%s%s, expected '%s' within %.0f s", r->fact, value ? "'" : "", value ? value : "nothing", value ? "'" : "",
                         n->session ? "" : " (it is not connected)", r->value, (double)r->change_ms / 1e3);
                fail_node(c, r, e, why);
                return;
        }
        wake_at(c, r, e->since_ms + r->change_ms);
        if (told && n->rollout_hook && e->asked != n->session)
                order_change(c, r, e);
        waits_for(r, n->name, n->session && !n->rollout_hook ? "to be changed by hand: its worker has no --rollout-hook" : "to be changed");
}

static void look_testing(struct controller *c, struct rollout *r, struct rollout_node *e) {
        struct node *n = e->node;

        if (wall(c) >= e->since_ms + r->change_ms) {
                fail_node(c, r, e, n->session ? "it did not answer its test in time" : "it was not connected for its test");
                return;
        }
        wake_at(c, r, e->since_ms + r->change_ms);
        if (n->session && e->asked != n->session) {
                e->relay = node_test_ask(c, n);
                e->asked = e->relay ? n->session : 0;
        }
        waits_for(r, n->name, "to be tested");
}

static void look_soaking(struct controller *c, struct rollout *r, struct rollout_node *e) {
        struct node *n = e->node;
        const char *value = node_fact(n, r->fact);
        char why[ROLLOUT_TEXT_LEN];

        if (wall(c) < e->since_ms + r->soak_ms) {
                wake_at(c, r, e->since_ms + r->soak_ms);
                waits_for(r, n->name, "to have been watched for long enough");
        } else if (n->state == NODE_LOST || held(n)) {
                snprintf(why, sizeof(why), "at the end of its soak it was %s: %.200s", n->state == NODE_LOST ? "lost" : "kept from ranks", n->state == NODE_LOST ? n->reason : n->health->reason);
                fail_node(c, r, e, why);
        } else if (!node_usable(n) || n->facts_session != n->session) {
                waits_for(r, n->name, "to be connected at the end of its soak");
        } else if (!shows(r, n)) {
                snprintf(why, sizeof(why), "%s: found '%s' at the end of its soak, expected '%s'", r->fact, value ? value : "nothing", r->value);
                fail_node(c, r, e, why);
        } else {
                move_node(c, r, e, RN_E_SOAKED, "");
        }
}

static void look_node(struct controller *c, struct rollout *r, struct rollout_node *e, uint64_t now) {
        if (e->since_ms > now)
                e->since_ms = now; /* the clock was set back: what is left of its time counts from now on */
        switch (e->state) {
        case RN_DRAINING: look_draining(c, r, e); break;
        case RN_CHANGING: look_changing(c, r, e); break;
        case RN_TESTING: look_testing(c, r, e); break;
        case RN_SOAKING: look_soaking(c, r, e); break;
        default: break;
        }
}

/* ------------------------------------------------------------------ the whole */
size_t rollout_target(const struct rollout *r) {
        size_t n = (r->n_nodes * r->stages[r->stage] + 99) / 100;

        return n ? n : 1;
}

static bool may_begin(const struct rollout_node *e) {
        const struct node *n = e->node;

        if (n->window_from_ms || n->window_until_ms || held(n))
                return false;
        return e->state == RN_PENDING ? node_takes(n) : e->state == RN_FAILED && e->again && node_usable(n);
}

static void begin_nodes(struct controller *c, struct rollout *r) {
        struct rollout_sums s = rollout_sums(c, r);
        size_t target = rollout_target(r);

        if (s.begun >= target && !s.forgiven)
                return;
        if (s.away < r->max_unavailable && health_breaker_open(c)) {
                waits_for(r, "", "the breaker: more nodes should be kept from ranks than may be");
                return;
        }
        for (size_t i = 0; i < r->n_nodes && s.away < r->max_unavailable; i++) {
                struct rollout_node *e = &r->nodes[i];
                bool first = e->state == RN_PENDING;

                if (!may_begin(e) || (first && s.begun >= target && !PLANTED(BEYOND_SHARE)))
                        continue;
                move_node(c, r, e, first ? RN_E_BEGIN : RN_E_AGAIN, "");
                s.begun += first;
                s.away++;
        }
        if (s.away == 0 && s.begun < target)
                waits_for(r, "", "a node that is connected, well and takes ranks");
}

static void end(struct controller *c, struct rollout *r) {
        r->ended_ms = wall(c);
        r->waits[0] = 0;
        r->wake = 0;
        for (size_t i = 0; i < r->n_nodes; i++)
                r->nodes[i].node->rollout = NULL;
        c->rollout = NULL;
        rollout_put(c, r);
}

/* Looked at after each failure as well as at the end of a stage, so that a wide stage does not take down what a narrow one missed; a stop for nothing costs a look. */
static bool compare(struct controller *c, struct rollout *r) {
        struct rollout_sums s = rollout_sums(c, r);
        char why[ROLLOUT_TEXT_LEN];
        size_t len;

        r->compare = false;
        if (s.p > r->alpha)
                return true;
        snprintf(why, sizeof(why), "changed nodes failed %u time%s in %.3g node hours, the others %u in %.3g: by chance p = %.2g, expected more than %g; failed:", s.failures[SIDE_CHANGED],
                 text_s(s.failures[SIDE_CHANGED]), (double)s.watched_ms[SIDE_CHANGED] / HOUR_MS, s.failures[SIDE_OTHER], (double)s.watched_ms[SIDE_OTHER] / HOUR_MS, s.p, r->alpha);
        for (size_t i = 0; i < r->n_nodes; i++) {
                len = strlen(why);
                if (r->nodes[i].failures[SIDE_CHANGED])
                        snprintf(why + len, sizeof(why) - len, " %s", r->nodes[i].node->name);
        }
        rollout_stop(c, r, why);
        return false;
}

/* False: it was stopped. */
static bool judge(struct controller *c, struct rollout *r) {
        struct rollout_sums s = rollout_sums(c, r);
        char why[ROLLOUT_TEXT_LEN];

        for (size_t i = 0; s.failed - s.forgiven > r->max_failed && i < r->n_nodes; i++)
                if (r->nodes[i].state == RN_FAILED && !r->nodes[i].again) {
                        snprintf(why, sizeof(why), "%" PRIu64 " node%s failed, expected at most %u: %.100s: %.200s", s.failed - s.forgiven, text_s(s.failed - s.forgiven), r->max_failed,
                                 r->nodes[i].node->name, r->nodes[i].reason);
                        rollout_stop(c, r, why);
                        return false;
                }
        return !r->compare || compare(c, r);
}

static void end_stage(struct controller *c, struct rollout *r) {
        struct rollout_sums s = rollout_sums(c, r);

        if (s.begun < rollout_target(r) || s.away > 0)
                return;
        for (size_t i = 0; i < r->n_nodes; i++)
                if (r->nodes[i].state == RN_SOAKING)
                        return;
        if (!compare(c, r))
                return;
        if (r->stage + 1 == r->n_stages) {
                if (!move(c, r, ROLLOUT_E_FINISH, ""))
                        return;
                event_add(c, &(struct event_of){ .rank = -1, .ms = (double)(wall(c) - r->started_ms) }, "rollout_done", "%s: %" PRIu64 " of %zu nodes show %s %s", r->name, s.changed, r->n_nodes, r->fact, r->value);
                end(c, r);
                return;
        }
        if (!move(c, r, ROLLOUT_E_STAGE, ""))
                return;
        r->stage++;
        event_add(c, &(struct event_of){ .rank = -1 }, "rollout_stage", "%s: %" PRIu64 " of %zu nodes are changed and do not fail more often (p = %.2g): on to %u%%, %zu node%s", r->name, s.changed, r->n_nodes, s.p,
                  r->stages[r->stage], rollout_target(r), text_s(rollout_target(r)));
        rollout_put(c, r);
        c->rollout_wanted = true;
}

void rollout_look(struct controller *c) {
        struct rollout *r = c->rollout;
        uint64_t now;

        if (!r || (!c->rollout_wanted && !(r->wake && core_now(c) >= r->wake)))
                return;
        do {
                c->rollout_wanted = false;
                r->wake = 0;
                r->waits[0] = 0;
                now = wall(c);
                for (size_t i = 0; i < r->n_nodes; i++)
                        look_node(c, r, &r->nodes[i], now);
                if (r->state == ROLLOUT_RUNNING && judge(c, r)) {
                        begin_nodes(c, r);
                        end_stage(c, r);
                }
        } while (c->rollout_wanted && c->rollout); /* each time a node or a stage is further on, so it ends */
        c->rollout_wanted = false;
}

uint64_t rollout_deadline(const struct controller *c) {
        return !c->rollout ? 0 : c->rollout_wanted ? core_now(c) : c->rollout->wake;
}

/* ------------------------------------------------------------------ its life */
/* Takes it up: new, or as an earlier life left it. */
static void adopt(struct controller *c, struct rollout *r) {
        c->rollout = r;
        c->rollout_wanted = true;
        for (size_t i = 0; i < r->n_nodes; i++)
                r->nodes[i].node->rollout = &r->nodes[i];
}

void rollout_begin(struct controller *c, struct rollout *r) {
        adopt(c, r);
        rollout_put(c, r);
        for (size_t i = 0; i < r->n_nodes; i++)
                rollout_put_node(c, r, &r->nodes[i]);
        event_add(c, &(struct event_of){ .rank = -1 }, "rollout_started", "%s: %s is to be %s on %zu node%s, first on %zu of them", r->name, r->fact, r->value, r->n_nodes, text_s(r->n_nodes), rollout_target(r));
}

void rollout_stop(struct controller *c, struct rollout *r, const char *why) {
        if (!move(c, r, ROLLOUT_E_STOP, why))
                return;
        event_add(c, &(struct event_of){ .rank = -1, .severity = "error" }, "rollout_stopped", "%s was stopped in stage %zu (%u%%): %s; fp8ctl rollout resume or abort", r->name, r->stage + 1, r->stages[r->stage], why);
        rollout_put(c, r);
        c->rollout_wanted = true; /* what is being emptied goes back */
}

void rollout_resume(struct controller *c, struct rollout *r, const char *why) {
        struct rollout_sums s;

        if (!move(c, r, ROLLOUT_E_RESUME, why))
                return;
        r->counted_ms = wall(c);
        r->compare = false;
        for (size_t i = 0; i < r->n_nodes; i++) {
                struct rollout_node *e = &r->nodes[i];

                memset(e->failures, 0, sizeof(e->failures));
                memset(e->watched_ms, 0, sizeof(e->watched_ms));
                e->again = e->state == RN_FAILED;
                rollout_put_node(c, r, e);
        }
        s = rollout_sums(c, r);
        event_add(c, &(struct event_of){ .rank = -1 }, "rollout_resumed", "%s goes on with stage %zu (%u%%)%s%s; %" PRIu64 " node%s failed and begin%s again if well", r->name, r->stage + 1, r->stages[r->stage],
                  why[0] ? ": " : "", why, s.failed, text_s(s.failed), s.failed == 1 ? "s" : "");
        rollout_put(c, r);
        c->rollout_wanted = true;
}

void rollout_abort(struct controller *c, struct rollout *r, const char *why) {
        if (!move(c, r, ROLLOUT_E_ABORT, why))
                return;
        for (size_t i = 0; i < r->n_nodes; i++) {
                struct rollout_node *e = &r->nodes[i];

                if (e->state == RN_DRAINING)
                        move_node(c, r, e, RN_E_BACK, "the rollout was aborted before it was changed");
                else if (e->state == RN_CHANGING || e->state == RN_TESTING)
                        fail_node(c, r, e, "the rollout was aborted; fp8ctl node uncordon gives it ranks again");
        }
        event_add(c, &(struct event_of){ .rank = -1, .severity = "warning" }, "rollout_aborted", "%s was aborted%s%s", r->name, why[0] ? ": " : "", why);
        end(c, r);
}

struct rollout *rollout_free(struct rollout *r) {
        if (r)
                free(r->nodes);
        free(r);
        return NULL;
}

int rollout_add(struct controller *c, struct rollout *r) {
        struct rollout **list = realloc(c->rollouts, (c->n_rollouts + 1) * sizeof(*list));
        size_t at = c->n_rollouts;

        if (!list)
                return -ENOMEM;
        c->rollouts = list;
        while (at > 0 && list[at - 1]->id > r->id)
                at--;
        memmove(list + at + 1, list + at, (c->n_rollouts++ - at) * sizeof(*list));
        list[at] = r;
        return 0;
}

int rollout_start(struct controller *c, struct error *e) {
        for (size_t i = 0; i < c->n_rollouts; i++) {
                struct rollout *r = c->rollouts[i];

                if (!r->known || r->n_nodes == 0)
                        return error_set(e, -EBADMSG, "rollout %" PRIu64 ": found %s, expected its record and those of its nodes", r->id, r->known ? "no nodes" : "nodes only");
                if (rollout_live(r) && c->rollout)
                        return error_set(e, -EBADMSG, "rollouts %" PRIu64 " and %" PRIu64 ": found two that are not over, expected one", c->rollout->id, r->id);
                if (rollout_live(r))
                        adopt(c, r);
        }
        return 0;
}

void rollout_free_all(struct controller *c) {
        for (size_t i = 0; i < c->n_rollouts; i++)
                rollout_free(c->rollouts[i]);
        free(c->rollouts);
}

bool rollout_holds(const struct node *n) {
        return n->rollout && (n->rollout->state == RN_DRAINING || n->rollout->state == RN_CHANGING || n->rollout->state == RN_TESTING);
}

/* ------------------------------------------------------------------ what workers say */
void rollout_changed(struct controller *c, struct session *s, const Fp8ctl__V1__RolloutChanged *m) {
        struct rollout_node *e = s->node->rollout;
        char why[ROLLOUT_TEXT_LEN], said[ROLLOUT_TEXT_LEN - 32];

        if (!e || e->state != RN_CHANGING || m->rollout != c->rollout->id) {
                core_drop(c, DROP_MALFORMED, "rollout_changed");
                return;
        }
        if (m->error && m->error[0]) {
                core_text(said, sizeof(said), m->error);
                snprintf(why, sizeof(why), "its hook: %s", said);
                fail_node(c, c->rollout, e, why);
        } else {
                core_text(e->reason, sizeof(e->reason), "its hook has ended well");
                rollout_put_node(c, c->rollout, e);
        }
}

bool rollout_tests(const struct node *n, uint64_t relay) {
        return n->rollout && n->rollout->state == RN_TESTING && relay && n->rollout->relay == relay;
}

void rollout_tested(struct controller *c, struct node *n, bool passed, const char *why) {
        struct rollout *r = c->rollout;
        struct rollout_node *e = n->rollout;

        if (!passed) {
                fail_node(c, r, e, why);
                return;
        }
        move_node(c, r, e, RN_E_PASSED, "it shows the change and has passed its test");
        event_add(c, &(struct event_of){ .node = n, .rank = -1 }, "rollout_node_changed", "%s: %s shows %s %s and has passed its test; it is watched for %g s", r->name, n->name, r->fact, r->value,
                  (double)r->soak_ms / 1e3);
}
