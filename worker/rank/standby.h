/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The time of a process before it is a rank: it says that it is ready and waits to be told which rank it becomes. */
#include "base/error.h"
#include "proto/flight.h"
#include "worker/rank/identity.h"

/*
 * Ready, with dp as read from the job file. The lease's timer ends this process as it ends ranks. 0: *id is the rank's, and replica_fd holds the segment of the incarnation before where there
 * was one; -EPIPE: the spawner is gone.
 */
int standby_wait(struct identity *id, int socket, int replica_fd, struct flight *flight, struct error *e);
