/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing a shard without holding up the step: a thread digests and writes the image where it lies.  The order that makes a commit safe: folder and its entry
 * durable, bytes durable under a temporary name, rename, the folder with the new name durable; only then is the shard reported.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/block_writer.h"
#include "base/cleanup.h"
#include "base/file.h"
#include "worker/ckpt/checkpoint.h"

#define PIECE (256u << 10) /* fits into a core's own cache */

struct checkpoint_write {
        char *folder, *file;
        struct checkpoint_write_order order;
        _Atomic uint64_t written;
        _Atomic bool cancel, busy;
        pthread_t thread;
        bool running; /* or ended and not joined */
};

DEFINE_CLEANUP(struct block_writer *, block_writer_free);
DEFINE_CLEANUP(struct digest_stream *, digest_stream_free);
DEFINE_CLEANUP(struct shard_sums *, shard_sums_free);
DEFINE_CLEANUP(struct checkpoint_write *, checkpoint_write_free);

/* Both digests of a piece while it is in the cache. */
static void digest_block(struct digest_stream *s, struct shard_sums *sums, const uint8_t *data, size_t len) {
        for (size_t at = 0; at < len; at += PIECE) {
                size_t n = len - at < PIECE ? len - at : PIECE;

                digest_stream_add(s, data + at, n);
                shard_sums_add(sums, n);
        }
}

/* The digest is of the bytes that are handed to the kernel, made while earlier ones are on their way. */
static int write_all(struct checkpoint_write *w, const char *tmp, struct digest *ret, struct error *e) {
        const struct block_writer_config c = { .bytes_per_s = w->order.bytes_per_s, .cancel = &w->cancel, .written = &w->written };
        _cleanup_(digest_stream_freep) struct digest_stream *s = NULL;
        _cleanup_(shard_sums_freep) struct shard_sums *sums = NULL;
        _cleanup_(block_writer_freep) struct block_writer *f = NULL;
        int r = digest_stream_new(&s);

        if (r < 0)
                return error_set(e, r, "shard: out of memory");
        (void)shard_sums_new(w->order.image, w->order.len, &sums, NULL); /* without them, verify names the shard and not the tensor */
        r = block_writer_open(tmp, w->order.len, &c, &f, e);
        for (size_t at = 0; at < w->order.len && r == 0; at += BLOCK_WRITER_BLOCK) {
                const uint8_t *block = (const uint8_t *)w->order.image + at;
                size_t len = w->order.len - at < BLOCK_WRITER_BLOCK ? w->order.len - at : BLOCK_WRITER_BLOCK;

                digest_block(s, sums, block, len);
                r = block_writer_add(f, block, len, e);
        }
        if (r == 0)
                r = block_writer_finish(f, e);
        if (r < 0)
                return r;
        *ret = digest_stream_end(s);
        (void)shard_sums_write(sums, w->folder, w->file, NULL);
        return 0;
}

static int write_and_compare(struct checkpoint_write *w, const char *tmp, const struct digest *want, struct digest *ret, struct error *e) {
        char found[DIGEST_HEX_SIZE], expected[DIGEST_HEX_SIZE];
        int r = write_all(w, tmp, ret, e);

        if (r < 0 || !want || digest_equal(*ret, *want))
                return r;
        digest_hex(*ret, found);
        digest_hex(*want, expected);
        return error_set(e, -EBADMSG, "%s/%s: the snapshot changed in memory: found digest %s, expected %s", w->folder, w->file, found, expected);
}

static int write_shard(struct checkpoint_write *w, const struct digest *want, struct digest *ret, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/%s", w->folder, w->file), *tmp = file_path("%s/.%s.tmp", w->folder, w->file);
        int r;

        if (!path || !tmp)
                return error_set(e, -ENOMEM, "shard: out of memory");
        r = file_mkdir_p_durable(w->folder, 0777, e);
        if (r < 0)
                return r;
        r = write_and_compare(w, tmp, want, ret, e);
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
        struct digest want = { 0, 0 }, got = { 0, 0 };
        struct error e = { 0 };
        int r = w->order.ready ? w->order.ready(w->order.arg, &want, &e) : 0;

        if (r == 0 && atomic_load(&w->cancel))
                r = error_set(&e, -ECANCELED, "%s/%s: not wanted any more", w->folder, w->file);
        if (r == 0)
                r = write_shard(w, w->order.ready ? &want : NULL, &got, &e);
        w->order.done(w->order.arg, r, e.text, got, r < 0 ? NULL : w->file);
        atomic_store(&w->busy, false);
        return NULL;
}

static int start_thread(struct checkpoint_write *w, struct error *e) {
        sigset_t all, old;
        int r;

        /* Signals are the program's own affair, in its own threads. */
        (void)sigfillset(&all);
        (void)pthread_sigmask(SIG_SETMASK, &all, &old);
        atomic_store(&w->busy, true);
        r = pthread_create(&w->thread, NULL, write_thread, w);
        (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
        w->running = r == 0;
        if (r != 0) {
                atomic_store(&w->busy, false);
                return error_errno(e, r, "shard: cannot start a thread");
        }
        return 0;
}

int checkpoint_write_start(const struct checkpoint_write_order *o, struct checkpoint_write **ret, struct error *e) {
        _cleanup_free_ char *folder = NULL, *file = NULL;
        _cleanup_(checkpoint_write_freep) struct checkpoint_write *fresh = NULL;
        struct checkpoint_write *w = *ret;
        int r;

        if (o->rank < 0 || o->rank >= o->n_ranks || o->len == 0)
                return error_set(e, -EINVAL, "shard of rank %d of %d, %zu bytes: expected a rank and something to write", o->rank, o->n_ranks, o->len);
        if (checkpoint_write_busy(w))
                return error_set(e, -EBUSY, "%s/%s is still being written", w->folder, w->file);
        if (!w) {
                fresh = calloc(1, sizeof(*fresh));
                w = fresh;
        }
        folder = strdup(o->folder);
        file = file_path("shard-%05d-of-%05d.safetensors", o->rank, o->n_ranks);
        if (!w || !folder || !file)
                return error_set(e, -ENOMEM, "shard: out of memory");
        checkpoint_write_wait(w);
        free(w->folder);
        free(w->file);
        w->order = *o;
        w->order.folder = w->folder = STEAL_PTR(folder);
        w->file = STEAL_PTR(file);
        atomic_store(&w->written, 0);
        atomic_store(&w->cancel, false);
        r = start_thread(w, e);
        if (r < 0)
                return r;
        (void)STEAL_PTR(fresh); /* when there was none before, it is *ret now */
        *ret = w;
        return 0;
}

bool checkpoint_write_busy(const struct checkpoint_write *w) {
        return w && atomic_load(&w->busy);
}

uint64_t checkpoint_write_progress(const struct checkpoint_write *w) {
        return w ? atomic_load(&w->written) : 0;
}

void checkpoint_write_cancel(struct checkpoint_write *w) {
        if (w)
                atomic_store(&w->cancel, true);
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
        free(w->folder);
        free(w->file);
        free(w);
        return NULL;
}
