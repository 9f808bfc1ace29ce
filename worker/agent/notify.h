/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Readiness and watchdog of systemd; nothing happens when not started by it, or built without libsystemd. */
#include <stdint.h>

void notify_ready(const char *status);
void notify_stopping(void);
/* Interval at which notify_alive must be called, in ns (half of what systemd asks for); 0: never. */
uint64_t notify_watchdog_ns(void);
void notify_alive(void);
