/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Work in a user's folder is done with that user's file-system identity, setfsuid(2), setfsgid(2) and the groups: on Linux they belong to a thread, and it is the C library that keeps
 * a process's threads equal, hence the raw system calls ("C library/kernel differences").  Unlike the effective user they leave CAP_SETUID and CAP_SETGID alone, so that a
 * daemon that has these two and nothing else can do it, and root loses CAP_DAC_OVERRIDE and its kin meanwhile.
 *
 * Each folder that work lies in (a job's checkpoints) is a lane: its work is done in order, one at a time, by whichever thread is free.  So a mount that stands still holds up the
 * lanes that lie on it and no others, as long as there are threads; they are made when all there are have something in hand, by the loop's thread alone, which never acts for a user.
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
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"

#define GROUPS_MAX 256
#define THREADS_MAX 64
#define STACK_BYTES ((size_t)256 << 10)
#define REFUSED_MAX 64  /* for which there was no memory, until the loop comes round */
#define LEAVE_S 3       /* at the end: longer nobody waits for storage */

struct work {
        struct file_work w;
        int rc;
        struct error error;
        struct work *next;
};

struct lane {
        struct lane *next;
        struct work *queue, **tail;
        bool busy;
        char folder[];
};

struct file_helper {
        struct loop *loop;
        void (*done)(void *arg, uint64_t id, int rc, const char *text);
        void *arg;
        pthread_mutex_t lock;
        pthread_cond_t wake, left;
        struct lane *lanes; /* with something to do, or in hand; the one that was served longest ago first */
        struct work *finished, **finished_tail;
        uint64_t refused[REFUSED_MAX];
        size_t n_refused;
        int n_threads, n_idle;
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

/* -EPERM: this process may not act for others, and nothing has changed. */
static int become(const struct identity *i, struct error *e) {
        if (syscall(SYS_setgroups, (size_t)i->n_groups, i->groups) < 0)
                return error_errno(e, errno, "cannot act as user %u", (unsigned)i->uid);
        /* These return what was before, and nothing else; -1 changes nothing. */
        syscall(SYS_setfsgid, i->gid);
        syscall(SYS_setfsuid, i->uid);
        if ((uid_t)syscall(SYS_setfsuid, -1) != i->uid || (gid_t)syscall(SYS_setfsgid, -1) != i->gid)
                return error_set(e, -EACCES, "cannot act as user %u, only as a member of its groups", (unsigned)i->uid);
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

/* *ret_ours: this thread is who it was. */
static int do_as_user(const struct file_work *w, bool *ret_ours, struct error *e) {
        struct identity self, user;
        struct error back = { 0 };
        int r;

        *ret_ours = true;
        r = identity_of_self(&self, e);
        if (r < 0)
                return r;
        if (w->uid == self.uid)
                return do_work(w, e);
        identity_of_user(w->uid, w->gid, &user);
        r = become(&user, e);
        if (r == -EPERM)
                return self.uid != 0 ? do_work(w, e) : r; /* a controller that a user started: as far as that user may */
        if (r == 0)
                r = do_work(w, e);
        *ret_ours = become(&self, &back) == 0;
        return *ret_ours ? r : error_set(e, back.code, "%s", back.text);
}

static void on_finished(void *arg);

/* The next lane that nobody works in; it goes to the end of the list. Lock held. */
static struct lane *take_lane(struct file_helper *h) {
        struct lane **at = &h->lanes, *k, **end;

        while (*at && (*at)->busy)
                at = &(*at)->next;
        k = *at;
        if (!k)
                return NULL;
        *at = k->next;
        for (end = &h->lanes; *end; end = &(*end)->next)
                ;
        *end = k;
        k->next = NULL;
        k->busy = true;
        return k;
}

static void drop_lane(struct file_helper *h, struct lane *k) {
        struct lane **at = &h->lanes;

        while (*at != k)
                at = &(*at)->next;
        *at = k->next;
        free(k);
}

/* Lock held, and not while the work is done. False: this thread is not to do anything more. */
static bool work_in(struct file_helper *h, struct lane *k) {
        struct work *w = k->queue;
        bool ours;

        k->queue = w->next;
        if (!k->queue)
                k->tail = &k->queue;
        w->next = NULL;
        pthread_mutex_unlock(&h->lock);
        w->rc = do_as_user(&w->w, &ours, &w->error);
        pthread_mutex_lock(&h->lock);
        k->busy = false;
        if (!k->queue)
                drop_lane(h, k);
        *h->finished_tail = w;
        h->finished_tail = &w->next;
        if (!h->stop)
                (void)loop_post(h->loop, on_finished, h);
        return ours;
}

static void *helper_thread(void *arg) {
        struct file_helper *h = arg;
        bool ours = true;

        pthread_mutex_lock(&h->lock);
        while (!h->stop && ours) {
                struct lane *k = take_lane(h);

                if (k) {
                        ours = work_in(h, k);
                        continue;
                }
                h->n_idle++;
                pthread_cond_wait(&h->wake, &h->lock);
                h->n_idle--;
        }
        h->n_threads--;
        pthread_cond_signal(&h->left);
        pthread_mutex_unlock(&h->lock);
        return NULL;
}

/* ------------------------------------------------------------------ in the loop's thread */

/* One more when there are more lanes with something to do than idle threads (one that was woken counts as idle until it runs). Lock held. */
static int have_thread(struct file_helper *h) {
        pthread_attr_t attr;
        pthread_t t;
        int r, wait = h->n_threads == 0;

        for (const struct lane *k = h->lanes; k; k = k->next)
                wait += !k->busy;
        if (wait <= h->n_idle || h->n_threads >= THREADS_MAX)
                return 0;
        pthread_attr_init(&attr);
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(&attr, STACK_BYTES);
        r = pthread_create(&t, &attr, helper_thread, h);
        pthread_attr_destroy(&attr);
        h->n_threads += r == 0;
        return h->n_threads > 0 ? 0 : -r;
}

static void on_finished(void *arg) {
        struct file_helper *h = arg;
        uint64_t refused[REFUSED_MAX];
        struct work *list;
        size_t n;

        pthread_mutex_lock(&h->lock);
        list = h->finished;
        h->finished = NULL;
        h->finished_tail = &h->finished;
        n = h->n_refused;
        memcpy(refused, h->refused, n * sizeof(*refused));
        h->n_refused = 0;
        if (h->lanes)
                (void)have_thread(h); /* one may have left */
        pthread_mutex_unlock(&h->lock);
        for (size_t i = 0; i < n; i++)
                h->done(h->arg, refused[i], -ENOMEM, "no memory for work on files");
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
        h->finished_tail = &h->finished;
        pthread_mutex_init(&h->lock, NULL);
        pthread_cond_init(&h->wake, NULL);
        pthread_cond_init(&h->left, NULL);
        pthread_mutex_lock(&h->lock);
        r = have_thread(h);
        pthread_mutex_unlock(&h->lock);
        if (r < 0) {
                file_helper_free(h);
                return error_errno(e, -r, "cannot start the file helper's thread");
        }
        *ret = h;
        return 0;
}

static void forget(struct work *list) {
        while (list) {
                struct work *w = list;

                list = w->next;
                work_free(w);
        }
}

struct file_helper *file_helper_free(struct file_helper *h) {
        struct timespec until;
        int r = 0;

        if (!h)
                return NULL;
        (void)clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += LEAVE_S;
        pthread_mutex_lock(&h->lock);
        h->stop = true;
        pthread_cond_broadcast(&h->wake);
        while (h->n_threads > 0 && r == 0)
                r = pthread_cond_timedwait(&h->left, &h->lock, &until);
        pthread_mutex_unlock(&h->lock);
        if (r != 0)
                return NULL; /* storage stands still, and a thread of ours in it: the process ends without both */
        while (h->lanes) {
                struct lane *k = h->lanes;

                h->lanes = k->next;
                forget(k->queue);
                free(k);
        }
        forget(h->finished);
        pthread_mutex_destroy(&h->lock);
        pthread_cond_destroy(&h->wake);
        pthread_cond_destroy(&h->left);
        free(h);
        return NULL;
}

/* ------------------------------------------------------------------ more work */

void file_helper_refuse(struct file_helper *h, uint64_t id) {
        pthread_mutex_lock(&h->lock);
        if (h->n_refused < REFUSED_MAX)
                h->refused[h->n_refused++] = id;
        pthread_mutex_unlock(&h->lock);
        (void)loop_post(h->loop, on_finished, h);
}

/* The folder that it lies in; stale folders lie in the one that is named. Lock held. */
static struct lane *lane_of(struct file_helper *h, const struct file_work *w) {
        const char *slash = w->kind == FILE_REMOVE_STALE ? NULL : strrchr(w->path, '/');
        size_t len = slash ? (size_t)(slash - w->path) : strlen(w->path);
        struct lane **at, *k;

        for (at = &h->lanes; *at; at = &(*at)->next)
                if (strlen((*at)->folder) == len && memcmp((*at)->folder, w->path, len) == 0)
                        return *at;
        k = calloc(1, sizeof(*k) + len + 1);
        if (!k)
                return NULL;
        memcpy(k->folder, w->path, len);
        k->tail = &k->queue;
        *at = k;
        return k;
}

void file_helper_add(struct file_helper *h, const struct file_work *w) {
        struct work *n = calloc(1, sizeof(*n));
        struct lane *k = NULL;

        if (n) {
                n->w = *w;
                n->w.path = w->path ? strdup(w->path) : NULL;
                n->w.text = w->text ? strdup(w->text) : NULL;
        }
        if (n && n->w.path && (!w->text || n->w.text)) {
                pthread_mutex_lock(&h->lock);
                k = lane_of(h, &n->w);
                if (k) {
                        *k->tail = n;
                        k->tail = &n->next;
                        pthread_cond_signal(&h->wake);
                        (void)have_thread(h); /* with none at all it waits for the next occasion */
                }
                pthread_mutex_unlock(&h->lock);
        }
        if (k)
                return;
        work_free(n);
        file_helper_refuse(h, w->id);
}
