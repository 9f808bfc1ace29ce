/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text files -> PREFIX.bin and PREFIX.idx.  Both are written under temporary names; an old PREFIX.idx goes first and the new one comes last, so that whenever
 * an .idx is there, the .bin beside it is its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/indexed.h"
#include "base/indexed_text.h"

#define DTYPE_UINT16 8
#define CHUNK 4096
#define PROGRESS_EVERY (4u << 20)

struct output {
        char *path, *tmp;
        FILE *file;
};

struct writer {
        struct output bin, idx;
        int32_t *lengths;
        size_t n, room;
        uint64_t done, total, told;
        void (*progress)(void *arg, uint64_t done_bytes, uint64_t total_bytes);
        void *arg;
        struct error *e;
};

static void output_close(struct output *o) {
        if (o->file)
                fclose(o->file);
        if (o->tmp)
                unlink(o->tmp);
        free(o->tmp);
        free(o->path);
}

static void writer_close(struct writer *w) {
        output_close(&w->bin);
        output_close(&w->idx);
        free(w->lengths);
}

static int output_open(struct output *o, const char *prefix, const char *suffix, struct error *e) {
        char *tmp = file_path("%s%s.XXXXXX", prefix, suffix);
        int fd;

        o->path = file_path("%s%s", prefix, suffix);
        if (!tmp || !o->path) {
                free(tmp);
                return error_set(e, -ENOMEM, "no memory");
        }
        fd = mkostemp(tmp, O_CLOEXEC);
        if (fd < 0) {
                free(tmp);
                return error_errno(e, errno, "cannot create a temporary file beside '%s'", o->path);
        }
        o->tmp = tmp;
        o->file = fdopen(fd, "w");
        if (!o->file) {
                close(fd);
                return error_set(e, -ENOMEM, "no memory");
        }
        return 0;
}

static int output_finish(struct output *o, struct error *e) {
        FILE *f = STEAL_PTR(o->file);
        bool ok = !ferror(f) && fflush(f) == 0 && fchmod(fileno(f), 0644) == 0 && fsync(fileno(f)) == 0;
        int err = errno;

        if (fclose(f) != 0 && ok) {
                ok = false;
                err = errno;
        }
        return ok ? 0 : error_errno(e, err ? err : EIO, "cannot write '%s'", o->path);
}

static int output_publish(struct output *o, struct error *e) {
        if (rename(o->tmp, o->path) < 0)
                return error_errno(e, errno, "cannot rename '%s' to '%s'", o->tmp, o->path);
        free(o->tmp);
        o->tmp = NULL;
        return 0;
}

static int write_document(struct writer *w, const char *text, size_t len) {
        uint16_t ids[CHUNK] = { 0 };

        if (len >= INT32_MAX)
                return error_set(w->e, -EFBIG, "found a document of %zu bytes, expected less than %d; separate documents by blank lines", len, INT32_MAX);
        if (w->n == w->room) {
                size_t room = w->room ? 2 * w->room : 1024;
                int32_t *p = reallocarray(w->lengths, room, sizeof(*p));

                if (!p)
                        return error_set(w->e, -ENOMEM, "no memory");
                w->lengths = p;
                w->room = room;
        }
        w->lengths[w->n++] = (int32_t)len + 1;
        for (size_t at = 0; at <= len; at += CHUNK) { /* the token after the last byte is the end, 0 */
                size_t n = len + 1 - at < CHUNK ? len + 1 - at : CHUNK;

                for (size_t i = 0; i < n; i++)
                        ids[i] = at + i < len ? (unsigned char)text[at + i] : 0;
                if (fwrite(ids, sizeof(ids[0]), n, w->bin.file) != n)
                        return error_errno(w->e, errno ? errno : EIO, "cannot write '%s'", w->bin.tmp);
        }
        return 0;
}

static void tell(struct writer *w, uint64_t done) {
        if (!w->progress || (done < w->total && done - w->told < PROGRESS_EVERY))
                return;
        w->told = done;
        w->progress(w->arg, done, w->total);
}

static int add_text(struct writer *w, const char *path, bool document_per_line) {
        _cleanup_(mapped_file_close) struct mapped_file m = { 0 };
        size_t at = 0, start, len;
        int r = mapped_file_open(path, &m, w->e);

        if (r == 0)
                r = text_check(&m, path, w->e);
        while (r == 0 && text_next_document(&m, document_per_line, &at, &start, &len)) {
                r = write_document(w, m.data + start, len);
                tell(w, w->done + at);
        }
        w->done += m.size;
        return r;
}

static int write_index(struct writer *w) {
        const uint64_t version = 1, n = w->n, bounds = w->n + 1;
        const uint8_t dtype = DTYPE_UINT16;
        FILE *f = w->idx.file;
        int64_t at = 0;

        fwrite("MMIDIDX\0\0", 1, 9, f);
        fwrite(&version, sizeof(version), 1, f);
        fwrite(&dtype, sizeof(dtype), 1, f);
        fwrite(&n, sizeof(n), 1, f);
        fwrite(&bounds, sizeof(bounds), 1, f);
        fwrite(w->lengths, sizeof(w->lengths[0]), w->n, f);
        for (size_t i = 0; i < w->n; i++) {
                fwrite(&at, sizeof(at), 1, f);
                at += 2 * (int64_t)w->lengths[i];
        }
        for (int64_t i = 0; i <= (int64_t)w->n; i++)
                fwrite(&i, sizeof(i), 1, f);
        return output_finish(&w->idx, w->e); /* sees what any fwrite met */
}

static int publish(struct writer *w) {
        _cleanup_free_ char *dir = NULL;
        const char *slash = strrchr(w->bin.path, '/');
        int r;

        /* NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker): both paths are set, or output_open said so and nobody comes here */
        if (unlink(w->idx.path) < 0 && errno != ENOENT)
                return error_errno(w->e, errno, "cannot remove the old '%s'", w->idx.path);
        r = output_publish(&w->bin, w->e);
        if (r == 0)
                r = output_publish(&w->idx, w->e);
        if (r < 0)
                return r;
        dir = slash ? strndup(w->bin.path, slash == w->bin.path ? 1 : (size_t)(slash - w->bin.path)) : strdup(".");
        return dir ? file_fsync_dir(dir, w->e) : error_set(w->e, -ENOMEM, "no memory");
}

int indexed_prepare(const char *const *files, size_t n, const char *prefix, bool document_per_line,
                    void (*progress)(void *arg, uint64_t done_bytes, uint64_t total_bytes), void *arg, struct error *e) {
        _cleanup_(writer_close) struct writer w = { .progress = progress, .arg = arg, .e = e };
        int r;

        for (size_t i = 0; i < n; i++) {
                struct stat st;

                if (stat(files[i], &st) < 0)
                        return error_errno(e, errno, "cannot look at '%s'", files[i]);
                w.total += (uint64_t)st.st_size;
        }
        r = output_open(&w.bin, prefix, ".bin", e);
        if (r == 0)
                r = output_open(&w.idx, prefix, ".idx", e);
        for (size_t i = 0; i < n && r == 0; i++)
                r = add_text(&w, files[i], document_per_line);
        if (r == 0 && w.n == 0)
                r = error_set(e, -EINVAL, "found no text in the %zu files given, expected a document", n);
        if (r == 0)
                r = output_finish(&w.bin, e);
        if (r == 0)
                r = write_index(&w);
        return r < 0 ? r : publish(&w);
}
