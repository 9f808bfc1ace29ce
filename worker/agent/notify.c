/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/agent/notify.h"

#ifdef HAVE_SYSTEMD
#include <systemd/sd-daemon.h>

void notify_ready(const char *status) {
        sd_notifyf(0, "READY=1\nSTATUS=%s", status);
}

void notify_stopping(void) {
        sd_notify(0, "STOPPING=1");
}

uint64_t notify_watchdog_ns(void) {
        uint64_t usec;

        return sd_watchdog_enabled(0, &usec) > 0 ? usec * 1000 / 2 : 0;
}

void notify_alive(void) {
        sd_notify(0, "WATCHDOG=1");
}
#else
void notify_ready(const char *status) {
}

void notify_stopping(void) {
}

uint64_t notify_watchdog_ns(void) {
        return 0;
}

void notify_alive(void) {
}
#endif
