// SPDX-License-Identifier: Apache-2.0
/* The groups a rank reduces in. Their order is that of the group index, so the order of sums follows the layout and nothing else. */
#include <errno.h>
#include <stdlib.h>

#include "worker/train/trainer_private.h"

static int rank_at(const struct layout *l, int pp, int dp, int tp) {
        return (pp * l->dp + dp) * l->tp + tp;
}

/* The world agrees in host memory; the others move what lies on the device. */
static int group(struct comm_mesh *m, const int *ranks, int n, enum flight_group tag, struct comm **ret, struct error *e) {
        int r = tag == FLIGHT_WORLD ? comm_new(m, ranks, n, (uint32_t)tag, ret, e) : comm_new_device(m, ranks, n, (uint32_t)tag, ret, e);

        return r < 0 ? error_prefix(e, "group %d of %d ranks", (int)tag, n) : r;
}

static int build(struct groups *g, const struct layout *l, bool tied, struct comm_mesh *m, int *ranks, struct error *e) {
        for (int i = 0; i < l->n_ranks; i++)
                ranks[i] = i;
        TRY(group(m, ranks, l->n_ranks, FLIGHT_WORLD, &g->world, e));
        for (int i = 0; i < l->tp; i++)
                ranks[i] = rank_at(l, l->pp_index, l->dp_index, i);
        TRY(group(m, ranks, l->tp, FLIGHT_TP, &g->tp, e));
        for (int i = 0; i < l->dp; i++)
                ranks[i] = rank_at(l, l->pp_index, i, l->tp_index);
        TRY(group(m, ranks, l->dp, FLIGHT_DP, &g->dp, e));
        for (int i = 0; i < l->pp; i++)
                ranks[i] = rank_at(l, i, l->dp_index, l->tp_index);
        TRY(group(m, ranks, l->pp, FLIGHT_PP, &g->pp, e));
        for (int i = 0; i < l->tp * l->dp; i++)
                ranks[i] = l->pp_index * l->tp * l->dp + i;
        TRY(group(m, ranks, l->tp * l->dp, FLIGHT_STAGE, &g->stage, e));
        if (!tied || l->pp == 1 || !(l->first || l->last))
                return 0;
        ranks[0] = rank_at(l, 0, l->dp_index, l->tp_index);
        ranks[1] = rank_at(l, l->pp - 1, l->dp_index, l->tp_index);
        return group(m, ranks, 2, FLIGHT_EMBED, &g->embed, e);
}

int groups_new(struct groups *g, const struct layout *l, bool tied, struct comm_mesh *m, struct error *e) {
        int *ranks = malloc(sizeof(*ranks) * (size_t)(l->n_ranks + 2));
        int r;

        *g = (struct groups){ 0 };
        if (!ranks)
                return error_set(e, -ENOMEM, "no memory for the groups");
        r = build(g, l, tied, m, ranks, e);
        free(ranks);
        if (r != 0)
                groups_free(g);
        return r;
}

void groups_free(struct groups *g) {
        comm_free(g->embed);
        comm_free(g->stage);
        comm_free(g->pp);
        comm_free(g->dp);
        comm_free(g->tp);
        comm_free(g->world);
        *g = (struct groups){ 0 };
}
