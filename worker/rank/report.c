/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/rank/report.h"

#include <unistd.h>

#define STAMP(m, at_epoch)                           \
        do {                                         \
                (m)->job_id = id->job;               \
                (m)->epoch = (at_epoch);             \
                (m)->rank = id->rank;                \
                (m)->incarnation = id->incarnation;  \
        } while (0)

void report_ready(struct control *c, const struct identity *id, const char *endpoint, const char *fingerprint) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__RankReady x = FP8CTL__V1__RANK_READY__INIT;

        STAMP(&x, id->epoch);
        x.endpoint = (char *)endpoint;
        x.pid = (uint32_t)getpid();
        x.fingerprint = (char *)fingerprint;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_READY;
        m.rank_ready = &x;
        control_send(c, &m);
}

void report_parked(struct control *c, const struct identity *id, uint64_t epoch, uint64_t step) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__RankParked x = FP8CTL__V1__RANK_PARKED__INIT;

        STAMP(&x, epoch);
        x.step = step;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_PARKED;
        m.rank_parked = &x;
        control_send(c, &m);
}

void report_running(struct control *c, const struct identity *id, uint64_t epoch, uint64_t step, double load_ms, double mesh_ms, const struct report_loaded *l) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__RankRunning x = FP8CTL__V1__RANK_RUNNING__INIT;

        STAMP(&x, epoch);
        x.step = step;
        x.load_ms = load_ms;
        x.mesh_ms = mesh_ms;
        x.loaded = l->from;
        x.loaded_bytes = l->bytes;
        x.loaded_node = (char *)l->node;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_RUNNING;
        m.rank_running = &x;
        control_send(c, &m);
}

static void send_fault(struct control *c, const struct identity *id, uint64_t epoch, Fp8ctl__V1__RankFault *x) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;

        STAMP(x, epoch);
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_FAULT;
        m.rank_fault = x;
        control_send(c, &m);
}

void report_fault(struct control *c, const struct identity *id, uint64_t epoch, Fp8ctl__V1__RankFault__Kind kind, uint64_t step, int peer, const char *text) {
        Fp8ctl__V1__RankFault x = FP8CTL__V1__RANK_FAULT__INIT;

        x.kind = kind;
        x.step = step;
        x.peer = peer;
        x.text = (char *)text;
        send_fault(c, id, epoch, &x);
}

void report_corrupt(struct control *c, const struct identity *id, uint64_t epoch, uint64_t step, int odd, const uint32_t *suspects, size_t n, uint64_t clean_step, const char *text) {
        Fp8ctl__V1__RankFault x = FP8CTL__V1__RANK_FAULT__INIT;

        x.kind = FP8CTL__V1__RANK_FAULT__KIND__CHECKSUM;
        x.step = step;
        x.peer = odd;
        x.suspects = (uint32_t *)suspects;
        x.n_suspects = n;
        x.clean_step = clean_step;
        x.text = (char *)text;
        send_fault(c, id, epoch, &x);
}

void report_done(struct control *c, const struct identity *id, uint64_t epoch, Fp8ctl__V1__RankProgress *progress, bool stopped) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__RankDone x = FP8CTL__V1__RANK_DONE__INIT;

        STAMP(&x, epoch);
        x.progress = progress;
        x.stopped = stopped;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_DONE;
        m.rank_done = &x;
        control_send(c, &m);
}

void report_notice(struct control *c, const struct identity *id, uint64_t epoch, uint64_t step, const char *kind, const char *severity, const char *text) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__RankNotice x = FP8CTL__V1__RANK_NOTICE__INIT;

        STAMP(&x, epoch);
        x.step = step;
        x.kind = (char *)kind;
        x.severity = (char *)severity;
        x.text = (char *)text;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_NOTICE;
        m.rank_notice = &x;
        control_send(c, &m);
}
