/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The core's entry points.  Each handles one event, then settle(): queued jobs are placed, what changed is stored, waiting requests are answered, the alarm is set.
 * A worker's message goes through one table of kinds; each kind that belongs to a rank is checked against (job, rank, incarnation, epoch) before its handler sees it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/core/core.h"
#include "daemon/core/diagnose.h"
#include "daemon/core/node_pairs.h"

#define NOTICE_WINDOW_MS 10000u /* events from one job's ranks: */
#define NOTICES_PER_WINDOW 20u  /* at most so many in the window; the rest is counted as one */

/* ------------------------------------------------------------------ small things */
void core_text(char *dst, size_t size, const char *src) {
        size_t n = 0;

        if (!src)
                src = "";
        for (; src[n] && n + 1 < size; n++)
                dst[n] = (unsigned char)src[n] < 0x20 || src[n] == 0x7f ? ' ' : src[n];
        /* Never half a UTF-8 sequence: protobuf strings must be whole. */
        while (n > 0 && src[n] && ((unsigned char)src[n] & 0xc0) == 0x80)
                n--;
        dst[n] = 0;
}

/* So that "rank 5 on node-2" can stand before it. */
void core_cause(char *dst, size_t size, const Fp8ctl__V1__RankExited *m) {
        char said[TEXT_MAX_LEN - 8];

        core_text(said, sizeof(said), m->cause);
        if (m->oom)
                snprintf(dst, size, "was killed by the kernel: out of memory");
        else
                snprintf(dst, size, "%s%s", strncmp(said, "killed", 6) == 0 ? "was " : "", said);
}

char *core_strdup(const char *src, size_t max) {
        size_t n = src ? strnlen(src, max - 1) : 0;
        char *s = malloc(n + 1);

        if (s)
                core_text(s, n + 1, src);
        return s;
}

uint64_t core_now(const struct controller *c) {
        return c->io.mono_ns(c->io.arg);
}

void core_log(const struct controller *c, int level, const char *fmt, ...) {
        char text[1200];
        va_list ap;

        va_start(ap, fmt);
        vsnprintf(text, sizeof(text), fmt, ap);
        va_end(ap);
        if (c->io.log)
                c->io.log(c->io.arg, level, text);
}

void core_drop(struct controller *c, enum drop_kind why, const char *what) {
        static const char *const names[N_DROPS] = { "malformed", "unknown job or rank", "other epoch", "other incarnation", "other lease" };

        c->drops[why]++;
        core_log(c, 7, "dropped %s: %s", what, names[why]);
}

void core_persist(struct controller *c, enum store_op_kind kind, const char *key, const void *value, size_t len) {
        struct store_op op = { .kind = kind, .key = key, .value = value, .len = len };

        c->io.persist(c->io.arg, &op);
}

static uint64_t sooner(uint64_t a, uint64_t b) {
        return !a ? b : !b ? a : a < b ? a : b;
}

/* nodes_as_were: no node's deadline came nearer. With thousands of nodes all of them are not looked at after each of a rank's words. */
static void settle_after(struct controller *c, bool nodes_as_were) {
        uint64_t at;

        if (!c->running || c->failed)
                return;
        nodes_as_were = nodes_as_were && !c->schedule_wanted && !c->cluster_dirty;
        rollout_look(c);
        if (c->schedule_wanted) {
                job_schedule(c);
                layout_look(c);
                standbys_look(c);
        }
        for (size_t i = 0; i < c->n_jobs; i++)
                if (c->jobs[i]->dirty)
                        record_put_job(c, c->jobs[i]);
        retention_apply(c);
        if (c->cluster_dirty)
                record_put_cluster(c);
        if (c->events_new) {
                c->events_new = false;
                request_events_new(c);
        }
        if (!nodes_as_were || core_now(c) >= c->nodes_deadline)
                c->nodes_deadline = node_next_deadline(c);
        at = sooner(sooner(c->nodes_deadline, request_next_deadline(c)), rollout_deadline(c));
        for (size_t i = 0; i < c->n_jobs; i++)
                at = sooner(at, job_next_deadline(c->jobs[i]));
        if (at)
                c->io.wake_at(c->io.arg, at);
}

static void settle(struct controller *c) {
        settle_after(c, false);
}

/* ------------------------------------------------------------------ life */
int controller_new(const struct cluster_io *io, const struct controller_config *config, struct controller **ret, struct error *e) {
        struct controller *c = calloc(1, sizeof(*c));

        if (!c)
                return error_set(e, -ENOMEM, "no memory for the controller");
        c->io = *io;
        c->config = *config;
        if (!c->config.lease_ttl_ms)
                c->config.lease_ttl_ms = 10000;
        if (!c->config.heartbeat_ms)
                c->config.heartbeat_ms = 1000;
        if (!c->config.keep_jobs)
                c->config.keep_jobs = 1000;
        if (!c->config.keep_event_days)
                c->config.keep_event_days = 30;
        if (!c->config.health_share)
                c->config.health_share = 50;
        if (!c->config.health_window_ms)
                c->config.health_window_ms = 300000;
        if (!c->config.health_settle_ms)
                c->config.health_settle_ms = 60000;
        core_text(c->version, sizeof(c->version), config->version);
        c->config.version = c->version;
        c->next_job = c->next_event = c->next_lease = c->next_relay = c->next_file = 1;
        if (c->config.lease_ttl_ms <= c->config.restart_budget_ms || c->config.lease_ttl_ms < 2 * c->config.heartbeat_ms) {
                int r = error_set(e, -EINVAL, "lease TTL: found %u ms, expected more than the restart budget (%u ms) and at least two heartbeats (%u ms each)", c->config.lease_ttl_ms,
                                  c->config.restart_budget_ms, c->config.heartbeat_ms);
                free(c);
                return r;
        }
        *ret = c;
        return 0;
}

struct controller *controller_free(struct controller *c) {
        if (!c)
                return NULL;
        request_free_all(c);
        for (size_t i = 0; i < c->n_sessions; i++)
                free(c->sessions[i]);
        free(c->sessions);
        for (size_t i = 0; i < c->n_jobs; i++)
                job_free(c->jobs[i]);
        for (size_t i = 0; i < c->n_nodes; i++)
                node_free(c->nodes[i]);
        event_log_free(c);
        rollout_free_all(c);
        free(c->jobs);
        free(c->nodes);
        free(c);
        return NULL;
}

int controller_load(struct controller *c, const char *key, const void *value, size_t len, struct error *e) {
        return record_load(c, key, value, len, e);
}

/* A placed job of an earlier life: nobody is known to be alive until its node says so. */
static void take_up(struct controller *c, struct job *j) {
        if (j->rec == REC_IDLE)
                return;
        if (j->rec == REC_SUSPECT)
                j->rec = REC_WATCH; /* a rank that faulted is found PARKED in its worker's hello */
        j->rec_since = core_now(c);
        j->start_is_new = j->state == FP8CTL__V1__JOB_STATE__STARTING;
        for (int i = 0; i < j->world; i++) {
                struct rank *r = &j->ranks[i];
                struct device *d = r->node ? node_device(r->node, r->device) : NULL;

                r->heard = false;
                r->since = core_now(c);
                if (r->state == RANK_LOST || !r->incarnation)
                        rank_set(c, r, RANK_LOST);
                else
                        r->state = j->rec == REC_FENCE ? RANK_PARKING : j->rec == REC_RESTORE ? RANK_LOADED : RANK_RUN;
                if (d) {
                        d->job = j->id;
                        d->rank = (uint32_t)i;
                        d->incarnation = r->incarnation;
                }
        }
        if (j->rec == REC_FENCE)
                replicas_resume(c, j);
        if (j->rec == REC_FENCE || j->rec == REC_RESTORE)
                j->rec_deadline = core_now(c) + NSEC_PER_SEC;
        if (!j->start_is_new && j->rec != REC_WATCH) {
                j->inc = (struct incident){ .open = true, .detected = core_now(c), .best_step = j->best_step, .cause_final = true };
                snprintf(j->inc.cause, sizeof(j->inc.cause), "%.300s (the controller was restarted meanwhile)", j->last_cause[0] ? j->last_cause : "a failure");
                snprintf(j->inc.source, sizeof(j->inc.source), "as decided before");
        }
        j->leaving = j->state == FP8CTL__V1__JOB_STATE__RECOVERING && j->stop_kind == STOP_REQUEUE && j->rec == REC_FENCE;
        if (j->state == FP8CTL__V1__JOB_STATE__STOPPING || j->stop_kind == STOP_RESIZE || j->leaving)
                j->stop_deadline = core_now(c) + (uint64_t)j->spec->recovery.grace_ms * NSEC_PER_MSEC + NSEC_PER_SEC;
}

static bool checked_job(const struct job *j) {
        if (j->rec == REC_IDLE)
                return true;
        for (int i = 0; i < j->world; i++)
                if (!j->ranks[i].node)
                        return false;
        return true;
}

int controller_start(struct controller *c, struct error *e) {
        uint64_t now = core_now(c);

        c->started = now;
        c->started_wall_ms = c->io.wall_ms(c->io.arg);
        if (!c->cluster_id[0]) {
                uint8_t b[16];

                c->io.random(c->io.arg, b, sizeof(b));
                for (size_t i = 0; i < sizeof(b); i++)
                        snprintf(c->cluster_id + 2 * i, 3, "%02x", b[i]);
        }
        c->cluster_dirty = true;
        /* An earlier life may have renewed a lease until its last moment: a whole TTL from now. */
        for (size_t i = 0; i < c->n_nodes; i++)
                if (c->nodes[i]->state != NODE_LOST)
                        c->nodes[i]->lease_until = now + (uint64_t)c->config.lease_ttl_ms * NSEC_PER_MSEC;
        for (size_t i = 0; i < c->n_jobs; i++) {
                if (!checked_job(c->jobs[i]))
                        return error_set(e, -EBADMSG, "job %" PRIu64 ": found a live epoch without a place for every rank", c->jobs[i]->id);
                take_up(c, c->jobs[i]);
        }
        if (rollout_start(c, e) < 0)
                return -EBADMSG;
        c->running = true;
        event_add(c, &(struct event_of){ .rank = -1 }, "controller_started", "fp8d %s: %zu nodes and %zu jobs known; leases of an earlier life run out in %.1f s", c->version, c->n_nodes, c->n_jobs,
                  c->config.lease_ttl_ms / 1e3);
        for (size_t i = 0; i < c->n_jobs; i++)
                save_resume_clearing(c, c->jobs[i]);
        c->schedule_wanted = true;
        settle(c);
        return 0;
}

/* ------------------------------------------------------------------ messages of workers */
/* What names a rank in a message. */
struct address {
        uint64_t job, epoch, incarnation;
        uint32_t rank;
};

static void on_ready(struct controller *c, struct job *j, struct rank *r, const Fp8ctl__V1__RankReady *m) {
        if (!m->endpoint || !m->endpoint[0] || strlen(m->endpoint) >= ENDPOINT_MAX_LEN) {
                core_drop(c, DROP_MALFORMED, "rank_ready");
                return;
        }
        free(r->endpoint);
        free(r->fingerprint);
        r->endpoint = core_strdup(m->endpoint, ENDPOINT_MAX_LEN);
        r->fingerprint = core_strdup(m->fingerprint, 512);
        r->pid = m->pid;
        if (j->rec == REC_FENCE && r->state == RANK_STARTED && m->epoch == j->epoch)
                rank_set(c, r, RANK_READY);
        recovery_check(c, j);
}

static void on_parked(struct controller *c, struct job *j, struct rank *r, const Fp8ctl__V1__RankParked *m) {
        if (j->rec != REC_FENCE)
                return;
        if (m->step <= (uint64_t)j->spec->train.steps && m->step > j->best_step)
                j->best_step = m->step;
        if (r->state == RANK_PARKING)
                rank_set(c, r, RANK_PARKED);
        else if (r->state == RANK_STARTED)
                rank_set(c, r, r->endpoint ? RANK_READY : RANK_STARTED);
        recovery_check(c, j);
}

static void on_running(struct controller *c, struct job *j, struct rank *r, const Fp8ctl__V1__RankRunning *m) {
        if (j->rec != REC_RESTORE && j->rec != REC_SUSPECT)
                return;
        if (m->step <= (uint64_t)j->spec->train.steps) {
                r->step = m->step;
                if (j->load.kind == FP8CTL__V1__LOAD_SOURCE__KIND__CHECKPOINT && !j->load.step)
                        j->load.step = m->step; /* where the checkpoint it was submitted with stands */
        }
        replicas_loaded(r, m);
        if (r->state == RANK_LOADED)
                rank_set(c, r, RANK_RUN);
        recovery_check(c, j);
}

static void on_done(struct controller *c, struct job *j, struct rank *r, const Fp8ctl__V1__RankDone *m) {
        if (j->rec == REC_FENCE)
                return;
        r->stopped = m->stopped;
        if (m->progress) {
                Fp8ctl__V1__RankProgress p = *m->progress;

                p.job_id = m->job_id;
                p.epoch = m->epoch;
                p.rank = m->rank;
                p.incarnation = m->incarnation;
                job_progress(c, r->node, &p);
        }
        if (!job_placed(j))
                return;
        rank_set(c, r, RANK_FINISHED);
        recovery_check(c, j);
}

static void on_fault(struct controller *c, struct job *j, struct rank *r, const Fp8ctl__V1__RankFault *m) {
        recovery_fault(c, j, r, m);
}

static void on_notice(struct controller *c, struct job *j, struct rank *r, const Fp8ctl__V1__RankNotice *m) {
        uint64_t now = core_now(c);
        char kind[40], text[TEXT_MAX_LEN];
        const char *severity = m->severity && (strcmp(m->severity, "warning") == 0 || strcmp(m->severity, "error") == 0) ? m->severity : "info";

        if (now >= j->notice_window + NOTICE_WINDOW_MS * NSEC_PER_MSEC) {
                if (j->notices > NOTICES_PER_WINDOW)
                        event_add(c, &(struct event_of){ .job = j, .rank = -1, .severity = "warning" }, "notices_dropped", "%" PRIu64 " more notices from ranks within %u s",
                                  j->notices - NOTICES_PER_WINDOW, NOTICE_WINDOW_MS / 1000);
                j->notice_window = now;
                j->notices = 0;
        }
        if (++j->notices > NOTICES_PER_WINDOW)
                return;
        core_text(kind, sizeof(kind), m->kind && m->kind[0] ? m->kind : "notice");
        core_text(text, sizeof(text), m->text);
        event_add(c, &(struct event_of){ .job = j, .node = r->node, .rank = (int32_t)m->rank, .severity = severity }, kind, "step %" PRIu64 ": %s", m->step, text);
}

static void on_prepared(struct controller *c, struct job *j, struct rank *r, const Fp8ctl__V1__CheckpointPrepared *m) {
        save_prepared(c, j, r, m);
}

/* Epoch rules of each kind of message of a rank. */
enum epoch_rule { EPOCH_LIVE, EPOCH_ANY };

/* NULL: dropped and counted. A process that speaks for a rank and is not it is killed: it may hold a device. */
static struct rank *addressed(struct controller *c, struct session *s, const struct address *a, enum epoch_rule rule, const char *what, struct job **ret) {
        struct job *j = job_find(c, a->job);
        struct rank *r;

        if (!j || a->rank >= (uint32_t)j->world) {
                core_drop(c, DROP_JOB, what);
                return NULL;
        }
        r = &j->ranks[a->rank];
        if (!job_placed(j) || (r->incarnation != a->incarnation && !PLANTED(STALE_ADOPTION)) || r->node != s->node || r->state == RANK_LOST) {
                core_drop(c, DROP_INCARNATION, what);
                node_kill_one(c, s->node, a->job, a->epoch, a->rank, a->incarnation, "not part of its job any more");
                return NULL;
        }
        if (!r->heard || (rule == EPOCH_LIVE && a->epoch != j->epoch && !PLANTED(NO_EPOCH_CHECK))) {
                core_drop(c, DROP_EPOCH, what);
                return NULL;
        }
        *ret = j;
        return r;
}

static void on_exited(struct controller *c, struct session *s, const Fp8ctl__V1__RankExited *m) {
        struct job *j = job_find(c, m->job_id);
        char why[TEXT_MAX_LEN];
        struct rank *r;

        if (!j || m->rank >= (uint32_t)j->world) {
                if (m->reaped)
                        node_free_device(c, s->node, m->job_id, m->incarnation); /* of a job that was forgotten */
                core_drop(c, DROP_JOB, "rank_exited");
                return;
        }
        core_cause(why, sizeof(why), m);
        r = &j->ranks[m->rank];
        if (m->reaped && r->zombie == m->incarnation)
                r->zombie = 0;
        if (job_placed(j) && (r->incarnation == m->incarnation || PLANTED(STALE_ADOPTION)) && r->node == s->node && r->state != RANK_LOST) {
                if (m->reaped)
                        node_free_device(c, s->node, j->id, m->incarnation);
                recovery_rank_lost(c, j, m->rank, m->reaped && why[0] ? why : "died", m->reaped ? LOST_REAPED : LOST_DYING, true);
                return;
        }
        if (m->reaped) {
                node_free_device(c, s->node, j->id, m->incarnation);
                if (job_placed(j) && why[0])
                        recovery_refine_cause(c, j, m->incarnation, why);
        }
}

#define RANK_MESSAGE(field, rule, handler)                                                                                                                   \
        do {                                                                                                                                                  \
                struct job *j_;                                                                                                                               \
                struct rank *r_ = (field) ? addressed(c, s, &(struct address){ (field)->job_id, (field)->epoch, (field)->incarnation, (field)->rank }, (rule), \
                                                      #field, &j_)                                                                                           \
                                          : NULL;                                                                                                             \
                if (!(field))                                                                                                                                 \
                        core_drop(c, DROP_MALFORMED, #field);                                                                                                 \
                if (r_)                                                                                                                                       \
                        handler(c, j_, r_, (field));                                                                                                          \
        } while (0)

#define NODE_MESSAGE(field, handler)                               \
        do {                                                       \
                if (field)                                         \
                        handler(c, s, (field));                    \
                else                                               \
                        core_drop(c, DROP_MALFORMED, #field);      \
        } while (0)

static void on_inventory(struct controller *c, struct session *s, const Fp8ctl__V1__Inventory *m) {
        struct job *j = job_find(c, m->job_id);

        if (!j || !job_placed(j))
                core_drop(c, DROP_JOB, "inventory");
        else
                recovery_inventory(c, j, s->node, m);
}

static void on_local_copies(struct controller *c, struct session *s, const Fp8ctl__V1__LocalCopies *m) {
        replicas_local(c, s->node, m);
}

static void dispatch(struct controller *c, struct session *s, const Fp8ctl__V1__WorkerMessage *m) {
        switch (m->body_case) {
        case FP8CTL__V1__WORKER_MESSAGE__BODY_HEARTBEAT: NODE_MESSAGE(m->heartbeat, node_heartbeat); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_READY: RANK_MESSAGE(m->rank_ready, EPOCH_ANY, on_ready); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_PARKED: RANK_MESSAGE(m->rank_parked, EPOCH_LIVE, on_parked); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_RUNNING: RANK_MESSAGE(m->rank_running, EPOCH_LIVE, on_running); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_EXITED: NODE_MESSAGE(m->rank_exited, on_exited); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_FAULT: RANK_MESSAGE(m->rank_fault, EPOCH_LIVE, on_fault); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_DONE: RANK_MESSAGE(m->rank_done, EPOCH_LIVE, on_done); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_INVENTORY: NODE_MESSAGE(m->inventory, on_inventory); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_CHECKPOINT_PREPARED: RANK_MESSAGE(m->checkpoint_prepared, EPOCH_LIVE, on_prepared); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_NOTICE: RANK_MESSAGE(m->rank_notice, EPOCH_ANY, on_notice); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_PREFLIGHT_REPLY: NODE_MESSAGE(m->preflight_reply, request_preflight_reply); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_FETCH_REPLY: NODE_MESSAGE(m->fetch_reply, request_fetch_reply); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_MEMORY_SAVED: NODE_MESSAGE(m->memory_saved, rescue_saved); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_LOCAL_COPIES: NODE_MESSAGE(m->local_copies, on_local_copies); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_LEAVING: NODE_MESSAGE(m->leaving, node_leaving); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_STANDBY_STATUS: NODE_MESSAGE(m->standby_status, standby_status); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_HEALTH_REPORT: NODE_MESSAGE(m->health_report, health_report); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_DIAGNOSE_REPLY: NODE_MESSAGE(m->diagnose_reply, diagnose_reply); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_NODE_PAIR_REPLY: NODE_MESSAGE(m->node_pair_reply, node_pair_reply); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_NODE_TEST_REPLY: NODE_MESSAGE(m->node_test_reply, node_test_reply); break;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_ROLLOUT_CHANGED: NODE_MESSAGE(m->rollout_changed, rollout_changed); break;
        default: core_drop(c, DROP_MALFORMED, "worker message"); break;
        }
}

size_t core_position(const void *list, size_t n, int (*order)(const void *list, size_t i, const void *key), const void *key) {
        size_t lo = 0, hi = n;

        while (lo < hi) {
                size_t mid = (lo + hi) / 2;

                if (order(list, mid, key) < 0)
                        lo = mid + 1;
                else
                        hi = mid;
        }
        return lo;
}

static int by_id(const void *list, size_t i, const void *key) {
        uint64_t id = ((struct session *const *)list)[i]->id, wanted = *(const uint64_t *)key;

        return id < wanted ? -1 : id > wanted;
}

static size_t session_position(const struct controller *c, uint64_t id) {
        return core_position(c->sessions, c->n_sessions, by_id, &id);
}

struct session *session_find(const struct controller *c, uint64_t id) {
        size_t at = session_position(c, id);

        return at < c->n_sessions && c->sessions[at]->id == id ? c->sessions[at] : NULL;
}

void controller_worker_opened(struct controller *c, uint64_t session, const struct caller *who) {
        struct session *s, **list;
        size_t at;

        if (c->failed || session_find(c, session))
                return;
        s = calloc(1, sizeof(*s));
        list = s ? realloc(c->sessions, (c->n_sessions + 1) * sizeof(*list)) : NULL;
        if (!list) {
                free(s);
                c->io.close_worker(c->io.arg, session, ST_EXHAUSTED, "no memory");
                return;
        }
        c->sessions = list;
        s->id = session;
        s->who = *who;
        at = session_position(c, session);
        memmove(list + at + 1, list + at, (c->n_sessions++ - at) * sizeof(*list));
        list[at] = s;
}

/* What ranks say as they come and go on. */
static bool leaves_nodes_as_were(const Fp8ctl__V1__WorkerMessage *m) {
        return m->body_case == FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_READY || m->body_case == FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_PARKED ||
               m->body_case == FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_RUNNING || m->body_case == FP8CTL__V1__WORKER_MESSAGE__BODY_INVENTORY ||
               m->body_case == FP8CTL__V1__WORKER_MESSAGE__BODY_CHECKPOINT_PREPARED;
}

void controller_worker_message(struct controller *c, uint64_t session, const Fp8ctl__V1__WorkerMessage *m) {
        struct session *s = session_find(c, session);

        if (c->failed || !s)
                return;
        if (m->body_case == FP8CTL__V1__WORKER_MESSAGE__BODY_HELLO) {
                if (!m->hello || s->node)
                        core_drop(c, DROP_MALFORMED, "hello");
                else
                        node_hello(c, s, m->hello);
        } else if (!s->node || s->node->session != s->id) {
                core_drop(c, DROP_LEASE, "message before hello or of a replaced stream");
        } else {
                dispatch(c, s, m);
                /* Nearly all that a controller hears. It moves one deadline, and that to later: the alarm that is set comes early at worst, and is set anew then. */
                if (m->body_case == FP8CTL__V1__WORKER_MESSAGE__BODY_HEARTBEAT && !c->schedule_wanted && !c->cluster_dirty && !c->events_new)
                        return;
        }
        settle_after(c, s->node && leaves_nodes_as_were(m));
}

void controller_worker_closed(struct controller *c, uint64_t session) {
        struct session *s = session_find(c, session);
        size_t at = session_position(c, session);

        if (!s)
                return;
        if (!c->failed)
                node_stream_closed(c, s);
        memmove(c->sessions + at, c->sessions + at + 1, (--c->n_sessions - at) * sizeof(*c->sessions));
        free(s);
        settle(c);
}

/* ------------------------------------------------------------------ everything else */
void controller_request(struct controller *c, uint64_t request, enum request_kind kind, const ProtobufCMessage *m, const struct caller *who) {
        if (c->failed || !c->running) {
                c->io.reply(c->io.arg, request, ST_UNAVAILABLE, c->failed ? c->failed_why : "the controller is starting", NULL);
                return;
        }
        request_handle(c, request, kind, m, who);
        settle(c);
}

void controller_request_gone(struct controller *c, uint64_t request) {
        request_gone(c, request);
}

void controller_file_done(struct controller *c, uint64_t id, int rc, const char *text) {
        if (c->failed)
                return;
        if (!save_file_done(c, id, rc, text))
                core_log(c, 7, "file work %" PRIu64 " is not known (any more)", id);
        settle(c);
}

void controller_persist_failed(struct controller *c, int rc, const char *text) {
        c->failed = true;
        snprintf(c->failed_why, sizeof(c->failed_why), "the store refused a change (%s); the controller goes on from the store after a restart", text ? text : strerror(-rc));
        core_log(c, 3, "%s", c->failed_why);
        for (struct pending *p = c->pending; p; p = p->next)
                c->io.reply(c->io.arg, p->request, ST_UNAVAILABLE, c->failed_why, NULL);
        request_free_all(c);
}

void controller_gasp(struct controller *c, const void *data, size_t len) {
        if (c->failed || !c->running)
                return;
        node_gasp(c, data, len);
        settle(c);
}

void controller_tick(struct controller *c) {
        uint64_t now = core_now(c);

        if (c->failed || !c->running)
                return;
        node_tick(c, now);
        for (size_t i = 0; i < c->n_jobs; i++)
                job_tick(c, c->jobs[i], now);
        request_tick(c, now);
        settle(c);
}
