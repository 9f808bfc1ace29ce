/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Integers in little-endian byte order, of 1 to 8 bytes, as the binary headers between ranks and nodes carry them. The caller knows that there is room. */
#include <stdint.h>

/* Returns the place after what was put. */
static inline uint8_t *wire_put(uint8_t *p, uint64_t v, int bytes) {
        for (int i = 0; i < bytes; i++)
                *p++ = (uint8_t)(v >> (8 * i));
        return p;
}

/* Moves *p behind what was taken. */
static inline uint64_t wire_get(const uint8_t **p, int bytes) {
        uint64_t v = 0;

        for (int i = 0; i < bytes; i++)
                v |= (uint64_t)*(*p)++ << (8 * i);
        return v;
}
