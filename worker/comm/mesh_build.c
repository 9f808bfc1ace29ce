/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Building the mesh: the higher rank of a pair connects to the lower one, which is there, not there yet, or still in an earlier epoch; so a connection that
 * is refused or dropped is tried again until the time is over.  The acceptor takes whoever proves to be the right peer of this epoch and drops all
 * others, without waiting for any: all handshakes go on side by side in one poll loop.  A peer that hangs up after its handshake has failed
 * or given up the epoch, so this rank gives it up at once too.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/backoff.h"
#include "base/clock.h"
#include "worker/comm/comm_private.h"

#define RETRY_FIRST_NS (2 * NSEC_PER_MSEC)
#define RETRY_MOST_NS (50 * NSEC_PER_MSEC)
/* Strangers that may be in their handshake beside the peers we expect; more push out the oldest. */
#define STRANGERS_MOST 64

enum link_state { LINK_IDLE, LINK_CONNECTING, LINK_WAIT_REPLY, LINK_WAIT_HELLO, LINK_WAIT_PROOF, LINK_UP };

/* One connection in its handshake: to a peer (connector), or accepted from somebody. */
struct link {
        enum link_state state;
        int fd;
        int peer; /* -1: not known yet */
        struct backoff retry;
        uint8_t own[HANDSHAKE_HELLO], theirs[HANDSHAKE_HELLO];
        uint8_t buf[HANDSHAKE_REPLY];
        size_t have;
};

struct build {
        struct comm_mesh *m;
        struct comm_listener *l;
        struct link *out; /* one for each rank below ours */
        struct link *in;  /* accepted, oldest first */
        size_t n_in, max_in;
        int missing; /* peers without a connection */
        struct pollfd *polls;
        struct link **polled; /* beside polls; NULL: abort, listener or an established connection */
        char why[256];        /* the last refusal, for the message when time runs out */
};

static void link_close(struct link *k) {
        if (k->fd >= 0)
                close(k->fd);
        k->fd = -1;
        k->have = 0;
        k->state = LINK_IDLE;
}

static void link_retry(struct link *k) {
        link_close(k);
        k->retry.first = RETRY_FIRST_NS;
        k->retry.most = RETRY_MOST_NS;
        backoff_failed(&k->retry, clock_mono_ns());
}

/* Handshake messages are far smaller than any socket buffer: on a fresh connection they go in one piece or it is of no use. */
static int link_send(struct link *k, const void *data, size_t len) {
        return send(k->fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)len ? 0 : -EPIPE;
}

/* 1: `want` bytes are there; 0: not yet; -EPIPE: hung up. Never reads further: what follows belongs to the first collective. */
static int link_recv(struct link *k, size_t want) {
        while (k->have < want) {
                ssize_t n = recv(k->fd, k->buf + k->have, want - k->have, MSG_DONTWAIT);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0 && errno == EAGAIN)
                        return 0;
                if (n <= 0)
                        return -EPIPE;
                k->have += (size_t)n;
        }
        k->have = 0;
        return 1;
}

static int own_hello(struct build *b, int peer, uint8_t buf[HANDSHAKE_HELLO], struct error *e) {
        const struct comm_mesh_config *c = &b->m->config;
        struct handshake_hello h = { .from = (uint32_t)c->rank, .to = (uint32_t)peer, .n_ranks = (uint32_t)c->n_ranks, .job = c->job, .epoch = c->epoch,
                                     .from_incarnation = c->peers[c->rank].incarnation, .to_incarnation = c->peers[peer].incarnation };
        int r = handshake_nonce(h.nonce, e);

        if (r < 0)
                return r;
        handshake_pack(&h, buf);
        return 0;
}

/* The link's connection is now the mesh's. A second one from the same peer means that it has begun anew: the newer counts. */
static void link_up(struct build *b, struct link *k) {
        int *fd = &b->m->fds[k->peer];

        if (*fd >= 0)
                close(*fd);
        else
                b->missing--;
        *fd = STEAL_FD(k->fd);
        k->state = LINK_UP;
}

static int connector_hello(struct build *b, struct link *k, struct error *e) {
        int err = 0, r;
        socklen_t len = sizeof(err);

        if (getsockopt(k->fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0 || err != 0) {
                link_retry(k);
                return 0;
        }
        r = own_hello(b, k->peer, k->own, e);
        if (r < 0)
                return r;
        if (link_send(k, k->own, HANDSHAKE_HELLO) < 0)
                link_retry(k);
        else
                k->state = LINK_WAIT_REPLY;
        return 0;
}

static int connector_start(struct build *b, struct link *k, struct error *e) {
        const struct comm_mesh_config *c = &b->m->config;
        const struct comm_peer *p = &c->peers[k->peer];
        bool local = c->node && p->node && strcmp(c->node, p->node) == 0;
        int r = comm_endpoint_connect(p->endpoint, local, &k->fd, e);

        if (r == -EAGAIN) {
                link_retry(k);
                return 0;
        }
        if (r < 0 && r != -EINPROGRESS)
                return error_prefix(e, "rank %d", k->peer);
        k->state = LINK_CONNECTING;
        return r == 0 ? connector_hello(b, k, e) : 0;
}

/* A wrong answer at the address of a peer: somebody else's, or the peer's in another epoch. Counted, and tried again. */
static void connector_refuse(struct build *b, struct link *k, const struct error *why) {
        b->l->refused++;
        (void)snprintf(b->why, sizeof(b->why), "%.250s", why->text);
        link_retry(k);
}

static int connector_reply(struct build *b, struct link *k, struct error *e) {
        const struct comm_mesh_config *c = &b->m->config;
        uint8_t mac[HANDSHAKE_MAC];
        struct handshake_hello h;
        struct error why = { 0 };
        int r = link_recv(k, HANDSHAKE_REPLY);

        if (r < 0)
                link_retry(k);
        if (r <= 0)
                return 0;
        if (handshake_unpack(k->buf, &h, &why) < 0 || handshake_check(&h, c, (uint32_t)k->peer, &why) < 0) {
                connector_refuse(b, k, &why);
                return 0;
        }
        r = handshake_mac(c->key, "fp8ctl mesh accept", k->own, k->buf, mac, e);
        if (r < 0)
                return r;
        if (!handshake_mac_equal(mac, k->buf + HANDSHAKE_HELLO)) {
                error_set(&why, -EPROTO, "handshake: rank %d does not hold the epoch's key", k->peer);
                connector_refuse(b, k, &why);
                return 0;
        }
        r = handshake_mac(c->key, "fp8ctl mesh connect", k->own, k->buf, mac, e);
        if (r < 0)
                return r;
        if (link_send(k, mac, HANDSHAKE_MAC) < 0)
                link_retry(k);
        else
                link_up(b, k);
        return 0;
}

static void acceptor_refuse(struct build *b, struct link *k, const struct error *why) {
        b->l->refused++;
        (void)snprintf(b->why, sizeof(b->why), "%.250s", why->text);
        link_close(k);
}

static int acceptor_hello(struct build *b, struct link *k, struct error *e) {
        const struct comm_mesh_config *c = &b->m->config;
        uint8_t reply[HANDSHAKE_REPLY];
        struct handshake_hello h;
        struct error why = { 0 };
        int r = link_recv(k, HANDSHAKE_HELLO);

        if (r == 0)
                return 0;
        if (r < 0) { /* gave up before it was heard: an earlier try, nothing to count */
                link_close(k);
                return 0;
        }
        if (handshake_unpack(k->buf, &h, &why) < 0)
                goto refuse;
        if (h.from >= (uint32_t)c->n_ranks || h.from <= (uint32_t)c->rank) {
                /* Before its rank is looked up: an older epoch may have had more ranks. */
                error_set(&why, -EPROTO, "handshake: found rank %u, expected one of %d to %d", h.from, c->rank + 1, c->n_ranks - 1);
                goto refuse;
        }
        if (handshake_check(&h, c, h.from, &why) < 0)
                goto refuse;
        k->peer = (int)h.from;
        memcpy(k->theirs, k->buf, HANDSHAKE_HELLO);
        r = own_hello(b, k->peer, k->own, e);
        if (r < 0)
                return r;
        memcpy(reply, k->own, HANDSHAKE_HELLO);
        r = handshake_mac(c->key, "fp8ctl mesh accept", k->theirs, k->own, reply + HANDSHAKE_HELLO, e);
        if (r < 0)
                return r;
        if (link_send(k, reply, sizeof(reply)) < 0)
                link_close(k);
        else
                k->state = LINK_WAIT_PROOF;
        return 0;

refuse:
        acceptor_refuse(b, k, &why);
        return 0;
}

static int acceptor_proof(struct build *b, struct link *k, struct error *e) {
        uint8_t mac[HANDSHAKE_MAC];
        struct error why = { 0 };
        int r = link_recv(k, HANDSHAKE_MAC);

        if (r == 0)
                return 0;
        if (r < 0) {
                /* A connector with another key refuses our proof and hangs up here. */
                error_set(&why, -EPROTO, "handshake: rank %d hung up before it proved to hold the epoch's key", k->peer);
                acceptor_refuse(b, k, &why);
                return 0;
        }
        r = handshake_mac(b->m->config.key, "fp8ctl mesh connect", k->theirs, k->own, mac, e);
        if (r < 0)
                return r;
        if (!handshake_mac_equal(mac, k->buf)) {
                error_set(&why, -EPROTO, "handshake: rank %d does not hold the epoch's key", k->peer);
                acceptor_refuse(b, k, &why);
                return 0;
        }
        link_up(b, k);
        return 0;
}

static int link_step(struct build *b, struct link *k, struct error *e) {
        switch (k->state) {
        case LINK_CONNECTING:
                return connector_hello(b, k, e);
        case LINK_WAIT_REPLY:
                return connector_reply(b, k, e);
        case LINK_WAIT_HELLO:
                return acceptor_hello(b, k, e);
        case LINK_WAIT_PROOF:
                return acceptor_proof(b, k, e);
        default:
                return 0;
        }
}

static void build_accept(struct build *b, int listener, bool tcp) {
        for (;;) {
                int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

                if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
                        continue;
                if (fd < 0)
                        return; /* EAGAIN; or no descriptors left: those in the backlog keep for the next turn */
                if (b->n_in == b->max_in) {
                        b->l->refused++;
                        link_close(&b->in[0]);
                        memmove(&b->in[0], &b->in[1], --b->n_in * sizeof(b->in[0]));
                }
                comm_socket_tune(fd, tcp);
                b->in[b->n_in++] = (struct link){ .state = LINK_WAIT_HELLO, .fd = fd, .peer = -1 };
        }
}

static void poll_add(struct build *b, size_t *k, int fd, short events, struct link *link) {
        b->polls[*k] = (struct pollfd){ .fd = fd, .events = events };
        b->polled[(*k)++] = link;
}

/* One turn: start what is due, sleep, handle what is ready. 0 or a condition. */
static int build_turn(struct build *b, uint64_t deadline, struct error *e) {
        struct comm_mesh *m = b->m;
        uint64_t now = clock_mono_ns(), wake = deadline;
        size_t k = 0, first_up, kept = 0;
        int r;

        for (int i = 0; i < m->config.rank; i++) {
                if (b->out[i].state == LINK_IDLE && backoff_wait(&b->out[i].retry, now) == 0) {
                        r = connector_start(b, &b->out[i], e);
                        if (r < 0)
                                return r;
                }
                if (b->out[i].state == LINK_IDLE && b->out[i].retry.due < wake)
                        wake = b->out[i].retry.due;
        }
        if (b->missing == 0)
                return 0;
        poll_add(b, &k, m->abort->fd, POLLIN, NULL);
        poll_add(b, &k, b->l->unix_fd, POLLIN, NULL); /* poll passes over -1 */
        poll_add(b, &k, b->l->tcp_fd, POLLIN, NULL);
        for (int i = 0; i < m->config.rank; i++)
                if (b->out[i].fd >= 0)
                        poll_add(b, &k, b->out[i].fd, b->out[i].state == LINK_CONNECTING ? POLLOUT : POLLIN, &b->out[i]);
        for (size_t i = 0; i < b->n_in; i++)
                poll_add(b, &k, b->in[i].fd, POLLIN, &b->in[i]);
        first_up = k;
        for (int i = 0; i < m->config.n_ranks; i++)
                if (m->fds[i] >= 0)
                        poll_add(b, &k, m->fds[i], POLLRDHUP, NULL);
        now = clock_mono_ns();
        r = poll(b->polls, k, wake > now ? (int)((wake - now + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC) : 0);
        if (r < 0 && errno != EINTR)
                return error_errno(e, errno, "poll");
        if (atomic_load(&m->abort->raised) || (r > 0 && b->polls[0].revents))
                return comm_mesh_fail(m, COMM_E_ABORTED, -1, e, "aborted");
        if (r <= 0)
                return 0;
        for (size_t i = first_up; i < k; i++)
                if (b->polls[i].revents)
                        for (int rank = 0; rank < m->config.n_ranks; rank++)
                                if (m->fds[rank] == b->polls[i].fd)
                                        return comm_mesh_fail(m, COMM_E_PEER_LOST, rank, e, "rank %d closed its connection before the mesh was complete", rank);
        for (size_t i = 3; i < first_up; i++)
                if (b->polls[i].revents) {
                        r = link_step(b, b->polled[i], e);
                        if (r < 0)
                                return r;
                }
        for (size_t i = 0; i < b->n_in; i++)
                if (b->in[i].fd >= 0)
                        b->in[kept++] = b->in[i];
        b->n_in = kept;
        if (b->polls[1].revents)
                build_accept(b, b->l->unix_fd, false);
        if (b->polls[2].revents)
                build_accept(b, b->l->tcp_fd, true);
        return 0;
}

static int build_timeout(struct build *b, struct error *e) {
        struct comm_mesh *m = b->m;
        char who[200] = "";
        size_t at = 0;
        int first = -1;

        for (int i = 0; i < m->config.n_ranks; i++) {
                if (i == m->config.rank || m->fds[i] >= 0)
                        continue;
                if (first < 0)
                        first = i;
                if (at < sizeof(who) - 20)
                        at += (size_t)snprintf(who + at, sizeof(who) - at, "%s%d", at ? ", " : "", i);
        }
        return comm_mesh_fail(m, COMM_E_TIMEOUT, first, e, "%d ranks not met within %d ms (%s)%s%s", b->missing, m->config.connect_timeout_ms, who,
                              b->why[0] ? "; last refused: " : "", b->why);
}

int comm_mesh_build(struct comm_mesh *m, struct comm_listener *l, struct error *e) {
        size_t n = (size_t)m->config.n_ranks;
        struct build b = { .m = m, .l = l, .max_in = n + STRANGERS_MOST, .missing = m->config.n_ranks - 1 };
        uint64_t deadline = clock_mono_ns() + (uint64_t)m->config.connect_timeout_ms * NSEC_PER_MSEC;
        int r = 0;

        if (atomic_load(&m->abort->raised))
                return comm_mesh_fail(m, COMM_E_ABORTED, -1, e, "aborted");
        b.out = calloc(n, sizeof(*b.out));
        b.in = calloc(b.max_in, sizeof(*b.in));
        b.polls = calloc(2 * n + b.max_in + 3, sizeof(*b.polls));
        b.polled = calloc(2 * n + b.max_in + 3, sizeof(*b.polled));
        if (!b.out || !b.in || !b.polls || !b.polled) {
                error_set(e, -ENOMEM, "mesh of %zu ranks: out of memory", n);
                r = -ENOMEM;
        }
        for (size_t i = 0; b.out && i < n; i++)
                b.out[i] = (struct link){ .fd = -1, .peer = (int)i };
        while (r == 0 && b.missing > 0) {
                if (clock_mono_ns() >= deadline)
                        r = build_timeout(&b, e);
                else
                        r = build_turn(&b, deadline, e);
        }
        for (size_t i = 0; b.out && i < n; i++)
                link_close(&b.out[i]);
        for (size_t i = 0; i < b.n_in; i++)
                link_close(&b.in[i]);
        free(b.out);
        free(b.in);
        free(b.polls);
        free(b.polled);
        return r;
}
