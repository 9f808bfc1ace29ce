/* SPDX-License-Identifier: Apache-2.0 */
#include "format/hf.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/mapping.h"
#include "format/checkpoint.h"
#include "format/checkpoint_private.h"

struct entry {
        char *name;
        const char *file; /* one of files */
};

struct hf_index {
        struct entry *entries;
        char **files; /* sorted, each once */
        size_t n, n_files;
};

DEFINE_CLEANUP(struct hf_index *, hf_index_free);
DEFINE_CLEANUP(struct hf_folder *, hf_folder_free);

/* ------------------------------------------------------------------ the index */

static int compare_entries(const void *a, const void *b) {
        return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

static int compare_texts(const void *a, const void *b) {
        return strcmp(*(char *const *)a, *(char *const *)b);
}

static int add_entries(struct hf_index *x, json_t *map, struct error *e) {
        const char *name;
        json_t *value;

        json_object_foreach(map, name, value) {
                const char *file = json_string_value(value);

                if (!name[0] || strlen(name) >= SHARD_NAME_MAX)
                        return error_set(e, -EBADMSG, HF_INDEX ": found a tensor name of %zu characters, expected 1 to %d", strlen(name), SHARD_NAME_MAX - 1);
                if (!file || !plain_file_name(file))
                        return error_set(e, -EBADMSG, HF_INDEX ": %s: found '%.100s', expected the plain name of a file", name, file ? file : "no text");
                x->entries[x->n].name = strdup(name);
                x->files[x->n_files] = strdup(file);
                if (!x->entries[x->n++].name || !x->files[x->n_files++])
                        return error_set(e, -ENOMEM, HF_INDEX ": out of memory");
        }
        return 0;
}

/* Sorts both lists, keeps each file once; map gives each entry its file. */
static int settle(struct hf_index *x, json_t *map, struct error *e) {
        size_t kept = 0;

        qsort(x->entries, x->n, sizeof(*x->entries), compare_entries);
        qsort(x->files, x->n_files, sizeof(*x->files), compare_texts);
        for (size_t i = 0; i < x->n_files; i++) {
                if (kept == 0 || strcmp(x->files[kept - 1], x->files[i]) != 0)
                        x->files[kept++] = x->files[i];
                else
                        free(x->files[i]);
        }
        x->n_files = kept;
        if (kept > HF_FILES_MAX)
                return error_set(e, -EBADMSG, HF_INDEX ": found %zu files, expected at most %d", kept, HF_FILES_MAX);
        for (size_t i = 0; i < x->n; i++) {
                const char *file = json_string_value(json_object_get(map, x->entries[i].name));
                char *const *at = bsearch(&file, x->files, x->n_files, sizeof(*x->files), compare_texts);

                x->entries[i].file = *at;
        }
        return 0;
}

int hf_index_parse(const char *text, size_t len, struct hf_index **ret, struct error *e) {
        _cleanup_(json_decrefp) json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
        _cleanup_(hf_index_freep) struct hf_index *x = NULL;
        json_t *map = json_object_get(root, "weight_map");
        size_t n = json_object_size(map);
        int r;

        if (!json_is_object(root))
                return error_set(e, -EBADMSG, HF_INDEX ": not a JSON object");
        if (!json_is_object(map) || n == 0 || n > SHARD_TENSORS_MAX)
                return error_set(e, -EBADMSG, HF_INDEX ": weight_map: expected an object of 1 to %u tensors", SHARD_TENSORS_MAX);
        x = calloc(1, sizeof(*x));
        if (x) {
                x->entries = calloc(n, sizeof(*x->entries));
                x->files = calloc(n, sizeof(*x->files));
        }
        if (!x || !x->entries || !x->files)
                return error_set(e, -ENOMEM, HF_INDEX ": out of memory");
        r = add_entries(x, map, e);
        if (r == 0)
                r = settle(x, map, e);
        if (r < 0)
                return r;
        *ret = STEAL_PTR(x);
        return 0;
}

struct hf_index *hf_index_free(struct hf_index *x) {
        if (!x)
                return NULL;
        for (size_t i = 0; x->entries && i < x->n; i++)
                free(x->entries[i].name);
        for (size_t i = 0; x->files && i < x->n_files; i++)
                free(x->files[i]);
        free(x->entries);
        free(x->files);
        free(x);
        return NULL;
}

size_t hf_index_tensors(const struct hf_index *x) {
        return x->n;
}

const char *hf_index_name(const struct hf_index *x, size_t i) {
        return x->entries[i].name;
}

const char *hf_index_file(const struct hf_index *x, size_t i) {
        return x->entries[i].file;
}

size_t hf_index_files(const struct hf_index *x) {
        return x->n_files;
}

const char *hf_index_file_name(const struct hf_index *x, size_t i) {
        return x->files[i];
}

/* ------------------------------------------------------------------ the folder */

struct file {
        const char *name; /* the index's, or HF_SINGLE */
        void *data;
        size_t len;
        struct shard_view *view;
};

struct hf_folder {
        struct hf_index *index; /* NULL: one file */
        struct file *files;
        size_t n_files;
        const struct shard_tensor **tensors; /* by name */
        size_t n;
};

static int open_file(const char *dir, const char *name, struct file *ret, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/%s", dir, name);
        _cleanup_close_ int fd = -1;
        struct stat st;
        int r;

        if (!path)
                return error_set(e, -ENOMEM, "%s: out of memory", dir);
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* links are common here: caches of downloads are made of them */
        if (fd < 0)
                return error_errno(e, errno, "cannot open %s", path);
        if (fstat(fd, &st) < 0)
                return error_errno(e, errno, "cannot look at %s", path);
        if (!S_ISREG(st.st_mode) || st.st_size < 8)
                return error_set(e, -EBADMSG, "%s: found %" PRId64 " bytes, expected a safetensors file", path, (int64_t)st.st_size);
        r = mapping_open(fd, (size_t)st.st_size, path, &ret->data, e);
        if (r < 0)
                return r;
        ret->len = (size_t)st.st_size;
        ret->name = name;
        r = shard_view_open(ret->data, ret->len, &ret->view, e);
        return r < 0 ? error_prefix(e, "%s", path) : 0;
}

static int read_index(const char *dir, struct hf_index **ret, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/" HF_INDEX, dir), *single = file_path("%s/" HF_SINGLE, dir), *text = NULL;
        struct error why;
        size_t len;
        int r;

        if (!path || !single)
                return error_set(e, -ENOMEM, "%s: out of memory", dir);
        r = file_read(path, HF_INDEX_MAX, &text, &len, &why);
        if (r == -ENOENT) {
                if (access(single, F_OK) == 0)
                        return 0;
                return error_set(e, -ENOENT, "%s: found neither " HF_SINGLE " nor " HF_INDEX ", expected one of them", dir);
        }
        if (r < 0)
                return error_set(e, r, "%s", why.text);
        r = hf_index_parse(text, len, ret, e);
        return r < 0 ? error_prefix(e, "%s", dir) : 0;
}

static int open_files(struct hf_folder *f, const char *dir, struct error *e) {
        size_t n = f->index ? hf_index_files(f->index) : 1;
        int r = 0;

        f->files = calloc(n + 1, sizeof(*f->files));
        if (!f->files)
                return error_set(e, -ENOMEM, "%s: out of memory", dir);
        for (size_t i = 0; i < n && r == 0; i++)
                r = open_file(dir, f->index ? hf_index_file_name(f->index, i) : HF_SINGLE, &f->files[f->n_files++], e);
        return r;
}

static int compare_tensors(const void *a, const void *b) {
        return strcmp((*(const struct shard_tensor *const *)a)->name, (*(const struct shard_tensor *const *)b)->name);
}

static const char *indexed_in(const struct hf_index *x, const char *name) {
        struct entry key = { .name = (char *)name };
        const struct entry *found = bsearch(&key, x->entries, x->n, sizeof(*x->entries), compare_entries);

        return found ? found->file : NULL;
}

static int list_tensors(struct hf_folder *f, const char *dir, struct error *e) {
        size_t n = 0;

        for (size_t i = 0; i < f->n_files; i++)
                n += shard_view_count(f->files[i].view);
        f->tensors = calloc(n + 1, sizeof(const struct shard_tensor *));
        if (!f->tensors)
                return error_set(e, -ENOMEM, "%s: out of memory", dir);
        for (size_t i = 0; i < f->n_files; i++)
                for (size_t k = 0; k < shard_view_count(f->files[i].view); k++) {
                        const struct shard_tensor *t = shard_view_tensor(f->files[i].view, k);
                        const char *where = f->index ? indexed_in(f->index, t->name) : NULL;

                        if (f->index && (!where || strcmp(where, f->files[i].name) != 0))
                                return error_set(e, -EBADMSG, "%s/%s: found %s, which " HF_INDEX " has in %s", dir, f->files[i].name, t->name, where ? where : "no file");
                        if (t->rows != t->global_rows || t->cols != t->global_cols)
                                return error_set(e, -EBADMSG, "%s/%s: found a slice of %s, expected whole tensors", dir, f->files[i].name, t->name);
                        f->tensors[f->n++] = t;
                }
        qsort(f->tensors, f->n, sizeof(*f->tensors), compare_tensors);
        for (size_t i = 0; f->index && i < hf_index_tensors(f->index); i++)
                if (!hf_folder_find(f, hf_index_name(f->index, i)))
                        return error_set(e, -EBADMSG, "%s/%s: found no %s, which " HF_INDEX " has there", dir, hf_index_file(f->index, i), hf_index_name(f->index, i));
        return 0;
}

int hf_folder_open(const char *dir, struct hf_folder **ret, struct error *e) {
        _cleanup_(hf_folder_freep) struct hf_folder *f = calloc(1, sizeof(*f));
        int r;

        if (!f)
                return error_set(e, -ENOMEM, "%s: out of memory", dir);
        r = read_index(dir, &f->index, e);
        if (r == 0)
                r = open_files(f, dir, e);
        if (r == 0)
                r = list_tensors(f, dir, e);
        if (r < 0)
                return r;
        *ret = STEAL_PTR(f);
        return 0;
}

struct hf_folder *hf_folder_free(struct hf_folder *f) {
        if (!f)
                return NULL;
        for (size_t i = 0; f->files && i < f->n_files; i++) {
                shard_view_free(f->files[i].view);
                mapping_close(f->files[i].data, f->files[i].len);
        }
        free(f->files);
        free(f->tensors);
        hf_index_free(f->index);
        free(f);
        return NULL;
}

size_t hf_folder_tensors(const struct hf_folder *f) {
        return f->n;
}

const struct shard_tensor *hf_folder_tensor(const struct hf_folder *f, size_t i) {
        return f->tensors[i];
}

const struct shard_tensor *hf_folder_find(const struct hf_folder *f, const char *name) {
        struct shard_tensor key = { 0 };
        const struct shard_tensor *p = &key, **found;

        if (strlen(name) >= sizeof(key.name))
                return NULL;
        memcpy(key.name, name, strlen(name));
        found = f->n ? bsearch(&p, f->tensors, f->n, sizeof(*f->tensors), compare_tensors) : NULL;
        return found ? *found : NULL;
}

int hf_folder_check(const struct hf_folder *f, struct error *e) {
        int r = 0;

        for (size_t i = 0; i < f->n_files && r == 0; i++)
                r = mapping_check(f->files[i].data, f->files[i].name, e);
        return r;
}

void hf_folder_release(const void *data, size_t len) {
        pages_release(data, len);
}
