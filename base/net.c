/* SPDX-License-Identifier: Apache-2.0 */
#include "base/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"

int net_listen(const char *host, int backlog, int *ret_fd, struct error *e) {
        const struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE };
        struct addrinfo *found = NULL;
        _cleanup_close_ int fd = -1;
        int r = getaddrinfo(host, "0", &hints, &found);

        if (r != 0)
                return error_set(e, -EADDRNOTAVAIL, "cannot resolve %s: %s", host, gai_strerror(r));
        fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        r = fd < 0 || bind(fd, found->ai_addr, found->ai_addrlen) < 0 || listen(fd, backlog) < 0 ? errno : 0;
        freeaddrinfo(found);
        if (r)
                return error_errno(e, r, "cannot listen on %s", host);
        *ret_fd = STEAL_FD(fd);
        return 0;
}

int net_endpoint(const char *host, int fd, char **ret, struct error *e) {
        union {
                struct sockaddr any;
                struct sockaddr_in v4;
                struct sockaddr_in6 v6;
        } bound = { .v6 = { 0 } };
        socklen_t len = sizeof(bound);
        char *s;

        if (getsockname(fd, &bound.any, &len) < 0)
                return error_errno(e, errno, "no port of %s", host);
        if (asprintf(&s, strchr(host, ':') ? "[%s]:%d" : "%s:%d", host, ntohs(bound.any.sa_family == AF_INET6 ? bound.v6.sin6_port : bound.v4.sin_port)) < 0)
                return error_errno(e, ENOMEM, "endpoint of %s", host);
        *ret = s;
        return 0;
}

int net_ipv4(const char *address, struct sockaddr_in *ret, struct error *e) {
        struct sockaddr_in a = { .sin_family = AF_INET };
        char ip[INET_ADDRSTRLEN];
        unsigned port;
        int end = 0;

        if (sscanf(address, "ipv4:%15[0-9.]:%5u%n", ip, &port, &end) != 2 || address[end] || port == 0 || port > UINT16_MAX || inet_pton(AF_INET, ip, &a.sin_addr) != 1)
                return error_set(e, -EINVAL, "found '%.80s', expected ipv4:IP:PORT", address);
        a.sin_port = htons((uint16_t)port);
        *ret = a;
        return 0;
}

int net_resolve(const char *host_port, struct addrinfo **ret, struct error *e) {
        const struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV };
        _cleanup_free_ char *host = strdup(host_port);
        char *name = host, *colon;
        int r;

        if (!host)
                return error_errno(e, ENOMEM, "endpoint %s", host_port);
        colon = strrchr(host, ':');
        if (!colon)
                return error_set(e, -EINVAL, "endpoint %s: found no port, expected HOST:PORT", host_port);
        *colon = '\0';
        if (name[0] == '[' && colon > name + 1 && colon[-1] == ']') {
                colon[-1] = '\0';
                name++;
        }
        r = getaddrinfo(name, colon + 1, &hints, ret);
        return r == 0 ? 0 : error_set(e, r == EAI_AGAIN ? -EAGAIN : -EADDRNOTAVAIL, "cannot resolve %s: %s", host_port, gai_strerror(r));
}
