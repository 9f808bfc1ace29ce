/* SPDX-License-Identifier: Apache-2.0 */
/* The disk and the clocks. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "worker/health/nodetest.h"

#define DISK_BYTES ((size_t)32 << 20)
#define CLOCK_MS 100
#define CLOCK_PPM 1000.0 /* an undisciplined crystal is within 100; what counts is a broken time stamp counter */

/* An unnamed file: nothing stays, whatever happens. What is read back comes from the disk as far as the kernel gives up its cache. */
static int write_and_read(const char *dir, const char *data, double *ret_mbs, bool *ret_same) {
        _cleanup_close_ int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        _cleanup_free_ char *back = malloc(DISK_BYTES);
        uint64_t t = clock_mono_ns();
        size_t done = 0;

        if (fd < 0 || !back)
                return fd < 0 ? -errno : -ENOMEM;
        if (file_write_all(fd, data, DISK_BYTES) < 0 || fsync(fd) < 0)
                return errno ? -errno : -EIO;
        *ret_mbs = (double)DISK_BYTES * 1e3 / (double)(clock_mono_ns() - t);
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        while (done < DISK_BYTES) {
                ssize_t n = pread(fd, back + done, DISK_BYTES - done, (off_t)done);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return n < 0 ? -errno : -EIO;
                done += (size_t)n;
        }
        *ret_same = memcmp(data, back, DISK_BYTES) == 0;
        return 0;
}

void test_disk(const char *dir) {
        _cleanup_free_ char *data = malloc(DISK_BYTES);
        double mbs = NAN;
        bool same = false;
        int r = data ? 0 : -ENOMEM;

        for (size_t i = 0; r == 0 && i < DISK_BYTES / 8; i++)
                ((uint64_t *)(void *)data)[i] = i * UINT64_C(0x9e3779b97f4a7c15);
        if (r == 0)
                r = write_and_read(dir, data, &mbs, &same);
        if (r < 0)
                part_say("disk", -1, HEALTH_DRAIN, NAN, "", "%.120s: %s", dir, strerror(-r));
        else if (!same)
                part_say("disk", -1, HEALTH_EVICT, mbs, "MB/s", "%.120s: what was read is not what was written", dir);
        else
                part_say("disk", -1, HEALTH_OK, mbs, "MB/s", "%zu MiB written, synced and read back", DISK_BYTES >> 20);
}

static double seconds_of(clockid_t id) {
        struct timespec ts;

        return clock_gettime(id, &ts) == 0 ? (double)ts.tv_sec + (double)ts.tv_nsec / 1e9 : NAN;
}

/* The disciplined clock against the raw counter. */
void test_clock(void) {
        struct timespec rest = { .tv_nsec = CLOCK_MS * 1000000 };
        double a = seconds_of(CLOCK_MONOTONIC), b = seconds_of(CLOCK_MONOTONIC_RAW), ppm;

        (void)clock_nanosleep(CLOCK_MONOTONIC, 0, &rest, NULL);
        a = seconds_of(CLOCK_MONOTONIC) - a;
        b = seconds_of(CLOCK_MONOTONIC_RAW) - b;
        ppm = b > 0 ? fabs(a - b) / b * 1e6 : NAN;
        part_say("clock", -1, isnan(ppm) || ppm > CLOCK_PPM ? HEALTH_WARN : HEALTH_OK, ppm, "ppm", "the disciplined clock against the raw one, expected within %.0f", CLOCK_PPM);
}
