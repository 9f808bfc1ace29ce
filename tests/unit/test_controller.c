/* SPDX-License-Identifier: Apache-2.0 */
/* What the core answers to clients, and that nothing a worker sends can harm it: absent parts, strangers' names, random bytes. */
#include "daemon/core/core.h"
#include "tests/test.h"
#include "tests/unit/core_world.h"

TEST(submit_is_idempotent_and_belongs_to_its_user) {
        struct world w;
        struct controller *c = world_start(&w, false);
        Fp8ctl__V1__CancelJobRequest q = FP8CTL__V1__CANCEL_JOB_REQUEST__INIT;
        uint64_t id;

        world_attach(&w, 1, "a");
        world_submit(&w, "r1", 1, 1, "", false, &world_admin);
        CU_ASSERT_EQUAL_FATAL(w.status, 0);
        id = world_submitted(&w);
        CU_ASSERT_EQUAL(id, 1);
        world_submit(&w, "r1", 1, 1, "", false, &world_admin);
        CU_ASSERT_EQUAL(world_submitted(&w), id);
        world_submit(&w, "r1", 1, 1, "", false, &world_ben);
        CU_ASSERT_EQUAL(w.status, 7);
        q.id = id;
        controller_request(c, 2, REQ_CANCEL_JOB, &q.base, &world_ben);
        CU_ASSERT_EQUAL(w.status, 7);
        controller_request(c, 3, REQ_CANCEL_JOB, &q.base, &world_admin);
        CU_ASSERT_EQUAL(w.status, 0);
        world_stop(&w);
}

TEST(refusals_say_what_was_found) {
        struct world w;
        uint64_t ops;

        world_start(&w, false);
        world_attach(&w, 1, "a");
        ops = w.ops;
        world_submit(&w, "", 2, 1, "", false, &world_admin);
        CU_ASSERT_EQUAL(w.status, 3);
        CU_ASSERT_PTR_NOT_NULL(strstr(w.error, "'parallel'"));
        world_submit(&w, "", 1, 1, ", \"test\": {\"slow_ms\": 5}", false, &world_admin);
        CU_ASSERT_EQUAL(w.status, 3);
        CU_ASSERT_PTR_NOT_NULL(strstr(w.error, "test hooks"));
        world_submit(&w, "", 1, 1, ", \"nonsense\": 5", false, &world_admin);
        CU_ASSERT_EQUAL(w.status, 3);
        world_submit(&w, "", 1, 1, "", true, &world_admin);
        CU_ASSERT_EQUAL(w.status, 0);
        CU_ASSERT_EQUAL(w.ops, ops); /* nothing was stored by any of them */
        world_submit(&w, "", 1, 1, "", false, &world_admin);
        CU_ASSERT_EQUAL(w.status, 0);
        world_submit(&w, "", 1, 1, "", false, &world_admin);
        CU_ASSERT_EQUAL(w.status, 3);
        CU_ASSERT_PTR_NOT_NULL(strstr(w.error, "checkpoint.dir"));
        world_submit(&w, "", 1, 2, "", false, &world_admin);
        CU_ASSERT_EQUAL(w.status, 0); /* waits */
        world_stop(&w);
        world_start(&w, true);
        world_attach(&w, 1, "a");
        world_submit(&w, "", 1, 1, ", \"test\": {\"slow_ms\": 5}", false, &world_admin);
        CU_ASSERT_EQUAL(w.status, 0);
        world_stop(&w);
}

TEST(events_are_waited_for) {
        struct world w;
        struct controller *c = world_start(&w, false);
        Fp8ctl__V1__ListEventsRequest q = FP8CTL__V1__LIST_EVENTS_REQUEST__INIT;
        uint64_t before;

        q.after_id = 1;
        q.wait_ms = 1000;
        before = w.replies;
        controller_request(c, 5, REQ_LIST_EVENTS, &q.base, &world_admin);
        CU_ASSERT_EQUAL(w.replies, before);
        world_attach(&w, 1, "a");
        CU_ASSERT_EQUAL(w.replies, before + 1);
        q.after_id = 100;
        controller_request(c, 6, REQ_LIST_EVENTS, &q.base, &world_admin);
        w.now += UINT64_C(1100000000);
        controller_tick(c);
        CU_ASSERT_EQUAL(w.replies, before + 2);
        controller_request(c, 7, REQ_LIST_EVENTS, &q.base, &world_admin);
        controller_request_gone(c, 7);
        w.now += UINT64_C(1100000000);
        controller_tick(c);
        CU_ASSERT_EQUAL(w.replies, before + 2);
        world_stop(&w);
}

/* The text of the first and of the last event of the reply. */
static void expect_events(struct controller *c, struct world *w, bool newest, uint32_t limit, const char *first, const char *last) {
        Fp8ctl__V1__ListEventsRequest q = FP8CTL__V1__LIST_EVENTS_REQUEST__INIT;
        Fp8ctl__V1__ListEventsReply *r;

        q.limit = limit;
        q.newest = newest;
        controller_request(c, 9, REQ_LIST_EVENTS, &q.base, &world_admin);
        r = fp8ctl__v1__list_events_reply__unpack(NULL, w->reply_len, w->reply);
        CU_ASSERT_FATAL(r && r->n_events == limit);
        CU_ASSERT_STRING_EQUAL(r->events[0]->text, first);
        CU_ASSERT_STRING_EQUAL(r->events[limit - 1]->text, last);
        fp8ctl__v1__list_events_reply__free_unpacked(r, NULL);
}

TEST(the_newest_events_are_listed_in_order) {
        struct world w;
        struct controller *c = world_start(&w, false);

        for (int i = 0; i < 300; i++)
                event_add(c, &(struct event_of){ .rank = -1 }, "test", "%d", i);
        expect_events(c, &w, true, 200, "100", "299");
        expect_events(c, &w, true, 1, "299", "299");
        for (int i = 300; i < 3000; i++)
                event_add(c, &(struct event_of){ .rank = -1 }, "test", "%d", i);
        expect_events(c, &w, true, 3, "2997", "2999");
        expect_events(c, &w, false, 3, "1000", "1002"); /* the 2000 newest are kept */
        world_stop(&w);
}

static void ask_rows(struct world *w, uint64_t job, const char *node, const struct caller *who) {
        Fp8ctl__V1__ReadFileRequest q = FP8CTL__V1__READ_FILE_REQUEST__INIT;

        q.job_id = job;
        q.kind = FP8CTL__V1__FILE_KIND__METRICS;
        q.rank = -1;
        q.node = (char *)(uintptr_t)node;
        controller_request(w->c, 70, REQ_READ_FILE, &q.base, who);
}

/* Rows stay on the node whose rank wrote them: a rank that has moved is asked for there too. */
TEST(metrics_are_read_from_nodes_where_the_reporting_rank_was) {
        struct world w;
        uint64_t id = world_start_job(&w, ""); /* rank 0, which reports, is on a: session 1 */
        size_t sent = w.n_sent;

        ask_rows(&w, id, "", &world_admin);
        CU_ASSERT_EQUAL(world_told(&w, sent, FP8CTL__V1__CONTROLLER_MESSAGE__BODY_FETCH_REQUEST, 1, 0), 1);
        ask_rows(&w, id, "b", &world_admin);
        CU_ASSERT_EQUAL(world_told(&w, sent, FP8CTL__V1__CONTROLLER_MESSAGE__BODY_FETCH_REQUEST, 2, 0), 1);
        w.status = -1;
        ask_rows(&w, id, "a", &world_admin); /* those come without a name */
        CU_ASSERT_EQUAL(w.status, 0);
        ask_rows(&w, id, "c", &world_admin);
        CU_ASSERT_EQUAL(w.status, ST_NOT_FOUND);
        CU_ASSERT_PTR_NOT_NULL(strstr(w.error, "node 'c' is not known"));
        ask_rows(&w, id, "b", &world_ben);
        CU_ASSERT_NOT_EQUAL(w.status, 0);
        CU_ASSERT_EQUAL(w.n_sent, sent + 2);
        world_stop(&w);
}

TEST(after_a_refused_transaction_nothing_more_is_done) {
        struct world w;
        struct controller *c = world_start(&w, false);
        size_t sent;
        Fp8ctl__V1__StatusRequest q = FP8CTL__V1__STATUS_REQUEST__INIT;

        controller_persist_failed(c, -ECANCELED, "an epoch moved");
        controller_request(c, 5, REQ_STATUS, &q.base, &world_admin);
        CU_ASSERT_EQUAL(w.status, 14);
        sent = w.n_sent;
        world_attach(&w, 1, "a");
        CU_ASSERT_EQUAL(w.n_sent, sent);
        world_stop(&w);
}

TEST(a_user_may_not_attach_a_node) {
        struct world w;
        struct controller *c = world_start(&w, false);
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__WorkerHello h = FP8CTL__V1__WORKER_HELLO__INIT;
        Fp8ctl__V1__Node n = FP8CTL__V1__NODE__INIT;
        struct caller node = { .is_node = true, .node = "b" };

        h.protocol_min = h.protocol_max = 1;
        h.node = &n;
        n.name = (char *)"a";
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_HELLO;
        m.hello = &h;
        controller_worker_opened(c, 1, &world_ben);
        controller_worker_message(c, 1, &m);
        CU_ASSERT_EQUAL(w.closed, 1);
        controller_worker_opened(c, 2, &node);
        controller_worker_message(c, 2, &m);
        CU_ASSERT_EQUAL(w.closed, 2);
        h.protocol_min = 9;
        h.protocol_max = 12;
        controller_worker_opened(c, 3, &world_admin);
        controller_worker_message(c, 3, &m);
        CU_ASSERT_EQUAL(w.closed, 3);
        world_stop(&w);
}

static uint64_t dropped_by(struct world *w, const char *name) {
        Fp8ctl__V1__GetNodeRequest q = FP8CTL__V1__GET_NODE_REQUEST__INIT;
        Fp8ctl__V1__Node *n;
        uint64_t dropped;

        q.name = (char *)name;
        controller_request(w->c, 9, REQ_GET_NODE, &q.base, &world_admin);
        n = fp8ctl__v1__node__unpack(NULL, w->reply_len, w->reply);
        CU_ASSERT_PTR_NOT_NULL_FATAL(n);
        dropped = n->dropped_messages;
        fp8ctl__v1__node__free_unpacked(n, NULL);
        return dropped;
}

TEST(what_a_worker_drops_is_shown_with_its_node) {
        struct world w;
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__Heartbeat h = FP8CTL__V1__HEARTBEAT__INIT;

        world_start(&w, false);
        world_attach(&w, 1, "a");
        CU_ASSERT_EQUAL(dropped_by(&w, "a"), 0);
        h.lease_number = w.sent[0].m->welcome->lease_number;
        h.dropped_messages = 7;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_HEARTBEAT;
        m.heartbeat = &h;
        controller_worker_message(w.c, 1, &m);
        CU_ASSERT_EQUAL(dropped_by(&w, "a"), 7);
        world_attach(&w, 2, "a"); /* a worker that started anew counts anew */
        CU_ASSERT_EQUAL(dropped_by(&w, "a"), 0);
        world_stop(&w);
}

/* Each kind of message with nothing in it, then with an empty submessage. */
TEST(absent_parts_are_dropped_and_counted) {
        struct world w;
        struct controller *c = world_start(&w, false);
        Fp8ctl__V1__StatusRequest q = FP8CTL__V1__STATUS_REQUEST__INIT;
        Fp8ctl__V1__StatusReply *r;

        world_attach(&w, 1, "a");
        world_submit(&w, "", 1, 1, "", false, &world_admin);
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
        controller_request(c, 9, REQ_STATUS, &q.base, &world_admin);
        r = fp8ctl__v1__status_reply__unpack(NULL, w.reply_len, w.reply);
        CU_ASSERT_PTR_NOT_NULL_FATAL(r);
        CU_ASSERT(r->dropped_messages >= 16);
        fp8ctl__v1__status_reply__free_unpacked(r, NULL);
        world_stop(&w);
}

/* Well-formed messages with random numbers in every field, small enough to hit what exists. */
TEST(random_messages_do_no_harm) {
        unsigned seed = 1;

        for (int round = 0; round < 300; round++) {
                struct world w;
                struct controller *c = world_start(&w, false);

                world_attach(&w, 1, "a");
                world_submit(&w, "", 1, 1, "", false, &world_admin);
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
                world_stop(&w);
        }
}

TEST_MAIN("controller")
