/* SPDX-License-Identifier: Apache-2.0 */
/* What recovery tells the workers of a job. */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/core/recovery_private.h"

void order_starts(struct controller *c, struct job *j, struct node *n) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__StartRanks start = FP8CTL__V1__START_RANKS__INIT;
        _cleanup_free_ Fp8ctl__V1__RankStart *list = calloc((size_t)j->world, sizeof(*list));
        _cleanup_free_ Fp8ctl__V1__RankStart **ptrs = calloc((size_t)j->world, sizeof(*ptrs));

        if (!n->session || !list || !ptrs)
                return;
        for (int i = 0; i < j->world; i++) {
                struct rank *r = &j->ranks[i];
                Fp8ctl__V1__RankStart *s = &list[start.n_ranks];

                if (r->node != n || !r->start_pending)
                        continue;
                fp8ctl__v1__rank_start__init(s);
                s->rank = (uint32_t)i;
                s->incarnation = r->incarnation;
                s->device = r->device;
                ptrs[start.n_ranks++] = s;
                r->start_pending = false;
                r->since = core_now(c);
        }
        if (start.n_ranks == 0)
                return;
        start.job_id = j->id;
        start.epoch = j->epoch;
        start.job_file = (char *)layout_job_file(j);
        start.job_name = j->name;
        start.uid = j->uid;
        start.gid = j->gid;
        start.ranks = ptrs;
        start.cluster_id = c->cluster_id;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_START_RANKS;
        m.start_ranks = &start;
        node_send(c, n, &m);
}

void order_abort(struct controller *c, struct job *j, struct node *n, const char *why) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__AbortEpoch abort_epoch = FP8CTL__V1__ABORT_EPOCH__INIT;

        abort_epoch.job_id = j->id;
        abort_epoch.epoch = j->epoch;
        abort_epoch.reason = (char *)why;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_ABORT_EPOCH;
        m.abort_epoch = &abort_epoch;
        node_send(c, n, &m);
}

/* A job that was placed before may have copies on disks; in memory there is nothing of it any more. */
bool order_inventory_wanted(const struct job *j) {
        return !j->start_is_new || (j->spec->checkpoint.local_every > 0 && j->epoch > 1);
}

void order_inventory(struct controller *c, struct job *j, struct node *n) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__InventoryRequest req = FP8CTL__V1__INVENTORY_REQUEST__INIT;
        struct node **list;

        for (size_t i = 0; i < j->n_inventory_wait; i++)
                if (j->inventory_wait[i] == n)
                        goto send;
        list = realloc(j->inventory_wait, (j->n_inventory_wait + 1) * sizeof(*list));
        if (!list)
                return;
        j->inventory_wait = list;
        list[j->n_inventory_wait++] = n;
send:
        req.job_id = j->id;
        req.epoch = j->epoch;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_INVENTORY_REQUEST;
        m.inventory_request = &req;
        node_send(c, n, &m);
}

static char *rail_of(struct job *j, struct rank *r) {
        const struct device *d = r->rail_of == r->incarnation ? NULL : node_device(r->node, r->device);

        if (d) {
                memcpy(r->rail, d->rail, sizeof(r->rail));
                r->rail_of = r->incarnation;
                j->dirty = true;
        }
        return r->rail;
}

void order_plan(struct controller *c, struct job *j, struct node *only) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__RankPlan plan = FP8CTL__V1__RANK_PLAN__INIT;
        _cleanup_free_ Fp8ctl__V1__RankPeer *list = calloc((size_t)j->world, sizeof(*list));
        _cleanup_free_ Fp8ctl__V1__RankPeer **ptrs = calloc((size_t)j->world, sizeof(*ptrs));
        _cleanup_(replicas_message_free) struct replica_message replicas = { 0 };
        Fp8ctl__V1__LoadSource load = j->load;

        if (!list || !ptrs || replicas_message(c, j, &replicas) < 0)
                return; /* the deadline of restore finds the ranks not running and starts over */
        for (int i = 0; i < j->world; i++) {
                fp8ctl__v1__rank_peer__init(&list[i]);
                list[i].rank = (uint32_t)i;
                list[i].incarnation = j->ranks[i].incarnation;
                list[i].endpoint = j->ranks[i].endpoint ? j->ranks[i].endpoint : (char *)"";
                list[i].node = j->ranks[i].node->name;
                list[i].rail = rail_of(j, &j->ranks[i]);
                ptrs[i] = &list[i];
        }
        plan.job_id = j->id;
        plan.epoch = j->epoch;
        plan.mesh_key.data = j->mesh_key;
        plan.mesh_key.len = sizeof(j->mesh_key);
        plan.tp = (uint32_t)j->spec->parallel.tp;
        plan.pp = (uint32_t)j->spec->parallel.pp;
        plan.dp = (uint32_t)j->spec->parallel.dp;
        plan.peers = ptrs;
        plan.n_peers = (size_t)j->world;
        load.sources = replicas.source_ptrs;
        load.n_sources = replicas.n_sources;
        plan.load = &load;
        plan.replicas = &replicas.plan;
        plan.best_step = j->best_step > j->inc.best_step ? j->best_step : j->inc.best_step;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_RANK_PLAN;
        m.rank_plan = &plan;
        for (size_t i = 0; i < c->n_nodes; i++)
                if ((!only || only == c->nodes[i]) && job_on_node(j, c->nodes[i]))
                        node_send(c, c->nodes[i], &m);
}
