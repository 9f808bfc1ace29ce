/* SPDX-License-Identifier: Apache-2.0 */
/* list, get, describe, cancel, save, scale. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "ctl/handlers.h"
#include "ctl/job_view.h"
#include "proto/job_spec.h"

#define DESCRIBE_EVENTS 200
#define SAVE_TIMEOUT_MS 600000

static struct {
        bool all, now;
        const char *reason;
        int64_t dp;
} given;

const struct opt list_opts[] = {
        { "all", 'a', OPT_FLAG, NULL, "jobs that have ended, too", &given.all, 0, 0, NULL },
        { 0 },
};

const struct opt cancel_opts[] = {
        { "now", 0, OPT_FLAG, NULL, "without a last checkpoint", &given.now, 0, 0, NULL },
        { "reason", 0, OPT_STRING, "TEXT", "kept in the job's record", &given.reason, 0, 0, NULL },
        { 0 },
};

const struct opt scale_opts[] = {
        { "dp", 0, OPT_INT, "N", "replicas", &given.dp, 1, JOB_MAX_RANKS, NULL },
        { 0 },
};

int job_list_run(struct ctl *c, int n, char **args) {
        Fp8ctl__V1__ListJobsRequest rq = FP8CTL__V1__LIST_JOBS_REQUEST__INIT;
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__ListJobsReply *reply = NULL;
        _cleanup_json_ json_t *o = NULL;
        json_t *jobs;
        struct error e;

        rq.all = given.all;
        if (client_new(c, &cl, &e) < 0 || client_call(cl, "ListJobs", &rq.base, &fp8ctl__v1__list_jobs_reply__descriptor, CALL_TIMEOUT_MS,
                                                      (ProtobufCMessage **)&reply, &e) < 0)
                return ctl_fail(&e);
        switch (c->format) {
        case FORMAT_NAME:
                for (size_t i = 0; i < reply->n_jobs; i++)
                        printf("%" PRIu64 "\n", reply->jobs[i]->id);
                break;
        case FORMAT_JSON:
        case FORMAT_YAML:
                jobs = json_array();
                for (size_t i = 0; i < reply->n_jobs; i++)
                        json_array_append_new(jobs, job_to_json(reply->jobs[i]));
                o = json_pack("{s:i, s:o}", "v", CTL_JSON_VERSION, "jobs", jobs);
                print_object(c, o);
                break;
        default:
                if (reply->n_jobs == 0)
                        fprintf(stderr, given.all ? "no jobs\n" : "no jobs wait or run; --all shows those that have ended\n");
                else
                        jobs_print_sheet(c, reply->jobs, reply->n_jobs);
        }
        return EXIT_DONE;
}

int job_get_run(struct ctl *c, int n, char **args) {
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__Job *j = NULL;
        struct error e;
        uint64_t id;

        if (parse_job_id(args[0], &id, &e) < 0)
                return ctl_usage(&e);
        if (client_new(c, &cl, &e) < 0 || client_get_job(cl, id, &j, &e) < 0)
                return ctl_fail(&e);
        job_print(c, j);
        return EXIT_DONE;
}

static void line(const char *key, const char *value) {
        printf("%s%-14s%s ", colour_begin(stdout, COLOUR_BOLD), key, colour_end(stdout, COLOUR_BOLD));
        print_text(stdout, value && *value ? value : "-");
        putchar('\n');
}

static void print_times(const Fp8ctl__V1__Job *j) {
        char buf[TEXT_BUF];

        line("submitted", text_time(buf, j->submitted_unix_ms));
        line("started", text_time(buf, j->started_unix_ms));
        line("ended", text_time(buf, j->ended_unix_ms));
        line("running for", text_duration(buf, j->wall_s));
}

static void print_training(const Fp8ctl__V1__Job *j) {
        char buf[TEXT_BUF], text[256], a[TEXT_BUF], b[TEXT_BUF];

        snprintf(text, sizeof(text), "%" PRIu64 " of %" PRIu64 ", %" PRIu64 " skipped", j->step, j->steps, j->skipped_steps);
        line("steps", text);
        snprintf(text, sizeof(text), "%s first, %s last", text_number(a, "%.4f", j->loss_first), text_number(b, "%.4f", j->loss_last));
        line("loss", text);
        line("validation", text_number(buf, "%.4f", j->val_loss));
        line("tokens/s", text_number(buf, "%.0f", j->tokens_per_s));
        snprintf(text, sizeof(text), "%" PRIu64 ", recipe %s", j->parameters, j->recipe && *j->recipe ? j->recipe : "-");
        line("parameters", text);
        snprintf(text, sizeof(text), "%u, costing %.2f s and %" PRIu64 " steps", j->restarts, isfinite(j->lost_s) ? j->lost_s : 0.0, j->lost_steps);
        line("recoveries", text);
}

static void print_describe(const Fp8ctl__V1__Job *j, const Fp8ctl__V1__ListCheckpointsReply *ckpts, const Fp8ctl__V1__ListEventsReply *events) {
        char text[256], buf[TEXT_BUF];
        size_t first = events->n_events > 20 ? events->n_events - 20 : 0;

        snprintf(text, sizeof(text), "%" PRIu64, j->id);
        line("job", text);
        line("name", j->name);
        line("user", j->user);
        line("state", job_state_name(j->state));
        line("reason", j->failure && *j->failure ? j->failure : j->reason);
        snprintf(text, sizeof(text), "%" PRIu64, j->epoch);
        line("epoch", text);
        print_training(j);
        print_times(j);
        line("checkpoint", j->checkpoint);
        line("logs", j->log_dir);
        if (j->plan) {
                printf("\n");
                plan_print(j->plan, stdout);
        }
        printf("\n%zu checkpoint%s\n", ckpts->n_checkpoints, ckpts->n_checkpoints == 1 ? "" : "s");
        for (size_t i = 0; i < ckpts->n_checkpoints; i++)
                printf("  step %" PRIu64 "  %s  %s\n", ckpts->checkpoints[i]->step, text_bytes(buf, ckpts->checkpoints[i]->bytes), ckpts->checkpoints[i]->path);
        printf("\nevents\n");
        for (size_t i = first; i < events->n_events; i++) {
                printf("  ");
                event_print(events->events[i], stdout);
        }
}

static json_t *describe_json(const Fp8ctl__V1__Job *j, const Fp8ctl__V1__ListCheckpointsReply *ckpts, const Fp8ctl__V1__ListEventsReply *events) {
        json_t *o = pb_to_json_v(&j->base), *file = j->job_file ? json_loads(j->job_file, 0, NULL) : NULL;
        _cleanup_json_ json_t *c = pb_to_json(&ckpts->base), *ev = pb_to_json(&events->base);

        json_object_set_new(o, "job_file", file ? file : json_null());
        json_object_set(o, "checkpoints", json_object_get(c, "checkpoints"));
        json_object_set(o, "events", json_object_get(ev, "events"));
        return o;
}

int job_describe_run(struct ctl *c, int n, char **args) {
        Fp8ctl__V1__ListCheckpointsRequest crq = FP8CTL__V1__LIST_CHECKPOINTS_REQUEST__INIT;
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__Job *j = NULL;
        _cleanup_message_ Fp8ctl__V1__ListCheckpointsReply *ckpts = NULL;
        _cleanup_message_ Fp8ctl__V1__ListEventsReply *events = NULL;
        _cleanup_json_ json_t *o = NULL;
        struct error e;
        uint64_t id;

        if (parse_job_id(args[0], &id, &e) < 0)
                return ctl_usage(&e);
        crq.job_id = id;
        if (client_new(c, &cl, &e) < 0 || client_get_job(cl, id, &j, &e) < 0 ||
            client_call(cl, "ListCheckpoints", &crq.base, &fp8ctl__v1__list_checkpoints_reply__descriptor, CALL_TIMEOUT_MS, (ProtobufCMessage **)&ckpts, &e) < 0 ||
            client_newest_events(cl, id, DESCRIBE_EVENTS, &events, &e) < 0)
                return ctl_fail(&e);
        if (c->format == FORMAT_TABLE) {
                print_describe(j, ckpts, events);
                return EXIT_DONE;
        }
        o = describe_json(j, ckpts, events);
        print_object(c, o);
        return EXIT_DONE;
}

int job_cancel_run(struct ctl *c, int n, char **args) {
        _cleanup_(client_freep) struct client *cl = NULL;
        struct error e;
        int worst = EXIT_DONE;

        for (int i = 0; i < n; i++) {
                uint64_t id;

                if (parse_job_id(args[i], &id, &e) < 0)
                        return ctl_usage(&e);
        }
        if (client_new(c, &cl, &e) < 0)
                return ctl_fail(&e);
        for (int i = 0; i < n; i++) {
                Fp8ctl__V1__CancelJobRequest rq = FP8CTL__V1__CANCEL_JOB_REQUEST__INIT;
                _cleanup_message_ Fp8ctl__V1__Job *j = NULL;

                parse_job_id(args[i], &rq.id, NULL);
                rq.now = given.now;
                rq.reason = given.reason ? (char *)given.reason : "";
                if (client_call(cl, "CancelJob", &rq.base, &fp8ctl__v1__job__descriptor, CALL_TIMEOUT_MS, (ProtobufCMessage **)&j, &e) < 0) {
                        worst = ctl_fail(&e);
                        continue;
                }
                job_print(c, j);
        }
        return worst;
}

int job_save_run(struct ctl *c, int n, char **args) {
        Fp8ctl__V1__SaveJobRequest rq = FP8CTL__V1__SAVE_JOB_REQUEST__INIT;
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__SaveJobReply *reply = NULL;
        _cleanup_message_ Fp8ctl__V1__Job *j = NULL;
        _cleanup_json_ json_t *o = NULL;
        struct error e;

        if (parse_job_id(args[0], &rq.id, &e) < 0)
                return ctl_usage(&e);
        if (client_new(c, &cl, &e) < 0 || client_call(cl, "SaveJob", &rq.base, &fp8ctl__v1__save_job_reply__descriptor, SAVE_TIMEOUT_MS,
                                                      (ProtobufCMessage **)&reply, &e) < 0 ||
            client_get_job(cl, rq.id, &j, &e) < 0)
                return ctl_fail(&e);
        if (c->format == FORMAT_TABLE) {
                printf("job %" PRIu64 ": step %" PRIu64 " is saved in ", rq.id, reply->step);
                print_text(stdout, j->checkpoint);
                putchar('\n');
                return EXIT_DONE;
        }
        o = json_pack("{s:i, s:I, s:I, s:s}", "v", CTL_JSON_VERSION, "job", (json_int_t)rq.id, "step", (json_int_t)reply->step, "checkpoint", j->checkpoint);
        print_object(c, o);
        return EXIT_DONE;
}

int job_scale_run(struct ctl *c, int n, char **args) {
        Fp8ctl__V1__ScaleJobRequest rq = FP8CTL__V1__SCALE_JOB_REQUEST__INIT;
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__Job *j = NULL;
        struct error e;

        if (parse_job_id(args[0], &rq.id, &e) < 0 || (!given.dp && error_set(&e, -EINVAL, "scale: --dp N is needed") < 0))
                return ctl_usage(&e);
        rq.dp = (uint32_t)given.dp;
        if (client_new(c, &cl, &e) < 0 || client_call(cl, "ScaleJob", &rq.base, &fp8ctl__v1__job__descriptor, CALL_TIMEOUT_MS, (ProtobufCMessage **)&j, &e) < 0)
                return ctl_fail(&e);
        job_print(c, j);
        return EXIT_DONE;
}
