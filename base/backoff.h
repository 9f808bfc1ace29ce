/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* When what failed is tried again: after `first`, then after twice as long each time, up to `most`. Times are the caller's, in ns of one clock. */
#include <stdint.h>

struct backoff {
        uint64_t first, most;
        uint64_t interval; /* after the last failure; 0: there was none */
        uint64_t due;      /* the next try; 0: now */
};

static inline void backoff_failed(struct backoff *b, uint64_t now) {
        b->interval = !b->interval ? b->first : b->interval < b->most - b->interval ? b->interval * 2 : b->most;
        b->due = now + b->interval;
}

static inline void backoff_reset(struct backoff *b) {
        b->interval = b->due = 0;
}

/* How long it is until then. */
static inline uint64_t backoff_wait(const struct backoff *b, uint64_t now) {
        return b->due > now ? b->due - now : 0;
}
