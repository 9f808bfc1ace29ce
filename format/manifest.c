/* SPDX-License-Identifier: Apache-2.0 */
/* manifest.json as the controller writes it. A manifest is read from shared storage: nothing in it is trusted, least of all its file names. */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "format/checkpoint_private.h"

#define RANKS_MOST (1 << 20)

DEFINE_CLEANUP(struct checkpoint_manifest *, checkpoint_manifest_free);

static int get_number(const json_t *o, const char *key, uint64_t max, uint64_t *ret, struct error *e) {
        const json_t *j = json_object_get(o, key);

        if (!json_is_integer(j) || json_integer_value(j) < 0 || (uint64_t)json_integer_value(j) > max)
                return error_set(e, -EBADMSG, "manifest: %s: expected an integer from 0 to %" PRIu64, key, max);
        *ret = (uint64_t)json_integer_value(j);
        return 0;
}

bool plain_file_name(const char *s) {
        size_t n = strlen(s);

        if (n == 0 || n > 200 || s[0] == '.')
                return false;
        for (size_t i = 0; i < n; i++)
                if ((unsigned char)s[i] <= 0x20 || (unsigned char)s[i] >= 0x7f || s[i] == '/')
                        return false;
        return true;
}

static int parse_shard(const json_t *j, struct manifest_shard *s, struct error *e) {
        const char *file = json_string_value(json_object_get(j, "file")), *digest = json_string_value(json_object_get(j, "digest"));
        uint64_t rank = 0;
        int r;

        if (!file || !plain_file_name(file))
                return error_set(e, -EBADMSG, "manifest: a shard's file is not a plain file name");
        r = get_number(j, "bytes", INT64_MAX, &s->bytes, e);
        if (r == 0)
                r = get_number(j, "rank", RANKS_MOST - 1, &rank, e);
        if (r < 0)
                return error_prefix(e, "%s", file);
        if (!digest || digest_parse(digest, &s->digest) < 0)
                return error_set(e, -EBADMSG, "manifest: %s: its digest is not 32 hexadecimal digits", file);
        s->rank = (int)rank;
        s->file = strdup(file);
        return s->file ? 0 : error_set(e, -ENOMEM, "manifest: out of memory");
}

static int compare_shards(const void *a, const void *b) {
        const struct manifest_shard *x = a, *y = b;

        return x->rank < y->rank ? -1 : x->rank > y->rank;
}

static int compare_files(const void *a, const void *b) {
        return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int check_twice(const struct checkpoint_manifest *m, struct error *e) {
        _cleanup_free_ const char **files = calloc(m->n_shards + 1, sizeof(*files));

        if (!files)
                return error_set(e, -ENOMEM, "manifest: out of memory");
        for (size_t i = 0; i < m->n_shards; i++) {
                files[i] = m->shards[i].file;
                if (i > 0 && m->shards[i - 1].rank == m->shards[i].rank)
                        return error_set(e, -EBADMSG, "manifest: rank %d has two shards", m->shards[i].rank);
        }
        qsort(files, m->n_shards, sizeof(*files), compare_files);
        for (size_t i = 1; i < m->n_shards; i++)
                if (strcmp(files[i - 1], files[i]) == 0)
                        return error_set(e, -EBADMSG, "manifest: file %s stands twice", files[i]);
        return 0;
}

static int parse_head(const json_t *root, struct checkpoint_manifest *m, struct error *e) {
        const char *format = json_string_value(json_object_get(root, "format")), *layout = json_string_value(json_object_get(root, "layout"));
        uint64_t version = 0, attempt = 0;
        int r;

        if (!format || strcmp(format, "fp8ctl-checkpoint") != 0)
                return error_set(e, -EBADMSG, "manifest: found format '%.40s', expected 'fp8ctl-checkpoint'", format ? format : "");
        r = get_number(root, "version", UINT32_MAX, &version, e);
        if (r < 0)
                return r;
        if (version != 1)
                return error_set(e, -EPROTONOSUPPORT, "manifest: found version %" PRIu64 ", expected 1", version);
        if (get_number(root, "job", INT64_MAX, &m->job, e) < 0 || get_number(root, "step", INT64_MAX, &m->step, e) < 0 ||
            get_number(root, "epoch", INT64_MAX, &m->epoch, e) < 0 || get_number(root, "attempt", UINT32_MAX, &attempt, e) < 0)
                return -EBADMSG;
        m->attempt = (uint32_t)attempt;
        if (!layout)
                return error_set(e, -EBADMSG, "manifest: layout: expected a string");
        m->layout = strdup(layout);
        if (!m->layout)
                return error_set(e, -ENOMEM, "manifest: out of memory");
        return 0;
}

int checkpoint_manifest_parse(const char *text, size_t len, struct checkpoint_manifest **ret, struct error *e) {
        _cleanup_(checkpoint_manifest_freep) struct checkpoint_manifest *m = NULL;
        _cleanup_(json_decrefp) json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
        const json_t *shards = json_object_get(root, "shards"), *state = json_object_get(root, "state");
        size_t n = json_array_size(shards);
        int r;

        if (!json_is_object(root))
                return error_set(e, -EBADMSG, "manifest: not a JSON object");
        m = calloc(1, sizeof(*m));
        if (!m)
                return error_set(e, -ENOMEM, "manifest: out of memory");
        r = parse_head(root, m, e);
        if (r < 0)
                return r;
        if (n == 0 || n > RANKS_MOST)
                return error_set(e, -EBADMSG, "manifest: shards: expected an array of 1 to %d", RANKS_MOST);
        if (!json_is_object(state))
                return error_set(e, -EBADMSG, "manifest: state: expected an object");
        m->shards = calloc(n, sizeof(*m->shards));
        m->state = json_dumps(state, JSON_COMPACT | JSON_REAL_PRECISION(17));
        if (!m->shards || !m->state)
                return error_set(e, -ENOMEM, "manifest: out of memory");
        m->weights_only = json_is_true(json_object_get(state, "weights_only"));
        for (; m->n_shards < n; m->n_shards++) {
                r = parse_shard(json_array_get(shards, m->n_shards), &m->shards[m->n_shards], e);
                if (r < 0)
                        return r;
        }
        qsort(m->shards, n, sizeof(*m->shards), compare_shards);
        r = check_twice(m, e);
        if (r < 0)
                return r;
        *ret = STEAL_PTR(m);
        return 0;
}

int checkpoint_manifest_read(const char *folder, struct checkpoint_manifest **ret, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/%s", folder, CHECKPOINT_MANIFEST), *text = NULL;
        size_t len;
        int r;

        if (!path)
                return error_set(e, -ENOMEM, "manifest: out of memory");
        r = file_read(path, CHECKPOINT_MANIFEST_MAX, &text, &len, e);
        if (r < 0)
                return r;
        r = checkpoint_manifest_parse(text, len, ret, e);
        return r < 0 ? error_prefix(e, "%s", folder) : 0;
}

struct checkpoint_manifest *checkpoint_manifest_free(struct checkpoint_manifest *m) {
        if (!m)
                return NULL;
        for (size_t i = 0; i < m->n_shards; i++)
                free(m->shards[i].file);
        free(m->shards);
        free(m->layout);
        free(m->state);
        free(m);
        return NULL;
}

uint64_t checkpoint_manifest_job(const struct checkpoint_manifest *m) {
        return m->job;
}

uint64_t checkpoint_manifest_step(const struct checkpoint_manifest *m) {
        return m->step;
}

uint64_t checkpoint_manifest_epoch(const struct checkpoint_manifest *m) {
        return m->epoch;
}

uint32_t checkpoint_manifest_attempt(const struct checkpoint_manifest *m) {
        return m->attempt;
}

const char *checkpoint_manifest_layout(const struct checkpoint_manifest *m) {
        return m->layout;
}

size_t checkpoint_manifest_shards(const struct checkpoint_manifest *m) {
        return m->n_shards;
}

const char *checkpoint_manifest_state(const struct checkpoint_manifest *m) {
        return m->state;
}

bool checkpoint_manifest_weights_only(const struct checkpoint_manifest *m) {
        return m->weights_only;
}

struct checkpoint_shard checkpoint_manifest_shard(const struct checkpoint_manifest *m, size_t i) {
        const struct manifest_shard *s = &m->shards[i];

        return (struct checkpoint_shard){ s->file, s->bytes, s->digest, s->rank };
}
