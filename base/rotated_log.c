/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rotated logs.  Three files: PATH (newest), PATH.1 (the one before) and PATH.offset, which says by inode at which logical
 * offset each of the two begins:
 *
 *         <inode> <offset>     of PATH.1
 *         <inode> <offset>     of PATH
 *
 * Rotation makes the new file under the name PATH.new first, so that PATH.offset can name it before it shows: whatever file a reader
 * has open, its inode tells where it begins, even when names moved meanwhile and even when the writer was killed between two renames.
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

#define OFFSET_FILE_MAX 256
#define READ_TRIES 16

struct rotated_log {
        char *path, *old_path, *new_path, *offset_path;
        uint64_t max_bytes, start, size; /* start: logical offset of PATH's first byte */
        int fd;
};

struct offsets {
        struct {
                uint64_t inode, start;
        } file[2];
        int n;
};

/* A damaged or missing table counts as empty: logs are then numbered from what is there. */
static void offsets_read(const char *path, struct offsets *ret) {
        _cleanup_free_ char *text = NULL;
        struct error e;
        size_t len;

        *ret = (struct offsets){ 0 };
        if (file_read(path, OFFSET_FILE_MAX, &text, &len, &e) < 0)
                return;
        for (char *s = text; ret->n < 2; ret->n++) {
                char *end;

                ret->file[ret->n].inode = strtoull(s, &end, 10);
                if (end == s || *end != ' ')
                        return;
                s = end + 1;
                ret->file[ret->n].start = strtoull(s, &end, 10);
                if (end == s || *end != '\n')
                        return;
                s = end + 1;
        }
}

static int offsets_find(const struct offsets *o, uint64_t inode, uint64_t *ret) {
        for (int i = 0; i < o->n; i++)
                if (o->file[i].inode == inode) {
                        *ret = o->file[i].start;
                        return 0;
                }
        return -ENOENT;
}

static int offsets_equal(const struct offsets *a, const struct offsets *b) {
        if (a->n != b->n)
                return 0;
        for (int i = 0; i < a->n; i++)
                if (a->file[i].inode != b->file[i].inode || a->file[i].start != b->file[i].start)
                        return 0;
        return 1;
}

static int offsets_write(const char *path, uint64_t old_inode, uint64_t old_start, uint64_t inode, uint64_t start, struct error *e) {
        char text[OFFSET_FILE_MAX];
        int n = 0;

        if (old_inode)
                n = snprintf(text, sizeof(text), "%" PRIu64 " %" PRIu64 "\n", old_inode, old_start);
        n += snprintf(text + n, sizeof(text) - (size_t)n, "%" PRIu64 " %" PRIu64 "\n", inode, start);
        return file_write_atomic(path, text, (size_t)n, 0644, e);
}

static int open_for_append(const char *path, struct stat *ret_st) {
        int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);

        if (fd < 0)
                return -errno;
        if (fstat(fd, ret_st) < 0) {
                int r = -errno;

                close(fd);
                return r;
        }
        return fd;
}

/* Where the file with this name begins, when the table does not say: directly after the older one. */
static uint64_t guess_start(const struct offsets *o, const char *old_path) {
        uint64_t start = 0;
        struct stat st;

        if (stat(old_path, &st) < 0)
                return 0;
        if (offsets_find(o, st.st_ino, &start) < 0)
                start = 0;
        return start + (uint64_t)st.st_size;
}

DEFINE_CLEANUP(struct rotated_log *, rotated_log_free);

static int log_attach(struct rotated_log *l, struct error *e) {
        struct offsets o;
        struct stat st = { 0 }, old = { 0 };
        uint64_t old_start = 0;

        /* A writer killed in the middle of a rotation: PATH was renamed already, PATH.new not yet. */
        if (access(l->path, F_OK) < 0)
                (void)rename(l->new_path, l->path);
        else
                unlink(l->new_path);
        offsets_read(l->offset_path, &o);
        l->fd = open_for_append(l->path, &st);
        if (l->fd < 0)
                return error_errno(e, -l->fd, "cannot open '%s'", l->path);
        l->size = (uint64_t)st.st_size;
        if (offsets_find(&o, st.st_ino, &l->start) == 0)
                return 0;
        l->start = guess_start(&o, l->old_path);
        if (stat(l->old_path, &old) == 0)
                old_start = l->start - (uint64_t)old.st_size;
        return offsets_write(l->offset_path, old.st_ino, old_start, st.st_ino, l->start, e);
}

int rotated_log_open(const char *path, uint64_t max_bytes, struct rotated_log **ret, struct error *e) {
        _cleanup_(rotated_log_freep) struct rotated_log *l = NULL;
        int r;

        if (max_bytes == 0)
                return error_set(e, -EINVAL, "log '%s': found a bound of 0 bytes, expected more", path);
        l = calloc(1, sizeof(*l));
        if (!l)
                return error_set(e, -ENOMEM, "no memory");
        *l = (struct rotated_log){ .path = file_path("%s", path),
                                   .old_path = file_path("%s.1", path),
                                   .new_path = file_path("%s.new", path),
                                   .offset_path = file_path("%s.offset", path),
                                   .max_bytes = max_bytes,
                                   .fd = -1 };
        if (!l->path || !l->old_path || !l->new_path || !l->offset_path)
                return error_set(e, -ENOMEM, "no memory");
        r = log_attach(l, e);
        if (r < 0)
                return r;
        *ret = STEAL_PTR(l);
        return 0;
}

static int rotate(struct rotated_log *l) {
        struct stat st, new_st = { 0 };
        _cleanup_close_ int fd = -1;
        int r;

        if (fstat(l->fd, &st) < 0)
                return -errno;
        unlink(l->new_path);
        fd = open_for_append(l->new_path, &new_st);
        if (fd < 0)
                return fd;
        r = offsets_write(l->offset_path, st.st_ino, l->start, new_st.st_ino, l->start + l->size, NULL);
        if (r < 0)
                return r;
        if (rename(l->path, l->old_path) < 0 || rename(l->new_path, l->path) < 0)
                return -errno;
        close(l->fd);
        l->fd = STEAL_FD(fd);
        l->start += l->size;
        l->size = 0;
        return 0;
}

int rotated_log_write(struct rotated_log *l, const void *data, size_t len) {
        const char *p = data;

        while (len > 0) {
                size_t n = len < l->max_bytes ? len : (size_t)l->max_bytes;
                int r;

                if (l->size > 0 && l->size + n > l->max_bytes) {
                        r = rotate(l);
                        if (r < 0)
                                return r;
                }
                r = file_write_all(l->fd, p, n);
                if (r < 0) {
                        struct stat st;

                        if (fstat(l->fd, &st) == 0) /* a disk that is full may have taken a part */
                                l->size = (uint64_t)st.st_size;
                        return r;
                }
                l->size += n;
                p += n;
                len -= n;
        }
        return 0;
}

struct rotated_log *rotated_log_free(struct rotated_log *l) {
        if (!l)
                return NULL;
        if (l->fd >= 0)
                close(l->fd);
        free(l->path);
        free(l->old_path);
        free(l->new_path);
        free(l->offset_path);
        free(l);
        return NULL;
}

struct segment {
        int fd;
        uint64_t start, size;
};

static void segment_closep(struct segment *s) {
        if (s->fd >= 0)
                close(s->fd);
}

/* 0, -ENOENT when there is no such file, -EAGAIN when the table does not know it (it may be about to). */
static int segment_open(const char *path, const struct offsets *o, struct segment *ret) {
        int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        struct stat st;

        if (fd < 0)
                return -errno;
        if (fstat(fd, &st) < 0 || offsets_find(o, st.st_ino, &ret->start) < 0) {
                close(fd);
                return -EAGAIN;
        }
        ret->fd = fd;
        ret->size = (uint64_t)st.st_size;
        return 0;
}

static int read_at(const struct segment *s, uint64_t offset, void *buf, size_t size, size_t *ret_len, uint64_t *ret_next) {
        ssize_t n;

        do
                n = pread(s->fd, buf, size, (off_t)(offset - s->start));
        while (n < 0 && errno == EINTR);
        if (n < 0)
                return -errno;
        *ret_len = (size_t)n;
        *ret_next = offset + (uint64_t)n;
        return 0;
}

/* One look at the files; -EAGAIN when the writer rotated under our eyes. */
static int read_once(const char *path, uint64_t offset, void *buf, size_t size, size_t *ret_len, uint64_t *ret_next) {
        _cleanup_free_ char *old_path = file_path("%s.1", path), *offset_path = file_path("%s.offset", path);
        _cleanup_(segment_closep) struct segment old = { .fd = -1 }, cur = { .fd = -1 };
        struct offsets o, again;
        int r_old, r;

        if (!old_path || !offset_path)
                return -ENOMEM;
        offsets_read(offset_path, &o);
        r_old = segment_open(old_path, &o, &old);
        r = segment_open(path, &o, &cur);
        offsets_read(offset_path, &again);
        if (!offsets_equal(&o, &again))
                return -EAGAIN;
        if (r < 0) /* between the two renames PATH is not there for a moment */
                return r == -ENOENT && r_old == 0 ? -EAGAIN : r;
        /* PATH.1 counts when it ends where PATH begins. */
        if (r_old == 0 && old.start + old.size == cur.start && offset < cur.start)
                return read_at(&old, offset < old.start ? old.start : offset, buf, size, ret_len, ret_next);
        if (offset < cur.start)
                offset = cur.start;
        if (offset > cur.start + cur.size)
                offset = cur.start + cur.size;
        return read_at(&cur, offset, buf, size, ret_len, ret_next);
}

int rotated_log_read(const char *path, uint64_t offset, void *buf, size_t size, size_t *ret_len, uint64_t *ret_next, struct error *e) {
        int r = -EAGAIN;

        for (int i = 0; i < READ_TRIES && r == -EAGAIN; i++) {
                if (i > 0)
                        usleep(500);
                r = read_once(path, offset, buf, size, ret_len, ret_next);
        }
        if (r == -ENOENT)
                return error_set(e, r, "no log '%s'", path);
        if (r == -EAGAIN)
                return error_set(e, r, "log '%s': '%s.offset' does not know it; its writer must open it first", path, path);
        return r < 0 ? error_errno(e, -r, "cannot read '%s'", path) : 0;
}
