/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stream to the controller: hello, heartbeats, the lease, reconnection.  Liveness is counted in heartbeats: gRPC's keepalive finds a
 * frozen peer only after seconds (and a stream may look open on a connection that leads nowhere), so a stream whose heartbeats are not acknowledged is
 * closed and opened again.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "proto/message.h"
#include "worker/agent/agent_private.h"
#include "worker/agent/gasp.h"

#define HELD_JOBS_MAX 256
#define ATTACH "/fp8ctl.v1.WorkerService/Attach"
#define RETRY_MIN_NS (100 * NSEC_PER_MSEC)
#define RETRY_MAX_NS (1000 * NSEC_PER_MSEC)
#define WELCOME_TIMEOUT_NS (3 * NSEC_PER_SEC)
#define ACKS_MISSED 4
#define FAST_NS (5 * NSEC_PER_MSEC) /* how often a resumed rank's step is looked at until its first new one */
#define LEASE_TTL_MIN_MS 100
#define LEASE_TTL_MAX_MS 600000

static void reopen(struct agent *a, const char *why);

static int send_now(struct agent *a, const Fp8ctl__V1__WorkerMessage *m) {
        size_t len = fp8ctl__v1__worker_message__get_packed_size(m);
        _cleanup_free_ uint8_t *buf = malloc(len ? len : 1);

        if (!buf)
                return -ENOMEM;
        if (!a->stream)
                return -EPIPE;
        fp8ctl__v1__worker_message__pack(m, buf);
        return rpc_stream_send(a->stream, buf, len);
}

/* False: it was not taken, and the stream is opened anew: what is said from now on is held until the next welcome. */
static bool send_or_reopen(struct agent *a, const Fp8ctl__V1__WorkerMessage *m) {
        int r = send_now(a, m);

        if (r == -EPIPE) {
                a->welcomed = false; /* on_closed is on its way */
        } else if (r < 0) {
                reopen(a, r == -ENOBUFS ? "the controller does not take what is said" : strerror(-r));
        }
        return r == 0;
}

void stream_send(struct agent *a, Fp8ctl__V1__WorkerMessage *m) {
        if (a->welcomed && send_or_reopen(a, m))
                return;
        if (a->n_held == AGENT_HELD_MAX) {
                protobuf_c_message_free_unpacked(a->held[0], NULL);
                memmove(a->held, a->held + 1, (AGENT_HELD_MAX - 1) * sizeof(a->held[0]));
                a->n_held--;
        }
        a->held[a->n_held] = message_copy(&m->base);
        if (a->held[a->n_held])
                a->n_held++;
}

/* ------------------------------------------------------------------ heartbeats and the lease */

static void tell_health(struct agent *a) {
        uint32_t pids[NODE_DEVICES_MAX];
        size_t n = 0;

        for (struct local_rank *r = a->ranks; r && n < NODE_DEVICES_MAX; r = r->next)
                if (!r->exited)
                        pids[n++] = r->pid;
        health_set_ranks(a->health, pids, n);
}

void stream_heartbeat(struct agent *a) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__Heartbeat h = FP8CTL__V1__HEARTBEAT__INIT;
        _cleanup_free_ Fp8ctl__V1__RankProgress *progress = NULL;
        _cleanup_free_ Fp8ctl__V1__RankProgress **list = NULL;
        _cleanup_free_ double *busy = NULL;
        size_t n = local_ranks_living(a), k = 0;

        if (!a->welcomed)
                return;
        progress = calloc(n + 1, sizeof(*progress));
        list = calloc(n + 1, sizeof(*list));
        busy = calloc((n + 1) * N_FLIGHT_PHASES, sizeof(*busy));
        if (!progress || !list || !busy)
                return;
        tell_health(a);
        for (struct local_rank *r = a->ranks; r && k < n; r = r->next) {
                /* A parked or loading rank's recorder still shows where it stood in an epoch that is over. */
                if (r->phase != FP8CTL__V1__RANK_PHASE__RANK_RUNNING && r->phase != FP8CTL__V1__RANK_PHASE__RANK_DONE)
                        continue;
                local_rank_progress(r, &progress[k], busy + k * N_FLIGHT_PHASES);
                list[k] = &progress[k];
                k++;
        }
        h.ranks = list;
        h.n_ranks = k;
        h.lease_number = a->lease.number;
        h.sent_mono_ns = clock_mono_ns();
        h.dropped_messages = a->dropped;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_HEARTBEAT;
        m.heartbeat = &h;
        send_now(a, &m);
}

static void on_heartbeat_due(void *arg) {
        struct agent *a = arg;
        uint64_t now = clock_mono_ns();

        if (!a->welcomed)
                return;
        if (now > a->last_ack_ns + ACKS_MISSED * a->heartbeat_ns && now > a->last_ack_ns + NSEC_PER_SEC) {
                reopen(a, "heartbeats are not answered");
                return;
        }
        stream_heartbeat(a);
        diagnose_watch(a);
        loop_timer_set(a->heartbeat, now + a->heartbeat_ns);
}

static void lease_changed(struct agent *a) {
        local_ranks_set_lease(a);
        loop_timer_set(a->lease_timer, a->lease.deadline_ns);
}

static void on_lease_over(void *arg) {
        struct agent *a = arg;

        if (!lease_expired(&a->lease, clock_mono_ns())) {
                loop_timer_set(a->lease_timer, a->lease.deadline_ns + NSEC_PER_MSEC);
                return;
        }
        if (local_ranks_living(a) > 0)
                log_error("lease %" PRIu64 " is lost: no heartbeat was acknowledged for %" PRIu64 " ms; killing %zu ranks", a->lease.number,
                          a->lease.ttl_ns / NSEC_PER_MSEC, local_ranks_living(a));
        for (struct local_rank *r = a->ranks; r; r = r->next)
                if (!r->exited)
                        link_kill(a, r->job_id, r->epoch, r->rank, r->incarnation, "the node's lease is lost");
}

/* The first new step ends an incident, and the second says how fast it goes on: the controller hears of both at once. */
static void on_fast(void *arg) {
        struct agent *a = arg;
        bool wait = false, beat = false;

        for (struct local_rank *r = a->ranks; r; r = r->next) {
                uint64_t step = atomic_load(&r->flight->step);

                if (r->await_steps == 0 || r->exited || r->phase != FP8CTL__V1__RANK_PHASE__RANK_RUNNING)
                        continue;
                if (step > r->seen_step) {
                        r->seen_step = step;
                        r->await_steps--;
                        beat = true;
                }
                wait = wait || r->await_steps > 0;
        }
        if (beat)
                stream_heartbeat(a);
        if (wait)
                loop_timer_set(a->fast, clock_mono_ns() + FAST_NS);
}

void stream_watch_steps(struct agent *a) {
        loop_timer_set(a->fast, clock_mono_ns() + FAST_NS);
}

/* ------------------------------------------------------------------ opening, closing */

static void say_hello(struct agent *a) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__WorkerHello hello = FP8CTL__V1__WORKER_HELLO__INIT;
        Fp8ctl__V1__WorkerLeaving leaving;
        char *features[] = { (char *)"replica-memory", (char *)"flight-recorder", (char *)"standby", (char *)"save-memory", (char *)"rollout-hook" /* the last: where there is one */ };
        size_t n_standbys = local_standbys(a);
        _cleanup_free_ Fp8ctl__V1__StandbyStatus *standbys = calloc(n_standbys + 1, sizeof(*standbys));
        _cleanup_free_ Fp8ctl__V1__StandbyStatus **standby_list = calloc(n_standbys + 1, sizeof(*standby_list));
        _cleanup_free_ Fp8ctl__V1__RankStatus *status = NULL;
        _cleanup_free_ Fp8ctl__V1__RankStatus **list = NULL;
        _cleanup_free_ Fp8ctl__V1__RankExited *exited = NULL;
        uint64_t held[HELD_JOBS_MAX];
        size_t n = 0, k = 0;

        for (struct local_rank *r = a->ranks; r; r = r->next)
                n++;
        status = calloc(n + 1, sizeof(*status));
        list = calloc(n + 1, sizeof(*list));
        exited = calloc(n + 1, sizeof(*exited));
        if (!status || !list || !exited || !standbys || !standby_list)
                return;
        local_standbys_status(a, standbys);
        for (size_t i = 0; i < n_standbys; i++)
                standby_list[i] = &standbys[i];
        for (struct local_rank *r = a->ranks; r; r = r->next, k++) {
                local_rank_status(r, &status[k], &exited[k]);
                list[k] = &status[k];
        }
        hello.protocol_min = AGENT_PROTOCOL_MIN;
        hello.protocol_max = AGENT_PROTOCOL_MAX;
        hello.features = features;
        hello.n_features = ARRAY_SIZE(features) - (a->config->rollout_hook ? 0 : 1);
        hello.node = &a->node.message;
        hello.ranks = list;
        hello.n_ranks = n;
        hello.standbys = standby_list;
        hello.n_standbys = n_standbys;
        hello.leaving = agent_leaving(a, &leaving) ? &leaving : NULL;
        hello.held_jobs = held;
        hello.n_held_jobs = holder_jobs(a->holder, held, ARRAY_SIZE(held));
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_HELLO;
        m.hello = &hello;
        a->hello_sent_ns = clock_mono_ns();
        send_now(a, &m);
}

static void retry_later(struct agent *a) {
        uint32_t jitter = 0;
        uint64_t wait = RETRY_MIN_NS << (a->failures < 4 ? a->failures : 4);

        if (getrandom(&jitter, sizeof(jitter), 0) != sizeof(jitter))
                jitter = (uint32_t)clock_mono_ns();
        wait = wait > RETRY_MAX_NS ? RETRY_MAX_NS : wait;
        wait = wait / 2 + (uint64_t)jitter % wait; /* 0.5 .. 1.5 of it, so that a cluster does not come back in one moment */
        a->failures++;
        loop_timer_set(a->reconnect, clock_mono_ns() + wait);
}

static void reopen(struct agent *a, const char *why) {
        /* Refused for good (version, certificate): said each time the reason is new, and tried again all the same: the controller may be upgraded. */
        if (a->welcomed || a->failures == 0 || strcmp(a->why, why) != 0)
                log_warning("controller %s: %s; trying again", a->config->controller, why);
        snprintf(a->why, sizeof(a->why), "%s", why);
        a->welcomed = false;
        a->stream = rpc_stream_free(a->stream);
        loop_timer_set(a->heartbeat, 0);
        retry_later(a);
}

static void on_closed(void *arg, int status, const char *text) {
        struct agent *a = arg;
        char why[sizeof(a->why)];

        snprintf(why, sizeof(why), "stream closed (status %d: %s)", status, text && *text ? text : "no text");
        reopen(a, why);
}

static void on_message(void *arg, const uint8_t *data, size_t len) {
        struct agent *a = arg;
        Fp8ctl__V1__ControllerMessage *m = fp8ctl__v1__controller_message__unpack(NULL, len, data);

        if (!m) {
                log_warning("controller: %zu bytes that are no ControllerMessage; dropped", len);
                a->dropped++;
                return;
        }
        orders_dispatch(a, m);
        fp8ctl__v1__controller_message__free_unpacked(m, NULL);
}

static void open_stream(void *arg) {
        struct agent *a = arg;
        struct error e = { 0 };

        if (a->stream) {
                /* the timer also guards the wait for a welcome */
                if (!a->welcomed)
                        reopen(a, "no welcome");
                return;
        }
        a->opened_ns = clock_mono_ns();
        if (rpc_stream_open(a->client, a->loop, ATTACH, on_message, on_closed, a, &a->stream, &e) < 0) {
                a->stream = NULL;
                reopen(a, e.text);
                return;
        }
        loop_timer_set(a->reconnect, a->opened_ns + WELCOME_TIMEOUT_NS);
        say_hello(a);
}

static void send_held(struct agent *a) {
        size_t n = 0;

        while (a->welcomed && n < a->n_held && send_or_reopen(a, (Fp8ctl__V1__WorkerMessage *)a->held[n]))
                protobuf_c_message_free_unpacked(a->held[n++], NULL);
        a->n_held -= n;
        memmove(a->held, a->held + n, a->n_held * sizeof(a->held[0]));
}

void stream_welcome(struct agent *a, const Fp8ctl__V1__Welcome *w) {
        if (w->protocol < AGENT_PROTOCOL_MIN || w->protocol > AGENT_PROTOCOL_MAX || w->lease_ttl_ms < LEASE_TTL_MIN_MS || w->lease_ttl_ms > LEASE_TTL_MAX_MS ||
            w->heartbeat_ms == 0 || w->heartbeat_ms > w->lease_ttl_ms || w->lease_number == 0) {
                reopen(a, "a welcome with a protocol, lease or heartbeat out of range");
                return;
        }
        a->welcomed = true;
        snprintf(a->cluster, sizeof(a->cluster), "%s", w->cluster_id);
        a->failures = 0;
        a->heartbeat_ns = w->heartbeat_ms * NSEC_PER_MSEC;
        a->last_ack_ns = clock_mono_ns();
        loop_timer_set(a->reconnect, 0);
        lease_welcome(&a->lease, w->lease_number, w->lease_ttl_ms * NSEC_PER_MSEC, a->hello_sent_ns);
        lease_changed(a);
        log_info("joined cluster %s: lease %" PRIu64 " of %" PRIu32 " ms, %zu ranks live here", w->cluster_id, w->lease_number, w->lease_ttl_ms,
                 local_ranks_living(a));
        if (a->leaving)
                agent_say_leaving(a); /* the notice may have come while nobody listened, or to a controller that is gone */
        prepared_send(a);
        send_held(a);
        if (a->welcomed)
                health_welcome(a->health, w->test_hooks);
        if (!a->welcomed)
                return;
        gasp_welcome(a, w);
        stream_heartbeat(a);
        loop_timer_set(a->heartbeat, clock_mono_ns() + a->heartbeat_ns);
        local_files_say(a);
}

void stream_acknowledged(struct agent *a, const Fp8ctl__V1__HeartbeatAck *m) {
        uint64_t now = clock_mono_ns();

        if (!lease_ack(&a->lease, m->lease_number, m->sent_mono_ns, now)) {
                a->dropped++;
                return;
        }
        a->last_ack_ns = now;
        lease_changed(a);
}

int stream_start(struct agent *a, struct error *e) {
        int r = loop_add_timer(a->loop, 0, open_stream, a, &a->reconnect);

        if (r == 0)
                r = loop_add_timer(a->loop, 0, on_heartbeat_due, a, &a->heartbeat);
        if (r == 0)
                r = loop_add_timer(a->loop, 0, on_lease_over, a, &a->lease_timer);
        if (r == 0)
                r = loop_add_timer(a->loop, 0, on_fast, a, &a->fast);
        if (r < 0)
                return error_errno(e, -r, "timers");
        r = rpc_client_new(a->config->controller, a->config->tls, &a->client, e);
        if (r < 0)
                return r;
        open_stream(a);
        return 0;
}

void stream_stop(struct agent *a) {
        a->welcomed = false;
        a->stream = rpc_stream_free(a->stream);
        a->client = rpc_client_free(a->client);
        for (size_t i = 0; i < a->n_held; i++)
                protobuf_c_message_free_unpacked(a->held[i], NULL);
        a->n_held = 0;
}
