/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/health/nvml.h"

#include <ctype.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EVENT_XID 8ULL /* nvmlEventTypeXidCriticalError */

void nvml_kernel_name(const char *text, char *ret, size_t size) {
        size_t n = strnlen(text, 31), skip = n > 12 ? n - 12 : 0, k = 0;

        for (size_t i = skip; i < n && k + 1 < size; i++)
                ret[k++] = (char)tolower((unsigned char)text[i]);
        ret[k] = 0;
}

static int find_gpus(struct nvml *l) {
        unsigned n = 0;
        int r = l->count(&n);

        for (unsigned i = 0; r == NVML_SUCCESS && i < n && l->n < WORLD_GPUS_MAX; i++) {
                struct nvml_gpu *g = &l->gpus[l->n];
                struct nvml_pci pci = { 0 };

                snprintf(g->subject, sizeof(g->subject), "gpu %u", i);
                if (l->handle(i, &g->handle) != NVML_SUCCESS)
                        g->lost = true;
                else if (l->pci && l->pci(g->handle, &pci) == NVML_SUCCESS)
                        nvml_kernel_name(pci.text, g->pci, sizeof(g->pci));
                l->n++;
        }
        return r;
}

/* Without them the kernel's log tells of Xids. */
static void watch_xids(struct nvml *l) {
        if (!l->event_set || !l->event_register || !l->event_wait || !l->event_free || l->event_set(&l->events) != NVML_SUCCESS) {
                l->events = NULL;
                return;
        }
        for (size_t i = 0; i < l->n; i++)
                if (!l->gpus[i].lost)
                        (void)l->event_register(l->gpus[i].handle, EVENT_XID, l->events);
}

static struct nvml *load(struct health_world *w) {
        struct nvml *l = calloc(1, sizeof(*l));
        int r;

        if (!l)
                return NULL;
        l->library = dlopen(w->nvml_library, RTLD_NOW | RTLD_LOCAL);
        if (!l->library) {
                snprintf(w->nvml_why, sizeof(w->nvml_why), "no GPU driver: %.120s is not here", w->nvml_library);
                free(l);
                return NULL;
        }
#define NVML_LOOK_UP(field, symbol, arguments) *(void **)&l->field = dlsym(l->library, symbol);
        NVML_FUNCTIONS(NVML_LOOK_UP)
#undef NVML_LOOK_UP
        r = l->init && l->shutdown && l->count && l->handle ? l->init() : -1;
        if (r == NVML_SUCCESS) {
                r = find_gpus(l);
                if (r != NVML_SUCCESS)
                        l->shutdown();
        }
        if (r != NVML_SUCCESS || l->n == 0) {
                snprintf(w->nvml_why, sizeof(w->nvml_why), r == NVML_SUCCESS ? "no GPU" : "the GPU driver does not answer (NVML %d)", r);
                free(l);
                return NULL;
        }
        watch_xids(l);
        return l;
}

struct nvml *nvml_of(struct health_world *w, struct check_out *o) {
        if (!w->nvml && !w->nvml_tried) {
                w->nvml_tried = true;
                w->nvml = load(w);
        }
        if (!w->nvml)
                check_say(o, "", -1, HEALTH_ABSENT, "%s", w->nvml_why);
        return w->nvml;
}

void nvml_close(struct health_world *w) {
        struct nvml *l = w->nvml;

        if (!l)
                return;
        if (l->events)
                (void)l->event_free(l->events);
        (void)l->shutdown();
        free(l); /* the library stays: it has left destructors with this thread, which end with it */
        w->nvml = NULL;
        w->nvml_tried = false;
}

bool nvml_wait_xid(struct health_world *w, uint32_t timeout_ms, uint32_t *ret_xid, const char **ret_pci) {
        struct nvml *l = w->nvml;
        struct nvml_event ev = { 0 };

        if (!l || !l->events || l->event_wait(l->events, &ev, timeout_ms) != NVML_SUCCESS || ev.type != EVENT_XID)
                return false;
        *ret_xid = (uint32_t)ev.data;
        *ret_pci = "";
        for (size_t i = 0; i < l->n; i++)
                if (l->gpus[i].handle == ev.device)
                        *ret_pci = l->gpus[i].pci;
        return true;
}
