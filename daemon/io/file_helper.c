/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Work in a user's folder is done with that user's file-system identity, setfsuid(2), setfsgid(2) and the groups: on Linux they belong to a thread, and it is the C library that keeps
 * a process's threads equal, hence the raw system calls ("C library/kernel differences").  Unlike the effective user they leave CAP_SETUID and CAP_SETGID alone, so that a
 * daemon that has these two and nothing else can do it, and root loses CAP_DAC_OVERRIDE and its kin meanwhile.
 */
#include "daemon/io/file_helper.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <pthread.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"

#define GROUPS_MAX 256

struct work {
        struct file_work w;
        int rc;
        struct error error;
        struct work *next;
};

struct file_helper {
        struct loop *loop;
        void (*done)(void *arg, uint64_t id, int rc, const char *text);
        void *arg;
        pthread_t thread;
        pthread_mutex_t lock;
        pthread_cond_t wake;
        struct work *queue, **tail;
        struct work *finished, **finished_tail;
        bool stop;
};

static struct work *work_free(struct work *w) {
        if (!w)
                return NULL;
        free((void *)w->w.path);
        free((void *)w->w.text);
        free(w);
        return NULL;
}

/* ------------------------------------------------------------------ in the helper's thread */

struct identity {
        uid_t uid;
        gid_t gid;
        gid_t groups[GROUPS_MAX];
        int n_groups;
};

static void identity_of_user(uint32_t uid, uint32_t gid, struct identity *ret) {
        struct passwd pw, *found = NULL;
        char buf[4096];

        *ret = (struct identity){ .uid = uid, .gid = gid, .n_groups = GROUPS_MAX };
        if (getpwuid_r(uid, &pw, buf, sizeof(buf), &found) != 0 || !found || getgrouplist(found->pw_name, gid, ret->groups, &ret->n_groups) < 0) {
                ret->groups[0] = gid;
                ret->n_groups = 1;
        }
}

static int identity_of_self(struct identity *ret, struct error *e) {
        *ret = (struct identity){ .uid = geteuid(), .gid = getegid() };
        ret->n_groups = getgroups(GROUPS_MAX, ret->groups);
        return ret->n_groups < 0 ? error_errno(e, errno, "groups of this process") : 0;
}

/* -EPERM: this process may not act for others. */
static int become(const struct identity *i, struct error *e) {
        if (syscall(SYS_setgroups, (size_t)i->n_groups, i->groups) < 0)
                return error_errno(e, errno, "cannot act as user %u", (unsigned)i->uid);
        /* These return what was before, and nothing else; -1 changes nothing. */
        syscall(SYS_setfsgid, i->gid);
        syscall(SYS_setfsuid, i->uid);
        if ((uid_t)syscall(SYS_setfsuid, -1) != i->uid || (gid_t)syscall(SYS_setfsgid, -1) != i->gid)
                return error_errno(e, EPERM, "cannot act as user %u", (unsigned)i->uid);
        return 0;
}

/* Only a step folder is ever removed, by an absolute path without "..". */
static int check_tree(const char *path, struct error *e) {
        const char *base = strrchr(path, '/');

        if (path[0] != '/' || strstr(path, "/../") || strstr(path, "/./") || !base || strncmp(base, "/step_", 6) != 0 || strlen(base) < 8)
                return error_set(e, -EINVAL, "will not remove '%s': expected an absolute path of a checkpoint folder step_*", path);
        return 0;
}

static int remove_unfinished(const char *folder, struct error *e) {
        _cleanup_free_ char *path = NULL;
        int r = check_tree(folder, e);

        if (r < 0)
                return r;
        path = file_path("%s/manifest.json", folder);
        if (!path)
                return error_errno(e, ENOMEM, "manifest");
        return faccessat(AT_FDCWD, path, F_OK, AT_EACCESS) == 0 || errno != ENOENT ? 0 : file_remove_tree(folder, e);
}

/* What saves of earlier epochs left that nobody ever spoke of: their ranks died while they wrote. */
static int remove_stale(const char *dir, uint64_t epoch, struct error *e) {
        DIR *d = opendir(dir);
        int r = 0;

        if (!d)
                return errno == ENOENT ? 0 : error_errno(e, errno, "cannot open %s", dir);
        for (struct dirent *x = readdir(d); x && r == 0; x = readdir(d)) {
                _cleanup_free_ char *path = NULL;
                uint64_t of;
                int end = -1;

                if (sscanf(x->d_name, "step_%*[0-9].e%20" SCNu64 ".%*[0-9]%n", &of, &end) != 1 || end < 0 || x->d_name[end] || of >= epoch)
                        continue;
                path = file_path("%s/%s", dir, x->d_name);
                r = path ? remove_unfinished(path, e) : error_errno(e, ENOMEM, "%s", dir);
        }
        (void)closedir(d);
        return r;
}

static int do_work(const struct file_work *w, struct error *e) {
        _cleanup_free_ char *path = NULL;
        int r;

        switch (w->kind) {
        case FILE_WRITE_MANIFEST:
                path = file_path("%s/manifest.json", w->path);
                return path ? file_write_atomic(path, w->text, strlen(w->text), 0644, e) : error_errno(e, ENOMEM, "manifest");
        case FILE_REMOVE_TREE:
                r = check_tree(w->path, e);
                return r < 0 ? r : file_remove_tree(w->path, e);
        case FILE_REMOVE_UNFINISHED:
                return remove_unfinished(w->path, e);
        case FILE_REMOVE_STALE:
                return remove_stale(w->path, strtoull(w->text, NULL, 10), e);
        default:
                return error_set(e, -EINVAL, "unknown file work %d", (int)w->kind);
        }
}

static int do_as_user(const struct file_work *w, struct error *e) {
        struct identity self, user;
        struct error back = { 0 };
        bool denied;
        int r;

        r = identity_of_self(&self, e);
        if (r < 0)
                return r;
        if (w->uid == self.uid)
                return do_work(w, e);
        identity_of_user(w->uid, w->gid, &user);
        r = become(&user, e);
        denied = r == -EPERM && self.uid != 0; /* a controller that a user started: as far as that user may */
        if (r == 0 || denied)
                r = do_work(w, e);
        if (become(&self, &back) < 0 && !denied)
                return error_set(e, back.code, "%s", back.text);
        return r;
}

static void on_finished(void *arg);

static void *helper_thread(void *arg) {
        struct file_helper *h = arg;

        pthread_mutex_lock(&h->lock);
        while (!h->stop) {
                struct work *w = h->queue;

                if (!w) {
                        pthread_cond_wait(&h->wake, &h->lock);
                        continue;
                }
                h->queue = w->next;
                if (!h->queue)
                        h->tail = &h->queue;
                w->next = NULL;
                pthread_mutex_unlock(&h->lock);
                w->rc = do_as_user(&w->w, &w->error);
                pthread_mutex_lock(&h->lock);
                *h->finished_tail = w;
                h->finished_tail = &w->next;
                if (!h->stop)
                        loop_post(h->loop, on_finished, h);
        }
        pthread_mutex_unlock(&h->lock);
        return NULL;
}

/* ------------------------------------------------------------------ in the loop's thread */

static void on_finished(void *arg) {
        struct file_helper *h = arg;
        struct work *list;

        pthread_mutex_lock(&h->lock);
        list = h->finished;
        h->finished = NULL;
        h->finished_tail = &h->finished;
        pthread_mutex_unlock(&h->lock);
        while (list) {
                struct work *w = list;

                list = w->next;
                h->done(h->arg, w->w.id, w->rc, w->error.text);
                work_free(w);
        }
}

int file_helper_new(struct loop *l, void (*done)(void *arg, uint64_t id, int rc, const char *text), void *arg, struct file_helper **ret, struct error *e) {
        struct file_helper *h = calloc(1, sizeof(*h));
        int r;

        if (!h)
                return error_errno(e, ENOMEM, "file helper");
        *h = (struct file_helper){ .loop = l, .done = done, .arg = arg };
        h->tail = &h->queue;
        h->finished_tail = &h->finished;
        pthread_mutex_init(&h->lock, NULL);
        pthread_cond_init(&h->wake, NULL);
        r = pthread_create(&h->thread, NULL, helper_thread, h);
        if (r != 0) {
                pthread_mutex_destroy(&h->lock);
                pthread_cond_destroy(&h->wake);
                free(h);
                return error_errno(e, r, "cannot start the file helper's thread");
        }
        *ret = h;
        return 0;
}

struct file_helper *file_helper_free(struct file_helper *h) {
        if (!h)
                return NULL;
        pthread_mutex_lock(&h->lock);
        h->stop = true;
        pthread_cond_signal(&h->wake);
        pthread_mutex_unlock(&h->lock);
        pthread_join(h->thread, NULL);
        for (struct work **list[] = { &h->queue, &h->finished }, ***p = list; p < list + ARRAY_SIZE(list); p++)
                while (**p) {
                        struct work *w = **p;

                        **p = w->next;
                        work_free(w);
                }
        pthread_mutex_destroy(&h->lock);
        pthread_cond_destroy(&h->wake);
        free(h);
        return NULL;
}

int file_helper_add(struct file_helper *h, const struct file_work *w, struct error *e) {
        struct work *n = calloc(1, sizeof(*n));

        if (!n)
                return error_errno(e, ENOMEM, "file work");
        n->w = *w;
        n->w.path = strdup(w->path);
        n->w.text = w->text ? strdup(w->text) : NULL;
        if (!n->w.path || (w->text && !n->w.text)) {
                work_free(n);
                return error_errno(e, ENOMEM, "file work");
        }
        pthread_mutex_lock(&h->lock);
        *h->tail = n;
        h->tail = &n->next;
        pthread_cond_signal(&h->wake);
        pthread_mutex_unlock(&h->lock);
        return 0;
}
