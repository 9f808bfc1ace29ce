/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing a shard without holding up the step: the image is copied (its slot of the replica memory is written again two steps later), then a thread digests and
 * writes the copy in large aligned blocks past the page cache where the file system can do that: the cache would copy every byte once more and push out
 * what the training needs.  The name is final only once the bytes are durable.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "worker/ckpt/checkpoint.h"

#define BLOCK (8u << 20)
#define PIECE (256u << 10) /* fits into a core's own cache */
#define ALIGN 4096u /* no device asks for more (logical blocks are 512 or 4096 bytes) */

struct checkpoint_write {
        char *folder, *file;
        uint8_t *copy; /* `mapped` bytes, whole pages; zero from len to the next multiple of ALIGN */
        size_t len, mapped;
        void (*done)(void *arg, int rc, const char *text, struct digest d, const char *file);
        void *arg;
        pthread_t thread;
        bool running; /* or ended and not joined */
};

static int write_block(int fd, const uint8_t *data, size_t len, size_t at) {
        while (len > 0) {
                ssize_t n = pwrite(fd, data, len, (off_t)at);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                if (n == 0)
                        return -EIO;
                data += n;
                len -= (size_t)n;
                at += (size_t)n;
        }
        return 0;
}

/* A short direct write (disk full, a signal) leaves an offset that direct I/O refuses: the rest goes through the cache. */
static int write_direct_or_not(int fd, bool *direct, const uint8_t *data, size_t len, size_t at) {
        int r = write_block(fd, data, len, at);

        if (r == -EINVAL && *direct) {
                if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_DIRECT) < 0)
                        return -errno;
                *direct = false;
                r = write_block(fd, data, len, at);
        }
        return r;
}

/* Both digests of a piece while it is in the cache. */
static void digest_block(struct digest_stream *s, struct shard_sums *sums, const uint8_t *data, size_t len) {
        for (size_t at = 0; at < len; at += PIECE) {
                size_t n = len - at < PIECE ? len - at : PIECE;

                digest_stream_add(s, data + at, n);
                shard_sums_add(sums, n);
        }
}

static int write_all(struct checkpoint_write *w, int fd, bool direct, struct digest *ret, struct error *e) {
        struct shard_sums *sums = NULL;
        struct digest_stream *s = NULL;
        int r = digest_stream_new(&s);

        (void)shard_sums_new(w->copy, w->len, &sums, NULL); /* without them, verify names the shard and not the tensor */
        for (size_t at = 0; at < w->len && r == 0; at += BLOCK) {
                size_t len = w->len - at < BLOCK ? w->len - at : BLOCK;

                digest_block(s, sums, w->copy + at, len);
                r = write_direct_or_not(fd, &direct, w->copy + at, direct ? (len + ALIGN - 1) / ALIGN * ALIGN : len, at);
        }
        if (r == 0 && (ftruncate(fd, (off_t)w->len) < 0 || fsync(fd) < 0))
                r = -errno;
        if (r == 0)
                *ret = digest_stream_end(s);
        digest_stream_free(s);
        if (r == 0)
                (void)shard_sums_write(sums, w->folder, w->file, NULL);
        shard_sums_free(sums);
        return r < 0 ? error_errno(e, -r, "cannot write %s/%s (%zu bytes)", w->folder, w->file, w->len) : 0;
}

static int write_shard(struct checkpoint_write *w, struct digest *ret, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/%s", w->folder, w->file), *tmp = file_path("%s/.%s.tmp", w->folder, w->file);
        _cleanup_close_ int fd = -1;
        bool direct = true;
        int r;

        if (!path || !tmp)
                return error_set(e, -ENOMEM, "shard: out of memory");
        r = file_mkdir_p(w->folder, 0777, e);
        if (r < 0)
                return r;
        fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_DIRECT, 0666);
        if (fd < 0 && errno == EINVAL) { /* a file system without it, tmpfs say */
                direct = false;
                fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        }
        if (fd < 0)
                return error_errno(e, errno, "cannot create %s", tmp);
        r = write_all(w, fd, direct, ret, e);
        if (r == 0 && rename(tmp, path) < 0)
                r = error_errno(e, errno, "cannot rename %s", tmp);
        if (r < 0) {
                (void)unlink(tmp);
                return r;
        }
        return file_fsync_dir(w->folder, e);
}

static void *write_thread(void *arg) {
        struct checkpoint_write *w = arg;
        struct error e = { 0 };
        struct digest d = { 0, 0 };
        int r = write_shard(w, &d, &e);

        w->done(w->arg, r, e.text, d, r < 0 ? NULL : w->file);
        return NULL;
}

static void *touch_thread(void *arg) {
        struct checkpoint_write *w = arg;

        memset(w->copy, 0, w->mapped);
        return NULL;
}

static int start_thread(struct checkpoint_write *w, void *(*fn)(void *arg), struct error *e) {
        sigset_t all, old;
        int r;

        /* Signals are the program's own affair, in its own threads. */
        (void)sigfillset(&all);
        (void)pthread_sigmask(SIG_SETMASK, &all, &old);
        r = pthread_create(&w->thread, NULL, fn, w);
        (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
        if (r != 0)
                return error_errno(e, r, "shard: cannot start a thread");
        w->running = true;
        return 0;
}

/* Room for len bytes; what is there is kept when it is enough. */
static int make_room(struct checkpoint_write *w, size_t len, struct error *e) {
        size_t mapped = (len + ALIGN - 1) / ALIGN * ALIGN;
        void *p;

        if (w->copy && w->mapped >= mapped)
                return 0;
        p = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) {
                error_set(e, -ENOMEM, "shard: no memory for a copy of %zu bytes", len);
                return -ENOMEM;
        }
        if (w->copy)
                (void)munmap(w->copy, w->mapped);
        w->copy = p;
        w->mapped = mapped;
        return 0;
}

DEFINE_CLEANUP(struct checkpoint_write *, checkpoint_write_free);

int checkpoint_write_prepare(size_t len, struct checkpoint_write **ret, struct error *e) {
        _cleanup_(checkpoint_write_freep) struct checkpoint_write *w = calloc(1, sizeof(*w));
        int r;

        if (!w)
                return error_set(e, -ENOMEM, "shard: out of memory");
        r = make_room(w, len, e);
        if (r == 0)
                r = start_thread(w, touch_thread, e);
        if (r < 0)
                return r;
        *ret = STEAL_PTR(w);
        return 0;
}

int checkpoint_write_start(const char *folder, int rank, int n_ranks, const void *image, size_t len,
                           void (*done)(void *arg, int rc, const char *text, struct digest d, const char *file), void *arg, struct checkpoint_write **ret,
                           struct error *e) {
        _cleanup_free_ char *new_folder = NULL, *new_file = NULL;
        _cleanup_(checkpoint_write_freep) struct checkpoint_write *fresh = NULL;
        struct checkpoint_write *w = *ret;
        int r;

        if (rank < 0 || rank >= n_ranks || len == 0)
                return error_set(e, -EINVAL, "shard of rank %d of %d, %zu bytes: expected a rank and something to write", rank, n_ranks, len);
        if (!w) {
                fresh = calloc(1, sizeof(*fresh));
                w = fresh;
        }
        new_folder = strdup(folder);
        new_file = file_path("shard-%05d-of-%05d.safetensors", rank, n_ranks);
        if (!w || !new_folder || !new_file)
                return error_set(e, -ENOMEM, "shard: out of memory");
        checkpoint_write_wait(w);
        r = make_room(w, len, e);
        if (r < 0)
                return r;
        free(w->folder);
        free(w->file);
        w->folder = STEAL_PTR(new_folder);
        w->file = STEAL_PTR(new_file);
        w->len = len;
        w->done = done;
        w->arg = arg;
        memcpy(w->copy, image, len);
        memset(w->copy + len, 0, (ALIGN - len % ALIGN) % ALIGN); /* goes to the disk for a moment: nothing of an earlier image */
        r = start_thread(w, write_thread, e);
        if (r < 0)
                return r;
        (void)STEAL_PTR(fresh); /* when there was none before, it is *ret now */
        *ret = w;
        return 0;
}

void checkpoint_write_wait(struct checkpoint_write *w) {
        if (!w || !w->running)
                return;
        (void)pthread_join(w->thread, NULL);
        w->running = false;
}

struct checkpoint_write *checkpoint_write_free(struct checkpoint_write *w) {
        if (!w)
                return NULL;
        checkpoint_write_wait(w);
        if (w->copy)
                (void)munmap(w->copy, w->mapped);
        free(w->folder);
        free(w->file);
        free(w);
        return NULL;
}
