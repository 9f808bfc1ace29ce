/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the files rpc_*.c and tls.c share. They alone know gRPC. */
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>

#include "base/error.h"
#include "proto/tls.h"

#define RPC_TOKEN_KEY "fp8ctl-token"

static inline grpc_arg rpc_arg_int(const char *key, int value) {
        grpc_arg a = { .type = GRPC_ARG_INTEGER, .key = (char *)key };

        a.value.integer = value;
        return a;
}

/* Mutual TLS: both sides show a certificate of the CA; the client also wants the server's CN to be "controller". */
int rpc_tls_server_credentials(const struct tls_files *f, grpc_server_credentials **ret, struct error *e);
int rpc_tls_channel_credentials(const struct tls_files *f, grpc_channel_credentials **ret, struct error *e);
