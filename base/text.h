/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Numbers and names that people type. Strict: the whole string or nothing, no leading or trailing blanks, no hexadecimal, no octal, no locale.
 */
#include <stdint.h>

/* Decimal with an optional sign. -EINVAL, or -ERANGE when it does not fit. */
int text_parse_i64(const char *s, int64_t *ret);
/* Decimal, with optional fraction and exponent; never NaN or infinite. -EINVAL, or -ERANGE when it overflows. */
int text_parse_double(const char *s, double *ret);
/* "250ms", "10s", "2m", "1h", "1d", "0": whole numbers only. -EINVAL, or -ERANGE. */
int text_parse_duration_ms(const char *s, int64_t *ret);

/* "1 rank", "2 ranks": printf("%d rank%s", n, text_s(n)). */
static inline const char *text_s(uint64_t n) {
        return n == 1 ? "" : "s";
}

/* How many single-letter changes (insert, delete, replace, swap of neighbours) make a into b; names beyond 63 letters: a large number. */
int text_distance(const char *a, const char *b);
/* The name most like `word` among a NULL-terminated list, when one is near enough to be what was meant; else NULL. */
const char *text_suggest(const char *word, const char *const *names);
