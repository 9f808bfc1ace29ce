// SPDX-License-Identifier: Apache-2.0
#include "tests/train/harness.h"

#include <math.h>
#include <pthread.h>

#include "base/file.h"

struct job_spec test_spec(void) {
        struct job_spec s = { .version = 1 };

        s.model = (struct model_config){ .vocab_size = 96, .hidden_size = 64, .intermediate_size = 96, .num_hidden_layers = 2, .num_attention_heads = 4,
                                         .num_key_value_heads = 2, .head_dim = 16, .max_position_embeddings = 64, .rms_norm_eps = 1e-5,
                                         .rope_theta = 10000, .initializer_range = 0.05 };
        s.data.seq_len = 32;
        s.data.pack = true;
        s.data.seed = 5;
        s.parallel.tp = s.parallel.pp = s.parallel.dp = 1;
        s.parallel.sequence_parallel = true;
        s.train.steps = 50;
        s.train.micro_batch = 2;
        s.train.global_batch = 8;
        s.train.seed = 11;
        s.train.eval_batches = 2;
        s.precision.recipe = RECIPE_FP32;
        s.precision.pow2 = POW2_CACHED;
        s.precision.amax_history = 16;
        s.precision.max_consecutive_skips = 3;
        s.optimizer.lr = 3e-3;
        s.optimizer.min_lr = 3e-4;
        s.optimizer.beta1 = 0.9;
        s.optimizer.beta2 = 0.95;
        s.optimizer.eps = 1e-8;
        s.optimizer.weight_decay = 0.1;
        s.optimizer.clip = 1;
        s.optimizer.warmup_steps = 5;
        s.metrics.digests = true;
        s.test.overflow_step = s.test.kill_step = -1;
        return s;
}

void test_layout(struct job_spec *s, int tp, int pp, int dp) {
        s->parallel.tp = tp;
        s->parallel.pp = pp;
        s->parallel.dp = dp;
}

bool test_hooks_armed;
int64_t test_bucket_bytes = 4096;
const char *test_device_kind = "cpu";

struct cluster {
        const struct job_spec *spec;
        struct flight **flights;
        int (*fn)(struct test_rank *r);
        void *arg;
        int n;
        struct comm_listener **listeners;
        struct comm_peer *peers;
};

struct member {
        struct cluster *cluster;
        struct test_rank rank;
        struct comm_abort *abort;
        int rc;
};

static int member_run(struct member *m) {
        struct cluster *c = m->cluster;
        struct test_rank *r = &m->rank;
        struct dev_config dc = { .kind = test_device_kind, .threads = 1, .act = c->spec->precision.recipe == RECIPE_FP32 ? DT_F32 : DT_BF16 };
        struct comm_mesh_config mc = { .job = 1, .epoch = 1, .rank = r->rank, .n_ranks = c->n, .peers = c->peers, .node = "local", .timeout_ms = 60000,
                                       .connect_timeout_ms = 20000 };
        struct trainer_config tc = { .spec = c->spec, .rank = r->rank, .flight = c->flights ? c->flights[r->rank] : NULL,
                                     .test_hooks_armed = test_hooks_armed, .bucket_bytes = test_bucket_bytes };

        TRY(dev_ops_load(test_device_kind, &r->ops, &r->error));
        tc.ops = r->ops;
        TRY(comm_abort_new(&m->abort, &r->error));
        TRY(r->ops->open(&dc, &r->dev, &r->error));
        tc.dev = r->dev;
        TRY(comm_mesh_new(c->listeners[r->rank], m->abort, &mc, &r->mesh, &r->error));
        TRY(trainer_new(&tc, &r->trainer, &r->error));
        TRY(trainer_attach(r->trainer, r->mesh, &r->error));
        return c->fn(r);
}

static void *member_main(void *arg) {
        struct member *m = arg;
        struct test_rank *r = &m->rank;

        m->rc = member_run(m);
        if (m->rc != 0)
                printf("    rank %d: %d: %s\n", r->rank, m->rc, r->error.text);
        trainer_free(r->trainer);
        comm_mesh_free(r->mesh);
        if (r->dev)
                r->ops->close(r->dev);
        comm_abort_free(m->abort);
        return NULL;
}

int test_cluster(const struct job_spec *s, struct flight **flights, int (*fn)(struct test_rank *r), void *arg) {
        int n = s->parallel.tp * s->parallel.pp * s->parallel.dp, rc = 0;
        struct cluster c = { .spec = s, .flights = flights, .fn = fn, .arg = arg, .n = n };
        struct member *members = calloc((size_t)n, sizeof(*members));
        pthread_t *threads = calloc((size_t)n, sizeof(*threads));
        const char *tmp = getenv("TMPDIR");
        char dir[128], name[32];
        struct error e = { 0 };

        c.listeners = calloc((size_t)n, sizeof(struct comm_listener *));
        c.peers = calloc((size_t)n, sizeof(*c.peers));
        snprintf(dir, sizeof(dir), "%.90s/fp8-train-XXXXXX", tmp ? tmp : "/tmp");
        CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(dir));
        for (int i = 0; i < n; i++) {
                snprintf(name, sizeof(name), "r%d.i%d", i, i + 1);
                ASSERT_OK(comm_listener_new(dir, "127.0.0.1", name, &c.listeners[i], &e), e);
                c.peers[i] = (struct comm_peer){ .incarnation = (uint64_t)i + 1, .endpoint = comm_listener_endpoint(c.listeners[i]), .node = "local" };
        }
        for (int i = 0; i < n; i++) {
                members[i] = (struct member){ .cluster = &c, .rank = { .rank = i, .arg = arg } };
                CU_ASSERT_EQUAL_FATAL(pthread_create(&threads[i], NULL, member_main, &members[i]), 0);
        }
        for (int i = 0; i < n; i++) {
                pthread_join(threads[i], NULL);
                rc = rc ? rc : members[i].rc;
        }
        for (int i = 0; i < n; i++)
                comm_listener_free(c.listeners[i]);
        file_remove_tree(dir, NULL);
        free(c.listeners);
        free(c.peers);
        free(members);
        free(threads);
        return rc;
}

/* ------------------------------------------------------------------ whole tensors */

static pthread_mutex_t gather_lock = PTHREAD_MUTEX_INITIALIZER;

struct test_tensor *test_tensors_find(struct test_tensors *t, const char *name) {
        for (int i = 0; i < t->n; i++)
                if (strcmp(t->list[i].name, name) == 0)
                        return &t->list[i];
        return NULL;
}

static struct test_tensor *find_or_add(struct test_tensors *to, const struct tensor *x) {
        struct test_tensor *t = test_tensors_find(to, x->name);

        if (t)
                return t;
        to->list = realloc(to->list, sizeof(*to->list) * (size_t)(to->n + 1));
        t = &to->list[to->n++];
        *t = (struct test_tensor){ .rows = x->global_rows, .cols = x->global_cols };
        snprintf(t->name, sizeof(t->name), "%s", x->name);
        t->values = calloc((size_t)(t->rows * t->cols), sizeof(double));
        return t;
}

static void gather(struct test_rank *r, struct test_tensors *to, const dev_real *shard, double factor) {
        const struct zero *z = &r->trainer->zero;

        pthread_mutex_lock(&gather_lock);
        for (int i = 0; i < z->n_pieces; i++) {
                const struct zero_piece *p = &z->pieces[i];
                const struct tensor *x = p->tensor;
                struct test_tensor *t = find_or_add(to, x);
                const dev_real *from = shard + (p->offset - zero_begin(z));

                for (int64_t row = 0; row < p->rows; row++)
                        for (int64_t col = 0; col < x->cols; col++)
                                t->values[(x->row0 + p->row0 + row) * t->cols + x->col0 + col] = (double)from[row * x->cols + col] * factor;
        }
        pthread_mutex_unlock(&gather_lock);
}

void test_gather_gradients(struct test_rank *r, struct test_tensors *to) {
        const struct job_spec *s = r->trainer->spec;
        double labelled = 0;

        for (int i = 0; i < r->trainer->layout.n_ranks; i++)
                labelled += (double)r->trainer->votes[i].labelled;
        gather(r, to, r->trainer->optimizer.shard_grad, (double)(s->train.global_batch * s->data.seq_len) / labelled / r->trainer->progress.scaler.scale);
}

void test_gather_masters(struct test_rank *r, struct test_tensors *to) {
        gather(r, to, r->trainer->optimizer.master, 1);
}

void test_set_masters(struct test_rank *r, struct test_tensors *from) {
        const struct zero *z = &r->trainer->zero;

        for (int i = 0; i < z->n_pieces; i++) {
                const struct zero_piece *p = &z->pieces[i];
                const struct tensor *x = p->tensor;
                const struct test_tensor *t = test_tensors_find(from, x->name);
                dev_real *to = r->trainer->optimizer.list[i].master;

                for (int64_t row = 0; row < p->rows; row++)
                        for (int64_t col = 0; col < x->cols; col++)
                                to[row * x->cols + col] = (dev_real)t->values[(x->row0 + p->row0 + row) * t->cols + x->col0 + col];
        }
}

void test_tensors_free(struct test_tensors *t) {
        for (int i = 0; i < t->n; i++)
                free(t->list[i].values);
        free(t->list);
        *t = (struct test_tensors){ 0 };
}

double test_distance(const struct test_tensor *a, const struct test_tensor *b) {
        double diff = 0, norm = 0;

        for (int64_t i = 0; i < a->rows * a->cols; i++) {
                diff += (a->values[i] - b->values[i]) * (a->values[i] - b->values[i]);
                norm += b->values[i] * b->values[i];
        }
        return norm > 0 ? sqrt(diff / norm) : diff > 0 ? INFINITY : 0;
}

double test_cosine(const struct test_tensor *a, const struct test_tensor *b) {
        double ab = 0, aa = 0, bb = 0;

        for (int64_t i = 0; i < a->rows * a->cols; i++) {
                ab += a->values[i] * b->values[i];
                aa += a->values[i] * a->values[i];
                bb += b->values[i] * b->values[i];
        }
        return ab / sqrt(aa * bb);
}
