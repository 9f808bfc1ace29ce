/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Abort and plan meet in one lock: an abort raises the handle of comm.h under it, and the main thread clears that handle under it when it takes a plan that is
 * no older than the newest abort.  So no abort is lost between two epochs, and none of an old epoch reaches a new mesh.
 */
#include "worker/rank/control.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "proto/ipc.h"
#include "worker/rank/lease_timer.h"

#define SAVES_MAX 8

struct save_order {
        uint32_t attempt;
        uint64_t step; /* 0: any */
};

struct control {
        const struct identity *id;
        int fd, quit_fd;
        struct flight *flight;
        struct comm_abort *abort;
        struct lease_timer *timer;
        uint64_t armed_ns;
        pthread_t thread;
        bool started;
        pthread_mutex_t send_lock, lock;
        pthread_cond_t changed;
        /* under lock */
        unsigned news;
        uint64_t plan_epoch, abort_epoch; /* newest seen */
        char abort_reason[256];
        Fp8ctl__V1__ControllerMessage *plan;
        struct save_order saves[SAVES_MAX];
        int n_saves;
        bool stop;
        struct control_stop stop_order;
        uint64_t dropped;
        control_replicas_fn on_replicas;
        void *on_replicas_arg;
};

void control_on_replicas(struct control *c, control_replicas_fn fn, void *arg) {
        pthread_mutex_lock(&c->lock);
        c->on_replicas = fn;
        c->on_replicas_arg = arg;
        pthread_mutex_unlock(&c->lock);
}

int control_send(struct control *c, Fp8ctl__V1__WorkerMessage *m) {
        Fp8ctl__V1__RankToNode out = FP8CTL__V1__RANK_TO_NODE__INIT;
        struct error e = { 0 };
        int r;

        out.message = m;
        pthread_mutex_lock(&c->send_lock);
        r = ipc_send(c->fd, &out.base, NULL, 0, &e);
        pthread_mutex_unlock(&c->send_lock);
        if (r < 0)
                log_debug("%s", e.text);
        return r;
}

/* ------------------------------------------------------------------ what comes in; lock held */

static uint64_t live_epoch(const struct control *c) {
        uint64_t epoch = c->plan_epoch > c->id->epoch ? c->plan_epoch : c->id->epoch;

        return c->abort_epoch > epoch ? c->abort_epoch : epoch;
}

static void tell(struct control *c, unsigned news) {
        c->news |= news;
        pthread_cond_broadcast(&c->changed);
}

static void on_abort(struct control *c, const Fp8ctl__V1__AbortEpoch *m) {
        if (m->epoch <= live_epoch(c))
                return; /* known, or of an epoch that is over */
        c->abort_epoch = m->epoch;
        snprintf(c->abort_reason, sizeof(c->abort_reason), "%s", m->reason);
        comm_abort_raise(c->abort);
        tell(c, NEWS_ABORT);
}

/* A plan for a newer epoch than the one we are in ends that one, as an abort would. Takes the message. */
static bool on_plan(struct control *c, Fp8ctl__V1__ControllerMessage *m) {
        const Fp8ctl__V1__RankPlan *p = m->rank_plan;
        bool known = c->plan_epoch && p->epoch <= c->plan_epoch;

        if (known || p->epoch < live_epoch(c) || p->n_peers <= c->id->rank || p->peers[c->id->rank]->incarnation != c->id->incarnation) {
                c->dropped++;
                return false;
        }
        c->plan_epoch = p->epoch;
        if (c->plan)
                fp8ctl__v1__controller_message__free_unpacked(c->plan, NULL);
        c->plan = m;
        c->n_saves = 0; /* of the epoch before */
        c->stop = false;
        c->news &= ~(unsigned)(NEWS_SAVE | NEWS_STOP);
        comm_abort_raise(c->abort);
        tell(c, NEWS_PLAN);
        return true;
}

static void on_save(struct control *c, const Fp8ctl__V1__SaveNow *m) {
        if (m->epoch != live_epoch(c) || c->n_saves == SAVES_MAX) {
                c->dropped++;
                return;
        }
        for (int i = 0; i < c->n_saves; i++)
                if (c->saves[i].attempt == m->attempt && c->saves[i].step == m->step)
                        return;
        c->saves[c->n_saves++] = (struct save_order){ .attempt = m->attempt, .step = m->step };
        tell(c, NEWS_SAVE);
}

static void on_stop(struct control *c, const Fp8ctl__V1__StopRanks *m) {
        if (m->epoch != live_epoch(c)) {
                c->dropped++;
                return;
        }
        c->stop = true;
        c->stop_order.save = m->save;
        c->stop_order.step = m->step;
        snprintf(c->stop_order.reason, sizeof(c->stop_order.reason), "%s", m->reason);
        tell(c, NEWS_STOP);
}

/* Returns true when the message was kept. */
static bool dispatch(struct control *c, Fp8ctl__V1__ControllerMessage *m) {
        switch (m->body_case) {
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_ABORT_EPOCH:
                on_abort(c, m->abort_epoch);
                return false;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_RANK_PLAN:
                return on_plan(c, m);
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_REPLICA_PLAN:
                if (m->replica_plan->epoch == live_epoch(c) && c->on_replicas)
                        c->on_replicas(c->on_replicas_arg, m->replica_plan);
                else
                        c->dropped++;
                return false;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_SAVE_NOW:
                on_save(c, m->save_now);
                return false;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_STOP_RANKS:
                on_stop(c, m->stop_ranks);
                return false;
        case FP8CTL__V1__CONTROLLER_MESSAGE__BODY_RELEASE_JOB:
                comm_abort_raise(c->abort);
                tell(c, NEWS_RELEASE);
                return false;
        default:
                return false; /* commits and drops of checkpoints concern the controller and the log */
        }
}

static void note(const Fp8ctl__V1__ControllerMessage *m) {
        if (m->body_case == FP8CTL__V1__CONTROLLER_MESSAGE__BODY_CHECKPOINT_COMMITTED)
                log_info("checkpoint of step %llu is committed: %s", (unsigned long long)m->checkpoint_committed->step, m->checkpoint_committed->path);
        else if (m->body_case == FP8CTL__V1__CONTROLLER_MESSAGE__BODY_CHECKPOINT_DROPPED)
                log_warning("checkpoint of step %llu is dropped: %s", (unsigned long long)m->checkpoint_dropped->step, m->checkpoint_dropped->reason);
}

/* ------------------------------------------------------------------ the thread */

/* False at the end of the socket. */
static bool receive(struct control *c) {
        ProtobufCMessage *base = NULL;
        struct error e = { 0 };
        int r = ipc_recv(c->fd, &fp8ctl__v1__node_to_rank__descriptor, &base, NULL, &e);
        Fp8ctl__V1__NodeToRank *m = (Fp8ctl__V1__NodeToRank *)base;

        if (r <= 0) {
                if (r < 0)
                        log_warning("a message of the spawner cannot be read: %s", e.text);
                return r == -EBADMSG || r == -EPROTO || r == -EMSGSIZE;
        }
        if (m->message) {
                note(m->message);
                pthread_mutex_lock(&c->lock);
                if (dispatch(c, m->message))
                        m->message = NULL;
                pthread_mutex_unlock(&c->lock);
        }
        protobuf_c_message_free_unpacked(base, NULL);
        return true;
}

static void *run(void *arg) {
        struct control *c = arg;

        for (;;) {
                struct pollfd fds[] = { { .fd = c->fd, .events = POLLIN }, { .fd = c->quit_fd, .events = POLLIN } };
                int n = poll(fds, 2, lease_timer_follow(c->timer, c->flight, &c->armed_ns));

                if (n < 0 && errno != EINTR)
                        break;
                if (n <= 0)
                        continue;
                if (fds[1].revents)
                        return NULL;
                if (fds[0].revents && !receive(c))
                        break;
        }
        pthread_mutex_lock(&c->lock);
        comm_abort_raise(c->abort);
        tell(c, NEWS_GONE);
        pthread_mutex_unlock(&c->lock);
        return NULL;
}

int control_new(const struct identity *id, int fd, struct flight *flight, struct comm_abort *abort, struct control **ret, struct error *e) {
        struct control *c = calloc(1, sizeof(*c));
        pthread_condattr_t attr;
        int r;

        if (!c)
                return error_errno(e, ENOMEM, "control");
        c->id = id;
        c->fd = fd;
        c->flight = flight;
        c->abort = abort;
        pthread_mutex_init(&c->send_lock, NULL);
        pthread_mutex_init(&c->lock, NULL);
        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        pthread_cond_init(&c->changed, &attr);
        pthread_condattr_destroy(&attr);
        c->quit_fd = eventfd(0, EFD_CLOEXEC);
        r = c->quit_fd < 0 ? error_errno(e, errno, "eventfd") : lease_timer_new(&c->timer, e);
        if (r == 0) {
                r = pthread_create(&c->thread, NULL, run, c);
                r = r ? error_errno(e, r, "control thread") : 0;
        }
        if (r < 0) {
                control_free(c);
                return r;
        }
        c->started = true;
        *ret = c;
        return 0;
}

struct control *control_free(struct control *c) {
        if (!c)
                return NULL;
        if (c->started) {
                (void)eventfd_write(c->quit_fd, 1);
                pthread_join(c->thread, NULL);
        }
        lease_timer_free(c->timer);
        closep(&c->quit_fd);
        if (c->plan)
                fp8ctl__v1__controller_message__free_unpacked(c->plan, NULL);
        pthread_cond_destroy(&c->changed);
        pthread_mutex_destroy(&c->lock);
        pthread_mutex_destroy(&c->send_lock);
        free(c);
        return NULL;
}

/* ------------------------------------------------------------------ the main thread's side */

unsigned control_wait(struct control *c, unsigned mask, int timeout_ms) {
        uint64_t deadline = clock_mono_ns() + (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms) * NSEC_PER_MSEC;
        struct timespec ts = { .tv_sec = (time_t)(deadline / NSEC_PER_SEC), .tv_nsec = (long)(deadline % NSEC_PER_SEC) };
        unsigned news;
        int r = 0;

        pthread_mutex_lock(&c->lock);
        while (!(c->news & mask) && r == 0 && timeout_ms != 0)
                r = timeout_ms < 0 ? pthread_cond_wait(&c->changed, &c->lock) : pthread_cond_timedwait(&c->changed, &c->lock, &ts);
        news = c->news;
        pthread_mutex_unlock(&c->lock);
        return news;
}

uint64_t control_take_abort(struct control *c, char *ret_reason, size_t size) {
        uint64_t epoch = 0;

        pthread_mutex_lock(&c->lock);
        if (c->news & NEWS_ABORT) {
                c->news &= ~(unsigned)NEWS_ABORT;
                epoch = c->abort_epoch;
                snprintf(ret_reason, size, "%s", c->abort_reason);
        }
        pthread_mutex_unlock(&c->lock);
        return epoch;
}

Fp8ctl__V1__ControllerMessage *control_take_plan(struct control *c) {
        Fp8ctl__V1__ControllerMessage *m = NULL;

        pthread_mutex_lock(&c->lock);
        if (c->news & NEWS_PLAN) {
                c->news &= ~(unsigned)NEWS_PLAN;
                m = STEAL_PTR(c->plan);
                if (m && m->rank_plan->epoch < c->abort_epoch) {
                        fp8ctl__v1__controller_message__free_unpacked(m, NULL);
                        m = NULL;
                }
                if (m && !(c->news & (NEWS_RELEASE | NEWS_GONE)))
                        comm_abort_reset(c->abort);
        }
        pthread_mutex_unlock(&c->lock);
        return m;
}

bool control_take_save(struct control *c, uint64_t step, bool any, uint32_t *ret_attempt, bool *ret_late) {
        bool found = false;

        pthread_mutex_lock(&c->lock);
        for (int i = 0; i < c->n_saves && !found; i++) {
                struct save_order s = c->saves[i];

                if (s.step == 0 ? !any : s.step > step)
                        continue;
                found = true;
                *ret_attempt = s.attempt;
                *ret_late = s.step != 0 && s.step < step;
                memmove(&c->saves[i], &c->saves[i + 1], (size_t)(c->n_saves - i - 1) * sizeof(s));
                c->n_saves--;
        }
        if (c->n_saves == 0)
                c->news &= ~(unsigned)NEWS_SAVE;
        pthread_mutex_unlock(&c->lock);
        return found;
}

bool control_save_wanted(struct control *c) {
        bool wanted = false;

        pthread_mutex_lock(&c->lock);
        for (int i = 0; i < c->n_saves; i++)
                wanted = wanted || c->saves[i].step == 0;
        pthread_mutex_unlock(&c->lock);
        return wanted;
}

bool control_stop_wanted(struct control *c, struct control_stop *ret) {
        bool wanted;

        pthread_mutex_lock(&c->lock);
        wanted = c->stop;
        if (wanted)
                *ret = c->stop_order;
        pthread_mutex_unlock(&c->lock);
        return wanted;
}
