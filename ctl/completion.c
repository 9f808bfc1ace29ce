/* SPDX-License-Identifier: Apache-2.0 */
/* Completion scripts, written from the table of commands: nothing to keep in step by hand. Job numbers and node names are asked of the controller. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ctl/handlers.h"

/* The words that may follow `prefix` ("" or "node"), each once. */
static void print_next_words(const char *prefix) {
        size_t plen = strlen(prefix);
        char last[64] = "";

        for (size_t i = 0; i < n_commands; i++) {
                const char *w = commands[i].words;
                char word[64];

                if (commands[i].hidden)
                        continue;
                if (plen && (strncmp(w, prefix, plen) != 0 || w[plen] != ' '))
                        continue;
                w += plen ? plen + 1 : 0;
                snprintf(word, sizeof(word), "%.*s", (int)strcspn(w, " "), w);
                if (strcmp(word, last) != 0)
                        printf("%s%s", last[0] ? " " : "", word);
                snprintf(last, sizeof(last), "%s", word);
        }
}

static void print_opts(const struct opt *table) {
        for (const struct opt *o = table; o && o->name; o++)
                printf(" --%s", o->name);
}

/* What an option's value is completed with, as a case of the shell script. */
static void print_bash_values(const struct opt *table) {
        for (const struct opt *o = table; o && o->name; o++) {
                bool file = o->value && (strcmp(o->value, "FILE") == 0 || strcmp(o->value, "PREFIX") == 0);
                bool dir = o->value && (strcmp(o->value, "DIR") == 0 || strcmp(o->value, "CKPT") == 0);

                if (o->type == OPT_FLAG)
                        continue;
                printf("    --%s", o->name);
                if (o->letter)
                        printf("|-%c", o->letter);
                printf(") ");
                if (o->type == OPT_CHOICE) {
                        printf("COMPREPLY=($(compgen -W '");
                        for (const char *const *c = o->choices; *c; c++)
                                printf("%s%s", c == o->choices ? "" : " ", *c);
                        printf("' -- \"$cur\")); return ;;\n");
                } else if (o->type == OPT_STRING && o->value && strcmp(o->name, "node") == 0)
                        printf("COMPREPLY=($(compgen -W \"$(\"${COMP_WORDS[0]}\" node list -o name 2>/dev/null)\" -- \"$cur\")); return ;;\n");
                else
                        printf("%sreturn ;;\n", file ? "COMPREPLY=($(compgen -f -- \"$cur\")); " : dir ? "COMPREPLY=($(compgen -d -- \"$cur\")); " : "");
        }
}

/* Options of one name mean the same in every command, so one list of them will do; the first wins. */
static void print_all_bash_values(void) {
        for (size_t i = 0; i < n_commands; i++)
                if (!commands[i].hidden)
                        print_bash_values(commands[i].opts);
        print_bash_values(global_opts);
}

static void print_bash_arguments(const struct command *cmd) {
        if (strstr(cmd->args, "CKPT") || strstr(cmd->args, "DIR"))
                printf("COMPREPLY=($(compgen -d -- \"$cur\") $(compgen -W \"$(\"${COMP_WORDS[0]}\" list --all -o name 2>/dev/null)\" -- \"$cur\"))");
        else if (strstr(cmd->args, "JOB"))
                printf("COMPREPLY=($(compgen -W \"$(\"${COMP_WORDS[0]}\" list --all -o name 2>/dev/null)\" -- \"$cur\"))");
        else if (strstr(cmd->args, "NODE"))
                printf("COMPREPLY=($(compgen -W \"$(\"${COMP_WORDS[0]}\" node list -o name 2>/dev/null)\" -- \"$cur\"))");
        else if (strstr(cmd->args, "ROLLOUT"))
                printf("COMPREPLY=($(compgen -W \"$(\"${COMP_WORDS[0]}\" rollout list -o name 2>/dev/null)\" -- \"$cur\"))");
        else if (strstr(cmd->args, "FILE"))
                printf("COMPREPLY=($(compgen -f -- \"$cur\"))");
        else if (strcmp(cmd->args, "SHELL") == 0)
                printf("COMPREPLY=($(compgen -W 'bash zsh' -- \"$cur\"))");
        else
                printf(":");
}

static void print_groups(void) {
        char last[64] = "";

        for (size_t i = 0; i < n_commands; i++) {
                const char *w = commands[i].words;
                char word[64];

                if (commands[i].hidden || !strchr(w, ' '))
                        continue;
                snprintf(word, sizeof(word), "%.*s", (int)strcspn(w, " "), w);
                if (strcmp(word, last) == 0)
                        continue;
                snprintf(last, sizeof(last), "%s", word);
                printf("    '%s') COMPREPLY=($(compgen -W '", word);
                print_next_words(word);
                printf("' -- \"$cur\")) ;;\n");
        }
}

/* `help` is followed by a command's words. */
static void print_help_words(void) {
        char last[64] = "";

        printf("    help) COMPREPLY=($(compgen -W '");
        print_next_words("");
        printf("' -- \"$cur\")) ;;\n");
        for (size_t i = 0; i < n_commands; i++) {
                char word[64];

                if (commands[i].hidden || !strchr(commands[i].words, ' '))
                        continue;
                snprintf(word, sizeof(word), "%.*s", (int)strcspn(commands[i].words, " "), commands[i].words);
                if (strcmp(word, last) == 0)
                        continue;
                snprintf(last, sizeof(last), "%s", word);
                printf("    'help %s') COMPREPLY=($(compgen -W '", word);
                print_next_words(word);
                printf("' -- \"$cur\")) ;;\n");
        }
}

static void print_function(void) {
        printf("_fp8ctl() {\n"
               "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words='' w skip=''\n"
               "  COMPREPLY=()\n"
               "  case \"$prev\" in\n");
        print_all_bash_values();
        printf("  esac\n"
               "  for w in \"${COMP_WORDS[@]:1:$((COMP_CWORD-1))}\"; do\n"
               "    if [ -n \"$skip\" ]; then skip=''; continue; fi\n"
               "    case \"$w\" in\n      ");
        for (const struct opt *o = global_opts; o->name; o++)
                if (o->type != OPT_FLAG) {
                        printf("%s--%s", o == global_opts ? "" : "|", o->name);
                        if (o->letter)
                                printf("|-%c", o->letter);
                }
        printf(") skip=1 ;;\n"
               "      -*) ;;\n"
               "      *) words=\"${words:+$words }$w\" ;;\n"
               "    esac\n"
               "  done\n"
               "  case \"$words\" in\n"
               "    '') COMPREPLY=($(compgen -W '");
        print_next_words("");
        printf("' -- \"$cur\")) ;;\n");
        for (size_t i = 0; i < n_commands; i++) {
                if (commands[i].hidden || strcmp(commands[i].words, "help") == 0)
                        continue;
                printf("    '%s'|'%s '*)\n      if [[ $cur == -* ]]; then COMPREPLY=($(compgen -W '", commands[i].words, commands[i].words);
                print_opts(commands[i].opts);
                print_opts(global_opts);
                printf("' -- \"$cur\"))\n      else ");
                print_bash_arguments(&commands[i]);
                printf("; fi ;;\n");
        }
        print_help_words();
        print_groups();
        printf("  esac\n}\n");
}

int completion_run(struct ctl *c, int n, char **args) {
        struct error e;

        if (strcmp(args[0], "bash") == 0) {
                printf("# bash completion for fp8ctl; written by `fp8ctl completion bash`\n");
                print_function();
                printf("complete -F _fp8ctl fp8ctl\n");
                return EXIT_DONE;
        }
        if (strcmp(args[0], "zsh") == 0) {
                /* zsh runs bash functions of this kind as they are (zshcompsys(1), bashcompinit). */
                printf("#compdef fp8ctl\n# zsh completion for fp8ctl; written by `fp8ctl completion zsh`\n"
                       "autoload -U +X bashcompinit && bashcompinit\n");
                print_function();
                printf("complete -F _fp8ctl fp8ctl\n");
                /* Loaded from fpath by the first TAB: this file was the function that was to complete. */
                printf("if [ \"${funcstack[1]}\" = _fp8ctl ]; then _bash_complete -F _fp8ctl; fi\n");
                return EXIT_DONE;
        }
        error_set(&e, -EINVAL, "completion: found '%s', expected bash or zsh", args[0]);
        return ctl_usage(&e);
}
