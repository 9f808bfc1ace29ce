/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Token files. A text file goes through the byte tokenizer (ids 0..255; documents are blocks between blank lines; id 0 ends one). A Megatron-LM indexed dataset is
 * PREFIX.idx ("MMIDIDX\0\0", u64 version 1, u8 dtype code (8 = uint16, 4 = int32), u64 sequences, u64 documents, i32 lengths[], i64 byte pointers[], i64 document index[])
 * beside PREFIX.bin (the tokens).  Everything read is bounded and checked; files are mapped, not read.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/hash.h"

struct indexed;

/* path: a text file, a prefix, or PREFIX.bin/.idx. Decided by what is there: .idx beside it means indexed. */
int indexed_open(const char *path, struct indexed **ret, struct error *e);
struct indexed *indexed_free(struct indexed *x);
int64_t indexed_documents(const struct indexed *x);
int64_t indexed_tokens(const struct indexed *x);
int64_t indexed_vocab(const struct indexed *x); /* greatest id + 1; reads all tokens once, then remembered */
int64_t indexed_document_length(const struct indexed *x, int64_t doc);
/* Copies n tokens of a document from `from`; ids are checked >= 0. */
int indexed_read(const struct indexed *x, int64_t doc, int64_t from, int64_t n, int32_t *ids, struct error *e);
/* XXH3-128 of the text file, or of .bin's bytes followed by .idx's. Reads it all. */
int indexed_digest(const char *path, struct digest *ret, struct error *e);
/* Text files -> PREFIX.bin/.idx (uint16, byte tokenizer, id 0 after each document); durable, written under temporary names. */
int indexed_prepare(const char *const *files, size_t n, const char *prefix, bool document_per_line,
                    void (*progress)(void *arg, uint64_t done_bytes, uint64_t total_bytes), void *arg, struct error *e);
