/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Work that blocks (digests, disks), done by a thread of its own; its end is told in the loop's thread. */
#include <stdbool.h>

#include "base/error.h"
#include "base/loop.h"

struct tasks;

int tasks_new(struct loop *l, struct tasks **ret);
/* work(arg) in a thread, then done(arg) in the loop. -EBUSY when too many run. */
int tasks_run(struct tasks *t, void (*work)(void *arg), void (*done)(void *arg), void *arg, struct error *e);
/* Waits at most timeout_ms for all threads; false when some still run (then neither the tasks nor the loop may be freed). */
bool tasks_wait(struct tasks *t, int timeout_ms);
struct tasks *tasks_free(struct tasks *t);
