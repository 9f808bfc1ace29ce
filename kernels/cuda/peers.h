/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Devices of one host that write into each other's memory: see peers.c. Returns as in dev_comm.h. */
#include "kernels/dev_comm.h"

struct peers;

int peers_open(struct dev *d, int n, int index, uint8_t ret_card[DEV_COMM_CARD], struct peers **ret, struct error *e);
int peers_join(struct peers *p, const uint8_t (*cards)[DEV_COMM_CARD], struct error *e);
int peers_exchange(struct peers *p, const struct dev_comm_part *parts, int n, struct dev_stream *s, struct error *e);
/* Lets go what waits on the device, then frees; takes until all that was enqueued behind it has run. */
void peers_free(struct peers *p);
