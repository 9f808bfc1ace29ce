/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The node's own voice: checks that run beside the agent and never in its thread, and the kernel's log.  What they find goes to the controller as HealthReport.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/loop.h"
#include "proto/fp8ctl.pb-c.h"
#include "proto/health.h"

struct health;

struct health_config {
        struct loop *loop;
        const char *root;       /* files of the machine are looked for below it: "", or a test's folder */
        const char *checks_dir; /* site checks; "": none */
        uint32_t site_ms;       /* how often they run */
        const char *dir;        /* the worker's folder */
        const char *nvml;       /* the library; NULL: NVIDIA's */
        /* In the loop's thread. Nothing of m is kept. */
        void (*report)(void *arg, Fp8ctl__V1__HealthReport *m);
        void *arg;
};

/* c's strings stay the caller's. */
int health_new(const struct health_config *c, struct health **ret, struct error *e);
/* Waits for its threads, but not for ever: false when one hangs in a driver or a file system; then nothing is freed, and the process should end. */
bool health_stop(struct health *h);
/* The controller listens (again): all that is known, and from the first time on the kernel's log. test_hooks: lines that a process wrote into it count too. */
void health_welcome(struct health *h, bool test_hooks);
/* The rank processes of this node, for the check of those that do not answer. */
void health_set_ranks(struct health *h, const uint32_t *pids, size_t n);

/* They may have changed just now. */
void health_look_at_facts(struct health *h);

/* Of a canary, which the agent runs: how it stands (a check, said again after each welcome), and that one failed (a finding). */
void health_say(struct health *h, const char *subject, int32_t device, enum health_verdict v, const char *evidence);
void health_tell(struct health *h, const char *subject, enum health_verdict v, const char *text);

/* Place ("0000:3b:00.0") and model ("NVIDIA H100 80GB HBM3", or "") of each GPU in the order of their numbers, as far as the driver tells: how many, at most max. */
struct pci_name {
        char text[24], model[64];
};
size_t health_gpus(const char *root, struct pci_name *ret, size_t max);

/* topology.c: where a device hangs in the PCI tree, "pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:01.0/0000:18:00.0". Static files only: no driver is asked. */
struct pci_place {
        char path[192]; /* "": unknown */
        int32_t numa;   /* -1: unknown */
};
struct rdma_nic {
        char name[32]; /* "mlx5_0" */
        struct pci_place place;
        uint32_t ports[4];
        size_t n_ports;
};
struct pci_place health_pci_place(const char *root, const char *pci);
/* InfiniBand and RoCE devices on PCI: how many, at most max. */
size_t health_nics(const char *root, struct rdma_nic *ret, size_t max);
