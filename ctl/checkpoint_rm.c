/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ckpt rm: a checkpoint that a job lists is removed by the controller, which knows whether a job still needs it and forgets it first; any other checkpoint's folder is removed here.
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "ctl/checkpoint.h"
#include "ctl/client.h"
#include "ctl/handlers.h"
#include "ctl/print.h"

#define GONE_WAIT_MS 10000 /* for the controller's helper to remove the folder */

static struct {
        bool force;
} given;

const struct opt checkpoint_rm_opts[] = {
        { "force", 'f', OPT_FLAG, NULL, "also one that a job still needs, and where no controller can be asked", &given.force, 0, 0, NULL },
        { 0 },
};

struct removed {
        char *path;
        uint64_t job, step;
};

/* -ENOENT: no job lists it. */
static int remove_listed(struct client *cl, const char *path, struct removed *ret, struct error *e) {
        Fp8ctl__V1__RemoveCheckpointRequest rq = FP8CTL__V1__REMOVE_CHECKPOINT_REQUEST__INIT;
        _cleanup_message_ Fp8ctl__V1__RemoveCheckpointReply *reply = NULL;
        uint64_t end;
        struct stat st;
        int r;

        rq.path = (char *)path;
        rq.force = given.force;
        /* A controller that is being restarted is waited for, but not by who does not care. */
        r = (given.force ? client_call_once : client_call)(cl, "RemoveCheckpoint", &rq.base, &fp8ctl__v1__remove_checkpoint_reply__descriptor, CALL_TIMEOUT_MS,
                                                           (ProtobufCMessage **)&reply, e);
        if (r < 0)
                return r;
        if (!reply || !reply->checkpoint)
                return error_set(e, -EIO, "RemoveCheckpoint: the controller's answer names no checkpoint");
        ret->job = reply->checkpoint->job_id;
        ret->step = reply->checkpoint->step;
        end = clock_mono_ns() + GONE_WAIT_MS * NSEC_PER_MSEC;
        while (lstat(path, &st) == 0 && clock_mono_ns() < end) {
                const struct timespec pause = { .tv_nsec = 20 * 1000 * 1000 };

                nanosleep(&pause, NULL);
        }
        return 0;
}

/* Its name goes first, so that nobody finds half of it. */
static int remove_here(const char *path, struct removed *ret, struct error *e) {
        struct checkpoint_manifest *m = NULL;
        _cleanup_free_ char *copy = strdup(path), *away = NULL;
        char *slash;
        int r = checkpoint_manifest_read(path, &m, e);

        if (r < 0)
                return error_prefix(e, "%s is not removed: found no checkpoint that a job lists, and no whole manifest", path);
        ret->job = checkpoint_manifest_job(m);
        ret->step = checkpoint_manifest_step(m);
        checkpoint_manifest_free(m);
        slash = copy ? strrchr(copy, '/') : NULL;
        if (!slash || !slash[1])
                return error_set(e, -EINVAL, "%s: expected a checkpoint's folder", path);
        *slash = 0;
        away = file_path("%s/.%s.removed-%d", copy, slash + 1, (int)getpid());
        if (!away)
                return error_set(e, -ENOMEM, "no memory");
        if (rename(path, away) < 0)
                return error_errno(e, errno, "cannot rename %s", path);
        return file_remove_tree(away, e);
}

/* The path of a folder as it was written and as it really is: a job may list either. */
static int remove_folder(const struct ctl *c, struct client *cl, const char *arg, struct removed *ret, struct error *e) {
        _cleanup_free_ char *cwd = arg[0] == '/' ? strdup("") : getcwd(NULL, 0), *written = NULL, *real = realpath(arg, NULL);
        int r;

        if (!real)
                return error_errno(e, errno, "%s", arg);
        written = !cwd ? NULL : arg[0] == '/' ? strdup(arg) : file_path("%s/%s", cwd, arg);
        if (!written)
                return error_set(e, -ENOMEM, "no memory");
        for (size_t len = strlen(written); len > 1 && written[len - 1] == '/'; len--)
                written[len - 1] = 0;
        r = remove_listed(cl, real, ret, e);
        if (r == -ENOENT && strcmp(real, written) != 0)
                r = remove_listed(cl, written, ret, e);
        if (r == -ENOENT || (r == -ECONNREFUSED && given.force))
                r = remove_here(real, ret, e);
        else if (r == -ECONNREFUSED)
                return error_set(e, r, "%s is not removed: no controller could say whether a job needs it; --force removes it all the same", arg);
        if (r == 0)
                ret->path = STEAL_PTR(real);
        return r;
}

static int remove_one(const struct ctl *c, struct client *cl, const char *arg, struct removed *ret, struct error *e) {
        uint64_t job, step;
        struct stat st;
        int r;

        if (stat(arg, &st) == 0)
                return remove_folder(c, cl, arg, ret, e);
        if (!checkpoint_parse_ref(arg, &job, &step) || step == 0)
                return error_set(e, -ENOENT, "%s: found no such folder, expected one, or JOB:STEP", arg);
        r = checkpoint_find(c, arg, &ret->path, e);
        return r < 0 ? r : remove_listed(cl, ret->path, ret, e);
}

int checkpoint_rm_run(struct ctl *c, int n, char **args) {
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_json_ json_t *o = NULL, *list = json_array();
        int code = EXIT_DONE;
        struct error e;

        if (client_new(c, &cl, &e) < 0)
                return ctl_fail(&e);
        for (int i = 0; i < n; i++) {
                struct removed x = { 0 };

                if (remove_one(c, cl, args[i], &x, &e) < 0) {
                        int failed = ctl_fail(&e);

                        code = code == EXIT_DONE ? failed : code;
                } else {
                        json_array_append_new(list, json_pack("{s:s, s:I, s:I}", "path", x.path, "job_id", (json_int_t)x.job, "step", (json_int_t)x.step));
                        if (c->format == FORMAT_TABLE)
                                printf("%s removed\n", x.path);
                }
                free(x.path);
        }
        o = json_pack("{s:i, s:O}", "v", CTL_JSON_VERSION, "removed", list);
        if (c->format != FORMAT_TABLE)
                print_object(c, o);
        return code;
}
