/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/core_world.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

#define BODY(x) FP8CTL__V1__WORKER_MESSAGE__BODY_##x
#define TOLD(x) FP8CTL__V1__CONTROLLER_MESSAGE__BODY_##x

const struct caller world_admin = { .admin = true, .user = "ann" }, world_ben = { .user = "ben" };

/* Room for one more behind n: twice as much at every power of two. */
static void *more(void *list, size_t n, size_t size) {
        void *p = n & (n - 1) ? list : realloc(list, (n ? 2 * n : 1) * size);

        if (!p)
                abort();
        return p;
}

/* ------------------------------------------------------------------ struct cluster_io */
static uint64_t io_mono(void *arg) {
        return ((struct world *)arg)->now;
}

static uint64_t io_wall(void *arg) {
        return ((struct world *)arg)->wall_ms;
}

static void io_random(void *arg, void *buf, size_t len) {
        memset(buf, 7, len);
}

const struct world_kept *world_stored(const struct world *w, const char *key) {
        for (size_t i = 0; i < w->n_store; i++)
                if (strcmp(w->store[i].key, key) == 0)
                        return &w->store[i];
        return NULL;
}

size_t world_count(const struct world *w, const char *prefix) {
        size_t n = 0;

        for (size_t i = 0; i < w->n_store; i++)
                n += strncmp(w->store[i].key, prefix, strlen(prefix)) == 0;
        return n;
}

static void io_persist(void *arg, const struct store_op *op) {
        struct world *w = arg;
        struct world_kept *at = (struct world_kept *)world_stored(w, op->key);

        w->ops++;
        if (op->kind == STORE_DELETE && at) {
                free(at->key);
                free(at->value);
                *at = w->store[--w->n_store];
        }
        if (op->kind != STORE_PUT)
                return;
        if (!at) {
                w->store = more(w->store, w->n_store, sizeof(*w->store));
                at = &w->store[w->n_store++];
                *at = (struct world_kept){ .key = strdup(op->key) };
        }
        free(at->value);
        at->value = malloc(op->len + 1);
        if (!at->key || !at->value)
                abort();
        if (op->len)
                memcpy(at->value, op->value, op->len);
        at->len = op->len;
}

static void io_send(void *arg, uint64_t session, const Fp8ctl__V1__ControllerMessage *m) {
        struct world *w = arg;
        size_t len = fp8ctl__v1__controller_message__get_packed_size(m);
        uint8_t *buf = malloc(len + 1);

        if (!buf)
                abort();
        fp8ctl__v1__controller_message__pack(m, buf);
        w->sent = more(w->sent, w->n_sent, sizeof(*w->sent));
        w->sent[w->n_sent++] = (struct world_sent){ session, fp8ctl__v1__controller_message__unpack(NULL, len, buf) };
        free(buf);
        if (m->body_case == TOLD(WELCOME) && session < ARRAY_SIZE(w->lease_numbers))
                w->lease_numbers[session] = m->welcome->lease_number;
        if (m->body_case == TOLD(FETCH_REQUEST))
                w->last_relay = m->fetch_request->request;
        if (m->body_case == TOLD(PREFLIGHT_REQUEST))
                w->last_relay = m->preflight_request->request;
}

static void io_close(void *arg, uint64_t session, int status, const char *why) {
        ((struct world *)arg)->closed++;
}

static void io_reply(void *arg, uint64_t request, int status, const char *error, const ProtobufCMessage *m) {
        struct world *w = arg;

        w->replies++;
        w->status = status;
        snprintf(w->error, sizeof(w->error), "%s", error ? error : "");
        free(w->reply);
        w->reply = NULL;
        if (m) {
                w->reply_len = protobuf_c_message_get_packed_size(m);
                w->reply = malloc(w->reply_len + 1);
                if (!w->reply)
                        abort();
                protobuf_c_message_pack(m, w->reply);
        }
}

static void io_file(void *arg, const struct file_work *f) {
        struct world *w = arg;

        w->files = more(w->files, w->n_files, sizeof(*w->files));
        w->files[w->n_files] = (struct world_file){ .id = f->id, .kind = (int)f->kind };
        snprintf(w->files[w->n_files++].path, sizeof(w->files[0].path), "%s", f->path);
}

static void io_wake(void *arg, uint64_t at) {
}

/* ------------------------------------------------------------------ life */
static void start_core(struct world *w) {
        struct cluster_io io = { w, io_mono, io_wall, io_random, io_persist, io_send, io_close, io_reply, io_file, io_wake, NULL };
        struct error e = { 0 };
        int r = controller_new(&io, &w->config, &w->c, &e);

        for (size_t i = 0; r == 0 && i < w->n_store; i++)
                r = controller_load(w->c, w->store[i].key, w->store[i].value, w->store[i].len, &e);
        if (r == 0)
                r = controller_start(w->c, &e);
        if (r < 0) {
                fprintf(stderr, "%s\n", e.text);
                abort();
        }
}

struct controller *world_start_with(struct world *w, const struct controller_config *config) {
        *w = (struct world){ .now = 1000000000, .wall_ms = UINT64_C(1700000000000), .config = *config };
        start_core(w);
        return w->c;
}

struct controller *world_start(struct world *w, bool hooks) {
        struct controller_config config = { .lease_ttl_ms = 10000, .heartbeat_ms = 1000, .restart_budget_ms = 3000, .test_hooks = hooks, .version = "test" };

        return world_start_with(w, &config);
}

struct controller *world_restart(struct world *w) {
        controller_free(w->c);
        w->files_done = w->n_files;
        w->pumped = w->n_sent;
        start_core(w);
        return w->c;
}

void world_stop(struct world *w) {
        controller_free(w->c);
        for (size_t i = 0; i < w->n_sent; i++)
                fp8ctl__v1__controller_message__free_unpacked(w->sent[i].m, NULL);
        for (size_t i = 0; i < w->n_store; i++) {
                free(w->store[i].key);
                free(w->store[i].value);
        }
        for (size_t i = 0; i < w->n_said; i++)
                free(w->said[i].data);
        free(w->said);
        free(w->sent);
        free(w->store);
        free(w->files);
        free(w->reply);
}

/* ------------------------------------------------------------------ nodes and jobs */
static void attach(struct world *w, uint64_t session, const char *name, bool with_ranks) {
        Fp8ctl__V1__RankStatus list[WORLD_RANKS], *ptrs[WORLD_RANKS];
        Fp8ctl__V1__NodeDevice d[2] = { FP8CTL__V1__NODE_DEVICE__INIT, FP8CTL__V1__NODE_DEVICE__INIT }, *ds[2] = { &d[0], &d[1] };
        Fp8ctl__V1__Node n = FP8CTL__V1__NODE__INIT;
        Fp8ctl__V1__WorkerHello h = FP8CTL__V1__WORKER_HELLO__INIT;
        char *features[3] = { (char *)"standby" };
        Fp8ctl__V1__WorkerLeaving leaving = FP8CTL__V1__WORKER_LEAVING__INIT;
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;

        d[1].index = 1;
        d[0].kind = d[1].kind = (char *)(w->device_kind ? w->device_kind : "cpu");
        for (int i = 0; i < 2; i++)
                d[i].path = (char *)(w->paths[i] ? w->paths[i] : "");
        n.nics = w->nics;
        n.n_nics = w->n_nics;
        n.name = (char *)name;
        n.boot_id = (char *)(w->boot_id ? w->boot_id : "");
        n.devices = ds;
        n.n_devices = 2;
        h.protocol_min = h.protocol_max = 1;
        h.features = features;
        h.n_features = 1;
        if (w->saves_memory)
                features[h.n_features++] = (char *)"save-memory";
        if (w->rollout_hook)
                features[h.n_features++] = (char *)"rollout-hook";
        leaving.grace_ms = w->leaving_ms;
        leaving.reason = (char *)"SIGTERM";
        h.leaving = w->leaving_ms ? &leaving : NULL;
        h.node = &n;
        h.ranks = ptrs;
        for (uint32_t r = 0; with_ranks && r < WORLD_RANKS; r++) {
                Fp8ctl__V1__RankStatus *st = &list[h.n_ranks];

                if (w->ranks[r].session != session)
                        continue;
                fp8ctl__v1__rank_status__init(st);
                st->job_id = w->ranks[r].job;
                st->epoch = w->ranks[r].epoch;
                st->rank = r;
                st->incarnation = w->ranks[r].incarnation;
                st->device = r % 2;
                st->phase = w->ranks[r].phase;
                st->step = w->ranks[r].step;
                st->endpoint = (char *)"unix:/w";
                ptrs[h.n_ranks++] = st;
        }
        m.body_case = BODY(HELLO);
        m.hello = &h;
        controller_worker_opened(w->c, session, &world_admin);
        controller_worker_message(w->c, session, &m);
}

void world_attach(struct world *w, uint64_t session, const char *name) {
        attach(w, session, name, false);
}

void world_return(struct world *w) {
        for (uint32_t r = 0; r < WORLD_RANKS; r++)
                if (w->ranks[r].session)
                        w->ranks[r].session += 2;
        attach(w, 3, "a", true);
        attach(w, 4, "b", true);
}

static const char job[] = "{\"version\": 1, \"name\": \"j\", \"model\": {\"preset\": \"tiny\"}, \"data\": {\"path\": \"/data\", \"seq_len\": 32}, \"parallel\": {\"tp\": 2, \"dp\": %d},"
                          " \"train\": {\"steps\": 100, \"global_batch\": 4, \"micro_batch\": 1}, \"checkpoint\": {\"dir\": \"/ckpt%d\", \"every_steps\": 1, \"keep_last\": 3, \"local_every\": %d}%s}";

void world_submit(struct world *w, const char *id, int dp, int dir, const char *spec, bool dry_run, const struct caller *who) {
        Fp8ctl__V1__SubmitRequest q = FP8CTL__V1__SUBMIT_REQUEST__INIT;
        char text[1024];

        snprintf(text, sizeof(text), job, dp, dir, w->local_every, spec);
        q.job_file = text;
        q.request_id = (char *)id;
        q.dry_run = dry_run;
        q.skip_preflight = true;
        q.from_checkpoint = (char *)(w->from_checkpoint ? w->from_checkpoint : "");
        controller_request(w->c, 1, REQ_SUBMIT, &q.base, who);
}

uint64_t world_submitted(const struct world *w) {
        Fp8ctl__V1__SubmitReply *r = w->status == 0 ? fp8ctl__v1__submit_reply__unpack(NULL, w->reply_len, w->reply) : NULL;
        uint64_t id = r ? r->job->id : 0;

        if (r)
                fp8ctl__v1__submit_reply__free_unpacked(r, NULL);
        return id;
}

uint64_t world_run_job(struct world *w, const char *spec) {
        uint64_t id;

        world_attach(w, 1, "a");
        world_attach(w, 2, "b");
        world_submit(w, "", 2, 1, spec, false, &world_admin);
        id = world_submitted(w);
        world_pump(w);
        return id;
}

uint64_t world_start_job(struct world *w, const char *more) {
        world_start(w, false);
        return world_run_job(w, more);
}

void world_health(struct world *w, uint64_t session, Fp8ctl__V1__HealthReport *r) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;

        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_HEALTH_REPORT;
        m.health_report = r;
        controller_worker_message(w->c, session, &m);
        world_pump(w);
}

void world_say_check(struct world *w, uint64_t session, const char *name, const char *subject, const char *verdict, bool network) {
        Fp8ctl__V1__HealthReport r = FP8CTL__V1__HEALTH_REPORT__INIT;
        Fp8ctl__V1__NodeCheck k = FP8CTL__V1__NODE_CHECK__INIT, *ks[] = { &k };

        k.check = (char *)name;
        k.subject = (char *)subject;
        k.verdict = (char *)verdict;
        k.evidence = (char *)"the evidence";
        k.since_unix_ms = w->check_since_ms ? w->check_since_ms : 1;
        k.device = -1;
        k.network = network;
        r.checks = ks;
        r.n_checks = 1;
        world_health(w, session, &r);
}

Fp8ctl__V1__Node *world_node(struct world *w, const char *name) {
        Fp8ctl__V1__GetNodeRequest q = FP8CTL__V1__GET_NODE_REQUEST__INIT;

        q.name = (char *)name;
        controller_request(w->c, 4, REQ_GET_NODE, &q.base, &world_admin);
        return w->status == 0 ? fp8ctl__v1__node__unpack(NULL, w->reply_len, w->reply) : NULL;
}

Fp8ctl__V1__Job *world_job(struct world *w, uint64_t id) {
        Fp8ctl__V1__GetJobRequest q = FP8CTL__V1__GET_JOB_REQUEST__INIT;

        q.id = id;
        controller_request(w->c, 2, REQ_GET_JOB, &q.base, &world_admin);
        return w->status == 0 ? fp8ctl__v1__job__unpack(NULL, w->reply_len, w->reply) : NULL;
}

const char *world_event(struct world *w, const char *kind, char *buf, size_t size) {
        Fp8ctl__V1__ListEventsRequest q = FP8CTL__V1__LIST_EVENTS_REQUEST__INIT;
        Fp8ctl__V1__ListEventsReply *r;

        q.limit = 1000;
        buf[0] = 0;
        controller_request(w->c, 3, REQ_LIST_EVENTS, &q.base, &world_admin);
        r = fp8ctl__v1__list_events_reply__unpack(NULL, w->reply_len, w->reply);
        for (size_t i = 0; r && i < r->n_events; i++)
                if (strcmp(r->events[i]->kind, kind) == 0)
                        snprintf(buf, size, "%s", r->events[i]->text);
        if (r)
                fp8ctl__v1__list_events_reply__free_unpacked(r, NULL);
        return buf;
}

/* ------------------------------------------------------------------ what ranks say */
static void say(struct world *w, uint64_t session, Fp8ctl__V1__WorkerMessage *m) {
        struct world_said *list = realloc(w->said, (w->n_said + 1) * sizeof(*list)), *x;

        if (!list)
                abort();
        w->said = list;
        x = &list[w->n_said++];
        x->session = session;
        x->len = fp8ctl__v1__worker_message__get_packed_size(m);
        x->data = malloc(x->len + 1);
        if (!x->data)
                abort();
        fp8ctl__v1__worker_message__pack(m, x->data);
        controller_worker_message(w->c, session, m);
}

void world_say_again(struct world *w, size_t n) {
        for (size_t i = 0; i < n && i < w->n_said; i++) {
                Fp8ctl__V1__WorkerMessage *m = fp8ctl__v1__worker_message__unpack(NULL, w->said[i].len, w->said[i].data);

                if (!m)
                        abort();
                controller_worker_message(w->c, w->said[i].session, m);
                fp8ctl__v1__worker_message__free_unpacked(m, NULL);
        }
}

#define SAY(w_, r_, case_, field_, x_)                                               \
        do {                                                                         \
                Fp8ctl__V1__WorkerMessage m_ = FP8CTL__V1__WORKER_MESSAGE__INIT;     \
                (x_).job_id = (w_)->ranks[r_].job;                                   \
                (x_).epoch = (w_)->ranks[r_].epoch;                                  \
                (x_).rank = (r_);                                                    \
                (x_).incarnation = (w_)->ranks[r_].incarnation;                      \
                m_.body_case = BODY(case_);                                          \
                m_.field_ = &(x_);                                                   \
                say((w_), (w_)->ranks[r_].session, &m_);                             \
        } while (0)

static void say_prepared(struct world *w, uint32_t r, uint64_t step, uint32_t attempt, const char *error, const char *state_json) {
        Fp8ctl__V1__CheckpointPrepared x = FP8CTL__V1__CHECKPOINT_PREPARED__INIT;
        Fp8ctl__V1__ShardInfo shard = FP8CTL__V1__SHARD_INFO__INIT, *shards[1] = { &shard };
        char dir[100], file[40];

        snprintf(dir, sizeof(dir), "/ckpt1/step_%08" PRIu64 ".e%" PRIu64 ".%u", step, w->ranks[r].epoch, attempt);
        snprintf(file, sizeof(file), "shard-%05u.safetensors", r);
        shard.file = file;
        shard.bytes = 10;
        shard.digest = (char *)"00112233445566778899aabbccddeeff";
        shard.rank = r;
        x.step = step;
        x.attempt = attempt;
        x.directory = dir;
        x.shards = shards;
        x.n_shards = 1;
        x.error = (char *)error;
        x.state_json = (char *)state_json;
        SAY(w, r, CHECKPOINT_PREPARED, checkpoint_prepared, x);
}

void world_prepared_error(struct world *w, uint32_t r, uint64_t step, uint32_t attempt, const char *error) {
        say_prepared(w, r, step, attempt, error, "");
}

void world_prepared_state(struct world *w, uint32_t r, uint64_t step, const char *state_json) {
        say_prepared(w, r, step, 1, "", state_json);
}

void world_prepared(struct world *w, uint32_t r, uint64_t step, uint32_t attempt) {
        world_prepared_error(w, r, step, attempt, "");
}

void world_fault(struct world *w, uint32_t r, Fp8ctl__V1__RankFault__Kind kind, uint64_t step, const char *text) {
        uint32_t suspects[] = { 0, 1 };
        Fp8ctl__V1__RankFault x = FP8CTL__V1__RANK_FAULT__INIT;

        x.kind = kind;
        x.step = step;
        x.peer = -1;
        x.text = (char *)text;
        if (kind == FP8CTL__V1__RANK_FAULT__KIND__CHECKSUM) {
                x.clean_step = w->clean_step;
                x.suspects = suspects;
                x.n_suspects = 2;
        }
        SAY(w, r, RANK_FAULT, rank_fault, x);
}

void world_hangs_up(struct world *w, uint32_t r, int32_t peer) {
        Fp8ctl__V1__RankFault x = FP8CTL__V1__RANK_FAULT__INIT;

        x.kind = FP8CTL__V1__RANK_FAULT__KIND__PEER_LOST;
        x.peer = peer;
        x.text = (char *)"closed its connection";
        w->ranks[r].phase = FP8CTL__V1__RANK_PHASE__RANK_PARKED;
        SAY(w, r, RANK_FAULT, rank_fault, x);
}

void world_waits_in_vain(struct world *w, uint32_t r, int32_t peer) {
        Fp8ctl__V1__RankFault x = FP8CTL__V1__RANK_FAULT__INIT;

        x.kind = FP8CTL__V1__RANK_FAULT__KIND__TIMEOUT;
        x.peer = peer;
        x.text = (char *)"no progress";
        w->ranks[r].phase = FP8CTL__V1__RANK_PHASE__RANK_PARKED;
        SAY(w, r, RANK_FAULT, rank_fault, x);
}

void world_exited(struct world *w, uint32_t r, const char *cause) {
        Fp8ctl__V1__RankExited x = FP8CTL__V1__RANK_EXITED__INIT;

        x.reaped = true;
        x.signal = 9;
        x.cause = (char *)cause;
        SAY(w, r, RANK_EXITED, rank_exited, x);
}

void world_dying(struct world *w, uint32_t r) {
        Fp8ctl__V1__RankExited x = FP8CTL__V1__RANK_EXITED__INIT;

        x.cause = (char *)"";
        SAY(w, r, RANK_EXITED, rank_exited, x);
        w->ranks[r].session = w->ranks[r].job = 0; /* it says nothing more */
}

void world_done(struct world *w, uint32_t r, uint64_t step, bool stopped) {
        Fp8ctl__V1__RankDone x = FP8CTL__V1__RANK_DONE__INIT;
        Fp8ctl__V1__RankProgress g = FP8CTL__V1__RANK_PROGRESS__INIT;

        w->ranks[r].step = g.step = step;
        w->ranks[r].phase = FP8CTL__V1__RANK_PHASE__RANK_DONE;
        x.progress = &g;
        x.stopped = stopped;
        SAY(w, r, RANK_DONE, rank_done, x);
}

void world_leaving(struct world *w, uint64_t session) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__WorkerLeaving x = FP8CTL__V1__WORKER_LEAVING__INIT;

        x.grace_ms = 3000;
        x.reason = (char *)"SIGTERM";
        m.body_case = BODY(LEAVING);
        m.leaving = &x;
        say(w, session, &m);
}

void world_progress(struct world *w, uint64_t step) {
        for (uint64_t session = 1; session <= 4; session++) {
                Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
                Fp8ctl__V1__Heartbeat h = FP8CTL__V1__HEARTBEAT__INIT;
                Fp8ctl__V1__RankProgress list[WORLD_RANKS], *ptrs[WORLD_RANKS];

                for (uint32_t i = 0; i < WORLD_RANKS; i++) {
                        Fp8ctl__V1__RankProgress *g = &list[h.n_ranks];

                        if (w->ranks[i].session != session || !step)
                                continue;
                        fp8ctl__v1__rank_progress__init(g);
                        g->job_id = w->ranks[i].job;
                        g->epoch = w->ranks[i].epoch;
                        g->rank = i;
                        g->incarnation = w->ranks[i].incarnation;
                        w->ranks[i].step = g->step = step;
                        g->busy_ms = w->busy_ms[i];
                        g->n_busy_ms = N_FLIGHT_PHASES;
                        ptrs[h.n_ranks++] = g;
                }
                h.lease_number = w->lease_numbers[session];
                h.sent_mono_ns = w->now;
                h.ranks = ptrs;
                m.body_case = BODY(HEARTBEAT);
                m.heartbeat = &h;
                say(w, session, &m);
        }
}

/* ------------------------------------------------------------------ workers on which everything goes well */
static void start_ranks(struct world *w, uint64_t session, const Fp8ctl__V1__StartRanks *m) {
        for (size_t i = 0; i < m->n_ranks; i++) {
                Fp8ctl__V1__RankReady x = FP8CTL__V1__RANK_READY__INIT;
                uint32_t r = m->ranks[i]->rank;

                if (r >= WORLD_RANKS)
                        abort();
                w->ranks[r] = (struct world_rank){ .job = m->job_id, .session = session, .incarnation = m->ranks[i]->incarnation, .epoch = m->epoch, .phase = FP8CTL__V1__RANK_PHASE__RANK_PARKED };
                x.endpoint = (char *)"unix:/w";
                x.fingerprint = (char *)"test";
                x.pid = 100 + r;
                SAY(w, r, RANK_READY, rank_ready, x);
        }
}

static void abort_epoch(struct world *w, uint64_t session, const Fp8ctl__V1__AbortEpoch *m) {
        for (uint32_t r = 0; r < WORLD_RANKS; r++)
                if (w->ranks[r].job == m->job_id && w->ranks[r].session == session && w->ranks[r].epoch < m->epoch) {
                        Fp8ctl__V1__RankParked x = FP8CTL__V1__RANK_PARKED__INIT;

                        w->ranks[r].epoch = m->epoch;
                        w->ranks[r].phase = FP8CTL__V1__RANK_PHASE__RANK_PARKED;
                        SAY(w, r, RANK_PARKED, rank_parked, x);
                }
}

static void run_plan(struct world *w, uint64_t session, const Fp8ctl__V1__RankPlan *m) {
        uint64_t bad = m->load->kind == FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA ? w->bad_replicas : m->load->kind == FP8CTL__V1__LOAD_SOURCE__KIND__CHECKPOINT ? w->bad_checkpoints : 0;

        if (w->lose_plans)
                return;
        w->load_kind = m->load->kind;
        w->load_step = m->load->step;
        w->best_step = m->best_step;
        w->plans++;
        for (uint32_t r = 0; r < WORLD_RANKS; r++)
                if (w->ranks[r].job == m->job_id && w->ranks[r].session == session && w->ranks[r].epoch == m->epoch) {
                        Fp8ctl__V1__RankRunning x = FP8CTL__V1__RANK_RUNNING__INIT;

                        if (r == 0 && m->load->step < 64 && (bad >> m->load->step & 1)) {
                                world_fault(w, r, FP8CTL__V1__RANK_FAULT__KIND__LOAD_FAILED, 0, m->load->kind == FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA ? "a replica does not verify" : m->load->path);
                                return;
                        }
                        w->ranks[r].phase = FP8CTL__V1__RANK_PHASE__RANK_RUNNING;
                        w->ranks[r].step = x.step = m->load->step;
                        SAY(w, r, RANK_RUNNING, rank_running, x);
                }
}

/* Its own ranks', or of the four that there were first those that it keeps for another node. */
static bool has_generation(const struct world *w, uint64_t session, uint64_t id, uint32_t r, bool held, bool disk, uint64_t step) {
        bool own = w->ranks[r].job == id && w->ranks[r].session == session;

        if (held)
                return !own && !disk && r < 4 && (w->held >> step & 1);
        return own && ((disk ? w->disks : w->replicas) >> step & 1);
}

static void inventory(struct world *w, uint64_t session, const Fp8ctl__V1__InventoryRequest *m) {
        Fp8ctl__V1__WorkerMessage out = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__Inventory x = FP8CTL__V1__INVENTORY__INIT;
        Fp8ctl__V1__Generation list[WORLD_RANKS * 192], *ptrs[WORLD_RANKS * 192];

        for (uint32_t r = 0; r < WORLD_RANKS; r++)
                for (uint64_t i = 0; i < 192; i++) {
                        Fp8ctl__V1__Generation *g = &list[x.n_generations];
                        bool disk = i / 64 == 1, held = i / 64 == 2;

                        if (!has_generation(w, session, m->job_id, r, held, disk, i % 64))
                                continue;
                        fp8ctl__v1__generation__init(g);
                        g->rank = r;
                        g->step = i % 64;
                        g->epoch = 1;
                        g->shard_count = 4;
                        g->layout = (char *)"tp2.pp1.dp2/test";
                        g->disk = disk;
                        g->held = held;
                        ptrs[x.n_generations++] = g;
                }
        x.generations = ptrs;
        x.job_id = m->job_id;
        x.epoch = m->epoch;
        out.body_case = BODY(INVENTORY);
        out.inventory = &x;
        say(w, session, &out);
}

static void save_memory(struct world *w, uint64_t session, const Fp8ctl__V1__SaveMemory *m) {
        Fp8ctl__V1__WorkerMessage out = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__MemorySaved x = FP8CTL__V1__MEMORY_SAVED__INIT;
        Fp8ctl__V1__ShardInfo shards[WORLD_RANKS], *ptrs[WORLD_RANKS];

        if (w->lose_memory)
                return;
        for (; x.n_shards < m->n_ranks && x.n_shards < WORLD_RANKS; x.n_shards++) {
                Fp8ctl__V1__ShardInfo *s = ptrs[x.n_shards] = &shards[x.n_shards];

                fp8ctl__v1__shard_info__init(s);
                s->rank = m->ranks[x.n_shards];
                s->file = (char *)"shard.safetensors";
                s->bytes = 10;
                s->digest = (char *)"00112233445566778899aabbccddeeff";
                if (s->rank == 0)
                        x.state_json = (char *)"{\"step\": 4}";
        }
        x.job_id = m->job_id;
        x.epoch = m->epoch;
        x.step = m->step;
        x.attempt = m->attempt;
        x.shards = ptrs;
        x.error = (char *)(w->save_error ? w->save_error : "");
        out.body_case = BODY(MEMORY_SAVED);
        out.memory_saved = &x;
        say(w, session, &out);
}

static void kill_ranks(struct world *w, uint64_t session, const Fp8ctl__V1__KillRanks *m) {
        for (size_t i = 0; i < m->n_ranks; i++) {
                Fp8ctl__V1__WorkerMessage out = FP8CTL__V1__WORKER_MESSAGE__INIT;
                Fp8ctl__V1__RankExited x = FP8CTL__V1__RANK_EXITED__INIT;

                x.job_id = m->job_id;
                x.epoch = m->epoch;
                x.rank = m->ranks[i]->rank;
                x.incarnation = m->ranks[i]->incarnation;
                x.signal = 9;
                x.reaped = true;
                x.cause = (char *)"killed by SIGKILL";
                out.body_case = BODY(RANK_EXITED);
                out.rank_exited = &x;
                say(w, session, &out);
        }
}

static void release(struct world *w, uint64_t session, const Fp8ctl__V1__ReleaseJob *m) {
        for (uint32_t r = 0; r < WORLD_RANKS; r++)
                if (w->ranks[r].job == m->job_id && w->ranks[r].session == session)
                        world_exited(w, r, "exit 0");
}

/* The recorders of a session's ranks. */
static void diagnose(struct world *w, uint64_t session, const Fp8ctl__V1__DiagnoseRequest *m) {
        Fp8ctl__V1__WorkerMessage out = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__DiagnoseReply x = FP8CTL__V1__DIAGNOSE_REPLY__INIT;
        Fp8ctl__V1__RankDiagnosis d[WORLD_RANKS], *ptrs[WORLD_RANKS];
        Fp8ctl__V1__RecordedCall calls[WORLD_RANKS], *call_ptrs[WORLD_RANKS];
        uint64_t met[2] = { 10, 9 };

        for (uint32_t r = 0; r < WORLD_RANKS && w->stuck_ms; r++) {
                bool stuck = (int)r == w->stuck_rank;

                if (w->ranks[r].job != m->job_id || w->ranks[r].session != session)
                        continue;
                fp8ctl__v1__recorded_call__init(&calls[r]);
                calls[r].op = (char *)"all_gather";
                calls[r].number = stuck ? 9 : 10;
                calls[r].to = calls[r].from = -1;
                calls[r].entered_ms = stuck ? (double)w->stuck_ms + 1 : 30000;
                calls[r].left_ms = stuck ? (double)w->stuck_ms : -1;
                call_ptrs[r] = &calls[r];
                fp8ctl__v1__rank_diagnosis__init(&d[r]);
                d[r].rank = r;
                d[r].incarnation = w->ranks[r].incarnation;
                d[r].state = (char *)"sleeps";
                d[r].phase = (char *)"forward";
                d[r].phase_ms = 50000;
                d[r].timeout_ms = 30000;
                d[r].epoch = 1;
                d[r].met = &met[stuck ? 1 : 0];
                d[r].n_met = 1;
                d[r].calls = &call_ptrs[r];
                d[r].n_calls = 1;
                ptrs[x.n_ranks++] = &d[r];
        }
        x.request = m->request;
        x.ranks = ptrs;
        out.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_DIAGNOSE_REPLY;
        out.diagnose_reply = &x;
        say(w, session, &out);
}

void world_pump_files(struct world *w, int rc) {
        while (w->files_done < w->n_files)
                controller_file_done(w->c, w->files[w->files_done++].id, rc, rc ? "No space left on device" : NULL);
}

void world_pump(struct world *w) {
        while (w->pumped < w->n_sent || w->files_done < w->n_files) {
                struct world_sent s;

                world_pump_files(w, 0);
                if (w->pumped == w->n_sent)
                        continue;
                s = w->sent[w->pumped++];
                switch (s.m->body_case) {
                case TOLD(START_RANKS): start_ranks(w, s.session, s.m->start_ranks); break;
                case TOLD(ABORT_EPOCH): abort_epoch(w, s.session, s.m->abort_epoch); break;
                case TOLD(RANK_PLAN): run_plan(w, s.session, s.m->rank_plan); break;
                case TOLD(INVENTORY_REQUEST): inventory(w, s.session, s.m->inventory_request); break;
                case TOLD(SAVE_MEMORY): save_memory(w, s.session, s.m->save_memory); break;
                case TOLD(KILL_RANKS): kill_ranks(w, s.session, s.m->kill_ranks); break;
                case TOLD(DIAGNOSE_REQUEST): diagnose(w, s.session, s.m->diagnose_request); break;
                case TOLD(RELEASE_JOB): release(w, s.session, s.m->release_job); break;
                default: break;
                }
        }
}

void world_pass(struct world *w, uint64_t ms) {
        for (; ms >= 100; ms -= 100) {
                w->now += UINT64_C(100000000);
                w->wall_ms += 100;
                world_progress(w, 0);
                controller_tick(w->c);
                world_pump(w);
        }
}

/* ------------------------------------------------------------------ what the controller said */
static uint64_t step_of(const Fp8ctl__V1__ControllerMessage *m) {
        switch (m->body_case) {
        case TOLD(CHECKPOINT_COMMITTED): return m->checkpoint_committed->step;
        case TOLD(CHECKPOINT_DROPPED): return m->checkpoint_dropped->step;
        case TOLD(SAVE_NOW): return m->save_now->step;
        default: return 0;
        }
}

size_t world_told(const struct world *w, size_t since, Fp8ctl__V1__ControllerMessage__BodyCase kind, uint64_t session, uint64_t step) {
        size_t n = 0;

        for (size_t i = since; i < w->n_sent; i++)
                n += w->sent[i].m->body_case == kind && (!session || w->sent[i].session == session) && (!step || step_of(w->sent[i].m) == step);
        return n;
}

void world_lose_b(struct world *w) {
        controller_worker_closed(w->c, 2);
        world_pass(w, 11000);
        for (uint32_t r = 0; r < WORLD_RANKS; r++)
                if (w->ranks[r].session == 2)
                        w->ranks[r] = (struct world_rank){ 0 };
        world_pump(w);
}
