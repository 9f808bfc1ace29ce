/* SPDX-License-Identifier: Apache-2.0 */
/* Moves bytes over the mesh: any number of sends and receives at once, sleeping in poll together with the abort handle. */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "base/clock.h"
#include "worker/comm/comm_private.h"

/* A turn of one connection, so that a fast one does not starve the others. */
#define IO_BURST (1u << 20)

/* Moves what goes without waiting. > 0: bytes; 0: the socket is not ready (or the window is empty); < 0: ended the mesh. */
static ssize_t io_move(struct comm_mesh *m, struct comm_io *io, int *ret_condition, struct error *e) {
        size_t total = 0;

        while (io->len > 0 && total < IO_BURST) {
                size_t want = io->len < IO_BURST ? io->len : IO_BURST;
                ssize_t n = io->send ? send(m->fds[io->peer], io->ptr, want, MSG_NOSIGNAL | MSG_DONTWAIT) : recv(m->fds[io->peer], io->ptr, want, MSG_DONTWAIT);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
                        io->ready = false;
                        break;
                }
                if (n == 0 && !io->send) {
                        *ret_condition = comm_mesh_fail(m, COMM_E_PEER_LOST, io->peer, e, "rank %d closed its connection", io->peer);
                        return -1;
                }
                if (n < 0) {
                        *ret_condition = comm_mesh_fail(m, COMM_E_PEER_LOST, io->peer, e, "lost rank %d: %s", io->peer, strerror(errno));
                        return -1;
                }
                io->ptr += n;
                io->len -= (size_t)n;
                io->left -= (size_t)n;
                total += (size_t)n;
                if (io->moved)
                        io->moved(io, (size_t)n);
                if ((size_t)n < want) { /* it took or had no more: the next try would only say so */
                        io->ready = false;
                        break;
                }
        }
        return (ssize_t)total;
}

static int io_wait(struct comm_mesh *m, struct comm_io *ios, size_t n, uint64_t progress_ns, struct error *e) {
        uint64_t now = clock_mono_ns(), deadline = progress_ns + (uint64_t)m->config.timeout_ms * NSEC_PER_MSEC;
        size_t k = 1;
        int r, wait_ms;

        m->polls[0] = (struct pollfd){ .fd = m->abort->fd, .events = POLLIN };
        for (size_t i = 0; i < n; i++)
                if (ios[i].len > 0)
                        m->polls[k++] = (struct pollfd){ .fd = m->fds[ios[i].peer], .events = ios[i].send ? POLLOUT : POLLIN };
        wait_ms = now < deadline ? (int)((deadline - now + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC) : 0;
        r = poll(m->polls, k, wait_ms);
        if (r < 0 && errno == EINTR)
                return 0; /* the caller comes back with what is left of the time */
        if (r < 0)
                return comm_mesh_fail(m, -errno, -1, e, "poll: %s", strerror(errno));
        if (r == 0) {
                int peer = -1;

                for (size_t i = 0; i < n && peer < 0; i++)
                        if (ios[i].len > 0)
                                peer = ios[i].peer;
                return comm_mesh_fail(m, COMM_E_TIMEOUT, peer, e, "no byte moved for %d ms, waiting for rank %d", m->config.timeout_ms, peer);
        }
        if (m->polls[0].revents)
                return comm_mesh_fail(m, COMM_E_ABORTED, -1, e, "aborted");
        k = 1;
        for (size_t i = 0; i < n; i++)
                if (ios[i].len > 0)
                        ios[i].ready = m->polls[k++].revents != 0;
        return 0;
}

int comm_io_run(struct comm_mesh *m, struct comm_io *ios, size_t n, struct error *e) {
        uint64_t progress_ns = clock_mono_ns();

        for (size_t i = 0; i < n; i++)
                ios[i].ready = true;
        for (;;) {
                bool over = true, moved = false;
                int condition = 0;

                if (atomic_load_explicit(&m->abort->raised, memory_order_relaxed))
                        return comm_mesh_fail(m, COMM_E_ABORTED, -1, e, "aborted");
                for (size_t i = 0; i < n; i++) {
                        if (ios[i].left > 0 && ios[i].len > 0 && ios[i].ready) {
                                ssize_t k = io_move(m, &ios[i], &condition, e);

                                if (k < 0)
                                        return condition;
                                moved = moved || k > 0;
                        }
                        over = over && ios[i].left == 0;
                }
                if (over)
                        return 0;
                if (moved)
                        progress_ns = clock_mono_ns();
                bool try_again = false;

                for (size_t i = 0; i < n; i++)
                        try_again = try_again || (ios[i].ready && ios[i].len > 0);
                if (!try_again) {
                        int r = io_wait(m, ios, n, progress_ns, e);

                        if (r != 0)
                                return r;
                }
        }
}
