/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A change of this node, asked for by the controller and made by the site's program (--rollout-hook), with our rights.  One at a time: what is asked again while it runs, after a stream has ended, is answered by its
 * end.  The program may take this worker with it; then the next one is asked anew, and finds it done or does it again.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "worker/agent/agent_private.h"
#include "worker/health/program.h"

enum { OUTPUT_MAX = 16384, WORD_MAX = 256 };

struct rollout_hook {
        struct agent *agent;
        uint64_t rollout;
        uint32_t timeout_ms;
        char name[WORD_MAX], fact[WORD_MAX], value[WORD_MAX], output[OUTPUT_MAX];
        struct error error;
        bool closed; /* the agent ends */
};

/* The last line that says anything. */
static const char *last_line(char *text) {
        size_t n = strlen(text);
        char *at;

        while (n > 0 && (unsigned char)text[n - 1] <= ' ')
                text[--n] = 0;
        at = strrchr(text, '\n');
        return at ? at + 1 : text;
}

static void work(void *arg) {
        struct rollout_hook *k = arg;
        const struct agent_config *c = k->agent->config;
        char *argv[] = { (char *)c->rollout_hook, k->name, (char *)c->name, k->fact, k->value, NULL };
        struct program p = { .path = c->rollout_hook, .argv = argv, .timeout_ms = k->timeout_ms, .our_environment = true };
        int status = 0;

        if (program_safe(c->rollout_hook, &k->error) < 0) {
                error_prefix(&k->error, "%s", c->rollout_hook);
                return;
        }
        if (program_run(&p, k->output, sizeof(k->output), &status, &k->error) < 0)
                return;
        if (WIFSIGNALED(status))
                error_set(&k->error, -EIO, "%s died of signal %d: %.200s", c->rollout_hook, WTERMSIG(status), last_line(k->output));
        else if (WEXITSTATUS(status) != 0)
                error_set(&k->error, -EIO, "%s ended with exit code %d: %.200s", c->rollout_hook, WEXITSTATUS(status), last_line(k->output));
}

static void answer(struct agent *a, uint64_t rollout, const char *error) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__RolloutChanged changed = FP8CTL__V1__ROLLOUT_CHANGED__INIT;

        changed.rollout = rollout;
        changed.error = (char *)error;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_ROLLOUT_CHANGED;
        m.rollout_changed = &changed;
        stream_send(a, &m);
}

static void done(void *arg) {
        struct rollout_hook *k = arg;
        struct agent *a = k->agent;

        if (!k->closed) {
                a->rollout = NULL;
                if (k->error.text[0])
                        log_warning("rollout %s: %s", k->name, k->error.text);
                else
                        log_info("rollout %s: %s was run for %s %s", k->name, a->config->rollout_hook, k->fact, k->value);
                answer(a, k->rollout, k->error.text);
                health_look_at_facts(a->health);
        }
        free(k);
}

void rollout_change(struct agent *a, const Fp8ctl__V1__RolloutChange *m) {
        struct rollout_hook *k;
        struct error e = { 0 };

        if (a->rollout && a->rollout->rollout == m->rollout)
                return;
        if (a->rollout) {
                answer(a, m->rollout, "the change of a rollout before is still being made here");
                return;
        }
        if (!a->config->rollout_hook || strlen(m->name) >= WORD_MAX || strlen(m->fact) >= WORD_MAX || strlen(m->value) >= WORD_MAX) {
                answer(a, m->rollout, a->config->rollout_hook ? "its name, fact or value is too long" : "there is no program for it here");
                return;
        }
        k = calloc(1, sizeof(*k));
        if (!k) {
                answer(a, m->rollout, "no memory");
                return;
        }
        k->agent = a;
        k->rollout = m->rollout;
        k->timeout_ms = m->timeout_ms < UINT32_MAX ? (uint32_t)m->timeout_ms : UINT32_MAX;
        snprintf(k->name, sizeof(k->name), "%s", m->name);
        snprintf(k->fact, sizeof(k->fact), "%s", m->fact);
        snprintf(k->value, sizeof(k->value), "%s", m->value);
        a->rollout = k;
        if (tasks_run(a->tasks, work, done, k, &e) == 0)
                return;
        a->rollout = NULL;
        answer(a, k->rollout, e.text);
        free(k);
}

void rollout_close(struct agent *a) {
        if (a->rollout)
                a->rollout->closed = true; /* what still runs frees it */
        a->rollout = NULL;
}
