// SPDX-License-Identifier: Apache-2.0
/*
 * The same training in five layouts (docs/numerics.md, "What is checked"): FP32 first-step loss 1e-6, gradients 1e-5 by norm, losses 1e-4 at step 50; in the FP64
 * build 1e-9 at step 50, which proves the parallel code where rounding would hide a fault.  Variants of the model: the same at step 20.
 */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "tests/train/harness.h"

#define STEPS 50

struct run {
        int steps;
        double losses[STEPS];
        struct test_tensors gradients;
};

static int train(struct test_rank *r) {
        struct run *run = r->arg;

        TRY(trainer_init(r->trainer, &r->error));
        TRY(trainer_sync(r->trainer, &r->error));
        for (int i = 0; i < run->steps; i++) {
                struct step_result res;

                TRY(trainer_step(r->trainer, &res, &r->error));
                if (i == 0)
                        test_gather_gradients(r, &run->gradients);
                if (trainer_reports_loss(r->trainer))
                        run->losses[i] = res.loss64;
        }
        return 0;
}

static const int layouts[][3] = { { 1, 1, 1 }, { 2, 1, 1 }, { 1, 2, 1 }, { 1, 1, 2 }, { 2, 2, 2 } };

static void compare(const struct run *base, struct run *other) {
        const double first = sizeof(dev_real) == 8 ? 1e-12 : 1e-6, gradient = sizeof(dev_real) == 8 ? 1e-11 : 1e-5, last = sizeof(dev_real) == 8 ? 1e-9 : 1e-4;
        const int end = other->steps - 1;

        CU_ASSERT(fabs(other->losses[0] / base->losses[0] - 1) <= first);
        CU_ASSERT_EQUAL(other->gradients.n, base->gradients.n);
        for (int i = 0; i < base->gradients.n; i++) {
                const struct test_tensor *b = &base->gradients.list[i], *o = test_tensors_find(&other->gradients, b->name);
                double d = o ? test_distance(o, b) : INFINITY;

                if (!(d <= gradient))
                        printf("    %s: gradients differ by %g\n", b->name, d);
                CU_ASSERT(d <= gradient);
        }
        printf("    first loss %.9f, loss %.12f at step %d, off by %.2g\n", other->losses[0], other->losses[end], other->steps, fabs(other->losses[end] / base->losses[end] - 1));
        CU_ASSERT(fabs(other->losses[end] / base->losses[end] - 1) <= last);
}

static void run_layout(struct job_spec *s, const int layout[3], struct run *ret) {
        test_layout(s, layout[0], layout[1], layout[2]);
        CU_ASSERT_EQUAL_FATAL(test_cluster(s, NULL, train, ret), 0);
}

static void all_layouts(struct job_spec *s, int steps) {
        struct run base = { .steps = steps };

        run_layout(s, layouts[0], &base);
        CU_ASSERT(base.losses[steps - 1] < 0.8 * base.losses[0]);
        for (size_t i = 1; i < sizeof(layouts) / sizeof(layouts[0]); i++) {
                struct run run = { .steps = steps };

                run_layout(s, layouts[i], &run);
                compare(&base, &run);
                test_tensors_free(&run.gradients);
        }
        test_tensors_free(&base.gradients);
}

TEST(layouts_agree_untied) {
        struct job_spec s = test_spec();
        all_layouts(&s, STEPS);
}

/* What is new here are the first and last rank's sums of one table's gradient, which are compared; steps only carry on what those make. */
TEST(layouts_agree_tied) {
        struct job_spec s = test_spec();
        s.model.tie_word_embeddings = true;
        s.model.vocab_size = 97; /* ragged over tp */
        all_layouts(&s, 20);
}

/* Of the layouts, only those with tp have it. */
TEST(sequence_parallelism_changes_nothing) {
        struct run with = { .steps = 20 };
        struct job_spec s = test_spec();

        run_layout(&s, layouts[0], &with);
        s.parallel.sequence_parallel = false;
        for (size_t i = 1; i < sizeof(layouts) / sizeof(layouts[0]); i++) {
                struct run without = { .steps = 20 };

                if (layouts[i][0] == 1)
                        continue;
                run_layout(&s, layouts[i], &without);
                compare(&with, &without);
                test_tensors_free(&without.gradients);
        }
        test_tensors_free(&with.gradients);
}

static int look(struct test_rank *r) {
        const struct trainer *t = r->trainer;
        int *ret = r->arg;

        if (r->rank == 0) {
                ret[0] = t->reducer.n;
                ret[1] = t->optimizer.parts;
        }
        for (int i = 0; i < t->reducer.n; i++) { /* all of the buffer once, from its end downwards */
                const struct bucket *b = &t->reducer.buckets[i];
                size_t sum = 0;

                for (int k = 0; k < t->layout.dp; k++)
                        sum += b->counts[k];
                if (sum != (size_t)(b->hi - b->lo) || b->hi != (i > 0 ? b[-1].lo : t->table.elements) || (i == t->reducer.n - 1) != (b->lo == 0))
                        return -EINVAL;
        }
        return 0;
}

TEST(gradients_of_buckets_are_those_of_the_whole) {
        struct run one = { .steps = 5 }, many = { .steps = 5 };
        struct job_spec s = test_spec();
        int64_t small = test_bucket_bytes;
        int shape[2];

        test_layout(&s, 1, 1, 2);
        CU_ASSERT_EQUAL(test_cluster(&s, NULL, look, shape), 0);
        CU_ASSERT(shape[0] > 2 && shape[1] > 2);
        CU_ASSERT_EQUAL(test_cluster(&s, NULL, train, &many), 0);
        test_bucket_bytes = 0;
        CU_ASSERT_EQUAL(test_cluster(&s, NULL, look, shape), 0);
        CU_ASSERT(shape[0] == 1 && shape[1] == 1);
        CU_ASSERT_EQUAL(test_cluster(&s, NULL, train, &one), 0);
        test_bucket_bytes = small;
        CU_ASSERT(memcmp(one.losses, many.losses, sizeof(one.losses)) == 0); /* two terms: no order */
        test_tensors_free(&one.gradients);
        test_tensors_free(&many.gradients);
}

TEST_MAIN("layouts")
