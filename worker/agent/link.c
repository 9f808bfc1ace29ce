/* SPDX-License-Identifier: Apache-2.0 */
/* The agent's end of the spawner's socket. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/log.h"
#include "proto/ipc.h"
#include "worker/agent/agent_private.h"
#include "worker/agent/spawner.h"

/* Without a spawner there are no ranks (they die with it), and this process has threads and must not fork: begin anew. */
static void link_lost(struct agent *a, const char *why) {
        if (a->link_fd < 0)
                return;
        if (!a->leaving)
                log_error("the spawner is gone (%s): starting over", why);
        a->link_source = loop_remove(a->link_source);
        a->link_out = outbox_free(a->link_out);
        closep(&a->link_fd);
        a->link_fd = -1;
        a->end = a->leaving ? AGENT_LEFT : AGENT_AGAIN;
        loop_stop(a->loop, a->end);
}

void link_send(struct agent *a, Fp8ctl__V1__AgentToSpawner *m) {
        struct error e = { 0 };

        if (a->link_out && outbox_send(a->link_out, &m->base, NULL, 0, &e) < 0)
                link_lost(a, e.text);
}

void link_keep(void *agent, Fp8ctl__V1__KeptFd__Kind kind, uint64_t job, uint32_t rank, int fd) {
        struct agent *a = agent;
        Fp8ctl__V1__AgentToSpawner out = FP8CTL__V1__AGENT_TO_SPAWNER__INIT;
        Fp8ctl__V1__KeptFd m = FP8CTL__V1__KEPT_FD__INIT;
        struct error e = { 0 };

        m.kind = kind;
        m.job_id = job;
        m.rank = rank;
        out.body_case = FP8CTL__V1__AGENT_TO_SPAWNER__BODY_KEEP;
        out.keep = &m;
        if (a->link_out && outbox_send(a->link_out, &out.base, &fd, 1, &e) < 0)
                link_lost(a, e.text);
}

void link_relay(struct agent *a, const struct local_rank *r, Fp8ctl__V1__ControllerMessage *m) {
        Fp8ctl__V1__AgentToSpawner out = FP8CTL__V1__AGENT_TO_SPAWNER__INIT;
        Fp8ctl__V1__RelayToRank relay = FP8CTL__V1__RELAY_TO_RANK__INIT;

        relay.job_id = r->job_id;
        relay.rank = r->rank;
        relay.incarnation = r->incarnation;
        relay.message = m;
        out.body_case = FP8CTL__V1__AGENT_TO_SPAWNER__BODY_RELAY;
        out.relay = &relay;
        link_send(a, &out);
}

void link_kill(struct agent *a, uint64_t job, uint64_t epoch, uint32_t rank, uint64_t incarnation, const char *reason) {
        Fp8ctl__V1__AgentToSpawner out = FP8CTL__V1__AGENT_TO_SPAWNER__INIT;
        Fp8ctl__V1__KillRanks k = FP8CTL__V1__KILL_RANKS__INIT;
        Fp8ctl__V1__RankRef ref = FP8CTL__V1__RANK_REF__INIT, *list[] = { &ref };

        ref.rank = rank;
        ref.incarnation = incarnation;
        k.job_id = job;
        k.epoch = epoch;
        k.ranks = list;
        k.n_ranks = 1;
        k.reason = (char *)reason;
        out.body_case = FP8CTL__V1__AGENT_TO_SPAWNER__BODY_KILL;
        out.kill = &k;
        link_send(a, &out);
}

static void on_exited(struct agent *a, Fp8ctl__V1__RankExited *exited) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;

        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_EXITED;
        m.rank_exited = exited;
        stream_send(a, &m);
        local_rank_exited(a, exited);
}

#define IDENTITY(x)                            \
        do { \
                *job = (x)->job_id; \
                *rank = (x)->rank; \
                *incarnation = (x)->incarnation; \
        } while (0)

static bool relay_identity(const Fp8ctl__V1__WorkerMessage *m, uint64_t *job, uint32_t *rank, uint64_t *incarnation) {
        switch (m->body_case) {
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_READY:
                IDENTITY(m->rank_ready);
                return true;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_PARKED:
                IDENTITY(m->rank_parked);
                return true;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_RUNNING:
                IDENTITY(m->rank_running);
                return true;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_FAULT:
                IDENTITY(m->rank_fault);
                return true;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_DONE:
                IDENTITY(m->rank_done);
                return true;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_NOTICE:
                IDENTITY(m->rank_notice);
                return true;
        case FP8CTL__V1__WORKER_MESSAGE__BODY_CHECKPOINT_PREPARED:
                IDENTITY(m->checkpoint_prepared);
                return true;
        default:
                return false;
        }
}

static void on_relayed(struct agent *a, Fp8ctl__V1__WorkerMessage *m) {
        struct local_rank *r = NULL;
        uint64_t job, incarnation;
        uint32_t rank;

        if (relay_identity(m, &job, &rank, &incarnation))
                r = local_rank_find(a, job, rank, incarnation);
        if (!r) {
                a->dropped++; /* of an incarnation that was replaced */
                return;
        }
        local_rank_note(r, m);
        if (m->body_case == FP8CTL__V1__WORKER_MESSAGE__BODY_CHECKPOINT_PREPARED) {
                prepared_keep(r, m);
                if (!a->welcomed)
                        return; /* said after the welcome */
        }
        stream_send(a, m);
}

static void dispatch(struct agent *a, Fp8ctl__V1__SpawnerToAgent *m, int fds[IPC_MAX_FDS]) {
        struct error e = { 0 };

        switch (m->body_case) {
        case FP8CTL__V1__SPAWNER_TO_AGENT__BODY_RANK:
                if (!m->rank->status || fds[0] < 0)
                        break;
                if (local_rank_update(a, m->rank, fds[0], STEAL_FD(fds[1]), &e) < 0)
                        log_error("job %" PRIu64 " rank %" PRIu32 ": %s", m->rank->status->job_id, m->rank->status->rank, e.text);
                break;
        case FP8CTL__V1__SPAWNER_TO_AGENT__BODY_SYNCED:
                a->synced = true;
                if (holder_start(a->holder, &e) < 0)
                        log_warning("no replica memory for peers: %s", e.text);
                a->node.message.replica_endpoint = (char *)holder_endpoint(a->holder);
                if (!a->client && stream_start(a, &e) < 0) {
                        log_error("%s", e.text);
                        loop_stop(a->loop, e.code);
                }
                break;
        case FP8CTL__V1__SPAWNER_TO_AGENT__BODY_EXITED:
                on_exited(a, m->exited);
                break;
        case FP8CTL__V1__SPAWNER_TO_AGENT__BODY_RELAY:
                on_relayed(a, m->relay);
                break;
        case FP8CTL__V1__SPAWNER_TO_AGENT__BODY_KEPT:
                if (fds[0] >= 0)
                        holder_kept(a->holder, m->kept->kind, m->kept->job_id, m->kept->rank, STEAL_FD(fds[0]));
                break;
        case FP8CTL__V1__SPAWNER_TO_AGENT__BODY_STANDBY:
                local_standby_update(a, m->standby, fds[0]);
                break;
        case FP8CTL__V1__SPAWNER_TO_AGENT__BODY_ERROR:
                log_error("spawner: %s", m->error->text);
                break;
        default:
                a->dropped++;
                break;
        }
}

static void on_message(void *arg, uint32_t revents) {
        struct agent *a = arg;

        while (a->link_fd >= 0) {
                int fds[IPC_MAX_FDS] = { -1, -1, -1, -1 };
                ProtobufCMessage *base = NULL;
                struct error e = { 0 };
                int r = ipc_recv(a->link_fd, &fp8ctl__v1__spawner_to_agent__descriptor, &base, fds, &e);

                if (r == -EAGAIN)
                        return;
                if (r <= 0) {
                        link_lost(a, r < 0 ? e.text : "hung up");
                        return;
                }
                dispatch(a, (Fp8ctl__V1__SpawnerToAgent *)base, fds);
                ipc_close_fds(fds);
                protobuf_c_message_free_unpacked(base, NULL);
        }
}

int link_start(struct agent *a, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/" SPAWNER_SOCKET, a->config->dir);
        Fp8ctl__V1__AgentToSpawner out = FP8CTL__V1__AGENT_TO_SPAWNER__INIT;
        Fp8ctl__V1__SpawnerHello hello = FP8CTL__V1__SPAWNER_HELLO__INIT;
        int r;

        if (!path)
                return error_errno(e, ENOMEM, "spawner");
        r = ipc_connect(path, &a->link_fd, e);
        if (r < 0)
                return r;
        if (fcntl(a->link_fd, F_SETFL, O_NONBLOCK) < 0)
                return error_errno(e, errno, "spawner's socket");
        r = outbox_new(a->loop, a->link_fd, &a->link_out);
        if (r == 0)
                r = loop_add_fd(a->loop, a->link_fd, EPOLLIN, on_message, a, &a->link_source);
        if (r < 0)
                return error_errno(e, -r, "spawner's socket");
        hello.agent_version = a->node.message.version;
        out.body_case = FP8CTL__V1__AGENT_TO_SPAWNER__BODY_HELLO;
        out.hello = &hello;
        link_send(a, &out);
        return 0;
}

void link_stop(struct agent *a) {
        a->link_source = loop_remove(a->link_source);
        a->link_out = outbox_free(a->link_out);
        closep(&a->link_fd);
        a->link_fd = -1;
}
