// SPDX-License-Identifier: Apache-2.0
/*
 * FP8 recipes against BF16 on the same weights and tokens: the cosine of every gradient above 0.99 (docs/numerics.md), for a model of four layers that has learned for eight steps, and
 * 2,048 tokens a step.  The rule names neither weights nor tokens, and it does not hold for all of them.  Smallest cosines found elsewhere: with sequences of 32 and 512 tokens a step
 * `block` 0.993, one scale a tensor 0.989; there after 16 steps `delayed` 0.973 (a norm's weight), after 32, where the loss is near its floor, `block` 0.965 (the embedding).
 * At random weights, `block`, q and k of the last layer: 0.995 to 0.996 in a model of one layer, 0.987 to 0.990 of two, 0.981 to 0.985 of four, with 256 to 2,048 tokens.  Those last are the
 * recipes' own: an independent emulation (fp8_reference.py) loses the same to 1e-3, and in it the operands of the *forward* products in FP8, all else left alone, leave 0.986, the
 * quantisation of the gradients alone 0.9997.
 * The learning rate is 0, so that the later steps, where `delayed` has a history to scale by, still compare the same weights.
 */
#include <math.h>

#include "tests/train/harness.h"

#define STEPS 4
#define FOLLOWS 0.99

struct run {
        double losses[STEPS];
        struct test_tensors gradients[STEPS];
        struct test_tensors *weights; /* to start from */
        int steps;
};

#define WARM_STEPS 8

/* Random weights make random gradients, small differences of large terms; what is compared is a model that has learned something. */
static int prepare(struct test_rank *r) {
        struct step_result res;

        TRY(trainer_init(r->trainer, &r->error));
        TRY(trainer_sync(r->trainer, &r->error));
        for (int i = 0; i < WARM_STEPS; i++)
                TRY(trainer_step(r->trainer, &res, &r->error));
        test_gather_masters(r, r->arg);
        return 0;
}

static int train(struct test_rank *r) {
        struct run *run = r->arg;

        TRY(trainer_init(r->trainer, &r->error));
        test_set_masters(r, run->weights);
        TRY(trainer_sync(r->trainer, &r->error));
        for (int i = 0; i < run->steps; i++) {
                struct step_result res;

                TRY(trainer_step(r->trainer, &res, &r->error));
                CU_ASSERT_FALSE(res.skipped);
                test_gather_gradients(r, &run->gradients[i]);
                if (trainer_reports_loss(r->trainer))
                        run->losses[i] = res.loss64;
        }
        return 0;
}

static struct job_spec four_layers(void) {
        struct job_spec s = test_spec();

        s.model.hidden_size = 128;
        s.model.intermediate_size = 320; /* ragged over tp and in blocks of 128 */
        s.model.head_dim = 32;
        s.model.num_hidden_layers = 4;
        s.data.seq_len = s.model.max_position_embeddings = 128;
        s.train.micro_batch = 4;
        s.train.global_batch = 16;
        s.precision.recipe = RECIPE_BF16;
        s.precision.reduce = JOB_DTYPE_FP32;
        return s;
}

/* The smallest cosine. */
static double worst(struct test_tensors *a, struct test_tensors *b, const char **ret_name) {
        double min = 2;

        CU_ASSERT_EQUAL(a->n, b->n);
        for (int i = 0; i < b->n; i++) {
                struct test_tensor *x = test_tensors_find(a, b->list[i].name);
                double c = x ? test_cosine(x, &b->list[i]) : -1;

                if (!(c >= min)) {
                        min = c;
                        *ret_name = b->list[i].name;
                }
        }
        return min;
}

/* What all are compared with, and its weights: once for both tests. */
static struct test_tensors weights;
static struct run base = { .weights = &weights, .steps = STEPS };

static void base_init(struct job_spec *s) {
        *s = four_layers();
        if (weights.n == 0)
                CU_ASSERT_EQUAL_FATAL(test_cluster(s, NULL, prepare, &weights), 0);
        s->optimizer.lr = s->optimizer.min_lr = 0;
        if (base.gradients[0].n == 0)
                CU_ASSERT_EQUAL_FATAL(test_cluster(s, NULL, train, &base), 0);
}

static void run_done(struct run *r) {
        for (int i = 0; i < r->steps; i++)
                test_tensors_free(&r->gradients[i]);
}

static void against(const struct job_spec *s, const char *what, double bound) {
        /* With the learning rate at 0 a second step is other tokens, no more, unless scales come from the steps before. */
        struct run run = { .weights = &weights, .steps = s->precision.recipe == RECIPE_DELAYED ? STEPS : 1 + !TEST_SANITIZED };

        CU_ASSERT_EQUAL_FATAL(test_cluster(s, NULL, train, &run), 0);
        printf("    %-22s loss %.5f (%.5f), smallest cosine of each step:", what, run.losses[0], base.losses[0]);
        for (int i = 0; i < run.steps; i++) {
                const char *name = "?";
                double c = worst(&run.gradients[i], &base.gradients[i], &name);

                printf(" %.5f %s", c, name);
                CU_ASSERT(c > bound);
                CU_ASSERT(fabs(run.losses[i] / base.losses[i] - 1) < 5e-3);
        }
        printf("\n");
        run_done(&run);
}

TEST(fp8_gradients_follow_bf16) {
        struct job_spec s;

        base_init(&s);
        s.precision.recipe = RECIPE_BLOCK;
        against(&s, "block", FOLLOWS);
        s.precision.pow2 = POW2_ALL;
        against(&s, "block, powers of two", FOLLOWS);
        s.precision.pow2 = POW2_CACHED;
        s.precision.recipe = RECIPE_TENSOR;
        against(&s, "tensor", FOLLOWS);
        s.precision.recipe = RECIPE_DELAYED;
        against(&s, "delayed", FOLLOWS);
        s.precision.recipe = RECIPE_BLOCK;
        s.precision.bf16_first_layers = s.precision.bf16_last_layers = 1;
        against(&s, "block, ends in bf16", FOLLOWS);
}

TEST(fp8_gradients_follow_bf16_in_parallel) {
        struct job_spec s;

        base_init(&s);
        test_layout(&s, 2, 2, 2);
        against(&s, "bf16 (2,2,2)", 0.999);
        s.precision.reduce = JOB_DTYPE_BF16;
        against(&s, "bf16, bf16 sums", 0.999);
        s.precision.reduce = JOB_DTYPE_FP32;
        s.precision.recipe = RECIPE_BLOCK;
        against(&s, "block", FOLLOWS);
        s.precision.recipe = RECIPE_TENSOR;
        against(&s, "tensor", FOLLOWS);
        s.precision.recipe = RECIPE_DELAYED;
        against(&s, "delayed", FOLLOWS);
}

TEST(base_is_freed) {
        run_done(&base);
        test_tensors_free(&weights);
}

TEST_MAIN("recipes")
