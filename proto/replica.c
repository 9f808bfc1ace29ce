/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/replica.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

#define PAYLOAD_ALIGN 4096u
#define TOUCH_BYTES (UINT64_C(16) << 20)
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* <asm-generic/mman-common.h> since Linux 5.14 */
#endif
#define SLOT_BYTES_MAX (UINT64_C(1) << 44)

struct replica {
        struct replica_header *header;
        uint64_t size;        /* of the mapping */
        uint64_t inode;
        uint64_t slot_bytes;  /* checked copies */
        int n_slots;
        int writing;          /* slot between begin and commit, or -1 */
        int begun;            /* the slot of the last begin, or -1 */
        _Atomic int pinned;   /* or -1 */
        struct replica_slot found; /* what replica_find handed out */
};

static uint64_t align_up(uint64_t n) {
        return (n + PAYLOAD_ALIGN - 1) / PAYLOAD_ALIGN * PAYLOAD_ALIGN;
}

static uint64_t slot_offset(uint64_t slot_bytes, int i) {
        return align_up(sizeof(struct replica_header)) + (uint64_t)i * align_up(slot_bytes);
}

static uint64_t slot_check(const struct replica_slot *s) {
        const char *from = (const char *)&s->step, *to = (const char *)&s->check;

        return digest_of(from, (size_t)(to - from)).lo;
}

int replica_create(int *ret_fd, struct error *e) {
        _cleanup_close_ int fd = memfd_create("fp8-replica", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        struct replica_header h = { .magic = REPLICA_MAGIC, .version = REPLICA_VERSION, .size = sizeof(h) };

        if (fd < 0)
                return error_errno(e, errno, "cannot create a replica segment");
        if (pwrite(fd, &h, sizeof(h), 0) != (ssize_t)sizeof(h))
                return error_errno(e, errno, "cannot write a replica segment's header");
        /* It grows when a rank sizes it and never shrinks: who maps it cannot be made to trip over a missing page. */
        if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0)
                return error_errno(e, errno, "cannot seal a replica segment");
        *ret_fd = STEAL_FD(fd);
        return 0;
}

static int check_header(const struct replica_header *h, uint64_t true_size, struct error *e) {
        if (h->magic != REPLICA_MAGIC || h->version != REPLICA_VERSION)
                return error_set(e, -EBADMSG, "replica segment: found magic %08x version %u, expected %08x version %u", h->magic, h->version,
                                 REPLICA_MAGIC, REPLICA_VERSION);
        if (h->size < sizeof(*h) || h->size > true_size)
                return error_set(e, -EBADMSG, "replica segment: found a size of %" PRIu64 " in it, expected %zu to %" PRIu64, h->size, sizeof(*h),
                                 true_size);
        if (h->slot_bytes && (h->slot_bytes > SLOT_BYTES_MAX || h->n_slots < 1 || h->n_slots > REPLICA_SLOTS || slot_offset(h->slot_bytes, (int)h->n_slots) > h->size))
                return error_set(e, -EBADMSG, "replica segment: found %" PRIu64 " slots of %" PRIu64 " bytes, expected 1 to %d that fit into %" PRIu64 " bytes",
                                 h->n_slots, h->slot_bytes, REPLICA_SLOTS, h->size);
        return 0;
}

int replica_map(int fd, struct replica **ret, struct error *e) {
        _cleanup_free_ struct replica *r = calloc(1, sizeof(*r));
        struct replica_header h;
        struct stat st;
        void *p;
        int rc;

        if (!r)
                return error_set(e, -ENOMEM, "no memory");
        if (fstat(fd, &st) < 0)
                return error_errno(e, errno, "cannot look at a replica segment");
        if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < sizeof(h))
                return error_set(e, -EBADMSG, "replica segment: found %" PRId64 " bytes, expected at least %zu", (int64_t)st.st_size, sizeof(h));
        p = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED)
                return error_errno(e, errno, "cannot map a replica segment of %" PRId64 " bytes", (int64_t)st.st_size);
        memcpy(&h, p, sizeof(h)); /* another process may write to it: what is checked is what is used */
        rc = check_header(&h, (uint64_t)st.st_size, e);
        if (rc < 0) {
                munmap(p, (size_t)st.st_size);
                return rc;
        }
        r->header = p;
        r->size = (uint64_t)st.st_size;
        r->inode = st.st_ino;
        r->slot_bytes = h.slot_bytes;
        r->n_slots = h.slot_bytes ? (int)h.n_slots : 0;
        r->writing = r->begun = -1;
        atomic_init(&r->pinned, -1);
        *ret = STEAL_PTR(r);
        return 0;
}

struct replica *replica_unmap(struct replica *r) {
        if (!r)
                return NULL;
        munmap(r->header, (size_t)r->size);
        free(r);
        return NULL;
}

DEFINE_CLEANUP(struct replica *, replica_unmap);

const struct replica_header *replica_header(const struct replica *r) {
        return r->header;
}

struct lane_pool replica_pool(const struct replica *r) {
        return (struct lane_pool){ .base = (char *)r->header + slot_offset(r->slot_bytes, 0), .size = (uint64_t)r->n_slots * align_up(r->slot_bytes), .id = r->inode };
}

int replica_size(int fd, uint64_t slot_bytes, struct error *e) {
        return replica_size_slots(fd, slot_bytes, REPLICA_SLOTS, e);
}

int replica_size_slots(int fd, uint64_t slot_bytes, uint64_t n_slots, struct error *e) {
        _cleanup_(replica_unmapp) struct replica *r = NULL;
        uint64_t size;
        int rc;

        if (n_slots < 1 || n_slots > REPLICA_SLOTS)
                return error_set(e, -EINVAL, "replica segment: found %" PRIu64 " slots, expected 1 to %d", n_slots, REPLICA_SLOTS);
        if (slot_bytes == 0 || slot_bytes > SLOT_BYTES_MAX)
                return error_set(e, -EINVAL, "replica segment: found slots of %" PRIu64 " bytes, expected 1 to %" PRIu64, slot_bytes, SLOT_BYTES_MAX);
        rc = replica_map(fd, &r, e);
        if (rc < 0 || slot_bytes <= r->slot_bytes)
                return rc;
        size = slot_offset(slot_bytes, (int)n_slots);
        rc = posix_fallocate(fd, 0, (off_t)size);
        if (rc)
                return error_errno(e, rc, "cannot take %" PRIu64 " bytes for a replica segment", size);
        /* Killed anywhere in here: slots are invalid, and room that was taken is room. */
        for (int i = 0; i < REPLICA_SLOTS; i++)
                atomic_store(&r->header->slots[i].valid, 0);
        r->header->size = size;
        r->header->n_slots = n_slots;
        r->header->slot_bytes = slot_bytes;
        return 0;
}

bool replica_touch(struct replica *r, uint64_t *at) {
        uint64_t len = r->size - *at < TOUCH_BYTES ? r->size - *at : TOUCH_BYTES;

        if (len == 0 || madvise((char *)r->header + *at, (size_t)len, MADV_POPULATE_WRITE) < 0)
                return false;
        *at += len;
        return true;
}

int replica_touched(const struct replica *r, uint64_t at) {
        int n = 0;

        while (n < r->n_slots && slot_offset(r->slot_bytes, n + 1) <= at)
                n++;
        return n;
}

/* A copy of slot i when it is valid: -ENOENT when it is not, -EBADMSG when it cannot be what a rank wrote. */
static int read_slot(const struct replica *r, int i, struct replica_slot *ret, struct error *e) {
        const struct replica_slot *s = &r->header->slots[i];

        if (!atomic_load(&s->valid))
                return -ENOENT;
        memcpy(ret, s, sizeof(*ret));
        if (!atomic_load(&s->valid))
                return -ENOENT;
        if (ret->check != slot_check(ret))
                return error_set(e, -EBADMSG, "replica slot %d: its header was damaged", i);
        if (ret->offset != slot_offset(r->slot_bytes, i) || ret->bytes > r->slot_bytes)
                return error_set(e, -EBADMSG, "replica slot %d: found %" PRIu64 " bytes at %" PRIu64 ", expected at most %" PRIu64 " at %" PRIu64, i,
                                 ret->bytes, ret->offset, r->slot_bytes, slot_offset(r->slot_bytes, i));
        ret->layout[REPLICA_LAYOUT_SIZE - 1] = 0;
        return 0;
}

int replica_begin(struct replica *r, uint64_t step, void **ret_payload, struct error *e) {
        struct replica_slot s;
        uint64_t oldest = UINT64_MAX;
        int chosen = -1, pinned = atomic_load(&r->pinned);

        if (r->slot_bytes == 0)
                return error_set(e, -EINVAL, "replica segment: it has no room yet, expected replica_size before");
        for (int i = 0; i < r->n_slots; i++) {
                uint64_t age = 0;
                bool kept = false;

                if (read_slot(r, i, &s, NULL) == 0 && s.step < step) {
                        age = s.step + 1;
                        kept = s.step && (s.step == atomic_load(&r->header->keep[0]) || s.step == atomic_load(&r->header->keep[1]));
                } else {
                        atomic_store(&r->header->slots[i].valid, 0);
                }
                if (i != pinned && !kept && age < oldest) {
                        oldest = age;
                        chosen = i;
                }
        }
        if (chosen < 0)
                return error_set(e, -EBUSY, "replica segment: all of its %d slots are kept", r->n_slots);
        atomic_store(&r->header->slots[chosen].valid, 0);
        r->writing = r->begun = chosen;
        *ret_payload = (char *)r->header + slot_offset(r->slot_bytes, chosen);
        return 0;
}

void replica_keep(struct replica *r, uint64_t a, uint64_t b) {
        atomic_store(&r->header->keep[0], a);
        atomic_store(&r->header->keep[1], b);
}

int replica_pin(struct replica *r) {
        int none = -1;

        if (r->begun < 0)
                return -EINVAL;
        return atomic_compare_exchange_strong(&r->pinned, &none, r->begun) ? 0 : -EBUSY;
}

void replica_unpin(struct replica *r) {
        atomic_store(&r->pinned, -1);
}

int replica_commit(struct replica *r, const struct replica_slot *what, struct digest digest) {
        struct replica_slot *s;

        if (r->writing < 0 || what->bytes > r->slot_bytes)
                return -EINVAL;
        s = &r->header->slots[r->writing];
        s->step = what->step;
        s->epoch = what->epoch;
        s->job_id = what->job_id;
        s->rank = what->rank;
        s->shard_count = what->shard_count;
        s->bytes = what->bytes;
        s->digest_hi = digest.hi;
        s->digest_lo = digest.lo;
        memset(s->layout, 0, sizeof(s->layout));
        memcpy(s->layout, what->layout, strnlen(what->layout, sizeof(s->layout) - 1));
        s->offset = slot_offset(r->slot_bytes, r->writing);
        s->check = slot_check(s);
        atomic_store(&s->valid, 1);
        r->writing = -1;
        return 0;
}

int replica_find(const struct replica *r, uint64_t step, int verify, const struct replica_slot **ret_slot, const void **ret_payload, struct error *e) {
        struct replica_slot *found = (struct replica_slot *)&r->found; /* the mapping itself is never const */
        struct replica_slot s;
        const char *payload;
        struct digest d;
        bool damaged = false, have = false;

        for (int i = 0; i < r->n_slots; i++) {
                int rc = read_slot(r, i, &s, e);

                damaged |= rc == -EBADMSG;
                if (rc < 0 || s.step != step || (have && s.epoch < found->epoch))
                        continue;
                *found = s;
                have = true;
        }
        if (!have)
                return damaged ? -EBADMSG : error_set(e, -ENOENT, "replica segment: no snapshot of step %" PRIu64, step);
        payload = (const char *)r->header + found->offset;
        d = (struct digest){ .hi = found->digest_hi, .lo = found->digest_lo };
        if (verify && !digest_equal(digest_of(payload, (size_t)found->bytes), d))
                return error_set(e, -EBADMSG, "replica segment: the snapshot of step %" PRIu64 " (%" PRIu64 " bytes) does not match its digest", step,
                                 found->bytes);
        *ret_slot = found;
        *ret_payload = payload;
        return 0;
}

int replica_steps(const struct replica *r, uint64_t ret_steps[REPLICA_SLOTS]) {
        struct replica_slot s;
        int n = 0;

        for (int i = 0; i < r->n_slots; i++) {
                int at;

                if (read_slot(r, i, &s, NULL) < 0)
                        continue;
                for (at = n; at > 0 && ret_steps[at - 1] < s.step; at--)
                        ret_steps[at] = ret_steps[at - 1];
                ret_steps[at] = s.step;
                n++;
        }
        return n;
}
