/* SPDX-License-Identifier: Apache-2.0 */
/* What NVML says of GPUs. A value that a GPU does not have is left out; one that is lost is the only thing said of it. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "worker/health/nvml.h"

/* Thresholds; the temperatures are the GPU's own. */
#define SHUTDOWN_MARGIN 2u
#define REPLAYS_MINUTE 100.0 /* as for corrected PCIe errors */
#define HOLD_NS (300 * NSEC_PER_SEC)

/* nvml.h: kinds of ECC errors, counters, temperatures, clocks; reasons why clocks are held down by hardware. */
enum { ECC_CORRECTED = 0, ECC_UNCORRECTED = 1, ECC_VOLATILE = 0, ECC_AGGREGATE = 1, THRESHOLD_SHUTDOWN = 0, THRESHOLD_SLOWDOWN = 1, CLOCK_SM = 1, NVLINK_RECOVERIES = 1, FABRIC_NOT_SUPPORTED = 0, FABRIC_COMPLETED = 3 };
#define THROTTLE_HW_SLOWDOWN 0x8ULL
#define THROTTLE_HW_THERMAL 0x40ULL
#define THROTTLE_HW_POWER_BRAKE 0x80ULL

/* Tells of a lost one, once a run of each check: the caller passes it over. */
static bool lost(struct nvml_gpu *g, int r, int32_t i, struct check_out *o) {
        g->lost = g->lost || r == NVML_GPU_IS_LOST;
        if (g->lost)
                check_say(o, g->subject, i, HEALTH_EVICT, "the driver has lost it (%s)", g->pci);
        return g->lost;
}

struct ecc_state {
        bool known[WORLD_GPUS_MAX];
        unsigned long long first[WORLD_GPUS_MAX];
};

void check_gpu_ecc(struct health_world *w, void **state, struct check_out *o) {
        struct nvml *l = nvml_of(w, o);
        struct ecc_state *k = *state ? *state : calloc(1, sizeof(*k));

        if (!k || !l) {
                *state = k;
                return;
        }
        *state = k;
        for (size_t i = 0; i < l->n; i++) {
                struct nvml_gpu *g = &l->gpus[i];
                unsigned long long bad = 0, corrected = 0, ever = 0;
                int r = l->ecc ? l->ecc(g->handle, ECC_UNCORRECTED, ECC_VOLATILE, &bad) : NVML_NOT_SUPPORTED;

                if (lost(g, r, (int32_t)i, o))
                        continue;
                if (r != NVML_SUCCESS) {
                        check_say(o, g->subject, (int32_t)i, HEALTH_ABSENT, "it has no ECC, or it is off");
                        continue;
                }
                (void)l->ecc(g->handle, ECC_CORRECTED, ECC_VOLATILE, &corrected);
                (void)l->ecc(g->handle, ECC_UNCORRECTED, ECC_AGGREGATE, &ever);
                if (!k->known[i]) {
                        k->known[i] = true;
                        k->first[i] = bad;
                }
                check_say(o, g->subject, (int32_t)i, bad > k->first[i] ? HEALTH_DRAIN : bad ? HEALTH_WARN : HEALTH_OK,
                          "%llu uncorrected and %llu corrected errors since the driver was loaded, %llu uncorrected ever", bad, corrected, ever);
        }
}

void check_gpu_rows(struct health_world *w, void **state, struct check_out *o) {
        struct nvml *l = nvml_of(w, o);

        for (size_t i = 0; l && i < l->n; i++) {
                struct nvml_gpu *g = &l->gpus[i];
                unsigned corrected = 0, bad = 0, pending = 0, failed = 0;
                int r = l->rows ? l->rows(g->handle, &corrected, &bad, &pending, &failed) : NVML_NOT_SUPPORTED;

                if (lost(g, r, (int32_t)i, o))
                        continue;
                if (r != NVML_SUCCESS)
                        check_say(o, g->subject, (int32_t)i, HEALTH_ABSENT, "it does not remap rows");
                else
                        check_say(o, g->subject, (int32_t)i, failed ? HEALTH_EVICT : pending ? HEALTH_WARN : HEALTH_OK, "rows remapped for corrected errors %u, for uncorrected %u%s%s", corrected, bad,
                                  pending ? "; one waits for a reset" : "", failed ? "; one could not be" : "");
        }
}

void check_gpu_heat(struct health_world *w, void **state, struct check_out *o) {
        struct nvml *l = nvml_of(w, o);

        for (size_t i = 0; l && i < l->n; i++) {
                struct nvml_gpu *g = &l->gpus[i];
                unsigned now = 0, slow = 0, off = 0;
                int r = l->temperature ? l->temperature(g->handle, 0, &now) : NVML_NOT_SUPPORTED;

                if (lost(g, r, (int32_t)i, o))
                        continue;
                if (r != NVML_SUCCESS) {
                        check_say(o, g->subject, (int32_t)i, HEALTH_ABSENT, "it has no temperature");
                        continue;
                }
                if (!l->threshold || l->threshold(g->handle, THRESHOLD_SLOWDOWN, &slow) != NVML_SUCCESS)
                        slow = 0;
                if (!l->threshold || l->threshold(g->handle, THRESHOLD_SHUTDOWN, &off) != NVML_SUCCESS)
                        off = 0;
                check_say(o, g->subject, (int32_t)i, off && now + SHUTDOWN_MARGIN >= off ? HEALTH_DRAIN : slow && now >= slow ? HEALTH_WARN : HEALTH_OK, "%u C; it slows down at %u, shuts down at %u", now, slow, off);
        }
}

void check_gpu_throttle(struct health_world *w, void **state, struct check_out *o) {
        struct nvml *l = nvml_of(w, o);

        for (size_t i = 0; l && i < l->n; i++) {
                struct nvml_gpu *g = &l->gpus[i];
                unsigned long long why = 0;
                unsigned mhz = 0;
                int r = l->throttle ? l->throttle(g->handle, &why) : NVML_NOT_SUPPORTED;

                if (lost(g, r, (int32_t)i, o))
                        continue;
                if (r != NVML_SUCCESS) {
                        check_say(o, g->subject, (int32_t)i, HEALTH_ABSENT, "it does not tell");
                        continue;
                }
                if (l->clock)
                        (void)l->clock(g->handle, CLOCK_SM, &mhz);
                check_say(o, g->subject, (int32_t)i, why & (THROTTLE_HW_SLOWDOWN | THROTTLE_HW_THERMAL | THROTTLE_HW_POWER_BRAKE) ? HEALTH_WARN : HEALTH_OK, "%u MHz, reasons 0x%llx%s%s%s", mhz, why,
                          why & THROTTLE_HW_SLOWDOWN ? " hardware slowdown" : "", why & THROTTLE_HW_THERMAL ? " heat" : "", why & THROTTLE_HW_POWER_BRAKE ? " power brake" : "");
        }
}

void check_gpu_memory(struct health_world *w, void **state, struct check_out *o) {
        struct nvml *l = nvml_of(w, o);

        for (size_t i = 0; l && i < l->n; i++) {
                struct nvml_gpu *g = &l->gpus[i];
                struct nvml_memory m = { 0 };
                struct nvml_process list[64];
                unsigned n = 64, mw = 0;
                char name[64] = "";
                int r = l->memory ? l->memory(g->handle, &m) : NVML_NOT_SUPPORTED;

                if (lost(g, r, (int32_t)i, o))
                        continue;
                if (r != NVML_SUCCESS) {
                        check_say(o, g->subject, (int32_t)i, HEALTH_ABSENT, "it does not tell");
                        continue;
                }
                if (!l->processes || l->processes(g->handle, &n, list) != NVML_SUCCESS)
                        n = 0;
                if (l->power)
                        (void)l->power(g->handle, &mw);
                if (l->name)
                        (void)l->name(g->handle, name, sizeof(name));
                check_say(o, g->subject, (int32_t)i, HEALTH_OK, "%s at %s: %llu of %llu MiB in use, %u processes, %u W", name, g->pci, m.used >> 20, m.total >> 20, n, mw / 1000);
        }
}

struct link_state {
        bool was[WORLD_GPUS_MAX][NVML_LINKS_MAX];
};

void check_gpu_link(struct health_world *w, void **state, struct check_out *o) {
        struct nvml *l = nvml_of(w, o);
        struct link_state *k = *state ? *state : calloc(1, sizeof(*k));

        *state = k;
        for (size_t i = 0; k && l && i < l->n; i++) {
                struct nvml_gpu *g = &l->gpus[i];
                unsigned lanes = 0, most = 0, replays = 0, links = 0;
                int gone = -1, r = l->width ? l->width(g->handle, &lanes) : NVML_NOT_SUPPORTED;

                if (lost(g, r, (int32_t)i, o))
                        continue;
                if (l->max_width)
                        (void)l->max_width(g->handle, &most);
                if (l->replays)
                        (void)l->replays(g->handle, &replays);
                for (unsigned n = 0; l->nvlink && n < NVML_LINKS_MAX; n++) {
                        int up = 0;

                        if (l->nvlink(g->handle, n, &up) != NVML_SUCCESS)
                                continue;
                        links += up != 0;
                        if (!up && k->was[i][n])
                                gone = (int)n;
                        k->was[i][n] = k->was[i][n] || up;
                }
                if (gone >= 0)
                        check_say(o, g->subject, (int32_t)i, HEALTH_DRAIN, "NVLink %d was active and is not", gone);
                else if (lanes && lanes < most)
                        check_say(o, g->subject, (int32_t)i, HEALTH_WARN, "%u PCIe lanes of %u", lanes, most);
                else
                        check_say(o, g->subject, (int32_t)i, HEALTH_OK, "%u NVLinks, %u PCIe lanes, %u replays", links, lanes, replays);
        }
}

struct error_state {
        struct {
                bool known;
                unsigned long long recoveries;
                unsigned replays;
                uint64_t at, warned; /* 0: not */
                char why[96];
        } gpus[WORLD_GPUS_MAX];
};

/* Of links that go on all the same: NVLinks that had to be trained anew, and packets that PCIe sent again. */
void check_gpu_errors(struct health_world *w, void **state, struct check_out *o) {
        struct nvml *l = nvml_of(w, o);
        struct error_state *k = *state ? *state : calloc(1, sizeof(*k));
        uint64_t now = w->mono_ns();

        *state = k;
        for (size_t i = 0; k && l && i < l->n; i++) {
                struct nvml_gpu *g = &l->gpus[i];
                unsigned replays = 0, had = k->gpus[i].replays;
                unsigned long long recoveries = 0, before = k->gpus[i].recoveries, one;
                int r = l->replays ? l->replays(g->handle, &replays) : NVML_NOT_SUPPORTED;
                double minutes = (double)(now - k->gpus[i].at) / 60e9;

                if (lost(g, r, (int32_t)i, o))
                        continue;
                for (unsigned n = 0; l->nvlink_errors && n < NVML_LINKS_MAX; n++)
                        if (l->nvlink_errors(g->handle, n, NVLINK_RECOVERIES, &one) == NVML_SUCCESS)
                                recoveries += one;
                if (k->gpus[i].known && recoveries > before) {
                        k->gpus[i].warned = now;
                        snprintf(k->gpus[i].why, sizeof(k->gpus[i].why), "NVLinks recovered from errors %llu times more", recoveries - before);
                } else if (k->gpus[i].known && minutes > 0 && replays > had && (replays - had) / minutes > REPLAYS_MINUTE) {
                        k->gpus[i].warned = now;
                        snprintf(k->gpus[i].why, sizeof(k->gpus[i].why), "%.0f PCIe replays a minute, expected at most %.0f", (replays - had) / minutes, REPLAYS_MINUTE);
                } else if (k->gpus[i].warned && now - k->gpus[i].warned >= HOLD_NS) {
                        k->gpus[i].warned = 0;
                }
                k->gpus[i].known = true;
                k->gpus[i].recoveries = recoveries;
                k->gpus[i].replays = replays;
                k->gpus[i].at = now;
                if (k->gpus[i].warned)
                        check_say(o, g->subject, (int32_t)i, HEALTH_WARN, "%s", k->gpus[i].why);
                else
                        check_say(o, g->subject, (int32_t)i, HEALTH_OK, "%llu NVLink recoveries, %u PCIe replays", recoveries, replays);
        }
}

/* Whether it has joined the others behind the switches: without it NVLink is there and of no use. */
void check_gpu_fabric(struct health_world *w, void **state, struct check_out *o) {
        static const char *const states[] = { "not there", "not started", "in progress", "completed" };
        struct nvml *l = nvml_of(w, o);

        for (size_t i = 0; l && i < l->n; i++) {
                struct nvml_gpu *g = &l->gpus[i];
                struct nvml_fabric f = { .state = FABRIC_NOT_SUPPORTED };
                int r = l->fabric ? l->fabric(g->handle, &f) : NVML_NOT_SUPPORTED;

                if (lost(g, r, (int32_t)i, o))
                        continue;
                if (r != NVML_SUCCESS || f.state == FABRIC_NOT_SUPPORTED || f.state > FABRIC_COMPLETED)
                        check_say(o, g->subject, (int32_t)i, HEALTH_ABSENT, "it has no fabric");
                else if (f.state != FABRIC_COMPLETED)
                        check_say(o, g->subject, (int32_t)i, HEALTH_WARN, "joining the fabric: %s", states[f.state]);
                else
                        check_say(o, g->subject, (int32_t)i, f.status == NVML_SUCCESS ? HEALTH_OK : HEALTH_DRAIN, "joining the fabric: completed, status %d", f.status);
        }
}
