/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the CPU backend's operations cost beside the plain thing: FP8 products beside sgemm on floats of the same shape, quantisers beside a copy of their input, attention beside its products
 * alone, and one MLP and attention layer's linear work, forward and backward, in recipe `block` beside `bf16`.
 * Figures are the fastest of --repeat runs of at least 20 ms of processor time each.
 */
#include <cblas.h>
#undef I
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/opt.h"
#include "bench/report.h"
#include "kernels/dev.h"
#include "kernels/fp8.h"

#define MAX_ROWS 64

struct row {
        char name[64];
        double value;
        const char *unit;
        double peer;
};

struct bench {
        const struct dev_ops *ops;
        struct dev *dev;
        struct dev_stream *s;
        int64_t T, H, I, seq, D, V, repeat;
        struct row rows[MAX_ROWS];
        int n;
};

/* Processor time of this thread, which does all the work (one BLAS thread): other processes on the machine disturb it least. */
static uint64_t cpu_ns(void) {
        struct timespec t;

        (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
        return (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
}

/* A piece of work to time. */
struct work {
        void (*fn)(struct bench *b, void *arg);
        void *arg;
};

static double seconds(struct bench *b, struct work w) {
        double best = INFINITY;

        w.fn(b, w.arg);
        for (int64_t r = 0; r < b->repeat; r++) {
                uint64_t start = cpu_ns(), now = start;
                int64_t n = 0;

                for (; now - start < 20 * NSEC_PER_MSEC; n++) {
                        w.fn(b, w.arg);
                        now = cpu_ns();
                }
                best = fmin(best, (double)(now - start) / 1e9 / (double)n);
        }
        return best;
}

static void add_row(struct bench *b, const char *name, double value, const char *unit, double peer) {
        struct row *r = &b->rows[b->n++];

        (void)snprintf(r->name, sizeof r->name, "%s", name);
        r->value = value;
        r->unit = unit;
        r->peer = peer;
}

static void *must_alloc(struct bench *b, size_t bytes) {
        struct error e = { 0 };
        void *p;

        if (b->ops->alloc(b->dev, bytes, &p, &e) < 0) {
                (void)fprintf(stderr, "bench kernels_cpu: %s\n", e.text);
                exit(1);
        }
        return p;
}

static float *random_floats(struct bench *b, int64_t n, double std) {
        float *p = must_alloc(b, (size_t)n * sizeof *p);

        b->ops->init_normal(p, 1, n, 0, 0, n, 1, (uint64_t)n, 0, std, b->s);
        return p;
}

static uint16_t *random_bf16(struct bench *b, int64_t n, double std) {
        float *f = random_floats(b, n, std);
        uint16_t *p = must_alloc(b, (size_t)n * sizeof *p);

        b->ops->cast(p, DT_BF16, f, DT_F32, n, b->s);
        b->ops->free(b->dev, f);
        return p;
}

/* ---- one Linear: y = x w^T and its gradients */

struct linear {
        int64_t T, N, K;
        bool fp8;
        struct quant_spec act, weight;
        uint16_t *x, *w, *dy, *y;
        float *fx, *fw, *fdy, *dx, *dw;
        struct qtensor qx, qw, qdy;
};

static struct qtensor qtensor_new(struct bench *b, const struct quant_spec *q, int64_t rows, int64_t cols) {
        struct qtensor t = { .rows = rows, .cols = cols };
        size_t bytes[4];

        dev_qtensor_bytes(q, rows, cols, bytes);
        t.row = bytes[0] ? must_alloc(b, bytes[0]) : NULL;
        t.row_scale = bytes[1] ? must_alloc(b, bytes[1]) : NULL;
        t.col = bytes[2] ? must_alloc(b, bytes[2]) : NULL;
        t.col_scale = bytes[3] ? must_alloc(b, bytes[3]) : NULL;
        return t;
}

static void qtensor_free(struct bench *b, struct qtensor *t) {
        if (t->scaling != Q_NONE)
                b->ops->free(b->dev, t->row);
        b->ops->free(b->dev, t->row_scale);
        b->ops->free(b->dev, t->col);
        b->ops->free(b->dev, t->col_scale);
}

static void linear_new(struct bench *b, struct linear *l, int64_t T, int64_t N, int64_t K, bool fp8) {
        *l = (struct linear){ .T = T, .N = N, .K = K, .fp8 = fp8 };
        l->act = (struct quant_spec){ .scaling = fp8 ? Q_1X128 : Q_NONE, .dtype = DT_E4M3, .want_row = true, .want_col = true };
        l->weight = (struct quant_spec){ .scaling = fp8 ? Q_128X128 : Q_NONE, .dtype = DT_E4M3, .want_row = true, .want_col = true };
        l->x = random_bf16(b, T * K, 1);
        l->w = random_bf16(b, N * K, 0.02);
        l->dy = random_bf16(b, T * N, 1e-5);
        l->y = random_bf16(b, T * N, 1);
        l->fx = random_floats(b, T * K, 1);
        l->fw = random_floats(b, N * K, 1);
        l->fdy = random_floats(b, T * N, 1);
        l->dx = random_floats(b, T * K, 1);
        l->dw = random_floats(b, N * K, 1);
        l->qx = qtensor_new(b, &l->act, T, K);
        l->qw = qtensor_new(b, &l->weight, N, K);
        l->qdy = qtensor_new(b, &l->act, T, N);
        b->ops->quantize(l->x, DT_BF16, &l->act, &l->qx, b->s);
        b->ops->quantize(l->w, DT_BF16, &l->weight, &l->qw, b->s);
        b->ops->quantize(l->dy, DT_BF16, &l->act, &l->qdy, b->s);
}

static void linear_free(struct bench *b, struct linear *l) {
        void *const all[] = { l->x, l->w, l->dy, l->y, l->fx, l->fw, l->fdy, l->dx, l->dw };

        qtensor_free(b, &l->qx);
        qtensor_free(b, &l->qw);
        qtensor_free(b, &l->qdy);
        for (size_t i = 0; i < ARRAY_SIZE(all); i++)
                b->ops->free(b->dev, all[i]);
}

static void fprop(struct bench *b, void *arg) {
        struct linear *l = arg;

        b->ops->gemm_fprop(&l->qx, &l->qw, l->y, DT_BF16, b->s);
}

static void dgrad(struct bench *b, void *arg) {
        struct linear *l = arg;

        b->ops->gemm_dgrad(&l->qdy, &l->qw, l->dx, 0, NULL, DT_F32, b->s);
}

static void wgrad(struct bench *b, void *arg) {
        struct linear *l = arg;

        b->ops->gemm_wgrad(&l->qdy, &l->qx, l->dw, 1, b->s);
}

static void sgemm_fprop(struct bench *b, void *arg) {
        struct linear *l = arg;

        (void)b;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)l->T, (int)l->N, (int)l->K, 1, l->fx, (int)l->K, l->fw, (int)l->K, 0, l->fdy, (int)l->N);
}

static void sgemm_dgrad(struct bench *b, void *arg) {
        struct linear *l = arg;

        (void)b;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)l->T, (int)l->K, (int)l->N, 1, l->fdy, (int)l->N, l->fw, (int)l->K, 0, l->dx, (int)l->K);
}

static void sgemm_wgrad(struct bench *b, void *arg) {
        struct linear *l = arg;

        (void)b;
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)l->N, (int)l->K, (int)l->T, 1, l->fdy, (int)l->N, l->fx, (int)l->K, 1, l->dw, (int)l->K);
}

static void bench_linear(struct bench *b, int64_t N, int64_t K) {
        static const struct {
                const char *name;
                void (*fn)(struct bench *b, void *arg), (*peer)(struct bench *b, void *arg);
        } products[] = { { "fprop", fprop, sgemm_fprop }, { "dgrad", dgrad, sgemm_dgrad }, { "wgrad", wgrad, sgemm_wgrad } };
        const double gflop = 2e-9 * (double)b->T * (double)N * (double)K;

        for (int fp8 = 1; fp8 >= 0; fp8--) {
                struct linear l;

                linear_new(b, &l, b->T, N, K, fp8);
                for (size_t i = 0; i < ARRAY_SIZE(products); i++) {
                        char name[64];

                        (void)snprintf(name, sizeof name, "gemm_%s_%s_%ldx%ldx%ld", products[i].name, fp8 ? "block" : "bf16", (long)b->T, (long)N, (long)K);
                        add_row(b, name, gflop / seconds(b, (struct work){ products[i].fn, &l }), "GFLOP/s", gflop / seconds(b, (struct work){ products[i].peer, &l }));
                }
                linear_free(b, &l);
        }
}

/* ---- quantisers */

struct quantizing {
        struct quant_spec q;
        uint16_t *x, *copy;
        int64_t rows, cols;
        struct qtensor t;
};

static void quantize(struct bench *b, void *arg) {
        struct quantizing *z = arg;

        b->ops->quantize(z->x, DT_BF16, &z->q, &z->t, b->s);
}

static void copy(struct bench *b, void *arg) {
        struct quantizing *z = arg;

        b->ops->copy(z->copy, z->x, (size_t)(z->rows * z->cols) * 2, b->s);
}

static void bench_quantize(struct bench *b) {
        static const struct {
                const char *name;
                struct quant_spec q;
        } cases[] = {
                { "quantize_1x128_row", { .scaling = Q_1X128, .dtype = DT_E4M3, .want_row = true } },
                { "quantize_1x128_col", { .scaling = Q_1X128, .dtype = DT_E4M3, .want_col = true } },
                { "quantize_1x128_both", { .scaling = Q_1X128, .dtype = DT_E4M3, .want_row = true, .want_col = true } },
                { "quantize_128x128_both", { .scaling = Q_128X128, .dtype = DT_E4M3, .want_row = true, .want_col = true } },
                { "quantize_tensor_both", { .scaling = Q_TENSOR, .dtype = DT_E5M2, .want_row = true, .want_col = true } },
        };

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                struct quantizing z = { .q = cases[i].q, .rows = b->T, .cols = b->I };
                const double gb = 2e-9 * (double)(b->T * b->I);

                z.x = random_bf16(b, z.rows * z.cols, 1);
                z.copy = random_bf16(b, z.rows * z.cols, 1);
                z.t = qtensor_new(b, &z.q, z.rows, z.cols);
                add_row(b, cases[i].name, gb / seconds(b, (struct work){ quantize, &z }), "GB/s", gb / seconds(b, (struct work){ copy, &z }));
                qtensor_free(b, &z.t);
                b->ops->free(b->dev, z.x);
                b->ops->free(b->dev, z.copy);
        }
}

/* ---- attention */

struct attending {
        int64_t heads;
        struct doc_bounds docs;
        int32_t *cu, *pos, *doc;
        uint16_t *q, *k, *v, *out, *dout, *dq, *dk, *dv;
        float *lse, *f, *sc, *o;
};

static void attention_fwd(struct bench *b, void *arg) {
        struct attending *a = arg;

        b->ops->attention_fwd(a->q, a->k, a->v, &a->docs, a->out, a->lse, a->heads, a->heads, b->D, DT_BF16, NULL, b->s);
}

static void attention_bwd(struct bench *b, void *arg) {
        struct attending *a = arg;

        b->ops->attention_bwd(a->q, a->k, a->v, a->out, a->lse, a->dout, &a->docs, a->dq, a->dk, a->dv, a->heads, a->heads, b->D, DT_BF16, NULL, b->s);
}

/* The products of `times` forward passes and nothing else. */
static void products(struct bench *b, struct attending *a, int times) {
        const int L = (int)b->seq, D = (int)b->D, ld = (int)(a->heads * b->D);

        for (int32_t i = 0; i < a->docs.n; i++)
                for (int64_t h = 0; h < a->heads; h++)
                        for (int t = 0; t < times; t++) {
                                const float *x = a->f + a->cu[i] * (int64_t)ld + h * D;

                                if (t % 2 == 0)
                                        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, L, L, D, 1, x, ld, x, ld, 0, a->sc, L);
                                else
                                        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, L, D, L, 1, a->sc, L, x, ld, 0, a->o, ld);
                        }
}

static void products_fwd(struct bench *b, void *arg) {
        products(b, arg, 2);
}

static void products_bwd(struct bench *b, void *arg) {
        products(b, arg, 5);
}

static void bench_attention(struct bench *b) {
        struct attending a = { .heads = b->H / b->D };
        const int64_t n = b->T * b->H;
        uint16_t **const mats[] = { &a.q, &a.k, &a.v, &a.out, &a.dout, &a.dq, &a.dk, &a.dv };

        a.docs = (struct doc_bounds){ .n = (int32_t)(b->T / b->seq), .tokens = (int32_t)b->T };
        a.cu = must_alloc(b, (size_t)(a.docs.n + 1) * 4);
        a.pos = must_alloc(b, (size_t)b->T * 4);
        a.doc = must_alloc(b, (size_t)b->T * 4);
        for (int32_t i = 0; i <= a.docs.n; i++)
                a.cu[i] = i * (int32_t)b->seq;
        for (int32_t t = 0; t < a.docs.tokens; t++) {
                a.pos[t] = t % (int32_t)b->seq;
                a.doc[t] = t / (int32_t)b->seq;
        }
        a.docs.cu = a.cu, a.docs.pos = a.pos, a.docs.doc = a.doc;
        for (size_t i = 0; i < ARRAY_SIZE(mats); i++)
                *mats[i] = random_bf16(b, n, 1);
        a.lse = random_floats(b, b->T * a.heads, 1);
        a.f = random_floats(b, n, 1);
        a.o = random_floats(b, n, 1);
        a.sc = random_floats(b, b->seq * b->seq, 1);
        add_row(b, "attention_fwd", 1e3 * seconds(b, (struct work){ attention_fwd, &a }), "ms", 1e3 * seconds(b, (struct work){ products_fwd, &a }));
        add_row(b, "attention_bwd", 1e3 * seconds(b, (struct work){ attention_bwd, &a }), "ms", 1e3 * seconds(b, (struct work){ products_bwd, &a }));
        for (size_t i = 0; i < ARRAY_SIZE(mats); i++)
                b->ops->free(b->dev, *mats[i]);
        b->ops->free(b->dev, a.cu), b->ops->free(b->dev, a.pos), b->ops->free(b->dev, a.doc), b->ops->free(b->dev, a.lse), b->ops->free(b->dev, a.f);
        b->ops->free(b->dev, a.o), b->ops->free(b->dev, a.sc);
}

/* ---- a layer's linear work with everything that quantises: norm -> q,k,v,o; norm -> gate, up -> swiglu -> down, and back */

struct layer {
        struct linear qkv, o, up, gate, down;
        uint16_t *res, *delta, *da, *dy;
        float *w, *rstd;
};

static void layer_step(struct bench *b, void *arg) {
        struct layer *y = arg;
        const struct dev_ops *o = b->ops;
        struct linear *const in[] = { &y->qkv, &y->o, &y->gate, &y->up, &y->down };

        o->rmsnorm_quant_fwd(y->res, y->res, NULL, y->w, 1e-5, y->qkv.fp8 ? NULL : y->dy, y->rstd, DT_BF16, b->T, b->H, &y->qkv.act, &y->qkv.qx, b->s);
        fprop(b, &y->qkv);
        o->quantize(y->o.x, DT_BF16, &y->o.act, &y->o.qx, b->s);
        fprop(b, &y->o);
        o->rmsnorm_quant_fwd(y->res, y->res, NULL, y->w, 1e-5, y->up.fp8 ? NULL : y->dy, y->rstd, DT_BF16, b->T, b->H, &y->up.act, &y->up.qx, b->s);
        fprop(b, &y->gate);
        fprop(b, &y->up);
        o->swiglu_quant_fwd(y->gate.y, y->up.y, y->down.fp8 ? NULL : y->da, DT_BF16, b->T, b->I, &y->down.act, &y->down.qx, b->s);
        fprop(b, &y->down);
        for (int i = 4; i >= 0; i--) {
                struct linear *l = in[i];

                if (i == 3)
                        o->swiglu_bwd(y->gate.y, y->up.y, y->down.dx, DT_F32, y->gate.fp8 ? NULL : y->gate.dy, y->gate.fp8 ? NULL : y->up.dy, DT_BF16, b->T, b->I, &y->gate.act,
                                      &y->gate.qdy, &y->up.act, &y->up.qdy, b->s);
                if (i != 3 && i != 2)
                        o->quantize(l->dy, DT_BF16, &l->act, &l->qdy, b->s);
                wgrad(b, l);
                dgrad(b, l);
        }
        o->rmsnorm_bwd(y->delta, y->qkv.dw, y->qkv.dx, DT_F32, y->res, y->w, y->rstd, DT_BF16, b->T, b->H, b->s);
        o->rmsnorm_bwd(y->delta, y->qkv.dw, y->up.dx, DT_F32, y->res, y->w, y->rstd, DT_BF16, b->T, b->H, b->s);
}

static void bench_layer(struct bench *b) {
        double s[2];

        for (int fp8 = 0; fp8 < 2; fp8++) {
                struct layer y;
                struct linear *const all[] = { &y.qkv, &y.o, &y.gate, &y.up, &y.down };

                linear_new(b, &y.qkv, b->T, 3 * b->H, b->H, fp8);
                linear_new(b, &y.o, b->T, b->H, b->H, fp8);
                linear_new(b, &y.gate, b->T, b->I, b->H, fp8);
                linear_new(b, &y.up, b->T, b->I, b->H, fp8);
                linear_new(b, &y.down, b->T, b->H, b->I, fp8);
                y.res = random_bf16(b, b->T * b->H, 1), y.delta = random_bf16(b, b->T * b->H, 1), y.da = random_bf16(b, b->T * b->I, 1);
                y.dy = random_bf16(b, b->T * b->H, 1), y.w = random_floats(b, b->H, 1), y.rstd = random_floats(b, b->T, 1);
                s[fp8] = seconds(b, (struct work){ layer_step, &y });
                for (size_t i = 0; i < ARRAY_SIZE(all); i++)
                        linear_free(b, all[i]);
                b->ops->free(b->dev, y.res), b->ops->free(b->dev, y.delta), b->ops->free(b->dev, y.da), b->ops->free(b->dev, y.dy), b->ops->free(b->dev, y.w);
                b->ops->free(b->dev, y.rstd);
        }
        add_row(b, "layer_linear_step_block_beside_bf16", 1e3 * s[1], "ms", 1e3 * s[0]);
}

/* ---- output */

static void print_table(const struct bench *b) {
        printf("%-40s %12s %-8s %12s %8s\n", "NAME", "VALUE", "UNIT", "PEER", "RATIO");
        for (int i = 0; i < b->n; i++)
                printf("%-40s %12.3f %-8s %12.3f %8.3f\n", b->rows[i].name, b->rows[i].value, b->rows[i].unit, b->rows[i].peer, b->rows[i].value / b->rows[i].peer);
}

static int print_json(const struct bench *b) {
        json_t *rows = json_array();

        for (int i = 0; i < b->n; i++)
                report_add(rows, b->rows[i].name, b->rows[i].value, b->rows[i].unit, b->rows[i].peer);
        return report_print(rows, 6);
}

int main(int argc, char **argv) {
        static const char *const outputs[] = { "table", "json", NULL };
        struct bench b = { .T = 1024, .H = 128, .I = 384, .seq = 128, .D = 32, .repeat = 5 };
        const char *output = "table", *args[16];
        bool help = false;
        const struct opt table[] = {
                { .name = "output", .letter = 'o', .type = OPT_CHOICE, .value = "FORM", .help = "table or json", .target = &output, .choices = outputs },
                { .name = "tokens", .type = OPT_INT, .value = "N", .help = "rows of activations, a multiple of --seq", .target = &b.T, .min = 1, .max = 1 << 20 },
                { .name = "hidden", .type = OPT_INT, .value = "N", .help = "model width, a multiple of --head-dim", .target = &b.H, .min = 1, .max = 1 << 16 },
                { .name = "intermediate", .type = OPT_INT, .value = "N", .help = "width of the MLP", .target = &b.I, .min = 1, .max = 1 << 16 },
                { .name = "seq", .type = OPT_INT, .value = "N", .help = "length of a document", .target = &b.seq, .min = 1, .max = 1 << 16 },
                { .name = "head-dim", .type = OPT_INT, .value = "N", .help = "width of an attention head", .target = &b.D, .min = 2, .max = 1024 },
                { .name = "repeat", .type = OPT_INT, .value = "N", .help = "runs of each, the fastest counts", .target = &b.repeat, .min = 1, .max = 1000 },
                { .name = "help", .letter = 'h', .type = OPT_FLAG, .help = "print this", .target = &help },
        };
        const struct dev_config config = { .kind = "cpu", .threads = 1, .act = DT_BF16 };
        struct error e = { 0 };
        int n = 0, r;

        if (argc > (int)ARRAY_SIZE(args) || opt_parse(table, ARRAY_SIZE(table), argc, argv, (char **)args, &n, &e) < 0 || n > 0 || b.T % b.seq || b.H % b.D) {
                (void)fprintf(stderr, "kernels_cpu: %s\n", e.code ? e.text : "found other arguments, expected options only, tokens a multiple of seq and hidden of head-dim");
                return 2;
        }
        if (help) {
                opt_print_help(table, ARRAY_SIZE(table));
                return 0;
        }
        b.ops = dev_ops_find("cpu");
        if (b.ops->open(&config, &b.dev, &e) < 0 || b.ops->stream_new(b.dev, &b.s) < 0) {
                (void)fprintf(stderr, "kernels_cpu: %s\n", e.text);
                return 1;
        }
        bench_linear(&b, b.H, b.H);
        bench_linear(&b, b.I, b.H);
        bench_linear(&b, b.H, b.I);
        bench_quantize(&b);
        bench_attention(&b);
        bench_layer(&b);
        r = 0;
        if (strcmp(output, "json") == 0)
                r = print_json(&b);
        else
                print_table(&b);
        b.ops->stream_free(b.s);
        b.ops->close(b.dev);
        return r;
}
