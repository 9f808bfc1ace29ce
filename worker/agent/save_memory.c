/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shards of a checkpoint out of this node's replica memory, for ranks that may be gone: in a thread, with the rights of the user they ran as, each digest compared with the snapshot's.  The memory stays
 * as it is: its job is fenced, and nothing is released before the controller says so.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "format/shard.h"
#include "format/shard_file.h"
#include "proto/job_spec.h"
#include "proto/message.h"
#include "proto/replica.h"
#include "worker/agent/agent_private.h"
#include "worker/agent/user.h"

struct written {
        uint32_t rank;
        uint64_t bytes;
        char *file;
        char digest[DIGEST_HEX_SIZE];
};

struct save_memory {
        struct agent *agent;
        Fp8ctl__V1__SaveMemory *order; /* a copy */
        struct memory memory;
        struct job_spec *spec;
        struct written *written; /* [n_ranks] */
        size_t n_written;
        char *state; /* when rank 0 is one of ours */
        struct error error;
};

DEFINE_CLEANUP(struct shard_view *, shard_view_free);

static bool wanted(const struct save_memory *s, uint64_t rank) {
        for (size_t i = 0; i < s->n_written; i++)
                if (s->written[i].rank == rank)
                        return false; /* our own rank's comes before a peer's copy */
        for (size_t i = 0; i < s->order->n_ranks; i++)
                if (s->order->ranks[i] == rank)
                        return true;
        return false;
}

static int take_state(struct save_memory *s, const struct replica_slot *slot, const void *payload, struct error *e) {
        _cleanup_(shard_view_freep) struct shard_view *v = NULL;
        int r = shard_view_open(payload, slot->bytes, &v, e);

        if (r < 0)
                return r;
        s->state = job_manifest_state(s->spec, slot->layout, shard_view_state(v));
        return s->state ? 0 : error_set(e, -EBADMSG, "the snapshot of rank 0 holds no state");
}

static int write_one(struct save_memory *s, const struct replica_slot *slot, const void *payload, struct error *e) {
        const struct block_writer_config c = { .bytes_per_s = (uint64_t)s->spec->checkpoint.bandwidth };
        struct digest want = { .hi = slot->digest_hi, .lo = slot->digest_lo }, got;
        struct written *w = &s->written[s->n_written];
        int r;

        w->file = shard_file_name((int)slot->rank, (int)slot->shard_count);
        if (!w->file)
                return error_errno(e, ENOMEM, "shard");
        s->n_written++;
        w->rank = (uint32_t)slot->rank;
        w->bytes = slot->bytes;
        digest_hex(want, w->digest);
        r = shard_file_write(s->order->directory, w->file, payload, slot->bytes, &c, &want, &got, e);
        return r == 0 && slot->rank == 0 ? take_state(s, slot, payload, e) : r;
}

static int look(struct save_memory *s, int fd, struct error *e) {
        const struct replica_slot *slot;
        struct replica *map = NULL;
        const void *payload;
        int r = 0;

        if (replica_map(fd, &map, NULL) < 0)
                return 0; /* nothing ever was in it */
        if (replica_find(map, s->order->step, 0, &slot, &payload, NULL) == 0 && slot->job_id == s->order->job_id && slot->epoch == s->order->generation_epoch &&
            slot->shard_count == s->order->shard_count && slot->rank < slot->shard_count && wanted(s, slot->rank))
                r = write_one(s, slot, payload, e);
        replica_unmap(map);
        return r;
}

static void work(void *arg) {
        struct save_memory *s = arg;
        int r = job_spec_parse(s->order->job_file, strlen(s->order->job_file), "job", NULL, &s->spec, &s->error);

        if (r < 0)
                return;
        user_enter(s->order->uid, s->order->gid);
        for (size_t i = 0; i < s->memory.n && r == 0; i++)
                r = look(s, s->memory.fds[i], &s->error);
        user_leave();
        if (r == 0 && s->n_written < s->order->n_ranks)
                error_set(&s->error, -ENOENT, "step %" PRIu64 ": found snapshots of %zu ranks, expected %zu", s->order->step, s->n_written, s->order->n_ranks);
}

static struct save_memory *save_memory_free(struct save_memory *s) {
        if (!s)
                return NULL;
        for (size_t i = 0; i < s->n_written; i++)
                free(s->written[i].file);
        free(s->written);
        free(s->state);
        memory_free(&s->memory);
        job_spec_free(s->spec);
        if (s->order)
                fp8ctl__v1__save_memory__free_unpacked(s->order, NULL);
        free(s);
        return NULL;
}

static void done(void *arg) {
        struct save_memory *s = arg;
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__MemorySaved out = FP8CTL__V1__MEMORY_SAVED__INIT;
        _cleanup_free_ Fp8ctl__V1__ShardInfo *list = calloc(s->n_written + 1, sizeof(*list));
        _cleanup_free_ Fp8ctl__V1__ShardInfo **ptrs = calloc(s->n_written + 1, sizeof(*ptrs));

        for (size_t i = 0; list && ptrs && i < s->n_written && !s->error.code; i++) {
                fp8ctl__v1__shard_info__init(&list[i]);
                list[i].file = s->written[i].file;
                list[i].bytes = s->written[i].bytes;
                list[i].digest = s->written[i].digest;
                list[i].rank = s->written[i].rank;
                ptrs[out.n_shards++] = &list[i];
        }
        if (!list || !ptrs)
                error_errno(&s->error, ENOMEM, "save");
        out.job_id = s->order->job_id;
        out.epoch = s->order->epoch;
        out.step = s->order->step;
        out.attempt = s->order->attempt;
        out.shards = ptrs;
        if (s->state)
                out.state_json = s->state;
        if (s->error.code) {
                out.error = s->error.text;
                log_warning("job %" PRIu64 ": step %" PRIu64 " in replica memory could not be saved: %s", out.job_id, out.step, s->error.text);
        }
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_MEMORY_SAVED;
        m.memory_saved = &out;
        stream_send(s->agent, &m);
        save_memory_free(s);
}

void save_memory_begin(struct agent *a, const Fp8ctl__V1__SaveMemory *m) {
        struct save_memory *s = calloc(1, sizeof(*s));

        if (!s)
                return; /* the controller waits recovery.rescue_ms */
        s->agent = a;
        s->order = (Fp8ctl__V1__SaveMemory *)message_copy(&m->base);
        s->written = calloc(m->n_ranks + 1, sizeof(*s->written));
        if (!s->order || !s->written || memory_collect(a, m->job_id, &s->memory) < 0) {
                save_memory_free(s);
                return;
        }
        if (tasks_run(a->tasks, work, done, s, &s->error) < 0)
                done(s);
}
