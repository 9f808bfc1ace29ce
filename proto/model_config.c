/* SPDX-License-Identifier: Apache-2.0 */
/* Models: named presets, Hugging Face's config.json, and what follows from their sizes. */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "proto/job_parse.h"
#include "proto/job_schema.h"
#include "proto/replica.h"
#include "proto/job_spec.h"
#include "proto/yaml_tree.h"

DEFINE_CLEANUP(struct yaml_node *, yaml_tree_free);

struct preset {
        const char *name;
        struct model_config config;
};

static const struct preset presets[] = {
        /* For a laptop and for tests: bytes, every layer kind, divisible by tp 2, pp 4. */
        { "tiny",
          { .vocab_size = 256, .hidden_size = 128, .intermediate_size = 384, .num_hidden_layers = 4, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 32,
            .max_position_embeddings = 1024, .rms_norm_eps = 1e-5, .rope_theta = 10000, .initializer_range = 0.02 } },
        /* The size of the recovery benchmark's peer: a byte model of 6 layers, 128 wide, 4 heads. */
        { "ddp-1m",
          { .vocab_size = 256, .hidden_size = 128, .intermediate_size = 384, .num_hidden_layers = 6, .num_attention_heads = 4, .num_key_value_heads = 4, .head_dim = 32,
            .max_position_embeddings = 1024, .rms_norm_eps = 1e-5, .rope_theta = 10000, .initializer_range = 0.02 } },
        /* GPT-2's sizes (Radford et al. 2019) with SwiGLU at equal cost (8/3 of the width) and an untied head; its 50,257 tokens padded to a multiple of 64. */
        { "gpt2-162m",
          { .vocab_size = 50304, .hidden_size = 768, .intermediate_size = 2048, .num_hidden_layers = 12, .num_attention_heads = 12, .num_key_value_heads = 12, .head_dim = 64,
            .max_position_embeddings = 1024, .rms_norm_eps = 1e-5, .rope_theta = 10000, .initializer_range = 0.02 } },
        { "llama-1b",
          { .vocab_size = 32000, .hidden_size = 2048, .intermediate_size = 5632, .num_hidden_layers = 24, .num_attention_heads = 16, .num_key_value_heads = 16, .head_dim = 128,
            .max_position_embeddings = 4096, .rms_norm_eps = 1e-5, .rope_theta = 10000, .initializer_range = 0.02 } },
        /* Llama 3 8B (Meta, config.json of Meta-Llama-3-8B). */
        { "llama-8b",
          { .vocab_size = 128256, .hidden_size = 4096, .intermediate_size = 14336, .num_hidden_layers = 32, .num_attention_heads = 32, .num_key_value_heads = 8, .head_dim = 128,
            .max_position_embeddings = 8192, .rms_norm_eps = 1e-5, .rope_theta = 500000, .initializer_range = 0.02 } },
};
static const char *const preset_names[] = { "tiny", "ddp-1m", "gpt2-162m", "llama-1b", "llama-8b", NULL };
_Static_assert(ARRAY_SIZE(preset_names) == ARRAY_SIZE(presets) + 1, "every preset has its name in the list");

const char *const *model_preset_names(void) {
        return preset_names;
}

int model_preset(const char *name, struct model_config *ret, struct error *e) {
        for (size_t i = 0; i < ARRAY_SIZE(presets); i++)
                if (strcmp(presets[i].name, name) == 0) {
                        *ret = presets[i].config;
                        return 0;
                }
        return error_set(e, -EINVAL, "found model preset '%s', expected one of the presets in docs/job-file.md", name);
}

struct model_config model_config_defaults(void) {
        return (struct model_config){ .max_position_embeddings = 2048, .rms_norm_eps = 1e-5, .rope_theta = 10000, .initializer_range = 0.02 };
}

void model_config_derive(struct model_config *m) {
        if (m->num_key_value_heads == 0)
                m->num_key_value_heads = m->num_attention_heads;
        if (m->head_dim == 0 && m->num_attention_heads > 0)
                m->head_dim = m->hidden_size / m->num_attention_heads;
}

/* The model keys of the job file's table that are values of struct model_config. */
static bool is_model_value(const struct job_key *k) {
        return strncmp(k->path, "model.", 6) == 0 && k->type != KEY_STRING && k->type != KEY_PATH;
}

static const struct yaml_node *find(const struct yaml_node *map, const char *name) {
        for (size_t i = 0; i < map->n; i++)
                if (strcmp(yaml_map_key(map, i)->text, name) == 0)
                        return yaml_map_value(map, i);
        return NULL;
}

static bool is_null(const struct yaml_node *n) {
        return !n || (n->kind == YAML_TREE_SCALAR && n->plain && strcmp(n->text, "null") == 0);
}

static bool is_word(const struct yaml_node *n, const char *word) {
        return n->kind == YAML_TREE_SCALAR && strcmp(n->text, word) == 0;
}

static int refuse_feature(const struct job_source *src, const struct yaml_node *n, const char *key, struct error *e, const char *allowed) {
        char found[128];

        yaml_node_describe(n, found, sizeof(found));
        return job_refuse(src, n->line, key, found, e, "%s", allowed);
}

/* Things that a config.json can say and that this model does not compute are refused, not ignored. */
static int check_features(const struct job_source *src, const struct yaml_node *root, struct error *e) {
        static const struct {
                const char *key, *allowed_value;
        } features[] = { { "hidden_act", "silu" }, { "attention_bias", "false" }, { "mlp_bias", "false" }, { "rope_scaling", "null" }, { "sliding_window", "null" } };
        const struct yaml_node *list = find(root, "architectures");

        for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
                const struct yaml_node *n = find(root, features[i].key);

                if (!is_null(n) && !is_word(n, features[i].allowed_value))
                        return refuse_feature(src, n, features[i].key, e, features[i].allowed_value);
        }
        if (is_null(list))
                return 0;
        if (list->kind != YAML_TREE_LIST)
                return refuse_feature(src, list, "architectures", e, "a list");
        for (size_t i = 0; i < list->n; i++)
                if (!is_word(list->items[i], "LlamaForCausalLM") && !is_word(list->items[i], "MistralForCausalLM"))
                        return refuse_feature(src, list->items[i], "architectures", e, "LlamaForCausalLM or MistralForCausalLM");
        return 0;
}

/* What is derived has the same bounds as what is given. */
static int check_heads(const char *file, const struct model_config *m, struct error *e) {
        if (m->head_dim < 2 || m->head_dim > MODEL_HEAD_DIM_MAX || m->head_dim % 2)
                return error_set(e, -EINVAL, "%s: key 'head_dim' (or hidden_size / num_attention_heads): found '%" PRId64 "', allowed: an even number from 2 to %d", file, m->head_dim,
                                 MODEL_HEAD_DIM_MAX);
        if (m->num_attention_heads % m->num_key_value_heads)
                return error_set(e, -EINVAL, "%s: key 'num_key_value_heads': found '%" PRId64 "', allowed: a divisor of num_attention_heads (%" PRId64 ")", file, m->num_key_value_heads,
                                 m->num_attention_heads);
        return 0;
}

/* transformers from version 5 on keeps rope_theta in rope_parameters. */
static int take_rope_parameters(const struct job_source *src, const struct yaml_node *root, struct job_spec *s, struct error *e) {
        const struct yaml_node *rope = find(root, "rope_parameters"), *type, *theta;

        if (is_null(rope))
                return 0;
        if (rope->kind != YAML_TREE_MAP)
                return refuse_feature(src, rope, "rope_parameters", e, "an object");
        type = find(rope, "rope_type");
        if (!is_null(type) && !is_word(type, "default"))
                return refuse_feature(src, type, "rope_parameters.rope_type", e, "default");
        theta = find(rope, "rope_theta");
        for (size_t i = 0; i < job_keys_n && !is_null(theta); i++)
                if (strcmp(job_keys[i].path, "model.rope_theta") == 0)
                        return job_key_set(&job_keys[i], theta, src, "rope_parameters.rope_theta", s, e);
        return 0;
}

int model_config_from_json(const char *text, size_t len, const char *file_name, struct model_config *ret, struct error *e) {
        _cleanup_(yaml_tree_freep) struct yaml_node *root = NULL;
        struct job_source src = { .file = file_name };
        struct job_spec s = { .model = model_config_defaults() };
        int r;

        r = yaml_tree_parse(text, len, file_name, &root, e);
        if (r < 0)
                return r;
        if (root->kind != YAML_TREE_MAP)
                return error_set(e, -EINVAL, "%s:%d: found no object, allowed: a Hugging Face config.json", file_name, root->line);
        r = check_features(&src, root, e);
        for (size_t i = 0; i < job_keys_n && r == 0; i++) {
                const struct yaml_node *n = is_model_value(&job_keys[i]) ? find(root, job_keys[i].path + 6) : NULL;

                if (!is_null(n))
                        r = job_key_set(&job_keys[i], n, &src, job_keys[i].path + 6, &s, e);
        }
        if (r == 0)
                r = take_rope_parameters(&src, root, &s, e);
        if (r < 0)
                return r;
        if (!s.model.vocab_size || !s.model.hidden_size || !s.model.intermediate_size || !s.model.num_hidden_layers || !s.model.num_attention_heads)
                return error_set(e, -EINVAL, "%s:%d: found a size missing, allowed: vocab_size, hidden_size, intermediate_size, num_hidden_layers and num_attention_heads, all given",
                                 file_name, root->line);
        if (!s.model.head_dim && s.model.hidden_size % s.model.num_attention_heads)
                return error_set(e, -EINVAL, "%s:%d: key 'hidden_size': found '%" PRId64 "', allowed: a multiple of num_attention_heads (%" PRId64 "), or head_dim given", file_name,
                                 root->line, s.model.hidden_size, s.model.num_attention_heads);
        model_config_derive(&s.model);
        r = check_heads(file_name, &s.model, e);
        if (r < 0)
                return r;
        *ret = s.model;
        return 0;
}

int model_config_to_json(const struct model_config *m, char **ret, struct error *e) {
        struct job_spec s = { .model = *m };
        json_t *root = json_pack("{s:[s], s:s, s:s}", "architectures", "LlamaForCausalLM", "model_type", "llama", "hidden_act", "silu");
        char *text;
        int r = 0;

        for (size_t i = 0; i < job_keys_n && r == 0; i++) {
                const struct job_key *k = &job_keys[i];
                const void *p = (const char *)&s + k->offset;

                if (!is_model_value(k))
                        continue;
                r = json_object_set_new(root, k->path + 6,
                                        k->type == KEY_I64   ? json_integer(*(const int64_t *)p)
                                        : k->type == KEY_F64 ? json_real(*(const double *)p)
                                                             : json_boolean(*(const bool *)p));
        }
        text = r == 0 ? json_dumps(root, JSON_INDENT(2)) : NULL;
        json_decref(root);
        if (!text)
                return error_set(e, -ENOMEM, "no memory");
        *ret = text;
        return 0;
}

static int64_t layer_parameters(const struct model_config *m) {
        int64_t q = m->num_attention_heads * m->head_dim, kv = m->num_key_value_heads * m->head_dim;

        return 2 * m->hidden_size * (q + kv) + 3 * m->hidden_size * m->intermediate_size + 2 * m->hidden_size;
}

int64_t model_parameters(const struct model_config *m) {
        int64_t embedding = m->vocab_size * m->hidden_size;

        return m->num_hidden_layers * layer_parameters(m) + m->hidden_size + (m->tie_word_embeddings ? 1 : 2) * embedding;
}

/* Activations that one micro-batch leaves in one layer for its backward pass, in bytes (counts of tensors as in Korthikanti et al. 2022, arXiv 2205.05198, section 4, for this model). */
static double layer_activations(const struct job_spec *s, int64_t layer) {
        const struct model_config *m = &s->model;
        double tokens = (double)(s->train.micro_batch * s->data.seq_len), tp = s->parallel.tp;
        double bytes = s->precision.recipe == RECIPE_FP32 ? 4 : 2, split = s->parallel.sequence_parallel ? tp : 1;
        double q = (double)(m->num_attention_heads * m->head_dim) / tp, kv = (double)(m->num_key_value_heads * m->head_dim) / tp;
        bool again = s->train.recompute_all;

        for (int i = 0; i < s->train.n_recompute_layers; i++)
                again |= s->train.recompute_layers[i] == layer;
        if (again)
                return tokens * bytes * (double)m->hidden_size / split;
        /* Residuals and normalised inputs (4), q, k, v, attention's output and its row statistics, gate, up and their product. */
        return tokens * (bytes * (4 * (double)m->hidden_size / split + 2 * q + 2 * kv + 3 * (double)m->intermediate_size / tp) +
                         8 * (double)m->num_attention_heads / tp);
}

static double stage_activations(const struct job_spec *s, int stage) {
        int64_t layers = s->model.num_hidden_layers / s->parallel.pp, passes = s->train.global_batch / (s->train.micro_batch * s->parallel.dp);
        int64_t in_flight = s->parallel.pp - stage < passes ? s->parallel.pp - stage : passes; /* 1F1B */
        double sum = 0;

        for (int64_t i = 0; i < layers; i++)
                sum += layer_activations(s, stage * layers + i);
        return sum * (double)in_flight;
}

static double stage_bytes(const struct job_spec *s, int stage, double *ret_snapshots) {
        const struct model_config *m = &s->model;
        double tp = s->parallel.tp, dp = s->parallel.dp, embedding = (double)m->vocab_size * (double)m->hidden_size / tp;
        double tokens = (double)(s->train.micro_batch * s->data.seq_len);
        int64_t layers = m->num_hidden_layers / s->parallel.pp;
        double params = (double)layers * (double)layer_parameters(m) / tp + (double)m->hidden_size;
        double weight = s->precision.recipe == RECIPE_FP32 ? 4 : s->precision.recipe == RECIPE_BF16 ? 2 : 2 + 2.125; /* BF16, two FP8 forms with scales */
        double moment = s->precision.moments == JOB_DTYPE_BF16 ? 2 : 4, state, workspace;
        bool first = stage == 0, last = stage == s->parallel.pp - 1;

        if (first)
                params += embedding;
        if (last && !(first && m->tie_word_embeddings))
                params += embedding;
        state = params * (4 + 2 * moment) / dp; /* master weights and moments, sharded over dp */
        /* Logits and their gradient in the last stage; else the widest pair of tensors of a layer, in FP32. */
        workspace = tokens * 8 * (last ? (double)m->vocab_size / tp : (double)m->intermediate_size / tp);
        *ret_snapshots = REPLICA_SLOTS * state;
        /* Working weights, FP32 gradients and the reduction's buffer, state and its snapshots, activations. */
        return params * (weight + 4 + 4) + state + *ret_snapshots + stage_activations(s, stage) + workspace + 64e6;
}

uint64_t job_spec_bytes_per_rank(const struct job_spec *s, uint64_t *ret_snapshots) {
        double most = 0, snapshots = 0;

        for (int stage = 0; stage < s->parallel.pp; stage++) {
                double of_it, b = stage_bytes(s, stage, &of_it);

                most = b > most ? b : most;
                snapshots = of_it > snapshots ? of_it : snapshots;
        }
        *ret_snapshots = (uint64_t)snapshots;
        return (uint64_t)most;
}
