/* SPDX-License-Identifier: Apache-2.0 */
#include "format/shard_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "format/checkpoint.h"

#define PIECE (256u << 10) /* fits into a core's own cache */

DEFINE_CLEANUP(struct block_writer *, block_writer_free);
DEFINE_CLEANUP(struct digest_stream *, digest_stream_free);
DEFINE_CLEANUP(struct shard_sums *, shard_sums_free);

char *shard_file_name(int rank, int n_ranks) {
        return file_path("shard-%05d-of-%05d.safetensors", rank, n_ranks);
}

/* Both digests of a piece while it is in the cache. */
static void digest_block(struct digest_stream *s, struct shard_sums *sums, const uint8_t *data, size_t len) {
        for (size_t at = 0; at < len; at += PIECE) {
                size_t n = len - at < PIECE ? len - at : PIECE;

                digest_stream_add(s, data + at, n);
                shard_sums_add(sums, n);
        }
}

/* The digest is of the bytes that are handed to the kernel, made while earlier ones are on their way. */
static int write_all(const char *folder, const char *file, const char *tmp, const void *image, size_t size, const struct block_writer_config *c, struct digest *ret, struct error *e) {
        _cleanup_(digest_stream_freep) struct digest_stream *s = NULL;
        _cleanup_(shard_sums_freep) struct shard_sums *sums = NULL;
        _cleanup_(block_writer_freep) struct block_writer *f = NULL;
        int r = digest_stream_new(&s);

        if (r < 0)
                return error_set(e, r, "shard: out of memory");
        (void)shard_sums_new(image, size, &sums, NULL); /* without them, verify names the shard and not the tensor */
        r = block_writer_open(tmp, size, c, &f, e);
        for (size_t at = 0; at < size && r == 0; at += BLOCK_WRITER_BLOCK) {
                const uint8_t *block = (const uint8_t *)image + at;
                size_t len = size - at < BLOCK_WRITER_BLOCK ? size - at : BLOCK_WRITER_BLOCK;

                digest_block(s, sums, block, len);
                r = block_writer_add(f, block, len, e);
        }
        if (r == 0)
                r = block_writer_finish(f, e);
        if (r < 0)
                return r;
        *ret = digest_stream_end(s);
        (void)shard_sums_write(sums, folder, file, NULL);
        return 0;
}

static int compare(const char *folder, const char *file, const struct digest *want, const struct digest *got, struct error *e) {
        char found[DIGEST_HEX_SIZE], expected[DIGEST_HEX_SIZE];

        if (!want || digest_equal(*got, *want))
                return 0;
        digest_hex(*got, found);
        digest_hex(*want, expected);
        return error_set(e, -EBADMSG, "%s/%s: the snapshot changed in memory: found digest %s, expected %s", folder, file, found, expected);
}

int shard_file_write(const char *folder, const char *file, const void *image, size_t len, const struct block_writer_config *c, const struct digest *want, struct digest *ret, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/%s", folder, file), *tmp = file_path("%s/.%s.tmp", folder, file);
        struct digest got = { 0, 0 };
        int r;

        if (!path || !tmp)
                return error_set(e, -ENOMEM, "shard: out of memory");
        r = file_mkdir_p_durable(folder, 0777, e);
        if (r < 0)
                return r;
        r = write_all(folder, file, tmp, image, len, c, &got, e);
        if (r == 0)
                r = compare(folder, file, want, &got, e);
        if (r == 0 && rename(tmp, path) < 0)
                r = error_errno(e, errno, "cannot rename %s", tmp);
        if (r < 0) {
                (void)unlink(tmp);
                return r;
        }
        r = file_fsync_dir(folder, e);
        if (r == 0)
                *ret = got;
        return r;
}
