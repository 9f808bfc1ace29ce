/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "base/cleanup.h"
#include "ctl/rollout_args.h"
#include "tests/test.h"

TEST(facts) {
        const char *value = NULL;
        struct error e = { 0 };
        char key[8];

        ASSERT_OK(rollout_parse_fact("kernel=6.1", key, sizeof(key), &value, &e), e);
        CU_ASSERT_STRING_EQUAL(key, "kernel");
        CU_ASSERT_STRING_EQUAL(value, "6.1");
        ASSERT_OK(rollout_parse_fact("site.ab=b=c", key, sizeof(key), &value, &e), e);
        CU_ASSERT_STRING_EQUAL(key, "site.ab");
        CU_ASSERT_STRING_EQUAL(value, "b=c");
        value = NULL;
        for (const char *const *bad = (const char *const[]){ NULL, "", "=", "kernel", "kernel=", "=6.1", "site.abc=6.1" }, *const *end = bad + 7; bad < end; bad++)
                CU_ASSERT_EQUAL(rollout_parse_fact(*bad, key, sizeof(key), &value, &e), -EINVAL);
        CU_ASSERT_STRING_EQUAL(e.text, "--fact: found 'site.abc=6.1', expected KEY=VALUE, the key of at most 7 characters");
        CU_ASSERT_PTR_NULL(value);
        CU_ASSERT_STRING_EQUAL(key, "site.ab");
}

TEST(stages) {
        static const char *const bad[] = { "", ",", "5", "100,100", "5,20,", "20,5,100", "0,100", "-5,100", "5%,100", "50,101", "5, 100", "5,20,99", "12345678,100", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,100" };
        uint32_t stages[ROLLOUT_STAGES_MAX];
        size_t n = 0;
        struct error e = { 0 };

        ASSERT_OK(rollout_parse_stages("5,20,50,100", stages, &n, &e), e);
        CU_ASSERT_EQUAL_FATAL(n, 4);
        CU_ASSERT_TRUE(stages[0] == 5 && stages[1] == 20 && stages[2] == 50 && stages[3] == 100);
        ASSERT_OK(rollout_parse_stages("100", stages, &n, &e), e);
        CU_ASSERT_EQUAL(n, 1);
        ASSERT_OK(rollout_parse_stages("1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,100", stages, &n, &e), e);
        CU_ASSERT_EQUAL(n, 16);
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                n = 77;
                CU_ASSERT_EQUAL(rollout_parse_stages(bad[i], stages, &n, &e), -EINVAL);
                CU_ASSERT_EQUAL(n, 77);
        }
}

TEST_MAIN("ctl_rollout")
