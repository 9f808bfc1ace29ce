/* SPDX-License-Identifier: Apache-2.0 */
/* ckpt show: the manifest, and what tensors lie where. */
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "ctl/checkpoint.h"
#include "ctl/handlers.h"
#include "ctl/print.h"

static json_t *range(int64_t from, int64_t n) {
        return json_pack("[I, I]", (json_int_t)from, (json_int_t)from + (json_int_t)n);
}

static json_t *shape_json(const struct shard_tensor *t) {
        return t->rows == 1 ? json_pack("[I]", (json_int_t)t->cols) : json_pack("[I, I]", (json_int_t)t->rows, (json_int_t)t->cols);
}

static json_t *tensor_json(const struct checkpoint_files *f, const struct shard_tensor *t) {
        json_t *slices = json_array();

        for (size_t i = 0; i < checkpoint_manifest_shards(f->manifest); i++) {
                const struct shard_tensor *s = shard_view_find(checkpoint_reader_view(f->reader, i), t->name);

                if (s)
                        json_array_append_new(slices, json_pack("{s:s, s:o, s:o}", "shard", checkpoint_manifest_shard(f->manifest, i).file, "rows", range(s->row0, s->rows), "cols",
                                                                range(s->col0, s->cols)));
        }
        return json_pack("{s:s, s:s, s:o, s:o}", "name", t->name, "dtype", shard_dtype_text(t->dtype), "shape", shape_json(t), "slices", slices);
}

static json_t *shards_json(const struct checkpoint_files *f) {
        json_t *list = json_array();
        char hex[DIGEST_HEX_SIZE];

        for (size_t i = 0; i < checkpoint_manifest_shards(f->manifest); i++) {
                struct checkpoint_shard s = checkpoint_manifest_shard(f->manifest, i);

                digest_hex(s.digest, hex);
                json_array_append_new(list, json_pack("{s:s, s:I, s:s, s:i}", "file", s.file, "bytes", (json_int_t)s.bytes, "digest", hex, "rank", s.rank));
        }
        return list;
}

static json_t *checkpoint_json(const struct checkpoint_files *f) {
        const struct checkpoint_manifest *m = f->manifest;
        json_t *tensors = json_array();

        for (size_t i = 0; i < f->n_tensors; i++)
                json_array_append_new(tensors, tensor_json(f, &f->tensors[i]));
        return json_pack("{s:i, s:s, s:I, s:I, s:I, s:I, s:s, s:I, s:o, s:o, s:o}", "v", CTL_JSON_VERSION, "path", f->folder, "job_id", (json_int_t)checkpoint_manifest_job(m), "step",
                         (json_int_t)checkpoint_manifest_step(m), "epoch", (json_int_t)checkpoint_manifest_epoch(m), "attempt", (json_int_t)checkpoint_manifest_attempt(m), "layout",
                         checkpoint_manifest_layout(m), "bytes", (json_int_t)f->bytes, "shards", shards_json(f), "state",
                         json_loads(checkpoint_manifest_state(m), JSON_REJECT_DUPLICATES, NULL), "tensors", tensors);
}

static void print_field(const char *name, const char *value) {
        printf("%-12s", name);
        print_text(stdout, value);
        putchar('\n');
}

/* The small state, one line a key; objects in JSON. */
static void print_state(const char *text) {
        _cleanup_json_ json_t *state = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
        const char *key;
        json_t *value;

        printf("state:\n");
        json_object_foreach(state, key, value) {
                _cleanup_free_ char *s = json_is_string(value) ? strdup(json_string_value(value)) : json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));

                printf("  ");
                print_text(stdout, key);
                printf(": ");
                print_text(stdout, s ? s : "");
                putchar('\n');
        }
}

static void print_head(const struct checkpoint_files *f) {
        const struct checkpoint_manifest *m = f->manifest;
        char text[96], size[TEXT_BUF];

        print_field("path", f->folder);
        snprintf(text, sizeof(text), "%" PRIu64 " of job %" PRIu64 ", epoch %" PRIu64 ", attempt %" PRIu32, checkpoint_manifest_step(m), checkpoint_manifest_job(m),
                 checkpoint_manifest_epoch(m), checkpoint_manifest_attempt(m));
        print_field("step", text);
        print_field("layout", checkpoint_manifest_layout(m));
        snprintf(text, sizeof(text), "%zu, %s", checkpoint_manifest_shards(m), text_bytes(size, f->bytes));
        print_field("shards", text);
        print_state(checkpoint_manifest_state(m));
        putchar('\n');
}

static void print_tensors(const struct ctl *c, const struct checkpoint_files *f) {
        static const struct sheet_column columns[] = {
                { "TENSOR", false, false, false }, { "TYPE", false, false, false }, { "SHAPE", false, false, false }, { "SLICES", true, false, false }, { "WHERE", false, true, false },
        };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));
        char shape[SHAPE_BUF], slice[128];

        for (size_t i = 0; i < f->n_tensors; i++) {
                const struct shard_tensor *t = &f->tensors[i];
                _cleanup_free_ char *where = NULL;
                size_t n = 0, len = 0;
                FILE *text = open_memstream(&where, &len);

                if (!text)
                        return;
                for (size_t k = 0; k < checkpoint_manifest_shards(f->manifest); k++) {
                        const struct shard_tensor *x = shard_view_find(checkpoint_reader_view(f->reader, k), t->name);

                        if (x)
                                fprintf(text, "%s%s: %s", n++ ? "; " : "", checkpoint_manifest_shard(f->manifest, k).file, shard_slice_text(x, slice));
                }
                fclose(text);
                sheet_add(s, "%s", t->name);
                sheet_add(s, "%s", shard_dtype_text(t->dtype));
                sheet_add(s, "%s", text_shape(shape, t->rows, t->cols));
                sheet_add(s, "%zu", n);
                sheet_add(s, "%s", where);
        }
        sheet_print(s, c->format == FORMAT_WIDE, stdout);
}

int checkpoint_show_run(struct ctl *c, int n, char **args) {
        _cleanup_(checkpoint_files_close) struct checkpoint_files f = { 0 };
        _cleanup_json_ json_t *o = NULL;
        struct error e;

        if (checkpoint_files_open(c, args[0], &f, &e) < 0)
                return ctl_fail(&e);
        if (c->format == FORMAT_JSON || c->format == FORMAT_YAML) {
                o = checkpoint_json(&f);
                print_object(c, o);
        } else if (c->format == FORMAT_NAME) {
                for (size_t i = 0; i < f.n_tensors; i++) {
                        print_text(stdout, f.tensors[i].name);
                        putchar('\n');
                }
        } else {
                print_head(&f);
                print_tensors(c, &f);
        }
        return EXIT_DONE;
}
