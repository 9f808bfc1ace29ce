/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/replica.h"
#include "test.h"

#define ROOM 10000

struct fixture {
        int fd;
        struct replica *r;
};

static struct fixture setup(void) {
        struct fixture f = { .fd = -1 };
        struct error e;

        ASSERT_OK(replica_create(&f.fd, &e), e);
        ASSERT_OK(replica_size(f.fd, ROOM, &e), e);
        ASSERT_OK(replica_map(f.fd, &f.r, &e), e);
        return f;
}

static void teardown(struct fixture *f) {
        replica_unmap(f->r);
        close(f->fd);
}

static void put(struct replica *r, uint64_t step, uint64_t epoch) {
        struct replica_slot what = { .step = step, .epoch = epoch, .job_id = 9, .rank = 2, .shard_count = 8, .bytes = ROOM - step, .layout = "tp2.pp2.dp2/cpu" };
        struct error e;
        void *p;

        ASSERT_OK(replica_begin(r, step, &p, &e), e);
        memset(p, (int)(step * 7 + epoch), what.bytes);
        CU_ASSERT_EQUAL(replica_commit(r, &what, digest_of(p, what.bytes)), 0);
}

static int find(const struct replica *r, uint64_t step, uint64_t *ret_epoch, struct error *e) {
        const struct replica_slot *s;
        const void *p;
        int rc = replica_find(r, step, 1, &s, &p, e);

        if (rc == 0) {
                CU_ASSERT_EQUAL(s->step, step);
                CU_ASSERT_EQUAL(s->bytes, ROOM - step);
                CU_ASSERT_STRING_EQUAL(s->layout, "tp2.pp2.dp2/cpu");
                CU_ASSERT_EQUAL(*(const unsigned char *)p, (unsigned char)(step * 7 + s->epoch));
                *ret_epoch = s->epoch;
        }
        return rc;
}

TEST(the_newest_generations_are_kept) {
        struct fixture f = setup();
        uint64_t epoch, steps[REPLICA_SLOTS];
        struct error e;

        ASSERT_ERROR(find(f.r, 1, &epoch, &e), -ENOENT, e, "no snapshot of step 1");
        CU_ASSERT_EQUAL(replica_steps(f.r, steps), 0);
        for (uint64_t step = 1; step <= 7; step++) {
                put(f.r, step, 1);
                ASSERT_OK(find(f.r, step, &epoch, &e), e);
                if (step > 1)
                        ASSERT_OK(find(f.r, step - 1, &epoch, &e), e);
                if (step > REPLICA_SLOTS)
                        CU_ASSERT_EQUAL(find(f.r, step - REPLICA_SLOTS, &epoch, &e), -ENOENT);
        }
        CU_ASSERT_EQUAL(replica_steps(f.r, steps), REPLICA_SLOTS);
        CU_ASSERT_EQUAL(steps[0], 7);
        CU_ASSERT_EQUAL(steps[1], 6);
        teardown(&f);
}

/* Resumed from 6 while 7 was written: the new 7 must replace the old 7, not 6. */
TEST(a_roll_back_keeps_what_it_resumed_from) {
        struct fixture f = setup();
        uint64_t epoch = 0;
        struct error e;
        void *p;

        put(f.r, 6, 1);
        put(f.r, 7, 1);
        ASSERT_OK(replica_begin(f.r, 7, &p, &e), e); /* killed here */
        ASSERT_OK(find(f.r, 6, &epoch, &e), e);
        CU_ASSERT_EQUAL(find(f.r, 7, &epoch, &e), -ENOENT);
        put(f.r, 7, 2);
        ASSERT_OK(find(f.r, 6, &epoch, &e), e);
        ASSERT_OK(find(f.r, 7, &epoch, &e), e);
        CU_ASSERT_EQUAL(epoch, 2);
        /* back to a commit of step 3: everything later goes */
        put(f.r, 4, 3);
        CU_ASSERT_EQUAL(find(f.r, 6, &epoch, &e), -ENOENT);
        CU_ASSERT_EQUAL(find(f.r, 7, &epoch, &e), -ENOENT);
        ASSERT_OK(find(f.r, 4, &epoch, &e), e);
        teardown(&f);
}

TEST(touching_changes_nothing) {
        struct fixture f = setup();
        uint64_t epoch = 0, at = 0;
        struct error e;

        put(f.r, 1, 1);
        CU_ASSERT_EQUAL(replica_touched(f.r, 0), 0);
        while (replica_touch(f.r, &at))
                CU_ASSERT_FATAL(at <= replica_header(f.r)->size);
        if (at) /* the kernel has the call */
                CU_ASSERT_EQUAL(replica_touched(f.r, at), REPLICA_SLOTS);
        CU_ASSERT_EQUAL(replica_touched(f.r, replica_header(f.r)->size - 1), REPLICA_SLOTS - 1);
        ASSERT_OK(find(f.r, 1, &epoch, &e), e);
        teardown(&f);
}

TEST(a_torn_slot_is_no_snapshot) {
        struct fixture f = setup();
        uint64_t epoch = 0;
        struct error e;
        void *p;

        for (uint64_t step = 1; step <= REPLICA_SLOTS; step++)
                put(f.r, step, 1);
        ASSERT_OK(replica_begin(f.r, REPLICA_SLOTS + 1, &p, &e), e);
        memset(p, 0xee, 100);
        CU_ASSERT_EQUAL(find(f.r, 1, &epoch, &e), -ENOENT); /* being written over */
        for (uint64_t step = 2; step <= REPLICA_SLOTS; step++)
                ASSERT_OK(find(f.r, step, &epoch, &e), e);
        teardown(&f);
}

/* The newest that every peer has and the one on its way stay, whatever else comes. */
TEST(kept_generations_stay) {
        struct fixture f = setup();
        uint64_t epoch = 0;
        struct error e;

        put(f.r, 2, 1);
        put(f.r, 4, 1);
        replica_keep(f.r, 2, 4);
        for (uint64_t step = 5; step <= 12; step++) {
                put(f.r, step, 1);
                ASSERT_OK(find(f.r, 2, &epoch, &e), e);
                ASSERT_OK(find(f.r, 4, &epoch, &e), e);
                ASSERT_OK(find(f.r, step, &epoch, &e), e);
        }
        replica_keep(f.r, 4, 12);
        put(f.r, 13, 1);
        CU_ASSERT_EQUAL(find(f.r, 2, &epoch, &e), -ENOENT);
        put(f.r, 3, 2); /* rolled back below them: they are nobody's any more */
        CU_ASSERT_EQUAL(find(f.r, 4, &epoch, &e), -ENOENT);
        CU_ASSERT_EQUAL(find(f.r, 12, &epoch, &e), -ENOENT);
        teardown(&f);
}

/* A save reads the slot of step 2 for as long as it likes. */
TEST(a_pinned_slot_is_left_alone) {
        struct fixture f = setup();
        uint64_t epoch = 0;
        struct error e;

        CU_ASSERT_EQUAL(replica_pin(f.r), -EINVAL); /* nothing there */
        put(f.r, 1, 1);
        put(f.r, 2, 1);
        CU_ASSERT_EQUAL(replica_pin(f.r), 0);
        for (uint64_t step = 3; step <= 9; step++) {
                put(f.r, step, 1);
                ASSERT_OK(find(f.r, 2, &epoch, &e), e);
                ASSERT_OK(find(f.r, step, &epoch, &e), e);
                if (step > 3)
                        ASSERT_OK(find(f.r, step - 1, &epoch, &e), e); /* two besides it */
        }
        CU_ASSERT_EQUAL(replica_pin(f.r), -EBUSY);
        replica_unpin(f.r);
        put(f.r, 10, 1);
        CU_ASSERT_EQUAL(find(f.r, 2, &epoch, &e), -ENOENT);
        teardown(&f);
}

TEST(damage_is_seen) {
        struct fixture f = setup();
        const struct replica_slot *slot;
        struct replica_header *h;
        const void *payload;
        uint64_t epoch = 0;
        struct error e;
        void *p;

        put(f.r, 5, 1);
        h = (struct replica_header *)replica_header(f.r);
        ASSERT_OK(replica_find(f.r, 5, 1, &slot, &payload, &e), e);
        ((char *)payload)[1234] ^= 1;
        ASSERT_ERROR(find(f.r, 5, &epoch, &e), -EBADMSG, e, "does not match its digest");
        ASSERT_OK(replica_find(f.r, 5, 0, &slot, &payload, &e), e); /* only when asked */
        ((char *)payload)[1234] ^= 1;
        for (int i = 0; i < REPLICA_SLOTS; i++) {
                struct replica_slot *s = &h->slots[i], good = *s;

                if (!s->valid)
                        continue;
                s->step ^= 1;
                ASSERT_ERROR(find(f.r, 4, &epoch, &e), -EBADMSG, e, "header was damaged");
                *s = good;
                s->bytes = UINT64_MAX; /* and even with a check that fits */
                s->check = digest_of(&s->step, (size_t)((char *)&s->check - (char *)&s->step)).lo;
                ASSERT_ERROR(find(f.r, 5, &epoch, &e), -EBADMSG, e, "expected at most");
                *s = good;
                s->offset = 1;
                s->check = digest_of(&s->step, (size_t)((char *)&s->check - (char *)&s->step)).lo;
                ASSERT_ERROR(find(f.r, 5, &epoch, &e), -EBADMSG, e, "at 1, expected");
                *s = good;
        }
        ASSERT_OK(find(f.r, 5, &epoch, &e), e);
        CU_ASSERT_EQUAL(replica_commit(f.r, &(struct replica_slot){ .bytes = 1 }, (struct digest){ 0 }), -EINVAL); /* no begin */
        ASSERT_OK(replica_begin(f.r, 6, &p, &e), e);
        CU_ASSERT_EQUAL(replica_commit(f.r, &(struct replica_slot){ .bytes = ROOM + 1 }, (struct digest){ 0 }), -EINVAL);
        teardown(&f);
}

TEST(sizing_keeps_what_fits) {
        struct fixture f = setup();
        uint64_t epoch = 0;
        struct error e;

        put(f.r, 5, 1);
        ASSERT_OK(replica_size(f.fd, ROOM, &e), e);
        ASSERT_OK(replica_size(f.fd, 10, &e), e);
        ASSERT_OK(find(f.r, 5, &epoch, &e), e);
        ASSERT_OK(replica_size(f.fd, 3 * ROOM, &e), e);
        replica_unmap(f.r);
        ASSERT_OK(replica_map(f.fd, &f.r, &e), e);
        CU_ASSERT_EQUAL(replica_header(f.r)->slot_bytes, 3 * ROOM);
        CU_ASSERT_EQUAL(find(f.r, 5, &epoch, &e), -ENOENT);
        put(f.r, 6, 1);
        ASSERT_OK(find(f.r, 6, &epoch, &e), e);
        ASSERT_ERROR(replica_size(f.fd, 0, &e), -EINVAL, e, "slots of 0 bytes");
        ASSERT_ERROR(replica_size(f.fd, UINT64_MAX, &e), -EINVAL, e, "expected 1 to");
        CU_ASSERT_EQUAL(ftruncate(f.fd, 100), -1); /* sealed */
        teardown(&f);
}

TEST(only_a_replica_segment_is_mapped) {
        struct replica_header h = { .magic = REPLICA_MAGIC, .version = REPLICA_VERSION, .size = sizeof(h) };
        struct replica *r = NULL;
        struct error e;
        void *p;
        int fd = memfd_create("x", 0);

        CU_ASSERT_EQUAL(pwrite(fd, &h, 50, 0), 50);
        ASSERT_ERROR(replica_map(fd, &r, &e), -EBADMSG, e, "found 50 bytes");
        CU_ASSERT_EQUAL(pwrite(fd, &h, sizeof(h), 0), sizeof(h));
        ASSERT_OK(replica_map(fd, &r, &e), e);
        ASSERT_ERROR(replica_begin(r, 1, &p, &e), -EINVAL, e, "no room yet");
        r = replica_unmap(r);
        h.version = 7;
        CU_ASSERT_EQUAL(pwrite(fd, &h, sizeof(h), 0), sizeof(h));
        ASSERT_ERROR(replica_map(fd, &r, &e), -EBADMSG, e, "version 7");
        h.version = REPLICA_VERSION;
        h.size = sizeof(h) + 1;
        CU_ASSERT_EQUAL(pwrite(fd, &h, sizeof(h), 0), sizeof(h));
        ASSERT_ERROR(replica_map(fd, &r, &e), -EBADMSG, e, "a size of");
        h.size = sizeof(h);
        h.slot_bytes = UINT64_MAX - 100; /* twice that overflows */
        CU_ASSERT_EQUAL(pwrite(fd, &h, sizeof(h), 0), sizeof(h));
        ASSERT_ERROR(replica_map(fd, &r, &e), -EBADMSG, e, "slots of");
        CU_ASSERT_PTR_NULL(r);
        close(fd);
}

TEST_MAIN("replica")
