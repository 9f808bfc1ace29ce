/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arithmetic, memory and copies of one device.
 *
 *   gemm      y = x w^T of whole numbers from -8 to 8: every product and sum is exact in F32 in whatever order it is made, so y has one right value, whose digest is known for all devices and libraries
 *   gemm-fp8  quantised, in the order of this device's kernels: all rounds must give the same bits, and so must all devices of the node
 *   memory    three patterns over a part of what is free, moved on the device and read back
 *   copy      bandwidth, for information
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/hash.h"
#include "kernels/dev.h"
#include "worker/health/nodetest.h"

enum { DEVICES_MAX = 64 };

#define BLOCK ((size_t)64 << 20)

/* Sizes of the product, and its digest. A GPU is kept busy by the large one; the small one takes a processor some 20 ms. */
static const struct product {
        const char *kind;
        int64_t M, N, K;
        const char *digest;
} products[] = {
        { "cpu", 256, 256, 1024, "86fa636ae3063666b699703d58895dfd" },
        { "cuda", 4096, 4096, 4096, "3717d10d8df9ff6123886a556916fd16" },
};

struct bench {
        const struct dev_ops *ops;
        struct dev *dev;
        struct dev_stream *stream;
        const struct product *p;
        int index;
        double seconds;
        bool wrong;
        struct error e;
};

static char fp8_digests[DEVICES_MAX][DIGEST_HEX_SIZE], fp8_makes[DEVICES_MAX][128];
static int n_fp8;

/* -8 to 8, by its place and a seed (splitmix64's mixing, Steele et al. 2014). */
static int small_number(uint64_t place, uint64_t seed) {
        uint64_t z = place + seed * UINT64_C(0x9e3779b97f4a7c15);

        z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
        return (int)((z ^ (z >> 31)) % 17) - 8;
}

/* Whole numbers of that size are exact in BF16: the upper half of the float. */
static uint16_t bf16_of(int v) {
        float f = (float)v;
        uint32_t bits;

        memcpy(&bits, &f, sizeof(bits));
        return (uint16_t)(bits >> 16);
}

static int fill(struct bench *b, int64_t n, uint64_t seed, void **ret) {
        _cleanup_free_ uint16_t *host = malloc((size_t)n * sizeof(*host));
        void *p = NULL;
        int r = host ? b->ops->alloc(b->dev, (size_t)n * sizeof(*host), &p, &b->e) : error_errno(&b->e, ENOMEM, "matrix");

        if (r < 0)
                return r;
        for (int64_t i = 0; i < n; i++)
                host[i] = bf16_of(small_number((uint64_t)i, seed));
        r = b->ops->copy_in(p, host, (size_t)n * sizeof(*host), b->stream);
        if (r == 0)
                r = b->ops->stream_sync(b->stream);
        if (r < 0) {
                b->ops->free(b->dev, p);
                return error_set(&b->e, r, "copy to the device: %s", strerror(-r));
        }
        *ret = p;
        return 0;
}

static int digest_device(struct bench *b, const void *p, size_t bytes, char ret[DIGEST_HEX_SIZE]) {
        _cleanup_free_ void *host = malloc(bytes);
        int r = host ? b->ops->copy_out(host, p, bytes, b->stream) : -ENOMEM;

        if (r == 0)
                r = b->ops->stream_sync(b->stream);
        if (r < 0)
                return error_set(&b->e, r, "copy from the device: %s", strerror(-r));
        digest_hex(digest_of(host, bytes), ret);
        return 0;
}

/* Rounds of one product for about `seconds`; every round's digest must be the first one's. */
static int rounds(struct bench *b, const struct qtensor *x, const struct qtensor *w, void *y, char first[DIGEST_HEX_SIZE], double *ret_tflops, int *ret_odd) {
        size_t bytes = (size_t)(b->p->M * b->p->N) * sizeof(float);
        double flop = 2.0 * (double)b->p->M * (double)b->p->N * (double)b->p->K;
        uint64_t end = clock_mono_ns() + (uint64_t)(b->seconds * 1e9), best = UINT64_MAX;
        int r = 0;

        *ret_odd = 0;
        for (int i = 0; r == 0 && (i < 3 || clock_mono_ns() < end); i++) {
                uint64_t t = clock_mono_ns();
                char digest[DIGEST_HEX_SIZE];

                r = b->ops->gemm_fprop(x, w, y, DT_F32, b->stream);
                if (r == 0)
                        r = b->ops->stream_sync(b->stream);
                if (r < 0)
                        return error_set(&b->e, r, "product: %s", strerror(-r));
                t = clock_mono_ns() - t;
                if (i > 0 && t < best)
                        best = t;
                r = digest_device(b, y, bytes, digest);
                if (i == 0)
                        memcpy(first, digest, sizeof(digest));
                *ret_odd += r == 0 && strcmp(digest, first) != 0;
        }
        *ret_tflops = flop / (double)best / 1e3;
        return r;
}

static void test_gemm(struct bench *b, const struct qtensor *x, const struct qtensor *w, void *y) {
        char digest[DIGEST_HEX_SIZE] = "";
        const char *want = b->wrong ? "00000000000000000000000000000000" : b->p->digest;
        double tflops = NAN;
        int odd = 0;

        if (rounds(b, x, w, y, digest, &tflops, &odd) < 0)
                part_say("gemm", b->index, HEALTH_EVICT, NAN, "", "%.200s", b->e.text);
        else if (odd || strcmp(digest, want) != 0)
                part_say("gemm", b->index, HEALTH_EVICT, tflops, "TFLOP/s", "digest %s, expected %s; %d other rounds differed", digest, want, odd);
        else
                part_say("gemm", b->index, HEALTH_OK, tflops, "TFLOP/s", "BF16 %" PRId64 " x %" PRId64 " x %" PRId64 ": digest %s as it must be", b->p->M, b->p->N, b->p->K, digest);
}

static int quantised(struct bench *b, const struct qtensor *from, enum qscaling scaling, struct qtensor *ret) {
        struct quant_spec s = { .scaling = scaling, .dtype = DT_E4M3, .want_row = true };
        struct qtensor q = { .rows = from->rows, .cols = from->cols };
        size_t bytes[4];
        int r;

        dev_qtensor_bytes(&s, from->rows, from->cols, bytes);
        r = b->ops->alloc(b->dev, bytes[0] + 256, &q.row, &b->e);
        if (r == 0)
                r = b->ops->alloc(b->dev, bytes[1] + 256, (void **)&q.row_scale, &b->e);
        if (r == 0) {
                r = b->ops->quantize(from->row, DT_BF16, &s, &q, b->stream);
                if (r < 0)
                        error_set(&b->e, r, "quantisation: %s", strerror(-r));
        }
        *ret = q;
        return r;
}

static void test_gemm_fp8(struct bench *b, const struct qtensor *x, const struct qtensor *w, void *y) {
        struct qtensor qx = { 0 }, qw = { 0 };
        char digest[DIGEST_HEX_SIZE] = "";
        double tflops = NAN;
        int odd = 0, r = quantised(b, x, Q_1X128, &qx);

        if (r == 0)
                r = quantised(b, w, Q_128X128, &qw);
        if (r == 0)
                r = rounds(b, &qx, &qw, y, digest, &tflops, &odd);
        if (r < 0) {
                part_say("gemm-fp8", b->index, HEALTH_EVICT, NAN, "", "%.200s", b->e.text);
        } else if (odd) {
                part_say("gemm-fp8", b->index, HEALTH_EVICT, tflops, "TFLOP/s", "%d rounds differed from the first (digest %s)", odd, digest);
        } else {
                part_say("gemm-fp8", b->index, HEALTH_OK, tflops, "TFLOP/s", "E4M3, all rounds alike: digest %s", digest);
                if (n_fp8 < DEVICES_MAX) {
                        memcpy(fp8_digests[n_fp8], digest, sizeof(digest));
                        snprintf(fp8_makes[n_fp8++], sizeof(fp8_makes[0]), "%.120s", b->ops->fingerprint(b->dev));
                }
        }
        b->ops->free(b->dev, qx.row);
        b->ops->free(b->dev, qx.row_scale);
        b->ops->free(b->dev, qw.row);
        b->ops->free(b->dev, qw.row_scale);
}

/* Of two that differ nobody knows which is wrong. */
void test_compare(void) {
        for (int i = 0; i < n_fp8; i++) {
                int same = 0, other = 0;

                for (int k = 0; k < n_fp8; k++)
                        if (strcmp(fp8_makes[i], fp8_makes[k]) == 0)
                                *(strcmp(fp8_digests[i], fp8_digests[k]) == 0 ? &same : &other) += 1;
                if (other)
                        part_say("gemm-fp8-compare", i, same > other ? HEALTH_OK : same == other ? HEALTH_DRAIN : HEALTH_EVICT, NAN, "", "%d devices of this node have its bits, %d others", same, other);
        }
}

static void test_gemms(struct bench *b) {
        struct qtensor x = { .scaling = Q_NONE, .dtype = DT_BF16, .rows = b->p->M, .cols = b->p->K }, w = { .scaling = Q_NONE, .dtype = DT_BF16, .rows = b->p->N, .cols = b->p->K };
        void *y = NULL;
        int r = fill(b, x.rows * x.cols, 1, &x.row);

        if (r == 0)
                r = fill(b, w.rows * w.cols, 2, &w.row);
        if (r == 0)
                r = b->ops->alloc(b->dev, (size_t)(b->p->M * b->p->N) * sizeof(float), &y, &b->e);
        if (r < 0) {
                part_say("gemm", b->index, HEALTH_DRAIN, NAN, "", "%.200s", b->e.text);
        } else {
                test_gemm(b, &x, &w, y);
                test_gemm_fp8(b, &x, &w, y);
        }
        b->ops->free(b->dev, x.row);
        b->ops->free(b->dev, w.row);
        b->ops->free(b->dev, y);
}

/* ------------------------------------------------------------------ memory, copies */
static void pattern(uint64_t *p, size_t n, int which) {
        for (size_t i = 0; i < n; i++)
                p[i] = which == 0 ? UINT64_C(0x5555555555555555) : which == 1 ? UINT64_C(0xaaaaaaaaaaaaaaaa) : (uint64_t)i * UINT64_C(0x9e3779b97f4a7c15);
}

/* What is written to the first block is copied from block to block over all of it, so that it has passed every one when it is read back from the last. */
static int pass_memory(struct bench *b, char *device, size_t blocks, void *host, void *back, int which, size_t *ret_bad) {
        int r = 0;

        pattern(host, BLOCK / 8, which);
        r = b->ops->copy_in(device, host, BLOCK, b->stream);
        for (size_t i = 1; r == 0 && i < blocks; i++)
                r = b->ops->copy(device + i * BLOCK, device + (i - 1) * BLOCK, BLOCK, b->stream);
        if (r == 0)
                r = b->ops->copy_out(back, device + (blocks - 1) * BLOCK, BLOCK, b->stream);
        if (r == 0)
                r = b->ops->stream_sync(b->stream);
        for (size_t i = 0; r == 0 && i < BLOCK / 8; i++)
                *ret_bad += ((uint64_t *)host)[i] != ((uint64_t *)back)[i];
        return r < 0 ? error_set(&b->e, r, "copies: %s", strerror(-r)) : 0;
}

static void say_copies(struct bench *b, char *device, size_t blocks, void *host) {
        static const char *const names[] = { "host to device", "device to host", "on the device" };
        double gbs[3];

        for (int way = 0; way < 3; way++) {
                uint64_t best = UINT64_MAX;

                for (int i = 0; i < 3; i++) {
                        uint64_t t = clock_mono_ns();
                        int r = way == 0 ? b->ops->copy_in(device, host, BLOCK, b->stream) : way == 1 ? b->ops->copy_out(host, device, BLOCK, b->stream) : b->ops->copy(device + (blocks - 1) * BLOCK, device, BLOCK, b->stream);

                        if (r == 0)
                                r = b->ops->stream_sync(b->stream);
                        if (r < 0) {
                                part_say("copy", b->index, HEALTH_DRAIN, NAN, "", "%s: %s", names[way], strerror(-r));
                                return;
                        }
                        t = clock_mono_ns() - t;
                        best = t < best ? t : best;
                }
                gbs[way] = (double)BLOCK / (double)best;
        }
        part_say("copy", b->index, HEALTH_OK, gbs[2], "GB/s", "%s %.1f GB/s, %s %.1f, %s %.1f", names[0], gbs[0], names[1], gbs[1], names[2], gbs[2]);
}

static void test_memory(struct bench *b) {
        _cleanup_free_ void *host = malloc(BLOCK), *back = malloc(BLOCK);
        size_t blocks = strcmp(b->p->kind, "cuda") == 0 ? 512 : 2, bad = 0; /* 32 GiB; 128 MiB of the host's */
        void *device = NULL;
        int r = -ENOMEM;

        while (host && back && r < 0 && blocks >= 2) {
                r = b->ops->alloc(b->dev, blocks * BLOCK, &device, &b->e);
                blocks = r < 0 ? blocks / 2 : blocks; /* somebody may use the rest */
        }
        for (int which = 0; r == 0 && which < 3; which++)
                r = pass_memory(b, device, blocks, host, back, which, &bad);
        if (r < 0)
                part_say("memory", b->index, HEALTH_DRAIN, NAN, "", "%.200s", b->e.text);
        else if (bad)
                part_say("memory", b->index, HEALTH_EVICT, (double)(blocks * BLOCK) / 1e9, "GB", "%zu words came back other than they were written", bad);
        else
                part_say("memory", b->index, HEALTH_OK, (double)(blocks * BLOCK) / 1e9, "GB", "three patterns came back whole");
        if (r == 0)
                say_copies(b, device, blocks, host);
        b->ops->free(b->dev, device);
}

void test_device(const char *kind, int index, double seconds, bool wrong, bool products_only) {
        struct dev_config c = { .kind = kind, .index = index, .threads = 1, .act = DT_BF16 };
        struct bench b = { .index = index, .seconds = seconds, .wrong = wrong };
        int r = dev_ops_load(kind, &b.ops, &b.e);

        for (size_t i = 0; i < ARRAY_SIZE(products); i++)
                if (strcmp(products[i].kind, kind) == 0)
                        b.p = &products[i];
        if (r == 0)
                r = b.ops->open(&c, &b.dev, &b.e);
        if (r == 0)
                r = b.ops->stream_new(b.dev, &b.stream);
        if (r < 0 || !b.p) {
                part_say("gemm", index, HEALTH_EVICT, NAN, "", "device %s %d cannot be opened: %.180s", kind, index, b.e.text);
        } else {
                test_gemms(&b);
                if (!products_only)
                        test_memory(&b);
        }
        if (b.stream)
                b.ops->stream_free(b.stream);
        if (b.dev)
                b.ops->close(b.dev);
}
