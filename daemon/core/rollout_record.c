/* SPDX-License-Identifier: Apache-2.0 */
/* Rollouts in the store: one record for the whole and one for each of its nodes, so that a node's move does not write thousands of others.  They are read in any order. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/rollout.h"

enum { RECORD = 1 };

static void node_key(const struct rollout *r, const struct rollout_node *e, char *buf, size_t size) {
        snprintf(buf, size, "rollout-node/%" PRIu64 "/%s", r->id, e->node->name);
}

static void key_of(const struct rollout *r, char *buf, size_t size) {
        snprintf(buf, size, "rollout/%020" PRIu64, r->id);
}

void rollout_put(struct controller *c, const struct rollout *r) {
        Fp8ctl__V1__RolloutRecord rec = FP8CTL__V1__ROLLOUT_RECORD__INIT;
        Fp8ctl__V1__Rollout m;
        char key[STORE_KEY_MAX];

        rollout_fill(c, r, &m);
        rec.version = RECORD;
        rec.rollout = &m;
        key_of(r, key, sizeof(key));
        record_put_message(c, key, &rec.base);
}

void rollout_put_node(struct controller *c, const struct rollout *r, const struct rollout_node *e) {
        Fp8ctl__V1__RolloutNodeRecord rec = FP8CTL__V1__ROLLOUT_NODE_RECORD__INIT;
        Fp8ctl__V1__RolloutNode m;
        char key[STORE_KEY_MAX];

        rollout_node_fill(e, &m);
        rec.version = RECORD;
        rec.rollout = r->id;
        rec.node = &m;
        node_key(r, e, key, sizeof(key));
        record_put_message(c, key, &rec.base);
}

void rollout_delete(struct controller *c, const struct rollout *r) {
        char key[STORE_KEY_MAX];

        key_of(r, key, sizeof(key));
        core_persist(c, STORE_DELETE, key, NULL, 0);
        for (size_t i = 0; i < r->n_nodes; i++) {
                node_key(r, &r->nodes[i], key, sizeof(key));
                core_persist(c, STORE_DELETE, key, NULL, 0);
        }
}

/* ------------------------------------------------------------------ read */
static struct rollout *get_or_add(struct controller *c, uint64_t id) {
        struct rollout *r;

        for (size_t i = 0; i < c->n_rollouts; i++)
                if (c->rollouts[i]->id == id)
                        return c->rollouts[i];
        r = calloc(1, sizeof(*r));
        if (!r)
                return NULL;
        r->id = id;
        return rollout_add(c, r) < 0 ? rollout_free(r) : r;
}

static int state_of(const char *name, const char *(*name_of)(int), int n) {
        for (int i = 0; name && i < n; i++)
                if (strcmp(name, name_of(i)) == 0)
                        return i;
        return -1;
}

int rollout_load(struct controller *c, const void *value, size_t len, struct error *e) {
        Fp8ctl__V1__RolloutRecord *rec = fp8ctl__v1__rollout_record__unpack(NULL, len, value);
        const Fp8ctl__V1__Rollout *m;
        int state, ret = 0;
        struct rollout *r;

        if (!rec)
                return error_set(e, -EBADMSG, "rollout record: found %zu bytes that are no RolloutRecord", len);
        m = rec->rollout;
        state = m ? state_of(m->state, rollout_state_name, N_ROLLOUT_STATES) : -1;
        if (rec->version != RECORD)
                ret = error_set(e, -EPROTONOSUPPORT, "rollout record: found version %u, expected %d", rec->version, RECORD);
        else if (!m || !m->id || state < 0 || !m->n_stages || m->n_stages > ROLLOUT_STAGES_MAX || m->stage >= m->n_stages)
                ret = error_set(e, -EBADMSG, "rollout record: found %zu bytes that are no RolloutRecord", len);
        r = ret == 0 ? get_or_add(c, m->id) : NULL;
        if (ret == 0 && !r)
                ret = error_set(e, -ENOMEM, "no memory for rollouts");
        if (ret == 0) {
                r->known = true;
                r->state = (enum rollout_state)state;
                core_text(r->name, sizeof(r->name), m->name);
                core_text(r->fact, sizeof(r->fact), m->fact);
                core_text(r->value, sizeof(r->value), m->value);
                core_text(r->user, sizeof(r->user), m->user);
                core_text(r->reason, sizeof(r->reason), m->reason);
                memcpy(r->stages, m->stages, m->n_stages * sizeof(*r->stages));
                r->n_stages = m->n_stages;
                r->stage = m->stage;
                r->soak_ms = m->soak_ms;
                r->change_ms = m->change_ms;
                r->alpha = m->alpha;
                r->max_failed = m->max_failed;
                r->max_unavailable = m->max_unavailable;
                r->started_ms = m->started_unix_ms;
                r->ended_ms = m->ended_unix_ms;
                r->counted_ms = m->counted_unix_ms;
        }
        fp8ctl__v1__rollout_record__free_unpacked(rec, NULL);
        return ret;
}

/* Kept by name: records come in the store's order, which is that nearly always. */
static struct rollout_node *add_node(struct rollout *r, struct node *n) {
        struct rollout_node *list = realloc(r->nodes, (r->n_nodes + 1) * sizeof(*list));
        size_t at = r->n_nodes;

        if (!list)
                return NULL;
        r->nodes = list;
        while (at > 0 && strcmp(list[at - 1].node->name, n->name) > 0)
                at--;
        memmove(list + at + 1, list + at, (r->n_nodes++ - at) * sizeof(*list));
        list[at] = (struct rollout_node){ .node = n };
        return &list[at];
}

int rollout_load_node(struct controller *c, const void *value, size_t len, struct error *e) {
        Fp8ctl__V1__RolloutNodeRecord *rec = fp8ctl__v1__rollout_node_record__unpack(NULL, len, value);
        const Fp8ctl__V1__RolloutNode *m;
        struct rollout_node *at;
        struct rollout *r;
        int state, ret = 0;
        struct node *n;

        if (!rec)
                return error_set(e, -EBADMSG, "rollout node record: found %zu bytes that are no RolloutNodeRecord", len);
        m = rec->node;
        state = m ? state_of(m->state, rollout_node_state_name, N_RN_STATES) : -1;
        if (rec->version != RECORD)
                ret = error_set(e, -EPROTONOSUPPORT, "rollout node record: found version %u, expected %d", rec->version, RECORD);
        else if (!m || !rec->rollout || state < 0 || !m->name || !m->name[0])
                ret = error_set(e, -EBADMSG, "rollout node record: found %zu bytes that are no RolloutNodeRecord", len);
        r = ret == 0 ? get_or_add(c, rec->rollout) : NULL;
        n = r ? node_get_or_add(c, m->name) : NULL;
        at = n ? add_node(r, n) : NULL;
        if (ret == 0 && !at)
                ret = error_set(e, -ENOMEM, "no memory for rollouts");
        if (ret == 0) {
                at->state = (enum rollout_node_state)state;
                core_text(at->reason, sizeof(at->reason), m->reason);
                at->since_ms = m->since_unix_ms;
                at->failures[SIDE_CHANGED] = m->changed_failures;
                at->failures[SIDE_OTHER] = m->other_failures;
                at->watched_ms[SIDE_CHANGED] = m->changed_ms;
                at->watched_ms[SIDE_OTHER] = m->other_ms;
                at->failed_ms = m->failed_unix_ms;
                at->again = m->again;
        }
        fp8ctl__v1__rollout_node_record__free_unpacked(rec, NULL);
        return ret;
}
