/* SPDX-License-Identifier: Apache-2.0 */
/* Hugging Face folders, files written piece by piece, and sums. */
#include "format/hf.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "format/checkpoint.h"
#include "format/shard_writer.h"
#include "tests/test.h"
#include "tests/unit/scratch.h"

static struct error e;

static int parse(const char *text) {
        struct hf_index *x = NULL;
        int r;

        e = (struct error){ 0 };
        r = hf_index_parse(text, strlen(text), &x, &e);
        hf_index_free(x);
        return r;
}

TEST(index_is_sorted) {
        static const char text[] = "{\"metadata\":{\"total_size\":1},\"weight_map\":{\"c\":\"2.safetensors\",\"a\":\"2.safetensors\",\"b\":\"1.safetensors\"}}";
        struct hf_index *x = NULL;

        CU_ASSERT_EQUAL_FATAL(hf_index_parse(text, strlen(text), &x, &e), 0);
        CU_ASSERT_EQUAL(hf_index_tensors(x), 3);
        CU_ASSERT_EQUAL(hf_index_files(x), 2);
        CU_ASSERT_STRING_EQUAL(hf_index_name(x, 0), "a");
        CU_ASSERT_STRING_EQUAL(hf_index_file(x, 0), "2.safetensors");
        CU_ASSERT_STRING_EQUAL(hf_index_file(x, 1), "1.safetensors");
        CU_ASSERT_STRING_EQUAL(hf_index_file_name(x, 0), "1.safetensors");
        CU_ASSERT_PTR_NULL(hf_index_free(x));
}

TEST(index_refused) {
        static const char *const texts[] = {
                "", "[]", "{}", "{\"weight_map\":{}}", "{\"weight_map\":[]}", "{\"weight_map\":{\"a\":1}}", "{\"weight_map\":{\"a\":\"\"}}", "{\"weight_map\":{\"a\":\"/etc/passwd\"}}",
                "{\"weight_map\":{\"a\":\"..\"}}", "{\"weight_map\":{\"a\":\"x/../../y\"}}", "{\"weight_map\":{\"a\":\".hidden\"}}", "{\"weight_map\":{\"\":\"x\"}}",
                "{\"weight_map\":{\"a\":\"x\",\"a\":\"y\"}}", "{\"weight_map\":{\"a\":\"new\\nline\"}}",
        };

        for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
                CU_ASSERT_EQUAL(parse(texts[i]), -EBADMSG);
                CU_ASSERT(e.text[0] && !strchr(e.text, '\n'));
        }
}

static void write_file(const char *path, const char *first, const char *second, const void *data) {
        struct shard_tensor list[2] = { { .dtype = DT_F32, .global_rows = 2, .rows = 2, .global_cols = 3, .cols = 3 }, { .dtype = DT_F32, .global_rows = 1, .rows = 1, .global_cols = 2, .cols = 2 } };
        struct shard_writer *w = NULL;
        struct digest d, whole;
        uint64_t bytes;

        snprintf(list[0].name, sizeof(list[0].name), "%s", first);
        snprintf(list[1].name, sizeof(list[1].name), "%s", second);
        CU_ASSERT_EQUAL_FATAL(shard_writer_open(path, list, 2, &w, &e), 0);
        CU_ASSERT_EQUAL(shard_writer_finish(w, &bytes, &d, &e), -EINVAL); /* not all there */
        CU_ASSERT_EQUAL(shard_writer_add(w, data, 20, &e), 0);
        CU_ASSERT_EQUAL(shard_writer_add(w, (const char *)data + 20, 13, &e), -EINVAL); /* more than all */
        CU_ASSERT_EQUAL(shard_writer_add(w, (const char *)data + 20, 12, &e), 0);
        CU_ASSERT_EQUAL(shard_writer_finish(w, &bytes, &d, &e), 0);
        shard_writer_free(w);
        CU_ASSERT_EQUAL(digest_file(path, &whole, &e), 0);
        CU_ASSERT(digest_equal(d, whole));
        w = NULL;
        CU_ASSERT_EQUAL(shard_writer_open(path, list, 2, &w, &e), -EEXIST);
}

static char *in(const char *dir, const char *name) {
        char *path = file_path("%s/%s", dir, name);

        CU_ASSERT_PTR_NOT_NULL_FATAL(path);
        return path;
}

TEST(folder) {
        _cleanup_scratch_ struct scratch scratch = scratch_new();
        const char *dir = scratch.dir;
        _cleanup_free_ char *single = in(dir, HF_SINGLE), *one = in(dir, "1.safetensors"), *two = in(dir, "2.safetensors");
        const float data[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
        struct hf_folder *f = NULL;
        const struct shard_tensor *t;

        CU_ASSERT_EQUAL(hf_folder_open(dir, &f, &e), -ENOENT);
        write_file(single, "m", "v", data);
        CU_ASSERT_EQUAL_FATAL(hf_folder_open(dir, &f, &e), 0);
        CU_ASSERT_EQUAL(hf_folder_tensors(f), 2);
        t = hf_folder_find(f, "v");
        CU_ASSERT_PTR_NOT_NULL_FATAL(t);
        CU_ASSERT(t->rows == 1 && t->cols == 2 && memcmp(t->data, data + 6, 8) == 0);
        CU_ASSERT_PTR_NULL(hf_folder_find(f, "w"));
        f = hf_folder_free(f);

        /* An index wins; it must tell the truth, all of it. */
        write_file(one, "m", "v", data);
        write_file(two, "n", "w", data);
        scratch_text(&scratch, HF_INDEX, "{\"weight_map\":{\"m\":\"1.safetensors\",\"v\":\"1.safetensors\",\"n\":\"2.safetensors\",\"w\":\"2.safetensors\"}}");
        CU_ASSERT_EQUAL_FATAL(hf_folder_open(dir, &f, &e), 0);
        CU_ASSERT_EQUAL(hf_folder_tensors(f), 4);
        CU_ASSERT_STRING_EQUAL(hf_folder_tensor(f, 1)->name, "n");
        f = hf_folder_free(f);
        scratch_text(&scratch, HF_INDEX, "{\"weight_map\":{\"m\":\"1.safetensors\",\"v\":\"1.safetensors\",\"n\":\"2.safetensors\"}}");
        CU_ASSERT_EQUAL(hf_folder_open(dir, &f, &e), -EBADMSG);
        scratch_text(&scratch, HF_INDEX, "{\"weight_map\":{\"m\":\"1.safetensors\",\"v\":\"1.safetensors\",\"n\":\"2.safetensors\",\"w\":\"2.safetensors\",\"x\":\"1.safetensors\"}}");
        CU_ASSERT_EQUAL(hf_folder_open(dir, &f, &e), -EBADMSG);
        scratch_text(&scratch, HF_INDEX, "{\"weight_map\":{\"m\":\"2.safetensors\",\"v\":\"1.safetensors\",\"n\":\"2.safetensors\",\"w\":\"2.safetensors\"}}");
        CU_ASSERT_EQUAL(hf_folder_open(dir, &f, &e), -EBADMSG);
        CU_ASSERT_PTR_NULL(f);
}

/* A bad shard's bad tensor is named; sums that are missing or bad cost the name, nothing else. */
TEST(sums) {
        static const char manifest[] = "{\"format\":\"fp8ctl-checkpoint\",\"version\":1,\"job\":1,\"step\":2,\"epoch\":1,\"attempt\":1,\"layout\":\"x\",\"shards\":[{\"file\":\"s.safetensors\",\"bytes\":%zu,"
                                       "\"digest\":\"%s\",\"rank\":0}],\"state\":{\"weights_only\":true}}";
        _cleanup_scratch_ struct scratch scratch = scratch_new();
        const char *dir = scratch.dir;
        char text[512], hex[DIGEST_HEX_SIZE];
        _cleanup_free_ char *path = in(dir, "s.safetensors"), *sums_path = in(dir, "s.sums"), *image = NULL, *names = NULL;
        const float data[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
        struct checkpoint_manifest *m = NULL;
        struct shard_sums *s = NULL;
        size_t len = 0;

        write_file(path, "m", "v", data);
        CU_ASSERT_EQUAL_FATAL(file_read(path, 1 << 20, &image, &len, &e), 0);
        digest_hex(digest_of(image, len), hex);
        snprintf(text, sizeof(text), manifest, len, hex);
        CU_ASSERT_EQUAL_FATAL(checkpoint_manifest_parse(text, strlen(text), &m, &e), 0);
        CU_ASSERT(checkpoint_manifest_weights_only(m));
        CU_ASSERT_EQUAL(checkpoint_verify(dir, m, &e), 0);
        CU_ASSERT_EQUAL(checkpoint_bad_tensor(dir, m, 0, &names, &e), -ENOENT);
        CU_ASSERT_EQUAL_FATAL(shard_sums_new(image, len, &s, &e), 0);
        for (size_t at = 0; at < len; at += 7) /* pieces that end anywhere */
                shard_sums_add(s, len - at < 7 ? len - at : 7);
        CU_ASSERT_EQUAL(shard_sums_write(s, dir, "s.safetensors", &e), 0);
        s = shard_sums_free(s);
        CU_ASSERT_EQUAL(checkpoint_bad_tensor(dir, m, 0, &names, &e), -ENODATA); /* nothing is bad */
        image[len - 1] ^= 1;
        CU_ASSERT_EQUAL(unlink(path), 0);
        CU_ASSERT_EQUAL(file_write_atomic(path, image, len, 0644, &e), 0);
        CU_ASSERT_EQUAL(checkpoint_verify(dir, m, &e), -EBADMSG);
        CU_ASSERT_EQUAL_FATAL(checkpoint_bad_tensor(dir, m, 0, &names, &e), 0);
        CU_ASSERT_STRING_EQUAL(names, "v");
        free(STEAL_PTR(names));
        image[len - 9] ^= 1;
        CU_ASSERT_EQUAL(file_write_atomic(path, image, len, 0644, &e), 0);
        CU_ASSERT_EQUAL_FATAL(checkpoint_bad_tensor(dir, m, 0, &names, &e), 0);
        CU_ASSERT_STRING_EQUAL(names, "m, v");
        free(STEAL_PTR(names));
        CU_ASSERT_EQUAL(truncate(sums_path, 20), 0);
        CU_ASSERT_EQUAL(checkpoint_bad_tensor(dir, m, 0, &names, &e), -ENODATA);
        CU_ASSERT_PTR_NULL(names);
        checkpoint_manifest_free(m);
}

TEST_MAIN("hf")
