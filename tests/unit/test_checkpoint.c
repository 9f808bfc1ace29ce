/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "tests/test.h"
#include "worker/ckpt/checkpoint.h"

DEFINE_CLEANUP(struct checkpoint_manifest *, checkpoint_manifest_free);

#define MANIFEST _cleanup_(checkpoint_manifest_freep) struct checkpoint_manifest *

static char *new_dir(void) {
        char *dir = strdup("/tmp/fp8ctl-ckpt-XXXXXX");

        CU_ASSERT_PTR_NOT_NULL_FATAL(dir);
        CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(dir));
        return dir;
}

static void remove_dirp(char **dir) {
        (void)file_remove_tree(*dir, NULL);
        free(*dir);
}

struct outcome {
        int calls, rc;
        struct digest digest;
        char file[100], text[1024];
};

static void written(void *arg, int rc, const char *text, struct digest d, const char *file) {
        struct outcome *o = arg;

        o->calls++;
        o->rc = rc;
        o->digest = d;
        (void)snprintf(o->file, sizeof(o->file), "%s", file ? file : "");
        (void)snprintf(o->text, sizeof(o->text), "%s", text);
}

static int start_write(const char *folder, int rank, int n_ranks, const void *image, size_t len, struct outcome *o, struct checkpoint_write **w, struct error *e) {
        return checkpoint_write_start(&(struct checkpoint_write_order){ .folder = folder, .rank = rank, .n_ranks = n_ranks, .image = image, .len = len, .done = written, .arg = o },
                                      w, e);
}

/* One tensor of n values, written as the shard of a rank. */
static struct outcome write_shard(const char *folder, int rank, int n_ranks, dev_real *values, int64_t row0, int64_t rows) {
        struct shard_tensor t = { "w", DT_F32, 64, 8, row0, rows, 0, 8, values };
        struct checkpoint_write *w = NULL;
        struct shard_layout *l = NULL;
        struct outcome o = { 0 };
        struct error e = { 0 };
        void *image;

        ASSERT_OK(shard_layout_new(&t, 1, 100, &l, &e), e);
        image = malloc(shard_layout_bytes(l));
        CU_ASSERT_PTR_NOT_NULL_FATAL(image);
        ASSERT_OK(shard_write(l, NULL, NULL, "{\"step\":3}", image, &e), e);
        ASSERT_OK(start_write(folder, rank, n_ranks, image, shard_layout_bytes(l), &o, &w, &e), e);
        w = checkpoint_write_free(w);
        free(image);
        shard_layout_free(l);
        return o;
}

static void write_manifest(const char *folder, uint64_t step, uint64_t epoch, unsigned attempt, const struct outcome *o, int n) {
        _cleanup_free_ char *path = file_path("%s/%s", folder, CHECKPOINT_MANIFEST), *text = NULL;
        struct error e = { 0 };
        size_t len = 0;
        FILE *f = open_memstream(&text, &len);

        CU_ASSERT_PTR_NOT_NULL_FATAL(f);
        fprintf(f, "{\"format\":\"fp8ctl-checkpoint\",\"version\":1,\"job\":4,\"name\":\"t\",\"step\":%" PRIu64 ",\"epoch\":%" PRIu64 ",\"attempt\":%u,"
                   "\"layout\":\"tp1.pp1.dp%d\",\"shards\":[", step, epoch, attempt, n);
        for (int i = n - 1; i >= 0; i--) { /* in any order */
                char hex[DIGEST_HEX_SIZE];
                _cleanup_free_ char *file = file_path("%s/%s", folder, o[i].file);
                struct stat st;

                CU_ASSERT_EQUAL(stat(file, &st), 0);
                digest_hex(o[i].digest, hex);
                fprintf(f, "{\"file\":\"%s\",\"bytes\":%" PRId64 ",\"digest\":\"%s\",\"rank\":%d}%s", o[i].file, (int64_t)st.st_size, hex, i, i ? "," : "");
        }
        fprintf(f, "],\"state\":{\"step\":%" PRIu64 ",\"scale\":0.1}}", step);
        fclose(f);
        ASSERT_OK(file_write_atomic(path, text, len, 0644, &e), e);
}

/* Two shards of 32 rows each; values are `base` + index. */
static void write_checkpoint(const char *dir, uint64_t step, uint64_t epoch, unsigned attempt, double base, char **ret_folder) {
        dev_real values[512];
        char name[64];
        struct outcome o[2];

        checkpoint_step_name(step, epoch, attempt, name, sizeof(name));
        *ret_folder = file_path("%s/%s", dir, name);
        for (int i = 0; i < 512; i++)
                values[i] = (dev_real)(base + i);
        for (int i = 0; i < 2; i++) {
                o[i] = write_shard(*ret_folder, i, 2, values + i * 256, i * 32, 32);
                CU_ASSERT_EQUAL(o[i].rc, 0);
        }
        write_manifest(*ret_folder, step, epoch, attempt, o, 2);
}

TEST(step_names) {
        char buf[64];

        checkpoint_step_name(1000, 7, 1, buf, sizeof(buf));
        CU_ASSERT_STRING_EQUAL(buf, "step_00001000.e7.1");
        checkpoint_step_name(1234567890, 12, 3, buf, sizeof(buf));
        CU_ASSERT_STRING_EQUAL(buf, "step_1234567890.e12.3");
}

TEST(written_durable_and_whole) {
        _cleanup_(remove_dirp) char *dir = new_dir();
        _cleanup_free_ char *folder = file_path("%s/a/b", dir), *path = NULL, *data = NULL;
        dev_real values[512] = { 1 };
        struct error e = { 0 };
        struct outcome o = write_shard(folder, 3, 8, values, 0, 64);
        struct shard_view *v = NULL;
        struct digest d;
        size_t len;

        CU_ASSERT_EQUAL(o.calls, 1);
        CU_ASSERT_EQUAL(o.rc, 0);
        CU_ASSERT_STRING_EQUAL(o.file, "shard-00003-of-00008.safetensors");
        path = file_path("%s/%s", folder, o.file);
        ASSERT_OK(digest_file(path, &d, &e), e);
        CU_ASSERT(digest_equal(d, o.digest));
        ASSERT_OK(file_read(path, 1 << 20, &data, &len, &e), e);
        ASSERT_OK(shard_view_open(data, len, &v, &e), e);
        CU_ASSERT_EQUAL(shard_view_count(v), 1);
        CU_ASSERT_STRING_EQUAL(shard_view_state(v), "{\"step\":3}");
        CU_ASSERT(memcmp(shard_view_find(v, "w")->data, values, sizeof(values)) == 0);
        v = shard_view_free(v);
}

/* Sizes around the blocks and the alignment that direct writes need. */
TEST(any_size_is_written_exactly) {
        static const size_t sizes[] = { 1, 511, 4095, 4096, 4097, (8 << 20) - 1, 8 << 20, (8 << 20) + 1, (17 << 20) + 12345 };
        _cleanup_(remove_dirp) char *dir = new_dir();
        uint8_t *image = malloc(18 << 20);

        CU_ASSERT_PTR_NOT_NULL_FATAL(image);
        for (size_t i = 0; i < 18 << 20; i++)
                image[i] = (uint8_t)(i * 2654435761u >> 24);
        for (size_t k = 0; k < ARRAY_SIZE(sizes); k++) {
                struct checkpoint_write *w = NULL;
                struct outcome o = { 0 };
                struct error e = { 0 };
                _cleanup_free_ char *path = NULL, *data = NULL;
                size_t len = 0;

                ASSERT_OK(start_write(dir, (int)k, 100, image, sizes[k], &o, &w, &e), e);
                w = checkpoint_write_free(w);
                CU_ASSERT_EQUAL_FATAL(o.rc, 0);
                CU_ASSERT(digest_equal(o.digest, digest_of(image, sizes[k])));
                path = file_path("%s/%s", dir, o.file);
                ASSERT_OK(file_read(path, 32 << 20, &data, &len, &e), e);
                CU_ASSERT_EQUAL_FATAL(len, sizes[k]);
                CU_ASSERT(memcmp(data, image, len) == 0);
        }
        free(image);
}

/* One write after another under one name: nothing of the larger one is left in the smaller. */
TEST(a_write_is_used_again) {
        static const size_t sizes[] = { 70000, 5000, 70001, 1 };
        _cleanup_(remove_dirp) char *dir = new_dir();
        struct checkpoint_write *w = NULL;
        struct error e = { 0 };
        uint8_t image[70001];

        for (size_t k = 0; k < ARRAY_SIZE(sizes); k++) {
                _cleanup_free_ char *path = NULL, *data = NULL;
                struct outcome o = { 0 };
                size_t len = 0;

                memset(image, (int)k + 1, sizeof(image));
                ASSERT_OK(start_write(dir, 0, 1, image, sizes[k], &o, &w, &e), e);
                checkpoint_write_wait(w);
                CU_ASSERT(!checkpoint_write_busy(w));
                CU_ASSERT_EQUAL(checkpoint_write_progress(w), sizes[k]);
                CU_ASSERT_EQUAL(o.calls, 1);
                CU_ASSERT_EQUAL_FATAL(o.rc, 0);
                path = file_path("%s/%s", dir, o.file);
                ASSERT_OK(file_read(path, 1 << 20, &data, &len, &e), e);
                CU_ASSERT_EQUAL_FATAL(len, sizes[k]);
                CU_ASSERT(memcmp(data, image, len) == 0 && digest_equal(o.digest, digest_of(image, len)));
        }
        CU_ASSERT_EQUAL(start_write(dir, 1, 1, image, 1, NULL, &w, &e), -EINVAL);
        CU_ASSERT_PTR_NOT_NULL(w);
        w = checkpoint_write_free(w);
}

TEST(a_write_that_fails_says_so) {
        _cleanup_(remove_dirp) char *dir = new_dir();
        _cleanup_free_ char *blocker = file_path("%s/file", dir), *folder = file_path("%s/file/step", dir);
        struct error e = { 0 };
        dev_real values[8] = { 0 };
        struct outcome o;

        ASSERT_OK(file_write_atomic(blocker, "x", 1, 0644, &e), e);
        o = write_shard(folder, 0, 1, values, 0, 1);
        CU_ASSERT_EQUAL(o.calls, 1);
        CU_ASSERT_EQUAL(o.rc, -ENOTDIR);
        CU_ASSERT(strlen(o.text) > 0 && !o.file[0]);
}

TEST(verified_and_loaded) {
        _cleanup_(remove_dirp) char *dir = new_dir();
        _cleanup_free_ char *folder = NULL;
        struct error e = { 0 };
        MANIFEST m = NULL;
        dev_real part[20 * 3] = { 0 };
        struct shard_tensor want = { "w", DT_F32, 64, 8, 22, 20, 5, 3, part };

        write_checkpoint(dir, 12, 2, 1, 1000, &folder);
        ASSERT_OK(checkpoint_manifest_read(folder, &m, &e), e);
        CU_ASSERT_EQUAL(checkpoint_manifest_step(m), 12);
        CU_ASSERT_EQUAL(checkpoint_manifest_epoch(m), 2);
        CU_ASSERT_EQUAL(checkpoint_manifest_attempt(m), 1);
        CU_ASSERT_EQUAL(checkpoint_manifest_shards(m), 2);
        CU_ASSERT_STRING_EQUAL(checkpoint_manifest_layout(m), "tp1.pp1.dp2");
        CU_ASSERT_PTR_NOT_NULL(strstr(checkpoint_manifest_state(m), "\"scale\":0.1"));
        ASSERT_OK(checkpoint_verify(folder, m, &e), e);
        ASSERT_OK(checkpoint_load(folder, m, &want, 1, NULL, NULL, &e), e);
        for (int r = 0; r < 20; r++)
                for (int c = 0; c < 3; c++)
                        CU_ASSERT_EQUAL(part[r * 3 + c], (dev_real)(1000 + (22 + r) * 8 + 5 + c));
        /* what is not there, or is not what is asked for */
        strcpy(want.name, "exp_avg:w");
        ASSERT_ERROR(checkpoint_load(folder, m, &want, 1, NULL, NULL, &e), -ENODATA, e, "no shard holds rows [22,42) of 64, columns [5,8) of 8 of exp_avg:w");
        strcpy(want.name, "w");
        want.dtype = DT_BF16;
        ASSERT_ERROR(checkpoint_load(folder, m, &want, 1, NULL, NULL, &e), -EINVAL, e, "expected BF16");
        want.dtype = DT_F32;
        want.global_rows = 65;
        ASSERT_ERROR(checkpoint_load(folder, m, &want, 1, NULL, NULL, &e), -EINVAL, e, "[64, 8], expected");
}

/* Flips a byte of a file, or cuts its last one off. */
static void spoil(const char *folder, const char *file, bool cut) {
        _cleanup_free_ char *path = file_path("%s/%s", folder, file);
        _cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC);
        struct stat st;
        uint8_t b;

        CU_ASSERT_FATAL(fd >= 0 && fstat(fd, &st) == 0);
        if (cut) {
                CU_ASSERT_EQUAL(ftruncate(fd, st.st_size - 1), 0);
                return;
        }
        CU_ASSERT_EQUAL(pread(fd, &b, 1, st.st_size - 1), 1);
        b ^= 1;
        CU_ASSERT_EQUAL(pwrite(fd, &b, 1, st.st_size - 1), 1);
}

TEST(the_bad_shard_is_named) {
        for (int cut = 0; cut < 2; cut++) {
                _cleanup_(remove_dirp) char *dir = new_dir();
                _cleanup_free_ char *folder = NULL, *missing = NULL;
                struct error e = { 0 };
                MANIFEST m = NULL;
                dev_real part[8];
                struct shard_tensor first = { "w", DT_F32, 64, 8, 0, 1, 0, 8, part }, last = { "w", DT_F32, 64, 8, 63, 1, 0, 8, part };

                write_checkpoint(dir, 1, 1, 1, 0, &folder);
                ASSERT_OK(checkpoint_manifest_read(folder, &m, &e), e);
                spoil(folder, "shard-00001-of-00002.safetensors", cut);
                ASSERT_ERROR(checkpoint_verify(folder, m, &e), -EBADMSG, e, "shard-00001-of-00002.safetensors: found");
                ASSERT_ERROR(checkpoint_load(folder, m, &last, 1, NULL, NULL, &e), -EBADMSG, e, "shard-00001-of-00002.safetensors: found");
                /* a shard that is not needed is not read */
                if (!cut)
                        ASSERT_OK(checkpoint_load(folder, m, &first, 1, NULL, NULL, &e), e);
                missing = file_path("%s/shard-00000-of-00002.safetensors", folder);
                CU_ASSERT_EQUAL(unlink(missing), 0);
                ASSERT_ERROR(checkpoint_verify(folder, m, &e), -ENOENT, e, "shard-00000-of-00002.safetensors");
        }
}

TEST(the_newest_whole_one_is_found) {
        _cleanup_(remove_dirp) char *dir = new_dir();
        _cleanup_free_ char *old = NULL, *middle = NULL, *again = NULL, *torn = NULL, *bare = NULL, *found = NULL, *other = NULL, *renamed = NULL;
        struct error e = { 0 };

        CU_ASSERT_EQUAL(checkpoint_find_newest(dir, &found, &e), -ENOENT);
        write_checkpoint(dir, 9, 1, 1, 0, &old);
        write_checkpoint(dir, 10, 1, 1, 0, &middle);
        write_checkpoint(dir, 10, 3, 1, 0, &again);
        write_checkpoint(dir, 20, 3, 1, 0, &torn);
        spoil(torn, "shard-00000-of-00002.safetensors", true);
        bare = file_path("%s/step_00000030.e3.1", dir); /* no manifest: never committed */
        ASSERT_OK(file_mkdir_p(bare, 0755, &e), e);
        other = file_path("%s/step_40.e3.1", dir); /* not a name of ours */
        ASSERT_OK(file_mkdir_p(other, 0755, &e), e);
        ASSERT_OK(checkpoint_find_newest(dir, &found, &e), e);
        CU_ASSERT_STRING_EQUAL(found, again);
        free(STEAL_PTR(found));
        /* a manifest under another step's name does not count */
        renamed = file_path("%s/step_00000050.e3.1", dir);
        CU_ASSERT_EQUAL(rename(again, renamed), 0);
        ASSERT_OK(checkpoint_find_newest(dir, &found, &e), e);
        CU_ASSERT_STRING_EQUAL(found, middle);
        CU_ASSERT_EQUAL(checkpoint_find_newest("/nonexistent", &found, &e), -ENOENT);
}

#define HEAD "{\"format\":\"fp8ctl-checkpoint\",\"version\":1,\"job\":1,\"step\":1,\"epoch\":1,\"attempt\":1,\"layout\":\"x\","
#define DIGEST "\"digest\":\"00000000000000000000000000000001\""

TEST(manifests_that_are_refused) {
        static const struct {
                const char *text, *why;
                int rc;
        } cases[] = {
                { HEAD "\"shards\":[{\"file\":\"a\",\"bytes\":1," DIGEST ",\"rank\":0}],\"state\":{}}", NULL, 0 },
                { "", "not a JSON object", -EBADMSG },
                { "[]", "not a JSON object", -EBADMSG },
                { "{\"format\":\"other\"}", "found format 'other'", -EBADMSG },
                { "{\"format\":\"fp8ctl-checkpoint\",\"version\":2}", "found version 2, expected 1", -EPROTONOSUPPORT },
                { "{\"format\":\"fp8ctl-checkpoint\",\"version\":1,\"job\":-1}", "job: expected", -EBADMSG },
                { HEAD "\"shards\":[],\"state\":{}}", "shards: expected", -EBADMSG },
                { HEAD "\"shards\":[{\"file\":\"a\",\"bytes\":1," DIGEST ",\"rank\":0}],\"state\":[]}", "state: expected", -EBADMSG },
                { HEAD "\"shards\":[{\"file\":\"../a\",\"bytes\":1," DIGEST ",\"rank\":0}],\"state\":{}}", "plain file name", -EBADMSG },
                { HEAD "\"shards\":[{\"file\":\"/etc/passwd\",\"bytes\":1," DIGEST ",\"rank\":0}],\"state\":{}}", "plain file name", -EBADMSG },
                { HEAD "\"shards\":[{\"file\":\"a\",\"bytes\":-1," DIGEST ",\"rank\":0}],\"state\":{}}", "a: manifest: bytes", -EBADMSG },
                { HEAD "\"shards\":[{\"file\":\"a\",\"bytes\":1,\"digest\":\"00\",\"rank\":0}],\"state\":{}}", "hexadecimal", -EBADMSG },
                { HEAD "\"shards\":[{\"file\":\"a\",\"bytes\":1," DIGEST ",\"rank\":4000000000}],\"state\":{}}", "rank: expected", -EBADMSG },
                { HEAD "\"shards\":[{\"file\":\"a\",\"bytes\":1," DIGEST ",\"rank\":0},{\"file\":\"b\",\"bytes\":1," DIGEST ",\"rank\":0}],\"state\":{}}", "two shards", -EBADMSG },
                { HEAD "\"shards\":[{\"file\":\"a\",\"bytes\":1," DIGEST ",\"rank\":0},{\"file\":\"a\",\"bytes\":1," DIGEST ",\"rank\":1}],\"state\":{}}", "twice", -EBADMSG },
                { HEAD "\"step\":2,\"shards\":[{\"file\":\"a\",\"bytes\":1," DIGEST ",\"rank\":0}],\"state\":{}}", "not a JSON object", -EBADMSG },
        };

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                struct error e = { 0 };
                MANIFEST m = NULL;
                int r = checkpoint_manifest_parse(cases[i].text, strlen(cases[i].text), &m, &e);

                if (cases[i].why) {
                        ASSERT_ERROR(r, cases[i].rc, e, cases[i].why);
                        CU_ASSERT_PTR_NULL(m);
                } else {
                        ASSERT_OK(r, e);
                }
        }
}

TEST_MAIN("checkpoint")
