/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/job_set.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "base/cleanup.h"

#define KEY_MAX_LEN 128
#define DEPTH_MAX 8

struct place {
        yaml_document_t doc;
        bool loaded;
        const char *text;
};

static int load(struct place *p, const char *file_name, struct error *e) {
        yaml_parser_t parser;
        int r = 0;

        if (!yaml_parser_initialize(&parser))
                return error_set(e, -ENOMEM, "no memory");
        yaml_parser_set_input_string(&parser, (const unsigned char *)p->text, strlen(p->text));
        if (!yaml_parser_load(&parser, &p->doc))
                r = error_set(e, -EINVAL, "%s:%zu: not YAML: %s", file_name, parser.problem_mark.line + 1, parser.problem ? parser.problem : "cannot be read");
        else
                p->loaded = true;
        yaml_parser_delete(&parser);
        return r;
}

/* The pair of a mapping whose key is name[0..len), or NULL. */
static yaml_node_pair_t *find_pair(struct place *p, yaml_node_t *map, const char *name, size_t len) {
        for (yaml_node_pair_t *pair = map->data.mapping.pairs.start; pair < map->data.mapping.pairs.top; pair++) {
                yaml_node_t *key = yaml_document_get_node(&p->doc, pair->key);

                if (key && key->type == YAML_SCALAR_NODE && key->data.scalar.length == len && memcmp(key->data.scalar.value, name, len) == 0)
                        return pair;
        }
        return NULL;
}

/* libyaml counts characters, we cut bytes. */
static size_t byte_of(const char *text, size_t character) {
        size_t i = strncmp(text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0; /* it skips a byte order mark without counting it */

        for (size_t n = 0; text[i] && n < character; n++)
                do
                        i++;
                while (((unsigned char)text[i] & 0xc0) == 0x80);
        return i;
}

/* Must a plain scalar be quoted? Flow collections and quoted values are taken as they are. */
static bool needs_quotes(const char *v) {
        size_t len = strlen(v);

        if (len > 1 && strchr("[{'\"", v[0]) && strchr("]}'\"", v[len - 1]))
                return false;
        if (len == 0 || strchr("&*!|>%@`#,", v[0]) || strstr(v, ": ") || strstr(v, " #") || v[0] == ' ' || v[len - 1] == ' ' || v[len - 1] == ':')
                return true;
        return (v[0] == '-' || v[0] == '?' || v[0] == ':') && (len == 1 || v[1] == ' ');
}

static char *value_text(const char *v) {
        char *out, *p;

        if (!needs_quotes(v))
                return strdup(v);
        out = p = calloc(2, strlen(v) + 2);
        if (!out)
                return NULL;
        *p++ = '\'';
        for (; *v; v++) {
                if (*v == '\'')
                        *p++ = '\'';
                *p++ = *v;
        }
        *p++ = '\'';
        *p = 0;
        return out;
}

static char *splice(const char *text, size_t from, size_t to, const char *insert) {
        char *out = NULL;

        if (asprintf(&out, "%.*s%s%s", (int)from, text, insert, text + to) < 0)
                return NULL;
        return out;
}

/* rest: the part of the key below `map` ("train.steps" or "steps"): puts it in front of the mapping's first pair. */
static char *add_pair(struct place *p, yaml_node_t *map, const char *rest, const char *value) {
        _cleanup_free_ char *line = NULL;
        const char *close;
        char parts[KEY_MAX_LEN * 2] = "", closing[DEPTH_MAX + 1] = "";
        size_t at, n = 0;
        bool empty = map->data.mapping.pairs.start == map->data.mapping.pairs.top;
        bool flow = map->data.mapping.style == YAML_FLOW_MAPPING_STYLE || empty;

        /* Deeper levels go in as flow mappings: train: {steps: 50}. */
        for (; (close = strchr(rest, '.')) && n < DEPTH_MAX; rest = close + 1, n++) {
                size_t len = strlen(parts);

                snprintf(parts + len, sizeof(parts) - len, "%.*s: {", (int)(close - rest), rest);
                closing[n] = '}';
        }
        if (flow) {
                at = byte_of(p->text, map->start_mark.index);
                if (p->text[at] != '{') /* an empty document */
                        return NULL;
                if (asprintf(&line, "%s%s: %s%s%s", parts, rest, value, closing, empty ? "" : ", ") < 0)
                        return NULL;
                return splice(p->text, at + 1, at + 1, line);
        }
        yaml_node_t *first = yaml_document_get_node(&p->doc, map->data.mapping.pairs.start->key);

        at = byte_of(p->text, first->start_mark.index);
        if (asprintf(&line, "%s%s: %s%s\n%*s", parts, rest, value, closing, (int)first->start_mark.column, "") < 0)
                return NULL;
        return splice(p->text, at, at, line);
}

static char *replace_value(struct place *p, const yaml_node_t *old, const char *value) {
        size_t from = byte_of(p->text, old->start_mark.index), to = byte_of(p->text, old->end_mark.index);
        _cleanup_free_ char *spaced = NULL;

        /* The mark of a block collection or block scalar runs on to the next key; what is behind the last visible character stays. */
        while (to > from && strchr(" \t\r\n", p->text[to - 1]))
                to--;
        if (asprintf(&spaced, "%s%s", from > 0 && p->text[from - 1] == ':' ? " " : "", value) < 0)
                return NULL;
        return splice(p->text, from, to, spaced);
}

static int set_key(struct place *p, const char *key, const char *value, const char *file_name, char **ret, struct error *e) {
        yaml_node_t *node = yaml_document_get_root_node(&p->doc);
        const char *rest = key;
        char *out = NULL;

        for (;;) {
                size_t len = strcspn(rest, ".");
                yaml_node_pair_t *pair;

                if (!node || node->type != YAML_MAPPING_NODE)
                        return error_set(e, -EINVAL, "--set %s: '%.*s' of %s holds no keys", key, rest > key ? (int)(rest - key - 1) : 3, rest > key ? key : "top",
                                         file_name);
                pair = find_pair(p, node, rest, len);
                if (!pair) {
                        out = add_pair(p, node, rest, value);
                        break;
                }
                node = yaml_document_get_node(&p->doc, pair->value);
                if (!rest[len]) {
                        out = replace_value(p, node, value);
                        break;
                }
                rest += len + 1;
        }
        if (!out)
                return error_set(e, -ENOMEM, "--set %s: no memory", key);
        *ret = out;
        return 0;
}

static bool key_ok(const char *key) {
        size_t len = strlen(key);

        return len > 0 && len < KEY_MAX_LEN && key[0] != '.' && key[len - 1] != '.' && !strstr(key, "..") &&
               strspn(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.") == len;
}

int job_set(const char *text, const char *file_name, const char *assignment, char **ret_text, struct error *e) {
        const char *eq = strchr(assignment, '=');
        _cleanup_free_ char *key = eq ? strndup(assignment, (size_t)(eq - assignment)) : NULL, *value = eq ? value_text(eq + 1) : NULL;
        struct place p = { .text = text };
        int r;

        if (!eq || !key || !key_ok(key))
                return error_set(e, -EINVAL, "--set: found '%s', expected KEY=VALUE with a key such as train.steps", assignment);
        if (!value)
                return error_set(e, -ENOMEM, "no memory");
        for (const char *c = value; *c; c++)
                if ((unsigned char)*c < 0x20)
                        return error_set(e, -EINVAL, "--set %s: found a control character in the value", key);
        r = load(&p, file_name, e);
        if (r >= 0)
                r = set_key(&p, key, value, file_name, ret_text, e);
        if (p.loaded)
                yaml_document_delete(&p.doc);
        return r;
}
