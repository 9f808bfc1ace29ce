// SPDX-License-Identifier: Apache-2.0
/* Gradients of the FP64 build against central finite differences, on some elements of every tensor. */
#include <math.h>

#include "tests/train/harness.h"

#define SAMPLES 3
#define H 1e-5

/* The same batch again, with the weights as they now stand. */
static double loss_here(struct test_rank *r) {
        struct step_result res = { .loss64 = NAN };

        r->trainer->progress.step = r->trainer->progress.data_step = 0;
        ASSERT_OK(trainer_sync(r->trainer, &r->error), r->error);
        ASSERT_OK(trainer_step(r->trainer, &res, &r->error), r->error);
        return res.loss64;
}

static int differentiate(struct test_rank *r) {
        struct trainer *t = r->trainer;
        struct test_tensors g = { 0 };
        double worst = 0;

        TRY(trainer_init(t, &r->error));
        loss_here(r);
        test_gather_gradients(r, &g);
        for (int i = 0; i < t->zero.n_pieces; i++) {
                struct adamw_tensor *a = &t->optimizer.list[i];
                struct test_tensor *x = test_tensors_find(&g, t->zero.pieces[i].tensor->name);
                double rms = 0;

                for (int64_t k = 0; k < a->count; k++)
                        rms += x->values[k] * x->values[k] / (double)a->count;
                for (int s = 0; s < SAMPLES; s++) {
                        int64_t k = (a->count - 1) * (2 * s + 1) / (2 * SAMPLES);
                        dev_real was = a->master[k];
                        double up, down, error;

                        a->master[k] = (dev_real)((double)was + H);
                        up = loss_here(r);
                        a->master[k] = (dev_real)((double)was - H);
                        down = loss_here(r);
                        a->master[k] = was;
                        error = fabs((up - down) / (2 * H) - x->values[k]) / (fabs(x->values[k]) + sqrt(rms));
                        worst = error > worst ? error : worst;
                        if (!(error < 1e-6))
                                printf("    %s[%lld]: difference %.12g, gradient %.12g\n", x->name, (long long)k, (up - down) / (2 * H), x->values[k]);
                        CU_ASSERT(error < 1e-6);
                        CU_ASSERT(fabs(x->values[k]) > 0 || s > 0 || x->rows > 1);
                }
        }
        printf("    %d tensors, greatest error %.2g of the gradient's size\n", t->zero.n_pieces, worst);
        test_tensors_free(&g);
        return 0;
}

static struct job_spec frozen(void) {
        struct job_spec s = test_spec();

        s.optimizer.lr = s.optimizer.min_lr = 0;
        s.metrics.digests = false;
        s.train.global_batch = 4;
        return s;
}

TEST(gradients_are_differences_untied) {
        struct job_spec s = frozen();
        CU_ASSERT_EQUAL(test_cluster(&s, NULL, differentiate, NULL), 0);
}

TEST(gradients_are_differences_tied) {
        struct job_spec s = frozen();
        s.model.tie_word_embeddings = true;
        s.model.num_key_value_heads = 1;
        CU_ASSERT_EQUAL(test_cluster(&s, NULL, differentiate, NULL), 0);
}

TEST_MAIN("differences")
