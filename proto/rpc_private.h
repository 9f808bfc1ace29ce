/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the files rpc_*.c and tls.c share. They alone know gRPC. */
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>

#include "base/error.h"
#include "proto/tls.h"

#define RPC_TOKEN_KEY "fp8ctl-token"

/* Creds NULL: none, and on a server none are asked for. gRPC before 1.46 (Ubuntu 22.04 has 1.30) makes such channels by other functions. */
static inline grpc_channel *rpc_channel_create(const char *target, grpc_channel_credentials *creds, const grpc_channel_args *args) {
#ifdef GRPC_HAS_CHANNEL_CREATE
        grpc_channel_credentials *none = creds ? NULL : grpc_insecure_credentials_create();
        grpc_channel *channel = grpc_channel_create(target, creds ? creds : none, args);

        if (none)
                grpc_channel_credentials_release(none);
        return channel;
#else
        return creds ? grpc_secure_channel_create(creds, target, args, NULL) : grpc_insecure_channel_create(target, args, NULL);
#endif
}

/* The port, 0 on failure. */
static inline int rpc_server_add_port(grpc_server *server, const char *address, grpc_server_credentials *creds) {
#ifdef GRPC_HAS_CHANNEL_CREATE
        grpc_server_credentials *none = creds ? NULL : grpc_insecure_server_credentials_create();
        int port = grpc_server_add_http2_port(server, address, creds ? creds : none);

        if (none)
                grpc_server_credentials_release(none);
        return port;
#else
        return creds ? grpc_server_add_secure_http2_port(server, address, creds) : grpc_server_add_insecure_http2_port(server, address);
#endif
}

static inline grpc_arg rpc_arg_int(const char *key, int value) {
        grpc_arg a = { .type = GRPC_ARG_INTEGER, .key = (char *)key };

        a.value.integer = value;
        return a;
}

/* Mutual TLS: both sides show a certificate of the CA; the client also wants the server's CN to be "controller". */
int rpc_tls_server_credentials(const struct tls_files *f, grpc_server_credentials **ret, struct error *e);
int rpc_tls_channel_credentials(const struct tls_files *f, grpc_channel_credentials **ret, struct error *e);
