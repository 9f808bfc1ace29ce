/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a new epoch loads: the newest generation that covers every rank, in the memory or on the disk of the node where that rank will run or in a peer's memory, else the newest commit that is not known bad, else
 * the newest that is, else the checkpoint the job was submitted with, else a fresh initialisation.  A generation is whole only when all ranks wrote it under one epoch and one layout.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/core/core.h"

/* Its own node's memory or disk, or a copy that a peer keeps and gives to whoever proves to be that rank. After a job was taken off its nodes only disks have anything. */
static bool within_reach(const struct job *j, const struct generation *g) {
        if (g->rank >= (uint32_t)j->world || (g->shard_count != (uint32_t)j->world && !PLANTED(OLD_LAYOUT)))
                return false; /* of another layout */
        if (j->start_is_new && !g->disk)
                return false;
        return g->held ? replicas_give(g->node) : j->ranks[g->rank].node == g->node;
}

static bool covers(const struct job *j, const struct generation *want, bool *seen) {
        int n = 0;

        memset(seen, 0, (size_t)j->world * sizeof(*seen));
        for (size_t i = 0; i < j->n_generations; i++) {
                const struct generation *g = &j->generations[i];

                if (g->step != want->step || g->epoch != want->epoch || strcmp(g->layout, want->layout) != 0 || !within_reach(j, g) || seen[g->rank])
                        continue;
                seen[g->rank] = true;
                n++;
        }
        return n == j->world;
}

bool restore_barred(const struct job *j, const struct generation *g) {
        return j->bad_generation_step && g->step >= j->bad_generation_step && g->epoch <= j->bad_generation_epoch;
}

static const struct generation *newest_generation(const struct job *j) {
        _cleanup_free_ bool *seen = calloc((size_t)j->world, sizeof(*seen));
        const struct generation *best = NULL;

        for (size_t i = 0; seen && i < j->n_generations; i++) {
                const struct generation *g = &j->generations[i];

                if (g->rank != 0 || g->epoch < j->min_replica_epoch || restore_barred(j, g))
                        continue;
                if (best && (g->step < best->step || (g->step == best->step && g->epoch <= best->epoch)))
                        continue;
                if (covers(j, g, seen))
                        best = g;
        }
        return best;
}

static void use(struct job *j, Fp8ctl__V1__LoadSource__Kind kind, uint64_t step, uint64_t epoch, const char *path) {
        free(j->load_path);
        j->load_path = path ? strdup(path) : NULL;
        fp8ctl__v1__load_source__init(&j->load);
        j->load.kind = kind;
        j->load.step = step;
        j->load.generation_epoch = epoch;
        if (j->load_path)
                j->load.path = j->load_path;
        if (j->skip_to_step && kind != FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA && step == j->skip_from_step)
                j->load.data_step = j->skip_to_step;
}

/* Where a rank finds that generation, in the order in which it looks: its own node's memory, a peer's, its own node's disk. NULL: nowhere. */
static const struct generation *place_of(const struct job *j, const struct generation *chosen, uint32_t rank) {
        const struct generation *best = NULL;

        for (size_t i = 0; i < j->n_generations; i++) {
                const struct generation *g = &j->generations[i];

                if (g->rank != rank || g->step != chosen->step || g->epoch != chosen->epoch || !within_reach(j, g))
                        continue;
                if (!best || (best->disk && !g->disk) || (best->held && !g->held && !g->disk))
                        best = g;
        }
        return best;
}

static void say_where(struct job *j, const struct generation *chosen) {
        const struct node *from = NULL;
        char peer_text[120] = "", disk_text[60] = "";
        int peers = 0, disks = 0;
        bool several = false;

        for (int i = 0; i < j->world; i++) {
                const struct generation *g = place_of(j, chosen, (uint32_t)i);

                if (g && g->held) {
                        peers++;
                        several = several || (from && from != g->node);
                        from = g->node;
                }
                disks += g && g->disk;
        }
        if (peers)
                snprintf(peer_text, sizeof(peer_text), ", %d of %d slices from peers (%.60s%s)", peers, j->world, from->name, several ? " and others" : "");
        if (disks && disks < j->world)
                snprintf(disk_text, sizeof(disk_text), ", %d of %d slices from their nodes' disks", disks, j->world);
        if (disks == j->world)
                snprintf(j->inc.source, sizeof(j->inc.source), "from copies on the nodes' disks");
        else
                snprintf(j->inc.source, sizeof(j->inc.source), "in replica memory%s%s", peer_text, disk_text);
}

uint64_t restore_generation_step(const struct job *j) {
        const struct generation *g = newest_generation(j);

        return g ? g->step : 0;
}

bool restore_has_source(const struct job *j) {
        return newest_generation(j) || checkpoint_newest(j);
}

/* Found bad once: its file system may have been away then.  Better tried again than the job begun anew. */
static const struct checkpoint *last_resort(const struct job *j) {
        const struct checkpoint *best = NULL;

        for (size_t i = 0; i < j->n_checkpoints; i++)
                if (!j->checkpoints[i].removing && (!best || j->checkpoints[i].step >= best->step))
                        best = &j->checkpoints[i];
        return best;
}

void restore_choose(struct controller *c, struct job *j) {
        const struct generation *g = newest_generation(j);
        const struct checkpoint *k = checkpoint_newest(j);

        if (!g && !k)
                k = last_resort(j);
        if (g && (!k || g->step >= k->step)) {
                use(j, FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA, g->step, g->epoch, NULL);
                say_where(j, g);
        } else if (k) {
                use(j, FP8CTL__V1__LOAD_SOURCE__KIND__CHECKPOINT, k->step, k->epoch, k->path);
                snprintf(j->inc.source, sizeof(j->inc.source), "from the checkpoint of step %" PRIu64, k->step);
        } else if (j->from_checkpoint && j->from_checkpoint[0]) {
                use(j, FP8CTL__V1__LOAD_SOURCE__KIND__CHECKPOINT, 0, 0, j->from_checkpoint);
                snprintf(j->inc.source, sizeof(j->inc.source), "from the checkpoint it was submitted with");
        } else {
                use(j, FP8CTL__V1__LOAD_SOURCE__KIND__INITIALISE, 0, 0, NULL);
                snprintf(j->inc.source, sizeof(j->inc.source), "initialised from the seed");
        }
        (void)c;
}
