/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From argv to a handler.  The command's words may stand behind options of all commands (`fp8ctl -o json node list`), so the words are looked
 * for first; then everything else is parsed against the command's table and the global one together.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/text.h"
#include "ctl/client.h"
#include "ctl/handlers.h"
#include "version.h"

#define WORDS_MAX 2

static const char *const format_names[] = { "table", "wide", "json", "yaml", "name", "csv", NULL };

static struct {
        const char *controller, *dir, *format, *tls_ca, *tls_cert, *tls_key;
        bool help;
} given;

const struct opt global_opts[] = {
        { "controller", 'c', OPT_STRING, "ADDRESS", "unix:PATH, group:PATH or ipv4:HOST:PORT (FP8CTL_CONTROLLER)", &given.controller, 0, 0, NULL },
        { "dir", 0, OPT_STRING, "DIR", "folder of the local cluster (FP8CTL_HOME; default ~/.fp8ctl)", &given.dir, 0, 0, NULL },
        { "output", 'o', OPT_CHOICE, "FORMAT", "form of the result", &given.format, 0, 0, format_names },
        { "tls-ca", 0, OPT_STRING, "FILE", "CA certificate (FP8CTL_TLS_CA)", &given.tls_ca, 0, 0, NULL },
        { "tls-cert", 0, OPT_STRING, "FILE", "own certificate (FP8CTL_TLS_CERT)", &given.tls_cert, 0, 0, NULL },
        { "tls-key", 0, OPT_STRING, "FILE", "key of it (FP8CTL_TLS_KEY)", &given.tls_key, 0, 0, NULL },
        { "help", 'h', OPT_FLAG, NULL, "explain the command", &given.help, 0, 0, NULL },
        { 0 },
};

const char *ctl_format_name(enum ctl_format f) {
        return format_names[f];
}

size_t opts_count(const struct opt *table) {
        size_t n = 0;

        while (table && table[n].name)
                n++;
        return n;
}

/* How many of words[0..n) the words of cmd are, or 0. */
static int match(const struct command *cmd, int n, char *const *words) {
        const char *p = cmd->words;

        for (int i = 0; i < n; i++) {
                size_t len = strcspn(p, " ");

                if (strlen(words[i]) != len || memcmp(words[i], p, len) != 0)
                        return 0;
                p += len;
                if (!*p)
                        return i + 1;
                p++;
        }
        return 0;
}

const struct command *command_find(int n, char *const *words, int *ret_words) {
        for (size_t i = 0; i < n_commands; i++) {
                int took = match(&commands[i], n, words);

                if (took > 0) {
                        *ret_words = took;
                        return &commands[i];
                }
        }
        return NULL;
}

/* Does the option at argv[i] take argv[i + 1] as its value? Only global options may stand before the words. */
static bool takes_next(const char *arg) {
        for (const struct opt *o = global_opts; o->name; o++) {
                if (o->type == OPT_FLAG)
                        continue;
                if (strncmp(arg, "--", 2) == 0 && strcmp(arg + 2, o->name) == 0)
                        return true;
                if (arg[1] == o->letter && o->letter && !arg[2])
                        return true;
        }
        return false;
}

/* Indices in argv of the first words (at most WORDS_MAX, side by side as arguments go). */
static int find_words(int argc, char **argv, int ret_at[WORDS_MAX]) {
        int n = 0;

        for (int i = 1; i < argc && n < WORDS_MAX; i++) {
                if (argv[i][0] == '-' && argv[i][1]) {
                        if (strcmp(argv[i], "--") == 0)
                                break;
                        if (takes_next(argv[i]))
                                i++;
                        continue;
                }
                ret_at[n++] = i;
        }
        return n;
}

/* "node lst": the commands that begin with the first word; "lst": what was probably meant. */
static int unknown(int n, char *const *words) {
        char list[512] = "";
        size_t len = 0;
        const char *names[64];
        size_t n_names = 0;
        const char *near;

        for (size_t i = 0; i < n_commands; i++) {
                size_t first = strcspn(commands[i].words, " ");

                if (commands[i].hidden)
                        continue;
                if (n_names + 1 < ARRAY_SIZE(names))
                        names[n_names++] = commands[i].words;
                if (commands[i].words[first] && strlen(words[0]) == first && strncmp(words[0], commands[i].words, first) == 0 && len < sizeof(list))
                        len += (size_t)snprintf(list + len, sizeof(list) - len, "%s%s", len ? ", " : "", commands[i].words + first + 1);
        }
        names[n_names] = NULL;
        if (len)
                fprintf(stderr, "fp8ctl: '%s%s%s': expected %s and one of: %s\n", words[0], n > 1 ? " " : "", n > 1 ? words[1] : "", words[0], list);
        else if ((near = text_suggest(words[0], names)))
                fprintf(stderr, "fp8ctl: no command '%s'; did you mean '%s'?\n", words[0], near);
        else
                fprintf(stderr, "fp8ctl: no command '%s'; `fp8ctl help` lists them\n", words[0]);
        return EXIT_USAGE;
}

static const char *or_env(const char *value, const char *name) {
        if (!value) {
                value = getenv(name);
                if (value && !*value)
                        value = NULL;
        }
        return value;
}

static int resolve_home(const char *given_dir, char **ret, struct error *e) {
        const char *dir = or_env(given_dir, "FP8CTL_HOME"), *home = getenv("HOME");
        char *path;

        if (dir && dir[0] == '/')
                path = strdup(dir);
        else if (dir) {
                _cleanup_free_ char *cwd = getcwd(NULL, 0);

                if (!cwd)
                        return error_errno(e, errno, "working folder");
                path = file_path("%s/%s", cwd, dir);
        } else if (home && *home)
                path = file_path("%s/.fp8ctl", home);
        else
                return error_set(e, -EINVAL, "no folder for the local cluster: HOME is not set; give --dir DIR");
        if (!path)
                return error_set(e, -ENOMEM, "no memory");
        for (size_t len = strlen(path); len > 1 && path[len - 1] == '/'; len--)
                path[len - 1] = 0;
        *ret = path;
        return 0;
}

static int finish_globals(const struct command *cmd, struct ctl *c, struct error *e) {
        c->controller = or_env(given.controller, "FP8CTL_CONTROLLER");
        c->tls_ca = or_env(given.tls_ca, "FP8CTL_TLS_CA");
        c->tls_cert = or_env(given.tls_cert, "FP8CTL_TLS_CERT");
        c->tls_key = or_env(given.tls_key, "FP8CTL_TLS_KEY");
        c->help = given.help;
        c->format = FORMAT_TABLE;
        for (int f = 0; given.format && format_names[f]; f++)
                if (strcmp(given.format, format_names[f]) == 0)
                        c->format = (enum ctl_format)f;
        if (!(cmd->formats & 1u << c->format)) {
                char list[64] = "";
                size_t len = 0;

                for (int f = 0; format_names[f]; f++)
                        if (cmd->formats & 1u << f)
                                len += (size_t)snprintf(list + len, sizeof(list) - len, "%s%s", len ? ", " : "", format_names[f]);
                return error_set(e, -EINVAL, "%s: found -o %s, allowed: %s", cmd->words, ctl_format_name(c->format), list);
        }
        return resolve_home(given.dir, &c->home, e);
}

/* One table for opt_parse: the command's own options first, so that they win over global ones of the same letter. */
static struct opt *merged_opts(const struct command *cmd, size_t *ret_n) {
        size_t own = opts_count(cmd->opts), global = opts_count(global_opts);
        struct opt *all = calloc(own + global + 1, sizeof(*all));

        if (!all)
                return NULL;
        if (own)
                memcpy(all, cmd->opts, own * sizeof(*all));
        memcpy(all + own, global_opts, global * sizeof(*all));
        *ret_n = own + global;
        return all;
}

static int run_command(const struct command *cmd, int argc, char **argv) {
        _cleanup_free_ struct opt *opts = NULL;
        _cleanup_free_ char **args = calloc((size_t)argc + 1, sizeof(*args));
        struct ctl c = { 0 };
        struct error e = { 0 };
        size_t n_opts = 0;
        int n_args = 0, code;

        opts = merged_opts(cmd, &n_opts);
        if (!args || !opts) {
                error_set(&e, -ENOMEM, "no memory");
                return ctl_fail(&e);
        }
        if (opt_parse(opts, n_opts, argc, argv, args, &n_args, &e) < 0)
                return ctl_usage(&e);
        if (given.help) {
                command_print_help(cmd);
                return EXIT_DONE;
        }
        if (n_args < cmd->min_args || (cmd->max_args >= 0 && n_args > cmd->max_args)) {
                error_set(&e, -EINVAL, "found %d argument%s, expected: fp8ctl %s%s%s", n_args, n_args == 1 ? "" : "s", cmd->words,
                          *cmd->args ? " " : "", cmd->args);
                return ctl_usage(&e);
        }
        if (finish_globals(cmd, &c, &e) < 0) {
                free(c.home);
                return ctl_usage(&e);
        }
        code = cmd->run(&c, n_args, args);
        client_done();
        free(c.home);
        if (fflush(stdout) != 0 || ferror(stdout)) {
                error_set(&e, -EIO, "could not write the result to standard output");
                return ctl_fail(&e);
        }
        return code;
}

int ctl_main(int argc, char **argv) {
        int at[WORDS_MAX] = { 0 }, n, took = 0;
        char *words[WORDS_MAX] = { NULL };
        const struct command *cmd;
        _cleanup_free_ char **rest = calloc((size_t)argc + 1, sizeof(*rest));
        int n_rest = 0;

        if (!rest)
                return EXIT_FAILED;
        n = find_words(argc, argv, at);
        for (int i = 0; i < n; i++)
                words[i] = argv[at[i]];
        if (n == 0) {
                bool asked = false;

                for (int i = 1; i < argc; i++) {
                        if (strcmp(argv[i], "--version") == 0) {
                                printf("fp8ctl %s\n", FP8CTL_VERSION);
                                return EXIT_DONE;
                        }
                        asked |= strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0;
                }
                if (!asked) {
                        fprintf(stderr, "fp8ctl: found no command; `fp8ctl help` lists them\n");
                        return EXIT_USAGE;
                }
                commands_print_help();
                return EXIT_DONE;
        }
        cmd = command_find(n, words, &took);
        if (!cmd)
                return unknown(n, words);
        for (int i = 0; i < argc; i++)
                if (i == 0 || (i != at[0] && (took < 2 || i != at[1])))
                        rest[n_rest++] = argv[i];
        return run_command(cmd, n_rest, rest);
}

int ctl_exit_code(int code) {
        switch (code) {
        case 0:
                return EXIT_DONE;
        case -EINVAL:
                return EXIT_USAGE;
        case -ENOENT:
                return EXIT_NOT_FOUND;
        case -EACCES:
        case -EPERM:
                return EXIT_DENIED;
        case -ECONNREFUSED:
                return EXIT_UNREACHABLE;
        case -ETIMEDOUT:
                return EXIT_TIMED_OUT;
        case -ECANCELED:
                return EXIT_CANCELLED;
        default:
                return EXIT_FAILED;
        }
}

int ctl_fail(const struct error *e) {
        fflush(stdout);
        fprintf(stderr, "fp8ctl: %s\n", e->text);
        return ctl_exit_code(e->code);
}

int ctl_usage(const struct error *e) {
        fflush(stdout);
        fprintf(stderr, "fp8ctl: %s\n", e->text);
        return EXIT_USAGE;
}

int parse_job_id(const char *s, uint64_t *ret, struct error *e) {
        int64_t v;

        if (text_parse_i64(s, &v) < 0 || v < 1)
                return error_set(e, -EINVAL, "job: found '%s', expected a number from 1 up, as `fp8ctl list` shows it", s);
        *ret = (uint64_t)v;
        return 0;
}
