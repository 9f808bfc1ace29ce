/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A shard image becomes a file of a checkpoint's folder. */
#include "base/block_writer.h"
#include "base/hash.h"

/* "shard-00003-of-00008.safetensors"; NULL: no memory. */
char *shard_file_name(int rank, int n_ranks);
/*
 * Writes the image under that name, with its sums beside it (format/checkpoint.h); the folder is made when it is not there (mkdir -p).  The order that makes a commit safe: folder and its entry durable, bytes
 * durable under a temporary name, rename, the folder with the new name durable.  want: the digest that the image must have, -EBADMSG; NULL: any.  After a failure nothing is left.
 */
int shard_file_write(const char *folder, const char *file, const void *image, size_t len, const struct block_writer_config *c, const struct digest *want, struct digest *ret, struct error *e);
