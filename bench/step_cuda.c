// SPDX-License-Identifier: Apache-2.0
/*
 * Whole training steps on one Hopper GPU: ours | the peer's tokens a second (--peer, of peers' torch_train.py run in the same session) | ratio, then where the time goes: every operation of
 * one step by events, its share of the step and of the ceiling (copy bandwidth as measured here for what moves bytes, the data sheet's dense rate for products), and what share of the step
 * the sum of all is.  Sequences are whole: one document each.
 */
#include <cuda_runtime_api.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/opt.h"
#include "bench/op_times.h"
#include "worker/train/trainer_private.h"

#define FP8_PEAK 1979e12 /* NVIDIA H100 data sheet, dense, SXM */
#define BF16_PEAK 989e12

struct bench {
        int64_t micro_batch, steps, seed;
        const char *model, *recipe, *output;
        double peer;
        bool any_order, ops_too, documents;
        double copy; /* bytes a second, read and written */
        json_t *rows;
};

struct rank {
        struct comm_listener *listener;
        struct comm_abort *abort;
        struct comm_mesh *mesh;
        struct trainer *trainer;
        struct dev *dev;
        const struct dev_ops *ops;
        char dir[64];
};

static void add_row(struct bench *b, const char *op, double value, const char *unit, double peer) {
        json_array_append_new(b->rows, json_pack("{s:s,s:f,s:s,s:f,s:f}", "op", op, "value", value, "unit", unit, "peer", peer, "ratio", peer > 0 ? value / peer : 0));
}

static struct job_spec spec_of(const struct bench *b) {
        const bool large = strcmp(b->model, "1.36B") == 0;
        struct job_spec s = { .version = 1 };

        s.model = (struct model_config){ .vocab_size = large ? 32000 : 50304, .hidden_size = large ? 2048 : 768, .intermediate_size = large ? 5632 : 2048, .num_hidden_layers = large ? 24 : 12,
                                         .num_attention_heads = large ? 16 : 12, .num_key_value_heads = large ? 16 : 12, .head_dim = large ? 128 : 64,
                                         .max_position_embeddings = large ? 4096 : 1024, .rms_norm_eps = 1e-5, .rope_theta = 10000, .initializer_range = 0.02 };
        s.data.seq_len = s.model.max_position_embeddings;
        s.data.pack = b->documents;
        s.data.seed = b->seed;
        s.parallel.tp = s.parallel.pp = s.parallel.dp = 1;
        s.train.steps = b->steps;
        s.train.global_batch = large ? 4 : 32;
        s.train.micro_batch = b->micro_batch > 0 ? b->micro_batch : s.train.global_batch;
        s.train.seed = 1;
        s.precision.recipe = strcmp(b->recipe, "bf16") == 0 ? RECIPE_BF16 : strcmp(b->recipe, "tensor") == 0 ? RECIPE_TENSOR : strcmp(b->recipe, "delayed") == 0 ? RECIPE_DELAYED : RECIPE_BLOCK;
        s.precision.pow2 = POW2_CACHED;
        s.precision.amax_history = 1024;
        s.precision.max_consecutive_skips = 3;
        s.optimizer.lr = 3e-4;
        s.optimizer.min_lr = 3e-5;
        s.optimizer.beta1 = 0.9;
        s.optimizer.beta2 = 0.95;
        s.optimizer.eps = 1e-8;
        s.optimizer.weight_decay = 0.1;
        s.optimizer.clip = 1;
        s.optimizer.warmup_steps = 5;
        s.test.overflow_step = s.test.kill_step = -1;
        return s;
}

static int rank_open(struct rank *r, const struct bench *b, const struct job_spec *s, struct error *e) {
        const struct dev_config dc = { .kind = "cuda", .act = DT_BF16, .any_order = b->any_order };
        struct comm_peer peer = { .incarnation = 1, .node = "local" };
        const struct comm_mesh_config mc = { .job = 1, .epoch = 1, .n_ranks = 1, .peers = &peer, .node = "local", .timeout_ms = 60000, .connect_timeout_ms = 20000 };
        struct trainer_config tc = { .spec = s };

        tc.ops = r->ops = op_times_table();
        (void)snprintf(r->dir, sizeof r->dir, "/tmp/fp8-step-XXXXXX");
        if (!mkdtemp(r->dir))
                return error_set(e, -EIO, "%s: cannot be made", r->dir);
        TRY(comm_listener_new(r->dir, "127.0.0.1", "r0.i1", &r->listener, e));
        peer.endpoint = comm_listener_endpoint(r->listener);
        TRY(comm_abort_new(&r->abort, e));
        TRY(r->ops->open(&dc, &r->dev, e));
        tc.dev = r->dev;
        TRY(comm_mesh_new(r->listener, r->abort, &mc, &r->mesh, e));
        TRY(trainer_new(&tc, &r->trainer, e));
        TRY(trainer_attach(r->trainer, r->mesh, e));
        TRY(trainer_init(r->trainer, e));
        return trainer_sync(r->trainer, e);
}

static void rank_close(struct rank *r) {
        trainer_free(r->trainer);
        comm_mesh_free(r->mesh);
        if (r->dev)
                r->ops->close(r->dev);
        comm_abort_free(r->abort);
        comm_listener_free(r->listener);
        (void)file_remove_tree(r->dir, NULL);
}

static int steps(struct rank *r, int64_t n, double *ret_seconds, struct step_result *last, struct error *e) {
        const uint64_t began = clock_mono_ns();

        for (int64_t i = 0; i < n; i++)
                TRY(trainer_step(r->trainer, last, e));
        TRY_DEV(e, r->ops->stream_sync(r->trainer->model.stream));
        *ret_seconds = (double)(clock_mono_ns() - began) / 1e9 / (double)n;
        return 0;
}

static int copy_rate(struct bench *b, struct error *e) {
        const size_t bytes = (size_t)1 << 30;
        void *from = NULL, *to = NULL;
        cudaEvent_t at[2];
        float ms = 0;
        bool ok = cudaMalloc(&from, bytes) == cudaSuccess && cudaMalloc(&to, bytes) == cudaSuccess && cudaEventCreate(&at[0]) == cudaSuccess && cudaEventCreate(&at[1]) == cudaSuccess;

        for (int i = 0; ok && i < 12; i++) {
                ok = i != 2 || cudaEventRecord(at[0], 0) == cudaSuccess;
                ok = ok && cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, 0) == cudaSuccess;
        }
        ok = ok && cudaEventRecord(at[1], 0) == cudaSuccess && cudaEventSynchronize(at[1]) == cudaSuccess && cudaEventElapsedTime(&ms, at[0], at[1]) == cudaSuccess;
        (void)cudaFree(from);
        (void)cudaFree(to);
        if (!ok)
                return error_set(e, -EIO, "copy: %s", cudaGetErrorString(cudaGetLastError()));
        b->copy = 10 * 2 * (double)bytes / ((double)ms / 1e3);
        return 0;
}

static void report_ops(struct bench *b, double step, bool table) {
        struct op_time *op;
        const int n = op_times_stop(&op);
        double sum = 0;

        if (table)
                printf("%-36s %6s %9s %7s %10s %8s\n", "operation", "calls", "ms", "share", "rate", "ceiling");
        for (int i = 0; i < n; i++) {
                const bool product = op[i].flops > 0;
                const double rate = (product ? op[i].flops : op[i].bytes) / op[i].seconds, ceiling = product ? op[i].fp8 ? FP8_PEAK : BF16_PEAK : b->copy;

                sum += op[i].seconds;
                if (table)
                        printf("%-36s %6d %9.3f %6.1f%% %6.0f %s %7.1f%%\n", op[i].name, op[i].calls, op[i].seconds * 1e3, 100 * op[i].seconds / step, rate / (product ? 1e12 : 1e9),
                               product ? "TF/s" : "GB/s", 100 * rate / ceiling);
                add_row(b, op[i].name, op[i].seconds * 1e3, "ms", 0);
        }
        if (table)
                printf("sum of operations %.2f ms, the step %.2f ms: the sum is %.3f of the step\n", sum * 1e3, step * 1e3, sum / step);
        add_row(b, "sum of operations over the step", sum / step, "ratio", 1);
}

static int run(struct bench *b, bool table, struct error *e) {
        const struct job_spec s = spec_of(b);
        struct rank r = { 0 };
        struct step_result last;
        const double tokens = (double)(s.train.global_batch * s.data.seq_len);
        double seconds, ignored;
        int rc = copy_rate(b, e);
        char name[80];
        size_t free_bytes = 0, total = 0;

        if (rc == 0)
                rc = rank_open(&r, b, &s, e);
        if (rc == 0)
                rc = steps(&r, 4, &ignored, &last, e);
        if (rc == 0)
                rc = steps(&r, b->steps, &seconds, &last, e);
        if (rc == 0) {
                if (table) {
                        char plan[256];

                        trainer_memory_plan(r.trainer, plan, sizeof plan);
                        printf("%s (%lld parameters)\n", plan, (long long)r.trainer->table.elements);
                }
                (void)cudaMemGetInfo(&free_bytes, &total);
                (void)snprintf(name, sizeof name, "%s %s micro %lld%s", b->model, b->recipe, (long long)s.train.micro_batch, b->any_order ? " any order" : "");
                if (table)
                        printf("%-28s %9.0f tok/s | peer %9.0f | ratio %.3f | %.2f ms a step, arenas %.2f GB, the card's memory in use %.2f GB, loss %.4f, skipped %llu\n", name, tokens / seconds,
                               b->peer, b->peer > 0 ? tokens / seconds / b->peer : 0, seconds * 1e3, (double)last.memory_bytes / 1e9, (double)(total - free_bytes) / 1e9, last.loss64,
                               (unsigned long long)last.skipped_total);
                add_row(b, name, tokens / seconds, "tok/s", b->peer);
        }
        if (rc == 0 && b->ops_too) {
                op_times_start();
                rc = steps(&r, 1, &ignored, &last, e);
                if (rc == 0)
                        report_ops(b, seconds, table);
        }
        (void)fflush(stdout);
        rank_close(&r);
        return rc;
}

int main(int argc, char **argv) {
        static const char *const outputs[] = { "table", "json", NULL }, *const models[] = { "162M", "1.36B", NULL }, *const recipes[] = { "bf16", "block", "tensor", "delayed", NULL };
        struct bench b = { .steps = 8, .model = "1.36B", .recipe = "block", .output = "table", .ops_too = true, .rows = json_array() };
        struct error e = { 0 };
        char *args[32];
        bool help = false, table;
        int n = 0, rc;
        const struct opt opts[] = {
                { .name = "model", .type = OPT_CHOICE, .value = "NAME", .help = "162M or 1.36B", .target = &b.model, .choices = models },
                { .name = "recipe", .type = OPT_CHOICE, .value = "NAME", .help = "bf16, block, tensor or delayed", .target = &b.recipe, .choices = recipes },
                { .name = "micro-batch", .type = OPT_INT, .value = "N", .help = "sequences at a time (all of a step's)", .target = &b.micro_batch, .min = 1, .max = 32 },
                { .name = "steps", .type = OPT_INT, .value = "N", .help = "steps timed, after four", .target = &b.steps, .min = 1, .max = 1000 },
                { .name = "any-order", .type = OPT_FLAG, .help = "not bitwise repeatable, faster", .target = &b.any_order },
                { .name = "documents", .type = OPT_FLAG, .help = "many short documents, not whole sequences", .target = &b.documents },
                { .name = "ops", .type = OPT_FLAG, .help = "each operation's time (--no-ops: no)", .target = &b.ops_too },
                { .name = "peer", .type = OPT_DOUBLE, .value = "TOKENS", .help = "the peer's tokens a second", .target = &b.peer },
                { .name = "output", .letter = 'o', .type = OPT_CHOICE, .value = "FORM", .help = "table or json", .target = &b.output, .choices = outputs },
                { .name = "help", .letter = 'h', .type = OPT_FLAG, .help = "print this", .target = &help },
        };

        if (argc > (int)ARRAY_SIZE(args) || opt_parse(opts, ARRAY_SIZE(opts), argc, argv, args, &n, &e) < 0 || n > 0) {
                (void)fprintf(stderr, "step_cuda: %s\n", e.code ? e.text : "found other arguments, expected options only");
                return 2;
        }
        if (help) {
                opt_print_help(opts, ARRAY_SIZE(opts));
                return 0;
        }
        table = strcmp(b.output, "table") == 0;
        rc = b.rows ? run(&b, table, &e) : -ENOMEM;
        if (rc != 0)
                (void)fprintf(stderr, "step_cuda: %s\n", e.text);
        else if (!table)
                json_dumpf(b.rows, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
        json_decref(b.rows);
        return rc != 0;
}
