/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <grp.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "proto/peercred.h"
#include "tests/test.h"
#include "tests/unit/rpc_fixture.h"

struct fixture {
        char dir[64], address[128];
        struct served s;
};

static void serve(struct fixture *f, mode_t mode) {
        struct error e = { 0 };

        ASSERT_OK(served_listen(&f->s, f->address, mode, 1024 * 1024, NULL, &e), e);
}

static void begin(struct fixture *f, mode_t mode) {
        struct error e = { 0 };

        memset(f, 0, sizeof(*f));
        snprintf(f->dir, sizeof(f->dir), "/tmp/test-rpc-XXXXXX");
        CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(f->dir));
        snprintf(f->address, sizeof(f->address), "unix:%s/s.sock", f->dir);
        ASSERT_OK(rpc_init(&e), e);
        CU_ASSERT_EQUAL_FATAL(loop_new(&f->s.loop), 0);
        serve(f, mode);
}

static void end(struct fixture *f) {
        rpc_server_free(f->s.server, 200);
        loop_free(f->s.loop);
        rpc_shutdown();
        file_remove_tree(f->dir, NULL);
}

static struct unary_job call(struct fixture *f, const char *path, const void *data, size_t len) {
        struct unary_job j = { .address = f->address, .path = path, .data = data, .len = len };

        aside_run(f->s.loop, unary_run, &j);
        return j;
}

TEST(unary_echoes) {
        struct fixture f;
        struct unary_job j;
        struct stat st;
        uint8_t *big = calloc(1, 900000);

        begin(&f, 0600);
        CU_ASSERT_EQUAL(stat(f.address + 5, &st), 0);
        CU_ASSERT_EQUAL(st.st_mode & 0777, 0600);
        j = call(&f, "/test/Echo", "hello", 5);
        ASSERT_OK(j.rc, j.e);
        CU_ASSERT_EQUAL_FATAL(j.reply_len, 5);
        CU_ASSERT_EQUAL(memcmp(j.reply, "hello", 5), 0);
        free(j.reply);
        CU_ASSERT_EQUAL(f.s.peer.role, RPC_ROLE_ADMIN);
        CU_ASSERT_EQUAL(f.s.peer.uid, geteuid());
        j = call(&f, "/test/Echo", NULL, 0);
        ASSERT_OK(j.rc, j.e);
        CU_ASSERT_EQUAL(j.reply_len, 0);
        free(j.reply);
        j = call(&f, "/test/Echo", big, 900000);
        ASSERT_OK(j.rc, j.e);
        CU_ASSERT_EQUAL(j.reply_len, 900000);
        free(j.reply);
        free(big);
        end(&f);
}

TEST(refusals_become_errno_with_the_servers_text) {
        static const struct {
                uint8_t status;
                int rc;
        } map[] = { { RPC_INVALID_ARGUMENT, -EINVAL }, { RPC_NOT_FOUND, -ENOENT }, { RPC_PERMISSION_DENIED, -EACCES }, { RPC_UNAUTHENTICATED, -EACCES },
                    { RPC_DEADLINE_EXCEEDED, -ETIMEDOUT }, { RPC_UNAVAILABLE, -ECONNREFUSED }, { RPC_RESOURCE_EXHAUSTED, -EBUSY },
                    { RPC_FAILED_PRECONDITION, -EBUSY }, { RPC_INTERNAL, -EIO } };
        struct fixture f;
        struct unary_job j;

        begin(&f, 0600);
        for (size_t i = 0; i < sizeof(map) / sizeof(map[0]); i++) {
                j = call(&f, "/test/Fail", &map[i].status, 1);
                ASSERT_ERROR(j.rc, map[i].rc, j.e, "found 3, expected 4");
                CU_ASSERT_PTR_NULL(j.reply);
        }
        j = call(&f, "/test/None", "x", 1);
        ASSERT_ERROR(j.rc, -EOPNOTSUPP, j.e, "unknown method");
        end(&f);
}

TEST(a_message_over_the_limit_is_refused) {
        struct fixture f;
        struct unary_job j;
        uint8_t *big = calloc(1, 2 * 1024 * 1024);

        begin(&f, 0600);
        j = call(&f, "/test/Echo", big, 2 * 1024 * 1024);
        CU_ASSERT_EQUAL(j.rc, -EBUSY);
        free(big);
        end(&f);
}

TEST(a_deadline_ends_the_call_and_the_server_hears_of_it) {
        struct fixture f;
        struct unary_job j = { .path = "/test/Hold", .data = (const uint8_t *)"x", .len = 1, .timeout_ms = 100 };

        begin(&f, 0600);
        j.address = f.address;
        aside_run(f.s.loop, unary_run, &j);
        CU_ASSERT_EQUAL(j.rc, -ETIMEDOUT);
        CU_ASSERT_TRUE(turn_until(f.s.loop, &f.s.gone, 1));
        CU_ASSERT_PTR_NULL(f.s.held);
        end(&f);
}

TEST(nobody_there) {
        struct unary_job j = { .address = "unix:/tmp/there-is-no-such-socket", .path = "/test/Echo", .data = (const uint8_t *)"x", .len = 1 };
        struct rpc_client *c = NULL;
        struct error e = { 0 };

        ASSERT_OK(rpc_init(&e), e);
        unary_run(&j);
        CU_ASSERT_EQUAL(j.rc, -ECONNREFUSED);
        ASSERT_ERROR(rpc_client_new("ipv4:127.0.0.1:1", NULL, &c, &e), -EINVAL, e, "fp8ctl admin certs");
        ASSERT_ERROR(rpc_client_new("localhost:1", NULL, &c, &e), -EINVAL, e, "expected unix:/PATH");
        rpc_shutdown();
}

TEST(a_stream_keeps_order) {
        struct fixture f;
        struct rpc_client *c = NULL;
        struct client_stream cs = { 0 };
        struct error e = { 0 };

        begin(&f, 0600);
        ASSERT_OK(rpc_client_new(f.address, NULL, &c, &e), e);
        ASSERT_OK(rpc_stream_open(c, f.s.loop, "/test/Stream", cs_message, cs_closed, &cs, &cs.stream, &e), e);
        for (unsigned i = 0; i < 3000; i++)
                CU_ASSERT_EQUAL_FATAL(rpc_stream_send(cs.stream, (const uint8_t *)&i, sizeof(i)), 0);
        CU_ASSERT_TRUE(turn_until(f.s.loop, &cs.messages, 3000));
        CU_ASSERT_EQUAL(cs.order_errors, 0);
        CU_ASSERT_EQUAL(rpc_stream_send(cs.stream, (const uint8_t *)"quit", 4), 0);
        CU_ASSERT_TRUE(turn_until(f.s.loop, &cs.closed, 1));
        CU_ASSERT_EQUAL(cs.status, RPC_ABORTED);
        CU_ASSERT_STRING_EQUAL(cs.text, "you said quit");
        CU_ASSERT_TRUE(turn_until(f.s.loop, &f.s.closed, 1));
        CU_ASSERT_EQUAL(rpc_stream_send(cs.stream, (const uint8_t *)"x", 1), -EPIPE);
        rpc_stream_free(cs.stream);
        rpc_client_free(c);
        end(&f);
}

TEST(a_client_that_leaves_closes_its_stream) {
        struct fixture f;
        struct rpc_client *c = NULL;
        struct client_stream cs = { 0 };
        struct error e = { 0 };

        begin(&f, 0600);
        ASSERT_OK(rpc_client_new(f.address, NULL, &c, &e), e);
        ASSERT_OK(rpc_stream_open(c, f.s.loop, "/test/Stream", cs_message, cs_closed, &cs, &cs.stream, &e), e);
        CU_ASSERT_TRUE(turn_until(f.s.loop, &f.s.opened, 1));
        rpc_stream_free(cs.stream);
        rpc_client_free(c);
        CU_ASSERT_TRUE(turn_until(f.s.loop, &f.s.closed, 1));
        CU_ASSERT_EQUAL(cs.closed, 0);
        end(&f);
}

TEST(a_server_that_stops_says_so_and_one_that_comes_back_is_found) {
        struct fixture f;
        struct rpc_client *c = NULL;
        struct client_stream cs = { 0 };
        struct error e = { 0 };

        begin(&f, 0600);
        ASSERT_OK(rpc_client_new(f.address, NULL, &c, &e), e);
        ASSERT_OK(rpc_stream_open(c, f.s.loop, "/test/Stream", cs_message, cs_closed, &cs, &cs.stream, &e), e);
        CU_ASSERT_TRUE(turn_until(f.s.loop, &f.s.opened, 1));
        f.s.server = rpc_server_free(f.s.server, 1000);
        CU_ASSERT_EQUAL(f.s.closed, 1);
        CU_ASSERT_TRUE(turn_until(f.s.loop, &cs.closed, 1));
        CU_ASSERT_EQUAL(cs.status, RPC_UNAVAILABLE);
        rpc_stream_free(cs.stream);
        serve(&f, 0600);
        for (int i = 0; i < 100 && f.s.opened < 2; i++) {
                cs = (struct client_stream){ 0 };
                ASSERT_OK(rpc_stream_open(c, f.s.loop, "/test/Stream", cs_message, cs_closed, &cs, &cs.stream, &e), e);
                while (f.s.opened < 2 && !cs.closed)
                        loop_turn(f.s.loop, 50);
                rpc_stream_free(cs.stream);
        }
        CU_ASSERT_EQUAL(f.s.opened, 2);
        rpc_client_free(c);
        end(&f);
}

TEST(a_full_queue_is_told_and_the_stream_can_be_failed) {
        struct fixture f;
        struct rpc_client *c = NULL;
        struct client_stream cs = { 0 };
        struct error e = { 0 };
        static uint8_t block[64 * 1024];
        int r = 0;

        begin(&f, 0600);
        ASSERT_OK(rpc_client_new(f.address, NULL, &c, &e), e);
        ASSERT_OK(rpc_stream_open(c, f.s.loop, "/test/Stream", cs_message, cs_closed, &cs, &cs.stream, &e), e);
        CU_ASSERT_TRUE(turn_until(f.s.loop, &f.s.opened, 1));
        for (int i = 0; i < 5000 && r == 0; i++)
                r = rpc_call_send(f.s.stream, block, sizeof(block)); /* the loop does not turn: nobody reads */
        CU_ASSERT_EQUAL(r, -ENOBUFS);
        rpc_call_fail(f.s.stream, RPC_RESOURCE_EXHAUSTED, "too slow");
        CU_ASSERT_TRUE(turn_until(f.s.loop, &f.s.closed, 1));
        CU_ASSERT_TRUE(turn_until(f.s.loop, &cs.closed, 1));
        rpc_stream_free(cs.stream);
        rpc_client_free(c);
        end(&f);
}

TEST(a_stopping_server_answers_what_waits) {
        struct fixture f;
        struct unary_job j = { .path = "/test/Hold", .data = (const uint8_t *)"x", .len = 1, .timeout_ms = 20000 };
        struct aside a = { unary_run, &j, false };
        pthread_t t;

        begin(&f, 0600);
        j.address = f.address;
        CU_ASSERT_EQUAL_FATAL(pthread_create(&t, NULL, aside_thread, &a), 0);
        while (!f.s.held)
                loop_turn(f.s.loop, 5);
        f.s.server = rpc_server_free(f.s.server, 1000);
        pthread_join(t, NULL);
        ASSERT_ERROR(j.rc, -ECONNREFUSED, j.e, "stopping");
        CU_ASSERT_EQUAL(f.s.gone, 1);
        end(&f);
}

TEST(a_group_socket_wants_a_token) {
        struct fixture f;
        struct unary_job j;
        _cleanup_free_ char *group = NULL;

        begin(&f, 0660);
        CU_ASSERT_TRUE_FATAL(asprintf(&group, "group:%s", f.address + 5) > 0);
        j = call(&f, "/test/Echo", "x", 1);
        ASSERT_ERROR(j.rc, -EACCES, j.e, "token");
        CU_ASSERT_TRUE_FATAL(strlen(group) < sizeof(f.address));
        strcpy(f.address, group);
        j = call(&f, "/test/Echo", "x", 1);
        ASSERT_OK(j.rc, j.e);
        free(j.reply);
        CU_ASSERT_TRUE(f.s.peer.has_uid);
        CU_ASSERT_EQUAL(f.s.peer.uid, geteuid());
        end(&f);
}

TEST_MAIN("rpc")
