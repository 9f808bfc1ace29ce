/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading from the shards of any layout.  A wanted slice is a rectangle of its global tensor; the shards hold rectangles of it.  What is still to be filled is
 * kept as a list of rectangles: each shard's part is copied out of it, and what is left over of a rectangle is at most four smaller ones.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/mapping.h"
#include "format/checkpoint_private.h"

#define RELEASE_LEAST (256u << 10) /* smaller pieces are not worth the call */

/* ------------------------------------------------------------------ files */

struct mapped_shard {
        const struct manifest_shard *m;
        void *data;
        size_t len;
        struct shard_view *view;
        bool verified;
};

struct checkpoint_reader {
        char *folder;
        struct mapped_shard *shards;
        size_t n, hint; /* hint: where the last slice was found */
};

static int map_file(const char *folder, const struct manifest_shard *s, void **ret, struct error *e) {
        _cleanup_close_ int fd = -1;
        void *p = NULL;
        int r = manifest_shard_open(folder, s, &fd, e);

        if (r == 0)
                r = mapping_open(fd, s->bytes, s->file, &p, e);
        if (r < 0)
                return r;
        (void)madvise(p, s->bytes, MADV_SEQUENTIAL);
        *ret = p;
        return 0;
}

static int check_digest(const struct checkpoint_reader *c, struct mapped_shard *s, struct error *e) {
        struct digest found = { 0, 0 };
        int r;

        if (s->verified)
                return 0;
        if (pages_digest(s->data, s->len, &found) < 0)
                return error_set(e, -ENOMEM, "checkpoint: out of memory");
        r = mapping_check(s->data, s->m->file, e);
        if (r == 0)
                r = manifest_shard_digest(c->folder, s->m, found, e);
        s->verified = r == 0;
        return r;
}

struct checkpoint_reader *checkpoint_reader_free(struct checkpoint_reader *c) {
        if (!c)
                return NULL;
        for (size_t i = 0; i < c->n; i++) {
                shard_view_free(c->shards[i].view);
                mapping_close(c->shards[i].data, c->shards[i].len);
        }
        free(c->shards);
        free(c->folder);
        free(c);
        return NULL;
}

DEFINE_CLEANUP(struct checkpoint_reader *, checkpoint_reader_free);

/* Maps all shards and parses their headers; the bytes of data are not read yet. */
int checkpoint_reader_open(const char *folder, const struct checkpoint_manifest *m, struct checkpoint_reader **ret, struct error *e) {
        _cleanup_(checkpoint_reader_freep) struct checkpoint_reader *c = calloc(1, sizeof(*c));

        if (c) {
                c->folder = strdup(folder);
                c->shards = calloc(m->n_shards, sizeof(*c->shards));
        }
        if (!c || !c->folder || !c->shards)
                return error_set(e, -ENOMEM, "checkpoint: out of memory");
        for (size_t i = 0; i < m->n_shards; i++) {
                struct mapped_shard *x = &c->shards[c->n];
                int r = map_file(folder, &m->shards[i], &x->data, e);

                if (r < 0)
                        return r;
                c->n++;
                x->m = &m->shards[i];
                x->len = m->shards[i].bytes;
                r = shard_view_open(x->data, x->len, &x->view, e);
                if (r < 0)
                        return error_prefix(e, "%s/%s", folder, x->m->file);
        }
        *ret = STEAL_PTR(c);
        return 0;
}

const struct shard_view *checkpoint_reader_view(const struct checkpoint_reader *c, size_t shard) {
        return shard < c->n ? c->shards[shard].view : NULL;
}

/* ------------------------------------------------------------------ rectangles */

struct rect {
        int64_t row0, row1, col0, col1;
};

struct rects {
        struct rect *r;
        size_t n, room;
};

static int rects_add(struct rects *x, struct rect r) {
        if (r.row0 >= r.row1 || r.col0 >= r.col1)
                return 0;
        if (x->n == x->room) {
                size_t room = x->room ? 2 * x->room : 8;
                struct rect *p = reallocarray(x->r, room, sizeof(*p));

                if (!p)
                        return -ENOMEM;
                x->r = p;
                x->room = room;
        }
        x->r[x->n++] = r;
        return 0;
}

static void rects_clear(struct rects *x) {
        free(x->r);
}

static int64_t most(int64_t a, int64_t b) {
        return a > b ? a : b;
}

static int64_t least(int64_t a, int64_t b) {
        return a < b ? a : b;
}

static struct rect intersect(struct rect a, struct rect b) {
        return (struct rect){ most(a.row0, b.row0), least(a.row1, b.row1), most(a.col0, b.col0), least(a.col1, b.col1) };
}

static struct rect rect_of(const struct shard_tensor *t) {
        return (struct rect){ t->row0, t->row0 + t->rows, t->col0, t->col0 + t->cols };
}

static int copy_here(void *arg, void *dst, const void *src, size_t len) {
        memcpy(dst, src, len);
        return 0;
}

struct fill {
        struct checkpoint_reader *reader;
        checkpoint_copy_fn copy; /* NULL: only what is missing is asked */
        void *arg;
};

static int copy_rect(const struct fill *l, const struct shard_tensor *to, const struct shard_tensor *from, struct rect r) {
        size_t size = dtype_size(to->dtype), width = (size_t)(r.col1 - r.col0) * size, rows = (size_t)(r.row1 - r.row0);
        uint8_t *dst = (uint8_t *)to->data + ((size_t)(r.row0 - to->row0) * (size_t)to->cols + (size_t)(r.col0 - to->col0)) * size;
        const uint8_t *src = (const uint8_t *)from->data + ((size_t)(r.row0 - from->row0) * (size_t)from->cols + (size_t)(r.col0 - from->col0)) * size;
        size_t dst_step = (size_t)to->cols * size, src_step = (size_t)from->cols * size, span = (rows - 1) * src_step + width;
        const uint8_t *first = src;
        int rc = 0;

        if (width == dst_step && width == src_step) {
                width *= rows;
                rows = 1;
        }
        for (size_t i = 0; i < rows && rc >= 0; i++, dst += dst_step, src += src_step)
                rc = l->copy(l->arg, dst, src, width);
        if (span >= RELEASE_LEAST)
                pages_release(first, span);
        return rc;
}

/* Fills what it can of `missing` (rectangles of `want`) from one shard. */
static int fill_from(const struct fill *l, struct mapped_shard *s, const struct shard_tensor *want, struct rects *missing, struct error *e) {
        const struct shard_tensor *have = shard_view_find(s->view, want->name);
        _cleanup_(rects_clear) struct rects left = { 0 };
        int r = 0;

        if (!have)
                return 0;
        if (strcmp(shard_dtype_text(have->dtype), shard_dtype_text(want->dtype)) != 0 || have->global_rows != want->global_rows || have->global_cols != want->global_cols)
                return error_set(e, -EINVAL, "%s/%s: %s: found %s [%" PRId64 ", %" PRId64 "], expected %s [%" PRId64 ", %" PRId64 "]", l->reader->folder, s->m->file, want->name,
                                 shard_dtype_text(have->dtype), have->global_rows, have->global_cols, shard_dtype_text(want->dtype), want->global_rows,
                                 want->global_cols);
        for (size_t i = 0; i < missing->n && r == 0; i++) {
                struct rect a = missing->r[i], x = intersect(a, rect_of(have));

                if (x.row0 >= x.row1 || x.col0 >= x.col1) {
                        r = rects_add(&left, a);
                        continue;
                }
                if (l->copy) {
                        r = check_digest(l->reader, s, e);
                        if (r < 0)
                                return r;
                        r = copy_rect(l, want, have, x);
                        if (r < 0)
                                return error_set(e, r, "checkpoint: %s: cannot copy to the device: %s", want->name, strerror(-r));
                        r = mapping_check(s->data, s->m->file, e);
                        if (r < 0)
                                return r;
                }
                if (rects_add(&left, (struct rect){ a.row0, x.row0, a.col0, a.col1 }) < 0 || rects_add(&left, (struct rect){ x.row1, a.row1, a.col0, a.col1 }) < 0 ||
                    rects_add(&left, (struct rect){ x.row0, x.row1, a.col0, x.col0 }) < 0 || rects_add(&left, (struct rect){ x.row0, x.row1, x.col1, a.col1 }) < 0)
                        r = -ENOMEM;
        }
        if (r < 0)
                return error_set(e, r, "checkpoint: out of memory");
        struct rects swap = *missing;

        *missing = left;
        left = swap;
        return 0;
}

static int fill_slice(const struct fill *l, const struct shard_tensor *want, struct error *e) {
        _cleanup_(rects_clear) struct rects missing = { 0 };
        struct checkpoint_reader *c = l->reader;
        size_t start = c->hint;
        char text[128];
        int valid = shard_tensor_check(want, e);

        if (valid < 0)
                return valid;
        if (rects_add(&missing, rect_of(want)) < 0)
                return error_set(e, -ENOMEM, "checkpoint: out of memory");
        /* Neighbours in the list mostly lie in the same shard: begin where the last one was found. */
        for (size_t i = 0; i < c->n && missing.n > 0; i++) {
                size_t k = (start + i) % c->n, before = missing.n;
                struct rect first = missing.r[0];
                int r = fill_from(l, &c->shards[k], want, &missing, e);

                if (r < 0)
                        return r;
                if (missing.n == 0 || missing.n != before || memcmp(&first, &missing.r[0], sizeof(first)) != 0)
                        c->hint = k;
        }
        if (missing.n > 0) {
                struct shard_tensor gap = *want;

                gap.row0 = missing.r[0].row0;
                gap.rows = missing.r[0].row1 - gap.row0;
                gap.col0 = missing.r[0].col0;
                gap.cols = missing.r[0].col1 - gap.col0;
                return error_set(e, -ENODATA, "%s: no shard holds %s of %s", l->reader->folder, shard_slice_text(&gap, text), want->name);
        }
        return 0;
}

int checkpoint_reader_fill(struct checkpoint_reader *r, const struct shard_tensor *want, checkpoint_copy_fn copy, void *arg, struct error *e) {
        return fill_slice(&(struct fill){ r, copy ? copy : copy_here, arg }, want, e);
}

int checkpoint_reader_covers(struct checkpoint_reader *r, const struct shard_tensor *want, struct error *e) {
        return fill_slice(&(struct fill){ r, NULL, NULL }, want, e);
}

/* ------------------------------------------------------------------ which tensors there are */

static int compare_names(const void *a, const void *b) {
        return strcmp(((const struct shard_tensor *)a)->name, ((const struct shard_tensor *)b)->name);
}

static int same_global(const struct shard_tensor *a, const struct shard_tensor *b) {
        return a->dtype == b->dtype && a->global_rows == b->global_rows && a->global_cols == b->global_cols;
}

static struct shard_tensor whole(const struct shard_tensor *t) {
        struct shard_tensor w = *t;

        w.row0 = w.col0 = 0;
        w.rows = w.global_rows;
        w.cols = w.global_cols;
        w.data = NULL;
        return w;
}

int checkpoint_reader_tensors(const struct checkpoint_reader *r, struct shard_tensor **ret, size_t *ret_n, struct error *e) {
        _cleanup_free_ struct shard_tensor *list = NULL;
        size_t n = 0, kept = 0;

        for (size_t i = 0; i < r->n; i++)
                n += shard_view_count(r->shards[i].view);
        list = calloc(n + 1, sizeof(*list));
        if (!list)
                return error_set(e, -ENOMEM, "checkpoint: out of memory");
        n = 0;
        for (size_t i = 0; i < r->n; i++)
                for (size_t k = 0; k < shard_view_count(r->shards[i].view); k++)
                        list[n++] = whole(shard_view_tensor(r->shards[i].view, k));
        qsort(list, n, sizeof(*list), compare_names);
        for (size_t i = 0; i < n; i++) {
                if (kept == 0 || strcmp(list[kept - 1].name, list[i].name) != 0)
                        list[kept++] = list[i];
                else if (!same_global(&list[kept - 1], &list[i]))
                        return error_set(e, -EBADMSG, "%s: %s: found %s [%" PRId64 ", %" PRId64 "] in one shard and %s [%" PRId64 ", %" PRId64 "] in another", r->folder,
                                         list[i].name, shard_dtype_text(list[kept - 1].dtype), list[kept - 1].global_rows, list[kept - 1].global_cols,
                                         shard_dtype_text(list[i].dtype), list[i].global_rows, list[i].global_cols);
        }
        *ret = STEAL_PTR(list);
        *ret_n = kept;
        return 0;
}

const struct shard_tensor *shard_tensor_search(const struct shard_tensor *list, size_t n, const char *name) {
        struct shard_tensor key = { 0 };

        (void)snprintf(key.name, sizeof(key.name), "%s", name);
        return n ? bsearch(&key, list, n, sizeof(*list), compare_names) : NULL;
}
