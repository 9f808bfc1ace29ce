/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <math.h>

#include "scratch.h"
#include "test.h"
#include "worker/data/dataset.h"
#include "worker/data/shuffle.h"

#define SEQ 16

static struct job_spec make_spec(const char *path) {
        struct job_spec s = { 0 };

        s.data.path = (char *)path;
        s.data.seq_len = SEQ;
        s.data.seed = 3;
        s.data.pack = true;
        s.data.validation_split = 0.2;
        s.model.vocab_size = 256;
        return s;
}

/* n documents; document i is the letter 'A' + i % 26 and then its number, so that every token tells where it is from. */
static void write_documents(struct scratch *s, int n, int words) {
        _cleanup_free_ char *text = calloc((size_t)n, (size_t)words * 8 + 8);
        char *p = text;

        for (int i = 0; i < n; i++) {
                for (int w = 0; w < words; w++)
                        p += sprintf(p, "%c%04d ", 'A' + i % 26, i);
                p += sprintf(p, "\n\n");
        }
        scratch_text(s, "t.txt", text);
}

TEST(shuffle_is_a_permutation) {
        for (uint64_t n = 1; n < 400; n = n * 2 + 1) {
                _cleanup_free_ char *seen = calloc(n, 1);
                struct shuffle s = shuffle_make(n, 1, 0, 2), other = shuffle_make(n, 1, 1, 2);
                uint64_t fixed = 0, same = 0;

                for (uint64_t i = 0; i < n; i++) {
                        uint64_t at = shuffle_at(&s, i);

                        CU_ASSERT_FATAL(at < n);
                        CU_ASSERT_EQUAL(seen[at], 0);
                        seen[at] = 1;
                        fixed += at == i;
                        same += at == shuffle_at(&other, i);
                }
                if (n > 60) { /* one fixed point is what a random permutation has on average */
                        CU_ASSERT_TRUE(fixed < 8);
                        CU_ASSERT_TRUE(same < 8);
                }
        }
        /* the order is part of the format of a saved position: it never changes */
        struct shuffle s = shuffle_make(1000, 1, 0, 2);
        CU_ASSERT_EQUAL(shuffle_at(&s, 0), 737);
        CU_ASSERT_EQUAL(shuffle_at(&s, 999), 507);
}

TEST(a_sample_is_a_function_of_its_index) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        int32_t a[SEQ], b[SEQ], labels[SEQ], starts[SEQ];
        struct dataset *d, *again;
        struct job_spec spec;
        struct error e;
        int n_a, n_b;

        write_documents(&s, 50, 5);
        spec = make_spec(s.path);
        ASSERT_OK(dataset_open(&spec, &d, &e), e);
        ASSERT_OK(dataset_open(&spec, &again, &e), e);
        for (int64_t i = 3 * dataset_samples(d, false); i >= 0; i--) { /* backwards, and over passes */
                ASSERT_OK(dataset_sample(d, false, (uint64_t)i, a, labels, starts, &n_a, &e), e);
                ASSERT_OK(dataset_sample(again, false, (uint64_t)i, b, labels, starts, &n_b, &e), e);
                CU_ASSERT_EQUAL(memcmp(a, b, sizeof(a)), 0);
                CU_ASSERT_EQUAL(n_a, n_b);
                /* the other one has its own history of what it was asked */
                ASSERT_OK(dataset_sample(again, i % 2, (uint64_t)i * 7, b, labels, starts, &n_b, &e), e);
        }
        dataset_free(d);
        dataset_free(again);
}

TEST(passes_differ_and_seeds_differ) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        int32_t a[SEQ], b[SEQ], labels[SEQ], starts[SEQ];
        struct dataset *d, *other;
        struct job_spec spec;
        struct error e;
        int n, same_pass = 0, same_seed = 0;
        int64_t samples;

        write_documents(&s, 50, 5);
        spec = make_spec(s.path);
        ASSERT_OK(dataset_open(&spec, &d, &e), e);
        spec.data.seed = 4;
        ASSERT_OK(dataset_open(&spec, &other, &e), e);
        samples = dataset_samples(d, false);
        for (int64_t i = 0; i < samples; i++) {
                ASSERT_OK(dataset_sample(d, false, (uint64_t)i, a, labels, starts, &n, &e), e);
                ASSERT_OK(dataset_sample(d, false, (uint64_t)(i + samples), b, labels, starts, &n, &e), e);
                same_pass += memcmp(a, b, sizeof(a)) == 0;
                ASSERT_OK(dataset_sample(other, false, (uint64_t)i, b, labels, starts, &n, &e), e);
                same_seed += memcmp(a, b, sizeof(a)) == 0;
        }
        CU_ASSERT_TRUE(samples > 50);
        CU_ASSERT_TRUE(same_pass < samples / 5);
        CU_ASSERT_TRUE(same_seed < samples / 5);
        dataset_free(d);
        dataset_free(other);
}

/* How often each (document letter+number) first token occurs, over one pass. */
static void count_tokens(struct dataset *d, bool validation, int64_t histogram[256], int64_t *ret_tokens) {
        int32_t ids[SEQ], labels[SEQ], starts[SEQ];
        struct error e;
        int n;

        *ret_tokens = 0;
        for (int64_t i = 0; i < dataset_samples(d, validation); i++) {
                ASSERT_OK(dataset_sample(d, validation, (uint64_t)i, ids, labels, starts, &n, &e), e);
                for (int k = 0; k < SEQ; k++) {
                        histogram[ids[k]]++;
                        ++*ret_tokens;
                }
        }
}

TEST(one_pass_sees_every_token_once) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        int64_t train[256] = { 0 }, val[256] = { 0 }, n_train, n_val;
        struct dataset *d;
        struct job_spec spec;
        struct error e;

        write_documents(&s, 20, 5); /* 31 tokens each: five times a letter, four digits and a blank, and the end */
        spec = make_spec(s.path);
        ASSERT_OK(dataset_open(&spec, &d, &e), e);
        CU_ASSERT_EQUAL(dataset_tokens(d, false) + dataset_tokens(d, true), 20 * 31);
        CU_ASSERT_EQUAL(dataset_tokens(d, true), 4 * 31); /* the last fifth */
        count_tokens(d, false, train, &n_train);
        count_tokens(d, true, val, &n_val);
        CU_ASSERT_EQUAL(n_train, dataset_samples(d, false) * SEQ);
        CU_ASSERT_TRUE(dataset_tokens(d, false) - n_train <= SEQ + 1);
        /* letters A..P are training's (5 each), Q..T validation's: neither has any of the other's */
        for (int c = 'A'; c < 'A' + 20; c++) {
                CU_ASSERT_TRUE(train[c] <= 5);
                CU_ASSERT_EQUAL(c < 'Q' ? val[c] : train[c], 0);
        }
        CU_ASSERT_TRUE(train['A'] + train['B'] + train['C'] >= 10);
        CU_ASSERT_TRUE(val['Q'] + val['R'] + val['S'] + val['T'] >= 12);
        dataset_free(d);
}

TEST(labels_are_the_next_token_of_the_same_document) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        int32_t ids[SEQ], labels[SEQ], starts[SEQ];
        struct dataset *d;
        struct job_spec spec;
        struct error e;
        int n, borders = 0;

        write_documents(&s, 60, 2); /* short: most sequences hold a border */
        spec = make_spec(s.path);
        ASSERT_OK(dataset_open(&spec, &d, &e), e);
        for (uint64_t i = 0; i < 200; i++) {
                int docs = 1;

                ASSERT_OK(dataset_sample(d, i % 3 == 0, i, ids, labels, starts, &n, &e), e);
                CU_ASSERT_EQUAL(starts[0], 0);
                for (int k = 0; k < SEQ; k++) {
                        if (ids[k] == 0) {
                                CU_ASSERT_EQUAL(labels[k], -1); /* nothing is predicted across the end */
                                if (k + 1 < SEQ) {
                                        CU_ASSERT_FATAL(docs < n);
                                        CU_ASSERT_EQUAL(starts[docs], k + 1);
                                        docs++;
                                }
                                borders++;
                        } else if (k + 1 < SEQ) {
                                CU_ASSERT_EQUAL(labels[k], ids[k + 1]);
                        } else {
                                CU_ASSERT_TRUE(labels[k] >= 0);
                        }
                }
                CU_ASSERT_EQUAL(docs, n);
        }
        CU_ASSERT_TRUE(borders > 100);
        dataset_free(d);
}

TEST(without_packing_a_sequence_is_of_one_document) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        int32_t ids[SEQ], labels[SEQ], starts[SEQ];
        int64_t counted = 0;
        struct dataset *d;
        struct job_spec spec;
        struct error e;
        int n;

        write_documents(&s, 20, 5); /* 31 tokens: sequences of 16 and 14 predictions */
        spec = make_spec(s.path);
        spec.data.pack = false;
        ASSERT_OK(dataset_open(&spec, &d, &e), e);
        CU_ASSERT_EQUAL(dataset_samples(d, false), 2 * 16);
        CU_ASSERT_EQUAL(dataset_samples(d, true), 2 * 4);
        for (int64_t i = 0; i < dataset_samples(d, false); i++) {
                ASSERT_OK(dataset_sample(d, false, (uint64_t)i, ids, labels, starts, &n, &e), e);
                CU_ASSERT_EQUAL(n, 1);
                for (int k = 0; k < SEQ; k++)
                        counted += labels[k] >= 0;
        }
        CU_ASSERT_EQUAL(counted, 16 * 30); /* every token but the first of each document is predicted once */
        dataset_free(d);
}

TEST(one_long_document_is_cut_for_validation) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        int64_t train[256] = { 0 }, val[256] = { 0 }, n;
        char text[2001];
        struct dataset *d;
        struct job_spec spec;
        struct error e;

        memset(text, 'a', 1600);
        memset(text + 1600, 'b', 400);
        text[2000] = 0;
        scratch_text(&s, "t.txt", text);
        spec = make_spec(s.path);
        ASSERT_OK(dataset_open(&spec, &d, &e), e);
        CU_ASSERT_EQUAL(dataset_tokens(d, true), 401); /* ceil of a fifth of 2001 */
        CU_ASSERT_EQUAL(dataset_tokens(d, false), 1600);
        count_tokens(d, false, train, &n);
        count_tokens(d, true, val, &n);
        CU_ASSERT_EQUAL(train['b'], 0);
        CU_ASSERT_EQUAL(val['a'], 0);
        dataset_free(d);
}

TEST(refusals) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        int32_t ids[SEQ], labels[SEQ], starts[SEQ];
        struct dataset *d = NULL;
        struct job_spec spec;
        struct error e;
        int n;

        scratch_text(&s, "short", "abc\n\ndef");
        spec = make_spec(s.path);
        ASSERT_ERROR(dataset_open(&spec, &d, &e), -EINVAL, e, "expected at least data.seq_len + 1 = 17");
        spec.data.path = (char *)"/nowhere/at/all";
        ASSERT_ERROR(dataset_open(&spec, &d, &e), -ENOENT, e, "/nowhere/at/all");
        CU_ASSERT_PTR_NULL(d);
        write_documents(&s, 20, 5);
        spec = make_spec(s.path);
        spec.data.validation_split = 0;
        spec.model.vocab_size = 60; /* letters are above */
        ASSERT_OK(dataset_open(&spec, &d, &e), e);
        CU_ASSERT_EQUAL(dataset_samples(d, true), 0);
        ASSERT_ERROR(dataset_sample(d, true, 0, ids, labels, starts, &n, &e), -ENOENT, e, "no validation split");
        ASSERT_ERROR(dataset_sample(d, false, 0, ids, labels, starts, &n, &e), -EINVAL, e, "expected ids below model.vocab_size (60)");
        CU_ASSERT_EQUAL(dataset_vocab(d), 'T' + 1);
        dataset_free(d);
}

TEST_MAIN("dataset")
