/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * This node's replica memory for ranks of other nodes: two generations a rank, in segments that the spawner keeps, received and given out by threads of the agent.
 *
 * Fencing.  Of each job the newest epoch told is known (a plan, an inventory).  A plan brings the key of its epoch; from the moment a newer epoch is told until its
 * plan comes nobody has a key, so nothing is taken or given; and what was under way then is not committed, since put_end looks at the epoch once more under
 * the lock.  After the agent starts anew it knows no key until the controller has told it the plan again.  A generation is taken when it was written under
 * the epoch of the plan, or when it is the one that this epoch began from.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/lane.h"
#include "proto/fp8ctl.pb-c.h"

struct holder;

struct holder_config {
        const char *node;   /* own name */
        const char *host;   /* to listen on */
        uint64_t memory;    /* bound on all segments together, bytes; 0: nothing is held */
        /* From the loop's thread: the spawner keeps a copy of fd. */
        void (*keep)(void *arg, Fp8ctl__V1__KeptFd__Kind kind, uint64_t job, uint32_t rank, int fd);
        void *arg;
        struct lane_device lanes; /* ops NULL: by sockets only */
};

int holder_new(const struct holder_config *c, struct holder **ret, struct error *e);
/* Waits for its threads. */
struct holder *holder_free(struct holder *h);
/* What an earlier agent left with the spawner; takes fd over. Before holder_start. */
void holder_kept(struct holder *h, Fp8ctl__V1__KeptFd__Kind kind, uint64_t job, uint32_t rank, int fd);
/* Listens (on the socket that was kept, if there is one) and takes connections. */
int holder_start(struct holder *h, struct error *e);
/* "tcp:host:port", or "" when nothing is held. */
const char *holder_endpoint(const struct holder *h);

void holder_plan(struct holder *h, const Fp8ctl__V1__ReplicaPlan *m);
/* An epoch of which only the number is known. */
void holder_fence(struct holder *h, uint64_t job, uint64_t epoch);
void holder_release(struct holder *h, uint64_t job);
/* Ranks whose generations lie here, of one job; duplicates of the descriptors in ret_fds (the caller's), at most max. */
size_t holder_segments(struct holder *h, uint64_t job, int *ret_fds, size_t max);
size_t holder_count(struct holder *h, uint64_t job);
/* Jobs with generations here, at most max. */
size_t holder_jobs(struct holder *h, uint64_t *ret, size_t max);
