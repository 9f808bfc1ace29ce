/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Communicators of the devices of one epoch, and the thread that watches them.  The main thread enqueues and goes on; it may then stand in a synchronisation of its stream that only an abort
 * ends.  So the watching thread has all it needs for one: the abort handle, the sockets of the peers (a dead one hangs up), and pairs of events around each piece of work.  It calls nothing that
 * waits for the device.  Its abort is of all communicators at once, each in a thread of its own, because the library may wait for the whole device before it frees one, and another that still
 * waits for a peer would keep it (NCCL).  Nobody waits for these threads in the run; a process that one of them keeps from parking is replaced by the controller.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "worker/comm/comm_private.h"

#define SLOTS 16
#define AHEAD 8          /* pieces of work that may be enqueued and not done: the launch queue must not fill up while the lock is held */
#define TICK_MS 10
#define NAP_NS 20000
#define ENDED 1000       /* a condition of nobody's: the mesh has ended for another reason */

struct device_link {
        struct dev_comm *handle; /* NULL: ended */
        struct device_link *next;
        int n;
        int ranks[];
};

struct work {
        uint64_t number; /* in the flight recorder */
        struct dev_event *begin, *end;
        bool enqueued;   /* both were recorded */
        uint64_t seen_ns; /* since when it is known to have begun */
};

struct device_epoch {
        struct comm_mesh *mesh;
        struct comm_device *device;
        pthread_mutex_t lock;
        pthread_t thread;
        bool started;
        int wake_fd;
        int *fds; /* of the peers, by rank; the mesh's own, which it may close meanwhile: then it has ended, and what they look like does not matter */
        struct pollfd *polls;
        struct dev_event *order; /* of device_stream_after, made at its first use */

        /* under lock */
        struct device_link *links;
        struct work work[SLOTS];
        uint64_t head, tail; /* work[i % SLOTS] for tail <= i < head */
        bool quit;
        int condition, peer;
        char text[256];
};

/* ------------------------------------------------------------------ the device */

int comm_device_open(const struct dev_comm_ops *comm, const struct dev_ops *ops, struct dev *dev, const struct dev_comm_settings *s, size_t scratch, struct comm_device **ret,
                     struct error *e) {
        struct comm_device *d;
        int r = comm->load(s, e);

        if (r < 0)
                return r;
        d = calloc(1, sizeof(*d));
        if (!d)
                return error_errno(e, ENOMEM, "collectives of the device");
        d->comm = comm;
        d->ops = ops;
        d->dev = dev;
        d->scratch_size = scratch / 256 * 256;
        r = ops->alloc(dev, d->scratch_size, &d->scratch, e);
        if (r < 0) {
                free(d);
                return r;
        }
        *ret = d;
        return 0;
}

int comm_device_new(const struct dev_ops *ops, struct dev *dev, const struct dev_comm_settings *s, size_t scratch, struct comm_device **ret, struct error *e) {
        const struct dev_comm_ops *comm;
        int r = dev_comm_load(ops->kind, &comm, e);

        return r < 0 ? r : comm_device_open(comm, ops, dev, s, scratch, ret, e);
}

struct comm_device *comm_device_free(struct comm_device *d) {
        if (!d)
                return NULL;
        d->ops->free(d->dev, d->scratch);
        free(d->parts);
        free(d);
        return NULL;
}

bool comm_device_use_ports(struct comm_device *d, const char *list) {
        size_t n = strlen(list);

        if (n < 2 || n > 255 || list[0] != '=' || strspn(list + 1, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:,") != n - 1)
                return false;
        d->comm->use_ports(list);
        return true;
}

const char *comm_device_fingerprint(const struct comm_device *d) {
        return d->comm->fingerprint();
}

/* ------------------------------------------------------------------ what is under way; lock held */

static void trip(struct device_epoch *d, int condition, int peer, const char *text) {
        if (d->condition == 0) {
                d->condition = condition;
                d->peer = peer;
                (void)snprintf(d->text, sizeof(d->text), "%.250s", text);
        }
}

/* What is done leaves the list. Returns what an event said that failed. */
static int reap(struct device_epoch *d) {
        const struct dev_comm_ops *comm = d->device->comm;

        while (d->tail < d->head) {
                struct work *w = &d->work[d->tail % SLOTS];
                int r = w->enqueued ? comm->event_done(w->end) : 0;

                if (r <= 0)
                        return r;
                if (d->mesh->config.flight)
                        flight_leave(d->mesh->config.flight, w->number);
                d->tail++;
        }
        return 0;
}

/* The oldest piece has begun on the device and does not end. */
static void look_at_time(struct device_epoch *d) {
        struct work *w = &d->work[d->tail % SLOTS];
        uint64_t now = clock_mono_ns();
        char text[128];

        if (d->tail == d->head || !w->enqueued || d->device->comm->event_done(w->begin) != 1)
                return;
        if (w->seen_ns == 0)
                w->seen_ns = now;
        if (now - w->seen_ns < (uint64_t)d->mesh->config.timeout_ms * NSEC_PER_MSEC)
                return;
        (void)snprintf(text, sizeof(text), "collective %llu on the device made no progress for %d ms", (unsigned long long)w->number, d->mesh->config.timeout_ms);
        trip(d, COMM_E_TIMEOUT, -1, text);
}

static void look_at_links(struct device_epoch *d) {
        struct error e = { 0 };
        int r = reap(d);

        if (r < 0)
                trip(d, r, -1, "the device failed");
        for (struct device_link *l = d->links; l && d->condition == 0; l = l->next) {
                r = d->device->comm->state(l->handle, &e);
                if (r < 0 && r != -EINPROGRESS)
                        trip(d, r == -ECOMM ? COMM_E_PEER_LOST : r, -1, e.text);
        }
        look_at_time(d);
}

/* ------------------------------------------------------------------ the watching thread */

struct ending {
        const struct dev_comm_ops *comm;
        struct dev *dev;
        struct dev_comm *handle;
};

static void *end_one(void *arg) {
        struct ending x = *(struct ending *)arg;

        free(arg);
        (void)x.comm->enter(x.dev);
        x.comm->abort(x.handle);
        return NULL;
}

/* All at once. ret: the threads, to be joined at the end. Lock held. */
static int end_links(struct device_epoch *d, pthread_t *threads, int most) {
        int n = 0;

        for (struct device_link *l = d->links; l && n < most; l = l->next) {
                struct ending *x = l->handle ? malloc(sizeof(*x)) : NULL;

                if (!x)
                        continue;
                *x = (struct ending){ .comm = d->device->comm, .dev = d->device->dev, .handle = l->handle };
                l->handle = NULL;
                if (pthread_create(&threads[n], NULL, end_one, x) == 0)
                        n++;
                else
                        (void)end_one(x);
        }
        return n;
}

/* Sleeps until there is something to look at; the rank that hung up, or -1. */
static int wait_for_news(struct device_epoch *d, bool *ret_aborted) {
        int n = d->mesh->config.n_ranks, lost = -1;
        struct pollfd *p = d->polls;

        p[n] = (struct pollfd){ .fd = d->wake_fd, .events = POLLIN };
        p[n + 1] = (struct pollfd){ .fd = d->mesh->abort->fd, .events = POLLIN };
        for (int i = 0; i < n; i++)
                p[i] = (struct pollfd){ .fd = d->fds[i], .events = POLLRDHUP };
        if (poll(p, (nfds_t)n + 2, TICK_MS) <= 0)
                return -1;
        for (int i = 0; i < n && lost < 0; i++)
                if (p[i].revents)
                        lost = i;
        *ret_aborted = p[n + 1].revents != 0;
        return lost;
}

static void *watch(void *arg) {
        struct device_epoch *d = arg;
        pthread_t threads[64];
        int n = 0;

        (void)d->device->comm->enter(d->device->dev);
        for (;;) {
                bool aborted = false, over, quit;
                char text[64];
                int lost = wait_for_news(d, &aborted);

                pthread_mutex_lock(&d->lock);
                if (aborted)
                        trip(d, COMM_E_ABORTED, -1, "aborted");
                if (lost >= 0) {
                        (void)snprintf(text, sizeof(text), "rank %d closed its connection", lost);
                        trip(d, COMM_E_PEER_LOST, lost, text);
                }
                if (d->condition == 0)
                        look_at_links(d);
                over = d->condition != 0;
                if (over)
                        n = end_links(d, threads, (int)ARRAY_SIZE(threads));
                quit = d->quit;
                pthread_mutex_unlock(&d->lock);
                if (over || quit)
                        break;
        }
        for (int i = 0; i < n; i++)
                (void)pthread_join(threads[i], NULL);
        return NULL;
}

/* ------------------------------------------------------------------ an epoch */

static void wake(struct device_epoch *d) {
        (void)eventfd_write(d->wake_fd, 1);
}

int device_epoch_new(struct comm_mesh *m, struct error *e) {
        struct device_epoch *d = calloc(1, sizeof(*d));
        size_t n = (size_t)m->config.n_ranks;
        int r = 0;

        if (!d)
                return error_errno(e, ENOMEM, "watching the device");
        d->mesh = m;
        d->device = m->config.device;
        d->peer = -1;
        pthread_mutex_init(&d->lock, NULL);
        d->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        d->fds = malloc(n * sizeof(*d->fds));
        d->polls = calloc(n + 2, sizeof(*d->polls));
        if (d->wake_fd < 0 || !d->fds || !d->polls)
                r = error_errno(e, d->wake_fd < 0 ? errno : ENOMEM, "watching the device");
        for (int i = 0; r == 0 && i < SLOTS; i++)
                if (d->device->comm->event_new(&d->work[i].begin) < 0 || d->device->comm->event_new(&d->work[i].end) < 0)
                        r = error_set(e, -EIO, "watching the device: it makes no event");
        if (r == 0) {
                memcpy(d->fds, m->fds, n * sizeof(*d->fds));
                r = pthread_create(&d->thread, NULL, watch, d);
                r = r ? error_errno(e, r, "thread that watches the device") : 0;
                d->started = r == 0;
        }
        if (r < 0) {
                device_epoch_free(d);
                return r;
        }
        m->device = d;
        return 0;
}

struct device_epoch *device_epoch_free(struct device_epoch *d) {
        if (!d)
                return NULL;
        if (d->started) {
                device_epoch_end(d);
                (void)pthread_join(d->thread, NULL);
        }
        for (int i = 0; i < SLOTS; i++) {
                d->device->comm->event_free(d->work[i].begin);
                d->device->comm->event_free(d->work[i].end);
        }
        d->device->comm->event_free(d->order);
        for (struct device_link *l = d->links, *next; l; l = next) {
                next = l->next;
                free(l);
        }
        closep(&d->wake_fd);
        pthread_mutex_destroy(&d->lock);
        free(d->fds);
        free(d->polls);
        free(d);
        return NULL;
}

void device_epoch_end(struct device_epoch *d) {
        pthread_mutex_lock(&d->lock);
        trip(d, ENDED, -1, "the epoch has ended");
        d->quit = true;
        pthread_mutex_unlock(&d->lock);
        wake(d);
}

int device_epoch_condition(struct device_epoch *d, int *ret_peer, char *text, size_t size) {
        int condition;

        pthread_mutex_lock(&d->lock);
        condition = d->condition == ENDED ? COMM_E_ABORTED : d->condition;
        *ret_peer = d->peer;
        (void)snprintf(text, size, "%s", d->text);
        pthread_mutex_unlock(&d->lock);
        return condition;
}

/* ------------------------------------------------------------------ the main thread's side */

/* Ends the mesh with what the watching thread found, or with this. */
static int fail(struct comm *c, int r, struct error *why, struct error *e) {
        struct device_epoch *d = c->mesh->device;
        char text[256];
        int peer, condition = device_epoch_condition(d, &peer, text, sizeof(text));

        if (condition)
                return comm_mesh_fail(c->mesh, condition, peer, e, "%s", text);
        return comm_mesh_fail(c->mesh, r == -ECOMM ? COMM_E_PEER_LOST : r, -1, e, "%s", why && why->text[0] ? why->text : strerror(-r));
}

static void nap(void) {
        (void)nanosleep(&(struct timespec){ .tv_nsec = NAP_NS }, NULL);
}

/* Until the library has met the others, or enqueued what it was told; it does either in a thread of its own. */
static int settle(struct comm *c, struct device_link *l, int timeout_ms, struct error *e) {
        struct device_epoch *d = c->mesh->device;
        uint64_t deadline = clock_mono_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC;

        for (unsigned turn = 0;; turn++) {
                struct error why = { 0 };
                int r = -ECANCELED;

                pthread_mutex_lock(&d->lock);
                if (d->condition == 0)
                        r = d->device->comm->state(l->handle, &why);
                pthread_mutex_unlock(&d->lock);
                if (r == 0)
                        return 0;
                if (r != -EINPROGRESS)
                        return fail(c, r, &why, e);
                if (clock_mono_ns() >= deadline)
                        return comm_mesh_fail(c->mesh, COMM_E_TIMEOUT, -1, e, "the devices of the group did not meet within %d ms", timeout_ms);
                if (turn > 64)
                        nap();
        }
}

struct invitation {
        uint8_t valid, id[DEV_COMM_ID];
};

static int invite(struct comm *c, struct invitation *x, struct error *e) {
        struct error why = { 0 };
        int r;

        memset(x, 0, sizeof(*x));
        if (c->index == 0)
                x->valid = c->mesh->device->device->comm->unique_id(x->id, &why) == 0;
        c->mesh->op_name = "meeting of the devices";
        c->mesh->tag = c->tag;
        r = comm_broadcast_run(c, x, sizeof(*x), 0, e);
        if (r != 0)
                return r;
        return x->valid ? 0 : comm_mesh_fail(c->mesh, -EIO, c->ranks[0], e, "rank %d made no id: %s", c->ranks[0], c->index == 0 ? why.text : "see there");
}

/* Where the members can write into each other's memory: *ret is what they then have, NULL where one of them cannot with one of the others. */
static int meet_in_windows(struct comm *c, struct dev_comm **ret, struct error *e) {
        const struct comm_device *d = c->mesh->device->device;
        _cleanup_free_ uint8_t (*cards)[DEV_COMM_CARD] = calloc((size_t)c->n, DEV_COMM_CARD);
        _cleanup_free_ uint8_t *able = calloc((size_t)c->n, 1);
        struct dev_comm *handle = NULL;
        struct error why = { 0 };
        bool all = true;
        int r;

        if (!cards || !able)
                return comm_mesh_fail(c->mesh, -ENOMEM, -1, e, "out of memory");
        c->mesh->op_name = "meeting of the devices";
        c->mesh->tag = c->tag;
        able[c->index] = d->comm->open_window(d->dev, c->n, c->index, cards[c->index], &handle, &why) == 0;
        r = comm_gather_run(c, cards, DEV_COMM_CARD, e);
        if (r == 0 && able[c->index])
                able[c->index] = d->comm->join_windows(handle, cards, &why) == 0;
        if (r == 0)
                r = comm_gather_run(c, able, 1, e);
        for (int i = 0; i < c->n; i++)
                all = all && able[i];
        if (handle && (r != 0 || !all))
                d->comm->abort(STEAL_PTR(handle));
        if (r == 0)
                *ret = handle;
        if (r == 0 && !all)
                log_debug("devices of the group do not write into each other's memory: %s", why.text[0] ? why.text : "another one cannot");
        return r;
}

static int meet_by_library(struct comm *c, struct dev_comm **ret, struct error *e) {
        const struct comm_device *d = c->mesh->device->device;
        struct error why = { 0 };
        struct invitation x;
        int r = invite(c, &x, e);

        if (r != 0)
                return r;
        r = d->comm->start(d->dev, x.id, c->n, c->index, ret, &why);
        return r < 0 ? fail(c, r, &why, e) : 0;
}

int device_link_find(struct comm *c, struct error *e) {
        struct device_epoch *d = c->mesh->device;
        struct dev_comm *handle = NULL;
        struct device_link *l;
        int r;

        for (l = d->links; l; l = l->next) /* only this thread adds to them */
                if (l->n == c->n && memcmp(l->ranks, c->ranks, sizeof(int) * (size_t)c->n) == 0) {
                        c->link = l;
                        return 0;
                }
        l = calloc(1, sizeof(*l) + sizeof(int) * (size_t)c->n);
        if (!l)
                return comm_mesh_fail(c->mesh, -ENOMEM, -1, e, "out of memory");
        l->n = c->n;
        memcpy(l->ranks, c->ranks, sizeof(int) * (size_t)c->n);
        r = meet_in_windows(c, &handle, e);
        if (r == 0 && !handle)
                r = meet_by_library(c, &handle, e);
        if (r != 0) {
                free(l);
                return r;
        }
        pthread_mutex_lock(&d->lock);
        l->handle = handle;
        l->next = d->links;
        d->links = l;
        r = d->condition;
        pthread_mutex_unlock(&d->lock);
        c->link = l;
        if (r != 0) { /* the thread that would end it is through */
                d->device->comm->abort(STEAL_PTR(l->handle));
                return fail(c, -ECANCELED, NULL, e);
        }
        return settle(c, l, c->mesh->config.connect_timeout_ms, e);
}

int device_work_begin(struct comm *c, struct dev_stream *s, uint64_t number, struct error *e) {
        struct device_epoch *d = c->mesh->device;

        for (;;) {
                int r;

                pthread_mutex_lock(&d->lock);
                r = d->condition ? -ECANCELED : reap(d);
                if (r == 0 && d->head - d->tail < AHEAD) {
                        struct work *w = &d->work[d->head % SLOTS];

                        w->number = number;
                        w->enqueued = false;
                        w->seen_ns = 0;
                        r = d->device->comm->event_record(w->begin, s);
                        if (r == 0)
                                d->head++;
                        number = 0;
                } else if (r == 0) {
                        r = 1;
                }
                pthread_mutex_unlock(&d->lock);
                if (r == 0)
                        return 0;
                if (r < 0)
                        return fail(c, r, NULL, e);
                nap();
        }
}

int device_work_end(struct comm *c, struct dev_stream *s, struct error *e) {
        struct device_epoch *d = c->mesh->device;
        struct work *w = &d->work[(d->head - 1) % SLOTS];
        int r;

        pthread_mutex_lock(&d->lock);
        r = d->condition ? -ECANCELED : d->device->comm->event_record(w->end, s);
        w->enqueued = r == 0;
        pthread_mutex_unlock(&d->lock);
        return r < 0 ? fail(c, r, NULL, e) : 0;
}

int device_stream_after(struct comm *c, struct dev_stream *later, struct dev_stream *earlier, struct error *e) {
        struct device_epoch *d = c->mesh->device;
        int r;

        pthread_mutex_lock(&d->lock);
        r = d->condition ? -ECANCELED : d->order ? 0 : d->device->comm->event_new(&d->order);
        if (r == 0)
                r = d->device->comm->event_record(d->order, earlier);
        if (r == 0)
                r = d->device->comm->event_wait(d->order, later);
        pthread_mutex_unlock(&d->lock);
        return r < 0 ? fail(c, r, NULL, e) : 0;
}

int device_exchange(struct comm *c, const struct dev_comm_part *parts, int n, struct dev_stream *s, struct error *e) {
        struct device_epoch *d = c->mesh->device;
        struct error why = { 0 };
        int r = -ECANCELED;

        pthread_mutex_lock(&d->lock);
        if (d->condition == 0)
                r = d->device->comm->exchange(c->link->handle, parts, n, s, &why);
        pthread_mutex_unlock(&d->lock);
        if (r == -EINPROGRESS)
                return settle(c, c->link, c->mesh->config.timeout_ms, e);
        return r < 0 ? fail(c, r, &why, e) : 0;
}
