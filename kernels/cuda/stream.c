/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>

#include "kernels/cuda/attention_library.h"
#include "kernels/cuda/blas.h"
#include "kernels/cuda/hopper.h"
#include "kernels/cuda/ops.h"

int cuda_stream_new(struct dev_stream **ret, struct error *e) {
        struct dev_stream *s;
        int device, major = 0, minor = 0, count = 0;
        cudaError_t r = cudaGetDevice(&device);

        if (r == cudaSuccess)
                r = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
        if (r == cudaSuccess)
                r = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
        if (r == cudaSuccess)
                r = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
        if (r != cudaSuccess)
                return error_set(e, -ENODEV, "no CUDA device: %s", cudaGetErrorString(r));
        if (major != 9 || minor != 0)
                return error_set(e, -ENODEV, "the device has compute capability %d.%d, the kernels are for 9.0", major, minor);
        s = calloc(1, sizeof *s);
        if (!s)
                return error_set(e, -ENOMEM, "out of memory");
        r = cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking);
        if (r != cudaSuccess) {
                free(s);
                return error_set(e, -EIO, "cannot make a CUDA stream: %s", cudaGetErrorString(r));
        }
        s->multiprocessors = count;
        s->tile = -1;
        *ret = s;
        return 0;
}

struct dev_stream *cuda_stream_free(struct dev_stream *s) {
        if (!s)
                return NULL;
        (void)cudaStreamSynchronize(s->stream);
        s->blas = cuda_blas_free(s->blas);
        s->attention = attention_library_free(s->attention);
        for (int i = 0; i < CUDA_SLOTS; i++)
                (void)cudaFree(s->scratch[i]);
        (void)cudaStreamDestroy(s->stream);
        free(s);
        return NULL;
}

int cuda_scratch_reserve(struct dev_stream *s) {
        const struct {
                enum cuda_slot slot;
                size_t bytes;
        } all[] = {
                { CUDA_SLOT_AMAX, sizeof(uint32_t) },
                { CUDA_SLOT_NORM, cuda_norm_room(s->multiprocessors) },
                { CUDA_SLOT_STATS, sizeof(double) * CUDA_STATS_BATCH * CUDA_STATS_BLOCKS },
                { CUDA_SLOT_BLAS, CUDA_BLAS_WORKSPACE },
        };

        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
                if (!cuda_scratch(s, all[i].slot, all[i].bytes))
                        return -ENOMEM;
        return 0;
}

void *cuda_scratch(struct dev_stream *s, enum cuda_slot slot, size_t bytes) {
        void *p;

        if (s->size[slot] >= bytes && s->scratch[slot])
                return s->scratch[slot];
        if (cudaStreamSynchronize(s->stream) != cudaSuccess)
                return NULL;
        (void)cudaFree(s->scratch[slot]);
        s->scratch[slot] = NULL;
        s->size[slot] = 0;
        if (cudaMalloc(&p, bytes ? bytes : 256) != cudaSuccess)
                return NULL;
        s->scratch[slot] = p;
        s->size[slot] = bytes;
        return p;
}
