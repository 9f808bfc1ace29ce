/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Causal attention inside packed documents (FlashAttention-2, arXiv 2307.08691) on mma.sync: BF16 operands, F32 scores, sums and softmax; the probabilities and their gradients are
 * rounded to BF16 as operands of the second product, which the CPU backend does not do.  Backward is two kernels, one a block of queries (dQ) and one a block of keys (dK, dV), that each
 * make the scores again: two products more than one kernel with atomic additions would need, and no order of additions that depends on the schedule.
 *
 * A thread of a warp has, of each 16 by 8 tile of scores, rows g and g + 8 (g = lane / 4) and columns 2t, 2t + 1 (t = lane % 4); the same registers, rounded, are the left operand of
 * the next product.
 */
#include <errno.h>

#include "kernels/cuda/ops.h"

#define ROWS 64 /* of a block: four warps with 16 each */
#define WARPS 4
#define LOG2E 1.4426950408889634f

/* Rows of D elements, 16 bytes further apart than they are long: the 32-bit reads of a warp meet 32 banks. */
template <int D> struct tile {
        static constexpr int ld = D + 8;
};

__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Left operand: rows r0 .. +16, columns k0 .. +16. */
template <int LD> __device__ __forceinline__ void left(uint32_t (&a)[4], const uint16_t *s, int r0, int k0) {
        const int lane = threadIdx.x % 32;
        const uint16_t *p = s + (r0 + lane / 4) * LD + k0 + lane % 4 * 2;

        a[0] = *(const uint32_t *)p;
        a[1] = *(const uint32_t *)(p + 8 * LD);
        a[2] = *(const uint32_t *)(p + 8);
        a[3] = *(const uint32_t *)(p + 8 * LD + 8);
}

/* Right operand whose column n is row n0 + n of s: s transposed. */
template <int LD> __device__ __forceinline__ void right_rows(uint32_t (&b)[2], const uint16_t *s, int n0, int k0) {
        const int lane = threadIdx.x % 32;
        const uint16_t *p = s + (n0 + lane / 4) * LD + k0 + lane % 4 * 2;

        b[0] = *(const uint32_t *)p;
        b[1] = *(const uint32_t *)(p + 8);
}

/* Right operand as s lies: rows k0 .. +16, columns n0 .. +8. */
template <int LD> __device__ __forceinline__ void right(uint32_t (&b)[2], const uint16_t *s, int k0, int n0) {
        const uint32_t at = (uint32_t)__cvta_generic_to_shared(s + (k0 + threadIdx.x % 16) * LD + n0);

        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(b[0]), "=r"(b[1]) : "r"(at));
}

__device__ __forceinline__ uint32_t pack(float lo, float hi) {
        uint32_t r;

        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
        return r;
}

/* 16 columns of probabilities (or their gradients) as a left operand. */
__device__ __forceinline__ void left_of(uint32_t (&a)[4], const float (&x)[4], const float (&y)[4]) {
        a[0] = pack(x[0], x[1]);
        a[1] = pack(x[2], x[3]);
        a[2] = pack(y[0], y[1]);
        a[3] = pack(y[2], y[3]);
}

/* N rows from row0 on of a matrix whose rows are `stride` apart; zeros from row `rows` on. */
template <int D, int N> __device__ __forceinline__ void load_tile(uint16_t *s, const uint16_t *x, int64_t stride, int row0, int rows) {
        for (int i = threadIdx.x; i < N * D / 8; i += WARPS * 32) {
                const int r = i / (D / 8), c = i % (D / 8) * 8;
                const uint4 v = row0 + r < rows ? *(const uint4 *)(x + (int64_t)(row0 + r) * stride + c) : make_uint4(0, 0, 0, 0);

                *(uint4 *)(s + r * tile<D>::ld + c) = v;
        }
}

struct args {
        attention_launch a;
        float scale;
};

/* s = a b^T for the warp's 16 rows of a and N rows of b. */
template <int D, int N> __device__ __forceinline__ void scores(float (&s)[N / 8][4], const uint16_t *a, const uint16_t *b, int r0) {
#pragma unroll
        for (int j = 0; j < N / 8; j++)
                s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
#pragma unroll
        for (int k = 0; k < D; k += 16) {
                uint32_t fa[4], fb[2];

                left<tile<D>::ld>(fa, a, r0, k);
#pragma unroll
                for (int j = 0; j < N / 8; j++) {
                        right_rows<tile<D>::ld>(fb, b, j * 8, k);
                        mma(s[j], fa, fb);
                }
        }
}

/* o += p b, p being N wide and b [N, D] */
template <int D, int N> __device__ __forceinline__ void accumulate(float (&o)[D / 8][4], const float (&p)[N / 8][4], const uint16_t *b) {
#pragma unroll
        for (int i = 0; i < N / 16; i++) {
                uint32_t fa[4], fb[2];

                left_of(fa, p[2 * i], p[2 * i + 1]);
#pragma unroll
                for (int j = 0; j < D / 8; j++) {
                        right<tile<D>::ld>(fb, b, i * 16, j * 8);
                        mma(o[j], fa, fb);
                }
        }
}

/* The warp's rows of a [*, D] result, each multiplied by its factor. */
template <int D> __device__ __forceinline__ void write_rows(uint16_t *to, int64_t stride, const float (&o)[D / 8][4], const int (&row)[2], int rows, float f0, float f1) {
        const int t = threadIdx.x % 4;

#pragma unroll
        for (int j = 0; j < D / 8; j++) {
                if (row[0] < rows)
                        *(uint32_t *)(to + row[0] * stride + j * 8 + t * 2) = pack(o[j][0] * f0, o[j][1] * f0);
                if (row[1] < rows)
                        *(uint32_t *)(to + row[1] * stride + j * 8 + t * 2) = pack(o[j][2] * f1, o[j][3] * f1);
        }
}

/* Maximum and sum of rows so far; scores are in units of log 2. */
struct softmax {
        float max[2], sum[2];
};

template <int D> __device__ __forceinline__ void softmax_step(struct softmax *m, float (&s)[ROWS / 8][4], float (&o)[D / 8][4]) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
                float top = m->max[h], base, old;

#pragma unroll
                for (int j = 0; j < ROWS / 8; j++)
                        top = fmaxf(top, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
                top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
                top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
                base = top == -INFINITY ? 0 : top; /* nothing but masked keys so far */
                old = exp2f(m->max[h] - base);
                m->max[h] = top;
                m->sum[h] *= old;
#pragma unroll
                for (int j = 0; j < ROWS / 8; j++)
#pragma unroll
                        for (int e = 2 * h; e < 2 * h + 2; e++) {
                                s[j][e] = exp2f(s[j][e] - base);
                                m->sum[h] += s[j][e];
                        }
#pragma unroll
                for (int j = 0; j < D / 8; j++) {
                        o[j][2 * h] *= old;
                        o[j][2 * h + 1] *= old;
                }
        }
}

template <int D> __global__ void __launch_bounds__(WARPS * 32) attention_fwd(const __grid_constant__ args g) {
        extern __shared__ __align__(16) uint16_t shared[];
        uint16_t *q = shared, *k = q + ROWS * tile<D>::ld, *v = k + ROWS * tile<D>::ld;
        const attention_launch &a = g.a;
        const int h = blockIdx.y, hk = h / (a.Hq / a.Hkv), r0 = (int)(gridDim.x - 1 - blockIdx.x) * ROWS, warp = threadIdx.x / 32 * 16;
        const int64_t lq = (int64_t)a.Hq * D, lk = (int64_t)a.Hkv * D;
        const int row[2] = { r0 + warp + (int)threadIdx.x % 32 / 4, r0 + warp + (int)threadIdx.x % 32 / 4 + 8 };
        const int start[2] = { row[0] < a.T ? a.cu[a.doc[row[0]]] : 0, row[1] < a.T ? a.cu[a.doc[row[1]]] : 0 };
        const int last = min(r0 + ROWS, a.T) - 1;
        struct softmax m = { { -INFINITY, -INFINITY }, { 0, 0 } };
        float o[D / 8][4] = {};

        load_tile<D, ROWS>(q, a.q + h * D, lq, r0, a.T);
        for (int c = a.cu[a.doc[r0]]; c <= last; c += ROWS) {
                float s[ROWS / 8][4];

                __syncthreads();
                load_tile<D, ROWS>(k, a.k + hk * D, lk, c, a.T);
                load_tile<D, ROWS>(v, a.v + hk * D, lk, c, a.T);
                __syncthreads();
                scores<D, ROWS>(s, q, k, warp);
#pragma unroll
                for (int j = 0; j < ROWS / 8; j++)
#pragma unroll
                        for (int e = 0; e < 4; e++) {
                                const int key = c + j * 8 + threadIdx.x % 4 * 2 + e % 2;

                                s[j][e] = key <= row[e / 2] && key >= start[e / 2] ? s[j][e] * (g.scale * LOG2E) : -INFINITY;
                        }
                softmax_step<D>(&m, s, o);
                accumulate<D, ROWS>(o, s, v);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
                m.sum[i] += __shfl_xor_sync(0xffffffff, m.sum[i], 1);
                m.sum[i] += __shfl_xor_sync(0xffffffff, m.sum[i], 2);
                if (threadIdx.x % 4 == 0 && row[i] < a.T)
                        a.lse[(int64_t)h * a.T + row[i]] = (m.max[i] + log2f(m.sum[i])) / LOG2E;
        }
        write_rows<D>(a.o + h * D, lq, o, row, a.T, 1 / m.sum[0], 1 / m.sum[1]);
}

/* delta = rowsum(dout * out), a warp a token and head */
__global__ void __launch_bounds__(256) attention_delta(const __grid_constant__ args g) {
        const attention_launch &a = g.a;
        const int64_t n = ((int64_t)blockIdx.x * 256 + threadIdx.x) / 32, t = n / a.Hq, h = n % a.Hq, at = n * a.D;
        float sum = 0;

        if (t >= a.T)
                return;
        for (int c = threadIdx.x % 32; c < a.D; c += 32)
                sum += __uint_as_float((uint32_t)a.dout[at + c] << 16) * __uint_as_float((uint32_t)a.out[at + c] << 16);
        for (int d = 16; d > 0; d >>= 1)
                sum += __shfl_xor_sync(0xffffffff, sum, d);
        if (threadIdx.x % 32 == 0)
                a.delta[h * a.T + t] = sum;
}

template <int D> __global__ void __launch_bounds__(WARPS * 32) attention_dq(const __grid_constant__ args g) {
        extern __shared__ __align__(16) uint16_t shared[];
        uint16_t *q = shared, *dout = q + ROWS * tile<D>::ld, *k = dout + ROWS * tile<D>::ld, *v = k + 32 * tile<D>::ld;
        const attention_launch &a = g.a;
        const int h = blockIdx.y, hk = h / (a.Hq / a.Hkv), r0 = (int)(gridDim.x - 1 - blockIdx.x) * ROWS, warp = threadIdx.x / 32 * 16;
        const int64_t lq = (int64_t)a.Hq * D, lk = (int64_t)a.Hkv * D;
        const int row[2] = { r0 + warp + (int)threadIdx.x % 32 / 4, r0 + warp + (int)threadIdx.x % 32 / 4 + 8 };
        const int last = min(r0 + ROWS, a.T) - 1;
        float dq[D / 8][4] = {}, lse[2], delta[2];
        int start[2];

#pragma unroll
        for (int i = 0; i < 2; i++) {
                const bool in = row[i] < a.T;

                start[i] = in ? a.cu[a.doc[row[i]]] : a.T;
                lse[i] = in ? a.lse[(int64_t)h * a.T + row[i]] * LOG2E : 0;
                delta[i] = in ? a.delta[(int64_t)h * a.T + row[i]] : 0;
        }
        load_tile<D, ROWS>(q, a.q + h * D, lq, r0, a.T);
        load_tile<D, ROWS>(dout, a.dout + h * D, lq, r0, a.T);
        for (int c = a.cu[a.doc[r0]]; c <= last; c += 32) {
                float s[4][4], ds[4][4];

                __syncthreads();
                load_tile<D, 32>(k, a.k + hk * D, lk, c, a.T);
                load_tile<D, 32>(v, a.v + hk * D, lk, c, a.T);
                __syncthreads();
                scores<D, 32>(s, q, k, warp);
                scores<D, 32>(ds, dout, v, warp);
#pragma unroll
                for (int j = 0; j < 4; j++)
#pragma unroll
                        for (int e = 0; e < 4; e++) {
                                const int key = c + j * 8 + threadIdx.x % 4 * 2 + e % 2;
                                const bool in = key <= row[e / 2] && key >= start[e / 2];

                                ds[j][e] = in ? exp2f(s[j][e] * (g.scale * LOG2E) - lse[e / 2]) * (ds[j][e] - delta[e / 2]) : 0;
                        }
                accumulate<D, 32>(dq, ds, k);
        }
        write_rows<D>(a.dq + h * D, lq, dq, row, a.T, g.scale, g.scale);
}

/* Scores lie transposed here: rows are keys, columns queries. */
template <int D> __global__ void __launch_bounds__(WARPS * 32) attention_dkv(const __grid_constant__ args g) {
        constexpr int N = 32;
        extern __shared__ __align__(16) uint16_t shared[];
        __shared__ float lse[N], delta[N];
        __shared__ int start[N];
        uint16_t *k = shared, *v = k + ROWS * tile<D>::ld, *q = v + ROWS * tile<D>::ld, *dout = q + N * tile<D>::ld;
        const attention_launch &a = g.a;
        const int hk = blockIdx.y, group = a.Hq / a.Hkv, c0 = blockIdx.x * ROWS, warp = threadIdx.x / 32 * 16;
        const int64_t lq = (int64_t)a.Hq * D, lk = (int64_t)a.Hkv * D;
        const int row[2] = { c0 + warp + (int)threadIdx.x % 32 / 4, c0 + warp + (int)threadIdx.x % 32 / 4 + 8 };
        const int end = a.cu[a.doc[min(c0 + ROWS, a.T) - 1] + 1];
        float dk[D / 8][4] = {}, dv[D / 8][4] = {};

        load_tile<D, ROWS>(k, a.k + hk * D, lk, c0, a.T);
        load_tile<D, ROWS>(v, a.v + hk * D, lk, c0, a.T);
        for (int h = hk * group; h < (hk + 1) * group; h++)
                for (int r = c0; r < end; r += N) {
                        float s[N / 8][4], ds[N / 8][4];

                        __syncthreads();
                        load_tile<D, N>(q, a.q + h * D, lq, r, a.T);
                        load_tile<D, N>(dout, a.dout + h * D, lq, r, a.T);
                        if (threadIdx.x < N) {
                                const int t = r + (int)threadIdx.x;
                                const bool in = t < a.T;

                                lse[threadIdx.x] = in ? a.lse[(int64_t)h * a.T + t] * LOG2E : 0;
                                delta[threadIdx.x] = in ? a.delta[(int64_t)h * a.T + t] : 0;
                                start[threadIdx.x] = in ? a.cu[a.doc[t]] : a.T;
                        }
                        __syncthreads();
                        scores<D, N>(s, k, q, warp);
                        scores<D, N>(ds, v, dout, warp);
#pragma unroll
                        for (int j = 0; j < N / 8; j++)
#pragma unroll
                                for (int e = 0; e < 4; e++) {
                                        const int i = j * 8 + threadIdx.x % 4 * 2 + e % 2, key = row[e / 2];
                                        const bool in = key <= r + i && key >= start[i];

                                        s[j][e] = in ? exp2f(s[j][e] * (g.scale * LOG2E) - lse[i]) : 0;
                                        ds[j][e] = in ? s[j][e] * (ds[j][e] - delta[i]) : 0;
                                }
                        accumulate<D, N>(dv, s, dout);
                        accumulate<D, N>(dk, ds, q);
                }
        write_rows<D>(a.dk + hk * D, lk, dk, row, a.T, g.scale, g.scale);
        write_rows<D>(a.dv + hk * D, lk, dv, row, a.T, 1, 1);
}

template <int D> static int forward(const struct args *g, cudaStream_t s) {
        const int shared = 3 * ROWS * tile<D>::ld * 2;

        if (cudaFuncSetAttribute(attention_fwd<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared) != cudaSuccess)
                return -EIO;
        attention_fwd<D><<<dim3((unsigned)(g->a.T + ROWS - 1) / ROWS, (unsigned)g->a.Hq), WARPS * 32, shared, s>>>(*g);
        return cudaGetLastError() == cudaSuccess ? 0 : -EIO;
}

template <int D> static int backward(const struct args *g, cudaStream_t s) {
        const int shared = (2 * ROWS + 64) * tile<D>::ld * 2;
        const unsigned blocks = (unsigned)(g->a.T + ROWS - 1) / ROWS, warps = (unsigned)g->a.T * (unsigned)g->a.Hq;

        if (cudaFuncSetAttribute(attention_dq<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared) != cudaSuccess ||
            cudaFuncSetAttribute(attention_dkv<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared) != cudaSuccess)
                return -EIO;
        attention_delta<<<(warps + 7) / 8, 256, 0, s>>>(*g);
        attention_dq<D><<<dim3(blocks, (unsigned)g->a.Hq), WARPS * 32, shared, s>>>(*g);
        attention_dkv<D><<<dim3(blocks, (unsigned)g->a.Hkv), WARPS * 32, shared, s>>>(*g);
        return cudaGetLastError() == cudaSuccess ? 0 : -EIO;
}

static int dispatch(const struct attention_launch *a, bool back, cudaStream_t s) {
        const struct args g = { *a, 1.f / sqrtf((float)a->D) };

        if (a->T == 0)
                return 0;
        switch (a->D) {
        case 16:
                return back ? backward<16>(&g, s) : forward<16>(&g, s);
        case 32:
                return back ? backward<32>(&g, s) : forward<32>(&g, s);
        case 64:
                return back ? backward<64>(&g, s) : forward<64>(&g, s);
        case 96:
                return back ? backward<96>(&g, s) : forward<96>(&g, s);
        case 128:
                return back ? backward<128>(&g, s) : forward<128>(&g, s);
        default:
                return -EOPNOTSUPP;
        }
}

extern "C" int cuda_launch_attention_fwd(const struct attention_launch *a, cudaStream_t s) {
        return dispatch(a, false, s);
}

extern "C" int cuda_launch_attention_bwd(const struct attention_launch *a, cudaStream_t s) {
        return dispatch(a, true, s);
}
