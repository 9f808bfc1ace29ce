/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"

#include <time.h>

static uint64_t now_ns(clockid_t id) {
        struct timespec t = { 0 };

        clock_gettime(id, &t); /* cannot fail with these two clocks */
        return (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
}

uint64_t clock_mono_ns(void) {
        return now_ns(CLOCK_MONOTONIC);
}

uint64_t clock_wall_ns(void) {
        return now_ns(CLOCK_REALTIME);
}
