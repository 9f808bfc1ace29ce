/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which rank is stuck, from whom the others waited for in vain.  Only the neighbours of a stuck rank name it; whoever waits for those names them.  Therefore the names are followed: a
 * chain that ends at a rank which said nothing itself accuses that rank.  One that says nothing and that nobody waited for directly has only not noticed yet.
 */
#include "daemon/core/core.h"

static bool spoke(const struct job *j, int i) {
        return j->ranks[i].fault_epoch == j->epoch;
}

void stuck_note(struct job *j, uint32_t rank, int32_t peer, bool timeout) {
        struct rank *r = &j->ranks[rank];

        r->fault_epoch = j->epoch;
        r->fault_peer = peer >= 0 && peer < j->world && (uint32_t)peer != rank ? peer : -1;
        r->fault_timeout = timeout;
}

bool stuck_all_spoke(const struct job *j) {
        int n = 0;

        for (int i = 0; i < j->world; i++)
                n += spoke(j, i);
        return n >= j->world - 1;
}

/* Where the chain of names from rank i ends; -1: nowhere. */
static int accused(const struct job *j, int i) {
        for (int hops = 0; hops < j->world && i >= 0; hops++) {
                if (!spoke(j, i))
                        return i;
                i = j->ranks[i].fault_peer;
        }
        return -1;
}

int stuck_rank(const struct job *j) {
        for (int i = 0; i < j->world; i++) {
                bool waited_for = false;
                int votes = 0;

                if (spoke(j, i))
                        continue;
                for (int k = 0; k < j->world; k++) {
                        votes += k != i && accused(j, k) == i;
                        waited_for = waited_for || (spoke(j, k) && j->ranks[k].fault_timeout && j->ranks[k].fault_peer == i);
                }
                if (waited_for && 2 * votes >= j->world - 1)
                        return i;
        }
        return -1;
}
