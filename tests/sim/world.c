/* SPDX-License-Identifier: Apache-2.0 */
/* Virtual time, the store, the streams, and the controller's life. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "daemon/core/planted.h"
#include "tests/sim/sim.h"

uint64_t sim_random(struct sim *s, uint64_t n) {
        uint64_t z = (s->rng += UINT64_C(0x9e3779b97f4a7c15)); /* splitmix64 */

        z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
        z ^= z >> 31;
        return n ? z % n : 0;
}

bool sim_chance(struct sim *s, unsigned percent) {
        return sim_random(s, 100) < percent;
}

void sim_say(struct sim *s, const char *fmt, ...) {
        va_list ap;

        if (!s->verbose)
                return;
        printf("%10.3f ms  ", (double)s->now / 1e6);
        va_start(ap, fmt);
        vprintf(fmt, ap);
        va_end(ap);
        printf("\n");
}

void sim_fail(struct sim *s, const char *fmt, ...) {
        va_list ap;

        printf("seed %" PRIu64 ", %.3f ms: ", s->seed, (double)s->now / 1e6);
        va_start(ap, fmt);
        vprintf(fmt, ap);
        va_end(ap);
        printf("\n");
        s->failures++;
}

/* ------------------------------------------------------------------ time */
static bool before(const struct ev *x, const struct ev *y) {
        return x->at < y->at || (x->at == y->at && x->seq < y->seq);
}

struct ev *sim_after(struct sim *s, uint64_t ns, void (*fn)(struct sim *, struct ev *)) {
        struct ev *e = calloc(1, sizeof(*e));
        size_t i;

        if (s->n_heap == s->cap_heap) {
                s->cap_heap = s->cap_heap ? 2 * s->cap_heap : 256;
                s->heap = realloc(s->heap, s->cap_heap * sizeof(*s->heap));
        }
        if (!e || !s->heap)
                abort();
        e->at = s->now + ns;
        e->seq = s->seq++;
        e->fn = fn;
        for (i = s->n_heap++; i > 0 && before(e, s->heap[(i - 1) / 2]); i = (i - 1) / 2)
                s->heap[i] = s->heap[(i - 1) / 2];
        s->heap[i] = e;
        return e;
}

bool sim_turn(struct sim *s) {
        struct ev *e, *last;
        size_t i = 0, k;

        if (s->n_heap == 0)
                return false;
        e = s->heap[0];
        last = s->heap[--s->n_heap];
        for (; (k = 2 * i + 1) < s->n_heap; i = k) {
                if (k + 1 < s->n_heap && before(s->heap[k + 1], s->heap[k]))
                        k++;
                if (!before(s->heap[k], last))
                        break;
                s->heap[i] = s->heap[k];
        }
        if (s->n_heap)
                s->heap[i] = last;
        s->now = e->at;
        e->fn(s, e);
        free(e->data);
        free(e);
        return true;
}

/* ------------------------------------------------------------------ store */
/* In the order of keys, as a store gives them. *ret_at: where it is or belongs. */
static bool store_find(const struct sim *s, const char *key, size_t *ret_at) {
        size_t low = 0, high = s->n_store;

        while (low < high) {
                size_t mid = low + (high - low) / 2;
                int r = strcmp(s->store[mid].key, key);

                if (r == 0) {
                        *ret_at = mid;
                        return true;
                }
                if (r < 0)
                        low = mid + 1;
                else
                        high = mid;
        }
        *ret_at = low;
        return false;
}

const struct kv *sim_stored(const struct sim *s, const char *key) {
        size_t at;

        return store_find(s, key, &at) ? &s->store[at] : NULL;
}

Fp8ctl__V1__JobRecord *sim_stored_job(const struct sim *s, uint64_t job) {
        const struct kv *at;
        char key[64];

        snprintf(key, sizeof(key), "job/%" PRIu64, job);
        at = sim_stored(s, key);
        return at ? fp8ctl__v1__job_record__unpack(NULL, at->len, at->value) : NULL;
}

static void store_put(struct sim *s, const struct kv *op) {
        struct kv *at;
        size_t i;

        if (!store_find(s, op->key, &i)) {
                if (s->n_store == s->room_store) {
                        s->room_store = s->room_store ? 2 * s->room_store : 64;
                        s->store = realloc(s->store, s->room_store * sizeof(*s->store));
                        if (!s->store)
                                abort();
                }
                memmove(s->store + i + 1, s->store + i, (s->n_store++ - i) * sizeof(*s->store));
                s->store[i] = (struct kv){ .key = strdup(op->key) };
        }
        at = &s->store[i];
        free(at->value);
        at->value = malloc(op->len + 1);
        if (!at->value)
                abort();
        if (op->len)
                memcpy(at->value, op->value, op->len);
        at->value[op->len] = 0;
        at->len = op->len;
}

static void store_delete(struct sim *s, const char *key) {
        size_t i;

        if (!store_find(s, key, &i))
                return;
        free(s->store[i].key);
        free(s->store[i].value);
        memmove(s->store + i, s->store + i + 1, (--s->n_store - i) * sizeof(*s->store));
}

static void batch_free(struct batch *b) {
        for (size_t i = 0; i < b->n_ops; i++) {
                free(b->ops[i].key);
                free(b->ops[i].value);
        }
        for (size_t i = 0; i < b->n_items; i++) {
                free(b->items[i].text);
                free(b->items[i].data);
        }
        free(b->ops);
        free(b->kinds);
        free(b->items);
        memset(b, 0, sizeof(*b));
}

static bool expects_hold(struct sim *s, const struct batch *b) {
        for (size_t i = 0; i < b->n_ops; i++) {
                const struct kv *at = sim_stored(s, b->ops[i].key);

                if (b->kinds[i] == STORE_EXPECT && ((at ? at->len : 0) != b->ops[i].len || (at && memcmp(at->value, b->ops[i].value, at->len) != 0)))
                        return false;
        }
        return true;
}

/* No commit by a fenced epoch: what lands must be of the epoch that the store holds. */
static void check_commit(struct sim *s, const struct kv *op) {
        Fp8ctl__V1__CheckpointRecord *r;
        const struct kv *live;
        char key[64];

        if (strncmp(op->key, "commit/", 7) != 0)
                return;
        s->commits++;
        snprintf(key, sizeof(key), "epoch/%" PRIu64, (uint64_t)strtoull(op->key + 7, NULL, 10));
        live = sim_stored(s, key);
        r = fp8ctl__v1__checkpoint_record__unpack(NULL, op->len, op->value);
        if (!r || !r->checkpoint || !live || strtoull((const char *)live->value, NULL, 10) != r->checkpoint->epoch)
                sim_fail(s, "%s: found a commit of epoch %" PRIu64 ", expected the live one %.*s", op->key, r && r->checkpoint ? r->checkpoint->epoch : 0, live ? (int)live->len : 0,
                         live ? (const char *)live->value : "");
        /* A shard of a simulated rank has 1,000 bytes. */
        if (r && r->checkpoint) {
                uint64_t job = r->checkpoint->job_id % 16;
                bool memory = r->checkpoint->attempt > 1 && r->checkpoint->attempt == s->saved_attempt[job];
                uint64_t ranks = memory ? s->saved_world[job] : s->plan_world[job];

                s->rescued += memory;
                if (r->checkpoint->bytes != 1000 * ranks)
                        sim_fail(s, "%s: found %" PRIu64 " bytes committed, expected a shard of each of %" PRIu64 " ranks", op->key, r->checkpoint->bytes, ranks);
        }
        if (r)
                fp8ctl__v1__checkpoint_record__free_unpacked(r, NULL);
}

static void deliver_down(struct sim *s, struct ev *e) {
        struct stream *t = sim_stream(s, e->a);
        Fp8ctl__V1__ControllerMessage *m;

        if (!t || !t->up || !s->nodes[t->node].up || s->nodes[t->node].stream != t->id)
                return;
        m = fp8ctl__v1__controller_message__unpack(NULL, e->len, e->data);
        if (!m) {
                sim_fail(s, "the core sent %zu bytes that are no ControllerMessage", e->len);
                return;
        }
        worker_message(s, t->node, m);
        fp8ctl__v1__controller_message__free_unpacked(m, NULL);
}

static void file_done(struct sim *s, struct ev *e) {
        if (!s->core || e->b != s->core_gen)
                return;
        sim_enter(s);
        if (s->rank_faults && sim_chance(s, 3))
                controller_file_done(s->core, e->a, -ENOSPC, "No space left on device");
        else
                controller_file_done(s->core, e->a, 0, NULL);
        sim_leave(s);
}

static void on_reply(struct sim *s, const struct item *it) {
        s->last_status = it->status;
        if (it->id == s->status_request && it->status == 0) {
                Fp8ctl__V1__StatusReply *r = fp8ctl__v1__status_reply__unpack(NULL, it->len, it->data);

                s->devices_free = r ? r->devices_free : 0;
                s->devices_total = r ? r->devices_total : 0;
                if (r)
                        fp8ctl__v1__status_reply__free_unpacked(r, NULL);
        }
        for (int i = 0; i < 16; i++)
                if (s->submit_requests[i] == it->id && it->id) {
                        Fp8ctl__V1__SubmitReply *r = it->status == 0 ? fp8ctl__v1__submit_reply__unpack(NULL, it->len, it->data) : NULL;

                        sim_say(s, "submit %d answered: status %d %s", i, it->status, it->text ? it->text : "");
                        s->submit_requests[i] = 0;
                        if (r && r->job) {
                                char key[64];

                                s->jobs[i] = r->job->id;
                                snprintf(key, sizeof(key), "job/%" PRIu64, r->job->id);
                                if (!sim_stored(s, key))
                                        sim_fail(s, "job %" PRIu64 " was accepted and is not in the store", r->job->id);
                        }
                        if (r)
                                fp8ctl__v1__submit_reply__free_unpacked(r, NULL);
                        else if (it->status != 14 && !(it->text && strstr(it->text, "what fits the cluster's"))) /* not all nodes have joined yet: it is asked again */
                                sim_fail(s, "submit refused: %d %s", it->status, it->text ? it->text : "");
                }
}

static void deliver_items(struct sim *s, struct batch *b) {
        for (size_t i = 0; i < b->n_items; i++) {
                struct item *it = &b->items[i];
                struct stream *t = it->kind == ITEM_SEND || it->kind == ITEM_CLOSE ? sim_stream(s, it->id) : NULL;
                struct ev *e;
                uint64_t at;

                switch (it->kind) {
                case ITEM_SEND:
                        if (!t || !t->up)
                                break;
                        at = s->now + MS / 10 + sim_random(s, s->faults ? 20 * MS : 2 * MS);
                        if (at < s->nodes[t->node].held_down)
                                at = s->nodes[t->node].held_down;
                        if (at <= t->last_down)
                                at = t->last_down + 1;
                        t->last_down = at;
                        e = sim_after(s, at - s->now, deliver_down);
                        e->a = it->id;
                        e->data = it->data;
                        e->len = it->len;
                        it->data = NULL;
                        break;
                case ITEM_CLOSE:
                        if (t && t->up)
                                sim_break_stream(s, t->id);
                        break;
                case ITEM_REPLY:
                        on_reply(s, it);
                        break;
                case ITEM_FILE:
                        if (it->file != FILE_WRITE_MANIFEST)
                                save_check_removal(s, it->text);
                        /* One helper does one work after the other. */
                        at = (s->files_done > s->now ? s->files_done : s->now) + MS / 2 + sim_random(s, sim_chance(s, 3) ? 100 * MS : 2 * MS);
                        if (s->rank_faults && it->file == FILE_WRITE_MANIFEST && sim_random(s, 200) == 0)
                                at += 6 * SEC; /* the storage stalls for longer than a manifest may take */
                        s->files_done = at;
                        e = sim_after(s, at - s->now, file_done);
                        e->a = it->id;
                        e->b = s->core_gen;
                        break;
                }
        }
}

static bool has_commit(const struct batch *b) {
        for (size_t i = 0; i < b->n_ops; i++)
                if (b->kinds[i] == STORE_PUT && strncmp(b->ops[i].key, "commit/", 7) == 0)
                        return true;
        return false;
}

static bool has_rollout(const struct batch *b) {
        for (size_t i = 0; i < b->n_ops; i++)
                if (strncmp(b->ops[i].key, "rollout", 7) == 0)
                        return true;
        return false;
}

static void commit_batch(struct sim *s, struct ev *e) {
        struct batch *b = (struct batch *)(uintptr_t)e->a;

        if (!s->core || e->b != s->core_gen)
                goto out; /* it died with this in its hands */
        if (s->fail_next_commit && b->n_ops) {
                s->fail_next_commit = false;
                sim_say(s, "the store fails");
                sim_enter(s);
                controller_persist_failed(s->core, -EIO, "Input/output error");
                sim_leave(s);
                sim_core_crash(s);
                goto out;
        }
        if (!expects_hold(s, b)) {
                sim_fail(s, "an EXPECT did not hold though there is one controller");
                goto out;
        }
        for (size_t i = 0; i < b->n_ops; i++)
                if (b->kinds[i] == STORE_PUT) {
                        check_commit(s, &b->ops[i]);
                        store_put(s, &b->ops[i]);
                } else if (b->kinds[i] == STORE_DELETE) {
                        store_delete(s, b->ops[i].key);
                }
        if (has_rollout(b))
                rollout_check(s);
        if (e->c) {
                sim_say(s, "controller dies after a transaction, before it acts");
                sim_core_crash(s);
                goto out;
        }
        deliver_items(s, b);
out:
        s->commits_under_way -= has_commit(b);
        batch_free(b);
        free(b);
}

/* ------------------------------------------------------------------ what the core asks for */
static uint64_t io_mono(void *arg) {
        return ((struct sim *)arg)->now + SEC;
}
static uint64_t io_wall(void *arg) {
        const struct sim *s = arg;

        return (uint64_t)(INT64_C(1700000000000) + s->wall_off) + s->now / MS;
}
static void io_random(void *arg, void *buf, size_t len) {
        for (size_t i = 0; i < len; i++)
                ((uint8_t *)buf)[i] = (uint8_t)sim_random(arg, 256);
}
static void io_persist(void *arg, const struct store_op *op) {
        struct sim *s = arg;
        struct batch *b = &s->cur;

        if (!s->in_core)
                sim_fail(s, "persist outside an event");
        b->ops = realloc(b->ops, (b->n_ops + 1) * sizeof(*b->ops));
        b->kinds = realloc(b->kinds, (b->n_ops + 1) * sizeof(*b->kinds));
        if (!b->ops || !b->kinds)
                abort();
        b->ops[b->n_ops] = (struct kv){ .key = strdup(op->key), .value = malloc(op->len + 1), .len = op->len };
        if (op->len)
                memcpy(b->ops[b->n_ops].value, op->value, op->len);
        b->kinds[b->n_ops++] = (int)op->kind;
}
static void add_item(struct sim *s, struct item it, const ProtobufCMessage *m) {
        struct batch *b = &s->cur;

        if (m) {
                it.len = protobuf_c_message_get_packed_size(m);
                it.data = malloc(it.len + 1);
                if (!it.data)
                        abort();
                protobuf_c_message_pack(m, it.data);
        }
        b->items = realloc(b->items, (b->n_items + 1) * sizeof(*b->items));
        if (!b->items)
                abort();
        b->items[b->n_items++] = it;
}
static void io_send(void *arg, uint64_t session, const Fp8ctl__V1__ControllerMessage *m) {
        add_item(arg, (struct item){ .kind = ITEM_SEND, .id = session }, &m->base);
}
static void io_close(void *arg, uint64_t session, int status, const char *why) {
        add_item(arg, (struct item){ .kind = ITEM_CLOSE, .id = session, .status = status, .text = strdup(why) }, NULL);
}
static void io_reply(void *arg, uint64_t request, int status, const char *error, const ProtobufCMessage *m) {
        add_item(arg, (struct item){ .kind = ITEM_REPLY, .id = request, .status = status, .text = error ? strdup(error) : NULL }, status == 0 ? m : NULL);
}
static void io_file(void *arg, const struct file_work *w) {
        add_item(arg, (struct item){ .kind = ITEM_FILE, .id = w->id, .file = (int)w->kind, .text = strdup(w->path) }, NULL);
}
static void tick(struct sim *s, struct ev *e) {
        if (!s->core || e->a != s->core_gen || s->wake_at != e->b)
                return;
        s->wake_at = 0;
        sim_enter(s);
        controller_tick(s->core);
        sim_leave(s);
}
static void io_wake(void *arg, uint64_t mono) {
        struct sim *s = arg;
        uint64_t at = mono > s->now + SEC ? mono - SEC : s->now + 1;
        struct ev *e;

        if (s->wake_at == at)
                return;
        s->wake_at = at;
        e = sim_after(s, at - s->now, tick);
        e->a = s->core_gen;
        e->b = at;
}
/* What was lost when a plan was made: told again later, it may name nobody who is left. */
static void note_plan(struct sim *s, const char *text) {
        uint64_t job;
        char what[8];

        if (sscanf(text, "job %" SCNu64 " %7[a-z]:", &job, what) == 2 && strcmp(what, "plan") == 0)
                s->plan_losses[job % 16] = s->memory_losses;
}

/* Its ranks may finish steps until the lease that it knows of is over. */
static void check_lost(struct sim *s, const char *text) {
        for (int k = 0; k < s->n_nodes; k++) {
                struct snode *n = &s->nodes[k];
                char said[64];

                snprintf(said, sizeof(said), "%s is lost", n->name);
                if (!n->up || !strstr(text, said))
                        continue;
                n->given_up = true;
                s->memory_losses++; /* who lost power was counted then */
                if (s->now > n->lease_until)
                        continue;
                for (int i = 0; i < n->n_procs; i++)
                        if (n->procs[i].used && !n->procs[i].dead)
                                sim_fail(s, "%s is given up while its lease runs for %.3f s more and job %" PRIu64 " rank %u lives there", n->name, (double)(n->lease_until - s->now) / 1e9,
                                         n->procs[i].job, n->procs[i].rank);
        }
}

static void io_log(void *arg, int level, const char *text) {
        struct sim *s = arg;

        if (strstr(text, "inventory_late"))
                replica_uncover(s, 0);
        if (strstr(text, "node_lost: "))
                check_lost(s, text);
        note_plan(s, text);
        /* Asked for, or for its health: ranks that are moved away cannot load what they themselves kept there, only second copies are given. */
        if (strstr(text, "node_draining: "))
                s->memory_losses++;
        if (strstr(text, " requeued: "))
                replica_uncover(s, strncmp(text, "job ", 4) == 0 ? strtoull(text + 4, NULL, 10) : 0); /* what ranks hold in memory is given up with their devices */
        if (strstr(text, "recovery_started"))
                s->recoveries++;
        if (level < 7)
                sim_say(s, "core: %s", text);
        if (level <= 3 && strstr(text, "expected one of"))
                sim_fail(s, "a move that its table does not list: %s", text);
}

void sim_enter(struct sim *s) {
        s->in_core = true;
        s->core_began = s->big ? clock_mono_ns() : 0;
}

/* How long the core took, of the machine's time: told in the end, it decides nothing. */
static void core_took(struct sim *s) {
        uint64_t ns = clock_mono_ns() - s->core_began;

        s->core_events++;
        s->core_ns += ns;
        if (ns > s->core_worst_ns)
                s->core_worst_ns = ns;
}

/* The end of an event: its batch goes to the store, which takes its time and keeps the order. */
void sim_leave(struct sim *s) {
        struct batch *b;
        struct ev *e;
        uint64_t at;

        s->in_core = false;
        if (s->big)
                core_took(s);
        if (!s->cur.n_ops && !s->cur.n_items)
                return;
        b = malloc(sizeof(*b));
        if (!b)
                abort();
        *b = s->cur;
        memset(&s->cur, 0, sizeof(s->cur));
        s->commits_under_way += has_commit(b);
        if (PLANTED(ACT_BEFORE_PERSIST)) {
                deliver_items(s, b);
                for (size_t i = 0; i < b->n_items; i++) {
                        free(b->items[i].text);
                        free(b->items[i].data);
                }
                b->n_items = 0;
        }
        at = s->now + (b->n_ops ? MS / 10 + sim_random(s, 5 * MS) : 0);
        if (b->n_ops && s->rank_faults && sim_random(s, 400) == 0) {
                at += sim_random(s, 3 * SEC);
                s->slow_commits++;
        }
        if (at < s->last_commit)
                at = s->last_commit;
        s->last_commit = at;
        e = sim_after(s, at - s->now, commit_batch);
        e->a = (uint64_t)(uintptr_t)b;
        e->b = s->core_gen;
        if (b->n_ops && s->faults && ++s->flushes == s->crash_at_flush) {
                s->crash_at_flush = s->flushes + 20 + sim_random(s, 200);
                if (sim_chance(s, 50))
                        e->c = 1;
                else
                        sim_core_crash(s);
        }
}

/* ------------------------------------------------------------------ the controller's life */
static void restart(struct sim *s, struct ev *e) {
        if (!s->core)
                sim_core_start(s);
}

void sim_core_start(struct sim *s) {
        struct cluster_io io = { .arg = s, .mono_ns = io_mono, .wall_ms = io_wall, .random = io_random, .persist = io_persist, .send_worker = io_send, .close_worker = io_close,
                                 .reply = io_reply, .file_work = io_file, .wake_at = io_wake, .log = io_log };
        struct controller_config config = { .lease_ttl_ms = 10000, .heartbeat_ms = 1000, .restart_budget_ms = 3000, .test_hooks = true, .version = "sim" };
        struct error e = { 0 };

        s->wake_at = 0;
        if (controller_new(&io, &config, &s->core, &e) < 0) {
                sim_fail(s, "controller_new: %s", e.text);
                return;
        }
        sim_enter(s);
        for (size_t i = 0; i < s->n_store; i++)
                if (controller_load(s->core, s->store[i].key, s->store[i].value, s->store[i].len, &e) < 0)
                        sim_fail(s, "controller_load: %s", e.text);
        if (controller_start(s->core, &e) < 0)
                sim_fail(s, "controller_start: %s", e.text);
        sim_leave(s);
        sim_say(s, "controller is up");
}

void sim_core_crash(struct sim *s) {
        if (!s->core)
                return;
        sim_say(s, "controller dies");
        s->crashes++;
        save_struck(s, VICTIM_CONTROLLER, 0);
        s->core = controller_free(s->core);
        s->core_gen++;
        s->last_commit = s->files_done = 0;
        batch_free(&s->cur);
        for (size_t i = 0; i < s->n_streams; i++)
                if (s->streams[i].up)
                        sim_break_stream(s, s->streams[i].id);
        sim_after(s, 20 * MS + sim_random(s, 2500 * MS), restart);
}

/* ------------------------------------------------------------------ streams */
struct stream *sim_stream(struct sim *s, uint64_t id) {
        return id > 0 && id <= s->n_streams ? &s->streams[id - 1] : NULL; /* they are numbered as they are opened */
}

uint64_t sim_open_stream(struct sim *s, int node) {
        struct caller who = { .admin = true };
        struct stream *t;

        if (!s->core)
                return 0;
        if (s->n_streams == s->room_streams) {
                s->room_streams = s->room_streams ? 2 * s->room_streams : 64;
                s->streams = realloc(s->streams, s->room_streams * sizeof(*s->streams));
                if (!s->streams)
                        abort();
        }
        t = &s->streams[s->n_streams++];
        *t = (struct stream){ .id = ++s->next_session, .node = node, .up = true };
        sim_enter(s);
        controller_worker_opened(s->core, t->id, &who);
        sim_leave(s);
        return s->next_session;
}

static void closed(struct sim *s, struct ev *e) {
        if (!s->core || e->b != s->core_gen)
                return;
        sim_enter(s);
        controller_worker_closed(s->core, e->a);
        sim_leave(s);
}

static void reconnect(struct sim *s, struct ev *e) {
        worker_connect(s, (int)e->a);
}

void sim_break_stream(struct sim *s, uint64_t id) {
        struct stream *t = sim_stream(s, id);
        struct ev *e;

        if (!t || !t->up)
                return;
        t->up = false;
        e = sim_after(s, sim_random(s, 30 * MS), closed);
        e->a = id;
        e->b = s->core_gen;
        if (s->nodes[t->node].stream == id) {
                s->nodes[t->node].stream = 0;
                /* Who said it leaves and hangs up has left as far as anybody can know, and its memory with it. */
                s->memory_losses += s->nodes[t->node].said_leaving;
                s->nodes[t->node].said_leaving = false;
                e = sim_after(s, 100 * MS + sim_random(s, 900 * MS), reconnect);
                e->a = (uint64_t)t->node;
        }
}

static void deliver_up(struct sim *s, struct ev *e) {
        struct stream *t = sim_stream(s, e->a);
        Fp8ctl__V1__WorkerMessage *m;

        if (!t || !t->up || !s->core)
                return;
        m = fp8ctl__v1__worker_message__unpack(NULL, e->len, e->data);
        if (!m)
                abort();
        sim_enter(s);
        controller_worker_message(s->core, t->id, m);
        sim_leave(s);
        fp8ctl__v1__worker_message__free_unpacked(m, NULL);
}

static void up_after(struct sim *s, uint64_t stream, const uint8_t *data, size_t len, uint64_t ns) {
        struct ev *e = sim_after(s, ns, deliver_up);

        e->a = stream;
        e->len = len;
        e->data = malloc(len + 1);
        if (!e->data)
                abort();
        memcpy(e->data, data, len);
}

static void remember(struct sim *s, int node, const uint8_t *data, size_t len) {
        struct old_message *o = &s->old[s->n_old++ % 64];

        free(o->data);
        *o = (struct old_message){ .data = malloc(len + 1), .len = len, .node = node };
        if (!o->data)
                abort();
        memcpy(o->data, data, len);
}

/* Some old messages once more, on whatever streams their nodes have now. */
void sim_replay(struct sim *s) {
        for (int i = 0; i < 8; i++) {
                struct old_message *o = &s->old[sim_random(s, s->n_old < 64 ? s->n_old + 1 : 64)];

                if (!o->data || !s->nodes[o->node].stream)
                        continue;
                s->replayed++;
                up_after(s, s->nodes[o->node].stream, o->data, o->len, sim_random(s, 100 * MS));
        }
}

static void partition_over(struct sim *s, struct ev *e) {
        if (s->nodes[e->a].stream == e->b && e->b)
                sim_break_stream(s, e->b);
}

void sim_partition(struct sim *s, int node, uint64_t ns, int which) {
        struct ev *e;

        sim_say(s, "%s is cut off for %.1f s (%s)", s->nodes[node].name, (double)ns / 1e9, which == 1 ? "what it says" : which == 2 ? "what it is told" : "both ways");
        s->partitions++;
        if (which & 1)
                s->nodes[node].held_up = s->now + ns;
        if (which & 2)
                s->nodes[node].held_down = s->now + ns;
        if (sim_chance(s, 50))
                return; /* all of it arrives late */
        e = sim_after(s, ns > MS ? ns - MS : 0, partition_over);
        e->a = (uint64_t)node;
        e->b = s->nodes[node].stream;
}

void sim_to_core(struct sim *s, uint64_t stream, const Fp8ctl__V1__WorkerMessage *m) {
        struct stream *t = sim_stream(s, stream);
        uint64_t at = s->now + MS / 10 + sim_random(s, s->faults ? 20 * MS : 2 * MS);
        size_t len = fp8ctl__v1__worker_message__get_packed_size(m);
        uint8_t *data;
        bool rare;

        if (!t || !t->up)
                return;
        data = malloc(len + 1);
        if (!data)
                abort();
        fp8ctl__v1__worker_message__pack(m, data);
        if (at < s->nodes[t->node].held_up)
                at = s->nodes[t->node].held_up;
        if (at <= t->last_up)
                at = t->last_up + 1;
        if (s->rank_faults && sim_random(s, 300) == 0 && m->body_case != FP8CTL__V1__WORKER_MESSAGE__BODY_HELLO) {
                s->overtaken++;
                up_after(s, stream, data, len, at - s->now + sim_random(s, 100 * MS)); /* others overtake it */
        } else {
                t->last_up = at;
                up_after(s, stream, data, len, at - s->now);
        }
        /* What belongs to a round more often and later, so that it meets the next one. */
        rare = m->body_case == FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_PARKED || m->body_case == FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_RUNNING ||
               m->body_case == FP8CTL__V1__WORKER_MESSAGE__BODY_INVENTORY;
        if (s->rank_faults && sim_random(s, rare ? 10 : 200) == 0) {
                s->doubled++;
                up_after(s, stream, data, len, at - s->now + sim_random(s, rare ? 3 * SEC : 300 * MS));
        }
        /* Heartbeats would leave no room for anything else. */
        if (s->rank_faults && m->body_case != FP8CTL__V1__WORKER_MESSAGE__BODY_HELLO && (m->body_case != FP8CTL__V1__WORKER_MESSAGE__BODY_HEARTBEAT || sim_chance(s, 5)))
                remember(s, t->node, data, len);
        free(data);
}

void sim_free(struct sim *s) {
        s->core = controller_free(s->core);
        batch_free(&s->cur);
        for (size_t i = 0; i < s->n_heap; i++) {
                if (s->heap[i]->fn == commit_batch) {
                        struct batch *b = (struct batch *)(uintptr_t)s->heap[i]->a;

                        batch_free(b);
                        free(b);
                }
                free(s->heap[i]->data);
                free(s->heap[i]);
        }
        for (size_t i = 0; i < s->n_store; i++) {
                free(s->store[i].key);
                free(s->store[i].value);
        }
        for (size_t i = 0; i < 64; i++)
                free(s->old[i].data);
        free(s->heap);
        free(s->store);
        free(s->streams);
        for (int i = 0; i < 16; i++)
                free(s->where[i]);
        free(s->started);
        free(s->group);
        free(s->group_node);
        free(s->nodes);
}
