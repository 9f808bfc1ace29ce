/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/io/gasp_listener.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/net.h"

#define A_TURN 64 /* then the loop has its turn */

struct gasp_listener {
        int fd;
        struct loop_source *source;
        void (*fn)(void *arg, const void *data, size_t len);
        void *arg;
};

static void on_readable(void *arg, uint32_t revents) {
        struct gasp_listener *g = arg;
        char data[2048];

        for (int i = 0; i < A_TURN; i++) {
                ssize_t n = recv(g->fd, data, sizeof(data), MSG_DONTWAIT);

                if (n < 0)
                        return;
                if (n > 0)
                        g->fn(g->arg, data, (size_t)n);
        }
}

int gasp_listener_new(struct loop *l, const char *address, void (*fn)(void *arg, const void *data, size_t len), void *arg, struct gasp_listener **ret, struct error *e) {
        struct gasp_listener *g;
        struct sockaddr_in at;
        int r = net_ipv4(address, &at, e);

        if (r < 0)
                return r;
        g = calloc(1, sizeof(*g));
        if (!g)
                return error_errno(e, ENOMEM, "%s", address);
        g->fn = fn;
        g->arg = arg;
        g->fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        r = g->fd < 0 || bind(g->fd, (const struct sockaddr *)&at, sizeof(at)) < 0 ? error_errno(e, errno, "cannot listen at %s", address) : 0;
        if (r == 0) {
                r = loop_add_fd(l, g->fd, EPOLLIN, on_readable, g, &g->source);
                if (r < 0)
                        error_errno(e, -r, "cannot listen at %s", address);
        }
        if (r < 0) {
                gasp_listener_free(g);
                return r;
        }
        *ret = g;
        return 0;
}

struct gasp_listener *gasp_listener_free(struct gasp_listener *g) {
        if (!g)
                return NULL;
        loop_remove(g->source);
        closep(&g->fd);
        free(g);
        return NULL;
}
