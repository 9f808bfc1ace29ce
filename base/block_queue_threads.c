/* SPDX-License-Identifier: Apache-2.0 */
/* Two threads with pwrite(2): one block in the device while the next is on its way to it. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/block_writer_private.h"

#define THREADS 2

struct block_queue {
        pthread_mutex_t lock;
        pthread_cond_t more, less;
        struct block *waiting[BLOCK_WRITER_DEPTH], *ready[BLOCK_WRITER_DEPTH]; /* first in, first out */
        unsigned n_waiting, n_ready, n_threads;
        pthread_t threads[THREADS];
        bool stop;
};

ssize_t block_pwrite(int fd, const uint8_t *data, size_t len, uint64_t at) {
        size_t done = 0;

        while (done < len) {
                ssize_t n = pwrite(fd, data + done, len - done, (off_t)(at + done));

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                if (n == 0)
                        return -EIO;
                done += (size_t)n;
        }
        return (ssize_t)done;
}

static struct block *take(struct block **list, unsigned *n) {
        struct block *first = list[0];

        (*n)--;
        for (unsigned i = 0; i < *n; i++)
                list[i] = list[i + 1];
        return first;
}

static void *write_blocks(void *arg) {
        struct block_queue *q = arg;

        pthread_mutex_lock(&q->lock);
        for (;;) {
                struct block *b;

                while (!q->n_waiting && !q->stop)
                        pthread_cond_wait(&q->more, &q->lock);
                if (!q->n_waiting)
                        break;
                b = take(q->waiting, &q->n_waiting);
                pthread_mutex_unlock(&q->lock);
                b->done = block_pwrite(b->fd, b->data, b->len, b->at);
                pthread_mutex_lock(&q->lock);
                q->ready[q->n_ready++] = b;
                pthread_cond_signal(&q->less);
        }
        pthread_mutex_unlock(&q->lock);
        return NULL;
}

static void threads_free(struct block_queue *q) {
        pthread_mutex_lock(&q->lock);
        q->stop = true;
        pthread_cond_broadcast(&q->more);
        pthread_mutex_unlock(&q->lock);
        for (unsigned i = 0; i < q->n_threads; i++)
                (void)pthread_join(q->threads[i], NULL);
        pthread_cond_destroy(&q->more);
        pthread_cond_destroy(&q->less);
        pthread_mutex_destroy(&q->lock);
        free(q);
}

static int threads_new(unsigned depth, struct block_queue **ret) {
        struct block_queue *q = depth <= BLOCK_WRITER_DEPTH ? calloc(1, sizeof(*q)) : NULL;
        sigset_t all, old;
        int r = 0;

        if (!q)
                return -ENOMEM;
        pthread_mutex_init(&q->lock, NULL);
        pthread_cond_init(&q->more, NULL);
        pthread_cond_init(&q->less, NULL);
        /* Signals are the program's own affair, in its own threads. */
        (void)sigfillset(&all);
        (void)pthread_sigmask(SIG_SETMASK, &all, &old);
        while (q->n_threads < THREADS && r == 0) {
                r = pthread_create(&q->threads[q->n_threads], NULL, write_blocks, q);
                q->n_threads += r == 0;
        }
        (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
        if (q->n_threads == 0) {
                threads_free(q);
                return -r;
        }
        *ret = q;
        return 0;
}

static int threads_submit(struct block_queue *q, struct block *b) {
        pthread_mutex_lock(&q->lock);
        q->waiting[q->n_waiting++] = b;
        pthread_cond_signal(&q->more);
        pthread_mutex_unlock(&q->lock);
        return 0;
}

static int threads_wait(struct block_queue *q, struct block **ret) {
        pthread_mutex_lock(&q->lock);
        while (!q->n_ready)
                pthread_cond_wait(&q->less, &q->lock);
        *ret = take(q->ready, &q->n_ready);
        pthread_mutex_unlock(&q->lock);
        return 0;
}

const struct block_queue_ops block_queue_threads = { "threads", threads_new, threads_submit, threads_wait, threads_free };
