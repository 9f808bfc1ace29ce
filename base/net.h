/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* TCP addresses as text: HOST:PORT, where an IPv6 address stands in brackets. */
#include <netdb.h>
#include <netinet/in.h>

#include "base/error.h"

/* A non-blocking listening socket on a free port of that host; -EADDRNOTAVAIL when the name has no address. */
int net_listen(const char *host, int backlog, int *ret_fd, struct error *e);
/* HOST:PORT of a listening socket, with the host by the name it was given; free() it. */
int net_endpoint(const char *host, int fd, char **ret, struct error *e);
/* -EINVAL for what is no HOST:PORT, -EAGAIN when no name server answers, -EADDRNOTAVAIL for an unknown name; freeaddrinfo() the result. */
/* "ipv4:IP:PORT", in numbers. */
int net_ipv4(const char *address, struct sockaddr_in *ret, struct error *e);
int net_resolve(const char *host_port, struct addrinfo **ret, struct error *e);
