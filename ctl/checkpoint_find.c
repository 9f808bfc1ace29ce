/* SPDX-License-Identifier: Apache-2.0 */
/* From CKPT on the command line to a folder, and its files opened. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/text.h"
#include "ctl/checkpoint.h"
#include "ctl/client.h"

bool checkpoint_parse_ref(const char *arg, uint64_t *ret_job, uint64_t *ret_step) {
        char job[24];
        size_t len = strcspn(arg, ":");
        int64_t j, s = 0;

        if (len == 0 || len >= sizeof(job))
                return false;
        memcpy(job, arg, len);
        job[len] = 0;
        if (text_parse_i64(job, &j) < 0 || j < 1 || (arg[len] && (text_parse_i64(arg + len + 1, &s) < 0 || s < 1)))
                return false;
        *ret_job = (uint64_t)j;
        *ret_step = (uint64_t)s;
        return true;
}

static int find_of_job(const struct ctl *c, uint64_t job, uint64_t step, char **ret, struct error *e) {
        Fp8ctl__V1__ListCheckpointsRequest rq = FP8CTL__V1__LIST_CHECKPOINTS_REQUEST__INIT;
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__ListCheckpointsReply *reply = NULL;
        const Fp8ctl__V1__Checkpoint *best = NULL;
        int r = client_new(c, &cl, e);

        rq.job_id = job;
        if (r >= 0)
                r = client_call(cl, "ListCheckpoints", &rq.base, &fp8ctl__v1__list_checkpoints_reply__descriptor, CALL_TIMEOUT_MS, (ProtobufCMessage **)&reply, e);
        if (r < 0)
                return r;
        for (size_t i = 0; i < reply->n_checkpoints; i++) {
                const Fp8ctl__V1__Checkpoint *k = reply->checkpoints[i];

                if ((step == 0 || k->step == step) && (!best || k->step >= best->step))
                        best = k;
        }
        if (!best && step)
                return error_set(e, -ENOENT, "job %" PRIu64 ": found no committed checkpoint of step %" PRIu64 ", expected one that `fp8ctl ckpt ls %" PRIu64 "` lists", job, step, job);
        if (!best)
                return error_set(e, -ENOENT, "job %" PRIu64 " has no committed checkpoint", job);
        *ret = strdup(best->path);
        return *ret ? 0 : error_set(e, -ENOMEM, "no memory");
}

static int with_manifest(const char *folder, const struct checkpoint_folder *c, struct error *e) {
        (void)c;
        return checkpoint_has_manifest(folder) ? 0 : error_set(e, -ENOENT, "no manifest");
}

static int find_newest_in(const char *dir, char **ret, struct error *e) {
        struct error why;
        size_t n;
        int r = checkpoint_folder_newest(dir, with_manifest, ret, &n, &why, e);

        if (r > 0)
                return error_set(e, -ENOENT, "%s: found neither %s nor step folders that have one, expected a checkpoint", dir, CHECKPOINT_MANIFEST);
        return r;
}

int checkpoint_find(const struct ctl *c, const char *arg, char **ret_folder, struct error *e) {
        uint64_t job, step;
        struct stat st;
        char *copy;

        if (stat(arg, &st) < 0) {
                if (errno == ENOENT && checkpoint_parse_ref(arg, &job, &step))
                        return find_of_job(c, job, step, ret_folder, e);
                return error_errno(e, errno, "%s", arg);
        }
        if (!S_ISDIR(st.st_mode))
                return error_set(e, -ENOTDIR, "%s: found a file, expected a checkpoint's folder", arg);
        if (!checkpoint_has_manifest(arg))
                return find_newest_in(arg, ret_folder, e);
        copy = strdup(arg);
        if (!copy)
                return error_set(e, -ENOMEM, "no memory");
        for (size_t len = strlen(copy); len > 1 && copy[len - 1] == '/'; len--)
                copy[len - 1] = 0;
        *ret_folder = copy;
        return 0;
}

int checkpoint_files_open(const struct ctl *c, const char *arg, struct checkpoint_files *ret, struct error *e) {
        struct checkpoint_files f = { 0 };
        int r = checkpoint_find(c, arg, &f.folder, e);

        if (r == 0)
                r = checkpoint_manifest_read(f.folder, &f.manifest, e);
        if (r == 0)
                r = checkpoint_reader_open(f.folder, f.manifest, &f.reader, e);
        if (r == 0)
                r = checkpoint_reader_tensors(f.reader, &f.tensors, &f.n_tensors, e);
        if (r < 0) {
                checkpoint_files_close(&f);
                return r;
        }
        for (size_t i = 0; i < checkpoint_manifest_shards(f.manifest); i++)
                f.bytes += checkpoint_manifest_shard(f.manifest, i).bytes;
        *ret = f;
        return 0;
}

void checkpoint_files_close(struct checkpoint_files *f) {
        free(f->tensors);
        checkpoint_reader_free(f->reader);
        checkpoint_manifest_free(f->manifest);
        free(f->folder);
        *f = (struct checkpoint_files){ 0 };
}

char *text_shape(char buf[SHAPE_BUF], int64_t rows, int64_t cols) {
        if (rows == 1)
                snprintf(buf, SHAPE_BUF, "[%" PRId64 "]", cols);
        else
                snprintf(buf, SHAPE_BUF, "[%" PRId64 ", %" PRId64 "]", rows, cols);
        return buf;
}
