/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/cpu.h"

int cpu_embed_fwd(const void *table, const int32_t *ids, void *out, enum dtype act, int64_t T, int64_t H, int64_t v0, int64_t V, struct dev_stream *s) {
        const size_t row = (size_t)H * dtype_size(act);

        (void)s;
        if (!cpu_is_act(act) || T < 0 || H < 0)
                return -EINVAL;
        for (int64_t t = 0; t < T; t++) {
                const int64_t id = ids[t] - v0;

                if (id >= 0 && id < V)
                        memcpy(cpu_at(out, act, t * H), cpu_at(table, act, id * H), row);
                else
                        memset(cpu_at(out, act, t * H), 0, row);
        }
        return 0;
}

FP8_CLONES static void add_row(dev_real *restrict x, const dev_real *restrict d, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                x[i] += d[i];
}

int cpu_embed_bwd(dev_real *dtable, const int32_t *ids, const void *dout, enum dtype act, int64_t T, int64_t H, int64_t v0, int64_t V, struct dev_stream *s) {
        dev_real *row;

        if (!cpu_is_act(act) || T < 0 || H < 0)
                return -EINVAL;
        row = cpu_reals(s, CPU_ROW0, H);
        if (!row)
                return -ENOMEM;
        for (int64_t t = 0; t < T; t++) {
                const int64_t id = ids[t] - v0;

                if (id < 0 || id >= V)
                        continue;
                cpu_load(row, dout, act, t * H, H);
                add_row(dtable + id * H, row, H);
        }
        return 0;
}
