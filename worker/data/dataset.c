/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A split is a run of whole documents, but for at most one that is cut at the border between training and validation.  For a pass, `ends[k]` says where the k-th document of that pass's
 * order ends, in tokens of the pass (packed) or in sequences (not packed), so that a sample is found by binary search: 8 bytes a document, made anew when
 * a sample of another pass is asked for.
 */
#include "worker/data/dataset.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/indexed.h"
#include "worker/data/shuffle.h"

enum { STREAM_DOCUMENTS = 1, STREAM_SEQUENCES = 2, STREAM_VALIDATION = 3 };

struct split {
        bool shuffle;
        int64_t first, n;   /* documents */
        int64_t skip;       /* tokens left out at the start of the first document: they are training's */
        int64_t last_len;   /* tokens of the last document that belong to it */
        int64_t tokens, samples;
        uint64_t pass;      /* that `ends` is for; UINT64_MAX: none */
        int64_t *ends;
};

struct dataset {
        struct indexed *data;
        struct split split[2]; /* training, validation */
        int64_t seq_len, vocab_size;
        uint64_t seed;
        bool pack;
        int32_t *tokens;    /* seq_len + 1 */
        int64_t *documents; /* of each of them */
};

struct dataset *dataset_free(struct dataset *d) {
        if (!d)
                return NULL;
        indexed_free(d->data);
        free(d->split[0].ends);
        free(d->split[1].ends);
        free(d->tokens);
        free(d->documents);
        free(d);
        return NULL;
}

DEFINE_CLEANUP(struct dataset *, dataset_free);

/* Where in its document the split's part begins, and how long that part is. doc: counted from s->first. */
static int64_t part_start(const struct split *s, int64_t doc) {
        return doc == 0 ? s->skip : 0;
}

static int64_t part_length(const struct dataset *d, const struct split *s, int64_t doc) {
        int64_t len = doc == s->n - 1 ? s->last_len : indexed_document_length(d->data, s->first + doc);

        return len - part_start(s, doc);
}

static struct shuffle document_order(const struct dataset *d, const struct split *s, uint64_t pass) {
        return shuffle_make((uint64_t)s->n, d->seed, pass, STREAM_DOCUMENTS);
}

static int64_t document_at(const struct dataset *d, const struct split *s, uint64_t pass, int64_t k) {
        struct shuffle order = document_order(d, s, pass);

        return s->shuffle ? (int64_t)shuffle_at(&order, (uint64_t)k) : k;
}

/* Sequences of one document that is not packed: each needs a token to predict. */
static int64_t sequences_of(int64_t len, int64_t seq_len) {
        return len < 2 ? 0 : (len - 1 + seq_len - 1) / seq_len;
}

static int load_pass(struct dataset *d, struct split *s, uint64_t pass, struct error *e) {
        struct shuffle order = document_order(d, s, pass);
        int64_t end = 0;

        if (s->pass == pass)
                return 0;
        if (!s->ends)
                s->ends = calloc((size_t)s->n, sizeof(*s->ends));
        if (!s->ends)
                return error_set(e, -ENOMEM, "no memory for the order of %" PRId64 " documents", s->n);
        for (int64_t k = 0; k < s->n; k++) {
                int64_t len = part_length(d, s, s->shuffle ? (int64_t)shuffle_at(&order, (uint64_t)k) : k);

                end += d->pack ? len : sequences_of(len, d->seq_len);
                s->ends[k] = end;
        }
        s->pass = pass;
        return 0;
}

static void count_samples(const struct dataset *d, struct split *s) {
        s->tokens = 0;
        s->samples = 0;
        for (int64_t k = 0; k < s->n; k++) {
                int64_t len = part_length(d, s, k);

                s->tokens += len;
                if (!d->pack)
                        s->samples += sequences_of(len, d->seq_len);
        }
        if (d->pack && s->tokens > 0)
                s->samples = (s->tokens - 1) / d->seq_len;
}

/* Sets both splits. Validation takes documents from the end until they hold `share` of all tokens (and one whole sequence). */
static void divide(struct dataset *d, double share) {
        struct split *train = &d->split[0], *val = &d->split[1];
        int64_t n = indexed_documents(d->data), all = indexed_tokens(d->data), want = (int64_t)ceil(share * (double)all), have = 0, doc = n;

        if (want > 0 && want < d->seq_len + 1)
                want = d->seq_len + 1;
        if (want > all / 2)
                want = all / 2;
        *train = (struct split){ .shuffle = true, .n = n, .last_len = indexed_document_length(d->data, n - 1), .pass = UINT64_MAX };
        *val = (struct split){ .pass = UINT64_MAX };
        if (want == 0)
                return;
        while (have < want)
                have += indexed_document_length(d->data, --doc);
        *val = (struct split){ .first = doc, .n = n - doc, .last_len = train->last_len, .pass = UINT64_MAX };
        /* Whole documents, unless the first of them is so long that validation would take more than twice its share or leave nothing to train on. */
        if (have > 2 * want || doc == 0)
                val->skip = have - want;
        train->n = val->skip ? doc + 1 : doc;
        train->last_len = val->skip ? val->skip : indexed_document_length(d->data, doc - 1);
}

static int check_splits(struct dataset *d, const char *path, double share, struct error *e) {
        count_samples(d, &d->split[0]);
        count_samples(d, &d->split[1]);
        if (d->split[0].samples == 0)
                return error_set(e, -EINVAL, "'%s': found %" PRId64 " training tokens, expected at least data.seq_len + 1 = %" PRId64 " of them", path, d->split[0].tokens,
                                 d->seq_len + 1);
        if (share > 0 && d->split[1].samples == 0)
                return error_set(e, -EINVAL, "'%s': found %" PRId64 " tokens for data.validation_split %g, expected at least data.seq_len + 1 = %" PRId64 ", or a split of 0", path,
                                 d->split[1].tokens, share, d->seq_len + 1);
        return 0;
}

int dataset_open(const struct job_spec *spec, struct dataset **ret, struct error *e) {
        static const enum indexed_format formats[] = { [DATA_AUTO] = INDEXED_AUTO, [DATA_TEXT] = INDEXED_TEXT, [DATA_INDEXED] = INDEXED_PAIR };
        _cleanup_(dataset_freep) struct dataset *d = calloc(1, sizeof(*d));
        int r;

        if (!d)
                return error_set(e, -ENOMEM, "no memory");
        d->seq_len = spec->data.seq_len;
        d->vocab_size = spec->model.vocab_size;
        d->seed = (uint64_t)spec->data.seed;
        d->pack = spec->data.pack;
        d->tokens = calloc((size_t)d->seq_len + 1, sizeof(*d->tokens));
        d->documents = calloc((size_t)d->seq_len + 1, sizeof(*d->documents));
        if (!d->tokens || !d->documents)
                return error_set(e, -ENOMEM, "no memory");
        r = indexed_open_as(spec->data.path, formats[spec->data.format], &d->data, e);
        if (r < 0)
                return r;
        divide(d, spec->data.validation_split);
        r = check_splits(d, spec->data.path, spec->data.validation_split, e);
        if (r < 0)
                return r;
        *ret = STEAL_PTR(d);
        return 0;
}

int64_t dataset_tokens(const struct dataset *d, bool validation) {
        return d->split[validation].tokens;
}

int64_t dataset_samples(const struct dataset *d, bool validation) {
        return d->split[validation].samples;
}

int64_t dataset_vocab(const struct dataset *d) {
        return indexed_vocab(d->data);
}

/* The first k with ends[k] > at. */
static int64_t find_end(const struct split *s, int64_t at) {
        int64_t lo = 0, hi = s->n - 1;

        while (lo < hi) {
                int64_t mid = lo + (hi - lo) / 2;

                if (s->ends[mid] > at)
                        hi = mid;
                else
                        lo = mid + 1;
        }
        return lo;
}

/* Tokens `at` .. `at` + n of the pass's concatenated documents. */
static int fill_packed(struct dataset *d, const struct split *s, uint64_t pass, int64_t at, int64_t n, struct error *e) {
        int64_t done = 0;

        for (int64_t k = find_end(s, at); done < n; k++) {
                int64_t doc = document_at(d, s, pass, k), from = at + done - (k ? s->ends[k - 1] : 0), take = s->ends[k] - (at + done);
                int r;

                if (take > n - done)
                        take = n - done;
                r = indexed_read(d->data, s->first + doc, part_start(s, doc) + from, take, d->tokens + done, e);
                if (r < 0)
                        return r;
                for (int64_t i = 0; i < take; i++)
                        d->documents[done + i] = k;
                done += take;
        }
        return 0;
}

/* Sequence `at` of the pass, from one document; *ret_n tokens, at most seq_len + 1. */
static int fill_single(struct dataset *d, const struct split *s, uint64_t pass, int64_t at, int64_t *ret_n, struct error *e) {
        int64_t k = find_end(s, at), doc = document_at(d, s, pass, k), from = (at - (k ? s->ends[k - 1] : 0)) * d->seq_len;
        int64_t n = part_length(d, s, doc) - from;

        if (n > d->seq_len + 1)
                n = d->seq_len + 1;
        memset(d->documents, 0, ((size_t)d->seq_len + 1) * sizeof(*d->documents));
        *ret_n = n;
        return indexed_read(d->data, s->first + doc, part_start(s, doc) + from, n, d->tokens, e);
}

static int check_ids(const struct dataset *d, int64_t n, struct error *e) {
        for (int64_t i = 0; i < n; i++)
                if (d->tokens[i] >= d->vocab_size)
                        return error_set(e, -EINVAL, "data: found token id %d, expected ids below model.vocab_size (%" PRId64 ")", (int)d->tokens[i], d->vocab_size);
        return 0;
}

/* What the model gets from n tokens of d->tokens; the rest of the sequence is padding. */
static void emit(const struct dataset *d, int64_t n, int32_t *ids, int32_t *labels, int32_t *doc_starts, int *ret_n_docs) {
        int n_docs = 0;

        for (int64_t i = 0; i < d->seq_len; i++) {
                ids[i] = i < n ? d->tokens[i] : 0;
                labels[i] = i + 1 < n && d->documents[i + 1] == d->documents[i] ? d->tokens[i + 1] : -1;
                if (i == 0 || (i < n && d->documents[i] != d->documents[i - 1]))
                        doc_starts[n_docs++] = (int32_t)i;
        }
        *ret_n_docs = n_docs;
}

int dataset_sample(struct dataset *d, bool validation, uint64_t index, int32_t *ids, int32_t *labels, int32_t *doc_starts, int *ret_n_docs, struct error *e) {
        struct split *s = &d->split[validation];
        uint64_t pass, at;
        struct shuffle order;
        int64_t n = d->seq_len + 1;
        int r;

        if (s->samples == 0)
                return error_set(e, -ENOENT, "data: there is no validation split");
        pass = validation ? 0 : index / (uint64_t)s->samples;
        order = shuffle_make((uint64_t)s->samples, d->seed, pass, validation ? STREAM_VALIDATION : STREAM_SEQUENCES);
        at = shuffle_at(&order, index % (uint64_t)s->samples);
        r = load_pass(d, s, pass, e);
        if (r == 0)
                r = d->pack ? fill_packed(d, s, pass, (int64_t)at * d->seq_len, n, e) : fill_single(d, s, pass, (int64_t)at, &n, e);
        if (r == 0)
                r = check_ids(d, n, e);
        if (r < 0)
                return r;
        emit(d, n, ids, labels, doc_starts, ret_n_docs);
        return 0;
}
