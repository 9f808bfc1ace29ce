/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Writes a safetensors file of whole tensors piece by piece, so that a model need not fit into memory. */
#include "base/error.h"
#include "base/hash.h"
#include "format/shard.h"

struct shard_writer;
/* list: names, types and shapes (whole tensors, data unused), in the order in which their bytes will come; elements of one size. Copied. path must not exist. */
int shard_writer_open(const char *path, const struct shard_tensor *list, size_t n, struct shard_writer **ret, struct error *e);
/* The next bytes, tensor after tensor without a gap. */
int shard_writer_add(struct shard_writer *w, const void *data, size_t len, struct error *e);
/* All bytes are there (-EINVAL: they are not); durable. */
int shard_writer_finish(struct shard_writer *w, uint64_t *ret_bytes, struct digest *ret_digest, struct error *e);
struct shard_writer *shard_writer_free(struct shard_writer *w);
