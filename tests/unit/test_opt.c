/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "base/opt.h"
#include "test.h"

static bool wait_flag, quiet;
static const char *file, *output;
static int64_t steps, grace;
static double rate;
static const char *const formats[] = { "table", "json", NULL };

static const struct opt table[] = {
        { "wait", 'w', OPT_FLAG, NULL, "waits", &wait_flag, 0, 0, NULL },
        { "quiet", 'q', OPT_FLAG, NULL, "says nothing", &quiet, 0, 0, NULL },
        { "file", 'f', OPT_STRING, "FILE", "a file", &file, 0, 0, NULL },
        { "output", 'o', OPT_CHOICE, "FORMAT", "how to print", &output, 0, 0, formats },
        { "steps", 's', OPT_INT, "N", "how many", &steps, 1, 100, NULL },
        { "rate", 0, OPT_DOUBLE, "X", "how fast", &rate, 0, 0, NULL },
        { "grace", 0, OPT_DURATION_MS, "TIME", "how long", &grace, 0, 60000, NULL },
};
#define N (sizeof(table) / sizeof(table[0]))

static int parse(struct error *e, char **args, int *n_args, ...) {
        char *argv[16] = { (char *)"program" };
        int argc = 1;
        va_list ap;

        va_start(ap, n_args);
        for (char *s; (s = va_arg(ap, char *));)
                argv[argc++] = s;
        va_end(ap);
        wait_flag = quiet = false;
        file = output = NULL;
        steps = grace = -1;
        rate = -1;
        return opt_parse(table, N, argc, argv, args, n_args, e);
}

#define PARSE(...) parse(&e, args, &n_args, __VA_ARGS__, NULL)

TEST(all_forms) {
        char *args[16];
        struct error e;
        int n_args = -1;

        ASSERT_OK(PARSE("a", "--wait", "--file=x=y", "--output", "json", "b", "-s", "7", "--rate=2.5", "--grace", "10s", "--", "--wait", "-q"), e);
        CU_ASSERT_TRUE(wait_flag);
        CU_ASSERT_FALSE(quiet);
        CU_ASSERT_STRING_EQUAL(file, "x=y");
        CU_ASSERT_STRING_EQUAL(output, "json");
        CU_ASSERT_EQUAL(steps, 7);
        CU_ASSERT_EQUAL(rate, 2.5);
        CU_ASSERT_EQUAL(grace, 10000);
        CU_ASSERT_EQUAL_FATAL(n_args, 4);
        CU_ASSERT_STRING_EQUAL(args[0], "a");
        CU_ASSERT_STRING_EQUAL(args[1], "b");
        CU_ASSERT_STRING_EQUAL(args[2], "--wait");
        CU_ASSERT_STRING_EQUAL(args[3], "-q");
        ASSERT_OK(PARSE("-wqojson", "-ffile", "-"), e);
        CU_ASSERT_TRUE(wait_flag && quiet);
        CU_ASSERT_STRING_EQUAL(output, "json");
        CU_ASSERT_STRING_EQUAL(file, "file");
        CU_ASSERT_EQUAL(n_args, 1);
        ASSERT_OK(PARSE("--wait", "--no-wait", "--file="), e);
        CU_ASSERT_FALSE(wait_flag);
        CU_ASSERT_STRING_EQUAL(file, "");
}

TEST(refusals_say_what_is_allowed) {
        char *args[16];
        struct error e;
        int n_args = -1;

        ASSERT_ERROR(PARSE("--wiat"), -EINVAL, e, "unknown option --wiat; did you mean --wait?");
        ASSERT_ERROR(PARSE("--xyzzy"), -EINVAL, e, "unknown option --xyzzy");
        ASSERT_ERROR(PARSE("-x"), -EINVAL, e, "unknown option -x");
        ASSERT_ERROR(PARSE("--no-file"), -EINVAL, e, "unknown option --no-file");
        ASSERT_ERROR(PARSE("--steps", "x"), -EINVAL, e, "--steps: found 'x', expected an integer from 1 to 100");
        ASSERT_ERROR(PARSE("--steps=0"), -EINVAL, e, "found '0'");
        ASSERT_ERROR(PARSE("--steps=101"), -EINVAL, e, "found '101'");
        ASSERT_ERROR(PARSE("--steps"), -EINVAL, e, "--steps: found nothing, expected N");
        ASSERT_ERROR(PARSE("-s"), -EINVAL, e, "found nothing");
        ASSERT_ERROR(PARSE("--output=yaml"), -EINVAL, e, "--output: found 'yaml', expected one of table, json");
        ASSERT_ERROR(PARSE("--rate=fast"), -EINVAL, e, "expected a number");
        ASSERT_ERROR(PARSE("--grace=5"), -EINVAL, e, "expected a duration");
        ASSERT_ERROR(PARSE("--grace=2m"), -EINVAL, e, "to 60000 ms");
        ASSERT_ERROR(PARSE("--wait=yes"), -EINVAL, e, "expected no value");
        CU_ASSERT_EQUAL(n_args, -1);
}

TEST(help_names_every_option) {
        char text[4096] = "";
        FILE *out = stdout, *mem = fmemopen(text, sizeof(text), "w");

        CU_ASSERT_PTR_NOT_NULL_FATAL(mem);
        stdout = mem;
        opt_print_help(table, N);
        stdout = out;
        fclose(mem);
        for (size_t i = 0; i < N; i++)
                CU_ASSERT_PTR_NOT_NULL(strstr(text, table[i].name));
        CU_ASSERT_PTR_NOT_NULL(strstr(text, "  -o, --output FORMAT         how to print (table, json)\n"));
        CU_ASSERT_PTR_NOT_NULL(strstr(text, "      --rate X                how fast\n"));
}

TEST_MAIN("opt")
