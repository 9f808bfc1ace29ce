/* SPDX-License-Identifier: Apache-2.0 */
/* A Hugging Face folder's JSON. The first byte chooses: 'i' model.safetensors.index.json, 'c' config.json. What is accepted is consistent in itself. */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "format/hf.h"
#include "fuzz.h"
#include "proto/job_spec.h"

static const char index_seed[] = "i{\"metadata\":{\"total_size\":48},\"weight_map\":{\"model.norm.weight\":\"model-00002-of-00002.safetensors\",\"lm_head.weight\":\"model-00001-of-00002.safetensors\","
                                 "\"model.embed_tokens.weight\":\"model-00001-of-00002.safetensors\"}}";
static const char outside_seed[] = "i{\"weight_map\":{\"a\":\"../b\",\"c\":\"/d\",\"e\":\".f\",\"g\":\"h\\u0000\"}}";
static const char config_seed[] = "c{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_act\":\"silu\",\"vocab_size\":256,\"hidden_size\":64,\"intermediate_size\":128,"
                                  "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0,\"rope_scaling\":null,"
                                  "\"tie_word_embeddings\":true,\"torch_dtype\":\"bfloat16\",\"head_dim\":null}";
static const char huge_seed[] = "c{\"vocab_size\":9223372036854775807,\"hidden_size\":4611686018427387904,\"intermediate_size\":1e18,\"num_hidden_layers\":512,\"num_attention_heads\":4294967296,"
                                "\"head_dim\":4294967296}";

/* Found by libFuzzer: a head_dim that was derived had no bounds, and was refused when it was read back. */
static const char derived_seed[] = "c{\"vocab_size\":256,\"hidden_size\":80964,\"intermediate_size\":128,\"num_hidden_layers\":2,\"num_attention_heads\":4}";

const struct fuzz_seed fuzz_seeds[] = { { index_seed, sizeof(index_seed) - 1 }, { outside_seed, sizeof(outside_seed) - 1 }, { config_seed, sizeof(config_seed) - 1 },
                                        { huge_seed, sizeof(huge_seed) - 1 }, { derived_seed, sizeof(derived_seed) - 1 } };
const size_t fuzz_seeds_n = ARRAY_SIZE(fuzz_seeds);

static void check_error(const struct error *e) {
        if (e->code >= 0 || !e->text[0] || strchr(e->text, '\n'))
                abort();
}

static void parse_index(const char *text, size_t len) {
        struct hf_index *x = NULL;
        struct error e = { 0 };

        if (hf_index_parse(text, len, &x, &e) < 0) {
                check_error(&e);
                return;
        }
        for (size_t i = 0; i < hf_index_tensors(x); i++) {
                const char *file = hf_index_file(x, i);
                bool listed = false;

                if (strchr(file, '/') || file[0] == '.' || !file[0] || !hf_index_name(x, i)[0] || (i > 0 && strcmp(hf_index_name(x, i - 1), hf_index_name(x, i)) >= 0))
                        abort();
                for (size_t k = 0; k < hf_index_files(x) && !listed; k++)
                        listed = strcmp(hf_index_file_name(x, k), file) == 0;
                if (!listed)
                        abort();
        }
        hf_index_free(x);
}

static void parse_config(const char *text, size_t len) {
        struct model_config m, again;
        _cleanup_free_ char *json = NULL;
        struct error e = { 0 };
        char name[256];
        int64_t rows, cols;

        if (model_config_from_json(text, len, "config.json", &m, &e) < 0) {
                check_error(&e);
                return;
        }
        if (model_parameters(&m) <= 0 || model_tensors(&m) < 11)
                abort();
        for (int64_t i = 0; i < model_tensors(&m); i++) {
                model_tensor(&m, i, name, sizeof(name), &rows, &cols);
                if (rows < 1 || cols < 1 || !name[0])
                        abort();
        }
        if (model_config_to_json(&m, &json, NULL) < 0 || model_config_from_json(json, strlen(json), "config.json", &again, &e) < 0 || memcmp(&m, &again, sizeof(m)) != 0)
                abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        if (size > 0 && data[0] == 'i')
                parse_index((const char *)data + 1, size - 1);
        else if (size > 0)
                parse_config((const char *)data + 1, size - 1);
        return 0;
}
