/* SPDX-License-Identifier: Apache-2.0 */
/* SwiGLU (Shazeer 2020): a = silu(g) * u, silu(g) = g / (1 + exp(-g)). */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/exp.h"

FP8_CLONES static void fwd_row(dev_real *restrict a, const dev_real *restrict g, const dev_real *restrict u, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                a[i] = g[i] / (1 + cpu_exp(-g[i])) * u[i];
}

/* With s = sigmoid(g): da/dg = u s (1 + g (1 - s)), da/du = g s. g and u are overwritten by their gradients. */
FP8_CLONES static void bwd_row(dev_real *restrict g, dev_real *restrict u, const dev_real *restrict da, int64_t n) {
        for (int64_t i = 0; i < n; i++) {
                const dev_real x = g[i], y = u[i], s = 1 / (1 + cpu_exp(-x));

                g[i] = da[i] * y * (s * (1 + x * (1 - s)));
                u[i] = da[i] * (x * s);
        }
}

int cpu_swiglu_fwd(const void *g, const void *u, void *a, enum dtype act, int64_t T, int64_t I, struct dev_stream *s) {
        dev_real *rg, *ru, *ra;

        if (!cpu_is_act(act) || T < 0 || I < 0)
                return -EINVAL;
        rg = cpu_reals(s, CPU_ROW0, I);
        ru = cpu_reals(s, CPU_ROW1, I);
        ra = cpu_reals(s, CPU_ROW2, I);
        if (!rg || !ru || !ra)
                return -ENOMEM;
        for (int64_t t = 0; t < T; t++) {
                cpu_load(rg, g, act, t * I, I);
                cpu_load(ru, u, act, t * I, I);
                fwd_row(ra, rg, ru, I);
                cpu_store(a, act, t * I, ra, I);
        }
        return 0;
}

int cpu_swiglu_quant_fwd(const void *g, const void *u, void *a, enum dtype act, int64_t T, int64_t I, const struct quant_spec *q, struct qtensor *out,
                         struct dev_stream *s) {
        void *to = a;
        int r;

        if (!cpu_is_act(act) || T < 0 || I < 0 || out->rows != T || out->cols != I || (q->scaling == Q_NONE && !a))
                return -EINVAL;
        if (!to)
                to = cpu_scratch(s, CPU_OUT0, (size_t)(T * I) * dtype_size(act));
        if (!to)
                return -ENOMEM;
        r = cpu_swiglu_fwd(g, u, to, act, T, I, s);
        return r < 0 ? r : cpu_quantize(to, act, q, out, s);
}

int cpu_swiglu_bwd(const void *g, const void *u, const void *da, enum dtype dat, void *dg, void *du, enum dtype act, int64_t T, int64_t I,
                   const struct quant_spec *qsg, struct qtensor *qg, const struct quant_spec *qsu, struct qtensor *qu, struct dev_stream *s) {
        dev_real *rg, *ru, *ra;
        int r = 0;

        if (!cpu_is_act(act) || !cpu_is_act(dat) || T < 0 || I < 0 || (!dg && (!qg || qsg->scaling == Q_NONE)) || (!du && (!qu || qsu->scaling == Q_NONE)))
                return -EINVAL;
        if ((qg && (qg->rows != T || qg->cols != I)) || (qu && (qu->rows != T || qu->cols != I)))
                return -EINVAL;
        dg = dg ? dg : cpu_scratch(s, CPU_OUT0, (size_t)(T * I) * dtype_size(act));
        du = du ? du : cpu_scratch(s, CPU_OUT1, (size_t)(T * I) * dtype_size(act));
        rg = cpu_reals(s, CPU_ROW0, I);
        ru = cpu_reals(s, CPU_ROW1, I);
        ra = cpu_reals(s, CPU_ROW2, I);
        if (!dg || !du || !rg || !ru || !ra)
                return -ENOMEM;
        for (int64_t t = 0; t < T; t++) {
                cpu_load(rg, g, act, t * I, I);
                cpu_load(ru, u, act, t * I, I);
                cpu_load(ra, da, dat, t * I, I);
                bwd_row(rg, ru, ra, I);
                cpu_store(dg, act, t * I, rg, I);
                cpu_store(du, act, t * I, ru, I);
        }
        if (qg)
                r = cpu_quantize(dg, act, qsg, qg, s);
        if (r == 0 && qu)
                r = cpu_quantize(du, act, qsu, qu, s);
        return r;
}
