/* SPDX-License-Identifier: Apache-2.0 */
/* ckpt verify: everything is read; each bad shard is named, the tensor in it where that can be told, and tensors that are not whole. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "ctl/checkpoint.h"
#include "ctl/handlers.h"
#include "ctl/print.h"

struct finding {
        char *tensor; /* or NULL: not known, or the header */
        char *text;   /* NULL: the shard is whole */
};

struct verification {
        char *folder;
        struct checkpoint_manifest *m;
        struct finding *findings; /* [shards] */
        size_t n_bad, n_tensors;
        uint64_t bytes;
        struct error gap; /* shards are whole, and yet something is missing */
};

static void verification_clear(struct verification *v) {
        for (size_t i = 0; v->findings && i < checkpoint_manifest_shards(v->m); i++) {
                free(v->findings[i].tensor);
                free(v->findings[i].text);
        }
        free(v->findings);
        checkpoint_manifest_free(v->m);
        free(v->folder);
}

static void verify_shards(struct verification *v) {
        struct byte_progress p;

        for (size_t i = 0; i < checkpoint_manifest_shards(v->m); i++)
                v->bytes += checkpoint_manifest_shard(v->m, i).bytes;
        byte_progress_begin(&p, "verify", v->bytes);
        for (size_t i = 0; i < checkpoint_manifest_shards(v->m); i++) {
                struct error e = { 0 };

                if (checkpoint_verify_shard(v->folder, v->m, i, byte_progress_add, &p, &e) == 0)
                        continue;
                v->n_bad++;
                v->findings[i].text = strdup(e.text);
                (void)checkpoint_bad_tensor(v->folder, v->m, i, &v->findings[i].tensor, NULL);
        }
        byte_progress_end(&p);
}

/* With every shard whole: are there all parts of every tensor? */
static int verify_cover(struct verification *v, struct error *e) {
        struct checkpoint_reader *reader = NULL;
        struct shard_tensor *list = NULL;
        int r = checkpoint_reader_open(v->folder, v->m, &reader, e);

        if (r == 0)
                r = checkpoint_reader_tensors(reader, &list, &v->n_tensors, e);
        for (size_t i = 0; i < v->n_tensors && r == 0; i++)
                r = checkpoint_reader_covers(reader, &list[i], e);
        if (r == 0 && v->n_tensors == 0)
                r = error_set(e, -ENODATA, "%s: found no tensor in its shards", v->folder);
        free(list);
        checkpoint_reader_free(reader);
        return r;
}

static json_t *verification_json(const struct verification *v, bool ok) {
        json_t *shards = json_array();

        for (size_t i = 0; i < checkpoint_manifest_shards(v->m); i++) {
                struct checkpoint_shard s = checkpoint_manifest_shard(v->m, i);
                const struct finding *f = &v->findings[i];

                json_array_append_new(shards, json_pack("{s:s, s:I, s:i, s:b, s:s?, s:s?}", "file", s.file, "bytes", (json_int_t)s.bytes, "rank", s.rank, "ok", f->text == NULL, "tensor",
                                                        f->tensor, "error", f->text));
        }
        return json_pack("{s:i, s:s, s:b, s:I, s:I, s:I, s:o, s:s?}", "v", CTL_JSON_VERSION, "path", v->folder, "ok", ok, "step", (json_int_t)checkpoint_manifest_step(v->m), "bytes",
                         (json_int_t)v->bytes, "tensors", (json_int_t)v->n_tensors, "shards", shards, "error", v->gap.text[0] ? v->gap.text : NULL);
}

static void print_verification(const struct ctl *c, const struct verification *v, bool ok) {
        static const struct sheet_column columns[] = { { "SHARD", false, false, false }, { "SIZE", true, false, false }, { "STATE", false, false, true }, { "TENSOR", false, false, false } };
        char size[TEXT_BUF];

        if (ok && c->format == FORMAT_TABLE) {
                printf("%s: whole: step %" PRIu64 ", %zu shards, %zu tensors, %s\n", v->folder, checkpoint_manifest_step(v->m), checkpoint_manifest_shards(v->m), v->n_tensors,
                       text_bytes(size, v->bytes));
                return;
        }
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));

        for (size_t i = 0; i < checkpoint_manifest_shards(v->m); i++) {
                struct checkpoint_shard x = checkpoint_manifest_shard(v->m, i);
                const struct finding *f = &v->findings[i];

                sheet_add(s, "%s", x.file);
                sheet_add(s, "%s", text_bytes(size, x.bytes));
                sheet_add(s, "%s", f->text ? "bad" : "ok");
                sheet_add(s, "%s", f->tensor ? f->tensor : "");
        }
        sheet_print(s, c->format == FORMAT_WIDE, stdout);
}

static int report(const struct ctl *c, const struct verification *v) {
        bool ok = v->n_bad == 0 && !v->gap.text[0];
        _cleanup_json_ json_t *o = NULL;

        if (c->format == FORMAT_JSON || c->format == FORMAT_YAML) {
                o = verification_json(v, ok);
                print_object(c, o);
        } else
                print_verification(c, v, ok);
        fflush(stdout);
        for (size_t i = 0; i < checkpoint_manifest_shards(v->m); i++)
                if (v->findings[i].text) {
                        fprintf(stderr, "fp8ctl: %s%s%s\n", v->findings[i].text, v->findings[i].tensor ? "; bad in it: " : "", v->findings[i].tensor ? v->findings[i].tensor : "");
                }
        if (v->gap.text[0])
                fprintf(stderr, "fp8ctl: %s\n", v->gap.text);
        return ok ? EXIT_DONE : EXIT_FAILED;
}

int checkpoint_verify_run(struct ctl *c, int n, char **args) {
        _cleanup_(verification_clear) struct verification v = { 0 };
        struct error e;

        if (checkpoint_find(c, args[0], &v.folder, &e) < 0 || checkpoint_manifest_read(v.folder, &v.m, &e) < 0)
                return ctl_fail(&e);
        v.findings = calloc(checkpoint_manifest_shards(v.m), sizeof(*v.findings));
        if (!v.findings) {
                error_set(&e, -ENOMEM, "no memory");
                return ctl_fail(&e);
        }
        verify_shards(&v);
        if (v.n_bad == 0)
                (void)verify_cover(&v, &v.gap);
        return report(c, &v);
}
