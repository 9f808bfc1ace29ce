/* SPDX-License-Identifier: Apache-2.0 */
/* The names and shapes of a model's parameters: those of transformers' LlamaForCausalLM, which checkpoints use as they are. */
#include <inttypes.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "proto/job_spec.h"

enum size { ONE, HIDDEN, QUERIES, KEYS, INNER };

static const struct {
        const char *name;
        enum size rows, cols;
} of_layer[] = {
        { "input_layernorm", ONE, HIDDEN },   { "self_attn.q_proj", QUERIES, HIDDEN },     { "self_attn.k_proj", KEYS, HIDDEN },
        { "self_attn.v_proj", KEYS, HIDDEN }, { "self_attn.o_proj", HIDDEN, QUERIES },     { "post_attention_layernorm", ONE, HIDDEN },
        { "mlp.gate_proj", INNER, HIDDEN },   { "mlp.up_proj", INNER, HIDDEN },            { "mlp.down_proj", HIDDEN, INNER },
};

static int64_t size_of(const struct model_config *m, enum size s) {
        return s == HIDDEN    ? m->hidden_size
               : s == QUERIES ? m->num_attention_heads * m->head_dim
               : s == KEYS    ? m->num_key_value_heads * m->head_dim
               : s == INNER   ? m->intermediate_size
                              : 1;
}

int64_t model_tensors(const struct model_config *m) {
        return (int64_t)ARRAY_SIZE(of_layer) * m->num_hidden_layers + (m->tie_word_embeddings ? 2 : 3);
}

void model_tensor(const struct model_config *m, int64_t i, char *name, size_t size, int64_t *ret_rows, int64_t *ret_cols) {
        int64_t per = (int64_t)ARRAY_SIZE(of_layer), end = 1 + per * m->num_hidden_layers, k = (i - 1) % per;

        *ret_cols = m->hidden_size;
        *ret_rows = m->vocab_size;
        if (i == 0)
                snprintf(name, size, "model.embed_tokens.weight");
        else if (i == end) {
                snprintf(name, size, "model.norm.weight");
                *ret_rows = 1;
        } else if (i > end)
                snprintf(name, size, "lm_head.weight");
        else {
                snprintf(name, size, "model.layers.%" PRId64 ".%s.weight", (i - 1) / per, of_layer[k].name);
                *ret_rows = size_of(m, of_layer[k].rows);
                *ret_cols = size_of(m, of_layer[k].cols);
        }
}
