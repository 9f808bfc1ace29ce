/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/io/notify.h"

#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"

#ifdef HAVE_SYSTEMD
#include <systemd/sd-daemon.h>
#endif

struct notify {
        struct loop_source *timer;
        uint64_t interval_ns;
};

#ifdef HAVE_SYSTEMD
static void on_timer(void *arg) {
        struct notify *n = arg;

        sd_notify(0, "WATCHDOG=1");
        loop_timer_set(n->timer, clock_mono_ns() + n->interval_ns);
}
#endif

int notify_ready(struct loop *l, const char *status, struct notify **ret, struct error *e) {
        struct notify *n = calloc(1, sizeof(*n));

        if (!n)
                return error_errno(e, ENOMEM, "notify");
#ifdef HAVE_SYSTEMD
        uint64_t usec = 0;

        if (sd_watchdog_enabled(0, &usec) > 0) {
                int r;

                n->interval_ns = usec * 1000 / 2;
                r = loop_add_timer(l, clock_mono_ns() + n->interval_ns, on_timer, n, &n->timer);
                if (r < 0) {
                        free(n);
                        return error_errno(e, -r, "watchdog timer");
                }
        }
        sd_notifyf(0, "READY=1\nSTATUS=%s", status);
#endif
        *ret = n;
        return 0;
}

struct notify *notify_stopping(struct notify *n) {
        if (!n)
                return NULL;
#ifdef HAVE_SYSTEMD
        sd_notify(0, "STOPPING=1");
#endif
        loop_remove(n->timer);
        free(n);
        return NULL;
}
