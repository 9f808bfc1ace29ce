// SPDX-License-Identifier: Apache-2.0
/* Steps that must not count: every rank skips, nothing changes by a bit, all name the same culprit, and training goes on. And what travels beside: requests, leases. */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "tests/train/harness.h"

#define RANKS 8

struct expectation {
        int rank;
        const char *tensor;
        uint64_t step;
        struct step_result results[RANKS][6];
        char *poison; /* tensor whose first master weight becomes infinite before the run */
};

/* A digest over everything that must not change. */
static struct digest snapshot(struct test_rank *r) {
        const struct shard_tensor *list;
        struct digest_stream *d = NULL;
        struct digest ret;
        size_t n;

        digest_stream_new(&d);
        trainer_state(r->trainer, &list, &n);
        for (size_t i = 0; i < n; i++)
                digest_stream_add(d, list[i].data, dtype_size(list[i].dtype) * (size_t)(list[i].rows * list[i].cols));
        digest_stream_add(d, r->trainer->model.params, act_bytes(&r->trainer->model, r->trainer->table.elements));
        ret = digest_stream_end(d);
        digest_stream_free(d);
        return ret;
}

static int train(struct test_rank *r) {
        struct expectation *x = r->arg;

        TRY(trainer_init(r->trainer, &r->error));
        TRY(trainer_sync(r->trainer, &r->error));
        for (uint64_t i = 1; i <= 5; i++) {
                struct digest before = snapshot(r);
                uint64_t updates = r->trainer->progress.updates;
                struct step_result *res = &x->results[r->rank][i];

                if (i == 4 && r->rank == 0)
                        trainer_request(r->trainer, TRAINER_REQUEST_SAVE);
                TRY(trainer_step(r->trainer, res, &r->error));
                CU_ASSERT_EQUAL(res->agreed_requests, i == 4 ? TRAINER_REQUEST_SAVE : 0);
                CU_ASSERT_EQUAL(res->step, i);
                CU_ASSERT_EQUAL(res->skipped, i == x->step);
                CU_ASSERT_EQUAL(digest_equal(before, snapshot(r)), i == x->step);
                CU_ASSERT_EQUAL(r->trainer->progress.updates, updates + (i != x->step));
                CU_ASSERT_EQUAL(r->trainer->progress.data_step, i);
                CU_ASSERT_EQUAL(res->skipped_total, i >= x->step);
                CU_ASSERT_EQUAL(res->consecutive_skips, i == x->step);
                if (i != x->step)
                        continue;
                CU_ASSERT_EQUAL(res->bad_rank, x->rank);
                CU_ASSERT_STRING_EQUAL(res->bad_tensor, x->tensor);
                CU_ASSERT(isinf(res->bad_amax));
        }
        return 0;
}

static void overflow(enum job_recipe recipe, int tp, int pp, int dp, int rank, const char *tensor) {
        struct job_spec s = test_spec();
        struct expectation *x = calloc(1, sizeof(*x));

        test_layout(&s, tp, pp, dp);
        s.precision.recipe = recipe;
        s.precision.loss_scale = LOSS_SCALE_DYNAMIC;
        s.test.overflow_step = 3;
        s.test.overflow_rank = rank;
        s.test.overflow_tensor = (char *)(uintptr_t)tensor;
        *x = (struct expectation){ .rank = rank, .tensor = tensor, .step = 3 };
        CU_ASSERT_EQUAL_FATAL(test_cluster(&s, NULL, train, x), 0);
        for (int r = 0; r < tp * pp * dp; r++) {
                CU_ASSERT_EQUAL(x->results[r][3].loss_scale, 65536);
                CU_ASSERT_EQUAL(x->results[r][4].loss_scale, 32768);
                CU_ASSERT_EQUAL(x->results[r][4].lr, x->results[r][3].lr); /* the schedule stood still */
                for (int i = 1; i <= 5; i++)
                        CU_ASSERT_EQUAL(memcmp(&x->results[r][i].loss, &x->results[0][i].loss, sizeof(float)), 0);
        }
        free(x);
}

TEST(overflow_alone) {
        overflow(RECIPE_BF16, 1, 1, 1, 0, "model.embed_tokens.weight");
}

TEST(overflow_in_parallel) {
        overflow(RECIPE_BLOCK, 2, 2, 2, 5, "model.layers.1.mlp.up_proj.weight");
        overflow(RECIPE_DELAYED, 2, 2, 2, 2, "model.layers.0.input_layernorm.weight");
        overflow(RECIPE_FP32, 2, 2, 2, 7, "lm_head.weight");
}

static int poisoned(struct test_rank *r) {
        struct step_result res;
        struct tensor *x = tensor_table_find(&r->trainer->table, TENSOR_UP, 1);

        TRY(trainer_init(r->trainer, &r->error));
        for (int i = 0; i < r->trainer->zero.n_pieces && r->trainer->layout.tp_index == 1; i++)
                if (r->trainer->zero.pieces[i].tensor == x)
                        r->trainer->optimizer.list[i].master[7] = -INFINITY;
        TRY(trainer_sync(r->trainer, &r->error));
        for (int i = 0; i < 2; i++) { /* again: the weight is as bad as before */
                TRY(trainer_step(r->trainer, &res, &r->error));
                CU_ASSERT(res.skipped);
                CU_ASSERT_STRING_EQUAL(res.bad_tensor, "model.layers.1.mlp.up_proj.weight");
                CU_ASSERT(res.bad_rank == 5);
                CU_ASSERT(isinf(res.bad_amax));
        }
        return 0;
}

TEST(quantiser_names_the_first_offender) {
        struct job_spec s = test_spec();

        test_layout(&s, 2, 2, 1);
        s.parallel.dp = 2;
        for (int r = RECIPE_BLOCK; r <= RECIPE_TENSOR; r++) {
                s.precision.recipe = (enum job_recipe)r;
                CU_ASSERT_EQUAL(test_cluster(&s, NULL, poisoned, NULL), 0);
        }
}

static int without_lease(struct test_rank *r) {
        struct step_result res;
        struct digest before;

        TRY(trainer_init(r->trainer, &r->error));
        TRY(trainer_sync(r->trainer, &r->error));
        TRY(trainer_step(r->trainer, &res, &r->error));
        before = snapshot(r);
        atomic_store(&r->trainer->config.flight->lease_deadline_ns, clock_mono_ns() - 1);
        CU_ASSERT_EQUAL(trainer_step(r->trainer, &res, &r->error), -ECANCELED);
        CU_ASSERT(digest_equal(before, snapshot(r)));
        CU_ASSERT_PTR_NOT_NULL(strstr(r->error.text, "lease"));
        /* after a failed step nothing goes on from what lies there */
        CU_ASSERT_EQUAL(trainer_sync(r->trainer, &r->error), -ESTALE);
        CU_ASSERT_EQUAL(trainer_step(r->trainer, &res, &r->error), -ENOTCONN);
        return 0;
}

TEST(no_commit_without_a_lease) {
        struct job_spec s = test_spec();
        struct flight *f[2] = { NULL, NULL };
        struct error e = { 0 };
        int fd[2];

        test_layout(&s, 1, 1, 2);
        for (int i = 0; i < 2; i++) {
                ASSERT_OK(flight_create(&fd[i], &e), e);
                ASSERT_OK(flight_map(fd[i], &f[i], &e), e);
        }
        CU_ASSERT_EQUAL(test_cluster(&s, f, without_lease, NULL), 0);
        for (int i = 0; i < 2; i++) {
                flight_unmap(f[i]);
                close(fd[i]);
        }
}

/* Batches 2 and 3 overflow: met again they do so again, passed over they do not, and step numbers do not follow the data. */
static int past_bad_batches(struct test_rank *r) {
        struct step_result res;
        char json[TRAINER_STATE_JSON_MAX];

        TRY(trainer_init(r->trainer, &r->error));
        TRY(trainer_sync(r->trainer, &r->error));
        TRY(trainer_step(r->trainer, &res, &r->error));
        TRY(trainer_state_json(r->trainer, json, sizeof(json), &r->error));
        for (uint64_t i = 1; i <= 2; i++) {
                TRY(trainer_step(r->trainer, &res, &r->error));
                CU_ASSERT_EQUAL(res.consecutive_skips, i);
        }
        TRY(trainer_set_state_json(r->trainer, json, &r->error)); /* the weights never changed */
        CU_ASSERT_EQUAL(trainer_step(r->trainer, &res, &r->error), -ENOTCONN); /* not before trainer_sync */
        trainer_skip_data_to(r->trainer, 3);
        TRY(trainer_sync(r->trainer, &r->error));
        for (uint64_t i = 2; i <= 3; i++) {
                TRY(trainer_step(r->trainer, &res, &r->error));
                CU_ASSERT_FALSE(res.skipped);
                CU_ASSERT_EQUAL(res.step, i);
                CU_ASSERT_EQUAL(r->trainer->progress.data_step, i + 2);
        }
        trainer_skip_data_to(r->trainer, 1); /* never backwards */
        CU_ASSERT_EQUAL(r->trainer->progress.data_step, 5);
        return 0;
}

TEST(bad_batches_can_be_passed_over) {
        struct job_spec s = test_spec();

        test_layout(&s, 1, 2, 2);
        s.test.overflow_step = 2;
        s.test.overflow_steps = 2;
        s.test.overflow_rank = 3;
        s.test.overflow_tensor = (char *)(uintptr_t)"model.norm.weight";
        CU_ASSERT_EQUAL(test_cluster(&s, NULL, past_bad_batches, NULL), 0);
}

static int ranks_apart(struct test_rank *r) {
        int rc;

        TRY(trainer_init(r->trainer, &r->error));
        r->trainer->progress.step = (uint64_t)(r->rank == 1);
        rc = trainer_sync(r->trainer, &r->error);
        CU_ASSERT_EQUAL(rc, -EPROTO);
        CU_ASSERT_PTR_NOT_NULL(strstr(r->error.text, "stands at step"));
        return 0;
}

TEST(ranks_at_different_steps_are_refused) {
        struct job_spec s = test_spec();

        test_layout(&s, 1, 1, 2);
        CU_ASSERT_EQUAL(test_cluster(&s, NULL, ranks_apart, NULL), 0);
}

TEST(small_state_is_checked) {
        const char *const bad[] = { "", "{}", "[1]", "{\"version\":2}", "{\"version\":1,\"step\":-1}" };
        struct trainer t = { 0 };
        struct error e = { 0 };

        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
                CU_ASSERT_EQUAL(trainer_set_state_json(&t, bad[i], &e), -EBADMSG);
}

static int three_steps(struct test_rank *r) {
        struct step_result res;

        TRY(trainer_init(r->trainer, &r->error));
        TRY(trainer_sync(r->trainer, &r->error));
        for (int i = 0; i < 3; i++)
                TRY(trainer_step(r->trainer, &res, &r->error));
        return 0;
}

/* The wait status of a process that runs the job. */
static int status_of(const struct job_spec *s, bool armed) {
        char dir[] = "/tmp/fp8-kill-XXXXXX"; /* what the killed one cannot clear away */
        pid_t pid;
        int status;

        CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(dir));
        pid = fork();
        if (pid == 0) {
                setenv("TMPDIR", dir, 1);
                test_hooks_armed = armed;
                _exit(test_cluster(s, NULL, three_steps, NULL) == 0 ? 0 : 1);
        }
        CU_ASSERT_EQUAL(waitpid(pid, &status, 0), pid);
        file_remove_tree(dir, NULL);
        return status;
}

TEST(kill_hooks_fire_at_their_points) {
        const char *const points[] = { "forward", "agreed", "updated", "gathered" };

        for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
                struct job_spec s = test_spec();

                s.test.kill_step = 2;
                s.test.kill_point = (char *)(uintptr_t)points[i];
                CU_ASSERT(WTERMSIG(status_of(&s, true)) == SIGKILL);
                CU_ASSERT_EQUAL(status_of(&s, false), 0);
                s.test.kill_step = 4;
                CU_ASSERT_EQUAL(status_of(&s, true), 0);
        }
}

TEST_MAIN("overflow")
