// SPDX-License-Identifier: Apache-2.0
/*
 * Which tensor is quantised how, for each recipe (docs/numerics.md; DeepSeek-V3, arXiv 2412.19437, section 3.3; TransformerEngine's HYBRID format for `delayed`
 * and `tensor`), and the numbers under which non-finite values are reported.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kernels/fp8.h"
#include "worker/model/model.h"

#define RANK_BITS 16
_Static_assert(JOB_MAX_RANKS <= 1 << RANK_BITS, "a finding holds the rank in its low bits");

static const char *const site_suffixes[SITES] = {
        [SITE_X_ATTN] = "self_attn.input",
        [SITE_W_Q] = "self_attn.q_proj.weight",
        [SITE_W_K] = "self_attn.k_proj.weight",
        [SITE_W_V] = "self_attn.v_proj.weight",
        [SITE_X_O] = "self_attn.o_proj.input",
        [SITE_W_O] = "self_attn.o_proj.weight",
        [SITE_X_MLP] = "mlp.input",
        [SITE_W_GATE] = "mlp.gate_proj.weight",
        [SITE_W_UP] = "mlp.up_proj.weight",
        [SITE_CACHE_GATE] = "mlp.gate_proj.output",
        [SITE_CACHE_UP] = "mlp.up_proj.output",
        [SITE_X_DOWN] = "mlp.down_proj.input",
        [SITE_W_DOWN] = "mlp.down_proj.weight",
        [SITE_DY_DOWN] = "mlp.down_proj.grad_output",
        [SITE_DY_GATE] = "mlp.gate_proj.grad_output",
        [SITE_DY_UP] = "mlp.up_proj.grad_output",
        [SITE_DY_O] = "self_attn.o_proj.grad_output",
        [SITE_DY_Q] = "self_attn.q_proj.grad_output",
        [SITE_DY_K] = "self_attn.k_proj.grad_output",
        [SITE_DY_V] = "self_attn.v_proj.grad_output",
};

static bool site_is_gradient(enum site s) {
        return s >= SITE_DY_DOWN;
}

static bool site_is_weight(enum site s) {
        return s == SITE_W_Q || s == SITE_W_K || s == SITE_W_V || s == SITE_W_O || s == SITE_W_GATE || s == SITE_W_UP || s == SITE_W_DOWN;
}

static bool site_is_cache(enum site s) {
        return s == SITE_CACHE_GATE || s == SITE_CACHE_UP;
}

const char *site_suffix(enum site site) {
        return site_suffixes[site];
}

void site_name(int layer, enum site site, char *buf, size_t size) {
        snprintf(buf, size, "model.layers.%d.%s", layer, site_suffixes[site]);
}

/* ------------------------------------------------------------------ findings */

static uint64_t gradients_base(const struct model_config *m) {
        return (uint64_t)m->num_hidden_layers * SITES * 2;
}

static uint64_t gradients_count(const struct model_config *m) {
        return (uint64_t)m->num_hidden_layers * TENSORS_PER_LAYER + 3;
}

uint64_t finding_site(const struct model_config *m, int layer, enum site site, int rank) {
        uint64_t n = (uint64_t)m->num_hidden_layers, at = (uint64_t)layer;

        if (site_is_gradient(site)) /* backward passes the layers in falling order */
                at = n + (n - 1 - at);
        return (at * SITES + (uint64_t)site) << RANK_BITS | (uint64_t)rank;
}

uint64_t finding_gradient(const struct model_config *m, uint32_t tensor_number, bool reduced, int rank) {
        return (gradients_base(m) + (reduced ? gradients_count(m) : 0) + tensor_number) << RANK_BITS | (uint64_t)rank;
}

int finding_rank(uint64_t finding) {
        return (int)(finding & ((1u << RANK_BITS) - 1));
}

int finding_name(const struct model_config *m, uint64_t finding, char *buf, size_t size) {
        uint64_t at = finding >> RANK_BITS, base = gradients_base(m), n = (uint64_t)m->num_hidden_layers, layer;

        if (at >= base)
                return at - base >= 2 * gradients_count(m) ? -EINVAL : tensor_name(m, (uint32_t)((at - base) % gradients_count(m)), buf, size);
        layer = at / SITES;
        site_name((int)(layer < n ? layer : 2 * n - 1 - layer), (enum site)(at % SITES), buf, size);
        return 0;
}

/* ------------------------------------------------------------------ specifications */

static enum qscaling recipe_scaling(enum job_recipe r, enum site s) {
        switch (r) {
        case RECIPE_BLOCK:
                return site_is_weight(s) ? Q_128X128 : Q_1X128;
        case RECIPE_DELAYED:
                return Q_DELAYED;
        case RECIPE_TENSOR:
                return Q_TENSOR;
        default:
                return Q_NONE;
        }
}

static bool site_pow2(const struct job_spec *s, enum site site) {
        return s->precision.pow2 == POW2_ALL || (s->precision.pow2 == POW2_CACHED && site_is_cache(site));
}

int quant_specs_init(struct model *m, struct layer *layer, int local) {
        double fp8_max[SITES] = { 0 };
        bool block = m->spec->precision.recipe == RECIPE_BLOCK;

        for (int i = 0; i < SITES; i++) {
                struct quant_spec *q = &layer->spec[i];
                enum site site = (enum site)i;
                bool e5m2 = site_is_gradient(site) && !block;

                *q = (struct quant_spec){ .scaling = Q_NONE, .dtype = m->act, .want_row = true };
                if (!layer->fp8)
                        continue;
                *q = (struct quant_spec){
                        .scaling = recipe_scaling(m->spec->precision.recipe, site),
                        .dtype = e5m2 ? DT_E5M2 : DT_E4M3,
                        .pow2 = site_pow2(m->spec, site),
                        .want_row = true,
                        .want_col = !site_is_cache(site),
                        .bad = m->bad,
                        .index = finding_site(m->config, layer->number, site, m->layout->rank),
                };
                if (m->amax)
                        q->amax = m->amax + (ptrdiff_t)local * SITES + i;
                if (m->scale)
                        q->scale = m->scale + (ptrdiff_t)local * SITES + i;
                fp8_max[i] = (double)(e5m2 ? FP8_E5M2_MAX : FP8_E4M3_MAX);
        }
        return m->fp8_max ? m->ops->copy_in(m->fp8_max + (ptrdiff_t)local * SITES, fp8_max, sizeof(fp8_max), m->stream) : 0;
}

void quant_specs_scaling(struct model *m, bool bootstrap) {
        if (m->spec->precision.recipe != RECIPE_DELAYED)
                return;
        for (int i = 0; i < m->layout->n_layers; i++)
                for (int k = 0; k < SITES && m->layers[i].fp8; k++)
                        m->layers[i].spec[k].scaling = bootstrap ? Q_TENSOR : Q_DELAYED;
}

void qtensor_take(const struct quant_spec *spec, int64_t rows, int64_t cols, struct arena *row, struct arena *col, struct qtensor *out) {
        size_t bytes[4] = { 0 };

        *out = (struct qtensor){ .scaling = spec->scaling, .dtype = spec->dtype, .rows = rows, .cols = cols };
        if (spec->scaling == Q_NONE) {
                if (row)
                        out->row = arena_take(row, dtype_size(spec->dtype) * (size_t)(rows * cols));
                return;
        }
        dev_qtensor_bytes(spec, rows, cols, bytes);
        if (row && spec->want_row) {
                out->row = arena_take(row, bytes[0]);
                out->row_scale = arena_take(row, bytes[1]);
        }
        if (col && spec->want_col) {
                out->col = arena_take(col, bytes[2]);
                out->col_scale = arena_take(col, bytes[3]);
        }
}

/* A site's amax and its statistics stand at the same place. */
static int stats_add(struct model *m, const struct quant_spec *spec, const void *x, enum dtype xt, const struct qtensor *t, struct error *e) {
        TRY_DEV(e, m->ops->quant_stats(x, xt, t, m->stats + (spec->amax - m->amax), m->stream));
        return 0;
}

int quantize_at(struct model *m, const struct quant_spec *spec, const void *x, enum dtype xt, int64_t rows, int64_t cols, struct qtensor *out,
                struct error *e) {
        out->scaling = spec->scaling;
        out->dtype = spec->dtype;
        out->rows = rows;
        out->cols = cols;
        if (spec->scaling == Q_NONE) {
                out->row = (void *)(uintptr_t)x; /* an alias: the GEMMs only read it */
                return 0;
        }
        TRY_DEV(e, m->ops->quantize(x, xt, spec, out, m->stream));
        return m->stats_now && spec->want_row ? stats_add(m, spec, x, xt, out, e) : 0;
}

int model_stats_begin(struct model *m, bool wanted, struct error *e) {
        m->stats_now = wanted && m->stats;
        if (!m->stats_now)
                return 0;
        TRY_DEV(e, m->ops->zero(m->stats, sizeof(*m->stats) * (size_t)m->layout->n_layers * SITES, m->stream));
        for (int i = 0; i < m->layout->n_layers; i++) {
                struct layer *l = &m->layers[i];
                struct linear *const all[] = { &l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down };

                for (size_t k = 0; l->fp8 && k < sizeof(all) / sizeof(all[0]); k++)
                        TRY(stats_add(m, all[k]->spec, all[k]->param, m->act, &all[k]->q, e));
        }
        return 0;
}

void model_stats_end(struct model *m) {
        m->stats_now = false;
}
