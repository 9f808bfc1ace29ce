/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A host with a clock that jumps and a disk that is slow, as the processes see it that have this preloaded: "clock SECONDS" in the file $FP8_TEST_HOST moves the
 * wall clock, "sync MS" has each fsync and fdatasync take so much longer, "connect MS" each connection that is made. The file is looked at every 50 ms; none: nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define LOOK_NS 50000000LL

static _Atomic long long looked_at, clock_s, sync_ms, connect_ms;

static void look(void) {
        const char *path = getenv("FP8_TEST_HOST"), *word;
        struct timespec ts;
        char buf[64];
        long long now;
        ssize_t n;
        int fd;

        (void)syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &ts);
        now = ts.tv_sec * 1000000000LL + ts.tv_nsec;
        if (!path || now - atomic_load(&looked_at) < LOOK_NS)
                return;
        atomic_store(&looked_at, now);
        fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
        n = fd < 0 ? 0 : read(fd, buf, sizeof(buf) - 1);
        if (fd >= 0)
                close(fd);
        buf[n > 0 ? n : 0] = 0;
        word = strstr(buf, "clock ");
        atomic_store(&clock_s, word ? strtoll(word + 6, NULL, 10) : 0);
        word = strstr(buf, "sync ");
        atomic_store(&sync_ms, word ? strtoll(word + 5, NULL, 10) : 0);
        word = strstr(buf, "connect ");
        atomic_store(&connect_ms, word ? strtoll(word + 8, NULL, 10) : 0);
}

int clock_gettime(clockid_t id, struct timespec *ts) {
        int r = (int)syscall(SYS_clock_gettime, id, ts);

        if (r == 0 && id == CLOCK_REALTIME) {
                look();
                ts->tv_sec += atomic_load(&clock_s);
        }
        return r;
}

int gettimeofday(struct timeval *restrict tv, void *restrict zone) {
        struct timespec ts;

        (void)zone;
        if (clock_gettime(CLOCK_REALTIME, &ts) < 0)
                return -1;
        *tv = (struct timeval){ .tv_sec = ts.tv_sec, .tv_usec = ts.tv_nsec / 1000 };
        return 0;
}

time_t time(time_t *t) {
        struct timespec ts = {};

        (void)clock_gettime(CLOCK_REALTIME, &ts);
        if (t)
                *t = ts.tv_sec;
        return ts.tv_sec;
}

static void pause_ms(long long ms) {
        const struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };

        if (ms > 0)
                (void)nanosleep(&ts, NULL);
}

static int slow(long call, int fd) {
        look();
        pause_ms(atomic_load(&sync_ms));
        return (int)syscall(call, fd);
}

int fsync(int fd) {
        return slow(SYS_fsync, fd);
}

int fdatasync(int fd) {
        return slow(SYS_fdatasync, fd);
}

/* Of ranks alone: what the daemons say to each other goes on. */
int connect(int fd, const struct sockaddr *address, socklen_t len) {
        look();
        if (strcmp(program_invocation_short_name, "fp8-rank") == 0)
                pause_ms(atomic_load(&connect_ms));
        return (int)syscall(SYS_connect, fd, address, len);
}
