/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which snapshots of a job lie whole in this node's replica memory: every valid slot.  And which are on its disk.  Payloads are read, and verified by their digests, only when they are loaded
 * or saved: the job stands still meanwhile, and a node may have hundreds of gigabytes of them.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/hash.h"
#include "base/log.h"
#include "proto/replica.h"
#include "worker/agent/agent_private.h"
#include "worker/agent/local_copies.h"

#define ON_DISK_MAX 32 /* of one rank; more than checkpoint.local_keep and the one being written */

struct found {
        struct replica_slot slot;
        bool held, disk;
        char digest[DIGEST_HEX_SIZE];
};

struct inventory {
        struct agent *agent;
        uint64_t job_id, epoch;
        struct memory memory;
        struct found *found;
        size_t n_found;
        char *local_dir; /* NULL: none */
        char cluster[40];
};

static void look(struct inventory *v, int fd, bool held) {
        struct replica *r = NULL;
        uint64_t steps[REPLICA_SLOTS];
        int n;

        if (replica_map(fd, &r, NULL) < 0)
                return; /* not sized yet: nothing in it */
        n = replica_steps(r, steps);
        for (int i = 0; i < n; i++) {
                const struct replica_slot *slot;
                const void *payload;
                struct found *f = &v->found[v->n_found];

                if (replica_find(r, steps[i], 0, &slot, &payload, NULL) < 0 || slot->job_id != v->job_id)
                        continue;
                memcpy(&f->slot, slot, sizeof(f->slot));
                f->held = held;
                f->disk = false;
                digest_hex((struct digest){ .hi = slot->digest_hi, .lo = slot->digest_lo }, f->digest);
                v->n_found++;
        }
        replica_unmap(r);
}

static void look_on_disk(struct inventory *v) {
        _cleanup_free_ struct local_copy *list = NULL;
        struct error e = { 0 };
        struct found *more;
        size_t n = 0;

        if (local_copies_of(v->local_dir, v->cluster, v->job_id, &list, &n, &e) < 0) {
                log_warning("copies of job %" PRIu64 " on this node's disk: %s", v->job_id, e.text);
                return;
        }
        more = reallocarray(v->found, v->n_found + n + 1, sizeof(*more));
        if (!more)
                return;
        v->found = more;
        for (size_t i = 0, of_rank = 0; i < n; i++) { /* of each rank together, the newest first */
                const struct local_copy *c = &list[i];
                struct found *f = &more[v->n_found];

                of_rank = i > 0 && list[i - 1].rank == c->rank ? of_rank + 1 : 0;
                if (of_rank >= ON_DISK_MAX || c->job != v->job_id)
                        continue;
                *f = (struct found){ .slot = { .step = c->step, .epoch = c->epoch, .job_id = c->job, .rank = c->rank, .shard_count = c->ranks, .bytes = c->bytes }, .disk = true };
                snprintf(f->slot.layout, sizeof(f->slot.layout), "%s", c->layout);
                digest_hex(c->digest, f->digest);
                v->n_found++;
        }
}

static void work(void *arg) {
        struct inventory *v = arg;

        for (size_t i = 0; i < v->memory.n; i++)
                look(v, v->memory.fds[i], i >= v->memory.n_own);
        if (v->local_dir)
                look_on_disk(v);
}

static struct inventory *inventory_free(struct inventory *v) {
        if (!v)
                return NULL;
        memory_free(&v->memory);
        free(v->found);
        free(v->local_dir);
        free(v);
        return NULL;
}

static void answer(struct inventory *v) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__Inventory out = FP8CTL__V1__INVENTORY__INIT;
        _cleanup_free_ Fp8ctl__V1__Generation *g = calloc(v->n_found + 1, sizeof(*g));
        _cleanup_free_ Fp8ctl__V1__Generation **list = calloc(v->n_found + 1, sizeof(*list));

        if (!g || !list)
                return;
        for (size_t i = 0; i < v->n_found; i++) {
                const struct found *f = &v->found[i];

                fp8ctl__v1__generation__init(&g[i]);
                g[i].rank = (uint32_t)f->slot.rank;
                g[i].step = f->slot.step;
                g[i].epoch = f->slot.epoch;
                g[i].layout = (char *)f->slot.layout;
                g[i].digest = (char *)f->digest;
                g[i].bytes = f->slot.bytes;
                g[i].shard_count = (uint32_t)f->slot.shard_count;
                g[i].held = f->held;
                g[i].disk = f->disk;
                list[i] = &g[i];
        }
        out.job_id = v->job_id;
        out.epoch = v->epoch;
        out.generations = list;
        out.n_generations = v->n_found;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_INVENTORY;
        m.inventory = &out;
        stream_send(v->agent, &m);
}

static void done(void *arg) {
        answer(arg);
        inventory_free(arg);
}

void inventory_begin(struct agent *a, const Fp8ctl__V1__InventoryRequest *m) {
        struct inventory *v = calloc(1, sizeof(*v));
        struct error e = { 0 };

        if (!v)
                return;
        v->agent = a;
        v->job_id = m->job_id;
        v->epoch = m->epoch;
        v->local_dir = a->config->local_dir ? strdup(a->config->local_dir) : NULL;
        if (memory_collect(a, m->job_id, &v->memory) == 0)
                v->found = calloc(v->memory.n * REPLICA_SLOTS + 1, sizeof(*v->found));
        if (!v->found) {
                inventory_free(v);
                return;
        }
        memcpy(v->cluster, a->cluster, sizeof(v->cluster));
        if (tasks_run(a->tasks, work, done, v, &e) < 0) {
                log_warning("inventory of job %" PRIu64 ": %s", m->job_id, e.text);
                done(v); /* an empty one: better than none, the job falls back to its last commit */
        }
}
