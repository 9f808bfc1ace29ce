/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/agent/holder.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/net.h"
#include "proto/replica_link.h"

#define CONNECTIONS_MAX 1024
#define BACKLOG 1024
#define LOOK_MS 100

/* A rank's generations. */
struct held {
        struct held *next;
        uint64_t job;
        uint32_t rank;
        int fd;
        struct replica *map;
        uint64_t bytes;   /* that it takes of the bound */
        int users;        /* threads that read or write it now */
        bool writing, gone /* forgotten once its last user is through */;
};

/* What was told of a job. */
struct told {
        struct told *next;
        uint64_t job, epoch;
        bool planned;     /* with the key of this epoch */
        uint8_t key[REPLICA_KEY];
        uint64_t base_step, base_epoch;
        uint64_t *incarnations;
        bool *mine;
        size_t world;
};

struct holder {
        struct holder_config config;
        int listen_fd;
        char endpoint[300];
        pthread_t thread;
        bool started;
        atomic_bool stop;
        pthread_mutex_t lock;
        pthread_cond_t changed;
        /* under lock */
        struct held *held;
        struct told *told;
        uint64_t bytes;
        int connections;
};

struct connection {
        struct holder *holder;
        int fd;
};

/* ------------------------------------------------------------------ what is known; lock held */
static struct told *told_find(struct holder *h, uint64_t job) {
        for (struct told *t = h->told; t; t = t->next)
                if (t->job == job)
                        return t;
        return NULL;
}

static struct held *held_find(struct holder *h, uint64_t job, uint32_t rank) {
        for (struct held *k = h->held; k; k = k->next)
                if (k->job == job && k->rank == rank && !k->gone)
                        return k;
        return NULL;
}

static void told_free(struct told *t) {
        memset(t->key, 0, sizeof(t->key));
        free(t->incarnations);
        free(t->mine);
        free(t);
}

static void held_free(struct holder *h, struct held *k) {
        for (struct held **at = &h->held; *at; at = &(*at)->next)
                if (*at == k) {
                        *at = k->next;
                        break;
                }
        h->bytes -= k->bytes;
        replica_unmap(k->map);
        closep(&k->fd);
        free(k);
}

static void held_drop(struct holder *h, struct held *k) {
        k->gone = true;
        if (k->users == 0)
                held_free(h, k);
}

static void held_done(struct holder *h, struct held *k) {
        k->users--;
        if (k->gone && k->users == 0)
                held_free(h, k);
}

static struct told *told_epoch(struct holder *h, uint64_t job, uint64_t epoch) {
        struct told *t = told_find(h, job);

        if (!t) {
                t = calloc(1, sizeof(*t));
                if (!t)
                        return NULL;
                t->job = job;
                t->next = h->told;
                h->told = t;
        }
        if (epoch > t->epoch) {
                t->epoch = epoch;
                t->planned = false;
                memset(t->key, 0, sizeof(t->key));
        }
        return t;
}

/* ------------------------------------------------------------------ what is told; the loop's thread */
void holder_fence(struct holder *h, uint64_t job, uint64_t epoch) {
        pthread_mutex_lock(&h->lock);
        if (told_find(h, job) || h->held)
                told_epoch(h, job, epoch);
        pthread_mutex_unlock(&h->lock);
}

static int take_plan(struct holder *h, struct told *t, const Fp8ctl__V1__ReplicaPlan *m) {
        uint64_t *incarnations = calloc(m->n_holders + 1, sizeof(*incarnations));
        bool *mine = calloc(m->n_holders + 1, sizeof(*mine));

        if (!incarnations || !mine) {
                free(incarnations);
                free(mine);
                return -ENOMEM;
        }
        free(t->incarnations);
        free(t->mine);
        t->incarnations = incarnations;
        t->mine = mine;
        t->world = m->n_holders;
        for (size_t i = 0; i < m->n_holders; i++) {
                int32_t at = m->holders[i];

                incarnations[i] = m->incarnations[i];
                mine[i] = at >= 0 && (size_t)at < m->n_nodes && strcmp(m->nodes[at]->name, h->config.node) == 0;
        }
        t->base_step = m->base_step;
        t->base_epoch = m->base_epoch;
        memcpy(t->key, m->key.data, sizeof(t->key));
        t->planned = true;
        return 0;
}

/* The segments come into being in the loop's thread, which gives them to the spawner before anything can lie in them. */
static void make_segments(struct holder *h, const struct told *t) {
        for (size_t i = 0; i < t->world; i++) {
                struct error e = { 0 };
                struct held *k;

                if (!t->mine[i] || held_find(h, t->job, (uint32_t)i))
                        continue;
                k = calloc(1, sizeof(*k));
                if (!k)
                        return;
                k->job = t->job;
                k->rank = (uint32_t)i;
                if (replica_create(&k->fd, &e) < 0) {
                        log_warning("replica memory: %s", e.text);
                        free(k);
                        return;
                }
                h->config.keep(h->config.arg, FP8CTL__V1__KEPT_FD__KIND__REPLICA, k->job, k->rank, k->fd);
                k->next = h->held;
                h->held = k;
        }
}

void holder_plan(struct holder *h, const Fp8ctl__V1__ReplicaPlan *m) {
        struct told *t;

        if (!m || m->key.len != REPLICA_KEY || m->n_incarnations != m->n_holders || !h->endpoint[0])
                return;
        pthread_mutex_lock(&h->lock);
        t = told_epoch(h, m->job_id, m->epoch);
        if (t && m->epoch == t->epoch && take_plan(h, t, m) == 0)
                make_segments(h, t);
        pthread_mutex_unlock(&h->lock);
}

void holder_release(struct holder *h, uint64_t job) {
        struct held *next;

        pthread_mutex_lock(&h->lock);
        for (struct held *k = h->held; k; k = next) {
                next = k->next;
                if (k->job == job && !k->gone)
                        held_drop(h, k);
        }
        for (struct told **at = &h->told; *at; at = &(*at)->next)
                if ((*at)->job == job) {
                        struct told *t = *at;

                        *at = t->next;
                        told_free(t);
                        break;
                }
        pthread_mutex_unlock(&h->lock);
}

size_t holder_count(struct holder *h, uint64_t job) {
        size_t n = 0;

        pthread_mutex_lock(&h->lock);
        for (struct held *k = h->held; k; k = k->next)
                n += k->job == job && !k->gone;
        pthread_mutex_unlock(&h->lock);
        return n;
}

size_t holder_segments(struct holder *h, uint64_t job, int *ret_fds, size_t max) {
        size_t n = 0;

        pthread_mutex_lock(&h->lock);
        for (struct held *k = h->held; k && n < max; k = k->next) {
                int fd = k->job == job && !k->gone ? fcntl(k->fd, F_DUPFD_CLOEXEC, 3) : -1;

                if (fd >= 0)
                        ret_fds[n++] = fd;
        }
        pthread_mutex_unlock(&h->lock);
        return n;
}

size_t holder_jobs(struct holder *h, uint64_t *ret, size_t max) {
        size_t n = 0;

        pthread_mutex_lock(&h->lock);
        for (struct held *k = h->held; k && n < max; k = k->next) {
                bool known = k->gone;

                for (size_t i = 0; i < n && !known; i++)
                        known = ret[i] == k->job;
                if (!known)
                        ret[n++] = k->job;
        }
        pthread_mutex_unlock(&h->lock);
        return n;
}

/* ------------------------------------------------------------------ what ranks ask; threads of connections */
/* The job's row when `who` is its rank in the live epoch. */
static int check_peer(struct holder *h, const struct replica_peer *who, struct told **ret, struct error *e) {
        struct told *t = told_find(h, who->job);

        if (!t || who->epoch < t->epoch || !t->planned)
                return error_set(e, -ESTALE, "job %" PRIu64 ": found epoch %" PRIu64 ", expected %" PRIu64 "%s", who->job, who->epoch, t ? t->epoch : 0,
                                 t && t->planned ? "" : ", of which no plan is known here");
        if (who->epoch != t->epoch || who->rank >= t->world || t->incarnations[who->rank] != who->incarnation)
                return error_set(e, -EACCES, "job %" PRIu64 ": rank %" PRIu32 " incarnation %" PRIu64 " of epoch %" PRIu64 " is not part of it", who->job, who->rank, who->incarnation,
                                 who->epoch);
        *ret = t;
        return 0;
}

static int on_admit(void *arg, const struct replica_peer *who, uint8_t ret_key[REPLICA_KEY], struct error *e) {
        struct holder *h = arg;
        struct told *t;
        int r;

        pthread_mutex_lock(&h->lock);
        r = check_peer(h, who, &t, e);
        if (r == 0)
                memcpy(ret_key, t->key, REPLICA_KEY);
        pthread_mutex_unlock(&h->lock);
        return r;
}

/* Room for two generations of this size, within the bound. */
static int make_room(struct holder *h, struct held *k, uint64_t bytes, struct error *e) {
        uint64_t wanted = bytes * REPLICA_SLOTS_HELD;
        int r;

        if (k->map && replica_header(k->map)->slot_bytes >= bytes)
                return 0;
        if (bytes > h->config.memory || wanted > h->config.memory || h->bytes - k->bytes > h->config.memory - wanted)
                return error_set(e, -ENOSPC, "no room: replica memory is bounded to %" PRIu64 " bytes, %" PRIu64 " are in use and %" PRIu64 " are wanted", h->config.memory,
                                 h->bytes - k->bytes, wanted);
        k->map = replica_unmap(k->map);
        r = replica_size_slots(k->fd, bytes, REPLICA_SLOTS_HELD, e);
        if (r == 0)
                r = replica_map(k->fd, &k->map, e);
        if (r < 0)
                return r;
        h->bytes += wanted - k->bytes;
        k->bytes = wanted;
        return 0;
}

/* 1: the same one lies here already. */
static int have_it(const struct held *k, const struct replica_slot *what) {
        const struct replica_slot *slot;
        const void *payload;

        return k->map && replica_find(k->map, what->step, 0, &slot, &payload, NULL) == 0 && slot->epoch == what->epoch && slot->bytes == what->bytes &&
               slot->digest_hi == what->digest_hi && slot->digest_lo == what->digest_lo;
}

static int put_begin_locked(struct holder *h, const struct replica_peer *who, const struct replica_slot *what, uint64_t keep_step, void **ret_payload, struct held **ret,
                            struct error *e) {
        struct told *t;
        struct held *k;
        int r = check_peer(h, who, &t, e);

        if (r < 0)
                return r;
        k = held_find(h, who->job, who->rank);
        if (!t->mine[who->rank] || !k)
                return error_set(e, -EACCES, "job %" PRIu64 ": rank %" PRIu32 " has its second copy elsewhere", who->job, who->rank);
        if (what->epoch != t->epoch && (what->step != t->base_step || what->epoch != t->base_epoch))
                return error_set(e, -ESTALE, "job %" PRIu64 ": found a snapshot of epoch %" PRIu64 ", expected epoch %" PRIu64, who->job, what->epoch, t->epoch);
        if (what->bytes == 0 || what->shard_count != t->world)
                return error_set(e, -EBADMSG, "job %" PRIu64 ": found a snapshot of %" PRIu64 " bytes, one of %" PRIu64 " shards, expected %zu shards", who->job, what->bytes,
                                 what->shard_count, t->world);
        if (k->writing || k->users)
                return error_set(e, -EBUSY, "job %" PRIu64 ": the copy of rank %" PRIu32 " is in use", who->job, who->rank);
        if (have_it(k, what))
                return 1;
        r = make_room(h, k, what->bytes, e);
        if (r < 0)
                return r;
        replica_keep(k->map, keep_step < what->step ? keep_step : 0, 0);
        r = replica_begin(k->map, what->step, ret_payload, e);
        if (r < 0)
                return r;
        k->writing = true;
        k->users++;
        *ret = k;
        return 0;
}

static int on_put_begin(void *arg, const struct replica_peer *who, const struct replica_slot *what, uint64_t keep_step, void **ret_payload, void **ret_token, struct error *e) {
        struct holder *h = arg;
        struct held *k = NULL;
        int r;

        pthread_mutex_lock(&h->lock);
        r = put_begin_locked(h, who, what, keep_step, ret_payload, &k, e);
        *ret_token = k;
        pthread_mutex_unlock(&h->lock);
        return r;
}

static int on_put_end(void *arg, const struct replica_peer *who, const struct replica_slot *what, void *token, bool whole, struct error *e) {
        struct holder *h = arg;
        struct held *k = token;
        struct told *t;
        int r;

        pthread_mutex_lock(&h->lock);
        k->writing = false;
        r = whole ? check_peer(h, who, &t, e) : -EBADMSG;
        if (r == 0 && !k->gone)
                r = replica_commit(k->map, what, (struct digest){ .hi = what->digest_hi, .lo = what->digest_lo });
        held_done(h, k);
        pthread_mutex_unlock(&h->lock);
        return r;
}

static int on_get_begin(void *arg, const struct replica_peer *who, uint64_t step, uint64_t epoch, struct replica_slot *ret, const void **ret_payload, void **ret_token,
                        struct error *e) {
        struct holder *h = arg;
        const struct replica_slot *slot = NULL;
        struct told *t;
        struct held *k;
        int r;

        pthread_mutex_lock(&h->lock);
        r = check_peer(h, who, &t, e);
        k = r == 0 ? held_find(h, who->job, who->rank) : NULL;
        if (r == 0 && (!k || !k->map))
                r = error_set(e, -ENOENT, "job %" PRIu64 ": nothing of rank %" PRIu32 " lies here", who->job, who->rank);
        if (r == 0)
                r = replica_find(k->map, step, 0, &slot, ret_payload, e); /* whoever gets it verifies it */
        if (r == 0 && (slot->epoch != epoch || slot->job_id != who->job || slot->rank != who->rank))
                r = error_set(e, -ENOENT, "job %" PRIu64 " rank %" PRIu32 ": step %" PRIu64 " lies here of epoch %" PRIu64 ", not of %" PRIu64, who->job, who->rank, step, slot->epoch, epoch);
        if (r == 0) {
                *ret = *slot;
                k->users++;
                *ret_token = k;
        }
        pthread_mutex_unlock(&h->lock);
        return r;
}

static void on_get_end(void *arg, void *token) {
        struct holder *h = arg;

        pthread_mutex_lock(&h->lock);
        held_done(h, token);
        pthread_mutex_unlock(&h->lock);
}

static struct lane_pool on_pool(void *arg, void *token) {
        return replica_pool(((struct held *)token)->map); /* in use, so it stays as it is */
}

/* ------------------------------------------------------------------ threads */
static bool stopping(void *arg) {
        return atomic_load(&((struct holder *)arg)->stop);
}

static void *serve(void *arg) {
        struct connection *c = arg;
        struct holder *h = c->holder;
        const struct replica_host host = { h, on_admit, on_put_begin, on_put_end, on_get_begin, on_get_end, on_pool, h->config.lanes };
        const struct replica_wait wait = { stopping, h };
        struct error e = { 0 };

        if (replica_serve(c->fd, &host, &wait, &e) < 0 && e.code != -EPIPE && e.code != -ECANCELED)
                log_info("replica memory: a connection ended: %s", e.text);
        close(c->fd);
        free(c);
        pthread_mutex_lock(&h->lock);
        h->connections--;
        pthread_cond_broadcast(&h->changed);
        pthread_mutex_unlock(&h->lock);
        return NULL;
}

static int spawn_thread(pthread_t *ret, void *(*fn)(void *), void *arg, bool detached) {
        pthread_attr_t attr;
        sigset_t all, old;
        int r;

        (void)sigfillset(&all);
        (void)pthread_sigmask(SIG_SETMASK, &all, &old);
        pthread_attr_init(&attr);
        if (detached)
                pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(&attr, 256 << 10);
        r = pthread_create(ret, &attr, fn, arg);
        pthread_attr_destroy(&attr);
        (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
        return -r;
}

/* A rank may be silent between its snapshots, and a node whose power went says no good-bye: the kernel asks, so that its threads do not wait for ever. */
static void keep_alive(int fd) {
        static const int on = 1, idle_s = 30, every_s = 10, times = 3;

        (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
        (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
        (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every_s, sizeof(every_s));
        (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &times, sizeof(times));
}

static void take_connection(struct holder *h, int fd) {
        struct connection *c = malloc(sizeof(*c));
        pthread_t thread;
        bool room;

        pthread_mutex_lock(&h->lock);
        room = c && h->connections < CONNECTIONS_MAX;
        h->connections += room;
        pthread_mutex_unlock(&h->lock);
        if (room) {
                keep_alive(fd);
                *c = (struct connection){ .holder = h, .fd = fd };
                if (spawn_thread(&thread, serve, c, true) == 0)
                        return;
                pthread_mutex_lock(&h->lock);
                h->connections--;
                pthread_mutex_unlock(&h->lock);
        }
        free(c);
        close(fd);
}

static void *accept_all(void *arg) {
        struct holder *h = arg;

        while (!stopping(h)) {
                struct pollfd p = { .fd = h->listen_fd, .events = POLLIN };
                int fd;

                if (poll(&p, 1, LOOK_MS) <= 0)
                        continue;
                fd = accept4(h->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
                if (fd >= 0)
                        take_connection(h, fd);
                else if (errno == EMFILE || errno == ENFILE)
                        (void)poll(NULL, 0, LOOK_MS);
        }
        return NULL;
}

/* ------------------------------------------------------------------ life */
int holder_new(const struct holder_config *c, struct holder **ret, struct error *e) {
        struct holder *h = calloc(1, sizeof(*h));

        if (!h)
                return error_errno(e, ENOMEM, "replica memory");
        h->config = *c;
        h->listen_fd = -1;
        pthread_mutex_init(&h->lock, NULL);
        pthread_cond_init(&h->changed, NULL);
        *ret = h;
        return 0;
}

struct holder *holder_free(struct holder *h) {
        struct told *next;

        if (!h)
                return NULL;
        atomic_store(&h->stop, true);
        if (h->started)
                pthread_join(h->thread, NULL);
        pthread_mutex_lock(&h->lock);
        while (h->connections)
                pthread_cond_wait(&h->changed, &h->lock);
        pthread_mutex_unlock(&h->lock);
        while (h->held)
                held_free(h, h->held);
        for (struct told *t = h->told; t; t = next) {
                next = t->next;
                told_free(t);
        }
        closep(&h->listen_fd);
        pthread_cond_destroy(&h->changed);
        pthread_mutex_destroy(&h->lock);
        free(h);
        return NULL;
}

void holder_kept(struct holder *h, Fp8ctl__V1__KeptFd__Kind kind, uint64_t job, uint32_t rank, int fd) {
        struct held *k;

        if (kind == FP8CTL__V1__KEPT_FD__KIND__LISTENER && h->listen_fd < 0) {
                h->listen_fd = fd;
                return;
        }
        pthread_mutex_lock(&h->lock);
        k = kind == FP8CTL__V1__KEPT_FD__KIND__REPLICA && !held_find(h, job, rank) ? calloc(1, sizeof(*k)) : NULL;
        if (k) {
                k->job = job;
                k->rank = rank;
                k->fd = fd;
                if (replica_map(fd, &k->map, NULL) == 0 && replica_header(k->map)->slot_bytes == 0)
                        k->map = replica_unmap(k->map); /* nothing ever came */
                if (k->map) {
                        k->bytes = replica_header(k->map)->slot_bytes * REPLICA_SLOTS_HELD;
                        h->bytes += k->bytes;
                }
                k->next = h->held;
                h->held = k;
        } else {
                close(fd);
        }
        pthread_mutex_unlock(&h->lock);
}

int holder_start(struct holder *h, struct error *e) {
        _cleanup_free_ char *where = NULL;
        int r = 0;

        if (h->config.memory == 0 || h->started)
                return 0;
        if (h->listen_fd < 0) {
                r = net_listen(h->config.host, BACKLOG, &h->listen_fd, e);
                if (r < 0)
                        return r;
                h->config.keep(h->config.arg, FP8CTL__V1__KEPT_FD__KIND__LISTENER, 0, 0, h->listen_fd);
        }
        r = net_endpoint(h->config.host, h->listen_fd, &where, e);
        if (r < 0)
                return r;
        snprintf(h->endpoint, sizeof(h->endpoint), "tcp:%s", where);
        r = spawn_thread(&h->thread, accept_all, h, false);
        if (r < 0) {
                h->endpoint[0] = '\0';
                return error_errno(e, -r, "replica memory: cannot start a thread");
        }
        h->started = true;
        return 0;
}

const char *holder_endpoint(const struct holder *h) {
        return h->endpoint;
}
