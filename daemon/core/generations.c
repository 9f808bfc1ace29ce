/* SPDX-License-Identifier: Apache-2.0 */
/* What nodes say that they hold in replica memory. */
#include <stdlib.h>

#include "daemon/core/recovery_private.h"

#define GENERATIONS_PER_RANK 40u   /* told by one node for one rank, at most: REPLICA_SLOTS of its own and of a peer's copy, and those on its disk */

/* What a node said about its replica memory is void: it is lost, or it says hello again and may have been through a boot. */
void generations_forget(struct job *j, const struct node *n) {
        size_t kept = 0;

        for (size_t i = 0; i < j->n_generations; i++)
                if (j->generations[i].node != n)
                        j->generations[kept++] = j->generations[i];
        j->n_generations = kept;
}

void inventory_forget(struct job *j, const struct node *n) {
        for (size_t i = 0; i < j->n_inventory_wait; i++)
                if (j->inventory_wait[i] == n)
                        j->inventory_wait[i--] = j->inventory_wait[--j->n_inventory_wait];
        generations_forget(j, n);
}

void recovery_inventory(struct controller *c, struct job *j, struct node *n, const Fp8ctl__V1__Inventory *m) {
        struct generation *list;
        bool waited = false;

        if (j->rec != REC_FENCE || (m->epoch != j->epoch && !PLANTED(NO_EPOCH_CHECK))) {
                core_drop(c, DROP_EPOCH, "inventory");
                return;
        }
        for (size_t i = 0; i < j->n_inventory_wait && !waited; i++)
                if (j->inventory_wait[i] == n) {
                        j->inventory_wait[i] = j->inventory_wait[--j->n_inventory_wait];
                        waited = true;
                }
        if (!waited)
                return; /* a second answer */
        if (m->n_generations > (size_t)j->rank_room * GENERATIONS_PER_RANK) {
                core_drop(c, DROP_MALFORMED, "inventory");
                recovery_check(c, j);
                return;
        }
        list = realloc(j->generations, (j->n_generations + m->n_generations + 1) * sizeof(*list));
        if (list) {
                j->generations = list;
                for (size_t i = 0; i < m->n_generations; i++) {
                        const Fp8ctl__V1__Generation *g = m->generations[i];

                        if (!g || g->shard_count == 0 || g->shard_count > JOB_MAX_RANKS || g->rank >= g->shard_count || g->step > (uint64_t)j->spec->train.steps || g->epoch >= j->epoch) {
                                core_drop(c, DROP_MALFORMED, "generation");
                                continue;
                        }
                        list[j->n_generations] = (struct generation){ .rank = g->rank, .node = n, .step = g->step, .epoch = g->epoch, .held = g->held && !g->disk, .disk = g->disk,
                                                                                 .shard_count = g->shard_count };
                        core_text(list[j->n_generations].layout, sizeof(list[0].layout), g->layout);
                        j->n_generations++;
                }
        }
        rescue_listed(c, j, n);
        if (job_placed(j))
                recovery_check(c, j);
}
