/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Local messages over SOCK_SEQPACKET: one protobuf message a packet, file descriptors by SCM_RIGHTS.  Bounded: IPC_MAX bytes,
 * IPC_MAX_FDS descriptors.  Everything received is unpacked and version-checked here (a field `version`, where the message has one, must be
 * IPC_VERSION; ipc_send fills it in).
 */
#include <stddef.h>
#include <protobuf-c/protobuf-c.h>

#include "base/error.h"

#define IPC_VERSION 1
#define IPC_MAX 1048576u
#define IPC_MAX_FDS 4

int ipc_pair(int ret_fds[2], struct error *e);
/* A listening socket at path (mode 0600, an old socket there is removed) and a connection to one. */
int ipc_listen(const char *path, int *ret_fd, struct error *e);
int ipc_connect(const char *path, int *ret_fd, struct error *e);
/* -EAGAIN when the socket is full (non-blocking fds), -EMSGSIZE, -EPIPE. Sends copies of the descriptors; theirs stay the caller's. */
int ipc_send(int fd, const ProtobufCMessage *m, const int *fds, size_t n_fds, struct error *e);
/* 1 and *ret_msg (free with protobuf_c_message_free_unpacked), 0 at end of stream, -EAGAIN, or a negative errno; 
 * ret_fds: IPC_MAX_FDS, unused -1; NULL: none are expected, what comes is closed. -EBADMSG, -EPROTO and -EMSGSIZE leave the socket usable. */
int ipc_recv(int fd, const ProtobufCMessageDescriptor *type, ProtobufCMessage **ret_msg, int *ret_fds, struct error *e);
void ipc_close_fds(const int fds[IPC_MAX_FDS]); /* those of ret_fds that nobody took */
