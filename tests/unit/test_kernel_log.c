/* SPDX-License-Identifier: Apache-2.0 */
/* Lines of the kernel's log: what counts of them, every Xid of the table, and that nothing else does, whatever it looks like. */
#include "tests/test.h"
#include "worker/health/kernel_log.h"

static bool find(const char *line, struct kernel_finding *f) {
        struct kernel_line l;

        *f = (struct kernel_finding){ 0 };
        return kernel_line_parse(line, strlen(line), &l) && kernel_line_find(&l, f);
}

TEST(every_xid_is_found_with_its_gpu_and_process) {
        static const uint32_t codes[] = { 8,  11, 13, 31, 32, 39, 40, 41, 43, 44, 45, 46, 48, 54, 62, 63, 64, 66, 67, 69, 70, 71, 72, 74, 75, 76, 77, 79, 80, 92, 94, 95,
                                          109, 110, 119, 120, 121, 136, 137, 140, 143, 144, 145, 146, 147, 148, 149, 150, 151, 154, 155, 156, 158, 160 };
        struct kernel_finding f;
        char line[256];

        for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
                snprintf(line, sizeof(line), "3,%zu,5140900,-;NVRM: Xid (PCI:0000:3B:00): %u, pid=4711, name=fp8-rank, Ch 00000008", i, codes[i]);
                CU_ASSERT_TRUE(find(line, &f));
                CU_ASSERT_STRING_EQUAL(f.check, "xid");
                CU_ASSERT_STRING_EQUAL(f.subject, "0000:3b:00");
                CU_ASSERT_EQUAL(f.code, codes[i]);
                CU_ASSERT_EQUAL(f.pid, 4711);
        }
        CU_ASSERT_TRUE(find("3,1,1,-;NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.", &f));
        CU_ASSERT_EQUAL(f.pid, 0);
        CU_ASSERT_TRUE(find("3,1,1,-;NVRM: Xid (PCI:0000:3b:00): 31, pid='1234', name=x", &f));
        CU_ASSERT_EQUAL(f.pid, 1234);
        CU_ASSERT_TRUE(find("3,1,1,-;NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)", &f));
        CU_ASSERT_EQUAL(f.code, 154);
        CU_ASSERT_PTR_NOT_NULL(strstr(f.text, "(GPU Reset Required)"));
        CU_ASSERT_TRUE(find("3,1,1,-;NVRM: Xid (PCI:0000:3b:00): 79", &f));
}

TEST(other_lines_have_their_rows) {
        static const struct {
                const char *line, *check, *subject;
                enum health_verdict verdict;
                bool network;
        } cases[] = {
                { "Out of memory: Killed process 99 (python3) total-vm:1kB", "oom", "", HEALTH_WARN, false },
                { "I/O error, dev sda, sector 2048 op 0x0:(READ) flags 0x0", "io", "sda", HEALTH_WARN, false },
                { "blk_update_request: I/O error, dev nvme0n1, sector 1", "io", "nvme0n1", HEALTH_WARN, false },
                { "EXT4-fs error (device sda1): ext4_find_entry:1455", "io", "sda1", HEALTH_WARN, false },
                { "EXT4-fs (sda1): Remounting filesystem read-only", "io", "sda1", HEALTH_DRAIN, false },
                { "XFS (dm-3): Metadata Corruption detected at xfs_buf", "io", "dm-3", HEALTH_DRAIN, false },
                { "nvme nvme0: controller is down; will reset: CSTS=0xffffffff", "io", "nvme0", HEALTH_DRAIN, false },
                { "watchdog: BUG: soft lockup - CPU#3 stuck for 26s! [x:1]", "hung", "", HEALTH_DRAIN, false },
                { "INFO: task fp8-rank:812 blocked for more than 120 seconds.", "hung", "", HEALTH_WARN, false },
                { "NETDEV WATCHDOG: eth0 (e1000): transmit queue 0 timed out", "net", "eth0", HEALTH_DRAIN, true },
                { "mlx5_core 0000:17:00.0: poll_health:800:(pid 0): device's health compromised - reached miss count", "net", "0000:17:00.0", HEALTH_DRAIN, true },
                { "mce: [Hardware Error]: CPU 1: Machine Check: 0 Bank 4: Uncorrected", "mce", "", HEALTH_DRAIN, false },
                { "EDAC MC0: 1 UE memory read error on CPU_SrcID#0", "edac", "MC0", HEALTH_DRAIN, false },
        };
        char line[256];

        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                struct kernel_finding f;
                bool ok;

                snprintf(line, sizeof(line), "4,7,1000,c,caller=T1;%s", cases[i].line);
                ok = find(line, &f) && strcmp(f.check, cases[i].check) == 0 && strcmp(f.subject, cases[i].subject) == 0 && f.verdict == cases[i].verdict && f.network == cases[i].network && !f.code;
                if (!ok)
                        printf("    '%s': found %s, '%s', %d\n", cases[i].line, f.check ? f.check : "nothing", f.subject, f.verdict);
                CU_ASSERT_TRUE(ok);
        }
}

TEST(nothing_else_counts) {
        static const char *const lines[] = {
                "",
                ";",
                "6",
                "6,1,1,-",
                "NVRM: Xid (PCI:0000:3b:00): 79, no prefix",
                "6,1,1;NVRM: Xid (PCI:0000:3b:00): 79, pid=1",
                "99999,1,1,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=1",
                "6,9999999999999999999,1,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=1",
                "-6,1,1,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=1",
                "6,1,1,-;usb 1-1: Product: NVRM: Xid (PCI:0000:3b:00): 79, pid=1",
                "6,1,1,-; NVRM: Xid (PCI:0000:3b:00): 79, pid=1",
                "6,1,1,-;NVRM: Xid (PCI:0000:3b:00): ",
                "6,1,1,-;NVRM: Xid (PCI:0000:3b:00): 0, pid=1",
                "6,1,1,-;NVRM: Xid (PCI:0000:3b:00): 79999, pid=1",
                "6,1,1,-;NVRM: Xid (PCI:0000:3b:00): -79, pid=1",
                "6,1,1,-;NVRM: Xid (PCI:0000:3b:00): 79x",
                "6,1,1,-;NVRM: Xid (PCI:0000:3b:00) 79",
                "6,1,1,-;NVRM: Xid (PCI:../../etc/passwd): 79, pid=1",
                "6,1,1,-;NVRM: Xid (PCI:0000:3b:00:0000:3b:00:0000:3b:00): 79, pid=1",
                "6,1,1,-;NVRM: Xid (PCI:): 79, pid=1",
                "6,1,1,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module",
                "6,1,1,-;eth0: link becomes ready",
                " SUBSYSTEM=pci",
        };
        struct kernel_finding f;

        for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
                if (find(lines[i], &f))
                        printf("    '%s' was taken for %s %u\n", lines[i], f.check, f.code);
                CU_ASSERT_FALSE(find(lines[i], &f));
        }
}

TEST(any_bytes_are_borne) {
        static const char seed[] = "3,12,5140900,-;NVRM: Xid (PCI:0000:3b:00): 79, pid='4711', name=x, I/O error, dev sda, EDAC MC0: UE (device";
        struct kernel_finding f;
        struct kernel_line l;
        char line[sizeof(seed)];
        uint32_t random = 1;
        size_t found = 0;

        for (int i = 0; i < 50000; i++) {
                size_t len;

                memcpy(line, seed, sizeof(seed));
                for (int k = 0; k < 3; k++) {
                        random = random * 1664525u + 1013904223u;
                        line[(random >> 8) % (sizeof(seed) - 1)] = (char)(random >> 24);
                }
                len = (random >> 4) % sizeof(seed);
                if (!kernel_line_parse(line, len, &l) || !kernel_line_find(&l, &f))
                        continue;
                found++;
                CU_ASSERT(f.check && strlen(f.subject) < sizeof(f.subject) && f.code < 10000);
                for (const char *c = f.text; *c; c++)
                        CU_ASSERT((unsigned char)*c >= 0x20 && (unsigned char)*c < 0x7f);
        }
        CU_ASSERT(found > 1000);
}

TEST_MAIN("kernel_log")
