/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RoPE's backward with the quantisers of what comes out, the gradients of q, k and v: a block has 128 tokens and goes through columns of tiles of all three, so that the angles of its tokens are
 * made once.  The arithmetic is elementwise.cu's and the quantiser's, with the same roundings; the rotated gradients never see memory.
 */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/tile.cuh"

#define MAX_HALF 64

struct rope_quant {
        struct quantize_launch q[3]; /* of q, k, v */
        const int32_t *pos;
        double theta;
        int half;
        int first[4]; /* of the tiles in one row of them, those of matrix i begin at first[i] */
};

struct rope_room {
        struct both_room tile;
        float cs[TILE * MAX_HALF], sn[TILE * MAX_HALF];
};

/* Place of pair i of a token: four neighbours together, then the other four of every eight, so that lanes that read four at a time meet no bank twice. */
__device__ __forceinline__ int angle_at(int token, int i, int half) {
        return token * half + i % 8 / 4 * (half / 2) + i / 8 * 4 + i % 4;
}

__device__ __forceinline__ void make_angles(const struct rope_quant &p, struct rope_room *room, int64_t t0) {
        const int i = threadIdx.x % p.half;
        const double f = pow(p.theta, -2.0 * (double)i / (double)(2 * p.half));

        for (int t = threadIdx.x / p.half; t < TILE; t += TILE_THREADS / p.half) {
                double c = 1, s = 0;

                if (t0 + t < p.q[0].rows)
                        sincos((double)p.pos[t0 + t] * f, &s, &c);
                room->cs[angle_at(t, i, p.half)] = (float)c;
                room->sn[angle_at(t, i, p.half)] = -(float)s;
        }
}

/* Eight columns of a row: lanes half / 8 apart have the two parts of each pair. */
__device__ __forceinline__ uint4 rotated(const uint4 &v, const struct rope_room *room, int token, int lane, int half) {
        const int apart = half / 8, at = angle_at(token, lane % apart * 8, half);
        const bool second = lane & apart;
        uint32_t t[4];

#pragma unroll
        for (int h = 0; h < 2; h++) {
                const float4 c4 = *(const float4 *)&room->cs[at + h * (half / 2)], s4 = *(const float4 *)&room->sn[at + h * (half / 2)];
                const float c[4] = { c4.x, c4.y, c4.z, c4.w }, s[4] = { s4.x, s4.y, s4.z, s4.w };

#pragma unroll
                for (int j = 0; j < 2; j++) {
                        const uint32_t mine = word(v, 2 * h + j), other = __shfl_xor_sync(0xffffffff, mine, apart);
                        float x[2];

#pragma unroll
                        for (int k = 0; k < 2; k++) {
                                const float turned = half_of(other, k) * s[2 * j + k], stays = half_of(mine, k) * c[2 * j + k];

                                x[k] = second ? stays + turned : stays - turned;
                        }
                        t[2 * h + j] = pack2(x[0], x[1]);
                }
        }
        return make_uint4(t[0], t[1], t[2], t[3]);
}

__global__ void __launch_bounds__(TILE_THREADS, 2) rope_quant_bwd(const __grid_constant__ struct rope_quant p) {
        extern __shared__ __align__(16) uint8_t shared[];
        struct rope_room *room = (struct rope_room *)shared;
        const int lane = threadIdx.x % 16, slot = threadIdx.x / 16;
        const int64_t tr = blockIdx.y, r0 = tr * TILE + slot * 4, rows = p.q[0].rows;

        make_angles(p, room, tr * TILE);
        __syncthreads();
#pragma unroll 1
        for (int n = blockIdx.x; n < p.first[3]; n += gridDim.x) {
                const int which = n >= p.first[2] ? 2 : n >= p.first[1] ? 1 : 0;
                const struct quantize_launch &q = p.q[which];
                const int64_t tc = n - p.first[which], c = tc * TILE + lane * 8;
                uint4 v[4];

#pragma unroll
                for (int i = 0; i < 4; i++)
                        v[i] = r0 + i < rows && c < q.cols ? __ldcs((const uint4 *)((const uint16_t *)q.x + (r0 + i) * q.cols + c)) : make_uint4(0, 0, 0, 0);
                if (which < 2)
#pragma unroll
                        for (int i = 0; i < 4; i++)
                                v[i] = rotated(v[i], room, slot * 4 + i, lane, p.half);
                emit_both(q, v, &room->tile, tr, tc);
                __syncthreads();
        }
}

extern "C" int cuda_launch_rope_quant_bwd(const struct quantize_launch *const *q, const int32_t *pos, double theta, int64_t D, int sms, cudaStream_t s) {
        struct rope_quant p = { { *q[0], *q[1], *q[2] }, pos, theta, (int)(D / 2), { 0, 0, 0, 0 } };
        const int64_t tr = (q[0]->rows + TILE - 1) / TILE;
        int64_t blocks;

        if (p.half != 16 && p.half != 32 && p.half != 64)
                return -EOPNOTSUPP;
        for (int i = 0; i < 3; i++) {
                if (!both_fit(q[i]) || q[i]->cols % D != 0 || q[i]->rows != q[0]->rows)
                        return -EOPNOTSUPP;
                p.first[i + 1] = p.first[i] + (int)((q[i]->cols + TILE - 1) / TILE);
        }
        if (tr == 0 || p.first[3] == 0)
                return 0;
        blocks = 2 * sms / tr < 1 ? 1 : 2 * sms / tr < p.first[3] ? 2 * sms / tr : p.first[3];
        if (cudaFuncSetAttribute(rope_quant_bwd, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(struct rope_room)) != cudaSuccess)
                return -EIO;
        rope_quant_bwd<<<dim3((unsigned)blocks, (unsigned)tr), TILE_THREADS, sizeof(struct rope_room), s>>>(p);
        return launched();
}
