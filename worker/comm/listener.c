/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a rank is met: an AF_UNIX socket for peers on its node, a TCP socket for the others, both bound once and kept over epochs.  What waits in their
 * backlog from an earlier epoch is sorted out by the handshake.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "worker/comm/comm_private.h"

/* What is in flight should still be in the cache when it is read: larger buffers cost more time in the kernel (bench/collectives), smaller ones more wake-ups. */
#define SOCKET_BUFFER (256 << 10)

void comm_socket_tune(int fd, bool tcp) {
        int size = SOCKET_BUFFER, one = 1, rto_max = COMM_RTO_MAX_MS;

        if (tcp) {
                /* TCP sizes its buffers by itself, better than a fixed figure would. */
                (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
                (void)setsockopt(fd, IPPROTO_TCP, COMM_TCP_RTO_MAX_MS, &rto_max, sizeof(rto_max)); /* older kernels: back-off without this bound */
                return;
        }
        if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
                (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

/* sun_path holds 107 bytes; a longer path is reached through its folder's descriptor, which *ret_dir keeps open. */
static int unix_address(const char *path, struct sockaddr_un *a, int *ret_dir, struct error *e) {
        const char *slash = strrchr(path, '/');
        _cleanup_close_ int dir = -1;
        _cleanup_free_ char *parent = NULL;

        *a = (struct sockaddr_un){ .sun_family = AF_UNIX };
        if (strlen(path) < sizeof(a->sun_path)) {
                memcpy(a->sun_path, path, strlen(path) + 1);
                return 0;
        }
        if (!slash || slash == path || strlen(slash) > 64)
                return error_set(e, -ENAMETOOLONG, "socket path %s: its last part is too long (at most 63 bytes)", path);
        parent = strndup(path, (size_t)(slash - path));
        if (!parent)
                return error_set(e, -ENOMEM, "socket path: out of memory");
        dir = open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (dir < 0)
                return error_errno(e, errno, "cannot open %s", parent);
        (void)snprintf(a->sun_path, sizeof(a->sun_path), "/proc/self/fd/%d%s", dir, slash);
        *ret_dir = STEAL_FD(dir);
        return 0;
}

static int listen_unix(const char *path, int *ret, struct error *e) {
        _cleanup_close_ int fd = -1, dir = -1;
        struct sockaddr_un a;
        int r;

        r = unix_address(path, &a, &dir, e);
        if (r < 0)
                return r;
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return error_errno(e, errno, "cannot make an AF_UNIX socket");
        (void)unlink(path); /* left by an earlier life */
        /* On Linux the mode of the socket file is that of the descriptor at bind. */
        if (fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, SOMAXCONN) < 0)
                return error_errno(e, errno, "cannot listen on %s", path);
        *ret = STEAL_FD(fd);
        return 0;
}

DEFINE_CLEANUP(struct comm_listener *, comm_listener_free);

int comm_listener_new(const char *dir, const char *host, const char *name, struct comm_listener **ret, struct error *e) {
        _cleanup_(comm_listener_freep) struct comm_listener *l = NULL;
        _cleanup_free_ char *tcp = NULL;
        int r;

        if (!dir && !host)
                return error_set(e, -EINVAL, "listener: neither a folder nor a host to listen on");
        l = calloc(1, sizeof(*l));
        if (!l)
                return error_set(e, -ENOMEM, "listener: out of memory");
        l->unix_fd = l->tcp_fd = -1;
        if (dir) {
                if (asprintf(&l->path, "%s/%s.sock", dir, name) < 0) {
                        l->path = NULL;
                        return error_set(e, -ENOMEM, "listener: out of memory");
                }
                if (strchr(l->path, ','))
                        return error_set(e, -EINVAL, "socket path %s: a comma cannot stand in an endpoint", l->path);
                r = listen_unix(l->path, &l->unix_fd, e);
                if (r < 0)
                        return r;
        }
        if (host) {
                r = net_listen(host, SOMAXCONN, &l->tcp_fd, e);
                if (r == 0)
                        r = net_endpoint(host, l->tcp_fd, &tcp, e);
                if (r < 0)
                        return r;
        }
        r = asprintf(&l->endpoint, "%s%s%s%s%s", dir ? "unix:" : "", dir ? l->path : "", dir && host ? "," : "", host ? "tcp:" : "", host ? tcp : "");
        if (r < 0) {
                l->endpoint = NULL;
                return error_set(e, -ENOMEM, "listener: out of memory");
        }
        *ret = STEAL_PTR(l);
        return 0;
}

const char *comm_listener_endpoint(const struct comm_listener *l) {
        return l->endpoint;
}

uint64_t comm_listener_refused(const struct comm_listener *l) {
        return l->refused;
}

struct comm_listener *comm_listener_free(struct comm_listener *l) {
        if (!l)
                return NULL;
        if (l->unix_fd >= 0) {
                (void)unlink(l->path);
                close(l->unix_fd);
        }
        if (l->tcp_fd >= 0)
                close(l->tcp_fd);
        free(l->path);
        free(l->endpoint);
        free(l);
        return NULL;
}

/* The value of "kind:" in "unix:PATH,tcp:HOST:PORT", allocated; NULL: not in it. */
static char *endpoint_part(const char *endpoint, const char *kind) {
        size_t k = strlen(kind);

        for (const char *p = endpoint; p && *p;) {
                size_t n = strcspn(p, ",");

                if (n > k && strncmp(p, kind, k) == 0)
                        return strndup(p + k, n - k);
                p = p[n] ? p + n + 1 : NULL;
        }
        return NULL;
}

static int connect_result(int r, int *fd, int *ret_fd, const char *where, struct error *e) {
        int err = errno;

        if (r == 0 || err == EINPROGRESS) {
                *ret_fd = STEAL_FD(*fd);
                return r == 0 ? 0 : -EINPROGRESS;
        }
        switch (err) {
        case ENOENT:       /* not bound yet */
        case ECONNREFUSED: /* bound, not listening yet; or gone: the timeout or an abort ends it */
        case EAGAIN:       /* AF_UNIX: backlog full */
        case ECONNRESET:
        case ETIMEDOUT:
        case EHOSTUNREACH: /* routes and links come back */
        case ENETUNREACH:
        case EINTR:
                error_errno(e, err, "cannot connect to %s", where);
                return -EAGAIN;
        default:
                return error_errno(e, err, "cannot connect to %s", where);
        }
}

static int connect_tcp(const char *where, int *ret_fd, struct error *e) {
        struct addrinfo *found = NULL;
        _cleanup_close_ int fd = -1;
        int r = net_resolve(where, &found, e);

        if (r < 0)
                return r;
        fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0) {
                freeaddrinfo(found);
                return error_errno(e, errno, "cannot make a TCP socket");
        }
        comm_socket_tune(fd, true);
        r = connect(fd, found->ai_addr, found->ai_addrlen);
        r = connect_result(r, &fd, ret_fd, where, e);
        freeaddrinfo(found);
        return r;
}

int comm_endpoint_connect(const char *endpoint, bool local, int *ret_fd, struct error *e) {
        _cleanup_free_ char *path = local ? endpoint_part(endpoint, "unix:") : NULL;
        _cleanup_free_ char *tcp = path ? NULL : endpoint_part(endpoint, "tcp:");
        _cleanup_close_ int fd = -1, dir = -1;
        struct sockaddr_un a;
        int r;

        if (!path && !tcp)
                return error_set(e, -EINVAL, "endpoint '%s': found no %s, expected unix:PATH,tcp:HOST:PORT", endpoint, local ? "address" : "tcp:HOST:PORT");
        if (tcp)
                return connect_tcp(tcp, ret_fd, e);
        r = unix_address(path, &a, &dir, e);
        if (r < 0)
                return r == -ENOENT ? -EAGAIN : r;
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return error_errno(e, errno, "cannot make an AF_UNIX socket");
        comm_socket_tune(fd, false);
        return connect_result(connect(fd, (struct sockaddr *)&a, sizeof(a)), &fd, ret_fd, path, e);
}
