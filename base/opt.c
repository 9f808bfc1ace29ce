/* SPDX-License-Identifier: Apache-2.0 */
#include "base/opt.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/text.h"

#define HELP_COLUMN 30

struct parser {
        const struct opt *table;
        size_t n;
        int argc, at; /* at: the argument looked at */
        char **argv;
        struct error *e;
};

static const struct opt *find_name(const struct parser *p, const char *name, size_t len) {
        for (size_t i = 0; i < p->n; i++)
                if (strlen(p->table[i].name) == len && memcmp(p->table[i].name, name, len) == 0)
                        return &p->table[i];
        return NULL;
}

static const struct opt *find_letter(const struct parser *p, char letter) {
        for (size_t i = 0; i < p->n; i++)
                if (p->table[i].letter && p->table[i].letter == letter)
                        return &p->table[i];
        return NULL;
}

static int unknown(const struct parser *p, const char *name, size_t len) {
        _cleanup_free_ const char **names = calloc(p->n + 1, sizeof(*names));
        _cleanup_free_ char *word = strndup(name, len);
        const char *near;

        if (!names || !word)
                return error_set(p->e, -ENOMEM, "no memory");
        for (size_t i = 0; i < p->n; i++)
                names[i] = p->table[i].name;
        near = text_suggest(word, names);
        if (near)
                return error_set(p->e, -EINVAL, "unknown option --%s; did you mean --%s?", word, near);
        return error_set(p->e, -EINVAL, "unknown option --%s", word);
}

static int bad_value(const struct parser *p, const struct opt *o, const char *found, const char *what) {
        if (o->min || o->max)
                return error_set(p->e, -EINVAL, "--%s: found '%s', expected %s from %" PRId64 " to %" PRId64 "%s", o->name, found, what, o->min,
                                 o->max, o->type == OPT_DURATION_MS ? " ms" : "");
        return error_set(p->e, -EINVAL, "--%s: found '%s', expected %s", o->name, found, what);
}

static int set_integer(const struct parser *p, const struct opt *o, const char *value) {
        const char *what = o->type == OPT_INT ? "an integer" : "a duration (250ms, 10s, 2m, 1h)";
        int64_t v;
        int r = o->type == OPT_INT ? text_parse_i64(value, &v) : text_parse_duration_ms(value, &v);

        if (r < 0 || ((o->min || o->max) && (v < o->min || v > o->max)))
                return bad_value(p, o, value, what);
        *(int64_t *)o->target = v;
        return 0;
}

static int set_choice(const struct parser *p, const struct opt *o, const char *value) {
        char list[256] = "";
        size_t len = 0;

        for (const char *const *c = o->choices; *c; c++)
                if (strcmp(*c, value) == 0) {
                        *(const char **)o->target = *c;
                        return 0;
                }
        for (const char *const *c = o->choices; *c && len < sizeof(list); c++)
                len += (size_t)snprintf(list + len, sizeof(list) - len, "%s%s", len ? ", " : "one of ", *c);
        return bad_value(p, o, value, list);
}

static int add_to_list(const struct parser *p, const struct opt *o, const char *value) {
        struct opt_list *list = o->target;

        if (list->n == OPT_LIST_MAX)
                return error_set(p->e, -EINVAL, "--%s: found more than %d of them", o->name, OPT_LIST_MAX);
        list->values[list->n++] = value;
        return 0;
}

static int set_value(const struct parser *p, const struct opt *o, const char *value) {
        switch (o->type) {
        case OPT_STRING:
                *(const char **)o->target = value;
                return 0;
        case OPT_INT:
        case OPT_DURATION_MS:
                return set_integer(p, o, value);
        case OPT_DOUBLE:
                if (text_parse_double(value, o->target) < 0)
                        return bad_value(p, o, value, "a number");
                return 0;
        case OPT_CHOICE:
                return set_choice(p, o, value);
        case OPT_LIST:
                return add_to_list(p, o, value);
        case OPT_FLAG:
                break;
        }
        return error_set(p->e, -EINVAL, "--%s: found '%s', expected no value", o->name, value);
}

static int take_next(struct parser *p, const struct opt *o) {
        if (p->at + 1 >= p->argc)
                return error_set(p->e, -EINVAL, "--%s: found nothing, expected %s", o->name, o->value ? o->value : "a value");
        return set_value(p, o, p->argv[++p->at]);
}

static int parse_long(struct parser *p, const char *arg) {
        size_t len = strcspn(arg, "=");
        const struct opt *o = find_name(p, arg, len);

        if (!o && strncmp(arg, "no-", 3) == 0 && arg[len] == 0) {
                o = find_name(p, arg + 3, len - 3);
                if (o && o->type == OPT_FLAG) {
                        *(bool *)o->target = false;
                        return 0;
                }
                o = NULL;
        }
        if (!o)
                return unknown(p, arg, len);
        if (arg[len] == '=')
                return set_value(p, o, arg + len + 1);
        if (o->type == OPT_FLAG) {
                *(bool *)o->target = true;
                return 0;
        }
        return take_next(p, o);
}

/* -f, -fo json, -ojson */
static int parse_letters(struct parser *p, const char *arg) {
        for (; *arg; arg++) {
                const struct opt *o = find_letter(p, *arg);

                if (!o)
                        return error_set(p->e, -EINVAL, "unknown option -%c", *arg);
                if (o->type != OPT_FLAG)
                        return arg[1] ? set_value(p, o, arg + 1) : take_next(p, o);
                *(bool *)o->target = true;
        }
        return 0;
}

int opt_parse(const struct opt *table, size_t n, int argc, char **argv, char **ret_args, int *ret_n_args, struct error *e) {
        struct parser p = { .table = table, .n = n, .argc = argc, .at = 1, .argv = argv, .e = e };
        bool ended = false;
        int n_args = 0;

        for (; p.at < argc; p.at++) {
                char *arg = argv[p.at];
                int r = 0;

                if (ended || arg[0] != '-' || arg[1] == 0)
                        ret_args[n_args++] = arg;
                else if (strcmp(arg, "--") == 0)
                        ended = true;
                else if (arg[1] == '-')
                        r = parse_long(&p, arg + 2);
                else
                        r = parse_letters(&p, arg + 1);
                if (r < 0)
                        return r;
        }
        *ret_n_args = n_args;
        return 0;
}

void opt_print_help(const struct opt *table, size_t n) {
        for (size_t i = 0; i < n; i++) {
                const struct opt *o = &table[i];
                char head[128];
                int len;

                len = snprintf(head, sizeof(head), o->letter ? "  -%c, --%s" : "   %c  --%s", o->letter ? o->letter : ' ', o->name);
                if (o->type != OPT_FLAG && len > 0 && (size_t)len < sizeof(head))
                        len += snprintf(head + len, sizeof(head) - (size_t)len, " %s", o->value ? o->value : "VALUE");
                if (len < HELP_COLUMN)
                        printf("%-*s", HELP_COLUMN, head);
                else
                        printf("%s\n%*s", head, HELP_COLUMN, "");
                printf("%s", o->help ? o->help : "");
                if (o->type == OPT_CHOICE)
                        for (const char *const *c = o->choices; *c; c++)
                                printf("%s%s%s", c == o->choices ? " (" : ", ", *c, c[1] ? "" : ")");
                printf("\n");
        }
}
