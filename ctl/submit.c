/* SPDX-License-Identifier: Apache-2.0 */
/*
 * submit: the job file is parsed here, so that a mistake costs no connection, and relative paths and a config.json beside it mean what they mean
 * on this side.  What is sent is the canonical JSON, under an id made here: sent twice, it is one job.
 */
#include <errno.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "ctl/checkpoint.h"
#include "ctl/handlers.h"
#include "ctl/job_set.h"
#include "ctl/job_view.h"
#include "ctl/wait.h"
#include "proto/job_spec.h"

#define SUBMIT_TIMEOUT_MS 120000 /* preflight reads the data once for its digest */

static struct {
        bool wait, dry_run, plan, no_preflight;
        const char *from, *name;
        struct opt_list set;
        struct wait_options follow;
} given;

const struct opt submit_opts[] = {
        { "wait", 'w', OPT_FLAG, NULL, "follow the job to its end", &given.wait, 0, 0, NULL },
        { "dry-run", 0, OPT_FLAG, NULL, "check, plan and try the nodes; store nothing", &given.dry_run, 0, 0, NULL },
        { "plan", 0, OPT_FLAG, NULL, "show where each rank would run; store nothing, try nothing", &given.plan, 0, 0, NULL },
        { "from", 0, OPT_STRING, "CKPT", "start from this checkpoint: its folder, JOB or JOB:STEP", &given.from, 0, 0, NULL },
        { "name", 0, OPT_STRING, "NAME", "instead of the job file's name", &given.name, 0, 0, NULL },
        { "set", 's', OPT_LIST, "KEY=VALUE", "change a key of the job file (train.steps=50); may be given again", &given.set, 0, 0, NULL },
        { "skip-preflight", 0, OPT_FLAG, NULL, "do not try paths and space on the nodes first", &given.no_preflight, 0, 0, NULL },
        { "timeout", 0, OPT_DURATION_MS, "TIME", "with --wait: give up after this time", &given.follow.timeout_ms, 0, 0, NULL },
        { "progress", 0, OPT_FLAG, NULL, "with --wait: progress lines also where standard error is no terminal", &given.follow.progress, 0, 0, NULL },
        { "events", 0, OPT_FLAG, NULL, "with --wait: print events as they come", &given.follow.events, 0, 0, NULL },
        { 0 },
};

static int read_stdin(char **ret, size_t *ret_len, struct error *e) {
        static char buffer[JOB_FILE_MAX + 2];
        size_t len = fread(buffer, 1, JOB_FILE_MAX + 1, stdin);
        char *text;

        if (len > JOB_FILE_MAX)
                return error_set(e, -EFBIG, "standard input: found more than %u bytes, allowed for a job file: %u", JOB_FILE_MAX, JOB_FILE_MAX);
        text = malloc(len + 1);
        if (!text)
                return error_set(e, -ENOMEM, "no memory");
        memcpy(text, buffer, len);
        text[len] = 0;
        *ret = text;
        *ret_len = len;
        return 0;
}

static int read_job_file(const char *path, char **ret_text, char **ret_base_dir, struct error *e) {
        _cleanup_free_ char *real = NULL, *text = NULL;
        size_t len = 0;
        int r;

        if (strcmp(path, "-") == 0) {
                r = read_stdin(&text, &len, e);
                if (r < 0)
                        return r;
                *ret_base_dir = getcwd(NULL, 0);
        } else {
                r = file_read(path, JOB_FILE_MAX, &text, &len, e);
                if (r < 0)
                        return r;
                real = realpath(path, NULL);
                *ret_base_dir = real ? strdup(dirname(real)) : NULL;
        }
        if (!*ret_base_dir)
                return error_errno(e, errno, "%s: its folder", path);
        if (!text || strlen(text) != len)
                return error_set(e, -EINVAL, "%s: found a NUL byte, expected YAML", path);
        *ret_text = STEAL_PTR(text);
        return 0;
}

static inline void job_spec_freep(struct job_spec **s) {
        job_spec_free(*s);
}

static int apply(char **text, const char *path, const char *assignment, struct error *e) {
        char *changed;
        int r = job_set(*text, path, assignment, &changed, e);

        if (r < 0)
                return r;
        free(*text);
        *text = changed;
        return 0;
}

static int make_json(const char *path, char **ret_json, struct error *e) {
        _cleanup_free_ char *text = NULL, *base_dir = NULL, *name = NULL;
        _cleanup_(job_spec_freep) struct job_spec *spec = NULL;
        int r;

        r = read_job_file(path, &text, &base_dir, e);
        for (size_t i = 0; r >= 0 && i < given.set.n; i++)
                r = apply(&text, path, given.set.values[i], e);
        if (r >= 0 && given.name) {
                name = file_path("name=%s", given.name);
                r = name ? apply(&text, path, name, e) : error_set(e, -ENOMEM, "no memory");
        }
        if (r >= 0 && text)
                r = job_spec_parse(text, strlen(text), path, base_dir, &spec, e);
        return r < 0 ? r : job_spec_to_json(spec, ret_json, e);
}

static int make_request_id(char ret[33], struct error *e) {
        unsigned char random[16];

        if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
                return error_errno(e, errno, "getrandom");
        for (size_t i = 0; i < sizeof(random); i++)
                snprintf(ret + 2 * i, 3, "%02x", random[i]);
        return 0;
}

static void print_warnings(const Fp8ctl__V1__SubmitReply *reply) {
        for (size_t i = 0; i < reply->n_warnings; i++) {
                fprintf(stderr, "fp8ctl: %swarning%s: ", colour_begin(stderr, COLOUR_YELLOW), colour_end(stderr, COLOUR_YELLOW));
                print_text(stderr, reply->warnings[i]);
                fputc('\n', stderr);
        }
}

static void print_dry(const struct ctl *c, const Fp8ctl__V1__SubmitReply *reply) {
        _cleanup_json_ json_t *o = NULL;

        if (c->format == FORMAT_JSON || c->format == FORMAT_YAML) {
                o = pb_to_json_v(&reply->base);
                if (reply->job)
                        json_object_set_new(o, "job", job_to_json(reply->job));
                print_object(c, o);
                return;
        }
        if (reply->job && c->format != FORMAT_NAME)
                printf("%s: would be accepted%s\n", reply->job->name, given.plan ? "" : "; nodes were tried");
        if (reply->plan && c->format != FORMAT_NAME)
                plan_print(reply->plan, stdout);
}

static void print_submitted(const struct ctl *c, const Fp8ctl__V1__SubmitReply *reply) {
        _cleanup_json_ json_t *o = NULL;
        json_t *warnings;

        if (c->format == FORMAT_TABLE || c->format == FORMAT_WIDE) {
                printf("job %" PRIu64 " ", reply->job->id);
                print_text(stdout, reply->job->name);
                printf(" is %s\n", job_state_name(reply->job->state));
        } else if (c->format == FORMAT_NAME)
                printf("%" PRIu64 "\n", reply->job->id);
        else {
                o = job_to_json(reply->job);
                warnings = json_array();
                for (size_t i = 0; i < reply->n_warnings; i++)
                        json_array_append_new(warnings, json_string(reply->warnings[i]));
                json_object_set_new(o, "warnings", warnings);
                print_object(c, o);
        }
}

/* What --from means: any CKPT. Paths are the nodes' too, so they are made absolute. */
static int find_from(const struct ctl *c, char **ret, struct error *e) {
        _cleanup_free_ char *folder = NULL, *config = file_path("%s/config.json", given.from), *manifest = file_path("%s/manifest.json", given.from);

        if (config && manifest && access(config, F_OK) == 0 && access(manifest, F_OK) < 0)
                return error_set(e, -EINVAL, "--from %s: found a Hugging Face folder, expected a checkpoint; `fp8ctl ckpt import %s CKPT` makes one", given.from, given.from);
        if (checkpoint_find(c, given.from, &folder, e) < 0) {
                error_prefix(e, "--from");
                return e->code = -EINVAL;
        }
        *ret = realpath(folder, NULL);
        return *ret ? 0 : error_set(e, -EINVAL, "--from %s: %s", given.from, strerror(errno));
}

static int send_job(const struct ctl *c, struct client *cl, const char *path, char *json, Fp8ctl__V1__SubmitReply **ret, struct error *e) {
        Fp8ctl__V1__SubmitRequest rq = FP8CTL__V1__SUBMIT_REQUEST__INIT;
        _cleanup_free_ char *from = NULL;
        struct passwd *pw = getpwuid(geteuid());
        char id[33];
        int r = make_request_id(id, e);

        if (r < 0)
                return r;
        if (given.from)
                r = find_from(c, &from, e);
        if (r >= 0 && from)
                r = checkpoint_fits(from, json, e);
        if (r < 0)
                return r;
        rq.request_id = id;
        rq.job_file = json;
        rq.file_name = (char *)path;
        rq.dry_run = given.dry_run || given.plan;
        rq.skip_preflight = given.no_preflight || (given.plan && !given.dry_run);
        rq.from_checkpoint = from ? from : "";
        rq.user = pw ? pw->pw_name : "";
        r = client_call(cl, "Submit", &rq.base, &fp8ctl__v1__submit_reply__descriptor, SUBMIT_TIMEOUT_MS, (ProtobufCMessage **)ret, e);
        if (r >= 0 && (!*ret || !(*ret)->job))
                return error_set(e, -EIO, "Submit: the controller's answer names no job");
        return r;
}

int submit_run(struct ctl *c, int n, char **args) {
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__SubmitReply *reply = NULL;
        _cleanup_message_ Fp8ctl__V1__Job *end = NULL;
        _cleanup_free_ char *json = NULL;
        struct error e;
        uint64_t id;

        if (given.wait && (given.dry_run || given.plan)) {
                error_set(&e, -EINVAL, "submit: found --wait with %s, expected one of them", given.plan ? "--plan" : "--dry-run");
                return ctl_usage(&e);
        }
        if (make_json(args[0], &json, &e) < 0)
                return ctl_usage(&e);
        if (client_new(c, &cl, &e) < 0 || send_job(c, cl, args[0], json, &reply, &e) < 0)
                return ctl_fail(&e);
        if (!reply || !reply->job)
                return EXIT_FAILED;
        print_warnings(reply);
        if (given.dry_run || given.plan) {
                print_dry(c, reply);
                return EXIT_DONE;
        }
        if (!given.wait) {
                print_submitted(c, reply);
                return EXIT_DONE;
        }
        id = reply->job->id;
        fprintf(stderr, "job %" PRIu64 " is submitted\n", id);
        if (job_wait(cl, id, &given.follow, &end, &e) < 0)
                return ctl_fail(&e);
        job_print(c, end);
        return job_exit(end);
}
