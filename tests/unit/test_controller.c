/* SPDX-License-Identifier: Apache-2.0 */
/* What the core answers to clients, and that nothing a worker sends can harm it: absent parts, strangers' names, random bytes. */
#include "daemon/core/controller.h"

#include "base/cleanup.h"
#include "tests/test.h"

struct world {
        uint64_t now, replies, sent, closed, ops;
        int status;
        char error[1200];
        uint8_t *reply;
        size_t reply_len;
        Fp8ctl__V1__ControllerMessage__BodyCase last;
        uint64_t last_relay;
};

static uint64_t mono(void *arg) {
        return ((struct world *)arg)->now;
}
static uint64_t wall(void *arg) {
        return UINT64_C(1700000000000);
}
static void rnd(void *arg, void *buf, size_t len) {
        memset(buf, 7, len);
}
static void persist(void *arg, const struct store_op *op) {
        ((struct world *)arg)->ops++;
}
static void to_worker(void *arg, uint64_t session, const Fp8ctl__V1__ControllerMessage *m) {
        struct world *w = arg;

        w->sent++;
        w->last = m->body_case;
        if (m->body_case == FP8CTL__V1__CONTROLLER_MESSAGE__BODY_FETCH_REQUEST)
                w->last_relay = m->fetch_request->request;
        if (m->body_case == FP8CTL__V1__CONTROLLER_MESSAGE__BODY_PREFLIGHT_REQUEST)
                w->last_relay = m->preflight_request->request;
}
static void close_worker(void *arg, uint64_t session, int status, const char *why) {
        ((struct world *)arg)->closed++;
}
static void reply(void *arg, uint64_t request, int status, const char *error, const ProtobufCMessage *m) {
        struct world *w = arg;

        w->replies++;
        w->status = status;
        snprintf(w->error, sizeof(w->error), "%s", error ? error : "");
        free(w->reply);
        w->reply = NULL;
        if (m) {
                w->reply_len = protobuf_c_message_get_packed_size(m);
                w->reply = malloc(w->reply_len + 1);
                CU_ASSERT_PTR_NOT_NULL_FATAL(w->reply);
                protobuf_c_message_pack(m, w->reply);
        }
}
static void file_work(void *arg, const struct file_work *f) {
}
static void wake(void *arg, uint64_t at) {
}

static struct controller *start(struct world *w, bool hooks) {
        struct cluster_io io = { w, mono, wall, rnd, persist, to_worker, close_worker, reply, file_work, wake, NULL };
        struct controller_config config = { .lease_ttl_ms = 10000, .heartbeat_ms = 1000, .restart_budget_ms = 3000, .test_hooks = hooks, .version = "test" };
        struct controller *c = NULL;
        struct error e = { 0 };

        *w = (struct world){ .now = 1000000000 };
        ASSERT_OK(controller_new(&io, &config, &c, &e), e);
        ASSERT_OK(controller_start(c, &e), e);
        return c;
}

static void stop(struct controller *c, struct world *w) {
        controller_free(c);
        free(w->reply);
}

static const struct caller admin = { .admin = true, .user = "ann" }, ben = { .user = "ben" };

static void attach(struct controller *c, uint64_t session, const char *name) {
        Fp8ctl__V1__NodeDevice d[2] = { FP8CTL__V1__NODE_DEVICE__INIT, FP8CTL__V1__NODE_DEVICE__INIT }, *ds[2] = { &d[0], &d[1] };
        Fp8ctl__V1__Node n = FP8CTL__V1__NODE__INIT;
        Fp8ctl__V1__WorkerHello h = FP8CTL__V1__WORKER_HELLO__INIT;
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;

        d[1].index = 1;
        d[0].kind = d[1].kind = (char *)"cpu";
        n.name = (char *)name;
        n.devices = ds;
        n.n_devices = 2;
        h.protocol_min = h.protocol_max = 1;
        h.node = &n;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_HELLO;
        m.hello = &h;
        controller_worker_opened(c, session, &admin);
        controller_worker_message(c, session, &m);
}

static const char job[] = "{\"version\": 1, \"name\": \"j\", \"model\": {\"preset\": \"tiny\"}, \"data\": {\"path\": \"/data\", \"seq_len\": 32}, \"parallel\": {\"tp\": 2, \"dp\": %d},"
                          " \"train\": {\"steps\": 100, \"global_batch\": 4, \"micro_batch\": 1}, \"checkpoint\": {\"dir\": \"/ckpt%d\"}%s}";

static void submit(struct controller *c, const char *id, int dp, int dir, const char *more, bool dry_run, const struct caller *who) {
        Fp8ctl__V1__SubmitRequest q = FP8CTL__V1__SUBMIT_REQUEST__INIT;
        char text[1024];

        snprintf(text, sizeof(text), job, dp, dir, more);
        q.job_file = text;
        q.request_id = (char *)id;
        q.dry_run = dry_run;
        q.skip_preflight = true;
        controller_request(c, 1, REQ_SUBMIT, &q.base, who);
}

static uint64_t submitted(const struct world *w) {
        Fp8ctl__V1__SubmitReply *r = fp8ctl__v1__submit_reply__unpack(NULL, w->reply_len, w->reply);
        uint64_t id;

        CU_ASSERT_PTR_NOT_NULL_FATAL(r);
        id = r->job->id;
        fp8ctl__v1__submit_reply__free_unpacked(r, NULL);
        return id;
}

TEST(submit_is_idempotent_and_belongs_to_its_user) {
        struct world w;
        struct controller *c = start(&w, false);
        Fp8ctl__V1__CancelJobRequest q = FP8CTL__V1__CANCEL_JOB_REQUEST__INIT;
        uint64_t id;

        attach(c, 1, "a");
        submit(c, "r1", 1, 1, "", false, &admin);
        CU_ASSERT_EQUAL_FATAL(w.status, 0);
        id = submitted(&w);
        CU_ASSERT_EQUAL(id, 1);
        submit(c, "r1", 1, 1, "", false, &admin);
        CU_ASSERT_EQUAL(submitted(&w), id);
        submit(c, "r1", 1, 1, "", false, &ben);
        CU_ASSERT_EQUAL(w.status, 7);
        q.id = id;
        controller_request(c, 2, REQ_CANCEL_JOB, &q.base, &ben);
        CU_ASSERT_EQUAL(w.status, 7);
        controller_request(c, 3, REQ_CANCEL_JOB, &q.base, &admin);
        CU_ASSERT_EQUAL(w.status, 0);
        stop(c, &w);
}

TEST(refusals_say_what_was_found) {
        struct world w;
        struct controller *c = start(&w, false);
        uint64_t ops;

        attach(c, 1, "a");
        ops = w.ops;
        submit(c, "", 2, 1, "", false, &admin);
        CU_ASSERT_EQUAL(w.status, 3);
        CU_ASSERT_PTR_NOT_NULL(strstr(w.error, "'parallel'"));
        submit(c, "", 1, 1, ", \"test\": {\"slow_ms\": 5}", false, &admin);
        CU_ASSERT_EQUAL(w.status, 3);
        CU_ASSERT_PTR_NOT_NULL(strstr(w.error, "test hooks"));
        submit(c, "", 1, 1, ", \"nonsense\": 5", false, &admin);
        CU_ASSERT_EQUAL(w.status, 3);
        submit(c, "", 1, 1, "", true, &admin);
        CU_ASSERT_EQUAL(w.status, 0);
        CU_ASSERT_EQUAL(w.ops, ops); /* nothing was stored by any of them */
        submit(c, "", 1, 1, "", false, &admin);
        CU_ASSERT_EQUAL(w.status, 0);
        submit(c, "", 1, 1, "", false, &admin);
        CU_ASSERT_EQUAL(w.status, 3);
        CU_ASSERT_PTR_NOT_NULL(strstr(w.error, "checkpoint.dir"));
        submit(c, "", 1, 2, "", false, &admin);
        CU_ASSERT_EQUAL(w.status, 0); /* waits */
        stop(c, &w);
        c = start(&w, true);
        attach(c, 1, "a");
        submit(c, "", 1, 1, ", \"test\": {\"slow_ms\": 5}", false, &admin);
        CU_ASSERT_EQUAL(w.status, 0);
        stop(c, &w);
}

TEST(events_are_waited_for) {
        struct world w;
        struct controller *c = start(&w, false);
        Fp8ctl__V1__ListEventsRequest q = FP8CTL__V1__LIST_EVENTS_REQUEST__INIT;
        uint64_t before;

        q.after_id = 1;
        q.wait_ms = 1000;
        before = w.replies;
        controller_request(c, 5, REQ_LIST_EVENTS, &q.base, &admin);
        CU_ASSERT_EQUAL(w.replies, before);
        attach(c, 1, "a");
        CU_ASSERT_EQUAL(w.replies, before + 1);
        q.after_id = 100;
        controller_request(c, 6, REQ_LIST_EVENTS, &q.base, &admin);
        w.now += UINT64_C(1100000000);
        controller_tick(c);
        CU_ASSERT_EQUAL(w.replies, before + 2);
        controller_request(c, 7, REQ_LIST_EVENTS, &q.base, &admin);
        controller_request_gone(c, 7);
        w.now += UINT64_C(1100000000);
        controller_tick(c);
        CU_ASSERT_EQUAL(w.replies, before + 2);
        stop(c, &w);
}

TEST(after_a_refused_transaction_nothing_more_is_done) {
        struct world w;
        struct controller *c = start(&w, false);
        Fp8ctl__V1__StatusRequest q = FP8CTL__V1__STATUS_REQUEST__INIT;

        controller_persist_failed(c, -ECANCELED, "an epoch moved");
        controller_request(c, 5, REQ_STATUS, &q.base, &admin);
        CU_ASSERT_EQUAL(w.status, 14);
        w.sent = 0;
        attach(c, 1, "a");
        CU_ASSERT_EQUAL(w.sent, 0);
        stop(c, &w);
}

TEST(a_user_may_not_attach_a_node) {
        struct world w;
        struct controller *c = start(&w, false);
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__WorkerHello h = FP8CTL__V1__WORKER_HELLO__INIT;
        Fp8ctl__V1__Node n = FP8CTL__V1__NODE__INIT;
        struct caller node = { .is_node = true, .node = "b" };

        h.protocol_min = h.protocol_max = 1;
        h.node = &n;
        n.name = (char *)"a";
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_HELLO;
        m.hello = &h;
        controller_worker_opened(c, 1, &ben);
        controller_worker_message(c, 1, &m);
        CU_ASSERT_EQUAL(w.closed, 1);
        controller_worker_opened(c, 2, &node);
        controller_worker_message(c, 2, &m);
        CU_ASSERT_EQUAL(w.closed, 2);
        h.protocol_min = 9;
        h.protocol_max = 12;
        controller_worker_opened(c, 3, &admin);
        controller_worker_message(c, 3, &m);
        CU_ASSERT_EQUAL(w.closed, 3);
        stop(c, &w);
}

/* Each kind of message with nothing in it, then with an empty submessage. */
TEST(absent_parts_are_dropped_and_counted) {
        struct world w;
        struct controller *c = start(&w, false);
        Fp8ctl__V1__StatusRequest q = FP8CTL__V1__STATUS_REQUEST__INIT;
        Fp8ctl__V1__StatusReply *r;

        attach(c, 1, "a");
        submit(c, "", 1, 1, "", false, &admin);
        for (int kind = 0; kind <= 16; kind++) {
                Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;

                m.body_case = (Fp8ctl__V1__WorkerMessage__BodyCase)kind;
                controller_worker_message(c, 1, &m);
                if (kind >= 1 && kind <= 14) {
                        uint8_t bytes[2] = { (uint8_t)(kind << 3 | 2), 0 };
                        Fp8ctl__V1__WorkerMessage *u = fp8ctl__v1__worker_message__unpack(NULL, 2, bytes);

                        CU_ASSERT_PTR_NOT_NULL_FATAL(u);
                        controller_worker_message(c, 1, u);
                        fp8ctl__v1__worker_message__free_unpacked(u, NULL);
                }
        }
        controller_request(c, 9, REQ_STATUS, &q.base, &admin);
        r = fp8ctl__v1__status_reply__unpack(NULL, w.reply_len, w.reply);
        CU_ASSERT_PTR_NOT_NULL_FATAL(r);
        CU_ASSERT(r->dropped_messages >= 16);
        fp8ctl__v1__status_reply__free_unpacked(r, NULL);
        stop(c, &w);
}

/* Well-formed messages with random numbers in every field, small enough to hit what exists. */
TEST(random_messages_do_no_harm) {
        unsigned seed = 1;

        for (int round = 0; round < 300; round++) {
                struct world w;
                struct controller *c = start(&w, false);

                attach(c, 1, "a");
                submit(c, "", 1, 1, "", false, &admin);
                for (int i = 0; i < 60; i++) {
                        uint8_t inner[64], bytes[80];
                        size_t n = 0;
                        Fp8ctl__V1__WorkerMessage *m;

                        for (int f = 1; f <= 10 && n + 4 < sizeof(inner); f++) {
                                if (rand_r(&seed) % 4 == 0)
                                        continue;
                                if (rand_r(&seed) % 4) {
                                        inner[n++] = (uint8_t)(f << 3);
                                        inner[n++] = (uint8_t)(rand_r(&seed) % 4);
                                } else {
                                        inner[n++] = (uint8_t)(f << 3 | 2);
                                        inner[n++] = 1;
                                        inner[n++] = (uint8_t)(rand_r(&seed) % 2 ? 'x' : rand_r(&seed) % 256);
                                }
                        }
                        bytes[0] = (uint8_t)((1 + rand_r(&seed) % 14) << 3 | 2);
                        bytes[1] = (uint8_t)n;
                        memcpy(bytes + 2, inner, n);
                        m = fp8ctl__v1__worker_message__unpack(NULL, n + 2, bytes);
                        if (m)
                                controller_worker_message(c, 1, m);
                        if (m)
                                fp8ctl__v1__worker_message__free_unpacked(m, NULL);
                        w.now += (uint64_t)(rand_r(&seed) % 1000) * 1000000;
                        controller_tick(c);
                }
                controller_worker_closed(c, 1);
                stop(c, &w);
        }
}

TEST_MAIN("controller")
