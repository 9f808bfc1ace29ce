/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What a check is.  A row of health_checks (checks.c): name, how often, how many times in a row before a graver word counts, and what it looks at.  A check is run by the thread of its lane, so one that
 * hangs in a driver or on a dead mount stops its lane only, and that is told.  It sees the machine through struct health_world, so that tests show it another one.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/statvfs.h>
#include <sys/timex.h>

#include "base/error.h"
#include "proto/health.h"
#include "worker/health/health.h"

enum {
        CHECK_SUBJECT = 64,
        CHECK_EVIDENCE = 256,
        CHECK_SAID_MAX = 256, /* subjects of one check */
        WORLD_PIDS_MAX = 256,
        WORLD_GPUS_MAX = 64,
        FACTS_MAX = 512,
};

/* What the node is made of (facts.c): see NodeFact. */
struct fact {
        char key[48], value[96];
        bool own;
};
enum fact_group { FACTS_HOST, FACTS_GPU, N_FACT_GROUPS };
struct facts {
        struct fact list[FACTS_MAX];
        size_t n;
        uint64_t gpu_memory[WORLD_GPUS_MAX]; /* by number of the device; 0: unknown */
        size_t n_gpu_memory;
        uint32_t gpu_links[WORLD_GPUS_MAX], gpu_domain[WORLD_GPUS_MAX]; /* the same for NVLinks: see NodeDevice */
        size_t n_gpu_links;
};

struct nvml;

struct health_world {
        const char *root, *dir, *checks_dir;
        uint32_t site_ms;
        uint64_t (*mono_ns)(void);
        uint64_t (*wall_ns)(void);
        int (*statvfs)(const char *path, struct statvfs *ret);
        int (*adjtimex)(struct timex *t);
        const char *nvml_library;
        struct pci_name gpus[WORLD_GPUS_MAX];
        size_t n_gpus;
        pthread_mutex_t lock; /* of what follows */
        uint32_t pids[WORLD_PIDS_MAX];
        size_t n_pids;
        struct nvml *nvml;    /* of the GPU lane alone; NULL: not loaded (yet) */
        bool nvml_tried;
        char nvml_why[160];   /* it is not */
        struct facts *facts[N_FACT_GROUPS]; /* each of its lane alone: looked at, and not passed on yet; NULL: nothing new */
};

struct said {
        char subject[CHECK_SUBJECT], evidence[CHECK_EVIDENCE];
        enum health_verdict verdict;
        int32_t device;
        uint32_t blow; /* another one: the same verdict anew, and since now */
};

struct check_out {
        struct said *list; /* CHECK_SAID_MAX */
        size_t n;
        uint32_t blow; /* of what is said next */
};

/* One subject at most once a run; what is beyond the bound is left out. The graver of two words counts when it is said again. Control characters become blanks. */
void check_say(struct check_out *o, const char *subject, int32_t device, enum health_verdict v, const char *fmt, ...) __attribute__((format(printf, 5, 6)));

enum health_lane { LANE_HOST, LANE_DISK, LANE_GPU, LANE_SITE, N_HEALTH_LANES };

struct check {
        const char *name;
        enum health_lane lane;
        uint32_t interval_ms; /* 0: site_ms */
        int rise;             /* so often in a row before a graver word counts; 0 and 1: at once */
        enum health_verdict alerts; /* of a network: its words up to this one are alerts, two of which are needed to evict; OK: none */
        /* state: what it keeps between runs, NULL at first, freed with free(3). */
        void (*run)(struct health_world *w, void **state, struct check_out *o);
        const char *threshold; /* for docs/health.md */
};
extern const struct check health_checks[];
extern const size_t n_health_checks;

void check_disk(struct health_world *w, void **state, struct check_out *o);
void check_clock(struct health_world *w, void **state, struct check_out *o);
void check_pressure(struct health_world *w, void **state, struct check_out *o);
void check_load(struct health_world *w, void **state, struct check_out *o);
void check_oom(struct health_world *w, void **state, struct check_out *o);
void check_edac(struct health_world *w, void **state, struct check_out *o);
void check_ranks(struct health_world *w, void **state, struct check_out *o);
void check_driver(struct health_world *w, void **state, struct check_out *o);
void check_ib_port(struct health_world *w, void **state, struct check_out *o);
void check_ib_counters(struct health_world *w, void **state, struct check_out *o);
void check_pcie(struct health_world *w, void **state, struct check_out *o);
void check_gpu_ecc(struct health_world *w, void **state, struct check_out *o);
void check_gpu_rows(struct health_world *w, void **state, struct check_out *o);
void check_gpu_heat(struct health_world *w, void **state, struct check_out *o);
void check_gpu_throttle(struct health_world *w, void **state, struct check_out *o);
void check_gpu_memory(struct health_world *w, void **state, struct check_out *o);
void check_gpu_link(struct health_world *w, void **state, struct check_out *o);
void check_facts(struct health_world *w, void **state, struct check_out *o);
void check_gpu_errors(struct health_world *w, void **state, struct check_out *o);
void check_gpu_fabric(struct health_world *w, void **state, struct check_out *o);
void check_gpu_facts(struct health_world *w, void **state, struct check_out *o);
void check_site(struct health_world *w, void **state, struct check_out *o);

/* Files of the machine. -ENOENT and so on; a file longer than size is cut. */
int world_read(const struct health_world *w, const char *path, char *buf, size_t size);
int world_read_u64(const struct health_world *w, const char *path, uint64_t *ret);
/* Names in a folder, sorted, without those that begin with a dot; each at most 63 letters, `max` of them at most. Returns how many, 0 when it is not there. */
size_t world_list(const struct health_world *w, const char *path, char (*ret)[64], size_t max);
char *world_path(const struct health_world *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
