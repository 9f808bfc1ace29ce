/* SPDX-License-Identifier: Apache-2.0 */
/* What several keys of a job file say together. Each refusal names the key to change, what was found and what the others allow. */
#include <inttypes.h>
#include <stdio.h>

#include "proto/job_parse.h"

/* Refuses the value that `path` has, at its line. */
#define REFUSE(p, path, ...)                                                                                           \
        ({                                                                                                             \
                char refuse_found[160];                                                                                \
                job_key_describe(job_key_find(path), (p)->spec, refuse_found, sizeof(refuse_found));                   \
                job_refuse(&(p)->src, job_line((p), (path)), (path), refuse_found, (p)->e, __VA_ARGS__);               \
        })

static int check_model(const struct job_parse *p) {
        const struct model_config *m = &p->spec->model;

        if (m->num_attention_heads % m->num_key_value_heads)
                return REFUSE(p, "model.num_key_value_heads", "a divisor of model.num_attention_heads (%" PRId64 ")", m->num_attention_heads);
        if (m->head_dim * m->num_attention_heads > 1 << 20)
                return REFUSE(p, "model.head_dim", "so much that model.num_attention_heads (%" PRId64 ") * model.head_dim is at most 1048576", m->num_attention_heads);
        if (m->head_dim > MODEL_HEAD_DIM_MAX) /* derived: what is given was checked */
                return REFUSE(p, "model.hidden_size", "at most %d * model.num_attention_heads (%" PRId64 ")", MODEL_HEAD_DIM_MAX, m->num_attention_heads);
        if (m->head_dim < 2 || m->head_dim % 2) {
                if (job_given(p, "model.head_dim"))
                        return REFUSE(p, "model.head_dim", "an even number (the rotary embedding turns pairs)");
                return REFUSE(p, "model.hidden_size", "an even multiple of model.num_attention_heads (%" PRId64 "); or give model.head_dim", m->num_attention_heads);
        }
        if (p->head_dim_derived && m->head_dim * m->num_attention_heads != m->hidden_size)
                return REFUSE(p, "model.hidden_size", "a multiple of model.num_attention_heads (%" PRId64 "); or give model.head_dim", m->num_attention_heads);
        return 0;
}

static int check_layout(const struct job_parse *p) {
        const struct job_spec *s = p->spec;
        const struct model_config *m = &s->model;
        int64_t tp = s->parallel.tp, padded = (m->vocab_size + tp - 1) / tp * tp;

        if (tp * s->parallel.pp * s->parallel.dp > JOB_MAX_RANKS)
                return REFUSE(p, "parallel.dp", "so much that tp (%d) * pp (%d) * dp is at most %d", s->parallel.tp, s->parallel.pp, JOB_MAX_RANKS);
        if (m->num_attention_heads % tp)
                return REFUSE(p, "parallel.tp", "a divisor of model.num_attention_heads (%" PRId64 ")", m->num_attention_heads);
        if (m->num_key_value_heads % tp)
                return REFUSE(p, "parallel.tp", "a divisor of model.num_key_value_heads (%" PRId64 ")", m->num_key_value_heads);
        if (m->intermediate_size % tp)
                return REFUSE(p, "parallel.tp", "a divisor of model.intermediate_size (%" PRId64 ")", m->intermediate_size);
        if (m->vocab_size % tp)
                return REFUSE(p, "model.vocab_size", "a multiple of parallel.tp (%" PRId64 "); pad it to %" PRId64, tp, padded);
        if (m->num_hidden_layers % s->parallel.pp)
                return REFUSE(p, "parallel.pp", "a divisor of model.num_hidden_layers (%" PRId64 ")", m->num_hidden_layers);
        if (s->data.seq_len > m->max_position_embeddings)
                return REFUSE(p, "data.seq_len", "at most model.max_position_embeddings (%" PRId64 ")", m->max_position_embeddings);
        if (s->parallel.sequence_parallel && s->data.seq_len % tp)
                return REFUSE(p, "data.seq_len", "a multiple of parallel.tp (%" PRId64 ") with parallel.sequence_parallel", tp);
        return 0;
}

static int check_train(const struct job_parse *p) {
        const struct job_spec *s = p->spec;
        int64_t unit = s->train.micro_batch * s->parallel.dp;

        if (s->train.global_batch % unit)
                return REFUSE(p, "train.global_batch", "a multiple of train.micro_batch * parallel.dp (%" PRId64 " * %d = %" PRId64 ")", s->train.micro_batch,
                              s->parallel.dp, unit);
        if (s->recovery.min_dp > s->parallel.dp)
                return REFUSE(p, "recovery.min_dp", "at most parallel.dp (%d)", s->parallel.dp);
        if (s->train.micro_batch * s->data.seq_len > INT32_MAX / 4)
                return REFUSE(p, "train.micro_batch", "so much that train.micro_batch * data.seq_len (%" PRId64 ") is at most %d tokens", s->data.seq_len, INT32_MAX / 4);
        for (int i = 0; i < s->train.n_recompute_layers; i++) {
                if (s->train.recompute_layers[i] >= s->model.num_hidden_layers)
                        return REFUSE(p, "train.recompute", "layer numbers from 0 to %" PRId64, s->model.num_hidden_layers - 1);
                if (i > 0 && s->train.recompute_layers[i] == s->train.recompute_layers[i - 1])
                        return REFUSE(p, "train.recompute", "each layer once (%" PRId64 " is in it twice)", s->train.recompute_layers[i]);
        }
        if (s->precision.bf16_first_layers + s->precision.bf16_last_layers > s->model.num_hidden_layers)
                return REFUSE(p, "precision.bf16_last_layers", "so much that precision.bf16_first_layers (%" PRId64 ") and it are at most model.num_hidden_layers (%" PRId64 ")",
                              s->precision.bf16_first_layers, s->model.num_hidden_layers);
        return 0;
}

static int check_optimizer(const struct job_parse *p) {
        const struct job_spec *s = p->spec;

        /* (1 - beta2) of a moment must not be below half a unit in BF16's last place, 2^-9, or the moment stops moving: docs/numerics.md, and 1 - 0.95 has room to spare. */
        if (s->precision.moments == JOB_DTYPE_BF16 && s->optimizer.beta2 > 0.95)
                return REFUSE(p, "precision.moments", "fp32, or optimizer.beta2 of at most 0.95 (it is %.10g)", s->optimizer.beta2);
        if (s->optimizer.min_lr > s->optimizer.lr)
                return REFUSE(p, "optimizer.min_lr", "at most optimizer.lr (%.10g)", s->optimizer.lr);
        if (s->optimizer.warmup_steps > s->train.steps)
                return REFUSE(p, "optimizer.warmup_steps", "at most train.steps (%" PRId64 ")", s->train.steps);
        if (s->optimizer.schedule != SCHEDULE_WSD && s->optimizer.decay_steps != 0)
                return REFUSE(p, "optimizer.decay_steps", "0, or optimizer.schedule: wsd");
        if (s->optimizer.warmup_steps + s->optimizer.decay_steps > s->train.steps)
                return REFUSE(p, "optimizer.decay_steps", "so much that optimizer.warmup_steps (%" PRId64 ") and it are at most train.steps (%" PRId64 ")",
                              s->optimizer.warmup_steps, s->train.steps);
        if (s->precision.loss_scale_init != 0 && s->precision.loss_scale_init < 1)
                return REFUSE(p, "precision.loss_scale_init", "0, or at least 1");
        return 0;
}

static int check_test(const struct job_parse *p) {
        const struct job_spec *s = p->spec;
        int ranks = s->parallel.tp * s->parallel.pp * s->parallel.dp;

        if (s->test.overflow_step >= 0 && !s->test.overflow_tensor)
                return REFUSE(p, "test.overflow_tensor", "a tensor's global name, since test.overflow_step is given");
        if (s->test.overflow_rank >= ranks)
                return REFUSE(p, "test.overflow_rank", "a rank from 0 to %d", ranks - 1);
        if (s->test.kill_rank >= ranks)
                return REFUSE(p, "test.kill_rank", "a rank from 0 to %d", ranks - 1);
        if (s->test.kill_step >= 0 && s->test.kill_rank < 0)
                return REFUSE(p, "test.kill_rank", "a rank from 0 to %d, since test.kill_step is given", ranks - 1);
        if (s->test.kill_step >= 0 && !s->test.kill_point)
                return REFUSE(p, "test.kill_point", "one of forward, agreed, updated, gathered, snapshot, prepared, since test.kill_step is given");
        return 0;
}

int job_check(const struct job_parse *p) {
        int r = check_model(p);

        if (r == 0)
                r = check_layout(p);
        if (r == 0)
                r = check_train(p);
        if (r == 0)
                r = check_optimizer(p);
        if (r == 0)
                r = check_test(p);
        return r;
}
