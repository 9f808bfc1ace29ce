/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Canaries: a device that nobody uses computes products whose digest is known, every --canary and after jobs.  Arithmetic that went wrong since the last test is found before the next job meets it.  One runs at a time,
 * as fp8-nodetest in a process of its own, on processors that nothing else wants; when ranks come it is ended at once, and it does not begin on a device that was used within the last seconds: a job that recovers
 * comes back sooner.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "worker/agent/agent_private.h"
#include "worker/health/program.h"

enum { PARTS_MAX = 16, OUTPUT_MAX = 16384 };

#define IDLE_NS (5 * NSEC_PER_SEC)
#define LOOK_NS NSEC_PER_SEC
#define RUN_MS 60000u

struct canary {
        struct agent *agent;
        struct loop_source *timer;
        struct {
                uint64_t next_ns, idle_ns, right, wrong; /* idle_ns: since then; 0: it is used */
        } of[NODE_DEVICES_MAX];
        int device; /* the one that is tried; -1: none */
        atomic_bool cancel;
        bool closed; /* the agent ends: what still runs frees this */
        char output[OUTPUT_MAX], *force_wrong;
        struct error error;
        int rc, status;
};

static uint64_t interval_ns(const struct canary *k) {
        return k->agent->config->canary_ms * NSEC_PER_MSEC;
}

static bool used(const struct agent *a, uint32_t device) {
        for (const struct local_rank *r = a->ranks; r; r = r->next)
                if (r->device == device && !r->exited)
                        return true;
        return local_standby_on(a, device);
}

static void work(void *arg) {
        struct canary *k = arg;
        const struct agent_config *c = k->agent->config;
        char device[16];
        char *argv[] = { (char *)c->test_binary, (char *)"--device-kind", (char *)c->device_kind, (char *)"--device", device, (char *)"--products", (char *)"--time", (char *)(strcmp(c->device_kind, "cpu") == 0 ? "1ms" : "50ms"),
                         k->force_wrong ? (char *)"--expect-wrong" : NULL, NULL };
        struct program p = { .path = c->test_binary, .argv = argv, .timeout_ms = RUN_MS, .our_environment = true, .background = true, .cancel = &k->cancel };

        snprintf(device, sizeof(device), "%d", k->device);
        k->rc = program_run(&p, k->output, sizeof(k->output), &k->status, &k->error);
}

/* What it printed: all right, or the first part that is not. */
static void judge(struct canary *k, const char *subject) {
        Fp8ctl__V1__NodeTestPart parts[PARTS_MAX];
        json_t *objects[PARTS_MAX];
        size_t n = node_test_parts(k->output, parts, objects, PARTS_MAX);
        const Fp8ctl__V1__NodeTestPart *bad = NULL;
        char text[256];

        for (size_t i = 0; i < n && !bad; i++)
                if (health_verdict_parse(parts[i].verdict) >= HEALTH_DRAIN)
                        bad = &parts[i];
        if (bad) {
                k->of[k->device].wrong++;
                snprintf(text, sizeof(text), "%.40s: %.180s", bad->name, bad->text);
                health_say(k->agent->health, subject, k->device, HEALTH_WARN, text);
                health_tell(k->agent->health, subject, HEALTH_EVICT, text);
        } else if (n == 0 || !WIFEXITED(k->status) || WEXITSTATUS(k->status) != 0) {
                snprintf(text, sizeof(text), "it ended with %s %d", WIFSIGNALED(k->status) ? "signal" : "exit code", WIFSIGNALED(k->status) ? WTERMSIG(k->status) : WEXITSTATUS(k->status));
                health_say(k->agent->health, subject, k->device, HEALTH_WARN, text);
        } else {
                snprintf(text, sizeof(text), "%" PRIu64 " right, %" PRIu64 " wrong; the newest %.3g %s", ++k->of[k->device].right, k->of[k->device].wrong, parts[0].value, parts[0].unit);
                health_say(k->agent->health, subject, k->device, HEALTH_OK, text);
        }
        for (size_t i = 0; i < n; i++)
                json_decref(objects[i]);
}

static void done(void *arg) {
        struct canary *k = arg;
        char subject[32];

        if (k->closed) {
                free(k->force_wrong);
                free(k);
                return;
        }
        snprintf(subject, sizeof(subject), "device %d", k->device);
        /* A processor that others keep busy is no evidence. */
        if (k->rc == 0)
                judge(k, subject);
        else if (k->rc != -ECANCELED && strcmp(k->agent->config->device_kind, "cpu") != 0)
                health_say(k->agent->health, subject, k->device, HEALTH_WARN, k->error.text);
        if (k->rc != -ECANCELED)
                k->of[k->device].next_ns = clock_mono_ns() + interval_ns(k);
        free(k->force_wrong);
        k->force_wrong = NULL;
        k->device = -1;
}

static void begin(struct canary *k, int device) {
        k->device = device;
        k->rc = k->status = 0;
        k->error.text[0] = 0;
        k->force_wrong = node_test_wrong(k->agent);
        atomic_store(&k->cancel, false);
        if (tasks_run(k->agent->tasks, work, done, k, NULL) == 0)
                return;
        free(k->force_wrong);
        k->force_wrong = NULL;
        k->device = -1;
}

static void look(void *arg) {
        struct canary *k = arg;
        const struct agent *a = k->agent;
        uint64_t now = clock_mono_ns(), every = interval_ns(k), quiet = every < IDLE_NS ? every : IDLE_NS;
        int due = -1;

        for (int i = 0; i < a->config->devices; i++) {
                if (used(a, (uint32_t)i))
                        k->of[i].idle_ns = 0;
                else if (k->of[i].idle_ns == 0)
                        k->of[i].idle_ns = now;
                if (k->of[i].idle_ns && now >= k->of[i].idle_ns + quiet && now >= k->of[i].next_ns && (due < 0 || k->of[i].next_ns < k->of[due].next_ns))
                        due = i;
        }
        if (due >= 0 && k->device < 0 && a->synced && !a->testing && !a->leaving)
                begin(k, due);
        loop_timer_set(k->timer, now + (every < LOOK_NS ? every : LOOK_NS));
}

int canary_open(struct agent *a, struct error *e) {
        uint64_t now = clock_mono_ns();
        int r;

        if (a->config->canary_ms == 0)
                return 0;
        a->canary = calloc(1, sizeof(*a->canary));
        if (!a->canary)
                return error_errno(e, ENOMEM, "canary");
        a->canary->agent = a;
        a->canary->device = -1;
        for (int i = 0; i < NODE_DEVICES_MAX; i++)
                a->canary->of[i].next_ns = now + interval_ns(a->canary);
        r = loop_add_timer(a->loop, now + (interval_ns(a->canary) < LOOK_NS ? interval_ns(a->canary) : LOOK_NS), look, a->canary, &a->canary->timer);
        return r < 0 ? error_errno(e, -r, "canary") : 0;
}

void canary_stop(struct agent *a) {
        if (!a->canary)
                return;
        atomic_store(&a->canary->cancel, true);
        for (int i = 0; i < NODE_DEVICES_MAX; i++)
                a->canary->of[i].idle_ns = 0; /* the ranks are not there yet: none begins meanwhile */
}

void canary_close(struct agent *a) {
        struct canary *k = a->canary;

        if (!k)
                return;
        a->canary = NULL;
        k->timer = loop_remove(k->timer);
        if (k->device >= 0) {
                atomic_store(&k->cancel, true);
                k->closed = true;
                return;
        }
        free(k);
}
