/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replica-rdma DEVICE MIB PULL: a rank's generations to a holder and back over a true RDMA device, both ends in this process; then once more while the shell
 * command PULL takes the link away in the middle of a write. Prints what went which way; fails when anything did not arrive whole, or not the way it should have.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/rdma.h"
#include "proto/replica_link.h"
#include "worker/agent/holder.h"

static const struct lane_ops *true_ops;
static const char *pull;
static bool pulling;
static atomic_bool pulled;

static void *pull_soon(void *arg) {
        (void)poll(NULL, 0, 10);
        if (system(pull) != 0) // NOLINT(cert-env33-c,bugprone-command-processor): the command is the caller's
                fprintf(stderr, "'%s' failed\n", pull);
        atomic_store(&pulled, true);
        return NULL;
}

/* The link goes while this write is under way: it is made again and again until then, and once after. */
static int write_pulled(struct lane *l, const struct lane_pool *p, const void *from, uint64_t bytes, uint64_t to, uint32_t key, int timeout_ms, struct error *e) {
        pthread_t thread;
        bool mine = pulling, over;
        int r;

        pulling = false;
        if (mine && pthread_create(&thread, NULL, pull_soon, NULL) != 0)
                return error_set(e, -EAGAIN, "no thread");
        do {
                over = !mine || atomic_load(&pulled);
                r = true_ops->write(l, p, from, bytes, to, key, timeout_ms, e);
        } while (r == 0 && !over);
        if (mine)
                pthread_join(thread, NULL);
        return r;
}

static void keep(void *arg, Fp8ctl__V1__KeptFd__Kind kind, uint64_t job, uint32_t rank, int fd) {
}

static int begin(struct holder **ret, struct lane_device lanes, uint64_t bytes, uint8_t key[REPLICA_KEY], struct error *e) {
        struct holder_config c = { .node = "b", .host = "127.0.0.1", .memory = 3 * bytes, .keep = keep, .lanes = lanes };
        Fp8ctl__V1__ReplicaPlan m = FP8CTL__V1__REPLICA_PLAN__INIT;
        Fp8ctl__V1__ReplicaNode b = FP8CTL__V1__REPLICA_NODE__INIT, *nodes[] = { &b };
        int32_t holders[] = { 0 };
        uint64_t incarnations[] = { 1 };
        int r = holder_new(&c, ret, e);

        if (r == 0)
                r = holder_start(*ret, e);
        memset(key, 7, REPLICA_KEY);
        b.name = (char *)"b";
        m.job_id = m.epoch = 1;
        m.key.data = key;
        m.key.len = REPLICA_KEY;
        m.nodes = nodes;
        m.holders = holders;
        m.incarnations = incarnations;
        m.n_nodes = m.n_holders = m.n_incarnations = 1;
        if (r == 0)
                holder_plan(*ret, &m);
        return r;
}

struct way {
        const struct replica_transport *transport;
        struct replica_link *link;
        struct lane_pool pool;
        uint64_t bytes;
};

/* Puts a generation of its own pattern, gets it back, compares. ret_ms: of the two. */
static int there_and_back(struct way *y, uint64_t step, double ret_ms[2], struct error *e) {
        uint8_t *out = y->pool.base, *back = out + y->bytes;
        struct replica_slot s = { .step = step, .epoch = 1, .rank = 0, .shard_count = 1, .bytes = y->bytes, .layout = "x" }, got;
        uint64_t at[3];
        struct digest d;
        int r;

        for (uint64_t i = 0; i < y->bytes / 8; i++)
                ((uint64_t *)out)[i] = (i + step) * UINT64_C(0x9e3779b97f4a7c15);
        memset(back, 0, y->bytes);
        d = digest_of(out, y->bytes);
        s.digest_hi = d.hi;
        s.digest_lo = d.lo;
        at[0] = clock_mono_ns();
        r = y->transport->put(y->link, &s, out, 0, e);
        at[1] = clock_mono_ns();
        if (r == 0)
                r = y->transport->get(y->link, step, 1, &got, back, y->bytes, e);
        at[2] = clock_mono_ns();
        for (int i = 0; i < 2; i++)
                ret_ms[i] = (double)(at[i + 1] - at[i]) / 1e6;
        if (r == 0 && (memcmp(out, back, y->bytes) != 0 || !digest_equal(digest_of(back, y->bytes), d)))
                r = error_set(e, -EBADMSG, "step %" PRIu64 " came back damaged", step);
        return r;
}

static int expect(const struct way *y, const char *what, double ms[2], const struct replica_traffic *want, struct error *e) {
        struct replica_traffic n;

        y->transport->traffic(y->link, &n);
        printf("FIGURE: %s: digests equal; put %.0f ms, get %.0f ms (%.0f and %.0f MB/s); %" PRIu64 " bytes by RDMA, %" PRIu64 " by sockets, %" PRIu64 " lanes given up%s%s\n", what, ms[0],
               ms[1], (double)y->bytes / ms[0] / 1e3, (double)y->bytes / ms[1] / 1e3, n.lane_bytes, n.socket_bytes, n.falls, n.falls ? ": " : "", n.why);
        fflush(stdout);
        if (n.lane_bytes == want->lane_bytes && n.socket_bytes == want->socket_bytes && n.falls == want->falls)
                return 0;
        return error_set(e, -EIO, "%s: expected %" PRIu64 " bytes by RDMA, %" PRIu64 " by sockets and %" PRIu64 " lanes given up", what, want->lane_bytes, want->socket_bytes, want->falls);
}

static int run(const char *device, uint64_t bytes, struct error *e) {
        struct replica_peer self = { .job = 1, .epoch = 1, .incarnation = 1, .rank = 0 };
        struct replica_traffic by_lane = { .lane_bytes = 4 * bytes }, mixed = { .lane_bytes = 4 * bytes, .socket_bytes = 2 * bytes, .falls = 1 };
        struct holder *h = NULL;
        struct rdma *rdma = NULL;
        struct lane_ops ops;
        struct replica_lanes lanes;
        struct way y = { .bytes = bytes };
        uint8_t key[REPLICA_KEY];
        double ms[2];
        int fd = memfd_create("room", MFD_CLOEXEC), r = rdma_open(device, &rdma, e);

        if (r < 0)
                return r;
        if (fd < 0 || ftruncate(fd, (off_t)(2 * bytes)) < 0)
                return error_errno(e, errno, "memory");
        y.pool = (struct lane_pool){ mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), 2 * bytes, 1 };
        if (y.pool.base == MAP_FAILED)
                return error_errno(e, errno, "memory");
        true_ops = rdma_lanes(rdma).ops;
        ops = *true_ops;
        ops.write = write_pulled;
        r = begin(&h, rdma_lanes(rdma), bytes, key, e);
        lanes = (struct replica_lanes){ { &ops, rdma }, y.pool };
        if (r == 0)
                r = replica_transport_find(holder_endpoint(h), &y.transport, e);
        if (r == 0)
                r = y.transport->open(holder_endpoint(h), &self, key, NULL, &lanes, &y.link, e);
        for (uint64_t step = 1; r == 0 && step <= 2; step++)
                r = there_and_back(&y, step, ms, e);
        if (r == 0)
                r = expect(&y, "over RDMA", ms, &by_lane, e);
        pulling = true;
        if (r == 0)
                r = there_and_back(&y, 3, ms, e);
        if (r == 0)
                r = expect(&y, "link pulled in the middle", ms, &mixed, e);
        if (y.link)
                y.transport->close(y.link);
        holder_free(h);
        rdma_free(rdma);
        munmap(y.pool.base, 2 * bytes);
        close(fd);
        return r;
}

int main(int argc, char **argv) {
        struct error e = { 0 };

        if (argc != 4) {
                fprintf(stderr, "usage: replica-rdma DEVICE MIB PULL\n");
                return 2;
        }
        log_open("replica-rdma", LOG_LEVEL_INFO);
        pull = argv[3];
        if (run(argv[1], strtoull(argv[2], NULL, 10) << 20, &e) < 0) {
                fprintf(stderr, "replica-rdma: %s\n", e.text);
                return 1;
        }
        return 0;
}
