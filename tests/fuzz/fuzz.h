/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A fuzz target is one function and some seeds.  Linked with fuzz_main.c it is a test that runs every seed and a fixed number of mutations of them, the same in every run;
 * built by run-libfuzzer (clang -fsanitize=fuzzer) it is guided by coverage and runs as long as one likes.
 */
#include <stddef.h>
#include <stdint.h>

struct fuzz_seed {
        const void *data;
        size_t len;
};

extern const struct fuzz_seed fuzz_seeds[];
extern const size_t fuzz_seeds_n;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
