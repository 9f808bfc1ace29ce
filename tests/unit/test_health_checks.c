/* SPDX-License-Identifier: Apache-2.0 */
/* Each check on a machine that the test writes: its thresholds from both sides, rates and windows on a clock of the test's, and what is not there. */
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "tests/test.h"
#include "worker/health/health_private.h"
#include "worker/health/nvml.h"
#include "worker/health/program.h"

static uint64_t now_ns, wall_ahead_ns;
static struct statvfs disk;
static struct timex ntp;
static int ntp_result;

static uint64_t fake_mono(void) {
        return now_ns;
}
static uint64_t fake_wall(void) {
        return now_ns + wall_ahead_ns;
}
static int fake_statvfs(const char *path, struct statvfs *ret) {
        *ret = disk;
        return 0;
}
static int fake_adjtimex(struct timex *t) {
        *t = ntp;
        return ntp_result;
}

/* A machine and one lane that runs what it is told. */
struct machine {
        char root[256];
        struct health h;
        struct lane *lane;
        struct health_state changed[HEALTH_STATES_MAX];
        size_t n, gone;
};

static void put(struct machine *m, const char *path, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void put(struct machine *m, const char *path, const char *fmt, ...) {
        _cleanup_free_ char *full = file_path("%s%s", m->root, path);
        char text[4096], *slash;
        FILE *f;
        va_list ap;

        va_start(ap, fmt);
        vsnprintf(text, sizeof(text), fmt, ap);
        va_end(ap);
        slash = strrchr(full, '/');
        *slash = 0;
        CU_ASSERT_EQUAL_FATAL(file_mkdir_p(full, 0755, NULL), 0);
        *slash = '/';
        f = fopen(full, "w");
        CU_ASSERT_FATAL(f != NULL);
        fputs(text, f);
        fclose(f);
}

static struct machine *machine_new(void) {
        struct machine *m = calloc(1, sizeof(*m));

        CU_ASSERT_FATAL(m != NULL);
        snprintf(m->root, sizeof(m->root), "/tmp/fp8-health-XXXXXX");
        CU_ASSERT_FATAL(mkdtemp(m->root) != NULL);
        chmod(m->root, 0755);
        now_ns = 1000 * NSEC_PER_SEC;
        wall_ahead_ns = UINT64_C(1700000000) * NSEC_PER_SEC;
        m->h.world = (struct health_world){ .root = m->root, .dir = "/data", .checks_dir = "", .site_ms = 1000, .mono_ns = fake_mono, .wall_ns = fake_wall, .statvfs = fake_statvfs, .adjtimex = fake_adjtimex,
                                            .nvml_library = "libnothing.so" };
        pthread_mutex_init(&m->h.world.lock, NULL);
        m->lane = &m->h.lanes[0];
        m->lane->health = &m->h;
        m->lane->states = calloc(HEALTH_STATES_MAX, sizeof(struct health_state));
        m->lane->said = calloc(CHECK_SAID_MAX, sizeof(struct said));
        pthread_mutex_init(&m->lane->lock, NULL);
        pthread_cond_init(&m->lane->wake, NULL);
        return m;
}

static void machine_free(struct machine *m) {
        nvml_close(&m->h.world);
        lane_stop(m->lane, 0);
        pthread_mutex_destroy(&m->h.world.lock);
        file_remove_tree(m->root, NULL);
        free(m);
}

static size_t index_of(const char *name) {
        size_t i = 0;

        while (i < n_health_checks && strcmp(health_checks[i].name, name) != 0)
                i++;
        CU_ASSERT_FATAL(i < n_health_checks);
        return i;
}

static const struct health_state *state_of(struct machine *m, const char *check, const char *subject) {
        for (size_t i = 0; i < m->lane->n_states; i++)
                if (strcmp(m->lane->states[i].check->name, check) == 0 && strcmp(m->lane->states[i].said.subject, subject) == 0)
                        return &m->lane->states[i];
        return NULL;
}

static void expect(struct machine *m, const char *check, const char *subject, enum health_verdict v, const char *evidence, int line) {
        const struct health_state *s;
        bool ok;

        m->n = lane_run(m->lane, index_of(check), m->changed, &m->gone);
        s = state_of(m, check, subject);
        ok = s && s->said.verdict == v && strstr(s->said.evidence, evidence);
        if (!ok)
                printf("\n    line %d: %s '%s': found %s '%s', expected %s '%s'\n", line, check, subject, s ? health_verdict_name(s->said.verdict) : "nothing", s ? s->said.evidence : "", health_verdict_name(v), evidence);
        CU_ASSERT_TRUE(ok);
}
#define EXPECT(m, check, subject, verdict, evidence) expect(m, check, subject, HEALTH_##verdict, evidence, __LINE__)

static void pass(double seconds) {
        now_ns += (uint64_t)(seconds * 1e9);
}

TEST(what_is_not_there_is_absent_and_no_error) {
        static const char *const names[] = { "pressure", "load", "oom", "edac", "ib-port", "ib-counters", "pcie", "gpu-ecc", "gpu-rows", "gpu-heat", "gpu-throttle", "gpu-memory", "gpu-link", "gpu-errors", "gpu-fabric", "site" };
        struct machine *m = machine_new();

        for (size_t i = 0; i < ARRAY_SIZE(names); i++)
                EXPECT(m, names[i], "", ABSENT, "");
        machine_free(m);
}

TEST(load_and_memory_are_told) {
        struct machine *m = machine_new();

        put(m, "/proc/loadavg", "12.51 8.02 4.00 3/811 4711\n");
        EXPECT(m, "load", "", ABSENT, "");
        put(m, "/sys/devices/system/cpu/online", "0-3,8,10-11\n");
        put(m, "/proc/meminfo", "MemTotal:       2048000 kB\nMemFree: 1 kB\nMemAvailable:   1024000 kB\n");
        EXPECT(m, "load", "", OK, "12.5 in 1 minute, 8.0 in 5 on 7 processors; 1000 of 2000 MiB of memory available");
        put(m, "/proc/loadavg", "many\n");
        EXPECT(m, "load", "", ABSENT, "");
        machine_free(m);
}

TEST(a_disk_that_fills_up) {
        struct machine *m = machine_new();

        disk = (struct statvfs){ .f_blocks = 1000000, .f_bavail = 500000, .f_frsize = 4096, .f_files = 1000, .f_favail = 900 };
        EXPECT(m, "disk", "/data", OK, "50%");
        disk.f_bavail = 40000;
        EXPECT(m, "disk", "/data", OK, ""); /* twice in a row */
        EXPECT(m, "disk", "/data", WARN, "expected at least 5%");
        disk.f_bavail = 5000; /* 20 MiB */
        EXPECT(m, "disk", "/data", WARN, "");
        EXPECT(m, "disk", "/data", DRAIN, "expected at least 1%");
        disk.f_frsize = 1 << 20; /* 0.5%, but 5 GiB */
        EXPECT(m, "disk", "/data", WARN, "");
        disk.f_favail = 3;
        EXPECT(m, "disk", "/data", WARN, "");
        EXPECT(m, "disk", "/data", DRAIN, "inodes");
        disk = (struct statvfs){ .f_blocks = 10, .f_bavail = 10, .f_frsize = 4096, .f_flag = ST_RDONLY };
        EXPECT(m, "disk", "/data", DRAIN, "inodes"); /* the words are told again after a minute */
        pass(61);
        EXPECT(m, "disk", "/data", DRAIN, "read-only");
        CU_ASSERT_EQUAL(m->n, 1);
        disk.f_flag = 0;
        EXPECT(m, "disk", "/data", OK, "100%"); /* better words count at once */
        machine_free(m);
}

TEST(clocks_that_step_or_are_off) {
        struct machine *m = machine_new();

        ntp = (struct timex){ .offset = 5000000, .status = STA_NANO };
        ntp_result = TIME_OK;
        EXPECT(m, "clock", "", OK, "off by 5000 us");
        ntp.offset = 150000000;
        EXPECT(m, "clock", "", OK, "");
        EXPECT(m, "clock", "", WARN, "off by 150000 us");
        ntp.status = STA_UNSYNC;
        EXPECT(m, "clock", "", OK, "nothing tells");
        wall_ahead_ns += 30 * NSEC_PER_SEC;
        EXPECT(m, "clock", "", OK, "");
        EXPECT(m, "clock", "", WARN, "stepped by 30.000 s");
        pass(599);
        EXPECT(m, "clock", "", WARN, "stepped");
        pass(2);
        EXPECT(m, "clock", "", OK, "");
        machine_free(m);
}

TEST(pressure_and_processes_killed_for_memory) {
        struct machine *m = machine_new();

        put(m, "/proc/pressure/memory", "some avg10=50.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=9.90 avg60=0.00 avg300=0.00 total=1\n");
        put(m, "/proc/pressure/io", "some avg10=0 avg60=0 avg300=0 total=0\nfull avg10=0.00 avg60=61.00 avg300=0.00 total=0\n");
        EXPECT(m, "pressure", "memory", OK, "9.9%");
        EXPECT(m, "pressure", "io", OK, "");
        EXPECT(m, "pressure", "io", WARN, "61.0%"); /* the third in a row */
        put(m, "/proc/pressure/memory", "full avg10=nonsense\n");
        EXPECT(m, "pressure", "memory", OK, "");
        put(m, "/proc/vmstat", "nr_free_pages 1\noom_kill 3\n");
        EXPECT(m, "oom", "", OK, "");
        put(m, "/proc/vmstat", "nr_free_pages 1\noom_kill 5\n");
        EXPECT(m, "oom", "", WARN, "2 processes were killed");
        pass(601);
        EXPECT(m, "oom", "", OK, "");
        machine_free(m);
}

TEST(memory_errors) {
        struct machine *m = machine_new();

        put(m, "/sys/devices/system/edac/mc/mc0/ue_count", "2\n");
        put(m, "/sys/devices/system/edac/mc/mc0/ce_count", "100\n");
        put(m, "/sys/devices/system/edac/mc/power/x", "0\n");
        EXPECT(m, "edac", "mc0", OK, "100 corrected and 2 uncorrected"); /* what was before is not new */
        put(m, "/sys/devices/system/edac/mc/mc0/ce_count", "110\n");
        EXPECT(m, "edac", "mc0", OK, "");
        put(m, "/sys/devices/system/edac/mc/mc0/ce_count", "111\n");
        EXPECT(m, "edac", "mc0", WARN, "11 corrected errors within an hour");
        pass(3700);
        EXPECT(m, "edac", "mc0", OK, "");
        put(m, "/sys/devices/system/edac/mc/mc0/ue_count", "3\n");
        EXPECT(m, "edac", "mc0", DRAIN, "3 uncorrected errors, it was 2");
        machine_free(m);
}

TEST(ranks_that_hang_in_the_kernel) {
        struct machine *m = machine_new();
        const uint32_t pids[] = { 71, 72 };

        health_set_ranks(&m->h, pids, 2);
        put(m, "/proc/71/stat", "71 (a) D ) R 1 1\n");
        put(m, "/proc/72/stat", "72 (fp8-rank) D 1 1\n");
        EXPECT(m, "ranks", "", OK, "2 processes");
        pass(31);
        EXPECT(m, "ranks", "pid 72", WARN, "uninterruptible in the kernel for 31 s");
        CU_ASSERT_PTR_NULL(state_of(m, "ranks", "pid 71"));
        CU_ASSERT_EQUAL(m->gone, 1); /* the line of all */
        pass(90);
        EXPECT(m, "ranks", "pid 72", DRAIN, "121 s");
        put(m, "/proc/72/stat", "72 (fp8-rank) S 1 1\n");
        EXPECT(m, "ranks", "", OK, "");
        CU_ASSERT_PTR_NULL(state_of(m, "ranks", "pid 72"));
        machine_free(m);
}

/* ------------------------------------------------------------------ ports */
#define PORT "/sys/class/infiniband/mlx5_0/ports/1/"

static void port_is(struct machine *m, bool up) {
        put(m, PORT "state", up ? "4: ACTIVE\n" : "1: DOWN\n");
        put(m, PORT "rate", "400 Gb/sec (4X NDR)\n");
}

TEST(a_port_that_goes_down_flaps_or_stays_down) {
        struct machine *m = machine_new();

        port_is(m, false);
        EXPECT(m, "ib-port", "mlx5_0/1", ABSENT, "was not active");
        pass(1000);
        EXPECT(m, "ib-port", "mlx5_0/1", ABSENT, "");
        port_is(m, true);
        EXPECT(m, "ib-port", "mlx5_0/1", OK, "400 Gb/sec");
        port_is(m, false);
        EXPECT(m, "ib-port", "mlx5_0/1", WARN, "down");
        pass(239);
        EXPECT(m, "ib-port", "mlx5_0/1", WARN, "");
        CU_ASSERT_TRUE(health_is_alert(state_of(m, "ib-port", "mlx5_0/1")));
        pass(2);
        EXPECT(m, "ib-port", "mlx5_0/1", EVICT, "more than 4 minutes");
        CU_ASSERT_FALSE(health_is_alert(state_of(m, "ib-port", "mlx5_0/1"))); /* it needs no second one */
        port_is(m, true);
        EXPECT(m, "ib-port", "mlx5_0/1", OK, "");
        for (int i = 0; i < 5; i++) { /* short ones do nothing */
                port_is(m, false);
                EXPECT(m, "ib-port", "mlx5_0/1", WARN, "");
                pass(24);
                port_is(m, true);
                EXPECT(m, "ib-port", "mlx5_0/1", OK, "");
        }
        for (int i = 0; i < 2; i++) { /* with the long one above these are three */
                pass(60);
                port_is(m, false);
                EXPECT(m, "ib-port", "mlx5_0/1", WARN, "");
                pass(26);
                port_is(m, true);
                expect(m, "ib-port", "mlx5_0/1", i == 1 ? HEALTH_DRAIN : HEALTH_OK, "", __LINE__);
        }
        CU_ASSERT_TRUE(health_is_alert(state_of(m, "ib-port", "mlx5_0/1")));
        pass(3700);
        EXPECT(m, "ib-port", "mlx5_0/1", OK, "");
        machine_free(m);
}

TEST(a_port_whose_device_is_taken_away_is_down) {
        struct machine *m = machine_new();
        _cleanup_free_ char *device = file_path("%s/sys/class/infiniband/mlx5_0", m->root);

        port_is(m, true);
        put(m, "/sys/class/infiniband/mlx5_1/ports/1/state", "1: DOWN\n");
        EXPECT(m, "ib-port", "mlx5_0/1", OK, "4: ACTIVE");
        file_remove_tree(device, NULL);
        EXPECT(m, "ib-port", "mlx5_0/1", WARN, "down (its device is gone)");
        put(m, "/sys/class/infiniband/mlx5_1/ports/2/state", "1: DOWN\n");
        *strrchr(device, '0') = '1';
        file_remove_tree(device, NULL);
        EXPECT(m, "ib-port", "mlx5_0/1", WARN, "");
        CU_ASSERT_PTR_NULL(state_of(m, "ib-port", "mlx5_1/1")); /* it was never active */
        pass(241);
        EXPECT(m, "ib-port", "mlx5_0/1", EVICT, "down (its device is gone) for more than 4 minutes");
        port_is(m, true);
        EXPECT(m, "ib-port", "mlx5_0/1", OK, "");
        machine_free(m);
}

TEST(a_port_says_how_fast_it_is_and_by_which_gid_it_is_reached) {
        static const char zero[] = "0000:0000:0000:0000:0000:0000:0000:0000\n";
        struct machine *m = machine_new();

        port_is(m, true);
        EXPECT(m, "ib-port", "mlx5_0/1", OK, "4: ACTIVE, 400 Gb/sec (4X NDR)");
        put(m, PORT "link_layer", "InfiniBand\n");
        put(m, PORT "gids/0", zero);
        put(m, PORT "gids/1", "fe80:0000:0000:0000:0c42:a103:0065:0cda\n");
        put(m, PORT "gids/2", "fe80:0000:0000:0000:0c42:a103:0065:0cdb\n");
        pass(61); /* evidence is told anew after a minute */
        EXPECT(m, "ib-port", "mlx5_0/1", OK, "4: ACTIVE, 400 Gb/sec (4X NDR), GID 1 fe80::c42:a103:65:cda");
        put(m, PORT "link_layer", "Ethernet\n");
        put(m, PORT "gid_attrs/types/1", "IB/RoCE v1\n");
        pass(61);
        EXPECT(m, "ib-port", "mlx5_0/1", OK, ", GID 1 fe80::c42:a103:65:cda (IB/RoCE v1)");
        put(m, PORT "gid_attrs/types/2", "RoCE v2\n");
        put(m, PORT "gids/2", "0000:0000:0000:0000:0000:ffff:0a01:0001\n");
        pass(61);
        EXPECT(m, "ib-port", "mlx5_0/1", OK, ", GID 2 ::ffff:10.1.0.1 (RoCE v2)");
        put(m, PORT "gids/1", "no GID\x01\n");
        put(m, PORT "gids/2", zero);
        pass(61);
        EXPECT(m, "ib-port", "mlx5_0/1", OK, "(4X NDR)");
        CU_ASSERT_PTR_NULL(strstr(state_of(m, "ib-port", "mlx5_0/1")->said.evidence, "GID"));
        machine_free(m);
}

TEST(counters_above_their_rates) {
        static const struct {
                const char *file;
                unsigned ok, bad; /* in five seconds */
                enum health_verdict verdict;
        } cases[] = {
                { "counters/link_downed", 0, 1, HEALTH_EVICT },
                { "counters/excessive_buffer_overrun_errors", 0, 1, HEALTH_EVICT },
                { "counters/local_link_integrity_errors", 0, 1, HEALTH_EVICT },
                { "hw_counters/rnr_nak_retry_err", 0, 1, HEALTH_EVICT },
                { "hw_counters/retry_rnr_exceeded_err", 0, 1, HEALTH_EVICT },
                { "counters/symbol_error", 49, 55, HEALTH_WARN },
                { "counters/port_rcv_errors", 50, 51, HEALTH_WARN },
                { "hw_counters/local_ack_timeout_err", 5, 6, HEALTH_WARN },
                { "counters/port_xmit_discards", 500, 501, HEALTH_WARN },
        };
        char path[128];

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                struct machine *m = machine_new();
                unsigned value = 1000;

                snprintf(path, sizeof(path), PORT "%s", cases[i].file);
                put(m, path, "%u\n", value);
                EXPECT(m, "ib-counters", "mlx5_0/1", OK, "1 counters");
                pass(5);
                put(m, path, "%u\n", value += cases[i].ok);
                EXPECT(m, "ib-counters", "mlx5_0/1", OK, "");
                pass(5);
                put(m, path, "%u\n", value += cases[i].bad);
                expect(m, "ib-counters", "mlx5_0/1", cases[i].verdict, strchr(cases[i].file, '/') + 1, __LINE__);
                pass(301); /* nothing more for five minutes */
                EXPECT(m, "ib-counters", "mlx5_0/1", OK, "");
                machine_free(m);
        }
}

TEST(a_fatal_counter_that_rises_again_is_said_again) {
        struct machine *m = machine_new();
        uint64_t since;

        put(m, PORT "counters/link_downed", "0\n");
        EXPECT(m, "ib-counters", "mlx5_0/1", OK, "");
        pass(5);
        put(m, PORT "counters/link_downed", "1\n");
        EXPECT(m, "ib-counters", "mlx5_0/1", EVICT, "by 1 to 1");
        since = state_of(m, "ib-counters", "mlx5_0/1")->since_ms;
        pass(5);
        EXPECT(m, "ib-counters", "mlx5_0/1", EVICT, "by 1 to 1");
        CU_ASSERT_EQUAL(m->n, 0);
        pass(5);
        put(m, PORT "counters/link_downed", "3\n");
        EXPECT(m, "ib-counters", "mlx5_0/1", EVICT, "by 2 to 3");
        CU_ASSERT_EQUAL(m->n, 1);
        CU_ASSERT(state_of(m, "ib-counters", "mlx5_0/1")->since_ms >= since + 10000);
        machine_free(m);
}

TEST(symbol_errors_of_an_hour_and_three_warnings) {
        struct machine *m = machine_new();
        unsigned value = 0;

        put(m, PORT "counters/symbol_error", "0\n");
        EXPECT(m, "ib-counters", "mlx5_0/1", OK, "");
        for (int i = 0; i < 12; i++) { /* 10 every 5 minutes are 120 an hour */
                pass(300);
                put(m, PORT "counters/symbol_error", "%u\n", value += 10);
                EXPECT(m, "ib-counters", "mlx5_0/1", OK, "");
        }
        pass(5);
        put(m, PORT "counters/symbol_error", "%u\n", value + 11);
        EXPECT(m, "ib-counters", "mlx5_0/1", EVICT, "symbol errors within an hour");
        machine_free(m);
        m = machine_new();
        value = 0;
        put(m, PORT "counters/port_rcv_errors", "0\n");
        EXPECT(m, "ib-counters", "mlx5_0/1", OK, "");
        for (int i = 0; i < 3; i++) {
                pass(400);
                EXPECT(m, "ib-counters", "mlx5_0/1", OK, "");
                pass(5);
                put(m, PORT "counters/port_rcv_errors", "%u\n", value += 100);
                expect(m, "ib-counters", "mlx5_0/1", i < 2 ? HEALTH_WARN : HEALTH_DRAIN, i < 2 ? "20.0 a second" : "three warnings within an hour", __LINE__);
        }
        put(m, PORT "counters/port_rcv_errors", "0\n"); /* reset: nothing rose */
        pass(5);
        EXPECT(m, "ib-counters", "mlx5_0/1", DRAIN, "");
        machine_free(m);
}

TEST(pcie_errors_of_gpus_and_network_cards) {
        struct machine *m = machine_new();

        put(m, "/sys/bus/pci/devices/0000:3b:00.0/class", "0x030200\n");
        put(m, "/sys/bus/pci/devices/0000:3b:00.0/current_link_width", "8\n");
        put(m, "/sys/bus/pci/devices/0000:3b:00.0/max_link_width", "16\n");
        put(m, "/sys/bus/pci/devices/0000:00:1f.0/class", "0x060100\n");
        put(m, "/sys/bus/pci/devices/0000:17:00.0/class", "0x020700\n");
        put(m, "/sys/bus/pci/devices/0000:17:00.0/aer_dev_fatal", "DLP 1\nTOTAL_ERR_FATAL 1\n");
        put(m, "/proc/driver/nvidia/gpus/0000:3b:00.0/information", "Model: \t\t NVIDIA H100\nDevice Minor: \t 0\n");
        put(m, "/proc/driver/nvidia/gpus/0000:5e:00.0/information", "Model: \t\t NVIDIA H100\nDevice Minor: \t 1\n");
        put(m, "/dev/nvidia0", " ");
        m->h.world.n_gpus = health_gpus(m->root, m->h.world.gpus, WORLD_GPUS_MAX);
        CU_ASSERT_EQUAL(m->h.world.n_gpus, 1); /* the other one's device file is not here */
        CU_ASSERT_STRING_EQUAL(m->h.world.gpus[0].text, "0000:3b:00.0");
        CU_ASSERT_STRING_EQUAL(m->h.world.gpus[0].model, "NVIDIA H100");
        EXPECT(m, "pcie", "0000:3b:00.0", WARN, "8 PCIe lanes of 16");
        CU_ASSERT_EQUAL(state_of(m, "pcie", "0000:3b:00.0")->said.device, 0);
        EXPECT(m, "pcie", "0000:17:00.0", OK, "");
        CU_ASSERT_PTR_NULL(state_of(m, "pcie", "0000:00:1f.0"));
        put(m, "/sys/bus/pci/devices/0000:17:00.0/aer_dev_fatal", "DLP 2\nTOTAL_ERR_FATAL 2\n");
        EXPECT(m, "pcie", "0000:17:00.0", DRAIN, "2 uncorrected PCIe errors, it was 1");
        machine_free(m);
}

/* ------------------------------------------------------------------ GPUs, by a library that is not NVIDIA's */
TEST(what_nvml_says) {
        struct machine *m = machine_new();
        void (*set)(const char *name, int gpu, unsigned long long v);
        const char *pci;
        uint32_t xid;
        void *l = dlopen(getenv("FAKE_NVML"), RTLD_NOW);

        CU_ASSERT_FATAL(l != NULL);
        *(void **)&set = dlsym(l, "fake_nvml_set");
        m->h.world.nvml_library = getenv("FAKE_NVML");
        EXPECT(m, "gpu-heat", "gpu 0", OK, "40 C; it slows down at 89, shuts down at 95");
        CU_ASSERT_STRING_EQUAL(m->h.world.nvml->gpus[1].pci, "0000:5e:00.0");
        set("temperature", 1, 90);
        for (int i = 0; i < 3; i++)
                m->n = lane_run(m->lane, index_of("gpu-heat"), m->changed, &m->gone);
        EXPECT(m, "gpu-heat", "gpu 1", WARN, "90 C");
        set("temperature", 1, 94);
        for (int i = 0; i < 2; i++)
                m->n = lane_run(m->lane, index_of("gpu-heat"), m->changed, &m->gone);
        EXPECT(m, "gpu-heat", "gpu 1", DRAIN, "94 C");
        set("uncorrected", 0, 2);
        EXPECT(m, "gpu-ecc", "gpu 0", WARN, "2 uncorrected and 7 corrected"); /* they were there before */
        set("uncorrected", 0, 3);
        EXPECT(m, "gpu-ecc", "gpu 0", DRAIN, "3 uncorrected");
        CU_ASSERT_EQUAL(state_of(m, "gpu-ecc", "gpu 0")->said.device, 0);
        EXPECT(m, "gpu-rows", "gpu 1", OK, "");
        set("pending", 1, 1);
        EXPECT(m, "gpu-rows", "gpu 1", WARN, "waits for a reset");
        set("failed", 1, 1);
        EXPECT(m, "gpu-rows", "gpu 1", EVICT, "could not be");
        set("throttle", 0, 0x41);
        for (int i = 0; i < 2; i++)
                m->n = lane_run(m->lane, index_of("gpu-throttle"), m->changed, &m->gone);
        EXPECT(m, "gpu-throttle", "gpu 0", WARN, "heat");
        EXPECT(m, "gpu-memory", "gpu 0", ABSENT, "");
        EXPECT(m, "gpu-link", "gpu 0", OK, "4 NVLinks, 16 PCIe lanes");
        set("nvlink", 0, 0);
        EXPECT(m, "gpu-link", "gpu 0", OK, "");
        EXPECT(m, "gpu-link", "gpu 0", DRAIN, "NVLink 3 was active");
        EXPECT(m, "gpu-errors", "gpu 0", OK, "1 NVLink recoveries, 0 PCIe replays");
        pass(60);
        set("recoveries", 0, 3);
        set("replays", 1, 100);
        EXPECT(m, "gpu-errors", "gpu 0", WARN, "NVLinks recovered from errors 2 times more");
        EXPECT(m, "gpu-errors", "gpu 1", OK, "");
        pass(60);
        set("replays", 1, 210);
        EXPECT(m, "gpu-errors", "gpu 1", WARN, "110 PCIe replays a minute, expected at most 100");
        EXPECT(m, "gpu-errors", "gpu 0", WARN, "");
        pass(241);
        EXPECT(m, "gpu-errors", "gpu 0", OK, "3 NVLink recoveries, 0 PCIe replays");
        EXPECT(m, "gpu-fabric", "gpu 0", ABSENT, "no fabric");
        set("fabric", 0, 3);
        set("fabric", 1, 2);
        EXPECT(m, "gpu-fabric", "gpu 0", OK, "completed");
        m->n = lane_run(m->lane, index_of("gpu-fabric"), m->changed, &m->gone);
        EXPECT(m, "gpu-fabric", "gpu 1", WARN, "in progress");
        set("fabric status", 0, 999);
        EXPECT(m, "gpu-fabric", "gpu 0", OK, "");
        EXPECT(m, "gpu-fabric", "gpu 0", DRAIN, "completed, status 999");
        set("xid", 1, 79);
        CU_ASSERT_TRUE(nvml_wait_xid(&m->h.world, 1, &xid, &pci));
        CU_ASSERT_EQUAL(xid, 79);
        CU_ASSERT_STRING_EQUAL(pci, "0000:5e:00.0");
        CU_ASSERT_FALSE(nvml_wait_xid(&m->h.world, 1, &xid, &pci));
        set("lost", 1, 1);
        EXPECT(m, "gpu-ecc", "gpu 1", EVICT, "the driver has lost it (0000:5e:00.0)");
        machine_free(m);
        dlclose(l);
}

/* ------------------------------------------------------------------ what the node is made of */
static const struct fact *fact_of(const struct facts *f, const char *key) {
        for (size_t i = 0; i < f->n; i++)
                if (strcmp(f->list[i].key, key) == 0)
                        return &f->list[i];
        return NULL;
}

static void expect_fact(const struct facts *f, const char *key, const char *value, bool own, int line) {
        const struct fact *k = f ? fact_of(f, key) : NULL;
        bool ok = k ? value && strcmp(k->value, value) == 0 && k->own == own : !value;

        if (!ok)
                printf("\n    line %d: %s: found '%s', expected '%s'\n", line, key, k ? k->value : "nothing", value ? value : "nothing");
        CU_ASSERT_TRUE(ok);
}
#define EXPECT_FACT(f, key, value) expect_fact(f, key, value, false, __LINE__)
#define EXPECT_OWN(f, key, value) expect_fact(f, key, value, true, __LINE__)

TEST(what_the_host_is_made_of) {
        struct machine *m = machine_new();
        struct facts *f;
        char path[512];

        put(m, "/proc/sys/kernel/osrelease", "6.1.0-28-amd64\n");
        put(m, "/etc/os-release", "NAME=x\nPRETTY_NAME=\"Debian 12\"\n");
        put(m, "/proc/cpuinfo", "processor : 0\nmodel name\t: Xeon\nmicrocode\t: 0x2b\n");
        put(m, "/proc/meminfo", "MemTotal:       2113411072 kB\nMemFree: 1 kB\n");
        put(m, "/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
        put(m, "/sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n");
        put(m, "/sys/class/dmi/id/bios_version", "1.2 \n");
        put(m, "/sys/class/dmi/id/product_serial", "S1\x01\n");
        put(m, "/sys/class/infiniband/mlx5_0/fw_ver", "28.39.1002\n");
        put(m, "/sys/class/infiniband/mlx5_0/node_guid", "a088:c203\n");
        put(m, "/usr/lib64/libnccl.so.2.27.7", "x");
        snprintf(path, sizeof(path), "%s/usr/lib64/libnccl.so.2", m->root);
        CU_ASSERT_EQUAL(symlink("libnccl.so.2.27.7", path), 0);
        put(m, "/etc/fp8ctl/facts", "# ours\n\nnccl = no\nnccl=tuned \nimage=2026-11\nbad key=1\nempty=\na_key_that_is_longer_than_what_a_fact_may_have_at_all=1\nlast=1");
        EXPECT(m, "facts", "", OK, "facts of the host");
        f = m->h.world.facts[FACTS_HOST];
        EXPECT_FACT(f, "kernel", "6.1.0-28-amd64");
        EXPECT_FACT(f, "os", "Debian 12");
        EXPECT_FACT(f, "cpu.model", "Xeon");
        EXPECT_FACT(f, "cpu.microcode", "0x2b");
        EXPECT_FACT(f, "memory", "2016 GiB");
        EXPECT_FACT(f, "memory.huge", "madvise");
        EXPECT_FACT(f, "clock.source", "tsc");
        EXPECT_FACT(f, "bios.version", "1.2");
        EXPECT_OWN(f, "board.serial", "S1");
        EXPECT_FACT(f, "mlx5_0.firmware", "28.39.1002");
        EXPECT_OWN(f, "mlx5_0.guid", "a088:c203");
        EXPECT_FACT(f, "nccl", "2.27.7");
        EXPECT_FACT(f, "bios.date", NULL);
        EXPECT_FACT(f, "site.nccl", "tuned");
        EXPECT_FACT(f, "site.image", "2026-11");
        EXPECT_FACT(f, "site.last", "1");
        EXPECT_FACT(f, "site.empty", NULL);
        EXPECT_FACT(f, "site.bad key", NULL);
        EXPECT_FACT(f, "site.bad", NULL);
        /* The same again is no news; another clock source is. */
        free(f);
        m->h.world.facts[FACTS_HOST] = NULL;
        EXPECT(m, "facts", "", OK, "");
        CU_ASSERT_PTR_NULL(m->h.world.facts[FACTS_HOST]);
        put(m, "/sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n");
        EXPECT(m, "facts", "", OK, "");
        EXPECT_FACT(m->h.world.facts[FACTS_HOST], "clock.source", "hpet");
        free(m->h.world.facts[FACTS_HOST]);
        machine_free(m);
}

TEST(what_gpus_are_and_how_much_memory_they_have) {
        struct machine *m = machine_new();
        void (*set)(const char *name, int gpu, unsigned long long v);
        const struct facts *f;
        void *l = dlopen(getenv("FAKE_NVML"), RTLD_NOW);

        CU_ASSERT_FATAL(l != NULL);
        *(void **)&set = dlsym(l, "fake_nvml_set");
        EXPECT(m, "gpu-facts", "", ABSENT, "no GPU driver");
        CU_ASSERT_EQUAL(m->h.world.facts[FACTS_GPU]->n, 0); /* told all the same: there are none */
        free(m->h.world.facts[FACTS_GPU]);
        m->h.world.facts[FACTS_GPU] = NULL;
        m->h.world.nvml_tried = false;
        m->h.world.nvml_library = getenv("FAKE_NVML");
        /* Of the two GPUs one is ours. */
        m->h.world.n_gpus = 1;
        snprintf(m->h.world.gpus[0].text, sizeof(m->h.world.gpus[0].text), "0000:5e:00.0");
        set("memory", 0, UINT64_C(40) << 30);
        set("memory", 1, UINT64_C(80) << 30);
        set("ecc", 1, 0);
        EXPECT(m, "gpu-facts", "", OK, "facts of GPUs");
        f = m->h.world.facts[FACTS_GPU];
        EXPECT_FACT(f, "gpu.count", "2");
        EXPECT_FACT(f, "gpu.driver", "535.1");
        EXPECT_FACT(f, "gpu0.ecc", "on");
        EXPECT_FACT(f, "gpu1.ecc", "off");
        EXPECT_FACT(f, "gpu1.memory", "81920 MiB");
        EXPECT_OWN(f, "gpu0.serial", "serial a");
        EXPECT_FACT(f, "gpu0.vbios", NULL);
        CU_ASSERT_EQUAL(f->n_gpu_memory, 1);
        CU_ASSERT_EQUAL(f->gpu_memory[0], UINT64_C(80) << 30);
        CU_ASSERT_EQUAL(f->n_gpu_links, 1);
        CU_ASSERT_EQUAL(f->gpu_links[0], 4);
        free(m->h.world.facts[FACTS_GPU]);
        machine_free(m);
        dlclose(l);
}

/* ------------------------------------------------------------------ topology */
static int any_type(void *gpu, unsigned link, int *type) {
        *type = 2; /* a switch */
        return 0;
}

TEST(which_gpus_reach_each_other_by_nvlink) {
        struct machine *m = machine_new();
        unsigned links[WORLD_GPUS_MAX], domain[WORLD_GPUS_MAX];
        struct check_out o = { .list = m->lane->said };
        struct nvml *l;

        m->h.world.nvml_library = getenv("FAKE_NVML");
        l = nvml_of(&m->h.world, &o);
        CU_ASSERT_FATAL(l != NULL && l->n == 2);
        nvml_links(l, links, domain); /* directly */
        CU_ASSERT_EQUAL(links[1], 4);
        CU_ASSERT(domain[0] != 0 && domain[0] == domain[1]);
        l->nvlink_pci = NULL; /* to GPUs that are not ours */
        nvml_links(l, links, domain);
        CU_ASSERT(domain[0] != 0 && domain[1] != 0 && domain[0] != domain[1]);
        l->nvlink_type = any_type; /* by a switch */
        nvml_links(l, links, domain);
        CU_ASSERT(domain[0] != 0 && domain[0] == domain[1]);
        l->gpus[1].lost = true;
        nvml_links(l, links, domain);
        CU_ASSERT(links[1] == 0 && domain[1] == 0);
        machine_free(m);
}

static void link_to(struct machine *m, const char *path, const char *to) {
        _cleanup_free_ char *full = file_path("%s%s", m->root, path);

        put(m, path, "x");
        CU_ASSERT_EQUAL(unlink(full), 0);
        CU_ASSERT_EQUAL(symlink(to, full), 0);
}

#define BRIDGES "pci0000:15/0000:15:01.0/0000:16:00.0/"
#define DEVICES "../../../devices/" BRIDGES

TEST(where_devices_hang) {
        struct machine *m = machine_new();
        struct rdma_nic nics[4];
        struct pci_place p;

        CU_ASSERT_EQUAL(health_nics(m->root, nics, 4), 0);
        put(m, "/sys/devices/" BRIDGES "0000:17:01.0/0000:18:00.0/numa_node", "1\n");
        put(m, "/sys/devices/" BRIDGES "0000:17:02.0/0000:19:00.0/numa_node", "-1\n");
        put(m, "/sys/devices/" BRIDGES "0000:17:03.0/0000:1a:00.0/virtio4/numa_node", "0\n");
        link_to(m, "/sys/bus/pci/devices/0000:18:00.0", DEVICES "0000:17:01.0/0000:18:00.0");
        p = health_pci_place(m->root, "0000:18:00.0");
        CU_ASSERT_STRING_EQUAL(p.path, BRIDGES "0000:17:01.0/0000:18:00.0");
        CU_ASSERT_EQUAL(p.numa, 1);
        p = health_pci_place(m->root, "0000:99:00.0");
        CU_ASSERT_STRING_EQUAL(p.path, "");
        CU_ASSERT_EQUAL(p.numa, -1);
        /* Two on PCI, one below another bus there, one made of software. */
        link_to(m, "/sys/class/infiniband/mlx5_0/device", DEVICES "0000:17:02.0/0000:19:00.0");
        put(m, "/sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n");
        put(m, "/sys/class/infiniband/mlx5_0/ports/2/state", "1: DOWN\n");
        link_to(m, "/sys/class/infiniband/efa_0/device", DEVICES "0000:17:03.0/0000:1a:00.0/virtio4");
        put(m, "/sys/class/infiniband/rxe0/ports/1/state", "4: ACTIVE\n");
        CU_ASSERT_EQUAL_FATAL(health_nics(m->root, nics, 4), 2);
        CU_ASSERT_STRING_EQUAL(nics[0].name, "efa_0");
        CU_ASSERT_STRING_EQUAL(nics[0].place.path, BRIDGES "0000:17:03.0/0000:1a:00.0");
        CU_ASSERT_EQUAL(nics[0].n_ports, 0);
        CU_ASSERT_STRING_EQUAL(nics[1].name, "mlx5_0");
        CU_ASSERT_EQUAL(nics[1].place.numa, -1);
        CU_ASSERT(nics[1].n_ports == 2 && nics[1].ports[0] == 1 && nics[1].ports[1] == 2);
        CU_ASSERT_EQUAL(health_nics(m->root, nics, 1), 1);
        machine_free(m);
}

/* ------------------------------------------------------------------ site checks */
static void script(struct machine *m, const char *name, mode_t mode, const char *text) {
        char path[512];

        snprintf(path, sizeof(path), "/checks/%s", name);
        put(m, path, "#!/bin/sh\n%s\n", text);
        snprintf(path, sizeof(path), "%s/checks/%s", m->root, name);
        CU_ASSERT_EQUAL(chmod(path, mode), 0);
}

TEST(site_checks_and_their_exit_codes) {
        struct machine *m = machine_new();
        char dir[512];

        snprintf(dir, sizeof(dir), "%s/checks", m->root);
        m->h.world.checks_dir = dir;
        script(m, "ok", 0755, "echo 'all is well | load=1'; exit 0");
        script(m, "warn", 0755, "echo 'so so'; echo more; exit 1");
        script(m, "critical", 0755, "echo broken >&2; exit 2");
        script(m, "unknown", 0755, "exit 3");
        script(m, "dies", 0755, "kill -9 $$");
        script(m, "loud", 0755, "yes abcdefgh | head -c 1000000; exit 0");
        script(m, "leaves", 0755, "sleep 60 & echo left; exit 0");
        script(m, "plain", 0644, "exit 2");
        script(m, "open", 0777, "exit 2");
        script(m, "nobody", 0755, "test $(id -u) = 65534 || test $(id -u) != 0 || exit 2");
        EXPECT(m, "site", "ok", OK, "all is well");
        CU_ASSERT_STRING_EQUAL(state_of(m, "site", "ok")->said.evidence, "all is well");
        EXPECT(m, "site", "warn", WARN, "so so");
        CU_ASSERT_EQUAL(state_of(m, "site", "critical")->said.verdict, HEALTH_DRAIN);
        CU_ASSERT_STRING_EQUAL(state_of(m, "site", "critical")->said.evidence, "broken");
        CU_ASSERT_EQUAL(state_of(m, "site", "unknown")->said.verdict, HEALTH_WARN);
        CU_ASSERT_STRING_EQUAL(state_of(m, "site", "dies")->said.evidence, "died of signal 9");
        CU_ASSERT_EQUAL(state_of(m, "site", "loud")->said.verdict, HEALTH_OK);
        CU_ASSERT_STRING_EQUAL(state_of(m, "site", "leaves")->said.evidence, "left");
        CU_ASSERT_PTR_NULL(state_of(m, "site", "plain"));
        CU_ASSERT_STRING_EQUAL(state_of(m, "site", "open")->said.evidence, "not run: others may write it");
        CU_ASSERT_EQUAL(state_of(m, "site", "nobody")->said.verdict, HEALTH_OK);
        machine_free(m);
}

TEST(a_program_that_does_not_end_is_ended) {
        char *argv[] = { (char *)"/bin/sh", (char *)"-c", (char *)"echo begun; sleep 60 & sleep 60", NULL }, out[64];
        struct program p = { .path = "/bin/sh", .argv = argv, .timeout_ms = 100 };
        struct error e = { 0 };
        const atomic_bool wanted = true;
        uint64_t t = clock_mono_ns();
        int status = 0;

        ASSERT_ERROR(program_run(&p, out, sizeof(out), &status, &e), -ETIMEDOUT, e, "did not end within 0.1 s");
        CU_ASSERT_STRING_EQUAL(out, "begun\n");
        CU_ASSERT(clock_mono_ns() - t < 10 * NSEC_PER_SEC);
        p.timeout_ms = 60000;
        p.cancel = &wanted;
        p.background = true;
        t = clock_mono_ns();
        ASSERT_ERROR(program_run(&p, out, sizeof(out), &status, &e), -ECANCELED, e, "its device is wanted");
        CU_ASSERT(clock_mono_ns() - t < 10 * NSEC_PER_SEC);
        p.cancel = NULL;
        p.path = "/nowhere/program";
        CU_ASSERT(program_run(&p, out, sizeof(out), &status, &e) < 0);
}

/* ------------------------------------------------------------------ the engine */
struct heard {
        size_t reports, whole, checks, findings, facts;
        uint32_t xid, count;
};

static void on_report(void *arg, Fp8ctl__V1__HealthReport *r) {
        struct heard *k = arg;

        k->facts += r->n_facts;
        if (r->n_facts)
                return;
        k->reports++;
        k->whole += r->whole;
        k->checks += r->n_checks;
        k->findings += r->n_findings;
        for (size_t i = 0; i < r->n_findings; i++) {
                k->xid = r->findings[i]->code;
                k->count += r->findings[i]->count;
        }
}

static void turn(struct loop *l, const size_t *what, size_t at_least) {
        for (int i = 0; i < 200 && *what < at_least; i++)
                loop_turn(l, 20);
        CU_ASSERT(*what >= at_least);
}

TEST(lanes_the_log_and_a_lane_that_ends) {
        struct machine *m = machine_new();
        struct heard k = { 0 };
        struct health_config c = { .root = m->root, .checks_dir = "", .site_ms = 1000, .dir = m->root, .nvml = getenv("FAKE_NVML"), .report = on_report, .arg = &k };
        struct health *h = NULL;
        struct error e = { 0 };
        char fifo[512];
        FILE *f;

        snprintf(fifo, sizeof(fifo), "%s/dev", m->root);
        CU_ASSERT_EQUAL(mkdir(fifo, 0755), 0);
        snprintf(fifo, sizeof(fifo), "%s/dev/kmsg", m->root);
        CU_ASSERT_EQUAL(mkfifo(fifo, 0600), 0);
        CU_ASSERT_EQUAL(loop_new(&c.loop), 0);
        ASSERT_OK(health_new(&c, &h, &e), e);
        for (int i = 0; i < 10; i++)
                loop_turn(c.loop, 10);
        CU_ASSERT_EQUAL(k.reports, 0); /* nobody listens yet */
        health_welcome(h, false);
        CU_ASSERT_EQUAL(k.whole, 1);
        turn(c.loop, &k.checks, 10);
        turn(c.loop, &k.facts, 3);
        f = fopen(fifo, "w");
        CU_ASSERT_FATAL(f != NULL);
        fprintf(f, "14,1,1,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=1\n"); /* a process's */
        for (int i = 0; i < 1000; i++)
                fprintf(f, "4,%d,100,-;NVRM: Xid (PCI:0000:3b:00): 13, pid=1\n", i);
        fclose(f);
        turn(c.loop, &k.findings, 1);
        for (int i = 0; i < 5; i++)
                loop_turn(c.loop, 10);
        CU_ASSERT_EQUAL(k.xid, 13);
        CU_ASSERT_EQUAL(k.count, 1000);
        CU_ASSERT(k.findings < 20); /* a storm of one line is few findings */
        health_welcome(h, true);
        CU_ASSERT_EQUAL(k.whole, 2);
        CU_ASSERT_TRUE(health_stop(h));
        loop_free(c.loop);
        machine_free(m);
}

TEST_MAIN("health_checks")
