/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "proto/peercred.h"
#include "tests/test.h"
#include "tests/unit/rpc_fixture.h"

struct fetch {
        const char *path;
        char token[PEERCRED_TOKEN_SIZE];
        int rc;
        struct error e;
};

static void run_fetch(void *arg) {
        struct fetch *f = arg;

        f->rc = peercred_fetch(f->path, f->token, &f->e);
}

TEST(a_token_names_who_fetched_it) {
        char dir[] = "/tmp/test-peercred-XXXXXX", path[64];
        struct fetch a, b;
        struct peercred *p = NULL;
        struct loop *l = NULL;
        struct error e = { 0 };
        struct stat st;
        uid_t uid = 12345;
        gid_t gid = 12345;

        CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(dir));
        snprintf(path, sizeof(path), "%s/s.cred", dir);
        a = b = (struct fetch){ .path = path };
        CU_ASSERT_EQUAL_FATAL(loop_new(&l), 0);
        ASSERT_OK(peercred_new(l, path, 0660, NULL, &p, &e), e);
        CU_ASSERT_EQUAL(stat(path, &st), 0);
        CU_ASSERT_EQUAL(st.st_mode & 0777, 0660);
        aside_run(l, run_fetch, &a);
        aside_run(l, run_fetch, &b);
        ASSERT_OK(a.rc, a.e);
        ASSERT_OK(b.rc, b.e);
        CU_ASSERT_NOT_EQUAL(strcmp(a.token, b.token), 0);
        CU_ASSERT_EQUAL(strlen(a.token), PEERCRED_TOKEN_SIZE - 1);
        CU_ASSERT_TRUE(peercred_lookup(p, a.token, &uid, &gid));
        CU_ASSERT_EQUAL(uid, geteuid());
        CU_ASSERT_EQUAL(gid, getegid());
        a.token[10] ^= 1;
        CU_ASSERT_FALSE(peercred_lookup(p, a.token, &uid, &gid));
        CU_ASSERT_FALSE(peercred_lookup(p, "", &uid, &gid));
        peercred_free(p);
        CU_ASSERT_EQUAL(stat(path, &st), -1);
        loop_free(l);
        file_remove_tree(dir, NULL);
}

/* Only root can be somebody else. */
TEST(another_user_is_told_apart) {
        char dir[] = "/tmp/test-peercred-XXXXXX", path[64], token[PEERCRED_TOKEN_SIZE] = "";
        struct peercred *p = NULL;
        struct loop *l = NULL;
        struct error e = { 0 };
        uid_t uid = 0;
        gid_t gid = 0;
        int fds[2], status = -1;
        pid_t child;

        if (geteuid() != 0)
                return;
        CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(dir));
        CU_ASSERT_EQUAL(chmod(dir, 0755), 0);
        snprintf(path, sizeof(path), "%s/s.cred", dir);
        CU_ASSERT_EQUAL_FATAL(pipe(fds), 0);
        CU_ASSERT_EQUAL_FATAL(loop_new(&l), 0);
        ASSERT_OK(peercred_new(l, path, 0666, NULL, &p, &e), e);
        child = fork();
        if (child == 0) {
                char text[PEERCRED_TOKEN_SIZE];

                if (setgid(65534) < 0 || setuid(65534) < 0 || peercred_fetch(path, text, NULL) < 0 || write(fds[1], text, sizeof(text)) != sizeof(text))
                        _exit(1);
                _exit(0);
        }
        for (int i = 0; i < 1000 && waitpid(child, &status, WNOHANG) == 0; i++)
                loop_turn(l, 10);
        CU_ASSERT_EQUAL_FATAL(status, 0);
        CU_ASSERT_EQUAL_FATAL(read(fds[0], token, sizeof(token)), sizeof(token));
        CU_ASSERT_TRUE(peercred_lookup(p, token, &uid, &gid));
        CU_ASSERT_EQUAL(uid, 65534);
        CU_ASSERT_EQUAL(gid, 65534);
        peercred_free(p);
        loop_free(l);
        close(fds[0]);
        close(fds[1]);
        file_remove_tree(dir, NULL);
}

TEST(nobody_listens) {
        char token[PEERCRED_TOKEN_SIZE];
        struct error e = { 0 };

        CU_ASSERT_EQUAL(peercred_fetch("/tmp/there-is-no-such-socket.cred", token, &e), -ENOENT);
}

TEST_MAIN("peercred")
