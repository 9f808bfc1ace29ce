/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this node is made of: versions of software and firmware, models, settings.  Nodes of a cluster should be made alike, and what differs on the one that fails is the first thing to look at; what changes
 * under a running node (another clock source, a card's firmware) is told.  A fact that cannot be read is left out.
 */
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "version.h"
#include "worker/health/nvml.h"

enum { NAMES_MAX = 64, TEXT_MAX = 16384 };

#define GIB ((double)(1 << 30))

static void add(struct facts *f, const char *key, bool own, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static void add(struct facts *f, const char *key, bool own, const char *fmt, ...) {
        struct fact *k = &f->list[f->n];
        va_list ap;
        size_t n;

        if (f->n == FACTS_MAX)
                return;
        *k = (struct fact){ .own = own };
        snprintf(k->key, sizeof(k->key), "%s", key);
        va_start(ap, fmt);
        vsnprintf(k->value, sizeof(k->value), fmt, ap);
        va_end(ap);
        for (char *s = k->value; *s; s++)
                *s = isprint((unsigned char)*s) ? *s : ' ';
        for (n = strlen(k->value); n > 0 && k->value[n - 1] == ' ';)
                k->value[--n] = 0;
        f->n += n > 0;
}

/* The first line of a file. */
static void add_file(const struct health_world *w, struct facts *f, const char *key, bool own, const char *path) {
        char text[256];

        if (world_read(w, path, text, sizeof(text)) == 0)
                add(f, key, own, "%.*s", (int)strcspn(text, "\n"), text);
}

/* What stands behind `name` and a colon or an equals sign, in a file of such lines. */
static void add_line(const struct health_world *w, struct facts *f, const char *key, const char *path, const char *name) {
        _cleanup_free_ char *text = malloc(TEXT_MAX);
        const char *at;

        if (!text || world_read(w, path, text, TEXT_MAX) < 0)
                return;
        at = strstr(text, name);
        if (!at)
                return;
        at += strlen(name);
        at += strspn(at, " \t:=\"");
        add(f, key, false, "%.*s", (int)strcspn(at, "\"\n"), at);
}

/* "always [madvise] never": the one that is chosen. */
static void add_choice(const struct health_world *w, struct facts *f, const char *key, const char *path) {
        char text[256];
        const char *open, *end;

        if (world_read(w, path, text, sizeof(text)) < 0)
                return;
        open = strchr(text, '[');
        end = open ? strchr(open, ']') : NULL;
        if (end)
                add(f, key, false, "%.*s", (int)(end - open - 1), open + 1);
}

static size_t count(const struct health_world *w, const char *dir, const char *prefix) {
        char names[NAMES_MAX][64];
        size_t n = world_list(w, dir, names, NAMES_MAX), k = 0;

        for (size_t i = 0; i < n; i++)
                k += strncmp(names[i], prefix, strlen(prefix)) == 0 && isdigit((unsigned char)names[i][strlen(prefix)]);
        return k;
}

static void add_memory(const struct health_world *w, struct facts *f) {
        char text[4096];
        const char *at;
        uint64_t kib;

        if (world_read(w, "/proc/meminfo", text, sizeof(text)) < 0)
                return;
        at = strstr(text, "MemTotal:");
        if (at && sscanf(at + 9, " %" SCNu64, &kib) == 1)
                add(f, "memory", false, "%.0f GiB", (double)kib * 1024 / GIB); /* kernels keep some MiB more or less for themselves */
}

static void add_processors(const struct health_world *w, struct facts *f) {
        add_line(w, f, "cpu.model", "/proc/cpuinfo", "model name");
        add_line(w, f, "cpu.microcode", "/proc/cpuinfo", "microcode");
        add_file(w, f, "cpu.online", false, "/sys/devices/system/cpu/online");
        add_file(w, f, "cpu.smt", false, "/sys/devices/system/cpu/smt/active");
        add_file(w, f, "cpu.governor", false, "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        add(f, "numa.nodes", false, "%zu", count(w, "/sys/devices/system/node", "node"));
}

static void add_board(const struct health_world *w, struct facts *f) {
        static const struct {
                const char *key, *file;
                bool own;
        } files[] = {
                { "bios.vendor", "bios_vendor", false }, { "bios.version", "bios_version", false }, { "bios.date", "bios_date", false },
                { "board.vendor", "sys_vendor", false }, { "board.model", "product_name", false },  { "board.serial", "product_serial", true },
        };
        char path[64];

        for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
                snprintf(path, sizeof(path), "/sys/class/dmi/id/%s", files[i].file);
                add_file(w, f, files[i].key, files[i].own, path);
        }
}

static void add_infiniband(const struct health_world *w, struct facts *f) {
        static const struct {
                const char *key, *file;
                bool own;
        } files[] = { { "model", "hca_type", false }, { "firmware", "fw_ver", false }, { "board", "board_id", false }, { "guid", "node_guid", true } };
        char names[NAMES_MAX][64], path[256], key[48];
        size_t n = world_list(w, "/sys/class/infiniband", names, NAMES_MAX);

        for (size_t i = 0; i < n; i++)
                for (size_t k = 0; k < ARRAY_SIZE(files); k++) {
                        snprintf(path, sizeof(path), "/sys/class/infiniband/%s/%s", names[i], files[k].file);
                        snprintf(key, sizeof(key), "%.32s.%s", names[i], files[k].key);
                        add_file(w, f, key, files[k].own, path);
                }
}

/* Cards, not what is made of them; sysfs does not tell their firmware. */
static void add_ethernet(const struct health_world *w, struct facts *f) {
        _cleanup_close_ int fd = w->root[0] ? -1 : socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        char names[NAMES_MAX][64], key[48];
        size_t n = world_list(w, "/sys/class/net", names, NAMES_MAX);

        for (size_t i = 0; fd >= 0 && i < n; i++) {
                _cleanup_free_ char *device = world_path(w, "/sys/class/net/%s/device", names[i]);
                struct ethtool_drvinfo info = { .cmd = ETHTOOL_GDRVINFO };
                struct ifreq q = { .ifr_data = (char *)&info };

                if (!device || access(device, F_OK) < 0 || strlen(names[i]) >= sizeof(q.ifr_name))
                        continue;
                memcpy(q.ifr_name, names[i], strlen(names[i]) + 1);
                if (ioctl(fd, SIOCETHTOOL, &q) < 0)
                        continue;
                snprintf(key, sizeof(key), "%.32s.driver", names[i]);
                add(f, key, false, "%.32s", info.driver);
                snprintf(key, sizeof(key), "%.32s.firmware", names[i]);
                add(f, key, false, "%.32s", info.fw_version);
        }
}

/* "libnccl.so.2" leads to "libnccl.so.2.27.7": where the loader would look. */
static void add_nccl(const struct health_world *w, struct facts *f) {
        static const char *const usual[] = { "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/lib", "/usr/local/cuda/lib64", "/usr/lib/aarch64-linux-gnu" };
        const char *set = getenv("LD_LIBRARY_PATH");
        _cleanup_free_ char *own = strdup(set ? set : "");
        char *rest = own, *dir;
        size_t next = 0;

        while (own && (dir = rest && *rest ? strsep(&rest, ":") : next < ARRAY_SIZE(usual) ? (char *)usual[next++] : NULL) != NULL) {
                _cleanup_free_ char *path = world_path(w, "%s/libnccl.so.2", dir);
                char real[PATH_MAX], *name;

                if (!path || !realpath(path, real))
                        continue;
                name = strstr(real, "libnccl.so.");
                if (!name || !strchr(name + 11, '.'))
                        continue;
                add(f, "nccl", false, "%s", name + 11);
                return;
        }
}

/* What the site says of itself: lines of KEY=VALUE, empty ones and those that begin with # passed over. */
static void add_site(const struct health_world *w, struct facts *f) {
        _cleanup_free_ char *text = malloc(TEXT_MAX);
        char *rest = text, *line, key[48];

        if (!text || world_read(w, "/etc/fp8ctl/facts", text, TEXT_MAX) < 0)
                return;
        while ((line = strsep(&rest, "\n")) != NULL) {
                size_t n = strspn(line, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");

                if (n == 0 || line[n] != '=' || n + sizeof("site.") > sizeof(key))
                        continue;
                snprintf(key, sizeof(key), "site.%.*s", (int)n, line);
                add(f, key, false, "%s", line + n + 1);
        }
}

/* The list is the lane's until it is posted; what changed is the controller's to find. */
static void keep(struct health_world *w, enum fact_group g, struct facts *f, struct facts **was, struct check_out *o, const char *what) {
        bool same = *was && (*was)->n == f->n && memcmp(f, *was, sizeof(*f)) == 0;

        check_say(o, "", -1, HEALTH_OK, "%zu %s", f->n, what);
        if (!same) {
                free(w->facts[g]);
                w->facts[g] = malloc(sizeof(*f));
                if (w->facts[g])
                        *w->facts[g] = *f;
        }
        free(*was);
        *was = f;
}

void check_facts(struct health_world *w, void **state, struct check_out *o) {
        struct facts *f = calloc(1, sizeof(*f));

        if (!f)
                return;
        add(f, "fp8ctl", false, "%s", FP8CTL_VERSION);
        add_file(w, f, "kernel", false, "/proc/sys/kernel/osrelease");
        add_file(w, f, "kernel.build", false, "/proc/sys/kernel/version");
        add_line(w, f, "os", "/etc/os-release", "PRETTY_NAME");
        add_processors(w, f);
        add_memory(w, f);
        add_choice(w, f, "memory.huge", "/sys/kernel/mm/transparent_hugepage/enabled");
        add_file(w, f, "clock.source", false, "/sys/devices/system/clocksource/clocksource0/current_clocksource");
        add_file(w, f, "fp8guard", false, "/sys/module/fp8guard/version");
        add_file(w, f, "mlx5", false, "/sys/module/mlx5_core/version");
        add_board(w, f);
        add_infiniband(w, f);
        add_ethernet(w, f);
        add_nccl(w, f);
        add_site(w, f);
        keep(w, FACTS_HOST, f, (struct facts **)state, o, "facts of the host");
}

/* ------------------------------------------------------------------ GPUs */
static int32_t device_of(const struct health_world *w, const struct nvml_gpu *g, size_t i) {
        for (size_t k = 0; k < w->n_gpus; k++)
                if (strcmp(w->gpus[k].text, g->pci) == 0)
                        return (int32_t)k;
        return w->n_gpus ? -1 : (int32_t)i;
}

static void add_text(struct facts *f, size_t gpu, const char *what, bool own, int (*get)(void *, char *, unsigned), void *handle) {
        char key[48], text[96] = "";

        snprintf(key, sizeof(key), "gpu%zu.%s", gpu, what);
        if (get && get(handle, text, sizeof(text)) == NVML_SUCCESS)
                add(f, key, own, "%s", text);
}

/* What the library says into v: r is its answer. */
static void add_switch(struct facts *f, size_t gpu, const char *what, int r, const int *v) {
        char key[48];

        snprintf(key, sizeof(key), "gpu%zu.%s", gpu, what);
        if (r == NVML_SUCCESS)
                add(f, key, false, "%s", *v ? "on" : "off");
}

static void add_number(struct facts *f, size_t gpu, const char *what, int r, const unsigned *v, unsigned unit, const char *name) {
        char key[48];

        snprintf(key, sizeof(key), "gpu%zu.%s", gpu, what);
        if (r == NVML_SUCCESS)
                add(f, key, false, "%u%s", *v / unit, name);
}

static void add_gpu(const struct health_world *w, const struct nvml *l, size_t i, struct facts *f) {
        void *g = l->gpus[i].handle;
        struct nvml_memory m = { 0 };
        int32_t device = device_of(w, &l->gpus[i], i);
        unsigned v = 0, mig = 0, pending = 0;
        int on = 0, next = 0;

        add_text(f, i, "model", false, l->name, g);
        add_text(f, i, "vbios", false, l->vbios, g);
        add_text(f, i, "inforom", false, l->inforom, g);
        add_text(f, i, "serial", true, l->serial, g);
        add_text(f, i, "uuid", true, l->uuid, g);
        add_switch(f, i, "ecc", l->ecc_mode ? l->ecc_mode(g, &on, &next) : -1, &on);
        add_switch(f, i, "mig", l->mig_mode ? l->mig_mode(g, &mig, &pending) : -1, (const int *)&mig);
        add_switch(f, i, "persistence", l->persistence ? l->persistence(g, &on) : -1, &on);
        add_number(f, i, "power_limit", l->power_limit ? l->power_limit(g, &v) : -1, &v, 1000, " W");
        add_number(f, i, "pcie.generation", l->max_generation ? l->max_generation(g, &v) : -1, &v, 1, "");
        add_number(f, i, "pcie.lanes", l->max_width ? l->max_width(g, &v) : -1, &v, 1, "");
        if (!l->memory || l->memory(g, &m) != NVML_SUCCESS)
                return;
        v = (unsigned)(m.total >> 20);
        add_number(f, i, "memory", NVML_SUCCESS, &v, 1, " MiB");
        if (device >= 0 && device < WORLD_GPUS_MAX) {
                f->gpu_memory[device] = m.total;
                if ((size_t)device >= f->n_gpu_memory)
                        f->n_gpu_memory = (size_t)device + 1;
        }
}

static void add_links(const struct health_world *w, const struct nvml *l, struct facts *f) {
        unsigned links[WORLD_GPUS_MAX], domain[WORLD_GPUS_MAX];

        nvml_links(l, links, domain);
        for (size_t i = 0; i < l->n; i++) {
                int32_t device = device_of(w, &l->gpus[i], i);

                if (device < 0 || device >= WORLD_GPUS_MAX)
                        continue;
                f->gpu_links[device] = links[i];
                f->gpu_domain[device] = domain[i];
                if ((size_t)device >= f->n_gpu_links)
                        f->n_gpu_links = (size_t)device + 1;
        }
}

void check_gpu_facts(struct health_world *w, void **state, struct check_out *o) {
        struct nvml *l = nvml_of(w, o);
        struct facts *f = calloc(1, sizeof(*f));
        char text[96] = "";
        int version = 0;

        if (!f)
                return;
        if (l) {
                add(f, "gpu.count", false, "%zu", l->n);
                if (l->driver && l->driver(text, sizeof(text)) == NVML_SUCCESS)
                        add(f, "gpu.driver", false, "%s", text);
                if (l->cuda && l->cuda(&version) == NVML_SUCCESS)
                        add(f, "gpu.cuda", false, "%d.%d", version / 1000, version % 1000 / 10);
        }
        for (size_t i = 0; l && i < l->n; i++)
                if (!l->gpus[i].lost)
                        add_gpu(w, l, i, f);
        if (l)
                add_links(w, l, f);
        keep(w, FACTS_GPU, f, (struct facts **)state, o, "facts of GPUs");
}
