/* SPDX-License-Identifier: Apache-2.0 */
/* docs/job-file.md, printed from the table of keys, so that it cannot say anything else than the parser does. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "proto/job_schema.h"
#include "proto/job_spec.h"

static const struct {
        const char *section, *text;
} sections[] = {
        { "", "Top level" },
        { "model", "`model`: a Llama-style transformer (RMSNorm, RoPE, grouped-query attention, SwiGLU)" },
        { "data", "`data`" },
        { "parallel", "`parallel`: how the model is laid over devices" },
        { "train", "`train`" },
        { "precision", "`precision`: what is computed in FP8, and what happens on overflow" },
        { "optimizer", "`optimizer`: AdamW with FP32 master weights" },
        { "checkpoint", "`checkpoint`" },
        { "recovery", "`recovery`" },
        { "nccl", "`nccl`: how GPUs talk to each other, for jobs on GPUs of more than one rank" },
        { "metrics", "`metrics`" },
        { "test", "`test`: faults on purpose, refused unless fp8d runs with `--allow-test-hooks`" },
};

static const char *const type_names[] = { [KEY_INT] = "integer", [KEY_I64] = "integer", [KEY_F64] = "number", [KEY_BOOL] = "boolean", [KEY_STRING] = "text",
                                          [KEY_PATH] = "path", [KEY_CHOICE] = "word", [KEY_LAYERS] = "word or list", [KEY_GROUPS] = "list of maps" };

static void print_row(FILE *f, const char *prefix, const struct job_key *k) {
        char allowed[384];

        job_key_allowed(k, allowed, sizeof(allowed));
        fprintf(f, "| `%s%s` | %s | ", prefix, k->path, type_names[k->type]);
        if (k->required)
                fputs("required", f);
        else if (k->def)
                fprintf(f, "`%s`", k->def);
        else
                fputs(k->derived ? k->derived : "none", f);
        fprintf(f, " | %s | %s |\n", allowed, k->doc);
}

static void print_head(FILE *f) {
        fputs("\n| key | type | default | allowed | meaning |\n|---|---|---|---|---|\n", f);
}

static void print_presets(FILE *f) {
        fputs("\n### Presets\n\n| preset | parameters | vocabulary | hidden | intermediate | layers | heads | key-value heads | positions |\n"
              "|---|---|---|---|---|---|---|---|---|\n",
              f);
        for (const char *const *name = model_preset_names(); *name; name++) {
                struct model_config m;

                if (model_preset(*name, &m, NULL) < 0)
                        continue;
                fprintf(f, "| `%s` | %.4g million | %" PRId64 " | %" PRId64 " | %" PRId64 " | %" PRId64 " | %" PRId64 " | %" PRId64 " | %" PRId64 " |\n", *name,
                        (double)model_parameters(&m) / 1e6, m.vocab_size, m.hidden_size, m.intermediate_size, m.num_hidden_layers, m.num_attention_heads,
                        m.num_key_value_heads, m.max_position_embeddings);
        }
}

int job_schema_print_markdown(void *file) {
        FILE *f = file;

        fputs("<!-- Made from the table in proto/job_schema.c by `job-file-doc`; a test compares them. Change the table, then run `ninja -C build job-file-md`. -->\n"
              "# The job file\n\n"
              "A job is described by one YAML file (JSON is accepted: it is YAML) of at most 256 KiB. Unknown keys, wrong types, keys given twice, anchors, aliases and tags are\n"
              "refused with one line, `FILE:LINE: key 'parallel.tp': found '3', allowed: a divisor of model.num_attention_heads (4)`, and exit status 2; nothing is changed then.\n"
              "Numbers are decimal; booleans are `true` and `false`; relative paths are taken from the job file's folder.\n"
              "`fp8ctl submit --dry-run` checks a file without submitting it.\n",
              f);
        for (size_t i = 0; i < sizeof(sections) / sizeof(sections[0]); i++) {
                size_t len = strlen(sections[i].section);

                fprintf(f, "\n## %s\n", sections[i].text);
                print_head(f);
                for (size_t k = 0; k < job_keys_n; k++) {
                        const char *path = job_keys[k].path;

                        if (len ? strncmp(path, sections[i].section, len) == 0 && path[len] == '.' : !strchr(path, '.'))
                                print_row(f, "", &job_keys[k]);
                }
                if (strcmp(sections[i].section, "model") == 0)
                        print_presets(f);
                if (strcmp(sections[i].section, "optimizer") == 0) {
                        fputs("\nKeys of each entry of `optimizer.groups`:\n", f);
                        print_head(f);
                        for (size_t k = 0; k < job_group_keys_n; k++)
                                print_row(f, "", &job_group_keys[k]);
                }
        }
        return ferror(f) ? -1 : 0;
}
