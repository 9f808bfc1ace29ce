/* SPDX-License-Identifier: Apache-2.0 */
/* The folders of checkpoints: which are committed, which are to be removed, and which an earlier life may have left. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/ckpt_private.h"

#define UNHEARD_MAX 64 /* folders of lost saves cleared at one commit, the newest */

/* The layout of names is format/checkpoint.h's. */
void checkpoint_folder(const struct job *j, uint64_t step, uint64_t epoch, uint32_t attempt, char *buf, size_t size) {
        snprintf(buf, size, "%s/step_%08" PRIu64 ".e%" PRIu64 ".%u", j->spec->checkpoint.dir ? j->spec->checkpoint.dir : "", step, epoch, attempt);
}

const struct checkpoint *checkpoint_newest(const struct job *j) {
        const struct checkpoint *best = NULL;

        for (size_t i = 0; i < j->n_checkpoints; i++)
                if (!j->checkpoints[i].bad && !j->checkpoints[i].removing && (!best || j->checkpoints[i].step >= best->step))
                        best = &j->checkpoints[i];
        return best;
}

bool checkpoint_has(const struct job *j, uint64_t step) {
        for (size_t i = 0; i < j->n_checkpoints; i++)
                if (j->checkpoints[i].step == step && !j->checkpoints[i].bad && !j->checkpoints[i].removing)
                        return true;
        return false;
}

struct checkpoint *checkpoint_in_hand(struct job *j, uint64_t id) {
        for (size_t i = 0; i < j->n_checkpoints; i++)
                if (j->checkpoints[i].file_id == id)
                        return &j->checkpoints[i];
        return NULL;
}

struct checkpoint *checkpoint_add(struct job *j, const struct save *s, const char *path) {
        struct checkpoint *list = realloc(j->checkpoints, (j->n_checkpoints + 1) * sizeof(*list));
        struct checkpoint *k;

        if (!list)
                return NULL;
        j->checkpoints = list;
        k = &list[j->n_checkpoints];
        *k = (struct checkpoint){ .step = s->step, .epoch = s->epoch, .attempt = s->attempt, .bytes = s->bytes };
        k->path = strdup(path);
        if (!k->path)
                return NULL;
        j->n_checkpoints++;
        j->dirty = true;
        return k;
}

const struct checkpoint *checkpoint_of(const struct job *j, const Fp8ctl__V1__CheckpointPrepared *m) {
        for (size_t i = 0; i < j->n_checkpoints; i++) {
                const struct checkpoint *k = &j->checkpoints[i];

                if (k->step == m->step && k->epoch == m->epoch && k->attempt == m->attempt && !k->removing)
                        return k;
        }
        return NULL;
}

struct checkpoint *checkpoint_at(struct job *j, const char *path) {
        for (size_t i = 0; i < j->n_checkpoints; i++)
                if (strcmp(j->checkpoints[i].path, path) == 0)
                        return &j->checkpoints[i];
        return NULL;
}

bool checkpoint_being_loaded(const struct job *j, const char *path) {
        return (j->rec == REC_RESTORE || j->rec == REC_FENCE) && j->load_path && strcmp(j->load_path, path) == 0;
}

void checkpoint_remove(struct controller *c, struct job *j, struct checkpoint *k) {
        struct file_work w = { .kind = FILE_REMOVE_TREE, .uid = j->uid, .gid = j->gid, .path = k->path };

        k->removing = true;
        k->file_id = w.id = c->next_file++;
        j->dirty = true;
        c->io.file_work(c->io.arg, &w);
}

void checkpoint_replaced(struct controller *c, struct job *j, const struct checkpoint *by) {
        for (size_t i = 0; i < j->n_checkpoints; i++) {
                struct checkpoint *k = &j->checkpoints[i];

                if (k != by && k->step == by->step && !k->removing)
                        checkpoint_remove(c, j, k);
        }
}

void checkpoint_resume_removals(struct controller *c, struct job *j) {
        for (size_t i = 0; i < j->n_checkpoints; i++)
                if (j->checkpoints[i].removing && !j->checkpoints[i].file_id)
                        checkpoint_remove(c, j, &j->checkpoints[i]);
}

bool checkpoint_removal_done(struct controller *c, struct job *j, uint64_t id, int rc, const char *text) {
        for (size_t i = 0; i < j->n_checkpoints; i++) {
                struct checkpoint *k = &j->checkpoints[i];

                if (k->file_id != id || !k->removing)
                        continue;
                if (rc < 0)
                        event_add(c, &(struct event_of){ .job = j, .rank = -1, .severity = "warning" }, "checkpoint_not_removed", "%s could not be removed: %.200s", k->path, text ? text : "");
                free(k->path);
                memmove(k, k + 1, (j->n_checkpoints - i - 1) * sizeof(*k));
                j->n_checkpoints--;
                j->dirty = true;
                return true;
        }
        return false;
}

/* Neither one of the last ones, nor kept for good, nor what a recovery loads or would load. */
static bool may_go(const struct job *j, const struct checkpoint *k) {
        int64_t keep = j->spec->checkpoint.keep_last > 0 ? j->spec->checkpoint.keep_last : 1, every = j->spec->checkpoint.keep_every, newer = 0;

        if (k->removing || checkpoint_being_loaded(j, k->path) || k == checkpoint_newest(j))
                return false;
        if (every > 0 && k->step % (uint64_t)every == 0 && !k->bad)
                return false;
        for (size_t i = 0; i < j->n_checkpoints; i++)
                newer += !j->checkpoints[i].removing && j->checkpoints[i].step > k->step;
        return newer >= keep;
}

void checkpoint_retain(struct controller *c, struct job *j) {
        for (size_t i = 0; i < j->n_checkpoints; i++)
                if (may_go(j, &j->checkpoints[i])) {
                        record_delete_commit(c, j, &j->checkpoints[i]);
                        checkpoint_remove(c, j, &j->checkpoints[i]);
                }
}

/*
 * Periodic saves between the last commit and this one that nobody told us of: we were away.  Ranks prepare in order, so their word is lost, and what they wrote is cleared, once; a
 * folder that has a manifest is another job's, and stays.
 */
void checkpoint_clear_unheard(struct controller *c, struct job *j, uint64_t after, uint64_t before) {
        uint64_t every = j->spec->checkpoint.every_steps > 0 ? (uint64_t)j->spec->checkpoint.every_steps : 0;
        int n = 0;

        if (!every || !before || !j->spec->checkpoint.dir)
                return;
        for (uint64_t step = (before - 1) / every * every; step > after && n < UNHEARD_MAX; step -= every, n++) {
                struct file_work w = { .kind = FILE_REMOVE_UNFINISHED, .uid = j->uid, .gid = j->gid };
                char path[4200];

                checkpoint_folder(j, step, j->epoch, 1, path, sizeof(path));
                if (save_find(j, j->epoch, step, 1) || checkpoint_at(j, path))
                        continue;
                w.id = c->next_file++;
                w.path = path;
                c->io.file_work(c->io.arg, &w);
        }
}

/*
 * Ranks that die while they write a save that nobody has spoken of leave a folder that no record names.  When their epoch is over for all of them, whatever has no manifest is litter; a
 * folder that another job of today writes in is left alone (submit refuses to begin such a pair).
 */
void checkpoint_clear_stale(struct controller *c, struct job *j, uint64_t below) {
        struct file_work w = { .kind = FILE_REMOVE_STALE, .uid = j->uid, .gid = j->gid, .path = j->spec->checkpoint.dir };
        char text[24];

        if (!w.path || !w.path[0])
                return;
        for (size_t i = 0; i < c->n_jobs; i++) {
                const struct job *o = c->jobs[i];

                if (o != j && !job_ended(o) && o->spec->checkpoint.dir && strcmp(o->spec->checkpoint.dir, w.path) == 0)
                        return;
        }
        snprintf(text, sizeof(text), "%" PRIu64, below);
        w.text = text;
        w.id = c->next_file++;
        c->io.file_work(c->io.arg, &w);
}

void save_nobody_left(struct controller *c, struct job *j) {
        checkpoint_clear_stale(c, j, j->epoch + 1);
}

uint64_t checkpoint_before(const struct job *j, uint64_t step) {
        uint64_t last = 0;

        for (size_t i = 0; i < j->n_checkpoints; i++)
                if (j->checkpoints[i].step < step && j->checkpoints[i].step > last)
                        last = j->checkpoints[i].step;
        return last;
}

void save_resume_clearing(struct controller *c, struct job *j) {
        const struct checkpoint *k = checkpoint_newest(j);

        checkpoint_resume_removals(c, j);
        if (k && job_placed(j))
                checkpoint_clear_unheard(c, j, 0, k->step); /* the earlier life may have died over it */
}
