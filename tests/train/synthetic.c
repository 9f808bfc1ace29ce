// SPDX-License-Identifier: Apache-2.0
/* worker/data/dataset.h over tokens made from the sample's number: a noisy walk that a model can learn, in documents of 5 to 20 tokens (data.pack false: one a sequence). */
#include "worker/data/dataset.h"

#include <errno.h>
#include <stdlib.h>

struct dataset {
        int64_t seq_len, vocab;
        uint64_t seed;
        bool pack;
};

static uint64_t mix(uint64_t x) { /* SplitMix64 */
        x += UINT64_C(0x9e3779b97f4a7c15);
        x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
        return x ^ (x >> 31);
}

int dataset_open(const struct job_spec *spec, struct dataset **ret, struct error *e) {
        struct dataset *d = calloc(1, sizeof(*d));

        if (!d)
                return error_set(e, -ENOMEM, "no memory");
        *d = (struct dataset){ spec->data.seq_len, spec->model.vocab_size, (uint64_t)spec->data.seed, spec->data.pack };
        *ret = d;
        return 0;
}

struct dataset *dataset_free(struct dataset *d) {
        free(d);
        return NULL;
}

int64_t dataset_tokens(const struct dataset *d, bool validation) {
        (void)d;
        return validation ? 1000 : 1000000;
}

int64_t dataset_vocab(const struct dataset *d) {
        return d->vocab;
}

int dataset_sample(struct dataset *d, bool validation, uint64_t index, int32_t *ids, int32_t *labels, int32_t *doc_starts, int *ret_n_docs,
                   struct error *e) {
        uint64_t r = mix(d->seed ^ mix(index * 2 + validation));
        int32_t at = (int32_t)(r % (uint64_t)d->vocab);
        int64_t next = 0;

        (void)e;
        *ret_n_docs = 0;
        for (int64_t i = 0; i < d->seq_len; i++) {
                r = mix(r);
                if (i == next) {
                        doc_starts[(*ret_n_docs)++] = (int32_t)i;
                        next = d->pack ? i + 5 + (int64_t)(r >> 40) % 16 : d->seq_len;
                }
                ids[i] = at;
                at = (int32_t)((at * 3 + 1 + (int32_t)(r % 2)) % d->vocab);
                labels[i] = i + 1 == next ? -1 : at;
        }
        return 0;
}
