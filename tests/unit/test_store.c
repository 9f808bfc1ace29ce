/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "daemon/store/store.h"
#include "tests/test.h"

struct scene {
        char dir[64], path[128];
        struct store *s;
};

static void begin(struct scene *t) {
        struct error e = { 0 };

        snprintf(t->dir, sizeof(t->dir), "/tmp/test-store-XXXXXX");
        CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(t->dir));
        snprintf(t->path, sizeof(t->path), "%s/fp8d.db", t->dir);
        t->s = NULL;
        ASSERT_OK(store_open(t->path, &t->s, &e), e);
}

static void again(struct scene *t) {
        struct error e = { 0 };

        t->s = store_close(t->s);
        ASSERT_OK(store_open(t->path, &t->s, &e), e);
}

static void end(struct scene *t) {
        store_close(t->s);
        file_remove_tree(t->dir, NULL);
}

static int commit(struct scene *t, const struct store_op *ops, size_t n, struct error *e) {
        return store_commit(t->s, ops, n, e);
}

struct seen {
        char text[512];
        int stop_after, n;
};

static int note(void *arg, const char *key, const void *value, size_t len) {
        struct seen *s = arg;
        size_t at = strlen(s->text);

        snprintf(s->text + at, sizeof(s->text) - at, "%s=%.*s;", key, (int)len, (const char *)value);
        return ++s->n == s->stop_after ? 42 : 0;
}

static void expect(struct scene *t, const char *prefix, const char *want) {
        struct seen s = { 0 };
        struct error e = { 0 };

        ASSERT_OK(store_scan(t->s, prefix, note, &s, &e), e);
        CU_ASSERT_STRING_EQUAL(s.text, want);
}

#define PUT(k, v) { STORE_PUT, (k), (v), strlen(v) }
#define DELETE(k) { STORE_DELETE, (k), NULL, 0 }
#define EXPECT(k, v) { STORE_EXPECT, (k), (v), strlen(v) }

TEST(what_is_put_is_there_after_reopening) {
        struct scene t;
        struct error e = { 0 };
        const struct store_op ops[] = { PUT("job/2", "b"), PUT("job/10", "c"), PUT("job/1", "a"), PUT("joc", "x"), PUT("empty", "") };
        const struct store_op more[] = { PUT("job/1", "A"), DELETE("job/2"), DELETE("not-there") };
        struct seen s = { .stop_after = 1 };

        begin(&t);
        expect(&t, "", "");
        ASSERT_OK(commit(&t, ops, 5, &e), e);
        again(&t);
        expect(&t, "job/", "job/1=a;job/10=c;job/2=b;");
        ASSERT_OK(commit(&t, more, 3, &e), e);
        again(&t);
        expect(&t, "", "empty=;job/1=A;job/10=c;joc=x;");
        CU_ASSERT_EQUAL(store_scan(t.s, "job/", note, &s, &e), 42);
        CU_ASSERT_EQUAL(s.n, 1);
        end(&t);
}

TEST(binary_values_are_kept_whole) {
        struct scene t;
        struct error e = { 0 };
        const struct store_op put = { STORE_PUT, "k", "a\0b\0", 4 }, same = { STORE_EXPECT, "k", "a\0b\0", 4 }, shorter = { STORE_EXPECT, "k", "a\0b", 3 };

        begin(&t);
        ASSERT_OK(commit(&t, &put, 1, &e), e);
        again(&t);
        ASSERT_OK(commit(&t, &same, 1, &e), e);
        CU_ASSERT_EQUAL(commit(&t, &shorter, 1, &e), -ECANCELED);
        end(&t);
}

TEST(an_expectation_that_fails_undoes_all) {
        struct scene t;
        struct error e = { 0 };
        const struct store_op first[] = { EXPECT("epoch/1", ""), PUT("epoch/1", "3") };
        const struct store_op stale[] = { PUT("commit/1/7", "x"), EXPECT("epoch/1", "2"), PUT("other", "y") };
        const struct store_op live[] = { EXPECT("epoch/1", "3"), PUT("commit/1/7", "x"), PUT("epoch/1", "4"), EXPECT("epoch/1", "4") };

        begin(&t);
        ASSERT_OK(commit(&t, first, 2, &e), e);
        CU_ASSERT_EQUAL(commit(&t, first, 2, &e), -ECANCELED);
        ASSERT_ERROR(commit(&t, stale, 3, &e), -ECANCELED, e, "epoch/1");
        expect(&t, "", "epoch/1=3;");
        ASSERT_OK(commit(&t, live, 4, &e), e);
        again(&t);
        expect(&t, "", "commit/1/7=x;epoch/1=4;");
        end(&t);
}

TEST(bad_keys_are_refused) {
        struct scene t;
        struct error e = { 0 };
        char key[STORE_KEY_MAX + 2];
        struct store_op op = { STORE_PUT, key, "v", 1 };

        begin(&t);
        memset(key, 'k', sizeof(key) - 1);
        key[sizeof(key) - 1] = 0;
        CU_ASSERT_EQUAL(commit(&t, &op, 1, &e), -EINVAL);
        key[STORE_KEY_MAX] = 0;
        ASSERT_OK(commit(&t, &op, 1, &e), e);
        key[0] = 0;
        CU_ASSERT_EQUAL(commit(&t, &op, 1, &e), -EINVAL);
        end(&t);
}

/* A lock of POSIX belongs to a process: the second controller is one. */
TEST(a_second_controller_is_kept_out) {
        struct scene t;
        int status = -1;
        pid_t child;

        begin(&t);
        child = fork();
        if (child == 0) {
                struct store *s = NULL;

                _exit(store_open(t.path, &s, NULL) == -EBUSY ? 0 : 1);
        }
        CU_ASSERT_EQUAL(waitpid(child, &status, 0), child);
        CU_ASSERT_EQUAL(status, 0);
        end(&t);
}

TEST(a_newer_schema_is_refused) {
        struct scene t;
        struct error e = { 0 };
        sqlite3 *db = NULL;

        begin(&t);
        t.s = store_close(t.s);
        CU_ASSERT_EQUAL_FATAL(sqlite3_open(t.path, &db), SQLITE_OK);
        CU_ASSERT_EQUAL(sqlite3_exec(db, "PRAGMA user_version = 99", NULL, NULL, NULL), SQLITE_OK);
        sqlite3_close(db);
        ASSERT_ERROR(store_open(t.path, &t.s, &e), -EPROTONOSUPPORT, e, "99");
        CU_ASSERT_PTR_NULL(t.s);
        end(&t);
}

TEST(a_file_that_is_no_store_is_refused) {
        struct scene t;
        struct error e = { 0 };
        static const char junk[4096] = "this is no database at all";

        begin(&t);
        t.s = store_close(t.s);
        ASSERT_OK(file_write_atomic(t.path, junk, sizeof(junk), 0600, &e), e);
        CU_ASSERT_EQUAL(store_open(t.path, &t.s, &e), -EBADMSG);
        end(&t);
}

/* Commits pairs a/N, b/N and counts up "n" until it is killed; tells each commit that returned. */
static void commit_for_ever(const char *path, int fd) {
        struct store *s = NULL;

        if (store_open(path, &s, NULL) < 0)
                _exit(1);
        for (unsigned i = 1;; i++) {
                char a[32], b[32], v[32];
                struct store_op ops[3];

                snprintf(a, sizeof(a), "a/%08u", i);
                snprintf(b, sizeof(b), "b/%08u", i);
                snprintf(v, sizeof(v), "%u", i);
                ops[0] = (struct store_op)PUT(a, v);
                ops[1] = (struct store_op)PUT(b, v);
                ops[2] = (struct store_op)PUT("n", v);
                if (store_commit(s, ops, 3, NULL) < 0 || write(fd, &i, sizeof(i)) != sizeof(i))
                        _exit(1);
        }
}

struct counts {
        unsigned a, b, n;
};

static int count(void *arg, const char *key, const void *value, size_t len) {
        struct counts *c = arg;
        char text[32] = "";

        memcpy(text, value, len < 31 ? len : 31);
        c->a += key[0] == 'a';
        c->b += key[0] == 'b';
        if (key[0] == 'n')
                c->n = (unsigned)strtoul(text, NULL, 10);
        return 0;
}

TEST(killed_in_the_middle_it_is_all_or_nothing) {
        for (unsigned round = 0; round < 6; round++) {
                struct scene t;
                struct counts c = { 0 };
                struct error e = { 0 };
                unsigned told = 0, i;
                int fds[2], status;
                pid_t child;

                begin(&t);
                t.s = store_close(t.s);
                CU_ASSERT_EQUAL_FATAL(pipe(fds), 0);
                child = fork();
                if (child == 0) {
                        close(fds[0]);
                        commit_for_ever(t.path, fds[1]);
                }
                close(fds[1]);
                while (told < 5 && read(fds[0], &i, sizeof(i)) == sizeof(i))
                        told = i;
                usleep(1000 + 700 * round);
                kill(child, SIGKILL);
                CU_ASSERT_EQUAL(waitpid(child, &status, 0), child);
                CU_ASSERT_TRUE(WIFSIGNALED(status));
                while (read(fds[0], &i, sizeof(i)) == sizeof(i))
                        told = i;
                close(fds[0]);
                ASSERT_OK(store_open(t.path, &t.s, &e), e);
                ASSERT_OK(store_scan(t.s, "", count, &c, &e), e);
                CU_ASSERT_EQUAL(c.a, c.n);
                CU_ASSERT_EQUAL(c.b, c.n);
                CU_ASSERT_TRUE(c.n == told || c.n == told + 1); /* what returned is there; the one in hand may be */
                end(&t);
        }
}

TEST_MAIN("store")
