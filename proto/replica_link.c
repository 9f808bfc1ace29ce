/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/replica_link.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "base/wire.h"

#define LINK_VERSION 1
#define NONCE 32
#define MAC 32
#define HELLO (8 + 4 + 4 + 3 * 8 + NONCE)
#define HEADER (2 * 4 + 8 * 8 + REPLICA_LAYOUT_SIZE)
#define LOOK_MS 20
#define CHUNK (1u << 20)
static const char magic[8] = "FP8REPL";

#define LANE_PART (UINT64_C(16) << 20) /* between two looks at whether it is still wanted */
#define LANE_TIMEOUT_MS 2000           /* without a write completed */
#define MOVING_MS 1000

enum op { OP_PUT = 1, OP_GET, OP_GO, OP_HAVE, OP_DONE, OP_REFUSED, OP_LANE, OP_PUT_LANE, OP_GET_LANE, OP_GO_LANE, OP_MOVING, OP_WRITTEN, OP_TAKEN, OP_BYTES };

/* One of the two ends. */
struct end {
        int fd;
        struct replica_wait wait;
        struct lane_device lanes;
        struct lane *lane; /* NULL: by the socket */
        struct replica_traffic traffic;
};

struct replica_link {
        struct end end;
        struct lane_pool pool;
};

/* Where a payload is to be written by a lane; key and address are the receiver's. */
struct there {
        uint64_t address;
        uint32_t key;
};

/* ------------------------------------------------------------------ bytes */
static int stopped(const struct replica_wait *w) {
        return w && w->stop && w->stop(w->arg);
}

/* Until fd is ready. forever: between requests a peer may be silent. */
static int wait_ready(int fd, short events, const struct replica_wait *w, bool forever, struct error *e) {
        uint64_t deadline = clock_mono_ns() + REPLICA_TIMEOUT_MS * NSEC_PER_MSEC;

        for (;;) {
                struct pollfd p = { .fd = fd, .events = events };
                int n = poll(&p, 1, LOOK_MS);

                if (n > 0)
                        return 0;
                if (n < 0 && errno != EINTR)
                        return error_errno(e, errno, "replica link");
                if (stopped(w))
                        return error_set(e, -ECANCELED, "replica link: given up");
                if (!forever && clock_mono_ns() > deadline)
                        return error_set(e, -ETIMEDOUT, "replica link: no byte moved for %d ms", REPLICA_TIMEOUT_MS);
        }
}

static int move_all(int fd, void *buf, uint64_t len, bool out, bool forever, const struct replica_wait *w, struct error *e) {
        uint8_t *p = buf;

        while (len > 0) {
                size_t want = len < CHUNK ? (size_t)len : CHUNK;
                ssize_t n = out ? send(fd, p, want, MSG_NOSIGNAL | MSG_DONTWAIT) : recv(fd, p, want, MSG_DONTWAIT);

                if (n > 0) {
                        p += n;
                        len -= (uint64_t)n;
                        forever = false;
                        if (stopped(w))
                                return error_set(e, -ECANCELED, "replica link: given up");
                        continue;
                }
                if (n == 0 && !out)
                        return error_set(e, -EPIPE, "replica link: the other end hung up");
                if (errno == EAGAIN || errno == EWOULDBLOCK) {
                        int r = wait_ready(fd, out ? POLLOUT : POLLIN, w, forever, e);

                        if (r < 0)
                                return r;
                } else if (errno != EINTR) {
                        return error_errno(e, errno == ECONNRESET ? EPIPE : errno, "replica link");
                }
        }
        return 0;
}

static int send_all(int fd, const void *buf, uint64_t len, const struct replica_wait *w, struct error *e) {
        return move_all(fd, (void *)buf, len, true, false, w, e);
}

static int recv_all(int fd, void *buf, uint64_t len, const struct replica_wait *w, struct error *e) {
        return move_all(fd, buf, len, false, false, w, e);
}

/* keep_step is a PUT's; GO_LANE and GET_LANE have the receiver's address there, and its key in the second field. */
static int send_header_to(int fd, enum op op, const struct replica_slot *s, uint64_t keep_step, uint32_t key, const struct replica_wait *w, struct error *e) {
        uint8_t buf[HEADER] = { 0 }, *p = buf;

        p = wire_put(p, op, 4);
        p = wire_put(p, key, 4);
        p = wire_put(p, s->step, 8);
        p = wire_put(p, s->epoch, 8);
        p = wire_put(p, s->rank, 8);
        p = wire_put(p, s->shard_count, 8);
        p = wire_put(p, s->bytes, 8);
        p = wire_put(p, s->digest_hi, 8);
        p = wire_put(p, s->digest_lo, 8);
        p = wire_put(p, keep_step, 8);
        memcpy(p, s->layout, strnlen(s->layout, REPLICA_LAYOUT_SIZE - 1));
        return send_all(fd, buf, sizeof(buf), w, e);
}

static int send_header(int fd, enum op op, const struct replica_slot *s, uint64_t keep_step, const struct replica_wait *w, struct error *e) {
        return send_header_to(fd, op, s, keep_step, 0, w, e);
}

static int recv_header_at(int fd, bool first, uint32_t *ret_op, struct replica_slot *ret, uint64_t *ret_keep, uint32_t *ret_key, const struct replica_wait *w,
                          struct error *e) {
        uint8_t buf[HEADER];
        const uint8_t *p = buf;
        int r = move_all(fd, buf, sizeof(buf), false, first, w, e);

        if (r < 0)
                return r;
        *ret = (struct replica_slot){ 0 };
        *ret_op = (uint32_t)wire_get(&p, 4);
        *ret_key = (uint32_t)wire_get(&p, 4);
        ret->step = wire_get(&p, 8);
        ret->epoch = wire_get(&p, 8);
        ret->rank = wire_get(&p, 8);
        ret->shard_count = wire_get(&p, 8);
        ret->bytes = wire_get(&p, 8);
        ret->digest_hi = wire_get(&p, 8);
        ret->digest_lo = wire_get(&p, 8);
        *ret_keep = wire_get(&p, 8);
        memcpy(ret->layout, p, REPLICA_LAYOUT_SIZE - 1);
        return 0;
}

static int recv_header(int fd, bool first, uint32_t *ret_op, struct replica_slot *ret, uint64_t *ret_keep, const struct replica_wait *w, struct error *e) {
        uint32_t key;

        return recv_header_at(fd, first, ret_op, ret, ret_keep, &key, w, e);
}

static bool is_whole(const struct replica_slot *s, const void *payload) {
        return digest_equal(digest_of(payload, (size_t)s->bytes), (struct digest){ .hi = s->digest_hi, .lo = s->digest_lo });
}

/* ------------------------------------------------------------------ payloads, by lane or by socket */
static int say(struct end *x, enum op op, const char *text, struct error *e) {
        struct replica_slot s = { 0 };
        size_t len = strlen(text);

        memcpy(s.layout, text, len < sizeof(s.layout) ? len : sizeof(s.layout) - 1);
        return send_header(x->fd, op, &s, 0, &x->wait, e);
}

/* What comes next, without its numbers. */
static int hear(struct end *x, uint32_t *ret_op, struct replica_slot *ret, struct error *e) {
        uint64_t keep;

        return recv_header(x->fd, false, ret_op, ret, &keep, &x->wait, e);
}

static void close_lane(struct end *x) {
        if (x->lane)
                x->lane = x->lanes.ops->close(x->lane);
}

static void lose_lane(struct end *x, const char *why) {
        close_lane(x);
        x->traffic.falls++;
        snprintf(x->traffic.why, sizeof(x->traffic.why), "%.250s", why);
}

static int write_by_lane(struct end *x, const struct lane_pool *pool, const uint8_t *payload, uint64_t bytes, struct there to, struct error *e) {
        uint64_t said = clock_mono_ns();

        for (uint64_t at = 0; at < bytes;) {
                uint64_t n = bytes - at < LANE_PART ? bytes - at : LANE_PART;
                int r = x->lanes.ops->write(x->lane, pool, payload + at, n, to.address + at, to.key, LANE_TIMEOUT_MS, e);

                if (r < 0)
                        return r;
                at += n;
                if (stopped(&x->wait))
                        return error_set(e, -ECANCELED, "replica link: given up");
                if (clock_mono_ns() < said + MOVING_MS * NSEC_PER_MSEC)
                        continue;
                said = clock_mono_ns();
                r = say(x, OP_MOVING, "", e);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int send_by_socket(struct end *x, const void *payload, uint64_t bytes, struct error *e) {
        int r = send_all(x->fd, payload, bytes, &x->wait, e);

        x->traffic.socket_bytes += r == 0 ? bytes : 0;
        return r;
}

/* By the lane, to where the other end wants it; when that fails, by the socket. */
static int send_payload(struct end *x, const struct lane_pool *pool, const void *payload, uint64_t bytes, struct there to, struct error *e) {
        struct replica_slot answer = { 0 };
        struct error why = { 0 };
        uint32_t op = 0;
        int r = write_by_lane(x, pool, payload, bytes, to, &why);

        if (r == -ECANCELED || r == -EPIPE)
                return error_set(e, r, "%s", why.text);
        if (r < 0) {
                lose_lane(x, why.text);
                r = say(x, OP_BYTES, why.text, e);
                return r < 0 ? r : send_by_socket(x, payload, bytes, e);
        }
        r = say(x, OP_WRITTEN, "", e);
        if (r == 0)
                r = hear(x, &op, &answer, e);
        if (r < 0)
                return r;
        if (op == OP_TAKEN) {
                x->traffic.lane_bytes += bytes;
                return 0;
        }
        if (op != OP_BYTES)
                return error_set(e, -EPROTO, "replica link: found answer %" PRIu32 ", expected %d or %d", op, OP_TAKEN, OP_BYTES);
        lose_lane(x, answer.layout);
        return send_by_socket(x, payload, bytes, e);
}

static int recv_by_socket(struct end *x, const struct replica_slot *what, void *buf, bool *ret_whole, struct error *e) {
        int r = recv_all(x->fd, buf, what->bytes, &x->wait, e);

        if (r < 0)
                return r;
        *ret_whole = is_whole(what, buf);
        x->traffic.socket_bytes += what->bytes;
        return 0;
}

/* The other end was told where: it writes there by the lane, or comes with the bytes. */
static int recv_payload(struct end *x, const struct replica_slot *what, void *buf, bool *ret_whole, struct error *e) {
        static const char damaged[] = "what came by the lane does not match its digest";
        struct replica_slot s = { 0 };
        uint32_t op = OP_MOVING;
        int r = 0;

        while (r == 0 && op == OP_MOVING)
                r = hear(x, &op, &s, e);
        if (r < 0)
                return r;
        if (op == OP_WRITTEN && is_whole(what, buf)) {
                r = say(x, OP_TAKEN, "", e);
                if (r < 0)
                        return r;
                x->traffic.lane_bytes += what->bytes;
                *ret_whole = true;
                return 0;
        }
        if (op != OP_WRITTEN && op != OP_BYTES)
                return error_set(e, -EPROTO, "replica link: found %" PRIu32 ", expected %d or %d", op, OP_WRITTEN, OP_BYTES);
        lose_lane(x, op == OP_WRITTEN ? damaged : s.layout);
        if (op == OP_WRITTEN)
                r = say(x, OP_BYTES, damaged, e);
        return r < 0 ? r : recv_by_socket(x, what, buf, ret_whole, e);
}

/* Where the other end may write to; false: not by the lane. */
static bool expose(struct end *x, const struct lane_pool *pool, const void *buf, uint64_t bytes, struct there *ret) {
        uintptr_t base = (uintptr_t)pool->base, at = (uintptr_t)buf;
        struct error why = { 0 };

        if (!x->lane)
                return false;
        if (at < base || at - base > pool->size || bytes > pool->size - (at - base))
                return false; /* it lies elsewhere */
        if (x->lanes.ops->expose(x->lane, pool, &ret->key, &why) < 0) {
                lose_lane(x, why.text);
                return false;
        }
        ret->address = at;
        return true;
}

/* The rank offers a lane. Without one all goes by the socket; the other end's having no device is nothing to tell. */
static int offer_lane(struct end *x, struct error *e) {
        char address[LANE_ADDRESS];
        struct replica_slot answer = { 0 };
        struct error why = { 0 };
        uint32_t op = 0;
        int r;

        if (x->lanes.ops->open(x->lanes.device, address, &x->lane, &why) < 0) {
                lose_lane(x, why.text);
                return 0;
        }
        r = say(x, OP_LANE, address, e);
        if (r == 0)
                r = hear(x, &op, &answer, e);
        if (r < 0)
                return r;
        if (op != OP_LANE)
                close_lane(x);
        else if (x->lanes.ops->connect(x->lane, answer.layout, &why) < 0)
                lose_lane(x, why.text);
        return 0;
}

static int answer_lane(struct end *x, const struct replica_slot *offer, struct error *e) {
        char address[LANE_ADDRESS];
        struct error why = { 0 };

        close_lane(x);
        if (!x->lanes.ops)
                return say(x, OP_REFUSED, "no lanes here", e);
        if (x->lanes.ops->open(x->lanes.device, address, &x->lane, &why) < 0 || x->lanes.ops->connect(x->lane, offer->layout, &why) < 0) {
                lose_lane(x, why.text);
                return say(x, OP_REFUSED, why.text, e);
        }
        return say(x, OP_LANE, address, e);
}

/* ------------------------------------------------------------------ who are you */
static void pack_hello(const struct replica_peer *who, const uint8_t nonce[NONCE], uint8_t buf[HELLO]) {
        uint8_t *p = buf;

        memcpy(p, magic, 8);
        p = wire_put(p + 8, LINK_VERSION, 4);
        p = wire_put(p, who->rank, 4);
        p = wire_put(p, who->job, 8);
        p = wire_put(p, who->epoch, 8);
        p = wire_put(p, who->incarnation, 8);
        memcpy(p, nonce, NONCE);
}

static int unpack_hello(const uint8_t buf[HELLO], struct replica_peer *ret, struct error *e) {
        const uint8_t *p = buf + 8;
        uint64_t version;

        if (memcmp(buf, magic, 8) != 0)
                return error_set(e, -EPROTO, "replica link: not a rank of a job");
        version = wire_get(&p, 4);
        if (version != LINK_VERSION)
                return error_set(e, -EPROTO, "replica link: found version %" PRIu64 ", expected %d", version, LINK_VERSION);
        ret->rank = (uint32_t)wire_get(&p, 4);
        ret->job = wire_get(&p, 8);
        ret->epoch = wire_get(&p, 8);
        ret->incarnation = wire_get(&p, 8);
        return 0;
}

/* Both nonces are covered, so nothing can be replayed; the labels differ, so nothing can be reflected. */
static int mac_of(const uint8_t key[REPLICA_KEY], const char *label, const uint8_t hello[HELLO], const uint8_t nonce[NONCE], uint8_t ret[MAC], struct error *e) {
        uint8_t text[32 + HELLO + NONCE] = { 0 };
        unsigned len = 0;

        memcpy(text, label, strnlen(label, 31));
        memcpy(text + 32, hello, HELLO);
        memcpy(text + 32 + HELLO, nonce, NONCE);
        if (!HMAC(EVP_sha256(), key, REPLICA_KEY, text, sizeof(text), ret, &len) || len != MAC)
                return error_set(e, -EIO, "replica link: OpenSSL made no HMAC");
        return 0;
}

static int nonce_of(uint8_t nonce[NONCE], struct error *e) {
        return RAND_bytes(nonce, NONCE) == 1 ? 0 : error_set(e, -EIO, "replica link: no random bytes from OpenSSL");
}

static int say_who(struct end *l, const struct replica_peer *self, const uint8_t key[REPLICA_KEY], struct error *e) {
        uint8_t nonce[NONCE], hello[HELLO], reply[NONCE + MAC], mac[MAC];
        int r = nonce_of(nonce, e);

        if (r < 0)
                return r;
        pack_hello(self, nonce, hello);
        r = send_all(l->fd, hello, sizeof(hello), &l->wait, e);
        if (r == 0)
                r = recv_all(l->fd, reply, sizeof(reply), &l->wait, e);
        if (r == 0)
                r = mac_of(key, "fp8ctl replica accept", hello, reply, mac, e);
        if (r < 0)
                return r;
        if (CRYPTO_memcmp(mac, reply + NONCE, MAC) != 0)
                return error_set(e, -EACCES, "replica link: the host does not hold the epoch's key");
        r = mac_of(key, "fp8ctl replica connect", hello, reply, mac, e);
        return r < 0 ? r : send_all(l->fd, mac, sizeof(mac), &l->wait, e);
}

static int ask_who(int fd, const struct replica_host *h, const struct replica_wait *w, struct replica_peer *ret, struct error *e) {
        uint8_t key[REPLICA_KEY] = { 0 }, hello[HELLO], reply[NONCE + MAC], mac[MAC], theirs[MAC];
        int r = recv_all(fd, hello, sizeof(hello), w, e);

        if (r == 0)
                r = unpack_hello(hello, ret, e);
        if (r == 0)
                r = h->admit(h->arg, ret, key, e);
        if (r == 0)
                r = nonce_of(reply, e);
        if (r == 0)
                r = mac_of(key, "fp8ctl replica accept", hello, reply, reply + NONCE, e);
        if (r == 0)
                r = send_all(fd, reply, sizeof(reply), w, e);
        if (r == 0)
                r = recv_all(fd, theirs, sizeof(theirs), w, e);
        if (r == 0)
                r = mac_of(key, "fp8ctl replica connect", hello, reply, mac, e);
        OPENSSL_cleanse(key, sizeof(key));
        if (r < 0)
                return r;
        return CRYPTO_memcmp(mac, theirs, MAC) == 0 ? 0 : error_set(e, -EACCES, "replica link: rank %" PRIu32 " of job %" PRIu64 " does not hold the epoch's key", ret->rank, ret->job);
}

/* ------------------------------------------------------------------ the rank's side: sockets */
static int tcp_connect(const char *where, const struct replica_wait *w, int *ret, struct error *e) {
        _cleanup_close_ int fd = -1;
        struct addrinfo *found = NULL;
        int r = net_resolve(where, &found, e), err = 0, one = 1;
        socklen_t len = sizeof(err);

        if (r < 0)
                return r;
        fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        r = fd < 0 ? -errno : connect(fd, found->ai_addr, found->ai_addrlen) < 0 ? -errno : 0;
        freeaddrinfo(found);
        if (r == -EINPROGRESS) {
                r = wait_ready(fd, POLLOUT, w, false, e);
                if (r < 0)
                        return r;
                r = getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0 ? -errno : -err;
        }
        if (r < 0)
                return error_errno(e, -r, "cannot connect to %s", where);
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        *ret = STEAL_FD(fd);
        return 0;
}

static struct replica_link *socket_close(struct replica_link *l) {
        if (!l)
                return NULL;
        close_lane(&l->end);
        closep(&l->end.fd);
        free(l);
        return NULL;
}

static int open_once(const char *endpoint, const struct replica_peer *self, const uint8_t key[REPLICA_KEY], const struct replica_wait *w, const struct replica_lanes *lanes,
                     struct replica_link **ret, struct error *e) {
        struct replica_link *l = calloc(1, sizeof(*l));
        int r;

        if (!l)
                return error_errno(e, ENOMEM, "replica link");
        l->end.fd = -1;
        l->end.wait = w ? *w : (struct replica_wait){ 0 };
        l->end.lanes = lanes ? lanes->device : (struct lane_device){ 0 };
        l->pool = lanes ? lanes->pool : (struct lane_pool){ 0 };
        r = tcp_connect(endpoint + strlen("tcp:"), &l->end.wait, &l->end.fd, e);
        if (r == 0)
                r = say_who(&l->end, self, key, e);
        if (r == 0 && l->end.lanes.ops)
                r = offer_lane(&l->end, e);
        if (r < 0) {
                socket_close(l);
                return r;
        }
        *ret = l;
        return 0;
}

static int socket_open(const char *endpoint, const struct replica_peer *self, const uint8_t key[REPLICA_KEY], const struct replica_wait *w, const struct replica_lanes *lanes,
                       struct replica_link **ret, struct error *e) {
        int r = open_once(endpoint, self, key, w, lanes, ret, e);

        /* A host of the version before knows no lanes and hangs up. */
        return r == -EPIPE && lanes && lanes->device.ops ? open_once(endpoint, self, key, w, NULL, ret, e) : r;
}

static void socket_traffic(const struct replica_link *l, struct replica_traffic *ret) {
        *ret = l->end.traffic;
}

/* A refusal's layout field is its text. */
static int refused(const struct replica_slot *s, int code, struct error *e) {
        return error_set(e, code, "%.200s", s->layout[0] ? s->layout : "refused");
}

static int socket_put(struct replica_link *l, const struct replica_slot *what, const void *payload, uint64_t keep_step, struct error *e) {
        struct end *x = &l->end;
        struct replica_slot answer = { 0 };
        struct there to = { 0 };
        uint32_t op = 0;
        int r = send_header(x->fd, x->lane ? OP_PUT_LANE : OP_PUT, what, keep_step, &x->wait, e);

        if (r == 0)
                r = recv_header_at(x->fd, false, &op, &answer, &to.address, &to.key, &x->wait, e);
        if (r < 0)
                return r;
        if (op == OP_HAVE)
                return 1;
        if (op == OP_GO && x->lane)
                lose_lane(x, answer.layout);
        if (op != OP_GO && (op != OP_GO_LANE || !x->lane))
                return refused(&answer, -ECONNREFUSED, e);
        r = op == OP_GO ? send_by_socket(x, payload, what->bytes, e) : send_payload(x, &l->pool, payload, what->bytes, to, e);
        if (r == 0)
                r = hear(x, &op, &answer, e);
        if (r < 0)
                return r;
        return op == OP_DONE ? 0 : refused(&answer, -ECONNREFUSED, e);
}

static int socket_get(struct replica_link *l, uint64_t step, uint64_t epoch, struct replica_slot *ret, void *buf, uint64_t size, struct error *e) {
        struct end *x = &l->end;
        struct replica_slot ask = { .step = step, .epoch = epoch }, answer = { 0 };
        struct there here = { 0 };
        bool whole = false, lane = expose(x, &l->pool, buf, size, &here);
        uint32_t op = 0;
        int r = send_header_to(x->fd, lane ? OP_GET_LANE : OP_GET, &ask, here.address, here.key, &x->wait, e);

        if (r == 0)
                r = hear(x, &op, &answer, e);
        if (r < 0)
                return r;
        if (op != OP_GO && (op != OP_GO_LANE || !lane))
                return refused(&answer, -ENOENT, e);
        if (answer.step != step || answer.epoch != epoch || answer.bytes > size)
                return error_set(e, -EBADMSG, "replica link: found step %" PRIu64 " of epoch %" PRIu64 " with %" PRIu64 " bytes, expected step %" PRIu64 " of epoch %" PRIu64
                                 " with at most %" PRIu64, answer.step, answer.epoch, answer.bytes, step, epoch, size);
        if (op == OP_GO && lane)
                lose_lane(x, "the host has no lane any more");
        r = op == OP_GO ? recv_by_socket(x, &answer, buf, &whole, e) : recv_payload(x, &answer, buf, &whole, e);
        if (r < 0)
                return r;
        if (!whole)
                return error_set(e, -EBADMSG, "replica link: the %" PRIu64 " bytes of step %" PRIu64 " do not match their digest", answer.bytes, step);
        *ret = answer;
        return 0;
}

static const struct replica_transport sockets = { "tcp:", socket_open, socket_put, socket_get, socket_traffic, socket_close };
static const struct replica_transport *const transports[] = { &sockets };

int replica_transport_find(const char *endpoint, const struct replica_transport **ret, struct error *e) {
        for (size_t i = 0; endpoint && i < ARRAY_SIZE(transports); i++)
                if (strncmp(endpoint, transports[i]->scheme, strlen(transports[i]->scheme)) == 0) {
                        *ret = transports[i];
                        return 0;
                }
        return error_set(e, -EPROTONOSUPPORT, "replica endpoint '%.100s': found no way there, expected tcp:HOST:PORT", endpoint ? endpoint : "");
}

/* ------------------------------------------------------------------ the host's side */
static int refuse(struct end *x, const struct error *why, struct error *e) {
        return say(x, OP_REFUSED, why->text, e);
}

/* GO, and where to by the lane, if the rank asked for that. The reason why not is told. */
static int let_put(struct end *x, const struct replica_slot *what, const struct lane_pool *pool, void *payload, bool by_lane, bool *ret_by_lane, struct error *e) {
        struct there to = { 0 };

        *ret_by_lane = by_lane && expose(x, pool, payload, what->bytes, &to);
        if (*ret_by_lane)
                return send_header_to(x->fd, OP_GO_LANE, what, to.address, to.key, &x->wait, e);
        return by_lane ? say(x, OP_GO, x->traffic.why[0] ? x->traffic.why : "the host has no lane", e) : send_header(x->fd, OP_GO, what, 0, &x->wait, e);
}

static int serve_put(struct end *x, const struct replica_host *h, const struct replica_peer *who, struct replica_slot *what, uint64_t keep_step, bool by_lane, struct error *e) {
        struct error why = { 0 };
        void *payload = NULL, *token = NULL;
        struct lane_pool pool;
        bool whole = false;
        int r, end;

        if (what->rank != who->rank)
                return error_set(e, -EPROTO, "replica link: rank %" PRIu32 " brought a snapshot of rank %" PRIu64, who->rank, what->rank);
        what->job_id = who->job;
        r = h->put_begin(h->arg, who, what, keep_step, &payload, &token, &why);
        if (r < 0)
                return refuse(x, &why, e);
        if (r > 0)
                return send_header(x->fd, OP_HAVE, what, 0, &x->wait, e);
        pool = h->pool(h->arg, token);
        r = let_put(x, what, &pool, payload, by_lane, &by_lane, e);
        if (r == 0)
                r = by_lane ? recv_payload(x, what, payload, &whole, e) : recv_by_socket(x, what, payload, &whole, e);
        if (r < 0)
                close_lane(x); /* before the room is another's */
        if (r == 0 && !whole)
                error_set(&why, -EBADMSG, "what came does not match its digest");
        end = h->put_end(h->arg, who, what, token, whole, &why);
        if (r < 0)
                return r;
        return whole && end == 0 ? send_header(x->fd, OP_DONE, what, 0, &x->wait, e) : refuse(x, &why, e);
}

static int serve_get(struct end *x, const struct replica_host *h, const struct replica_peer *who, const struct replica_slot *ask, bool by_lane, struct there to, struct error *e) {
        struct error why = { 0 };
        struct replica_slot slot = { 0 };
        struct lane_pool pool;
        const void *payload;
        void *token;
        int r = h->get_begin(h->arg, who, ask->step, ask->epoch, &slot, &payload, &token, &why);

        if (r < 0)
                return refuse(x, &why, e);
        pool = h->pool(h->arg, token);
        by_lane = by_lane && x->lane;
        r = send_header(x->fd, by_lane ? OP_GO_LANE : OP_GO, &slot, 0, &x->wait, e);
        if (r == 0)
                r = by_lane ? send_payload(x, &pool, payload, slot.bytes, to, e) : send_by_socket(x, payload, slot.bytes, e);
        if (r < 0)
                close_lane(x);
        h->get_end(h->arg, token);
        return r;
}

int replica_serve(int fd, const struct replica_host *h, const struct replica_wait *w, struct error *e) {
        struct end x = { .fd = fd, .wait = w ? *w : (struct replica_wait){ 0 }, .lanes = h->lanes };
        struct replica_peer who = { 0 };
        int r = ask_who(fd, h, w, &who, e);

        while (r == 0) {
                struct replica_slot s = { 0 };
                struct there to = { 0 };
                uint32_t op = 0;

                r = recv_header_at(fd, true, &op, &s, &to.address, &to.key, w, e);
                if (r < 0)
                        break;
                if (op == OP_PUT || op == OP_PUT_LANE)
                        r = serve_put(&x, h, &who, &s, to.address, op == OP_PUT_LANE, e);
                else if (op == OP_GET || op == OP_GET_LANE)
                        r = serve_get(&x, h, &who, &s, op == OP_GET_LANE, to, e);
                else if (op == OP_LANE)
                        r = answer_lane(&x, &s, e);
                else
                        r = error_set(e, -EPROTO, "replica link: found request %" PRIu32 ", expected %d, %d or %d", op, OP_PUT, OP_GET, OP_LANE);
        }
        close_lane(&x);
        return r;
}
