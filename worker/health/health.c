/* SPDX-License-Identifier: Apache-2.0 */
/* The engine: lanes of checks, what they and the kernel's log say, and what of it the controller is told. */
#include "worker/health/health.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "worker/health/health_private.h"

#define WATCH_NS (5 * NSEC_PER_SEC)
#define HANGS_NS (60 * NSEC_PER_SEC)
#define SITE_HANGS_NS (1000 * NSEC_PER_SEC) /* 32 programs of 30 s each */
#define STOP_NS (2 * NSEC_PER_SEC)
#define WINDOW_NS NSEC_PER_SEC
#define WINDOW_FINDINGS 256 /* of the log, a second; beyond it they are passed over */
#define MERGE_MS 1000

static const struct check lanes_check = { .name = "checks" }, canary_check = { .name = "canary" };

/* ------------------------------------------------------------------ to the controller */
bool health_is_alert(const struct health_state *s) {
        return s->check->alerts != HEALTH_OK && s->said.verdict <= s->check->alerts;
}

static void fill(const struct health_state *s, bool gone, Fp8ctl__V1__NodeCheck *m) {
        fp8ctl__v1__node_check__init(m);
        m->check = (char *)s->check->name;
        m->subject = (char *)s->said.subject;
        m->verdict = (char *)health_verdict_name(gone ? HEALTH_OK : s->said.verdict);
        m->evidence = gone ? (char *)"it is not there any more" : (char *)s->said.evidence;
        m->since_unix_ms = s->since_ms ? s->since_ms : 1;
        m->device = s->said.device;
        m->network = health_is_alert(s);
}

static void report(struct health *h, bool whole, const struct health_state *list, size_t n, size_t gone) {
        Fp8ctl__V1__HealthReport m = FP8CTL__V1__HEALTH_REPORT__INIT;
        _cleanup_free_ Fp8ctl__V1__NodeCheck *checks = calloc(n + 1, sizeof(*checks));
        _cleanup_free_ Fp8ctl__V1__NodeCheck **ptrs = calloc(n + 1, sizeof(*ptrs));

        if (!checks || !ptrs)
                return;
        for (size_t i = 0; i < n; i++) {
                fill(&list[i], i + gone >= n, &checks[i]);
                ptrs[i] = &checks[i];
        }
        m.whole = whole;
        m.checks = ptrs;
        m.n_checks = n;
        h->config.report(h->config.arg, &m);
}

static void report_facts(struct health *h) {
        Fp8ctl__V1__HealthReport m = FP8CTL__V1__HEALTH_REPORT__INIT;
        Fp8ctl__V1__NodeFact *list;
        Fp8ctl__V1__NodeFact **ptrs;
        size_t n = 0;

        for (int g = 0; g < N_FACT_GROUPS; g++) {
                if (!h->facts[g])
                        return; /* all together: half of them make another fingerprint */
                n += h->facts[g]->n;
        }
        list = calloc(n + 1, sizeof(*list));
        ptrs = calloc(n + 1, sizeof(*ptrs));
        for (int g = 0; list && ptrs && g < N_FACT_GROUPS; g++)
                for (size_t i = 0; i < h->facts[g]->n; i++) {
                        struct fact *f = &h->facts[g]->list[i];
                        Fp8ctl__V1__NodeFact *k = &list[m.n_facts];

                        fp8ctl__v1__node_fact__init(k);
                        k->key = f->key;
                        k->value = f->value;
                        k->own = f->own;
                        ptrs[m.n_facts++] = k;
                }
        m.facts = ptrs;
        m.device_memory_bytes = h->facts[FACTS_GPU]->gpu_memory;
        m.n_device_memory_bytes = h->facts[FACTS_GPU]->n_gpu_memory;
        m.device_nvlinks = h->facts[FACTS_GPU]->gpu_links;
        m.device_nvlink_domain = h->facts[FACTS_GPU]->gpu_domain;
        m.n_device_nvlinks = m.n_device_nvlink_domain = h->facts[FACTS_GPU]->n_gpu_links;
        if (list && ptrs)
                h->config.report(h->config.arg, &m);
        free(list);
        free(ptrs);
}

static int32_t gpu_of(const struct health *h, const char *pci) {
        size_t n = strlen(pci);

        for (size_t i = 0; n >= 10 && i < h->world.n_gpus; i++)
                if (strncmp(h->world.gpus[i].text, pci, n) == 0)
                        return (int32_t)i;
        return -1;
}

void health_flush(struct health *h) {
        Fp8ctl__V1__HealthReport m = FP8CTL__V1__HEALTH_REPORT__INIT;
        Fp8ctl__V1__NodeFinding list[HEALTH_FINDINGS_MAX], *ptrs[HEALTH_FINDINGS_MAX];

        if (h->n_findings == 0)
                return;
        for (size_t i = 0; i < h->n_findings; i++) {
                const struct finding *f = &h->findings[i];

                fp8ctl__v1__node_finding__init(&list[i]);
                list[i].check = (char *)f->what.check;
                list[i].subject = (char *)f->what.subject;
                list[i].code = f->what.code;
                list[i].device = gpu_of(h, f->what.subject);
                list[i].pid = f->what.pid;
                list[i].text = (char *)f->what.text;
                list[i].unix_ms = f->ms;
                list[i].count = f->count;
                list[i].verdict = f->what.code ? (char *)"" : (char *)health_verdict_name(f->what.verdict);
                list[i].network = f->what.network;
                list[i].sequence = f->sequence;
                ptrs[i] = &list[i];
        }
        m.findings = ptrs;
        m.n_findings = h->n_findings;
        h->n_findings = 0;
        h->config.report(h->config.arg, &m);
}

void health_found(struct health *h, const struct kernel_finding *f, uint64_t sequence, uint64_t ms) {
        uint64_t now = h->world.mono_ns();
        struct finding *last = h->n_findings ? &h->findings[h->n_findings - 1] : NULL;

        if (last && last->what.code == f->code && last->what.pid == f->pid && strcmp(last->what.check, f->check) == 0 && strcmp(last->what.subject, f->subject) == 0 && ms < last->ms + MERGE_MS) {
                last->count++; /* its newest record stands for all of them */
                last->sequence = sequence;
                return;
        }
        if (now - h->window_ns >= WINDOW_NS) {
                h->window_ns = now;
                h->in_window = 0;
        }
        if (++h->in_window > WINDOW_FINDINGS)
                return;
        if (h->n_findings == HEALTH_FINDINGS_MAX)
                health_flush(h);
        h->findings[h->n_findings++] = (struct finding){ .what = *f, .sequence = sequence, .ms = ms, .count = 1 };
}

/* ------------------------------------------------------------------ from the lanes */
static void remember(struct health *h, const struct health_state *s, bool gone) {
        for (size_t i = 0; i < h->n_states; i++) {
                if (h->states[i].check != s->check || strcmp(h->states[i].said.subject, s->said.subject) != 0)
                        continue;
                if (gone)
                        h->states[i] = h->states[--h->n_states];
                else
                        h->states[i] = *s;
                return;
        }
        if (!gone && h->n_states < HEALTH_STATES_MAX)
                h->states[h->n_states++] = *s;
}

void health_take(void *update) {
        struct update *u = update;
        struct health *h = u->health;

        for (size_t i = 0; i < u->n; i++)
                remember(h, &u->states[i], i + u->n_gone >= u->n);
        if (u->n && h->welcomed)
                report(h, false, u->states, u->n, u->n_gone);
        if (u->xid && h->log_fd < 0 && h->welcomed) { /* the log tells of it otherwise */
                struct kernel_finding f = { .check = "xid", .code = u->xid };

                snprintf(f.subject, sizeof(f.subject), "%.10s", u->pci);
                snprintf(f.text, sizeof(f.text), "Xid %u on %s, told by NVML", u->xid, u->pci);
                health_found(h, &f, 0, h->world.wall_ns() / NSEC_PER_MSEC);
                health_flush(h);
        }
        if (u->facts) {
                free(h->facts[u->group]);
                h->facts[u->group] = u->facts;
                report_facts(h); /* without a welcome too: the agent takes the devices' memory from it for its hello */
        }
        free(u->states);
        free(u);
}

/* ------------------------------------------------------------------ the agent's canaries */
void health_say(struct health *h, const char *subject, int32_t device, enum health_verdict v, const char *evidence) {
        struct health_state s = { .check = &canary_check, .since_ms = h->world.wall_ns() / NSEC_PER_MSEC, .said = { .verdict = v, .device = device } };

        snprintf(s.said.subject, sizeof(s.said.subject), "%s", subject);
        snprintf(s.said.evidence, sizeof(s.said.evidence), "%s", evidence);
        for (size_t i = 0; i < h->n_states; i++)
                if (h->states[i].check == &canary_check && strcmp(h->states[i].said.subject, subject) == 0 && h->states[i].said.verdict == v)
                        s.since_ms = h->states[i].since_ms;
        remember(h, &s, false);
        if (h->welcomed)
                report(h, false, &s, 1, 0);
}

void health_tell(struct health *h, const char *subject, enum health_verdict v, const char *text) {
        struct kernel_finding f = { .check = "canary", .verdict = v };

        snprintf(f.subject, sizeof(f.subject), "%s", subject);
        snprintf(f.text, sizeof(f.text), "%s", text);
        health_found(h, &f, 0, h->world.wall_ns() / NSEC_PER_MSEC);
        health_flush(h);
}

/* A lane that hangs is evidence too: a driver that does not answer, a mount that is dead. */
static void look_at_lane(struct health *h, struct lane *l, struct health_state *s) {
        static const char *const subjects[N_HEALTH_LANES] = { "of the host", "of disks", "of GPUs", "of the site" };
        uint64_t since, now = h->world.mono_ns();
        const char *check;
        enum health_verdict was = HEALTH_OK;

        pthread_mutex_lock(&l->lock);
        since = l->busy_since;
        check = l->busy;
        pthread_mutex_unlock(&l->lock);
        for (size_t i = 0; i < h->n_states; i++)
                if (h->states[i].check == &lanes_check && strcmp(h->states[i].said.subject, subjects[l->which]) == 0)
                        was = h->states[i].said.verdict;
        *s = (struct health_state){ .check = &lanes_check, .since_ms = h->world.wall_ns() / NSEC_PER_MSEC, .said.device = -1 };
        snprintf(s->said.subject, sizeof(s->said.subject), "%s", subjects[l->which]);
        if (since && now - since >= 2 * HANGS_NS && l->which == LANE_GPU)
                s->said.verdict = HEALTH_DRAIN;
        else if (since && now - since >= (l->which == LANE_SITE ? SITE_HANGS_NS : HANGS_NS))
                s->said.verdict = HEALTH_WARN;
        snprintf(s->said.evidence, sizeof(s->said.evidence), s->said.verdict == HEALTH_OK ? "all run" : "%s has not come back for %.0f s", check ? check : "", (double)(now - since) / 1e9);
        if (s->said.verdict == was)
                return;
        remember(h, s, false);
        if (h->welcomed)
                report(h, false, s, 1, 0);
}

static void look_at(struct health *h, void (*run)(struct health_world *w, void **state, struct check_out *o)) {
        for (size_t i = 0; i < n_health_checks; i++)
                if (health_checks[i].run == run)
                        lane_poke(&h->lanes[health_checks[i].lane], i);
}

void health_look_at_ports(void *health) {
        look_at(health, check_ib_port);
}

void health_look_at_facts(struct health *h) {
        look_at(h, check_facts);
        look_at(h, check_gpu_facts);
}

/* Devices may come after the worker; those of a test's machine are in its files only. */
static void watch_ports(struct health *h) {
        if (!h->verbs && !h->config.root[0] && access("/sys/class/infiniband", F_OK) == 0)
                h->verbs = verbs_start(health_look_at_ports, h);
}

static void on_watch(void *arg) {
        struct health *h = arg;
        struct health_state s;

        for (int i = 0; i < N_HEALTH_LANES; i++)
                if (h->lanes[i].started)
                        look_at_lane(h, &h->lanes[i], &s);
        watch_ports(h);
        loop_timer_set(h->watch, h->world.mono_ns() + WATCH_NS);
}

/* ------------------------------------------------------------------ life */
int health_new(const struct health_config *c, struct health **ret, struct error *e) {
        struct health *h = calloc(1, sizeof(*h));
        int r;

        if (!h)
                return error_errno(e, ENOMEM, "health");
        h->config = *c;
        h->log_fd = h->guard_fd = -1;
        h->world = (struct health_world){ .root = c->root, .dir = c->dir, .checks_dir = c->checks_dir, .site_ms = c->site_ms, .mono_ns = clock_mono_ns, .wall_ns = clock_wall_ns, .statvfs = statvfs,
                                          .adjtimex = adjtimex, .nvml_library = c->nvml ? c->nvml : "libnvidia-ml.so.1" };
        h->world.n_gpus = health_gpus(c->root, h->world.gpus, WORLD_GPUS_MAX);
        pthread_mutex_init(&h->world.lock, NULL);
        r = loop_add_timer(c->loop, clock_mono_ns() + WATCH_NS, on_watch, h, &h->watch);
        for (int i = 0; r == 0 && i < N_HEALTH_LANES; i++)
                r = lane_start(h, (enum health_lane)i);
        if (r < 0) {
                health_stop(h);
                return error_errno(e, -r, "health");
        }
        watch_ports(h);
        *ret = h;
        return 0;
}

bool health_stop(struct health *h) {
        uint64_t deadline = clock_mono_ns() + STOP_NS;
        bool all = true;

        if (!h)
                return true;
        sources_stop(h);
        h->watch = loop_remove(h->watch);
        h->welcomed = false;
        if (!verbs_stop(h->verbs, deadline))
                return false; /* it may poke a lane still */
        for (int i = 0; i < N_HEALTH_LANES; i++)
                all = lane_stop(&h->lanes[i], deadline) && all;
        if (!all)
                return false;
        loop_turn(h->config.loop, 0); /* what they posted */
        pthread_mutex_destroy(&h->world.lock);
        for (int g = 0; g < N_FACT_GROUPS; g++) {
                free(h->world.facts[g]);
                free(h->facts[g]);
        }
        free(h);
        return true;
}

void health_welcome(struct health *h, bool test_hooks) {
        bool first = !h->welcomed;

        h->user_lines = test_hooks;
        h->welcomed = true;
        report(h, true, h->states, h->n_states, 0);
        report_facts(h);
        if (first)
                sources_start(h);
}

void health_set_ranks(struct health *h, const uint32_t *pids, size_t n) {
        pthread_mutex_lock(&h->world.lock);
        h->world.n_pids = n < WORLD_PIDS_MAX ? n : WORLD_PIDS_MAX;
        if (n)
                memcpy(h->world.pids, pids, h->world.n_pids * sizeof(pids[0]));
        pthread_mutex_unlock(&h->world.lock);
}
