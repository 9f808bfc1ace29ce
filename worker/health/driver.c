/* SPDX-License-Identifier: Apache-2.0 */
/* Is the kernel driver there, and does it hold leases? (worker/agent/guard.c takes them.) */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "driver/fp8guard_uapi.h"
#include "worker/health/check.h"

void check_driver(struct health_world *w, void **state, struct check_out *o) {
        struct fp8guard_info info = { .size = sizeof(info) };
        _cleanup_free_ char *path = world_path(w, "%s", FP8GUARD_DEVICE);
        _cleanup_close_ int fd = path ? open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK) : -1;

        if (fd < 0 || ioctl(fd, FP8GUARD_INFO, &info) < 0)
                check_say(o, "", -1, HEALTH_ABSENT, "no kernel driver (" FP8GUARD_DEVICE ": %s): ranks' own timers and the worker keep the leases", strerror(errno));
        else if (info.version != FP8GUARD_VERSION)
                check_say(o, "", -1, HEALTH_ABSENT, FP8GUARD_DEVICE ": found version %u, expected %d", info.version, FP8GUARD_VERSION);
        else
                check_say(o, "", -1, HEALTH_OK, "holds %u leases; killed by %llu", info.leases, (unsigned long long)(info.lapsed + info.closed));
}
