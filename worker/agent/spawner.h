/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The spawner: a small single-threaded process between the agent and the ranks.  It starts, reaps and holds ranks, their flight
 * recorders and replica memory, and relays messages both ways.  It survives the agent; parent-death signals of the ranks come from it.
 * It kills a rank whose lease deadline is past, and leaves when it is told to, when its folder is gone, or when it has neither agent nor ranks.
 */
#include <sys/types.h>

#include "base/error.h"

struct spawner_config {
        const char *dir;          /* the node's folder, made already */
        const char *node, *host, *device_kind, *rank_binary, *log_level, *rdma;
        const char *local_dir; /* for copies of snapshots on this node's disk; NULL: none */
        uint64_t local_space;  /* bytes that a rank may fill there */
        int devices;
};

#define SPAWNER_SOCKET "spawner.sock"
#define SPAWNER_PID "spawner.pid"

/*
 * Forks the spawner; returns when it listens. Must be called before the process has threads. Signals should be blocked: the spawner takes
 * none but SIGKILL.
 */
int spawner_fork(const struct spawner_config *c, pid_t *ret_pid, struct error *e);
/* The body, for tests and for spawner_fork; ready_fd: a byte is written when it listens, then closed; -1 for none. Returns an exit status. */
int spawner_run(const struct spawner_config *c, int ready_fd);
