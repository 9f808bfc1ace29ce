/* SPDX-License-Identifier: Apache-2.0 */
/* Loading and storing of carriers, and the elementwise operations that consist of nothing else. */
#include "kernels/cpu/cpu.h"

#define CHUNK 1024 /* elements converted at a time, on the stack */

bool cpu_is_act(enum dtype t) {
        return t == DT_F32 || (t == DT_BF16 && !CPU_FP64);
}

bool cpu_is_float(enum dtype t) {
        return t == DT_F32 || t == DT_F64 || (!CPU_FP64 && (t == DT_BF16 || t == DT_E4M3 || t == DT_E5M2));
}

#ifndef FP8_FP64
static void load_narrow(float *dst, const void *src, enum dtype t, int64_t offset, int64_t n) {
        if (t == DT_BF16)
                bf16_to_floats(dst, (const uint16_t *)src + offset, n);
        else if (t == DT_E4M3)
                fp8_e4m3_to_floats(dst, (const uint8_t *)src + offset, n);
        else
                fp8_e5m2_to_floats(dst, (const uint8_t *)src + offset, n);
}

static void store_narrow(void *dst, enum dtype t, int64_t offset, const float *src, int64_t n) {
        if (t == DT_BF16)
                bf16_from_floats((uint16_t *)dst + offset, src, n);
        else if (t == DT_E4M3)
                fp8_e4m3_from_floats((uint8_t *)dst + offset, src, n);
        else
                fp8_e5m2_from_floats((uint8_t *)dst + offset, src, n);
}
#else
/* Nothing narrow gets here: cpu_is_act and cpu_is_float refuse it. */
static void load_narrow(double *dst, const void *src, enum dtype t, int64_t offset, int64_t n) {
        memset(dst, 0xff, (size_t)n * sizeof *dst);
}

static void store_narrow(void *dst, enum dtype t, int64_t offset, const double *src, int64_t n) {
        memset(cpu_at(dst, t, offset), 0xff, (size_t)n * dtype_size(t));
}
#endif

void cpu_load(dev_real *dst, const void *src, enum dtype t, int64_t offset, int64_t n) {
        if (t == DT_F32) {
                memcpy(dst, (const dev_real *)src + offset, (size_t)n * sizeof(dev_real));
        } else if (t == DT_F64) {
                for (int64_t i = 0; i < n; i++)
                        dst[i] = (dev_real)((const double *)src)[offset + i];
        } else {
                load_narrow(dst, src, t, offset, n);
        }
}

void cpu_store(void *dst, enum dtype t, int64_t offset, const dev_real *src, int64_t n) {
        if (t == DT_F32) {
                memcpy((dev_real *)dst + offset, src, (size_t)n * sizeof(dev_real));
        } else if (t == DT_F64) {
                for (int64_t i = 0; i < n; i++)
                        ((double *)dst)[offset + i] = (double)src[i];
        } else {
                store_narrow(dst, t, offset, src, n);
        }
}

const dev_real *cpu_widened(struct dev_stream *s, enum cpu_slot slot, const void *x, enum dtype t, int64_t offset, int64_t n) {
        dev_real *r;

        if (t == DT_F32)
                return (const dev_real *)x + offset;
        r = cpu_reals(s, slot, n);
        if (r)
                cpu_load(r, x, t, offset, n);
        return r;
}

int cpu_cast(void *dst, enum dtype dt, const void *src, enum dtype st, int64_t n, struct dev_stream *s) {
        dev_real chunk[CHUNK];

        (void)s;
        if (!cpu_is_float(dt) || !cpu_is_float(st))
                return -EOPNOTSUPP;
        if (dt == st)
                return cpu_copy(dst, src, (size_t)n * dtype_size(dt), s);
        for (int64_t i = 0; i < n; i += CHUNK) {
                const int64_t len = cpu_min(CHUNK, n - i);

                cpu_load(chunk, src, st, i, len);
                cpu_store(dst, dt, i, chunk, len);
        }
        return 0;
}

FP8_CLONES static void add_reals(dev_real *restrict a, const dev_real *restrict b, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                a[i] += b[i];
}

FP8_CLONES static void add_bf16(uint16_t *restrict a, const uint16_t *restrict b, int64_t n) {
        for (int64_t i = 0; i < n; i++)
                a[i] = bf16_from(bf16_to(a[i]) + bf16_to(b[i]));
}

int cpu_add(void *dst, const void *src, enum dtype t, int64_t n, struct dev_stream *s) {
        (void)s;
        if (!cpu_is_act(t))
                return -EOPNOTSUPP;
        if (t == DT_F32)
                add_reals(dst, src, n);
        else
                add_bf16(dst, src, n);
        return 0;
}

FP8_CLONES int cpu_scale(dev_real *dst, double factor, int64_t n, struct dev_stream *s) {
        const dev_real f = (dev_real)factor;

        (void)s;
        for (int64_t i = 0; i < n; i++)
                dst[i] *= f;
        return 0;
}
