/* SPDX-License-Identifier: Apache-2.0 */
#include <dlfcn.h>
#include <errno.h>
#include <grpc/grpc.h>
#include <grpc/support/log.h>
#include <stdlib.h>

#include "proto/rpc_server.h"

static void log_nothing(gpr_log_func_args *args) {
        (void)args;
}

/*
 * Debian builds abseil with the detection of mutex cycles on: every lock walks a graph, and a server with 10,000 streams goes from 5 ms to 400 ms at p99. It
 * is switched off at run time by absl::SetMutexDeadlockDetectionMode(OnDeadlockCycle::kIgnore), looked up by name since C has no header for it and the
 * namespace carries abseil's release.
 */
static void quiet_deadlock_detection(void) {
        static const char *const names[] = { "_ZN4absl7debian329SetMutexDeadlockDetectionModeENS0_15OnDeadlockCycleE",  /* Debian 12 */
                                             "_ZN4absl12lts_2021110229SetMutexDeadlockDetectionModeENS0_15OnDeadlockCycleE",
                                             "_ZN4absl12lts_2022062329SetMutexDeadlockDetectionModeENS0_15OnDeadlockCycleE",
                                             "_ZN4absl29SetMutexDeadlockDetectionModeENS_15OnDeadlockCycleE" };

        for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
                void (*set_mode)(int);

                *(void **)&set_mode = dlsym(RTLD_DEFAULT, names[i]);
                if (set_mode) {
                        set_mode(0);
                        return;
                }
        }
}

int rpc_init(struct error *e) {
        quiet_deadlock_detection();
        /* Its errors reach callers as statuses; its own log only helps who asks for it. */
        if (!getenv("GRPC_VERBOSITY"))
                gpr_set_log_function(log_nothing);
        grpc_init();
        if (!grpc_is_initialized())
                return error_set(e, -EIO, "gRPC did not start");
        return 0;
}

void rpc_shutdown(void) {
        grpc_shutdown_blocking();
}
