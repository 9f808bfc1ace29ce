/* SPDX-License-Identifier: Apache-2.0 */
#include "base/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/cleanup.h"

#define BLOCK (1u << 20)

struct digest_stream {
        XXH3_state_t *state;
};

static struct digest from_xxh(XXH128_hash_t h) {
        return (struct digest){ .hi = h.high64, .lo = h.low64 };
}

struct digest digest_of(const void *data, size_t len) {
        return from_xxh(XXH3_128bits(data, len));
}

DEFINE_CLEANUP(struct digest_stream *, digest_stream_free);

int digest_stream_new(struct digest_stream **ret) {
        _cleanup_(digest_stream_freep) struct digest_stream *s = calloc(1, sizeof(*s));

        if (!s)
                return -ENOMEM;
        s->state = XXH3_createState();
        if (!s->state || XXH3_128bits_reset(s->state) != XXH_OK)
                return -ENOMEM;
        *ret = STEAL_PTR(s);
        return 0;
}

void digest_stream_add(struct digest_stream *s, const void *data, size_t len) {
        if (len > 0)
                XXH3_128bits_update(s->state, data, len);
}

struct digest digest_stream_end(const struct digest_stream *s) {
        return from_xxh(XXH3_128bits_digest(s->state));
}

struct digest_stream *digest_stream_free(struct digest_stream *s) {
        if (!s)
                return NULL;
        XXH3_freeState(s->state);
        free(s);
        return NULL;
}

int digest_file(const char *path, struct digest *ret, struct error *e) {
        _cleanup_(digest_stream_freep) struct digest_stream *s = NULL;
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        _cleanup_free_ char *block = NULL;
        int r;

        if (fd < 0)
                return error_errno(e, errno, "cannot open '%s'", path);
        block = malloc(BLOCK);
        r = digest_stream_new(&s);
        if (!block || r < 0)
                return error_set(e, -ENOMEM, "no memory");
        for (;;) {
                ssize_t n = read(fd, block, BLOCK);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return error_errno(e, errno, "cannot read '%s'", path);
                if (n == 0)
                        break;
                digest_stream_add(s, block, (size_t)n);
        }
        *ret = digest_stream_end(s);
        return 0;
}

void digest_hex(struct digest d, char ret[DIGEST_HEX_SIZE]) {
        snprintf(ret, DIGEST_HEX_SIZE, "%016" PRIx64 "%016" PRIx64, d.hi, d.lo);
}

static int hex_digit(char c) {
        if (c >= '0' && c <= '9')
                return c - '0';
        if (c >= 'a' && c <= 'f')
                return c - 'a' + 10;
        return -1;
}

int digest_parse(const char *hex, struct digest *ret) {
        uint64_t word[2] = { 0, 0 };

        for (int i = 0; i < DIGEST_HEX_SIZE - 1; i++) {
                int v = hex_digit(hex[i]);

                if (v < 0)
                        return -EINVAL;
                word[i / 16] = word[i / 16] << 4 | (uint64_t)v;
        }
        if (hex[DIGEST_HEX_SIZE - 1] != 0)
                return -EINVAL;
        *ret = (struct digest){ .hi = word[0], .lo = word[1] };
        return 0;
}
