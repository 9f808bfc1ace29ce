/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sums: beside a shard lies a text of its tensors' digests ("<32 digits>  <name>" a line), so that of a bad shard the bad tensor can be named.  Nothing else rests on it: the manifest's
 * digest alone says whether a shard is whole.  So it is not made durable, and one that is missing or bad itself only costs the name.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/mapping.h"
#include "format/checkpoint_private.h"

#define SUMS_MAX (256u << 20)
#define NAMED_MOST 8 /* bad tensors that are named */

DEFINE_CLEANUP(struct shard_view *, shard_view_free);

static char *sums_path(const char *folder, const char *file) {
        static const char tail[] = ".safetensors";
        size_t n = strlen(file), k = sizeof(tail) - 1;

        return file_path("%s/%.*s.sums", folder, (int)(n > k && strcmp(file + n - k, tail) == 0 ? n - k : n), file);
}

struct shard_sums {
        struct shard_view *view;
        const struct shard_tensor **order; /* by place in the image; empty ones are not among them */
        size_t n, next;
        const uint8_t *image;
        size_t at; /* of the image, the bytes heard */
        struct digest_stream *stream; /* of the tensor at hand */
        FILE *text;
        char *buffer;
        size_t len;
};

DEFINE_CLEANUP(struct shard_sums *, shard_sums_free);

static int by_place(const void *a, const void *b) {
        const uint8_t *x = (*(const struct shard_tensor *const *)a)->data, *y = (*(const struct shard_tensor *const *)b)->data;

        return x < y ? -1 : x > y;
}

int shard_sums_new(const void *image, size_t len, struct shard_sums **ret, struct error *e) {
        _cleanup_(shard_sums_freep) struct shard_sums *s = calloc(1, sizeof(*s));
        size_t bytes;
        int r;

        if (!s)
                return error_set(e, -ENOMEM, "sums: out of memory");
        r = shard_view_open(image, len, &s->view, e);
        if (r < 0)
                return r;
        s->image = image;
        s->order = calloc(shard_view_count(s->view) + 1, sizeof(const struct shard_tensor *));
        s->text = open_memstream(&s->buffer, &s->len);
        if (!s->order || !s->text)
                return error_set(e, -ENOMEM, "sums: out of memory");
        for (size_t i = 0; i < shard_view_count(s->view); i++) {
                const struct shard_tensor *t = shard_view_tensor(s->view, i);

                if (shard_tensor_bytes(t, &bytes) == 0 && bytes > 0)
                        s->order[s->n++] = t;
        }
        qsort(s->order, s->n, sizeof(*s->order), by_place);
        *ret = STEAL_PTR(s);
        return 0;
}

/* The part of [at, at + len) that belongs to the tensor at hand; true when that tensor ends in it. */
static bool add_part(struct shard_sums *s, size_t len) {
        const struct shard_tensor *t = s->order[s->next];
        size_t start = (size_t)((const uint8_t *)t->data - s->image), bytes = 0, from, to;
        char hex[DIGEST_HEX_SIZE];

        (void)shard_tensor_bytes(t, &bytes);
        from = s->at > start ? s->at : start;
        to = s->at + len < start + bytes ? s->at + len : start + bytes;
        if (from >= to || (!s->stream && digest_stream_new(&s->stream) < 0))
                return false;
        digest_stream_add(s->stream, s->image + from, to - from);
        if (to < start + bytes)
                return false;
        digest_hex(digest_stream_end(s->stream), hex);
        s->stream = digest_stream_free(s->stream);
        (void)fprintf(s->text, "%s  %s\n", hex, t->name);
        s->next++;
        return true;
}

void shard_sums_add(struct shard_sums *s, size_t len) {
        if (!s)
                return;
        while (s->next < s->n && add_part(s, len))
                ;
        s->at += len;
}

int shard_sums_write(struct shard_sums *s, const char *folder, const char *file, struct error *e) {
        _cleanup_free_ char *path = sums_path(folder, file);
        _cleanup_close_ int fd = -1;
        int r;

        if (!s)
                return 0;
        if (!path || fflush(s->text) != 0)
                return error_set(e, -ENOMEM, "sums: out of memory");
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        if (fd < 0)
                return error_errno(e, errno, "cannot create %s", path);
        r = file_write_all(fd, s->buffer, s->len);
        if (r < 0) {
                (void)unlink(path);
                return error_errno(e, -r, "cannot write %s", path);
        }
        return 0;
}

struct shard_sums *shard_sums_free(struct shard_sums *s) {
        if (!s)
                return NULL;
        if (s->text)
                (void)fclose(s->text);
        free(s->buffer);
        digest_stream_free(s->stream);
        free(s->order);
        shard_view_free(s->view);
        free(s);
        return NULL;
}

/* A line's digest and name; false: it is none. Moves *p behind it. */
static bool next_line(char **p, struct digest *ret, const char **ret_name) {
        char *end = strchr(*p, '\n'), *line = *p;

        if (!end)
                return false;
        *end = 0;
        *p = end + 1;
        if (end - line < DIGEST_HEX_SIZE + 2 || strncmp(line + DIGEST_HEX_SIZE - 1, "  ", 2) != 0)
                return false;
        line[DIGEST_HEX_SIZE - 1] = 0;
        *ret_name = line + DIGEST_HEX_SIZE + 1;
        return digest_parse(line, ret) == 0;
}

static int compare(const struct shard_view *v, char *sums, char **ret, struct error *e) {
        struct digest expected;
        const char *name;
        size_t bytes, len = 0, n = 0;
        FILE *f = open_memstream(ret, &len);

        if (!f)
                return error_set(e, -ENOMEM, "sums: out of memory");
        while (next_line(&sums, &expected, &name)) {
                const struct shard_tensor *t = shard_view_find(v, name);

                if (t && shard_tensor_bytes(t, &bytes) == 0 && digest_equal(digest_of(t->data, bytes), expected))
                        continue;
                if (n++ < NAMED_MOST)
                        (void)fprintf(f, "%s%s", n > 1 ? ", " : "", name);
        }
        if (n > NAMED_MOST)
                (void)fprintf(f, " and %zu more", n - NAMED_MOST);
        (void)fclose(f);
        return n ? 0 : error_set(e, -ENODATA, "every tensor is as it was written: the header is bad");
}

int checkpoint_bad_tensor(const char *folder, const struct checkpoint_manifest *m, size_t i, char **ret, struct error *e) {
        const struct manifest_shard *s = &m->shards[i];
        _cleanup_free_ char *path = sums_path(folder, s->file), *sums = NULL, *names = NULL;
        _cleanup_(shard_view_freep) struct shard_view *v = NULL;
        _cleanup_close_ int fd = -1;
        size_t len;
        void *p = NULL;
        int r;

        if (!path)
                return error_set(e, -ENOMEM, "sums: out of memory");
        r = file_read(path, SUMS_MAX, &sums, &len, e);
        if (r == 0)
                r = manifest_shard_open(folder, s, &fd, e);
        if (r == 0)
                r = mapping_open(fd, s->bytes, s->file, &p, e);
        if (r < 0)
                return r;
        r = shard_view_open(p, s->bytes, &v, e);
        if (r == 0)
                r = compare(v, sums, &names, e);
        if (r == 0)
                r = mapping_check(p, s->file, e);
        mapping_close(p, s->bytes);
        if (r == 0)
                *ret = STEAL_PTR(names);
        return r;
}
