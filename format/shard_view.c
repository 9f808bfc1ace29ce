/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading shard images from anywhere.  The rules are those of the safetensors format (huggingface/safetensors, README "Format"): an 8-byte little-endian
 * header length of at most 100 MB, one JSON object without duplicate keys that begins with '{', offsets that cover the data completely without holes or overlaps.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/wire.h"
#include "format/shard.h"
#include "format/shard_private.h"

struct shard_view {
        struct shard_tensor *tensors; /* by name */
        size_t n;
        char *state;
};

struct extent {
        uint64_t start, end;
        const char *name;
};

static int bad(struct error *e, const char *name, const char *what) {
        return error_set(e, -EBADMSG, "shard: %.200s: %s", name, what);
}

/* shape -> rows, cols as the header comment says */
static int parse_shape(const json_t *shape, const char *name, struct shard_tensor *t, struct error *e) {
        int64_t dims[2] = { 1, 1 };
        size_t n = json_array_size(shape);

        if (!json_is_array(shape) || n > 8)
                return bad(e, name, "found no shape of at most 8 dimensions");
        for (size_t i = 0; i < n; i++) {
                json_t *d = json_array_get(shape, i);
                size_t at = n == 1 || i > 0 ? 1 : 0; /* a vector is one row */

                if (!json_is_integer(d) || json_integer_value(d) < 0 || __builtin_mul_overflow(dims[at], (int64_t)json_integer_value(d), &dims[at]))
                        return bad(e, name, "a dimension is no number, negative or too large");
        }
        t->rows = t->global_rows = dims[0];
        t->cols = t->global_cols = dims[1];
        return 0;
}

static int parse_slice(const json_t *metadata, bool vector, struct shard_tensor *t, struct error *e) {
        char key[SHARD_NAME_MAX + sizeof(SHARD_SLICE_PREFIX)], again[200];
        int64_t r0, r1, c0, c1, rows, cols, product;
        const char *text;

        (void)snprintf(key, sizeof(key), SHARD_SLICE_PREFIX "%s", t->name);
        text = json_string_value(json_object_get(metadata, key));
        if (!text)
                return 0; /* whole */
        if (sscanf(text, "[[%" SCNd64 ",%" SCNd64 "],[%" SCNd64 ",%" SCNd64 "]] of [%" SCNd64 ",%" SCNd64 "]", &r0, &r1, &c0, &c1, &rows, &cols) != 6)
                return bad(e, t->name, "its slice is not [[r0,r1],[c0,c1]] of [R,C]");
        /* Printed again it must be the same text: no signs, blanks, leading zeros or numbers out of range slip through. */
        (void)snprintf(again, sizeof(again), SHARD_SLICE_FORMAT, r0, r1, c0, c1, rows, cols);
        if (strcmp(text, again) != 0)
                return bad(e, t->name, "its slice is not [[r0,r1],[c0,c1]] of [R,C]");
        if (r0 < 0 || r1 < r0 || rows < r1 || c0 < 0 || c1 < c0 || cols < c1 || __builtin_mul_overflow(rows, cols, &product))
                return bad(e, t->name, "its slice lies outside the tensor");
        if (vector && rows == 1 && r0 == r1 && t->cols == 0)
                t->rows = 0, t->cols = c1 - c0; /* an empty slice of a vector may be empty in either way */
        if (r1 - r0 != t->rows || c1 - c0 != t->cols)
                return bad(e, t->name, "its slice and its shape differ");
        t->global_rows = rows;
        t->global_cols = cols;
        t->row0 = r0;
        t->col0 = c0;
        return 0;
}

static int parse_tensor(const char *name, const json_t *entry, const json_t *metadata, const uint8_t *data, uint64_t data_len, struct shard_tensor *t, struct extent *x,
                        struct error *e) {
        const json_t *offsets = json_object_get(entry, "data_offsets"), *a = json_array_get(offsets, 0), *b = json_array_get(offsets, 1);
        const char *dtype = json_string_value(json_object_get(entry, "dtype"));
        size_t bytes;
        int r;

        if (!json_is_object(entry) || json_object_size(entry) != 3)
                return bad(e, name, "expected an object with dtype, shape and data_offsets");
        if (!name[0] || strlen(name) >= SHARD_NAME_MAX)
                return bad(e, name, "expected a name of 1 to 255 characters");
        (void)snprintf(t->name, sizeof(t->name), "%s", name);
        if (!dtype || shard_dtype_parse(dtype, &t->dtype) < 0)
                return error_set(e, -EBADMSG, "shard: %s: found dtype '%.20s', expected F64, F32, BF16, F16, F8_E4M3, F8_E5M2, I64, I32 or U8", name,
                                 dtype ? dtype : "");
        r = parse_shape(json_object_get(entry, "shape"), name, t, e);
        if (r < 0)
                return r;
        if (json_array_size(offsets) != 2 || !json_is_integer(a) || !json_is_integer(b) || json_integer_value(a) < 0 || json_integer_value(b) < json_integer_value(a) ||
            (uint64_t)json_integer_value(b) > data_len)
                return bad(e, name, "data_offsets is no range inside the data");
        *x = (struct extent){ .start = (uint64_t)json_integer_value(a), .end = (uint64_t)json_integer_value(b), .name = t->name };
        if (shard_tensor_bytes(t, &bytes) < 0 || bytes != x->end - x->start)
                return bad(e, name, "data_offsets and shape differ in size");
        t->data = (void *)(data + x->start);
        return parse_slice(metadata, json_array_size(json_object_get(entry, "shape")) < 2, t, e);
}

static int compare_extents(const void *a, const void *b) {
        const struct extent *x = a, *y = b;

        if (x->start != y->start)
                return x->start < y->start ? -1 : 1;
        return x->end < y->end ? -1 : x->end > y->end;
}

static int check_extents(struct extent *x, size_t n, uint64_t data_len, struct error *e) {
        uint64_t at = 0;

        qsort(x, n, sizeof(*x), compare_extents);
        for (size_t i = 0; i < n; i++) {
                if (x[i].start != at)
                        return bad(e, x[i].name, x[i].start < at ? "its data overlaps another tensor's" : "there is a hole before its data");
                at = x[i].end;
        }
        if (at != data_len)
                return error_set(e, -EBADMSG, "shard: found %" PRIu64 " bytes of data, expected %" PRIu64, data_len, at);
        return 0;
}

static int check_metadata(const json_t *metadata, struct error *e) {
        const char *key;
        json_t *value;

        if (!metadata)
                return 0;
        if (!json_is_object(metadata))
                return bad(e, "__metadata__", "expected an object of strings");
        json_object_foreach((json_t *)metadata, key, value)
                if (!json_is_string(value))
                        return bad(e, "__metadata__", "expected an object of strings");
        return 0;
}

static int compare_tensors(const void *a, const void *b) {
        return strcmp(((const struct shard_tensor *)a)->name, ((const struct shard_tensor *)b)->name);
}

static int parse_header(json_t *root, const uint8_t *data, uint64_t data_len, struct shard_view *v, struct error *e) {
        const json_t *metadata = json_object_get(root, "__metadata__");
        size_t n = json_object_size(root) - (metadata ? 1 : 0);
        _cleanup_free_ struct extent *extents = NULL;
        const char *name, *state;
        json_t *entry;
        int r = check_metadata(metadata, e);

        if (r < 0)
                return r;
        if (n > SHARD_TENSORS_MAX)
                return error_set(e, -EBADMSG, "shard: found %zu tensors, expected at most %u", n, SHARD_TENSORS_MAX);
        extents = calloc(n + 1, sizeof(*extents));
        v->tensors = calloc(n + 1, sizeof(*v->tensors));
        state = json_string_value(json_object_get(metadata, SHARD_STATE_KEY));
        v->state = strdup(state ? state : "");
        if (!extents || !v->tensors || !v->state)
                return error_set(e, -ENOMEM, "shard: out of memory");
        json_object_foreach(root, name, entry) {
                if (strcmp(name, "__metadata__") == 0)
                        continue;
                r = parse_tensor(name, entry, metadata, data, data_len, &v->tensors[v->n], &extents[v->n], e);
                if (r < 0)
                        return r;
                v->n++;
        }
        r = check_extents(extents, v->n, data_len, e);
        if (r < 0)
                return r;
        qsort(v->tensors, v->n, sizeof(*v->tensors), compare_tensors);
        return 0;
}

DEFINE_CLEANUP(struct shard_view *, shard_view_free);

int shard_view_open(const void *image, size_t len, struct shard_view **ret, struct error *e) {
        _cleanup_(shard_view_freep) struct shard_view *v = NULL;
        _cleanup_(json_decrefp) json_t *root = NULL;
        const uint8_t *p = image, *at = image;
        uint64_t header;
        json_error_t why;
        int r;

        if (len < 8)
                return error_set(e, -EBADMSG, "shard: found %zu bytes, expected at least 8", len);
        header = wire_get(&at, 8);
        if (header < 2 || header > SHARD_HEADER_MAX || header > len - 8)
                return error_set(e, -EBADMSG, "shard: found a header of %" PRIu64 " bytes in %zu, expected at most %" PRIu64 " and no more than there is", header, len,
                                 (uint64_t)SHARD_HEADER_MAX);
        if (p[8] != '{')
                return error_set(e, -EBADMSG, "shard: the header does not begin with '{'");
        /* jansson bounds the depth itself (JSON_PARSER_MAX_DEPTH), and a NUL byte or an integer beyond 64 bits is an error */
        root = json_loadb((const char *)p + 8, header, JSON_REJECT_DUPLICATES, &why);
        if (!root)
                return error_set(e, -EBADMSG, "shard: header: %.200s", why.text);
        v = calloc(1, sizeof(*v));
        if (!v)
                return error_set(e, -ENOMEM, "shard: out of memory");
        r = parse_header(root, p + 8 + header, len - 8 - header, v, e);
        if (r < 0)
                return r;
        *ret = STEAL_PTR(v);
        return 0;
}

struct shard_view *shard_view_free(struct shard_view *v) {
        if (!v)
                return NULL;
        free(v->tensors);
        free(v->state);
        free(v);
        return NULL;
}

size_t shard_view_count(const struct shard_view *v) {
        return v->n;
}

const struct shard_tensor *shard_view_tensor(const struct shard_view *v, size_t i) {
        return i < v->n ? &v->tensors[i] : NULL;
}

const struct shard_tensor *shard_view_find(const struct shard_view *v, const char *name) {
        size_t low = 0, high = v->n;

        while (low < high) {
                size_t middle = low + (high - low) / 2;
                int c = strcmp(v->tensors[middle].name, name);

                if (c == 0)
                        return &v->tensors[middle];
                if (c < 0)
                        low = middle + 1;
                else
                        high = middle;
        }
        return NULL;
}

const char *shard_view_state(const struct shard_view *v) {
        return v->state;
}
