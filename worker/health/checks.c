/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/health/check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"

/* clang-format off */
const struct check health_checks[] = {
        { "disk", LANE_DISK, 10000, 2, HEALTH_OK, check_disk, "drain: read-only, or less than 1% and 1 GiB (or 1% of the inodes) free; warn: less than 5%" },
        { "clock", LANE_HOST, 5000, 2, HEALTH_OK, check_clock, "warn: off by more than 100 ms, or stepped by more than 1 s within 10 minutes" },
        { "pressure", LANE_HOST, 5000, 3, HEALTH_OK, check_pressure, "warn: all tasks stalled for memory 10% of 10 s, or for I/O 60% of 60 s" },
        { "load", LANE_HOST, 10000, 1, HEALTH_OK, check_load, "for information: load, memory available" },
        { "oom", LANE_HOST, 2000, 1, HEALTH_OK, check_oom, "warn: a process was killed for want of memory within 10 minutes" },
        { "edac", LANE_HOST, 5000, 1, HEALTH_OK, check_edac, "drain: an uncorrected error; warn: more than 10 corrected ones an hour" },
        { "ranks", LANE_HOST, 2000, 1, HEALTH_OK, check_ranks, "warn: a rank's process uninterruptible or a zombie for 30 s; drain: uninterruptible for 120 s" },
        { "driver", LANE_HOST, 10000, 1, HEALTH_OK, check_driver, "for information: leases that the kernel holds" },
        { "facts", LANE_HOST, 60000, 1, HEALTH_OK, check_facts, "for information: what the node is made of" },
        { "ib-port", LANE_HOST, 500, 1, HEALTH_DRAIN, check_ib_port, "warn: down; drain: down three times for 25 s within an hour; evict: down for 4 minutes" },
        { "ib-counters", LANE_HOST, 5000, 1, HEALTH_EVICT, check_ib_counters, "see below" },
        { "pcie", LANE_HOST, 5000, 1, HEALTH_OK, check_pcie, "drain: a fatal error of a GPU or a network card; warn: fewer lanes than it has, or more than 100 corrected errors a minute" },
        { "gpu-ecc", LANE_GPU, 5000, 1, HEALTH_OK, check_gpu_ecc, "drain: a new uncorrected error; warn: one since the driver was loaded" },
        { "gpu-rows", LANE_GPU, 30000, 1, HEALTH_OK, check_gpu_rows, "evict: a row could not be remapped; warn: a remap waits for a reset" },
        { "gpu-heat", LANE_GPU, 5000, 3, HEALTH_OK, check_gpu_heat, "warn: at its slowdown temperature; drain: within 2 degrees of its shutdown temperature" },
        { "gpu-throttle", LANE_GPU, 5000, 3, HEALTH_OK, check_gpu_throttle, "warn: slowed by hardware: heat, power brake" },
        { "gpu-memory", LANE_GPU, 10000, 1, HEALTH_OK, check_gpu_memory, "for information: memory in use, processes, clock, power" },
        { "gpu-link", LANE_GPU, 10000, 2, HEALTH_OK, check_gpu_link, "drain: an NVLink that was active is not; warn: fewer PCIe lanes than it has" },
        { "gpu-errors", LANE_GPU, 10000, 1, HEALTH_OK, check_gpu_errors, "warn: NVLinks recovered from errors, or more than 100 PCIe replays a minute" },
        { "gpu-fabric", LANE_GPU, 10000, 2, HEALTH_OK, check_gpu_fabric, "drain: it could not join the NVLink fabric; warn: it has not yet" },
        { "gpu-facts", LANE_GPU, 60000, 1, HEALTH_OK, check_gpu_facts, "for information: what the GPUs are" },
        { "site", LANE_SITE, 0, 1, HEALTH_OK, check_site, "exit code 0 ok, 1 warn, 2 drain, 3 warn (not known)" },
};
/* clang-format on */
const size_t n_health_checks = ARRAY_SIZE(health_checks);

static void clean(char *s) {
        size_t n = strlen(s);

        for (size_t i = 0; i < n; i++)
                if ((unsigned char)s[i] < 0x20 || (unsigned char)s[i] >= 0x7f)
                        s[i] = (unsigned char)s[i] < 0x20 ? ' ' : '?';
        while (n > 0 && s[n - 1] == ' ')
                s[--n] = 0;
}

void check_say(struct check_out *o, const char *subject, int32_t device, enum health_verdict v, const char *fmt, ...) {
        struct said *s = NULL, n = { .verdict = v, .device = device, .blow = o->blow };
        va_list ap;

        snprintf(n.subject, sizeof(n.subject), "%s", subject);
        va_start(ap, fmt);
        vsnprintf(n.evidence, sizeof(n.evidence), fmt, ap);
        va_end(ap);
        clean(n.subject);
        clean(n.evidence);
        for (size_t i = 0; i < o->n; i++)
                if (strcmp(o->list[i].subject, n.subject) == 0)
                        s = &o->list[i];
        if (s && s->verdict >= v)
                return;
        if (!s && o->n == CHECK_SAID_MAX)
                return;
        if (!s)
                s = &o->list[o->n++];
        *s = n;
}

/* ------------------------------------------------------------------ files */
char *world_path(const struct health_world *w, const char *fmt, ...) {
        char *rest = NULL, *path = NULL;
        va_list ap;

        va_start(ap, fmt);
        if (vasprintf(&rest, fmt, ap) < 0)
                rest = NULL;
        va_end(ap);
        if (rest && asprintf(&path, "%s%s", w->root, rest) < 0)
                path = NULL;
        free(rest);
        return path;
}

int world_read(const struct health_world *w, const char *path, char *buf, size_t size) {
        _cleanup_free_ char *full = world_path(w, "%s", path);
        _cleanup_close_ int fd = full ? open(full, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
        size_t len = 0;

        if (fd < 0)
                return full ? -errno : -ENOMEM;
        while (len + 1 < size) {
                ssize_t n = read(fd, buf + len, size - 1 - len);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                if (n == 0)
                        break;
                len += (size_t)n;
        }
        buf[len] = 0;
        return 0;
}

int world_read_u64(const struct health_world *w, const char *path, uint64_t *ret) {
        char buf[64], *end;
        int r = world_read(w, path, buf, sizeof(buf));
        uint64_t v;

        if (r < 0)
                return r;
        errno = 0;
        v = strtoull(buf, &end, 0);
        if (errno || end == buf || (*end && *end != '\n' && *end != ' '))
                return -EBADMSG;
        *ret = v;
        return 0;
}

static int by_name(const void *a, const void *b) {
        return strcmp(a, b);
}

size_t world_list(const struct health_world *w, const char *path, char (*ret)[64], size_t max) {
        _cleanup_free_ char *full = world_path(w, "%s", path);
        DIR *d = full ? opendir(full) : NULL;
        const struct dirent *e;
        size_t n = 0;

        while (d && n < max && (e = readdir(d)) != NULL) {
                if (e->d_name[0] == '.' || strlen(e->d_name) >= sizeof(ret[0]))
                        continue;
                snprintf(ret[n++], sizeof(ret[0]), "%s", e->d_name);
        }
        if (d)
                closedir(d);
        qsort(ret, n, sizeof(ret[0]), by_name);
        return n;
}

/* ------------------------------------------------------------------ GPUs by their place */
/* /proc/driver/nvidia/gpus/<pci>/information: "Device Minor: 	 0". Those whose device file is not here belong to somebody else. CUDA numbers equal GPUs by their place. */
size_t health_gpus(const char *root, struct pci_name *ret, size_t max) {
        struct health_world w = { .root = root };
        char names[WORLD_GPUS_MAX][64], path[160], text[2048];
        size_t n = world_list(&w, "/proc/driver/nvidia/gpus", names, WORLD_GPUS_MAX), k = 0;

        for (size_t i = 0; i < n && k < max; i++) {
                const char *minor, *model;
                _cleanup_free_ char *file = NULL;
                unsigned number;

                snprintf(path, sizeof(path), "/proc/driver/nvidia/gpus/%s/information", names[i]);
                if (strlen(names[i]) >= sizeof(ret[0].text) || world_read(&w, path, text, sizeof(text)) < 0)
                        continue;
                minor = strstr(text, "Device Minor:");
                if (!minor || sscanf(minor + 13, " %5u", &number) != 1)
                        continue;
                file = world_path(&w, "/dev/nvidia%u", number);
                if (!file || access(file, F_OK) < 0)
                        continue;
                model = strstr(text, "Model:");
                model = model ? model + 6 + strspn(model + 6, " \t") : "";
                snprintf(ret[k].model, sizeof(ret[k].model), "%.*s", (int)strcspn(model, "\n"), model);
                clean(ret[k].model);
                memcpy(ret[k++].text, names[i], strlen(names[i]) + 1);
        }
        return k;
}
