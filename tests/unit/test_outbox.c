/* SPDX-License-Identifier: Apache-2.0 */
/* The store is ours: it notes what it is given, waits at a gate, and refuses when told to. */
#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include "base/clock.h"
#include "daemon/io/outbox.h"
#include "tests/test.h"

struct store {
        pthread_mutex_t lock;
        pthread_cond_t wake;
        int open;   /* commits that may pass */
        int commits;
        int refuse; /* this one (1 is the first) ... */
        int rc;     /* ... with this */
        char written[256];
};

int store_commit(struct store *s, const struct store_op *ops, size_t n, struct error *e) {
        int rc = 0;

        pthread_mutex_lock(&s->lock);
        while (s->open == 0)
                pthread_cond_wait(&s->wake, &s->lock);
        s->open--;
        if (++s->commits == s->refuse) {
                rc = error_set(e, s->rc, "refused by the test");
        } else {
                for (size_t i = 0; i < n; i++) {
                        size_t at = strlen(s->written);

                        snprintf(s->written + at, sizeof(s->written) - at, "%s=%.*s ", ops[i].key, (int)ops[i].len, (const char *)ops[i].value);
                }
        }
        pthread_mutex_unlock(&s->lock);
        return rc;
}

struct scene {
        struct loop *loop;
        struct store store;
        struct outbox *box;
        char left[256];
        int failed, failed_rc;
        pthread_t thread; /* of the loop */
};

static void on_deliver(void *arg, const struct outbox_item *i) {
        struct scene *t = arg;
        size_t at = strlen(t->left);

        CU_ASSERT_TRUE(pthread_equal(pthread_self(), t->thread));
        snprintf(t->left + at, sizeof(t->left) - at, "%d:%d ", (int)i->kind, (int)i->id);
}

static void on_failed(void *arg, int rc, const char *text) {
        struct scene *t = arg;

        t->failed++;
        t->failed_rc = rc;
        CU_ASSERT_STRING_EQUAL(text, "refused by the test");
}

static void begin(struct scene *t, int open) {
        struct error e = { 0 };

        memset(t, 0, sizeof(*t));
        t->thread = pthread_self();
        pthread_mutex_init(&t->store.lock, NULL);
        pthread_cond_init(&t->store.wake, NULL);
        t->store.open = open;
        CU_ASSERT_EQUAL_FATAL(loop_new(&t->loop), 0);
        ASSERT_OK(outbox_new(t->loop, &t->store, on_deliver, on_failed, t, &t->box, &e), e);
}

static void open_gate(struct scene *t, int n) {
        pthread_mutex_lock(&t->store.lock);
        t->store.open += n;
        pthread_cond_broadcast(&t->store.wake);
        pthread_mutex_unlock(&t->store.lock);
}

static void end(struct scene *t) {
        open_gate(t, 1000);
        outbox_free(t->box);
        loop_free(t->loop);
        pthread_cond_destroy(&t->store.wake);
        pthread_mutex_destroy(&t->store.lock);
}

static void put(struct scene *t, const char *key, const char *value) {
        char k[16], v[16]; /* gone when it is written */

        snprintf(k, sizeof(k), "%s", key);
        snprintf(v, sizeof(v), "%s", value);
        outbox_persist(t->box, &(struct store_op){ .kind = STORE_PUT, .key = k, .value = v, .len = strlen(v) });
        memset(k, 'x', sizeof(k));
        memset(v, 'x', sizeof(v));
}

static void say(struct scene *t, enum outbox_kind kind, int id) {
        struct outbox_item *i = calloc(1, sizeof(*i));

        CU_ASSERT_PTR_NOT_NULL_FATAL(i);
        i->kind = kind;
        i->id = (uint64_t)id;
        i->text = strdup("why");
        i->data = malloc(4);
        outbox_add(t->box, i);
}

/* Until `left` has so many items, or for a moment when it must not change. */
static void turn_until(struct scene *t, const char *left) {
        uint64_t end = clock_mono_ns() + 10 * NSEC_PER_SEC;

        while (strcmp(t->left, left) != 0 && !t->failed && clock_mono_ns() < end)
                loop_turn(t->loop, 10);
        CU_ASSERT_STRING_EQUAL(t->left, left);
}

static void turn_a_moment(struct scene *t) {
        for (int i = 0; i < 5; i++)
                loop_turn(t->loop, 5);
}

TEST(nothing_leaves_before_it_is_durable) {
        struct scene t;

        begin(&t, 0);
        put(&t, "a", "1");
        say(&t, OUTBOX_SEND, 1);
        say(&t, OUTBOX_REPLY, 2);
        turn_a_moment(&t);
        CU_ASSERT_STRING_EQUAL(t.left, ""); /* not even flushed */
        outbox_flush(t.box);
        turn_a_moment(&t);
        CU_ASSERT_STRING_EQUAL(t.left, "");
        open_gate(&t, 1);
        turn_until(&t, "0:1 2:2 ");
        CU_ASSERT_STRING_EQUAL(t.store.written, "a=1 ");
        end(&t);
}

TEST(what_needs_no_store_leaves_at_once_but_overtakes_nothing) {
        struct scene t;

        begin(&t, 0);
        say(&t, OUTBOX_SEND, 1);
        outbox_flush(t.box);
        CU_ASSERT_STRING_EQUAL(t.left, "0:1 ");
        put(&t, "a", "1");
        put(&t, "b", "2");
        say(&t, OUTBOX_SEND, 2);
        outbox_flush(t.box);
        say(&t, OUTBOX_FILE, 3);
        outbox_flush(t.box);
        put(&t, "a", "3");
        outbox_flush(t.box); /* a transaction without messages */
        say(&t, OUTBOX_CLOSE, 4);
        outbox_flush(t.box);
        outbox_flush(t.box); /* nothing */
        turn_a_moment(&t);
        CU_ASSERT_STRING_EQUAL(t.left, "0:1 ");
        open_gate(&t, 1);
        turn_until(&t, "0:1 0:2 3:3 ");
        turn_a_moment(&t);
        CU_ASSERT_STRING_EQUAL(t.left, "0:1 0:2 3:3 ");
        open_gate(&t, 1);
        turn_until(&t, "0:1 0:2 3:3 1:4 ");
        CU_ASSERT_STRING_EQUAL(t.store.written, "a=1 b=2 a=3 ");
        CU_ASSERT_EQUAL(t.store.commits, 2); /* batches without operations are not transactions */
        say(&t, OUTBOX_SEND, 5); /* all is delivered: at once again */
        outbox_flush(t.box);
        CU_ASSERT_STRING_EQUAL(t.left, "0:1 0:2 3:3 1:4 0:5 ");
        end(&t);
}

static void refused(int rc) {
        struct scene t;

        begin(&t, 0);
        t.store.refuse = 2;
        t.store.rc = rc;
        for (int i = 1; i <= 4; i++) {
                char v[8];

                snprintf(v, sizeof(v), "%d", i);
                put(&t, "k", v);
                say(&t, OUTBOX_SEND, i);
                outbox_flush(t.box);
        }
        say(&t, OUTBOX_REPLY, 5);
        outbox_flush(t.box);
        open_gate(&t, 1000);
        for (int i = 0; i < 500 && !t.failed; i++)
                loop_turn(t.loop, 10);
        turn_a_moment(&t);
        CU_ASSERT_EQUAL(t.failed, 1);
        CU_ASSERT_EQUAL(t.failed_rc, rc);
        CU_ASSERT_STRING_EQUAL(t.left, "0:1 ");
        CU_ASSERT_STRING_EQUAL(t.store.written, "k=1 ");
        CU_ASSERT_EQUAL(t.store.commits, 2); /* nothing is written behind a gap */
        put(&t, "k", "9");
        say(&t, OUTBOX_SEND, 9);
        outbox_flush(t.box);
        say(&t, OUTBOX_SEND, 10);
        outbox_flush(t.box);
        turn_a_moment(&t);
        CU_ASSERT_EQUAL(t.failed, 1);
        CU_ASSERT_STRING_EQUAL(t.left, "0:1 ");
        end(&t);
        CU_ASSERT_STRING_EQUAL(t.store.written, "k=1 ");
}

TEST(a_refused_batch_and_all_behind_it_never_leave) {
        refused(-ECANCELED);
        refused(-EIO);
}

TEST(what_was_flushed_is_written_at_the_end_and_not_delivered) {
        struct scene t;

        begin(&t, 0);
        put(&t, "a", "1");
        say(&t, OUTBOX_SEND, 1);
        outbox_flush(t.box);
        put(&t, "b", "2");
        say(&t, OUTBOX_SEND, 2);
        outbox_flush(t.box);
        put(&t, "c", "3"); /* of an event that did not end */
        say(&t, OUTBOX_SEND, 3);
        end(&t);
        CU_ASSERT_STRING_EQUAL(t.store.written, "a=1 b=2 ");
        CU_ASSERT_STRING_EQUAL(t.left, "");
        CU_ASSERT_PTR_NULL(outbox_free(NULL));
}

TEST_MAIN("outbox")
