/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/agent/user.h"

#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <unistd.h>

bool user_is_other(uid_t uid) {
        return geteuid() == 0 && uid != 0;
}

void user_enter(uid_t uid, gid_t gid) {
        if (!user_is_other(uid))
                return;
        /* The plain system call: the library's setgroups changes every thread. Root's groups stay dropped; root does not need them. */
        (void)syscall(SYS_setgroups, (size_t)0, NULL);
        setfsgid(gid);
        setfsuid(uid);
}

void user_leave(void) {
        if (geteuid() != 0)
                return;
        setfsuid(0);
        setfsgid(0);
}
