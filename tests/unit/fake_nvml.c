/* SPDX-License-Identifier: Apache-2.0 */
/* A stand-in for libnvidia-ml.so.1 with two GPUs, whose values a test sets by fake_nvml_set. Like the real one it leaves a destructor with each thread that used it. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { GPUS = 2 };

static struct value {
        const char *name;
        unsigned long long v[GPUS];
} values[] = {
        { "temperature", { 40, 41 } }, { "uncorrected", { 0, 0 } }, { "pending", { 0, 0 } }, { "failed", { 0, 0 } }, { "throttle", { 0, 0 } }, { "lost", { 0, 0 } }, { "nvlink", { 1, 1 } }, { "lanes", { 16, 16 } }, { "xid", { 0, 0 } }, { "memory", { 0, 0 } }, { "ecc", { 1, 1 } }, { "recoveries", { 1, 1 } }, { "replays", { 0, 0 } }, { "fabric", { 0, 0 } }, { "fabric status", { 0, 0 } },
};
static pthread_key_t key;
static int handles[GPUS];

void fake_nvml_set(const char *name, int gpu, unsigned long long v);
void fake_nvml_set(const char *name, int gpu, unsigned long long v) {
        for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++)
                if (strcmp(values[i].name, name) == 0)
                        __atomic_store_n(&values[i].v[gpu], v, __ATOMIC_RELAXED);
}

static unsigned long long get(const char *name, const void *device) {
        long gpu = (const int *)device - handles;

        for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++)
                if (strcmp(values[i].name, name) == 0)
                        return __atomic_load_n(&values[i].v[gpu], __ATOMIC_RELAXED);
        return 0;
}

static void thread_ends(void *arg) {
}

#define EXPORT(name, ...) \
        int name(__VA_ARGS__); \
        int name(__VA_ARGS__)
#define LOST(d)               \
        if (get("lost", d))   \
        return 15

EXPORT(nvmlInit_v2, void) {
        pthread_key_create(&key, thread_ends);
        pthread_setspecific(key, handles);
        return 0;
}
EXPORT(nvmlShutdown, void) {
        return 0;
}
EXPORT(nvmlDeviceGetCount_v2, unsigned *n) {
        *n = GPUS;
        return 0;
}
EXPORT(nvmlDeviceGetHandleByIndex_v2, unsigned i, void **ret) {
        *ret = &handles[i];
        return 0;
}
EXPORT(nvmlDeviceGetPciInfo_v3, void *d, char *pci) {
        snprintf(pci + 36, 32, "00000000:%s:00.0", (int *)d == handles ? "3B" : "5E"); /* behind 16 bytes and five numbers */
        return 0;
}
EXPORT(nvmlDeviceGetTemperature, void *d, int sensor, unsigned *ret) {
        LOST(d);
        *ret = (unsigned)get("temperature", d);
        return 0;
}
EXPORT(nvmlDeviceGetTemperatureThreshold, void *d, int type, unsigned *ret) {
        *ret = type == 0 ? 95 : 89;
        return 0;
}
EXPORT(nvmlDeviceGetTotalEccErrors, void *d, int type, int counter, unsigned long long *ret) {
        LOST(d);
        *ret = type == 1 ? get("uncorrected", d) : 7;
        return 0;
}
EXPORT(nvmlDeviceGetRemappedRows, void *d, unsigned *c, unsigned *u, unsigned *pending, unsigned *failed) {
        LOST(d);
        *c = *u = 1;
        *pending = (unsigned)get("pending", d);
        *failed = (unsigned)get("failed", d);
        return 0;
}
EXPORT(nvmlDeviceGetCurrentClocksThrottleReasons, void *d, unsigned long long *ret) {
        *ret = get("throttle", d);
        return 0;
}
EXPORT(nvmlDeviceGetCurrPcieLinkWidth, void *d, unsigned *ret) {
        *ret = (unsigned)get("lanes", d);
        return 0;
}
EXPORT(nvmlDeviceGetMaxPcieLinkWidth, void *d, unsigned *ret) {
        *ret = 16;
        return 0;
}
EXPORT(nvmlDeviceGetNvLinkState, void *d, unsigned link, int *ret) {
        *ret = link == 3 ? (int)get("nvlink", d) : 1;
        return link < 4 ? 0 : 2;
}
EXPORT(nvmlDeviceGetNvLinkErrorCounter, void *d, unsigned link, int counter, unsigned long long *ret) {
        *ret = counter == 1 && link == 2 ? get("recoveries", d) : counter == 1 ? 0 : 1000;
        return link < 4 ? 0 : 2;
}
EXPORT(nvmlDeviceGetPcieReplayCounter, void *d, unsigned *ret) {
        LOST(d);
        *ret = (unsigned)get("replays", d);
        return 0;
}
EXPORT(nvmlDeviceGetGpuFabricInfo, void *d, void *info) {
        const int status = (int)get("fabric status", d);
        const unsigned char state = (unsigned char)get("fabric", d);

        memcpy((char *)info + 16, &status, sizeof(status)); /* behind the cluster's uuid */
        memcpy((char *)info + 24, &state, sizeof(state));   /* and the clique */
        return 0;
}
/* Links 0 and 1 of each to the other; 2 and 3 to nobody here. */
EXPORT(nvmlDeviceGetNvLinkRemoteDeviceType, void *d, unsigned link, int *type) {
        *type = 0;
        return 0;
}
EXPORT(nvmlDeviceGetNvLinkRemotePciInfo_v2, void *d, unsigned link, char *pci) {
        snprintf(pci + 36, 32, "00000000:%s:00.0", link > 1 ? "99" : (int *)d == handles ? "5E" : "3B");
        return 0;
}
EXPORT(nvmlDeviceGetMemoryInfo, void *d, unsigned long long *m) {
        m[0] = get("memory", d);
        return m[0] ? 0 : 3;
}
EXPORT(nvmlSystemGetDriverVersion, char *text, unsigned n) {
        snprintf(text, n, "535.1");
        return 0;
}
EXPORT(nvmlDeviceGetSerial, void *d, char *text, unsigned n) {
        snprintf(text, n, "serial %s", (int *)d == handles ? "a" : "b");
        return 0;
}
EXPORT(nvmlDeviceGetEccMode, void *d, int *now, int *next) {
        *now = *next = (int)get("ecc", d);
        return 0;
}
EXPORT(nvmlEventSetCreate, void **set) {
        *set = handles;
        return 0;
}
EXPORT(nvmlEventSetFree, void *set) {
        return 0;
}
EXPORT(nvmlDeviceRegisterEvents, void *d, unsigned long long types, void *set) {
        return 0;
}

struct event {
        void *device;
        unsigned long long type, data;
        unsigned instances[2];
};

EXPORT(nvmlEventSetWait_v2, void *set, struct event *e, unsigned ms) {
        for (int i = 0; i < GPUS; i++)
                if (get("xid", &handles[i])) {
                        *e = (struct event){ &handles[i], 8, get("xid", &handles[i]), { 0 } };
                        fake_nvml_set("xid", i, 0);
                        return 0;
                }
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
        return 10;
}
