/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ctl/handlers.h"
#include "ctl/print.h"
#include "version.h"

static const char exit_codes[] = "Exit codes: 0 done, 1 job failed or request refused, 2 usage, 3 not found, 4 denied, 5 unreachable, 6 timed out, 7 cancelled.\n";

void commands_print_help(void) {
        printf("usage: fp8ctl COMMAND [OPTIONS] [ARGUMENTS]\n\nfp8ctl trains language models in FP8 on a cluster and keeps training through failures.\n\nCommands:\n");
        for (size_t i = 0; i < n_commands; i++)
                if (!commands[i].hidden) {
                        char head[64];

                        snprintf(head, sizeof(head), "%s %s", commands[i].words, commands[i].args);
                        printf("  %-24s %s\n", head, commands[i].help);
                }
        printf("\nOptions of all commands:\n");
        opt_print_help(global_opts, opts_count(global_opts));
        printf("\n`fp8ctl help COMMAND` tells a command's own options. %s", exit_codes);
}

void command_print_help(const struct command *cmd) {
        printf("usage: fp8ctl %s%s%s%s\n\n%s\n", cmd->words, opts_count(cmd->opts) ? " [OPTIONS]" : "", *cmd->args ? " " : "", cmd->args, cmd->help);
        if (cmd->more)
                printf("\n%s\n", cmd->more);
        if (opts_count(cmd->opts)) {
                printf("\nOptions:\n");
                opt_print_help(cmd->opts, opts_count(cmd->opts));
        }
        printf("\nOptions of all commands:\n");
        opt_print_help(global_opts, opts_count(global_opts));
        if (cmd->formats != FORMATS_TEXT) {
                printf("\nForms of the result (-o):");
                for (int f = FORMAT_TABLE; f <= FORMAT_CSV; f++)
                        if (cmd->formats & 1u << f)
                                printf(" %s", ctl_format_name((enum ctl_format)f));
                printf("\n");
        }
}

int help_run(struct ctl *c, int n, char **args) {
        const struct command *cmd;
        struct error e;
        int took;

        if (n == 0) {
                commands_print_help();
                return EXIT_DONE;
        }
        cmd = command_find(n, args, &took);
        if (!cmd || took != n) {
                bool found = false;

                for (size_t i = 0; n == 1 && i < n_commands; i++) {
                        size_t len = strlen(args[0]);

                        if (strncmp(commands[i].words, args[0], len) == 0 && commands[i].words[len] == ' ' && !commands[i].hidden) {
                                printf("  fp8ctl %s %s\n      %s\n", commands[i].words, commands[i].args, commands[i].help);
                                found = true;
                        }
                }
                if (found)
                        return EXIT_DONE;
                error_set(&e, -EINVAL, "no command '%s%s%s'; `fp8ctl help` lists them", args[0], n > 1 ? " " : "", n > 1 ? args[1] : "");
                return ctl_usage(&e);
        }
        command_print_help(cmd);
        return EXIT_DONE;
}

int version_run(struct ctl *c, int n, char **args) {
        json_t *o = json_pack("{s:i, s:s, s:s}", "v", CTL_JSON_VERSION, "name", "fp8ctl", "version", FP8CTL_VERSION);

        if (c->format == FORMAT_TABLE)
                printf("fp8ctl %s\n", FP8CTL_VERSION);
        else
                print_object(c, o);
        json_decref(o);
        return EXIT_DONE;
}
