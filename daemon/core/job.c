/* SPDX-License-Identifier: Apache-2.0 */
/* A job from submission to its end: its state table, the queue, and the one way out (job_finish). What happens while it is placed is recovery.c's. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/text.h"
#include "daemon/core/core.h"
#include "daemon/core/rank_plan.h"

/* Thresholds. */
#define STOP_MARGIN_MS 1000u    /* beyond the grace: messages on their way, the manifest */
#define RELEASE_MS 10000u       /* ranks told to leave that are still there are killed */
#define FINAL_RETRY_MS 3000u    /* all done, nothing being saved, no commit: ask for the last save again */
#define FINAL_ANSWER_MS 60000u  /* ... and so long for the first rank to have written it */
#define FINAL_RETRIES_MAX 3

#define S(x) FP8CTL__V1__JOB_STATE__##x

static const char *const state_names[] = { "new", "PENDING", "STARTING", "RUNNING", "RECOVERING", "STOPPING", "COMPLETED", "FAILED", "CANCELLED" };
static const char *const event_names[] = { "place", "run", "fault", "stop", "requeue", "finish", "fail", "cancel", "submit" };
static const struct table_row rows[] = {
        { S(JOB_STATE_UNSPECIFIED), JOB_E_SUBMIT, S(PENDING), NULL },
        { S(PENDING), JOB_E_PLACE, S(STARTING), NULL },
        { S(PENDING), JOB_E_CANCEL, S(CANCELLED), NULL },
        { S(STARTING), JOB_E_RUN, S(RUNNING), NULL },
        { S(STARTING), JOB_E_FAULT, S(RECOVERING), NULL },
        { S(STARTING), JOB_E_REQUEUE, S(PENDING), NULL },
        { S(STARTING), JOB_E_FAIL, S(FAILED), NULL },
        { S(STARTING), JOB_E_CANCEL, S(CANCELLED), NULL },
        { S(RUNNING), JOB_E_FAULT, S(RECOVERING), NULL },
        { S(RUNNING), JOB_E_STOP, S(STOPPING), NULL },
        { S(RUNNING), JOB_E_REQUEUE, S(PENDING), NULL },
        { S(RUNNING), JOB_E_FINISH, S(COMPLETED), NULL },
        { S(RUNNING), JOB_E_FAIL, S(FAILED), NULL },
        { S(RUNNING), JOB_E_CANCEL, S(CANCELLED), NULL },
        { S(RECOVERING), JOB_E_RUN, S(RUNNING), NULL },
        { S(RECOVERING), JOB_E_FAULT, S(RECOVERING), NULL },
        { S(RECOVERING), JOB_E_REQUEUE, S(PENDING), NULL },
        { S(RECOVERING), JOB_E_FAIL, S(FAILED), NULL },
        { S(RECOVERING), JOB_E_CANCEL, S(CANCELLED), NULL },
        { S(STOPPING), JOB_E_FAULT, S(RECOVERING), NULL },
        { S(STOPPING), JOB_E_REQUEUE, S(PENDING), NULL },
        { S(STOPPING), JOB_E_FINISH, S(COMPLETED), NULL },
        { S(STOPPING), JOB_E_FAIL, S(FAILED), NULL },
        { S(STOPPING), JOB_E_CANCEL, S(CANCELLED), NULL },
};
const struct table job_table = { "job", state_names, ARRAY_SIZE(state_names), event_names, N_JOB_EVENTS, rows, ARRAY_SIZE(rows) };

const char *job_state_name(int state) {
        return state >= 0 && (size_t)state < ARRAY_SIZE(state_names) ? state_names[state] : "unknown";
}

const char *rank_state_name(enum rank_state s) {
        static const char *const names[N_RANK_STATES] = { "none", "starting", "ready", "parking", "parked", "loading", "running", "done", "lost" };

        return s < N_RANK_STATES ? names[s] : "unknown";
}

void rank_set(struct controller *c, struct rank *r, enum rank_state s) {
        r->state = s;
        r->since = core_now(c);
}

/* ------------------------------------------------------------------ the list */
static int by_id(const void *list, size_t i, const void *key) {
        uint64_t id = ((struct job *const *)list)[i]->id, wanted = *(const uint64_t *)key;

        return id < wanted ? -1 : id > wanted;
}

struct job *job_find(const struct controller *c, uint64_t id) {
        size_t at = core_position(c->jobs, c->n_jobs, by_id, &id);

        return at < c->n_jobs && c->jobs[at]->id == id ? c->jobs[at] : NULL;
}

struct job *job_new(uint64_t id) {
        struct job *j = calloc(1, sizeof(*j));

        if (!j)
                return NULL;
        j->id = id;
        j->next_incarnation = 1;
        j->next_standby = 1;
        j->next_attempt = 2;
        j->without_holder = -1;
        j->loss_first = j->loss_last = j->val_loss = NAN;
        fp8ctl__v1__load_source__init(&j->load);
        return j;
}

int job_set_spec(struct job *j, const char *canonical, struct error *e) {
        struct job_spec *spec = NULL;
        int64_t world;
        int r;

        if (!canonical || !canonical[0])
                return error_set(e, -EBADMSG, "found no job file");
        r = job_spec_parse(canonical, strlen(canonical), "job file", NULL, &spec, e);
        if (r < 0)
                return r;
        world = (int64_t)spec->parallel.tp * spec->parallel.pp * spec->parallel.dp;
        if (world < 1 || world > JOB_MAX_RANKS) {
                job_spec_free(spec);
                return error_set(e, -EINVAL, "key 'parallel': found %" PRId64 " ranks, allowed: 1 to %d", world, JOB_MAX_RANKS);
        }
        j->ranks = calloc((size_t)world, sizeof(*j->ranks));
        j->job_file = strdup(canonical);
        if (!j->ranks || !j->job_file) {
                job_spec_free(spec);
                return error_set(e, -ENOMEM, "no memory for a job");
        }
        j->spec = spec;
        j->world = j->rank_room = (int)world;
        j->dp_wanted = spec->parallel.dp;
        j->bytes_per_rank = job_spec_bytes_per_rank(spec, &j->snapshot_bytes);
        j->parameters = (uint64_t)model_parameters(&spec->model);
        return 0;
}

struct job *job_free(struct job *j) {
        if (!j)
                return NULL;
        recovery_free(j);
        replicas_free(j);
        for (int i = 0; j->ranks && i < j->rank_room; i++) {
                free(j->ranks[i].endpoint);
                free(j->ranks[i].fingerprint);
        }
        for (size_t i = 0; i < j->n_checkpoints; i++)
                free(j->checkpoints[i].path);
        while (j->saves) {
                struct save *s = j->saves;

                j->saves = s->next;
                save_free(s);
        }
        free(j->checkpoints);
        free(j->ranks);
        free(j->job_file);
        free(j->live_file);
        free(j->from_checkpoint);
        free(j->data_digest);
        free(j->standbys);
        job_spec_free(j->spec);
        free(j);
        return NULL;
}

int job_add(struct controller *c, struct job *j) {
        struct job **list = realloc(c->jobs, (c->n_jobs + 1) * sizeof(*list));
        size_t at = c->n_jobs;

        if (!list)
                return -ENOMEM;
        c->jobs = list;
        if (job_find(c, j->id))
                return -EEXIST;
        while (at > 0 && list[at - 1]->id > j->id) {
                list[at] = list[at - 1];
                at--;
        }
        list[at] = j;
        c->n_jobs++;
        if (j->id >= c->next_job)
                c->next_job = j->id + 1;
        return 0;
}

int job_move(struct controller *c, struct job *j, enum job_event ev) {
        struct error e = { 0 };
        int r = table_step(&job_table, &j->state, (int)ev, j, NULL, &e);

        if (r < 0) {
                core_log(c, 3, "job %" PRIu64 ": %s", j->id, e.text);
                return r;
        }
        j->dirty = true;
        return 0;
}

bool job_ended(const struct job *j) {
        return j->state == S(COMPLETED) || j->state == S(FAILED) || j->state == S(CANCELLED);
}

bool job_placed(const struct job *j) {
        return j->rec != REC_IDLE;
}

bool job_on_node(const struct job *j, const struct node *n) {
        for (int i = 0; i < j->world; i++)
                if (j->ranks[i].node == n)
                        return true;
        return false;
}

/* ------------------------------------------------------------------ the queue */
struct board {
        struct sched_node *nodes;
        struct sched_device *devices;
        size_t n, total, idle, usable;
};

static int device_kind(const char *kind) {
        return strcmp(kind, "cuda") == 0 ? 1 : strcmp(kind, "cpu") == 0 ? 2 : 3;
}

/* For whom: warm standbys keep a device from all jobs but their own; with `yield` they do not. */
static int board_make(const struct controller *c, const struct job *own, bool yield, struct board *b) {
        size_t at = 0;

        for (size_t i = 0; i < c->n_nodes; i++)
                b->total += c->nodes[i]->n_devices;
        b->n = c->n_nodes;
        b->nodes = calloc(b->n + 1, sizeof(*b->nodes));
        b->devices = calloc(b->total + 1, sizeof(*b->devices));
        if (!b->nodes || !b->devices)
                return -ENOMEM;
        for (size_t i = 0; i < b->n; i++) {
                const struct node *n = c->nodes[i];

                b->nodes[i] = (struct sched_node){ .name = n->name, .devices = b->devices + at, .n_devices = n->n_devices };
                b->usable += node_takes(n);
                for (size_t k = 0; k < n->n_devices; k++, at++) {
                        const struct device *d = &n->devices[k];
                        bool busy = d->job || (d->standby_job && !yield && (!own || d->standby_job != own->id));

                        b->devices[at] = (struct sched_device){ .index = d->index, .memory_bytes = d->memory_bytes, .kind = device_kind(d->kind), .in_host_memory = node_device_in_host_memory(d),
                                                                .state = !node_takes(n) || health_unfit(n, d->index) ? SCHED_GONE : busy ? SCHED_BUSY : SCHED_FREE,
                                                                .warm = own && d->standby_job == own->id, .domain = d->nvlink_domain, .rails = d->rails };
                        b->idle += b->devices[at].state == SCHED_FREE;
                }
        }
        return 0;
}

/* Which nodes are made alike, for a job that asks. */
static int board_makes(const struct controller *c, const struct job *j, struct board *b) {
        _cleanup_free_ int *makes = NULL;

        if (!j->spec->parallel.equal_nodes)
                return 0;
        makes = calloc(c->n_nodes + 1, sizeof(*makes));
        if (!makes || node_makes(c, makes) < 0)
                return -ENOMEM;
        for (size_t i = 0; i < b->n; i++)
                b->nodes[i].make = makes[i];
        return 0;
}

static struct board *board_free(struct board *b) {
        free(b->nodes);
        free(b->devices);
        return NULL;
}

int job_node_index(const struct controller *c, const struct node *n) {
        return n ? (int)node_position(c, n->name) : -1;
}

static void say_why_waiting(struct controller *c, struct job *j, const struct board *b, const struct job *head) {
        char text[sizeof(j->reason)];
        size_t lost = 0;
        int n;

        for (size_t i = 0; i < c->n_nodes; i++)
                lost += !node_takes(c->nodes[i]);
        if (b->idle < (size_t)j->world)
                n = snprintf(text, sizeof(text), "needs %d devices, %zu free", j->world, b->idle);
        else if (head && head != j)
                n = snprintf(text, sizeof(text), "needs %d devices, %zu free; they are kept for job %" PRIu64 ", which came first", j->world, b->idle, head->id);
        else
                n = snprintf(text, sizeof(text), "needs %d times %d neighbouring devices of one node with %" PRIu64 " MiB each; %zu devices are free, but not so",
                             rank_plan_groups(j->spec->parallel.pp, j->spec->parallel.dp), j->spec->parallel.tp, j->bytes_per_rank >> 20, b->idle);
        if (n > 0 && (size_t)n < sizeof(text) && j->spec->parallel.equal_nodes)
                n += snprintf(text + n, sizeof(text) - (size_t)n, "; all on nodes that are made alike (parallel.equal_nodes)");
        if (n > 0 && (size_t)n < sizeof(text) && lost)
                snprintf(text + n, sizeof(text) - (size_t)n, "; %zu of %zu nodes not usable", lost, c->n_nodes);
        if (strcmp(text, j->reason) != 0) {
                core_text(j->reason, sizeof(j->reason), text);
                j->dirty = true;
        }
}

static void place(struct controller *c, struct job *j, const struct sched_slot *slots) {
        for (int i = 0; i < j->world; i++) {
                j->ranks[i].node = c->nodes[slots[i].node];
                j->ranks[i].device = slots[i].device;
        }
        recovery_begin(c, j);
}

static int queue_run(struct controller *c, struct job **queue, size_t n, struct board *b, struct sched_want *wants, struct sched_slot **slots, struct sched_slot **prefer,
                     bool *placed) {
        const struct job *head = NULL;
        int r;

        for (size_t i = 0; i < n; i++) {
                struct job *j = queue[i];

                slots[i] = calloc((size_t)j->world, sizeof(**slots));
                prefer[i] = calloc((size_t)j->world, sizeof(**prefer));
                if (!slots[i] || !prefer[i] || board_makes(c, j, b) < 0)
                        return -ENOMEM;
                for (int k = 0; k < j->world; k++)
                        prefer[i][k] = (struct sched_slot){ .node = job_node_index(c, j->ranks[k].node), .device = j->ranks[k].device };
                wants[i] = (struct sched_want){ .tp = j->spec->parallel.tp, .pp = j->spec->parallel.pp, .dp = j->spec->parallel.dp, .bytes_per_rank = j->bytes_per_rank, .snapshot_bytes = j->snapshot_bytes,
                                                .prefer = j->ranks[0].node ? prefer[i] : NULL, .equal = j->spec->parallel.equal_nodes };
        }
        r = scheduler_queue(b->nodes, b->n, wants, n, slots, placed);
        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++) {
                if (placed[i]) {
                        place(c, queue[i], slots[i]);
                        continue;
                }
                if (!head)
                        head = queue[i];
                say_why_waiting(c, queue[i], b, head);
        }
        return 0;
}

/* Higher priority first, then who has run already and lost its devices, then who came first. */
static int by_claim(const void *a, const void *b) {
        const struct job *x = *(struct job *const *)a, *y = *(struct job *const *)b;

        if (x->spec->priority != y->spec->priority)
                return x->spec->priority > y->spec->priority ? -1 : 1;
        if (!x->epoch != !y->epoch)
                return x->epoch ? -1 : 1;
        return x->id < y->id ? -1 : x->id > y->id;
}

void job_schedule(struct controller *c) {
        _cleanup_(board_free) struct board b = { 0 };
        _cleanup_free_ struct job **queue = calloc(c->n_jobs + 1, sizeof(*queue));
        _cleanup_free_ struct sched_want *wants = NULL;
        _cleanup_free_ struct sched_slot **slots = NULL, **prefer = NULL;
        _cleanup_free_ bool *placed = NULL;
        size_t n = 0;

        c->schedule_wanted = false;
        for (size_t i = 0; queue && i < c->n_jobs; i++)
                if (c->jobs[i]->state == S(PENDING) && !(PLANTED(LOST_REQUEUE) && c->jobs[i]->epoch))
                        queue[n++] = c->jobs[i];
        if (n == 0)
                return;
        qsort(queue, n, sizeof(struct job *), by_claim);
        wants = calloc(n, sizeof(*wants));
        slots = calloc(n, sizeof(*slots));
        prefer = calloc(n, sizeof(*prefer));
        placed = calloc(n, sizeof(*placed));
        if (!wants || !slots || !prefer || !placed || board_make(c, NULL, false, &b) < 0 || queue_run(c, queue, n, &b, wants, slots, prefer, placed) < 0)
                c->schedule_wanted = true; /* no memory now; the next event tries again */
        for (size_t i = 0; placed && i < n; i++)
                if (!placed[i] && queue[i]->state == S(PENDING)) {
                        if (standbys_any(c) && job_fits_without(c, queue[i], NULL, 0))
                                c->standbys_yield = true;
                        else
                                preempt_for(c, queue[i]);
                        break;
                }
        for (size_t i = 0; i < n; i++) {
                if (slots)
                        free(slots[i]);
                if (prefer)
                        free(prefer[i]);
        }
}

static bool stays(const struct job *j, int i, bool evacuate) {
        const struct rank *k = &j->ranks[i];

        return k->node && !ladder_device_suspect(j, i) && !k->node->hung_up && k->node->state != NODE_LOST && k->node->state != NODE_LEAVING && !(evacuate && k->node->duty == NODE_DRAINING) && !health_unfit(k->node, k->device);
}

/* The devices of ranks that it does not have any more, or that move, are its own to use again. */
static void board_release(const struct controller *c, struct board *b, const struct job *j, int world, bool evacuate) {
        for (int i = 0; i < j->world; i++) {
                const struct rank *k = &j->ranks[i];
                int n = job_node_index(c, k->node);

                bool suspect = ladder_device_suspect(j, i);

                if (n < 0 || !node_takes(k->node) || health_unfit(k->node, k->device) || (i < world && stays(j, i, evacuate)))
                        continue;
                for (size_t d = 0; d < k->node->n_devices; d++)
                        if (k->node->devices[d].index == k->device && (suspect || k->node->devices[d].job == j->id))
                                b->devices[(size_t)(b->nodes[n].devices - b->devices) + d].state = suspect ? SCHED_GONE : SCHED_FREE;
        }
}

int job_place_at(struct controller *c, const struct job *j, int dp, bool evacuate, struct sched_slot *ret) {
        _cleanup_(board_free) struct board b = { 0 };
        int group = j->spec->parallel.tp * j->spec->parallel.pp, world = group * dp, was = j->spec->parallel.dp;
        _cleanup_free_ struct sched_slot *pinned = calloc((size_t)world, sizeof(*pinned));
        struct sched_want want = { .tp = j->spec->parallel.tp, .pp = j->spec->parallel.pp, .dp = dp, .equal = j->spec->parallel.equal_nodes };

        if (dp < 1 || world > JOB_MAX_RANKS || j->spec->train.global_batch % (j->spec->train.micro_batch * dp) != 0)
                return -EINVAL;
        if (!pinned || board_make(c, j, false, &b) < 0 || board_makes(c, j, &b) < 0)
                return -ENOMEM;
        j->spec->parallel.dp = dp;
        want.bytes_per_rank = job_spec_bytes_per_rank(j->spec, &want.snapshot_bytes);
        j->spec->parallel.dp = was;
        for (int i = 0; i < world; i++) {
                const struct rank *k = &j->ranks[i];
                const struct device *d;

                pinned[i] = (struct sched_slot){ .node = -1 };
                if (i >= j->world || !stays(j, i, evacuate))
                        continue;
                d = node_device(k->node, k->device);
                if (dp != was && d && d->memory_bytes && d->memory_bytes < want.bytes_per_rank - (node_device_in_host_memory(d) ? 0 : want.snapshot_bytes))
                        return -ENOSPC; /* fewer replicas: larger parts of the optimizer's state */
                pinned[i] = (struct sched_slot){ .node = job_node_index(c, k->node), .device = k->device };
        }
        board_release(c, &b, j, world, evacuate);
        /* Those that stay keep their devices, though the process there may be gone. */
        for (int i = 0; i < world; i++)
                for (size_t d = 0; pinned[i].node >= 0 && d < b.nodes[pinned[i].node].n_devices; d++)
                        if (b.nodes[pinned[i].node].devices[d].index == pinned[i].device)
                                b.devices[(size_t)(b.nodes[pinned[i].node].devices - b.devices) + d].state = SCHED_BUSY;
        want.pinned = want.prefer = pinned;
        return scheduler_place(b.nodes, b.n, &want, ret);
}

bool job_fits_without(struct controller *c, const struct job *j, struct job *const *others, size_t n) {
        _cleanup_(board_free) struct board b = { 0 };
        _cleanup_free_ struct sched_slot *ret = calloc((size_t)j->world, sizeof(*ret));
        struct sched_want want = { .tp = j->spec->parallel.tp, .pp = j->spec->parallel.pp, .dp = j->spec->parallel.dp, .bytes_per_rank = j->bytes_per_rank, .snapshot_bytes = j->snapshot_bytes,
                                   .equal = j->spec->parallel.equal_nodes };
        size_t at = 0;

        if (!ret || board_make(c, NULL, true, &b) < 0 || board_makes(c, j, &b) < 0)
                return false;
        for (size_t i = 0; i < c->n_nodes; i++)
                for (size_t k = 0; k < c->nodes[i]->n_devices; k++, at++)
                        for (size_t v = 0; v < n && b.devices[at].state == SCHED_BUSY; v++)
                                if (c->nodes[i]->devices[k].job == others[v]->id)
                                        b.devices[at].state = SCHED_FREE;
        return scheduler_place(b.nodes, b.n, &want, ret) == 0;
}

/* Where it would run on an idle cluster; for Submit. */
int job_plan_idle(struct controller *c, const struct job *j, struct sched_slot *ret, size_t *ret_devices) {
        _cleanup_(board_free) struct board b = { 0 };
        struct sched_want want = { .tp = j->spec->parallel.tp, .pp = j->spec->parallel.pp, .dp = j->spec->parallel.dp, .bytes_per_rank = j->bytes_per_rank, .snapshot_bytes = j->snapshot_bytes,
                                   .equal = j->spec->parallel.equal_nodes };
        int r;

        if (board_make(c, NULL, true, &b) < 0 || board_makes(c, j, &b) < 0)
                return -ENOMEM;
        if (ret_devices)
                *ret_devices = b.total;
        for (size_t i = 0; i < b.total; i++)
                if (b.devices[i].state == SCHED_BUSY)
                        b.devices[i].state = SCHED_FREE;
        r = scheduler_place(b.nodes, b.n, &want, ret);
        if (r != -ENOSPC)
                return r;
        for (size_t i = 0; i < b.total; i++)
                b.devices[i].state = SCHED_FREE; /* lost nodes too: it can wait for them */
        want.equal = false; /* and for nodes made alike */
        return scheduler_place(b.nodes, b.n, &want, ret);
}

/* ------------------------------------------------------------------ the way out */
void job_release_node(struct controller *c, struct job *j, struct node *n) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__ReleaseJob rel = FP8CTL__V1__RELEASE_JOB__INIT;

        rel.job_id = j->id;
        rel.epoch = j->epoch;
        rel.keep_local = !job_ended(j);
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_RELEASE_JOB;
        m.release_job = &rel;
        node_send(c, n, &m);
        replicas_released(j, n);
}

static void send_release(struct controller *c, struct job *j, bool kill, const char *why) {
        for (size_t i = 0; i < c->n_nodes; i++) {
                struct node *n = c->nodes[i];

                if (!n->session || (!job_on_node(j, n) && !replicas_on_node(j, n)))
                        continue;
                for (int k = 0; kill && k < j->world; k++)
                        if (j->ranks[k].node == n && j->ranks[k].incarnation)
                                node_kill_one(c, n, j->id, j->epoch, (uint32_t)k, j->ranks[k].incarnation, why);
                job_release_node(c, j, n);
        }
}

void job_finish(struct controller *c, struct job *j, enum job_event how, const char *reason) {
        static const struct {
                const char *kind, *severity;
        } said[N_JOB_EVENTS] = { [JOB_E_REQUEUE] = { "requeued", "warning" }, [JOB_E_FINISH] = { "completed", "info" }, [JOB_E_FAIL] = { "failed", "error" },
                                 [JOB_E_CANCEL] = { "cancelled", "info" } };
        bool gone = true, was_placed = job_placed(j);
        char why[sizeof(j->reason)];

        core_text(why, sizeof(why), reason);
        if (job_move(c, j, how) < 0)
                return;
        save_fence(c, j, "the job ended");
        for (int i = 0; i < j->world; i++)
                gone = gone && j->ranks[i].state == RANK_FINISHED;
        if (was_placed)
                send_release(c, j, !gone, why);
        for (int i = 0; i < j->world; i++) {
                struct rank *r = &j->ranks[i];

                if (how == JOB_E_REQUEUE)
                        rank_set(c, r, RANK_NONE);
                else if (r->state != RANK_FINISHED && r->state != RANK_NONE)
                        rank_set(c, r, RANK_LOST);
        }
        recovery_end(c, j);
        core_text(j->reason, sizeof(j->reason), why);
        if (how == JOB_E_FAIL)
                core_text(j->failure, sizeof(j->failure), why);
        if (how == JOB_E_FINISH)
                j->step = (uint64_t)j->spec->train.steps;
        j->stop_kind = STOP_NONE;
        j->leaving = j->relaid = false;
        j->stop_deadline = j->final_retry_at = 0;
        j->final_retries = 0;
        j->release_deadline = was_placed ? core_now(c) + RELEASE_MS * NSEC_PER_MSEC : 0;
        if (how == JOB_E_REQUEUE && j->spec->parallel.dp != j->dp_wanted && layout_set(c, j, j->dp_wanted) < 0)
                core_log(c, 4, "job %" PRIu64 ": stays at dp %d", j->id, j->spec->parallel.dp);
        if (how != JOB_E_REQUEUE)
                j->ended_ms = c->io.wall_ms(c->io.arg);
        event_add(c, &(struct event_of){ .job = j, .rank = -1, .severity = said[how].severity }, said[how].kind, "%s: %s", j->name, j->reason);
        if (how == JOB_E_FINISH && checkpoint_has(j, j->step))
                request_committed(c, j, j->step, 0);
        request_save_over(c, j, 0, how == JOB_E_FINISH ? "the job completed before the save was done" : j->reason);
        c->schedule_wanted = true;
}

static enum job_event stop_outcome(const struct job *j) {
        return j->stop_kind == STOP_REQUEUE ? JOB_E_REQUEUE : JOB_E_CANCEL;
}

void job_send_stop(struct controller *c, struct job *j, struct node *only) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__StopRanks stop = FP8CTL__V1__STOP_RANKS__INIT;
        uint64_t now = core_now(c);

        stop.job_id = j->id;
        stop.epoch = j->epoch;
        stop.save = true;
        stop.grace_ms = j->stop_deadline > now ? (uint32_t)((j->stop_deadline - now) / NSEC_PER_MSEC) : 1;
        stop.reason = j->stop_reason;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_STOP_RANKS;
        m.stop_ranks = &stop;
        for (size_t i = 0; i < c->n_nodes; i++)
                if ((!only || only == c->nodes[i]) && job_on_node(j, c->nodes[i]))
                        node_send(c, c->nodes[i], &m);
}

void job_stop(struct controller *c, struct job *j, enum stop_kind kind, uint32_t grace_ms, bool now, const char *reason) {
        if (job_ended(j) || (kind == STOP_REQUEUE && !job_placed(j)))
                return;
        if (kind == STOP_CANCEL || j->stop_kind == STOP_NONE || j->stop_kind == STOP_RESIZE) {
                j->stop_kind = kind;
                core_text(j->stop_reason, sizeof(j->stop_reason), reason);
        }
        j->dirty = true;
        if ((j->state == S(STOPPING) || (j->leaving && kind == STOP_REQUEUE)) && !now)
                return;
        if (j->state != S(RUNNING) || now || j->rec == REC_SUSPECT) {
                char why[sizeof(j->stop_reason)];

                core_text(why, sizeof(why), j->stop_reason);
                if (now || kind != STOP_REQUEUE || !rescue_leave(c, j, grace_ms + STOP_MARGIN_MS, why))
                        job_finish(c, j, stop_outcome(j), why);
                return;
        }
        j->stop_deadline = core_now(c) + (uint64_t)(grace_ms + STOP_MARGIN_MS) * NSEC_PER_MSEC;
        job_move(c, j, JOB_E_STOP);
        core_text(j->reason, sizeof(j->reason), j->stop_reason);
        event_add(c, &(struct event_of){ .job = j, .rank = -1 }, "stopping", "%s: one last save, at most %.1f s", j->stop_reason, (grace_ms + STOP_MARGIN_MS) / 1e3);
        job_send_stop(c, j, NULL);
}

void job_check_done(struct controller *c, struct job *j) {
        bool stopped = false, must_save;
        uint64_t step = 0;

        if (!job_placed(j) || (j->state != S(RUNNING) && j->state != S(STOPPING)))
                return;
        for (int i = 0; i < j->world; i++) {
                if (j->ranks[i].state != RANK_FINISHED)
                        return;
                stopped = stopped || j->ranks[i].stopped;
                if (j->ranks[i].step > step)
                        step = j->ranks[i].step;
        }
        /* Who stands before the last step was stopped, though the word that said so may have gone to a controller that died. */
        stopped = stopped || step < (uint64_t)j->spec->train.steps;
        if (save_in_flight(j, step)) {
                if (!j->final_retry_at)
                        j->final_retry_at = core_now(c) + FINAL_ANSWER_MS * NSEC_PER_MSEC;
                return;
        }
        must_save = j->spec->checkpoint.dir && j->spec->checkpoint.dir[0] && (stopped || j->spec->checkpoint.at_end);
        if (must_save && !checkpoint_has(j, step) && step > 0) {
                uint64_t soon = core_now(c) + FINAL_RETRY_MS * NSEC_PER_MSEC;
                bool more = j->final_retries < FINAL_RETRIES_MAX, failed = save_failed(j, step, NULL);

                if (!j->final_retry_at ? more : more && failed && j->final_retry_at > soon)
                        j->final_retry_at = soon;
                if (more || (j->final_retry_at && !failed))
                        return;
        }
        if (stopped && step < (uint64_t)j->spec->train.steps && j->stop_kind == STOP_RESIZE) {
                layout_stopped(c, j, step, checkpoint_has(j, step));
        } else if (stopped && step < (uint64_t)j->spec->train.steps) {
                char why[sizeof(j->reason)];

                snprintf(why, sizeof(why), "%s; %s step %" PRIu64, j->stop_reason[0] ? j->stop_reason : "stopped on its node",
                         checkpoint_has(j, step) ? "saved at" : "could not be saved at", step);
                job_finish(c, j, j->stop_kind == STOP_NONE ? JOB_E_REQUEUE : stop_outcome(j), why);
        } else if (must_save && !checkpoint_has(j, step)) {
                const char *because = NULL;
                char why[sizeof(j->reason)];

                save_failed(j, step, &because);
                snprintf(why, sizeof(why), "all steps done, but the last checkpoint could not be saved%s%s", because ? ": " : "", because ? because : "");
                job_finish(c, j, JOB_E_FAIL, why);
        } else {
                char why[sizeof(j->reason)];

                snprintf(why, sizeof(why), "%" PRIu64 " step%s done, %" PRIu64 " %s", step, text_s(step), (uint64_t)j->restarts, j->restarts == 1 ? "recovery" : "recoveries");
                job_finish(c, j, JOB_E_FINISH, why);
        }
}

void job_progress(struct controller *c, struct node *n, const Fp8ctl__V1__RankProgress *p) {
        struct job *j = job_find(c, p->job_id);
        struct rank *r;

        if (!j || p->rank >= (uint32_t)j->world) {
                core_drop(c, DROP_JOB, "progress");
                return;
        }
        r = &j->ranks[p->rank];
        if (r->incarnation != p->incarnation || r->node != n || !job_placed(j)) {
                core_drop(c, DROP_INCARNATION, "progress");
                return;
        }
        if (p->epoch != j->epoch || p->step > (uint64_t)j->spec->train.steps)
                return; /* a survivor that has not heard of the new epoch yet: expected, not counted */
        r->step = p->step;
        straggler_note(c, j, p);
        if (j->rec == REC_FENCE || j->rec == REC_RESTORE)
                return; /* what it loaded, not what it did */
        if (p->step > j->step || p->has_loss)
                j->step = p->step > j->step || j->rec != REC_WATCH ? p->step : j->step;
        if (p->has_loss) {
                j->loss_last = p->loss;
                j->loss_first = p->loss_first;
                j->val_loss = p->val_loss;
                j->tokens_per_s = p->tokens_per_s;
                j->skipped = p->skipped_steps;
                j->tokens = p->tokens;
        }
        if (p->step > j->best_step) {
                j->best_step = p->step;
                recovery_new_step(c, j);
        }
}

/* ------------------------------------------------------------------ time */
static void release_late(struct controller *c, struct job *j) {
        j->release_deadline = 0;
        for (size_t i = 0; i < c->n_nodes; i++)
                for (size_t k = 0; k < c->nodes[i]->n_devices; k++) {
                        const struct device *d = &c->nodes[i]->devices[k];

                        if (d->job == j->id && (!job_placed(j) || d->rank >= (uint32_t)j->world || j->ranks[d->rank].incarnation != d->incarnation)) {
                                node_kill_one(c, c->nodes[i], j->id, j->epoch, d->rank, d->incarnation, "told to leave and still there");
                                j->release_deadline = core_now(c) + RELEASE_MS * NSEC_PER_MSEC;
                        }
                }
        if (!j->release_deadline && !job_placed(j))
                save_nobody_left(c, j);
}

/* All ranks are done and their last save was lost or failed. */
static void retry_last_save(struct controller *c, struct job *j, uint64_t now) {
        uint64_t step = 0;

        j->final_retry_at = 0;
        if (!job_placed(j))
                return;
        for (int i = 0; i < j->world; i++) {
                if (j->ranks[i].state != RANK_FINISHED)
                        return;
                if (j->ranks[i].step > step)
                        step = j->ranks[i].step;
        }
        /* All have said that they are done, and before it what they saved: a save that still waits for a word waits for one that was lost. */
        if (!save_in_hand(j, step) && !checkpoint_has(j, step) && j->final_retries < FINAL_RETRIES_MAX) {
                j->final_retries++;
                j->final_attempt = save_request(c, j, step);
                j->final_retry_at = now + FINAL_ANSWER_MS * NSEC_PER_MSEC;
                return;
        }
        job_check_done(c, j);
}

void job_tick(struct controller *c, struct job *j, uint64_t now) {
        if (j->stop_deadline && now >= j->stop_deadline) {
                j->stop_deadline = 0;
                if (j->stop_kind == STOP_RESIZE) {
                        layout_stop_late(c, j);
                } else if (j->state == S(STOPPING) || j->leaving) {
                        char why[sizeof(j->reason)];

                        snprintf(why, sizeof(why), "%s; the grace ended before the last save was done", j->stop_reason);
                        job_finish(c, j, stop_outcome(j), why);
                }
        }
        if (j->final_retry_at && now >= j->final_retry_at)
                retry_last_save(c, j, now);
        if (j->zombie_deadline && now >= j->zombie_deadline)
                recovery_kill_zombies(c, j);
        if (j->release_deadline && now >= j->release_deadline)
                release_late(c, j);
        if (j->look_at && now >= j->look_at) {
                j->look_at = 0;
                c->schedule_wanted = true;
        }
        if (job_placed(j))
                recovery_tick(c, j, now);
        standbys_tick(c, j, now);
        rescue_tick(c, j, now);
        save_tick(c, j, now);
}

static uint64_t sooner(uint64_t a, uint64_t b) {
        return !a ? b : !b ? a : a < b ? a : b;
}

uint64_t job_next_deadline(const struct job *j) {
        uint64_t d = sooner(j->stop_deadline, j->final_retry_at);

        d = sooner(sooner(d, j->release_deadline), sooner(j->zombie_deadline, j->look_at));
        d = sooner(sooner(d, j->standby_at), job_placed(j) ? j->rec_deadline : 0);
        return sooner(sooner(d, rescue_next_deadline(j)), save_next_deadline(j));
}
