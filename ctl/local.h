/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A local cluster's home: how it was brought up (cluster.json), which processes its keeper holds (keeper.json), and whether that keeper lives (it
 * keeps a lock on keeper.pid, which no later process of the same number can have).
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

#define LOCAL_NODES_MAX 256
#define LOCAL_DEVICES_MAX 64

struct local_config {
        int64_t nodes, devices;
        bool test_hooks;
        bool cuda; /* the devices are the machine's GPUs; else CPU */
};

/* -ENOENT when the home holds no cluster. */
int local_config_read(const char *home, struct local_config *ret, struct error *e);
int local_config_write(const char *home, const struct local_config *c, struct error *e);
/* Do the sockets of n nodes below home have paths that sockets may have? -ENAMETOOLONG. */
int local_check_home(const char *home, int64_t nodes, struct error *e);

/* A process is its number and when it began: numbers come round again. */
struct process_id {
        pid_t pid;
        uint64_t start; /* clock ticks since boot, field 22 of /proc/PID/stat (proc(5)) */
};
/* -ENOENT when there is none, or it is a zombie. */
int process_id_of(pid_t pid, struct process_id *ret);
bool process_alive(const struct process_id *p);

struct local_daemon {
        char name[32];  /* "fp8d", "node-0" */
        char state[16]; /* "running", "waiting" (starts again shortly), "stopped" */
        struct process_id process; /* pid 0: none */
        unsigned restarts;
        uint64_t since_unix_ms;
        char last_end[96]; /* how its last life ended; "" */
};
struct local_state {
        struct local_daemon *daemons;
        size_t n;
};
int local_state_read(const char *home, struct local_state *ret, struct error *e); /* -ENOENT: none */
int local_state_write(const char *home, const struct local_state *s, struct error *e);
void local_state_free(struct local_state *s);

/* The living keeper's pid, or 0. */
pid_t local_keeper(const char *home);
/* Takes the keeper's lock; the descriptor holds it. -EBUSY when another keeper lives. */
int local_keeper_lock(const char *home, int *ret_fd, struct error *e);
/* The log of a daemon: fp8d.log, nodes/NAME/worker.log. free() it. */
char *local_log_path(const char *home, const char *name);
/* The spawner of a node, from its spawner.pid; pid 0: none alive. */
struct process_id local_spawner(const char *home, const char *node);

/* Where fp8d or fp8-worker is: FP8CTL_BINDIR, beside this program, its build tree, PATH. free() it. */
int local_find_program(const char *name, char **ret, struct error *e);
