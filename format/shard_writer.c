/* SPDX-License-Identifier: Apache-2.0 */
#include "format/shard_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/wire.h"

#define ALIGN 64 /* where the data begins, as in worker/ckpt's images */

struct shard_writer {
        char *path;
        int fd;
        uint64_t written, expected; /* header included */
        struct digest_stream *digest;
};

static int print_header(FILE *f, const struct shard_tensor *list, size_t n, uint64_t *ret_data, struct error *e) {
        uint64_t at = 0;

        (void)fprintf(f, "{\"__metadata__\":{\"format\":\"pt\"}"); /* transformers wants this word */
        for (size_t i = 0; i < n; i++) {
                const struct shard_tensor *t = &list[i];
                size_t bytes;
                int r = shard_tensor_check(t, e);

                if (r < 0)
                        return r;
                if (shard_tensor_bytes(t, &bytes) < 0 || __builtin_add_overflow(at, bytes, &at) || at > INT64_MAX)
                        return error_set(e, -EOVERFLOW, "shard: more than 2^63 bytes");
                if (t->rows == 1)
                        (void)fprintf(f, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%" PRId64 "]", t->name, shard_dtype_text(t->dtype), t->cols);
                else
                        (void)fprintf(f, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%" PRId64 ",%" PRId64 "]", t->name, shard_dtype_text(t->dtype), t->rows, t->cols);
                (void)fprintf(f, ",\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at - bytes, at);
        }
        (void)fputc('}', f);
        *ret_data = at;
        return 0;
}

static int write_bytes(struct shard_writer *w, const void *data, size_t len, struct error *e) {
        int r = file_write_all(w->fd, data, len);

        if (r < 0)
                return error_errno(e, -r, "cannot write %s", w->path);
        digest_stream_add(w->digest, data, len);
        w->written += len;
        return 0;
}

static int write_header(struct shard_writer *w, const struct shard_tensor *list, size_t n, struct error *e) {
        _cleanup_free_ char *text = NULL;
        size_t len = 0, padded;
        uint64_t data = 0;
        uint8_t head[8];
        FILE *f = open_memstream(&text, &len);
        int r;

        if (!f)
                return error_set(e, -ENOMEM, "shard: out of memory");
        r = print_header(f, list, n, &data, e);
        for (long at = ftell(f); r == 0 && (at + 8) % ALIGN; at++)
                (void)fputc(' ', f);
        if (fclose(f) != 0 && r == 0)
                r = error_set(e, -ENOMEM, "shard: out of memory");
        if (r < 0)
                return r;
        padded = len;
        (void)wire_put(head, padded, 8);
        w->expected = 8 + padded + data;
        r = write_bytes(w, head, sizeof(head), e);
        return r < 0 ? r : write_bytes(w, text, padded, e);
}

DEFINE_CLEANUP(struct shard_writer *, shard_writer_free);

int shard_writer_open(const char *path, const struct shard_tensor *list, size_t n, struct shard_writer **ret, struct error *e) {
        _cleanup_(shard_writer_freep) struct shard_writer *w = calloc(1, sizeof(*w));
        int r;

        if (!w)
                return error_set(e, -ENOMEM, "shard: out of memory");
        w->fd = -1;
        w->path = strdup(path);
        if (!w->path || digest_stream_new(&w->digest) < 0)
                return error_set(e, -ENOMEM, "shard: out of memory");
        w->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (w->fd < 0)
                return error_errno(e, errno, "cannot create %s", path);
        r = write_header(w, list, n, e);
        if (r < 0)
                return r;
        *ret = STEAL_PTR(w);
        return 0;
}

int shard_writer_add(struct shard_writer *w, const void *data, size_t len, struct error *e) {
        if (len > w->expected - w->written)
                return error_set(e, -EINVAL, "%s: found more data than its tensors have", w->path);
        return write_bytes(w, data, len, e);
}

int shard_writer_finish(struct shard_writer *w, uint64_t *ret_bytes, struct digest *ret_digest, struct error *e) {
        if (w->written != w->expected)
                return error_set(e, -EINVAL, "%s: found %" PRIu64 " bytes, expected %" PRIu64, w->path, w->written, w->expected);
        if (fsync(w->fd) < 0)
                return error_errno(e, errno, "cannot write %s", w->path);
        *ret_bytes = w->written;
        *ret_digest = digest_stream_end(w->digest);
        return 0;
}

struct shard_writer *shard_writer_free(struct shard_writer *w) {
        if (!w)
                return NULL;
        if (w->fd >= 0)
                close(w->fd);
        digest_stream_free(w->digest);
        free(w->path);
        free(w);
        return NULL;
}
