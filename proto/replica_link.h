/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Generations on their way between a rank and the node that keeps its second copy.  The rank's side goes through struct replica_transport, so that another kind
 * of wire can stand beside sockets; an endpoint's scheme chooses.
 *
 * On a socket:   rank -> host   hello {job, epoch, rank, incarnation, nonce}
 *                host -> rank   nonce, HMAC-SHA256(key, "accept" hello nonce)
 *                rank -> host   HMAC(key, "connect" hello nonce)
 * then any number of PUT {header} -> {GO | HAVE | refusal}, payload -> {DONE | refusal} and GET {header} -> {header}, payload.  The key is of the epoch
 * (ReplicaPlan): who does not hold it is not answered.  A payload counts when its XXH3-128 is the header's.
 *
 * Where both ends have a lane device (RDMA), a rank offers a lane after the handshake: LANE {address} -> {LANE {address} | refusal}.  PUT and GET then name the
 * receiver's memory, the sender writes the payload there and says WRITTEN (MOVING now and then, as long as it takes), and the receiver, having looked at the digest,
 * TAKEN.  Whichever end sees the lane fail gives it up and says BYTES: the payload follows on the socket, as do all later ones of this connection.  The receiver
 * closes its own end of the lane before it takes them, so nothing that is still on its way can be written over them.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/lane.h"
#include "proto/replica.h"

#define REPLICA_KEY 32
#define REPLICA_TIMEOUT_MS 5000 /* without a byte moved */

struct replica_peer {
        uint64_t job, epoch, incarnation;
        uint32_t rank;
};

/* Cuts waiting short: asked every 20 ms; true: -ECANCELED. stop NULL: never. */
struct replica_wait {
        bool (*stop)(void *arg);
        void *arg;
};

struct replica_link;

/* A rank's lanes, and the mapping in which the payloads lie that it puts or gets. */
struct replica_lanes {
        struct lane_device device;
        struct lane_pool pool;
};

/* Of payloads that were put or got whole. */
struct replica_traffic {
        uint64_t lane_bytes, socket_bytes;
        uint64_t falls; /* lanes given up */
        char why[256];  /* the last one */
};

struct replica_transport {
        const char *scheme; /* "tcp:" */
        int (*open)(const char *endpoint, const struct replica_peer *self, const uint8_t key[REPLICA_KEY], const struct replica_wait *w,
                    const struct replica_lanes *lanes /* NULL: none */, struct replica_link **ret, struct error *e);
        /* Returns when the host has verified and keeps it: 0; 1: it had it before. keep_step: the generation that it must not write over; 0: any. */
        int (*put)(struct replica_link *l, const struct replica_slot *what, const void *payload, uint64_t keep_step, struct error *e);
        /* -ENOENT: not there. At most size bytes; what arrived is verified: -EBADMSG. */
        int (*get)(struct replica_link *l, uint64_t step, uint64_t epoch, struct replica_slot *ret, void *buf, uint64_t size, struct error *e);
        void (*traffic)(const struct replica_link *l, struct replica_traffic *ret);
        struct replica_link *(*close)(struct replica_link *l); /* NULL is allowed */
};
/* -EPROTONOSUPPORT: no transport for this endpoint. */
int replica_transport_find(const char *endpoint, const struct replica_transport **ret, struct error *e);

/* What a host decides; called from the thread of the connection. */
struct replica_host {
        void *arg;
        /* The key of (job, epoch) when this incarnation is the rank's there. */
        int (*admit)(void *arg, const struct replica_peer *who, uint8_t ret_key[REPLICA_KEY], struct error *e);
        /* 0: room at *ret_payload, put_end follows; 1: it is here already; negative: refused. */
        int (*put_begin)(void *arg, const struct replica_peer *who, const struct replica_slot *what, uint64_t keep_step, void **ret_payload, void **ret_token, struct error *e);
        /* whole: all arrived and the digest is right. Else it is forgotten, and what is returned does not matter. */
        int (*put_end)(void *arg, const struct replica_peer *who, const struct replica_slot *what, void *token, bool whole, struct error *e);
        int (*get_begin)(void *arg, const struct replica_peer *who, uint64_t step, uint64_t epoch, struct replica_slot *ret, const void **ret_payload, void **ret_token,
                         struct error *e);
        void (*get_end)(void *arg, void *token);
        /* The mapping that a begun put's or get's payload lies in. */
        struct lane_pool (*pool)(void *arg, void *token);
        struct lane_device lanes; /* ops NULL: none */
};
/* A connection from accept to its end; the fd stays the caller's. Why it ended is in e (a peer that left: -EPIPE). */
int replica_serve(int fd, const struct replica_host *h, const struct replica_wait *w, struct error *e);
