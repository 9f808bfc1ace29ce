/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/test.h"
#include "worker/agent/lease.h"

#define TTL UINT64_C(10000)

TEST(counts_from_the_sending) {
        struct lease l = { 0 };

        CU_ASSERT_FALSE(lease_expired(&l, 1)); /* none yet: nothing to lose */
        lease_welcome(&l, 7, TTL, 1000);
        CU_ASSERT_EQUAL(l.deadline_ns, 11000);
        CU_ASSERT_TRUE(lease_ack(&l, 7, 3000, 9000));
        CU_ASSERT_EQUAL(l.deadline_ns, 13000); /* from 3000, when it was sent, not from 9000 */
        CU_ASSERT_FALSE(lease_expired(&l, 13000));
        CU_ASSERT_TRUE(lease_expired(&l, 13001));
}

TEST(strange_acknowledgements_change_nothing) {
        struct lease l = { 0 };

        CU_ASSERT_FALSE(lease_ack(&l, 0, 5, 10)); /* before any welcome */
        lease_welcome(&l, 7, TTL, 1000);
        CU_ASSERT_FALSE(lease_ack(&l, 6, 5000, 6000));
        CU_ASSERT_FALSE(lease_ack(&l, 7, 6001, 6000)); /* sent in the future */
        CU_ASSERT_FALSE(lease_ack(&l, 7, UINT64_MAX - 1, 6000));
        CU_ASSERT_EQUAL(l.deadline_ns, 11000);
}

TEST(late_and_doubled_ones_never_shorten) {
        struct lease l = { 0 };

        lease_welcome(&l, 7, TTL, 1000);
        CU_ASSERT_TRUE(lease_ack(&l, 7, 5000, 6000));
        CU_ASSERT_TRUE(lease_ack(&l, 7, 2000, 6500));
        CU_ASSERT_TRUE(lease_ack(&l, 7, 5000, 7000));
        CU_ASSERT_EQUAL(l.deadline_ns, 15000);
}

TEST(a_new_registration_keeps_the_later_deadline) {
        struct lease l = { 0 };

        lease_welcome(&l, 7, TTL, 1000);
        CU_ASSERT_TRUE(lease_ack(&l, 7, 5000, 6000));
        lease_welcome(&l, 8, TTL / 10, 5500); /* a shorter lease from a new controller */
        CU_ASSERT_EQUAL(l.deadline_ns, 15000);
        CU_ASSERT_FALSE(lease_ack(&l, 7, 6000, 6500)); /* an answer to the old session */
        CU_ASSERT_TRUE(lease_ack(&l, 8, 15000, 15500));
        CU_ASSERT_EQUAL(l.deadline_ns, 16000);
}

TEST_MAIN("lease")
