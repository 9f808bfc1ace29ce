/* SPDX-License-Identifier: Apache-2.0 */
/* Reductions over a row, in an order that is part of the result: CPU_LANES partial sums, added pairwise at the end. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/exp.h"

static inline dev_real fold(dev_real lane[CPU_LANES]) {
        for (int width = CPU_LANES / 2; width > 0; width /= 2)
                for (int i = 0; i < width; i++)
                        lane[i] += lane[i + width];
        return lane[0];
}

FP8_CLONES dev_real cpu_dot(const dev_real *a, const dev_real *b, int64_t n) {
        dev_real lane[CPU_LANES] = { 0 };
        int64_t i = 0;

        for (; i + CPU_LANES <= n; i += CPU_LANES)
                for (int j = 0; j < CPU_LANES; j++)
                        lane[j] += a[i + j] * b[i + j];
        for (int j = 0; i + j < n; j++)
                lane[j] += a[i + j] * b[i + j];
        return fold(lane);
}

FP8_CLONES dev_real cpu_sum(const dev_real *a, int64_t n) {
        dev_real lane[CPU_LANES] = { 0 };
        int64_t i = 0;

        for (; i + CPU_LANES <= n; i += CPU_LANES)
                for (int j = 0; j < CPU_LANES; j++)
                        lane[j] += a[i + j];
        for (int j = 0; i + j < n; j++)
                lane[j] += a[i + j];
        return fold(lane);
}

FP8_CLONES dev_real cpu_row_max(const dev_real *a, int64_t n) {
        dev_real lane[CPU_LANES], max;
        int64_t i = 0;

        for (int j = 0; j < CPU_LANES; j++)
                lane[j] = -(dev_real)INFINITY;
        /* !(lane >= a) also takes a NaN, which then stays only if nothing replaces it; the sum after it is NaN in any case. */
        for (; i + CPU_LANES <= n; i += CPU_LANES)
                for (int j = 0; j < CPU_LANES; j++)
                        lane[j] = lane[j] >= a[i + j] ? lane[j] : a[i + j];
        for (int j = 0; i + j < n; j++)
                lane[j] = lane[j] >= a[i + j] ? lane[j] : a[i + j];
        max = lane[0];
        for (int j = 1; j < CPU_LANES; j++)
                max = max >= lane[j] ? max : lane[j];
        return max;
}

FP8_CLONES static void exp_shifted(dev_real *y, const dev_real *x, dev_real shift, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                y[i] = cpu_exp(x[i] - shift);
}

dev_real cpu_exp_sum(dev_real *y, const dev_real *x, dev_real shift, int64_t n) {
        exp_shifted(y, x, shift, n);
        return cpu_sum(y, n);
}
