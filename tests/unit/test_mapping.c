/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/indexed.h"
#include "base/mapping.h"
#include "scratch.h"
#include "test.h"

enum { PAGES = 5 };

static size_t page_size(void) {
        return (size_t)sysconf(_SC_PAGESIZE);
}

/* A text of that many pages in the file, of one letter. */
static void fill(struct scratch *s, const char *name, char letter) {
        size_t size = PAGES * page_size();
        char *text = malloc(size);

        CU_ASSERT_PTR_NOT_NULL_FATAL(text);
        memset(text, letter, size);
        scratch_write(s, name, text, size);
        free(text);
}

static const char *open_map(struct scratch *s, const char *name) {
        int fd = open(scratch_path(s, name), O_RDONLY | O_CLOEXEC);
        struct error e;
        void *p = NULL;

        CU_ASSERT_FATAL(fd >= 0);
        ASSERT_OK(mapping_open(fd, PAGES * page_size(), s->path, &p, &e), e);
        close(fd);
        return p;
}

static int sum(const volatile char *p) {
        int n = 0;

        for (size_t i = 0; i < PAGES; i++)
                n += p[i * page_size()];
        return n;
}

TEST(what_a_file_lost_reads_as_zeros_and_is_told) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        const char *a, *b;
        struct error e;

        fill(&s, "a", 1);
        fill(&s, "b", 2);
        a = open_map(&s, "a");
        b = open_map(&s, "b");
        CU_ASSERT_EQUAL(sum(a), PAGES);
        ASSERT_OK(mapping_check(a, "a", &e), e);
        CU_ASSERT_EQUAL_FATAL(truncate(scratch_path(&s, "a"), (off_t)(2 * page_size())), 0);
        ASSERT_OK(mapping_check(a, "a", &e), e); /* nobody looked */
        CU_ASSERT_EQUAL(sum(a), 2);
        ASSERT_ERROR(mapping_check(a, "a", &e), -EIO, e, "'a' became shorter");
        ASSERT_OK(mapping_check(b, "b", &e), e);
        CU_ASSERT_EQUAL(sum(b), 2 * PAGES);
        mapping_close(a, PAGES * page_size());
        fill(&s, "a", 3);
        a = open_map(&s, "a");
        CU_ASSERT_EQUAL(sum(a), 3 * PAGES);
        ASSERT_OK(mapping_check(a, "a", &e), e);
        mapping_close(a, PAGES * page_size());
        mapping_close(b, PAGES * page_size());
        mapping_close(NULL, 0);
        ASSERT_OK(mapping_check(NULL, "none", &e), e);
}

static void *read_tokens(void *arg) {
        struct scratch *s = arg;
        struct indexed *x;
        struct digest d;
        int32_t ids[8];
        struct error e;

        ASSERT_OK(indexed_open(scratch_path(s, "text"), &x, &e), e);
        ASSERT_OK(indexed_read(x, 0, (int64_t)(4 * page_size()), 8, ids, &e), e);
        CU_ASSERT_EQUAL(ids[0], 'x');
        CU_ASSERT_EQUAL_FATAL(truncate(scratch_path(s, "text"), 100), 0);
        ASSERT_ERROR(indexed_read(x, 0, (int64_t)(3 * page_size()), 8, ids, &e), -EIO, e, "became shorter");
        indexed_free(x);
        ASSERT_OK(indexed_digest(scratch_path(s, "text"), &d, &e), e);
        return NULL;
}

/* As threads here begin: with every signal blocked. */
TEST(tokens_that_go_away_are_an_error_in_any_thread) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        sigset_t all, old;
        pthread_t t;

        fill(&s, "text", 'x');
        (void)sigfillset(&all);
        (void)pthread_sigmask(SIG_SETMASK, &all, &old);
        CU_ASSERT_EQUAL_FATAL(pthread_create(&t, NULL, read_tokens, &s), 0);
        (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
        pthread_join(t, NULL);
}

/* Another SIGBUS ends the process as ever. */
TEST(other_faults_end_the_process) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        int status = 0, fd;
        volatile char *p;
        pid_t pid;

        fill(&s, "a", 1);
        mapping_close(open_map(&s, "a"), PAGES * page_size());
        fd = open(scratch_path(&s, "a"), O_RDONLY | O_CLOEXEC);
        p = mmap(NULL, PAGES * page_size(), PROT_READ, MAP_PRIVATE, fd, 0);
        CU_ASSERT_FATAL(p != MAP_FAILED);
        CU_ASSERT_EQUAL_FATAL(truncate(scratch_path(&s, "a"), 0), 0);
        pid = fork();
        if (pid == 0) {
                (void)setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
                _exit(p[0]);
        }
        CU_ASSERT_EQUAL(waitpid(pid, &status, 0), pid);
        CU_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
        munmap((void *)p, PAGES * page_size());
        close(fd);
}

TEST_MAIN("mapping")
