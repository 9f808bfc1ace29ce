/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What does not go direct goes through the cache: a file system without direct writes (tmpfs), memory or lengths it does not like, the odd end of the file, and what a short
 * write left at an offset that direct writing refuses.
 */
#include "base/block_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/block_writer_private.h"
#include "base/cleanup.h"
#include "base/clock.h"

#define SLICE_NS (20 * NSEC_PER_MSEC) /* of a wait for the bandwidth cap: how soon a cancel is seen */

struct block_writer {
        char *path;
        int fd, cached_fd; /* the same file, with and without O_DIRECT; cached_fd -1: not opened yet */
        bool direct;
        struct block_writer_config config;
        const struct block_queue_ops *ops;
        struct block_queue *queue;
        struct block blocks[BLOCK_WRITER_DEPTH], *idle[BLOCK_WRITER_DEPTH];
        unsigned n_idle;
        uint64_t len, at, started_ns;
        int failed; /* the first error, negative */
};

static bool cancelled(const struct block_writer *w) {
        return w->config.cancel && atomic_load(w->config.cancel);
}

static int open_queue(struct block_writer *w) {
#ifdef HAVE_LIBURING
        if (!w->config.threads && block_queue_uring.new(BLOCK_WRITER_DEPTH, &w->queue) == 0) {
                w->ops = &block_queue_uring;
                return 0;
        }
#endif
        w->ops = &block_queue_threads;
        return block_queue_threads.new(BLOCK_WRITER_DEPTH, &w->queue);
}

DEFINE_CLEANUP(struct block_writer *, block_writer_free);

int block_writer_open(const char *path, uint64_t len, const struct block_writer_config *c, struct block_writer **ret, struct error *e) {
        _cleanup_(block_writer_freep) struct block_writer *w = calloc(1, sizeof(*w));
        int r;

        if (!w)
                return error_set(e, -ENOMEM, "cannot write %s: out of memory", path);
        w->fd = w->cached_fd = -1;
        w->config = *c;
        w->len = len;
        w->started_ns = clock_mono_ns();
        w->path = strdup(path);
        for (unsigned i = 0; i < BLOCK_WRITER_DEPTH; i++)
                w->idle[w->n_idle++] = &w->blocks[i];
        if (!w->path || len > INT64_MAX)
                return error_set(e, w->path ? -EFBIG : -ENOMEM, "cannot write %s of %" PRIu64 " bytes", path, len);
        w->direct = true;
        w->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_DIRECT, 0666);
        if (w->fd < 0 && errno == EINVAL) {
                w->direct = false;
                w->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        }
        if (w->fd < 0)
                return error_errno(e, errno, "cannot create %s", path);
        /* Blocks that do not make the file longer can also go in side by side. */
        do
                r = len > 0 && fallocate(w->fd, 0, 0, (off_t)len) < 0 ? errno : 0;
        while (r == EINTR);
        if (r == 0)
                r = -open_queue(w);
        else if (r == EOPNOTSUPP || r == ENOSYS)
                r = -open_queue(w);
        if (r != 0)
                return error_errno(e, r, "cannot write %s (%" PRIu64 " bytes)", path, len);
        *ret = STEAL_PTR(w);
        return 0;
}

static int open_cached(struct block_writer *w) {
        if (w->cached_fd < 0)
                w->cached_fd = open(w->path, O_WRONLY | O_CLOEXEC);
        return w->cached_fd < 0 ? -errno : 0;
}

/* Through the cache, and at once. */
static int write_cached(struct block_writer *w, const uint8_t *data, size_t len, uint64_t at) {
        int r = open_cached(w);
        ssize_t n = r < 0 ? r : block_pwrite(w->cached_fd, data, len, at);

        return n < 0 ? (int)n : 0;
}

/* One block back from under way. */
static void collect(struct block_writer *w) {
        struct block *b = NULL;
        int r = w->ops->wait(w->queue, &b);

        if (r < 0) { /* cannot happen while blocks are under way, and nothing could be said about any of them */
                w->failed = w->failed ? w->failed : r;
                w->n_idle = BLOCK_WRITER_DEPTH;
                return;
        }
        r = b->done < 0 ? (int)b->done : 0;
        if (r == -EINVAL && b->fd == w->fd) { /* others may be under way */
                w->direct = false;
                r = write_cached(w, b->data, b->len, b->at);
        } else if (r == 0 && (size_t)b->done < b->len)
                r = write_cached(w, b->data + b->done, b->len - (size_t)b->done, b->at + (uint64_t)b->done);
        if (r < 0 && !w->failed)
                w->failed = r;
        if (r == 0 && w->config.written)
                atomic_fetch_add(w->config.written, b->len);
        w->idle[w->n_idle++] = b;
}

/* Until the bytes so far are due. */
static void keep_pace(const struct block_writer *w) {
        uint64_t due, now;

        if (!w->config.bytes_per_s)
                return;
        due = w->started_ns + (uint64_t)((double)w->at / (double)w->config.bytes_per_s * (double)NSEC_PER_SEC);
        while (!cancelled(w) && (now = clock_mono_ns()) < due) {
                uint64_t left = due - now < SLICE_NS ? due - now : SLICE_NS;
                struct timespec ts = { .tv_sec = 0, .tv_nsec = (long)left };

                (void)nanosleep(&ts, NULL);
        }
}

static int add_block(struct block_writer *w, const uint8_t *data, size_t len) {
        size_t odd = len % BLOCK_WRITER_ALIGN;
        struct block *b;
        int r;

        keep_pace(w);
        if (w->n_idle == 0)
                collect(w);
        if (w->failed || cancelled(w))
                return w->failed ? w->failed : -ECANCELED;
        if (len > odd) {
                r = w->direct ? 0 : open_cached(w);
                if (r < 0)
                        return r;
                b = w->idle[--w->n_idle];
                *b = (struct block){ .fd = w->direct ? w->fd : w->cached_fd, .data = data, .len = len - odd, .at = w->at };
                r = w->ops->submit(w->queue, b);
                if (r < 0) {
                        w->idle[w->n_idle++] = b;
                        return r;
                }
        }
        w->at += len;
        r = odd ? write_cached(w, data + len - odd, odd, w->at - odd) : 0;
        if (r == 0 && odd && w->config.written)
                atomic_fetch_add(w->config.written, odd);
        return r;
}

int block_writer_add(struct block_writer *w, const void *data, size_t len, struct error *e) {
        const uint8_t *p = data;
        int r = w->failed;

        if (w->at % BLOCK_WRITER_ALIGN != 0 || len > w->len - w->at)
                return error_set(e, -EINVAL, "%s: found %zu bytes at %" PRIu64 ", expected aligned ones of %" PRIu64, w->path, len, w->at, w->len);
        while (len > 0 && r == 0) {
                size_t n = len < BLOCK_WRITER_BLOCK ? len : BLOCK_WRITER_BLOCK;

                r = add_block(w, p, n);
                p += n;
                len -= n;
        }
        if (r < 0)
                w->failed = r;
        return r < 0 ? error_errno(e, -r, "cannot write %s (%" PRIu64 " bytes)", w->path, w->len) : 0;
}

int block_writer_finish(struct block_writer *w, struct error *e) {
        int r;

        while (w->n_idle < BLOCK_WRITER_DEPTH)
                collect(w);
        r = w->failed;
        if (r == 0 && cancelled(w))
                r = -ECANCELED;
        if (r == 0 && w->at != w->len)
                r = -ENODATA;
        if (r == 0 && (ftruncate(w->fd, (off_t)w->len) < 0 || fsync(w->fd) < 0))
                r = -errno;
        return r < 0 ? error_errno(e, -r, "cannot write %s (%" PRIu64 " bytes)", w->path, w->len) : 0;
}

struct block_writer *block_writer_free(struct block_writer *w) {
        if (!w)
                return NULL;
        if (w->queue) {
                while (w->n_idle < BLOCK_WRITER_DEPTH)
                        collect(w);
                w->ops->free(w->queue);
        }
        if (w->fd >= 0)
                close(w->fd);
        if (w->cached_fd >= 0)
                close(w->cached_fd);
        free(w->path);
        free(w);
        return NULL;
}

const char *block_writer_method(const struct block_writer *w) {
        if (w->direct)
                return w->ops->name;
        return w->ops == &block_queue_threads ? "threads, cached" : "io_uring, cached";
}
