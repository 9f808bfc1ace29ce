/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Life of the node daemon: adopt what the spawner holds, hold the stream, leave when asked to.
 *
 * SIGTERM is a notice (spot instance, Slurm, a reboot): the controller is told, saves and takes away what runs here, and when the last rank has left, or the
 * grace is over, the worker and its spawner go.  A second one ends it at once.  A crash or kill of this process ends nothing: the spawner holds the
 * ranks until the next agent comes, or their lease is over.
 */
#include "worker/agent/agent.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/rdma.h"
#include "worker/agent/agent_private.h"
#include "worker/agent/gasp.h"
#include "worker/agent/notify.h"

#define LEAVE_POLL_NS (50 * NSEC_PER_MSEC)
#define TASKS_GRACE_MS 2000

/* The spawner ends itself after this; its hang-up ends our loop (link.c). */
static void leave_now(struct agent *a) {
        Fp8ctl__V1__AgentToSpawner out = FP8CTL__V1__AGENT_TO_SPAWNER__INIT;
        Fp8ctl__V1__SpawnerExit leave = FP8CTL__V1__SPAWNER_EXIT__INIT;

        out.body_case = FP8CTL__V1__AGENT_TO_SPAWNER__BODY_EXIT;
        out.exit = &leave;
        link_send(a, &out);
        a->leave_deadline_ns = 0;
        loop_timer_set(a->leave_timer, clock_mono_ns() + 6 * NSEC_PER_SEC);
}

static void on_leave_due(void *arg) {
        struct agent *a = arg;
        uint64_t now = clock_mono_ns();

        if (a->leave_deadline_ns == 0) { /* the spawner did not hang up: go all the same */
                loop_stop(a->loop, AGENT_LEFT);
                return;
        }
        if (local_ranks_living(a) == 0 || now > a->leave_deadline_ns) {
                if (local_ranks_living(a) > 0)
                        log_warning("the grace is over: killing %zu ranks", local_ranks_living(a));
                leave_now(a);
                return;
        }
        loop_timer_set(a->leave_timer, now + LEAVE_POLL_NS);
}

bool agent_leaving(const struct agent *a, Fp8ctl__V1__WorkerLeaving *ret) {
        uint64_t now = clock_mono_ns();

        if (!a->leaving || a->leave_deadline_ns <= now)
                return false;
        fp8ctl__v1__worker_leaving__init(ret);
        ret->grace_ms = (uint32_t)((a->leave_deadline_ns - now) / NSEC_PER_MSEC);
        ret->reason = (char *)"SIGTERM";
        return true;
}

void agent_say_leaving(struct agent *a) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__WorkerLeaving leaving;

        if (!a->welcomed || !agent_leaving(a, &leaving))
                return; /* the next welcome, if there is time left */
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_LEAVING;
        m.leaving = &leaving;
        stream_send(a, &m);
}

static void on_signal(void *arg, int signo) {
        struct agent *a = arg;
        uint64_t now = clock_mono_ns();

        if (signo == SIGHUP) {
                if (!a->leaving) {
                        log_info("SIGHUP: beginning anew; %zu ranks train on", local_ranks_living(a));
                        loop_stop(a->loop, AGENT_RELOAD);
                }
                return;
        }
        if (a->leaving) {
                log_info("SIG%s again: leaving at once", sigabbrev_np(signo));
                leave_now(a);
                return;
        }
        a->leaving = true;
        notify_stopping();
        log_info("SIG%s: leaving when %zu ranks have, within %" PRIu32 " ms", sigabbrev_np(signo), local_ranks_living(a), a->config->grace_ms);
        a->leave_deadline_ns = now + a->config->grace_ms * NSEC_PER_MSEC + 1;
        agent_say_leaving(a);
        /* One poll later at the earliest, so that the message leaves. */
        loop_timer_set(a->leave_timer, now + LEAVE_POLL_NS);
}

static void on_watchdog(void *arg) {
        struct agent *a = arg;

        notify_alive();
        loop_timer_set(a->watchdog, clock_mono_ns() + notify_watchdog_ns());
}

static void on_health(void *arg, Fp8ctl__V1__HealthReport *m) {
        struct agent *a = arg;
        Fp8ctl__V1__WorkerMessage out = FP8CTL__V1__WORKER_MESSAGE__INIT;

        for (size_t i = 0; i < m->n_device_memory_bytes && i < a->node.message.n_devices; i++)
                if (m->device_memory_bytes[i] && strcmp(a->node.devices[i].kind, "cuda") == 0)
                        a->node.devices[i].memory_bytes = m->device_memory_bytes[i]; /* of the next hello */
        if (!a->welcomed && m->n_findings == 0)
                return; /* all of it comes after the welcome */
        out.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_HEALTH_REPORT;
        out.health_report = m;
        stream_send(a, &out);
}

static int health_open(struct agent *a, struct error *e) {
        const struct health_config c = { .loop = a->loop, .root = a->config->health_root, .checks_dir = a->config->health_checks, .site_ms = a->config->health_interval_ms, .dir = a->config->dir,
                                         .report = on_health, .arg = a };
        bool gpus = strcmp(a->config->device_kind, "cuda") == 0 || c.root[0];
        size_t n = gpus ? health_gpus(c.root, a->node.pci, NODE_DEVICES_MAX) : 0;

        for (size_t i = 0; i < n && i < a->node.message.n_devices; i++) {
                a->node.devices[i].pci = a->node.pci[i].text;
                if (a->node.pci[i].model[0])
                        a->node.devices[i].name = a->node.pci[i].model;
        }
        node_describe_topology(&a->node, c.root, n);
        return health_new(&c, &a->health, e);
}

static int agent_open(struct agent *a, struct error *e) {
        static const int signals[] = { SIGTERM, SIGINT, SIGHUP };
        struct holder_config holding;
        struct error why = { 0 };
        int r = loop_new(&a->loop);

        if (r == 0)
                r = tasks_new(a->loop, &a->tasks);
        for (size_t i = 0; r == 0 && i < ARRAY_SIZE(signals); i++)
                r = loop_add_signal(a->loop, signals[i], on_signal, a, &a->signals[i]);
        if (r == 0)
                r = loop_add_timer(a->loop, 0, on_leave_due, a, &a->leave_timer);
        if (r == 0)
                r = loop_add_timer(a->loop, notify_watchdog_ns() ? clock_mono_ns() : 0, on_watchdog, a, &a->watchdog);
        if (r < 0)
                return error_errno(e, -r, "event loop");
        node_describe(&a->node, a->config->name, a->config->dir, a->config->host, a->config->device_kind, a->config->devices);
        a->node.message.rack = (char *)a->config->rack;
        /* No device is nothing to tell, unless one was asked for. */
        if (rdma_open(a->config->rdma, &a->rdma, &why) == 0)
                log_info("second copies are taken by RDMA on %s", rdma_name(a->rdma));
        else if (a->config->rdma && a->config->rdma[0])
                log_warning("second copies are taken by sockets only: %s", why.text);
        holding = (struct holder_config){ .node = a->config->name, .host = a->config->host, .memory = a->node.memory_bytes / 100 * a->config->replica_percent, .keep = link_keep, .arg = a,
                                           .lanes = rdma_lanes(a->rdma) };
        r = holder_new(&holding, &a->holder, e);
        if (r == 0)
                r = health_open(a, e);
        if (r == 0)
                r = canary_open(a, e);
        return r < 0 ? r : link_start(a, e);
}

int agent_run(const struct agent_config *c, struct error *e) {
        struct agent *a = calloc(1, sizeof(*a));
        int r;

        if (!a)
                return error_errno(e, ENOMEM, "agent");
        a->config = c;
        a->link_fd = -1;
        r = agent_open(a, e);
        if (r == 0) {
                notify_ready("holding ranks for the controller");
                r = loop_run(a->loop);
                if (r < 0)
                        error_errno(e, -r, "event loop");
        }
        if (r == AGENT_RELOAD)
                return r; /* as after a crash, and as quick: what matters is the spawner's, the rest goes with this image of the process */
        if (a->loop)
                stream_stop(a);
        canary_close(a);
        rollout_close(a);
        gasp_stop(a);
        if (!health_stop(a->health)) {
                /* It hangs in a driver; its thread still needs what would be freed, and the process ends anyway. */
                log_warning("a health check still runs; leaving it");
                return r;
        }
        a->holder = holder_free(a->holder);
        a->rdma = rdma_free(a->rdma);
        link_stop(a);
        local_ranks_free(a);
        if (a->tasks && !tasks_wait(a->tasks, TASKS_GRACE_MS)) {
                /* A file system does not answer; the thread still needs what would be freed, and the process ends anyway. */
                log_warning("a file task still runs; leaving it");
                return r;
        }
        if (a->loop)
                loop_turn(a->loop, 0); /* ends of tasks and death notices that were posted free themselves */
        gasp_free(a);
        tasks_free(a->tasks);
        loop_free(a->loop);
        free(a);
        return r;
}
