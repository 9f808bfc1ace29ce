// SPDX-License-Identifier: Apache-2.0
/*
 * What must be bitwise: a new trainer that reads a rank's own snapshot goes on with the same losses and digests, and recomputed activations change nothing.
 */
#include <math.h>

#include "tests/train/harness.h"

#define STEPS 7
#define RANKS 8

struct snapshot {
        char json[TRAINER_STATE_JSON_MAX];
        char *bytes;
};

struct run {
        float losses[STEPS];
        struct digest digests[STEPS];
        double val[STEPS], norms[STEPS];
        int from, to;                           /* first step to do: 0, or a snapshot's; the one behind the last */
        struct snapshot snapshots[STEPS][RANKS]; /* taken after step i */
        struct run *source;                     /* of snapshots to read */
};

static size_t state_bytes(struct test_rank *r) {
        const struct shard_tensor *list;
        size_t n, bytes = 0;

        trainer_state(r->trainer, &list, &n);
        for (size_t i = 0; i < n; i++)
                bytes += dtype_size(list[i].dtype) * (size_t)(list[i].rows * list[i].cols);
        return bytes;
}

/* out: state -> buf, else buf -> state */
static int state_copy(struct test_rank *r, char *buf, bool out) {
        const struct shard_tensor *list;
        size_t n, at = 0;

        trainer_state(r->trainer, &list, &n);
        for (size_t i = 0; i < n; i++) {
                size_t bytes = dtype_size(list[i].dtype) * (size_t)(list[i].rows * list[i].cols);

                if (out)
                        TRY_DEV(&r->error, r->ops->copy_out(buf + at, list[i].data, bytes, r->trainer->model.stream));
                else
                        TRY_DEV(&r->error, r->ops->copy_in(list[i].data, buf + at, bytes, r->trainer->model.stream));
                at += bytes;
        }
        return 0;
}

static int train(struct test_rank *r) {
        struct run *run = r->arg;

        /* A standby has rehearsed before it loads. */
        TRY(run->source && run->from % 2 ? trainer_rehearse(r->trainer, &r->error) : trainer_init(r->trainer, &r->error));
        if (run->source) {
                struct snapshot *s = &run->source->snapshots[run->from - 1][r->rank];

                TRY(state_copy(r, s->bytes, false));
                TRY(trainer_set_state_json(r->trainer, s->json, &r->error));
        }
        TRY(trainer_sync(r->trainer, &r->error));
        for (int i = run->from; i < run->to; i++) {
                struct step_result res;

                TRY(trainer_step(r->trainer, &res, &r->error));
                if (!run->source) {
                        struct snapshot *s = &run->snapshots[i][r->rank];

                        s->bytes = malloc(state_bytes(r) + 1);
                        TRY(state_copy(r, s->bytes, true));
                        TRY(trainer_state_json(r->trainer, s->json, sizeof(s->json), &r->error));
                }
                if (!trainer_reports_loss(r->trainer))
                        continue;
                run->losses[i] = res.loss;
                run->digests[i] = res.state_digest;
                run->val[i] = res.val_loss;
                run->norms[i] = res.grad_norm;
                CU_ASSERT_EQUAL(res.step, (uint64_t)i + 1);
        }
        return 0;
}

static void same(const struct run *a, const struct run *b, int from) {
        for (int i = from; i < a->to; i++) {
                CU_ASSERT_EQUAL(memcmp(&a->losses[i], &b->losses[i], sizeof(float)), 0);
                CU_ASSERT(digest_equal(a->digests[i], b->digests[i]));
                CU_ASSERT_EQUAL(memcmp(&a->norms[i], &b->norms[i], sizeof(double)), 0);
                CU_ASSERT(a->val[i] == b->val[i] || (isnan(a->val[i]) && isnan(b->val[i])));
        }
}

static struct run *run_new(int from, int to) {
        struct run *r = calloc(1, sizeof(*r));

        CU_ASSERT_PTR_NOT_NULL_FATAL(r);
        r->from = from;
        r->to = to;
        return r;
}

static void run_done(struct run *r) {
        for (int i = 0; i < STEPS; i++)
                for (int k = 0; k < RANKS; k++)
                        free(r->snapshots[i][k].bytes);
        free(r);
}

/* every 1: from each step; 2: from those before and after the step that is skipped, and before one that evaluates. */
static void restarts(const struct job_spec *s, int every) {
        struct run *base = run_new(0, STEPS);

        CU_ASSERT_EQUAL_FATAL(test_cluster(s, NULL, train, base), 0);
        for (int from = 1; from < STEPS; from += every) {
                struct run *again = run_new(from, STEPS);

                again->source = base;
                CU_ASSERT_EQUAL_FATAL(test_cluster(s, NULL, train, again), 0);
                same(base, again, from);
                run_done(again);
        }
        run_done(base);
}

static struct job_spec spec(enum job_recipe recipe) {
        struct job_spec s = test_spec();

        s.precision.recipe = recipe;
        s.train.steps = STEPS;
        s.train.eval_every = 3;
        s.test.overflow_tensor = (char *)(uintptr_t)"model.layers.1.mlp.down_proj.weight";
        s.test.overflow_step = 4; /* so that a restart meets a skipped step too */
        s.test.overflow_rank = 0;
        return s;
}

TEST(restart_fp32) {
        struct job_spec s = spec(RECIPE_FP32);
        restarts(&s, 1 + TEST_SANITIZED);
}

TEST(restart_block_moments_bf16) {
        struct job_spec s = spec(RECIPE_BLOCK);
        s.precision.moments = JOB_DTYPE_BF16;
        s.precision.loss_scale = LOSS_SCALE_DYNAMIC;
        restarts(&s, 1 + TEST_SANITIZED);
}

TEST(restart_delayed) {
        struct job_spec s = spec(RECIPE_DELAYED);
        restarts(&s, 1 + TEST_SANITIZED);
}

TEST(restart_in_parallel) {
        struct job_spec s = spec(RECIPE_BLOCK);
        test_layout(&s, 2, 2, 2);
        restarts(&s, 2);
        s = spec(RECIPE_DELAYED);
        test_layout(&s, 2, 2, 2);
        restarts(&s, 2);
}

TEST(recomputed_activations_are_the_same) {
        const enum job_recipe recipes[] = { RECIPE_FP32, RECIPE_BF16, RECIPE_BLOCK, RECIPE_DELAYED, RECIPE_TENSOR };

        for (size_t i = 0; i < sizeof(recipes) / sizeof(recipes[0]); i++)
                for (int parallel = 0; parallel < 2; parallel++) {
                        struct job_spec s = spec(recipes[i]);
                        struct run *base = run_new(0, 4), *all = run_new(0, 4), *one = run_new(0, 4); /* an evaluation and a skipped step among them */

                        if (parallel)
                                test_layout(&s, 2, 2, 2);
                        CU_ASSERT_EQUAL_FATAL(test_cluster(&s, NULL, train, base), 0);
                        s.train.recompute_all = true;
                        CU_ASSERT_EQUAL_FATAL(test_cluster(&s, NULL, train, all), 0);
                        same(base, all, 0);
                        s.train.recompute_all = false;
                        s.train.n_recompute_layers = 1;
                        s.train.recompute_layers[0] = 1;
                        CU_ASSERT_EQUAL_FATAL(test_cluster(&s, NULL, train, one), 0);
                        same(base, one, 0);
                        run_done(base);
                        run_done(all);
                        run_done(one);
                }
}

TEST_MAIN("restart")
