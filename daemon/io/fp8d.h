/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The running controller: event loop, store, outbox, file helper and gRPC server around daemon/core.
 */
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/loop.h"
#include "proto/tls.h"

struct fp8d;

struct fp8d_config {
        const char *state_dir;   /* fp8d.db lies here; two controllers never share one */
        const char *socket;      /* Unix socket's path, or NULL */
        const char *group;       /* of the socket: then its mode is 0660 and callers are known by SO_PEERCRED; NULL: 0600 */
        const char *listen;      /* "ipv4:IP:PORT" or NULL; needs tls */
        const struct tls_files *tls;
        const char *panic_listen; /* "ipv4:IP:PORT" for datagrams of dying kernels, or NULL */
        uint32_t lease_ttl_ms, heartbeat_ms;
        uint32_t keep_jobs, keep_event_days;
        uint32_t health_share, health_window_ms, health_settle_ms;
        bool test_nodes;
        bool test_hooks;
};

int fp8d_new(struct loop *l, const struct fp8d_config *c, struct fp8d **ret, struct error *e);
/* Ends calls, commits what is queued, closes the store. NULL is allowed; returns NULL. */
struct fp8d *fp8d_free(struct fp8d *d);
