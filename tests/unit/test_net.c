/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/net.h"
#include "tests/test.h"

static void meet(const char *host, const char *prefix) {
        struct addrinfo *found = NULL;
        struct error e = { 0 };
        char *where = NULL;
        int l = -1, c;

        ASSERT_OK(net_listen(host, 1, &l, &e), e);
        ASSERT_OK(net_endpoint(host, l, &where, &e), e);
        CU_ASSERT_EQUAL(strncmp(where, prefix, strlen(prefix)), 0);
        ASSERT_OK(net_resolve(where, &found, &e), e);
        c = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CU_ASSERT_EQUAL(connect(c, found->ai_addr, found->ai_addrlen), 0);
        freeaddrinfo(found);
        free(where);
        close(c);
        close(l);
}

TEST(addresses_in_numbers) {
        static const char *const bad[] = { "", "ipv4:", "10.0.0.1:7", "ipv4:10.0.0.1", "ipv4:10.0.0.1:", "ipv4:10.0.0.1:0", "ipv4:10.0.0.1:65536", "ipv4:10.0.0.1:7x", "ipv4:10.0.0:7", "ipv4:10.0.0.256:7",
                                           "ipv4:10.0.0.1:-7", "ipv4:localhost:7", "ipv4:1111111111111111.0.0.1:7", "ipv6:::1:7" };
        struct sockaddr_in a = { 0 };
        struct error e = { 0 };

        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
                CU_ASSERT_EQUAL(net_ipv4(bad[i], &a, &e), -EINVAL);
        CU_ASSERT_EQUAL(a.sin_port, 0);
        ASSERT_OK(net_ipv4("ipv4:10.0.0.1:7412", &a, &e), e);
        CU_ASSERT_EQUAL(ntohs(a.sin_port), 7412);
        CU_ASSERT_EQUAL(ntohl(a.sin_addr.s_addr), 0x0a000001);
}

TEST(what_listens_is_found_by_its_endpoint) {
        int six = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct sockaddr_in6 a = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };

        meet("127.0.0.1", "127.0.0.1:");
        if (six >= 0 && bind(six, (struct sockaddr *)&a, sizeof(a)) == 0) /* a machine without IPv6 has none to try */
                meet("::1", "[::1]:");
        if (six >= 0)
                close(six);
}

TEST(what_is_no_address_is_refused) {
        struct addrinfo *found = NULL;
        struct error e = { 0 };
        int fd = -1;

        CU_ASSERT_EQUAL(net_resolve("127.0.0.1", &found, &e), -EINVAL);
        CU_ASSERT_STRING_EQUAL(e.text, "endpoint 127.0.0.1: found no port, expected HOST:PORT");
        CU_ASSERT_EQUAL(net_resolve("127.0.0.1:ssh", &found, &e), -EADDRNOTAVAIL);
        CU_ASSERT_EQUAL(net_listen("a name with spaces", 1, &fd, &e), -EADDRNOTAVAIL);
        CU_ASSERT_PTR_NULL(found);
        CU_ASSERT_EQUAL(fd, -1);
}

TEST_MAIN("net")
