/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzz target without libFuzzer: `fuzz-X [ROUNDS [SEED]]`, `fuzz-X FILE...` to replay what a fuzzer found, or `fuzz-X --seeds DIR` to write the seeds there. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/text.h"
#include "fuzz.h"

#define INPUT_MAX 4096
#define ROUNDS 20000

static uint64_t state;

/* xorshift64* (Vigna 2016): the same mutations in every run. */
static uint64_t next_random(void) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return state * UINT64_C(2685821657736338717);
}

static size_t below(size_t n) {
        return n ? (size_t)(next_random() % n) : 0;
}

/* Values at which sizes and counts break. */
static const uint64_t edges[] = { 0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, INT64_MAX, (uint64_t)INT64_MAX + 1, UINT64_MAX };

static size_t mutate(uint8_t *buf, size_t len) {
        size_t at = below(len), n = below(16) + 1, width = (size_t)1 << below(4);

        switch (below(7)) {
        case 0:
                if (len)
                        buf[at] ^= (uint8_t)(1u << below(8));
                return len;
        case 1:
                if (len)
                        buf[at] = (uint8_t)next_random();
                return len;
        case 2: /* an edge value */
                if (at + width <= len)
                        memcpy(buf + at, &edges[below(sizeof(edges) / sizeof(edges[0]))], width);
                return len;
        case 3: /* cut out */
                if (n > len - at)
                        n = len - at;
                memmove(buf + at, buf + at + n, len - at - n);
                return len - n;
        case 4: /* repeat a part */
                if (len + n > INPUT_MAX || n > len - at)
                        return len;
                memmove(buf + at + n, buf + at, len - at);
                return len + n;
        case 5: /* cut off */
                return below(len + 1);
        default: { /* splice in another seed's part */
                const struct fuzz_seed *s = &fuzz_seeds[below(fuzz_seeds_n)];
                size_t from = below(s->len);

                n = below(s->len - from + 1);
                if (at + n > len)
                        n = len - at;
                memcpy(buf + at, (const uint8_t *)s->data + from, n);
                return len;
        }
        }
}

static void run_once(const uint8_t *data, size_t len) {
        uint8_t *copy = malloc(len ? len : 1); /* its own allocation, so that a sanitizer sees the first byte behind it */

        if (!copy)
                abort();
        memcpy(copy, data, len);
        LLVMFuzzerTestOneInput(copy, len);
        free(copy);
}

static int replay(int n, char **files) {
        for (int i = 0; i < n; i++) {
                struct error e;
                size_t len;
                char *data;

                if (file_read(files[i], 16u << 20, &data, &len, &e) < 0) {
                        fprintf(stderr, "%s\n", e.text);
                        return 1;
                }
                run_once((const uint8_t *)data, len);
                free(data);
        }
        return 0;
}

static int write_seeds(const char *dir) {
        for (size_t i = 0; i < fuzz_seeds_n; i++) {
                char *path = file_path("%s/seed-%zu", dir, i);
                struct error e;
                int r = path ? file_write_atomic(path, fuzz_seeds[i].data, fuzz_seeds[i].len, 0644, &e) : error_set(&e, -ENOMEM, "no memory");

                free(path);
                if (r < 0) {
                        fprintf(stderr, "%s\n", e.text);
                        return 1;
                }
        }
        return 0;
}

int main(int argc, char **argv) {
        int64_t rounds = ROUNDS, seed = 1;
        uint8_t buf[INPUT_MAX];

        if (argc == 3 && strcmp(argv[1], "--seeds") == 0)
                return write_seeds(argv[2]);
        if (argc > 1 && text_parse_i64(argv[1], &rounds) < 0)
                return replay(argc - 1, argv + 1);
        if (argc > 2 && text_parse_i64(argv[2], &seed) < 0)
                return 2;
        state = (uint64_t)seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
        for (size_t i = 0; i < fuzz_seeds_n; i++)
                run_once(fuzz_seeds[i].data, fuzz_seeds[i].len);
        for (int64_t i = 0; i < rounds; i++) {
                const struct fuzz_seed *s = &fuzz_seeds[below(fuzz_seeds_n)];
                size_t len = s->len < INPUT_MAX ? s->len : INPUT_MAX;

                memcpy(buf, s->data, len);
                for (size_t k = below(6) + 1; k > 0; k--)
                        len = mutate(buf, len);
                run_once(buf, len);
        }
        printf("%zu seeds, %lld mutations\n", fuzz_seeds_n, (long long)rounds);
        return 0;
}
