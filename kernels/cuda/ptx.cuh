/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The few PTX instructions that C++ has no words for (PTX ISA 9.0: mbarrier, cp.async.bulk.tensor, wgmma, setmaxnreg, cluster barriers). */
#include <cuda.h>
#include <stdint.h>

__device__ __forceinline__ uint32_t shared_address(const void *p) {
        return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ __forceinline__ uint32_t cluster_rank() {
        uint32_t r;

        asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
        return r;
}

__device__ __forceinline__ void cluster_sync() {
        asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void barrier_init(uint32_t bar, uint32_t count) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

/* Other threads of the cluster and the copy engine see the initialised barriers. */
__device__ __forceinline__ void barrier_init_fence() {
        asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void barrier_expect(uint32_t bar, uint32_t bytes) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

/*
 * On the barrier at the same place of block `rank` in this cluster.  Nothing was written that the other block should see, only read: the release of the default scope is enough.
 * (.release.cluster becomes a fence of the whole GPU, MEMBAR.ALL.GPU, in every step: half the speed.)
 */
__device__ __forceinline__ void barrier_arrive_at(uint32_t bar, uint32_t rank) {
        asm volatile("{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
                     "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(bar), "r"(rank) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint32_t bar, uint32_t parity) {
        asm volatile("{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(bar), "r"(parity) : "memory");
}

__device__ __forceinline__ void tma_prefetch_map(const CUtensorMap *map) {
        asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* A box at (x, y) of map, into this block's shared memory. */
__device__ __forceinline__ void tma_load(uint32_t dst, const CUtensorMap *map, int x, int y, uint32_t bar) {
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(dst), "l"(map), "r"(x), "r"(y), "r"(bar)
                     : "memory");
}

/* The same into both blocks of the pair, each of whose barriers counts the bytes. */
__device__ __forceinline__ void tma_load_pair(uint32_t dst, const CUtensorMap *map, int x, int y, uint32_t bar) {
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(dst), "l"(map),
                     "r"(x), "r"(y), "r"(bar), "h"((uint16_t)3)
                     : "memory");
}

__device__ __forceinline__ void tma_store(const CUtensorMap *map, int x, int y, uint32_t src) {
        asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(x), "r"(y), "r"(src) : "memory");
}

/* dst[] += src[], `bytes` of floats; one addition an element and launch. */
__device__ __forceinline__ void bulk_add(float *dst, uint32_t src, int bytes) {
        asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(dst), "r"(src), "r"(bytes) : "memory");
}

__device__ __forceinline__ void store_commit() {
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* Shared memory that this thread's bulk stores read may be written again. */
__device__ __forceinline__ void store_wait_read() {
        asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

/* What this thread wrote to shared memory is seen by the copy engine. */
__device__ __forceinline__ void async_proxy_fence() {
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* The 128 threads of one warpgroup. */
__device__ __forceinline__ void group_sync(int group) {
        asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
}

/* Four 8x8 matrices of 16 bits; lanes 8i to 8i+7 give the rows of matrix i. */
__device__ __forceinline__ void store_matrices(uint32_t row, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

__device__ __forceinline__ void store_shared2(uint32_t p, float a, float b) {
        asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(p), "f"(a), "f"(b) : "memory");
}

template <int N> __device__ __forceinline__ void registers_shrink() {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> __device__ __forceinline__ void registers_grow() {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

__device__ __forceinline__ void wgmma_fence() {
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_wait() {
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

/* Shared-memory matrix descriptor of a K-major tile with 128-byte rows and 128-byte swizzle (PTX ISA, "Matrix Descriptor Format"): 8 rows are 1024 bytes apart. */
__device__ __forceinline__ uint64_t tile_descriptor(uint32_t address) {
        return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

/* volatile: kept in its place among the shuffles, so that a tile's values are not all held twice. */
__device__ __forceinline__ void store_float4(float *p, float a, float b, float c, float d) {
        asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}

/* *p += without reading it back; one addition an element and launch, so the result does not depend on any order. */
__device__ __forceinline__ void add_float4(float *p, float a, float b, float c, float d) {
        asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}
