/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * File work of the controller (manifests, removal of old checkpoints) in threads of its own, as the submitting user: a slow or stalled mount never blocks the loop, nor the work
 * of jobs whose checkpoints lie elsewhere, and a controller that runs as root reaches nothing that the user could not.
 */
#include "base/error.h"
#include "base/loop.h"
#include "daemon/core/controller.h"

struct file_helper;

/* done: in the loop's thread, once for each work, in order for each folder that work lies in. */
int file_helper_new(struct loop *l, void (*done)(void *arg, uint64_t id, int rc, const char *text), void *arg, struct file_helper **ret, struct error *e);
/* Waits for the work under way, a few seconds; forgets the rest. NULL is allowed; returns NULL. */
struct file_helper *file_helper_free(struct file_helper *h);
/* Copies. Answered in any case: -ENOMEM when there is no memory for it. */
void file_helper_add(struct file_helper *h, const struct file_work *w);
/* Answers work that was lost for want of memory on its way here. */
void file_helper_refuse(struct file_helper *h, uint64_t id);
