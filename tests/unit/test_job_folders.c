/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/test.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "worker/agent/job_folders.h"

static char *make_home(void) {
        static char template[64];

        strcpy(template, "/tmp/fp8-test-folders-XXXXXX");
        CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(template));
        return template;
}

/* Folder of a job, used at second `when`, with a file in it. */
static void add(const char *home, const char *name, time_t when) {
        _cleanup_free_ char *dir = file_path("%s/jobs/%s", home, name), *log = file_path("%s/rank0.log", dir);
        struct timespec times[2] = { { .tv_sec = when }, { .tv_sec = when } };
        struct error e;

        CU_ASSERT_EQUAL_FATAL(file_mkdir_p(dir, 0700, &e), 0);
        CU_ASSERT_EQUAL(file_write_atomic(log, "x\n", 2, 0600, &e), 0);
        CU_ASSERT_EQUAL(utimensat(AT_FDCWD, dir, times, 0), 0);
}

static bool there(const char *home, const char *name) {
        _cleanup_free_ char *dir = file_path("%s/jobs/%s", home, name);

        return access(dir, F_OK) == 0;
}

TEST(the_oldest_go_and_those_in_use_stay) {
        const char *home = make_home();
        const uint64_t in_use[] = { 1, 99 };
        struct error e;

        add(home, "1", 100); /* the oldest, and in use */
        add(home, "2", 400); /* a low number that ran again late */
        add(home, "3", 200);
        add(home, "10", 300);
        add(home, "11", 500);
        CU_ASSERT_EQUAL(job_folders_prune(home, 2, in_use, 2, &e), 2);
        CU_ASSERT_TRUE(there(home, "1") && there(home, "2") && there(home, "11"));
        CU_ASSERT_FALSE(there(home, "3") || there(home, "10"));
        CU_ASSERT_EQUAL(job_folders_prune(home, 2, in_use, 2, &e), 0);
        CU_ASSERT_EQUAL(file_remove_tree(home, &e), 0);
}

TEST(what_is_no_jobs_folder_is_left_alone) {
        const char *home = make_home();
        _cleanup_free_ char *link = file_path("%s/jobs/7", home), *file = file_path("%s/jobs/8", home);
        struct error e;

        add(home, "notes", 1);
        add(home, "4x", 1);
        add(home, "0", 1);
        add(home, "-5", 1);
        CU_ASSERT_EQUAL(symlink("notes", link), 0);
        CU_ASSERT_EQUAL(file_write_atomic(file, "", 0, 0600, &e), 0);
        add(home, "9", 1);
        CU_ASSERT_EQUAL(job_folders_prune(home, 0, NULL, 0, &e), 1);
        CU_ASSERT_TRUE(there(home, "notes") && there(home, "4x") && there(home, "0") && there(home, "-5") && there(home, "7") && there(home, "8"));
        CU_ASSERT_FALSE(there(home, "9"));
        CU_ASSERT_EQUAL(file_remove_tree(home, &e), 0);
}

TEST(a_node_that_never_ran_a_job_has_nothing_to_remove) {
        const char *home = make_home();
        struct error e;

        CU_ASSERT_EQUAL(job_folders_prune(home, 0, NULL, 0, &e), 0);
        CU_ASSERT_EQUAL(file_remove_tree(home, &e), 0);
}

TEST_MAIN("job_folders")
