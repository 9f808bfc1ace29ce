/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Collectives between the ranks of a job.  A *mesh* is everything an epoch has (all ranks, all connections); a *comm* is an
 * ordered group of its ranks.  Host memory goes over sockets (AF_UNIX inside a node, TCP between nodes); device memory over the collectives that come with the device's backend (dev_comm.h: NCCL).
 * A mesh always has its sockets: over them ranks of a group hand each other the id by which their devices meet, so it is good for this epoch and those who hold its key only, and over them all
 * agree on a step before anything of it is committed.
 *
 * Return values: 0; a negative errno with the error's text for what is fatal; or one of the positive conditions below, which
 * the caller must handle by leaving the epoch (comm_abort, then comm_mesh_free, then a new mesh).  After any of them the
 * contents of the buffers are undefined, but nothing writes to them any more once the call has returned.
 *
 * Reduction order is that of the group index (ring by group index), never of arrival or placement: same inputs, same bits.
 * Calls on host memory block until the local part is done.  `stream` orders them after device work; the socket backend synchronises it.  Calls on device memory (groups of comm_new_device)
 * are enqueued on `stream`: a thread of the mesh watches them, and when a peer is lost, one makes no progress for timeout_ms, or the abort handle is raised, it ends all of the mesh's
 * communicators at once.  What was queued behind them then runs on garbage, and the next call of the mesh returns the condition: so nothing that a step made may be kept before a call on host
 * memory of all ranks, after the stream was synchronised, has returned 0.  A peer that hangs up is a lost one: whoever is through frees its mesh only when all are.
 * One thread uses a mesh at a time, except comm_abort, which any thread may call.
 */
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "kernels/dev.h"
#include "proto/flight.h"

enum comm_condition { COMM_E_PEER_LOST = 1, COMM_E_TIMEOUT = 2, COMM_E_ABORTED = 3 };
enum comm_op { COMM_SUM, COMM_MAX, COMM_MIN };

struct comm_listener;
struct comm_mesh;
struct comm;

/* Bound once a rank process and kept over epochs. dir NULL: no AF_UNIX; host NULL: no TCP. Its endpoint string ("unix:/dir/r3.i12.sock,tcp:127.0.0.1:40123") goes to the controller. */
int comm_listener_new(const char *dir, const char *host, const char *name, struct comm_listener **ret, struct error *e);
const char *comm_listener_endpoint(const struct comm_listener *l);
/* Connections dropped since it was bound: another job, epoch, rank, incarnation, version or key. */
uint64_t comm_listener_refused(const struct comm_listener *l);
struct comm_listener *comm_listener_free(struct comm_listener *l);

struct comm_device;
struct dev_comm_settings;

/* The collectives of a device, one a rank process; kept over epochs. scratch: bytes of device memory for what is received before it is summed. -ENODEV: the backend has none here. */
int comm_device_new(const struct dev_ops *ops, struct dev *dev, const struct dev_comm_settings *s, size_t scratch, struct comm_device **ret, struct error *e);
struct comm_device *comm_device_free(struct comm_device *d);
/* Network ports that the plan gives this rank, "=mlx5_0:1"; before the first mesh: the library keeps what it has. False: found no such list, and nothing is changed. */
bool comm_device_use_ports(struct comm_device *d, const char *list);
/* Part of the numeric fingerprint. */
const char *comm_device_fingerprint(const struct comm_device *d);

struct comm_peer {
        uint64_t incarnation;
        const char *endpoint;
        const char *node; /* equal names: AF_UNIX */
};

struct comm_mesh_config {
        uint64_t job, epoch;
        int rank, n_ranks;
        const struct comm_peer *peers; /* n_ranks, in rank order */
        const char *node;              /* own */
        uint8_t key[32];               /* of the epoch: mutual HMAC-SHA256 challenge in the handshake, which also carries job, epoch, rank, incarnation */
        int timeout_ms;                /* of every call; restarts on progress */
        int connect_timeout_ms;        /* for the whole mesh */
        struct flight *flight;         /* may be NULL; every collective is numbered and noted */
        const struct dev_ops *ops;     /* whose streams the calls are given; NULL: buffers are host memory, streams are not looked at */
        struct comm_device *device;    /* NULL: memory of the device is the host's own (CPU), and groups of comm_new_device are as others */
};

/* An abort handle lives longer than the meshes it aborts; one a rank process. */
struct comm_abort;
int comm_abort_new(struct comm_abort **ret, struct error *e);
struct comm_abort *comm_abort_free(struct comm_abort *a);
/* Any thread, any time: every call of the mesh bound to it, its building included, returns COMM_E_ABORTED within milliseconds. */
void comm_abort_raise(struct comm_abort *a);
void comm_abort_reset(struct comm_abort *a);

/* Meets all peers of the epoch. Connections with a wrong key, epoch, job or incarnation are dropped and counted, never waited for. */
int comm_mesh_new(struct comm_listener *l, struct comm_abort *a, const struct comm_mesh_config *c, struct comm_mesh **ret, struct error *e);
struct comm_mesh *comm_mesh_free(struct comm_mesh *m); /* closes everything, which carries the news to the peers */
/* The peer that the last condition was about (global rank), or -1. */
int comm_mesh_lost_peer(const struct comm_mesh *m);

/* A group in this order; the caller's rank must be in it. tag: noted in the flight recorder. Group of one: every call is a copy. */
int comm_new(struct comm_mesh *m, const int *ranks, int n, uint32_t tag, struct comm **ret, struct error *e);
/* The same for buffers in device memory (comm_barrier stays the host's). All members make the groups that they share in the same order; groups of the same ranks share one communicator.
 * Types: DT_F32 and DT_BF16 where something is reduced. */
int comm_new_device(struct comm_mesh *m, const int *ranks, int n, uint32_t tag, struct comm **ret, struct error *e);
struct comm *comm_free(struct comm *c);
int comm_rank(const struct comm *c); /* group index */
int comm_size(const struct comm *c);

/* In place on buf[count]. dtype: DT_F32 (a double in the FP64 build), DT_BF16 (summed in F32, rounded once at the end), DT_I32, DT_I64, DT_F64, DT_U8.
 * COMM_MAX and COMM_MIN: a NaN anywhere makes the result NaN (amax must not hide one). Every rank gets the same bits. */
int comm_all_reduce(struct comm *c, void *buf, size_t count, enum dtype t, enum comm_op op, struct dev_stream *stream, struct error *e);
/* in[count * size] -> out[count]: chunk i of the sum goes to group index i. in and out must not overlap; in may be overwritten (scratch). */
int comm_reduce_scatter(struct comm *c, void *in, void *out, size_t count, enum dtype t, enum comm_op op, struct dev_stream *stream, struct error *e);
/* in[bytes] -> out[bytes * size]; in may be the right place inside out. */
int comm_all_gather(struct comm *c, const void *in, void *out, size_t bytes, struct dev_stream *stream, struct error *e);
/* Uneven form: member i gives sizes[i] bytes, placed one after another. */
int comm_all_gather_v(struct comm *c, const void *in, void *out, const size_t *sizes, struct dev_stream *stream, struct error *e);
/* Member i gives the sizes[i] bytes at buf + offsets[i], which everybody has in the end; what lies between stays. */
int comm_all_gather_at(struct comm *c, void *buf, const size_t *offsets, const size_t *sizes, struct dev_stream *stream, struct error *e);
int comm_reduce_scatter_v(struct comm *c, void *in, void *out, const size_t *counts, enum dtype t, enum comm_op op, struct dev_stream *stream, struct error *e);
int comm_broadcast(struct comm *c, void *buf, size_t bytes, int root, struct dev_stream *stream, struct error *e);
/* Point to point; send may return once the data is buffered or on its way. A pair must not both send large data first: use comm_send_recv. */
int comm_send(struct comm *c, const void *buf, size_t bytes, int to, struct dev_stream *stream, struct error *e);
int comm_recv(struct comm *c, void *buf, size_t bytes, int from, struct dev_stream *stream, struct error *e);
int comm_send_recv(struct comm *c, const void *out, size_t out_bytes, int to, void *in, size_t in_bytes, int from, struct dev_stream *stream, struct error *e);
int comm_barrier(struct comm *c, struct error *e);
/* What is enqueued on `later` from now on comes after what is on `earlier` now; of a group on host memory: nothing. Calls of one group on several streams are put in order by this. */
int comm_stream_after(struct comm *c, struct dev_stream *later, struct dev_stream *earlier, struct error *e);
