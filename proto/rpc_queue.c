/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/rpc_queue.h"

#include <errno.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/support/time.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct rpc_queue {
        grpc_completion_queue *cq;
        pthread_t thread;
        pthread_mutex_t lock;
        struct rpc_tag *head, **tail; /* completed, under lock */
        int event_fd;
        struct loop_source *source;
};

static void *queue_thread(void *arg) {
        struct rpc_queue *q = arg;

        for (;;) {
                grpc_event ev = grpc_completion_queue_next(q->cq, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
                struct rpc_tag *t = ev.tag;
                bool was_empty;

                if (ev.type == GRPC_QUEUE_SHUTDOWN)
                        return NULL;
                if (ev.type != GRPC_OP_COMPLETE)
                        continue;
#ifdef RPC_TSAN
                __tsan_acquire(t); /* see rpc_tag_given */
#endif
                t->ok = ev.success != 0;
                t->next = NULL;
                pthread_mutex_lock(&q->lock);
                was_empty = !q->head;
                *q->tail = t;
                q->tail = &t->next;
                pthread_mutex_unlock(&q->lock);
                if (was_empty) {
                        uint64_t one = 1;
                        ssize_t n;

                        do
                                n = write(q->event_fd, &one, sizeof(one));
                        while (n < 0 && errno == EINTR);
                }
        }
}

static void dispatch(struct rpc_queue *q) {
        struct rpc_tag *list;

        pthread_mutex_lock(&q->lock);
        list = q->head;
        q->head = NULL;
        q->tail = &q->head;
        pthread_mutex_unlock(&q->lock);
        while (list) {
                struct rpc_tag *t = list;

                list = t->next; /* fn may free t, or start it again */
                t->fn(t, t->ok);
        }
}

static void on_event(void *arg, uint32_t revents) {
        struct rpc_queue *q = arg;
        uint64_t count;

        /* Emptied before the list is taken: what comes in between wakes us again. */
        if (read(q->event_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
                return;
        dispatch(q);
}

int rpc_queue_new(struct loop *l, struct rpc_queue **ret, struct error *e) {
        struct rpc_queue *q = calloc(1, sizeof(*q));
        sigset_t all, before;
        int r;

        if (!q)
                return error_set(e, -ENOMEM, "no memory");
        q->tail = &q->head;
        pthread_mutex_init(&q->lock, NULL);
        q->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (q->event_fd < 0) {
                r = error_errno(e, errno, "eventfd");
                goto fail;
        }
        r = loop_add_fd(l, q->event_fd, EPOLLIN, on_event, q, &q->source);
        if (r < 0) {
                error_errno(e, -r, "event loop");
                goto fail_fd;
        }
        q->cq = grpc_completion_queue_create_for_next(NULL);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        r = -pthread_create(&q->thread, NULL, queue_thread, q);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (r < 0) {
                error_errno(e, -r, "thread of the completion queue");
                goto fail_cq;
        }
        *ret = q;
        return 0;
fail_cq:
        grpc_completion_queue_shutdown(q->cq);
        grpc_completion_queue_destroy(q->cq);
        loop_remove(q->source);
fail_fd:
        close(q->event_fd);
fail:
        pthread_mutex_destroy(&q->lock);
        free(q);
        return r;
}

struct rpc_queue *rpc_queue_free(struct rpc_queue *q) {
        if (!q)
                return NULL;
        grpc_completion_queue_shutdown(q->cq);
        pthread_join(q->thread, NULL);
        dispatch(q);
        grpc_completion_queue_destroy(q->cq);
        loop_remove(q->source);
        close(q->event_fd);
        pthread_mutex_destroy(&q->lock);
        free(q);
        return NULL;
}

grpc_completion_queue *rpc_queue_cq(struct rpc_queue *q) {
        return q->cq;
}

struct rpc_out_item {
        struct rpc_out_item *next;
        grpc_byte_buffer *buffer;
        size_t len;
};

int rpc_out_push(struct rpc_out *o, const void *data, size_t len) {
        struct rpc_out_item *it;
        grpc_slice slice;

        if (o->messages >= RPC_OUT_MESSAGES || len > RPC_OUT_BYTES || o->bytes > RPC_OUT_BYTES - len)
                return -ENOBUFS;
        it = calloc(1, sizeof(*it));
        if (!it)
                return -ENOMEM;
        slice = grpc_slice_from_copied_buffer(data ? data : "", len);
        it->buffer = grpc_raw_byte_buffer_create(&slice, 1);
        grpc_slice_unref(slice);
        it->len = len;
        if (!o->head)
                o->tail = &o->head;
        *o->tail = it;
        o->tail = &it->next;
        o->messages++;
        o->bytes += len;
        return 0;
}

grpc_byte_buffer *rpc_out_pop(struct rpc_out *o) {
        struct rpc_out_item *it = o->head;
        grpc_byte_buffer *b;

        if (!it)
                return NULL;
        o->head = it->next;
        o->messages--;
        o->bytes -= it->len;
        b = it->buffer;
        free(it);
        return b;
}

void rpc_out_clear(struct rpc_out *o) {
        grpc_byte_buffer *b;

        while ((b = rpc_out_pop(o)))
                grpc_byte_buffer_destroy(b);
}

unsigned char *rpc_buffer_flat(grpc_byte_buffer *b, size_t max, size_t *ret_len) {
        grpc_byte_buffer_reader reader;
        unsigned char *flat = NULL;
        grpc_slice all;
        size_t len;

        if (grpc_byte_buffer_length(b) > max || !grpc_byte_buffer_reader_init(&reader, b))
                return NULL;
        all = grpc_byte_buffer_reader_readall(&reader);
        len = GRPC_SLICE_LENGTH(all);
        if (len <= max)
                flat = malloc(len + 1);
        if (flat) {
                memcpy(flat, GRPC_SLICE_START_PTR(all), len);
                *ret_len = len;
        }
        grpc_slice_unref(all);
        grpc_byte_buffer_reader_destroy(&reader);
        return flat;
}
