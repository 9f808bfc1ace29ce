/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Placement is greedy over windows: a window is tp neighbouring devices of one node that could hold one tensor-parallel group.  Group after group takes the
 * cheapest window left.  Cost, in this order: busy devices in it (reservation only), more than one NVLink domain, not where the group was, not a node the job has been on or is
 * already being put on, room that would be left on the node (fill the fullest node first, so that large holes stay large).  Greedy by a preference
 * can cut a row of devices badly (1-2 taken, 0 and 3 left for a pair), so a wish that fails is tried again with less effort, at last with windows taken
 * from the left where nothing is cut: that try finds a placement whenever one exists (unless ranks are pinned).
 *
 * The cheapest window of a node is the same for every group, but for one that was on that node: it is kept until something is taken there.
 */
#include "daemon/core/scheduler.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/core/planted.h"
#include "daemon/core/rank_plan.h"

/* The cheapest window of a node. */
struct cheapest {
        bool known;
        size_t at;
        int64_t cost; /* -1: none */
};

struct work {
        const struct sched_node *nodes;
        size_t n;
        const struct sched_want *want;
        bool **taken;      /* [node][device position] */
        int *used;         /* [node]: devices this job takes there */
        bool *was;         /* [node]: the job has been there */
        struct cheapest *cheapest; /* [node]: for a group that was not there */
        int effort; /* 2: with preferences, 1: few busy devices, 0: from the left */
        int kind, make; /* make 0: any */
};

struct window {
        int node;
        size_t at;
        int64_t cost;
};

static struct work *work_free(struct work *w) {
        if (w->taken)
                for (size_t i = 0; i < w->n; i++)
                        free(w->taken[i]);
        free(w->taken);
        free(w->used);
        free(w->was);
        free(w->cheapest);
        w->cheapest = NULL;
        w->taken = NULL;
        w->used = NULL;
        w->was = NULL;
        return NULL;
}

static int work_init(struct work *w) {
        w->taken = calloc(w->n + 1, sizeof(*w->taken));
        w->used = calloc(w->n + 1, sizeof(*w->used));
        w->was = calloc(w->n + 1, sizeof(*w->was));
        w->cheapest = calloc(w->n + 1, sizeof(*w->cheapest));
        if (!w->taken || !w->used || !w->was || !w->cheapest)
                return -ENOMEM;
        for (size_t i = 0; i < w->n; i++) {
                w->taken[i] = calloc(w->nodes[i].n_devices + 1, sizeof(bool));
                if (!w->taken[i])
                        return -ENOMEM;
        }
        return 0;
}

static bool device_fits(const struct work *w, size_t node, size_t at) {
        const struct sched_device *d = &w->nodes[node].devices[at];

        if (w->taken[node][at] || d->kind != w->kind || (w->make && w->nodes[node].make != w->make) || d->state == SCHED_GONE || (d->state == SCHED_BUSY && !w->want->reserve))
                return false;
        return !d->memory_bytes || d->memory_bytes >= w->want->bytes_per_rank - (d->in_host_memory ? 0 : w->want->snapshot_bytes);
}

static int64_t free_left(const struct work *w, size_t node) {
        int64_t left = 0;

        for (size_t i = 0; i < w->nodes[node].n_devices; i++)
                left += device_fits(w, node, i);
        return left;
}

/* Cost of the window, or -1: not usable. */
static int64_t window_cost(const struct work *w, int group, size_t node, size_t at, int64_t left) {
        const struct sched_want *want = w->want;
        const struct sched_node *nd = &w->nodes[node];
        bool same = want->prefer != NULL;
        int64_t busy = 0, cold = 0;
        bool split = false;

        for (int t = 0; t < want->tp; t++) {
                const struct sched_device *d = &nd->devices[at + (size_t)t];

                if (!device_fits(w, node, at + (size_t)t) || d->index != nd->devices[at].index + (uint32_t)t)
                        return -1;
                busy += d->state == SCHED_BUSY;
                cold += !d->warm;
                split = split || (d->domain && nd->devices[at].domain && d->domain != nd->devices[at].domain);
                if (same)
                        same = want->prefer[group * want->tp + t].node == (int)node && want->prefer[group * want->tp + t].device == d->index;
        }
        if (w->effort == 0)
                return 0;
        if (w->effort == 1)
                return busy << 40 | (int64_t)split << 39;
        return busy << 50 | (int64_t)split << 49 | cold << 40 | (int64_t)!same << 39 | (int64_t)!(w->was[node] || w->used[node]) << 38 | left;
}

static struct cheapest look_at_node(const struct work *w, int group, size_t node) {
        struct cheapest best = { .known = true, .cost = -1 };
        int64_t left = w->nodes[node].n_devices < (size_t)w->want->tp ? 0 : free_left(w, node);

        for (size_t at = 0; left >= w->want->tp && at + (size_t)w->want->tp <= w->nodes[node].n_devices; at++) {
                int64_t cost = window_cost(w, group, node, at, left);

                if (cost >= 0 && (best.cost < 0 || cost < best.cost)) {
                        best.at = at;
                        best.cost = cost;
                }
        }
        return best;
}

static uint64_t rails_at(const struct work *w, const struct sched_slot *s) {
        const struct sched_node *nd = &w->nodes[s->node];

        for (size_t i = 0; i < nd->n_devices; i++)
                if (nd->devices[i].index == s->device)
                        return nd->devices[i].rails;
        return 0;
}

/* Among windows of one cost: what goes from node to node in the ring should stay on its rail. placed: of the groups before this one. */
static void choose_rails(const struct work *w, int group, const struct sched_slot *placed, struct window *win) {
        const struct sched_want *want = w->want;
        const struct sched_slot *before = group % want->dp ? &placed[(group - 1) * want->tp] : NULL;
        const struct sched_node *nd = &w->nodes[win->node];
        size_t first = win->at;
        int64_t left;
        int most = 0;

        if (w->effort < 2 || !before || before->node == win->node || !nd->devices[win->at].rails)
                return;
        left = free_left(w, (size_t)win->node);
        for (size_t at = first; at + (size_t)want->tp <= nd->n_devices; at++) {
                int same = 0;

                if (window_cost(w, group, (size_t)win->node, at, left) != win->cost)
                        continue;
                for (int t = 0; t < want->tp; t++)
                        same += (nd->devices[at + (size_t)t].rails & rails_at(w, &before[t])) != 0;
                if (same > most) {
                        most = same;
                        win->at = at;
                }
        }
}

static bool find_window(const struct work *w, int group, struct window *ret) {
        struct window best = { .node = -1 };
        int was_on = w->want->prefer ? w->want->prefer[group * w->want->tp].node : -1;

        for (size_t i = 0; i < w->n; i++) {
                struct cheapest here;

                if ((int)i == was_on) {
                        here = look_at_node(w, group, i);
                } else {
                        if (!w->cheapest[i].known)
                                w->cheapest[i] = look_at_node(w, group, i);
                        here = w->cheapest[i];
                }
                if (here.cost >= 0 && (best.node < 0 || here.cost < best.cost))
                        best = (struct window){ .node = (int)i, .at = here.at, .cost = here.cost };
        }
        if (best.node < 0)
                return false;
        *ret = best;
        return true;
}

static void taken_on(struct work *w, int node) {
        w->used[node] += w->want->tp;
        w->cheapest[node].known = false;
}

static void take(struct work *w, int group, const struct window *win, struct sched_slot *ret) {
        for (int t = 0; t < w->want->tp; t++) {
                size_t at = win->at + (size_t)t;

                w->taken[win->node][at] = true;
                ret[group * w->want->tp + t] = (struct sched_slot){ .node = win->node, .device = w->nodes[win->node].devices[at].index };
        }
        taken_on(w, win->node);
}

/* A group with pinned ranks keeps them; each of its lost ranks goes on a free device of the same node. */
static int place_pinned(struct work *w, int group, struct sched_slot *ret) {
        const struct sched_want *want = w->want;
        int node = -1;

        for (int t = 0; t < want->tp; t++)
                if (want->pinned[group * want->tp + t].node >= 0)
                        node = want->pinned[group * want->tp + t].node;
        if (node < 0 || (size_t)node >= w->n)
                return 0;
        for (int t = 0; t < want->tp; t++) {
                int r = group * want->tp + t;
                bool done = want->pinned[r].node >= 0;

                if (done) {
                        ret[r] = want->pinned[r];
                        continue;
                }
                for (size_t at = 0; at < w->nodes[node].n_devices && !done; at++)
                        if (device_fits(w, (size_t)node, at)) {
                                w->taken[node][at] = true;
                                ret[r] = (struct sched_slot){ .node = node, .device = w->nodes[node].devices[at].index };
                                done = true;
                        }
                if (!done)
                        return -ENOSPC;
        }
        taken_on(w, node);
        return 1;
}

static int place_kind(const struct sched_node *nodes, size_t n, const struct sched_want *want, int kind, int make, int effort, struct sched_slot *ret) {
        _cleanup_(work_free) struct work w = { .nodes = nodes, .n = n, .want = want, .kind = kind, .make = make, .effort = effort };
        int groups = rank_plan_groups(want->pp, want->dp), r;

        r = work_init(&w);
        if (r < 0)
                return r;
        for (int i = 0; want->prefer && i < groups * want->tp; i++)
                if (want->prefer[i].node >= 0 && (size_t)want->prefer[i].node < n)
                        w.was[want->prefer[i].node] = true;
        for (int g = 0; g < groups; g++) {
                struct window win;

                r = want->pinned ? place_pinned(&w, g, ret) : 0;
                if (r < 0)
                        return r;
                if (r > 0)
                        continue;
                if (!find_window(&w, g, &win))
                        return -ENOSPC;
                choose_rails(&w, g, ret, &win);
                take(&w, g, &win, ret);
        }
        return 0;
}

struct kinds {
        int list[16], n;
};

static int place_make(const struct sched_node *nodes, size_t n, const struct sched_want *want, const struct kinds *k, int make, struct sched_slot *ret) {
        int r = -ENOSPC;

        for (int i = 0; r == -ENOSPC && i < k->n; i++)
                for (int effort = 2; r == -ENOSPC && effort >= 0; effort--)
                        r = place_kind(nodes, n, want, k->list[i], make, effort, ret);
        return r;
}

/* The make of what is pinned: 0: nothing is, -1: it is not known. */
static int pinned_make(const struct sched_node *nodes, size_t n, const struct sched_want *want) {
        for (int r = 0; want->pinned && r < want->tp * want->pp * want->dp; r++)
                if (want->pinned[r].node >= 0 && (size_t)want->pinned[r].node < n)
                        return nodes[want->pinned[r].node].make ? nodes[want->pinned[r].node].make : -1;
        return 0;
}

/* The first make that has room: makes are numbers from 1 to n. */
static int place_equal(const struct sched_node *nodes, size_t n, const struct sched_want *want, const struct kinds *k, struct sched_slot *ret) {
        _cleanup_free_ size_t *devices = calloc(n + 1, sizeof(*devices));
        size_t world = (size_t)want->tp * (size_t)want->pp * (size_t)want->dp;
        int pinned = pinned_make(nodes, n, want), r = -ENOSPC;

        if (!devices)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++)
                for (size_t d = 0; nodes[i].make > 0 && (size_t)nodes[i].make <= n && d < nodes[i].n_devices; d++)
                        devices[nodes[i].make] += nodes[i].devices[d].state != SCHED_GONE;
        for (int m = 1; r == -ENOSPC && m <= (int)n; m++)
                if (pinned ? m == pinned : devices[m] >= world)
                        r = place_make(nodes, n, want, k, m, ret);
        return r;
}

int scheduler_place(const struct sched_node *nodes, size_t n, const struct sched_want *want, struct sched_slot *ret) {
        _cleanup_free_ struct sched_slot *tmp = NULL;
        struct kinds kinds = { .n = 0 };
        size_t world;
        int r;

        if (want->tp < 1 || want->pp < 1 || want->dp < 1)
                return -EINVAL;
        world = (size_t)want->tp * (size_t)want->pp * (size_t)want->dp;
        tmp = calloc(world, sizeof(*tmp));
        if (!tmp)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++)
                for (size_t k = 0; k < nodes[i].n_devices; k++) {
                        int j = 0;

                        while (j < kinds.n && kinds.list[j] != nodes[i].devices[k].kind)
                                j++;
                        if (j == kinds.n && kinds.n < (int)ARRAY_SIZE(kinds.list))
                                kinds.list[kinds.n++] = nodes[i].devices[k].kind;
                }
        r = want->equal ? place_equal(nodes, n, want, &kinds, tmp) : place_make(nodes, n, want, &kinds, 0, tmp);
        if (r == 0)
                memcpy(ret, tmp, world * sizeof(*ret));
        return r;
}

/* A copy of the nodes whose devices can be marked. */
struct board {
        struct sched_node *nodes;
        struct sched_device *devices;
        size_t n;
};

static struct board *board_free(struct board *b) {
        free(b->nodes);
        free(b->devices);
        b->nodes = NULL;
        b->devices = NULL;
        return NULL;
}

static int board_init(struct board *b, const struct sched_node *nodes, size_t n) {
        size_t total = 0, at = 0;

        for (size_t i = 0; i < n; i++)
                total += nodes[i].n_devices;
        b->n = n;
        b->nodes = calloc(n + 1, sizeof(*b->nodes));
        b->devices = calloc(total + 1, sizeof(*b->devices));
        if (!b->nodes || !b->devices)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++) {
                memcpy(b->devices + at, nodes[i].devices, nodes[i].n_devices * sizeof(*b->devices));
                b->nodes[i] = (struct sched_node){ .name = nodes[i].name, .devices = b->devices + at, .n_devices = nodes[i].n_devices, .make = nodes[i].make };
                at += nodes[i].n_devices;
        }
        return 0;
}

static void board_mark(struct board *b, const struct sched_slot *slots, size_t world, enum sched_device_state state) {
        for (size_t r = 0; r < world; r++) {
                const struct sched_node *nd = &b->nodes[slots[r].node];

                for (size_t i = 0; i < nd->n_devices; i++)
                        if (nd->devices[i].index == slots[r].device)
                                b->devices[(size_t)(nd->devices - b->devices) + i].state = state;
        }
}

int scheduler_queue(const struct sched_node *nodes, size_t n, const struct sched_want *wants, size_t n_wants, struct sched_slot **ret, bool *ret_placed) {
        _cleanup_(board_free) struct board b = { 0 };
        bool reserved = false;
        int r;

        r = board_init(&b, nodes, n);
        if (r < 0)
                return r;
        for (size_t i = 0; i < n_wants; i++) {
                size_t world = (size_t)wants[i].tp * (size_t)wants[i].pp * (size_t)wants[i].dp;
                struct sched_want again = wants[i];

                r = scheduler_place(b.nodes, n, &wants[i], ret[i]);
                if (r == -ENOMEM)
                        return r;
                ret_placed[i] = r == 0;
                if (r == 0 && !PLANTED(SPARE_TWICE))
                        board_mark(&b, ret[i], world, SCHED_BUSY);
                if (r == 0 || reserved)
                        continue;
                again.reserve = true;
                again.pinned = NULL;
                r = scheduler_place(b.nodes, n, &again, ret[i]);
                if (r == -ENOMEM)
                        return r;
                if (r == 0) {
                        board_mark(&b, ret[i], world, SCHED_GONE);
                        reserved = true;
                }
        }
        return 0;
}
