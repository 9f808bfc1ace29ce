/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Storage that stalls or fails, as far as shards being written see it: preloaded into the ranks, it looks into the file $FP8_TEST_STORAGE at each call. "stall": the
 * call waits until the word is gone; "eio": it fails. io_uring passes the C library by, so that is refused.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int mode(char *buf, size_t size) {
        const char *path = getenv("FP8_TEST_STORAGE");
        int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
        ssize_t n = fd < 0 ? 0 : read(fd, buf, size - 1);

        if (fd >= 0)
                close(fd);
        buf[n > 0 ? n : 0] = 0;
        return buf[0] != 0;
}

/* 0: the call may go on. */
static int trouble(int fd) {
        const struct timespec ts = { .tv_nsec = 10000000 };
        char link[64], path[1024], word[16];
        ssize_t n;

        (void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
        n = readlink(link, path, sizeof(path) - 1);
        path[n > 0 ? n : 0] = 0;
        if (!strstr(path, "/.shard-"))
                return 0;
        while (mode(word, sizeof(word))) {
                if (strncmp(word, "eio", 3) == 0) {
                        errno = EIO;
                        return -1;
                }
                (void)nanosleep(&ts, NULL);
        }
        return 0;
}

ssize_t pwrite(int fd, const void *data, size_t len, off_t at) {
        return trouble(fd) < 0 ? -1 : syscall(SYS_pwrite64, fd, data, len, at);
}

int fsync(int fd) {
        return trouble(fd) < 0 ? -1 : (int)syscall(SYS_fsync, fd);
}

struct io_uring;
int io_uring_queue_init(unsigned depth, struct io_uring *ring, unsigned flags);
int io_uring_queue_init(unsigned depth, struct io_uring *ring, unsigned flags) {
        (void)depth;
        (void)ring;
        (void)flags;
        return -ENOSYS;
}
