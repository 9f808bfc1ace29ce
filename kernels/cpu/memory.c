/* SPDX-License-Identifier: Apache-2.0 */
/* Device, memory and streams: the device is the process's own memory, and a stream runs each operation at once. */
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cpu/blas.h"
#include "kernels/cpu/cpu.h"

#define MAX_THREADS 1024

int cpu_open(const struct dev_config *c, struct dev **ret, struct error *e) {
        const int threads = c->threads == 0 ? 1 : c->threads;
        char version[32] = "unknown";
        struct dev *d;

        if (threads < 0 || threads > MAX_THREADS)
                return error_set(e, -EINVAL, "cpu device: found %d threads, expected 1 to %d", c->threads, MAX_THREADS);
        if (!cpu_is_act(c->act))
                return error_set(e, -EINVAL, "cpu device: found activations in %s, expected %s", dtype_name(c->act), CPU_FP64 ? "f32 (the FP64 build)" : "bf16 or f32");
        d = calloc(1, sizeof *d);
        if (!d)
                return error_errno(e, ENOMEM, "cpu device");
        d->config = *c;
        d->config.kind = "cpu";
        d->config.threads = threads;
        openblas_set_num_threads(threads);
        (void)sscanf(openblas_get_config(), "OpenBLAS %31s", version);
        (void)snprintf(d->fingerprint, sizeof d->fingerprint, "cpu/openblas-%s/%s/t%d/%s", openblas_get_corename(), version, threads, CPU_FP64 ? "fp64" : "fp32");
        *ret = d;
        return 0;
}

void cpu_close(struct dev *d) {
        free(d);
}

const char *cpu_fingerprint(struct dev *d) {
        return d->fingerprint;
}

int cpu_alloc(struct dev *d, size_t bytes, void **ret, struct error *e) {
        const size_t size = (bytes + 255) & ~(size_t)255;
        void *p;

        (void)d;
        if (size < bytes)
                return error_set(e, -EINVAL, "cpu device: found a request of %zu bytes, expected less than the address space", bytes);
        p = aligned_alloc(256, size ? size : 256);
        if (!p)
                return error_errno(e, ENOMEM, "cpu device: %zu bytes", bytes);
        memset(p, 0, size ? size : 256);
        *ret = p;
        return 0;
}

void cpu_free(struct dev *d, void *p) {
        (void)d;
        free(p);
}

int cpu_stream_new(struct dev *d, struct dev_stream **ret) {
        struct dev_stream *s = calloc(1, sizeof *s);

        if (!s)
                return -ENOMEM;
        s->dev = d;
        *ret = s;
        return 0;
}

void cpu_stream_free(struct dev_stream *s) {
        if (!s)
                return;
        for (int i = 0; i < CPU_N_SLOTS; i++)
                free(s->scratch[i]);
        free(s->rope);
        free(s);
}

int cpu_stream_sync(struct dev_stream *s) {
        (void)s;
        return 0;
}

void *cpu_scratch(struct dev_stream *s, enum cpu_slot slot, size_t bytes) {
        void *p;

        if (s->size[slot] >= bytes && s->scratch[slot])
                return s->scratch[slot];
        bytes = (bytes + 4095) & ~(size_t)4095;
        p = aligned_alloc(4096, bytes ? bytes : 4096);
        if (!p)
                return NULL;
        free(s->scratch[slot]);
        s->scratch[slot] = p;
        s->size[slot] = bytes;
        return p;
}

int cpu_copy(void *dst, const void *src, size_t bytes, struct dev_stream *s) {
        (void)s;
        if (bytes)
                memmove(dst, src, bytes);
        return 0;
}

int cpu_zero(void *dst, size_t bytes, struct dev_stream *s) {
        (void)s;
        if (bytes)
                memset(dst, 0, bytes);
        return 0;
}
