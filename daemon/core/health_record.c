/* SPDX-License-Identifier: Apache-2.0 */
/* A node's health as clients see it, and as the store keeps it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/core/health.h"
#include "proto/message.h"

/* ------------------------------------------------------------------ out */
static void fill_check(const struct node_check *k, Fp8ctl__V1__NodeCheck *m) {
        fp8ctl__v1__node_check__init(m);
        m->check = (char *)k->check;
        m->subject = (char *)k->subject;
        m->verdict = (char *)health_verdict_name(k->verdict);
        m->evidence = (char *)k->evidence;
        m->since_unix_ms = k->since_ms;
        m->device = k->device;
        m->network = k->network;
}

static void fill_finding(const struct finding *f, Fp8ctl__V1__NodeFinding *m) {
        fp8ctl__v1__node_finding__init(m);
        m->check = (char *)f->check;
        m->subject = (char *)f->subject;
        m->code = f->code;
        m->device = f->device;
        m->pid = f->pid;
        m->text = (char *)f->text;
        m->unix_ms = f->ms;
        m->count = f->count;
        m->verdict = (char *)health_verdict_name(f->verdict);
        m->action = (char *)health_action_name(f->action);
        m->network = f->network;
}

static int fill_checks(const struct node_health *k, Fp8ctl__V1__Node *m, struct health_message *h) {
        h->checks = calloc(k->n_checks + 1, sizeof(*h->checks));
        h->check_ptrs = calloc(k->n_checks + 1, sizeof(*h->check_ptrs));
        if (!h->checks || !h->check_ptrs)
                return -ENOMEM;
        for (size_t i = 0; i < k->n_checks; i++) {
                fill_check(&k->checks[i], &h->checks[i]);
                h->check_ptrs[i] = &h->checks[i];
        }
        m->checks = h->check_ptrs;
        m->n_checks = k->n_checks;
        return 0;
}

static int fill_findings(const struct node_health *k, Fp8ctl__V1__Node *m, struct health_message *h) {
        h->findings = calloc(k->n_findings + 1, sizeof(*h->findings));
        h->finding_ptrs = calloc(k->n_findings + 1, sizeof(*h->finding_ptrs));
        if (!h->findings || !h->finding_ptrs)
                return -ENOMEM;
        for (size_t i = 0; i < k->n_findings; i++) {
                fill_finding(&k->findings[i], &h->findings[i]);
                h->finding_ptrs[i] = &h->findings[i];
        }
        m->findings = h->finding_ptrs;
        m->n_findings = k->n_findings;
        m->tests = (Fp8ctl__V1__NodeTest **)k->tests;
        m->n_tests = k->n_tests;
        return 0;
}

int health_fill(const struct node *n, Fp8ctl__V1__Node *m, bool all, struct health_message *h) {
        const char *reason;
        int r;

        m->health = (char *)health_name(n, &reason);
        m->health_reason = (char *)reason;
        if (!n->health)
                return 0;
        m->rma = n->health->rma;
        if (!all)
                return 0;
        r = fill_checks(n->health, m, h);
        return r < 0 ? r : fill_findings(n->health, m, h);
}

void health_message_free(struct health_message *h) {
        free(h->checks);
        free(h->check_ptrs);
        free(h->findings);
        free(h->finding_ptrs);
        free(h->holds);
        free(h->hold_ptrs);
}

/* The checks are not kept: the worker says them again. */
int health_fill_record(const struct node *n, Fp8ctl__V1__NodeRecord *m, struct health_message *h) {
        struct node_health *k = n->health;
        size_t held = 0;

        if (!k)
                return 0;
        fp8ctl__v1__health_record__init(&h->record);
        h->holds = calloc(n->n_devices + 1, sizeof(*h->holds));
        h->hold_ptrs = calloc(n->n_devices + 1, sizeof(*h->hold_ptrs));
        if (!h->holds || !h->hold_ptrs)
                return -ENOMEM;
        for (size_t i = 0; i < n->n_devices; i++) {
                const struct device *d = &n->devices[i];

                if (!d->unfit[0])
                        continue;
                fp8ctl__v1__device_hold__init(&h->holds[held]);
                h->holds[held].index = d->index;
                h->holds[held].taken_unix_ms = d->taken_ms;
                h->holds[held].reason = (char *)d->unfit;
                h->hold_ptrs[held] = &h->holds[held];
                held++;
        }
        h->record.hold = k->hold;
        h->record.verdict = k->verdict;
        h->record.reason = k->reason;
        h->record.boot_id = k->boot_id;
        h->record.seen_sequence = k->seen_sequence;
        h->record.taken_unix_ms = k->taken_ms;
        h->record.alert_unix_ms = k->alert_ms;
        h->record.repairs_unix_ms = k->repairs;
        h->record.n_repairs_unix_ms = k->n_repairs;
        h->record.devices = h->hold_ptrs;
        h->record.n_devices = held;
        h->record.duty_before = (char *)node_duty_name(k->duty_before);
        h->record.released_unix_ms = k->released_ms;
        h->record.releases = k->releases;
        m->health = &h->record;
        m->node->rma = k->rma;
        return fill_findings(k, m->node, h);
}

/* ------------------------------------------------------------------ in */
static enum health_action action_of(const char *name) {
        for (int i = 0; name && i < N_HEALTH_ACTIONS; i++)
                if (strcmp(name, health_action_name((enum health_action)i)) == 0)
                        return (enum health_action)i;
        return ACT_LOG;
}

static int load_findings(struct node_health *h, const Fp8ctl__V1__Node *m) {
        h->findings = calloc(HEALTH_FINDINGS_MAX, sizeof(*h->findings));
        if (!h->findings)
                return -ENOMEM;
        for (size_t i = 0; i < m->n_findings && h->n_findings < HEALTH_FINDINGS_MAX; i++) {
                const Fp8ctl__V1__NodeFinding *k = m->findings[i];
                struct finding *f = &h->findings[h->n_findings];
                int verdict = k ? health_verdict_parse(k->verdict) : -1;

                if (!k)
                        continue;
                *f = (struct finding){ .code = k->code, .pid = k->pid, .count = k->count, .device = k->device, .ms = k->unix_ms, .verdict = verdict < 0 ? HEALTH_WARN : (enum health_verdict)verdict,
                                       .action = action_of(k->action), .network = k->network };
                core_text(f->check, sizeof(f->check), k->check);
                core_text(f->subject, sizeof(f->subject), k->subject);
                core_text(f->text, sizeof(f->text), k->text);
                h->n_findings++;
        }
        for (size_t i = 0; i < m->n_tests && h->n_tests < HEALTH_TESTS_MAX; i++) {
                ProtobufCMessage *copy = m->tests[i] ? message_copy(&m->tests[i]->base) : NULL;

                if (copy)
                        h->tests[h->n_tests++] = (Fp8ctl__V1__NodeTest *)copy;
        }
        return 0;
}

int health_load(struct node *n, const Fp8ctl__V1__NodeRecord *m) {
        const Fp8ctl__V1__HealthRecord *k = m->health;
        struct node_health *h;

        if (!k)
                return 0;
        h = health_get(n);
        if (!h || load_findings(h, m->node) < 0)
                return -ENOMEM;
        h->hold = k->hold < N_HEALTH_HOLDS ? (enum health_hold)k->hold : HOLD_NONE;
        h->verdict = k->verdict == HEALTH_EVICT ? HEALTH_EVICT : HEALTH_DRAIN;
        core_text(h->reason, sizeof(h->reason), k->reason);
        core_text(h->rma, sizeof(h->rma), m->node->rma);
        core_text(h->boot_id, sizeof(h->boot_id), k->boot_id);
        h->seen_sequence = k->seen_sequence;
        h->taken_ms = k->taken_unix_ms;
        h->alert_ms = k->alert_unix_ms;
        h->duty_before = node_duty_parse(k->duty_before);
        h->released_ms = k->released_unix_ms;
        h->releases = k->releases;
        for (size_t i = 0; i < k->n_repairs_unix_ms && h->n_repairs < HEALTH_REPAIRS_MAX; i++)
                h->repairs[h->n_repairs++] = k->repairs_unix_ms[i];
        for (size_t i = 0; i < k->n_devices; i++) {
                struct device *d = k->devices[i] ? node_device(n, k->devices[i]->index) : NULL;

                if (!d)
                        continue;
                core_text(d->unfit, sizeof(d->unfit), k->devices[i]->reason);
                d->taken_ms = k->devices[i]->taken_unix_ms;
        }
        return 0;
}
