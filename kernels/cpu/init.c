/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Normal numbers that depend on nothing but (seed, name, row, column), so that every layout starts from the same weights.  Two outputs of a SplitMix64-style hash
 * (Steele, Lea & Flood 2014) go through Box and Muller's transform in double; libm's log, cos and sqrt are the only part that is not integer arithmetic.
 */
#include <math.h>

#include "kernels/cpu/cpu.h"

static uint64_t mix(uint64_t z) {
        z += UINT64_C(0x9e3779b97f4a7c15);
        z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
        return z ^ (z >> 31);
}

static double normal(uint64_t key) {
        const uint64_t a = mix(key), b = mix(~key);
        /* u in (0, 1], v in [0, 1), 53 bits each */
        const double u = (double)((a >> 11) + 1) * 0x1p-53, v = (double)(b >> 11) * 0x1p-53;

        return sqrt(-2 * log(u)) * cos(2 * M_PI * v);
}

int cpu_init_normal(dev_real *dst, int64_t rows, int64_t cols, int64_t row0, int64_t col0, int64_t global_cols, uint64_t seed, uint64_t name_hash, double mean,
                    double std, struct dev_stream *s) {
        const uint64_t tensor = mix(mix(seed) ^ name_hash);

        (void)s;
        if (rows < 0 || cols < 0 || row0 < 0 || col0 < 0 || col0 + cols > global_cols)
                return -EINVAL;
        for (int64_t r = 0; r < rows; r++) {
                const uint64_t row = mix(tensor ^ (uint64_t)(row0 + r));

                for (int64_t c = 0; c < cols; c++)
                        dst[r * cols + c] = (dev_real)(std == 0 ? mean : mean + std * normal(mix(row ^ (uint64_t)(col0 + c))));
        }
        return 0;
}
