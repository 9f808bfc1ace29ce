/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* fp8-rank --reduce-test: one end of two nodes that sum numbers as ranks do, started by fp8-worker. What it has to say is JSON on its standard output, a line each; the key of the pair comes on its standard input. */
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

enum { REDUCE_TEST_KEY = 32 };

struct reduce_test {
        uint64_t request;       /* the same number for both */
        const char *peer;       /* the endpoint of the one that listens; "": it is us, and {"endpoint": ...} is the first line */
        const char *host, *device_kind;
        int device;
        uint64_t bytes;         /* of the largest sum */
        uint32_t ms;            /* about so long */
        uint8_t key[REDUCE_TEST_KEY];
        bool spoil;             /* for tests: a bit of ours is another one */
};

/* The last line of the end that goes to the other: {"gbs", "latency_us", "by", "wrong", "text"}. */
int reduce_test_run(const struct reduce_test *t, struct error *e);
