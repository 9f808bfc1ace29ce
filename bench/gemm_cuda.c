/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FP8 products on a Hopper GPU beside cuBLASLt, in one run: ours (1x128 by 128x128 into BF16; 1x128 by 1x128 added to FP32) | cuBLASLt per-tensor without fast accumulation (the
 * peer of the ratio) | with it | block-scaled.  And the quantisers beside a copy.  Inputs are normal numbers quantised by our kernels.  Each figure is the median of --repeat launches timed by
 * events, taken in turn, each after the second-level cache has been overwritten.
 */
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/opt.h"
#include "bench/report.h"
#include "kernels/cuda/hopper.h"
#include "kernels/cuda/plan.h"
#include "kernels/fp8.h"

#define FLUSH_BYTES ((size_t)256 << 20)
#define WORKSPACE_BYTES ((size_t)64 << 20)
#define MAX_REPEAT 200

enum { OURS, PER_TENSOR, PER_TENSOR_FAST, BLOCK_SCALED, N_WAYS };

struct operands {
        int64_t M, N, K;
        struct qtensor a, b;
        bool wgrad;
};

struct lt {
        cublasLtMatmulDesc_t desc;
        cublasLtMatrixLayout_t a, b, d;
        cublasLtMatmulAlgo_t algo;
        bool ready;
};

struct bench {
        struct dev_stream *s;
        cublasLtHandle_t handle;
        void *flush, *workspace, *out;
        float *one;
        uint16_t *normal; /* host */
        size_t n_normal;
        int64_t repeat, tiles;
        json_t *rows;
};

static void must(cudaError_t r, const char *what) {
        if (r != cudaSuccess) {
                (void)fprintf(stderr, "gemm_cuda: %s: %s\n", what, cudaGetErrorString(r));
                exit(1);
        }
}

static void must_lt(cublasStatus_t r, const char *what) {
        if (r != CUBLAS_STATUS_SUCCESS) {
                (void)fprintf(stderr, "gemm_cuda: %s: cuBLASLt status %d\n", what, (int)r);
                exit(1);
        }
}

static void *device(size_t bytes) {
        void *p;

        must(cudaMalloc(&p, bytes), "memory");
        return p;
}

/* n normal BF16 on the device: one piece made once, repeated. */
static void *normal_matrix(struct bench *b, size_t n) {
        uint16_t *d = device(n * 2);

        for (size_t at = 0; at < n; at += b->n_normal)
                must(cudaMemcpy(d + at, b->normal, (n - at < b->n_normal ? n - at : b->n_normal) * 2, cudaMemcpyHostToDevice), "copy");
        return d;
}

static void make_normal(struct bench *b) {
        uint64_t z = 88172645463325252u;

        b->n_normal = 7919 * 1031;
        b->normal = malloc(b->n_normal * 2);
        if (!b->normal)
                exit(1);
        for (size_t i = 0; i < b->n_normal; i++) {
                double u[2];

                for (int j = 0; j < 2; j++) {
                        z ^= z << 13, z ^= z >> 7, z ^= z << 17;
                        u[j] = ((double)(z >> 11) + 0.5) * 0x1p-53;
                }
                b->normal[i] = bf16_from_float((float)(sqrt(-2 * log(u[0])) * cos(6.283185307179586 * u[1])));
        }
}

static struct qtensor quantised(struct bench *b, enum qscaling scaling, bool col, int64_t rows, int64_t cols) {
        const struct quant_spec q = { .scaling = scaling, .dtype = DT_E4M3, .want_row = !col, .want_col = col };
        struct qtensor t = { .rows = rows, .cols = cols };
        void *x = normal_matrix(b, (size_t)(rows * cols));
        size_t bytes[4];

        dev_qtensor_bytes(&q, rows, cols, bytes);
        t.row = bytes[0] ? device(bytes[0]) : NULL;
        t.row_scale = bytes[1] ? device(bytes[1]) : NULL;
        t.col = bytes[2] ? device(bytes[2]) : NULL;
        t.col_scale = bytes[3] ? device(bytes[3]) : NULL;
        if (cuda_quantize(x, DT_BF16, &q, &t, b->s) < 0)
                exit(1);
        must(cudaStreamSynchronize(b->s->stream), "quantise");
        must(cudaFree(x), "free");
        return t;
}

static void release(struct qtensor *t) {
        must(cudaFree(t->row), "free");
        must(cudaFree(t->row_scale), "free");
        must(cudaFree(t->col), "free");
        must(cudaFree(t->col_scale), "free");
}

/* cuBLASLt counts by columns: what is row-major [M,N] here is its [N,M], so its first operand is our second. */
static struct lt lt_new(struct bench *b, const struct operands *o, int way) {
        const cublasOperation_t t = CUBLAS_OP_T, n = CUBLAS_OP_N;
        const int8_t fast = way == PER_TENSOR_FAST;
        const void *wa = o->wgrad ? o->b.col_scale : o->b.row_scale, *xa = o->wgrad ? o->a.col_scale : o->a.row_scale;
        const int32_t mode_b = o->wgrad ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F : CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F, mode_a = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
        const size_t workspace = WORKSPACE_BYTES;
        const cudaDataType_t out = o->wgrad ? CUDA_R_32F : CUDA_R_16BF;
        cublasLtMatmulHeuristicResult_t found;
        cublasLtMatmulPreference_t preference;
        struct lt l = { 0 };
        int count = 0;

        if (way != BLOCK_SCALED)
                wa = xa = b->one;
        must_lt(cublasLtMatmulDescCreate(&l.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "description");
        must_lt(cublasLtMatmulDescSetAttribute(l.desc, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t), "transa");
        must_lt(cublasLtMatmulDescSetAttribute(l.desc, CUBLASLT_MATMUL_DESC_TRANSB, &n, sizeof n), "transb");
        must_lt(cublasLtMatmulDescSetAttribute(l.desc, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, sizeof fast), "accumulation");
        must_lt(cublasLtMatmulDescSetAttribute(l.desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &wa, sizeof wa), "scale");
        must_lt(cublasLtMatmulDescSetAttribute(l.desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &xa, sizeof xa), "scale");
        if (way == BLOCK_SCALED) {
                must_lt(cublasLtMatmulDescSetAttribute(l.desc, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &mode_b, sizeof mode_b), "scale mode");
                must_lt(cublasLtMatmulDescSetAttribute(l.desc, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mode_a, sizeof mode_a), "scale mode");
        }
        must_lt(cublasLtMatrixLayoutCreate(&l.a, CUDA_R_8F_E4M3, (uint64_t)o->K, (uint64_t)o->N, o->K), "layout");
        must_lt(cublasLtMatrixLayoutCreate(&l.b, CUDA_R_8F_E4M3, (uint64_t)o->K, (uint64_t)o->M, o->K), "layout");
        must_lt(cublasLtMatrixLayoutCreate(&l.d, out, (uint64_t)o->N, (uint64_t)o->M, o->N), "layout");
        must_lt(cublasLtMatmulPreferenceCreate(&preference), "preference");
        must_lt(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace), "preference");
        l.ready = cublasLtMatmulAlgoGetHeuristic(b->handle, l.desc, l.a, l.b, l.d, l.d, preference, 1, &found, &count) == CUBLAS_STATUS_SUCCESS && count == 1;
        l.algo = found.algo;
        must_lt(cublasLtMatmulPreferenceDestroy(preference), "preference");
        return l;
}

static void lt_free(struct lt *l) {
        (void)cublasLtMatrixLayoutDestroy(l->a);
        (void)cublasLtMatrixLayoutDestroy(l->b);
        (void)cublasLtMatrixLayoutDestroy(l->d);
        (void)cublasLtMatmulDescDestroy(l->desc);
}

static void run(struct bench *b, const struct operands *o, const struct lt *l, int way) {
        const float alpha = 1, beta = o->wgrad;

        if (way == OURS) {
                if ((o->wgrad ? cuda_gemm_wgrad(&o->a, &o->b, b->out, 1, b->s) : cuda_gemm_fprop(&o->a, &o->b, b->out, DT_BF16, b->s)) < 0)
                        exit(1);
                return;
        }
        must_lt(cublasLtMatmul(b->handle, l->desc, &alpha, o->wgrad ? o->b.col : o->b.row, l->a, o->wgrad ? o->a.col : o->a.row, l->b, &beta, b->out, l->d, b->out, l->d, &l->algo,
                               b->workspace, WORKSPACE_BYTES, b->s->stream),
                "matmul");
}

static int by_value(const void *a, const void *b) {
        return (*(const float *)a > *(const float *)b) - (*(const float *)a < *(const float *)b);
}

/* What is timed: a function of its index. */
struct work {
        void (*fn)(struct bench *b, void *arg, int way);
        void *arg;
        const bool *ways;
        int n;
};

/* Median seconds of each way, in turn, cold. */
static void timed(struct bench *b, const struct work *w, double *ret) {
        cudaEvent_t from, to;
        static float ms[8][MAX_REPEAT];

        must(cudaEventCreate(&from), "event");
        must(cudaEventCreate(&to), "event");
        for (int i = -3; i < b->repeat; i++)
                for (int way = 0; way < w->n; way++) {
                        if (!w->ways[way])
                                continue;
                        must(cudaMemsetAsync(b->flush, i & 0xff, FLUSH_BYTES, b->s->stream), "flush");
                        must(cudaEventRecord(from, b->s->stream), "event");
                        w->fn(b, w->arg, way);
                        must(cudaEventRecord(to, b->s->stream), "event");
                        must(cudaEventSynchronize(to), "run");
                        must(cudaEventElapsedTime(&ms[way][i < 0 ? 0 : i], from, to), "event");
                }
        for (int way = 0; way < w->n; way++) {
                qsort(ms[way], (size_t)b->repeat, sizeof ms[way][0], by_value);
                ret[way] = w->ways[way] ? (double)ms[way][b->repeat / 2] / 1e3 : NAN;
        }
        (void)cudaEventDestroy(from);
        (void)cudaEventDestroy(to);
}

struct product_work {
        const struct operands *o;
        const struct lt *l;
};

static void run_product(struct bench *b, void *arg, int way) {
        const struct product_work *p = arg;

        if (p->l)
                run(b, p->o, &p->l[way], way);
        else { /* ours with each tile */
                b->s->tile = way;
                run(b, p->o, NULL, OURS);
                b->s->tile = -1;
        }
}

/* Ratio of ours to the peer. */
static double product(struct bench *b, bool wgrad, int64_t M, int64_t N, int64_t K, bool table) {
        struct operands o = { .M = M, .N = N, .K = K, .wgrad = wgrad };
        const double tflop = 2e-12 * (double)M * (double)N * (double)K;
        struct lt l[N_WAYS] = { 0 };
        bool ways[N_WAYS] = { true };
        double t[N_WAYS], tile[N_GEMM_TILES];
        struct work w = { run_product, &(struct product_work){ &o, l }, ways, N_WAYS };
        char name[64];

        o.a = wgrad ? quantised(b, Q_1X128, true, K, M) : quantised(b, Q_1X128, false, M, K);
        o.b = wgrad ? quantised(b, Q_1X128, true, K, N) : quantised(b, Q_128X128, false, N, K);
        for (int i = PER_TENSOR; i < N_WAYS; i++) {
                l[i] = lt_new(b, &o, i);
                ways[i] = l[i].ready;
        }
        must(cudaMemset(b->out, 0, (size_t)(M * N) * 4), "zero");
        timed(b, &w, t);
        (void)snprintf(name, sizeof name, "%s %lld,%lld,%lld", wgrad ? "wgrad" : "fprop", (long long)M, (long long)N, (long long)K);
        if (table)
                printf("%-26s %8.0f %8.0f %8.0f %8.0f %8.3f %8.3f   %d", name, tflop / t[OURS], tflop / t[PER_TENSOR], tflop / t[PER_TENSOR_FAST], tflop / t[BLOCK_SCALED],
                       t[PER_TENSOR] / t[OURS], t[BLOCK_SCALED] / t[OURS], (int)gemm_plan(1, (const int64_t[]){ M }, (const int64_t[]){ N }, K, wgrad, b->s->multiprocessors));
        if (b->tiles) {
                w = (struct work){ run_product, &(struct product_work){ &o, NULL }, (const bool[N_GEMM_TILES]){ true, true, true, true }, N_GEMM_TILES };
                timed(b, &w, tile);
                for (int i = 0; i < N_GEMM_TILES; i++)
                        printf(" %6.0f", tflop / tile[i]);
        }
        if (table)
                printf("\n");
        report_add(b->rows, name, tflop / t[OURS], "TFLOP/s", tflop / t[PER_TENSOR]);
        for (int i = PER_TENSOR; i < N_WAYS; i++)
                lt_free(&l[i]);
        release(&o.a);
        release(&o.b);
        return t[PER_TENSOR] / t[OURS];
}

static void products(struct bench *b, bool wgrad, bool table) {
        static const int64_t fprop[][3] = { { 4096, 2112, 7168 }, { 4096, 24576, 1536 }, { 4096, 32768, 512 }, { 4096, 7168, 16384 }, { 4096, 4096, 7168 }, { 4096, 7168, 2048 },
                                            { 4096, 1536, 24576 }, { 8192, 8192, 8192 }, { 8192, 28672, 4096 }, { 8192, 4096, 14336 } };
        static const int64_t grads[][3] = { { 7168, 4096, 16384 }, { 4096, 4096, 7168 }, { 2112, 4096, 7168 }, { 7168, 4096, 2048 }, { 24576, 4096, 1536 }, { 32768, 4096, 512 } };
        const int64_t(*shape)[3] = wgrad ? grads : fprop;
        const size_t n = wgrad ? ARRAY_SIZE(grads) : ARRAY_SIZE(fprop);
        double log_sum = 0;

        if (table)
                printf("%-26s %8s %8s %8s %8s %8s %8s   tile%s\n", "TFLOP/s", "ours", "tensor", "fast acc", "block", "/tensor", "/block", b->tiles ? "    0      1      2      3" : "");
        for (size_t i = 0; i < n; i++)
                log_sum += log(product(b, wgrad, shape[i][0], shape[i][1], shape[i][2], table));
        if (table)
                printf("%s: geometric mean %.3f of cuBLASLt per-tensor without fast accumulation\n\n", wgrad ? "wgrad" : "fprop", exp(log_sum / (double)n));
        report_add(b->rows, wgrad ? "wgrad geometric mean" : "fprop geometric mean", exp(log_sum / (double)n), "ratio", 1);
}

struct quantise_work {
        const void *x;
        struct qtensor t;
        size_t elements;
        void *to;
};

enum { Q_ROW, Q_COL, Q_BOTH, Q_WEIGHT, Q_COPY, Q_WAYS };

static void run_quantise(struct bench *b, void *arg, int way) {
        struct quantise_work *w = arg;
        const struct quant_spec q = { .scaling = way == Q_WEIGHT ? Q_128X128 : Q_1X128, .dtype = DT_E4M3, .want_row = way != Q_COL, .want_col = way != Q_ROW };

        if (way == Q_COPY)
                must(cudaMemcpyAsync(w->to, w->x, w->elements * 2, cudaMemcpyDeviceToDevice, b->s->stream), "copy");
        else if (cuda_quantize(w->x, DT_BF16, &q, &w->t, b->s) < 0)
                exit(1);
}

static void quantisers(struct bench *b, bool table) {
        static const char *const names[] = { "quantise row", "quantise col", "quantise row + col", "quantise 128x128 row + col", "copy" };
        static const double bytes[] = { 3, 3, 4, 4, 4 };
        const struct quant_spec q = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_row = true, .want_col = true };
        struct quantise_work w = { .t = { .rows = 32768, .cols = 7168 }, .elements = (size_t)32768 * 7168 };
        const struct work work = { run_quantise, &w, (const bool[Q_WAYS]){ true, true, true, true, true }, Q_WAYS };
        size_t parts[4];
        double t[Q_WAYS];

        w.x = normal_matrix(b, w.elements);
        w.to = device(w.elements * 2);
        dev_qtensor_bytes(&q, w.t.rows, w.t.cols, parts);
        w.t.row = device(parts[0]);
        w.t.row_scale = device(parts[1]);
        w.t.col = device(parts[2]);
        w.t.col_scale = device(parts[3]);
        timed(b, &work, t);
        for (int i = 0; i < Q_WAYS; i++) {
                const double rate = bytes[i] * (double)w.elements / t[i] / 1e9, copy = bytes[Q_COPY] * (double)w.elements / t[Q_COPY] / 1e9;

                if (table)
                        printf("%-28s %8.0f GB/s  %5.3f of a copy\n", names[i], rate, rate / copy);
                if (i != Q_COPY)
                        report_add(b->rows, names[i], rate, "GB/s", copy);
        }
        release(&w.t);
        must(cudaFree((void *)(uintptr_t)w.x), "free");
        must(cudaFree(w.to), "free");
}

int main(int argc, char **argv) {
        struct bench b = { .repeat = 30, .rows = json_array() };
        const char *output = "table";
        const float one = 1;
        struct error e = { 0 };
        bool table;
        static const char *const outputs[] = { "table", "json", NULL };
        char *args[16];
        bool help = false, tiles = false;
        int n = 0;
        const struct opt opts[] = {
                { .name = "output", .letter = 'o', .type = OPT_CHOICE, .value = "FORM", .help = "table or json", .target = &output, .choices = outputs },
                { .name = "repeat", .type = OPT_INT, .value = "N", .help = "launches of each, the median counts", .target = &b.repeat, .min = 1, .max = MAX_REPEAT },
                { .name = "tiles", .type = OPT_FLAG, .help = "each of our tiles too (table)", .target = &tiles },
                { .name = "help", .letter = 'h', .type = OPT_FLAG, .help = "print this", .target = &help },
        };

        if (argc > (int)ARRAY_SIZE(args) || opt_parse(opts, ARRAY_SIZE(opts), argc, argv, args, &n, &e) < 0 || n > 0) {
                (void)fprintf(stderr, "gemm_cuda: %s\n", e.code ? e.text : "found other arguments, expected options only");
                return 2;
        }
        if (help) {
                opt_print_help(opts, ARRAY_SIZE(opts));
                return 0;
        }
        table = strcmp(output, "table") == 0;
        b.tiles = tiles && table;
        if (!b.rows || cuda_stream_new(&b.s, &e) < 0) {
                (void)fprintf(stderr, "gemm_cuda: %s\n", e.text);
                return 1;
        }
        must_lt(cublasLtCreate(&b.handle), "cuBLASLt");
        b.flush = device(FLUSH_BYTES);
        b.workspace = device(WORKSPACE_BYTES);
        b.out = device((size_t)32768 * 8192 * 4);
        b.one = device(sizeof one);
        must(cudaMemcpy(b.one, &one, sizeof one, cudaMemcpyHostToDevice), "copy");
        make_normal(&b);
        products(&b, false, table);
        products(&b, true, table);
        quantisers(&b, table);
        if (!table)
                json_dumpf(b.rows, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
        json_decref(b.rows);
        free(b.normal);
        (void)cublasLtDestroy(b.handle);
        (void)cuda_stream_free(b.s);
        return 0;
}
