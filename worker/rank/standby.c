/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/rank/standby.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "proto/fp8ctl.pb-c.h"
#include "proto/ipc.h"
#include "worker/rank/lease_timer.h"

DEFINE_CLEANUP(struct lease_timer *, lease_timer_free);

static int say_ready(const struct identity *id, int socket, struct error *e) {
        Fp8ctl__V1__RankToNode out = FP8CTL__V1__RANK_TO_NODE__INIT;
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__StandbyStatus s = FP8CTL__V1__STANDBY_STATUS__INIT;

        s.job_id = id->job;
        s.number = id->standby;
        s.state = FP8CTL__V1__STANDBY_STATUS__STATE__READY;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_STANDBY_STATUS;
        m.standby_status = &s;
        out.message = &m;
        return ipc_send(socket, &out.base, NULL, 0, e);
}

static int become(struct identity *id, const Fp8ctl__V1__BecomeRank *m, int replica, int replica_fd, struct error *e) {
        char name[32];

        if (replica >= 0 && dup3(replica, replica_fd, O_CLOEXEC) < 0)
                return error_errno(e, errno, "replica segment");
        id->rank = m->rank;
        id->incarnation = m->incarnation;
        id->epoch = m->epoch;
        id->device = m->device;
        id->standby = 0;
        snprintf(name, sizeof(name), "rank %" PRIu32, id->rank);
        log_open(name, (enum log_level)id->log_level);
        return 0;
}

int standby_wait(struct identity *id, int socket, int replica_fd, struct flight *flight, struct error *e) {
        _cleanup_(lease_timer_freep) struct lease_timer *timer = NULL;
        uint64_t armed = 0;
        int r = lease_timer_new(&timer, e);

        if (r == 0)
                r = say_ready(id, socket, e);
        while (r == 0 && id->standby) {
                struct pollfd fd = { .fd = socket, .events = POLLIN };
                int fds[IPC_MAX_FDS] = { -1, -1, -1, -1 };
                ProtobufCMessage *base = NULL;

                if (poll(&fd, 1, lease_timer_follow(timer, flight, &armed)) <= 0)
                        continue;
                r = ipc_recv(socket, &fp8ctl__v1__node_to_rank__descriptor, &base, fds, e);
                if (r == 0)
                        return error_set(e, -EPIPE, "the spawner is gone");
                if (r < 0)
                        return r;
                const Fp8ctl__V1__NodeToRank *m = (const Fp8ctl__V1__NodeToRank *)base;

                r = m->become ? become(id, m->become, fds[0], replica_fd, e) : 0;
                ipc_close_fds(fds);
                protobuf_c_message_free_unpacked(base, NULL);
        }
        return r;
}
