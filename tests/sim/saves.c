/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Saves as ranks and workers make them: a rank writes one after the other and speaks of them in order; its worker keeps the newest words that are not answered, and says them again after a
 * welcome.  And what must be there in the end.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/core.h"
#include "tests/sim/sim.h"

static void say(struct sim *s, int node, const struct proc *p, const struct word *w) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__CheckpointPrepared x = FP8CTL__V1__CHECKPOINT_PREPARED__INIT;
        Fp8ctl__V1__ShardInfo shard = FP8CTL__V1__SHARD_INFO__INIT, *shards[1] = { &shard };
        char dir[128], file[64];

        snprintf(dir, sizeof(dir), "%s/step_%08" PRIu64 ".e%" PRIu64 ".%u", p->ckpt, w->step, w->epoch, w->attempt);
        snprintf(file, sizeof(file), "shard-%05u.safetensors", p->rank);
        shard.file = file;
        shard.bytes = 1000;
        shard.digest = (char *)"00112233445566778899aabbccddeeff";
        shard.rank = p->rank;
        x.job_id = p->job;
        x.epoch = w->epoch;
        x.rank = p->rank;
        x.incarnation = p->incarnation;
        x.step = w->step;
        x.attempt = w->attempt;
        x.directory = dir;
        x.shards = shards;
        x.n_shards = 1;
        x.state_json = p->rank == 0 ? (char *)"{\"step\": 1}" : (char *)"";
        x.error = w->failed ? (char *)"No space left on device" : (char *)"";
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_CHECKPOINT_PREPARED;
        m.checkpoint_prepared = &x;
        worker_send(s, node, &m);
}

static void forget_at(struct proc *p, size_t i) {
        p->n_words--;
        memmove(p->words + i, p->words + i + 1, (p->n_words - i) * sizeof(p->words[0]));
}

static void prepared(struct sim *s, struct ev *e) {
        struct proc *p = worker_proc_of(s, e);
        struct word w = { .epoch = e->d >> 48, .attempt = (uint32_t)(e->d >> 32 & 0xffff), .step = e->d & 0xffffffff };

        if (!p || p->dead)
                return;
        if (s->rank_faults && sim_random(s, 300) == 0)
                return; /* its storage hangs */
        w.failed = s->rank_faults && sim_chance(s, 1);
        if (p->n_words == SIM_WORDS_MAX)
                forget_at(p, 0);
        p->words[p->n_words++] = w;
        if (s->nodes[e->a].lease_number) /* welcomed: else it is said then */
                say(s, (int)e->a, p, &w);
}

uint64_t save_begin(struct sim *s, int node, struct proc *p, uint32_t attempt) {
        uint64_t from = p->written > s->now ? p->written : s->now;

        p->written = from + MS + sim_random(s, (s->save_every < 5 ? 30 : 50) * MS);
        worker_proc_after(s, node, p, p->written - s->now, prepared)->d = p->epoch << 48 | (uint64_t)attempt << 32 | p->step;
        return p->written;
}

void save_say_again(struct sim *s, int node) {
        for (int i = 0; i < s->nodes[node].n_procs; i++) {
                struct proc *p = &s->nodes[node].procs[i];

                for (size_t k = 0; p->used && !p->dead && k < p->n_words;)
                        if (p->words[k].epoch < p->epoch)
                                forget_at(p, k);
                        else
                                say(s, node, p, &p->words[k++]);
        }
}

void save_answered(struct sim *s, int node, uint64_t job, uint64_t epoch, uint64_t step, uint32_t attempt) {
        for (int i = 0; i < s->nodes[node].n_procs; i++) {
                struct proc *p = &s->nodes[node].procs[i];

                for (size_t k = 0; p->used && p->job == job && k < p->n_words;)
                        if (p->words[k].epoch == epoch && p->words[k].step == step && p->words[k].attempt == attempt)
                                forget_at(p, k);
                        else
                                k++;
        }
}

void save_forget(struct sim *s, int node) {
        for (int i = 0; i < s->nodes[node].n_procs; i++)
                s->nodes[node].procs[i].n_words = 0;
}

/* ------------------------------------------------------------------ who died at which state of a save */
static bool writes(const struct sim *s, uint64_t job) {
        for (int k = 0; k < s->n_nodes; k++)
                for (int i = 0; s->nodes[k].up && i < s->nodes[k].n_procs; i++) {
                        const struct proc *p = &s->nodes[k].procs[i];

                        if (p->used && !p->dead && (!job || p->job == job) && p->written > s->now)
                                return true;
                }
        return false;
}

static enum sim_save furthest(const struct sim *s, uint64_t job) {
        enum sim_save found = writes(s, job) ? SIM_SAVE_WRITING : SIM_SAVE_NONE;

        if (s->commits_under_way)
                return SIM_SAVE_COMMIT;
        for (size_t i = 0; s->core && i < s->core->n_jobs; i++) {
                if (job && s->core->jobs[i]->id != job)
                        continue;
                for (const struct save *v = s->core->jobs[i]->saves; v; v = v->next) {
                        if (v->state == SAVE_WRITING)
                                return SIM_SAVE_MANIFEST;
                        if (v->state == SAVE_PREPARING)
                                found = SIM_SAVE_PREPARED;
                }
        }
        return found;
}

void save_struck(struct sim *s, enum sim_victim who, uint64_t job) {
        s->struck[who][furthest(s, job)]++;
}

void save_print_struck(const struct sim *total) {
        static const char *const who[N_VICTIMS] = { "rank", "worker", "node", "controller" };
        uint64_t during = 0;

        printf("%-12s%10s%10s%10s%10s%10s\n", "killed", "no save", "writing", "prepared", "manifest", "commit");
        for (int v = 0; v < N_VICTIMS; v++) {
                printf("%-12s", who[v]);
                for (int k = 0; k < N_SIM_SAVES; k++) {
                        printf("%10" PRIu64, total->struck[v][k]);
                        during += k > 0 ? total->struck[v][k] : 0;
                }
                printf("\n");
        }
        printf("%" PRIu64 " of them during a save\n", during);
}

/* ------------------------------------------------------------------ what must hold */
/* A step of an epoch begins: from here on nothing may be missing, unless something of a rank, a node or a disk fails. */
void save_note_calm(struct sim *s, uint64_t job, uint64_t epoch, uint64_t step) {
        if (s->now < s->calm_at || s->calm_epoch[job % 16] == epoch)
                return;
        s->calm_epoch[job % 16] = epoch;
        s->calm_step[job % 16] = step;
}

static bool commit_of(const struct kv *at, uint64_t *ret_step, char *path, size_t size) {
        Fp8ctl__V1__CheckpointRecord *r;

        if (strncmp(at->key, "commit/", 7) != 0)
                return false;
        r = fp8ctl__v1__checkpoint_record__unpack(NULL, at->len, at->value);
        if (!r || !r->checkpoint)
                abort();
        *ret_step = r->checkpoint->step;
        snprintf(path, size, "%s", r->checkpoint->path);
        fp8ctl__v1__checkpoint_record__free_unpacked(r, NULL);
        return true;
}

/* What is removed is no commit, and nobody's word about it waits for the others'. */
void save_check_removal(struct sim *s, const char *path) {
        char committed[128];
        uint64_t step;

        for (size_t i = 0; i < s->n_store; i++)
                if (commit_of(&s->store[i], &step, committed, sizeof(committed)) && strcmp(path, committed) == 0)
                        sim_fail(s, "%s is removed, and step %" PRIu64 " is committed there", path, step);
}

void save_check_kept(struct sim *s, uint64_t job) {
        uint64_t last = (uint64_t)s->steps, step, n = 0, wanted = last;
        char prefix[32], key[64], path[128];

        snprintf(prefix, sizeof(prefix), "commit/%" PRIu64 "/", job);
        for (size_t i = 0; i < s->n_store; i++)
                n += strncmp(s->store[i].key, prefix, strlen(prefix)) == 0 && commit_of(&s->store[i], &step, path, sizeof(path));
        if (n > SIM_KEEP_LAST)
                sim_fail(s, "job %" PRIu64 ": found %" PRIu64 " commits, expected at most %d (keep_last)", job, n, SIM_KEEP_LAST);
        for (int k = 0; k < SIM_KEEP_LAST; k++) {
                if (k > 0 && (s->calm_epoch[job % 16] != s->stepped_epoch[job % 16] || wanted <= s->calm_step[job % 16]))
                        return; /* what was saved before that may have been lost */
                snprintf(key, sizeof(key), "commit/%" PRIu64 "/%020" PRIu64, job, wanted);
                if (!sim_stored(s, key))
                        sim_fail(s, "job %" PRIu64 " is done and has no commit of step %" PRIu64 ", expected one (saves every %" PRIu64 " steps; nothing but the controller failed since step %" PRIu64 ")",
                                 job, wanted, s->save_every, s->calm_step[job % 16]);
                wanted = (wanted - 1) / s->save_every * s->save_every;
                if (wanted == 0)
                        return;
        }
}
