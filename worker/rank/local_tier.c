/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/rank/local_tier.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "format/local_copy.h"
#include "proto/replica.h"
#include "worker/ckpt/checkpoint.h"
#include "worker/rank/report.h"
#include "worker/train/trainer.h"

#define KEEP_MAX 17 /* checkpoint.local_keep and the one being written */
#define POLL_NS (5 * NSEC_PER_MSEC)

enum writing { NOTHING, WRITING, WRITTEN, FAILED };

struct local_tier {
        const struct identity *id;
        const struct job_spec *spec;
        struct control *control;
        struct snapshot *snapshot;
        struct replica *map;
        struct checkpoint_write *write; /* under way or finished */
        char *dir, *rank_dir;           /* the job's on this node's disk, and our own in it; NULL: there is none */
        uint64_t epoch, base;           /* of the epoch, and what it began from */
        bool told_off, stalled;
        uint64_t progress, progress_ns;
        pthread_mutex_t lock;
        /* under lock; `now` and `folder` do not change while it is WRITING */
        enum writing state;
        bool yielded; /* the snapshot is no longer held for us */
        bool listed;  /* kept is what is there */
        bool troubled; /* told since one was written */
        struct local_copy now, kept[KEEP_MAX];
        size_t n_kept;
        char *folder;
        struct local_tier_counts count;
};

int local_tier_new(const struct identity *id, const struct job_spec *spec, struct control *c, struct snapshot *s, int fd, struct local_tier **ret, struct error *e) {
        struct local_tier *l = calloc(1, sizeof(*l));
        int r;

        if (!l)
                return error_errno(e, ENOMEM, "local copies");
        l->id = id;
        l->spec = spec;
        l->control = c;
        l->snapshot = s;
        pthread_mutex_init(&l->lock, NULL);
        r = replica_map(fd, &l->map, e);
        if (r == 0 && id->local_dir && id->local_dir[0]) {
                l->dir = strdup(id->local_dir);
                l->rank_dir = local_copies_of_rank(id->local_dir, id->rank);
                if (!l->dir || !l->rank_dir)
                        r = error_errno(e, ENOMEM, "local copies");
        }
        if (r < 0) {
                local_tier_free(l);
                return r;
        }
        *ret = l;
        return 0;
}

struct local_tier *local_tier_free(struct local_tier *l) {
        if (!l)
                return NULL;
        checkpoint_write_free(l->write);
        replica_unmap(l->map);
        pthread_mutex_destroy(&l->lock);
        free(l->dir);
        free(l->rank_dir);
        free(l->folder);
        free(l);
        return NULL;
}

static void tell(struct local_tier *l, uint64_t epoch, uint64_t step, const char *kind, const char *text) {
        log_warning("%s", text);
        report_notice(l->control, l->id, epoch, step, kind, "warning", text);
}

/* ------------------------------------------------------------------ the writer's thread */
/* What is there from before, in this process's life or an earlier one's, as far as the epoch's beginning bears it out. The lock is not held: a disk may stall. */
static void list_kept(struct local_tier *l) {
        _cleanup_free_ struct local_copy *list = NULL;
        size_t n = 0, max = (size_t)l->spec->checkpoint.local_keep;
        uint64_t base;

        pthread_mutex_lock(&l->lock);
        base = l->base;
        pthread_mutex_unlock(&l->lock);
        if (local_copies_list(l->rank_dir, &list, &n, NULL) < 0)
                n = 0;
        pthread_mutex_lock(&l->lock);
        l->n_kept = 0;
        for (size_t i = 0; i < n && l->n_kept < max && l->n_kept < KEEP_MAX - 1; i++)
                if (list[i].job == l->id->job && list[i].step <= base && strcmp(list[i].layout, l->now.layout) == 0)
                        l->kept[l->n_kept++] = list[i];
        l->listed = l->epoch == l->now.epoch; /* else another one has begun meanwhile */
        pthread_mutex_unlock(&l->lock);
}

/* Room first: what is not kept goes. Then the snapshot must be whole. */
static int image_ready(void *arg, struct digest *ret, struct error *e) {
        struct local_tier *l = arg;
        struct local_copy keep[KEEP_MAX];
        bool listed;
        size_t n;
        int r;

        pthread_mutex_lock(&l->lock);
        listed = l->listed;
        pthread_mutex_unlock(&l->lock);
        if (!listed)
                list_kept(l);
        pthread_mutex_lock(&l->lock);
        n = l->n_kept;
        memcpy(keep, l->kept, n * sizeof(*keep));
        pthread_mutex_unlock(&l->lock);
        r = local_copies_retain(l->rank_dir, keep, n, e);
        return r < 0 ? r : snapshot_pinned(l->snapshot, ret, e);
}

static void on_written(void *arg, int rc, const char *text, struct digest d, const char *file) {
        struct local_tier *l = arg;
        struct error e = { 0 };
        char line[512];
        bool yielded, say;

        (void)file;
        pthread_mutex_lock(&l->lock);
        yielded = l->yielded;
        if (!yielded)
                snapshot_unpin(l->snapshot);
        l->yielded = true;
        pthread_mutex_unlock(&l->lock);
        if (rc == 0 && !yielded) { /* else the snapshot may have been written over before all of it was read */
                l->now.digest = d;
                rc = local_copy_seal(l->folder, &l->now, &e);
                text = e.text;
        }
        pthread_mutex_lock(&l->lock);
        l->state = rc == 0 && !yielded ? WRITTEN : FAILED;
        l->count.written += l->state == WRITTEN;
        say = rc < 0 && rc != -ECANCELED && !yielded && !l->troubled;
        l->troubled = say || (l->troubled && l->state != WRITTEN);
        pthread_mutex_unlock(&l->lock);
        if (!say)
                return;
        snprintf(line, sizeof(line), "the snapshot of step %" PRIu64 " has no copy on this node's disk: %.350s; training goes on", l->now.step, text && *text ? text : strerror(-rc));
        tell(l, l->now.epoch, l->now.step, "local_copy_failed", line);
}

/* ------------------------------------------------------------------ the training thread */
void local_tier_begin(struct local_tier *l, uint64_t epoch, uint64_t step) {
        pthread_mutex_lock(&l->lock);
        l->epoch = epoch;
        l->base = step;
        l->listed = false;
        if (l->state != WRITING)
                l->state = NOTHING;
        pthread_mutex_unlock(&l->lock);
}

void local_tier_yield(struct local_tier *l) {
        pthread_mutex_lock(&l->lock);
        if (l->state == WRITING && !l->yielded) {
                l->yielded = true;
                snapshot_unpin(l->snapshot);
                l->count.skipped++;
        }
        pthread_mutex_unlock(&l->lock);
        checkpoint_write_cancel(l->write);
}

void local_tier_cancel(struct local_tier *l) {
        checkpoint_write_cancel(l->write);
}

static uint64_t idle_ns(struct local_tier *l) {
        uint64_t now = clock_mono_ns(), progress = checkpoint_write_progress(l->write);

        if (progress != l->progress) {
                l->progress = progress;
                l->progress_ns = now;
        }
        return now - l->progress_ns;
}

static bool is_stalled(struct local_tier *l) {
        return idle_ns(l) >= (uint64_t)l->spec->checkpoint.stall_timeout_ms * NSEC_PER_MSEC;
}

bool local_tier_stop(struct local_tier *l) {
        const struct timespec ts = { .tv_nsec = POLL_NS };

        checkpoint_write_cancel(l->write);
        while (checkpoint_write_busy(l->write)) {
                if (is_stalled(l))
                        return false;
                (void)nanosleep(&ts, NULL);
        }
        checkpoint_write_wait(l->write);
        return true;
}

bool local_tier_due(const struct local_tier *l, uint64_t step) {
        int64_t every = l->spec->checkpoint.local_every;

        return every > 0 && step % (uint64_t)every == 0;
}

uint32_t local_tier_bits(struct local_tier *l) {
        uint32_t bits;

        pthread_mutex_lock(&l->lock);
        bits = l->state == WRITING ? TRAINER_REQUEST_LOCAL_BUSY : l->state == FAILED ? TRAINER_REQUEST_LOCAL_MISSING : 0;
        pthread_mutex_unlock(&l->lock);
        return bits;
}

struct local_tier_counts local_tier_counted(struct local_tier *l) {
        struct local_tier_counts n;

        pthread_mutex_lock(&l->lock);
        n = l->count;
        pthread_mutex_unlock(&l->lock);
        return n;
}

/* -ENOSPC, -ENOENT: there is no such tier here, which is said once. */
static int check_room(struct local_tier *l, struct error *e) {
        uint64_t need = (uint64_t)(l->spec->checkpoint.local_keep + 1) * snapshot_bytes(l->snapshot);

        if (!l->dir)
                return error_set(e, -ENOENT, "this node has none (fp8-worker --local-dir, --local-space)");
        if (need > l->id->local_space)
                return error_set(e, -ENOSPC, "%" PRIu64 " bytes of it are this rank's, checkpoint.local_keep %" PRId64 " takes %" PRIu64, l->id->local_space, l->spec->checkpoint.local_keep, need);
        return 0;
}

static int begin(struct local_tier *l, uint64_t step, struct error *e) {
        struct checkpoint_write_order o = { .rank = (int)l->id->rank, .bytes_per_s = (uint64_t)l->spec->checkpoint.bandwidth, .ready = image_ready, .done = on_written, .arg = l };
        const char *state;
        int r;

        if (checkpoint_write_busy(l->write))
                return error_set(e, -EBUSY, "an earlier one is still being written");
        if (snapshot_newest(l->snapshot, &o.image, &o.len, &state) != step)
                return error_set(e, -ENOENT, "no snapshot of step %" PRIu64 " is held", step);
        free(l->folder);
        l->folder = local_copy_folder(l->dir, l->id->rank, step, l->epoch);
        if (!l->folder)
                return error_errno(e, ENOMEM, "local copy");
        o.folder = l->folder;
        o.n_ranks = (int)l->now.ranks;
        l->now.bytes = o.len;
        r = snapshot_pin(l->snapshot);
        if (r < 0)
                return error_errno(e, -r, "snapshot of step %" PRIu64, step);
        l->progress = 0;
        l->progress_ns = clock_mono_ns();
        l->stalled = l->yielded = false;
        l->state = WRITING;
        r = checkpoint_write_start(&o, &l->write, e);
        if (r < 0)
                snapshot_unpin(l->snapshot);
        return r;
}

static void start(struct local_tier *l, uint64_t step) {
        const struct job_spec *spec = l->spec;
        struct error e = { 0 };
        char line[400];
        int off = check_room(l, &e), r;

        if (off < 0) {
                if (!l->told_off) {
                        snprintf(line, sizeof(line), "no copies on the disk of %.60s: %.250s", l->id->node, e.text);
                        tell(l, l->epoch, step, "local_copies_off", line);
                }
                l->told_off = true;
        }
        pthread_mutex_lock(&l->lock);
        l->now = (struct local_copy){ .job = l->id->job, .step = step, .epoch = l->epoch, .rank = l->id->rank,
                                      .ranks = (uint32_t)(spec->parallel.tp * spec->parallel.pp * spec->parallel.dp) };
        snprintf(l->now.layout, sizeof(l->now.layout), "%s", snapshot_layout(l->snapshot));
        r = off < 0 ? off : begin(l, step, &e);
        if (r < 0)
                l->state = FAILED;
        pthread_mutex_unlock(&l->lock);
        if (r < 0 && off == 0)
                log_info("no copy of step %" PRIu64 " on this node's disk: %s", step, e.text);
}

static void watch(struct local_tier *l) {
        char line[400];

        if (!checkpoint_write_busy(l->write) || l->stalled || !is_stalled(l))
                return;
        l->stalled = true;
        snprintf(line, sizeof(line), "the copy of step %" PRIu64 " on the disk of %.60s makes no progress for %" PRId64 " ms; training goes on", l->now.step, l->id->node,
                 l->spec->checkpoint.stall_timeout_ms);
        tell(l, l->epoch, l->now.step, "storage_stalled", line);
}

/* All have spoken of the last one: it is whole, or of no use. Lock held. */
static void settle(struct local_tier *l, uint32_t agreed) {
        if (l->state == NOTHING || l->state == WRITING || (agreed & TRAINER_REQUEST_LOCAL_BUSY))
                return;
        if (l->state == WRITTEN && !(agreed & TRAINER_REQUEST_LOCAL_MISSING)) {
                size_t max = (size_t)l->spec->checkpoint.local_keep;

                if (l->n_kept >= max)
                        l->n_kept = max - 1;
                memmove(l->kept + 1, l->kept, l->n_kept * sizeof(l->kept[0]));
                l->kept[0] = l->now;
                l->n_kept++;
        }
        l->state = NOTHING;
}

/* That a copy begins is decided by what all ranks know alike; a rank that cannot make it says so. */
void local_tier_next(struct local_tier *l, uint64_t step, uint32_t agreed, bool saving) {
        bool begins;

        if (l->spec->checkpoint.local_every <= 0)
                return;
        watch(l);
        pthread_mutex_lock(&l->lock);
        settle(l, agreed);
        begins = local_tier_due(l, step) && l->state == NOTHING && !(agreed & (TRAINER_REQUEST_SAVE_BUSY | TRAINER_REQUEST_LOCAL_BUSY));
        if (begins && saving)
                l->state = FAILED;
        l->count.skipped += local_tier_due(l, step) && (!begins || saving);
        pthread_mutex_unlock(&l->lock);
        if (begins && !saving)
                start(l, step);
}

/* ------------------------------------------------------------------ getting it back */
static int check_copy(const struct local_tier *l, const char *folder, const struct local_copy *c, uint64_t step, uint64_t epoch, struct error *e) {
        if (c->job == l->id->job && c->rank == l->id->rank && c->step == step && c->epoch == epoch && c->bytes == snapshot_bytes(l->snapshot) &&
            strcmp(c->layout, snapshot_layout(l->snapshot)) == 0)
                return 0;
        return error_set(e, -EBADMSG, "%s: found job %" PRIu64 " rank %" PRIu32 " layout %s, %" PRIu64 " bytes, expected job %" PRIu64 " rank %" PRIu32 " layout %s, %zu bytes", folder, c->job,
                         c->rank, c->layout, c->bytes, l->id->job, l->id->rank, snapshot_layout(l->snapshot), snapshot_bytes(l->snapshot));
}

static int fetch(struct local_tier *l, const char *folder, uint64_t step, uint64_t epoch, struct local_copy *c, struct error *e) {
        struct replica_slot slot;
        void *payload = NULL;
        int r = local_copy_read(folder, c, e);

        if (r == 0)
                r = check_copy(l, folder, c, step, epoch, e);
        /* Into a slot that no snapshot is in, invalid until all of it is there and verified. */
        if (r == 0)
                r = replica_begin(l->map, step, &payload, e);
        if (r == 0)
                r = local_copy_load(folder, c, payload, e);
        if (r < 0)
                return r;
        slot = (struct replica_slot){ .step = step, .epoch = epoch, .job_id = c->job, .rank = c->rank, .shard_count = c->ranks, .bytes = c->bytes };
        memcpy(slot.layout, c->layout, sizeof(slot.layout));
        r = replica_commit(l->map, &slot, c->digest);
        return r < 0 ? error_errno(e, -r, "replica segment") : 0;
}

int local_tier_fetch(struct local_tier *l, uint64_t epoch_now, uint64_t step, uint64_t epoch, uint64_t *ret_bytes, struct error *e) {
        _cleanup_free_ char *folder = l->dir ? local_copy_folder(l->dir, l->id->rank, step, epoch) : NULL;
        struct local_copy c;
        char text[500];
        int r = folder ? fetch(l, folder, step, epoch, &c, e) : -ENOENT;

        if (r == 0)
                *ret_bytes = c.bytes;
        if (r == 0 || r == -ENOENT)
                return r;
        snprintf(text, sizeof(text), "the copy of step %" PRIu64 " on this node's disk is of no use: %.380s", step, e->text);
        tell(l, epoch_now, step, "local_copy_rejected", text);
        return r;
}
