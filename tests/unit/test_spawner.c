/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The node side without agent and controller: this program speaks to a real spawner as the agent does, and plays the controller's part for a job of two
 * real ranks.  Needs FP8_RANK, the path of fp8-rank.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/loop.h"
#include "proto/flight.h"
#include "proto/fp8ctl.pb-c.h"
#include "proto/ipc.h"
#include "proto/job_spec.h"
#include "proto/replica.h"
#include "tests/test.h"
#include "worker/agent/outbox.h"
#include "worker/agent/spawner.h"

#define RANKS 2
#define WAIT_MS 60000

struct place {
        uint64_t incarnation;
        int flight_fd, replica_fd;
        struct flight *flight;
        uint32_t pid;
        char endpoint[512];
};

struct node {
        char dir[64];
        pid_t spawner;
        int fd;
        char *job_file;
        struct place places[RANKS];
        uint64_t next_incarnation, epoch;
        Fp8ctl__V1__SpawnerToAgent *last; /* newest message, freed with the next */
};

static void fail(const char *what) {
        printf("    %s\n", what);
        CU_FAIL_FATAL("see above");
}

static void say(struct node *n, Fp8ctl__V1__AgentToSpawner *m) {
        struct error e = { 0 };

        ASSERT_OK(ipc_send(n->fd, &m->base, NULL, 0, &e), e);
}

static void take_rank(struct node *n, const Fp8ctl__V1__RankStatus *s, int fds[IPC_MAX_FDS]) {
        struct place *p = &n->places[s->rank];
        struct error e = { 0 };

        flight_unmap(p->flight);
        closep(&p->flight_fd);
        closep(&p->replica_fd);
        p->flight_fd = fds[0];
        p->replica_fd = fds[1];
        p->flight = NULL;
        ASSERT_OK(flight_map(p->flight_fd, &p->flight, &e), e);
        p->incarnation = s->incarnation;
        p->pid = s->pid;
        snprintf(p->endpoint, sizeof(p->endpoint), "%s", s->endpoint);
        if (!s->exited)
                atomic_store(&p->flight->lease_deadline_ns, clock_mono_ns() + 120 * NSEC_PER_SEC);
}

/* The next message; bookkeeping of ranks and endpoints is done here. NULL after timeout_ms. */
static Fp8ctl__V1__SpawnerToAgent *hear(struct node *n, int timeout_ms) {
        struct pollfd pfd = { .fd = n->fd, .events = POLLIN };
        int fds[IPC_MAX_FDS] = { -1, -1, -1, -1 };
        ProtobufCMessage *m = NULL;
        struct error e = { 0 };

        if (poll(&pfd, 1, timeout_ms) <= 0)
                return NULL;
        if (ipc_recv(n->fd, &fp8ctl__v1__spawner_to_agent__descriptor, &m, fds, &e) != 1)
                fail(e.text[0] ? e.text : "the spawner hung up");
        if (n->last)
                protobuf_c_message_free_unpacked(&n->last->base, NULL);
        n->last = (Fp8ctl__V1__SpawnerToAgent *)m;
        if (n->last->body_case == FP8CTL__V1__SPAWNER_TO_AGENT__BODY_RANK)
                take_rank(n, n->last->rank->status, fds);
        if (n->last->body_case == FP8CTL__V1__SPAWNER_TO_AGENT__BODY_RELAY && n->last->relay->body_case == FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_READY)
                snprintf(n->places[n->last->relay->rank_ready->rank].endpoint, sizeof(n->places[0].endpoint), "%s", n->last->relay->rank_ready->endpoint);
        return n->last;
}

/* Waits for `count` relayed messages of one kind; a fault or an exit in between fails the test. */
static Fp8ctl__V1__WorkerMessage *await_relay(struct node *n, Fp8ctl__V1__WorkerMessage__BodyCase kind, int count) {
        uint64_t end = clock_mono_ns() + WAIT_MS * NSEC_PER_MSEC;

        while (clock_mono_ns() < end) {
                Fp8ctl__V1__SpawnerToAgent *m = hear(n, 100);

                if (!m)
                        continue;
                if (m->body_case == FP8CTL__V1__SPAWNER_TO_AGENT__BODY_EXITED)
                        fail(m->exited->cause);
                if (m->body_case != FP8CTL__V1__SPAWNER_TO_AGENT__BODY_RELAY)
                        continue;
                if (m->relay->body_case == FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_FAULT && kind != FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_FAULT &&
                    m->relay->rank_fault->kind != FP8CTL__V1__RANK_FAULT__KIND__PEER_LOST)
                        fail(m->relay->rank_fault->text);
                if (m->relay->body_case == kind && --count == 0)
                        return m->relay;
        }
        fail("waited in vain for a message of a rank");
        return NULL;
}

static Fp8ctl__V1__RankExited *await_exit(struct node *n) {
        uint64_t end = clock_mono_ns() + WAIT_MS * NSEC_PER_MSEC;

        while (clock_mono_ns() < end) {
                Fp8ctl__V1__SpawnerToAgent *m = hear(n, 100);

                if (m && m->body_case == FP8CTL__V1__SPAWNER_TO_AGENT__BODY_EXITED)
                        return m->exited;
        }
        fail("waited in vain for an exit");
        return NULL;
}

static void connect_agent(struct node *n) {
        Fp8ctl__V1__AgentToSpawner m = FP8CTL__V1__AGENT_TO_SPAWNER__INIT;
        Fp8ctl__V1__SpawnerHello hello = FP8CTL__V1__SPAWNER_HELLO__INIT;
        char path[128];
        struct error e = { 0 };

        snprintf(path, sizeof(path), "%s/" SPAWNER_SOCKET, n->dir);
        ASSERT_OK(ipc_connect(path, &n->fd, &e), e);
        m.body_case = FP8CTL__V1__AGENT_TO_SPAWNER__BODY_HELLO;
        m.hello = &hello;
        say(n, &m);
        for (;;) {
                Fp8ctl__V1__SpawnerToAgent *a = hear(n, WAIT_MS);

                if (!a)
                        fail("no answer to hello");
                else if (a->body_case == FP8CTL__V1__SPAWNER_TO_AGENT__BODY_SYNCED)
                        return;
        }
}

static const char words[] = "in the beginning was the word and the word was with the worker and nothing was made without it\n\n";

static void node_up(struct node *n, int steps) {
        struct spawner_config c = { .node = "node-0", .host = "127.0.0.1", .device_kind = "cpu", .rank_binary = getenv("FP8_RANK"), .log_level = "info", .devices = RANKS };
        char data[128], yaml[2048];
        struct job_spec *spec = NULL;
        struct error e = { 0 };
        FILE *f;

        memset(n, 0, sizeof(*n));
        n->fd = -1;
        for (int i = 0; i < RANKS; i++)
                n->places[i].flight_fd = n->places[i].replica_fd = -1;
        strcpy(n->dir, "/tmp/fp8-spawner-XXXXXX");
        CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(n->dir));
        snprintf(data, sizeof(data), "%s/text", n->dir);
        f = fopen(data, "we");
        CU_ASSERT_PTR_NOT_NULL_FATAL(f);
        for (int i = 0; i < 200; i++)
                fputs(words + i % 40, f);
        fclose(f);
        snprintf(yaml, sizeof(yaml),
                 "version: 1\nname: spawner-test\nmodel:\n  preset: tiny\ndata:\n  path: %s\n  seq_len: 32\nparallel: {tp: 1, pp: 1, dp: 2}\n"
                 "train: {steps: %d, micro_batch: 1, global_batch: 4}\nprecision: {recipe: fp32}\noptimizer: {lr: 0.001}\n"
                 "checkpoint: {dir: %s/ckpt, every_steps: 8}\nmetrics: {digests: true}\n",
                 data, steps, n->dir);
        ASSERT_OK(job_spec_parse(yaml, strlen(yaml), "test.yaml", n->dir, &spec, &e), e);
        ASSERT_OK(job_spec_to_json(spec, &n->job_file, &e), e);
        job_spec_free(spec);
        c.dir = n->dir;
        if (!c.rank_binary)
                fail("FP8_RANK is not set");
        ASSERT_OK(spawner_fork(&c, &n->spawner, &e), e);
        connect_agent(n);
        n->next_incarnation = 1;
        n->epoch = 1;
}

static void node_down(struct node *n) {
        Fp8ctl__V1__AgentToSpawner m = FP8CTL__V1__AGENT_TO_SPAWNER__INIT;
        Fp8ctl__V1__SpawnerExit leave = FP8CTL__V1__SPAWNER_EXIT__INIT;
        int status = -1;

        m.body_case = FP8CTL__V1__AGENT_TO_SPAWNER__BODY_EXIT;
        m.exit = &leave;
        say(n, &m);
        CU_ASSERT_EQUAL(waitpid(n->spawner, &status, 0), n->spawner);
        CU_ASSERT_EQUAL(status, 0);
        if (n->last)
                protobuf_c_message_free_unpacked(&n->last->base, NULL);
        for (int i = 0; i < RANKS; i++) {
                flight_unmap(n->places[i].flight);
                closep(&n->places[i].flight_fd);
                closep(&n->places[i].replica_fd);
        }
        closep(&n->fd);
        free(n->job_file);
        file_remove_tree(n->dir, NULL);
}

static void start(struct node *n, uint32_t first, uint32_t count) {
        Fp8ctl__V1__AgentToSpawner m = FP8CTL__V1__AGENT_TO_SPAWNER__INIT;
        Fp8ctl__V1__StartRanks s = FP8CTL__V1__START_RANKS__INIT;
        Fp8ctl__V1__RankStart ranks[RANKS], *list[RANKS];

        for (uint32_t i = 0; i < count; i++) {
                fp8ctl__v1__rank_start__init(&ranks[i]);
                ranks[i].rank = ranks[i].device = first + i;
                ranks[i].incarnation = n->next_incarnation++;
                list[i] = &ranks[i];
        }
        s.job_id = 1;
        s.epoch = n->epoch;
        s.job_file = n->job_file;
        s.job_name = (char *)"spawner-test";
        s.uid = getuid();
        s.gid = getgid();
        s.ranks = list;
        s.n_ranks = count;
        m.body_case = FP8CTL__V1__AGENT_TO_SPAWNER__BODY_START;
        m.start = &s;
        say(n, &m);
}

static void relay(struct node *n, uint32_t rank, Fp8ctl__V1__ControllerMessage *cm) {
        Fp8ctl__V1__AgentToSpawner m = FP8CTL__V1__AGENT_TO_SPAWNER__INIT;
        Fp8ctl__V1__RelayToRank r = FP8CTL__V1__RELAY_TO_RANK__INIT;

        r.job_id = 1;
        r.rank = rank;
        r.incarnation = n->places[rank].incarnation;
        r.message = cm;
        m.body_case = FP8CTL__V1__AGENT_TO_SPAWNER__BODY_RELAY;
        m.relay = &r;
        say(n, &m);
}

static void plan(struct node *n, Fp8ctl__V1__LoadSource__Kind kind, uint64_t step, const char *path) {
        Fp8ctl__V1__ControllerMessage cm = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__RankPlan p = FP8CTL__V1__RANK_PLAN__INIT;
        Fp8ctl__V1__LoadSource load = FP8CTL__V1__LOAD_SOURCE__INIT;
        Fp8ctl__V1__RankPeer peers[RANKS], *list[RANKS];
        uint8_t key[32] = { 1, 2, 3 };

        for (uint32_t i = 0; i < RANKS; i++) {
                fp8ctl__v1__rank_peer__init(&peers[i]);
                peers[i].rank = i;
                peers[i].incarnation = n->places[i].incarnation;
                peers[i].endpoint = n->places[i].endpoint;
                peers[i].node = (char *)"node-0";
                list[i] = &peers[i];
        }
        load.kind = kind;
        load.step = step;
        load.path = (char *)path;
        p.job_id = 1;
        p.epoch = n->epoch;
        p.mesh_key.data = key;
        p.mesh_key.len = sizeof(key);
        p.tp = p.pp = 1;
        p.dp = RANKS;
        p.peers = list;
        p.n_peers = RANKS;
        p.load = &load;
        cm.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_RANK_PLAN;
        cm.rank_plan = &p;
        for (uint32_t i = 0; i < RANKS; i++)
                relay(n, i, &cm);
}

static void abort_epoch(struct node *n, uint32_t rank) {
        Fp8ctl__V1__ControllerMessage cm = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__AbortEpoch a = FP8CTL__V1__ABORT_EPOCH__INIT;

        a.job_id = 1;
        a.epoch = n->epoch;
        a.reason = (char *)"test";
        cm.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_ABORT_EPOCH;
        cm.abort_epoch = &a;
        relay(n, rank, &cm);
}

static void release(struct node *n) {
        Fp8ctl__V1__AgentToSpawner m = FP8CTL__V1__AGENT_TO_SPAWNER__INIT;
        Fp8ctl__V1__ReleaseJob r = FP8CTL__V1__RELEASE_JOB__INIT;

        r.job_id = 1;
        r.epoch = n->epoch;
        m.body_case = FP8CTL__V1__AGENT_TO_SPAWNER__BODY_RELEASE;
        m.release = &r;
        say(n, &m);
}

static void wait_step(struct node *n, uint64_t step) {
        uint64_t end = clock_mono_ns() + WAIT_MS * NSEC_PER_MSEC;

        while (atomic_load(&n->places[0].flight->step) < step) {
                if (clock_mono_ns() > end)
                        fail("waited in vain for a step");
                usleep(1000);
        }
}

/* The newest step whose snapshot every rank's replica memory has, verified. */
static uint64_t common_step(struct node *n) {
        uint64_t steps[RANKS][REPLICA_SLOTS], best = 0;
        struct replica *maps[RANKS];
        struct error e = { 0 };
        int count[RANKS];

        for (int i = 0; i < RANKS; i++) {
                ASSERT_OK(replica_map(n->places[i].replica_fd, &maps[i], &e), e);
                count[i] = replica_steps(maps[i], steps[i]);
        }
        for (int a = 0; a < count[0]; a++)
                for (int b = 0; b < count[1]; b++)
                        if (steps[0][a] == steps[1][b] && steps[0][a] > best)
                                best = steps[0][a];
        for (int i = 0; i < RANKS; i++) {
                const struct replica_slot *slot;
                const void *payload;

                ASSERT_OK(replica_find(maps[i], best, 1, &slot, &payload, &e), e);
                replica_unmap(maps[i]);
        }
        return best;
}

/* loss_hex and digest of each step of the highest epoch. */
static void read_rows(struct node *n, int steps, char rows[][64]) {
        char path[128], *text = NULL, *line, *save;
        uint64_t epochs[256] = { 0 };
        struct error e = { 0 };
        size_t len;

        snprintf(path, sizeof(path), "%s/jobs/1/metrics.jsonl", n->dir);
        ASSERT_OK(file_read(path, 1 << 24, &text, &len, &e), e);
        for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
                json_t *row = json_loads(line, 0, NULL);
                uint64_t step = (uint64_t)json_integer_value(json_object_get(row, "step")), epoch = (uint64_t)json_integer_value(json_object_get(row, "epoch"));

                CU_ASSERT_TRUE_FATAL(row && step >= 1 && step <= (uint64_t)steps);
                CU_ASSERT_TRUE(epoch >= epochs[step]);
                epochs[step] = epoch;
                snprintf(rows[step], 64, "%s %s", json_string_value(json_object_get(row, "loss_hex")), json_string_value(json_object_get(row, "digest")));
                json_decref(row);
        }
        for (int i = 1; i <= steps; i++)
                CU_ASSERT_NOT_EQUAL(epochs[i], 0);
        free(text);
}

#define STEPS 24

static char undisturbed[STEPS + 1][64];

static void run_to_end(struct node *n) {
        for (int i = 0; i < RANKS; i++)
                CU_ASSERT_EQUAL(await_relay(n, FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_DONE, 1)->rank_done->progress->step, STEPS);
        release(n);
        for (int i = 0; i < RANKS; i++) {
                Fp8ctl__V1__RankExited *x = await_exit(n);

                CU_ASSERT_EQUAL(x->exit_status, 0);
                CU_ASSERT_EQUAL(x->signal, 0);
                CU_ASSERT_TRUE(x->reaped);
        }
}

TEST(a_job_of_two_ranks_runs_to_its_end) {
        Fp8ctl__V1__WorkerMessage *m;
        struct node n;
        struct stat st;
        char path[256];

        node_up(&n, STEPS);
        start(&n, 0, RANKS);
        await_relay(&n, FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_READY, RANKS);
        plan(&n, FP8CTL__V1__LOAD_SOURCE__KIND__INITIALISE, 0, "");
        await_relay(&n, FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_RUNNING, RANKS);
        m = await_relay(&n, FP8CTL__V1__WORKER_MESSAGE__BODY_CHECKPOINT_PREPARED, 1);
        CU_ASSERT_STRING_EQUAL(m->checkpoint_prepared->error, "");
        CU_ASSERT_EQUAL(m->checkpoint_prepared->step, 8);
        CU_ASSERT_EQUAL_FATAL(m->checkpoint_prepared->n_shards, 1);
        snprintf(path, sizeof(path), "%s/%s", m->checkpoint_prepared->directory, m->checkpoint_prepared->shards[0]->file);
        CU_ASSERT_EQUAL_FATAL(stat(path, &st), 0);
        CU_ASSERT_EQUAL((uint64_t)st.st_size, m->checkpoint_prepared->shards[0]->bytes);
        run_to_end(&n);
        read_rows(&n, STEPS, undisturbed);
        node_down(&n);
}

/* SIGKILL, park, start again in place, load the common generation from replica memory: the same bits to the end. */
TEST(b_killed_rank_goes_on_bitwise) {
        char rows[STEPS + 1][64] = { { 0 } };
        Fp8ctl__V1__RankExited *x;
        struct node n;
        uint64_t began;

        if (!undisturbed[1][0]) /* run alone */
                test_a_job_of_two_ranks_runs_to_its_end();
        node_up(&n, STEPS);
        start(&n, 0, RANKS);
        await_relay(&n, FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_READY, RANKS);
        plan(&n, FP8CTL__V1__LOAD_SOURCE__KIND__INITIALISE, 0, "");
        await_relay(&n, FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_RUNNING, RANKS);
        wait_step(&n, 7);
        began = clock_mono_ns();
        CU_ASSERT_EQUAL(kill((pid_t)n.places[1].pid, SIGKILL), 0);
        CU_ASSERT_EQUAL(flight_wait_death(n.places[1].flight, 5 * NSEC_PER_SEC), 0);
        printf("    mutex %.2f ms", (double)(clock_mono_ns() - began) / 1e6);
        x = await_exit(&n);
        CU_ASSERT_EQUAL(x->rank, 1);
        CU_ASSERT_EQUAL(x->signal, SIGKILL);
        CU_ASSERT_STRING_EQUAL(x->cause, "killed by SIGKILL");
        n.epoch = 2;
        start(&n, 1, 1);
        abort_epoch(&n, 0);
        CU_ASSERT_EQUAL(await_relay(&n, FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_PARKED, 1)->rank_parked->epoch, 2);
        printf(", parked %.0f ms", (double)(clock_mono_ns() - began) / 1e6);
        await_relay(&n, FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_READY, 1);
        printf(", ready %.0f ms", (double)(clock_mono_ns() - began) / 1e6);
        CU_ASSERT_TRUE(common_step(&n) >= 6);
        plan(&n, FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA, common_step(&n), "");
        await_relay(&n, FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_RUNNING, RANKS);
        printf(", running %.0f ms after the kill\n", (double)(clock_mono_ns() - began) / 1e6);
        run_to_end(&n);
        read_rows(&n, STEPS, rows);
        for (int i = 1; i <= STEPS; i++)
                CU_ASSERT_STRING_EQUAL(rows[i], undisturbed[i]);
        node_down(&n);
}

/* The agent dies: ranks train on, and the next agent gets everything, deaths included. */
TEST(c_agent_comes_back) {
        struct node n;
        uint64_t step;

        node_up(&n, 100000);
        start(&n, 0, RANKS);
        await_relay(&n, FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_READY, RANKS);
        plan(&n, FP8CTL__V1__LOAD_SOURCE__KIND__INITIALISE, 0, "");
        closep(&n.fd); /* what the ranks say now is held */
        wait_step(&n, 3);
        connect_agent(&n);
        await_relay(&n, FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_RUNNING, RANKS);
        step = atomic_load(&n.places[0].flight->step);
        closep(&n.fd);
        wait_step(&n, step + 2);
        CU_ASSERT_EQUAL(kill((pid_t)n.places[1].pid, SIGABRT), 0);
        CU_ASSERT_EQUAL(flight_wait_death(n.places[1].flight, 5 * NSEC_PER_SEC), 0);
        usleep(300000);
        {
                Fp8ctl__V1__AgentToSpawner m = FP8CTL__V1__AGENT_TO_SPAWNER__INIT;
                Fp8ctl__V1__SpawnerHello hello = FP8CTL__V1__SPAWNER_HELLO__INIT;
                char path[128];
                bool told = false;

                snprintf(path, sizeof(path), "%s/" SPAWNER_SOCKET, n.dir);
                CU_ASSERT_EQUAL_FATAL(ipc_connect(path, &n.fd, NULL), 0);
                m.body_case = FP8CTL__V1__AGENT_TO_SPAWNER__BODY_HELLO;
                m.hello = &hello;
                say(&n, &m);
                for (;;) {
                        Fp8ctl__V1__SpawnerToAgent *a = hear(&n, WAIT_MS);

                        CU_ASSERT_PTR_NOT_NULL_FATAL(a);
                        if (a->body_case == FP8CTL__V1__SPAWNER_TO_AGENT__BODY_SYNCED)
                                break;
                        if (a->body_case == FP8CTL__V1__SPAWNER_TO_AGENT__BODY_RANK && a->rank->status->rank == 1 && a->rank->status->exited) {
                                told = a->rank->status->exited->signal == SIGABRT;
                                CU_ASSERT_STRING_EQUAL(a->rank->status->exited->cause, "killed by SIGABRT");
                        }
                }
                CU_ASSERT_TRUE(told);
        }
        node_down(&n);
}

TEST(d_lease_over_kills) {
        Fp8ctl__V1__RankExited *x;
        struct node n;

        node_up(&n, 100000);
        start(&n, 0, RANKS);
        await_relay(&n, FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_READY, RANKS);
        /* Stopped, so that it is not the rank itself that looks at its lease; its kernel timer was armed for later. */
        CU_ASSERT_EQUAL(kill((pid_t)n.places[0].pid, SIGSTOP), 0);
        atomic_store(&n.places[0].flight->lease_deadline_ns, clock_mono_ns() - 1);
        x = await_exit(&n);
        CU_ASSERT_EQUAL(x->rank, 0);
        CU_ASSERT_EQUAL(x->signal, SIGKILL);
        CU_ASSERT_PTR_NOT_NULL(strstr(x->cause, "lease"));
        /* The spawner stopped: the rank's own timer. */
        kill(n.spawner, SIGSTOP);
        atomic_store(&n.places[1].flight->lease_deadline_ns, clock_mono_ns() + 1500 * NSEC_PER_MSEC);
        CU_ASSERT_EQUAL(flight_wait_death(n.places[1].flight, 20 * NSEC_PER_SEC), 0);
        kill(n.spawner, SIGCONT);
        x = await_exit(&n);
        CU_ASSERT_EQUAL(x->rank, 1);
        CU_ASSERT_STRING_EQUAL(x->cause, "killed by its lease timer");
        node_down(&n);
}

TEST(e_what_cannot_start_says_why) {
        Fp8ctl__V1__RankExited *x;
        struct node n;

        node_up(&n, STEPS);
        free(n.job_file);
        n.job_file = strdup("{\"version\": 1, \"name\": 7}");
        start(&n, 0, 1);
        x = await_exit(&n);
        CU_ASSERT_EQUAL(x->exit_status, 1);
        CU_ASSERT_EQUAL(strncmp(x->cause, "exit 1: /", 9), 0); /* without the log's time and name */
        CU_ASSERT_PTR_NOT_NULL(strstr(x->cause, "job.json"));
        node_down(&n);
}

/* Two standbys, one with its device open; ranks that are started become of them, and a third is dismissed by the next plan. */
static void plan_standbys(struct node *n, size_t count) {
        Fp8ctl__V1__AgentToSpawner m = FP8CTL__V1__AGENT_TO_SPAWNER__INIT;
        Fp8ctl__V1__StandbyPlan p = FP8CTL__V1__STANDBY_PLAN__INIT;
        Fp8ctl__V1__Standby s[3], *list[3];

        for (size_t i = 0; i < count; i++) {
                fp8ctl__v1__standby__init(&s[i]);
                s[i].number = i + 1;
                s[i].warm = i == 0;
                s[i].device = s[i].rank = (uint32_t)(i % RANKS);
                list[i] = &s[i];
        }
        p.job_id = 1;
        p.epoch = n->epoch;
        p.job_file = n->job_file;
        p.job_name = (char *)"spawner-test";
        p.uid = getuid();
        p.gid = getgid();
        p.standbys = list;
        p.n_standbys = count;
        m.body_case = FP8CTL__V1__AGENT_TO_SPAWNER__BODY_STANDBYS;
        m.standbys = &p;
        say(n, &m);
}

static void await_standbys(struct node *n, Fp8ctl__V1__StandbyStatus__State state, size_t count, uint32_t pids[4]) {
        uint64_t end = clock_mono_ns() + WAIT_MS * NSEC_PER_MSEC;

        while (count > 0) {
                Fp8ctl__V1__SpawnerToAgent *m = hear(n, 100);

                if (clock_mono_ns() > end)
                        fail("waited in vain for standbys");
                if (!m || m->body_case != FP8CTL__V1__SPAWNER_TO_AGENT__BODY_STANDBY || m->standby->state != state)
                        continue;
                CU_ASSERT_TRUE_FATAL(m->standby->number >= 1 && m->standby->number <= 3);
                CU_ASSERT_EQUAL(m->standby->dp, 2);
                pids[m->standby->number] = m->standby->pid;
                count--;
        }
}

TEST(standbys_become_ranks) {
        struct node n;
        uint32_t pids[4] = { 0 }, gone[4] = { 0 };
        uint64_t at;

        node_up(&n, 1000000);
        plan_standbys(&n, 3);
        await_standbys(&n, FP8CTL__V1__STANDBY_STATUS__STATE__READY, 3, pids);
        start(&n, 0, RANKS);
        await_relay(&n, FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_READY, RANKS);
        CU_ASSERT_EQUAL(n.places[0].pid, pids[1]); /* the warm one of its device */
        CU_ASSERT_TRUE(n.places[1].pid == pids[2] || n.places[1].pid == pids[3]);
        plan(&n, FP8CTL__V1__LOAD_SOURCE__KIND__INITIALISE, 0, "");
        await_relay(&n, FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_RUNNING, RANKS);
        wait_step(&n, 3);

        /* What is left of them takes a dead rank's place, and has its replica memory. */
        kill((pid_t)n.places[1].pid, SIGKILL);
        await_exit(&n);
        n.epoch++;
        abort_epoch(&n, 0);
        start(&n, 1, 1);
        await_relay(&n, FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_READY, 1);
        CU_ASSERT_TRUE(n.places[1].pid == pids[2] || n.places[1].pid == pids[3]);
        at = common_step(&n);
        CU_ASSERT_TRUE(at >= 1);
        plan(&n, FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA, at, "");
        await_relay(&n, FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_RUNNING, RANKS);
        wait_step(&n, at + 2);

        plan_standbys(&n, 1);
        await_standbys(&n, FP8CTL__V1__STANDBY_STATUS__STATE__READY, 1, pids);
        release(&n);
        await_standbys(&n, FP8CTL__V1__STANDBY_STATUS__STATE__GONE, 1, gone);
        CU_ASSERT_EQUAL(gone[1], pids[1]);
        node_down(&n);
}

/* Ranks that are gone are kept until they are released: nobody may spin on their sockets meanwhile. */
TEST(an_outbox_lets_go_of_a_peer_that_hung_up) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__RankDone done = FP8CTL__V1__RANK_DONE__INIT;
        struct outbox *o = NULL;
        struct loop *l = NULL;
        struct error e = { 0 };
        uint64_t began;
        int fds[2];

        CU_ASSERT_EQUAL_FATAL(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
        CU_ASSERT_EQUAL_FATAL(loop_new(&l), 0);
        CU_ASSERT_EQUAL_FATAL(outbox_new(l, fds[0], &o), 0);
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_RANK_DONE;
        m.rank_done = &done;
        ASSERT_OK(outbox_send(o, &m.base, NULL, 0, &e), e);
        close(fds[1]);
        CU_ASSERT_EQUAL(loop_turn(l, 0), 0);
        began = clock_mono_ns();
        CU_ASSERT_EQUAL(loop_turn(l, 30), 0);
        CU_ASSERT(clock_mono_ns() - began >= 25 * NSEC_PER_MSEC);
        CU_ASSERT(outbox_send(o, &m.base, NULL, 0, &e) < 0);
        outbox_free(o);
        loop_free(l);
        close(fds[0]);
}

TEST_MAIN("spawner")
