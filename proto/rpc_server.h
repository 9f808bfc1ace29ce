/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A gRPC server on an event loop.  One thread blocks in the completion queue and posts to the loop; every callback runs in the
 * loop's thread.  Payloads are bytes: the caller packs and unpacks protobuf.  Only rpc_*.c and tls.c know gRPC.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/loop.h"
#include "proto/tls.h"

struct rpc_server;
struct rpc_call; /* one unary call or one stream; valid until on_closed returns (streams) or it was replied to (unary) */

/* gRPC status codes used here (grpc/status.h has the same numbers). */
enum rpc_status { RPC_OK = 0, RPC_CANCELLED = 1, RPC_UNKNOWN = 2, RPC_INVALID_ARGUMENT = 3, RPC_DEADLINE_EXCEEDED = 4, RPC_NOT_FOUND = 5,
                  RPC_ALREADY_EXISTS = 6, RPC_PERMISSION_DENIED = 7, RPC_RESOURCE_EXHAUSTED = 8, RPC_FAILED_PRECONDITION = 9,
                  RPC_ABORTED = 10, RPC_UNIMPLEMENTED = 12, RPC_INTERNAL = 13, RPC_UNAVAILABLE = 14, RPC_UNAUTHENTICATED = 16 };

/* Who calls: over mTLS the certificate's role and name, over a Unix socket the peer's credentials (peercred.h) or, on a 0600 socket, the owner. */
struct rpc_peer {
        enum { RPC_ROLE_NONE, RPC_ROLE_USER, RPC_ROLE_ADMIN, RPC_ROLE_NODE } role;
        char name[128]; /* user name, or the node's name */
        uid_t uid;
        gid_t gid;
        bool has_uid;
};

struct rpc_method {
        const char *path; /* "/fp8ctl.v1.Cluster/Submit" */
        bool stream;      /* bidirectional */
        /* Unary: the request. Stream: each message. data is valid during the call. */
        void (*on_message)(void *arg, struct rpc_call *call, const uint8_t *data, size_t len);
        void (*on_opened)(void *arg, struct rpc_call *call);                                  /* stream only */
        void (*on_closed)(void *arg, struct rpc_call *call);                                  /* stream only; also called for unary calls whose client went away before the reply */
};

struct rpc_server_config {
        struct loop *loop;
        const struct rpc_method *methods;
        size_t n_methods;
        void *arg;
        const char *address;            /* "unix:/path/fp8d.sock" or "ipv4:10.0.0.1:7411"; anything but unix needs tls */
        const struct tls_files *tls;    /* NULL on Unix sockets */
        mode_t socket_mode;             /* 0600 (own cluster) or 0660 (system-wide: socket_group, callers by peercred.h) */
        const char *socket_group;       /* NULL: unchanged */
        size_t max_message;             /* received; default 4 MiB */
};

int rpc_init(struct error *e);   /* once, before threads; turns abseil's deadlock detector off (docs in rpc_server.c) */
void rpc_shutdown(void);

int rpc_server_new(const struct rpc_server_config *c, struct rpc_server **ret, struct error *e);
/* Ends streams with UNAVAILABLE, waits at most grace_ms, cancels the rest, frees. Turns the loop while it waits. */
struct rpc_server *rpc_server_free(struct rpc_server *s, int grace_ms);

const struct rpc_peer *rpc_call_peer(const struct rpc_call *c);
void rpc_call_set_data(struct rpc_call *c, void *data);
void *rpc_call_data(const struct rpc_call *c);
void rpc_call_reply(struct rpc_call *c, const uint8_t *data, size_t len);                  /* unary; the call is gone after */
void rpc_call_fail(struct rpc_call *c, enum rpc_status code, const char *text);           /* unary or stream; ends it */
/* Stream: queued; -ENOBUFS when more than 4096 messages or 64 MiB wait (the caller should fail the call). Copies. */
int rpc_call_send(struct rpc_call *c, const uint8_t *data, size_t len);
