/* SPDX-License-Identifier: Apache-2.0 */
/*
 * InfiniBand's and RoCE's own word that a port changed: the asynchronous events of each device (ibv_get_async_event(3)), taken by a thread of their own, since opening a device may hang in its driver.  What is true
 * then is the check's to say: it is only run sooner.  A device that is taken away is closed, or its driver would wait for us: those that can go on without
 * say so by an event, of the others only the file in sysfs is gone.
 */
#include <errno.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "worker/health/health_private.h"

enum { DEVICES_MAX = 64, LOOK_MS = 1000 /* for devices that came or went */ };

struct verbs_watch {
        pthread_t thread;
        int stop;
        void (*fn)(void *arg);
        void *arg;
        struct ibv_context *open[DEVICES_MAX];
        size_t n;
};

static bool is_open(const struct verbs_watch *v, const char *name) {
        for (size_t i = 0; i < v->n; i++)
                if (strcmp(ibv_get_device_name(v->open[i]->device), name) == 0)
                        return true;
        return false;
}

static void open_new(struct verbs_watch *v) {
        int n = 0;
        struct ibv_device **list = ibv_get_device_list(&n);

        for (int i = 0; list && i < n && v->n < DEVICES_MAX; i++) {
                struct ibv_context *c = is_open(v, ibv_get_device_name(list[i])) ? NULL : ibv_open_device(list[i]);

                if (!c)
                        continue;
                if (fcntl(c->async_fd, F_SETFL, O_NONBLOCK) == 0)
                        v->open[v->n++] = c;
                else
                        (void)ibv_close_device(c);
        }
        if (list)
                ibv_free_device_list(list);
}

/* False: the device is going, or is gone. */
static bool take_events(struct ibv_context *c, bool *ret_any) {
        struct ibv_async_event ev;
        bool stays = true;

        while (ibv_get_async_event(c, &ev) == 0) {
                stays = stays && ev.event_type != IBV_EVENT_DEVICE_FATAL;
                ibv_ack_async_event(&ev);
                *ret_any = true;
        }
        return stays && (errno == EAGAIN || errno == EINTR);
}

static void *watch_main(void *arg) {
        struct verbs_watch *v = arg;

        for (;;) {
                struct pollfd fds[DEVICES_MAX + 1] = { { .fd = v->stop, .events = POLLIN } };
                bool any = false;
                size_t k = 0;

                open_new(v);
                for (size_t i = 0; i < v->n; i++)
                        fds[i + 1] = (struct pollfd){ .fd = v->open[i]->async_fd, .events = POLLIN };
                (void)poll(fds, v->n + 1, LOOK_MS);
                if (fds[0].revents)
                        return NULL;
                for (size_t i = 0; i < v->n; i++) {
                        if ((!fds[i + 1].revents || take_events(v->open[i], &any)) && access(v->open[i]->device->dev_path, F_OK) == 0)
                                v->open[k++] = v->open[i];
                        else
                                (void)ibv_close_device(v->open[i]);
                }
                any = any || k < v->n;
                if (k < v->n)
                        (void)poll(fds, 1, 1000); /* until it is off the list */
                v->n = k;
                if (any)
                        v->fn(v->arg);
        }
}

struct verbs_watch *verbs_start(void (*fn)(void *arg), void *arg) {
        struct verbs_watch *v = calloc(1, sizeof(*v));

        if (!v)
                return NULL;
        v->fn = fn;
        v->arg = arg;
        v->stop = eventfd(0, EFD_CLOEXEC);
        if (v->stop >= 0 && pthread_create(&v->thread, NULL, watch_main, v) == 0)
                return v;
        closep(&v->stop);
        free(v);
        return NULL;
}

bool verbs_stop(struct verbs_watch *v, uint64_t deadline_ns) {
        uint64_t one = 1;

        if (!v)
                return true;
        if (write(v->stop, &one, sizeof(one)) < 0 || !thread_ended(v->thread, deadline_ns))
                return false;
        for (size_t i = 0; i < v->n; i++)
                (void)ibv_close_device(v->open[i]);
        closep(&v->stop);
        free(v);
        return true;
}
