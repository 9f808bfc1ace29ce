/* SPDX-License-Identifier: Apache-2.0 */
/* PCIe: errors that the kernel counts (Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats) and lanes, of GPUs and network cards. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "worker/health/check.h"

enum { PCI_MAX = 512, WATCHED_MAX = 64 };

/* Thresholds. */
#define CORRECTED_MINUTE 100u
#define MINUTE_NS (60 * NSEC_PER_SEC)
#define LOOK_FOR_NS (600 * NSEC_PER_SEC) /* new devices */

struct pcie_device {
        char name[64];
        uint64_t fatal, minute, minute_at;
        bool known, bad;
        uint64_t corrected; /* in the last whole minute */
};

struct pcie_state {
        struct pcie_device list[WATCHED_MAX];
        size_t n;
        uint64_t looked;
};

/* 0x03....: display and 3D controllers; 0x02....: network, InfiniBand among them (PCI Code and ID Assignment Specification). */
static bool watched(const struct health_world *w, const char *name) {
        char path[160];
        uint64_t class;

        snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/class", name);
        return world_read_u64(w, path, &class) == 0 && (class >> 16 == 0x03 || class >> 16 == 0x02);
}

static void look_for(const struct health_world *w, struct pcie_state *k) {
        char(*names)[64] = calloc(PCI_MAX, sizeof(*names));
        size_t n = names ? world_list(w, "/sys/bus/pci/devices", names, PCI_MAX) : 0;

        for (size_t i = 0; i < n && k->n < WATCHED_MAX; i++) {
                bool known = false;

                for (size_t d = 0; d < k->n; d++)
                        known = known || strcmp(k->list[d].name, names[i]) == 0;
                if (known || !watched(w, names[i]))
                        continue;
                snprintf(k->list[k->n++].name, sizeof(k->list[0].name), "%s", names[i]);
        }
        free(names);
        k->looked = w->mono_ns();
}

/* The last line of aer_dev_*: "TOTAL_ERR_FATAL 0". */
static bool aer_total(const struct health_world *w, const char *name, const char *file, const char *key, uint64_t *ret) {
        char path[200], text[2048];
        const char *at;

        snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", name, file);
        at = world_read(w, path, text, sizeof(text)) == 0 ? strstr(text, key) : NULL;
        return at && sscanf(at + strlen(key), " %" SCNu64, ret) == 1;
}

static int32_t gpu_at(const struct health_world *w, const char *name) {
        for (size_t i = 0; i < w->n_gpus; i++)
                if (strcmp(w->gpus[i].text, name) == 0)
                        return (int32_t)i;
        return -1;
}

static void look_at(const struct health_world *w, struct pcie_device *d, struct check_out *o) {
        uint64_t fatal = 0, other = 0, corrected = 0, lanes, most, now = w->mono_ns();
        char path[200];
        bool aer = aer_total(w, d->name, "aer_dev_fatal", "TOTAL_ERR_FATAL", &fatal);
        int32_t gpu = gpu_at(w, d->name);

        if (aer_total(w, d->name, "aer_dev_nonfatal", "TOTAL_ERR_NONFATAL", &other))
                fatal += other;
        (void)aer_total(w, d->name, "aer_dev_correctable", "TOTAL_ERR_COR", &corrected);
        if (!d->known) {
                d->known = true;
                d->fatal = fatal;
                d->minute = corrected;
                d->minute_at = now;
        }
        if (now - d->minute_at >= MINUTE_NS) {
                d->corrected = corrected >= d->minute ? corrected - d->minute : 0;
                d->minute = corrected;
                d->minute_at = now;
        }
        d->bad = d->bad || fatal > d->fatal;
        snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/current_link_width", d->name);
        if (world_read_u64(w, path, &lanes) < 0)
                lanes = 0;
        snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/max_link_width", d->name);
        if (world_read_u64(w, path, &most) < 0)
                most = 0;
        if (d->bad)
                check_say(o, d->name, gpu, HEALTH_DRAIN, "%" PRIu64 " uncorrected PCIe errors, it was %" PRIu64, fatal, d->fatal);
        else if (d->corrected > CORRECTED_MINUTE)
                check_say(o, d->name, gpu, HEALTH_WARN, "%" PRIu64 " corrected PCIe errors in a minute, expected at most %u", d->corrected, CORRECTED_MINUTE);
        else if (lanes && lanes < most && most <= 32 && gpu >= 0)
                check_say(o, d->name, gpu, HEALTH_WARN, "%" PRIu64 " PCIe lanes of %" PRIu64, lanes, most);
        else
                check_say(o, d->name, gpu, HEALTH_OK, "%" PRIu64 " lanes%s", lanes, aer ? "" : "; errors are not counted");
}

void check_pcie(struct health_world *w, void **state, struct check_out *o) {
        struct pcie_state *k = *state ? *state : calloc(1, sizeof(*k));

        if (!k)
                return;
        *state = k;
        if (!k->looked || w->mono_ns() - k->looked >= LOOK_FOR_NS)
                look_for(w, k);
        for (size_t i = 0; i < k->n; i++)
                look_at(w, &k->list[i], o);
        if (k->n == 0)
                check_say(o, "", -1, HEALTH_ABSENT, "no GPU or network card on PCI");
}
