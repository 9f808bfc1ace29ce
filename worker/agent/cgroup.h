/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * One control group a rank, so that whatever it forked is killed and counted with it.  Version 2 where it is mounted and writable
 * (cgroup.kill, kernel 5.14), else a version 1 hierarchy (pids, memory or freezer; killed by walking cgroup.procs), else none: then a
 * rank is killed by pidfd and process group alone.
 */
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct cgroup_base {
        char path[512]; /* folder of this node's ranks; empty: no control groups here */
        bool v2;
};

/* Finds a writable place under our own group and makes the folder "fp8-<name>.<pid>" in it. Never fails: ret->path may be empty. */
void cgroup_base_make(const char *name, struct cgroup_base *ret);
void cgroup_base_remove(const struct cgroup_base *b);
/* Makes <base>/<name>; ret: path, empty when there is no base or it could not be made. */
void cgroup_make(const struct cgroup_base *b, const char *name, char *ret, size_t size);
/* By the child itself, before exec: async-signal-safe. 0 or -errno. */
int cgroup_enter(const char *path);
/* SIGKILL to everything in it; -ENOENT when there is no group. */
int cgroup_kill(const char *path);
/* Number of processes in it; 0 when it is gone. */
int cgroup_count(const char *path);
/* Processes that the out-of-memory killer took in it; 0 when not known. */
uint64_t cgroup_oom_kills(const char *path);
void cgroup_remove(const char *path);
/* Kills what is left under a base folder of an earlier life and removes it. path is checked to look like one of ours. */
void cgroup_clear(const char *path);
/* What our own group's memory limit leaves; UINT64_MAX without one. */
uint64_t cgroup_memory_left(void);
