/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quantisers whose source is made in registers: RMSNorm's output, and around SwiGLU its inputs (kept in FP8) and output in forward, its output again and both gradients in backward.
 * 1x128 E4M3 of BF16 values only.  Each value is rounded to BF16 where this device's plain operations would store it, so the bytes are theirs; only the trips to memory are saved:
 * backward of SwiGLU reads 4 bytes an element and writes 5, the plain operations move 33.
 */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/tile.cuh"

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

/* The same with both forms from whole vectors. */
__global__ void __launch_bounds__(TILE_THREADS, 2) norm_quant_both(const __grid_constant__ struct quantize_launch q, const float *rstd, const float *w) {
        __shared__ struct both_room room;
        const int64_t r0 = (int64_t)blockIdx.y * TILE + threadIdx.x / 16 * 4, c = (int64_t)blockIdx.x * TILE + threadIdx.x % 16 * 8;
        float g[8] = {};
        uint4 v[4];

#pragma unroll
        for (int i = 0; i < 4; i++)
                v[i] = r0 + i < q.rows && c < q.cols ? __ldcs((const uint4 *)((const uint16_t *)q.x + (r0 + i) * q.cols + c)) : make_uint4(0, 0, 0, 0);
        if (c < q.cols)
                load_vector<DT_F32>(w, c, g);
#pragma unroll
        for (int i = 0; i < 4; i++) {
                const float r = r0 + i < q.rows ? rstd[r0 + i] : 0;
                uint32_t t[4];

#pragma unroll
                for (int j = 0; j < 4; j++)
                        t[j] = pack2(half_of(word(v[i], j), 0) * r * g[2 * j], half_of(word(v[i], j), 1) * r * g[2 * j + 1]);
                v[i] = make_uint4(t[0], t[1], t[2], t[3]);
        }
        emit_both(q, v, &room, blockIdx.y, blockIdx.x);
}

extern "C" int cuda_launch_norm_quant(const struct quantize_launch *q, const float *rstd, const float *w, cudaStream_t s) {
        if (q->rows == 0 || q->cols == 0)
                return 0;
        if (q->rows > 65535 * (int64_t)TILE)
                return -EINVAL;
        if (both_fit(q) && vector_aligned(w))
                norm_quant_both<<<tiles(q), TILE_THREADS, 0, s>>>(*q, rstd, w);
        else
                norm_quant<<<tiles(q), THREADS, 0, s>>>(*q, rstd, w);
        return launched();
}

/* ------------------------------------------------------------------ SwiGLU */

/*
 * What bounds these kernels is instructions: the copy bandwidth leaves 67 of them an element in forward and 86 in backward.  So a scale is made by one thread and handed round: the maxima of
 * several rows, packed two in a word, are reduced over the 16 lanes of a row in such a way that each lane ends with one of them.
 */
struct three {
        struct quantize_launch q[3];
};

#define GROUP_ROWS 4 /* of 16 lanes at a time */

/* q: g, u, their product, row forms only; x of the first two in BF16.  16 lanes have 128 columns of four rows. */
__global__ void __launch_bounds__(THREADS, 3) swiglu_cache(const __grid_constant__ struct three p) {
        const struct quantize_launch &q0 = p.q[0];
        const int lane = threadIdx.x % 16, mine = min(lane / 4, 2);
        const int64_t tc = blockIdx.x, c = tc * TILE + lane * 8;
        const bool inside = c < q0.cols, pow2 = p.q[mine].pow2;
        float *scales = p.q[mine].row_scale + tc * p.q[mine].row_ld;
        __shared__ uint32_t most[3];
        uint32_t amax = 0;

        if (threadIdx.x < 3)
                most[threadIdx.x] = 0;
        __syncthreads();
#pragma unroll 1
        for (int64_t r0 = (int64_t)blockIdx.y * TILE + threadIdx.x / 16 * GROUP_ROWS; r0 < ((int64_t)blockIdx.y + 1) * TILE; r0 += THREADS / 16 * GROUP_ROWS) {
                uint4 g[GROUP_ROWS], u[GROUP_ROWS], a[GROUP_ROWS];
                uint32_t w[8] = {};
                float s;

#pragma unroll
                for (int i = 0; i < GROUP_ROWS; i++) {
                        const bool there = inside && r0 + i < q0.rows;

                        g[i] = there ? __ldcs((const uint4 *)((const uint16_t *)q0.x + (r0 + i) * q0.cols + c)) : make_uint4(0, 0, 0, 0);
                        u[i] = there ? __ldcs((const uint4 *)((const uint16_t *)p.q[1].x + (r0 + i) * q0.cols + c)) : make_uint4(0, 0, 0, 0);
                }
#pragma unroll
                for (int i = 0; i < GROUP_ROWS; i++) {
                        uint32_t t[4];

#pragma unroll
                        for (int j = 0; j < 4; j++)
                                t[j] = pack2(swiglu(half_of(word(g[i], j), 0), half_of(word(u[i], j), 0)), swiglu(half_of(word(g[i], j), 1), half_of(word(u[i], j), 1)));
                        a[i] = make_uint4(t[0], t[1], t[2], t[3]);
                }
#pragma unroll
                for (int i = 0; i < 2; i++) {
                        w[i] = rows_greatest(g[2 * i], g[2 * i + 1]);
                        w[2 + i] = rows_greatest(u[2 * i], u[2 * i + 1]);
                        w[4 + i] = rows_greatest(a[2 * i], a[2 * i + 1]);
                }
                halve(w, 8);
                halve((uint32_t(&)[4])w, 4);
                halve((uint32_t(&)[2])w, 2);
                w[0] = halve_word(w[0], 1); /* lane 4 k + i: tensor k, row i */
                amax = max(amax, w[0]);
                s = scale_of(w[0] << 16, 448.f, pow2);
                if (lane < 12 && r0 + lane % 4 < q0.rows)
                        scales[r0 + lane % 4] = inverse_of(s);
#pragma unroll
                for (int k = 0; k < 3; k++)
#pragma unroll
                        for (int i = 0; i < GROUP_ROWS; i++) {
                                const float si = __shfl_sync(0xffffffff, s, (threadIdx.x & 16) + 4 * k + i);

                                if (inside && r0 + i < q0.rows)
                                        __stcs((unsigned long long *)(p.q[k].row + (r0 + i) * q0.cols + c), row_bytes(k == 0 ? g[i] : k == 1 ? u[i] : a[i], si));
                        }
        }
        if (lane < 12)
                atomicMax(&most[mine], amax);
        __syncthreads();
        if (threadIdx.x < 3)
                note(p.q[threadIdx.x], most[threadIdx.x] << 16);
}

/*
 * Backward: 512 threads have a tile of 128 by 128, each four rows of eight columns, the 16 lanes of a row side by side.  q: SwiGLU's output (columns only), dg, du (both forms); x: the output's
 * gradient in BF16, g and u in FP8.
 */
struct bwd_room {
        uint4 at[2][4][TILE_THREADS];             /* a thread's own places: the gradient, g and u; then dg and du, in BF16 */
        uint32_t staged[2][TILE * TILE / 4];     /* columns of 128 bytes, four rows a word */
        uint32_t col[3][TILE_WARPS][TILE / 2];    /* a warp's maxima of two columns */
        float scale[3][TILE];
};

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

/* Two bytes of FP8 times their scale, as dequantize stores them. */
__device__ __forceinline__ void dequantised(uint32_t bytes, float scale, float (&x)[2]) {
        const __half2_raw h = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)bytes, __NV_E4M3);

        const uint32_t two_bf16 = pack2(__half2float(__half(__half_raw{ h.x })) * scale, __half2float(__half(__half_raw{ h.y })) * scale);

        x[0] = half_of(two_bf16, 0);
        x[1] = half_of(two_bf16, 1);
}

/* One row: SwiGLU again, its gradients into their places. */
__device__ __forceinline__ void bwd_row(struct bwd_room *room, int i, float scale_g, float scale_u, uint4 *ret_a, uint4 *ret_dg, uint4 *ret_du) {
        const uint4 d = room->at[0][i][threadIdx.x], gu = room->at[1][i][threadIdx.x];
        uint32_t a[4], dg[4], du[4];

#pragma unroll
        for (int j = 0; j < 4; j++) {
                float g[2], u[2], act[2], x[2], y[2];

                dequantised((j < 2 ? gu.x : gu.y) >> (j % 2 * 16) & 0xffff, scale_g, g);
                dequantised((j < 2 ? gu.z : gu.w) >> (j % 2 * 16) & 0xffff, scale_u, u);
#pragma unroll
                for (int k = 0; k < 2; k++)
                        act[k] = swiglu_gradients(g[k], u[k], half_of(word(d, j), k), &x[k], &y[k]);
                a[j] = pack2(act[0], act[1]);
                dg[j] = pack2(x[0], x[1]);
                du[j] = pack2(y[0], y[1]);
        }
        *ret_a = make_uint4(a[0], a[1], a[2], a[3]);
        *ret_dg = room->at[0][i][threadIdx.x] = make_uint4(dg[0], dg[1], dg[2], dg[3]);
        *ret_du = room->at[1][i][threadIdx.x] = make_uint4(du[0], du[1], du[2], du[3]);
}

__global__ void __launch_bounds__(TILE_THREADS, 2) swiglu_cached_bwd(const __grid_constant__ struct three p) {
        extern __shared__ __align__(16) uint8_t shared[];
        struct bwd_room *room = (struct bwd_room *)shared;
        const int lane = threadIdx.x % 16, slot = threadIdx.x / 16;
        const int64_t r0 = (int64_t)blockIdx.y * TILE + slot * 4, c = (int64_t)blockIdx.x * TILE + lane * 8;
        const int64_t cols = p.q[0].cols, rows = p.q[0].rows;
        const float *sg = p.q[1].x_scale + blockIdx.x * p.q[1].x_scale_ld, *su = p.q[2].x_scale + blockIdx.x * p.q[2].x_scale_ld;
        uint32_t col[3][4] = {}, w[4];
        uint4 a[4];
        float s;

#pragma unroll
        for (int i = 0; i < 4; i++) {
                const bool there = r0 + i < rows && c < cols;
                const int64_t at = there ? (r0 + i) * cols + c : 0;

                fetch<16>(&room->at[0][i][threadIdx.x], (const uint16_t *)p.q[0].x + at, there);
                fetch<8>(&room->at[1][i][threadIdx.x], (const uint8_t *)p.q[1].x + at, there);
                fetch<8>((uint2 *)&room->at[1][i][threadIdx.x] + 1, (const uint8_t *)p.q[2].x + at, there);
        }
        fetched();
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
                uint4 dg[2], du[2];

#pragma unroll
                for (int k = 0; k < 2; k++) {
                        const bool there = r0 + i + k < rows;

                        bwd_row(room, i + k, there ? sg[r0 + i + k] : 0, there ? su[r0 + i + k] : 0, &a[i + k], &dg[k], &du[k]);
                        columns_greatest(col[0], a[i + k]);
                        columns_greatest(col[1], dg[k]);
                        columns_greatest(col[2], du[k]);
                }
                w[i / 2] = rows_greatest(dg[0], dg[1]);
                w[2 + i / 2] = rows_greatest(du[0], du[1]);
        }
#pragma unroll
        for (int k = 0; k < 3; k++)
                columns_noted(col[k], room->col[k], lane);
        halve(w, 8);
        halve((uint32_t(&)[2])w, 4);
        w[0] = halve_word(w[0], 2);
        w[0] = max(w[0], __shfl_xor_sync(0xffffffff, w[0], 1)); /* lane 2 (4 k + i): gradient k, row i */
        s = scale_of(w[0] << 16, 448.f, p.q[1 + lane / 8].pow2);
        if (lane % 2 == 0 && r0 + lane / 2 % 4 < rows)
                p.q[1 + lane / 8].row_scale[blockIdx.x * p.q[1 + lane / 8].row_ld + r0 + lane / 2 % 4] = inverse_of(s);
        __syncthreads();
        if (threadIdx.x < 3 * TILE / 2)
                column_scales(p.q[threadIdx.x / (TILE / 2)], room->col[threadIdx.x / (TILE / 2)], room->scale[threadIdx.x / (TILE / 2)], blockIdx.y, blockIdx.x, threadIdx.x % (TILE / 2));
#pragma unroll
        for (int k = 0; k < 2; k++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                        const float si = __shfl_sync(0xffffffff, s, (threadIdx.x & 16) + 2 * (4 * k + i));

                        if (r0 + i < rows && c < cols)
                                __stcs((unsigned long long *)(p.q[1 + k].row + (r0 + i) * cols + c), row_bytes(room->at[k][i][threadIdx.x], si));
                }
        __syncthreads();
        stage_four(a, room->scale[0], lane, slot, room->staged[0]);
#pragma unroll
        for (int i = 0; i < 4; i++)
                a[i] = room->at[0][i][threadIdx.x];
        stage_four(a, room->scale[1], lane, slot, room->staged[1]);
#pragma unroll
        for (int i = 0; i < 4; i++)
                a[i] = room->at[1][i][threadIdx.x];
        __syncthreads();
        write_staged(p.q[0], room->staged[0], blockIdx.y, blockIdx.x);
        write_staged(p.q[1], room->staged[1], blockIdx.y, blockIdx.x);
        stage_four(a, room->scale[2], lane, slot, (uint32_t *)room->at[0]); /* nobody needs what was there */
        __syncthreads();
        write_staged(p.q[2], (const uint32_t *)room->at[0], blockIdx.y, blockIdx.x);
}

static bool three_fit(const struct three *p) {
        const struct quantize_launch *a = &p->q[0];
        bool ok = a->rows <= 65535 * (int64_t)TILE && a->cols % 8 == 0;

        for (int i = 0; i < 3; i++)
                ok = ok && (!p->q[i].x || vector_aligned(p->q[i].x)) && (!p->q[i].row || (uintptr_t)p->q[i].row % 8 == 0) && (!p->q[i].col || vector_aligned(p->q[i].col));
        return ok;
}

extern "C" int cuda_launch_swiglu_cache(const struct quantize_launch *qg, const struct quantize_launch *qu, const struct quantize_launch *qa, cudaStream_t s) {
        const struct three p = { { *qg, *qu, *qa } };

        if (qg->rows == 0 || qg->cols == 0)
                return 0;
        if (!three_fit(&p) || !qg->row || !qu->row || !qa->row || qg->col || qu->col || qa->col)
                return -EOPNOTSUPP;
        swiglu_cache<<<tiles(qg), THREADS, 0, s>>>(p);
        return launched();
}

extern "C" int cuda_launch_swiglu_cached_bwd(const struct quantize_launch *qa, const struct quantize_launch *qg, const struct quantize_launch *qu, cudaStream_t s) {
        const struct three p = { { *qa, *qg, *qu } };

        if (qa->rows == 0 || qa->cols == 0)
                return 0;
        if (!three_fit(&p) || qa->row || !qa->col || !qg->row || !qg->col || !qu->row || !qu->col)
                return -EOPNOTSUPP;
        if (cudaFuncSetAttribute(swiglu_cached_bwd, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(struct bwd_room)) != cudaSuccess)
                return -EIO;
        swiglu_cached_bwd<<<tiles(qa), TILE_THREADS, sizeof(struct bwd_room), s>>>(p);
        return launched();
}
