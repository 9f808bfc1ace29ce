/* SPDX-License-Identifier: Apache-2.0 */
/* Copies of snapshots on a node's own disk: what counts as one, what is refused, and what is cleared away. */
#include "tests/test.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/scratch.h"
#include "worker/agent/local_copies.h"

#define CLUSTER "c1"

static const char image[] = "not a shard, but bytes with a digest are all that is asked for here";

/* A copy as a rank leaves it, sealed or not. */
static struct local_copy add(struct scratch *s, uint64_t job, uint32_t rank, uint64_t step, uint64_t epoch, bool seal) {
        _cleanup_free_ char *dir = local_copies_of_job(s->dir, CLUSTER, job), *folder = local_copy_folder(dir, rank, step, epoch);
        _cleanup_free_ char *file = file_path("%s/shard-%05u-of-00004.safetensors", folder, rank);
        struct local_copy c = { .job = job, .step = step, .epoch = epoch, .bytes = sizeof(image), .rank = rank, .ranks = 4, .digest = digest_of(image, sizeof(image)), .layout = "tp2.pp1.dp2/x" };
        struct error e = { 0 };

        CU_ASSERT_EQUAL_FATAL(file_mkdir_p(folder, 0777, &e), 0);
        CU_ASSERT_EQUAL_FATAL(file_write_atomic(file, image, sizeof(image), 0644, &e), 0);
        if (seal)
                CU_ASSERT_EQUAL(local_copy_seal(folder, &c, &e), 0);
        return c;
}

static char *folder_of(struct scratch *s, uint64_t job, uint32_t rank, uint64_t step, uint64_t epoch) {
        _cleanup_free_ char *dir = local_copies_of_job(s->dir, CLUSTER, job);

        return local_copy_folder(dir, rank, step, epoch);
}

static size_t count(struct scratch *s, uint64_t job) {
        _cleanup_free_ struct local_copy *list = NULL;
        struct error e = { 0 };
        size_t n = 0;

        CU_ASSERT_EQUAL(local_copies_of(s->dir, CLUSTER, job, &list, &n, &e), 0);
        return n;
}

TEST(what_was_sealed_is_listed_newest_first_and_read_back) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        _cleanup_free_ char *folder = folder_of(&s, 7, 2, 9, 3), *dir = local_copies_of_job(s.dir, CLUSTER, 7), *rank_dir = local_copies_of_rank(dir, 2);
        _cleanup_free_ struct local_copy *list = NULL;
        struct local_copy c;
        struct error e = { 0 };
        char buf[sizeof(image)];
        size_t n = 0;

        add(&s, 7, 2, 6, 2, true);
        add(&s, 7, 2, 9, 3, true);
        add(&s, 7, 2, 12, 3, false); /* killed before it was whole */
        CU_ASSERT_EQUAL(local_copies_list(rank_dir, &list, &n, &e), 0);
        CU_ASSERT_EQUAL_FATAL(n, 2);
        CU_ASSERT(list[0].step == 9 && list[0].epoch == 3 && list[1].step == 6);
        CU_ASSERT_EQUAL(local_copy_read(folder, &c, &e), 0);
        CU_ASSERT(c.job == 7 && c.rank == 2 && c.ranks == 4 && c.bytes == sizeof(image) && strcmp(c.layout, "tp2.pp1.dp2/x") == 0);
        CU_ASSERT_EQUAL(local_copy_load(folder, &c, buf, &e), 0);
        CU_ASSERT_EQUAL(memcmp(buf, image, sizeof(image)), 0);
        CU_ASSERT_EQUAL(count(&s, 7), 2);
        CU_ASSERT_EQUAL(count(&s, 8), 0);
        CU_ASSERT_PTR_NULL(local_copies_of_job(s.dir, "../x", 7));
}

/* Every bit of the manifest and every byte of the shard: nothing that was changed is taken for what was written. */
TEST(whatever_is_changed_is_found) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        _cleanup_free_ char *folder = folder_of(&s, 7, 1, 6, 2), *manifest = file_path("%s/manifest.json", folder), *shard = file_path("%s/shard-00001-of-00004.safetensors", folder);
        _cleanup_free_ char *text = NULL;
        struct local_copy want = add(&s, 7, 1, 6, 2, true), c;
        struct error e = { 0 };
        char buf[sizeof(image)], bad[sizeof(image)];
        size_t len = 0, refused = 0;

        CU_ASSERT_EQUAL_FATAL(file_read(manifest, 4096, &text, &len, &e), 0);
        for (size_t i = 0; i < len; i++) {
                text[i] ^= 1;
                CU_ASSERT_EQUAL_FATAL(file_write_atomic(manifest, text, len, 0644, &e), 0);
                text[i] ^= 1;
                if (local_copy_read(folder, &c, &e) < 0 || c.job != 7 || strcmp(c.layout, want.layout) != 0 || local_copy_load(folder, &c, buf, &e) < 0)
                        refused++; /* here, or by the rank that compares job and layout */
                else
                        CU_ASSERT(c.step == 6 && c.epoch == 2 && c.rank == 1 && memcmp(buf, image, sizeof(image)) == 0);
        }
        CU_ASSERT(refused > len / 2);
        CU_ASSERT_EQUAL_FATAL(file_write_atomic(manifest, text, len, 0644, &e), 0);
        for (size_t i = 0; i < sizeof(image); i++) {
                memcpy(bad, image, sizeof(bad));
                bad[i] ^= 0x10;
                CU_ASSERT_EQUAL_FATAL(file_write_atomic(shard, bad, sizeof(bad), 0644, &e), 0);
                CU_ASSERT_EQUAL(local_copy_load(folder, &want, buf, &e), -EBADMSG);
        }
        CU_ASSERT_EQUAL_FATAL(truncate(shard, 10), 0);
        CU_ASSERT_EQUAL(local_copy_load(folder, &want, buf, &e), -EBADMSG);
        CU_ASSERT_EQUAL(local_copy_read(folder, &c, &e), -EBADMSG);
        CU_ASSERT_EQUAL_FATAL(unlink(shard), 0);
        CU_ASSERT_EQUAL_FATAL(symlink("/etc/passwd", shard), 0);
        CU_ASSERT_EQUAL(local_copy_read(folder, &c, &e), -EBADMSG);
        CU_ASSERT_EQUAL(local_copy_load(folder, &want, buf, &e), -ELOOP);
}

TEST(under_another_rank_or_step_it_does_not_count) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        _cleanup_free_ char *from = folder_of(&s, 7, 1, 6, 2), *to = folder_of(&s, 7, 1, 9, 2), *of1 = file_path("%s/" CLUSTER ".7/rank-00001", s.dir), *of3 = file_path("%s/" CLUSTER ".7/rank-00003", s.dir);
        struct local_copy c;
        struct error e = { 0 };

        add(&s, 7, 1, 6, 2, true);
        CU_ASSERT_EQUAL_FATAL(rename(from, to), 0);
        CU_ASSERT_EQUAL(local_copy_read(to, &c, &e), -EBADMSG);
        CU_ASSERT_EQUAL_FATAL(rename(to, from), 0);
        CU_ASSERT_EQUAL(count(&s, 7), 1);
        CU_ASSERT_EQUAL_FATAL(rename(of1, of3), 0);
        CU_ASSERT_EQUAL(count(&s, 7), 0);
}

TEST(a_rank_keeps_those_it_names) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        _cleanup_free_ char *dir = local_copies_of_job(s.dir, CLUSTER, 7), *rank_dir = local_copies_of_rank(dir, 0), *litter = folder_of(&s, 7, 0, 12, 3);
        struct local_copy keep = add(&s, 7, 0, 6, 2, true);
        struct error e = { 0 };

        add(&s, 7, 0, 3, 2, true);
        add(&s, 7, 0, 6, 1, true); /* of an epoch that is over */
        add(&s, 7, 0, 12, 3, false);
        CU_ASSERT_EQUAL(local_copies_retain(rank_dir, &keep, 1, &e), 0);
        CU_ASSERT_EQUAL(count(&s, 7), 1);
        CU_ASSERT_EQUAL(access(litter, F_OK), -1);
        CU_ASSERT_EQUAL(local_copies_retain("/nowhere/at/all", &keep, 1, &e), 0);
}

static bool there(struct scratch *s, const char *name) {
        return access(scratch_path(s, name), F_OK) == 0;
}

TEST(space_is_made_from_jobs_that_do_not_run_here_the_oldest_first) {
        static const struct local_rank_place here[] = { { 9, 0 }, { 9, 1 } };
        _cleanup_scratch_ struct scratch s = scratch_new();
        struct timespec times[2] = { { .tv_sec = 1 }, { .tv_sec = 1 } };
        _cleanup_free_ uint64_t *jobs = NULL;
        struct error e = { 0 };
        size_t n = 0;

        for (uint64_t job = 7; job <= 9; job++)
                for (uint32_t rank = 0; rank < 3; rank++)
                        add(&s, job, rank, 6, 2, true);
        CU_ASSERT_EQUAL_FATAL(mkdir(scratch_path(&s, "other.3"), 0700), 0);
        scratch_text(&s, "other.3/file", "of another cluster");
        CU_ASSERT_EQUAL(utimensat(AT_FDCWD, scratch_path(&s, "other.3"), times, 0), 0);
        times[0].tv_sec = times[1].tv_sec = 2;
        CU_ASSERT_EQUAL(utimensat(AT_FDCWD, scratch_path(&s, CLUSTER ".8"), times, 0), 0);
        CU_ASSERT_EQUAL(local_copies_jobs(s.dir, CLUSTER, &jobs, &n, &e), 0);
        CU_ASSERT_EQUAL(n, 3);
        CU_ASSERT_EQUAL(local_copies_prune(s.dir, CLUSTER, here, 2, 1 << 20, &e), 0);
        CU_ASSERT(there(&s, CLUSTER ".7") && there(&s, CLUSTER ".8") && there(&s, "other.3"));
        CU_ASSERT_EQUAL(count(&s, 9), 2); /* rank 2 is elsewhere now */
        CU_ASSERT_EQUAL(local_copies_prune(s.dir, CLUSTER, here, 2, 1200, &e), 2);
        CU_ASSERT(there(&s, CLUSTER ".7") && !there(&s, CLUSTER ".8") && !there(&s, "other.3"));
        CU_ASSERT_EQUAL(local_copies_prune(s.dir, CLUSTER, here, 2, 0, &e), 1);
        CU_ASSERT_EQUAL(count(&s, 9), 2);
        CU_ASSERT_EQUAL(local_copies_remove(s.dir, CLUSTER, 9, &e), 0);
        CU_ASSERT_EQUAL(count(&s, 9), 0);
        CU_ASSERT_EQUAL(local_copies_remove(s.dir, CLUSTER, 9, &e), 0);
}

TEST_MAIN("local-copy")
