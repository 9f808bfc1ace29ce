/* SPDX-License-Identifier: Apache-2.0 */
/* Operations that treat each element, or each row of a table, by itself: kernels/cpu's convert.c, init.c, swiglu.c, rope.c, embedding.c. */
#include "kernels/cuda/device.cuh"

template <class F> __global__ void __launch_bounds__(THREADS) each8(const F f, int64_t n) {
        const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 8;

        if (i < n)
                f.run(i, (int)(n - i < 8 ? n - i : 8));
}

template <class F> static int each(const F &f, int64_t n, cudaStream_t s) {
        if (n < 0)
                return -EINVAL;
        if (n == 0)
                return 0;
        each8<F><<<blocks_of8(n), THREADS, 0, s>>>(f, n);
        return launched();
}

struct cast_op {
        void *dst;
        const void *src;
        enum dtype dt, st;

        __device__ __forceinline__ void run(int64_t i, int n) const {
                float v[8];

                load8(src, st, i, n, v);
                store8(dst, dt, i, n, v);
        }
};

extern "C" int cuda_launch_cast(void *dst, enum dtype dt, const void *src, enum dtype st, int64_t n, cudaStream_t s) {
        return each(cast_op{ dst, src, dt, st }, n, s);
}

struct add_op {
        void *dst;
        const void *src;
        enum dtype t;

        __device__ __forceinline__ void run(int64_t i, int n) const {
                float a[8], b[8];

                load8(dst, t, i, n, a);
                load8(src, t, i, n, b);
#pragma unroll
                for (int k = 0; k < 8; k++)
                        a[k] += b[k];
                store8(dst, t, i, n, a);
        }
};

extern "C" int cuda_launch_add(void *dst, const void *src, enum dtype t, int64_t n, cudaStream_t s) {
        return each(add_op{ dst, src, t }, n, s);
}

struct scale_op {
        float *dst;
        float factor;

        __device__ __forceinline__ void run(int64_t i, int n) const {
                float a[8];

                load8(dst, DT_F32, i, n, a);
#pragma unroll
                for (int k = 0; k < 8; k++)
                        a[k] *= factor;
                store8(dst, DT_F32, i, n, a);
        }
};

extern "C" int cuda_launch_scale(float *dst, float factor, int64_t n, cudaStream_t s) {
        return each(scale_op{ dst, factor }, n, s);
}

/* ------------------------------------------------------------------ initialisation */

__host__ __device__ static inline uint64_t mix(uint64_t z) {
        z += UINT64_C(0x9e3779b97f4a7c15);
        z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
        return z ^ (z >> 31);
}

/* Integers as on the CPU; log, cos and sqrt are this library's, so that a value may differ by a rounding. */
__device__ static double normal(uint64_t key) {
        const uint64_t a = mix(key), b = mix(~key);
        const double u = (double)((a >> 11) + 1) * 0x1p-53, v = (double)(b >> 11) * 0x1p-53;

        return sqrt(-2 * log(u)) * cos(2 * 3.14159265358979323846 * v);
}

struct init_op {
        float *dst;
        int64_t cols, row0, col0;
        uint64_t tensor;
        double mean, std;

        __device__ __forceinline__ void run(int64_t i, int n) const {
                for (int k = 0; k < n; k++) {
                        const int64_t r = (i + k) / cols, c = (i + k) % cols;
                        const uint64_t row = mix(tensor ^ (uint64_t)(row0 + r));

                        dst[i + k] = (float)(std == 0 ? mean : mean + std * normal(mix(row ^ (uint64_t)(col0 + c))));
                }
        }
};

extern "C" int cuda_launch_init(float *dst, int64_t rows, int64_t cols, int64_t row0, int64_t col0, uint64_t seed, uint64_t name_hash, double mean, double std, cudaStream_t s) {
        return each(init_op{ dst, cols, row0, col0, mix(mix(seed) ^ name_hash), mean, std }, rows * cols, s);
}

/* ------------------------------------------------------------------ SwiGLU */

struct swiglu_op {
        const void *g, *u;
        void *a;
        enum dtype act;

        __device__ __forceinline__ void run(int64_t i, int n) const {
                float x[8], y[8];

                load8(g, act, i, n, x);
                load8(u, act, i, n, y);
#pragma unroll
                for (int k = 0; k < 8; k++)
                        x[k] = swiglu(x[k], y[k]);
                store8(a, act, i, n, x);
        }
};

extern "C" int cuda_launch_swiglu_fwd(const void *g, const void *u, void *a, enum dtype act, int64_t n, cudaStream_t s) {
        return each(swiglu_op{ g, u, a, act }, n, s);
}

struct swiglu_bwd_op {
        const void *g, *u, *da;
        void *dg, *du;
        enum dtype act, dat;

        __device__ __forceinline__ void run(int64_t i, int n) const {
                float x[8], y[8], d[8];

                load8(g, act, i, n, x);
                load8(u, act, i, n, y);
                load8(da, dat, i, n, d);
#pragma unroll
                for (int k = 0; k < 8; k++) {
                        const float g = x[k], u = y[k];

                        (void)swiglu_gradients(g, u, d[k], &x[k], &y[k]);
                }
                store8(dg, act, i, n, x);
                store8(du, act, i, n, y);
        }
};

extern "C" int cuda_launch_swiglu_bwd(const void *g, const void *u, const void *da, enum dtype dat, void *dg, void *du, enum dtype act, int64_t n, cudaStream_t s) {
        return each(swiglu_bwd_op{ g, u, da, dg, du, act, dat }, n, s);
}

/* ------------------------------------------------------------------ RoPE */

struct rope_args {
        void *q, *k;
        const int32_t *pos;
        double theta;
        int64_t T, Hq, Hkv, half;
        float sign;
        enum dtype act;
};

__device__ __forceinline__ void rotate(void *x, enum dtype act, int64_t at, int64_t half, float c, float s) {
        const float a = load1(x, act, at), b = load1(x, act, at + half);

        store1(x, act, at, a * c - b * s);
        store1(x, act, at + half, b * c + a * s);
}

/* One thread a token and pair of columns, through all heads: the angle is made once, in double. */
__global__ void __launch_bounds__(THREADS) rope(const rope_args r) {
        const int64_t n = (int64_t)blockIdx.x * THREADS + threadIdx.x, t = n / r.half, i = n % r.half, D = 2 * r.half;
        double angle, sn, cs;

        if (t >= r.T)
                return;
        angle = (double)r.pos[t] * pow(r.theta, -2.0 * (double)i / (double)D);
        sincos(angle, &sn, &cs);
        for (int64_t h = 0; r.q && h < r.Hq; h++)
                rotate(r.q, r.act, (t * r.Hq + h) * D + i, r.half, (float)cs, (float)sn * r.sign);
        for (int64_t h = 0; r.k && h < r.Hkv; h++)
                rotate(r.k, r.act, (t * r.Hkv + h) * D + i, r.half, (float)cs, (float)sn * r.sign);
}

/* The angles of a block's tokens in shared memory first, then eight pairs of columns a thread; half is a multiple of 8 and divides THREADS. */
__global__ void __launch_bounds__(THREADS) rope_vectors(const rope_args r) {
        const int half = (int)r.half, tokens = THREADS / half, heads = (int)(r.Hq + r.Hkv), items = heads * (half / 8);
        const int64_t t0 = (int64_t)blockIdx.x * tokens, mine = t0 + threadIdx.x / half;
        __shared__ float cs[THREADS], sn[THREADS];

        if (mine < r.T) {
                double c, s;

                sincos((double)r.pos[mine] * pow(r.theta, -2.0 * (double)(threadIdx.x % half) / (double)(2 * half)), &s, &c);
                cs[threadIdx.x] = (float)c;
                sn[threadIdx.x] = (float)s * r.sign;
        }
        __syncthreads();
        for (int n = threadIdx.x; n < tokens * items; n += THREADS) {
                const int token = n / items, head = n % items / (half / 8), i = n % (half / 8) * 8;
                const bool is_q = head < r.Hq;
                const int64_t t = t0 + token;
                float a[8], b[8], x[8], y[8];

                if (t >= r.T)
                        return;
                void *p = is_q ? r.q : r.k;
                const int64_t at = (is_q ? t * r.Hq + head : t * r.Hkv + head - r.Hq) * 2 * half + i;

                load_vector<DT_BF16>(p, at, a);
                load_vector<DT_BF16>(p, at + half, b);
#pragma unroll
                for (int k = 0; k < 8; k++) {
                        const float c = cs[token * half + i + k], s = sn[token * half + i + k];

                        x[k] = a[k] * c - b[k] * s;
                        y[k] = b[k] * c + a[k] * s;
                }
                store_vector<DT_BF16>(p, at, x);
                store_vector<DT_BF16>(p, at + half, y);
        }
}

extern "C" int cuda_launch_rope(void *q, void *k, const int32_t *pos, int64_t T, double theta, int64_t Hq, int64_t Hkv, int64_t D, bool backward, enum dtype act, cudaStream_t s) {
        const rope_args r = { q, k, pos, theta, T, q ? Hq : 0, k ? Hkv : 0, D / 2, backward ? -1.f : 1.f, act };
        const int64_t n = T * (D / 2);

        if (n == 0)
                return 0;
        if (act == DT_BF16 && r.half % 8 == 0 && THREADS % r.half == 0 && vector_aligned(q) && vector_aligned(k))
                rope_vectors<<<(unsigned)((n + THREADS - 1) / THREADS), THREADS, 0, s>>>(r);
        else
                rope<<<(unsigned)((n + THREADS - 1) / THREADS), THREADS, 0, s>>>(r);
        return launched();
}

/* ------------------------------------------------------------------ embedding */

__global__ void __launch_bounds__(THREADS) embed_fwd(const void *table, const int32_t *ids, void *out, enum dtype act, int64_t H, int64_t v0, int64_t V) {
        const int64_t t = blockIdx.x, id = ids[t] - v0;

        for (int64_t c = threadIdx.x * 8; c < H; c += THREADS * 8) {
                const int n = (int)(H - c < 8 ? H - c : 8);
                float v[8] = { 0, 0, 0, 0, 0, 0, 0, 0 };

                if (id >= 0 && id < V)
                        load8(table, act, id * H + c, n, v);
                store8(out, act, t * H + c, n, v);
        }
}

extern "C" int cuda_launch_embed_fwd(const void *table, const int32_t *ids, void *out, enum dtype act, int64_t T, int64_t H, int64_t v0, int64_t V, cudaStream_t s) {
        if (T == 0 || H == 0)
                return 0;
        embed_fwd<<<(unsigned)T, THREADS, 0, s>>>(table, ids, out, act, H, v0, V);
        return launched();
}

/*
 * A block a token: the one at which its id stands first adds the gradients of all tokens with that id, in their order, so that the sum does not depend on the schedule.
 */
__global__ void __launch_bounds__(THREADS) embed_bwd(float *dtable, const int32_t *ids, const void *dout, enum dtype act, int64_t T, int64_t H, int64_t v0, int64_t V) {
        const int64_t t = blockIdx.x, id = ids[t] - v0;
        __shared__ uint32_t found[THREADS / 32];
        int earlier = 0;

        if (id < 0 || id >= V)
                return;
        for (int64_t i = threadIdx.x; i < t && !earlier; i += THREADS)
                earlier = ids[i] - v0 == id;
        if (__syncthreads_or(earlier))
                return;
        for (int64_t i0 = t; i0 < T; i0 += THREADS) {
                const int64_t i = i0 + threadIdx.x;
                const uint32_t mask = __ballot_sync(0xffffffff, i < T && ids[i] - v0 == id);

                if (threadIdx.x % 32 == 0)
                        found[threadIdx.x / 32] = mask;
                __syncthreads();
                for (int w = 0; w < THREADS / 32; w++)
                        for (uint32_t m = found[w]; m; m &= m - 1) {
                                const int64_t token = i0 + w * 32 + __ffs((int)m) - 1;

                                for (int64_t c = threadIdx.x; c < H; c += THREADS)
                                        dtable[id * H + c] += load1(dout, act, token * H + c);
                        }
                __syncthreads();
        }
}

extern "C" int cuda_launch_embed_bwd(float *dtable, const int32_t *ids, const void *dout, enum dtype act, int64_t T, int64_t H, int64_t v0, int64_t V, cudaStream_t s) {
        if (T == 0 || H == 0)
                return 0;
        embed_bwd<<<(unsigned)T, THREADS, 0, s>>>(dtable, ids, dout, act, T, H, v0, V);
        return launched();
}
