/* SPDX-License-Identifier: Apache-2.0 */
/* Writing a shard without holding up the step: a thread digests and writes the image where it lies (format/shard_file.h), and reports it then. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "format/shard_file.h"
#include "worker/ckpt/checkpoint.h"

struct checkpoint_write {
        char *folder, *file;
        struct checkpoint_write_order order;
        _Atomic uint64_t written;
        _Atomic bool cancel, busy;
        pthread_t thread;
        bool running; /* or ended and not joined */
};

DEFINE_CLEANUP(struct checkpoint_write *, checkpoint_write_free);

static void *write_thread(void *arg) {
        struct checkpoint_write *w = arg;
        struct digest want = { 0, 0 }, got = { 0, 0 };
        struct error e = { 0 };
        int r = w->order.ready ? w->order.ready(w->order.arg, &want, &e) : 0;

        if (r == 0 && atomic_load(&w->cancel))
                r = error_set(&e, -ECANCELED, "%s/%s: not wanted any more", w->folder, w->file);
        if (r == 0) {
                const struct block_writer_config c = { .bytes_per_s = w->order.bytes_per_s, .cancel = &w->cancel, .written = &w->written };

                r = shard_file_write(w->folder, w->file, w->order.image, w->order.len, &c, w->order.ready ? &want : NULL, &got, &e);
        }
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
        file = shard_file_name(o->rank, o->n_ranks);
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
