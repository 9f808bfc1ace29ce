/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What only replica memory has becomes a checkpoint before that memory goes, or when no rank can load it as it is: the job leaves its devices while it recovers (preempted, its node leaves, no devices for
 * lost ranks), or goes on with fewer replicas, whose ranks read shards of any layout, but generations of their own only.  The round's inventories tell where each slice lies; those nodes write them into
 * a folder, and that is committed like any save, under the live epoch.  The memory stays until then.  What takes longer than recovery.rescue_ms, or fails, is given up: the newest commit is loaded.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/text.h"
#include "daemon/core/ckpt_private.h"
#include "daemon/core/recovery_private.h"

#define J(x) FP8CTL__V1__JOB_STATE__##x

struct rescue {
        uint64_t step, epoch /* of the generation */, deadline;
        uint32_t attempt, shard_count;
        struct node **places; /* by rank of the layout that wrote it */
        bool *told;           /* the node of that rank has */
        uint32_t n_told;
        bool writing;         /* all are there: the manifest */
};

static struct rescue *rescue_free(struct rescue *x) {
        if (x) {
                free(x->places);
                free(x->told);
        }
        free(x);
        return NULL;
}
DEFINE_CLEANUP(struct rescue *, rescue_free);

void rescue_end(struct job *j) {
        j->rescue = rescue_free(j->rescue);
        j->rescued = false;
}

bool rescue_may(const struct job *j) {
        return j->spec->recovery.rescue_ms > 0 && j->spec->checkpoint.dir && j->spec->checkpoint.dir[0] && j->state != J(STARTING);
}

/* ------------------------------------------------------------------ what, and where it lies */
static bool of(const struct generation *g, const struct generation *want) {
        return g->step == want->step && g->epoch == want->epoch && g->shard_count == want->shard_count && strcmp(g->layout, want->layout) == 0 && !g->disk && g->node->session && g->node->saves_memory;
}

/* A step has one commit, whatever it is worth. */
static bool committed(const struct job *j, uint64_t step) {
        for (size_t i = 0; i < j->n_checkpoints; i++)
                if (j->checkpoints[i].step == step && !j->checkpoints[i].removing)
                        return true;
        return false;
}

/* Where each slice is written; a rank's own node before a peer. False: not all of them can be. */
static bool places_of(const struct job *j, const struct generation *want, struct node **ret) {
        uint32_t n = 0;

        memset(ret, 0, want->shard_count * sizeof(*ret));
        for (size_t i = 0; i < j->n_generations; i++) {
                const struct generation *g = &j->generations[i];

                if (!of(g, want) || (ret[g->rank] && g->held))
                        continue;
                n += !ret[g->rank];
                ret[g->rank] = g->node;
        }
        return n == want->shard_count;
}

/* The newest whole one that is newer than what is loaded without it. */
static const struct generation *choose(const struct job *j, struct node **places) {
        const struct checkpoint *k = checkpoint_newest(j);
        uint64_t have = k ? k->step : 0, loads = j->leaving ? 0 : restore_generation_step(j);
        const struct generation *best = NULL;

        for (size_t i = 0; i < j->n_generations; i++) {
                const struct generation *g = &j->generations[i];

                if (g->rank != 0 || g->step <= have || g->step <= loads || g->epoch < j->rescue_floor || restore_barred(j, g) || committed(j, g->step) || g->shard_count % (uint32_t)(j->spec->parallel.tp * j->spec->parallel.pp))
                        continue;
                if (best && (g->step < best->step || (g->step == best->step && g->epoch <= best->epoch)))
                        continue;
                if (places_of(j, g, places))
                        best = g;
        }
        if (best)
                (void)places_of(j, best, places);
        return best;
}

/* ------------------------------------------------------------------ asking */
static void ask(struct controller *c, struct job *j, struct node *n) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__SaveMemory q = FP8CTL__V1__SAVE_MEMORY__INIT;
        const struct rescue *x = j->rescue;
        _cleanup_free_ uint32_t *ranks = calloc((size_t)x->shard_count + 1, sizeof(*ranks));
        char path[4200];

        if (!ranks)
                return; /* the deadline ends it */
        for (uint32_t i = 0; i < x->shard_count; i++)
                if (x->places[i] == n && !x->told[i])
                        ranks[q.n_ranks++] = i;
        if (q.n_ranks == 0)
                return;
        checkpoint_folder(j, x->step, j->epoch, x->attempt, path, sizeof(path));
        q.job_id = j->id;
        q.epoch = j->epoch;
        q.step = x->step;
        q.generation_epoch = x->epoch;
        q.attempt = x->attempt;
        q.directory = path;
        q.ranks = ranks;
        q.shard_count = x->shard_count;
        q.job_file = (char *)layout_job_file(j);
        q.uid = j->uid;
        q.gid = j->gid;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_SAVE_MEMORY;
        m.save_memory = &q;
        node_send(c, n, &m);
}

static void over(struct controller *c, struct job *j) {
        char why[sizeof(j->stop_reason) + 64];
        const struct checkpoint *k = checkpoint_newest(j);

        j->rescue = rescue_free(j->rescue);
        j->rescued = true;
        if (!j->leaving) {
                recovery_check(c, j);
                return;
        }
        if (k)
                snprintf(why, sizeof(why), "%s; goes on from step %" PRIu64, j->stop_reason, k->step);
        else
                snprintf(why, sizeof(why), "%s; nothing is saved yet", j->stop_reason);
        job_finish(c, j, JOB_E_REQUEUE, why);
}

static void give_up(struct controller *c, struct job *j, const char *why) {
        event_add(c, &(struct event_of){ .job = j, .rank = -1, .severity = "warning" }, "memory_not_saved", "step %" PRIu64 " in replica memory could not be saved: %.300s", j->rescue->step, why);
        save_memory_drop(c, j, j->rescue->step, j->rescue->attempt, why);
        over(c, j);
}

static void begin(struct controller *c, struct job *j) {
        _cleanup_(rescue_freep) struct rescue *x = calloc(1, sizeof(*x));
        uint32_t most = 1;
        const struct generation *g;

        for (size_t i = 0; i < j->n_generations; i++)
                most = j->generations[i].shard_count > most ? j->generations[i].shard_count : most;
        if (x) {
                x->places = calloc(most, sizeof(struct node *));
                x->told = calloc(most, sizeof(*x->told));
        }
        g = x && x->places && x->told ? choose(j, x->places) : NULL;
        if (!g) {
                over(c, j);
                return;
        }
        x->step = g->step;
        x->epoch = g->epoch;
        x->shard_count = g->shard_count;
        x->attempt = j->next_attempt++;
        x->deadline = core_now(c) + (uint64_t)j->spec->recovery.rescue_ms * NSEC_PER_MSEC;
        j->dirty = true;
        if (save_memory_begin(c, j, x->step, x->attempt, x->shard_count) < 0) {
                over(c, j);
                return;
        }
        j->rescue = STEAL_PTR(x);
        event_add(c, &(struct event_of){ .job = j, .rank = -1 }, "saving_memory", "step %" PRIu64 " of %u ranks, which only replica memory has, is saved %s", j->rescue->step, j->rescue->shard_count,
                  j->leaving ? "before the job leaves its devices" : "for ranks of another layout");
        for (size_t i = 0; i < c->n_nodes; i++)
                ask(c, j, c->nodes[i]);
}

/* ------------------------------------------------------------------ answers */
static int take(struct controller *c, struct job *j, struct node *n, const Fp8ctl__V1__MemorySaved *m, struct error *e) {
        struct rescue *x = j->rescue;

        for (size_t i = 0; i < m->n_shards; i++) {
                uint32_t rank = m->shards[i] ? m->shards[i]->rank : UINT32_MAX;

                if (rank >= x->shard_count || x->places[rank] != n || x->told[rank])
                        return error_set(e, -EBADMSG, "reported shards that it was not asked for");
                x->told[rank] = true;
                x->n_told++;
        }
        for (uint32_t i = 0; i < x->shard_count; i++)
                if (x->places[i] == n && !x->told[i])
                        return error_set(e, -EBADMSG, "reported no shard of rank %u", i);
        return save_memory_shards(c, j, x->step, x->attempt, m, e);
}

void rescue_saved(struct controller *c, struct session *s, const Fp8ctl__V1__MemorySaved *m) {
        struct job *j = job_find(c, m->job_id);
        char why[TEXT_MAX_LEN], said[250];
        struct error e = { 0 };
        struct rescue *x;

        if (!j || !j->rescue || m->epoch != j->epoch || m->step != j->rescue->step || m->attempt != j->rescue->attempt || j->rescue->writing) {
                core_drop(c, DROP_EPOCH, "memory_saved");
                return;
        }
        x = j->rescue;
        for (uint32_t i = 0; i < x->shard_count; i++)
                if (x->places[i] == s->node && x->told[i])
                        return; /* told twice: its stream broke meanwhile */
        core_text(said, sizeof(said), m->error);
        if (said[0] || take(c, j, s->node, m, &e) < 0) {
                snprintf(why, sizeof(why), "%.100s: %.250s", s->node->name, said[0] ? said : e.text);
                give_up(c, j, why);
                return;
        }
        x->writing = x->n_told == x->shard_count;
        if (x->writing)
                save_memory_write(c, j, x->step, x->attempt);
        rescue_look(c, j);
}

/* Its worker may be another one than that which was asked, and its memory that of another boot. */
void rescue_listed(struct controller *c, struct job *j, struct node *n) {
        const struct rescue *x = j->rescue;
        char why[TEXT_MAX_LEN];

        for (uint32_t i = 0; x && !x->writing && i < x->shard_count; i++) {
                bool there = x->places[i] != n || x->told[i];

                for (size_t k = 0; k < j->n_generations && !there; k++) {
                        const struct generation *g = &j->generations[k];

                        there = g->node == n && g->rank == i && g->step == x->step && g->epoch == x->epoch && g->shard_count == x->shard_count && !g->disk;
                }
                if (!there) {
                        snprintf(why, sizeof(why), "%.100s came back without its memory", n->name);
                        give_up(c, j, why);
                        return;
                }
        }
        if (x && !x->writing)
                ask(c, j, n);
}

void rescue_node_lost(struct controller *c, struct job *j, const struct node *n) {
        char why[TEXT_MAX_LEN];

        if (!j->rescue)
                return;
        for (uint32_t i = 0; i < j->rescue->shard_count; i++)
                if (j->rescue->places[i] == n && !j->rescue->told[i]) {
                        snprintf(why, sizeof(why), "node %.100s was lost over it", n->name);
                        give_up(c, j, why);
                        return;
                }
}

/* ------------------------------------------------------------------ its place in a round */
/* Everybody who may have something has said what. */
static bool listed(const struct controller *c, const struct job *j) {
        for (int i = 0; i < j->world; i++)
                if (j->ranks[i].node && !j->ranks[i].heard && j->ranks[i].node->state != NODE_LOST && j->ranks[i].state != RANK_LOST)
                        return false;
        (void)c;
        return j->n_inventory_wait == 0;
}

bool rescue_look(struct controller *c, struct job *j) {
        if (!job_placed(j) || j->rec != REC_FENCE || j->rescued)
                return false;
        if (!j->rescue) {
                if (!rescue_may(j)) {
                        j->rescued = true;
                        return false;
                }
                if (!listed(c, j))
                        return j->leaving;
                begin(c, j);
        } else if (j->rescue->writing && checkpoint_has(j, j->rescue->step)) {
                over(c, j);
        } else if (j->rescue->writing && !save_in_flight(j, j->rescue->step)) {
                give_up(c, j, "its manifest could not be written");
        }
        return true;
}

bool rescue_leave(struct controller *c, struct job *j, uint32_t grace_ms, const char *reason) {
        uint64_t ms = (uint64_t)j->spec->recovery.rescue_ms;
        char why[sizeof(j->stop_reason)];

        if (!rescue_may(j) || !job_placed(j))
                return false;
        if (j->leaving)
                return true;
        core_text(why, sizeof(why), reason);
        if (grace_ms < ms)
                ms = grace_ms;
        j->leaving = true;
        j->stop_kind = STOP_REQUEUE;
        core_text(j->stop_reason, sizeof(j->stop_reason), why);
        j->stop_deadline = core_now(c) + ms * NSEC_PER_MSEC;
        j->dirty = true;
        if (j->rec != REC_FENCE)
                recovery_round(c, j, why);
        if (j->rescue)
                return true; /* what is being saved for fewer replicas is good for this too */
        j->rescued = false;
        rescue_look(c, j);
        return true;
}

void rescue_tick(struct controller *c, struct job *j, uint64_t now) {
        if (j->rescue && !j->rescue->writing && now >= j->rescue->deadline)
                give_up(c, j, "it took longer than recovery.rescue_ms");
}

uint64_t rescue_next_deadline(const struct job *j) {
        return j->rescue && !j->rescue->writing ? j->rescue->deadline : 0;
}
