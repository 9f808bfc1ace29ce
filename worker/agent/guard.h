/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The kernel's lease on a rank (driver/): at the deadline fp8guard kills the rank's control group and process group, though every process of this node is stopped, and when
 * the spawner, its holder, dies.  Renewals come down the chain: controller -> agent -> deadline in the flight recorder -> spawner -> kernel, each with what is left and no more.
 * Where there is no driver nothing here does anything: then the rank's own timer and the spawner keep the deadline.
 */
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct guard_lease {
        int fd;      /* of the driver, the spawner's; meaningful when id is not 0 */
        uint32_t id; /* 0: none */
        uint64_t generation, deadline_ns;
        bool grouped; /* its process group is in it */
};

/* Descriptor of the driver, or -errno: not loaded, not ours to open, another version. */
int guard_open(void);
/* Before the rank is forked. cgroup may be empty, or of version 1: then the lease has the process group only. fd < 0: no lease. */
void guard_arm(int fd, const char *cgroup, struct guard_lease *ret);
/* Its process group, once it has one, and the newest deadline. */
void guard_keep(struct guard_lease *l, pid_t pid, uint64_t deadline_ns, uint64_t now_ns);
/* It is over. True: the kernel killed it at the deadline, *ret_late_ns after. */
bool guard_drop(struct guard_lease *l, uint64_t *ret_late_ns);
