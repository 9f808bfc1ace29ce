/* SPDX-License-Identifier: Apache-2.0 */
/* Reads of worker-local files for people: bounded, of known names only, and with the rights of the job folder's owner. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "worker/agent/agent_private.h"
#include "worker/agent/user.h"

#define FETCH_MAX (1024u * 1024)

static char *fetch_path(const struct agent *a, const Fp8ctl__V1__FetchRequest *m, struct stat *ret_folder) {
        _cleanup_free_ char *folder = file_path("%s/jobs/%" PRIu64, a->config->dir, m->job_id);

        if (m->kind == FP8CTL__V1__FILE_KIND__WORKER_LOG) {
                memset(ret_folder, 0, sizeof(*ret_folder));
                return file_path("%s/worker.log", a->config->dir);
        }
        if (!folder || lstat(folder, ret_folder) < 0)
                return NULL;
        if (m->kind == FP8CTL__V1__FILE_KIND__METRICS)
                return file_path("%s/metrics.jsonl", folder);
        return m->kind == FP8CTL__V1__FILE_KIND__RANK_LOG && m->rank >= 0 ? file_path("%s/rank%" PRId32 ".log", folder, m->rank) : NULL;
}

void fetch_answer(struct agent *a, const Fp8ctl__V1__FetchRequest *m) {
        Fp8ctl__V1__WorkerMessage out = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__FetchReply reply = FP8CTL__V1__FETCH_REPLY__INIT;
        size_t size = m->max_bytes > 0 && m->max_bytes < FETCH_MAX ? m->max_bytes : FETCH_MAX, len = 0;
        _cleanup_free_ uint8_t *buf = malloc(size);
        struct stat folder = { 0 };
        _cleanup_free_ char *path = fetch_path(a, m, &folder);
        struct error e = { 0 };
        uint64_t next = m->offset;
        int r = -ENOENT;

        if (!buf)
                return;
        if (path) {
                user_enter(folder.st_uid, folder.st_gid);
                r = rotated_log_read(path, m->offset, buf, size, &len, &next, &e);
                user_leave();
        } else {
                error_set(&e, -ENOENT, "nothing of job %" PRIu64 " is on node %s", m->job_id, a->config->name);
        }
        reply.request = m->request;
        reply.next_offset = next;
        if (r < 0) {
                reply.error = e.text;
        } else {
                reply.data.data = buf;
                reply.data.len = len;
        }
        out.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_FETCH_REPLY;
        out.fetch_reply = &reply;
        stream_send(a, &out);
}
