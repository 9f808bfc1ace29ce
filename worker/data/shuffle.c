/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/data/shuffle.h"

#define ROUNDS 6

/* The finaliser of splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t mix(uint64_t x) {
        x += UINT64_C(0x9e3779b97f4a7c15);
        x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
        return x ^ (x >> 31);
}

struct shuffle shuffle_make(uint64_t n, uint64_t seed, uint64_t pass, uint64_t stream) {
        struct shuffle s = { .n = n, .key = mix(mix(mix(seed) ^ pass) ^ stream), .half_bits = 1 };

        while (2 * s.half_bits < 64 && (UINT64_C(1) << (2 * s.half_bits)) < n)
                s.half_bits++;
        return s;
}

static uint64_t encrypt(const struct shuffle *s, uint64_t x) {
        uint64_t mask = (UINT64_C(1) << s->half_bits) - 1, left = x >> s->half_bits, right = x & mask;

        for (uint64_t round = 0; round < ROUNDS; round++) {
                uint64_t next = left ^ (mix(s->key ^ mix(right ^ (round << 56))) & mask);

                left = right;
                right = next;
        }
        return left << s->half_bits | right;
}

uint64_t shuffle_at(const struct shuffle *s, uint64_t i) {
        do
                i = encrypt(s, i);
        while (i >= s->n);
        return i;
}
