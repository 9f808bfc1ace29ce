/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The death notice: a robust mutex (pthread_mutexattr_setrobust(3)) that the rank's main thread locks and never unlocks.  When that thread dies, however it dies,
 * the kernel walks its robust list first thing in exit (kernel/futex/core.c, futex_exit_release, called from exit_mm before the memory is torn down), marks
 * the word FUTEX_OWNER_DIED and wakes a waiter.  A pidfd or a socket hangs up only after the memory is freed.
 *
 * The waiter that gets EOWNERDEAD unlocks without pthread_mutex_consistent: from then on everyone gets ENOTRECOVERABLE, so death stays death for every
 * later look, by whichever process.
 */
#include "proto/flight.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"

static int init_mutex(pthread_mutex_t *m) {
        pthread_mutexattr_t attr;
        int r;

        r = pthread_mutexattr_init(&attr);
        if (r)
                return r;
        r = pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
        if (!r)
                r = pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
        if (!r)
                r = pthread_mutex_init(m, &attr);
        pthread_mutexattr_destroy(&attr);
        return r;
}

int flight_create(int *ret_fd, struct error *e) {
        _cleanup_close_ int fd = memfd_create("fp8-flight", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        struct flight *f;
        int r;

        if (fd < 0)
                return error_errno(e, errno, "cannot create a flight recorder");
        if (ftruncate(fd, sizeof(*f)) < 0)
                return error_errno(e, errno, "cannot size a flight recorder to %zu bytes", sizeof(*f));
        /* Whoever maps it later cannot be made to trip over a missing page. */
        if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
                return error_errno(e, errno, "cannot seal a flight recorder");
        f = mmap(NULL, sizeof(*f), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (f == MAP_FAILED)
                return error_errno(e, errno, "cannot map a flight recorder");
        r = init_mutex(&f->alive);
        f->magic = FLIGHT_MAGIC;
        f->version = FLIGHT_VERSION;
        f->size = sizeof(*f);
        munmap(f, sizeof(*f));
        if (r)
                return error_errno(e, r, "cannot make a robust mutex");
        *ret_fd = STEAL_FD(fd);
        return 0;
}

int flight_map(int fd, struct flight **ret, struct error *e) {
        struct flight *f;
        struct stat st;

        if (fstat(fd, &st) < 0)
                return error_errno(e, errno, "cannot look at a flight recorder");
        if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < sizeof(*f))
                return error_set(e, -EBADMSG, "flight recorder: found %" PRId64 " bytes, expected at least %zu", (int64_t)st.st_size, sizeof(*f));
        f = mmap(NULL, sizeof(*f), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (f == MAP_FAILED)
                return error_errno(e, errno, "cannot map a flight recorder");
        if (f->magic != FLIGHT_MAGIC || f->version != FLIGHT_VERSION)
                error_set(e, -EBADMSG, "flight recorder: found magic %08x version %u, expected %08x version %u", f->magic, f->version, FLIGHT_MAGIC,
                          FLIGHT_VERSION);
        else if (f->size < sizeof(*f) || f->size > (uint64_t)st.st_size)
                error_set(e, -EBADMSG, "flight recorder: found a size of %" PRIu64 " in it, expected %zu to %" PRId64, f->size, sizeof(*f),
                          (int64_t)st.st_size);
        else {
                *ret = f;
                return 0;
        }
        munmap(f, sizeof(*f));
        return -EBADMSG;
}

struct flight *flight_unmap(struct flight *f) {
        if (f)
                munmap(f, sizeof(*f));
        return NULL;
}

int flight_hold(struct flight *f, struct error *e) {
        int r = pthread_mutex_trylock(&f->alive);

        if (r)
                return error_set(e, -EBUSY, "flight recorder: its mutex is taken or its holder died (%s), expected a new one",
                                 r == EBUSY ? "taken" : "dead");
        f->pid = (uint32_t)getpid();
        f->alive_held = 1;
        return 0;
}

int flight_wait_death(struct flight *f, uint64_t timeout_ns) {
        uint64_t deadline = clock_mono_ns();
        struct timespec t;
        int r;

        if (!f->alive_held)
                return -EAGAIN;
        if (__builtin_add_overflow(deadline, timeout_ns, &deadline) || deadline > INT64_MAX)
                deadline = INT64_MAX;
        t = (struct timespec){ .tv_sec = (time_t)(deadline / NSEC_PER_SEC), .tv_nsec = (long)(deadline % NSEC_PER_SEC) };
        r = pthread_mutex_clocklock(&f->alive, CLOCK_MONOTONIC, &t);
        if (r == EOWNERDEAD) {
                pthread_mutex_unlock(&f->alive); /* now not recoverable, for good */
                return 0;
        }
        if (r == ENOTRECOVERABLE)
                return 0;
        if (r == 0) { /* alive_held without a holder: nobody of ours writes that */
                pthread_mutex_unlock(&f->alive);
                return -EAGAIN;
        }
        return -r;
}

void flight_begin_epoch(struct flight *f, uint64_t epoch) {
        atomic_store(&f->head, 0);
        for (size_t i = 0; i < N_FLIGHT_GROUPS; i++)
                atomic_store(&f->met[i], 0);
        for (size_t i = 0; i < FLIGHT_RING; i++)
                atomic_store(&f->ring[i].seq, 0);
        atomic_store(&f->epoch, epoch);
}

uint64_t flight_enter(struct flight *f, const struct flight_call *call) {
        uint64_t seq = atomic_fetch_add(&f->head, 1) + 1;
        struct flight_entry *entry = &f->ring[seq % FLIGHT_RING];

        atomic_store(&entry->seq, 0);
        __atomic_store_n(&entry->op, (uint32_t)call->op, __ATOMIC_SEQ_CST);
        __atomic_store_n(&entry->group, call->group, __ATOMIC_SEQ_CST);
        __atomic_store_n(&entry->bytes, call->bytes, __ATOMIC_SEQ_CST);
        __atomic_store_n(&entry->number, call->number, __ATOMIC_SEQ_CST);
        __atomic_store_n(&entry->to, call->to, __ATOMIC_SEQ_CST);
        __atomic_store_n(&entry->from, call->from, __ATOMIC_SEQ_CST);
        atomic_store(&entry->left_ns, 0);
        if (call->number && call->group < N_FLIGHT_GROUPS)
                atomic_store(&f->met[call->group], call->number);
        atomic_store(&entry->entered_ns, clock_mono_ns());
        atomic_store(&entry->seq, seq);
        return seq;
}

void flight_leave(struct flight *f, uint64_t seq) {
        struct flight_entry *entry = &f->ring[seq % FLIGHT_RING];

        uint64_t now = clock_mono_ns(), entered = atomic_load(&entry->entered_ns);

        if (atomic_load(&entry->seq) != seq)
                return;
        atomic_store(&entry->left_ns, now);
        atomic_fetch_add(&f->waited_ns, now > entered ? now - entered : 0);
}

bool flight_read(const struct flight *f, uint64_t seq, struct flight_record *ret) {
        const struct flight_entry *entry = &f->ring[seq % FLIGHT_RING];
        struct flight_record r = { .seq = seq };

        if (seq == 0 || atomic_load(&entry->seq) != seq)
                return false;
        r.op = __atomic_load_n(&entry->op, __ATOMIC_SEQ_CST);
        r.group = __atomic_load_n(&entry->group, __ATOMIC_SEQ_CST);
        r.bytes = __atomic_load_n(&entry->bytes, __ATOMIC_SEQ_CST);
        r.number = __atomic_load_n(&entry->number, __ATOMIC_SEQ_CST);
        r.to = __atomic_load_n(&entry->to, __ATOMIC_SEQ_CST);
        r.from = __atomic_load_n(&entry->from, __ATOMIC_SEQ_CST);
        r.entered_ns = atomic_load(&entry->entered_ns);
        r.left_ns = atomic_load(&entry->left_ns);
        if (atomic_load(&entry->seq) != seq)
                return false;
        *ret = r;
        return true;
}

void flight_set_phase(struct flight *f, enum flight_phase phase) {
        uint64_t now = clock_mono_ns(), was = atomic_exchange(&f->phase, (uint64_t)phase), since = atomic_exchange(&f->phase_since_ns, now), waited = atomic_exchange(&f->waited_ns, 0);

        if (was < N_FLIGHT_PHASES && since && now > since + waited)
                atomic_fetch_add(&f->busy_ns[was], now - since - waited);
}

bool flight_lease_ok(const struct flight *f) {
        uint64_t deadline = atomic_load(&f->lease_deadline_ns);

        return deadline != 0 && clock_mono_ns() < deadline;
}

static const char *const op_names[] = { "none", "all_reduce", "reduce_scatter", "all_gather", "broadcast", "send", "recv", "barrier" };
static const char *const phase_names[] = { "starting", "parked", "loading", "joining", "forward", "reduce", "agree", "update", "gather", "snapshot", "eval", "done" };
static const char *const group_names[] = { "world", "tp", "dp", "pp", "stage", "embed" };

const char *flight_op_name(uint64_t op) {
        return op < ARRAY_SIZE(op_names) ? op_names[op] : "unknown";
}

const char *flight_phase_name(uint64_t phase) {
        return phase < ARRAY_SIZE(phase_names) ? phase_names[phase] : "unknown";
}

const char *flight_group_name(uint64_t group) {
        return group < ARRAY_SIZE(group_names) ? group_names[group] : "unknown";
}
