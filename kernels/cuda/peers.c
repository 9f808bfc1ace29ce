/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sends and receives between devices of one host by their copy engines, so that none of the multiprocessors, which the products want whole, works for them, and nothing has to be met anew that
 * takes longer than opening a handle.  Each member has a window: a few slots for each sender, and two counters a peer, which only that peer writes:
 *
 *   full[p]    pieces that p has put into its slots here
 *   empty[p]   pieces of ours that p has taken out of its slots
 *
 *   sender                                             receiver
 *   wait until empty[receiver] > piece - SLOTS
 *   copy the piece into the receiver's slot
 *   full[sender] there = piece + 1             --->    wait until full[sender] > piece
 *                                                      copy the slot's contents to their place
 *   wait (SLOTS pieces later)                  <---    empty[receiver] there = piece + 1
 *
 * All of it is enqueued on the caller's stream.  Members enqueue the pieces of a call in rounds, in each first one of every send, then one of every receive: whoever waits in round k waits for
 * something of an earlier round or of the sends of this one, so nobody waits in a circle.
 *
 * A counter that is waited for can be written by ourselves: that is the abort.  What was enqueued then runs on garbage (dev_comm.h), into our own memory and the peers' windows of this epoch,
 * which nobody reads any more: each epoch has windows of its own.
 */
#include <cuda.h>
#include <cudaTypedefs.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "kernels/cuda/hopper.h"
#include "kernels/cuda/peers.h"

#define MOST 16                        /* members */
#define SLOTS 4
#define SLOTS_BYTES ((size_t)128 << 20) /* of a window, for all senders together */
#define SLOT_MOST ((size_t)32 << 20)   /* so many wait in a stream's queue at most as a large call has pieces */
#define LINE 128                       /* bytes between counters */
#define HEAD ((size_t)2 * MOST * LINE)
#define LET_GO ((uint64_t)1 << 62)     /* greater than any piece's number; waits compare the difference's sign */
#define DRAIN_NS (60 * NSEC_PER_SEC)
#define MAGIC UINT32_C(0x66387031)

struct card {
        uint32_t magic, n;
        uint64_t slot;
        char boot[40];
        cudaIpcMemHandle_t handle;
};
_Static_assert(sizeof(struct card) <= DEV_COMM_CARD, "a card holds a handle and what must be equal");

struct peers {
        struct dev *dev;
        int n, index;
        size_t slot;
        uint8_t *window, *remote[MOST]; /* remote[index] is not used */
        uint64_t sent[MOST], taken[MOST]; /* pieces, since the members met */
        cudaStream_t control; /* what lets the others go runs past them */
        cudaEvent_t last;     /* after what was enqueued last */
        bool used;
};

static struct {
        PFN_cuStreamWaitValue64_v11070 wait;
        PFN_cuStreamWriteValue64_v11070 write;
} driver;
static pthread_once_t driver_once = PTHREAD_ONCE_INIT;

static void *find(const char *name) {
        enum cudaDriverEntryPointQueryResult found;
        void *p = NULL;

        return cudaGetDriverEntryPointByVersion(name, &p, 11070, cudaEnableDefault, &found) == cudaSuccess && found == cudaDriverEntryPointSuccess ? p : NULL;
}

static void driver_find(void) {
        driver.wait = (PFN_cuStreamWaitValue64_v11070)find("cuStreamWaitValue64");
        driver.write = (PFN_cuStreamWriteValue64_v11070)find("cuStreamWriteValue64");
}

/* ------------------------------------------------------------------ where things lie in a window */

static CUdeviceptr full_at(const uint8_t *window, int from) {
        return (CUdeviceptr)(uintptr_t)(window + (size_t)(2 * from) * LINE);
}

static CUdeviceptr empty_at(const uint8_t *window, int to) {
        return (CUdeviceptr)(uintptr_t)(window + (size_t)(2 * to + 1) * LINE);
}

static uint8_t *slot_at(const struct peers *p, uint8_t *window, int owner, int from, uint64_t piece) {
        size_t sender = (size_t)(from < owner ? from : from - 1);

        return window + HEAD + (sender * SLOTS + piece % SLOTS) * p->slot;
}

/* ------------------------------------------------------------------ meeting */

/* Handles are good on the host that made them. */
static int boot_id(char ret[40]) {
        int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
        ssize_t n = fd >= 0 ? read(fd, ret, 36) : -1;

        if (fd >= 0)
                (void)close(fd);
        ret[n > 0 ? n : 0] = '\0';
        return n == 36 ? 0 : -EOPNOTSUPP;
}

static int refused(struct peers *p, cudaError_t r, const char *what, struct error *e) {
        (void)cudaGetLastError();
        peers_free(p);
        return error_set(e, -EOPNOTSUPP, "%s: %s", what, cudaGetErrorString(r));
}

int peers_open(struct dev *d, int n, int index, uint8_t ret_card[DEV_COMM_CARD], struct peers **ret, struct error *e) {
        struct card card = { .magic = MAGIC, .n = (uint32_t)n };
        struct peers *p;
        cudaError_t r;
        int low, high;

        (void)pthread_once(&driver_once, driver_find);
        if (n > MOST || !driver.wait || !driver.write || boot_id(card.boot) < 0)
                return error_set(e, -EOPNOTSUPP, "no copies between peers here");
        p = calloc(1, sizeof *p);
        if (!p)
                return error_errno(e, ENOMEM, "peers' memory");
        *p = (struct peers){ .dev = d, .n = n, .index = index, .slot = SLOTS_BYTES / SLOTS / (size_t)(n - 1) / 4096 * 4096 };
        if (p->slot > SLOT_MOST)
                p->slot = SLOT_MOST;
        card.slot = p->slot;
        r = cudaSetDevice(d->index);
        if (r == cudaSuccess)
                r = cudaMalloc((void **)&p->window, HEAD + p->slot * SLOTS * (size_t)(n - 1));
        if (r == cudaSuccess)
                r = cudaDeviceGetStreamPriorityRange(&low, &high);
        if (r == cudaSuccess)
                r = cudaStreamCreateWithPriority(&p->control, cudaStreamNonBlocking, high);
        if (r == cudaSuccess)
                r = cudaEventCreateWithFlags(&p->last, cudaEventDisableTiming);
        if (r == cudaSuccess)
                r = cudaMemsetAsync(p->window, 0, HEAD, p->control);
        if (r == cudaSuccess)
                r = cudaStreamSynchronize(p->control); /* the others may write from when they have the card */
        if (r == cudaSuccess)
                r = cudaIpcGetMemHandle(&card.handle, p->window);
        if (r != cudaSuccess)
                return refused(p, r, "a window for the peers", e);
        memcpy(ret_card, &card, sizeof card);
        *ret = p;
        return 0;
}

/* Not a failure of the caller's: then they meet by NCCL. */
int peers_join(struct peers *p, const uint8_t (*cards)[DEV_COMM_CARD], struct error *e) {
        struct card own, card;

        memcpy(&own, cards[p->index], sizeof own);
        for (int i = 0; i < p->n; i++) {
                cudaError_t r;
                void *at = NULL;

                if (i == p->index)
                        continue;
                memcpy(&card, cards[i], sizeof card);
                if (card.magic != own.magic || card.n != own.n || card.slot != own.slot || memcmp(card.boot, own.boot, sizeof card.boot) != 0)
                        return error_set(e, -EOPNOTSUPP, "member %d is of another host or program", i);
                r = cudaIpcOpenMemHandle(&at, card.handle, cudaIpcMemLazyEnablePeerAccess);
                if (r != cudaSuccess) {
                        (void)cudaGetLastError();
                        return error_set(e, -EOPNOTSUPP, "memory of member %d: %s", i, cudaGetErrorString(r));
                }
                p->remote[i] = at;
                /* what it has now, to see that it can be done at all */
                if (driver.write(p->control, full_at(at, p->index), 0, CU_STREAM_WRITE_VALUE_DEFAULT) != CUDA_SUCCESS)
                        return error_set(e, -EOPNOTSUPP, "memory of member %d cannot be written by a stream", i);
        }
        return cudaStreamSynchronize(p->control) == cudaSuccess ? 0 : error_set(e, -EIO, "memory of a peer could not be written");
}

static void let_go(struct peers *p) {
        for (int i = 0; i < p->n; i++)
                if (i != p->index) {
                        (void)driver.write(p->control, full_at(p->window, i), LET_GO, CU_STREAM_WRITE_VALUE_DEFAULT);
                        (void)driver.write(p->control, empty_at(p->window, i), LET_GO, CU_STREAM_WRITE_VALUE_DEFAULT);
                }
}

void peers_free(struct peers *p) {
        uint64_t end = clock_mono_ns() + DRAIN_NS;

        if (!p)
                return;
        /* Again and again: a peer that still works may count on over our word. */
        while (p->used && cudaEventQuery(p->last) == cudaErrorNotReady && clock_mono_ns() < end) {
                let_go(p);
                (void)nanosleep(&(struct timespec){ .tv_nsec = 500000 }, NULL);
        }
        for (int i = 0; i < p->n; i++)
                if (p->remote[i])
                        (void)cudaIpcCloseMemHandle(p->remote[i]);
        (void)cudaFree(p->window);
        if (p->last)
                (void)cudaEventDestroy(p->last);
        if (p->control)
                (void)cudaStreamDestroy(p->control);
        free(p);
}

/* ------------------------------------------------------------------ moving */

static int put(struct peers *p, int to, const uint8_t *from, size_t bytes, cudaStream_t s) {
        uint64_t piece = p->sent[to]++;

        if (piece >= SLOTS && driver.wait(s, empty_at(p->window, to), piece - SLOTS + 1, CU_STREAM_WAIT_VALUE_GEQ) != CUDA_SUCCESS)
                return -EIO;
        if (cudaMemcpyAsync(slot_at(p, p->remote[to], to, p->index, piece), from, bytes, cudaMemcpyDeviceToDevice, s) != cudaSuccess)
                return -EIO;
        return driver.write(s, full_at(p->remote[to], p->index), piece + 1, CU_STREAM_WRITE_VALUE_DEFAULT) == CUDA_SUCCESS ? 0 : -EIO;
}

static int take(struct peers *p, int from, uint8_t *to, size_t bytes, cudaStream_t s) {
        uint64_t piece = p->taken[from]++;

        if (driver.wait(s, full_at(p->window, from), piece + 1, CU_STREAM_WAIT_VALUE_GEQ) != CUDA_SUCCESS)
                return -EIO;
        if (cudaMemcpyAsync(to, slot_at(p, p->window, p->index, from, piece), bytes, cudaMemcpyDeviceToDevice, s) != cudaSuccess)
                return -EIO;
        return driver.write(s, empty_at(p->remote[from], p->index), piece + 1, CU_STREAM_WRITE_VALUE_DEFAULT) == CUDA_SUCCESS ? 0 : -EIO;
}

/* One piece of each part that still has one. 1: it had. */
static int pass(struct peers *p, const struct dev_comm_part *parts, int n, bool send, size_t done, cudaStream_t s) {
        int more = 0;

        for (int i = 0; i < n; i++) {
                size_t left = done < parts[i].bytes ? parts[i].bytes - done : 0, here = left < p->slot ? left : p->slot;
                uint8_t *at = (uint8_t *)parts[i].ptr + done;
                int r;

                if (parts[i].send != send || here == 0)
                        continue;
                r = send ? put(p, parts[i].peer, at, here, s) : take(p, parts[i].peer, at, here, s);
                if (r < 0)
                        return r;
                more = 1;
        }
        return more;
}

int peers_exchange(struct peers *p, const struct dev_comm_part *parts, int n, struct dev_stream *s, struct error *e) {
        int sent = 1, taken = 1;

        for (size_t done = 0; sent > 0 || taken > 0; done += p->slot) {
                sent = pass(p, parts, n, true, done, s->stream);
                taken = sent < 0 ? sent : pass(p, parts, n, false, done, s->stream);
                if (taken < 0)
                        break;
        }
        p->used = true;
        if (cudaEventRecord(p->last, s->stream) == cudaSuccess && taken >= 0)
                return 0;
        return error_set(e, -EIO, "copies between peers: %s", cudaGetErrorString(cudaGetLastError()));
}
