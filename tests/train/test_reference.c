// SPDX-License-Identifier: Apache-2.0
/* Loss and gradients of the first step against an independently written model in torch with autograd (reference.py): FP32 1e-5 by norm. */
#include <jansson.h>
#include <math.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "tests/train/harness.h"

static const char *script; /* argv[1] would be CUnit's filter: the path comes by the environment */

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
                   json_pack("{s:I, s:I, s:I, s:I, s:f, s:f, s:o}", "layers", (json_int_t)s->model.num_hidden_layers, "heads",
                             (json_int_t)s->model.num_attention_heads, "kv_heads", (json_int_t)s->model.num_key_value_heads, "head_dim",
                             (json_int_t)s->model.head_dim, "eps", s->model.rms_norm_eps, "theta", s->model.rope_theta, "tensors", shapes));
}

static json_t *int_array(const int32_t *x, int64_t n) {
        json_t *a = json_array();

        for (int64_t i = 0; i < n; i++)
                json_array_append_new(a, json_integer(x[i]));
        return a;
}

static void write_batch(const char *folder, const struct job_spec *s) {
        int32_t ids[64], labels[64], starts[64];
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

static void compare(const char *folder, const struct first_step *f) {
        const double bound = sizeof(real) == 8 ? 1e-10 : 1e-5;
        double worst = 0;

        CU_ASSERT(fabs(f->loss / read_loss(folder) - 1) < (sizeof(real) == 8 ? 1e-12 : 1e-6));
        for (int i = 0; i < f->gradients.n; i++) {
                const struct test_tensor *g = &f->gradients.list[i];
                _cleanup_free_ char *path = file_path("%s/%s.grad.f64", folder, g->name);
                struct test_tensor t = *g;
                char *data = NULL;
                size_t len;
                double d;

                CU_ASSERT_EQUAL_FATAL(file_read(path, 1 << 24, &data, &len, NULL), 0);
                CU_ASSERT_EQUAL_FATAL(len, sizeof(double) * (size_t)(g->rows * g->cols));
                t.values = (double *)(void *)data;
                d = test_distance(g, &t);
                worst = d > worst ? d : worst;
                if (!(d < bound))
                        printf("    %s: off by %g\n", g->name, d);
                CU_ASSERT(d < bound);
                free(data);
        }
        printf("    loss %.9f, greatest distance of a gradient %.2g\n", f->loss, worst);
}

static void against_torch(struct job_spec *s) {
        char folder[] = "/tmp/fp8-reference-XXXXXX";
        _cleanup_free_ char *command = NULL;
        struct first_step f = { 0 };
        int status;

        CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(folder));
        CU_ASSERT_EQUAL_FATAL(test_cluster(s, NULL, one_step, &f), 0);
        write_model(folder, s, &f.weights);
        write_batch(folder, s);
        command = file_path("/usr/bin/python3 '%s' '%s'", script, folder);
        status = system(command);
        CU_ASSERT_FATAL(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        compare(folder, &f);
        test_tensors_free(&f.weights);
        test_tensors_free(&f.gradients);
        file_remove_tree(folder, NULL);
}

/* No torch: skipped, as the last test would have to be anyway. */
TEST(a_torch_is_here) {
        script = getenv("TRAIN_REFERENCE");
        CU_ASSERT_PTR_NOT_NULL_FATAL(script);
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

TEST_MAIN("reference")
