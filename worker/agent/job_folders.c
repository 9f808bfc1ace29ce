/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/agent/job_folders.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/log.h"
#include "base/text.h"

struct folder {
        uint64_t job;
        struct timespec used; /* the folder's mtime: job.json is put there anew whenever ranks are started */
};

static int older_first(const void *a, const void *b) {
        const struct folder *x = a, *y = b;

        if (x->used.tv_sec != y->used.tv_sec)
                return (x->used.tv_sec > y->used.tv_sec) - (x->used.tv_sec < y->used.tv_sec);
        if (x->used.tv_nsec != y->used.tv_nsec)
                return (x->used.tv_nsec > y->used.tv_nsec) - (x->used.tv_nsec < y->used.tv_nsec);
        return (x->job > y->job) - (x->job < y->job);
}

static bool is_in(uint64_t job, const uint64_t *list, size_t n) {
        for (size_t i = 0; i < n; i++)
                if (list[i] == job)
                        return true;
        return false;
}

static int list_folders(const char *jobs, const uint64_t *in_use, size_t n_in_use, struct folder **ret, size_t *ret_n, struct error *e) {
        DIR *d = opendir(jobs);
        struct folder *list = NULL;
        size_t n = 0, size = 0;
        struct dirent *entry;
        int r = 0;

        if (!d)
                return errno == ENOENT ? 0 : error_errno(e, errno, "cannot list '%s'", jobs);
        while ((entry = readdir(d))) {
                struct stat st;
                int64_t job;

                if (text_parse_i64(entry->d_name, &job) < 0 || job < 1 || is_in((uint64_t)job, in_use, n_in_use) ||
                    fstatat(dirfd(d), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISDIR(st.st_mode))
                        continue;
                if (n == size) {
                        struct folder *more = realloc(list, (size = size ? 2 * size : 64) * sizeof(*list));

                        if (!more) {
                                r = error_set(e, -ENOMEM, "no memory");
                                break;
                        }
                        list = more;
                }
                list[n++] = (struct folder){ (uint64_t)job, st.st_mtim };
        }
        closedir(d);
        if (r < 0) {
                free(list);
                return r;
        }
        *ret = list;
        *ret_n = n;
        return 0;
}

int job_folders_prune(const char *dir, size_t keep, const uint64_t *in_use, size_t n_in_use, struct error *e) {
        _cleanup_free_ char *jobs = file_path("%s/jobs", dir);
        _cleanup_free_ struct folder *list = NULL;
        size_t n = 0;
        int gone = 0, r = jobs ? list_folders(jobs, in_use, n_in_use, &list, &n, e) : error_set(e, -ENOMEM, "no memory");

        if (r < 0 || n <= keep)
                return r;
        qsort(list, n, sizeof(*list), older_first);
        for (size_t i = 0; i < n - keep; i++) {
                _cleanup_free_ char *path = file_path("%s/%" PRIu64, jobs, list[i].job);
                struct error why = { 0 };

                if (path && file_remove_tree(path, &why) == 0)
                        gone++;
                else
                        log_debug("%s", why.text);
        }
        return gone;
}
