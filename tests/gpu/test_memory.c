/* SPDX-License-Identifier: Apache-2.0 */
/* Casts, sums, and host memory that the device copies by itself. */
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/gpu/both.h"

TEST(casts_and_sums) {
        static const int64_t sizes[] = { 1, 7, 1000, 4099 };

        both_open();
        for (size_t k = 0; k < 4; k++) {
                const int64_t n = sizes[k];
                dev_real *f = random_reals(n, 3), *f2;
                uint16_t *h = mixed_bf16(n, 5), *h2 = mixed_bf16(n, 0);
                void *gf, *gh = up(h, (size_t)n * 2), *gh2 = up(h2, (size_t)n * 2);

                for (int64_t i = 0; i < n; i += 3)
                        f[i] = from_bits(edges[(size_t)i % (sizeof edges / sizeof *edges)]);
                gf = up(f, (size_t)n * 4);
                for (enum dtype t = DT_BF16; t <= DT_E5M2; t++) {
                        void *want = fresh((size_t)n * 4), *got = up(want, (size_t)n * 4), *back = fresh((size_t)n * 4), *gback = up(back, (size_t)n * 4);

                        OK(ops->cast(want, t, f, DT_F32, n, stream));
                        OK(gpu_ops->cast(got, t, gf, DT_F32, n, gpu));
                        compare("cast from f32", want, got, t, n, 0, 0);
                        OK(ops->cast(back, DT_F32, want, t, n, stream));
                        OK(gpu_ops->cast(gback, DT_F32, got, t, n, gpu));
                        compare("cast to f32", back, gback, DT_F32, n, 0, 0);
                        xfree(want), xfree(back), down(got), down(gback);
                }
                OK(ops->add(h, h2, DT_BF16, n, stream));
                OK(gpu_ops->add(gh, gh2, DT_BF16, n, gpu));
                compare("add bf16", h, gh, DT_BF16, n, 0, 0);
                f2 = random_reals(n, 1);
                OK(ops->scale(f2, 0.37, n, stream));
                down(gf), gf = up(f2, (size_t)n * 4);
                OK(ops->scale(f2, -1.25, n, stream));
                OK(gpu_ops->scale(gf, -1.25, n, gpu));
                compare("scale", f2, gf, DT_F32, n, 0, 0);
                OK(ops->init_normal(f, 1, n, 3, 5, n + 9, 11, 0x1234567, 0.5, 0.02, stream));
                OK(gpu_ops->init_normal(gf, 1, n, 3, 5, n + 9, 11, 0x1234567, 0.5, 0.02, gpu));
                compare("init", f, gf, DT_F32, n, 1e-6, 1e-7);
                xfree(f), xfree(f2), xfree(h), xfree(h2), down(gf), down(gh), down(gh2);
        }
        both_close();
}

/* Replica memory as ranks have it: a shared mapping, kept in place; snapshots go there on a stream of their own while another computes. */
TEST(host_memory_kept_in_place_is_copied_beside_the_work) {
        const size_t bytes = (size_t)256 << 20, count = bytes / sizeof(float), rounds = 400;
        struct error e = { 0 };
        struct dev_stream *copies;
        float *want;
        int fd = memfd_create("gpu-ops", MFD_CLOEXEC);
        uint64_t began, asked, queued, copied, computed;
        void *host, *from, *busy;

        both_open();
        want = xalloc(bytes);
        CU_ASSERT_TRUE_FATAL(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
        host = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        CU_ASSERT_TRUE_FATAL(host != MAP_FAILED);
        for (size_t i = 0; i < count; i++)
                want[i] = (float)(i * 2654435761u % 1000003u);
        from = up(want, bytes);
        busy = up(want, bytes);
        CU_ASSERT_EQUAL_FATAL(gpu_ops->stream_new(gpu_dev, &copies), 0);
        ASSERT_OK(gpu_ops->host_pin(gpu_dev, host, bytes, &e), e);
        CU_ASSERT_TRUE(gpu_ops->host_pin(gpu_dev, host, bytes, &e) < 0); /* twice is an error, and the device is well after it */
        began = clock_mono_ns();
        for (size_t i = 0; i < rounds; i++)
                CU_ASSERT_EQUAL_FATAL(gpu_ops->scale(busy, 0.999, (int64_t)count, gpu), 0);
        asked = clock_mono_ns();
        CU_ASSERT_EQUAL(gpu_ops->copy_out(host, from, bytes, copies), 0);
        queued = clock_mono_ns();
        CU_ASSERT_EQUAL(gpu_ops->stream_sync(copies), 0);
        copied = clock_mono_ns();
        CU_ASSERT_EQUAL(gpu_ops->stream_sync(gpu), 0);
        computed = clock_mono_ns();
        printf("(asked for in %.2f ms, copied in %.2f ms, computed in %.2f ms) ", (double)(queued - asked) / 1e6, (double)(copied - asked) / 1e6, (double)(computed - began) / 1e6);
        CU_ASSERT_EQUAL(memcmp(host, want, bytes), 0);
        CU_ASSERT_TRUE(queued - asked < (copied - asked) / 2); /* the call does not wait for the copy, */
        CU_ASSERT_TRUE(copied < computed);                     /* nor the copy for what the other stream computes */
        CU_ASSERT_EQUAL(gpu_ops->host_unpin(gpu_dev, host), 0);
        CU_ASSERT_EQUAL(gpu_ops->copy_out(host, from, bytes, copies), 0); /* works as before */
        CU_ASSERT_EQUAL(gpu_ops->stream_sync(copies), 0);
        gpu_ops->stream_free(copies);
        down(from), down(busy);
        munmap(host, bytes);
        close(fd);
        xfree(want);
        both_close();
}

TEST_MAIN("gpu-memory")
