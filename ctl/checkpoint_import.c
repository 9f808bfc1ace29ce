/* SPDX-License-Identifier: Apache-2.0 */
/* ckpt import: a Hugging Face folder of a Llama model becomes a checkpoint of master weights at step 0, which `submit --from` starts from in any layout and recipe. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "ctl/checkpoint.h"
#include "ctl/handlers.h"
#include "ctl/new_folder.h"
#include "ctl/print.h"
#include "format/hf.h"
#include "format/shard_writer.h"
#include "format/values.h"
#include "proto/job_spec.h"

#define BLOCK_ELEMENTS ((size_t)1 << 19)
#define SHARD_MOST (UINT64_C(1) << 30)
#define CONFIG_MAX (1u << 20)
#define HEAD "lm_head.weight"
#define EMBEDDING "model.embed_tokens.weight"

struct import {
        const char *dir;
        struct model_config model;
        char *config;
        struct hf_folder *from;
        struct shard_tensor *tensors;
        size_t *shard_of;
        size_t n, n_shards;
        uint64_t bytes, parameters;
        struct new_folder folder;
        json_t *shards;
        struct byte_progress progress;
};

static void import_clear(struct import *x) {
        hf_folder_free(x->from);
        new_folder_done(&x->folder);
        free(x->config);
        free(x->tensors);
        free(x->shard_of);
        json_decref(x->shards);
}

/* ------------------------------------------------------------------ what there is */

static int read_config(struct import *x, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/" HF_CONFIG, x->dir), *text = NULL;
        size_t len;
        int r = path ? file_read(path, CONFIG_MAX, &text, &len, e) : error_set(e, -ENOMEM, "no memory");

        if (r == 0)
                r = model_config_from_json(text, len, path, &x->model, e);
        return r < 0 ? r : model_config_to_json(&x->model, &x->config, e);
}

static int check_tensor(const struct import *x, const struct shard_tensor *have, const struct shard_tensor *want, struct error *e) {
        char found[SHAPE_BUF], expected[SHAPE_BUF];

        if (!have)
                return error_set(e, -ENODATA, "%s: found no tensor %s, expected it of %s", x->dir, want->name, text_shape(expected, want->rows, want->cols));
        if (have->rows != want->rows || have->cols != want->cols)
                return error_set(e, -EBADMSG, "%s: %s: found shape %s, expected %s as config.json has it", x->dir, want->name, text_shape(found, have->rows, have->cols),
                                 text_shape(expected, want->rows, want->cols));
        if (!values_are_real(have->dtype))
                return error_set(e, -EBADMSG, "%s: %s: found type %s, expected BF16, F16 or F32", x->dir, want->name, shard_dtype_text(have->dtype));
        return 0;
}

static int plan(struct import *x, struct error *e) {
        uint64_t in_shard = 0;

        x->n = (size_t)model_tensors(&x->model);
        x->tensors = calloc(x->n, sizeof(*x->tensors));
        x->shard_of = calloc(x->n, sizeof(*x->shard_of));
        if (!x->tensors || !x->shard_of)
                return error_set(e, -ENOMEM, "no memory");
        for (size_t i = 0; i < x->n; i++) {
                struct shard_tensor *t = &x->tensors[i];
                size_t bytes;
                int r;

                model_tensor(&x->model, (int64_t)i, t->name, sizeof(t->name), &t->rows, &t->cols);
                t->dtype = DT_F32;
                t->global_rows = t->rows;
                t->global_cols = t->cols;
                r = check_tensor(x, hf_folder_find(x->from, t->name), t, e);
                if (r < 0)
                        return r;
                if (shard_tensor_bytes(t, &bytes) < 0)
                        return error_set(e, -EOVERFLOW, "%s: more than 2^63 bytes", t->name);
                if (i == 0 || in_shard + bytes > SHARD_MOST) {
                        x->n_shards++;
                        in_shard = 0;
                }
                in_shard += bytes;
                x->bytes += bytes;
                x->parameters += bytes / sizeof(float);
                x->shard_of[i] = x->n_shards - 1;
        }
        return 0;
}

/* Tied: a head that is there all the same must be the embedding's bits, or the model would be another one. */
static int check_tied_head(const struct import *x, const struct shard_tensor *head, struct error *e) {
        const struct shard_tensor *embedding = hf_folder_find(x->from, EMBEDDING);
        size_t a, b;

        if (embedding && head->dtype == embedding->dtype && shard_tensor_bytes(head, &a) == 0 && shard_tensor_bytes(embedding, &b) == 0 && a == b &&
            memcmp(head->data, embedding->data, a) == 0) {
                hf_folder_release(head->data, a);
                hf_folder_release(embedding->data, a);
                return 0;
        }
        return error_set(e, -EBADMSG, "%s: " HEAD ": found other values than " EMBEDDING "'s, expected the same, or none, as config.json has tie_word_embeddings", x->dir);
}

static int compare_names(const void *a, const void *b) {
        return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A tensor that this model does not have is refused, not dropped: a bias, say, would be missing from every result. */
static int check_others(const struct import *x, struct error *e) {
        _cleanup_free_ const char **names = calloc(x->n, sizeof(*names));
        int r = 0;

        if (!names)
                return error_set(e, -ENOMEM, "no memory");
        for (size_t i = 0; i < x->n; i++)
                names[i] = x->tensors[i].name;
        qsort(names, x->n, sizeof(*names), compare_names);
        for (size_t i = 0; i < hf_folder_tensors(x->from) && r == 0; i++) {
                const struct shard_tensor *t = hf_folder_tensor(x->from, i);
                const char *name = t->name, *end = strrchr(name, '.');

                if (bsearch(&name, names, x->n, sizeof(*names), compare_names) || (end && strcmp(end, ".inv_freq") == 0)) /* older files hold RoPE's frequencies, which follow from theta */
                        continue;
                if (x->model.tie_word_embeddings && strcmp(name, HEAD) == 0)
                        r = check_tied_head(x, t, e);
                else
                        r = error_set(e, -EBADMSG, "%s: found tensor %s, which a Llama model of this config.json does not have", x->dir, name);
        }
        return r;
}

/* ------------------------------------------------------------------ weights */

struct block {
        double *values;
        float *out;
};

static void block_clear(struct block *b) {
        free(b->values);
        free(b->out);
}

static int copy_tensor(struct import *x, struct shard_writer *w, const struct shard_tensor *t, struct block *b, struct error *e) {
        const struct shard_tensor *from = hf_folder_find(x->from, t->name);
        size_t n = (size_t)t->rows * (size_t)t->cols, size = dtype_size(from->dtype);

        for (size_t at = 0; at < n; at += BLOCK_ELEMENTS) {
                size_t part = n - at < BLOCK_ELEMENTS ? n - at : BLOCK_ELEMENTS;
                int r;

                values_read(from->dtype, (const uint8_t *)from->data + at * size, b->values, part);
                values_write(DT_F32, b->values, b->out, part);
                for (size_t i = 0; i < part; i++)
                        if (!isfinite(b->out[i]))
                                return error_set(e, -EBADMSG, "%s: %s: element %zu: found %f, expected a finite number", x->dir, t->name, at + i, b->values[i]);
                r = shard_writer_add(w, b->out, part * sizeof(float), e);
                if (r == 0)
                        r = new_folder_interrupted(e);
                if (r < 0)
                        return r;
                hf_folder_release((const uint8_t *)from->data + at * size, part * size);
                byte_progress_add(&x->progress, part * sizeof(float));
        }
        return hf_folder_check(x->from, e);
}

static inline void shard_writer_freep(struct shard_writer **w) {
        shard_writer_free(*w);
}

static int write_shard(struct import *x, size_t first, size_t n, struct block *b, struct error *e) {
        size_t shard = x->shard_of[first];
        _cleanup_free_ char *name = file_path("shard-%05zu-of-%05zu.safetensors", shard, x->n_shards), *path = name ? file_path("%s/%s", x->folder.tmp, name) : NULL;
        _cleanup_(shard_writer_freep) struct shard_writer *w = NULL;
        char hex[DIGEST_HEX_SIZE];
        struct digest digest = { 0, 0 };
        uint64_t bytes = 0;
        int r = path ? shard_writer_open(path, x->tensors + first, n, &w, e) : error_set(e, -ENOMEM, "no memory");

        for (size_t i = 0; i < n && r == 0; i++)
                r = copy_tensor(x, w, &x->tensors[first + i], b, e);
        if (r == 0)
                r = shard_writer_finish(w, &bytes, &digest, e);
        if (r < 0)
                return r;
        digest_hex(digest, hex);
        json_array_append_new(x->shards, json_pack("{s:s, s:I, s:s, s:I}", "file", name, "bytes", (json_int_t)bytes, "digest", hex, "rank", (json_int_t)shard));
        return 0;
}

static int write_weights(struct import *x, struct error *e) {
        _cleanup_(block_clear) struct block b = { malloc(BLOCK_ELEMENTS * sizeof(double)), malloc(BLOCK_ELEMENTS * sizeof(float)) };
        int r = b.values && b.out ? 0 : error_set(e, -ENOMEM, "no memory");

        x->shards = json_array();
        byte_progress_begin(&x->progress, "import", x->bytes);
        for (size_t i = 0, n; i < x->n && r == 0; i += n) {
                for (n = 1; i + n < x->n && x->shard_of[i + n] == x->shard_of[i];)
                        n++;
                r = write_shard(x, i, n, &b, e);
        }
        byte_progress_end(&x->progress);
        return r;
}

static int write_manifest(struct import *x, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/" CHECKPOINT_MANIFEST, x->folder.tmp), *text = NULL, *from = realpath(x->dir, NULL);
        _cleanup_json_ json_t *o = NULL;
        json_t *model = json_loads(x->config, 0, NULL);

        o = json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:s, s:O, s:{s:b, s:i, s:s, s:o}}", "format", "fp8ctl-checkpoint", "version", 1, "job", 0, "step", 0, "epoch", 0, "attempt", 0, "layout",
                      "imported", "shards", x->shards, "state", "weights_only", 1, "step", 0, "imported_from", from ? from : x->dir, "model", model);
        text = o ? json_dumps(o, JSON_INDENT(1) | JSON_REAL_PRECISION(17)) : NULL;
        if (!path || !text)
                return error_set(e, -ENOMEM, "no memory, or a name that is not UTF-8: %s", x->dir);
        return file_write_atomic(path, text, strlen(text), 0644, e);
}

int checkpoint_import_run(struct ctl *c, int n, char **args) {
        _cleanup_(import_clear) struct import x = { .dir = args[0] };
        _cleanup_json_ json_t *o = NULL;
        char size[TEXT_BUF];
        struct error e;

        if (read_config(&x, &e) < 0 || hf_folder_open(x.dir, &x.from, &e) < 0 || plan(&x, &e) < 0 || check_others(&x, &e) < 0 || new_folder_begin(args[1], &x.folder, &e) < 0 ||
            write_weights(&x, &e) < 0 || write_manifest(&x, &e) < 0 || new_folder_commit(&x.folder, &e) < 0)
                return ctl_fail(&e);
        o = json_pack("{s:i, s:s, s:s, s:I, s:I, s:I, s:I}", "v", CTL_JSON_VERSION, "path", x.folder.path, "from", x.dir, "parameters", (json_int_t)x.parameters, "tensors", (json_int_t)x.n,
                      "bytes", (json_int_t)x.bytes, "shards", (json_int_t)x.n_shards);
        if (c->format == FORMAT_TABLE)
                printf("%s: %" PRIu64 " parameters of %s, %s; `fp8ctl submit --from %s` starts from it\n", x.folder.path, x.parameters, x.dir, text_bytes(size, x.bytes), x.folder.path);
        else
                print_object(c, o);
        return EXIT_DONE;
}
