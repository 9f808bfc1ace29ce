/* SPDX-License-Identifier: Apache-2.0 */
#include "format/local_copy.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "format/checkpoint.h"

#define ATTEMPT 1u
#define PIECE ((size_t)8 << 20)
#define SHARD_FILE "shard-%05" PRIu32 "-of-%05" PRIu32 ".safetensors" /* as worker/ckpt names it */

DEFINE_CLEANUP(struct checkpoint_manifest *, checkpoint_manifest_free);
DEFINE_CLEANUP(struct digest_stream *, digest_stream_free);
DEFINE_CLEANUP(DIR *, closedir);

/* ------------------------------------------------------------------ names */
char *local_copies_of_job(const char *dir, const char *cluster, uint64_t job) {
        static const char plain[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_";

        if (!cluster[0] || strlen(cluster) > 64 || strspn(cluster, plain) != strlen(cluster))
                return NULL;
        return file_path("%s/%s.%" PRIu64, dir, cluster, job);
}

uint64_t local_copies_job(const char *name, const char *cluster) {
        size_t n = strlen(cluster);
        uint64_t job;
        int end = -1;

        if (n == 0 || strncmp(name, cluster, n) != 0 || name[n] != '.' || sscanf(name + n + 1, "%20" SCNu64 "%n", &job, &end) != 1 || end < 0 || name[n + 1 + (size_t)end])
                return 0;
        return job;
}

char *local_copies_of_rank(const char *job_dir, uint32_t rank) {
        return file_path("%s/rank-%05" PRIu32, job_dir, rank);
}

char *local_copy_folder(const char *job_dir, uint32_t rank, uint64_t step, uint64_t epoch) {
        _cleanup_free_ char *dir = local_copies_of_rank(job_dir, rank);
        char name[80];

        checkpoint_step_name(step, epoch, ATTEMPT, name, sizeof(name));
        return dir ? file_path("%s/%s", dir, name) : NULL;
}

static char *shard_path(const char *folder, const struct local_copy *c) {
        return file_path("%s/" SHARD_FILE, folder, c->rank, c->ranks);
}

/* ------------------------------------------------------------------ manifest */
int local_copy_seal(const char *folder, const struct local_copy *c, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/%s", folder, CHECKPOINT_MANIFEST), *text = NULL;
        char hex[DIGEST_HEX_SIZE], file[64];
        json_t *root;

        digest_hex(c->digest, hex);
        snprintf(file, sizeof(file), SHARD_FILE, c->rank, c->ranks);
        root = json_pack("{s:s, s:i, s:I, s:I, s:I, s:i, s:s, s:[{s:s, s:I, s:s, s:I}], s:{}}", "format", "fp8ctl-checkpoint", "version", 1, "job", (json_int_t)c->job, "step",
                         (json_int_t)c->step, "epoch", (json_int_t)c->epoch, "attempt", (int)ATTEMPT, "layout", c->layout, "shards", "file", file, "bytes", (json_int_t)c->bytes, "digest",
                         hex, "rank", (json_int_t)c->rank, "state");
        text = root ? json_dumps(root, JSON_COMPACT) : NULL;
        json_decref(root);
        if (!path || !text)
                return error_set(e, -ENOMEM, "%s: out of memory", folder);
        return file_write_atomic(path, text, strlen(text), 0644, e);
}

int local_copy_read(const char *folder, struct local_copy *ret, struct error *e) {
        _cleanup_(checkpoint_manifest_freep) struct checkpoint_manifest *m = NULL;
        _cleanup_free_ char *path = NULL;
        const char *slash = strrchr(folder, '/');
        struct checkpoint_shard s;
        struct local_copy c = { 0 };
        char name[80], file[64];
        struct stat st;
        int r = checkpoint_manifest_read(folder, &m, e);

        if (r < 0)
                return r;
        if (checkpoint_manifest_shards(m) != 1)
                return error_set(e, -EBADMSG, "%s: found %zu shards, expected one", folder, checkpoint_manifest_shards(m));
        s = checkpoint_manifest_shard(m, 0);
        c = (struct local_copy){ .job = checkpoint_manifest_job(m), .step = checkpoint_manifest_step(m), .epoch = checkpoint_manifest_epoch(m), .bytes = s.bytes,
                                 .rank = (uint32_t)s.rank, .digest = s.digest };
        checkpoint_step_name(c.step, c.epoch, checkpoint_manifest_attempt(m), name, sizeof(name));
        if (!slash || strcmp(slash + 1, name) != 0)
                return error_set(e, -EBADMSG, "%s: its manifest is about %s", folder, name);
        if (s.rank < 0 || sscanf(s.file, "shard-%*5u-of-%5" SCNu32, &c.ranks) != 1)
                c.ranks = 0;
        snprintf(file, sizeof(file), SHARD_FILE, c.rank, c.ranks);
        if (c.rank >= c.ranks || strcmp(file, s.file) != 0)
                return error_set(e, -EBADMSG, "%s: found the shard %.100s, expected one of rank %d", folder, s.file, s.rank);
        if (strlen(checkpoint_manifest_layout(m)) >= sizeof(c.layout))
                return error_set(e, -EBADMSG, "%s: found a layout of %zu bytes, expected less than %zu", folder, strlen(checkpoint_manifest_layout(m)), sizeof(c.layout));
        snprintf(c.layout, sizeof(c.layout), "%s", checkpoint_manifest_layout(m));
        path = shard_path(folder, &c);
        if (!path)
                return error_set(e, -ENOMEM, "%s: out of memory", folder);
        if (lstat(path, &st) < 0)
                return error_errno(e, errno, "%s", path);
        if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != c.bytes)
                return error_set(e, -EBADMSG, "%s: found %" PRId64 " bytes, expected a file of %" PRIu64, path, (int64_t)st.st_size, c.bytes);
        *ret = c;
        return 0;
}

/* ------------------------------------------------------------------ lists */
static int add_of_rank(const char *rank_dir, struct local_copy **list, size_t *n, struct error *e) {
        _cleanup_free_ struct checkpoint_folder *folders = NULL;
        struct local_copy *more;
        size_t n_folders = 0;
        int r = checkpoint_folders(rank_dir, &folders, &n_folders, e);

        if (r < 0)
                return r == -ENOENT ? 0 : r;
        more = reallocarray(*list, *n + n_folders + 1, sizeof(*more));
        if (!more)
                return error_set(e, -ENOMEM, "%s: out of memory", rank_dir);
        *list = more;
        for (size_t i = 0; i < n_folders; i++) {
                _cleanup_free_ char *folder = file_path("%s/%s", rank_dir, folders[i].name);

                if (folder && local_copy_read(folder, &more[*n], NULL) == 0)
                        (*n)++;
        }
        return 0;
}

int local_copies_list(const char *rank_dir, struct local_copy **ret, size_t *ret_n, struct error *e) {
        _cleanup_free_ struct local_copy *list = NULL;
        size_t n = 0;
        int r = add_of_rank(rank_dir, &list, &n, e);

        if (r < 0)
                return r;
        *ret = STEAL_PTR(list);
        *ret_n = n;
        return 0;
}

int local_copies_list_job(const char *job_dir, struct local_copy **ret, size_t *ret_n, struct error *e) {
        _cleanup_(closedirp) DIR *d = opendir(job_dir);
        _cleanup_free_ struct local_copy *list = NULL;
        size_t n = 0;
        int r = 0;

        if (!d && errno != ENOENT)
                return error_errno(e, errno, "cannot open folder %s", job_dir);
        for (struct dirent *x = d ? readdir(d) : NULL; x && r == 0; x = readdir(d)) {
                _cleanup_free_ char *dir = NULL;
                size_t from = n;
                uint32_t rank;
                int end = -1;

                if (sscanf(x->d_name, "rank-%10" SCNu32 "%n", &rank, &end) != 1 || end < 0 || x->d_name[end])
                        continue;
                dir = local_copies_of_rank(job_dir, rank);
                r = dir ? add_of_rank(dir, &list, &n, e) : error_set(e, -ENOMEM, "%s: out of memory", job_dir);
                while (from < n)
                        if (list[from++].rank != rank)
                                list[--from] = list[--n]; /* under another rank's name */
        }
        if (r < 0)
                return r;
        *ret = STEAL_PTR(list);
        *ret_n = n;
        return 0;
}

/* ------------------------------------------------------------------ back, and away */
int local_copy_load(const char *folder, const struct local_copy *c, void *buf, struct error *e) {
        _cleanup_(digest_stream_freep) struct digest_stream *s = NULL;
        _cleanup_free_ char *path = shard_path(folder, c);
        _cleanup_close_ int fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1;
        char found[DIGEST_HEX_SIZE], expected[DIGEST_HEX_SIZE];
        struct digest d;

        if (!path || digest_stream_new(&s) < 0)
                return error_set(e, -ENOMEM, "%s: out of memory", folder);
        if (fd < 0)
                return error_errno(e, errno, "%s", path);
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
        for (uint64_t at = 0; at < c->bytes;) {
                size_t want = c->bytes - at < PIECE ? (size_t)(c->bytes - at) : PIECE;
                ssize_t n = pread(fd, (char *)buf + at, want, (off_t)at);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return error_errno(e, errno, "%s", path);
                if (n == 0)
                        return error_set(e, -EBADMSG, "%s: ends after %" PRIu64 " bytes, expected %" PRIu64, path, at, c->bytes);
                digest_stream_add(s, (char *)buf + at, (size_t)n);
                at += (uint64_t)n;
        }
        d = digest_stream_end(s);
        if (digest_equal(d, c->digest))
                return 0;
        digest_hex(d, found);
        digest_hex(c->digest, expected);
        return error_set(e, -EBADMSG, "%s: found digest %s, expected %s", path, found, expected);
}

int local_copies_retain(const char *rank_dir, const struct local_copy *keep, size_t n, struct error *e) {
        _cleanup_free_ struct checkpoint_folder *folders = NULL;
        size_t n_folders = 0;
        int r = checkpoint_folders(rank_dir, &folders, &n_folders, e);

        if (r < 0)
                return r == -ENOENT ? 0 : r;
        for (size_t i = 0; i < n_folders; i++) {
                _cleanup_free_ char *folder = file_path("%s/%s", rank_dir, folders[i].name);
                bool kept = false;

                for (size_t k = 0; k < n && !kept; k++)
                        kept = keep[k].step == folders[i].step && keep[k].epoch == folders[i].epoch;
                if (!folder)
                        return error_set(e, -ENOMEM, "%s: out of memory", rank_dir);
                if (!kept && (r = file_remove_tree(folder, e)) < 0)
                        return r;
        }
        return 0;
}
