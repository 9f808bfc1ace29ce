/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "daemon/io/file_helper.h"
#include "tests/test.h"
#include "tests/unit/scratch.h"

#define OTHER 65534u /* nobody */
#define SERVICE 65533u

/* Storage that stands still: fsync of what lies below a folder of this name does not return while it is there (the tests' program comes before the C library). */
static _Atomic bool stands_still;
static _Atomic int stuck;

int fsync(int fd) {
        char link[40], path[300] = "";

        snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
        if (readlink(link, path, sizeof(path) - 1) > 0 && strstr(path, "/stalled/")) {
                atomic_fetch_add(&stuck, 1);
                while (atomic_load(&stands_still))
                        usleep(1000);
                atomic_fetch_sub(&stuck, 1);
        }
        return (int)syscall(SYS_fsync, fd);
}

struct scene {
        struct scratch s;
        struct loop *loop;
        struct file_helper *h;
        uint64_t next, done; /* ids in order */
        bool any_order;
        uint64_t seen; /* bit i: id i is done */
        int rc;
        char text[512];
};

static void on_done(void *arg, uint64_t id, int rc, const char *text) {
        struct scene *t = arg;

        if (t->any_order)
                t->done++;
        else
                CU_ASSERT_EQUAL(id, ++t->done);
        t->seen |= UINT64_C(1) << (id % 64);
        t->rc = rc;
        snprintf(t->text, sizeof(t->text), "%s", text);
}

static void begin(struct scene *t) {
        struct error e = { 0 };

        memset(t, 0, sizeof(*t));
        t->s = scratch_new();
        CU_ASSERT_EQUAL_FATAL(loop_new(&t->loop), 0);
        ASSERT_OK(file_helper_new(t->loop, on_done, t, &t->h, &e), e);
}

static void end(struct scene *t) {
        file_helper_free(t->h);
        loop_free(t->loop);
        scratch_free(&t->s);
}

static void add(struct scene *t, int kind, uint32_t uid, const char *path, const char *text) {
        struct file_work w = { .id = ++t->next, .uid = uid, .gid = uid, .path = path, .text = text };

        w.kind = kind == 3 ? FILE_REMOVE_STALE : kind == 2 ? FILE_REMOVE_UNFINISHED : kind == 1 ? FILE_REMOVE_TREE : FILE_WRITE_MANIFEST;
        file_helper_add(t->h, &w);
}

static int wait_done(struct scene *t) {
        uint64_t until = clock_mono_ns() + 10 * NSEC_PER_SEC;

        while (t->done < t->next && clock_mono_ns() < until)
                loop_turn(t->loop, 10);
        CU_ASSERT_EQUAL(t->done, t->next);
        return t->rc;
}

static void make_step(struct scene *t, const char *name) {
        char path[100];

        CU_ASSERT_EQUAL_FATAL(mkdir(scratch_path(&t->s, name), 0755), 0);
        snprintf(path, sizeof(path), "%.80s/shard", name);
        scratch_text(&t->s, path, "bytes");
}

static bool there(struct scene *t, const char *name) {
        return access(scratch_path(&t->s, name), F_OK) == 0;
}

/* As fp8d.service runs it: a user of its own with two capabilities. */
static void become_service(void) {
        struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
        struct __user_cap_data_struct caps[2] = { { .effective = 1u << CAP_SETUID | 1u << CAP_SETGID, .permitted = 1u << CAP_SETUID | 1u << CAP_SETGID } };

        CU_ASSERT_EQUAL_FATAL(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), 0);
        CU_ASSERT_EQUAL_FATAL(setgroups(0, NULL), 0);
        CU_ASSERT_EQUAL_FATAL(setresgid(SERVICE, SERVICE, SERVICE), 0);
        CU_ASSERT_EQUAL_FATAL(setresuid(SERVICE, SERVICE, SERVICE), 0);
        CU_ASSERT_EQUAL_FATAL(syscall(SYS_capset, &head, caps), 0);
}

static void serve_users(const struct scratch *s) {
        struct scene t = { .s = *s };
        struct stat st;
        const uint32_t users[] = { OTHER, SERVICE, 0, OTHER };

        CU_ASSERT_EQUAL_FATAL(loop_new(&t.loop), 0);
        CU_ASSERT_EQUAL_FATAL(chmod(t.s.dir, 0755), 0);
        for (size_t i = 0; i < ARRAY_SIZE(users); i++) {
                char name[40], manifest[60];

                snprintf(name, sizeof(name), "step_0000001%zu", i);
                snprintf(manifest, sizeof(manifest), "%s/manifest.json", name);
                CU_ASSERT_EQUAL_FATAL(mkdir(scratch_path(&t.s, name), 0700), 0);
                CU_ASSERT_EQUAL_FATAL(chown(scratch_path(&t.s, name), users[i], users[i]), 0);
        }
        CU_ASSERT_EQUAL_FATAL(chmod(scratch_path(&t.s, "step_00000012"), 0755), 0);
        become_service();
        CU_ASSERT_EQUAL_FATAL(file_helper_new(t.loop, on_done, &t, &t.h, NULL), 0);
        for (size_t i = 0; i < ARRAY_SIZE(users); i++) {
                char name[40];

                snprintf(name, sizeof(name), "step_0000001%zu", i);
                add(&t, 0, users[i], scratch_path(&t.s, name), "{}");
                CU_ASSERT_EQUAL(wait_done(&t), 0);
        }
        add(&t, 0, OTHER, scratch_path(&t.s, "step_00000012"), "{}"); /* not theirs */
        CU_ASSERT_EQUAL(wait_done(&t), -EACCES);
        CU_ASSERT_EQUAL(geteuid(), SERVICE);
        CU_ASSERT_EQUAL(stat(scratch_path(&t.s, "step_00000012/manifest.json"), &st), 0);
        CU_ASSERT_EQUAL(st.st_uid, 0);
        file_helper_free(t.h);
        loop_free(t.loop);
}

/* The first, since it forks: threads of helpers are detached, and one that still ends would leave its locks (those of a sanitizer's allocator) held in the new process for ever. */
TEST(a_service_with_two_capabilities_serves_every_user) {
        struct scratch s;
        int status = 0;
        pid_t pid;

        if (geteuid() != 0) {
                printf("(needs root) ");
                return;
        }
        s = scratch_new();
        fflush(NULL);
        pid = fork();
        CU_ASSERT_NOT_EQUAL_FATAL(pid, -1);
        if (pid == 0) {
                serve_users(&s);
                _exit(CU_get_number_of_failures() > 0);
        }
        CU_ASSERT_EQUAL(waitpid(pid, &status, 0), pid);
        CU_ASSERT_EQUAL(status, 0);
        scratch_free(&s);
}

TEST(a_manifest_is_there_whole_or_not) {
        struct scene t;
        char *text = NULL;
        size_t len = 0;
        struct error e = { 0 };
        struct stat st;

        begin(&t);
        make_step(&t, "step_00000010.e1.1");
        add(&t, 0, geteuid(), scratch_path(&t.s, "step_00000010.e1.1"), "{\"step\": 10}");
        CU_ASSERT_EQUAL(wait_done(&t), 0);
        ASSERT_OK(file_read(scratch_path(&t.s, "step_00000010.e1.1/manifest.json"), 4096, &text, &len, &e), e);
        CU_ASSERT_STRING_EQUAL(text, "{\"step\": 10}");
        free(text);
        text = NULL;
        /* Written again: another file takes its place, what was open stays as it was. */
        CU_ASSERT_EQUAL_FATAL(stat(t.s.path, &st), 0);
        ino_t was = st.st_ino;
        add(&t, 0, geteuid(), scratch_path(&t.s, "step_00000010.e1.1"), "{\"step\": 11}");
        CU_ASSERT_EQUAL(wait_done(&t), 0);
        CU_ASSERT_EQUAL_FATAL(stat(scratch_path(&t.s, "step_00000010.e1.1/manifest.json"), &st), 0);
        CU_ASSERT_NOT_EQUAL(st.st_ino, was);
        /* Nothing else was left there, and into a folder that is not there nothing is written. */
        add(&t, 0, geteuid(), scratch_path(&t.s, "step_00000020.e1.1"), "{}");
        CU_ASSERT_EQUAL(wait_done(&t), -ENOENT);
        CU_ASSERT_TRUE(strstr(t.text, "step_00000020.e1.1") != NULL);
        CU_ASSERT_EQUAL(unlink(scratch_path(&t.s, "step_00000010.e1.1/shard")), 0);
        CU_ASSERT_EQUAL(unlink(scratch_path(&t.s, "step_00000010.e1.1/manifest.json")), 0);
        CU_ASSERT_EQUAL(rmdir(scratch_path(&t.s, "step_00000010.e1.1")), 0);
        end(&t);
}

TEST(only_step_folders_are_removed) {
        static const char *const bad[] = { "", "/step_00000010/..", "/step_00000010/../keep", "/keep", "/step_", "/keep/step", "/step_00000010/../../step_00000010", "/step_00000010/.", "/./step_00000010" };
        struct scene t;
        char path[400];

        begin(&t);
        make_step(&t, "keep");
        make_step(&t, "step_00000010");
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                snprintf(path, sizeof(path), "%s%s", t.s.dir, bad[i]);
                add(&t, 1, geteuid(), path, NULL);
                CU_ASSERT_EQUAL(wait_done(&t), -EINVAL);
                CU_ASSERT_TRUE(strstr(t.text, "step_*") != NULL);
        }
        add(&t, 1, geteuid(), "step_00000010", NULL); /* relative */
        CU_ASSERT_EQUAL(wait_done(&t), -EINVAL);
        CU_ASSERT_TRUE(there(&t, "keep/shard"));
        CU_ASSERT_TRUE(there(&t, "step_00000010/shard"));
        add(&t, 1, geteuid(), scratch_path(&t.s, "step_00000010"), NULL);
        CU_ASSERT_EQUAL(wait_done(&t), 0);
        CU_ASSERT_FALSE(there(&t, "step_00000010"));
        end(&t);
}

/* A link out of the folder is removed, what it leads to is not. */
TEST(removal_follows_no_links) {
        struct scene t;
        char target[300];

        begin(&t);
        make_step(&t, "keep");
        make_step(&t, "step_00000010");
        snprintf(target, sizeof(target), "%s", scratch_path(&t.s, "keep"));
        CU_ASSERT_EQUAL_FATAL(symlink(target, scratch_path(&t.s, "step_00000010/link")), 0);
        add(&t, 1, geteuid(), scratch_path(&t.s, "step_00000010"), NULL);
        CU_ASSERT_EQUAL(wait_done(&t), 0);
        CU_ASSERT_FALSE(there(&t, "step_00000010"));
        CU_ASSERT_TRUE(there(&t, "keep/shard"));
        CU_ASSERT_EQUAL_FATAL(symlink(target, scratch_path(&t.s, "step_00000020")), 0);
        add(&t, 1, geteuid(), scratch_path(&t.s, "step_00000020"), NULL);
        wait_done(&t);
        CU_ASSERT_TRUE(there(&t, "keep/shard"));
        end(&t);
}

TEST(stale_folders_are_unfinished_ones_of_earlier_epochs) {
        static const char *const stay[] = { "step_00000020.e1.1", "step_00000030.e3.1", "step_00000030.e12.1", "keep", "step_x.e1.1", "step_00000040.e1.1.old" };
        struct scene t;
        char name[80];

        begin(&t);
        for (size_t i = 0; i < ARRAY_SIZE(stay); i++)
                make_step(&t, stay[i]);
        scratch_text(&t.s, "step_00000020.e1.1/manifest.json", "{}");
        make_step(&t, "step_00000010.e1.1");
        make_step(&t, "step_00000030.e2.7");
        add(&t, 3, geteuid(), t.s.dir, "3");
        CU_ASSERT_EQUAL(wait_done(&t), 0);
        CU_ASSERT_FALSE(there(&t, "step_00000010.e1.1"));
        CU_ASSERT_FALSE(there(&t, "step_00000030.e2.7"));
        for (size_t i = 0; i < ARRAY_SIZE(stay); i++) {
                snprintf(name, sizeof(name), "%s/shard", stay[i]);
                CU_ASSERT_TRUE(there(&t, name));
        }
        add(&t, 3, geteuid(), scratch_path(&t.s, "never_made"), "3");
        CU_ASSERT_EQUAL(wait_done(&t), 0);
        end(&t);
}

TEST(unfinished_folders_are_those_without_a_manifest) {
        struct scene t;

        begin(&t);
        make_step(&t, "step_00000010");
        make_step(&t, "step_00000020");
        scratch_text(&t.s, "step_00000020/manifest.json", "{}");
        make_step(&t, "keep");
        add(&t, 2, geteuid(), scratch_path(&t.s, "step_00000010"), NULL);
        CU_ASSERT_EQUAL(wait_done(&t), 0);
        add(&t, 2, geteuid(), scratch_path(&t.s, "step_00000020"), NULL);
        CU_ASSERT_EQUAL(wait_done(&t), 0);
        add(&t, 2, geteuid(), scratch_path(&t.s, "step_00000030"), NULL); /* not there */
        CU_ASSERT_EQUAL(wait_done(&t), 0);
        add(&t, 2, geteuid(), scratch_path(&t.s, "keep"), NULL);
        CU_ASSERT_EQUAL(wait_done(&t), -EINVAL);
        CU_ASSERT_FALSE(there(&t, "step_00000010"));
        CU_ASSERT_TRUE(there(&t, "step_00000020/shard"));
        CU_ASSERT_TRUE(there(&t, "keep/shard"));
        end(&t);
}

TEST(works_are_done_in_order_and_what_waits_is_forgotten_at_the_end) {
        struct scene t;
        char path[100];

        begin(&t);
        for (int i = 0; i < 50; i++) {
                snprintf(path, sizeof(path), "step_%08d", i);
                make_step(&t, path);
                add(&t, 1, geteuid(), scratch_path(&t.s, path), NULL);
        }
        CU_ASSERT_EQUAL(wait_done(&t), 0);
        for (int i = 0; i < 50; i++)
                add(&t, 1, geteuid(), "/nowhere/keep", NULL);
        t.h = file_helper_free(t.h);
        CU_ASSERT_PTR_NULL(t.h);
        end(&t);
}

TEST(a_mount_that_stands_still_holds_up_its_own_jobs_only) {
        struct scene t;
        uint64_t until = clock_mono_ns() + 10 * NSEC_PER_SEC;

        begin(&t);
        t.any_order = true;
        for (int i = 0; i < 2; i++) {
                char name[80];

                CU_ASSERT_EQUAL_FATAL(mkdir(scratch_path(&t.s, i ? "b" : "a"), 0755), 0);
                snprintf(name, sizeof(name), "%s/stalled", i ? "b" : "a");
                CU_ASSERT_EQUAL_FATAL(mkdir(scratch_path(&t.s, name), 0755), 0);
                snprintf(name, sizeof(name), "%s/stalled/step_00000010", i ? "b" : "a");
                make_step(&t, name);
        }
        atomic_store(&stands_still, true);
        add(&t, 0, geteuid(), scratch_path(&t.s, "a/stalled/step_00000010"), "{}"); /* ids 1, 2: of two jobs */
        add(&t, 0, geteuid(), scratch_path(&t.s, "b/stalled/step_00000010"), "{}");
        CU_ASSERT_EQUAL_FATAL(mkdir(scratch_path(&t.s, "well"), 0755), 0);
        make_step(&t, "well/step_00000010");
        for (int i = 0; i < 2; i++) { /* ids 3, 5 wait behind 1; 4, 6 are done */
                add(&t, 2, geteuid(), scratch_path(&t.s, "a/stalled/step_00000010"), NULL);
                add(&t, 0, geteuid(), scratch_path(&t.s, "well/step_00000010"), "{}");
        }
        while (t.done < 2 && clock_mono_ns() < until)
                loop_turn(t.loop, 10);
        while (atomic_load(&stuck) < 2 && clock_mono_ns() < until)
                usleep(1000);
        CU_ASSERT_EQUAL(t.seen, 1 << 4 | 1 << 6);
        CU_ASSERT_TRUE(there(&t, "well/step_00000010/manifest.json"));
        atomic_store(&stands_still, false);
        CU_ASSERT_EQUAL(wait_done(&t), 0);
        CU_ASSERT_EQUAL(t.seen, 0x7e);
        CU_ASSERT_TRUE(there(&t, "a/stalled/step_00000010/manifest.json"));
        end(&t);
}

TEST(what_there_is_no_memory_for_is_answered) {
        struct scene t;

        begin(&t);
        t.any_order = true;
        t.next = 2;
        file_helper_refuse(t.h, 1);
        file_helper_refuse(t.h, 2);
        CU_ASSERT_EQUAL(wait_done(&t), -ENOMEM);
        CU_ASSERT_EQUAL(t.seen, 1 << 1 | 1 << 2);
        end(&t);
}

/* As root: the helper acts as the job's user, and this thread stays who it is. */
TEST(files_are_written_and_removed_as_the_user) {
        struct scene t;
        struct stat st;

        if (geteuid() != 0) {
                printf("(needs root) ");
                return;
        }
        begin(&t);
        CU_ASSERT_EQUAL_FATAL(chmod(t.s.dir, 0755), 0);
        CU_ASSERT_EQUAL_FATAL(mkdir(scratch_path(&t.s, "theirs"), 0700), 0);
        CU_ASSERT_EQUAL_FATAL(chown(scratch_path(&t.s, "theirs"), OTHER, OTHER), 0);
        make_step(&t, "theirs/step_00000010");
        CU_ASSERT_EQUAL_FATAL(chown(scratch_path(&t.s, "theirs/step_00000010"), OTHER, OTHER), 0);
        make_step(&t, "step_00000020"); /* root's */
        add(&t, 0, OTHER, scratch_path(&t.s, "theirs/step_00000010"), "{}");
        CU_ASSERT_EQUAL(wait_done(&t), 0);
        CU_ASSERT_EQUAL_FATAL(stat(scratch_path(&t.s, "theirs/step_00000010/manifest.json"), &st), 0);
        CU_ASSERT_EQUAL(st.st_uid, OTHER);
        CU_ASSERT_EQUAL(st.st_gid, OTHER);
        CU_ASSERT_EQUAL(geteuid(), 0);
        add(&t, 0, OTHER, scratch_path(&t.s, "step_00000020"), "{}");
        CU_ASSERT_EQUAL(wait_done(&t), -EACCES);
        add(&t, 1, OTHER, scratch_path(&t.s, "step_00000020"), NULL);
        CU_ASSERT_EQUAL(wait_done(&t), -EACCES);
        CU_ASSERT_TRUE(there(&t, "step_00000020/shard"));
        add(&t, 1, 0, scratch_path(&t.s, "step_00000020"), NULL); /* root again */
        CU_ASSERT_EQUAL(wait_done(&t), 0);
        add(&t, 1, OTHER, scratch_path(&t.s, "theirs/step_00000010"), NULL);
        CU_ASSERT_EQUAL(wait_done(&t), 0);
        CU_ASSERT_FALSE(there(&t, "theirs/step_00000010"));
        CU_ASSERT_FALSE(there(&t, "step_00000020"));
        end(&t);
}

TEST_MAIN("file_helper")
