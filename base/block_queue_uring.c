/* SPDX-License-Identifier: Apache-2.0 */
/* io_uring(7): the kernel writes, nobody waits in a system call. Containers and hardened kernels often forbid it; then threads do the same. */
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>

#include "base/block_writer_private.h"

struct block_queue {
        struct io_uring ring;
};

static int uring_new(unsigned depth, struct block_queue **ret) {
        struct block_queue *q = calloc(1, sizeof(*q));
        int r;

        if (!q)
                return -ENOMEM;
        r = io_uring_queue_init(depth, &q->ring, 0);
        if (r < 0) {
                free(q);
                return r;
        }
        *ret = q;
        return 0;
}

static int uring_submit(struct block_queue *q, struct block *b) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&q->ring);
        int r;

        if (!sqe)
                return -EBUSY;
        io_uring_prep_write(sqe, b->fd, b->data, (unsigned)b->len, b->at);
        io_uring_sqe_set_data(sqe, b);
        do
                r = io_uring_submit(&q->ring);
        while (r == -EINTR || r == -EAGAIN);
        return r < 0 ? r : 0;
}

static int uring_wait(struct block_queue *q, struct block **ret) {
        struct io_uring_cqe *cqe;
        struct block *b;
        int r;

        do
                r = io_uring_wait_cqe(&q->ring, &cqe);
        while (r == -EINTR);
        if (r < 0)
                return r;
        b = io_uring_cqe_get_data(cqe);
        b->done = cqe->res;
        io_uring_cqe_seen(&q->ring, cqe);
        *ret = b;
        return 0;
}

static void uring_free(struct block_queue *q) {
        io_uring_queue_exit(&q->ring);
        free(q);
}

const struct block_queue_ops block_queue_uring = { "io_uring", uring_new, uring_submit, uring_wait, uring_free };
