/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The kernel's log, record by record: Documentation/ABI/testing/dev-kmsg.  A line is believed when it has the form that the kernel writes, and counts when a row of the table of patterns is in it; anything else
 * changes nothing.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/health.h"

struct kernel_line {
        unsigned priority; /* 8 and more: a process wrote it */
        uint64_t sequence, us; /* us: CLOCK_MONOTONIC or near it */
        const char *text;
        size_t len;
};
/* One record's first line, without its end. False: it has not that form. */
bool kernel_line_parse(const char *line, size_t len, struct kernel_line *ret);

struct kernel_finding {
        const char *check;
        char subject[64], text[256];
        uint32_t code, pid;
        enum health_verdict verdict; /* not of an Xid */
        bool network;
};
/* False: nothing that counts. */
bool kernel_line_find(const struct kernel_line *l, struct kernel_finding *ret);
