/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Power cuts.  SIGKILL does not test fsync: what was written is in the page cache whoever dies.  Here the calls that change the file system are recorded while two
 * ranks' shards and a manifest are saved and the commit before is removed; then every prefix of the record is replayed into a model that knows what a file system must
 * keep (data after fsync of the file, names after fsync of the folder) and may keep (anything else), and what is left is searched for a checkpoint.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "tests/test.h"
#include "tests/unit/scratch.h"
#include "worker/ckpt/checkpoint.h"

#define EVENTS_MAX 4096
#define NODES_MAX 128
#define FDS_MAX 1024
#define RANDOM_CUTS 6

DEFINE_CLEANUP(struct checkpoint_manifest *, checkpoint_manifest_free);

/* ------------------------------------------------------------------ the record */

enum what { MAKE_DIR, MAKE_FILE, WRITE, TRUNCATE, SYNC, RENAME, REMOVE };

struct event {
        enum what what;
        int node, other; /* other: RENAME's new name */
        uint64_t at;
        size_t len;
        uint8_t *data;
};

/* A name is a node for good, files and folders alike; the data belongs to the file that has the name. */
static struct {
        pthread_mutex_t lock;
        bool on;
        char root[100];
        char *names[NODES_MAX]; /* below root, "" is root */
        int n_names, fds[FDS_MAX] /* node + 1 */, renamed[NODES_MAX] /* where the file of this name is now, + 1 */;
        struct event events[EVENTS_MAX];
        int n_events;
} rec = { .lock = PTHREAD_MUTEX_INITIALIZER };

static int node_of(const char *path) {
        size_t n = strlen(rec.root);

        if (!rec.on || strncmp(path, rec.root, n) != 0 || (path[n] && path[n] != '/'))
                return -1;
        path += n;
        for (int i = 0; i < rec.n_names; i++)
                if (strcmp(rec.names[i], path) == 0)
                        return i;
        if (rec.n_names == NODES_MAX)
                abort();
        rec.names[rec.n_names] = strdup(path);
        return rec.n_names++;
}

static void note(enum what what, int node, int other, uint64_t at, const void *data, size_t len) {
        struct event *v = &rec.events[rec.n_events++];

        if (rec.n_events == EVENTS_MAX)
                abort();
        *v = (struct event){ .what = what, .node = node, .other = other, .at = at, .len = len };
        if (data) {
                v->data = malloc(len + 1);
                if (!v->data)
                        abort();
                memcpy(v->data, data, len);
        }
}

/* The name a descriptor's file has now; -1: not ours. */
static int fd_node(int fd) {
        int node = fd >= 0 && fd < FDS_MAX ? rec.fds[fd] - 1 : -1;

        while (node >= 0 && rec.renamed[node])
                node = rec.renamed[node] - 1;
        return node;
}

static void opened(int fd, const char *path, int flags) {
        int node;

        if (fd < 0 || fd >= FDS_MAX)
                return;
        pthread_mutex_lock(&rec.lock);
        node = node_of(path);
        rec.fds[fd] = node + 1;
        if (node >= 0 && (flags & O_CREAT)) {
                rec.renamed[node] = 0;
                note(MAKE_FILE, node, 0, 0, NULL, 0);
        }
        pthread_mutex_unlock(&rec.lock);
}

#define RECORD(condition, ...)                       \
        do {                                         \
                pthread_mutex_lock(&rec.lock);       \
                if (rec.on && (condition))           \
                        note(__VA_ARGS__);           \
                pthread_mutex_unlock(&rec.lock);     \
        } while (0)

/* The C library's calls, for this program: recorded when they succeed. */
int open(const char *path, int flags, ...) {
        va_list ap;
        mode_t mode;
        int fd;

        va_start(ap, flags);
        mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0;
        va_end(ap);
        fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
        opened(fd, path, flags);
        return fd;
}

/* The node of a name in a folder that is open, or of a whole path. */
static int node_at(int dir, const char *name) {
        char path[512];
        int node = dir == AT_FDCWD ? -1 : fd_node(dir);

        if (dir != AT_FDCWD && node < 0)
                return -1;
        (void)snprintf(path, sizeof(path), node < 0 ? "%s%s%s" : "%s%s/%s", node < 0 ? "" : rec.root, node < 0 ? "" : rec.names[node], name);
        return node_of(path);
}

int openat(int dir, const char *name, int flags, ...) {
        int fd = (int)syscall(SYS_openat, dir, name, flags, 0); /* nothing here makes files this way */

        if (fd >= 0 && fd < FDS_MAX) {
                pthread_mutex_lock(&rec.lock);
                rec.fds[fd] = node_at(dir, name) + 1;
                pthread_mutex_unlock(&rec.lock);
        }
        return fd;
}

int unlinkat(int dir, const char *name, int flags) {
        int r = (int)syscall(SYS_unlinkat, dir, name, flags);

        if (r == 0)
                RECORD(node_at(dir, name) >= 0, REMOVE, node_at(dir, name), 0, 0, NULL, 0);
        return r;
}

int mkostemp(char *path, int flags) {
        static unsigned serial;
        int fd;

        snprintf(path + strlen(path) - 6, 7, "%06u", serial++);
        fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_EXCL | flags, 0600);
        opened(fd, path, O_CREAT);
        return fd;
}

int close(int fd) {
        pthread_mutex_lock(&rec.lock);
        if (fd >= 0 && fd < FDS_MAX)
                rec.fds[fd] = 0;
        pthread_mutex_unlock(&rec.lock);
        return (int)syscall(SYS_close, fd);
}

ssize_t write(int fd, const void *data, size_t len) {
        ssize_t n = syscall(SYS_write, fd, data, len);

        if (n > 0 && fd < FDS_MAX && rec.fds[fd])
                RECORD(fd_node(fd) >= 0, WRITE, fd_node(fd), 0, (uint64_t)(lseek(fd, 0, SEEK_CUR) - n), data, (size_t)n);
        return n;
}

ssize_t pwrite(int fd, const void *data, size_t len, off_t at) {
        ssize_t n = syscall(SYS_pwrite64, fd, data, len, at);

        if (n > 0)
                RECORD(fd_node(fd) >= 0, WRITE, fd_node(fd), 0, (uint64_t)at, data, (size_t)n);
        return n;
}

int ftruncate(int fd, off_t len) {
        int r = (int)syscall(SYS_ftruncate, fd, len);

        if (r == 0)
                RECORD(fd_node(fd) >= 0, TRUNCATE, fd_node(fd), 0, (uint64_t)len, NULL, 0);
        return r;
}

int fallocate(int fd, int mode, off_t at, off_t len) {
        int r = (int)syscall(SYS_fallocate, fd, mode, at, len);

        if (r == 0)
                RECORD(fd_node(fd) >= 0, TRUNCATE, fd_node(fd), 0, (uint64_t)(at + len), NULL, 0);
        return r;
}

int fsync(int fd) {
        RECORD(fd_node(fd) >= 0, SYNC, fd_node(fd), 0, 0, NULL, 0);
        return 0; /* the model does it, and does not wait for a disk */
}

int mkdir(const char *path, mode_t mode) {
        int r = (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);

        if (r == 0)
                RECORD(node_of(path) >= 0, MAKE_DIR, node_of(path), 0, 0, NULL, 0);
        return r;
}

int rename(const char *from, const char *to) {
        int r = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);

        if (r == 0) {
                RECORD(node_of(from) >= 0, RENAME, node_of(from), node_of(to), 0, NULL, 0);
                pthread_mutex_lock(&rec.lock);
                if (rec.on)
                        rec.renamed[node_of(from)] = node_of(to) + 1;
                pthread_mutex_unlock(&rec.lock);
        }
        return r;
}

/* io_uring would pass by these. */
struct io_uring;
int io_uring_queue_init(unsigned depth, struct io_uring *ring, unsigned flags);
int io_uring_queue_init(unsigned depth, struct io_uring *ring, unsigned flags) {
        (void)depth;
        (void)ring;
        (void)flags;
        return -ENOSYS;
}

/* ------------------------------------------------------------------ the model */

struct content {
        uint8_t *data;
        size_t len;
};

struct file {
        bool dir;
        struct content live, synced;
};

/* Names of a folder: which file each stands for, now and for sure after a power cut. */
static struct model {
        struct file files[EVENTS_MAX];
        int n_files, live[NODES_MAX], sure[NODES_MAX]; /* file + 1, 0: no such name */
} model;

static void set_len(struct content *c, size_t len) {
        c->data = realloc(c->data, len + 1);
        if (!c->data)
                abort();
        if (len > c->len)
                memset(c->data + c->len, 0, len - c->len);
        c->len = len;
}

static bool is_parent(int dir, int node) {
        const char *name = rec.names[node], *slash = strrchr(name, '/');

        return slash && strlen(rec.names[dir]) == (size_t)(slash - name) && strncmp(rec.names[dir], name, (size_t)(slash - name)) == 0;
}

static void apply(const struct event *v) {
        struct file *f = model.live[v->node] ? &model.files[model.live[v->node] - 1] : NULL;

        switch (v->what) {
        case MAKE_DIR:
        case MAKE_FILE:
                if (!f) {
                        f = &model.files[model.n_files++];
                        model.live[v->node] = model.n_files;
                }
                f->dir = v->what == MAKE_DIR;
                set_len(&f->live, 0);
                return;
        case WRITE:
                if (v->at + v->len > f->live.len)
                        set_len(&f->live, v->at + v->len);
                memcpy(f->live.data + v->at, v->data, v->len);
                return;
        case TRUNCATE:
                set_len(&f->live, v->at);
                return;
        case SYNC:
                if (f && !f->dir) {
                        set_len(&f->synced, f->live.len);
                        memcpy(f->synced.data, f->live.data, f->live.len);
                        return;
                }
                for (int i = 0; i < rec.n_names; i++)
                        if (is_parent(v->node, i))
                                model.sure[i] = model.live[i];
                return;
        case RENAME:
                model.live[v->other] = model.live[v->node];
                model.live[v->node] = 0;
                return;
        case REMOVE:
                model.live[v->node] = 0;
                return;
        }
}

static void model_clear(void) {
        for (int i = 0; i < model.n_files; i++) {
                free(model.files[i].live.data);
                free(model.files[i].synced.data);
        }
        memset(&model, 0, sizeof(model));
}

/* What a cut leaves. names, data: a bit a folder or file: the live state, else what is sure. */
static void materialise(const char *to, uint64_t names, uint64_t data) {
        _cleanup_free_ char *path = NULL;
        struct error e = { 0 };

        ASSERT_OK(file_remove_tree(to, &e), e);
        ASSERT_OK(file_mkdir_p(to, 0700, &e), e);
        for (size_t depth = 1; depth <= 4; depth++) /* folders before what is in them */
                for (int i = 0; i < rec.n_names; i++) {
                        size_t slashes = 0;
                        int parent = -1, f;
                        _cleanup_close_ int fd = -1;

                        for (const char *p = rec.names[i]; *p; p++)
                                slashes += *p == '/';
                        if (slashes != depth)
                                continue;
                        for (int k = 0; k < rec.n_names; k++)
                                if (is_parent(k, i))
                                        parent = k;
                        f = parent >= 0 && names >> (parent % 64) & 1 ? model.live[i] : model.sure[i];
                        free(path);
                        path = file_path("%s%s", to, rec.names[i]);
                        if (!f || !path)
                                continue;
                        if (model.files[f - 1].dir) {
                                (void)mkdir(path, 0700); /* fails when the folder above is lost */
                                continue;
                        }
                        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
                        if (fd >= 0) {
                                const struct file *x = &model.files[f - 1];
                                bool live = data >> (f % 64) & 1;

                                CU_ASSERT_EQUAL(file_write_all(fd, live ? x->live.data : x->synced.data, live ? x->live.len : x->synced.len), 0);
                        }
                }
}

/* ------------------------------------------------------------------ a save */

struct outcome {
        int rc;
        struct digest digest;
        char file[100];
        size_t bytes;
};

static void written(void *arg, int rc, const char *text, struct digest d, const char *file) {
        struct outcome *o = arg;

        o->rc = rc;
        o->digest = d;
        (void)snprintf(o->file, sizeof(o->file), "%s", file ? file : text);
}

static void write_one(const char *folder, int rank, float value, struct outcome *o) {
        static float values[2048];
        struct shard_tensor t = { "w", DT_F32, 4, 1024, 2 * rank, 2, 0, 1024, values };
        struct checkpoint_write_order order = { .folder = folder, .rank = rank, .n_ranks = 2, .done = written, .arg = o };
        struct checkpoint_write *w = NULL;
        struct shard_layout *l = NULL;
        struct error e = { 0 };
        void *image;

        for (size_t i = 0; i < ARRAY_SIZE(values); i++)
                values[i] = value + (float)i;
        ASSERT_OK(shard_layout_new(&t, 1, 100, &l, &e), e);
        o->bytes = order.len = shard_layout_bytes(l);
        order.image = image = aligned_alloc(4096, (order.len + 4095) / 4096 * 4096);
        CU_ASSERT_PTR_NOT_NULL_FATAL(image);
        ASSERT_OK(shard_write(l, NULL, NULL, "{}", image, &e), e);
        ASSERT_OK(checkpoint_write_start(&order, &w, &e), e);
        w = checkpoint_write_free(w);
        CU_ASSERT_EQUAL_FATAL(o->rc, 0);
        free(image);
        shard_layout_free(l);
}

/* As the ranks and the controller's helper do it. */
static void save(const char *dir, uint64_t step) {
        struct outcome o[2] = { 0 };
        char name[128], hex[2][DIGEST_HEX_SIZE];
        _cleanup_free_ char *folder = NULL, *path = NULL, *text = NULL;
        struct error e = { 0 };

        checkpoint_step_name(step, 1, 1, name, sizeof(name));
        folder = file_path("%s/%s", dir, name);
        CU_ASSERT_PTR_NOT_NULL_FATAL(folder);
        for (int rank = 0; rank < 2; rank++) {
                write_one(folder, rank, (float)step, &o[rank]);
                digest_hex(o[rank].digest, hex[rank]);
        }
        text = file_path("{\"format\":\"fp8ctl-checkpoint\",\"version\":1,\"job\":1,\"step\":%" PRIu64 ",\"epoch\":1,\"attempt\":1,\"layout\":\"\",\"state\":{},"
                         "\"shards\":[{\"file\":\"%s\",\"bytes\":%zu,\"digest\":\"%s\",\"rank\":0},{\"file\":\"%s\",\"bytes\":%zu,\"digest\":\"%s\",\"rank\":1}]}",
                         step, o[0].file, o[0].bytes, hex[0], o[1].file, o[1].bytes, hex[1]);
        path = file_path("%s/" CHECKPOINT_MANIFEST, folder);
        CU_ASSERT_FATAL(text && path);
        ASSERT_OK(file_write_atomic(path, text, strlen(text), 0644, &e), e);
}

/* The step of the newest whole checkpoint; 0: none. */
static uint64_t found(const char *dir) {
        _cleanup_free_ char *folder = NULL;
        _cleanup_(checkpoint_manifest_freep) struct checkpoint_manifest *m = NULL;
        struct error e = { 0 };

        if (checkpoint_find_newest(dir, &folder, &e) < 0)
                return 0;
        ASSERT_OK(checkpoint_manifest_read(folder, &m, &e), e);
        return checkpoint_manifest_step(m);
}

static uint64_t next_random(uint64_t *x) {
        *x = *x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        return *x >> 8 ^ *x << 17;
}

/* Cuts after the first `to` events; what may be found. */
static void cut(const char *left, const char *ckpt, int to, uint64_t old, uint64_t new) {
        uint64_t seed = (uint64_t)to;

        for (int k = 0; k < 3 + RANDOM_CUTS; k++) {
                /* nothing that was not synced; all names without their data; all of it; and anything between */
                uint64_t names = k == 0 ? 0 : k <= 2 ? UINT64_MAX : next_random(&seed), data = k <= 1 ? 0 : k == 2 ? UINT64_MAX : next_random(&seed), step;

                materialise(left, names, data);
                step = found(ckpt);
                if (step != old && step != new)
                        printf("    cut after %d of %d events (names %016" PRIx64 ", data %016" PRIx64 "): found step %" PRIu64 ", expected %" PRIu64 " or %" PRIu64 "\n", to,
                               rec.n_events, names, data, step, old, new);
                CU_ASSERT(step == old || step == new);
        }
}

static void rec_done(void) {
        model_clear();
        for (int i = 0; i < rec.n_events; i++)
                free(rec.events[i].data);
        for (int i = 0; i < rec.n_names; i++)
                free(rec.names[i]);
        memset(rec.names, 0, sizeof(rec.names));
        memset(rec.renamed, 0, sizeof(rec.renamed));
        rec.n_events = rec.n_names = 0;
        rec.on = false;
}

/* Thousands of files come and go. */
static struct scratch scratch_in_memory(void) {
        struct scratch s = { .dir = "/dev/shm/fp8ctl-test-XXXXXX" };

        return mkdtemp(s.dir) ? s : scratch_new();
}

TEST(every_power_cut_leaves_the_old_or_the_new_commit) {
        _cleanup_scratch_ struct scratch s = scratch_new(), after = scratch_in_memory();
        _cleanup_free_ char *dir = file_path("%s/made/ckpt", s.dir), *left = file_path("%s/left", after.dir), *ckpt = file_path("%s/left/made/ckpt", after.dir);
        _cleanup_free_ char *old = NULL;
        int first, second, third;
        struct error e = { 0 };

        CU_ASSERT_FATAL(dir && left && ckpt);
        (void)snprintf(rec.root, sizeof(rec.root), "%s", s.dir);
        rec.on = true;
        CU_ASSERT_EQUAL(node_of(s.dir), 0);
        save(dir, 100);
        first = rec.n_events;
        save(dir, 200);
        second = rec.n_events;
        old = file_path("%s/step_00000100.e1.1", dir);
        CU_ASSERT_PTR_NOT_NULL_FATAL(old);
        ASSERT_OK(file_remove_tree(old, &e), e);
        third = rec.n_events;
        rec.on = false;
        CU_ASSERT_FATAL(first > 20 && second > first + 20 && third > second + 4);
        for (int i = 0; i < third; i++) {
                cut(left, ckpt, i, i < first ? 0 : i < second ? 100 : 200, i < first ? 100 : 200);
                apply(&rec.events[i]);
                if (i + 1 == first || i + 1 == second) { /* committed: whatever the disk kept, it is there */
                        materialise(left, 0, 0);
                        CU_ASSERT_EQUAL(found(ckpt), i + 1 == first ? 100 : 200);
                }
        }
        cut(left, ckpt, third, 200, 200);
        rec_done();
}

TEST_MAIN("ckpt_trace")
