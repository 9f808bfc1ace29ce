/* SPDX-License-Identifier: Apache-2.0 */
/* Where a node's devices hang in its PCI tree, as its worker tells with each hello, and which network ports the ranks on them are given: rails.h, with the ports that its checks call well. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/core/health.h"
#include "daemon/core/rails.h"

void node_take_path(char dst[PCI_PATH_LEN], const char *path) {
        size_t n = path ? strlen(path) : 0;

        if (n >= PCI_PATH_LEN || n < 4 || strncmp(path, "pci", 3) != 0 || strspn(path + 3, "0123456789abcdef:./") != n - 3)
                n = 0;
        memcpy(dst, n ? path : "", n + 1);
}

/* It becomes part of a list that a library reads. */
static bool is_name(const char *s) {
        size_t n = 0;

        while (s && (isalnum((unsigned char)s[n]) || s[n] == '_' || s[n] == '-' || s[n] == '.'))
                n++;
        return n > 0 && n < NIC_NAME_LEN && !s[n];
}

static int by_address(const void *a, const void *b) {
        const struct nic *x = a, *y = b;
        const char *p = strrchr(x->path, '/'), *q = strrchr(y->path, '/');
        int r = strcmp(p ? p : "", q ? q : "");

        return r ? r : strcmp(x->name, y->name);
}

int node_take_nics(struct controller *c, struct node *n, Fp8ctl__V1__NodeNic *const *list, size_t n_list) {
        struct nic *nics = n_list && n_list <= RAILS_MAX ? calloc(n_list, sizeof(*nics)) : NULL;
        size_t k = 0;

        if (n_list > RAILS_MAX)
                core_drop(c, DROP_MALFORMED, "network devices");
        else if (n_list && !nics)
                return -ENOMEM;
        for (size_t i = 0; nics && i < n_list; i++) {
                struct nic *o = &nics[k];

                if (!list[i] || !is_name(list[i]->name)) {
                        core_drop(c, DROP_MALFORMED, "network device");
                        continue;
                }
                core_text(o->name, sizeof(o->name), list[i]->name);
                node_take_path(o->path, list[i]->path);
                o->numa = list[i]->numa;
                for (size_t p = 0; p < list[i]->n_ports && o->n_ports < NIC_PORTS_MAX; p++)
                        if (list[i]->ports[p] > 0 && list[i]->ports[p] < 256)
                                o->ports[o->n_ports++] = list[i]->ports[p];
                k++;
        }
        if (k)
                qsort(nics, k, sizeof(*nics), by_address);
        free(n->nics);
        n->nics = nics;
        n->n_nics = k;
        node_rails(n);
        return 0;
}

void node_take_links(struct node *n, const Fp8ctl__V1__HealthReport *m) {
        for (size_t i = 0; i < m->n_device_nvlinks && i < m->n_device_nvlink_domain && i < NODE_DEVICES_MAX; i++) {
                struct device *d = node_device(n, (uint32_t)i);

                if (!d)
                        continue;
                d->nvlinks = m->device_nvlinks[i];
                d->nvlink_domain = m->device_nvlink_domain[i];
        }
}

/* "=mlx5_0:1,mlx5_1:1": NCCL_IB_HCA, these and no others. */
static void rail_text(const struct node *n, struct device *d) {
        size_t len = 0;

        d->rail[0] = 0;
        for (size_t i = 0; i < n->n_nics; i++)
                for (size_t p = 0; d->rails >> i & 1 && p < n->nics[i].n_used; p++) {
                        char one[NIC_NAME_LEN + 8];
                        size_t size = (size_t)snprintf(one, sizeof(one), "%s%s:%u", len ? "," : "=", n->nics[i].name, n->nics[i].used[p]);

                        if (len + size >= sizeof(d->rail))
                                return;
                        memcpy(d->rail + len, one, size + 1);
                        len += size;
                }
}

void node_rails(struct node *n) {
        struct rail_place devices[NODE_DEVICES_MAX], nics[RAILS_MAX];
        uint64_t rails[NODE_DEVICES_MAX];

        for (size_t i = 0; i < n->n_nics; i++) {
                struct nic *k = &n->nics[i];

                k->n_used = 0;
                for (size_t p = 0; p < k->n_ports; p++)
                        if (health_port_well(n, k->name, k->ports[p]))
                                k->used[k->n_used++] = k->ports[p];
                nics[i] = (struct rail_place){ .path = k->n_used ? k->path : NULL, .numa = k->numa };
        }
        for (size_t i = 0; i < n->n_devices; i++)
                devices[i] = (struct rail_place){ .path = n->devices[i].path, .numa = n->devices[i].numa };
        rails_assign(devices, n->n_devices, nics, n->n_nics, rails);
        for (size_t i = 0; i < n->n_devices; i++) {
                n->devices[i].rails = rails[i];
                rail_text(n, &n->devices[i]);
        }
}

/* ------------------------------------------------------------------ for clients */
int node_fill_nics(const struct node *n, Fp8ctl__V1__Node *m, Fp8ctl__V1__NodeNic **ret, Fp8ctl__V1__NodeNic ***ret_ptrs) {
        Fp8ctl__V1__NodeNic *list = calloc(n->n_nics + 1, sizeof(*list)), **ptrs = calloc(n->n_nics + 1, sizeof(*ptrs));

        *ret = list;
        *ret_ptrs = ptrs;
        if (!list || !ptrs)
                return -ENOMEM;
        for (size_t i = 0; i < n->n_nics; i++) {
                struct nic *k = &n->nics[i];

                fp8ctl__v1__node_nic__init(&list[i]);
                list[i].name = k->name;
                list[i].path = k->path;
                list[i].numa = k->numa;
                list[i].ports = k->ports;
                list[i].n_ports = k->n_ports;
                list[i].used_ports = k->used;
                list[i].n_used_ports = k->n_used;
                list[i].rail = (uint32_t)i;
                ptrs[i] = &list[i];
        }
        m->nics = ptrs;
        m->n_nics = n->n_nics;
        return 0;
}

void node_tell_rails(const struct controller *c, Fp8ctl__V1__Plan *plan) {
        _cleanup_free_ struct rail_seat *seats = calloc(plan->n_ranks + 1, sizeof(*seats));
        struct rails_told told;

        if (!seats || plan->n_ranks != (size_t)plan->tp * plan->pp * plan->dp)
                return;
        for (size_t i = 0; i < plan->n_ranks; i++) {
                Fp8ctl__V1__PlanRank *r = plan->ranks[i];
                struct node *n = node_find(c, r->node);
                const struct device *d = n ? node_device(n, r->device) : NULL;

                seats[i].node = -1;
                if (!d)
                        continue;
                seats[i] = (struct rail_seat){ .node = (int)node_position(c, n->name), .rails = d->rails, .domain = d->nvlink_domain };
                if (!r->incarnation)
                        r->rail = (char *)d->rail;
        }
        told = rails_tell((int)plan->tp, (int)plan->pp, (int)plan->dp, seats);
        plan->split_groups = told.split_groups;
        plan->ring_hops = told.hops;
        plan->ring_crossings = told.crossings;
}
