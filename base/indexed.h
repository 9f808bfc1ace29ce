/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Token files. A text file goes through the byte tokenizer (ids 0..255; documents are blocks between blank lines; id 0 ends one; the newline before the blank line is
 * not part of it; a byte 0 is refused). A Megatron-LM indexed dataset is
 * PREFIX.idx ("MMIDIDX\0\0", u64 version 1, u8 dtype code (8 = uint16, 4 = int32), u64 sequences, u64 documents, i32 lengths[], i64 byte pointers[], i64 document index[]: where each
 * document begins among the sequences, and their end; the count in the header counts all of these, so there is one document less)
 * beside PREFIX.bin (the tokens).  Everything read is bounded and checked; files are mapped, not read.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/hash.h"

struct indexed;

enum indexed_format { INDEXED_AUTO, INDEXED_TEXT, INDEXED_PAIR };

/* path: a text file, a prefix, or PREFIX.bin/.idx. Decided by what is there: .idx beside it means indexed. Read-only afterwards: any thread may use it. */
int indexed_open(const char *path, struct indexed **ret, struct error *e);
/* The same, when it is known what it must be. */
int indexed_open_as(const char *path, enum indexed_format format, struct indexed **ret, struct error *e);
struct indexed *indexed_free(struct indexed *x);
int64_t indexed_documents(const struct indexed *x);
int64_t indexed_tokens(const struct indexed *x);
int64_t indexed_vocab(const struct indexed *x); /* greatest id + 1; reads all tokens once, then remembered; -EINVAL: a negative id is in it */
int64_t indexed_document_length(const struct indexed *x, int64_t doc);
/* Copies n tokens of a document from `from`; ids are checked >= 0; -ERANGE when they are not all there. */
int indexed_read(const struct indexed *x, int64_t doc, int64_t from, int64_t n, int32_t *ids, struct error *e);
/* XXH3-128 of the text file, or of .bin's bytes followed by .idx's. Reads it all. */
int indexed_digest(const char *path, struct digest *ret, struct error *e);
/* Text files -> PREFIX.bin/.idx (uint16, byte tokenizer, id 0 after each document); durable, written under temporary names. */
int indexed_prepare(const char *const *files, size_t n, const char *prefix, bool document_per_line,
                    void (*progress)(void *arg, uint64_t done_bytes, uint64_t total_bytes), void *arg, struct error *e);
