/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A YAML document as a small tree that remembers lines.  Only what a settings file needs: one document of maps, lists and scalars; no anchors, aliases or tags, so
 * that a tree is never larger than its text.  Nesting and number of nodes are bounded.  JSON is accepted as the YAML that it is.
 */
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

#define YAML_TREE_DEPTH_MAX 12
#define YAML_TREE_NODES_MAX 65536

enum yaml_kind { YAML_TREE_SCALAR, YAML_TREE_LIST, YAML_TREE_MAP };

struct yaml_node {
        enum yaml_kind kind;
        int line;    /* from 1 */
        bool plain;  /* scalar without quotes: may be a number or a boolean */
        char *text;  /* scalar */
        struct yaml_node **items; /* list: n items; map: n keys (scalars) and values in turn */
        size_t n, n_items;        /* n_items: entries of items; 2n in a map */
};

/* file_name: for messages, "FILE:LINE: ...". An empty document is -EINVAL. */
int yaml_tree_parse(const char *text, size_t len, const char *file_name, struct yaml_node **ret, struct error *e);
struct yaml_node *yaml_tree_free(struct yaml_node *n);
static inline const struct yaml_node *yaml_map_key(const struct yaml_node *map, size_t i) {
        return map->items[2 * i];
}
static inline const struct yaml_node *yaml_map_value(const struct yaml_node *map, size_t i) {
        return map->items[2 * i + 1];
}
/* "'text'", "a list", "a map", for messages; at most size bytes. */
void yaml_node_describe(const struct yaml_node *n, char *buf, size_t size);
