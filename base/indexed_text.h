/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What indexed.c and indexed_prepare.c share: files in memory, and documents in a text. Internal to base/. */
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct mapped_file {
        const char *data; /* NULL when empty */
        size_t size;
};

int mapped_file_open(const char *path, struct mapped_file *ret, struct error *e);
void mapped_file_close(struct mapped_file *m);

/* The next document at or after *at: blocks between lines of blanks only, or (per_line) each line that is not blank. False at the end. Moves *at behind it. */
bool text_next_document(const struct mapped_file *m, bool per_line, size_t *at, size_t *ret_start, size_t *ret_len);
/* Refuses a byte 0, which is the end of a document to the byte tokenizer. */
int text_check(const struct mapped_file *m, const char *path, struct error *e);
