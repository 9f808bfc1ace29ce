/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/agent/guard.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "driver/fp8guard_uapi.h"

/* Until the agent has told the rank's deadline, some milliseconds later: the default lease. */
#define FIRST_TTL_NS (10 * NSEC_PER_SEC)
/* The deadline lies in memory that the rank can write: no more than the longest lease that a controller may give (stream.c). */
#define TTL_MAX_NS (600 * NSEC_PER_SEC)
#define TTL_MIN_NS NSEC_PER_MSEC /* the driver's own */

int guard_open(void) {
        struct fp8guard_info info = { .size = sizeof(info) };
        _cleanup_close_ int fd = open(FP8GUARD_DEVICE, O_RDWR | O_CLOEXEC | O_NONBLOCK);

        if (fd < 0 || ioctl(fd, FP8GUARD_INFO, &info) < 0)
                return -errno;
        if (info.version != FP8GUARD_VERSION)
                return -EPROTONOSUPPORT;
        return STEAL_FD(fd);
}

static int add(const struct guard_lease *l, uint32_t kind, int target) {
        struct fp8guard_group g = { .size = sizeof(g), .id = l->id, .generation = l->generation, .kind = kind, .target = target };

        return ioctl(l->fd, FP8GUARD_LEASE_ADD, &g) < 0 ? -errno : 0;
}

void guard_arm(int fd, const char *cgroup, struct guard_lease *ret) {
        struct fp8guard_lease arg = { .size = sizeof(arg), .ttl_ns = FIRST_TTL_NS };
        _cleanup_close_ int group = -1;

        *ret = (struct guard_lease){ .fd = fd };
        if (fd < 0)
                return;
        if (ioctl(fd, FP8GUARD_LEASE_CREATE, &arg) < 0) {
                log_warning("fp8guard gives no lease: %s", strerror(errno));
                return;
        }
        ret->id = arg.id;
        ret->generation = arg.generation;
        if (cgroup[0])
                group = open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (group >= 0)
                (void)add(ret, FP8GUARD_GROUP_CGROUP, group);
}

void guard_keep(struct guard_lease *l, pid_t pid, uint64_t deadline_ns, uint64_t now_ns) {
        struct fp8guard_lease arg = { .size = sizeof(arg), .id = l->id, .generation = l->generation };

        if (l->id == 0)
                return;
        if (!l->grouped) /* it makes its session itself; until then there is no such group */
                l->grouped = add(l, FP8GUARD_GROUP_PGRP, pid) == 0;
        if (deadline_ns <= l->deadline_ns || deadline_ns < now_ns + TTL_MIN_NS)
                return;
        arg.ttl_ns = deadline_ns - now_ns;
        if (arg.ttl_ns > TTL_MAX_NS)
                arg.ttl_ns = TTL_MAX_NS;
        if (ioctl(l->fd, FP8GUARD_LEASE_RENEW, &arg) == 0)
                l->deadline_ns = deadline_ns;
}

bool guard_drop(struct guard_lease *l, uint64_t *ret_late_ns) {
        struct fp8guard_stat s = { .size = sizeof(s), .id = l->id, .generation = l->generation };
        struct fp8guard_lease arg = { .size = sizeof(arg), .id = l->id, .generation = l->generation };
        bool lapsed;

        if (l->id == 0)
                return false;
        lapsed = ioctl(l->fd, FP8GUARD_LEASE_STAT, &s) == 0 && s.state == FP8GUARD_LEASE_LAPSED;
        if (lapsed)
                *ret_late_ns = s.lapsed_ns > s.deadline_ns ? s.lapsed_ns - s.deadline_ns : 0;
        (void)ioctl(l->fd, FP8GUARD_LEASE_DROP, &arg);
        l->id = 0;
        return lapsed;
}
