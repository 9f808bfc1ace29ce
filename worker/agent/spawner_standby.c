/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Standbys: processes of a job started ahead, that become ranks when a StartRanks comes.  Until then they have no rank and no incarnation: nothing they say is anybody's word, and they
 * need no fence but the node's lease, which ends them as it ends ranks.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "worker/agent/spawner_private.h"

#define STANDBYS_MAX 256 /* of a node */

static struct spawner *the_spawner; /* one a process, as in spawner.c */

static void leave_list(struct spawner *s, struct rank_proc *p) {
        for (struct rank_proc **at = &s->standbys; *at; at = &(*at)->next)
                if (*at == p) {
                        *at = p->next;
                        p->next = NULL;
                        return;
                }
}

static void unwatch(struct rank_proc *p) {
        p->sock_source = loop_remove(p->sock_source);
        p->pid_source = loop_remove(p->pid_source);
        p->log_source = loop_remove(p->log_source);
}

static void take_message(struct rank_proc *p, Fp8ctl__V1__WorkerMessage *m) {
        if (m->body_case == FP8CTL__V1__WORKER_MESSAGE__BODY_STANDBY_STATUS && !p->ready) {
                p->ready = true;
                spawner_say_standby(the_spawner, p, FP8CTL__V1__STANDBY_STATUS__STATE__READY);
        }
}

static void on_message(void *arg, uint32_t revents) {
        rank_proc_hear(arg, take_message);
}

static void on_end(void *arg, uint32_t revents) {
        struct rank_proc *p = arg;

        rank_proc_reap(p);
        if (!p->exited)
                return;
        log_info("job %" PRIu64 " standby %" PRIu64 " (pid %d): %s", p->job_id, p->standby, (int)p->pid, p->cause);
        spawner_say_standby(the_spawner, p, FP8CTL__V1__STANDBY_STATUS__STATE__GONE);
        leave_list(the_spawner, p);
        rank_proc_free(p);
}

static int start_one(struct spawner *s, const Fp8ctl__V1__StandbyPlan *m, const Fp8ctl__V1__Standby *b, struct error *e) {
        bool local;
        uint32_t dp;
        uint64_t log_max = spawner_read_job_file(m->job_file, &local, &dp);
        struct rank_proc_identity id = { .job_id = m->job_id, .epoch = m->epoch, .rank = b->rank, .device = b->device, .uid = m->uid, .gid = m->gid, .log_max_bytes = log_max,
                                         .job_name = m->job_name, .cluster = m->cluster_id, .local = local, .standby = b->number, .warm = b->warm };
        struct rank_proc *p;
        int r;

        if (b->device >= (uint32_t)s->config->devices || b->number == 0)
                return error_set(e, -EINVAL, "device %" PRIu32 " asked for, this node has %d", b->device, s->config->devices);
        r = rank_proc_start(s->loop, &s->proc_config, &id, -1, &p, e);
        if (r < 0)
                return r;
        p->dp = dp;
        p->next = s->standbys;
        s->standbys = p;
        r = loop_add_fd(s->loop, p->sock, EPOLLIN, on_message, p, &p->sock_source);
        if (r == 0)
                r = loop_add_fd(s->loop, p->pidfd, EPOLLIN, on_end, p, &p->pid_source);
        if (r == 0)
                r = loop_add_fd(s->loop, p->log_fd, EPOLLIN, rank_proc_on_log, p, &p->log_source);
        if (r < 0)
                rank_proc_kill(p, "cannot be watched");
        log_info("job %" PRIu64 " standby %" PRIu64 "%s started for device %" PRIu32 " (pid %d)", p->job_id, p->standby, p->warm ? ", warm," : "", p->device, (int)p->pid);
        spawner_say_standby(s, p, FP8CTL__V1__STANDBY_STATUS__STATE__STARTING);
        return 0;
}

static void say_not_started(struct spawner *s, const Fp8ctl__V1__StandbyPlan *m, const Fp8ctl__V1__Standby *b, const char *why) {
        struct rank_proc p = { .job_id = m->job_id, .standby = b->number, .device = b->device, .warm = b->warm, .flight_fd = -1 };

        log_warning("job %" PRIu64 " standby %" PRIu64 ": %s", m->job_id, b->number, why);
        snprintf(p.cause, sizeof(p.cause), "%.500s", why);
        spawner_say_standby(s, &p, FP8CTL__V1__STANDBY_STATUS__STATE__GONE);
}

void standbys_plan(struct spawner *s, const Fp8ctl__V1__StandbyPlan *m) {
        struct error e = { 0 };
        size_t n = 0;
        int r = 0;

        the_spawner = s;
        for (struct rank_proc *p = s->standbys; p; p = p->next) {
                bool wanted = p->job_id != m->job_id;

                n++;
                for (size_t i = 0; i < m->n_standbys && !wanted; i++)
                        wanted = m->standbys[i]->number == p->standby;
                if (!wanted)
                        rank_proc_kill(p, "no longer wanted");
        }
        if (m->n_standbys > 0)
                r = spawner_job_folder(s, m->job_id, m->job_file, m->uid, m->gid, &e);
        for (size_t i = 0; i < m->n_standbys; i++) {
                const Fp8ctl__V1__Standby *b = m->standbys[i];
                bool known = false;

                for (struct rank_proc *p = s->standbys; p && !known; p = p->next)
                        known = p->job_id == m->job_id && p->standby == b->number;
                if (known)
                        continue;
                if (r == 0 && n++ >= STANDBYS_MAX)
                        r = error_set(&e, -EBUSY, "%d standbys are here already", STANDBYS_MAX);
                if (r < 0 || start_one(s, m, b, &e) < 0)
                        say_not_started(s, m, b, e.text);
        }
}

/* A warm one has its own device; any other of the job goes on whichever device it is for. */
static struct rank_proc *find(struct spawner *s, const struct rank_proc_identity *id) {
        struct rank_proc *best = NULL;

        for (struct rank_proc *p = s->standbys; p; p = p->next)
                if (p->job_id == id->job_id && !p->exited && !p->kill_reason[0] && (!p->warm || p->device == id->device) &&
                    (!best || (p->warm && !best->warm) || (p->warm == best->warm && p->ready && !best->ready)))
                        best = p;
        return best;
}

struct rank_proc *standby_take(struct spawner *s, const struct rank_proc_identity *id, int replica_fd) {
        struct rank_proc *p = find(s, id);
        struct error e = { 0 };

        if (!p)
                return NULL;
        spawner_say_standby(s, p, FP8CTL__V1__STANDBY_STATUS__STATE__TAKEN);
        if (rank_proc_become(p, id, replica_fd, &e) < 0) {
                log_warning("job %" PRIu64 ": a standby cannot become rank %" PRIu32 ": %s", id->job_id, id->rank, e.text);
                rank_proc_kill(p, e.text);
                return NULL;
        }
        leave_list(s, p);
        unwatch(p);
        return p;
}

void standbys_say(struct spawner *s) {
        for (const struct rank_proc *p = s->standbys; p; p = p->next)
                spawner_say_standby(s, p, p->ready ? FP8CTL__V1__STANDBY_STATUS__STATE__READY : FP8CTL__V1__STANDBY_STATUS__STATE__STARTING);
}

void standbys_release(struct spawner *s, uint64_t job, const char *why) {
        for (struct rank_proc *p = s->standbys; p; p = p->next)
                if (!job || p->job_id == job)
                        rank_proc_kill(p, why);
}

void standbys_tick(struct spawner *s, uint64_t now) {
        for (struct rank_proc *p = s->standbys; p; p = p->next) {
                uint64_t deadline = atomic_load(&p->flight->lease_deadline_ns);

                guard_keep(&p->lease, p->pid, deadline, now);
                if (deadline && now > deadline && !p->exited && !p->kill_reason[0])
                        rank_proc_kill(p, "the node's lease is over");
        }
}

void standbys_free(struct spawner *s) {
        while (s->standbys) {
                struct rank_proc *p = s->standbys;

                leave_list(s, p);
                rank_proc_free(p);
        }
}
