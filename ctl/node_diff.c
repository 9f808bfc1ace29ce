/* SPDX-License-Identifier: Apache-2.0 */
/* node diff: the facts in which nodes differ, each value with those that have it, the most usual first. */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/text.h"
#include "ctl/client.h"
#include "ctl/handlers.h"
#include "ctl/print.h"

#define NAMES_SHOWN 6

/* A value of a key, and who has it; list: indices into diff.nodes. */
struct value {
        const char *key, *text; /* text NULL: those that do not have the key */
        size_t *list, n;
};

struct diff {
        Fp8ctl__V1__ListNodesReply *reply;
        Fp8ctl__V1__Node **nodes; /* those asked for that told their facts */
        size_t n_nodes;
        struct value *values;     /* of keys that differ, by key */
        size_t n_values, n_keys;
};

struct told {
        const char *key, *value;
        size_t node;
};

static void diff_clear(struct diff *d) {
        for (size_t i = 0; i < d->n_values; i++)
                free(d->values[i].list);
        free(d->values);
        free(d->nodes);
        if (d->reply)
                protobuf_c_message_free_unpacked(&d->reply->base, NULL);
}

static int by_key(const void *a, const void *b) {
        const struct told *x = a, *y = b;
        int r = strcmp(x->key, y->key);

        if (r == 0)
                r = strcmp(x->value, y->value);
        return r ? r : x->node < y->node ? -1 : x->node > y->node;
}

static int by_number(const void *a, const void *b) {
        const struct value *x = a, *y = b;

        return x->n > y->n ? -1 : x->n < y->n ? 1 : strcmp(x->text ? x->text : "", y->text ? y->text : "");
}

static Fp8ctl__V1__Node *named(const Fp8ctl__V1__ListNodesReply *reply, const char *name) {
        for (size_t i = 0; i < reply->n_nodes; i++)
                if (strcmp(reply->nodes[i]->name, name) == 0)
                        return reply->nodes[i];
        return NULL;
}

static int choose(struct diff *d, int n, char **args, struct error *e) {
        d->n_nodes = 0;
        d->nodes = calloc(d->reply->n_nodes + (size_t)n + 1, sizeof(*d->nodes));
        if (!d->nodes)
                return error_set(e, -ENOMEM, "no memory");
        for (size_t i = 0; n == 0 && i < d->reply->n_nodes; i++)
                if (d->reply->nodes[i]->n_facts)
                        d->nodes[d->n_nodes++] = d->reply->nodes[i];
        for (int i = 0; i < n; i++) {
                Fp8ctl__V1__Node *nd = named(d->reply, args[i]);
                bool twice = false;

                if (!nd)
                        return error_set(e, -ENOENT, "node '%.128s' is not known", args[i]);
                if (nd->n_facts == 0)
                        return error_set(e, -ENODATA, "node %.128s has not told what it is made of", args[i]);
                for (size_t k = 0; k < d->n_nodes; k++)
                        twice = twice || d->nodes[k] == nd;
                if (!twice)
                        d->nodes[d->n_nodes++] = nd;
        }
        return 0;
}

static int add_value(struct diff *d, const struct told *t, size_t n) {
        struct value *v = &d->values[d->n_values];

        *v = (struct value){ .key = t[0].key, .text = t[0].value, .list = calloc(n, sizeof(*v->list)) };
        if (!v->list)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++)
                v->list[v->n++] = t[i].node;
        d->n_values++;
        return 0;
}

/* Those that do not have a key that t[0..n) have. */
static int add_others(struct diff *d, const struct told *t, size_t n) {
        struct value *v = &d->values[d->n_values];
        _cleanup_free_ bool *has = calloc(d->n_nodes, sizeof(*has));

        *v = (struct value){ .key = t[0].key, .list = calloc(d->n_nodes, sizeof(*v->list)) };
        if (!v->list || !has) {
                free(v->list);
                return -ENOMEM;
        }
        d->n_values++;
        for (size_t i = 0; i < n; i++)
                has[t[i].node] = true;
        for (size_t i = 0; i < d->n_nodes; i++)
                if (!has[i])
                        v->list[v->n++] = i;
        return 0;
}

/* t[0..n): of one key. */
static int compare_key(struct diff *d, const struct told *t, size_t n) {
        size_t first = d->n_values;
        int r = 0;

        if (n == d->n_nodes && strcmp(t[0].value, t[n - 1].value) == 0)
                return 0;
        for (size_t i = 0, end; r == 0 && i < n; i = end) {
                for (end = i + 1; end < n && strcmp(t[end].value, t[i].value) == 0;)
                        end++;
                r = add_value(d, t + i, end - i);
        }
        if (r == 0 && n < d->n_nodes)
                r = add_others(d, t, n);
        qsort(d->values + first, d->n_values - first, sizeof(*d->values), by_number);
        d->n_keys++;
        return r;
}

/* Of all nodes, what is not their own. */
static struct told *gather(const struct diff *d, size_t *ret_n) {
        struct told *t;
        size_t n = 0, k = 0;

        for (size_t i = 0; i < d->n_nodes; i++)
                n += d->nodes[i]->n_facts;
        t = calloc(n + 1, sizeof(*t));
        for (size_t i = 0; t && i < d->n_nodes; i++)
                for (size_t f = 0; f < d->nodes[i]->n_facts; f++)
                        if (!d->nodes[i]->facts[f]->own)
                                t[k++] = (struct told){ .key = d->nodes[i]->facts[f]->key, .value = d->nodes[i]->facts[f]->value, .node = i };
        *ret_n = k;
        return t;
}

static int compare(struct diff *d, struct error *e) {
        size_t k = 0;
        _cleanup_free_ struct told *t = gather(d, &k);
        int r = 0;

        d->n_values = d->n_keys = 0;
        d->values = calloc(2 * k + 1, sizeof(*d->values)); /* each its own, and those without it */
        if (!t || !d->values)
                return error_set(e, -ENOMEM, "no memory");
        qsort(t, k, sizeof(*t), by_key);
        for (size_t i = 0, end; r == 0 && i < k; i = end) {
                for (end = i + 1; end < k && strcmp(t[end].key, t[i].key) == 0;)
                        end++;
                r = compare_key(d, t + i, end - i);
        }
        return r < 0 ? error_set(e, r, "no memory") : 0;
}

/* ------------------------------------------------------------------ out */
/* The first value of its key. */
static bool begins(const struct diff *d, size_t i) {
        return i == 0 || strcmp(d->values[i].key, d->values[i - 1].key) != 0;
}

static void print_json(const struct ctl *c, const struct diff *d) {
        _cleanup_json_ json_t *o = json_object();
        json_t *nodes = json_array(), *keys = json_array(), *values = NULL;

        for (size_t i = 0; i < d->n_nodes; i++)
                json_array_append_new(nodes, json_pack("{s:s, s:s}", "name", d->nodes[i]->name, "fingerprint", d->nodes[i]->fingerprint));
        for (size_t i = 0; i < d->n_values; i++) {
                const struct value *v = &d->values[i];
                json_t *list = json_array();

                if (begins(d, i)) {
                        values = json_array();
                        json_array_append_new(keys, json_pack("{s:s, s:o}", "key", v->key, "values", values));
                }
                for (size_t k = 0; k < v->n; k++)
                        json_array_append_new(list, json_string(d->nodes[v->list[k]]->name));
                json_array_append_new(values, json_pack("{s:s?, s:o}", "value", v->text, "nodes", list));
        }
        json_object_set_new(o, "v", json_integer(CTL_JSON_VERSION));
        json_object_set_new(o, "equal", json_boolean(d->n_keys == 0));
        json_object_set_new(o, "nodes", nodes);
        json_object_set_new(o, "keys", keys);
        print_object(c, o);
}

static void print_sheet(const struct diff *d) {
        static const struct sheet_column columns[] = { { "KEY", false, false, false }, { "VALUE", false, false, false }, { "NODES", true, false, false }, { "WHICH", false, false, false } };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));

        for (size_t i = 0; i < d->n_values; i++) {
                const struct value *v = &d->values[i];
                char names[1024] = "";
                size_t len = 0;

                for (size_t k = 0; k < v->n && k < NAMES_SHOWN; k++)
                        len += (size_t)snprintf(names + len, sizeof(names) - len, "%s%.128s", k ? " " : "", d->nodes[v->list[k]]->name);
                if (v->n > NAMES_SHOWN)
                        snprintf(names + len, sizeof(names) - len, " and %zu more", v->n - NAMES_SHOWN);
                sheet_add(s, "%s", begins(d, i) ? v->key : "");
                sheet_add(s, "%s", v->text ? v->text : "-");
                sheet_add(s, "%zu", v->n);
                sheet_add(s, "%s", names);
        }
        if (d->n_values)
                sheet_print(s, false, stdout);
        if (d->n_keys)
                printf("%zu nodes differ in %zu fact%s\n", d->n_nodes, d->n_keys, text_s(d->n_keys));
        else
                printf("%zu node%s, made alike\n", d->n_nodes, text_s(d->n_nodes));
}

int node_diff_run(struct ctl *c, int n, char **args) {
        Fp8ctl__V1__ListNodesRequest rq = FP8CTL__V1__LIST_NODES_REQUEST__INIT;
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_(diff_clear) struct diff d = { 0 };
        struct error e;

        rq.facts = true;
        if (client_new(c, &cl, &e) < 0 || client_call(cl, "ListNodes", &rq.base, &fp8ctl__v1__list_nodes_reply__descriptor, CALL_TIMEOUT_MS, (ProtobufCMessage **)&d.reply, &e) < 0 ||
            choose(&d, n, args, &e) < 0 || compare(&d, &e) < 0)
                return ctl_fail(&e);
        if (c->format == FORMAT_TABLE)
                print_sheet(&d);
        else
                print_json(c, &d);
        return d.n_keys ? EXIT_FAILED : EXIT_DONE;
}
