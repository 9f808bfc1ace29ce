/* SPDX-License-Identifier: Apache-2.0 */
/* Store records: pack and unpack, versions checked. Keys: daemon/store/store.h. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/core/health.h"
#include "daemon/core/rank_plan.h"

#define STR(s) ((s) ? (char *)(s) : (char *)"")

void record_put_message(struct controller *c, const char *key, const ProtobufCMessage *m) {
        size_t len = protobuf_c_message_get_packed_size(m);
        _cleanup_free_ uint8_t *buf = malloc(len ? len : 1);

        if (!buf) {
                /* A change that cannot be stored must not be acted on: stop, the next life goes on from the store. */
                c->failed = true;
                snprintf(c->failed_why, sizeof(c->failed_why), "no memory to store %s", key);
                return;
        }
        protobuf_c_message_pack(m, buf);
        core_persist(c, STORE_PUT, key, buf, len);
}

/* ------------------------------------------------------------------ jobs */
/* Sizes are those of m->job already. */
static int plan_fill(const struct job *j, struct job_message *m) {
        fp8ctl__v1__plan__init(&m->plan);
        m->plan.tp = m->job.tp;
        m->plan.pp = m->job.pp;
        m->plan.dp = m->job.dp;
        m->plan.bytes_per_rank = j->bytes_per_rank;
        m->ranks = calloc((size_t)j->world + 1, sizeof(*m->ranks));
        m->rank_ptrs = calloc((size_t)j->world + 1, sizeof(*m->rank_ptrs));
        if (!m->ranks || !m->rank_ptrs) {
                job_message_free(m);
                return -ENOMEM;
        }
        for (int i = 0; i < j->world; i++) {
                const struct rank *r = &j->ranks[i];
                struct rank_place p = rank_plan_place((int)m->job.tp, (int)m->job.pp, (int)m->job.dp, (uint32_t)i);
                Fp8ctl__V1__PlanRank *q = &m->ranks[i];

                fp8ctl__v1__plan_rank__init(q);
                q->rank = (uint32_t)i;
                q->pp_index = p.pp;
                q->dp_index = p.dp;
                q->tp_index = p.tp;
                q->node = r->node ? r->node->name : STR(NULL);
                q->device = r->device;
                q->incarnation = r->incarnation;
                q->state = (char *)rank_state_name(r->state);
                q->pid = r->pid;
                q->rail = r->rail_of == r->incarnation ? (char *)r->rail : STR(NULL);
                m->rank_ptrs[i] = q;
        }
        m->plan.ranks = m->rank_ptrs;
        m->plan.n_ranks = (size_t)j->world;
        m->job.plan = &m->plan;
        return 0;
}

int job_message_fill(const struct controller *c, const struct job *j, bool full, struct job_message *m) {
        const struct checkpoint *k = checkpoint_newest(j);
        uint64_t end = j->ended_ms ? j->ended_ms : c->io.wall_ms(c->io.arg);

        memset(m, 0, sizeof(*m));
        fp8ctl__v1__job__init(&m->job);
        m->job.id = j->id;
        m->job.name = STR(j->name);
        m->job.user = STR(j->user);
        m->job.state = (Fp8ctl__V1__JobState)j->state;
        m->job.reason = STR(j->reason);
        m->job.failure = STR(j->failure);
        m->job.epoch = j->epoch;
        m->job.step = j->step;
        m->job.steps = j->spec ? (uint64_t)j->spec->train.steps : 0;
        m->job.loss_first = j->loss_first;
        m->job.loss_last = j->loss_last;
        m->job.val_loss = j->val_loss;
        m->job.skipped_steps = j->skipped;
        m->job.restarts = j->restarts;
        m->job.lost_steps = j->lost_steps;
        m->job.lost_s = j->lost_s;
        m->job.wall_s = j->first_run_ms && end > j->first_run_ms ? (double)(end - j->first_run_ms) / 1e3 : 0;
        m->job.tokens_per_s = j->tokens_per_s;
        m->job.tokens = j->tokens;
        m->job.checkpoint = k ? k->path : STR(NULL);
        m->job.checkpoint_step = k ? k->step : 0;
        m->job.submitted_unix_ms = j->submitted_ms;
        m->job.started_unix_ms = j->started_ms;
        m->job.ended_unix_ms = j->ended_ms;
        m->job.parameters = j->parameters;
        if (j->spec) {
                m->job.tp = (uint32_t)j->spec->parallel.tp;
                m->job.pp = (uint32_t)j->spec->parallel.pp;
                m->job.dp = (uint32_t)j->spec->parallel.dp;
                m->job.dp_wanted = (uint32_t)j->dp_wanted;
                m->job.recipe = STR(job_recipe_name(j->spec->precision.recipe));
        }
        if (j->world > 0 && j->ranks[0].node && j->ranks[0].node->dir[0])
                snprintf(m->log_dir, sizeof(m->log_dir), "%s/jobs/%" PRIu64, j->ranks[0].node->dir, j->id);
        m->job.log_dir = m->log_dir;
        if (!full || !j->spec)
                return 0;
        m->job.job_file = STR(j->job_file);
        return plan_fill(j, m);
}

void job_message_free(struct job_message *m) {
        free(m->ranks);
        free(m->rank_ptrs);
        m->ranks = NULL;
        m->rank_ptrs = NULL;
}

void checkpoint_message_fill(const struct job *j, const struct checkpoint *k, Fp8ctl__V1__Checkpoint *m) {
        fp8ctl__v1__checkpoint__init(m);
        m->job_id = j->id;
        m->step = k->step;
        m->epoch = k->epoch;
        m->attempt = k->attempt;
        m->path = k->path;
        m->bytes = k->bytes;
        m->committed_unix_ms = k->committed_ms;
}

static void checkpoint_record_fill(const struct job *j, const struct checkpoint *k, Fp8ctl__V1__Checkpoint *m, Fp8ctl__V1__CheckpointRecord *r) {
        checkpoint_message_fill(j, k, m);
        fp8ctl__v1__checkpoint_record__init(r);
        r->checkpoint = m;
        r->verified = true;
        r->bad = k->bad;
        r->removing = k->removing;
}

void record_put_job(struct controller *c, struct job *j) {
        Fp8ctl__V1__JobRecord rec = FP8CTL__V1__JOB_RECORD__INIT;
        _cleanup_free_ Fp8ctl__V1__Checkpoint *ks = calloc(j->n_checkpoints + 1, sizeof(*ks));
        _cleanup_free_ Fp8ctl__V1__CheckpointRecord *rs = calloc(j->n_checkpoints + 1, sizeof(*rs));
        _cleanup_free_ Fp8ctl__V1__CheckpointRecord **ps = calloc(j->n_checkpoints + 1, sizeof(*ps));
        _cleanup_free_ char **holders = calloc((size_t)j->world + 1, sizeof(*holders));
        struct job_message m;
        char key[STORE_KEY_MAX];

        if (!ks || !rs || !ps || !holders || job_message_fill(c, j, true, &m) < 0) {
                c->failed = true;
                snprintf(c->failed_why, sizeof(c->failed_why), "no memory to store job %" PRIu64, j->id);
                return;
        }
        for (size_t i = 0; i < j->n_checkpoints; i++) {
                checkpoint_record_fill(j, &j->checkpoints[i], &ks[i], &rs[i]);
                ps[i] = &rs[i];
        }
        rec.version = RECORD_VERSION;
        rec.job = &m.job;
        rec.request_id = j->request_id;
        rec.uid = j->uid;
        rec.gid = j->gid;
        rec.next_incarnation = j->next_incarnation;
        rec.recovery_state = (uint32_t)j->rec;
        rec.checkpoints = ps;
        rec.n_checkpoints = j->n_checkpoints;
        rec.from_checkpoint = STR(j->from_checkpoint);
        rec.same_cause = j->same_cause;
        rec.last_cause = j->last_cause;
        rec.best_step = j->best_step;
        rec.next_attempt = j->next_attempt;
        rec.data_digest = STR(j->data_digest);
        rec.cancel_requested = j->stop_kind == STOP_CANCEL;
        rec.min_replica_epoch = j->min_replica_epoch;
        rec.rescue_floor = j->rescue_floor;
        rec.skip_from_step = j->skip_from_step;
        rec.skip_to_step = j->skip_to_step;
        rec.stop_kind = (uint32_t)j->stop_kind;
        rec.stop_reason = j->stop_reason;
        rec.resize_dp = (uint32_t)j->resize_dp;
        rec.replan_step = j->replan_step;
        rec.first_run_unix_ms = j->first_run_ms;
        for (int i = 0; j->holders && i < j->world; i++)
                holders[i] = j->holders[i] ? j->holders[i]->name : (char *)"";
        rec.holders = holders;
        rec.n_holders = j->holders ? (size_t)j->world : 0;
        snprintf(key, sizeof(key), "job/%" PRIu64, j->id);
        record_put_message(c, key, &rec.base);
        job_message_free(&m);
        j->dirty = false;
}

static void load_progress(struct job *j, const Fp8ctl__V1__Job *m) {
        core_text(j->name, sizeof(j->name), m->name);
        core_text(j->user, sizeof(j->user), m->user);
        core_text(j->reason, sizeof(j->reason), m->reason);
        core_text(j->failure, sizeof(j->failure), m->failure);
        j->state = m->state;
        j->epoch = m->epoch;
        j->step = m->step;
        j->loss_first = m->loss_first;
        j->loss_last = m->loss_last;
        j->val_loss = m->val_loss;
        j->skipped = m->skipped_steps;
        j->restarts = m->restarts;
        j->lost_steps = m->lost_steps;
        j->lost_s = m->lost_s;
        j->tokens_per_s = m->tokens_per_s;
        j->tokens = m->tokens;
        j->submitted_ms = m->submitted_unix_ms;
        j->started_ms = m->started_unix_ms;
        j->ended_ms = m->ended_unix_ms;
}

static int load_ranks(struct controller *c, struct job *j, const Fp8ctl__V1__Plan *plan, struct error *e) {
        if (plan->n_ranks != (size_t)j->world)
                return error_set(e, -EBADMSG, "job %" PRIu64 ": found a plan of %zu ranks, expected %d", j->id, plan->n_ranks, j->world);
        for (int i = 0; i < j->world; i++) {
                const Fp8ctl__V1__PlanRank *q = plan->ranks[i];
                struct rank *r = &j->ranks[i];

                if (!q || !q->node || !q->node[0])
                        continue;
                r->node = node_get_or_add(c, q->node);
                if (!r->node)
                        return error_set(e, -ENOMEM, "no memory for nodes");
                r->device = q->device;
                r->incarnation = q->incarnation;
                r->pid = q->pid;
                core_text(r->rail, sizeof(r->rail), q->rail);
                r->rail_of = r->rail[0] ? r->incarnation : 0;
                for (int s = 0; s < N_RANK_STATES; s++)
                        if (q->state && strcmp(q->state, rank_state_name((enum rank_state)s)) == 0)
                                r->state = (enum rank_state)s;
        }
        return 0;
}

static int load_checkpoints(struct job *j, const Fp8ctl__V1__JobRecord *rec) {
        j->checkpoints = calloc(rec->n_checkpoints + 1, sizeof(*j->checkpoints));
        if (!j->checkpoints)
                return -ENOMEM;
        for (size_t i = 0; i < rec->n_checkpoints; i++) {
                const Fp8ctl__V1__CheckpointRecord *r = rec->checkpoints[i];
                struct checkpoint *k = &j->checkpoints[j->n_checkpoints];

                if (!r || !r->checkpoint || !r->checkpoint->path)
                        continue;
                *k = (struct checkpoint){ .step = r->checkpoint->step, .epoch = r->checkpoint->epoch, .attempt = r->checkpoint->attempt, .bytes = r->checkpoint->bytes,
                                          .committed_ms = r->checkpoint->committed_unix_ms, .bad = r->bad, .removing = r->removing };
                k->path = strdup(r->checkpoint->path);
                if (!k->path)
                        return -ENOMEM;
                j->n_checkpoints++;
        }
        return 0;
}

static int load_job(struct controller *c, const void *value, size_t len, struct error *e) {
        Fp8ctl__V1__JobRecord *rec = fp8ctl__v1__job_record__unpack(NULL, len, value);
        struct job *j = NULL;
        int r;

        if (!rec || !rec->job) {
                r = error_set(e, -EBADMSG, "job record: found %zu bytes that are no JobRecord", len);
                goto out;
        }
        if (rec->version != RECORD_VERSION) {
                r = error_set(e, -EPROTONOSUPPORT, "job record: found version %u, expected %d", rec->version, RECORD_VERSION);
                goto out;
        }
        j = job_new(rec->job->id);
        if (!j) {
                r = error_set(e, -ENOMEM, "no memory");
                goto out;
        }
        load_progress(j, rec->job);
        core_text(j->request_id, sizeof(j->request_id), rec->request_id);
        r = job_set_spec(j, rec->job->job_file, e);
        if (r < 0) {
                error_prefix(e, "job %" PRIu64, j->id);
                goto out;
        }
        if (!PLANTED(FORGOTTEN_RESIZE) && rec->job->plan && rec->job->plan->dp && (int)rec->job->plan->dp != j->spec->parallel.dp && layout_set(c, j, (int)rec->job->plan->dp) < 0) {
                r = error_set(e, -EBADMSG, "job %" PRIu64 ": found a plan of dp %u, expected one that divides its batch", j->id, rec->job->plan->dp);
                goto out;
        }
        j->dp_wanted = rec->job->dp_wanted ? (int)rec->job->dp_wanted : j->spec->parallel.dp;
        j->uid = rec->uid;
        j->gid = rec->gid;
        j->next_incarnation = rec->next_incarnation;
        j->rec = rec->recovery_state < N_REC_STATES ? (int)rec->recovery_state : REC_IDLE;
        j->same_cause = rec->same_cause;
        core_text(j->last_cause, sizeof(j->last_cause), rec->last_cause);
        j->best_step = rec->best_step;
        j->next_attempt = rec->next_attempt;
        j->min_replica_epoch = rec->min_replica_epoch;
        j->rescue_floor = rec->rescue_floor;
        j->skip_from_step = rec->skip_from_step;
        replicas_load(c, j, rec->holders, rec->n_holders);
        j->skip_to_step = rec->skip_to_step;
        j->stop_kind = rec->stop_kind <= STOP_RESIZE ? (int)rec->stop_kind : STOP_NONE;
        core_text(j->stop_reason, sizeof(j->stop_reason), rec->stop_reason);
        j->resize_dp = (int)rec->resize_dp;
        j->replan_step = rec->replan_step;
        j->first_run_ms = rec->first_run_unix_ms;
        j->from_checkpoint = core_strdup(rec->from_checkpoint, 4096);
        j->data_digest = core_strdup(rec->data_digest, 64);
        r = rec->job->plan ? load_ranks(c, j, rec->job->plan, e) : 0;
        if (r == 0 && load_checkpoints(j, rec) < 0)
                r = error_set(e, -ENOMEM, "no memory");
        if (r == 0 && job_add(c, j) < 0)
                r = error_set(e, -EBADMSG, "job %" PRIu64 " is stored twice", j->id);
        if (r == 0)
                j = NULL;
out:
        job_free(j);
        if (rec)
                fp8ctl__v1__job_record__free_unpacked(rec, NULL);
        return r;
}

/* ------------------------------------------------------------------ nodes */
void record_put_node(struct controller *c, const struct node *n) {
        Fp8ctl__V1__NodeRecord rec = FP8CTL__V1__NODE_RECORD__INIT;
        Fp8ctl__V1__Node m = FP8CTL__V1__NODE__INIT;
        _cleanup_free_ Fp8ctl__V1__NodeDevice *ds = calloc(n->n_devices + 1, sizeof(*ds));
        _cleanup_free_ Fp8ctl__V1__NodeDevice **ps = calloc(n->n_devices + 1, sizeof(*ps));
        _cleanup_(health_message_free) struct health_message health = { 0 };
        char key[STORE_KEY_MAX];

        if (!ds || !ps) {
                c->failed = true;
                snprintf(c->failed_why, sizeof(c->failed_why), "no memory to store node %s", n->name);
                return;
        }
        for (size_t i = 0; i < n->n_devices; i++) {
                fp8ctl__v1__node_device__init(&ds[i]);
                ds[i].index = n->devices[i].index;
                ds[i].kind = n->devices[i].kind;
                ds[i].name = n->devices[i].name;
                ds[i].memory_bytes = n->devices[i].memory_bytes;
                ds[i].pci = n->devices[i].pci;
                ps[i] = &ds[i];
        }
        m.name = STR(n->name);
        m.state = (char *)node_state_name(n->state);
        m.reason = STR(n->reason);
        m.address = STR(n->address);
        m.version = STR(n->version);
        m.kernel = STR(n->kernel);
        m.boot_id = STR(n->boot_id);
        m.dir = STR(n->dir);
        m.incarnation = n->incarnation;
        m.memory_bytes = n->memory_bytes;
        m.cpus = n->cpus;
        m.last_seen_unix_ms = n->last_seen_ms;
        m.devices = ps;
        m.n_devices = n->n_devices;
        rec.version = RECORD_VERSION;
        rec.node = &m;
        if (health_fill_record(n, &rec, &health) < 0) {
                c->failed = true;
                snprintf(c->failed_why, sizeof(c->failed_why), "no memory to store node %s", n->name);
                return;
        }
        node_facts_fill(n, &m, true);
        m.duty = (char *)node_duty_name(n->duty);
        m.duty_reason = STR(n->duty_reason);
        m.window_from_unix_ms = n->window_from_ms;
        m.window_until_unix_ms = n->window_until_ms;
        rec.lease_number = n->lease_number;
        rec.lease_until_unix_ms = n->last_seen_ms + c->config.lease_ttl_ms;
        snprintf(key, sizeof(key), "node/%s", n->name);
        record_put_message(c, key, &rec.base);
}

static int load_node(struct controller *c, const void *value, size_t len, struct error *e) {
        Fp8ctl__V1__NodeRecord *rec = fp8ctl__v1__node_record__unpack(NULL, len, value);
        struct node *n;
        int r = 0;

        if (!rec || !rec->node || !rec->node->name || !rec->node->name[0])
                r = error_set(e, -EBADMSG, "node record: found %zu bytes that are no NodeRecord", len);
        else if (rec->version != RECORD_VERSION)
                r = error_set(e, -EPROTONOSUPPORT, "node record: found version %u, expected %d", rec->version, RECORD_VERSION);
        if (r == 0) {
                n = node_get_or_add(c, rec->node->name);
                if (!n || node_set_devices(n, rec->node->devices, rec->node->n_devices) < 0) {
                        r = error_set(e, -ENOMEM, "no memory for nodes");
                } else {
                        core_text(n->address, sizeof(n->address), rec->node->address);
                        core_text(n->version, sizeof(n->version), rec->node->version);
                        core_text(n->kernel, sizeof(n->kernel), rec->node->kernel);
                        core_text(n->boot_id, sizeof(n->boot_id), rec->node->boot_id);
                        core_text(n->dir, sizeof(n->dir), rec->node->dir);
                        n->incarnation = rec->node->incarnation;
                        n->memory_bytes = rec->node->memory_bytes;
                        n->cpus = rec->node->cpus;
                        n->last_seen_ms = rec->node->last_seen_unix_ms;
                        n->duty = node_duty_parse(rec->node->duty);
                        core_text(n->duty_reason, sizeof(n->duty_reason), rec->node->duty_reason);
                        n->window_from_ms = rec->node->window_from_unix_ms;
                        n->window_until_ms = rec->node->window_until_unix_ms;
                        n->lease_number = rec->lease_number;
                        core_text(n->boot_id, sizeof(n->boot_id), rec->node->boot_id);
                        if (health_load(n, rec) < 0 || node_facts_load(n, rec->node) < 0)
                                r = error_set(e, -ENOMEM, "no memory for nodes");
                        if (rec->node->state && strcmp(rec->node->state, node_state_name(NODE_LOST)) == 0) {
                                n->state = NODE_LOST;
                                core_text(n->reason, sizeof(n->reason), rec->node->reason);
                        }
                }
        }
        if (rec)
                fp8ctl__v1__node_record__free_unpacked(rec, NULL);
        return r;
}

/* ------------------------------------------------------------------ the rest */
void record_put_cluster(struct controller *c) {
        Fp8ctl__V1__ClusterRecord rec = FP8CTL__V1__CLUSTER_RECORD__INIT;

        rec.version = RECORD_VERSION;
        rec.cluster_id = c->cluster_id;
        rec.next_job_id = c->next_job;
        rec.next_event_id = c->next_event;
        rec.next_lease_number = c->next_lease;
        record_put_message(c, "cluster", &rec.base);
        c->cluster_dirty = false;
}

static int load_cluster(struct controller *c, const void *value, size_t len, struct error *e) {
        Fp8ctl__V1__ClusterRecord *rec = fp8ctl__v1__cluster_record__unpack(NULL, len, value);
        int r = 0;

        if (!rec)
                return error_set(e, -EBADMSG, "cluster record: found %zu bytes that are no ClusterRecord", len);
        if (rec->version != RECORD_VERSION) {
                r = error_set(e, -EPROTONOSUPPORT, "cluster record: found version %u, expected %d", rec->version, RECORD_VERSION);
        } else {
                core_text(c->cluster_id, sizeof(c->cluster_id), rec->cluster_id);
                if (rec->next_job_id > c->next_job)
                        c->next_job = rec->next_job_id;
                if (rec->next_event_id > c->next_event)
                        c->next_event = rec->next_event_id;
                if (rec->next_lease_number > c->next_lease)
                        c->next_lease = rec->next_lease_number;
        }
        fp8ctl__v1__cluster_record__free_unpacked(rec, NULL);
        return r;
}

static int load_event(struct controller *c, const void *value, size_t len, struct error *e) {
        Fp8ctl__V1__EventRecord *rec = fp8ctl__v1__event_record__unpack(NULL, len, value);
        int r;

        if (!rec)
                return error_set(e, -EBADMSG, "event record: found %zu bytes that are no EventRecord", len);
        r = rec->version != RECORD_VERSION ? error_set(e, -EPROTONOSUPPORT, "event record: found version %u, expected %d", rec->version, RECORD_VERSION)
                                           : event_load(c, rec, e);
        fp8ctl__v1__event_record__free_unpacked(rec, NULL);
        return r;
}

int record_load(struct controller *c, const char *key, const void *value, size_t len, struct error *e) {
        static const struct {
                const char *prefix;
                int (*load)(struct controller *c, const void *value, size_t len, struct error *e);
        } kinds[] = {
                { "job/", load_job }, { "node/", load_node }, { "event/", load_event }, { "cluster", load_cluster },
                { "rollout/", rollout_load }, { "rollout-node/", rollout_load_node },
                /* The job's own record says the same; these are there for the compare. */
                { "epoch/", NULL }, { "commit/", NULL }, { "request/", NULL },
        };

        for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
                if (strncmp(key, kinds[i].prefix, strlen(kinds[i].prefix)) == 0) {
                        int r = kinds[i].load ? kinds[i].load(c, value, len, e) : 0;

                        return r < 0 ? error_prefix(e, "%s", key) : 0;
                }
        return error_set(e, -EBADMSG, "store: found key '%s', expected cluster, job/, node/, event/, epoch/, commit/, request/, rollout/ or rollout-node/", key);
}

static void epoch_key(const struct job *j, char *buf, size_t size) {
        snprintf(buf, size, "epoch/%" PRIu64, j->id);
}

static void expect_epoch(struct controller *c, const struct job *j, uint64_t value) {
        char key[STORE_KEY_MAX], text[24] = "";
        int n = value ? snprintf(text, sizeof(text), "%" PRIu64, value) : 0;

        epoch_key(j, key, sizeof(key));
        core_persist(c, STORE_EXPECT, key, text, (size_t)n);
}

void record_expect_epoch(struct controller *c, const struct job *j) {
        expect_epoch(c, j, j->epoch);
}

void record_put_epoch(struct controller *c, const struct job *j, uint64_t expected) {
        char key[STORE_KEY_MAX], text[24];
        int n = snprintf(text, sizeof(text), "%" PRIu64, j->epoch);

        expect_epoch(c, j, expected);
        epoch_key(j, key, sizeof(key));
        core_persist(c, STORE_PUT, key, text, (size_t)n);
}

static void commit_key(const struct job *j, const struct checkpoint *k, char *buf, size_t size) {
        snprintf(buf, size, "commit/%" PRIu64 "/%020" PRIu64, j->id, k->step);
}

void record_put_commit(struct controller *c, const struct job *j, const struct checkpoint *k) {
        Fp8ctl__V1__Checkpoint m;
        Fp8ctl__V1__CheckpointRecord r;
        char key[STORE_KEY_MAX];

        checkpoint_record_fill(j, k, &m, &r);
        commit_key(j, k, key, sizeof(key));
        record_put_message(c, key, &r.base);
}

void record_delete_commit(struct controller *c, const struct job *j, const struct checkpoint *k) {
        char key[STORE_KEY_MAX];

        commit_key(j, k, key, sizeof(key));
        core_persist(c, STORE_DELETE, key, NULL, 0);
}

static bool request_key(const struct job *j, char *buf, size_t size) {
        snprintf(buf, size, "request/%s", j->request_id);
        return j->request_id[0] != 0;
}

void record_put_request(struct controller *c, const struct job *j) {
        char key[STORE_KEY_MAX], text[24];

        if (request_key(j, key, sizeof(key)))
                core_persist(c, STORE_PUT, key, text, (size_t)snprintf(text, sizeof(text), "%" PRIu64, j->id));
}

void record_delete_job(struct controller *c, const struct job *j) {
        char key[STORE_KEY_MAX];

        snprintf(key, sizeof(key), "job/%" PRIu64, j->id);
        core_persist(c, STORE_DELETE, key, NULL, 0);
        epoch_key(j, key, sizeof(key));
        core_persist(c, STORE_DELETE, key, NULL, 0);
        for (size_t i = 0; i < j->n_checkpoints; i++)
                record_delete_commit(c, j, &j->checkpoints[i]);
        if (request_key(j, key, sizeof(key)))
                core_persist(c, STORE_DELETE, key, NULL, 0);
}
