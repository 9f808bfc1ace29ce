/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where GPUs and InfiniBand devices hang in the PCI tree, by sysfs: a device's real path names the bridges above it (Documentation/ABI/testing/sysfs-bus-pci).  And which GPUs reach each other by NVLink, by NVML.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "worker/health/nvml.h"

enum { REMOTE_GPU = 0 /* nvmlIntNvLinkDeviceType_t */, SWITCH = WORLD_GPUS_MAX };

/* ".../sys/devices/pci0000:15/0000:15:01.0/0000:18:00.0/infiniband/mlx5_0" -> from "pci" to the last address; what does not fit is unknown. */
static void cut_path(const char *real, char *ret, size_t size) {
        const char *from = strstr(real, "/pci"), *end;
        unsigned domain, bus, device, function;
        int n;

        ret[0] = 0;
        if (!from || sscanf(from, "/pci%4x:%2x%n", &domain, &bus, &n) != 2)
                return;
        end = from + n;
        while (sscanf(end, "/%8x:%2x:%2x.%1x%n", &domain, &bus, &device, &function, &n) == 4)
                end += n;
        if ((size_t)(end - from) <= size)
                snprintf(ret, size, "%.*s", (int)(end - from - 1), from + 1);
}

/* dir: of the device, a link into the tree. */
static struct pci_place place_of(const struct health_world *w, const char *dir) {
        struct pci_place p = { .numa = -1 };
        _cleanup_free_ char *full = world_path(w, "%s", dir);
        char real[PATH_MAX], text[16];
        _cleanup_free_ char *file = NULL;

        if (full && realpath(full, real))
                cut_path(real, p.path, sizeof(p.path));
        if (asprintf(&file, "%s/numa_node", dir) < 0) {
                file = NULL;
                return p;
        }
        if (world_read(w, file, text, sizeof(text)) < 0 || sscanf(text, "%6d", &p.numa) != 1 || p.numa < 0)
                p.numa = -1;
        return p;
}

struct pci_place health_pci_place(const char *root, const char *pci) {
        const struct health_world w = { .root = root };
        char dir[96];

        snprintf(dir, sizeof(dir), "/sys/bus/pci/devices/%.32s", pci);
        return place_of(&w, dir);
}

size_t health_nics(const char *root, struct rdma_nic *ret, size_t max) {
        const struct health_world w = { .root = root };
        char names[WORLD_GPUS_MAX][64], ports[ARRAY_SIZE(ret->ports)][64], dir[128];
        size_t n = world_list(&w, "/sys/class/infiniband", names, WORLD_GPUS_MAX), k = 0;

        for (size_t i = 0; i < n && k < max; i++) {
                struct rdma_nic *nic = &ret[k];
                size_t n_ports;

                *nic = (struct rdma_nic){ .n_ports = 0 };
                snprintf(nic->name, sizeof(nic->name), "%.31s", names[i]);
                snprintf(dir, sizeof(dir), "/sys/class/infiniband/%s/device", names[i]);
                nic->place = place_of(&w, dir);
                if (strlen(names[i]) >= sizeof(nic->name) || !nic->place.path[0])
                        continue; /* made of software: no place */
                snprintf(dir, sizeof(dir), "/sys/class/infiniband/%s/ports", names[i]);
                n_ports = world_list(&w, dir, ports, ARRAY_SIZE(ports));
                for (size_t p = 0; p < n_ports; p++)
                        if (sscanf(ports[p], "%3u", &nic->ports[nic->n_ports]) == 1)
                                nic->n_ports++;
                k++;
        }
        return k;
}

/* ------------------------------------------------------------------ NVLink */
static size_t root_of(const size_t *parent, size_t i) {
        while (parent[i] != i)
                i = parent[i];
        return i;
}

static size_t gpu_at(const struct nvml *l, const struct nvml_pci *pci) {
        char name[24];
        size_t i = 0;

        nvml_kernel_name(pci->text, name, sizeof(name));
        while (i < l->n && strcmp(l->gpus[i].pci, name) != 0)
                i++;
        return i;
}

/* Whom the link leads to: a GPU of this node, else the switch. WORLD_GPUS_MAX + 1: nobody that is here. */
static size_t other_end(const struct nvml *l, void *gpu, unsigned link) {
        struct nvml_pci pci = { 0 };
        int type = -1;
        size_t to = l->n;

        if (l->nvlink_type && l->nvlink_type(gpu, link, &type) != NVML_SUCCESS)
                type = -1;
        if (l->nvlink_pci && l->nvlink_pci(gpu, link, &pci) == NVML_SUCCESS)
                to = gpu_at(l, &pci);
        return to < l->n ? to : type == REMOTE_GPU ? SWITCH + 1 : SWITCH;
}

void nvml_links(const struct nvml *l, unsigned *ret_links, unsigned *ret_domain) {
        size_t parent[WORLD_GPUS_MAX + 1];

        for (size_t i = 0; i <= WORLD_GPUS_MAX; i++)
                parent[i] = i;
        for (size_t i = 0; i < l->n; i++) {
                ret_links[i] = 0;
                for (unsigned k = 0; l->nvlink && !l->gpus[i].lost && k < NVML_LINKS_MAX; k++) {
                        int up = 0;
                        size_t to;

                        if (l->nvlink(l->gpus[i].handle, k, &up) != NVML_SUCCESS || !up)
                                continue;
                        ret_links[i]++;
                        to = other_end(l, l->gpus[i].handle, k);
                        if (to <= SWITCH)
                                parent[root_of(parent, i)] = root_of(parent, to);
                }
        }
        for (size_t i = 0; i < l->n; i++)
                ret_domain[i] = ret_links[i] ? (unsigned)root_of(parent, i) + 1 : 0;
}
