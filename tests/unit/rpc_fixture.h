/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A server on a loop in this thread, blocking clients in another one. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/loop.h"
#include "proto/rpc_client.h"
#include "proto/rpc_server.h"

struct served {
        struct loop *loop;
        struct rpc_server *server;
        struct rpc_call *held;   /* the unary call that is answered later, or never */
        struct rpc_call *stream; /* the newest open one */
        struct rpc_peer peer;    /* of the newest call or stream */
        unsigned opened, closed, messages, gone;
        bool quiet;              /* streams are not echoed */
};

static inline void served_echo(void *arg, struct rpc_call *call, const uint8_t *data, size_t len) {
        struct served *s = arg;

        s->peer = *rpc_call_peer(call);
        rpc_call_reply(call, data, len);
}

static inline void served_fail(void *arg, struct rpc_call *call, const uint8_t *data, size_t len) {
        rpc_call_fail(call, len == 1 ? (enum rpc_status)data[0] : RPC_INTERNAL, "refused: found 3, expected 4");
}

static inline void served_hold(void *arg, struct rpc_call *call, const uint8_t *data, size_t len) {
        ((struct served *)arg)->held = call;
}

static inline void served_gone(void *arg, struct rpc_call *call) {
        struct served *s = arg;

        s->gone++;
        if (s->held == call)
                s->held = NULL;
}

static inline void served_opened(void *arg, struct rpc_call *call) {
        struct served *s = arg;

        s->opened++;
        s->stream = call;
        s->peer = *rpc_call_peer(call);
}

static inline void served_message(void *arg, struct rpc_call *call, const uint8_t *data, size_t len) {
        struct served *s = arg;

        s->messages++;
        if (len == 4 && memcmp(data, "quit", 4) == 0)
                rpc_call_fail(call, RPC_ABORTED, "you said quit");
        else if (!s->quiet)
                rpc_call_send(call, data, len);
}

static inline void served_closed(void *arg, struct rpc_call *call) {
        struct served *s = arg;

        s->closed++;
        if (s->stream == call)
                s->stream = NULL;
}

static const struct rpc_method served_methods[] = {
        { "/test/Echo", false, served_echo, NULL, NULL },
        { "/test/Fail", false, served_fail, NULL, NULL },
        { "/test/Hold", false, served_hold, NULL, served_gone },
        { "/test/Stream", true, served_message, served_opened, served_closed },
};

/* fn runs in a thread while this one turns the loop. */
struct aside {
        void (*fn)(void *arg);
        void *arg;
        atomic_bool done;
};

static inline void *aside_thread(void *arg) {
        struct aside *a = arg;

        a->fn(a->arg);
        atomic_store(&a->done, true);
        return NULL;
}

static inline void aside_run(struct loop *l, void (*fn)(void *arg), void *arg) {
        struct aside a = { fn, arg, false };
        pthread_t t;

        if (pthread_create(&t, NULL, aside_thread, &a) != 0)
                abort();
        while (!atomic_load(&a.done))
                loop_turn(l, 5);
        pthread_join(t, NULL);
}

/* Listens at `address`; message_max 0: the server's own. */
static inline int served_listen(struct served *s, const char *address, mode_t mode, size_t message_max, const struct tls_files *tls, struct error *e) {
        struct rpc_server_config c = { .methods = served_methods, .n_methods = sizeof(served_methods) / sizeof(served_methods[0]), .socket_mode = mode };

        c.loop = s->loop;
        c.arg = s;
        c.address = address;
        c.max_message = message_max;
        c.tls = tls;
        return rpc_server_new(&c, &s->server, e);
}

/* A client's unary call, for aside_run. The reply is the caller's to free. */
struct unary_job {
        const char *address, *path;
        const struct tls_files *tls;
        const uint8_t *data;
        size_t len;
        int timeout_ms;
        int rc;
        uint8_t *reply;
        size_t reply_len;
        struct error e;
};

static inline void unary_run(void *arg) {
        struct unary_job *j = arg;
        struct rpc_client *c = NULL;

        j->rc = rpc_client_new(j->address, j->tls, &c, &j->e);
        if (j->rc == 0)
                j->rc = rpc_client_call(c, j->path, j->data, j->len, j->timeout_ms ? j->timeout_ms : 5000, &j->reply, &j->reply_len, &j->e);
        rpc_client_free(c);
}

/* Turns the loop until *value reaches want, 10 s at most. */
static inline bool turn_until(struct loop *l, const unsigned *value, unsigned want) {
        uint64_t end = clock_mono_ns() + 10 * NSEC_PER_SEC;

        while (*value < want && clock_mono_ns() < end)
                loop_turn(l, 20);
        return *value >= want;
}

struct client_stream {
        struct rpc_stream *stream;
        unsigned messages, closed, order_errors;
        size_t bytes;
        int status;
        char text[256];
};

static inline void cs_message(void *arg, const uint8_t *data, size_t len) {
        struct client_stream *c = arg;
        unsigned n;

        if (len >= sizeof(n)) {
                memcpy(&n, data, sizeof(n));
                c->order_errors += n != c->messages;
        }
        c->messages++;
        c->bytes += len;
}

static inline void cs_closed(void *arg, int status, const char *text) {
        struct client_stream *c = arg;

        c->closed++;
        c->status = status;
        snprintf(c->text, sizeof(c->text), "%s", text);
}
