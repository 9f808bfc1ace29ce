/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The life of a rank process after its command line: start, park, load, join, step, fault, finish, leave. */
#include "base/error.h"
#include "worker/rank/identity.h"

/* Descriptors as the spawner gives them. */
enum { RANK_FD_SOCKET = 3, RANK_FD_FLIGHT = 4, RANK_FD_REPLICA = 5 };

/* 0: released, exit 0. Negative: fatal, with its text; the controller has been told where that was possible. Runs on the main thread. */
int session_run(const struct identity *id, struct error *e);
