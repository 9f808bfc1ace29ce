/* SPDX-License-Identifier: Apache-2.0 */
/* Gradient statistics, AdamW (Loshchilov & Hutter 2019) and the amax history of delayed scaling. Nothing is written when the step is skipped. */
#include <float.h>
#include <math.h>

#include "kernels/cpu/cpu.h"

#define CHUNK 1024
/* Above this decay a moment moves by less than half a BF16 ulp a step: rounding to nearest would freeze it, so it is rounded stochastically. */
#define NEAREST_MAX_BETA 0.95

FP8_CLONES static double square_sum(const dev_real *g, int64_t n) {
        double lane[CPU_LANES] = { 0 };
        int64_t i = 0;

        for (; i + CPU_LANES <= n; i += CPU_LANES)
                for (int j = 0; j < CPU_LANES; j++)
                        lane[j] += (double)g[i + j] * (double)g[i + j];
        for (int j = 0; i + j < n; j++)
                lane[j] += (double)g[i + j] * (double)g[i + j];
        for (int width = CPU_LANES / 2; width > 0; width /= 2)
                for (int j = 0; j < width; j++)
                        lane[j] += lane[j + width];
        return lane[0];
}

/* Finite floats cannot overflow the sum of squares in double, so a sum that is not finite names an element that is not. A double's square can: look again. */
static bool has_bad(const dev_real *g, int64_t n, double sum) {
        if (isfinite(sum))
                return false;
        for (int64_t i = 0; i < n; i++)
                if (!isfinite(g[i]))
                        return true;
        return false;
}

int cpu_grad_stats(int n, const dev_real *const *grads, const int64_t *counts, const double *factors, const uint64_t *indices, double *sumsq, uint64_t *bad,
                   struct dev_stream *s) {
        double total = *sumsq;

        (void)s;
        for (int i = 0; i < n; i++) {
                const double sum = square_sum(grads[i], counts[i]);

                if (bad && has_bad(grads[i], counts[i], sum) && indices[i] < *bad)
                        *bad = indices[i];
                /* A factor of 0 leaves a tensor out, NaN or not. */
                if (factors[i] != 0)
                        total += sum * factors[i];
        }
        *sumsq = total;
        return 0;
}

struct adam {
        dev_real lr, decay, beta1, beta2, one_beta1, one_beta2, eps, bias1, bias2, grad_scale;
};

FP8_CLONES static void adam_run(const struct adam *restrict a, dev_real *restrict w, const dev_real *restrict grad, dev_real *restrict m, dev_real *restrict v, int64_t n) {
        const struct adam c = *a;

        for (int64_t i = 0; i < n; i++) {
                const dev_real g = grad[i] * c.grad_scale;
                const dev_real mi = c.beta1 * m[i] + c.one_beta1 * g, vi = c.beta2 * v[i] + c.one_beta2 * (g * g);
#ifdef FP8_FP64
                const dev_real root = sqrt(vi / c.bias2);
#else
                const dev_real root = sqrtf(vi / c.bias2);
#endif
                m[i] = mi;
                v[i] = vi;
                w[i] -= c.lr * (mi / c.bias1 / (root + c.eps) + c.decay * w[i]);
        }
}

/* SplitMix64's finaliser. */
static inline uint64_t mix64(uint64_t z) {
        z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
        return z ^ (z >> 31);
}

#ifndef FP8_FP64
/* 16 random bits of an element. */
static inline uint32_t random16(uint64_t key, uint64_t i) {
        return (uint32_t)(mix64(key + i * UINT64_C(0x9e3779b97f4a7c15)) >> 48);
}

/* Rounds up with the probability of the dropped part: add 16 random bits below BF16's last and cut. Not finite: as bf16_from. place: of the first, in the global tensor. */
FP8_CLONES static void store_stochastic(uint16_t *restrict h, const float *restrict x, uint64_t key, int64_t place, int64_t n) {
        for (int64_t i = 0; i < n; i++) {
                const uint32_t u = float_bits(x[i]), r = (u + random16(key, (uint64_t)(place + i))) >> 16;

                h[i] = (u & 0x7f800000u) == 0x7f800000u ? bf16_from(x[i]) : (uint16_t)r;
        }
}

/* Row by row: in the global tensor this shard's rows do not follow one another. */
static void store_stochastic_rows(const struct adamw_tensor *t, uint16_t *dst, int64_t offset, const float *x, int64_t n, uint64_t key) {
        const int64_t cols = t->cols > 0 ? t->cols : t->count;

        while (n > 0) {
                const int64_t col = offset % cols, run = cpu_min(cols - col, n);

                store_stochastic(dst + offset, x, key, (t->row0 + offset / cols) * t->global_cols + t->col0 + col, run);
                offset += run;
                x += run;
                n -= run;
        }
}
#endif

/* Mixed before elements are counted on from it: else the next step's numbers, or another tensor's, would be this one's moved by a place. */
static uint64_t rounding_key(const struct adamw_tensor *t, const struct step_params *p, uint64_t moment) {
        return mix64(mix64(p->rng) ^ mix64(t->name_hash + moment));
}

static void store_moment(const struct adamw_tensor *t, void *dst, enum dtype type, int64_t offset, const dev_real *x, int64_t n, bool stochastic, uint64_t key) {
#ifndef FP8_FP64
        if (type == DT_BF16 && stochastic) {
                store_stochastic_rows(t, dst, offset, x, n, key);
                return;
        }
#endif
        cpu_store(dst, type, offset, x, n);
}

static void adam_tensor(const struct adamw_tensor *t, const struct step_params *p, enum dtype moments, enum dtype param) {
        const double lr = p->lr * t->lr_scale;
        const struct adam a = {
                .lr = (dev_real)lr, .decay = (dev_real)t->weight_decay, .beta1 = (dev_real)p->beta1, .beta2 = (dev_real)p->beta2, .one_beta1 = (dev_real)(1 - p->beta1),
                .one_beta2 = (dev_real)(1 - p->beta2), .eps = (dev_real)p->eps, .bias1 = (dev_real)p->bias1, .bias2 = (dev_real)p->bias2, .grad_scale = (dev_real)p->grad_scale,
        };
        dev_real m[CHUNK], v[CHUNK];

        for (int64_t i = 0; i < t->count; i += CHUNK) {
                const int64_t n = cpu_min(CHUNK, t->count - i);

                cpu_load(m, t->m, moments, i, n);
                cpu_load(v, t->v, moments, i, n);
                adam_run(&a, t->master + i, t->grad + i, m, v, n);
                store_moment(t, t->m, moments, i, m, n, p->beta1 > NEAREST_MAX_BETA, rounding_key(t, p, 0));
                store_moment(t, t->v, moments, i, v, n, p->beta2 > NEAREST_MAX_BETA, rounding_key(t, p, 1));
                if (t->param)
                        cpu_store(t->param, param, i, t->master + i, n);
        }
}

int cpu_adamw(int n, const struct adamw_tensor *t, enum dtype moments, enum dtype param, const struct step_params *p, struct dev_stream *s) {
        (void)s;
        if (!cpu_is_act(moments) || !cpu_is_act(param))
                return -EINVAL;
        if (p->skip)
                return 0;
        for (int i = 0; i < n; i++)
                adam_tensor(&t[i], p, moments, param);
        return 0;
}

/*
 * TransformerEngine's delayed scaling: slot 0 holds this step's amax, the history is reduced, then rolled by one (slot 0's value goes to the end, the oldest one falls out) and slot 0
 * cleared.  An amax that is not finite is not remembered: it would hold the scale for as many steps as the history is long.
 */
static void amax_update_one(int len, dev_real *h, dev_real amax, dev_real *scale, double fp8_max, bool use_max, int margin) {
        dev_real max = isfinite(amax) ? amax : 0;

        h[0] = max;
        if (use_max)
                for (int i = 1; i < len; i++)
                        max = h[i] > max ? h[i] : max;
        if (max > 0 && isfinite(amax)) {
                const double s = ldexp(fp8_max / (double)max, -margin);

                *scale = s > FLT_MAX ? (dev_real)FLT_MAX : (dev_real)s;
        }
        memmove(h, h + 1, (size_t)(len - 1) * sizeof *h);
        h[len - 1] = isfinite(amax) ? amax : 0;
        h[0] = 0;
}

int cpu_amax_update(int n, int len, dev_real *history, const dev_real *amax, dev_real *scale, const double *fp8_max, int use_max, int margin, const uint64_t *skip,
                    struct dev_stream *s) {
        (void)s;
        if (len < 1)
                return -EINVAL;
        if (skip && *skip)
                return 0;
        for (int i = 0; i < n; i++)
                amax_update_one(len, history + (int64_t)i * len, amax[i], &scale[i], fp8_max[i], use_max, margin);
        return 0;
}
