/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* NVIDIA's management library, loaded at run time. Only the GPU lane's thread uses it: it may hang with its driver. */
#include <stdbool.h>
#include <stdint.h>

#include "worker/health/check.h"

/* The library's numbers (nvml.h of CUDA). */
enum { NVML_SUCCESS = 0, NVML_NOT_SUPPORTED = 3, NVML_TIMEOUT = 10, NVML_GPU_IS_LOST = 15 };

enum { NVML_LINKS_MAX = 18 };

struct nvml_memory {
        unsigned long long total, free, used;
};
struct nvml_pci {
        char legacy[16];
        unsigned domain, bus, device, ids, subsystem;
        char text[32]; /* "00000000:3B:00.0" */
};
struct nvml_event {
        void *device;
        unsigned long long type, data; /* data: the Xid */
        unsigned gpu_instance, compute_instance;
};
struct nvml_fabric {
        unsigned char cluster[16];
        int status; /* when it has completed: how */
        unsigned clique;
        unsigned char state;
};
struct nvml_process {
        unsigned pid;
        unsigned long long memory;
        unsigned gpu_instance, compute_instance;
};

/* Functions by the names that the library has for them; those that it lacks are NULL. */
#define NVML_FUNCTIONS(X)                                                                            \
        X(init, "nvmlInit_v2", (void))                                                               \
        X(shutdown, "nvmlShutdown", (void))                                                          \
        X(driver, "nvmlSystemGetDriverVersion", (char *, unsigned))                                  \
        X(cuda, "nvmlSystemGetCudaDriverVersion_v2", (int *))                                        \
        X(serial, "nvmlDeviceGetSerial", (void *, char *, unsigned))                                 \
        X(uuid, "nvmlDeviceGetUUID", (void *, char *, unsigned))                                     \
        X(vbios, "nvmlDeviceGetVbiosVersion", (void *, char *, unsigned))                            \
        X(inforom, "nvmlDeviceGetInforomImageVersion", (void *, char *, unsigned))                   \
        X(ecc_mode, "nvmlDeviceGetEccMode", (void *, int *, int *))                                  \
        X(mig_mode, "nvmlDeviceGetMigMode", (void *, unsigned *, unsigned *))                        \
        X(persistence, "nvmlDeviceGetPersistenceMode", (void *, int *))                              \
        X(power_limit, "nvmlDeviceGetEnforcedPowerLimit", (void *, unsigned *))                      \
        X(max_generation, "nvmlDeviceGetMaxPcieLinkGeneration", (void *, unsigned *))                \
        X(count, "nvmlDeviceGetCount_v2", (unsigned *))                                              \
        X(handle, "nvmlDeviceGetHandleByIndex_v2", (unsigned, void **))                              \
        X(pci, "nvmlDeviceGetPciInfo_v3", (void *, struct nvml_pci *))                               \
        X(name, "nvmlDeviceGetName", (void *, char *, unsigned))                                     \
        X(temperature, "nvmlDeviceGetTemperature", (void *, int, unsigned *))                        \
        X(threshold, "nvmlDeviceGetTemperatureThreshold", (void *, int, unsigned *))                 \
        X(ecc, "nvmlDeviceGetTotalEccErrors", (void *, int, int, unsigned long long *))              \
        X(rows, "nvmlDeviceGetRemappedRows", (void *, unsigned *, unsigned *, unsigned *, unsigned *)) \
        X(throttle, "nvmlDeviceGetCurrentClocksThrottleReasons", (void *, unsigned long long *))     \
        X(clock, "nvmlDeviceGetClockInfo", (void *, int, unsigned *))                                \
        X(memory, "nvmlDeviceGetMemoryInfo", (void *, struct nvml_memory *))                         \
        X(power, "nvmlDeviceGetPowerUsage", (void *, unsigned *))                                    \
        X(processes, "nvmlDeviceGetComputeRunningProcesses_v3", (void *, unsigned *, struct nvml_process *)) \
        X(width, "nvmlDeviceGetCurrPcieLinkWidth", (void *, unsigned *))                             \
        X(max_width, "nvmlDeviceGetMaxPcieLinkWidth", (void *, unsigned *))                          \
        X(replays, "nvmlDeviceGetPcieReplayCounter", (void *, unsigned *))                           \
        X(nvlink, "nvmlDeviceGetNvLinkState", (void *, unsigned, int *))                             \
        X(nvlink_errors, "nvmlDeviceGetNvLinkErrorCounter", (void *, unsigned, int, unsigned long long *)) \
        X(fabric, "nvmlDeviceGetGpuFabricInfo", (void *, struct nvml_fabric *))                      \
        X(nvlink_type, "nvmlDeviceGetNvLinkRemoteDeviceType", (void *, unsigned, int *))             \
        X(nvlink_pci, "nvmlDeviceGetNvLinkRemotePciInfo_v2", (void *, unsigned, struct nvml_pci *))  \
        X(event_set, "nvmlEventSetCreate", (void **))                                                \
        X(event_free, "nvmlEventSetFree", (void *))                                                  \
        X(event_register, "nvmlDeviceRegisterEvents", (void *, unsigned long long, void *))          \
        X(event_wait, "nvmlEventSetWait_v2", (void *, struct nvml_event *, unsigned))

struct nvml {
        void *library;
        void *events; /* NULL: no Xid events */
        struct nvml_gpu {
                void *handle;
                char subject[CHECK_SUBJECT]; /* "gpu 0" */
                char pci[24];                /* "0000:3b:00.0" */
                bool lost;
        } gpus[WORLD_GPUS_MAX];
        size_t n;
#define NVML_FIELD(field, symbol, arguments) int (*field) arguments;
        NVML_FUNCTIONS(NVML_FIELD)
#undef NVML_FIELD
};

/* Loads it the first time. NULL: o says why. */
struct nvml *nvml_of(struct health_world *w, struct check_out *o);
/* "00000000:3B:00.0" -> "0000:3b:00.0", as the kernel writes it. */
void nvml_kernel_name(const char *text, char *ret, size_t size);
/* topology.c: active NVLinks of each GPU, and its domain: those with the same number reach each other by them; 0: it has none. Both of l->n. */
void nvml_links(const struct nvml *l, unsigned *ret_links, unsigned *ret_domain);
void nvml_close(struct health_world *w);
/* An Xid within timeout_ms; false: none, or there are no events here. */
bool nvml_wait_xid(struct health_world *w, uint32_t timeout_ms, uint32_t *ret_xid, const char **ret_pci);
