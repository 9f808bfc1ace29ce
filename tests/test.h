/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * TEST(name) { ... CU_ASSERT...; } in any number, then TEST_MAIN("suite") once a program.  A test program exits 0 when all
 * passed, 1 when one failed, 77 (skipped) after TEST_SKIP_ALL.  `program NAME` runs the tests whose names contain NAME.
 */
#include <CUnit/Basic.h>
#include <CUnit/CUnit.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Built with a sanitizer: what takes long may be smaller there. (clang has no __SANITIZE_*__, gcc 12 no __has_feature.) */
#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TEST_SANITIZED 1
#else
#define TEST_SANITIZED 0
#endif

struct test_entry {
        const char *name;
        void (*fn)(void);
        struct test_entry *next;
};

extern struct test_entry *test_list;
extern struct test_entry **test_tail;

#define TEST(id)                                                                  \
        static void test_##id(void);                                              \
        __attribute__((constructor)) static void test_register_##id(void) {       \
                static struct test_entry entry = { #id, test_##id, NULL };        \
                *test_tail = &entry;                                              \
                test_tail = &entry.next;                                          \
        }                                                                         \
        static void test_##id(void)

#define TEST_MAIN(suite_name)                                                                       \
        struct test_entry *test_list;                                                               \
        struct test_entry **test_tail = &test_list;                                                 \
        int main(int argc, char **argv) {                                                           \
                CU_pSuite suite;                                                                    \
                unsigned failed;                                                                    \
                if (CU_initialize_registry() != CUE_SUCCESS)                                        \
                        return 1;                                                                   \
                suite = CU_add_suite(suite_name, NULL, NULL);                                       \
                for (struct test_entry *t = test_list; t; t = t->next)                              \
                        if (argc < 2 || strstr(t->name, argv[1]))                                   \
                                CU_add_test(suite, t->name, t->fn);                                 \
                CU_basic_set_mode(CU_BRM_VERBOSE);                                                  \
                CU_basic_run_tests();                                                               \
                failed = CU_get_number_of_failures() + CU_get_number_of_suites_failed();            \
                CU_cleanup_registry();                                                              \
                return failed ? 1 : 0;                                                              \
        }

#define TEST_SKIP_ALL(why)                          \
        do {                                        \
                printf("skipped: %s\n", (why));     \
                exit(77);                           \
        } while (0)

/* Out of line: under -fsanitize=undefined gcc 12 takes the inlined form for a print of NULL. */
__attribute__((noinline, unused)) static bool test_contains(const char *file, int line, const char *text, const char *want) {
        if (strstr(text, want))
                return true;
        printf("    %s:%d: found '%s', expected '%s' in it\n", file, line, text, want);
        return false;
}

/* Fails with the message of a struct error. */
#define ASSERT_OK(rc, err)                                                                \
        do {                                                                              \
                int test_rc = (rc);                                                       \
                if (test_rc != 0)                                                         \
                        printf("    %s:%d: rc %d: %s\n", __FILE__, __LINE__, test_rc, (err).text); \
                CU_ASSERT_EQUAL_FATAL(test_rc, 0);                                        \
        } while (0)
#define ASSERT_ERROR(rc, want, err, substring)                                            \
        do {                                                                              \
                int test_rc = (rc);                                                       \
                CU_ASSERT_EQUAL(test_rc, (want));                                         \
                CU_ASSERT_TRUE(test_contains(__FILE__, __LINE__, (err).text, (substring))); \
        } while (0)
