/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The datagram of a kernel that dies (struct fp8guard_gasp_datagram, driver/gasp.c), as the controller reads it.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define GASP_KEY 32

struct gasp {
        char node[64], boot_id[40], reason[136];
};

/* -EBADMSG: it is none. Nothing of it is true before gasp_signed(). Texts end with a zero, and letters that cannot be printed are '?'. */
int gasp_read(const void *data, size_t len, struct gasp *ret, struct error *e);
/* The signature of a datagram that could be read. */
bool gasp_signed(const void *data, size_t len, const uint8_t key[GASP_KEY]);
