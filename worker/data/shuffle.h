/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A seeded permutation of 0 .. n-1 that needs no memory: a Feistel network over the next even number of bits, walked until it lands below n (Black and Rogaway 2002, "Ciphers with
 * arbitrary finite domains", section 5; less than 4 steps on average).
 */
#include <stdint.h>

struct shuffle {
        uint64_t n, key;
        unsigned half_bits;
};

/* The same (n, seed, pass, stream) is the same permutation on every machine. stream: tells permutations of one pass apart. */
struct shuffle shuffle_make(uint64_t n, uint64_t seed, uint64_t pass, uint64_t stream);
uint64_t shuffle_at(const struct shuffle *s, uint64_t i); /* i < n */
