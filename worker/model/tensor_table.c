// SPDX-License-Identifier: Apache-2.0
#include "worker/model/tensor_table.h"

#include <errno.h>
#include <fnmatch.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

/* Tensors start on multiples of this many elements: 256 bytes of BF16, which vector loads and the collectives like. */
#define TENSOR_ALIGN 128

enum cut { CUT_NONE, CUT_ROWS, CUT_COLS };

/* Names as in transformers' LlamaForCausalLM; the cuts are Megatron-LM's (Shoeybi et al. 2019, section 3). */
static const struct {
        const char *format;
        enum cut cut;
} roles[TENSOR_ROLES] = {
        [TENSOR_EMBED] = { "model.embed_tokens.weight", CUT_ROWS },
        [TENSOR_ATTN_NORM] = { "model.layers.%d.input_layernorm.weight", CUT_NONE },
        [TENSOR_Q] = { "model.layers.%d.self_attn.q_proj.weight", CUT_ROWS },
        [TENSOR_K] = { "model.layers.%d.self_attn.k_proj.weight", CUT_ROWS },
        [TENSOR_V] = { "model.layers.%d.self_attn.v_proj.weight", CUT_ROWS },
        [TENSOR_O] = { "model.layers.%d.self_attn.o_proj.weight", CUT_COLS },
        [TENSOR_MLP_NORM] = { "model.layers.%d.post_attention_layernorm.weight", CUT_NONE },
        [TENSOR_GATE] = { "model.layers.%d.mlp.gate_proj.weight", CUT_ROWS },
        [TENSOR_UP] = { "model.layers.%d.mlp.up_proj.weight", CUT_ROWS },
        [TENSOR_DOWN] = { "model.layers.%d.mlp.down_proj.weight", CUT_COLS },
        [TENSOR_FINAL_NORM] = { "model.norm.weight", CUT_NONE },
        [TENSOR_HEAD] = { "lm_head.weight", CUT_ROWS },
};

static int divides(int64_t what, int by, const char *name, struct error *e) {
        return what % by == 0 ? 0 : error_set(e, -EINVAL, "%s: found %lld, expected a multiple of parallel.tp (%d)", name, (long long)what, by);
}

int layout_init(const struct job_spec *s, int rank, struct layout *ret, struct error *e) {
        const struct model_config *m = &s->model;
        struct layout l = { .rank = rank, .tp = s->parallel.tp, .pp = s->parallel.pp, .dp = s->parallel.dp };
        int r;

        l.n_ranks = l.tp * l.pp * l.dp;
        if (l.tp < 1 || l.pp < 1 || l.dp < 1 || l.n_ranks > JOB_MAX_RANKS)
                return error_set(e, -EINVAL, "parallel: found tp %d, pp %d, dp %d, expected 1 to %d ranks in all", l.tp, l.pp, l.dp, JOB_MAX_RANKS);
        if (rank < 0 || rank >= l.n_ranks)
                return error_set(e, -EINVAL, "rank: found %d, expected 0 to %d", rank, l.n_ranks - 1);
        if (m->num_hidden_layers < l.pp)
                return error_set(e, -EINVAL, "model.num_hidden_layers: found %lld, expected at least parallel.pp (%d)", (long long)m->num_hidden_layers, l.pp);
        if ((r = divides(m->num_attention_heads, l.tp, "model.num_attention_heads", e)) < 0 ||
            (r = divides(m->num_key_value_heads, l.tp, "model.num_key_value_heads", e)) < 0 ||
            (r = divides(m->intermediate_size, l.tp, "model.intermediate_size", e)) < 0)
                return r;
        if (m->num_attention_heads % m->num_key_value_heads != 0)
                return error_set(e, -EINVAL, "model.num_key_value_heads: found %lld, expected a divisor of num_attention_heads (%lld)",
                                 (long long)m->num_key_value_heads, (long long)m->num_attention_heads);
        l.sequence_parallel = s->parallel.sequence_parallel && l.tp > 1;
        if (l.sequence_parallel && (r = divides(s->train.micro_batch * s->data.seq_len, l.tp, "train.micro_batch * data.seq_len", e)) < 0)
                return r;
        l.tp_index = rank % l.tp;
        l.dp_index = rank / l.tp % l.dp;
        l.pp_index = rank / l.tp / l.dp;
        l.first = l.pp_index == 0;
        l.last = l.pp_index == l.pp - 1;
        l.layer0 = (int)(m->num_hidden_layers * l.pp_index / l.pp);
        l.n_layers = (int)(m->num_hidden_layers * (l.pp_index + 1) / l.pp) - l.layer0;
        *ret = l;
        return 0;
}

static void global_shape(const struct model_config *m, enum tensor_role role, int64_t *rows, int64_t *cols) {
        int64_t h = m->hidden_size, q = m->num_attention_heads * m->head_dim, kv = m->num_key_value_heads * m->head_dim;

        *cols = h;
        switch (role) {
        case TENSOR_EMBED:
        case TENSOR_HEAD:
                *rows = m->vocab_size;
                break;
        case TENSOR_Q:
                *rows = q;
                break;
        case TENSOR_K:
        case TENSOR_V:
                *rows = kv;
                break;
        case TENSOR_O:
                *rows = h;
                *cols = q;
                break;
        case TENSOR_GATE:
        case TENSOR_UP:
                *rows = m->intermediate_size;
                break;
        case TENSOR_DOWN:
                *rows = h;
                *cols = m->intermediate_size;
                break;
        default:
                *rows = 1;
                break;
        }
}

static uint32_t tensor_number(const struct model_config *m, enum tensor_role role, int layer) {
        uint32_t layers_end = 1 + TENSORS_PER_LAYER * (uint32_t)m->num_hidden_layers;

        if (role == TENSOR_EMBED)
                return 0;
        if (role == TENSOR_FINAL_NORM)
                return layers_end;
        if (role == TENSOR_HEAD)
                return layers_end + 1;
        return 1 + TENSORS_PER_LAYER * (uint32_t)layer + (uint32_t)(role - TENSOR_ATTN_NORM);
}

static void role_name(enum tensor_role role, int layer, char *buf, size_t size) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(buf, size, roles[role].format, layer); /* formats of the table above; the argument is unused where a name has no number */
#pragma GCC diagnostic pop
}

int tensor_name(const struct model_config *m, uint32_t number, char *buf, size_t size) {
        uint32_t layers_end = 1 + TENSORS_PER_LAYER * (uint32_t)m->num_hidden_layers;

        if (number > layers_end + 1)
                return -EINVAL;
        if (number == 0)
                role_name(TENSOR_EMBED, -1, buf, size);
        else if (number >= layers_end)
                role_name(number == layers_end ? TENSOR_FINAL_NORM : TENSOR_HEAD, -1, buf, size);
        else
                role_name(TENSOR_ATTN_NORM + (enum tensor_role)((number - 1) % TENSORS_PER_LAYER), (int)((number - 1) / TENSORS_PER_LAYER), buf, size);
        return 0;
}

static void apply_groups(const struct job_spec *s, struct tensor *t) {
        t->lr_scale = 1;
        t->weight_decay = t->norm ? 0 : s->optimizer.weight_decay;
        for (int i = 0; i < s->optimizer.n_groups; i++) {
                const struct job_param_group *g = &s->optimizer.groups[i];

                if (!g->match || fnmatch(g->match, t->name, 0) != 0)
                        continue;
                t->lr_scale = g->lr_scale;
                if (!isnan(g->weight_decay))
                        t->weight_decay = g->weight_decay;
                return;
        }
}

static void add_tensor(const struct job_spec *s, const struct layout *l, enum tensor_role role, int layer, struct tensor_table *tt) {
        const struct model_config *m = &s->model;
        struct tensor *t = &tt->tensors[tt->n++];

        *t = (struct tensor){ .role = role, .layer = layer, .number = tensor_number(m, role, layer) };
        role_name(role, layer, t->name, sizeof(t->name));
        t->hash = digest_of(t->name, strlen(t->name)).lo;
        global_shape(m, role, &t->global_rows, &t->global_cols);
        t->rows = t->global_rows;
        t->cols = t->global_cols;
        if (roles[role].cut == CUT_ROWS) { /* the vocabulary may be ragged; everything else was checked to divide */
                t->row0 = t->global_rows * l->tp_index / l->tp;
                t->rows = t->global_rows * (l->tp_index + 1) / l->tp - t->row0;
        } else if (roles[role].cut == CUT_COLS) {
                t->cols = t->global_cols / l->tp;
                t->col0 = t->cols * l->tp_index;
        }
        t->norm = roles[role].cut == CUT_NONE;
        t->mean = t->norm ? 1 : 0;
        t->std = t->norm ? 0 : m->initializer_range;
        if (role == TENSOR_O || role == TENSOR_DOWN) /* Megatron-LM's scaled_init_method_normal (GPT-2) */
                t->std /= sqrt(2.0 * (double)m->num_hidden_layers);
        t->shared_copy = role == TENSOR_EMBED && !l->first;
        t->counted = !t->shared_copy && (!t->norm || l->tp_index == 0);
        t->count = t->rows * t->cols;
        apply_groups(s, t);
}

static void place(struct tensor_table *tt) {
        int64_t at = 0;

        for (int pass = 0; pass < 2; pass++) {
                for (int i = 0; i < tt->n; i++) {
                        struct tensor *t = &tt->tensors[i];

                        if (t->norm != (pass == 0))
                                continue;
                        t->offset = at;
                        at += (t->count + TENSOR_ALIGN - 1) / TENSOR_ALIGN * TENSOR_ALIGN;
                }
                if (pass == 0)
                        tt->norm_elements = at;
        }
        tt->elements = at;
}

int tensor_table_init(const struct job_spec *s, const struct layout *l, struct tensor_table *ret, struct error *e) {
        struct tensor_table tt = { 0 };
        bool tied = s->model.tie_word_embeddings;

        tt.tensors = calloc((size_t)(TENSORS_PER_LAYER * l->n_layers + 3), sizeof(*tt.tensors));
        if (!tt.tensors)
                return error_set(e, -ENOMEM, "no memory for the table of tensors");
        if (l->first || (l->last && tied))
                add_tensor(s, l, TENSOR_EMBED, -1, &tt);
        for (int i = l->layer0; i < l->layer0 + l->n_layers; i++)
                for (int k = 0; k < TENSORS_PER_LAYER; k++)
                        add_tensor(s, l, TENSOR_ATTN_NORM + (enum tensor_role)k, i, &tt);
        if (l->last) {
                add_tensor(s, l, TENSOR_FINAL_NORM, -1, &tt);
                if (!tied)
                        add_tensor(s, l, TENSOR_HEAD, -1, &tt);
        }
        place(&tt);
        *ret = tt;
        return 0;
}

void tensor_table_done(struct tensor_table *t) {
        free(t->tensors);
        *t = (struct tensor_table){ 0 };
}

struct tensor *tensor_table_find(const struct tensor_table *t, enum tensor_role role, int layer) {
        for (int i = 0; i < t->n; i++)
                if (t->tensors[i].role == role && t->tensors[i].layer == layer)
                        return &t->tensors[i];
        return NULL;
}
