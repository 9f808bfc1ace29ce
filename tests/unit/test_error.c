/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "base/error.h"
#include "test.h"

TEST(set_returns_the_code) {
        struct error e;

        CU_ASSERT_EQUAL(error_set(&e, -EINVAL, "found %d, expected %d", 3, 4), -EINVAL);
        CU_ASSERT_EQUAL(e.code, -EINVAL);
        CU_ASSERT_STRING_EQUAL(e.text, "found 3, expected 4");
        CU_ASSERT_EQUAL(error_set(NULL, -EIO, "nobody listens"), -EIO);
}

TEST(errno_has_the_reason) {
        struct error e;

        CU_ASSERT_EQUAL(error_errno(&e, ENOENT, "cannot open '%s'", "x"), -ENOENT);
        CU_ASSERT_STRING_EQUAL(e.text, "cannot open 'x': No such file or directory");
        CU_ASSERT_EQUAL(error_errno(NULL, ENOENT, "x"), -ENOENT);
        error_errno(&e, 4095, "odd");
        CU_ASSERT_STRING_EQUAL(e.text, "odd: unknown error");
}

TEST(prefix_keeps_the_code) {
        struct error e;

        error_set(&e, -EIO, "short");
        CU_ASSERT_EQUAL(error_prefix(&e, "rank %d", 3), -EIO);
        CU_ASSERT_STRING_EQUAL(e.text, "rank 3: short");
        CU_ASSERT_EQUAL(error_prefix(NULL, "x"), 0);
}

TEST(text_may_quote_itself) {
        struct error e;

        error_set(&e, -EIO, "inner");
        error_set(&e, -EIO, "outer (%s)", e.text);
        CU_ASSERT_STRING_EQUAL(e.text, "outer (inner)");
}

TEST(stays_one_line_and_bounded) {
        struct error e;
        char big[4096];

        error_set(&e, -EIO, "a\nb\rc\033[31md\x7f");
        CU_ASSERT_STRING_EQUAL(e.text, "a b c [31md ");
        memset(big, 'x', sizeof(big) - 1);
        big[sizeof(big) - 1] = 0;
        error_set(&e, -EIO, "%s", big);
        CU_ASSERT_EQUAL(strlen(e.text), sizeof(e.text) - 1);
        error_prefix(&e, "%s", big);
        CU_ASSERT_EQUAL(strlen(e.text), sizeof(e.text) - 1);
}

TEST_MAIN("error")
