/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every call is taken by one kind of request (no registered methods), so that a call to an unknown method is answered and does not hang until its deadline.
 *
 * A call is freed when its last batch is over and its owner let go of it: refs = 1 for the owner + 1 for each outstanding batch. One reference too many would
 * pin a whole connection, unseen by a leak checker.  The owner lets go by replying (unary) or when on_closed returned.
 *
 *   unary:  recv_close ------------------------------------> (cancelled first: on_closed)
 *           recv_message -> on_message ... reply/fail -> send_status
 *   stream: recv_close ------------------------------------> on_closed
 *           send_initial_metadata, then send_message one at a time, then send_status
 *           recv_message -> on_message -> recv_message ... -> half-closed: send_status OK
 */
#include "proto/rpc_server.h"

#include <errno.h>
#include <grp.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "proto/peercred.h"
#include "proto/rpc_private.h"
#include "proto/rpc_queue.h"

#define ACCEPTS 32 /* requests for calls kept with gRPC; more calls wait inside it */
#define DEFAULT_MAX_MESSAGE (4u * 1024 * 1024)
#define STATUS_TEXT_MAX 1024

struct rpc_accept {
        struct rpc_tag tag;
        struct rpc_server *server;
        grpc_call *call;
        grpc_call_details details;
        grpc_metadata_array metadata;
};

struct rpc_call {
        struct rpc_server *server;
        grpc_call *call;
        const struct rpc_method *method; /* NULL: unknown */
        struct rpc_call *next, **link;
        struct rpc_peer peer;
        void *data;
        unsigned refs;
        bool delivered; /* the owner knows of it */
        bool owned;     /* the owner may still use it */
        bool sending, ending, ended, closed, overflowed, accepted;
        int status;
        char text[STATUS_TEXT_MAX];
        struct rpc_tag tag_close, tag_recv, tag_send, tag_status;
        int cancelled;
        grpc_byte_buffer *received, *sent;
        struct rpc_out out;
};

struct rpc_server {
        grpc_server *server;
        struct rpc_queue *queue;
        struct loop *loop;
        const struct rpc_method *methods;
        size_t n_methods, max_message;
        void *arg;
        enum { IDENTITY_OWNER, IDENTITY_TOKEN, IDENTITY_TLS } identity;
        struct peercred *peercred;
        struct rpc_peer owner;
        char *socket_path;
        struct rpc_call *calls;
        struct rpc_accept accepts[ACCEPTS];
        struct rpc_tag tag_shutdown;
        unsigned armed;
        bool closing, shut;
};

/* Not inlined: gcc 12 at -O3 cannot count references and takes the second of two for a use after free. */
__attribute__((noinline)) static void call_unref(struct rpc_call *c) {
        if (--c->refs > 0)
                return;
        *c->link = c->next;
        if (c->next)
                c->next->link = c->link;
        rpc_out_clear(&c->out);
        if (c->received)
                grpc_byte_buffer_destroy(c->received);
        if (c->sent)
                grpc_byte_buffer_destroy(c->sent);
        grpc_call_unref(c->call);
        free(c);
}

static void call_let_go(struct rpc_call *c) {
        if (!c->owned)
                return;
        c->owned = false;
        call_unref(c);
}

/* Starts one batch; its tag's fn is then called exactly once. A refusal is a mistake of ours: the call is cancelled. */
static bool call_start(struct rpc_call *c, struct rpc_tag *t, const grpc_op *ops, size_t n) {
        c->refs++;
        rpc_tag_given(t);
        if (grpc_call_start_batch(c->call, ops, n, t, NULL) == GRPC_CALL_OK)
                return true;
        c->refs--;
        grpc_call_cancel(c->call, NULL);
        return false;
}

static void start_recv(struct rpc_call *c) {
        grpc_op op = { .op = GRPC_OP_RECV_MESSAGE };

        op.data.recv_message.recv_message = &c->received;
        call_start(c, &c->tag_recv, &op, 1);
}

static void start_status(struct rpc_call *c, grpc_byte_buffer *message) {
        grpc_slice text = grpc_slice_from_copied_string(c->text);
        grpc_op ops[3] = { 0 };
        size_t n = 0;

        c->ended = true;
        if (!c->accepted)
                ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
        if (message) {
                ops[n].op = GRPC_OP_SEND_MESSAGE;
                ops[n++].data.send_message.send_message = message;
        }
        ops[n].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        ops[n].data.send_status_from_server.status = (grpc_status_code)c->status;
        ops[n++].data.send_status_from_server.status_details = &text;
        call_start(c, &c->tag_status, ops, n);
        grpc_slice_unref(text);
}

/* What comes next on the sending side of a stream: the next message, or, after the last one, the status. */
static void pump(struct rpc_call *c) {
        grpc_op op = { .op = GRPC_OP_SEND_MESSAGE };

        if (c->sending || c->ended || c->closed)
                return;
        c->sent = rpc_out_pop(&c->out);
        if (!c->sent) {
                if (c->ending)
                        start_status(c, NULL);
                return;
        }
        op.data.send_message.send_message = c->sent;
        c->sending = call_start(c, &c->tag_send, &op, 1);
}

static void on_sent(struct rpc_tag *t, bool ok) {
        struct rpc_call *c = t->owner;

        c->sending = false;
        if (c->sent)
                grpc_byte_buffer_destroy(c->sent);
        c->sent = NULL;
        if (ok)
                pump(c);
        call_unref(c);
}

static void on_status_sent(struct rpc_tag *t, bool ok) {
        call_unref(t->owner);
}

static void end_call(struct rpc_call *c, int status, const char *text) {
        if (c->ending || c->ended || c->closed)
                return;
        c->ending = true;
        c->status = status;
        snprintf(c->text, sizeof(c->text), "%s", text ? text : "");
        if (c->overflowed)
                grpc_call_cancel_with_status(c->call, (grpc_status_code)status, c->text, NULL); /* it does not read: nothing in order reaches it */
        else if (c->method && c->method->stream)
                pump(c);
        else
                start_status(c, NULL);
}

static void on_received(struct rpc_tag *t, bool ok) {
        struct rpc_call *c = t->owner;
        struct rpc_server *s = c->server;
        bool stream = c->method->stream;
        grpc_byte_buffer *b = STEAL_PTR(c->received);
        _cleanup_free_ uint8_t *data = NULL;
        size_t len = 0;

        if (!ok || !b) {
                /* The client has no more to say: a stream ends in order, a unary call without a request is none. */
                if (stream)
                        end_call(c, RPC_OK, "");
                else if (!c->closed)
                        end_call(c, RPC_INVALID_ARGUMENT, "found no request message");
        } else if (!c->ending && !c->closed && !s->closing) {
                data = rpc_buffer_flat(b, s->max_message, &len);
                if (!data) {
                        end_call(c, RPC_RESOURCE_EXHAUSTED, "message too large");
                } else {
                        c->delivered = true;
                        c->method->on_message(s->arg, c, data, len);
                }
                if (stream && !c->closed)
                        start_recv(c);
        } else if (stream && !c->closed) {
                start_recv(c); /* dropped, but read on: the peer's end must be seen */
        }
        if (!stream && !c->delivered)
                call_let_go(c);
        if (b)
                grpc_byte_buffer_destroy(b);
        call_unref(c);
}

static void on_closed(struct rpc_tag *t, bool ok) {
        struct rpc_call *c = t->owner;

        c->closed = true;
        if (c->owned && c->delivered && c->method->on_closed) {
                c->method->on_closed(c->server->arg, c);
                call_let_go(c);
        } else if (c->owned && c->delivered && c->method->stream) {
                call_let_go(c);
        }
        call_unref(c);
}

static void peer_from_cn(const char *cn, struct rpc_peer *p) {
        const char *name = strchr(cn, ':');

        if (strcmp(cn, "admin") == 0) {
                p->role = RPC_ROLE_ADMIN;
                name = ":admin";
        } else if (strncmp(cn, "user:", 5) == 0) {
                p->role = RPC_ROLE_USER;
        } else if (strncmp(cn, "node:", 5) == 0) {
                p->role = RPC_ROLE_NODE;
        } else {
                return;
        }
        if (!name[1] || (size_t)snprintf(p->name, sizeof(p->name), "%s", name + 1) >= sizeof(p->name))
                p->role = RPC_ROLE_NONE;
}

static void peer_from_tls(grpc_call *call, struct rpc_peer *p) {
        grpc_auth_context *auth = grpc_call_auth_context(call);
        grpc_auth_property_iterator it;
        const grpc_auth_property *cn, *second;
        char text[160];

        if (!auth)
                return;
        if (grpc_auth_context_peer_is_authenticated(auth)) {
                it = grpc_auth_context_find_properties_by_name(auth, GRPC_X509_CN_PROPERTY_NAME);
                cn = grpc_auth_property_iterator_next(&it);
                second = grpc_auth_property_iterator_next(&it);
                /* A name with a NUL inside reads differently to different readers. */
                if (cn && !second && cn->value_length < sizeof(text) && !memchr(cn->value, 0, cn->value_length)) {
                        memcpy(text, cn->value, cn->value_length);
                        text[cn->value_length] = 0;
                        peer_from_cn(text, p);
                }
        }
        grpc_auth_context_release(auth);
}

static void peer_name_of_uid(struct rpc_peer *p) {
        struct passwd pw, *found = NULL;
        char buf[4096];

        if (getpwuid_r(p->uid, &pw, buf, sizeof(buf), &found) == 0 && found && strlen(found->pw_name) < sizeof(p->name))
                memcpy(p->name, found->pw_name, strlen(found->pw_name) + 1);
        else
                snprintf(p->name, sizeof(p->name), "%u", (unsigned)p->uid);
}

static void peer_from_token(struct rpc_server *s, const grpc_metadata_array *md, struct rpc_peer *p) {
        for (size_t i = 0; i < md->count; i++) {
                const grpc_metadata *m = &md->metadata[i];
                char token[PEERCRED_TOKEN_SIZE];

                if (grpc_slice_str_cmp(m->key, RPC_TOKEN_KEY) != 0)
                        continue;
                if (GRPC_SLICE_LENGTH(m->value) != sizeof(token) - 1)
                        return;
                memcpy(token, GRPC_SLICE_START_PTR(m->value), sizeof(token) - 1);
                token[sizeof(token) - 1] = 0;
                if (!peercred_lookup(s->peercred, token, &p->uid, &p->gid))
                        return;
                p->has_uid = true;
                p->role = p->uid == 0 || p->uid == geteuid() ? RPC_ROLE_ADMIN : RPC_ROLE_USER;
                peer_name_of_uid(p);
                return;
        }
}

static void identify(struct rpc_call *c, const grpc_metadata_array *md) {
        switch (c->server->identity) {
        case IDENTITY_OWNER:
                c->peer = c->server->owner;
                break;
        case IDENTITY_TOKEN:
                peer_from_token(c->server, md, &c->peer);
                break;
        case IDENTITY_TLS:
                peer_from_tls(c->call, &c->peer);
                break;
        }
}

static const struct rpc_method *find_method(const struct rpc_server *s, const grpc_slice *path) {
        for (size_t i = 0; i < s->n_methods; i++)
                if (grpc_slice_str_cmp(*path, s->methods[i].path) == 0)
                        return &s->methods[i];
        return NULL;
}

static void refuse(struct rpc_call *c, int status, const char *text) {
        end_call(c, status, text);
        call_let_go(c);
}

static void call_begin(struct rpc_call *c) {
        struct rpc_server *s = c->server;
        grpc_op op = { .op = GRPC_OP_RECV_CLOSE_ON_SERVER };

        op.data.recv_close_on_server.cancelled = &c->cancelled;
        if (!call_start(c, &c->tag_close, &op, 1)) {
                call_let_go(c);
                return;
        }
        if (s->closing) {
                c->method = NULL;
                refuse(c, RPC_UNAVAILABLE, "the server is stopping");
        } else if (!c->method) {
                refuse(c, RPC_UNIMPLEMENTED, "unknown method");
        } else if (c->peer.role == RPC_ROLE_NONE) {
                c->method = NULL;
                refuse(c, RPC_UNAUTHENTICATED,
                       s->identity == IDENTITY_TOKEN ? "expected metadata " RPC_TOKEN_KEY " with a live token (use address group:PATH)"
                                                     : "expected a certificate with CN admin, user:NAME or node:NAME");
        } else if (!c->method->stream) {
                start_recv(c);
        } else {
                op = (grpc_op){ .op = GRPC_OP_SEND_INITIAL_METADATA };
                c->accepted = true;
                c->sending = call_start(c, &c->tag_send, &op, 1);
                c->delivered = true;
                if (c->method->on_opened)
                        c->method->on_opened(s->arg, c);
                start_recv(c);
        }
}

static void accept_start(struct rpc_accept *a) {
        struct rpc_server *s = a->server;
        grpc_completion_queue *cq = rpc_queue_cq(s->queue);

        grpc_call_details_init(&a->details);
        grpc_metadata_array_init(&a->metadata);
        rpc_tag_given(&a->tag);
        if (grpc_server_request_call(s->server, &a->call, &a->details, &a->metadata, cq, cq, &a->tag) == GRPC_CALL_OK) {
                s->armed++;
        } else {
                grpc_call_details_destroy(&a->details);
                grpc_metadata_array_destroy(&a->metadata);
        }
}

static void on_accepted(struct rpc_tag *t, bool ok) {
        struct rpc_accept *a = t->owner;
        struct rpc_server *s = a->server;
        struct rpc_call *c = NULL;

        s->armed--;
        if (ok)
                c = calloc(1, sizeof(*c));
        if (c) {
                c->server = s;
                c->call = a->call;
                c->method = find_method(s, &a->details.method);
                c->refs = 1;
                c->owned = true;
                c->tag_close = (struct rpc_tag){ .fn = on_closed, .owner = c };
                c->tag_recv = (struct rpc_tag){ .fn = on_received, .owner = c };
                c->tag_send = (struct rpc_tag){ .fn = on_sent, .owner = c };
                c->tag_status = (struct rpc_tag){ .fn = on_status_sent, .owner = c };
                c->next = s->calls;
                c->link = &s->calls;
                if (c->next)
                        c->next->link = &c->next;
                s->calls = c;
                identify(c, &a->metadata);
                c->refs++; /* held through call_begin */
                call_begin(c);
                call_unref(c);
        } else if (ok) {
                grpc_call_cancel(a->call, NULL);
                grpc_call_unref(a->call);
        }
        grpc_call_details_destroy(&a->details);
        grpc_metadata_array_destroy(&a->metadata);
        a->call = NULL;
        if (ok && !s->closing)
                accept_start(a);
}

static void on_shutdown(struct rpc_tag *t, bool ok) {
        struct rpc_server *s = t->owner;

        s->shut = true;
}

const struct rpc_peer *rpc_call_peer(const struct rpc_call *c) {
        return &c->peer;
}

void rpc_call_set_data(struct rpc_call *c, void *data) {
        c->data = data;
}

void *rpc_call_data(const struct rpc_call *c) {
        return c->data;
}

void rpc_call_reply(struct rpc_call *c, const uint8_t *data, size_t len) {
        grpc_slice slice = grpc_slice_from_copied_buffer(data ? (const char *)data : "", len);

        if (!c->ending && !c->ended && !c->closed) {
                c->ending = true;
                c->status = RPC_OK;
                c->sent = grpc_raw_byte_buffer_create(&slice, 1);
                start_status(c, c->sent);
        }
        grpc_slice_unref(slice);
        call_let_go(c);
}

void rpc_call_fail(struct rpc_call *c, enum rpc_status code, const char *text) {
        end_call(c, code, text);
        if (!c->method || !c->method->stream)
                call_let_go(c);
}

int rpc_call_send(struct rpc_call *c, const uint8_t *data, size_t len) {
        int r;

        if (c->ending || c->closed)
                return -EPIPE;
        r = rpc_out_push(&c->out, data, len);
        if (r == -ENOBUFS)
                c->overflowed = true;
        if (r < 0)
                return r;
        pump(c);
        return 0;
}

static int listen_unix(struct rpc_server *s, const struct rpc_server_config *c, struct error *e) {
        mode_t mode = c->socket_mode ? c->socket_mode : 0600, before;
        const char *path = c->address + strlen("unix:");
        struct sockaddr_un un;
        int port;

        if (path[0] != '/' || strlen(path) >= sizeof(un.sun_path))
                return error_set(e, -EINVAL, "address %s: expected unix:/PATH of at most %zu bytes", c->address, sizeof(un.sun_path) - 1);
        before = umask(0177); /* nobody else connects between bind and chmod */
        port = rpc_server_add_port(s->server, c->address, NULL);
        umask(before);
        if (port == 0)
                return error_set(e, -EADDRINUSE, "%s: cannot listen there (is the folder there and writable, is another server running?)", c->address);
        s->socket_path = strdup(path);
        if (c->socket_group) {
                struct group gr, *found = NULL;
                char buf[8192];

                if (getgrnam_r(c->socket_group, &gr, buf, sizeof(buf), &found) != 0 || !found)
                        return error_set(e, -ENOENT, "group '%s': found none of that name", c->socket_group);
                if (chown(path, (uid_t)-1, found->gr_gid) < 0)
                        return error_errno(e, errno, "%s: cannot give it to group %s", path, c->socket_group);
        }
        if (mode != 0600) {
                _cleanup_free_ char *cred = NULL;
                int r;

                if (asprintf(&cred, "%s.cred", path) < 0)
                        return error_set(e, -ENOMEM, "no memory");
                s->identity = IDENTITY_TOKEN;
                r = peercred_new(s->loop, cred, mode, c->socket_group, &s->peercred, e);
                if (r < 0)
                        return r;
        }
        if (chmod(path, mode) < 0)
                return error_errno(e, errno, "%s: chmod", path);
        return 0;
}

static int listen_tls(struct rpc_server *s, const struct rpc_server_config *c, struct error *e) {
        grpc_server_credentials *creds;
        int r, port;

        s->identity = IDENTITY_TLS;
        r = rpc_tls_server_credentials(c->tls, &creds, e);
        if (r < 0)
                return r;
        port = rpc_server_add_port(s->server, c->address + strlen("ipv4:"), creds);
        grpc_server_credentials_release(creds);
        if (port == 0)
                return error_set(e, -EADDRINUSE, "%s: cannot listen there (address in use, or not of this host, or certificate and key do not fit)",
                                 c->address);
        return 0;
}

static int server_listen(struct rpc_server *s, const struct rpc_server_config *c, struct error *e) {
        if (strncmp(c->address, "unix:", 5) == 0)
                return listen_unix(s, c, e);
        if (strncmp(c->address, "ipv4:", 5) != 0)
                return error_set(e, -EINVAL, "address '%s': expected unix:/PATH or ipv4:IP:PORT", c->address);
        if (!c->tls)
                return error_set(e, -EINVAL, "address %s: only Unix sockets are served without TLS", c->address);
        return listen_tls(s, c, e);
}

int rpc_server_new(const struct rpc_server_config *c, struct rpc_server **ret, struct error *e) {
        struct rpc_server *s = calloc(1, sizeof(*s));
        grpc_arg args[3];
        grpc_channel_args channel_args = { 0, args };
        int r;

        if (!s)
                return error_set(e, -ENOMEM, "no memory");
        s->loop = c->loop;
        s->methods = c->methods;
        s->n_methods = c->n_methods;
        s->arg = c->arg;
        s->max_message = c->max_message ? c->max_message : DEFAULT_MAX_MESSAGE;
        s->owner = (struct rpc_peer){ .role = RPC_ROLE_ADMIN, .uid = geteuid(), .gid = getegid(), .has_uid = true };
        peer_name_of_uid(&s->owner);
        s->tag_shutdown = (struct rpc_tag){ .fn = on_shutdown, .owner = s };
        r = rpc_queue_new(c->loop, &s->queue, e);
        if (r < 0) {
                free(s);
                return r;
        }
        args[channel_args.num_args++] = rpc_arg_int(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)s->max_message);
        args[channel_args.num_args++] = rpc_arg_int(GRPC_ARG_ALLOW_REUSEPORT, 0); /* a second server must see that the port is taken */
        args[channel_args.num_args++] = rpc_arg_int(GRPC_ARG_MAX_METADATA_SIZE, 16 * 1024);
        s->server = grpc_server_create(&channel_args, NULL);
        grpc_server_register_completion_queue(s->server, rpc_queue_cq(s->queue), NULL);
        r = server_listen(s, c, e);
        grpc_server_start(s->server);
        if (r < 0) {
                rpc_server_free(s, 0);
                return r;
        }
        for (size_t i = 0; i < ACCEPTS; i++) {
                s->accepts[i].server = s;
                s->accepts[i].tag = (struct rpc_tag){ .fn = on_accepted, .owner = &s->accepts[i] };
                accept_start(&s->accepts[i]);
        }
        *ret = s;
        return 0;
}

/* The owner hears of calls that are ended for it, as if their client had gone. */
static void end_all(struct rpc_server *s) {
        struct rpc_call *c, *next;

        for (c = s->calls; c; c = c->next)
                c->refs++; /* so that none vanishes from the list below */
        for (c = s->calls; c; c = c->next) {
                end_call(c, RPC_UNAVAILABLE, "the server is stopping");
                if (!c->method || c->method->stream || !c->owned || !c->delivered)
                        continue;
                if (c->method->on_closed)
                        c->method->on_closed(s->arg, c);
                call_let_go(c);
        }
        for (c = s->calls; c; c = next) {
                next = c->next;
                call_unref(c);
        }
}

struct rpc_server *rpc_server_free(struct rpc_server *s, int grace_ms) {
        uint64_t end = clock_mono_ns() + (uint64_t)(grace_ms > 0 ? grace_ms : 0) * NSEC_PER_MSEC;

        if (!s)
                return NULL;
        s->closing = true;
        rpc_tag_given(&s->tag_shutdown);
        grpc_server_shutdown_and_notify(s->server, rpc_queue_cq(s->queue), &s->tag_shutdown);
        end_all(s);
        while ((!s->shut || s->calls) && clock_mono_ns() < end)
                if (loop_turn(s->loop, 10) < 0)
                        break;
        grpc_server_cancel_all_calls(s->server);
        while (!s->shut || s->calls || s->armed > 0)
                if (loop_turn(s->loop, 10) < 0)
                        break;
        grpc_server_destroy(s->server);
        rpc_queue_free(s->queue);
        peercred_free(s->peercred);
        if (s->socket_path)
                unlink(s->socket_path);
        free(s->socket_path);
        free(s);
        return NULL;
}
