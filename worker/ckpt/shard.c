/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing shard images.  The header's length is fixed when the layout is made: the small state stands last in it, in a room for twice its greatest length (each
 * character of JSON text may need a backslash), and what is left over is filled with spaces, as the format allows.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/hash.h"
#include "base/wire.h"
#include "format/shard_private.h"
#include "worker/ckpt/shard.h"

/* Where the data begins: a cache line, so that a mapped file's first tensors can be used in place. */
#define SHARD_ALIGN 64
/* What is digested and copied in turn: small enough to be found in the cache the second time. */
#define CHUNK ((size_t)1 << 20)

struct shard_layout {
        struct shard_tensor *tensors; /* as given */
        size_t *offsets, *bytes;      /* of each, from the start of the data */
        size_t n, data_bytes, state_max;
        char *prefix; /* the header up to the state's opening quote */
        size_t prefix_len, header_len;
};

/* Larger elements first, so that each tensor is aligned to its elements; otherwise in the order given. */
static int layout_offsets(struct shard_layout *l, struct error *e) {
        size_t at = 0;

        for (size_t size = 8; size > 0; size /= 2)
                for (size_t i = 0; i < l->n; i++) {
                        if (dtype_size(l->tensors[i].dtype) != size)
                                continue;
                        l->offsets[i] = at;
                        if (shard_tensor_bytes(&l->tensors[i], &l->bytes[i]) < 0 || __builtin_add_overflow(at, l->bytes[i], &at) || at > INT64_MAX)
                                return error_set(e, -EOVERFLOW, "shard: more than 2^63 bytes");
                }
        l->data_bytes = at;
        return 0;
}

static void print_tensor(FILE *f, const struct shard_layout *l, size_t i) {
        const struct shard_tensor *t = &l->tensors[i];

        if (t->global_rows == 1)
                (void)fprintf(f, "\"%s\":{\"dtype\":\"%s\",\"shape\":[%" PRId64 "]", t->name, shard_dtype_text(t->dtype), t->rows * t->cols);
        else
                (void)fprintf(f, "\"%s\":{\"dtype\":\"%s\",\"shape\":[%" PRId64 ",%" PRId64 "]", t->name, shard_dtype_text(t->dtype), t->rows, t->cols);
        (void)fprintf(f, ",\"data_offsets\":[%zu,%zu]},", l->offsets[i], l->offsets[i] + l->bytes[i]);
}

static int layout_prefix(struct shard_layout *l, struct error *e) {
        FILE *f = open_memstream(&l->prefix, &l->prefix_len);

        if (!f)
                return error_errno(e, errno, "shard header");
        (void)fputc('{', f);
        for (size_t size = 8; size > 0; size /= 2) /* in the order of their data */
                for (size_t i = 0; i < l->n; i++)
                        if (dtype_size(l->tensors[i].dtype) == size)
                                print_tensor(f, l, i);
        (void)fprintf(f, "\"__metadata__\":{");
        for (size_t i = 0; i < l->n; i++) {
                const struct shard_tensor *t = &l->tensors[i];

                (void)fprintf(f, "\"" SHARD_SLICE_PREFIX "%s\":\"" SHARD_SLICE_FORMAT "\",", t->name, t->row0, t->row0 + t->rows, t->col0, t->col0 + t->cols,
                              t->global_rows, t->global_cols);
        }
        (void)fprintf(f, "\"" SHARD_STATE_KEY "\":\"");
        if (fclose(f) != 0)
                return error_errno(e, errno, "shard header");
        return 0;
}

static int compare_names(const void *a, const void *b) {
        return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int layout_duplicates(const struct shard_layout *l, struct error *e) {
        _cleanup_free_ const char **names = calloc(l->n + 1, sizeof(*names));

        if (!names)
                return error_set(e, -ENOMEM, "shard: out of memory");
        for (size_t i = 0; i < l->n; i++)
                names[i] = l->tensors[i].name;
        qsort(names, l->n, sizeof(*names), compare_names);
        for (size_t i = 1; i < l->n; i++)
                if (strcmp(names[i - 1], names[i]) == 0)
                        return error_set(e, -EINVAL, "shard: tensor %s stands twice", names[i]);
        return 0;
}

DEFINE_CLEANUP(struct shard_layout *, shard_layout_free);

int shard_layout_new(const struct shard_tensor *t, size_t n, size_t state_max, struct shard_layout **ret, struct error *e) {
        _cleanup_(shard_layout_freep) struct shard_layout *l = NULL;
        int r;

        if (n > SHARD_TENSORS_MAX || state_max > SHARD_HEADER_MAX / 4)
                return error_set(e, -EINVAL, "shard: %zu tensors and %zu bytes of state, expected at most %u and %llu", n, state_max, SHARD_TENSORS_MAX,
                                 (unsigned long long)(SHARD_HEADER_MAX / 4));
        for (size_t i = 0; i < n; i++) {
                r = shard_tensor_check(&t[i], e);
                if (r < 0)
                        return r;
        }
        l = calloc(1, sizeof(*l));
        if (!l)
                return error_set(e, -ENOMEM, "shard: out of memory");
        l->tensors = calloc(n + 1, sizeof(*l->tensors));
        l->offsets = calloc(n + 1, sizeof(*l->offsets));
        l->bytes = calloc(n + 1, sizeof(*l->bytes));
        if (!l->tensors || !l->offsets || !l->bytes)
                return error_set(e, -ENOMEM, "shard: out of memory");
        if (n > 0)
                memcpy(l->tensors, t, n * sizeof(*t));
        l->n = n;
        l->state_max = state_max;
        r = layout_duplicates(l, e);
        if (r == 0)
                r = layout_offsets(l, e);
        if (r == 0)
                r = layout_prefix(l, e);
        if (r < 0)
                return r;
        l->header_len = l->prefix_len + 2 * state_max + strlen("\"}}");
        l->header_len += (SHARD_ALIGN - (8 + l->header_len) % SHARD_ALIGN) % SHARD_ALIGN;
        if (l->header_len > SHARD_HEADER_MAX)
                return error_set(e, -EFBIG, "shard: a header of %zu bytes, expected at most %llu", l->header_len, (unsigned long long)SHARD_HEADER_MAX);
        *ret = STEAL_PTR(l);
        return 0;
}

struct shard_layout *shard_layout_free(struct shard_layout *l) {
        if (!l)
                return NULL;
        free(l->tensors);
        free(l->offsets);
        free(l->bytes);
        free(l->prefix);
        free(l);
        return NULL;
}

size_t shard_layout_bytes(const struct shard_layout *l) {
        return 8 + l->header_len + l->data_bytes;
}

static int write_header(const struct shard_layout *l, const char *state, uint8_t *image, struct error *e) {
        size_t len = strlen(state);
        uint8_t *p = image;

        if (len > l->state_max)
                return error_set(e, -ENOSPC, "shard: a state of %zu bytes, expected at most %zu", len, l->state_max);
        for (size_t i = 0; i < len; i++)
                if ((unsigned char)state[i] < 0x20)
                        return error_set(e, -EINVAL, "shard: control character 0x%02x in the state", (unsigned char)state[i]);
        p = wire_put(p, l->header_len, 8);
        memcpy(p, l->prefix, l->prefix_len);
        p += l->prefix_len;
        for (size_t i = 0; i < len; i++) {
                if (state[i] == '"' || state[i] == '\\')
                        *p++ = '\\';
                *p++ = (uint8_t)state[i];
        }
        memcpy(p, "\"}}", 3); // NOLINT(bugprone-not-null-terminated-result): a length stands before the text
        p += 3;
        memset(p, ' ', (size_t)(image + 8 + l->header_len - p));
        return 0;
}

int shard_write(const struct shard_layout *l, const struct dev_ops *ops, struct dev_stream *s, const char *state_json, void *image, struct error *e) {
        uint8_t *data = (uint8_t *)image + 8 + l->header_len;
        int r = write_header(l, state_json, image, e);

        for (size_t i = 0; i < l->n && r >= 0; i++) {
                if (l->bytes[i] == 0)
                        continue;
                if (ops)
                        r = ops->copy_out(data + l->offsets[i], l->tensors[i].data, l->bytes[i], s);
                else
                        memcpy(data + l->offsets[i], l->tensors[i].data, l->bytes[i]);
                if (r < 0)
                        error_set(e, r, "shard: cannot copy %s from the device: %s", l->tensors[i].name, strerror(-r));
        }
        if (r >= 0 && ops) {
                r = ops->stream_sync(s);
                if (r < 0)
                        error_set(e, r, "shard: the device failed: %s", strerror(-r));
        }
        return r < 0 ? r : 0;
}

/* In the order of the file, chunk by chunk; only where the device's memory is the process's own. */
static int digest_and_copy(const struct shard_layout *l, const struct dev_ops *ops, struct dev_stream *s, uint8_t *data, struct digest_stream *d, struct error *e) {
        for (size_t size = 8; size > 0; size /= 2)
                for (size_t i = 0; i < l->n; i++) {
                        if (dtype_size(l->tensors[i].dtype) != size)
                                continue;
                        for (size_t at = 0; at < l->bytes[i]; at += CHUNK) {
                                size_t n = l->bytes[i] - at < CHUNK ? l->bytes[i] - at : CHUNK;
                                uint8_t *to = data + l->offsets[i] + at;
                                const uint8_t *from = (const uint8_t *)l->tensors[i].data + at;
                                int r = 0;

                                digest_stream_add(d, from, n); /* of what is meant: whoever compares finds what the copy did to it */
                                if (ops)
                                        r = ops->copy_out(to, from, n, s);
                                else
                                        memcpy(to, from, n);
                                if (r < 0)
                                        return error_set(e, r, "shard: cannot copy %s from the device: %s", l->tensors[i].name, strerror(-r));
                        }
                }
        return 0;
}

int shard_write_digest(const struct shard_layout *l, const struct dev_ops *ops, struct dev_stream *s, const char *state_json, void *image, struct digest *ret,
                       struct error *e) {
        struct digest_stream *d = NULL;
        int r;

        if (ops && strcmp(ops->kind, "cpu") != 0) {
                r = shard_write(l, ops, s, state_json, image, e);
                if (r == 0)
                        *ret = digest_of(image, shard_layout_bytes(l));
                return r;
        }
        r = write_header(l, state_json, image, e);
        if (r < 0)
                return r;
        if (digest_stream_new(&d) < 0)
                return error_set(e, -ENOMEM, "shard: out of memory");
        digest_stream_add(d, image, 8 + l->header_len);
        r = digest_and_copy(l, ops, s, (uint8_t *)image + 8 + l->header_len, d, e);
        if (r == 0)
                *ret = digest_stream_end(d);
        digest_stream_free(d);
        return r;
}

/* The image's tensor is the one the layout has, to the last number. */
static int same_tensor(const struct shard_tensor *want, const struct shard_tensor *found, struct error *e) {
        char a[128], b[128];

        if (!found)
                return error_set(e, -EBADMSG, "shard: found no tensor %s", want->name);
        if (strcmp(shard_dtype_text(found->dtype), shard_dtype_text(want->dtype)) != 0)
                return error_set(e, -EBADMSG, "shard: %s: found type %s, expected %s", want->name, shard_dtype_text(found->dtype), shard_dtype_text(want->dtype));
        if (found->global_rows != want->global_rows || found->global_cols != want->global_cols || found->row0 != want->row0 || found->rows != want->rows ||
            found->col0 != want->col0 || found->cols != want->cols)
                return error_set(e, -EBADMSG, "shard: %s: found %s, expected %s", want->name, shard_slice_text(found, a), shard_slice_text(want, b));
        return 0;
}

DEFINE_CLEANUP(struct shard_view *, shard_view_free);

int shard_read(const struct shard_layout *l, const struct dev_ops *ops, struct dev_stream *s, const void *image, size_t len, char **ret_state_json, struct error *e) {
        _cleanup_(shard_view_freep) struct shard_view *v = NULL;
        _cleanup_free_ char *state = NULL;
        int r = shard_view_open(image, len, &v, e);

        if (r < 0)
                return r;
        if (shard_view_count(v) != l->n)
                return error_set(e, -EBADMSG, "shard: found %zu tensors, expected %zu", shard_view_count(v), l->n);
        for (size_t i = 0; i < l->n; i++) { /* all of them before any is touched */
                r = same_tensor(&l->tensors[i], shard_view_find(v, l->tensors[i].name), e);
                if (r < 0)
                        return r;
        }
        state = strdup(shard_view_state(v));
        if (!state)
                return error_set(e, -ENOMEM, "shard: out of memory");
        for (size_t i = 0; i < l->n && r >= 0; i++) {
                const struct shard_tensor *found = shard_view_find(v, l->tensors[i].name);

                if (l->bytes[i] == 0)
                        continue;
                if (ops)
                        r = ops->copy_in(l->tensors[i].data, found->data, l->bytes[i], s);
                else
                        memcpy(l->tensors[i].data, found->data, l->bytes[i]);
        }
        if (r >= 0 && ops)
                r = ops->stream_sync(s);
        if (r < 0)
                return error_set(e, r, "shard: cannot copy to the device: %s", strerror(-r));
        if (ret_state_json)
                *ret_state_json = STEAL_PTR(state);
        return 0;
}
