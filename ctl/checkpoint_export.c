/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ckpt export: master weights of any layout as a folder that transformers loads as LlamaForCausalLM.  Names are Hugging Face's already, and so is the order of rows in q and k: the model
 * rotates halves as transformers' Llama does, so nothing is permuted.
 */
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

#define BLOCK_ELEMENTS (1 << 19)
#define BYTE_VOCAB 256 /* the byte tokenizer's: its id 0 ends a document */

static const char *const format_names[] = { "hf", NULL };
static const char *const dtype_names[] = { "bf16", "fp32", NULL };

static struct {
        const char *format, *dtype;
        int64_t shard_mib, eos;
} given = { .shard_mib = 4096, .eos = -1 };

const struct opt checkpoint_export_opts[] = {
        { "format", 0, OPT_CHOICE, "FORMAT", "hf: Hugging Face's (the only one)", &given.format, 0, 0, format_names },
        { "dtype", 0, OPT_CHOICE, "TYPE", "of the weights (bf16)", &given.dtype, 0, 0, dtype_names },
        { "shard-mib", 0, OPT_INT, "MIB", "greatest size of a file; a larger tensor has its own (4096)", &given.shard_mib, 1, 1 << 20, NULL },
        { "eos-id", 0, OPT_INT, "ID", "token that ends a document (0 for byte models, else none)", &given.eos, 0, INT32_MAX, NULL },
        { 0 },
};

struct export {
        struct checkpoint_files from;
        struct model_config model;
        char *config; /* the model as config.json's text */
        enum dtype dtype;
        struct shard_tensor *tensors; /* in the order of the forward pass, of the exported type */
        size_t *file_of;
        size_t n, n_files;
        uint64_t bytes, parameters;
        struct new_folder folder;
        struct byte_progress progress;
};

static void export_clear(struct export *x) {
        checkpoint_files_close(&x->from);
        new_folder_done(&x->folder);
        free(x->config);
        free(x->tensors);
        free(x->file_of);
}

/* ------------------------------------------------------------------ what there is */

static int read_model(struct export *x, struct error *e) {
        _cleanup_json_ json_t *state = json_loads(checkpoint_manifest_state(x->from.manifest), JSON_REJECT_DUPLICATES, NULL);
        const json_t *model = json_object_get(state, "model");
        _cleanup_free_ char *name = file_path("%s/%s: state.model", x->from.folder, CHECKPOINT_MANIFEST), *text = NULL;
        int r;

        if (!json_is_object(model))
                return error_set(e, -EBADMSG, "%s: found no model in the manifest's state, expected its sizes", x->from.folder);
        text = json_dumps(model, JSON_INDENT(1));
        if (!text || !name)
                return error_set(e, -ENOMEM, "no memory");
        r = model_config_from_json(text, strlen(text), name, &x->model, e);
        return r < 0 ? r : model_config_to_json(&x->model, &x->config, e);
}

static int plan_tensor(struct export *x, size_t i, struct error *e) {
        struct shard_tensor *t = &x->tensors[i];
        const struct shard_tensor *have;
        char found[SHAPE_BUF], expected[SHAPE_BUF];
        int64_t rows, cols;

        model_tensor(&x->model, (int64_t)i, t->name, sizeof(t->name), &rows, &cols);
        have = shard_tensor_search(x->from.tensors, x->from.n_tensors, t->name);
        if (!have)
                return error_set(e, -ENODATA, "%s: found no tensor %s, expected it of %s", x->from.folder, t->name, text_shape(expected, rows, cols));
        if (have->rows != rows || have->cols != cols)
                return error_set(e, -EBADMSG, "%s: %s: found shape %s, expected %s", x->from.folder, t->name, text_shape(found, have->rows, have->cols),
                                 text_shape(expected, rows, cols));
        if (!values_are_real(have->dtype))
                return error_set(e, -EBADMSG, "%s: %s: found type %s, expected F32", x->from.folder, t->name, shard_dtype_text(have->dtype));
        t->dtype = x->dtype;
        t->rows = t->global_rows = rows;
        t->cols = t->global_cols = cols;
        return checkpoint_reader_covers(x->from.reader, have, e);
}

/* Which tensor goes into which file. */
static int plan(struct export *x, struct error *e) {
        uint64_t most = (uint64_t)given.shard_mib << 20, in_file = 0;

        x->n = (size_t)model_tensors(&x->model);
        x->tensors = calloc(x->n, sizeof(*x->tensors));
        x->file_of = calloc(x->n, sizeof(*x->file_of));
        if (!x->tensors || !x->file_of)
                return error_set(e, -ENOMEM, "no memory");
        for (size_t i = 0; i < x->n; i++) {
                size_t bytes;
                int r = plan_tensor(x, i, e);

                if (r < 0)
                        return r;
                if (shard_tensor_bytes(&x->tensors[i], &bytes) < 0)
                        return error_set(e, -EOVERFLOW, "%s: more than 2^63 bytes", x->tensors[i].name);
                if (i == 0 || in_file + bytes > most) {
                        x->n_files++;
                        in_file = 0;
                }
                in_file += bytes;
                x->bytes += bytes;
                x->parameters += bytes / dtype_size(x->dtype);
                x->file_of[i] = x->n_files - 1;
        }
        return 0;
}

/* ------------------------------------------------------------------ weights */

struct block {
        void *in, *out;
        double *values;
};

static void block_clear(struct block *b) {
        free(b->in);
        free(b->out);
        free(b->values);
}

static int copy_part(struct export *x, struct shard_writer *w, struct shard_tensor *part, const struct shard_tensor *to, struct block *b, struct error *e) {
        size_t n = (size_t)(part->rows * part->cols), bytes = n * dtype_size(x->dtype);
        int r;

        part->data = b->in;
        r = checkpoint_reader_fill(x->from.reader, part, NULL, NULL, e);
        if (r < 0)
                return r;
        values_read(part->dtype, b->in, b->values, n);
        values_write(to->dtype, b->values, b->out, n);
        r = shard_writer_add(w, b->out, bytes, e);
        if (r == 0)
                r = new_folder_interrupted(e);
        if (r == 0)
                byte_progress_add(&x->progress, bytes);
        return r;
}

static int copy_tensor(struct export *x, struct shard_writer *w, const struct shard_tensor *t, struct block *b, struct error *e) {
        struct shard_tensor part = *shard_tensor_search(x->from.tensors, x->from.n_tensors, t->name);
        int64_t cols = t->cols < BLOCK_ELEMENTS ? t->cols : BLOCK_ELEMENTS, rows = cols ? BLOCK_ELEMENTS / cols : 1;
        int r = 0;

        if (cols < t->cols)
                rows = 1;
        for (int64_t row = 0; row < t->rows && r == 0; row += rows)
                for (int64_t col = 0; col < t->cols && r == 0; col += cols) {
                        part.row0 = row;
                        part.rows = t->rows - row < rows ? t->rows - row : rows;
                        part.col0 = col;
                        part.cols = t->cols - col < cols ? t->cols - col : cols;
                        r = copy_part(x, w, &part, t, b, e);
                }
        return r;
}

static char *file_name(const struct export *x, size_t file) {
        return x->n_files == 1 ? strdup(HF_SINGLE) : file_path("model-%05zu-of-%05zu.safetensors", file + 1, x->n_files);
}

static inline void shard_writer_freep(struct shard_writer **w) {
        shard_writer_free(*w);
}

static int write_file(struct export *x, size_t first, size_t n, struct block *b, struct error *e) {
        _cleanup_free_ char *name = file_name(x, x->file_of[first]), *path = name ? file_path("%s/%s", x->folder.tmp, name) : NULL;
        _cleanup_(shard_writer_freep) struct shard_writer *w = NULL;
        struct digest digest = { 0, 0 };
        uint64_t bytes = 0;
        int r = path ? shard_writer_open(path, x->tensors + first, n, &w, e) : error_set(e, -ENOMEM, "no memory");

        for (size_t i = 0; i < n && r == 0; i++)
                r = copy_tensor(x, w, &x->tensors[first + i], b, e);
        return r < 0 ? r : shard_writer_finish(w, &bytes, &digest, e);
}

static int write_weights(struct export *x, struct error *e) {
        _cleanup_(block_clear) struct block b = { malloc((size_t)BLOCK_ELEMENTS * 8), malloc((size_t)BLOCK_ELEMENTS * 8), malloc((size_t)BLOCK_ELEMENTS * sizeof(double)) };
        int r = b.in && b.out && b.values ? 0 : error_set(e, -ENOMEM, "no memory");

        byte_progress_begin(&x->progress, "export", x->bytes);
        for (size_t i = 0, n; i < x->n && r == 0; i += n) {
                for (n = 1; i + n < x->n && x->file_of[i + n] == x->file_of[i];)
                        n++;
                r = write_file(x, i, n, &b, e);
        }
        byte_progress_end(&x->progress);
        return r;
}

/* ------------------------------------------------------------------ the JSON beside it */

static int write_json(const struct export *x, const char *name, const json_t *o, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/%s", x->folder.tmp, name), *text = NULL, *line = NULL;

        text = o ? json_dumps(o, JSON_INDENT(2) | JSON_REAL_PRECISION(17)) : NULL;
        line = text ? file_path("%s\n", text) : NULL;
        if (!path || !line)
                return error_set(e, -ENOMEM, "no memory");
        return file_write_atomic(path, line, strlen(line), 0644, e);
}

static json_t *eos(const struct export *x) {
        if (given.eos >= 0)
                return json_integer(given.eos);
        return x->model.vocab_size == BYTE_VOCAB ? json_integer(0) : json_null();
}

static int write_config(struct export *x, struct error *e) {
        _cleanup_json_ json_t *o = json_loads(x->config, 0, NULL), *generation = NULL;
        int r;

        if (!o)
                return error_set(e, -ENOMEM, "no memory");
        json_object_set_new(o, "attention_bias", json_false());
        json_object_set_new(o, "attention_dropout", json_real(0));
        json_object_set_new(o, "mlp_bias", json_false());
        json_object_set_new(o, "pretraining_tp", json_integer(1));
        json_object_set_new(o, "rope_scaling", json_null());
        json_object_set_new(o, "use_cache", json_true());
        json_object_set_new(o, "torch_dtype", json_string(x->dtype == DT_BF16 ? "bfloat16" : "float32"));
        /* Without these keys transformers would take 1 and 2, its defaults. */
        json_object_set_new(o, "bos_token_id", json_null());
        json_object_set_new(o, "eos_token_id", eos(x));
        r = write_json(x, HF_CONFIG, o, e);
        if (r < 0)
                return r;
        generation = json_pack("{s:b, s:n, s:o}", "_from_model_config", 1, "bos_token_id", "eos_token_id", eos(x));
        return write_json(x, "generation_config.json", generation, e);
}

static int write_index(const struct export *x, struct error *e) {
        _cleanup_json_ json_t *o = NULL;
        json_t *map = json_object();

        if (x->n_files == 1) {
                json_decref(map);
                return 0;
        }
        for (size_t i = 0; i < x->n; i++) {
                _cleanup_free_ char *name = file_name(x, x->file_of[i]);

                json_object_set_new(map, x->tensors[i].name, name ? json_string(name) : NULL);
        }
        o = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)x->bytes, "weight_map", map);
        return write_json(x, HF_INDEX, o, e);
}

static void print_result(const struct ctl *c, const struct export *x) {
        _cleanup_json_ json_t *o = NULL;
        json_t *files = json_array();
        char size[TEXT_BUF];

        for (size_t i = 0; i < x->n_files; i++) {
                _cleanup_free_ char *name = file_name(x, i);

                json_array_append_new(files, json_string(name ? name : ""));
        }
        o = json_pack("{s:i, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:o}", "v", CTL_JSON_VERSION, "path", x->folder.path, "from", x->from.folder, "format", "hf", "dtype",
                      x->dtype == DT_BF16 ? "bf16" : "fp32", "step", (json_int_t)checkpoint_manifest_step(x->from.manifest), "parameters", (json_int_t)x->parameters, "tensors",
                      (json_int_t)x->n, "bytes", (json_int_t)x->bytes, "files", files);
        if (c->format == FORMAT_TABLE)
                printf("%s: step %" PRIu64 " of %s, %" PRIu64 " parameters in %s, %s, %zu file%s\n", x->folder.path, checkpoint_manifest_step(x->from.manifest), x->from.folder, x->parameters,
                       x->dtype == DT_BF16 ? "bf16" : "fp32", text_bytes(size, x->bytes), x->n_files, x->n_files == 1 ? "" : "s");
        else
                print_object(c, o);
}

int checkpoint_export_run(struct ctl *c, int n, char **args) {
        _cleanup_(export_clear) struct export x = { .dtype = given.dtype && strcmp(given.dtype, "fp32") == 0 ? DT_F32 : DT_BF16 };
        struct error e;

        if (checkpoint_files_open(c, args[0], &x.from, &e) < 0 || read_model(&x, &e) < 0 || plan(&x, &e) < 0 || new_folder_begin(args[1], &x.folder, &e) < 0 ||
            write_weights(&x, &e) < 0 || write_config(&x, &e) < 0 || write_index(&x, &e) < 0 || new_folder_commit(&x.folder, &e) < 0)
                return ctl_fail(&e);
        print_result(c, &x);
        return EXIT_DONE;
}
