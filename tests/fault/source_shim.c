/* SPDX-License-Identifier: Apache-2.0 */
/* A node that stands still while it gives a copy away: preloaded into workers, the first long send while the file $FP8_TEST_SOURCE is there says who sends (.pid beside it) and does not return before it is gone. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LONG 32768 /* no message of the protocols is so long; snapshots are */

static void stand_still(const char *path) {
        char name[1024], new[1040];
        FILE *f;

        snprintf(name, sizeof(name), "%.1000s.pid", path);
        snprintf(new, sizeof(new), "%s.new", name);
        f = fopen(new, "we");
        if (!f)
                return;
        fprintf(f, "%d\n", (int)getpid());
        fclose(f);
        rename(new, name);
        while (access(path, F_OK) == 0)
                usleep(10000);
}

ssize_t send(int fd, const void *data, size_t len, int flags) {
        const char *path = getenv("FP8_TEST_SOURCE");

        if (len >= LONG && path && strcmp(program_invocation_short_name, "fp8-worker") == 0 && access(path, F_OK) == 0)
                stand_still(path);
        return syscall(SYS_sendto, fd, data, len, flags, NULL, 0);
}
