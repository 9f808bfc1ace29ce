/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the files of this folder share; nobody else includes it. */
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "kernels/dev_comm.h"
#include "worker/comm/comm.h"

/* ------------------------------------------------------------------ abort.c */

struct comm_abort {
        int fd; /* eventfd: readable while raised */
        _Atomic int raised;
};

/* ------------------------------------------------------------------ listener.c */

struct comm_listener {
        int unix_fd, tcp_fd; /* -1: not bound */
        char *path;          /* of the AF_UNIX socket, unlinked at the end */
        char *endpoint;
        uint64_t refused;
};

/*
 * TCP doubles its time-out with each try in vain: when a link is down for some seconds, ranks would wait about as long again after it is back, and longer than recovery.collective_timeout_ms.
 * No more than a second (the least that may be asked for) from one try to the next instead; the kernel's headers have the option from 6.15 on.
 */
enum { COMM_TCP_RTO_MAX_MS = 44 /* TCP_RTO_MAX_MS */, COMM_RTO_MAX_MS = 1000 };

/* Sizes the buffers of a stream socket (either end), turns Nagle's delay off and bounds TCP's back-off. */
void comm_socket_tune(int fd, bool tcp);
/*
 * Starts a non-blocking connection to the part of `endpoint` that fits (AF_UNIX when `local`, else TCP). 0: connected; -EINPROGRESS: wait for
 * POLLOUT; both set *ret_fd. -EAGAIN: the peer is not there yet, try again; another negative errno: it can never work.
 */
int comm_endpoint_connect(const char *endpoint, bool local, int *ret_fd, struct error *e);

/* ------------------------------------------------------------------ handshake.c */

#define HANDSHAKE_MAC 32
#define HANDSHAKE_HELLO 88
#define HANDSHAKE_REPLY (HANDSHAKE_HELLO + HANDSHAKE_MAC)

/* What both ends must agree on; written little-endian, field by field. */
struct handshake_hello {
        uint32_t version, from, to, n_ranks;
        uint64_t job, epoch, from_incarnation, to_incarnation;
        uint8_t nonce[32];
};

void handshake_pack(const struct handshake_hello *h, uint8_t buf[HANDSHAKE_HELLO]);
/* -EPROTO: other magic or version. */
int handshake_unpack(const uint8_t buf[HANDSHAKE_HELLO], struct handshake_hello *ret, struct error *e);
/* Whether a hello is from `from` to `to` in this mesh; says what differs. */
int handshake_check(const struct handshake_hello *h, const struct comm_mesh_config *c, uint32_t from, struct error *e);
int handshake_nonce(uint8_t nonce[32], struct error *e);
/* HMAC-SHA256 under the epoch's key over a label (who proves), the connector's hello and the acceptor's. */
int handshake_mac(const uint8_t key[32], const char *label, const uint8_t a[HANDSHAKE_HELLO], const uint8_t b[HANDSHAKE_HELLO], uint8_t ret[HANDSHAKE_MAC],
                  struct error *e);
bool handshake_mac_equal(const uint8_t a[HANDSHAKE_MAC], const uint8_t b[HANDSHAKE_MAC]);

/* ------------------------------------------------------------------ mesh.c, mesh_build.c, io.c */

struct pollfd;

struct comm_mesh {
        struct comm_mesh_config config; /* peers and node: only valid while the mesh is built */
        struct comm_abort *abort;
        int *fds;      /* by global rank; -1: own or closed */
        int condition; /* the positive condition or negative errno that ended it; every later call returns it */
        int lost_peer;
        uint64_t calls; /* collectives begun */
        uint64_t number; /* of the one now in progress, as the flight recorder counts when there is one */
        const char *op_name;
        uint32_t tag;
        uint8_t *scratch; /* COMM_SCRATCH bytes, for reductions of what was received */
        uint8_t *staging; /* grows */
        size_t staging_size;
        struct comm_io *ios; /* 2 * n_ranks, for the calls in collective.c */
        struct pollfd *polls;
        void **sources; /* n_ranks, likewise */
        struct device_epoch *device; /* NULL: host memory only */
};

struct comm {
        struct comm_mesh *mesh;
        int n, index;
        uint32_t tag;
        uint64_t met; /* collectives begun, those of two members not counted */
        bool on_device;
        struct device_link *link; /* on_device and n > 1 */
        int ranks[];
};

/* Part of L2: a received window is summed while it is still there. */
#define COMM_SCRATCH (256u << 10)

/* Makes the connections of m (whose fds are all -1); the errors are comm_mesh_new's. */
int comm_mesh_build(struct comm_mesh *m, struct comm_listener *l, struct error *e);
/* Ends the mesh: closes all connections, remembers and returns the condition. text: what happened, put after the call's name and number. */
int comm_mesh_fail(struct comm_mesh *m, int condition, int peer, struct error *e, const char *fmt, ...) __attribute__((format(printf, 5, 6)));

/*
 * One direction of one connection during one call. The window is what may move now (len 0: nothing); after n bytes of it have moved, ptr and len are
 * advanced, and moved() (unless NULL) sees it and may set the next window of this or of another io. It is over when `left` is 0.
 */
struct comm_io {
        int peer; /* global rank */
        bool send;
        uint8_t *ptr;
        size_t len;
        size_t left; /* bytes still to move in all */
        void (*moved)(struct comm_io *io, size_t n);
        void *arg;
        bool ready;  /* worth trying before polling */
};

static inline void comm_io_plain(struct comm_io *io, int peer, bool send, const void *ptr, size_t len) {
        *io = (struct comm_io){ .peer = peer, .send = send, .ptr = (uint8_t *)ptr, .len = len, .left = len };
}

/* Moves all of them to their end, both directions at once. */
int comm_io_run(struct comm_mesh *m, struct comm_io *ios, size_t n, struct error *e);

/* ------------------------------------------------------------------ collective.c */

/* How `count` elements are cut for n members, in units: the first ones get one more where it does not come out even. */
size_t comm_chunk_start(size_t count, size_t unit, int n, int i);
/* `bytes` from the root to all, over the sockets, as part of another call. */
int comm_broadcast_run(struct comm *c, void *buf, size_t bytes, int root, struct error *e);
/* Everybody's `bytes`, one after another in buf, where the own ones are; likewise. */
int comm_gather_run(struct comm *c, void *buf, size_t bytes, struct error *e);

/* ------------------------------------------------------------------ device.c: communicators of devices, and who watches them */

struct comm_device {
        const struct dev_comm_ops *comm;
        const struct dev_ops *ops;
        struct dev *dev;
        void *scratch;
        size_t scratch_size;
        struct dev_comm_part *parts; /* grows */
        int n_parts;
};

/* As comm_device_new with a table given (tests). */
int comm_device_open(const struct dev_comm_ops *comm, const struct dev_ops *ops, struct dev *dev, const struct dev_comm_settings *s, size_t scratch, struct comm_device **ret,
                     struct error *e);
/* The watching thread of a mesh whose connections are there. */
int device_epoch_new(struct comm_mesh *m, struct error *e);
/* Ends all communicators, then the thread. */
struct device_epoch *device_epoch_free(struct device_epoch *d);
/* The mesh has ended: so do its communicators, soon. Waits for nothing. */
void device_epoch_end(struct device_epoch *d);
/* What the watching thread found, with its peer (or -1) and text; 0: nothing. */
int device_epoch_condition(struct device_epoch *d, int *ret_peer, char *text, size_t size);
/* The communicator of c's ranks, met or found. */
int device_link_find(struct comm *c, struct error *e);
/* A piece of work on a stream between these two is what the watching thread times; number: the flight recorder's. */
int device_work_begin(struct comm *c, struct dev_stream *s, uint64_t number, struct error *e);
int device_work_end(struct comm *c, struct dev_stream *s, struct error *e);
int device_stream_after(struct comm *c, struct dev_stream *later, struct dev_stream *earlier, struct error *e);
int device_exchange(struct comm *c, const struct dev_comm_part *parts, int n, struct dev_stream *s, struct error *e);

/* ------------------------------------------------------------------ device_collective.c: the calls of comm.h on device memory, begun by collective.c */

int device_all_reduce(struct comm *c, void *buf, size_t count, enum dtype t, enum comm_op op, struct dev_stream *s, struct error *e);
int device_reduce_scatter(struct comm *c, uint8_t *in, uint8_t *out, size_t count, const size_t *counts, enum dtype t, enum comm_op op, struct dev_stream *s, struct error *e);
int device_all_gather(struct comm *c, const uint8_t *in, uint8_t *out, size_t bytes, const size_t *sizes, struct dev_stream *s, struct error *e);
int device_all_gather_at(struct comm *c, uint8_t *buf, const size_t *offsets, const size_t *sizes, struct dev_stream *s, struct error *e);
int device_broadcast(struct comm *c, void *buf, size_t bytes, int root, struct dev_stream *s, struct error *e);
int device_send_recv(struct comm *c, const void *out, size_t out_bytes, int to, void *in, size_t in_bytes, int from, struct dev_stream *s, struct error *e);

/* ------------------------------------------------------------------ ring.c */

struct ring_segment {
        uint8_t *ptr;       /* where it lies, or comes to lie */
        const uint8_t *own; /* reduced with what is received: ptr = received op own; NULL: received straight into ptr */
        size_t len;
};

/*
 * A pipelined ring: sends seg[0 .. n-1), receives seg[1 .. n): what comes in as segment i goes out as segment i, byte for byte as it lands, so nobody
 * waits for a whole segment.
 */
int ring_run(struct comm *c, struct ring_segment *seg, size_t n, enum dtype t, enum comm_op op, struct error *e);

/* ------------------------------------------------------------------ reduce.c */

/* dst[i] = a[i] op b[i] for n elements; dst may be a or b. -EINVAL: a type that cannot be summed. BF16 is not among them: see reduce_bf16. */
int reduce_check(enum dtype t);
void reduce(void *dst, const void *a, const void *b, size_t n, enum dtype t, enum comm_op op);
/* dst[i] = bf16(src[0][i] op src[1][i] op ...), in F32, rounded once. */
void reduce_bf16(uint16_t *dst, const uint16_t *const *src, int n_src, size_t n, enum comm_op op);
