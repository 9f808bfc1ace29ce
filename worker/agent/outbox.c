/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/agent/outbox.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "proto/ipc.h"
#include "proto/message.h"

struct waiting {
        struct waiting *next;
        ProtobufCMessage *message;
        int fds[IPC_MAX_FDS];
        size_t n_fds;
};

struct outbox {
        int fd;
        struct loop_source *writable;
        struct waiting *first, **tail;
        size_t n;
};

static struct waiting *waiting_free(struct waiting *w) {
        if (!w)
                return NULL;
        for (size_t i = 0; i < w->n_fds; i++)
                close(w->fds[i]);
        if (w->message)
                protobuf_c_message_free_unpacked(w->message, NULL);
        free(w);
        return NULL;
}

static int enqueue(struct outbox *o, const ProtobufCMessage *m, const int *fds, size_t n_fds) {
        struct waiting *w;

        if (!o->writable)
                return -EPIPE;
        if (o->n >= OUTBOX_MAX || n_fds > IPC_MAX_FDS)
                return -ENOBUFS;
        w = calloc(1, sizeof(*w));
        if (!w)
                return -ENOMEM;
        w->message = message_copy(m);
        if (!w->message) {
                waiting_free(w);
                return -ENOMEM;
        }
        for (size_t i = 0; i < n_fds; i++) {
                int fd = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);

                if (fd < 0) {
                        int r = -errno;

                        waiting_free(w);
                        return r;
                }
                w->fds[w->n_fds++] = fd;
        }
        *o->tail = w;
        o->tail = &w->next;
        o->n++;
        return loop_fd_set_events(o->writable, EPOLLOUT);
}

/*
 * A broken peer is seen by whoever reads the same socket (end of stream), so an error here only stops the writing. A hang-up
 * is reported whatever is asked for, for as long as the descriptor is watched, and an outbox may outlive its peer by minutes.
 */
static void on_writable(void *arg, uint32_t revents) {
        struct outbox *o = arg;

        if (revents & (EPOLLHUP | EPOLLERR)) {
                o->writable = loop_remove(o->writable);
                return;
        }
        while (o->first) {
                struct waiting *w = o->first;
                int r = ipc_send(o->fd, w->message, w->fds, w->n_fds, NULL);

                if (r == -EAGAIN)
                        return;
                o->first = w->next;
                if (!o->first)
                        o->tail = &o->first;
                o->n--;
                waiting_free(w);
                if (r < 0)
                        break;
        }
        loop_fd_set_events(o->writable, 0);
}

int outbox_new(struct loop *l, int fd, struct outbox **ret) {
        struct outbox *o = calloc(1, sizeof(*o));
        int r;

        if (!o)
                return -ENOMEM;
        o->fd = -1;
        o->tail = &o->first;
        /* epoll takes a descriptor once only, and the reader has its own source: watch a duplicate. */
        o->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        r = o->fd < 0 ? -errno : loop_add_fd(l, o->fd, 0, on_writable, o, &o->writable);
        if (r < 0) {
                outbox_free(o);
                return r;
        }
        *ret = o;
        return 0;
}

struct outbox *outbox_free(struct outbox *o) {
        if (!o)
                return NULL;
        loop_remove(o->writable);
        while (o->first) {
                struct waiting *w = o->first;

                o->first = w->next;
                waiting_free(w);
        }
        closep(&o->fd);
        free(o);
        return NULL;
}

int outbox_send(struct outbox *o, const ProtobufCMessage *m, const int *fds, size_t n_fds, struct error *e) {
        int r = -EAGAIN;

        if (!o->first) {
                r = ipc_send(o->fd, m, fds, n_fds, e);
                if (r != -EAGAIN)
                        return r;
        }
        r = enqueue(o, m, fds, n_fds);
        if (r < 0)
                return error_errno(e, -r, "local message cannot be queued (%zu wait)", o->n);
        return 0;
}
