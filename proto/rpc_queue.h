/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * gRPC's completion queue on an event loop: one thread blocks in it and links what completed into a locked list, the loop is woken by an eventfd and
 * runs the handlers, so that all state stays in the loop's thread.  Internal to rpc_server.c and rpc_client.c.
 */
#include <grpc/grpc.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/loop.h"

#if defined(__SANITIZE_THREAD__)
#define RPC_TSAN
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define RPC_TSAN
#endif
#endif
#ifdef RPC_TSAN
#include <sanitizer/tsan_interface.h>
#endif

/* One for each kind of batch that can be outstanding; it lies in what fn works on, and lives until fn was called. */
struct rpc_tag {
        void (*fn)(struct rpc_tag *t, bool ok);
        void *owner;
        struct rpc_tag *next;
        bool ok;
};

/*
 * Called before a tag is given to gRPC. What orders that and the tag's completion in the queue's thread lies inside gRPC, where ThreadSanitizer does not
 * see it (it would report each tag): here it is told.
 */
static inline void rpc_tag_given(struct rpc_tag *t) {
#ifdef RPC_TSAN
        __tsan_release(t);
#endif
}

struct rpc_queue;
int rpc_queue_new(struct loop *l, struct rpc_queue **ret, struct error *e);
/* Nothing may be started any more; waits for what is outstanding (the caller cancelled it) and runs its handlers here. */
struct rpc_queue *rpc_queue_free(struct rpc_queue *q);
grpc_completion_queue *rpc_queue_cq(struct rpc_queue *q);

/* Outgoing messages of one stream; gRPC takes one at a time. */
#define RPC_OUT_MESSAGES 4096
#define RPC_OUT_BYTES (64u * 1024 * 1024)
struct rpc_out_item;
struct rpc_out {
        struct rpc_out_item *head, **tail;
        size_t messages, bytes;
};
/* Copies; -ENOBUFS when full. */
int rpc_out_push(struct rpc_out *o, const void *data, size_t len);
/* The oldest, now the caller's; NULL: empty. */
grpc_byte_buffer *rpc_out_pop(struct rpc_out *o);
void rpc_out_clear(struct rpc_out *o);

/* Flat copy of a message, free(); NULL: no memory or longer than max. */
unsigned char *rpc_buffer_flat(grpc_byte_buffer *b, size_t max, size_t *ret_len);
