/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* systemd's readiness and watchdog; nothing happens when systemd did not start us, or without libsystemd. */
#include "base/error.h"
#include "base/loop.h"

struct notify;

/* READY=1, then WATCHDOG=1 at half the interval that the unit asks for, from the loop: a loop that hangs is restarted. */
int notify_ready(struct loop *l, const char *status, struct notify **ret, struct error *e);
/* STOPPING=1. NULL is allowed; returns NULL. */
struct notify *notify_stopping(struct notify *n);
