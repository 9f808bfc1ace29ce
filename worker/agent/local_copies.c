/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/agent/local_copies.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/log.h"
#include "worker/agent/user.h"

#define JOBS_MAX 4096

DEFINE_CLEANUP(DIR *, closedir);

/* Whose a folder is; a link is nobody's. */
static int owner_of(const char *path, struct stat *ret) {
        if (lstat(path, ret) < 0)
                return -errno;
        return S_ISDIR(ret->st_mode) ? 0 : -ENOTDIR;
}

int local_copies_of(const char *dir, const char *cluster, uint64_t job, struct local_copy **ret, size_t *ret_n, struct error *e) {
        _cleanup_free_ char *path = local_copies_of_job(dir, cluster, job);
        struct stat st;
        int r = path ? owner_of(path, &st) : -ENOENT;

        if (r == -ENOENT) {
                *ret = NULL;
                *ret_n = 0;
                return 0;
        }
        if (r < 0)
                return error_errno(e, -r, "%s", path);
        user_enter(st.st_uid, st.st_gid);
        r = local_copies_list_job(path, ret, ret_n, e);
        user_leave();
        return r;
}

/* ------------------------------------------------------------------ what is there */
struct folder {
        char name[300];
        uint64_t job; /* 0: another cluster's */
        struct timespec used;
};

static int list_folders(const char *dir, const char *cluster, struct folder **ret, size_t *ret_n, struct error *e) {
        _cleanup_(closedirp) DIR *d = opendir(dir);
        _cleanup_free_ struct folder *list = NULL;
        size_t n = 0;

        if (!d && errno != ENOENT)
                return error_errno(e, errno, "cannot list %s", dir);
        for (struct dirent *x = d ? readdir(d) : NULL; x && n < JOBS_MAX; x = readdir(d)) {
                struct folder *more;
                struct stat st;

                if (x->d_name[0] == '.' || fstatat(dirfd(d), x->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISDIR(st.st_mode))
                        continue;
                more = reallocarray(list, n + 1, sizeof(*more));
                if (!more)
                        return error_set(e, -ENOMEM, "%s: out of memory", dir);
                list = more;
                snprintf(list[n].name, sizeof(list[n].name), "%s", x->d_name);
                list[n].job = local_copies_job(x->d_name, cluster);
                list[n++].used = st.st_mtim;
        }
        *ret = STEAL_PTR(list);
        *ret_n = n;
        return 0;
}

int local_copies_jobs(const char *dir, const char *cluster, uint64_t **ret, size_t *ret_n, struct error *e) {
        _cleanup_free_ struct folder *list = NULL;
        uint64_t *jobs;
        size_t n = 0;
        int r = list_folders(dir, cluster, &list, &n, e);

        if (r < 0)
                return r;
        jobs = calloc(n + 1, sizeof(*jobs));
        if (!jobs)
                return error_set(e, -ENOMEM, "%s: out of memory", dir);
        *ret_n = 0;
        for (size_t i = 0; i < n; i++)
                if (list[i].job)
                        jobs[(*ret_n)++] = list[i].job;
        *ret = jobs;
        return 0;
}

/* Bytes of the files in a folder of at most this depth: job, rank, step. */
static uint64_t bytes_in(int at, const char *name, int depth) {
        int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        _cleanup_(closedirp) DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
        uint64_t sum = 0;

        if (!d && fd >= 0)
                close(fd);
        for (struct dirent *x = d ? readdir(d) : NULL; x; x = readdir(d)) {
                struct stat st;

                if (strcmp(x->d_name, ".") == 0 || strcmp(x->d_name, "..") == 0 || fstatat(dirfd(d), x->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
                        continue;
                if (S_ISREG(st.st_mode))
                        sum += (uint64_t)st.st_size;
                else if (S_ISDIR(st.st_mode) && depth > 0)
                        sum += bytes_in(dirfd(d), x->d_name, depth - 1);
        }
        return sum;
}

/* ------------------------------------------------------------------ what goes */
int local_copies_remove(const char *dir, const char *cluster, uint64_t job, struct error *e) {
        _cleanup_free_ char *path = local_copies_of_job(dir, cluster, job);

        return path ? file_remove_tree(path, e) : 0;
}

static bool is_here(const struct local_rank_place *here, size_t n, uint64_t job, int64_t rank /* -1: any */) {
        for (size_t i = 0; i < n; i++)
                if (here[i].job == job && (rank < 0 || here[i].rank == (uint32_t)rank))
                        return true;
        return false;
}

/* Ranks that have moved away wrote them; nobody writes there now, and nobody would read them here. */
static void prune_ranks(const char *job_dir, uint64_t job, const struct local_rank_place *here, size_t n) {
        _cleanup_(closedirp) DIR *d = opendir(job_dir);

        for (struct dirent *x = d ? readdir(d) : NULL; x; x = readdir(d)) {
                _cleanup_free_ char *path = NULL;
                struct error e = { 0 };
                uint32_t rank;
                int end = -1;

                if (sscanf(x->d_name, "rank-%10" SCNu32 "%n", &rank, &end) != 1 || end < 0 || x->d_name[end] || is_here(here, n, job, rank))
                        continue;
                path = file_path("%s/%s", job_dir, x->d_name);
                if (path && file_remove_tree(path, &e) < 0)
                        log_debug("%s", e.text);
        }
}

static int older_first(const void *a, const void *b) {
        const struct timespec *x = &((const struct folder *)a)->used, *y = &((const struct folder *)b)->used;

        if (x->tv_sec != y->tv_sec)
                return x->tv_sec < y->tv_sec ? -1 : 1;
        return (x->tv_nsec > y->tv_nsec) - (x->tv_nsec < y->tv_nsec);
}

int local_copies_prune(const char *dir, const char *cluster, const struct local_rank_place *here, size_t n, uint64_t space, struct error *e) {
        _cleanup_free_ struct folder *list = NULL;
        _cleanup_free_ uint64_t *bytes = NULL;
        uint64_t sum = 0;
        size_t n_list = 0;
        int gone = 0, r = list_folders(dir, cluster, &list, &n_list, e);

        if (r < 0 || n_list == 0)
                return r;
        bytes = calloc(n_list, sizeof(*bytes));
        if (!bytes)
                return error_set(e, -ENOMEM, "%s: out of memory", dir);
        qsort(list, n_list, sizeof(*list), older_first);
        for (size_t i = 0; i < n_list; i++) {
                _cleanup_free_ char *path = file_path("%s/%s", dir, list[i].name);

                if (!path)
                        continue;
                if (list[i].job && is_here(here, n, list[i].job, -1))
                        prune_ranks(path, list[i].job, here, n);
                else
                        bytes[i] = bytes_in(AT_FDCWD, path, 3);
                sum += bytes[i];
        }
        for (size_t i = 0; i < n_list && sum > space; i++) {
                _cleanup_free_ char *path = file_path("%s/%s", dir, list[i].name);
                struct error why = { 0 };

                if (!bytes[i])
                        continue;
                if (path && file_remove_tree(path, &why) == 0) {
                        sum -= bytes[i];
                        gone++;
                } else {
                        log_debug("%s", why.text);
                }
        }
        return gone;
}
