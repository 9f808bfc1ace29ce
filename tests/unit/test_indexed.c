/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "base/indexed.h"
#include "scratch.h"
#include "test.h"

static const char text[] = "\n  \nFirst line\nsecond line.\n\n\t\r\nOther document\n\nLast";

TEST(documents_of_a_text) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        struct indexed *x;
        int32_t ids[64];
        struct error e;

        scratch_text(&s, "t.txt", text);
        ASSERT_OK(indexed_open(s.path, &x, &e), e);
        CU_ASSERT_EQUAL_FATAL(indexed_documents(x), 3);
        CU_ASSERT_EQUAL(indexed_document_length(x, 0), 24);
        CU_ASSERT_EQUAL(indexed_document_length(x, 1), 15);
        CU_ASSERT_EQUAL(indexed_document_length(x, 2), 5);
        CU_ASSERT_EQUAL(indexed_document_length(x, 3), 0);
        CU_ASSERT_EQUAL(indexed_document_length(x, -1), 0);
        CU_ASSERT_EQUAL(indexed_tokens(x), 44);
        CU_ASSERT_EQUAL(indexed_vocab(x), 'u' + 1);
        ASSERT_OK(indexed_read(x, 2, 0, 5, ids, &e), e);
        CU_ASSERT_EQUAL(ids[0], 'L');
        CU_ASSERT_EQUAL(ids[3], 't');
        CU_ASSERT_EQUAL(ids[4], 0);
        ASSERT_OK(indexed_read(x, 0, 10, 2, ids, &e), e);
        CU_ASSERT_EQUAL(ids[0], '\n');
        CU_ASSERT_EQUAL(ids[1], 's');
        ASSERT_OK(indexed_read(x, 0, 24, 0, ids, &e), e);
        ASSERT_ERROR(indexed_read(x, 0, 24, 1, ids, &e), -ERANGE, e, "at most 24");
        CU_ASSERT_EQUAL(indexed_read(x, 0, -1, 1, ids, &e), -ERANGE);
        CU_ASSERT_EQUAL(indexed_read(x, 0, 1, INT64_MAX, ids, &e), -ERANGE);
        CU_ASSERT_EQUAL(indexed_read(x, 3, 0, 0, ids, &e), -ERANGE);
        indexed_free(x);
        scratch_text(&s, "blank", " \n\n\t\n");
        ASSERT_ERROR(indexed_open(s.path, &x, &e), -EINVAL, e, "no text in it");
        scratch_text(&s, "empty", "");
        ASSERT_ERROR(indexed_open(s.path, &x, &e), -EINVAL, e, "no text in it");
        scratch_write(&s, "nul", "ab\0c", 4);
        ASSERT_ERROR(indexed_open(s.path, &x, &e), -EINVAL, e, "byte 0 at offset 2");
        ASSERT_ERROR(indexed_open(scratch_path(&s, "none"), &x, &e), -ENOENT, e, "none");
        ASSERT_ERROR(indexed_open(s.dir, &x, &e), -EINVAL, e, "no regular file");
        ASSERT_ERROR(indexed_open_as(scratch_path(&s, "t.txt"), INDEXED_PAIR, &x, &e), -ENOENT, e, "t.txt.idx");
}

static void count(void *arg, uint64_t done, uint64_t total) {
        uint64_t *last = arg;

        CU_ASSERT_TRUE(done >= *last && done <= total);
        *last = done;
}

TEST(prepared_files_read_back_as_the_text) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        char file[256], prefix[256], bin[300];
        struct indexed *a, *b;
        struct digest d1, d2;
        uint64_t done = 0;
        struct error e;

        scratch_text(&s, "t.txt", text);
        snprintf(file, sizeof(file), "%s/t.txt", s.dir);
        snprintf(prefix, sizeof(prefix), "%s/data", s.dir);
        snprintf(bin, sizeof(bin), "%s.bin", prefix);
        for (int again = 0; again < 2; again++) /* an old pair is replaced */
                ASSERT_OK(indexed_prepare((const char *const[]){ file, file }, 2, prefix, false, count, &done, &e), e);
        CU_ASSERT_EQUAL(done, 2 * strlen(text));
        ASSERT_OK(indexed_open(file, &a, &e), e);
        ASSERT_OK(indexed_open(bin, &b, &e), e);
        CU_ASSERT_EQUAL(indexed_documents(b), 6);
        CU_ASSERT_EQUAL(indexed_tokens(b), 88);
        CU_ASSERT_EQUAL(indexed_vocab(b), indexed_vocab(a));
        for (int64_t doc = 0; doc < 6; doc++) {
                int32_t x[64], y[64];
                int64_t n = indexed_document_length(a, doc % 3);

                CU_ASSERT_EQUAL_FATAL(indexed_document_length(b, doc), n);
                ASSERT_OK(indexed_read(a, doc % 3, 0, n, x, &e), e);
                ASSERT_OK(indexed_read(b, doc, 0, n, y, &e), e);
                CU_ASSERT_EQUAL(memcmp(x, y, (size_t)n * sizeof(*x)), 0);
        }
        indexed_free(a);
        indexed_free(b);
        ASSERT_OK(indexed_digest(prefix, &d1, &e), e);
        ASSERT_OK(indexed_digest(bin, &d2, &e), e);
        CU_ASSERT_TRUE(digest_equal(d1, d2));
        ASSERT_OK(indexed_digest(file, &d2, &e), e);
        CU_ASSERT_TRUE(digest_equal(d2, digest_of(text, strlen(text))));
        ASSERT_OK(indexed_prepare((const char *const[]){ file }, 1, prefix, true, NULL, NULL, &e), e);
        ASSERT_OK(indexed_open(prefix, &b, &e), e);
        CU_ASSERT_EQUAL(indexed_documents(b), 4);
        indexed_free(b);
        /* refusals leave the old pair and nothing else */
        scratch_text(&s, "blank", "\n\n");
        ASSERT_ERROR(indexed_prepare((const char *const[]){ s.path }, 1, prefix, false, NULL, NULL, &e), -EINVAL, e, "no text in the 1 files");
        ASSERT_ERROR(indexed_prepare((const char *const[]){ "/nowhere" }, 1, prefix, false, NULL, NULL, &e), -ENOENT, e, "/nowhere");
        ASSERT_OK(indexed_open(prefix, &b, &e), e);
        indexed_free(b);
        for (const char *const *name = (const char *const[]){ "t.txt", "blank", "data.bin", "data.idx", NULL }; *name; name++)
                CU_ASSERT_EQUAL(unlink(scratch_path(&s, *name)), 0);
        CU_ASSERT_EQUAL(rmdir(s.dir), 0);
        CU_ASSERT_EQUAL_FATAL(file_mkdir_p(s.dir, 0700, &e), 0);
}

/* An .idx in pieces, so that tests can damage each. */
struct idx {
        char magic[9];
        uint64_t version;
        uint8_t dtype;
        uint64_t sequences, bounds;
        int32_t lengths[3];
        int64_t pointers[3], starts[3];
};

static const struct idx good = { "MMIDIDX\0", 1, 4, 3, 3, { 2, 3, 1 }, { 0, 8, 20 }, { 0, 2, 3 } };

static size_t pack(const struct idx *x, char *buf) {
        char *p = buf;

        p = mempcpy(p, x->magic, 9);
        p = mempcpy(p, &x->version, 8);
        p = mempcpy(p, &x->dtype, 1);
        p = mempcpy(p, &x->sequences, 8);
        p = mempcpy(p, &x->bounds, 8);
        p = mempcpy(p, x->lengths, sizeof(x->lengths));
        p = mempcpy(p, x->pointers, sizeof(x->pointers));
        p = mempcpy(p, x->starts, sizeof(x->starts));
        return (size_t)(p - buf);
}

static int open_idx(struct scratch *s, const struct idx *x, size_t cut, struct indexed **ret, struct error *e) {
        static const int32_t tokens[] = { 10, 11, 12, 70000, 14, 15 };
        char buf[256];
        size_t n = pack(x, buf);

        scratch_write(s, "d.bin", tokens, sizeof(tokens));
        scratch_write(s, "d.idx", buf, n - cut);
        return indexed_open(scratch_path(s, "d"), ret, e);
}

TEST(megatron_documents_of_several_sequences) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        struct indexed *x;
        int32_t ids[8];
        struct error e;

        ASSERT_OK(open_idx(&s, &good, 0, &x, &e), e);
        CU_ASSERT_EQUAL(indexed_documents(x), 2);
        CU_ASSERT_EQUAL(indexed_document_length(x, 0), 5);
        CU_ASSERT_EQUAL(indexed_document_length(x, 1), 1);
        CU_ASSERT_EQUAL(indexed_vocab(x), 70001);
        ASSERT_OK(indexed_read(x, 0, 1, 3, ids, &e), e);
        CU_ASSERT_EQUAL(ids[0], 11);
        CU_ASSERT_EQUAL(ids[1], 12);
        CU_ASSERT_EQUAL(ids[2], 70000);
        ASSERT_OK(indexed_read(x, 1, 0, 1, ids, &e), e);
        CU_ASSERT_EQUAL(ids[0], 15);
        indexed_free(x);
}

TEST(bad_indexes) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        struct indexed *x = NULL;
        struct error e;
        struct idx bad;

#define BAD(change, message)                                                  \
        do {                                                                  \
                bad = good;                                                   \
                change;                                                       \
                ASSERT_ERROR(open_idx(&s, &bad, 0, &x, &e), -EINVAL, e, message); \
        } while (0)
        BAD(bad.magic[0] = 'X', "no MMIDIDX header");
        BAD(bad.version = 2, "found version 2, expected 1");
        BAD(bad.dtype = 5, "token type 5");
        BAD(bad.sequences = 4, "4 sequences");
        BAD(bad.sequences = UINT64_MAX, "sequences");
        BAD(bad.sequences = UINT64_MAX / 12 + 2, "sequences");
        BAD(bad.bounds = UINT64_MAX / 8 + 1, "document bounds");
        BAD(bad.bounds = 2, "document bounds");
        BAD(bad.lengths[1] = -1, "sequence 1: found -1 tokens");
        BAD(bad.lengths[2] = 2, "sequence 2: found 2 tokens");
        BAD(bad.lengths[2] = INT32_MAX, "sequence 2");
        BAD(bad.pointers[0] = -4, "at byte -4");
        BAD(bad.pointers[0] = 2, "at byte 2"); /* not whole tokens */
        BAD(bad.pointers[0] = INT64_MAX - 3, "sequence 0");
        BAD(bad.starts[0] = 1, "document bound 0");
        BAD(bad.starts[1] = -1, "document bound 1");
        BAD(bad.starts[1] = 4, "document bound 1");
        BAD(bad.starts[2] = 2, "expected all 3");
        for (size_t cut = 1; cut < 94; cut++)
                CU_ASSERT_EQUAL(open_idx(&s, &good, cut, &x, &e), -EINVAL);
        CU_ASSERT_PTR_NULL(x);
}

TEST(negative_ids_are_refused) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        struct indexed *x;
        int32_t ids[8];
        struct error e;

        ASSERT_OK(open_idx(&s, &good, 0, &x, &e), e);
        indexed_free(x);
        scratch_write(&s, "d.bin", (const int32_t[]){ 1, 2, 3, -4, 5, 6 }, 24);
        ASSERT_OK(indexed_open(s.path, &x, &e), e);
        CU_ASSERT_EQUAL(indexed_vocab(x), -EINVAL);
        ASSERT_ERROR(indexed_read(x, 0, 0, 5, ids, &e), -EINVAL, e, "negative token id");
        ASSERT_OK(indexed_read(x, 0, 0, 3, ids, &e), e);
        indexed_free(x);
}

TEST_MAIN("indexed")
