/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/yaml_tree.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "base/cleanup.h"

struct builder {
        yaml_parser_t parser;
        const char *file;
        size_t nodes;
        struct error *e;
};

struct yaml_node *yaml_tree_free(struct yaml_node *n) {
        if (!n)
                return NULL;
        for (size_t i = 0; i < n->n_items; i++)
                yaml_tree_free(n->items[i]);
        free(n->items);
        free(n->text);
        free(n);
        return NULL;
}

DEFINE_CLEANUP(struct yaml_node *, yaml_tree_free);

static int next_event(struct builder *b, yaml_event_t *ret) {
        const yaml_parser_t *p = &b->parser;

        if (yaml_parser_parse(&b->parser, ret))
                return 0;
        if (p->error == YAML_MEMORY_ERROR)
                return error_set(b->e, -ENOMEM, "no memory");
        if (p->error == YAML_READER_ERROR)
                return error_set(b->e, -EINVAL, "%s:%zu: found a byte that cannot be in a settings file (%s), expected UTF-8 text", b->file,
                                 p->mark.line + 1, p->problem ? p->problem : "unreadable");
        return error_set(b->e, -EINVAL, "%s:%zu: found text that is not YAML: %s%s%s", b->file, p->problem_mark.line + 1,
                         p->problem ? p->problem : "syntax error", p->context ? " " : "", p->context ? p->context : "");
}

static int line_of(const yaml_event_t *ev) {
        return (int)ev->start_mark.line + 1;
}

static int refuse(struct builder *b, const yaml_event_t *ev, const char *found, const char *allowed) {
        return error_set(b->e, -EINVAL, "%s:%d: found %s, allowed: %s", b->file, line_of(ev), found, allowed);
}

static int node_new(struct builder *b, const yaml_event_t *ev, enum yaml_kind kind, struct yaml_node **ret) {
        struct yaml_node *n;

        if (b->nodes++ >= YAML_TREE_NODES_MAX)
                return refuse(b, ev, "a file with too many entries", "at most 65536");
        n = calloc(1, sizeof(*n));
        if (!n)
                return error_set(b->e, -ENOMEM, "no memory");
        n->kind = kind;
        n->line = line_of(ev);
        *ret = n;
        return 0;
}

/* Takes the child in every case. */
static int append(struct builder *b, struct yaml_node *parent, struct yaml_node *child) {
        size_t count = parent->n_items;

        if ((count & (count - 1)) == 0) { /* full at each power of two */
                struct yaml_node **p = realloc(parent->items, (count ? 2 * count : 1) * sizeof(*p));

                if (!p) {
                        yaml_tree_free(child);
                        return error_set(b->e, -ENOMEM, "no memory");
                }
                parent->items = p;
        }
        parent->items[parent->n_items++] = child;
        return 0;
}

static int build(struct builder *b, const yaml_event_t *ev, int depth, struct yaml_node **ret);

static int build_scalar(struct builder *b, const yaml_event_t *ev, struct yaml_node **ret) {
        _cleanup_(yaml_tree_freep) struct yaml_node *n = NULL;
        const char *text = (const char *)ev->data.scalar.value;
        int r;

        if (ev->data.scalar.anchor || ev->data.scalar.tag)
                return refuse(b, ev, "an anchor or a tag", "plain values");
        if (strlen(text) != ev->data.scalar.length)
                return refuse(b, ev, "a value with a NUL character in it", "text");
        r = node_new(b, ev, YAML_TREE_SCALAR, &n);
        if (r < 0)
                return r;
        n->plain = ev->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
        n->text = strdup(text);
        if (!n->text)
                return error_set(b->e, -ENOMEM, "no memory");
        *ret = STEAL_PTR(n);
        return 0;
}

static int build_child(struct builder *b, struct yaml_node *n, const yaml_event_t *ev, int depth) {
        struct yaml_node *child = NULL;
        bool is_key = n->kind == YAML_TREE_MAP && n->n_items % 2 == 0;
        int r;

        if (is_key && (ev->type == YAML_MAPPING_START_EVENT || ev->type == YAML_SEQUENCE_START_EVENT))
                return refuse(b, ev, "a list or a map as a key", "a name");
        r = build(b, ev, depth + 1, &child);
        return r < 0 ? r : append(b, n, child);
}

/* Children up to the end event; a map's come as key, value, key, value. */
static int build_children(struct builder *b, struct yaml_node *n, yaml_event_type_t end, int depth) {
        for (;;) {
                yaml_event_t ev;
                bool done;
                int r = next_event(b, &ev);

                if (r < 0)
                        return r;
                done = ev.type == end;
                if (!done)
                        r = build_child(b, n, &ev, depth);
                yaml_event_delete(&ev);
                if (r < 0)
                        return r;
                if (done)
                        break;
        }
        n->n = n->kind == YAML_TREE_MAP ? n->n_items / 2 : n->n_items;
        return 0;
}

static int build(struct builder *b, const yaml_event_t *ev, int depth, struct yaml_node **ret) {
        _cleanup_(yaml_tree_freep) struct yaml_node *n = NULL;
        bool map = ev->type == YAML_MAPPING_START_EVENT;
        int r;

        if (ev->type == YAML_ALIAS_EVENT)
                return refuse(b, ev, "an alias (*name)", "plain values");
        if (ev->type == YAML_SCALAR_EVENT)
                return build_scalar(b, ev, ret);
        if (!map && ev->type != YAML_SEQUENCE_START_EVENT)
                return refuse(b, ev, "an unexpected end", "a value");
        if (map ? ev->data.mapping_start.anchor || ev->data.mapping_start.tag : ev->data.sequence_start.anchor || ev->data.sequence_start.tag)
                return refuse(b, ev, "an anchor or a tag", "plain values");
        if (depth >= YAML_TREE_DEPTH_MAX)
                return refuse(b, ev, "too deep a nesting", "at most 12 levels");
        r = node_new(b, ev, map ? YAML_TREE_MAP : YAML_TREE_LIST, &n);
        if (r < 0)
                return r;
        r = build_children(b, n, map ? YAML_MAPPING_END_EVENT : YAML_SEQUENCE_END_EVENT, depth);
        if (r < 0)
                return r;
        *ret = STEAL_PTR(n);
        return 0;
}

static int parse_document(struct builder *b, struct yaml_node **ret) {
        _cleanup_(yaml_tree_freep) struct yaml_node *root = NULL;

        for (;;) {
                yaml_event_t ev;
                bool end;
                int r = next_event(b, &ev);

                if (r < 0)
                        return r;
                end = ev.type == YAML_STREAM_END_EVENT;
                if (ev.type == YAML_DOCUMENT_START_EVENT && root)
                        r = refuse(b, &ev, "a second document (---)", "one");
                else if (ev.type == YAML_SCALAR_EVENT || ev.type == YAML_ALIAS_EVENT || ev.type == YAML_SEQUENCE_START_EVENT ||
                         ev.type == YAML_MAPPING_START_EVENT)
                        r = build(b, &ev, 0, &root);
                yaml_event_delete(&ev);
                if (r < 0)
                        return r;
                if (end)
                        break;
        }
        if (!root)
                return error_set(b->e, -EINVAL, "%s:1: found an empty file, allowed: keys and values", b->file);
        *ret = STEAL_PTR(root);
        return 0;
}

int yaml_tree_parse(const char *text, size_t len, const char *file_name, struct yaml_node **ret, struct error *e) {
        struct builder b = { .file = file_name, .e = e };
        int r;

        if (!yaml_parser_initialize(&b.parser))
                return error_set(e, -ENOMEM, "no memory");
        yaml_parser_set_encoding(&b.parser, YAML_UTF8_ENCODING);
        yaml_parser_set_input_string(&b.parser, (const unsigned char *)text, len);
        r = parse_document(&b, ret);
        yaml_parser_delete(&b.parser);
        return r;
}

void yaml_node_describe(const struct yaml_node *n, char *buf, size_t size) {
        if (n->kind == YAML_TREE_LIST)
                snprintf(buf, size, "a list");
        else if (n->kind == YAML_TREE_MAP)
                snprintf(buf, size, "a map");
        else if (n->plain && !*n->text)
                snprintf(buf, size, "nothing");
        else
                snprintf(buf, size, strlen(n->text) > 80 ? "'%.77s...'" : "'%.80s'", n->text);
}
