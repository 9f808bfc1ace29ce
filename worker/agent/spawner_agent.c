/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The agent's connection.  While no agent is there, what ranks say is held (bounded) and given to the next one after SpawnerSynced: a RankReady said
 * into the gap must not be lost, or the job would wait for it for ever.  Descriptors that an agent gave are kept for the next one as well.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "proto/message.h"
#include "worker/agent/spawner_private.h"

#define KEPT_MAX 8192 /* descriptors: a rank of another node each */

/* A descriptor that an agent gave for the next one. */
struct kept {
        struct kept *next;
        Fp8ctl__V1__KeptFd__Kind kind;
        uint64_t job_id;
        uint32_t rank;
        int fd;
};

/* ------------------------------------------------------------------ to the agent */

static void agent_send(struct spawner *s, Fp8ctl__V1__SpawnerToAgent *m, const int *fds, size_t n_fds) {
        struct error e = { 0 };

        if (!s->agent_out || !s->synced)
                return;
        m->version = IPC_VERSION;
        if (outbox_send(s->agent_out, &m->base, fds, n_fds, &e) < 0)
                spawner_agent_gone(s, e.text);
}

void spawner_say(struct spawner *s, Fp8ctl__V1__WorkerMessage *m) {
        Fp8ctl__V1__SpawnerToAgent out = FP8CTL__V1__SPAWNER_TO_AGENT__INIT;

        if (s->synced) {
                out.body_case = FP8CTL__V1__SPAWNER_TO_AGENT__BODY_RELAY;
                out.relay = m;
                agent_send(s, &out, NULL, 0);
        }
        if (s->synced)
                return; /* else the agent went while it was told */
        if (s->n_held == HELD_MAX) {
                protobuf_c_message_free_unpacked(s->held[0], NULL);
                memmove(s->held, s->held + 1, (HELD_MAX - 1) * sizeof(s->held[0]));
                s->n_held--;
        }
        s->held[s->n_held] = message_copy(&m->base);
        if (s->held[s->n_held])
                s->n_held++;
}

void spawner_say_exited(struct spawner *s, const struct rank_proc *p) {
        Fp8ctl__V1__SpawnerToAgent out = FP8CTL__V1__SPAWNER_TO_AGENT__INIT;
        Fp8ctl__V1__RankExited exited;

        rank_proc_exited(p, &exited);
        out.body_case = FP8CTL__V1__SPAWNER_TO_AGENT__BODY_EXITED;
        out.exited = &exited;
        agent_send(s, &out, NULL, 0);
}

void spawner_say_never_was(struct spawner *s, uint64_t job, uint64_t epoch, uint32_t rank, uint64_t incarnation, const char *cause) {
        Fp8ctl__V1__SpawnerToAgent out = FP8CTL__V1__SPAWNER_TO_AGENT__INIT;
        Fp8ctl__V1__RankExited exited = FP8CTL__V1__RANK_EXITED__INIT;

        exited.job_id = job;
        exited.epoch = epoch;
        exited.rank = rank;
        exited.incarnation = incarnation;
        exited.exit_status = 127;
        exited.reaped = true;
        exited.cause = (char *)cause;
        out.body_case = FP8CTL__V1__SPAWNER_TO_AGENT__BODY_EXITED;
        out.exited = &exited;
        agent_send(s, &out, NULL, 0);
}

void spawner_say_standby(struct spawner *s, const struct rank_proc *p, Fp8ctl__V1__StandbyStatus__State state) {
        Fp8ctl__V1__SpawnerToAgent out = FP8CTL__V1__SPAWNER_TO_AGENT__INIT;
        Fp8ctl__V1__StandbyStatus m = FP8CTL__V1__STANDBY_STATUS__INIT;

        m.job_id = p->job_id;
        m.number = p->standby;
        m.device = p->device;
        m.warm = p->warm;
        m.state = state;
        m.pid = (uint32_t)p->pid;
        m.cause = (char *)p->cause;
        m.dp = p->dp;
        out.body_case = FP8CTL__V1__SPAWNER_TO_AGENT__BODY_STANDBY;
        out.standby = &m;
        agent_send(s, &out, &p->flight_fd, p->flight_fd >= 0);
}

void spawner_say_rank(struct spawner *s, const struct rank_proc *p) {
        Fp8ctl__V1__SpawnerToAgent out = FP8CTL__V1__SPAWNER_TO_AGENT__INIT;
        Fp8ctl__V1__SpawnerRank rank = FP8CTL__V1__SPAWNER_RANK__INIT;
        Fp8ctl__V1__RankStatus status = FP8CTL__V1__RANK_STATUS__INIT;
        Fp8ctl__V1__RankExited exited;
        int fds[2] = { p->flight_fd, p->replica_fd };

        status.job_id = p->job_id;
        status.epoch = p->epoch;
        status.rank = p->rank;
        status.incarnation = p->incarnation;
        status.device = p->device;
        status.pid = (uint32_t)p->pid;
        status.phase = p->phase;
        status.endpoint = (char *)p->endpoint;
        status.step = atomic_load(&p->flight->step);
        if (p->exited) {
                rank_proc_exited(p, &exited);
                status.exited = &exited;
        }
        rank.status = &status;
        rank.job_name = p->job_name;
        out.body_case = FP8CTL__V1__SPAWNER_TO_AGENT__BODY_RANK;
        out.rank = &rank;
        agent_send(s, &out, fds, p->replica_fd >= 0 ? 2 : 1);
}

/* ------------------------------------------------------------------ descriptors kept for the next agent */
/* The newest of its place wins. */
static void on_keep(struct spawner *s, const Fp8ctl__V1__KeptFd *m, int *fd) {
        struct kept *k = s->kept;
        size_t n = 0;

        if (*fd < 0)
                return;
        for (struct kept *i = s->kept; i; i = i->next)
                n++;
        while (k && (k->kind != m->kind || k->job_id != m->job_id || k->rank != m->rank))
                k = k->next;
        if (!k) {
                k = n < KEPT_MAX ? calloc(1, sizeof(*k)) : NULL;
                if (!k)
                        return;
                *k = (struct kept){ .next = s->kept, .kind = m->kind, .job_id = m->job_id, .rank = m->rank, .fd = -1 };
                s->kept = k;
        }
        closep(&k->fd);
        k->fd = STEAL_FD(*fd);
}

void spawner_kept_forget(struct spawner *s, uint64_t job, bool all) {
        for (struct kept **at = &s->kept; *at;) {
                struct kept *k = *at;

                if (!all && (k->kind != FP8CTL__V1__KEPT_FD__KIND__REPLICA || k->job_id != job)) {
                        at = &k->next;
                        continue;
                }
                *at = k->next;
                closep(&k->fd);
                free(k);
        }
}

static void give_kept(struct spawner *s) {
        for (struct kept *k = s->kept; k && s->synced; k = k->next) {
                Fp8ctl__V1__SpawnerToAgent out = FP8CTL__V1__SPAWNER_TO_AGENT__INIT;
                Fp8ctl__V1__KeptFd m = FP8CTL__V1__KEPT_FD__INIT;

                m.kind = k->kind;
                m.job_id = k->job_id;
                m.rank = k->rank;
                out.body_case = FP8CTL__V1__SPAWNER_TO_AGENT__BODY_KEPT;
                out.kept = &m;
                agent_send(s, &out, &k->fd, 1);
        }
}

/* ------------------------------------------------------------------ the connection */
static void on_hello(struct spawner *s) {
        Fp8ctl__V1__SpawnerToAgent out = FP8CTL__V1__SPAWNER_TO_AGENT__INIT;
        Fp8ctl__V1__SpawnerSynced synced = FP8CTL__V1__SPAWNER_SYNCED__INIT;

        s->synced = true;
        for (struct rank_proc *p = s->procs; p && s->synced; p = p->next)
                spawner_say_rank(s, p);
        standbys_say(s);
        give_kept(s);
        synced.ranks = (uint32_t)spawner_count(s, false);
        out.body_case = FP8CTL__V1__SPAWNER_TO_AGENT__BODY_SYNCED;
        out.synced = &synced;
        agent_send(s, &out, NULL, 0);
        for (size_t i = 0; i < s->n_held; i++) {
                if (s->synced)
                        spawner_say(s, (Fp8ctl__V1__WorkerMessage *)s->held[i]);
                protobuf_c_message_free_unpacked(s->held[i], NULL);
        }
        s->n_held = 0;
}

static void agent_dispatch(struct spawner *s, Fp8ctl__V1__AgentToSpawner *m, int fds[IPC_MAX_FDS]) {
        switch (m->body_case) {
        case FP8CTL__V1__AGENT_TO_SPAWNER__BODY_HELLO:
                on_hello(s);
                break;
        case FP8CTL__V1__AGENT_TO_SPAWNER__BODY_START:
                spawner_start(s, m->start);
                break;
        case FP8CTL__V1__AGENT_TO_SPAWNER__BODY_KILL:
                spawner_kill(s, m->kill);
                break;
        case FP8CTL__V1__AGENT_TO_SPAWNER__BODY_RELAY:
                spawner_relay(s, m->relay);
                break;
        case FP8CTL__V1__AGENT_TO_SPAWNER__BODY_RELEASE:
                spawner_release(s, m->release);
                break;
        case FP8CTL__V1__AGENT_TO_SPAWNER__BODY_STANDBYS:
                standbys_plan(s, m->standbys);
                break;
        case FP8CTL__V1__AGENT_TO_SPAWNER__BODY_KEEP:
                on_keep(s, m->keep, &fds[0]);
                break;
        case FP8CTL__V1__AGENT_TO_SPAWNER__BODY_EXIT:
                spawner_leave(s);
                break;
        default:
                log_warning("spawner: dropped an unknown message of the agent");
                break;
        }
}

void spawner_agent_gone(struct spawner *s, const char *why) {
        if (s->agent_fd < 0)
                return;
        log_info("spawner: the agent is gone (%s); %zu ranks go on", why, spawner_count(s, true));
        s->agent_source = loop_remove(s->agent_source);
        s->agent_out = outbox_free(s->agent_out);
        closep(&s->agent_fd);
        s->agent_fd = -1;
        s->synced = false;
        s->alone_since_ns = clock_mono_ns();
}

static void on_agent_message(void *arg, uint32_t revents) {
        struct spawner *s = arg;

        while (s->agent_fd >= 0) {
                int fds[IPC_MAX_FDS] = { -1, -1, -1, -1 };
                ProtobufCMessage *base = NULL;
                struct error e = { 0 };
                int r = ipc_recv(s->agent_fd, &fp8ctl__v1__agent_to_spawner__descriptor, &base, fds, &e);

                if (r == -EAGAIN)
                        return;
                if (r <= 0) {
                        spawner_agent_gone(s, r < 0 ? e.text : "hung up");
                        return;
                }
                agent_dispatch(s, (Fp8ctl__V1__AgentToSpawner *)base, fds);
                ipc_close_fds(fds);
                protobuf_c_message_free_unpacked(base, NULL);
        }
}

void spawner_on_connect(void *arg, uint32_t revents) {
        struct spawner *s = arg;
        int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK), r;
        struct ucred peer = { 0 };
        socklen_t len = sizeof(peer);

        if (fd < 0)
                return;
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 || (peer.uid != geteuid() && peer.uid != 0)) {
                log_warning("spawner: refused a connection of uid %u", peer.uid);
                close(fd);
                return;
        }
        spawner_agent_gone(s, "another one came");
        s->agent_fd = fd;
        r = outbox_new(s->loop, fd, &s->agent_out);
        if (r == 0)
                r = loop_add_fd(s->loop, fd, EPOLLIN, on_agent_message, s, &s->agent_source);
        if (r < 0)
                spawner_agent_gone(s, strerror(-r));
}

