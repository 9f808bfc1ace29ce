/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * File work of the controller (manifests, removal of old checkpoints) in a thread of its own, as the submitting user: a slow or stalled mount never blocks the loop, and a
 * controller that runs as root reaches nothing that the user could not.
 */
#include "base/error.h"
#include "base/loop.h"
#include "daemon/core/controller.h"

struct file_helper;

/* done: in the loop's thread, once for each work, in order. */
int file_helper_new(struct loop *l, void (*done)(void *arg, uint64_t id, int rc, const char *text), void *arg, struct file_helper **ret, struct error *e);
/* Waits for the work under way, forgets the rest. NULL is allowed; returns NULL. */
struct file_helper *file_helper_free(struct file_helper *h);
/* Copies. */
int file_helper_add(struct file_helper *h, const struct file_work *w, struct error *e);
