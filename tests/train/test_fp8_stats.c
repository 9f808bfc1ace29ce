// SPDX-License-Identifier: Apache-2.0
/* What the FP8 tensors tell of themselves: of every site of every FP8 layer, in the steps asked for, the same on all ranks; and no bit of the training depends on it. */
#include <math.h>

#include "kernels/fp8.h"
#include "tests/train/harness.h"

#define STEPS 3
#define SITES_TOLD_MAX (4 * SITES)

struct run {
        uint32_t losses[STEPS]; /* their bits */
        struct digest digests[STEPS];
        size_t told[STEPS];
        struct fp8_tensor list[STEPS][SITES_TOLD_MAX]; /* of the rank that reports losses */
        struct test_tensors masters;                   /* before the first step */
        bool gather;
};

static int train(struct test_rank *r) {
        struct run *run = r->arg;

        TRY(trainer_init(r->trainer, &r->error));
        TRY(trainer_sync(r->trainer, &r->error));
        if (run->gather)
                test_gather_masters(r, &run->masters);
        for (int i = 0; i < STEPS; i++) {
                const struct fp8_tensor *list;
                struct step_result res;
                size_t n;

                TRY(trainer_step(r->trainer, &res, &r->error));
                if (!trainer_reports_loss(r->trainer))
                        continue;
                n = trainer_fp8(r->trainer, &list);
                CU_ASSERT_FATAL(n <= SITES_TOLD_MAX);
                memcpy(&run->losses[i], &res.loss, sizeof(res.loss));
                run->digests[i] = res.state_digest;
                run->told[i] = n;
                if (n > 0)
                        memcpy(run->list[i], list, n * sizeof(*list));
        }
        return 0;
}

static struct job_spec fp8_spec(enum job_recipe recipe, int tp, int pp, int dp) {
        struct job_spec s = test_spec();

        s.model.num_hidden_layers = 2;
        s.precision.recipe = recipe;
        s.train.global_batch = 4;
        test_layout(&s, tp, pp, dp);
        return s;
}

/* With the statistics of every second step, and without. */
static void same_bits(enum job_recipe recipe, int tp, int pp, int dp, bool sequence_parallel, bool recompute) {
        struct job_spec s = fp8_spec(recipe, tp, pp, dp);
        struct run plain = { 0 }, told = { 0 };

        s.parallel.sequence_parallel = sequence_parallel;
        s.train.recompute_all = recompute;
        CU_ASSERT_EQUAL(test_cluster(&s, NULL, train, &plain), 0);
        s.metrics.fp8_every = 2;
        CU_ASSERT_EQUAL(test_cluster(&s, NULL, train, &told), 0);
        CU_ASSERT_EQUAL(memcmp(plain.losses, told.losses, sizeof(plain.losses)), 0);
        CU_ASSERT_EQUAL(memcmp(plain.digests, told.digests, sizeof(plain.digests)), 0);
        CU_ASSERT(plain.told[0] + plain.told[1] + plain.told[2] == 0 && told.told[0] == 0 && told.told[2] == 0);
        CU_ASSERT_EQUAL(told.told[1], 2 * (recipe == RECIPE_BLOCK ? SITES : SITES - 2)); /* SwiGLU's inputs are kept in FP8 by recipe block only */
        for (size_t i = 0; i < told.told[1]; i++) {
                const struct fp8_tensor *f = &told.list[1][i];

                CU_ASSERT(f->amax > 0 && isfinite(f->amax) && f->saturated >= 0 && f->saturated < 0.5 && f->flushed >= 0 && f->flushed < 0.5);
                if (recipe == RECIPE_BLOCK)
                        CU_ASSERT_DOUBLE_EQUAL(f->saturated, 0, 0); /* the scales are the values' own */
        }
}

TEST(block_no_bit_changes) {
        same_bits(RECIPE_BLOCK, 2, 1, 2, true, false);
}

TEST(block_recomputed_no_bit_changes) {
        same_bits(RECIPE_BLOCK, 1, 2, 1, false, true);
}

TEST(delayed_no_bit_changes) {
        same_bits(RECIPE_DELAYED, 1, 2, 1, false, false);
}

/* The weights are known beforehand: their greatest values come from all ranks that hold a part. */
TEST(gathered_from_all_ranks) {
        static const char *const weights[] = { "self_attn.q_proj.weight", "self_attn.o_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight" };
        struct job_spec s = fp8_spec(RECIPE_BLOCK, 2, 2, 1);
        struct run run = { .gather = true };
        int found = 0;

        s.metrics.fp8_every = 1;
        CU_ASSERT_EQUAL(test_cluster(&s, NULL, train, &run), 0);
        for (size_t i = 0; i < run.told[0]; i++)
                for (size_t k = 0; k < sizeof(weights) / sizeof(weights[0]); k++) {
                        const struct fp8_tensor *f = &run.list[0][i];
                        struct test_tensor *x;
                        char name[SHARD_NAME_MAX];
                        double amax = 0;

                        if (strcmp(f->name, weights[k]) != 0)
                                continue;
                        snprintf(name, sizeof(name), "model.layers.%d.%s", f->layer, f->name);
                        x = test_tensors_find(&run.masters, name);
                        CU_ASSERT_PTR_NOT_NULL(x);
                        for (int64_t j = 0; x && j < x->rows * x->cols; j++)
                                amax = fmax(amax, fabs((double)bf16_to_float(bf16_from_float((float)x->values[j]))));
                        CU_ASSERT_DOUBLE_EQUAL(f->amax, amax, 0);
                        found++;
                }
        CU_ASSERT_EQUAL(found, 2 * 4);
        test_tensors_free(&run.masters);
}

TEST(other_recipes_tell_nothing) {
        struct job_spec s = fp8_spec(RECIPE_BF16, 1, 1, 1);
        struct run run = { 0 };

        s.metrics.fp8_every = 1;
        CU_ASSERT_EQUAL(test_cluster(&s, NULL, train, &run), 0);
        CU_ASSERT_EQUAL(run.told[0], 0);
}

TEST_MAIN("fp8 statistics")
