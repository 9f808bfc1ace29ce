// SPDX-License-Identifier: Apache-2.0
/*
 * Whole training steps of the real trainer on one GPU beside the same on the CPU backend: losses of a small model in every recipe (packed documents, grouped queries, accumulated
 * micro-batches), and twice the same on the GPU, bit for bit.  `test-gpu-step speed`: tokens a second of larger models, printed (no comparison, nothing asserted of the figure).
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <stdio.h>

#include "base/clock.h"
#include "tests/train/harness.h"

#define STEPS 10

struct losses {
        double loss[STEPS], norm[STEPS];
        int steps, skipped;
        double seconds;
        size_t memory;
};

static int train(struct test_rank *r) {
        struct losses *l = r->arg;
        uint64_t began = 0;

        TRY(trainer_init(r->trainer, &r->error));
        TRY(trainer_sync(r->trainer, &r->error));
        for (int i = 0; i < l->steps; i++) {
                struct step_result res;

                if (i == 3)
                        began = clock_mono_ns();
                TRY(trainer_step(r->trainer, &res, &r->error));
                l->skipped += res.skipped;
                l->loss[i % STEPS] = res.loss64;
                l->norm[i % STEPS] = res.grad_norm;
                l->memory = res.memory_bytes;
        }
        TRY_DEV(&r->error, r->ops->stream_sync(r->trainer->model.stream));
        l->seconds = (double)(clock_mono_ns() - began) / 1e9 / (l->steps - 3);
        return 0;
}

static void need_gpu(void) {
        const struct dev_config c = { .kind = "cuda", .act = DT_BF16 };
        const struct dev_ops *ops;
        struct error e = { 0 };
        struct dev *d;

        if (dev_ops_load("cuda", &ops, &e) < 0 || ops->open(&c, &d, &e) < 0)
                TEST_SKIP_ALL(e.text);
        ops->close(d);
}

static struct job_spec small_model(enum job_recipe recipe) {
        struct job_spec s = test_spec();

        s.precision.recipe = recipe;
        s.model.hidden_size = 128;
        s.model.intermediate_size = 320;
        s.model.num_attention_heads = 4;
        s.model.num_key_value_heads = 2;
        s.model.head_dim = 32;
        s.data.seq_len = 128;
        s.model.max_position_embeddings = 128;
        s.train.micro_batch = 2;
        s.train.global_batch = 4;
        return s;
}

TEST(losses_follow_the_cpu) {
        static const enum job_recipe recipes[] = { RECIPE_BF16, RECIPE_BLOCK, RECIPE_TENSOR, RECIPE_DELAYED };

        need_gpu();
        for (size_t k = 0; k < 4; k++) {
                struct job_spec s = small_model(recipes[k]);
                struct losses cpu = { .steps = STEPS }, gpu = { .steps = STEPS }, again = { .steps = STEPS };
                double worst = 0;

                test_device_kind = "cpu";
                CU_ASSERT_EQUAL_FATAL(test_cluster(&s, NULL, train, &cpu), 0);
                test_device_kind = "cuda";
                CU_ASSERT_EQUAL(test_cluster(&s, NULL, train, &gpu), 0);
                CU_ASSERT_EQUAL(test_cluster(&s, NULL, train, &again), 0);
                for (int i = 0; i < STEPS; i++) {
                        worst = fmax(worst, fabs(gpu.loss[i] - cpu.loss[i]) / cpu.loss[i]);
                        printf("    %s step %d: loss %.8f, cpu %.8f; norm %.6f, cpu %.6f\n", job_recipe_name(recipes[k]), i + 1, gpu.loss[i], cpu.loss[i], gpu.norm[i], cpu.norm[i]);
                        CU_ASSERT_EQUAL(gpu.loss[i], again.loss[i]);
                        CU_ASSERT_EQUAL(gpu.norm[i], again.norm[i]);
                }
                /* The first loss differs by roundings of BF16 only; later ones by what the optimizer makes of them. */
                printf("    %s: worst %.2e relative\n", job_recipe_name(recipes[k]), worst);
                CU_ASSERT(fabs(gpu.loss[0] - cpu.loss[0]) < 1e-3 * cpu.loss[0]);
                CU_ASSERT(worst < 1e-2);
                CU_ASSERT_EQUAL(gpu.skipped, 0);
        }
        test_device_kind = "cpu";
}

/* The first step from the same weights, again and again: master weights and moments are hashed each time. */
static int first_step_again(struct test_rank *r) {
        const int n = *(const int *)r->arg;
        struct step_result first, res;

        for (int i = 0; i < n; i++) {
                TRY(trainer_init(r->trainer, &r->error));
                TRY(trainer_sync(r->trainer, &r->error));
                TRY(trainer_step(r->trainer, i == 0 ? &first : &res, &r->error));
                if (i > 0 && (!digest_equal(res.state_digest, first.state_digest) || res.loss64 != first.loss64 || res.grad_norm != first.grad_norm))
                        return error_set(&r->error, -EPROTO, "step %d of %d: found other bits than the first time", i + 1, n);
        }
        return first.has_digest ? 0 : error_set(&r->error, -EINVAL, "no digests were made");
}

/* FP8_REPEATS: how often (20). Sequences long enough for cuDNN's attention, and a head as wide as it has in large models. */
TEST(one_step_has_the_same_bits_every_time) {
        struct job_spec s = small_model(RECIPE_BLOCK);
        const char *repeats = getenv("FP8_REPEATS");
        int n = repeats ? atoi(repeats) : 20;

        need_gpu();
        s.model.hidden_size = 512;
        s.model.intermediate_size = 1408;
        s.model.head_dim = 128;
        s.model.num_key_value_heads = 4;
        s.model.max_position_embeddings = s.data.seq_len = 512;
        s.metrics.digests = true;
        test_device_kind = "cuda";
        CU_ASSERT_EQUAL(test_cluster(&s, NULL, first_step_again, &n), 0);
        test_device_kind = "cpu";
        printf("    %d times the same step\n", n);
}

static void speed(const char *name, struct job_spec s, enum job_recipe recipe, int steps) {
        struct losses l = { .steps = steps };
        const double tokens = (double)(s.train.global_batch * s.data.seq_len);

        s.precision.recipe = recipe;
        test_device_kind = "cuda";
        CU_ASSERT_EQUAL(test_cluster(&s, NULL, train, &l), 0);
        test_device_kind = "cpu";
        printf("  %-8s %-8s %9.0f tokens/s, %.1f ms a step, %.1f GB, loss %.4f, skipped %d\n", name, job_recipe_name(recipe), tokens / l.seconds, l.seconds * 1e3, (double)l.memory / 1e9,
               l.loss[(steps - 1) % STEPS], l.skipped);
        (void)fflush(stdout);
}

static struct job_spec llama(int64_t vocab, int64_t H, int64_t I, int64_t layers, int64_t heads, int64_t D, int64_t seq, int64_t micro, int64_t batch) {
        struct job_spec s = test_spec();

        s.model = (struct model_config){ .vocab_size = vocab, .hidden_size = H, .intermediate_size = I, .num_hidden_layers = layers, .num_attention_heads = heads, .num_key_value_heads = heads,
                                         .head_dim = D, .max_position_embeddings = seq, .rms_norm_eps = 1e-5, .rope_theta = 10000, .initializer_range = 0.02 };
        s.data.seq_len = seq;
        s.train.micro_batch = micro;
        s.train.global_batch = batch;
        s.metrics.digests = false;
        s.train.eval_batches = 0;
        s.optimizer.lr = 3e-4;
        return s;
}

TEST(speed) {
        if (!getenv("FP8_SPEED"))
                return;
        need_gpu();
        speed("162M", llama(50304, 768, 2048, 12, 12, 64, 1024, 16, 32), RECIPE_BF16, 13);
        speed("162M", llama(50304, 768, 2048, 12, 12, 64, 1024, 16, 32), RECIPE_BLOCK, 13);
        speed("1.36B", llama(32000, 2048, 5632, 24, 16, 128, 4096, 1, 4), RECIPE_BF16, 8);
        speed("1.36B", llama(32000, 2048, 5632, 24, 16, 128, 4096, 1, 4), RECIPE_BLOCK, 8);
}

TEST_MAIN("gpu-step")
