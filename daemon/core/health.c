/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What workers say of their nodes' health, and for how long a node is kept from ranks.
 *
 * Nothing that a worker says is trusted to be sound: numbers are bounded, names and texts cut and cleaned, lists limited.  Times are of the wall clock, because they outlive the controller.
 */
#include "daemon/core/health.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"

/* Thresholds. */
#define MERGE_MS 60000u          /* the same finding within that of the one before is one, counted */
#define SETTLE_TIMES_MAX 6u      /* the settling time is doubled at most so often: 60 s become 64 minutes */
#define SETTLE_FORGET_MS 3600000u

struct node_health *health_free(struct node_health *h) {
        if (!h)
                return NULL;
        for (size_t i = 0; i < h->n_tests; i++)
                fp8ctl__v1__node_test__free_unpacked(h->tests[i], NULL);
        free(h->checks);
        free(h->findings);
        free(h);
        return NULL;
}

struct node_health *health_get(struct node *n) {
        if (!n->health) {
                n->health = calloc(1, sizeof(*n->health));
                if (n->health)
                        core_text(n->health->boot_id, sizeof(n->health->boot_id), n->boot_id);
        }
        return n->health;
}

bool health_unfit(const struct node *n, uint32_t device) {
        if (n->health && n->health->hold != HOLD_NONE && n->health->verdict == HEALTH_EVICT)
                return true;
        for (size_t i = 0; i < n->n_devices; i++)
                if (n->devices[i].index == device && n->devices[i].unfit[0])
                        return true;
        return false;
}

bool health_port_well(const struct node *n, const char *nic, uint32_t port) {
        char subject[HEALTH_NAME_LEN];
        bool well = false, ill = false;

        snprintf(subject, sizeof(subject), "%s/%u", nic, port);
        for (size_t i = 0; n->health && i < n->health->n_checks; i++) {
                const struct node_check *k = &n->health->checks[i];

                if (strcmp(k->subject, subject) != 0)
                        continue;
                well = well || (strcmp(k->check, "ib-port") == 0 && k->verdict == HEALTH_OK);
                ill = ill || k->verdict == HEALTH_DRAIN || k->verdict == HEALTH_EVICT;
        }
        return well && !ill;
}

bool health_untested(const struct node *n) {
        return n->health && n->health->untested;
}

const char *health_name(const struct node *n, const char **ret_reason) {
        const struct node_health *h = n->health;
        const struct node_check *worst = NULL;

        *ret_reason = "";
        if (!h)
                return health_verdict_name(HEALTH_OK);
        if (h->hold != HOLD_NONE) {
                *ret_reason = h->reason;
                return health_verdict_name(h->verdict);
        }
        if (h->untested) {
                *ret_reason = "it gets ranks when its test has passed";
                return "testing";
        }
        if (h->waits != HEALTH_OK) {
                *ret_reason = h->waits_why;
                return health_verdict_name(HEALTH_WARN);
        }
        for (size_t i = 0; i < n->n_devices; i++)
                if (n->devices[i].unfit[0]) {
                        *ret_reason = n->devices[i].unfit;
                        return health_verdict_name(HEALTH_WARN);
                }
        for (size_t i = 0; i < h->n_checks; i++)
                if (h->checks[i].verdict != HEALTH_ABSENT && h->checks[i].verdict != HEALTH_OK && (!worst || h->checks[i].verdict > worst->verdict))
                        worst = &h->checks[i];
        if (worst)
                *ret_reason = worst->evidence;
        return health_verdict_name(worst ? HEALTH_WARN : HEALTH_OK); /* graver ones are acted on: then it is held, or an administrator said otherwise */
}

/* ------------------------------------------------------------------ what its worker says */
static struct node_check *check_slot(struct node_health *h, const char *check, const char *subject) {
        struct node_check *list;

        for (size_t i = 0; i < h->n_checks; i++)
                if (strcmp(h->checks[i].check, check) == 0 && strcmp(h->checks[i].subject, subject) == 0)
                        return &h->checks[i];
        if (h->n_checks == HEALTH_CHECKS_MAX)
                return NULL;
        list = realloc(h->checks, (h->n_checks + 1) * sizeof(*list));
        if (!list)
                return NULL;
        h->checks = list;
        h->checks[h->n_checks] = (struct node_check){ .device = -1 };
        core_text(h->checks[h->n_checks].check, HEALTH_NAME_LEN, check);
        core_text(h->checks[h->n_checks].subject, HEALTH_NAME_LEN, subject);
        return &h->checks[h->n_checks++];
}

static void take_check(struct controller *c, struct node *n, const Fp8ctl__V1__NodeCheck *m) {
        int verdict = health_verdict_parse(m->verdict);
        char check[HEALTH_NAME_LEN], subject[HEALTH_NAME_LEN], what[2 * HEALTH_NAME_LEN + 4];
        struct node_check *k;
        enum health_verdict was;
        bool again;

        core_text(check, sizeof(check), m->check);
        core_text(subject, sizeof(subject), m->subject);
        k = verdict >= 0 && check[0] ? check_slot(n->health, check, subject) : NULL;
        if (!k) {
                core_drop(c, DROP_MALFORMED, "check");
                return;
        }
        was = k->verdict;
        again = m->network && verdict >= HEALTH_DRAIN && verdict != HEALTH_ABSENT && k->since_ms && m->since_unix_ms > k->since_ms; /* another blow of the same kind */
        k->verdict = (enum health_verdict)verdict;
        core_text(k->evidence, sizeof(k->evidence), m->evidence);
        k->since_ms = m->since_unix_ms;
        k->device = m->device;
        k->network = m->network;
        if (k->verdict == was && !again)
                return;
        k->answered = false;
        snprintf(what, sizeof(what), "%s%s%s", k->check, k->subject[0] ? " " : "", k->subject);
        if (k->verdict == HEALTH_OK || k->verdict == HEALTH_ABSENT) {
                if (was != HEALTH_OK && was != HEALTH_ABSENT)
                        event_add(c, &(struct event_of){ .node = n, .rank = -1 }, "node_well", "%s: %s is well again%s%s", n->name, what, k->evidence[0] ? ": " : "", k->evidence);
                return;
        }
        event_add(c, &(struct event_of){ .node = n, .rank = -1, .severity = "warning" }, "node_unwell", "%s: %s: %s (%s)", n->name, what, k->evidence, health_verdict_name(k->verdict));
        if (k->network && k->verdict >= HEALTH_DRAIN) {
                char why[HEALTH_TEXT_LEN];

                snprintf(why, sizeof(why), "%.80s: %.160s", what, k->evidence);
                health_network_alert(c, n, why);
        }
}

/* Merged with the same one of just before: a storm of one line is one blow. */
static void take_finding(struct controller *c, struct node *n, const struct finding *f) {
        struct node_health *h = n->health;
        struct finding *at;

        for (size_t i = h->n_findings; i-- > 0;) {
                at = &h->findings[i];
                if (at->code != f->code || strcmp(at->check, f->check) != 0 || strcmp(at->subject, f->subject) != 0)
                        continue;
                if (f->ms < at->ms + MERGE_MS && at->ms < f->ms + MERGE_MS && at->pid == f->pid) {
                        at->count += f->count;
                        if (f->ms > at->ms)
                                at->ms = f->ms;
                        return;
                }
                break;
        }
        if (h->n_findings == HEALTH_FINDINGS_MAX) {
                memmove(h->findings, h->findings + 1, (HEALTH_FINDINGS_MAX - 1) * sizeof(*h->findings));
                h->n_findings--;
        }
        if (!h->findings)
                h->findings = calloc(HEALTH_FINDINGS_MAX, sizeof(*h->findings));
        if (!h->findings)
                return;
        at = &h->findings[h->n_findings++];
        *at = *f;
        health_found(c, n, at);
}

static void read_finding(struct controller *c, struct node *n, const Fp8ctl__V1__NodeFinding *m) {
        struct node_health *h = n->health;
        struct finding f = { .code = m->code, .device = m->device, .pid = m->pid, .count = m->count ? m->count : 1, .network = m->network };
        int verdict = health_verdict_parse(m->verdict);
        uint64_t now = c->io.wall_ms(c->io.arg);

        if (m->sequence) { /* its worker reads the log from its beginning whenever it starts */
                if (m->sequence <= h->seen_sequence)
                        return;
                h->seen_sequence = m->sequence;
        }
        core_text(f.check, sizeof(f.check), m->check);
        core_text(f.subject, sizeof(f.subject), m->subject);
        core_text(f.text, sizeof(f.text), m->text);
        f.verdict = verdict >= 0 && verdict <= HEALTH_EVICT ? (enum health_verdict)verdict : HEALTH_WARN;
        f.ms = m->unix_ms && m->unix_ms <= now ? m->unix_ms : now;
        if (!f.check[0]) {
                core_drop(c, DROP_MALFORMED, "finding");
                return;
        }
        take_finding(c, n, &f);
}

void health_report(struct controller *c, struct session *s, const Fp8ctl__V1__HealthReport *m) {
        struct node *n = s->node;

        if (!health_get(n))
                return;
        if (m->whole)
                for (size_t i = 0; i < n->health->n_checks; i++)
                        n->health->checks[i].since_ms = 0; /* marked */
        for (size_t i = 0; i < m->n_checks && i < HEALTH_CHECKS_MAX; i++)
                if (m->checks[i])
                        take_check(c, n, m->checks[i]);
        if (m->whole) {
                size_t k = 0;

                for (size_t i = 0; i < n->health->n_checks; i++)
                        if (n->health->checks[i].since_ms)
                                n->health->checks[k++] = n->health->checks[i];
                n->health->n_checks = k;
        }
        if (n->n_nics && (m->whole || m->n_checks))
                node_rails(n);
        for (size_t i = 0; i < m->n_findings; i++)
                if (m->findings[i])
                        read_finding(c, n, m->findings[i]);
        health_review(c, n, NULL);
        node_take_links(n, m);
        if (m->n_facts || m->n_device_memory_bytes)
                node_facts_take(c, n, m);
        if (m->n_findings)
                record_put_node(c, n);
}

/* ------------------------------------------------------------------ its life */
void health_hello(struct controller *c, struct node *n, bool rebooted) {
        struct node_health *h = c->config.test_nodes ? health_get(n) : n->health;
        bool held;

        if (!h)
                return;
        if (strcmp(h->boot_id, n->boot_id) != 0) {
                core_text(h->boot_id, sizeof(h->boot_id), n->boot_id);
                h->seen_sequence = 0;
        }
        if (rebooted) {
                held = h->hold == HOLD_BOOT;
                for (size_t i = 0; i < n->n_devices; i++) {
                        held = held || n->devices[i].unfit[0];
                        n->devices[i].unfit[0] = 0;
                        n->devices[i].taken_ms = 0;
                }
                if (held && h->hold == HOLD_BOOT)
                        health_release(c, n, "it was rebooted");
                else if (held)
                        event_add(c, &(struct event_of){ .node = n, .rank = -1 }, "node_repaired", "%s was rebooted: its devices get ranks again", n->name);
        }
        if (c->config.test_nodes && (rebooted || !node_tested(h)))
                node_test_begin(c, n);
}

void health_opened(struct controller *c, struct node *n) {
        struct node_health *h = n->health;

        for (size_t i = 0; i < n->n_devices; i++) {
                n->devices[i].unfit[0] = 0;
                n->devices[i].taken_ms = 0;
        }
        if (!h)
                return;
        for (size_t i = 0; i < h->n_checks; i++)
                h->checks[i].answered = h->checks[i].verdict == HEALTH_DRAIN || h->checks[i].verdict == HEALTH_EVICT;
        if (h->rma[0])
                h->n_repairs = 0; /* another takes its place */
        h->rma[0] = 0;
        h->untested = false;
        h->waits = HEALTH_OK;
        h->waits_said = false;
        if (h->hold != HOLD_NONE) {
                h->duty_before = NODE_OPEN;
                health_release(c, n, "an administrator opened it");
        }
}

/* After a release within the last hour it must be well for twice as long. */
static uint64_t settle_ms(const struct controller *c, const struct node_health *h) {
        uint32_t times = h->released_ms && c->io.wall_ms(c->io.arg) < h->released_ms + SETTLE_FORGET_MS ? h->releases : 0;

        return (uint64_t)c->config.health_settle_ms << (times < SETTLE_TIMES_MAX ? times : SETTLE_TIMES_MAX);
}

void health_tick(struct controller *c, struct node *n) {
        struct node_health *h = n->health;
        uint64_t now = c->io.wall_ms(c->io.arg);

        if (h->hold == HOLD_CHECKS && h->well_since_ms && now >= h->well_since_ms + settle_ms(c, h))
                health_release(c, n, "its checks are well again");
        if (h->waits != HEALTH_OK)
                health_retry(c, n);
        if (h->test_deadline && core_now(c) >= h->test_deadline) {
                h->test_deadline = h->test_relay = 0;
                event_add(c, &(struct event_of){ .node = n, .rank = -1, .severity = "warning" }, "node_test_failed", "%s did not answer its test in time; it gets no ranks: fp8ctl node test %s tries again", n->name, n->name);
        }
}

uint64_t health_deadline(const struct controller *c, const struct node *n) {
        const struct node_health *h = n->health;
        uint64_t wall = c->io.wall_ms(c->io.arg), at = 0, mono;

        if (h->hold == HOLD_CHECKS && h->well_since_ms)
                at = h->well_since_ms + settle_ms(c, h);
        if (h->waits != HEALTH_OK && (!at || wall + 1000 < at))
                at = wall + 1000;
        mono = at ? core_now(c) + (at > wall ? at - wall : 0) * NSEC_PER_MSEC : 0;
        return h->test_deadline && (!mono || h->test_deadline < mono) ? h->test_deadline : mono;
}
