/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Persist before act.  While the core handles one event, its store operations and everything that it sends are gathered into one batch; outbox_flush gives the
 * batch to a store thread, and what was sent leaves, in the loop's thread, when the batch is durable.  Batches stay in order, those without store operations too, so that
 * nothing overtakes.  A batch that the store refuses is dropped whole and told; nothing behind it leaves any more.
 */
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/loop.h"
#include "daemon/core/controller.h"
#include "daemon/store/store.h"

enum outbox_kind { OUTBOX_SEND, OUTBOX_CLOSE, OUTBOX_REPLY, OUTBOX_FILE };

struct outbox_item {
        enum outbox_kind kind;
        uint64_t id;           /* session, request */
        int status;            /* CLOSE, REPLY: RPC status */
        char *text;            /* CLOSE, REPLY: why; may be NULL */
        uint8_t *data;         /* SEND, REPLY: packed message */
        size_t len;
        struct file_work file; /* FILE: path and text are the item's own */
        struct outbox_item *next;
};

struct outbox;

/* deliver: an item of a durable batch, in the loop's thread (frees nothing). failed: the store refused; called once. */
int outbox_new(struct loop *l, struct store *s, void (*deliver)(void *arg, const struct outbox_item *item), void (*failed)(void *arg, int rc, const char *text), void *arg,
               struct outbox **ret, struct error *e);
/* Commits what is queued (blocks), delivers nothing more. NULL is allowed; returns NULL. */
struct outbox *outbox_free(struct outbox *o);

void outbox_persist(struct outbox *o, const struct store_op *op);
/* Takes over item (malloc'ed, with its text, data, file.path and file.text). */
void outbox_add(struct outbox *o, struct outbox_item *item);
void outbox_flush(struct outbox *o);
