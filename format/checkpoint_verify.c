/* SPDX-License-Identifier: Apache-2.0 */
/* Is a checkpoint whole? Everything is read, in blocks. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/mapping.h"
#include "format/checkpoint_private.h"

#define BLOCK (4u << 20)

DEFINE_CLEANUP(struct digest_stream *, digest_stream_free);

int manifest_shard_open(const char *folder, const struct manifest_shard *s, int *ret_fd, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/%s", folder, s->file);
        _cleanup_close_ int fd = -1;
        struct stat st;

        if (!path)
                return error_set(e, -ENOMEM, "checkpoint: out of memory");
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK); /* whatever else goes by that name is not waited for */
        if (fd < 0)
                return error_errno(e, errno, "cannot open %s", path);
        if (fstat(fd, &st) < 0)
                return error_errno(e, errno, "cannot look at %s", path);
        if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != s->bytes || s->bytes == 0)
                return error_set(e, -EBADMSG, "%s: found %" PRId64 " bytes, expected %" PRIu64, path, (int64_t)st.st_size, s->bytes);
        *ret_fd = STEAL_FD(fd);
        return 0;
}

int manifest_shard_digest(const char *folder, const struct manifest_shard *s, struct digest found, struct error *e) {
        char a[DIGEST_HEX_SIZE], b[DIGEST_HEX_SIZE];

        if (digest_equal(found, s->digest))
                return 0;
        digest_hex(found, a);
        digest_hex(s->digest, b);
        return error_set(e, -EBADMSG, "%s/%s: found digest %s, expected %s", folder, s->file, a, b);
}

void pages_release(const void *data, size_t len) {
        uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = ((uintptr_t)data + page - 1) / page * page, to = ((uintptr_t)data + len) / page * page;

        if (from < to)
                (void)madvise((void *)from, to - from, MADV_DONTNEED); // NOLINT(performance-no-int-to-ptr): page bounds
}

int pages_digest(const void *data, size_t len, struct digest *ret) {
        _cleanup_(digest_stream_freep) struct digest_stream *d = NULL;

        if (digest_stream_new(&d) < 0)
                return -ENOMEM;
        for (size_t at = 0; at < len; at += BLOCK) {
                size_t n = len - at < BLOCK ? len - at : BLOCK;

                digest_stream_add(d, (const uint8_t *)data + at, n);
                pages_release((const uint8_t *)data + at, n);
        }
        *ret = digest_stream_end(d);
        return 0;
}

static int read_all(int fd, const struct manifest_shard *s, struct digest *ret, void (*progress)(void *arg, size_t bytes), void *arg) {
        _cleanup_(digest_stream_freep) struct digest_stream *d = NULL;
        _cleanup_free_ void *block = malloc(BLOCK);

        if (!block || digest_stream_new(&d) < 0)
                return -ENOMEM;
        for (uint64_t at = 0; at < s->bytes;) {
                ssize_t n = pread(fd, block, BLOCK, (off_t)at);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return n < 0 ? -errno : -EIO;
                digest_stream_add(d, block, (size_t)n);
                at += (uint64_t)n;
                if (progress)
                        progress(arg, (size_t)n);
        }
        *ret = digest_stream_end(d);
        return 0;
}

/* The digest was right: what is mapped now is what was written. */
static int check_header(int fd, const struct manifest_shard *s, struct error *e) {
        struct shard_view *v = NULL;
        void *p = NULL;
        int r = mapping_open(fd, s->bytes, s->file, &p, e);

        if (r == 0)
                r = shard_view_open(p, s->bytes, &v, e);
        if (r == 0)
                r = mapping_check(p, s->file, e);
        shard_view_free(v);
        mapping_close(p, s->bytes);
        return r;
}

int checkpoint_verify_shard(const char *folder, const struct checkpoint_manifest *m, size_t i, void (*progress)(void *arg, size_t bytes), void *arg, struct error *e) {
        const struct manifest_shard *s = &m->shards[i];
        _cleanup_close_ int fd = -1;
        struct digest found = { 0, 0 };
        int r = manifest_shard_open(folder, s, &fd, e);

        if (r < 0)
                return r;
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
        r = read_all(fd, s, &found, progress, arg);
        if (r < 0)
                return error_errno(e, -r, "cannot read %s/%s", folder, s->file);
        r = manifest_shard_digest(folder, s, found, e);
        if (r < 0)
                return r;
        r = check_header(fd, s, e);
        return r < 0 ? error_prefix(e, "%s/%s", folder, s->file) : 0;
}

int checkpoint_verify(const char *folder, const struct checkpoint_manifest *m, struct error *e) {
        int r = 0;

        for (size_t i = 0; i < m->n_shards && r == 0; i++)
                r = checkpoint_verify_shard(folder, m, i, NULL, NULL, e);
        return r;
}
