/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/agent/node.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "version.h"
#include "worker/agent/cgroup.h"

/* The value after "key" in a file of "key : value" lines. */
static void file_value(const char *path, const char *key, char *ret, size_t size) {
        _cleanup_fclose_ FILE *f = fopen(path, "re");
        char line[256];

        ret[0] = '\0';
        while (f && fgets(line, sizeof(line), f)) {
                const char *v;

                if (strncmp(line, key, strlen(key)) != 0)
                        continue;
                v = line + strlen(key);
                v += strspn(v, " \t:");
                snprintf(ret, size, "%.*s", (int)strcspn(v, "\n"), v);
                return;
        }
}

static uint64_t meminfo_bytes(const char *key) {
        char text[128];
        uint64_t kib = 0;

        file_value("/proc/meminfo", key, text, sizeof(text));
        return sscanf(text, "%" SCNu64, &kib) == 1 ? kib * 1024 : 0;
}

void node_describe(struct node_info *n, const char *name, const char *dir, const char *address, const char *kind, int devices) {
        struct utsname u;
        long cpus = sysconf(_SC_NPROCESSORS_ONLN);

        memset(n, 0, sizeof(*n));
        if (uname(&u) == 0)
                snprintf(n->kernel, sizeof(n->kernel), "%s %s", u.sysname, u.release);
        file_value("/proc/sys/kernel/random/boot_id", "", n->boot_id, sizeof(n->boot_id));
        file_value("/proc/cpuinfo", "model name", n->device_name, sizeof(n->device_name));
        n->memory_bytes = meminfo_bytes("MemTotal:");
        n->cpus = cpus > 0 ? (uint32_t)cpus : 1;
        n->incarnation = clock_wall_ns();

        fp8ctl__v1__node__init(&n->message);
        n->message.name = (char *)name;
        n->message.state = (char *)"ready";
        n->message.dir = (char *)dir;
        n->message.address = (char *)address;
        n->message.version = (char *)FP8CTL_VERSION;
        n->message.incarnation = n->incarnation;
        n->message.memory_bytes = n->memory_bytes;
        n->message.cpus = n->cpus;
        n->message.kernel = n->kernel;
        n->message.boot_id = n->boot_id;
        for (int i = 0; i < devices && i < NODE_DEVICES_MAX; i++) {
                fp8ctl__v1__node_device__init(&n->devices[i]);
                n->devices[i].index = (uint32_t)i;
                n->devices[i].kind = (char *)kind;
                n->devices[i].name = n->device_name;
                n->devices[i].memory_bytes = strcmp(kind, "cpu") == 0 ? n->memory_bytes / (uint64_t)devices : 0; /* a GPU's: its library tells later */
                n->device_list[i] = &n->devices[i];
                n->message.n_devices++;
        }
        n->message.devices = n->device_list;
}

void node_describe_topology(struct node_info *n, const char *root, size_t gpus) {
        for (size_t i = 0; i < gpus && i < n->message.n_devices; i++) {
                n->places[i] = health_pci_place(root, n->pci[i].text);
                n->devices[i].path = n->places[i].path;
                n->devices[i].numa = n->places[i].numa;
        }
        n->message.n_nics = health_nics(root, n->nics, NODE_NICS_MAX);
        n->message.nics = n->nic_list;
        for (size_t i = 0; i < n->message.n_nics; i++) {
                Fp8ctl__V1__NodeNic *m = n->nic_list[i] = &n->nic_messages[i];

                fp8ctl__v1__node_nic__init(m);
                m->name = n->nics[i].name;
                m->path = n->nics[i].place.path;
                m->numa = n->nics[i].place.numa;
                m->ports = n->nics[i].ports;
                m->n_ports = n->nics[i].n_ports;
        }
}

uint64_t node_memory_left(void) {
        uint64_t available = meminfo_bytes("MemAvailable:"), group = cgroup_memory_left();

        return group < available ? group : available;
}
