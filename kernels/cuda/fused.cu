/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quantisers whose source is made in registers: RMSNorm's output, and around SwiGLU its inputs (kept in FP8) and output in forward, its output again and both gradients in backward.
 * 1x128 E4M3 of BF16 values only.  Each value is rounded to BF16 where dev.h's plain operations would store it, so the bytes are theirs; only the trips to memory are saved:
 * backward of SwiGLU reads 4 bytes an element and writes 5, the plain operations move 33.
 */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/quantize.cuh"

/* By the hardware, which has one NaN where the CPU keeps its payload: these values are quantised at once, and FP8 has one NaN. */
__device__ __forceinline__ uint32_t pack2(float lo, float hi) {
        uint32_t r;

        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
        return r;
}

/* ------------------------------------------------------------------ RMSNorm */

__global__ void __launch_bounds__(THREADS, 3) norm_quant(const __grid_constant__ struct quantize_launch q, const float *rstd, const float *w) {
        __shared__ struct tile_room room;
        const struct tile t = tile_here(blockIdx.y, blockIdx.x, q.rows, q.cols);
        eight<false> x[8];
        float g[8];

        load8(w, DT_F32, t.c0, t.cols > 0 ? t.cols : 0, g);
#pragma unroll
        for (int i = 0; i < 8; i++) {
                const float r = i < t.rows ? rstd[t.r0 + i] : 0;

                x[i].load(q.x, (t.r0 + i) * q.cols + t.c0, i < t.rows ? t.cols : 0, q.cols % 8 == 0);
#pragma unroll
                for (int j = 0; j < 4; j++)
                        x[i].u[j] = pack2(x[i].value(2 * j) * r * g[2 * j], x[i].value(2 * j + 1) * r * g[2 * j + 1]);
        }
        emit<false, false, false>(q, x, t, room.staged, room.col);
}

static dim3 tiles(const struct quantize_launch *q) {
        return dim3((unsigned)((q->cols + TILE - 1) / TILE), (unsigned)((q->rows + TILE - 1) / TILE));
}

extern "C" int cuda_launch_norm_quant(const struct quantize_launch *q, const float *rstd, const float *w, cudaStream_t s) {
        if (q->rows == 0 || q->cols == 0)
                return 0;
        if (q->rows > 65535 * (int64_t)TILE)
                return -EINVAL;
        norm_quant<<<tiles(q), THREADS, 0, s>>>(*q, rstd, w);
        return launched();
}

/* ------------------------------------------------------------------ SwiGLU */

/*
 * Three tiles of a block lie in shared memory, each thread's eight rows of eight columns where no other looks: loops over rows and tiles need not be unrolled then (unrolled, the code is
 * 280 KB long and waits for instructions: an eighth of the bandwidth).
 */
struct three {
        struct quantize_launch q[3];
};

struct three_tiles {
        uint4 at[3][8][THREADS]; /* a tile that was taken into registers is the room of its own columns */
        uint32_t col[8 * TILE + 8];
};
static_assert(sizeof(((struct tile_room *)0)->staged) <= sizeof(((struct three_tiles *)0)->at[0]), "columns are staged in the tile's own place");

/* 16 or 8 bytes to shared memory, zeros where there is nothing. */
template <int BYTES> __device__ __forceinline__ void fetch(void *to, const void *from, bool there) {
        const uint32_t at = (uint32_t)__cvta_generic_to_shared(to);

        if constexpr (BYTES == 16)
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(there ? 16 : 0) : "memory");
        else
                asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(at), "l"(from), "r"(there ? 8 : 0) : "memory");
}

__device__ __forceinline__ void fetched() {
        asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
}

__device__ __forceinline__ float half_of(uint32_t pair, int i) {
        return __uint_as_float(i ? pair & 0xffff0000u : pair << 16);
}

/* Two bytes of FP8 times their scale, as dequantize stores them. */
__device__ __forceinline__ void dequantised(uint32_t bytes, float scale, float (&x)[2]) {
        const __half2_raw h = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)bytes, __NV_E4M3);

        const uint32_t two_bf16 = pack2(__half2float(__half(__half_raw{ h.x })) * scale, __half2float(__half(__half_raw{ h.y })) * scale);

        x[0] = half_of(two_bf16, 0);
        x[1] = half_of(two_bf16, 1);
}

__device__ __forceinline__ uint32_t word(const uint4 &v, int i) {
        return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

__device__ __forceinline__ void emit_three(const struct three &p, const struct tile &t, struct three_tiles *room) {
#pragma unroll 1
        for (int k = 0; k < 3; k++) {
                eight<false> x[8];

#pragma unroll
                for (int i = 0; i < 8; i++) {
                        const uint4 v = room->at[k][i][threadIdx.x];

                        x[i].u[0] = v.x, x[i].u[1] = v.y, x[i].u[2] = v.z, x[i].u[3] = v.w;
                }
                __syncthreads();
                emit<false, false, false>(p.q[k], x, t, (uint64_t *)room->at[k], room->col);
        }
}

/* q: g, u, their product; x of the first two in BF16. */
__global__ void __launch_bounds__(THREADS, 2) swiglu_cache(const __grid_constant__ struct three p) {
        extern __shared__ __align__(16) uint8_t shared[];
        struct three_tiles *room = (struct three_tiles *)shared;
        const struct tile t = tile_here(blockIdx.y, blockIdx.x, p.q[0].rows, p.q[0].cols);

#pragma unroll
        for (int i = 0; i < 8; i++) {
                const bool there = i < t.rows && t.cols > 0;
                const int64_t at = there ? (t.r0 + i) * p.q[0].cols + t.c0 : 0;

                fetch<16>(&room->at[0][i][threadIdx.x], (const uint16_t *)p.q[0].x + at, there);
                fetch<16>(&room->at[1][i][threadIdx.x], (const uint16_t *)p.q[1].x + at, there);
        }
        fetched();
#pragma unroll 1
        for (int i = 0; i < 8; i++) {
                const uint4 g = room->at[0][i][threadIdx.x], u = room->at[1][i][threadIdx.x];
                uint32_t a[4];

#pragma unroll
                for (int j = 0; j < 4; j++) {
                        float x[2];

#pragma unroll
                        for (int k = 0; k < 2; k++) {
                                const float v = half_of(word(g, j), k);

                                x[k] = v / (1 + exp_cpu(-v)) * half_of(word(u, j), k);
                        }
                        a[j] = pack2(x[0], x[1]);
                }
                room->at[2][i][threadIdx.x] = make_uint4(a[0], a[1], a[2], a[3]);
        }
        emit_three(p, t, room);
}

/* q: SwiGLU's output, dg, du; x: the output's gradient in BF16, g and u in FP8. */
__global__ void __launch_bounds__(THREADS, 2) swiglu_cached_bwd(const __grid_constant__ struct three p) {
        extern __shared__ __align__(16) uint8_t shared[];
        struct three_tiles *room = (struct three_tiles *)shared;
        const struct tile t = tile_here(blockIdx.y, blockIdx.x, p.q[0].rows, p.q[0].cols);
        const float *sg = p.q[1].x_scale + t.tc * p.q[1].x_scale_ld + t.r0, *su = p.q[2].x_scale + t.tc * p.q[2].x_scale_ld + t.r0;

#pragma unroll
        for (int i = 0; i < 8; i++) {
                const bool there = i < t.rows && t.cols > 0;
                const int64_t at = there ? (t.r0 + i) * p.q[0].cols + t.c0 : 0;

                fetch<16>(&room->at[0][i][threadIdx.x], (const uint16_t *)p.q[0].x + at, there);
                fetch<8>(&room->at[1][i][threadIdx.x], (const uint8_t *)p.q[1].x + at, there);
                fetch<8>((uint2 *)&room->at[1][i][threadIdx.x] + 1, (const uint8_t *)p.q[2].x + at, there);
        }
        fetched();
#pragma unroll 1
        for (int i = 0; i < 8; i++) {
                const bool there = i < t.rows && t.cols > 0;
                const float scale_g = there ? sg[i] : 0, scale_u = there ? su[i] : 0;
                const uint4 d = room->at[0][i][threadIdx.x], gu = room->at[1][i][threadIdx.x];
                uint32_t a[4], dg[4], du[4];

#pragma unroll
                for (int j = 0; j < 4; j++) {
                        float g[2], u[2], act[2], x[2], y[2];

                        dequantised((j < 2 ? gu.x : gu.y) >> (j % 2 * 16) & 0xffff, scale_g, g);
                        dequantised((j < 2 ? gu.z : gu.w) >> (j % 2 * 16) & 0xffff, scale_u, u);
#pragma unroll
                        for (int k = 0; k < 2; k++) {
                                const float e = 1 + exp_cpu(-g[k]), sigma = 1 / e, dout = half_of(word(d, j), k);

                                act[k] = g[k] / e * u[k];
                                x[k] = dout * u[k] * (sigma * (1 + g[k] * (1 - sigma)));
                                y[k] = dout * (g[k] * sigma);
                        }
                        a[j] = pack2(act[0], act[1]);
                        dg[j] = pack2(x[0], x[1]);
                        du[j] = pack2(y[0], y[1]);
                }
                room->at[0][i][threadIdx.x] = make_uint4(a[0], a[1], a[2], a[3]);
                room->at[1][i][threadIdx.x] = make_uint4(dg[0], dg[1], dg[2], dg[3]);
                room->at[2][i][threadIdx.x] = make_uint4(du[0], du[1], du[2], du[3]);
        }
        emit_three(p, t, room);
}

static int launch_three(void (*kernel)(const struct three), const struct quantize_launch *a, const struct quantize_launch *b, const struct quantize_launch *c, cudaStream_t s) {
        const struct three p = { { *a, *b, *c } };

        if (a->rows == 0 || a->cols == 0)
                return 0;
        if (a->rows > 65535 * (int64_t)TILE)
                return -EINVAL;
        if (a->cols % 8 != 0 || !vector_aligned(a->x) || (b->x && !vector_aligned(b->x)) || (c->x && !vector_aligned(c->x)))
                return -EOPNOTSUPP;
        if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(struct three_tiles)) != cudaSuccess)
                return -EIO;
        kernel<<<tiles(a), THREADS, sizeof(struct three_tiles), s>>>(p);
        return launched();
}

extern "C" int cuda_launch_swiglu_cache(const struct quantize_launch *qg, const struct quantize_launch *qu, const struct quantize_launch *qa, cudaStream_t s) {
        return launch_three(swiglu_cache, qg, qu, qa, s);
}

extern "C" int cuda_launch_swiglu_cached_bwd(const struct quantize_launch *qa, const struct quantize_launch *qg, const struct quantize_launch *qu, cudaStream_t s) {
        return launch_three(swiglu_cached_bwd, qa, qg, qu, s);
}
