/* SPDX-License-Identifier: Apache-2.0 */
/* ckpt ls: what a job has committed, or what lies in a folder. */
#include "ctl/checkpoint.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "ctl/client.h"
#include "ctl/handlers.h"
#include "ctl/print.h"

static void print_sheet(const struct ctl *c, const Fp8ctl__V1__ListCheckpointsReply *reply) {
        static const struct sheet_column columns[] = {
                { "STEP", true, false, false }, { "EPOCH", true, false, false }, { "ATTEMPT", true, true, false },
                { "SIZE", true, false, false }, { "COMMITTED", false, false, false }, { "PATH", false, false, false },
        };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));
        char buf[TEXT_BUF];

        for (size_t i = 0; i < reply->n_checkpoints; i++) {
                const Fp8ctl__V1__Checkpoint *k = reply->checkpoints[i];

                sheet_add(s, "%" PRIu64, k->step);
                sheet_add(s, "%" PRIu64, k->epoch);
                sheet_add(s, "%u", k->attempt);
                sheet_add(s, "%s", text_bytes(buf, k->bytes));
                sheet_add(s, "%s", text_time(buf, k->committed_unix_ms));
                sheet_add(s, "%s", k->path);
        }
        sheet_print(s, c->format == FORMAT_WIDE, stdout);
}

/* ------------------------------------------------------------------ in a folder */

static void list_free(Fp8ctl__V1__ListCheckpointsReply *l) {
        for (size_t i = 0; i < l->n_checkpoints; i++) {
                free(l->checkpoints[i]->path);
                free(l->checkpoints[i]);
        }
        free(l->checkpoints);
}

/* A step folder's manifest as the controller would list it; one without a manifest, or a bad one, is not committed. */
static int add_folder(Fp8ctl__V1__ListCheckpointsReply *l, char *folder, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/%s", folder, CHECKPOINT_MANIFEST);
        struct checkpoint_manifest *m = NULL;
        Fp8ctl__V1__Checkpoint *k;
        struct stat st;
        int r = path ? checkpoint_manifest_read(folder, &m, e) : -ENOMEM;

        if (r < 0)
                return r;
        k = malloc(sizeof(*k));
        if (!k) {
                checkpoint_manifest_free(m);
                return error_set(e, -ENOMEM, "no memory");
        }
        fp8ctl__v1__checkpoint__init(k);
        k->job_id = checkpoint_manifest_job(m);
        k->step = checkpoint_manifest_step(m);
        k->epoch = checkpoint_manifest_epoch(m);
        k->attempt = checkpoint_manifest_attempt(m);
        k->path = folder;
        for (size_t i = 0; i < checkpoint_manifest_shards(m); i++)
                k->bytes += checkpoint_manifest_shard(m, i).bytes;
        if (stat(path, &st) == 0)
                k->committed_unix_ms = (uint64_t)st.st_mtim.tv_sec * 1000 + (uint64_t)st.st_mtim.tv_nsec / 1000000;
        checkpoint_manifest_free(m);
        l->checkpoints[l->n_checkpoints++] = k;
        return 0;
}

static int list_folder(const char *dir, Fp8ctl__V1__ListCheckpointsReply *ret, struct error *e) {
        _cleanup_free_ struct checkpoint_folder *folders = NULL;
        struct error why;
        size_t n = 0;
        int r = checkpoint_folders(dir, &folders, &n, e);

        if (r < 0)
                return r;
        ret->checkpoints = calloc(n + 1, sizeof(*ret->checkpoints));
        if (!ret->checkpoints)
                return error_set(e, -ENOMEM, "no memory");
        for (size_t i = n; i > 0; i--) { /* oldest first, as the controller lists them */
                char *folder = file_path("%s/%s", dir, folders[i - 1].name);

                if (!folder)
                        return error_set(e, -ENOMEM, "no memory");
                if (add_folder(ret, folder, &why) < 0) {
                        fprintf(stderr, "fp8ctl: not listed: %s\n", why.text);
                        free(folder);
                }
        }
        return 0;
}

/* ------------------------------------------------------------------ print */

static void print_list(const struct ctl *c, const Fp8ctl__V1__ListCheckpointsReply *l, const char *what, json_t *job) {
        _cleanup_json_ json_t *o = NULL;

        if (c->format == FORMAT_NAME) {
                for (size_t i = 0; i < l->n_checkpoints; i++) {
                        print_text(stdout, l->checkpoints[i]->path);
                        putchar('\n');
                }
        } else if (c->format == FORMAT_JSON || c->format == FORMAT_YAML) {
                o = pb_to_json_v(&l->base);
                json_object_set(o, "job", job);
                print_object(c, o);
        } else if (l->n_checkpoints == 0)
                fprintf(stderr, "%s has no committed checkpoint\n", what);
        else
                print_sheet(c, l);
}

static int run_folder(struct ctl *c, const char *dir) {
        Fp8ctl__V1__ListCheckpointsReply l = FP8CTL__V1__LIST_CHECKPOINTS_REPLY__INIT;
        _cleanup_json_ json_t *job = json_null();
        struct error e;
        int r = list_folder(dir, &l, &e);

        if (r == 0)
                print_list(c, &l, dir, job);
        list_free(&l);
        return r < 0 ? ctl_fail(&e) : EXIT_DONE;
}

int checkpoint_list_run(struct ctl *c, int n, char **args) {
        Fp8ctl__V1__ListCheckpointsRequest rq = FP8CTL__V1__LIST_CHECKPOINTS_REQUEST__INIT;
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__ListCheckpointsReply *reply = NULL;
        _cleanup_json_ json_t *job = NULL;
        struct stat st;
        char what[40];
        struct error e;

        if (parse_job_id(args[0], &rq.job_id, &e) < 0) {
                if (stat(args[0], &st) == 0 && S_ISDIR(st.st_mode))
                        return run_folder(c, args[0]);
                return ctl_usage(&e);
        }
        if (client_new(c, &cl, &e) < 0 || client_call(cl, "ListCheckpoints", &rq.base, &fp8ctl__v1__list_checkpoints_reply__descriptor, CALL_TIMEOUT_MS,
                                                      (ProtobufCMessage **)&reply, &e) < 0)
                return ctl_fail(&e);
        snprintf(what, sizeof(what), "job %" PRIu64, rq.job_id);
        job = json_integer((json_int_t)rq.job_id);
        print_list(c, reply, what, job);
        return EXIT_DONE;
}
