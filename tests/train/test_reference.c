// SPDX-License-Identifier: Apache-2.0
/*
 * Loss and gradients of the first step against independently written models in torch: with autograd (reference.py), FP32 1e-5 by norm; with the roundings of the FP8 recipes
 * (fp8_reference.py), as near as the arithmetic allows.
 */
#include <jansson.h>
#include <math.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "tests/train/harness.h"

static const char *script, *fp8_script; /* argv[1] would be CUnit's filter: the paths come by the environment */

struct first_step {
        struct test_tensors weights, gradients;
        double loss;
};

static int one_step(struct test_rank *r) {
        struct first_step *f = r->arg;
        struct step_result res;

        TRY(trainer_init(r->trainer, &r->error));
        TRY(trainer_sync(r->trainer, &r->error));
        test_gather_masters(r, &f->weights);
        TRY(trainer_step(r->trainer, &res, &r->error));
        test_gather_gradients(r, &f->gradients);
        if (trainer_reports_loss(r->trainer))
                f->loss = res.loss64;
        return 0;
}

static void write_json(const char *folder, const char *name, json_t *j) {
        _cleanup_free_ char *path = file_path("%s/%s", folder, name);

        CU_ASSERT_EQUAL_FATAL(json_dump_file(j, path, JSON_REAL_PRECISION(17)), 0);
        json_decref(j);
}

static void write_model(const char *folder, const struct job_spec *s, const struct test_tensors *weights) {
        json_t *shapes = json_object();

        for (int i = 0; i < weights->n; i++) {
                const struct test_tensor *t = &weights->list[i];
                _cleanup_free_ char *path = file_path("%s/%s.f64", folder, t->name);
                _cleanup_fclose_ FILE *f = fopen(path, "w");

                CU_ASSERT_PTR_NOT_NULL_FATAL(f);
                CU_ASSERT_EQUAL_FATAL(fwrite(t->values, sizeof(double), (size_t)(t->rows * t->cols), f), (size_t)(t->rows * t->cols));
                json_object_set_new(shapes, t->name, json_pack("[II]", (json_int_t)t->rows, (json_int_t)t->cols));
        }
        write_json(folder, "model.json",
                   json_pack("{s:I, s:I, s:I, s:I, s:f, s:f, s:s, s:s, s:I, s:o}", "layers", (json_int_t)s->model.num_hidden_layers, "heads",
                             (json_int_t)s->model.num_attention_heads, "kv_heads", (json_int_t)s->model.num_key_value_heads, "head_dim",
                             (json_int_t)s->model.head_dim, "eps", s->model.rms_norm_eps, "theta", s->model.rope_theta, "recipe",
                             job_recipe_name(s->precision.recipe), "pow2", s->precision.pow2 == POW2_ALL ? "all" : "cached", "micro_batch",
                             (json_int_t)s->train.micro_batch, "tensors", shapes));
}

static json_t *int_array(const int32_t *x, int64_t n) {
        json_t *a = json_array();

        for (int64_t i = 0; i < n; i++)
                json_array_append_new(a, json_integer(x[i]));
        return a;
}

static void write_batch(const char *folder, const struct job_spec *s) {
        int32_t ids[128], labels[128], starts[128];
        struct dataset *d = NULL;
        struct error e = { 0 };
        json_t *batch = json_array();
        int n;

        ASSERT_OK(dataset_open(s, &d, &e), e);
        for (int64_t i = 0; i < s->train.global_batch; i++) {
                ASSERT_OK(dataset_sample(d, false, (uint64_t)i, ids, labels, starts, &n, &e), e);
                json_array_append_new(batch, json_pack("{s:o, s:o, s:o}", "ids", int_array(ids, s->data.seq_len), "labels",
                                                       int_array(labels, s->data.seq_len), "starts", int_array(starts, n)));
        }
        dataset_free(d);
        write_json(folder, "batch.json", batch);
}

static double read_loss(const char *folder) {
        _cleanup_free_ char *path = file_path("%s/loss.json", folder);
        json_t *j = json_load_file(path, 0, NULL);
        double loss = json_number_value(json_object_get(j, "loss"));

        json_decref(j);
        return loss;
}

/* What the script made of tensor t: "grad", or in the emulation's second run "single". */
static struct test_tensor read_gradient(const char *folder, const struct test_tensor *t, const char *suffix) {
        _cleanup_free_ char *path = file_path("%s/%s.%s.f64", folder, t->name, suffix);
        struct test_tensor ret = *t;
        char *data = NULL;
        size_t len;

        CU_ASSERT_EQUAL_FATAL(file_read(path, 1 << 24, &data, &len, NULL), 0);
        CU_ASSERT_EQUAL_FATAL(len, sizeof(double) * (size_t)(t->rows * t->cols));
        ret.values = (double *)(void *)data;
        return ret;
}

static void compare(const char *folder, const struct first_step *f) {
        const double bound = sizeof(dev_real) == 8 ? 1e-10 : 1e-5;
        double worst = 0;

        CU_ASSERT(fabs(f->loss / read_loss(folder) - 1) < (sizeof(dev_real) == 8 ? 1e-12 : 1e-6));
        for (int i = 0; i < f->gradients.n; i++) {
                const struct test_tensor *g = &f->gradients.list[i];
                struct test_tensor t = read_gradient(folder, g, "grad");
                double d = test_distance(g, &t);

                worst = d > worst ? d : worst;
                if (!(d < bound))
                        printf("    %s: off by %g\n", g->name, d);
                CU_ASSERT(d < bound);
                free(t.values);
        }
        printf("    loss %.9f, greatest distance of a gradient %.2g\n", f->loss, worst);
}

/* The first step in the engine, and what torch needs to take it, in a new folder. */
static void engine_step(const struct job_spec *s, char *folder, struct first_step *f) {
        CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(folder));
        CU_ASSERT_EQUAL_FATAL(test_cluster(s, NULL, one_step, f), 0);
        write_model(folder, s, &f->weights);
        write_batch(folder, s);
}

/* The step in torch: its results lie in the folders (names with blanks between). */
static void torch_steps(const char *program, const char *folders) {
        _cleanup_free_ char *command = file_path("/usr/bin/python3 -B '%s' %s", program, folders);
        int status = system(command);

        CU_ASSERT_FATAL(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void against_torch(struct job_spec *s) {
        char folder[] = "/tmp/fp8-reference-XXXXXX";
        struct first_step f = { 0 };

        engine_step(s, folder, &f);
        torch_steps(script, folder);
        compare(folder, &f);
        test_tensors_free(&f.weights);
        test_tensors_free(&f.gradients);
        file_remove_tree(folder, NULL);
}

/* No torch: skipped, as the last test would have to be anyway. */
TEST(a_torch_is_here) {
        script = getenv("TRAIN_REFERENCE");
        fp8_script = getenv("TRAIN_FP8_REFERENCE");
        CU_ASSERT_PTR_NOT_NULL_FATAL(script);
        CU_ASSERT_PTR_NOT_NULL_FATAL(fp8_script);
        if (system("/usr/bin/python3 -c 'import torch' 2>/dev/null") != 0)
                TEST_SKIP_ALL("no torch for /usr/bin/python3 (Debian: python3-torch)");
}

TEST(torch_agrees_untied) {
        struct job_spec s = test_spec();
        against_torch(&s);
}

TEST(torch_agrees_tied_in_parallel) {
        struct job_spec s = test_spec();
        s.model.tie_word_embeddings = true;
        test_layout(&s, 2, 2, 2);
        against_torch(&s);
}

#ifndef FP8_FP64

/*
 * Layers at their random beginning, and a step of 2048 tokens in two passes, which is what small runs take. Widths that are not whole blocks of 128, and a hidden size
 * of one: what is compared is where things are rounded, which more of the same would not show better.
 */
static struct job_spec some_layers(int layers) {
        struct job_spec s = test_spec();

        s.model.vocab_size = 256;
        s.model.hidden_size = 128;
        s.model.intermediate_size = 320;
        s.model.head_dim = 32;
        s.model.num_hidden_layers = layers;
        s.model.initializer_range = 0.02;
        s.model.max_position_embeddings = 128;
        s.data.seq_len = 128;
        s.train.micro_batch = 8;
        s.train.global_batch = 16;
        return s;
}

struct pair {
        char folder[32];
        struct first_step engine;
};

static void pair_engine(struct pair *p, int layers, enum job_recipe recipe, enum job_pow2 pow2) {
        struct job_spec s = some_layers(layers);

        *p = (struct pair){ .folder = "/tmp/fp8-reference-XXXXXX" };
        s.precision.recipe = recipe;
        s.precision.pow2 = pow2;
        engine_step(&s, p->folder, &p->engine);
}

static void pair_done(struct pair *p) {
        test_tensors_free(&p->engine.weights);
        test_tensors_free(&p->engine.gradients);
        file_remove_tree(p->folder, NULL);
}

struct least {
        double cosine;
        const char *name;
};

static void lower(struct least *l, double cosine, const char *name) {
        if (!l->name || !(cosine >= l->cosine))
                *l = (struct least){ cosine, name };
}

/*
 * The bound is the distance between the emulation in double and in single precision, measured here: two implementations that both keep the rules, and differ by where the last bit of a sum
 * falls.  The engine computes in single precision as well, so it is to be as near, with a factor of 3 for chance: which values flip depends on the order of summation, and orders were found up
 * to 1.8 apart.  (Taking the sums of p dp in the softmax's gradient from unrounded outputs, a smaller thing than any of the recipes' rules, is 5 to 7 times off in one layer.)
 */
static void compare_recipes(const struct pair *base, const struct pair *fp8, const char *what) {
        struct least same = { 0 }, self = { 0 }, engine = { 0 }, torch = { 0 };

        for (int i = 0; i < fp8->engine.gradients.n; i++) {
                const struct test_tensor *g = &fp8->engine.gradients.list[i], *b = &base->engine.gradients.list[i];
                struct test_tensor t = read_gradient(fp8->folder, g, "grad"), single = read_gradient(fp8->folder, g, "single"), tb = read_gradient(base->folder, b, "grad");

                CU_ASSERT_STRING_EQUAL_FATAL(g->name, b->name);
                lower(&same, test_cosine(g, &t), g->name);
                lower(&self, test_cosine(&single, &t), g->name);
                lower(&engine, test_cosine(g, b), g->name);
                lower(&torch, test_cosine(&t, &tb), g->name);
                free(t.values);
                free(single.values);
                free(tb.values);
        }
        printf("    %-18s loss %.6f (%.6f); 1 - smallest cosine: with the emulation %.1e %s (its own in single precision %.1e %s); with bf16 %.1e %s, the emulation's %.1e %s\n", what,
               fp8->engine.loss, read_loss(fp8->folder), 1 - same.cosine, same.name, 1 - self.cosine, self.name, 1 - engine.cosine, engine.name, 1 - torch.cosine, torch.name);
        CU_ASSERT(1 - same.cosine < 3 * (1 - self.cosine));
        CU_ASSERT(fabs(engine.cosine - torch.cosine) < 3 * (1 - self.cosine));
        CU_ASSERT(fabs(fp8->engine.loss / read_loss(fp8->folder) - 1) < 2e-5);
}

static void emulate(int layers) {
        const enum job_recipe recipes[] = { RECIPE_BF16, RECIPE_BLOCK, RECIPE_TENSOR };
        struct pair p[3];
        char folders[128];

        for (size_t i = 0; i < 3; i++)
                pair_engine(&p[i], layers, recipes[i], POW2_CACHED);
        snprintf(folders, sizeof(folders), "%s %s %s", p[0].folder, p[1].folder, p[2].folder);
        torch_steps(fp8_script, folders);
        for (size_t i = 0; i < 3; i++)
                compare_recipes(&p[0], &p[i], job_recipe_name(recipes[i]));
        for (size_t i = 0; i < 3; i++)
                pair_done(&p[i]);
}

/* Little follows from a flipped rounding here: a different rule shows most. */
TEST(torch_emulates_the_recipes_in_one_layer) {
        emulate(1);
}

TEST(torch_emulates_the_recipes_in_four) {
        emulate(4);
}

#endif

TEST_MAIN("reference")
