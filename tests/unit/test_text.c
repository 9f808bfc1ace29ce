/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>

#include "base/text.h"
#include "test.h"

TEST(integers_are_strict) {
        static const struct {
                const char *text;
                int rc;
                int64_t value;
        } cases[] = {
                { "0", 0, 0 }, { "-0", 0, 0 }, { "+7", 0, 7 }, { "42", 0, 42 },
                { "9223372036854775807", 0, INT64_MAX }, { "-9223372036854775808", 0, INT64_MIN },
                { "9223372036854775808", -ERANGE, 0 }, { "-9223372036854775809", -ERANGE, 0 }, { "99999999999999999999", -ERANGE, 0 },
                { "", -EINVAL, 0 }, { "-", -EINVAL, 0 }, { " 1", -EINVAL, 0 }, { "1 ", -EINVAL, 0 }, { "0x10", -EINVAL, 0 }, { "010", -EINVAL, 0 },
                { "1e3", -EINVAL, 0 }, { "1.0", -EINVAL, 0 }, { "--1", -EINVAL, 0 }, { "1_000", -EINVAL, 0 }, { "99999999999999999999x", -EINVAL, 0 },
        };

        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                int64_t v = 0;
                int r = text_parse_i64(cases[i].text, &v);

                if (r != cases[i].rc || v != cases[i].value)
                        printf("    '%s': %d %" PRId64 "\n", cases[i].text, r, v);
                CU_ASSERT_EQUAL(r, cases[i].rc);
                CU_ASSERT_EQUAL(v, cases[i].value);
        }
}

TEST(doubles_are_strict) {
        static const char *const good[] = { "0", "-1", "+1.5", "3e-4", "1E+3", ".5", "5.", "1e-400", NULL };
        static const char *const bad[] = { "", "nan", "inf", "-inf", "0x1p3", "1e", "1e+", ".", "e5", "1,5", " 1", "1 ", "1f", NULL };
        double v;

        for (const char *const *s = good; *s; s++)
                CU_ASSERT_EQUAL(text_parse_double(*s, &v), 0);
        CU_ASSERT_EQUAL(text_parse_double("3e-4", &v), 0);
        CU_ASSERT_EQUAL(v, 3e-4);
        for (const char *const *s = bad; *s; s++)
                CU_ASSERT_EQUAL(text_parse_double(*s, &v), -EINVAL);
        CU_ASSERT_EQUAL(text_parse_double("1e400", &v), -ERANGE);
        CU_ASSERT_EQUAL(v, 3e-4);
}

TEST(durations_have_units) {
        int64_t ms = -1;

        CU_ASSERT_EQUAL(text_parse_duration_ms("250ms", &ms), 0);
        CU_ASSERT_EQUAL(ms, 250);
        CU_ASSERT_EQUAL(text_parse_duration_ms("10s", &ms), 0);
        CU_ASSERT_EQUAL(ms, 10000);
        CU_ASSERT_EQUAL(text_parse_duration_ms("2m", &ms), 0);
        CU_ASSERT_EQUAL(ms, 120000);
        CU_ASSERT_EQUAL(text_parse_duration_ms("1h", &ms), 0);
        CU_ASSERT_EQUAL(ms, 3600000);
        CU_ASSERT_EQUAL(text_parse_duration_ms("1d", &ms), 0);
        CU_ASSERT_EQUAL(ms, 86400000);
        CU_ASSERT_EQUAL(text_parse_duration_ms("0", &ms), 0);
        CU_ASSERT_EQUAL(ms, 0);
        CU_ASSERT_EQUAL(text_parse_duration_ms("10", &ms), -EINVAL);
        CU_ASSERT_EQUAL(text_parse_duration_ms("s", &ms), -EINVAL);
        CU_ASSERT_EQUAL(text_parse_duration_ms("-1s", &ms), -EINVAL);
        CU_ASSERT_EQUAL(text_parse_duration_ms("1.5s", &ms), -EINVAL);
        CU_ASSERT_EQUAL(text_parse_duration_ms("1s ", &ms), -EINVAL);
        CU_ASSERT_EQUAL(text_parse_duration_ms("9223372036854775807d", &ms), -ERANGE);
        CU_ASSERT_EQUAL(text_parse_duration_ms("99999999999999999999999999s", &ms), -ERANGE);
        CU_ASSERT_EQUAL(ms, 0);
}

TEST(near_misses) {
        static const char *const names[] = { "steps", "nodes", "devices", "wait", NULL };
        char big[200];

        CU_ASSERT_EQUAL(text_distance("", ""), 0);
        CU_ASSERT_EQUAL(text_distance("abc", ""), 3);
        CU_ASSERT_EQUAL(text_distance("kitten", "sitting"), 3);
        CU_ASSERT_EQUAL(text_distance("abcd", "abdc"), 1);
        CU_ASSERT_STRING_EQUAL(text_suggest("step", names), "steps");
        CU_ASSERT_STRING_EQUAL(text_suggest("devcies", names), "devices");
        CU_ASSERT_PTR_NULL(text_suggest("x", names));
        CU_ASSERT_PTR_NULL(text_suggest("colour", names));
        memset(big, 'a', sizeof(big) - 1);
        big[sizeof(big) - 1] = 0;
        CU_ASSERT_PTR_NULL(text_suggest(big, names));
}

TEST_MAIN("text")
