/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "worker/ckpt/checkpoint.h"
#include "worker/rank/report.h"
#include "worker/rank/save.h"

#define POLL_NS (5 * NSEC_PER_MSEC) /* while the end of the job waits for the write */

struct save {
        const struct identity *id;
        const struct job_spec *spec;
        struct control *control;
        struct snapshot *snapshot;
        struct checkpoint_write *write; /* under way or finished */
        int n_ranks;
        uint64_t skipped;
        bool skipping; /* told since a save began last */
        /* of the write under way */
        uint64_t step, epoch, progress, progress_ns;
        uint32_t attempt;
        size_t bytes;
        bool stalled; /* told */
        const char *trouble; /* the event told since a write succeeded */
        char *folder, *state;
};

int save_new(const struct identity *id, const struct job_spec *spec, struct control *c, struct snapshot *s, struct save **ret, struct error *e) {
        struct save *v = calloc(1, sizeof(*v));

        if (!v)
                return error_errno(e, ENOMEM, "save");
        v->id = id;
        v->spec = spec;
        v->control = c;
        v->snapshot = s;
        v->n_ranks = spec->parallel.tp * spec->parallel.pp * spec->parallel.dp;
        *ret = v;
        return 0;
}

struct save *save_free(struct save *s) {
        if (!s)
                return NULL;
        checkpoint_write_free(s->write);
        free(s->folder);
        free(s->state);
        free(s);
        return NULL;
}

bool save_busy(const struct save *s) {
        return checkpoint_write_busy(s->write);
}

static void prepared(struct save *s, uint64_t step, uint64_t epoch, uint32_t attempt, const char *folder, Fp8ctl__V1__ShardInfo *shard, const char *state,
                     const char *error) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__CheckpointPrepared p = FP8CTL__V1__CHECKPOINT_PREPARED__INIT;

        p.job_id = s->id->job;
        p.epoch = epoch;
        p.rank = s->id->rank;
        p.incarnation = s->id->incarnation;
        p.step = step;
        p.attempt = attempt;
        p.directory = (char *)(folder ? folder : "");
        if (shard) {
                p.shards = &shard;
                p.n_shards = 1;
        }
        p.state_json = (char *)(state ? state : "");
        p.error = (char *)(error ? error : "");
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_CHECKPOINT_PREPARED;
        m.checkpoint_prepared = &p;
        control_send(s->control, &m);
}

/* What an operator looks for differs: space, the mount, the device. */
static const char *event_kind(int rc) {
        switch (rc) {
        case -ENOSPC:
        case -EDQUOT:
                return "storage_full";
        case -EROFS:
                return "storage_read_only";
        case -EBADMSG:
                return "snapshot_damaged";
        default:
                return "storage_failing";
        }
}

static void tell_failure(struct save *s, int rc, const char *text) {
        const char *kind = event_kind(rc);
        char line[512];

        snprintf(line, sizeof(line), "save of step %" PRIu64 " failed on rank %" PRIu32 ": %.400s; training goes on", s->step, s->id->rank, text);
        log_error("%s", line);
        if (!s->trouble || strcmp(s->trouble, kind) != 0) /* once until a save succeeds: each attempt is told as dropped anyway */
                report_notice(s->control, s->id, s->epoch, s->step, kind, "error", line);
        s->trouble = kind;
}

static int image_ready(void *arg, struct digest *ret, struct error *e) {
        struct save *s = arg;

        return snapshot_pinned(s->snapshot, ret, e);
}

/* In the writer's thread; the fields of the write under way do not change before it is done. */
static void on_written(void *arg, int rc, const char *text, struct digest d, const char *file) {
        struct save *s = arg;
        Fp8ctl__V1__ShardInfo shard = FP8CTL__V1__SHARD_INFO__INIT;
        char hex[DIGEST_HEX_SIZE];

        snapshot_unpin(s->snapshot);
        if (rc == -ECANCELED) {
                log_info("%s", text);
                return;
        }
        if (rc < 0 || !file) {
                tell_failure(s, rc, text && *text ? text : strerror(-rc));
                prepared(s, s->step, s->epoch, s->attempt, s->folder, NULL, NULL, text && *text ? text : strerror(-rc));
                return;
        }
        s->trouble = NULL;
        digest_hex(d, hex);
        shard.file = (char *)file;
        shard.bytes = s->bytes;
        shard.digest = hex;
        shard.rank = s->id->rank;
        prepared(s, s->step, s->epoch, s->attempt, s->folder, &shard, s->state, NULL);
        if (s->id->epoch == 1 && s->spec->test.kill_step >= 0 && (uint64_t)s->spec->test.kill_step == s->step && s->spec->test.kill_rank == (int64_t)s->id->rank &&
            s->spec->test.kill_point && strcmp(s->spec->test.kill_point, "prepared") == 0)
                raise(SIGKILL);
}

void save_refuse(struct save *s, uint64_t step, uint64_t epoch, uint32_t attempt, const char *why) {
        prepared(s, step, epoch, attempt, NULL, NULL, NULL, why);
}

static int begin(struct save *s, uint64_t step, uint64_t epoch, uint32_t attempt, struct error *e) {
        struct checkpoint_write_order o = { .rank = (int)s->id->rank, .n_ranks = s->n_ranks, .bytes_per_s = (uint64_t)s->spec->checkpoint.bandwidth, .ready = image_ready,
                                            .done = on_written, .arg = s };
        _cleanup_free_ char *folder = NULL, *text = NULL;
        const char *state = NULL;
        char name[128];
        int r;

        if (save_busy(s))
                return error_set(e, -EBUSY, "the save of step %" PRIu64 " is still being written", s->step);
        if (snapshot_newest(s->snapshot, &o.image, &o.len, &state) != step)
                return error_set(e, -ENOENT, "no snapshot of that step is held");
        checkpoint_step_name(step, epoch, attempt, name, sizeof(name));
        folder = file_path("%s/%s", s->spec->checkpoint.dir, name);
        text = s->id->rank == 0 ? job_manifest_state(s->spec, snapshot_layout(s->snapshot), state) : strdup(""); /* one is enough */
        if (!folder || !text)
                return error_errno(e, ENOMEM, "save");
        r = snapshot_pin(s->snapshot);
        if (r < 0)
                return error_errno(e, -r, "snapshot of step %" PRIu64, step);
        free(s->folder);
        free(s->state);
        o.folder = s->folder = STEAL_PTR(folder);
        s->state = STEAL_PTR(text);
        s->step = step;
        s->epoch = epoch;
        s->attempt = attempt;
        s->bytes = o.len;
        s->progress = 0;
        s->progress_ns = clock_mono_ns();
        s->stalled = s->skipping = false;
        r = checkpoint_write_start(&o, &s->write, e);
        if (r < 0)
                snapshot_unpin(s->snapshot);
        return r;
}

void save_start(struct save *s, uint64_t step, uint64_t epoch, uint32_t attempt) {
        struct error e = { 0 };

        if (begin(s, step, epoch, attempt, &e) < 0) {
                log_error("checkpoint of step %" PRIu64 ": %s", step, e.text);
                save_refuse(s, step, epoch, attempt, e.text);
        }
}

void save_skip(struct save *s, uint64_t step, uint64_t epoch) {
        char line[256];

        s->skipped++;
        if (s->id->rank != 0 || s->skipping)
                return;
        s->skipping = true; /* one event for a row of them: the count is in the metrics */
        snprintf(line, sizeof(line), "save of step %" PRIu64 " skipped: an earlier one is still being written (%" PRIu64 " skipped in all)", step, s->skipped);
        log_warning("%s", line);
        report_notice(s->control, s->id, epoch, step, "checkpoint_skipped", "warning", line);
}

uint64_t save_skipped(const struct save *s) {
        return s->skipped;
}

/* How long the write under way has made no progress, in ns. */
static uint64_t idle_ns(struct save *s) {
        uint64_t now = clock_mono_ns(), progress = checkpoint_write_progress(s->write);

        if (progress != s->progress) {
                s->progress = progress;
                s->progress_ns = now;
        }
        return now - s->progress_ns;
}

void save_watch(struct save *s) {
        char line[400];

        if (!save_busy(s) || s->stalled || idle_ns(s) < (uint64_t)s->spec->checkpoint.stall_timeout_ms * NSEC_PER_MSEC)
                return;
        s->stalled = true;
        snprintf(line, sizeof(line), "save of step %" PRIu64 " on rank %" PRIu32 ": no progress for %" PRId64 " ms after %" PRIu64 " of %zu bytes in %.200s; training goes on",
                 s->step, s->id->rank, s->spec->checkpoint.stall_timeout_ms, s->progress, s->bytes, s->folder);
        log_error("%s", line);
        report_notice(s->control, s->id, s->epoch, s->step, "storage_stalled", "error", line);
}

bool save_finish(struct save *s) {
        const struct timespec ts = { .tv_nsec = POLL_NS };

        for (;;) {
                if (!save_busy(s)) {
                        checkpoint_write_wait(s->write);
                        return true;
                }
                save_watch(s);
                if (s->stalled && idle_ns(s) >= (uint64_t)s->spec->checkpoint.stall_timeout_ms * NSEC_PER_MSEC)
                        break;
                (void)nanosleep(&ts, NULL);
        }
        save_refuse(s, s->step, s->epoch, s->attempt, "the storage has stalled");
        checkpoint_write_cancel(s->write);
        return false;
}

void save_cancel(struct save *s) {
        checkpoint_write_cancel(s->write);
}
