/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A 128x128 tile of BF16 quantised 1x128 to E4M3, by a block of 512 threads: each has four rows of eight columns, the 16 lanes of a row side by side.  The bytes are those of quantize.cuh; what is
 * saved is instructions: maxima stay packed two in a word, and a scale is made by one thread and handed round (there each thread divides for all of its rows and columns).
 */
#include "kernels/cuda/quantize.cuh"

#define TILE_THREADS 512
#define TILE_WARPS (TILE_THREADS / 32)

/* By the hardware, which has one NaN where the CPU keeps its payload: these values are quantised at once, and FP8 has one NaN. */
__device__ __forceinline__ uint32_t pack2(float lo, float hi) {
        uint32_t r;

        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
        return r;
}

/* Greater magnitude of the eight BF16 of v, in halves: of the even and of the odd ones. */
__device__ __forceinline__ uint32_t greatest(const uint4 &v) {
        return __vmaxu2(__vmaxu2(v.x & 0x7fff7fffu, v.y & 0x7fff7fffu), __vmaxu2(v.z & 0x7fff7fffu, v.w & 0x7fff7fffu));
}

/* That of two rows: the first one's in the low half. */
__device__ __forceinline__ uint32_t rows_greatest(const uint4 &a, const uint4 &b) {
        const uint32_t m = greatest(a), n = greatest(b);

        return __vmaxu2(__byte_perm(m, n, 0x5410), __byte_perm(m, n, 0x7632));
}

/* One step of a reduction that also parts the words among the lanes: those with `bit` keep the second half of w, the others the first. */
template <int N> __device__ __forceinline__ void halve(uint32_t (&w)[N], int bit) {
        const bool second = threadIdx.x & bit;

#pragma unroll
        for (int i = 0; i < N / 2; i++) {
                const uint32_t other = __shfl_xor_sync(0xffffffff, second ? w[i] : w[i + N / 2], bit);

                w[i] = __vmaxu2(second ? w[i + N / 2] : w[i], other);
        }
}

/* The same within a word. */
__device__ __forceinline__ uint32_t halve_word(uint32_t w, int bit) {
        const uint32_t m = __vmaxu2(w, __shfl_xor_sync(0xffffffff, w, bit));

        return threadIdx.x & bit ? m >> 16 : m & 0xffffu;
}

__device__ __forceinline__ float half_of(uint32_t pair, int i) {
        return __uint_as_float(i ? pair & 0xffff0000u : pair << 16);
}

__device__ __forceinline__ uint32_t word(const uint4 &v, int i) {
        return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* Eight of a row in FP8. */
__device__ __forceinline__ uint64_t row_bytes(const uint4 &v, float s) {
        uint32_t w[2];

#pragma unroll
        for (int h = 0; h < 2; h++) {
                const uint32_t a = word(v, 2 * h), b = word(v, 2 * h + 1);

                w[h] = cast2<false>(half_of(a, 0) * s, half_of(a, 1) * s) | cast2<false>(half_of(b, 0) * s, half_of(b, 1) * s) << 16;
        }
        return w[0] | (uint64_t)w[1] << 32;
}

/* Four rows of eight columns to the columns' bytes; the slots of four rows are exchanged by lane, so that the threads of a warp meet no bank twice. */
__device__ __forceinline__ void stage_four(const uint4 (&v)[4], const float *scale, int lane, int slot, uint32_t *staged) {
        const float4 lo = *(const float4 *)(scale + lane * 8), hi = *(const float4 *)(scale + lane * 8 + 4);
        const float s[8] = { lo.x, lo.y, lo.z, lo.w, hi.x, hi.y, hi.z, hi.w };

#pragma unroll
        for (int j = 0; j < 8; j++)
                staged[(lane * 8 + j) * 32 + (slot ^ 2 * lane)] = cast2<false>(half_of(word(v[0], j / 2), j % 2) * s[j], half_of(word(v[1], j / 2), j % 2) * s[j]) |
                                                                  cast2<false>(half_of(word(v[2], j / 2), j % 2) * s[j], half_of(word(v[3], j / 2), j % 2) * s[j]) << 16;
}

__device__ __forceinline__ void write_staged(const struct quantize_launch &q, const uint32_t *staged, int64_t tr, int64_t tc) {
        const int64_t r0 = tr * TILE, c0 = tc * TILE;
        const bool aligned = q.rows % 16 == 0;

#pragma unroll
        for (int i = 0; i < TILE * 8 / TILE_THREADS; i++) {
                const int c = (i * TILE_THREADS + (int)threadIdx.x) / 8, k = threadIdx.x % 8, lane = c / 8;
                const uint4 v = *(const uint4 *)(staged + c * 32 + (k ^ lane / 2) * 4);
                const uint4 w = lane % 2 ? make_uint4(v.z, v.w, v.x, v.y) : v;
                const int n = (int)min((int64_t)16, q.rows - r0 - k * 16);
                uint8_t *p = q.col + (c0 + c) * q.rows + r0 + k * 16;

                if (c0 + c >= q.cols || n <= 0)
                        continue;
                if (aligned) {
                        __stcs((uint4 *)p, w);
                        continue;
                }
                store8(p, w.x | (uint64_t)w.y << 32, n, false);
                store8(p + 8, w.z | (uint64_t)w.w << 32, n - 8, false);
        }
}

__device__ __forceinline__ void columns_greatest(uint32_t (&col)[4], const uint4 &v) {
#pragma unroll
        for (int j = 0; j < 4; j++)
                col[j] = __vmaxu2(col[j], word(v, j) & 0x7fff7fffu);
}

/* A warp's maxima of each two columns, to shared memory. */
__device__ __forceinline__ void columns_noted(uint32_t (&col)[4], uint32_t (*room)[TILE / 2], int lane) {
#pragma unroll
        for (int j = 0; j < 4; j++)
                col[j] = __vmaxu2(col[j], __shfl_xor_sync(0xffffffff, col[j], 16));
        if (threadIdx.x % 32 < 16)
                *(uint4 *)&room[threadIdx.x / 32][lane * 4] = make_uint4(col[0], col[1], col[2], col[3]);
}

/* Scales of two columns of tile (tr, tc), and the note of what was seen, by each thread of whole warps. */
__device__ __forceinline__ void column_scales(const struct quantize_launch &q, const uint32_t (*room)[TILE / 2], float *scale, int64_t tr, int64_t tc, int pair) {
        const int64_t c = tc * TILE + pair * 2;
        uint32_t m = 0, all;
        float s0, s1;

#pragma unroll
        for (int w = 0; w < TILE_WARPS; w++)
                m = __vmaxu2(m, room[w][pair]);
        s0 = scale_of(m << 16, 448.f, q.pow2);
        s1 = scale_of(m & 0xffff0000u, 448.f, q.pow2);
        *(float2 *)&scale[pair * 2] = make_float2(s0, s1);
        if (c < q.cols)
                q.col_scale[tr * q.col_ld + c] = inverse_of(s0);
        if (c + 1 < q.cols)
                q.col_scale[tr * q.col_ld + c + 1] = inverse_of(s1);
        all = __reduce_max_sync(0xffffffff, max(m >> 16, m & 0xffffu));
        if (threadIdx.x % 32 == 0)
                note(q, all << 16);
}

/* ------------------------------------------------------------------ both forms of one tile */

struct both_room {
        uint32_t staged[TILE * TILE / 4];        /* columns of 128 bytes, four rows a word */
        uint32_t col[TILE_WARPS][TILE / 2];      /* a warp's maxima of two columns */
        float scale[TILE];
};

/* v: this thread's rows; columns are a multiple of 8. The room is free again after the next barrier. */
__device__ __forceinline__ void emit_both(const struct quantize_launch &q, const uint4 (&v)[4], struct both_room *room, int64_t tr, int64_t tc) {
        const int lane = threadIdx.x % 16, slot = threadIdx.x / 16;
        const int64_t r0 = tr * TILE + slot * 4, c = tc * TILE + lane * 8;
        uint32_t col[4] = {}, w[2];
        float s;

#pragma unroll
        for (int i = 0; i < 4; i++)
                columns_greatest(col, v[i]);
        columns_noted(col, room->col, lane);
        w[0] = rows_greatest(v[0], v[1]);
        w[1] = rows_greatest(v[2], v[3]);
        halve(w, 8);
        w[0] = halve_word(w[0], 4);
        w[0] = max(w[0], __shfl_xor_sync(0xffffffff, w[0], 2));
        w[0] = max(w[0], __shfl_xor_sync(0xffffffff, w[0], 1)); /* lane 4 i: row i */
        s = scale_of(w[0] << 16, 448.f, q.pow2);
        if (lane % 4 == 0 && r0 + lane / 4 < q.rows)
                q.row_scale[tc * q.row_ld + r0 + lane / 4] = inverse_of(s);
        __syncthreads();
        if (threadIdx.x < TILE / 2)
                column_scales(q, room->col, room->scale, tr, tc, threadIdx.x);
#pragma unroll
        for (int i = 0; i < 4; i++) {
                const float si = __shfl_sync(0xffffffff, s, (threadIdx.x & 16) + 4 * i);

                if (r0 + i < q.rows && c < q.cols)
                        __stcs((unsigned long long *)(q.row + (r0 + i) * q.cols + c), row_bytes(v[i], si));
        }
        __syncthreads();
        stage_four(v, room->scale, lane, slot, room->staged);
        __syncthreads();
        write_staged(q, room->staged, tr, tc);
}

/* Whether emit_both can do it. */
static inline bool both_fit(const struct quantize_launch *q) {
        return !q->f32 && !q->e5m2 && !q->blocks && q->row && q->col && q->cols % 8 == 0 && q->rows <= 65535 * (int64_t)TILE && (!q->x || (uintptr_t)q->x % 16 == 0) && (uintptr_t)q->row % 8 == 0 &&
               (uintptr_t)q->col % 16 == 0;
}
