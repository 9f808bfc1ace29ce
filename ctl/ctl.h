/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What the parts of fp8ctl share: exit codes, the table of subcommands, the options that all of them take.
 *
 * A handler returns an exit code (enum ctl_exit).  It prints its own result to stdout through print.h; for a failure it returns ctl_fail(&error),
 * which says why on stderr in one line.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/opt.h"

enum ctl_exit {
        EXIT_DONE = 0,
        EXIT_FAILED = 1,      /* the job failed, or the request could not be done */
        EXIT_USAGE = 2,       /* the command line or the job file is wrong */
        EXIT_NOT_FOUND = 3,
        EXIT_DENIED = 4,
        EXIT_UNREACHABLE = 5, /* no controller answers */
        EXIT_TIMED_OUT = 6,
        EXIT_CANCELLED = 7,   /* the job was cancelled */
};

enum ctl_format { FORMAT_TABLE, FORMAT_WIDE, FORMAT_JSON, FORMAT_YAML, FORMAT_NAME, FORMAT_CSV };
#define FORMATS_USUAL ((1u << FORMAT_TABLE) | (1u << FORMAT_WIDE) | (1u << FORMAT_JSON) | (1u << FORMAT_YAML) | (1u << FORMAT_NAME))
#define FORMATS_PLAIN ((1u << FORMAT_TABLE) | (1u << FORMAT_JSON) | (1u << FORMAT_YAML))
#define FORMATS_METRICS ((1u << FORMAT_TABLE) | (1u << FORMAT_JSON) | (1u << FORMAT_YAML) | (1u << FORMAT_CSV))
#define FORMATS_TEXT (1u << FORMAT_TABLE)

/* What every command knows. */
struct ctl {
        const char *controller;  /* --controller or FP8CTL_CONTROLLER; NULL: the local cluster's socket in home */
        char *home;              /* --dir, FP8CTL_HOME or ~/.fp8ctl; absolute */
        const char *tls_ca, *tls_cert, *tls_key;
        enum ctl_format format;
        bool help;
};

struct command {
        const char *words;   /* "node list" */
        const char *args;    /* "JOB", "[JOB]", "FILES..."; "" for none */
        int min_args, max_args; /* max -1: any number */
        unsigned formats;    /* bits of enum ctl_format */
        const struct opt *opts; /* ends with a row without a name; NULL: none of its own */
        int (*run)(struct ctl *c, int n_args, char **args);
        const char *help;    /* one line */
        const char *more;    /* for `help COMMAND`; may be NULL */
        bool hidden;
};

/* The one table (commands.c). */
extern const struct command commands[];
extern const size_t n_commands;
extern const struct opt global_opts[]; /* ends with a row without a name */
size_t opts_count(const struct opt *table);
const char *ctl_format_name(enum ctl_format f);

/* The longest match of words[0..n) in the table; *ret_words: how many of them it took. NULL: none. */
const struct command *command_find(int n, char *const *words, int *ret_words);
void command_print_help(const struct command *cmd);
void commands_print_help(void);

int ctl_main(int argc, char **argv);
/* One line on stderr; the exit code that fits e->code. */
int ctl_fail(const struct error *e);
/* The same, but always EXIT_USAGE. */
int ctl_usage(const struct error *e);
int ctl_exit_code(int code);
/* A job number ("12"). */
int parse_job_id(const char *s, uint64_t *ret, struct error *e);
