/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Sending local messages without blocking: what the socket does not take at once waits here, in order and bounded, until it
 * is writable again.  Owns copies of messages and descriptors.
 */
#include <stddef.h>
#include <protobuf-c/protobuf-c.h>

#include "base/error.h"
#include "base/loop.h"

#define OUTBOX_MAX 4096

struct outbox;

/* fd: non-blocking, stays the caller's (a duplicate is watched). */
int outbox_new(struct loop *l, int fd, struct outbox **ret);
struct outbox *outbox_free(struct outbox *o);
/* 0 when sent or queued; -ENOBUFS when OUTBOX_MAX wait; -EPIPE and others: the peer is gone. */
int outbox_send(struct outbox *o, const ProtobufCMessage *m, const int *fds, size_t n_fds, struct error *e);
