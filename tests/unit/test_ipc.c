/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/fp8ctl.pb-c.h"
#include "proto/ipc.h"
#include "scratch.h"
#include "test.h"

static const ProtobufCMessageDescriptor *const type = &fp8ctl__v1__agent_to_spawner__descriptor;

static int count_fds(void) {
        int n = 0;

        for (int fd = 0; fd < 256; fd++)
                n += fcntl(fd, F_GETFD) >= 0;
        return n;
}

/* Sends a StartRanks with a job file of n bytes. */
static int send_start(int fd, size_t n, const int *fds, size_t n_fds, struct error *e) {
        Fp8ctl__V1__AgentToSpawner m = FP8CTL__V1__AGENT_TO_SPAWNER__INIT;
        Fp8ctl__V1__StartRanks start = FP8CTL__V1__START_RANKS__INIT;
        _cleanup_free_ char *text = malloc(n + 1);

        memset(text, 'j', n);
        text[n] = 0;
        start.job_id = 5;
        start.job_file = text;
        m.body_case = FP8CTL__V1__AGENT_TO_SPAWNER__BODY_START;
        m.start = &start;
        return ipc_send(fd, &m.base, fds, n_fds, e);
}

TEST(messages_of_any_size_up_to_the_bound) {
        static const size_t sizes[] = { 0, 10, 60000, 65536, 200000, IPC_MAX - 100 };
        int fds[2], got[IPC_MAX_FDS], before = count_fds();
        struct error e;

        ASSERT_OK(ipc_pair(fds, &e), e);
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
                ProtobufCMessage *m = NULL;
                Fp8ctl__V1__AgentToSpawner *a;

                ASSERT_OK(send_start(fds[0], sizes[i], NULL, 0, &e), e);
                CU_ASSERT_EQUAL_FATAL(ipc_recv(fds[1], type, &m, got, &e), 1);
                a = (Fp8ctl__V1__AgentToSpawner *)m;
                CU_ASSERT_EQUAL(a->version, IPC_VERSION); /* filled in */
                CU_ASSERT_EQUAL_FATAL(a->body_case, FP8CTL__V1__AGENT_TO_SPAWNER__BODY_START);
                CU_ASSERT_EQUAL(a->start->job_id, 5);
                CU_ASSERT_EQUAL(strlen(a->start->job_file), sizes[i]);
                CU_ASSERT_EQUAL(got[0], -1);
                protobuf_c_message_free_unpacked(m, NULL);
        }
        ASSERT_ERROR(send_start(fds[0], IPC_MAX, NULL, 0, &e), -EMSGSIZE, e, "expected 1 to");
        close(fds[0]);
        close(fds[1]);
        CU_ASSERT_EQUAL(count_fds(), before);
}

TEST(descriptors_travel) {
        static const size_t sizes[] = { 10, 200000 }; /* in the packet, and in a memfd of its own */
        int before = count_fds();

        for (size_t i = 0; i < 2; i++) {
                int fds[2], pipes[2], got[IPC_MAX_FDS];
                ProtobufCMessage *m = NULL;
                struct error e;
                char c = 0;

                ASSERT_OK(ipc_pair(fds, &e), e);
                CU_ASSERT_EQUAL(pipe(pipes), 0);
                ASSERT_OK(send_start(fds[0], sizes[i], (int[]){ pipes[1], pipes[0], pipes[1], pipes[0] }, 4, &e), e);
                CU_ASSERT_EQUAL_FATAL(ipc_recv(fds[1], type, &m, got, &e), 1);
                protobuf_c_message_free_unpacked(m, NULL);
                CU_ASSERT_EQUAL(write(got[0], "x", 1), 1);
                CU_ASSERT_EQUAL(read(pipes[0], &c, 1), 1);
                CU_ASSERT_EQUAL(c, 'x');
                CU_ASSERT_TRUE(fcntl(got[3], F_GETFD) & FD_CLOEXEC);
                for (int k = 0; k < IPC_MAX_FDS; k++)
                        close(got[k]);
                /* a receiver that wants none loses none */
                ASSERT_OK(send_start(fds[0], sizes[i], pipes, 2, &e), e);
                CU_ASSERT_EQUAL(ipc_recv(fds[1], type, &m, NULL, &e), 1);
                protobuf_c_message_free_unpacked(m, NULL);
                ASSERT_ERROR(send_start(fds[0], 1, (int[]){ 0, 0, 0, 0, 0 }, 5, &e), -EINVAL, e, "at most 4");
                for (int k = 0; k < 2; k++) {
                        close(fds[k]);
                        close(pipes[k]);
                }
        }
        CU_ASSERT_EQUAL(count_fds(), before);
}

static void send_raw(int fd, const void *data, size_t len, const int *fds, size_t n) {
        char control[256] = { 0 };
        struct iovec iov = { .iov_base = (void *)data, .iov_len = len };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

        if (n > 0) {
                struct cmsghdr *c;

                msg.msg_control = control;
                msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
                c = CMSG_FIRSTHDR(&msg);
                c->cmsg_level = SOL_SOCKET;
                c->cmsg_type = SCM_RIGHTS;
                c->cmsg_len = CMSG_LEN(n * sizeof(int));
                memcpy(CMSG_DATA(c), fds, n * sizeof(int));
        }
        CU_ASSERT_EQUAL(sendmsg(fd, &msg, 0), (ssize_t)len);
}

TEST(garbage_is_refused_and_the_socket_goes_on) {
        int fds[2], before = count_fds(), big = -1, many[12];
        static char junk[70000];
        ProtobufCMessage *m = NULL;
        struct error e;

        ASSERT_OK(ipc_pair(fds, &e), e);
        send_raw(fds[0], "\xff\xff\xff\xff", 4, NULL, 0);
        ASSERT_ERROR(ipc_recv(fds[1], type, &m, NULL, &e), -EBADMSG, e, "are no fp8ctl.v1.AgentToSpawner");
        send_raw(fds[0], "\x08\x07", 2, NULL, 0); /* version 7 */
        ASSERT_ERROR(ipc_recv(fds[1], type, &m, NULL, &e), -EPROTO, e, "found version 7, expected 1");
        send_raw(fds[0], junk, sizeof(junk), NULL, 0);
        ASSERT_ERROR(ipc_recv(fds[1], type, &m, NULL, &e), -EMSGSIZE, e, "longer than");
        send_raw(fds[0], "", 1, NULL, 0);
        ASSERT_ERROR(ipc_recv(fds[1], type, &m, NULL, &e), -EBADMSG, e, "without its memory");
        send_raw(fds[0], "", 1, &fds[0], 1); /* not a memfd */
        ASSERT_ERROR(ipc_recv(fds[1], type, &m, NULL, &e), -EMSGSIZE, e, "in memory");
        big = open("/tmp", O_TMPFILE | O_RDWR, 0600);
        CU_ASSERT_EQUAL(ftruncate(big, (off_t)IPC_MAX + 1), 0);
        send_raw(fds[0], "", 1, &big, 1);
        ASSERT_ERROR(ipc_recv(fds[1], type, &m, NULL, &e), -EMSGSIZE, e, "1048577 bytes in memory");
        close(big);
        for (int i = 0; i < 12; i++)
                many[i] = 0;
        send_raw(fds[0], "\x08\x01", 2, many, 12);
        CU_ASSERT_TRUE(ipc_recv(fds[1], type, &m, NULL, &e) < 0);
        send_raw(fds[0], "\x08\x01", 2, many, 5);
        ASSERT_ERROR(ipc_recv(fds[1], type, &m, NULL, &e), -EBADMSG, e, "found 5 descriptors");
        CU_ASSERT_PTR_NULL(m);
        ASSERT_OK(send_start(fds[0], 3, NULL, 0, &e), e);
        CU_ASSERT_EQUAL(ipc_recv(fds[1], type, &m, NULL, &e), 1);
        protobuf_c_message_free_unpacked(m, NULL);
        close(fds[0]);
        close(fds[1]);
        CU_ASSERT_EQUAL(count_fds(), before);
}

TEST(ends_and_full_sockets) {
        ProtobufCMessage *m = NULL;
        int fds[2], r = 0, sent = 0;
        struct error e;

        ASSERT_OK(ipc_pair(fds, &e), e);
        for (int i = 0; i < 2; i++)
                CU_ASSERT_EQUAL(fcntl(fds[i], F_SETFL, O_NONBLOCK), 0);
        CU_ASSERT_EQUAL(ipc_recv(fds[1], type, &m, NULL, &e), -EAGAIN);
        while ((r = send_start(fds[0], 30000, NULL, 0, &e)) == 0 && sent < 10000)
                sent++;
        CU_ASSERT_EQUAL(r, -EAGAIN);
        CU_ASSERT_TRUE(sent > 0);
        for (int i = 0; i < sent; i++) {
                CU_ASSERT_EQUAL_FATAL(ipc_recv(fds[1], type, &m, NULL, &e), 1);
                protobuf_c_message_free_unpacked(m, NULL);
        }
        close(fds[0]);
        CU_ASSERT_EQUAL(ipc_recv(fds[1], type, &m, NULL, &e), 0);
        CU_ASSERT_EQUAL(send_start(fds[1], 1, NULL, 0, &e), -EPIPE); /* and no SIGPIPE */
        close(fds[1]);
}

TEST(listening_sockets_are_ours_alone) {
        _cleanup_scratch_ struct scratch s = scratch_new();
        const char *path = scratch_path(&s, "sock");
        ProtobufCMessage *m = NULL;
        int listener = -1, again = -1, client = -1, peer;
        char long_path[300];
        struct error e;
        struct stat st;

        ASSERT_OK(ipc_listen(path, &listener, &e), e);
        CU_ASSERT_EQUAL(stat(path, &st), 0);
        CU_ASSERT_EQUAL(st.st_mode & 0777, 0600);
        close(listener);
        ASSERT_ERROR(ipc_connect(path, &client, &e), -ECONNREFUSED, e, "cannot connect");
        ASSERT_OK(ipc_listen(path, &again, &e), e); /* the old one is replaced */
        ASSERT_OK(ipc_connect(path, &client, &e), e);
        peer = accept4(again, NULL, NULL, SOCK_CLOEXEC);
        ASSERT_OK(send_start(client, 10, NULL, 0, &e), e);
        CU_ASSERT_EQUAL(ipc_recv(peer, type, &m, NULL, &e), 1);
        protobuf_c_message_free_unpacked(m, NULL);
        close(peer);
        close(client);
        close(again);
        scratch_text(&s, "file", "precious");
        ASSERT_ERROR(ipc_listen(s.path, &again, &e), -EEXIST, e, "no socket");
        CU_ASSERT_EQUAL(access(s.path, F_OK), 0);
        memset(long_path, 'x', sizeof(long_path) - 1);
        long_path[sizeof(long_path) - 1] = 0;
        ASSERT_ERROR(ipc_listen(long_path, &again, &e), -ENAMETOOLONG, e, "expected 1 to");
        ASSERT_ERROR(ipc_connect("", &client, &e), -ENAMETOOLONG, e, "expected 1 to");
}

TEST_MAIN("ipc")
