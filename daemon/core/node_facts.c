/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What nodes are made of, as their workers tell: versions, models, settings.  The digest of what is not a node's own (a serial number is) is its fingerprint: nodes with equal ones are made alike.  What changes on a
 * node is told, and so is a node that is made otherwise than most of its kind.  Kept with the node, so that a change over a reboot or a controller's restart is seen.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/hash.h"
#include "base/text.h"
#include "daemon/core/core.h"

enum { FACTS_MAX = 1024, FACT_KEY_LEN = 64, FACT_VALUE_LEN = 128, TOLD_MAX = 3, KIND_MIN = 3 /* nodes of a kind: of two that differ nobody knows which is odd */ };

struct node_facts {
        char fingerprint[DIGEST_HEX_SIZE];
        char boot_id[64];
        Fp8ctl__V1__NodeFact *messages, **list; /* by key; their strings are in `text` */
        size_t n;
        char *text;
};

struct node_facts *node_facts_free(struct node_facts *f) {
        if (f) {
                free(f->messages);
                free(f->list);
                free(f->text);
        }
        free(f);
        return NULL;
}

static void node_facts_freep(struct node_facts **f) {
        node_facts_free(*f);
}

static int by_key(const void *a, const void *b) {
        return strcmp(((const Fp8ctl__V1__NodeFact *)a)->key, ((const Fp8ctl__V1__NodeFact *)b)->key);
}

static int make_fingerprint(struct node_facts *f) {
        struct digest_stream *s;
        int r = digest_stream_new(&s);

        for (size_t i = 0; r == 0 && i < f->n; i++) {
                const Fp8ctl__V1__NodeFact *k = f->list[i];

                if (k->own)
                        continue;
                digest_stream_add(s, k->key, strlen(k->key) + 1);
                digest_stream_add(s, k->value, strlen(k->value) + 1);
        }
        if (r < 0)
                return r;
        digest_hex(digest_stream_end(s), f->fingerprint);
        digest_stream_free(s);
        return 0;
}

/* Cleaned, by key, each once. */
static int take(Fp8ctl__V1__NodeFact *const *list, size_t n, struct node_facts **ret) {
        _cleanup_(node_facts_freep) struct node_facts *f = calloc(1, sizeof(*f));
        size_t k = 0;
        char *at;

        if (n > FACTS_MAX)
                return -E2BIG;
        if (!f)
                return -ENOMEM;
        f->messages = calloc(n + 1, sizeof(*f->messages));
        f->list = calloc(n + 1, sizeof(*f->list));
        f->text = at = malloc(n * (FACT_KEY_LEN + FACT_VALUE_LEN) + 1);
        if (!f->messages || !f->list || !f->text)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++) {
                Fp8ctl__V1__NodeFact *o = &f->messages[k];

                if (!list[i] || !list[i]->key || !list[i]->key[0])
                        continue;
                fp8ctl__v1__node_fact__init(o);
                core_text(o->key = at, FACT_KEY_LEN, list[i]->key);
                at += strlen(at) + 1;
                core_text(o->value = at, FACT_VALUE_LEN, list[i]->value);
                at += strlen(at) + 1;
                o->own = list[i]->own;
                k++;
        }
        qsort(f->messages, k, sizeof(*f->messages), by_key);
        for (size_t i = 0; i < k; i++)
                if (f->n == 0 || strcmp(f->list[f->n - 1]->key, f->messages[i].key) != 0)
                        f->list[f->n++] = &f->messages[i];
        if (make_fingerprint(f) < 0)
                return -ENOMEM;
        *ret = STEAL_PTR(f);
        return 0;
}

/* ------------------------------------------------------------------ what differs */
struct difference {
        char text[TEXT_MAX_LEN];
        size_t n;
};

/* then: of one node, before and now; else of two nodes. */
static void note(struct difference *d, const char *key, const char *value, const char *other, bool then) {
        size_t len = strlen(d->text);

        if (d->n++ >= TOLD_MAX)
                return;
        snprintf(d->text + len, sizeof(d->text) - len, "%s%.48s%s '%.40s'%s '%.40s'%s", d->n > 1 ? "; " : "", key, then ? " was" : "", value ? value : "none", then ? ", is" : " (there", other ? other : "none", then ? "" : ")");
}

/* By walking both lists; serial numbers only of one node. */
static struct difference compare(const struct node_facts *a, const struct node_facts *b, bool then) {
        struct difference d = { .n = 0 };
        size_t i = 0, k = 0;

        while (i < a->n || k < b->n) {
                int order = i == a->n ? 1 : k == b->n ? -1 : strcmp(a->list[i]->key, b->list[k]->key);
                const Fp8ctl__V1__NodeFact *x = order <= 0 ? a->list[i++] : NULL, *y = order >= 0 ? b->list[k++] : NULL, *any = order <= 0 ? a->list[i - 1] : b->list[k - 1];

                if (any->own && !then)
                        continue;
                if (!x || !y || strcmp(x->value, y->value) != 0)
                        note(&d, any->key, x ? x->value : NULL, y ? y->value : NULL, then);
        }
        if (d.n > TOLD_MAX) {
                size_t len = strlen(d.text);

                snprintf(d.text + len, sizeof(d.text) - len, "; %zu more", d.n - TOLD_MAX);
        }
        return d;
}

static bool same_kind(const struct node *a, const struct node *b) {
        return a->n_devices > 0 && b->n_devices > 0 && strcmp(a->devices[0].kind, b->devices[0].kind) == 0 && strcmp(a->devices[0].name, b->devices[0].name) == 0;
}

/* One that more than half of this kind are like (Boyer and Moore's vote). NULL: there is none, or they are too few to tell. */
static const struct node *typical(const struct controller *c, const struct node *n, size_t *ret_alike, size_t *ret_all) {
        const struct node *best = NULL;
        size_t votes = 0, alike = 0, all = 0;

        for (size_t i = 0; i < c->n_nodes; i++) {
                const struct node *k = c->nodes[i];

                if (!k->facts || !same_kind(n, k))
                        continue;
                all++;
                if (votes == 0)
                        best = k;
                votes += votes == 0 || strcmp(k->facts->fingerprint, best->facts->fingerprint) == 0 ? 1 : (size_t)-1;
        }
        for (size_t i = 0; best && i < c->n_nodes; i++)
                alike += c->nodes[i]->facts && same_kind(n, c->nodes[i]) && strcmp(c->nodes[i]->facts->fingerprint, best->facts->fingerprint) == 0;
        *ret_alike = alike;
        *ret_all = all;
        return all >= KIND_MIN && 2 * alike > all ? best : NULL;
}

static void say_odd(struct controller *c, const struct node *n) {
        size_t alike, all;
        const struct node *t = typical(c, n, &alike, &all);
        struct difference d;

        if (!t || strcmp(t->facts->fingerprint, n->facts->fingerprint) == 0)
                return;
        d = compare(n->facts, t->facts, false);
        event_add(c, &(struct event_of){ .node = n, .rank = -1, .severity = "warning" }, "node_differs", "%s is made otherwise than %zu of %zu nodes of its kind: %s", n->name, alike, all, d.text);
}

/* ------------------------------------------------------------------ what its worker says */
static bool take_memory(struct node *n, const Fp8ctl__V1__HealthReport *m) {
        bool changed = false;

        for (size_t i = 0; i < m->n_device_memory_bytes && i < NODE_DEVICES_MAX; i++) {
                struct device *d = m->device_memory_bytes[i] ? node_device(n, (uint32_t)i) : NULL;

                if (!d || node_device_in_host_memory(d) || d->memory_bytes == m->device_memory_bytes[i])
                        continue;
                d->memory_bytes = m->device_memory_bytes[i];
                changed = true;
        }
        return changed;
}

void node_facts_take(struct controller *c, struct node *n, const Fp8ctl__V1__HealthReport *m) {
        bool memory = take_memory(n, m);
        struct node_facts *f = NULL, *was = n->facts;

        if (m->n_facts && take(m->facts, m->n_facts, &f) < 0)
                core_drop(c, DROP_MALFORMED, "facts");
        if (f) {
                struct difference d = { .n = 0 };
                bool rebooted = was && strcmp(was->boot_id, n->boot_id) != 0;

                core_text(f->boot_id, sizeof(f->boot_id), n->boot_id);
                n->facts = f;
                n->facts_session = n->session;
                c->rollout_wanted = c->rollout_wanted || n->rollout;
                if (was) {
                        d = compare(was, f, true);
                        if (d.n)
                                event_add(c, &(struct event_of){ .node = n, .rank = -1, .severity = "warning" }, "node_changed", "%s%s: %s", n->name, rebooted ? ", since it was rebooted" : "", d.text);
                }
                if (!was || d.n)
                        say_odd(c, n);
                memory = memory || !was || d.n || rebooted;
                node_facts_free(was);
        }
        if (!memory)
                return;
        record_put_node(c, n);
        c->schedule_wanted = true;
}

int node_facts_load(struct node *n, const Fp8ctl__V1__Node *m) {
        int r = m->n_facts ? take(m->facts, m->n_facts, &n->facts) : 0;

        if (r == 0 && n->facts)
                core_text(n->facts->boot_id, sizeof(n->facts->boot_id), m->boot_id);
        return r;
}

void node_facts_fill(const struct node *n, Fp8ctl__V1__Node *m, bool all) {
        m->fingerprint = (char *)node_fingerprint(n);
        if (!n->facts || !all)
                return;
        m->facts = n->facts->list;
        m->n_facts = n->facts->n;
}

struct made {
        const char *fingerprint;
        size_t node;
};

static int by_fingerprint(const void *a, const void *b) {
        return strcmp(((const struct made *)a)->fingerprint, ((const struct made *)b)->fingerprint);
}

int node_makes(const struct controller *c, int *ret) {
        _cleanup_free_ struct made *list = calloc(c->n_nodes + 1, sizeof(*list));
        int make = 0;

        if (!list)
                return -ENOMEM;
        for (size_t i = 0; i < c->n_nodes; i++)
                list[i] = (struct made){ node_fingerprint(c->nodes[i]), i };
        qsort(list, c->n_nodes, sizeof(*list), by_fingerprint);
        for (size_t i = 0; i < c->n_nodes; i++) {
                if (list[i].fingerprint[0] && (i == 0 || strcmp(list[i].fingerprint, list[i - 1].fingerprint) != 0))
                        make++;
                ret[list[i].node] = list[i].fingerprint[0] ? make : 0;
        }
        return 0;
}

const char *node_fact(const struct node *n, const char *key) {
        for (size_t i = 0; n->facts && i < n->facts->n; i++)
                if (strcmp(n->facts->list[i]->key, key) == 0)
                        return n->facts->list[i]->value;
        return NULL;
}

const char *node_fingerprint(const struct node *n) {
        return n->facts ? n->facts->fingerprint : "";
}
