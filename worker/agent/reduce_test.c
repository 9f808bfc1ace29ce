/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two nodes sum numbers as ranks do (sockets, or the library of their devices): each starts fp8-rank --reduce-test, a process of its own on its first device.  The one that is to listen says where as soon as the process
 * has said it; the other's process goes there, and what that says is the answer.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/cleanup.h"
#include "worker/agent/agent_private.h"
#include "worker/health/program.h"

enum { KEY = 32, OUTPUT_MAX = 16384 };

#define RUN_MS 22000u /* the controller waits 25 s */

struct reduce_test {
        struct agent *agent;
        uint64_t request, bytes;
        uint32_t ms;
        uint8_t key[KEY];
        char *peer, *wrong, *output;
        bool told; /* where it listens */
        struct error error;
};

struct answer {
        struct agent *agent;
        uint64_t request;
        char endpoint[256], by[64];
        bool wrong;
        double gbs, latency_us;
        struct error error;
};

static void say(void *arg) {
        struct answer *w = arg;
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__NodePairReply reply = FP8CTL__V1__NODE_PAIR_REPLY__INIT;

        reply.request = w->request;
        reply.endpoint = w->endpoint;
        reply.gbs = w->gbs;
        reply.latency_us = w->latency_us;
        reply.by = w->by;
        reply.wrong = w->wrong;
        reply.error = w->error.text;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_NODE_PAIR_REPLY;
        m.node_pair_reply = &reply;
        stream_send(w->agent, &m);
        free(w);
}

/* The last line of it that has this key. NULL: there is none (yet); a library may have said something else. */
static json_t *said(const char *output, const char *key) {
        json_t *found = NULL;

        for (const char *line = output; line; line = strchr(line, '\n')) {
                json_t *o;

                line += *line == '\n';
                o = line[0] == '{' && strchr(line, '\n') ? json_loads(line, JSON_DISABLE_EOF_CHECK, NULL) : NULL;
                if (o && json_object_get(o, key)) {
                        json_decref(found);
                        found = o;
                } else {
                        json_decref(o);
                }
        }
        return found;
}

static void on_output(void *arg, const char *output) {
        struct reduce_test *t = arg;
        json_t *o = t->peer[0] || t->told ? NULL : said(output, "endpoint");
        const char *where = json_string_value(json_object_get(o, "endpoint"));
        struct answer *w = where ? calloc(1, sizeof(*w)) : NULL;

        if (w) {
                w->agent = t->agent;
                w->request = t->request;
                snprintf(w->endpoint, sizeof(w->endpoint), "%s", where);
                t->told = true;
                loop_post(t->agent->loop, say, w);
        }
        json_decref(o);
}

static void work(void *arg) {
        struct reduce_test *t = arg;
        const struct agent_config *c = t->agent->config;
        char request[24], bytes[24], ms[16];
        char *argv[] = { (char *)c->rank_binary, (char *)"--reduce-test", (char *)"--job", request, (char *)"--device", (char *)"0", (char *)"--device-kind", (char *)c->device_kind, (char *)"--host", (char *)c->host, (char *)"--bytes",
                         bytes, (char *)"--ms", ms, (char *)"--peer", t->peer, t->wrong ? (char *)"--spoil" : NULL, NULL };
        struct program p = { .path = c->rank_binary, .argv = argv, .timeout_ms = RUN_MS, .our_environment = true, .input = t->key, .input_len = sizeof(t->key), .said = on_output, .arg = t };
        json_t *o;
        int status = 0;

        snprintf(request, sizeof(request), "%llu", (unsigned long long)t->request);
        snprintf(bytes, sizeof(bytes), "%llu", (unsigned long long)t->bytes);
        snprintf(ms, sizeof(ms), "%u", t->ms);
        if (program_run(&p, t->output, OUTPUT_MAX, &status, &t->error) < 0 || (WIFEXITED(status) && WEXITSTATUS(status) == 0))
                return;
        o = said(t->output, "error");
        if (o)
                error_set(&t->error, -EIO, "%.300s", json_string_value(json_object_get(o, "error")));
        else
                error_set(&t->error, -EIO, "fp8-rank ended with %s %d: %.300s", WIFSIGNALED(status) ? "signal" : "exit code", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), t->output);
        json_decref(o);
}

static void done(void *arg) {
        struct reduce_test *t = arg;
        json_t *o = t->error.text[0] || !t->peer ? NULL : said(t->output, "gbs");
        struct answer *w = !t->peer || t->peer[0] || !t->told ? calloc(1, sizeof(*w)) : NULL;
        const char *by = json_string_value(json_object_get(o, "by")), *text = json_string_value(json_object_get(o, "text"));

        if (!o && !t->error.text[0])
                error_set(&t->error, -ENODATA, "fp8-rank said no figures");
        if (w) {
                w->agent = t->agent;
                w->request = t->request;
                w->gbs = json_number_value(json_object_get(o, "gbs"));
                w->latency_us = json_number_value(json_object_get(o, "latency_us"));
                w->wrong = json_is_true(json_object_get(o, "wrong"));
                snprintf(w->by, sizeof(w->by), "%s", by ? by : "");
                w->error = t->error;
                if (w->wrong)
                        error_set(&w->error, -EILSEQ, "%s", text ? text : "wrong sums");
                say(w);
        }
        json_decref(o);
        explicit_bzero(t->key, sizeof(t->key));
        free(t->peer);
        free(t->wrong);
        free(t->output);
        free(t);
}

void reduce_test_start(struct agent *a, const Fp8ctl__V1__NodePairRequest *m) {
        struct reduce_test *t = calloc(1, sizeof(*t));
        int r = 0;

        if (!t)
                return;
        t->agent = a;
        t->request = m->request;
        t->bytes = m->bytes;
        t->ms = m->ms;
        t->peer = strdup(m->endpoint ? m->endpoint : "");
        t->wrong = node_test_wrong(a);
        t->output = calloc(1, OUTPUT_MAX);
        if (m->key.len != KEY)
                r = error_set(&t->error, -EINVAL, "reduce test: found a key of %zu bytes, expected %d", m->key.len, KEY);
        else if (!t->peer || !t->output || !a->config->rank_binary)
                r = error_set(&t->error, -ENOMEM, "reduce test: no memory, or no fp8-rank");
        else
                memcpy(t->key, m->key.data, KEY);
        if (r < 0 || tasks_run(a->tasks, work, done, t, &t->error) < 0)
                done(t);
}
