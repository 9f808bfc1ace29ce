/* SPDX-License-Identifier: Apache-2.0 */
/* The machine itself: disk, clock, pressure, memory errors, processes that do not answer. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "worker/health/check.h"

/* Thresholds. */
#define DISK_WARN_PERCENT 5
#define DISK_DRAIN_PERCENT 1
#define DISK_DRAIN_BYTES (UINT64_C(1) << 30)
#define CLOCK_OFFSET_US 100000
#define CLOCK_STEP_NS NSEC_PER_SEC
#define REMEMBER_NS (600 * NSEC_PER_SEC) /* a step of the clock, a process killed for memory */
#define PRESSURE_MEMORY 10.0             /* per cent of 10 s */
#define PRESSURE_IO 60.0                 /* per cent of 60 s */
#define CORRECTED_HOUR 10u
#define RANK_WARN_NS (30 * NSEC_PER_SEC)
#define RANK_DRAIN_NS (120 * NSEC_PER_SEC)

#define HOUR_NS (3600 * NSEC_PER_SEC)

/* ------------------------------------------------------------------ disk */
void check_disk(struct health_world *w, void **state, struct check_out *o) {
        struct statvfs s;
        double percent, inodes;
        uint64_t left;

        if (w->statvfs(w->dir, &s) < 0) {
                check_say(o, w->dir, -1, HEALTH_DRAIN, "cannot be looked at: %s", strerror(errno));
                return;
        }
        left = (uint64_t)s.f_bavail * s.f_frsize;
        percent = s.f_blocks ? 100.0 * (double)s.f_bavail / (double)s.f_blocks : 100;
        inodes = s.f_files ? 100.0 * (double)s.f_favail / (double)s.f_files : 100;
        if (s.f_flag & ST_RDONLY)
                check_say(o, w->dir, -1, HEALTH_DRAIN, "mounted read-only");
        else if ((percent < DISK_DRAIN_PERCENT && left < DISK_DRAIN_BYTES) || inodes < DISK_DRAIN_PERCENT)
                check_say(o, w->dir, -1, HEALTH_DRAIN, "%.2f%% (%" PRIu64 " MiB) and %.2f%% of the inodes free, expected at least %d%%", percent, left >> 20, inodes, DISK_DRAIN_PERCENT);
        else if (percent < DISK_WARN_PERCENT || inodes < DISK_WARN_PERCENT)
                check_say(o, w->dir, -1, HEALTH_WARN, "%.1f%% (%" PRIu64 " GiB) and %.1f%% of the inodes free, expected at least %d%%", percent, left >> 30, inodes, DISK_WARN_PERCENT);
        else
                check_say(o, w->dir, -1, HEALTH_OK, "%.0f%% (%" PRIu64 " GiB) free", percent, left >> 30);
}

/* ------------------------------------------------------------------ clock */
struct clock_state {
        bool known;
        int64_t ahead; /* wall clock minus monotonic */
        uint64_t stepped;
        double by_s;
};

void check_clock(struct health_world *w, void **state, struct check_out *o) {
        struct clock_state *k = *state ? *state : calloc(1, sizeof(*k));
        struct timex t = { 0 };
        int64_t ahead = (int64_t)(w->wall_ns() - w->mono_ns());
        int r = w->adjtimex(&t);

        if (!k)
                return;
        *state = k;
        if (k->known && llabs(ahead - k->ahead) > (int64_t)CLOCK_STEP_NS) {
                k->stepped = w->mono_ns();
                k->by_s = (double)(ahead - k->ahead) / 1e9;
        }
        k->known = true;
        k->ahead = ahead;
        if (k->stepped && w->mono_ns() - k->stepped < REMEMBER_NS)
                check_say(o, "", -1, HEALTH_WARN, "it was stepped by %.3f s", k->by_s);
        else if (r >= 0 && !(t.status & STA_UNSYNC) && labs(t.offset / (t.status & STA_NANO ? 1000 : 1)) > CLOCK_OFFSET_US)
                check_say(o, "", -1, HEALTH_WARN, "off by %ld us, expected at most %d", t.offset / (t.status & STA_NANO ? 1000 : 1), CLOCK_OFFSET_US);
        else if (r < 0 || (t.status & STA_UNSYNC))
                check_say(o, "", -1, HEALTH_OK, "nothing tells the kernel that it is synchronised");
        else
                check_say(o, "", -1, HEALTH_OK, "off by %ld us", t.offset / (t.status & STA_NANO ? 1000 : 1));
}

/* ------------------------------------------------------------------ pressure, memory */
static double stalled(const struct health_world *w, const char *what, const char *key) {
        char path[64], text[512];
        const char *full, *at;
        double v;

        snprintf(path, sizeof(path), "/proc/pressure/%s", what);
        if (world_read(w, path, text, sizeof(text)) < 0)
                return NAN;
        full = strstr(text, "full ");
        at = full ? strstr(full, key) : NULL;
        return at && sscanf(at + strlen(key), "%lf", &v) == 1 && v >= 0 && v <= 100 ? v : NAN;
}

void check_pressure(struct health_world *w, void **state, struct check_out *o) {
        double memory = stalled(w, "memory", "avg10="), io = stalled(w, "io", "avg60=");

        if (isnan(memory) && isnan(io)) {
                check_say(o, "", -1, HEALTH_ABSENT, "the kernel has no /proc/pressure");
                return;
        }
        check_say(o, "memory", -1, memory >= PRESSURE_MEMORY ? HEALTH_WARN : HEALTH_OK, "all tasks stalled %.1f%% of 10 s", memory);
        check_say(o, "io", -1, io >= PRESSURE_IO ? HEALTH_WARN : HEALTH_OK, "all tasks stalled %.1f%% of 60 s", io);
}

/* Processors by the ranges of /sys/devices/system/cpu/online ("0-3,8-11"); 0: unknown. */
static unsigned processors(const struct health_world *w) {
        char text[1024];
        unsigned n = 0, a, b;
        int len = 0;

        if (world_read(w, "/sys/devices/system/cpu/online", text, sizeof(text)) < 0)
                return 0;
        for (const char *at = text; sscanf(at, "%6u%n", &a, &len) == 1; at += *at == ',') {
                at += len;
                b = a;
                if (*at == '-' && sscanf(at, "-%6u%n", &b, &len) == 1)
                        at += len;
                n += b >= a ? b - a + 1 : 0;
        }
        return n;
}

static uint64_t meminfo_kb(const char *text, const char *key) {
        const char *at = strstr(text, key);
        uint64_t v;

        return at && sscanf(at + strlen(key), " %" SCNu64, &v) == 1 ? v : 0;
}

void check_load(struct health_world *w, void **state, struct check_out *o) {
        char text[2048];
        double one = NAN, five = NAN;
        unsigned n = processors(w);
        uint64_t total = 0, available = 0;

        if (world_read(w, "/proc/loadavg", text, sizeof(text)) < 0 || sscanf(text, "%lf %lf", &one, &five) != 2 || n == 0) {
                check_say(o, "", -1, HEALTH_ABSENT, "the kernel does not tell");
                return;
        }
        if (world_read(w, "/proc/meminfo", text, sizeof(text)) >= 0) {
                total = meminfo_kb(text, "MemTotal:");
                available = meminfo_kb(text, "MemAvailable:");
        }
        check_say(o, "", -1, HEALTH_OK, "%.1f in 1 minute, %.1f in 5 on %u processors; %" PRIu64 " of %" PRIu64 " MiB of memory available", one, five, n, available >> 10, total >> 10);
}

struct oom_state {
        bool known;
        uint64_t kills, at, rose;
};

void check_oom(struct health_world *w, void **state, struct check_out *o) {
        struct oom_state *k = *state ? *state : calloc(1, sizeof(*k));
        static const size_t size = 64 * 1024;
        _cleanup_free_ char *text = malloc(size);
        const char *at;
        uint64_t kills = 0;

        if (!k || !text)
                return;
        *state = k;
        if (world_read(w, "/proc/vmstat", text, size) < 0 || !(at = strstr(text, "\noom_kill ")) || sscanf(at, " oom_kill %" SCNu64, &kills) != 1) {
                check_say(o, "", -1, HEALTH_ABSENT, "the kernel does not count them");
                return;
        }
        if (k->known && kills > k->kills) {
                k->at = w->mono_ns();
                k->rose = kills - k->kills;
        }
        k->known = true;
        k->kills = kills;
        if (k->at && w->mono_ns() - k->at < REMEMBER_NS)
                check_say(o, "", -1, HEALTH_WARN, "%" PRIu64 " process%s killed for want of memory", k->rose, k->rose == 1 ? " was" : "es were");
        else
                check_say(o, "", -1, HEALTH_OK, "nobody was killed for want of memory");
}

/* ------------------------------------------------------------------ EDAC */
enum { EDAC_MAX = 32 };

struct edac_state {
        struct {
                char name[64];
                uint64_t ue, ce, hour_ce, hour_at;
                bool bad;
        } mc[EDAC_MAX];
        size_t n;
};

void check_edac(struct health_world *w, void **state, struct check_out *o) {
        struct edac_state *k = *state ? *state : calloc(1, sizeof(*k));
        char names[EDAC_MAX][64], path[160];
        size_t n = world_list(w, "/sys/devices/system/edac/mc", names, EDAC_MAX), seen = 0;
        uint64_t now = w->mono_ns();

        if (!k)
                return;
        *state = k;
        for (size_t i = 0; i < n; i++) {
                uint64_t ue, ce;
                size_t m = 0;

                if (strncmp(names[i], "mc", 2) != 0)
                        continue;
                snprintf(path, sizeof(path), "/sys/devices/system/edac/mc/%s/ue_count", names[i]);
                if (world_read_u64(w, path, &ue) < 0)
                        continue;
                snprintf(path, sizeof(path), "/sys/devices/system/edac/mc/%s/ce_count", names[i]);
                if (world_read_u64(w, path, &ce) < 0)
                        continue;
                seen++;
                while (m < k->n && strcmp(k->mc[m].name, names[i]) != 0)
                        m++;
                if (m == k->n) {
                        if (k->n == EDAC_MAX)
                                continue;
                        snprintf(k->mc[k->n++].name, sizeof(k->mc[0].name), "%s", names[i]);
                        k->mc[m].ue = ue;
                        k->mc[m].ce = k->mc[m].hour_ce = ce;
                        k->mc[m].hour_at = now;
                }
                k->mc[m].bad = k->mc[m].bad || ue > k->mc[m].ue;
                if (now - k->mc[m].hour_at >= HOUR_NS) {
                        k->mc[m].hour_at = now;
                        k->mc[m].hour_ce = ce;
                }
                if (k->mc[m].bad)
                        check_say(o, names[i], -1, HEALTH_DRAIN, "%" PRIu64 " uncorrected errors, it was %" PRIu64, ue, k->mc[m].ue);
                else if (ce >= k->mc[m].hour_ce && ce - k->mc[m].hour_ce > CORRECTED_HOUR)
                        check_say(o, names[i], -1, HEALTH_WARN, "%" PRIu64 " corrected errors within an hour, expected at most %u", ce - k->mc[m].hour_ce, CORRECTED_HOUR);
                else
                        check_say(o, names[i], -1, HEALTH_OK, "%" PRIu64 " corrected and %" PRIu64 " uncorrected errors", ce, ue);
        }
        if (!seen)
                check_say(o, "", -1, HEALTH_ABSENT, "no memory controller reports errors (EDAC)");
}

/* ------------------------------------------------------------------ ranks */
struct ranks_state {
        struct {
                uint32_t pid;
                char what;
                uint64_t since;
        } list[WORLD_PIDS_MAX];
        size_t n;
};

static char state_of(const struct health_world *w, uint32_t pid) {
        char path[64], text[512];
        const char *p;

        snprintf(path, sizeof(path), "/proc/%u/stat", pid);
        if (world_read(w, path, text, sizeof(text)) < 0)
                return 0;
        p = strrchr(text, ')'); /* the name before it may hold anything */
        return p && p[1] == ' ' ? p[2] : 0;
}

void check_ranks(struct health_world *w, void **state, struct check_out *o) {
        struct ranks_state *k = *state ? *state : calloc(1, sizeof(*k)), old;
        uint32_t pids[WORLD_PIDS_MAX];
        uint64_t now = w->mono_ns();
        size_t n;

        if (!k)
                return;
        *state = k;
        pthread_mutex_lock(&w->lock);
        n = w->n_pids;
        memcpy(pids, w->pids, n * sizeof(pids[0]));
        pthread_mutex_unlock(&w->lock);
        old = *k;
        k->n = 0;
        for (size_t i = 0; i < n; i++) {
                char what = state_of(w, pids[i]), subject[32];
                uint64_t since = now;

                if (what != 'D' && what != 'Z')
                        continue;
                for (size_t m = 0; m < old.n; m++)
                        if (old.list[m].pid == pids[i] && old.list[m].what == what)
                                since = old.list[m].since;
                k->list[k->n].pid = pids[i];
                k->list[k->n].what = what;
                k->list[k->n++].since = since;
                if (now - since < RANK_WARN_NS)
                        continue;
                snprintf(subject, sizeof(subject), "pid %u", pids[i]);
                check_say(o, subject, -1, what == 'D' && now - since >= RANK_DRAIN_NS ? HEALTH_DRAIN : HEALTH_WARN, "%s for %.0f s",
                          what == 'D' ? "uninterruptible in the kernel" : "dead and not reaped", (double)(now - since) / 1e9);
        }
        if (o->n == 0)
                check_say(o, "", -1, HEALTH_OK, "%zu processes", n);
}
