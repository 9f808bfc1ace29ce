/* SPDX-License-Identifier: Apache-2.0 */
/* RMSNorm (Zhang & Sennrich 2019): y = x * rstd * w with rstd = 1/sqrt(mean(x^2) + eps), statistics in F32. */
#include <math.h>

#include "kernels/cpu/cpu.h"

FP8_CLONES static void add_row(dev_real *restrict x, const dev_real *restrict d, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                x[i] += d[i];
}

FP8_CLONES static void norm_row(dev_real *restrict y, const dev_real *restrict x, const dev_real *restrict w, dev_real rstd, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                y[i] = x[i] * rstd * w[i];
}

int cpu_rmsnorm_fwd(void *residual, const void *from, const void *delta, const dev_real *w, double eps, void *y, dev_real *rstd, enum dtype act, int64_t T, int64_t H, struct dev_stream *s) {
        dev_real *x, *d;

        if (!cpu_is_act(act) || T < 0 || H <= 0)
                return -EINVAL;
        x = cpu_reals(s, CPU_ROW0, H);
        d = cpu_reals(s, CPU_ROW1, H);
        if (!x || !d)
                return -ENOMEM;
        for (int64_t t = 0; t < T; t++) {
                cpu_load(x, from, act, t * H, H);
                if (!delta && from != residual)
                        cpu_store(residual, act, t * H, x, H);
                if (delta) {
                        cpu_load(d, delta, act, t * H, H);
                        add_row(x, d, H);
                        cpu_store(residual, act, t * H, x, H);
                        cpu_load(x, residual, act, t * H, H);
                }
                rstd[t] = 1 / (dev_real)sqrt((double)(cpu_dot(x, x, H) / (dev_real)H + (dev_real)eps));
                if (y) {
                        norm_row(d, x, w, rstd[t], H);
                        cpu_store(y, act, t * H, d, H);
                }
        }
        return 0;
}

int cpu_rmsnorm_quant_fwd(void *residual, const void *from, const void *delta, const dev_real *w, double eps, void *y, dev_real *rstd, enum dtype act, int64_t T, int64_t H,
                          const struct quant_spec *q, struct qtensor *out, struct dev_stream *s) {
        void *to = y;
        int r;

        if (!cpu_is_act(act) || T < 0 || H <= 0 || out->rows != T || out->cols != H || (q->scaling == Q_NONE && !y))
                return -EINVAL;
        if (!to)
                to = cpu_scratch(s, CPU_OUT0, (size_t)(T * H) * dtype_size(act));
        if (!to)
                return -ENOMEM;
        r = cpu_rmsnorm_fwd(residual, from, delta, w, eps, to, rstd, act, T, H, s);
        return r < 0 ? r : cpu_quantize(to, act, q, out, s);
}

/*
 * With xhat = x * rstd and g = dy * w: dx = rstd * (g - xhat * mean(g * xhat)), dw += sum over tokens of dy * xhat.
 */
FP8_CLONES static void bwd_first(dev_real *restrict g, dev_real *restrict xhat, dev_real *restrict dw, const dev_real *restrict dy, const dev_real *restrict w, dev_real rstd, int64_t n) {
        for (int64_t i = 0; i < n; i++) {
                xhat[i] *= rstd;
                dw[i] += dy[i] * xhat[i];
                g[i] = dy[i] * w[i];
        }
}

FP8_CLONES static void bwd_second(dev_real *restrict dres, const dev_real *restrict g, const dev_real *restrict xhat, dev_real rstd, dev_real mean, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                dres[i] += rstd * (g[i] - xhat[i] * mean);
}

int cpu_rmsnorm_bwd(void *dresidual, dev_real *dw, const void *dy, enum dtype dyt, const void *x, const dev_real *w, const dev_real *rstd, enum dtype act, int64_t T, int64_t H,
                    struct dev_stream *s) {
        dev_real *xhat, *grad, *g, *sum;

        if (!cpu_is_act(act) || !cpu_is_act(dyt) || T < 0 || H <= 0)
                return -EINVAL;
        xhat = cpu_reals(s, CPU_ROW0, H);
        grad = cpu_reals(s, CPU_ROW1, H);
        g = cpu_reals(s, CPU_ROW2, H);
        sum = cpu_reals(s, CPU_ROW3, H);
        if (!xhat || !grad || !g || !sum)
                return -ENOMEM;
        memset(sum, 0, (size_t)H * sizeof *sum);
        for (int64_t t = 0; t < T; t++) {
                cpu_load(xhat, x, act, t * H, H);
                cpu_load(grad, dy, dyt, t * H, H);
                bwd_first(g, xhat, sum, grad, w, rstd[t], H);
                cpu_load(grad, dresidual, act, t * H, H);
                bwd_second(grad, g, xhat, rstd[t], cpu_dot(g, xhat, H) / (dev_real)H, H);
                cpu_store(dresidual, act, t * H, grad, H);
        }
        add_row(dw, sum, H);
        return 0;
}
