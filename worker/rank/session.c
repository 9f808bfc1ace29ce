/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The main thread.  It either waits for orders (parked, faulted, done: session_wait.c) or is inside an epoch (loading, joining, running); an abort from the control thread
 * makes whatever it does there return with a condition.  Process, device and buffers stay over epochs; live weights are never used again once an
 * epoch was left: the next plan says what to load.
 *
 * The order at the end of a step: metrics row, snapshot begun, progress in the recorder, checkpoint begun.  A step whose snapshot exists has its row, so the rows are
 * complete whatever is resumed from.  Snapshot and checkpoint are made by threads while the next step computes; the snapshot is whole before that step's
 * agreement (replica.h), and before anything is loaded.
 */
#include "worker/rank/session.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "kernels/dev_comm.h"
#include "worker/rank/session_private.h"
#include "worker/rank/source.h"
#include "worker/rank/standby.h"

#define SAVE_ORDER_WAIT_MS 2000 /* for an order that rank 0 has and that is on its way here */

/* ------------------------------------------------------------------ starting */

static int read_job(struct session *s, struct error *e) {
        _cleanup_free_ char *path = file_path("%s/jobs/%" PRIu64 "/job.json", s->id->dir, s->id->job), *text = NULL;
        size_t len;
        int r;

        if (!path)
                return error_errno(e, ENOMEM, "job file");
        r = file_read(path, 2 * JOB_FILE_MAX, &text, &len, e);
        return r < 0 ? r : job_spec_parse(text, len, path, NULL, &s->spec, e);
}

static int open_device(struct session *s, struct error *e) {
        struct dev_config c = { .kind = s->id->device_kind, .index = (int)s->id->device, .threads = 1,
                                .act = s->spec->precision.recipe == RECIPE_FP32 ? DT_F32 : DT_BF16, .any_order = s->spec->precision.any_order };
        int r;

        r = dev_ops_load(s->id->device_kind, &s->ops, e);
        return r < 0 ? r : s->ops->open(&c, &s->dev, e);
}

static int listen_for_peers(struct session *s, struct error *e) {
        _cleanup_free_ char *dir = file_path("%s/jobs/%" PRIu64, s->id->dir, s->id->job);
        char name[64];

        if (!dir)
                return error_errno(e, ENOMEM, "listener");
        snprintf(name, sizeof(name), "r%" PRIu32 ".i%" PRIu64, s->id->rank, s->id->incarnation);
        return comm_listener_new(dir, s->id->host, name, &s->listener, e);
}

/* The snapshot of the step before, taken while this one computed: from the agreement on every rank must hold it (replica.h), and the update changes what it reads. */
static int finish_snapshot(void *arg, struct error *e) {
        struct session *s = arg;

        int r = snapshot_wait(s->snapshot, e);
        uint32_t bits = replicate_bits(s->replicate) | local_tier_bits(s->local) | (snapshot_ready(s->snapshot) ? 0 : TRAINER_REQUEST_SNAPSHOT_LATER);

        if (bits)
                trainer_request(s->trainer, bits);
        return r;
}

/* How devices talk to each other; once a process, as soon as the job has two ranks. */
static int open_collectives(struct session *s, struct error *e) {
        const struct job_spec *spec = s->spec;
        const struct dev_comm_settings n = { .ib_timeout = (int)spec->nccl.ib_timeout, .ib_retry_cnt = (int)spec->nccl.ib_retry_cnt, .ib_hca = spec->nccl.ib_hca ? spec->nccl.ib_hca : "", .channels = (int)spec->nccl.channels, .nvls = spec->nccl.nvls,
                                               .peer_copies = spec->nccl.peer_copies };

        if (s->collectives || strcmp(s->ops->kind, "cpu") == 0 || spec->parallel.tp * spec->parallel.pp * spec->parallel.dp == 1)
                return 0;
        return comm_device_new(s->ops, s->dev, &n, (size_t)spec->nccl.scratch, &s->collectives, e);
}

static void log_memory(const struct trainer *t) {
        char plan[256];

        trainer_memory_plan(t, plan, sizeof plan);
        log_info("memory: %s", plan);
}

/* What computes. It depends on the layout, and on which rank this is. */
static int open_trainer(struct session *s, struct error *e) {
        struct trainer_config t = { .spec = s->spec, .rank = (int)s->id->rank, .flight = s->flight, .test_hooks_armed = s->id->epoch == 1, .ops = s->ops, .dev = s->dev };
        int r = open_collectives(s, e);

        if (s->collectives)
                t.collectives = comm_device_fingerprint(s->collectives);
        return r < 0 ? r : trainer_new(&t, &s->trainer, e);
}

/* All that depends on the layout. A standby may have made the trainer ahead. */
static int open_engine(struct session *s, struct error *e) {
        int r = s->trainer ? 0 : open_trainer(s, e);

        if (r == 0)
                r = snapshot_new(s->id, s->spec, s->trainer, s->ops, s->dev, RANK_FD_REPLICA, &s->snapshot, e);
        if (r == 0)
                r = save_new(s->id, s->spec, s->control, s->snapshot, &s->save, e);
        if (r == 0)
                r = local_tier_new(s->id, s->spec, s->control, s->snapshot, RANK_FD_REPLICA, &s->local, e);
        if (r == 0 && !s->rdma && rdma_open(s->id->rdma, &s->rdma, NULL) == 0)
                log_info("second copies go by RDMA on %s where the other node has it too", rdma_name(s->rdma));
        if (r == 0)
                r = replicate_new(s->id, s->control, RANK_FD_REPLICA, rdma_lanes(s->rdma), &s->replicate, e);
        if (r == 0)
                r = metrics_new(s->id, s->spec, s->trainer, s->flight, &s->metrics, e);
        if (r == 0) {
                trainer_before_agree(s->trainer, finish_snapshot, s);
                log_memory(s->trainer);
        }
        return r;
}

/* False: storage that has stalled holds a thread that reads our memory. */
static bool close_engine(struct session *s) {
        replicate_free(s->replicate);
        s->replicate = NULL;
        if ((s->save && !save_finish(s->save)) || (s->local && !local_tier_stop(s->local)))
                return false;
        save_free(s->save);
        local_tier_free(s->local);
        metrics_free(s->metrics);
        snapshot_free(s->snapshot);
        trainer_free(s->trainer);
        s->save = NULL;
        s->local = NULL;
        s->metrics = NULL;
        s->snapshot = NULL;
        s->trainer = NULL;
        return true;
}

/* Ahead of time: all that can be made before it is known which rank this is. Then that is waited for. */
static int stand_by(struct session *s, struct error *e) {
        uint64_t began = clock_mono_ns();
        uint32_t ahead = s->id->rank;
        struct job_spec *was;
        int r;

        r = s->id->warm ? open_device(s, e) : dev_ops_load(s->id->device_kind, &s->ops, e);
        if (r == 0 && s->id->warm)
                r = open_trainer(s, e);
        if (r == 0 && s->id->warm)
                r = trainer_rehearse(s->trainer, e);
        if (r < 0)
                return r;
        log_info("ready to become a rank after %.0f ms", (double)(clock_mono_ns() - began) / 1e6);
        r = standby_wait(&s->me, RANK_FD_SOCKET, RANK_FD_REPLICA, s->flight, e);
        if (r < 0)
                return r;
        s->began = clock_mono_ns();
        was = STEAL_PTR(s->spec);
        r = read_job(s, e);
        if (r == 0 && s->spec->parallel.dp == was->parallel.dp && ahead == s->id->rank) {
                job_spec_free(s->spec); /* the trainer has the other */
                s->spec = was;
                return 0;
        }
        s->trainer = trainer_free(s->trainer);
        job_spec_free(was);
        return r;
}

static int session_open(struct session *s, struct error *e) {
        int r;

        for (int fd = RANK_FD_SOCKET; fd <= RANK_FD_REPLICA; fd++)
                if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
                        return error_errno(e, errno, "descriptor %d is not there; a rank is started by fp8-worker", fd);
        r = flight_map(RANK_FD_FLIGHT, &s->flight, e);
        if (r == 0)
                r = flight_hold(s->flight, e);
        if (r == 0)
                r = comm_abort_new(&s->abort, e);
        if (r == 0)
                r = read_job(s, e);
        if (r == 0 && s->id->standby)
                r = stand_by(s, e);
        if (r == 0)
                r = control_new(s->id, RANK_FD_SOCKET, s->flight, s->abort, &s->control, e);
        if (r == 0)
                r = listen_for_peers(s, e);
        if (r == 0 && !s->dev)
                r = open_device(s, e);
        return r == 0 ? open_engine(s, e) : r;
}

static void session_close(struct session *s) {
        session_leave_epoch(s);
        if (!close_engine(s))
                return; /* the process ends anyway */
        rdma_free(s->rdma);
        comm_device_free(s->collectives);
        if (s->dev)
                s->ops->close(s->dev);
        control_free(s->control);
        comm_listener_free(s->listener);
        comm_abort_free(s->abort);
        flight_unmap(s->flight);
        job_spec_free(s->spec);
}

/* ------------------------------------------------------------------ into an epoch */

static bool overtaken_wait(void *arg) {
        return session_overtaken(arg);
}

/* The generation into our own segment: from the peers that the plan names, else from this node's disk. What does not serve is told there. */
static int fetch(struct session *s, const Fp8ctl__V1__RankPlan *p, struct error *e) {
        struct report_loaded *l = &s->loaded;
        int r = -ENOENT, local;

        if (p->load->n_sources > 0)
                r = replicate_fetch(s->replicate, p, snapshot_bytes(s->snapshot), overtaken_wait, s, l->node, sizeof(l->node), &l->bytes, e);
        if (r == 0)
                l->from = FP8CTL__V1__LOADED_FROM__LOADED_PEER_MEMORY;
        if (r == 0 || r == -ECANCELED)
                return r;
        local = local_tier_fetch(s->local, s->epoch, p->load->step, p->load->generation_epoch, &l->bytes, e);
        if (local == 0)
                l->from = FP8CTL__V1__LOADED_FROM__LOADED_LOCAL_DISK;
        return local == -ENOENT ? r : local;
}

/* Own memory first, then others', then this node's disk. */
static int load_from(struct session *s, const Fp8ctl__V1__RankPlan *p, struct error *e) {
        struct report_loaded *l = &s->loaded;
        int r = source_load(p->load, s->trainer, s->snapshot, s->ops, s->dev, e);
        bool replica = p->load && p->load->kind == FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA;

        *l = (struct report_loaded){ .from = replica ? FP8CTL__V1__LOADED_FROM__LOADED_OWN_MEMORY : p->load && p->load->kind == FP8CTL__V1__LOAD_SOURCE__KIND__CHECKPOINT ? FP8CTL__V1__LOADED_FROM__LOADED_DISK : FP8CTL__V1__LOADED_FROM__LOADED_INITIAL,
                                     .bytes = replica ? snapshot_bytes(s->snapshot) : 0 };
        if (r >= 0 || !replica)
                return r;
        if (r != -ENOENT) {
                log_warning("%s", e->text);
                report_notice(s->control, s->id, s->epoch, p->load->step, "replica_rejected", "warning", e->text);
        }
        r = fetch(s, p, e);
        if (r < 0)
                return r == -ECANCELED ? COMM_E_ABORTED : r;
        return source_load(p->load, s->trainer, s->snapshot, s->ops, s->dev, e);
}

/* Process, device and listener stay; how many replicas there are may change from epoch to epoch. */
static int take_layout(struct session *s, const Fp8ctl__V1__RankPlan *p, struct error *e) {
        int was = s->spec->parallel.dp;

        if ((int)p->tp != s->spec->parallel.tp || (int)p->pp != s->spec->parallel.pp || (p->dp != (uint32_t)was && job_spec_set_dp(s->spec, (int)p->dp) < 0))
                return error_set(e, -EINVAL, "plan: found tp%" PRIu32 ".pp%" PRIu32 ".dp%" PRIu32 ", expected tp%d.pp%d and a dp that divides the job's batch", p->tp, p->pp, p->dp,
                                 s->spec->parallel.tp, s->spec->parallel.pp);
        if (p->dp == (uint32_t)was)
                return 0;
        log_info("epoch %" PRIu64 ": dp %d becomes %" PRIu32, p->epoch, was, p->dp);
        if (!close_engine(s))
                return error_set(e, -EBUSY, "a write that makes no progress still holds the snapshots of dp %d", was);
        return open_engine(s, e);
}

static int load(struct session *s, double *ret_ms, struct error *e) {
        const Fp8ctl__V1__RankPlan *p = s->plan->rank_plan;
        uint64_t began = clock_mono_ns();
        struct error why = { 0 };
        int r;

        flight_set_phase(s->flight, FLIGHT_LOADING);
        s->epoch = p->epoch;
        s->stopped = false;
        s->rolled_back = p->load && p->load->data_step != 0;
        r = s->device_broken ? error_set(&why, -EIO, "the device has failed and stays so until this process has ended") : take_layout(s, p, &why);
        if (r < 0) {
                report_fault(s->control, s->id, s->epoch, FP8CTL__V1__RANK_FAULT__KIND__FATAL, 0, -1, why.text);
                *e = why;
                return r;
        }
        r = load_from(s, p, &why);
        if (r != 0)
                return session_broken(s, r, FP8CTL__V1__RANK_FAULT__KIND__LOAD_FAILED, &why, e);
        metrics_loaded(s->metrics);
        replicate_begin(s->replicate, p);
        local_tier_begin(s->local, s->epoch, trainer_step_number(s->trainer));
        *ret_ms = (double)(clock_mono_ns() - began) / 1e6;
        return session_move(s, RANK_EVENT_LOADED, e);
}

static void use_rail(struct session *s, const char *rail) {
        if (!rail[0] || (s->collectives && !comm_device_use_ports(s->collectives, rail)))
                return;
        log_info("network ports by the plan: %s", rail);
}

static int make_mesh(struct session *s, struct error *e) {
        const Fp8ctl__V1__RankPlan *p = s->plan->rank_plan;
        struct comm_mesh_config c = { .job = s->id->job, .epoch = p->epoch, .rank = (int)s->id->rank, .n_ranks = (int)p->n_peers, .node = s->id->node,
                                      .timeout_ms = (int)s->spec->recovery.collective_timeout_ms, .connect_timeout_ms = (int)s->spec->recovery.start_timeout_ms,
                                      .flight = s->flight, .ops = s->ops, .device = s->collectives };
        _cleanup_free_ struct comm_peer *peers = NULL;

        if ((int)p->n_peers != s->spec->parallel.tp * s->spec->parallel.pp * s->spec->parallel.dp || p->mesh_key.len != sizeof(c.key))
                return error_set(e, -EPROTO, "plan: found %zu ranks and a key of %zu bytes, expected %d and %zu", p->n_peers, p->mesh_key.len,
                                 s->spec->parallel.tp * s->spec->parallel.pp * s->spec->parallel.dp, sizeof(c.key));
        peers = calloc(p->n_peers, sizeof(*peers));
        if (!peers)
                return error_errno(e, ENOMEM, "mesh");
        for (size_t i = 0; i < p->n_peers; i++) {
                if (p->peers[i]->rank != i)
                        return error_set(e, -EPROTO, "plan: found rank %" PRIu32 " in place %zu, expected rank order", p->peers[i]->rank, i);
                peers[i] = (struct comm_peer){ .incarnation = p->peers[i]->incarnation, .endpoint = p->peers[i]->endpoint, .node = p->peers[i]->node };
        }
        use_rail(s, p->peers[s->id->rank]->rail);
        memcpy(c.key, p->mesh_key.data, sizeof(c.key));
        c.peers = peers;
        return comm_mesh_new(s->listener, s->abort, &c, &s->mesh, e);
}

static int join(struct session *s, double load_ms, struct error *e) {
        uint64_t began = clock_mono_ns();
        struct error why = { 0 };
        int r;

        flight_begin_epoch(s->flight, s->epoch);
        atomic_store(&s->flight->stall_ns, (uint64_t)s->spec->recovery.collective_timeout_ms * NSEC_PER_MSEC);
        flight_set_phase(s->flight, FLIGHT_JOINING);
        r = make_mesh(s, &why);
        if (r == 0)
                r = trainer_attach(s->trainer, s->mesh, &why);
        if (r != 0)
                return session_broken(s, r, FP8CTL__V1__RANK_FAULT__KIND__FATAL, &why, e);
        r = trainer_sync(s->trainer, &why);
        if (r != 0)
                return session_broken(s, r, FP8CTL__V1__RANK_FAULT__KIND__LOAD_FAILED, &why, e);
        r = session_move(s, RANK_EVENT_JOINED, e);
        if (r < 0)
                return r;
        log_info("epoch %" PRIu64 ": goes on after step %" PRIu64, s->epoch, trainer_step_number(s->trainer));
        report_running(s->control, s->id, s->epoch, trainer_step_number(s->trainer), load_ms, (double)(clock_mono_ns() - began) / 1e6, &s->loaded);
        return 0;
}

/* ------------------------------------------------------------------ steps */

/* Rank 0 carries what was asked for without a step into the next agreement; each rank, whether it still writes. */
static void ask(struct session *s) {
        struct control_stop stop;
        uint32_t bits = save_busy(s->save) ? TRAINER_REQUEST_SAVE_BUSY : 0;

        if (s->id->rank == 0) {
                if (control_save_wanted(s->control))
                        bits |= TRAINER_REQUEST_SAVE;
                if (control_stop_wanted(s->control, &stop) && stop.step == 0)
                        bits |= TRAINER_REQUEST_STOP | (stop.save ? TRAINER_REQUEST_SAVE : 0);
        }
        if (bits)
                trainer_request(s->trainer, bits);
}

static bool kill_point(const struct session *s, const char *point, uint64_t step) {
        return s->id->epoch == 1 && s->spec->test.kill_step >= 0 && (uint64_t)s->spec->test.kill_step == step && s->spec->test.kill_rank == (int64_t)s->id->rank &&
               s->spec->test.kill_point && strcmp(s->spec->test.kill_point, point) == 0;
}

static bool last_save(const struct session *s, uint64_t step) {
        return s->spec->checkpoint.at_end && step >= (uint64_t)s->spec->train.steps;
}

static bool periodic_save(const struct session *s, uint64_t step) {
        int64_t every = s->spec->checkpoint.every_steps;

        return (every > 0 && step % (uint64_t)every == 0) || last_save(s, step);
}

void session_start_save(struct session *s, uint64_t step, uint32_t attempt) {
        local_tier_yield(s->local);
        s->saved_step = step;
        save_start(s->save, step, s->epoch, attempt);
}

/* The saves that fall on this step; the same ones on all ranks. While a rank writes, the last one waits for it, those asked for stay asked for, and others are skipped. */
static void saves(struct session *s, uint64_t step, uint32_t agreed) {
        bool asked = (agreed & TRAINER_REQUEST_SAVE) != 0, stop = (agreed & TRAINER_REQUEST_STOP) != 0, late;
        bool busy = (agreed & TRAINER_REQUEST_SAVE_BUSY) != 0, final = last_save(s, step) || (asked && stop);
        uint32_t attempt;

        save_watch(s->save);
        if (final)
                (void)save_finish(s->save);
        if (final || (periodic_save(s, step) && !busy)) {
                session_start_save(s, step, 1);
                busy = true;
        } else if (periodic_save(s, step))
                save_skip(s->save, step, s->epoch);
        if (asked && !stop && !busy) {
                control_wait(s->control, NEWS_SAVE | NEWS_ABORT | NEWS_PLAN | NEWS_RELEASE | NEWS_GONE, SAVE_ORDER_WAIT_MS);
                if (control_take_save(s->control, step, true, &attempt, &late))
                        session_start_save(s, step, attempt);
        }
        while (control_take_save(s->control, step, false, &attempt, &late)) {
                if (late)
                        save_refuse(s->save, step, s->epoch, attempt, "the step asked for is over");
                else
                        session_start_save(s, step, attempt);
        }
        local_tier_next(s->local, step, agreed, s->saved_step == step);
}

static void tell_slow(struct session *s, uint64_t step) {
        char text[400];

        if (!snapshot_told_slow(s->snapshot, text, sizeof(text)))
                return;
        log_warning("%s", text);
        report_notice(s->control, s->id, s->epoch, step, "snapshot_memory_unpinned", "warning", text);
}

/* Said once, when it is over: a rank that had been lost before would have cost more steps. */
static void tell_later(struct session *s, uint64_t step) {
        char text[200];

        if (s->later == 0 || s->id->rank != 0)
                return;
        snprintf(text, sizeof(text), "%" PRIu64 " steps had no snapshot while replica memory was brought in; there are snapshots from now on", s->later);
        log_info("%s", text);
        report_notice(s->control, s->id, s->epoch, step, "snapshots_late", "info", text);
}

static int keep(struct session *s, const struct step_result *res, bool last, struct error *e) {
        int64_t every = s->spec->checkpoint.replica_every > 0 ? s->spec->checkpoint.replica_every : 1;
        struct replicate_counts copies = replicate_counted(s->replicate);
        struct local_tier_counts local = local_tier_counted(s->local);
        bool later = (res->agreed_requests & TRAINER_REQUEST_SNAPSHOT_LATER) != 0;
        bool save_now = periodic_save(s, res->step) || (res->agreed_requests & (TRAINER_REQUEST_SAVE | TRAINER_REQUEST_STOP)) || control_wait(s->control, 0, 0) & NEWS_SAVE;
        int r;

        metrics_fp8_rows(s->metrics, s->epoch, res->step);
        metrics_row(s->metrics, s->epoch, res,
                    &(struct metrics_ckpt){ snapshot_take_waited(s->snapshot), save_skipped(s->save), copies.skipped, copies.missed, copies.bytes, copies.lane_bytes, local.written, local.skipped });
        if (last || save_now || (!later && (res->step % (uint64_t)every == 0 || local_tier_due(s->local, res->step)))) {
                flight_set_phase(s->flight, FLIGHT_SNAPSHOT);
                replicate_next(s->replicate, res->step, res->agreed_requests);
                r = snapshot_start(s->snapshot, s->epoch, e);
                if (r == 0 && (last || kill_point(s, "snapshot", res->step)))
                        r = snapshot_wait(s->snapshot, e);
                if (r < 0)
                        return r;
                if (kill_point(s, "snapshot", res->step))
                        raise(SIGKILL);
                tell_later(s, res->step);
                s->later = 0;
        } else {
                s->later += later;
        }
        metrics_progress(s->metrics, res);
        return 0;
}

static void tell_loss(struct session *s, const struct step_result *res) {
        double median, limit = (double)s->spec->metrics.loss_spike;
        char text[256];

        if (!trainer_reports_loss(s->trainer) || res->skipped || !loss_watch_add(&s->losses, (double)res->loss, limit, &median))
                return;
        snprintf(text, sizeof(text), "the loss of step %" PRIu64 " is %.4f; the median of the steps before it is %.4f", res->step, (double)res->loss, median);
        log_warning("%s", text);
        report_notice(s->control, s->id, s->epoch, res->step, "loss_spike", "warning", text);
}

static void tell_skip(struct session *s, const struct step_result *res) {
        char text[512];

        if (!res->skipped || !trainer_reports_loss(s->trainer))
                return;
        snprintf(text, sizeof(text), "step %" PRIu64 " skipped on all ranks: rank %d, %s, amax %g", res->step, res->bad_rank, res->bad_tensor, res->bad_amax);
        log_warning("%s", text);
        report_notice(s->control, s->id, s->epoch, res->step, "step_skipped", "warning", text);
}

/* Too many skips in a row: back to the last commit and past these batches, once; then stop. Every rank comes to the same from the same result. */
static int overflow(struct session *s, const struct step_result *res, bool *ret_over, struct error *e) {
        int64_t max = s->spec->precision.max_consecutive_skips;
        char text[512];

        *ret_over = false;
        if (!res->skipped) {
                s->rolled_back = false;
                return 0;
        }
        if (max <= 0 || res->consecutive_skips < (uint64_t)max)
                return 0;
        *ret_over = true;
        snprintf(text, sizeof(text), "%" PRIu64 " steps in a row were not finite, the last at rank %d, %s", res->consecutive_skips, res->bad_rank, res->bad_tensor);
        if (s->spec->precision.on_overflow == OVERFLOW_STOP || s->rolled_back)
                return session_fault(s, FP8CTL__V1__RANK_FAULT__KIND__OVERFLOW_STOP, res->step, -1, text, e);
        return session_fault(s, FP8CTL__V1__RANK_FAULT__KIND__OVERFLOW_ROLLBACK, res->step, -1, text, e);
}

static int finish(struct session *s, bool stopped, struct error *e) {
        Fp8ctl__V1__RankProgress progress;
        int r;

        (void)save_finish(s->save);
        (void)local_tier_stop(s->local); /* its folder goes with the job */
        s->stopped = stopped;
        r = session_move(s, RANK_EVENT_FINISHED, e);
        if (r < 0)
                return r;
        flight_set_phase(s->flight, FLIGHT_DONE);
        metrics_fill(s->metrics, &progress);
        log_info("%s at step %" PRIu64, stopped ? "stopped" : "all steps are done", trainer_step_number(s->trainer));
        report_done(s->control, s->id, s->epoch, &progress, stopped);
        return 0;
}

static int step(struct session *s, struct error *e) {
        struct step_result res;
        struct control_stop stop;
        struct error why = { 0 };
        bool last, leave, over;
        int r;

        ask(s);
        r = trainer_step(s->trainer, &res, &why);
        if (r != 0)
                return session_broken(s, r, FP8CTL__V1__RANK_FAULT__KIND__FATAL, &why, e);
        last = res.step >= (uint64_t)s->spec->train.steps;
        leave = (res.agreed_requests & TRAINER_REQUEST_STOP) || (control_stop_wanted(s->control, &stop) && stop.step && res.step >= stop.step);
        r = keep(s, &res, last || leave, &why);
        if (r < 0)
                return session_broken(s, r, FP8CTL__V1__RANK_FAULT__KIND__FATAL, &why, e);
        tell_skip(s, &res);
        tell_loss(s, &res);
        tell_slow(s, res.step);
        r = overflow(s, &res, &over, e);
        if (r < 0 || over)
                return r;
        saves(s, res.step, res.agreed_requests);
        return last || leave ? finish(s, leave && !last, e) : 0;
}

/* Loaded at or past the last step: nothing to do but the save that may have been lost with the epoch before. */
static int nothing_left(struct session *s, struct error *e) {
        uint64_t at = trainer_step_number(s->trainer);
        struct error why = { 0 };
        int r;

        if (s->plan->rank_plan->load->kind == FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA && periodic_save(s, at)) {
                r = snapshot_start(s->snapshot, s->epoch, &why);
                if (r == 0)
                        r = snapshot_wait(s->snapshot, &why);
                if (r < 0)
                        return session_broken(s, r, FP8CTL__V1__RANK_FAULT__KIND__FATAL, &why, e);
                session_start_save(s, at, 1);
        }
        return finish(s, false, e);
}

/* ------------------------------------------------------------------ the loop */

static int session_loop(struct session *s, struct error *e) {
        double load_ms = 0;
        int r = 0;

        while (r == 0 && s->state != RANK_STATE_LEAVING) {
                switch (s->state) {
                case RANK_STATE_LOADING:
                        r = load(s, &load_ms, e);
                        break;
                case RANK_STATE_JOINING:
                        r = join(s, load_ms, e);
                        break;
                case RANK_STATE_RUNNING:
                        r = trainer_step_number(s->trainer) >= (uint64_t)s->spec->train.steps ? nothing_left(s, e) : step(s, e);
                        break;
                default:
                        r = session_wait_for_orders(s, e);
                        break;
                }
        }
        return r;
}

int session_run(const struct identity *id, struct error *e) {
        struct session s = { .me = *id, .state = RANK_STATE_STARTING };
        int r;

        s.began = clock_mono_ns();
        s.id = &s.me;
        r = session_open(&s, e);
        if (r == 0)
                r = session_move(&s, RANK_EVENT_STARTED, e);
        if (r == 0) {
                flight_set_phase(s.flight, FLIGHT_PARKED);
                log_info("ready after %.0f ms at %s", (double)(clock_mono_ns() - s.began) / 1e6, comm_listener_endpoint(s.listener));
                report_ready(s.control, s.id, comm_listener_endpoint(s.listener), trainer_fingerprint(s.trainer));
                r = session_loop(&s, e);
        }
        session_close(&s);
        return r;
}
