/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/rdma.h"

void rdma_address_print(const struct rdma_address *a, char ret[LANE_ADDRESS]) {
        int at = snprintf(ret, LANE_ADDRESS, "rc1 %06x %06x %04x %u %c ", a->qpn & 0xffffff, a->psn & 0xffffff, a->lid & 0xffff, a->mtu & 7, a->ethernet ? 'e' : 'i');

        for (size_t i = 0; i < sizeof(a->gid); i++)
                at += snprintf(ret + at, (size_t)(LANE_ADDRESS - at), "%02x", a->gid[i]);
}

int rdma_address_read(const char *text, struct rdma_address *ret, struct error *e) {
        struct rdma_address a = { 0 };
        char kind = 0, gid[33] = "", again[LANE_ADDRESS];

        if (strnlen(text, LANE_ADDRESS) < LANE_ADDRESS && sscanf(text, "rc1 %6x %6x %4x %1u %c %32[0-9a-f]", &a.qpn, &a.psn, &a.lid, &a.mtu, &kind, gid) == 6 &&
            strlen(gid) == 32 && (kind == 'e' || kind == 'i') && a.mtu >= 1 && a.mtu <= 5) {
                a.ethernet = kind == 'e';
                for (size_t i = 0; i < sizeof(a.gid); i++) {
                        unsigned v = 0;

                        if (sscanf(gid + 2 * i, "%2x", &v) == 1)
                                a.gid[i] = (uint8_t)v;
                }
                /* It is written in one way only, so what reads otherwise was not written by us. */
                rdma_address_print(&a, again);
                if (strcmp(again, text) == 0) {
                        *ret = a;
                        return 0;
                }
        }
        return error_set(e, -EPROTO, "RDMA: found the address '%.60s', expected 'rc1 QPN PSN LID MTU e|i GID'", text);
}
