// SPDX-License-Identifier: Apache-2.0
/* A checkpoint written under one layout and loaded under another: the same master weights bit for bit, and the same losses from there on up to the order of sums. */
#include <inttypes.h>
#include <math.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "tests/train/harness.h"
#include "worker/ckpt/checkpoint.h"

#define BEFORE 3
#define AFTER 3
#define RANKS 8

struct job {
        char folder[64];
        struct digest digests[RANKS];
        size_t bytes[RANKS];
        char files[RANKS][100];
        char json[TRAINER_STATE_JSON_MAX];
        double losses[AFTER];
        struct test_tensors masters;
        struct job *from; /* whose checkpoint is loaded */
};

struct written {
        struct job *job;
        int rank;
};

static void written(void *arg, int rc, const char *text, struct digest d, const char *file) {
        struct written *w = arg;

        CU_ASSERT_EQUAL(rc, 0);
        w->job->digests[w->rank] = d;
        snprintf(w->job->files[w->rank], sizeof(w->job->files[w->rank]), "%s", file ? file : text);
}

static int save(struct test_rank *r, struct job *j) {
        struct written w = { j, r->rank };
        struct checkpoint_write *write = NULL;
        struct shard_layout *l = NULL;
        const struct shard_tensor *list;
        char json[TRAINER_STATE_JSON_MAX];
        size_t n;
        void *image;
        int rc;

        trainer_state(r->trainer, &list, &n);
        TRY(trainer_state_json(r->trainer, json, sizeof(json), &r->error));
        if (r->rank == 0)
                snprintf(j->json, sizeof(j->json), "%s", json);
        TRY(shard_layout_new(list, n, TRAINER_STATE_JSON_MAX, &l, &r->error));
        j->bytes[r->rank] = shard_layout_bytes(l);
        image = malloc(j->bytes[r->rank]);
        rc = shard_write(l, r->ops, r->trainer->model.stream, json, image, &r->error);
        if (rc == 0)
                rc = checkpoint_write_start(&(struct checkpoint_write_order){ .folder = j->folder, .rank = r->rank, .n_ranks = r->trainer->layout.n_ranks, .image = image,
                                                                              .len = j->bytes[r->rank], .done = written, .arg = &w }, &write, &r->error);
        checkpoint_write_free(write);
        free(image);
        shard_layout_free(l);
        return rc;
}

static int load(struct test_rank *r, struct job *from) {
        struct checkpoint_manifest *m = NULL;
        const struct shard_tensor *list;
        size_t n;
        int rc;

        trainer_state(r->trainer, &list, &n);
        TRY(checkpoint_manifest_read(from->folder, &m, &r->error));
        rc = checkpoint_load(from->folder, m, list, n, r->ops, r->trainer->model.stream, &r->error);
        if (rc == 0)
                rc = trainer_set_state_json(r->trainer, checkpoint_manifest_state(m), &r->error);
        checkpoint_manifest_free(m);
        return rc;
}

static int steps(struct test_rank *r, struct job *j, int n, double *losses) {
        struct step_result res;

        for (int i = 0; i < n; i++) {
                TRY(trainer_step(r->trainer, &res, &r->error));
                if (losses && trainer_reports_loss(r->trainer))
                        losses[i] = res.loss64;
        }
        return 0;
}

static int train(struct test_rank *r) {
        struct job *j = r->arg;

        if (j->from)
                TRY(load(r, j->from));
        else
                TRY(trainer_init(r->trainer, &r->error));
        TRY(trainer_sync(r->trainer, &r->error));
        if (!j->from) {
                TRY(steps(r, j, BEFORE, NULL));
                TRY(save(r, j));
        }
        CU_ASSERT_EQUAL(trainer_step_number(r->trainer), BEFORE);
        test_gather_masters(r, &j->masters);
        return steps(r, j, AFTER, j->losses);
}

static void write_manifest(const struct job *j, int n) {
        _cleanup_free_ char *path = file_path("%s/%s", j->folder, CHECKPOINT_MANIFEST), *text = NULL;
        struct error e = { 0 };
        size_t len = 0;
        FILE *f = open_memstream(&text, &len);

        CU_ASSERT_PTR_NOT_NULL_FATAL(f);
        fprintf(f, "{\"format\":\"fp8ctl-checkpoint\",\"version\":1,\"job\":1,\"name\":\"t\",\"step\":%d,\"epoch\":1,\"attempt\":1,\"layout\":\"any\",\"shards\":[", BEFORE);
        for (int i = 0; i < n; i++) {
                char hex[DIGEST_HEX_SIZE];

                digest_hex(j->digests[i], hex);
                fprintf(f, "%s{\"file\":\"%s\",\"bytes\":%zu,\"digest\":\"%s\",\"rank\":%d}", i ? "," : "", j->files[i], j->bytes[i], hex, i);
        }
        fprintf(f, "],\"state\":%s}", j->json);
        fclose(f);
        ASSERT_OK(file_write_atomic(path, text, len, 0644, &e), e);
}

static const int layouts[][3] = { { 1, 1, 1 }, { 2, 1, 1 }, { 1, 2, 1 }, { 1, 1, 2 }, { 2, 2, 2 }, { 1, 1, 3 } };
#define LAYOUTS (sizeof(layouts) / sizeof(layouts[0]))

static void into_others(struct job_spec *s, size_t home, double bound) {
        struct job *a = calloc(1, sizeof(*a));
        const int *l = layouts[home];

        snprintf(a->folder, sizeof(a->folder), "/tmp/fp8-reshard-XXXXXX");
        CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(a->folder));
        test_layout(s, l[0], l[1], l[2]);
        CU_ASSERT_EQUAL_FATAL(test_cluster(s, NULL, train, a), 0);
        write_manifest(a, l[0] * l[1] * l[2]);
        for (size_t i = 0; i < LAYOUTS; i++) {
                struct job *b = calloc(1, sizeof(*b));

                b->from = a;
                test_layout(s, layouts[i][0], layouts[i][1], layouts[i][2]);
                CU_ASSERT_EQUAL_FATAL(test_cluster(s, NULL, train, b), 0);
                CU_ASSERT_EQUAL(a->masters.n, b->masters.n);
                for (int k = 0; k < a->masters.n; k++)
                        CU_ASSERT(test_distance(test_tensors_find(&b->masters, a->masters.list[k].name), &a->masters.list[k]) == 0);
                for (int k = 0; k < AFTER; k++) {
                        if (!(fabs(b->losses[k] / a->losses[k] - 1) <= bound))
                                printf("    step %d: loss %.9f, expected %.9f\n", BEFORE + k + 1, b->losses[k], a->losses[k]);
                        CU_ASSERT(fabs(b->losses[k] / a->losses[k] - 1) <= (i == home ? 0 : bound));
                }
                test_tensors_free(&b->masters);
                free(b);
        }
        test_tensors_free(&a->masters);
        file_remove_tree(a->folder, NULL);
        free(a);
}

TEST(any_layout_loads_any_other) {
        struct job_spec s = test_spec();
        const double bound = sizeof(dev_real) == 8 ? 1e-12 : 1e-6;

        s.train.global_batch = 12; /* for dp 3 */
        for (size_t home = 0; home < LAYOUTS; home++) {
                s.model.tie_word_embeddings = home % 2 == 0;
                into_others(&s, home, bound);
        }
}

#ifndef FP8_FP64
TEST(delayed_scaling_goes_along) {
        struct job_spec s = test_spec();

        s.precision.recipe = RECIPE_DELAYED;
        s.train.global_batch = 12;
        into_others(&s, 4, 5e-3);
}
#endif

TEST_MAIN("reshard")
