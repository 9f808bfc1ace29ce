/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nodes: registration, leases, loss and return.
 *
 * A lease protects devices from being used twice.  The worker counts it from the moment it sent the newest acknowledged heartbeat, the controller from the moment it
 * received it, which is later: when the controller's deadline has passed, the worker's has too and its ranks are dead.  After a controller's restart every stored
 * node counts as renewed just before (the earlier life may have acknowledged up to its last moment).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/text.h"
#include "daemon/core/core.h"

static const char *const state_names[] = { "unheard", "ready", "leaving", "lost" };
static const char *const event_names[] = { "hello", "leave", "expired" };
static const struct table_row rows[] = {
        { NODE_UNHEARD, NODE_E_HELLO, NODE_READY, NULL },
        { NODE_UNHEARD, NODE_E_EXPIRED, NODE_LOST, NULL },
        { NODE_READY, NODE_E_HELLO, NODE_READY, NULL },
        { NODE_READY, NODE_E_LEAVE, NODE_LEAVING, NULL },
        { NODE_READY, NODE_E_EXPIRED, NODE_LOST, NULL },
        { NODE_LEAVING, NODE_E_HELLO, NODE_READY, NULL },
        { NODE_LEAVING, NODE_E_LEAVE, NODE_LEAVING, NULL },
        { NODE_LEAVING, NODE_E_EXPIRED, NODE_LOST, NULL },
        { NODE_LOST, NODE_E_HELLO, NODE_READY, NULL },
};
const struct table node_table = { "node", state_names, ARRAY_SIZE(state_names), event_names, N_NODE_EVENTS, rows, ARRAY_SIZE(rows) };

const char *node_state_name(enum node_state s) {
        return (size_t)s < ARRAY_SIZE(state_names) ? state_names[s] : "unknown";
}

int node_move(struct controller *c, struct node *n, int event) {
        struct error e = { 0 };
        int state = (int)n->state, r = table_step(&node_table, &state, event, n, NULL, &e);

        if (r < 0)
                core_log(c, 3, "node %s: %s", n->name, e.text);
        else
                n->state = (enum node_state)state;
        return r;
}

bool node_usable(const struct node *n) {
        return n->state == NODE_READY && n->session != 0;
}

bool node_takes(const struct node *n) {
        return node_usable(n) && n->duty == NODE_OPEN && !health_untested(n);
}

static int by_name(const void *list, size_t i, const void *key) {
        return strcmp(((struct node *const *)list)[i]->name, key);
}

size_t node_position(const struct controller *c, const char *name) {
        return core_position(c->nodes, c->n_nodes, by_name, name);
}

struct node *node_find(const struct controller *c, const char *name) {
        size_t at = name ? node_position(c, name) : c->n_nodes;

        return at < c->n_nodes && strcmp(c->nodes[at]->name, name) == 0 ? c->nodes[at] : NULL;
}

struct node *node_get_or_add(struct controller *c, const char *name) {
        struct node *n = node_find(c, name), **list;
        size_t at;

        if (n || !name || !name[0] || strlen(name) >= sizeof(n->name) || c->n_nodes >= NODES_MAX)
                return n;
        list = realloc(c->nodes, (c->n_nodes + 1) * sizeof(*list));
        if (!list)
                return NULL;
        c->nodes = list;
        n = calloc(1, sizeof(*n));
        if (!n)
                return NULL;
        core_text(n->name, sizeof(n->name), name);
        at = node_position(c, n->name);
        memmove(list + at + 1, list + at, (c->n_nodes - at) * sizeof(*list));
        list[at] = n;
        c->n_nodes++;
        return n;
}

struct node *node_free(struct node *n) {
        if (n) {
                health_free(n->health);
                node_facts_free(n->facts);
                free(n->devices);
                free(n->nics);
                free(n->held);
        }
        free(n);
        return NULL;
}

bool node_device_in_host_memory(const struct device *d) {
        return strcmp(d->kind, "cpu") == 0;
}

struct device *node_device(struct node *n, uint32_t index) {
        for (size_t i = 0; i < n->n_devices; i++)
                if (n->devices[i].index == index)
                        return &n->devices[i];
        return NULL;
}

static int by_index(const void *a, const void *b) {
        const struct device *x = a, *y = b;

        return x->index < y->index ? -1 : x->index > y->index;
}

/* Replaces the list; who holds what is kept for indices that stay. */
int node_set_devices(struct node *n, Fp8ctl__V1__NodeDevice *const *d, size_t n_d) {
        struct device *list;
        size_t k = 0;

        if (n_d > NODE_DEVICES_MAX)
                return -E2BIG;
        list = calloc(n_d + 1, sizeof(*list));
        if (!list)
                return -ENOMEM;
        for (size_t i = 0; i < n_d; i++) {
                const struct device *old;
                bool twice = false;

                for (size_t t = 0; d[i] && t < k; t++)
                        twice = twice || list[t].index == d[i]->index;
                if (!d[i] || twice)
                        continue;
                old = node_device(n, d[i]->index);
                if (old)
                        list[k] = *old;
                list[k].index = d[i]->index;
                core_text(list[k].kind, sizeof(list[k].kind), d[i]->kind);
                core_text(list[k].name, sizeof(list[k].name), d[i]->name);
                core_text(list[k].pci, sizeof(list[k].pci), d[i]->pci);
                node_take_path(list[k].path, d[i]->path);
                list[k].numa = d[i]->numa;
                list[k++].memory_bytes = d[i]->memory_bytes;
        }
        qsort(list, k, sizeof(*list), by_index);
        free(n->devices);
        n->devices = list;
        n->n_devices = k;
        return 0;
}

void node_send(struct controller *c, const struct node *n, const Fp8ctl__V1__ControllerMessage *m) {
        if (n->session)
                c->io.send_worker(c->io.arg, n->session, m);
}

void node_free_device(struct controller *c, struct node *n, uint64_t job, uint64_t incarnation) {
        for (size_t i = 0; i < n->n_devices; i++) {
                struct device *d = &n->devices[i];

                if (d->job == job && (d->incarnation == incarnation || PLANTED(DOUBLE_RELEASE))) {
                        d->job = d->incarnation = 0;
                        d->rank = 0;
                        c->schedule_wanted = true;
                        node_check_drained(c, n);
                }
        }
}

void node_kill_one(struct controller *c, struct node *n, uint64_t job, uint64_t epoch, uint32_t rank, uint64_t incarnation, const char *why) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__KillRanks kill = FP8CTL__V1__KILL_RANKS__INIT;
        Fp8ctl__V1__RankRef ref = FP8CTL__V1__RANK_REF__INIT, *refs[1] = { &ref };

        ref.rank = rank;
        ref.incarnation = incarnation;
        kill.job_id = job;
        kill.epoch = epoch;
        kill.ranks = refs;
        kill.n_ranks = 1;
        kill.reason = (char *)why;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_KILL_RANKS;
        m.kill_ranks = &kill;
        node_send(c, n, &m);
}

/* ------------------------------------------------------------------ hello */
/* Status code of the refusal, or 0. */
static int refuse_hello(const struct session *s, const Fp8ctl__V1__WorkerHello *m, char *why, size_t size) {
        const char *name = m->node ? m->node->name : NULL;

        if (!name || !name[0] || strlen(name) >= NAME_MAX_LEN || strchr(name, '/')) {
                snprintf(why, size, "hello: found no usable node name, expected 1 to %d characters without '/'", NAME_MAX_LEN - 1);
                return ST_INVALID;
        }
        if (m->protocol_min > PROTOCOL_VERSION_MAX || m->protocol_max < PROTOCOL_VERSION_MIN) {
                snprintf(why, size, "worker stream: found protocol %u to %u, expected %d to %d", m->protocol_min, m->protocol_max, PROTOCOL_VERSION_MIN, PROTOCOL_VERSION_MAX);
                return ST_PRECONDITION;
        }
        if (m->node->n_devices > NODE_DEVICES_MAX) {
                snprintf(why, size, "hello: found %zu devices, expected at most %d", m->node->n_devices, NODE_DEVICES_MAX);
                return ST_INVALID;
        }
        if (s->who.is_node && strcmp(s->who.node, name) != 0) {
                snprintf(why, size, "hello: found node '%.100s', expected '%s' (the certificate's)", name, s->who.node);
                return ST_DENIED;
        }
        if (!s->who.is_node && !s->who.admin) {
                snprintf(why, size, "hello: user '%s' may not attach nodes", s->who.user);
                return ST_DENIED;
        }
        return 0;
}

static bool is_live(const struct controller *c, const struct node *n, const Fp8ctl__V1__RankStatus *st) {
        const struct job *j = job_find(c, st->job_id);

        return j && job_placed(j) && st->rank < (uint32_t)j->world && j->ranks[st->rank].node == n && (j->ranks[st->rank].incarnation == st->incarnation || PLANTED(STALE_ADOPTION)) &&
               j->ranks[st->rank].state != RANK_LOST;
}

static bool status_dead(const Fp8ctl__V1__RankStatus *st) {
        return st->phase == FP8CTL__V1__RANK_PHASE__RANK_EXITED || (st->exited && st->exited->reaped);
}

/* Devices are held by what the node says lives there, and by what is to be started there and was not sent yet. */
static void take_inventory(struct controller *c, struct node *n, const Fp8ctl__V1__WorkerHello *m) {
        for (size_t i = 0; i < n->n_devices; i++) {
                struct device *d = &n->devices[i];
                const struct job *j = job_find(c, d->job);

                if (!(j && job_placed(j) && d->rank < (uint32_t)j->world && j->ranks[d->rank].start_pending && j->ranks[d->rank].incarnation == d->incarnation))
                        d->job = d->incarnation = d->rank = 0;
        }
        for (size_t i = 0; i < m->n_ranks; i++) {
                const Fp8ctl__V1__RankStatus *st = m->ranks[i];
                struct device *d = st ? node_device(n, st->device) : NULL;

                if (!st || status_dead(st))
                        continue;
                if (!is_live(c, n, st)) {
                        const struct job *j = job_find(c, st->job_id);
                        Fp8ctl__V1__ControllerMessage rm = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
                        Fp8ctl__V1__ReleaseJob rel = FP8CTL__V1__RELEASE_JOB__INIT;

                        node_kill_one(c, n, st->job_id, st->epoch, st->rank, st->incarnation, "not part of its job any more");
                        core_drop(c, DROP_INCARNATION, "hello");
                        if (!j || !job_placed(j)) {
                                rel.job_id = st->job_id;
                                rel.epoch = j ? j->epoch : st->epoch;
                                rel.keep_local = j && !job_ended(j);
                                rm.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_RELEASE_JOB;
                                rm.release_job = &rel;
                                node_send(c, n, &rm);
                        }
                        if (d && d->job)
                                continue;
                }
                if (d) {
                        d->job = st->job_id;
                        d->incarnation = st->incarnation;
                        d->rank = st->rank;
                }
        }
}

static void send_welcome(struct controller *c, struct node *n) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__Welcome w = FP8CTL__V1__WELCOME__INIT;

        w.cluster_id = c->cluster_id;
        w.protocol = PROTOCOL_VERSION_MAX;
        w.lease_ttl_ms = c->config.lease_ttl_ms;
        w.heartbeat_ms = c->config.heartbeat_ms;
        w.lease_number = n->lease_number;
        w.test_hooks = c->config.test_hooks;
        n->gasp_keyed = c->config.gasps;
        if (n->gasp_keyed) {
                c->io.random(c->io.arg, n->gasp_key, sizeof(n->gasp_key));
                w.panic_key = (ProtobufCBinaryData){ sizeof(n->gasp_key), n->gasp_key };
        }
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_WELCOME;
        m.welcome = &w;
        node_send(c, n, &m);
}

static void describe(struct node *n, const Fp8ctl__V1__Node *m) {
        core_text(n->address, sizeof(n->address), m->address);
        core_text(n->version, sizeof(n->version), m->version);
        core_text(n->kernel, sizeof(n->kernel), m->kernel);
        core_text(n->boot_id, sizeof(n->boot_id), m->boot_id);
        core_text(n->dir, sizeof(n->dir), m->dir);
        core_text(n->rack, sizeof(n->rack), m->rack);
        core_text(n->replica_endpoint, sizeof(n->replica_endpoint), m->replica_endpoint);
        n->incarnation = m->incarnation;
        n->memory_bytes = m->memory_bytes;
        n->cpus = m->cpus;
}

bool node_hello_has(const Fp8ctl__V1__WorkerHello *m, const char *feature) {
        for (size_t i = 0; i < m->n_features; i++)
                if (m->features[i] && strcmp(m->features[i], feature) == 0)
                        return true;
        return false;
}

static void replace_session(struct controller *c, struct session *s, struct node *n) {
        uint64_t old = n->session;

        if (old && old != s->id) {
                struct session *o = session_find(c, old);

                if (o)
                        o->node = NULL;
                c->io.close_worker(c->io.arg, old, ST_ABORTED, "another stream said hello under this node name");
        }
        s->node = n;
        n->session = s->id;
}

static void leave(struct controller *c, struct node *n, const Fp8ctl__V1__WorkerLeaving *m, bool say) {
        char text[TEXT_MAX_LEN], reason[TEXT_MAX_LEN - 64];

        if (node_move(c, n, NODE_E_LEAVE) < 0)
                return;
        core_text(reason, sizeof(reason), m->reason && m->reason[0] ? m->reason : "asked to stop");
        core_text(n->reason, sizeof(n->reason), reason);
        record_put_node(c, n);
        if (say)
                event_add(c, &(struct event_of){ .node = n, .rank = -1, .severity = "warning" }, "node_leaving", "%s is leaving in %.1f s: %s", n->name, m->grace_ms / 1e3, reason);
        snprintf(text, sizeof(text), "%.60s is leaving (%.300s)", n->name, reason);
        for (size_t i = 0; i < c->n_jobs; i++) {
                struct job *j = c->jobs[i];
                uint32_t grace = m->grace_ms;

                if (!job_placed(j) || !job_on_node(j, n))
                        continue;
                if (j->spec->recovery.grace_ms >= 0 && (uint64_t)j->spec->recovery.grace_ms < grace)
                        grace = (uint32_t)j->spec->recovery.grace_ms;
                job_stop(c, j, STOP_REQUEUE, grace > 500 ? grace - 500 : grace, false, text);
        }
}

void node_hello(struct controller *c, struct session *s, const Fp8ctl__V1__WorkerHello *m) {
        char why[400];
        struct node *n;
        enum node_state was;
        uint64_t was_seen;
        bool moved, rebooted;
        int r = refuse_hello(s, m, why, sizeof(why));

        n = r == 0 ? node_get_or_add(c, m->node->name) : NULL;
        if (r == 0 && (!n || node_set_devices(n, m->node->devices, m->node->n_devices) < 0 || node_take_nics(c, n, m->node->nics, m->node->n_nics) < 0)) {
                r = ST_EXHAUSTED;
                snprintf(why, sizeof(why), "no memory for another node");
        }
        if (r != 0) {
                c->io.close_worker(c->io.arg, s->id, r, why);
                return;
        }
        was = n->state;
        was_seen = n->last_seen_ms;
        replace_session(c, s, n);
        request_node_gone(c, n);
        moved = m->node->replica_endpoint && strcmp(n->replica_endpoint, m->node->replica_endpoint) != 0;
        rebooted = n->boot_id[0] && m->node->boot_id && m->node->boot_id[0] && strcmp(n->boot_id, m->node->boot_id) != 0;
        describe(n, m->node);
        node_move(c, n, NODE_E_HELLO);
        n->reason[0] = 0;
        if (m->leaving)
                node_move(c, n, NODE_E_LEAVE); /* it gets nothing new while the jobs are told */
        n->dropped = 0; /* it may have started anew; its first heartbeat comes with the welcome */
        n->lease_number = c->next_lease++;
        c->cluster_dirty = true;
        n->lease_until = core_now(c) + (uint64_t)c->config.lease_ttl_ms * NSEC_PER_MSEC;
        n->last_seen_ms = c->io.wall_ms(c->io.arg);
        record_put_node(c, n);
        send_welcome(c, n);
        health_hello(c, n, rebooted);
        n->hung_up = false;
        n->saves_memory = node_hello_has(m, "save-memory");
        n->rollout_hook = node_hello_has(m, "rollout-hook");
        c->rollout_wanted = c->rollout_wanted || n->rollout;
        take_inventory(c, n, m);
        standbys_hello(c, n, m);
        if (was != NODE_READY && !m->leaving)
                event_add(c, &(struct event_of){ .node = n, .rank = -1 }, was == NODE_LOST ? "node_returned" : "node_ready", "%s %s: %zu device%s, %zu rank%s alive", n->name,
                          was == NODE_LOST ? "is back" : was_seen ? "was heard again" : "joined", n->n_devices, text_s(n->n_devices), m->n_ranks, text_s(m->n_ranks));
        for (size_t i = 0; i < c->n_jobs; i++)
                if (job_placed(c->jobs[i]) && job_on_node(c->jobs[i], n))
                        recovery_hello(c, c->jobs[i], n, m);
        replicas_hello(c, n, m, moved);
        if (m->leaving)
                leave(c, n, m->leaving, was != NODE_LEAVING);
        c->schedule_wanted = true;
}

/* ------------------------------------------------------------------ life */
void node_heartbeat(struct controller *c, struct session *s, const Fp8ctl__V1__Heartbeat *m) {
        Fp8ctl__V1__ControllerMessage out = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__HeartbeatAck ack = FP8CTL__V1__HEARTBEAT_ACK__INIT;
        struct node *n = s->node;

        if (m->lease_number != n->lease_number) {
                core_drop(c, DROP_LEASE, "heartbeat");
                return;
        }
        n->lease_until = core_now(c) + (uint64_t)(c->config.lease_ttl_ms - (PLANTED(LEASE_SHORT) ? c->config.heartbeat_ms : 0)) * NSEC_PER_MSEC;
        n->last_seen_ms = c->io.wall_ms(c->io.arg);
        n->dropped = m->dropped_messages;
        ack.sent_mono_ns = m->sent_mono_ns;
        ack.lease_number = m->lease_number;
        out.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_HEARTBEAT_ACK;
        out.heartbeat_ack = &ack;
        node_send(c, n, &out);
        for (size_t i = 0; i < m->n_ranks; i++)
                if (m->ranks[i])
                        job_progress(c, n, m->ranks[i]);
}

void node_leaving(struct controller *c, struct session *s, const Fp8ctl__V1__WorkerLeaving *m) {
        leave(c, s->node, m, s->node->state != NODE_LEAVING); /* after its hello it says so once more, for controllers that do not read it there */
}

void node_stream_closed(struct controller *c, struct session *s) {
        struct node *n = s->node;

        if (!n || n->session != s->id)
                return;
        n->session = 0;
        request_node_gone(c, n);
        core_log(c, 6, "node %s: stream closed, its lease runs on", n->name);
        for (size_t i = 0; i < c->n_jobs; i++)
                if (c->jobs[i]->rec == REC_SUSPECT)
                        recovery_hung_up(c, c->jobs[i]);
        if (n->state == NODE_LEAVING && n->reason[0]) {
                bool empty = true;

                for (size_t i = 0; i < n->n_devices; i++)
                        empty = empty && !n->devices[i].job;
                if (empty)
                        n->lease_until = core_now(c); /* it said good-bye and holds nothing */
        }
}

/* died: how, else its lease is over. */
static void node_lost(struct controller *c, struct node *n, const char *died) {
        bool left = n->state == NODE_LEAVING && !died;
        size_t jobs = 0;

        if (node_move(c, n, NODE_E_EXPIRED) < 0)
                return;
        if (n->session) {
                struct session *s = session_find(c, n->session);

                if (s)
                        s->node = NULL;
                c->io.close_worker(c->io.arg, n->session, ST_DEADLINE, died ? "its node's kernel has died" : "no heartbeat within the lease");
                n->session = 0;
        }
        request_node_gone(c, n);
        for (size_t i = 0; i < n->n_devices; i++)
                n->devices[i].job = n->devices[i].incarnation = n->devices[i].rank = 0; /* past the lease nothing lives there */
        for (size_t i = 0; i < c->n_jobs; i++)
                jobs += job_placed(c->jobs[i]) && job_on_node(c->jobs[i], n);
        if (died)
                snprintf(n->reason, sizeof(n->reason), "its kernel died: %.200s", died);
        else if (!left)
                snprintf(n->reason, sizeof(n->reason), "no heartbeat for %.1f s", c->config.lease_ttl_ms / 1e3);
        record_put_node(c, n);
        if (!left)
                rollout_failure(c, n, n->reason);
        c->rollout_wanted = c->rollout_wanted || n->rollout;
        event_add(c, &(struct event_of){ .node = n, .rank = -1, .severity = left ? "info" : "error" }, left ? "node_left" : "node_lost", "%s %s%s; %zu jobs had ranks there", n->name,
                  left ? "has left" : died ? "is lost: its kernel died: " : "is lost: no heartbeat within its lease", died ? died : "", jobs);
        for (size_t i = 0; i < c->n_jobs; i++)
                if (job_placed(c->jobs[i]) && job_on_node(c->jobs[i], n))
                        recovery_node_lost(c, c->jobs[i], n);
        replicas_node_lost(c, n);
        standbys_node_lost(c, n);
        n->hung_up = false;
        c->schedule_wanted = true;
}

/* Its processors had stopped before it was sent, so nothing of its ranks lives. A datagram of an older boot, or sent again, finds another boot or a node that is lost. */
void node_gasp(struct controller *c, const void *data, size_t len) {
        struct error e = { 0 };
        struct node *n;
        struct gasp g;

        if (gasp_read(data, len, &g, &e) < 0) {
                core_drop(c, DROP_MALFORMED, "last gasp");
                return;
        }
        n = node_find(c, g.node);
        if (!n || !n->gasp_keyed || !n->boot_id[0] || !gasp_signed(data, len, n->gasp_key) || strcmp(n->boot_id, g.boot_id) != 0) {
                core_drop(c, DROP_LEASE, "last gasp");
                return;
        }
        if (n->state != NODE_LOST)
                node_lost(c, n, g.reason[0] ? g.reason : "no reason given");
}

void node_tick(struct controller *c, uint64_t now) {
        for (size_t i = 0; i < c->n_nodes; i++) {
                struct node *n = c->nodes[i];

                if (n->state != NODE_LOST && n->lease_until && now >= n->lease_until)
                        node_lost(c, n, NULL);
                if (n->window_from_ms || n->window_until_ms)
                        node_window_tick(c, n);
                if (n->health)
                        health_tick(c, n);
        }
}

uint64_t node_next_deadline(const struct controller *c) {
        uint64_t best = 0;

        for (size_t i = 0; i < c->n_nodes; i++) {
                uint64_t window = node_window_deadline(c, c->nodes[i]), health = c->nodes[i]->health ? health_deadline(c, c->nodes[i]) : 0;

                if (c->nodes[i]->state != NODE_LOST && c->nodes[i]->lease_until && (!best || c->nodes[i]->lease_until < best))
                        best = c->nodes[i]->lease_until;
                if (window && (!best || window < best))
                        best = window;
                if (health && (!best || health < best))
                        best = health;
        }
        return best;
}
