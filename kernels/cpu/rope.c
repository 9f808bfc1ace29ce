/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rotary embedding (Su et al. 2021) on halves, as Hugging Face's Llama has it: with c, s of the angle pos * theta^(-2i/D), i < D/2,
 * (x[i], x[i + D/2]) -> (x[i] c - x[i + D/2] s, x[i + D/2] c + x[i] s).  The tables are computed in double and kept in F32.
 */
#include <math.h>
#include <stdlib.h>

#include "kernels/cpu/cpu.h"

static int table_make(struct dev_stream *s, double theta, int64_t D, int64_t len) {
        const int64_t half = D / 2, keep = s->rope && s->rope_theta == theta && s->rope_dim == D;
        dev_real *t;

        if (keep && s->rope_len >= len)
                return 0;
        if (keep && s->rope_len * 2 > len)
                len = s->rope_len * 2;
        t = malloc((size_t)(2 * len * half) * sizeof *t);
        if (!t)
                return -ENOMEM;
        for (int64_t i = 0; i < half; i++) {
                const double freq = pow(theta, -2.0 * (double)i / (double)D);

                for (int64_t p = 0; p < len; p++) {
                        t[p * half + i] = (dev_real)cos((double)p * freq);
                        t[(len + p) * half + i] = (dev_real)sin((double)p * freq);
                }
        }
        free(s->rope);
        s->rope = t;
        s->rope_theta = theta;
        s->rope_dim = D;
        s->rope_len = len;
        return 0;
}

FP8_CLONES static void rotate(dev_real *restrict x, const dev_real *restrict c, const dev_real *restrict sn, dev_real sign, int64_t heads, int64_t half) {
        for (int64_t h = 0; h < heads; h++) {
                dev_real *lo = x + h * 2 * half, *hi = lo + half;

                for (int64_t i = 0; i < half; i++) {
                        const dev_real a = lo[i], b = hi[i], si = sn[i] * sign;

                        lo[i] = a * c[i] - b * si;
                        hi[i] = b * c[i] + a * si;
                }
        }
}

int cpu_rope(void *q, void *k, const struct doc_bounds *docs, double theta, int64_t Hq, int64_t Hkv, int64_t D, bool backward, enum dtype act, struct dev_stream *s) {
        const int64_t half = D / 2, heads = Hq > Hkv ? Hq : Hkv;
        int32_t max = 0;
        dev_real *row;
        int r;

        if (!cpu_is_act(act) || D <= 0 || D % 2 || heads <= 0 || !(theta > 0))
                return -EINVAL;
        for (int32_t t = 0; t < docs->tokens; t++) {
                if (docs->pos[t] < 0)
                        return -EINVAL;
                max = docs->pos[t] > max ? docs->pos[t] : max;
        }
        r = table_make(s, theta, D, (int64_t)max + 1);
        if (r < 0)
                return r;
        row = cpu_reals(s, CPU_ROW0, heads * D);
        if (!row)
                return -ENOMEM;
        for (int64_t t = 0; t < docs->tokens; t++) {
                const dev_real *c = s->rope + docs->pos[t] * half, *sn = c + s->rope_len * half;

                if (q) {
                        cpu_load(row, q, act, t * Hq * D, Hq * D);
                        rotate(row, c, sn, backward ? -1 : 1, Hq, half);
                        cpu_store(q, act, t * Hq * D, row, Hq * D);
                }
                if (k) {
                        cpu_load(row, k, act, t * Hkv * D, Hkv * D);
                        rotate(row, c, sn, backward ? -1 : 1, Hkv, half);
                        cpu_store(k, act, t * Hkv * D, row, Hkv * D);
                }
        }
        return 0;
}
