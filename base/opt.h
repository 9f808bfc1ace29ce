/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Command-line options from a table (no thousand-line switch): long and short names, --name=value, --name value,
 * --no-name for flags that are set by default, `--` ends options. Help text is printed from the same table.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum opt_type { OPT_FLAG, OPT_STRING, OPT_INT, OPT_DOUBLE, OPT_CHOICE, OPT_DURATION_MS, OPT_LIST };

/* An option that may be given several times; the strings stay argv's. */
#define OPT_LIST_MAX 64
struct opt_list {
        const char *values[OPT_LIST_MAX];
        size_t n;
};

struct opt {
        const char *name;  /* long name without dashes */
        char letter;       /* or 0 */
        enum opt_type type;
        const char *value; /* name of the value in help, "FILE" */
        const char *help;
        void *target; /* bool * | const char ** | int64_t * | double * | const char ** | int64_t * | struct opt_list * */
        int64_t min, max;           /* OPT_INT, OPT_DURATION_MS: both 0 means unbounded */
        const char *const *choices; /* OPT_CHOICE: NULL-terminated */
};

/*
 * Parses argv[1..]; positional arguments are moved, in order, to ret_args (argc entries are enough).
 * -EINVAL with "unknown option --foo; did you mean --bar?" or "--steps: found 'x', expected an integer from 1 to ...".
 */
int opt_parse(const struct opt *table, size_t n, int argc, char **argv, char **ret_args, int *ret_n_args, struct error *e);
void opt_print_help(const struct opt *table, size_t n);
