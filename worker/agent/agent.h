/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The node daemon behind its options: holds the stream to the controller, the lease, and through the spawner the ranks. */
#include <stdint.h>

#include "base/error.h"
#include "proto/tls.h"

struct agent_config {
        const char *name, *dir, *controller, *host, *device_kind;
        const struct tls_files *tls; /* NULL: a Unix socket */
        int devices;
        const char *rack;            /* "": unknown */
        const char *rdma;            /* as rdma_open's */
        uint32_t replica_percent;    /* of the node's memory for generations of other nodes' ranks */
        const char *local_dir;       /* for copies of snapshots on this node's disk; NULL: none */
        uint64_t local_space;        /* bytes of it for each device */
        uint32_t grace_ms;           /* of the last save after SIGTERM */
        const char *test_binary;     /* fp8-nodetest */
        const char *rank_binary;     /* fp8-rank, for its --reduce-test */
        uint32_t canary_ms;          /* how often an idle device computes a known answer; 0: never */
        const char *health_root;     /* see struct health_config, and the next two */
        const char *health_checks;
        uint32_t health_interval_ms;
        const char *rollout_hook;    /* the site's program that changes this node; NULL: none */
        const char *panic_to;        /* "ipv4:IP:PORT" where the controller listens for kernels that die; NULL: nothing is sent */
};

/* What agent_run returns besides a negative errno. */
enum agent_end { AGENT_LEFT = 0, AGENT_AGAIN = 1 /* the spawner is gone: begin anew in a fresh process */, AGENT_RELOAD = 2 /* SIGHUP: the same, the spawner and its ranks live on */ };

/* Signals SIGTERM, SIGINT and SIGHUP must be blocked, rpc_init called, and a spawner must listen in dir. */
int agent_run(const struct agent_config *c, struct error *e);
