/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A Unix socket takes no packet larger than its send buffer, and without privileges that is net.core.wmem_max (212,992 bytes by default).  So a message above
 * INLINE_MAX travels in a memfd: the packet is then one zero byte (which no protobuf message starts with: field numbers begin at 1) and the
 * last descriptor is the memfd.  The receiver reads it with pread(2), so a sender that truncates it can cause a short read, never a SIGBUS.
 */
#include "proto/ipc.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"

#define INLINE_MAX 65536u
#define BUFFER_WANTED (1024 * 1024)
#define WIRE_FDS (IPC_MAX_FDS + 1)
#define BACKLOG 16

/* Room for bursts; a smaller buffer only means an earlier -EAGAIN. */
static void widen(int fd) {
        int size = BUFFER_WANTED;

        if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
                (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

int ipc_pair(int ret_fds[2], struct error *e) {
        int fds[2];

        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
                return error_errno(e, errno, "cannot make a socket pair");
        widen(fds[0]);
        widen(fds[1]);
        memcpy(ret_fds, fds, sizeof(fds));
        return 0;
}

static int make_address(const char *path, struct sockaddr_un *ret, struct error *e) {
        *ret = (struct sockaddr_un){ .sun_family = AF_UNIX };
        if (!*path || strlen(path) >= sizeof(ret->sun_path))
                return error_set(e, -ENAMETOOLONG, "socket '%s': found %zu characters, expected 1 to %zu", path, strlen(path), sizeof(ret->sun_path) - 1);
        memcpy(ret->sun_path, path, strlen(path) + 1);
        return 0;
}

int ipc_listen(const char *path, int *ret_fd, struct error *e) {
        _cleanup_close_ int fd = -1;
        struct sockaddr_un address;
        struct stat st;
        int r = make_address(path, &address, e);

        if (r < 0)
                return r;
        if (lstat(path, &st) == 0) {
                if (!S_ISSOCK(st.st_mode))
                        return error_set(e, -EEXIST, "socket '%s': a file that is no socket is there", path);
                if (unlink(path) < 0 && errno != ENOENT)
                        return error_errno(e, errno, "cannot remove the old socket '%s'", path);
        }
        fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (fd < 0)
                return error_errno(e, errno, "cannot make a socket");
        /* Linux creates the file with the socket inode's mode (net/unix/af_unix.c, unix_bind): never open to others, not even for a moment. */
        if (fchmod(fd, 0600) < 0)
                return error_errno(e, errno, "cannot set the mode of a socket");
        if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
                return error_errno(e, errno, "cannot bind '%s'", path);
        if (chmod(path, 0600) < 0 || listen(fd, BACKLOG) < 0)
                return error_errno(e, errno, "cannot listen on '%s'", path);
        *ret_fd = STEAL_FD(fd);
        return 0;
}

int ipc_connect(const char *path, int *ret_fd, struct error *e) {
        _cleanup_close_ int fd = -1;
        struct sockaddr_un address;
        int r = make_address(path, &address, e);

        if (r < 0)
                return r;
        fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (fd < 0)
                return error_errno(e, errno, "cannot make a socket");
        widen(fd);
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
                return error_errno(e, errno, "cannot connect to '%s'", path);
        *ret_fd = STEAL_FD(fd);
        return 0;
}

/* Where the message keeps its version, or NULL when it has none. */
static const ProtobufCFieldDescriptor *version_field(const ProtobufCMessageDescriptor *type) {
        const ProtobufCFieldDescriptor *f = protobuf_c_message_descriptor_get_field_by_name(type, "version");

        return f && f->type == PROTOBUF_C_TYPE_UINT32 && f->label == PROTOBUF_C_LABEL_NONE ? f : NULL;
}

static int pack(const ProtobufCMessage *m, uint8_t **ret_data, size_t *ret_len, struct error *e) {
        const ProtobufCMessageDescriptor *type = m->descriptor;
        const ProtobufCFieldDescriptor *f = version_field(type);
        _cleanup_free_ char *copy = malloc(type->sizeof_message);
        _cleanup_free_ uint8_t *data = NULL;
        uint32_t version = IPC_VERSION;
        size_t len;

        if (!copy)
                return error_set(e, -ENOMEM, "no memory");
        memcpy(copy, m, type->sizeof_message); /* shallow: only the version differs */
        if (f)
                memcpy(copy + f->offset, &version, sizeof(version));
        len = protobuf_c_message_get_packed_size((const ProtobufCMessage *)copy);
        if (len == 0 || len > IPC_MAX)
                return error_set(e, -EMSGSIZE, "%s: found %zu bytes to send, expected 1 to %u", type->name, len, IPC_MAX);
        data = malloc(len);
        if (!data)
                return error_set(e, -ENOMEM, "no memory");
        protobuf_c_message_pack((const ProtobufCMessage *)copy, data);
        *ret_data = STEAL_PTR(data);
        *ret_len = len;
        return 0;
}

static int to_memfd(const uint8_t *data, size_t len, int *ret_fd, struct error *e) {
        _cleanup_close_ int fd = memfd_create("fp8-message", MFD_CLOEXEC);
        int r = fd < 0 ? -errno : file_write_all(fd, data, len);

        if (r < 0)
                return error_errno(e, -r, "cannot put a message of %zu bytes into memory to send", len);
        *ret_fd = STEAL_FD(fd);
        return 0;
}

static int send_packet(int fd, const void *data, size_t len, const int *fds, size_t n_fds, const char *name, struct error *e) {
        union {
                struct cmsghdr align;
                char room[CMSG_SPACE(sizeof(int) * WIRE_FDS)];
        } control = { 0 };
        struct iovec iov = { .iov_base = (void *)data, .iov_len = len };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
        ssize_t n;

        if (n_fds > 0) {
                struct cmsghdr *c;

                msg.msg_control = control.room;
                msg.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
                c = CMSG_FIRSTHDR(&msg);
                c->cmsg_level = SOL_SOCKET;
                c->cmsg_type = SCM_RIGHTS;
                c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
                memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
        }
        do
                n = sendmsg(fd, &msg, MSG_NOSIGNAL);
        while (n < 0 && errno == EINTR);
        if (n < 0)
                return error_errno(e, errno, "cannot send a %s", name);
        return 0;
}

int ipc_send(int fd, const ProtobufCMessage *m, const int *fds, size_t n_fds, struct error *e) {
        const char *name = m->descriptor->name;
        _cleanup_close_ int memfd = -1;
        _cleanup_free_ uint8_t *data = NULL;
        int all[WIRE_FDS];
        size_t len = 0;
        int r;

        if (n_fds > IPC_MAX_FDS)
                return error_set(e, -EINVAL, "%s: found %zu descriptors to send, expected at most %d", name, n_fds, IPC_MAX_FDS);
        r = pack(m, &data, &len, e);
        if (r < 0)
                return r;
        if (len <= INLINE_MAX)
                return send_packet(fd, data, len, fds, n_fds, name, e);
        r = to_memfd(data, len, &memfd, e);
        if (r < 0)
                return r;
        if (n_fds > 0)
                memcpy(all, fds, sizeof(int) * n_fds);
        all[n_fds] = memfd;
        return send_packet(fd, "", 1, all, n_fds + 1, name, e);
}

struct packet {
        uint8_t *data;
        size_t len;
        int fds[WIRE_FDS], n_fds;
};

static void packet_free(struct packet *p) {
        free(p->data);
        for (int i = 0; i < p->n_fds; i++)
                close(p->fds[i]);
}

static void take_fds(struct msghdr *msg, struct packet *p) {
        for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
                size_t n;

                if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                        continue;
                n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                for (size_t i = 0; i < n; i++) {
                        int fd;

                        memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
                        if (p->n_fds < WIRE_FDS)
                                p->fds[p->n_fds++] = fd;
                        else
                                close(fd);
                }
        }
}

/* 1, 0 at the end, or a negative errno. p is filled as far as it came; the caller frees it in every case. */
static int receive_packet(int fd, struct packet *p, struct error *e) {
        union {
                struct cmsghdr align;
                char room[CMSG_SPACE(sizeof(int) * WIRE_FDS)];
        } control;
        struct iovec iov = { .iov_len = INLINE_MAX };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof(control.room) };
        ssize_t n;

        p->data = iov.iov_base = malloc(INLINE_MAX);
        if (!p->data)
                return error_set(e, -ENOMEM, "no memory");
        do
                n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
        while (n < 0 && errno == EINTR);
        if (n < 0 && errno == ECONNRESET) /* the peer died with our messages unread */
                return 0;
        if (n < 0)
                return error_errno(e, errno, "cannot receive");
        take_fds(&msg, p);
        if (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
                return error_set(e, -EMSGSIZE, "found a packet longer than %u bytes or with more than %d descriptors", INLINE_MAX, WIRE_FDS);
        if (n == 0)
                return 0;
        p->len = (size_t)n;
        return 1;
}

/* Replaces a one-byte packet by the contents of the memfd that came with it. */
static int load_memfd(struct packet *p, struct error *e) {
        _cleanup_close_ int fd = -1;
        uint8_t *data;
        struct stat st;
        size_t done = 0;

        if (p->n_fds == 0)
                return error_set(e, -EBADMSG, "found a packet without its memory, expected a descriptor");
        fd = p->fds[--p->n_fds];
        if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size <= 0 || st.st_size > (off_t)IPC_MAX)
                return error_set(e, -EMSGSIZE, "found a message of %" PRId64 " bytes in memory, expected 1 to %u", (int64_t)st.st_size, IPC_MAX);
        data = realloc(p->data, (size_t)st.st_size);
        if (!data)
                return error_set(e, -ENOMEM, "no memory");
        p->data = data;
        while (done < (size_t)st.st_size) {
                ssize_t n = pread(fd, data + done, (size_t)st.st_size - done, (off_t)done);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return error_set(e, -EBADMSG, "found a message in memory that ends after %zu bytes, expected %" PRId64, done, (int64_t)st.st_size);
                done += (size_t)n;
        }
        p->len = done;
        return 0;
}

static int unpack(const struct packet *p, const ProtobufCMessageDescriptor *type, ProtobufCMessage **ret, struct error *e) {
        const ProtobufCFieldDescriptor *f = version_field(type);
        ProtobufCMessage *m = protobuf_c_message_unpack(type, NULL, p->len, p->data);
        uint32_t version = IPC_VERSION;

        if (!m)
                return error_set(e, -EBADMSG, "found %zu bytes that are no %s", p->len, type->name);
        if (f)
                memcpy(&version, (const char *)m + f->offset, sizeof(version));
        if (version != IPC_VERSION) {
                protobuf_c_message_free_unpacked(m, NULL);
                return error_set(e, -EPROTO, "%s: found version %" PRIu32 ", expected %d", type->name, version, IPC_VERSION);
        }
        *ret = m;
        return 0;
}

int ipc_recv(int fd, const ProtobufCMessageDescriptor *type, ProtobufCMessage **ret_msg, int *ret_fds, struct error *e) {
        _cleanup_(packet_free) struct packet p = { 0 };
        int r = receive_packet(fd, &p, e);

        if (r <= 0)
                return r;
        if (p.len == 1 && p.data[0] == 0) {
                r = load_memfd(&p, e);
                if (r < 0)
                        return r;
        }
        if (p.n_fds > IPC_MAX_FDS)
                return error_set(e, -EBADMSG, "found %d descriptors, expected at most %d", p.n_fds, IPC_MAX_FDS);
        r = unpack(&p, type, ret_msg, e);
        if (r < 0)
                return r;
        if (ret_fds) {
                for (int i = 0; i < IPC_MAX_FDS; i++)
                        ret_fds[i] = i < p.n_fds ? p.fds[i] : -1;
                p.n_fds = 0; /* the caller's now */
        }
        return 1;
}

void ipc_close_fds(const int fds[IPC_MAX_FDS]) {
        for (int i = 0; i < IPC_MAX_FDS; i++)
                if (fds[i] >= 0)
                        close(fds[i]);
}
