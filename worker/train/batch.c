// SPDX-License-Identifier: Apache-2.0
/*
 * Sequences of a micro-batch, one after another, as packed documents.  Which sequence goes where depends on dp and the micro-batch's size, the set of a
 * step's sequences does not: every layout trains on the same ones.
 */
#include <errno.h>
#include <string.h>

#include "worker/train/trainer_private.h"

/* cu, pos, doc of one sequence's documents, appended. */
static int add_documents(struct trainer *t, int64_t seq0, int n_docs, int32_t *cu, int32_t *pos, int32_t *doc, int *n, struct error *e) {
        int64_t len = t->spec->data.seq_len;

        for (int i = 0; i < n_docs; i++) {
                int64_t a = t->doc_starts[i], b = i + 1 < n_docs ? t->doc_starts[i + 1] : len;

                if ((i == 0 && a != 0) || a >= b || b > len)
                        return error_set(e, -EBADMSG, "data: document %d of a sequence begins at %lld, expected rising starts from 0 below %lld", i,
                                         (long long)a, (long long)len);
                cu[*n] = (int32_t)(seq0 + a);
                for (int64_t k = a; k < b; k++) {
                        pos[seq0 + k] = (int32_t)(k - a);
                        doc[seq0 + k] = *n;
                }
                (*n)++;
        }
        return 0;
}

static int upload(struct trainer *t, struct batch *b, const int32_t *host, int n_docs, struct error *e) {
        struct model *m = &t->model;
        size_t bytes = sizeof(int32_t) * (size_t)m->T;

        TRY_DEV(e, m->ops->copy_in(b->ids, host, bytes, m->stream));
        TRY_DEV(e, m->ops->copy_in(b->labels, host + m->T, bytes, m->stream));
        TRY_DEV(e, m->ops->copy_in(b->pos, host + 2 * m->T, bytes, m->stream));
        TRY_DEV(e, m->ops->copy_in(b->doc, host + 3 * m->T, bytes, m->stream));
        TRY_DEV(e, m->ops->copy_in(b->cu, host + 4 * m->T, sizeof(int32_t) * (size_t)(n_docs + 1), m->stream));
        TRY_DEV(e, m->ops->stream_sync(m->stream)); /* the host buffer is filled anew for the next one */
        memcpy(b->host_cu, host + 4 * m->T, sizeof(int32_t) * (size_t)(n_docs + 1));
        b->docs = (struct doc_bounds){ .cu = b->cu, .pos = b->pos, .doc = b->doc, .n = n_docs, .tokens = (int32_t)m->T, .host_cu = b->host_cu };
        return 0;
}

int batch_load(struct trainer *t, int slot, bool validation, uint64_t index, struct error *e) {
        struct batch *b = &t->model.batches[slot];
        int64_t len = t->spec->data.seq_len, T = t->model.T, vocab = t->spec->model.vocab_size;
        int32_t *ids = t->host_batch, *labels = ids + T, *pos = labels + T, *doc = pos + T, *cu = doc + T;
        int docs = 0, n;

        for (int64_t i = 0; i < t->spec->train.micro_batch; i++) {
                TRY(dataset_sample(t->data, validation, index + (uint64_t)i, ids + i * len, labels + i * len, t->doc_starts, &n, e));
                TRY(add_documents(t, i * len, n, cu, pos, doc, &docs, e));
        }
        cu[docs] = (int32_t)T;
        b->labelled = 0;
        for (int64_t i = 0; i < T; i++) {
                if (ids[i] < 0 || ids[i] >= vocab || labels[i] >= vocab)
                        return error_set(e, -EBADMSG, "data: found token %d with label %d, expected ids below model.vocab_size (%lld)", ids[i], labels[i],
                                         (long long)vocab);
                b->labelled += labels[i] >= 0;
        }
        return upload(t, b, ids, docs, e);
}
