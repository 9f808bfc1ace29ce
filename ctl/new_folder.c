/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/new_folder.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/file.h"

static volatile sig_atomic_t interrupted;

static void on_signal(int signo) {
        interrupted = signo;
}

static void catch_signals(void) {
        struct sigaction sa = { .sa_handler = on_signal, .sa_flags = (int)(SA_RESETHAND | SA_RESTART) }; /* the second one ends the program */

        (void)sigaction(SIGINT, &sa, NULL);
        (void)sigaction(SIGTERM, &sa, NULL);
}

int new_folder_interrupted(struct error *e) {
        return interrupted ? error_set(e, -EINTR, "interrupted by %s; nothing was written", interrupted == SIGINT ? "SIGINT" : "SIGTERM") : 0;
}

static bool empty_folder(const char *path) {
        DIR *d = opendir(path);
        int n = 0;

        if (!d)
                return false;
        while (n < 3 && readdir(d))
                n++;
        (void)closedir(d);
        return n == 2; /* . and .. */
}

static int split(const char *path, struct new_folder *f, struct error *e) {
        size_t len = strlen(path);
        const char *slash;

        while (len > 1 && path[len - 1] == '/')
                len--;
        f->path = strndup(path, len);
        if (!f->path)
                return error_set(e, -ENOMEM, "no memory");
        slash = strrchr(f->path, '/');
        f->parent = !slash ? strdup(".") : slash == f->path ? strdup("/") : strndup(f->path, (size_t)(slash - f->path));
        if (!f->parent)
                return error_set(e, -ENOMEM, "no memory");
        f->tmp = file_path("%s/.%s.tmp-XXXXXX", f->parent, slash ? slash + 1 : f->path);
        return f->tmp ? 0 : error_set(e, -ENOMEM, "no memory");
}

int new_folder_begin(const char *path, struct new_folder *ret, struct error *e) {
        struct new_folder f = { 0 };
        mode_t mask = umask(0);
        struct stat st;
        int r;

        (void)umask(mask);
        if (!path[0])
                return error_set(e, -EINVAL, "found no name of a folder, expected one that is not there yet");
        if (lstat(path, &st) == 0 && !(S_ISDIR(st.st_mode) && empty_folder(path)))
                return error_set(e, -EEXIST, "%s: found something there, expected a folder that is not there yet, or empty", path);
        r = split(path, &f, e);
        catch_signals();
        if (r == 0)
                r = file_mkdir_p(f.parent, 0777, e);
        if (r == 0 && (!mkdtemp(f.tmp) || chmod(f.tmp, 0777 & ~mask) < 0)) {
                r = error_errno(e, errno, "cannot make a folder in %s", f.parent);
                free(STEAL_PTR(f.tmp)); /* nothing there to remove */
        }
        if (r < 0) {
                free(f.tmp);
                f.tmp = NULL;
                new_folder_done(&f);
                return r;
        }
        *ret = f;
        return 0;
}

int new_folder_commit(struct new_folder *f, struct error *e) {
        int r = new_folder_interrupted(e);

        if (r == 0)
                r = file_fsync_dir(f->tmp, e);
        if (r < 0)
                return r;
        if (rename(f->tmp, f->path) < 0)
                return error_errno(e, errno, "cannot rename %s to %s", f->tmp, f->path);
        free(STEAL_PTR(f->tmp));
        return file_fsync_dir(f->parent, e);
}

void new_folder_done(struct new_folder *f) {
        if (f->tmp)
                (void)file_remove_tree(f->tmp, NULL);
        free(f->tmp);
        free(f->parent);
        free(f->path);
        *f = (struct new_folder){ 0 };
}
