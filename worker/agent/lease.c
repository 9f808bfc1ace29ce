/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/agent/lease.h"

static void extend(struct lease *l, uint64_t from_ns) {
        uint64_t deadline;

        if (!__builtin_add_overflow(from_ns, l->ttl_ns, &deadline) && deadline > l->deadline_ns)
                l->deadline_ns = deadline;
}

void lease_welcome(struct lease *l, uint64_t number, uint64_t ttl_ns, uint64_t hello_sent_ns) {
        l->number = number;
        l->ttl_ns = ttl_ns;
        extend(l, hello_sent_ns);
}

bool lease_ack(struct lease *l, uint64_t number, uint64_t sent_ns, uint64_t now_ns) {
        if (number != l->number || number == 0 || sent_ns > now_ns)
                return false;
        extend(l, sent_ns);
        return true;
}

bool lease_expired(const struct lease *l, uint64_t now_ns) {
        return l->deadline_ns != 0 && now_ns > l->deadline_ns;
}
