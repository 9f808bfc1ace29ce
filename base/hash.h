/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* XXH3-128, the project's digest of tensors, shards, snapshots and data files. It guards against accidents, not attackers. */
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct digest {
        uint64_t hi, lo;
};

#define DIGEST_HEX_SIZE 33 /* 32 digits and NUL; hi first, as xxhsum -H2 prints it */

struct digest digest_of(const void *data, size_t len);
/* The digest of a whole file, read in large blocks. */
int digest_file(const char *path, struct digest *ret, struct error *e);
void digest_hex(struct digest d, char ret[DIGEST_HEX_SIZE]);
int digest_parse(const char *hex, struct digest *ret);
static inline int digest_equal(struct digest a, struct digest b) {
        return a.hi == b.hi && a.lo == b.lo;
}

/* Incremental form. */
struct digest_stream;
int digest_stream_new(struct digest_stream **ret);
void digest_stream_add(struct digest_stream *s, const void *data, size_t len);
struct digest digest_stream_end(const struct digest_stream *s);
struct digest_stream *digest_stream_free(struct digest_stream *s);
