/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "base/cleanup.h"
#include "proto/job_spec.h"
#include "test.h"

static const char llama[] = "{\n"
                            "\t\"architectures\": [\"LlamaForCausalLM\"],\n"
                            "\t\"attention_bias\": false, \"hidden_act\": \"silu\", \"rope_scaling\": null, \"torch_dtype\": \"bfloat16\",\n"
                            "\t\"hidden_size\": 4096,\n"
                            "\t\"intermediate_size\": 14336, \"num_attention_heads\": 32, \"num_hidden_layers\": 32, \"num_key_value_heads\": 8,\n"
                            "\t\"max_position_embeddings\": 8192, \"rms_norm_eps\": 1e-05, \"rope_theta\": 500000.0, \"vocab_size\": 128256,\n"
                            "\t\"tie_word_embeddings\": false, \"some_list\": [1, {\"x\": 2}]\n"
                            "}\n";

static int parse(const char *text, struct model_config *ret, struct error *e) {
        return model_config_from_json(text, strlen(text), "config.json", ret, e);
}

TEST(reads_hugging_face) {
        struct model_config m, back;
        _cleanup_free_ char *json = NULL;
        struct error e;

        ASSERT_OK(parse(llama, &m, &e), e);
        CU_ASSERT_EQUAL(m.head_dim, 128);
        CU_ASSERT_EQUAL(m.rope_theta, 500000);
        CU_ASSERT_EQUAL(m.initializer_range, 0.02);
        CU_ASSERT_EQUAL(model_parameters(&m), 8030261248); /* as Meta's model card counts Llama 3 8B */
        ASSERT_OK(model_preset("llama-8b", &back, &e), e);
        CU_ASSERT_EQUAL(memcmp(&m, &back, sizeof(m)), 0);
        ASSERT_OK(model_config_to_json(&m, &json, &e), e);
        memset(&back, 0, sizeof(back));
        ASSERT_OK(parse(json, &back, &e), e);
        CU_ASSERT_EQUAL(memcmp(&m, &back, sizeof(m)), 0);
}

TEST(refuses_what_it_does_not_compute) {
#define SIZES "\"vocab_size\": 256, \"hidden_size\": 64, \"intermediate_size\": 128, \"num_hidden_layers\": 2, \"num_attention_heads\": 4"
        static const struct {
                const char *text, *message;
        } cases[] = {
                { "{" SIZES ", \"hidden_act\": \"gelu\"}", "config.json:1: key 'hidden_act': found 'gelu', allowed: silu" },
                { "{" SIZES ",\n\"attention_bias\": true}", "config.json:2: key 'attention_bias'" },
                { "{" SIZES ",\n\"rope_scaling\": {\"factor\": 8}}", "key 'rope_scaling': found a map" },
                { "{" SIZES ", \"architectures\": [\"GPT2LMHeadModel\"]}", "found 'GPT2LMHeadModel', allowed: LlamaForCausalLM" },
                { "{" SIZES ", \"architectures\": \"LlamaForCausalLM\"}", "allowed: a list" },
                { "{" SIZES ", \"rope_theta\": \"10000\"}", "key 'rope_theta': found a quoted text, allowed: a number from 1" },
                { "{" SIZES ", \"num_key_value_heads\": 2.0}", "key 'num_key_value_heads': found '2.0', allowed: an integer from 1" },
                { "{\"vocab_size\": 256}", "found a size missing" },
                { "{" SIZES ", \"rope_parameters\": {\"rope_type\": \"yarn\", \"rope_theta\": 5.0}}", "key 'rope_parameters.rope_type': found 'yarn', allowed: default" },
                { "{" SIZES ", \"rope_parameters\": {\"rope_theta\": \"x\"}}", "key 'rope_parameters.rope_theta'" },
                { "{" SIZES ", \"rope_parameters\": [1]}", "key 'rope_parameters'" },
                { "{\"vocab_size\": 256, \"hidden_size\": 66, \"intermediate_size\": 128, \"num_hidden_layers\": 2, \"num_attention_heads\": 4}", "a multiple of num_attention_heads (4)" },
                { "{\"vocab_size\": 256, \"hidden_size\": 80964, \"intermediate_size\": 128, \"num_hidden_layers\": 2, \"num_attention_heads\": 4}", "found '20241', allowed: an even number" },
                { "{" SIZES ", \"num_key_value_heads\": 3}", "found '3', allowed: a divisor of num_attention_heads" },
                { "[1]", "found no object" },
                { "{\"vocab_size\": ", "not YAML" },
        };
        struct model_config m = { .vocab_size = 77 };
        struct error e;

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
                ASSERT_ERROR(parse(cases[i].text, &m, &e), -EINVAL, e, cases[i].message);
        CU_ASSERT_EQUAL(m.vocab_size, 77);
}

TEST(presets_have_their_sizes) {
        static const struct {
                const char *name;
                double least, most;
        } sizes[] = { { "tiny", 0.8e6, 0.9e6 }, { "ddp-1m", 1.25e6, 1.4e6 }, { "gpt2-162m", 161e6, 163e6 }, { "llama-1b", 1.35e9, 1.37e9 }, { "llama-8b", 8.0e9, 8.06e9 } };
        size_t n = 0;
        struct model_config m;
        struct error e;

        for (const char *const *name = model_preset_names(); *name; name++, n++) {
                CU_ASSERT_FATAL(n < ARRAY_SIZE(sizes));
                CU_ASSERT_STRING_EQUAL(*name, sizes[n].name);
                ASSERT_OK(model_preset(*name, &m, &e), e);
                CU_ASSERT_TRUE((double)model_parameters(&m) > sizes[n].least && (double)model_parameters(&m) < sizes[n].most);
                CU_ASSERT_EQUAL(m.num_attention_heads % m.num_key_value_heads, 0);
        }
        CU_ASSERT_EQUAL(n, ARRAY_SIZE(sizes));
        ASSERT_ERROR(model_preset("huge", &m, &e), -EINVAL, e, "'huge'");
}

TEST(rope_parameters_of_newer_files) {
        struct model_config m = { 0 };
        struct error e;

        ASSERT_OK(parse("{" SIZES ", \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 500000.0}}", &m, &e), e);
        CU_ASSERT_EQUAL(m.rope_theta, 500000);
}

/* Every tensor has a name of its own, and together they are the model's parameters. */
TEST(tensors_add_up) {
        for (const char *const *name = model_preset_names(); *name; name++)
                for (int tied = 0; tied < 2; tied++) {
                        char text[256], last[256] = "";
                        int64_t rows, cols, sum = 0;
                        struct model_config m;

                        CU_ASSERT_EQUAL(model_preset(*name, &m, NULL), 0);
                        m.tie_word_embeddings = tied;
                        for (int64_t i = 0; i < model_tensors(&m); i++) {
                                model_tensor(&m, i, text, sizeof(text), &rows, &cols);
                                CU_ASSERT_STRING_NOT_EQUAL(text, last);
                                memcpy(last, text, sizeof(last));
                                sum += rows * cols;
                        }
                        CU_ASSERT_EQUAL(sum, model_parameters(&m));
                        CU_ASSERT_STRING_EQUAL(last, tied ? "model.norm.weight" : "lm_head.weight");
                }
}

TEST(tied_heads_count_once) {
        struct model_config m;
        int64_t untied;

        CU_ASSERT_EQUAL(model_preset("tiny", &m, NULL), 0);
        untied = model_parameters(&m);
        m.tie_word_embeddings = true;
        CU_ASSERT_EQUAL(untied - model_parameters(&m), 256 * 128);
}

TEST_MAIN("model_config")
