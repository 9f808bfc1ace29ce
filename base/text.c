/* SPDX-License-Identifier: Apache-2.0 */
#include "base/text.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_MAX_LEN 63
#define FAR_AWAY 1000

static bool is_digit(char c) {
        return c >= '0' && c <= '9';
}

int text_parse_i64(const char *s, int64_t *ret) {
        bool negative = *s == '-';
        uint64_t limit = (uint64_t)INT64_MAX + negative, v = 0;

        if (*s == '-' || *s == '+')
                s++;
        if (!is_digit(*s) || (s[0] == '0' && is_digit(s[1])))
                return -EINVAL;
        for (; is_digit(*s); s++) {
                uint64_t digit = (uint64_t)(*s - '0');

                if (v > (limit - digit) / 10) {
                        while (is_digit(*s))
                                s++;
                        return *s ? -EINVAL : -ERANGE;
                }
                v = v * 10 + digit;
        }
        if (*s)
                return -EINVAL;
        *ret = negative ? (int64_t)(0 - v) : (int64_t)v;
        return 0;
}

/* [sign] digits [. digits] [e [sign] digits], with at least one digit before the exponent. */
static bool is_decimal(const char *s) {
        int digits = 0;

        if (*s == '-' || *s == '+')
                s++;
        for (; is_digit(*s); s++)
                digits++;
        if (*s == '.')
                for (s++; is_digit(*s); s++)
                        digits++;
        if (digits == 0)
                return false;
        if (*s == 'e' || *s == 'E') {
                s++;
                if (*s == '-' || *s == '+')
                        s++;
                if (!is_digit(*s))
                        return false;
                while (is_digit(*s))
                        s++;
        }
        return *s == 0;
}

int text_parse_double(const char *s, double *ret) {
        double v;

        if (!is_decimal(s))
                return -EINVAL;
        v = strtod(s, NULL); /* no program here calls setlocale: the point is a point */
        if (!isfinite(v))
                return -ERANGE;
        *ret = v;
        return 0;
}

int text_parse_duration_ms(const char *s, int64_t *ret) {
        static const struct {
                const char *unit;
                int64_t ms;
        } units[] = { { "ms", 1 }, { "s", 1000 }, { "m", 60000 }, { "h", 3600000 }, { "d", 86400000 } };
        char number[24];
        size_t n = strspn(s, "0123456789");
        int64_t v, ms;
        int r;

        if (n == 0)
                return -EINVAL;
        if (n >= sizeof(number))
                return -ERANGE;
        memcpy(number, s, n);
        number[n] = 0;
        r = text_parse_i64(number, &v);
        if (r < 0)
                return r;
        if (s[n] == 0 && v == 0) {
                *ret = 0;
                return 0;
        }
        for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
                if (strcmp(s + n, units[i].unit) != 0)
                        continue;
                if (__builtin_mul_overflow(v, units[i].ms, &ms))
                        return -ERANGE;
                *ret = ms;
                return 0;
        }
        return -EINVAL;
}

static int min_of(int a, int b) {
        return a < b ? a : b;
}

/* Optimal string alignment distance (Damerau 1964, each place edited once), three rows kept. */
int text_distance(const char *a, const char *b) {
        int rows[3][NAME_MAX_LEN + 1];
        size_t n = strlen(a), m = strlen(b);

        if (n > NAME_MAX_LEN || m > NAME_MAX_LEN)
                return FAR_AWAY;
        for (size_t j = 0; j <= m; j++)
                rows[0][j] = (int)j;
        for (size_t i = 1; i <= n; i++) {
                int *row = rows[i % 3], *above = rows[(i + 2) % 3], *two_above = rows[(i + 1) % 3];

                row[0] = (int)i;
                for (size_t j = 1; j <= m; j++) {
                        int cost = a[i - 1] != b[j - 1];

                        row[j] = min_of(min_of(above[j], row[j - 1]) + 1, above[j - 1] + cost);
                        if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                                row[j] = min_of(row[j], two_above[j - 2] + 1);
                }
        }
        return rows[n % 3][m];
}

const char *text_suggest(const char *word, const char *const *names) {
        const char *best = NULL;
        int best_distance = FAR_AWAY;

        for (; *names; names++) {
                int d = text_distance(word, *names);

                if (d < best_distance) {
                        best_distance = d;
                        best = *names;
                }
        }
        /* A third of the letters may be wrong; "--x" suggests nothing. */
        return best && best_distance <= (int)(strlen(word) + 2) / 3 ? best : NULL;
}
