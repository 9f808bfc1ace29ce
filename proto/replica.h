/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Replica memory: one shared-memory segment (memfd) a rank, owned by the spawner, so that a rank's snapshots survive the rank.
 * Four slots: the slot of the oldest generation is written while the newer ones stay whole.  One can be pinned while a checkpoint is written from it, so that a
 * save needs no copy of its own, and two generations can be kept: the newest that every rank has in a peer's memory too, and the one on its way there.  A slot's payload is one shard file image
 * (safetensors, see format/shard.h), so what is kept in memory, sent to a peer or written to disk is the same bytes with the
 * same digest.
 *
 * Why one slot besides those is enough: a rank completes its snapshot of step N before it takes part in the agreement of step N+1, so when any rank begins to write
 * over N-1 (after the agreement of N+1) every rank holds N; and where N-1 is not there to be written over, it is N that is lost, and the kept ones stay.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/lane.h"

#define REPLICA_MAGIC 0x46503852u
#define REPLICA_VERSION 3
#define REPLICA_SLOTS 4      /* of a rank's own segment */
#define REPLICA_SLOTS_HELD 2 /* of a copy kept for a rank of another node */
#define REPLICA_LAYOUT_SIZE 256

struct replica_slot {
        _Atomic uint64_t valid;         /* 0 while written; set last */
        uint64_t step, epoch, job_id, rank, shard_count, bytes;
        uint64_t digest_hi, digest_lo;  /* XXH3-128 of the payload */
        char layout[REPLICA_LAYOUT_SIZE];
        uint64_t offset;                /* of the payload from the start of the segment */
        uint64_t check;                 /* XXH3 of step .. offset: a slot that was written over by accident is seen */
};

struct replica_header {
        uint32_t magic, version;
        uint64_t size;      /* of the segment */
        uint64_t slot_bytes;/* room a slot has for its payload; 0 until the rank has sized it */
        uint64_t n_slots;   /* 1 to REPLICA_SLOTS, once it is sized */
        _Atomic uint64_t keep[2]; /* steps whose generations are not written over; 0: none */
        struct replica_slot slots[REPLICA_SLOTS];
};

struct replica; /* a mapping */

/* A new, unsized memfd (header only). */
int replica_create(int *ret_fd, struct error *e);
/*
 * By the rank, before it maps: makes room for payloads of slot_bytes; the memory is taken at once (-ENOMEM, -ENOSPC), so that no later write can fail.
 * Room that is enough already is left as it is, with what an earlier incarnation put there; growing drops both slots (their layout is another one anyway).
 */
int replica_size(int fd, uint64_t slot_bytes, struct error *e);
int replica_size_slots(int fd, uint64_t slot_bytes, uint64_t n_slots, struct error *e);
/* Maps; everything in the header is checked against the segment's true size. */
int replica_map(int fd, struct replica **ret, struct error *e);
struct replica *replica_unmap(struct replica *r);
const struct replica_header *replica_header(const struct replica *r);
/* Where the payloads of all slots lie; the header, which others rely on, is not part of it. */
struct lane_pool replica_pool(const struct replica *r);

/*
 * Memory that is touched for the first time costs many times the copying: brings the next part of the slots' into the mapping, whose contents stay. *at: 0 at first.
 * False: all of it is there, or the kernel has no such call (before 5.14).  May run beside begin and commit.
 */
bool replica_touch(struct replica *r, uint64_t *at);
/* Slots, from the first on, that lie wholly before `at`. A fresh segment's are used in this order. */
int replica_touched(const struct replica *r, uint64_t at);
/*
 * The slot to write the snapshot of `step` into (invalidated) and its payload's address; then commit with what was written (valid, offset, check and the
 * digest fields of `what` are not looked at).  Snapshots of this or a later step are left over from before a roll-back: they are dropped, so that the slot that
 * is written over is never the generation that the job resumed from.
 */
int replica_begin(struct replica *r, uint64_t step, void **ret_payload, struct error *e);
/*
 * Generations of steps a and b (0: none) are written over by no mapping's replica_begin, unless it is of their step or an earlier one; kept in the segment, so it outlives the
 * process.  They and a pinned slot must leave one: with all slots kept replica_begin is -EBUSY.
 */
void replica_keep(struct replica *r, uint64_t a, uint64_t b);
/*
 * Keeps the slot that was begun last out of replica_begin's choice until replica_unpin, even when its snapshot is dropped after a roll-back: somebody reads it. One at
 * a time (-EBUSY). Unpinning is for any thread.
 */
int replica_pin(struct replica *r);
void replica_unpin(struct replica *r);
/* -EINVAL without a begin, or when what->bytes does not fit. */
int replica_commit(struct replica *r, const struct replica_slot *what, struct digest digest);
/*
 * A valid slot with this step, its header checked and, with verify, its digest; -ENOENT, -EBADMSG. ret_slot is a copy that lives until the next replica_find on this
 * mapping; one thread a mapping.
 */
int replica_find(const struct replica *r, uint64_t step, int verify, const struct replica_slot **ret_slot, const void **ret_payload, struct error *e);
/* Steps of the valid slots with a good header, newest first; returns how many. */
int replica_steps(const struct replica *r, uint64_t ret_steps[REPLICA_SLOTS]);
