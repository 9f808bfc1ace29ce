/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Unary calls run on a queue of their own and block in it; streams share one queue on the loop.  A stream's memory goes when its last batch is over and its
 * owner freed it (refs).  on_closed waits for both the status and the end of the messages: the status may complete while messages are still to be read.
 */
#include "proto/rpc_client.h"

#include <errno.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "proto/peercred.h"
#include "proto/rpc_private.h"
#include "proto/rpc_queue.h"

#define MAX_MESSAGE (16u * 1024 * 1024)
#define CONNECT_TIMEOUT_MS 10000 /* a TLS handshake on a busy machine takes its time */
#define BACKOFF_MIN_MS 100
#define BACKOFF_MAX_MS 1000
#define TOKEN_FRESH_MS 30000 /* half of what a token lives */

struct rpc_client {
        grpc_channel *channel;
        struct rpc_queue *queue; /* of streams; NULL until the first one */
        char *cred_path;         /* group sockets */
        char token[PEERCRED_TOKEN_SIZE];
        uint64_t token_ns;
        char *address;
};

struct rpc_stream {
        grpc_call *call;
        void (*on_message)(void *arg, const uint8_t *data, size_t len);
        void (*on_closed)(void *arg, int status, const char *text);
        void *arg;
        unsigned refs;
        bool freed, sending, received_all, have_status, told;
        struct rpc_tag tag_headers, tag_recv, tag_send, tag_status;
        grpc_byte_buffer *received, *sent;
        grpc_metadata_array headers, trailers;
        grpc_status_code status;
        grpc_slice text;
        struct rpc_out out;
};

int rpc_client_new(const char *address, const struct tls_files *tls, struct rpc_client **ret, struct error *e) {
        _cleanup_free_ char *target = NULL;
        grpc_channel_credentials *creds = NULL;
        struct rpc_client *c;
        grpc_arg args[8];
        grpc_channel_args channel_args = { 0, args };
        bool group = strncmp(address, "group:/", 7) == 0, local = group || strncmp(address, "unix:/", 6) == 0;
        int r;

        if (!local && strncmp(address, "ipv4:", 5) != 0)
                return error_set(e, -EINVAL, "address '%s': expected unix:/PATH, group:/PATH or ipv4:IP:PORT", address);
        if (!local && !tls)
                return error_set(e, -EINVAL, "address %s: needs TLS: give the CA, a certificate and its key (`fp8ctl admin certs` makes them)", address);
        if (group ? asprintf(&target, "unix:%s", address + 6) < 0 : !(target = strdup(address)))
                return error_set(e, -ENOMEM, "no memory");
        c = calloc(1, sizeof(*c));
        if (!c)
                return error_set(e, -ENOMEM, "no memory");
        c->address = strdup(address);
        if (!c->address || (group && asprintf(&c->cred_path, "%s.cred", address + 6) < 0)) {
                c->cred_path = c->address ? NULL : c->cred_path;
                rpc_client_free(c);
                return error_set(e, -ENOMEM, "no memory");
        }
        if (!local) {
                r = rpc_tls_channel_credentials(tls, &creds, e);
                if (r < 0) {
                        rpc_client_free(c);
                        return r;
                }
        }
        args[channel_args.num_args++] = rpc_arg_int(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, MAX_MESSAGE);
        args[channel_args.num_args++] = rpc_arg_int(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
        args[channel_args.num_args++] = rpc_arg_int(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, BACKOFF_MIN_MS);
        args[channel_args.num_args++] = rpc_arg_int(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, CONNECT_TIMEOUT_MS);
        args[channel_args.num_args++] = rpc_arg_int(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, BACKOFF_MAX_MS);
        args[channel_args.num_args++] = rpc_arg_int(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
        args[channel_args.num_args++] = rpc_arg_int(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
        args[channel_args.num_args++] = rpc_arg_int(GRPC_ARG_ENABLE_RETRIES, 0);
        c->channel = rpc_channel_create(target, creds, &channel_args);
        if (creds)
                grpc_channel_credentials_release(creds);
        *ret = c;
        return 0;
}

struct rpc_client *rpc_client_free(struct rpc_client *c) {
        if (!c)
                return NULL;
        rpc_queue_free(c->queue);
        if (c->channel)
                grpc_channel_destroy(c->channel);
        free(c->cred_path);
        free(c->address);
        free(c);
        return NULL;
}

/* The token as metadata, where the address asks for one. n: 0 or 1. The slices are static: they live in the client. */
static int client_metadata(struct rpc_client *c, grpc_metadata *m, size_t *n, struct error *e) {
        uint64_t now = clock_mono_ns();
        int r;

        *n = 0;
        if (!c->cred_path)
                return 0;
        if (c->token_ns == 0 || now - c->token_ns > TOKEN_FRESH_MS * NSEC_PER_MSEC) {
                r = peercred_fetch(c->cred_path, c->token, e);
                if (r < 0)
                        return r == -EACCES || r == -EPERM ? r : -ECONNREFUSED;
                c->token_ns = now;
        }
        memset(m, 0, sizeof(*m));
        m->key = grpc_slice_from_static_string(RPC_TOKEN_KEY);
        m->value = grpc_slice_from_copied_string(c->token);
        *n = 1;
        return 0;
}

static int status_errno(grpc_status_code code) {
        switch (code) {
        case GRPC_STATUS_INVALID_ARGUMENT:
                return -EINVAL;
        case GRPC_STATUS_NOT_FOUND:
                return -ENOENT;
        case GRPC_STATUS_PERMISSION_DENIED:
        case GRPC_STATUS_UNAUTHENTICATED:
                return -EACCES;
        case GRPC_STATUS_DEADLINE_EXCEEDED:
                return -ETIMEDOUT;
        case GRPC_STATUS_UNAVAILABLE:
                return -ECONNREFUSED;
        case GRPC_STATUS_RESOURCE_EXHAUSTED:
        case GRPC_STATUS_FAILED_PRECONDITION:
                return -EBUSY;
        case GRPC_STATUS_UNIMPLEMENTED:
                return -EOPNOTSUPP;
        default:
                return -EIO;
        }
}

static void slice_text(grpc_slice s, char *buf, size_t size) {
        size_t n = GRPC_SLICE_LENGTH(s) < size - 1 ? GRPC_SLICE_LENGTH(s) : size - 1;

        memcpy(buf, GRPC_SLICE_START_PTR(s), n);
        buf[n] = 0;
        for (size_t i = 0; i < n; i++)
                if ((unsigned char)buf[i] < ' ')
                        buf[i] = ' '; /* a peer's text goes on a line of ours, and on a terminal */
}

struct unary {
        grpc_byte_buffer *request, *reply;
        grpc_metadata_array headers, trailers;
        grpc_status_code status;
        grpc_slice text;
};

static bool unary_run(struct rpc_client *c, struct unary *u, const char *path, grpc_metadata *md, size_t n_md, int timeout_ms) {
        grpc_completion_queue *cq = grpc_completion_queue_create_for_pluck(NULL);
        gpr_timespec deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(timeout_ms, GPR_TIMESPAN));
        grpc_slice method = grpc_slice_from_copied_string(path);
        grpc_call *call = grpc_channel_create_call(c->channel, NULL, GRPC_PROPAGATE_DEFAULTS, cq, method, NULL, deadline, NULL);
        grpc_op ops[6] = { 0 };
        bool ok = false;

        ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
        ops[0].data.send_initial_metadata.metadata = md;
        ops[0].data.send_initial_metadata.count = n_md;
        ops[1].op = GRPC_OP_SEND_MESSAGE;
        ops[1].data.send_message.send_message = u->request;
        ops[2].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
        ops[3].op = GRPC_OP_RECV_INITIAL_METADATA;
        ops[3].data.recv_initial_metadata.recv_initial_metadata = &u->headers;
        ops[4].op = GRPC_OP_RECV_MESSAGE;
        ops[4].data.recv_message.recv_message = &u->reply;
        ops[5].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
        ops[5].data.recv_status_on_client.trailing_metadata = &u->trailers;
        ops[5].data.recv_status_on_client.status = &u->status;
        ops[5].data.recv_status_on_client.status_details = &u->text;
        if (call && grpc_call_start_batch(call, ops, 6, call, NULL) == GRPC_CALL_OK)
                ok = grpc_completion_queue_pluck(cq, call, gpr_inf_future(GPR_CLOCK_REALTIME), NULL).type == GRPC_OP_COMPLETE;
        if (call)
                grpc_call_unref(call);
        grpc_slice_unref(method);
        grpc_completion_queue_shutdown(cq);
        grpc_completion_queue_destroy(cq);
        return ok;
}

int rpc_client_call(struct rpc_client *c, const char *path, const uint8_t *data, size_t len, int timeout_ms, uint8_t **ret_data, size_t *ret_len,
                    struct error *e) {
        struct unary u = { .status = GRPC_STATUS_UNKNOWN, .text = grpc_empty_slice() };
        grpc_slice slice = grpc_slice_from_copied_buffer(data ? (const char *)data : "", len);
        grpc_metadata md;
        size_t n_md, got = 0;
        uint8_t *flat;
        char text[900];
        int r;

        u.request = grpc_raw_byte_buffer_create(&slice, 1);
        grpc_slice_unref(slice);
        r = client_metadata(c, &md, &n_md, e);
        if (r < 0) {
                grpc_byte_buffer_destroy(u.request);
                return r;
        }
        grpc_metadata_array_init(&u.headers);
        grpc_metadata_array_init(&u.trailers);
        if (!unary_run(c, &u, path, &md, n_md, timeout_ms)) {
                r = error_set(e, -EIO, "%s: the call could not be started", path);
        } else if (u.status != GRPC_STATUS_OK) {
                slice_text(u.text, text, sizeof(text));
                r = error_set(e, status_errno(u.status), "%s", text[0] ? text : "refused without a reason");
                if (u.status == GRPC_STATUS_UNAUTHENTICATED)
                        c->token_ns = 0; /* the controller was restarted and knows it no more */
        } else if (!u.reply || !(flat = rpc_buffer_flat(u.reply, MAX_MESSAGE, &got))) {
                r = error_set(e, -EIO, "%s: found no answer in the answer", path);
        } else {
                *ret_data = flat;
                *ret_len = got;
        }
        if (n_md)
                grpc_slice_unref(md.value);
        grpc_byte_buffer_destroy(u.request);
        if (u.reply)
                grpc_byte_buffer_destroy(u.reply);
        grpc_metadata_array_destroy(&u.headers);
        grpc_metadata_array_destroy(&u.trailers);
        grpc_slice_unref(u.text);
        return r;
}

static void stream_unref(struct rpc_stream *s) {
        if (--s->refs > 0)
                return;
        rpc_out_clear(&s->out);
        if (s->received)
                grpc_byte_buffer_destroy(s->received);
        if (s->sent)
                grpc_byte_buffer_destroy(s->sent);
        grpc_metadata_array_destroy(&s->headers);
        grpc_metadata_array_destroy(&s->trailers);
        grpc_slice_unref(s->text);
        grpc_call_unref(s->call);
        free(s);
}

static bool stream_start(struct rpc_stream *s, struct rpc_tag *t, const grpc_op *op) {
        s->refs++;
        rpc_tag_given(t);
        if (grpc_call_start_batch(s->call, op, 1, t, NULL) == GRPC_CALL_OK)
                return true;
        s->refs--;
        grpc_call_cancel(s->call, NULL);
        return false;
}

static void stream_pump(struct rpc_stream *s) {
        grpc_op op = { .op = GRPC_OP_SEND_MESSAGE };

        if (s->sending || s->have_status || s->freed)
                return;
        s->sent = rpc_out_pop(&s->out);
        if (!s->sent)
                return;
        op.data.send_message.send_message = s->sent;
        s->sending = stream_start(s, &s->tag_send, &op);
}

static void stream_recv(struct rpc_stream *s) {
        grpc_op op = { .op = GRPC_OP_RECV_MESSAGE };

        op.data.recv_message.recv_message = &s->received;
        if (!stream_start(s, &s->tag_recv, &op))
                s->received_all = true;
}

static void stream_tell(struct rpc_stream *s) {
        char text[900];

        if (!s->received_all || !s->have_status || s->told || s->freed)
                return;
        s->told = true;
        slice_text(s->text, text, sizeof(text));
        s->on_closed(s->arg, (int)s->status, text);
}

static void on_stream_plain(struct rpc_tag *t, bool ok) {
        stream_unref(t->owner);
}

static void on_stream_sent(struct rpc_tag *t, bool ok) {
        struct rpc_stream *s = t->owner;

        s->sending = false;
        if (s->sent)
                grpc_byte_buffer_destroy(s->sent);
        s->sent = NULL;
        if (ok)
                stream_pump(s);
        stream_unref(s);
}

static void on_stream_recv(struct rpc_tag *t, bool ok) {
        struct rpc_stream *s = t->owner;
        grpc_byte_buffer *b = STEAL_PTR(s->received);
        size_t len = 0;

        if (!ok || !b) {
                s->received_all = true;
                stream_tell(s);
        } else if (!s->freed) {
                _cleanup_free_ uint8_t *data = rpc_buffer_flat(b, MAX_MESSAGE, &len);

                if (data)
                        s->on_message(s->arg, data, len);
                else
                        grpc_call_cancel(s->call, NULL);
        }
        if (b)
                grpc_byte_buffer_destroy(b);
        if (!s->received_all && !s->freed)
                stream_recv(s);
        stream_unref(s);
}

static void on_stream_status(struct rpc_tag *t, bool ok) {
        struct rpc_stream *s = t->owner;

        s->have_status = true;
        stream_tell(s);
        stream_unref(s);
}

static void stream_begin(struct rpc_stream *s, grpc_metadata *md, size_t n_md) {
        grpc_op op = { .op = GRPC_OP_SEND_INITIAL_METADATA };

        op.data.send_initial_metadata.metadata = md;
        op.data.send_initial_metadata.count = n_md;
        s->sending = stream_start(s, &s->tag_send, &op);
        op = (grpc_op){ .op = GRPC_OP_RECV_INITIAL_METADATA };
        op.data.recv_initial_metadata.recv_initial_metadata = &s->headers;
        stream_start(s, &s->tag_headers, &op);
        op = (grpc_op){ .op = GRPC_OP_RECV_STATUS_ON_CLIENT };
        op.data.recv_status_on_client.trailing_metadata = &s->trailers;
        op.data.recv_status_on_client.status = &s->status;
        op.data.recv_status_on_client.status_details = &s->text;
        stream_start(s, &s->tag_status, &op);
        stream_recv(s);
}

int rpc_stream_open(struct rpc_client *c, struct loop *loop, const char *path, void (*on_message)(void *arg, const uint8_t *data, size_t len),
                    void (*on_closed)(void *arg, int status, const char *text), void *arg, struct rpc_stream **ret, struct error *e) {
        struct rpc_stream *s;
        grpc_slice method;
        grpc_metadata md;
        size_t n_md;
        int r;

        if (!c->queue) {
                r = rpc_queue_new(loop, &c->queue, e);
                if (r < 0)
                        return r;
        }
        s = calloc(1, sizeof(*s));
        if (!s)
                return error_set(e, -ENOMEM, "no memory");
        /* Streams are rare and long: a fresh token each, a restarted controller knows none of the old. */
        c->token_ns = 0;
        r = client_metadata(c, &md, &n_md, e);
        if (r < 0) {
                free(s);
                return r;
        }
        s->refs = 1;
        s->on_message = on_message;
        s->on_closed = on_closed;
        s->arg = arg;
        s->text = grpc_empty_slice();
        grpc_metadata_array_init(&s->headers);
        grpc_metadata_array_init(&s->trailers);
        s->tag_headers = (struct rpc_tag){ .fn = on_stream_plain, .owner = s };
        s->tag_recv = (struct rpc_tag){ .fn = on_stream_recv, .owner = s };
        s->tag_send = (struct rpc_tag){ .fn = on_stream_sent, .owner = s };
        s->tag_status = (struct rpc_tag){ .fn = on_stream_status, .owner = s };
        method = grpc_slice_from_copied_string(path);
        s->call = grpc_channel_create_call(c->channel, NULL, GRPC_PROPAGATE_DEFAULTS, rpc_queue_cq(c->queue), method, NULL,
                                           gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
        grpc_slice_unref(method);
        stream_begin(s, &md, n_md);
        if (n_md)
                grpc_slice_unref(md.value);
        *ret = s;
        return 0;
}

int rpc_stream_send(struct rpc_stream *s, const uint8_t *data, size_t len) {
        int r;

        if (s->have_status)
                return -EPIPE;
        r = rpc_out_push(&s->out, data, len);
        if (r < 0)
                return r;
        stream_pump(s);
        return 0;
}

struct rpc_stream *rpc_stream_free(struct rpc_stream *s) {
        if (!s)
                return NULL;
        s->freed = true;
        if (!s->have_status)
                grpc_call_cancel(s->call, NULL);
        stream_unref(s);
        return NULL;
}
