/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/io/outbox.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

struct batch {
        struct store_op *ops; /* keys and values are the batch's own */
        size_t n_ops, room;
        struct outbox_item *items, **tail;
        int rc;
        struct error error;
        struct batch *next;
};

struct outbox {
        struct loop *loop;
        struct store *store;
        void (*deliver)(void *arg, const struct outbox_item *item);
        void (*failed)(void *arg, int rc, const char *text);
        void *arg;
        struct batch *current; /* of the event being handled */
        int no_memory;         /* an operation of it was lost: the batch must not be written */
        size_t in_flight;      /* batches given to the thread and not yet delivered (loop's thread) */
        bool broken;

        pthread_t thread;
        pthread_mutex_t lock;
        pthread_cond_t wake;
        struct batch *queue, **queue_tail; /* to the thread */
        struct batch *done, **done_tail;   /* back from it */
        bool stop;
};

static struct batch *batch_free(struct batch *b) {
        if (!b)
                return NULL;
        for (size_t i = 0; i < b->n_ops; i++) {
                free((void *)b->ops[i].key);
                free((void *)b->ops[i].value);
        }
        free(b->ops);
        while (b->items) {
                struct outbox_item *i = b->items;

                b->items = i->next;
                free(i->text);
                free(i->data);
                free((void *)i->file.path);
                free((void *)i->file.text);
                free(i);
        }
        free(b);
        return NULL;
}

static struct batch *batch_current(struct outbox *o) {
        if (!o->current) {
                o->current = calloc(1, sizeof(*o->current));
                if (o->current)
                        o->current->tail = &o->current->items;
        }
        return o->current;
}

/* ------------------------------------------------------------------ the store's thread */

static void on_done(void *arg);

static void *store_thread(void *arg) {
        struct outbox *o = arg;

        pthread_mutex_lock(&o->lock);
        for (;;) {
                struct batch *b = o->queue;

                if (!b) {
                        if (o->stop)
                                break;
                        pthread_cond_wait(&o->wake, &o->lock);
                        continue;
                }
                o->queue = b->next;
                if (!o->queue)
                        o->queue_tail = &o->queue;
                b->next = NULL;
                pthread_mutex_unlock(&o->lock);
                b->rc = b->n_ops ? store_commit(o->store, b->ops, b->n_ops, &b->error) : 0;
                pthread_mutex_lock(&o->lock);
                *o->done_tail = b;
                o->done_tail = &b->next;
                if (!o->stop)
                        loop_post(o->loop, on_done, o);
                if (b->rc < 0)
                        break; /* nothing may be written after a gap */
        }
        pthread_mutex_unlock(&o->lock);
        return NULL;
}

/* ------------------------------------------------------------------ the loop's thread */

static void fail(struct outbox *o, int rc, const char *text) {
        if (o->broken)
                return;
        o->broken = true;
        o->failed(o->arg, rc, text);
}

static void release(struct outbox *o, struct batch *b) {
        if (b->rc < 0)
                fail(o, b->rc, b->error.text);
        for (struct outbox_item *i = b->items; i && !o->broken; i = i->next)
                o->deliver(o->arg, i);
        batch_free(b);
}

static void on_done(void *arg) {
        struct outbox *o = arg;
        struct batch *list;

        pthread_mutex_lock(&o->lock);
        list = o->done;
        o->done = NULL;
        o->done_tail = &o->done;
        pthread_mutex_unlock(&o->lock);
        while (list) {
                struct batch *b = list;

                list = b->next;
                o->in_flight--;
                release(o, b);
        }
}

int outbox_new(struct loop *l, struct store *s, void (*deliver)(void *arg, const struct outbox_item *item), void (*failed)(void *arg, int rc, const char *text), void *arg,
               struct outbox **ret, struct error *e) {
        struct outbox *o = calloc(1, sizeof(*o));
        int r;

        if (!o)
                return error_errno(e, ENOMEM, "outbox");
        *o = (struct outbox){ .loop = l, .store = s, .deliver = deliver, .failed = failed, .arg = arg };
        o->queue_tail = &o->queue;
        o->done_tail = &o->done;
        pthread_mutex_init(&o->lock, NULL);
        pthread_cond_init(&o->wake, NULL);
        r = pthread_create(&o->thread, NULL, store_thread, o);
        if (r != 0) {
                pthread_mutex_destroy(&o->lock);
                pthread_cond_destroy(&o->wake);
                free(o);
                return error_errno(e, r, "cannot start the store's thread");
        }
        *ret = o;
        return 0;
}

struct outbox *outbox_free(struct outbox *o) {
        if (!o)
                return NULL;
        pthread_mutex_lock(&o->lock);
        o->stop = true;
        pthread_cond_signal(&o->wake);
        pthread_mutex_unlock(&o->lock);
        pthread_join(o->thread, NULL);
        for (struct batch **list[] = { &o->queue, &o->done }, ***p = list; p < list + ARRAY_SIZE(list); p++)
                while (**p) {
                        struct batch *b = **p;

                        **p = b->next;
                        batch_free(b);
                }
        batch_free(o->current);
        pthread_mutex_destroy(&o->lock);
        pthread_cond_destroy(&o->wake);
        free(o);
        return NULL;
}

void outbox_persist(struct outbox *o, const struct store_op *op) {
        struct batch *b = batch_current(o);
        struct store_op copy = { .kind = op->kind, .len = op->len };
        void *value = NULL;

        if (!b)
                goto fail;
        if (b->n_ops == b->room) {
                size_t room = b->room ? 2 * b->room : 8;
                struct store_op *ops = reallocarray(b->ops, room, sizeof(*ops));

                if (!ops)
                        goto fail;
                b->ops = ops;
                b->room = room;
        }
        copy.key = strdup(op->key);
        value = malloc(op->len ? op->len : 1);
        if (!copy.key || !value)
                goto fail;
        if (op->len)
                memcpy(value, op->value, op->len);
        copy.value = value;
        b->ops[b->n_ops++] = copy;
        return;
fail:
        free((void *)copy.key);
        free(value);
        o->no_memory = 1;
}

void outbox_add(struct outbox *o, struct outbox_item *item) {
        struct batch *b = batch_current(o);

        if (!b) {
                o->no_memory = 1;
                free(item->text);
                free(item->data);
                free((void *)item->file.path);
                free((void *)item->file.text);
                free(item);
                return;
        }
        item->next = NULL;
        *b->tail = item;
        b->tail = &item->next;
}

void outbox_flush(struct outbox *o) {
        struct batch *b = STEAL_PTR(o->current);

        if (o->no_memory)
                fail(o, -ENOMEM, "no memory for the controller's transaction");
        if (!b)
                return;
        if (o->broken) {
                batch_free(b);
                return;
        }
        if (!b->n_ops && !o->in_flight) {
                release(o, b); /* nothing to wait for, nothing to overtake */
                return;
        }
        o->in_flight++;
        pthread_mutex_lock(&o->lock);
        *o->queue_tail = b;
        o->queue_tail = &b->next;
        pthread_cond_signal(&o->wake);
        pthread_mutex_unlock(&o->lock);
}
