/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/rank/snapshot.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/hash.h"
#include "proto/replica.h"

struct snapshot {
        const struct identity *id;
        struct trainer *trainer;
        const struct dev_ops *ops;
        struct dev_stream *stream; /* the thread's while one is under way, else the caller's */
        struct dev *dev;
        struct shard_layout *shard;
        struct replica *replica;
        bool in_place[REPLICA_SLOTS], staged; /* slots that the device writes by itself, or that it cannot; the thread's */
        uint64_t shard_count, waited_ns;
        char layout[REPLICA_LAYOUT_SIZE];
        /* the newest; not changed while it is under way */
        struct replica_slot slot;
        void *image;
        char state[TRAINER_STATE_JSON_MAX];

        pthread_t thread;
        pthread_mutex_t lock;
        pthread_cond_t changed;
        bool started, busy, stop;
        bool in_use;          /* all of the segment is */
        int touched, begun;   /* slots, from the first on; snapshots by this process */
        bool untold;          /* that it does not */
        struct error not_in_place;
        struct digest digest; /* of the newest, or why there is none */
        struct error why;
        uint64_t pinned_step; /* 0: none */
        bool pinned_whole;    /* or failed */
        struct digest pinned_digest;
        struct error pinned_why;
};

DEFINE_CLEANUP(struct snapshot *, snapshot_free);

/* ------------------------------------------------------------------ the thread */

static struct lane_pool slot_room(const struct snapshot *s, int slot) {
        struct lane_pool p = replica_pool(s->replica);

        p.size /= replica_header(s->replica)->n_slots;
        p.base = (char *)p.base + (uint64_t)slot * p.size;
        return p;
}

/* A snapshot is copied from a device by itself, on its own stream, while steps are made; else this thread has to lend a hand. */
static void keep_in_place(struct snapshot *s, int slot) {
        struct lane_pool room = slot_room(s, slot);
        struct error e = { 0 };
        int r;

        if (s->staged || s->in_place[slot])
                return;
        r = s->ops->host_pin(s->dev, room.base, (size_t)room.size, &e);
        s->in_place[slot] = r == 0;
        s->staged = r < 0;
        if (r == 0 || r == -EOPNOTSUPP)
                return;
        pthread_mutex_lock(&s->lock);
        s->not_in_place = e;
        s->untold = true;
        pthread_mutex_unlock(&s->lock);
}

static int slot_of(const struct snapshot *s, const void *image) {
        struct lane_pool first = slot_room(s, 0);

        return (int)((uint64_t)((const char *)image - (const char *)first.base) / first.size);
}

static void take(struct snapshot *s) {
        struct error why = { 0 };
        struct digest d = { 0 };
        int r;

        keep_in_place(s, slot_of(s, s->image));
        r = shard_write_digest(s->shard, s->ops, s->stream, s->state, s->image, &d, &why);
        if (r == 0) {
                r = replica_commit(s->replica, &s->slot, d);
                if (r < 0)
                        error_errno(&why, -r, "snapshot of step %" PRIu64, s->slot.step);
        }
        pthread_mutex_lock(&s->lock);
        s->digest = d;
        s->why = why;
        s->busy = false;
        if (s->pinned_step && !s->pinned_whole) {
                s->pinned_whole = true;
                s->pinned_digest = d;
                s->pinned_why = why;
        }
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->lock);
}

static void *take_snapshots(void *arg) {
        struct snapshot *s = arg;
        uint64_t touched = 0;
        bool touching = true;

        /* While the job starts. Of a rank that replaces another all wait, and it is most of a second for some gigabytes, in which the device's driver does nothing else: there each slot before its first use. */
        for (int i = 0; s->id->epoch == 1 && i < (int)replica_header(s->replica)->n_slots; i++)
                keep_in_place(s, i);
        pthread_mutex_lock(&s->lock);
        for (;;) {
                while (!s->busy && !s->stop)
                        if (touching) { /* while the job starts, not within its first steps */
                                pthread_mutex_unlock(&s->lock);
                                touching = replica_touch(s->replica, &touched);
                                pthread_mutex_lock(&s->lock);
                                s->in_use = !touching;
                                s->touched = replica_touched(s->replica, touched);
                        } else
                                pthread_cond_wait(&s->changed, &s->lock);
                if (!s->busy)
                        break;
                pthread_mutex_unlock(&s->lock);
                take(s);
                pthread_mutex_lock(&s->lock);
        }
        pthread_mutex_unlock(&s->lock);
        for (int i = 0; i < REPLICA_SLOTS; i++)
                if (s->in_place[i])
                        (void)s->ops->host_unpin(s->dev, slot_room(s, i).base);
        return NULL;
}

bool snapshot_told_slow(struct snapshot *s, char *buf, size_t size) {
        bool say;

        pthread_mutex_lock(&s->lock);
        say = s->untold;
        s->untold = false;
        if (say)
                snprintf(buf, size, "snapshots are copied with the host's help: %.300s", s->not_in_place.text);
        pthread_mutex_unlock(&s->lock);
        return say;
}

/* Signals are the program's own affair, in its own threads. 0 or an errno. */
static int start_thread(pthread_t *thread, void *(*run)(void *), void *arg) {
        sigset_t all, old;
        int r;

        (void)sigfillset(&all);
        (void)pthread_sigmask(SIG_SETMASK, &all, &old);
        r = pthread_create(thread, NULL, run, arg);
        (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
        return r;
}

/* ------------------------------------------------------------------ making and freeing */

int snapshot_new(const struct identity *id, const struct job_spec *spec, struct trainer *t, const struct dev_ops *ops, struct dev *dev, int fd, struct snapshot **ret,
                 struct error *e) {
        _cleanup_(snapshot_freep) struct snapshot *s = calloc(1, sizeof(*s));
        const struct shard_tensor *list;
        size_t n;
        int r;

        if (!s)
                return error_errno(e, ENOMEM, "snapshot");
        s->id = id;
        s->trainer = t;
        s->ops = ops;
        s->dev = dev;
        s->shard_count = (uint64_t)spec->parallel.tp * (uint64_t)spec->parallel.pp * (uint64_t)spec->parallel.dp;
        r = snprintf(s->layout, sizeof(s->layout), "tp%d.pp%d.dp%d/%s", spec->parallel.tp, spec->parallel.pp, spec->parallel.dp, trainer_fingerprint(t));
        if (r < 0 || (size_t)r >= sizeof(s->layout)) {
                /* Two layouts must not look equal because their ends are cut off: keep the digest of the whole. */
                char hex[DIGEST_HEX_SIZE];

                digest_hex(digest_of(trainer_fingerprint(t), strlen(trainer_fingerprint(t))), hex);
                snprintf(s->layout, sizeof(s->layout), "tp%d.pp%d.dp%d/%s", spec->parallel.tp, spec->parallel.pp, spec->parallel.dp, hex);
        }
        r = ops->stream_new(dev, &s->stream);
        if (r < 0)
                return error_errno(e, -r, "snapshot stream");
        pthread_mutex_init(&s->lock, NULL);
        pthread_cond_init(&s->changed, NULL);
        trainer_state(t, &list, &n);
        r = shard_layout_new(list, n, TRAINER_STATE_JSON_MAX, &s->shard, e);
        if (r == 0)
                r = replica_size(fd, shard_layout_bytes(s->shard), e);
        if (r == 0)
                r = replica_map(fd, &s->replica, e);
        if (r < 0)
                return r;
        r = start_thread(&s->thread, take_snapshots, s);
        s->started = r == 0;
        if (r)
                return error_errno(e, r, "snapshots: cannot start a thread");
        *ret = STEAL_PTR(s);
        return 0;
}

struct snapshot *snapshot_free(struct snapshot *s) {
        if (!s)
                return NULL;
        if (s->started) {
                pthread_mutex_lock(&s->lock);
                s->stop = true;
                pthread_cond_broadcast(&s->changed);
                pthread_mutex_unlock(&s->lock);
                (void)pthread_join(s->thread, NULL);
                pthread_cond_destroy(&s->changed);
                pthread_mutex_destroy(&s->lock);
        }
        replica_unmap(s->replica);
        shard_layout_free(s->shard);
        if (s->stream)
                s->ops->stream_free(s->stream);
        free(s);
        return NULL;
}

const char *snapshot_layout(const struct snapshot *s) {
        return s->layout;
}

size_t snapshot_bytes(const struct snapshot *s) {
        return shard_layout_bytes(s->shard);
}

int snapshot_start(struct snapshot *s, uint64_t epoch, struct error *e) {
        uint64_t step = trainer_step_number(s->trainer);
        void *image = NULL;
        int r = snapshot_wait(s, e);

        s->slot.step = 0;
        if (r == 0)
                r = trainer_settle(s->trainer, e); /* ours is another stream */
        if (r == 0)
                r = trainer_state_json(s->trainer, s->state, sizeof(s->state), e);
        if (r == 0)
                r = replica_begin(s->replica, step, &image, e);
        if (r < 0)
                return r;
        s->slot = (struct replica_slot){ .step = step, .epoch = epoch, .job_id = s->id->job, .rank = s->id->rank, .shard_count = s->shard_count,
                                         .bytes = shard_layout_bytes(s->shard) };
        memcpy(s->slot.layout, s->layout, sizeof(s->slot.layout));
        s->image = image;
        pthread_mutex_lock(&s->lock);
        s->busy = true;
        s->begun++;
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->lock);
        return 0;
}

bool snapshot_ready(struct snapshot *s) {
        bool ready;

        pthread_mutex_lock(&s->lock);
        ready = s->in_use || s->begun < s->touched;
        pthread_mutex_unlock(&s->lock);
        return ready;
}

int snapshot_wait(struct snapshot *s, struct error *e) {
        uint64_t began = clock_mono_ns();
        int r;

        pthread_mutex_lock(&s->lock);
        while (s->busy)
                pthread_cond_wait(&s->changed, &s->lock);
        r = s->why.code ? error_set(e, s->why.code, "%s", s->why.text) : 0;
        pthread_mutex_unlock(&s->lock);
        s->waited_ns += clock_mono_ns() - began;
        return r;
}

uint64_t snapshot_take_waited(struct snapshot *s) {
        uint64_t ns = s->waited_ns;

        s->waited_ns = 0;
        return ns;
}

uint64_t snapshot_newest(const struct snapshot *s, const void **ret_image, size_t *ret_len, const char **ret_state) {
        if (s->slot.step) {
                *ret_image = s->image;
                *ret_len = shard_layout_bytes(s->shard);
                *ret_state = s->state;
        }
        return s->slot.step;
}

/* ------------------------------------------------------------------ pinned: for a save */

int snapshot_pin(struct snapshot *s) {
        int r = s->slot.step ? replica_pin(s->replica) : -ENOENT;

        if (r < 0)
                return r;
        pthread_mutex_lock(&s->lock);
        s->pinned_step = s->slot.step;
        s->pinned_whole = !s->busy;
        s->pinned_digest = s->digest;
        s->pinned_why = s->why;
        pthread_mutex_unlock(&s->lock);
        return 0;
}

int snapshot_pinned(struct snapshot *s, struct digest *ret, struct error *e) {
        int r = 0;

        pthread_mutex_lock(&s->lock);
        while (!s->pinned_whole)
                pthread_cond_wait(&s->changed, &s->lock);
        if (s->pinned_why.code)
                r = error_set(e, s->pinned_why.code, "%s", s->pinned_why.text);
        else
                *ret = s->pinned_digest;
        pthread_mutex_unlock(&s->lock);
        return r;
}

void snapshot_unpin(struct snapshot *s) {
        pthread_mutex_lock(&s->lock);
        s->pinned_step = 0;
        pthread_mutex_unlock(&s->lock);
        replica_unpin(s->replica);
}

/* ------------------------------------------------------------------ back */

struct check {
        const void *payload;
        size_t bytes;
        struct digest found;
};

static void *make_digest(void *arg) {
        struct check *c = arg;

        c->found = digest_of(c->payload, c->bytes);
        return NULL;
}

/* The digest is made while the payload is copied into the device's buffers: both read all of it. What does not match is never used: the trainer's state counts when this has succeeded. */
static int read_verified(struct snapshot *s, const struct replica_slot *slot, const void *payload, char **ret_state, struct error *e) {
        struct digest want = { .hi = slot->digest_hi, .lo = slot->digest_lo };
        struct check c = { .payload = payload, .bytes = (size_t)slot->bytes };
        pthread_t thread;
        int r, started = start_thread(&thread, make_digest, &c);

        r = shard_read(s->shard, s->ops, s->stream, payload, slot->bytes, ret_state, e);
        if (started == 0)
                (void)pthread_join(thread, NULL);
        else
                (void)make_digest(&c);
        if (digest_equal(c.found, want))
                return r;
        return error_set(e, -EBADMSG, "replica segment: the snapshot of step %" PRIu64 " (%" PRIu64 " bytes) does not match its digest", slot->step, slot->bytes);
}

int snapshot_restore(struct snapshot *s, uint64_t step, uint64_t epoch, struct error *e) {
        const struct replica_slot *slot;
        const void *payload;
        _cleanup_free_ char *state = NULL;
        int r;

        /* One that could not be taken says nothing about those that are whole. */
        (void)snapshot_wait(s, NULL);
        pthread_mutex_lock(&s->lock);
        s->why = (struct error){ 0 };
        pthread_mutex_unlock(&s->lock);
        r = replica_find(s->replica, step, 0, &slot, &payload, e);
        if (r < 0)
                return r;
        if (slot->job_id != s->id->job || slot->rank != s->id->rank || strncmp(slot->layout, s->layout, sizeof(slot->layout)) != 0)
                return error_set(e, -EBADMSG, "snapshot of step %" PRIu64 ": found job %" PRIu64 " rank %" PRIu64 " layout %s, expected job %" PRIu64 " rank %" PRIu32 " layout %s",
                                 step, slot->job_id, slot->rank, slot->layout, s->id->job, s->id->rank, s->layout);
        if (epoch && slot->epoch != epoch)
                return error_set(e, -ESTALE, "snapshot of step %" PRIu64 ": found one of epoch %" PRIu64 ", expected epoch %" PRIu64, step, slot->epoch, epoch);
        r = read_verified(s, slot, payload, &state, e);
        if (r < 0)
                return r;
        return trainer_set_state_json(s->trainer, state, e);
}
