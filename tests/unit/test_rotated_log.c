/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "scratch.h"
#include "test.h"

#define LINE 16
#define BOUND 160

/* Line i of a log, 16 bytes. */
static void line(char *buf, unsigned i) {
        char text[LINE + 1];

        snprintf(text, sizeof(text), "line %010u", i);
        memcpy(buf, text, LINE - 1);
        buf[LINE - 1] = '\n';
}

static void write_lines(struct rotated_log *l, unsigned from, unsigned to) {
        char buf[LINE];

        for (unsigned i = from; i < to; i++) {
                line(buf, i);
                CU_ASSERT_EQUAL_FATAL(rotated_log_write(l, buf, LINE), 0);
        }
}

TEST(offsets_live_on_over_rotations) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        const char *path = scratch_path(&s, "log");
        char buf[1024], want[LINE];
        struct rotated_log *l;
        uint64_t next = 0;
        struct error e;
        size_t len = 0;
        struct stat st;

        ASSERT_ERROR(rotated_log_read(path, 0, buf, sizeof(buf), &len, &next, &e), -ENOENT, e, "no log");
        ASSERT_OK(rotated_log_open(path, BOUND, &l, &e), e);
        for (unsigned i = 0; i < 95; i++) {
                write_lines(l, i, i + 1);
                ASSERT_OK(rotated_log_read(path, (uint64_t)i * LINE, buf, sizeof(buf), &len, &next, &e), e);
                line(want, i);
                CU_ASSERT_EQUAL_FATAL(len, LINE);
                CU_ASSERT_EQUAL(memcmp(buf, want, LINE), 0);
                CU_ASSERT_EQUAL(next, (uint64_t)(i + 1) * LINE);
        }
        /* all that is kept: the older file whole, then the newer */
        ASSERT_OK(rotated_log_read(path, 0, buf, sizeof(buf), &len, &next, &e), e);
        CU_ASSERT_EQUAL(len, BOUND);
        line(want, 80);
        CU_ASSERT_EQUAL(memcmp(buf, want, LINE), 0);
        CU_ASSERT_EQUAL(next, 90 * LINE);
        ASSERT_OK(rotated_log_read(path, next, buf, sizeof(buf), &len, &next, &e), e);
        CU_ASSERT_EQUAL(len, 5 * LINE);
        ASSERT_OK(rotated_log_read(path, next, buf, sizeof(buf), &len, &next, &e), e);
        CU_ASSERT_EQUAL(len, 0);
        CU_ASSERT_EQUAL(next, 95 * LINE);
        ASSERT_OK(rotated_log_read(path, UINT64_MAX, buf, sizeof(buf), &len, &next, &e), e);
        CU_ASSERT_EQUAL(next, 95 * LINE);
        CU_ASSERT_EQUAL(stat(path, &st), 0);
        CU_ASSERT_TRUE(st.st_size <= BOUND);
        rotated_log_free(l);
        /* a new writer goes on where the old one was */
        ASSERT_OK(rotated_log_open(path, BOUND, &l, &e), e);
        write_lines(l, 95, 120);
        rotated_log_free(l);
        ASSERT_OK(rotated_log_read(path, 119 * LINE, buf, sizeof(buf), &len, &next, &e), e);
        line(want, 119);
        CU_ASSERT_EQUAL(len, LINE);
        CU_ASSERT_EQUAL(memcmp(buf, want, LINE), 0);
}

TEST(large_writes_stay_bounded) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        const char *path = scratch_path(&s, "log");
        char big[1000], buf[2048];
        struct rotated_log *l;
        uint64_t next = 0;
        struct error e;
        size_t len = 0;

        memset(big, 'x', sizeof(big));
        ASSERT_OK(rotated_log_open(path, BOUND, &l, &e), e);
        CU_ASSERT_EQUAL(rotated_log_write(l, big, sizeof(big)), 0);
        rotated_log_free(l);
        ASSERT_OK(rotated_log_read(path, 0, buf, sizeof(buf), &len, &next, &e), e);
        CU_ASSERT_EQUAL(len, BOUND);
        CU_ASSERT_EQUAL(next, 960);
        ASSERT_ERROR(rotated_log_open(path, 0, &l, &e), -EINVAL, e, "bound of 0");
}

/* The writer is killed between its two renames: PATH is missing, PATH.new is there and named in PATH.offset. */
TEST(survives_a_kill_within_a_rotation) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        char path[256], newer[300], older[300], buf[256], offsets[256];
        struct rotated_log *l;
        struct stat st, st_new;
        uint64_t next = 0;
        struct error e;
        size_t len = 0;

        snprintf(path, sizeof(path), "%s/log", s.dir);
        snprintf(newer, sizeof(newer), "%s.new", path);
        snprintf(older, sizeof(older), "%s.1", path);
        ASSERT_OK(rotated_log_open(path, BOUND, &l, &e), e);
        write_lines(l, 0, 10);
        rotated_log_free(l);
        scratch_text(&s, "log.new", "");
        CU_ASSERT_EQUAL(stat(path, &st), 0);
        CU_ASSERT_EQUAL(stat(newer, &st_new), 0);
        snprintf(offsets, sizeof(offsets), "%llu 0\n%llu %d\n", (unsigned long long)st.st_ino, (unsigned long long)st_new.st_ino, 10 * LINE);
        scratch_text(&s, "log.offset", offsets);
        CU_ASSERT_EQUAL(rename(path, older), 0);
        ASSERT_OK(rotated_log_open(path, BOUND, &l, &e), e);
        write_lines(l, 10, 11);
        rotated_log_free(l);
        ASSERT_OK(rotated_log_read(path, 10 * LINE, buf, sizeof(buf), &len, &next, &e), e);
        CU_ASSERT_EQUAL(len, LINE);
        ASSERT_OK(rotated_log_read(path, 0, buf, sizeof(buf), &len, &next, &e), e);
        CU_ASSERT_EQUAL(len, 10 * LINE);
}

TEST(damaged_offsets_are_made_anew) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        char path[256], buf[256];
        struct rotated_log *l;
        uint64_t next = 0;
        struct error e;
        size_t len = 0;

        snprintf(path, sizeof(path), "%s/log", s.dir);
        ASSERT_OK(rotated_log_open(path, BOUND, &l, &e), e);
        write_lines(l, 0, 3);
        rotated_log_free(l);
        scratch_text(&s, "log.offset", "garbage\nmore garbage -1 -2\n");
        ASSERT_ERROR(rotated_log_read(path, 0, buf, sizeof(buf), &len, &next, &e), -EAGAIN, e, "log.offset");
        ASSERT_OK(rotated_log_open(path, BOUND, &l, &e), e);
        rotated_log_free(l);
        ASSERT_OK(rotated_log_read(path, 0, buf, sizeof(buf), &len, &next, &e), e);
        CU_ASSERT_EQUAL(len, 3 * LINE);
}

struct race {
        const char *path;
        atomic_bool stop;
};

static void *keep_writing(void *arg) {
        struct race *r = arg;
        struct rotated_log *l = NULL;

        if (rotated_log_open(r->path, BOUND, &l, NULL) < 0)
                return NULL;
        for (unsigned i = 0; i < 3000; i++) {
                char buf[LINE];

                line(buf, i);
                if (rotated_log_write(l, buf, LINE) < 0)
                        break;
        }
        rotated_log_free(l);
        r->stop = true;
        return NULL;
}

TEST(a_reader_beside_a_rotating_writer_sees_true_offsets) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        struct race r = { .path = scratch_path(&s, "log") };
        uint64_t offset = 0, next = 0;
        unsigned seen = 0, wrong = 0;
        pthread_t thread;

        CU_ASSERT_EQUAL_FATAL(pthread_create(&thread, NULL, keep_writing, &r), 0);
        for (bool last = false; !last;) {
                char buf[LINE], want[LINE];
                size_t len = 0;

                last = r.stop;
                if (rotated_log_read(r.path, offset, buf, LINE, &len, &next, NULL) < 0)
                        continue;
                if (len == LINE) {
                        line(want, (unsigned)((next - LINE) / LINE));
                        wrong += memcmp(buf, want, LINE) != 0;
                        seen++;
                        last = false;
                }
                offset = next;
        }
        pthread_join(thread, NULL);
        CU_ASSERT_EQUAL(wrong, 0);
        CU_ASSERT_TRUE(seen > 0);
        CU_ASSERT_EQUAL(offset, 3000 * LINE);
}

TEST_MAIN("rotated_log")
