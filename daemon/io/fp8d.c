/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every event (a message, a request, a timer, finished file work) enters the core through one function here and ends with outbox_flush, so that what the core
 * did during the event is one transaction.  Calls are known to the core by numbers that are never used again; `calls` finds the call of a number, and a
 * number that is no longer there is a client that went away.
 */
#include "daemon/io/fp8d.h"

#include <errno.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "daemon/core/controller.h"
#include "daemon/io/file_helper.h"
#include "daemon/io/gasp_listener.h"
#include "daemon/io/outbox.h"
#include "proto/rpc_server.h"
#include "version.h"

#define BUCKETS 1024
#define SHUTDOWN_GRACE_MS 500
#define RESTART_BUDGET_MS 3000

struct link {
        uint64_t id;
        struct rpc_call *call;
        bool stream;
        struct link *next;
};

struct fp8d {
        struct loop *loop;
        struct store *store;
        struct controller *core;
        struct outbox *outbox;
        struct file_helper *files;
        struct rpc_server *local, *remote;
        struct gasp_listener *gasps; /* NULL: not asked for */
        struct loop_source *timer;
        uint64_t wake_ns; /* 0: none asked for */
        uint64_t next_id;
        struct link *calls[BUCKETS];
};

/* ------------------------------------------------------------------ calls by number */

static struct link *link_new(struct fp8d *d, struct rpc_call *call, bool stream) {
        struct link *k = calloc(1, sizeof(*k));

        if (!k)
                return NULL;
        *k = (struct link){ .id = ++d->next_id, .call = call, .stream = stream };
        k->next = d->calls[k->id % BUCKETS];
        d->calls[k->id % BUCKETS] = k;
        rpc_call_set_data(call, k);
        return k;
}

static struct link *link_find(const struct fp8d *d, uint64_t id) {
        for (struct link *k = d->calls[id % BUCKETS]; k; k = k->next)
                if (k->id == id)
                        return k;
        return NULL;
}

static void link_drop(struct fp8d *d, struct link *k) {
        for (struct link **at = &d->calls[k->id % BUCKETS]; *at; at = &(*at)->next)
                if (*at == k) {
                        *at = k->next;
                        free(k);
                        return;
                }
}

/* ------------------------------------------------------------------ what the core asks for */

static uint64_t io_mono_ns(void *arg) {
        return clock_mono_ns();
}

static uint64_t io_wall_ms(void *arg) {
        return clock_wall_ns() / NSEC_PER_MSEC;
}

static void io_random(void *arg, void *buf, size_t len) {
        for (size_t done = 0; done < len;) {
                ssize_t n = getrandom((char *)buf + done, len - done, 0);

                if (n > 0)
                        done += (size_t)n;
        }
}

static void io_persist(void *arg, const struct store_op *op) {
        outbox_persist(((struct fp8d *)arg)->outbox, op);
}

static struct outbox_item *item_new(enum outbox_kind kind, uint64_t id, int status, const char *text, const ProtobufCMessage *m) {
        struct outbox_item *i = calloc(1, sizeof(*i));

        if (!i)
                return NULL;
        i->kind = kind;
        i->id = id;
        i->status = status;
        i->text = text ? strdup(text) : NULL;
        if (m) {
                i->len = protobuf_c_message_get_packed_size(m);
                i->data = malloc(i->len ? i->len : 1);
                if (i->data)
                        protobuf_c_message_pack(m, i->data);
        }
        if ((text && !i->text) || (m && !i->data)) {
                free(i->text);
                free(i->data);
                free(i);
                return NULL;
        }
        return i;
}

static void add(struct fp8d *d, struct outbox_item *i) {
        if (i)
                outbox_add(d->outbox, i);
        else
                log_error("no memory for a message: its receiver will time out");
}

static void io_send_worker(void *arg, uint64_t session, const Fp8ctl__V1__ControllerMessage *m) {
        add(arg, item_new(OUTBOX_SEND, session, 0, NULL, &m->base));
}

static void io_close_worker(void *arg, uint64_t session, int status, const char *why) {
        add(arg, item_new(OUTBOX_CLOSE, session, status, why, NULL));
}

static void io_reply(void *arg, uint64_t request, int status, const char *error, const ProtobufCMessage *m) {
        add(arg, item_new(OUTBOX_REPLY, request, status, error, status == RPC_OK ? m : NULL));
}

static void io_file_work(void *arg, const struct file_work *w) {
        struct outbox_item *i = item_new(OUTBOX_FILE, w->id, 0, NULL, NULL);
        char *path = strdup(w->path), *text = w->text ? strdup(w->text) : NULL;
        struct fp8d *d = arg;

        if (!i || !path || (w->text && !text)) {
                free(i);
                free(path);
                free(text);
                file_helper_refuse(d->files, w->id);
                return;
        }
        i->file = *w;
        i->file.path = path;
        i->file.text = text;
        add(d, i);
}

static void io_wake_at(void *arg, uint64_t mono_ns) {
        struct fp8d *d = arg;

        if (d->wake_ns && d->wake_ns <= mono_ns)
                return;
        d->wake_ns = mono_ns ? mono_ns : 1;
        loop_timer_set(d->timer, d->wake_ns);
}

static void io_log(void *arg, int level, const char *text) {
        log_write((enum log_level)level, "%s", text);
}

/* ------------------------------------------------------------------ what leaves */

static void deliver(void *arg, const struct outbox_item *i) {
        struct fp8d *d = arg;
        struct link *k = i->kind == OUTBOX_FILE ? NULL : link_find(d, i->id);

        switch (i->kind) {
        case OUTBOX_SEND:
                if (k && rpc_call_send(k->call, i->data, i->len) < 0)
                        rpc_call_fail(k->call, RPC_RESOURCE_EXHAUSTED, "the worker does not read its stream: too many messages wait for it");
                break;
        case OUTBOX_CLOSE:
                if (k)
                        rpc_call_fail(k->call, (enum rpc_status)i->status, i->text ? i->text : "closed by the controller");
                break;
        case OUTBOX_REPLY:
                if (!k)
                        break;
                struct rpc_call *call = k->call;

                rpc_call_set_data(call, NULL);
                link_drop(d, k);
                if (i->status == RPC_OK)
                        rpc_call_reply(call, i->data, i->len);
                else
                        rpc_call_fail(call, (enum rpc_status)i->status, i->text ? i->text : "refused");
                break;
        case OUTBOX_FILE:
                file_helper_add(d->files, &i->file);
                break;
        default:
                break;
        }
}

static void store_failed(void *arg, int rc, const char *text) {
        struct fp8d *d = arg;

        log_error("the store refused a transaction: %s; stopping, the next start goes on from what is stored", text);
        controller_persist_failed(d->core, rc, text);
        loop_stop(d->loop, rc);
}

/* ------------------------------------------------------------------ what comes in */

static void on_timer(void *arg) {
        struct fp8d *d = arg;

        d->wake_ns = 0;
        controller_tick(d->core);
        outbox_flush(d->outbox);
}

static void on_file_done(void *arg, uint64_t id, int rc, const char *text) {
        struct fp8d *d = arg;

        controller_file_done(d->core, id, rc, text);
        outbox_flush(d->outbox);
}

static void on_gasp(void *arg, const void *data, size_t len) {
        struct fp8d *d = arg;

        controller_gasp(d->core, data, len);
        outbox_flush(d->outbox);
}

static void caller_from_peer(const struct rpc_peer *p, struct caller *ret) {
        struct passwd pw, *found = NULL;
        char buf[4096];

        *ret = (struct caller){ .admin = p->role == RPC_ROLE_ADMIN, .is_node = p->role == RPC_ROLE_NODE };
        snprintf(ret->is_node ? ret->node : ret->user, sizeof(ret->user), "%s", p->name);
        if (p->has_uid) {
                ret->uid = p->uid;
                ret->gid = p->gid;
        } else if (p->role == RPC_ROLE_USER && getpwnam_r(p->name, &pw, buf, sizeof(buf), &found) == 0 && found) {
                ret->uid = found->pw_uid;
                ret->gid = found->pw_gid;
        } else {
                /* A certificate whose user has no account here: nobody (65534 on Linux), never the controller's own user. */
                ret->uid = 65534;
                ret->gid = 65534;
        }
}

static const struct {
        const char *path;
        enum request_kind kind;
        const ProtobufCMessageDescriptor *type;
} requests[] = {
        { "Status", REQ_STATUS, &fp8ctl__v1__status_request__descriptor },
        { "Submit", REQ_SUBMIT, &fp8ctl__v1__submit_request__descriptor },
        { "ListJobs", REQ_LIST_JOBS, &fp8ctl__v1__list_jobs_request__descriptor },
        { "GetJob", REQ_GET_JOB, &fp8ctl__v1__get_job_request__descriptor },
        { "CancelJob", REQ_CANCEL_JOB, &fp8ctl__v1__cancel_job_request__descriptor },
        { "SaveJob", REQ_SAVE_JOB, &fp8ctl__v1__save_job_request__descriptor },
        { "ListNodes", REQ_LIST_NODES, &fp8ctl__v1__list_nodes_request__descriptor },
        { "GetNode", REQ_GET_NODE, &fp8ctl__v1__get_node_request__descriptor },
        { "ListEvents", REQ_LIST_EVENTS, &fp8ctl__v1__list_events_request__descriptor },
        { "ReadFile", REQ_READ_FILE, &fp8ctl__v1__read_file_request__descriptor },
        { "ListCheckpoints", REQ_LIST_CHECKPOINTS, &fp8ctl__v1__list_checkpoints_request__descriptor },
        { "RemoveCheckpoint", REQ_REMOVE_CHECKPOINT, &fp8ctl__v1__remove_checkpoint_request__descriptor },
        { "ScaleJob", REQ_SCALE_JOB, &fp8ctl__v1__scale_job_request__descriptor },
        { "SetNode", REQ_SET_NODE, &fp8ctl__v1__set_node_request__descriptor },
        { "DiagnoseJob", REQ_DIAGNOSE_JOB, &fp8ctl__v1__diagnose_job_request__descriptor },
        { "TestNode", REQ_TEST_NODE, &fp8ctl__v1__test_node_request__descriptor },
        { "TestPairs", REQ_TEST_PAIRS, &fp8ctl__v1__test_pairs_request__descriptor },
        { "StartRollout", REQ_START_ROLLOUT, &fp8ctl__v1__start_rollout_request__descriptor },
        { "ListRollouts", REQ_LIST_ROLLOUTS, &fp8ctl__v1__list_rollouts_request__descriptor },
        { "GetRollout", REQ_GET_ROLLOUT, &fp8ctl__v1__get_rollout_request__descriptor },
        { "SetRollout", REQ_SET_ROLLOUT, &fp8ctl__v1__set_rollout_request__descriptor },
};
#define N_REQUESTS ARRAY_SIZE(requests)

static void on_request(struct fp8d *d, struct rpc_call *call, const uint8_t *data, size_t len, size_t which) {
        const struct rpc_peer *peer = rpc_call_peer(call);
        ProtobufCMessage *m;
        struct caller who;
        struct link *k;

        if (peer->role != RPC_ROLE_ADMIN && peer->role != RPC_ROLE_USER) {
                rpc_call_fail(call, RPC_PERMISSION_DENIED, "this certificate or user may not ask the controller: expected CN 'admin' or 'user:NAME'");
                return;
        }
        m = protobuf_c_message_unpack(requests[which].type, NULL, len, data);
        if (!m) {
                rpc_call_fail(call, RPC_INVALID_ARGUMENT, "the request cannot be decoded: see fp8ctl.proto");
                return;
        }
        k = link_new(d, call, false);
        if (k) {
                caller_from_peer(peer, &who);
                controller_request(d->core, k->id, requests[which].kind, m, &who);
                outbox_flush(d->outbox);
        } else {
                rpc_call_fail(call, RPC_RESOURCE_EXHAUSTED, "no memory");
        }
        protobuf_c_message_free_unpacked(m, NULL);
}

/* gRPC methods carry no number: one function a row of `requests`. */
#define REQUEST(i)                                                                                      \
        static void on_request_##i(void *arg, struct rpc_call *c, const uint8_t *data, size_t len) {   \
                on_request(arg, c, data, len, i);                                                       \
        }
REQUEST(0)
REQUEST(1)
REQUEST(2)
REQUEST(3)
REQUEST(4)
REQUEST(5)
REQUEST(6)
REQUEST(7)
REQUEST(8)
REQUEST(9)
REQUEST(10)
REQUEST(11)
REQUEST(12)
REQUEST(13)
REQUEST(14)
REQUEST(15)
REQUEST(16)
REQUEST(17)
REQUEST(18)
REQUEST(19)
REQUEST(20)

static void on_request_gone(void *arg, struct rpc_call *call) {
        struct fp8d *d = arg;
        struct link *k = rpc_call_data(call);

        if (!k)
                return;
        controller_request_gone(d->core, k->id);
        link_drop(d, k);
        outbox_flush(d->outbox);
}

static void on_worker_opened(void *arg, struct rpc_call *call) {
        struct fp8d *d = arg;
        const struct rpc_peer *peer = rpc_call_peer(call);
        struct caller who;
        struct link *k;

        if (peer->role != RPC_ROLE_NODE && peer->role != RPC_ROLE_ADMIN) {
                rpc_call_fail(call, RPC_PERMISSION_DENIED, "only a worker's certificate (CN 'node:NAME') may attach");
                return;
        }
        k = link_new(d, call, true);
        if (!k) {
                rpc_call_fail(call, RPC_RESOURCE_EXHAUSTED, "no memory");
                return;
        }
        caller_from_peer(peer, &who);
        controller_worker_opened(d->core, k->id, &who);
        outbox_flush(d->outbox);
}

static void on_worker_message(void *arg, struct rpc_call *call, const uint8_t *data, size_t len) {
        struct fp8d *d = arg;
        struct link *k = rpc_call_data(call);
        Fp8ctl__V1__WorkerMessage *m;

        if (!k)
                return;
        m = fp8ctl__v1__worker_message__unpack(NULL, len, data);
        if (!m) {
                rpc_call_fail(call, RPC_INVALID_ARGUMENT, "a message of the worker cannot be decoded: see fp8ctl.proto");
                return;
        }
        controller_worker_message(d->core, k->id, m);
        outbox_flush(d->outbox);
        fp8ctl__v1__worker_message__free_unpacked(m, NULL);
}

static void on_worker_closed(void *arg, struct rpc_call *call) {
        struct fp8d *d = arg;
        struct link *k = rpc_call_data(call);

        if (!k)
                return;
        controller_worker_closed(d->core, k->id);
        link_drop(d, k);
        outbox_flush(d->outbox);
}

#define UNARY(name, i) { .path = "/fp8ctl.v1.Cluster/" name, .on_message = on_request_##i, .on_closed = on_request_gone }
static const struct rpc_method methods[] = {
        UNARY("Status", 0),
        UNARY("Submit", 1),
        UNARY("ListJobs", 2),
        UNARY("GetJob", 3),
        UNARY("CancelJob", 4),
        UNARY("SaveJob", 5),
        UNARY("ListNodes", 6),
        UNARY("GetNode", 7),
        UNARY("ListEvents", 8),
        UNARY("ReadFile", 9),
        UNARY("ListCheckpoints", 10),
        UNARY("RemoveCheckpoint", 11),
        UNARY("ScaleJob", 12),
        UNARY("SetNode", 13),
        UNARY("DiagnoseJob", 14),
        UNARY("TestNode", 15),
        UNARY("TestPairs", 16),
        UNARY("StartRollout", 17),
        UNARY("ListRollouts", 18),
        UNARY("GetRollout", 19),
        UNARY("SetRollout", 20),
        { .path = "/fp8ctl.v1.WorkerService/Attach", .stream = true, .on_opened = on_worker_opened, .on_message = on_worker_message, .on_closed = on_worker_closed },
};
_Static_assert(ARRAY_SIZE(methods) == N_REQUESTS + 1, "a method for each request, and the workers' stream");

/* ------------------------------------------------------------------ start and end */

static int load_record(void *arg, const char *key, const void *value, size_t len) {
        struct fp8d *d = arg;
        struct error e = { 0 };
        int r = controller_load(d->core, key, value, len, &e);

        if (r < 0)
                log_error("store: %s: %s", key, e.text);
        return r;
}

static int open_store(struct fp8d *d, const struct fp8d_config *c, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/fp8d.db", c->state_dir);
        int r;

        if (!path)
                return error_errno(e, ENOMEM, "store");
        r = file_mkdir_p(c->state_dir, 0700, e);
        if (r == 0)
                r = store_open(path, &d->store, e);
        return r;
}

static int start_core(struct fp8d *d, const struct fp8d_config *c, struct error *e) {
        const struct cluster_io io = { .arg = d, .mono_ns = io_mono_ns, .wall_ms = io_wall_ms, .random = io_random, .persist = io_persist, .send_worker = io_send_worker,
                                       .close_worker = io_close_worker, .reply = io_reply, .file_work = io_file_work, .wake_at = io_wake_at, .log = io_log };
        const struct controller_config config = { .lease_ttl_ms = c->lease_ttl_ms, .heartbeat_ms = c->heartbeat_ms, .restart_budget_ms = RESTART_BUDGET_MS,
                                                  .keep_jobs = c->keep_jobs, .keep_event_days = c->keep_event_days, .test_hooks = c->test_hooks, .health_share = c->health_share,
                                                  .health_window_ms = c->health_window_ms, .health_settle_ms = c->health_settle_ms, .gasps = c->panic_listen != NULL, .test_nodes = c->test_nodes, .version = FP8CTL_VERSION };
        int r = controller_new(&io, &config, &d->core, e);

        if (r == 0)
                r = store_scan(d->store, "", load_record, d, e);
        if (r < 0)
                return error_prefix(e, "cannot load the store"), r;
        r = controller_start(d->core, e);
        if (r == 0)
                outbox_flush(d->outbox);
        return r;
}

static int start_servers(struct fp8d *d, const struct fp8d_config *c, struct error *e) {
        _cleanup_free_ char *address = c->socket ? file_path("unix:%s", c->socket) : NULL;
        struct rpc_server_config s = { .loop = d->loop, .methods = methods, .n_methods = ARRAY_SIZE(methods), .arg = d, .address = address,
                                       .socket_mode = c->group ? 0660 : 0600, .socket_group = c->group };
        int r = 0;

        if (c->socket && !address)
                return error_errno(e, ENOMEM, "server");
        if (c->socket)
                r = rpc_server_new(&s, &d->local, e);
        if (r == 0 && c->listen) {
                s.address = c->listen;
                s.tls = c->tls;
                r = rpc_server_new(&s, &d->remote, e);
        }
        if (r == 0 && c->panic_listen)
                r = gasp_listener_new(d->loop, c->panic_listen, on_gasp, d, &d->gasps, e);
        return r;
}

int fp8d_new(struct loop *l, const struct fp8d_config *c, struct fp8d **ret, struct error *e) {
        struct fp8d *d = calloc(1, sizeof(*d));
        int r;

        if (!d)
                return error_errno(e, ENOMEM, "fp8d");
        d->loop = l;
        r = open_store(d, c, e);
        if (r == 0)
                r = outbox_new(l, d->store, deliver, store_failed, d, &d->outbox, e);
        if (r == 0)
                r = file_helper_new(l, on_file_done, d, &d->files, e);
        if (r == 0)
                r = loop_add_timer(l, 0, on_timer, d, &d->timer);
        if (r == 0)
                r = start_core(d, c, e);
        if (r == 0)
                r = start_servers(d, c, e);
        if (r < 0) {
                fp8d_free(d);
                return r;
        }
        *ret = d;
        return 0;
}

struct fp8d *fp8d_free(struct fp8d *d) {
        if (!d)
                return NULL;
        rpc_server_free(d->remote, SHUTDOWN_GRACE_MS);
        rpc_server_free(d->local, SHUTDOWN_GRACE_MS);
        gasp_listener_free(d->gasps);
        file_helper_free(d->files);
        outbox_free(d->outbox);
        loop_remove(d->timer);
        controller_free(d->core);
        store_close(d->store);
        for (size_t i = 0; i < BUCKETS; i++)
                while (d->calls[i])
                        link_drop(d, d->calls[i]);
        free(d);
        return NULL;
}
