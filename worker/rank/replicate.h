/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Second copies of this rank's snapshots in another node's memory, sent by a thread while training goes on.
 *
 * A generation is of use only when all ranks have it, so all send the same ones: each rank puts into a step's agreement whether it is still busy with the one on its
 * way, or could not deliver it, and from what all said all draw the same conclusion.  While any is busy no other begins (the snapshots in between are
 * skipped and counted; the newest one is next).  The newest that all delivered and the one on its way are kept in this rank's own segment as well
 * (replica_keep), for those whose peer is the node that is lost.  So whichever one node is lost, every slice of the kept one lies somewhere.
 */
#include <stdint.h>

#include "base/lane.h"
#include "base/error.h"
#include "proto/fp8ctl.pb-c.h"
#include "worker/rank/control.h"
#include "worker/rank/identity.h"
#include "worker/rank/snapshot.h"

struct replicate;

/* fd: the replica segment, sized; stays the caller's, and so does what lanes are made on, which outlives this. */
int replicate_new(const struct identity *id, struct control *c, int fd, struct lane_device lanes, struct replicate **ret, struct error *e);
struct replicate *replicate_free(struct replicate *r);

/* An epoch begins: the plan, and its source (NULL or another kind: there is no generation to begin from). */
void replicate_begin(struct replicate *r, const Fp8ctl__V1__RankPlan *p);
/* The epoch is over: what is on its way is given up. */
void replicate_end(struct replicate *r);
struct replicate_counts {
        uint64_t skipped /* an earlier one was still on its way */, missed /* it could not be delivered */;
        uint64_t bytes, lane_bytes; /* delivered; of these by RDMA */
};
/* Since the rank began. */
struct replicate_counts replicate_counted(struct replicate *r);
/* TRAINER_REQUEST_REPLICA_* for the agreement that comes now. */
uint32_t replicate_bits(struct replicate *r);
/* Before the snapshot of `step` is begun: what all said in its agreement. */
void replicate_next(struct replicate *r, uint64_t step, uint32_t agreed);

/*
 * The generation that the epoch begins from, when this rank's own segment does not have it: from the peers that the plan names, one after the other, into the
 * segment. 0, or why the last of them did not have it; a canceled wait (`stop`) is -ECANCELED. ret_node and ret_bytes: from whom, how much.
 */
int replicate_fetch(struct replicate *r, const Fp8ctl__V1__RankPlan *p, uint64_t room, bool (*stop)(void *arg), void *arg, char *ret_node, size_t size, uint64_t *ret_bytes,
                    struct error *e);
