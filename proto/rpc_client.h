/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A gRPC client: blocking unary calls for fp8ctl, a stream on an event loop for the worker.  rpc_init() first (rpc_server.h). */
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/loop.h"
#include "proto/rpc_server.h"
#include "proto/tls.h"

struct rpc_client;
struct rpc_stream;

/* address as in rpc_server_config, or "group:/path" for a group socket with SO_PEERCRED tokens (peercred.h). Does not connect yet. */
int rpc_client_new(const char *address, const struct tls_files *tls, struct rpc_client **ret, struct error *e);
struct rpc_client *rpc_client_free(struct rpc_client *c);

/*
 * Blocking unary call. 0 and *ret_data (free()), or a negative errno with the server's text:
 * -EINVAL (INVALID_ARGUMENT), -ENOENT (NOT_FOUND), -EACCES (PERMISSION_DENIED, UNAUTHENTICATED), -ETIMEDOUT, -ECONNREFUSED (UNAVAILABLE),
 * -EBUSY (RESOURCE_EXHAUSTED, FAILED_PRECONDITION), -EOPNOTSUPP (UNIMPLEMENTED), -EIO (everything else).
 */
int rpc_client_call(struct rpc_client *c, const char *path, const uint8_t *data, size_t len, int timeout_ms, uint8_t **ret_data, size_t *ret_len,
                    struct error *e);

/*
 * A bidirectional stream. Callbacks run in the loop's thread: on_message for each message, then exactly one on_closed (status, text), after
 * which the stream must be freed. No reconnection here: the caller opens a new one (backoff 100 ms .. 1 s with jitter).
 */
int rpc_stream_open(struct rpc_client *c, struct loop *loop, const char *path, void (*on_message)(void *arg, const uint8_t *data, size_t len),
                    void (*on_closed)(void *arg, int status, const char *text), void *arg, struct rpc_stream **ret, struct error *e);
int rpc_stream_send(struct rpc_stream *s, const uint8_t *data, size_t len); /* queued; -ENOBUFS as rpc_call_send; -EPIPE when closed */
struct rpc_stream *rpc_stream_free(struct rpc_stream *s);                     /* cancels when still open; no callback after it returns */
