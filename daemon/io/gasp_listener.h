/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Datagrams of kernels that die: any that comes to the port is handed on; whether it is true is the core's to see (controller_gasp). */
#include <stddef.h>

#include "base/error.h"
#include "base/loop.h"

struct gasp_listener;

/* address: ipv4:IP:PORT */
int gasp_listener_new(struct loop *l, const char *address, void (*fn)(void *arg, const void *data, size_t len), void *arg, struct gasp_listener **ret, struct error *e);
struct gasp_listener *gasp_listener_free(struct gasp_listener *g);
