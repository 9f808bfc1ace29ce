/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What ckpt_coord.c (saves) and ckpt_folders.c (what is on disk) share. */
#include "daemon/core/core.h"

/* ckpt_coord.c */
struct save *save_find(struct job *j, uint64_t epoch, uint64_t step, uint32_t attempt);

/* ckpt_folders.c */
struct checkpoint *checkpoint_add(struct job *j, const struct save *s, const char *path);
struct checkpoint *checkpoint_at(struct job *j, const char *path);
struct checkpoint *checkpoint_in_hand(struct job *j, uint64_t id); /* of this file work */
const struct checkpoint *checkpoint_of(const struct job *j, const Fp8ctl__V1__CheckpointPrepared *m); /* the commit that a word speaks of */
uint64_t checkpoint_before(const struct job *j, uint64_t step); /* the newest commit before; 0: none */
bool checkpoint_being_loaded(const struct job *j, const char *path);
void checkpoint_remove(struct controller *c, struct job *j, struct checkpoint *k);
/* A step has one record in the store: the folder of another commit of that step, one that could not be loaded, goes, and what the store has of it is the new one's. */
void checkpoint_replaced(struct controller *c, struct job *j, const struct checkpoint *by);
void checkpoint_resume_removals(struct controller *c, struct job *j);
bool checkpoint_removal_done(struct controller *c, struct job *j, uint64_t id, int rc, const char *text);
void checkpoint_retain(struct controller *c, struct job *j); /* keep_last, keep_every */
void checkpoint_clear_stale(struct controller *c, struct job *j, uint64_t below); /* unfinished ones of epochs below */
void checkpoint_clear_unheard(struct controller *c, struct job *j, uint64_t after, uint64_t before);
