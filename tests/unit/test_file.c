/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "base/file.h"
#include "scratch.h"
#include "test.h"

TEST(read_is_bounded) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        char *data = (char *)"untouched";
        size_t len = 99;
        struct error e;

        scratch_text(&s, "f", "hello");
        ASSERT_ERROR(file_read(s.path, 4, &data, &len, &e), -EFBIG, e, "longer than the 4 bytes");
        CU_ASSERT_STRING_EQUAL(data, "untouched");
        CU_ASSERT_EQUAL(len, 99);
        ASSERT_OK(file_read(s.path, 5, &data, &len, &e), e);
        CU_ASSERT_EQUAL(len, 5);
        CU_ASSERT_STRING_EQUAL(data, "hello");
        free(data);
        scratch_text(&s, "empty", "");
        ASSERT_OK(file_read(s.path, 5, &data, &len, &e), e);
        CU_ASSERT_EQUAL(len, 0);
        CU_ASSERT_EQUAL(data[0], 0);
        free(data);
        ASSERT_ERROR(file_read(scratch_path(&s, "none"), 5, &data, &len, &e), -ENOENT, e, "No such file");
        ASSERT_ERROR(file_read(s.dir, 5, &data, &len, &e), -EISDIR, e, "cannot read");
        ASSERT_OK(file_read("/proc/self/status", 1 << 20, &data, &len, &e), e); /* st_size is 0 */
        CU_ASSERT_TRUE(len > 100);
        free(data);
}

TEST(write_is_whole_or_not_at_all) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        _cleanup_free_ char *data = NULL;
        struct stat st;
        struct error e;
        size_t len;

        scratch_path(&s, "f");
        ASSERT_OK(file_write_atomic(s.path, "one", 3, 0640, &e), e);
        ASSERT_OK(file_write_atomic(s.path, "two!", 4, 0600, &e), e);
        ASSERT_OK(file_read(s.path, 10, &data, &len, &e), e);
        CU_ASSERT_STRING_EQUAL(data, "two!");
        CU_ASSERT_EQUAL(stat(s.path, &st), 0);
        CU_ASSERT_EQUAL(st.st_mode & 0777, 0600);
        ASSERT_ERROR(file_write_atomic(scratch_path(&s, "no/such"), "x", 1, 0600, &e), -ENOENT, e, "cannot create a temporary file");
        /* a folder cannot be replaced by a file: the temporary one must be gone */
        ASSERT_OK(file_mkdir_p(scratch_path(&s, "d/x"), 0700, &e), e);
        CU_ASSERT_TRUE(file_write_atomic(scratch_path(&s, "d"), "x", 1, 0600, &e) < 0);
        scratch_path(&s, "f");
        unlink(s.path);
        ASSERT_OK(file_remove_tree(scratch_path(&s, "d"), &e), e);
        CU_ASSERT_EQUAL(rmdir(s.dir), 0); /* nothing was left behind */
        CU_ASSERT_EQUAL(mkdir(s.dir, 0700), 0);
}

TEST(mkdir_p) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        struct error e;
        struct stat st;

        ASSERT_OK(file_mkdir_p(scratch_path(&s, "a/b//c/"), 0700, &e), e);
        ASSERT_OK(file_mkdir_p(s.path, 0700, &e), e);
        CU_ASSERT_EQUAL(stat(s.path, &st), 0);
        scratch_text(&s, "file", "x");
        ASSERT_ERROR(file_mkdir_p(s.path, 0700, &e), -ENOTDIR, e, "a file of this name");
        CU_ASSERT_TRUE(file_mkdir_p(scratch_path(&s, "file/x"), 0700, &e) < 0);
        ASSERT_ERROR(file_mkdir_p("", 0700, &e), -EINVAL, e, "empty path");
}

TEST(remove_tree_never_leaves_the_tree) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        _cleanup_scratch_ struct scratch other = scratch_new();
        struct error e;

        scratch_text(&other, "precious", "x");
        ASSERT_OK(file_mkdir_p(scratch_path(&s, "t/a/b"), 0700, &e), e);
        scratch_text(&s, "t/a/b/f", "x");
        CU_ASSERT_EQUAL(symlink(other.dir, scratch_path(&s, "t/a/link")), 0);
        CU_ASSERT_EQUAL(symlink("/nowhere", scratch_path(&s, "t/dangling")), 0);
        ASSERT_OK(file_remove_tree(scratch_path(&s, "t"), &e), e);
        CU_ASSERT_EQUAL(access(s.path, F_OK), -1);
        CU_ASSERT_EQUAL(access(scratch_path(&other, "precious"), F_OK), 0);
        ASSERT_OK(file_remove_tree(s.path, &e), e); /* not there: fine */
        CU_ASSERT_EQUAL(symlink(other.dir, scratch_path(&s, "link")), 0);
        ASSERT_OK(file_remove_tree(s.path, &e), e);
        CU_ASSERT_EQUAL(access(other.path, F_OK), 0);
}

TEST_MAIN("file")
