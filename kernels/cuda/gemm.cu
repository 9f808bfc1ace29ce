/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FP8 matrix products with scales every 128 along the contraction: persistent blocks in clusters of two, one producer warp that drives the copy engine, two consumer warpgroups
 * on wgmma.  The tensor core keeps about 14 bits of a sum, so its partial sums are taken out every 128 of K and added in FP32 with both scales applied
 * (DeepSeek-V3, arXiv 2412.19437 section 3.3.2).  While one warpgroup promotes, the other has the tensor core.
 *
 * What bounds the tile: an SM multiplies 4096 pairs a clock, so a 128x128 tile needs 64 bytes a clock from the second-level cache, more than that gives; 256x128 whose A is fetched
 * once for a pair of blocks needs 32.
 */
#include <cuda_bf16.h>
#include <errno.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

#define BK 128

const struct gemm_tile_shape gemm_tile_shapes[N_GEMM_TILES] = { { 256, 128, true, 8, 2 }, { 128, 192, false, 8, 2 }, { 128, 128, true, 16, 2 }, { 192, 128, true, 8, 3 } };

/*
 * GROUPS: consumer warpgroups.  SETS: sets of 64 rows that each of them makes.  STAGED: the tile leaves through shared memory by the copy engine, while the next one begins; BF16 all at once, FP32 a set at
 * a time in rows that are padded so that the stores meet no bank twice.
 */
template <int GROUPS, int SETS, int BN, bool SHARE_A, bool VECTOR, bool STAGED> struct shape {
        static constexpr int groups = GROUPS, threads = GROUPS * 128 + 128;
        static constexpr int bm = GROUPS * 64 * SETS;
        static constexpr int a_bytes = bm * BK, b_bytes = BN * BK, sa_bytes = bm * 4, sb_bytes = VECTOR ? BN * 4 : 0;
        static constexpr int stage_bytes = a_bytes + b_bytes;
        static constexpr int out_row_bytes = VECTOR ? BN * 4 + 32 : 128;
        static constexpr int out_bytes = !STAGED ? 0 : VECTOR ? 64 * out_row_bytes : 64 * SETS * BN * 2; /* a warpgroup */
        static constexpr int stages = ((STAGED ? 225 : 208) * 1024 - GROUPS * out_bytes) / (stage_bytes + sa_bytes + BN * 4);
        static constexpr int out_at = stages * stage_bytes;
        static constexpr int scales_at = out_at + GROUPS * out_bytes;
        static constexpr int barriers_at = scales_at + stages * (sa_bytes + sb_bytes);
        static constexpr int shared_bytes = barriers_at + stages * 16 + 1024; /* 1024: to align, which the swizzle needs */
        static_assert(stages >= 2 && shared_bytes <= 227 * 1024, "does not fit into shared memory");
};

struct args {
        const float *b_blocks;
        int64_t b_blocks_ld;
        void *d;
        int out, M, N, K, band;
};

/* Further pairs of operands; slices counts those of every pair, the first one's at 0. */
struct pairs {
        static constexpr bool many = true, grouped = false;
        struct gemm_more more[2];
        int n, K[3], slices[3];
};

struct no_pairs {
        static constexpr bool many = false, grouped = false;
};

/* Several products: member i has the pairs of tiles from first[i] on. */
struct members {
        static constexpr bool many = false, grouped = true;
        struct gemm_member of[GEMM_GROUP];
        int n, first[GEMM_GROUP];
};

struct tile_at {
        int m, n;
};

/* t / d for t < 2^22, without the long way that integers take. */
__device__ __forceinline__ int quotient(int t, int d) {
        int q = (int)__fdividef((float)t, (float)d);

        q -= q * d > t;
        return q + ((q + 1) * d <= t);
}

/* Pair number t: down a band of `band` pairs, then the next column. */
template <class S, int BN, bool SHARE_A> __device__ __forceinline__ bool tile_in(int M, int N, int band, int t, uint32_t rank, struct tile_at *ret) {
        const int step_m = S::bm * (SHARE_A ? 1 : 2), step_n = BN * (SHARE_A ? 2 : 1);
        const int rows = (M + step_m - 1) / step_m, cols = (N + step_n - 1) / step_n;
        const int in_band = band * cols, number = quotient(t, in_band), first = number * band, height = min(band, rows - first), left = t - number * in_band;
        const int col = quotient(left, height);

        if (t >= rows * cols)
                return false;
        ret->m = (first + left - col * height) * step_m + (SHARE_A ? 0 : (int)rank * S::bm);
        ret->n = col * step_n + (SHARE_A ? (int)rank * BN : 0);
        return true;
}

/* The same over all members; *member is the one that the tile belongs to. */
template <class S, int BN, bool SHARE_A, class MORE> __device__ __forceinline__ bool tile_of(const struct args &g, const MORE &p, int t, uint32_t rank, struct tile_at *ret, int *member) {
        *member = 0;
        if constexpr (MORE::grouped) {
                while (*member + 1 < p.n && t >= p.first[*member + 1])
                        ++*member;
                return tile_in<S, BN, SHARE_A>(p.of[*member].M, p.of[*member].N, g.band, t - p.first[*member], rank, ret);
        } else {
                return tile_in<S, BN, SHARE_A>(g.M, g.N, g.band, t, rank, ret);
        }
}

/* Stage and phase of a ring. */
struct ring {
        int stage;
        uint32_t phase;
};

template <int STAGES> __device__ __forceinline__ void ring_next(struct ring *r) {
        if (++r->stage == STAGES) {
                r->stage = 0;
                r->phase ^= 1;
        }
}

/* Slices of one pair of operands, for one tile. */
template <class S, int BN, bool SHARE_A, bool VECTOR>
__device__ __forceinline__ void load_slices(int K, struct tile_at at, const CUtensorMap *a, const CUtensorMap *b, const CUtensorMap *sa, const CUtensorMap *sb, uint32_t base,
                                            uint32_t rank, struct ring *r) {
        for (int k = 0; k < K; k += BK, ring_next<S::stages>(r)) {
                const uint32_t full = base + S::barriers_at + r->stage * 16, to = base + r->stage * S::stage_bytes;
                const uint32_t scales = base + S::scales_at + r->stage * (S::sa_bytes + S::sb_bytes);

                barrier_wait(full + 8, r->phase);
                barrier_expect(full, S::stage_bytes + S::sa_bytes + S::sb_bytes);
                if (SHARE_A) {
                        tma_load_pair(to + rank * (S::a_bytes / 2), a, k, at.m + rank * (S::bm / 2), full);
                        tma_load(to + S::a_bytes, b, k, at.n, full);
                        tma_load_pair(scales + rank * (S::sa_bytes / 2), sa, at.m + rank * (S::bm / 2), k / BK, full);
                        if (VECTOR)
                                tma_load(scales + S::sa_bytes, sb, at.n, k / BK, full);
                } else {
                        tma_load(to, a, k, at.m, full);
                        tma_load_pair(to + S::a_bytes + rank * (S::b_bytes / 2), b, k, at.n + rank * (BN / 2), full);
                        tma_load(scales, sa, at.m, k / BK, full);
                        if (VECTOR)
                                tma_load_pair(scales + S::sa_bytes + rank * (S::sb_bytes / 2), sb, at.n + rank * (BN / 2), k / BK, full);
                }
        }
}

template <class S, int BN, bool SHARE_A, bool VECTOR, class MORE>
__device__ __forceinline__ void produce(const struct args &g, const MORE &p, const CUtensorMap *a, const CUtensorMap *b, const CUtensorMap *sa, const CUtensorMap *sb, uint32_t base,
                                        uint32_t rank) {
        const int pairs = gridDim.x / 2;
        struct ring r = { 0, 1 };
        struct tile_at at;
        int member;

        for (int t = blockIdx.x / 2; tile_of<S, BN, SHARE_A>(g, p, t, rank, &at, &member); t += pairs) {
                if constexpr (MORE::grouped) {
                        const struct gemm_member &x = p.of[member];

                        load_slices<S, BN, SHARE_A, VECTOR>(g.K, at, &x.a, &x.b, &x.a_scale, &x.b_scale, base, rank, &r);
                } else if constexpr (MORE::many) {
                        load_slices<S, BN, SHARE_A, VECTOR>(p.K[0], at, a, b, sa, sb, base, rank, &r);
                        for (int i = 0; i < p.n; i++)
                                load_slices<S, BN, SHARE_A, VECTOR>(p.K[i + 1], at, &p.more[i].a, &p.more[i].b, &p.more[i].a_scale, sb, base, rank, &r);
                } else {
                        load_slices<S, BN, SHARE_A, VECTOR>(g.K, at, a, b, sa, sb, base, rank, &r);
                }
        }
}

/* Runs of columns that lie in one 128x128 block of b, wherever the tile begins. */
template <int BN> constexpr int chunks = BN % 128 == 0 ? BN / 128 : BN / 64;

/* acc += scale * part.  A thread has rows r and r + 8 and, in each group of 8 columns, two neighbouring ones. */
template <int BN, bool VECTOR>
__device__ __forceinline__ void promote(float (&acc)[BN / 2], float (&part)[BN / 2], float s0, float s1, const float *sb, const float (&blocks)[chunks<BN>]) {
        /* Nothing of part is looked at before the tensor core is done with it. */
#pragma unroll
        for (int i = 0; i < BN / 2; i++)
                asm volatile("" : "+f"(part[i])::"memory");
        if (VECTOR) {
#pragma unroll
                for (int j = 0; j < BN / 8; j++) {
                        const float2 c = *(const float2 *)(sb + j * 8);

                        acc[j * 4 + 0] += (part[j * 4 + 0] * c.x) * s0;
                        acc[j * 4 + 1] += (part[j * 4 + 1] * c.y) * s0;
                        acc[j * 4 + 2] += (part[j * 4 + 2] * c.x) * s1;
                        acc[j * 4 + 3] += (part[j * 4 + 3] * c.y) * s1;
                }
        } else {
#pragma unroll
                for (int j = 0; j < BN / 8; j++) {
                        const float c0 = s0 * blocks[j * chunks<BN> * 8 / BN], c1 = s1 * blocks[j * chunks<BN> * 8 / BN];

                        acc[j * 4 + 0] += part[j * 4 + 0] * c0;
                        acc[j * 4 + 1] += part[j * 4 + 1] * c0;
                        acc[j * 4 + 2] += part[j * 4 + 2] * c1;
                        acc[j * 4 + 3] += part[j * 4 + 3] * c1;
                }
        }
}

__device__ __forceinline__ uint32_t pack_bf16(float lo, float hi) {
        const __nv_bfloat162 p = __floats2bfloat162_rn(lo, hi);

        return *(const uint32_t *)&p;
}

template <int BN> __device__ __forceinline__ void store_f32(const struct args &g, const float (&acc)[BN / 2], int row, int n0, int half, int lane) {
        const bool odd = lane & 1;

#pragma unroll
        for (int j = 0; j < BN / 8; j += 2) {
                const float e0 = acc[j * 4 + half * 2], e1 = acc[j * 4 + half * 2 + 1], o0 = acc[j * 4 + 4 + half * 2], o1 = acc[j * 4 + 4 + half * 2 + 1];
                const float x = __shfl_xor_sync(0xffffffff, odd ? e0 : o0, 1), y = __shfl_xor_sync(0xffffffff, odd ? e1 : o1, 1);
                const float v0 = odd ? x : e0, v1 = odd ? y : e1, v2 = odd ? o0 : x, v3 = odd ? o1 : y;
                const int col = n0 + (j + odd) * 8 + (lane & 2) * 2;
                float *d = (float *)g.d + (int64_t)row * g.N + col;

                if (row < g.M && col < g.N) {
                        if (g.out == GEMM_F32)
                                store_float4(d, v0, v1, v2, v3);
                        else
                                add_float4(d, v0, v1, v2, v3);
                }
        }
}

/* The warpgroup's part into `out`, in panels of 64 columns with the swizzle of the map, and off. */
template <class S, int SETS, int BN>
__device__ __forceinline__ void stage_bf16(const CUtensorMap *d, const float (&acc)[SETS][BN / 2], struct tile_at at, uint32_t out, int group, int warp, int lane) {
        const bool first = warp % 4 == 0 && lane == 0;
        const int r = warp % 4 * 16 + lane % 16; /* of the matrices that stmatrix takes from this lane's address */

        if (first)
                store_wait_read();
        group_sync(group);
#pragma unroll
        for (int s = 0; s < SETS; s++)
#pragma unroll
                for (int j = 0; j < BN / 8; j += 2) {
                        const uint32_t panel = out + j / 8 * (SETS * 64 * 128) + (s * 64 + r) * 128;

                        store_matrices(panel + ((j % 8 + lane / 16) ^ r % 8) * 16, pack_bf16(acc[s][j * 4], acc[s][j * 4 + 1]), pack_bf16(acc[s][j * 4 + 2], acc[s][j * 4 + 3]),
                                       pack_bf16(acc[s][j * 4 + 4], acc[s][j * 4 + 5]), pack_bf16(acc[s][j * 4 + 6], acc[s][j * 4 + 7]));
                }
        async_proxy_fence();
        group_sync(group);
        if (first) {
#pragma unroll
                for (int i = 0; i < BN / 64; i++)
                        tma_store(d, at.n + i * 64, at.m + group * 64 * SETS, out + i * (SETS * 64 * 128));
                store_commit();
        }
}

/* Set after set into `out`, from where the copy engine adds each row to memory. */
template <class S, int SETS, int BN>
__device__ __forceinline__ void stage_add(const struct args &g, const float (&acc)[SETS][BN / 2], struct tile_at at, uint32_t out, int group, int warp, int lane) {
        const int thread = threadIdx.x % 128;
        const uint32_t to = out + (warp % 4 * 16 + lane / 4) * S::out_row_bytes + (lane & 3) * 8;

#pragma unroll
        for (int s = 0; s < SETS; s++) {
                const int row = at.m + (group * SETS + s) * 64 + thread;

                store_wait_read();
                group_sync(group);
#pragma unroll
                for (int j = 0; j < BN / 8; j++)
#pragma unroll
                        for (int half = 0; half < 2; half++)
                                store_shared2(to + half * 8 * S::out_row_bytes + j * 32, acc[s][j * 4 + half * 2], acc[s][j * 4 + half * 2 + 1]);
                async_proxy_fence();
                group_sync(group);
                if (thread < 64 && row < g.M && at.n < g.N)
                        bulk_add((float *)g.d + (int64_t)row * g.N + at.n, out + thread * S::out_row_bytes, min(BN, g.N - at.n) * 4);
                store_commit();
        }
}

__device__ __forceinline__ int all_slices(const struct no_pairs &) {
        return 0;
}

__device__ __forceinline__ int all_slices(const struct members &) {
        return 0;
}

__device__ __forceinline__ int all_slices(const struct pairs &p) {
        return p.slices[0] + p.slices[1] + (p.n > 1 ? p.slices[2] : 0);
}

template <class S, int SETS, int BN, bool SHARE_A, bool VECTOR, bool STAGED, class MORE>
__device__ __forceinline__ void consume(const struct args &g, const MORE &p, const CUtensorMap *d, uint8_t *shared, uint32_t base, uint32_t rank) {
        const int pairs = gridDim.x / 2, lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0), group = warp / 4;
        const int row = group * 64 * SETS + warp % 4 * 16 + lane / 4; /* + 64 a set, + 8 */
        constexpr bool many = MORE::many;
        const int slices = (g.K + BK - 1) / BK, last_block = (g.N - 1) / 128;
        const uint64_t first_a = tile_descriptor(base + group * 64 * SETS * BK), first_b = tile_descriptor(base + S::a_bytes);
        const float *first_sa = (const float *)(shared + S::scales_at) + row;
        const float *first_sb = (const float *)(shared + S::scales_at + S::sa_bytes) + (lane & 3) * 2;
        struct ring r = { 0, 0 };
        struct tile_at at;
        int member;

        for (int t = blockIdx.x / 2; tile_of<S, BN, SHARE_A>(g, p, t, rank, &at, &member); t += pairs) {
                float acc[SETS][BN / 2], blocks[chunks<BN>] = {}, next[chunks<BN>] = {};
                const float *from[chunks<BN>];
                int left = slices, pair = 0; /* of the pair whose scales come next */

                if constexpr (many)
                        left = p.slices[0];
#pragma unroll
                for (int s = 0; s < SETS; s++)
#pragma unroll
                        for (int i = 0; i < BN / 2; i++)
                                acc[s][i] = 0;
#pragma unroll
                for (int i = 0; !VECTOR && i < chunks<BN>; i++) {
                        from[i] = g.b_blocks + min((at.n + i * (BN / chunks<BN>)) / 128, last_block) * g.b_blocks_ld;
                        next[i] = __ldg(from[i]);
                }
                for (int k = many ? all_slices(p) : slices; k > 0; k--, ring_next<S::stages>(&r)) {
                        const uint32_t full = base + S::barriers_at + r.stage * 16;
                        const uint64_t da = first_a + r.stage * (S::stage_bytes / 16), db = first_b + r.stage * (S::stage_bytes / 16);
                        const float *sa = first_sa + r.stage * ((S::sa_bytes + S::sb_bytes) / 4), *sb = first_sb + r.stage * ((S::sa_bytes + S::sb_bytes) / 4);

#pragma unroll
                        for (int i = 0; !VECTOR && i < chunks<BN>; i++) {
                                blocks[i] = next[i];
                                if (!many || left > 1) {
                                        from[i] += k > 1; /* the last slice reads its own again */
                                } else if constexpr (many) {
                                        if (pair < p.n)
                                                from[i] = p.more[pair].b_blocks + min((at.n + i * (BN / chunks<BN>)) / 128, last_block) * p.more[pair].b_blocks_ld;
                                }
                                next[i] = __ldg(from[i]);
                        }
                        if constexpr (many) {
                                if (--left == 0 && pair < p.n)
                                        left = p.slices[++pair];
                        }
                        barrier_wait(full, r.phase);
#pragma unroll
                        for (int s = 0; s < SETS; s++) {
                                float part[BN / 2];
                                const float s0 = sa[s * 64], s1 = sa[s * 64 + 8];

                                wgmma_fence();
#pragma unroll
                                for (int i = 0; i < BK / 32; i++)
                                        wgmma<BN>::run(part, da + s * (64 * BK / 16) + i * 2, db + i * 2, i > 0);
                                wgmma_commit();
                                wgmma_wait();
                                if (!VECTOR && s == SETS - 1 && lane < 2)
                                        barrier_arrive_at(full + 8, lane);
                                promote<BN, VECTOR>(acc[s], part, s0, s1, sb, blocks);
                        }
                        if (VECTOR) {
                                __syncwarp();
                                if (lane < 2)
                                        barrier_arrive_at(full + 8, lane);
                        }
                }
                if constexpr (STAGED && VECTOR) {
                        stage_add<S, SETS, BN>(g, acc, at, base + S::out_at + group * S::out_bytes, group, warp, lane);
                } else if constexpr (STAGED) {
                        stage_bf16<S, SETS, BN>(d, acc, at, base + S::out_at + group * S::out_bytes, group, warp, lane);
                } else {
                        struct args out = g;

                        if constexpr (MORE::grouped) {
                                out.d = p.of[member].d;
                                out.M = p.of[member].M;
                                out.N = p.of[member].N;
                        }
#pragma unroll
                        for (int i = 0; i < 2 * SETS; i++) {
                                const int s = i / 2, half = i % 2, at_row = at.m + row + s * 64 + half * 8;

                                store_f32<BN>(out, acc[s], at_row, at.n, half, lane);
                        }
                }
        }
        if (STAGED)
                store_wait_read();
}

template <int GROUPS, int SETS, int BN, bool SHARE_A, bool VECTOR, bool STAGED, class MORE>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(GROUPS * 128 + 128, 1)
gemm(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, const __grid_constant__ CUtensorMap sa, const __grid_constant__ CUtensorMap sb,
     const __grid_constant__ CUtensorMap d, const __grid_constant__ struct args g, const __grid_constant__ MORE p) {
        using S = shape<GROUPS, SETS, BN, SHARE_A, VECTOR, STAGED>;
        extern __shared__ uint8_t raw[];
        uint8_t *shared = raw + (-shared_address(raw) & 1023);
        const uint32_t base = shared_address(shared), rank = cluster_rank();

        if (threadIdx.x == 0) {
                for (int i = 0; i < S::stages; i++) {
                        barrier_init(base + S::barriers_at + i * 16, 1);
                        barrier_init(base + S::barriers_at + i * 16 + 8, 2 * 4 * GROUPS);
                }
                barrier_init_fence();
        }
        cluster_sync();
        if (threadIdx.x >= GROUPS * 128) {
                registers_shrink<GROUPS == 2 ? 40 : 32>();
                if (threadIdx.x == GROUPS * 128)
                        produce<S, BN, SHARE_A, VECTOR>(g, p, &a, &b, &sa, &sb, base, rank);
                __syncwarp();
                cluster_sync();
        } else {
                registers_grow<GROUPS == 2 ? 232 : 160>();
                consume<S, SETS, BN, SHARE_A, VECTOR, STAGED>(g, p, &d, shared, base, rank);
                cluster_sync();
        }
}

template <class S, int BN, bool SHARE_A> static int64_t pairs_of(int M, int N) {
        const int step_m = S::bm * (SHARE_A ? 1 : 2), step_n = BN * (SHARE_A ? 2 : 1);

        return (int64_t)((M + step_m - 1) / step_m) * ((N + step_n - 1) / step_n);
}

template <int GROUPS, int SETS, int BN, bool SHARE_A, bool VECTOR, bool STAGED, class MORE> static int launch_pairs(const struct gemm_launch *l, const MORE &p, int64_t pairs, cudaStream_t s) {
        using S = shape<GROUPS, SETS, BN, SHARE_A, VECTOR, STAGED>;
        static bool ready; /* the attribute is the function's for good; setting it twice does no harm */
        const struct args g = { l->b_blocks, l->b_blocks_ld, l->d, l->out, l->M, l->N, l->K, gemm_tile_shapes[l->tile].band };
        const int grid = (int)(pairs < l->sms / 2 ? pairs : l->sms / 2) * 2;

        if (!ready && cudaFuncSetAttribute(gemm<GROUPS, SETS, BN, SHARE_A, VECTOR, STAGED, MORE>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::shared_bytes) != cudaSuccess)
                return -EIO;
        ready = true;
        gemm<GROUPS, SETS, BN, SHARE_A, VECTOR, STAGED, MORE><<<grid, S::threads, S::shared_bytes, s>>>(l->a, l->b, l->a_scale, l->b_scale, l->d_map, g, p);
        return cudaGetLastError() == cudaSuccess ? 0 : -EIO;
}

template <int GROUPS, int SETS, int BN, bool SHARE_A, bool VECTOR, bool STAGED, class MORE> static int launch_with(const struct gemm_launch *l, const MORE &p, cudaStream_t s) {
        return launch_pairs<GROUPS, SETS, BN, SHARE_A, VECTOR, STAGED>(l, p, pairs_of<shape<GROUPS, SETS, BN, SHARE_A, VECTOR, STAGED>, BN, SHARE_A>(l->M, l->N), s);
}

template <int GROUPS, int SETS, int BN, bool SHARE_A, bool VECTOR, bool STAGED> static int launch(const struct gemm_launch *l, cudaStream_t s) {
        return launch_with<GROUPS, SETS, BN, SHARE_A, VECTOR, STAGED>(l, no_pairs{}, s);
}

/* Several pairs of operands. */
template <int GROUPS, int SETS, int BN, bool SHARE_A> static int launch_sum(const struct gemm_launch *l, cudaStream_t s) {
        struct pairs p;

        p.n = l->n_more;
        for (int i = 0; i <= p.n; i++) {
                p.K[i] = i ? l->more[i - 1].K : l->K_first;
                p.slices[i] = (p.K[i] + BK - 1) / BK;
                if (i)
                        p.more[i - 1] = l->more[i - 1];
        }
        return launch_with<GROUPS, SETS, BN, SHARE_A, false, true>(l, p, s);
}

extern "C" int cuda_launch_gemm(const struct gemm_launch *l, cudaStream_t s) {
        const bool vector = !l->b_blocks, staged = vector ? l->staged : l->out == GEMM_BF16;

        if (l->n_more > 0) {
                if (vector || !staged || l->n_more > 2)
                        return -EINVAL;
                return l->tile == TILE_256X128 ? launch_sum<2, 2, 128, true>(l, s) : l->tile == TILE_128X192 ? launch_sum<2, 1, 192, false>(l, s) :
                       l->tile == TILE_192X128 ? launch_sum<3, 1, 128, true>(l, s) : launch_sum<2, 1, 128, true>(l, s);
        }
        switch (l->tile) {
        case TILE_256X128:
                if (vector)
                        return staged ? launch<2, 2, 128, true, true, true>(l, s) : launch<2, 2, 128, true, true, false>(l, s);
                return staged ? launch<2, 2, 128, true, false, true>(l, s) : launch<2, 2, 128, true, false, false>(l, s);
        case TILE_128X192:
                if (vector) /* FP32 does not fit beside the stages */
                        return launch<2, 1, 192, false, true, false>(l, s);
                return staged ? launch<2, 1, 192, false, false, true>(l, s) : launch<2, 1, 192, false, false, false>(l, s);
        case TILE_128X128:
                if (vector)
                        return staged ? launch<2, 1, 128, true, true, true>(l, s) : launch<2, 1, 128, true, true, false>(l, s);
                return staged ? launch<2, 1, 128, true, false, true>(l, s) : launch<2, 1, 128, true, false, false>(l, s);
        case TILE_192X128:
                if (vector)
                        return staged ? launch<3, 1, 128, true, true, true>(l, s) : launch<3, 1, 128, true, true, false>(l, s);
                return staged ? launch<3, 1, 128, true, false, true>(l, s) : launch<3, 1, 128, true, false, false>(l, s);
        default:
                return -EINVAL;
        }
}

template <int GROUPS, int SETS, int BN, bool SHARE_A> static int launch_group(const struct gemm_group *g, cudaStream_t s) {
        const struct gemm_launch l = { .out = g->out, .M = g->of[0].M, .N = g->of[0].N, .K = g->K, .tile = g->tile, .sms = g->sms };
        struct members p;
        int64_t pairs = 0;

        p.n = g->n;
        for (int i = 0; i < g->n; i++) {
                p.of[i] = g->of[i];
                p.first[i] = (int)pairs;
                pairs += pairs_of<shape<GROUPS, SETS, BN, SHARE_A, true, false>, BN, SHARE_A>(g->of[i].M, g->of[i].N);
        }
        return pairs < 1 << 22 ? launch_pairs<GROUPS, SETS, BN, SHARE_A, true, false>(&l, p, pairs, s) : -EOPNOTSUPP;
}

extern "C" int cuda_launch_gemm_group(const struct gemm_group *g, cudaStream_t s) {
        switch (g->tile) {
        case TILE_256X128:
                return launch_group<2, 2, 128, true>(g, s);
        case TILE_128X192:
                return launch_group<2, 1, 192, false>(g, s);
        case TILE_128X128:
                return launch_group<2, 1, 128, true>(g, s);
        case TILE_192X128:
                return launch_group<3, 1, 128, true>(g, s);
        default:
                return -EINVAL;
        }
}
