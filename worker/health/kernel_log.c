/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/health/kernel_log.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"

/* What counts. `with` must be in the line too, where it is given; the subject is the word behind `of`. The first row that fits is taken. */
/* clang-format off */
static const struct pattern {
        const char *has, *with, *check;
        enum health_verdict verdict;
        bool network;
        const char *of;
} patterns[] = {
        { "Out of memory: Killed process", NULL, "oom", HEALTH_WARN, false, NULL },
        { "emory cgroup out of memory: Killed process", NULL, "oom", HEALTH_OK, false, NULL },
        { "[Hardware Error]", "Uncorrected", "mce", HEALTH_DRAIN, false, NULL },
        { "[Hardware Error]", "Fatal", "mce", HEALTH_EVICT, false, NULL },
        { "mce: [Hardware Error]: Machine check events logged", NULL, "mce", HEALTH_WARN, false, NULL },
        { "EDAC ", " UE ", "edac", HEALTH_DRAIN, false, "EDAC " },
        { "AER:", "Uncorrected (Fatal)", "pcie", HEALTH_DRAIN, false, "pcieport " },
        { "PCIe Bus Error: severity=Uncorrected (Fatal)", NULL, "pcie", HEALTH_DRAIN, false, NULL },
        { "PCIe Bus Error: severity=Uncorrected (Non-Fatal)", NULL, "pcie", HEALTH_WARN, false, NULL },
        { "I/O error, dev ", NULL, "io", HEALTH_WARN, false, "dev " },
        { "EXT4-fs error (device ", NULL, "io", HEALTH_WARN, false, "(device " },
        { "EXT4-fs (", "Remounting filesystem read-only", "io", HEALTH_DRAIN, false, "EXT4-fs (" },
        { "XFS (", "Corruption", "io", HEALTH_DRAIN, false, "XFS (" },
        { "XFS (", "Shutting down filesystem", "io", HEALTH_DRAIN, false, "XFS (" },
        { "nvme ", "controller is down", "io", HEALTH_DRAIN, false, "nvme " },
        { "soft lockup - CPU#", NULL, "hung", HEALTH_DRAIN, false, NULL },
        { "hard LOCKUP", NULL, "hung", HEALTH_EVICT, false, NULL },
        { "blocked for more than", "task ", "hung", HEALTH_WARN, false, NULL },
        { "NETDEV WATCHDOG: ", NULL, "net", HEALTH_DRAIN, true, "NETDEV WATCHDOG: " },
        { "mlx5_core ", "device's health compromised", "net", HEALTH_DRAIN, true, "mlx5_core " },
        { "mlx5_core ", "Port module event[error]", "net", HEALTH_DRAIN, true, "mlx5_core " },
        { "nvidia-nvswitch", "SXid", "nvswitch", HEALTH_WARN, false, "nvidia-nvswitch" },
};
/* clang-format on */

/* At most `digits` of them, from *at on. */
static bool number(const char *s, size_t len, size_t *at, size_t digits, uint64_t *ret) {
        uint64_t v = 0;
        size_t n = 0;

        while (*at < len && isdigit((unsigned char)s[*at]) && n < digits) {
                v = v * 10 + (uint64_t)(s[*at] - '0');
                ++*at;
                n++;
        }
        *ret = v;
        return n > 0 && (*at == len || !isdigit((unsigned char)s[*at]));
}

/* "6,339,5140900,-[,...];text" */
bool kernel_line_parse(const char *line, size_t len, struct kernel_line *ret) {
        size_t at = 0;
        uint64_t priority;

        if (!number(line, len, &at, 4, &priority) || at == len || line[at++] != ',')
                return false;
        if (!number(line, len, &at, 18, &ret->sequence) || at == len || line[at++] != ',')
                return false;
        if (!number(line, len, &at, 18, &ret->us) || at == len || line[at++] != ',')
                return false;
        while (at < len && line[at] != ';')
                at++;
        if (at == len)
                return false;
        ret->priority = (unsigned)priority;
        ret->text = line + at + 1;
        ret->len = len - at - 1;
        return true;
}

/* A copy that is a string, without control characters; the kernel has made the others printable. */
static void keep(const struct kernel_line *l, char *ret, size_t size) {
        size_t n = l->len < size - 1 ? l->len : size - 1;

        for (size_t i = 0; i < n; i++)
                ret[i] = (unsigned char)l->text[i] < 0x20 || (unsigned char)l->text[i] >= 0x7f ? '?' : l->text[i];
        ret[n] = 0;
}

static void word(const char *at, char *ret, size_t size) {
        size_t n;

        at += strspn(at, ": #");
        n = strcspn(at, " ,;()[]");
        while (n > 0 && at[n - 1] == ':')
                n--;
        snprintf(ret, size, "%.*s", (int)(n < size - 1 ? n : size - 1), at);
}

/* "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python3, GPU has fallen off the bus." */
static bool find_xid(struct kernel_finding *f) {
        static const char head[] = "NVRM: Xid (PCI:";
        const char *pci = f->text + sizeof(head) - 1, *end, *pid;
        uint64_t code, who;
        size_t at = 0, len = strlen(f->text);

        if (strncmp(f->text, head, sizeof(head) - 1) != 0)
                return false;
        end = strchr(pci, ')');
        if (!end || (size_t)(end - pci) < 10 || (size_t)(end - pci) > 16 || strspn(pci, "0123456789abcdefABCDEF:.") != (size_t)(end - pci) || strncmp(end, "): ", 3) != 0)
                return false;
        at = (size_t)(end + 3 - f->text);
        if (!number(f->text, len, &at, 4, &code) || code == 0 || (at < len && f->text[at] != ',' && f->text[at] != ' '))
                return false;
        for (size_t i = 0; i < (size_t)(end - pci); i++)
                f->subject[i] = (char)tolower((unsigned char)pci[i]);
        f->subject[end - pci] = 0;
        f->check = "xid";
        f->code = (uint32_t)code;
        pid = strncmp(f->text + at, ", pid=", 6) == 0 ? f->text + at + 6 : NULL;
        at = pid ? (size_t)(pid - f->text) : 0;
        if (pid && (number(f->text, len, &at, 9, &who) || (f->text[at] == '\'' && ++at && number(f->text, len, &at, 9, &who))))
                f->pid = (uint32_t)who;
        return true;
}

bool kernel_line_find(const struct kernel_line *l, struct kernel_finding *ret) {
        struct kernel_finding f = { 0 };

        keep(l, f.text, sizeof(f.text));
        if (find_xid(&f)) {
                *ret = f;
                return true;
        }
        for (size_t i = 0; i < ARRAY_SIZE(patterns); i++) {
                const struct pattern *p = &patterns[i];
                const char *of = p->of ? strstr(f.text, p->of) : NULL;

                if (!strstr(f.text, p->has) || (p->with && !strstr(f.text, p->with)))
                        continue;
                f.check = p->check;
                f.verdict = p->verdict;
                f.network = p->network;
                if (of)
                        word(of + strlen(p->of), f.subject, sizeof(f.subject));
                *ret = f;
                return true;
        }
        return false;
}
