/* SPDX-License-Identifier: Apache-2.0 */
/* --set on the text of a job file: values are replaced where they stand, what is not there is put in, lines keep their numbers. */
#include <errno.h>

#include "ctl/job_set.h"
#include "tests/test.h"

static void check(const char *text, const char *assignment, const char *want) {
        struct error e = { 0 };
        char *out = NULL;
        int r = job_set(text, "job.yaml", assignment, &out, &e);

        ASSERT_OK(r, e);
        if (strcmp(out, want) != 0)
                printf("    --set %s: found\n%s\n    expected\n%s\n", assignment, out, want);
        CU_ASSERT_STRING_EQUAL(out, want);
        free(out);
}

TEST(replaces_in_place) {
        check("train:\n  steps: 200 # all\n  seed: 1\n", "train.steps=50", "train:\n  steps: 50 # all\n  seed: 1\n");
        check("name: a\nversion: 1\n", "name=other-job", "name: other-job\nversion: 1\n");
        check("{\"train\": {\"steps\": 5, \"seed\": 2}}", "train.steps=6", "{\"train\": {\"steps\": 6, \"seed\": 2}}");
        check("data:\n  path: \"a b\"\n", "data.path=/c d", "data:\n  path: /c d\n");
        check("train:\n  recompute:\n    - 1\n    - 2\n  seed: 1\n", "train.recompute=[0, 3]", "train:\n  recompute:\n    [0, 3]\n  seed: 1\n");
}

TEST(empty_value_is_filled) {
        check("train:\n  steps:\n  seed: 1\n", "train.steps=9", "train:\n  steps: 9\n  seed: 1\n");
}

TEST(puts_in_what_is_missing) {
        check("train:\n  steps: 5\n", "train.seed=3", "train:\n  seed: 3\n  steps: 5\n");
        check("version: 1\n", "test.kill_step=4", "test: {kill_step: 4}\nversion: 1\n");
        check("{version: 1, train: {steps: 5}}", "train.seed=3", "{version: 1, train: {seed: 3, steps: 5}}");
        check("version: 1\ntrain: {}\n", "train.seed=3", "version: 1\ntrain: {seed: 3}\n");
}

TEST(utf8_before_the_place) {
        check("# größer — ✓\nname: \"ä\"\ntrain: {steps: 1}\n", "train.steps=2", "# größer — ✓\nname: \"ä\"\ntrain: {steps: 2}\n");
        check("\xef\xbb\xbfname: a\n", "name=b", "\xef\xbb\xbfname: b\n");
}

TEST(quotes_what_yaml_would_misread) {
        check("name: a\n", "name=x: y", "name: 'x: y'\n");
        check("name: a\n", "name=it's #1 #2", "name: 'it''s #1 #2'\n");
        check("name: a\n", "name=", "name: ''\n");
        check("name: a\n", "name=*.mlp.*", "name: '*.mlp.*'\n");
        check("name: a\n", "name=-1", "name: -1\n");
}

TEST(refusals) {
        struct error e = { 0 };
        char *out = (char *)"untouched";

        ASSERT_ERROR(job_set("a: 1\n", "j", "steps", &out, &e), -EINVAL, e, "expected KEY=VALUE");
        ASSERT_ERROR(job_set("a: 1\n", "j", "=5", &out, &e), -EINVAL, e, "expected KEY=VALUE");
        ASSERT_ERROR(job_set("a: 1\n", "j", "a..b=5", &out, &e), -EINVAL, e, "expected KEY=VALUE");
        ASSERT_ERROR(job_set("a: 1\n", "j", "a b=5", &out, &e), -EINVAL, e, "expected KEY=VALUE");
        ASSERT_ERROR(job_set("a: 1\n", "j", "a.b=5", &out, &e), -EINVAL, e, "'a' of j holds no keys");
        ASSERT_ERROR(job_set("- 1\n", "j", "a=5", &out, &e), -EINVAL, e, "holds no keys");
        ASSERT_ERROR(job_set("", "j", "a=5", &out, &e), -EINVAL, e, "holds no keys");
        ASSERT_ERROR(job_set("a: [1\n", "j", "a=5", &out, &e), -EINVAL, e, "j:2: not YAML");
        ASSERT_ERROR(job_set("a: 1\n", "j", "a=1\nb: 2", &out, &e), -EINVAL, e, "control character");
        CU_ASSERT_STRING_EQUAL(out, "untouched");
}

TEST_MAIN("ctl job_set")
