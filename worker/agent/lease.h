/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The worker's lease, counted by its holder: TTL from the moment the newest *acknowledged* heartbeat was sent.  The controller counts
 * from when it received that heartbeat, so it always gives the holder at least as long as the holder gives itself.  No I/O, no clock.
 */
#include <stdbool.h>
#include <stdint.h>

struct lease {
        uint64_t number;      /* of this registration; 0: none yet */
        uint64_t ttl_ns;
        uint64_t deadline_ns; /* CLOCK_MONOTONIC; 0: none yet */
};

/* A registration was accepted; the hello that asked for it was sent at hello_sent_ns. A deadline that is later already stays. */
void lease_welcome(struct lease *l, uint64_t number, uint64_t ttl_ns, uint64_t hello_sent_ns);
/* A heartbeat was acknowledged. False, and nothing changes: another number, a time not of the past. */
bool lease_ack(struct lease *l, uint64_t number, uint64_t sent_ns, uint64_t now_ns);
bool lease_expired(const struct lease *l, uint64_t now_ns);
