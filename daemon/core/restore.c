/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a new epoch loads: the newest generation in replica memory that covers every rank on the node where that rank will run, else the newest commit that is not known bad, else
 * the checkpoint the job was submitted with, else a fresh initialisation.  A generation is whole only when all ranks wrote it under one epoch and one layout.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/core/core.h"

static bool covers(const struct job *j, const struct generation *want, bool *seen) {
        int n = 0;

        memset(seen, 0, (size_t)j->world * sizeof(*seen));
        for (size_t i = 0; i < j->n_generations; i++) {
                const struct generation *g = &j->generations[i];

                if (g->step != want->step || g->epoch != want->epoch || strcmp(g->layout, want->layout) != 0 || j->ranks[g->rank].node != g->node || seen[g->rank])
                        continue;
                seen[g->rank] = true;
                n++;
        }
        return n == j->world;
}

static const struct generation *newest_generation(const struct job *j) {
        _cleanup_free_ bool *seen = calloc((size_t)j->world, sizeof(*seen));
        const struct generation *best = NULL;

        for (size_t i = 0; seen && i < j->n_generations; i++) {
                const struct generation *g = &j->generations[i];

                if (g->rank != 0 || g->epoch < j->min_replica_epoch || (j->bad_generation_step && g->step == j->bad_generation_step))
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

void restore_choose(struct controller *c, struct job *j) {
        const struct generation *g = j->start_is_new ? NULL : newest_generation(j);
        const struct checkpoint *k = checkpoint_newest(j);

        if (g && (!k || g->step >= k->step)) {
                use(j, FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA, g->step, g->epoch, NULL);
                snprintf(j->inc.source, sizeof(j->inc.source), "in replica memory");
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
