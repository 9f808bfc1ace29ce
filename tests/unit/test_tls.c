/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include "proto/tls.h"
#include "tests/test.h"
#include "tests/unit/rpc_fixture.h"

static const char *const local_ip[] = { "127.0.0.1", NULL };

struct certs {
        char dir[64], other[64];
        char ca[128], cert[128], key[128];
        struct tls_files files;
};

static struct tls_files files_of(struct certs *c, const char *dir, const char *name) {
        snprintf(c->ca, sizeof(c->ca), "%s/ca.pem", dir);
        snprintf(c->cert, sizeof(c->cert), "%s/%s.pem", dir, name);
        snprintf(c->key, sizeof(c->key), "%s/%s.key", dir, name);
        return (struct tls_files){ c->ca, c->cert, c->key };
}

static void make(struct certs *c) {
        static const char *const names[] = { "admin", "user:ann", "node:n1" };
        struct error e = { 0 };

        memset(c, 0, sizeof(*c));
        snprintf(c->dir, sizeof(c->dir), "/tmp/test-tls-XXXXXX");
        snprintf(c->other, sizeof(c->other), "/tmp/test-tls-XXXXXX");
        CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(c->dir));
        CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(c->other));
        ASSERT_OK(tls_make_ca(c->dir, "test CA", 30, &e), e);
        ASSERT_OK(tls_make_ca(c->other, "other CA", 30, &e), e);
        ASSERT_OK(tls_make_cert(c->dir, "controller", local_ip, 30, &e), e);
        for (size_t i = 0; i < 3; i++)
                ASSERT_OK(tls_make_cert(c->dir, names[i], NULL, 30, &e), e);
        ASSERT_OK(tls_make_cert(c->dir, "user:eve", local_ip, 30, &e), e);
        ASSERT_OK(tls_make_cert(c->other, "admin", NULL, 30, &e), e);
}

static void unmake(struct certs *c) {
        file_remove_tree(c->dir, NULL);
        file_remove_tree(c->other, NULL);
}

TEST(files_and_extensions) {
        struct certs c;
        struct error e = { 0 };
        struct stat st;
        FILE *f;
        X509 *x;

        make(&c);
        files_of(&c, c.dir, "controller");
        CU_ASSERT_EQUAL(stat(c.key, &st), 0);
        CU_ASSERT_EQUAL(st.st_mode & 0777, 0600);
        f = fopen(c.cert, "r");
        CU_ASSERT_PTR_NOT_NULL_FATAL(f);
        x = PEM_read_X509(f, NULL, NULL, NULL);
        fclose(f);
        CU_ASSERT_PTR_NOT_NULL_FATAL(x);
        CU_ASSERT_EQUAL(X509_check_ip_asc(x, "127.0.0.1", 0), 1);
        CU_ASSERT_EQUAL(X509_check_ip_asc(x, "127.0.0.2", 0), 0);
        CU_ASSERT_EQUAL(X509_get_extended_key_usage(x), XKU_SSL_SERVER | XKU_SSL_CLIENT);
        CU_ASSERT_EQUAL(X509_check_ca(x), 0);
        X509_free(x);
        CU_ASSERT_EQUAL(tls_make_ca(c.dir, "again", 30, &e), -EEXIST);
        CU_ASSERT_EQUAL(tls_make_cert(c.dir, "user:ann", NULL, 30, &e), -EEXIST);
        ASSERT_ERROR(tls_make_cert(c.dir, "node:ann", NULL, 30, &e), -EINVAL, e, "'user:ann'");
        CU_ASSERT_EQUAL(tls_make_cert(c.dir, "root", NULL, 30, &e), -EINVAL);
        CU_ASSERT_EQUAL(tls_make_cert(c.dir, "user:../x", NULL, 30, &e), -EINVAL);
        CU_ASSERT_EQUAL(tls_make_cert(c.dir, "user:ca", NULL, 30, &e), -EINVAL);
        CU_ASSERT_EQUAL(tls_make_cert(c.dir, "user:bob", (const char *const[]){ "localhost", NULL }, 30, &e), -EINVAL);
        unmake(&c);
}

/* Listens with the named certificate on a port that is free; address: at least 64 bytes. */
static void serve(struct certs *c, const char *name, struct served *s, char *address) {
        struct tls_files files = files_of(c, c->dir, name);
        struct error e = { 0 };
        int r = -1;

        memset(s, 0, sizeof(*s));
        CU_ASSERT_EQUAL_FATAL(loop_new(&s->loop), 0);
        for (int port = 20000 + (int)(getpid() % 20000), i = 0; i < 50 && r < 0; i++) {
                snprintf(address, 64, "ipv4:127.0.0.1:%d", port + i);
                r = served_listen(s, address, 0, 0, &files, &e);
        }
        ASSERT_OK(r, e);
}

struct outcome {
        int rc;
        struct error e;
};

static struct outcome call_with(struct served *s, const char *address, const struct tls_files *files) {
        struct unary_job j = { .address = address, .tls = files, .path = "/test/Echo", .data = (const uint8_t *)"x", .len = 1 };

        s->peer = (struct rpc_peer){ 0 };
        aside_run(s->loop, unary_run, &j);
        free(j.reply);
        return (struct outcome){ j.rc, j.e };
}

static struct outcome call_as(struct served *s, struct certs *c, const char *address, const char *dir, const char *name) {
        struct tls_files files = files_of(c, dir, name);

        return call_with(s, address, &files);
}

static void stop(struct served *s, struct certs *c) {
        rpc_server_free(s->server, 200);
        loop_free(s->loop);
        unmake(c);
        rpc_shutdown();
}

TEST(roles_come_from_the_certificate) {
        struct certs c;
        struct served s;
        struct outcome o;
        char address[64];
        struct error e = { 0 };

        ASSERT_OK(rpc_init(&e), e);
        make(&c);
        serve(&c, "controller", &s, address);
        o = call_as(&s, &c, address, c.dir, "admin");
        ASSERT_OK(o.rc, o.e);
        CU_ASSERT_EQUAL(s.peer.role, RPC_ROLE_ADMIN);
        o = call_as(&s, &c, address, c.dir, "ann");
        ASSERT_OK(o.rc, o.e);
        CU_ASSERT_EQUAL(s.peer.role, RPC_ROLE_USER);
        CU_ASSERT_STRING_EQUAL(s.peer.name, "ann");
        CU_ASSERT_FALSE(s.peer.has_uid);
        o = call_as(&s, &c, address, c.dir, "n1");
        ASSERT_OK(o.rc, o.e);
        CU_ASSERT_EQUAL(s.peer.role, RPC_ROLE_NODE);
        CU_ASSERT_STRING_EQUAL(s.peer.name, "n1");
        /* The controller's own certificate is nobody's. */
        o = call_as(&s, &c, address, c.dir, "controller");
        CU_ASSERT_EQUAL(o.rc, -EACCES);
        stop(&s, &c);
}

TEST(another_ca_is_refused) {
        struct certs c;
        struct served s;
        struct outcome o;
        struct tls_files files;
        char address[64], ca[128];
        struct error e = { 0 };

        ASSERT_OK(rpc_init(&e), e);
        make(&c);
        serve(&c, "controller", &s, address);
        o = call_as(&s, &c, address, c.other, "admin"); /* trusts another CA too */
        CU_ASSERT_EQUAL(o.rc, -ECONNREFUSED);
        files = files_of(&c, c.other, "admin");
        snprintf(ca, sizeof(ca), "%s/ca.pem", c.dir);
        files.ca = ca; /* believes the server; the server must not believe it */
        o = call_with(&s, address, &files);
        CU_ASSERT_EQUAL(o.rc, -ECONNREFUSED);
        CU_ASSERT_EQUAL(s.peer.role, RPC_ROLE_NONE);
        stop(&s, &c);
}

TEST(a_users_certificate_cannot_play_the_controller) {
        struct certs c;
        struct served s;
        struct outcome o;
        char address[64];
        struct error e = { 0 };

        ASSERT_OK(rpc_init(&e), e);
        make(&c);
        serve(&c, "eve", &s, address);
        o = call_as(&s, &c, address, c.dir, "admin");
        CU_ASSERT_EQUAL(o.rc, -ECONNREFUSED);
        CU_ASSERT_EQUAL(s.peer.role, RPC_ROLE_NONE);
        stop(&s, &c);
}

TEST_MAIN("tls")
