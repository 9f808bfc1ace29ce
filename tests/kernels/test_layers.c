/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Norm, RoPE, attention, SwiGLU, embedding and cross-entropy. Forward against naive loops in double, in every carrier of the build; backward, in the FP64 build, against central
 * differences of a random linear function of the outputs.
 */
#include "tests/kernels/common.h"

#ifdef FP8_FP64
#define TOLERANCE 1e-12
#else
#define TOLERANCE 3e-6
#endif

/* ---- carriers */

static const enum dtype carriers[] = { DT_F32, DT_BF16 };
#ifdef FP8_FP64
#define N_CARRIERS 1
#else
#define N_CARRIERS 2
#endif

static double get(const void *p, enum dtype t, int64_t i) {
#ifndef FP8_FP64
        if (t == DT_BF16)
                return (double)bf16_to_float(((const uint16_t *)p)[i]);
#endif
        return (double)((const dev_real *)p)[i];
}

static void *carrier_random(enum dtype t, int64_t n, double std) {
#ifndef FP8_FP64
        if (t == DT_BF16)
                return random_bf16(1, n, std);
#endif
        return random_reals(n, std);
}

static void *carrier_new(enum dtype t, int64_t n) {
        void *p = xalloc((size_t)n * dtype_size(t));

        memset(p, 0xff, (size_t)n * dtype_size(t));
        return p;
}

/* Largest |got - want| relative to |want| + floor; BF16's own rounding is 2^-8, and a value beside a tie may go either way. */
static double error_of(enum dtype t, double got, double want, double floor_) {
        const double d = fabs(got - want) / (fabs(want) + floor_);

        return isfinite(got) ? (t == DT_BF16 ? fmax(0, d - 0x1.02p-8) : d) : INFINITY;
}

/* ---- finite differences */

#ifdef FP8_FP64
struct objective {
        double (*value)(void *ctx);
        void *ctx;
};

/* Entry-wise: the derivative of the objective by x[i] against grad[i], on a sample of entries. */
static void check_gradient(const char *what, struct objective o, double *x, const double *grad, int64_t n) {
        double scale = 0, bad = 0;

        for (int64_t i = 0; i < n; i++)
                scale = fmax(scale, fabs(grad[i]));
        CU_ASSERT_TRUE(scale > 0);
        for (int k = 0; k < 40; k++) {
                const int64_t i = n <= 40 ? k % n : rng_in(0, n - 1);
                const double keep = x[i], h = 1e-5;
                double up, down;

                x[i] = keep + h;
                up = o.value(o.ctx);
                x[i] = keep - h;
                down = o.value(o.ctx);
                x[i] = keep;
                bad = fmax(bad, fabs((up - down) / (2 * h) - grad[i]) / scale);
        }
        if (!(bad < 1e-7))
                printf("    %s: found error %.3g of the largest entry, expected below 1e-7\n", what, bad);
        CU_ASSERT_TRUE(bad < 1e-7);
}

static double dot(const double *a, const double *b, int64_t n) {
        double s = 0;

        for (int64_t i = 0; i < n; i++)
                s += a[i] * b[i];
        return s;
}
#endif

/* ---- norm */

static const double norm_eps = 1e-5;

TEST(rmsnorm_forward) {
        device_open(DT_F32);
        for (int v = 0; v < 2 * N_CARRIERS; v++) {
                const enum dtype t = carriers[v / 2];
                const int64_t T = 37, H = 133;
                void *res = carrier_random(t, T * H, 1), *delta = carrier_random(t, T * H, 0.5), *y = carrier_new(t, T * H), *before = carrier_new(t, T * H);
                dev_real *w = random_reals(H, 1), *rstd = random_reals(T, 1);
                double worst = 0;

                memcpy(before, res, (size_t)(T * H) * dtype_size(t));
                CU_ASSERT_EQUAL(ops->rmsnorm_fwd(res, res, v % 2 ? delta : NULL, w, norm_eps, y, rstd, t, T, H, stream), 0);
                for (int64_t r = 0; r < T; r++) {
                        double sum = 0, s;

                        for (int64_t i = r * H; i < (r + 1) * H; i++) {
                                worst = fmax(worst, error_of(t, get(res, t, i), get(before, t, i) + (v % 2 ? get(delta, t, i) : 0), 1e-2));
                                sum += get(res, t, i) * get(res, t, i);
                        }
                        s = 1 / sqrt(sum / (double)H + norm_eps);
                        worst = fmax(worst, error_of(DT_F32, (double)rstd[r], s, 0));
                        for (int64_t i = 0; i < H; i++)
                                worst = fmax(worst, error_of(t, get(y, t, r * H + i), get(res, t, r * H + i) * s * (double)w[i], 1e-6));
                }
                CU_ASSERT_TRUE(worst < TOLERANCE);
                xfree(res), xfree(delta), xfree(y), xfree(before), xfree(w), xfree(rstd);
        }
        device_close();
}

#ifdef FP8_FP64
struct norm_case {
        int64_t T, H;
        double *x, *w, *y, *rstd, *r;
};

static double norm_value(void *ctx) {
        struct norm_case *c = ctx;

        ops->rmsnorm_fwd(c->x, c->x, NULL, c->w, norm_eps, c->y, c->rstd, DT_F32, c->T, c->H, stream);
        return dot(c->y, c->r, c->T * c->H);
}

TEST(rmsnorm_backward) {
        struct norm_case c = { .T = 9, .H = 70 };
        const int64_t n = c.T * c.H;
        double *dres, *dw, *first;

        device_open(DT_F32);
        c.x = random_reals(n, 1), c.w = random_reals(c.H, 1), c.y = random_reals(n, 1), c.rstd = random_reals(c.T, 1), c.r = random_reals(n, 1);
        dres = random_reals(n, 1), first = random_reals(n, 1), dw = random_reals(c.H, 0);
        memcpy(first, dres, (size_t)n * sizeof *dres);
        norm_value(&c);
        CU_ASSERT_EQUAL(ops->rmsnorm_bwd(dres, dw, c.r, DT_F32, c.x, c.w, c.rstd, DT_F32, c.T, c.H, stream), 0);
        for (int64_t i = 0; i < n; i++)
                dres[i] -= first[i];
        check_gradient("rmsnorm dx", (struct objective){ norm_value, &c }, c.x, dres, n);
        check_gradient("rmsnorm dw", (struct objective){ norm_value, &c }, c.w, dw, c.H);
        xfree(c.x), xfree(c.w), xfree(c.y), xfree(c.rstd), xfree(c.r), xfree(dres), xfree(dw), xfree(first);
        device_close();
}
#endif

/* ---- documents */

struct packed {
        int32_t cu[8], pos[512], doc[512];
        struct doc_bounds b;
};

static void packed_new(struct packed *p, const int *lengths, int n) {
        int32_t t = 0;

        p->cu[0] = 0;
        for (int i = 0; i < n; i++) {
                for (int j = 0; j < lengths[i]; j++, t++) {
                        p->pos[t] = j;
                        p->doc[t] = i;
                }
                p->cu[i + 1] = t;
        }
        p->b = (struct doc_bounds){ .cu = p->cu, .pos = p->pos, .doc = p->doc, .n = n, .tokens = t };
}

static const int lengths[] = { 1, 40, 131, 7 };

/* ---- rope */

TEST(rope_rotates_halves) {
        struct packed p;

        packed_new(&p, lengths, 4);
        device_open(DT_F32);
        for (int v = 0; v < N_CARRIERS; v++) {
                const enum dtype t = carriers[v];
                const int64_t T = p.b.tokens, Hq = 4, Hkv = 2, D = 32;
                void *q = carrier_random(t, T * Hq * D, 1), *k = carrier_random(t, T * Hkv * D, 1), *q0 = carrier_new(t, T * Hq * D), *k0 = carrier_new(t, T * Hkv * D);
                double worst = 0, back = 0;

                memcpy(q0, q, (size_t)(T * Hq * D) * dtype_size(t));
                memcpy(k0, k, (size_t)(T * Hkv * D) * dtype_size(t));
                CU_ASSERT_EQUAL(ops->rope(q, k, &p.b, 10000, Hq, Hkv, D, false, t, stream), 0);
                for (int64_t i = 0; i < T * Hq * D; i++) {
                        const int64_t d = i % D, j = d % (D / 2), token = i / (Hq * D);
                        const double a = (double)p.pos[token] * pow(10000, -2.0 * (double)j / (double)D), other = get(q0, t, d < D / 2 ? i + D / 2 : i - D / 2);

                        worst = fmax(worst, error_of(t, get(q, t, i), get(q0, t, i) * cos(a) + (d < D / 2 ? -other : other) * sin(a), 0.3));
                }
                /* key heads turn as query heads do: rotated back they are what they were */
                CU_ASSERT_EQUAL(ops->rope(q, k, &p.b, 10000, Hq, Hkv, D, true, t, stream), 0);
                for (int64_t i = 0; i < T * Hq * D; i++)
                        back = fmax(back, fabs(get(q, t, i) - get(q0, t, i)) / 4);
                for (int64_t i = 0; i < T * Hkv * D; i++)
                        back = fmax(back, fabs(get(k, t, i) - get(k0, t, i)) / 4);
                CU_ASSERT_TRUE(worst < TOLERANCE);
                CU_ASSERT_TRUE(back < (t == DT_BF16 ? 0.05 : TOLERANCE));
                xfree(q), xfree(k), xfree(q0), xfree(k0);
        }
        device_close();
}

/* ---- attention */

struct attention_case {
        struct packed p;
        enum dtype t;
        int64_t T, Hq, Hkv, D;
        void *q, *k, *v, *out, *dout;
        dev_real *lse;
};

static void attention_new(struct attention_case *c, enum dtype t, const int *docs, int n, int64_t Hq, int64_t Hkv, int64_t D) {
        packed_new(&c->p, docs, n);
        c->t = t, c->T = c->p.b.tokens, c->Hq = Hq, c->Hkv = Hkv, c->D = D;
        c->q = carrier_random(t, c->T * Hq * D, 1);
        c->k = carrier_random(t, c->T * Hkv * D, 1);
        c->v = carrier_random(t, c->T * Hkv * D, 1);
        c->dout = carrier_random(t, c->T * Hq * D, 1);
        c->out = carrier_new(t, c->T * Hq * D);
        c->lse = carrier_new(DT_F32, c->T * Hq);
}

static void attention_free(struct attention_case *c) {
        xfree(c->q), xfree(c->k), xfree(c->v), xfree(c->out), xfree(c->dout), xfree(c->lse);
}

static int attention_run(struct attention_case *c) {
        return ops->attention_fwd(c->q, c->k, c->v, &c->p.b, c->out, c->lse, c->Hq, c->Hkv, c->D, c->t, NULL, stream);
}

/* One token and head: the softmax over the keys of its document up to itself. */
static double attention_error(const struct attention_case *c, int64_t t, int64_t h) {
        const int64_t first = c->p.cu[c->p.doc[t]], hk = h / (c->Hq / c->Hkv), D = c->D;
        double p[512] = { 0 }, sum = 0, worst;

        for (int64_t j = first; j <= t; j++) {
                double s = 0;

                for (int64_t d = 0; d < D; d++)
                        s += get(c->q, c->t, (t * c->Hq + h) * D + d) * get(c->k, c->t, (j * c->Hkv + hk) * D + d);
                p[j] = exp(s / sqrt((double)D));
                sum += p[j];
        }
        CU_ASSERT_TRUE_FATAL(sum > 0);
        worst = error_of(DT_F32, (double)c->lse[h * c->T + t], log(sum), 1);
        for (int64_t d = 0; d < D; d++) {
                double o = 0;

                for (int64_t j = first; j <= t; j++)
                        o += p[j] / sum * get(c->v, c->t, (j * c->Hkv + hk) * D + d);
                worst = fmax(worst, error_of(c->t, get(c->out, c->t, (t * c->Hq + h) * D + d), o, 0.3));
        }
        return worst;
}

TEST(attention_forward) {
        device_open(DT_F32);
        for (int v = 0; v < 2 * N_CARRIERS; v++) {
                const int one[] = { 300 };
                struct attention_case c;
                double worst = 0;

                attention_new(&c, carriers[v / 2], v % 2 ? one : lengths, v % 2 ? 1 : 4, 4, v % 2 ? 4 : 2, 16);
                CU_ASSERT_EQUAL(attention_run(&c), 0);
                for (int64_t t = 0; t < c.T; t++)
                        for (int64_t h = 0; h < c.Hq; h++)
                                worst = fmax(worst, attention_error(&c, t, h));
                CU_ASSERT_TRUE(worst < TOLERANCE);
                attention_free(&c);
        }
        device_close();
}

/* Other contents of one document, also not finite ones, change no bit of another's outputs and gradients. */
TEST(documents_do_not_leak) {
        device_open(DT_F32);
        for (int v = 0; v < N_CARRIERS; v++) {
                struct attention_case c;
                const size_t size = dtype_size(carriers[v]);
                void *keep[4], *grad[3];
                int64_t n[4];

                attention_new(&c, carriers[v], lengths, 4, 4, 2, 16);
                n[0] = n[1] = c.T * c.Hq * c.D, n[2] = n[3] = c.T * c.Hkv * c.D;
                for (int i = 0; i < 4; i++)
                        keep[i] = carrier_new(c.t, n[i]);
                for (int i = 0; i < 3; i++)
                        grad[i] = carrier_new(c.t, n[i + 1]);
                for (int round = 0; round < 2; round++) {
                        CU_ASSERT_EQUAL(attention_run(&c), 0);
                        CU_ASSERT_EQUAL(ops->attention_bwd(c.q, c.k, c.v, c.out, c.lse, c.dout, &c.p.b, grad[0], grad[1], grad[2], c.Hq, c.Hkv, c.D, c.t, NULL, stream), 0);
                        for (int i = 0; i < 4; i++) {
                                const void *now = i == 0 ? c.out : grad[i - 1];
                                const int64_t row = n[i] / c.T, from = c.p.cu[1] * row, to = c.p.cu[2] * row;

                                if (round == 0) {
                                        memcpy(keep[i], now, (size_t)n[i] * size);
                                        continue;
                                }
                                /* document 2 changed; 0, 1 and 3 did not */
                                CU_ASSERT_EQUAL(memcmp(keep[i], now, (size_t)to * size), 0);
                                CU_ASSERT_NOT_EQUAL(memcmp((char *)keep[i] + (size_t)to * size, (const char *)now + (size_t)to * size, (size_t)(to - from) * size), 0);
                                CU_ASSERT_EQUAL(memcmp((char *)keep[i] + (size_t)(c.p.cu[3] * row) * size, (const char *)now + (size_t)(c.p.cu[3] * row) * size,
                                                       (size_t)((c.T - c.p.cu[3]) * row) * size),
                                                0);
                        }
                        memset((char *)c.q + (size_t)(c.p.cu[2] * c.Hq * c.D) * size, 0xff, (size_t)(40 * c.Hq * c.D) * size);
                        memset((char *)c.k + (size_t)(c.p.cu[2] * c.Hkv * c.D) * size, 0x3c, (size_t)(131 * c.Hkv * c.D) * size);
                        memset((char *)c.v + (size_t)(c.p.cu[2] * c.Hkv * c.D) * size, 0xff, (size_t)(131 * c.Hkv * c.D) * size);
                }
                for (int i = 0; i < 4; i++)
                        xfree(keep[i]);
                for (int i = 0; i < 3; i++)
                        xfree(grad[i]);
                attention_free(&c);
        }
        device_close();
}

TEST(attention_refuses_bad_documents) {
        struct attention_case c;

        device_open(DT_F32);
        attention_new(&c, DT_F32, lengths, 4, 4, 2, 16);
        c.p.cu[2] = c.p.cu[1];
        CU_ASSERT_EQUAL(attention_run(&c), -EINVAL);
        c.p.cu[2] = 41;
        c.Hkv = 3;
        CU_ASSERT_EQUAL(attention_run(&c), -EINVAL);
        c.Hkv = 2;
        CU_ASSERT_EQUAL(attention_run(&c), 0);
        attention_free(&c);
        device_close();
}

#ifdef FP8_FP64
static double attention_value(void *ctx) {
        struct attention_case *c = ctx;

        attention_run(c);
        return dot(c->out, c->dout, c->T * c->Hq * c->D);
}

TEST(attention_backward) {
        device_open(DT_F32);
        for (int v = 0; v < 2; v++) {
                const int docs[] = { 5, 150, 20 };
                struct attention_case c;
                dev_real *dq, *dk, *dv;

                attention_new(&c, DT_F32, docs, 3, 4, v ? 1 : 4, 8);
                dq = random_reals(c.T * c.Hq * c.D, 1), dk = random_reals(c.T * c.Hkv * c.D, 1), dv = random_reals(c.T * c.Hkv * c.D, 1);
                attention_run(&c);
                CU_ASSERT_EQUAL(ops->attention_bwd(c.q, c.k, c.v, c.out, c.lse, c.dout, &c.p.b, dq, dk, dv, c.Hq, c.Hkv, c.D, DT_F32, NULL, stream), 0);
                check_gradient("attention dq", (struct objective){ attention_value, &c }, c.q, dq, c.T * c.Hq * c.D);
                check_gradient("attention dk", (struct objective){ attention_value, &c }, c.k, dk, c.T * c.Hkv * c.D);
                check_gradient("attention dv", (struct objective){ attention_value, &c }, c.v, dv, c.T * c.Hkv * c.D);
                xfree(dq), xfree(dk), xfree(dv);
                attention_free(&c);
        }
        device_close();
}
#endif

/* ---- swiglu */

TEST(swiglu_forward) {
        device_open(DT_F32);
        for (int v = 0; v < N_CARRIERS; v++) {
                const enum dtype t = carriers[v];
                const int64_t T = 11, I = 203, n = T * I;
                void *g = carrier_random(t, n, 4), *u = carrier_random(t, n, 1), *a = carrier_new(t, n);
                double worst = 0;

                CU_ASSERT_EQUAL(ops->swiglu_fwd(g, u, a, t, T, I, stream), 0);
                for (int64_t i = 0; i < n; i++)
                        worst = fmax(worst, error_of(t, get(a, t, i), get(g, t, i) / (1 + exp(-get(g, t, i))) * get(u, t, i), 1e-30));
                CU_ASSERT_TRUE(worst < TOLERANCE);
                xfree(g), xfree(u), xfree(a);
        }
        device_close();
}

#ifdef FP8_FP64
struct swiglu_case {
        int64_t T, I;
        double *g, *u, *a, *r;
};

static double swiglu_value(void *ctx) {
        struct swiglu_case *c = ctx;

        ops->swiglu_fwd(c->g, c->u, c->a, DT_F32, c->T, c->I, stream);
        return dot(c->a, c->r, c->T * c->I);
}

TEST(swiglu_backward) {
        struct swiglu_case c = { .T = 7, .I = 50 };
        const int64_t n = c.T * c.I;
        double *dg, *du;

        device_open(DT_F32);
        c.g = random_reals(n, 3), c.u = random_reals(n, 1), c.a = random_reals(n, 1), c.r = random_reals(n, 1), dg = random_reals(n, 1), du = random_reals(n, 1);
        CU_ASSERT_EQUAL(ops->swiglu_bwd(c.g, c.u, c.r, DT_F32, dg, du, DT_F32, c.T, c.I, NULL, NULL, NULL, NULL, stream), 0);
        check_gradient("swiglu dg", (struct objective){ swiglu_value, &c }, c.g, dg, n);
        check_gradient("swiglu du", (struct objective){ swiglu_value, &c }, c.u, du, n);
        xfree(c.g), xfree(c.u), xfree(c.a), xfree(c.r), xfree(dg), xfree(du);
        device_close();
}
#else
/* The fused forms are the plain form followed by the quantiser, bit for bit, whether or not the BF16 result is asked for. */
TEST(fused_quantisation) {
        const struct quant_spec q = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_row = true, .want_col = true };
        const int64_t T = 150, H = 300, n = T * H;

        device_open(DT_BF16);
        for (int v = 0; v < 6; v++) {
                uint16_t *g = random_bf16(T, H, 1), *u = random_bf16(T, H, 1), *da = random_bf16(T, H, 1e-4), *y[3], *res[2];
                float *w = random_reals(H, 1), *rstd = random_reals(T, 1);
                struct qtensor want[2] = { qtensor_new(&q, T, H), qtensor_new(&q, T, H) }, got[2] = { qtensor_new(&q, T, H), qtensor_new(&q, T, H) };

                for (int i = 0; i < 3; i++)
                        y[i] = carrier_new(DT_BF16, n);
                for (int i = 0; i < 2; i++) {
                        res[i] = carrier_new(DT_BF16, n);
                        memcpy(res[i], g, (size_t)n * 2);
                }
                if (v / 2 == 0) {
                        ops->rmsnorm_fwd(res[0], res[0], u, w, 1e-5, y[0], rstd, DT_BF16, T, H, stream);
                        CU_ASSERT_EQUAL(ops->rmsnorm_quant_fwd(res[1], res[1], u, w, 1e-5, v % 2 ? y[1] : NULL, rstd, DT_BF16, T, H, &q, &got[0], stream), 0);
                        CU_ASSERT_EQUAL(memcmp(res[0], res[1], (size_t)n * 2), 0);
                } else if (v / 2 == 1) {
                        ops->swiglu_fwd(g, u, y[0], DT_BF16, T, H, stream);
                        CU_ASSERT_EQUAL(ops->swiglu_quant_fwd(g, u, v % 2 ? y[1] : NULL, DT_BF16, T, H, &q, &got[0], stream), 0);
                } else {
                        ops->swiglu_bwd(g, u, da, DT_BF16, y[0], y[2], DT_BF16, T, H, NULL, NULL, NULL, NULL, stream);
                        ops->quantize(y[2], DT_BF16, &q, &want[1], stream);
                        CU_ASSERT_EQUAL(ops->swiglu_bwd(g, u, da, DT_BF16, v % 2 ? y[1] : NULL, NULL, DT_BF16, T, H, &q, &got[0], &q, &got[1], stream), 0);
                }
                ops->quantize(y[0], DT_BF16, &q, &want[0], stream);
                if (v % 2)
                        CU_ASSERT_EQUAL(memcmp(y[0], y[1], (size_t)n * 2), 0);
                for (int i = 0; i < (v / 2 == 2 ? 2 : 1); i++) {
                        CU_ASSERT_EQUAL(memcmp(want[i].row, got[i].row, (size_t)n), 0);
                        CU_ASSERT_EQUAL(memcmp(want[i].col, got[i].col, (size_t)n), 0);
                        CU_ASSERT_EQUAL(memcmp(want[i].row_scale, got[i].row_scale, 3 * 152 * 4), 0);
                        CU_ASSERT_EQUAL(memcmp(want[i].col_scale, got[i].col_scale, 2 * 300 * 4), 0);
                }
                for (int i = 0; i < 2; i++)
                        qtensor_free(&want[i]), qtensor_free(&got[i]), xfree(res[i]);
                for (int i = 0; i < 3; i++)
                        xfree(y[i]);
                xfree(g), xfree(u), xfree(da), xfree(w), xfree(rstd);
        }
        device_close();
}
#endif

/* ---- embedding */

TEST(embedding) {
        device_open(DT_F32);
        for (int v = 0; v < N_CARRIERS; v++) {
                const enum dtype t = carriers[v];
                const int64_t T = 60, H = 33, V = 10, v0 = 20;
                void *table = carrier_random(t, V * H, 1), *out = carrier_new(t, T * H), *dout = carrier_random(t, T * H, 1);
                dev_real *dtable = random_reals(V * H, 1), *want = random_reals(V * H, 1);
                int32_t ids[60];
                int64_t errors = 0;

                memcpy(want, dtable, (size_t)(V * H) * sizeof *want);
                for (int i = 0; i < 60; i++)
                        ids[i] = (int32_t)rng_in(15, 35);
                CU_ASSERT_EQUAL(ops->embed_fwd(table, ids, out, t, T, H, v0, V, stream), 0);
                CU_ASSERT_EQUAL(ops->embed_bwd(dtable, ids, dout, t, T, H, v0, V, stream), 0);
                for (int64_t i = 0; i < T * H; i++) {
                        const int64_t id = ids[i / H] - v0, mine = id >= 0 && id < V;

                        errors += get(out, t, i) != (mine ? get(table, t, id * H + i % H) : 0);
                        if (mine)
                                want[id * H + i % H] += (dev_real)get(dout, t, i);
                }
                errors += memcmp(want, dtable, (size_t)(V * H) * sizeof *want) != 0;
                CU_ASSERT_EQUAL(errors, 0);
                xfree(table), xfree(out), xfree(dout), xfree(dtable), xfree(want);
        }
        device_close();
}

/* ---- cross-entropy, on two shards as tensor parallelism does it */

struct ce_case {
        int64_t T, V, cut;
        enum dtype t;
        void *full, *shard[2], *grad[2];
        int32_t *labels;
        dev_real *max[2], *sum[2], *target[2], *loss;
};

static double ce_run(struct ce_case *c, double gscale, bool grads, bool alias) {
        const int64_t from[] = { 0, c->cut }, width[] = { c->cut, c->V - c->cut };
        const size_t size = dtype_size(c->t);

        for (int s = 0; s < 2; s++)
                for (int64_t t = 0; t < c->T; t++)
                        memcpy((char *)c->shard[s] + (size_t)(t * width[s]) * size, (char *)c->full + (size_t)(t * c->V + from[s]) * size, (size_t)width[s] * size);
        for (int s = 0; s < 2; s++)
                CU_ASSERT_EQUAL(ops->ce_max(c->shard[s], c->t, c->max[s], c->T, width[s], stream), 0);
        for (int64_t t = 0; t < c->T; t++)
                c->max[0][t] = c->max[1][t] = c->max[0][t] > c->max[1][t] ? c->max[0][t] : c->max[1][t];
        for (int s = 0; s < 2; s++)
                CU_ASSERT_EQUAL(ops->ce_sum(c->shard[s], c->t, c->max[s], c->labels, c->sum[s], c->target[s], c->T, from[s], width[s], stream), 0);
        for (int64_t t = 0; t < c->T; t++) {
                c->sum[0][t] = c->sum[1][t] = c->sum[0][t] + c->sum[1][t];
                c->target[0][t] = c->target[1][t] = c->target[0][t] + c->target[1][t];
        }
        for (int s = 0; s < 2; s++) {
                *c->loss = 0;
                CU_ASSERT_EQUAL(ops->ce_bwd(c->shard[s], c->t, c->max[s], c->sum[s], c->target[s], c->labels, gscale, c->loss,
                                            !grads ? NULL : alias ? c->shard[s] : c->grad[s], c->t, c->T, from[s], width[s], stream), 0);
        }
        return (double)*c->loss;
}

static void ce_new(struct ce_case *c, enum dtype t) {
        *c = (struct ce_case){ .T = 50, .V = 77, .cut = 30, .t = t };
        c->full = carrier_random(t, c->T * c->V, 3);
        c->labels = xalloc((size_t)c->T * 4);
        for (int64_t i = 0; i < c->T; i++)
                c->labels[i] = i % 5 == 0 ? -100 : (int32_t)rng_in(0, c->V - 1);
        for (int s = 0; s < 2; s++) {
                c->shard[s] = carrier_new(t, c->T * c->V);
                c->grad[s] = carrier_new(t, c->T * c->V);
                c->max[s] = random_reals(c->T, 1), c->sum[s] = random_reals(c->T, 1), c->target[s] = random_reals(c->T, 1);
        }
        c->loss = random_reals(1, 1);
}

static void ce_free(struct ce_case *c) {
        for (int s = 0; s < 2; s++)
                xfree(c->shard[s]), xfree(c->grad[s]), xfree(c->max[s]), xfree(c->sum[s]), xfree(c->target[s]);
        xfree(c->full), xfree(c->labels), xfree(c->loss);
}

TEST(cross_entropy_over_two_shards) {
        device_open(DT_F32);
        for (int v = 0; v < N_CARRIERS; v++) {
                const double gscale = 0.25;
                struct ce_case c;
                double want = 0, worst = 0, got;

                ce_new(&c, carriers[v]);
                got = ce_run(&c, gscale, true, false);
                for (int64_t t = 0; t < c.T; t++) {
                        double sum = 0;

                        for (int64_t i = 0; i < c.V; i++)
                                sum += exp(get(c.full, c.t, t * c.V + i));
                        want += c.labels[t] < 0 ? 0 : log(sum) - get(c.full, c.t, t * c.V + c.labels[t]);
                        for (int64_t i = 0; i < c.V; i++) {
                                const int s = i >= c.cut;
                                const double p = exp(get(c.full, c.t, t * c.V + i)) / sum - (c.labels[t] == i), g = c.labels[t] < 0 ? 0 : p * gscale;

                                worst = fmax(worst, error_of(c.t, get(c.grad[s], c.t, s ? t * (c.V - c.cut) + i - c.cut : t * c.cut + i), g, 0.25));
                        }
                }
                CU_ASSERT_TRUE(fabs(got - want) / want < TOLERANCE);
                CU_ASSERT_TRUE(worst < TOLERANCE);
                CU_ASSERT_EQUAL(ce_run(&c, gscale, false, false), got);
                /* dlogits in the place of logits */
                CU_ASSERT_EQUAL(ce_run(&c, gscale, true, true), got);
                CU_ASSERT_EQUAL(memcmp(c.grad[0], c.shard[0], (size_t)(c.T * c.cut) * dtype_size(c.t)), 0);
                ce_free(&c);
        }
        device_close();
}

#ifdef FP8_FP64
static double ce_value(void *ctx) {
        return ce_run(ctx, 1, false, false);
}

TEST(cross_entropy_backward) {
        struct ce_case c;
        double *grad;

        device_open(DT_F32);
        ce_new(&c, DT_F32);
        grad = random_reals(c.T * c.V, 1);
        ce_run(&c, 1, true, false);
        for (int64_t t = 0; t < c.T; t++)
                for (int64_t i = 0; i < c.V; i++)
                        grad[t * c.V + i] = i < c.cut ? ((double *)c.grad[0])[t * c.cut + i] : ((double *)c.grad[1])[t * (c.V - c.cut) + i - c.cut];
        check_gradient("cross-entropy", (struct objective){ ce_value, &c }, c.full, grad, c.T * c.V);
        xfree(grad);
        ce_free(&c);
        device_close();
}
#endif

TEST_MAIN("layers")
