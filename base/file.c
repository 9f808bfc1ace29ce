/* SPDX-License-Identifier: Apache-2.0 */
#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

#define TREE_DEPTH_MAX 128

char *file_path(const char *fmt, ...) {
        char *s = NULL;
        va_list ap;
        int n;

        va_start(ap, fmt);
        n = vasprintf(&s, fmt, ap);
        va_end(ap);
        return n < 0 ? NULL : s;
}

/* Grows until end of file: the size that fstat tells is 0 for /proc and pipes, and may be old for anything. */
static int read_to_end(int fd, size_t max, char **ret_data, size_t *ret_len) {
        _cleanup_free_ char *data = NULL;
        size_t room = 4096, len = 0;
        struct stat st;

        if (fstat(fd, &st) == 0 && st.st_size > 0)
                room = ((uint64_t)st.st_size < max ? (size_t)st.st_size : max) + 2; /* one more than that tells the end */
        for (;;) {
                char *p;
                ssize_t n;

                if (!data || len + 1 >= room) {
                        if (data)
                                room *= 2;
                        p = realloc(data, room + 1);
                        if (!p)
                                return -ENOMEM;
                        data = p;
                }
                n = read(fd, data + len, room - len);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                if (n == 0)
                        break;
                len += (size_t)n;
                if (len > max)
                        return -EFBIG;
        }
        data[len] = 0;
        *ret_data = STEAL_PTR(data);
        *ret_len = len;
        return 0;
}

int file_read(const char *path, size_t max, char **ret_data, size_t *ret_len, struct error *e) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        int r;

        if (fd < 0)
                return error_errno(e, errno, "cannot open '%s'", path);
        r = read_to_end(fd, max, ret_data, ret_len);
        if (r == -EFBIG)
                return error_set(e, r, "'%s' is longer than the %zu bytes allowed", path, max);
        if (r < 0)
                return error_errno(e, -r, "cannot read '%s'", path);
        return 0;
}

int file_write_all(int fd, const void *data, size_t len) {
        const char *p = data;

        while (len > 0) {
                ssize_t n = write(fd, p, len);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                p += n;
                len -= (size_t)n;
        }
        return 0;
}

int file_fsync_dir(const char *path, struct error *e) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

        if (fd < 0)
                return error_errno(e, errno, "cannot open folder '%s'", path);
        if (fsync(fd) < 0)
                return error_errno(e, errno, "cannot fsync folder '%s'", path);
        return 0;
}

static int fsync_parent(const char *path, struct error *e) {
        const char *slash = strrchr(path, '/');
        _cleanup_free_ char *dir = NULL;

        if (!slash)
                return file_fsync_dir(".", e);
        dir = strndup(path, slash == path ? 1 : (size_t)(slash - path));
        if (!dir)
                return error_set(e, -ENOMEM, "no memory");
        return file_fsync_dir(dir, e);
}

static int write_temporary(int fd, const void *data, size_t len, mode_t mode) {
        int r = file_write_all(fd, data, len);

        if (r < 0)
                return r;
        if (fchmod(fd, mode) < 0 || fsync(fd) < 0)
                return -errno;
        return 0;
}

int file_write_atomic(const char *path, const void *data, size_t len, mode_t mode, struct error *e) {
        _cleanup_free_ char *tmp = file_path("%s.XXXXXX", path);
        int fd, r;

        if (!tmp)
                return error_set(e, -ENOMEM, "no memory");
        fd = mkostemp(tmp, O_CLOEXEC);
        if (fd < 0)
                return error_errno(e, errno, "cannot create a temporary file beside '%s'", path);
        r = write_temporary(fd, data, len, mode);
        if (close(fd) < 0 && r == 0)
                r = -errno;
        if (r < 0) {
                unlink(tmp);
                return error_errno(e, -r, "cannot write '%s'", path);
        }
        if (rename(tmp, path) < 0) {
                r = error_errno(e, errno, "cannot rename '%s' to '%s'", tmp, path);
                unlink(tmp);
                return r;
        }
        return fsync_parent(path, e);
}

static int make_folder(const char *path, mode_t mode, bool durable, struct error *e) {
        struct stat st;
        int err;

        if (mkdir(path, mode) == 0)
                return durable ? fsync_parent(path, e) : 0;
        err = errno;
        /* Also for EROFS, EACCES and the like: a folder that is there is all that was asked. */
        if (stat(path, &st) == 0)
                return S_ISDIR(st.st_mode) ? 0 : error_set(e, -ENOTDIR, "cannot create folder '%s': a file of this name is there", path);
        return error_errno(e, err, "cannot create folder '%s'", path);
}

static int make_folders(const char *path, mode_t mode, bool durable, struct error *e) {
        _cleanup_free_ char *p = strdup(path);
        int r;

        if (!p)
                return error_set(e, -ENOMEM, "no memory");
        if (!*p)
                return error_set(e, -EINVAL, "cannot create a folder: found an empty path, expected a name");
        for (char *s = p + 1; *s; s++) {
                if (*s != '/')
                        continue;
                *s = 0;
                r = make_folder(p, mode, durable, e);
                if (r < 0)
                        return r;
                *s = '/';
        }
        return make_folder(p, mode, durable, e);
}

int file_mkdir_p(const char *path, mode_t mode, struct error *e) {
        return make_folders(path, mode, false, e);
}

int file_mkdir_p_durable(const char *path, mode_t mode, struct error *e) {
        int r = make_folders(path, mode, true, e);

        /* Another process may have made it and not come to its fsync yet. */
        return r < 0 ? r : fsync_parent(path, e);
}

static void closedirp(DIR **d) {
        if (*d)
                closedir(*d);
}

static int remove_at(int parent, const char *name, int depth) {
        _cleanup_(closedirp) DIR *dir = NULL;
        struct dirent *entry;
        int fd, r;

        if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
                return 0;
        if (errno != EISDIR && errno != EPERM) /* Linux says EISDIR, POSIX EPERM, for a folder */
                return -errno;
        if (depth >= TREE_DEPTH_MAX)
                return -ELOOP;
        fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
                return errno == ENOENT ? 0 : -errno;
        dir = fdopendir(fd);
        if (!dir) {
                r = -errno;
                close(fd);
                return r;
        }
        while ((entry = readdir(dir))) {
                if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
                        continue;
                r = remove_at(dirfd(dir), entry->d_name, depth + 1);
                if (r < 0)
                        return r;
        }
        if (unlinkat(parent, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
                return -errno;
        return 0;
}

int file_remove_tree(const char *path, struct error *e) {
        int r = remove_at(AT_FDCWD, path, 0);

        return r < 0 ? error_errno(e, -r, "cannot remove '%s'", path) : 0;
}
