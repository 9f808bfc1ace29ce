/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Ranks of a small job as threads of one process, over the socket collectives, on synthetic data (synthetic.c stands in for worker/data: every test
 * knows its tokens without a file).
 */
#include "tests/test.h"
#include "worker/train/trainer_private.h"

struct test_rank {
        int rank;
        struct trainer *trainer;
        struct comm_mesh *mesh;
        const struct dev_ops *ops;
        struct dev *dev;
        void *arg;
        struct error error;
};

/* A model of two query heads a key-value head, two micro-batches or more per dp rank; fp32, untied. Everything else is the caller's to change. */
struct job_spec test_spec(void);
void test_layout(struct job_spec *s, int tp, int pp, int dp);

/* Runs fn on every rank, with the trainer made and attached (not initialised). 0, or the first failure, its text printed. flights: NULL or one a rank. */
int test_cluster(const struct job_spec *s, struct flight **flights, int (*fn)(struct test_rank *r), void *arg);

/* The next clusters' kill_* hooks fire. */
extern bool test_hooks_armed;
/* Of the next clusters; small, so that these small models have several buckets. */
extern int64_t test_bucket_bytes;
/* Of the next clusters, "cpu" by default. Helpers below that look into tensors are for that one. */
extern const char *test_device_kind;

/* Whole tensors put together from the ranks' slices, as doubles. */
struct test_tensor {
        char name[SHARD_NAME_MAX];
        int64_t rows, cols;
        double *values;
};
struct test_tensors {
        struct test_tensor *list;
        int n;
};
void test_tensors_free(struct test_tensors *t);
struct test_tensor *test_tensors_find(struct test_tensors *t, const char *name);
/* Adds this rank's reduced gradients (of the mean loss), or its master weights. Thread-safe. */
void test_gather_gradients(struct test_rank *r, struct test_tensors *to);
void test_gather_masters(struct test_rank *r, struct test_tensors *to);
/* The other way: this rank's master weights from whole tensors; trainer_sync comes after. */
void test_set_masters(struct test_rank *r, struct test_tensors *from);
/* ||a - b|| / ||b||, and the cosine. */
double test_distance(const struct test_tensor *a, const struct test_tensor *b);
double test_cosine(const struct test_tensor *a, const struct test_tensor *b);
