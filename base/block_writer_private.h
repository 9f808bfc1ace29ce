/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Ways to have several writes under way. */
#include <sys/types.h>

#include "base/block_writer.h"

struct block {
        int fd;
        const uint8_t *data;
        size_t len;
        uint64_t at;
        ssize_t done; /* bytes written, or negative errno */
};

struct block_queue;

struct block_queue_ops {
        const char *name;
        /* -ENOSYS, -EPERM and the like: this way is not open here. */
        int (*new)(unsigned depth, struct block_queue **ret);
        /* The block stays the caller's until wait gives it back; never more than depth. */
        int (*submit)(struct block_queue *q, struct block *b);
        /* A block that is done, when one is under way. */
        int (*wait)(struct block_queue *q, struct block **ret);
        void (*free)(struct block_queue *q); /* nothing is under way */
};

extern const struct block_queue_ops block_queue_threads;
#ifdef HAVE_LIBURING
extern const struct block_queue_ops block_queue_uring;
#endif

/* All of it, whatever the kernel writes at once. */
ssize_t block_pwrite(int fd, const uint8_t *data, size_t len, uint64_t at);
