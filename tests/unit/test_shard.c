/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>

#include "base/cleanup.h"
#include "tests/test.h"
#include "worker/ckpt/shard.h"

DEFINE_CLEANUP(struct shard_layout *, shard_layout_free);
DEFINE_CLEANUP(struct shard_view *, shard_view_free);

#define LAYOUT _cleanup_(shard_layout_freep) struct shard_layout *
#define VIEW _cleanup_(shard_view_freep) struct shard_view *

static dev_real weight[6] = { 1, 2, 3, 4, 5, 6 }, norm[3] = { 7, 8, 9 };
static uint16_t moment[6] = { 10, 11, 12, 13, 14, 15 };
static uint8_t bytes[5] = { 1, 2, 3, 4, 5 };

/* A column slice of a matrix, part of a vector, another type, and an empty one; the odd-sized one first. */
static const struct shard_tensor list[] = {
        { "rng", DT_U8, 1, 5, 0, 1, 0, 5, bytes },
        { "layers.0.q.weight", DT_F32, 8, 2, 4, 3, 0, 2, weight },
        { "exp_avg:layers.0.q.weight", DT_BF16, 8, 2, 4, 3, 0, 2, moment },
        { "norm.weight", DT_F32, 1, 12, 0, 1, 6, 3, norm },
        { "embed.weight", DT_F32, 100, 2, 50, 0, 0, 2, NULL },
        { "bias", DT_F32, 1, 12, 0, 0, 0, 12, NULL },
};
#define N ARRAY_SIZE(list)

static uint8_t *make_image(const struct shard_layout *l, const char *state) {
        struct error e = { 0 };
        uint8_t *image = malloc(shard_layout_bytes(l));

        CU_ASSERT_PTR_NOT_NULL_FATAL(image);
        ASSERT_OK(shard_write(l, NULL, NULL, state, image, &e), e);
        return image;
}

TEST(written_and_read_back) {
        _cleanup_free_ uint8_t *image = NULL;
        _cleanup_free_ char *state = NULL;
        struct error e = { 0 };
        LAYOUT l = NULL;
        dev_real w[6], n[3];
        uint16_t m[6];
        uint8_t b[5];

        ASSERT_OK(shard_layout_new(list, N, 64, &l, &e), e);
        image = make_image(l, "{\"step\":7,\"path\":\"a\\\\b\"}");
        memcpy(w, weight, sizeof(w));
        memcpy(n, norm, sizeof(n));
        memcpy(m, moment, sizeof(m));
        memcpy(b, bytes, sizeof(b));
        memset(weight, 0, sizeof(weight));
        memset(norm, 0, sizeof(norm));
        memset(moment, 0, sizeof(moment));
        memset(bytes, 0, sizeof(bytes));
        ASSERT_OK(shard_read(l, NULL, NULL, image, shard_layout_bytes(l), &state, &e), e);
        CU_ASSERT(memcmp(w, weight, sizeof(w)) == 0 && memcmp(n, norm, sizeof(n)) == 0 && memcmp(m, moment, sizeof(m)) == 0 && memcmp(b, bytes, sizeof(b)) == 0);
        CU_ASSERT_STRING_EQUAL(state, "{\"step\":7,\"path\":\"a\\\\b\"}");
}

/* As any other program reads it: by the format's description alone. */
TEST(the_stock_format) {
        _cleanup_free_ uint8_t *image = NULL;
        struct error e = { 0 };
        LAYOUT l = NULL;
        uint64_t header;
        json_t *root, *t;

        ASSERT_OK(shard_layout_new(list, N, 40, &l, &e), e);
        image = make_image(l, "{}");
        memcpy(&header, image, 8); /* this test runs on little-endian machines */
        CU_ASSERT_EQUAL((8 + header) % 64, 0);
        CU_ASSERT_EQUAL(image[8], '{');
        CU_ASSERT_EQUAL(image[8 + header - 1], ' ');
        root = json_loadb((char *)image + 8, header, 0, NULL);
        CU_ASSERT_PTR_NOT_NULL_FATAL(root);
        t = json_object_get(root, "layers.0.q.weight");
        CU_ASSERT_STRING_EQUAL(json_string_value(json_object_get(t, "dtype")), sizeof(dev_real) == 8 ? "F64" : "F32");
        CU_ASSERT_EQUAL(json_integer_value(json_array_get(json_object_get(t, "shape"), 0)), 3);
        CU_ASSERT_EQUAL(json_integer_value(json_array_get(json_object_get(t, "shape"), 1)), 2);
        int64_t from = json_integer_value(json_array_get(json_object_get(t, "data_offsets"), 0));
        CU_ASSERT_EQUAL(from % (int64_t)sizeof(dev_real), 0);
        CU_ASSERT(memcmp(image + 8 + header + from, weight, sizeof(weight)) == 0);
        CU_ASSERT_STRING_EQUAL(json_string_value(json_object_get(json_object_get(root, "__metadata__"), "slice:layers.0.q.weight")), "[[4,7],[0,2]] of [8,2]");
        /* a vector has one dimension */
        t = json_object_get(root, "norm.weight");
        CU_ASSERT_EQUAL(json_array_size(json_object_get(t, "shape")), 1);
        /* data ends with the file */
        int64_t end = 0;
        const char *key;
        json_object_foreach(root, key, t) {
                int64_t last = json_integer_value(json_array_get(json_object_get(t, "data_offsets"), 1));

                end = last > end ? last : end;
        }
        CU_ASSERT_EQUAL(8 + header + (uint64_t)end, shard_layout_bytes(l));
        json_decref(root);
}

TEST(the_state_never_changes_the_size) {
        struct error e = { 0 };
        LAYOUT l = NULL;
        char full[65], quotes[65];

        ASSERT_OK(shard_layout_new(list, N, 64, &l, &e), e);
        memset(full, 'x', 64);
        memset(quotes, '"', 64);
        full[64] = quotes[64] = '\0';
        const char *states[] = { "", "{}", full, quotes };
        for (size_t i = 0; i < ARRAY_SIZE(states); i++) {
                _cleanup_free_ uint8_t *image = make_image(l, states[i]);
                VIEW v = NULL;

                ASSERT_OK(shard_view_open(image, shard_layout_bytes(l), &v, &e), e);
                CU_ASSERT_STRING_EQUAL(shard_view_state(v), states[i]);
                CU_ASSERT_EQUAL(shard_view_count(v), N);
        }
        _cleanup_free_ uint8_t *image = malloc(shard_layout_bytes(l));
        char more[66];

        memset(more, 'x', 65);
        more[65] = '\0';
        ASSERT_ERROR(shard_write(l, NULL, NULL, more, image, &e), -ENOSPC, e, "65 bytes");
        ASSERT_ERROR(shard_write(l, NULL, NULL, "a\nb", image, &e), -EINVAL, e, "0x0a");
}

TEST(lists_that_are_refused) {
        struct error e = { 0 };
        LAYOUT l = NULL;
        struct shard_tensor t[2] = { list[1], list[3] };

        t[1] = t[0];
        ASSERT_ERROR(shard_layout_new(t, 2, 0, &l, &e), -EINVAL, e, "stands twice");
        t[0].rows = 5;
        ASSERT_ERROR(shard_layout_new(t, 1, 0, &l, &e), -EINVAL, e, "rows [4,9) of 8");
        t[0] = list[1];
        t[0].row0 = INT64_MAX;
        ASSERT_ERROR(shard_layout_new(t, 1, 0, &l, &e), -EINVAL, e, "impossible slice");
        t[0] = list[1];
        strcpy(t[0].name, "a\"b");
        ASSERT_ERROR(shard_layout_new(t, 1, 0, &l, &e), -EINVAL, e, "0x22");
        strcpy(t[0].name, "__metadata__");
        ASSERT_ERROR(shard_layout_new(t, 1, 0, &l, &e), -EINVAL, e, "name");
        CU_ASSERT_PTR_NULL(l);
}

TEST(an_image_of_another_layout_is_refused_whole) {
        _cleanup_free_ uint8_t *image = NULL;
        struct shard_tensor other[N];
        struct error e = { 0 };
        LAYOUT l = NULL;
        uint8_t keep[5];

        ASSERT_OK(shard_layout_new(list, N, 16, &l, &e), e);
        image = make_image(l, "{}");
        for (int what = 0; what < 4; what++) {
                LAYOUT x = NULL;
                size_t n = N;

                memcpy(other, list, sizeof(other));
                if (what == 0)
                        other[1].row0 = 3;
                else if (what == 1)
                        other[3].global_cols = 13;
                else if (what == 2)
                        strcpy(other[2].name, "exp_avg:other");
                else
                        n = N - 1;
                memset(bytes, 0x77, sizeof(bytes));
                memcpy(keep, bytes, sizeof(keep));
                ASSERT_OK(shard_layout_new(other, n, 16, &x, &e), e);
                CU_ASSERT_EQUAL(shard_read(x, NULL, NULL, image, shard_layout_bytes(l), NULL, &e), -EBADMSG);
                CU_ASSERT(memcmp(keep, bytes, sizeof(keep)) == 0);
        }
}

/* An image around this header and so many bytes of data. */
static int open_text(const char *header, size_t data, struct shard_view **v, struct error *e) {
        size_t len = strlen(header);
        uint8_t *image = calloc(1, 8 + len + data);
        uint64_t n = len;
        int r;

        CU_ASSERT_PTR_NOT_NULL_FATAL(image);
        memcpy(image, &n, 8);
        memcpy(image + 8, header, len);
        r = shard_view_open(image, 8 + len + data, v, e);
        if (r == 0) {
                CU_ASSERT(shard_view_count(*v) == 0 || (const uint8_t *)shard_view_tensor(*v, 0)->data == image + 8 + len);
                *v = shard_view_free(*v);
        }
        free(image);
        return r;
}

TEST(images_from_outside) {
        static const struct {
                const char *header;
                size_t data;
                const char *why; /* NULL: fine */
        } cases[] = {
                { "{}", 0, NULL },
                { "{\"a\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,12]}}   ", 12, NULL },
                { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2,3,4],\"data_offsets\":[0,24]}}", 24, NULL },
                { "{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", 1, NULL },
                { "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[4,4]}}", 4, NULL },
                { "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, NULL },
                { "{}", 1, "found 1 bytes of data, expected 0" },
                { " {}", 0, "does not begin with" },
                { "{}x", 0, "header: " },
                { "[]", 0, "does not begin with" },
                { "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "duplicate" },
                { "{\"a\":{\"dtype\":\"X8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "found dtype 'X8'" },
                { "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,2]}}", 1, "no range inside the data" },
                { "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]}}", 1, "no range inside the data" },
                { "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-1,0]}}", 1, "no range inside the data" },
                { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,1]}}", 1, "differ in size" },
                { "{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}", 1, "a dimension is" },
                { "{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0, "differ in size" },
                { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2,4294967296,4294967296],\"data_offsets\":[0,0]}}", 0, "a dimension is" },
                { "{\"a\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0, "differ in size" },
                { "{\"a\":{\"dtype\":\"U8\",\"shape\":[18446744073709551617],\"data_offsets\":[0,1]}}", 1, "header: " },
                { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}", 3, "overlaps" },
                { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[3,5]}}", 5, "hole" },
                { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2],\"more\":1}}", 2, "expected an object with dtype" },
                { "{\"a\":[]}", 0, "expected an object with dtype" },
                { "{\"__metadata__\":{\"a\":1}}", 0, "object of strings" },
                { "{\"__metadata__\":[]}", 0, "object of strings" },
                { "{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "1 to 255 characters" },
                { "{\"__metadata__\":{\"slice:a\":\"[[0,1],[0,2]] of [9,9]\"},\"a\":{\"dtype\":\"U8\",\"shape\":[1,2],\"data_offsets\":[0,2]}}", 2, NULL },
                { "{\"__metadata__\":{\"slice:a\":\"[[0,2],[0,2]] of [9,9]\"},\"a\":{\"dtype\":\"U8\",\"shape\":[1,2],\"data_offsets\":[0,2]}}", 2, "differ" },
                { "{\"__metadata__\":{\"slice:a\":\"[[8,9],[8,10]] of [9,9]\"},\"a\":{\"dtype\":\"U8\",\"shape\":[1,2],\"data_offsets\":[0,2]}}", 2, "outside" },
                { "{\"__metadata__\":{\"slice:a\":\"[[00,1],[0,2]] of [9,9]\"},\"a\":{\"dtype\":\"U8\",\"shape\":[1,2],\"data_offsets\":[0,2]}}", 2, "is not" },
                { "{\"__metadata__\":{\"slice:a\":\"[[0,1],[0,2]] of [9,9] \"},\"a\":{\"dtype\":\"U8\",\"shape\":[1,2],\"data_offsets\":[0,2]}}", 2, "is not" },
                { "{\"__metadata__\":{\"slice:a\":\"[[0,1],[0,2]] of [4294967296,4294967296]\"},\"a\":{\"dtype\":\"U8\",\"shape\":[1,2],\"data_offsets\":[0,2]}}", 2,
                  "outside" },
        };

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                struct shard_view *v = NULL;
                struct error e = { 0 };
                int r = open_text(cases[i].header, cases[i].data, &v, &e);

                if (r != (cases[i].why ? -EBADMSG : 0))
                        printf("    %s: rc %d %s\n", cases[i].header, r, e.text);
                if (cases[i].why)
                        ASSERT_ERROR(r, -EBADMSG, e, cases[i].why);
                else
                        ASSERT_OK(r, e);
                CU_ASSERT_PTR_NULL(v);
        }
}

TEST(headers_of_impossible_length) {
        static const uint64_t lengths[] = { 0, 1, 9, SHARD_HEADER_MAX + 1, UINT64_MAX, UINT64_MAX - 7 };
        uint8_t image[16] = { 0 };
        struct shard_view *v = NULL;
        struct error e = { 0 };

        memcpy(image + 8, "{}      ", 8);
        for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
                memcpy(image, &lengths[i], 8);
                ASSERT_ERROR(shard_view_open(image, sizeof(image), &v, &e), -EBADMSG, e, "header of");
        }
        CU_ASSERT_EQUAL(shard_view_open(image, 7, &v, &e), -EBADMSG);
        CU_ASSERT_EQUAL(shard_view_open(image, 0, &v, &e), -EBADMSG);
        CU_ASSERT_PTR_NULL(v);
}

/* Any cut, and any byte turned over, ends in a clean refusal or in an image that is consistent in itself. */
TEST(torn_and_flipped) {
        _cleanup_free_ uint8_t *image = NULL;
        struct error e = { 0 };
        LAYOUT l = NULL;
        size_t len, opened = 0;

        ASSERT_OK(shard_layout_new(list, N, 16, &l, &e), e);
        image = make_image(l, "{}");
        len = shard_layout_bytes(l);
        for (size_t i = 0; i < len; i++) {
                uint8_t *part = malloc(i + 1);
                VIEW v = NULL;

                CU_ASSERT_PTR_NOT_NULL_FATAL(part);
                memcpy(part, image, i);
                CU_ASSERT_EQUAL(shard_view_open(part, i, &v, &e), -EBADMSG);
                free(part);
        }
        for (size_t i = 0; i < len * 8; i++) {
                VIEW v = NULL;

                image[i / 8] ^= (uint8_t)(1u << i % 8);
                if (shard_view_open(image, len, &v, &e) == 0) {
                        opened++;
                        for (size_t k = 0; k < shard_view_count(v); k++) {
                                const struct shard_tensor *t = shard_view_tensor(v, k);
                                size_t size;

                                CU_ASSERT_EQUAL(shard_tensor_bytes(t, &size), 0);
                                CU_ASSERT((const uint8_t *)t->data >= image && (const uint8_t *)t->data + size <= image + len);
                        }
                }
                image[i / 8] ^= (uint8_t)(1u << i % 8);
        }
        CU_ASSERT(opened > 0 && opened < len * 8); /* data bytes are the digest's affair */
}

TEST_MAIN("shard")
