/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "base/cleanup.h"
#include "proto/yaml_tree.h"
#include "test.h"

static int parse(const char *text, struct yaml_node **ret, struct error *e) {
        return yaml_tree_parse(text, strlen(text), "f.yaml", ret, e);
}

TEST(maps_lists_and_lines) {
        struct yaml_node *n;
        struct error e;
        char text[64];

        ASSERT_OK(parse("# comment\na: 1\nb:\n  - x\n  - \"y\"\nc: {d: [], e: }\n", &n, &e), e);
        CU_ASSERT_EQUAL(n->kind, YAML_TREE_MAP);
        CU_ASSERT_EQUAL_FATAL(n->n, 3);
        CU_ASSERT_STRING_EQUAL(yaml_map_key(n, 0)->text, "a");
        CU_ASSERT_EQUAL(yaml_map_key(n, 0)->line, 2);
        CU_ASSERT_TRUE(yaml_map_value(n, 0)->plain);
        CU_ASSERT_EQUAL_FATAL(yaml_map_value(n, 1)->n, 2);
        CU_ASSERT_EQUAL(yaml_map_value(n, 1)->items[1]->line, 5);
        CU_ASSERT_FALSE(yaml_map_value(n, 1)->items[1]->plain);
        yaml_node_describe(yaml_map_value(n, 1), text, sizeof(text));
        CU_ASSERT_STRING_EQUAL(text, "a list");
        yaml_node_describe(yaml_map_value(n, 2), text, sizeof(text));
        CU_ASSERT_STRING_EQUAL(text, "a map");
        yaml_node_describe(yaml_map_value(yaml_map_value(n, 2), 1), text, sizeof(text));
        CU_ASSERT_STRING_EQUAL(text, "nothing");
        CU_ASSERT_EQUAL(yaml_map_value(yaml_map_value(n, 2), 0)->n, 0);
        yaml_tree_free(n);
}

TEST(what_is_refused) {
        static const struct {
                const char *text, *message;
        } cases[] = {
                { "", "f.yaml:1: found an empty file" },
                { "# only a comment\n", "found an empty file" },
                { "a: &x 1\nb: *x\n", "f.yaml:1: found an anchor or a tag" },
                { "a: 1\nb: *x\n", "f.yaml:2: found an alias" },
                { "a: !!str 1\n", "an anchor or a tag" },
                { "a: &x {}\n", "an anchor or a tag" },
                { "a: !foo []\n", "an anchor or a tag" },
                { "a: 1\n---\nb: 1\n", "f.yaml:2: found a second document" },
                { "? [a, b]\n: 1\n", "a list or a map as a key" },
                { "a: [1, 2\n", "found text that is not YAML" },
                { "a: 1\n b: 2\n", "f.yaml:2: found text that is not YAML" },
                { "a: \"\\0\"\n", "a NUL character" },
                { "a: \xff\xfe\n", "f.yaml:1: found a byte that cannot be" },
                { "\ta: 1\n", "found text that is not YAML" },
                { "[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]", "too deep a nesting" },
        };
        struct yaml_node *n = NULL;
        struct error e;

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
                ASSERT_ERROR(parse(cases[i].text, &n, &e), -EINVAL, e, cases[i].message);
        CU_ASSERT_PTR_NULL(n);
}

TEST(entries_are_bounded) {
        size_t len = 3 * 70000 + 2;
        _cleanup_free_ char *text = malloc(len + 1);
        struct yaml_node *n = NULL;
        struct error e;
        char *p = text;

        *p++ = '[';
        for (int i = 0; i < 70000; i++)
                p = mempcpy(p, "1, ", 3);
        *p++ = ']';
        *p = 0;
        ASSERT_ERROR(parse(text, &n, &e), -EINVAL, e, "too many entries");
}

TEST_MAIN("yaml_tree")
