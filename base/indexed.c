/* SPDX-License-Identifier: Apache-2.0 */
#include "base/indexed.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/indexed_text.h"
#include "base/mapping.h"

#define IDX_MAGIC "MMIDIDX\0\0" /* 9 bytes (Megatron-LM, megatron/core/datasets/indexed_dataset.py) */
#define IDX_MAGIC_SIZE 9
#define IDX_HEADER_SIZE 34 /* magic, u64 version, u8 dtype, u64 sequences, u64 document indices */
#define DTYPE_INT32 4
#define DTYPE_UINT16 8

struct text_document {
        int64_t start, len; /* bytes, the end token not counted */
};

struct indexed {
        bool text;
        struct mapped_file tokens, idx; /* text file or .bin; .idx */
        int64_t n_documents, n_tokens;
        _Atomic int64_t vocab; /* 0: not looked at yet */
        /* text */
        struct text_document *documents;
        /* indexed: arrays inside idx, unaligned */
        const char *lengths, *pointers, *bounds;
        int64_t n_sequences;
        int token_size;
};

/* The arrays of an .idx follow a header of 34 bytes: nothing in it is aligned. */
static int64_t load_i64(const char *array, int64_t i) {
        int64_t v;

        memcpy(&v, array + 8 * i, sizeof(v));
        return v;
}

static int32_t load_i32(const char *array, int64_t i) {
        int32_t v;

        memcpy(&v, array + 4 * i, sizeof(v));
        return v;
}

struct indexed *indexed_free(struct indexed *x) {
        if (!x)
                return NULL;
        mapped_file_close(&x->tokens);
        mapped_file_close(&x->idx);
        free(x->documents);
        free(x);
        return NULL;
}

DEFINE_CLEANUP(struct indexed *, indexed_free);

static int open_text(struct indexed *x, const char *path, struct error *e) {
        size_t at = 0, start, len, room = 0;
        int r = mapped_file_open(path, &x->tokens, e);

        x->text = true;
        if (r == 0)
                r = text_check(&x->tokens, path, e);
        if (r < 0)
                return r;
        while (text_next_document(&x->tokens, false, &at, &start, &len)) {
                if ((size_t)x->n_documents == room) {
                        struct text_document *p = reallocarray(x->documents, room ? 2 * room : 256, sizeof(*p));

                        if (!p)
                                return error_set(e, -ENOMEM, "no memory for the documents of '%s'", path);
                        x->documents = p;
                        room = room ? 2 * room : 256;
                }
                x->documents[x->n_documents++] = (struct text_document){ (int64_t)start, (int64_t)len };
                x->n_tokens += (int64_t)len + 1;
        }
        if (x->n_documents == 0)
                return error_set(e, -EINVAL, "'%s': found no text in it, expected a document", path);
        return 0;
}

static int check_header(struct indexed *x, const char *path, struct error *e) {
        const char *h = x->idx.data;
        uint64_t version, sequences, bounds, room = x->idx.size - IDX_HEADER_SIZE;
        uint8_t dtype;

        if (x->idx.size < IDX_HEADER_SIZE || memcmp(h, IDX_MAGIC, IDX_MAGIC_SIZE) != 0)
                return error_set(e, -EINVAL, "'%s': found no MMIDIDX header, expected a Megatron-LM index", path);
        memcpy(&version, h + 9, 8);
        dtype = (uint8_t)h[17];
        memcpy(&sequences, h + 18, 8);
        memcpy(&bounds, h + 26, 8);
        if (version != 1)
                return error_set(e, -EINVAL, "'%s': found version %" PRIu64 ", expected 1", path, version);
        if (dtype != DTYPE_UINT16 && dtype != DTYPE_INT32)
                return error_set(e, -EINVAL, "'%s': found token type %u, expected 8 (uint16) or 4 (int32)", path, dtype);
        /* Each sequence takes 12 bytes, each bound 8: compared without multiplying what the file says. */
        if (sequences > room / 12 || bounds > (room - 12 * sequences) / 8 || room != 12 * sequences + 8 * bounds)
                return error_set(e, -EINVAL, "'%s': found %zu bytes for %" PRIu64 " sequences and %" PRIu64 " document bounds, expected 34 + 12 * sequences + 8 * bounds", path,
                                 x->idx.size, sequences, bounds);
        if (bounds < 2 || sequences == 0)
                return error_set(e, -EINVAL, "'%s': found no documents, expected at least one", path);
        x->token_size = dtype == DTYPE_UINT16 ? 2 : 4;
        x->n_sequences = (int64_t)sequences;
        x->n_documents = (int64_t)bounds - 1;
        x->lengths = h + IDX_HEADER_SIZE;
        x->pointers = x->lengths + 4 * sequences;
        x->bounds = x->pointers + 8 * sequences;
        return 0;
}

static int check_sequences(struct indexed *x, const char *path, struct error *e) {
        int64_t size = (int64_t)x->tokens.size;

        for (int64_t i = 0; i < x->n_sequences; i++) {
                int64_t len = load_i32(x->lengths, i), at = load_i64(x->pointers, i);

                if (len < 0 || at < 0 || at > size || at % x->token_size || len > (size - at) / x->token_size)
                        return error_set(e, -EINVAL, "'%s': sequence %" PRId64 ": found %" PRId64 " tokens at byte %" PRId64 ", expected them within the %" PRId64 " bytes of the .bin",
                                         path, i, len, at, size);
                x->n_tokens += len; /* sequences may overlap in the .bin, so the sum is bounded on its own */
                if (x->n_tokens > INT64_MAX / 2)
                        return error_set(e, -EINVAL, "'%s': found more than 2^62 tokens", path);
        }
        for (int64_t d = 0; d <= x->n_documents; d++) {
                int64_t from = d ? load_i64(x->bounds, d - 1) : 0, to = load_i64(x->bounds, d);

                if (d == 0 ? to != 0 : to < from || to > x->n_sequences)
                        return error_set(e, -EINVAL, "'%s': document bound %" PRId64 ": found %" PRId64 ", expected %" PRId64 " to %" PRId64, path, d, to, from,
                                         d ? x->n_sequences : 0);
        }
        if (load_i64(x->bounds, x->n_documents) != x->n_sequences)
                return error_set(e, -EINVAL, "'%s': found documents of %" PRId64 " sequences, expected all %" PRId64, path, load_i64(x->bounds, x->n_documents),
                                 x->n_sequences);
        return 0;
}

static int open_pair(struct indexed *x, const char *prefix, struct error *e) {
        _cleanup_free_ char *bin = file_path("%s.bin", prefix), *idx = file_path("%s.idx", prefix);
        int r;

        if (!bin || !idx)
                return error_set(e, -ENOMEM, "no memory");
        r = mapped_file_open(idx, &x->idx, e);
        if (r == 0)
                r = mapped_file_open(bin, &x->tokens, e);
        if (r == 0)
                r = check_header(x, idx, e);
        if (r == 0)
                r = check_sequences(x, idx, e);
        return r;
}

static bool has_idx(const char *prefix) {
        _cleanup_free_ char *idx = file_path("%s.idx", prefix);

        return idx && access(idx, F_OK) == 0;
}

/* The prefix of a pair when the path means one (PREFIX, PREFIX.bin, PREFIX.idx with PREFIX.idx there, or format says so), else NULL in *ret. */
static int find_prefix(const char *path, enum indexed_format format, char **ret, struct error *e) {
        size_t len = strlen(path);
        bool named = len > 4 && (strcmp(path + len - 4, ".bin") == 0 || strcmp(path + len - 4, ".idx") == 0);
        _cleanup_free_ char *prefix = strndup(path, named ? len - 4 : len);

        if (!prefix)
                return error_set(e, -ENOMEM, "no memory");
        *ret = format == INDEXED_PAIR || (format == INDEXED_AUTO && has_idx(prefix)) ? STEAL_PTR(prefix) : NULL;
        return 0;
}

int indexed_open_as(const char *path, enum indexed_format format, struct indexed **ret, struct error *e) {
        _cleanup_(indexed_freep) struct indexed *x = calloc(1, sizeof(*x));
        _cleanup_free_ char *prefix = NULL;
        int r;

        if (!x)
                return error_set(e, -ENOMEM, "no memory");
        r = find_prefix(path, format, &prefix, e);
        if (r == 0)
                r = prefix ? open_pair(x, prefix, e) : open_text(x, path, e);
        if (r == 0)
                r = mapping_check(x->tokens.data, path, e);
        if (r == 0)
                r = mapping_check(x->idx.data, path, e);
        if (r < 0)
                return r;
        *ret = STEAL_PTR(x);
        return 0;
}

int indexed_open(const char *path, struct indexed **ret, struct error *e) {
        return indexed_open_as(path, INDEXED_AUTO, ret, e);
}

int64_t indexed_documents(const struct indexed *x) {
        return x->n_documents;
}

int64_t indexed_tokens(const struct indexed *x) {
        return x->n_tokens;
}

int64_t indexed_document_length(const struct indexed *x, int64_t doc) {
        int64_t len = 0;

        if (doc < 0 || doc >= x->n_documents)
                return 0;
        if (x->text)
                return x->documents[doc].len + 1;
        for (int64_t s = load_i64(x->bounds, doc); s < load_i64(x->bounds, doc + 1); s++)
                len += load_i32(x->lengths, s);
        return len;
}

static void read_text(const struct indexed *x, int64_t doc, int64_t from, int64_t n, int32_t *ids) {
        const struct text_document *d = &x->documents[doc];
        const unsigned char *bytes = (const unsigned char *)x->tokens.data + d->start + from;

        for (int64_t i = 0; i < n; i++)
                ids[i] = from + i < d->len ? bytes[i] : 0;
}

static int32_t load_token(const struct indexed *x, const char *array, int64_t i) {
        uint16_t v;

        if (x->token_size == 4)
                return load_i32(array, i);
        memcpy(&v, array + 2 * i, sizeof(v));
        return v;
}

/* n tokens from the sequences of a document, `from` tokens in; false when an id is negative. */
static bool read_sequences(const struct indexed *x, int64_t doc, int64_t from, int64_t n, int32_t *ids) {
        bool ok = true;

        for (int64_t s = load_i64(x->bounds, doc); n > 0; s++) {
                int64_t len = load_i32(x->lengths, s), take;
                const char *tokens = x->tokens.data + load_i64(x->pointers, s);

                if (from >= len) {
                        from -= len;
                        continue;
                }
                take = len - from < n ? len - from : n;
                for (int64_t i = 0; i < take; i++) {
                        ids[i] = load_token(x, tokens, from + i);
                        ok &= ids[i] >= 0;
                }
                ids += take;
                n -= take;
                from = 0;
        }
        return ok;
}

static int check_whole(const struct indexed *x, struct error *e) {
        int r = mapping_check(x->tokens.data, x->text ? "the text" : "the tokens (.bin)", e);

        return r < 0 ? r : mapping_check(x->idx.data, "the index (.idx)", e);
}

int indexed_read(const struct indexed *x, int64_t doc, int64_t from, int64_t n, int32_t *ids, struct error *e) {
        int64_t len = indexed_document_length(x, doc);

        if (doc < 0 || doc >= x->n_documents || from < 0 || n < 0 || from > len || n > len - from)
                return error_set(e, -ERANGE, "document %" PRId64 ": found %" PRId64 " tokens from %" PRId64 " on asked for, expected at most %" PRId64, doc, n, from, len);
        if (x->text)
                read_text(x, doc, from, n, ids);
        else if (!read_sequences(x, doc, from, n, ids))
                return error_set(e, -EINVAL, "document %" PRId64 ": found a negative token id, expected 0 or more", doc);
        return check_whole(x, e);
}

static int64_t greatest_id(const struct indexed *x) {
        int64_t greatest = 0; /* the end of a text's document */

        for (size_t i = 0; x->text && i < x->tokens.size; i++) {
                unsigned char c = (unsigned char)x->tokens.data[i];

                if (c > greatest)
                        greatest = c;
        }
        for (int64_t s = 0; !x->text && s < x->n_sequences; s++) {
                const char *tokens = x->tokens.data + load_i64(x->pointers, s);

                for (int64_t i = 0; i < load_i32(x->lengths, s); i++) {
                        int32_t id = load_token(x, tokens, i);

                        if (id < 0)
                                return -EINVAL;
                        if (id > greatest)
                                greatest = id;
                }
        }
        return greatest;
}

int64_t indexed_vocab(const struct indexed *x) {
        _Atomic int64_t *vocab = (_Atomic int64_t *)&x->vocab; /* a memory of what the file says, not a change */
        int64_t g;

        if (*vocab == 0) {
                g = greatest_id(x);
                *vocab = g < 0 ? g : g + 1;
        }
        return *vocab;
}

static int add_file(struct digest_stream *s, const char *prefix, const char *suffix, struct error *e) {
        _cleanup_(mapped_file_close) struct mapped_file m = { 0 };
        _cleanup_free_ char *path = file_path("%s%s", prefix, suffix);
        int r = path ? mapped_file_open(path, &m, e) : error_set(e, -ENOMEM, "no memory");

        if (r == 0)
                digest_stream_add(s, m.data, m.size);
        return r < 0 ? r : mapping_check(m.data, path, e);
}

DEFINE_CLEANUP(struct digest_stream *, digest_stream_free);

int indexed_digest(const char *path, struct digest *ret, struct error *e) {
        _cleanup_(digest_stream_freep) struct digest_stream *s = NULL;
        _cleanup_free_ char *prefix = NULL;
        int r = find_prefix(path, INDEXED_AUTO, &prefix, e);

        if (r < 0)
                return r;
        if (!prefix)
                return digest_file(path, ret, e);
        if (digest_stream_new(&s) < 0)
                return error_set(e, -ENOMEM, "no memory");
        r = add_file(s, prefix, ".bin", e);
        if (r == 0)
                r = add_file(s, prefix, ".idx", e);
        if (r == 0)
                *ret = digest_stream_end(s);
        return r;
}
