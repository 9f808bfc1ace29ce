/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Training samples from base/indexed.h's documents: shuffled (seed, pass over the data) and packed into sequences of seq_len + 1 tokens; sample i of the run is a pure function of
 * (data, seed, seq_len, i), so a position is one number.
 *
 * Each pass puts the documents into a new order, cuts their concatenation into sequences and visits these in a new order; the tokens behind the last whole sequence are left out in
 * that pass.  With data.pack false each document is cut on its own and its last sequence is padded (id 0, label -1).
 *
 * Validation is the last data.validation_split of the documents, counted in tokens; a document that is most of it is cut in two, so that one long text works as well.  No training
 * sequence holds a validation token.  One thread a dataset.
 */
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/hash.h"
#include "proto/job_spec.h"

struct dataset;

int dataset_open(const struct job_spec *spec, struct dataset **ret, struct error *e);
struct dataset *dataset_free(struct dataset *d);
int64_t dataset_tokens(const struct dataset *d, bool validation);
int64_t dataset_samples(const struct dataset *d, bool validation); /* of one pass; 0: there is no validation split */
int64_t dataset_vocab(const struct dataset *d); /* greatest id + 1; reads all of the data */
/*
 * Sample `index` (training: any number, wraps into reshuffled passes; validation: modulo their count): ids[seq_len], labels[seq_len] (-1: not counted, i.e. across a document's
 * end), doc_starts: seq positions at which a document begins, 0 included; at most seq_len. An id that model.vocab_size does not reach is -EINVAL.
 */
int dataset_sample(struct dataset *d, bool validation, uint64_t index, int32_t *ids, int32_t *labels, int32_t *doc_starts, int *ret_n_docs, struct error *e);
