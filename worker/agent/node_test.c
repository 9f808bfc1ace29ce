/* SPDX-License-Identifier: Apache-2.0 */
/* A test of this node, asked for by the controller: fp8-nodetest in a process of its own, bounded in time, and what it printed as a NodeTestReply. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "worker/agent/agent_private.h"
#include "worker/health/program.h"

enum { PARTS_MAX = 256, ASKED_MAX = 8 };

#define TEST_MS 110000u /* the controller waits 120 s */
#define OUTPUT_MAX ((size_t)256 * 1024)

struct node_test {
        struct agent *agent;
        uint64_t requests[ASKED_MAX]; /* whoever asks while it runs gets its answer: a controller that was restarted asks again */
        size_t n_requests;
        double ms;
        char *output, *wrong;
        struct error error;
};

static void work(void *arg) {
        struct node_test *t = arg;
        const struct agent_config *c = t->agent->config;
        char devices[16];
        char *argv[] = { (char *)c->test_binary, (char *)"--device-kind", (char *)c->device_kind, (char *)"--devices", devices, (char *)"--dir", (char *)c->dir, t->wrong ? (char *)"--expect-wrong" : NULL, NULL };
        struct program p = { .path = c->test_binary, .argv = argv, .timeout_ms = TEST_MS, .our_environment = true };
        uint64_t began = clock_mono_ns();
        int status = 0;

        snprintf(devices, sizeof(devices), "%d", c->devices);
        if (program_run(&p, t->output, OUTPUT_MAX, &status, &t->error) == 0 && (!WIFEXITED(status) || WEXITSTATUS(status) != 0)) {
                char *last = strrchr(t->output, '{'); /* what stands behind the last part is why */

                last = last ? strchr(last, '\n') : t->output;
                error_set(&t->error, -EIO, "fp8-nodetest ended with %s %d: %.300s", WIFSIGNALED(status) ? "signal" : "exit code", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), last ? last : "");
        }
        t->ms = (double)(clock_mono_ns() - began) / 1e6;
}

/* The strings stay the object's. False: a line that is none of ours (a library's word). */
static bool read_part(const json_t *o, Fp8ctl__V1__NodeTestPart *p) {
        const char *name = json_string_value(json_object_get(o, "name")), *verdict = json_string_value(json_object_get(o, "verdict")), *unit = json_string_value(json_object_get(o, "unit")),
                   *text = json_string_value(json_object_get(o, "text"));
        const json_t *value = json_object_get(o, "value");

        if (!name || !verdict || !unit || !text)
                return false;
        fp8ctl__v1__node_test_part__init(p);
        p->name = (char *)name;
        p->device = (int32_t)json_integer_value(json_object_get(o, "device"));
        p->verdict = (char *)verdict;
        p->unit = (char *)unit;
        p->text = (char *)text;
        p->value = json_is_number(value) ? json_number_value(value) : NAN;
        return true;
}

size_t node_test_parts(char *output, Fp8ctl__V1__NodeTestPart *parts, json_t **objects, size_t max) {
        char *rest = output, *line;
        size_t n = 0;

        while (n < max && (line = strsep(&rest, "\n")) != NULL) {
                json_t *o = line[0] == '{' ? json_loads(line, 0, NULL) : NULL;

                if (o && read_part(o, &parts[n]))
                        objects[n++] = o;
                else
                        json_decref(o);
        }
        return n;
}

char *node_test_wrong(const struct agent *a) {
        char *path = a->config->health_root[0] ? file_path("%s/expect-wrong", a->config->health_root) : NULL;

        if (path && access(path, F_OK) == 0)
                return path;
        free(path);
        return NULL;
}

static void answer(struct node_test *t) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__NodeTestReply reply = FP8CTL__V1__NODE_TEST_REPLY__INIT;
        Fp8ctl__V1__NodeTest test = FP8CTL__V1__NODE_TEST__INIT;
        _cleanup_free_ Fp8ctl__V1__NodeTestPart *parts = calloc(PARTS_MAX, sizeof(*parts));
        _cleanup_free_ Fp8ctl__V1__NodeTestPart **ptrs = calloc(PARTS_MAX, sizeof(*ptrs));
        _cleanup_free_ json_t **objects = calloc(PARTS_MAX, sizeof(json_t *));

        if (parts && ptrs && objects && t->output)
                test.n_parts = node_test_parts(t->output, parts, objects, PARTS_MAX);
        for (size_t i = 0; i < test.n_parts; i++)
                ptrs[i] = &parts[i];
        if (test.n_parts == 0 && !t->error.text[0])
                error_set(&t->error, -ENODATA, "fp8-nodetest said nothing");
        test.parts = ptrs;
        test.ms = t->ms;
        test.error = t->error.text;
        reply.test = &test;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_NODE_TEST_REPLY;
        m.node_test_reply = &reply;
        for (size_t i = 0; i < t->n_requests; i++) {
                reply.request = t->requests[i];
                stream_send(t->agent, &m);
        }
        for (size_t i = 0; objects && i < test.n_parts; i++)
                json_decref(objects[i]);
}

static void done(void *arg) {
        struct node_test *t = arg;

        answer(t);
        t->agent->testing = false;
        if (t->agent->test == t)
                t->agent->test = NULL;
        free(t->output);
        free(t->wrong);
        free(t);
}

void node_test_start(struct agent *a, const Fp8ctl__V1__NodeTestRequest *m) {
        struct node_test *t;
        bool busy = a->testing;

        if (a->test && a->test->n_requests < ASKED_MAX) {
                a->test->requests[a->test->n_requests++] = m->request;
                return;
        }
        t = calloc(1, sizeof(*t));
        if (!t)
                return;
        t->agent = a;
        t->requests[t->n_requests++] = m->request;
        t->output = calloc(1, OUTPUT_MAX);
        t->wrong = node_test_wrong(a);
        a->testing = true;
        if (!busy)
                a->test = t;
        canary_stop(a);
        if (busy || !t->output || tasks_run(a->tasks, work, done, t, &t->error) < 0) {
                if (busy)
                        error_set(&t->error, -EBUSY, "a test of this node is under way");
                done(t);
                a->testing = busy;
        }
}
