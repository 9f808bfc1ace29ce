/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What this machine is, for the hello. */
#include <stdint.h>

#include "proto/fp8ctl.pb-c.h"
#include "worker/health/health.h"

#define NODE_DEVICES_MAX 64
#define NODE_NICS_MAX 64

struct node_info {
        char kernel[160], boot_id[64], device_name[128];
        uint64_t memory_bytes, incarnation;
        uint32_t cpus;
        Fp8ctl__V1__Node message; /* points into this struct and the strings given */
        Fp8ctl__V1__NodeDevice devices[NODE_DEVICES_MAX], *device_list[NODE_DEVICES_MAX];
        struct pci_name pci[NODE_DEVICES_MAX];
        struct pci_place places[NODE_DEVICES_MAX];
        struct rdma_nic nics[NODE_NICS_MAX];
        Fp8ctl__V1__NodeNic nic_messages[NODE_NICS_MAX], *nic_list[NODE_NICS_MAX];
};

/* name, dir (absolute), address and kind stay the caller's. */
void node_describe(struct node_info *n, const char *name, const char *dir, const char *address, const char *kind, int devices);
/* Where its GPUs (their PCI addresses are in n->pci) and InfiniBand devices hang, below this root. */
void node_describe_topology(struct node_info *n, const char *root, size_t gpus);
/* Bytes that can still be taken: MemAvailable, and less where a control group limits us. */
uint64_t node_memory_left(void);
