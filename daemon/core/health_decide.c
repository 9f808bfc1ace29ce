/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From what was found to what is done.
 *
 *   a finding   Xid: the table of xid.c and what that GPU said before; others: the verdict that came with it, and the third within an hour drains
 *   a check     drain, evict: while it says so, and a settling time beyond; what a network check says needs a second alert within five minutes, so that a flap alone does nothing
 *   the breaker no more than a share of the cluster's devices is kept from ranks within a window: what is beyond that waits, and is said
 *
 * A node that is evicted gets no ranks and loses those it has at once: they are killed and go on elsewhere, or their job waits. One that drains loses them at the end of a step.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/core/health.h"
#include "daemon/core/recovery_private.h"

/* Thresholds. */
#define DAY_MS (UINT64_C(24) * 3600 * 1000)
#define HOUR_MS (UINT64_C(3600) * 1000)
#define OTHER_MS 10000u          /* Xid 45 within that of another is its consequence */
#define ALERT_WINDOW_MS 300000u  /* two network alerts within it */
#define ALERT_SAME_MS 2000u      /* ... but what comes within that is of one blow */
#define REPEATED_TIMES 3u        /* warnings of the kernel's log about one thing, within an hour */
#define REPAIRS_TIMES 5u         /* within REPAIRS_DAYS: it is to be replaced */
#define REPAIRS_DAYS 7u

/* ------------------------------------------------------------------ the breaker */
/* Without the node of that name: all of its devices are about to be. */
static size_t devices_taken(const struct controller *c, const char *but, uint64_t since) {
        size_t taken = 0;

        for (size_t i = 0; i < c->n_nodes; i++) {
                const struct node *n = c->nodes[i];
                const struct node_health *h = n->health;

                if (strcmp(n->name, but) == 0)
                        continue;
                if (h && h->hold != HOLD_NONE && h->taken_ms >= since) {
                        taken += n->n_devices;
                        continue;
                }
                for (size_t d = 0; d < n->n_devices; d++)
                        taken += n->devices[d].unfit[0] && n->devices[d].taken_ms >= since;
        }
        return taken;
}

/* May one device more be taken now, or the whole of n? */
static bool breaker_lets(const struct controller *c, const struct node *n, bool whole) {
        uint64_t now = c->io.wall_ms(c->io.arg), since = now > c->config.health_window_ms ? now - c->config.health_window_ms : 0;
        size_t all = 0;

        for (size_t i = 0; i < c->n_nodes; i++)
                all += c->nodes[i]->n_devices;
        return (devices_taken(c, whole ? n->name : "", since) + (whole ? n->n_devices : 1)) * 100 <= all * c->config.health_share;
}

bool health_breaker_open(const struct controller *c) {
        for (size_t i = 0; i < c->n_nodes; i++)
                if (c->nodes[i]->health && c->nodes[i]->health->waits != HEALTH_OK)
                        return true;
        return false;
}

static void breaker_holds(struct controller *c, struct node *n, enum health_verdict v, enum health_hold hold, const char *why) {
        struct node_health *h = n->health;

        if (v >= h->waits) {
                h->waits = v;
                h->waits_hold = hold;
                core_text(h->waits_why, sizeof(h->waits_why), why);
        }
        if (h->waits_said)
                return;
        h->waits_said = true;
        event_add(c, &(struct event_of){ .node = n, .rank = -1, .severity = "error" }, "breaker", "%s should be kept from ranks (%s: %s), but more than %u%% of all devices would be within %.0f s: it keeps them for now", n->name,
                  health_verdict_name(v), why, c->config.health_share, c->config.health_window_ms / 1e3);
}

/* ------------------------------------------------------------------ taking ranks away */
/* device -1: all of them. What has no place to go makes its job wait. */
static void move_ranks(struct controller *c, struct node *n, int32_t device, const char *why) {
        char cause[TEXT_MAX_LEN];

        for (size_t k = 0; k < c->n_jobs; k++) {
                struct job *j = c->jobs[k];
                int lost = 0;

                if (!job_placed(j) || !job_on_node(j, n))
                        continue;
                snprintf(cause, sizeof(cause), "%.100s%s: %.250s", n->name, device < 0 ? "" : " device", why);
                for (int i = 0; i < j->world; i++)
                        if (j->ranks[i].node == n && (device < 0 || j->ranks[i].device == (uint32_t)device) && j->ranks[i].state != RANK_LOST && j->ranks[i].state != RANK_NONE) {
                                recovery_mark_lost(c, j, (uint32_t)i, why, LOST_KILL);
                                lost++;
                        }
                if (lost)
                        recovery_act(c, j, cause, why, true, false, 0);
        }
        c->schedule_wanted = true;
}

void health_take(struct controller *c, struct node *n, enum health_verdict v, enum health_hold hold, const char *why) {
        struct node_health *h = n->health;
        char text[TEXT_MAX_LEN];

        if (h->hold != HOLD_NONE && h->verdict >= v) {
                if (hold > h->hold) {
                        h->hold = hold; /* nothing is done about ranks, but it lasts longer */
                        core_text(h->reason, sizeof(h->reason), why);
                        record_put_node(c, n);
                }
                return;
        }
        if (h->hold == HOLD_NONE && !breaker_lets(c, n, true)) {
                breaker_holds(c, n, v, hold, why);
                return;
        }
        h->waits = HEALTH_OK;
        h->waits_said = false;
        rollout_failure(c, n, why);
        if (h->hold == HOLD_NONE) {
                h->duty_before = n->duty;
                h->taken_ms = c->io.wall_ms(c->io.arg);
        }
        h->hold = hold > h->hold ? hold : h->hold;
        h->verdict = v;
        h->well_since_ms = 0;
        core_text(h->reason, sizeof(h->reason), why);
        snprintf(text, sizeof(text), "health: %s", why);
        node_set_duty(c, n, NODE_DRAINING, text);
        if (v == HEALTH_EVICT) {
                event_add(c, &(struct event_of){ .node = n, .rank = -1, .severity = "error" }, "node_evicted", "%s: %s; it gets no ranks until %s", n->name, why,
                          hold == HOLD_CHECKS ? "its checks are well again" : hold == HOLD_BOOT ? "it was rebooted, or `fp8ctl node uncordon`" : "`fp8ctl node uncordon`");
                move_ranks(c, n, -1, why);
        }
        record_put_node(c, n);
}

static void take_device(struct controller *c, struct node *n, int32_t device, const char *why) {
        struct device *d = device >= 0 ? node_device(n, (uint32_t)device) : NULL;

        if (!d) { /* which one is not known: all of them */
                health_take(c, n, HEALTH_EVICT, HOLD_BOOT, why);
                return;
        }
        if (d->unfit[0] || n->health->hold != HOLD_NONE)
                return;
        if (!breaker_lets(c, n, false)) {
                n->health->waits_device = device;
                breaker_holds(c, n, HEALTH_WARN, HOLD_NONE, why);
                return;
        }
        core_text(d->unfit, sizeof(d->unfit), why);
        d->taken_ms = c->io.wall_ms(c->io.arg);
        rollout_failure(c, n, why);
        event_add(c, &(struct event_of){ .node = n, .rank = -1, .severity = "error" }, "device_evicted", "%s device %u: %s; it gets no ranks until the node was rebooted, or `fp8ctl node uncordon`", n->name, d->index, why);
        move_ranks(c, n, device, why);
        record_put_node(c, n);
}

void health_retry(struct controller *c, struct node *n) {
        struct node_health *h = n->health;
        enum health_verdict v = h->waits;
        char why[HEALTH_TEXT_LEN];

        if (!breaker_lets(c, n, v >= HEALTH_DRAIN))
                return;
        core_text(why, sizeof(why), h->waits_why);
        h->waits = HEALTH_OK;
        h->waits_said = false;
        if (v >= HEALTH_DRAIN)
                health_take(c, n, v, h->waits_hold, why);
        else
                take_device(c, n, h->waits_device, why);
}

void health_release(struct controller *c, struct node *n, const char *why) {
        struct node_health *h = n->health;
        uint64_t now = c->io.wall_ms(c->io.arg), week = REPAIRS_DAYS * DAY_MS;
        enum health_hold hold = h->hold;
        size_t repairs = 0;

        h->releases = h->released_ms && now < h->released_ms + HOUR_MS ? h->releases + 1 : 1;
        h->released_ms = now;
        h->hold = HOLD_NONE;
        h->well_since_ms = h->taken_ms = 0;
        h->reason[0] = 0;
        event_add(c, &(struct event_of){ .node = n, .rank = -1 }, "node_repaired", "%s gets ranks again: %s", n->name, why);
        node_set_duty(c, n, h->duty_before, why);
        if (hold == HOLD_CHECKS)
                return; /* nothing was repaired: a disk was cleared, a clock set */
        if (h->n_repairs == HEALTH_REPAIRS_MAX)
                memmove(h->repairs, h->repairs + 1, --h->n_repairs * sizeof(*h->repairs));
        h->repairs[h->n_repairs++] = now;
        for (size_t i = 0; i < h->n_repairs; i++)
                repairs += h->repairs[i] + week > now;
        if (repairs >= REPAIRS_TIMES)
                health_list_rma(c, n, "five repairs in seven days");
        record_put_node(c, n);
}

void health_list_rma(struct controller *c, struct node *n, const char *why) {
        struct node_health *h = n->health;

        if (!h->rma[0])
                event_add(c, &(struct event_of){ .node = n, .rank = -1, .severity = "error" }, "node_rma", "%s is to be replaced: %s", n->name, why);
        core_text(h->rma, sizeof(h->rma), why);
        health_take(c, n, HEALTH_EVICT, HOLD_ADMIN, why);
        record_put_node(c, n);
}

/* ------------------------------------------------------------------ networks */
void health_network_alert(struct controller *c, struct node *n, const char *why) {
        struct node_health *h = health_get(n);
        uint64_t now = c->io.wall_ms(c->io.arg);
        char text[HEALTH_TEXT_LEN];

        if (!h)
                return;
        if (h->alert_ms && now < h->alert_ms + ALERT_SAME_MS)
                return;
        if (!h->alert_ms || now >= h->alert_ms + ALERT_WINDOW_MS) {
                h->alert_ms = now;
                core_text(h->alert, sizeof(h->alert), why);
                event_add(c, &(struct event_of){ .node = n, .rank = -1, .severity = "warning" }, "network_alert", "%s: %s; a second alert within %u s evicts it", n->name, why, ALERT_WINDOW_MS / 1000);
                return;
        }
        snprintf(text, sizeof(text), "two network alerts: %.100s; %.100s", h->alert, why);
        h->alert_ms = now;
        core_text(h->alert, sizeof(h->alert), why);
        health_take(c, n, HEALTH_EVICT, HOLD_CHECKS, text);
        health_review(c, n, NULL);
}

/* ------------------------------------------------------------------ checks */
void health_review(struct controller *c, struct node *n, const char *boot_id) {
        struct node_health *h = n->health;
        const struct node_check *worst = NULL;
        char why[HEALTH_TEXT_LEN];
        bool well = true;

        for (size_t i = 0; i < h->n_checks; i++) {
                const struct node_check *k = &h->checks[i];

                if (k->verdict != HEALTH_DRAIN && k->verdict != HEALTH_EVICT)
                        continue;
                well = false;
                if (!k->network && !k->answered && (!worst || k->verdict > worst->verdict))
                        worst = k;
        }
        if (worst) {
                snprintf(why, sizeof(why), "%.60s%s%.60s: %.120s", worst->check, worst->subject[0] ? " " : "", worst->subject, worst->evidence);
                health_take(c, n, worst->verdict, HOLD_CHECKS, why);
        } else if (h->waits != HEALTH_OK && h->waits_hold == HOLD_CHECKS && well) {
                h->waits = HEALTH_OK;
                h->waits_said = false;
        }
        if (h->hold != HOLD_CHECKS || !well)
                h->well_since_ms = 0;
        else if (!h->well_since_ms)
                h->well_since_ms = c->io.wall_ms(c->io.arg);
}

/* ------------------------------------------------------------------ findings */
static struct xid_past past_of(const struct node_health *h, const struct finding *f) {
        struct xid_past p = { 0 };

        for (size_t i = 0; i < h->n_findings; i++) {
                const struct finding *o = &h->findings[i];

                if (o == f || strcmp(o->check, "xid") != 0 || strcmp(o->subject, f->subject) != 0 || o->ms + DAY_MS <= f->ms)
                        continue;
                p.same_day += o->code == f->code;
                p.same_hour += o->code == f->code && o->ms + HOUR_MS > f->ms;
                p.fatal_day += o->action >= ACT_RESET_DEVICE;
                p.other_lately = p.other_lately || (o->code != f->code && o->ms + OTHER_MS > f->ms);
        }
        return p;
}

static enum health_action decide(const struct node_health *h, const struct finding *f, char *why, size_t size) {
        static const enum health_action actions[] = { [HEALTH_OK] = ACT_LOG, [HEALTH_WARN] = ACT_WARN, [HEALTH_DRAIN] = ACT_DRAIN, [HEALTH_EVICT] = ACT_EVICT };
        const char *more = NULL;
        size_t times = f->count;

        if (strcmp(f->check, "xid") == 0) {
                const struct xid_past past = past_of(h, f);
                const struct xid_rule *rule = xid_find(f->code);
                enum health_action a = xid_decide(f->code, f->text, &past, &more);

                snprintf(why, size, "Xid %u (%s) on %.40s%s%s", f->code, rule ? rule->name : "not in the table", f->subject, more ? ", " : "", more ? more : "");
                return a;
        }
        snprintf(why, size, "%.40s%s%.40s: %.140s", f->check, f->subject[0] ? " " : "", f->subject, f->text);
        for (size_t i = 0; i < h->n_findings; i++)
                times += &h->findings[i] != f && h->findings[i].ms + HOUR_MS > f->ms && strcmp(h->findings[i].check, f->check) == 0 && strcmp(h->findings[i].subject, f->subject) == 0;
        if (f->verdict == HEALTH_WARN && f->subject[0] && times >= REPEATED_TIMES)
                return ACT_DRAIN;
        return actions[f->verdict];
}

/* The rank that it hit: by its process, else the one that runs on that device. */
static void restart_rank(struct controller *c, struct node *n, const struct finding *f, const char *why) {
        for (size_t k = 0; k < c->n_jobs; k++) {
                struct job *j = c->jobs[k];

                for (int i = 0; job_placed(j) && i < j->world; i++) {
                        const struct rank *r = &j->ranks[i];

                        if (r->node != n || !(f->pid ? r->pid == f->pid : f->device >= 0 && r->device == (uint32_t)f->device && r->state == RANK_RUN))
                                continue;
                        recovery_rank_lost(c, j, (uint32_t)i, why, LOST_KILL, true);
                        return;
                }
        }
}

void health_found(struct controller *c, struct node *n, struct finding *f) {
        char why[HEALTH_TEXT_LEN];
        static const char *const severity[N_HEALTH_ACTIONS] = { "info", "warning", "warning", "error", "error", "error", "error" };

        f->action = decide(n->health, f, why, sizeof(why));
        event_add(c, &(struct event_of){ .node = n, .rank = -1, .severity = severity[f->action] }, strcmp(f->check, "xid") == 0 ? "xid" : "node_finding", "%s: %s: %s", n->name, why, health_action_name(f->action));
        if (f->network && f->action >= ACT_DRAIN) {
                health_network_alert(c, n, why);
                return;
        }
        switch (f->action) {
        case ACT_RESTART_RANK: restart_rank(c, n, f, why); break;
        case ACT_RESET_DEVICE: take_device(c, n, f->device, why); break;
        case ACT_DRAIN: health_take(c, n, HEALTH_DRAIN, HOLD_BOOT, why); break;
        case ACT_EVICT: health_take(c, n, HEALTH_EVICT, strcmp(f->check, "canary") == 0 ? HOLD_ADMIN : HOLD_BOOT, why); break; /* wrong arithmetic: as a test that failed */
        case ACT_RMA: health_list_rma(c, n, why); break;
        default: break;
        }
}
