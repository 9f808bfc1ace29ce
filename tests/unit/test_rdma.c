/* SPDX-License-Identifier: Apache-2.0 */
/* What two ends of an RDMA lane tell each other, and that having no device is no more than that. The data path: tests/vm/scenarios/soft-roce. */
#include <string.h>

#include "base/rdma.h"
#include "tests/test.h"

TEST(addresses) {
        struct rdma_address a = { .qpn = 0xabcdef, .psn = 0x123456, .lid = 0x17, .mtu = 5, .ethernet = 1 }, b;
        char text[LANE_ADDRESS], damaged[LANE_ADDRESS + 8];
        struct error e;

        for (size_t i = 0; i < sizeof(a.gid); i++)
                a.gid[i] = (uint8_t)(i * 17);
        rdma_address_print(&a, text);
        CU_ASSERT_STRING_EQUAL(text, "rc1 abcdef 123456 0017 5 e 00112233445566778899aabbccddeeff");
        ASSERT_OK(rdma_address_read(text, &b, &e), e);
        CU_ASSERT_EQUAL(memcmp(a.gid, b.gid, sizeof(a.gid)), 0);
        CU_ASSERT(b.qpn == a.qpn && b.psn == a.psn && b.lid == a.lid && b.mtu == a.mtu && b.ethernet == a.ethernet);
        /* Nothing that differs by a byte, is shorter or longer, is taken for what it is not. */
        for (size_t n = 0; n < strlen(text); n++) {
                snprintf(damaged, sizeof(damaged), "%.*s", (int)n, text);
                ASSERT_ERROR(rdma_address_read(damaged, &b, &e), -EPROTO, e, "rc1 QPN");
                snprintf(damaged, sizeof(damaged), "%s", text);
                damaged[n] = damaged[n] == '-' ? '+' : '-';
                ASSERT_ERROR(rdma_address_read(damaged, &b, &e), -EPROTO, e, "expected");
        }
        snprintf(damaged, sizeof(damaged), "%s0", text);
        ASSERT_ERROR(rdma_address_read(damaged, &b, &e), -EPROTO, e, "expected");
        ASSERT_ERROR(rdma_address_read("rc1 abcdef 123456 0017 6 e 00112233445566778899aabbccddeeff", &b, &e), -EPROTO, e, "expected");
}

TEST(no_device) {
        struct rdma *r = NULL;
        struct error e;

        CU_ASSERT_EQUAL(rdma_open("off", &r, &e), -ENODEV);
        CU_ASSERT_EQUAL(rdma_open("no-such-device:1", &r, &e), -ENODEV);
        CU_ASSERT_PTR_NULL(r);
        CU_ASSERT_PTR_NULL(rdma_lanes(NULL).ops);
        CU_ASSERT_PTR_NULL(rdma_free(NULL));
}

TEST_MAIN("rdma")
