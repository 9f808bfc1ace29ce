/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Files that are read through memory.  One that becomes shorter meanwhile would be the reader's death (SIGBUS, mmap(2)): here what is gone reads as zeros, and mapping_check, asked after the bytes
 * were used and before anything is made of them, says so.  (What is cut off within the page in which the file ends now reads as zeros unseen: digests are for that.)
 */
#include <stddef.h>

#include "base/error.h"

/* The first `size` bytes (more than 0) of the file, for reading. name: for the error. */
int mapping_open(int fd, size_t size, const char *name, void **ret, struct error *e);
/* NULL is allowed. */
void mapping_close(const void *data, size_t size);
/* -EIO: the file became shorter, and what was read of it is not what was in it. data: of mapping_open. */
int mapping_check(const void *data, const char *name, struct error *e);
