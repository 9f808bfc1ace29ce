/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The kernel's own guard of the lease: a timer that SIGKILLs this process at the deadline, whatever its threads are doing.  A stopped worker
 * renews nothing and kills nobody, so this is what fences a rank on a node that is cut off.
 */
#include <stdint.h>

#include "base/error.h"
#include "proto/flight.h"

struct lease_timer;

int lease_timer_new(struct lease_timer **ret, struct error *e);
/* CLOCK_MONOTONIC; 0 disarms it. */
int lease_timer_set(struct lease_timer *t, uint64_t deadline_ns);
/* At the recorder's deadline; *armed_ns is the last one set (0 at first). Returns in how many ms to look again: a quarter of what is left, within bounds. */
int lease_timer_follow(struct lease_timer *t, const struct flight *flight, uint64_t *armed_ns);
struct lease_timer *lease_timer_free(struct lease_timer *t);
