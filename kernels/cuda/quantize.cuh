/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Quantisation of one 128x128 tile a thread block: the tile is read once, into registers, and both forms are made from it.  Each thread has 8 rows by 8 columns, 16 lanes a row, so
 * that reads are whole 256-byte runs (BF16); the transposed bytes go through shared memory, swizzled by 8 bytes, and leave as 128-byte runs.  The arithmetic is that of
 * kernels/cpu/quantize.c, bit for bit: amax on the bits of |x| as integers, IEEE division, one rounding of x*s, the hardware's saturating cast.
 */
#include <cuda_fp8.h>
#include <float.h>

#include "kernels/cuda/launch.h"

#ifndef THREADS
#define THREADS 256
#endif
#define TILE 128
#define INFINITY_BITS 0x7f800000u
#define NAN_BITS 0x7fc00000u

/* Eight neighbours of one row, as they were loaded. */
template <bool F32> struct eight;

template <> struct eight<false> {
        uint32_t u[4];

        __device__ __forceinline__ void clear() {
                u[0] = u[1] = u[2] = u[3] = 0;
        }
        __device__ __forceinline__ void load(const void *x, int64_t at, int n, bool aligned) {
                const uint16_t *p = (const uint16_t *)x + at;

                clear();
                if (aligned && n >= 8) {
                        const uint4 v = __ldcs((const uint4 *)p);

                        u[0] = v.x, u[1] = v.y, u[2] = v.z, u[3] = v.w;
                        return;
                }
#pragma unroll
                for (int i = 0; i < 8; i++)
                        if (i < n)
                                u[i / 2] |= (uint32_t)p[i] << (i % 2 * 16);
        }
        __device__ __forceinline__ float value(int i) const {
                return __uint_as_float(i % 2 ? u[i / 2] & 0xffff0000u : u[i / 2] << 16);
        }
};

template <> struct eight<true> {
        float f[8];

        __device__ __forceinline__ void load(const void *x, int64_t at, int n, bool aligned) {
                const float *p = (const float *)x + at;

#pragma unroll
                for (int i = 0; i < 8; i++)
                        f[i] = 0;
                if (aligned && n >= 8) {
                        const float4 a = __ldcs((const float4 *)p), b = __ldcs((const float4 *)p + 1);

                        f[0] = a.x, f[1] = a.y, f[2] = a.z, f[3] = a.w, f[4] = b.x, f[5] = b.y, f[6] = b.z, f[7] = b.w;
                        return;
                }
#pragma unroll
                for (int i = 0; i < 8; i++)
                        if (i < n)
                                f[i] = p[i];
        }
        /* FP8 times its scale. */
        __device__ __forceinline__ void load_fp8(const uint8_t *p, float scale, int n, bool e5m2) {
#pragma unroll
                for (int i = 0; i < 8; i++)
                        f[i] = i < n ? __half2float(__half(__nv_cvt_fp8_to_halfraw(p[i], e5m2 ? __NV_E5M2 : __NV_E4M3))) * scale : 0;
        }
        __device__ __forceinline__ float value(int i) const {
                return f[i];
        }
};

/* Quantisation scale of a group, and its reciprocal. */
__device__ __forceinline__ float scale_of(uint32_t amax, float max, bool pow2) {
        float s;

        if (amax == 0)
                return 1;
        if (amax >= INFINITY_BITS)
                return __uint_as_float(NAN_BITS);
        s = fminf(__fdiv_rn(max, __uint_as_float(amax)), FLT_MAX);
        return pow2 ? __uint_as_float(__float_as_uint(s) & 0xff800000u) : s;
}

__device__ __forceinline__ float inverse_of(float s) {
        return s != s ? s : __frcp_rn(s);
}

/* What a block needs to emit one tile after another. */
struct tile_room {
        uint64_t staged[TILE * TILE / 8];
        uint32_t col[8 * TILE + 8];
};

__device__ __forceinline__ uint32_t abs_bits(float x) {
        return __float_as_uint(x) & 0x7fffffffu;
}

template <bool E5M2> __device__ __forceinline__ uint32_t cast2(float lo, float hi) {
        return __nv_cvt_float2_to_fp8x2(make_float2(lo, hi), __NV_SATFINITE, E5M2 ? __NV_E5M2 : __NV_E4M3);
}

struct tile {
        int64_t r0, c0;  /* of this thread's 8 by 8 */
        int64_t tr, tc;  /* number of the tile */
        int rows, cols;  /* valid ones from r0, c0; may be negative */
        int lane, slot;  /* 16 lanes along columns, 16 slots along rows */
};

/* [0]: of each row of this thread's eight; [1]: column maxima, combined over the block in shared memory. */
struct maxima {
        uint32_t row[8], col[8];
        uint32_t all; /* the tile's, where it was asked for */
};

__device__ __forceinline__ void thread_maxima(const eight<true> (&x)[8], struct maxima *m) {
#pragma unroll
        for (int i = 0; i < 8; i++)
                m->row[i] = m->col[i] = 0;
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) {
                        const uint32_t a = abs_bits(x[i].value(j));

                        m->row[i] = max(m->row[i], a);
                        m->col[j] = max(m->col[j], a);
                }
}

/* Two BF16 at a time: without their signs they are ordered as integers. */
__device__ __forceinline__ void thread_maxima(const eight<false> (&x)[8], struct maxima *m) {
        uint32_t col[4] = { 0, 0, 0, 0 };

#pragma unroll
        for (int i = 0; i < 8; i++) {
                uint32_t row = 0;

#pragma unroll
                for (int j = 0; j < 4; j++) {
                        const uint32_t a = x[i].u[j] & 0x7fff7fffu;

                        row = __vmaxu2(row, a);
                        col[j] = __vmaxu2(col[j], a);
                }
                m->row[i] = max(row << 16, row & 0xffff0000u);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
                m->col[2 * j] = col[j] << 16;
                m->col[2 * j + 1] = col[j] & 0xffff0000u;
        }
}

template <bool F32> __device__ __forceinline__ void find_maxima(const eight<F32> (&x)[8], const struct tile &t, bool want_col, bool want_all, uint32_t *shared_col, struct maxima *m) {
        thread_maxima(x, m);
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
                for (int d = 1; d < 16; d <<= 1)
                        m->row[i] = max(m->row[i], __shfl_xor_sync(0xffffffff, m->row[i], d));
        m->all = 0;
        if (want_col) {
#pragma unroll
                for (int j = 0; j < 8; j++) {
                        m->col[j] = max(m->col[j], __shfl_xor_sync(0xffffffff, m->col[j], 16));
                        if (t.slot % 2 == 0)
                                shared_col[t.slot / 2 * TILE + t.lane * 8 + j] = m->col[j];
                }
                __syncthreads();
                if (threadIdx.x < TILE) {
                        uint32_t a = 0;

#pragma unroll
                        for (int w = 0; w < THREADS / 32; w++)
                                a = max(a, shared_col[w * TILE + threadIdx.x]);
                        shared_col[threadIdx.x] = a;
                }
                __syncthreads();
#pragma unroll
                for (int j = 0; j < 8; j++)
                        m->col[j] = shared_col[t.lane * 8 + j];
        }
        if (want_all) {
                uint32_t a = 0;

#pragma unroll
                for (int i = 0; i < 8; i++)
                        a = max(a, m->row[i]);
                a = max(a, __shfl_xor_sync(0xffffffff, a, 16));
                if (threadIdx.x % 32 == 0)
                        shared_col[8 * TILE + threadIdx.x / 32] = a;
                __syncthreads();
#pragma unroll
                for (int w = 0; w < THREADS / 32; w++)
                        m->all = max(m->all, shared_col[8 * TILE + w]);
        }
}

/* n of the 8 bytes in v. */
__device__ __forceinline__ void store8(uint8_t *p, uint64_t v, int n, bool aligned) {
        if (aligned && n >= 8) {
                __stcs((unsigned long long *)p, v);
                return;
        }
        for (int i = 0; i < 8 && i < n; i++)
                p[i] = (uint8_t)(v >> (8 * i));
}

/* Eight rows of the thread, each with its scale, to the row form. */
template <bool F32, bool E5M2> __device__ __forceinline__ void write_rows(const struct quantize_launch &q, const eight<F32> (&x)[8], const struct tile &t, const float (&s)[8]) {
        const bool aligned = q.cols % 8 == 0;

#pragma unroll
        for (int i = 0; i < 8; i++) {
                uint32_t w[2];

#pragma unroll
                for (int h = 0; h < 2; h++)
                        w[h] = cast2<E5M2>(x[i].value(h * 4) * s[i], x[i].value(h * 4 + 1) * s[i]) |
                               cast2<E5M2>(x[i].value(h * 4 + 2) * s[i], x[i].value(h * 4 + 3) * s[i]) << 16;
                if (i < t.rows && t.cols > 0)
                        store8(q.row + (t.r0 + i) * q.cols + t.c0, w[0] | (uint64_t)w[1] << 32, t.cols, aligned);
        }
}

/* Eight columns of the thread into shared memory: column c is 128 bytes at c * 128, its 8-byte slots exchanged by c / 8 so that 16 lanes meet 16 slots. */
template <bool F32, bool E5M2> __device__ __forceinline__ void stage_columns(const eight<F32> (&x)[8], const struct tile &t, const float (&s)[8], uint64_t *staged) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
                uint32_t w[2];

#pragma unroll
                for (int h = 0; h < 2; h++)
                        w[h] = cast2<E5M2>(x[h * 4].value(j) * s[j], x[h * 4 + 1].value(j) * s[j]) |
                               cast2<E5M2>(x[h * 4 + 2].value(j) * s[j], x[h * 4 + 3].value(j) * s[j]) << 16;
                staged[(t.lane * 8 + j) * 16 + (t.slot ^ t.lane)] = w[0] | (uint64_t)w[1] << 32;
        }
}

__device__ __forceinline__ void write_columns(const struct quantize_launch &q, const struct tile &t, const uint64_t *staged) {
        const int64_t r0 = t.tr * TILE, c0 = t.tc * TILE;
        const bool aligned = q.rows % 16 == 0;

#pragma unroll
        for (int i = 0; i < TILE * 8 / THREADS; i++) {
                const int c = (i * THREADS + threadIdx.x) / 8, k = threadIdx.x % 8, key = c / 8;
                const bool second = c & 1; /* neighbouring columns begin with the other half: no two lanes in one bank */
                const uint64_t u = staged[c * 16 + ((k * 2 + second) ^ key)], v = staged[c * 16 + ((k * 2 + !second) ^ key)];
                const uint64_t lo = second ? v : u, hi = second ? u : v;
                const int n = (int)min((int64_t)16, q.rows - r0 - k * 16);
                uint8_t *p = q.col + (c0 + c) * q.rows + r0 + k * 16;

                if (c0 + c >= q.cols || n <= 0)
                        continue;
                if (aligned) {
                        __stcs((ulonglong2 *)p, make_ulonglong2(lo, hi));
                        continue;
                }
                store8(p, lo, n, false);
                store8(p + 8, hi, n - 8, false);
        }
}

__device__ __forceinline__ void note(const struct quantize_launch &q, uint32_t amax) {
        if (q.amax && amax > __float_as_uint(*(volatile float *)q.amax))
                atomicMax((unsigned *)q.amax, amax);
        if (q.bad && amax >= INFINITY_BITS)
                atomicMin(q.bad, q.index);
}

/* This thread's part of tile (tr, tc). */
__device__ __forceinline__ struct tile tile_here(int64_t tr, int64_t tc, int64_t rows, int64_t cols) {
        struct tile t;

        t.tr = tr;
        t.tc = tc;
        t.lane = threadIdx.x % 16;
        t.slot = threadIdx.x / 16;
        t.r0 = t.tr * TILE + t.slot * 8;
        t.c0 = t.tc * TILE + t.lane * 8;
        t.rows = (int)(rows - t.r0 < 8 ? rows - t.r0 : 8);
        t.cols = (int)(cols - t.c0 < 8 ? cols - t.c0 : 8);
        return t;
}

/* The tile that the block has in registers, to the forms that q names. */
template <bool F32, bool E5M2, bool BLOCKS> __device__ __forceinline__ void emit(const struct quantize_launch &q, const eight<F32> (&x)[8], const struct tile &t, uint64_t *staged, uint32_t *shared_col) {
        const float max = E5M2 ? 57344.f : 448.f;
        struct maxima m;
        float s[8];

        find_maxima<F32>(x, t, !BLOCKS && q.col, BLOCKS || q.amax || q.bad, shared_col, &m);
        if (threadIdx.x == 0 && (q.amax || q.bad))
                note(q, m.all);
        if (q.row || BLOCKS) {
                const uint32_t amax = BLOCKS && q.whole ? *q.whole : m.all;

#pragma unroll
                for (int i = 0; i < 8; i++) {
                        s[i] = scale_of(BLOCKS ? amax : m.row[i], max, q.pow2);
                        if (BLOCKS && q.given)
                                s[i] = *q.given;
                        if (!BLOCKS && t.lane == i && i < t.rows)
                                q.row_scale[t.tc * q.row_ld + t.r0 + i] = inverse_of(s[i]);
                }
                if (BLOCKS && threadIdx.x == 0 && (!q.whole || t.tr + t.tc == 0)) {
                        const float inverse = amax >= INFINITY_BITS ? __uint_as_float(NAN_BITS) : inverse_of(s[0]);

                        if (q.row)
                                q.row_scale[q.whole ? 0 : t.tr * q.row_ld + t.tc] = inverse;
                        if (q.col)
                                q.col_scale[q.whole ? 0 : t.tc * q.col_ld + t.tr] = inverse;
                }
                if (q.row)
                        write_rows<F32, E5M2>(q, x, t, s);
        }
        if (q.col) {
                if (!BLOCKS) {
#pragma unroll
                        for (int j = 0; j < 8; j++) {
                                s[j] = scale_of(m.col[j], max, q.pow2);
                                if (t.slot == j && j < t.cols)
                                        q.col_scale[t.tr * q.col_ld + t.c0 + j] = inverse_of(s[j]);
                        }
                }
                stage_columns<F32, E5M2>(x, t, s, staged);
                __syncthreads();
                write_columns(q, t, staged);
        }
}
