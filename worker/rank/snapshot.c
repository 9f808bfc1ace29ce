/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/rank/snapshot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/hash.h"
#include "proto/replica.h"

struct snapshot {
        const struct identity *id;
        struct trainer *trainer;
        const struct dev_ops *ops;
        struct dev_stream *stream;
        struct shard_layout *shard;
        struct replica *replica;
        uint64_t shard_count;
        char layout[REPLICA_LAYOUT_SIZE];
        /* the newest */
        uint64_t step;
        const void *image;
        char state[TRAINER_STATE_JSON_MAX];
};

DEFINE_CLEANUP(struct snapshot *, snapshot_free);

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
        trainer_state(t, &list, &n);
        r = shard_layout_new(list, n, TRAINER_STATE_JSON_MAX, &s->shard, e);
        if (r == 0)
                r = replica_size(fd, shard_layout_bytes(s->shard), e);
        if (r == 0)
                r = replica_map(fd, &s->replica, e);
        if (r < 0)
                return r;
        *ret = STEAL_PTR(s);
        return 0;
}

struct snapshot *snapshot_free(struct snapshot *s) {
        if (!s)
                return NULL;
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

int snapshot_take(struct snapshot *s, uint64_t epoch, struct error *e) {
        size_t bytes = shard_layout_bytes(s->shard);
        struct replica_slot slot = { .step = trainer_step_number(s->trainer), .epoch = epoch, .job_id = s->id->job, .rank = s->id->rank,
                                     .shard_count = s->shard_count, .bytes = bytes };
        void *image = NULL;
        int r;

        s->step = 0;
        memcpy(slot.layout, s->layout, sizeof(slot.layout));
        r = trainer_state_json(s->trainer, s->state, sizeof(s->state), e);
        if (r == 0)
                r = replica_begin(s->replica, slot.step, &image, e);
        if (r == 0)
                r = shard_write(s->shard, s->ops, s->stream, s->state, image, e);
        if (r < 0)
                return r;
        r = replica_commit(s->replica, &slot, digest_of(image, bytes));
        if (r < 0)
                return error_errno(e, -r, "snapshot of step %" PRIu64, slot.step);
        s->step = slot.step;
        s->image = image;
        return 0;
}

uint64_t snapshot_newest(const struct snapshot *s, const void **ret_image, size_t *ret_len, const char **ret_state) {
        if (s->step) {
                *ret_image = s->image;
                *ret_len = shard_layout_bytes(s->shard);
                *ret_state = s->state;
        }
        return s->step;
}

int snapshot_restore(struct snapshot *s, uint64_t step, uint64_t epoch, struct error *e) {
        const struct replica_slot *slot;
        const void *payload;
        _cleanup_free_ char *state = NULL;
        int r = replica_find(s->replica, step, 1, &slot, &payload, e);

        if (r < 0)
                return r;
        if (slot->job_id != s->id->job || slot->rank != s->id->rank || strncmp(slot->layout, s->layout, sizeof(slot->layout)) != 0)
                return error_set(e, -EBADMSG, "snapshot of step %" PRIu64 ": found job %" PRIu64 " rank %" PRIu64 " layout %s, expected job %" PRIu64 " rank %" PRIu32 " layout %s",
                                 step, slot->job_id, slot->rank, slot->layout, s->id->job, s->id->rank, s->layout);
        if (epoch && slot->epoch != epoch)
                return error_set(e, -ESTALE, "snapshot of step %" PRIu64 ": found one of epoch %" PRIu64 ", expected epoch %" PRIu64, step, slot->epoch, epoch);
        r = shard_read(s->shard, s->ops, s->stream, payload, slot->bytes, &state, e);
        if (r < 0)
                return r;
        return trainer_set_state_json(s->trainer, state, e);
}
