/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The side socket answers a connection with 64 hex digits and hangs up; who connected is told by the kernel (SO_PEERCRED), not by the peer.
 */
#include "proto/peercred.h"

#include <errno.h>
#include <grp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"

#define TOKEN_LIFE_NS (60 * NSEC_PER_SEC)
#define TOKENS_MAX 4096 /* the oldest goes first */
#define FETCH_TIMEOUT_S 5

struct token {
        char text[PEERCRED_TOKEN_SIZE];
        uid_t uid;
        gid_t gid;
        uint64_t until_ns;
};

struct peercred {
        int fd;
        char *path;
        struct loop_source *source;
        struct token tokens[TOKENS_MAX];
        size_t next;
};

static int make_token(char ret[PEERCRED_TOKEN_SIZE]) {
        unsigned char raw[(PEERCRED_TOKEN_SIZE - 1) / 2];

        if (getrandom(raw, sizeof(raw), 0) != (ssize_t)sizeof(raw))
                return -EIO;
        for (size_t i = 0; i < sizeof(raw); i++)
                snprintf(ret + 2 * i, 3, "%02x", raw[i]);
        return 0;
}

static void on_connection(void *arg, uint32_t revents) {
        struct peercred *p = arg;
        _cleanup_close_ int fd = accept4(p->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        struct token *t = &p->tokens[p->next];
        struct ucred who;
        socklen_t len = sizeof(who);
        char text[PEERCRED_TOKEN_SIZE];

        if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) < 0 || len != sizeof(who) || make_token(text) < 0)
                return;
        /* A new connection's buffer holds it: this neither blocks nor is cut short. */
        if (send(fd, text, sizeof(text) - 1, MSG_NOSIGNAL) != (ssize_t)sizeof(text) - 1)
                return;
        memcpy(t->text, text, sizeof(text));
        t->uid = who.uid;
        t->gid = who.gid;
        t->until_ns = clock_mono_ns() + TOKEN_LIFE_NS;
        p->next = (p->next + 1) % TOKENS_MAX;
}

static int set_address(const char *path, struct sockaddr_un *un, struct error *e) {
        if (strlen(path) >= sizeof(un->sun_path))
                return error_set(e, -ENAMETOOLONG, "%s: found %zu bytes, a socket's path may have %zu", path, strlen(path), sizeof(un->sun_path) - 1);
        memset(un, 0, sizeof(*un));
        un->sun_family = AF_UNIX;
        memcpy(un->sun_path, path, strlen(path));
        return 0;
}

static int give_to_group(const char *path, const char *name, struct error *e) {
        struct group gr, *found = NULL;
        char buf[8192];

        if (!name)
                return 0;
        if (getgrnam_r(name, &gr, buf, sizeof(buf), &found) != 0 || !found)
                return error_set(e, -ENOENT, "group '%s': found none of that name", name);
        if (chown(path, (uid_t)-1, found->gr_gid) < 0)
                return error_errno(e, errno, "%s: cannot give it to group %s", path, name);
        return 0;
}

static int open_socket(struct peercred *p, const char *path, mode_t mode, const char *group, struct error *e) {
        struct sockaddr_un un;
        struct stat st;
        mode_t before;
        int r;

        r = set_address(path, &un, e);
        if (r < 0)
                return r;
        if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode))
                unlink(path);
        p->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (p->fd < 0)
                return error_errno(e, errno, "socket");
        before = umask(0177);
        r = bind(p->fd, (struct sockaddr *)&un, sizeof(un)) < 0 ? errno : 0;
        umask(before);
        if (r > 0)
                return error_errno(e, r, "%s: bind", path);
        p->path = strdup(path);
        r = give_to_group(path, group, e);
        if (r < 0)
                return r;
        if (chmod(path, mode) < 0 || listen(p->fd, SOMAXCONN) < 0)
                return error_errno(e, errno, "%s: listen", path);
        return 0;
}

int peercred_new(struct loop *l, const char *path, mode_t mode, const char *group, struct peercred **ret, struct error *e) {
        struct peercred *p = calloc(1, sizeof(*p));
        int r;

        if (!p)
                return error_set(e, -ENOMEM, "no memory");
        p->fd = -1;
        r = open_socket(p, path, mode, group, e);
        if (r == 0) {
                r = loop_add_fd(l, p->fd, EPOLLIN, on_connection, p, &p->source);
                if (r < 0)
                        error_errno(e, -r, "event loop");
        }
        if (r < 0) {
                peercred_free(p);
                return r;
        }
        *ret = p;
        return 0;
}

struct peercred *peercred_free(struct peercred *p) {
        if (!p)
                return NULL;
        loop_remove(p->source);
        if (p->fd >= 0)
                close(p->fd);
        if (p->path)
                unlink(p->path);
        free(p->path);
        explicit_bzero(p->tokens, sizeof(p->tokens));
        free(p);
        return NULL;
}

bool peercred_lookup(struct peercred *p, const char *token, uid_t *ret_uid, gid_t *ret_gid) {
        uint64_t now = clock_mono_ns();

        if (strlen(token) != PEERCRED_TOKEN_SIZE - 1)
                return false;
        for (size_t i = 0; i < TOKENS_MAX; i++) {
                struct token *t = &p->tokens[i];
                unsigned char differs = 0;

                if (t->until_ns <= now)
                        continue;
                for (size_t k = 0; k < PEERCRED_TOKEN_SIZE - 1; k++) /* the time it takes must not tell where they differ */
                        differs |= (unsigned char)(t->text[k] ^ token[k]);
                if (differs)
                        continue;
                *ret_uid = t->uid;
                *ret_gid = t->gid;
                return true;
        }
        return false;
}

int peercred_fetch(const char *path, char ret_token[PEERCRED_TOKEN_SIZE], struct error *e) {
        _cleanup_close_ int fd = -1;
        struct timeval limit = { .tv_sec = FETCH_TIMEOUT_S };
        char text[PEERCRED_TOKEN_SIZE] = { 0 };
        struct sockaddr_un un;
        size_t got = 0;
        int r;

        r = set_address(path, &un, e);
        if (r < 0)
                return r;
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0)
                return error_errno(e, errno, "socket");
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
        if (connect(fd, (struct sockaddr *)&un, sizeof(un)) < 0)
                return error_errno(e, errno, "%s", path);
        while (got < sizeof(text) - 1) {
                ssize_t n = recv(fd, text + got, sizeof(text) - 1 - got, 0);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return error_set(e, n < 0 ? -errno : -EPROTO, "%s: found %zu bytes of a token, expected %zu", path, got, sizeof(text) - 1);
                got += (size_t)n;
        }
        memcpy(ret_token, text, sizeof(text));
        return 0;
}
