/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A thread that sleeps on the robust mutex of one rank's flight recorder.  The kernel wakes it when the rank's main thread ends, before
 * the memory is freed: 0.3 ms, where a pidfd takes 390 ms for a process of 6 GiB.
 */
#include <stdint.h>

#include "base/error.h"
#include "base/loop.h"

struct watcher;

/* flight_fd is duplicated. died(arg) runs in the loop's thread, at most once, and not after watcher_free. */
int watcher_new(struct loop *l, int flight_fd, void (*died)(void *arg), void *arg, struct watcher **ret, struct error *e);
/* Joins the thread (within WATCHER_SLICE_MS); returns NULL. */
struct watcher *watcher_free(struct watcher *w);

#define WATCHER_SLICE_MS 20
