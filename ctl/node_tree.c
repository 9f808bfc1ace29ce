/* SPDX-License-Identifier: Apache-2.0 */
/* Where a node's devices hang, as a tree: GPUs and InfiniBand devices below the same bridges stand together. */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "ctl/node_health.h"
#include "ctl/print.h"

struct leaf {
        const char *path;
        const Fp8ctl__V1__NodeDevice *device; /* or: */
        const Fp8ctl__V1__NodeNic *nic;
        int32_t numa;
};

static int by_path(const void *a, const void *b) {
        return strcmp(((const struct leaf *)a)->path, ((const struct leaf *)b)->path);
}

static void print_leaf(const struct leaf *l, FILE *f) {
        if (l->device) {
                fprintf(f, "  device %u", l->device->index);
                if (l->device->nvlink_domain)
                        fprintf(f, ", NVLink domain %u", l->device->nvlink_domain);
        } else {
                fputs("  ", f);
                print_text(f, l->nic->name);
                fprintf(f, ", rail %u, ports", l->nic->rail);
                for (size_t p = 0; p < l->nic->n_ports; p++) {
                        bool used = false;

                        for (size_t u = 0; u < l->nic->n_used_ports; u++)
                                used = used || l->nic->used_ports[u] == l->nic->ports[p];
                        fprintf(f, " %u%s", l->nic->ports[p], used ? "" : " (not used)");
                }
        }
        if (l->numa >= 0)
                fprintf(f, ", NUMA node %d", l->numa);
}

/* What it shares with the line before is not said again. */
static void print_path(const char *path, const char *before, FILE *f) {
        size_t shared = 0, depth = 1;

        for (size_t i = 0; path[i] && path[i] == before[i]; i++)
                if (path[i] == '/')
                        shared = i + 1;
        for (size_t i = 0; i < shared; i++)
                depth += path[i] == '/';
        for (const char *at = path + shared; *at; depth++) {
                size_t n = strcspn(at, "/");
                char name[64];

                snprintf(name, sizeof(name), "%.*s", (int)(n < sizeof(name) ? n : sizeof(name) - 1), at);
                fprintf(f, "\n%*s", (int)(2 * depth), "");
                print_text(f, name);
                at += n + (at[n] == '/');
        }
}

void node_tree_print(const Fp8ctl__V1__Node *nd, FILE *f) {
        _cleanup_free_ struct leaf *list = calloc(nd->n_devices + nd->n_nics + 1, sizeof(*list));
        size_t n = 0;

        for (size_t i = 0; list && i < nd->n_devices; i++)
                if (nd->devices[i]->path && *nd->devices[i]->path)
                        list[n++] = (struct leaf){ .path = nd->devices[i]->path, .device = nd->devices[i], .numa = nd->devices[i]->numa };
        for (size_t i = 0; list && i < nd->n_nics; i++)
                if (nd->nics[i]->path && *nd->nics[i]->path)
                        list[n++] = (struct leaf){ .path = nd->nics[i]->path, .nic = nd->nics[i], .numa = nd->nics[i]->numa };
        if (n == 0)
                return;
        qsort(list, n, sizeof(*list), by_path);
        fputs("\nPCI tree", f);
        for (size_t i = 0; i < n; i++) {
                print_path(list[i].path, i ? list[i - 1].path : "", f);
                print_leaf(&list[i], f);
        }
        fputc('\n', f);
}
