/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "base/hash.h"
#include "scratch.h"
#include "test.h"

TEST(hex_is_what_xxhsum_prints) {
        char hex[DIGEST_HEX_SIZE];

        /* XXH3-128 of nothing, seed 0 (xxHash's own sanity table). */
        digest_hex(digest_of("", 0), hex);
        CU_ASSERT_STRING_EQUAL(hex, "99aa06d3014798d86001c324468d497f");
}

TEST(parse_is_strict) {
        struct digest d = { 1, 2 }, back;
        char hex[DIGEST_HEX_SIZE];

        digest_hex(digest_of("abc", 3), hex);
        CU_ASSERT_EQUAL(digest_parse(hex, &back), 0);
        CU_ASSERT_TRUE(digest_equal(back, digest_of("abc", 3)));
        CU_ASSERT_EQUAL(digest_parse("", &d), -EINVAL);
        CU_ASSERT_EQUAL(digest_parse("99AA06d3014798d86001c324468d497f", &d), -EINVAL);
        CU_ASSERT_EQUAL(digest_parse("99aa06d3014798d86001c324468d497", &d), -EINVAL);
        CU_ASSERT_EQUAL(digest_parse("99aa06d3014798d86001c324468d497f0", &d), -EINVAL);
        CU_ASSERT_EQUAL(d.hi, 1);
        CU_ASSERT_EQUAL(d.lo, 2);
}

TEST(stream_and_file_agree_with_one_call) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        struct digest_stream *st;
        struct digest of_file;
        struct error e;
        size_t n = 3 * 1024 * 1024 + 17;
        _cleanup_free_ char *data = malloc(n);

        for (size_t i = 0; i < n; i++)
                data[i] = (char)(i * 31 + i / 7);
        CU_ASSERT_EQUAL_FATAL(digest_stream_new(&st), 0);
        for (size_t at = 0, k = 1; at < n; k = k * 3 + 1) {
                size_t len = k < n - at ? k : n - at;

                digest_stream_add(st, data + at, len);
                at += len;
        }
        CU_ASSERT_TRUE(digest_equal(digest_stream_end(st), digest_of(data, n)));
        digest_stream_free(st);
        scratch_write(&s, "f", data, n);
        ASSERT_OK(digest_file(s.path, &of_file, &e), e);
        CU_ASSERT_TRUE(digest_equal(of_file, digest_of(data, n)));
        ASSERT_ERROR(digest_file(scratch_path(&s, "missing"), &of_file, &e), -ENOENT, e, "missing");
}

TEST_MAIN("hash")
