/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the threads of a process do: from /proc, which answers whatever state they are in, and their stacks, unwound by a helper process that can be ended when the kernel lets it wait for ever. */
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/fp8ctl.pb-c.h"

enum { STACKS_THREADS_MAX = 32, STACKS_FRAMES_MAX = 24 };

/* The process's state in a word of RankDiagnosis.state; "dead" when there is none. */
const char *stacks_process_state(pid_t pid);
/*
 * Fills n messages (threads of pids[i] into *ret[i]); blocks for at most timeout_ms in all. What could not be had in time is in the message's note.
 * Not on the loop's thread.
 */
void stacks_take(const pid_t *pids, size_t n, int timeout_ms, Fp8ctl__V1__RankDiagnosis **ret);
/* The helper: prints "T tid" and "F frame" lines of all threads. Exit status. */
int stacks_print(pid_t pid);
