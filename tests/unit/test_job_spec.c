/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>

#include "proto/job_spec.h"
#include "scratch.h"
#include "test.h"

/* A job that is right; cases below append to it (their lines begin at 10) or replace it. */
#define GOOD                       \
        "name: test\n"             \
        "model:\n"                 \
        "  preset: tiny\n"         \
        "data:\n"                  \
        "  path: text.txt\n"       \
        "  seq_len: 128\n"         \
        "train: {steps: 100}\n"    \
        "checkpoint:\n"            \
        "  dir: /ckpt\n"
#define SIZES "model: {vocab_size: 256, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 4, num_attention_heads: 4"
#define REST "}\nname: t\ndata: {path: /x, seq_len: 128}\ntrain: {steps: 10}\ncheckpoint: {dir: /c}\n"
/* The same without `train` and `data`. */
#define HEAD "name: t\nmodel: {preset: tiny}\ncheckpoint: {dir: /c}\n"
#define DATA "data: {path: /x, seq_len: 128}\n"

static int parse(const char *text, struct job_spec **ret, struct error *e) {
        return job_spec_parse(text, strlen(text), "job.yaml", "/base", ret, e);
}

TEST(defaults) {
        struct job_spec *s;
        uint64_t snapshots;
        struct error e;

        ASSERT_OK(parse(GOOD, &s, &e), e);
        CU_ASSERT_EQUAL(s->version, 1);
        CU_ASSERT_STRING_EQUAL(s->name, "test");
        CU_ASSERT_STRING_EQUAL(s->data.path, "/base/text.txt");
        CU_ASSERT_STRING_EQUAL(s->checkpoint.dir, "/ckpt");
        CU_ASSERT_EQUAL(s->model.hidden_size, 128);
        CU_ASSERT_EQUAL(s->parallel.tp * s->parallel.pp * s->parallel.dp, 1);
        CU_ASSERT_FALSE(s->parallel.sequence_parallel);
        CU_ASSERT_EQUAL(s->train.global_batch, 1);
        CU_ASSERT_EQUAL(s->precision.recipe, RECIPE_BLOCK);
        CU_ASSERT_EQUAL(s->precision.amax_history, 1024);
        CU_ASSERT_EQUAL(s->optimizer.lr, 3e-4);
        CU_ASSERT_EQUAL(s->optimizer.min_lr, 3e-5);
        CU_ASSERT_EQUAL(s->optimizer.beta2, 0.95);
        CU_ASSERT_EQUAL(s->optimizer.warmup_steps, 5);
        CU_ASSERT_EQUAL(s->optimizer.decay_steps, 0);
        CU_ASSERT_EQUAL(s->recovery.same_cause_limit, 3);
        CU_ASSERT_EQUAL(s->recovery.max_restarts, -1);
        CU_ASSERT_EQUAL(s->checkpoint.replica_every, 1);
        CU_ASSERT_TRUE(s->checkpoint.at_end && s->data.pack);
        CU_ASSERT_EQUAL(s->test.overflow_step, -1);
        CU_ASSERT_EQUAL(s->test.kill_step, -1);
        CU_ASSERT_FALSE(job_spec_uses_test_hooks(s));
        /* Four generations of FP32 master weights and two FP32 moments. */
        CU_ASSERT_TRUE(job_spec_bytes_per_rank(s, &snapshots) > (uint64_t)model_parameters(&s->model) * 16 + snapshots);
        CU_ASSERT_TRUE(snapshots >= (uint64_t)model_parameters(&s->model) * 12 * 4);
        job_spec_free(s);
}

TEST(every_value_is_taken) {
        struct job_spec *s;
        struct error e;

        ASSERT_OK(parse("version: 1\nname: a.b-c_1\nmodel: {preset: tiny, num_hidden_layers: 8, tie_word_embeddings: true}\n"
                        "data: {path: ./x, format: text, seq_len: 64, validation_split: 0.1, seed: 9, pack: false}\n"
                        "parallel: {tp: 2, pp: 2, dp: 2}\n"
                        "train: {steps: 50, micro_batch: 2, global_batch: 16, recompute: [5, 0]}\n"
                        "precision: {recipe: delayed, pow2_scales: all, moments: bf16, loss_scale: gentle, on_overflow: stop}\n"
                        "optimizer: {lr: 1e-3, schedule: wsd, groups: [{match: '*.q_proj.*', lr_scale: 0.5}, {weight_decay: 0, match: '*'}]}\n"
                        "checkpoint: {dir: out}\ntest: {kill_step: 7, kill_rank: 3, kill_point: updated}\n",
                        &s, &e),
                  e);
        CU_ASSERT_EQUAL(s->model.num_hidden_layers, 8);
        CU_ASSERT_EQUAL(s->model.hidden_size, 128);
        CU_ASSERT_TRUE(s->model.tie_word_embeddings);
        CU_ASSERT_STRING_EQUAL(s->data.path, "/base/x");
        CU_ASSERT_EQUAL(s->data.format, DATA_TEXT);
        CU_ASSERT_TRUE(s->parallel.sequence_parallel);
        CU_ASSERT_EQUAL(s->train.n_recompute_layers, 2);
        CU_ASSERT_EQUAL(s->train.recompute_layers[0], 0);
        CU_ASSERT_EQUAL(s->train.recompute_layers[1], 5);
        CU_ASSERT_EQUAL(s->precision.pow2, POW2_ALL);
        CU_ASSERT_EQUAL(s->precision.on_overflow, OVERFLOW_STOP);
        CU_ASSERT_EQUAL(s->optimizer.decay_steps, 10);
        CU_ASSERT_EQUAL_FATAL(s->optimizer.n_groups, 2);
        CU_ASSERT_EQUAL(s->optimizer.groups[0].lr_scale, 0.5);
        CU_ASSERT_TRUE(isnan(s->optimizer.groups[0].weight_decay));
        CU_ASSERT_EQUAL(s->optimizer.groups[1].weight_decay, 0);
        CU_ASSERT_EQUAL(s->optimizer.groups[1].lr_scale, 1);
        CU_ASSERT_TRUE(job_spec_uses_test_hooks(s));
        job_spec_free(s);
}

static const struct {
        const char *text, *message;
} bad[] = {
        /* keys */
        { GOOD "paralel: {tp: 2}\n", "job.yaml:10: key 'paralel': found an unknown key, allowed: did you mean 'parallel'?" },
        { GOOD "parallel:\n  tpp: 2\n", "job.yaml:11: key 'parallel.tpp': found an unknown key, allowed: did you mean 'parallel.tp'? One of tp, pp, dp, sequence_parallel" },
        { GOOD "tp: 2\n", "job.yaml:10: key 'tp': found an unknown key, allowed: did you mean 'parallel.tp'?" },
        { GOOD "zzzzzzzz: 2\n", "job.yaml:10: key 'zzzzzzzz': found an unknown key, allowed: one of version, name, priority, model" },
        { GOOD "<<: {a: 1}\n", "key '<<': found an unknown key" },
        { GOOD "name: again\n", "job.yaml:10: key 'name': found it a second time, allowed: once (it is in line 1)" },
        { GOOD "data: {seed: 1}\n", "job.yaml:10: key 'data': found it a second time, allowed: once (it is in line 4)" },
        { GOOD "parallel: 3\n", "job.yaml:10: key 'parallel': found '3', allowed: a map of keys" },
        { GOOD "parallel:\n", "job.yaml:10: key 'parallel': found nothing, allowed: a map of keys" },
        { "[a]", "job.yaml:1: found a list, allowed: keys and values" },
        { "hello", "job.yaml:1: found a single value" },
        /* missing */
        { "model: {preset: tiny}\n" DATA "checkpoint: {dir: /c}\ntrain: {steps: 1}\n", "job.yaml:1: key 'name': found nothing, allowed: text" },
        { HEAD "data:\n  seq_len: 64\ntrain: {steps: 1}\n", "job.yaml:4: key 'data.path': found nothing, allowed: a path" },
        { HEAD DATA, "key 'train.steps': found nothing, allowed: an integer from 1" },
        { "name: t\n" DATA "train: {steps: 1}\ncheckpoint: {dir: /c}\n", "job.yaml:1: key 'model.vocab_size': found nothing, allowed: an integer; or model.preset or model.config" },
        /* types and ranges */
        { GOOD "parallel:\n  tp: two\n", "job.yaml:11: key 'parallel.tp': found 'two', allowed: an integer from 1 to 64" },
        { GOOD "parallel: {tp: 0}\n", "key 'parallel.tp': found '0', allowed: an integer from 1 to 64" },
        { GOOD "parallel: {tp: 2.0}\n", "key 'parallel.tp': found '2.0'" },
        { GOOD "parallel: {tp: 0x2}\n", "key 'parallel.tp': found '0x2'" },
        { GOOD "parallel: {tp: '2'}\n", "key 'parallel.tp': found a quoted text" },
        { GOOD "parallel: {tp: [2]}\n", "key 'parallel.tp': found a list" },
        { GOOD "parallel: {tp: {a: 1}}\n", "key 'parallel.tp': found a map" },
        { GOOD "parallel: {tp: 99999999999999999999}\n", "key 'parallel.tp': found '99999999999999999999'" },
        { GOOD "parallel: {sequence_parallel: yes}\n", "key 'parallel.sequence_parallel': found 'yes', allowed: true or false" },
        { GOOD "precision: {recipe: fp4}\n", "key 'precision.recipe': found 'fp4', allowed: one of block, delayed, tensor, bf16, fp32" },
        { GOOD "optimizer: {lr: 0}\n", "key 'optimizer.lr': found '0', allowed: a number above 0 up to 10" },
        { GOOD "optimizer: {lr: .nan}\n", "key 'optimizer.lr': found '.nan'" },
        { GOOD "optimizer: {lr: 1e-3x}\n", "key 'optimizer.lr': found '1e-3x'" },
        { GOOD "optimizer: {beta1: 1}\n", "key 'optimizer.beta1': found '1', allowed: a number from 0 to 0.9999" },
        { GOOD "version: 2\n", "key 'version': found '2', allowed: 1" },
        { GOOD "test: {kill_point: lunch}\n", "key 'test.kill_point': found 'lunch', allowed: one of forward, agreed" },
        { GOOD "metrics: {digests: 1}\n", "key 'metrics.digests': found '1', allowed: true or false" },
        { "name: -x\nmodel: {preset: tiny}\n" DATA "train: {steps: 1}\ncheckpoint: {dir: /c}\n", "job.yaml:1: key 'name': found '-x', allowed: 1 to 63 letters" },
        { "name: a/b\nmodel: {preset: tiny}\n" DATA "train: {steps: 1}\ncheckpoint: {dir: /c}\n", "key 'name': found 'a/b'" },
        { "name: ''\nmodel: {preset: tiny}\n" DATA "train: {steps: 1}\ncheckpoint: {dir: /c}\n", "key 'name': found ''" },
        /* lists */
        { HEAD DATA "train: {steps: 1, recompute: some}\n", "key 'train.recompute': found 'some', allowed: none, all, or a list of layer numbers" },
        { HEAD DATA "train: {steps: 1, recompute: [4]}\n", "key 'train.recompute': found a list, allowed: layer numbers from 0 to 3" },
        { HEAD DATA "train: {steps: 1, recompute: [1, 1]}\n", "each layer once (1 is in it twice)" },
        { HEAD DATA "train: {steps: 1, recompute: [x]}\n", "key 'train.recompute': found 'x'" },
        { GOOD "optimizer:\n  groups:\n  - {match: a, lr: 3}\n", "job.yaml:12: key 'optimizer.groups[0].lr': found an unknown key, allowed: match, lr_scale, weight_decay" },
        { GOOD "optimizer:\n  groups:\n  - {match: a}\n  - {lr_scale: 3}\n", "job.yaml:13: key 'optimizer.groups[1].match': found nothing" },
        { GOOD "optimizer: {groups: [{match: a, match: b}]}\n", "found it twice" },
        { GOOD "optimizer: {groups: [3]}\n", "key 'optimizer.groups': found '3'" },
        { GOOD "optimizer: {groups: {match: a}}\n", "found a map, allowed: a list of at most 16 maps" },
        { GOOD "optimizer: {groups: [{match: a, lr_scale: -1}]}\n", "key 'optimizer.groups[0].lr_scale': found '-1'" },
        /* models */
        { "model: {preset: huge}\nname: t\n" DATA "train: {steps: 1}\ncheckpoint: {dir: /c}\n", "job.yaml:1: key 'model.preset': found 'huge', allowed: one of tiny, ddp-1m, gpt2-162m, llama-1b, llama-8b" },
        { "model: {preset: tiny, config: x}\nname: t\n" DATA "train: {steps: 1}\ncheckpoint: {dir: /c}\n", "found it beside model.preset" },
        { "model: {config: /nowhere.json}\nname: t\n" DATA "train: {steps: 1}\ncheckpoint: {dir: /c}\n", "job.yaml:1: key 'model.config': cannot open '/nowhere.json'" },
        { SIZES ", num_key_value_heads: 3" REST, "key 'model.num_key_value_heads': found '3', allowed: a divisor of model.num_attention_heads (4)" },
        { SIZES ", head_dim: 15" REST, "key 'model.head_dim': found '15', allowed: an even number" },
        { "model: {vocab_size: 256, hidden_size: 66, intermediate_size: 128, num_hidden_layers: 4, num_attention_heads: 4" REST, "key 'model.hidden_size': found '66', allowed: a multiple of model.num_attention_heads (4)" },
        { "model: {vocab_size: 256, hidden_size: 12, intermediate_size: 128, num_hidden_layers: 4, num_attention_heads: 4" REST, "key 'model.hidden_size': found '12', allowed: an even multiple" },
        { "model: {vocab_size: 256, hidden_size: 8192, intermediate_size: 128, num_hidden_layers: 4, num_attention_heads: 4" REST, "key 'model.hidden_size': found '8192', allowed: at most 1024 * model.num_attention_heads (4)" },
        { "model: {vocab_size: 256, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 4" REST, "key 'model.num_attention_heads': found nothing" },
        /* layouts */
        { GOOD "parallel:\n  tp: 3\n", "job.yaml:11: key 'parallel.tp': found '3', allowed: a divisor of model.num_attention_heads (4)" },
        { GOOD "parallel: {tp: 4}\n", "key 'parallel.tp': found '4', allowed: a divisor of model.num_key_value_heads (2)" },
        { SIZES REST "parallel:\n  pp: 3\n", "job.yaml:7: key 'parallel.pp': found '3', allowed: a divisor of model.num_hidden_layers (4)" },
        { GOOD "parallel: {pp: 8}\n", "key 'parallel.pp': found '8', allowed: a divisor of model.num_hidden_layers (4)" },
        { "model: {vocab_size: 257, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 4, num_attention_heads: 4" REST "parallel: {tp: 2}\n",
          "job.yaml:1: key 'model.vocab_size': found '257', allowed: a multiple of parallel.tp (2); pad it to 258" },
        { "model: {vocab_size: 256, hidden_size: 64, intermediate_size: 129, num_hidden_layers: 4, num_attention_heads: 4" REST "parallel: {tp: 2}\n", "a divisor of model.intermediate_size (129)" },
        { GOOD "parallel: {dp: 4096, tp: 2}\n", "key 'parallel.dp': found '4096', allowed: so much that tp (2) * pp (1) * dp is at most 4096" },
        { HEAD "train: {steps: 1}\nparallel: {tp: 2}\ndata:\n  path: /x\n  seq_len: 127\n", "job.yaml:8: key 'data.seq_len': found '127', allowed: a multiple of parallel.tp (2) with parallel.sequence_parallel" },
        { HEAD "train: {steps: 1}\ndata: {path: /x, seq_len: 2048}\n", "key 'data.seq_len': found '2048', allowed: at most model.max_position_embeddings (1024)" },
        /* the rest */
        { HEAD DATA "parallel: {dp: 2}\ntrain:\n  steps: 1\n  micro_batch: 2\n  global_batch: 6\n", "job.yaml:9: key 'train.global_batch': found '6', allowed: a multiple of train.micro_batch * parallel.dp (2 * 2 = 4)" },
        { HEAD "train: {steps: 1, micro_batch: 65536}\nmodel_: 1\n", "key 'model_': found an unknown key" },
        { GOOD "precision: {bf16_first_layers: 3, bf16_last_layers: 2}\n", "key 'precision.bf16_last_layers': found '2'" },
        { GOOD "precision: {moments: bf16}\noptimizer: {beta2: 0.99}\n", "job.yaml:10: key 'precision.moments': found 'bf16', allowed: fp32, or optimizer.beta2 of at most 0.95 (it is 0.99)" },
        { GOOD "optimizer: {lr: 1e-4, min_lr: 2e-4}\n", "key 'optimizer.min_lr': found '0.0002', allowed: at most optimizer.lr (0.0001)" },
        { GOOD "optimizer: {warmup_steps: 101}\n", "key 'optimizer.warmup_steps': found '101', allowed: at most train.steps (100)" },
        { GOOD "optimizer: {decay_steps: 10}\n", "allowed: 0, or optimizer.schedule: wsd" },
        { GOOD "optimizer: {schedule: wsd, warmup_steps: 50, decay_steps: 51}\n", "key 'optimizer.decay_steps': found '51'" },
        { GOOD "precision: {loss_scale_init: 0.5}\n", "allowed: 0, or at least 1" },
        { GOOD "test: {overflow_step: 3}\n", "key 'test.overflow_tensor': found nothing" },
        { GOOD "test: {overflow_rank: 1}\n", "a rank from 0 to 0" },
        { GOOD "test: {kill_step: 3}\n", "key 'test.kill_rank': found '-1', allowed: a rank from 0 to 0, since" },
        { GOOD "test: {kill_step: 3, kill_rank: 0}\n", "key 'test.kill_point': found nothing" },
        { GOOD "test: {kill_rank: 1}\n", "key 'test.kill_rank': found '1'" },
};

TEST(refusals_name_file_line_key_found_and_allowed) {
        struct job_spec *s = NULL;
        struct error e;

        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                e.text[0] = 0;
                ASSERT_ERROR(parse(bad[i].text, &s, &e), -EINVAL, e, bad[i].message);
                CU_ASSERT_PTR_NULL(strchr(e.text, '\n'));
        }
        CU_ASSERT_PTR_NULL(s);
}

TEST(paths_without_a_folder_must_be_absolute) {
        static const char config[] = "name: t\nmodel: {config: /etc/passwd}\n" DATA "train: {steps: 1}\ncheckpoint: {dir: /c}\n";
        struct job_spec *s = NULL;
        struct error e;

        ASSERT_ERROR(job_spec_parse(GOOD, strlen(GOOD), "submitted", NULL, &s, &e), -EINVAL, e, "submitted:5: key 'data.path': found 'text.txt', allowed: an absolute path");
        /* and nobody's files are read for a text that came over the network */
        ASSERT_ERROR(job_spec_parse(config, strlen(config), "submitted", NULL, &s, &e), -EINVAL, e, "key 'model.config': found a path");
}

TEST(canonical_json_is_stable_and_complete) {
        _cleanup_scratch_ struct scratch dir = scratch_new();
        _cleanup_free_ char *a = NULL, *b = NULL;
        struct job_spec *s, *again;
        struct error e;

        scratch_text(&dir, "config.json", "{\"vocab_size\": 256, \"hidden_size\": 64, \"intermediate_size\": 128, \"num_hidden_layers\": 4,\n\"num_attention_heads\": 4, \"rms_norm_eps\": 1.1e-6}");
        const char text[] = "name: \"t\"\nmodel: {config: config.json, rope_theta: 12345.678}\ndata: {path: 'd\xc3\xa9j\xc3\xa0', seq_len: 128}\ntrain: {steps: 10, recompute: all}\n"
                            "checkpoint: {dir: c}\noptimizer: {lr: 0.1234567890123456, groups: [{match: 'a\"b', weight_decay: 0.3}]}\ntest: {overflow_step: 1, overflow_tensor: x}\n";
        ASSERT_OK(job_spec_parse(text, strlen(text), "j", dir.dir, &s, &e), e);
        CU_ASSERT_EQUAL(s->model.rms_norm_eps, 1.1e-6);
        ASSERT_OK(job_spec_to_json(s, &a, &e), e);
        ASSERT_OK(file_remove_tree(dir.path, &e), e); /* what was read is in it */
        ASSERT_OK(job_spec_parse(a, strlen(a), "json", NULL, &again, &e), e);
        ASSERT_OK(job_spec_to_json(again, &b, &e), e);
        CU_ASSERT_STRING_EQUAL(a, b);
        CU_ASSERT_EQUAL(memcmp(&s->model, &again->model, sizeof(s->model)), 0);
        CU_ASSERT_EQUAL(memcmp(&s->train, &again->train, sizeof(s->train)), 0);
        CU_ASSERT_EQUAL(memcmp(&s->precision, &again->precision, sizeof(s->precision)), 0);
        CU_ASSERT_EQUAL(s->optimizer.lr, again->optimizer.lr);
        CU_ASSERT_STRING_EQUAL(s->optimizer.groups[0].match, again->optimizer.groups[0].match);
        CU_ASSERT_STRING_EQUAL(s->data.path, again->data.path);
        CU_ASSERT_PTR_NULL(strstr(a, "config.json"));
        job_spec_free(s);
        job_spec_free(again);
}

TEST(too_long_a_file) {
        _cleanup_free_ char *text = calloc(1, JOB_FILE_MAX + 2);
        struct job_spec *s = NULL;
        struct error e;

        memset(text, '#', JOB_FILE_MAX + 1);
        ASSERT_ERROR(parse(text, &s, &e), -EFBIG, e, "job.yaml:1: found 262145 bytes");
}

TEST(memory_shrinks_with_the_layout) {
        static const char *const layouts[] = { "{}", "{dp: 2}", "{tp: 2, dp: 2}", "{tp: 2, pp: 2, dp: 2}", NULL };
        uint64_t last = UINT64_MAX, bytes, snapshots;

        for (const char *const *l = layouts; *l; l++) {
                struct job_spec *s;
                struct error e;
                char text[512];

                snprintf(text, sizeof(text), "name: t\nmodel: {preset: llama-1b}\ndata: {path: /x, seq_len: 2048}\ntrain: {steps: 1}\ncheckpoint: {dir: /c}\nparallel: %s\n", *l);
                ASSERT_OK(parse(text, &s, &e), e);
                bytes = job_spec_bytes_per_rank(s, &snapshots);
                CU_ASSERT_TRUE(bytes < last && snapshots < bytes);
                last = bytes;
                job_spec_free(s);
        }
        CU_ASSERT_TRUE(last > 3e9 && last < 20e9);
}

TEST(the_documentation_is_the_table) {
        const char *root = getenv("SOURCE_ROOT");
        _cleanup_free_ char *path = file_path("%s/docs/job-file.md", root ? root : "."), *file = NULL, *text = NULL;
        size_t file_len = 0, len = 0;
        struct error e;
        FILE *f;

        ASSERT_OK(file_read(path, 1 << 20, &file, &file_len, &e), e);
        f = open_memstream(&text, &len);
        CU_ASSERT_EQUAL(job_schema_print_markdown(f), 0);
        fclose(f);
        if (strcmp(file, text) != 0)
                printf("    docs/job-file.md is old: ninja job-file-md\n");
        CU_ASSERT_STRING_EQUAL(file, text);
}

TEST(names) {
        CU_ASSERT_STRING_EQUAL(job_recipe_name(RECIPE_BLOCK), "block");
        CU_ASSERT_STRING_EQUAL(job_recipe_name(RECIPE_FP32), "fp32");
        CU_ASSERT_STRING_EQUAL(job_recipe_name((enum job_recipe)77), "unknown");
}

TEST_MAIN("job_spec")
