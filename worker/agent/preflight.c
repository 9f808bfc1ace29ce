/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Before a job is taken: would it find what it needs on this node?  In a thread (a digest reads all the data, a mount may stall), with the rights of
 * the user the ranks will run as.  Nothing stays behind: what is probed is an unnamed file.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/indexed.h"
#include "proto/job_spec.h"
#include "worker/agent/agent_private.h"
#include "worker/agent/user.h"

#define MANIFEST_MAX ((size_t)64 * 1024 * 1024)

struct preflight {
        struct agent *agent;
        uint64_t request, bytes_per_rank;
        uint32_t ranks_here;
        uid_t uid;
        gid_t gid;
        char *job_file, *from_checkpoint;
        struct error error;
        char digest[DIGEST_HEX_SIZE];
};

static double gib(uint64_t bytes) {
        return (double)bytes / (1024.0 * 1024.0 * 1024.0);
}

/* The data is there, whole, and the model has a row for each of its tokens. */
static int check_data(struct preflight *p, const struct job_spec *spec, struct error *e) {
        static const enum indexed_format formats[] = { INDEXED_AUTO, INDEXED_TEXT, INDEXED_PAIR };
        struct indexed *x = NULL;
        struct digest d = { 0 };
        int64_t vocab = 0;
        int r = indexed_open_as(spec->data.path, formats[spec->data.format], &x, e);

        if (r == 0)
                vocab = indexed_vocab(x);
        if (r == 0 && vocab < 0)
                r = error_set(e, -EBADMSG, "%s: found a negative token id, expected ids from 0", spec->data.path);
        if (r == 0 && vocab > spec->model.vocab_size)
                r = error_set(e, -ERANGE, "%s: found token ids up to %" PRId64 ", expected below model.vocab_size (%" PRId64 ")", spec->data.path, vocab - 1,
                              spec->model.vocab_size);
        indexed_free(x);
        if (r == 0)
                r = indexed_digest(spec->data.path, &d, e);
        if (r < 0)
                return error_prefix(e, "data.path");
        digest_hex(d, p->digest);
        return 0;
}

/* The nearest folder above path (or path itself) that is there. Changes path. */
static int existing_folder(char *path, struct stat *ret, struct error *e) {
        for (;;) {
                char *slash;

                if (stat(path, ret) == 0)
                        return S_ISDIR(ret->st_mode) ? 0 : error_set(e, -ENOTDIR, "checkpoint.dir: %s is not a folder", path);
                if (errno != ENOENT)
                        return error_errno(e, errno, "checkpoint.dir: %s", path);
                slash = strrchr(path, '/');
                if (!slash)
                        return error_set(e, -ENOENT, "checkpoint.dir: %s is not an absolute path", path);
                if (slash == path) {
                        path[1] = '\0';
                        return stat(path, ret) == 0 ? 0 : error_errno(e, errno, "/");
                }
                *slash = '\0';
        }
}

static int probe_write(const char *folder, struct error *e) {
        _cleanup_close_ int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        _cleanup_free_ char *name = NULL;

        if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT)) {
                name = file_path("%s/.fp8ctl-probe-XXXXXX", folder);
                fd = name ? mkostemp(name, O_CLOEXEC) : -1;
                if (fd >= 0)
                        unlink(name);
        }
        if (fd < 0)
                return error_errno(e, errno, "checkpoint.dir: cannot write in %s", folder);
        if (write(fd, "probe", 5) != 5)
                return error_errno(e, errno, "checkpoint.dir: cannot write in %s", folder);
        return 0;
}

static int check_folder(const struct job_spec *spec, struct error *e) {
        _cleanup_free_ char *path = strdup(spec->checkpoint.dir);
        uint64_t need = 2 * (uint64_t)model_parameters(&spec->model) * (4 + 2 * (spec->precision.moments == JOB_DTYPE_BF16 ? 2 : 4)), free_bytes;
        struct statvfs fs;
        struct stat st;
        int r;

        if (!path)
                return error_errno(e, ENOMEM, "checkpoint.dir");
        r = existing_folder(path, &st, e);
        if (r == 0)
                r = probe_write(path, e);
        if (r < 0)
                return r;
        if (statvfs(path, &fs) < 0)
                return error_errno(e, errno, "checkpoint.dir: %s", path);
        free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
        if (free_bytes < need)
                return error_set(e, -ENOSPC, "checkpoint.dir: found %.2f GiB free in %s, expected %.2f GiB (two checkpoints)", gib(free_bytes), path, gib(need));
        return 0;
}

static int check_memory(const struct preflight *p, struct error *e) {
        uint64_t left = node_memory_left(), need;

        if (__builtin_mul_overflow(p->bytes_per_rank, (uint64_t)p->ranks_here, &need) || need > left)
                return error_set(e, -ENOMEM, "memory: found %.2f GiB available, expected %.2f GiB (%" PRIu32 " ranks of %.2f GiB)", gib(left),
                                 gib(p->bytes_per_rank) * p->ranks_here, p->ranks_here, gib(p->bytes_per_rank));
        return 0;
}

static int check_checkpoint(const char *folder, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/manifest.json", folder), *text = NULL;
        size_t len;
        int r;

        if (!path)
                return error_errno(e, ENOMEM, "--from");
        r = file_read(path, MANIFEST_MAX, &text, &len, e);
        if (r < 0)
                return error_prefix(e, "--from");
        if (!strstr(text, "\"fp8ctl-checkpoint\""))
                return error_set(e, -EBADMSG, "--from: %s is not a checkpoint's manifest", path);
        return 0;
}

static void check(struct preflight *p, const struct job_spec *spec) {
        int r = check_memory(p, &p->error);

        if (r == 0)
                r = check_folder(spec, &p->error);
        if (r == 0)
                r = check_data(p, spec, &p->error);
        if (r == 0 && p->from_checkpoint[0])
                check_checkpoint(p->from_checkpoint, &p->error);
}

static void work(void *arg) {
        struct preflight *p = arg;
        struct job_spec *spec = NULL;

        if (job_spec_parse(p->job_file, strlen(p->job_file), "job", NULL, &spec, &p->error) < 0)
                return;
        user_enter(p->uid, p->gid);
        check(p, spec);
        user_leave();
        job_spec_free(spec);
}

static struct preflight *preflight_free(struct preflight *p) {
        if (!p)
                return NULL;
        free(p->job_file);
        free(p->from_checkpoint);
        free(p);
        return NULL;
}

static void done(void *arg) {
        struct preflight *p = arg;
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__PreflightReply reply = FP8CTL__V1__PREFLIGHT_REPLY__INIT;

        reply.request = p->request;
        if (p->error.code)
                reply.error = p->error.text;
        reply.data_digest = p->digest;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_PREFLIGHT_REPLY;
        m.preflight_reply = &reply;
        stream_send(p->agent, &m);
        preflight_free(p);
}

void preflight_begin(struct agent *a, const Fp8ctl__V1__PreflightRequest *m) {
        struct preflight *p = calloc(1, sizeof(*p));

        if (!p)
                return;
        p->agent = a;
        p->request = m->request;
        p->bytes_per_rank = m->bytes_per_rank;
        p->ranks_here = m->ranks_here;
        p->uid = m->uid;
        p->gid = m->gid;
        p->job_file = strdup(m->job_file);
        p->from_checkpoint = strdup(m->from_checkpoint);
        if (!p->job_file || !p->from_checkpoint) {
                preflight_free(p);
                return;
        }
        if (tasks_run(a->tasks, work, done, p, &p->error) < 0)
                done(p);
}
