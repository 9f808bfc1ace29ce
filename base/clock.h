/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
#include <stdint.h>

#define NSEC_PER_SEC UINT64_C(1000000000)
#define NSEC_PER_MSEC UINT64_C(1000000)

/* CLOCK_MONOTONIC in ns: shared by all processes of one node, meaningless between nodes. */
uint64_t clock_mono_ns(void);
/* CLOCK_REALTIME in ns since 1970: for people and for comparing across nodes, never for deadlines. */
uint64_t clock_wall_ns(void);
