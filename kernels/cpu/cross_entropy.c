/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cross-entropy over a vocabulary cut between ranks (Megatron-LM, arXiv 1909.08053 section 3): each shard gives its maximum and its sum, the caller reduces them over
 * tp, and the last operation is local again.
 */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/exp.h"

int cpu_ce_max(const void *logits, enum dtype lt, dev_real *rowmax, int64_t T, int64_t V, struct dev_stream *s) {
        dev_real *row;

        if (!cpu_is_act(lt) || T < 0 || V < 0)
                return -EINVAL;
        row = cpu_reals(s, CPU_ROW0, V);
        if (!row)
                return -ENOMEM;
        for (int64_t t = 0; t < T; t++) {
                cpu_load(row, logits, lt, t * V, V);
                rowmax[t] = cpu_row_max(row, V);
        }
        return 0;
}

int cpu_ce_sum(const void *logits, enum dtype lt, const dev_real *rowmax, const int32_t *labels, dev_real *sumexp, dev_real *target, int64_t T, int64_t v0, int64_t V,
               struct dev_stream *s) {
        dev_real *row;

        if (!cpu_is_act(lt) || T < 0 || V < 0)
                return -EINVAL;
        row = cpu_reals(s, CPU_ROW0, V);
        if (!row)
                return -ENOMEM;
        for (int64_t t = 0; t < T; t++) {
                const int64_t label = labels[t] - v0;

                cpu_load(row, logits, lt, t * V, V);
                target[t] = labels[t] >= 0 && label >= 0 && label < V ? row[label] : 0;
                sumexp[t] = cpu_exp_sum(row, row, rowmax[t], V);
        }
        return 0;
}

FP8_CLONES static void softmax_row(dev_real *x, dev_real shift, dev_real factor, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                x[i] = cpu_exp(x[i] - shift) * factor;
}

int cpu_ce_bwd(const void *logits, enum dtype lt, const dev_real *rowmax, const dev_real *sumexp, const dev_real *target, const int32_t *labels, double gscale, dev_real *loss_sum,
               void *dlogits, enum dtype act, int64_t T, int64_t v0, int64_t V, struct dev_stream *s) {
        double loss = 0;
        dev_real *row;

        if (!cpu_is_act(lt) || !cpu_is_act(act) || T < 0 || V < 0)
                return -EINVAL;
        row = cpu_reals(s, CPU_ROW0, V);
        if (!row)
                return -ENOMEM;
        for (int64_t t = 0; t < T; t++) {
                const int64_t label = labels[t] - v0;

                if (labels[t] >= 0)
                        loss += (double)((dev_real)log((double)sumexp[t]) + rowmax[t] - target[t]);
                if (!dlogits)
                        continue;
                if (labels[t] < 0) {
                        memset(row, 0, (size_t)V * sizeof *row);
                } else {
                        cpu_load(row, logits, lt, t * V, V);
                        softmax_row(row, rowmax[t], (dev_real)(gscale / (double)sumexp[t]), V);
                        if (label >= 0 && label < V)
                                row[label] -= (dev_real)gscale;
                }
                cpu_store(dlogits, act, t * V, row, V);
        }
        *loss_sum = (dev_real)((double)*loss_sum + loss);
        return 0;
}
