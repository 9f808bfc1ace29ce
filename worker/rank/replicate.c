/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/rank/replicate.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/backoff.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "proto/replica_link.h"
#include "worker/rank/report.h"
#include "worker/train/trainer.h"

/* A holder that does not know the epoch yet, or has gone. One that is back is found out within the bound; a new plan is tried at once. */
#define RETRY_FIRST_NS (50 * NSEC_PER_MSEC)
#define RETRY_MOST_NS NSEC_PER_SEC
#define FETCH_RETRY_NS (10 * NSEC_PER_MSEC) /* of a recovery, which waits for it */
#define GIVE_UP_NS (500 * NSEC_PER_MSEC) /* then this generation is not delivered, and the next one is tried */
#define WHOLE_POLL_NS (NSEC_PER_MSEC / 2) /* the snapshot is still being taken */
#define SAY_EVERY_NS (60 * NSEC_PER_SEC)

struct replicate {
        const struct identity *id;
        struct control *control;
        struct lane_device lanes;
        struct replica *map;  /* of the thread */
        struct replica *keep; /* of the training thread */
        pthread_t thread;
        bool started;
        pthread_mutex_t lock;
        pthread_cond_t changed;
        /* under lock */
        bool stop;
        uint64_t epoch;      /* 0: none */
        uint64_t plans;      /* changes when the plan does */
        char endpoint[300];  /* "": nobody holds ours */
        char node[128];
        uint8_t key[REPLICA_KEY];
        uint64_t kept;       /* delivered by all; 0: none */
        uint64_t sending, sending_epoch;   /* on its way; 0: none */
        bool done, failed;   /* what became of it here */
        uint64_t said_ns;
        /* counted */
        uint64_t delivered, skipped, missed, bytes, lane_bytes, falls;
        struct replicate_counts before; /* of earlier epochs */
};

/* ------------------------------------------------------------------ the thread */
/* What the thread works on: it lets go when this is no longer what is wanted. */
struct work {
        struct replicate *r;
        uint64_t step, generation_epoch, keep, epoch, plans;
        char endpoint[300];
        uint8_t key[REPLICA_KEY];
};

/* The link to the holder; it outlasts generations. */
struct way {
        const struct replica_transport *t;
        struct replica_link *link; /* NULL: none */
        struct replica_traffic traffic;
        struct backoff retry;
        struct error why; /* it failed last */
};

static bool outdated(void *arg) {
        struct work *w = arg;
        struct replicate *r = w->r;
        bool over;

        pthread_mutex_lock(&r->lock);
        over = r->stop || r->epoch != w->epoch || r->sending != w->step || r->plans != w->plans;
        pthread_mutex_unlock(&r->lock);
        return over;
}

static void pause_ns(uint64_t ns) {
        nanosleep(&(struct timespec){ .tv_sec = (time_t)(ns / NSEC_PER_SEC), .tv_nsec = (long)(ns % NSEC_PER_SEC) }, NULL);
}

/* Waits until the snapshot is whole: its slot does not change from then on, as it is kept. */
static int find_whole(struct work *w, const struct replica_slot **ret, const void **ret_payload, struct error *e) {
        for (;;) {
                int r = replica_find(w->r->map, w->step, 0, ret, ret_payload, e);

                if (r == 0 && (*ret)->epoch == w->generation_epoch)
                        return 0;
                if (r < 0 && r != -ENOENT)
                        return r;
                if (outdated(w))
                        return error_set(e, -ECANCELED, "given up");
                pause_ns(WHOLE_POLL_NS);
        }
}

static int deliver(struct work *w, struct way *y, uint64_t *ret_bytes, struct error *e) {
        struct replica_peer self = { .job = w->r->id->job, .epoch = w->epoch, .incarnation = w->r->id->incarnation, .rank = w->r->id->rank };
        struct replica_wait wait = { outdated, w };
        struct replica_lanes lanes = { w->r->lanes, replica_pool(w->r->map) };
        const struct replica_slot *slot;
        const void *payload;
        int r = find_whole(w, &slot, &payload, e);

        if (r == 0 && !y->link) {
                r = replica_transport_find(w->endpoint, &y->t, e);
                if (r == 0)
                        r = y->t->open(w->endpoint, &self, w->key, &wait, &lanes, &y->link, e);
        }
        if (r != 0)
                return r;
        r = y->t->put(y->link, slot, payload, w->keep, e);
        *ret_bytes = r == 0 ? slot->bytes : 0;
        return r;
}

static void told_missing(struct replicate *r, const struct work *w, const struct error *why) {
        uint64_t now = clock_mono_ns();
        char text[512];
        bool say;

        pthread_mutex_lock(&r->lock);
        say = !r->said_ns || now > r->said_ns + SAY_EVERY_NS;
        r->said_ns = say ? now : r->said_ns;
        pthread_mutex_unlock(&r->lock);
        if (!say)
                return;
        snprintf(text, sizeof(text), "the snapshot of step %" PRIu64 " has no second copy: %.300s", w->step, why->text);
        log_warning("%s", text);
        report_notice(r->control, r->id, w->epoch, w->step, "replica_missing", "warning", text);
}

/* What became of the lane since it was asked last; a lane that was given up is told, the copies go by the socket. */
static void look_at_traffic(struct replicate *r, uint64_t epoch, uint64_t step, struct way *y) {
        struct replica_traffic now;
        char text[400];
        bool fell;

        y->t->traffic(y->link, &now);
        fell = now.falls != y->traffic.falls;
        pthread_mutex_lock(&r->lock);
        r->lane_bytes += now.lane_bytes - y->traffic.lane_bytes;
        r->falls += now.falls - y->traffic.falls;
        pthread_mutex_unlock(&r->lock);
        y->traffic = now;
        if (!fell)
                return;
        snprintf(text, sizeof(text), "second copies go by sockets from step %" PRIu64 " on: %.250s", step, now.why);
        log_warning("%s", text);
        report_notice(r->control, r->id, epoch, step, "replica_lane_lost", "warning", text);
}

static void way_close(struct way *y) {
        if (y->link)
                y->link = y->t->close(y->link);
}

/* One try. Not while the holder is left alone longer than this generation is waited for (until). */
static int attempt(struct work *w, struct way *y, uint64_t until, uint64_t *ret_bytes, struct error *e) {
        uint64_t now = clock_mono_ns(), wait = backoff_wait(&y->retry, now);
        int rc;

        if (now + wait > until) {
                *e = y->why;
                return -ETIME;
        }
        pause_ns(wait);
        if (outdated(w))
                return error_set(e, -ECANCELED, "given up");
        if (!y->link)
                y->traffic = (struct replica_traffic){ 0 };
        rc = deliver(w, y, ret_bytes, e);
        if (y->link)
                look_at_traffic(w->r, w->epoch, w->step, y);
        if (rc >= 0) {
                backoff_reset(&y->retry);
        } else if (rc != -ECANCELED) {
                y->why = *e;
                backoff_failed(&y->retry, clock_mono_ns());
        }
        if (rc < 0)
                way_close(y);
        return rc;
}

/* Delivers, or says that it cannot be. */
static void work(struct work *w, struct way *y) {
        struct replicate *r = w->r;
        uint64_t until = clock_mono_ns() + GIVE_UP_NS, bytes = 0;
        struct error e = { 0 };
        int rc;

        do {
                rc = attempt(w, y, until, &bytes, &e);
        } while (rc < 0 && rc != -ECANCELED && rc != -EBADMSG && rc != -ETIME);
        pthread_mutex_lock(&r->lock);
        if (r->epoch == w->epoch && r->sending == w->step && (rc >= 0 || r->plans == w->plans)) {
                r->done = rc >= 0;
                r->failed = rc < 0;
                r->delivered += r->done;
                r->missed += r->failed;
                r->bytes += bytes;
        }
        pthread_mutex_unlock(&r->lock);
        if (rc < 0 && rc != -ECANCELED)
                told_missing(r, w, &e);
}

static void *run(void *arg) {
        struct replicate *r = arg;
        struct way y = { .retry = { .first = RETRY_FIRST_NS, .most = RETRY_MOST_NS } };
        uint64_t link_epoch = 0, link_plans = 0;

        pthread_mutex_lock(&r->lock);
        for (;;) {
                struct work w;

                while (!r->stop && (!r->sending || r->done || r->failed))
                        pthread_cond_wait(&r->changed, &r->lock);
                if (r->stop)
                        break;
                if (!r->endpoint[0]) {
                        r->failed = true; /* nobody to send to */
                        continue;
                }
                w = (struct work){ .r = r, .step = r->sending, .generation_epoch = r->sending_epoch, .keep = r->kept, .epoch = r->epoch, .plans = r->plans };
                memcpy(w.endpoint, r->endpoint, sizeof(w.endpoint));
                memcpy(w.key, r->key, sizeof(w.key));
                pthread_mutex_unlock(&r->lock);
                if (link_epoch != w.epoch || link_plans != w.plans) {
                        way_close(&y);
                        backoff_reset(&y.retry);
                }
                link_epoch = w.epoch;
                link_plans = w.plans;
                work(&w, &y);
                memset(w.key, 0, sizeof(w.key));
                pthread_mutex_lock(&r->lock);
        }
        pthread_mutex_unlock(&r->lock);
        way_close(&y);
        return NULL;
}

/* ------------------------------------------------------------------ plans */
/* Lock held. */
static void take_plan(struct replicate *r, const Fp8ctl__V1__ReplicaPlan *m) {
        const Fp8ctl__V1__ReplicaNode *n = NULL;

        if (m && m->key.len == REPLICA_KEY && r->id->rank < m->n_holders && m->holders[r->id->rank] >= 0 && (size_t)m->holders[r->id->rank] < m->n_nodes)
                n = m->nodes[m->holders[r->id->rank]];
        r->plans++;
        r->endpoint[0] = r->node[0] = '\0';
        if (!n || strlen(n->endpoint) >= sizeof(r->endpoint))
                return;
        snprintf(r->endpoint, sizeof(r->endpoint), "%s", n->endpoint);
        snprintf(r->node, sizeof(r->node), "%s", n->name);
        memcpy(r->key, m->key.data, REPLICA_KEY);
        r->said_ns = 0;
}

/* A holder was lost or came back. What was on its way to the old one is tried at the new one. */
static void on_replicas(void *arg, const Fp8ctl__V1__ReplicaPlan *m) {
        struct replicate *r = arg;

        pthread_mutex_lock(&r->lock);
        if (r->epoch == m->epoch) {
                take_plan(r, m);
                pthread_cond_broadcast(&r->changed);
                log_info("second copies go to %s", r->node[0] ? r->node : "nobody");
        }
        pthread_mutex_unlock(&r->lock);
}

void replicate_begin(struct replicate *r, const Fp8ctl__V1__RankPlan *p) {
        bool base = p->load && p->load->kind == FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA;
        uint64_t was = atomic_load(&replica_header(r->keep)->keep[0]); /* by this process, or by the one before it */

        pthread_mutex_lock(&r->lock);
        r->epoch = p->epoch;
        take_plan(r, p->replicas);
        r->sending = base ? p->load->step : 0;
        r->kept = was && was < r->sending ? was : r->sending; /* until all have delivered the one that the epoch begins from, theirs is the newest that survives a node */
        r->sending_epoch = base ? p->load->generation_epoch : 0;
        r->done = r->failed = false;
        pthread_cond_broadcast(&r->changed);
        pthread_mutex_unlock(&r->lock);
        replica_keep(r->keep, r->kept, r->sending);
}

void replicate_end(struct replicate *r) {
        pthread_mutex_lock(&r->lock);
        if (r->epoch && r->delivered + r->missed)
                log_info("epoch %" PRIu64 ": second copies of %" PRIu64 " snapshots delivered (%" PRIu64 " bytes, %" PRIu64 " by %s; given up %" PRIu64 " times), %" PRIu64 " not, %" PRIu64
                         " skipped", r->epoch, r->delivered, r->bytes, r->lane_bytes, r->lanes.ops ? r->lanes.ops->name : "RDMA", r->falls, r->missed, r->skipped);
        r->before.skipped += r->skipped;
        r->before.missed += r->missed;
        r->before.bytes += r->bytes;
        r->before.lane_bytes += r->lane_bytes;
        r->delivered = r->missed = r->skipped = r->bytes = r->lane_bytes = r->falls = 0;
        r->epoch = r->sending = 0;
        memset(r->key, 0, sizeof(r->key));
        pthread_cond_broadcast(&r->changed);
        pthread_mutex_unlock(&r->lock);
}

struct replicate_counts replicate_counted(struct replicate *r) {
        struct replicate_counts n;

        pthread_mutex_lock(&r->lock);
        n = (struct replicate_counts){ r->before.skipped + r->skipped, r->before.missed + r->missed, r->before.bytes + r->bytes, r->before.lane_bytes + r->lane_bytes };
        pthread_mutex_unlock(&r->lock);
        return n;
}

uint32_t replicate_bits(struct replicate *r) {
        uint32_t bits = 0;

        pthread_mutex_lock(&r->lock);
        if (r->sending)
                bits = r->done ? 0 : r->failed ? TRAINER_REQUEST_REPLICA_MISSING : TRAINER_REQUEST_REPLICA_BUSY;
        pthread_mutex_unlock(&r->lock);
        return bits;
}

void replicate_next(struct replicate *r, uint64_t step, uint32_t agreed) {
        pthread_mutex_lock(&r->lock);
        if (r->sending && !(agreed & TRAINER_REQUEST_REPLICA_BUSY)) {
                if (!(agreed & TRAINER_REQUEST_REPLICA_MISSING))
                        r->kept = r->sending;
                r->sending = 0;
        }
        if (r->sending) {
                r->skipped++;
        } else {
                r->sending = step;
                r->sending_epoch = r->epoch;
                r->done = r->failed = false;
                pthread_cond_broadcast(&r->changed);
        }
        replica_keep(r->keep, r->kept, r->sending);
        pthread_mutex_unlock(&r->lock);
}

/* ------------------------------------------------------------------ getting it back */
static int fetch_from(struct replicate *r, const Fp8ctl__V1__RankPlan *p, const Fp8ctl__V1__ReplicaNode *n, uint64_t room, const struct replica_wait *w, uint64_t *ret_bytes,
                      struct error *e) {
        struct replica_peer self = { .job = r->id->job, .epoch = p->epoch, .incarnation = r->id->incarnation, .rank = r->id->rank };
        struct replica_lanes lanes = { r->lanes, replica_pool(r->keep) };
        struct way y = { 0 };
        struct replica_slot slot;
        void *payload = NULL;
        int rc = replica_transport_find(n->endpoint, &y.t, e);

        if (rc == 0)
                rc = y.t->open(n->endpoint, &self, p->replicas->key.data, w, &lanes, &y.link, e);
        /* Into a slot that no snapshot is in, invalid until all of it is there and verified. */
        if (rc == 0)
                rc = replica_begin(r->keep, p->load->step, &payload, e);
        if (rc == 0)
                rc = y.t->get(y.link, p->load->step, p->load->generation_epoch, &slot, payload, room, e);
        if (rc == 0 && slot.rank != r->id->rank)
                rc = error_set(e, -EBADMSG, "found a snapshot of rank %" PRIu64, slot.rank);
        if (rc == 0) {
                slot.job_id = r->id->job;
                rc = replica_commit(r->keep, &slot, (struct digest){ .hi = slot.digest_hi, .lo = slot.digest_lo });
                *ret_bytes = slot.bytes;
        }
        if (y.link)
                look_at_traffic(r, p->epoch, p->load->step, &y);
        way_close(&y);
        return rc;
}

int replicate_fetch(struct replicate *r, const Fp8ctl__V1__RankPlan *p, uint64_t room, bool (*stop)(void *arg), void *arg, char *ret_node, size_t size, uint64_t *ret_bytes,
                    struct error *e) {
        struct replica_wait w = { stop, arg };
        int rc = -ENOENT;

        if (!p->replicas || p->replicas->key.len != REPLICA_KEY)
                return rc;
        for (size_t i = 0; i < p->load->n_sources; i++) {
                const Fp8ctl__V1__ReplicaSource *s = p->load->sources[i];
                const Fp8ctl__V1__ReplicaNode *n = s->node < p->replicas->n_nodes ? p->replicas->nodes[s->node] : NULL;
                char text[300];

                if (s->rank != r->id->rank || !n)
                        continue;
                for (uint64_t began = clock_mono_ns();;) {
                        rc = fetch_from(r, p, n, room, &w, ret_bytes, e);
                        /* It may hear of the epoch a moment after us. */
                        if ((rc != -EPIPE && rc != -ECONNREFUSED) || clock_mono_ns() > began + GIVE_UP_NS || (stop && stop(arg)))
                                break;
                        pause_ns(FETCH_RETRY_NS);
                }
                if (rc == 0)
                        snprintf(ret_node, size, "%s", n->name);
                if (rc == 0 || rc == -ECANCELED)
                        return rc;
                snprintf(text, sizeof(text), "the copy of step %" PRIu64 " on %.60s is of no use: %.150s", p->load->step, n->name, e->text);
                log_warning("%s", text);
                report_notice(r->control, r->id, p->epoch, p->load->step, "replica_rejected", "warning", text);
        }
        return rc;
}

/* ------------------------------------------------------------------ life */
int replicate_new(const struct identity *id, struct control *c, int fd, struct lane_device lanes, struct replicate **ret, struct error *e) {
        struct replicate *r = calloc(1, sizeof(*r));
        sigset_t all, old;
        int rc;

        if (!r)
                return error_errno(e, ENOMEM, "replicas");
        r->id = id;
        r->control = c;
        r->lanes = lanes;
        pthread_mutex_init(&r->lock, NULL);
        pthread_cond_init(&r->changed, NULL);
        rc = replica_map(fd, &r->map, e);
        if (rc == 0)
                rc = replica_map(fd, &r->keep, e);
        if (rc == 0) {
                (void)sigfillset(&all);
                (void)pthread_sigmask(SIG_SETMASK, &all, &old);
                rc = pthread_create(&r->thread, NULL, run, r);
                (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
                r->started = rc == 0;
                rc = rc ? error_errno(e, rc, "replicas: cannot start a thread") : 0;
        }
        if (rc < 0) {
                replicate_free(r);
                return rc;
        }
        control_on_replicas(c, on_replicas, r);
        *ret = r;
        return 0;
}

struct replicate *replicate_free(struct replicate *r) {
        if (!r)
                return NULL;
        control_on_replicas(r->control, NULL, NULL);
        if (r->started) {
                pthread_mutex_lock(&r->lock);
                r->stop = true;
                pthread_cond_broadcast(&r->changed);
                pthread_mutex_unlock(&r->lock);
                pthread_join(r->thread, NULL);
        }
        replica_unmap(r->map);
        replica_unmap(r->keep);
        pthread_cond_destroy(&r->changed);
        pthread_mutex_destroy(&r->lock);
        free(r);
        return NULL;
}
