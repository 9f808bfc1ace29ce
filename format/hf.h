/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A model's folder in Hugging Face's layout: model.safetensors, or shards under model.safetensors.index.json ({"metadata": {...}, "weight_map": {tensor: file}}).
 * It comes from outside: everything is bounded and checked, and no name leads out of the folder.
 */
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "format/shard.h"

#define HF_INDEX "model.safetensors.index.json"
#define HF_SINGLE "model.safetensors"
#define HF_CONFIG "config.json"
#define HF_INDEX_MAX (64u << 20)
#define HF_FILES_MAX 10000

struct hf_index;
int hf_index_parse(const char *text, size_t len, struct hf_index **ret, struct error *e);
struct hf_index *hf_index_free(struct hf_index *x);
size_t hf_index_tensors(const struct hf_index *x);
const char *hf_index_name(const struct hf_index *x, size_t i); /* sorted */
const char *hf_index_file(const struct hf_index *x, size_t i); /* of that tensor */
size_t hf_index_files(const struct hf_index *x);
const char *hf_index_file_name(const struct hf_index *x, size_t i);

/* Its files mapped, their headers checked: each tensor of the index is in the file that it names, and no file holds another one. */
struct hf_folder;
int hf_folder_open(const char *dir, struct hf_folder **ret, struct error *e);
struct hf_folder *hf_folder_free(struct hf_folder *f);
size_t hf_folder_tensors(const struct hf_folder *f);
const struct shard_tensor *hf_folder_tensor(const struct hf_folder *f, size_t i); /* sorted by name; data in the map */
/* Asked when the tensors were used: -EIO, a file became shorter meanwhile. */
int hf_folder_check(const struct hf_folder *f, struct error *e);
/* These bytes of a tensor were read and are not needed soon. */
void hf_folder_release(const void *data, size_t len);
const struct shard_tensor *hf_folder_find(const struct hf_folder *f, const char *name);
