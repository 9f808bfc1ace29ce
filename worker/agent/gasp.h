/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The last gasp: what fp8guard is to send where when this node's kernel dies (--panic-to), signed with the key that the controller gave with its welcome.
 */
#include <stdint.h>

#include "proto/fp8ctl.pb-c.h"

struct agent;
struct last_gasp;

/* Nothing without --panic-to, without the driver, or when the controller gives no key. What is set stays set when the worker ends: its ranks may live on. */
void gasp_welcome(struct agent *a, const Fp8ctl__V1__Welcome *w);
void gasp_stop(struct agent *a);
/* After the tasks have ended. */
void gasp_free(struct agent *a);

/* The kernel's tables, as text. Addresses in network byte order. -ENETUNREACH; -ENOENT: not resolved (yet). */
int gasp_route(const char *table, uint32_t to, char ret_device[16], uint32_t *ret_hop);                  /* /proc/net/route */
int gasp_neighbour(const char *table, uint32_t hop, const char *device, uint8_t ret_mac[6]);             /* /proc/net/arp */
