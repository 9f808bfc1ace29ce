/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the C side of the backend asks of the .cu files: plain values in, 0 or a negative errno out, everything enqueued on a stream. */
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A matrix [rows, cols] to be quantised; row, col: bytes, or NULL where that form is not wanted. */
struct quantize_launch {
        const void *x;
        bool f32;          /* else BF16 */
        bool e5m2;         /* else E4M3 */
        bool blocks;       /* one scale a 128x128 block, else one a row (column) of it */
        bool pow2;
        int64_t rows, cols;
        uint8_t *row, *col;
        float *row_scale, *col_scale;
        int64_t row_ld, col_ld; /* of the scale grids, as dev.h lays them out */
        float *amax;
        unsigned long long *bad;
        unsigned long long index;
        /* One scale for the whole matrix: its amax as bits, found before; given: the quantisation scale to use all the same. NULL: as `blocks` says. */
        const uint32_t *whole;
        const float *given;
        /* x is FP8 of the target's format, dequantised by the scale of (r, kb) at kb * x_scale_ld + r (f32 is set); NULL: not so. */
        const float *x_scale;
        int64_t x_scale_ld;
};

int cuda_launch_quantize(const struct quantize_launch *q, cudaStream_t s);
/* q->x is what went into the norm. */
int cuda_launch_norm_quant(const struct quantize_launch *q, const float *rstd, const float *w, cudaStream_t s);
/* Gradients of q, k and v, the first two of them of rotated heads of D; -EOPNOTSUPP: by themselves. */
int cuda_launch_rope_quant_bwd(const struct quantize_launch *const *q, const int32_t *pos, double theta, int64_t D, int sms, cudaStream_t s);
/* Up to QUANTIZE_MANY matrices of BF16 in 128x128 blocks, both forms. */
#define QUANTIZE_MANY 8
int cuda_launch_quantize_many(int n, const struct quantize_launch *q, cudaStream_t s);
/* qg->x, qu->x: SwiGLU's inputs in BF16. */
int cuda_launch_swiglu_cache(const struct quantize_launch *qg, const struct quantize_launch *qu, const struct quantize_launch *qa, cudaStream_t s);
/* qg->x, qu->x: SwiGLU's inputs in FP8 with x_scale; qa->x: the gradient of its output in BF16. */
int cuda_launch_swiglu_cached_bwd(const struct quantize_launch *qa, const struct quantize_launch *qg, const struct quantize_launch *qu, cudaStream_t s);

/* The tiles that kernels exist for. A block of two or three consumer warpgroups makes m rows and n columns; two blocks share what they have in common. */
enum gemm_tile { TILE_256X128, TILE_128X192, TILE_128X128, TILE_192X128, N_GEMM_TILES };

struct gemm_tile_shape {
        int m, n;
        bool share_a; /* the pair lies side by side and shares A's rows, else one above the other and shares B's */
        int band;     /* pairs along M that run together, for the second-level cache */
        int groups;   /* consumer warpgroups */
};
extern const struct gemm_tile_shape gemm_tile_shapes[N_GEMM_TILES];

enum gemm_out { GEMM_BF16, GEMM_F32, GEMM_F32_ADD };

/* A further pair of operands. */
struct gemm_more {
        CUtensorMap a, b, a_scale;
        const float *b_blocks;
        int64_t b_blocks_ld;
        int K;
};

/* d[M,N] (+)= a[M,K] b[N,K]^T, E4M3, K contiguous. */
struct gemm_launch {
        CUtensorMap a, b, a_scale, b_scale, d_map; /* boxes: see gemm_maps in gemm.c; b_scale only when !b_blocks, d_map only for BF16 */
        const float *b_blocks;              /* scale of block (n, k) at n * b_blocks_ld + k; NULL: one a row and 128 of K, by map */
        int64_t b_blocks_ld;
        void *d;
        enum gemm_out out;
        int M, N, K;
        /* More pairs of operands whose products are added, for BF16 by b_blocks; K is of all together. */
        int n_more;
        struct gemm_more more[2];
        int K_first; /* of the pair that stands above */
        enum gemm_tile tile;
        bool staged; /* without b_blocks: the tile leaves through shared memory, by the copy engine (with them BF16 does so and FP32 does not) */
        int sms;
};

int cuda_launch_gemm(const struct gemm_launch *g, cudaStream_t s);

/* Several products of one K in one launch, FP32 out, a scale a row and 128 of K on both sides. */
#define GEMM_GROUP 4
struct gemm_member {
        CUtensorMap a, b, a_scale, b_scale;
        float *d;
        int M, N;
};

struct gemm_group {
        int n;
        struct gemm_member of[GEMM_GROUP];
        enum gemm_out out;
        int K;
        enum gemm_tile tile;
        int sms;
};

int cuda_launch_gemm_group(const struct gemm_group *g, cudaStream_t s);

#ifdef __cplusplus
}
#endif
