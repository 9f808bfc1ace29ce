// SPDX-License-Identifier: Apache-2.0
#include "worker/model/model.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LINEARS 7 /* of a layer */

static int64_t max64(int64_t a, int64_t b) {
        return a > b ? a : b;
}

static void dims_init(struct model *m) {
        const struct model_config *c = m->config;
        const struct layout *l = m->layout;

        m->act = m->spec->precision.recipe == RECIPE_FP32 ? DT_F32 : DT_BF16;
        m->reduce = m->act == DT_BF16 && m->spec->precision.reduce == JOB_DTYPE_BF16 ? DT_BF16 : DT_F32;
        m->T = m->spec->train.micro_batch * m->spec->data.seq_len;
        m->Ts = l->sequence_parallel ? m->T / l->tp : m->T;
        m->H = c->hidden_size;
        m->I = c->intermediate_size / l->tp;
        m->D = c->head_dim;
        m->heads = c->num_attention_heads / l->tp;
        m->kv_heads = c->num_key_value_heads / l->tp;
        m->Q = m->heads * m->D;
        m->K = m->kv_heads * m->D;
        m->v0 = c->vocab_size * l->tp_index / l->tp;
        m->V = c->vocab_size * (l->tp_index + 1) / l->tp - m->v0;
        m->n_micro = (int)(m->spec->train.global_batch / m->spec->train.micro_batch / l->dp);
        m->n_slots = l->pp - l->pp_index < m->n_micro ? l->pp - l->pp_index : m->n_micro;
}

static bool recomputes(const struct job_spec *s, int layer) {
        for (int i = 0; i < s->train.n_recompute_layers; i++)
                if (s->train.recompute_layers[i] == layer)
                        return true;
        return s->train.recompute_all;
}

static void layers_init(struct model *m) {
        const struct job_spec *s = m->spec;
        bool fp8 = s->precision.recipe != RECIPE_BF16 && s->precision.recipe != RECIPE_FP32;

        for (int i = 0; i < m->layout->n_layers; i++) {
                struct layer *l = &m->layers[i];

                l->number = m->layout->layer0 + i;
                l->recompute = recomputes(s, l->number);
                l->fp8 = fp8 && l->number >= s->precision.bf16_first_layers && l->number < m->config->num_hidden_layers - s->precision.bf16_last_layers;
        }
}

/* ------------------------------------------------------------------ memory */

static void linear_take(struct model *m, struct layer *l, struct linear *lin, enum tensor_role role, enum site site, struct arena *arena) {
        struct tensor *t = tensor_table_find(m->table, role, l->number);

        lin->tensor = t;
        lin->spec = &l->spec[site];
        lin->param = m->params ? (char *)m->params + act_bytes(m, t->offset) : NULL;
        lin->grad = m->grads ? m->grads + t->offset : NULL;
        qtensor_take(lin->spec, t->rows, t->cols, l->fp8 ? arena : NULL, arena, &lin->q);
        if (!l->fp8)
                lin->q.row = lin->param;
}

static void norm_take(struct model *m, struct norm *n, enum tensor_role role, int layer) {
        n->tensor = tensor_table_find(m->table, role, layer);
        n->weight = m->norm_weights ? m->norm_weights + n->tensor->offset : NULL;
        n->grad = m->grads ? m->grads + n->tensor->offset : NULL;
}

static int params_take(struct model *m, struct arena *a) {
        int64_t n = m->table->elements;
        struct tensor *embed = tensor_table_find(m->table, TENSOR_EMBED, -1), *head = tensor_table_find(m->table, TENSOR_HEAD, -1);

        m->params = arena_take(&a[ARENA_PARAM], act_bytes(m, n));
        m->norm_weights = arena_take(&a[ARENA_PARAM], sizeof(dev_real) * (size_t)m->table->norm_elements);
        m->grads = arena_take(&a[ARENA_GRAD], sizeof(dev_real) * (size_t)n);
        if (!head)
                head = embed;
        if (m->layout->first && m->params) {
                m->embed_param = (char *)m->params + act_bytes(m, embed->offset);
                m->embed_grad = m->grads + embed->offset;
        }
        if (m->layout->last && m->params) {
                m->head_param = (char *)m->params + act_bytes(m, head->offset);
                m->head_grad = m->grads + head->offset;
        }
        for (int i = 0; i < m->layout->n_layers; i++) {
                struct layer *l = &m->layers[i];

                TRY(quant_specs_init(m, l, i));
                norm_take(m, &l->attn_norm, TENSOR_ATTN_NORM, l->number);
                norm_take(m, &l->mlp_norm, TENSOR_MLP_NORM, l->number);
                linear_take(m, l, &l->q, TENSOR_Q, SITE_W_Q, &a[ARENA_PARAM]);
                linear_take(m, l, &l->k, TENSOR_K, SITE_W_K, &a[ARENA_PARAM]);
                linear_take(m, l, &l->v, TENSOR_V, SITE_W_V, &a[ARENA_PARAM]);
                linear_take(m, l, &l->o, TENSOR_O, SITE_W_O, &a[ARENA_PARAM]);
                linear_take(m, l, &l->gate, TENSOR_GATE, SITE_W_GATE, &a[ARENA_PARAM]);
                linear_take(m, l, &l->up, TENSOR_UP, SITE_W_UP, &a[ARENA_PARAM]);
                linear_take(m, l, &l->down, TENSOR_DOWN, SITE_W_DOWN, &a[ARENA_PARAM]);
        }
        if (m->layout->last)
                norm_take(m, &m->final_norm, TENSOR_FINAL_NORM, -1);
        return 0;
}

/* Amaxes of a step (the other recipes keep them for their events only), scales and histories of recipe delayed. */
static void scaling_take(struct model *m, struct arena *a) {
        enum job_recipe r = m->spec->precision.recipe;
        size_t n = (size_t)m->layout->n_layers * SITES;

        m->bad = arena_take(&a[ARENA_WORK], sizeof(uint64_t));
        if (r == RECIPE_BF16 || r == RECIPE_FP32)
                return;
        m->amax = arena_take(&a[ARENA_WORK], sizeof(dev_real) * n);
        if (m->spec->metrics.fp8_every > 0)
                m->stats = arena_take(&a[ARENA_WORK], sizeof(*m->stats) * n);
        if (r != RECIPE_DELAYED)
                return;
        m->n_sites = (int)n;
        m->scale = arena_take(&a[ARENA_OPTIMIZER], sizeof(dev_real) * n);
        m->history = arena_take(&a[ARENA_OPTIMIZER], sizeof(dev_real) * n * (size_t)m->spec->precision.amax_history);
        m->fp8_max = arena_take(&a[ARENA_WORK], sizeof(double) * n);
}

static void gradients_take(struct model *m, const struct layer *l, struct arena *w, struct work_gradients *g) {
        const struct quant_spec *s = l->spec;

        if (!l->fp8)
                w = NULL;
        qtensor_take(&s[SITE_DY_O], m->T, m->H, w, w, &g->dy);
        qtensor_take(&s[SITE_DY_GATE], m->T, m->I, w, w, &g->dg);
        qtensor_take(&s[SITE_DY_UP], m->T, m->I, w, w, &g->du);
        qtensor_take(&s[SITE_DY_Q], m->T, m->Q, w, w, &g->dq);
        qtensor_take(&s[SITE_DY_K], m->T, m->K, w, w, &g->dk);
        qtensor_take(&s[SITE_DY_V], m->T, m->K, w, w, &g->dv);
}

static void work_take(struct model *m, struct arena *w) {
        struct work *k = &m->work;
        size_t ts = act_bytes(m, m->Ts * m->H), f = sizeof(dev_real);
        bool had[2] = { false, false };

        k->delta = arena_take(w, ts);
        k->rx = arena_take(w, ts);
        k->tx = arena_take(w, ts);
        k->dres = arena_take(w, ts);
        k->gathered = arena_take(w, act_bytes(m, m->T * m->H));
        k->dx = arena_take(w, f * (size_t)(m->T * m->H));
        k->partial = arena_take(w, (m->layout->tp > 1 ? f : dtype_size(m->act)) * (size_t)(m->T * m->H));
        if (m->layout->tp > 1)
                k->reduced = arena_take(w, f * (size_t)(m->Ts * m->H));
        k->dwide = arena_take(w, act_bytes(m, m->T * max64(m->I, m->Q)));
        k->a = arena_take(w, act_bytes(m, m->T * m->I));
        k->dg = arena_take(w, act_bytes(m, m->T * m->I));
        k->du = arena_take(w, act_bytes(m, m->T * m->I));
        k->dq = arena_take(w, act_bytes(m, m->T * m->Q));
        k->dk = arena_take(w, act_bytes(m, m->T * m->K));
        k->dv = arena_take(w, act_bytes(m, m->T * m->K));
        k->attention = arena_take(w, m->ops->attention_workspace(m->T, m->heads, m->kv_heads, m->D));
        for (int i = 0; i < m->layout->n_layers; i++) {
                struct layer *l = &m->layers[i];
                struct quant_spec down = l->spec[SITE_X_DOWN];

                if (had[l->fp8])
                        continue;
                had[l->fp8] = true;
                gradients_take(m, l, w, &k->q[l->fp8]);
                if (!l->fp8)
                        continue;
                down.want_col = m->spec->precision.recipe == RECIPE_BLOCK;
                qtensor_take(&l->spec[SITE_X_ATTN], m->T, m->H, w, NULL, &k->row_h);
                qtensor_take(&l->spec[SITE_X_O], m->T, m->Q, w, NULL, &k->row_q);
                qtensor_take(&down, m->T, m->I, w, w, &k->row_i);
                if (down.want_col) {
                        k->g = arena_take(w, act_bytes(m, m->T * m->I));
                        k->u = arena_take(w, act_bytes(m, m->T * m->I));
                }
        }
}

static void head_take(struct model *m, struct arena *a) {
        struct head_acts *h = &m->head;

        if (!m->layout->last)
                return;
        h->x = arena_take(a, act_bytes(m, m->Ts * m->H));
        h->rstd = arena_take(a, sizeof(dev_real) * (size_t)m->Ts);
        h->y = arena_take(a, act_bytes(m, m->T * m->H));
        h->logits = arena_take(a, sizeof(dev_real) * (size_t)(m->T * m->V));
        h->dlogits = arena_take(a, act_bytes(m, m->T * m->V));
        h->rowmax = arena_take(a, sizeof(dev_real) * (size_t)m->T);
        h->sums = arena_take(a, sizeof(dev_real) * (size_t)(2 * m->T));
        h->loss = arena_take(a, sizeof(dev_real) * (size_t)m->n_micro);
        h->eval_loss = arena_take(a, sizeof(dev_real));
}

static void acts_take(struct model *m, struct arena *a) {
        struct layer_acts shared[2] = { 0 }; /* of recomputed layers: plain, FP8 */
        bool have[2] = { false, false };
        size_t tokens = sizeof(int32_t) * (size_t)(m->T + 1);

        for (int s = 0; s < m->n_slots; s++) {
                struct batch *b = &m->batches[s];

                b->ids = arena_take(a, tokens);
                b->labels = arena_take(a, tokens);
                b->cu = arena_take(a, tokens);
                b->pos = arena_take(a, tokens);
                b->doc = arena_take(a, tokens);
                for (int i = 0; i < m->layout->n_layers; i++) {
                        struct layer *l = &m->layers[i];
                        struct layer_acts *acts = &m->acts[s * m->layout->n_layers + i];

                        if (!l->recompute)
                                layer_acts_take(m, l, a, acts);
                        else {
                                if (!have[l->fp8])
                                        layer_acts_take(m, l, a, &shared[l->fp8]);
                                have[l->fp8] = true;
                                *acts = shared[l->fp8];
                        }
                        acts->x1 = arena_take(a, act_bytes(m, m->Ts * m->H));
                }
        }
        head_take(m, a);
}

static int take_all(struct model *m, struct arena *a) {
        scaling_take(m, a);
        TRY(params_take(m, a));
        work_take(m, &a[ARENA_WORK]);
        acts_take(m, &a[ARENA_ACT]);
        return 0;
}

int model_init(struct model *m, const struct job_spec *spec, const struct layout *l, struct tensor_table *table, const struct dev_ops *ops,
               struct dev *dev, int (*more)(void *arg, struct arena *arenas), void *arg, struct error *e) {
        *m = (struct model){ .spec = spec, .config = &spec->model, .layout = l, .table = table, .ops = ops, .dev = dev };
        if (sizeof(dev_real) == 8 && spec->precision.recipe != RECIPE_FP32)
                return error_set(e, -EINVAL, "precision.recipe: found %s, expected fp32 in the FP64 build", job_recipe_name(spec->precision.recipe));
        dims_init(m);
        if (m->n_micro < 1)
                return error_set(e, -EINVAL, "train.global_batch: found %lld, expected at least micro_batch * dp", (long long)spec->train.global_batch);
        m->layers = calloc((size_t)l->n_layers, sizeof(*m->layers));
        m->acts = calloc((size_t)l->n_layers * (size_t)m->n_slots, sizeof(*m->acts));
        m->batches = calloc((size_t)m->n_slots, sizeof(*m->batches));
        if (!m->layers || !m->acts || !m->batches)
                return error_set(e, -ENOMEM, "no memory for the model's tables");
        for (int i = 0; i < m->n_slots; i++) {
                m->batches[i].host_cu = calloc((size_t)m->T + 1, sizeof(int32_t));
                if (!m->batches[i].host_cu)
                        return error_set(e, -ENOMEM, "no memory for the bounds of documents");
        }
        layers_init(m);
        TRY_DEV(e, ops->stream_new(dev, &m->stream));
        TRY_DEV(e, take_all(m, m->arenas));
        TRY(more(arg, m->arenas));
        for (int i = 0; i < ARENA_KINDS; i++)
                TRY(arena_commit(&m->arenas[i], ops, dev, e));
        TRY_DEV(e, take_all(m, m->arenas));
        return more(arg, m->arenas);
}

void model_done(struct model *m) {
        if (!m->ops) /* never initialised */
                return;
        for (int i = 0; i < ARENA_KINDS; i++)
                arena_release(&m->arenas[i], m->ops, m->dev);
        if (m->stream)
                m->ops->stream_free(m->stream);
        for (int i = 0; m->batches && i < m->n_slots; i++)
                free(m->batches[i].host_cu);
        free(m->layers);
        free(m->acts);
        free(m->batches);
        *m = (struct model){ 0 };
}

size_t model_memory(const struct model *m) {
        size_t n = 0;

        for (int i = 0; i < ARENA_KINDS; i++)
                n += m->arenas[i].size;
        return n;
}

/* ------------------------------------------------------------------ a step */

static int weights_quantize(struct model *m, int n, struct linear *const *l, struct error *e) {
        const void *x[LINEARS];
        const struct quant_spec *spec[LINEARS];
        struct qtensor *out[LINEARS];
        int r;

        for (int i = 0; i < n; i++) {
                x[i] = l[i]->param;
                spec[i] = l[i]->spec;
                out[i] = &l[i]->q;
        }
        r = m->ops->quantize_many(n, x, m->act, spec, out, m->stream);
        if (r != -EOPNOTSUPP) {
                TRY_DEV(e, r);
                return 0;
        }
        for (int i = 0; i < n; i++)
                TRY(quantize_at(m, spec[i], x[i], m->act, l[i]->tensor->rows, l[i]->tensor->cols, out[i], e));
        return 0;
}

int model_weights_changed(struct model *m, bool bootstrap, struct error *e) {
        TRY_DEV(e, m->ops->cast(m->norm_weights, DT_F32, m->params, m->act, m->table->norm_elements, m->stream));
        quant_specs_scaling(m, bootstrap);
        for (int i = 0; i < m->layout->n_layers; i++) {
                struct layer *l = &m->layers[i];

                TRY(weights_quantize(m, LINEARS, (struct linear *[LINEARS]){ &l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down }, e));
        }
        return 0;
}

int model_forward(struct model *m, int slot, const void *in, bool training, double gscale, dev_real *loss_sum, void **ret_out, struct error *e) {
        const struct layout *l = m->layout;
        struct batch *b = &m->batches[slot];
        const void *residual = in, *delta = NULL;

        if (l->first) {
                TRY(embedding_forward(m, b, m->work.rx, e));
                residual = m->work.rx;
        }
        for (int i = 0; i < l->n_layers; i++) {
                struct layer_acts *a = &m->acts[slot * l->n_layers + i];

                TRY(layer_forward(m, &m->layers[i], a, &b->docs, residual, delta, e));
                residual = a->x2;
                delta = m->work.delta;
        }
        if (l->last) {
                *ret_out = NULL;
                return head_forward(m, b, residual, delta, training, gscale, loss_sum, e);
        }
        /* the next stage gets the sum, rounded as the norm's own addition rounds it */
        TRY_DEV(e, m->ops->copy(m->work.tx, residual, act_bytes(m, m->Ts * m->H), m->stream));
        TRY_DEV(e, m->ops->add(m->work.tx, delta, m->act, m->Ts * m->H, m->stream));
        *ret_out = m->work.tx;
        return 0;
}

/* What is only ever added to: norms and the embedding. A Linear's gradient and the head's are written whole by the first product; an embedding tied to a head on the same stage is the head's. */
int model_gradients_clear(struct model *m, struct error *e) {
        m->grads_fresh = true;
        TRY_DEV(e, m->ops->zero(m->grads, sizeof(dev_real) * (size_t)m->table->norm_elements, m->stream));
        if (m->embed_grad && m->embed_grad != m->head_grad)
                TRY_DEV(e, m->ops->zero(m->embed_grad, sizeof(dev_real) * (size_t)(m->V * m->H), m->stream));
        return 0;
}

static int tell_final(struct model *m, int64_t offset, struct error *e) {
        return m->gradients_final ? m->gradients_final(m->gradients_final_arg, offset, e) : 0;
}

int model_backward(struct model *m, int slot, struct error *e) {
        const struct layout *l = m->layout;
        struct batch *b = &m->batches[slot];

        if (l->last) {
                TRY(head_backward(m, e));
                if (tensor_table_find(m->table, TENSOR_HEAD, -1)) /* one of its own, which the embedding does not share */
                        TRY(tell_final(m, m->head_grad - m->grads, e));
        }
        for (int i = l->n_layers - 1; i >= 0; i--) {
                TRY(layer_backward(m, &m->layers[i], &m->acts[slot * l->n_layers + i], &b->docs, e));
                TRY(tell_final(m, m->layers[i].q.grad - m->grads, e)); /* q lies lowest of a layer's matrices; norms lie below all of them */
        }
        m->grads_fresh = false;
        return l->first ? embedding_backward(m, b, e) : 0;
}
