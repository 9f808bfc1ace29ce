/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading from the shards of any layout.  A wanted slice is a rectangle of its global tensor; the shards hold rectangles of it.  What is still to be filled is
 * kept as a list of rectangles: each shard's part is copied out of it, and what is left over of a rectangle is at most four smaller ones.
 */
#include <ctype.h>
#include <dirent.h>
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
#include "worker/ckpt/checkpoint_private.h"
#include "worker/ckpt/shard_private.h"

/* ------------------------------------------------------------------ files */

struct mapped_shard {
        const struct manifest_shard *m;
        void *data;
        size_t len;
        struct shard_view *view;
        bool verified;
};

struct shard_set {
        struct mapped_shard *shards;
        size_t n;
};

static int map_file(const char *folder, const struct manifest_shard *s, void **ret, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/%s", folder, s->file);
        _cleanup_close_ int fd = -1;
        struct stat st;
        void *p;

        if (!path)
                return error_set(e, -ENOMEM, "checkpoint: out of memory");
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK); /* whatever else goes by that name is not waited for */
        if (fd < 0)
                return error_errno(e, errno, "cannot open %s", path);
        if (fstat(fd, &st) < 0)
                return error_errno(e, errno, "cannot look at %s", path);
        if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != s->bytes || s->bytes == 0)
                return error_set(e, -EBADMSG, "%s: found %" PRId64 " bytes, expected %" PRIu64, path, (int64_t)st.st_size, s->bytes);
        p = mmap(NULL, s->bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
                return error_errno(e, errno, "cannot map %s", path);
        (void)madvise(p, s->bytes, MADV_SEQUENTIAL);
        *ret = p;
        return 0;
}

static int check_digest(const char *folder, const struct manifest_shard *s, const void *data, struct error *e) {
        char found[DIGEST_HEX_SIZE], expected[DIGEST_HEX_SIZE];
        struct digest d = digest_of(data, s->bytes);

        if (digest_equal(d, s->digest))
                return 0;
        digest_hex(d, found);
        digest_hex(s->digest, expected);
        return error_set(e, -EBADMSG, "%s/%s: found digest %s, expected %s", folder, s->file, found, expected);
}

int checkpoint_verify(const char *folder, const struct checkpoint_manifest *m, struct error *e) {
        for (size_t i = 0; i < m->n_shards; i++) {
                void *data = NULL;
                int r = map_file(folder, &m->shards[i], &data, e);

                if (r < 0)
                        return r;
                r = check_digest(folder, &m->shards[i], data, e);
                (void)munmap(data, m->shards[i].bytes);
                if (r < 0)
                        return r;
        }
        return 0;
}

static void set_clear(struct shard_set *s) {
        for (size_t i = 0; i < s->n; i++) {
                shard_view_free(s->shards[i].view);
                if (s->shards[i].data)
                        (void)munmap(s->shards[i].data, s->shards[i].len);
        }
        free(s->shards);
}

/* Maps all shards and parses their headers; the bytes of data are not read yet. */
static int set_open(const char *folder, const struct checkpoint_manifest *m, struct shard_set *s, struct error *e) {
        s->shards = calloc(m->n_shards, sizeof(*s->shards));
        if (!s->shards)
                return error_set(e, -ENOMEM, "checkpoint: out of memory");
        for (size_t i = 0; i < m->n_shards; i++) {
                struct mapped_shard *x = &s->shards[s->n];
                int r = map_file(folder, &m->shards[i], &x->data, e);

                if (r < 0)
                        return r;
                s->n++;
                x->m = &m->shards[i];
                x->len = m->shards[i].bytes;
                r = shard_view_open(x->data, x->len, &x->view, e);
                if (r < 0)
                        return error_prefix(e, "%s/%s", folder, x->m->file);
        }
        return 0;
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

struct load {
        const char *folder;
        const struct dev_ops *ops;
        struct dev_stream *stream;
};

static int copy_rect(const struct load *l, const struct shard_tensor *to, const struct shard_tensor *from, struct rect r) {
        size_t size = dtype_size(to->dtype), width = (size_t)(r.col1 - r.col0) * size, rows = (size_t)(r.row1 - r.row0);
        uint8_t *dst = (uint8_t *)to->data + ((size_t)(r.row0 - to->row0) * (size_t)to->cols + (size_t)(r.col0 - to->col0)) * size;
        const uint8_t *src = (const uint8_t *)from->data + ((size_t)(r.row0 - from->row0) * (size_t)from->cols + (size_t)(r.col0 - from->col0)) * size;
        size_t dst_step = (size_t)to->cols * size, src_step = (size_t)from->cols * size;
        int rc = 0;

        if (width == dst_step && width == src_step) {
                width *= rows;
                rows = 1;
        }
        for (size_t i = 0; i < rows && rc >= 0; i++, dst += dst_step, src += src_step) {
                if (l->ops)
                        rc = l->ops->copy_in(dst, src, width, l->stream);
                else
                        memcpy(dst, src, width);
        }
        return rc;
}

/* Fills what it can of `missing` (rectangles of `want`) from one shard. */
static int fill_from(const struct load *l, struct mapped_shard *s, const struct shard_tensor *want, struct rects *missing, struct error *e) {
        const struct shard_tensor *have = shard_view_find(s->view, want->name);
        _cleanup_(rects_clear) struct rects left = { 0 };
        int r = 0;

        if (!have)
                return 0;
        if (strcmp(shard_dtype_text(have->dtype), shard_dtype_text(want->dtype)) != 0 || have->global_rows != want->global_rows || have->global_cols != want->global_cols)
                return error_set(e, -EINVAL, "%s/%s: %s: found %s [%" PRId64 ", %" PRId64 "], expected %s [%" PRId64 ", %" PRId64 "]", l->folder, s->m->file, want->name,
                                 shard_dtype_text(have->dtype), have->global_rows, have->global_cols, shard_dtype_text(want->dtype), want->global_rows,
                                 want->global_cols);
        for (size_t i = 0; i < missing->n && r == 0; i++) {
                struct rect a = missing->r[i], x = intersect(a, rect_of(have));

                if (x.row0 >= x.row1 || x.col0 >= x.col1) {
                        r = rects_add(&left, a);
                        continue;
                }
                if (!s->verified) {
                        r = check_digest(l->folder, s->m, s->data, e);
                        if (r < 0)
                                return r;
                        s->verified = true;
                }
                r = copy_rect(l, want, have, x);
                if (r < 0)
                        return error_set(e, r, "checkpoint: %s: cannot copy to the device: %s", want->name, strerror(-r));
                r = 0;
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

static int fill_slice(const struct load *l, struct shard_set *set, size_t *hint, const struct shard_tensor *want, struct error *e) {
        _cleanup_(rects_clear) struct rects missing = { 0 };
        size_t start = *hint;
        char text[128];
        int valid = shard_tensor_check(want, e);

        if (valid < 0)
                return valid;
        if (rects_add(&missing, rect_of(want)) < 0)
                return error_set(e, -ENOMEM, "checkpoint: out of memory");
        /* Neighbours in the list mostly lie in the same shard: begin where the last one was found. */
        for (size_t i = 0; i < set->n && missing.n > 0; i++) {
                size_t k = (start + i) % set->n, before = missing.n;
                struct rect first = missing.r[0];
                int r = fill_from(l, &set->shards[k], want, &missing, e);

                if (r < 0)
                        return r;
                if (missing.n == 0 || missing.n != before || memcmp(&first, &missing.r[0], sizeof(first)) != 0)
                        *hint = k;
        }
        if (missing.n > 0) {
                struct shard_tensor gap = *want;

                gap.row0 = missing.r[0].row0;
                gap.rows = missing.r[0].row1 - gap.row0;
                gap.col0 = missing.r[0].col0;
                gap.cols = missing.r[0].col1 - gap.col0;
                return error_set(e, -ENODATA, "%s: no shard holds %s of %s", l->folder, shard_slice_text(&gap, text), want->name);
        }
        return 0;
}

int checkpoint_load(const char *folder, const struct checkpoint_manifest *m, const struct shard_tensor *want, size_t n, const struct dev_ops *ops,
                    struct dev_stream *s, struct error *e) {
        struct load l = { .folder = folder, .ops = ops, .stream = s };
        _cleanup_(set_clear) struct shard_set set = { 0 };
        size_t hint = 0;
        int r = set_open(folder, m, &set, e);

        for (size_t i = 0; i < n && r == 0; i++)
                r = fill_slice(&l, &set, &hint, &want[i], e);
        if (ops) { /* also after an error: nothing may still read the maps */
                int sync = ops->stream_sync(s);

                if (r == 0 && sync < 0)
                        r = error_set(e, sync, "checkpoint: the device failed: %s", strerror(-sync));
        }
        return r;
}

/* ------------------------------------------------------------------ newest */

struct candidate {
        char name[80];
        uint64_t step, epoch;
        unsigned attempt;
};

static int compare_candidates(const void *a, const void *b) {
        const struct candidate *x = a, *y = b;

        if (x->step != y->step)
                return x->step > y->step ? -1 : 1;
        if (x->epoch != y->epoch)
                return x->epoch > y->epoch ? -1 : 1;
        return x->attempt > y->attempt ? -1 : x->attempt < y->attempt;
}

static bool parse_name(const char *name, struct candidate *ret) {
        struct candidate c = { 0 };
        unsigned long long step, epoch;

        if (strlen(name) >= sizeof(c.name) || sscanf(name, "step_%llu.e%llu.%u", &step, &epoch, &c.attempt) != 3)
                return false;
        c.step = step;
        c.epoch = epoch;
        checkpoint_step_name(step, epoch, c.attempt, c.name, sizeof(c.name));
        *ret = c;
        return strcmp(c.name, name) == 0;
}

static int list_candidates(const char *dir, struct candidate **ret, size_t *ret_n, struct error *e) {
        _cleanup_free_ struct candidate *list = NULL;
        size_t n = 0, room = 0;
        DIR *d = opendir(dir);
        struct candidate c;

        if (!d)
                return error_errno(e, errno, "cannot open folder %s", dir);
        for (struct dirent *x = readdir(d); x; x = readdir(d)) {
                if (!parse_name(x->d_name, &c))
                        continue;
                if (n == room) {
                        struct candidate *p = reallocarray(list, room ? 2 * room : 16, sizeof(*p));

                        if (!p) {
                                (void)closedir(d);
                                return error_set(e, -ENOMEM, "checkpoint: out of memory");
                        }
                        list = p;
                        room = room ? 2 * room : 16;
                }
                list[n++] = c;
        }
        (void)closedir(d);
        if (n > 0)
                qsort(list, n, sizeof(*list), compare_candidates);
        *ret = STEAL_PTR(list);
        *ret_n = n;
        return 0;
}

/* Manifest there, about this folder, and every shard whole. */
static int check_candidate(const char *folder, const struct candidate *c, struct error *e) {
        struct checkpoint_manifest *m = NULL;
        int r = checkpoint_manifest_read(folder, &m, e);

        if (r < 0)
                return r;
        if (m->step != c->step || m->epoch != c->epoch || m->attempt != c->attempt)
                r = error_set(e, -EBADMSG, "%s: its manifest is about another step", folder);
        else
                r = checkpoint_verify(folder, m, e);
        checkpoint_manifest_free(m);
        return r;
}

int checkpoint_find_newest(const char *dir, char **ret_folder, struct error *e) {
        _cleanup_free_ struct candidate *list = NULL;
        struct error why = { 0 };
        size_t n = 0;
        int r = list_candidates(dir, &list, &n, e);

        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++) {
                _cleanup_free_ char *folder = file_path("%s/%s", dir, list[i].name);

                if (!folder)
                        return error_set(e, -ENOMEM, "checkpoint: out of memory");
                r = check_candidate(folder, &list[i], &why);
                if (r == 0) {
                        *ret_folder = STEAL_PTR(folder);
                        return 0;
                }
        }
        return error_set(e, -ENOENT, "%s: none of %zu checkpoints is whole%s%.800s", dir, n, why.text[0] ? "; " : "", why.text);
}
